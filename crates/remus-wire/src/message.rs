//! Messages: the unit that peers exchange. Spec: message format §3.
//!
//! Knows the header and where its three parts lie, not what a payload means.
//! Invariant: of a decoded message, total length = 35 + routing + context + payload, and each is within
//! the limits; nothing was copied but the fixed fields.

use bytes::{Buf, BufMut, Bytes};

use crate::{
    At, Context, DecodeError, Flags, FrameHeader, FrameType, Limit, MethodId, Priority, RequestId,
    Routing, ServiceId, StreamId, Timestamp, Ttl,
    macros::codes,
    reader::{length, saturated},
};

codes! {
    /// What a message is. A type that is not named here is kept; the session answers it.
    pub struct MessageType(u8) {
        /// A step of the handshake: [`Handshake`](crate::Handshake).
        HANDSHAKE = 0x01,
        /// [`Heartbeat`](crate::Heartbeat).
        HEARTBEAT = 0x02,
        /// [`Shutdown`](crate::Shutdown).
        SHUTDOWN = 0x03,
        /// [`Schema`](crate::Schema).
        SCHEMA = 0x04,
        /// [`Capability`](crate::Capability).
        CAPABILITY = 0x05,
        /// Opens a call; the payload is the application's.
        REQUEST = 0x10,
        /// Answers a call; the payload is the application's.
        RESPONSE = 0x11,
        /// Ends a call without success: [`ErrorRecord`](crate::ErrorRecord).
        ERROR = 0x12,
        /// One element of a stream; the payload is the application's.
        STREAM = 0x13,
        /// Ends a direction of a stream: [`StreamEnd`](crate::StreamEnd).
        STREAM_END = 0x14,
        /// Document state.
        STATE_SYNC = 0x20,
        /// Document changes.
        STATE_DELTA = 0x21,
        /// Compares document state by digest.
        STATE_VALIDATE = 0x22,
        /// A conflict and how it was resolved.
        STATE_CONFLICT = 0x23,
        /// Edge functions.
        EDGE_COMPUTE = 0x30,
        /// State of an edge partition.
        EDGE_STATE = 0x31,
        /// Cache coherency.
        EDGE_CACHE = 0x32,
        /// A service is there: [`ServiceRecord`](crate::ServiceRecord).
        ANNOUNCE = 0x40,
        /// Which services are there: [`Query`](crate::Query).
        QUERY = 0x41,
        /// A service changed: [`ServiceRecord`](crate::ServiceRecord).
        UPDATE = 0x42,
        /// Health of a service.
        HEALTH = 0x43,
        /// Measurements.
        METRICS = 0x50,
        /// Spans of a trace.
        TRACE = 0x51,
        /// Log lines.
        LOG = 0x52,
        /// Audit records.
        AUDIT = 0x53,
    }
}

impl MessageType {
    /// Whether this is one of the control messages, 0x01 to 0x0F, which travel on stream 0 only.
    #[must_use]
    pub const fn is_control(self) -> bool {
        matches!(self.0, 0x01..=0x0f)
    }
}

/// What an endpoint takes in, in bytes. Larger things stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageLimits {
    /// A whole message, header included. Default 4 MiB.
    pub message: u32,
    /// Context metadata. Default 64 KiB.
    pub context: u32,
    /// Routing information. Default 8 KiB.
    pub routing: u32,
}

impl MessageLimits {
    /// The limits that hold where nothing else is negotiated.
    pub const DEFAULT: Self = Self {
        message: 4 << 20,
        context: 64 << 10,
        routing: 8 << 10,
    };
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// One message.
///
/// ```text
///  0           4     5      7           11          19       21   23
/// +-----------+-----+------+-----------+-----------+--------+----+
/// | total len |type |flags |request ID | timestamp |priority|TTL |
/// +-----------+-----+------+-----------+-----------+--------+----+
/// | u32 length, routing | u32 length, context | u32 length, payload |
/// +----------------------------------------------------------------+
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: MessageType,
    /// What is special about it.
    pub flags: Flags,
    /// Which of the sender's open calls it belongs to; 0 where no answer is expected.
    pub request_id: RequestId,
    /// When it was sent, by the sender's hybrid logical clock.
    pub timestamp: Timestamp,
    /// How urgent it is.
    pub priority: Priority,
    /// The time that is left for it.
    pub ttl: Ttl,
    /// Whom it is for.
    pub routing: Routing,
    /// What travels with it.
    pub context: Context,
    /// Its content, by type.
    pub payload: Bytes,
}

/// Bytes before the routing information: the fixed fields and the routing length.
const FIXED_LEN: usize = 27;
/// The length before context and payload each, in bytes.
const LENGTH_LEN: usize = 4;
/// Where the routing length stands.
const ROUTING_LENGTH_AT: usize = 23;
/// Length of routing information without options, as it stands on the wire.
const ROUTING_FIXED_LEN: u32 = 8;
/// [`Message::HEADER_LEN`], as it stands on the wire.
const HEADER_LEN: u32 = 35;
const _: () = assert!(
    ROUTING_FIXED_LEN as usize == Routing::FIXED_LEN && HEADER_LEN as usize == Message::HEADER_LEN
);

impl Message {
    /// Length of the header with its three lengths, in bytes: the shortest message.
    pub const HEADER_LEN: usize = 35;

    /// A message of this type and payload; the rest is the default: ordinary priority, no TTL, no routing.
    #[must_use]
    pub const fn new(kind: MessageType, payload: Bytes) -> Self {
        Self {
            kind,
            flags: Flags::NONE,
            request_id: RequestId::NONE,
            timestamp: Timestamp::ZERO,
            priority: Priority::ORDINARY,
            ttl: Ttl::NONE,
            routing: Routing::new(),
            context: Context::new(),
            payload,
        }
    }

    /// Judges a message by its first bytes, and returns its total length; `None` while these don't hold it.
    ///
    /// For the first PART of a message, so that one that is too large is refused before the rest arrives. The
    /// more of the message is there, the more is judged: from 4 bytes on the total length, from 5 the type, from 27
    /// the routing length.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode) for these fields.
    pub fn peek_len(prefix: &[u8], limits: &MessageLimits) -> Result<Option<u32>, DecodeError> {
        let Some(total) = prefix.first_chunk::<4>() else {
            return Ok(None);
        };
        let total = u32::from_be_bytes(*total);
        check_total(total, 0, limits)?;
        if let Some(0) = prefix.get(4) {
            return Err(DecodeError::Reserved {
                at: at("type", 4),
                value: 0,
            });
        }
        if let Some(fixed) = prefix.first_chunk::<FIXED_LEN>() {
            let [.., a, b, c, d] = *fixed;
            let routing = u32::from_be_bytes([a, b, c, d]);
            let after = u64::from(total).saturating_sub(length(Self::HEADER_LEN));
            check_part(
                "routing_length",
                ROUTING_LENGTH_AT,
                routing,
                after,
                limits.routing,
                Limit::Routing,
            )?;
        }
        Ok(Some(total))
    }

    /// Reads the message that `bytes` is, without copying its parts.
    ///
    /// # Errors
    ///
    /// In the order in which they are looked for: [`DecodeError::Truncated`] below 4 bytes;
    /// [`DecodeError::TooLarge`] with [`Limit::Message`]; [`DecodeError::LengthMismatch`]: the total length is below 35 or
    /// is not that of `bytes`; [`DecodeError::Reserved`]: type 0; then for routing, context and payload
    /// [`DecodeError::TooLarge`] and [`DecodeError::LengthPastEnd`] by their lengths, and what
    /// [`Routing::decode`] and [`Context::decode`] find; [`DecodeError::TrailingBytes`] after the payload.
    #[inline]
    pub fn decode(mut bytes: Bytes, limits: &MessageLimits) -> Result<Self, DecodeError> {
        let Some(plain) = PlainMessage::read(&bytes, limits) else {
            return Self::decode_at(bytes, 0, limits);
        };
        let PlainMessage {
            kind,
            flags,
            request_id,
            timestamp,
            priority,
            ttl,
            service,
            method,
            payload,
        } = plain;
        let head_len = bytes.len() - payload.len();
        bytes.advance(head_len);
        Ok(Self {
            kind,
            flags,
            request_id,
            timestamp,
            priority,
            ttl,
            routing: Routing::to(service, method),
            context: Context::new(),
            payload: bytes,
        })
    }

    /// Takes a message off `input`, whose first `len` bytes it is, if it has neither options nor context, as most
    /// have not, and nothing is wrong with it. With `None` nothing is taken: split it off and
    /// [`decode`](Self::decode) it.
    ///
    /// Both steps together are what `decode` does. This one alone costs a quarter less where the message is then moved nowhere:
    /// a result that may also be an error is first put together in memory and then copied, and a processor has to
    /// wait for that.
    #[expect(
        clippy::inline_always,
        reason = "a call would put the message together in memory, which is what this avoids"
    )]
    #[inline(always)]
    #[must_use]
    pub fn take_plain(input: &mut Bytes, len: usize, limits: &MessageLimits) -> Option<Self> {
        // All is read before anything is split off: a slice that was just made is not yet there to be read from.
        let plain = PlainMessage::read(input.get(..len)?, limits)?;
        let PlainMessage {
            kind,
            flags,
            request_id,
            timestamp,
            priority,
            ttl,
            service,
            method,
            payload,
        } = plain;
        let payload_len = payload.len();
        input.advance(len - payload_len);
        Some(Self {
            kind,
            flags,
            request_id,
            timestamp,
            priority,
            ttl,
            routing: Routing::to(service, method),
            context: Context::new(),
            payload: input.split_to(payload_len),
        })
    }

    /// As [`decode`](Self::decode), for a message that lies `base` bytes into the decoder's input.
    #[inline(never)]
    pub(crate) fn decode_at(
        mut bytes: Bytes,
        base: usize,
        limits: &MessageLimits,
    ) -> Result<Self, DecodeError> {
        let len = bytes.len();
        let Some(fixed) = bytes.first_chunk::<FIXED_LEN>() else {
            return Err(wrong_total(&bytes, base, limits));
        };
        let fixed = Fixed::read(fixed);
        let total = fixed.total;
        if usize::try_from(total) != Ok(len) || len < Self::HEADER_LEN || total > limits.message {
            return Err(wrong_total(&bytes, base, limits));
        }
        if fixed.kind == MessageType(0) {
            return Err(DecodeError::Reserved {
                at: at("type", base + 4),
                value: 0,
            });
        }
        bytes.advance(FIXED_LEN);

        // Each length is checked against what remains, less the lengths that still have to come.
        let routing_len = fixed.routing_len;
        let routing = if routing_len == 0 {
            Routing::new()
        } else {
            let after = length(len - Self::HEADER_LEN);
            let max = limits.routing;
            let size = check_part(
                "routing_length",
                base + ROUTING_LENGTH_AT,
                routing_len,
                after,
                max,
                Limit::Routing,
            )?;
            Routing::take(&mut bytes, size, base + FIXED_LEN)?
        };

        let offset = base + len - bytes.len();
        let context_len = take_u32(&mut bytes, "context_length", offset)?;
        let context = if context_len == 0 {
            Context::new()
        } else {
            let after = length(bytes.len().saturating_sub(LENGTH_LEN));
            let max = limits.context;
            let size = check_part(
                "context_length",
                offset,
                context_len,
                after,
                max,
                Limit::Context,
            )?;
            Context::decode_at(bytes.split_to(size), offset + LENGTH_LEN)?
        };

        let offset = base + len - bytes.len();
        let payload_len = take_u32(&mut bytes, "payload_length", offset)?;
        if length(bytes.len()) != u64::from(payload_len) {
            return Err(wrong_payload_len(payload_len, bytes.len(), offset));
        }

        Ok(Self {
            kind: fixed.kind,
            flags: fixed.flags,
            request_id: fixed.request_id,
            timestamp: fixed.timestamp,
            priority: fixed.priority,
            ttl: fixed.ttl,
            routing,
            context,
            payload: bytes,
        })
    }

    /// Length of the encoded message, in bytes. Compare it with the peer's limit before encoding.
    #[must_use]
    #[inline]
    pub fn encoded_len(&self) -> usize {
        self.head_len().saturating_add(self.payload.len())
    }

    /// Length of what [`encode_head`](Self::encode_head) writes, in bytes.
    #[must_use]
    #[inline]
    pub fn head_len(&self) -> usize {
        Self::HEADER_LEN + self.routing.encoded_len() + self.context.encoded_len()
    }

    /// Writes the message.
    #[inline]
    pub fn encode(&self, out: &mut impl BufMut) {
        self.encode_head(out);
        out.put_slice(&self.payload);
    }

    /// Writes all but the bytes of the payload, which the caller sends after it without a copy.
    #[inline]
    pub fn encode_head(&self, out: &mut impl BufMut) {
        const PLAIN: usize = Message::HEADER_LEN;
        const ROUTED: usize = PLAIN + Routing::FIXED_LEN;
        self.put_head::<0, PLAIN, ROUTED>(|_| [], out);
    }

    /// Writes the message as one MESSAGE frame. That it is within the peer's `max_frame` is the caller's to see to.
    #[inline]
    pub fn encode_frame(&self, stream: StreamId, out: &mut impl BufMut) {
        self.encode_frame_head(stream, out);
        out.put_slice(&self.payload);
    }

    /// Writes the message as one MESSAGE frame, but for the bytes of the payload, which the caller sends after it
    /// without a copy.
    ///
    /// Costs less than the frame's header and [`encode_head`](Self::encode_head): most messages have both written in one go.
    #[inline]
    pub fn encode_frame_head(&self, stream: StreamId, out: &mut impl BufMut) {
        const PLAIN: usize = FrameHeader::LEN + Message::HEADER_LEN;
        const ROUTED: usize = PLAIN + Routing::FIXED_LEN;
        let header = |len| FrameHeader {
            stream,
            kind: FrameType::MESSAGE,
            len,
        };
        self.put_head::<{ FrameHeader::LEN }, PLAIN, ROUTED>(|len| header(len).encode(), out);
    }

    /// Writes what `before` makes of the total length, then the head. `PLAIN` is the length of both without routing and
    /// context, `ROUTED` that with routing without options.
    #[inline]
    fn put_head<const BEFORE: usize, const PLAIN: usize, const ROUTED: usize>(
        &self,
        before: impl FnOnce(u32) -> [u8; BEFORE],
        out: &mut impl BufMut,
    ) {
        if self.routing.has_options() || !self.context.is_empty() {
            let len = saturated(self.encoded_len());
            out.put_slice(&before(len));
            self.put_whole_head(len, out);
            return;
        }
        // Nearly every message has no options: then it is one write instead of seven.
        let payload_len = saturated(self.payload.len());
        // The context's length, which is 0, and the payload's.
        let lengths = u64::from(payload_len).to_be_bytes();
        if self.routing.is_empty() {
            let len = payload_len.saturating_add(HEADER_LEN);
            let head = joined::<_, _, _, PLAIN>(before(len), self.fixed(len, 0), lengths);
            out.put_slice(&head);
        } else {
            let len = payload_len.saturating_add(HEADER_LEN + ROUTING_FIXED_LEN);
            let fixed = self.fixed(len, ROUTING_FIXED_LEN);
            let [s0, s1, s2, s3] = self.routing.service.0.to_be_bytes();
            let [m0, m1, m2, m3] = self.routing.method.0.to_be_bytes();
            let [y0, y1, y2, y3, y4, y5, y6, y7] = lengths;
            #[rustfmt::skip]
            let rest = [
                s0, s1, s2, s3, m0, m1, m2, m3, y0, y1, y2, y3, y4, y5, y6, y7,
            ];
            out.put_slice(&joined::<_, _, _, ROUTED>(before(len), fixed, rest));
        }
    }

    /// Writes the head of a message of `len` bytes, whatever is in it.
    #[inline(never)]
    fn put_whole_head(&self, len: u32, out: &mut impl BufMut) {
        out.put_slice(&self.fixed(len, saturated(self.routing.encoded_len())));
        self.routing.encode(out);
        out.put_u32(saturated(self.context.encoded_len()));
        self.context.encode(out);
        out.put_u32(saturated(self.payload.len()));
    }

    /// The bytes before the routing information.
    #[inline]
    const fn fixed(&self, len: u32, routing_len: u32) -> [u8; FIXED_LEN] {
        let [t0, t1, t2, t3] = len.to_be_bytes();
        let MessageType(kind) = self.kind;
        let [f0, f1] = self.flags.0.to_be_bytes();
        let [q0, q1, q2, q3] = self.request_id.0.to_be_bytes();
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.timestamp.0.to_be_bytes();
        let [p0, p1] = self.priority.0.to_be_bytes();
        let [l0, l1] = self.ttl.0.to_be_bytes();
        let [r0, r1, r2, r3] = routing_len.to_be_bytes();
        #[rustfmt::skip]
        let fixed = [
            t0, t1, t2, t3, kind, f0, f1, q0, q1, q2, q3, s0, s1, s2, s3, s4, s5, s6, s7,
            p0, p1, l0, l1, r0, r1, r2, r3,
        ];
        fixed
    }
}

/// The fields before the routing information, as they were read.
struct Fixed {
    total: u32,
    kind: MessageType,
    flags: Flags,
    request_id: RequestId,
    timestamp: Timestamp,
    priority: Priority,
    ttl: Ttl,
    routing_len: u32,
}

impl Fixed {
    #[inline]
    const fn read(bytes: &[u8; FIXED_LEN]) -> Self {
        #[rustfmt::skip]
        let [
            t0, t1, t2, t3, kind, f0, f1, q0, q1, q2, q3, s0, s1, s2, s3, s4, s5, s6, s7,
            p0, p1, l0, l1, r0, r1, r2, r3,
        ] = *bytes;
        Self {
            total: u32::from_be_bytes([t0, t1, t2, t3]),
            kind: MessageType(kind),
            flags: Flags(u16::from_be_bytes([f0, f1])),
            request_id: RequestId(u32::from_be_bytes([q0, q1, q2, q3])),
            timestamp: Timestamp(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7])),
            priority: Priority(u16::from_be_bytes([p0, p1])),
            ttl: Ttl(u16::from_be_bytes([l0, l1])),
            routing_len: u32::from_be_bytes([r0, r1, r2, r3]),
        }
    }
}

/// A message that has neither options nor context, as most have not, read where it lies.
///
/// For who looks at a message before keeping it, or instead: nothing is shared and nothing counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainMessage<'a> {
    /// As [`Message::kind`].
    pub kind: MessageType,
    /// As [`Message::flags`].
    pub flags: Flags,
    /// As [`Message::request_id`].
    pub request_id: RequestId,
    /// As [`Message::timestamp`].
    pub timestamp: Timestamp,
    /// As [`Message::priority`].
    pub priority: Priority,
    /// As [`Message::ttl`].
    pub ttl: Ttl,
    /// The service that it is for.
    pub service: ServiceId,
    /// The method or topic that it is for.
    pub method: MethodId,
    /// As [`Message::payload`].
    pub payload: &'a [u8],
}

impl<'a> PlainMessage<'a> {
    /// Reads the message that `bytes` is, by the rules of [`Message::decode`].
    ///
    /// `None` where it has options or context, or something is wrong with it: [`Message::decode`] reads the one and says the
    /// other.
    #[inline]
    #[must_use]
    pub fn read(bytes: &'a [u8], limits: &MessageLimits) -> Option<Self> {
        let (fixed, rest) = bytes.split_first_chunk()?;
        let fixed = Fixed::read(fixed);
        let ((service, method), rest) = match fixed.routing_len {
            0 => ((ServiceId::NONE, MethodId::NONE), rest),
            ROUTING_FIXED_LEN if limits.routing >= ROUTING_FIXED_LEN => {
                let (&[s0, s1, s2, s3, m0, m1, m2, m3], rest) = rest.split_first_chunk()?;
                let service = u32::from_be_bytes([s0, s1, s2, s3]);
                let method = u32::from_be_bytes([m0, m1, m2, m3]);
                ((ServiceId(service), MethodId(method)), rest)
            }
            _ => return None,
        };
        let (lengths, payload) = rest.split_first_chunk()?;
        // The context's length, which has to be 0, and the payload's.
        let sound = u64::from_be_bytes(*lengths) == length(payload.len())
            && u64::from(fixed.total) == length(bytes.len())
            && fixed.total <= limits.message
            && fixed.kind != MessageType(0);
        sound.then_some(Self {
            kind: fixed.kind,
            flags: fixed.flags,
            request_id: fixed.request_id,
            timestamp: fixed.timestamp,
            priority: fixed.priority,
            ttl: fixed.ttl,
            service,
            method,
            payload,
        })
    }
}

/// Three arrays, one behind the other.
#[inline]
fn joined<const A: usize, const B: usize, const C: usize, const ALL: usize>(
    a: [u8; A],
    b: [u8; B],
    c: [u8; C],
) -> [u8; ALL] {
    const { assert!(A + B + C == ALL) };
    let mut all = [0; ALL];
    let (first, rest) = all.split_at_mut(A);
    let (second, third) = rest.split_at_mut(B);
    first.copy_from_slice(&a);
    second.copy_from_slice(&b);
    third.copy_from_slice(&c);
    all
}

const fn at(field: &'static str, offset: usize) -> At {
    At {
        record: "Message",
        field,
        offset,
    }
}

fn check_total(total: u32, base: usize, limits: &MessageLimits) -> Result<(), DecodeError> {
    if total > limits.message {
        return Err(DecodeError::TooLarge {
            at: at("total_length", base),
            value: total.into(),
            max: limits.message.into(),
            limit: Limit::Message,
        });
    }
    if u64::from(total) < length(Message::HEADER_LEN) {
        return Err(DecodeError::LengthMismatch {
            at: at("total_length", base),
            stated: total.into(),
            due: length(Message::HEADER_LEN),
        });
    }
    Ok(())
}

/// What is wrong with the total length of `bytes`, where something is.
#[cold]
fn wrong_total(bytes: &[u8], base: usize, limits: &MessageLimits) -> DecodeError {
    let Some(total) = bytes.first_chunk::<4>() else {
        return DecodeError::Truncated(at("total_length", base));
    };
    let total = u32::from_be_bytes(*total);
    match check_total(total, base, limits) {
        Err(error) => error,
        Ok(()) => DecodeError::LengthMismatch {
            at: at("total_length", base),
            stated: total.into(),
            due: length(bytes.len()),
        },
    }
}

/// Judges the length of routing or context. `remaining` is what it may take up.
fn check_part(
    field: &'static str,
    offset: usize,
    len: u32,
    remaining: u64,
    max: u32,
    limit: Limit,
) -> Result<usize, DecodeError> {
    if len > max {
        return Err(DecodeError::TooLarge {
            at: at(field, offset),
            value: len.into(),
            max: max.into(),
            limit,
        });
    }
    match usize::try_from(len) {
        Ok(size) if u64::from(len) <= remaining => Ok(size),
        _ => Err(DecodeError::LengthPastEnd {
            at: at(field, offset),
            len: len.into(),
            remaining,
        }),
    }
}

#[inline]
fn take_u32(bytes: &mut Bytes, field: &'static str, offset: usize) -> Result<u32, DecodeError> {
    let Some(value) = bytes.first_chunk::<LENGTH_LEN>().copied() else {
        return Err(DecodeError::Truncated(at(field, offset)));
    };
    bytes.advance(LENGTH_LEN);
    Ok(u32::from_be_bytes(value))
}

#[cold]
fn wrong_payload_len(stated: u32, remaining: usize, offset: usize) -> DecodeError {
    if u64::from(stated) > length(remaining) {
        return DecodeError::LengthPastEnd {
            at: at("payload_length", offset),
            len: stated.into(),
            remaining: length(remaining),
        };
    }
    let payload = usize::try_from(stated).unwrap_or(usize::MAX);
    DecodeError::TrailingBytes(at("end", offset + LENGTH_LEN + payload))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::{MethodId, ServiceId};

    fn sample() -> Message {
        let mut message = Message::new(MessageType::REQUEST, Bytes::from_static(b"payload"));
        message.routing = Routing::to(ServiceId(1), MethodId(2));
        message
    }

    #[test]
    fn head_and_payload_make_the_message() {
        let mut message = sample();
        for step in 0..3 {
            if step == 1 {
                message.context.set_tenant("acme").unwrap();
            }
            if step == 2 {
                message.routing.set_hop_limit(1);
            }
            let (mut whole, mut head) = (Vec::new(), Vec::new());
            message.encode(&mut whole);
            message.encode_head(&mut head);
            assert_eq!(head.len(), message.head_len());
            head.extend_from_slice(&message.payload);
            assert_eq!(head, whole);
        }
    }

    #[test]
    fn a_message_in_a_frame_is_the_frame_of_the_message() {
        for step in 0..4 {
            let mut message = sample();
            match step {
                0 => message.routing = Routing::new(),
                2 => message.context.set_tenant("acme").unwrap(),
                3 => message.routing.set_hop_limit(1),
                _ => {}
            }
            let (mut bytes, mut frame, mut framed) = (Vec::new(), Vec::new(), Vec::new());
            message.encode(&mut bytes);
            crate::Frame {
                stream: StreamId(0x0102),
                body: crate::FrameBody::Message(bytes.into()),
            }
            .encode(&mut frame);
            message.encode_frame(StreamId(0x0102), &mut framed);
            assert_eq!(framed, frame, "step {step}");
        }
    }

    /// Each byte of a header is set to each value: the short way takes exactly what it may, and as the long one does.
    #[test]
    fn the_short_way_reads_what_the_long_one_does() {
        let limits = MessageLimits {
            message: 60,
            context: 8,
            routing: 8,
        };
        let mut taken = 0;
        for routing in [Routing::new(), sample().routing] {
            let message = Message {
                routing,
                ..sample()
            };
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            for (place, value) in
                (0..bytes.len()).flat_map(|place| (0..=u8::MAX).map(move |value| (place, value)))
            {
                let mut changed = bytes.clone();
                changed[place] = value;
                let changed = Bytes::from(changed);
                let mut input = changed.clone();
                let short = Message::take_plain(&mut input, changed.len(), &limits);
                let long = Message::decode_at(changed.clone(), 0, &limits);
                match short {
                    Some(message) => {
                        assert!(input.is_empty());
                        assert_eq!(Ok(message), long);
                        taken += 1;
                    }
                    None => {
                        assert_eq!(input, changed, "nothing is taken");
                        let plain = long.as_ref().is_ok_and(|message| {
                            message.context.is_empty() && !message.routing.has_options()
                        });
                        assert!(!plain, "byte {place} = {value} is a plain message");
                    }
                }
                assert_eq!(Message::decode(changed, &limits), long);
            }
        }
        assert!(taken > 10_000, "{taken} were plain");
    }

    #[test]
    fn what_follows_a_message_stays() {
        let mut bytes = Vec::new();
        sample().encode(&mut bytes);
        let len = bytes.len();
        bytes.extend(b"next");
        let mut input = Bytes::from(bytes);
        assert_eq!(
            Message::take_plain(&mut input, len + 5, &MessageLimits::DEFAULT),
            None
        );
        assert_eq!(
            Message::take_plain(&mut input, len, &MessageLimits::DEFAULT),
            Some(sample())
        );
        assert_eq!(input, "next");
    }

    /// Spec: WIRE-19, WIRE-22, WIRE-24.
    #[test]
    fn the_first_part_tells_what_will_be_too_large() {
        let limits = MessageLimits {
            message: 100,
            context: 100,
            routing: 8,
        };
        let mut bytes = Vec::new();
        sample().encode(&mut bytes);
        assert_eq!(Message::peek_len(&bytes[..3], &limits), Ok(None));
        assert_eq!(Message::peek_len(&bytes[..4], &limits), Ok(Some(50)));

        let mut large = bytes.clone();
        large[3] = 101;
        let error = Message::peek_len(&large[..4], &limits).unwrap_err();
        assert_eq!(error.name(), "message-too-large");

        let mut zero = bytes.clone();
        zero[4] = 0;
        assert_eq!(
            Message::peek_len(&zero[..5], &limits).unwrap_err().name(),
            "reserved"
        );

        let mut routed = bytes.clone();
        routed[26] = 9;
        assert_eq!(Message::peek_len(&routed[..26], &limits), Ok(Some(50)));
        let error = Message::peek_len(&routed[..27], &limits).unwrap_err();
        assert_eq!(error.name(), "routing-too-large");
        let wide = MessageLimits {
            routing: 100,
            ..limits
        };
        routed[26] = 16;
        let error = Message::peek_len(&routed[..27], &wide).unwrap_err();
        assert_eq!(
            error.name(),
            "length-past-end",
            "50 bytes leave room for 15"
        );
    }

    #[test]
    fn control_types_are_the_first_fifteen() {
        let control: Vec<u8> = (0..=u8::MAX)
            .filter(|kind| MessageType(*kind).is_control())
            .collect();
        assert_eq!(control, (0x01..=0x0f).collect::<Vec<u8>>());
    }
}
