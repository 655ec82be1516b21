//! Calls: made, admitted, answered, cancelled, expired. Spec: core §4.

use std::collections::hash_map::Entry;

use bytes::{Bytes, BytesMut};
use remus_wire::{
    Batch as BatchRecord, ErrorCode, ErrorRecord, Features, Flags, Message, MessageLimits,
    MessageType, RequestId, StreamEnd, StreamId, Text, Timestamp, Ttl,
};

use super::{Pending, Session, fitted, micros};
use crate::SHARED_MESSAGE_MAX;
use crate::call::{Answer, Batch, Call, CallKey, Inbox, Outgoing, PeerId, Received, Shape};
use crate::error::{CallError, SendError, SessionError};
use crate::event::{Event, Incoming, Side};
use crate::lane::{LANES_MAX, LaneId};
use crate::stream::{ANY_LANE, Stream};

/// Length of an answer that only says that the answers together are too large for the caller, in bytes. As many as a batch may
/// have calls fit the smallest limit.
const SHORT_ERROR: usize = Message::HEADER_LEN + 16;

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
            call.batch_len = Some(batch.messages.len());
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
        if shape.request_streams() && !request.payload.is_empty() {
            return Err(CallError::UnexpectedPayload);
        }
        let timeout = request.timeout;
        let mut message = self.request_message(now, request, flags);
        let len = message.encoded_len();
        let shares = shape == Shape::Unary && len <= SHARED_MESSAGE_MAX;
        if !shares && !self.state.is_open() {
            // What the peer takes beyond is not known yet, so nothing is too large for it either.
            return Err(CallError::NotOpen);
        }
        self.check_message(&message)?;
        let (stream, owns_stream) = if shares {
            (self.own_shared(), false)
        } else {
            (self.open_stream(message.priority.class())?, true)
        };
        if owns_stream && !shape.request_streams() {
            message.flags |= Flags::STREAM_END;
        }
        let deadline = timeout.map(|timeout| Timestamp(now.0.saturating_add(micros(timeout))));
        let serial = self.next_serial();
        let index = self.calls.insert(Call {
            serial,
            local: true,
            request_id: RequestId(0),
            stream,
            owns_stream,
            streams: shape != Shape::Unary,
            priority: message.priority,
            deadline: None,
            inbox: Inbox::default(),
            signalled: false,
            recv_ended: false,
            send_ended: !shape.request_streams(),
            stopped: None,
            wants_writable: false,
            counted: true,
            announced: true,
            member: None,
            gathers: None,
            spent: false,
            batch_len: None,
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
        self.note_deadline(key, deadline);
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
            return Err(CallError::TooManyCalls {
                limit: self.peer_limits.max_calls,
            });
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
        if !self.state.is_open() && !early {
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
            message.flags |= Flags::HIGH_PRIORITY;
        }
        message.priority = request.priority;
        message.ttl = Ttl::from_option(request.timeout);
        message.routing = request.routing;
        message.context = request.context;
        message
    }

    /// Refuses what the peer would refuse, before anything is sent.
    fn check_message(&self, message: &Message) -> Result<(), CallError> {
        self.judge_size(message).map_err(|size| match size {
            Oversize::Message { len, limit } => CallError::MessageTooLarge { len, limit },
            Oversize::Context { len, limit } => CallError::ContextTooLarge { len, limit },
            Oversize::Routing { len, limit } => CallError::RoutingTooLarge { len, limit },
        })
    }

    fn judge_size(&self, message: &Message) -> Result<(), Oversize> {
        let limits = MessageLimits::default();
        let wide = |limit| usize::try_from(limit).unwrap_or(usize::MAX);
        let (len, limit) = (message.encoded_len(), wide(self.peer_limits.max_message));
        if len > limit {
            return Err(Oversize::Message { len, limit });
        }
        let (len, limit) = (message.context.encoded_len(), wide(limits.context));
        if len > limit {
            return Err(Oversize::Context { len, limit });
        }
        let (len, limit) = (message.routing.encoded_len(), wide(limits.routing));
        if len > limit {
            return Err(Oversize::Routing { len, limit });
        }
        Ok(())
    }

    /// The lowest stream ID that is free, on the lane where it belongs.
    ///
    /// The client spreads its streams over the lanes beside lane 0, in turn; an ID keeps its lane, so that frames of its old
    /// and its new use cannot overtake each other. The acceptor opens no lanes and stays on lane 0.
    fn open_stream(&mut self, class: u8) -> Result<StreamId, CallError> {
        if !self.state.is_open() {
            return Err(CallError::NotOpen);
        }
        let first: u16 = if self.side == Side::Client { 3 } else { 4 };
        let limit = self.peer_limits.max_streams;
        let nth = |n: u32| {
            let id = u32::from(first).saturating_add(n.saturating_mul(2));
            u16::try_from(id).ok().map(StreamId)
        };
        let free = (self.free_from..limit).find_map(|n| {
            let id = nth(n)?;
            let taken = self.stream_ref(id).is_some_and(|stream| stream.open);
            (!taken).then_some((n, id))
        });
        let Some((number, id)) = free else {
            self.free_from = limit;
            return Err(CallError::TooManyStreams { limit });
        };
        self.free_from = number.saturating_add(1);
        let lanes = u32::from(self.config.extra_lanes.min(LANES_MAX.saturating_sub(1)));
        let lane =
            if self.side == Side::Client && lanes > 0 && self.features.contains(Features::LANES) {
                LaneId(u16::try_from(number % lanes).unwrap_or(0).saturating_add(1))
            } else {
                LaneId::ZERO
            };
        let resumed = self.resumption.epoch > 1;
        let there = if lane.0 < self.resumption.carrier.lanes() {
            lane
        } else {
            LaneId::ZERO
        };
        let Some(stream) = self.stream_slot(id, there) else {
            return Err(CallError::TooManyStreams { limit });
        };
        stream.home = lane;
        if resumed {
            stream.recv.lane = ANY_LANE; // the answerer may take the lane of the request, now that the ID is used anew
        }
        stream.reopen(class);
        self.open_streams = self.open_streams.saturating_add(1);
        Ok(id)
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    fn note_deadline(&mut self, key: CallKey, deadline: Option<Timestamp>) {
        let Some(deadline) = deadline else {
            return;
        };
        if let Some(call) = self.call_mut(key) {
            call.deadline = Some(deadline);
        }
        self.next_deadline = Some(
            self.next_deadline
                .map_or(deadline, |next| next.min(deadline)),
        );
    }

    pub(super) fn insert_peer_call(&mut self, message: &Message, stream: StreamId) -> CallKey {
        let serial = self.next_serial();
        let index = self.calls.insert(Call {
            serial,
            local: false,
            request_id: message.request_id,
            stream,
            owns_stream: !Stream::is_shared(stream),
            streams: !Stream::is_shared(stream),
            priority: message.priority,
            deadline: None,
            inbox: Inbox::default(),
            signalled: false,
            recv_ended: false,
            send_ended: false,
            stopped: None,
            wants_writable: false,
            counted: false,
            announced: false,
            member: None,
            gathers: None,
            spent: false,
            batch_len: None,
        });
        CallKey {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            serial,
        }
    }

    /// Decides about a request that has waited: hands it out, or refuses it with its own code.
    pub(super) fn admit_waiting(&mut self, now: Timestamp, pending: Pending) {
        let id = pending.message.request_id.0;
        let cancelled = match pending.call {
            Some(key) => self.call_ref(key).is_none(),
            None => matches!(self.peer_ids.get(&id), Some(PeerId::Waiting(Some(_)))),
        };
        if !cancelled {
            return self.admit(now, pending);
        }
        let len = u64::try_from(pending.message.encoded_len()).unwrap_or(u64::MAX);
        self.consume(pending.stream, len);
        if pending.call.is_none() {
            self.peer_ids.remove(&id);
        }
    }

    /// Decides about a request: hands it out, or refuses it with its own code.
    pub(super) fn admit(&mut self, now: Timestamp, pending: Pending) {
        let Pending {
            call,
            stream,
            message,
            deadline,
        } = pending;
        self.consume(
            stream,
            u64::try_from(message.encoded_len()).unwrap_or(u64::MAX),
        );
        match self.judge(now, &message, deadline) {
            Err(error) => self.refuse_request(now, call, stream, &message, error),
            Ok(()) if message.flags.contains(Flags::BATCH_REQUEST) => {
                self.admit_batch(now, call, stream, &message, deadline);
            }
            Ok(()) => self.hand_out(call, stream, message, deadline),
        }
    }

    /// Judges a request by what is known before it runs.
    fn judge(
        &self,
        now: Timestamp,
        message: &Message,
        deadline: Option<Timestamp>,
    ) -> Result<(), ErrorRecord> {
        let limit = self.config.limits.max_calls;
        if self.closing.as_ref().is_some_and(|closing| closing.by_us) {
            return Err(ErrorRecord::new(
                ErrorCode::SHUTTING_DOWN,
                Text::from_static("this side is shutting down; the request did not run"),
            ));
        }
        if self.open_peer >= usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(ErrorRecord::new(
                ErrorCode::TOO_MANY_CALLS,
                Text::from(format!("{limit} calls are open, as many as are allowed")),
            ));
        }
        self.judge_alone(now, message, deadline)
    }

    /// What holds for a member of a batch as well.
    fn judge_alone(
        &self,
        now: Timestamp,
        message: &Message,
        deadline: Option<Timestamp>,
    ) -> Result<(), ErrorRecord> {
        let (code, text) = if deadline.is_some_and(|deadline| now >= deadline) {
            (
                ErrorCode::DEADLINE_EXCEEDED,
                "the time budget was spent before the request ran",
            )
        } else if message.flags.contains(Flags::COMPRESSED) {
            (ErrorCode::UNIMPLEMENTED, "no compression was agreed on")
        } else if message.flags.contains(Flags::REQUIRES_CONSENSUS) {
            (ErrorCode::UNIMPLEMENTED, "this side has no cluster engine")
        } else if message.flags.contains(Flags::REQUIRES_AUTH) && !self.is_authenticated(now) {
            (
                ErrorCode::UNAUTHENTICATED,
                "the request requires an authenticated session",
            )
        } else {
            return Ok(());
        };
        Err(ErrorRecord::new(code, Text::from_static(text)))
    }

    /// Whether the peer is known, and its grant has not expired.
    fn is_authenticated(&self, now: Timestamp) -> bool {
        let grant = &self.grant;
        grant.authenticated && (grant.expires == Timestamp::ZERO || now < grant.expires)
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
        self.peer_ids.remove(&message.request_id.0);
        let key = call.unwrap_or_else(|| self.insert_peer_call(message, stream));
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
            None => self.insert_peer_call(&message, stream),
        };
        if let Some(call) = self.call_mut(key) {
            call.counted = true;
            call.announced = true;
        }
        self.open_peer = self.open_peer.saturating_add(1);
        self.note_taken_on(id, key);
        self.note_deadline(key, deadline);
        self.statistics.requests_in = self.statistics.requests_in.saturating_add(1);
        let ended = call.is_none() || message.flags.contains(Flags::STREAM_END);
        self.admitted = self.admitted.saturating_add(1);
        self.events.push_back(Event::Request(Incoming {
            call: key,
            answered: id.0 != 0 || call.is_some(),
            owns_stream: call.is_some(),
            message,
            ended,
            deadline,
        }));
        self.signal_readable(key); // elements may have come while the request waited
    }

    /// The request runs: its ID is taken, and a shutdown names it or a later one.
    fn note_taken_on(&mut self, id: RequestId, key: CallKey) {
        if id.0 == 0 {
            return;
        }
        self.peer_ids.insert(id.0, PeerId::Open(key.index));
        // IDs rise and wrap: the later of two is less than half the circle ahead.
        if self
            .highest_peer_request
            .is_none_or(|highest| id.0.wrapping_sub(highest) < u32::MAX / 2)
        {
            self.highest_peer_request = Some(id.0);
        }
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
        let outer = call.unwrap_or_else(|| self.insert_peer_call(message, stream));
        self.note_taken_on(message.request_id, outer);
        let place = self.batches.insert(Batch {
            outer,
            members: Vec::with_capacity(count),
            answers: vec![None; count],
            missing: count,
            bytes: 4,
        });
        let wide = u32::try_from(place).unwrap_or(u32::MAX);
        if let Some(call) = self.call_mut(outer) {
            call.gathers = Some(wide);
        }
        // All members before the first answer, which could complete the batch.
        let mut admitted = Vec::with_capacity(count);
        for (position, inner) in (0_u32..).zip(batch.messages) {
            let own = inner
                .ttl
                .to_duration()
                .map(|budget| Timestamp(now.0.saturating_add(micros(budget))));
            let inner_deadline = match (own, deadline) {
                (Some(own), Some(outer)) => Some(own.min(outer)),
                (own, outer) => own.or(outer),
            };
            let key = self.insert_peer_call(&inner, stream);
            if let Some(call) = self.call_mut(key) {
                call.member = Some((wide, position));
                call.owns_stream = false;
                call.streams = false;
                call.counted = true;
            }
            self.open_peer = self.open_peer.saturating_add(1);
            if let Some(batch) = self.batches.get_mut(place) {
                batch.members.push(key);
            }
            admitted.push((key, inner, inner_deadline));
        }
        for (key, inner, inner_deadline) in admitted {
            if let Err(error) = self.judge_alone(now, &inner, inner_deadline) {
                self.statistics.requests_refused =
                    self.statistics.requests_refused.saturating_add(1);
                self.respond(now, key, Answer::Error(error));
                continue;
            }
            if let Some(call) = self.call_mut(key) {
                call.announced = true;
            }
            self.note_deadline(key, inner_deadline);
            self.statistics.requests_in = self.statistics.requests_in.saturating_add(1);
            let incoming = Incoming {
                call: key,
                answered: message.request_id.0 != 0 || call.is_some(),
                owns_stream: false,
                message: inner,
                ended: true,
                deadline: inner_deadline,
            };
            self.admitted = self.admitted.saturating_add(1);
            self.events.push_back(Event::Request(incoming));
        }
    }

    /// Answers a call of the peer's and ends it. Nothing happens if it was cancelled or has expired meanwhile.
    pub fn respond(&mut self, now: Timestamp, key: CallKey, answer: Answer) {
        let Some(call) = self.call_ref(key).filter(|call| !call.local) else {
            return;
        };
        let (id, stream, owns_stream, member, priority) = (
            call.request_id,
            call.stream,
            call.owns_stream,
            call.member,
            call.priority,
        );
        if id.0 == 0 && member.is_none() && !owns_stream {
            self.remove_call(key); // nobody waits for the answer
            return;
        }
        let mut message = self.answer_message(now, answer);
        if let Err(error) = self.judge_answer(&message) {
            message = self.answer_message(now, Answer::Error(error));
        }
        message.priority = priority;
        message.request_id = id;
        if let Some((place, position)) = member {
            self.remove_call(key);
            self.gather(now, place, position, message);
            return;
        }
        self.send_answer(stream, owns_stream, &mut message);
        self.remove_call(key);
    }

    /// Whether an answer can be sent; otherwise what the caller is told instead.
    fn judge_answer(&self, message: &Message) -> Result<(), ErrorRecord> {
        let (code, text) = match self.judge_size(message) {
            Err(Oversize::Message { len, limit }) => (
                ErrorCode::MESSAGE_TOO_LARGE,
                format!("the answer has {len} bytes, the caller takes {limit}"),
            ),
            Err(Oversize::Context { len, limit }) => (
                ErrorCode::CONTEXT_TOO_LARGE,
                format!("the answer's context has {len} bytes, the limit is {limit}"),
            ),
            Err(Oversize::Routing { len, limit }) => (
                ErrorCode::ROUTING_TOO_LARGE,
                format!("the answer's routing has {len} bytes, the limit is {limit}"),
            ),
            Ok(()) => {
                let waiting = self.queued_bytes();
                let limit = self.config.max_answer_bytes;
                if message.kind == MessageType::ERROR
                    || waiting.saturating_add(message.encoded_len()) <= limit
                {
                    return Ok(());
                }
                (
                    ErrorCode::RESOURCE_EXHAUSTED,
                    format!("{waiting} bytes of answers wait to be read, the limit is {limit}"),
                )
            }
        };
        Err(ErrorRecord::new(code, Text::from(text)))
    }

    fn send_answer(&mut self, stream: StreamId, owns_stream: bool, message: &mut Message) {
        if owns_stream {
            message.flags |= Flags::STREAM_END;
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
            // Too large for the shared stream: on one of its own. The caller ends its other direction when it has the answer.
            message.flags |= Flags::STREAM_END;
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
                let record = fitted(record, self.error_max());
                let mut payload = BytesMut::with_capacity(record.encoded_len());
                record.encode(&mut payload);
                self.stamped(now, MessageType::ERROR, payload.freeze())
            }
        }
    }

    /// Longest error record that the peer takes in a message.
    fn error_max(&self) -> usize {
        usize::try_from(self.peer_limits.max_message)
            .unwrap_or(usize::MAX)
            .saturating_sub(Message::HEADER_LEN)
    }

    /// Puts a member's answer into its batch, and sends the batch when it is complete.
    fn gather(&mut self, now: Timestamp, place: u32, position: u32, mut message: Message) {
        let limit = usize::try_from(self.peer_limits.max_message).unwrap_or(usize::MAX);
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        let Some(batch) = self.batches.get(place) else {
            return;
        };
        // Whatever the others say, there has to be room to say that they do not fit.
        let others = batch.missing.saturating_sub(1).saturating_mul(SHORT_ERROR);
        let whole = batch
            .bytes
            .saturating_add(message.encoded_len())
            .saturating_add(others)
            .saturating_add(Message::HEADER_LEN);
        if whole > limit {
            let id = message.request_id;
            let error = ErrorRecord::new(ErrorCode::MESSAGE_TOO_LARGE, Text::new());
            message = self.answer_message(now, Answer::Error(error));
            message.request_id = id;
        }
        let Some(batch) = self.batches.get_mut(place) else {
            return;
        };
        batch.bytes = batch.bytes.saturating_add(message.encoded_len());
        let position = usize::try_from(position).unwrap_or(usize::MAX);
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
            return;
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

    /// Whether [`Session::send`] would take an element now, and how many bytes there is room for before it blocks;
    /// [`Event::Writable`] follows after [`SendError::Blocked`].
    ///
    /// # Errors
    ///
    /// What [`Session::send`] would fail with, but for the element's size.
    pub fn can_send(&mut self, key: CallKey) -> Result<usize, SendError> {
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
        let queued = self
            .stream_ref(call.stream)
            .map_or(0, |stream| stream.send.queued_bytes);
        let congested = self.is_congested();
        if congested || queued >= self.config.max_stream_queued_bytes {
            self.congested |= congested;
            if let Some(call) = self.call_mut(key) {
                call.wants_writable = true;
            }
            return Err(SendError::Blocked);
        }
        let room = self
            .config
            .max_queued_bytes
            .saturating_sub(self.queued_bytes());
        Ok(room.min(self.config.max_stream_queued_bytes.saturating_sub(queued)))
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
    pub fn send(
        &mut self,
        now: Timestamp,
        key: CallKey,
        element: Outgoing,
    ) -> Result<(), SendError> {
        self.can_send(key)?;
        let id = self.own_stream(key).ok_or(SendError::Closed)?;
        let call = self.call_ref(key).ok_or(SendError::Closed)?;
        let (request_id, priority) = (call.request_id, call.priority);
        let mut message = self.stamped(now, MessageType::STREAM, element.payload);
        message.request_id = request_id;
        message.flags = Self::own_flags(element.flags);
        message.priority = priority;
        message.routing = element.routing;
        message.context = element.context;
        self.judge_size(&message).map_err(|size| match size {
            Oversize::Message { len, limit } => SendError::MessageTooLarge { len, limit },
            Oversize::Context { len, limit } => SendError::ContextTooLarge { len, limit },
            Oversize::Routing { len, limit } => SendError::RoutingTooLarge { len, limit },
        })?;
        self.emit(id, &message, false);
        Ok(())
    }

    /// Ends our direction of a streaming call; with an error where it did not end well. The answerer's end ends the call.
    pub fn finish(&mut self, now: Timestamp, key: CallKey, error: Option<ErrorRecord>) {
        let Some(call) = self
            .call_mut(key)
            .filter(|call| !call.send_ended && call.owns_stream)
        else {
            return;
        };
        call.send_ended = true;
        let (local, request_id, priority) = (call.local, call.request_id, call.priority);
        let Some(id) = self.own_stream(key) else {
            return;
        };
        let mut message = match error {
            None => self.stamped(now, MessageType::STREAM_END, Bytes::new()),
            Some(error) => {
                let error = fitted(error, self.error_max());
                let record = StreamEnd { error: Some(error) };
                let mut payload = BytesMut::with_capacity(record.encoded_len());
                record.encode(&mut payload);
                self.stamped(now, MessageType::STREAM_END, payload.freeze())
            }
        };
        message.request_id = request_id;
        message.flags = Flags::STREAM_END;
        message.priority = priority;
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
        let received = call.inbox.pop_front().map(|waiting| waiting.received);
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
        if self.forget_spent(key) {
            return;
        }
        self.give_up(now, key, code);
        if self.call_ref(key).is_some_and(|call| call.local) {
            self.remove_call(key);
        }
    }

    /// Tells the peer that a call of ours is not wanted any more.
    fn give_up(&mut self, now: Timestamp, key: CallKey, code: ErrorCode) {
        let Some(call) = self.call_ref(key).filter(|call| call.local) else {
            return;
        };
        let code = if code == ErrorCode::OK {
            ErrorCode::CANCELLED // an error record has a code
        } else {
            code
        };
        let (id, request_id, priority) = (call.stream, call.request_id, call.priority);
        if call.owns_stream {
            self.drain_inbox(key);
            self.let_go(key, code);
        } else if !self.state.is_closed() {
            let record = ErrorRecord::new(code, Text::new());
            let mut payload = BytesMut::with_capacity(record.encoded_len());
            record.encode(&mut payload);
            let mut message = self.stamped(now, MessageType::ERROR, payload.freeze());
            message.request_id = request_id;
            // Of the request's class, so that it cannot overtake it.
            message.priority = priority;
            self.emit(id, &message, false);
        }
    }

    /// The application is done with a streaming call, whatever its state: an open one of ours is cancelled, one of the peer's
    /// is answered with INTERNAL.
    pub fn release(&mut self, now: Timestamp, key: CallKey) {
        self.forget_spent(key);
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
        let Some(call) = self.call_mut(key).filter(|call| !call.inbox.is_empty()) else {
            return;
        };
        let stream = call.stream;
        let bytes: usize = call
            .inbox
            .take()
            .into_iter()
            .map(|waiting| match waiting.received {
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

    /// The stream of a call that has one to itself, while it is still the call's: when both directions have ended, the ID may serve
    /// another call already, though the application has not read everything yet.
    fn own_stream(&self, key: CallKey) -> Option<StreamId> {
        let id = self.call_ref(key)?.stream;
        let stream = self.stream_ref(id)?;
        (stream.call == Some(key)).then_some(id)
    }

    /// Gives up what is still open of a call's own stream.
    fn let_go(&mut self, key: CallKey, code: ErrorCode) {
        let Some(id) = self.own_stream(key) else {
            return;
        };
        if let Some(stream) = self.stream_mut(id) {
            stream.call = None;
        }
        self.abandon(id, code);
    }

    fn remove_call(&mut self, key: CallKey) {
        if self.call_ref(key).is_some() {
            self.retire(key);
            if let Ok(index) = usize::try_from(key.index) {
                self.calls.try_remove(index);
            }
        }
    }

    /// Ends a call of ours whose answer now waits among the events; its index stays taken until the answer is taken.
    fn spend(&mut self, key: CallKey) {
        self.retire(key);
        if let Some(call) = self.call_mut(key) {
            call.spent = true;
        }
    }

    /// Forgets a call whose answer waits, or was just taken. False where there is none.
    pub(super) fn forget_spent(&mut self, key: CallKey) -> bool {
        let Ok(index) = usize::try_from(key.index) else {
            return false;
        };
        let spent = self
            .calls
            .get(index)
            .is_some_and(|call| call.serial == key.serial && call.spent);
        spent && self.calls.try_remove(index).is_some()
    }

    /// Takes a call out of every table but its own.
    fn retire(&mut self, key: CallKey) {
        self.drain_inbox(key);
        let Some(call) = self.call_mut(key) else {
            return;
        };
        let counted = core::mem::take(&mut call.counted);
        let (local, id, member) = (call.local, call.request_id, call.member.is_some());
        if local {
            self.local_ids.remove(id);
            self.open_local = self.open_local.saturating_sub(counted.into());
            return;
        }
        self.open_peer = self.open_peer.saturating_sub(counted.into());
        if !member
            && let Entry::Occupied(entry) = self.peer_ids.entry(id.0)
            && matches!(entry.get(), PeerId::Open(index) if *index == key.index)
        {
            entry.remove();
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
        let event = if let Some(count) = self.call_ref(key).and_then(|call| call.batch_len) {
            let whole = message.flags.contains(Flags::BATCH_REQUEST);
            let batch = BatchRecord::decode(message.payload, &self.message_limits())?;
            if !whole || batch.messages.len() != count {
                let text = format!("{} answers to a batch of {count}", batch.messages.len());
                let error = ErrorRecord::new(ErrorCode::INTERNAL, Text::from(text));
                self.finish_unary_error(key, error);
                return Ok(());
            }
            let mut answers = Vec::with_capacity(count);
            for answer in batch.messages {
                answers.push(match answer.kind {
                    MessageType::RESPONSE => Ok(answer),
                    MessageType::ERROR => Err(ErrorRecord::decode(answer.payload)?),
                    kind => {
                        return Err(SessionError::MisplacedMessage {
                            kind,
                            stream: StreamId(0),
                        });
                    }
                });
            }
            Event::BatchAnswer(key, answers)
        } else {
            Event::Answer(key, Ok(message))
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
        self.events.push_back(Event::Answer(key, Err(error)));
    }

    fn end_unary(&mut self, key: CallKey) {
        self.let_go(key, ErrorCode::CANCELLED);
        self.spend(key);
    }

    /// Ends a call of ours with an error, and its stream if it has one.
    pub(super) fn end_local(&mut self, key: CallKey, error: ErrorRecord) {
        if self.call_ref(key).is_some_and(|call| call.streams) {
            let code = error.code;
            self.stop_sender(key, code);
            self.deliver(key, Received::End(Some(error)));
            self.let_go(key, code);
        } else {
            self.finish_unary_error(key, error);
        }
    }

    /// Ends a call from this side's view, without a word to the peer: the session is over.
    pub(super) fn fail_call(&mut self, key: CallKey, error: &ErrorRecord) {
        let Some(call) = self.call_ref(key) else {
            return;
        };
        match (call.local, call.streams, call.announced) {
            (true, false, _) => {
                self.spend(key);
                self.events
                    .push_back(Event::Answer(key, Err(error.clone())));
            }
            (true, true, _) => {
                self.stop_sender(key, error.code);
                self.deliver(key, Received::End(Some(error.clone())));
            }
            (false, _, announced) => {
                self.remove_call(key);
                if announced {
                    self.events.push_back(Event::Cancelled(key, error.code));
                }
            }
        }
    }

    /// The caller does not want the answer any more, and knows that none comes.
    pub(super) fn cancel_peer_call(&mut self, key: CallKey, code: ErrorCode) {
        let Some(call) = self.call_ref(key).filter(|call| !call.local) else {
            return;
        };
        let (gathers, announced) = (call.gathers, call.announced);
        self.let_go(key, code);
        self.remove_call(key);
        if announced {
            self.events.push_back(Event::Cancelled(key, code));
        }
        let Some(batch) = gathers
            .and_then(|place| usize::try_from(place).ok())
            .and_then(|place| self.batches.try_remove(place))
        else {
            return;
        };
        for member in batch.members {
            if self.call_ref(member).is_some() {
                self.remove_call(member);
                self.events.push_back(Event::Cancelled(member, code));
            }
        }
    }

    pub(super) fn keys_where(&self, wanted: impl Fn(&Call) -> bool) -> Vec<CallKey> {
        self.calls
            .iter()
            .filter(|(_, call)| !call.spent && wanted(call))
            .filter_map(|(index, call)| {
                Some(CallKey {
                    index: u32::try_from(index).ok()?,
                    serial: call.serial,
                })
            })
            .collect()
    }

    /// Ends every call whose time is up.
    pub(super) fn expire_calls(&mut self, now: Timestamp) {
        const CODE: ErrorCode = ErrorCode::DEADLINE_EXCEEDED;
        let error = |text| ErrorRecord::new(CODE, Text::from_static(text));
        if self.next_deadline.is_none_or(|next| next > now) {
            return;
        }
        // A look at every call, and no more often than one ends: cheaper than an order that each of them has to keep.
        let mut due = Vec::new();
        self.next_deadline = None;
        for (index, call) in &self.calls {
            let Some(deadline) = call.deadline else {
                continue;
            };
            if call.spent || (call.local && call.recv_ended) {
                continue;
            }
            if deadline > now {
                let next = self.next_deadline.unwrap_or(deadline);
                self.next_deadline = Some(next.min(deadline));
            } else if let Ok(index) = u32::try_from(index) {
                let serial = call.serial;
                due.push((deadline, CallKey { index, serial }));
            }
        }
        due.sort_unstable();
        for (_, key) in due {
            match self.call_ref(key).map(|call| (call.local, call.streams)) {
                Some((true, false)) => {
                    self.give_up(now, key, CODE);
                    self.spend(key);
                    let error = error("no answer came in time");
                    self.events.push_back(Event::Answer(key, Err(error)));
                }
                Some((true, true)) => self.end_local(key, error("the stream did not end in time")),
                Some((false, _)) => {
                    // Only calls that were handed out have a deadline here.
                    self.events.push_back(Event::Cancelled(key, CODE));
                    self.respond(now, key, Answer::Error(error("the time budget was spent")));
                }
                None => {}
            }
        }
    }

    /// The peer did not take on requests after `last`: they did not run and may be tried elsewhere.
    pub(super) fn fail_calls_after(&mut self, last: RequestId) {
        let late = self.keys_where(|call| {
            call.local
                && call.counted
                && (last.0 == 0
                    || call.request_id.0.wrapping_sub(last.0).wrapping_sub(1) < u32::MAX / 2)
        });
        for key in late {
            let error = ErrorRecord::new(
                ErrorCode::SHUTTING_DOWN,
                Text::from_static("the peer is shutting down; the request did not run"),
            );
            self.end_local(key, error);
        }
    }
}

/// What of a message is larger than the peer takes, in bytes.
enum Oversize {
    Message { len: usize, limit: usize },
    Context { len: usize, limit: usize },
    Routing { len: usize, limit: usize },
}
