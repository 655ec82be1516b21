//! Frames: what a carrier transports. Spec: message format §2.
//!
//! Knows the shape of a frame, not what may come when: that is the session's.
//! Invariant: type and length are judged from the 8 header bytes alone, so nothing is kept for a frame that
//! will be refused.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{At, DecodeError, ErrorCode, Limit, StreamId, macros::codes, reader::saturated};

/// Largest payload of a frame while the peer has not stated another, in bytes.
pub const DEFAULT_MAX_FRAME: u32 = 64 * 1024;

/// Largest payload that a frame may ever have, in bytes: what a peer states above it is malformed.
pub const MAX_FRAME: u32 = 16 * 1024 * 1024;

/// Most lanes of a carrier, lane 0 included: beyond sixteen, loss on one lane hurts the others no less.
pub const MAX_LANES: u16 = 16;

codes! {
    /// What a frame is. Types from 0x8000 on may be skipped by who doesn't know them.
    pub struct FrameType(u16) {
        /// One whole message.
        MESSAGE = 0x0001,
        /// The next bytes of a message; more follow on this stream.
        PART = 0x0002,
        /// The last bytes of a message.
        LAST = 0x0003,
        /// How far the peer may send on this stream.
        CREDIT = 0x0004,
        /// The sender abandons its direction of the stream.
        RESET = 0x0005,
        /// The peer is asked to stop sending on the stream.
        STOP = 0x0006,
        /// A message that lies in a shared region.
        REFERENCE = 0x0007,
        /// How much of a lane was taken in.
        ACK = 0x0008,
    }
}

impl FrameType {
    /// The first of the types that may be skipped.
    pub const FIRST_IGNORABLE: Self = Self(0x8000);

    /// Whether a frame of this type may be skipped by who doesn't know it.
    #[must_use]
    pub const fn is_ignorable(self) -> bool {
        self.0 >= Self::FIRST_IGNORABLE.0
    }
}

/// The first 8 bytes of a frame.
///
/// ```text
///  0       2       4               8
/// +-------+-------+---------------+
/// | stream| type  | payload length|
/// +-------+-------+---------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The stream that the frame belongs to; 0 is control.
    pub stream: StreamId,
    /// What the payload is.
    pub kind: FrameType,
    /// Length of the payload, in bytes.
    pub len: u32,
}

impl FrameHeader {
    /// Length of the header, in bytes.
    pub const LEN: usize = 8;

    /// The header's bytes.
    #[must_use]
    #[inline]
    pub const fn encode(self) -> [u8; Self::LEN] {
        let [s0, s1] = self.stream.0.to_be_bytes();
        let [t0, t1] = self.kind.0.to_be_bytes();
        let [l0, l1, l2, l3] = self.len.to_be_bytes();
        [s0, s1, t0, t1, l0, l1, l2, l3]
    }

    /// Reads a header and judges nothing. See [`judge`](Self::judge).
    #[must_use]
    #[inline]
    pub const fn decode(bytes: [u8; Self::LEN]) -> Self {
        let [s0, s1, t0, t1, l0, l1, l2, l3] = bytes;
        Self {
            stream: StreamId(u16::from_be_bytes([s0, s1])),
            kind: FrameType(u16::from_be_bytes([t0, t1])),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        }
    }

    /// Reads and judges the header that `prefix` begins with; `None` while its 8 bytes are not all there.
    ///
    /// # Errors
    ///
    /// Those of [`judge`](Self::judge).
    #[inline]
    pub fn peek(prefix: &[u8], max_payload: u32) -> Result<Option<Self>, DecodeError> {
        let Some(bytes) = prefix.first_chunk::<{ Self::LEN }>() else {
            return Ok(None);
        };
        let header = Self::decode(*bytes);
        header.judge(max_payload)?;
        Ok(Some(header))
    }

    /// Whether a frame of this type and length may come, before any of its payload is there.
    ///
    /// `max_payload` is this endpoint's `max_frame` in bytes; above [`MAX_FRAME`] it counts as that.
    ///
    /// # Errors
    ///
    /// [`DecodeError::ZeroFrameType`], [`DecodeError::UnknownFrameType`]; [`DecodeError::TooLarge`] with
    /// [`Limit::Frame`]; [`DecodeError::Truncated`] and [`DecodeError::TrailingBytes`] where the type has a fixed
    /// length, and `Truncated` for an empty PART.
    #[inline]
    pub fn judge(self, max_payload: u32) -> Result<(), DecodeError> {
        // Nearly every frame carries bytes of messages; of these nothing but the length can be wrong.
        let carries = matches!(
            self.kind,
            FrameType::MESSAGE | FrameType::PART | FrameType::LAST
        );
        if carries && self.len != 0 && self.len <= max_payload.min(MAX_FRAME) {
            return Ok(());
        }
        self.judge_closely(max_payload)
    }

    /// As [`judge`](Self::judge), for the frames that are few, and for its errors.
    #[inline(never)]
    fn judge_closely(self, max_payload: u32) -> Result<(), DecodeError> {
        let (record, field, shortest, longest) = match self.kind {
            FrameType::MESSAGE => ("MESSAGE", "message", 0, u32::MAX),
            // An empty PART would make no progress and use no credit.
            FrameType::PART => ("PART", "bytes", 1, u32::MAX),
            FrameType::LAST => ("LAST", "bytes", 0, u32::MAX),
            FrameType::CREDIT => ("CREDIT", "limit", 8, 8),
            FrameType::RESET => ("RESET", "code", 4, 4),
            FrameType::STOP => ("STOP", "code", 4, 4),
            FrameType::REFERENCE => match self.len {
                0..4 => ("REFERENCE", "region", 16, 16),
                4..12 => ("REFERENCE", "offset", 16, 16),
                _ => ("REFERENCE", "length", 16, 16),
            },
            FrameType::ACK => match self.len {
                0..2 => ("ACK", "lane", 10, 10),
                _ => ("ACK", "offset", 10, 10),
            },
            kind if kind.is_ignorable() => ("FRAME", "payload", 0, u32::MAX),
            FrameType(0) => {
                return Err(DecodeError::ZeroFrameType(frame_at("type", 2)));
            }
            FrameType(value) => {
                return Err(DecodeError::UnknownFrameType {
                    at: frame_at("type", 2),
                    value,
                });
            }
        };
        let max = max_payload.min(MAX_FRAME);
        if self.len > max {
            return Err(DecodeError::TooLarge {
                at: frame_at("length", 4),
                value: self.len.into(),
                max: max.into(),
                limit: Limit::Frame,
            });
        }
        if self.len < shortest {
            let offset = match (record, field) {
                ("ACK", "offset") => Self::LEN + 2,
                (_, "offset") => Self::LEN + 4,
                (_, "length") => Self::LEN + 12,
                _ => Self::LEN,
            };
            return Err(DecodeError::Truncated(At {
                record,
                field,
                offset,
            }));
        }
        if self.len > longest {
            let fixed = usize::try_from(longest).unwrap_or(usize::MAX);
            let offset = Self::LEN.saturating_add(fixed);
            return Err(DecodeError::TrailingBytes(At {
                record,
                field: "end",
                offset,
            }));
        }
        Ok(())
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The stream that it belongs to; 0 is control.
    pub stream: StreamId,
    /// Type and payload.
    pub body: FrameBody,
}

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameBody {
    /// One whole message, not decoded yet.
    Message(Bytes),
    /// The next bytes of a message, at least one; more follow. The first PART begins with the message's header.
    Part(Bytes),
    /// The last bytes of a message.
    Last(Bytes),
    /// How far the peer may send on this stream, or on stream 0: in the session.
    ///
    /// Absolute, not a delta, so a repeated frame is harmless and resumption can use it.
    Credit {
        /// Offset in payload bytes from the start, exclusive.
        limit: u64,
    },
    /// The sender abandons its direction.
    Reset(ErrorCode),
    /// The sender asks the peer to stop sending.
    Stop(ErrorCode),
    /// A message that lies in a shared region.
    Reference {
        /// Which region.
        region: u32,
        /// Where the message begins in it, in bytes.
        offset: u64,
        /// The message's length, in bytes.
        len: u32,
    },
    /// How much the sender has taken in of a lane: what lies before needs not be kept for a resumption.
    ///
    /// Absolute, as [`FrameBody::Credit`] is.
    Ack {
        /// Which lane. That there is one of this number is the session's to judge.
        lane: u16,
        /// Bytes of whole frames, their headers included, since the epoch began.
        offset: u64,
    },
    /// A frame that was skipped, because its type is unknown and allows it. Encodes with an empty payload.
    Ignored(FrameType),
}

impl Frame {
    /// Length of a frame's header, in bytes.
    pub const HEADER_LEN: usize = FrameHeader::LEN;

    /// Takes the first frame off `input`, without copying its payload; `None` until all of it is there.
    ///
    /// With `None` or an error nothing is taken. Type and length are judged as soon as the 8 header bytes are there.
    /// `max_payload` is this endpoint's `max_frame`, in bytes.
    ///
    /// The payload shares the buffer of `input`, and keeps all of it in memory as long as it lives.
    ///
    /// # Errors
    ///
    /// Those of [`FrameHeader::judge`].
    #[inline]
    pub fn decode(input: &mut BytesMut, max_payload: u32) -> Result<Option<Self>, DecodeError> {
        let Some(header) = input.first_chunk::<{ Self::HEADER_LEN }>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(*header);
        header.judge(max_payload)?;
        let Ok(len) = usize::try_from(header.len) else {
            return Ok(None); // more than this machine can address, and above any limit
        };
        if input.len() - Self::HEADER_LEN < len {
            return Ok(None);
        }
        let mut payload = input.split_to(Self::HEADER_LEN + len).freeze();
        bytes::Buf::advance(&mut payload, Self::HEADER_LEN);
        FrameBody::decode(header.kind, payload).map(|body| {
            Some(Self {
                stream: header.stream,
                body,
            })
        })
    }

    /// The frame of a header that was [judged](FrameHeader::judge) and its whole payload, which is not copied.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] where the payload is not what the header announced.
    #[inline]
    pub fn from_parts(header: FrameHeader, payload: Bytes) -> Result<Self, DecodeError> {
        FrameBody::decode(header.kind, payload).map(|body| Self {
            stream: header.stream,
            body,
        })
    }

    /// The header that [`encode`](Self::encode) writes.
    #[must_use]
    pub fn header(&self) -> FrameHeader {
        FrameHeader {
            stream: self.stream,
            kind: self.body.kind(),
            len: saturated(self.body.encoded_len()),
        }
    }

    /// Length of the encoded frame, header included, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        Self::HEADER_LEN + self.body.encoded_len()
    }

    /// Writes the frame. That the payload is within the peer's `max_frame` is the caller's to see to.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.header().encode());
        match &self.body {
            FrameBody::Message(bytes) | FrameBody::Part(bytes) | FrameBody::Last(bytes) => {
                out.put_slice(bytes);
            }
            FrameBody::Credit { limit } => out.put_u64(*limit),
            FrameBody::Reset(code) | FrameBody::Stop(code) => out.put_u32(code.0),
            FrameBody::Reference {
                region,
                offset,
                len,
            } => {
                out.put_u32(*region);
                out.put_u64(*offset);
                out.put_u32(*len);
            }
            FrameBody::Ack { lane, offset } => {
                out.put_u16(*lane);
                out.put_u64(*offset);
            }
            FrameBody::Ignored(_) => {}
        }
    }
}

impl FrameBody {
    /// The frame type of this body.
    #[must_use]
    pub const fn kind(&self) -> FrameType {
        match self {
            Self::Message(_) => FrameType::MESSAGE,
            Self::Part(_) => FrameType::PART,
            Self::Last(_) => FrameType::LAST,
            Self::Credit { .. } => FrameType::CREDIT,
            Self::Reset(_) => FrameType::RESET,
            Self::Stop(_) => FrameType::STOP,
            Self::Reference { .. } => FrameType::REFERENCE,
            Self::Ack { .. } => FrameType::ACK,
            Self::Ignored(kind) => *kind,
        }
    }

    /// Length of the payload, in bytes.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        match self {
            Self::Message(bytes) | Self::Part(bytes) | Self::Last(bytes) => bytes.len(),
            Self::Credit { .. } => 8,
            Self::Reset(_) | Self::Stop(_) => 4,
            Self::Reference { .. } => 16,
            Self::Ack { .. } => 10,
            Self::Ignored(_) => 0,
        }
    }

    /// `kind` and the payload's length were judged.
    #[inline]
    fn decode(kind: FrameType, payload: Bytes) -> Result<Self, DecodeError> {
        Ok(match kind {
            FrameType::MESSAGE => Self::Message(payload),
            FrameType::PART => Self::Part(payload),
            FrameType::LAST => Self::Last(payload),
            FrameType::CREDIT => {
                let mut reader = crate::Reader::at_offset("CREDIT", payload, Frame::HEADER_LEN);
                let limit = reader.u64("limit")?;
                reader.finish()?;
                Self::Credit { limit }
            }
            FrameType::RESET => {
                let mut reader = crate::Reader::at_offset("RESET", payload, Frame::HEADER_LEN);
                let code = ErrorCode(reader.u32("code")?);
                reader.finish()?;
                Self::Reset(code)
            }
            FrameType::STOP => {
                let mut reader = crate::Reader::at_offset("STOP", payload, Frame::HEADER_LEN);
                let code = ErrorCode(reader.u32("code")?);
                reader.finish()?;
                Self::Stop(code)
            }
            FrameType::REFERENCE => {
                let mut reader = crate::Reader::at_offset("REFERENCE", payload, Frame::HEADER_LEN);
                let region = reader.u32("region")?;
                let offset = reader.u64("offset")?;
                let len = reader.u32("length")?;
                reader.finish()?;
                Self::Reference {
                    region,
                    offset,
                    len,
                }
            }
            FrameType::ACK => {
                let mut reader = crate::Reader::at_offset("ACK", payload, Frame::HEADER_LEN);
                let lane = reader.u16("lane")?;
                let offset = reader.u64("offset")?;
                reader.finish()?;
                Self::Ack { lane, offset }
            }
            kind => Self::Ignored(kind),
        })
    }
}

const fn frame_at(field: &'static str, offset: usize) -> At {
    At {
        record: "FRAME",
        field,
        offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_share_the_input_and_follow_each_other() {
        let mut input = BytesMut::new();
        for payload in [&b"first"[..], b"second"] {
            let body = FrameBody::Message(Bytes::copy_from_slice(payload));
            Frame {
                stream: StreamId(1),
                body,
            }
            .encode(&mut input);
        }
        let start = input.as_ptr();
        let Ok(Some(Frame {
            body: FrameBody::Message(first),
            ..
        })) = Frame::decode(&mut input, DEFAULT_MAX_FRAME)
        else {
            panic!("a MESSAGE frame");
        };
        assert_eq!(first, "first");
        assert_eq!(first.as_ptr(), start.wrapping_add(Frame::HEADER_LEN));
        let second = Frame::decode(&mut input, DEFAULT_MAX_FRAME)
            .unwrap()
            .unwrap();
        assert_eq!(
            second.body,
            FrameBody::Message(Bytes::from_static(b"second"))
        );
        assert_eq!(Frame::decode(&mut input, DEFAULT_MAX_FRAME), Ok(None));
    }

    /// Spec: WIRE-11. No capacity is set aside for a frame that has only announced itself.
    #[test]
    fn an_announced_payload_reserves_nothing() {
        let header = FrameHeader {
            stream: StreamId(1),
            kind: FrameType::MESSAGE,
            len: MAX_FRAME,
        };
        let mut input = BytesMut::from(&header.encode()[..]);
        let capacity = input.capacity();
        assert_eq!(Frame::decode(&mut input, MAX_FRAME), Ok(None));
        assert_eq!(input.capacity(), capacity);
    }

    #[test]
    fn headers_come_back_as_they_were() {
        let header = FrameHeader {
            stream: StreamId(0x0102),
            kind: FrameType(0x8304),
            len: 0x0506_0708,
        };
        assert_eq!(header.encode(), [1, 2, 0x83, 4, 5, 6, 7, 8]);
        assert_eq!(FrameHeader::decode(header.encode()), header);
    }
}
