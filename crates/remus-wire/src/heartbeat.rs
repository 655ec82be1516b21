//! Heartbeat (0x02): round trip, clock offset and load. Spec: message format §4.2.

use bytes::{BufMut, Bytes};

use crate::{DecodeError, Load, Reader, Timestamp};

/// Payload of Heartbeat. With the header's timestamp and the time of arrival these are the four times of NTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Timestamp of the peer's last heartbeat, by the peer's clock; [`Timestamp::ZERO`] where none came yet.
    pub origin: Timestamp,
    /// When that one arrived, by the sender's clock; [`Timestamp::ZERO`] where none came yet.
    pub received: Timestamp,
    /// How busy the sender is.
    pub load: Load,
}

impl Heartbeat {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 20;

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u64(self.origin.0);
        out.put_u64(self.received.0);
        out.put_u32(self.load.0);
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`], [`DecodeError::TrailingBytes`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Heartbeat", bytes);
        let record = Self {
            origin: Timestamp(reader.u64("origin")?),
            received: Timestamp(reader.u64("received")?),
            load: Load(reader.u32("load")?),
        };
        reader.finish()?;
        Ok(record)
    }
}
