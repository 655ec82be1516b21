//! Error codes: what a RESET, a STOP, a Shutdown and an error record say. Spec: message format §6.9.

use crate::macros::codes;

codes! {
    /// Why something failed or ended, as a peer is told.
    ///
    /// 0 to 16 are gRPC's canonical codes with their meaning; from 0x100 on they are the protocol's own.
    /// A code that is not named here is kept as it is, and treated like [`ErrorCode::UNKNOWN`].
    pub struct ErrorCode(u32) {
        /// No error: an orderly end.
        OK = 0,
        /// The caller gave the call up.
        CANCELLED = 1,
        /// Failed, and nothing more is known.
        UNKNOWN = 2,
        /// The request is wrong, whatever state the system is in.
        INVALID_ARGUMENT = 3,
        /// The time budget was spent before the answer was there.
        DEADLINE_EXCEEDED = 4,
        /// What was asked for does not exist.
        NOT_FOUND = 5,
        /// What was to be made exists already.
        ALREADY_EXISTS = 6,
        /// The caller is known, and may not do this.
        PERMISSION_DENIED = 7,
        /// A quota or a resource is used up.
        RESOURCE_EXHAUSTED = 8,
        /// The system is not in the state that the request needs.
        FAILED_PRECONDITION = 9,
        /// A conflict with something that happened at the same time.
        ABORTED = 10,
        /// Beyond the valid range, such as past the end of a file.
        OUT_OF_RANGE = 11,
        /// The method or message is not implemented here.
        UNIMPLEMENTED = 12,
        /// An invariant of the peer is broken.
        INTERNAL = 13,
        /// Not available now; trying again may help.
        UNAVAILABLE = 14,
        /// Data is lost or damaged beyond repair.
        DATA_LOSS = 15,
        /// The caller is not known well enough to decide.
        UNAUTHENTICATED = 16,

        /// Bytes that are no valid frame, message or record.
        MALFORMED = 0x100,
        /// No version is spoken by both peers.
        UNSUPPORTED_VERSION = 0x101,
        /// More was sent than the credit allowed.
        FLOW_CONTROL = 0x102,
        /// A message above the negotiated size.
        MESSAGE_TOO_LARGE = 0x103,
        /// A node found itself in the hop trail.
        LOOP_DETECTED = 0x104,
        /// The request may not be served in this region.
        WRONG_REGION = 0x105,
        /// The session that was to be resumed is gone.
        LOSS_OF_SESSION = 0x106,
        /// A frame above the negotiated size.
        FRAME_TOO_LARGE = 0x107,
        /// A frame type that is unknown and may not be skipped.
        UNKNOWN_FRAME = 0x108,
        /// A frame that its stream's state does not allow, or a stream ID of the wrong parity.
        STREAM_STATE = 0x109,
        /// More calls open than negotiated.
        TOO_MANY_CALLS = 0x10A,
        /// More streams open than negotiated.
        TOO_MANY_STREAMS = 0x10B,
        /// Context metadata above the limit.
        CONTEXT_TOO_LARGE = 0x10C,
        /// Routing information above the limit.
        ROUTING_TOO_LARGE = 0x10D,
        /// A queue of the peer is full.
        QUEUE_FULL = 0x10E,
        /// A message that the session's state or the stream does not allow.
        UNEXPECTED_MESSAGE = 0x10F,
        /// The peer is shutting down and takes on nothing new.
        SHUTTING_DOWN = 0x110,
        /// Control frames or messages faster than the limit.
        CONTROL_FLOOD = 0x111,
        /// Nothing was heard for longer than the idle timeout.
        IDLE_TIMEOUT = 0x112,
        /// The handshake took too long.
        HANDSHAKE_TIMEOUT = 0x113,
        /// An extension that must be understood is not.
        UNSUPPORTED_EXTENSION = 0x114,
        /// A request ID that is still in use.
        DUPLICATE_REQUEST = 0x115,
    }
}

impl ErrorCode {
    /// Whether trying again, perhaps elsewhere and after a pause, is the right answer to this code.
    ///
    /// True for UNAVAILABLE, LOSS_OF_SESSION, SHUTTING_DOWN, TOO_MANY_CALLS, TOO_MANY_STREAMS and QUEUE_FULL.
    /// After one that [`is_refusal`](Self::is_refusal) holds for, the request did not run, and anything may be
    /// tried again. After the first two it may have run: only a request that is idempotent may be tried again
    /// without asking the application. Spec: message format §6.9.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        self.is_refusal() || matches!(self, Self::UNAVAILABLE | Self::LOSS_OF_SESSION)
    }

    /// Whether this code says that the request was refused before anything of it ran.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::SHUTTING_DOWN | Self::TOO_MANY_CALLS | Self::TOO_MANY_STREAMS | Self::QUEUE_FULL
        )
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn names_known_codes_and_keeps_unknown_ones() {
        assert_eq!(ErrorCode(0x115).name(), Some("DUPLICATE_REQUEST"));
        assert_eq!(ErrorCode::FLOW_CONTROL.to_string(), "FLOW_CONTROL");
        assert_eq!(ErrorCode(0x999).name(), None);
        assert_eq!(ErrorCode(0x999).to_string(), "0x999");
    }

    #[test]
    fn only_the_six_named_codes_are_retryable() {
        let retryable: alloc::vec::Vec<u32> = (0..0x200)
            .filter(|&code| ErrorCode(code).is_retryable())
            .collect();
        assert_eq!(retryable, [14, 0x106, 0x10A, 0x10B, 0x10E, 0x110]);
    }
}
