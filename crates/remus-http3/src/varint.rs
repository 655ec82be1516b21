//! QUIC variable-length integers: 1, 2, 4 or 8 bytes. Spec: RFC 9000 §16.
//!
//! Knows nothing of what the integers mean. Invariant: every decoded value is at most [`MAX`].

use bytes::{Buf, BufMut, Bytes};

/// The largest value that can be encoded, 2^62 - 1.
pub(crate) const MAX: u64 = (1 << 62) - 1;

/// Longest encoding, in bytes.
pub(crate) const MAX_LEN: usize = 8;

/// Bytes that [`encode`] writes for `value`.
#[must_use]
pub(crate) const fn encoded_len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends `value` in its shortest form.
///
/// A value above 2^62 - 1 has no encoding; it is a bug of the caller, and is written as 2^62 - 1.
pub fn encode(value: u64, out: &mut impl BufMut) {
    debug_assert!(value <= MAX, "{value} has no varint encoding");
    let value = value.min(MAX);
    let bytes = value.to_be_bytes();
    match (encoded_len(value), bytes) {
        (1, [.., a]) => out.put_u8(a),
        (2, [.., a, b]) => out.put_slice(&[a | 0x40, b]),
        (4, [.., a, b, c, d]) => out.put_slice(&[a | 0x80, b, c, d]),
        (_, [a, rest @ ..]) => {
            out.put_u8(a | 0xc0);
            out.put_slice(&rest);
        }
    }
}

/// Decodes one integer from the front of `input`: its value and the bytes it used.
///
/// `None` when `input` ends inside it. Forms longer than needed are valid.
#[must_use]
pub fn decode(input: &[u8]) -> Option<(u64, usize)> {
    let first = *input.first()?;
    let len = encoded_len_from_first(first);
    let rest = input.get(1..len)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| {
        (value << 8) | u64::from(*byte)
    });
    Some((value, len))
}

/// Length of the encoding that starts with `first`.
const fn encoded_len_from_first(first: u8) -> usize {
    1 << (first >> 6)
}

/// Decodes integers out of input that arrives in pieces of any size.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    value: u64,
    /// Bytes of the current integer that are still to come; 0 between integers.
    missing: usize,
}

impl Decoder {
    /// Takes bytes from the front of `input` until one integer is whole.
    ///
    /// `None` means that `input` is used up and more is needed.
    pub fn decode(&mut self, input: &mut Bytes) -> Option<u64> {
        if self.missing == 0 {
            if !input.has_remaining() {
                return None;
            }
            let first = input.get_u8();
            self.value = u64::from(first & 0x3f);
            self.missing = encoded_len_from_first(first).saturating_sub(1);
        }
        while self.missing > 0 {
            if !input.has_remaining() {
                return None;
            }
            self.value = (self.value << 8) | u64::from(input.get_u8());
            self.missing = self.missing.saturating_sub(1);
        }
        Some(self.value)
    }

    /// Whether no integer has been begun.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The four examples of RFC 9000 §A.1, and the two-byte form of 37.
    #[test]
    fn decodes_the_examples_of_the_rfc() {
        let cases: [(&[u8], u64); 5] = [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in cases {
            assert_eq!(decode(bytes), Some((value, bytes.len())));
        }
    }

    #[test]
    fn every_cut_is_incomplete() {
        let whole = [0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c];
        for cut in 0..whole.len() {
            assert_eq!(decode(&whole[..cut]), None, "{cut} bytes");
        }
    }

    proptest! {
        #[test]
        fn round_trips(value in 0..=MAX) {
            let mut out = Vec::new();
            encode(value, &mut out);
            prop_assert_eq!(out.len(), encoded_len(value));
            prop_assert_eq!(decode(&out), Some((value, out.len())));
        }

        #[test]
        fn pieces_decode_like_the_whole(values in prop::collection::vec(0..=MAX, 0..20), cut in 1usize..9) {
            let mut out = Vec::new();
            for value in &values {
                encode(*value, &mut out);
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in out.chunks(cut) {
                let mut piece = Bytes::copy_from_slice(piece);
                while let Some(value) = decoder.decode(&mut piece) {
                    got.push(value);
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(got, values);
        }
    }
}
