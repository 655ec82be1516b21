//! Messages: the unit that peers exchange. Spec: message format §3.
//!
//! Knows the header and where its three parts lie, not what a payload means.
//! Invariant: of a decoded message, total length = 35 + routing + context + payload, and each is within
//! the limits; nothing was copied but the fixed fields.

use bytes::{Buf, BufMut, Bytes};

use crate::{
    At, Context, DecodeError, Flags, Limit, Priority, RequestId, Routing, Timestamp, Ttl,
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
    pub fn decode(bytes: Bytes, limits: &MessageLimits) -> Result<Self, DecodeError> {
        Self::decode_at(bytes, 0, limits)
    }

    /// As [`decode`](Self::decode), for a message that lies `base` bytes into the decoder's input.
    #[inline]
    pub(crate) fn decode_at(
        mut bytes: Bytes,
        base: usize,
        limits: &MessageLimits,
    ) -> Result<Self, DecodeError> {
        let len = bytes.len();
        let Some(fixed) = bytes.first_chunk::<FIXED_LEN>() else {
            return Err(wrong_total(&bytes, base, limits));
        };
        #[rustfmt::skip]
        let [
            t0, t1, t2, t3, kind, f0, f1, q0, q1, q2, q3, s0, s1, s2, s3, s4, s5, s6, s7,
            p0, p1, l0, l1, r0, r1, r2, r3,
        ] = *fixed;
        let total = u32::from_be_bytes([t0, t1, t2, t3]);
        if usize::try_from(total) != Ok(len) || len < Self::HEADER_LEN || total > limits.message {
            return Err(wrong_total(&bytes, base, limits));
        }
        if kind == 0 {
            return Err(DecodeError::Reserved {
                at: at("type", base + 4),
                value: 0,
            });
        }
        bytes.advance(FIXED_LEN);

        // Each length is checked against what remains, less the lengths that still have to come.
        let routing_len = u32::from_be_bytes([r0, r1, r2, r3]);
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
            kind: MessageType(kind),
            flags: Flags(u16::from_be_bytes([f0, f1])),
            request_id: RequestId(u32::from_be_bytes([q0, q1, q2, q3])),
            timestamp: Timestamp(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7])),
            priority: Priority(u16::from_be_bytes([p0, p1])),
            ttl: Ttl(u16::from_be_bytes([l0, l1])),
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
        let [t0, t1, t2, t3] = saturated(self.encoded_len()).to_be_bytes();
        let MessageType(kind) = self.kind;
        let [f0, f1] = self.flags.0.to_be_bytes();
        let [q0, q1, q2, q3] = self.request_id.0.to_be_bytes();
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.timestamp.0.to_be_bytes();
        let [p0, p1] = self.priority.0.to_be_bytes();
        let [l0, l1] = self.ttl.0.to_be_bytes();
        let routing_len = self.routing.encoded_len();
        let context_len = self.context.encoded_len();
        let [r0, r1, r2, r3] = saturated(routing_len).to_be_bytes();
        let [y0, y1, y2, y3] = saturated(self.payload.len()).to_be_bytes();
        #[rustfmt::skip]
        let fixed = [
            t0, t1, t2, t3, kind, f0, f1, q0, q1, q2, q3, s0, s1, s2, s3, s4, s5, s6, s7,
            p0, p1, l0, l1, r0, r1, r2, r3,
        ];
        if context_len == 0 && routing_len <= Routing::FIXED_LEN {
            // Nearly every message: no options. One write instead of up to six.
            let mut head = [0; Self::HEADER_LEN + Routing::FIXED_LEN];
            let [s0, s1, s2, s3] = self.routing.service.0.to_be_bytes();
            let [m0, m1, m2, m3] = self.routing.method.0.to_be_bytes();
            let (start, rest) = head.split_at_mut(FIXED_LEN);
            start.copy_from_slice(&fixed);
            if routing_len == 0 {
                let (lengths, unused) = rest.split_at_mut(2 * LENGTH_LEN);
                lengths.copy_from_slice(&[0, 0, 0, 0, y0, y1, y2, y3]);
                let used = Self::HEADER_LEN + Routing::FIXED_LEN - unused.len();
                out.put_slice(head.split_at(used).0);
            } else {
                rest.copy_from_slice(&[s0, s1, s2, s3, m0, m1, m2, m3, 0, 0, 0, 0, y0, y1, y2, y3]);
                out.put_slice(&head);
            }
        } else {
            out.put_slice(&fixed);
            self.routing.encode(out);
            out.put_u32(saturated(context_len));
            self.context.encode(out);
            out.put_slice(&[y0, y1, y2, y3]);
        }
    }
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
