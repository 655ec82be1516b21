//! Schema (0x04): which schemas a peer has, wants and gives. Spec: message format §4.2.

use alloc::vec::Vec;

use bytes::{BufMut, Bytes};
use sha2::{Digest, Sha256};

use crate::{
    DecodeError, Reader, ServiceId,
    reader::{put_blob, put_len},
};

/// Most entries of one schema message: a node with more services offers them in several.
pub const MAX_SCHEMA_ENTRIES: u32 = 4096;

const OFFER: u8 = 1;
const WANT: u8 = 2;
const GIVE: u8 = 3;

/// Payload of Schema. A digest that the peer knows is never sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    /// 1: what the sender has.
    Offer(Vec<SchemaEntry>),
    /// 2: what the sender wants, from what was offered.
    Want(Vec<SchemaEntry>),
    /// 3: what was wanted.
    Give(Vec<SchemaGift>),
}

/// Names one version of a service's schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SchemaEntry {
    /// The service.
    pub service: ServiceId,
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// SHA-256 of the descriptor set.
    pub digest: [u8; 32],
}

/// A schema itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaGift {
    /// Which.
    pub entry: SchemaEntry,
    /// A protobuf `FileDescriptorSet`, whose digest the entry states.
    pub descriptor: Bytes,
}

impl SchemaGift {
    /// A schema with the digest that it has.
    #[must_use]
    pub fn new(service: ServiceId, major: u16, minor: u16, descriptor: Bytes) -> Self {
        let digest = digest(&descriptor);
        Self {
            entry: SchemaEntry {
                service,
                major,
                minor,
                digest,
            },
            descriptor,
        }
    }

    /// Whether the descriptor has the digest that the entry states. One that has not must not be used.
    #[must_use]
    pub fn is_genuine(&self) -> bool {
        digest(&self.descriptor) == self.entry.digest
    }
}

fn digest(descriptor: &[u8]) -> [u8; 32] {
    Sha256::digest(descriptor).into()
}

impl Schema {
    /// Number of the step, 1 to 3.
    #[must_use]
    pub const fn step(&self) -> u8 {
        match self {
            Self::Offer(_) => OFFER,
            Self::Want(_) => WANT,
            Self::Give(_) => GIVE,
        }
    }

    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        5 + match self {
            Self::Offer(entries) | Self::Want(entries) => entries.len() * SchemaEntry::LEN,
            Self::Give(gifts) => gifts
                .iter()
                .map(|gift| SchemaEntry::LEN + 4 + gift.descriptor.len())
                .sum(),
        }
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.step());
        match self {
            Self::Offer(entries) | Self::Want(entries) => {
                put_len(out, entries.len());
                for entry in entries {
                    entry.encode(out);
                }
            }
            Self::Give(gifts) => {
                put_len(out, gifts.len());
                for gift in gifts {
                    gift.entry.encode(out);
                    put_blob(out, &gift.descriptor);
                }
            }
        }
    }

    /// Reads exactly one record. Whether a gift has the digest that it states is [`SchemaGift::is_genuine`]'s to say.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], with [`DecodeError::Reserved`] for an unknown step.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Schema", bytes);
        let at = reader.at("step");
        let step = reader.u8("step")?;
        if !matches!(step, OFFER | WANT | GIVE) {
            return Err(DecodeError::Reserved {
                at,
                value: step.into(),
            });
        }
        let count = reader.count("entry_count", MAX_SCHEMA_ENTRIES)?;
        let schema = if step == GIVE {
            let mut gifts = Vec::new();
            for _ in 0..count {
                let entry = SchemaEntry::read(&mut reader)?;
                let descriptor = reader.blob("descriptor")?;
                gifts.push(SchemaGift { entry, descriptor });
            }
            Self::Give(gifts)
        } else {
            let mut entries = Vec::new();
            for _ in 0..count {
                entries.push(SchemaEntry::read(&mut reader)?);
            }
            if step == OFFER {
                Self::Offer(entries)
            } else {
                Self::Want(entries)
            }
        };
        reader.finish()?;
        Ok(schema)
    }
}

impl SchemaEntry {
    const LEN: usize = 40;

    fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.service.0);
        out.put_u16(self.major);
        out.put_u16(self.minor);
        out.put_slice(&self.digest);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            service: ServiceId(reader.u32("service_id")?),
            major: reader.u16("major")?,
            minor: reader.u16("minor")?,
            digest: reader.array("digest")?,
        })
    }
}
