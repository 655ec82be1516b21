//! HTTP links: what an acceptor keeps of each, and what it answers to their requests. Spec: carriers §3 to §6.
//!
//! Owns ids, secrets, the table and who may read a link. The numbers are [`super::exchange`]'s, the frames the session's.
//! Invariant: a link is in the table from its opening until its end has been told or [`END_KEPT`] has passed, and no longer.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use remus_wire::ErrorCode;
use rustls::crypto::aws_lc_rs as provider;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exchange::{Exchange, NUMBER_MAX, Upload};
use super::{
    ACKNOWLEDGE, Body, BodyError, CLOSE, FRAMES_TYPE, Refusal, SEQUENCE, SESSIONS_PATH, empty, full,
};
use crate::link::framed::{Framed, Outgoing, UNIT_MAX, are_whole_frames};
use crate::link::{Carrier, Link, LinkEnd};
use crate::websocket::join;
use crate::webtransport::{Acceptor, open};

/// Links of one server: each that is idle costs some KiB, beside its session.
pub const LINKS_MAX: usize = 16_384;

/// Links from one address: enough for the people behind one NAT, and a bound on what one machine can take from the others.
pub const LINKS_PER_REMOTE_MAX: usize = 256;

/// How long a `down` is held: proxies give up on silence after 30 s.
const HOLD: Duration = Duration::from_secs(25);

/// Silence after which a link is gone.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How long the body of a request may take: 1 MiB at 300 kbit/s.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a client may take to ask and hear that its link was closed.
const END_KEPT: Duration = Duration::from_secs(10);

/// Bytes that are kept for events that are not acknowledged; beyond it, the session is held back.
const KEPT_MAX: usize = 4 * UNIT_MAX;

/// Silence after which a comment goes through a stream of events: proxies close what is silent for a minute, some for 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Header of a client that opens events anew.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

const DECIMAL: &str = "a decimal number without sign and leading zeros, below 2^53";

/// The links of all servers that share a port.
#[derive(Clone, Default)]
pub(crate) struct LinkTable(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    links: HashMap<String, Arc<HttpLink>>,
    by_remote: HashMap<IpAddr, usize>,
}

/// The links that one server has opened, and those of the servers that share its port: a link's requests may come to any of them.
#[derive(Clone)]
pub struct Links {
    table: LinkTable,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("count", &self.len()).finish()
    }
}

impl Default for Links {
    fn default() -> Self {
        Self::of(LinkTable::default())
    }
}

impl Links {
    pub(crate) fn of(table: LinkTable) -> Self {
        Self {
            table,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// HTTP links that are there, those included that have ended and whose clients have not heard of it yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().links.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes a link, and looks after it.
    fn add(&self, remote: SocketAddr) -> Result<Arc<HttpLink>, Refusal> {
        let link = Arc::new(HttpLink::new(remote)?);
        let entry = self.table.insert(&link)?;
        let looking_after = look_after(Arc::clone(&link), entry, self.stop.clone());
        self.tasks.spawn(looking_after);
        Ok(link)
    }

    /// Drops the links that this server has opened, and waits until nothing looks after them any more. Their sessions should have
    /// ended.
    pub async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl LinkTable {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, link: &Arc<HttpLink>) -> Result<Entry, Refusal> {
        let mut table = self.lock();
        let remote = counted(link.framed.remote_address());
        if table.links.len() >= LINKS_MAX {
            return Err(Refusal::Overloaded);
        }
        let count = table.by_remote.entry(remote).or_default();
        if *count >= LINKS_PER_REMOTE_MAX {
            return Err(Refusal::TooManyLinks {
                max: LINKS_PER_REMOTE_MAX,
            });
        }
        *count = count.saturating_add(1);
        table.links.insert(link.id.clone(), Arc::clone(link));
        Ok(Entry {
            table: self.clone(),
            id: link.id.clone(),
        })
    }

    fn remove(&self, id: &str) {
        let mut table = self.lock();
        let Some(link) = table.links.remove(id) else {
            return;
        };
        let remote = counted(link.framed.remote_address());
        if let Some(count) = table.by_remote.get_mut(&remote) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.by_remote.remove(&remote);
            }
        }
    }

    fn find(&self, id: &str) -> Option<Arc<HttpLink>> {
        self.lock().links.get(id).cloned()
    }
}

/// What one client cannot have many of: an IPv4 address, or the network of an IPv6 address.
fn counted(remote: SocketAddr) -> IpAddr {
    match remote.ip().to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// A link's place in the table; dropped, it is out.
struct Entry {
    table: LinkTable,
    id: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.table.remove(&self.id);
    }
}

/// One link.
struct HttpLink {
    id: String,
    secret: String,
    framed: Framed,
    exchange: Mutex<Exchange>,
    /// The number of the last reader, and of the last `up` that was to be taken: all before it are superseded.
    reader: watch::Sender<u64>,
    uploader: watch::Sender<u64>,
    /// A reader of events waits for an acknowledgement.
    room: Mutex<Option<Waker>>,
    in_use: AtomicUsize,
    last_used: Mutex<Instant>,
}

/// A request that is at work on a link.
struct InUse(Arc<HttpLink>);

impl InUse {
    fn new(link: &Arc<HttpLink>) -> Self {
        link.in_use.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(link))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        *lock(&self.0.last_used) = Instant::now();
        self.0.in_use.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers a request of a path below [`SESSIONS_PATH`].
pub(crate) async fn answer(
    acceptor: &Arc<dyn Acceptor>,
    remote: SocketAddr,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path().strip_prefix(SESSIONS_PATH);
    let mut parts = path.unwrap_or_default().split('/').skip(1);
    let (id, what, more) = (parts.next(), parts.next(), parts.next());
    let Some(id) = id else {
        let_method(&request, Method::POST, "POST")?;
        return open_link(acceptor, remote, request).await;
    };
    if more.is_some() {
        return Err(Refusal::NotFound);
    }
    let links = acceptor.links();
    let find = || links.table.find(id).ok_or(Refusal::NotFound);
    match what {
        None => {
            let_method(&request, Method::DELETE, "DELETE")?;
            let link = find()?;
            link.authenticate(request.headers())?;
            link.delete(request.headers())?;
            links.table.remove(id);
            Ok(status(StatusCode::NO_CONTENT))
        }
        Some("up") => {
            let_method(&request, Method::POST, "POST")?;
            let link = find()?;
            link.authenticate(request.headers())?;
            link.up(request).await
        }
        Some("down") => {
            let_method(&request, Method::GET, "GET")?;
            let link = find()?;
            link.authenticate(request.headers())?;
            link.down(request.headers()).await
        }
        Some("events") => {
            let_method(&request, Method::GET, "GET")?;
            let link = find()?;
            link.authenticate(request.headers())?;
            link.events(request.headers())
        }
        Some(_) => Err(Refusal::NotFound),
    }
}

fn let_method(request: &Request<Body>, method: Method, allow: &'static str) -> Result<(), Refusal> {
    if *request.method() == method {
        Ok(())
    } else {
        Err(Refusal::MethodNotAllowed { allow })
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}

async fn open_link(
    acceptor: &Arc<dyn Acceptor>,
    remote: SocketAddr,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    if acceptor.is_stopping() {
        return Err(Refusal::Stopping);
    }
    match read(request.into_body(), 0).await {
        Err(Refusal::TooLarge { .. }) => return Err(Refusal::UnexpectedBody),
        other => other?,
    };
    let link = acceptor.links().add(remote)?;
    open(Link::Framed(link.framed.clone()), acceptor);

    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let json = serde_json::json!({
        "id": link.id,
        "secret": link.secret,
        "hold_ms": millis(HOLD),
        "idle_ms": millis(IDLE_MAX),
        "up_max": UNIT_MAX,
    });
    let mut response = Response::new(full(json.to_string()));
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(location) = HeaderValue::try_from(format!("{SESSIONS_PATH}/{}", link.id)) {
        headers.insert(LOCATION, location);
    }
    Ok(response)
}

/// Notices that nobody uses the link any more; after its end, keeps it until its client can have heard of it.
async fn look_after(link: Arc<HttpLink>, entry: Entry, stop: CancellationToken) {
    // Also where the runtime stops: nobody would notice otherwise.
    let lost = LoseOnDrop(link.framed.clone());
    loop {
        let since = *lock(&link.last_used);
        tokio::select! {
            _ = link.framed.closed() => break,
            () = stop.cancelled() => return,
            // Who is at work begins to be idle at its end, so it is enough to look then.
            () = sleep_until((since + IDLE_MAX).max(Instant::now() + Duration::from_secs(1))) => {}
        }
        let is_used = link.in_use.load(Ordering::SeqCst) > 0;
        if !is_used && lock(&link.last_used).elapsed() >= IDLE_MAX {
            link.framed.lose("its client made no request for 60 s");
            return;
        }
    }
    drop(lost);
    // Only who has something to hear is waited for.
    if link.framed.asked_to_close().is_some() {
        tokio::select! {
            () = sleep(END_KEPT) => {}
            () = stop.cancelled() => {}
        }
    }
    drop(entry);
}

struct LoseOnDrop(Framed);

impl Drop for LoseOnDrop {
    fn drop(&mut self) {
        self.0.lose("the server keeps the link no longer");
    }
}

/// What a reader gets.
enum Read {
    Unit(u64, Bytes),
    Ended(Refusal),
}

impl HttpLink {
    /// Spec: CARR-13
    fn new(remote: SocketAddr) -> Result<Self, Refusal> {
        let (mut id, mut secret) = ([0; 16], [0; 32]);
        let random = provider::default_provider().secure_random;
        random
            .fill(&mut id)
            .and_then(|()| random.fill(&mut secret))
            .map_err(|_| Refusal::NoRandomness)?;
        Ok(Self {
            id: URL_SAFE_NO_PAD.encode(id),
            secret: URL_SAFE_NO_PAD.encode(secret),
            framed: Framed::for_requests(Carrier::LongPoll, remote),
            exchange: Mutex::default(),
            reader: watch::Sender::new(0),
            uploader: watch::Sender::new(0),
            room: Mutex::new(None),
            in_use: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
        })
    }

    /// Spec: CARR-14
    fn authenticate(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let (Some(given), None) = (given.next(), given.next()) else {
            return Err(Refusal::Unauthenticated);
        };
        let Some((scheme, secret)) = given.as_bytes().split_at_checked(b"Bearer ".len()) else {
            return Err(Refusal::Unauthenticated);
        };
        let is_right = scheme.eq_ignore_ascii_case(b"Bearer ")
            && verify_slices_are_equal(secret, self.secret.as_bytes()).is_ok();
        if is_right {
            Ok(())
        } else {
            Err(Refusal::Unauthenticated)
        }
    }

    /// Spec: CARR-31
    fn delete(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let malformed = Refusal::MalformedField {
            field: CLOSE,
            form: "a decimal number below 2^32",
        };
        let code = match number(headers, &CLOSE)? {
            None => 0,
            Some(code) => u32::try_from(code).map_err(|_| malformed)?,
        };
        self.framed.set_end(LinkEnd::Peer {
            code: ErrorCode(code),
            reason: "the client closed the link".to_owned(),
        });
        Ok(())
    }

    /// Spec: CARR-18, CARR-22
    fn acknowledge(&self, number: u64) -> Result<(), Refusal> {
        lock(&self.exchange).acknowledge(number)?;
        self.acknowledged();
        Ok(())
    }

    fn acknowledged(&self) {
        let waiting = lock(&self.room).take();
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        if lock(&self.exchange).kept_len() == 0 {
            self.framed.note_delivered();
        }
    }

    /// What requests are answered with after the end.
    fn ended(&self) -> Refusal {
        match self.framed.asked_to_close() {
            Some((code, reason)) => Refusal::Ended { code, reason },
            None => match self.framed.end() {
                Some(LinkEnd::Peer { code, reason } | LinkEnd::Broken { code, reason }) => {
                    Refusal::Ended { code, reason }
                }
                _ => Refusal::NotFound,
            },
        }
    }

    async fn up(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let _in_use = InUse::new(&self);
        let (head, body) = request.into_parts();
        let sequence = number(&head.headers, &SEQUENCE)?;
        let acknowledged = number(&head.headers, &ACKNOWLEDGE)?;
        if sequence == Some(0) {
            return Err(Refusal::MalformedField {
                field: SEQUENCE,
                form: "a number from 1 on",
            });
        }
        if let Some(acknowledged) = acknowledged {
            self.acknowledge(acknowledged)?;
        }
        let Some(sequence) = sequence else {
            return match read(body, 0).await {
                Ok(_) => Ok(self.taken()),
                Err(Refusal::TooLarge { .. }) => Err(Refusal::SequenceRequired),
                Err(error) => Err(error),
            };
        };
        let mut turn = {
            let exchange = lock(&self.exchange);
            if self.framed.has_ended() {
                return Err(self.ended());
            }
            if exchange.judge(sequence)? == Upload::Repeated {
                drop(exchange);
                return Ok(self.taken());
            }
            Turn::begin(&self.uploader)
        };
        let is_frames = head
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(FRAMES_TYPE.as_bytes()));
        let taking = async {
            let frames = read(body, UNIT_MAX).await?;
            if !is_frames && !frames.is_empty() {
                return Err(Refusal::MediaType);
            }
            if !are_whole_frames(&frames) {
                return Err(Refusal::MalformedFrames);
            }
            poll_fn(|cx| self.framed.poll_room(cx)).await;
            Ok(frames)
        };
        let frames = tokio::select! {
            biased;
            () = turn.superseded() => return Err(Refusal::Superseded),
            frames = taking => frames?,
        };
        {
            // Under one lock, so that of two with one number only one is taken.
            let mut exchange = lock(&self.exchange);
            if self.framed.has_ended() {
                return Err(self.ended());
            }
            if !turn.is_mine() || exchange.judge(sequence)? == Upload::Repeated {
                return Err(Refusal::Superseded);
            }
            exchange.take();
            self.framed.put_incoming(frames);
        }
        Ok(self.taken())
    }

    fn taken(&self) -> Response<Body> {
        let mut response = status(StatusCode::NO_CONTENT);
        let taken = lock(&self.exchange).taken();
        response.headers_mut().insert(ACKNOWLEDGE, taken.into());
        response
    }

    /// Begins to read behind `number`, and ends the reader before. Spec: CARR-24, CARR-25.
    fn begin_reading(&self, number: u64, carrier: Carrier) -> Result<Turn, Refusal> {
        let turn = {
            let mut exchange = lock(&self.exchange);
            exchange.begin_reading(number)?;
            Turn::begin(&self.reader)
        };
        self.acknowledged();
        self.framed.set_carrier(carrier);
        Ok(turn)
    }

    /// What comes behind `number`, kept or new; at most `kept_max` bytes are kept.
    fn poll_next(&self, cx: &mut Context<'_>, number: u64, kept_max: usize) -> Poll<Read> {
        let mut exchange = lock(&self.exchange);
        let next = number.saturating_add(1);
        if let Some(bytes) = exchange.kept(next) {
            return Poll::Ready(Read::Unit(next, bytes));
        }
        if exchange.kept_len() >= kept_max {
            *lock(&self.room) = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match self.framed.poll_outgoing(cx, UNIT_MAX) {
            Poll::Ready(Outgoing::Frames { chunks, len }) => {
                let bytes = join(chunks, len);
                let number = exchange.keep(bytes.clone());
                Poll::Ready(Read::Unit(number, bytes))
            }
            Poll::Ready(Outgoing::Close { .. } | Outgoing::Ended) => {
                Poll::Ready(Read::Ended(self.ended()))
            }
            Poll::Pending => {
                if exchange.kept_len() == 0 {
                    self.framed.note_delivered();
                }
                Poll::Pending
            }
        }
    }

    async fn down(self: Arc<Self>, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let _in_use = InUse::new(&self);
        let acknowledged = number(headers, &ACKNOWLEDGE)?.unwrap_or(0);
        let mut turn = self.begin_reading(acknowledged, Carrier::LongPoll)?;
        let reading = poll_fn(|cx| self.poll_next(cx, acknowledged, usize::MAX));
        tokio::select! {
            biased;
            () = turn.superseded() => Err(Refusal::Superseded),
            read = reading => match read {
                Read::Unit(number, bytes) => {
                    let mut response = Response::new(full(bytes));
                    let headers = response.headers_mut();
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static(FRAMES_TYPE));
                    headers.insert(SEQUENCE, number.into());
                    Ok(response)
                }
                Read::Ended(refusal) => Err(refusal),
            },
            () = sleep(HOLD) => Ok(status(StatusCode::NO_CONTENT)),
        }
    }

    fn events(self: Arc<Self>, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let acknowledged = match number(headers, &ACKNOWLEDGE)? {
            Some(number) => number,
            None => number(headers, &LAST_EVENT_ID)?.unwrap_or(0),
        };
        let events = Events {
            turn: self.begin_reading(acknowledged, Carrier::ServerSentEvents)?,
            in_use: InUse::new(&self),
            sent: acknowledged,
            stage: Stage::Probe,
        };
        let stream = futures_util::stream::unfold(events, Events::next);
        let mut response = Response::new(StreamBody::new(stream).map_err(never).boxed_unsync());
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        Ok(response)
    }
}

fn never(never: Infallible) -> BodyError {
    match never {}
}

/// A stream of events. Spec: carriers §5.
struct Events {
    in_use: InUse,
    turn: Turn,
    /// The highest number that was sent, or acknowledged at the beginning.
    sent: u64,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Probe,
    Frames,
    Over,
}

impl Events {
    async fn next(mut self) -> Option<(Result<Frame<Bytes>, Infallible>, Self)> {
        let text = match self.stage {
            Stage::Over => return None,
            Stage::Probe => {
                self.stage = Stage::Frames;
                format!(
                    "event: probe\ndata: {{\"hold_ms\":{}}}\n\n",
                    HOLD.as_millis()
                )
            }
            Stage::Frames => {
                let link = Arc::clone(&self.in_use.0);
                let reading = poll_fn(|cx| link.poll_next(cx, self.sent, KEPT_MAX));
                tokio::select! {
                    biased;
                    () = self.turn.superseded() => return None,
                    read = reading => match read {
                        Read::Unit(number, bytes) => {
                            self.sent = number;
                            let data = STANDARD.encode(bytes);
                            format!("id: {number}\nevent: frames\ndata: {data}\n\n")
                        }
                        Read::Ended(refusal) => {
                            self.stage = Stage::Over;
                            format!("event: end\ndata: {}\n\n", refusal.to_json())
                        }
                    },
                    () = sleep(KEEP_ALIVE) => ": keep-alive\n\n".to_owned(),
                }
            }
        };
        Some((Ok(Frame::data(text.into())), self))
    }
}

/// The right of the latest of several requests for one thing.
struct Turn {
    mine: u64,
    latest: watch::Receiver<u64>,
}

impl Turn {
    fn begin(latest: &watch::Sender<u64>) -> Self {
        let mut mine = 0;
        latest.send_modify(|latest| {
            *latest = latest.saturating_add(1);
            mine = *latest;
        });
        Self {
            mine,
            latest: latest.subscribe(),
        }
    }

    fn is_mine(&self) -> bool {
        *self.latest.borrow() == self.mine
    }

    /// Waits until a later one has come. Cancel safe.
    async fn superseded(&mut self) {
        let mine = self.mine;
        if self
            .latest
            .wait_for(|latest| *latest != mine)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}

/// The number in a field of its own. Spec: CARR-16.
fn number(headers: &HeaderMap, field: &HeaderName) -> Result<Option<u64>, Refusal> {
    let mut values = headers.get_all(field).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let digits = value.as_bytes();
    let is_decimal =
        digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || !digits.starts_with(b"0"));
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    match parsed {
        Some(number) if values.next().is_none() && is_decimal && number <= NUMBER_MAX => {
            Ok(Some(number))
        }
        _ => Err(Refusal::MalformedField {
            field: field.clone(),
            form: DECIMAL,
        }),
    }
}

/// Reads a body of at most `max` bytes. Spec: CARR-3.
async fn read(body: Body, max: usize) -> Result<Bytes, Refusal> {
    let refused = Refusal::TooLarge { max };
    if body.size_hint().lower() > u64::try_from(max).unwrap_or(u64::MAX) {
        return Err(refused);
    }
    let reading = async {
        let mut body = body;
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            // Who breaks off is not there to be answered.
            let Ok(data) = frame.map_err(|_| Refusal::Superseded)?.into_data() else {
                continue;
            };
            let len = first.len().max(rest.len()).saturating_add(data.len());
            if len > max {
                return Err(refused);
            }
            if first.is_empty() && rest.is_empty() {
                first = data;
            } else {
                if rest.is_empty() {
                    rest.extend_from_slice(&first);
                    first = Bytes::new();
                }
                rest.extend_from_slice(&data);
            }
        }
        Ok(if rest.is_empty() {
            first
        } else {
            rest.freeze()
        })
    };
    timeout(BODY_TIME_MAX, reading)
        .await
        .unwrap_or(Err(Refusal::Timeout {
            after_s: BODY_TIME_MAX.as_secs(),
        }))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::StreamExt as _;
    use http_body_util::BodyDataStream;

    use super::*;
    use crate::link::framed::FramedWriter;

    // Frames of an ignorable type, with payloads of 0 and 3 bytes.
    const FRAME: &[u8] = &[0, 0, 0x80, 0, 0, 0, 0, 0];
    const OTHER: &[u8] = &[0, 0, 0x80, 0, 0, 0, 0, 3, 1, 2, 3];

    fn remote(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 9).into()
    }

    /// A link, and what its session would hold.
    fn link() -> (
        Links,
        Arc<HttpLink>,
        crate::link::framed::FramedReader,
        FramedWriter,
    ) {
        let links = Links::default();
        let link = links.add(remote(1)).unwrap();
        let (reader, writer) = link.framed.take_lane().unwrap();
        (links, link, reader, writer)
    }

    fn headers(fields: &[(&HeaderName, u64)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, number)| ((*name).clone(), (*number).into()))
            .collect()
    }

    fn up(number: u64, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.headers_mut() = headers(&[(&SEQUENCE, number)]);
        let kind = HeaderValue::from_static(FRAMES_TYPE);
        request.headers_mut().insert(CONTENT_TYPE, kind);
        request
    }

    async fn write(writer: &mut FramedWriter, frames: &'static [u8]) {
        let mut chunks = VecDeque::from([Bytes::from_static(frames)]);
        writer.write(&mut chunks).await.unwrap();
    }

    async fn content(response: Response<Body>) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    /// A body that never ends.
    fn endless() -> Body {
        StreamBody::new(futures_util::stream::pending::<
            Result<Frame<Bytes>, BodyError>,
        >())
        .boxed_unsync()
    }

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// Spec: CARR-23, CARR-33
    #[tokio::test(start_paused = true)]
    async fn a_poll_is_held_and_who_asks_nothing_is_forgotten() {
        let (links, link, mut reader, _writer) = link();
        let begun = Instant::now();
        let answer = Arc::clone(&link).down(&HeaderMap::new()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(begun.elapsed(), HOLD);
        assert_eq!(links.len(), 1);
        // The session hears that its link is lost; nothing is left of it.
        let mut chunks = VecDeque::new();
        let end = poll_fn(|cx| reader.poll_chunks(cx, &mut chunks)).await;
        assert!(matches!(end, Some(Err(_))));
        assert!(matches!(link.framed.closed().await, LinkEnd::Lost { .. }));
        let gone = begun.elapsed();
        assert!(
            gone >= HOLD + IDLE_MAX && gone < HOLD + IDLE_MAX * 2,
            "{gone:?}"
        );
        settle().await;
        assert!(links.is_empty());
        assert!(links.table.lock().by_remote.is_empty());
    }

    /// Spec: CARR-17, CARR-23
    #[tokio::test]
    async fn an_answer_that_was_lost_comes_again_under_its_number() {
        let (_links, link, _reader, mut writer) = link();
        write(&mut writer, FRAME).await;
        for _ in 0..3 {
            let answer = Arc::clone(&link).down(&HeaderMap::new()).await.unwrap();
            assert_eq!(answer.headers()[&SEQUENCE], "1");
            assert_eq!(content(answer).await, FRAME);
        }
        write(&mut writer, OTHER).await;
        let next = headers(&[(&ACKNOWLEDGE, 1)]);
        let answer = Arc::clone(&link).down(&next).await.unwrap();
        assert_eq!(answer.headers()[&SEQUENCE], "2");
        assert_eq!(content(answer).await, OTHER);
    }

    /// Spec: CARR-24, CARR-25
    #[tokio::test]
    async fn the_later_reader_wins_and_an_old_one_does_not() {
        let (_links, link, _reader, mut writer) = link();
        let first = tokio::spawn({
            let link = Arc::clone(&link);
            async move { link.down(&HeaderMap::new()).await.map(drop) }
        });
        settle().await;
        let second = tokio::spawn({
            let link = Arc::clone(&link);
            async move { link.down(&HeaderMap::new()).await.map(drop) }
        });
        assert_eq!(first.await.unwrap(), Err(Refusal::Superseded));
        write(&mut writer, FRAME).await;
        assert_eq!(second.await.unwrap(), Ok(()));

        link.acknowledge(1).unwrap();
        let mut events = {
            let headers = headers(&[(&LAST_EVENT_ID, 1)]);
            let answer = Arc::clone(&link).events(&headers).unwrap();
            BodyDataStream::new(answer.into_body())
        };
        assert!(
            events
                .next()
                .await
                .unwrap()
                .unwrap()
                .starts_with(b"event: probe\n")
        );
        let stale = Arc::clone(&link).down(&HeaderMap::new()).await.map(drop);
        assert_eq!(stale, Err(Refusal::AcknowledgeStale { before: 1, got: 0 }));
        write(&mut writer, OTHER).await;
        let event = events.next().await.unwrap().unwrap();
        assert_eq!(event, "id: 2\nevent: frames\ndata: AACAAAAAAAMBAgM=\n\n");
        let polling = tokio::spawn({
            let (link, headers) = (Arc::clone(&link), headers(&[(&ACKNOWLEDGE, 2)]));
            async move { link.down(&headers).await.map(drop) }
        });
        assert!(events.next().await.is_none(), "the poll took over");
        polling.abort();
    }

    /// Spec: CARR-26, CARR-27, CARR-28
    #[tokio::test(start_paused = true)]
    async fn events_begin_with_a_probe_and_are_kept_alive() {
        let (_links, link, _reader, mut writer) = link();
        write(&mut writer, OTHER).await;
        let answer = Arc::clone(&link).events(&HeaderMap::new()).unwrap();
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/event-stream");
        let mut events = BodyDataStream::new(answer.into_body());
        let mut next = async || events.next().await.unwrap().unwrap();
        assert_eq!(next().await, "event: probe\ndata: {\"hold_ms\":25000}\n\n");
        let event = "id: 1\nevent: frames\ndata: AACAAAAAAAMBAgM=\n\n";
        assert_eq!(next().await, event);
        let begun = Instant::now();
        assert_eq!(next().await, ": keep-alive\n\n");
        assert_eq!(begun.elapsed(), KEEP_ALIVE);
        drop(events);
        // Opened again, it begins behind what is acknowledged: nothing yet.
        let answer = Arc::clone(&link).events(&HeaderMap::new()).unwrap();
        let mut events = BodyDataStream::new(answer.into_body());
        events.next().await.unwrap().unwrap();
        assert_eq!(events.next().await.unwrap().unwrap(), event);
    }

    /// Spec: CARR-30
    #[tokio::test]
    async fn what_is_not_acknowledged_holds_the_session_back() {
        let (_links, link, _reader, mut writer) = link();
        let mut unit = vec![0, 0, 0x80, 0, 0, 0, 0xff, 0xf8];
        unit.resize(64 * 1024, 7);
        let unit: &'static [u8] = unit.leak();
        let answer = Arc::clone(&link).events(&HeaderMap::new()).unwrap();
        let mut events = BodyDataStream::new(answer.into_body());
        let (mut written, mut read) = (0_usize, 0_usize);
        // Read on as long as there is something at once, and write as long as there is room at once.
        loop {
            let mut moved = false;
            tokio::select! {
                biased;
                event = events.next() => { read += event.unwrap().unwrap().len(); moved = true; }
                () = write(&mut writer, unit) => { written += unit.len(); moved = true; }
                () = settle() => {}
            }
            if !moved {
                break;
            }
        }
        assert!(read > KEPT_MAX, "in base64");
        let kept = lock(&link.exchange).kept_len();
        assert!((KEPT_MAX..=KEPT_MAX + UNIT_MAX).contains(&kept), "{kept}");
        assert!(written <= kept + UNIT_MAX, "{written}");
        // An acknowledgement sets it going again.
        let next = lock(&link.exchange).acknowledged() + 1;
        link.acknowledge(next).unwrap();
        assert!(events.next().await.unwrap().unwrap().starts_with(b"id: "));
    }

    /// Spec: CARR-20, CARR-21
    #[tokio::test]
    async fn the_later_upload_of_a_number_wins() {
        let (_links, link, mut reader, _writer) = link();
        let first = tokio::spawn({
            let link = Arc::clone(&link);
            async move { link.up(up(1, endless())).await.map(drop) }
        });
        settle().await;
        let answer = Arc::clone(&link).up(up(1, full(FRAME))).await.unwrap();
        assert_eq!(answer.headers()[&ACKNOWLEDGE], "1");
        assert_eq!(first.await.unwrap(), Err(Refusal::Superseded));
        // A repetition is answered alike, and its body not looked at.
        let again = Arc::clone(&link).up(up(1, endless())).await.unwrap();
        assert_eq!(again.headers()[&ACKNOWLEDGE], "1");
        let mut chunks = VecDeque::new();
        assert!(
            poll_fn(|cx| reader.poll_chunks(cx, &mut chunks))
                .await
                .is_none()
        );
        assert_eq!(chunks, [FRAME]);
    }

    /// Spec: CARR-22
    #[tokio::test]
    async fn an_upload_waits_while_the_session_takes_nothing_and_acknowledgements_do_not() {
        let (_links, link, mut reader, mut writer) = link();
        let mut unit = vec![0, 0, 0x80, 0, 0, 0x0f, 0xff, 0xf8];
        unit.resize(UNIT_MAX, 7);
        let unit = Bytes::from(unit);
        Arc::clone(&link)
            .up(up(1, full(unit.clone())))
            .await
            .unwrap();
        let waiting = tokio::spawn({
            let link = Arc::clone(&link);
            async move { link.up(up(2, full(unit))).await.map(drop) }
        });
        settle().await;
        assert!(!waiting.is_finished());
        write(&mut writer, FRAME).await;
        Arc::clone(&link).down(&HeaderMap::new()).await.unwrap();
        let mut request = Request::new(empty());
        *request.headers_mut() = headers(&[(&ACKNOWLEDGE, 1)]);
        let answer = Arc::clone(&link).up(request).await.unwrap();
        assert_eq!(answer.headers()[&ACKNOWLEDGE], "1");
        assert_eq!(lock(&link.exchange).kept_len(), 0);
        let mut chunks = VecDeque::new();
        assert!(
            poll_fn(|cx| reader.poll_chunks(cx, &mut chunks))
                .await
                .is_none()
        );
        assert_eq!(waiting.await.unwrap(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let (_links, link, _reader, _writer) = link();
        let refused = Arc::clone(&link).up(up(1, endless())).await.map(drop);
        assert_eq!(refused, Err(Refusal::Timeout { after_s: 30 }));
        assert_eq!(lock(&link.exchange).taken(), 0);
    }

    /// Spec: CARR-32
    #[tokio::test(start_paused = true)]
    async fn the_end_is_told_and_then_forgotten() {
        let (links, link, _reader, mut writer) = link();
        let held = tokio::spawn({
            let link = Arc::clone(&link);
            async move { link.down(&headers(&[(&ACKNOWLEDGE, 0)])).await.map(drop) }
        });
        settle().await;
        link.framed
            .close(ErrorCode::IDLE_TIMEOUT, "too quiet")
            .await;
        let ended = Refusal::Ended {
            code: ErrorCode::IDLE_TIMEOUT,
            reason: "too quiet".to_owned(),
        };
        assert_eq!(held.await.unwrap(), Err(ended.clone()));
        assert_eq!(
            Arc::clone(&link).up(up(1, full(FRAME))).await.map(drop),
            Err(ended.clone())
        );
        let json: serde_json::Value = serde_json::from_str(&ended.to_json()).unwrap();
        assert_eq!(json["error"], ErrorCode::IDLE_TIMEOUT.0);
        let answer = Arc::clone(&link).events(&HeaderMap::new()).unwrap();
        let events = content(answer).await;
        assert!(events.ends_with(format!("event: end\ndata: {}\n\n", ended.to_json()).as_bytes()));
        assert!(writer.write(&mut VecDeque::new()).await.is_err());
        settle().await;
        assert_eq!(links.len(), 1, "its client can still ask");
        sleep(END_KEPT).await;
        settle().await;
        assert!(links.is_empty());
    }

    /// Spec: CARR-32
    #[tokio::test]
    async fn closing_waits_until_the_client_has_read() {
        let (_links, link, _reader, mut writer) = link();
        write(&mut writer, FRAME).await;
        let mut finishing = tokio::spawn(async move { writer.finish().await });
        let answer = Arc::clone(&link).down(&HeaderMap::new()).await.unwrap();
        assert_eq!(content(answer).await, FRAME);
        settle().await;
        assert!(!finishing.is_finished(), "the answer may have been lost");
        link.acknowledge(1).unwrap();
        (&mut finishing).await.unwrap();
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_links() {
        let links = Links::default();
        for _ in 0..LINKS_PER_REMOTE_MAX {
            links.add(remote(1)).unwrap();
        }
        let refused = links.add(remote(1)).map(drop);
        let max = LINKS_PER_REMOTE_MAX;
        assert_eq!(refused, Err(Refusal::TooManyLinks { max }));
        links.add(remote(2)).unwrap();
        links.end().await;
        assert!(links.is_empty());
        links.add(remote(1)).unwrap();
    }

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let of = |text: &str| counted(SocketAddr::new(text.parse().unwrap(), 1));
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    /// Spec: CARR-13
    #[tokio::test]
    async fn ids_and_secrets_are_not_used_again() {
        let links = Links::default();
        let (a, b) = (links.add(remote(1)).unwrap(), links.add(remote(1)).unwrap());
        assert_eq!((a.id.len(), a.secret.len()), (22, 43));
        assert_ne!(a.id, b.id);
        assert_ne!(a.secret, b.secret);
    }

    /// Spec: CARR-16
    #[test]
    fn numbers_are_read_strictly() {
        let read = |values: &[&str]| {
            let fields = values
                .iter()
                .map(|value| (SEQUENCE, value.parse().unwrap()));
            number(
                &fields.fold(
                    HeaderMap::new(),
                    |mut map, (name, value): (_, HeaderValue)| {
                        map.append(name, value);
                        map
                    },
                ),
                &SEQUENCE,
            )
        };
        assert_eq!(read(&[]), Ok(None));
        for (text, value) in [("0", 0), ("7", 7), ("9007199254740991", NUMBER_MAX)] {
            assert_eq!(read(&[text]), Ok(Some(value)));
        }
        for wrong in [
            "",
            "-1",
            "+1",
            "01",
            "1.0",
            "0x1",
            "one",
            " ",
            "9007199254740992",
            "99999999999999999999",
        ] {
            assert!(read(&[wrong]).is_err(), "{wrong}");
        }
        assert!(read(&["1", "1"]).is_err());
    }
}
