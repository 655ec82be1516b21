//! One session whose peer sends whatever it likes. Spec: core.
//!
//! Where `session` has two honest sessions over a bad carrier, here the peer lies: frames out of turn, messages that no
//! session would make, credit that was never due. The session may end itself for it; until then every invariant holds, what
//! it holds stays within its limits, and what it sends is well-formed.

use std::{collections::VecDeque, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use remus_session::{
    Answer, CallKey, CarrierInfo, Event, Grant, LANES_MAX, LaneId, Outgoing, ResumeRequest,
    Session, SessionConfig, Shape, Side,
};
use remus_wire::{
    AuthenticationRecord, Batch, Capability, Context, ErrorCode, ErrorRecord, Features, Flags,
    Frame, FrameBody, Handshake, Heartbeat, LaneOffset, MAX_FRAME, Message, MessageLimits,
    MessageType, QueryAnswer, RequestId, ServiceId, StreamEnd, StreamId, Timestamp, VersionRecord,
};

/// Where the clock starts, in µs: what matters is that it is not 0.
const START: u64 = 1_700_000_000_000_000;

/// Most operations of one input: what goes wrong needs few, and more only slow the search down.
const MAX_OPERATIONS: usize = 400;

/// Most keys of calls that the application remembers.
const MAX_KEYS: usize = 16;

/// Most deadlines of one input: those of ended calls are kept until there are more, and then cleared out.
const MAX_DEADLINES: u32 = 64;

/// Limits of what comes out: nothing but the shape is checked.
const ANY: MessageLimits = MessageLimits {
    message: u32::MAX,
    context: u32::MAX,
    routing: u32::MAX,
};

/// The operations that the bytes spell; 0 where they have ended.
struct Script<'d>(&'d [u8]);

impl<'d> Script<'d> {
    fn u8(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    /// As many bytes as the next one says, or as are left.
    fn bytes(&mut self) -> &'d [u8] {
        let len = usize::from(self.u8()).min(self.0.len());
        let (bytes, rest) = self.0.split_at_checked(len).unwrap_or_default();
        self.0 = rest;
        bytes
    }

    /// Mostly one of the first streams, so that operations meet.
    fn stream(&mut self) -> StreamId {
        match self.u8() {
            255 => StreamId(self.u16()),
            id => StreamId(u16::from(id % 12)),
        }
    }

    fn lane(&mut self) -> LaneId {
        LaneId(u16::from(self.u8() % 3))
    }
}

/// The session, its application, and what the peer would read.
struct Target<'d> {
    script: Script<'d>,
    session: Session,
    now: u64,
    /// The peer's request IDs, growing.
    next_request: u32,
    keys: VecDeque<CallKey>,
    deadlines: u32,
    queries: Vec<RequestId>,
    is_closed: bool,
    max_answer_bytes: usize,
    max_assembly_bytes: usize,
    max_retained_bytes: usize,
}

/// A session under a peer that does as the bytes say.
pub fn session_input(data: &[u8]) {
    let mut script = Script(data);
    let choices = script.u8();
    let is_client = choices & 1 != 0;
    let mut config = if is_client {
        SessionConfig::client()
    } else {
        SessionConfig::acceptor()
    };
    if choices & 2 != 0 {
        // The lowest that is allowed, so that few operations reach them.
        config.limits = remus_session::INITIAL_LIMITS;
        config.limits.max_streams = 2;
        config.max_queued_bytes = 64 << 10;
        config.max_stream_queued_bytes = 1 << 10;
        config.max_answer_bytes = 64 << 10;
        config.max_assembly_bytes = 64 << 10;
    }
    if choices & 16 != 0 {
        config = config.with_resumption(true);
        config.max_retained_bytes = 256 << 10;
    }
    let max_retained_bytes = config.max_retained_bytes;
    let (max_answer_bytes, max_assembly_bytes) =
        (config.max_answer_bytes, config.max_assembly_bytes);
    let limits = config.limits;
    let at = Timestamp(START);
    let session = if is_client {
        Session::client(config, at)
    } else {
        Session::acceptor(config, at)
    };
    let Ok(mut session) = session else {
        unreachable!("the configuration is in its ranges")
    };
    session.set_datagrams(choices & 4 != 0);
    let mut target = Target {
        script,
        session,
        now: START,
        next_request: 1,
        keys: VecDeque::new(),
        deadlines: 0,
        queries: Vec::new(),
        is_closed: false,
        max_answer_bytes,
        max_assembly_bytes,
        max_retained_bytes,
    };
    if choices & 8 == 0 {
        target.open(is_client, limits);
    }
    for _ in 0..MAX_OPERATIONS {
        if target.script.0.is_empty() {
            break;
        }
        target.operate();
        target.check();
    }
    target.end();
}

impl Target<'_> {
    fn at(&self) -> Timestamp {
        Timestamp(self.now)
    }

    /// What an honest peer sends first, so that the bytes need not spell it.
    fn open(&mut self, is_client: bool, limits: remus_wire::Limits) {
        let all = Features(u32::MAX);
        let capability = Capability {
            node: remus_wire::NodeId(1),
            node_type: remus_wire::NodeType::SERVICE,
            capabilities: remus_wire::Capabilities::NONE,
            limits,
            resources: remus_wire::ResourceRecord::default(),
        };
        let mut record = Vec::new();
        capability.encode(&mut record);
        if is_client {
            self.handshake(&Handshake::Accept(VersionRecord::new(all)));
            self.message(MessageType::CAPABILITY, 0, &record);
            self.handshake(&Handshake::Authenticated(remus_wire::Authenticated {
                session: 1,
                token: remus_wire::ResumeToken([7; 32]),
                expires: Timestamp::ZERO,
                claims: remus_wire::Text::new(),
            }));
            let mut answer = Vec::new();
            QueryAnswer::default().encode(&mut answer);
            // The client numbers its query like any call; all that it can have are tried.
            let ids = self.sent_queries();
            for id in ids {
                self.message(MessageType::RESPONSE, id.0, &answer);
            }
            let mut offer = Vec::new();
            remus_wire::Schema::Offer(Vec::new()).encode(&mut offer);
            self.message(MessageType::SCHEMA, 0, &offer);
        } else {
            self.handshake(&Handshake::Offer(VersionRecord::new(all)));
            self.message(MessageType::CAPABILITY, 0, &record);
            self.handshake(&Handshake::Authenticate(AuthenticationRecord::default()));
            self.events(0);
            let mut query = Vec::new();
            remus_wire::Query::default().encode(&mut query);
            self.message(MessageType::QUERY, 1, &query);
            self.next_request = 2;
            self.events(0);
            let mut offer = Vec::new();
            remus_wire::Schema::Offer(Vec::new()).encode(&mut offer);
            self.message(MessageType::SCHEMA, 0, &offer);
        }
        self.events(0);
        self.check();
    }

    fn handshake(&mut self, step: &Handshake) {
        let mut payload = Vec::new();
        step.encode(&mut payload);
        self.message(MessageType::HANDSHAKE, 0, &payload);
    }

    /// A control message of the peer.
    fn message(&mut self, kind: MessageType, request: u32, payload: &[u8]) {
        let mut message = Message::new(kind, Bytes::copy_from_slice(payload));
        message.request_id = RequestId(request);
        message.timestamp = self.at();
        self.frame(StreamId::CONTROL, message_body(&message), LaneId::ZERO);
    }

    fn frame(&mut self, stream: StreamId, body: FrameBody, lane: LaneId) {
        let mut bytes = BytesMut::new();
        Frame { stream, body }.encode(&mut bytes);
        self.input(bytes.freeze(), lane);
    }

    fn input(&mut self, mut bytes: Bytes, lane: LaneId) {
        for _ in 0..2 {
            let wanted = self.session.wants_input();
            let before = bytes.len();
            let result = self.session.handle_input(self.at(), lane, &mut bytes);
            if let Err(error) = result {
                assert!(
                    self.session.state().is_closed(),
                    "failed and goes on: {error}"
                );
                assert!(error.code() != ErrorCode::OK, "{error}: no code");
            }
            if bytes.is_empty() {
                return;
            }
            assert!(wanted || bytes.len() == before || self.session.state().is_closed());
            // What it waits for comes from the application; what is left then is lost, as a bad carrier might.
            self.events(0);
        }
    }

    fn operate(&mut self) {
        match self.script.u8() % 16 {
            0..4 => {
                let (stream, lane) = (self.script.stream(), self.script.lane());
                let message = self.hostile_message();
                self.frame(stream, message_body(&message), lane);
            }
            4 => {
                let (stream, lane) = (self.script.stream(), self.script.lane());
                let body = self.hostile_body();
                self.frame(stream, body, lane);
            }
            5 => self.parts(),
            6 => {
                let lane = self.script.lane();
                let bytes = Bytes::copy_from_slice(self.script.bytes());
                self.input(bytes, lane);
            }
            7 => {
                let message = self.control_message();
                self.frame(StreamId::CONTROL, message_body(&message), LaneId::ZERO);
            }
            8 | 9 => {
                let choice = self.script.u8();
                self.events(choice);
            }
            10 => self.transmit(),
            11 => self.let_time_pass(),
            12 => self.call(),
            13 | 14 => self.use_call(),
            _ => self.rarely(),
        }
    }

    /// A message that is well-formed, and otherwise as the bytes say.
    fn hostile_message(&mut self) -> Message {
        let kind = match self.script.u8() % 8 {
            0 | 1 => MessageType::REQUEST,
            2 => MessageType::RESPONSE,
            3 => MessageType::STREAM,
            4 => MessageType::STREAM_END,
            5 => MessageType::ERROR,
            _ => MessageType(self.script.u8().max(1)),
        };
        let mut message = Message::new(kind, self.payload(kind));
        message.flags = Flags(self.script.u16());
        message.request_id = match self.script.u8() {
            0 => RequestId::NONE,
            255 => RequestId(self.script.u32()),
            1..128 => {
                let next = self.next_request;
                self.next_request = next.wrapping_add(1);
                RequestId(next)
            }
            low => RequestId(u32::from(low % 16)),
        };
        message.timestamp = Timestamp(match self.script.u8() {
            0 => 0,
            255 => u64::MAX,
            ahead => self.now.wrapping_add(u64::from(ahead) << 20),
        });
        message.priority = remus_wire::Priority(u16::from(self.script.u8()) << 8);
        let ttl = self.script.u8();
        if ttl & 1 != 0 && self.may_have_deadline() {
            message.ttl = remus_wire::Ttl(u16::from(ttl) << 8 | 1);
        }
        message.routing.service = ServiceId(1);
        message
    }

    /// Of the shape that the type asks for, or of any.
    fn payload(&mut self, kind: MessageType) -> Bytes {
        let shape = self.script.u8();
        let mut out = Vec::new();
        match shape % 6 {
            0 => out.put_bytes(0x5a, usize::from(shape) << 7),
            1 if kind == MessageType::REQUEST || kind == MessageType::RESPONSE => {
                let mut batch = Batch::default();
                for number in 0..shape % 5 {
                    let mut message = Message::new(
                        MessageType(kind.0 + shape % 3),
                        Bytes::copy_from_slice(self.script.bytes()),
                    );
                    message.request_id = RequestId(u32::from(number) + u32::from(shape % 2));
                    batch.messages.push(message);
                }
                batch.encode(&mut out);
            }
            2 if kind == MessageType::ERROR || kind == MessageType::STREAM_END => {
                let code = ErrorCode(u32::from(self.script.u16()).max(1));
                let error = Some(ErrorRecord::new(code, "no"));
                StreamEnd { error }.encode(&mut out);
            }
            3 => {}
            _ => out.put_slice(self.script.bytes()),
        }
        out.into()
    }

    fn control_message(&mut self) -> Message {
        let (kind, payload) = (self.script.u8(), self.script.bytes());
        let mut out = Vec::new();
        let kind = match kind % 8 {
            0 => {
                let heartbeat = Heartbeat {
                    origin: Timestamp(self.now),
                    received: Timestamp(u64::from(self.script.u8())),
                    load: remus_wire::Load(0),
                };
                heartbeat.encode(&mut out);
                MessageType::HEARTBEAT
            }
            1 => {
                let shutdown = remus_wire::Shutdown {
                    code: ErrorCode(self.script.u8().into()),
                    grace: Duration::from_millis(self.script.u32().into()),
                    last_request: RequestId(self.script.u8().into()),
                    ..remus_wire::Shutdown::default()
                };
                shutdown.encode(&mut out);
                MessageType::SHUTDOWN
            }
            2 => {
                out.put_slice(payload);
                MessageType::CAPABILITY
            }
            3 => {
                out.put_slice(payload);
                MessageType::QUERY
            }
            4 => {
                out.put_slice(payload);
                MessageType::SCHEMA
            }
            5 => {
                let record = AuthenticationRecord {
                    token: Bytes::copy_from_slice(payload),
                    ..AuthenticationRecord::default()
                };
                Handshake::Authenticate(record).encode(&mut out);
                MessageType::HANDSHAKE
            }
            _ => {
                out.put_slice(payload);
                MessageType::HANDSHAKE
            }
        };
        let mut message = Message::new(kind, out.into());
        message.timestamp = self.at();
        message.request_id = RequestId(self.script.u8().into());
        message
    }

    fn hostile_body(&mut self) -> FrameBody {
        match self.script.u8() % 8 {
            0 => FrameBody::Ack {
                lane: u16::from(self.script.u8() % 20),
                offset: u64::from(self.script.u16()),
            },
            1 => FrameBody::Credit {
                limit: match self.script.u8() {
                    0 => u64::MAX,
                    high => u64::from(high) << 12,
                },
            },
            2 => FrameBody::Reset(ErrorCode(self.script.u8().into())),
            3 => FrameBody::Stop(ErrorCode(self.script.u8().into())),
            4 => FrameBody::Part(Bytes::copy_from_slice(self.script.bytes())),
            5 => FrameBody::Last(Bytes::copy_from_slice(self.script.bytes())),
            6 => FrameBody::Reference {
                region: self.script.u8().into(),
                offset: 0,
                len: self.script.u32(),
            },
            _ => FrameBody::Message(Bytes::copy_from_slice(self.script.bytes())),
        }
    }

    /// A message in parts, which may lie about its length, or never end.
    fn parts(&mut self) {
        let (stream, lane) = (self.script.stream(), self.script.lane());
        let message = self.hostile_message();
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        let mut bytes = bytes.freeze();
        let lie = self.script.u8();
        if lie == 1 {
            let mut other = BytesMut::from(&bytes[..]);
            if let Some(length) = other.first_chunk_mut() {
                *length = self.script.u32().to_be_bytes();
            }
            bytes = other.freeze();
        }
        while !bytes.is_empty() && !self.session.state().is_closed() {
            let len = usize::from(self.script.u8())
                .saturating_mul(64)
                .clamp(1, bytes.len());
            let part = bytes.split_to(len);
            if bytes.is_empty() && lie != 2 {
                self.frame(stream, FrameBody::Last(part), lane);
            } else {
                self.frame(stream, FrameBody::Part(part), lane);
            }
        }
    }

    /// Takes what happened, and does with it as `choice` says.
    fn events(&mut self, choice: u8) {
        while let Some(event) = self.session.poll_event(self.at()) {
            assert!(!self.is_closed, "after the end: {event:?}");
            let at = self.at();
            match event {
                Event::Authenticate(_) => match choice % 8 {
                    1 => self
                        .session
                        .refuse(at, ErrorRecord::new(ErrorCode::UNAUTHENTICATED, "no")),
                    2 => self.session.challenge(at, Bytes::from_static(b"sign")),
                    _ => self.session.grant(
                        at,
                        Grant {
                            session: 1,
                            authenticated: choice.is_multiple_of(2),
                            token: remus_wire::ResumeToken([9; 32]),
                            ..Grant::default()
                        },
                    ),
                },
                Event::Challenge(_) => self
                    .session
                    .authenticate(at, AuthenticationRecord::default()),
                Event::Query(id, _) => match choice % 4 {
                    1 => self.queries.push(id),
                    _ => self.session.answer_query(at, id, &QueryAnswer::default()),
                },
                Event::Request(incoming) => match choice % 4 {
                    0 => self.remember(incoming.call),
                    1 => self.session.respond(at, incoming.call, reply(choice)),
                    2 => self.session.release(at, incoming.call),
                    _ => {
                        let error = ErrorRecord::new(ErrorCode::INTERNAL, "no");
                        self.session
                            .respond(at, incoming.call, Answer::Error(error));
                    }
                },
                Event::Closed(_) => {
                    assert!(self.session.state().is_closed());
                    self.is_closed = true;
                }
                _ => {}
            }
        }
    }

    fn remember(&mut self, key: CallKey) {
        if self.keys.len() >= MAX_KEYS
            && let Some(oldest) = self.keys.pop_front()
        {
            let at = self.at();
            self.session.release(at, oldest);
        }
        self.keys.push_back(key);
    }

    /// What the session sends is well-formed, whoever it talks to.
    fn transmit(&mut self) {
        let _ = self.session.take_dirty_lanes();
        for lane in 0..LANES_MAX {
            let mut bytes = BytesMut::new();
            let mut out = VecDeque::new();
            while self.session.poll_transmit(LaneId(lane), &mut out) {
                out.drain(..)
                    .for_each(|chunk| bytes.extend_from_slice(&chunk));
            }
            for frame in frames(bytes) {
                if let FrameBody::Message(message) = frame.body {
                    let message = Message::decode(message, &ANY);
                    assert!(message.is_ok(), "sent: {message:?}");
                }
            }
        }
        while let Some(datagram) = self.session.poll_datagram() {
            assert_eq!(frames(BytesMut::from(&datagram[..])).len(), 1);
        }
    }

    /// The IDs of the queries in what the session has sent so far.
    fn sent_queries(&mut self) -> Vec<RequestId> {
        let (mut bytes, mut out) = (BytesMut::new(), VecDeque::new());
        while self.session.poll_transmit(LaneId::ZERO, &mut out) {
            out.drain(..)
                .for_each(|chunk| bytes.extend_from_slice(&chunk));
        }
        let message = |frame: Frame| match frame.body {
            FrameBody::Message(bytes) => Message::decode(bytes, &ANY).ok(),
            _ => None,
        };
        let queries = frames(bytes)
            .into_iter()
            .filter_map(message)
            .filter(|message| message.kind == MessageType::QUERY);
        queries.map(|message| message.request_id).collect()
    }

    fn let_time_pass(&mut self) {
        let step = match self.script.u8() % 5 {
            0 => 1,
            1 => 1_000,
            2 => 300_000,
            3 => 4_000_000,
            _ => match self.session.poll_timeout() {
                Some(at) => at.0.saturating_sub(self.now).min(1 << 40),
                None => 60_000_000,
            },
        };
        self.now = self.now.saturating_add(step);
        let at = self.at();
        if self.session.poll_timeout().is_some_and(|due| due <= at) {
            self.session.handle_timeout(at);
            // Otherwise a driver would spin.
            let next = self.session.poll_timeout();
            assert!(
                next.is_none_or(|next| next > at) || self.session.state().is_closed(),
                "due again at once: {next:?} at {at:?}"
            );
        }
    }

    fn may_have_deadline(&mut self) -> bool {
        self.deadlines = self.deadlines.saturating_add(1);
        self.deadlines <= MAX_DEADLINES
    }

    fn outgoing(&mut self) -> Outgoing {
        let choice = self.script.u8();
        let mut context = Context::new();
        if choice & 0x40 != 0 {
            assert_eq!(context.set_tenant("t"), Ok(()));
        }
        Outgoing {
            context,
            timeout: (choice & 0x80 != 0 && self.may_have_deadline())
                .then(|| Duration::from_millis(u64::from(choice))),
            payload: Bytes::from(vec![choice; usize::from(choice & 0x3f) << 8]),
            ..Outgoing::default()
        }
    }

    fn call(&mut self) {
        let (at, request) = (self.at(), self.outgoing());
        let shape = match self.script.u8() % 8 {
            0 | 1 => Shape::Unary,
            2 => Shape::ServerStream,
            3 => Shape::ClientStream,
            4 => Shape::TwoWay,
            5 => {
                let _ = self.session.notify(at, request);
                return;
            }
            _ => {
                let batch = vec![request; usize::from(self.script.u8() % 4)];
                if let Ok(key) = self.session.call_batch(at, batch, None) {
                    self.remember(key);
                }
                return;
            }
        };
        let request = if shape.request_streams() {
            Outgoing {
                payload: Bytes::new(),
                ..request
            }
        } else {
            request
        };
        if let Ok(key) = self.session.call(at, request, shape) {
            self.remember(key);
        }
    }

    fn use_call(&mut self) {
        let (choice, place) = (self.script.u8(), usize::from(self.script.u8()));
        let place = place.checked_rem(self.keys.len()).unwrap_or(0);
        let Some(key) = self.keys.get(place).copied() else {
            return;
        };
        let at = self.at();
        match choice % 8 {
            0 | 1 => {
                let element = self.outgoing();
                let _ = self.session.send(at, key, element);
            }
            2 | 3 => while self.session.recv(key).is_some() {},
            4 => self.session.finish(at, key, None),
            5 => self.session.respond(at, key, reply(choice)),
            6 => self.session.cancel(at, key, ErrorCode(choice.into())),
            _ => {
                self.session.release(at, key);
                self.keys.remove(place);
            }
        }
    }

    fn rarely(&mut self) {
        let at = self.at();
        match self.script.u8() % 10 {
            8 => {
                self.session.suspend(at, ErrorCode::UNAVAILABLE, "cut");
            }
            9 => self.change_carrier(),
            0 => {
                let lane = self.script.lane();
                if self.session.handle_lane_end(lane).is_err() {
                    assert!(self.session.state().is_closed());
                }
            }
            1 => {
                let mut bytes = BytesMut::new();
                let body = message_body(&self.control_message());
                Frame {
                    stream: StreamId::CONTROL,
                    body,
                }
                .encode(&mut bytes);
                self.session.handle_datagram(at, bytes.freeze());
            }
            2 => {
                let datagram = Bytes::copy_from_slice(self.script.bytes());
                self.session.handle_datagram(at, datagram);
            }
            3 => {
                let grace = Duration::from_millis(u64::from(self.script.u16()));
                self.session
                    .shut_down(at, ErrorCode::OK, "enough", "", grace);
            }
            4 => self.session.abort(ErrorCode::CANCELLED, "enough"),
            5 => self.session.carrier_lost(ErrorCode::UNAVAILABLE, "gone"),
            6 => self.session.probe(at),
            _ => {
                if let Some(id) = self.queries.pop() {
                    self.session.answer_query(at, id, &QueryAnswer::default());
                }
            }
        }
    }

    /// Takes the session to another carrier, or tries to with whatever the bytes say.
    fn change_carrier(&mut self) {
        let at = self.at();
        let lanes = u16::from(self.script.u8() % 18);
        let carrier = CarrierInfo {
            lanes,
            datagrams: lanes % 2 == 0,
        };
        if self.session.side() == Side::Client {
            if self.session.attach(at, carrier).is_ok() {
                self.transmit();
                let offsets = self.offsets();
                self.handshake(&Handshake::Resumed(offsets));
                self.handshake(&Handshake::Authenticated(remus_wire::Authenticated {
                    session: 1,
                    token: remus_wire::ResumeToken([8; 32]),
                    expires: Timestamp::ZERO,
                    claims: remus_wire::Text::new(),
                }));
            }
            return;
        }
        let token = match self.script.u8() % 4 {
            0 => remus_wire::ResumeToken([self.script.u8(); 32]),
            1 => self.session.unconfirmed_token().unwrap_or_default(),
            _ => self.session.resume_token(),
        };
        let request = ResumeRequest {
            token,
            lanes: self.offsets(),
            authentication: AuthenticationRecord::default(),
            len: 0,
        };
        let next = remus_wire::ResumeToken([self.script.u8(); 32]);
        let before = self.session.attachment();
        let resumed = self.session.resume(at, &request, next, carrier);
        assert_eq!(resumed.is_ok(), self.session.attachment() != before);
    }

    fn offsets(&mut self) -> Vec<LaneOffset> {
        (0..u16::from(self.script.u8() % 3))
            .map(|lane| LaneOffset {
                lane,
                offset: u64::from(self.script.u16()),
            })
            .collect()
    }

    fn check(&mut self) {
        // What ended the session was counted where it came, and nowhere else.
        if !self.session.state().is_closed() {
            assert_eq!(self.session.check(), Ok(()));
        }
        let held = self.session.occupancy();
        assert!(held.assembling <= self.max_assembly_bytes, "{held:?}");
        // One answer may pass the limit, and errors and resets are answered beyond it.
        // What has to leave again on another carrier has left before.
        let room = self.max_answer_bytes.saturating_add(2 << 20);
        let room = room
            .saturating_add(self.max_retained_bytes)
            .saturating_add(4 << 20);
        let kept = self.session.retained_bytes();
        assert!(
            kept <= self.max_retained_bytes + (6 << 20),
            "{kept} are kept"
        );
        assert!(held.queued_bytes <= room, "{held:?}");
        if self.session.state().is_closed() {
            assert!(!self.session.wants_input());
        }
    }

    /// The end comes once, is told, and lets go of everything.
    fn end(mut self) {
        self.transmit();
        self.events(1);
        self.session.abort(ErrorCode::CANCELLED, "the end");
        self.events(1);
        assert!(self.is_closed, "the end was not told");
        self.check();
        while let Some(key) = self.keys.pop_front() {
            while self.session.recv(key).is_some() {}
            let at = self.at();
            self.session.release(at, key);
        }
        assert_eq!(self.session.open_local_calls(), 0);
        assert_eq!(self.session.poll_timeout(), None, "a timer after the end");
    }
}

fn message_body(message: &Message) -> FrameBody {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    FrameBody::Message(bytes.freeze())
}

fn reply(choice: u8) -> Answer {
    Answer::Reply {
        payload: Bytes::from(vec![choice; usize::from(choice) << 6]),
        context: Context::new(),
        flags: Flags::NONE,
    }
}

/// The frames that these bytes are, and nothing else.
fn frames(mut bytes: BytesMut) -> Vec<Frame> {
    let mut frames = Vec::new();
    loop {
        match Frame::decode(&mut bytes, MAX_FRAME) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => break,
            Err(error) => unreachable!("sent: {error}"),
        }
    }
    assert!(
        bytes.is_empty(),
        "sent: {} bytes that are no frame",
        bytes.len()
    );
    frames
}
