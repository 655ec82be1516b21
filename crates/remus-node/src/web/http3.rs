//! The way from a plain HTTP/3 request to the pages, and back.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt as _;
use remus_http3::{Error, RecvBody, Request, Responder};
use tokio::time::timeout;
use tower_service::Service as _;

use super::{BODY_MAX, text};

/// How long a request may take from its head to the last byte of its answer: pages are small, so whoever needs longer is gone
/// or means harm. Dropped requests are reset.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// Answers `request` from `site`.
pub(crate) async fn answer(request: Request, site: Router) {
    match timeout(REQUEST_MAX, exchange(request, site)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP/3 request broke"),
        Err(_) => tracing::debug!("an HTTP/3 request took too long"),
    }
}

async fn exchange(request: Request, mut site: Router) -> Result<(), Error> {
    let (head, mut body, responder) = request.into_parts();
    let Some(content) = RecvBody::collect(&mut body, BODY_MAX).await? else {
        return send(
            responder,
            text(StatusCode::PAYLOAD_TOO_LARGE, "the body is over 64 KiB\n"),
        )
        .await;
    };
    let (parts, ()) = head.into_parts();
    let request = axum::http::Request::from_parts(parts, Body::from(content));
    // A router is always ready, and its error has no values.
    let response = match site.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    send(responder, response).await
}

async fn send(responder: Responder, response: Response<Body>) -> Result<(), Error> {
    let (parts, mut body) = response.into_parts();
    let mut out = responder.respond(Response::from_parts(parts, ())).await?;
    let mut trailers: Option<HeaderMap> = None;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            // Dropping what was begun resets the stream, so that nobody takes a part for the whole.
            return Ok(());
        };
        match frame.into_data() {
            Ok(data) => out.send_data(data).await?,
            Err(other) => trailers = other.into_trailers().ok(),
        }
    }
    match trailers {
        Some(trailers) => out.send_trailers(&trailers).await,
        None => out.finish().await,
    }
}
