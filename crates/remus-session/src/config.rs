//! What an endpoint grants its peer, and when it gives up. Every number has a name, a range and a reason.

use core::time::Duration;

use bytes::Bytes;
use remus_wire::{
    AuthMethod, AuthenticationRecord, Features, Limits, MAX_FRAME, NodeId, NodeType, Query,
    ResourceRecord,
};

/// What holds before the peer's capability record has arrived; no endpoint may grant less. Spec: core §3.
///
/// Enough for a first flight of small calls.
pub const INITIAL_LIMITS: Limits = Limits {
    max_frame: 16 * 1024 + 64,
    max_message: 64 * 1024,
    max_streams: 0,
    max_calls: 64,
    stream_window: 64 * 1024,
    session_window: 64 * 1024,
};

/// Shortest idle timeout that can be negotiated: a third of it is the time between heartbeats, and more of them would be a flood.
pub(crate) const IDLE_TIMEOUT_MIN: Duration = Duration::from_millis(500);

/// Largest record of a client's first flight, in bytes: it fits `max_frame` of [`INITIAL_LIMITS`] with a message's header.
pub(crate) const FIRST_RECORD_MAX: usize = 16 * 1024;

/// What is granted by default, and why:
///
/// - frame 64 KiB: one frame is one unit of interleaving and of buffering.
/// - message 4 MiB, as gRPC: what is larger streams.
/// - 256 streams, 1,024 calls: some 200 bytes of table each.
/// - windows of 64 KiB a stream, which grow by need (`max_stream_window`), and 8 MiB a session: with `max_assembly_bytes`, if
///   messages come in parts, that bounds what a peer can make an idle application hold.
pub const DEFAULT_LIMITS: Limits = Limits {
    max_frame: 64 * 1024,
    max_message: 4 * 1024 * 1024,
    max_streams: 256,
    max_calls: 1024,
    stream_window: 64 * 1024,
    session_window: 8 * 1024 * 1024,
};

/// Most streams that can be granted: their IDs must fit 16 bits, half for each side.
pub const STREAMS_MAX: u32 = 16_384;

/// Most calls that can be granted.
pub const CALLS_MAX: u32 = 65_536;

/// Settings of one session.
///
/// Construct with [`SessionConfig::client`] or [`SessionConfig::acceptor`], change fields, and let
/// [`SessionConfig::validate`] (which [`Session`](crate::Session) calls) check the ranges.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// What the peer may use of us.
    pub limits: Limits,
    /// Silence after which the peer counts as lost; the lower of the two sides' values wins.
    ///
    /// Default 10 s, range 500 ms to 600 s. Longer rides out slow links; shorter notices a dead peer sooner. Heartbeats go out
    /// at a third of it.
    pub idle_timeout: Duration,
    /// How long the lifecycle may take until calls flow. Default 10 s, range 100 ms to 120 s.
    pub handshake_timeout: Duration,
    /// How long a session that has lost its carrier is kept, where both sides have stated feature 6; the lower of the two sides'
    /// values wins.
    ///
    /// Default 60 s, range 1 s to 600 s. Longer rides out longer gaps; shorter lets go of memory, and tells callers sooner.
    pub resume_window: Duration,
    /// What is kept of what has left, for the case that it has to leave again on another carrier: bytes, and 64 more for each piece of
    /// them. Beyond it nothing new is sent on a stream before the peer has said that it took some of it in.
    ///
    /// Default 8 MiB: 640 Mbit/s at 100 ms. Range 256 KiB to 1 GiB. Control traffic does not wait for it, and counts: a peer that
    /// makes this side answer and acknowledges nothing is given up 4 MiB beyond.
    pub max_retained_bytes: usize,
    /// Outgoing bytes that may wait in the session before calls are refused and requests are no longer taken in.
    ///
    /// Default 4 MiB, range 64 KiB to 1 GiB.
    pub max_queued_bytes: usize,
    /// Outgoing bytes that may wait on one stream before its sender has to pause. Default 256 KiB, range 1 KiB to 1 GiB.
    pub max_stream_queued_bytes: usize,
    /// Outgoing bytes up to which answers are still queued; an answer beyond is replaced by RESOURCE_EXHAUSTED.
    ///
    /// `max_queued_bytes` stops requests from being handed out, but not the answers of those that already were: this does.
    /// Default 64 MiB, range `max_queued_bytes` to 1 GiB.
    pub max_answer_bytes: usize,
    /// Bytes of half-received messages held for all streams together; a request that would pass it is refused with QUEUE_FULL,
    /// any other message ends its call with RESOURCE_EXHAUSTED.
    ///
    /// Default 64 MiB: sixteen messages of the largest default size. At least `limits.max_message`.
    pub max_assembly_bytes: usize,
    /// How far a stream's window may grow where the path needs it. Default 4 MiB: 640 Mbit/s at 50 ms. At least
    /// `limits.stream_window`, at most 1 GiB; the session's window bounds all streams together.
    pub max_stream_window: u32,
    /// Lanes that may be in use beside lane 0, where the carrier has them. Default 15, range 0 to 15.
    pub extra_lanes: u16,
    /// What this side can do.
    pub features: Features,
    /// This node's number, 0 where it has none.
    pub node: NodeId,
    /// What kind of node this is.
    pub node_type: NodeType,
    /// The resources that this side allows the peer; zeros mean no limit is stated.
    pub resources: ResourceRecord,
    /// Client: who it says it is.
    pub authentication: AuthenticationRecord,
    /// Client: what it asks the directory in its first flight.
    pub query: Query,
}

/// A setting is outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, but must be {range}")]
pub struct ConfigError {
    /// The setting's name.
    pub field: &'static str,
    /// The value given.
    pub value: u64,
    /// The values that are allowed.
    pub range: &'static str,
}

impl SessionConfig {
    /// A client with the defaults.
    #[must_use]
    pub fn client() -> Self {
        Self::new(NodeType::CLIENT)
    }

    /// An acceptor with the defaults.
    #[must_use]
    pub fn acceptor() -> Self {
        Self::new(NodeType::SERVICE)
    }

    fn new(node_type: NodeType) -> Self {
        Self {
            limits: DEFAULT_LIMITS,
            idle_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            resume_window: Duration::from_secs(60),
            max_retained_bytes: 8 * 1024 * 1024,
            max_queued_bytes: 4 * 1024 * 1024,
            max_stream_queued_bytes: 256 * 1024,
            max_answer_bytes: 64 * 1024 * 1024,
            max_assembly_bytes: 64 * 1024 * 1024,
            max_stream_window: 4 * 1024 * 1024,
            extra_lanes: 15,
            features: Features::DATAGRAMS
                .union(Features::PUB_SUB)
                .union(Features::BATCH)
                .union(Features::LANES),
            node: NodeId(0),
            node_type,
            resources: ResourceRecord::default(),
            authentication: AuthenticationRecord::default(),
            query: Query {
                max_answers: 64,
                ..Query::default()
            },
        }
    }

    /// Checks every range.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting outside its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        fn check(
            field: &'static str,
            value: u64,
            min: u64,
            max: u64,
            range: &'static str,
        ) -> Result<(), ConfigError> {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError {
                    field,
                    value,
                    range,
                })
            }
        }
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let l = &self.limits;
        let initial = INITIAL_LIMITS;
        check(
            "max_frame",
            l.max_frame.into(),
            initial.max_frame.into(),
            MAX_FRAME.into(),
            "16,448 bytes to 16 MiB",
        )?;
        check(
            "max_message",
            l.max_message.into(),
            initial.max_message.into(),
            1 << 30,
            "64 KiB to 1 GiB",
        )?;
        check(
            "max_streams",
            l.max_streams.into(),
            0,
            STREAMS_MAX.into(),
            "0 to 16,384",
        )?;
        check(
            "max_calls",
            l.max_calls.into(),
            initial.max_calls.into(),
            CALLS_MAX.into(),
            "64 to 65,536",
        )?;
        check(
            "stream_window",
            l.stream_window.into(),
            initial.stream_window.into(),
            1 << 30,
            "64 KiB to 1 GiB",
        )?;
        check(
            "max_stream_window",
            self.max_stream_window.into(),
            l.stream_window.into(),
            1 << 30,
            "stream_window to 1 GiB",
        )?;
        check(
            "session_window",
            l.session_window.into(),
            u64::from(l.stream_window),
            1 << 30,
            "stream_window to 1 GiB",
        )?;
        check(
            "idle_timeout",
            millis(self.idle_timeout),
            500,
            600_000,
            "500 ms to 600 s",
        )?;
        check(
            "handshake_timeout",
            millis(self.handshake_timeout),
            100,
            120_000,
            "100 ms to 120 s",
        )?;
        check(
            "resume_window",
            millis(self.resume_window),
            1_000,
            600_000,
            "1 s to 600 s",
        )?;
        check(
            "max_retained_bytes",
            wide(self.max_retained_bytes),
            256 * 1024,
            1 << 30,
            "256 KiB to 1 GiB",
        )?;
        check(
            "max_queued_bytes",
            wide(self.max_queued_bytes),
            64 * 1024,
            1 << 30,
            "64 KiB to 1 GiB",
        )?;
        check(
            "max_stream_queued_bytes",
            wide(self.max_stream_queued_bytes),
            1024,
            1 << 30,
            "1 KiB to 1 GiB",
        )?;
        check(
            "max_answer_bytes",
            wide(self.max_answer_bytes),
            wide(self.max_queued_bytes),
            1 << 30,
            "max_queued_bytes to 1 GiB",
        )?;
        check(
            "max_assembly_bytes",
            wide(self.max_assembly_bytes),
            l.max_message.into(),
            u64::MAX,
            "at least max_message",
        )?;
        check("extra_lanes", self.extra_lanes.into(), 0, 15, "0 to 15")?;
        // Both leave before the acceptor has said how long a frame may be.
        check(
            "authentication",
            wide(self.authentication.encoded_len()),
            0,
            wide(FIRST_RECORD_MAX),
            "a record of at most 16 KiB",
        )?;
        check(
            "query",
            wide(self.query.encoded_len()),
            0,
            wide(FIRST_RECORD_MAX),
            "a record of at most 16 KiB",
        )?;
        Ok(())
    }

    /// States feature 6, or doesn't: whether the session may outlive its carrier. Off by default.
    ///
    /// What has left is then kept until the peer has taken it in: up to 8 MiB a session.
    #[must_use]
    pub fn with_resumption(mut self, on: bool) -> Self {
        self.features = if on {
            self.features.union(Features::RESUMPTION)
        } else {
            self.features.difference(Features::RESUMPTION)
        };
        self
    }

    /// Sets what the client presents in its first flight.
    #[must_use]
    pub fn with_bearer(mut self, token: Bytes) -> Self {
        self.authentication = AuthenticationRecord {
            method: AuthMethod::BEARER_JWT,
            token,
            ..AuthenticationRecord::default()
        };
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CORE-15
    #[test]
    fn refuses_to_grant_less_than_the_initial_limits() {
        let mut config = SessionConfig::client();
        assert_eq!(config.validate(), Ok(()));
        config.limits.max_calls = INITIAL_LIMITS.max_calls - 1;
        let error = config.validate().unwrap_err();
        assert_eq!(
            error.to_string(),
            "max_calls is 63, but must be 64 to 65,536"
        );
    }
}
