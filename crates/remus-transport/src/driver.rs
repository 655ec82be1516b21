//! The tasks that join a session to a link, whatever carrier that is a use of.
//!
//! One task supervises: timers, new lanes, datagrams, the end. Each lane has one task that reads and one that writes. All run
//! on the runtime on which the connection was made, are tracked, and end with the connection.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use remus_session::{
    Answer, CallKey, CloseReason, ConfigError, Event, Grant, LANES_MAX, LaneId, Session,
    SessionConfig,
};
use remus_wire::{
    AuthenticationRecord, ErrorCode, ErrorRecord, Query, QueryAnswer, RequestId, Text,
};
use tracing::{Instrument, debug};

use crate::clock::Clock;
use crate::connection::{Connection, ConnectionStatus, Core, Inner, PeerRequest, Writer};
use crate::link::{LaneReader, LaneWriter, Link, LinkEnd};

/// How long what is already queued may take to leave after the session has ended.
///
/// Enough for a refusal or the last answers to cross a slow network twice; a peer that reads nothing cannot hold us longer.
pub const LINGER_MAX: Duration = Duration::from_secs(2);

/// Requests handed out before their answers are put back into the session: bounds what is done under one lock.
const REQUESTS_AT_ONCE: usize = 64;

/// The answer to a call that is still being worked on; `None` where it was finished through its stream.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;

/// What a handler makes of a request.
pub enum Dispatch {
    /// The answer is there.
    Ready(Answer),
    /// It takes longer: the future becomes a task.
    Later(HandlerFuture),
}

/// What an endpoint does with what its peer asks.
pub trait Handler: Send + Sync + 'static {
    /// Who the client is: grants or refuses it. The session takes nothing more in until then.
    fn authenticate(
        &self,
        connection: &Connection,
        record: AuthenticationRecord,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, ErrorRecord>> + Send>>;

    /// What the directory holds. Must not block: the session waits for it.
    fn directory(&self, query: &Query) -> QueryAnswer;

    /// One request. Dropping the future is how its cancellation reaches it.
    fn request(&self, connection: &Connection, request: PeerRequest) -> Dispatch;
}

/// Joins a client's session to `link` and starts its tasks. Small calls may be made at once.
pub(crate) fn client(
    link: Link,
    config: SessionConfig,
    handler: Arc<dyn Handler>,
) -> Result<Connection, ConfigError> {
    let clock = Clock::new();
    let session = Session::client(fitted(config, &link), clock.now());
    joined(link, session, clock, handler, true)
}

/// Joins an acceptor's session to `link` and starts its tasks.
pub(crate) fn acceptor(
    link: Link,
    config: SessionConfig,
    handler: Arc<dyn Handler>,
) -> Result<Connection, ConfigError> {
    let clock = Clock::new();
    let session = Session::acceptor(fitted(config, &link), clock.now());
    joined(link, session, clock, handler, false)
}

/// The lanes that are in use are no more than the carrier has.
fn fitted(mut config: SessionConfig, link: &Link) -> SessionConfig {
    config.extra_lanes = config.extra_lanes.min(link.lanes().saturating_sub(1));
    config
}

fn joined(
    link: Link,
    session: Result<Session, ConfigError>,
    clock: Clock,
    handler: Arc<dyn Handler>,
    client: bool,
) -> Result<Connection, ConfigError> {
    match session {
        Ok(session) => Ok(start(link, session, clock, handler, client)),
        Err(error) => {
            drop(link.take_runner()); // it holds the link
            Err(error)
        }
    }
}

fn start(
    link: Link,
    mut session: Session,
    clock: Clock,
    handler: Arc<dyn Handler>,
    client: bool,
) -> Connection {
    session.set_datagrams(link.max_datagram_len() >= DATAGRAM_MIN);
    let inner = Arc::new(Inner::new(
        session,
        clock,
        handler,
        link.remote_address(),
        link.carrier(),
    ));
    let connection = Connection::new(Arc::clone(&inner), client);
    let span =
        tracing::debug_span!("session", remote = %inner.remote, carrier = %inner.carrier, client);
    let supervisor = Supervisor {
        link,
        inner: Arc::clone(&inner),
        client,
        accepted: 0,
    };
    if let Some(runner) = supervisor.link.take_runner() {
        inner.tasks.spawn(runner.instrument(span.clone()));
    }
    inner.tasks.spawn(supervisor.run().instrument(span));
    inner.tasks.close();
    connection
}

/// A datagram must hold a heartbeat: frame header, message header and payload.
const DATAGRAM_MIN: usize = 8 + 35 + 20;

struct Supervisor {
    link: Link,
    inner: Arc<Inner>,
    client: bool,
    /// Lanes that the peer has opened.
    accepted: u16,
}

impl Drop for Supervisor {
    /// Before the session's end this means that the runtime stopped. Nobody is left to keep deadlines, so every caller is told now.
    fn drop(&mut self) {
        let mut core = self.inner.lock();
        if core.closed.is_some() {
            return;
        }
        core.session.carrier_lost(
            ErrorCode::UNAVAILABLE,
            "the runtime that drove the connection has stopped",
        );
        let now = self.inner.clock.now();
        while let Some(event) = core.session.poll_event(now) {
            match event {
                Event::Answer(key, result) => core.on_answer(key, result),
                Event::BatchAnswer(key, answers) => core.on_batch_answer(key, answers),
                Event::Readable(key) => core.on_readable(key),
                Event::Writable(key) => core.on_writable(key),
                Event::Closed(reason) => self.inner.on_closed(&mut core, reason),
                _ => {}
            }
        }
    }
}

impl Supervisor {
    async fn run(mut self) {
        if self.client {
            // Lane 0 before anything else: its first bytes are the session's first flight.
            self.inner.with(|_, _| ());
        }
        let mut timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        loop {
            self.open_lanes().await;
            self.inner.pump();
            self.send_datagrams();
            let at = {
                let mut core = self.inner.lock();
                if core.closed.is_some() {
                    break;
                }
                core.session.poll_timeout()
            };
            if let Some(at) = at {
                timer.as_mut().reset(self.inner.clock.instant(at));
            }
            tokio::select! {
                () = self.inner.supervisor.notified() => {}
                () = &mut timer, if at.is_some() => {
                    self.inner.with(|core, now| core.session.handle_timeout(now));
                }
                datagram = self.link.read_datagram() => if let Some(datagram) = datagram {
                    self.inner.with(|core, now| core.session.handle_datagram(now, datagram));
                } else {
                    self.link_ended().await;
                },
                lane = self.link.accept_lane(), if !self.client && self.accepted < LANES_MAX => match lane {
                    Some((reader, writer)) => {
                        let lane = LaneId(self.accepted);
                        self.accepted = self.accepted.saturating_add(1);
                        self.add_lane(lane, reader, writer);
                    }
                    None => self.link_ended().await,
                },
                _ = self.link.closed() => self.link_ended().await,
            }
        }
        self.close_link().await;
    }

    /// Opens the lanes that a client's session wants to write on.
    async fn open_lanes(&self) {
        let wanted = self.inner.lock().lanes_to_open();
        for lane in wanted {
            match self.link.open_lane().await {
                Some((reader, writer)) => self.add_lane(lane, reader, writer),
                None => self.link_ended().await,
            }
        }
    }

    fn add_lane(&self, lane: LaneId, reader: LaneReader, writer: LaneWriter) {
        if let Some(state) = self.inner.lock().writers.get_mut(usize::from(lane.0)) {
            *state = Writer::Busy;
        }
        if lane == LaneId::ZERO {
            writer.hurry();
        }
        let writing = write_lane(Arc::clone(&self.inner), self.link.clone(), lane, writer);
        let reading = read_lane(Arc::clone(&self.inner), self.link.clone(), lane, reader);
        self.inner.tasks.spawn(writing.in_current_span());
        self.inner.tasks.spawn(reading.in_current_span());
    }

    fn send_datagrams(&self) {
        loop {
            let Some(datagram) = self.inner.lock().session.poll_datagram() else {
                return;
            };
            if !self.link.send_datagram(&datagram) {
                return; // it may be lost, and was
            }
        }
    }

    /// The link ended before the session did.
    async fn link_ended(&self) {
        let (code, reason) = match self.link.closed().await {
            LinkEnd::Peer { code, reason } => (code, reason),
            LinkEnd::Broken { code, reason } => {
                self.inner.with(|core, _| core.session.abort(code, &reason));
                self.inner.pump();
                return;
            }
            LinkEnd::Local => (
                ErrorCode::UNAVAILABLE,
                "this side closed the link".to_owned(),
            ),
            LinkEnd::Refused { status } => {
                let reason = format!("session refused with status {status}");
                let code = code_of_status(status);
                self.inner
                    .with(|core, _| core.session.carrier_refused(code, &reason));
                self.inner.pump();
                return;
            }
            LinkEnd::Lost { reason } => (ErrorCode::UNAVAILABLE, reason),
        };
        self.inner
            .with(|core, _| core.session.carrier_lost(code, &reason));
        self.inner.pump();
    }

    /// Lets what is queued leave, then closes the link with the session's code and reason.
    async fn close_link(&self) {
        let Some(reason) = self.inner.lock().closed.clone() else {
            return;
        };
        debug!(code = %reason.code, reason = %reason.reason, by_peer = reason.by_peer, "session closed");
        let flushed = poll_fn(|cx| self.inner.lock().poll_writers_done(cx));
        if !self.link.has_ended() {
            let _ = tokio::time::timeout(LINGER_MAX, flushed).await;
        }
        self.link.close(reason.code, &reason.reason).await;
    }
}

/// What a refused link means for calls: a refusal that would be repeated must not look like one that passes. Spec: transport §1.5.
#[must_use]
pub fn code_of_status(status: http::StatusCode) -> ErrorCode {
    match status.as_u16() {
        401 => ErrorCode::UNAUTHENTICATED,
        403 => ErrorCode::PERMISSION_DENIED,
        429 | 500 | 502..=504 => ErrorCode::UNAVAILABLE,
        _ => ErrorCode::UNIMPLEMENTED,
    }
}

/// Reads one lane until it ends.
async fn read_lane(inner: Arc<Inner>, link: Link, lane: LaneId, mut reader: LaneReader) {
    let mut chunks = VecDeque::new();
    let mut end = None;
    loop {
        if end.is_none() {
            end = poll_fn(|cx| reader.poll_chunks(cx, &mut chunks)).await;
        }
        while !chunks.is_empty() {
            let waiting = {
                let now = inner.clock.now();
                let round_trip = link.round_trip();
                let mut core = inner.lock();
                if let Some(round_trip) = round_trip {
                    core.session.set_round_trip(round_trip);
                }
                while let Some(input) = chunks.front_mut() {
                    // An error has already become the session's end.
                    let _ = core.session.handle_input(now, lane, input);
                    if !input.is_empty() {
                        break;
                    }
                    chunks.pop_front();
                }
                if core.closed.is_some() || core.session.state().is_closed() {
                    drop(core);
                    inner.pump();
                    reader.stop();
                    return;
                }
                !chunks.is_empty()
            };
            inner.pump();
            if waiting {
                poll_fn(|cx| inner.lock().poll_input(cx)).await;
            }
        }
        match end.take() {
            None => {}
            Some(Ok(())) => {
                inner.lane_ended(lane);
                if lane == LaneId::ZERO {
                    lane_broke(&inner, &link, lane, "the peer ended it and kept the link").await;
                }
                return;
            }
            Some(Err(error)) => {
                lane_broke(&inner, &link, lane, &error.to_string()).await;
                return;
            }
        }
    }
}

/// A lane broke. Mostly because the link ended, which the supervisor acts on: it has the code and the reason. Otherwise the
/// session ends here, for a lane cannot be mended.
async fn lane_broke(inner: &Arc<Inner>, link: &Link, lane: LaneId, why: &str) {
    debug!(lane = lane.0, why, "lane broke");
    if tokio::time::timeout(LINGER_MAX, link.closed())
        .await
        .is_err()
    {
        let reason = format!("lane {} broke: {why}", lane.0);
        inner
            .lock()
            .session
            .carrier_lost(ErrorCode::UNAVAILABLE, &reason);
        inner.pump();
    }
}

/// Writes one lane until the session has ended and nothing is left.
async fn write_lane(inner: Arc<Inner>, link: Link, lane: LaneId, mut writer: LaneWriter) {
    let mut out: VecDeque<Bytes> = VecDeque::new();
    loop {
        let more = poll_fn(|cx| inner.lock().poll_output(cx, lane, &mut out)).await;
        if !more {
            break;
        }
        let written = writer.write(&mut out).await;
        inner.wrote();
        if let Err(error) = written {
            // First of all, so that an end under way does not wait for a lane that is lost.
            inner.lock().writer_gone(lane);
            lane_broke(&inner, &link, lane, &error.to_string()).await;
            return;
        }
    }
    // LINGER_MAX bounds the wait from outside.
    writer.finish().await;
    inner.lock().writer_gone(lane);
}

/// Requests on their way to their handlers and answers on their way back, while [`Inner::pump`] runs; empty otherwise.
#[derive(Default)]
struct Scratch {
    requests: Vec<(CallKey, PeerRequest)>,
    answers: Vec<(CallKey, Answer)>,
}

thread_local! {
    /// One for all connections of a thread: a busy one needs it at every read, an idle one should not hold it.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl Inner {
    /// Takes what happened in the session and acts on it. Only the connection's own tasks do this.
    pub(crate) fn pump(self: &Arc<Self>) {
        let Scratch {
            mut requests,
            mut answers,
        } = SCRATCH.take();
        loop {
            let now = self.clock.now();
            let mut core = self.lock();
            for (key, answer) in answers.drain(..) {
                core.session.respond(now, key, answer);
            }
            let more = self.take_events(&mut core, now, &mut requests);
            let wanted = core.wants_supervisor();
            drop(core);
            if wanted {
                self.supervisor.notify_one();
            }
            if requests.is_empty() && !more {
                break;
            }
            let connection = Connection::new(Arc::clone(self), false);
            for (key, request) in requests.drain(..) {
                if let Some(answer) = self.dispatch(&connection, key, request) {
                    answers.push((key, answer));
                }
            }
        }
        SCRATCH.set(Scratch { requests, answers });
    }

    /// Drains the session's events. True when it stopped before the last.
    fn take_events(
        self: &Arc<Self>,
        core: &mut Core,
        now: remus_wire::Timestamp,
        requests: &mut Vec<(CallKey, PeerRequest)>,
    ) -> bool {
        while requests.len() < REQUESTS_AT_ONCE {
            let Some(event) = core.session.poll_event(now) else {
                return false;
            };
            match event {
                Event::Answer(key, result) => core.on_answer(key, result),
                Event::BatchAnswer(key, answers) => core.on_batch_answer(key, answers),
                Event::Readable(key) => core.on_readable(key),
                Event::Writable(key) => core.on_writable(key),
                Event::Cancelled(key, _) => core.on_cancelled(key),
                Event::Request(incoming) => requests.push(PeerRequest::new(self, core, incoming)),
                Event::Authenticate(record) => self.decide(record),
                Event::Query(id, query) => self.answer_query(core, now, id, &query),
                Event::Active(_) => {
                    self.set_status(ConnectionStatus::Active);
                    core.wake_blocked();
                }
                Event::Uncongested => core.wake_blocked(),
                Event::PathMeasured => self.path_measured(),
                Event::ShuttingDown(shutdown) => {
                    self.set_status(ConnectionStatus::Draining(shutdown));
                    core.wake_blocked();
                }
                // No method that this side offers answers a challenge.
                Event::Challenge(_) => core.session.abort(
                    ErrorCode::UNAUTHENTICATED,
                    "the peer sent a challenge, and no key was given to answer it",
                ),
                Event::Offered(offer) => debug!(version = ?offer.version, "offer taken"),
                Event::Closed(reason) => self.on_closed(core, reason),
                _ => {}
            }
        }
        true
    }

    fn on_closed(&self, core: &mut Core, reason: CloseReason) {
        core.closed = Some(reason.clone());
        for (_, handler) in core.handlers.drain() {
            handler.abort();
        }
        core.wake_blocked();
        core.wake_input();
        self.set_status(ConnectionStatus::Closed(reason));
        self.supervisor.notify_one();
    }

    fn set_status(&self, status: ConnectionStatus) {
        let takes_calls = matches!(status, ConnectionStatus::Opening | ConnectionStatus::Active);
        self.takes_calls.store(takes_calls, Ordering::Release);
        self.status.send_replace(status);
    }

    /// Lets the handler decide about the client, without holding anything up but this session.
    fn decide(self: &Arc<Self>, record: AuthenticationRecord) {
        let inner = Arc::clone(self);
        self.tasks.spawn(
            async move {
                let connection = Connection::new(Arc::clone(&inner), false);
                let decision = inner.handler.authenticate(&connection, record).await;
                {
                    let now = inner.clock.now();
                    let mut core = inner.lock();
                    match decision {
                        Ok(grant) => core.session.grant(now, grant),
                        Err(error) => core.session.refuse(now, error),
                    }
                    core.wake_input();
                }
                inner.pump();
            }
            .in_current_span(),
        );
    }

    fn answer_query(
        &self,
        core: &mut Core,
        now: remus_wire::Timestamp,
        id: RequestId,
        query: &Query,
    ) {
        let answer = self.handler.directory(query);
        core.session.answer_query(now, id, &answer);
    }

    /// Starts one handler. Its answer, if it was ready at once.
    fn dispatch(
        self: &Arc<Self>,
        connection: &Connection,
        key: CallKey,
        request: PeerRequest,
    ) -> Option<Answer> {
        let begun = std::panic::catch_unwind(AssertUnwindSafe(|| {
            self.handler.request(connection, request)
        }));
        match begun {
            Ok(Dispatch::Ready(answer)) => Some(answer),
            Ok(Dispatch::Later(future)) => {
                self.spawn_handler(key, future);
                None
            }
            Err(_) => Some(Answer::Error(ErrorRecord::new(
                ErrorCode::INTERNAL,
                Text::from_static("the handler panicked"),
            ))),
        }
    }

    fn spawn_handler(self: &Arc<Self>, key: CallKey, future: HandlerFuture) {
        let mut core = self.lock();
        if !core.session.has_call(key) {
            return; // cancelled meanwhile: dropping the future is how it hears of it
        }
        let running = Running {
            inner: Arc::clone(self),
            key,
        };
        // The lock is held, so the task cannot finish before its handle is in the table.
        let task = self.tasks.spawn(
            async move {
                let answer = future.await;
                running.finish(answer);
            }
            .in_current_span(),
        );
        core.handlers.insert(key, task.abort_handle());
    }

    fn lane_ended(self: &Arc<Self>, lane: LaneId) {
        // An error has already become the session's end.
        let _ = self.lock().session.handle_lane_end(lane);
        self.pump();
    }

    /// After bytes have left: there may be room for what waited.
    fn wrote(self: &Arc<Self>) {
        if self.lock().session.has_events() {
            self.pump();
        }
    }
}

/// A handler at work. However it ends, its call is answered.
struct Running {
    inner: Arc<Inner>,
    key: CallKey,
}

impl Running {
    fn finish(self, answer: Option<Answer>) {
        if let Some(answer) = answer {
            self.inner
                .with(|core, now| core.session.respond(now, self.key, answer));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After an answer the key is spent and this does nothing; after a panic the caller hears of it.
        self.inner.with(|core, now| {
            core.handlers.remove(&self.key);
            core.session.release(now, self.key);
        });
    }
}

impl Core {
    fn poll_output(
        &mut self,
        cx: &mut Context<'_>,
        lane: LaneId,
        out: &mut VecDeque<Bytes>,
    ) -> Poll<bool> {
        if self.session.poll_transmit(lane, out) {
            return Poll::Ready(true);
        }
        if self.closed.is_some() {
            return Poll::Ready(false);
        }
        if let Some(writer) = self.writers.get_mut(usize::from(lane.0)) {
            *writer = Writer::Waiting(cx.waker().clone());
        }
        Poll::Pending
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.session.wants_input() || self.closed.is_some() {
            return Poll::Ready(());
        }
        self.input_waiters.push(cx.waker().clone());
        Poll::Pending
    }

    fn writer_gone(&mut self, lane: LaneId) {
        if let Some(writer) = self.writers.get_mut(usize::from(lane.0)) {
            *writer = Writer::Gone;
        }
        self.wake_input();
    }

    /// Ready when every lane's writer has ended.
    fn poll_writers_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self
            .writers
            .iter()
            .all(|writer| matches!(writer, Writer::Absent | Writer::Wanted | Writer::Gone))
        {
            return Poll::Ready(());
        }
        for writer in &mut self.writers {
            if let Writer::Waiting(_) = writer
                && let Writer::Waiting(waker) = std::mem::replace(writer, Writer::Busy)
            {
                waker.wake();
            }
        }
        self.input_waiters.push(cx.waker().clone());
        Poll::Pending
    }
}
