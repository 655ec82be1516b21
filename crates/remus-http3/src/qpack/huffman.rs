//! The Huffman code of string literals, decoding only. Spec: RFC 7541 §5.2 and appendix B.
//!
//! The code is canonical: symbols of one length have consecutive codes in the order of their values,
//! so the lengths alone define it. Everything else is derived from them when this is compiled.

/// Length of the code of each symbol, in bits; the last is EOS.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30,
    28, 28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5,
    7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22,
    22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23,
    22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22,
    21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26,
    26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20,
    24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27,
    27, 28, 27, 27, 27, 27, 27, 26, 30
];

/// Longest code, in bits.
const MAX_BITS: usize = 30;

/// The end-of-string symbol, which must not be sent whole.
const EOS: u16 = 256;

/// How many symbols have each length.
const COUNTS: [u32; MAX_BITS + 1] = counts();

/// Symbols by length, then by value: the order of their codes.
const SYMBOLS: [u16; 257] = symbols();

#[expect(
    clippy::indexing_slicing,
    reason = "evaluated at compile time, where an index out of range does not build"
)]
const fn counts() -> [u32; MAX_BITS + 1] {
    let mut counts = [0; MAX_BITS + 1];
    let mut symbol = 0;
    while symbol < LENGTHS.len() {
        counts[LENGTHS[symbol] as usize] += 1;
        symbol += 1;
    }
    counts
}

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "evaluated at compile time, where an index out of range does not build; symbols are below 257"
)]
const fn symbols() -> [u16; 257] {
    let mut symbols = [0; 257];
    let mut at = 0;
    let mut bits = 1;
    while bits <= MAX_BITS {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == bits {
                symbols[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    symbols
}

/// Why a literal could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HuffmanError {
    /// EOS inside the literal, or padding that is not the start of EOS or is a byte or longer.
    Malformed,
    /// The literal is over the limit that was given.
    TooLong,
}

/// Decodes `input`, refusing more than `max` bytes of output.
pub(super) fn decode(input: &[u8], max: usize) -> Result<Vec<u8>, HuffmanError> {
    // The shortest code has 5 bits, so the output is at most 8/5 of the input, which has arrived.
    let mut out = Vec::with_capacity(max.min(input.len().saturating_mul(8) / 5));
    let mut walk = Walk::default();
    for byte in input {
        for shift in (0..8).rev() {
            let Some(symbol) = walk.bit((byte >> shift) & 1)? else {
                continue;
            };
            let symbol = u8::try_from(symbol).map_err(|_| HuffmanError::Malformed)?;
            if out.len() == max {
                return Err(HuffmanError::TooLong);
            }
            out.push(symbol);
        }
    }
    // Padding is the most significant bits of EOS, which are ones, and shorter than a byte.
    let ones = (1u32 << walk.bits.min(8)).wrapping_sub(1);
    if walk.bits > 7 || walk.code != ones {
        return Err(HuffmanError::Malformed);
    }
    Ok(out)
}

/// The walk through the code for one symbol.
#[derive(Default)]
struct Walk {
    /// The bits so far.
    code: u32,
    /// How many.
    bits: usize,
    /// Code of the first symbol with this many bits.
    first: u32,
    /// Symbols with fewer bits.
    before: usize,
}

impl Walk {
    /// Adds a bit; the symbol, if this completes one.
    fn bit(&mut self, bit: u8) -> Result<Option<u16>, HuffmanError> {
        self.code = (self.code << 1) | u32::from(bit);
        self.bits = self.bits.saturating_add(1);
        self.first <<= 1;
        let count = *COUNTS.get(self.bits).ok_or(HuffmanError::Malformed)?;
        let rank = self.code.wrapping_sub(self.first);
        if self.code >= self.first && rank < count {
            let at = usize::try_from(rank).map_err(|_| HuffmanError::Malformed)?;
            let symbol = SYMBOLS
                .get(self.before.saturating_add(at))
                .copied()
                .filter(|symbol| *symbol != EOS)
                .ok_or(HuffmanError::Malformed)?;
            *self = Self::default();
            return Ok(Some(symbol));
        }
        self.first = self.first.wrapping_add(count);
        let count = usize::try_from(count).map_err(|_| HuffmanError::Malformed)?;
        self.before = self.before.saturating_add(count);
        Ok(None)
    }
}

/// The code of `symbol` and its length in bits, for the tests that need an encoder.
#[cfg(test)]
pub(super) fn code_of(symbol: u8) -> (u32, usize) {
    let mut code = 0;
    let mut at = 0;
    for (bits, count) in COUNTS.iter().enumerate().skip(1) {
        code <<= 1;
        for _ in 0..*count {
            if SYMBOLS[at] == u16::from(symbol) {
                return (code, bits);
            }
            code += 1;
            at += 1;
        }
    }
    unreachable!("every byte has a code")
}

#[cfg(test)]
pub(super) fn encode(input: &[u8]) -> Vec<u8> {
    let mut bits = Vec::new();
    for byte in input {
        let (code, len) = code_of(*byte);
        bits.extend((0..len).rev().map(|shift| (code >> shift) & 1));
    }
    while bits.len() % 8 != 0 {
        bits.push(1);
    }
    let byte = |bits: &[u32]| bits.iter().fold(0, |byte, bit| (byte << 1) | bit);
    bits.chunks(8)
        .map(|bits| u8::try_from(byte(bits)).unwrap())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Codes copied from the table of RFC 7541 appendix B, one of most lengths.
    #[test]
    fn derives_the_codes_of_the_rfc() {
        let cases = [
            (b'0', 0x0, 5),
            (b't', 0x9, 5),
            (b' ', 0x14, 6),
            (b':', 0x5c, 7),
            (b'&', 0xf8, 8),
            (b'!', 0x3f8, 10),
            (b'+', 0x7fb, 11),
            (b'#', 0xffa, 12),
            (0, 0x1ff8, 13),
            (b'^', 0x3ffc, 14),
            (b'<', 0x7ffc, 15),
            (b'\\', 0x7fff0, 19),
            (1, 0x7f_ffd8, 23),
            (249, 0xfff_fffe, 28),
            (22, 0x3fff_fffe, 30),
        ];
        for (symbol, code, bits) in cases {
            assert_eq!(code_of(symbol), (code, bits), "symbol {symbol}");
        }
    }

    /// RFC 7541 §C.4.1 and §C.6.1.
    #[test]
    fn decodes_the_examples_of_the_rfc() {
        let authority = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        assert_eq!(decode(&authority, 99).unwrap(), b"www.example.com");
        assert_eq!(decode(&[0x64, 0x02], 99).unwrap(), b"302");
    }

    #[test]
    fn rejects_wrong_padding_and_eos() {
        let cases: [(&str, &[u8]); 4] = [
            ("zeros as padding", &[0x18]), // 'a' is 00011, then 000
            ("a whole byte of padding", &[0x1f, 0xff]),
            ("EOS", &[0xff, 0xff, 0xff, 0xff]),
            ("EOS after a symbol", &[0x1f, 0xff, 0xff, 0xff, 0xff]),
        ];
        for (name, input) in cases {
            assert_eq!(decode(input, 99), Err(HuffmanError::Malformed), "{name}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let encoded = encode(&bytes);
            prop_assert_eq!(decode(&encoded, bytes.len()), Ok(bytes.clone()));
            if !bytes.is_empty() {
                prop_assert_eq!(decode(&encoded, bytes.len() - 1), Err(HuffmanError::TooLong));
            }
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes, 64);
        }
    }
}
