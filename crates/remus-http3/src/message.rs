//! The frames of one request or response: head, body, trailers. Spec: RFC 9114 §4.1.
//!
//! Says which frame may come when; what the field sections mean is for `head` to say.
//! Invariant: holds at most one field section, up to its limit.

use bytes::{Bytes, BytesMut};

use crate::{
    Code,
    control::Peer,
    fault::Fault,
    frame::{FrameDecoder, FrameEvent, frame_type},
};

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageEvent {
    /// The head, still as a field section.
    Head(Bytes),
    /// Bytes of the body, never empty; their boundaries mean nothing.
    Data(Bytes),
    /// The trailers, still as a field section.
    Trailers(Bytes),
    /// A frame without content: an unknown type, such as GREASE, or empty DATA. The caller bounds
    /// how many it tolerates.
    Skipped,
}

/// Why a message could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The peer broke a rule.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The HEADERS frame is over the limit; only this message fails.
    #[error("field section above the limit")]
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Head,
    Body,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Current {
    Fields,
    Data,
    Skip,
}

/// Decodes one direction of a request stream, which arrives in pieces of any size.
#[derive(Debug)]
pub struct MessageDecoder {
    peer: Peer,
    frames: FrameDecoder,
    phase: Phase,
    current: Current,
    fields: BytesMut,
    max_field_section: u64,
}

impl MessageDecoder {
    /// A decoder for what `peer` sends, with HEADERS frames of at most `max_field_section` bytes.
    #[must_use]
    pub fn new(peer: Peer, max_field_section: u64) -> Self {
        Self {
            peer,
            frames: FrameDecoder::default(),
            phase: Phase::Head,
            current: Current::Skip,
            fields: BytesMut::new(),
            max_field_section,
        }
    }

    /// The same for a stream whose first frame type was taken off already.
    #[must_use]
    pub fn after_type(ty: u64, peer: Peer, max_field_section: u64) -> Self {
        Self {
            frames: FrameDecoder::after_type(ty),
            ..Self::new(peer, max_field_section)
        }
    }

    /// Makes the next HEADERS frame a head again, after an informational response.
    pub fn expect_another_head(&mut self) {
        self.phase = Phase::Head;
    }

    /// Takes the next event off the front of `input`; `None` when more input is needed.
    ///
    /// # Errors
    ///
    /// [`MessageError::TooLarge`] for a field section above the limit, from its announced length;
    /// otherwise a fault that ends the connection.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<MessageEvent>, MessageError> {
        while let Some(event) = self.frames.decode(input) {
            match event {
                FrameEvent::Begin { ty, len } => {
                    self.begin(ty, len)?;
                    if len == 0 {
                        return Ok(Some(match self.current {
                            Current::Fields => self.finish_fields(Bytes::new()),
                            Current::Data | Current::Skip => MessageEvent::Skipped,
                        }));
                    }
                }
                FrameEvent::Payload { bytes, last } => match self.current {
                    Current::Data => return Ok(Some(MessageEvent::Data(bytes))),
                    Current::Fields if last && self.fields.is_empty() => {
                        return Ok(Some(self.finish_fields(bytes)));
                    }
                    Current::Fields => {
                        self.fields.extend_from_slice(&bytes);
                        if last {
                            let section = std::mem::take(&mut self.fields).freeze();
                            return Ok(Some(self.finish_fields(section)));
                        }
                    }
                    Current::Skip if last => return Ok(Some(MessageEvent::Skipped)),
                    Current::Skip => {}
                },
            }
        }
        Ok(None)
    }

    /// Checks that the stream may end here.
    ///
    /// # Errors
    ///
    /// `H3_FRAME_ERROR` for the connection inside a frame, `H3_REQUEST_INCOMPLETE` for the stream
    /// before a head.
    pub fn finish(&self) -> Result<(), Fault> {
        if !self.frames.is_between_frames() {
            return Err(Fault::connection(
                Code::H3_FRAME_ERROR,
                "the stream ends inside a frame",
            ));
        }
        if self.phase == Phase::Head {
            return Err(Fault::stream(
                Code::H3_REQUEST_INCOMPLETE,
                "the stream ends before the head of its message",
            ));
        }
        Ok(())
    }

    fn finish_fields(&mut self, section: Bytes) -> MessageEvent {
        if self.phase == Phase::Head {
            self.phase = Phase::Body;
            MessageEvent::Head(section)
        } else {
            self.phase = Phase::Ended;
            MessageEvent::Trailers(section)
        }
    }

    fn begin(&mut self, ty: u64, len: u64) -> Result<(), MessageError> {
        let unexpected = |detail| Fault::connection(Code::H3_FRAME_UNEXPECTED, detail);
        self.current = match ty {
            frame_type::HEADERS if self.phase == Phase::Ended => {
                return Err(unexpected("HEADERS after the trailers").into());
            }
            frame_type::HEADERS if len > self.max_field_section => {
                return Err(MessageError::TooLarge);
            }
            frame_type::HEADERS => Current::Fields,
            frame_type::DATA => match self.phase {
                Phase::Head => return Err(unexpected("DATA before HEADERS").into()),
                Phase::Body => Current::Data,
                Phase::Ended => return Err(unexpected("DATA after the trailers").into()),
            },
            frame_type::PUSH_PROMISE if self.peer == Peer::Server => {
                let detail = "PUSH_PROMISE, though no push is allowed";
                return Err(Fault::connection(Code::H3_ID_ERROR, detail).into());
            }
            frame_type::PUSH_PROMISE
            | frame_type::SETTINGS
            | frame_type::GOAWAY
            | frame_type::MAX_PUSH_ID
            | frame_type::CANCEL_PUSH => {
                return Err(unexpected("a frame that is not allowed on a request stream").into());
            }
            frame_type::WEBTRANSPORT_STREAM => {
                let detail = "WEBTRANSPORT_STREAM inside a stream";
                return Err(Fault::connection(Code::H3_FRAME_ERROR, detail).into());
            }
            ty if frame_type::is_http2_only(ty) => {
                return Err(unexpected("a frame of HTTP/2").into());
            }
            _ => Current::Skip,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{fault::Scope, frame};

    const MAX: u64 = 100;

    /// Decodes `bytes` in pieces of `cut`, joining neighbouring pieces of body.
    fn decode(peer: Peer, bytes: &[u8], cut: usize) -> Result<Vec<MessageEvent>, MessageError> {
        let mut decoder = MessageDecoder::new(peer, MAX);
        let mut events: Vec<MessageEvent> = Vec::new();
        for piece in bytes.chunks(cut) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(event) = decoder.decode(&mut piece)? {
                match (events.last_mut(), event) {
                    (Some(MessageEvent::Data(body)), MessageEvent::Data(more)) => {
                        *body = [&body[..], &more].concat().into();
                    }
                    (_, event) => events.push(event),
                }
            }
        }
        decoder.finish()?;
        Ok(events)
    }

    fn stream(frames: &[(u64, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (ty, payload) in frames {
            frame::encode(*ty, payload, &mut out);
        }
        out
    }

    #[test]
    fn grease_head_body_trailers_however_cut() {
        let bytes = stream(&[
            (0x21, b"g"),
            (1, b"head"),
            (0, b"bo"),
            (0, b"dy"),
            (1, b"end"),
            (0x40, b""),
        ]);
        for cut in 1..=bytes.len() {
            let events = decode(Peer::Client, &bytes, cut).unwrap();
            let want = [
                MessageEvent::Skipped,
                MessageEvent::Head(Bytes::from_static(b"head")),
                MessageEvent::Data(Bytes::from_static(b"body")),
                MessageEvent::Trailers(Bytes::from_static(b"end")),
                MessageEvent::Skipped,
            ];
            assert_eq!(events, want, "pieces of {cut}");
        }
    }

    #[test]
    fn each_fault_has_its_code() {
        type Case<'a> = (&'a str, Peer, &'a [(u64, &'a [u8])], Code);
        let cases: [Case<'_>; 10] = [
            (
                "DATA first",
                Peer::Client,
                &[(0, b"x")],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "DATA last",
                Peer::Client,
                &[(1, b"h"), (1, b"t"), (0, b"x")],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "HEADERS thrice",
                Peer::Client,
                &[(1, b"h"), (1, b"t"), (1, b"x")],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "SETTINGS",
                Peer::Client,
                &[(4, b"")],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "GOAWAY",
                Peer::Client,
                &[(7, b"\0")],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "HTTP/2 WINDOW_UPDATE",
                Peer::Client,
                &[(8, b"")],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "push by a client",
                Peer::Client,
                &[(5, b"")],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "push by a server",
                Peer::Server,
                &[(5, b"")],
                Code::H3_ID_ERROR,
            ),
            (
                "0x41 later",
                Peer::Client,
                &[(1, b"h"), (0x41, b"")],
                Code::H3_FRAME_ERROR,
            ),
            ("nothing", Peer::Client, &[], Code::H3_REQUEST_INCOMPLETE),
        ];
        for (name, peer, frames, code) in cases {
            match decode(peer, &stream(frames), 3) {
                Err(MessageError::Fault(fault)) => assert_eq!(fault.code, code, "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_cut_frame_ends_the_connection() {
        let bytes = stream(&[(1, b"head"), (0, b"body")]);
        for cut in (1..6).chain(7..bytes.len()) {
            match decode(Peer::Client, &bytes[..cut], 100) {
                Err(MessageError::Fault(fault)) => {
                    assert_eq!(
                        (fault.code, fault.scope),
                        (Code::H3_FRAME_ERROR, Scope::Connection)
                    );
                }
                other => panic!("{cut}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_large_head_is_refused_by_its_header() {
        let mut bytes = Vec::new();
        frame::encode_header(1, 101, &mut bytes);
        assert_eq!(decode(Peer::Client, &bytes, 9), Err(MessageError::TooLarge));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1usize..50) {
            let _ = decode(Peer::Client, &bytes, cut);
            let _ = decode(Peer::Server, &[&[1, 0][..], &bytes].concat(), cut);
        }
    }
}
