//! One HTTP/3 connection as its users have it, and the state they share with its task.
//! Spec: RFC 9114 §3 and §5, draft-ietf-webtrans-http3 §3.
//!
//! The work is done in `driver`.

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use http::{Method, Response};
use tokio::{sync::Notify, time::Instant};
use tracing::Instrument;

use crate::{
    Code,
    budget::Budget,
    config::Config,
    control::Peer,
    driver::Driver,
    error::Error,
    fault::{Fault, Scope},
    frame::{self, frame_type},
    head::{self, Protocol},
    message::MessageDecoder,
    protocols,
    queue::{Queue, lock},
    reader::{self, Reader},
    request::{PendingResponse, Permit, Request, SendBody},
    routing::Routing,
    session::{Control, Session, SessionRequest, SessionShared},
    settings::{self, Settings},
    varint,
};

/// Sentinel for "no GOAWAY": no stream ID is that large.
pub(crate) const NO_GOAWAY: u64 = u64::MAX;

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
    pub(crate) is_server: bool,
    pub(crate) settings: OnceLock<Settings>,
    /// What ended the connection, where QUIC does not know it.
    pub(crate) end: OnceLock<Error>,
    pub(crate) routing: Mutex<Routing>,
    pub(crate) budget: Mutex<Budget>,
    pub(crate) incoming: Queue<Raw>,
    pub(crate) requests: Arc<AtomicUsize>,
    /// Wakes those who wait for SETTINGS, GOAWAY or the end.
    pub(crate) changed: Notify,
    /// Wakes the connection's task.
    pub(crate) work: Notify,
    /// Sessions that this side asked for, until the task takes them; `None` once the task ended.
    pub(crate) new_sessions: Mutex<Option<Vec<Control>>>,
    pub(crate) is_abandoned: AtomicBool,
    pub(crate) wants_goaway: AtomicBool,
    pub(crate) goaway_sent: AtomicU64,
    pub(crate) goaway_received: AtomicU64,
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
pub(crate) enum Raw {
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
        is_early_data: bool,
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

    pub(crate) fn peer(&self) -> Peer {
        if self.is_server {
            Peer::Client
        } else {
            Peer::Server
        }
    }

    /// Ends the connection for a fault of the peer.
    pub(crate) fn fail(&self, fault: Fault) {
        tracing::debug!(%fault, "closing the connection");
        let _ = self.end.set(Error::Peer(fault)); // the first cause stays
        self.quic
            .close(fault.code.to_quic(), fault.detail.as_bytes());
        self.changed.notify_waiters();
    }

    /// Waits until `look` finds something, looking again after every change, or for the end.
    pub(crate) async fn wait_for<T>(
        &self,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, Error> {
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
        mut connecting: quinn::Connecting,
        config: Arc<Config>,
    ) -> Result<Self, Error> {
        // A post-quantum ClientHello needs two datagrams. Until the second is there, the client has not said how many streams it
        // allows, and quinn does not wake those who wait for one when it has.
        connecting.handshake_data().await?;
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
                config.max_early_datagram_bytes,
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
        let peer = shared.quic.remote_address();
        let span = tracing::debug_span!("http3", %peer, is_server);
        tokio::spawn(
            Driver::new(shared.clone(), control, now)
                .run()
                .instrument(span),
        );
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
                is_early_data,
            } => Incoming::Session(SessionRequest {
                is_early_data,
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
            .with_request(send, encoded.get(written..).unwrap_or_default(), protocols);
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

    /// Notes that the peer gave up on a message, which is useless work on a server.
    pub(crate) fn request_cancelled(&self) {
        if self.handle.shared.is_server {
            drop(self.charge()); // an error has ended the connection already
        }
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
pub(crate) fn headers_frame(section: &[u8]) -> Bytes {
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
