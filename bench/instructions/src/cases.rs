//! What is counted.

use std::collections::VecDeque;
use std::hint::black_box;

use bytes::{Buf, Bytes, BytesMut};
use remus_session::{
    Answer, CallKey, Event, Grant, LANES_MAX, LaneId, Outgoing, Received, Session, SessionConfig,
    Shape, State,
};
use remus_wire::{
    Context, DEFAULT_MAX_FRAME, Flags, FrameHeader, FrameType, Message, MessageLimits, MessageType,
    MethodId, QueryAnswer, RequestId, Routing, ServiceId, StreamId, Timestamp, TraceContext,
};

/// One operation, counted.
pub(crate) struct Case {
    /// What it goes by in the baseline.
    pub(crate) name: &'static str,
    /// What the count is of.
    pub(crate) item: &'static str,
    /// Does the operation so many times.
    pub(crate) run: fn(u32),
    /// How many times it is done in the short run; the long one does it eleven times as often.
    pub(crate) rounds: u32,
    /// How many items one operation handles.
    pub(crate) items: u32,
}

/// Calls that are under way together.
const TOGETHER: u32 = 64;

/// All cases, in the order of the baseline.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "encode",
        item: "frame and message, 64 B of payload",
        run: |count| encode(count, Routing::new(), Context::new()),
        rounds: 1000,
        items: 1,
    },
    Case {
        name: "decode",
        item: "the same",
        run: |count| decode(count, Routing::new(), Context::new()),
        rounds: 1000,
        items: 1,
    },
    Case {
        name: "encode-routed",
        item: "with service, method and an affinity key",
        run: |count| encode(count, routing(), Context::new()),
        rounds: 1000,
        items: 1,
    },
    Case {
        name: "decode-routed",
        item: "the same",
        run: |count| decode(count, routing(), Context::new()),
        rounds: 1000,
        items: 1,
    },
    Case {
        name: "encode-context",
        item: "with trace, content type and one more entry",
        run: |count| encode(count, Routing::new(), context()),
        rounds: 1000,
        items: 1,
    },
    Case {
        name: "decode-context",
        item: "the same",
        run: |count| decode(count, Routing::new(), context()),
        rounds: 1000,
        items: 1,
    },
    Case {
        name: "unary",
        item: "call there and back, 64 B, one at a time",
        run: |count| calls(count, 1),
        rounds: 200,
        items: 1,
    },
    Case {
        name: "unary-64",
        item: "call there and back, 64 B, 64 at a time",
        run: |count| calls(count, TOGETHER),
        rounds: 10,
        items: TOGETHER,
    },
    Case {
        name: "batch-64",
        item: "call of a batch of 64, 64 B",
        run: batches,
        rounds: 10,
        items: TOGETHER,
    },
    Case {
        name: "element-1k",
        item: "element of 1 KiB, 64 at a time",
        run: |count| elements(count, 1024, TOGETHER),
        rounds: 10,
        items: TOGETHER,
    },
    Case {
        name: "element-64k",
        item: "element of 64 KiB",
        run: |count| elements(count, 64 * 1024, 1),
        rounds: 100,
        items: 1,
    },
];

// The codec.

const PAYLOAD: [u8; 64] = [0x5a; 64];

fn message(routing: Routing, context: Context) -> Message {
    Message {
        flags: Flags::IDEMPOTENT,
        request_id: RequestId(7),
        timestamp: Timestamp(START),
        routing,
        context,
        ..Message::new(MessageType::REQUEST, Bytes::from_static(&PAYLOAD))
    }
}

/// A service, a method and one option.
fn routing() -> Routing {
    let mut routing = Routing::to(ServiceId(0x0102_0304), MethodId(0x0506_0708));
    // A short key always fits.
    let _ = routing.set_affinity(b"customer-4711");
    routing
}

fn context() -> Context {
    let mut context = Context::new();
    context.set_trace(TraceContext {
        trace_id: [1; 16],
        span_id: [2; 8],
        flags: 1,
    });
    // Short values always fit.
    let _ = context.set_content_type("application/json");
    let _ = context.add_custom("tier", b"gold");
    context
}

fn write(message: &Message, out: &mut BytesMut) {
    message.encode_frame(StreamId(1), out);
}

fn encode(count: u32, routing: Routing, context: Context) {
    let message = message(routing, context);
    let mut out = BytesMut::with_capacity(4096);
    for _ in 0..count {
        out.clear();
        write(black_box(&message), &mut out);
        black_box(&out);
    }
}

/// Messages that lie behind each other in one read.
const READ: u32 = 100;

fn decode(count: u32, routing: Routing, context: Context) {
    let message = message(routing, context);
    let mut wire = BytesMut::new();
    for _ in 0..READ {
        write(&message, &mut wire);
    }
    let wire = wire.freeze();
    let mut input = Bytes::new();
    for _ in 0..count {
        if input.is_empty() {
            input = wire.clone();
        }
        let read = read(&mut input, |message| {
            black_box(&message);
        });
        assert!(read.is_some());
    }
}

/// Reads a frame with a message as the session does, and hands the message on.
fn read(input: &mut Bytes, hand_on: impl Fn(Message)) -> Option<()> {
    let limits = &MessageLimits::DEFAULT;
    let header = FrameHeader::peek(input, DEFAULT_MAX_FRAME).ok()??;
    if header.kind != FrameType::MESSAGE {
        return None;
    }
    input.advance(FrameHeader::LEN);
    let len = usize::try_from(header.len).ok()?.min(input.len());
    if let Some(message) = Message::take_plain(input, len, limits) {
        hand_on(message);
    } else {
        hand_on(Message::decode(input.split_to(len), limits).ok()?);
    }
    Some(())
}

// The session.

const START: u64 = 1_700_000_000_000_000;

/// One side, with an application that answers whatever comes and counts what it is answered.
struct End {
    session: Session,
    answers: u32,
    /// A call of the peer's that has a stream to itself.
    handler: Option<CallKey>,
}

impl End {
    fn new(session: Session) -> Self {
        Self {
            session,
            answers: 0,
            handler: None,
        }
    }

    fn take_events(&mut self, now: Timestamp) {
        while let Some(event) = self.session.poll_event(now) {
            match event {
                Event::Authenticate(_) => self.session.grant(now, Grant::default()),
                Event::Query(id, _) => {
                    self.session.answer_query(now, id, &QueryAnswer::default());
                }
                Event::Request(request) if request.owns_stream => self.handler = Some(request.call),
                Event::Request(request) => {
                    let answer = Answer::Reply {
                        payload: request.message.payload,
                        context: Context::new(),
                        flags: Flags::NONE,
                    };
                    self.session.respond(now, request.call, answer);
                }
                Event::Answer(_, Ok(message)) => {
                    black_box(message);
                    self.answers = self.answers.saturating_add(1);
                }
                Event::BatchAnswer(_, answers) => {
                    let good = answers.iter().filter(|answer| answer.is_ok()).count();
                    let good = u32::try_from(good).unwrap_or(u32::MAX);
                    self.answers = self.answers.saturating_add(good);
                }
                Event::Readable(call) => {
                    while let Some(Received::Element(message)) = self.session.recv(call) {
                        black_box(message);
                        self.answers = self.answers.saturating_add(1);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Two sides, and the time.
struct Pair {
    client: End,
    acceptor: End,
    now: Timestamp,
    /// What is on its way; kept, so that nothing is allocated for it anew.
    chunks: VecDeque<Bytes>,
}

impl Pair {
    /// Both sides, active.
    fn new() -> Self {
        let now = Timestamp(START);
        let (Ok(client), Ok(acceptor)) = (
            Session::client(SessionConfig::client(), now),
            Session::acceptor(SessionConfig::acceptor(), now),
        ) else {
            unreachable!("the defaults are valid")
        };
        let mut pair = Self {
            client: End::new(client),
            acceptor: End::new(acceptor),
            now,
            chunks: VecDeque::new(),
        };
        pair.exchange();
        assert_eq!(pair.client.session.state(), State::Active);
        assert_eq!(pair.acceptor.session.state(), State::Active);
        pair
    }

    /// Moves bytes and takes events, as drivers do, until neither side has anything to say.
    fn exchange(&mut self) {
        let Self {
            client,
            acceptor,
            now,
            chunks,
        } = self;
        loop {
            // A microsecond each way.
            now.0 = now.0.saturating_add(1);
            let there = carry(client, acceptor, chunks, *now);
            now.0 = now.0.saturating_add(1);
            let back = carry(acceptor, client, chunks, *now);
            if !there && !back {
                return;
            }
        }
    }
}

/// Moves what is due from one side to the other, and lets it act; whether there was anything.
fn carry(from: &mut End, to: &mut End, chunks: &mut VecDeque<Bytes>, now: Timestamp) -> bool {
    let dirty = from.session.take_dirty_lanes();
    for lane in (0..LANES_MAX).filter(|lane| dirty >> lane & 1 == 1) {
        while from.session.poll_transmit(LaneId(lane), chunks) {
            for mut chunk in chunks.drain(..) {
                while !chunk.is_empty() {
                    let taken = to.session.handle_input(now, LaneId(lane), &mut chunk);
                    assert!(taken.is_ok(), "{taken:?}");
                    to.take_events(now);
                }
            }
        }
    }
    dirty != 0
}

fn request(payload: &'static [u8]) -> Outgoing {
    Outgoing {
        routing: Routing::to(ServiceId(0x0102_0304), MethodId(0x0506_0708)),
        flags: Flags::IDEMPOTENT,
        payload: Bytes::from_static(payload),
        ..Outgoing::default()
    }
}

/// Unary calls, so many under way together.
fn calls(count: u32, together: u32) {
    let mut pair = Pair::new();
    for _ in 0..count {
        for _ in 0..together {
            let called = pair
                .client
                .session
                .call(pair.now, request(&PAYLOAD), Shape::Unary);
            assert!(called.is_ok(), "{called:?}");
        }
        pair.exchange();
    }
    assert_eq!(pair.client.answers, count.saturating_mul(together));
}

/// Batches of calls.
fn batches(count: u32) {
    let mut pair = Pair::new();
    for _ in 0..count {
        let requests = (0..TOGETHER).map(|_| request(&PAYLOAD)).collect();
        let called = pair.client.session.call_batch(pair.now, requests, None);
        assert!(called.is_ok(), "{called:?}");
        pair.exchange();
    }
    assert_eq!(pair.client.answers, count.saturating_mul(TOGETHER));
}

/// Elements of a server's stream, so many sent before they are moved.
fn elements(count: u32, len: usize, together: u32) {
    let mut pair = Pair::new();
    let called = pair
        .client
        .session
        .call(pair.now, request(b""), Shape::ServerStream);
    assert!(called.is_ok(), "{called:?}");
    pair.exchange();
    let Some(call) = pair.acceptor.handler else {
        unreachable!("the request has arrived")
    };
    let payload = Bytes::from(vec![0x5a; len]);
    for _ in 0..count {
        for _ in 0..together {
            let element = Outgoing {
                payload: payload.clone(),
                ..Outgoing::default()
            };
            let sent = pair.acceptor.session.send(pair.now, call, element);
            assert!(sent.is_ok(), "{sent:?}");
        }
        pair.exchange();
    }
    assert_eq!(pair.client.answers, count.saturating_mul(together));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each operation does what it says; the assertions are in the cases.
    #[test]
    fn every_case_runs() {
        for case in CASES {
            (case.run)(3);
        }
    }

    #[test]
    fn what_is_decoded_is_what_was_encoded() {
        for message in [
            message(routing(), context()),
            message(Routing::new(), Context::new()),
        ] {
            let mut wire = BytesMut::new();
            write(&message, &mut wire);
            let got = read(&mut wire.freeze(), |got| assert_eq!(got, message));
            assert_eq!(got, Some(()));
        }
    }
}
