//! Routing information: whom a message is for, and which way it may go. Spec: message format §3.1.

use core::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    At, DecodeError, MethodId, NodeId, OptionTooLong, RegionId, ServiceId, ServiceVersion, ZoneId,
    options::{Options, Shape, check_len},
};

const AFFINITY: u8 = 1;
const TARGET_NODE: u8 = 2;
const ORIGIN_REGION: u8 = 3;
const ALLOWED_REGIONS: u8 = 4;
const HOP_TRAIL: u8 = 5;
const TOPIC: u8 = 6;
const VERSION_RANGE: u8 = 7;
const HOP_LIMIT: u8 = 8;
const PREFERRED_ZONE: u8 = 9;

fn shape(kind: u8) -> Option<(&'static str, Shape)> {
    Some(match kind {
        AFFINITY => ("affinity_key", Shape::Opaque),
        TARGET_NODE => ("target_node", Shape::Fixed(4)),
        ORIGIN_REGION => ("origin_region", Shape::Fixed(4)),
        ALLOWED_REGIONS => ("allowed_regions", Shape::List(4)),
        HOP_TRAIL => ("hop_trail", Shape::List(4)),
        TOPIC => ("topic", Shape::Text),
        VERSION_RANGE => ("version_range", Shape::Fixed(8)),
        HOP_LIMIT => ("hop_limit", Shape::Fixed(1)),
        PREFERRED_ZONE => ("preferred_zone", Shape::Fixed(4)),
        _ => return None,
    })
}

/// Whom a message is for, and which way it may go. The default says nothing, and takes no bytes.
///
/// Options that are not known here, from kind 0x80 on, are kept and forwarded.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// The service.
    pub service: ServiceId,
    /// The method or topic.
    pub method: MethodId,
    options: Options,
}

impl Routing {
    /// Bytes before the options: service and method.
    pub(crate) const FIXED_LEN: usize = 8;

    /// Nothing said.
    #[must_use]
    pub const fn new() -> Self {
        Self::to(ServiceId::NONE, MethodId::NONE)
    }

    /// To a method of a service.
    #[must_use]
    pub const fn to(service: ServiceId, method: MethodId) -> Self {
        Self {
            service,
            method,
            options: Options::new(),
        }
    }

    /// Whether it says nothing, and so takes no bytes.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.service == ServiceId::NONE && self.method == MethodId::NONE && self.options.is_empty()
    }

    #[inline]
    pub(crate) const fn has_options(&self) -> bool {
        !self.options.is_empty()
    }

    /// What requests must share to reach the same node.
    #[must_use]
    pub fn affinity(&self) -> Option<&[u8]> {
        self.options.value(AFFINITY)
    }

    /// Sets [`affinity`](Self::affinity).
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`].
    pub fn set_affinity(&mut self, key: &[u8]) -> Result<(), OptionTooLong> {
        self.options.set("affinity key", AFFINITY, key)
    }

    /// The node that has to serve this.
    #[must_use]
    pub fn target_node(&self) -> Option<NodeId> {
        self.u32(TARGET_NODE).map(NodeId)
    }

    /// Sets [`target_node`](Self::target_node).
    pub fn set_target_node(&mut self, node: NodeId) {
        self.set_fixed(TARGET_NODE, node.0.to_be_bytes());
    }

    /// The region that this comes from.
    #[must_use]
    pub fn origin_region(&self) -> Option<RegionId> {
        self.u32(ORIGIN_REGION).map(RegionId)
    }

    /// Sets [`origin_region`](Self::origin_region).
    pub fn set_origin_region(&mut self, region: RegionId) {
        self.set_fixed(ORIGIN_REGION, region.0.to_be_bytes());
    }

    /// The regions that may serve this; none named means that the option is not there.
    pub fn allowed_regions(&self) -> impl Iterator<Item = RegionId> {
        self.options
            .list(ALLOWED_REGIONS)
            .map(|id| RegionId(u32::from_be_bytes(id)))
    }

    /// Sets [`allowed_regions`](Self::allowed_regions); an empty list takes the option away.
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`]: more than 16383.
    pub fn set_allowed_regions(&mut self, regions: &[RegionId]) -> Result<(), OptionTooLong> {
        self.set_list(
            "allowed regions",
            ALLOWED_REGIONS,
            regions.iter().map(|id| id.0),
        )
    }

    /// The nodes that this went through, first to last.
    pub fn hop_trail(&self) -> impl Iterator<Item = NodeId> {
        self.options
            .list(HOP_TRAIL)
            .map(|id| NodeId(u32::from_be_bytes(id)))
    }

    /// Sets [`hop_trail`](Self::hop_trail); an empty list takes the option away.
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`]: more than 16383.
    pub fn set_hop_trail(&mut self, nodes: &[NodeId]) -> Result<(), OptionTooLong> {
        self.set_list("hop trail", HOP_TRAIL, nodes.iter().map(|id| id.0))
    }

    /// The topic's name, where the method ID alone does not do.
    #[must_use]
    pub fn topic(&self) -> Option<&str> {
        self.options.text(TOPIC)
    }

    /// Sets [`topic`](Self::topic).
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`].
    pub fn set_topic(&mut self, name: &str) -> Result<(), OptionTooLong> {
        self.options.set("topic", TOPIC, name.as_bytes())
    }

    /// The lowest and the highest version of the service that will do.
    #[must_use]
    pub fn version_range(&self) -> Option<(ServiceVersion, ServiceVersion)> {
        let [a, b, c, d, e, f, g, h] = self.options.array(VERSION_RANGE)?;
        Some((
            ServiceVersion(u32::from_be_bytes([a, b, c, d])),
            ServiceVersion(u32::from_be_bytes([e, f, g, h])),
        ))
    }

    /// Sets [`version_range`](Self::version_range).
    pub fn set_version_range(&mut self, lowest: ServiceVersion, highest: ServiceVersion) {
        let [a, b, c, d] = lowest.0.to_be_bytes();
        let [e, f, g, h] = highest.0.to_be_bytes();
        self.set_fixed(VERSION_RANGE, [a, b, c, d, e, f, g, h]);
    }

    /// How many more nodes may pass this on.
    #[must_use]
    pub fn hop_limit(&self) -> Option<u8> {
        self.options.array(HOP_LIMIT).map(u8::from_be_bytes)
    }

    /// Sets [`hop_limit`](Self::hop_limit).
    pub fn set_hop_limit(&mut self, hops: u8) {
        self.set_fixed(HOP_LIMIT, [hops]);
    }

    /// The zone that should serve this if it can.
    #[must_use]
    pub fn preferred_zone(&self) -> Option<ZoneId> {
        self.u32(PREFERRED_ZONE).map(ZoneId)
    }

    /// Sets [`preferred_zone`](Self::preferred_zone).
    pub fn set_preferred_zone(&mut self, zone: ZoneId) {
        self.set_fixed(PREFERRED_ZONE, zone.0.to_be_bytes());
    }

    /// All options in order, as kind and value, also those that are not known here.
    pub fn options(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.options.iter()
    }

    /// Length of the encoded routing information, in bytes; 0 where it says nothing.
    #[must_use]
    #[inline]
    pub fn encoded_len(&self) -> usize {
        if self.is_empty() {
            0
        } else {
            Self::FIXED_LEN + self.options.as_bytes().len()
        }
    }

    /// Writes it, without the length before it.
    pub fn encode(&self, out: &mut impl BufMut) {
        if !self.is_empty() {
            out.put_u32(self.service.0);
            out.put_u32(self.method.0);
            out.put_slice(self.options.as_bytes());
        }
    }

    /// Reads it from exactly these bytes; none of them says nothing.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`] between 1 and 7 bytes; for the options [`DecodeError::Truncated`],
    /// [`DecodeError::LengthPastEnd`], [`DecodeError::WrongLength`], [`DecodeError::InvalidUtf8`],
    /// [`DecodeError::Duplicate`], and [`DecodeError::Reserved`] for an unknown kind below 0x80.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut bytes = bytes;
        let len = bytes.len();
        if len == 0 {
            return Ok(Self::new());
        }
        Self::take(&mut bytes, len, 0)
    }

    /// Takes routing information of `len` bytes, more than 0 and not more than there are, off `bytes`, which lie
    /// `offset` bytes into the decoder's input.
    #[inline]
    pub(crate) fn take(bytes: &mut Bytes, len: usize, offset: usize) -> Result<Self, DecodeError> {
        // The usual case has no options: it must not cost a share of the buffer.
        let (Self::FIXED_LEN.., Some(&[s0, s1, s2, s3, m0, m1, m2, m3])) =
            (len, bytes.first_chunk())
        else {
            return Err(Self::cut(len, offset));
        };
        bytes.advance(Self::FIXED_LEN);
        let options = if len == Self::FIXED_LEN {
            Options::new()
        } else {
            let options = bytes.split_to(len - Self::FIXED_LEN);
            Options::decode("Routing", options, offset + Self::FIXED_LEN, shape)?
        };
        Ok(Self {
            service: ServiceId(u32::from_be_bytes([s0, s1, s2, s3])),
            method: MethodId(u32::from_be_bytes([m0, m1, m2, m3])),
            options,
        })
    }

    #[cold]
    fn cut(len: usize, offset: usize) -> DecodeError {
        let (field, start) = if len < 4 {
            ("service_id", 0)
        } else {
            ("method_id", 4)
        };
        DecodeError::Truncated(At {
            record: "Routing",
            field,
            offset: offset + start,
        })
    }

    fn u32(&self, kind: u8) -> Option<u32> {
        self.options.array(kind).map(u32::from_be_bytes)
    }

    fn set_fixed<const N: usize>(&mut self, kind: u8, value: [u8; N]) {
        self.options.remove(kind);
        self.options.append(kind, N, |out| out.put_slice(&value));
    }

    fn set_list(
        &mut self,
        name: &'static str,
        kind: u8,
        ids: impl ExactSizeIterator<Item = u32>,
    ) -> Result<(), OptionTooLong> {
        let len = ids.len().saturating_mul(4);
        check_len(name, len)?;
        self.options.remove(kind);
        if len != 0 {
            self.options.append(kind, len, |out: &mut BytesMut| {
                ids.for_each(|id| out.put_u32(id))
            });
        }
        Ok(())
    }
}

impl fmt::Debug for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Listed<'a>(&'a Options);
        impl fmt::Debug for Listed<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_map().entries(self.0.iter()).finish()
            }
        }
        f.debug_struct("Routing")
            .field("service", &self.service)
            .field("method", &self.method)
            .field("options", &Listed(&self.options))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn a_node_that_passes_a_message_on_counts_down_and_signs_the_trail() {
        let mut routing = Routing::to(ServiceId(1), MethodId(2));
        routing.set_hop_limit(2);
        routing.set_hop_trail(&[NodeId(7)]).unwrap();
        // As a relay does, with an option it doesn't know in between.
        let mut bytes = Vec::new();
        routing.encode(&mut bytes);
        bytes.extend(b"\x80\x00\x01x");
        let mut passed = Routing::decode(bytes.into()).unwrap();
        passed.set_hop_limit(passed.hop_limit().unwrap() - 1);
        let mut trail: Vec<_> = passed.hop_trail().collect();
        trail.push(NodeId(8));
        passed.set_hop_trail(&trail).unwrap();

        let options: Vec<_> = passed.options().collect();
        assert_eq!(
            options,
            [(0x80, &b"x"[..]), (8, &[1]), (5, &[0, 0, 0, 7, 0, 0, 0, 8])],
            "what is not known is kept"
        );
    }

    #[test]
    fn says_nothing_only_without_ids_and_options() {
        assert!(Routing::new().is_empty());
        assert_eq!(Routing::new().encoded_len(), 0);
        assert!(!Routing::to(ServiceId(1), MethodId::NONE).is_empty());
        assert!(!Routing::to(ServiceId::NONE, MethodId(1)).is_empty());
        let mut routing = Routing::new();
        routing.set_allowed_regions(&[RegionId(49)]).unwrap();
        assert_eq!(routing.encoded_len(), 8 + 3 + 4);
        routing.set_allowed_regions(&[]).unwrap();
        assert!(routing.is_empty());
    }
}
