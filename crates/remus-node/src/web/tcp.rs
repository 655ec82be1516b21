//! The TCP listener: TLS 1.3, then HTTP/2 or HTTP/1.1, as the client chose in the handshake.
//!
//! Every wait has a limit, so that a peer that says nothing, or one byte a minute, holds a place for a bounded time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remus_security::alpn;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::BODY_MAX;

/// Connections at a time. Pages are few and short; each idle connection costs about 50 KiB. Beyond it, new ones are closed.
const CONNECTIONS_MAX: usize = 512;

/// How long a handshake may take: several round trips on the slowest network that is of use.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long the head of a request may take, and an HTTP/1.1 connection may be silent.
const HEAD_MAX: Duration = Duration::from_secs(15);

/// Silence after which an HTTP/2 connection is asked to end.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How long a connection that was asked to end may take to do so.
const END_MAX: Duration = Duration::from_secs(5);

/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;

/// Bytes of headers in one request, and of the buffer that reads them.
const HEADERS_MAX: u32 = 16 * 1024;

/// Pause after the operating system had no room for a connection, which others may free in the meantime.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `site` on `listener` until `stop` is cancelled; returns when the last connection has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    site: Router,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if tasks.len() >= CONNECTIONS_MAX => {
                tracing::warn!(
                    limit = CONNECTIONS_MAX,
                    "too many TCP connections; closed a new one"
                );
            }
            Ok((stream, remote)) => {
                let connection =
                    connection(stream, remote, acceptor.clone(), site.clone(), stop.clone());
                tasks.spawn(connection);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a TCP connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    site: Router,
    stop: CancellationToken,
) {
    // Answers are written whole, so there is nothing to wait for more of.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::select! {
        () = stop.cancelled() => return,
        handshake = timeout(HANDSHAKE_MAX, acceptor.accept(stream)) => handshake,
    };
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%remote, "TLS handshake took too long"),
    };
    let outcome = match stream.get_ref().1.alpn_protocol() {
        Some(chosen) if alpn::TCP.first().is_some_and(|h2| *h2 == chosen) => {
            serve_http2(stream, site, stop).await
        }
        // HTTP/1.1 is also what a client speaks that names no protocol.
        _ => serve_http1(stream, site, stop).await,
    };
    if let Err(error) = outcome {
        tracing::debug!(%remote, %error, "HTTP connection broke");
    }
}

async fn serve_http1(
    stream: TlsStream<TcpStream>,
    site: Router,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let activity = Activity::default();
    let service = service_fn(|request| page(request, site.clone(), activity.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(usize::try_from(HEADERS_MAX).unwrap_or(usize::MAX))
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = activity.idle() => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    timeout(END_MAX, connection).await.unwrap_or(Ok(()))
}

async fn serve_http2(
    stream: TlsStream<TcpStream>,
    site: Router,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let activity = Activity::default();
    let seen = activity.clone();
    let service = service_fn(move |request| page(request, site.clone(), seen.clone()));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = activity.idle() => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    timeout(END_MAX, connection).await.unwrap_or(Ok(()))
}

async fn page(
    request: Request<Incoming>,
    mut site: Router,
    activity: Activity,
) -> Result<Response<Body>, Infallible> {
    activity.note();
    site.call(request.map(|body| Body::new(Limited::new(body, BODY_MAX))))
        .await
}

/// Requests that a connection has made.
#[derive(Clone, Debug, Default)]
struct Activity(Arc<AtomicUsize>);

impl Activity {
    fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until no request came for a while. Pages are answered at once, so none is being answered then; one that is not read
    /// by its client doesn't count.
    async fn idle(&self) {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            sleep(IDLE_MAX).await;
            let now = self.0.load(Ordering::Relaxed);
            if now == seen {
                return;
            }
            seen = now;
        }
    }
}
