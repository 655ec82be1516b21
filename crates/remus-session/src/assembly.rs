//! A message that arrives in parts. Spec: wire §2.
//!
//! Its header is judged when the first parts hold it; memory beyond [`AT_ONCE_MAX`] grows with what has arrived, not with
//! what was announced.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use remus_wire::{DecodeError, Flags, Message, MessageLimits, MessageType, RequestId};

/// Length up to which a message gets its memory at once, in bytes.
///
/// An element of a bulk stream and its header. What was announced counts against `max_assembly_bytes` from the start, so a peer
/// that announces and does not send gains nothing by it.
const AT_ONCE_MAX: usize = 128 * 1024;

/// Buffers of messages that came in parts, kept for the next: a session holds so many, of at most [`AT_ONCE_MAX`] each.
///
/// As many as arrive while the application has the first in hand. Beyond that the next message takes memory of its own.
const SPARES_MAX: usize = 4;

/// Memory from which a message was assembled, for the next one once the application has dropped that.
///
/// A long message's memory goes back to the system when it is freed and is faulted in again page by page, which costs more than
/// the bytes' copy.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    /// What is left of each buffer behind its message; mostly nothing.
    ends: VecDeque<BytesMut>,
    /// Whether any was asked for since the last heartbeat.
    used: bool,
}

impl Spares {
    /// An empty buffer with room for `len` bytes.
    fn take(&mut self, len: usize) -> BytesMut {
        if !(SPARES_FROM..=AT_ONCE_MAX).contains(&len) {
            return BytesMut::with_capacity(len);
        }
        self.used = true;
        let free = self.ends.iter_mut().position(|end| end.try_reclaim(len));
        free.and_then(|at| self.ends.remove(at))
            .unwrap_or_else(|| BytesMut::with_capacity(len))
    }

    /// Keeps what is left of a buffer from which a message was split off.
    fn keep(&mut self, end: BytesMut, len: usize) {
        if !(SPARES_FROM..=AT_ONCE_MAX).contains(&len) {
            return;
        }
        if self.ends.len() >= SPARES_MAX {
            self.ends.pop_front();
        }
        self.ends.push_back(end);
    }

    /// With each heartbeat: what nobody has used since the last is freed.
    pub(crate) fn let_go(&mut self) {
        if !core::mem::take(&mut self.used) {
            self.ends = VecDeque::new();
        }
    }
}

/// Length from which the memory of a message is used again, in bytes. Below it, the allocator keeps what it is given back.
const SPARES_FROM: usize = 16 * 1024;

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
    pub(crate) fn push(
        &mut self,
        part: &Bytes,
        limits: &MessageLimits,
        spares: &mut Spares,
    ) -> Result<(), DecodeError> {
        if self.bytes.is_empty() {
            // Mostly the first part holds the header: then the right room is made at once.
            self.total = announced(part, limits)?;
            let room = self.total.unwrap_or(0).min(AT_ONCE_MAX).max(part.len());
            self.bytes = spares.take(room);
            self.bytes.extend_from_slice(part);
            return Ok(());
        }
        self.make_room(part.len());
        self.bytes.extend_from_slice(part);
        if self.total.is_none() {
            self.total = announced(&self.bytes, limits)?;
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

    pub(crate) fn finish(mut self, spares: &mut Spares) -> Bytes {
        let whole = self.bytes.split().freeze();
        spares.keep(self.bytes, whole.len());
        whole
    }
}

/// The total length that a message's header announces, once all of the header is there. What is there is judged.
fn announced(bytes: &[u8], limits: &MessageLimits) -> Result<Option<usize>, DecodeError> {
    let total = Message::peek_len(bytes, limits)?;
    let whole_header = bytes.len() >= Message::HEADER_LEN;
    Ok(total
        .filter(|_| whole_header)
        .map(|total| usize::try_from(total).unwrap_or(usize::MAX)))
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

    /// A message of so many bytes of payload, assembled from two parts.
    fn assembled(len: usize, spares: &mut Spares) -> Bytes {
        let message = Message::new(MessageType::STREAM, Bytes::from(vec![7; len]));
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let mut first = Bytes::from(bytes);
        let second = first.split_off(100);
        let mut assembly = Assembly::default();
        for part in [first, second] {
            assembly
                .push(&part, &MessageLimits::DEFAULT, spares)
                .unwrap();
        }
        assert_eq!(assembly.total, Some(len + Message::HEADER_LEN));
        let whole = assembly.finish(spares);
        assert_eq!(whole.len(), len + Message::HEADER_LEN);
        whole
    }

    #[test]
    fn memory_of_a_message_that_was_dropped_serves_the_next() {
        let mut spares = Spares::default();
        let first = assembled(64 * 1024, &mut spares);
        let place = first.as_ptr();
        let second = assembled(64 * 1024, &mut spares);
        assert_ne!(second.as_ptr(), place, "the first is still held");
        drop(first);
        let third = assembled(64 * 1024, &mut spares);
        assert_eq!(third.as_ptr(), place);
        assert!(second.ends_with(&[7; 64]) && third.ends_with(&[7; 64]));
    }

    #[test]
    fn few_and_short_buffers_are_kept_and_none_for_long() {
        let mut spares = Spares::default();
        let held: Vec<_> = (0..10).map(|_| assembled(64 * 1024, &mut spares)).collect();
        assert_eq!(spares.ends.len(), SPARES_MAX);
        drop(held);
        spares.let_go();
        assert_eq!(spares.ends.len(), SPARES_MAX, "used since the last time");
        spares.let_go();
        assert!(spares.ends.is_empty());
        assembled(AT_ONCE_MAX, &mut spares);
        assembled(SPARES_FROM / 2, &mut spares);
        assert!(spares.ends.is_empty(), "too long, and too short");
    }
}
