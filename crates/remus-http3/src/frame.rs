//! HTTP/3 frames, and the integers that begin a stream. Spec: RFC 9114 §6.2 and §7,
//! draft-ietf-webtrans-http3 §4.2 and §4.3.
//!
//! Splits a stream into frames; which frame may come when is for `control` and `message` to say.
//! Invariant: payload is handed on as it arrives, so no length a peer announces reserves memory.

use bytes::{Buf, BufMut, Bytes};

use crate::varint;

/// Frame types.
pub mod frame_type {
    /// Body bytes of a message.
    pub const DATA: u64 = 0x00;
    /// A field section: the head or the trailers of a message.
    pub const HEADERS: u64 = 0x01;
    /// Server push; never allowed by this endpoint.
    pub const CANCEL_PUSH: u64 = 0x03;
    /// The settings of the sender, first on its control stream.
    pub const SETTINGS: u64 = 0x04;
    /// Announces a pushed response; never allowed by this endpoint.
    pub const PUSH_PROMISE: u64 = 0x05;
    /// The sender takes no more requests.
    pub const GOAWAY: u64 = 0x07;
    /// How many pushes the client allows.
    pub const MAX_PUSH_ID: u64 = 0x0d;
    /// Begins a WebTransport stream instead of a frame: no length, a session ID follows.
    pub const WEBTRANSPORT_STREAM: u64 = 0x41;

    /// Whether HTTP/2 used this type, so that HTTP/3 forbids it. Spec: RFC 9114 §7.2.8.
    #[must_use]
    pub const fn is_http2_only(ty: u64) -> bool {
        matches!(ty, 0x02 | 0x06 | 0x08 | 0x09)
    }
}

/// Types of unidirectional streams.
pub mod stream_type {
    /// The control stream.
    pub const CONTROL: u64 = 0x00;
    /// A pushed response; never allowed by this endpoint.
    pub const PUSH: u64 = 0x01;
    /// QPACK instructions that fill the dynamic table.
    pub const QPACK_ENCODER: u64 = 0x02;
    /// QPACK acknowledgements.
    pub const QPACK_DECODER: u64 = 0x03;
    /// A unidirectional WebTransport stream; a session ID follows.
    pub const WEBTRANSPORT: u64 = 0x54;
}

/// What [`FrameDecoder::decode`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameEvent {
    /// A frame begins. With a length of 0 it also ends.
    Begin {
        /// Its type.
        ty: u64,
        /// Bytes of payload that it announces.
        len: u64,
    },
    /// The next bytes of the payload, never empty.
    Payload {
        /// The bytes, sliced from the input.
        bytes: Bytes,
        /// Whether they are the last of the frame.
        last: bool,
    },
}

#[derive(Clone, Debug)]
enum State {
    Type,
    Length { ty: u64 },
    Payload { remaining: u64 },
}

/// Splits a stream, which arrives in pieces of any size, into frames.
#[derive(Clone, Debug)]
pub struct FrameDecoder {
    varint: varint::Decoder,
    state: State,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self {
            varint: varint::Decoder::default(),
            state: State::Type,
        }
    }
}

impl FrameDecoder {
    /// A decoder for a stream whose first frame type was taken off already.
    #[must_use]
    pub fn after_type(ty: u64) -> Self {
        Self {
            varint: varint::Decoder::default(),
            state: State::Length { ty },
        }
    }

    /// Takes the next event off the front of `input`; `None` when more input is needed.
    pub fn decode(&mut self, input: &mut Bytes) -> Option<FrameEvent> {
        loop {
            match self.state {
                State::Type => {
                    let ty = self.varint.decode(input)?;
                    self.state = State::Length { ty };
                }
                State::Length { ty } => {
                    let len = self.varint.decode(input)?;
                    self.state = match len {
                        0 => State::Type,
                        remaining => State::Payload { remaining },
                    };
                    return Some(FrameEvent::Begin { ty, len });
                }
                State::Payload { remaining } => {
                    if !input.has_remaining() {
                        return None;
                    }
                    let take = usize::try_from(remaining)
                        .map_or(input.len(), |remaining| remaining.min(input.len()));
                    let bytes = input.split_to(take);
                    let left = remaining.saturating_sub(u64::try_from(take).unwrap_or(u64::MAX));
                    self.state = match left {
                        0 => State::Type,
                        remaining => State::Payload { remaining },
                    };
                    return Some(FrameEvent::Payload {
                        bytes,
                        last: left == 0,
                    });
                }
            }
        }
    }

    /// Whether the stream may end here: no frame is begun.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Type) && self.varint.is_empty()
    }
}

/// Appends a frame header.
pub(crate) fn encode_header(ty: u64, len: usize, out: &mut impl BufMut) {
    varint::encode(ty, out);
    varint::encode(u64::try_from(len).unwrap_or(varint::MAX), out);
}

/// Appends a whole frame.
pub fn encode(ty: u64, payload: &[u8], out: &mut impl BufMut) {
    encode_header(ty, payload.len(), out);
    out.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes `pieces` and joins the payloads: type, announced length, payload, whether it ended.
    fn frames(pieces: &[Bytes]) -> (Vec<(u64, Vec<u8>)>, bool) {
        let mut decoder = FrameDecoder::default();
        let mut out: Vec<(u64, Vec<u8>)> = Vec::new();
        for piece in pieces {
            let mut piece = piece.clone();
            while let Some(event) = decoder.decode(&mut piece) {
                match event {
                    FrameEvent::Begin { ty, .. } => out.push((ty, Vec::new())),
                    FrameEvent::Payload { bytes, .. } => {
                        out.last_mut().unwrap().1.extend_from_slice(&bytes);
                    }
                }
            }
            assert!(piece.is_empty());
        }
        (out, decoder.is_between_frames())
    }

    #[test]
    fn an_announced_length_is_not_waited_for() {
        let mut input =
            Bytes::from_static(&[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 7]);
        let mut decoder = FrameDecoder::default();
        let len = varint::MAX;
        assert_eq!(
            decoder.decode(&mut input),
            Some(FrameEvent::Begin { ty: 0, len })
        );
        let payload = FrameEvent::Payload {
            bytes: Bytes::from_static(&[7]),
            last: false,
        };
        assert_eq!(decoder.decode(&mut input), Some(payload));
        assert_eq!(decoder.decode(&mut input), None);
        assert!(!decoder.is_between_frames());
    }

    proptest! {
        #[test]
        fn frames_round_trip_however_they_are_cut(
            sent in prop::collection::vec((0..=varint::MAX, prop::collection::vec(any::<u8>(), 0..80)), 0..8),
            cut in 1usize..40,
        ) {
            let mut bytes = Vec::new();
            for (ty, payload) in &sent {
                encode(*ty, payload, &mut bytes);
            }
            let pieces: Vec<_> = bytes.chunks(cut).map(Bytes::copy_from_slice).collect();
            let (got, between) = frames(&pieces);
            prop_assert!(between);
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = frames(&[Bytes::from(bytes)]);
        }
    }
}
