//! Calls: made, admitted, answered, cancelled, expired. Spec: core §4.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use remus_wire::{
    Batch as BatchRecord, ErrorCode, ErrorRecord, Features, Flags, Message, MessageLimits,
    MessageType, RequestId, StreamEnd, StreamId, Text, Timestamp, Ttl,
};

use super::{Pending, Session};
use crate::SHARED_MESSAGE_MAX;
use crate::call::{Answer, Batch, Call, CallKey, Outgoing, Received, Shape};
use crate::error::{CallError, SendError, SessionError};
use crate::event::{Event, Incoming, Side};
use crate::lane::{LANES_MAX, LaneId};
use crate::state::State;
use crate::stream::Stream;

/// Most calls of one batch that are admitted; more is refused as a whole.
const BATCH_MAX: usize = remus_wire::MAX_BATCH as usize;

impl Session {
    /// Makes a call. A unary call's answer is [`Event::Answer`]; the others' come by [`Session::recv`].
    ///
    /// A client may call before the session is active: small unary calls travel in its first flight.
    ///
    /// # Errors
    ///
    /// [`CallError`]: nothing was sent.
    pub fn call(
        &mut self,
        now: Timestamp,
        request: Outgoing,
        shape: Shape,
    ) -> Result<CallKey, CallError> {
        self.start_call(now, request, shape, Flags::default())
    }

    /// Makes a call without an answer: request ID 0. Delivered at most once, and dropped where the peer has no room.
    ///
    /// # Errors
    ///
    /// [`CallError`]: nothing was sent. The request must fit a shared stream ([`SHARED_MESSAGE_MAX`]).
    pub fn notify(&mut self, now: Timestamp, request: Outgoing) -> Result<(), CallError> {
        self.check_callable(Shape::Unary)?;
        let message = self.request_message(now, request, Flags::default());
        let len = message.encoded_len();
        if len > SHARED_MESSAGE_MAX {
            return Err(CallError::MessageTooLarge {
                len,
                limit: SHARED_MESSAGE_MAX,
            });
        }
        self.check_message(&message)?;
        self.emit(self.own_shared(), &message, false);
        Ok(())
    }

    /// Makes several unary calls in one message; the answers come together, in order, as [`Event::BatchAnswer`].
    ///
    /// # Errors
    ///
    /// [`CallError::BadBatch`] for an empty or too long batch, [`CallError::NotOffered`] where the peer has no batches, and as
    /// [`Session::call`].
    pub fn call_batch(
        &mut self,
        now: Timestamp,
        requests: Vec<Outgoing>,
        timeout: Option<core::time::Duration>,
    ) -> Result<CallKey, CallError> {
        if requests.is_empty() || requests.len() > BATCH_MAX {
            return Err(CallError::BadBatch { max: BATCH_MAX });
        }
        if !self.features.contains(Features::BATCH) {
            return Err(CallError::NotOffered("batches (feature 7)"));
        }
        let mut messages = Vec::with_capacity(requests.len());
        for (number, request) in (1_u32..).zip(requests) {
            let mut message = self.request_message(now, request, Flags::default());
            message.request_id = RequestId(number);
            self.check_message(&message)?;
            messages.push(message);
        }
        let batch = BatchRecord { messages };
        let mut payload = BytesMut::with_capacity(batch.encoded_len());
        batch.encode(&mut payload);
        let request = Outgoing {
            payload: payload.freeze(),
            timeout,
            ..Outgoing::default()
        };
        let key = self.start_call(now, request, Shape::Unary, Flags::BATCH_REQUEST)?;
        if let Some(call) = self.call_mut(key) {
            call.is_batch = true;
        }
        Ok(key)
    }

    fn start_call(
        &mut self,
        now: Timestamp,
        request: Outgoing,
        shape: Shape,
        flags: Flags,
    ) -> Result<CallKey, CallError> {
        self.check_callable(shape)?;
        if self.open_local >= usize::try_from(self.peer_limits.max_calls).unwrap_or(usize::MAX) {
            return Err(CallError::TooManyCalls {
                limit: self.peer_limits.max_calls,
            });
        }
        let timeout = request.timeout;
        let mut message = self.request_message(now, request, flags);
        self.check_message(&message)?;
        let len = message.encoded_len();
        let unary = shape == Shape::Unary;
        let (stream, owns_stream) = if unary && len <= SHARED_MESSAGE_MAX {
            (self.own_shared(), false)
        } else {
            (self.open_stream(message.priority.class())?, true)
        };
        if owns_stream && !shape.request_streams() {
            message.flags = message.flags | Flags::STREAM_END;
        }
        let deadline = timeout.map(|timeout| {
            let timeout = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
            Timestamp(now.0.saturating_add(timeout))
        });
        let serial = self.next_serial();
        let index = self.calls.insert(Call {
            serial,
            local: true,
            request_id: RequestId(0),
            stream,
            owns_stream,
            streams: !unary,
            priority: message.priority,
            deadline,
            inbox: VecDeque::new(),
            signalled: false,
            recv_ended: false,
            send_ended: !shape.request_streams(),
            stopped: None,
            wants_writable: false,
            counted: true,
            batch: None,
            is_batch: false,
        });
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let key = CallKey { index, serial };
        self.open_local = self.open_local.saturating_add(1);
        let request_id = self.local_ids.insert(index, self.open_local);
        message.request_id = request_id;
        if let Some(call) = self.call_mut(key) {
            call.request_id = request_id;
        }
        if owns_stream && let Some(stream) = self.stream_mut(stream) {
            stream.call = Some(key);
        }
        self.note_deadline(deadline);
        self.statistics.calls_out = self.statistics.calls_out.saturating_add(1);
        self.emit(stream, &message, owns_stream && !shape.request_streams());
        Ok(key)
    }

    /// Whether a call of this shape could be made now.
    ///
    /// # Errors
    ///
    /// What [`Session::call`] would fail with. After [`CallError::NotOpen`] wait for [`Event::Active`], after
    /// [`CallError::QueueFull`] for [`Event::Uncongested`], after [`CallError::TooManyCalls`] for the end of a call.
    pub fn ready_for(&mut self, shape: Shape) -> Result<(), CallError> {
        let ready = self.check_callable(shape);
        if matches!(ready, Err(CallError::QueueFull { .. })) {
            self.congested = true;
        }
        ready?;
        if self.open_local >= usize::try_from(self.peer_limits.max_calls).unwrap_or(usize::MAX) {
            return Err(CallError::TooManyCalls { limit: self.peer_limits.max_calls });
        }
        Ok(())
    }

    fn check_callable(&self, shape: Shape) -> Result<(), CallError> {
        if self.state.is_closed() {
            return Err(CallError::Closed);
        }
        if self.closing.is_some() {
            return Err(CallError::ShuttingDown);
        }
        let early = self.side == Side::Client && shape == Shape::Unary;
        if self.state != State::Active && !early {
            return Err(CallError::NotOpen);
        }
        let queued = self.queued_bytes();
        if queued >= self.config.max_queued_bytes {
            return Err(CallError::QueueFull {
                queued,
                limit: self.config.max_queued_bytes,
            });
        }
        Ok(())
    }

    fn request_message(&mut self, now: Timestamp, request: Outgoing, flags: Flags) -> Message {
        let mut message = self.stamped(now, MessageType::REQUEST, request.payload);
        message.flags = Self::own_flags(request.flags) | flags;
        if request.priority.is_high() {
            message.flags = message.flags | Flags::HIGH_PRIORITY;
        }
        message.priority = request.priority;
        message.ttl = Ttl::from_option(request.timeout);
        message.routing = request.routing;
        message.context = request.context;
        message
    }

    /// Refuses what the peer would refuse, before anything is sent.
    fn check_message(&self, message: &Message) -> Result<(), CallError> {
        let limits = MessageLimits::default();
        let (len, limit) = (
            message.encoded_len(),
            usize::try_from(self.peer_limits.max_message).unwrap_or(usize::MAX),
        );
        if len > limit {
            return Err(CallError::MessageTooLarge { len, limit });
        }
        let (len, limit) = (
            message.context.encoded_len(),
            usize::try_from(limits.context).unwrap_or(usize::MAX),
        );
        if len > limit {
            return Err(CallError::ContextTooLarge { len, limit });
        }
        let (len, limit) = (
            message.routing.encoded_len(),
            usize::try_from(limits.routing).unwrap_or(usize::MAX),
        );
        if len > limit {
            return Err(CallError::RoutingTooLarge { len, limit });
        }
        Ok(())
    }

    /// The lowest stream ID that is free, on the lane where it belongs.
    ///
    /// The client spreads its streams over the lanes beside lane 0, in turn; an ID keeps its lane, so that frames of its old
    /// and its new use cannot overtake each other. The acceptor opens no lanes and stays on lane 0.
    fn open_stream(&mut self, class: u8) -> Result<StreamId, CallError> {
        if self.state != State::Active {
            return Err(CallError::NotOpen);
        }
        let first: u16 = if self.side == Side::Client { 3 } else { 4 };
        let limit = self.peer_limits.max_streams;
        let free = (0..limit).find(|n| {
            let id = u32::from(first).saturating_add(n.saturating_mul(2));
            u16::try_from(id).is_ok_and(|id| {
                self.stream_ref(StreamId(id))
                    .is_none_or(|stream| !stream.open)
            })
        });
        let Some(number) = free else {
            return Err(CallError::TooManyStreams { limit });
        };
        let id = StreamId(
            u16::try_from(u32::from(first).saturating_add(number.saturating_mul(2)))
                .unwrap_or(u16::MAX),
        );
        let lanes = u32::from(self.config.extra_lanes.min(LANES_MAX.saturating_sub(1)));
        let lane =
            if self.side == Side::Client && lanes > 0 && self.features.contains(Features::LANES) {
                LaneId(u16::try_from(number % lanes).unwrap_or(0).saturating_add(1))
            } else {
                LaneId::ZERO
            };
        let Some(stream) = self.stream_slot(id, lane) else {
            return Err(CallError::TooManyStreams { limit });
        };
        stream.lane = lane;
        stream.reopen(None, class);
        self.open_streams = self.open_streams.saturating_add(1);
        if let Some(lane) = self.lane_mut(lane) {
            lane.open_streams = lane.open_streams.saturating_add(1);
        }
        Ok(id)
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    fn note_deadline(&mut self, deadline: Option<Timestamp>) {
        if let Some(deadline) = deadline {
            self.earliest_deadline = Some(
                self.earliest_deadline
                    .map_or(deadline, |earliest| earliest.min(deadline)),
            );
        }
    }

    pub(super) fn insert_peer_call(
        &mut self,
        message: &Message,
        stream: StreamId,
        deadline: Option<Timestamp>,
    ) -> CallKey {
        let serial = self.next_serial();
        let index = self.calls.insert(Call {
            serial,
            local: false,
            request_id: message.request_id,
            stream,
            owns_stream: !Stream::is_shared(stream),
            streams: !Stream::is_shared(stream),
            priority: message.priority,
            deadline,
            inbox: VecDeque::new(),
            signalled: false,
            recv_ended: false,
            send_ended: false,
            stopped: None,
            wants_writable: false,
            counted: false,
            batch: None,
            is_batch: false,
        });
        CallKey {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            serial,
        }
    }

    /// Decides about a request that has arrived: hands it out, or refuses it with its own code.
    pub(super) fn admit(&mut self, now: Timestamp, pending: Pending) {
        match pending {
            Pending::Cancel {
                stream,
                request_id,
                code,
                len,
            } => {
                self.consume(stream, len);
                let key = self.peer_ids.get(&request_id).and_then(|&index| {
                    let call = self.calls.get(usize::try_from(index).ok()?)?;
                    Some(CallKey {
                        index,
                        serial: call.serial,
                    })
                });
                if let Some(key) = key {
                    self.cancel_peer_call(now, key, code, false);
                }
            }
            Pending::Request {
                call,
                stream,
                message,
                deadline,
            } => {
                self.consume(
                    stream,
                    u64::try_from(message.encoded_len()).unwrap_or(u64::MAX),
                );
                if call.is_some_and(|key| self.call_ref(key).is_none()) {
                    return; // cancelled while it waited
                }
                let id = message.request_id;
                if id.0 != 0 && self.peer_ids.contains_key(&id.0) {
                    self.fail(&SessionError::DuplicateRequest(id.0));
                    return;
                }
                match self.judge(now, &message, deadline) {
                    Err(error) => self.refuse_request(now, call, stream, &message, error),
                    Ok(()) if message.flags.contains(Flags::BATCH_REQUEST) => {
                        self.admit_batch(now, call, stream, &message, deadline)
                    }
                    Ok(()) => self.hand_out(call, stream, message, deadline),
                }
            }
        }
    }

    fn judge(
        &self,
        now: Timestamp,
        message: &Message,
        deadline: Option<Timestamp>,
    ) -> Result<(), ErrorRecord> {
        let limit = self.config.limits.max_calls;
        let refuse = |code, text: String| Err(ErrorRecord::new(code, Text::from(text)));
        if self.closing.is_some() {
            return refuse(
                ErrorCode::SHUTTING_DOWN,
                "this side is shutting down; the request did not run".into(),
            );
        }
        if deadline.is_some_and(|deadline| now >= deadline) {
            return refuse(
                ErrorCode::DEADLINE_EXCEEDED,
                "the time budget was spent before the request ran".into(),
            );
        }
        if message.flags.contains(Flags::COMPRESSED) {
            return refuse(
                ErrorCode::UNIMPLEMENTED,
                "no compression was agreed on".into(),
            );
        }
        if message.flags.contains(Flags::REQUIRES_CONSENSUS) {
            return refuse(
                ErrorCode::UNIMPLEMENTED,
                "this side has no cluster engine".into(),
            );
        }
        if message.flags.contains(Flags::REQUIRES_AUTH) && !self.grant.authenticated {
            return refuse(
                ErrorCode::UNAUTHENTICATED,
                "the request requires an authenticated session".into(),
            );
        }
        if self.open_peer >= usize::try_from(limit).unwrap_or(usize::MAX) {
            return refuse(
                ErrorCode::TOO_MANY_CALLS,
                format!("{limit} calls are open, as many as are allowed"),
            );
        }
        Ok(())
    }

    fn refuse_request(
        &mut self,
        now: Timestamp,
        call: Option<CallKey>,
        stream: StreamId,
        message: &Message,
        error: ErrorRecord,
    ) {
        if message.request_id.0 == 0 && call.is_none() {
            self.statistics.requests_dropped = self.statistics.requests_dropped.saturating_add(1);
            return;
        }
        self.statistics.requests_refused = self.statistics.requests_refused.saturating_add(1);
        let key = call.unwrap_or_else(|| self.insert_peer_call(message, stream, None));
        self.respond(now, key, Answer::Error(error));
    }

    fn hand_out(
        &mut self,
        call: Option<CallKey>,
        stream: StreamId,
        message: Message,
        deadline: Option<Timestamp>,
    ) {
        let id = message.request_id;
        let key = match call {
            Some(key) => key,
            None => self.insert_peer_call(&message, stream, deadline),
        };
        if let Some(call) = self.call_mut(key) {
            call.counted = true;
        }
        self.open_peer = self.open_peer.saturating_add(1);
        if id.0 != 0 {
            self.peer_ids.insert(id.0, key.index);
            // IDs rise and wrap: the later of two is less than half the circle ahead.
            if id.0.wrapping_sub(self.highest_peer_request) < u32::MAX / 2 {
                self.highest_peer_request = id.0;
            }
        }
        self.note_deadline(deadline);
        self.statistics.requests_in = self.statistics.requests_in.saturating_add(1);
        let ended = self
            .call_ref(key)
            .is_some_and(|call| !call.owns_stream || call.recv_ended);
        self.events.push_back(Event::Request(Box::new(Incoming {
            call: key,
            answered: id.0 != 0 || call.is_some(),
            owns_stream: call.is_some(),
            message,
            ended,
            deadline,
        })));
    }

    fn admit_batch(
        &mut self,
        now: Timestamp,
        call: Option<CallKey>,
        stream: StreamId,
        message: &Message,
        deadline: Option<Timestamp>,
    ) {
        let limits = self.message_limits();
        let batch = match BatchRecord::decode(message.payload.clone(), &limits) {
            Ok(batch)
                if !batch.messages.is_empty()
                    && batch
                        .messages
                        .iter()
                        .all(|inner| inner.kind == MessageType::REQUEST) =>
            {
                batch
            }
            Ok(_) => {
                let error = ErrorRecord::new(
                    ErrorCode::INVALID_ARGUMENT,
                    Text::from_static("a batch holds at least one request and nothing else"),
                );
                self.refuse_request(now, call, stream, message, error);
                return;
            }
            Err(error) => {
                let error = ErrorRecord::new(ErrorCode::MALFORMED, Text::from(error.to_string()));
                self.refuse_request(now, call, stream, message, error);
                return;
            }
        };
        let count = batch.messages.len();
        let room = usize::try_from(self.config.limits.max_calls)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.open_peer);
        if count > room {
            let error = ErrorRecord::new(
                ErrorCode::TOO_MANY_CALLS,
                Text::from(format!(
                    "the batch holds {count} calls, {room} more are allowed"
                )),
            );
            self.refuse_request(now, call, stream, message, error);
            return;
        }
        // The batch's own entry keeps its request ID; its members are calls without one.
        let outer = call.unwrap_or_else(|| self.insert_peer_call(message, stream, deadline));
        if message.request_id.0 != 0 {
            self.peer_ids.insert(message.request_id.0, outer.index);
        }
        if let Some(call) = self.call_mut(outer) {
            call.is_batch = true;
        }
        let place = self.batches.insert(Batch {
            outer,
            answers: vec![None; count],
            missing: count,
            bytes: 4,
        });
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        for (position, inner) in batch.messages.into_iter().enumerate() {
            let inner_deadline = match inner.ttl.to_duration() {
                Some(budget) => {
                    let own = Timestamp(
                        now.0
                            .saturating_add(u64::try_from(budget.as_micros()).unwrap_or(u64::MAX)),
                    );
                    Some(deadline.map_or(own, |outer| outer.min(own)))
                }
                None => deadline,
            };
            let key = self.insert_peer_call(&inner, stream, inner_deadline);
            if let Some(call) = self.call_mut(key) {
                call.batch = Some((place, position));
                call.owns_stream = false;
                call.streams = false;
                call.counted = true;
            }
            self.open_peer = self.open_peer.saturating_add(1);
            self.note_deadline(inner_deadline);
            if let Err(error) = self.judge_member(&inner) {
                self.respond(now, key, Answer::Error(error));
                continue;
            }
            self.statistics.requests_in = self.statistics.requests_in.saturating_add(1);
            let incoming = Incoming {
                call: key,
                answered: true,
                owns_stream: false,
                message: inner,
                ended: true,
                deadline: inner_deadline,
            };
            self.events.push_back(Event::Request(Box::new(incoming)));
        }
    }

    fn judge_member(&self, message: &Message) -> Result<(), ErrorRecord> {
        let (code, text) = if message.flags.contains(Flags::COMPRESSED) {
            (ErrorCode::UNIMPLEMENTED, "no compression was agreed on")
        } else if message.flags.contains(Flags::REQUIRES_AUTH) && !self.grant.authenticated {
            (
                ErrorCode::UNAUTHENTICATED,
                "the request requires an authenticated session",
            )
        } else {
            return Ok(());
        };
        Err(ErrorRecord::new(code, Text::from_static(text)))
    }

    /// Answers a call of the peer's and ends it. Nothing happens if it was cancelled or has expired meanwhile.
    pub fn respond(&mut self, now: Timestamp, key: CallKey, answer: Answer) {
        let Some(call) = self.call_ref(key).filter(|call| !call.local) else {
            return;
        };
        let (id, stream, owns_stream, batch, priority) = (
            call.request_id,
            call.stream,
            call.owns_stream,
            call.batch,
            call.priority,
        );
        let mut message = self.answer_message(now, answer);
        message.priority = priority;
        let limit = usize::try_from(self.peer_limits.max_message).unwrap_or(usize::MAX);
        if message.encoded_len() > limit {
            let text = format!(
                "the answer has {} bytes, the caller takes {limit}",
                message.encoded_len()
            );
            message = self.answer_message(
                now,
                Answer::Error(ErrorRecord::new(
                    ErrorCode::MESSAGE_TOO_LARGE,
                    Text::from(text),
                )),
            );
        }
        message.request_id = id;
        if let Some((place, position)) = batch {
            self.remove_call(key);
            self.gather(now, place, position, message);
            return;
        }
        self.send_answer(stream, owns_stream, &mut message);
        self.remove_call(key);
    }

    fn send_answer(&mut self, stream: StreamId, owns_stream: bool, message: &mut Message) {
        if owns_stream {
            message.flags = message.flags | Flags::STREAM_END;
            self.stop_receiving(stream, ErrorCode::OK);
            if let Some(stream) = self.stream_mut(stream) {
                stream.call = None;
            }
            self.emit(stream, message, true);
        } else if message.request_id.0 == 0 {
            // Nobody waits for it.
        } else if message.encoded_len() > SHARED_MESSAGE_MAX
            && let Ok(own) = self.open_stream(message.priority.class())
        {
            // Too large for the shared stream: on one of its own, whose other direction counts as ended from the start.
            message.flags = message.flags | Flags::STREAM_END;
            if let Some(stream) = self.stream_mut(own) {
                stream.recv.ended = true;
            }
            self.emit(own, message, true);
        } else {
            self.emit(stream, message, false);
        }
    }

    fn answer_message(&mut self, now: Timestamp, answer: Answer) -> Message {
        match answer {
            Answer::Reply {
                payload,
                context,
                flags,
            } => {
                let mut message = self.stamped(now, MessageType::RESPONSE, payload);
                message.context = context;
                message.flags = Self::own_flags(flags);
                message
            }
            Answer::Error(record) => {
                let mut payload = BytesMut::with_capacity(record.encoded_len());
                record.encode(&mut payload);
                self.stamped(now, MessageType::ERROR, payload.freeze())
            }
        }
    }

    /// Puts a member's answer into its batch, and sends the batch when it is complete.
    fn gather(&mut self, now: Timestamp, place: u32, position: usize, mut message: Message) {
        let limit = usize::try_from(self.peer_limits.max_message).unwrap_or(usize::MAX);
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        let Some(bytes) = self.batches.get(place).map(|batch| batch.bytes) else {
            return;
        };
        if bytes
            .saturating_add(message.encoded_len())
            .saturating_add(Message::HEADER_LEN)
            > limit
        {
            let id = message.request_id;
            let text = format!(
                "the batch's answers together exceed the {limit} bytes that the caller takes"
            );
            message = self.answer_message(
                now,
                Answer::Error(ErrorRecord::new(
                    ErrorCode::MESSAGE_TOO_LARGE,
                    Text::from(text),
                )),
            );
            message.request_id = id;
        }
        let Some(batch) = self.batches.get_mut(place) else {
            return;
        };
        batch.bytes = batch.bytes.saturating_add(message.encoded_len());
        if let Some(slot @ None) = batch.answers.get_mut(position) {
            *slot = Some(message);
            batch.missing = batch.missing.saturating_sub(1);
        }
        if batch.missing > 0 {
            return;
        }
        let Some(batch) = self.batches.try_remove(place) else {
            return;
        };
        let outer = batch.outer;
        let Some((id, stream, owns_stream, priority)) = self.call_ref(outer).map(|call| {
            (
                call.request_id,
                call.stream,
                call.owns_stream,
                call.priority,
            )
        }) else {
            return; // the whole batch was cancelled meanwhile
        };
        let record = BatchRecord {
            messages: batch.answers.into_iter().flatten().collect(),
        };
        let mut payload = BytesMut::with_capacity(record.encoded_len());
        record.encode(&mut payload);
        let mut message = self.stamped(now, MessageType::RESPONSE, payload.freeze());
        message.flags = Flags::BATCH_REQUEST;
        message.request_id = id;
        message.priority = priority;
        self.send_answer(stream, owns_stream, &mut message);
        self.remove_call(outer);
    }

    /// Whether [`Session::send`] would take an element now; [`Event::Writable`] follows after [`SendError::Blocked`].
    ///
    /// # Errors
    ///
    /// What [`Session::send`] would fail with, but for the element's size.
    pub fn can_send(&mut self, key: CallKey) -> Result<(), SendError> {
        if self.state.is_closed() {
            return Err(SendError::Closed);
        }
        let call = self.call_ref(key).ok_or(SendError::Closed)?;
        if let Some(code) = call.stopped {
            return Err(SendError::Stopped(code));
        }
        if call.send_ended || !call.owns_stream {
            return Err(SendError::Ended);
        }
        let queued = self.stream_ref(call.stream).map_or(0, |stream| stream.send.queued_bytes);
        let congested = self.is_congested();
        if congested || queued >= self.config.max_stream_queued_bytes {
            self.congested |= congested;
            if let Some(call) = self.call_mut(key) {
                call.wants_writable = true;
            }
            return Err(SendError::Blocked);
        }
        Ok(())
    }

    /// Whether the call is still known: not answered, cancelled or released.
    #[must_use]
    pub fn has_call(&self, key: CallKey) -> bool {
        self.call_ref(key).is_some()
    }

    /// Sends one element of a streaming call.
    ///
    /// # Errors
    ///
    /// [`SendError::Blocked`]: the stream's queue, or the session's, is full; try again after [`Event::Writable`]. The others
    /// are final for this direction.
    pub fn send(&mut self, now: Timestamp, key: CallKey, element: Outgoing) -> Result<(), SendError> {
        self.can_send(key)?;
        let limit = usize::try_from(self.peer_limits.max_message).unwrap_or(usize::MAX);
        let call = self.call_ref(key).ok_or(SendError::Closed)?;
        let (id, request_id, priority) = (call.stream, call.request_id, call.priority);
        let mut message = self.stamped(now, MessageType::STREAM, element.payload);
        message.request_id = request_id;
        message.flags = Self::own_flags(element.flags);
        message.priority = priority;
        message.routing = element.routing;
        message.context = element.context;
        let len = message.encoded_len();
        if len > limit {
            return Err(SendError::MessageTooLarge { len, limit });
        }
        self.emit(id, &message, false);
        Ok(())
    }

    /// Ends our direction of a streaming call; with an error where it did not end well. The answerer's end ends the call.
    pub fn finish(&mut self, now: Timestamp, key: CallKey, error: Option<ErrorRecord>) {
        let Some(call) = self
            .call_ref(key)
            .filter(|call| !call.send_ended && call.owns_stream)
        else {
            return;
        };
        let (id, local, request_id, priority) =
            (call.stream, call.local, call.request_id, call.priority);
        let mut message = match error {
            None => self.stamped(now, MessageType::STREAM_END, Bytes::new()),
            Some(error) => {
                let record = StreamEnd { error: Some(error) };
                let mut payload = BytesMut::with_capacity(record.encoded_len());
                record.encode(&mut payload);
                self.stamped(now, MessageType::STREAM_END, payload.freeze())
            }
        };
        message.request_id = request_id;
        message.flags = Flags::STREAM_END;
        message.priority = priority;
        if let Some(call) = self.call_mut(key) {
            call.send_ended = true;
        }
        if !local {
            self.stop_receiving(id, ErrorCode::OK);
            if let Some(stream) = self.stream_mut(id) {
                stream.call = None;
            }
        }
        self.emit(id, &message, true);
        if !local {
            self.remove_call(key);
        }
    }

    /// The next thing a streaming call has received; `None` until [`Event::Readable`].
    ///
    /// Taking an element grants its bytes to the peer again.
    pub fn recv(&mut self, key: CallKey) -> Option<Received> {
        let call = self.call_mut(key)?;
        let stream = call.stream;
        let received = call.inbox.pop_front();
        match &received {
            None => call.signalled = false,
            Some(Received::Element(message)) => {
                let len = u64::try_from(message.encoded_len()).unwrap_or(u64::MAX);
                // An answer that streamed nothing was counted when it came.
                if message.kind == MessageType::STREAM {
                    self.consume(stream, len);
                }
            }
            Some(Received::End(_)) => {}
        }
        received
    }

    /// Gives up a call of ours: the peer is told, and the work behind it stops. Nothing more comes for this key.
    pub fn cancel(&mut self, now: Timestamp, key: CallKey, code: ErrorCode) {
        let Some(call) = self.call_ref(key).filter(|call| call.local) else {
            return;
        };
        let (id, request_id, owns_stream, over) = (
            call.stream,
            call.request_id,
            call.owns_stream,
            call.recv_ended,
        );
        if owns_stream {
            self.drain_inbox(key);
            if !over {
                self.stop_receiving(id, code);
            }
            self.reset_sending(id, code);
            self.detach(id, key);
        } else if !over && !self.state.is_closed() {
            let record = ErrorRecord::new(code, Text::new());
            let mut payload = BytesMut::with_capacity(record.encoded_len());
            record.encode(&mut payload);
            let mut message = self.stamped(now, MessageType::ERROR, payload.freeze());
            message.request_id = request_id;
            self.emit(id, &message, false);
        }
        self.remove_call(key);
    }

    /// The application is done with a streaming call, whatever its state: an open one of ours is cancelled, one of the peer's
    /// is answered with INTERNAL.
    pub fn release(&mut self, now: Timestamp, key: CallKey) {
        let Some(call) = self.call_ref(key) else {
            return;
        };
        if call.local {
            self.cancel(now, key, ErrorCode::CANCELLED);
        } else {
            let error = ErrorRecord::new(
                ErrorCode::INTERNAL,
                Text::from_static("the handler ended without an answer"),
            );
            self.respond(now, key, Answer::Error(error));
        }
    }

    fn drain_inbox(&mut self, key: CallKey) {
        let Some(call) = self.call_mut(key) else {
            return;
        };
        let stream = call.stream;
        let bytes: usize = call
            .inbox
            .drain(..)
            .map(|received| match received {
                Received::Element(message) if message.kind == MessageType::STREAM => {
                    message.encoded_len()
                }
                _ => 0,
            })
            .sum();
        if bytes > 0 {
            self.consume(stream, u64::try_from(bytes).unwrap_or(u64::MAX));
        }
    }

    fn detach(&mut self, id: StreamId, key: CallKey) {
        if let Some(stream) = self.stream_mut(id)
            && stream.call == Some(key)
        {
            stream.call = None;
        }
        self.close_stream_if_done(id);
    }

    fn remove_call(&mut self, key: CallKey) {
        if self.call_ref(key).is_none() {
            return;
        }
        self.drain_inbox(key);
        let Some(call) = usize::try_from(key.index)
            .ok()
            .and_then(|index| self.calls.try_remove(index))
        else {
            return;
        };
        if call.local {
            self.local_ids.remove(call.request_id);
            if call.counted {
                self.open_local = self.open_local.saturating_sub(1);
            }
        } else {
            if call.request_id.0 != 0
                && call.batch.is_none()
                && self.peer_ids.get(&call.request_id.0) == Some(&key.index)
            {
                self.peer_ids.remove(&call.request_id.0);
            }
            if call.counted {
                self.open_peer = self.open_peer.saturating_sub(1);
            }
        }
    }

    /// A streaming call of ours whose answer is complete is no longer open on the wire, though the application may still read.
    pub(super) fn uncount_if_over(&mut self, key: CallKey) {
        let Some(call) = self
            .call_mut(key)
            .filter(|call| call.local && call.recv_ended && call.counted)
        else {
            return;
        };
        call.counted = false;
        let id = call.request_id;
        self.local_ids.remove(id);
        self.open_local = self.open_local.saturating_sub(1);
    }

    /// A unary call of ours was answered.
    pub(super) fn finish_unary(
        &mut self,
        key: CallKey,
        message: Message,
    ) -> Result<(), SessionError> {
        if message.kind == MessageType::ERROR {
            let record = ErrorRecord::decode(message.payload)?;
            self.finish_unary_error(key, record);
            return Ok(());
        }
        let is_batch = self.call_ref(key).is_some_and(|call| call.is_batch);
        let event = if is_batch {
            let batch = BatchRecord::decode(message.payload, &self.message_limits())?;
            let mut answers = Vec::with_capacity(batch.messages.len());
            for answer in batch.messages {
                answers.push(match answer.kind {
                    MessageType::ERROR => Err(ErrorRecord::decode(answer.payload)?),
                    _ => Ok(answer),
                });
            }
            Event::BatchAnswer(key, answers)
        } else {
            Event::Answer(key, Ok(Box::new(message)))
        };
        self.end_unary(key);
        self.events.push_back(event);
        Ok(())
    }

    pub(super) fn finish_unary_error(&mut self, key: CallKey, error: ErrorRecord) {
        if self.call_ref(key).is_none() {
            return;
        }
        self.end_unary(key);
        self.events
            .push_back(Event::Answer(key, Err(Box::new(error))));
    }

    fn end_unary(&mut self, key: CallKey) {
        if let Some((id, true)) = self
            .call_ref(key)
            .map(|call| (call.stream, call.owns_stream))
        {
            self.stop_receiving(id, ErrorCode::CANCELLED);
            self.reset_sending(id, ErrorCode::CANCELLED);
            self.detach(id, key);
        }
        self.remove_call(key);
    }

    /// Ends a call from this side's view, without a word to the peer: the session is over.
    pub(super) fn fail_call(&mut self, key: CallKey, error: &ErrorRecord) {
        let Some(call) = self.call_mut(key) else {
            return;
        };
        match (call.local, call.streams) {
            (true, false) => {
                self.remove_call(key);
                self.events
                    .push_back(Event::Answer(key, Err(Box::new(error.clone()))));
            }
            (true, true) => {
                call.stopped.get_or_insert(error.code);
                if core::mem::take(&mut call.wants_writable) {
                    self.events.push_back(Event::Writable(key));
                }
                self.deliver(key, Received::End(Some(error.clone())));
            }
            (false, _) => {
                self.remove_call(key);
                self.events.push_back(Event::Cancelled(key, error.code));
            }
        }
    }

    /// A call of the peer's is not wanted any more. `answer`: tell the peer why; otherwise it knows.
    pub(super) fn cancel_peer_call(
        &mut self,
        now: Timestamp,
        key: CallKey,
        code: ErrorCode,
        answer: bool,
    ) {
        let Some(call) = self.call_ref(key).filter(|call| !call.local) else {
            return;
        };
        let (id, owns_stream, is_batch, batch) =
            (call.stream, call.owns_stream, call.is_batch, call.batch);
        if answer {
            let error = ErrorRecord::new(code, Text::from_static("the time budget was spent"));
            self.respond(now, key, Answer::Error(error));
        } else if owns_stream {
            self.stop_receiving(id, code);
            self.reset_sending(id, code);
            self.detach(id, key);
        }
        self.remove_call(key);
        if is_batch {
            self.cancel_members(key, code);
        } else {
            self.events.push_back(Event::Cancelled(key, code));
        }
        debug_assert!(
            batch.is_none() || answer,
            "members of a batch are only cancelled by their deadline"
        );
    }

    fn cancel_members(&mut self, outer: CallKey, code: ErrorCode) {
        let places: Vec<usize> = self
            .batches
            .iter()
            .filter(|(_, batch)| batch.outer == outer)
            .map(|(place, _)| place)
            .collect();
        for place in places {
            self.batches.try_remove(place);
            let wide = u32::try_from(place).unwrap_or(u32::MAX);
            let members = self.keys_where(|call| call.batch.is_some_and(|(at, _)| at == wide));
            for member in members {
                self.remove_call(member);
                self.events.push_back(Event::Cancelled(member, code));
            }
        }
    }

    fn keys_where(&self, wanted: impl Fn(&Call) -> bool) -> Vec<CallKey> {
        self.calls
            .iter()
            .filter(|(_, call)| wanted(call))
            .filter_map(|(index, call)| {
                Some(CallKey {
                    index: u32::try_from(index).ok()?,
                    serial: call.serial,
                })
            })
            .collect()
    }

    /// Ends every call whose time is up.
    ///
    /// One pass over the open calls, of which there are few thousands at most, instead of a timer for each: most calls are
    /// answered long before their deadline, and then cost nothing here.
    pub(super) fn expire_calls(&mut self, now: Timestamp) {
        let due = self.keys_where(|call| {
            call.deadline.is_some_and(|deadline| now >= deadline)
                && !(call.local && call.recv_ended)
        });
        for key in due {
            let Some(call) = self.call_ref(key) else {
                continue;
            };
            match (call.local, call.streams) {
                (true, false) => {
                    self.cancel(now, key, ErrorCode::DEADLINE_EXCEEDED);
                    let error = ErrorRecord::new(
                        ErrorCode::DEADLINE_EXCEEDED,
                        Text::from_static("no answer came in time"),
                    );
                    self.events
                        .push_back(Event::Answer(key, Err(Box::new(error))));
                }
                (true, true) => {
                    let id = call.stream;
                    self.stop_receiving(id, ErrorCode::DEADLINE_EXCEEDED);
                    self.reset_sending(id, ErrorCode::DEADLINE_EXCEEDED);
                    if let Some(call) = self.call_mut(key) {
                        call.stopped.get_or_insert(ErrorCode::DEADLINE_EXCEEDED);
                        if core::mem::take(&mut call.wants_writable) {
                            self.events.push_back(Event::Writable(key));
                        }
                    }
                    let error = ErrorRecord::new(
                        ErrorCode::DEADLINE_EXCEEDED,
                        Text::from_static("the stream did not end in time"),
                    );
                    self.deliver(key, Received::End(Some(error)));
                    self.detach(id, key);
                }
                (false, _) => self.cancel_peer_call(now, key, ErrorCode::DEADLINE_EXCEEDED, true),
            }
        }
        self.earliest_deadline = self
            .calls
            .iter()
            .filter(|(_, call)| !(call.local && call.recv_ended))
            .filter_map(|(_, call)| call.deadline)
            .min();
    }

    /// The peer did not take on requests after `last`: they did not run and may be tried elsewhere.
    pub(super) fn fail_calls_after(&mut self, last: RequestId) {
        let late = self.keys_where(|call| {
            call.local
                && call.counted
                && (last.0 == 0
                    || call.request_id.0.wrapping_sub(last.0).wrapping_sub(1) < u32::MAX / 2)
        });
        let error = ErrorRecord::new(
            ErrorCode::SHUTTING_DOWN,
            Text::from_static("the peer is shutting down; the request did not run"),
        );
        for key in late {
            let Some(call) = self.call_ref(key) else {
                continue;
            };
            let (id, streams, owns_stream) = (call.stream, call.streams, call.owns_stream);
            if streams {
                if let Some(call) = self.call_mut(key) {
                    call.stopped.get_or_insert(ErrorCode::SHUTTING_DOWN);
                    if core::mem::take(&mut call.wants_writable) {
                        self.events.push_back(Event::Writable(key));
                    }
                }
                self.deliver(key, Received::End(Some(error.clone())));
                self.stop_receiving(id, ErrorCode::SHUTTING_DOWN);
                self.reset_sending(id, ErrorCode::SHUTTING_DOWN);
                self.detach(id, key);
            } else {
                if owns_stream {
                    self.reset_sending(id, ErrorCode::SHUTTING_DOWN);
                }
                self.finish_unary_error(key, error.clone());
            }
        }
    }
}
