//! Why bytes could not be decoded, and where. Spec: message format §1.

use core::fmt;

use crate::ErrorCode;

/// Where a decode error lies: the record, the field, and the offset of the field's first byte.
///
/// The offset counts from the first byte that was given to the decoder, also inside a record that is
/// part of another. A blob or text begins with its length, and an option with its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The innermost record that has a name of its own, for example `CREDIT` or `Heartbeat`.
    pub record: &'static str,
    /// The field in that record, spelled as in the specification.
    pub field: &'static str,
    /// Offset of the field's first byte, in bytes.
    pub offset: usize,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} at byte {}", self.record, self.field, self.offset)
    }
}

/// Which limit was exceeded; each has a wire error code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// The payload of one frame, in bytes.
    Frame,
    /// One message, header included, in bytes.
    Message,
    /// The routing information of one message, in bytes.
    Routing,
    /// The context metadata of one message, in bytes.
    Context,
    /// The number of elements in a list, or the size of a field, that the specification bounds.
    Elements,
}

/// Why bytes from a peer could not be decoded. Always the peer's fault, never a local bug.
///
/// Each variant says where by [`At`], which prints as `CREDIT.limit at byte 8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The record ends inside a field of fixed size.
    #[error("{0}: the record ends inside the field")]
    Truncated(At),

    /// Bytes remain after the last field. The offset is that of the first such byte.
    #[error("{0}: bytes remain after the last field")]
    TrailingBytes(At),

    /// A length field says more than the record still holds.
    #[error("{at}: a length of {len} where {remaining} bytes remain")]
    #[expect(missing_docs, reason = "the message names every field")]
    LengthPastEnd { at: At, len: u64, remaining: u64 },

    /// The stated length of a whole record is not the length it has or may have.
    #[error("{at}: states {stated} bytes where {due} are due")]
    #[expect(missing_docs, reason = "the message names every field")]
    LengthMismatch { at: At, stated: u64, due: u64 },

    /// A value of fixed shape has another length than that shape.
    #[error("{at}: {len} bytes do not make a value of this kind")]
    #[expect(missing_docs, reason = "the message names every field")]
    WrongLength { at: At, len: u64 },

    /// A value that the specification reserves.
    #[error("{at}: {value:#x} is reserved")]
    #[expect(missing_docs, reason = "the message names every field")]
    Reserved { at: At, value: u64 },

    /// A value that may stand once stands twice. The offset is that of the second.
    #[error("{at}: {value:#x} stands twice")]
    #[expect(missing_docs, reason = "the message names every field")]
    Duplicate { at: At, value: u64 },

    /// A text is not valid UTF-8.
    #[error("{0}: not valid UTF-8")]
    InvalidUtf8(At),

    /// A value exceeds a limit of this endpoint or of the specification.
    #[error("{at}: {value} is above the limit of {max}")]
    #[expect(missing_docs, reason = "the message names every field")]
    TooLarge {
        at: At,
        value: u64,
        max: u64,
        limit: Limit,
    },

    /// The frame type is zero: most likely a zeroed buffer.
    #[error("{0}: a frame type of zero")]
    ZeroFrameType(At),

    /// The frame type is unknown and not one that may be skipped.
    #[error("{at}: unknown frame type {value:#06x}")]
    #[expect(missing_docs, reason = "the message names every field")]
    UnknownFrameType { at: At, value: u16 },

    /// A batch stands inside a batch.
    #[error("{0}: a batch inside a batch")]
    NestedBatch(At),
}

impl DecodeError {
    /// The stable name of this error, as the test vectors and the specification spell it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Truncated(_) => "truncated",
            Self::TrailingBytes(_) => "trailing-bytes",
            Self::LengthPastEnd { .. } => "length-past-end",
            Self::LengthMismatch { .. } => "length-mismatch",
            Self::WrongLength { .. } => "wrong-length",
            Self::Reserved { .. } => "reserved",
            Self::Duplicate { .. } => "duplicate",
            Self::InvalidUtf8(_) => "invalid-utf8",
            Self::TooLarge { limit, .. } => match limit {
                Limit::Frame => "frame-too-large",
                Limit::Message => "message-too-large",
                Limit::Routing => "routing-too-large",
                Limit::Context => "context-too-large",
                Limit::Elements => "too-many",
            },
            Self::ZeroFrameType(_) => "zero-frame-type",
            Self::UnknownFrameType { .. } => "unknown-frame-type",
            Self::NestedBatch(_) => "nested-batch",
        }
    }

    /// Where the error lies.
    #[must_use]
    pub const fn at(&self) -> At {
        match self {
            Self::Truncated(at)
            | Self::TrailingBytes(at)
            | Self::InvalidUtf8(at)
            | Self::ZeroFrameType(at)
            | Self::NestedBatch(at)
            | Self::LengthPastEnd { at, .. }
            | Self::LengthMismatch { at, .. }
            | Self::WrongLength { at, .. }
            | Self::Reserved { at, .. }
            | Self::Duplicate { at, .. }
            | Self::TooLarge { at, .. }
            | Self::UnknownFrameType { at, .. } => *at,
        }
    }

    /// The code that tells the peer of this error.
    #[must_use]
    pub const fn error_code(&self) -> ErrorCode {
        match self {
            Self::Truncated(_)
            | Self::TrailingBytes(_)
            | Self::LengthPastEnd { .. }
            | Self::LengthMismatch { .. }
            | Self::WrongLength { .. }
            | Self::Reserved { .. }
            | Self::Duplicate { .. }
            | Self::InvalidUtf8(_)
            | Self::NestedBatch(_) => ErrorCode::MALFORMED,
            Self::TooLarge { limit, .. } => match limit {
                Limit::Frame => ErrorCode::FRAME_TOO_LARGE,
                Limit::Message => ErrorCode::MESSAGE_TOO_LARGE,
                Limit::Routing => ErrorCode::ROUTING_TOO_LARGE,
                Limit::Context => ErrorCode::CONTEXT_TOO_LARGE,
                Limit::Elements => ErrorCode::MALFORMED,
            },
            Self::ZeroFrameType(_) | Self::UnknownFrameType { .. } => ErrorCode::UNKNOWN_FRAME,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn prints_record_field_and_offset() {
        let at = At {
            record: "CREDIT",
            field: "limit",
            offset: 8,
        };
        assert_eq!(
            DecodeError::Truncated(at).to_string(),
            "CREDIT.limit at byte 8: the record ends inside the field"
        );
        let large = DecodeError::TooLarge {
            at,
            value: 9,
            max: 8,
            limit: Limit::Frame,
        };
        assert_eq!(
            large.to_string(),
            "CREDIT.limit at byte 8: 9 is above the limit of 8"
        );
        assert_eq!(large.at(), at);
        assert_eq!(large.name(), "frame-too-large");
        assert_eq!(large.error_code(), ErrorCode::FRAME_TOO_LARGE);
    }
}
