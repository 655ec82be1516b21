//! WebTransport over HTTP/3: dialling, and taking sessions beside plain requests on one port. Spec: transport §1.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::uri::Uri;
use remus_http3::Incoming;
use remus_session::{ConfigError, SessionConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug};

use crate::connection::Connection;
use crate::driver::{self, Handler};
use crate::link::{Carrier, Link};
use crate::sessions::Sessions;
use crate::web::{self, Answering, Body, Links};

/// Path of the request that opens a session.
pub const PATH: &str = "/remus/v2";

/// Application protocol that is negotiated with it.
pub const PROTOCOL: &str = "remus.v2";

/// Port of a node that names none.
pub const DEFAULT_PORT: u16 = 4433;

/// Head start of each address of a host name over the next (RFC 8305 recommends 250 ms).
const ADDRESS_HEAD_START: Duration = Duration::from_millis(250);

/// Addresses of a host name that are tried.
const ADDRESSES_MAX: usize = 8;

/// How long a client waits for a connection, all addresses together, when the caller states nothing else.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// QUIC connections that an endpoint holds; more are refused, and the peers may try elsewhere.
pub const CONNECTIONS_MAX: usize = 16_384;

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL is not of the form `remus://host:port` or `https://host:port`.
    #[error("`{url}` is not a URL of a node: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The host name has no address.
    #[error("`{host}` cannot be resolved: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// QUIC could not connect.
    #[error("no connection to {address}: {source}")]
    Quic {
        /// The address that was tried.
        address: SocketAddr,
        /// Why not.
        source: quinn::ConnectionError,
    },
    /// The address cannot be dialled.
    #[error("{address} cannot be dialled: {source}")]
    Dial {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: quinn::ConnectError,
    },
    /// Nobody answered in time.
    #[error("{authority} did not answer within {} ms", .after.as_millis())]
    Timeout {
        /// Who was asked.
        authority: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// HTTP/3 or WebTransport failed.
    #[error("{address} does not take the session: {source}")]
    Http3 {
        /// Who was asked.
        address: SocketAddr,
        /// Why not.
        source: remus_http3::Error,
    },
    /// TCP or TLS could not connect.
    #[error("no connection to {address} (TCP): {source}")]
    Tcp {
        /// The address that was tried.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The peer answered, and does not take the link.
    #[error("{authority} refuses a {carrier} link with status {status}: {message}")]
    Refused {
        /// Who was asked.
        authority: String,
        /// Over which carrier.
        carrier: Carrier,
        /// Its answer.
        status: StatusCode,
        /// What it says about it.
        message: String,
    },
    /// The peer's answer is none of this carrier, or the connection broke meanwhile.
    #[error("no {carrier} link with {authority}: {source}")]
    Link {
        /// Who was asked.
        authority: String,
        /// Over which carrier.
        carrier: Carrier,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A setting is outside its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
}

impl Target {
    /// Reads `remus://host:port` or `https://host:port`; the port is [`DEFAULT_PORT`] where none is given.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Url`] says what is wrong.
    pub fn parse(url: &str) -> Result<Self, ConnectError> {
        let bad = |why| ConnectError::Url {
            url: url.to_owned(),
            why,
        };
        let uri: Uri = url.parse().map_err(|_| bad("it cannot be read"))?;
        match uri.scheme_str() {
            Some("remus" | "https") => {}
            Some(_) => return Err(bad("the scheme must be remus or https")),
            None => return Err(bad("it must begin with remus:// or https://")),
        }
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("user and password do not belong in it; use a token"));
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        // Not `Authority::port`, which takes a port that is no number for none at all.
        let port = match authority.as_str().get(authority.host().len()..) {
            None | Some("") => DEFAULT_PORT,
            Some(rest) => rest
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .ok_or_else(|| bad("the port must be 1 to 65535"))?,
        };
        Ok(Self { host, port })
    }

    /// The host, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as an HTTP authority.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Dials `target` and starts a client's session on it.
///
/// Returns as soon as the request for the session has been written: the first small calls may leave with it, before the peer
/// has answered. [`Connection::active`] waits for the answer.
///
/// # Errors
///
/// [`ConnectError`].
///
/// # Cancel safety
///
/// Cancel safe: dropped before it completes, it leaves no connection behind.
pub async fn connect(
    endpoint: &quinn::Endpoint,
    target: &Target,
    config: SessionConfig,
    handler: Arc<dyn Handler>,
    timeout: Duration,
) -> Result<Connection, ConnectError> {
    let link = tokio::time::timeout(timeout, open_link(endpoint, target))
        .await
        .map_err(|_| ConnectError::Timeout {
            authority: target.authority(),
            after: timeout,
        })??;
    Ok(driver::client(link, config, handler, None)?)
}

/// Opens a WebTransport session; its request has been written then, and perhaps not been answered.
pub(crate) async fn open_link(
    endpoint: &quinn::Endpoint,
    target: &Target,
) -> Result<Link, ConnectError> {
    let http3 = http3(endpoint, target).await?;
    let address = http3.quic().remote_address();
    let request = http::Request::builder()
        .uri(format!("https://{}{PATH}", target.authority()))
        .body(())
        .map_err(|_| ConnectError::Url {
            url: target.authority(),
            why: "it cannot be an HTTP authority",
        })?;
    let session = http3.connect(request, &[PROTOCOL]).await;
    session
        .map(Link::WebTransport)
        .map_err(|source| ConnectError::Http3 { address, source })
}

/// Makes an HTTP/3 connection.
pub(crate) async fn http3(
    endpoint: &quinn::Endpoint,
    target: &Target,
) -> Result<remus_http3::Connection, ConnectError> {
    let quic = dial(endpoint, target).await?;
    let address = quic.remote_address();
    remus_http3::Connection::client(quic, Arc::new(remus_http3::Config::default()))
        .await
        .map_err(|source| ConnectError::Http3 { address, source })
}

/// Makes the QUIC connection.
pub(crate) async fn dial(
    endpoint: &quinn::Endpoint,
    target: &Target,
) -> Result<quinn::Connection, ConnectError> {
    race(target, |address| {
        let connecting = endpoint
            .connect(address, &target.host)
            .map_err(|source| ConnectError::Dial { address, source })?;
        Ok(async move {
            connecting
                .await
                .map_err(|source| ConnectError::Quic { address, source })
        })
    })
    .await
}

/// Tries the addresses of `target`: each gets a head start over the next, the first that answers wins.
pub(crate) async fn race<T, F>(
    target: &Target,
    attempt: impl Fn(SocketAddr) -> Result<F, ConnectError>,
) -> Result<T, ConnectError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ConnectError>> + Send + 'static,
{
    let resolve = |source| ConnectError::Resolve {
        host: target.host.clone(),
        source,
    };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((target.host.as_str(), target.port))
        .await
        .map_err(resolve)?
        .take(ADDRESSES_MAX)
        .collect();
    let mut left = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut last = None;
    loop {
        let more = match left.next() {
            Some(address) => {
                attempts.spawn(attempt(address)?);
                true
            }
            None => false,
        };
        let head_start = async {
            if more && left.len() > 0 {
                tokio::time::sleep(ADDRESS_HEAD_START).await
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = head_start => {}
            joined = attempts.join_next() => match joined {
                Some(Ok(Ok(connection))) => return Ok(connection),
                Some(Ok(Err(error))) => last = Some(error),
                Some(Err(_)) => {}
                None if left.len() == 0 => {
                    let nothing = || resolve(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
                    return Err(last.unwrap_or_else(nothing));
                }
                None => {}
            },
        }
    }
}

/// What an acceptor does with what comes to its port.
pub trait Acceptor: Send + Sync + 'static {
    /// Settings for the next session.
    fn session_config(&self) -> SessionConfig;

    /// Who answers the peer's calls.
    fn handler(&self) -> Arc<dyn Handler>;

    /// Whether a browser page of this origin may open a session. Called only where the request names one.
    fn allows_origin(&self, origin: &str, authority: &str) -> bool;

    /// Whether new sessions are refused, with status 503, because the server is going away.
    fn is_stopping(&self) -> bool;

    /// Where its sessions are found again that have lost their carrier.
    fn sessions(&self) -> &Arc<Sessions>;

    /// The HTTP links, those of all acceptors that share the port.
    fn links(&self) -> &Links;

    /// A session was opened.
    fn opened(self: Arc<Self>, connection: Connection);

    /// Answers a request that is for no carrier, of any version of HTTP.
    fn pages(&self, request: http::Request<Body>) -> Answering;
}

/// Takes what comes on a link that a client has opened.
pub(crate) fn open(link: Link, acceptor: &Arc<dyn Acceptor>) {
    // It ends by itself: with the link, or when nothing is said on it.
    tokio::spawn(driver::accept(link, Arc::clone(acceptor)).in_current_span());
}

/// Takes connections on `endpoint` until `stop` is cancelled; then refuses new ones and returns when the last has ended.
///
/// Ending the open sessions is up to their owner: shut them down first.
pub async fn serve(
    endpoint: quinn::Endpoint,
    acceptor: Arc<dyn Acceptor>,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                if tasks.len() >= CONNECTIONS_MAX {
                    incoming.refuse();
                    continue;
                }
                let remote = incoming.remote_address();
                let span = tracing::debug_span!("connection", %remote);
                tasks.spawn(serve_connection(incoming, Arc::clone(&acceptor), stop.clone()).instrument(span));
            }
        }
    }
    endpoint.set_server_config(None);
    tasks.close();
    tasks.wait().await;
}

async fn serve_connection(
    incoming: quinn::Incoming,
    acceptor: Arc<dyn Acceptor>,
    stop: CancellationToken,
) {
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => {
            debug!(%error, "connection refused");
            return;
        }
    };
    let http3 = match remus_http3::Connection::accept_quic(
        connecting,
        Arc::new(remus_http3::Config::default()),
    )
    .await
    {
        Ok(http3) => http3,
        Err(error) => {
            debug!(%error, "connection failed");
            return;
        }
    };
    let mut told = false;
    let tasks = TaskTracker::new();
    loop {
        let incoming = tokio::select! {
            incoming = http3.accept() => incoming,
            () = stop.cancelled(), if !told => {
                told = true;
                http3.goaway();
                continue;
            }
        };
        match incoming {
            None => break,
            Some(Incoming::Request(request)) => {
                let answering = web::http3::answer(request, Arc::clone(&acceptor));
                tasks.spawn(answering.in_current_span());
            }
            Some(Incoming::Session(request)) => {
                tasks.spawn(open_session(request, Arc::clone(&acceptor)).in_current_span());
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Decides about one request for a session.
async fn open_session(request: remus_http3::SessionRequest, acceptor: Arc<dyn Acceptor>) {
    let verdict = judge(&request, &*acceptor);
    let outcome = match verdict {
        Err(status) => {
            debug!(%status, path = request.head().uri().path(), "session refused");
            request.reject(status).await.map(|()| None)
        }
        Ok(protocol) => request.accept(protocol).await.map(Some),
    };
    match outcome {
        Ok(Some(link)) => {
            driver::accept(Link::WebTransport(link), acceptor).await;
        }
        Ok(None) => {}
        Err(error) => debug!(%error, "session request broke"),
    }
}

/// The protocol to answer with, or the status of the refusal.
fn judge(
    request: &remus_http3::SessionRequest,
    acceptor: &dyn Acceptor,
) -> Result<Option<&'static str>, StatusCode> {
    let head = request.head();
    if head.uri().path() != PATH {
        return Err(StatusCode::NOT_FOUND);
    }
    if acceptor.is_stopping() {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    // Browsers name the page's origin; others need not, and are not asked to.
    if let Some(origin) = head.headers().get(http::header::ORIGIN) {
        let authority = head
            .uri()
            .authority()
            .map_or("", |authority| authority.as_str());
        if !origin
            .to_str()
            .is_ok_and(|origin| acceptor.allows_origin(origin, authority))
        {
            return Err(StatusCode::FORBIDDEN);
        }
    }
    let offered = request.protocols();
    if offered.is_empty() {
        return Ok(None); // some browsers cannot offer one; the handshake in the session decides
    }
    if offered.iter().any(|protocol| protocol == PROTOCOL) {
        Ok(Some(PROTOCOL))
    } else {
        Err(StatusCode::BAD_REQUEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: TRANS-1, TRANS-2, TRANS-3
    #[test]
    fn urls_are_read_and_wrong_ones_say_why() {
        let target = Target::parse("remus://[::1]:99/x").unwrap();
        assert_eq!(
            (target.host(), target.port(), target.authority().as_str()),
            ("::1", 99, "[::1]:99")
        );
        for url in ["remus://example.org", "https://example.org"] {
            assert_eq!(Target::parse(url).unwrap().port(), 4433, "{url}");
        }
        for (url, why) in [
            ("localhost:4433", "must begin"),
            ("http://localhost", "scheme"),
            ("remus://", "cannot be read"),
            ("remus://a:b@host", "token"),
            ("remus://host:0", "port"),
            ("remus://host:70000", "port"),
            ("remus://[::1]:70000", "port"),
        ] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
    }
}
