//! The version record: what a peer speaks. Spec: message format §4.1.

use alloc::vec::Vec;
use core::{fmt, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    DecodeError, ErrorDetail, Reader, Text,
    error::millis,
    macros::bits,
    reader::{length, put_blob, put_len},
};

/// Most extensions of one version record: eight times what is defined or planned.
pub const MAX_EXTENSIONS: u32 = 64;

/// Most versions that a refusal lists.
const MAX_VERSIONS: usize = 64;

/// A version of the protocol. The lower minor of both peers wins; without a common major there is no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes with what older peers can't understand.
    pub major: u16,
    /// Changes with what older peers can ignore.
    pub minor: u16,
}

impl Version {
    /// What this crate encodes: 2.0.
    pub const CURRENT: Self = Self { major: 2, minor: 0 };

    /// Type of the error detail by which a refusal lists the versions that are spoken.
    pub const SPOKEN_DETAIL: &'static str = "remus.v2.Versions";

    /// The detail of a refusal with UNSUPPORTED_VERSION that lists these versions.
    #[must_use]
    pub fn spoken(versions: &[Self]) -> ErrorDetail {
        let mut value = BytesMut::new();
        for version in versions.iter().take(MAX_VERSIONS) {
            value.put_u16(version.major);
            value.put_u16(version.minor);
        }
        ErrorDetail {
            kind: Text::from_static(Self::SPOKEN_DETAIL),
            value: value.freeze(),
        }
    }

    /// The versions that such a detail's value lists.
    ///
    /// # Errors
    ///
    /// [`DecodeError::WrongLength`]: none, more than 64, or a part of one.
    pub fn decode_spoken(value: &Bytes) -> Result<Vec<Self>, DecodeError> {
        let (versions, rest) = value.as_chunks::<4>();
        if versions.is_empty() || versions.len() > MAX_VERSIONS || !rest.is_empty() {
            return Err(DecodeError::WrongLength {
                at: crate::At {
                    record: "Versions",
                    field: "versions",
                    offset: 0,
                },
                len: length(value.len()),
            });
        }
        Ok(versions
            .iter()
            .map(|&[a, b, c, d]| Self {
                major: u16::from_be_bytes([a, b]),
                minor: u16::from_be_bytes([c, d]),
            })
            .collect())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

bits! {
    /// What a peer can do beyond the core. Both must state a feature before either uses it.
    pub struct Features(u32) {
        /// Messages in datagrams.
        DATAGRAMS = 1 << 0,
        /// Topics.
        PUB_SUB = 1 << 1,
        /// State management.
        STATE = 1 << 2,
        /// Edge functions.
        EDGE = 1 << 3,
        /// Service discovery.
        DISCOVERY = 1 << 4,
        /// Metrics, traces, logs and audit.
        OBSERVABILITY = 1 << 5,
        /// Resuming a session on another carrier.
        RESUMPTION = 1 << 6,
        /// Batch requests.
        BATCH = 1 << 7,
        /// Writes that the cluster commits.
        CONSENSUS = 1 << 8,
        /// REFERENCE frames.
        SHARED_MEMORY = 1 << 9,
        /// Passing messages on to other nodes.
        RELAYING = 1 << 10,
        /// More than one lane of a carrier.
        LANES = 1 << 11,
    }
}

bits! {
    /// Which compressions a peer can undo: bit n for [`Compression`](crate::Compression) n.
    pub struct CompressionCaps(u32) {
        /// Zstandard.
        ZSTD = 1 << 1,
        /// LZ4, one block.
        LZ4_BLOCK = 1 << 2,
        /// Brotli.
        BROTLI = 1 << 3,
        /// Deflate.
        DEFLATE = 1 << 4,
        /// Zstandard with the session's dictionary.
        ZSTD_DICTIONARY = 1 << 5,
    }
}

/// Which extension: a number in the low 15 bits, and in the top bit whether it must be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtensionId(pub u16);

impl ExtensionId {
    /// The idle timeout in ms, a `u32`.
    pub const IDLE_TIMEOUT: Self = Self(1);

    /// The resume window in ms, a `u32`.
    pub const RESUME_WINDOW: Self = Self(2);

    const MUST_UNDERSTAND: u16 = 0x8000;

    /// The number, without the bit that says whether it must be understood.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0 & !Self::MUST_UNDERSTAND
    }

    /// Whether a peer that doesn't know it must refuse with UNSUPPORTED_EXTENSION.
    #[must_use]
    pub const fn must_understand(self) -> bool {
        self.0 & Self::MUST_UNDERSTAND != 0
    }

    /// Whether this crate knows what it means.
    #[must_use]
    pub const fn is_known(self) -> bool {
        matches!(
            Self(self.number()),
            Self::IDLE_TIMEOUT | Self::RESUME_WINDOW
        )
    }
}

impl fmt::Display for ExtensionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// One extension of a version record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Which.
    pub id: ExtensionId,
    /// Its value, in the form that it has.
    pub value: Bytes,
}

/// What a peer speaks: payload of the handshake's offer and accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRecord {
    /// In an offer the highest version spoken; in an accept the one that is used.
    pub version: Version,
    /// In an offer what is there; in an accept what both have.
    pub features: Features,
    /// Which compressions the sender can undo.
    pub compression: CompressionCaps,
    /// At most [`MAX_EXTENSIONS`], no number twice.
    pub extensions: Vec<Extension>,
}

impl VersionRecord {
    /// The current version with these features, no compression and no extension.
    #[must_use]
    pub const fn new(features: Features) -> Self {
        Self {
            version: Version::CURRENT,
            features,
            compression: CompressionCaps::NONE,
            extensions: Vec::new(),
        }
    }

    /// The value of the extension of this number, whether it must be understood or not.
    #[must_use]
    pub fn extension(&self, id: ExtensionId) -> Option<&Bytes> {
        self.extensions
            .iter()
            .find(|extension| extension.id.number() == id.number())
            .map(|extension| &extension.value)
    }

    /// The first extension that must be understood and is not known to this crate.
    #[must_use]
    pub fn unsupported(&self) -> Option<ExtensionId> {
        self.extensions
            .iter()
            .map(|extension| extension.id)
            .find(|id| id.must_understand() && !id.is_known())
    }

    /// The silence after which the sender takes the peer for lost, in whole ms; `None` where it doesn't say.
    #[must_use]
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.millis(ExtensionId::IDLE_TIMEOUT)
    }

    /// Sets [`idle_timeout`](Self::idle_timeout), rounded up to whole ms.
    pub fn set_idle_timeout(&mut self, timeout: Duration) {
        self.set_millis(ExtensionId::IDLE_TIMEOUT, timeout);
    }

    /// How long the sender keeps a session that has lost its carrier, in whole ms; `None` where it doesn't say.
    #[must_use]
    pub fn resume_window(&self) -> Option<Duration> {
        self.millis(ExtensionId::RESUME_WINDOW)
    }

    /// Sets [`resume_window`](Self::resume_window), rounded up to whole ms.
    pub fn set_resume_window(&mut self, window: Duration) {
        self.set_millis(ExtensionId::RESUME_WINDOW, window);
    }

    fn millis(&self, id: ExtensionId) -> Option<Duration> {
        let value: &[u8] = self.extension(id)?;
        let ms = u32::from_be_bytes(value.try_into().ok()?);
        Some(Duration::from_millis(ms.into()))
    }

    fn set_millis(&mut self, id: ExtensionId, duration: Duration) {
        self.extensions
            .retain(|extension| extension.id.number() != id.number());
        let value = Bytes::copy_from_slice(&millis(duration).to_be_bytes());
        self.extensions.push(Extension { id, value });
    }

    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        16 + self
            .extensions
            .iter()
            .map(|extension| 6 + extension.value.len())
            .sum::<usize>()
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u16(self.version.major);
        out.put_u16(self.version.minor);
        out.put_u32(self.features.0);
        out.put_u32(self.compression.0);
        put_len(out, self.extensions.len());
        for extension in &self.extensions {
            out.put_u16(extension.id.0);
            put_blob(out, &extension.value);
        }
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        reader.within("Version", |reader| {
            let major = reader.u16("major")?;
            let minor = reader.u16("minor")?;
            let features = Features(reader.u32("features")?);
            let compression = CompressionCaps(reader.u32("compression")?);
            let count = reader.count("extension_count", MAX_EXTENSIONS)?;
            let mut extensions: Vec<Extension> = Vec::new();
            for _ in 0..count {
                let at = reader.at("extension_id");
                let id = ExtensionId(reader.u16("extension_id")?);
                if extensions
                    .iter()
                    .any(|other| other.id.number() == id.number())
                {
                    return Err(DecodeError::Duplicate {
                        at,
                        value: id.0.into(),
                    });
                }
                let at = reader.at("extension_value");
                let value = reader.blob("extension_value")?;
                if id.is_known() && value.len() != 4 {
                    return Err(DecodeError::WrongLength {
                        at,
                        len: length(value.len()),
                    });
                }
                extensions.push(Extension { id, value });
            }
            Ok(Self {
                version: Version { major, minor },
                features,
                compression,
                extensions,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_timeout_replaces_itself() {
        let mut record = VersionRecord::new(Features::NONE);
        assert_eq!(record.idle_timeout(), None);
        record.set_idle_timeout(Duration::from_secs(30));
        record.set_idle_timeout(Duration::from_micros(1_500));
        assert_eq!(record.idle_timeout(), Some(Duration::from_millis(2)));
        assert_eq!(record.extensions.len(), 1);
    }

    #[test]
    fn finds_what_must_be_understood_and_is_not() {
        let mut record = VersionRecord::new(Features::NONE);
        let value = Bytes::from_static(&[0, 0, 0, 9]);
        record.extensions.push(Extension {
            id: ExtensionId(0x8001),
            value: value.clone(),
        });
        record.extensions.push(Extension {
            id: ExtensionId(0x0777),
            value: value.clone(),
        });
        assert_eq!(record.unsupported(), None);
        assert_eq!(record.idle_timeout(), Some(Duration::from_millis(9)));
        record.extensions.push(Extension {
            id: ExtensionId(0x8778),
            value,
        });
        assert_eq!(record.unsupported(), Some(ExtensionId(0x8778)));
    }

    #[test]
    fn a_refusal_lists_what_is_spoken() {
        let versions = [
            Version { major: 2, minor: 1 },
            Version { major: 3, minor: 0 },
        ];
        let detail = Version::spoken(&versions);
        assert_eq!(Version::decode_spoken(&detail.value).unwrap(), versions);
        for len in [0, 3, 7] {
            assert!(Version::decode_spoken(&detail.value.slice(..len)).is_err());
        }
    }
}
