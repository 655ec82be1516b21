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
    let (mut id, mut secret) = ([0; 16], [0; 32]);
    let random = provider::default_provider().secure_random;
    random
        .fill(&mut id)
        .and_then(|()| random.fill(&mut secret))
        .map_err(|_| Refusal::NoRandomness)?;
    let link = Arc::new(HttpLink {
        id: URL_SAFE_NO_PAD.encode(id),
        secret: URL_SAFE_NO_PAD.encode(secret),
        framed: Framed::for_requests(Carrier::LongPoll, remote),
        exchange: Mutex::default(),
        reader: watch::Sender::new(0),
        uploader: watch::Sender::new(0),
        room: Mutex::new(None),
        in_use: AtomicUsize::new(0),
        last_used: Mutex::new(Instant::now()),
    });
    let links = acceptor.links();
    let entry = links.table.insert(&link)?;
    let looking_after = look_after(Arc::clone(&link), entry, links.stop.clone());
    links.tasks.spawn(looking_after);
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
        if !is_frames && !body.is_end_stream() {
            return Err(Refusal::MediaType);
        }
        let taking = async {
            let frames = read(body, UNIT_MAX).await?;
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
