//! What it costs to write and read one small call: a frame of 8 bytes, a message header of 35 and 64 bytes of payload.
//!
//! Candidates take turns, so that a machine that slows down slows all of them. `cargo bench -p remus-wire` measures;
//! without `--bench`, as under `cargo test --benches`, each candidate runs one round, and is checked by what it reads.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a program for the terminal, on input of its own"
)]

use std::{hint::black_box, time::Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use remus_wire::{
    Frame, FrameBody, FrameHeader, FrameType, Message, MessageLimits, MessageType, MethodId,
    PlainMessage, RequestId, Routing, ServiceId, StreamId, Timestamp, Ttl,
};

/// Rounds of each candidate.
const ROUNDS: u32 = 15 * 400;
/// Operations of one candidate in one round: some tens of microseconds, so that the scheduler interrupts few of the
/// rounds and the median knows nothing of it.
///
/// A multiple of 64, so that what is written in a round is read in it.
const OPERATIONS: u32 = 1024;
/// Room of the buffer that is used again and again, in bytes: what a lane gathers before it sends.
const BUFFER: usize = 16 * 1024;
/// The application's bytes.
const PAYLOAD: [u8; 64] = [0x5a; 64];
const STREAM: StreamId = StreamId(1);
const MAX_FRAME: u32 = remus_wire::DEFAULT_MAX_FRAME;

/// A candidate: does one operation, which is told its number, and returns something that depends on what it read.
type Candidate = Box<dyn FnMut(u32) -> u64>;

fn main() {
    let measured = std::env::args().any(|arg| arg == "--bench");
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let (rounds, operations) = if measured {
        (ROUNDS, OPERATIONS)
    } else {
        (1, 64)
    };
    let mut candidates: Vec<(&str, Candidate, Vec<f64>)> = candidates()
        .into_iter()
        .filter(|(name, _)| only.as_ref().is_none_or(|only| name.contains(only)))
        .map(|(name, step)| (name, step, Vec::new()))
        .collect();
    for _ in 0..rounds {
        for (_, step, times) in &mut candidates {
            let begin = Instant::now();
            let mut sum = 0_u64;
            for number in 0..operations {
                sum = sum.wrapping_add(step(number));
            }
            black_box(sum);
            let nanos = begin.elapsed().as_secs_f64() * 1e9;
            times.push(nanos / f64::from(operations));
        }
    }
    for (name, _, mut times) in candidates {
        times.sort_by(f64::total_cmp);
        let at = |part: usize| {
            times
                .get(times.len() * part / 4)
                .copied()
                .unwrap_or(f64::NAN)
        };
        let least = times.first().copied().unwrap_or(f64::NAN);
        println!(
            "{name:44} {:7.2} ns   (quartiles {:.2} and {:.2}, least {least:.2})",
            at(2),
            at(1),
            at(3)
        );
    }
}

fn candidates() -> Vec<(&'static str, Candidate)> {
    let mut routed = request();
    routed.routing = Routing::to(ServiceId(0x0102_0304), MethodId(0x0506_0708));
    vec![
        ("copy in and out", copy()),
        ("by hand, fixed offsets, borrowed", by_hand()),
        ("bytes, field by field, borrowed", field_by_field()),
        ("remus, borrowed", borrowed(request())),
        ("remus, shared, 64 at a time", shared(request(), 64)),
        ("remus, shared, 64 at a time, routed", shared(routed, 64)),
        ("remus, shared, one at a time", shared(request(), 1)),
        ("remus, encode only", encode_only()),
        ("remus, decode only, shared", decode_only(decode)),
        ("remus, decode only, by Frame", decode_only(decode_by_frame)),
        ("prost, shared, one at a time", prost_candidate()),
    ]
}

fn request() -> Message {
    let mut message = Message::new(MessageType::REQUEST, Bytes::from_static(&PAYLOAD));
    message.ttl = Ttl(5000);
    message
}

fn stamp(message: &mut Message, number: u32) {
    message.request_id = RequestId(number);
    message.timestamp = Timestamp(1_700_000_000_000_000 + u64::from(number));
}

/// Where the next operation writes: behind the one before, as on a lane, and from the front when the buffer is full. At one
/// place only, the figure would tell whether that place lies across two cache lines.
fn next(buffer: &mut BytesMut) -> usize {
    if buffer.len() + 128 > BUFFER {
        buffer.clear();
    }
    buffer.len()
}

fn copy() -> Candidate {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    let source = [0x5a_u8; 107];
    Box::new(move |number| {
        let start = next(&mut buffer);
        buffer.extend_from_slice(black_box(&source));
        let bytes: &[u8; 107] = black_box(&buffer[start..])
            .try_into()
            .expect("what was written");
        let copied = *bytes;
        black_box(&copied);
        u64::from(number) + u64::from(copied.len() as u32)
    })
}

/// What a struct of fixed offsets costs: one write of the header, one of the payload, and a view that checks lengths.
fn by_hand() -> Candidate {
    struct View<'a> {
        request_id: u32,
        timestamp: u64,
        payload: &'a [u8],
    }
    fn write(out: &mut BytesMut, request_id: u32, timestamp: u64, payload: &[u8]) {
        let len = payload.len() as u32;
        let mut head = [0_u8; 43];
        head[0..2].copy_from_slice(&STREAM.0.to_be_bytes());
        head[2..4].copy_from_slice(&FrameType::MESSAGE.0.to_be_bytes());
        head[4..8].copy_from_slice(&(len + 35).to_be_bytes());
        head[8..12].copy_from_slice(&(len + 35).to_be_bytes());
        head[12] = MessageType::REQUEST.0;
        head[15..19].copy_from_slice(&request_id.to_be_bytes());
        head[19..27].copy_from_slice(&timestamp.to_be_bytes());
        head[39..43].copy_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(payload);
    }
    fn read(bytes: &[u8]) -> Option<View<'_>> {
        let (head, payload) = bytes.split_first_chunk::<43>()?;
        let field =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let len = payload.len() as u32;
        if field(4) != len + 35 || field(8) != len + 35 || field(39) != len {
            return None;
        }
        Some(View {
            request_id: field(15),
            timestamp: u64::from(field(19)) << 32 | u64::from(field(23)),
            payload,
        })
    }
    let mut buffer = BytesMut::with_capacity(BUFFER);
    Box::new(move |number| {
        let start = next(&mut buffer);
        write(&mut buffer, number, u64::from(number), black_box(&PAYLOAD));
        let view = read(black_box(&buffer[start..])).expect("what was written");
        black_box(&view);
        u64::from(view.request_id) + view.timestamp + view.payload.len() as u64
    })
}

fn field_by_field() -> Candidate {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    Box::new(move |number| {
        let start = next(&mut buffer);
        let payload: &[u8] = black_box(&PAYLOAD);
        let len = payload.len() as u32;
        buffer.put_u16(STREAM.0);
        buffer.put_u16(FrameType::MESSAGE.0);
        buffer.put_u32(len + 35);
        buffer.put_u32(len + 35);
        buffer.put_u8(MessageType::REQUEST.0);
        buffer.put_u16(0);
        buffer.put_u32(number);
        buffer.put_u64(number.into());
        buffer.put_u16(0);
        buffer.put_u16(0);
        buffer.put_u32(0);
        buffer.put_u32(0);
        buffer.put_u32(len);
        buffer.put_slice(payload);
        let mut rest: &[u8] = black_box(&buffer[start..]);
        let (stream, kind, frame_len, total) = (
            rest.get_u16(),
            rest.get_u16(),
            rest.get_u32(),
            rest.get_u32(),
        );
        let (message, flags, id, time) = (
            rest.get_u8(),
            rest.get_u16(),
            rest.get_u32(),
            rest.get_u64(),
        );
        let (priority, ttl, routing, context, payload) = (
            rest.get_u16(),
            rest.get_u16(),
            rest.get_u32(),
            rest.get_u32(),
            rest.get_u32(),
        );
        let fields = (
            stream, kind, frame_len, total, message, flags, priority, ttl, routing, context,
            payload,
        );
        black_box(&fields);
        u64::from(id) + time + u64::from(fields.10) + rest.len() as u64
    })
}

/// As a session does: the header, then the message, which is the only slice of the input that is made, and acts on it.
#[inline]
fn decode(input: &mut Bytes) -> u64 {
    let Ok(Some(header)) = FrameHeader::peek(input, MAX_FRAME) else {
        panic!("what was written");
    };
    assert!(header.kind == FrameType::MESSAGE, "what was written");
    input.advance(FrameHeader::LEN);
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    match Message::take_plain(input, len, &MessageLimits::DEFAULT) {
        Some(message) => act(&message),
        None => panic!("what was written"),
    }
}

#[inline]
fn decode_borrowed(input: &[u8]) -> Option<PlainMessage<'_>> {
    let header = FrameHeader::peek(input, MAX_FRAME).expect("valid")?;
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    let message = input.get(FrameHeader::LEN..)?.get(..len)?;
    if header.kind != FrameType::MESSAGE {
        return None;
    }
    PlainMessage::read(message, &MessageLimits::DEFAULT)
}

/// In two steps that know nothing of each other.
fn decode_by_frame(input: &mut Bytes) -> u64 {
    let header = FrameHeader::peek(input, MAX_FRAME)
        .expect("valid")
        .expect("what was written");
    input.advance(FrameHeader::LEN);
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    let frame = Frame::from_parts(header, input.split_to(len)).expect("valid");
    let FrameBody::Message(bytes) = frame.body else {
        panic!("what was written");
    };
    act(&Message::decode(bytes, &MessageLimits::DEFAULT).expect("valid"))
}

fn act(message: &Message) -> u64 {
    black_box(message);
    u64::from(message.request_id.0) + message.timestamp.0 + message.payload.len() as u64
}

/// What a reader does that looks at the message where it lies.
fn borrowed(mut message: Message) -> Candidate {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    Box::new(move |number| {
        stamp(&mut message, number);
        let start = next(&mut buffer);
        black_box(&message).encode_frame(STREAM, &mut buffer);
        let read = decode_borrowed(black_box(&buffer[start..])).expect("what was written");
        black_box(&read);
        u64::from(read.request_id.0) + read.timestamp.0 + read.payload.len() as u64
    })
}

/// What two sessions do: messages are written behind each other, leave together, and are read one by one. Each keeps the
/// buffer alive as long as it lives itself, which is what `Bytes` counts by two locked instructions.
fn shared(mut message: Message, together: u32) -> Candidate {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    Box::new(move |number| {
        stamp(&mut message, number);
        black_box(&message).encode_frame(STREAM, &mut buffer);
        let mut sum = 0;
        if (number + 1).is_multiple_of(together) {
            let mut input = buffer.split().freeze();
            while !input.is_empty() {
                sum += decode(&mut input);
            }
        }
        sum
    })
}

fn encode_only() -> Candidate {
    let mut message = request();
    let mut buffer = BytesMut::with_capacity(BUFFER);
    Box::new(move |number| {
        stamp(&mut message, number);
        let start = next(&mut buffer);
        black_box(&message).encode_frame(STREAM, &mut buffer);
        black_box(&buffer[start..]).len() as u64
    })
}

fn decode_only(decode: impl Fn(&mut Bytes) -> u64 + 'static) -> Candidate {
    let mut wire = BytesMut::new();
    for number in 0..100 {
        let mut message = request();
        stamp(&mut message, number);
        message.encode_frame(STREAM, &mut wire);
    }
    let wire = wire.freeze();
    let mut input = Bytes::new();
    Box::new(move |_| {
        if input.is_empty() {
            input = wire.clone();
        }
        decode(&mut input)
    })
}

#[derive(Clone, PartialEq, prost::Message)]
struct Prost {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "2")]
    flags: u32,
    #[prost(fixed32, tag = "3")]
    request_id: u32,
    #[prost(fixed64, tag = "4")]
    timestamp: u64,
    #[prost(uint32, tag = "5")]
    priority: u32,
    #[prost(uint32, tag = "6")]
    ttl: u32,
    #[prost(fixed32, tag = "7")]
    stream: u32,
    #[prost(bytes = "bytes", tag = "8")]
    payload: Bytes,
}

fn prost_candidate() -> Candidate {
    use prost::Message as _;

    let mut message = Prost {
        kind: MessageType::REQUEST.0.into(),
        flags: 16,
        priority: 3 << 13,
        ttl: 5000,
        stream: STREAM.0.into(),
        payload: Bytes::from_static(&PAYLOAD),
        ..Prost::default()
    };
    let mut buffer = BytesMut::with_capacity(BUFFER);
    Box::new(move |number| {
        message.request_id = number;
        message.timestamp = 1_700_000_000_000_000 + u64::from(number);
        black_box(&message)
            .encode(&mut buffer)
            .expect("there is room");
        let read = Prost::decode(buffer.split().freeze()).expect("what was written");
        black_box(&read);
        u64::from(read.request_id) + read.timestamp + read.payload.len() as u64
    })
}
