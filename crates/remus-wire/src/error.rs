//! The error record, and the end of a stream. Spec: message format §4.3.

use alloc::vec::Vec;
use core::time::Duration;

use bytes::{BufMut, Bytes};

use crate::{
    DecodeError, ErrorCode, Reader, Text,
    reader::{put_blob, put_len, put_text},
};

/// Most details of one error record. What a person reads needs few; a list is no place for data.
pub const MAX_ERROR_DETAILS: u32 = 32;

/// On the wire: the caller should not try again.
const NO_RETRY: u32 = u32::MAX;

/// Why a call, a stream or a handshake failed: payload of Error (0x12), and part of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorRecord {
    /// What kind of failure. Never [`ErrorCode::OK`].
    pub code: ErrorCode,
    /// How long to wait before trying again, in whole ms, rounded up; `None`: don't.
    pub retry_after: Option<Duration>,
    /// What happened, for people.
    pub message: Text,
    /// What happened, for programs. At most [`MAX_ERROR_DETAILS`].
    pub details: Vec<ErrorDetail>,
}

/// One detail of an error, for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorDetail {
    /// What the value is: a full name, such as `acme.shop.v1.OutOfStock`.
    pub kind: Text,
    /// The value, in the form that its type has.
    pub value: Bytes,
}

impl ErrorRecord {
    /// An error without details. It may be tried again at once where its code [says so](ErrorCode::is_retryable), and
    /// otherwise should not be.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<Text>) -> Self {
        Self {
            code,
            retry_after: code.is_retryable().then_some(Duration::ZERO),
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// The value of the first detail of this type.
    #[must_use]
    pub fn detail(&self, kind: &str) -> Option<&Bytes> {
        self.details
            .iter()
            .find(|detail| detail.kind == *kind)
            .map(|detail| &detail.value)
    }

    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let details: usize = self
            .details
            .iter()
            .map(|detail| 8 + detail.kind.as_bytes().len() + detail.value.len())
            .sum();
        16 + self.message.as_bytes().len() + details
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.code.0);
        // A wait of 49 days or more is cut by 1 ms where it would say "don't".
        out.put_u32(
            self.retry_after
                .map_or(NO_RETRY, |wait| millis(wait).min(NO_RETRY - 1)),
        );
        put_text(out, &self.message);
        put_len(out, self.details.len());
        for detail in &self.details {
            put_text(out, &detail.kind);
            put_blob(out, &detail.value);
        }
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], with [`DecodeError::Reserved`] for code 0.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Error", bytes);
        let record = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(record)
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        reader.within("Error", |reader| {
            let at = reader.at("code");
            let code = ErrorCode(reader.u32("code")?);
            if code == ErrorCode::OK {
                return Err(DecodeError::Reserved { at, value: 0 });
            }
            let retry_after = match reader.u32("retry_after")? {
                NO_RETRY => None,
                wait => Some(Duration::from_millis(wait.into())),
            };
            let message = reader.text("message")?;
            let count = reader.count("detail_count", MAX_ERROR_DETAILS)?;
            let mut details = Vec::new();
            for _ in 0..count {
                let kind = reader.text("detail_type")?;
                let value = reader.blob("detail_value")?;
                details.push(ErrorDetail { kind, value });
            }
            Ok(Self {
                code,
                retry_after,
                message,
                details,
            })
        })
    }
}

/// Payload of StreamEnd (0x14): how a direction of a stream ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEnd {
    /// Why it failed, or `None` where it succeeded: then the payload is empty.
    pub error: Option<ErrorRecord>,
}

impl StreamEnd {
    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.error.as_ref().map_or(0, ErrorRecord::encoded_len)
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        if let Some(error) = &self.error {
            error.encode(out);
        }
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// Those of [`ErrorRecord::decode`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Ok(Self { error: None });
        }
        ErrorRecord::decode(bytes).map(|error| Self { error: Some(error) })
    }
}

/// A duration in ms, rounded up; what exceeds 32 bits counts as `u32::MAX`.
pub(crate) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_rounded_up_and_never_become_dont() {
        for (wait, expected) in [
            (Duration::from_micros(1), Duration::from_millis(1)),
            (Duration::from_millis(250), Duration::from_millis(250)),
            (Duration::MAX, Duration::from_millis((NO_RETRY - 1).into())),
        ] {
            let mut record = ErrorRecord::new(ErrorCode::UNAVAILABLE, "x");
            record.retry_after = Some(wait);
            let mut out = Vec::new();
            record.encode(&mut out);
            let decoded = ErrorRecord::decode(out.into()).unwrap();
            assert_eq!(decoded.retry_after, Some(expected));
        }
    }
}
