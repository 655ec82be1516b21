//! Pages on the node's port, beside the carriers: the same over HTTP/1.1 and HTTP/2 (TCP) and over HTTP/3 (QUIC).
//!
//! | path | answers |
//! | --- | --- |
//! | `/.well-known/remus` | JSON [`WellKnown`]: transports, ports, versions, certificates |
//! | `/livez` | 200: the process answers |
//! | `/readyz` | 200 while it takes new work, 503 once it is stopping |
//! | `/` | the dashboard: a page that is a client of this node, built from `web/dashboard`; and the files that it loads |
//! | `/connection` | JSON [`ConnectionFacts`]: how this very request came, which pages can't find out by themselves |
//!
//! Everything else is 404. Nothing here needs a session, and nothing here tells what the certificate and the handshake
//! don't tell anyway. The dashboard gets what it shows over its session, under the rules that hold for every client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::header::{self, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use axum::routing::{MethodRouter, get};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt as _;
use remus::{Carrier, HttpBody, LiveIdentity, TlsNegotiated};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tower_service::Service as _;

/// Bytes of a request's body. No page takes any; clients that send some all the same are not cut off for it.
const BODY_MAX: usize = 64 * 1024;

/// How long a request may take from its head to the head of its answer: pages are small, so whoever needs longer is gone or means
/// harm.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// What goes along with each file of the dashboard: it loads and reaches nothing but this node, whatever would get into it, and stands in
/// nobody's frame.
const GUARDS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    // The files change with the node, and are small.
    (CACHE_CONTROL, "no-cache"),
];

/// Answers `request` from `site`.
pub(crate) async fn answer(request: Request<HttpBody>, mut site: Router) -> Response<HttpBody> {
    let exchange = async {
        let (head, body) = request.into_parts();
        let Ok(content) = to_bytes(Body::new(body), BODY_MAX).await else {
            return text(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is over 64 KiB, or broke\n",
            );
        };
        let request = Request::from_parts(head, Body::from(content));
        match site.call(request).await {
            Ok(response) => response,
            // A router is always ready, and its error has no values.
            Err(never) => match never {},
        }
    };
    let response = timeout(REQUEST_MAX, exchange)
        .await
        .unwrap_or_else(|_| text(StatusCode::REQUEST_TIMEOUT, "the request took too long\n"));
    response.map(|body| body.map_err(Into::into).boxed_unsync())
}

/// What is at `/.well-known/remus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WellKnown {
    /// The node's machine.
    pub node: String,
    /// The software and its version, such as `remus/2.0.0`.
    pub software: String,
    /// Versions of the protocol that are spoken.
    pub versions: Vec<String>,
    /// Ways to open a session, the preferred one first.
    pub transports: Vec<Transport>,
    /// Certificates that may be presented, for clients that pin them.
    pub certificates: Vec<Certificate>,
}

/// One way to open a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// Its kind: `webtransport`, `websocket`, `http-poll` or `http-events`.
    pub kind: String,
    /// The port, on the host that was asked.
    pub port: u16,
    /// The path of the session.
    pub path: String,
    /// The subprotocol to offer.
    pub protocol: String,
}

/// A certificate, by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// How the digest is made, in the form that browsers take: `sha-256`.
    pub algorithm: String,
    /// The digest of the certificate's DER form, in lower-case hex.
    pub hex: String,
    /// The same in base64.
    pub base64: String,
    /// The last second in which it is valid, in s since the Unix epoch.
    pub not_after: u64,
}

/// What is at `/connection`: how the request for it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionFacts {
    /// The version of HTTP, such as `HTTP/2.0`.
    pub http: String,
    /// The version of TLS, such as `TLS 1.3`.
    pub tls: String,
    /// The key exchange, such as `X25519MLKEM768`; `None` on QUIC, which does not tell.
    pub key_exchange: Option<String>,
}

/// What the pages tell of.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: String,
    port: u16,
    identity: Arc<LiveIdentity>,
    ready: AtomicBool,
}

impl Site {
    pub(crate) fn new(node: String, port: u16, identity: Arc<LiveIdentity>) -> Self {
        Self {
            shared: Arc::new(Shared {
                node,
                port,
                identity,
                ready: AtomicBool::new(false),
            }),
        }
    }

    /// Says whether the node takes new work.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.shared.ready.store(ready, Ordering::Relaxed);
    }

    /// The pages.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/.well-known/remus", get(well_known))
            .route("/livez", get(|| async { text(StatusCode::OK, "alive\n") }))
            .route("/readyz", get(ready))
            .route("/connection", get(connection))
            .route(
                "/",
                file(
                    "text/html; charset=utf-8",
                    include_bytes!("web/dashboard/index.html"),
                ),
            )
            .route(
                "/app.js",
                file(
                    "text/javascript; charset=utf-8",
                    include_bytes!("web/dashboard/app.js"),
                ),
            )
            .route(
                "/style.css",
                file(
                    "text/css; charset=utf-8",
                    include_bytes!("web/dashboard/style.css"),
                ),
            )
            .route(
                "/icon.svg",
                file("image/svg+xml", include_bytes!("web/dashboard/icon.svg")),
            )
            .fallback(|| async { text(StatusCode::NOT_FOUND, "there is no such page\n") })
            .with_state(self.clone())
    }

    fn describe(&self) -> WellKnown {
        let identity = self.shared.identity.current();
        let fingerprint = identity.fingerprint();
        let until_epoch = identity.not_after().duration_since(UNIX_EPOCH);
        WellKnown {
            node: self.shared.node.clone(),
            software: format!("remus/{}", env!("CARGO_PKG_VERSION")),
            versions: vec!["2.0".to_owned()],
            transports: Carrier::ALL
                .into_iter()
                .map(|carrier| Transport {
                    kind: carrier.name().to_owned(),
                    port: self.shared.port,
                    path: carrier.path().to_owned(),
                    protocol: "remus.v2".to_owned(),
                })
                .collect(),
            certificates: vec![Certificate {
                algorithm: "sha-256".to_owned(),
                hex: fingerprint.to_string(),
                base64: STANDARD.encode(fingerprint.as_bytes()),
                not_after: until_epoch.unwrap_or_default().as_secs(),
            }],
        }
    }
}

async fn well_known(State(site): State<Site>) -> Response<Body> {
    match serde_json::to_vec_pretty(&site.describe()) {
        Ok(json) => {
            let mut response = page(StatusCode::OK, "application/json", json);
            // The certificate in it changes.
            let headers = response.headers_mut();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        }
        Err(error) => {
            tracing::error!(%error, "the node's description cannot be written as JSON");
            text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
        }
    }
}

async fn connection(request: Request<Body>) -> Response<Body> {
    let negotiated = request.extensions().get::<TlsNegotiated>();
    let facts = ConnectionFacts {
        http: format!("{:?}", request.version()),
        // The node speaks no other, and QUIC has none.
        tls: negotiated.map_or("TLS 1.3", |tls| tls.version).to_owned(),
        key_exchange: negotiated
            .and_then(|tls| tls.key_exchange)
            .map(str::to_owned),
    };
    match serde_json::to_vec(&facts) {
        Ok(json) => {
            let mut response = page(StatusCode::OK, "application/json", json);
            let headers = response.headers_mut();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => {
            tracing::error!(%error, "a connection cannot be described as JSON");
            text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
        }
    }
}

/// A file of the dashboard.
fn file(kind: &'static str, content: &'static [u8]) -> MethodRouter<Site> {
    get(move || async move {
        let mut response = Response::new(Body::from(content));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        for (name, value) in GUARDS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    })
}

async fn ready(State(site): State<Site>) -> Response<Body> {
    if site.shared.ready.load(Ordering::Relaxed) {
        text(StatusCode::OK, "ready\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

fn text(status: StatusCode, content: &'static str) -> Response<Body> {
    page(status, "text/plain; charset=utf-8", content.into())
}

fn page(status: StatusCode, kind: &'static str, content: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(content));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
