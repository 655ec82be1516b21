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
                tracing::debug!(limit = CONNECTIONS_MAX, "closed a TCP connection: too many");
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use remus::{LiveIdentity, LocalCa, TlsPolicy, Trust};
    use remus_security::{client_config, server_config};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream as ClientStream;

    use super::*;
    use crate::web::Site;

    struct Server {
        address: SocketAddr,
        data: tempfile::TempDir,
        stop: CancellationToken,
        serving: JoinHandle<()>,
    }

    async fn server() -> Server {
        let data = tempfile::tempdir().unwrap();
        let ca = LocalCa::load_or_create::<&str>(data.path(), &[]).unwrap();
        let identity: Arc<LiveIdentity> = ca.live();
        let tls = server_config(TlsPolicy::PreferPostQuantum, identity, alpn::TCP).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let site = Site::new("test".to_owned(), address.port(), ca.live()).router();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, tls, site, stop.clone()));
        Server {
            address,
            data,
            stop,
            serving,
        }
    }

    async fn tls(address: SocketAddr, data: &Path, protocols: &[&[u8]]) -> ClientStream<TcpStream> {
        let trust = Trust::from_pem_file(&LocalCa::certificate_path(data)).unwrap();
        let config = client_config(TlsPolicy::RequirePostQuantum, &trust, protocols).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        TlsConnector::from(config)
            .connect(name, stream)
            .await
            .unwrap()
    }

    /// Waits for the server to close the connection. The clock jumps to the next timer when nothing else is to be done, so that
    /// this takes no time; it would wait for ever for a server that does not close.
    async fn closes(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
        tokio::time::pause();
        let mut rest = Vec::new();
        // With or without a farewell.
        let _ = stream.read_to_end(&mut rest).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_waited_for() {
        let server = server().await;
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        closes(&mut silent).await;
    }

    #[tokio::test]
    async fn who_begins_a_request_and_does_not_end_it_is_not_waited_for() {
        let server = server().await;
        let mut slow = tls(server.address, server.data.path(), alpn::HTTP1).await;
        slow.write_all(b"GET /livez HTTP/1.1\r\nhost: ")
            .await
            .unwrap();
        closes(&mut slow).await;
    }

    #[tokio::test]
    async fn who_does_nothing_over_http2_is_asked_to_go() {
        let server = server().await;
        let mut idle = tls(server.address, server.data.path(), alpn::TCP).await;
        // Preface and empty SETTINGS. RFC 9113 §3.4.
        idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        closes(&mut idle).await;
    }

    #[tokio::test]
    async fn headers_over_the_limit_are_refused() {
        let server = server().await;
        let mut stream = tls(server.address, server.data.path(), alpn::HTTP1).await;
        let long = "x".repeat(20_000);
        let request = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nlong: {long}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 431");
    }

    #[tokio::test]
    async fn stopping_ends_idle_connections_and_returns() {
        let server = server().await;
        let mut http1 = tls(server.address, server.data.path(), alpn::HTTP1).await;
        let mut http2 = tls(server.address, server.data.path(), alpn::TCP).await;
        let _silent = TcpStream::connect(server.address).await.unwrap();
        server.stop.cancel();
        let mut rest = Vec::new();
        let _ = http1.read_to_end(&mut rest).await;
        let _ = http2.read_to_end(&mut rest).await;
        server.serving.await.unwrap();
    }
}
