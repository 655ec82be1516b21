//! What a session tells its owner.

use core::time::Duration;

use bytes::Bytes;
use remus_wire::{
    AuthenticationRecord, ErrorCode, ErrorRecord, Features, Limits, Message, NodeId, NodeType,
    Query, QueryAnswer, RequestId, ResumeToken, Shutdown, Text, Timestamp, Version, VersionRecord,
};

use crate::{CallKey, CloseReason};

/// Which end of the session this is. Streams opened by the client are odd, the acceptor's even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that opened the connection.
    Client,
    /// The side that took it.
    Acceptor,
}

/// What a client is granted when its identity is accepted. Spec: wire §4.1, step 5.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// This session's number at the acceptor.
    pub session: u32,
    /// When the grant ends; [`Timestamp::ZERO`] for never.
    pub expires: Timestamp,
    /// What the client may claim, as JSON.
    pub claims: Text,
    /// Whether the session counts as authenticated, so that messages marked Requires Auth are taken.
    pub authenticated: bool,
    /// Acceptor: who the client is, in whatever words the acceptor has for that; not sent. Empty: it is known by its claims, and where
    /// there are none by the very record that it presented.
    ///
    /// A session is resumed by whom it belongs to and by nobody else: who comes back on another carrier has to be granted the same
    /// subject. Where clients renew their tokens it should be stated, because then claims and records change.
    pub subject: Text,
    /// What resumes the session when it has lost its carrier: 32 bytes from a generator that nobody can foresee.
    ///
    /// Only that of the first grant counts, and only where both sides have stated feature 6; [`ResumeToken::NONE`]: nothing does.
    pub token: ResumeToken,
}

/// What both sides have settled when the session becomes active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The version in force.
    pub version: Version,
    /// What both sides can do.
    pub features: Features,
    /// What the peer grants us.
    pub peer_limits: Limits,
    /// The peer's node number.
    pub peer_node: NodeId,
    /// What kind of node the peer is.
    pub peer_node_type: NodeType,
    /// The idle timeout in force.
    pub idle_timeout: Duration,
    /// Client: what the acceptor granted.
    pub grant: Grant,
    /// Client: the answer to its query.
    pub directory: QueryAnswer,
}

/// A call that the peer made.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Answer it under this key, always: an answer that nobody expects ends the call and is not sent.
    pub call: CallKey,
    /// Whether the caller waits for an answer (request ID other than 0).
    pub answered: bool,
    /// Whether the call has a stream to itself, so that it can be answered with elements.
    pub owns_stream: bool,
    /// The request.
    pub message: Message,
    /// Whether the request is whole: no elements follow it.
    pub ended: bool,
    /// When the caller gives up, by the local clock.
    pub deadline: Option<Timestamp>,
}

/// Something happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Acceptor: the client says who it is; answer with [`Session::grant`](crate::Session::grant),
    /// [`Session::refuse`](crate::Session::refuse) or [`Session::challenge`](crate::Session::challenge).
    /// Requests wait until then.
    Authenticate(AuthenticationRecord),
    /// Client: the acceptor wants this challenge answered with [`Session::authenticate`](crate::Session::authenticate).
    Challenge(Bytes),
    /// The peer asks the directory; answer with [`Session::answer_query`](crate::Session::answer_query).
    ///
    /// Acceptor: the first one is a step of the lifecycle, and nothing more is taken in until it is answered.
    Query(RequestId, Query),
    /// Client: the acceptor refused the session; [`Event::Closed`] follows. An UNSUPPORTED_VERSION lists in a detail what it
    /// speaks ([`Version::decode_spoken`](remus_wire::Version::decode_spoken)).
    Refused(Box<ErrorRecord>),
    /// The lifecycle is complete.
    Active(Box<Negotiated>),
    /// The peer called.
    Request(Incoming),
    /// A unary call of ours was answered, or a batch failed as a whole. The key is spent.
    Answer(CallKey, Result<Message, ErrorRecord>),
    /// A batch of ours was answered, one answer a request, in order. The key is spent.
    BatchAnswer(CallKey, Vec<Result<Message, ErrorRecord>>),
    /// A streaming call has something for [`Session::recv`](crate::Session::recv).
    Readable(CallKey),
    /// A streaming call that was blocked can send again, or never will.
    Writable(CallKey),
    /// A call of the peer's is not wanted any more: cancelled, or past its deadline. Stop the work behind it.
    Cancelled(CallKey, ErrorCode),
    /// The outgoing queue has room again after [`Session::is_congested`](crate::Session::is_congested).
    Uncongested,
    /// A heartbeat came back: [`Session::path`](crate::Session::path) has changed.
    PathMeasured,
    /// The carrier is gone, and the session waits for another one: calls, streams and deadlines go on existing.
    ///
    /// Client: go on with [`Session::attach`](crate::Session::attach). Where the session noticed by itself, by silence, the carrier is to
    /// be closed. Ends with [`Event::Resumed`], or with [`Event::Closed`] and LOSS_OF_SESSION.
    Suspended {
        /// Why, as a code.
        code: ErrorCode,
        /// Why, for people.
        reason: String,
    },
    /// The session goes on, on another carrier. Nothing was lost and nothing came twice.
    Resumed,
    /// The peer announced its end.
    ShuttingDown(Box<Shutdown>),
    /// Acceptor: the peer's offer, for the record.
    Offered(Box<VersionRecord>),
    /// The session is over; nothing follows.
    Closed(CloseReason),
}
