//! What the peer sends: frames into messages, messages to the calls that they belong to. Spec: core §4, §5, §6.

use bytes::{Buf, Bytes};
use remus_wire::{
    DEFAULT_MAX_FRAME, DecodeError, ErrorCode, ErrorRecord, Flags, Frame, FrameBody, FrameType,
    Message, MessageType, RequestId, StreamId, Text, Timestamp,
};

use super::{ADMITTED_MAX, Pending, READS_HELD_MAX, SLICES_MAX, Session};
use crate::SHARED_MESSAGE_MAX;
use crate::assembly::Assembly;
use crate::call::{Answer, CallKey, PeerId, Received, Waiting};
use crate::error::SessionError;
use crate::event::{Event, Side};
use crate::lane::{LANES_MAX, LaneId, Taken};
use crate::state::State;
use crate::stream::{ANY_LANE, Stream};

impl Session {
    /// Takes in bytes that arrived on `lane`, frame by frame, while [`Session::wants_input`]; what is not taken stays in
    /// `input` for the next call. The end of `input` may cut a frame anywhere.
    ///
    /// # Errors
    ///
    /// [`SessionError`]: the peer broke the protocol. The session has ended, [`Event::Closed`] says the same, and the driver
    /// closes the carrier with [`SessionError::code`].
    pub fn handle_input(
        &mut self,
        now: Timestamp,
        lane: LaneId,
        input: &mut Bytes,
    ) -> Result<(), SessionError> {
        if self.state.is_closed() {
            input.clear();
            return Ok(());
        }
        self.live.heard(now);
        self.reads = self.reads.saturating_add(1);
        let before = input.len();
        let result = self.take_frames_of_carrier(now, lane, input);
        self.statistics.bytes_in = self
            .statistics
            .bytes_in
            .saturating_add(u64::try_from(before.saturating_sub(input.len())).unwrap_or(u64::MAX));
        if let Err(error) = &result {
            self.fail(error);
        }
        result
    }

    /// The peer ended its side of `lane`, after all of its bytes were handed in.
    ///
    /// What the lane carried and did not end counts as reset with LOSS_OF_SESSION. The end of lane 0 is the end of the session: after
    /// this the driver calls [`Session::carrier_lost`] with what it knows.
    ///
    /// Nothing of that holds for a session that [can be resumed](Session::is_resumable): there the end of any lane, wherever it comes, only
    /// says that the carrier is lost, and the driver calls [`Session::suspend`]. What the lane did not carry to its end comes again.
    ///
    /// # Errors
    ///
    /// As [`Session::handle_input`]: the lane ended within a frame.
    pub fn handle_lane_end(&mut self, lane: LaneId) -> Result<(), SessionError> {
        if self.state.is_closed() || !self.resumption.is_attached() || self.is_resumable() {
            return Ok(());
        }
        let Some(entry) = self.lane_mut(lane) else {
            return Ok(());
        };
        if entry.reader.is_mid_frame() {
            let at = remus_wire::At {
                record: "FRAME",
                field: "payload",
                offset: Frame::HEADER_LEN,
            };
            let error = SessionError::Decode(DecodeError::Truncated(at));
            self.fail(&error);
            return Err(error);
        }
        for id in (3_u16..).take(self.streams.len()).map(StreamId) {
            if self
                .stream_ref(id)
                .is_some_and(|stream| stream.open && stream.recv.lane == lane && !stream.recv.ended)
            {
                self.end_by_peer(
                    id,
                    ErrorCode::LOSS_OF_SESSION,
                    "the lane of the stream ended",
                );
            }
        }
        Ok(())
    }

    fn take_frames_of_carrier(
        &mut self,
        now: Timestamp,
        lane: LaneId,
        input: &mut Bytes,
    ) -> Result<(), SessionError> {
        if !self.resumption.is_attached() {
            self.take_answer(now, lane, input)?;
            if input.is_empty() || self.state.is_closed() {
                return Ok(());
            }
        }
        if self.resumption.unconfirmed.is_some() && !input.is_empty() {
            // The client knows of this epoch: it sends nothing before it does.
            self.resumption.unconfirmed = None;
        }
        if !self.resumption.retains {
            return self.take_frames(now, lane, input);
        }
        let before = input.len();
        self.take_frames(now, lane, input)?;
        let taken = before.saturating_sub(input.len());
        self.note_intake(lane, u64::try_from(taken).unwrap_or(u64::MAX));
        Ok(())
    }

    fn take_frames(
        &mut self,
        now: Timestamp,
        lane: LaneId,
        input: &mut Bytes,
    ) -> Result<(), SessionError> {
        if lane.0 >= LANES_MAX {
            return Err(SessionError::WrongLane(StreamId(0)));
        }
        while self.wants_input() {
            let max_frame = self.max_frame();
            let Some(entry) = self.lane_mut(lane) else {
                return Ok(());
            };
            if let Some((stream, len)) = entry.reader.next_message(input, max_frame) {
                if self.is_cut(stream) {
                    let bytes = input.split_to(len);
                    let at = (lane, stream, FrameType::MESSAGE);
                    self.on_known(now, at, bytes, true, true)?;
                } else {
                    self.on_whole(now, lane, stream, input, len)?;
                }
            } else {
                match entry.reader.next(input, max_frame)? {
                    Some(Taken::Frame(frame)) => self.on_frame(now, lane, frame)?,
                    Some(Taken::Piece {
                        stream,
                        kind,
                        bytes,
                        first,
                        last,
                    }) => self.on_known(now, (lane, stream, kind), bytes, first, last)?,
                    None => return Ok(()),
                }
            }
            if let Some(waiting) = self.overflow {
                return Err(SessionError::NotReading(waiting));
            }
        }
        Ok(())
    }

    /// The largest frame payload that is taken: the default until our own limit has been stated (WIRE-12).
    fn max_frame(&self) -> u32 {
        let stated = self.side == Side::Client
            || !matches!(
                self.state,
                State::VersionNegotiation | State::CapabilityExchange
            );
        if stated {
            self.config.limits.max_frame
        } else {
            DEFAULT_MAX_FRAME
        }
    }

    /// Takes in a datagram: one MESSAGE frame of a kind that can bear loss. Anything else is dropped. Spec: transport §2.
    pub fn handle_datagram(&mut self, now: Timestamp, datagram: Bytes) {
        if self.state.is_closed() || !self.resumption.is_attached() {
            return;
        }
        let mut reader = crate::lane::FrameReader::default();
        let mut input = datagram;
        let Ok(Some(Taken::Frame(Frame {
            stream: StreamId(0),
            body: FrameBody::Message(bytes),
        }))) = reader.next(&mut input, self.config.limits.max_frame)
        else {
            return;
        };
        let Ok(message) = Message::decode(bytes, &self.message_limits()) else {
            return;
        };
        if message.kind != MessageType::HEARTBEAT || !self.state.is_open() || !input.is_empty() {
            return;
        }
        self.live.heard(now);
        if self.charge_control(now).is_ok() {
            // A heartbeat that cannot be decoded is lost, like any other datagram.
            let _ = self.on_heartbeat(now, &message, true);
        }
    }

    fn on_frame(&mut self, now: Timestamp, lane: LaneId, frame: Frame) -> Result<(), SessionError> {
        let stream = frame.stream;
        match frame.body {
            FrameBody::Message(bytes) if self.is_cut(stream) => {
                self.on_known(now, (lane, stream, FrameType::MESSAGE), bytes, true, true)
            }
            FrameBody::Message(mut bytes) => {
                let len = bytes.len();
                self.on_whole(now, lane, stream, &mut bytes, len)
            }
            FrameBody::Part(bytes) => {
                self.on_known(now, (lane, stream, FrameType::PART), bytes, true, true)
            }
            FrameBody::Last(bytes) => {
                self.on_known(now, (lane, stream, FrameType::LAST), bytes, true, true)
            }
            FrameBody::Credit { limit } => self.on_credit(now, stream, limit),
            FrameBody::Reset(code) => self.on_reset(now, stream, code),
            FrameBody::Stop(code) => self.on_stop(now, stream, code),
            FrameBody::Ack { lane: of, offset } => self.on_ack(now, lane, stream, (of, offset)),
            FrameBody::Reference { .. } => {
                Err(SessionError::NotOffered("shared memory (feature 9)"))
            }
            FrameBody::Ignored(_) => self.charge_control(now),
            _ => Err(SessionError::MisplacedFrame {
                kind: FrameType(0),
                stream,
            }),
        }
    }

    /// Opens the stream if the peer may, checks lane and credit, and counts the bytes.
    ///
    /// `Ok(false)`: the bytes are counted and to be dropped, because nobody wants them any more.
    fn accept_bytes(
        &mut self,
        now: Timestamp,
        lane: LaneId,
        id: StreamId,
        kind: FrameType,
        len: usize,
    ) -> Result<bool, SessionError> {
        if id.0 == 0 {
            return Err(SessionError::MisplacedFrame { kind, stream: id });
        }
        if lane != LaneId::ZERO && !self.state.is_open() {
            return Err(SessionError::WrongLane(id));
        }
        let bytes = u64::try_from(len).unwrap_or(u64::MAX);
        let shared = Stream::is_shared(id);
        if !shared {
            self.recv_window.received = self.recv_window.received.saturating_add(bytes);
            if self.recv_window.received > self.recv_window.granted {
                let (offset, limit) = (self.recv_window.received, self.recv_window.granted);
                return Err(SessionError::CreditExceeded {
                    stream: StreamId(0),
                    offset,
                    limit,
                });
            }
        }
        let peers = self.is_peers(id);
        // A stream of ours is not open to the peer before the request on it has left.
        let open = self
            .stream_ref(id)
            .is_some_and(|stream| stream.open && (peers || shared || stream.send.known));
        if !open {
            if !peers {
                return Err(if self.stream_ref(id).is_some() {
                    SessionError::AfterEnd(id)
                } else {
                    SessionError::WrongParity(id)
                });
            }
            let highest = self
                .config
                .limits
                .max_streams
                .saturating_mul(2)
                .saturating_add(2);
            if u32::from(id.0) > highest {
                // Beyond what was granted: refused, and its bytes dropped, without keeping anything.
                self.charge_control(now)?;
                self.consume(id, bytes);
                self.put_small(
                    LaneId::ZERO,
                    id,
                    FrameType::STOP,
                    &ErrorCode::TOO_MANY_STREAMS.0.to_be_bytes(),
                );
                self.put_small(
                    LaneId::ZERO,
                    id,
                    FrameType::RESET,
                    &ErrorCode::TOO_MANY_STREAMS.0.to_be_bytes(),
                );
                return Ok(false);
            }
            let Some(stream) = self.stream_slot(id, lane) else {
                return Ok(false);
            };
            if stream.recv.lane != lane {
                if stream.recv.lane != ANY_LANE {
                    return Err(SessionError::WrongLane(id));
                }
                stream.recv.lane = lane;
            }
            if stream.lane != lane {
                // The peer has all that we sent in the last use, so the answer may take the lane on which the request comes.
                stream.lane = lane;
                stream.home = lane;
            }
            stream.reopen(remus_wire::Priority::ORDINARY.class());
            self.open_streams = self.open_streams.saturating_add(1);
        }
        let Some(stream) = self.stream_mut(id) else {
            return Ok(false);
        };
        if stream.recv.lane != lane {
            if stream.recv.lane != ANY_LANE {
                return Err(SessionError::WrongLane(id));
            }
            stream.recv.lane = lane;
        }
        if stream.recv.ended {
            return Err(SessionError::AfterEnd(id));
        }
        stream.recv.offset = stream.recv.offset.saturating_add(bytes);
        if stream.recv.offset > stream.recv.granted {
            let (offset, limit) = (stream.recv.offset, stream.recv.granted);
            return Err(SessionError::CreditExceeded {
                stream: id,
                offset,
                limit,
            });
        }
        Ok(true)
    }

    /// A message that came in one frame: the first `len` bytes of `input`.
    fn on_whole(
        &mut self,
        now: Timestamp,
        lane: LaneId,
        id: StreamId,
        input: &mut Bytes,
        len: usize,
    ) -> Result<(), SessionError> {
        let limits = self.message_limits();
        if id.0 == 0 {
            if lane != LaneId::ZERO {
                return Err(SessionError::WrongLane(id));
            }
            self.charge_control(now)?;
            let message = Message::decode(input.split_to(len), &limits)?;
            return self.on_control(now, message);
        }
        if !self.accept_bytes(now, lane, id, FrameType::MESSAGE, len)? {
            input.advance(len);
            return Ok(());
        }
        let Some(stream) = self.stream_ref(id) else {
            return Ok(());
        };
        if stream.recv.assembly.is_some() {
            return Err(SessionError::NestedMessage(id));
        }
        if stream.recv.discard.is_some() {
            self.discard(id, &input.split_to(len), true);
            return Ok(());
        }
        let first = stream
            .call
            .and_then(|key| self.call_ref(key)?.inbox.front());
        let held = first.map_or(0, |first| self.reads.saturating_sub(first.read));
        if (held >= READS_HELD_MAX || self.requests.len() >= SLICES_MAX)
            && len <= SHARED_MESSAGE_MAX
        {
            // What waits before it holds much already: it gets memory of its own.
            let bytes = Bytes::copy_from_slice(&input.split_to(len));
            return self.on_message(now, id, Message::decode(bytes, &limits)?, len);
        }
        if let Some(message) = Message::take_plain(input, len, &limits) {
            return self.on_message(now, id, message, len);
        }
        let message = Message::decode(input.split_to(len), &limits)?;
        self.on_message(now, id, message, len)
    }

    /// As [`Session::on_piece`], of a frame that may have come in part before its carrier was lost.
    fn on_known(
        &mut self,
        now: Timestamp,
        at: (LaneId, StreamId, FrameType),
        bytes: Bytes,
        first: bool,
        last: bool,
    ) -> Result<(), SessionError> {
        let (_, stream, kind) = at;
        if !self.is_cut(stream) {
            return self.on_piece(now, at, bytes, first, last);
        }
        match self.skip_known(stream, kind, bytes, last)? {
            Some(rest) => self.on_piece(now, at, rest, false, last),
            None => Ok(()),
        }
    }

    /// Bytes of a frame of this kind that carries a message or a part of one: its first, its last, both or neither.
    fn on_piece(
        &mut self,
        now: Timestamp,
        (lane, id, kind): (LaneId, StreamId, FrameType),
        bytes: Bytes,
        first: bool,
        last: bool,
    ) -> Result<(), SessionError> {
        let last = last && kind != FrameType::PART;
        if !self.accept_bytes(now, lane, id, kind, bytes.len())? {
            return Ok(());
        }
        if first && let Some(stream) = self.stream_ref(id).filter(|s| s.recv.discard.is_none()) {
            match (kind, stream.recv.assembly.is_some()) {
                (FrameType::MESSAGE, true) => return Err(SessionError::NestedMessage(id)),
                (FrameType::LAST, false) => {
                    return Err(SessionError::MisplacedFrame { kind, stream: id });
                }
                _ => {}
            }
        }
        if self.discard(id, &bytes, last) {
            return Ok(());
        }
        let limits = self.message_limits();
        let budget = self.config.max_assembly_bytes;
        let assembling = self.assembling;
        let Some(Some(stream)) = self.streams.get_mut(usize::from(id.0)) else {
            return Ok(());
        };
        let assembly = stream.recv.assembly.get_or_insert_with(Assembly::default);
        let known = assembly.total;
        assembly.push(&bytes, &limits, &mut self.spares)?;
        let (len, total) = (assembly.bytes().len(), assembly.total);
        if let (None, Some(total), false) = (known, total, last) {
            // A shared stream cannot give way, and holds one message at most.
            if assembling.saturating_add(total) > budget && !Stream::is_shared(id) {
                // Too much is half-received already: this stream gives way, the session goes on.
                assembly.total = None;
                self.give_way(now, id);
                return Ok(());
            }
            self.assembling = assembling.saturating_add(total);
            // The message must be able to arrive whole, whatever the window.
            self.note_credit(id);
        }
        if let Some(expected) = total
            && (len > expected || (last && len != expected))
        {
            return Err(SessionError::WrongLength {
                stream: id,
                expected: u64::try_from(expected).unwrap_or(u64::MAX),
                got: u64::try_from(len).unwrap_or(u64::MAX),
            });
        }
        if !last {
            return Ok(());
        }
        let Some(assembly) = self
            .stream_mut(id)
            .and_then(|stream| stream.recv.assembly.take())
        else {
            return Ok(());
        };
        self.assembling = self.assembling.saturating_sub(known.unwrap_or(0));
        // Without the header's bytes this fails as truncated.
        let message = Message::decode(assembly.finish(&mut self.spares), &limits)?;
        self.on_message(now, id, message, len)
    }

    /// A whole message on a stream that is not the control stream.
    fn on_message(
        &mut self,
        now: Timestamp,
        id: StreamId,
        message: Message,
        len: usize,
    ) -> Result<(), SessionError> {
        self.clock.observe(now, message.timestamp);
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        let from_caller = self.is_peers(id);
        if message.flags.contains(Flags::COMPRESSED) && message.kind != MessageType::REQUEST {
            // A request is refused alone; anything else belongs to a call whose caller never offered to undo it.
            return Err(SessionError::NotOffered("compression"));
        }
        match message.kind {
            MessageType::REQUEST if from_caller => self.on_request(now, id, message),
            MessageType::ERROR if from_caller && Stream::is_shared(id) => {
                self.consume(id, len);
                let record = ErrorRecord::decode(message.payload)?;
                self.on_cancel(message.request_id, record.code);
                Ok(())
            }
            MessageType::RESPONSE | MessageType::ERROR
                if !(from_caller && Stream::is_shared(id)) =>
            {
                self.consume(id, len);
                self.on_answer(id, message)
            }
            MessageType::STREAM | MessageType::STREAM_END if !Stream::is_shared(id) => {
                self.on_element(id, message, len)
            }
            kind => Err(SessionError::MisplacedMessage { kind, stream: id }),
        }
    }

    /// The caller gives up a call on a shared stream.
    fn on_cancel(&mut self, id: RequestId, code: ErrorCode) {
        match self.peer_ids.get_mut(&id.0) {
            // It has not been handed out yet, and will not be.
            Some(PeerId::Waiting(cancelled)) => *cancelled = Some(code),
            Some(&mut PeerId::Open(index)) => {
                if let Some(key) = self.key_at(index) {
                    self.cancel_peer_call(key, code);
                }
            }
            None => {} // it crossed the answer
        }
    }

    fn on_request(
        &mut self,
        now: Timestamp,
        id: StreamId,
        message: Message,
    ) -> Result<(), SessionError> {
        if !self.state.is_open() && !self.holds_flight() {
            return Err(SessionError::MisplacedMessage {
                kind: message.kind,
                stream: id,
            });
        }
        let deadline = message.ttl.to_duration().map(|budget| {
            let budget = u64::try_from(budget.as_micros()).unwrap_or(u64::MAX);
            Timestamp(now.0.saturating_add(budget))
        });
        let request_id = message.request_id.0;
        if request_id != 0 && self.peer_ids.contains_key(&request_id) {
            return Err(SessionError::DuplicateRequest(request_id));
        }
        let shared = Stream::is_shared(id);
        let ended = shared || message.flags.contains(Flags::STREAM_END);
        if !ended && !message.payload.is_empty() {
            // Elements carry the data of a request that streams; a payload here would have no place in it.
            return Err(SessionError::MisplacedMessage {
                kind: message.kind,
                stream: id,
            });
        }
        let call = if shared {
            None
        } else {
            if self
                .stream_ref(id)
                .is_some_and(|stream| stream.call.is_some() || stream.send.finished)
            {
                return Err(SessionError::MisplacedMessage {
                    kind: message.kind,
                    stream: id,
                });
            }
            let key = self.insert_peer_call(&message, id);
            if let Some(stream) = self.stream_mut(id) {
                stream.call = Some(key);
                stream.class = message.priority.class();
                stream.recv.ended = ended;
            }
            if ended && let Some(call) = self.call_mut(key) {
                call.recv_ended = true;
            }
            Some(key)
        };
        let pending = Pending {
            call,
            stream: id,
            message,
            deadline,
        };
        // The usual case: nothing waits before it, and there is room for its answer.
        if shared
            && self.requests.is_empty()
            && self.admitted < ADMITTED_MAX
            && self.state.is_open()
            && !self.is_congested()
        {
            self.admit(now, pending);
            return Ok(());
        }
        if request_id != 0 {
            let entry = call.map_or(PeerId::Waiting(None), |key| PeerId::Open(key.index));
            self.peer_ids.insert(request_id, entry);
        }
        self.requests.push_back(pending);
        Ok(())
    }

    fn on_answer(&mut self, id: StreamId, message: Message) -> Result<(), SessionError> {
        if Stream::is_shared(id) {
            if let Some(key) = self
                .local_call(message.request_id)
                .filter(|key| self.call_ref(*key).is_some_and(|call| !call.owns_stream))
            {
                return self.finish_unary(key, message);
            }
            return Ok(()); // answered after it was cancelled or had expired
        }
        let owner = self.stream_ref(id).and_then(|stream| stream.call);
        if let Some(stream) = self.stream_mut(id) {
            stream.recv.ended = true;
        }
        if self.is_peers(id) {
            // An answer too large for the shared stream comes on one of its own. Its other direction, ours, carries nothing.
            if owner.is_some() {
                return Err(SessionError::MisplacedMessage {
                    kind: message.kind,
                    stream: id,
                });
            }
            self.reset_sending(id, ErrorCode::OK);
            self.close_stream_if_done(id);
            return match self.local_call(message.request_id) {
                Some(key) => self.finish_unary(key, message),
                None => Ok(()),
            };
        }
        let result = match owner.and_then(|key| self.call_ref(key).map(|call| (key, call.streams)))
        {
            Some((key, false)) => self.finish_unary(key, message),
            Some((key, true)) => {
                let end = if message.kind == MessageType::ERROR {
                    Received::End(Some(ErrorRecord::decode(message.payload)?))
                } else {
                    self.deliver(key, Received::Element(message));
                    Received::End(None)
                };
                self.deliver(key, end);
                Ok(())
            }
            None => Ok(()),
        };
        self.close_stream_if_done(id);
        result
    }

    fn on_element(&mut self, id: StreamId, message: Message, len: u64) -> Result<(), SessionError> {
        let owner = self.stream_ref(id).and_then(|stream| stream.call);
        let fresh = self.is_peers(id)
            && owner.is_none()
            && self
                .stream_ref(id)
                .is_some_and(|stream| !stream.send.finished);
        if fresh {
            return Err(SessionError::MisplacedMessage {
                kind: message.kind,
                stream: id,
            });
        }
        let end = if message.kind == MessageType::STREAM_END {
            let error = if message.payload.is_empty() {
                None
            } else {
                Some(ErrorRecord::decode(message.payload.clone())?)
            };
            Some(error)
        } else if message.flags.contains(Flags::STREAM_END) {
            Some(None)
        } else {
            None
        };
        if end.is_some()
            && let Some(stream) = self.stream_mut(id)
        {
            stream.recv.ended = true;
        }
        let element = message.kind == MessageType::STREAM;
        match owner.and_then(|key| {
            self.call_ref(key)
                .map(|call| (key, call.streams || !call.local, call.recv_ended))
        }) {
            Some((key, true, false)) => {
                if element {
                    self.deliver(key, Received::Element(message));
                } else {
                    self.consume(id, len);
                }
                if let Some(error) = end {
                    self.deliver(key, Received::End(error));
                }
            }
            Some((key, false, _)) => {
                self.consume(id, len);
                let error = ErrorRecord::new(
                    ErrorCode::UNIMPLEMENTED,
                    Text::from("the method answers with a stream; call it as one"),
                );
                self.finish_unary_error(key, error);
            }
            _ => self.consume(id, len), // nobody wants it any more
        }
        self.close_stream_if_done(id);
        Ok(())
    }

    /// Puts something into a streaming call's inbox and tells the application once.
    pub(super) fn deliver(&mut self, key: CallKey, received: Received) {
        let read = self.reads;
        let Some(call) = self.call_mut(key) else {
            return;
        };
        if call.recv_ended {
            return;
        }
        if matches!(received, Received::End(_)) {
            call.recv_ended = true;
        }
        call.inbox.push_back(Waiting { read, received });
        self.signal_readable(key);
        self.uncount_if_over(key);
    }

    /// Tells the application once that there is something to read, as soon as it knows the call.
    pub(super) fn signal_readable(&mut self, key: CallKey) {
        if let Some(call) = self.call_mut(key)
            && call.announced
            && !call.signalled
            && !call.inbox.is_empty()
        {
            call.signalled = true;
            self.events.push_back(Event::Readable(key));
        }
    }

    fn on_credit(&mut self, now: Timestamp, id: StreamId, limit: u64) -> Result<(), SessionError> {
        if id.0 == 0 {
            if limit <= self.send_window.limit {
                return self.charge_control(now);
            }
            self.send_window.limit = limit;
            self.unpark();
            return Ok(());
        }
        let highest = self
            .config
            .limits
            .max_streams
            .max(self.peer_limits.max_streams)
            .saturating_mul(2)
            .saturating_add(2);
        if u32::from(id.0) > highest {
            return Err(SessionError::StreamOutOfRange {
                stream: id,
                max: u16::try_from(highest).unwrap_or(u16::MAX),
            });
        }
        match self.stream_mut(id) {
            Some(stream) if limit > stream.send.limit => {
                stream.send.limit = limit;
                self.schedule(id);
                Ok(())
            }
            // Late, repeated, or for a stream that was never used: harmless, but not for free.
            _ => self.charge_control(now),
        }
    }

    fn on_reset(
        &mut self,
        now: Timestamp,
        id: StreamId,
        code: ErrorCode,
    ) -> Result<(), SessionError> {
        if id.0 == 0 || Stream::is_shared(id) {
            return Err(SessionError::MisplacedFrame {
                kind: FrameType::RESET,
                stream: id,
            });
        }
        let free = self
            .stream_mut(id)
            .is_some_and(|stream| core::mem::take(&mut stream.free_reset));
        if !free {
            self.charge_control(now)?;
        }
        self.end_by_peer(id, code, "the peer reset the stream");
        Ok(())
    }

    /// The peer's direction of a stream is over, without an end.
    fn end_by_peer(&mut self, id: StreamId, code: ErrorCode, text: &'static str) {
        let Some(stream) = self
            .stream_mut(id)
            .filter(|stream| stream.open && !stream.recv.ended)
        else {
            return; // it crossed our own end
        };
        stream.recv.ended = true;
        let owner = stream.call;
        let answered = stream
            .recv
            .assembly
            .as_ref()
            .and_then(|assembly| assembly.answers());
        self.drop_assembly(id);
        let code = if code == ErrorCode::OK {
            ErrorCode::UNKNOWN // an error record has a code
        } else {
            code
        };
        let record = ErrorRecord::new(code, Text::from_static(text));
        match owner {
            Some(key) => match self.call_ref(key).map(|call| (call.local, call.streams)) {
                Some((true, true)) => self.deliver(key, Received::End(Some(record))),
                Some((true, false)) => self.finish_unary_error(key, record),
                // A caller that abandons its direction has given up the call.
                Some((false, _)) => self.cancel_peer_call(key, code),
                None => {}
            },
            None if self.is_peers(id) => {
                // A request or an answer that never became whole; unless it is the rest of one that we have answered.
                if self
                    .stream_ref(id)
                    .is_some_and(|stream| !stream.send.finished)
                {
                    self.reset_sending(id, ErrorCode::CANCELLED);
                }
                if let Some(key) = answered.and_then(|id| self.local_call(id)) {
                    self.finish_unary_error(key, record);
                }
            }
            None => {}
        }
        self.close_stream_if_done(id);
    }

    fn on_stop(
        &mut self,
        now: Timestamp,
        id: StreamId,
        code: ErrorCode,
    ) -> Result<(), SessionError> {
        if id.0 == 0 || Stream::is_shared(id) {
            return Err(SessionError::MisplacedFrame {
                kind: FrameType::STOP,
                stream: id,
            });
        }
        let free = self
            .stream_mut(id)
            .is_some_and(|stream| core::mem::take(&mut stream.free_stop));
        if !free {
            self.charge_control(now)?;
        }
        let Some(stream) = self
            .stream_mut(id)
            .filter(|stream| stream.open && !stream.send.ended)
        else {
            return Ok(()); // it crossed our own end
        };
        let owner = stream.call;
        match owner.and_then(|key| Some((key, self.call_ref(key)?.local))) {
            Some((key, true)) => {
                self.reset_sending(id, code);
                self.stop_sender(key, code);
            }
            // The caller does not want the answer any more.
            Some((key, false)) => self.cancel_peer_call(key, code),
            None if self.is_peers(id) => self.abandon(id, code),
            None => self.reset_sending(id, code),
        }
        self.close_stream_if_done(id);
        Ok(())
    }

    /// Tells the application that a streaming call takes no more from it.
    pub(super) fn stop_sender(&mut self, key: CallKey, code: ErrorCode) {
        if let Some(call) = self.call_mut(key) {
            call.stopped.get_or_insert(code);
            if core::mem::take(&mut call.wants_writable) {
                self.events.push_back(Event::Writable(key));
            }
        }
    }

    /// Too much is half-received: what this stream carries is refused.
    fn give_way(&mut self, now: Timestamp, id: StreamId) {
        const TEXT: &str = "more half-received bytes than this side holds";
        let error = |code| ErrorRecord::new(code, Text::from_static(TEXT));
        let (owner, answered) = self.stream_ref(id).map_or((None, None), |stream| {
            let answered = stream.recv.assembly.as_ref().and_then(Assembly::answers);
            (stream.call, answered)
        });
        // Only where nothing ran yet may the code say so (WIRE-65).
        let code = if owner.is_none() && answered.is_none() {
            ErrorCode::QUEUE_FULL
        } else {
            ErrorCode::RESOURCE_EXHAUSTED
        };
        match owner.and_then(|key| Some((key, self.call_ref(key)?.local))) {
            Some((key, true)) => self.end_local(key, error(code)),
            Some((key, false)) => {
                let handed_out = self.call_ref(key).is_some_and(|call| call.announced);
                if handed_out {
                    self.events.push_back(Event::Cancelled(key, code));
                }
                let code = if handed_out {
                    code
                } else {
                    ErrorCode::QUEUE_FULL
                };
                self.respond(now, key, Answer::Error(error(code)));
            }
            None => {
                self.abandon(id, code);
                if let Some(key) = answered.and_then(|id| self.local_call(id)) {
                    self.finish_unary_error(key, error(code));
                }
            }
        }
    }

    /// Drops bytes of a direction that was stopped, and notices its end. False where the bytes are wanted.
    fn discard(&mut self, id: StreamId, bytes: &Bytes, last: bool) -> bool {
        let Some(head) = self
            .stream_mut(id)
            .and_then(|stream| stream.recv.discard.as_mut())
        else {
            return false;
        };
        let ends = head.push(bytes, last);
        if ends && let Some(stream) = self.stream_mut(id) {
            stream.recv.ended = true;
        }
        self.consume(id, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.close_stream_if_done(id);
        true
    }

    /// Gives up what has half arrived.
    pub(super) fn drop_assembly(&mut self, id: StreamId) {
        let Some(assembly) = self
            .stream_mut(id)
            .and_then(|stream| stream.recv.assembly.take())
        else {
            return;
        };
        self.assembling = self.assembling.saturating_sub(assembly.total.unwrap_or(0));
        self.consume(
            id,
            u64::try_from(assembly.bytes().len()).unwrap_or(u64::MAX),
        );
    }

    fn local_call(&self, id: RequestId) -> Option<CallKey> {
        self.key_at(self.local_ids.get(id)?)
    }

    fn key_at(&self, index: u32) -> Option<CallKey> {
        let call = self.calls.get(usize::try_from(index).ok()?)?;
        Some(CallKey {
            index,
            serial: call.serial,
        })
    }

    /// The application has taken `bytes` of a stream: grants them again.
    pub(super) fn consume(&mut self, id: StreamId, bytes: u64) {
        if let Some(stream) = self.stream_mut(id) {
            stream.recv.consumed = stream
                .recv
                .consumed
                .saturating_add(bytes)
                .min(stream.recv.offset);
        }
        if !Stream::is_shared(id) {
            self.consume_session(bytes);
        }
        self.note_credit(id);
    }

    fn consume_session(&mut self, bytes: u64) {
        let window = &mut self.recv_window;
        window.consumed = window.consumed.saturating_add(bytes).min(window.received);
    }

    /// Queues CREDIT frames where half a window has been taken in since the last.
    fn note_credit(&mut self, id: StreamId) {
        let assembling = u64::try_from(self.assembling).unwrap_or(u64::MAX);
        let session_window = self.config.limits.session_window;
        let window = &mut self.recv_window;
        let target = window
            .consumed
            .saturating_add(session_window.into())
            .saturating_add(assembling);
        if !window.due && target.saturating_sub(window.granted) >= u64::from(session_window / 2) {
            window.due = true;
            self.credit_due.push_back(StreamId(0));
            self.dirty |= LaneId::ZERO.bit();
        }
        if let Some(stream) = self.stream_mut(id)
            && stream.recv.is_credit_due()
        {
            stream.recv.credit_due = true;
            self.credit_due.push_back(id);
            self.dirty |= LaneId::ZERO.bit();
        }
    }
}
