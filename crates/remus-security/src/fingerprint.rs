//! The SHA-256 digest by which a certificate is pinned.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// SHA-256 of a certificate's DER form: what a browser calls a `serverCertificateHashes` value.
///
/// Prints as 64 lowercase hexadecimal digits, and parses from the same, in either case and with or
/// without colons between the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; Self::LEN]);

impl Fingerprint {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// The fingerprint of a certificate given in DER.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// The digest's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl From<[u8; Self::LEN]> for Fingerprint {
    fn from(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Why a text is no [`Fingerprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FingerprintError {
    /// Something that is neither a hexadecimal digit nor a colon.
    #[error("{0:?} is not a hexadecimal digit")]
    NotHex(char),
    /// Not 64 digits.
    #[error("{0} hexadecimal digits instead of 64")]
    Length(usize),
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0u8; Self::LEN];
        let mut digits = 0;
        for character in text.chars().filter(|&c| c != ':') {
            let value = character
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
                .ok_or(FingerprintError::NotHex(character))?;
            if let Some(byte) = bytes.get_mut(digits / 2) {
                *byte = (*byte << 4) | value;
            }
            digits += 1;
        }
        if digits != 2 * Self::LEN {
            return Err(FingerprintError::Length(digits));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "abc", from FIPS 180-4.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn is_the_sha_256_of_the_bytes_and_survives_its_text_form() {
        let fingerprint = Fingerprint::of(b"abc");
        assert_eq!(fingerprint.to_string(), ABC);
        assert_eq!(ABC.parse(), Ok(fingerprint));
    }

    #[test]
    fn parses_what_openssl_prints() {
        let colons: Vec<String> = ABC
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).to_uppercase())
            .collect();
        assert_eq!(colons.join(":").parse(), Ok(Fingerprint::of(b"abc")));
    }

    #[test]
    fn refuses_other_lengths_and_other_characters() {
        let parse = |text: &str| text.parse::<Fingerprint>();
        assert_eq!(parse(""), Err(FingerprintError::Length(0)));
        assert_eq!(parse(&ABC[1..]), Err(FingerprintError::Length(63)));
        assert_eq!(
            parse(&format!("{ABC}00")),
            Err(FingerprintError::Length(66))
        );
        assert_eq!(parse("0g"), Err(FingerprintError::NotHex('g')));
        assert_eq!(parse("٣"), Err(FingerprintError::NotHex('٣')));
    }
}
