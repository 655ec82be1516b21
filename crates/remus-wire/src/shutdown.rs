//! Shutdown (0x03): the session will end, and how. Spec: message format §4.2.

use core::time::Duration;

use bytes::{BufMut, Bytes};

use crate::{DecodeError, ErrorCode, Reader, RequestId, Text, error::millis, reader::put_text};

/// Payload of Shutdown. Calls up to `last_request` finish; later ones did not run, and may be tried elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// Why; [`ErrorCode::OK`] where all is in order.
    pub code: ErrorCode,
    /// How long open calls have, in whole ms, rounded up.
    pub grace: Duration,
    /// The last of the peer's requests that was taken on; [`RequestId::NONE`]: none.
    pub last_request: RequestId,
    /// Why, for people.
    pub reason: Text,
    /// Where to go instead, or empty.
    pub redirect: Text,
}

impl Shutdown {
    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        20 + self.reason.as_bytes().len() + self.redirect.as_bytes().len()
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.code.0);
        out.put_u32(millis(self.grace));
        out.put_u32(self.last_request.0);
        put_text(out, &self.reason);
        put_text(out, &self.redirect);
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Shutdown", bytes);
        let record = Self {
            code: ErrorCode(reader.u32("code")?),
            grace: Duration::from_millis(reader.u32("grace")?.into()),
            last_request: RequestId(reader.u32("last_request")?),
            reason: reader.text("reason")?,
            redirect: reader.text("redirect")?,
        };
        reader.finish()?;
        Ok(record)
    }
}
