//! The task of one connection: control streams, and the sorting of what arrives.
//! Spec: RFC 9114 §6 and §7, draft-ietf-webtrans-http3 §4.
//!
//! It owns everything that no application took over: streams whose type is not known yet, control
//! streams, the CONNECT streams of sessions. It ends with the connection, and ends every session then.
//! Invariant: what it has in hand is bounded by the configuration and by the number of sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use bytes::{Buf, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{Method, Response, StatusCode};
use tokio::time::Instant;

use crate::{
    Code,
    connection::{NO_GOAWAY, Raw, Shared, headers_frame},
    control::{ControlDecoder, ControlEvent, Peer},
    error::Error,
    fault::{Fault, Scope},
    frame::{self, frame_type, stream_type},
    head::{self, Protocol},
    message::{MessageDecoder, MessageError, MessageEvent},
    qpack::{self, DecoderStream, EncoderStream},
    queue::lock,
    reader::{self, Reader},
    request::Permit,
    routing::{EarlyStream, Route},
    session::{Control, SessionShared},
    varint,
};

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

/// A bidirectional stream of a session's.
struct Held {
    session_id: u64,
    send: quinn::SendStream,
    reader: Reader,
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
pub(crate) struct Driver {
    shared: Arc<Shared>,
    control: quinn::SendStream,
    tasks: FuturesUnordered<Task>,
    started: Instant,
    /// Bidirectional streams that are not decided, or being refused.
    undecided_bi: usize,
    /// Bidirectional streams of the peer's of which it is not known what they are.
    deciding: BTreeSet<u64>,
    /// Streams of sessions that overtook one of those: a session gets them in the order in which they were opened.
    held: BTreeMap<u64, Held>,
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
    pub(crate) fn new(shared: Arc<Shared>, control: quinn::SendStream, started: Instant) -> Self {
        Self {
            shared,
            control,
            tasks: FuturesUnordered::new(),
            started,
            undecided_bi: 0,
            deciding: BTreeSet::new(),
            held: BTreeMap::new(),
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
    pub(crate) async fn run(mut self) {
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
                for raw in shared.incoming.close() {
                    raw.refuse();
                }
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
        let waiting = self.undecided_bi.saturating_add(self.held.len());
        if !self.is_accepting_bi && waiting < max {
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
                self.deciding.insert(recv.id().into());
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
                self.deciding.remove(&id);
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
                        let held = Held {
                            session_id,
                            send,
                            reader,
                        };
                        self.held.insert(id, held);
                    }
                    None => self.no_session(id)?,
                }
                self.deliver_held()?;
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

    /// Gives sessions the streams that nothing opened before them can precede any more.
    ///
    /// One whose session is not there yet goes to where such streams wait, within the limits that hold there.
    fn deliver_held(&mut self) -> Result<(), Fault> {
        let first_undecided = self.deciding.first().copied().unwrap_or(u64::MAX);
        let mut overtook = BTreeMap::new();
        while let Some((id, held)) = self.held.pop_first() {
            let is_early = !matches!(
                lock(&self.shared.routing).route(held.session_id),
                Route::Session(_)
            );
            if id < first_undecided || is_early {
                self.deliver(held.session_id, Some(held.send), held.reader)?;
            } else {
                overtook.insert(id, held);
            }
        }
        self.held = overtook;
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
            // No fault: what was on its way when a session ended comes here.
            Route::Gone => {
                drop(routing);
                refuse(send, reader, Code::WT_SESSION_GONE);
                Ok(())
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
            is_early_data: reader.recv.is_0rtt(),
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
