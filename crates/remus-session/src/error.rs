//! Why a session, a call or a send failed. One map to wire codes each.

use remus_wire::{DecodeError, ErrorCode, ErrorRecord, FrameType, MessageType, StreamId, Text};

use crate::state::UnexpectedInput;

/// A fault that ends the session: always something the peer did, or its silence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Bytes that no record matches.
    #[error("{0}")]
    Decode(#[from] DecodeError),
    /// A record out of turn.
    #[error("{0}")]
    OutOfTurn(#[from] UnexpectedInput),
    /// A message type that does not belong where it came.
    #[error("message type {kind:#04x} is not allowed on stream {stream} here", kind = .kind.0, stream = .stream.0)]
    MisplacedMessage {
        /// The message's type.
        kind: MessageType,
        /// The stream it came on.
        stream: StreamId,
    },
    /// A frame type that does not belong where it came.
    #[error("frame type {kind:#06x} is not allowed on stream {stream} here", kind = .kind.0, stream = .stream.0)]
    MisplacedFrame {
        /// The frame's type.
        kind: FrameType,
        /// The stream it names.
        stream: StreamId,
    },
    /// A stream opened by the side that does not own its parity.
    #[error("stream {stream} was opened by the side that does not own its parity", stream = .0.0)]
    WrongParity(StreamId),
    /// A stream ID above what the granted number of streams allows.
    #[error("stream {stream} is above the highest stream ID granted, {max}", stream = .stream.0)]
    StreamOutOfRange {
        /// The ID.
        stream: StreamId,
        /// The highest that was granted.
        max: u16,
    },
    /// Frames of one direction of one stream on two lanes, or on a lane before the session was open.
    #[error("stream {stream} arrived on the wrong lane", stream = .0.0)]
    WrongLane(StreamId),
    /// Data after the direction had ended.
    #[error("stream {stream} carries data after its end", stream = .0.0)]
    AfterEnd(StreamId),
    /// A MESSAGE frame inside a message that is still in parts.
    #[error("stream {stream} starts a message inside another", stream = .0.0)]
    NestedMessage(StreamId),
    /// The parts of a message add up to something else than its header says.
    #[error("stream {stream}: the parts hold {got} bytes, the message header says {expected}", stream = .stream.0)]
    WrongLength {
        /// The stream.
        stream: StreamId,
        /// What the header says.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// More bytes than were granted.
    #[error("stream {stream}: {offset} bytes sent, {limit} granted", stream = .stream.0)]
    CreditExceeded {
        /// The stream, 0 for the session.
        stream: StreamId,
        /// The offset that the peer reached.
        offset: u64,
        /// The offset up to which it might send.
        limit: u64,
    },
    /// A request ID that is still open.
    #[error("request ID {0} is already open")]
    DuplicateRequest(u32),
    /// More control traffic than the limit of core §8 lets through.
    #[error("more control messages and idle frames than the limit allows")]
    ControlFlood,
    /// No protocol version in common.
    #[error("major version {theirs} was asked for, {ours} is spoken")]
    UnsupportedVersion {
        /// What the peer asked for.
        theirs: u16,
        /// What is spoken here.
        ours: u16,
    },
    /// The peer insists on an extension that is unknown here.
    #[error("extension {0:#06x} must be understood and is not")]
    UnsupportedExtension(u16),
    /// The peer granted less than the protocol's minimum.
    #[error("the peer grants {field} = {value}, below the minimum of {min}")]
    LimitTooLow {
        /// Which limit.
        field: &'static str,
        /// What it granted.
        value: u32,
        /// The least that is allowed.
        min: u32,
    },
    /// Nothing was heard for the idle timeout.
    #[error("nothing heard from the peer for {0} ms")]
    IdleTimeout(u64),
    /// The lifecycle did not reach active communication in time.
    #[error("the handshake took longer than {0} ms")]
    HandshakeTimeout(u64),
    /// The peer says that it took in what was never sent.
    #[error("lane {lane}: {offset} bytes are said to be taken in, {sent} were sent")]
    WrongOffset {
        /// The lane.
        lane: u16,
        /// What the peer says.
        offset: u64,
        /// What this side has sent in this epoch.
        sent: u64,
    },
    /// A frame that the last carrier has cut did not come again as it was.
    #[error("stream {stream}: the frame that was cut did not come again", stream = .0.0)]
    WrongReplay(StreamId),
    /// The peer asked for something that this side does not offer on this session.
    #[error("{0} is not offered on this session")]
    NotOffered(&'static str),
    /// The peer makes this side talk and does not read it.
    #[error("{0} bytes of control traffic wait because the peer does not read")]
    NotReading(usize),
}

impl SessionError {
    /// The code that the peer is told. Spec: core §10.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Decode(error) => error.error_code(),
            Self::OutOfTurn(_) | Self::MisplacedMessage { .. } | Self::MisplacedFrame { .. } => {
                ErrorCode::UNEXPECTED_MESSAGE
            }
            Self::WrongParity(_)
            | Self::WrongLane(_)
            | Self::AfterEnd(_)
            | Self::StreamOutOfRange { .. } => ErrorCode::STREAM_STATE,
            Self::NestedMessage(_) | Self::WrongLength { .. } => ErrorCode::MALFORMED,
            Self::CreditExceeded { .. } => ErrorCode::FLOW_CONTROL,
            Self::DuplicateRequest(_) => ErrorCode::DUPLICATE_REQUEST,
            Self::ControlFlood | Self::NotReading(_) => ErrorCode::CONTROL_FLOOD,
            Self::UnsupportedVersion { .. } => ErrorCode::UNSUPPORTED_VERSION,
            Self::UnsupportedExtension(_) => ErrorCode::UNSUPPORTED_EXTENSION,
            Self::LimitTooLow { .. } | Self::WrongReplay(_) => ErrorCode::MALFORMED,
            Self::WrongOffset { .. } => ErrorCode::FLOW_CONTROL,
            Self::IdleTimeout(_) => ErrorCode::IDLE_TIMEOUT,
            Self::HandshakeTimeout(_) => ErrorCode::HANDSHAKE_TIMEOUT,
            Self::NotOffered(_) => ErrorCode::UNIMPLEMENTED,
        }
    }
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// OK after a graceful end.
    pub code: ErrorCode,
    /// What happened, for people.
    pub reason: String,
    /// Whether the peer ended it.
    pub by_peer: bool,
    /// Whether the peer refused the session before it was active: nothing that was called ran.
    pub refused: bool,
}

impl CloseReason {
    /// What a call fails with that was open when the session ended, or that is made afterwards.
    ///
    /// LOSS_OF_SESSION where the code says nothing about the call: after an orderly end, a lost carrier or silence the call may
    /// or may not have run, so a code that promises it did not must not be passed on (WIRE-65). The code of a refused session is
    /// passed on as it is.
    #[must_use]
    pub fn to_record(&self) -> ErrorRecord {
        let code = match self.code {
            code if self.refused && code != ErrorCode::OK => code,
            ErrorCode::OK
            | ErrorCode::UNAVAILABLE
            | ErrorCode::IDLE_TIMEOUT
            | ErrorCode::HANDSHAKE_TIMEOUT => ErrorCode::LOSS_OF_SESSION,
            code if code.is_refusal() => ErrorCode::LOSS_OF_SESSION,
            code => code,
        };
        ErrorRecord::new(code, Text::from(self.reason.as_str()))
    }
}

/// A call that could not be made. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The session is not open for calls yet; wait for [`Event::Active`](crate::Event::Active).
    #[error("the session is not open yet")]
    NotOpen,
    /// The peer has announced its end, or we have.
    #[error("the session is shutting down")]
    ShuttingDown,
    /// The session has ended.
    #[error("the session has ended")]
    Closed,
    /// As many calls are open as the peer allows.
    #[error("{limit} calls are open, as many as the peer allows")]
    TooManyCalls {
        /// The peer's limit.
        limit: u32,
    },
    /// As many streams are open as the peer allows.
    #[error("{limit} streams are open, as many as the peer allows")]
    TooManyStreams {
        /// The peer's limit.
        limit: u32,
    },
    /// The message is larger than the peer takes.
    #[error("the message has {len} bytes, the peer takes {limit}")]
    MessageTooLarge {
        /// Its length.
        len: usize,
        /// The peer's limit.
        limit: usize,
    },
    /// The context is larger than the protocol allows.
    #[error("the context has {len} bytes, the limit is {limit}")]
    ContextTooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The routing information is larger than the protocol allows.
    #[error("the routing information has {len} bytes, the limit is {limit}")]
    RoutingTooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many bytes wait to be sent.
    #[error("{queued} bytes wait to be sent, the limit is {limit}")]
    QueueFull {
        /// What waits.
        queued: usize,
        /// The limit.
        limit: usize,
    },
    /// A batch is empty, too long, or holds what may not be batched.
    #[error("a batch holds 1 to {max} unary calls")]
    BadBatch {
        /// The most calls a batch may hold.
        max: usize,
    },
    /// The peer does not offer a feature that the call needs.
    #[error("the peer does not offer {0}")]
    NotOffered(&'static str),
    /// The request has a payload, but its data are the elements that follow it.
    #[error("a request that streams carries its data in elements, not in a payload")]
    UnexpectedPayload,
}

impl CallError {
    /// The wire code that says the same. Spec: core §10.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotOpen | Self::Closed => ErrorCode::UNAVAILABLE,
            Self::ShuttingDown => ErrorCode::SHUTTING_DOWN,
            Self::TooManyCalls { .. } => ErrorCode::TOO_MANY_CALLS,
            Self::TooManyStreams { .. } => ErrorCode::TOO_MANY_STREAMS,
            Self::MessageTooLarge { .. } => ErrorCode::MESSAGE_TOO_LARGE,
            Self::ContextTooLarge { .. } => ErrorCode::CONTEXT_TOO_LARGE,
            Self::RoutingTooLarge { .. } => ErrorCode::ROUTING_TOO_LARGE,
            Self::QueueFull { .. } => ErrorCode::QUEUE_FULL,
            Self::BadBatch { .. } | Self::UnexpectedPayload => ErrorCode::INVALID_ARGUMENT,
            Self::NotOffered(_) => ErrorCode::UNIMPLEMENTED,
        }
    }

    /// The same as an error record.
    #[must_use]
    pub fn to_record(&self) -> ErrorRecord {
        ErrorRecord::new(self.code(), Text::from(self.to_string()))
    }
}

/// An element that could not be sent on a streaming call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The stream's queue is full; [`Event::Writable`](crate::Event::Writable) follows when it has room.
    #[error("the stream's queue is full")]
    Blocked,
    /// The peer takes no more on this direction.
    #[error("the peer stopped the stream: {0}")]
    Stopped(ErrorCode),
    /// This direction has already been ended by this side.
    #[error("this direction of the stream has ended")]
    Ended,
    /// The call is over.
    #[error("the call is over")]
    Closed,
    /// The element is larger than the peer takes.
    #[error("the element has {len} bytes, the peer takes {limit}")]
    MessageTooLarge {
        /// Its length with the header.
        len: usize,
        /// The peer's limit.
        limit: usize,
    },
    /// The element's context is larger than the protocol allows.
    #[error("the context has {len} bytes, the limit is {limit}")]
    ContextTooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The element's routing information is larger than the protocol allows.
    #[error("the routing information has {len} bytes, the limit is {limit}")]
    RoutingTooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
}
