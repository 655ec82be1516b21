//! The handshake's steps: payload of Handshake (0x01). Spec: message format §4.1.
//!
//! Knows what each step holds, not which may follow which: that is the session's.

use alloc::vec::Vec;
use core::fmt;

use bytes::{BufMut, Bytes};

use crate::{
    AuthenticationRecord, DecodeError, ErrorRecord, MAX_LANES, Reader, Text, Timestamp,
    VersionRecord,
    reader::{put_blob, put_len, put_text},
};

const OFFER: u8 = 1;
const ACCEPT: u8 = 2;
const AUTHENTICATE: u8 = 3;
const CHALLENGE: u8 = 4;
const AUTHENTICATED: u8 = 5;
const REFUSED: u8 = 6;
const RESUME: u8 = 7;
const RESUMED: u8 = 8;

/// A step of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// 1: what the client speaks.
    Offer(VersionRecord),
    /// 2: what both will speak.
    Accept(VersionRecord),
    /// 3: who the client is. May come again at any time, to renew a token.
    Authenticate(AuthenticationRecord),
    /// 4: what the client has to sign.
    Challenge(Bytes),
    /// 5: the session stands.
    Authenticated(Authenticated),
    /// 6: there will be no session.
    Refused(ErrorRecord),
    /// 7: the client takes up a session that lost its carrier.
    Resume(Resume),
    /// 8: the session goes on; how much the acceptor has taken in of each lane, as in [`Resume::lanes`].
    Resumed(Vec<LaneOffset>),
}

/// Step 5: the session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// The session's number at the acceptor.
    pub session: u32,
    /// What resumes it.
    pub token: ResumeToken,
    /// When the authentication ends; [`Timestamp::ZERO`]: never.
    pub expires: Timestamp,
    /// What was granted, as JSON, or empty.
    pub claims: Text,
}

/// Step 7: the client takes up a session that lost its carrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// What step 5 gave.
    pub token: ResumeToken,
    /// How much the client has taken in of each lane of the carrier that it lost. At most [`MAX_LANES`], each once; a lane that is
    /// missing brought nothing.
    pub lanes: Vec<LaneOffset>,
}

/// How much of a lane was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneOffset {
    /// Which lane, below [`MAX_LANES`].
    pub lane: u16,
    /// Bytes of whole frames, their headers included, since the epoch began.
    pub offset: u64,
}

/// A secret that resumes a session. `Debug` leaves it out.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResumeToken(pub [u8; 32]);

impl ResumeToken {
    /// 32 zero bytes: resumes nothing.
    pub const NONE: Self = Self([0; 32]);

    /// Whether this is [`ResumeToken::NONE`].
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeToken(..)")
    }
}

impl Handshake {
    /// Number of the step, 1 to 8.
    #[must_use]
    pub const fn step(&self) -> u8 {
        match self {
            Self::Offer(_) => OFFER,
            Self::Accept(_) => ACCEPT,
            Self::Authenticate(_) => AUTHENTICATE,
            Self::Challenge(_) => CHALLENGE,
            Self::Authenticated(_) => AUTHENTICATED,
            Self::Refused(_) => REFUSED,
            Self::Resume(_) => RESUME,
            Self::Resumed(_) => RESUMED,
        }
    }

    /// Length of the encoded record, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        1 + match self {
            Self::Offer(record) | Self::Accept(record) => record.encoded_len(),
            Self::Authenticate(record) => record.encoded_len(),
            Self::Challenge(bytes) => 4 + bytes.len(),
            Self::Authenticated(step) => 48 + step.claims.as_bytes().len(),
            Self::Refused(record) => record.encoded_len(),
            Self::Resume(step) => 32 + offsets_len(&step.lanes),
            Self::Resumed(lanes) => offsets_len(lanes),
        }
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.step());
        match self {
            Self::Offer(record) | Self::Accept(record) => record.encode(out),
            Self::Authenticate(record) => record.encode(out),
            Self::Challenge(bytes) => put_blob(out, bytes),
            Self::Authenticated(step) => {
                out.put_u32(step.session);
                out.put_slice(&step.token.0);
                out.put_u64(step.expires.0);
                put_text(out, &step.claims);
            }
            Self::Refused(record) => record.encode(out),
            Self::Resume(step) => {
                out.put_slice(&step.token.0);
                put_offsets(out, &step.lanes);
            }
            Self::Resumed(lanes) => put_offsets(out, lanes),
        }
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], with [`DecodeError::Reserved`] for an unknown step and for a lane of [`MAX_LANES`] or above.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Handshake", bytes);
        let at = reader.at("step");
        let step = match reader.u8("step")? {
            OFFER => Self::Offer(VersionRecord::read(&mut reader)?),
            ACCEPT => Self::Accept(VersionRecord::read(&mut reader)?),
            AUTHENTICATE => Self::Authenticate(AuthenticationRecord::read(&mut reader)?),
            CHALLENGE => Self::Challenge(reader.blob("challenge")?),
            AUTHENTICATED => Self::Authenticated(Authenticated {
                session: reader.u32("session")?,
                token: ResumeToken(reader.array("token")?),
                expires: Timestamp(reader.u64("expires")?),
                claims: reader.text("claims")?,
            }),
            REFUSED => Self::Refused(ErrorRecord::read(&mut reader)?),
            RESUME => Self::Resume(Resume {
                token: ResumeToken(reader.array("token")?),
                lanes: read_offsets(&mut reader)?,
            }),
            RESUMED => Self::Resumed(read_offsets(&mut reader)?),
            value => {
                return Err(DecodeError::Reserved {
                    at,
                    value: value.into(),
                });
            }
        };
        reader.finish()?;
        Ok(step)
    }
}

fn offsets_len(lanes: &[LaneOffset]) -> usize {
    4 + lanes.len() * 10
}

fn put_offsets(out: &mut impl BufMut, lanes: &[LaneOffset]) {
    put_len(out, lanes.len());
    for entry in lanes {
        out.put_u16(entry.lane);
        out.put_u64(entry.offset);
    }
}

fn read_offsets(reader: &mut Reader) -> Result<Vec<LaneOffset>, DecodeError> {
    let count = reader.count("lane_count", MAX_LANES.into())?;
    let mut lanes: Vec<LaneOffset> = Vec::new();
    for _ in 0..count {
        let at = reader.at("lane");
        let lane = reader.u16("lane")?;
        if lane >= MAX_LANES {
            return Err(DecodeError::Reserved {
                at,
                value: lane.into(),
            });
        }
        if lanes.iter().any(|other| other.lane == lane) {
            return Err(DecodeError::Duplicate {
                at,
                value: lane.into(),
            });
        }
        let offset = reader.u64("offset")?;
        lanes.push(LaneOffset { lane, offset });
    }
    Ok(lanes)
}
