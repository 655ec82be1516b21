//! The client's side of HTTP links: long-polling and server-sent events. Spec: carriers §3 to §6.
//!
//! Owns the requests of one link and their repetition. A link outlives its connection: what was not answered is sent again over
//! another, under the number that it had.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remus_wire::ErrorCode;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{ACKNOWLEDGE, Body, BodyError, CLOSE, FRAMES_TYPE, SEQUENCE, SESSIONS_PATH};
use crate::dial::{Dialer, tls};
use crate::driver::code_of_status;
use crate::link::framed::{Framed, Outgoing, UNIT_MAX, are_whole_frames};
use crate::link::{Carrier, Link, LinkEnd};
use crate::websocket::join;
use crate::webtransport::{ConnectError, Target, http3};

/// Head start of HTTP/3 over HTTP/2 where a link may use either: two round trips on most paths.
const HTTP3_HEAD_START: Duration = Duration::from_millis(300);

/// How long a request may take beyond what the acceptor holds it. Spec: CARR-22.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long one request is repeated before the link counts as lost. Spec: carriers §6.
const REPEAT_MAX: Duration = Duration::from_secs(10);

/// Pause before the first repetition; it doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// How long to wait for the first event: without it a proxy gathers the answer. Spec: CARR-26.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// When what was taken from events is acknowledged, at the latest. Spec: CARR-29.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(500);
const ACKNOWLEDGE_EVERY: usize = UNIT_MAX / 2;

/// Silence of a stream of events after which it is opened anew: two of the acceptor's comments.
const EVENTS_SILENCE_MAX: Duration = Duration::from_secs(35);

/// Longest answer that is no frames: JSON of a few fields.
const JSON_MAX: usize = 16 * 1024;

/// Longest event: a unit in base64, and the fields around it.
const EVENT_MAX: usize = UNIT_MAX / 3 * 4 + 1024;

/// What a new link's answer says. Spec: carriers §3.1.
#[derive(Debug, Deserialize)]
struct Opened {
    id: String,
    secret: String,
    hold_ms: u64,
    up_max: usize,
}

/// What an error's answer says. Spec: CARR-36.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    message: String,
    error: Option<u32>,
}

/// Opens a link over `carrier`, which is long-polling or server-sent events.
pub(crate) async fn open(
    dialer: &Dialer,
    carrier: Carrier,
    target: &Target,
) -> Result<Link, ConnectError> {
    let authority = target.authority();
    let failed = |source: BodyError| ConnectError::Link {
        authority: authority.clone(),
        carrier,
        source,
    };
    let requester = Requester {
        dialer: dialer.clone(),
        target: target.clone(),
        carrier,
        state: Mutex::default(),
    };
    let (connection, remote) = requester.connect().await?;
    let request = requester
        .request(Method::POST, "", &[], Bytes::new())
        .map_err(failed)?;
    let response = connection.send(request).await.map_err(failed)?;
    let (head, body) = response.into_parts();
    let body = read(body, JSON_MAX).await.map_err(failed)?;
    if head.status != StatusCode::CREATED {
        return Err(ConnectError::Refused {
            authority,
            carrier,
            status: head.status,
            message: told(&body).message,
        });
    }
    let opened: Opened = serde_json::from_slice(&body).map_err(|error| failed(error.into()))?;
    let is_id = |text: &str, len| {
        text.len() == len
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !is_id(&opened.id, 22) || !is_id(&opened.secret, 43) {
        return Err(failed("the answer's id or secret is none".into()));
    }

    let framed = Framed::new(carrier, remote);
    let exchange = Arc::new(Exchange {
        framed: framed.clone(),
        requester,
        path: format!("/{}", opened.id),
        authorization: format!("Bearer {}", opened.secret),
        patience: Duration::from_millis(opened.hold_ms).saturating_add(ANSWER_MAX),
        up_max: opened.up_max.min(UNIT_MAX),
        taken: Mutex::default(),
        was_taken: Notify::new(),
    });
    let events = match carrier {
        Carrier::ServerSentEvents => Some(exchange.first_events().await.map_err(failed)?),
        _ => None,
    };
    framed.set_runner(exchange.run(events));
    Ok(Link::Framed(framed))
}

/// A connection that requests are made on.
#[derive(Clone)]
enum Connection {
    Http3(remus_http3::Connection),
    Http2(SendRequest<Full<Bytes>>),
}

impl Connection {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, BodyError> {
        match self {
            Self::Http3(connection) => {
                let (head, content) = request.into_parts();
                let head = Request::from_parts(head, ());
                let (mut body, response) = connection.request(head).await?;
                body.send_data(content).await?;
                body.finish().await?;
                let response = response.response().await?;
                Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
            }
            Self::Http2(sender) => {
                let mut sender = sender.clone();
                sender.ready().await?;
                let response = sender.send_request(request.map(Full::new)).await?;
                Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
            }
        }
    }
}

/// Makes requests, and connections for them.
struct Requester {
    dialer: Dialer,
    target: Target,
    carrier: Carrier,
    state: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    current: Option<(u64, Connection)>,
    made: u64,
    /// What runs HTTP/2 connections; they end with the link.
    tasks: JoinSet<()>,
}

impl Requester {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        content: Bytes,
    ) -> Result<Request<Bytes>, BodyError> {
        let mut request = Request::builder().uri(format!(
            "https://{}{SESSIONS_PATH}{path}",
            self.target.authority()
        ));
        if method == Method::POST {
            request = request.header(CONTENT_LENGTH, content.len());
        }
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        Ok(request.method(method).body(content)?)
    }

    /// A new connection: HTTP/3 where that answers soon, for long-polling; else HTTP/2.
    async fn connect(&self) -> Result<(Connection, SocketAddr), ConnectError> {
        let over_tcp = self.connect_http2();
        let connected = if self.carrier == Carrier::LongPoll {
            let over_udp = async {
                let connection = http3(&self.dialer.quic, &self.target).await?;
                let remote = connection.quic().remote_address();
                Ok::<_, ConnectError>((Connection::Http3(connection), remote))
            };
            let mut over_udp = std::pin::pin!(over_udp);
            match timeout(HTTP3_HEAD_START, &mut over_udp).await {
                Ok(Ok(connected)) => connected,
                Ok(Err(_)) => over_tcp.await?,
                Err(_) => {
                    let mut over_tcp = std::pin::pin!(over_tcp);
                    tokio::select! {
                        connected = &mut over_udp => match connected {
                            Ok(connected) => connected,
                            Err(_) => over_tcp.await?,
                        },
                        connected = &mut over_tcp => match connected {
                            Ok(connected) => connected,
                            Err(_) => over_udp.await?,
                        },
                    }
                }
            }
        } else {
            over_tcp.await?
        };
        let mut state = self.lock();
        state.made = state.made.saturating_add(1);
        let number = state.made;
        state.current = Some((number, connected.0.clone()));
        Ok(connected)
    }

    async fn connect_http2(&self) -> Result<(Connection, SocketAddr), ConnectError> {
        let (stream, remote) = tls(&self.dialer.http2, &self.target).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(2 * super::WINDOW)
            .initial_connection_window_size(4 * super::WINDOW)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|error| ConnectError::Link {
            authority: self.target.authority(),
            carrier: self.carrier,
            source: error.into(),
        })?;
        let mut state = self.lock();
        while state.tasks.try_join_next().is_some() {}
        state.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP/2 connection broke");
            }
        });
        Ok((Connection::Http2(sender), remote))
    }

    /// Sends a request over the connection in use, or a new one.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, BodyError> {
        let current = self.lock().current.clone();
        let (number, connection) = match current {
            Some(current) => current,
            None => {
                let (connection, _) = self.connect().await?;
                (self.lock().made, connection)
            }
        };
        let sent = connection.send(request).await;
        if sent.is_err() {
            self.give_up(number);
        }
        sent
    }

    /// Uses a connection no longer that has failed.
    fn give_up(&self, number: u64) {
        let mut state = self.lock();
        if state
            .current
            .as_ref()
            .is_some_and(|(current, _)| *current == number)
        {
            state.current = None;
        }
    }

    fn give_up_current(&self) {
        self.lock().current = None;
    }
}

/// One link, as its client sees it.
struct Exchange {
    framed: Framed,
    requester: Requester,
    /// Below [`SESSIONS_PATH`].
    path: String,
    authorization: String,
    /// How long an answer may take.
    patience: Duration,
    up_max: usize,
    taken: Mutex<Taken>,
    was_taken: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// The highest number taken of what comes down.
    number: u64,
    /// Bytes taken since the last acknowledgement.
    unacknowledged: usize,
}

impl Exchange {
    async fn run(self: Arc<Self>, events: Option<EventReader>) {
        let _lost = LoseOnDrop(self.framed.clone());
        let reads_events = events.is_some();
        let down = async {
            match events {
                Some(events) => self.read_events(events).await,
                None => self.poll().await,
            }
            // The end is known; what goes up hears of it.
            std::future::pending::<()>().await;
        };
        let acknowledging = async {
            if reads_events {
                self.acknowledge().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.send_up() => {}
            () = down => {}
            () = acknowledging => {}
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a request until it is answered with something that says more than "later". Spec: carriers §6.
    ///
    /// `None`: the link has ended meanwhile, or does now.
    async fn ask(
        &self,
        method: &Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        content: &Bytes,
    ) -> Option<Response<Body>> {
        let mut repeat_until: Option<Instant> = None;
        let mut pause = PAUSE_FIRST;
        loop {
            let attempt = async {
                let mut all = vec![(AUTHORIZATION, self.authorization.as_str())];
                all.extend_from_slice(headers);
                let path = format!("{}{path}", self.path);
                let request =
                    self.requester
                        .request(method.clone(), &path, &all, content.clone())?;
                match timeout(self.patience, self.requester.send(request)).await {
                    Ok(response) => response,
                    Err(_) => {
                        self.requester.give_up_current();
                        Err("no answer came".into())
                    }
                }
            };
            let attempted = tokio::select! {
                attempted = attempt => attempted,
                _ = self.framed.closed() => return None,
            };
            let why = match attempted {
                Ok(response) => match response.status() {
                    StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                        format!("answered with {}", response.status())
                    }
                    status if status.is_server_error() => format!("answered with {status}"),
                    status if status.is_success() => return Some(response),
                    status => {
                        self.end_by(status, response.into_body()).await;
                        return None;
                    }
                },
                Err(error) => error.to_string(),
            };
            tracing::debug!(%method, path, why, "a request is to be repeated");
            let now = Instant::now();
            if now >= *repeat_until.get_or_insert(now + REPEAT_MAX) {
                self.framed.lose(&why);
                return None;
            }
            tokio::select! {
                () = sleep(pause) => {}
                _ = self.framed.closed() => return None,
            }
            pause = pause.saturating_mul(2);
        }
    }

    /// An answer that ends the link. Spec: carriers §6.
    async fn end_by(&self, status: StatusCode, body: Body) {
        let told = match timeout(ANSWER_MAX, read(body, JSON_MAX)).await {
            Ok(Ok(body)) => told(&body),
            _ => Told::default(),
        };
        let reason = if told.message.is_empty() {
            format!("the acceptor answered with {status}")
        } else {
            told.message
        };
        self.framed.set_end(match status {
            StatusCode::GONE => LinkEnd::Peer {
                code: ErrorCode(told.error.unwrap_or(ErrorCode::INTERNAL.0)),
                reason,
            },
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => LinkEnd::Lost { reason },
            status => LinkEnd::Broken {
                code: code_of_status(status),
                reason,
            },
        });
    }

    /// Sends what the session has to say, until it wants the link closed.
    async fn send_up(&self) {
        let mut number = 0_u64;
        loop {
            let next = poll_fn(|cx| {
                let polled = self.framed.poll_outgoing(cx, self.up_max);
                if polled.is_pending() {
                    // All that came before was answered.
                    self.framed.note_delivered();
                }
                polled
            });
            match next.await {
                Outgoing::Frames { chunks, len } => {
                    number = number.saturating_add(1);
                    let content = join(chunks, len);
                    let sequence = number.to_string();
                    let headers = [(CONTENT_TYPE, FRAMES_TYPE), (SEQUENCE, sequence.as_str())];
                    if self
                        .ask(&Method::POST, "/up", &headers, &content)
                        .await
                        .is_none()
                    {
                        return;
                    }
                }
                Outgoing::Close { code, .. } => {
                    let code = code.0.to_string();
                    let headers = [(CLOSE, code.as_str())];
                    let _ = self.ask(&Method::DELETE, "", &headers, &Bytes::new()).await;
                    self.framed.set_end(LinkEnd::Local);
                    return;
                }
                Outgoing::Ended => return,
            }
        }
    }

    /// Gives the session the frames of number `number`. False where the link has ended.
    async fn take(&self, number: Option<u64>, frames: Bytes) -> bool {
        let broken = |reason: &str| {
            self.framed.set_end(LinkEnd::Broken {
                code: ErrorCode::MALFORMED,
                reason: reason.to_owned(),
            });
            false
        };
        let expected = self.taken().number.saturating_add(1);
        match number {
            // Sent again because an acknowledgement was on its way.
            Some(number) if number < expected => return true,
            Some(number) if number == expected => {}
            _ => return broken("the acceptor's answer has not the number that comes next"),
        }
        if !are_whole_frames(&frames) {
            return broken("the acceptor's answer is not made of whole frames");
        }
        poll_fn(|cx| self.framed.poll_room(cx)).await;
        let len = frames.len();
        self.framed.put_incoming(frames);
        {
            let mut taken = self.taken();
            taken.number = expected;
            taken.unacknowledged = taken.unacknowledged.saturating_add(len);
        }
        self.was_taken.notify_one();
        !self.framed.has_ended()
    }

    /// Long-polling: asks again and again. Spec: carriers §4.
    async fn poll(&self) {
        loop {
            let taken = self.taken().number.to_string();
            let headers = [(ACKNOWLEDGE, taken.as_str())];
            let Some(response) = self
                .ask(&Method::GET, "/down", &headers, &Bytes::new())
                .await
            else {
                return;
            };
            if response.status() == StatusCode::NO_CONTENT {
                continue;
            }
            let number = number(response.headers(), &SEQUENCE);
            // An answer that breaks comes again under its number.
            match timeout(self.patience, read(response.into_body(), UNIT_MAX)).await {
                Ok(Ok(frames)) => {
                    if !self.take(number, frames).await {
                        return;
                    }
                }
                Ok(Err(_)) | Err(_) => {
                    self.requester.give_up_current();
                    sleep(PAUSE_FIRST).await;
                }
            }
        }
    }

    /// Opens events for the first time, which shows whether a proxy gathers them. Spec: CARR-26.
    async fn first_events(&self) -> Result<EventReader, BodyError> {
        let deadline = Instant::now() + PROBE_MAX;
        let opening = async {
            let headers = [
                (AUTHORIZATION, self.authorization.as_str()),
                (ACCEPT, "text/event-stream"),
            ];
            let path = format!("{}/events", self.path);
            let request = self
                .requester
                .request(Method::GET, &path, &headers, Bytes::new())?;
            let response = self.requester.send(request).await?;
            if response.status() != StatusCode::OK {
                return Err(format!("answered with {}", response.status()).into());
            }
            let mut events = EventReader::new(response.into_body());
            match events.next().await? {
                Some(event) if event.kind == "probe" => Ok(events),
                _ => Err("the first event is no probe".into()),
            }
        };
        timeout_at(deadline, opening)
            .await
            .unwrap_or_else(|_| Err("a proxy on the way holds events back".into()))
    }

    /// Server-sent events: reads, and opens them anew when they break. Spec: carriers §5.
    async fn read_events(&self, first: EventReader) {
        let mut events = first;
        loop {
            self.take_events(&mut events).await;
            if self.framed.has_ended() {
                return;
            }
            let taken = self.taken().number.to_string();
            let headers = [(ACCEPT, "text/event-stream"), (ACKNOWLEDGE, taken.as_str())];
            let Some(response) = self
                .ask(&Method::GET, "/events", &headers, &Bytes::new())
                .await
            else {
                return;
            };
            events = EventReader::new(response.into_body());
        }
    }

    /// Takes events until there are no more.
    async fn take_events(&self, events: &mut EventReader) {
        loop {
            let event = match timeout(EVENTS_SILENCE_MAX, events.next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => {
                    sleep(PAUSE_FIRST).await; // an acceptor that ends them at once is not asked in a loop
                    return;
                }
                Ok(Err(_)) | Err(_) => {
                    self.requester.give_up_current();
                    sleep(PAUSE_FIRST).await;
                    return;
                }
            };
            match event.kind.as_str() {
                "frames" => {
                    let number = event.id.parse().ok();
                    let frames = STANDARD.decode(&event.data).unwrap_or_default();
                    if !self.take(number, frames.into()).await {
                        return;
                    }
                }
                "end" => {
                    let told = told(event.data.as_bytes());
                    self.framed.set_end(match told.error {
                        Some(code) => LinkEnd::Peer {
                            code: ErrorCode(code),
                            reason: told.message,
                        },
                        None => LinkEnd::Lost {
                            reason: told.message,
                        },
                    });
                    return;
                }
                _ => {}
            }
        }
    }

    /// Says what was taken from events, now and then. Spec: CARR-29.
    async fn acknowledge(&self) {
        let mut said = 0;
        loop {
            let due = self.was_taken.notified();
            let taken = *self.taken();
            if taken.number == said {
                due.await;
                continue;
            }
            if taken.unacknowledged < ACKNOWLEDGE_EVERY {
                let more = async {
                    while self.taken().unacknowledged < ACKNOWLEDGE_EVERY {
                        self.was_taken.notified().await;
                    }
                };
                let _ = timeout(ACKNOWLEDGE_AFTER, more).await;
            }
            let number = {
                let mut taken = self.taken();
                taken.unacknowledged = 0;
                taken.number
            };
            let text = number.to_string();
            let headers = [(ACKNOWLEDGE, text.as_str())];
            if self
                .ask(&Method::POST, "/up", &headers, &Bytes::new())
                .await
                .is_none()
            {
                return;
            }
            said = number;
        }
    }
}

struct LoseOnDrop(Framed);

impl Drop for LoseOnDrop {
    fn drop(&mut self) {
        self.0.lose("nobody carries the link any more");
    }
}

fn told(json: &[u8]) -> Told {
    serde_json::from_slice(json).unwrap_or_default()
}

fn number(headers: &HeaderMap, field: &HeaderName) -> Option<u64> {
    headers.get(field)?.to_str().ok()?.parse().ok()
}

async fn read(mut body: Body, max: usize) -> Result<Bytes, BodyError> {
    let mut content = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if content.len().saturating_add(data.len()) > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the body is too long").into());
        }
        content.extend_from_slice(&data);
    }
    Ok(content.freeze())
}

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    id: String,
    kind: String,
    data: String,
}

/// Reads a stream of events, as much of the format as an acceptor of this chapter may use, and skips the rest.
struct EventReader {
    body: Body,
    buffer: BytesMut,
    /// Bytes of the buffer that were searched for the end of a line.
    searched: usize,
    event: Event,
}

impl EventReader {
    fn new(body: Body) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            searched: 0,
            event: Event::default(),
        }
    }

    /// The next event that has data; `None` at the end. Cancel safe.
    async fn next(&mut self) -> Result<Option<Event>, BodyError> {
        loop {
            while let Some(line) = self.line()? {
                if line.is_empty() {
                    let event = std::mem::take(&mut self.event);
                    if !event.data.is_empty() {
                        return Ok(Some(event));
                    }
                    continue;
                }
                let (field, value) = line.split_once(':').unwrap_or((&line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                let place = match field {
                    "id" => &mut self.event.id,
                    "event" => &mut self.event.kind,
                    "data" => &mut self.event.data,
                    _ => continue,
                };
                value.clone_into(place);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// The next whole line, without its end.
    fn line(&mut self) -> Result<Option<String>, BodyError> {
        let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(place) = unsearched.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            if self.searched > EVENT_MAX {
                return Err(
                    io::Error::new(io::ErrorKind::InvalidData, "an event is too long").into(),
                );
            }
            return Ok(None);
        };
        let line = self.buffer.split_to(self.searched.saturating_add(place));
        self.buffer.advance(1);
        self.searched = 0;
        let line = String::from_utf8(line.to_vec())?;
        Ok(Some(line.strip_suffix('\r').unwrap_or(&line).to_owned()))
    }
}
