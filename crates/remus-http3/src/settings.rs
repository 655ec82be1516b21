//! The SETTINGS frame: what this endpoint sends, and what it understands of a peer's.
//! Spec: RFC 9114 §7.2.4, RFC 9220, RFC 9297 §2.1.1, and the WebTransport drafts.
//!
//! Which dialects of WebTransport are offered, and why the session flow control settings are not,
//! is decision 0002.

use bytes::{Buf, BufMut, Bytes};

use crate::{Code, config::MAX_FIELD_SECTION_DEFAULT_BYTES, fault::Fault, frame, varint};

/// Setting identifiers.
pub(crate) mod id {
    /// Largest dynamic QPACK table the sender keeps, in bytes.
    pub(crate) const QPACK_MAX_TABLE_CAPACITY: u64 = 0x01;
    /// Largest field section the sender accepts, in bytes.
    pub(crate) const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
    /// Streams that may wait for QPACK instructions.
    pub(crate) const QPACK_BLOCKED_STREAMS: u64 = 0x07;
    /// The sender takes extended CONNECT.
    pub(crate) const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;
    /// HTTP datagrams, RFC 9297.
    pub(crate) const H3_DATAGRAM: u64 = 0x33;
    /// HTTP datagrams, draft 04.
    pub(crate) const H3_DATAGRAM_DRAFT04: u64 = 0xff_d277;
    /// WebTransport draft 02: Chromium and Firefox.
    pub(crate) const WEBTRANSPORT_DRAFT02: u64 = 0x2b60_3742;
    /// WebTransport draft 07, the number of sessions: Safari.
    pub(crate) const WEBTRANSPORT_DRAFT07: u64 = 0xc671_706a;
    /// WebTransport drafts 13 and 14, the number of sessions.
    pub(crate) const WEBTRANSPORT_DRAFT13: u64 = 0x14e9_cd29;
    /// WebTransport drafts 15 and 16.
    pub(crate) const WEBTRANSPORT_DRAFT15: u64 = 0x2c7c_f000;
}

/// Largest SETTINGS payload that is read, in bytes.
///
/// A real one has about ten pairs of at most 16 bytes; this leaves room for GREASE.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 1024;

/// What a peer's SETTINGS say, as far as this endpoint cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Largest field section the peer accepts, in bytes by the rule of RFC 9114 §4.2.2; `None` for no limit.
    pub max_field_section_bytes: Option<u64>,
    /// The peer takes extended CONNECT.
    pub connect_protocol: bool,
    /// The peer takes HTTP datagrams.
    pub datagrams: bool,
    /// The peer speaks WebTransport draft 02.
    pub draft02: bool,
    /// Sessions a peer of draft 07 takes; 0 when it does not speak it.
    pub draft07_sessions: u64,
    /// Sessions a peer of drafts 13 and 14 takes; 0 when it does not speak them.
    pub draft13_sessions: u64,
    /// The peer speaks WebTransport draft 15 or 16.
    pub draft15: bool,
}

impl Settings {
    /// Whether the peer offers WebTransport in any dialect.
    #[must_use]
    pub fn webtransport(&self) -> bool {
        self.draft02 || self.draft15 || self.draft07_sessions > 0 || self.draft13_sessions > 0
    }

    /// Sessions the peer takes on one connection at a time, as far as its dialects state a number.
    ///
    /// Draft 02 states none. A draft with session flow control allows one while the flow control
    /// settings are not exchanged, and this endpoint does not send them.
    #[must_use]
    pub fn max_sessions(&self) -> Option<u64> {
        if self.draft02 {
            None
        } else if self.draft07_sessions > 0 {
            Some(self.draft07_sessions)
        } else {
            Some(1)
        }
    }

    /// The `:protocol` that this peer expects for a session.
    ///
    /// Only the newest drafts renamed it, so the old name goes to whoever offers an older dialect.
    #[must_use]
    pub fn connect_token(&self) -> &'static str {
        if self.draft15 && !self.draft02 && self.draft07_sessions == 0 && self.draft13_sessions == 0
        {
            "webtransport-h3"
        } else {
            "webtransport"
        }
    }

    /// Decodes the payload of a SETTINGS frame.
    ///
    /// # Errors
    ///
    /// `H3_FRAME_ERROR` when it ends inside a pair, `H3_SETTINGS_ERROR` for a repeated identifier,
    /// for one that HTTP/2 used, and for a flag that is neither 0 nor 1.
    pub fn decode(mut payload: Bytes) -> Result<Self, Fault> {
        const TRUNCATED: Fault =
            Fault::connection(Code::H3_FRAME_ERROR, "SETTINGS ends inside a pair");
        let mut settings = Self::default();
        // At most MAX_PAYLOAD_BYTES / 2 entries, as the caller bounds the payload.
        let mut seen: Vec<u64> = Vec::new();
        let mut datagram_draft04 = false;
        while payload.has_remaining() {
            let (setting, used) = varint::decode(&payload).ok_or(TRUNCATED)?;
            payload.advance(used);
            let (value, used) = varint::decode(&payload).ok_or(TRUNCATED)?;
            payload.advance(used);
            match seen.binary_search(&setting) {
                Ok(_) => {
                    return Err(Fault::connection(
                        Code::H3_SETTINGS_ERROR,
                        "a setting is repeated",
                    ));
                }
                Err(at) => seen.insert(at, setting),
            }
            match setting {
                0x00 | 0x02..=0x05 => {
                    return Err(Fault::connection(
                        Code::H3_SETTINGS_ERROR,
                        "a setting of HTTP/2",
                    ));
                }
                id::MAX_FIELD_SECTION_SIZE => settings.max_field_section_bytes = Some(value),
                id::ENABLE_CONNECT_PROTOCOL => settings.connect_protocol = flag(value)?,
                id::H3_DATAGRAM => settings.datagrams = flag(value)?,
                id::H3_DATAGRAM_DRAFT04 => datagram_draft04 = value == 1,
                id::WEBTRANSPORT_DRAFT02 => settings.draft02 = value != 0,
                id::WEBTRANSPORT_DRAFT07 => settings.draft07_sessions = value,
                id::WEBTRANSPORT_DRAFT13 => settings.draft13_sessions = value,
                id::WEBTRANSPORT_DRAFT15 => settings.draft15 = value != 0,
                _ => {}
            }
        }
        settings.datagrams |= datagram_draft04;
        Ok(settings)
    }
}

/// A setting that is a flag. Spec: RFC 9297 §2.1.1, RFC 8441 §3.
fn flag(value: u64) -> Result<bool, Fault> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Fault::connection(
            Code::H3_SETTINGS_ERROR,
            "a flag in SETTINGS is neither 0 nor 1",
        )),
    }
}

/// Appends what begins this endpoint's control stream: the stream type and the SETTINGS frame.
///
/// `max_field_section_bytes` is what this endpoint accepts.
pub fn encode_control_preface(max_field_section_bytes: u64, out: &mut impl BufMut) {
    let pairs = [
        (id::QPACK_MAX_TABLE_CAPACITY, 0),
        (id::QPACK_BLOCKED_STREAMS, 0),
        (id::MAX_FIELD_SECTION_SIZE, max_field_section_bytes),
        (id::ENABLE_CONNECT_PROTOCOL, 1),
        (id::H3_DATAGRAM, 1),
        (id::WEBTRANSPORT_DRAFT02, 1),
        (id::WEBTRANSPORT_DRAFT07, 1),
        (id::WEBTRANSPORT_DRAFT15, 1),
    ];
    let mut payload = Vec::with_capacity(64);
    for (setting, value) in pairs {
        varint::encode(setting, &mut payload);
        varint::encode(value, &mut payload);
    }
    varint::encode(frame::stream_type::CONTROL, out);
    frame::encode(frame::frame_type::SETTINGS, &payload, out);
}

/// [`encode_control_preface`] with the default limit, for tests and fuzzing.
#[must_use]
pub fn default_control_preface() -> Vec<u8> {
    let mut out = Vec::new();
    encode_control_preface(MAX_FIELD_SECTION_DEFAULT_BYTES, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(pairs: &[(u64, u64)]) -> Bytes {
        let mut out = Vec::new();
        for (id, value) in pairs {
            varint::encode(*id, &mut out);
            varint::encode(*value, &mut out);
        }
        out.into()
    }

    /// The bytes of decision 0002. A change here changes which browsers can connect.
    ///
    /// Spec: TRANS-12, TRANS-13
    #[test]
    fn control_stream_begins_with_these_bytes() {
        #[rustfmt::skip]
        let golden = [
            0x00, // control stream
            0x04, 0x20, // SETTINGS, 32 bytes
            0x01, 0x00, // no dynamic QPACK table
            0x07, 0x00, // no blocked streams
            0x06, 0x80, 0x01, 0x00, 0x00, // field sections up to 65536 bytes
            0x08, 0x01, // extended CONNECT
            0x33, 0x01, // HTTP datagrams
            0xab, 0x60, 0x37, 0x42, 0x01, // WebTransport draft 02
            0xc0, 0x00, 0x00, 0x00, 0xc6, 0x71, 0x70, 0x6a, 0x01, // draft 07, one session
            0xac, 0x7c, 0xf0, 0x00, 0x01, // draft 15
        ];
        assert_eq!(default_control_preface(), golden);
    }

    /// What the browsers in the field send, byte order of the pairs included.
    ///
    /// Spec: TRANS-17
    #[test]
    fn reads_the_settings_of_browsers() {
        let chromium = encode(&[
            (0x1, 65536),
            (0x6, 16384),
            (0x7, 100),
            (0x33, 1),
            (0xff_d277, 1),
            (0x2b60_3742, 1),
            (0x1f * 7 + 0x21, 99),
        ]);
        let chromium = Settings::decode(chromium).unwrap();
        assert!(chromium.datagrams && chromium.draft02 && chromium.webtransport());
        assert_eq!(chromium.max_field_section_bytes, Some(16384));
        assert_eq!(chromium.max_sessions(), None);
        assert_eq!(chromium.connect_token(), "webtransport");

        let newest = Settings::decode(encode(&[(0x2c7c_f000, 1), (0x33, 1), (0x8, 1)])).unwrap();
        assert_eq!(newest.connect_token(), "webtransport-h3");
        assert_eq!(newest.max_sessions(), Some(1));

        let safari = Settings::decode(encode(&[(0xc671_706a, 4), (0x33, 1)])).unwrap();
        assert_eq!(safari.max_sessions(), Some(4));
        assert_eq!(safari.connect_token(), "webtransport");
    }

    /// Spec: TRANS-15
    #[test]
    fn rejects_what_the_rfc_forbids() {
        let cases: [(&[(u64, u64)], Code); 5] = [
            (&[(0x33, 2)], Code::H3_SETTINGS_ERROR),
            (&[(0x08, 7)], Code::H3_SETTINGS_ERROR),
            (&[(0x06, 1), (0x33, 1), (0x06, 1)], Code::H3_SETTINGS_ERROR),
            (&[(0x02, 0)], Code::H3_SETTINGS_ERROR),
            (&[(0x05, 0)], Code::H3_SETTINGS_ERROR),
        ];
        for (pairs, code) in cases {
            assert_eq!(
                Settings::decode(encode(pairs)).unwrap_err().code,
                code,
                "{pairs:?}"
            );
        }
        let cut = encode(&[(0x06, 65536)]).slice(0..3);
        assert_eq!(
            Settings::decode(cut).unwrap_err().code,
            Code::H3_FRAME_ERROR
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Settings::decode(bytes.into());
        }
    }
}
