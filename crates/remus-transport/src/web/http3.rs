//! The way from a plain HTTP/3 request to [`super::answer`], and back.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use remus_http3::{Error, Responder};
use tokio::time::timeout;

use super::Body;
use crate::webtransport::Acceptor;

/// How long the client may take nothing of an answer: whoever needs longer is gone or means harm. Dropped answers are reset.
const WRITE_MAX: Duration = Duration::from_secs(30);

/// Answers `request`.
pub(crate) async fn answer(request: remus_http3::Request, acceptor: Arc<dyn Acceptor>) {
    let remote = request.remote_address();
    let (head, body, responder) = request.into_parts();
    let (parts, ()) = head.into_parts();
    let request = Request::from_parts(parts, body.map_err(Into::into).boxed_unsync());
    let response = super::answer(acceptor, remote, request).await;
    if let Err(error) = send(responder, response).await {
        tracing::debug!(%error, "an HTTP/3 request broke");
    }
}

async fn send(responder: Responder, response: Response<Body>) -> Result<(), Error> {
    let (parts, mut body) = response.into_parts();
    let mut out = responder.respond(Response::from_parts(parts, ())).await?;
    let mut trailers: Option<HeaderMap> = None;
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // Nobody reads any more: what makes the body is to hear of it now, not when it has something to say.
            _ = out.stopped() => return Ok(()),
        };
        let Some(Ok(frame)) = frame else {
            if frame.is_some() {
                // Dropping what was begun resets the stream, so that nobody takes a part for the whole.
                return Ok(());
            }
            break;
        };
        match frame.into_data() {
            Ok(data) => match timeout(WRITE_MAX, out.send_data(data)).await {
                Ok(sent) => sent?,
                Err(_) => return Ok(()),
            },
            Err(other) => trailers = other.into_trailers().ok(),
        }
    }
    match trailers {
        Some(trailers) => out.send_trailers(&trailers).await,
        None => out.finish().await,
    }
}
