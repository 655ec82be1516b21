//! Integers that share their first byte with flags. Spec: RFC 9204 §4.1.1, RFC 7541 §5.1.

use bytes::BufMut;

use crate::varint::MAX;

/// Why an integer could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IntegerError {
    /// The input ends inside it.
    Truncated,
    /// It is above 2^62 - 1, or longer than any such integer is.
    Overflow,
}

/// Bits that the bytes after the first may carry: enough for 2^62 - 1, and a bound on their number.
const MAX_SHIFT: u32 = 63;

/// The integer at the front of `input`, and the bytes it used. `prefix_bits` is 1 to 8.
pub(super) fn decode(input: &[u8], prefix_bits: u32) -> Result<(u64, usize), IntegerError> {
    let (first, rest) = input.split_first().ok_or(IntegerError::Truncated)?;
    let mut partial = Partial::new(*first, prefix_bits);
    let mut used = 1usize;
    let mut rest = rest.iter();
    loop {
        if let Some(value) = partial.value() {
            return Ok((value, used));
        }
        partial.byte(*rest.next().ok_or(IntegerError::Truncated)?)?;
        used = used.saturating_add(1);
    }
}

/// An integer whose bytes arrive one at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partial {
    value: u64,
    shift: u32,
    is_whole: bool,
}

impl Partial {
    pub(super) fn new(first: u8, prefix_bits: u32) -> Self {
        let mask = (1u64 << prefix_bits.min(8)).saturating_sub(1);
        let value = u64::from(first) & mask;
        Self {
            value,
            shift: 0,
            is_whole: value < mask,
        }
    }

    /// The value, once its last byte was taken.
    pub(super) fn value(&self) -> Option<u64> {
        self.is_whole.then_some(self.value)
    }

    pub(super) fn byte(&mut self, byte: u8) -> Result<(), IntegerError> {
        if self.shift > MAX_SHIFT {
            return Err(IntegerError::Overflow);
        }
        let bits = u64::from(byte & 0x7f);
        let part = bits.checked_shl(self.shift).unwrap_or(0);
        if part >> self.shift.min(63) != bits {
            return Err(IntegerError::Overflow);
        }
        self.value = self
            .value
            .checked_add(part)
            .filter(|value| *value <= MAX)
            .ok_or(IntegerError::Overflow)?;
        self.shift = self.shift.saturating_add(7);
        self.is_whole = byte & 0x80 == 0;
        Ok(())
    }
}

/// Appends `value` behind `flags`, which occupy the bits above the prefix.
pub(super) fn encode(value: u64, prefix_bits: u32, flags: u8, out: &mut impl BufMut) {
    let mask = u8::MAX >> 8u32.saturating_sub(prefix_bits).min(7);
    match u8::try_from(value) {
        Ok(value) if value < mask => out.put_u8(flags | value),
        _ => {
            out.put_u8(flags | mask);
            let mut rest = value.saturating_sub(u64::from(mask));
            while rest > 0x7f {
                out.put_u8(0x80 | low_bits(rest));
                rest >>= 7;
            }
            out.put_u8(low_bits(rest));
        }
    }
}

/// The low seven bits.
fn low_bits(value: u64) -> u8 {
    let [.., low] = value.to_be_bytes();
    low & 0x7f
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7541 §C.1.
    #[test]
    fn decodes_the_examples_of_the_rfc() {
        assert_eq!(decode(&[0b1110_1010], 5), Ok((10, 1)));
        assert_eq!(
            decode(&[0b0001_1111, 0b1001_1010, 0b0000_1010], 5),
            Ok((1337, 3))
        );
        assert_eq!(decode(&[42], 8), Ok((42, 1)));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let endless_zeros = [&[0xff][..], &[0x80; 20], &[0]].concat();
        assert_eq!(decode(&endless_zeros, 8), Err(IntegerError::Overflow));
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(decode(&too_large, 8), Err(IntegerError::Overflow));
        assert_eq!(decode(&[0x1f, 0x80], 5), Err(IntegerError::Truncated));
        assert_eq!(decode(&[], 5), Err(IntegerError::Truncated));
    }

    proptest! {
        #[test]
        fn round_trips(value in 0..=MAX, prefix in 1u32..=8) {
            let mut out = Vec::new();
            encode(value, prefix, 0, &mut out);
            prop_assert_eq!(decode(&out, prefix), Ok((value, out.len())));
            for cut in 0..out.len() {
                prop_assert_eq!(decode(&out[..cut], prefix), Err(IntegerError::Truncated));
            }
        }
    }
}
