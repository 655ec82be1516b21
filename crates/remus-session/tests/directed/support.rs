//! Hand-written peers: frames and records put together here, byte by byte if need be, and a session that is fed with them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use remus_session::{
    Answer, CallKey, CloseReason, Event, Grant, Incoming, LANES_MAX, LaneId, Outgoing, Session,
    SessionConfig, SessionError,
};
use remus_wire::{
    Authenticated, AuthenticationRecord, Capabilities, Capability, Context, ErrorCode, ErrorRecord,
    Features, Flags, Frame, FrameBody, FrameType, Handshake, Limits, Message, MessageLimits,
    MessageType, NodeId, NodeType, Priority, Query, QueryAnswer, RequestId, ResourceRecord,
    ResumeToken, Schema, StreamId, Text, Timestamp, VersionRecord,
};

/// When every test begins, in µs since the epoch.
pub(crate) const START: u64 = 1_700_000_000_000_000;

pub(crate) const SECOND: u64 = 1_000_000;

pub(crate) const ANY: MessageLimits = MessageLimits {
    message: u32::MAX,
    context: u32::MAX,
    routing: u32::MAX,
};

/// What a hand-written peer grants: much.
pub(crate) const GENEROUS: Limits = Limits {
    max_frame: 64 * 1024,
    max_message: 4 * 1024 * 1024,
    max_streams: 64,
    max_calls: 1024,
    stream_window: 1 << 30,
    session_window: 1 << 30,
};

// Frames.

pub(crate) fn frame(stream: u16, body: FrameBody) -> Vec<u8> {
    let mut out = Vec::new();
    Frame {
        stream: StreamId(stream),
        body,
    }
    .encode(&mut out);
    out
}

/// A frame of any type, payload and stated length.
pub(crate) fn raw_frame(stream: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(payload);
    out
}

pub(crate) fn bytes_of(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    message.encode(&mut out);
    out.freeze()
}

/// A message in one frame.
pub(crate) fn whole(stream: u16, message: &Message) -> Vec<u8> {
    frame(stream, FrameBody::Message(bytes_of(message)))
}

/// A message in parts of at most `size` bytes.
pub(crate) fn parts(stream: u16, message: &Message, size: usize) -> Vec<Vec<u8>> {
    let bytes = bytes_of(message);
    let count = bytes.len().div_ceil(size);
    (0..count)
        .map(|n| {
            let part = bytes.slice(n * size..bytes.len().min((n + 1) * size));
            if n + 1 < count {
                frame(stream, FrameBody::Part(part))
            } else {
                frame(stream, FrameBody::Last(part))
            }
        })
        .collect()
}

pub(crate) fn credit(stream: u16, limit: u64) -> Vec<u8> {
    frame(stream, FrameBody::Credit { limit })
}

pub(crate) fn reset(stream: u16, code: ErrorCode) -> Vec<u8> {
    frame(stream, FrameBody::Reset(code))
}

pub(crate) fn stop(stream: u16, code: ErrorCode) -> Vec<u8> {
    frame(stream, FrameBody::Stop(code))
}

// Messages.

pub(crate) fn message(kind: MessageType, id: u32, payload: impl Into<Bytes>) -> Message {
    Message {
        request_id: RequestId(id),
        timestamp: Timestamp(START),
        ..Message::new(kind, payload.into())
    }
}

pub(crate) fn flagged(
    kind: MessageType,
    id: u32,
    flags: Flags,
    payload: impl Into<Bytes>,
) -> Message {
    Message {
        flags,
        ..message(kind, id, payload)
    }
}

/// A whole request on a shared stream.
pub(crate) fn request(id: u32) -> Message {
    message(MessageType::REQUEST, id, Bytes::from_static(b"ask"))
}

/// A request that elements follow.
pub(crate) fn open_request(id: u32) -> Message {
    message(MessageType::REQUEST, id, Bytes::new())
}

/// A request that nothing follows, for a stream of its own.
pub(crate) fn closed_request(id: u32) -> Message {
    flagged(
        MessageType::REQUEST,
        id,
        Flags::STREAM_END,
        Bytes::from_static(b"ask"),
    )
}

pub(crate) fn element(id: u32, payload: impl Into<Bytes>) -> Message {
    message(MessageType::STREAM, id, payload)
}

pub(crate) fn stream_end(id: u32) -> Message {
    flagged(MessageType::STREAM_END, id, Flags::STREAM_END, Bytes::new())
}

pub(crate) fn response(id: u32, payload: impl Into<Bytes>) -> Message {
    message(MessageType::RESPONSE, id, payload)
}

pub(crate) fn error(id: u32, code: ErrorCode) -> Message {
    let mut payload = BytesMut::new();
    ErrorRecord::new(code, "hand-written").encode(&mut payload);
    message(MessageType::ERROR, id, payload.freeze())
}

// Control records, each in its frame.

pub(crate) fn control(kind: MessageType, id: u32, encode: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut payload = BytesMut::new();
    encode(&mut payload);
    whole(0, &message(kind, id, payload.freeze()))
}

pub(crate) fn handshake(step: &Handshake) -> Vec<u8> {
    control(MessageType::HANDSHAKE, 0, |out| step.encode(out))
}

pub(crate) fn all_features() -> Features {
    Features::DATAGRAMS | Features::PUB_SUB | Features::BATCH | Features::LANES
}

pub(crate) fn offer() -> Vec<u8> {
    handshake(&Handshake::Offer(VersionRecord::new(all_features())))
}

pub(crate) fn accept() -> Vec<u8> {
    handshake(&Handshake::Accept(VersionRecord::new(all_features())))
}

pub(crate) fn capability(limits: Limits) -> Vec<u8> {
    let record = Capability {
        node: NodeId(9),
        node_type: NodeType::CLIENT,
        capabilities: Capabilities::default(),
        limits,
        resources: ResourceRecord::default(),
    };
    control(MessageType::CAPABILITY, 0, |out| record.encode(out))
}

pub(crate) fn authenticate() -> Vec<u8> {
    handshake(&Handshake::Authenticate(AuthenticationRecord::default()))
}

pub(crate) fn authenticated() -> Vec<u8> {
    handshake(&Handshake::Authenticated(Authenticated {
        session: 1,
        token: ResumeToken([0; 32]),
        expires: Timestamp::ZERO,
        claims: Text::new(),
    }))
}

pub(crate) fn query(id: u32) -> Vec<u8> {
    control(MessageType::QUERY, id, |out| Query::default().encode(out))
}

pub(crate) fn query_answer(id: u32) -> Vec<u8> {
    control(MessageType::RESPONSE, id, |out| {
        QueryAnswer::default().encode(out);
    })
}

pub(crate) fn schema(step: &Schema) -> Vec<u8> {
    control(MessageType::SCHEMA, 0, |out| step.encode(out))
}

pub(crate) fn schema_offer() -> Vec<u8> {
    schema(&Schema::Offer(Vec::new()))
}

pub(crate) fn schema_want() -> Vec<u8> {
    schema(&Schema::Want(Vec::new()))
}

/// An acceptor whose windows are no concern of the test.
pub(crate) fn wide_windows() -> SessionConfig {
    let mut config = SessionConfig::acceptor();
    config.limits.stream_window = 4 << 20;
    config.limits.session_window = 16 << 20;
    config
}

/// What a client sends until it is active, in order.
pub(crate) fn first_flight(limits: Limits) -> Vec<Vec<u8>> {
    vec![
        offer(),
        capability(limits),
        authenticate(),
        query(1),
        schema_offer(),
    ]
}

/// What an acceptor answers, in order.
pub(crate) fn first_answers(limits: Limits) -> Vec<Vec<u8>> {
    vec![
        accept(),
        capability(limits),
        authenticated(),
        query_answer(1),
        schema_want(),
    ]
}

/// A session with what it told and sent, and an application that lets everybody in.
pub(crate) struct Rig {
    pub(crate) session: Session,
    pub(crate) now: u64,
    pub(crate) events: VecDeque<Event>,
    pub(crate) grant: Option<Grant>,
    pub(crate) answers_queries: bool,
    unread: HashMap<u16, BytesMut>,
    pending: HashMap<u16, Bytes>,
}

impl Rig {
    pub(crate) fn new(session: Session) -> Self {
        Self {
            session,
            now: START,
            events: VecDeque::new(),
            grant: Some(Grant {
                session: 1,
                authenticated: true,
                ..Grant::default()
            }),
            answers_queries: true,
            unread: HashMap::new(),
            pending: HashMap::new(),
        }
    }

    /// An acceptor that has heard nothing yet.
    pub(crate) fn fresh_acceptor(config: SessionConfig) -> Self {
        Self::new(Session::acceptor(config, Timestamp(START)).unwrap())
    }

    /// A client whose first flight nobody has answered.
    pub(crate) fn fresh_client(config: SessionConfig) -> Self {
        Self::new(Session::client(config, Timestamp(START)).unwrap())
    }

    /// An active acceptor whose peer is hand-written.
    pub(crate) fn acceptor() -> Self {
        Self::acceptor_with(SessionConfig::acceptor(), GENEROUS)
    }

    pub(crate) fn acceptor_with(config: SessionConfig, peer: Limits) -> Self {
        let mut rig = Self::fresh_acceptor(config);
        for record in first_flight(peer) {
            rig.feed(&record).unwrap();
        }
        rig.start()
    }

    /// An active client whose peer is hand-written.
    pub(crate) fn client() -> Self {
        Self::client_with(SessionConfig::client(), GENEROUS)
    }

    pub(crate) fn client_with(config: SessionConfig, peer: Limits) -> Self {
        let mut rig = Self::fresh_client(config);
        for record in first_answers(peer) {
            rig.feed(&record).unwrap();
        }
        rig.start()
    }

    fn start(mut self) -> Self {
        assert_eq!(self.session.state(), remus_session::State::Active);
        self.sent();
        self.events.clear();
        self
    }

    pub(crate) fn at(&self) -> Timestamp {
        Timestamp(self.now)
    }

    /// Hands in bytes on lane 0, and does what the session asks for.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.feed_on(0, bytes)
    }

    pub(crate) fn feed_on(&mut self, lane: u16, bytes: &[u8]) -> Result<(), SessionError> {
        let pending = self.pending.remove(&lane).unwrap_or_default();
        let mut input = Bytes::from([&pending[..], bytes].concat());
        loop {
            let result = self
                .session
                .handle_input(Timestamp(self.now), LaneId(lane), &mut input);
            self.take_events();
            result?;
            self.session.check().unwrap();
            if input.is_empty() || !self.session.wants_input() {
                break;
            }
        }
        if !input.is_empty() {
            self.pending.insert(lane, input);
        }
        Ok(())
    }

    /// What the session took no notice of yet.
    pub(crate) fn resume(&mut self) -> Result<(), SessionError> {
        self.feed(&[])
    }

    pub(crate) fn take_events(&mut self) {
        let now = Timestamp(self.now);
        while let Some(event) = self.session.poll_event(now) {
            match event {
                Event::Authenticate(record) => match self.grant.clone() {
                    Some(grant) => self.session.grant(now, grant),
                    None => self.events.push_back(Event::Authenticate(record)),
                },
                Event::Query(id, _) if self.answers_queries => {
                    self.session.answer_query(now, id, &QueryAnswer::default());
                }
                event => self.events.push_back(event),
            }
        }
    }

    /// Lets time pass, and the session do what becomes due.
    pub(crate) fn wait(&mut self, micros: u64) {
        self.now += micros;
        self.session.handle_timeout(Timestamp(self.now));
        self.take_events();
        self.session.check().unwrap();
    }

    /// The frames that leave now, with their lanes.
    pub(crate) fn sent(&mut self) -> Vec<(u16, Frame)> {
        let mut frames = Vec::new();
        let mut out = VecDeque::new();
        for lane in 0..LANES_MAX {
            while self.session.poll_transmit(LaneId(lane), &mut out) {
                let unread = self.unread.entry(lane).or_default();
                for chunk in out.drain(..) {
                    unread.extend_from_slice(&chunk);
                }
            }
            let unread = self.unread.entry(lane).or_default();
            while let Some(frame) = Frame::decode(unread, u32::MAX).unwrap() {
                frames.push((lane, frame));
            }
            assert!(unread.is_empty(), "a session sends whole frames");
        }
        self.take_events();
        self.session.check().unwrap();
        frames
    }

    /// The messages that leave now, put together from their parts, with their streams.
    pub(crate) fn sent_messages(&mut self) -> Vec<(u16, Message)> {
        let mut half: HashMap<u16, Vec<u8>> = HashMap::new();
        let mut messages = Vec::new();
        for (_, frame) in self.sent() {
            let (bytes, last) = match frame.body {
                FrameBody::Message(bytes) | FrameBody::Last(bytes) => (bytes, true),
                FrameBody::Part(bytes) => (bytes, false),
                _ => continue,
            };
            let so_far = half.entry(frame.stream.0).or_default();
            so_far.extend_from_slice(&bytes);
            if last {
                let whole = Bytes::from(std::mem::take(so_far));
                messages.push((frame.stream.0, Message::decode(whole, &ANY).unwrap()));
            }
        }
        assert!(half.values().all(Vec::is_empty), "messages end");
        messages
    }

    /// The Errors that leave now, by stream and request ID.
    pub(crate) fn sent_errors(&mut self) -> Vec<(u16, u32, ErrorCode)> {
        self.sent_messages()
            .into_iter()
            .filter(|(_, message)| message.kind == MessageType::ERROR)
            .map(|(stream, message)| {
                let record = ErrorRecord::decode(message.payload).unwrap();
                (stream, message.request_id.0, record.code)
            })
            .collect()
    }

    /// The next request that was handed out.
    pub(crate) fn incoming(&mut self) -> Incoming {
        let at = self
            .events
            .iter()
            .position(|event| matches!(event, Event::Request(_)));
        match at.and_then(|at| self.events.remove(at)) {
            Some(Event::Request(incoming)) => incoming,
            _ => panic!("no request was handed out: {:?}", self.events),
        }
    }

    /// The answer to a call of this session's.
    pub(crate) fn answer(&mut self, call: CallKey) -> Option<Result<Message, ErrorRecord>> {
        let at = self
            .events
            .iter()
            .position(|event| matches!(event, Event::Answer(key, _) if *key == call))?;
        match self.events.remove(at) {
            Some(Event::Answer(_, result)) => Some(result),
            _ => None,
        }
    }

    /// The code with which a call of this session's failed.
    pub(crate) fn failure(&mut self, call: CallKey) -> Option<ErrorCode> {
        self.answer(call)?.err().map(|error| error.code)
    }

    /// The code with which a call of the peer's was cancelled.
    pub(crate) fn cancelled(&mut self, call: CallKey) -> Option<ErrorCode> {
        self.events.iter().find_map(|event| match event {
            Event::Cancelled(key, code) if *key == call => Some(*code),
            _ => None,
        })
    }

    pub(crate) fn closed(&self) -> Option<&CloseReason> {
        self.events.iter().find_map(|event| match event {
            Event::Closed(reason) => Some(reason),
            _ => None,
        })
    }

    pub(crate) fn respond(&mut self, call: CallKey, payload: impl Into<Bytes>) {
        let reply = Answer::Reply {
            payload: payload.into(),
            context: Context::new(),
            flags: Flags::NONE,
        };
        self.session.respond(Timestamp(self.now), call, reply);
    }
}

/// What a broken rule ended a session with. The session says the same by its result, its event and its state.
#[track_caller]
pub(crate) fn fault(rig: &mut Rig, bytes: &[u8]) -> ErrorCode {
    fault_on(rig, 0, bytes)
}

#[track_caller]
pub(crate) fn fault_on(rig: &mut Rig, lane: u16, bytes: &[u8]) -> ErrorCode {
    let error = rig.feed_on(lane, bytes).expect_err("this breaks a rule");
    let closed = rig.closed().expect("the application is told");
    assert_eq!(closed.code, error.code());
    assert!(!closed.by_peer && !closed.reason.is_empty());
    assert!(rig.session.state().is_closed() && !rig.session.wants_input());
    error.code()
}

pub(crate) fn outgoing(payload: impl Into<Bytes>) -> Outgoing {
    Outgoing {
        payload: payload.into(),
        ..Outgoing::default()
    }
}

pub(crate) fn within(millis: u64) -> Outgoing {
    Outgoing {
        timeout: Some(Duration::from_millis(millis)),
        ..outgoing(Bytes::from_static(b"ask"))
    }
}

pub(crate) fn of_class(class: u8, payload: impl Into<Bytes>) -> Outgoing {
    Outgoing {
        priority: Priority::new(class, 0),
        ..outgoing(payload)
    }
}

/// Frames of a type on a stream among what was sent.
pub(crate) fn count(frames: &[(u16, Frame)], stream: u16, kind: FrameType) -> usize {
    frames
        .iter()
        .filter(|(_, frame)| frame.stream.0 == stream && frame.body.kind() == kind)
        .count()
}

/// The code of the first RESET or STOP on a stream.
pub(crate) fn code_of(frames: &[(u16, Frame)], stream: u16, kind: FrameType) -> Option<ErrorCode> {
    frames
        .iter()
        .filter(|(_, frame)| frame.stream.0 == stream && frame.body.kind() == kind)
        .find_map(|(_, frame)| match frame.body {
            FrameBody::Reset(code) | FrameBody::Stop(code) => Some(code),
            _ => None,
        })
}

/// Two real sessions, and everything that one sends is handed to the other.
pub(crate) struct Duo {
    pub(crate) client: Rig,
    pub(crate) acceptor: Rig,
}

impl Duo {
    pub(crate) fn new(client: SessionConfig, acceptor: SessionConfig) -> Self {
        let mut duo = Self {
            client: Rig::fresh_client(client),
            acceptor: Rig::fresh_acceptor(acceptor),
        };
        duo.exchange();
        assert_eq!(duo.client.session.state(), remus_session::State::Active);
        assert_eq!(duo.acceptor.session.state(), remus_session::State::Active);
        duo.client.events.clear();
        duo.acceptor.events.clear();
        duo
    }

    pub(crate) fn exchange(&mut self) {
        loop {
            let there = pour(&mut self.client, &mut self.acceptor);
            let back = pour(&mut self.acceptor, &mut self.client);
            if !there && !back {
                return;
            }
        }
    }

    pub(crate) fn wait(&mut self, micros: u64) {
        self.client.wait(micros);
        self.acceptor.wait(micros);
    }
}

/// True when something moved.
pub(crate) fn pour(from: &mut Rig, to: &mut Rig) -> bool {
    let frames = from.sent();
    for (lane, frame) in &frames {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        to.feed_on(*lane, &bytes).unwrap();
    }
    !frames.is_empty()
}
