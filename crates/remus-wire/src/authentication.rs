//! The authentication record: who a peer says it is, and by what. Spec: message format §4.1.

use core::fmt;

use bytes::{BufMut, Bytes};

use crate::{
    DecodeError, Reader, Text,
    macros::codes,
    reader::{put_blob, put_text},
};

codes! {
    /// By what a peer authenticates itself.
    pub struct AuthMethod(u32) {
        /// Not at all.
        NONE = 0,
        /// A bearer JWT.
        BEARER_JWT = 1,
        /// The identity of the TLS client certificate.
        MUTUAL_TLS = 2,
        /// A capability token (Biscuit).
        CAPABILITY_TOKEN = 3,
        /// A signed challenge (Ed25519, or a key in an HSM).
        SIGNED_CHALLENGE = 4,
        /// A zero-knowledge presentation (BBS).
        ZERO_KNOWLEDGE = 5,
    }
}

/// Who a peer says it is: payload of the handshake's step 3, and of the context option of one message.
///
/// `Debug` leaves the token out.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AuthenticationRecord {
    /// By what.
    pub method: AuthMethod,
    /// The token or proof, in the form that the method has.
    pub token: Bytes,
    /// Claims as JSON, or empty. They can only narrow what the token grants.
    pub claims: Text,
}

impl AuthenticationRecord {
    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        12 + self.token.len() + self.claims.as_bytes().len()
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.method.0);
        put_blob(out, &self.token);
        put_text(out, &self.claims);
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Authentication", bytes);
        let record = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(record)
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        reader.within("Authentication", |reader| {
            Ok(Self {
                method: AuthMethod(reader.u32("method")?),
                token: reader.blob("token")?,
                claims: reader.text("claims")?,
            })
        })
    }
}

impl fmt::Debug for AuthenticationRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticationRecord")
            .field("method", &self.method)
            .field("token", &format_args!("<{} bytes>", self.token.len()))
            .field("claims", &self.claims)
            .finish()
    }
}
