//! The names of things: streams, requests, services, methods, nodes, places. Spec: message format §2 and §3.1.

use core::fmt;

use sha2::{Digest, Sha256};

macro_rules! id {
    ($(#[$meta:meta])* $name:ident($int:ty), $format:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self(value)
            }
        }
    };
}

id! {
    /// A stream of frames within a session: 0 is control, the client opens odd ones, the acceptor even ones.
    StreamId(u16), "{}"
}

id! {
    /// Tells one open call of a sender from its others; 0 where no answer is expected.
    RequestId(u32), "{}"
}

id! {
    /// A service, as its name's digest. [`ServiceId::NONE`] means none, and in a query all.
    ServiceId(u32), "{:08x}"
}

id! {
    /// A method or topic, as its name's digest. [`MethodId::NONE`] means none.
    MethodId(u32), "{:08x}"
}

id! {
    /// A node of the mesh.
    NodeId(u32), "{:08x}"
}

id! {
    /// A region: where data may have to stay.
    RegionId(u32), "{:08x}"
}

id! {
    /// A zone: what fails together, within a region.
    ZoneId(u32), "{:08x}"
}

id! {
    /// Microseconds since 1970-01-01T00:00:00Z, by the hybrid logical clock of message format §3. It orders; no deadline is
    /// computed from it.
    Timestamp(u64), "{}"
}

impl StreamId {
    /// The control stream: no credit, and never replayed.
    pub const CONTROL: Self = Self(0);
    /// The client's stream for unary calls; there from the start.
    pub const CLIENT_CALLS: Self = Self(1);
    /// The acceptor's stream for unary calls; there from the start.
    pub const ACCEPTOR_CALLS: Self = Self(2);

    /// Whether this is the control stream.
    #[must_use]
    pub const fn is_control(self) -> bool {
        self.0 == 0
    }

    /// Whether the client is the one who opens this stream.
    #[must_use]
    pub const fn is_client(self) -> bool {
        self.0 % 2 == 1
    }
}

impl RequestId {
    /// No answer is expected.
    pub const NONE: Self = Self(0);
}

impl ServiceId {
    /// No service; in a query, all.
    pub const NONE: Self = Self(0);

    /// The ID of the service of this full name, such as `acme.shop.v1.Cart`.
    ///
    /// One name in four billion gives [`ServiceId::NONE`]: a registry refuses it. This computes a digest: keep the
    /// result.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(digest(name))
    }
}

impl MethodId {
    /// No method or topic.
    pub const NONE: Self = Self(0);

    /// The ID of the method of this full name, such as `acme.shop.v1.Cart/Add`, or of the topic of this name.
    ///
    /// See [`ServiceId::of`].
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(digest(name))
    }
}

impl Timestamp {
    /// No time, or the epoch itself.
    pub const ZERO: Self = Self(0);

    /// Microseconds since the epoch.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }
}

/// The first four bytes of SHA-256 of the name, big-endian.
fn digest(name: &str) -> u32 {
    let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(name.as_bytes()));
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    // Spec: WIRE-32. The digests come from `sha256sum`.
    #[test]
    fn ids_are_the_first_four_bytes_of_sha256() {
        assert_eq!(ServiceId::of("acme.shop.v1.Cart"), ServiceId(0x7599_ee48));
        assert_eq!(MethodId::of("acme.shop.v1.Cart/Add"), MethodId(0x7e02_3178));
    }

    #[test]
    fn streams_know_who_opens_them() {
        assert!(StreamId::CONTROL.is_control());
        assert!(StreamId::CLIENT_CALLS.is_client());
        assert!(!StreamId::ACCEPTOR_CALLS.is_client());
    }
}
