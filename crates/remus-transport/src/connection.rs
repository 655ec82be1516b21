//! The handle of one connection, and what its users wait on.
//!
//! The session lives behind one mutex that is held for short, synchronous steps only. Whoever calls puts the call into the
//! session and wakes the task that writes; whoever reads hands the answer to the waker of the one who waits. Between them
//! there is no channel and no allocation per call.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use remus_session::{
    CallError, CallKey, CloseReason, LANES_MAX, LaneId, Negotiated, Outgoing, PathEstimate,
    Received, SendError, Session, Shape, Side, Statistics,
};
use remus_wire::{
    AuthenticationRecord, ErrorCode, ErrorRecord, Message, ResumeToken, Shutdown, Text, Timestamp,
};
use slab::Slab;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::driver::{Dial, Handler};
use crate::link::{Carrier, Link};
use crate::sessions::{Identity, Sessions};
use crate::webtransport::ConnectError;

/// Where a connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionStatus {
    /// The lifecycle is under way; small unary calls already travel.
    Opening,
    /// Calls flow both ways.
    Active,
    /// The carrier is gone, and another one is looked for or waited for. Calls and streams go on existing, and new calls may be made:
    /// they leave when the session is resumed.
    Suspended {
        /// Why, as a code.
        code: ErrorCode,
        /// Why, for people.
        reason: String,
    },
    /// One side has announced its end: what is open finishes, new calls are refused as retryable.
    Draining(Box<Shutdown>),
    /// Over.
    Closed(CloseReason),
}

/// One connection to a peer. Cheap to clone.
///
/// A client's connection closes when its last clone is dropped; an acceptor's lives as long as its peer keeps it.
#[derive(Clone)]
pub struct Connection {
    pub(crate) inner: Arc<Inner>,
    /// Held by applications on the client's side only.
    _keeper: Option<Arc<Keeper>>,
}

/// What all clones and the driver's tasks share.
pub(crate) struct Inner {
    core: Mutex<Core>,
    pub(crate) clock: Clock,
    /// Wakes the supervising task.
    pub(crate) supervisor: Notify,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) status: watch::Sender<ConnectionStatus>,
    pub(crate) tasks: TaskTracker,
    /// Acceptor: where its sessions are found again when they have lost their carrier.
    pub(crate) sessions: Option<Arc<Sessions>>,
    /// Client: makes further links.
    pub(crate) dialler: Option<Arc<dyn Dial>>,
    probes: Notify,
    /// Whether calls can be made, or could once the session has opened: what `status` says, without its lock.
    pub(crate) takes_calls: AtomicBool,
}

/// Why a session did not move to another carrier.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// The carrier cannot be had.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Only the client that made the connection can choose what carries it.
    #[error("this side does not choose the carrier: the client does")]
    NotOurs,
    /// The peer does not let sessions go on over another carrier, or the session has ended.
    #[error(
        "the session cannot go on over another carrier: it has ended, or the peer does not allow it"
    )]
    NotResumable,
}

/// Ends the session when the last handle of the application is gone.
struct Keeper {
    inner: Arc<Inner>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.inner.with(|core, now| {
            core.session
                .shut_down(now, ErrorCode::OK, "the client is done", "", Duration::ZERO)
        });
        self.inner.supervisor.notify_one();
    }
}

/// Everything under the mutex.
pub(crate) struct Core {
    pub(crate) session: Session,
    entries: Slab<Entry>,
    /// For the place of a call in the session's table: its entry, plus one.
    by_call: Vec<u32>,
    /// What runs for the peer's calls.
    pub(crate) handlers: HashMap<CallKey, AbortHandle>,
    pub(crate) writers: [Writer; LANES_MAX as usize],
    /// A reader is among the session's events, has let answers leave, and comes back to the rest.
    pub(crate) taking: bool,
    /// Readers that wait until the session takes input again.
    pub(crate) input_waiters: Vec<Waker>,
    /// Callers that wait for room or for the session to open.
    blocked: VecDeque<Waker>,
    pub(crate) closed: Option<CloseReason>,
    /// What carries the session; `None` while it is suspended.
    pub(crate) link: Option<Link>,
    /// The session's number for this link, or for its absence. Tasks of a link with another number have nothing more to do.
    pub(crate) number: u32,
    /// Of the latest link.
    remote: SocketAddr,
    carrier: Carrier,
    /// Client: a link to go on with, although there may be one that works.
    pub(crate) next: Option<Link>,
    /// Client: the carrier was chosen on demand, and is not left for a better one.
    pub(crate) pinned: bool,
    /// Acceptor: by what it is found in the table of sessions.
    pub(crate) known_by: Vec<ResumeToken>,
    /// Acceptor: whom it belongs to, as far as it has been granted.
    pub(crate) identity: Identity,
    /// Acceptor: whether it counts as one that waits for a carrier.
    pub(crate) is_parked: bool,
}

/// What is known of a lane's writing task.
#[derive(Debug, Default)]
pub(crate) enum Writer {
    /// Nobody has opened the lane yet.
    #[default]
    Absent,
    /// There is something to send on it.
    Wanted,
    /// It is being opened, or its task is at work and will look again.
    Busy,
    /// Its task waits.
    Waiting(Waker),
    /// Its task has ended. A lane is never opened twice: its number stands for one pipe.
    Gone,
}

/// Someone who waits for a call.
#[derive(Debug)]
enum Entry {
    Unary {
        waker: Option<Waker>,
        answer: Option<Result<Message, ErrorRecord>>,
    },
    Batch {
        waker: Option<Waker>,
        answer: Option<Result<Vec<Result<Message, ErrorRecord>>, ErrorRecord>>,
    },
    Stream {
        reader: Option<Waker>,
        writer: Option<Waker>,
    },
}

impl Inner {
    pub(crate) fn new(
        session: Session,
        clock: Clock,
        handler: Arc<dyn Handler>,
        link: Link,
        sessions: Option<Arc<Sessions>>,
    ) -> Self {
        Self {
            core: Mutex::new(Core {
                number: session.attachment(),
                session,
                remote: link.remote_address(),
                carrier: link.carrier(),
                link: Some(link),
                next: None,
                pinned: false,
                known_by: Vec::new(),
                identity: Identity::default(),
                is_parked: false,
                entries: Slab::new(),
                by_call: Vec::new(),
                handlers: HashMap::new(),
                writers: Default::default(),
                taking: false,
                input_waiters: Vec::new(),
                blocked: VecDeque::new(),
                closed: None,
            }),
            clock,
            supervisor: Notify::new(),
            handler,
            status: watch::Sender::new(ConnectionStatus::Opening),
            tasks: TaskTracker::new(),
            sessions,
            dialler: None,
            probes: Notify::new(),
            takes_calls: AtomicBool::new(true),
        }
    }

    /// The core. A panic while it was held leaves nothing half-done that a later user could trip over: every step of the
    /// session is complete in itself.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step of the application's: runs `step`, then wakes whoever has to carry out what it caused.
    pub(crate) fn with<R>(&self, step: impl FnOnce(&mut Core, Timestamp) -> R) -> R {
        self.with_at(self.clock.now(), step)
    }

    /// As [`Inner::with`], at a time that the caller has just asked for.
    fn with_at<R>(&self, now: Timestamp, step: impl FnOnce(&mut Core, Timestamp) -> R) -> R {
        self.step(|core| step(core, now))
    }

    /// As [`Inner::with`], for what does not ask for the time.
    fn step<R>(&self, step: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.lock();
        let result = step(&mut core);
        let supervise = core.wants_supervisor();
        drop(core);
        if supervise {
            self.supervisor.notify_one();
        }
        result
    }

    pub(crate) fn path_measured(&self) {
        self.probes.notify_waiters();
    }
}

impl Entry {
    fn unary() -> Self {
        Self::Unary {
            waker: None,
            answer: None,
        }
    }
}

impl Core {
    /// What a caller is told where the session takes no call; why it ended, where it has.
    fn refusal(&self, error: &CallError) -> ErrorRecord {
        match (error, &self.closed) {
            (CallError::Closed, Some(reason)) => reason.to_record(),
            _ => error.to_record(),
        }
    }

    /// Wakes the writers of lanes that have something to send. True when there is something else to do, which is the
    /// supervisor's: a lane to open, events, a datagram, a timer that has become too late.
    pub(crate) fn wants_supervisor(&mut self) -> bool {
        self.wake_writers()
            || (self.session.has_events() && !self.taking)
            || self.session.has_datagrams()
            || self.session.needs_rearm()
    }

    /// Wakes the writers of lanes that have something to send. True when a lane has to be opened first.
    fn wake_writers(&mut self) -> bool {
        // Only the client opens lanes; and at the end every lane counts as dirty, so that its writer notices.
        let opens = self.session.side() == Side::Client && !self.session.state().is_closed();
        let mut dirty = self.session.take_dirty_lanes();
        let mut open = false;
        while dirty != 0 {
            let lane = dirty.trailing_zeros();
            dirty &= dirty.wrapping_sub(1);
            let Some(writer) = usize::try_from(lane)
                .ok()
                .and_then(|lane| self.writers.get_mut(lane))
            else {
                continue;
            };
            match writer {
                Writer::Absent if opens => {
                    *writer = Writer::Wanted;
                    open = true;
                }
                Writer::Absent | Writer::Busy | Writer::Gone => {}
                Writer::Wanted => open = true,
                Writer::Waiting(_) => {
                    if let Writer::Waiting(waker) = std::mem::replace(writer, Writer::Busy) {
                        waker.wake();
                    }
                }
            }
        }
        open
    }

    /// Lanes that have something to send and that nobody has opened; the caller opens them. Those before them are among them: the
    /// acceptor numbers lanes as they come. A lane that the link does not have is none: what was meant for it before the session moved
    /// here goes by another.
    pub(crate) fn lanes_to_open(&mut self) -> Vec<LaneId> {
        let mut lanes = Vec::new();
        let there = self.link.as_ref().map_or(0, Link::lanes);
        for writer in self.writers.iter_mut().skip(usize::from(there)) {
            *writer = Writer::Absent;
        }
        let wanted = self
            .writers
            .iter()
            .rposition(|writer| matches!(writer, Writer::Wanted));
        let upto = wanted.map_or(0, |last| last.saturating_add(1));
        for (lane, writer) in (0_u16..).zip(self.writers.iter_mut().take(upto)) {
            if matches!(writer, Writer::Wanted | Writer::Absent) {
                *writer = Writer::Busy;
                lanes.push(LaneId(lane));
            }
        }
        lanes
    }

    /// The session has another link now, or none. Returns the one before; its tasks find out by themselves.
    pub(crate) fn relink(&mut self, link: Option<Link>) -> Option<Link> {
        self.number = self.session.attachment();
        for writer in &mut self.writers {
            if let Writer::Waiting(waker) = std::mem::take(writer) {
                waker.wake();
            }
        }
        self.wake_input();
        if link.is_none() {
            self.pinned = false;
        }
        if let Some(link) = &link {
            self.remote = link.remote_address();
            self.carrier = link.carrier();
        }
        std::mem::replace(&mut self.link, link)
    }

    fn bind(&mut self, key: CallKey, entry: Entry) -> usize {
        let place = self.entries.insert(entry);
        let index = key.index();
        if self.by_call.len() <= index {
            self.by_call.resize(index.saturating_add(1), 0);
        }
        if let Some(slot) = self.by_call.get_mut(index) {
            *slot = u32::try_from(place.saturating_add(1)).unwrap_or(0);
        }
        place
    }

    fn entry_of(&mut self, key: CallKey) -> Option<&mut Entry> {
        let place = usize::try_from(*self.by_call.get(key.index())?)
            .ok()?
            .checked_sub(1)?;
        self.entries.get_mut(place)
    }

    fn unbind(&mut self, key: CallKey, place: usize) {
        self.entries.try_remove(place);
        if let Some(slot) = self.by_call.get_mut(key.index())
            && usize::try_from(*slot).is_ok_and(|at| at == place.saturating_add(1))
        {
            *slot = 0;
        }
    }

    pub(crate) fn on_answer(&mut self, key: CallKey, result: Result<Message, ErrorRecord>) {
        match self.entry_of(key) {
            Some(Entry::Unary { waker, answer }) => {
                *answer = Some(result);
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
            Some(Entry::Batch { waker, answer }) => {
                *answer = Some(result.and_then(|_| {
                    Err(ErrorRecord::new(
                        ErrorCode::INTERNAL,
                        Text::from_static("a batch was answered by a single message"),
                    ))
                }));
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
            _ => {}
        }
        self.call_over(key);
    }

    pub(crate) fn on_batch_answer(
        &mut self,
        key: CallKey,
        answers: Vec<Result<Message, ErrorRecord>>,
    ) {
        if let Some(Entry::Batch { waker, answer }) = self.entry_of(key) {
            *answer = Some(Ok(answers));
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
        self.call_over(key);
    }

    /// The session has forgotten the call; its place may go to another.
    fn call_over(&mut self, key: CallKey) {
        if let Some(slot) = self.by_call.get_mut(key.index()) {
            *slot = 0;
        }
        if let Some(waker) = self.blocked.pop_front() {
            waker.wake();
        }
    }

    pub(crate) fn on_readable(&mut self, key: CallKey) {
        if let Some(Entry::Stream { reader, .. }) = self.entry_of(key)
            && let Some(waker) = reader.take()
        {
            waker.wake();
        }
    }

    pub(crate) fn on_writable(&mut self, key: CallKey) {
        if let Some(Entry::Stream { writer, .. }) = self.entry_of(key)
            && let Some(waker) = writer.take()
        {
            waker.wake();
        }
    }

    pub(crate) fn on_cancelled(&mut self, key: CallKey) {
        self.on_readable(key);
        self.on_writable(key);
        if let Some(handler) = self.handlers.remove(&key) {
            handler.abort();
        }
    }

    pub(crate) fn wake_blocked(&mut self) {
        for waker in self.blocked.drain(..) {
            waker.wake();
        }
    }

    pub(crate) fn wake_input(&mut self) {
        for waker in self.input_waiters.drain(..) {
            waker.wake();
        }
    }
}

impl Connection {
    pub(crate) fn new(inner: Arc<Inner>, keep: bool) -> Self {
        let keeper = keep.then(|| {
            Arc::new(Keeper {
                inner: Arc::clone(&inner),
            })
        });
        Self {
            inner,
            _keeper: keeper,
        }
    }

    /// The peer's address.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.lock().remote
    }

    /// What carries it; while it is suspended, what carried it last.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        self.inner.lock().carrier
    }

    /// Client: goes on over `carrier`, whatever carries the session now, and stays there until that breaks. Nothing is lost by it.
    ///
    /// Returns when the session goes on there; if that carrier cannot be had, the session stays where it is.
    ///
    /// # Errors
    ///
    /// [`SwitchError`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it completes, the session may or may not have moved.
    pub async fn switch_carrier(&self, carrier: Carrier) -> Result<(), SwitchError> {
        let dialler = self.inner.dialler.clone().ok_or(SwitchError::NotOurs)?;
        let link = dialler.open(carrier).await?;
        let mut status = self.inner.status.subscribe();
        status.mark_unchanged();
        {
            let mut core = self.inner.lock();
            if !core.session.is_resumable() {
                drop(link.take_runner());
                link.abandon("the session cannot be resumed");
                return Err(SwitchError::NotResumable);
            }
            core.next = Some(link);
            core.pinned = true;
        }
        self.inner.supervisor.notify_one();
        loop {
            if status.changed().await.is_err() {
                return Err(SwitchError::NotResumable);
            }
            match &*status.borrow_and_update() {
                ConnectionStatus::Active => return Ok(()),
                ConnectionStatus::Closed(_) => return Err(SwitchError::NotResumable),
                _ => {}
            }
        }
    }

    /// Lets the carrier go, as if the network had broken: the session is suspended, and a client's looks for another one.
    ///
    /// Nothing is lost by it where both sides can resume; where not, the session ends. Without a carrier it does nothing.
    pub fn drop_carrier(&self) {
        let link = self.inner.lock().link.clone();
        if let Some(link) = link {
            link.abandon("the carrier was dropped on demand");
        }
    }

    /// Where the connection stands now.
    #[must_use]
    pub fn status(&self) -> ConnectionStatus {
        self.inner.status.borrow().clone()
    }

    /// Follows where the connection stands.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<ConnectionStatus> {
        self.inner.status.subscribe()
    }

    /// Waits until calls flow.
    ///
    /// # Errors
    ///
    /// Why the connection ended before.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn active(&self) -> Result<(), CloseReason> {
        let mut status = self.inner.status.subscribe();
        loop {
            match &*status.borrow_and_update() {
                ConnectionStatus::Active
                | ConnectionStatus::Suspended { .. }
                | ConnectionStatus::Draining(_) => return Ok(()),
                ConnectionStatus::Closed(reason) => return Err(reason.clone()),
                ConnectionStatus::Opening => {}
            }
            if status.changed().await.is_err() {
                return Err(CloseReason {
                    code: ErrorCode::UNAVAILABLE,
                    reason: "the driver is gone".into(),
                    by_peer: false,
                    refused: false,
                });
            }
        }
    }

    /// Waits for the end and says why.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn closed(&self) -> CloseReason {
        let mut status = self.inner.status.subscribe();
        loop {
            if let ConnectionStatus::Closed(reason) = &*status.borrow_and_update() {
                return reason.clone();
            }
            if status.changed().await.is_err() {
                return CloseReason {
                    code: ErrorCode::UNAVAILABLE,
                    reason: "the driver is gone".into(),
                    by_peer: false,
                    refused: false,
                };
            }
        }
    }

    /// Waits until the last task of the connection has ended: the link is closed and no handler runs.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn finished(&self) {
        self.inner.tasks.wait().await;
    }

    /// What was settled when the session became active; `None` before.
    #[must_use]
    pub fn negotiated(&self) -> Option<Negotiated> {
        self.inner.lock().session.negotiated().cloned()
    }

    /// What heartbeats have measured; `None` before the first came back.
    #[must_use]
    pub fn path(&self) -> Option<PathEstimate> {
        self.inner.lock().session.path()
    }

    /// Counters since the start.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.inner.lock().session.statistics()
    }

    /// Lanes that are open on the present carrier, lane 0 included. Spec: transport §2.
    #[must_use]
    pub fn open_lanes(&self) -> usize {
        let core = self.inner.lock();
        let is_open = |writer: &&Writer| !matches!(writer, Writer::Absent | Writer::Wanted);
        core.writers.iter().filter(is_open).count()
    }

    /// Calls of the peer's and of ours that are open now.
    #[must_use]
    pub fn open_calls(&self) -> (usize, usize) {
        let core = self.inner.lock();
        (
            core.session.open_peer_calls(),
            core.session.open_local_calls(),
        )
    }

    /// Sends a heartbeat and waits for its echo.
    ///
    /// # Errors
    ///
    /// Why the connection ended before the echo came.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ping(&self) -> Result<PathEstimate, CloseReason> {
        self.active().await?;
        let echo = self.inner.probes.notified();
        tokio::pin!(echo);
        echo.as_mut().enable();
        self.inner.with(|core, now| core.session.probe(now));
        tokio::select! {
            () = echo => {}
            reason = self.closed() => return Err(reason),
        }
        self.path().ok_or_else(|| CloseReason {
            code: ErrorCode::INTERNAL,
            reason: "nothing was measured".into(),
            by_peer: false,
            refused: false,
        })
    }

    /// Announces the end and lets what is open finish within `grace`.
    pub fn shut_down(&self, code: ErrorCode, reason: &str, url: &str, grace: Duration) {
        self.inner
            .with(|core, now| core.session.shut_down(now, code, reason, url, grace));
        self.inner.supervisor.notify_one();
    }

    /// Renews the client's token in place.
    pub fn authenticate(&self, record: AuthenticationRecord) {
        self.inner
            .with(|core, now| core.session.authenticate(now, record));
    }

    /// Whether calls can be made, or could once the session has opened.
    #[must_use]
    pub fn takes_calls(&self) -> bool {
        self.inner.takes_calls.load(Ordering::Acquire)
    }

    /// Makes a unary call if that needs no waiting; `None` where it does, see [`Connection::call`].
    ///
    /// # Errors
    ///
    /// The session's: nothing was sent.
    pub fn try_call(&self, request: &Outgoing) -> Result<Option<PendingCall>, ErrorRecord> {
        let now = self.inner.clock.now();
        let started = self.inner.with_at(now, |core, now| {
            match core.session.call(now, request.clone(), Shape::Unary) {
                Ok(key) => Ok(Some((key, core.bind(key, Entry::unary())))),
                Err(
                    CallError::NotOpen
                    | CallError::QueueFull { .. }
                    | CallError::TooManyCalls { .. },
                ) => Ok(None),
                Err(error) => Err(core.refusal(&error)),
            }
        })?;
        Ok(started.map(|(key, place)| PendingCall {
            inner: Arc::clone(&self.inner),
            key,
            place,
            done: false,
            started: now,
        }))
    }

    /// Makes a unary call and waits for its answer.
    ///
    /// Waits while as many calls are open as the peer allows, or the session's queue is full.
    ///
    /// # Errors
    ///
    /// The peer's error, or the session's: the record's code says which and whether it may be tried again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the call: the peer is told, and stops the work behind it.
    pub async fn call(&self, request: Outgoing) -> Result<Message, ErrorRecord> {
        let mut request = Some(request);
        let (key, place) = poll_fn(|cx| {
            self.poll_start(cx, Shape::Unary, |core, now| {
                // A large one has to wait until the session is open, and is made then.
                let outgoing = match core.session.state().is_open() {
                    true => request.take(),
                    false => request.clone(),
                };
                let outgoing = outgoing.unwrap_or_default();
                let key = core.session.call(now, outgoing, Shape::Unary)?;
                Ok((key, core.bind(key, Entry::unary())))
            })
        })
        .await?;
        self.pending(key, place).await
    }

    fn pending(&self, key: CallKey, place: usize) -> PendingCall {
        PendingCall {
            inner: Arc::clone(&self.inner),
            key,
            place,
            done: false,
            started: self.inner.clock.now(),
        }
    }

    /// Makes several unary calls in one message, and waits for all answers, which come in the same order.
    ///
    /// # Errors
    ///
    /// That of the batch as a whole; each member has its own result.
    ///
    /// # Cancel safety
    ///
    /// As [`Connection::call`].
    pub async fn call_batch(
        &self,
        requests: Vec<Outgoing>,
        timeout: Option<Duration>,
    ) -> Result<Vec<Result<Message, ErrorRecord>>, ErrorRecord> {
        if let Err(reason) = self.active().await {
            return Err(reason.to_record());
        }
        let mut requests = Some(requests);
        let (key, place) = poll_fn(|cx| {
            self.poll_start(cx, Shape::Unary, |core, now| {
                let key =
                    core.session
                        .call_batch(now, requests.take().unwrap_or_default(), timeout)?;
                Ok((
                    key,
                    core.bind(
                        key,
                        Entry::Batch {
                            waker: None,
                            answer: None,
                        },
                    ),
                ))
            })
        })
        .await?;
        let mut call = self.pending(key, place);
        poll_fn(|cx| {
            call.poll_answer(cx, |entry, cx| match entry {
                Entry::Batch { waker, answer } => answer.take().or_else(|| {
                    *waker = Some(cx.waker().clone());
                    None
                }),
                _ => None,
            })
        })
        .await
    }

    /// Sends a request that nobody answers, if that needs no waiting; gives it back where it does, see [`Connection::notify`].
    ///
    /// # Errors
    ///
    /// The session's: nothing was sent.
    pub fn try_notify(&self, request: Outgoing) -> Result<Option<Outgoing>, ErrorRecord> {
        self.inner
            .with(|core, now| match core.session.ready_for(Shape::Unary) {
                Ok(()) => match core.session.notify(now, request) {
                    Ok(()) => Ok(None),
                    Err(error) => Err(core.refusal(&error)),
                },
                Err(
                    CallError::NotOpen
                    | CallError::QueueFull { .. }
                    | CallError::TooManyCalls { .. },
                ) => Ok(Some(request)),
                Err(error) => Err(core.refusal(&error)),
            })
    }

    /// Sends a request that nobody answers.
    ///
    /// Waits while the session's queue is full.
    ///
    /// # Errors
    ///
    /// The session's: nothing was sent.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it completes, nothing was sent.
    pub async fn notify(&self, request: Outgoing) -> Result<(), ErrorRecord> {
        let mut request = Some(request);
        poll_fn(|cx| {
            self.poll_start(cx, Shape::Unary, |core, now| {
                core.session.notify(now, request.take().unwrap_or_default())
            })
        })
        .await
    }

    /// Starts a call that streams in either direction or both.
    ///
    /// # Errors
    ///
    /// The session's: nothing was sent.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Dropping both halves of what it returned cancels the call.
    pub async fn start(
        &self,
        request: Outgoing,
        shape: Shape,
    ) -> Result<(CallSender, CallReceiver), ErrorRecord> {
        let mut request = Some(request);
        let (key, place) = poll_fn(|cx| {
            self.poll_start(cx, shape, |core, now| {
                let key = core
                    .session
                    .call(now, request.take().unwrap_or_default(), shape)?;
                Ok((
                    key,
                    core.bind(
                        key,
                        Entry::Stream {
                            reader: None,
                            writer: None,
                        },
                    ),
                ))
            })
        })
        .await?;
        Ok(halves(Arc::clone(&self.inner), key, place, true))
    }

    /// Waits until the session takes a call of this shape, then makes it by `start` in the same step.
    fn poll_start<T>(
        &self,
        cx: &mut Context<'_>,
        shape: Shape,
        start: impl FnOnce(&mut Core, Timestamp) -> Result<T, CallError>,
    ) -> Poll<Result<T, ErrorRecord>> {
        self.inner.with(|core, now| {
            let ready = core.session.ready_for(shape);
            match ready.and_then(|()| start(core, now)) {
                Ok(made) => Poll::Ready(Ok(made)),
                Err(
                    CallError::NotOpen
                    | CallError::QueueFull { .. }
                    | CallError::TooManyCalls { .. },
                ) => {
                    core.blocked.push_back(cx.waker().clone());
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(core.refusal(&error))),
            }
        })
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("remote", &self.remote_address())
            .field("status", &*self.inner.status.borrow())
            .finish()
    }
}

/// A unary call that has been made: a future of its answer, or of the peer's or session's error.
///
/// The session ends it when its time is up.
///
/// # Cancel safety
///
/// Dropping it cancels the call: the peer is told, and stops the work behind it.
#[must_use = "a call that is dropped is cancelled"]
pub struct PendingCall {
    inner: Arc<Inner>,
    key: CallKey,
    place: usize,
    done: bool,
    started: Timestamp,
}

impl PendingCall {
    /// When it was made.
    #[must_use]
    pub fn started(&self) -> std::time::Instant {
        self.inner.clock.instant(self.started).into_std()
    }

    fn poll_answer<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut Entry, &mut Context<'_>) -> Option<T>,
    ) -> Poll<T> {
        let mut core = self.inner.lock();
        match core
            .entries
            .get_mut(self.place)
            .and_then(|entry| take(entry, cx))
        {
            Some(value) => {
                core.entries.try_remove(self.place);
                self.done = true;
                Poll::Ready(value)
            }
            None => Poll::Pending,
        }
    }
}

impl Future for PendingCall {
    type Output = Result<Message, ErrorRecord>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_answer(cx, |entry, cx| match entry {
            Entry::Unary { waker, answer } => answer.take().or_else(|| {
                *waker = Some(cx.waker().clone());
                None
            }),
            _ => None,
        })
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if !self.done {
            self.inner.with(|core, now| {
                core.unbind(self.key, self.place);
                core.session.cancel(now, self.key, ErrorCode::CANCELLED);
                if let Some(waker) = core.blocked.pop_front() {
                    waker.wake();
                }
            });
        }
    }
}

impl std::fmt::Debug for PendingCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingCall")
            .field("call", &self.key)
            .finish_non_exhaustive()
    }
}

/// What both halves of a streaming call share.
struct Shared {
    inner: Arc<Inner>,
    key: CallKey,
    place: usize,
    /// Whether this side made the call, so that dropping it cancels it.
    local: bool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inner.with(|core, now| {
            core.unbind(self.key, self.place);
            if self.local {
                core.session.release(now, self.key);
                if let Some(waker) = core.blocked.pop_front() {
                    waker.wake();
                }
            }
        });
    }
}

fn halves(
    inner: Arc<Inner>,
    key: CallKey,
    place: usize,
    local: bool,
) -> (CallSender, CallReceiver) {
    let shared = Arc::new(Shared {
        inner,
        key,
        place,
        local,
    });
    (
        CallSender {
            shared: Arc::clone(&shared),
        },
        CallReceiver {
            shared,
            taken: VecDeque::new(),
            ended: false,
        },
    )
}

/// The sending half of a streaming call.
pub struct CallSender {
    shared: Arc<Shared>,
}

impl CallSender {
    /// Waits until the stream takes an element; then, how many bytes it takes before it would have to wait again.
    ///
    /// # Errors
    ///
    /// [`SendError`], final for this direction; never `Blocked`.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, SendError>> {
        let key = self.shared.key;
        let mut core = self.shared.inner.lock();
        match core.session.can_send(key) {
            Err(SendError::Blocked) => {
                if let Some(Entry::Stream { writer, .. }) = core.entries.get_mut(self.shared.place)
                {
                    *writer = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            result => Poll::Ready(result),
        }
    }

    /// Sends one element, waiting while the stream's queue is full.
    ///
    /// # Errors
    ///
    /// [`SendError`]; never `Blocked`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it completes, nothing was sent.
    pub async fn send(&mut self, element: Outgoing) -> Result<(), SendError> {
        poll_fn(|cx| self.poll_ready(cx)).await?;
        self.try_send(element)
    }

    /// Sends one element if the stream's queue has room.
    ///
    /// # Errors
    ///
    /// [`SendError::Blocked`] where it has none; [`CallSender::poll_ready`] waits for it.
    pub fn try_send(&mut self, element: Outgoing) -> Result<(), SendError> {
        let key = self.shared.key;
        self.shared
            .inner
            .with(|core, now| core.session.send(now, key, element))
    }

    /// Sends elements from the front of `elements`, as many as the stream's queue takes; the others stay there.
    ///
    /// # Errors
    ///
    /// [`SendError`], for the element that was taken last; never `Blocked`.
    pub fn send_all(&mut self, elements: &mut VecDeque<Outgoing>) -> Result<(), SendError> {
        let key = self.shared.key;
        self.shared.inner.with(|core, now| {
            while core.session.can_send(key) != Err(SendError::Blocked) {
                let Some(element) = elements.pop_front() else {
                    return Ok(());
                };
                core.session.send(now, key, element)?;
            }
            Ok(())
        })
    }

    /// Ends this direction; with an error where it did not end well. Repeated, or after the end of the call, it does nothing.
    pub fn finish(&mut self, error: Option<ErrorRecord>) {
        let key = self.shared.key;
        self.shared
            .inner
            .with(|core, now| core.session.finish(now, key, error));
    }
}

/// The receiving half of a streaming call.
pub struct CallReceiver {
    shared: Arc<Shared>,
    /// Taken off the session together, and not handed out yet.
    taken: VecDeque<Received>,
    ended: bool,
}

/// Elements, and bytes of them, that are taken off the session at once: the lock and the clock are shared by so many. They count as
/// taken in when the first is, so a reader that stops may leave this much beyond the stream's window.
const TAKEN_MAX: usize = 64;
const TAKEN_BYTES_MAX: usize = 16 * 1024;

impl CallReceiver {
    /// The next element; `None` after a good end. After an error nothing follows.
    ///
    /// Elements that are not taken count against the peer's credit: that is the backpressure.
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message, ErrorRecord>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.taken.is_empty() {
            std::task::ready!(self.poll_take(cx));
        }
        match self.taken.pop_front() {
            Some(Received::Element(message)) => Poll::Ready(Some(Ok(message))),
            Some(Received::End(error)) => {
                self.ended = true;
                Poll::Ready(error.map(Err))
            }
            None => Poll::Pending,
        }
    }

    /// Takes what has come off the session; ready when there is something.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let key = self.shared.key;
        let taken = &mut self.taken;
        let place = self.shared.place;
        self.shared.inner.step(|core| {
            let mut bytes = 0_usize;
            while taken.len() < TAKEN_MAX && bytes < TAKEN_BYTES_MAX {
                let Some(received) = core.session.recv(key) else {
                    break;
                };
                if let Received::Element(message) = &received {
                    bytes = bytes.saturating_add(message.payload.len());
                }
                taken.push_back(received);
            }
            if !taken.is_empty() {
                return Poll::Ready(());
            }
            if !core.session.has_call(key) {
                let error = core.closed.as_ref().map_or_else(
                    || {
                        ErrorRecord::new(
                            ErrorCode::CANCELLED,
                            Text::from_static("the call is over"),
                        )
                    },
                    CloseReason::to_record,
                );
                taken.push_back(Received::End(Some(error)));
                return Poll::Ready(());
            }
            if let Some(Entry::Stream { reader, .. }) = core.entries.get_mut(place) {
                *reader = Some(cx.waker().clone());
            }
            Poll::Pending
        })
    }

    /// The next element, as [`CallReceiver::poll_recv`].
    ///
    /// # Errors
    ///
    /// The peer's error, or the session's.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it completes, nothing was taken.
    pub async fn recv(&mut self) -> Option<Result<Message, ErrorRecord>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }
}

impl std::fmt::Debug for CallSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallSender")
            .field("call", &self.shared.key)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for CallReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallReceiver")
            .field("call", &self.shared.key)
            .finish_non_exhaustive()
    }
}

/// A call that the peer made.
#[derive(Debug)]
pub struct PeerRequest {
    /// The request.
    pub message: Message,
    /// When the caller gives up, on this process's monotonic clock.
    pub deadline: Option<std::time::Instant>,
    /// Whether the caller waits for an answer.
    pub answered: bool,
    /// Whether elements follow the request.
    pub streams: bool,
    /// Elements in both directions, where the call has a stream to itself. The call must still be answered, or finished through
    /// the sender.
    pub stream: Option<(CallSender, CallReceiver)>,
}

impl PeerRequest {
    /// Takes a request off the session's hands, with the halves of its stream. Called with the core locked.
    pub(crate) fn new(
        inner: &Arc<Inner>,
        core: &mut Core,
        incoming: remus_session::Incoming,
    ) -> (CallKey, Self) {
        let key = incoming.call;
        let stream = incoming.owns_stream.then(|| {
            let place = core.bind(
                key,
                Entry::Stream {
                    reader: None,
                    writer: None,
                },
            );
            halves(Arc::clone(inner), key, place, false)
        });
        let request = Self {
            message: incoming.message,
            deadline: incoming
                .deadline
                .map(|at| inner.clock.instant(at).into_std()),
            answered: incoming.answered,
            streams: !incoming.ended,
            stream,
        };
        (key, request)
    }
}
