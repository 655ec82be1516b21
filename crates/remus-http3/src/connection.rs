//! One HTTP/3 connection: its control streams, the sorting of what arrives, and the task that does it.
//! Spec: RFC 9114 §3 and §5 to §7, draft-ietf-webtrans-http3 §3 and §4.
//!
//! One task per connection owns everything that no application took over: streams whose type is not
//! known yet, control streams, the CONNECT streams of sessions. It ends with the connection, and
//! ends every session then.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{Method, Response, StatusCode};
use tokio::{sync::Notify, time::Instant};

use crate::{
    Code,
    budget::Budget,
    config::Config,
    control::{ControlDecoder, ControlEvent, Peer},
    error::Error,
    fault::{Fault, Scope},
    frame::{self, frame_type, stream_type},
    head::{self, Protocol},
    message::{MessageDecoder, MessageError, MessageEvent},
    protocols,
    qpack::{self, DecoderStream, EncoderStream},
    queue::{Queue, lock},
    reader::{self, Reader},
    request::{PendingResponse, Permit, Request, SendBody},
    routing::{EarlyStream, Route, Routing},
    session::{Control, Session, SessionRequest, SessionShared},
    settings::{self, Settings},
    varint,
};

/// Sentinel for "no GOAWAY": no stream ID is that large.
const NO_GOAWAY: u64 = u64::MAX;

/// An HTTP/3 connection, either side. Cheap to clone.
///
/// Dropping the last clone, sessions, requests and bodies included, closes it with `H3_NO_ERROR` once
/// its sessions are closed.
#[derive(Clone, Debug)]
pub struct Connection {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.is_abandoned.store(true, Ordering::Release);
        self.shared.work.notify_one();
    }
}

/// State that the connection's task and its users share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) quic: quinn::Connection,
    pub(crate) config: Arc<Config>,
    is_server: bool,
    settings: OnceLock<Settings>,
    /// What ended the connection, where QUIC does not know it.
    end: OnceLock<Error>,
    routing: Mutex<Routing>,
    budget: Mutex<Budget>,
    incoming: Queue<Raw>,
    requests: Arc<AtomicUsize>,
    /// Wakes those who wait for SETTINGS, GOAWAY or the end.
    changed: Notify,
    /// Wakes the connection's task.
    work: Notify,
    /// Sessions that this side asked for, until the task takes them; `None` once the task ended.
    new_sessions: Mutex<Option<Vec<Control>>>,
    is_abandoned: AtomicBool,
    wants_goaway: AtomicBool,
    goaway_sent: AtomicU64,
    goaway_received: AtomicU64,
}

/// What a client wants.
#[expect(
    clippy::large_enum_variant,
    reason = "one moves per request, and a box would cost an allocation each"
)]
#[derive(Debug)]
pub enum Incoming {
    /// A plain request.
    Request(Request),
    /// A WebTransport session.
    Session(SessionRequest),
}

/// [`Incoming`] while it waits, without a handle that would keep the connection open.
#[derive(Debug)]
enum Raw {
    Request {
        head: http::Request<()>,
        reader: Reader,
        decoder: MessageDecoder,
        send: quinn::SendStream,
        permit: Arc<Permit>,
    },
    Session {
        head: http::Request<()>,
        session: Arc<SessionShared>,
        send: quinn::SendStream,
    },
}

impl Shared {
    /// Notes useless work that the peer caused.
    ///
    /// # Errors
    ///
    /// `H3_EXCESSIVE_LOAD` for the connection, when there was too much of it.
    pub(crate) fn charge(&self) -> Result<(), Fault> {
        if lock(&self.budget).charge(Instant::now()) {
            return Ok(());
        }
        Err(Fault::connection(
            Code::H3_EXCESSIVE_LOAD,
            "too many streams, frames and capsules that come to nothing",
        ))
    }

    /// Largest field section that is accepted, in bytes.
    pub(crate) fn max_field_section(&self) -> usize {
        usize::try_from(self.config.max_field_section_bytes).unwrap_or(usize::MAX)
    }

    /// What ended the connection, or else `error`.
    pub(crate) fn end_or(&self, error: quinn::ConnectionError) -> Error {
        self.end.get().cloned().unwrap_or(Error::Lost(error))
    }

    fn peer(&self) -> Peer {
        if self.is_server {
            Peer::Client
        } else {
            Peer::Server
        }
    }

    /// Ends the connection for a fault of the peer.
    fn fail(&self, fault: Fault) {
        tracing::debug!(%fault, "closing the connection");
        let _ = self.end.set(Error::Peer(fault)); // the first cause stays
        self.quic
            .close(fault.code.to_quic(), fault.detail.as_bytes());
        self.changed.notify_waiters();
    }

    /// Waits until `look` finds something, looking again after every change, or for the end.
    async fn wait_for<T>(&self, mut look: impl FnMut() -> Option<T>) -> Result<T, Error> {
        loop {
            let changed = self.changed.notified();
            if let Some(found) = look() {
                return Ok(found);
            }
            tokio::select! {
                () = changed => {}
                error = self.quic.closed() => return Err(self.end_or(error)),
            }
        }
    }
}

impl Connection {
    /// Starts the server's side of `quic`, whose handshake is complete: sends SETTINGS and serves.
    ///
    /// [`accept_quic`](Self::accept_quic) does so one flight earlier.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future closes the connection.
    pub async fn server(quic: quinn::Connection, config: Arc<Config>) -> Result<Self, Error> {
        Self::start(quic, config, true).await
    }

    /// Starts the server's side of a connection while its handshake still runs, and waits for it.
    ///
    /// SETTINGS go with the server's first flight, so that a client can ask for a session together
    /// with the end of its handshake: one round trip less than with [`server`](Self::server). Nothing
    /// that depends on the client's identity happens before the handshake is complete.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`], failed handshakes included.
    ///
    /// # Cancel safety
    ///
    /// A dropped future closes the connection.
    pub async fn accept_quic(
        connecting: quinn::Connecting,
        config: Arc<Config>,
    ) -> Result<Self, Error> {
        // A server can always send before the handshake is complete.
        let (quic, handshake) = match connecting.into_0rtt() {
            Ok((quic, handshake)) => (quic, Some(handshake)),
            Err(connecting) => (connecting.await?, None),
        };
        let connection = Self::start(quic, config, true).await?;
        if let Some(handshake) = handshake {
            handshake.await;
            if let Some(error) = connection.quic().close_reason() {
                return Err(connection.handle.shared.end_or(error));
            }
        }
        Ok(connection)
    }

    /// Starts the client's side of `quic` and waits for the server's SETTINGS.
    ///
    /// They come with the server's first flight, if it sends them as early as it can.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`]; [`Error::Peer`] when SETTINGS are wrong, or missing for
    /// [`settings_timeout`](crate::ConfigBuilder::settings_timeout).
    ///
    /// # Cancel safety
    ///
    /// A dropped future closes the connection.
    pub async fn client(quic: quinn::Connection, config: Arc<Config>) -> Result<Self, Error> {
        let connection = Self::start(quic, config, false).await?;
        let shared = &connection.handle.shared;
        shared
            .wait_for(|| shared.settings.get().map(|_| ()))
            .await?;
        Ok(connection)
    }

    async fn start(
        quic: quinn::Connection,
        config: Arc<Config>,
        is_server: bool,
    ) -> Result<Self, Error> {
        let mut preface = Vec::with_capacity(64);
        settings::encode_control_preface(config.max_field_section_bytes, &mut preface);
        let open = async {
            let mut control = quic.open_uni().await?;
            control.write_all(&preface).await?;
            Ok::<_, Error>(control)
        };
        let control = match tokio::time::timeout(config.settings_timeout, open).await {
            Ok(control) => control?,
            Err(_) => {
                // A peer that allows no control stream does not speak HTTP/3.
                let fault = Fault::connection(
                    Code::H3_STREAM_CREATION_ERROR,
                    "the peer does not allow a control stream",
                );
                quic.close(fault.code.to_quic(), fault.detail.as_bytes());
                return Err(fault.into());
            }
        };
        let now = Instant::now();
        let shared = Arc::new(Shared {
            is_server,
            settings: OnceLock::new(),
            end: OnceLock::new(),
            routing: Mutex::new(Routing::new(
                is_server,
                config.max_early_streams,
                config.max_early_datagrams,
            )),
            budget: Mutex::new(Budget::new(config.max_peer_faults, now)),
            incoming: Queue::new(config.max_incoming),
            requests: Arc::default(),
            changed: Notify::new(),
            work: Notify::new(),
            new_sessions: Mutex::new(Some(Vec::new())),
            is_abandoned: AtomicBool::new(false),
            wants_goaway: AtomicBool::new(false),
            goaway_sent: AtomicU64::new(NO_GOAWAY),
            goaway_received: AtomicU64::new(NO_GOAWAY),
            quic,
            config,
        });
        tokio::spawn(Driver::new(shared.clone(), control, now).run());
        Ok(Self {
            handle: Arc::new(Handle { shared }),
        })
    }

    /// Waits for the next request or session; `None` once the connection ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a request is only taken by the poll that returns it.
    pub async fn accept(&self) -> Option<Incoming> {
        Some(match self.handle.shared.incoming.pop().await? {
            Raw::Request {
                head,
                reader,
                decoder,
                send,
                permit,
            } => Incoming::Request(Request::new(head, self, reader, decoder, send, permit)),
            Raw::Session {
                head,
                session,
                send,
            } => Incoming::Session(SessionRequest {
                protocols: protocols::offered(head.headers()),
                head,
                session,
                connection: self.clone(),
                send: Some(send),
            }),
        })
    }

    /// Asks the server for a session at the URI of `request`, offering `protocols`, best first.
    ///
    /// Does not wait for the answer: streams can be opened and written at once, and go with the
    /// request. [`Session::established`] gives the answer. The method is set to CONNECT, and the
    /// fields of `request` are sent along.
    ///
    /// # Errors
    ///
    /// [`Error::NotOffered`], [`Error::GoingAway`], [`Error::TooManySessions`], [`Error::Head`],
    /// [`Error::ProtocolName`]; [`Error::Lost`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: waits only for the peer to allow a stream, and has sent nothing until it returns.
    pub async fn connect(
        &self,
        mut request: http::Request<()>,
        protocols: &[&str],
    ) -> Result<Session, Error> {
        let shared = &self.handle.shared;
        let settings = self
            .settings()
            .ok_or(Error::NotOffered("HTTP/3 settings"))?;
        if shared.is_server {
            return Err(Error::NotOffered("sessions that a server asks for"));
        }
        if !settings.webtransport() {
            return Err(Error::NotOffered("WebTransport"));
        }
        if !settings.datagrams {
            return Err(Error::NotOffered(
                "HTTP datagrams, which WebTransport needs",
            ));
        }
        *request.method_mut() = Method::CONNECT;
        request
            .extensions_mut()
            .insert(Protocol::from_static(settings.connect_token()));
        if !protocols.is_empty() {
            let value = protocols::to_value(protocols).ok_or(Error::ProtocolName)?;
            request.headers_mut().insert(protocols::AVAILABLE, value);
        }
        let encoded = self.encode_request(&request)?;
        let (mut send, recv) = self.open_request().await?;
        let id = u64::from(send.id());
        let session = SessionShared::new(id, shared);
        {
            let mut routing = lock(&shared.routing);
            let own = shared.config.max_sessions;
            let max = match settings.max_sessions().map(usize::try_from) {
                Some(Ok(max)) => max.min(own),
                Some(Err(_)) | None => own,
            };
            if routing.len() >= max {
                drop(routing);
                reader::reset(&mut send, Code::H3_REQUEST_CANCELLED);
                return Err(Error::TooManySessions { max });
            }
            routing.add(&session); // nothing can be early for a client's session
        }
        let written = match reader::try_write(&mut send, &encoded).await {
            Ok(written) => written,
            Err(error) => {
                lock(&shared.routing).remove(id);
                return Err(error.into());
            }
        };
        let decoder = MessageDecoder::new(Peer::Server, shared.config.max_field_section_bytes);
        let control = Control::new(shared.clone(), session.clone(), Reader::new(recv), decoder)
            .with_request(send, encoded.get(written..).unwrap_or_default());
        shared.run_session(control);
        Ok(Session::new(session, self.clone()))
    }

    /// Sends the head of a request to the server.
    ///
    /// The first part of what it returns sends the body and must be finished, for an empty body too;
    /// the other waits for the answer, which may come before.
    ///
    /// # Errors
    ///
    /// [`Error::GoingAway`], [`Error::Head`], [`Error::Lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it completes, the request is cancelled.
    pub async fn request(
        &self,
        request: http::Request<()>,
    ) -> Result<(SendBody, PendingResponse), Error> {
        let encoded = self.encode_request(&request)?;
        let (send, recv) = self.open_request().await?;
        let mut body = SendBody::new(self, send, Code::H3_REQUEST_CANCELLED, None);
        let max = self.handle.shared.config.max_field_section_bytes;
        let decoder = MessageDecoder::new(Peer::Server, max);
        let response = PendingResponse::new(self, Reader::new(recv), decoder, request.method());
        body.queue(encoded, Bytes::new()).await?;
        Ok((body, response))
    }

    /// Opens a stream for a request, unless the server takes no more.
    async fn open_request(&self) -> Result<(quinn::SendStream, quinn::RecvStream), Error> {
        let shared = &self.handle.shared;
        if self.is_going_away() {
            return Err(Error::GoingAway);
        }
        let opened = shared.quic.open_bi().await;
        opened.map_err(|error| shared.end_or(error))
    }

    /// A HEADERS frame with the head of `request`.
    fn encode_request(&self, request: &http::Request<()>) -> Result<Bytes, Error> {
        let mut section = BytesMut::new();
        head::encode_request(request, self.peer_field_limit(), &mut section)?;
        Ok(headers_frame(&section))
    }

    /// A HEADERS frame with the head of `response`.
    pub(crate) fn encode_response(&self, response: &Response<()>) -> Result<Bytes, Error> {
        let mut section = BytesMut::new();
        head::encode_response(response, self.peer_field_limit(), &mut section)?;
        Ok(headers_frame(&section))
    }

    /// Largest field section that the peer accepts, as far as it said so.
    pub(crate) fn peer_field_limit(&self) -> Option<u64> {
        self.settings()?.max_field_section_bytes
    }

    /// Whether the peer takes datagrams.
    pub(crate) fn peer_takes_datagrams(&self) -> bool {
        self.settings().is_some_and(|settings| settings.datagrams)
    }

    pub(crate) fn max_field_section(&self) -> usize {
        self.handle.shared.max_field_section()
    }

    /// Notes useless work that the peer caused, and ends the connection when there was too much.
    pub(crate) fn charge(&self) -> Result<(), Error> {
        self.handle.shared.charge().map_err(|fault| {
            self.handle.shared.fail(fault);
            Error::Peer(fault)
        })
    }

    /// Acts on a fault in a message that the application reads.
    pub(crate) fn report(&self, fault: Fault) {
        match fault.scope {
            Scope::Connection => self.handle.shared.fail(fault),
            Scope::Stream => drop(self.charge()),
        }
    }

    /// What the peer's SETTINGS said; `None` until they are there.
    #[must_use]
    pub fn settings(&self) -> Option<Settings> {
        self.handle.shared.settings.get().copied()
    }

    /// Takes no more requests: those that the client has not sent yet are refused, in a way that tells
    /// it to send them elsewhere. Those accepted go on.
    ///
    /// On a client it only tells the server that no pushes are wanted, which there never are.
    pub fn goaway(&self) {
        self.handle
            .shared
            .wants_goaway
            .store(true, Ordering::Release);
        self.handle.shared.work.notify_one();
    }

    /// Whether the peer said that it takes no more requests.
    #[must_use]
    pub fn is_going_away(&self) -> bool {
        self.handle.shared.goaway_received.load(Ordering::Acquire) != NO_GOAWAY
    }

    /// Waits until the peer says that it takes no more requests.
    ///
    /// # Errors
    ///
    /// What ended the connection before.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn going_away(&self) -> Result<(), Error> {
        let shared = &self.handle.shared;
        shared.wait_for(|| self.is_going_away().then_some(())).await
    }

    /// Closes the connection at once, with everything on it; what is undelivered is lost.
    pub fn close(&self, code: Code, reason: &str) {
        let shared = &self.handle.shared;
        shared.quic.close(code.to_quic(), reason.as_bytes());
    }

    /// Waits for the end of the connection: why it ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn closed(&self) -> Error {
        let error = self.handle.shared.quic.closed().await;
        self.handle.shared.end_or(error)
    }

    /// The QUIC connection, for its statistics and the peer's certificate. Its streams and datagrams
    /// are not to be touched.
    #[must_use]
    pub fn quic(&self) -> &quinn::Connection {
        &self.handle.shared.quic
    }
}

/// A HEADERS frame around a field section.
fn headers_frame(section: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(section.len().saturating_add(2 * varint::MAX_LEN));
    frame::encode(frame_type::HEADERS, section, &mut out);
    out.freeze()
}

impl Shared {
    /// Gives a session's CONNECT stream to the connection's task.
    ///
    /// There are at most as many as there are sessions.
    fn run_session(&self, control: Control) {
        match &mut *lock(&self.new_sessions) {
            Some(new) => new.push(control),
            None => {
                let lost = quinn::ConnectionError::LocallyClosed;
                let lost = self.quic.close_reason().unwrap_or(lost);
                control.session.end(Err(self.end_or(lost)));
                control.session.finished();
            }
        }
        self.work.notify_one();
    }
}

/// A piece of the connection's work; an error ends the connection.
type Task = Pin<Box<dyn Future<Output = Result<Event, Fault>> + Send>>;

/// What a piece of work came to.
#[expect(
    clippy::large_enum_variant,
    reason = "one moves per request, and a box would cost an allocation each"
)]
enum Event {
    /// The peer opened a bidirectional stream.
    Bi(quinn::SendStream, quinn::RecvStream),
    /// The peer opened a unidirectional stream.
    Uni(quinn::RecvStream),
    /// The type of a bidirectional stream is known, or it came to nothing.
    BiDecided(u64, Option<Bi>),
    /// The type of a unidirectional stream is known, or it came to nothing.
    UniDecided(Option<Uni>),
    /// A refusal was written.
    Answered,
    /// A session is done with.
    SessionEnded(u64),
    /// Nothing follows.
    Nothing,
}

/// What a bidirectional stream is.
#[expect(
    clippy::large_enum_variant,
    reason = "one moves per request, and a box would cost an allocation each"
)]
enum Bi {
    WebTransport {
        session_id: u64,
        send: quinn::SendStream,
        reader: Reader,
    },
    Request {
        head: http::Request<()>,
        send: quinn::SendStream,
        reader: Reader,
        decoder: MessageDecoder,
    },
}

/// What a unidirectional stream is.
enum Uni {
    Control(Reader),
    QpackEncoder(Reader),
    QpackDecoder(Reader),
    WebTransport { session_id: u64, reader: Reader },
}

/// Why a stream was not decided.
enum Undecided {
    /// The peer broke a rule.
    Fault(Fault),
    /// The head is over the limit.
    HeadTooLarge,
    /// The stream ended, or the connection did: nothing to be done.
    Over,
}

impl From<Fault> for Undecided {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<quinn::ReadError> for Undecided {
    fn from(_: quinn::ReadError) -> Self {
        Self::Over
    }
}

/// The task of one connection.
struct Driver {
    shared: Arc<Shared>,
    control: quinn::SendStream,
    tasks: FuturesUnordered<Task>,
    started: Instant,
    /// Bidirectional streams that are not decided, or being refused.
    undecided_bi: usize,
    undecided_uni: usize,
    is_accepting_bi: bool,
    is_accepting_uni: bool,
    has_control: bool,
    has_encoder: bool,
    has_decoder: bool,
    /// What of the control stream is unsent: at most one GOAWAY.
    outbox: BytesMut,
}

impl Driver {
    fn new(shared: Arc<Shared>, control: quinn::SendStream, started: Instant) -> Self {
        Self {
            shared,
            control,
            tasks: FuturesUnordered::new(),
            started,
            undecided_bi: 0,
            undecided_uni: 0,
            is_accepting_bi: false,
            is_accepting_uni: false,
            has_control: false,
            has_encoder: false,
            has_decoder: false,
            outbox: BytesMut::new(),
        }
    }

    /// Works until the connection ended, then ends what is left of it.
    async fn run(mut self) {
        let shared = self.shared.clone();
        let datagrams = shared.clone();
        self.tasks
            .push(Box::pin(async move { read_datagrams(&datagrams).await }));
        let error = tokio::select! {
            error = shared.quic.closed() => error,
            fault = self.work() => {
                if let Err(fault) = fault {
                    shared.fail(fault);
                } else {
                    shared.quic.close(Code::H3_NO_ERROR.to_quic(), b"");
                }
                shared.quic.closed().await
            }
        };
        drop(self);
        let end = shared.end_or(error);
        drop(lock(&shared.new_sessions).take());
        drop(shared.incoming.close());
        let sessions = lock(&shared.routing).sessions();
        for session in sessions {
            session.end(Err(end.clone()));
            session.finished();
            lock(&shared.routing).remove(session.id);
        }
        shared.changed.notify_waiters();
    }

    /// Works until the connection is abandoned by its users.
    ///
    /// # Errors
    ///
    /// A fault that ends the connection.
    async fn work(&mut self) -> Result<(), Fault> {
        loop {
            self.accept_more();
            self.take_orders();
            let shared = self.shared.clone();
            if shared.is_abandoned.load(Ordering::Acquire) {
                drop(shared.incoming.close());
                // Their last owners closed them; the peer is being told.
                if lock(&shared.routing).len() == 0 {
                    return Ok(());
                }
            }
            let settings_deadline = match shared.settings.get() {
                None => self.started.checked_add(shared.config.settings_timeout),
                Some(_) => None,
            };
            let early_deadline = lock(&shared.routing).next_deadline();
            tokio::select! {
                () = shared.work.notified() => {}
                event = self.tasks.next(), if !self.tasks.is_empty() => {
                    if let Some(event) = event {
                        self.handle(event?)?;
                    }
                }
                written = self.control.write(&self.outbox), if !self.outbox.is_empty() => {
                    match written {
                        Ok(written) => self.outbox.advance(written.min(self.outbox.len())),
                        Err(quinn::WriteError::Stopped(_)) => return Err(CRITICAL_STREAM_CLOSED),
                        Err(_) => self.outbox.clear(), // the connection is gone
                    }
                }
                () = sleep_until(settings_deadline) => {
                    return Err(Fault::connection(
                        Code::H3_MISSING_SETTINGS,
                        "no SETTINGS in time",
                    ));
                }
                () = sleep_until(early_deadline) => {
                    let expired = lock(&shared.routing).expired(Instant::now());
                    for early in expired {
                        self.refuse_early(early)?;
                    }
                }
            }
        }
    }

    /// Keeps one accept of each kind going while there is room for undecided streams.
    fn accept_more(&mut self) {
        let max = self.shared.config.max_undecided_streams;
        if !self.is_accepting_bi && self.undecided_bi < max {
            self.is_accepting_bi = true;
            let quic = self.shared.quic.clone();
            self.tasks.push(Box::pin(async move {
                match quic.accept_bi().await {
                    Ok((send, recv)) => Ok(Event::Bi(send, recv)),
                    Err(_) => Ok(Event::Nothing), // the connection ended
                }
            }));
        }
        if !self.is_accepting_uni && self.undecided_uni < max {
            self.is_accepting_uni = true;
            let quic = self.shared.quic.clone();
            self.tasks.push(Box::pin(async move {
                match quic.accept_uni().await {
                    Ok(recv) => Ok(Event::Uni(recv)),
                    Err(_) => Ok(Event::Nothing), // the connection ended
                }
            }));
        }
    }

    /// Takes over new sessions and the wish to go away.
    fn take_orders(&mut self) {
        let new = lock(&self.shared.new_sessions).as_mut().map(std::mem::take);
        for control in new.unwrap_or_default() {
            self.run_session(control);
        }
        let wants_goaway = self.shared.wants_goaway.load(Ordering::Acquire);
        if wants_goaway && self.shared.goaway_sent.load(Ordering::Acquire) == NO_GOAWAY {
            let id = if self.shared.is_server {
                lock(&self.shared.routing).next_request()
            } else {
                0 // a push ID: none is wanted
            };
            self.shared.goaway_sent.store(id, Ordering::Release);
            let mut payload = [0; varint::MAX_LEN];
            varint::encode(id, &mut &mut payload[..]);
            let payload = payload.get(..varint::encoded_len(id)).unwrap_or_default();
            frame::encode(frame_type::GOAWAY, payload, &mut self.outbox);
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), Fault> {
        let shared = self.shared.clone();
        match event {
            Event::Bi(send, recv) => {
                self.is_accepting_bi = false;
                self.undecided_bi = self.undecided_bi.saturating_add(1);
                if shared.is_server {
                    lock(&shared.routing).taken(recv.id().into());
                }
                self.tasks.push(Box::pin(
                    async move { decide_bi(&shared, send, recv).await },
                ));
            }
            Event::Uni(recv) => {
                self.is_accepting_uni = false;
                self.undecided_uni = self.undecided_uni.saturating_add(1);
                self.tasks
                    .push(Box::pin(async move { decide_uni(&shared, recv).await }));
            }
            Event::BiDecided(id, bi) => {
                self.undecided_bi = self.undecided_bi.saturating_sub(1);
                match bi {
                    Some(Bi::Request {
                        head,
                        send,
                        reader,
                        decoder,
                    }) => self.requested(id, head, send, reader, decoder)?,
                    Some(Bi::WebTransport {
                        session_id,
                        send,
                        reader,
                    }) => {
                        self.no_session(id)?;
                        self.deliver(session_id, Some(send), reader)?;
                    }
                    None => self.no_session(id)?,
                }
            }
            Event::UniDecided(uni) => {
                self.undecided_uni = self.undecided_uni.saturating_sub(1);
                if let Some(uni) = uni {
                    self.uni(uni)?;
                }
            }
            Event::Answered => self.undecided_bi = self.undecided_bi.saturating_sub(1),
            Event::SessionEnded(id) => lock(&shared.routing).remove(id),
            Event::Nothing => {}
        }
        Ok(())
    }

    /// Refuses what waited for stream `id`, as it is no session.
    fn no_session(&mut self, id: u64) -> Result<(), Fault> {
        let waiting = lock(&self.shared.routing).decided(id);
        for early in waiting {
            self.refuse_early(early)?;
        }
        Ok(())
    }

    fn refuse_early(&self, early: EarlyStream) -> Result<(), Fault> {
        refuse(early.send, early.reader, Code::WT_BUFFERED_STREAM_REJECTED);
        self.shared.charge()
    }

    /// Gives a stream to its session, or keeps it until the session comes, or refuses it.
    fn deliver(
        &mut self,
        session_id: u64,
        send: Option<quinn::SendStream>,
        reader: Reader,
    ) -> Result<(), Fault> {
        let mut routing = lock(&self.shared.routing);
        match routing.route(session_id) {
            Route::Session(session) => {
                drop(routing);
                if !session.deliver(send, reader) {
                    self.shared.charge()?;
                }
                Ok(())
            }
            Route::Early => {
                let now = Instant::now();
                let wait = self.shared.config.head_timeout;
                let kept = routing.keep_stream(EarlyStream {
                    session_id,
                    send,
                    reader,
                    deadline: now.checked_add(wait).unwrap_or(now),
                });
                drop(routing);
                match kept {
                    Ok(()) => Ok(()),
                    Err(early) => self.refuse_early(early),
                }
            }
            Route::Gone => {
                drop(routing);
                refuse(send, reader, Code::WT_SESSION_GONE);
                self.shared.charge()
            }
        }
    }

    /// Sorts a request.
    fn requested(
        &mut self,
        id: u64,
        mut head: http::Request<()>,
        send: quinn::SendStream,
        reader: Reader,
        decoder: MessageDecoder,
    ) -> Result<(), Fault> {
        let shared = self.shared.clone();
        let is_late = id >= shared.goaway_sent.load(Ordering::Acquire);
        if is_late || shared.is_abandoned.load(Ordering::Acquire) {
            self.no_session(id)?;
            refuse(Some(send), reader, Code::H3_REQUEST_REJECTED);
            return Ok(());
        }
        let protocol = head.extensions().get::<Protocol>();
        let status = match protocol {
            Some(protocol) if protocol.is_webtransport() => {
                if lock(&shared.routing).len() < shared.config.max_sessions {
                    return self.session_requested(id, head, send, reader, decoder);
                }
                StatusCode::TOO_MANY_REQUESTS
            }
            Some(_) => StatusCode::NOT_IMPLEMENTED, // RFC 9220 §3
            None if head.method() == Method::CONNECT => StatusCode::NOT_IMPLEMENTED,
            None => {
                self.no_session(id)?;
                let Some(permit) = Permit::take(&shared.requests, shared.config.max_requests)
                else {
                    refuse(Some(send), reader, Code::H3_REQUEST_REJECTED);
                    return shared.charge();
                };
                head::join_cookies(head.headers_mut());
                let raw = Raw::Request {
                    head,
                    reader,
                    decoder,
                    send,
                    permit,
                };
                return match shared.incoming.push(raw) {
                    Ok(()) => Ok(()),
                    Err(raw) => {
                        raw.refuse();
                        shared.charge()
                    }
                };
            }
        };
        self.no_session(id)?;
        self.undecided_bi = self.undecided_bi.saturating_add(1);
        self.tasks.push(Box::pin(async move {
            answer(&shared, send, reader, status, Code::H3_NO_ERROR).await;
            shared.charge()?;
            Ok(Event::Answered)
        }));
        Ok(())
    }

    fn session_requested(
        &mut self,
        id: u64,
        head: http::Request<()>,
        send: quinn::SendStream,
        reader: Reader,
        decoder: MessageDecoder,
    ) -> Result<(), Fault> {
        let shared = self.shared.clone();
        let session = SessionShared::new(id, &shared);
        let (streams, datagrams) = lock(&shared.routing).add(&session);
        for early in streams {
            if !session.deliver(early.send, early.reader) {
                shared.charge()?;
            }
        }
        for datagram in datagrams {
            session.deliver_datagram(datagram);
        }
        let raw = Raw::Session {
            head,
            session: session.clone(),
            send,
        };
        if let Err(raw) = shared.incoming.push(raw) {
            raw.refuse();
            shared.charge()?;
        }
        self.run_session(Control::new(shared, session, reader, decoder));
        Ok(())
    }

    fn run_session(&mut self, control: Control) {
        self.tasks.push(Box::pin(async move {
            control.run().await.map(Event::SessionEnded)
        }));
    }

    /// Handles a unidirectional stream whose type is known.
    fn uni(&mut self, uni: Uni) -> Result<(), Fault> {
        let shared = self.shared.clone();
        let (seen, task): (&mut bool, Task) = match uni {
            Uni::WebTransport { session_id, reader } => {
                return self.deliver(session_id, None, reader);
            }
            Uni::Control(reader) => (
                &mut self.has_control,
                Box::pin(async move { read_control(&shared, reader).await }),
            ),
            Uni::QpackEncoder(reader) => (
                &mut self.has_encoder,
                Box::pin(async move {
                    let mut stream = EncoderStream::default();
                    read_qpack(reader, |bytes| stream.feed(bytes)).await
                }),
            ),
            Uni::QpackDecoder(reader) => (
                &mut self.has_decoder,
                Box::pin(async move {
                    let mut stream = DecoderStream::default();
                    read_qpack(reader, |bytes| stream.feed(bytes)).await
                }),
            ),
        };
        if std::mem::replace(seen, true) {
            return Err(Fault::connection(
                Code::H3_STREAM_CREATION_ERROR,
                "a second stream of a type that may be there once",
            ));
        }
        self.tasks.push(task);
        Ok(())
    }
}

impl Raw {
    /// Refuses what found no room.
    fn refuse(self) {
        match self {
            Self::Request { send, reader, .. } => {
                refuse(Some(send), reader, Code::H3_REQUEST_REJECTED);
            }
            Self::Session {
                session, mut send, ..
            } => {
                reader::reset(&mut send, Code::H3_REQUEST_REJECTED);
                session.end(Err(Error::Reset(Code::H3_REQUEST_REJECTED)));
            }
        }
    }
}

const CRITICAL_STREAM_CLOSED: Fault = Fault::connection(
    Code::H3_CLOSED_CRITICAL_STREAM,
    "a stream that must stay open was closed",
);

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Abandons both directions of a stream.
fn refuse(send: Option<quinn::SendStream>, mut reader: Reader, code: Code) {
    if let Some(mut send) = send {
        reader::reset(&mut send, code);
    }
    reader.stop(code);
}

/// Writes an answer without a body, and stops reading with `code`.
async fn answer(
    shared: &Shared,
    mut send: quinn::SendStream,
    mut reader: Reader,
    status: StatusCode,
    code: Code,
) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let mut section = BytesMut::new();
    let is_encoded = head::encode_response(&response, None, &mut section).is_ok();
    let frame = headers_frame(&section);
    let written = tokio::time::timeout(shared.config.head_timeout, send.write_all(&frame)).await;
    if is_encoded && matches!(written, Ok(Ok(()))) {
        let _ = send.finish(); // an error: the client stopped it, and has no use for the answer
    } else {
        reader::reset(&mut send, Code::H3_REQUEST_REJECTED);
    }
    reader.stop(code);
}

/// Finds out what a bidirectional stream of the peer is.
async fn decide_bi(
    shared: &Shared,
    mut send: quinn::SendStream,
    recv: quinn::RecvStream,
) -> Result<Event, Fault> {
    let id = u64::from(recv.id());
    let mut reader = Reader::new(recv);
    let wait = shared.config.head_timeout;
    let head = match tokio::time::timeout(wait, read_bi_head(shared, &mut reader)).await {
        Ok(head) => head,
        Err(_) => Err(Fault::stream(Code::H3_REQUEST_INCOMPLETE, "no head in time").into()),
    };
    match head {
        Ok(BiHead::WebTransport(session_id)) => Ok(Event::BiDecided(
            id,
            Some(Bi::WebTransport {
                session_id,
                send,
                reader,
            }),
        )),
        Ok(BiHead::Request(head, decoder)) => Ok(Event::BiDecided(
            id,
            Some(Bi::Request {
                head,
                send,
                reader,
                decoder,
            }),
        )),
        Err(Undecided::Fault(fault)) => {
            if fault.scope == Scope::Connection {
                return Err(fault);
            }
            tracing::debug!(stream = id, %fault, "refusing a stream");
            refuse(Some(send), reader, fault.code);
            shared.charge()?;
            Ok(Event::BiDecided(id, None))
        }
        Err(Undecided::HeadTooLarge) => {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            answer(shared, send, reader, status, Code::H3_EXCESSIVE_LOAD).await;
            shared.charge()?;
            Ok(Event::BiDecided(id, None))
        }
        Err(Undecided::Over) => {
            reader::reset(&mut send, Code::H3_REQUEST_CANCELLED);
            shared.charge()?;
            Ok(Event::BiDecided(id, None))
        }
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "one moves per request, and a box would cost an allocation each"
)]
enum BiHead {
    WebTransport(u64),
    Request(http::Request<()>, MessageDecoder),
}

async fn read_bi_head(shared: &Shared, reader: &mut Reader) -> Result<BiHead, Undecided> {
    const EMPTY: Fault = Fault::stream(
        Code::H3_REQUEST_INCOMPLETE,
        "the stream ends before the head of its message",
    );
    let ty = match reader.varint().await? {
        Some(ty) => ty,
        None => return Err(EMPTY.into()),
    };
    if ty == frame_type::WEBTRANSPORT_STREAM {
        return Ok(BiHead::WebTransport(read_session_id(reader).await?));
    }
    if !shared.is_server {
        return Err(Fault::connection(
            Code::H3_STREAM_CREATION_ERROR,
            "a server opened a bidirectional stream that is not WebTransport's",
        )
        .into());
    }
    let max = shared.config.max_field_section_bytes;
    let mut decoder = MessageDecoder::after_type(ty, Peer::Client, max);
    let section = loop {
        match decoder.decode(&mut reader.input) {
            Ok(Some(MessageEvent::Head(section))) => break section,
            // The decoder gives nothing else before a head.
            Ok(Some(_)) => shared.charge()?,
            Ok(None) => {
                if !reader.fill().await? {
                    decoder.finish()?;
                    return Err(EMPTY.into());
                }
            }
            Err(MessageError::Fault(fault)) => return Err(fault.into()),
            Err(MessageError::TooLarge) => return Err(Undecided::HeadTooLarge),
        }
    };
    let fields = match qpack::decode(section, shared.max_field_section()) {
        Ok(fields) => fields,
        Err(qpack::QpackError::Fault(fault)) => return Err(fault.into()),
        Err(qpack::QpackError::TooLarge) => return Err(Undecided::HeadTooLarge),
    };
    let head = head::decode_request(fields)?;
    let is_session = head
        .extensions()
        .get::<Protocol>()
        .is_some_and(Protocol::is_webtransport);
    if is_session {
        // Whether datagrams may be sent is in the client's SETTINGS, which may come later.
        let settings = shared.wait_for(|| shared.settings.get().map(|_| ())).await;
        settings.map_err(|_| Undecided::Over)?;
    }
    Ok(BiHead::Request(head, decoder))
}

/// Reads the session ID at the front of a WebTransport stream.
async fn read_session_id(reader: &mut Reader) -> Result<u64, Undecided> {
    match reader.varint().await? {
        Some(id) if id.is_multiple_of(4) => Ok(id),
        Some(_) => Err(NO_SESSION_ID.into()),
        None => Err(Fault::stream(
            Code::H3_REQUEST_INCOMPLETE,
            "the stream ends before its session ID",
        )
        .into()),
    }
}

const NO_SESSION_ID: Fault = Fault::connection(
    Code::H3_ID_ERROR,
    "a session ID that is no client-initiated bidirectional stream",
);

/// Finds out what a unidirectional stream of the peer is.
async fn decide_uni(shared: &Shared, recv: quinn::RecvStream) -> Result<Event, Fault> {
    let mut reader = Reader::new(recv);
    let wait = shared.config.head_timeout;
    let ty = match tokio::time::timeout(wait, read_uni_type(shared, &mut reader)).await {
        Ok(ty) => ty,
        Err(_) => Err(Fault::stream(Code::H3_STREAM_CREATION_ERROR, "no type in time").into()),
    };
    let uni = match ty {
        Ok((stream_type::CONTROL, _)) => Some(Uni::Control(reader)),
        Ok((stream_type::QPACK_ENCODER, _)) => Some(Uni::QpackEncoder(reader)),
        Ok((stream_type::QPACK_DECODER, _)) => Some(Uni::QpackDecoder(reader)),
        Ok((_, session_id)) => Some(Uni::WebTransport { session_id, reader }),
        Err(Undecided::Fault(fault)) if fault.scope == Scope::Connection => return Err(fault),
        Err(Undecided::Fault(fault)) => {
            reader.stop(fault.code);
            shared.charge()?;
            None
        }
        // A stream that ends before its type is known is no error: RFC 9114 §6.2.
        Err(Undecided::Over | Undecided::HeadTooLarge) => {
            shared.charge()?;
            None
        }
    };
    Ok(Event::UniDecided(uni))
}

/// The type of a unidirectional stream, and the session ID of one of WebTransport's.
async fn read_uni_type(shared: &Shared, reader: &mut Reader) -> Result<(u64, u64), Undecided> {
    let ty = reader.varint().await?.ok_or(Undecided::Over)?;
    match ty {
        stream_type::CONTROL | stream_type::QPACK_ENCODER | stream_type::QPACK_DECODER => {
            Ok((ty, 0))
        }
        stream_type::WEBTRANSPORT => Ok((ty, read_session_id(reader).await?)),
        stream_type::PUSH if shared.is_server => Err(Fault::connection(
            Code::H3_STREAM_CREATION_ERROR,
            "a client opened a push stream",
        )
        .into()),
        stream_type::PUSH => Err(Fault::connection(
            Code::H3_ID_ERROR,
            "a push stream, though no push is allowed",
        )
        .into()),
        _ => Err(Fault::stream(Code::H3_STREAM_CREATION_ERROR, "an unknown stream type").into()),
    }
}

/// Reads the peer's control stream for as long as the connection lives.
async fn read_control(shared: &Shared, mut reader: Reader) -> Result<Event, Fault> {
    let mut decoder = ControlDecoder::new(shared.peer());
    loop {
        match decoder.decode(&mut reader.input)? {
            Some(ControlEvent::Settings(settings)) => {
                let _ = shared.settings.set(settings); // the decoder gives them once
                shared.changed.notify_waiters();
            }
            Some(ControlEvent::Goaway(id)) => {
                shared.charge()?;
                shared.goaway_received.store(id, Ordering::Release);
                shared.changed.notify_waiters();
                let sessions = lock(&shared.routing).sessions();
                for session in sessions {
                    session.drained_by_peer();
                }
            }
            Some(ControlEvent::Skipped) => shared.charge()?,
            None => match reader.fill().await {
                Ok(true) => {}
                Ok(false) | Err(quinn::ReadError::Reset(_)) => return Err(CRITICAL_STREAM_CLOSED),
                Err(_) => return Ok(Event::Nothing), // the connection ended
            },
        }
    }
}

/// Reads a QPACK stream for as long as the connection lives.
async fn read_qpack(
    mut reader: Reader,
    mut feed: impl FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<Event, Fault> {
    loop {
        feed(&std::mem::take(&mut reader.input))?;
        match reader.fill().await {
            Ok(true) => {}
            Ok(false) | Err(quinn::ReadError::Reset(_)) => return Err(CRITICAL_STREAM_CLOSED),
            Err(_) => return Ok(Event::Nothing), // the connection ended
        }
    }
}

/// Sorts datagrams for as long as the connection lives.
async fn read_datagrams(shared: &Shared) -> Result<Event, Fault> {
    loop {
        tokio::task::consume_budget().await;
        let mut datagram = match shared.quic.read_datagram().await {
            Ok(datagram) => datagram,
            Err(_) => return Ok(Event::Nothing), // the connection ended
        };
        let (quarter, used) = varint::decode(&datagram).ok_or(Fault::connection(
            Code::H3_DATAGRAM_ERROR,
            "a datagram without a quarter stream ID",
        ))?;
        datagram.advance(used);
        let id = quarter
            .checked_mul(4)
            .filter(|id| *id <= varint::MAX)
            .ok_or(Fault::connection(
                Code::H3_DATAGRAM_ERROR,
                "a quarter stream ID above 2^60 - 1",
            ))?;
        let mut routing = lock(&shared.routing);
        match routing.route(id) {
            Route::Session(session) => {
                drop(routing);
                session.deliver_datagram(datagram);
            }
            Route::Early => routing.keep_datagram(id, datagram),
            Route::Gone => {}
        }
    }
}
