//! Field sections: the static table and literals, never the dynamic table. Spec: RFC 9204.
//!
//! This endpoint announces a table of 0 bytes, so whatever refers to the dynamic table is an error of
//! the peer; it sends nothing that refers to it either.

mod huffman;
mod instructions;
mod integer;
mod static_table;

use bytes::{Buf, BufMut, Bytes};

pub use self::instructions::{DecoderStream, EncoderStream};
use self::{
    huffman::HuffmanError,
    static_table::{Reference, STATIC_TABLE},
};
use crate::{Code, fault::Fault};

/// What each field counts beyond its name and value, in bytes. Spec: RFC 9114 §4.2.2.
pub(crate) const FIELD_OVERHEAD_BYTES: usize = 32;

/// One field line, as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name; not checked.
    pub name: Bytes,
    /// Its value; not checked.
    pub value: Bytes,
}

impl Field {
    /// What it counts towards the limit of a field section.
    fn size(&self) -> usize {
        FIELD_OVERHEAD_BYTES
            .saturating_add(self.name.len())
            .saturating_add(self.value.len())
    }
}

/// Why a field section could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QpackError {
    /// The peers no longer agree: the connection ends.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The section is over the limit; only the message fails.
    #[error("field section above the limit")]
    TooLarge,
}

const fn failed(detail: &'static str) -> QpackError {
    QpackError::Fault(Fault::connection(Code::QPACK_DECOMPRESSION_FAILED, detail))
}

const TRUNCATED: QpackError = failed("the field section ends inside a field");
const DYNAMIC: QpackError = failed("a reference to the dynamic table, which has 0 bytes");

/// Decodes a field section of at most `max_bytes`, by the count of RFC 9114 §4.2.2.
///
/// Literals without Huffman coding are slices of `section`.
///
/// # Errors
///
/// [`QpackError::TooLarge`] above `max_bytes`; otherwise `QPACK_DECOMPRESSION_FAILED`.
pub fn decode(mut section: Bytes, max_bytes: usize) -> Result<Vec<Field>, QpackError> {
    let required_insert_count = prefixed(&mut section, 8)?;
    if required_insert_count != 0 {
        return Err(DYNAMIC);
    }
    // Delta Base, whose sign bit is part of it, says nothing without a dynamic table.
    let _ = prefixed(&mut section, 7)?;

    let mut fields = Vec::new();
    let mut left = max_bytes;
    while let Some(first) = section.first().copied() {
        let field = if first & 0x80 != 0 {
            if first & 0x40 == 0 {
                return Err(DYNAMIC);
            }
            let (name, value) = static_entry(prefixed(&mut section, 6)?)?;
            Field {
                name: Bytes::from_static(name.as_bytes()),
                value: Bytes::from_static(value.as_bytes()),
            }
        } else if first & 0x40 != 0 {
            if first & 0x10 == 0 {
                return Err(DYNAMIC);
            }
            let (name, _) = static_entry(prefixed(&mut section, 4)?)?;
            Field {
                name: Bytes::from_static(name.as_bytes()),
                value: literal(&mut section, 7, left)?,
            }
        } else if first & 0x20 != 0 {
            let name = literal(&mut section, 3, left)?;
            Field {
                name,
                value: literal(&mut section, 7, left)?,
            }
        } else {
            return Err(DYNAMIC); // both post-base forms
        };
        left = left.checked_sub(field.size()).ok_or(QpackError::TooLarge)?;
        fields.push(field);
    }
    Ok(fields)
}

fn prefixed(input: &mut Bytes, prefix_bits: u32) -> Result<u64, QpackError> {
    let (value, used) = integer::decode(input, prefix_bits).map_err(|error| match error {
        integer::IntegerError::Truncated => TRUNCATED,
        integer::IntegerError::Overflow => failed("an integer above 2^62 - 1"),
    })?;
    input.advance(used);
    Ok(value)
}

fn static_entry(index: u64) -> Result<(&'static str, &'static str), QpackError> {
    usize::try_from(index)
        .ok()
        .and_then(|index| STATIC_TABLE.get(index))
        .copied()
        .ok_or(failed("an index outside the static table"))
}

/// A string literal whose Huffman flag is the bit above the prefix of its length.
fn literal(input: &mut Bytes, prefix_bits: u32, max: usize) -> Result<Bytes, QpackError> {
    let first = input.first().copied().ok_or(TRUNCATED)?;
    let is_huffman = first & (1 << prefix_bits) != 0;
    let len = usize::try_from(prefixed(input, prefix_bits)?).unwrap_or(usize::MAX);
    if len > input.len() {
        return Err(TRUNCATED);
    }
    let raw = input.split_to(len);
    if is_huffman {
        return match huffman::decode(&raw, max) {
            Ok(decoded) => Ok(decoded.into()),
            Err(HuffmanError::TooLong) => Err(QpackError::TooLarge),
            Err(HuffmanError::Malformed) => Err(failed("a malformed Huffman literal")),
        };
    }
    if raw.len() > max {
        return Err(QpackError::TooLarge);
    }
    Ok(raw)
}

/// Appends a field section to a buffer, one field at a time.
#[derive(Debug)]
pub struct Encoder<'a, B> {
    out: &'a mut B,
    size: usize,
}

impl<'a, B: BufMut> Encoder<'a, B> {
    /// Begins a field section: its prefix says that it does not use the dynamic table.
    pub fn new(out: &'a mut B) -> Self {
        out.put_slice(&[0, 0]);
        Self { out, size: 0 }
    }

    /// Appends one field. `name` must be in lower case.
    pub fn field(&mut self, name: &str, value: &[u8]) {
        self.size = self
            .size
            .saturating_add(FIELD_OVERHEAD_BYTES)
            .saturating_add(name.len())
            .saturating_add(value.len());
        match static_table::find(name, value) {
            Some(Reference::Field(index)) => {
                integer::encode(index, 6, 0xc0, self.out);
                return;
            }
            Some(Reference::Name(index)) => integer::encode(index, 4, 0x50, self.out),
            None => {
                integer::encode(len(name.as_bytes()), 3, 0x20, self.out);
                self.out.put_slice(name.as_bytes());
            }
        }
        integer::encode(len(value), 7, 0x00, self.out);
        self.out.put_slice(value);
    }

    /// What the section counts so far towards the limit of its receiver. Spec: RFC 9114 §4.2.2.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 16;

    fn field(name: &str, value: &str) -> Field {
        Field {
            name: Bytes::copy_from_slice(name.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        }
    }

    /// RFC 9204 §B.1.
    #[test]
    fn decodes_the_example_of_the_rfc() {
        let section = [&[0x00, 0x00, 0x51, 0x0b][..], b"/index.html"].concat();
        assert_eq!(
            decode(section.into(), MAX),
            Ok(vec![field(":path", "/index.html")])
        );
    }

    #[test]
    fn dynamic_references_are_refused() {
        let cases: [(&str, &[u8]); 6] = [
            ("required insert count", &[0x03, 0x81, 0x10, 0x11]), // RFC 9204 §B.2
            ("indexed", &[0, 0, 0x80]),
            ("name reference", &[0, 0, 0x40, 0x00]),
            ("post-base indexed", &[0, 0, 0x10]),
            ("post-base name reference", &[0, 0, 0x00, 0x00]),
            ("index outside the static table", &[0, 0, 0xff, 0x24]), // 99
        ];
        for (name, section) in cases {
            match decode(Bytes::copy_from_slice(section), MAX) {
                Err(QpackError::Fault(fault)) => {
                    assert_eq!(fault.code, Code::QPACK_DECOMPRESSION_FAILED, "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn integers_that_overflow_are_refused() {
        let endless = [&[0, 0, 0x27][..], &[0xff; 12], &[0x7f]].concat();
        assert!(matches!(
            decode(endless.into(), MAX),
            Err(QpackError::Fault(_))
        ));
    }

    #[test]
    fn the_limit_counts_as_the_rfc_says() {
        let section = Bytes::from_static(&[0, 0, 0xd1]); // :method GET = 7 + 3 + 32
        assert!(decode(section.clone(), 42).is_ok());
        assert_eq!(decode(section, 41), Err(QpackError::TooLarge));
    }

    #[test]
    fn a_huffman_bomb_stops_at_the_limit() {
        let text = huffman::encode(&[b'a'; 100]);
        let mut section = vec![0, 0, 0x51, 0x80 | u8::try_from(text.len()).unwrap()];
        section.extend(text);
        assert_eq!(decode(section.into(), 64), Err(QpackError::TooLarge));
    }

    #[test]
    fn every_cut_is_an_error_or_fewer_fields() {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out);
        encoder.field(":method", b"GET");
        encoder.field("x-long-name", b"value");
        for cut in 0..out.len() {
            let got = decode(Bytes::copy_from_slice(&out[..cut]), MAX);
            assert!(
                got.is_err() || got.is_ok_and(|fields| fields.len() < 2),
                "{cut}"
            );
        }
    }

    proptest! {
        #[test]
        fn fields_round_trip(
            fields in prop::collection::vec(("[a-z:-]{1,20}", prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            from_table in prop::collection::vec(0usize..99, 0..5),
        ) {
            let mut sent: Vec<Field> = fields
                .iter()
                .map(|(name, value)| Field {
                    name: Bytes::copy_from_slice(name.as_bytes()),
                    value: Bytes::copy_from_slice(value),
                })
                .collect();
            sent.extend(from_table.iter().map(|at| field(STATIC_TABLE[*at].0, STATIC_TABLE[*at].1)));
            let mut out = Vec::new();
            let mut encoder = Encoder::new(&mut out);
            for field in &sent {
                encoder.field(std::str::from_utf8(&field.name).unwrap(), &field.value);
            }
            let size = encoder.size();
            prop_assert_eq!(decode(out.clone().into(), size), Ok(sent.clone()));
            if size > 0 {
                prop_assert_eq!(decode(out.into(), size - 1), Err(QpackError::TooLarge));
            }
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(Bytes::from(bytes.clone()), 1000);
            let _ = decode([&[0, 0][..], &bytes].concat().into(), 1000);
        }
    }
}
