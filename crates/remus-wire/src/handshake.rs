//! The handshake's steps: payload of Handshake (0x01). Spec: message format §4.1.
//!
//! Knows what each step holds, not which may follow which: that is the session's.

use alloc::vec::Vec;
use core::fmt;

use bytes::{BufMut, Bytes};

use crate::{
    AuthenticationRecord, DecodeError, ErrorRecord, Reader, StreamId, Text, Timestamp,
    VersionRecord,
    reader::{put_blob, put_len, put_text},
};

/// Most streams of one resume: all that a session can have open at once, without the control stream.
pub const MAX_RESUMED_STREAMS: u32 = 65_535;

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
    /// 8: the session goes on; how far the acceptor has taken in each stream, as in [`Resume::streams`].
    Resumed(Vec<StreamOffset>),
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
    /// How far the client has taken in each open stream. At most [`MAX_RESUMED_STREAMS`], each once.
    pub streams: Vec<StreamOffset>,
}

/// How far a stream was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOffset {
    /// Which stream; never the control stream, which is not replayed.
    pub stream: StreamId,
    /// Payload bytes from the stream's start.
    pub offset: u64,
}

/// A secret that resumes a session. `Debug` leaves it out.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResumeToken(pub [u8; 32]);

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
            Self::Resume(step) => 32 + offsets_len(&step.streams),
            Self::Resumed(streams) => offsets_len(streams),
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
                put_offsets(out, &step.streams);
            }
            Self::Resumed(streams) => put_offsets(out, streams),
        }
    }

    /// Reads exactly one record.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], with [`DecodeError::Reserved`] for an unknown step and for an offset of the control stream.
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
                streams: read_offsets(&mut reader)?,
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

fn offsets_len(streams: &[StreamOffset]) -> usize {
    4 + streams.len() * 10
}

fn put_offsets(out: &mut impl BufMut, streams: &[StreamOffset]) {
    put_len(out, streams.len());
    for entry in streams {
        out.put_u16(entry.stream.0);
        out.put_u64(entry.offset);
    }
}

fn read_offsets(reader: &mut Reader) -> Result<Vec<StreamOffset>, DecodeError> {
    let count = reader.count("stream_count", MAX_RESUMED_STREAMS)?;
    let mut streams = Vec::new();
    let mut seen = StreamSet::default();
    for _ in 0..count {
        let at = reader.at("stream");
        let stream = StreamId(reader.u16("stream")?);
        if stream.is_control() {
            return Err(DecodeError::Reserved { at, value: 0 });
        }
        if !seen.insert(stream) {
            return Err(DecodeError::Duplicate {
                at,
                value: stream.0.into(),
            });
        }
        let offset = reader.u64("offset")?;
        streams.push(StreamOffset { stream, offset });
    }
    Ok(streams)
}

/// Which streams were seen, a bit each: 8 KiB at most.
#[derive(Default)]
struct StreamSet(Vec<u8>);

impl StreamSet {
    /// Adds a stream; false where it was there.
    fn insert(&mut self, stream: StreamId) -> bool {
        let byte = usize::from(stream.0 / 8);
        let bit = 1 << (stream.0 % 8);
        if self.0.len() <= byte {
            self.0.resize(byte + 1, 0);
        }
        match self.0.get_mut(byte) {
            Some(bits) if *bits & bit == 0 => {
                *bits |= bit;
                true
            }
            _ => false,
        }
    }
}
