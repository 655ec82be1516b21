//! Message flags. Spec: message format §3.3.

use crate::macros::bits;

bits! {
    /// What is special about a message. Bits without a name are ignored, and kept when forwarding.
    pub struct Flags(u16) {
        /// The payload is a [`CompressedPayload`](crate::CompressedPayload).
        COMPRESSED = 0x0001,
        /// Refused with UNAUTHENTICATED unless the session or the message is authenticated.
        REQUIRES_AUTH = 0x0002,
        /// Scheduled ahead; see [`Priority`](crate::Priority).
        HIGH_PRIORITY = 0x0004,
        /// On a request: a cached answer will do. On a response: it may be kept for the TTL.
        CACHEABLE = 0x0008,
        /// May be retried, hedged, and sent in 0-RTT data; nothing else may.
        IDEMPOTENT = 0x0010,
        /// The last message in this direction of its stream.
        STREAM_END = 0x0020,
        /// The payload is a [`Batch`](crate::Batch).
        BATCH_REQUEST = 0x0040,
        /// The state record holds changes, not the whole.
        STATE_DELTA = 0x0080,
        /// May be answered by an edge function.
        EDGE_COMPUTE = 0x0100,
        /// Acknowledged only after the cluster engine has committed it.
        REQUIRES_CONSENSUS = 0x0200,
        /// Never compressed, cached, logged, traced or kept; buffers are wiped.
        SENSITIVE_DATA = 0x0400,
        /// May leave its region; without it, it stays.
        CROSS_REGION = 0x0800,
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn sets_of_flags_combine_and_print() {
        let flags = Flags::IDEMPOTENT | Flags::CACHEABLE | Flags(0x8000);
        assert!(flags.contains(Flags::CACHEABLE) && !flags.contains(Flags::COMPRESSED));
        assert!(flags.intersects(Flags::COMPRESSED | Flags::IDEMPOTENT));
        assert_eq!(
            flags.difference(Flags::CACHEABLE),
            Flags::IDEMPOTENT | Flags(0x8000)
        );
        assert_eq!(flags.to_string(), "CACHEABLE|IDEMPOTENT|0x8000");
        assert_eq!(Flags::NONE.to_string(), "NONE");
    }
}
