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

use bytes::{Buf, Bytes};
use remus_session::{
    Answer, CallKey, CloseReason, ConfigError, Event, Grant, LANES_MAX, LaneId, Peeked,
    RESUME_REQUEST_MAX, ResumeError, ResumeRequest, Session, SessionConfig, peek_resume,
    refuse_resume,
};
use remus_wire::{
    AuthenticationRecord, ErrorCode, ErrorRecord, Features, Query, QueryAnswer, RequestId, Text,
};
use tracing::{Instrument, debug};

use crate::clock::Clock;
use crate::connection::{Connection, ConnectionStatus, Core, Inner, PeerRequest, Writer};
use crate::link::framed::Runner;
use crate::link::{Carrier, LaneReader, LaneWriter, Link, LinkEnd};
use crate::sessions::{Identity, SUSPENDED_MAX, new_token};
use crate::webtransport::{Acceptor, ConnectError};

/// How long what is already queued may take to leave after the session has ended.
///
/// Enough for a refusal or the last answers to cross a slow network twice; a peer that reads nothing cannot hold us longer.
pub const LINGER_MAX: Duration = Duration::from_secs(2);

/// Requests handed out before their answers are put back into the session, and leave.
///
/// Bounds what is done under one lock, and how many requests an answer waits for that came in one read with its own: the caller works on
/// the first answers while the rest are made.
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
    ///
    /// Asked for each session, for each renewal, and each time a client wants to go on with its session on another carrier:
    /// `connection` is that session then, and all that counts of the grant is whether it is the same client's. Each answer has to stand
    /// by itself, as the future may be dropped.
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

/// Makes further links to the acceptor of a session.
pub(crate) trait Dial: Send + Sync + 'static {
    /// Another link, by whatever carrier can be had. Tries for as long as it is polled.
    fn dial(self: Arc<Self>) -> Pin<Box<dyn Future<Output = Link> + Send>>;

    /// A link by this carrier, in one attempt.
    fn open(
        self: Arc<Self>,
        carrier: Carrier,
    ) -> Pin<Box<dyn Future<Output = Result<Link, ConnectError>> + Send>>;

    /// A link by a carrier that is preferred to this one. Tries now and then for as long as it is polled; `None` where this is the
    /// preferred one.
    fn climb(self: Arc<Self>, from: Carrier) -> Option<Pin<Box<dyn Future<Output = Link> + Send>>>;
}

/// Joins a client's session to `link` and starts its tasks. Small calls may be made at once.
///
/// With a dialler the session outlives its link, where the acceptor agrees.
pub(crate) fn client(
    link: Link,
    mut config: SessionConfig,
    handler: Arc<dyn Handler>,
    dialler: Option<Arc<dyn Dial>>,
) -> Result<Connection, ConfigError> {
    if dialler.is_some() {
        config.features |= Features::RESUMPTION;
    }
    let clock = Clock::new();
    let mut session = match Session::client(config, clock.now()) {
        Ok(session) => session,
        Err(error) => {
            drop(link.take_runner()); // it holds the link
            return Err(error);
        }
    };
    session.set_carrier(link.info());
    let runner = link.take_runner();
    let mut inner = Inner::new(session, clock, handler, link, None);
    inner.dialler = dialler;
    let inner = Arc::new(inner);
    inner.run_link(runner);
    let connection = Connection::new(Arc::clone(&inner), true);
    supervise(&inner, true);
    Ok(connection)
}

/// Takes what comes on a new link of an acceptor: a session of its own, or one that goes on.
pub(crate) async fn accept(link: Link, acceptor: Arc<dyn Acceptor>) {
    if let Some(runner) = link.take_runner() {
        tokio::spawn(runner.in_current_span()); // ends with the link
    }
    let mut config = acceptor.session_config();
    let patience = config.handshake_timeout;
    let Ok(front) = tokio::time::timeout(patience, read_front(&link)).await else {
        let after = patience.as_millis();
        let reason = format!("nothing was said within {after} ms");
        link.close(ErrorCode::HANDSHAKE_TIMEOUT, &reason).await;
        return;
    };
    let Some(mut front) = front else {
        debug!("the link ended before anything was said on it");
        return;
    };
    if let Peeked::Resume(request) = &front.peeked {
        let len = request.len;
        match resume(&link, &*acceptor, patience, request).await {
            Ok((inner, place)) => {
                front.skip(len);
                inner.begin(place, front);
                inner.supervisor.notify_one();
            }
            Err(reason) => refuse(&link, front, &reason).await,
        }
        return;
    }
    let sessions = Arc::clone(acceptor.sessions());
    config.features |= Features::RESUMPTION;
    let clock = Clock::new();
    let mut session = match Session::acceptor(config, clock.now()) {
        Ok(session) => session,
        Err(error) => return tracing::error!(%error, "the session's settings are wrong"),
    };
    session.set_carrier(link.info());
    let place = Place {
        link: link.clone(),
        number: session.attachment(),
        lane: LaneId::ZERO,
    };
    let inner = Inner::new(session, clock, acceptor.handler(), link, Some(sessions));
    let inner = Arc::new(inner);
    // What the session does first finds its owner prepared.
    acceptor.opened(Connection::new(Arc::clone(&inner), false));
    inner.begin(place, front);
    supervise(&inner, false);
}

/// What a new link brought first, on its lane 0.
struct Front {
    reader: LaneReader,
    writer: LaneWriter,
    chunks: VecDeque<Bytes>,
    peeked: Peeked,
}

/// Waits for enough of lane 0 to tell what the link is for; `None` where it ended before.
async fn read_front(link: &Link) -> Option<Front> {
    let (mut reader, writer) = link.accept_lane().await?;
    let mut chunks: VecDeque<Bytes> = VecDeque::new();
    // Only where the first chunk is not enough: as much as there is, in one piece, so that each byte is copied once.
    let mut gathered: Vec<u8> = Vec::new();
    loop {
        let known = chunks.len();
        let end = poll_fn(|cx| reader.poll_chunks(cx, &mut chunks)).await;
        let peeked = match chunks.front() {
            Some(first) if chunks.len() == 1 => peek_resume(first),
            _ => {
                let skipped = if gathered.is_empty() { 0 } else { known };
                for chunk in chunks.iter().skip(skipped) {
                    let room = RESUME_REQUEST_MAX.saturating_sub(gathered.len());
                    gathered.extend(chunk.iter().take(room));
                }
                peek_resume(&gathered)
            }
        };
        if peeked != Peeked::NeedMore || end.is_some() {
            return Some(Front {
                reader,
                writer,
                chunks,
                peeked,
            });
        }
    }
}

/// What a client hears that cannot have the session it asks for. The same words whatever the reason is, so that who has found a token
/// learns nothing from them.
const NOT_RESUMED: &str = "no session of yours waits under this token: it has ended, or the token was used, or it is another's";

impl Front {
    /// Leaves out the first `len` bytes.
    fn skip(&mut self, mut len: usize) {
        while let Some(chunk) = self.chunks.front_mut()
            && len > 0
        {
            let taken = len.min(chunk.len());
            chunk.advance(taken);
            len = len.saturating_sub(taken);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
    }
}

/// Gives the link to the session that the client means, once it is known to be the one that the session belongs to; or says why not.
///
/// Meanwhile nothing is read of the link, and the session stays as it is. Of two that ask at once the later to be known wins.
async fn resume(
    link: &Link,
    acceptor: &dyn Acceptor,
    patience: Duration,
    request: &ResumeRequest,
) -> Result<(Arc<Inner>, Place), String> {
    let refused = || NOT_RESUMED.to_owned();
    let inner = acceptor
        .sessions()
        .find(request.token)
        .ok_or_else(refused)?;
    let record = &request.authentication;
    let connection = Connection::new(Arc::clone(&inner), false);
    let deciding = inner.handler.authenticate(&connection, record.clone());
    let decision = tokio::select! {
        decision = tokio::time::timeout(patience, deciding) => decision,
        _ = link.closed() => return Err(refused()), // to nobody
    };
    let Ok(Ok(grant)) = decision else {
        return Err(refused());
    };
    let asking = Identity::of(record, &grant);
    let (old, place) = {
        let now = inner.clock.now();
        let mut core = inner.lock();
        // The session may have become another's meanwhile, and the link nobody's.
        if core.identity != asking || link.has_ended() {
            return Err(refused());
        }
        let number = core
            .session
            .resume(now, request, new_token(), link.info())
            .map_err(|error| match error {
                ResumeError::NotResumable | ResumeError::WrongToken => refused(),
                error => error.to_string(),
            })?;
        let old = core.relink(Some(link.clone()));
        acceptor.sessions().update(&inner, &mut core);
        let place = Place {
            link: link.clone(),
            number,
            lane: LaneId::ZERO,
        };
        (old, place)
    };
    debug!(carrier = %link.carrier(), "session resumed");
    if let Some(old) = old {
        old.abandon("the session goes on over another carrier");
    }
    Ok((inner, place))
}

/// Tells a client that its session cannot go on.
async fn refuse(link: &Link, mut front: Front, reason: &str) {
    debug!(reason, "session not resumed");
    let answer = refuse_resume(Clock::new().now(), reason);
    let telling = async {
        if front
            .writer
            .write(&mut VecDeque::from([answer]))
            .await
            .is_ok()
        {
            front.writer.finish().await;
        }
    };
    let _ = tokio::time::timeout(LINGER_MAX, telling).await;
    link.close(ErrorCode::LOSS_OF_SESSION, reason).await;
}

/// Starts the task that supervises a session until its end, on whatever carriers.
fn supervise(inner: &Arc<Inner>, client: bool) {
    let (link, number) = {
        let core = inner.lock();
        (core.link.clone(), core.number)
    };
    let span = tracing::debug_span!("session", client);
    let supervisor = Supervisor {
        link,
        number,
        inner: Arc::clone(inner),
        client,
        accepted: 1,
    };
    inner.tasks.spawn(supervisor.run().instrument(span));
    inner.tasks.close();
}

/// How long a client waits before it looks for another carrier again: at first, and at most. It doubles, and up to half of it is
/// added at random, so that the clients of a node that went away do not all come back at once.
const REDIAL_FIRST: Duration = Duration::from_millis(50);
const REDIAL_LONGEST: Duration = Duration::from_secs(5);

struct Supervisor {
    link: Option<Link>,
    /// The session's number for the link.
    number: u32,
    inner: Arc<Inner>,
    client: bool,
    /// Lanes that the peer has opened on this link.
    accepted: u16,
}

/// Another link on its way.
type Dialling = Option<Pin<Box<dyn Future<Output = Link> + Send>>>;

/// What a client looks for beside the link that it has.
#[derive(Default)]
struct Search {
    goal: Goal,
    way: Dialling,
    /// Links in a row on which the session did not go on.
    redials: u32,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Goal {
    #[default]
    Nothing,
    /// Any link: there is none.
    Any,
    /// A link by a carrier that is preferred to this one.
    Above(Carrier),
}

impl Drop for Supervisor {
    /// Before the session's end this means that the runtime stopped. Nobody is left to keep deadlines, so every caller is told now.
    fn drop(&mut self) {
        let mut core = self.inner.lock();
        if core.closed.is_some() {
            return;
        }
        if let Some(sessions) = &self.inner.sessions {
            sessions.forget(&mut core);
        }
        core.session.carrier_lost(
            ErrorCode::UNAVAILABLE,
            "the runtime that drove the connection has stopped",
        );
        // Whoever still has a handle of the connection must not keep its socket.
        drop((self.link.take(), core.relink(None), core.next.take()));
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
        let mut search = Search::default();
        loop {
            self.follow(&mut search);
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
            let accepts = !self.client && self.accepted < LANES_MAX;
            let link = self.link.as_ref();
            tokio::select! {
                () = self.inner.supervisor.notified() => {}
                () = &mut timer, if at.is_some() => {
                    self.inner.with(|core, now| core.session.handle_timeout(now));
                }
                datagram = of(link, Link::read_datagram) => if let Some(datagram) = datagram {
                    self.inner.with(|core, now| if core.number == self.number {
                        core.session.handle_datagram(now, datagram);
                    });
                } else {
                    self.link_ended().await;
                },
                lane = of(link, Link::accept_lane), if accepts => match lane {
                    Some((reader, writer)) => {
                        let lane = LaneId(self.accepted);
                        self.accepted = self.accepted.saturating_add(1);
                        self.add_lane(lane, reader, writer);
                    }
                    None => self.link_ended().await,
                },
                _ = of(link, Link::closed) => self.link_ended().await,
                link = dialled(&mut search.way) => {
                    search.way = None;
                    self.attach(link);
                }
            }
        }
        self.close_link().await;
    }

    /// Notices that the session has another link, or none, and sees to it that a client without one gets one, and one with a lesser
    /// carrier a better one.
    fn follow(&mut self, search: &mut Search) {
        let (next, suspended, pinned) = {
            let mut core = self.inner.lock();
            if core.number != self.number {
                self.number = core.number;
                self.link = core.link.clone();
                self.accepted = 1;
            }
            let suspended = core.session.is_suspended();
            (core.next.take(), suspended, core.pinned)
        };
        if let Some(next) = next {
            self.attach(next);
        }
        let Some(dialler) = &self.inner.dialler else {
            return;
        };
        let goal = match (&self.link, suspended) {
            (None, _) => Goal::Any,
            // It asks to go on, or has been told where to stay.
            (Some(_), true) => Goal::Nothing,
            (Some(_), false) if pinned => Goal::Nothing,
            (Some(link), false) => Goal::Above(link.carrier()),
        };
        if !suspended {
            search.redials = 0;
        }
        if search.goal == goal {
            return;
        }
        search.goal = goal;
        let dialler = Arc::clone(dialler);
        search.way = match goal {
            Goal::Nothing => None,
            Goal::Above(carrier) => dialler.climb(carrier),
            Goal::Any => {
                let wait = search.redials.checked_sub(1).map(pause);
                search.redials = search.redials.saturating_add(1);
                Some(Box::pin(async move {
                    if let Some(wait) = wait {
                        tokio::time::sleep(wait).await;
                    }
                    dialler.dial().await
                }))
            }
        };
    }

    /// Client: asks on `link` to go on with the session.
    fn attach(&mut self, link: Link) {
        let old = {
            let now = self.inner.clock.now();
            let mut core = self.inner.lock();
            match core.session.attach(now, link.info()) {
                Ok(_) => {
                    debug!(carrier = %link.carrier(), "asking to go on");
                    let old = core.relink(Some(link.clone()));
                    self.inner.run_link(link.take_runner());
                    // Lane 0 has the request, and is opened by the next step.
                    core.wants_supervisor();
                    (self.link, self.number) = (Some(link), core.number);
                    old
                }
                Err(error) => {
                    debug!(%error, "the session cannot go on over another carrier");
                    drop(link.take_runner()); // it holds the link
                    Some(link)
                }
            }
        };
        if let Some(old) = old {
            old.abandon("the session goes on over another carrier");
        }
    }

    /// Opens the lanes that a client's session wants to write on.
    async fn open_lanes(&self) {
        let Some(link) = &self.link else { return };
        let wanted = {
            let mut core = self.inner.lock();
            if core.number != self.number {
                return;
            }
            core.lanes_to_open()
        };
        for lane in wanted {
            match link.open_lane().await {
                Some((reader, writer)) => self.add_lane(lane, reader, writer),
                None => return self.link_ended().await,
            }
        }
    }

    fn add_lane(&self, lane: LaneId, reader: LaneReader, writer: LaneWriter) {
        if let Some(link) = &self.link {
            let place = Place {
                link: link.clone(),
                number: self.number,
                lane,
            };
            self.inner.add_lane(place, reader, writer, VecDeque::new());
        }
    }

    fn send_datagrams(&self) {
        loop {
            let Some(datagram) = self.inner.lock().session.poll_datagram() else {
                return;
            };
            if !self
                .link
                .as_ref()
                .is_some_and(|link| link.send_datagram(&datagram))
            {
                return; // it may be lost, and was
            }
        }
    }

    /// The link ended before the session did.
    async fn link_ended(&self) {
        let Some(link) = &self.link else { return };
        let end = link.closed().await;
        self.inner.link_ended(self.number, end);
    }

    /// Lets what is queued leave, then closes the link with the session's code and reason.
    async fn close_link(&self) {
        let (reason, link) = {
            let core = self.inner.lock();
            (core.closed.clone(), core.link.clone())
        };
        let Some(reason) = reason else { return };
        debug!(code = %reason.code, reason = %reason.reason, by_peer = reason.by_peer, "session closed");
        let Some(link) = link else { return };
        let flushed = poll_fn(|cx| self.inner.lock().poll_writers_done(cx));
        if !link.has_ended() {
            let _ = tokio::time::timeout(LINGER_MAX, flushed).await;
        }
        link.close(reason.code, &reason.reason).await;
    }
}

/// A future of the link; without one it waits for ever.
async fn of<'l, T, F: Future<Output = T>>(
    link: Option<&'l Link>,
    what: impl FnOnce(&'l Link) -> F,
) -> T {
    match link {
        Some(link) => what(link).await,
        None => std::future::pending().await,
    }
}

async fn dialled(dialling: &mut Dialling) -> Link {
    match dialling {
        Some(dialling) => dialling.await,
        None => std::future::pending().await,
    }
}

/// The wait before an attempt that follows `attempt` failed ones.
pub(crate) fn pause(attempt: u32) -> Duration {
    let base = REDIAL_FIRST
        .saturating_mul(1 << attempt.min(7))
        .min(REDIAL_LONGEST);
    // A hash with a secret of its own is random enough to keep clients apart.
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), attempt);
    let half = u64::try_from(base.as_millis() / 2).unwrap_or(0);
    base.saturating_add(Duration::from_millis(random % half.max(1)))
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

/// Where a lane's tasks belong: once the session has another link, they have nothing more to do.
#[derive(Clone)]
struct Place {
    link: Link,
    number: u32,
    lane: LaneId,
}

/// Reads one lane until it ends. `chunks` have been read already.
async fn read_lane(
    inner: Arc<Inner>,
    place: Place,
    mut reader: LaneReader,
    mut chunks: VecDeque<Bytes>,
) {
    let mut end = None;
    loop {
        if end.is_none() && chunks.is_empty() {
            end = poll_fn(|cx| reader.poll_chunks(cx, &mut chunks)).await;
        }
        while !chunks.is_empty() {
            let waiting = {
                let now = inner.clock.now();
                let round_trip = place.link.round_trip();
                let mut core = inner.lock();
                if core.session.attachment() != place.number {
                    return;
                }
                if let Some(round_trip) = round_trip {
                    core.session.set_round_trip(round_trip);
                }
                while let Some(input) = chunks.front_mut() {
                    // An error has already become the session's end.
                    let _ = core.session.handle_input(now, place.lane, input);
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
            while inner.pump_some() {
                // The answers so far leave first.
                let mut back = ComesBack {
                    inner: &inner,
                    came: false,
                };
                tokio::task::yield_now().await;
                back.came = true;
            }
            if waiting {
                poll_fn(|cx| inner.lock().poll_input(cx, place.number)).await;
            }
        }
        match end.take() {
            None => {}
            Some(Ok(())) => {
                let loses_carrier = inner.lane_ended(&place);
                if loses_carrier || place.lane == LaneId::ZERO {
                    lane_broke(&inner, &place, "the peer ended it and kept the link").await;
                }
                return;
            }
            Some(Err(error)) => {
                lane_broke(&inner, &place, &error.to_string()).await;
                return;
            }
        }
    }
}

/// A reader that has stopped among the events. One that is dropped there leaves them to the supervisor.
struct ComesBack<'a> {
    inner: &'a Inner,
    came: bool,
}

impl Drop for ComesBack<'_> {
    fn drop(&mut self) {
        if !self.came {
            self.inner.lock().taking = false;
            self.inner.supervisor.notify_one();
        }
    }
}

/// A lane broke. Mostly because the link ended, which the supervisor acts on: it has the code and the reason. Otherwise the
/// link is of no use any more, for a lane cannot be mended.
async fn lane_broke(inner: &Arc<Inner>, place: &Place, why: &str) {
    debug!(lane = place.lane.0, why, "lane broke");
    if tokio::time::timeout(LINGER_MAX, place.link.closed())
        .await
        .is_err()
    {
        let reason = format!("lane {} broke: {why}", place.lane.0);
        inner.link_ended(place.number, LinkEnd::Lost { reason });
    }
}

/// Writes one lane until the session has ended and nothing is left.
async fn write_lane(inner: Arc<Inner>, place: Place, mut writer: LaneWriter) {
    let mut out: VecDeque<Bytes> = VecDeque::new();
    loop {
        let more = poll_fn(|cx| inner.lock().poll_output(cx, &place, &mut out)).await;
        if !more {
            break;
        }
        let written = writer.write(&mut out).await;
        inner.wrote();
        if let Err(error) = written {
            // First of all, so that an end under way does not wait for a lane that is lost.
            inner.lock().writer_gone(&place);
            lane_broke(&inner, &place, &error.to_string()).await;
            return;
        }
    }
    if inner.lock().session.attachment() == place.number {
        // LINGER_MAX bounds the wait from outside.
        writer.finish().await;
    }
    inner.lock().writer_gone(&place);
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
    /// Starts what moves a link's bytes, where it needs that.
    fn run_link(&self, runner: Option<Runner>) {
        if let Some(runner) = runner {
            self.tasks.spawn(runner.in_current_span());
        }
    }

    /// Starts the tasks of a lane.
    fn add_lane(
        self: &Arc<Self>,
        place: Place,
        reader: LaneReader,
        writer: LaneWriter,
        chunks: VecDeque<Bytes>,
    ) {
        {
            let mut core = self.lock();
            if core.session.attachment() != place.number {
                return;
            }
            if let Some(state) = core.writers.get_mut(usize::from(place.lane.0)) {
                *state = Writer::Busy;
            }
        }
        if place.lane == LaneId::ZERO {
            writer.hurry();
        }
        let writing = write_lane(Arc::clone(self), place.clone(), writer);
        let reading = read_lane(Arc::clone(self), place, reader, chunks);
        self.tasks.spawn(writing.in_current_span());
        self.tasks.spawn(reading.in_current_span());
    }

    /// Acceptor: starts lane 0 of a link of the session's, of which the first bytes are there.
    fn begin(self: &Arc<Self>, place: Place, front: Front) {
        self.add_lane(place, front.reader, front.writer, front.chunks);
    }

    /// The link of this number is over. The session goes on without it, if it can.
    fn link_ended(self: &Arc<Self>, number: u32, end: LinkEnd) {
        {
            let now = self.clock.now();
            let mut core = self.lock();
            if core.session.attachment() != number {
                return;
            }
            // A carrier that takes no more sessions, or not this one, may not be the only one.
            let goes_on = core.session.is_suspended();
            match end {
                LinkEnd::Refused { status } if !goes_on => {
                    let reason = format!("session refused with status {status}");
                    core.session
                        .carrier_refused(code_of_status(status), &reason);
                }
                LinkEnd::Refused { status } => {
                    let reason = format!("refused with status {status}");
                    core.session.suspend(now, ErrorCode::UNAVAILABLE, &reason);
                }
                LinkEnd::Peer { code, reason } => core.session.carrier_lost(code, &reason),
                LinkEnd::Broken { code, reason } => core.session.abort(code, &reason),
                LinkEnd::Local => core
                    .session
                    .carrier_lost(ErrorCode::UNAVAILABLE, "this side closed the link"),
                LinkEnd::Lost { reason } => {
                    let parks = self
                        .sessions
                        .as_ref()
                        .is_none_or(|sessions| sessions.suspended() < SUSPENDED_MAX);
                    if parks {
                        core.session.suspend(now, ErrorCode::UNAVAILABLE, &reason);
                    } else {
                        core.session.carrier_lost(ErrorCode::UNAVAILABLE, &reason);
                    }
                }
            }
        }
        self.pump();
    }

    /// Takes what happened in the session and acts on it. Only the connection's own tasks do this.
    pub(crate) fn pump(self: &Arc<Self>) {
        while self.pump_some() {}
    }

    /// As [`Inner::pump`], but true where it stopped after a number of requests because answers to them wait to leave, and there
    /// is more to do: the caller comes back.
    fn pump_some(self: &Arc<Self>) -> bool {
        let Scratch {
            mut requests,
            mut answers,
        } = SCRATCH.take();
        let mut answered = false;
        let stopped = loop {
            let now = self.clock.now();
            let mut core = self.lock();
            for (key, answer) in answers.drain(..) {
                core.session.respond(now, key, answer);
            }
            core.taking = answered && core.session.has_events();
            let stops = core.taking;
            let more = !stops && self.take_events(&mut core, now, &mut requests);
            let wanted = core.wants_supervisor();
            drop(core);
            if wanted {
                self.supervisor.notify_one();
            }
            if stops || (requests.is_empty() && !more) {
                break stops;
            }
            let connection = Connection::new(Arc::clone(self), false);
            for (key, request) in requests.drain(..) {
                answered |= request.answered;
                if let Some(answer) = self.dispatch(&connection, key, request) {
                    answers.push((key, answer));
                }
            }
        };
        SCRATCH.set(Scratch { requests, answers });
        stopped
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
                    self.update_sessions(core);
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
                Event::Suspended { code, reason } => self.on_suspended(core, code, reason),
                Event::Resumed => {
                    self.set_status(ConnectionStatus::Active);
                    self.supervisor.notify_one();
                    core.wake_blocked();
                    core.wake_input();
                    self.update_sessions(core);
                }
                Event::Closed(reason) => {
                    self.on_closed(core, reason);
                    self.update_sessions(core);
                }
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

    fn on_suspended(self: &Arc<Self>, core: &mut Core, code: ErrorCode, reason: String) {
        if core.session.attachment() != core.number
            && let Some(link) = core.relink(None)
        {
            // The session may have noticed by itself that nothing comes.
            link.abandon(&reason);
        }
        debug!(%code, reason, "session suspended");
        self.set_status(ConnectionStatus::Suspended { code, reason });
        self.update_sessions(core);
        self.supervisor.notify_one();
    }

    /// Brings the acceptor's table up to what the session can be resumed by.
    fn update_sessions(self: &Arc<Self>, core: &mut Core) {
        if let Some(sessions) = &self.sessions {
            sessions.update(self, core);
        }
    }

    fn set_status(&self, status: ConnectionStatus) {
        let takes_calls = matches!(
            status,
            ConnectionStatus::Opening
                | ConnectionStatus::Active
                | ConnectionStatus::Suspended { .. }
        );
        self.takes_calls.store(takes_calls, Ordering::Release);
        self.status.send_replace(status);
    }

    /// Lets the handler decide about the client, without holding anything up but this session.
    fn decide(self: &Arc<Self>, record: AuthenticationRecord) {
        let inner = Arc::clone(self);
        self.tasks.spawn(
            async move {
                let connection = Connection::new(Arc::clone(&inner), false);
                let deciding = inner.handler.authenticate(&connection, record.clone());
                let decision = deciding.await;
                {
                    let now = inner.clock.now();
                    let mut core = inner.lock();
                    match decision {
                        Ok(mut grant) => {
                            grant.token = new_token();
                            core.identity = Identity::of(&record, &grant);
                            core.session.grant(now, grant);
                        }
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

    /// The peer ended a lane. True where that says that the carrier is lost.
    fn lane_ended(self: &Arc<Self>, place: &Place) -> bool {
        let loses_carrier = {
            let mut core = self.lock();
            if core.session.attachment() != place.number {
                return false;
            }
            // An error has already become the session's end.
            let _ = core.session.handle_lane_end(place.lane);
            core.session.is_resumable()
        };
        self.pump();
        loses_carrier
    }

    /// After bytes have left: there may be room for what waited.
    fn wrote(self: &Arc<Self>) {
        let core = self.lock();
        let has_events = !core.taking && core.session.has_events();
        drop(core);
        if has_events {
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
        place: &Place,
        out: &mut VecDeque<Bytes>,
    ) -> Poll<bool> {
        if self.session.attachment() != place.number {
            return Poll::Ready(false);
        }
        if self.session.poll_transmit(place.lane, out) {
            return Poll::Ready(true);
        }
        if self.closed.is_some() {
            return Poll::Ready(false);
        }
        if let Some(writer) = self.writers.get_mut(usize::from(place.lane.0)) {
            *writer = Writer::Waiting(cx.waker().clone());
        }
        Poll::Pending
    }

    fn poll_input(&mut self, cx: &mut Context<'_>, number: u32) -> Poll<()> {
        let is_stale = self.session.attachment() != number;
        if is_stale || self.session.wants_input() || self.closed.is_some() {
            return Poll::Ready(());
        }
        self.input_waiters.push(cx.waker().clone());
        Poll::Pending
    }

    fn writer_gone(&mut self, place: &Place) {
        if self.number == place.number
            && let Some(writer) = self.writers.get_mut(usize::from(place.lane.0))
        {
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
