//! The session: everything that happens between two endpoints, whatever carries it. Spec: core.

mod calls;
mod control;
mod receive;
mod resume;
mod transmit;

use std::collections::VecDeque;

use bytes::Bytes;
use remus_wire::{
    AuthenticationRecord, ErrorCode, ErrorRecord, Features, Limits, Load, Message, MessageLimits,
    RequestId, Shutdown, StreamId, Text, Timestamp, Version, VersionRecord,
};
use slab::Slab;

use crate::assembly::Spares;
use crate::call::{Batch, Call, CallKey, LocalIds, PeerIds};
use crate::clock::HybridClock;
use crate::config::{ConfigError, INITIAL_LIMITS, SessionConfig};
use crate::error::{CloseReason, SessionError};
use crate::event::{Event, Grant, Negotiated, Side};
use crate::lane::{LANES_MAX, Lane, LaneId};
use crate::liveness::{Liveness, PathEstimate};
use crate::resumption::Resumption;
use crate::state::{Input, State};
use crate::stream::Stream;

/// Control messages, idle frames and resets that may come at once, and how many more each second. Spec: core §8.
///
/// A lively session needs a heartbeat a second and a query now and then; a thousand at once is a burst of resets after a
/// user closed a page, more is an attack.
const CONTROL_BURST: u32 = 1024;
const CONTROL_PER_SECOND: u64 = 256;
const CONTROL_REFILL_US: u64 = 1_000_000 / CONTROL_PER_SECOND;

/// Bytes of control traffic that may wait on a lane because the peer does not read.
///
/// All of it answers something that the peer sent, so a peer that goes on sending without reading could make it grow for ever.
/// 1 MiB is a burst of the largest directory answers; beyond it the session ends.
const CONTROL_QUEUED_MAX: usize = 1024 * 1024;

/// Events that may wait before no more input is taken.
///
/// A read of 64 KiB holds at most 1,524 messages, so a driver that takes the events after each read never meets this.
const EVENTS_MAX: usize = 4096;

/// Requests that are admitted as they come, before the application takes them.
///
/// As many as one read of a packet brings; the rest waits undecided, so that the room for answers is judged when there is a turn for it.
const ADMITTED_MAX: usize = 64;

/// Requests that wait for the application before the next ones are copied out of the carrier's buffer.
///
/// A message is a slice of what was read, and keeps all of it in memory. That is right for one that is handed out at once; a peer that
/// sends small messages in large reads and is not served could hold a thousand times its credit.
const SLICES_MAX: usize = 16;

/// Reads from which elements may wait in one inbox before the next ones are copied, for the same reason.
///
/// Counted from the first that waits, whatever the reads between brought, so it holds no more of them than this. Elements of one read
/// hold the same memory, and share it however many they are.
const READS_HELD_MAX: u64 = 16;

/// Longest reason and redirect of a shutdown, in bytes; longer ones are cut.
const REASON_MAX: usize = 1024;

/// Datagrams that may wait to leave. They carry only what may be lost, so the oldest goes first.
const DATAGRAMS_MAX: usize = 8;

/// Counters of one session since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Requests handed to the application.
    pub requests_in: u64,
    /// Requests refused before the application saw them.
    pub requests_refused: u64,
    /// Requests without an answer that found no room and were dropped.
    pub requests_dropped: u64,
    /// Calls made.
    pub calls_out: u64,
    /// Bytes of frames taken in.
    pub bytes_in: u64,
    /// Bytes of frames handed to the carrier.
    pub bytes_out: u64,
    /// How often the session went on on another carrier.
    pub resumptions: u64,
    /// Bytes that were sent again for that.
    pub replayed_bytes: u64,
    /// Timestamps of the peer that were more than [`CLOCK_SKEW_MAX`](crate::CLOCK_SKEW_MAX) ahead.
    pub timestamps_clamped: u64,
}

/// One session, of either side. See the [crate documentation](crate) for the order of calls.
#[derive(Debug)]
pub struct Session {
    side: Side,
    config: SessionConfig,
    state: State,
    clock: HybridClock,
    live: Liveness,
    load: Load,
    handshake_deadline: Timestamp,

    version: Version,
    features: Features,
    peer_limits: Limits,
    peer_known: bool,
    negotiated: Option<Box<Negotiated>>,
    grant: Grant,
    /// Acceptor: the application has not decided who the client is. The first time, nothing more is taken in until then.
    deciding: bool,
    /// Acceptor: the application has not answered the query of the first flight; nothing more is taken in.
    asked: Option<RequestId>,
    /// Acceptor: whether the client has been challenged. The rest of its first flight then comes before its answer.
    challenged: bool,
    /// Acceptor: that rest, at most the query and the schema offer.
    held: VecDeque<Message>,
    /// Client: an authentication record is on its way and not answered.
    authenticating: bool,
    /// Client: the record to send when that is over. The latest wins.
    renewal: Option<AuthenticationRecord>,
    offer_taken: Option<Box<VersionRecord>>,

    lanes: Vec<Lane>,
    dirty: u32,
    streams: Vec<Option<Box<Stream>>>,
    open_streams: usize,
    /// No stream ID of ours below this number (of streams, not the ID) is free.
    free_from: u32,
    /// Everything but streams 0, 1 and 2 counts against it. See decision 0003.
    send_window: SendWindow,
    /// Streams that wait for credit of the session.
    parked: VecDeque<StreamId>,
    recv_window: SessionWindow,
    assembling: usize,
    /// Memory for messages that come in parts.
    spares: Spares,
    /// How often the carrier brought something.
    reads: u64,
    credit_due: VecDeque<StreamId>,

    calls: Slab<Call>,
    serial: u32,
    local_ids: LocalIds,
    peer_ids: PeerIds,
    open_local: usize,
    open_peer: usize,
    /// The latest of the peer's requests that was handed out.
    highest_peer_request: Option<u32>,
    batches: Slab<Batch>,
    requests: VecDeque<Pending>,
    events: VecDeque<Event>,
    /// Requests among the events.
    admitted: usize,
    datagrams: VecDeque<Bytes>,
    carrier_has_datagrams: bool,
    /// The smallest round trip that the carrier has measured, in µs; `u64::MAX` where it measures none.
    round_trip_us: u64,
    queued_bytes: usize,
    /// Bytes that stand ready on all lanes.
    ready_bytes: usize,
    congested: bool,

    control_tokens: u32,
    control_refilled: Timestamp,
    /// Control bytes that wait on a lane, where they are more than the limit.
    overflow: Option<usize>,
    /// No call ends for want of an answer before this. A call that ended early may leave it too low, for one look in vain.
    next_deadline: Option<Timestamp>,
    armed: Option<Timestamp>,
    closing: Option<Closing>,
    query_id: Option<u32>,
    resumption: Resumption,
    statistics: Statistics,
}

/// Credit that the peer grants for the session as a whole.
#[derive(Debug)]
struct SendWindow {
    offset: u64,
    limit: u64,
}

impl SendWindow {
    fn credit(&self) -> u64 {
        self.limit.saturating_sub(self.offset)
    }
}

/// Credit that we grant for the session as a whole.
#[derive(Debug)]
struct SessionWindow {
    received: u64,
    consumed: u64,
    granted: u64,
    due: bool,
}

/// A request that has arrived and waits to be handed out.
#[derive(Debug)]
struct Pending {
    /// The call, where it has a stream to itself.
    call: Option<CallKey>,
    stream: StreamId,
    message: Message,
    deadline: Option<Timestamp>,
}

/// What a session holds. Everything is back to zero when every call has ended and both sides have read all that came.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Calls of either side, with those that the application has not released.
    pub calls: usize,
    /// Request IDs of the peer's in use.
    pub peer_ids: usize,
    /// Batches of the peer's whose answers are gathered.
    pub batches: usize,
    /// Streams in use beside the shared ones.
    pub open_streams: usize,
    /// Requests that wait to be handed out.
    pub requests: usize,
    /// Bytes that the headers of half-received messages announce.
    pub assembling: usize,
    /// Bytes that wait to be sent.
    pub queued_bytes: usize,
    /// Bytes received and not yet taken in, shared streams included.
    pub unread_bytes: u64,
    /// Streams that wait for credit of the session.
    pub parked: usize,
}

/// A shutdown under way.
#[derive(Debug)]
struct Closing {
    /// Whether we announced it; otherwise the peer did.
    by_us: bool,
    /// When what is still open is cut off.
    deadline: Timestamp,
    code: ErrorCode,
    reason: String,
    redirect: String,
}

impl Session {
    /// A client. Its whole first flight stands ready at once: offer, capability, authentication, query, schema offer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting is outside its range.
    pub fn client(config: SessionConfig, now: Timestamp) -> Result<Self, ConfigError> {
        let mut session = Self::new(Side::Client, config, now)?;
        session.send_first_flight(now);
        Ok(session)
    }

    /// An acceptor. It says nothing before it has heard the client's offer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting is outside its range.
    pub fn acceptor(config: SessionConfig, now: Timestamp) -> Result<Self, ConfigError> {
        Self::new(Side::Acceptor, config, now)
    }

    fn new(side: Side, config: SessionConfig, now: Timestamp) -> Result<Self, ConfigError> {
        config.validate()?;
        let handshake = u64::try_from(config.handshake_timeout.as_micros()).unwrap_or(u64::MAX);
        let initial = INITIAL_LIMITS;
        let mut streams: Vec<Option<Box<Stream>>> = Vec::new();
        streams.push(None); // stream 0 has no credit and no queue
        for _ in 1..=2 {
            let mut stream = Stream::new(
                LaneId::ZERO,
                initial.stream_window,
                config.limits.stream_window,
            );
            stream.reopen(remus_wire::Priority::ORDINARY.class());
            streams.push(Some(Box::new(stream)));
        }
        let session_window = u64::from(config.limits.session_window);
        Ok(Self {
            side,
            state: State::VersionNegotiation,
            clock: HybridClock::default(),
            live: Liveness::new(now, config.idle_timeout),
            load: Load(0),
            handshake_deadline: Timestamp(now.0.saturating_add(handshake)),
            version: Version::CURRENT,
            features: Features::default(),
            peer_limits: initial,
            peer_known: false,
            negotiated: None,
            grant: Grant::default(),
            deciding: false,
            asked: None,
            challenged: false,
            held: VecDeque::new(),
            authenticating: false,
            renewal: None,
            offer_taken: None,
            lanes: vec![Lane::default()],
            dirty: 0,
            streams,
            open_streams: 0,
            free_from: 0,
            send_window: SendWindow {
                offset: 0,
                limit: initial.session_window.into(),
            },
            parked: VecDeque::new(),
            recv_window: SessionWindow {
                received: 0,
                consumed: 0,
                granted: session_window,
                due: false,
            },
            assembling: 0,
            spares: Spares::default(),
            reads: 0,
            credit_due: VecDeque::new(),
            calls: Slab::new(),
            serial: 0,
            local_ids: LocalIds::new(),
            peer_ids: PeerIds::default(),
            open_local: 0,
            open_peer: 0,
            highest_peer_request: None,
            batches: Slab::new(),
            requests: VecDeque::new(),
            events: VecDeque::new(),
            admitted: 0,
            datagrams: VecDeque::new(),
            carrier_has_datagrams: false,
            round_trip_us: u64::MAX,
            queued_bytes: 0,
            ready_bytes: 0,
            congested: false,
            control_tokens: CONTROL_BURST,
            control_refilled: now,
            overflow: None,
            next_deadline: None,
            armed: None,
            closing: None,
            query_id: None,
            resumption: Resumption::new(
                config.features.contains(Features::RESUMPTION),
                micros(config.resume_window),
                config.max_retained_bytes,
            ),
            statistics: Statistics::default(),
            config,
        })
    }

    /// Which side this is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Where the session stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// What was settled, once the session is active.
    #[must_use]
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_deref()
    }

    /// Whether no more calls can be made because either side has announced its end.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.closing.is_some()
    }

    /// What heartbeats have measured; `None` before the first has come back.
    #[must_use]
    pub fn path(&self) -> Option<PathEstimate> {
        self.live.estimate()
    }

    /// Counters since the start.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics {
            timestamps_clamped: self.clock.clamped(),
            ..self.statistics
        }
    }

    /// How many calls the peer has open here.
    #[must_use]
    pub fn open_peer_calls(&self) -> usize {
        self.open_peer
    }

    /// How many calls this side has open.
    #[must_use]
    pub fn open_local_calls(&self) -> usize {
        self.open_local
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
            .saturating_add(self.ready_bytes)
            .saturating_add(self.resumption.waiting)
    }

    /// Whether so much waits to be sent that requests are not handed out; [`Event::Uncongested`] follows.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.queued_bytes() >= self.config.max_queued_bytes
    }

    /// The smallest round trip that the carrier has measured. Stream windows grow only as far as it makes useful; without it
    /// they grow to their limit.
    pub fn set_round_trip(&mut self, smallest: core::time::Duration) {
        self.round_trip_us = u64::try_from(smallest.as_micros()).unwrap_or(u64::MAX);
    }

    /// Whether the carrier has datagrams; heartbeats then travel in them where both sides agreed to it.
    pub fn set_datagrams(&mut self, available: bool) {
        self.carrier_has_datagrams = available;
    }

    /// Tells the peer, with the next heartbeat, how busy this side is.
    pub fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    /// Whether input is taken now. False while the first flight waits for [`Session::grant`] or [`Session::answer_query`], while
    /// more events wait than a driver that takes them lets pile up, and at the end.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let waiting = (self.deciding && !self.state.is_open()) || self.asked.is_some();
        !waiting && self.events.len() < EVENTS_MAX && !self.state.is_closed()
    }

    /// Whether [`Session::poll_event`] has something.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
            || !(self.requests.is_empty() || !self.state.is_open() || self.is_congested())
    }

    /// The next thing that happened.
    ///
    /// Requests are handed out only while there is room for their answers (`max_queued_bytes`), and count as taken in only
    /// then: a peer that does not read its answers runs out of credit. Spec: core §5.
    pub fn poll_event(&mut self, now: Timestamp) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                if self.is_current(&event) {
                    return Some(event);
                }
                continue;
            }
            if self.requests.is_empty() || !self.state.is_open() {
                self.finish_if_drained();
                if self.events.is_empty() {
                    return None;
                }
                continue;
            }
            if self.is_congested() {
                self.congested = true;
                return None;
            }
            if let Some(pending) = self.requests.pop_front() {
                self.admit_waiting(now, pending);
            }
        }
    }

    /// Whether an event still means something: what was given up meanwhile is not heard of again.
    fn is_current(&mut self, event: &Event) -> bool {
        match event {
            Event::Answer(key, _) | Event::BatchAnswer(key, _) => self.forget_spent(*key),
            Event::Readable(key) | Event::Writable(key) => self.call_ref(*key).is_some(),
            Event::Request(incoming) => {
                self.admitted = self.admitted.saturating_sub(1);
                self.call_ref(incoming.call).is_some()
            }
            _ => true,
        }
    }

    /// When to call [`Session::handle_timeout`] if nothing happens before.
    pub fn poll_timeout(&mut self) -> Option<Timestamp> {
        let at = self.next_timeout();
        self.armed = at;
        at
    }

    /// Whether the time last given by [`Session::poll_timeout`] has become too late.
    #[must_use]
    pub fn needs_rearm(&self) -> bool {
        match (self.next_timeout(), self.armed) {
            (Some(next), Some(armed)) => next < armed,
            (next, None) => next.is_some(),
            (None, Some(_)) => false,
        }
    }

    fn next_timeout(&self) -> Option<Timestamp> {
        if self.state.is_closed() {
            return None;
        }
        let mut at = if let Some(at) = self.resume_timeout() {
            at
        } else if self.state.is_open() {
            self.live.expires_at().min(self.live.probe_at())
        } else {
            self.handshake_deadline
        };
        if let Some(deadline) = self.next_deadline {
            at = at.min(deadline);
        }
        if let Some(closing) = &self.closing {
            at = at.min(closing.deadline);
        }
        Some(at)
    }

    /// Does what is due: deadlines, heartbeats, silence, the end of a grace.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if self.state.is_closed() {
            return;
        }
        let attached = self.resumption.is_attached();
        if !attached && self.handle_resume_timeout(now) {
            return;
        }
        if attached && self.state.is_open() && now >= self.live.expires_at() {
            let error = SessionError::IdleTimeout(self.live.idle_ms());
            if self.is_resumable() {
                self.suspend(now, error.code(), &error.to_string());
            } else {
                self.fail(&error);
                return;
            }
        }
        if !self.state.is_open() && now >= self.handshake_deadline {
            let limit =
                u64::try_from(self.config.handshake_timeout.as_millis()).unwrap_or(u64::MAX);
            self.fail(&SessionError::HandshakeTimeout(limit));
            return;
        }
        if let Some(closing) = &self.closing
            && now >= closing.deadline
        {
            let (code, reason, by_peer) = (closing.code, closing.reason.clone(), !closing.by_us);
            self.close(
                CloseReason {
                    code,
                    reason,
                    by_peer,
                    refused: false,
                },
                None,
            );
            return;
        }
        self.expire_calls(now);
        if self.resumption.is_attached() && self.state.is_open() && now >= self.live.probe_at() {
            self.spares.let_go();
            self.send_probe(now);
        }
    }

    /// Announces the end: accepted calls finish within `grace`, later ones are refused as retryable.
    ///
    /// The session closes when the last call of either side has ended and all has left, at the latest when the grace is over. Before
    /// the session is active an acceptor refuses it, and a client waits for the answers to its early calls.
    ///
    /// `reason` and `url` are cut to 1 KiB.
    pub fn shut_down(
        &mut self,
        now: Timestamp,
        code: ErrorCode,
        reason: &str,
        url: &str,
        grace: core::time::Duration,
    ) {
        if self.state.is_closed() || self.closing.as_ref().is_some_and(|closing| closing.by_us) {
            return;
        }
        let (reason, url) = (cut(reason), cut(url));
        if self.is_suspended() {
            self.abort(code, reason); // nobody is there to hear of it
            return;
        }
        self.closing = Some(Closing {
            by_us: true,
            deadline: Timestamp(now.0.saturating_add(micros(grace))),
            code,
            reason: reason.to_owned(),
            redirect: url.to_owned(),
        });
        if self.state.is_open() {
            self.announce_end(now);
        } else if self.side == Side::Acceptor {
            self.refuse_session(now, code, reason);
        } else if self.open_local == 0 {
            self.abort(code, reason);
        }
    }

    /// Tells the peer that we go, once calls could flow.
    fn announce_end(&mut self, now: Timestamp) {
        let Some(closing) = &self.closing else {
            return;
        };
        let record = Shutdown {
            code: closing.code,
            grace: core::time::Duration::from_micros(closing.deadline.0.saturating_sub(now.0)),
            last_request: RequestId(self.highest_peer_request.unwrap_or(0)),
            reason: Text::from(closing.reason.as_str()),
            redirect: Text::from(closing.redirect.as_str()),
        };
        self.send_shutdown(now, &record);
        if let Ok(next) = self.state.on(Input::Shutdown) {
            self.state = next;
        }
        self.finish_if_drained();
    }

    /// Ends the session at once. Open calls fail as [`CloseReason::to_record`] says.
    pub fn abort(&mut self, code: ErrorCode, reason: &str) {
        self.close(
            CloseReason {
                code,
                reason: reason.to_owned(),
                by_peer: false,
                refused: false,
            },
            None,
        );
    }

    /// The carrier ended, and the session with it: with the peer's code and reason if it gave them.
    ///
    /// For a carrier that was lost, and a session that may be resumed on another, call [`Session::suspend`] instead.
    pub fn carrier_lost(&mut self, code: ErrorCode, reason: &str) {
        self.close(
            CloseReason {
                code,
                reason: reason.to_owned(),
                by_peer: true,
                refused: false,
            },
            None,
        );
    }

    /// The acceptor refused the carrier of this session: nothing that was called ran, and open calls fail with `code` as it is.
    pub fn carrier_refused(&mut self, code: ErrorCode, reason: &str) {
        self.close(
            CloseReason {
                code,
                reason: reason.to_owned(),
                by_peer: true,
                refused: !self.state.is_open(),
            },
            None,
        );
    }

    /// Ends the session for the peer's fault; the driver tells the peer code and reason by closing the carrier with them.
    fn fail(&mut self, error: &SessionError) {
        self.abort(error.code(), &error.to_string());
    }

    /// `calls`: what open calls fail with, where the reason does not say it well enough.
    fn close(&mut self, reason: CloseReason, calls: Option<ErrorRecord>) {
        if self.state.is_closed() {
            return;
        }
        let Ok(next) = self.state.on(Input::Failed) else {
            return;
        };
        self.state = next;
        let lost = calls.unwrap_or_else(|| reason.to_record());
        for key in self.keys_where(|_| true) {
            self.fail_call(key, &lost);
        }
        self.requests.clear();
        self.peer_ids.clear();
        self.batches.clear();
        self.next_deadline = None;
        // What stands ready on the lanes still leaves, a refusal for example; what waited for its turn does not.
        for stream in self.streams.iter_mut().flatten() {
            stream.send.clear();
            stream.recv.assembly = None;
            stream.call = None;
        }
        self.queued_bytes = 0;
        self.assembling = 0;
        self.drop_logs();
        self.events.push_back(Event::Closed(reason));
        self.dirty = u32::MAX;
    }

    /// Ends a shutdown of ours once nothing is open and everything has left. Who did not announce the end leaves it to the
    /// other side to close, because that one knows best when it has all its answers.
    fn finish_if_drained(&mut self) {
        let Some(closing) = self.closing.as_ref().filter(|closing| closing.by_us) else {
            return;
        };
        if self.open_local > 0
            || self.open_peer > 0
            || !self.requests.is_empty()
            || (self.queued_bytes() > 0 && self.state.is_open())
        {
            return;
        }
        let (code, reason) = (closing.code, closing.reason.clone());
        let Ok(next) = self.state.on(Input::Drained) else {
            self.abort(code, &reason); // before calls could flow
            return;
        };
        self.state = next;
        self.drop_logs();
        self.events.push_back(Event::Closed(CloseReason {
            code,
            reason,
            by_peer: false,
            refused: false,
        }));
        self.dirty = u32::MAX;
    }

    /// What the session holds now.
    #[doc(hidden)]
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let unread = |stream: &Stream| stream.recv.offset.saturating_sub(stream.recv.consumed);
        Occupancy {
            calls: self.calls.len(),
            peer_ids: self.peer_ids.len(),
            batches: self.batches.len(),
            open_streams: self.open_streams,
            requests: self.requests.len(),
            assembling: self.assembling,
            queued_bytes: self.queued_bytes(),
            unread_bytes: self
                .streams
                .iter()
                .flatten()
                .map(|stream| unread(stream))
                .sum(),
            parked: self.parked.len(),
        }
    }

    /// How far we have sent, and may send, on each stream; 0 stands for the session.
    #[doc(hidden)]
    #[must_use]
    pub fn credits_taken(&self) -> Vec<(u16, (u64, u64))> {
        let session = (self.send_window.offset, self.send_window.limit);
        let streams = (0_u16..).zip(&self.streams).filter_map(|(id, stream)| {
            let send = &stream.as_ref()?.send;
            Some((id, (send.offset, send.limit)))
        });
        core::iter::once((0, session)).chain(streams).collect()
    }

    /// How far the peer has sent, and may send, on each stream; 0 stands for the session.
    #[doc(hidden)]
    #[must_use]
    pub fn credits_given(&self) -> Vec<(u16, (u64, u64))> {
        let session = (self.recv_window.received, self.recv_window.granted);
        let streams = (0_u16..).zip(&self.streams).filter_map(|(id, stream)| {
            let recv = &stream.as_ref()?.recv;
            Some((id, (recv.offset, recv.granted)))
        });
        core::iter::once((0, session)).chain(streams).collect()
    }

    /// Recounts everything that is counted as it changes, and checks the invariants. For tests: it looks at every table.
    ///
    /// # Errors
    ///
    /// What does not hold.
    #[doc(hidden)]
    pub fn check(&self) -> Result<(), String> {
        let streams = || {
            (0_u16..)
                .zip(&self.streams)
                .filter_map(|(id, stream)| Some((id, stream.as_deref()?)))
        };
        let own = || streams().filter(|(id, _)| !Stream::is_shared(StreamId(*id)));
        let calls = || self.calls.iter().map(|(_, call)| call);
        let expect = |what: &str, counted: u64, found: u64| {
            if counted == found {
                Ok(())
            } else {
                Err(format!("{what}: {counted} counted, {found} found"))
            }
        };
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        for (id, stream) in streams() {
            let (send, recv) = (&stream.send, &stream.recv);
            if send.offset > send.limit {
                return Err(format!(
                    "stream {id}: sent {} of {}",
                    send.offset, send.limit
                ));
            }
            if recv.consumed > recv.offset || recv.offset > recv.granted {
                return Err(format!(
                    "stream {id}: {} <= {} <= {} does not hold",
                    recv.consumed, recv.offset, recv.granted
                ));
            }
            if !stream.open && (!send.is_idle() || recv.assembly.is_some() || stream.call.is_some())
            {
                return Err(format!("stream {id} is closed and holds something"));
            }
            if stream.is_done() {
                return Err(format!("stream {id} has ended and is still open"));
            }
            if let Some(call) = stream.call
                && self.call_ref(call).is_none_or(|call| call.stream.0 != id)
            {
                return Err(format!("stream {id} belongs to a call that is not its own"));
            }
        }
        let w = &self.recv_window;
        if w.consumed > w.received || w.received > w.granted {
            return Err(format!(
                "session: {} <= {} <= {} does not hold",
                w.consumed, w.received, w.granted
            ));
        }
        if self.send_window.offset > self.send_window.limit {
            return Err("session: sent more than was granted".into());
        }
        let sum = |of: fn(&Stream) -> u64| own().map(|(_, stream)| of(stream)).sum::<u64>();
        // What a stream that was refused for its number carried is counted by no stream.
        if w.received.saturating_sub(w.consumed)
            != sum(|stream| stream.recv.offset.saturating_sub(stream.recv.consumed))
        {
            return Err("session credit is not what its streams hold".into());
        }
        expect(
            "sent",
            self.send_window.offset,
            sum(|stream| stream.send.offset),
        )?;
        expect(
            "open streams",
            wide(self.open_streams),
            wide(own().filter(|(_, stream)| stream.open).count()),
        )?;
        expect(
            "queued bytes",
            wide(self.queued_bytes),
            streams()
                .map(|(_, stream)| wide(stream.send.queued_bytes))
                .sum(),
        )?;
        expect(
            "assembling",
            wide(self.assembling),
            streams()
                .filter_map(|(_, stream)| stream.recv.assembly.as_ref()?.total)
                .map(wide)
                .sum(),
        )?;
        expect(
            "local calls",
            wide(self.open_local),
            wide(calls().filter(|call| call.local && call.counted).count()),
        )?;
        expect(
            "peer calls",
            wide(self.open_peer),
            wide(calls().filter(|call| !call.local && call.counted).count()),
        )?;
        expect(
            "ready bytes",
            wide(self.ready_bytes),
            self.lanes.iter().map(|lane| wide(lane.ready.len())).sum(),
        )?;
        let kept = |of: fn(&Lane) -> usize| self.lanes.iter().map(|lane| wide(of(lane))).sum();
        expect(
            "retained bytes",
            wide(self.resumption.retained),
            kept(|lane| lane.log.cost()),
        )?;
        expect(
            "bytes to leave again",
            wide(self.resumption.waiting),
            kept(|lane| lane.log.waiting()),
        )?;
        for (number, lane) in self.lanes.iter().enumerate() {
            lane.log
                .check()
                .map_err(|problem| format!("lane {number}: {problem}"))?;
            if self.resumption.retains
                && self.resumption.is_attached()
                && !self.state.is_closed()
                && lane.taken_in() < lane.intake.told
            {
                return Err(format!("lane {number}: more was told than taken in"));
            }
        }
        let requests = self
            .events
            .iter()
            .filter(|event| matches!(event, Event::Request(_)));
        expect(
            "admitted requests",
            wide(self.admitted),
            wide(requests.count()),
        )?;
        let earliest = calls().filter(|call| !(call.spent || call.local && call.recv_ended));
        let earliest = earliest.filter_map(|call| call.deadline).min();
        if earliest.is_some_and(|at| self.next_deadline.is_none_or(|next| at < next))
            && !self.state.is_closed()
        {
            return Err("a call's deadline would be missed".into());
        }
        Ok(())
    }

    fn message_limits(&self) -> MessageLimits {
        MessageLimits {
            message: self.config.limits.max_message,
            ..MessageLimits::default()
        }
    }

    fn lane_mut(&mut self, lane: LaneId) -> Option<&mut Lane> {
        if lane.0 >= LANES_MAX {
            return None;
        }
        let index = usize::from(lane.0);
        while self.lanes.len() <= index {
            self.lanes.push(Lane::default());
        }
        self.lanes.get_mut(index)
    }

    fn stream_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(usize::from(id.0))?.as_deref_mut()
    }

    fn stream_ref(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(usize::from(id.0))?.as_deref()
    }

    /// The stream, made if the ID was never used.
    fn stream_slot(&mut self, id: StreamId, lane: LaneId) -> Option<&mut Stream> {
        let index = usize::from(id.0);
        while self.streams.len() <= index {
            self.streams.push(None);
        }
        let (send, recv) = (
            self.peer_limits.stream_window,
            self.config.limits.stream_window,
        );
        let slot = self.streams.get_mut(index)?;
        Some(slot.get_or_insert_with(|| Box::new(Stream::new(lane, send, recv))))
    }

    fn call_ref(&self, key: CallKey) -> Option<&Call> {
        self.calls
            .get(usize::try_from(key.index).ok()?)
            .filter(|call| call.serial == key.serial && !call.spent)
    }

    fn call_mut(&mut self, key: CallKey) -> Option<&mut Call> {
        self.calls
            .get_mut(usize::try_from(key.index).ok()?)
            .filter(|call| call.serial == key.serial && !call.spent)
    }

    /// Whether a stream ID is one that the peer opens.
    fn is_peers(&self, id: StreamId) -> bool {
        let odd = id.0 % 2 == 1;
        match self.side {
            Side::Client => !odd,
            Side::Acceptor => odd,
        }
    }

    /// The shared stream that our own calls take.
    fn own_shared(&self) -> StreamId {
        match self.side {
            Side::Client => StreamId(1),
            Side::Acceptor => StreamId(2),
        }
    }

    /// Pays for one frame or message that needs no credit.
    fn charge_control(&mut self, now: Timestamp) -> Result<(), SessionError> {
        let elapsed = now.0.saturating_sub(self.control_refilled.0);
        let refill = elapsed / CONTROL_REFILL_US;
        if refill > 0 {
            self.control_tokens = self
                .control_tokens
                .saturating_add(u32::try_from(refill).unwrap_or(u32::MAX))
                .min(CONTROL_BURST);
            // The part of a token that is left counts towards the next.
            self.control_refilled = Timestamp(now.0.saturating_sub(elapsed % CONTROL_REFILL_US));
        }
        match self.control_tokens.checked_sub(1) {
            Some(left) => {
                self.control_tokens = left;
                Ok(())
            }
            None => Err(SessionError::ControlFlood),
        }
    }
}

/// A duration in µs, as a timestamp counts.
fn micros(duration: core::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The front of a text, at most [`REASON_MAX`] bytes.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(REASON_MAX))
        .unwrap_or(text)
}

/// An error record that is valid and has at most `max` bytes: code 0 is no error, and details and then text are cut.
fn fitted(mut record: ErrorRecord, max: usize) -> ErrorRecord {
    if record.code == ErrorCode::OK {
        record.code = ErrorCode::UNKNOWN;
    }
    record
        .details
        .truncate(usize::try_from(remus_wire::MAX_ERROR_DETAILS).unwrap_or(usize::MAX));
    if record.encoded_len() > max {
        record.details.clear();
    }
    if record.encoded_len() > max {
        record.message = Text::from(cut(&record.message));
    }
    record
}
