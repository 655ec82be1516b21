//! The calling side.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use remus_security::{Negotiated, TlsPolicy, Trust, alpn, client_config};
use remus_session::{Outgoing, SessionConfig, Shape};
use remus_transport::dial::Dialer;
use remus_transport::webtransport::{CONNECT_TIMEOUT, Target};
use remus_transport::{Carrier, Connection, HEAD_START, Handler, Ladder, quic};
use remus_wire::{ErrorCode, Flags, Message, Priority, Routing};

use crate::message::{Body, Element, Metadata, Request, Response};
use crate::router::{BoxFuture, Router, ServiceDescription};
use crate::server::Dispatcher;
use crate::stream::{Elements, Reply, StreamSender, Streaming, pump};
use crate::topics::{RemoteSubscription, SubscribeOptions};
use crate::{CARRIER_SERVICE, Codec, Error, carrier, names};

/// Time budget of a unary call that states none: nothing hangs for ever by default.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after a failed attempt to connect; it doubles with each further one, up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(3);

/// Attempts of a call that may be repeated, the first included.
const ATTEMPTS_MAX: u32 = 3;

/// Calls a peer. Cheap to clone; all clones share one connection.
///
/// A client made by [`Client::builder`] connects again by itself when a call finds its connection gone. Calls that were open
/// then fail with a retryable error; a call is repeated only where that is safe: the peer refused it before it ran, or it is
/// marked [idempotent](MethodCall::idempotent). The connection closes when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    source: Source,
}

#[derive(Clone)]
enum Source {
    /// A connection that somebody else looks after: the peer of a request.
    Fixed(Connection),
    Managed(Arc<Managed>),
}

/// A connection that is made when it is needed.
struct Managed {
    ladder: Arc<Ladder>,
    policy: TlsPolicy,
    config: SessionConfig,
    handler: Arc<dyn Handler>,
    timeout: Duration,
    current: Mutex<Option<Connection>>,
    /// Held while connecting, so that many callers make one connection.
    dialling: tokio::sync::Mutex<Attempts>,
}

#[derive(Default)]
struct Attempts {
    failed: u32,
    last: Option<Instant>,
}

/// Settings of a [`Client`].
#[derive(Debug)]
pub struct ClientBuilder {
    url: String,
    trust: Option<Trust>,
    policy: TlsPolicy,
    config: SessionConfig,
    router: Router,
    connect_timeout: Duration,
    timeout: Duration,
    carriers: Vec<Carrier>,
    head_start: Duration,
}

impl ClientBuilder {
    /// Whose certificates are taken. Must be set.
    #[must_use]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = Some(trust);
        self
    }

    /// Which key exchanges are spoken. Default: [`TlsPolicy::RequirePostQuantum`].
    #[must_use]
    pub fn tls_policy(mut self, policy: TlsPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Head start of each carrier over the next one in the race that a connection begins with. Default: [`HEAD_START`].
    #[must_use]
    pub fn head_start(mut self, head_start: Duration) -> Self {
        self.head_start = head_start;
        self
    }

    /// Presents this token (method 1, a bearer token) in the first flight.
    #[must_use]
    pub fn bearer(mut self, token: impl Into<Bytes>) -> Self {
        self.config = self.config.with_bearer(token.into());
        self
    }

    /// Time budget of unary calls that state none. Default: [`DEFAULT_TIMEOUT`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long one attempt to connect may take. Default 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Silence after which the peer counts as lost; the lower of both sides' values wins. Default 10 s, range 500 ms to 600 s.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.config.idle_timeout = timeout;
        self
    }

    /// Which carriers may be used, the preferred one first. Default: all of them, in the order of [`Carrier::ALL`].
    ///
    /// The first is used.
    #[must_use]
    pub fn carriers(mut self, carriers: impl IntoIterator<Item = Carrier>) -> Self {
        self.carriers = carriers.into_iter().collect();
        self
    }

    /// All settings of the session: limits, windows, queues.
    #[must_use]
    pub fn session(mut self, change: impl FnOnce(&mut SessionConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Serves these services to the peer, over the same connection, beside the built-in [`CARRIER_SERVICE`].
    #[must_use]
    pub fn router(mut self, router: Router) -> Self {
        self.router = router;
        self
    }

    /// Checks the settings and connects.
    ///
    /// Returns when calls can be made; the session's handshake goes on in the background, and the first small call travels
    /// with it.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT for a wrong URL or setting, UNAUTHENTICATED where the certificate is not trusted, UNAVAILABLE where
    /// nobody answers.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.lazy()?;
        client.connection().await?;
        Ok(client)
    }

    /// Checks the settings; the first call connects.
    ///
    /// Must be called within a tokio runtime: its socket lives there.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT for a wrong URL or setting.
    pub fn lazy(self) -> Result<Client, Error> {
        let target = Target::parse(&self.url)?;
        self.config
            .validate()
            .map_err(|error| Error::invalid_argument(error.to_string()))?;
        let trust = self.trust.ok_or_else(|| {
            Error::invalid_argument("no trust was set: say whose certificates are taken")
        })?;
        if self.carriers.is_empty() {
            return Err(Error::invalid_argument(
                "no carrier may be used: name one, or leave the choice open",
            ));
        }
        let tls = |protocols| {
            client_config(self.policy, &trust, protocols)
                .map_err(|error| Error::invalid_argument(error.to_string()))
        };
        let dialer = Dialer {
            quic: quic::client_endpoint(tls(alpn::QUIC)?)
                .map_err(|error| Error::unavailable(error.to_string()))?,
            http2: tls(alpn::HTTP2)?,
            http1: tls(alpn::HTTP1)?,
        };
        let mut router = self.router;
        // A program may answer this in its own way.
        let is_served = |one: &ServiceDescription| one.name == CARRIER_SERVICE;
        if !router.services().iter().any(is_served) {
            router = router.service(carrier::service(&self.carriers));
        }
        let managed = Managed {
            ladder: Ladder::new(
                dialer,
                target,
                self.carriers,
                self.head_start,
                self.connect_timeout,
            ),
            policy: self.policy,
            config: self.config,
            handler: Arc::new(Dispatcher::open(router)),
            timeout: self.timeout,
            current: Mutex::new(None),
            dialling: tokio::sync::Mutex::default(),
        };
        Ok(Client {
            source: Source::Managed(Arc::new(managed)),
        })
    }
}

impl Managed {
    /// Gives the connection in use to `step`, if it takes calls.
    fn with_current<R>(&self, step: impl FnOnce(&Connection) -> R) -> Option<R> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current
            .as_ref()
            .filter(|connection| connection.takes_calls())
            .map(step)
    }

    fn current(&self) -> Option<Connection> {
        self.with_current(Connection::clone)
    }

    async fn connection(&self) -> Result<Connection, Error> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let mut attempts = self.dialling.lock().await;
        if let Some(connection) = self.current() {
            return Ok(connection); // another caller made it meanwhile
        }
        if let Some(last) = attempts.last {
            let pause = BACKOFF_FIRST
                .saturating_mul(1 << attempts.failed.min(6))
                .min(BACKOFF_LONGEST);
            tokio::time::sleep_until((last + pause).into()).await;
        }
        let connected = self
            .ladder
            .connect(self.config.clone(), Arc::clone(&self.handler))
            .await;
        match connected {
            Ok(connection) => {
                *attempts = Attempts::default();
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                attempts.failed = attempts.failed.saturating_add(1);
                attempts.last = Some(Instant::now());
                Err(error.into())
            }
        }
    }
}

impl Client {
    /// Starts the settings of a client for `remus://host:port` or `https://host:port`.
    #[must_use]
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder {
            url: url.to_owned(),
            trust: None,
            policy: TlsPolicy::RequirePostQuantum,
            config: SessionConfig::client(),
            router: Router::new(),
            connect_timeout: CONNECT_TIMEOUT,
            timeout: DEFAULT_TIMEOUT,
            carriers: Carrier::ALL.to_vec(),
            head_start: HEAD_START,
        }
    }

    pub(crate) fn fixed(connection: Connection) -> Self {
        Self {
            source: Source::Fixed(connection),
        }
    }

    /// A call of one method, by its full name, such as `greet.v1.Greeter/Hello`.
    pub fn method(&self, name: &str) -> MethodCall<'_> {
        MethodCall {
            client: self,
            request: Outgoing {
                routing: {
                    let (service, method) = names::ids_of(name);
                    Routing::to(service, method)
                },
                ..Outgoing::default()
            },
            timeout: None,
        }
    }

    /// Makes several unary calls in one message, undecoded. They run at once; the answers come together, in the same order.
    ///
    /// Metadata, priority and deadline of each request travel with it; the batch as a whole has the client's default time
    /// budget. At most 1,024 requests, and all of them together at most as long as one message of the peer's.
    ///
    /// # Errors
    ///
    /// That of the batch as a whole: INVALID_ARGUMENT for an empty or too long one, the errors of calls. Each member has its own
    /// result.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the calls, and the work behind them.
    pub async fn batch(
        &self,
        requests: Vec<Request<Bytes>>,
    ) -> Result<Vec<Result<Response<Bytes>, Error>>, Error> {
        let connection = self.connection().await?;
        let members = requests
            .into_iter()
            .map(|request| {
                let mut member = outgoing(&request);
                member.timeout = time_left(request.deadline);
                member.payload = request.body;
                member
            })
            .collect();
        let answers = connection
            .call_batch(members, Some(self.default_timeout()))
            .await?;
        Ok(answers
            .into_iter()
            .map(|answer| answer.map(response).map_err(Error::from))
            .collect())
    }

    /// The connection in use; makes one if there is none.
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::connect`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn connection(&self) -> Result<Connection, Error> {
        match &self.source {
            Source::Fixed(connection) => Ok(connection.clone()),
            Source::Managed(managed) => managed.connection().await,
        }
    }

    /// The peer's address, while there is a connection.
    #[must_use]
    pub fn remote_address(&self) -> Option<SocketAddr> {
        match &self.source {
            Source::Fixed(connection) => Some(connection.remote_address()),
            Source::Managed(managed) => managed
                .current()
                .map(|connection| connection.remote_address()),
        }
    }

    /// The carrier in use, while there is a connection.
    #[must_use]
    pub fn carrier(&self) -> Option<Carrier> {
        match &self.source {
            Source::Fixed(connection) => Some(connection.carrier()),
            Source::Managed(managed) => managed.current().map(|connection| connection.carrier()),
        }
    }

    /// TLS version and key exchange that this client's policy leads to; `None` for the peer of a request, whose choice is not
    /// known here.
    #[must_use]
    pub fn tls(&self) -> Option<Negotiated> {
        match &self.source {
            Source::Fixed(_) => None,
            Source::Managed(managed) => Some(managed.policy.negotiates()),
        }
    }

    /// Publishes to a topic and waits until the peer's broker has taken it.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT for a wrong topic name, and the errors of calls.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may or may not publish.
    pub async fn publish(&self, topic: &str, payload: impl Into<Bytes>) -> Result<(), Error> {
        crate::topics::publish(self, topic, payload.into()).await
    }

    /// Publishes to a topic without waiting for anything but room in the session's queue. At most once.
    ///
    /// The payload and its headers must fit 16 KiB.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT for a wrong topic name, MESSAGE_TOO_LARGE, and the errors of connecting.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may or may not publish.
    pub async fn publish_unacknowledged(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<(), Error> {
        crate::topics::publish_unacknowledged(self, topic, payload.into()).await
    }

    /// Subscribes to the topics that match a pattern: `*` stands for one token, `>` at the end for one or more.
    ///
    /// Returns when the peer has taken the subscription: what is published after that arrives, as far as the overflow policy
    /// allows.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT for a wrong pattern, and the errors of calls.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn subscribe(
        &self,
        pattern: &str,
        options: SubscribeOptions,
    ) -> Result<RemoteSubscription, Error> {
        crate::topics::subscribe(self, pattern, options).await
    }

    /// Closes the connection when what is open has finished, at the latest after a second, and waits for it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the connection closes all the same.
    pub async fn close(&self) {
        let connection = match &self.source {
            Source::Fixed(connection) => Some(connection.clone()),
            Source::Managed(managed) => managed
                .current
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        };
        if let Some(connection) = connection {
            connection.shut_down(
                ErrorCode::OK,
                "the client is done",
                "",
                Duration::from_secs(1),
            );
            connection.finished().await;
        }
        if let Source::Managed(managed) = &self.source {
            // The last acknowledgements leave before the socket goes.
            let _ = tokio::time::timeout(
                Duration::from_secs(1),
                managed.ladder.dialer().quic.wait_idle(),
            )
            .await;
        }
    }

    fn default_timeout(&self) -> Duration {
        match &self.source {
            Source::Fixed(_) => DEFAULT_TIMEOUT,
            Source::Managed(managed) => managed.timeout,
        }
    }

    /// Runs a call that has one answer, again where that is safe and time is left.
    async fn unary(&self, request: Outgoing) -> Result<Message, Error> {
        let idempotent = request.flags.contains(Flags::IDEMPOTENT);
        // The usual case: there is a connection with room. Its session ends the call when its time is up.
        let begun = match &self.source {
            Source::Fixed(connection) => connection.try_call(&request),
            Source::Managed(managed) => managed
                .with_current(|connection| connection.try_call(&request))
                .unwrap_or(Ok(None)),
        };
        let (error, started) = match begun {
            Ok(Some(call)) => {
                let started = call.started();
                match call.await {
                    Ok(message) => return Ok(message),
                    Err(error) => (Some(error.into()), started),
                }
            }
            Ok(None) => (None, Instant::now()),
            Err(error) => (Some(error.into()), Instant::now()),
        };
        let attempt = u32::from(error.is_some());
        match error {
            Some(error) if !self.may_repeat(&error, idempotent) => Err(error),
            _ => self.unary_waiting(request, started, attempt).await,
        }
    }

    /// As [`Client::unary`], where the call has to wait: for a connection, or for room on it.
    async fn unary_waiting(
        &self,
        mut request: Outgoing,
        started: Instant,
        mut attempts: u32,
    ) -> Result<Message, Error> {
        let budget = request.timeout;
        let idempotent = request.flags.contains(Flags::IDEMPOTENT);
        loop {
            attempts = attempts.saturating_add(1);
            let left = match budget {
                None => None,
                Some(budget) => match budget.checked_sub(started.elapsed()) {
                    Some(left) if !left.is_zero() => Some(left),
                    _ => return Err(Error::deadline_exceeded("no answer came in time")),
                },
            };
            let calling = async {
                let connection = self.connection().await?;
                // What connecting took is gone from the budget.
                request.timeout = budget.map(|budget| {
                    budget
                        .saturating_sub(started.elapsed())
                        .max(Duration::from_millis(1))
                });
                connection.call(request.clone()).await.map_err(Error::from)
            };
            let result = match left {
                None => calling.await,
                Some(left) => tokio::time::timeout(left, calling)
                    .await
                    .unwrap_or_else(|_| Err(Error::deadline_exceeded("no answer came in time"))),
            };
            match result {
                Err(error) if attempts < ATTEMPTS_MAX && self.may_repeat(&error, idempotent) => {}
                result => return result,
            }
        }
    }

    /// Sends a request without waiting for an answer: at most once.
    pub(crate) async fn notify(&self, routing: Routing, payload: Bytes) -> Result<(), Error> {
        let mut request = Some(Outgoing {
            routing,
            payload,
            ..Outgoing::default()
        });
        let mut send = |connection: &Connection| {
            if let Some(ready) = request.take() {
                request = connection.try_notify(ready)?;
            }
            Ok::<_, Error>(())
        };
        match &self.source {
            Source::Fixed(connection) => send(connection)?,
            Source::Managed(managed) => managed.with_current(send).unwrap_or(Ok(()))?,
        }
        let Some(request) = request else {
            // What is sent leaves when its sender pauses; one that never waits for anything has to be made to.
            tokio::task::coop::consume_budget().await;
            return Ok(());
        };
        let connection = self.connection().await?;
        connection.notify(request).await.map_err(Error::from)
    }

    fn may_repeat(&self, error: &Error, idempotent: bool) -> bool {
        let reconnects = matches!(self.source, Source::Managed(_));
        reconnects
            && (error.code() == ErrorCode::SHUTTING_DOWN || (idempotent && error.is_retryable()))
    }

    async fn start(
        &self,
        request: Outgoing,
        shape: Shape,
    ) -> Result<(remus_transport::CallSender, remus_transport::CallReceiver), Error> {
        let connection = self.connection().await?;
        connection.start(request, shape).await.map_err(Error::from)
    }

    /// A call of any shape, undecoded: what `tower::Service` does. A body that streams is sent by a task of its own.
    async fn raw(self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let mut outgoing = outgoing(&request);
        outgoing.timeout = time_left(request.deadline);
        match request.body {
            Body::Empty => {}
            Body::Single(payload) => outgoing.payload = payload,
            Body::Stream(elements) => {
                let (mut sender, receiver) = self.start(outgoing, Shape::TwoWay).await?;
                tokio::spawn(async move { pump(elements, Metadata::default(), &mut sender).await });
                return Ok(Response::new(Body::stream(Elements(receiver))));
            }
        }
        let message = self.unary(outgoing).await?;
        Ok(response(message).map(Body::Single))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.source {
            Source::Fixed(connection) => f.debug_tuple("Client").field(connection).finish(),
            Source::Managed(managed) => f
                .debug_struct("Client")
                .field("target", managed.ladder.target())
                .finish_non_exhaustive(),
        }
    }
}

impl tower_service::Service<Request<Body>> for Client {
    type Response = Response<Body>;
    type Error = Error;
    type Future = BoxFuture<Result<Response<Body>, Error>>;

    /// Always ready: the call itself waits for room.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().raw(request))
    }
}

/// A deadline as a budget; one that has passed still has a millisecond, because none at all would mean no limit.
fn time_left(deadline: Option<Instant>) -> Option<Duration> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Some(left.max(Duration::from_millis(1)))
}

fn outgoing<B>(request: &Request<B>) -> Outgoing {
    Outgoing {
        routing: request.routing.clone(),
        context: request.metadata.context().clone(),
        flags: request.flags,
        priority: request.priority,
        timeout: None,
        payload: Bytes::new(),
    }
}

fn response(message: Message) -> Response<Bytes> {
    Response {
        metadata: message.context.into(),
        flags: message.flags,
        body: message.payload,
    }
}

/// One call, being put together.
#[derive(Debug)]
#[must_use = "nothing is called before one of unary, server_stream, client_stream and two_way"]
pub struct MethodCall<'a> {
    client: &'a Client,
    request: Outgoing,
    timeout: Option<Duration>,
}

impl MethodCall<'_> {
    /// The time budget. It travels with the call and shrinks on the way. Default for unary calls: that of the client; for calls
    /// that stream: none.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Adds metadata. What cannot be sent makes the call fail with INVALID_ARGUMENT.
    pub fn metadata(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let context = &mut self.request.context;
        if context.add_custom(name, value.as_ref()).is_err() {
            // Larger than any context may be: the session refuses it with CONTEXT_TOO_LARGE.
            let _ = context.set_padding(usize::from(u16::MAX));
        }
        self
    }

    /// How urgent it is.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.request.priority = priority;
        self
    }

    /// Says that the call may run more than once, so that it is repeated where the connection was lost.
    pub fn idempotent(mut self) -> Self {
        self.request.flags |= Flags::IDEMPOTENT;
        self
    }

    /// Names the topic that the call is about (routing option 6).
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT where it is longer than 65,535 bytes.
    pub fn topic(mut self, topic: &str) -> Result<Self, Error> {
        self.request
            .routing
            .set_topic(topic)
            .map_err(|_| Error::invalid_argument("the topic name is too long"))?;
        Ok(self)
    }

    /// Calls a method with one request and one answer.
    ///
    /// # Errors
    ///
    /// The peer's error; DEADLINE_EXCEEDED; LOSS_OF_SESSION and UNAVAILABLE where it cannot be reached.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the call, and the work behind it.
    pub async fn unary<In, Out>(
        self,
        codec: impl Codec<In> + Codec<Out>,
        input: &In,
    ) -> Result<Response<Out>, Error> {
        let mut request = self.request;
        request.payload = Codec::<In>::encode(&codec, input)?;
        request.timeout = Some(
            self.timeout
                .unwrap_or_else(|| self.client.default_timeout()),
        );
        let answer = response(self.client.unary(request).await?);
        let (metadata, flags) = (answer.metadata, answer.flags);
        Ok(Response {
            metadata,
            flags,
            body: Codec::<Out>::decode(&codec, answer.body)?,
        })
    }

    /// Calls a method with one request and a stream of answers.
    ///
    /// # Errors
    ///
    /// As [`MethodCall::unary`]; errors of the method itself come through the stream.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Dropping the stream cancels the call.
    pub async fn server_stream<In, Out>(
        self,
        codec: impl Codec<In> + Codec<Out>,
        input: &In,
    ) -> Result<Response<Streaming<Out>>, Error> {
        let mut request = self.request;
        request.payload = Codec::<In>::encode(&codec, input)?;
        request.timeout = self.timeout;
        let (_, receiver) = self.client.start(request, Shape::ServerStream).await?;
        Ok(Response::new(Streaming::new(
            Box::pin(Elements(receiver)),
            codec,
        )))
    }

    /// Calls a method with a stream of requests and one answer.
    ///
    /// # Errors
    ///
    /// As [`MethodCall::unary`]; errors of the method itself come with the answer.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Dropping both halves cancels the call.
    pub async fn client_stream<In, Out>(
        self,
        codec: impl Codec<In> + Codec<Out>,
    ) -> Result<(StreamSender<In>, Reply<Out>), Error> {
        let mut request = self.request;
        request.timeout = self.timeout;
        let (sender, receiver) = self.client.start(request, Shape::ClientStream).await?;
        Ok((
            StreamSender::new(sender, codec.clone()),
            Reply::new(receiver, codec),
        ))
    }

    /// Calls a method with a stream each way.
    ///
    /// # Errors
    ///
    /// As [`MethodCall::server_stream`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Dropping both halves cancels the call.
    pub async fn two_way<In, Out>(
        self,
        codec: impl Codec<In> + Codec<Out>,
    ) -> Result<(StreamSender<In>, Streaming<Out>), Error> {
        let mut request = self.request;
        request.timeout = self.timeout;
        let (sender, receiver) = self.client.start(request, Shape::TwoWay).await?;
        Ok((
            StreamSender::new(sender, codec.clone()),
            Streaming::new(Box::pin(Elements(receiver)), codec),
        ))
    }

    /// Calls a method whose answers stream, undecoded.
    pub(crate) async fn elements(self, payload: Bytes) -> Result<Elements, Error> {
        let mut request = self.request;
        request.payload = payload;
        request.timeout = self.timeout;
        let (_, receiver) = self.client.start(request, Shape::ServerStream).await?;
        Ok(Elements(receiver))
    }
}

impl Element {
    /// The topic that the element belongs to.
    #[must_use]
    pub fn topic(&self) -> Option<&str> {
        self.routing.topic()
    }
}
