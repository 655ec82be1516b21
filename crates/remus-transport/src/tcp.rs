//! The TCP side of a port: TLS 1.3, then HTTP/2 or HTTP/1.1, as the client chose in the handshake. Spec: carriers §1.
//!
//! Every wait has a limit, so that a peer that says nothing, or one byte a minute, holds a place for a bounded time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remus_security::Negotiated;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::web::{self, Body, BodyError};
use crate::webtransport::Acceptor;

/// Connections at a time. Each that is idle costs about 50 KiB. Beyond it, new ones are closed.
pub const CONNECTIONS_MAX: usize = 16_384;

/// How long a handshake may take: several round trips on the slowest network that is of use.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long the head of a request may take, and an HTTP/1.1 connection may be silent.
const HEAD_MAX: Duration = Duration::from_secs(15);

/// How long a connection may have no request at work before it is asked to end.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How long a connection that was asked to end may take to do so.
const END_MAX: Duration = Duration::from_secs(5);

/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;

/// Bytes of headers in one request, and of the buffer that reads them.
const HEADERS_MAX: u32 = 16 * 1024;

/// Pause after the operating system had no room for a connection, which others may free in the meantime.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that nobody has accepted yet, which the kernel holds; beyond it they are tried again by their clients.
const BACKLOG: i32 = 1024;

/// Listens on `address`; port 0 takes any that is free. `is_shared` lets other sockets of this process listen there too, among
/// which the kernel spreads connections.
///
/// # Errors
///
/// What the operating system says.
pub fn bind(address: SocketAddr, is_shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // On Unix: take a port whose last connections are still in TIME_WAIT, but never one that is listened on. On Windows the
    // same option would take a port from under another process.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(is_shared)?;
    #[cfg(not(unix))]
    let _ = is_shared;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves `listener` until `stop` is cancelled; returns when the last connection has ended.
///
/// Requests carry in their extensions what TLS has negotiated, as [`Negotiated`].
///
/// Ending the open sessions is up to their owner: shut them down first.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    acceptor: Arc<dyn Acceptor>,
    stop: CancellationToken,
) {
    let tls = TlsAcceptor::from(tls);
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
                let service = Service {
                    acceptor: Arc::clone(&acceptor),
                    remote,
                    negotiated: None,
                    activity: Activity::default(),
                };
                tasks.spawn(connection(stream, tls.clone(), service, stop.clone()));
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
    tls: TlsAcceptor,
    mut service: Service,
    stop: CancellationToken,
) {
    let remote = service.remote;
    // What is written is whole, so there is nothing to wait for more of.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::select! {
        () = stop.cancelled() => return,
        handshake = timeout(HANDSHAKE_MAX, tls.accept(stream)) => handshake,
    };
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%remote, "TLS handshake took too long"),
    };
    service.negotiated = Negotiated::of(stream.get_ref().1);
    let outcome = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => serve_http2(stream, service, stop).await,
        // HTTP/1.1 is also what a client speaks that names no protocol.
        _ => serve_http1(stream, service, stop).await,
    };
    if let Err(error) = outcome {
        tracing::debug!(%remote, %error, "HTTP connection broke");
    }
}

async fn serve_http1(
    stream: TlsStream<TcpStream>,
    service: Service,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let activity = service.activity.clone();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(usize::try_from(HEADERS_MAX).unwrap_or(usize::MAX))
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| service.clone().answer(request)),
        )
        .with_upgrades();
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
    service: Service,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let activity = service.activity.clone();
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .initial_stream_window_size(web::WINDOW)
        // For a few of them at a time.
        .initial_connection_window_size(4 * web::WINDOW)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| service.clone().answer(request)),
        );
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = activity.idle() => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    timeout(END_MAX, connection).await.unwrap_or(Ok(()))
}

/// What answers the requests of one connection.
#[derive(Clone)]
struct Service {
    acceptor: Arc<dyn Acceptor>,
    remote: SocketAddr,
    negotiated: Option<Negotiated>,
    activity: Activity,
}

impl Service {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let at_work = self.activity.begin();
        let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        // Who goes on after the answer, as a WebSocket does, keeps it.
        request.extensions_mut().insert(at_work.clone());
        if let Some(negotiated) = self.negotiated {
            request.extensions_mut().insert(negotiated);
        }
        let response = web::answer(self.acceptor, self.remote, request).await;
        Ok(response.map(|body| {
            Watched {
                body,
                _at_work: at_work,
            }
            .boxed_unsync()
        }))
    }
}

/// The requests of a connection.
#[derive(Clone, Debug, Default)]
struct Activity(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// One request that is not done with: while any clone is there, its connection is not idle.
#[derive(Clone, Debug)]
pub(crate) struct AtWork(#[expect(dead_code, reason = "held for its end")] Arc<Ending>);

#[derive(Debug)]
struct Ending(Arc<Counts>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Activity {
    fn begin(&self) -> AtWork {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        AtWork(Arc::new(Ending(Arc::clone(&self.0))))
    }

    /// Waits until no request was at work for a while.
    async fn idle(&self) {
        loop {
            let before = self.0.ended.load(Ordering::Relaxed);
            sleep(IDLE_MAX).await;
            let (begun, ended) = (
                self.0.begun.load(Ordering::Relaxed),
                self.0.ended.load(Ordering::Relaxed),
            );
            if begun == ended && ended == before {
                return;
            }
        }
    }
}

/// A body whose request is at work until it has been sent.
struct Watched {
    body: Body,
    _at_work: AtWork,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use remus_security::{LocalCa, TlsPolicy, Trust, alpn, client_config, server_config};
    use remus_session::SessionConfig;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream as ClientStream;

    use super::*;
    use crate::driver::Handler;
    use crate::sessions::Sessions;
    use crate::web::{Answering, Links};

    /// Has pages and no sessions.
    struct Pages(Links, Arc<Sessions>);

    impl Acceptor for Pages {
        fn session_config(&self) -> SessionConfig {
            SessionConfig::acceptor()
        }

        fn handler(&self) -> Arc<dyn Handler> {
            unreachable!("no session is taken")
        }

        fn allows_origin(&self, _: &str, _: &str) -> bool {
            false
        }

        fn is_stopping(&self) -> bool {
            true
        }

        fn sessions(&self) -> &Arc<Sessions> {
            &self.1
        }

        fn links(&self) -> &Links {
            &self.0
        }

        fn opened(self: Arc<Self>, _: crate::Connection) {}

        fn pages(&self, _: Request<Body>) -> Answering {
            Box::pin(std::future::ready(Response::new(web::full("alive"))))
        }
    }

    struct Server {
        address: SocketAddr,
        data: tempfile::TempDir,
        stop: CancellationToken,
        serving: JoinHandle<()>,
    }

    async fn server() -> Server {
        let data = tempfile::tempdir().unwrap();
        let ca = LocalCa::load_or_create::<&str>(data.path(), &[]).unwrap();
        let tls = server_config(TlsPolicy::PreferPostQuantum, ca.live(), alpn::TCP).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let acceptor = Arc::new(Pages(Links::default(), Arc::default()));
        let serving = tokio::spawn(serve(listener, tls, acceptor, stop.clone()));
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
