//! HTTP/3, QPACK and WebTransport error codes, and how application codes travel inside them.
//! Spec: RFC 9114 §8.1, RFC 9204 §6, RFC 9297 §5.2, draft-ietf-webtrans-http3 §4.4 and §9.5.

use std::fmt;

use quinn::VarInt;

use crate::varint;

/// An HTTP/3 error code as it stands on the wire. An open set: unknown codes survive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(pub u64);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Code {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The registered name, if this code has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Nothing went wrong.
    H3_NO_ERROR = 0x100, "H3_NO_ERROR";
    /// The peer broke a rule that has no code of its own.
    H3_GENERAL_PROTOCOL_ERROR = 0x101, "H3_GENERAL_PROTOCOL_ERROR";
    /// A fault on this side.
    H3_INTERNAL_ERROR = 0x102, "H3_INTERNAL_ERROR";
    /// A stream that this side does not accept.
    H3_STREAM_CREATION_ERROR = 0x103, "H3_STREAM_CREATION_ERROR";
    /// The control stream, or a QPACK stream, was closed.
    H3_CLOSED_CRITICAL_STREAM = 0x104, "H3_CLOSED_CRITICAL_STREAM";
    /// A frame that is not allowed here.
    H3_FRAME_UNEXPECTED = 0x105, "H3_FRAME_UNEXPECTED";
    /// A frame whose layout or size is wrong.
    H3_FRAME_ERROR = 0x106, "H3_FRAME_ERROR";
    /// The peer causes more work than it should.
    H3_EXCESSIVE_LOAD = 0x107, "H3_EXCESSIVE_LOAD";
    /// An identifier was used wrongly: out of range, or growing where it must shrink.
    H3_ID_ERROR = 0x108, "H3_ID_ERROR";
    /// The SETTINGS frame is wrong.
    H3_SETTINGS_ERROR = 0x109, "H3_SETTINGS_ERROR";
    /// The control stream did not begin with SETTINGS.
    H3_MISSING_SETTINGS = 0x10a, "H3_MISSING_SETTINGS";
    /// The request was not processed at all, and may be sent again.
    H3_REQUEST_REJECTED = 0x10b, "H3_REQUEST_REJECTED";
    /// The request, or its answer, is no longer wanted.
    H3_REQUEST_CANCELLED = 0x10c, "H3_REQUEST_CANCELLED";
    /// The request ended before it was whole.
    H3_REQUEST_INCOMPLETE = 0x10d, "H3_REQUEST_INCOMPLETE";
    /// The message is malformed.
    H3_MESSAGE_ERROR = 0x10e, "H3_MESSAGE_ERROR";
    /// The connection behind a CONNECT was reset. Browsers use it for the streams of a closed session.
    H3_CONNECT_ERROR = 0x10f, "H3_CONNECT_ERROR";
    /// The operation cannot be done over HTTP/3.
    H3_VERSION_FALLBACK = 0x110, "H3_VERSION_FALLBACK";
    /// A datagram or capsule is malformed.
    H3_DATAGRAM_ERROR = 0x33, "H3_DATAGRAM_ERROR";
    /// A field section could not be decoded.
    QPACK_DECOMPRESSION_FAILED = 0x200, "QPACK_DECOMPRESSION_FAILED";
    /// A wrong instruction on the encoder stream.
    QPACK_ENCODER_STREAM_ERROR = 0x201, "QPACK_ENCODER_STREAM_ERROR";
    /// A wrong instruction on the decoder stream.
    QPACK_DECODER_STREAM_ERROR = 0x202, "QPACK_DECODER_STREAM_ERROR";
    /// A stream of a session that was not known, and for which no buffer was left.
    WT_BUFFERED_STREAM_REJECTED = 0x3994_bd84, "WT_BUFFERED_STREAM_REJECTED";
    /// The peers agree on no application protocol for a session.
    WT_ALPN_ERROR = 0x0817_b3dd, "WT_ALPN_ERROR";
    /// The session of this stream is closed.
    WT_SESSION_GONE = 0x170d_7b68, "WT_SESSION_GONE";
}

/// HTTP/3 code of application code 0.
const FIRST: u64 = 0x52e4_a40f_a8db;
/// HTTP/3 code of application code `u32::MAX`.
const LAST: u64 = 0x52e5_ac98_3162;

impl Code {
    /// The HTTP/3 code that carries application code `code` of a WebTransport stream.
    ///
    /// The range skips the code points that HTTP/3 reserves for GREASE, one in 31.
    #[must_use]
    pub const fn from_application(code: u32) -> Self {
        // `as` widens: `From` is not const.
        let code = code as u64;
        Self(FIRST + code + code / 0x1e)
    }

    /// The application code that this code carries, `None` for every other HTTP/3 code.
    #[must_use]
    pub fn to_application(self) -> Option<u32> {
        if !(FIRST..=LAST).contains(&self.0) || self.is_grease() {
            return None;
        }
        let shifted = self.0.saturating_sub(FIRST);
        u32::try_from(shifted.saturating_sub(shifted / 0x1f)).ok()
    }

    /// Whether this code point is reserved to exercise unknown codes. Spec: RFC 9114 §8.1.
    #[must_use]
    pub const fn is_grease(self) -> bool {
        self.0 >= 0x21 && (self.0 - 0x21).is_multiple_of(0x1f)
    }

    /// The code as QUIC carries it; a code that QUIC cannot carry becomes H3_INTERNAL_ERROR.
    pub(crate) fn to_quic(self) -> VarInt {
        debug_assert!(self.0 <= varint::MAX, "no QUIC code {}", self.0);
        VarInt::from_u64(self.0).unwrap_or(VarInt::from_u32(0x102))
    }
}

impl From<VarInt> for Code {
    fn from(code: VarInt) -> Self {
        Self(code.into_inner())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.to_application()) {
            (Some(name), _) => f.write_str(name),
            (None, Some(code)) => write!(f, "application code {code}"),
            (None, None) => write!(f, "HTTP/3 code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_range_ends_where_the_draft_says() {
        assert_eq!(Code::from_application(0), Code(0x52e4_a40f_a8db));
        assert_eq!(Code::from_application(u32::MAX), Code(0x52e5_ac98_3162));
        assert_eq!(Code(FIRST - 1).to_application(), None);
        assert_eq!(Code(LAST + 1).to_application(), None);
        assert_eq!(Code::H3_NO_ERROR.to_application(), None);
    }

    #[test]
    fn grease_inside_the_range_is_no_application_code() {
        let grease = (FIRST..FIRST + 31).map(Code).filter(|c| c.is_grease());
        let grease: Vec<_> = grease.collect();
        assert_eq!(grease.len(), 1);
        assert_eq!(grease[0].to_application(), None);
    }

    proptest! {
        #[test]
        fn application_codes_round_trip(code: u32) {
            let http3 = Code::from_application(code);
            prop_assert!(!http3.is_grease());
            prop_assert_eq!(http3.to_application(), Some(code));
        }
    }
}
