//! Capsules, the messages on a session's CONNECT stream. Spec: RFC 9297 §3.2,
//! draft-ietf-webtrans-http3 §4.7 and §6.
//!
//! Invariant: never holds more than the largest known capsule, whatever length a peer announces.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Code, fault::Fault, frame, varint};

/// Capsule types.
pub(crate) mod capsule_type {
    /// An HTTP datagram on the stream instead of in a QUIC datagram.
    pub(crate) const DATAGRAM: u64 = 0x00;
    /// The session ends, with a code and a reason.
    pub(crate) const CLOSE: u64 = 0x2843;
    /// The session should end soon.
    pub(crate) const DRAIN: u64 = 0x78ae;
}

/// Longest reason of a CLOSE capsule, in bytes. Spec: draft-ietf-webtrans-http3 §6.
pub const MAX_REASON_BYTES: usize = 1024;

/// Bytes of the code in a CLOSE capsule.
const CLOSE_CODE_BYTES: usize = 4;

/// A capsule this endpoint knows, or the fact that one was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capsule {
    /// The session ends.
    Close {
        /// The application's code.
        code: u32,
        /// The application's reason, at most [`MAX_REASON_BYTES`].
        reason: String,
    },
    /// The session should end soon.
    Drain,
    /// A datagram.
    Datagram(Bytes),
    /// A capsule of an unknown type, such as GREASE; the caller bounds how many it tolerates.
    Skipped,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Type,
    Length { ty: u64 },
    Value { ty: u64, remaining: u64 },
}

/// Decodes capsules out of a stream that arrives in pieces of any size.
#[derive(Debug)]
pub struct CapsuleDecoder {
    varint: varint::Decoder,
    state: State,
    value: BytesMut,
    max_bytes: u64,
}

impl CapsuleDecoder {
    /// A decoder that refuses capsules whose value is over `max_bytes`, known or not.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        Self {
            varint: varint::Decoder::default(),
            state: State::Type,
            value: BytesMut::new(),
            max_bytes,
        }
    }

    /// Takes the next capsule off the front of `input`; `None` when more input is needed.
    ///
    /// # Errors
    ///
    /// All end the stream: `H3_MESSAGE_ERROR` for a malformed capsule, `H3_EXCESSIVE_LOAD` for one
    /// over the limit.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<Capsule>, Fault> {
        loop {
            match self.state {
                State::Type => {
                    let Some(ty) = self.varint.decode(input) else {
                        return Ok(None);
                    };
                    self.state = State::Length { ty };
                }
                State::Length { ty } => {
                    let Some(len) = self.varint.decode(input) else {
                        return Ok(None);
                    };
                    self.check_length(ty, len)?;
                    self.value.clear();
                    self.state = State::Value { ty, remaining: len };
                }
                State::Value { ty, remaining: 0 } => {
                    self.state = State::Type;
                    return self.finish_capsule(ty).map(Some);
                }
                State::Value { ty, remaining } => {
                    if !input.has_remaining() {
                        return Ok(None);
                    }
                    let take = usize::try_from(remaining)
                        .map_or(input.len(), |remaining| remaining.min(input.len()));
                    let piece = input.split_to(take);
                    if is_known(ty) {
                        self.value.extend_from_slice(&piece);
                    }
                    let taken = u64::try_from(take).unwrap_or(u64::MAX);
                    self.state = State::Value {
                        ty,
                        remaining: remaining.saturating_sub(taken),
                    };
                }
            }
        }
    }

    /// Whether the stream may end here: no capsule is begun.
    #[must_use]
    pub fn is_between_capsules(&self) -> bool {
        matches!(self.state, State::Type) && self.varint.is_empty()
    }

    fn check_length(&self, ty: u64, len: u64) -> Result<(), Fault> {
        let close = u64::try_from(CLOSE_CODE_BYTES + MAX_REASON_BYTES).unwrap_or(u64::MAX);
        let detail = match ty {
            capsule_type::CLOSE if len > close => {
                "the reason of a CLOSE capsule is over 1024 bytes"
            }
            capsule_type::CLOSE if len < 4 => "a CLOSE capsule ends inside its code",
            capsule_type::DRAIN if len > 0 => "a DRAIN capsule is not empty",
            _ if len > self.max_bytes => {
                return Err(Fault::stream(
                    Code::H3_EXCESSIVE_LOAD,
                    "a capsule above the limit",
                ));
            }
            _ => return Ok(()),
        };
        Err(Fault::stream(Code::H3_MESSAGE_ERROR, detail))
    }

    fn finish_capsule(&mut self, ty: u64) -> Result<Capsule, Fault> {
        let mut value = self.value.split().freeze();
        Ok(match ty {
            capsule_type::CLOSE => {
                let code = value.try_get_u32().map_err(|_| {
                    Fault::stream(
                        Code::H3_MESSAGE_ERROR,
                        "a CLOSE capsule ends inside its code",
                    )
                })?;
                let reason = std::str::from_utf8(&value).map_err(|_| {
                    Fault::stream(
                        Code::H3_MESSAGE_ERROR,
                        "the reason of a CLOSE capsule is not UTF-8",
                    )
                })?;
                Capsule::Close {
                    code,
                    reason: reason.to_owned(),
                }
            }
            capsule_type::DRAIN => Capsule::Drain,
            capsule_type::DATAGRAM => Capsule::Datagram(value),
            _ => Capsule::Skipped,
        })
    }
}

const fn is_known(ty: u64) -> bool {
    matches!(
        ty,
        capsule_type::CLOSE | capsule_type::DRAIN | capsule_type::DATAGRAM
    )
}

/// Appends a CLOSE capsule inside a DATA frame. A reason over [`MAX_REASON_BYTES`] is cut at a
/// character.
pub fn encode_close(code: u32, reason: &str, out: &mut impl BufMut) {
    let reason = truncate(reason, MAX_REASON_BYTES);
    let mut capsule = Vec::with_capacity(16 + reason.len());
    varint::encode(capsule_type::CLOSE, &mut capsule);
    let len = CLOSE_CODE_BYTES.saturating_add(reason.len());
    varint::encode(u64::try_from(len).unwrap_or(varint::MAX), &mut capsule);
    capsule.put_u32(code);
    capsule.put_slice(reason.as_bytes());
    frame::encode(frame::frame_type::DATA, &capsule, out);
}

/// Appends a DRAIN capsule inside a DATA frame.
pub fn encode_drain(out: &mut impl BufMut) {
    let mut capsule = Vec::with_capacity(8);
    varint::encode(capsule_type::DRAIN, &mut capsule);
    varint::encode(0, &mut capsule);
    frame::encode(frame::frame_type::DATA, &capsule, out);
}

/// The longest prefix of `text` that is at most `max` bytes and ends at a character.
pub(crate) fn truncate(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{FrameDecoder, FrameEvent};

    const MAX: u64 = 2000;

    fn decode(bytes: &[u8], cut: usize) -> Result<(Vec<Capsule>, bool), Fault> {
        let mut decoder = CapsuleDecoder::new(MAX);
        let mut out = Vec::new();
        for piece in bytes.chunks(cut) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(capsule) = decoder.decode(&mut piece)? {
                out.push(capsule);
            }
        }
        Ok((out, decoder.is_between_capsules()))
    }

    fn capsule(ty: u64, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame::encode(ty, value, &mut out); // a capsule is laid out like a frame
        out
    }

    /// The payload of the one DATA frame in `bytes`.
    fn data(bytes: Vec<u8>) -> Vec<u8> {
        let mut input = Bytes::from(bytes);
        let mut frames = FrameDecoder::default();
        assert!(matches!(
            frames.decode(&mut input),
            Some(FrameEvent::Begin { ty: 0, .. })
        ));
        match frames.decode(&mut input) {
            Some(FrameEvent::Payload { bytes, last: true }) => bytes.to_vec(),
            other => panic!("not one DATA frame: {other:?}"),
        }
    }

    #[test]
    fn refuses_what_is_malformed() {
        let long = [0; 4 + 1025];
        let cases: [(&str, Vec<u8>, Code); 5] = [
            (
                "close ends in its code",
                capsule(0x2843, &[0; 3]),
                Code::H3_MESSAGE_ERROR,
            ),
            (
                "reason too long",
                capsule(0x2843, &long),
                Code::H3_MESSAGE_ERROR,
            ),
            (
                "reason not UTF-8",
                capsule(0x2843, &[0, 0, 0, 1, 0xff]),
                Code::H3_MESSAGE_ERROR,
            ),
            (
                "drain with a value",
                capsule(0x78ae, &[0]),
                Code::H3_MESSAGE_ERROR,
            ),
            (
                "unknown and huge",
                capsule(0x1234, &[0; 2001]),
                Code::H3_EXCESSIVE_LOAD,
            ),
        ];
        for (name, bytes, code) in cases {
            assert_eq!(decode(&bytes, 5).unwrap_err().code, code, "{name}");
        }
    }

    #[test]
    fn a_length_alone_is_enough_to_refuse() {
        let mut bytes = Vec::new();
        frame::encode_header(capsule_type::DATAGRAM, usize::MAX >> 2, &mut bytes);
        assert_eq!(
            decode(&bytes, 100).unwrap_err().code,
            Code::H3_EXCESSIVE_LOAD
        );
    }

    #[test]
    fn unknown_capsules_are_skipped_and_a_cut_one_is_noticed() {
        let bytes = [
            capsule(0x21, b"grease"),
            capsule(0, b"dgram"),
            capsule(0x78ae, &[]),
        ]
        .concat();
        for cut in 1..bytes.len() {
            let (got, between) = decode(&bytes, cut).unwrap();
            let datagram = Capsule::Datagram(Bytes::from_static(b"dgram"));
            assert_eq!(got, [Capsule::Skipped, datagram, Capsule::Drain]);
            assert!(between);
            assert!(!decode(&bytes[..bytes.len() - 1], cut).unwrap().1);
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        encode_close(1, &"é".repeat(600), &mut out);
        let (got, _) = decode(&data(out), 7).unwrap();
        let reason = "é".repeat(512);
        assert_eq!(got, [Capsule::Close { code: 1, reason }]);
    }

    proptest! {
        #[test]
        fn close_round_trips(code: u32, reason in "\\PC{0,200}", cut in 1usize..30) {
            let mut out = Vec::new();
            encode_close(code, &reason, &mut out);
            let (got, between) = decode(&data(out), cut).unwrap();
            prop_assert!(between);
            prop_assert_eq!(got, vec![Capsule::Close { code, reason }]);
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1usize..50) {
            let _ = decode(&bytes, cut);
        }
    }
}
