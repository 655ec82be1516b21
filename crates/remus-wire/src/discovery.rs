//! Discovery: service records, and the query for them. Spec: message format §4.4.

use alloc::vec::Vec;
use core::fmt;

use bytes::{BufMut, Bytes};

use crate::{
    Capabilities, DecodeError, NodeId, Reader, RegionId, ServiceId, Text, ZoneId,
    macros::codes,
    reader::{put_len, put_text},
};

/// Most endpoints of one service record. A service with more is announced by each node for itself.
pub const MAX_ENDPOINTS: u32 = 256;

/// Most records of one answer. A query that finds more gets the best.
pub const MAX_ANSWERS: u32 = 1024;

/// Version of a service: `u8` major, `u8` minor, `u16` patch. Ordered as numbers are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ServiceVersion(pub u32);

impl ServiceVersion {
    /// The version of these three numbers.
    #[must_use]
    pub const fn new(major: u8, minor: u8, patch: u16) -> Self {
        let [p0, p1] = patch.to_be_bytes();
        Self(u32::from_be_bytes([major, minor, p0, p1]))
    }

    /// Changes with what older callers can't use.
    #[must_use]
    pub const fn major(self) -> u8 {
        let [major, _, _, _] = self.0.to_be_bytes();
        major
    }

    /// Changes with what is new.
    #[must_use]
    pub const fn minor(self) -> u8 {
        let [_, minor, _, _] = self.0.to_be_bytes();
        minor
    }

    /// Changes with what is mended.
    #[must_use]
    pub const fn patch(self) -> u16 {
        let [_, _, p0, p1] = self.0.to_be_bytes();
        u16::from_be_bytes([p0, p1])
    }
}

impl fmt::Display for ServiceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major(), self.minor(), self.patch())
    }
}

impl fmt::Debug for ServiceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceVersion({self})")
    }
}

codes! {
    /// Health of one kind. What is not named here counts as [`HealthStatus::UNKNOWN`].
    pub struct HealthStatus(u8) {
        /// Not known.
        UNKNOWN = 0,
        /// Serving.
        SERVING = 1,
        /// Serving, but not as it should.
        DEGRADED = 2,
        /// Not serving.
        NOT_SERVING = 3,
        /// Serving what is open, taking on nothing new.
        DRAINING = 4,
    }
}

/// Health of a service, of four kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Health {
    /// What the service's own checks say.
    pub custom: HealthStatus,
    /// What it depends on.
    pub dependency: HealthStatus,
    /// What it runs on.
    pub resource: HealthStatus,
    /// Certificates, tokens, policies.
    pub security: HealthStatus,
}

impl Health {
    /// As it stands on the wire: one byte each, in the order of the fields.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 4] {
        [
            self.custom.0,
            self.dependency.0,
            self.resource.0,
            self.security.0,
        ]
    }

    /// Reads what [`to_bytes`](Self::to_bytes) gives.
    #[must_use]
    pub const fn from_bytes([custom, dependency, resource, security]: [u8; 4]) -> Self {
        Self {
            custom: HealthStatus(custom),
            dependency: HealthStatus(dependency),
            resource: HealthStatus(resource),
            security: HealthStatus(security),
        }
    }
}

/// How busy something is: one byte each for CPU, memory, queue and network, 0 to 255 of its capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Load(pub u32);

impl Load {
    /// The load of these four.
    #[must_use]
    pub const fn new(cpu: u8, memory: u8, queue: u8, network: u8) -> Self {
        Self(u32::from_be_bytes([cpu, memory, queue, network]))
    }

    /// CPU.
    #[must_use]
    pub const fn cpu(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Memory.
    #[must_use]
    pub const fn memory(self) -> u8 {
        self.0.to_be_bytes()[1]
    }

    /// Queue.
    #[must_use]
    pub const fn queue(self) -> u8 {
        self.0.to_be_bytes()[2]
    }

    /// Network.
    #[must_use]
    pub const fn network(self) -> u8 {
        self.0.to_be_bytes()[3]
    }
}

codes! {
    /// By which transport an endpoint is reached.
    pub struct TransportKind(u16) {
        /// WebTransport on HTTP/3.
        WEB_TRANSPORT = 1,
        /// WebSocket.
        WEB_SOCKET = 2,
        /// Long-polling.
        LONG_POLLING = 3,
        /// Server-sent events.
        SERVER_SENT_EVENTS = 4,
        /// Unix socket and shared memory.
        SAME_HOST = 5,
    }
}

/// Where a service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The node.
    pub node: NodeId,
    /// Where data that goes there will be.
    pub region: RegionId,
    /// What it fails with.
    pub zone: ZoneId,
    /// By which transport.
    pub transport: TransportKind,
    /// Its share of the calls, relative to the others; 0: none while others are there.
    pub weight: u16,
    /// What using it costs, relative to others.
    pub cost: u32,
    /// Its URL.
    pub url: Text,
}

/// A service that is there: payload of Announce (0x40) and Update (0x42), and element of [`QueryAnswer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Which.
    pub service: ServiceId,
    /// Its version.
    pub version: ServiceVersion,
    /// What it can; the bits are the service's own.
    pub capabilities: Capabilities,
    /// How it is.
    pub health: Health,
    /// How busy it is.
    pub load: Load,
    /// Where it is. At most [`MAX_ENDPOINTS`].
    pub endpoints: Vec<Endpoint>,
}

/// Which services are there: payload of Query (0x41).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Which service; [`ServiceId::NONE`]: all.
    pub service: ServiceId,
    /// Of this version or a higher one.
    pub min_version: ServiceVersion,
    /// With at least these capabilities.
    pub capabilities: Capabilities,
    /// Whether later changes are to be told by Update.
    pub watch: bool,
    /// Most records in the answer; 0: as many as there may be.
    pub max_answers: u32,
    /// A CEL expression that the records must satisfy, or empty.
    pub filter: Text,
}

/// The answer to a [`Query`]: payload of a Response (0x11) on stream 0 with the query's request ID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryAnswer {
    /// What was found. At most [`MAX_ANSWERS`].
    pub records: Vec<ServiceRecord>,
}

impl ServiceRecord {
    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        24 + self
            .endpoints
            .iter()
            .map(|endpoint| 24 + endpoint.url.as_bytes().len())
            .sum::<usize>()
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.service.0);
        out.put_u32(self.version.0);
        out.put_u32(self.capabilities.0);
        out.put_slice(&self.health.to_bytes());
        out.put_u32(self.load.0);
        put_len(out, self.endpoints.len());
        for endpoint in &self.endpoints {
            out.put_u32(endpoint.node.0);
            out.put_u32(endpoint.region.0);
            out.put_u32(endpoint.zone.0);
            out.put_u16(endpoint.transport.0);
            out.put_u16(endpoint.weight);
            out.put_u32(endpoint.cost);
            put_text(out, &endpoint.url);
        }
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Service", bytes);
        let record = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(record)
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        reader.within("Service", |reader| {
            let service = ServiceId(reader.u32("service_id")?);
            let version = ServiceVersion(reader.u32("version")?);
            let capabilities = Capabilities(reader.u32("capabilities")?);
            let health = Health::from_bytes(reader.array("health")?);
            let load = Load(reader.u32("load")?);
            let count = reader.count("endpoint_count", MAX_ENDPOINTS)?;
            let mut endpoints = Vec::new();
            for _ in 0..count {
                endpoints.push(Endpoint::read(reader)?);
            }
            Ok(Self {
                service,
                version,
                capabilities,
                health,
                load,
                endpoints,
            })
        })
    }
}

impl Endpoint {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        reader.within("Endpoint", |reader| {
            Ok(Self {
                node: NodeId(reader.u32("node")?),
                region: RegionId(reader.u32("region")?),
                zone: ZoneId(reader.u32("zone")?),
                transport: TransportKind(reader.u16("transport")?),
                weight: reader.u16("weight")?,
                cost: reader.u32("cost")?,
                url: reader.text("url")?,
            })
        })
    }
}

impl Query {
    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        21 + self.filter.as_bytes().len()
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.service.0);
        out.put_u32(self.min_version.0);
        out.put_u32(self.capabilities.0);
        out.put_u8(self.watch.into());
        out.put_u32(self.max_answers);
        put_text(out, &self.filter);
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], with [`DecodeError::Reserved`] for a watch that is neither 0 nor 1.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Query", bytes);
        let service = ServiceId(reader.u32("service_id")?);
        let min_version = ServiceVersion(reader.u32("min_version")?);
        let capabilities = Capabilities(reader.u32("capabilities")?);
        let at = reader.at("watch");
        let watch = match reader.u8("watch")? {
            0 => false,
            1 => true,
            value => {
                return Err(DecodeError::Reserved {
                    at,
                    value: value.into(),
                });
            }
        };
        let max_answers = reader.u32("max_answers")?;
        let filter = reader.text("filter")?;
        reader.finish()?;
        Ok(Self {
            service,
            min_version,
            capabilities,
            watch,
            max_answers,
            filter,
        })
    }
}

impl QueryAnswer {
    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        4 + self
            .records
            .iter()
            .map(ServiceRecord::encoded_len)
            .sum::<usize>()
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_len(out, self.records.len());
        for record in &self.records {
            record.encode(out);
        }
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("QueryAnswer", bytes);
        let count = reader.count("record_count", MAX_ANSWERS)?;
        let mut records = Vec::new();
        for _ in 0..count {
            records.push(ServiceRecord::read(&mut reader)?);
        }
        reader.finish()?;
        Ok(Self { records })
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn versions_order_and_print_as_numbers_do() {
        let version = ServiceVersion::new(1, 2, 300);
        assert_eq!(version, ServiceVersion(0x0102_012c));
        assert_eq!(version.to_string(), "1.2.300");
        assert!(ServiceVersion::new(1, 10, 0) > ServiceVersion::new(1, 9, 65535));
    }

    #[test]
    fn load_and_health_stand_in_the_order_of_the_spec() {
        let load = Load::new(1, 2, 3, 4);
        assert_eq!(load, Load(0x0102_0304));
        assert_eq!(
            [load.cpu(), load.memory(), load.queue(), load.network()],
            [1, 2, 3, 4]
        );
        assert_eq!(Health::from_bytes([1, 2, 3, 4]).to_bytes(), [1, 2, 3, 4]);
        assert_eq!(
            Health::from_bytes([1, 2, 3, 4]).security,
            HealthStatus::DRAINING
        );
    }
}
