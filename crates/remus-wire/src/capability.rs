//! Capability (0x05): what a node is, and how much it takes. Spec: message format §4.2.

use bytes::{BufMut, Bytes};

use crate::{DecodeError, Limit, MAX_FRAME, NodeId, Reader, macros::codes};

/// Smallest `max_frame` that a peer may state, in bytes: below it, headers would outweigh what they carry.
pub const MIN_MAX_FRAME: u32 = 256;

codes! {
    /// What a node does.
    pub struct NodeType(u32) {
        /// Calls services.
        CLIENT = 1,
        /// Serves.
        SERVICE = 2,
        /// Knows who serves what.
        REGISTRY = 3,
        /// Stands between networks.
        GATEWAY = 4,
        /// Runs functions near callers.
        EDGE = 5,
        /// Passes messages on.
        RELAY = 6,
        /// Watches a machine.
        AGENT = 7,
    }
}

crate::macros::bits! {
    /// What a node or a service can do, one bit each.
    ///
    /// No bit of a node is assigned yet. Those of a service are its own.
    pub struct Capabilities(u32) {}
}

/// How much of everything an endpoint takes. Each side states its own, and holds the other to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Payload of a frame, in bytes: [`MIN_MAX_FRAME`] to [`MAX_FRAME`].
    pub max_frame: u32,
    /// A whole message, in bytes.
    pub max_message: u32,
    /// Streams that the peer may have open.
    pub max_streams: u32,
    /// Calls that the peer may have open.
    pub max_calls: u32,
    /// Credit of a new stream, in bytes.
    pub stream_window: u32,
    /// Credit of a new session, in bytes.
    pub session_window: u32,
}

/// How much of a machine something may use, or has. 0 says: not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceRecord {
    /// CPU, in thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Network, in KiB/s.
    pub network_kib_per_s: u32,
    /// Storage operations per second.
    pub storage_iops: u32,
}

/// Payload of Capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The sender's node ID.
    pub node: NodeId,
    /// What it does.
    pub node_type: NodeType,
    /// What it can.
    pub capabilities: Capabilities,
    /// How much it takes.
    pub limits: Limits,
    /// What it has.
    pub resources: ResourceRecord,
}

impl ResourceRecord {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 16;

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.cpu_millicores);
        out.put_u32(self.memory_kib);
        out.put_u32(self.network_kib_per_s);
        out.put_u32(self.storage_iops);
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        reader.within("Resources", |reader| {
            Ok(Self {
                cpu_millicores: reader.u32("cpu")?,
                memory_kib: reader.u32("memory")?,
                network_kib_per_s: reader.u32("network")?,
                storage_iops: reader.u32("storage")?,
            })
        })
    }
}

impl Capability {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 36 + ResourceRecord::LEN;

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.node.0);
        out.put_u32(self.node_type.0);
        out.put_u32(self.capabilities.0);
        out.put_u32(self.limits.max_frame);
        out.put_u32(self.limits.max_message);
        out.put_u32(self.limits.max_streams);
        out.put_u32(self.limits.max_calls);
        out.put_u32(self.limits.stream_window);
        out.put_u32(self.limits.session_window);
        self.resources.encode(out);
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`], [`DecodeError::TrailingBytes`]; a `max_frame` below [`MIN_MAX_FRAME`] is
    /// [`DecodeError::Reserved`], one above [`MAX_FRAME`] [`DecodeError::TooLarge`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Capability", bytes);
        let node = NodeId(reader.u32("node")?);
        let node_type = NodeType(reader.u32("node_type")?);
        let capabilities = Capabilities(reader.u32("capabilities")?);
        let at = reader.at("max_frame");
        let max_frame = reader.u32("max_frame")?;
        if max_frame < MIN_MAX_FRAME {
            return Err(DecodeError::Reserved {
                at,
                value: max_frame.into(),
            });
        }
        if max_frame > MAX_FRAME {
            return Err(DecodeError::TooLarge {
                at,
                value: max_frame.into(),
                max: MAX_FRAME.into(),
                limit: Limit::Elements,
            });
        }
        let limits = Limits {
            max_frame,
            max_message: reader.u32("max_message")?,
            max_streams: reader.u32("max_streams")?,
            max_calls: reader.u32("max_calls")?,
            stream_window: reader.u32("stream_window")?,
            session_window: reader.u32("session_window")?,
        };
        let resources = ResourceRecord::read(&mut reader)?;
        reader.finish()?;
        Ok(Self {
            node,
            node_type,
            capabilities,
            limits,
            resources,
        })
    }
}
