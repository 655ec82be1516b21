//! `/.well-known/remus` of a node that leaves UDP alone: what clients cannot use is not in it.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{Method, Request, Response, StatusCode};
use axum::routing::get;
use remus::Carrier;
use tower_service::Service as _;

use crate::web::WellKnown;

/// Bytes of the description: with every carrier and two certificates it is about 1 KiB.
const DESCRIPTION_MAX: usize = 64 * 1024;

/// `pages`, where `/.well-known/remus` leaves out the carriers that need UDP.
pub(crate) fn without_udp(pages: Router) -> Router {
    let whole = pages.clone();
    Router::new()
        .route(
            "/.well-known/remus",
            get(move |request| describe(whole.clone(), request)),
        )
        .fallback_service(pages)
}

async fn describe(mut pages: Router, mut request: Request<Body>) -> Response<Body> {
    // The length of a HEAD's answer is that of the shorter list, too.
    *request.method_mut() = Method::GET;
    let response = match pages.call(request).await {
        Ok(response) => response,
        // A router is always ready, and its error has no values.
        Err(never) => match never {},
    };
    let (mut head, body) = response.into_parts();
    let shorter = async {
        let whole = to_bytes(body, DESCRIPTION_MAX).await.ok()?;
        let mut known: WellKnown = serde_json::from_slice(&whole).ok()?;
        let udp = Carrier::WebTransport.name();
        known.transports.retain(|transport| transport.kind != udp);
        serde_json::to_vec_pretty(&known).ok()
    };
    if let Some(description) = shorter.await {
        head.headers.remove(CONTENT_LENGTH);
        Response::from_parts(head, Body::from(description))
    } else {
        tracing::error!("the node's description cannot be read back");
        let mut response = Response::new(Body::from("internal error\n"));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    }
}
