//! The answering side: sockets, sessions, and the way from a request to its handler.

use std::collections::HashMap;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use remus_security::{TlsConfigError, TlsPolicy, alpn, server_config};
use remus_session::{Answer, Grant, SessionConfig};
use remus_transport::quic::{self, EndpointError, ShardGroup};
use remus_transport::web::{self, Answering, Body as HttpBody, Links};
use remus_transport::webtransport::{self, Acceptor, DEFAULT_PORT};
use remus_transport::{Carrier, Connection, Dispatch, Handler, PeerRequest, Sessions, tcp};
use remus_wire::{
    AuthMethod, AuthenticationRecord, Capabilities, ErrorCode, ErrorRecord, Health, Load, Query,
    QueryAnswer, ServiceId, ServiceRecord, ServiceVersion,
};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::client::Client;
use crate::message::{Body, Request, Response};
use crate::router::{BoxFuture, Router};
use crate::stream::{Elements, pump};

/// How long open calls may finish when a server stops, where nothing else is said.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// Decides who a client is.
pub trait Authenticator: Send + Sync + 'static {
    /// The client presents `record`: who it is, or why it may not come in.
    fn authenticate(&self, record: AuthenticationRecord) -> BoxFuture<Result<Grant, Error>>;
}

/// Everybody may come in, unknown; a token is not looked at but refused, because nobody here could judge it.
struct Anonymous;

impl Authenticator for Anonymous {
    fn authenticate(&self, record: AuthenticationRecord) -> BoxFuture<Result<Grant, Error>> {
        let decision = if record.method == AuthMethod::NONE {
            Ok(Grant::default())
        } else {
            Err(Error::unauthenticated(format!(
                "authentication method {} is not offered here; connect without a token",
                record.method.0
            )))
        };
        Box::pin(std::future::ready(decision))
    }
}

/// Answers the plain HTTP requests that come to the port.
type Pages =
    Arc<dyn Fn(http::Request<HttpBody>) -> BoxFuture<http::Response<HttpBody>> + Send + Sync>;

/// Ports to try where any will do, and each may be free on UDP and taken on TCP. With half of all ports taken, one of 16 is free on
/// both with a chance of 99 %.
const FREE_PORT_ATTEMPTS: usize = 16;

/// Settings of a [`Server`].
#[must_use = "nothing listens before bind"]
pub struct ServerBuilder {
    router: Router,
    identity: Option<Arc<dyn ResolvesServerCert>>,
    policy: TlsPolicy,
    listen: SocketAddr,
    shard: Option<(ShardGroup, usize)>,
    config: SessionConfig,
    origins: Vec<String>,
    authenticator: Arc<dyn Authenticator>,
    http: Option<Pages>,
    /// Whether it listens on UDP.
    has_quic: bool,
    tcp: Tcp,
}

/// Whether and how a server listens on TCP.
enum Tcp {
    /// On the number that it has on UDP, where it listens there.
    Bind,
    Given(TcpListener),
    No,
}

/// Why a server could not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// No certificate was given.
    #[error("no identity was set: a server needs a certificate")]
    NoIdentity,
    /// It was told to listen neither on UDP nor on TCP.
    #[error("nobody could connect: the server is to listen neither on UDP nor on TCP")]
    NoCarrier,
    /// A setting is outside its range.
    #[error(transparent)]
    Config(#[from] remus_session::ConfigError),
    /// TLS cannot be configured.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (UDP): {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (TCP): {source}")]
    TcpAddress {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// QUIC cannot be started.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl ServerBuilder {
    /// The certificate, usually a [`LiveIdentity`](crate::LiveIdentity), which can be renewed while the server runs.
    pub fn identity(mut self, identity: Arc<dyn ResolvesServerCert>) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Which key exchanges are spoken. Default: [`TlsPolicy::PreferPostQuantum`], for browsers' sake.
    pub fn tls_policy(mut self, policy: TlsPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The address, on UDP and on TCP. Default `[::]:4433`: all addresses, IPv4 too. Port 0 takes any that is free on both.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Shares the port with the other servers of `group`, one a thread, as its shard `number`, counted from 0.
    ///
    /// The kernel spreads new connections over them, and each stays with the server that took it, also when its client's address
    /// changes. All of them listen on one address, which names the port.
    pub fn shard(mut self, group: &ShardGroup, number: usize) -> Self {
        self.shard = Some((group.clone(), number));
        self
    }

    /// All settings of the sessions: limits, windows, timeouts.
    pub fn session(mut self, change: impl FnOnce(&mut SessionConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Lets pages of this origin, such as `https://app.example.org`, open sessions. Those of the server's own authority may.
    pub fn allow_origin(mut self, origin: &str) -> Self {
        self.origins.push(origin.to_owned());
        self
    }

    /// Decides who may come in. Default: everybody, anonymously.
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.authenticator = Arc::new(authenticator);
        self
    }

    /// Answers plain HTTP requests, of HTTP/1.1, HTTP/2 and HTTP/3. Without it they get 404.
    ///
    /// What is below `/remus/v2/` never comes here. Bodies are not limited: do that, and put a limit on the time that they may take.
    pub fn http(
        mut self,
        pages: impl Fn(http::Request<HttpBody>) -> BoxFuture<http::Response<HttpBody>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.http = Some(Arc::new(pages));
        self
    }

    /// Takes TCP connections from `listener`, which need not have the port that [`ServerBuilder::listen`] says, instead of listening
    /// there. It must not block. Shards may share one, by clones of it.
    pub fn tcp_listener(mut self, listener: TcpListener) -> Self {
        self.tcp = Tcp::Given(listener);
        self
    }

    /// Takes no TCP connections: sessions come over WebTransport, or HTTP/3, or not at all.
    pub fn without_tcp(mut self) -> Self {
        self.tcp = Tcp::No;
        self
    }

    /// Opens no UDP socket: sessions come over TCP, which is to say by every carrier but WebTransport.
    ///
    /// This is what clients find behind a firewall that lets no UDP through.
    pub fn without_quic(mut self) -> Self {
        self.has_quic = false;
        self
    }

    /// Opens the sockets, on the tokio runtime in which it is called. Connections wait until [`Server::serve`].
    ///
    /// # Errors
    ///
    /// [`BindError`].
    pub fn bind(self) -> Result<Server, BindError> {
        let identity = self.identity.ok_or(BindError::NoIdentity)?;
        self.config.validate()?;
        let tls = server_config(self.policy, Arc::clone(&identity), alpn::QUIC)?;
        let tcp_tls = server_config(self.policy, identity, alpn::TCP)?;
        let is_shared = matches!(&self.shard, Some((group, _)) if group.count() > 1);
        let (socket, listener) = listen(self.listen, is_shared, self.has_quic, self.tcp)?;
        let endpoint = match (socket, &self.shard) {
            (None, _) => None,
            (Some(socket), Some((group, number))) => {
                Some(quic::shard_endpoint(socket, tls, group, *number)?)
            }
            (Some(socket), None) => Some(quic::server_endpoint(socket, tls)?),
        };
        let address = match (&endpoint, &listener) {
            (Some(endpoint), _) => endpoint.local_addr().map_err(|source| BindError::Address {
                address: self.listen,
                source,
            })?,
            (None, Some(listener)) => {
                listener
                    .local_addr()
                    .map_err(|source| BindError::TcpAddress {
                        address: self.listen,
                        source,
                    })?
            }
            (None, None) => return Err(BindError::NoCarrier),
        };
        let tcp = match listener {
            None => None,
            Some(listener) => {
                let listener = tokio::net::TcpListener::from_std(listener)
                    .map_err(|source| BindError::TcpAddress { address, source })?;
                Some((listener, tcp_tls))
            }
        };
        let gate = Gate {
            config: self.config,
            dispatcher: Arc::new(Dispatcher {
                router: self.router,
                authenticator: self.authenticator,
                sessions: AtomicU32::new(0),
            }),
            origins: self.origins,
            http: self.http,
            sessions: self
                .shard
                .as_ref()
                .map_or_else(Arc::default, |(group, _)| group.sessions()),
            links: self
                .shard
                .map_or_else(Links::default, |(group, _)| group.links()),
            connections: Mutex::new(HashMap::new()),
            next: AtomicU32::new(0),
            stopping: AtomicBool::new(false),
        };
        Ok(Server {
            endpoint,
            tcp,
            address,
            gate: Arc::new(gate),
        })
    }
}

/// The sockets of one port number, as far as they are wanted.
fn listen(
    address: SocketAddr,
    is_shared: bool,
    has_quic: bool,
    tcp: Tcp,
) -> Result<(Option<UdpSocket>, Option<TcpListener>), BindError> {
    let udp =
        || quic::bind(address, is_shared).map_err(|source| BindError::Address { address, source });
    let mut attempts = if address.port() == 0 {
        FREE_PORT_ATTEMPTS
    } else {
        1
    };
    match tcp {
        _ if !has_quic => Ok((
            None,
            match tcp {
                Tcp::No => None,
                Tcp::Given(listener) => Some(listener),
                Tcp::Bind => Some(
                    tcp::bind(address, is_shared)
                        .map_err(|source| BindError::TcpAddress { address, source })?,
                ),
            },
        )),
        Tcp::No => Ok((Some(udp()?), None)),
        Tcp::Given(listener) => Ok((Some(udp()?), Some(listener))),
        Tcp::Bind => loop {
            attempts = attempts.saturating_sub(1);
            let socket = udp()?;
            let address = socket
                .local_addr()
                .map_err(|source| BindError::Address { address, source })?;
            match tcp::bind(address, is_shared) {
                Ok(listener) => return Ok((Some(socket), Some(listener))),
                Err(error) if error.kind() == ErrorKind::AddrInUse && attempts > 0 => {}
                Err(source) => return Err(BindError::TcpAddress { address, source }),
            }
        },
    }
}

impl std::fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// Serves a router on one port, of UDP and of TCP unless one of them is left out. Its connections and handlers run on the tokio runtime on which it was bound.
pub struct Server {
    /// `None` where nothing is served over UDP.
    endpoint: Option<quinn::Endpoint>,
    tcp: Option<(tokio::net::TcpListener, Arc<ServerConfig>)>,
    address: SocketAddr,
    gate: Arc<Gate>,
}

impl Server {
    /// Starts the settings of a server.
    pub fn builder(router: Router) -> ServerBuilder {
        ServerBuilder {
            router,
            identity: None,
            policy: TlsPolicy::PreferPostQuantum,
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT)),
            shard: None,
            config: SessionConfig::acceptor(),
            origins: Vec::new(),
            authenticator: Arc::new(Anonymous),
            http: None,
            has_quic: true,
            tcp: Tcp::Bind,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// By which carriers it can be reached, the preferred one first.
    #[must_use]
    pub fn carriers(&self) -> Vec<Carrier> {
        let is_there = |carrier: &Carrier| match carrier {
            Carrier::WebTransport => self.endpoint.is_some(),
            Carrier::WebSocket => self.tcp.is_some(),
            // Over HTTP/3, or over HTTP on TCP: one of them is there.
            _ => true,
        };
        Carrier::ALL.into_iter().filter(is_there).collect()
    }

    /// Looks at the sessions that are open, from any thread, also while it serves.
    #[must_use]
    pub fn connections(&self) -> Connections {
        Connections(Arc::clone(&self.gate))
    }

    /// Serves until `stop` completes, then lets accepted calls finish within [`DEFAULT_GRACE`].
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        self.serve_with_grace(stop, DEFAULT_GRACE).await;
    }

    /// Serves until `stop` completes. Then refuses what is new as retryable, ends subscriptions, lets accepted calls finish
    /// within `grace`, and returns when the last connection has ended.
    pub async fn serve_with_grace(self, stop: impl Future<Output = ()>, grace: Duration) {
        let stopping = CancellationToken::new();
        let gate: Arc<dyn Acceptor> = Arc::clone(&self.gate) as Arc<dyn Acceptor>;
        let over_udp = async {
            if let Some(endpoint) = &self.endpoint {
                webtransport::serve(endpoint.clone(), Arc::clone(&gate), stopping.clone()).await;
            }
        };
        let over_tcp = async {
            if let Some((listener, tls)) = self.tcp {
                tcp::serve(listener, tls, Arc::clone(&gate), stopping.clone()).await;
            }
        };
        let serving = async { tokio::join!(over_udp, over_tcp) };
        tokio::pin!(serving);
        tokio::select! {
            _ = &mut serving => return,
            () = stop => {}
        }
        self.gate.stopping.store(true, Ordering::SeqCst);
        if let Some(broker) = self.gate.dispatcher.router.broker() {
            broker.close("the server is shutting down");
        }
        let open = Connections(Arc::clone(&self.gate)).list();
        for connection in &open {
            connection.shut_down(ErrorCode::OK, "the server is shutting down", "", grace);
        }
        let ended = async {
            for connection in &open {
                connection.finished().await;
            }
        };
        // Accepting goes on meanwhile, so that who comes now hears "service unavailable" instead of nothing.
        tokio::select! {
            _ = &mut serving => {}
            _ = tokio::time::timeout(grace + remus_transport::LINGER_MAX, ended) => {}
        }
        stopping.cancel();
        // Who is held on a link is let go, so that the connections can end.
        self.gate.links.end().await;
        if let Some(endpoint) = &self.endpoint {
            endpoint.close(0_u32.into(), b"the server has shut down");
        }
        serving.await;
        if let Some(endpoint) = &self.endpoint {
            // A peer that never acknowledges cannot hold the process.
            let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A session that a server has open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenSession {
    /// Counted from 0 by each server, also where several share a port; given again after 2^32 others.
    pub number: u32,
    /// When it began.
    pub opened: SystemTime,
    /// The session.
    pub connection: Connection,
}

/// The sessions that a server has open, and the HTTP links of its port.
#[derive(Clone)]
pub struct Connections(Arc<Gate>);

impl Connections {
    /// All of them, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Connection> {
        self.0
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .map(|(_, connection)| connection.clone())
            .collect()
    }

    /// All of them with what the server calls them by, in no order.
    #[must_use]
    pub fn sessions(&self) -> Vec<OpenSession> {
        self.0
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(number, (opened, connection))| OpenSession {
                number: *number,
                opened: *opened,
                connection: connection.clone(),
            })
            .collect()
    }
}

impl Connections {
    /// HTTP links that are there: each carries one session, or has just done so. Those of all servers that share the port.
    #[must_use]
    pub fn links(&self) -> usize {
        self.0.links.len()
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

/// What comes to the port goes through here.
struct Gate {
    config: SessionConfig,
    dispatcher: Arc<Dispatcher>,
    origins: Vec<String>,
    http: Option<Pages>,
    links: Links,
    connections: Mutex<HashMap<u32, (SystemTime, Connection)>>,
    next: AtomicU32,
    /// No session is taken any more.
    stopping: AtomicBool,
    /// Those that can go on over another carrier.
    sessions: Arc<Sessions>,
}

impl Acceptor for Gate {
    fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    fn session_config(&self) -> SessionConfig {
        self.config.clone()
    }

    fn handler(&self) -> Arc<dyn Handler> {
        Arc::clone(&self.dispatcher) as Arc<dyn Handler>
    }

    fn allows_origin(&self, origin: &str, authority: &str) -> bool {
        let own = origin
            .strip_prefix("https://")
            .is_some_and(|host| host.eq_ignore_ascii_case(authority));
        own || self
            .origins
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn links(&self) -> &Links {
        &self.links
    }

    fn opened(self: Arc<Self>, connection: Connection) {
        if self.is_stopping() {
            // It was let in while the server began to stop, and is not among those that were told.
            connection.shut_down(
                ErrorCode::OK,
                "the server is shutting down",
                "",
                Duration::ZERO,
            );
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, (SystemTime::now(), connection.clone()));
        // Ends with the connection, which always ends: by its peer, by silence, or by the server's end.
        tokio::spawn(async move {
            connection.closed().await;
            self.connections
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&number);
        });
    }

    fn pages(&self, request: http::Request<HttpBody>) -> Answering {
        if let Some(pages) = &self.http {
            return pages(request);
        }
        let mut response = http::Response::new(web::empty());
        *response.status_mut() = http::StatusCode::NOT_FOUND;
        Box::pin(std::future::ready(response))
    }
}

/// From a request to its handler.
pub(crate) struct Dispatcher {
    router: Router,
    authenticator: Arc<dyn Authenticator>,
    sessions: AtomicU32,
}

impl Dispatcher {
    /// For a client's side, where the acceptor has nothing to prove inside the session: TLS did.
    pub(crate) fn open(router: Router) -> Self {
        Self {
            router,
            authenticator: Arc::new(Anonymous),
            sessions: AtomicU32::new(0),
        }
    }
}

impl Handler for Dispatcher {
    fn authenticate(
        &self,
        _: &Connection,
        record: AuthenticationRecord,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, ErrorRecord>> + Send>> {
        let number = self
            .sessions
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(1);
        let deciding = self.authenticator.authenticate(record);
        Box::pin(async move {
            let mut grant = deciding.await.map_err(Error::into_record)?;
            grant.session = number;
            Ok(grant)
        })
    }

    fn directory(&self, query: &Query) -> QueryAnswer {
        let limit = match query.max_answers {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let records = self
            .router
            .services()
            .iter()
            .filter(|service| query.service == ServiceId::NONE || query.service.0 == service.id)
            .take(limit.min(remus_wire::MAX_ANSWERS as usize))
            .map(|service| ServiceRecord {
                service: ServiceId(service.id),
                version: ServiceVersion::default(),
                capabilities: Capabilities::default(),
                health: Health::default(),
                load: Load::default(),
                endpoints: Vec::new(),
            })
            .collect();
        QueryAnswer { records }
    }

    fn request(&self, connection: &Connection, incoming: PeerRequest) -> Dispatch {
        let message = incoming.message;
        let routing = message.routing;
        let Some(found) = self.router.find(routing.service, routing.method) else {
            return refuse(self.router.unknown(routing.service, routing.method));
        };
        let streams = found.kind.request_streams() || found.kind.answer_streams();
        if streams && incoming.stream.is_none() {
            return refuse(Error::failed_precondition(format!(
                "`{}` streams; call it on a stream of its own",
                found.name
            )));
        }
        if incoming.streams && !found.kind.request_streams() {
            return refuse(Error::failed_precondition(format!(
                "`{}` takes one request, not a stream",
                found.name
            )));
        }
        let (sender, receiver) = incoming.stream.unzip();
        let body = match receiver {
            Some(receiver) if found.kind.request_streams() => Body::stream(Elements(receiver)),
            _ => Body::Single(message.payload),
        };
        let request = Request {
            name: Some(Arc::clone(found.name)),
            routing,
            metadata: message.context.into(),
            flags: message.flags,
            priority: message.priority,
            deadline: incoming.deadline,
            peer: Some(Client::fixed(connection.clone())),
            answered: incoming.answered,
            body,
        };
        let mut answering = found.route.handle(request);
        let Some(mut sender) = sender.filter(|_| found.kind.answer_streams()) else {
            // Most handlers are ready at once: they need no task.
            let mut cx = Context::from_waker(Waker::noop());
            return match answering.as_mut().poll(&mut cx) {
                Poll::Ready(result) => Dispatch::Ready(answer(result)),
                Poll::Pending => {
                    Dispatch::Later(Box::pin(async move { Some(answer(answering.await)) }))
                }
            };
        };
        Dispatch::Later(Box::pin(async move {
            match answering.await {
                Ok(response) => {
                    let elements = match response.body {
                        Body::Stream(elements) => elements,
                        Body::Single(bytes) => Box::pin(OneElement(Some(bytes.into()))),
                        Body::Empty => Box::pin(OneElement(None)),
                    };
                    pump(elements, response.metadata, &mut sender).await;
                }
                Err(error) => sender.finish(Some(error.into_record())),
            }
            None
        }))
    }
}

/// What a method with one answer says to its caller.
fn answer(result: Result<Response<Body>, Error>) -> Answer {
    let reply = result.and_then(|response| {
        Ok(Answer::Reply {
            payload: response.body.into_single()?,
            context: response.metadata.into_context(),
            flags: response.flags,
        })
    });
    reply.unwrap_or_else(|error| Answer::Error(error.into_record()))
}

fn refuse(error: Error) -> Dispatch {
    Dispatch::Ready(Answer::Error(error.into_record()))
}

struct OneElement(Option<crate::Element>);

impl futures_core::Stream for OneElement {
    type Item = Result<crate::Element, Error>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}
