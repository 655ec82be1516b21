//! Limits of one connection.
//!
//! Invariant: a [`Config`] that exists is valid, as [`ConfigBuilder::build`] checks every range.

use std::time::Duration;

/// Default of [`ConfigBuilder::max_field_section_bytes`], 64 KiB: what browsers and proxies allow.
pub const MAX_FIELD_SECTION_DEFAULT_BYTES: u64 = 64 << 10;

/// Limits of one HTTP/3 connection.
///
/// Together with the windows of the QUIC connection they bound what a peer can make this side keep.
/// The number of streams a peer may have open is the QUIC transport's to limit.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) max_field_section_bytes: u64,
    pub(crate) max_sessions: usize,
    pub(crate) max_requests: usize,
    pub(crate) max_incoming: usize,
    pub(crate) max_undecided_streams: usize,
    pub(crate) max_session_streams: usize,
    pub(crate) max_early_streams: usize,
    pub(crate) max_early_datagram_bytes: usize,
    pub(crate) max_session_datagram_bytes: usize,
    pub(crate) max_capsule_bytes: u64,
    pub(crate) max_peer_faults: u32,
    pub(crate) settings_timeout: Duration,
    pub(crate) head_timeout: Duration,
    pub(crate) close_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        ConfigBuilder::default().config
    }
}

impl Config {
    /// A builder that starts from the defaults.
    #[must_use]
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }
}

/// Why a [`Config`] was refused: a mistake of the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}, outside {min} to {max}")]
pub struct ConfigError {
    /// The setting.
    pub name: &'static str,
    /// What it was set to; durations in milliseconds.
    pub value: u64,
    /// The least it may be.
    pub min: u64,
    /// The most it may be.
    pub max: u64,
}

/// Builds a [`Config`].
#[derive(Clone, Debug)]
pub struct ConfigBuilder {
    config: Config,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        Self {
            config: Config {
                max_field_section_bytes: MAX_FIELD_SECTION_DEFAULT_BYTES,
                max_sessions: 16,
                max_requests: 128,
                max_incoming: 64,
                max_undecided_streams: 64,
                max_session_streams: 256,
                max_early_streams: 64,
                max_early_datagram_bytes: 64 << 10,
                max_session_datagram_bytes: 1 << 20,
                max_capsule_bytes: 64 << 10,
                max_peer_faults: 200,
                settings_timeout: Duration::from_secs(10),
                head_timeout: Duration::from_secs(10),
                close_timeout: Duration::from_secs(3),
            },
        }
    }
}

impl ConfigBuilder {
    /// Largest head or trailers that are accepted, in bytes by the count of RFC 9114 §4.2.2.
    ///
    /// Default 64 KiB, range 1 KiB to 1 MiB. A request above it is answered 431.
    #[must_use]
    pub fn max_field_section_bytes(mut self, value: u64) -> Self {
        self.config.max_field_section_bytes = value;
        self
    }

    /// WebTransport sessions on one connection at a time, asked for ones included.
    ///
    /// Default 16, range 1 to 1024. One more is answered 429.
    #[must_use]
    pub fn max_sessions(mut self, value: usize) -> Self {
        self.config.max_sessions = value;
        self
    }

    /// Plain requests that a server handles on one connection at a time.
    ///
    /// Default 128, range 1 to 65,536. One more is refused with `H3_REQUEST_REJECTED`, which tells the
    /// client that it may send the request again. A request counts until its body and its answer
    /// are dropped.
    #[must_use]
    pub fn max_requests(mut self, value: usize) -> Self {
        self.config.max_requests = value;
        self
    }

    /// Requests and session requests that wait for `accept`.
    ///
    /// Default 64, range 1 to 65,536. One more is refused with `H3_REQUEST_REJECTED`.
    #[must_use]
    pub fn max_incoming(mut self, value: usize) -> Self {
        self.config.max_incoming = value;
        self
    }

    /// Streams whose head, or type, is being read.
    ///
    /// Default 64, range 4 to 65,536, for each of the two kinds of streams. No more are taken from QUIC until one is decided, so that a
    /// peer that sends halves of heads holds up only itself.
    #[must_use]
    pub fn max_undecided_streams(mut self, value: usize) -> Self {
        self.config.max_undecided_streams = value;
        self
    }

    /// Streams of each kind that wait for a session's application to accept them.
    ///
    /// Default 256, range 1 to 65,536. One more is refused with `WT_BUFFERED_STREAM_REJECTED`. At
    /// least the QUIC stream limit, and no stream is ever refused.
    #[must_use]
    pub fn max_session_streams(mut self, value: usize) -> Self {
        self.config.max_session_streams = value;
        self
    }

    /// Streams that arrived before the request for their session and wait for it.
    ///
    /// Default 64, range 0 to 65,536. One more is refused with `WT_BUFFERED_STREAM_REJECTED`.
    #[must_use]
    pub fn max_early_streams(mut self, value: usize) -> Self {
        self.config.max_early_streams = value;
        self
    }

    /// Memory for datagrams that arrived before the request for their session and wait for it, in
    /// bytes; each counts 64 beyond its payload.
    ///
    /// Default 64 KiB, range 0 to 64 MiB, for the connection. One more displaces the oldest.
    #[must_use]
    pub fn max_early_datagram_bytes(mut self, value: usize) -> Self {
        self.config.max_early_datagram_bytes = value;
        self
    }

    /// Memory for datagrams that wait for a session's application to read them, in bytes; each counts
    /// 64 beyond its payload.
    ///
    /// Default 1 MiB, range 1 KiB to 64 MiB, for each session. One more displaces the oldest, as the
    /// newest says most.
    #[must_use]
    pub fn max_session_datagram_bytes(mut self, value: usize) -> Self {
        self.config.max_session_datagram_bytes = value;
        self
    }

    /// Largest capsule that is accepted on a session's CONNECT stream, known or not, in bytes.
    ///
    /// Default 64 KiB, range 1028 bytes to 1 MiB. One above it ends the session with
    /// `H3_EXCESSIVE_LOAD`.
    #[must_use]
    pub fn max_capsule_bytes(mut self, value: u64) -> Self {
        self.config.max_capsule_bytes = value;
        self
    }

    /// Useless work that a peer may cause at once: streams refused or malformed, requests taken back,
    /// frames and capsules that mean nothing.
    ///
    /// Default 200, range 1 to 1,000,000. A quarter of it grows back each second; a peer that uses it
    /// up loses the connection with `H3_EXCESSIVE_LOAD`.
    #[must_use]
    pub fn max_peer_faults(mut self, value: u32) -> Self {
        self.config.max_peer_faults = value;
        self
    }

    /// How long the peer may take until its SETTINGS are there.
    ///
    /// Default 10 s, range 10 ms to 60 s. Then the connection ends with `H3_MISSING_SETTINGS`.
    #[must_use]
    pub fn settings_timeout(mut self, value: Duration) -> Self {
        self.config.settings_timeout = value;
        self
    }

    /// How long a stream may take until its type and head are there, and how long an early stream
    /// waits for its session.
    ///
    /// Default 10 s, range 10 ms to 60 s. Then the stream is refused.
    #[must_use]
    pub fn head_timeout(mut self, value: Duration) -> Self {
        self.config.head_timeout = value;
        self
    }

    /// How long closing a session waits for the peer to acknowledge the code and reason.
    ///
    /// Default 3 s, range 10 ms to 60 s. Then the CONNECT stream is reset.
    #[must_use]
    pub fn close_timeout(mut self, value: Duration) -> Self {
        self.config.close_timeout = value;
        self
    }

    /// The configuration, if every setting is in its range.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that is not.
    pub fn build(self) -> Result<Config, ConfigError> {
        let c = &self.config;
        let count = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let millis = |value: Duration| u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        let ranges = [
            (
                "max_field_section_bytes",
                c.max_field_section_bytes,
                1 << 10,
                1 << 20,
            ),
            ("max_sessions", count(c.max_sessions), 1, 1024),
            ("max_requests", count(c.max_requests), 1, 1 << 16),
            ("max_incoming", count(c.max_incoming), 1, 1 << 16),
            (
                "max_undecided_streams",
                count(c.max_undecided_streams),
                4,
                1 << 16,
            ),
            (
                "max_session_streams",
                count(c.max_session_streams),
                1,
                1 << 16,
            ),
            ("max_early_streams", count(c.max_early_streams), 0, 1 << 16),
            (
                "max_early_datagram_bytes",
                count(c.max_early_datagram_bytes),
                0,
                64 << 20,
            ),
            (
                "max_session_datagram_bytes",
                count(c.max_session_datagram_bytes),
                1 << 10,
                64 << 20,
            ),
            ("max_capsule_bytes", c.max_capsule_bytes, 1028, 1 << 20),
            (
                "max_peer_faults",
                u64::from(c.max_peer_faults),
                1,
                1_000_000,
            ),
            ("settings_timeout", millis(c.settings_timeout), 10, 60_000),
            ("head_timeout", millis(c.head_timeout), 10, 60_000),
            ("close_timeout", millis(c.close_timeout), 10, 60_000),
        ];
        for (name, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(ConfigError {
                    name,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range() {
        assert!(Config::builder().build().is_ok());
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let error = Config::builder().max_capsule_bytes(3).build().unwrap_err();
        assert_eq!(
            error.to_string(),
            "max_capsule_bytes is 3, outside 1028 to 1048576"
        );
        let long = Duration::from_secs(61);
        let error = Config::builder().close_timeout(long).build().unwrap_err();
        assert_eq!((error.name, error.value), ("close_timeout", 61_000));
    }
}
