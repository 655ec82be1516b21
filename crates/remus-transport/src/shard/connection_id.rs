//! Connection IDs that say which shard a connection belongs to, to those who know the group's secret.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0 to 5 | a nonce, the same in no two IDs but by chance |
//! | 6 | the number of the shard, xor the first byte of SipHash-2-4 of the nonce under the secret |
//! | 7 | the second byte of that hash: tells our IDs from those that others make up, but for one in 256 |
//!
//! This is QUIC-LB (draft-ietf-quic-load-balancers) with a keyed hash where it has AES, since nothing but one process has to agree
//! on it. To anybody else an ID is eight random bytes, so two IDs of one connection have nothing in common, as RFC 9000 §5.1
//! demands. Who alters byte 6 of an ID reaches another shard, which does not know the connection.

use quinn::rustls::crypto::aws_lc_rs;
use quinn::{ConnectionId, ConnectionIdGenerator};
use siphasher::sip::SipHasher24;

use super::ShardError;

/// Length of the IDs that shards make.
pub(super) const CONNECTION_ID_BYTES: usize = 8;

/// Set in the first byte of a packet with a long header. Spec: RFC 9000 §17.
const LONG_HEADER: u8 = 0x80;

/// First byte of what is hashed: the secret has two uses, which must not meet.
const FOR_MASKS: u8 = 0;
const FOR_NONCES: u8 = 1;

/// A connection ID of the length that shards make.
pub(super) type Id = [u8; CONNECTION_ID_BYTES];

/// Makes and reads the IDs of one group.
#[derive(Clone)]
pub(super) struct ConnectionIds {
    secret: SipHasher24,
    /// Shards of the group, 1 to 256.
    count: usize,
}

impl ConnectionIds {
    /// With a secret of its own.
    pub(super) fn new(count: usize) -> Result<Self, ShardError> {
        let mut key = [0; 16];
        aws_lc_rs::default_provider()
            .secure_random
            .fill(&mut key)
            .map_err(|_| ShardError::Random)?;
        Ok(Self {
            secret: SipHasher24::new_with_key(&key),
            count,
        })
    }

    /// The shard that `id` names; `None` for what no shard of this group has made.
    pub(super) fn shard(&self, id: Id) -> Option<u8> {
        let [nonce @ .., masked, check] = id;
        let [mask, expected] = self.mask(nonce);
        let shard = masked ^ mask;
        (check == expected && usize::from(shard) < self.count).then_some(shard)
    }

    fn encode(&self, shard: u8, nonce: [u8; 6]) -> Id {
        let [mask, check] = self.mask(nonce);
        let [a, b, c, d, e, f] = nonce;
        [a, b, c, d, e, f, shard ^ mask, check]
    }

    fn mask(&self, nonce: [u8; 6]) -> [u8; 2] {
        let [a, b, c, d, e, f] = nonce;
        let [mask, check, ..] = self.hash([FOR_MASKS, 0, a, b, c, d, e, f]);
        [mask, check]
    }

    fn nonce(&self, shard: u8, number: u64) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = number.to_le_bytes();
        let [nonce @ .., _, _] = self.hash([FOR_NONCES, shard, a, b, c, d, e, f]);
        nonce
    }

    fn hash(&self, input: [u8; 8]) -> [u8; 8] {
        self.secret.hash(&input).to_le_bytes()
    }
}

/// Makes the IDs of one shard.
pub(crate) struct Generator {
    ids: ConnectionIds,
    shard: u8,
    /// IDs made so far; 2^48 of them take a million a second nine years.
    made: u64,
}

impl Generator {
    pub(super) fn new(ids: ConnectionIds, shard: u8) -> Self {
        Self {
            ids,
            shard,
            made: 0,
        }
    }

    pub(super) fn next(&mut self) -> Id {
        let nonce = self.ids.nonce(self.shard, self.made);
        self.made = self.made.wrapping_add(1);
        self.ids.encode(self.shard, nonce)
    }
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.next())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// The destination of a datagram's first packet, if it has the length of IDs that shards make. Spec: RFC 8999 §5.
///
/// A client's first packets have one that the client made up: [`ConnectionIds::shard`] does not know it.
pub(super) fn destination(datagram: &[u8]) -> Option<Id> {
    let (first, rest) = datagram.split_first()?;
    if first & LONG_HEADER == 0 {
        return rest.first_chunk().copied();
    }
    let (_version, rest) = rest.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first()?;
    if usize::from(*length) == CONNECTION_ID_BYTES {
        rest.first_chunk().copied()
    } else {
        None
    }
}
