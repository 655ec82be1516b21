//! What is answered to a plain HTTP request, whichever version of HTTP it came by: the carriers, then the pages of the server's
//! owner. Spec: carriers.
//!
//! Owns the paths below `/remus/v2/`, who may use them, and the form of refusals. The listeners are [`crate::tcp`] and, for HTTP/3,
//! [`crate::webtransport`].

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ALLOW,
    CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use remus_wire::ErrorCode;

use crate::websocket;
use crate::webtransport::Acceptor;

pub(crate) mod client;
mod exchange;
pub(crate) mod http3;
pub(crate) mod links;

pub use links::{LINKS_MAX, LINKS_PER_REMOTE_MAX, Links};

/// An error of a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request or of an answer, of any version of HTTP.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// An answer that is being made.
pub type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Bytes that an HTTP/2 peer may send before it has to wait: one unit of a carrier, so that it takes one round trip.
pub(crate) const WINDOW: u32 = 1024 * 1024;

/// Longest path with its query, in bytes: the longest of a carrier has 49. Spec: carriers §10.
const PATH_MAX: usize = 1024;

/// The path of WebSockets.
pub const WEBSOCKET_PATH: &str = "/remus/v2/ws";

/// The path below which HTTP links are.
pub const SESSIONS_PATH: &str = "/remus/v2/sessions";

/// What tells of the carriers, and may be read by the pages that may use them.
const WELL_KNOWN_PATH: &str = "/.well-known/remus";

pub(crate) const SEQUENCE: HeaderName = HeaderName::from_static("remus-sequence");
pub(crate) const ACKNOWLEDGE: HeaderName = HeaderName::from_static("remus-acknowledge");
pub(crate) const CLOSE: HeaderName = HeaderName::from_static("remus-close");

/// Type of a body of whole frames.
pub(crate) const FRAMES_TYPE: &str = "application/remus-frames";

/// How long a browser may keep what a preflight said, in seconds: two hours, the most that any of them takes.
const PREFLIGHT_AGE: &str = "7200";

/// A body that is there already.
pub fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// No body.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Why a request of a carrier is refused. One status and one code for programs each. Spec: carriers §8.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "requests of a carrier have no query: send the secret in the authorization field, and nothing in the URL"
    )]
    QueryNotAllowed,
    #[error("the field {field} must be there once at most, and be {form}")]
    MalformedField {
        field: HeaderName,
        form: &'static str,
    },
    #[error("the body is not made of whole frames: send each frame in one piece")]
    MalformedFrames,
    #[error("a body needs its number: send it in the field remus-sequence")]
    SequenceRequired,
    #[error("offer the subprotocol remus.v2 in the field sec-websocket-protocol")]
    SubprotocolRequired,
    #[error("no body is taken here: send frames to `up`")]
    UnexpectedBody,
    #[error("send the link's secret: authorization: Bearer <secret>")]
    Unauthenticated,
    #[error("pages of {origin} may not open sessions here: allow the origin on the server")]
    OriginNotAllowed { origin: String },
    #[error(
        "there is nothing under this path, or the link is gone: open another with POST {SESSIONS_PATH}"
    )]
    NotFound,
    #[error("the method is not taken here, these are: {allow}")]
    MethodNotAllowed { allow: &'static str },
    #[error("the body did not come within {after_s} s: send it again")]
    Timeout { after_s: u64 },
    #[error("number {expected} comes next, not {got}: send what was not answered again")]
    SequenceGap { expected: u64, got: u64 },
    #[error("a later request took the place of this one")]
    Superseded,
    #[error("{got} is acknowledged, but only {sent} were sent")]
    AcknowledgeUnsent { sent: u64, got: u64 },
    #[error("{got} is acknowledged, but {before} was already: this request is an old one")]
    AcknowledgeStale { before: u64, got: u64 },
    #[error("the session has ended: {reason}")]
    Ended { code: ErrorCode, reason: String },
    #[error("the body is above the limit of {max} bytes: send fewer frames at once")]
    TooLarge { max: usize },
    #[error("the path is above the limit of {PATH_MAX} bytes")]
    UrlTooLong,
    #[error("the body must be {FRAMES_TYPE}: say so in the field content-type")]
    MediaType,
    #[error("this is for WebSockets of version 13: ask for an upgrade")]
    UpgradeRequired,
    #[error("this address has {max} links open: close some, or come again later")]
    TooManyLinks { max: usize },
    #[error("the server is going away: connect again later, or elsewhere")]
    Stopping,
    #[error("the server has as many links open as it takes: come again later, or elsewhere")]
    Overloaded,
    #[error("the operating system gave no random bytes: come again later")]
    NoRandomness,
}

/// Seconds after which somebody may come again who was refused for want of room: as long as a link of somebody who is gone lives.
const RETRY_S: &str = "60";

impl Refusal {
    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::QueryNotAllowed => (StatusCode::BAD_REQUEST, "QUERY_NOT_ALLOWED"),
            Self::MalformedField { .. } => (StatusCode::BAD_REQUEST, "MALFORMED_FIELD"),
            Self::MalformedFrames => (StatusCode::BAD_REQUEST, "MALFORMED_FRAMES"),
            Self::SequenceRequired => (StatusCode::BAD_REQUEST, "SEQUENCE_REQUIRED"),
            Self::SubprotocolRequired => (StatusCode::BAD_REQUEST, "SUBPROTOCOL_REQUIRED"),
            Self::UnexpectedBody => (StatusCode::BAD_REQUEST, "UNEXPECTED_BODY"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "UNAUTHENTICATED"),
            Self::OriginNotAllowed { .. } => (StatusCode::FORBIDDEN, "ORIGIN_NOT_ALLOWED"),
            Self::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND"),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED"),
            Self::Timeout { .. } => (StatusCode::REQUEST_TIMEOUT, "TIMEOUT"),
            Self::SequenceGap { .. } => (StatusCode::CONFLICT, "SEQUENCE_GAP"),
            Self::Superseded => (StatusCode::CONFLICT, "SUPERSEDED"),
            Self::AcknowledgeUnsent { .. } => (StatusCode::CONFLICT, "ACKNOWLEDGE_UNSENT"),
            Self::AcknowledgeStale { .. } => (StatusCode::CONFLICT, "ACKNOWLEDGE_STALE"),
            Self::Ended { .. } => (StatusCode::GONE, "ENDED"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE"),
            Self::UrlTooLong => (StatusCode::URI_TOO_LONG, "URL_TOO_LONG"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "MEDIA_TYPE"),
            Self::UpgradeRequired => (StatusCode::UPGRADE_REQUIRED, "UPGRADE_REQUIRED"),
            Self::TooManyLinks { .. } => (StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_LINKS"),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "STOPPING"),
            Self::Overloaded | Self::NoRandomness => {
                (StatusCode::SERVICE_UNAVAILABLE, "OVERLOADED")
            }
        }
    }

    /// The JSON of the answer.
    pub(crate) fn to_json(&self) -> String {
        let (_, code) = self.status_and_code();
        let mut json = serde_json::json!({ "code": code, "message": self.to_string() });
        if let Self::Ended { code, reason } = self
            && let Some(object) = json.as_object_mut()
        {
            object.insert("error".to_owned(), code.0.into());
            object.insert("message".to_owned(), reason.as_str().into());
        }
        json.to_string()
    }
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        let (status, _) = refusal.status_and_code();
        let mut response = Self::new(full(refusal.to_json()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match refusal {
            Refusal::Unauthenticated => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Refusal::MethodNotAllowed { allow } => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            Refusal::UpgradeRequired => {
                headers.insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(
                    http::header::SEC_WEBSOCKET_VERSION,
                    HeaderValue::from_static("13"),
                );
            }
            Refusal::TooManyLinks { .. } | Refusal::Overloaded | Refusal::NoRandomness => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_S));
            }
            _ => {}
        }
        response
    }
}

/// Answers one request that came from `remote`.
pub(crate) async fn answer(
    acceptor: Arc<dyn Acceptor>,
    remote: SocketAddr,
    request: Request<Body>,
) -> Response<Body> {
    let path = request.uri().path();
    let is_carriers = path == WEBSOCKET_PATH
        || path
            .strip_prefix(SESSIONS_PATH)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let may_be_read = is_carriers || path == WELL_KNOWN_PATH;
    let origin = match request.headers().get(ORIGIN) {
        Some(origin) if may_be_read => Some(origin.clone()),
        _ => None,
    };
    let allowed = origin.as_ref().map(|origin| {
        origin
            .to_str()
            .is_ok_and(|origin| acceptor.allows_origin(origin, authority(&request)))
    });
    let is_preflight = *request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD);

    let is_answered_here = is_carriers || (is_preflight && allowed == Some(true));
    let mut response = if !is_answered_here {
        acceptor.pages(request).await
    } else if allowed == Some(false) {
        let origin = origin
            .as_ref()
            .map(|origin| String::from_utf8_lossy(origin.as_bytes()).into_owned());
        Refusal::OriginNotAllowed {
            origin: origin.unwrap_or_default(),
        }
        .into()
    } else if is_preflight {
        preflight()
    } else {
        match carriers(&acceptor, remote, request).await {
            Ok(response) => response,
            Err(refusal) => refusal.into(),
        }
    };
    let headers = response.headers_mut();
    if is_carriers {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if may_be_read {
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    if allowed == Some(true)
        && let Some(origin) = origin
    {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("location, remus-acknowledge, remus-sequence, retry-after"),
        );
    }
    response
}

/// The authority that the request was made to.
fn authority(request: &Request<Body>) -> &str {
    match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request
            .headers()
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default(),
    }
}

/// Says to a browser what pages of an allowed origin may send. Spec: CARR-35.
fn preflight() -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers: &mut HeaderMap = response.headers_mut();
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
        (
            ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, last-event-id, remus-acknowledge, remus-close, remus-sequence",
        ),
        (ACCESS_CONTROL_MAX_AGE, PREFLIGHT_AGE),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Answers a request of a carrier.
async fn carriers(
    acceptor: &Arc<dyn Acceptor>,
    remote: SocketAddr,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let path_len = request
        .uri()
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    if path_len > PATH_MAX {
        return Err(Refusal::UrlTooLong);
    }
    if request.uri().query().is_some() {
        return Err(Refusal::QueryNotAllowed);
    }
    if request.uri().path() == WEBSOCKET_PATH {
        return websocket::accept(acceptor, remote, request);
    }
    links::answer(acceptor, remote, request).await
}
