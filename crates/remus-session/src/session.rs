//! The session: everything that happens between two endpoints, whatever carries it. Spec: core.

mod calls;
mod control;
mod receive;
mod transmit;

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use remus_wire::{
    ErrorCode, ErrorRecord, Features, Limits, Load, Message, MessageLimits, Shutdown, StreamId,
    Text, Timestamp, Version, VersionRecord,
};
use slab::Slab;

use crate::call::{Batch, Call, CallKey, LocalIds, PeerIds};
use crate::clock::HybridClock;
use crate::config::{ConfigError, INITIAL_LIMITS, SessionConfig};
use crate::error::{CloseReason, SessionError};
use crate::event::{Event, Grant, Negotiated, Side};
use crate::lane::{LANES_MAX, Lane, LaneId};
use crate::liveness::{Liveness, PathEstimate};
use crate::state::{Input, State};
use crate::stream::{SendHalf, Stream};

/// Control messages, idle frames and resets that may come at once, and how many more each second. Spec: core §8.
///
/// A lively session needs a heartbeat a second and a query now and then; a thousand at once is a burst of resets after a
/// user closed a page, more is an attack.
const CONTROL_BURST: u32 = 1024;
const CONTROL_PER_SECOND: u64 = 256;

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
    /// Acceptor: the application has not decided who the client is; nothing more is taken in.
    deciding: bool,
    offer_taken: Option<Box<VersionRecord>>,

    lanes: Vec<Lane>,
    dirty: u32,
    streams: Vec<Option<Box<Stream>>>,
    open_streams: usize,
    /// Everything but streams 0, 1 and 2 counts against it. See decision 0003.
    send_window: SendHalf,
    recv_window: SessionWindow,
    assembling: usize,
    credit_due: VecDeque<StreamId>,

    calls: Slab<Call>,
    serial: u32,
    local_ids: LocalIds,
    peer_ids: PeerIds,
    open_local: usize,
    open_peer: usize,
    highest_peer_request: u32,
    batches: Slab<Batch>,
    requests: VecDeque<Pending>,
    events: VecDeque<Event>,
    datagrams: VecDeque<Bytes>,
    carrier_has_datagrams: bool,
    queued_bytes: usize,
    congested: bool,

    control_tokens: u32,
    control_refilled: Timestamp,
    earliest_deadline: Option<Timestamp>,
    armed: Option<Timestamp>,
    closing: Option<Closing>,
    query_id: Option<u32>,
    statistics: Statistics,
}

/// Credit that we grant for the session as a whole.
#[derive(Debug)]
struct SessionWindow {
    received: u64,
    consumed: u64,
    granted: u64,
    due: bool,
}

/// A request that has arrived and waits to be handed out, or the wish to cancel one.
#[derive(Debug)]
enum Pending {
    Request {
        call: Option<CallKey>,
        stream: StreamId,
        message: Message,
        deadline: Option<Timestamp>,
    },
    Cancel {
        stream: StreamId,
        request_id: u32,
        code: ErrorCode,
        len: u64,
    },
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
            stream.recv.lane = Some(LaneId::ZERO);
            stream.reopen(None, remus_wire::Priority::ORDINARY.class());
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
            offer_taken: None,
            lanes: vec![Lane::default()],
            dirty: 0,
            streams,
            open_streams: 0,
            send_window: SendHalf {
                limit: initial.session_window.into(),
                ..SendHalf::default()
            },
            recv_window: SessionWindow {
                received: 0,
                consumed: 0,
                granted: session_window,
                due: false,
            },
            assembling: 0,
            credit_due: VecDeque::new(),
            calls: Slab::new(),
            serial: 0,
            local_ids: LocalIds::new(),
            peer_ids: HashMap::new(),
            open_local: 0,
            open_peer: 0,
            highest_peer_request: 0,
            batches: Slab::new(),
            requests: VecDeque::new(),
            events: VecDeque::new(),
            datagrams: VecDeque::new(),
            carrier_has_datagrams: false,
            queued_bytes: 0,
            congested: false,
            control_tokens: CONTROL_BURST,
            control_refilled: now,
            earliest_deadline: None,
            armed: None,
            closing: None,
            query_id: None,
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
            .saturating_add(self.lanes.iter().map(|lane| lane.ready.len()).sum())
    }

    /// Whether so much waits to be sent that requests are not handed out; [`Event::Uncongested`] follows.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.queued_bytes() >= self.config.max_queued_bytes
    }

    /// Whether the carrier has datagrams; heartbeats then travel in them where both sides agreed to it.
    pub fn set_datagrams(&mut self, available: bool) {
        self.carrier_has_datagrams = available;
    }

    /// Tells the peer, with the next heartbeat, how busy this side is.
    pub fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    /// Whether input is taken now; false while the client's identity is being decided, and at the end.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.deciding && !self.state.is_closed()
    }

    /// Whether [`Session::poll_event`] has something.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty() || !(self.requests.is_empty() || self.deciding || self.state.is_closed() || self.is_congested())
    }

    /// The next thing that happened.
    ///
    /// Requests are handed out only while there is room for their answers (`max_queued_bytes`), and count as taken in only
    /// then: a peer that does not read its answers runs out of credit. Spec: core §5.
    pub fn poll_event(&mut self, now: Timestamp) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.requests.is_empty() || self.state.is_closed() || self.deciding {
                self.finish_if_drained();
                return self.events.pop_front();
            }
            if self.is_congested() {
                self.congested = true;
                return None;
            }
            if let Some(pending) = self.requests.pop_front() {
                self.admit(now, pending);
            }
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
        let mut at = self.live.expires_at();
        if self.state.is_open() {
            at = at.min(self.live.probe_at());
        } else {
            at = at.min(self.handshake_deadline);
        }
        if let Some(deadline) = self.earliest_deadline {
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
        if now >= self.live.expires_at() {
            self.fail(&SessionError::IdleTimeout(self.live.idle_ms()));
            return;
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
            self.close(CloseReason {
                code,
                reason,
                by_peer,
            });
            return;
        }
        if self
            .earliest_deadline
            .is_some_and(|deadline| now >= deadline)
        {
            self.expire_calls(now);
        }
        if self.state.is_open() && now >= self.live.probe_at() {
            self.send_probe(now);
        }
    }

    /// Announces the end: accepted calls finish within `grace`, later ones are refused as retryable.
    ///
    /// The session closes when the last call of either side has ended, at the latest when the grace is over.
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
        if self.state.is_open() {
            let record = Shutdown {
                code,
                grace,
                last_request: remus_wire::RequestId(self.highest_peer_request),
                reason: Text::from(reason),
                redirect: Text::from(url),
            };
            self.send_shutdown(now, &record);
        }
        if let Ok(next) = self.state.on(Input::Shutdown) {
            self.state = next;
        }
        let deadline = Timestamp(
            now.0
                .saturating_add(u64::try_from(grace.as_micros()).unwrap_or(u64::MAX)),
        );
        self.closing = Some(Closing {
            by_us: true,
            deadline,
            code,
            reason: reason.to_owned(),
        });
        self.finish_if_drained();
    }

    /// Ends the session at once. Open calls fail with LOSS_OF_SESSION.
    pub fn abort(&mut self, code: ErrorCode, reason: &str) {
        self.close(CloseReason {
            code,
            reason: reason.to_owned(),
            by_peer: false,
        });
    }

    /// The carrier ended: with the peer's code and reason if it gave them.
    ///
    /// Resumption on another carrier is not part of this version's features, so the session ends with its carrier.
    pub fn carrier_lost(&mut self, code: ErrorCode, reason: &str) {
        self.close(CloseReason {
            code,
            reason: reason.to_owned(),
            by_peer: true,
        });
    }

    /// Ends the session for the peer's fault; the driver tells the peer code and reason by closing the carrier with them.
    fn fail(&mut self, error: &SessionError) {
        self.close(CloseReason {
            code: error.code(),
            reason: error.to_string(),
            by_peer: false,
        });
    }

    fn close(&mut self, reason: CloseReason) {
        let Ok(next) = self.state.on(Input::Failed) else {
            return;
        };
        if self.state.is_closed() {
            return;
        }
        self.state = next;
        let code = if reason.code == ErrorCode::OK || reason.code == ErrorCode::UNAVAILABLE {
            ErrorCode::LOSS_OF_SESSION
        } else {
            reason.code
        };
        let lost = ErrorRecord::new(code, Text::from(reason.reason.as_str()));
        let keys: Vec<CallKey> = self
            .calls
            .iter()
            .filter_map(|(index, call)| {
                Some(CallKey {
                    index: u32::try_from(index).ok()?,
                    serial: call.serial,
                })
            })
            .collect();
        for key in keys {
            self.fail_call(key, &lost);
        }
        self.requests.clear();
        self.events.push_back(Event::Closed(reason));
        self.dirty = u32::MAX;
    }

    /// Closes a shutdown under way once nothing is open and everything has left.
    fn finish_if_drained(&mut self) {
        if self.closing.is_none()
            || self.state.is_closed()
            || self.open_local > 0
            || self.open_peer > 0
            || self.queued_bytes() > 0
        {
            return;
        }
        if !self.requests.is_empty() || !self.credit_due.is_empty() {
            return;
        }
        let Some(closing) = self.closing.as_ref() else {
            return;
        };
        let Ok(next) = self.state.on(Input::Drained) else {
            return;
        };
        let (code, reason, by_peer) = (closing.code, closing.reason.clone(), !closing.by_us);
        self.state = next;
        self.events.push_back(Event::Closed(CloseReason {
            code,
            reason,
            by_peer,
        }));
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
            .filter(|call| call.serial == key.serial)
    }

    fn call_mut(&mut self, key: CallKey) -> Option<&mut Call> {
        self.calls
            .get_mut(usize::try_from(key.index).ok()?)
            .filter(|call| call.serial == key.serial)
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
        let refill = elapsed.saturating_mul(CONTROL_PER_SECOND) / 1_000_000;
        if refill > 0 {
            self.control_refilled = now;
            let refill = u32::try_from(refill).unwrap_or(u32::MAX);
            self.control_tokens = self
                .control_tokens
                .saturating_add(refill)
                .min(CONTROL_BURST);
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
