//! Batches: several messages as one. Spec: message format §3.3.

use alloc::vec::Vec;

use bytes::{BufMut, Bytes};

use crate::{
    DecodeError, Flags, Message, MessageLimits, Reader,
    reader::{length, put_len},
};

/// Most messages of one batch.
pub const MAX_BATCH: u32 = 1024;

/// Payload of a message with the Batch Request flag, and of the response to it: whole messages, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// At most [`MAX_BATCH`], none of them a batch.
    pub messages: Vec<Message>,
}

impl Batch {
    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        4 + self
            .messages
            .iter()
            .map(Message::encoded_len)
            .sum::<usize>()
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_len(out, self.messages.len());
        for message in &self.messages {
            message.encode(out);
        }
    }

    /// Reads exactly one record. The messages share its buffer.
    ///
    /// # Errors
    ///
    /// Those of [`Message::decode`] for each message; [`DecodeError::LengthPastEnd`]: a message ends after the batch;
    /// [`DecodeError::NestedBatch`].
    pub fn decode(bytes: Bytes, limits: &MessageLimits) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Batch", bytes);
        let count = reader.count("message_count", MAX_BATCH)?;
        let mut messages = Vec::new();
        for _ in 0..count {
            let at = reader.at("message");
            let total = reader.peek_u32("message")?;
            let remaining = reader.remaining();
            let Some(size) = usize::try_from(total)
                .ok()
                .filter(|&size| size <= remaining)
            else {
                return Err(DecodeError::LengthPastEnd {
                    at,
                    len: total.into(),
                    remaining: length(remaining),
                });
            };
            let message = Message::decode_at(reader.bytes("message", size)?, at.offset, limits)?;
            if message.flags.contains(Flags::BATCH_REQUEST) {
                return Err(DecodeError::NestedBatch(at));
            }
            messages.push(message);
        }
        reader.finish()?;
        Ok(Self { messages })
    }
}
