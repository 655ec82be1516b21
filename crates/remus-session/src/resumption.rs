//! What a session knows of its carrier, and what is said about taking up a session on another one. Spec: core §3.5.

use bytes::{Bytes, BytesMut};
use remus_wire::{
    AuthMethod, AuthenticationRecord, ErrorCode, ErrorRecord, Frame, FrameHeader, FrameType,
    Handshake, LaneOffset, Message, MessageLimits, MessageType, Resume, ResumeToken, StreamId,
    Text, Timestamp,
};

use crate::LANES_MAX;
use crate::lane::CutFrame;

/// Bytes taken in on a lane after which the peer is told, so that it can let go of them.
///
/// 64 KiB is one acknowledgement of 18 bytes for 64 KiB: 0.03 %, and never more than 1 MiB untold on sixteen lanes.
pub(crate) const ACK_EVERY: u64 = 64 * 1024;

/// Bytes beyond `max_retained_bytes` at which a session ends because its peer acknowledges nothing.
///
/// What stood ready on the lanes when the limit was reached still leaves, 64 KiB on each of sixteen, and answers to control traffic: a
/// peer that goes on making them could make it grow for ever.
pub(crate) const RETAINED_BEYOND: usize = 4 * 1024 * 1024;

/// Longest frame that is taken for a request to resume, in bytes: with sixteen lanes it has 240, beside an authentication record of at
/// most 16 KiB. Spec: core §3.5.
pub const RESUME_REQUEST_MAX: usize = 17 * 1024;

/// Longest reason of a refusal to resume, in bytes: it is for people.
const REASON_MAX: usize = 1024;

/// What a carrier offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarrierInfo {
    /// How many lanes it can have, lane 0 included: 1 to [`LANES_MAX`].
    pub lanes: u16,
    /// Whether it has datagrams that hold a heartbeat.
    pub datagrams: bool,
}

impl CarrierInfo {
    /// One lane and no datagrams: what every carrier has.
    pub const ONE_LANE: Self = Self {
        lanes: 1,
        datagrams: false,
    };

    pub(crate) fn lanes(self) -> u16 {
        self.lanes.clamp(1, LANES_MAX)
    }
}

/// How a session stands to its carrier. Spec: core §3.5, figure 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// It has one.
    Attached,
    /// It has none.
    Suspended,
    /// Client: it has one, and has asked on it to go on; gives it up at the given time.
    Asking(Timestamp),
    /// Client: the acceptor has said how far it came; the next token follows at once.
    Answered(Timestamp, Vec<LaneOffset>),
}

/// Acceptor: how the present epoch began, for as long as the client may not know of it.
#[derive(Debug)]
pub(crate) struct Unconfirmed {
    /// What the client presented.
    pub(crate) token: ResumeToken,
    /// What the client said that it had taken in.
    pub(crate) claimed: Vec<LaneOffset>,
    /// What it was answered.
    pub(crate) answered: Vec<LaneOffset>,
}

/// Everything about resumption that a session holds.
#[derive(Debug)]
pub(crate) struct Resumption {
    pub(crate) link: Link,
    /// Whether what leaves is kept: as long as the peer may resume.
    pub(crate) retains: bool,
    /// What it costs.
    pub(crate) retained: usize,
    /// What it may cost until streams have to wait.
    pub(crate) max_retained: usize,
    /// Bytes of it that are to leave again.
    pub(crate) waiting: usize,
    /// When the last carrier brought its last.
    pub(crate) silent_since: Timestamp,
    /// What resumes the session next.
    pub(crate) token: ResumeToken,
    /// 1 for the first carrier, one more for each time the session was resumed.
    pub(crate) epoch: u32,
    /// One more for every carrier, and every time one is gone.
    pub(crate) attachment: u32,
    pub(crate) carrier: CarrierInfo,
    /// When a session without a carrier ends.
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) window_us: u64,
    pub(crate) unconfirmed: Option<Unconfirmed>,
    /// What goes first on lane 0 of a carrier, and belongs to no epoch.
    pub(crate) preamble: Option<Bytes>,
    /// Lanes of which the peer is told how far they were taken in, as bits.
    pub(crate) acks_due: u32,
    /// Frames that a carrier has cut, and how much of them has come again.
    pub(crate) cuts: Vec<(CutFrame, usize)>,
}

impl Resumption {
    pub(crate) fn new(retains: bool, window_us: u64, max_retained: usize) -> Self {
        Self {
            link: Link::Attached,
            retains,
            retained: 0,
            max_retained,
            waiting: 0,
            silent_since: Timestamp::ZERO,
            token: ResumeToken::NONE,
            epoch: 1,
            attachment: 1,
            carrier: CarrierInfo {
                lanes: LANES_MAX,
                datagrams: false,
            },
            deadline: None,
            window_us,
            unconfirmed: None,
            preamble: None,
            acks_due: 0,
            cuts: Vec::new(),
        }
    }

    #[inline]
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.link, Link::Attached)
    }

    /// Whether streams have to wait for an acknowledgement.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.retained >= self.max_retained
    }
}

/// A client's request to go on with a session, as [`peek_resume`] found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeRequest {
    /// Which session it means.
    pub token: ResumeToken,
    /// How much the client has taken in of each lane of the carrier that it lost.
    pub lanes: Vec<LaneOffset>,
    /// Who presents it; the default where nothing is said. The token alone resumes nothing: it has to be whom the session belongs to.
    pub authentication: AuthenticationRecord,
    /// Bytes of the request's frame. The session does not want to see them: what follows is for
    /// [`Session::handle_input`](crate::Session::handle_input).
    pub len: usize,
}

/// What the first bytes of a carrier's lane 0 are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// Too few bytes to tell.
    NeedMore,
    /// A new session, or nothing that makes sense: a fresh session judges it.
    NotResume,
    /// A request to go on with a session.
    Resume(ResumeRequest),
}

/// Acceptor: looks at the first bytes of a new carrier's lane 0 to tell which session it is for. Spec: core §3.5.
///
/// Never asks for more than [`RESUME_REQUEST_MAX`], and looks no further than at the header before all of a request is there.
#[must_use]
pub fn peek_resume(front: &[u8]) -> Peeked {
    let Some(header) = front.first_chunk::<{ Frame::HEADER_LEN }>() else {
        return Peeked::NeedMore;
    };
    let FrameHeader { stream, kind, len } = FrameHeader::decode(*header);
    let len = usize::try_from(len)
        .unwrap_or(usize::MAX)
        .saturating_add(Frame::HEADER_LEN);
    if stream != StreamId::CONTROL || kind != FrameType::MESSAGE || len > RESUME_REQUEST_MAX {
        return Peeked::NotResume;
    }
    let Some(bytes) = front.get(Frame::HEADER_LEN..len) else {
        return Peeked::NeedMore;
    };
    let Ok(message) = Message::decode(Bytes::copy_from_slice(bytes), &MessageLimits::default())
    else {
        return Peeked::NotResume;
    };
    match Handshake::decode(message.payload) {
        Ok(Handshake::Resume(Resume { token, lanes }))
            if message.kind == MessageType::HANDSHAKE =>
        {
            Peeked::Resume(ResumeRequest {
                token,
                lanes,
                authentication: message.context.authentication().unwrap_or_default(),
                len,
            })
        }
        _ => Peeked::NotResume,
    }
}

/// Acceptor: the answer to a request for a session that is not here (any more). The carrier is closed behind it, with
/// LOSS_OF_SESSION.
#[must_use]
pub fn refuse_resume(now: Timestamp, reason: &str) -> Bytes {
    let reason = reason
        .get(..reason.floor_char_boundary(REASON_MAX))
        .unwrap_or_default();
    let error = ErrorRecord::new(ErrorCode::LOSS_OF_SESSION, Text::from(reason));
    let mut out = BytesMut::new();
    put_step(&mut out, now, &Handshake::Refused(error), &NOBODY);
    out.freeze()
}

/// Who has nothing to say about himself.
pub(crate) const NOBODY: AuthenticationRecord = AuthenticationRecord {
    method: AuthMethod::NONE,
    token: Bytes::new(),
    claims: Text::from_static(""),
};

/// A step of the handshake in its frame, outside of every epoch; with who sends it, if he has said so by any method.
pub(crate) fn put_step(
    out: &mut BytesMut,
    now: Timestamp,
    step: &Handshake,
    sender: &AuthenticationRecord,
) {
    let mut payload = BytesMut::with_capacity(step.encoded_len());
    step.encode(&mut payload);
    let mut message = Message {
        timestamp: now,
        ..Message::new(MessageType::HANDSHAKE, payload.freeze())
    };
    if sender.method != AuthMethod::NONE {
        // One that is too long for an option belongs to a session that counts as none that can be resumed.
        let _ = message.context.set_authentication(sender);
    }
    message.encode_frame(StreamId::CONTROL, out);
}

/// Why a request to resume cannot be granted. The session, if there is one, is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// The session is over, is ending, or was never one that can be resumed.
    #[error("the session cannot be resumed")]
    NotResumable,
    /// The token is not the session's, or is one that was used.
    #[error("the token resumes nothing")]
    WrongToken,
    /// The client says that it took in what was never sent, or less than it has acknowledged.
    #[error("lane {lane}: {offset} bytes are said to be taken in, {sent} were sent")]
    WrongOffset {
        /// Which lane.
        lane: u16,
        /// What the client says.
        offset: u64,
        /// What this side has sent.
        sent: u64,
    },
    /// The client asked again, and said something else than the first time.
    #[error("the request differs from the one that it repeats")]
    Differs,
}

/// Whether two tokens are the same, in a time that does not depend on where they differ.
pub(crate) fn is_same(a: ResumeToken, b: ResumeToken) -> bool {
    let differences = a.0.iter().zip(b.0).fold(0, |all, (a, b)| all | (a ^ b));
    core::hint::black_box(differences) == 0
}
