//! Endpoints on loopback, and a server that echoes, for the tests of this crate.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use remus_http3::{
    Config, Connection, Error, Incoming, Request, Session, SessionClosed, SessionRequest,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;

/// A hung test fails after this time; no result depends on it.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Runs a test's body under the watchdog.
pub(crate) async fn guarded<T>(test: impl Future<Output = T>) -> T {
    match tokio::time::timeout(WATCHDOG, test).await {
        Ok(value) => value,
        Err(_) => panic!("the test hung for {WATCHDOG:?}"),
    }
}

/// A self-signed P-256 certificate for localhost and 127.0.0.1, and its key.
pub(crate) struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivatePkcs8KeyDer<'static>,
    pem: String,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Self {
            certificate: made.cert.der().clone(),
            key: PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()),
            pem: made.cert.pem(),
        }
    }

    /// The certificate in PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn server_config(&self) -> quinn::ServerConfig {
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key().into())
            .unwrap();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = QuicServerConfig::try_from(tls).unwrap();
        quinn::ServerConfig::with_crypto(Arc::new(crypto))
    }

    pub(crate) fn client_config(&self, alpn: &[u8]) -> quinn::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        quinn::ClientConfig::new(Arc::new(crypto))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(crate) fn client_endpoint() -> quinn::Endpoint {
    quinn::Endpoint::client(loopback()).unwrap()
}

/// Limits with the waits cut short, for tests that let one pass. Honest clients of the same server keep within them also where the
/// machine is busy.
pub(crate) fn impatient() -> remus_http3::ConfigBuilder {
    Config::builder()
        .head_timeout(Duration::from_secs(2))
        .close_timeout(Duration::from_secs(2))
}

/// A server on loopback that echoes.
///
/// Sessions get the first protocol they offer, and echo streams of both kinds and datagrams. The path
/// `/refuse` is refused with 403, `/close` is closed with 7 and "the server is done" once the client
/// sent a datagram, `/drain` is drained at once. Plain requests get their body back, or "hello".
pub(crate) struct Node {
    pub(crate) identity: Identity,
    pub(crate) address: SocketAddr,
    /// How each session ended.
    pub(crate) ended: mpsc::Receiver<Result<SessionClosed, Error>>,
    /// How each connection ended.
    pub(crate) lost: mpsc::Receiver<Error>,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::with(Config::default(), quinn::TransportConfig::default())
    }

    pub(crate) fn with(config: Config, transport: quinn::TransportConfig) -> Self {
        let identity = Identity::new();
        let mut server_config = identity.server_config();
        server_config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::server(server_config, loopback()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let (ended_in, ended) = mpsc::channel(64);
        let (lost_in, lost) = mpsc::channel(64);
        let config = Arc::new(config);
        let accepting = endpoint;
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let (config, ended, lost) = (config.clone(), ended_in.clone(), lost_in.clone());
                tokio::spawn(async move {
                    let Ok(connecting) = incoming.accept() else {
                        return;
                    };
                    if let Ok(connection) = Connection::accept_quic(connecting, config).await {
                        serve(&connection, ended).await;
                        let _ = lost.send(connection.closed().await).await;
                    }
                });
            }
        });
        Self {
            identity,
            address,
            ended,
            lost,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// A raw QUIC connection to this node.
    pub(crate) async fn quic(&self) -> quinn::Connection {
        let config = self.identity.client_config(b"h3");
        let endpoint = client_endpoint();
        let connecting = endpoint.connect_with(config, self.address, "localhost");
        connecting.unwrap().await.unwrap()
    }

    /// An HTTP/3 connection to this node.
    pub(crate) async fn connect(&self) -> Connection {
        Connection::client(self.quic().await, Arc::default())
            .await
            .unwrap()
    }

    /// A session with this node on a connection of its own.
    pub(crate) async fn session(&self, path: &str) -> Session {
        self.connect()
            .await
            .connect(self.get(path), &[])
            .await
            .unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> http::Request<()> {
        http::Request::get(self.url(path)).body(()).unwrap()
    }

    /// Shows that this node goes on serving: a new session gets its echo.
    pub(crate) async fn assert_serves(&self) {
        assert_echoes(&self.session("/echo").await).await;
    }
}

/// Shows that a session works: a bidirectional stream comes back.
pub(crate) async fn assert_echoes(session: &Session) {
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    send.write_all(b"are you there?").await.unwrap();
    send.finish().unwrap();
    assert_eq!(read_all(&mut recv).await, b"are you there?");
}

pub(crate) async fn read_all(recv: &mut remus_http3::RecvStream) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(chunk) = recv.read_chunk(usize::MAX).await.unwrap() {
        out.extend_from_slice(&chunk);
    }
    out
}

/// Both ends of one connection and of one session on it, in one hand.
pub(crate) struct Pair {
    pub(crate) client: Session,
    pub(crate) server: Session,
    pub(crate) server_connection: Connection,
    pub(crate) url: String,
}

impl Pair {
    pub(crate) async fn new(server_config: Config) -> Self {
        let identity = Identity::new();
        let endpoint = quinn::Endpoint::server(identity.server_config(), loopback()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let server = async {
            let connecting = endpoint.accept().await.unwrap().accept().unwrap();
            let connection = Connection::accept_quic(connecting, Arc::new(server_config)).await;
            let connection = connection.unwrap();
            match connection.accept().await.unwrap() {
                Incoming::Session(request) => (request.accept(None).await.unwrap(), connection),
                Incoming::Request(_) => panic!("a plain request"),
            }
        };
        let url = format!("https://{address}/");
        let client = async {
            let config = identity.client_config(b"h3");
            let quic = client_endpoint().connect_with(config, address, "localhost");
            let quic = quic.unwrap().await.unwrap();
            let connection = Connection::client(quic, Arc::default()).await.unwrap();
            let request = http::Request::get(&url).body(()).unwrap();
            connection.connect(request, &[]).await.unwrap()
        };
        let ((server, server_connection), client) = tokio::join!(server, client);
        Self {
            client,
            server,
            server_connection,
            url,
        }
    }
}

async fn serve(connection: &Connection, ended: mpsc::Sender<Result<SessionClosed, Error>>) {
    while let Some(incoming) = connection.accept().await {
        match incoming {
            Incoming::Session(request) => {
                tokio::spawn(serve_session(request, ended.clone()));
            }
            Incoming::Request(request) => {
                tokio::spawn(async move {
                    let _ = serve_request(request).await; // an error is the client's to assert
                });
            }
        }
    }
}

async fn serve_session(request: SessionRequest, ended: mpsc::Sender<Result<SessionClosed, Error>>) {
    let path = request.head().uri().path().to_owned();
    if path == "/refuse" {
        let _ = request.reject(http::StatusCode::FORBIDDEN).await;
        return;
    }
    let protocol = request.protocols().first().cloned();
    let session = match request.accept(protocol.as_deref()).await {
        Ok(session) => session,
        Err(error) => {
            let _ = ended.send(Err(error)).await;
            return;
        }
    };
    if path == "/drain" {
        session.drain();
    }
    if path == "/close" {
        let _ = session.read_datagram().await;
        session.close(7, "the server is done").await;
    } else {
        tokio::join!(
            echo_bi(&session),
            echo_uni(&session),
            echo_datagrams(&session)
        );
    }
    let _ = ended.send(session.closed().await).await;
}

async fn echo_bi(session: &Session) {
    while let Ok((mut send, mut recv)) = session.accept_bi().await {
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX).await {
                if send.write_chunks(&mut [chunk]).await.is_err() {
                    return;
                }
            }
            let _ = send.finish();
        });
    }
}

async fn echo_uni(session: &Session) {
    while let Ok(mut recv) = session.accept_uni().await {
        let Ok(mut send) = session.open_uni().await else {
            return;
        };
        while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX).await {
            let _ = send.write_all(&chunk).await;
        }
        let _ = send.finish();
    }
}

async fn echo_datagrams(session: &Session) {
    while let Ok(datagram) = session.read_datagram().await {
        let _ = session.send_datagram(&datagram);
    }
}

async fn serve_request(request: Request) -> Result<(), Error> {
    let (head, mut body, responder) = request.into_parts();
    let mut response = http::Response::new(());
    response
        .headers_mut()
        .insert("x-method", head.method().as_str().parse().unwrap());
    if head.method() == http::Method::POST {
        let mut answer = responder.respond(response).await?;
        while let Some(data) = body.data().await? {
            answer.send_data(data).await?;
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-end", "yes".parse().unwrap());
        answer.send_trailers(&trailers).await
    } else {
        let mut answer = responder.respond(response).await?;
        answer
            .send_data(bytes::Bytes::from_static(b"hello"))
            .await?;
        answer.finish().await
    }
}
