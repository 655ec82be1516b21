//! Frames. Spec: message format §2.

use bytes::{Bytes, BytesMut};
use remus_wire::{DEFAULT_MAX_FRAME, DecodeError, Frame, FrameBody, FrameHeader};

use super::pieces;

/// A `max_frame` so small that most inputs meet it, in bytes.
const SMALL_MAX_FRAME: u32 = 20;

/// A stream of frames: whole and in pieces it decodes to the same frames, the same error and the same rest; each frame
/// encodes to the bytes it came from.
pub fn frame(data: &[u8]) {
    for max in [DEFAULT_MAX_FRAME, SMALL_MAX_FRAME] {
        let whole = decode([data].into_iter(), max);
        let cut = decode(pieces(data).into_iter(), max);
        assert_eq!(cut, whole, "in pieces, with max_frame {max}");
        check(data, max, &whole);
    }
}

/// The frames of a stream, and what is left: why it can't go on, if so, and how many bytes are not taken.
type Decoded = (Vec<Frame>, Option<DecodeError>, usize);

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>, max: u32) -> Decoded {
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    let mut error = None;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        // After an error nothing more is taken, but the carrier goes on until it is closed.
        while error.is_none() {
            match Frame::decode(&mut buffer, max) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(found) => error = Some(found),
            }
        }
    }
    (frames, error, buffer.len())
}

fn check(data: &[u8], max: u32, (frames, error, left): &Decoded) {
    let mut rest = data;
    for frame in frames {
        let header = FrameHeader::peek(rest, max);
        let Ok(Some(header)) = header else {
            unreachable!("the frame was decoded, but its header is {header:?}");
        };
        let taken =
            Frame::HEADER_LEN.saturating_add(usize::try_from(header.len).unwrap_or(usize::MAX));
        let Some((bytes, after)) = rest.split_at_checked(taken) else {
            unreachable!("the frame was decoded, but {header:?} says that bytes are missing");
        };
        rest = after;

        assert_eq!(header.stream, frame.stream);
        assert_eq!(header.kind, frame.body.kind());
        let payload = Bytes::copy_from_slice(bytes.get(Frame::HEADER_LEN..).unwrap_or_default());
        assert_eq!(
            Frame::from_parts(header, payload).as_ref(),
            Ok(frame),
            "from header and payload"
        );

        let mut encoded = BytesMut::new();
        frame.encode(&mut encoded);
        assert_eq!(encoded.len(), frame.encoded_len());
        if matches!(frame.body, FrameBody::Ignored(_)) {
            assert_eq!(
                encoded.len(),
                Frame::HEADER_LEN,
                "a skipped frame keeps nothing"
            );
        } else {
            assert_eq!(encoded, bytes, "the encoding");
            assert_eq!(frame.header(), header);
        }
        let again = Frame::decode(&mut encoded, max);
        assert_eq!(again.as_ref().map(Option::as_ref), Ok(Some(frame)));
        assert!(encoded.is_empty());
    }

    assert_eq!(rest.len(), *left, "bytes that are not taken");
    let header = FrameHeader::peek(rest, max);
    match error {
        Some(error) => {
            assert_eq!(
                header.as_ref(),
                Err(error),
                "the header alone gives the same error"
            );
            // A header can be judged before its payload is there, so the place may lie in what it announces.
            let announced = rest
                .first_chunk()
                .map_or(0, |bytes| FrameHeader::decode(*bytes).len);
            let end =
                Frame::HEADER_LEN.saturating_add(usize::try_from(announced).unwrap_or(usize::MAX));
            let at = error.at();
            assert!(
                at.offset <= end,
                "{at}: beyond the frame, which ends at {end}"
            );
            assert!(error.to_string().starts_with(&at.to_string()));
        }
        None => match header {
            Ok(None) => assert!(rest.len() < Frame::HEADER_LEN),
            Ok(Some(header)) => assert!(
                u64::try_from(rest.len().saturating_sub(Frame::HEADER_LEN))
                    .is_ok_and(|there| there < header.len.into()),
                "{header:?} is whole, but was not taken"
            ),
            Err(error) => unreachable!("the header is refused, the frame is not: {error}"),
        },
    }
}
