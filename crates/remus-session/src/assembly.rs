//! A message that arrives in parts. Spec: wire §2.
//!
//! Its header is judged when the first parts hold it; memory beyond [`AT_ONCE_MAX`] grows with what has arrived, not with
//! what was announced.

use bytes::{Bytes, BytesMut};
use remus_wire::{DecodeError, Flags, Message, MessageLimits, MessageType, RequestId};

/// Length up to which a message gets its memory at once, in bytes.
///
/// An element of a bulk stream and its header. What was announced counts against `max_assembly_bytes` from the start, so a peer
/// that announces and does not send gains nothing by it.
const AT_ONCE_MAX: usize = 128 * 1024;

/// Parts so far.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    bytes: BytesMut,
    /// The total that the header announces, once the whole header is there.
    pub(crate) total: Option<usize>,
}

impl Assembly {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a part; what it announces is judged as soon as it is there.
    pub(crate) fn push(&mut self, part: &Bytes, limits: &MessageLimits) -> Result<(), DecodeError> {
        self.make_room(part.len());
        self.bytes.extend_from_slice(part);
        if self.total.is_none() {
            let total = Message::peek_len(&self.bytes, limits)?;
            if self.bytes.len() >= Message::HEADER_LEN {
                self.total = total.map(|total| usize::try_from(total).unwrap_or(usize::MAX));
            }
        }
        Ok(())
    }

    /// Twice what there is, but not more than the whole; the whole at once where it is short.
    fn make_room(&mut self, more: usize) {
        let needed = self.bytes.len().saturating_add(more);
        if needed > self.bytes.capacity()
            && let Some(total) = self.total
        {
            let target = needed.saturating_mul(2).max(AT_ONCE_MAX).min(total);
            self.bytes
                .reserve(target.max(needed).saturating_sub(self.bytes.len()));
        }
    }

    /// The call that this message answers, if it is an answer and enough of it is there to say so.
    pub(crate) fn answers(&self) -> Option<RequestId> {
        match self.bytes.get(..REQUEST_ID_END)? {
            [_, _, _, _, kind, _, _, a, b, c, d]
                if matches!(
                    MessageType(*kind),
                    MessageType::RESPONSE | MessageType::ERROR
                ) =>
            {
                Some(RequestId(u32::from_be_bytes([*a, *b, *c, *d])))
            }
            _ => None,
        }
    }

    pub(crate) fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// Bytes of a message's header up to and including its flags, and its request ID.
const FLAGS_END: usize = 7;
const REQUEST_ID_END: usize = 11;

/// Follows a direction whose bytes are dropped just closely enough to see where it ends.
#[derive(Debug, Default)]
pub(crate) struct Discard {
    head: Vec<u8>,
}

impl Discard {
    /// Starts within the message that has half arrived.
    pub(crate) fn within(assembly: Option<&Assembly>) -> Self {
        let bytes = assembly.map_or(&[][..], Assembly::bytes);
        Self {
            head: bytes.iter().copied().take(FLAGS_END).collect(),
        }
    }

    /// Sees the next bytes; true when a message ends here that ends its direction.
    pub(crate) fn push(&mut self, bytes: &[u8], last: bool) -> bool {
        let missing = FLAGS_END.saturating_sub(self.head.len());
        self.head
            .extend_from_slice(bytes.get(..missing).unwrap_or(bytes));
        if !last {
            return false;
        }
        let head = core::mem::take(&mut self.head);
        match head.as_slice() {
            [_, _, _, _, kind, high, low, ..] => {
                let flags = Flags(u16::from_be_bytes([*high, *low]));
                let kind = MessageType(*kind);
                flags.contains(Flags::STREAM_END)
                    || matches!(
                        kind,
                        MessageType::RESPONSE | MessageType::ERROR | MessageType::STREAM_END
                    )
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_direction_is_followed_to_its_end() {
        let mut end = Message::new(MessageType::STREAM_END, Bytes::new());
        let mut bytes = Vec::new();
        end.encode(&mut bytes);
        let mut discard = Discard::default();
        assert!(!discard.push(&bytes[..3], false));
        assert!(discard.push(&bytes[3..], true));
        end.kind = MessageType::STREAM;
        bytes.clear();
        end.encode(&mut bytes);
        assert!(!discard.push(&bytes, true));
        end.flags = Flags::STREAM_END;
        bytes.clear();
        end.encode(&mut bytes);
        assert!(discard.push(&bytes, true));
    }
}
