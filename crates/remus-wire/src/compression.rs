//! Compressed payloads: what stands in place of the payload under the Compressed flag. Spec: message format §3.3.
//!
//! Inflates nothing; it says what has to be inflated, by what and to which size.

use bytes::{BufMut, Bytes};

use crate::{DecodeError, Limit, Reader, macros::codes};

codes! {
    /// By what a payload is compressed.
    pub struct Compression(u8) {
        /// Zstandard.
        ZSTD = 1,
        /// LZ4, one block.
        LZ4_BLOCK = 2,
        /// Brotli.
        BROTLI = 3,
        /// Deflate.
        DEFLATE = 4,
        /// Zstandard with the session's dictionary.
        ZSTD_DICTIONARY = 5,
    }
}

/// A payload that is compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressedPayload {
    /// By what.
    pub algorithm: Compression,
    /// Length of the payload before it was compressed, in bytes.
    pub original_len: u32,
    /// The compressed bytes.
    pub bytes: Bytes,
}

impl CompressedPayload {
    /// Length of the encoded record, in bytes.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        5 + self.bytes.len()
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.algorithm.0);
        out.put_u32(self.original_len);
        out.put_slice(&self.bytes);
    }

    /// Reads exactly one record, and refuses one that would inflate to more than `max_message` bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`]; [`DecodeError::Reserved`]: an unknown algorithm; [`DecodeError::TooLarge`] with
    /// [`Limit::Message`].
    pub fn decode(bytes: Bytes, max_message: u32) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Compressed", bytes);
        let at = reader.at("algorithm");
        let algorithm = Compression(reader.u8("algorithm")?);
        if algorithm.name().is_none() {
            return Err(DecodeError::Reserved {
                at,
                value: algorithm.0.into(),
            });
        }
        let at = reader.at("original_length");
        let original_len = reader.u32("original_length")?;
        if original_len > max_message {
            return Err(DecodeError::TooLarge {
                at,
                value: original_len.into(),
                max: max_message.into(),
                limit: Limit::Message,
            });
        }
        Ok(Self {
            algorithm,
            original_len,
            bytes: reader.rest(),
        })
    }
}
