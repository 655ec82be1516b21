//! Reading and writing the primitive types of a record. Spec: message format §1.
//!
//! Knows no record. Invariant: `offset` is the number of bytes that lie before `bytes` in what the
//! decoder was given, so every error can say where it is.

use bytes::{Buf, BufMut, Bytes};

use crate::{At, DecodeError, Limit, Text};

/// Reads the fields of one record, in order, and knows where it is.
///
/// Slices share the input's buffer: reading allocates nothing. Each error names the record, the field and the
/// offset. `record` and `field` are the names the specification uses.
#[derive(Clone, Debug)]
pub struct Reader {
    record: &'static str,
    bytes: Bytes,
    offset: usize,
}

impl Reader {
    /// Reads `bytes` as a record of this name.
    #[must_use]
    pub const fn new(record: &'static str, bytes: Bytes) -> Self {
        Self::at_offset(record, bytes, 0)
    }

    /// As [`new`](Self::new), for bytes that lie `offset` bytes into what the decoder was given.
    #[must_use]
    pub const fn at_offset(record: &'static str, bytes: Bytes, offset: usize) -> Self {
        Self {
            record,
            bytes,
            offset,
        }
    }

    /// The place of a field that would begin here, for an error that the caller finds.
    #[must_use]
    pub const fn at(&self, field: &'static str) -> At {
        At {
            record: self.record,
            field,
            offset: self.offset,
        }
    }

    /// Bytes that are not read yet.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Reads a part that is a record of its own name; errors inside name that one.
    ///
    /// # Errors
    ///
    /// Those of `read`.
    pub fn within<T>(
        &mut self,
        record: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let outer = core::mem::replace(&mut self.record, record);
        let value = read(self);
        self.record = outer;
        value
    }

    /// Reads `N` bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`]: fewer remain.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some(array) = self.bytes.first_chunk::<N>().copied() else {
            return Err(DecodeError::Truncated(self.at(field)));
        };
        self.bytes.advance(N);
        self.offset += N;
        Ok(array)
    }

    /// Reads a `u8`.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`]: no byte remains.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_be_bytes)
    }

    /// Reads a `u16`.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`]: fewer than 2 bytes remain.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// Reads a `u32`.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`]: fewer than 4 bytes remain.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// Reads a `u64`.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`]: fewer than 8 bytes remain.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// Reads a `u32` and leaves it there.
    pub(crate) fn peek_u32(&self, field: &'static str) -> Result<u32, DecodeError> {
        match self.bytes.first_chunk() {
            Some(value) => Ok(u32::from_be_bytes(*value)),
            None => Err(DecodeError::Truncated(self.at(field))),
        }
    }

    /// Reads a `u32` count of elements that follow.
    ///
    /// The count alone must never size an allocation: let the list grow as its elements are read.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`]; [`DecodeError::TooLarge`] with [`Limit::Elements`]: above `max`.
    pub fn count(&mut self, field: &'static str, max: u32) -> Result<u32, DecodeError> {
        let at = self.at(field);
        let count = self.u32(field)?;
        if count > max {
            return Err(DecodeError::TooLarge {
                at,
                value: count.into(),
                max: max.into(),
                limit: Limit::Elements,
            });
        }
        Ok(count)
    }

    /// Takes the next `len` bytes, without a copy.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`]: fewer remain.
    pub fn bytes(&mut self, field: &'static str, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.bytes.len() {
            return Err(DecodeError::Truncated(self.at(field)));
        }
        Ok(self.split(len))
    }

    /// Reads a blob: a `u32` length, then that many bytes, without a copy.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`]: the length is cut; [`DecodeError::LengthPastEnd`]: it is more than remains.
    pub fn blob(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let at = self.at(field);
        let len = self.u32(field)?;
        match usize::try_from(len) {
            Ok(len) if len <= self.bytes.len() => Ok(self.split(len)),
            _ => Err(DecodeError::LengthPastEnd {
                at,
                len: len.into(),
                remaining: length(self.bytes.len()),
            }),
        }
    }

    /// Reads a text: a blob that is valid UTF-8, without a copy.
    ///
    /// # Errors
    ///
    /// Those of [`blob`](Self::blob), and [`DecodeError::InvalidUtf8`].
    pub fn text(&mut self, field: &'static str) -> Result<Text, DecodeError> {
        let at = self.at(field);
        let bytes = self.blob(field)?;
        Text::from_utf8(bytes).map_err(|_| DecodeError::InvalidUtf8(at))
    }

    /// Takes everything that remains, without a copy: the last field of a record that has no length.
    #[must_use]
    pub fn rest(self) -> Bytes {
        self.bytes
    }

    /// Ends the record, which must be used up.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TrailingBytes`]: bytes remain.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::TrailingBytes(self.at("end")))
        }
    }

    /// `len` is not more than remains.
    fn split(&mut self, len: usize) -> Bytes {
        if len == 0 {
            return Bytes::new(); // does not hold on to the input
        }
        self.offset += len;
        self.bytes.split_to(len)
    }
}

/// Writes a blob: a `u32` length, then the bytes.
///
/// A length above `u32::MAX` is written as `u32::MAX`, which no decoder accepts. Compare `encoded_len` with the
/// peer's limits before encoding, and this never happens.
pub fn put_blob(out: &mut impl BufMut, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.put_slice(bytes);
}

/// Writes a text. See [`put_blob`].
pub fn put_text(out: &mut impl BufMut, text: &str) {
    put_blob(out, text.as_bytes());
}

/// Writes a length or a count as `u32`. See [`put_blob`] for one that does not fit.
pub(crate) fn put_len(out: &mut impl BufMut, len: usize) {
    out.put_u32(saturated(len));
}

/// A length as it stands on the wire.
#[inline]
pub(crate) fn saturated(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A length for an error's text.
#[inline]
pub(crate) fn length(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn reader(bytes: &'static [u8]) -> Reader {
        Reader::new("Test", Bytes::from_static(bytes))
    }

    fn at(field: &'static str, offset: usize) -> At {
        At {
            record: "Test",
            field,
            offset,
        }
    }

    #[test]
    fn reads_fields_in_order_and_shares_the_buffer() {
        let bytes = Bytes::from_static(
            b"\x01\x00\x02\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x02hi\x09",
        );
        let mut reader = Reader::new("Test", bytes.clone());
        assert_eq!(reader.u8("a"), Ok(1));
        assert_eq!(reader.u16("b"), Ok(2));
        assert_eq!(reader.u32("c"), Ok(3));
        assert_eq!(reader.u64("d"), Ok(4));
        let text = reader.text("e").unwrap();
        assert_eq!(text, "hi");
        assert_eq!(text.as_bytes().as_ptr(), bytes[19..].as_ptr());
        assert_eq!(reader.at("f"), at("f", 21));
        assert_eq!(
            reader.clone().finish(),
            Err(DecodeError::TrailingBytes(at("end", 21)))
        );
        assert_eq!(reader.rest(), &b"\x09"[..]);
    }

    #[test]
    fn errors_point_at_the_first_byte_of_the_field() {
        let mut short = reader(b"\x01\x02\x03");
        assert_eq!(short.u16("a"), Ok(0x0102));
        assert_eq!(short.u16("b"), Err(DecodeError::Truncated(at("b", 2))));

        let mut past = reader(b"\x07\x00\x00\x00\x02x");
        assert_eq!(past.u8("a"), Ok(7));
        assert_eq!(
            past.blob("b"),
            Err(DecodeError::LengthPastEnd {
                at: at("b", 1),
                len: 2,
                remaining: 1
            })
        );
        assert_eq!(
            reader(b"\x00\x00\x00\x01\xff").text("t"),
            Err(DecodeError::InvalidUtf8(at("t", 0)))
        );
    }

    #[test]
    fn a_lying_length_is_refused_without_allocating() {
        // 4 GiB could not be reserved by a decoder that believed this on the machines that run the tests.
        assert!(matches!(
            reader(b"\xff\xff\xff\xff").blob("b"),
            Err(DecodeError::LengthPastEnd {
                len: 0xffff_ffff,
                remaining: 0,
                ..
            })
        ));
    }

    #[test]
    fn a_part_names_itself_and_keeps_counting() {
        let mut reader = reader(b"\x00\x00");
        assert_eq!(reader.u8("a"), Ok(0));
        let error = reader.within("Part", |part| part.u16("x")).unwrap_err();
        assert_eq!(
            error.at(),
            At {
                record: "Part",
                field: "x",
                offset: 1
            }
        );
        assert_eq!(reader.at("b"), at("b", 1));
    }

    #[test]
    fn blobs_and_texts_round_trip() {
        let mut out = BytesMut::new();
        put_blob(&mut out, b"\x00\x01");
        put_text(&mut out, "é");
        assert_eq!(
            out,
            &b"\x00\x00\x00\x02\x00\x01\x00\x00\x00\x02\xc3\xa9"[..]
        );
    }
}
