//! The peer's control stream: SETTINGS first, then GOAWAY and what can be skipped.
//! Spec: RFC 9114 §6.2.1 and §7.2.
//!
//! Invariant: nothing is emitted before SETTINGS, and SETTINGS exactly once.

use bytes::{Bytes, BytesMut};

use crate::{
    Code,
    fault::Fault,
    frame::{FrameDecoder, FrameEvent, frame_type},
    settings::{self, Settings},
    varint,
};

/// Something the control stream said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// The peer's settings.
    Settings(Settings),
    /// The peer takes no more requests with this stream ID (a server) or push ID (a client) or above.
    Goaway(u64),
    /// A frame that means nothing here, such as GREASE; the caller bounds how many it tolerates.
    Skipped,
}

/// Which side the peer is, for the frames that only one side may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The peer is the client.
    Client,
    /// The peer is the server.
    Server,
}

/// Decodes a control stream, which arrives in pieces of any size, after its stream type.
#[derive(Debug)]
pub struct ControlDecoder {
    peer: Peer,
    frames: FrameDecoder,
    /// The frame whose payload is being collected; `None` while one is skipped.
    current: Option<u64>,
    payload: BytesMut,
    have_settings: bool,
    last_goaway: Option<u64>,
    last_max_push: Option<u64>,
}

impl ControlDecoder {
    /// A decoder for the control stream of `peer`.
    #[must_use]
    pub fn new(peer: Peer) -> Self {
        Self {
            peer,
            frames: FrameDecoder::default(),
            current: None,
            payload: BytesMut::new(),
            have_settings: false,
            last_goaway: None,
            last_max_push: None,
        }
    }

    /// Takes the next event off the front of `input`; `None` when more input is needed.
    ///
    /// # Errors
    ///
    /// Every fault ends the connection: `H3_MISSING_SETTINGS`, `H3_FRAME_UNEXPECTED`,
    /// `H3_FRAME_ERROR`, `H3_SETTINGS_ERROR`, `H3_ID_ERROR`, or `H3_EXCESSIVE_LOAD` for a SETTINGS
    /// frame over [`settings::MAX_PAYLOAD_BYTES`].
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<ControlEvent>, Fault> {
        while let Some(event) = self.frames.decode(input) {
            match event {
                FrameEvent::Begin { ty, len } => {
                    self.begin(ty, len)?;
                    if len == 0 {
                        return self.finish_frame().map(Some);
                    }
                }
                FrameEvent::Payload { bytes, last } => {
                    if self.current.is_some() {
                        self.payload.extend_from_slice(&bytes);
                    }
                    if last {
                        return self.finish_frame().map(Some);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Judges a frame by its type and announced length, before its payload is collected.
    fn begin(&mut self, ty: u64, len: u64) -> Result<(), Fault> {
        if !self.have_settings && ty != frame_type::SETTINGS {
            return Err(Fault::connection(
                Code::H3_MISSING_SETTINGS,
                "the control stream does not begin with SETTINGS",
            ));
        }
        let max = match ty {
            frame_type::SETTINGS if self.have_settings => {
                return Err(Fault::connection(
                    Code::H3_FRAME_UNEXPECTED,
                    "a second SETTINGS",
                ));
            }
            frame_type::SETTINGS => settings::MAX_PAYLOAD_BYTES,
            frame_type::GOAWAY | frame_type::CANCEL_PUSH => varint::MAX_LEN,
            frame_type::MAX_PUSH_ID if self.peer == Peer::Client => varint::MAX_LEN,
            frame_type::MAX_PUSH_ID
            | frame_type::DATA
            | frame_type::HEADERS
            | frame_type::PUSH_PROMISE => {
                return Err(Fault::connection(
                    Code::H3_FRAME_UNEXPECTED,
                    "a frame that is not allowed on the control stream",
                ));
            }
            frame_type::WEBTRANSPORT_STREAM => {
                return Err(Fault::connection(
                    Code::H3_FRAME_ERROR,
                    "WEBTRANSPORT_STREAM inside a stream",
                ));
            }
            ty if frame_type::is_http2_only(ty) => {
                return Err(Fault::connection(
                    Code::H3_FRAME_UNEXPECTED,
                    "a frame of HTTP/2",
                ));
            }
            _ => {
                self.current = None;
                return Ok(());
            }
        };
        if u64::try_from(max).is_ok_and(|max| len > max) {
            return Err(match ty {
                frame_type::SETTINGS => {
                    Fault::connection(Code::H3_EXCESSIVE_LOAD, "SETTINGS above the limit")
                }
                _ => Fault::connection(
                    Code::H3_FRAME_ERROR,
                    "a frame that holds one integer is longer than that",
                ),
            });
        }
        self.current = Some(ty);
        self.payload.clear();
        Ok(())
    }

    fn finish_frame(&mut self) -> Result<ControlEvent, Fault> {
        let Some(ty) = self.current.take() else {
            return Ok(ControlEvent::Skipped);
        };
        let payload = self.payload.split().freeze();
        if ty == frame_type::SETTINGS {
            self.have_settings = true;
            return Settings::decode(payload).map(ControlEvent::Settings);
        }
        let id = match varint::decode(&payload) {
            Some((id, used)) if used == payload.len() => id,
            _ => {
                return Err(Fault::connection(
                    Code::H3_FRAME_ERROR,
                    "a frame does not hold exactly one integer",
                ));
            }
        };
        match ty {
            frame_type::GOAWAY => self.goaway(id),
            frame_type::MAX_PUSH_ID => {
                if self.last_max_push.is_some_and(|last| id < last) {
                    return Err(Fault::connection(Code::H3_ID_ERROR, "MAX_PUSH_ID shrinks"));
                }
                self.last_max_push = Some(id);
                Ok(ControlEvent::Skipped)
            }
            // This endpoint neither pushes nor allows pushes, so no push can be cancelled.
            _ => Err(Fault::connection(
                Code::H3_ID_ERROR,
                "CANCEL_PUSH for a push that was never promised",
            )),
        }
    }

    fn goaway(&mut self, id: u64) -> Result<ControlEvent, Fault> {
        if self.peer == Peer::Server && !id.is_multiple_of(4) {
            return Err(Fault::connection(
                Code::H3_ID_ERROR,
                "GOAWAY names no request stream",
            ));
        }
        if self.last_goaway.is_some_and(|last| id > last) {
            return Err(Fault::connection(Code::H3_ID_ERROR, "GOAWAY grows"));
        }
        self.last_goaway = Some(id);
        Ok(ControlEvent::Goaway(id))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame;

    fn decode(peer: Peer, bytes: &[u8], cut: usize) -> Result<Vec<ControlEvent>, Fault> {
        let mut decoder = ControlDecoder::new(peer);
        let mut events = Vec::new();
        for piece in bytes.chunks(cut) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(event) = decoder.decode(&mut piece)? {
                events.push(event);
            }
        }
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
    fn settings_then_grease_then_goaway() {
        let bytes = stream(&[
            (4, &[0x33, 1]),
            (0x21 + 0x1f, b"grease"),
            (0x40, &[]),
            (7, &[8]),
        ]);
        let settings = Settings {
            datagrams: true,
            ..Settings::default()
        };
        for cut in 1..bytes.len() {
            let events = decode(Peer::Server, &bytes, cut).unwrap();
            let want = [
                ControlEvent::Settings(settings),
                ControlEvent::Skipped,
                ControlEvent::Skipped,
                ControlEvent::Goaway(8),
            ];
            assert_eq!(events, want, "pieces of {cut}");
        }
    }

    #[test]
    fn each_fault_has_its_code() {
        type Case<'a> = (&'a str, Peer, &'a [(u64, &'a [u8])], Code);
        let cases: [Case<'_>; 16] = [
            (
                "no SETTINGS",
                Peer::Client,
                &[(7, &[0])],
                Code::H3_MISSING_SETTINGS,
            ),
            (
                "GREASE first",
                Peer::Client,
                &[(0x21, &[])],
                Code::H3_MISSING_SETTINGS,
            ),
            (
                "SETTINGS twice",
                Peer::Client,
                &[(4, &[]), (4, &[])],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "DATA",
                Peer::Client,
                &[(4, &[]), (0, &[])],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "HEADERS",
                Peer::Client,
                &[(4, &[]), (1, &[])],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "PUSH_PROMISE",
                Peer::Client,
                &[(4, &[]), (5, &[])],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "HTTP/2 PRIORITY",
                Peer::Client,
                &[(4, &[]), (2, &[])],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "HTTP/2 PING",
                Peer::Client,
                &[(4, &[]), (6, &[])],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "MAX_PUSH_ID by a server",
                Peer::Server,
                &[(4, &[]), (0xd, &[0])],
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "MAX_PUSH_ID shrinks",
                Peer::Client,
                &[(4, &[]), (0xd, &[3]), (0xd, &[2])],
                Code::H3_ID_ERROR,
            ),
            (
                "CANCEL_PUSH",
                Peer::Client,
                &[(4, &[]), (3, &[0])],
                Code::H3_ID_ERROR,
            ),
            (
                "GOAWAY grows",
                Peer::Server,
                &[(4, &[]), (7, &[4]), (7, &[8])],
                Code::H3_ID_ERROR,
            ),
            (
                "GOAWAY of a server stream",
                Peer::Server,
                &[(4, &[]), (7, &[1])],
                Code::H3_ID_ERROR,
            ),
            (
                "GOAWAY with more",
                Peer::Client,
                &[(4, &[]), (7, &[4, 4])],
                Code::H3_FRAME_ERROR,
            ),
            (
                "GOAWAY empty",
                Peer::Client,
                &[(4, &[]), (7, &[])],
                Code::H3_FRAME_ERROR,
            ),
            (
                "0x41",
                Peer::Client,
                &[(4, &[]), (0x41, &[])],
                Code::H3_FRAME_ERROR,
            ),
        ];
        for (name, peer, frames, code) in cases {
            let fault = decode(peer, &stream(frames), 3).unwrap_err();
            assert_eq!(fault.code, code, "{name}");
        }
    }

    #[test]
    fn a_huge_settings_frame_is_refused_by_its_header() {
        let mut bytes = Vec::new();
        frame::encode_header(4, settings::MAX_PAYLOAD_BYTES + 1, &mut bytes);
        let fault = decode(Peer::Client, &bytes, 100).unwrap_err();
        assert_eq!(fault.code, Code::H3_EXCESSIVE_LOAD);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1usize..50) {
            let _ = decode(Peer::Client, &bytes, cut);
            let _ = decode(Peer::Server, &[&[4, 0][..], &bytes].concat(), cut);
        }
    }
}
