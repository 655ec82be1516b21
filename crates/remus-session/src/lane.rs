//! One lane: an ordered byte stream of the carrier that holds the frames of any number of streams. Spec: core §6.
//!
//! Owns the bytes that are ready to leave, the order in which streams take their turn, and the frame that has only half
//! arrived. Knows nothing of calls.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use remus_wire::{DecodeError, Frame, FrameHeader, FrameType, Message, StreamId};

use crate::log::Log;
use crate::stream::Stream;

/// One lane of the carrier. Lane 0 always exists and carries the control stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u16);

impl LaneId {
    /// The lane that is there from the start.
    pub const ZERO: Self = Self(0);

    pub(crate) fn bit(self) -> u32 {
        1_u32.checked_shl(self.0.into()).unwrap_or(0)
    }
}

/// Most lanes of one session, lane 0 included: beyond sixteen, loss on one lane hurts the others no less.
pub const LANES_MAX: u16 = remus_wire::MAX_LANES;

/// Bytes that may stand ready on one lane before the session stops adding to them.
///
/// 64 KiB fills one generic-segmentation batch of a QUIC carrier; more only adds delay for what is urgent.
pub(crate) const LANE_READY_MAX: usize = 64 * 1024;

/// Payload bytes from which a slice is handed on instead of copied: below it, a copy costs less than one more slice.
const COPY_MAX: usize = 2048;

/// The classes of [`remus_wire::Priority`].
const CLASSES: usize = 8;

/// Gathers frames: small ones are copied together, large payloads are handed on as they are.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
    /// Room that is made at once: it grows with use, so that an idle lane holds little.
    step: usize,
}

/// The least and the most room that is made at once, in bytes.
const STEP_MIN: usize = 2048;
const STEP_MAX: usize = LANE_READY_MAX / 4;

impl Ready {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Frame header, message head and payload in one go: the hot path. Returns how many bytes that were, as its sisters do.
    pub(crate) fn put_message(&mut self, stream: StreamId, message: &Message) -> usize {
        let len = Frame::HEADER_LEN.saturating_add(message.encoded_len());
        self.make_room(len.saturating_sub(message.payload.len()));
        if message.payload.len() <= COPY_MAX {
            message.encode_frame(stream, &mut self.tail);
        } else {
            message.encode_frame_head(stream, &mut self.tail);
            self.chunks.push_back(self.tail.split().freeze());
            self.chunks.push_back(message.payload.clone());
        }
        self.len = self.len.saturating_add(len);
        len
    }

    /// A frame whose payload is the next `len` bytes of `head` followed by `payload`.
    pub(crate) fn put_part(
        &mut self,
        stream: StreamId,
        kind: FrameType,
        head: &mut Bytes,
        payload: &mut Bytes,
        len: usize,
    ) -> usize {
        let before = self.len;
        self.header(stream, kind, len);
        let from_head = len.min(head.len());
        if from_head > 0 {
            self.tail.put_slice(&head.split_to(from_head));
            self.len = self.len.saturating_add(from_head);
        }
        let from_payload = len.saturating_sub(from_head).min(payload.len());
        if from_payload > 0 {
            self.put_payload(&payload.split_to(from_payload));
        }
        self.len.saturating_sub(before)
    }

    /// A frame of fixed fields.
    pub(crate) fn put_small(&mut self, stream: StreamId, kind: FrameType, fields: &[u8]) -> usize {
        let before = self.len;
        self.header(stream, kind, fields.len());
        self.tail.put_slice(fields);
        self.len = self.len.saturating_add(fields.len());
        self.len.saturating_sub(before)
    }

    /// Moves what is ready to `out`.
    pub(crate) fn take(&mut self, out: &mut VecDeque<Bytes>) {
        out.append(&mut self.chunks);
        if !self.tail.is_empty() {
            out.push_back(self.tail.split().freeze());
        }
        self.len = 0;
    }

    /// Makes room for a head of `head` bytes and a payload that is copied, in steps that many small messages share.
    fn make_room(&mut self, head: usize) {
        let room = self.tail.capacity().saturating_sub(self.tail.len());
        let needed = head.saturating_add(COPY_MAX);
        if room < needed {
            self.step = self.step.saturating_mul(2).clamp(STEP_MIN, STEP_MAX);
            if !self.tail.is_empty() {
                // What is written stays where it is: growing would copy it.
                self.chunks.push_back(self.tail.split().freeze());
            }
            self.tail.reserve(needed.max(self.step));
        }
    }

    /// Bytes of a frame that was encoded before.
    pub(crate) fn put_again(&mut self, piece: &Bytes) {
        self.make_room(0);
        self.put_payload(piece);
    }

    fn header(&mut self, stream: StreamId, kind: FrameType, len: usize) {
        self.make_room(Frame::HEADER_LEN);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.tail
            .put_slice(&FrameHeader { stream, kind, len }.encode());
        self.len = self.len.saturating_add(Frame::HEADER_LEN);
    }

    fn put_payload(&mut self, payload: &Bytes) {
        self.len = self.len.saturating_add(payload.len());
        if payload.len() <= COPY_MAX {
            self.tail.put_slice(payload);
        } else {
            if !self.tail.is_empty() {
                self.chunks.push_back(self.tail.split().freeze());
            }
            self.chunks.push_back(payload.clone());
        }
    }
}

/// Which stream of a lane sends next: stride scheduling over the eight priority classes, round robin within a class.
///
/// A class that has something to send always gets its turn: class 7 at most 128 times as often as class 0. Spec: core §6.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    queues: [VecDeque<StreamId>; CLASSES],
    pass: [u64; CLASSES],
    now: u64,
    waiting: usize,
}

impl Turns {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    pub(crate) fn push(&mut self, class: u8, stream: StreamId) {
        let class = usize::from(class).min(CLASSES.saturating_sub(1));
        if let (Some(queue), Some(pass)) = (self.queues.get_mut(class), self.pass.get_mut(class)) {
            if queue.is_empty() {
                // A class that was silent has saved up nothing.
                *pass = (*pass).max(self.now);
            }
            queue.push_back(stream);
            self.waiting = self.waiting.saturating_add(1);
        }
    }

    /// The stream whose turn it is, and its class.
    pub(crate) fn pop(&mut self) -> Option<(u8, StreamId)> {
        let (class, pass) = (0_u8..)
            .zip(self.queues.iter().zip(self.pass))
            .filter(|(_, (queue, _))| !queue.is_empty())
            .map(|(class, (_, pass))| (class, pass))
            // Of equal passes the higher class goes first.
            .min_by_key(|&(class, pass)| (pass, u8::MAX.saturating_sub(class)))?;
        self.now = pass;
        let stream = self.queues.get_mut(usize::from(class))?.pop_front()?;
        self.waiting = self.waiting.saturating_sub(1);
        Some((class, stream))
    }

    /// Charges a class for `bytes` sent. Each class costs half of the one below it.
    pub(crate) fn charge(&mut self, class: u8, bytes: usize) {
        if let Some(pass) = self.pass.get_mut(usize::from(class)) {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            *pass = pass.saturating_add((bytes << 7) >> class);
        }
    }
}

/// Payload bytes from which a frame that is split across reads is handed on in pieces, as it comes: what gathers a message
/// copies it once, and need not do so twice.
const PIECES_FROM: usize = 4096;

/// Cuts a lane's bytes into frames. Whole frames are slices of what arrived; a short frame that is split across two reads
/// is copied together, a long one comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    partial: BytesMut,
    /// The frame of which some pieces are still to come.
    rest: Option<Rest>,
}

/// What is still to come of a frame.
#[derive(Debug)]
struct Rest {
    stream: StreamId,
    kind: FrameType,
    len: usize,
    /// Length of its whole payload.
    whole: usize,
    first: bool,
}

/// A frame that the carrier has cut, and of which pieces were handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CutFrame {
    pub(crate) stream: StreamId,
    pub(crate) kind: FrameType,
    /// Bytes of its payload that were handed on.
    pub(crate) taken: usize,
}

/// What a [`FrameReader`] finds.
#[derive(Debug)]
pub(crate) enum Taken {
    Frame(Frame),
    /// The next bytes of a MESSAGE, PART or LAST frame on a stream of its own.
    Piece {
        stream: StreamId,
        kind: FrameType,
        bytes: Bytes,
        first: bool,
        last: bool,
    },
}

impl FrameReader {
    /// Stream and length of the message that `input` holds next, whole and in one frame: what nearly all of it is. Its frame's
    /// header is taken off. Of anything else nothing is taken, and [`FrameReader::next`] judges it.
    #[inline]
    pub(crate) fn next_message(
        &self,
        input: &mut Bytes,
        max_payload: u32,
    ) -> Option<(StreamId, usize)> {
        let bytes = input.first_chunk::<{ Frame::HEADER_LEN }>()?;
        let header = FrameHeader::decode(*bytes);
        let len = usize::try_from(header.len).ok()?;
        let whole = header.kind == FrameType::MESSAGE
            && header.len <= max_payload
            && input.len().saturating_sub(Frame::HEADER_LEN) >= len
            && !self.is_mid_frame();
        if !whole {
            return None;
        }
        input.advance(Frame::HEADER_LEN);
        Some((header.stream, len))
    }

    /// The next frame, or piece of one; `None` when `input` is used up.
    ///
    /// The header is judged as soon as its eight bytes are there, so a frame that is too long costs nothing.
    pub(crate) fn next(
        &mut self,
        input: &mut Bytes,
        max_payload: u32,
    ) -> Result<Option<Taken>, DecodeError> {
        if self.rest.is_some() {
            return Ok(self.piece(input));
        }
        if self.partial.is_empty() {
            if let Some(header) = FrameHeader::peek(input, max_payload)? {
                let whole = Frame::HEADER_LEN
                    .saturating_add(usize::try_from(header.len).unwrap_or(usize::MAX));
                if input.len() >= whole {
                    input.advance(Frame::HEADER_LEN);
                    let payload = input.split_to(whole.saturating_sub(Frame::HEADER_LEN));
                    return Frame::from_parts(header, payload)
                        .map(|frame| Some(Taken::Frame(frame)));
                }
                if self.comes_in_pieces(header) {
                    input.advance(Frame::HEADER_LEN);
                    return Ok(self.piece(input));
                }
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
        self.fill(input, Frame::HEADER_LEN);
        let Some(header) = FrameHeader::peek(&self.partial, max_payload)? else {
            return Ok(None);
        };
        if self.partial.len() == Frame::HEADER_LEN && self.comes_in_pieces(header) {
            self.partial.clear();
            return Ok(self.piece(input));
        }
        let whole =
            Frame::HEADER_LEN.saturating_add(usize::try_from(header.len).unwrap_or(usize::MAX));
        self.fill(input, whole);
        if self.partial.len() < whole {
            return Ok(None);
        }
        let mut frame = self.partial.split().freeze();
        frame.advance(Frame::HEADER_LEN);
        Frame::from_parts(header, frame).map(|frame| Some(Taken::Frame(frame)))
    }

    /// Whether this frame, which is not all there, is handed on in pieces. From then on it is.
    fn comes_in_pieces(&mut self, header: FrameHeader) -> bool {
        let FrameHeader { stream, kind, len } = header;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let carries = matches!(kind, FrameType::MESSAGE | FrameType::PART | FrameType::LAST);
        let pieces = carries && len >= PIECES_FROM && stream.0 != 0 && !Stream::is_shared(stream);
        if pieces {
            self.rest = Some(Rest {
                stream,
                kind,
                len,
                whole: len,
                first: true,
            });
        }
        pieces
    }

    fn piece(&mut self, input: &mut Bytes) -> Option<Taken> {
        let rest = self.rest.as_mut().filter(|_| !input.is_empty())?;
        let bytes = input.split_to(rest.len.min(input.len()));
        rest.len = rest.len.saturating_sub(bytes.len());
        let (stream, kind, last) = (rest.stream, rest.kind, rest.len == 0);
        let first = core::mem::take(&mut rest.first);
        if last {
            self.rest = None;
        }
        Some(Taken::Piece {
            stream,
            kind,
            bytes,
            first,
            last,
        })
    }

    /// Whether bytes of an unfinished frame are held: a carrier that ends here has cut a frame.
    pub(crate) fn is_mid_frame(&self) -> bool {
        !self.partial.is_empty() || self.rest.is_some()
    }

    /// Bytes that were read of a frame that has not all come.
    pub(crate) fn unfinished_len(&self) -> usize {
        self.rest.as_ref().map_or(self.partial.len(), |rest| {
            Frame::HEADER_LEN.saturating_add(rest.whole.saturating_sub(rest.len))
        })
    }

    /// The frame that has not all come, where pieces of it were handed on.
    pub(crate) fn cut(&self) -> Option<CutFrame> {
        let rest = self.rest.as_ref()?;
        let taken = rest.whole.saturating_sub(rest.len);
        (taken > 0).then_some(CutFrame {
            stream: rest.stream,
            kind: rest.kind,
            taken,
        })
    }

    fn fill(&mut self, input: &mut Bytes, target: usize) {
        let missing = target.saturating_sub(self.partial.len()).min(input.len());
        if missing > 0 {
            self.partial.extend_from_slice(&input.split_to(missing));
        }
    }
}

/// One lane.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) ready: Ready,
    pub(crate) turns: Turns,
    pub(crate) reader: FrameReader,
    /// What has left and may have to leave again.
    pub(crate) log: Log,
    pub(crate) intake: Intake,
}

/// How much of a lane was taken in since the epoch began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Intake {
    /// Bytes that were read, an unfinished frame's included.
    pub(crate) read: u64,
    /// What the peer was told of, in bytes of whole frames.
    pub(crate) told: u64,
    /// Bytes since then of frames that nobody needs to hear of: acknowledgements and heartbeats.
    pub(crate) quiet: u64,
}

impl Lane {
    /// Bytes of whole frames taken in since the epoch began.
    pub(crate) fn taken_in(&self) -> u64 {
        let unfinished = u64::try_from(self.reader.unfinished_len()).unwrap_or(u64::MAX);
        self.intake.read.saturating_sub(unfinished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CORE-67
    #[test]
    fn no_class_starves_and_weights_hold() {
        let mut turns = Turns::default();
        let mut sent = [0_u64; CLASSES];
        for class in 0..8_u8 {
            turns.push(class, StreamId(u16::from(class) + 1));
        }
        for _ in 0..25_500 {
            let (class, stream) = turns.pop().expect("all classes always have something");
            assert_eq!(stream.0, u16::from(class) + 1);
            turns.charge(class, 1000);
            sent[usize::from(class)] += 1;
            turns.push(class, stream);
        }
        assert!(sent[0] >= 90, "the lowest class got its share: {sent:?}");
        for pair in sent.windows(2) {
            let ratio = pair[1] as f64 / pair[0] as f64;
            assert!(
                (1.7..2.3).contains(&ratio),
                "each class gets twice the one below: {sent:?}"
            );
        }
    }

    #[test]
    fn a_class_that_was_silent_has_saved_up_nothing() {
        let mut turns = Turns::default();
        turns.push(3, StreamId(3));
        for _ in 0..1000 {
            let (class, stream) = turns.pop().unwrap();
            turns.charge(class, 16 * 1024);
            turns.push(class, stream);
        }
        turns.push(0, StreamId(5));
        let mut low = 0;
        for _ in 0..90 {
            let (class, stream) = turns.pop().unwrap();
            low += usize::from(class == 0);
            turns.charge(class, 16 * 1024);
            turns.push(class, stream);
        }
        assert!(
            (5..=20).contains(&low),
            "one in nine turns, not all at once: {low}"
        );
    }

    /// Spec: TRANS-28
    #[test]
    fn frames_come_out_whole_however_the_bytes_are_cut() {
        let mut ready = Ready::default();
        for n in 0..50_u64 {
            ready.put_small(StreamId(0), FrameType::CREDIT, &n.to_be_bytes());
        }
        let mut chunks = VecDeque::new();
        ready.take(&mut chunks);
        let bytes: Vec<u8> = chunks.iter().flat_map(|c| c.iter().copied()).collect();
        for size in 1..40 {
            let mut reader = FrameReader::default();
            let mut seen = 0;
            for cut in bytes.chunks(size) {
                let mut input = Bytes::copy_from_slice(cut);
                while let Some(taken) = reader.next(&mut input, 1024).unwrap() {
                    let Taken::Frame(frame) = taken else {
                        panic!("{taken:?}");
                    };
                    assert!(
                        matches!(frame.body, remus_wire::FrameBody::Credit { limit } if limit == seen)
                    );
                    seen += 1;
                }
                assert!(input.is_empty());
            }
            assert_eq!(seen, 50, "cut into {size}");
            assert!(!reader.is_mid_frame());
        }
    }
}
