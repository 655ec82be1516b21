//! How frames reach the other end: the request for a session, lanes, datagrams and the end, against peers made by hand.
//!
//! Spec: transport. What a carrier's layer below answers for is tested in `remus-http3`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use remus::{Client, ErrorCode, LocalCa, Raw, Request, Response, Router, Service, TlsPolicy};
use remus_http3::{ClosedBy, Incoming, RecvStream, SendStream};
use remus_security::{alpn, client_config, server_config};
use remus_session::{
    Answer, CallKey, Event, Grant, LaneId, Outgoing, Received, Session, SessionConfig, Shape,
};
use remus_transport::{Clock, quic};
use remus_wire::{
    Features, Flags, FrameHeader, FrameType, Handshake, Heartbeat, Message, MessageType, MethodId,
    QueryAnswer, RequestId, Resume, ResumeToken, Routing, ServiceId, StreamId, Timestamp,
};
use support::Host;

/// Largest frame that the peers here take, in bytes.
const FRAME_MAX: u32 = 64 * 1024;

fn echo() -> Router {
    Router::new().service(Service::new("test.v1.Echo").unary(
        "Echo",
        Raw,
        |request: Request<Bytes>| async move { Ok(Response::new(request.into_inner())) },
    ))
}

fn frame(stream: u16, kind: FrameType, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        stream: StreamId(stream),
        kind,
        len: payload.len() as u32,
    };
    [&header.encode()[..], payload].concat()
}

fn message(stream: u16, message: &Message) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    frame(stream, FrameType::MESSAGE, &bytes)
}

/// A call of `test.v1.Echo/Echo`.
fn request(stream: u16, id: u32, flags: Flags) -> Vec<u8> {
    let mut request = Message::new(MessageType::REQUEST, Bytes::from_static(b"echo"));
    request.request_id = RequestId(id);
    request.flags = flags;
    request.routing = Routing::to(
        ServiceId::of("test.v1.Echo"),
        MethodId::of("test.v1.Echo/Echo"),
    );
    message(stream, &request)
}

fn heartbeat(clock: &Clock, id: u32) -> Vec<u8> {
    let mut payload = BytesMut::new();
    Heartbeat::default().encode(&mut payload);
    let mut heartbeat = Message::new(MessageType::HEARTBEAT, payload.freeze());
    heartbeat.request_id = RequestId(id);
    heartbeat.timestamp = clock.now();
    message(0, &heartbeat)
}

fn handshake(step: &Handshake) -> Vec<u8> {
    let mut payload = BytesMut::new();
    step.encode(&mut payload);
    message(0, &Message::new(MessageType::HANDSHAKE, payload.freeze()))
}

/// The frames at the front of `bytes` that are whole.
fn frames(mut bytes: &[u8]) -> Vec<(u16, FrameType, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some(header) = FrameHeader::peek(bytes, FRAME_MAX).unwrap() {
        let end = 8 + header.len as usize;
        let Some(payload) = bytes.get(8..end) else {
            break;
        };
        found.push((header.stream.0, header.kind, payload.to_vec()));
        bytes = &bytes[end..];
    }
    found
}

/// Reads a lane until it has a whole frame.
async fn next_frame(recv: &mut RecvStream) -> (u16, FrameType, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(first) = frames(&bytes).into_iter().next() {
            return first;
        }
        let chunk = recv.read_chunk(1).await.unwrap().expect("a frame");
        bytes.extend_from_slice(&chunk);
    }
}

// ---- a client by hand ----

/// Link and lane 0 to a real server.
struct Visitor {
    link: remus_http3::Session,
    send: SendStream,
    recv: RecvStream,
    session: Session,
    clock: Clock,
    _endpoint: quinn::Endpoint,
}

async fn http3(host: &Host) -> (quinn::Endpoint, remus_http3::Connection, SocketAddr) {
    let tls = client_config(TlsPolicy::RequirePostQuantum, &host.trust, alpn::QUIC).unwrap();
    let endpoint = quic::client_endpoint(tls).unwrap();
    let address: SocketAddr = host.url.trim_start_matches("remus://").parse().unwrap();
    let quic = endpoint
        .connect(address, "127.0.0.1")
        .unwrap()
        .await
        .unwrap();
    let config = Arc::new(remus_http3::Config::default());
    let connection = remus_http3::Connection::client(quic, config).await.unwrap();
    (endpoint, connection, address)
}

impl Visitor {
    /// With lane 0 open and nothing said.
    async fn new(host: &Host, config: SessionConfig) -> Self {
        let (endpoint, http3, address) = http3(host).await;
        let request = http::Request::get(format!("https://{address}/remus/v2"));
        let link = http3
            .connect(request.body(()).unwrap(), &["remus.v2"])
            .await
            .unwrap();
        let (send, recv) = link.open_bi().await.unwrap();
        let clock = Clock::new();
        let session = Session::client(config, clock.now()).unwrap();
        Self {
            link,
            send,
            recv,
            session,
            clock,
            _endpoint: endpoint,
        }
    }

    async fn active(host: &Host) -> Self {
        let mut visitor = Self::new(host, SessionConfig::client()).await;
        visitor.send_first_flight().await;
        loop {
            match visitor.event().await {
                Event::Active(_) => return visitor,
                Event::Closed(reason) => panic!("{reason:?}"),
                _ => {}
            }
        }
    }

    async fn send_first_flight(&mut self) {
        let mut out = VecDeque::new();
        assert!(self.session.poll_transmit(LaneId::ZERO, &mut out));
        for chunk in out {
            self.send.write_all(&chunk).await.unwrap();
        }
    }

    /// The next event of what comes on lane 0; the end of the lane is a panic.
    async fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.session.poll_event(self.clock.now()) {
                return event;
            }
            let mut chunk = self.recv.read_chunk(65_536).await.unwrap().unwrap();
            self.session
                .handle_input(self.clock.now(), LaneId::ZERO, &mut chunk)
                .unwrap();
        }
    }

    /// Shows that lane 0 still works.
    async fn is_served(&mut self, id: u32) {
        self.send
            .write_all(&request(1, id, Flags::default()))
            .await
            .unwrap();
        let (stream, kind, bytes) = next_frame(&mut self.recv).await;
        assert_eq!((stream, kind), (1, FrameType::MESSAGE));
        assert_eq!(bytes[4], 0x11, "a response");
    }

    /// What the server says when it closes.
    async fn verdict(&self) -> ErrorCode {
        let closed = self.link.closed().await.unwrap();
        assert_eq!(closed.side, ClosedBy::Peer, "{closed}");
        ErrorCode(closed.code)
    }
}

/// The protocol that the answer names, or the status of the refusal.
type Outcome<'a> = Result<Option<&'a str>, u16>;

/// Spec: TRANS-19, TRANS-20, TRANS-22, TRANS-23
#[tokio::test]
async fn requests_for_sessions_are_judged() {
    let host = Host::start_with(echo(), |builder| {
        builder.allow_origin("https://app.example.org")
    })
    .await;
    let (_endpoint, connection, address) = http3(&host).await;
    let own = format!("https://{address}");
    let no = None::<&str>;
    let (open, v2) = (Ok(Some("remus.v2")), &["remus.v2"][..]);
    let cases: [(&str, Option<&str>, &[&str], Outcome<'_>); 12] = [
        ("/remus/v2", no, v2, open),
        ("/remus/v2?a=b", no, v2, open),
        ("/remus/v2", no, &["remus.v9", "remus.v2"], open),
        ("/remus/v2", no, &[], Ok(None)),
        ("/remus/v2", no, &["remus.v9"], Err(400)),
        ("/remus/v2/", no, v2, Err(404)),
        ("/", no, v2, Err(404)),
        ("/remus/v2", Some(&own), v2, open),
        ("/remus/v2", Some("HTTPS://App.Example.org"), v2, open),
        ("/remus/v2", Some("https://evil.example.org"), v2, Err(403)),
        ("/remus/v2", Some("null"), v2, Err(403)),
        ("/remus/v2", Some("http://app.example.org"), v2, Err(403)),
    ];
    for (path, origin, protocols, expected) in cases {
        let mut request = http::Request::get(format!("https://{address}{path}"));
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let session = connection
            .connect(request.body(()).unwrap(), protocols)
            .await
            .unwrap();
        let got = match session.established().await {
            Ok(established) => Ok(established.protocol),
            Err(remus_http3::Error::Refused { status, .. }) => Err(status.as_u16()),
            Err(error) => panic!("{error}"),
        };
        let expected = expected.map(|protocol| protocol.map(str::to_owned));
        assert_eq!(got, expected, "{path} {origin:?} {protocols:?}");
        session.close(0, "").await;
    }
}

/// Spec: TRANS-34, TRANS-36
#[tokio::test]
async fn a_stream_is_answered_on_the_lane_where_it_arrived() {
    let host = Host::start(echo()).await;
    let mut visitor = Visitor::active(&host).await;
    let mut lanes = Vec::new();
    for number in 0..3 {
        let (mut send, recv) = visitor.link.open_bi().await.unwrap();
        // A CREDIT for another lane's stream, on this one.
        let credit = frame(1, FrameType::CREDIT, &u64::MAX.to_be_bytes());
        send.write_all(&credit).await.unwrap();
        let call = request(3 + 2 * number, 10 + u32::from(number), Flags::STREAM_END);
        send.write_all(&call).await.unwrap();
        lanes.push((3 + 2 * number, send, recv));
    }
    for (id, _send, recv) in &mut lanes {
        let (stream, kind, bytes) = next_frame(recv).await;
        assert_eq!((stream, kind), (*id, FrameType::MESSAGE));
        assert_eq!(bytes[4], 0x11, "a response");
    }
    visitor.is_served(20).await;
}

/// Spec: TRANS-28, TRANS-46
#[tokio::test]
async fn frames_are_taken_before_the_request_is_answered_and_whatever_their_pieces() {
    let host = Host::start(echo()).await;
    let mut visitor = Visitor::new(&host, SessionConfig::client()).await;
    let mut out = VecDeque::new();
    assert!(visitor.session.poll_transmit(LaneId::ZERO, &mut out));
    let flight = [
        out.make_contiguous().concat(),
        request(1, 1, Flags::default()),
    ]
    .concat();
    for piece in flight.chunks(7) {
        visitor.send.write_all(piece).await.unwrap();
    }
    // Nobody has asked for the answer to the request yet; this comes from the frames alone.
    let mut kinds = Vec::new();
    while kinds.last() != Some(&(1, 0x11)) {
        let (stream, _, bytes) = next_frame(&mut visitor.recv).await;
        kinds.push((stream, bytes[4]));
    }
    assert_eq!(
        kinds,
        [
            (0, 0x01),
            (0, 0x05),
            (0, 0x01),
            (0, 0x11),
            (0, 0x04),
            (1, 0x11)
        ],
        "accept, capability, authenticated, the directory, the schemas wanted; the call's answer"
    );
}

/// Spec: TRANS-39
#[tokio::test]
async fn a_lane_that_is_reset_ends_the_session() {
    let host = Host::start(echo()).await;
    let visitor = Visitor::active(&host).await;
    let (mut send, mut recv) = visitor.link.open_bi().await.unwrap();
    send.write_all(&request(3, 10, Flags::STREAM_END))
        .await
        .unwrap();
    next_frame(&mut recv).await;
    send.reset(0);
    assert_eq!(visitor.verdict().await, ErrorCode::UNAVAILABLE);
}

/// Spec: TRANS-40
#[tokio::test]
async fn the_end_of_lane_0_alone_ends_the_session_after_a_while() {
    let host = Host::start(echo()).await;
    let mut visitor = Visitor::active(&host).await;
    visitor.send.finish().unwrap();
    assert_eq!(visitor.verdict().await, ErrorCode::UNAVAILABLE);
}

/// Spec: TRANS-39, TRANS-40, TRANS-47
#[tokio::test]
async fn code_and_reason_of_a_close_reach_the_session_of_the_other_side() {
    for ends_lanes in [true, false] {
        let host = Host::start(echo()).await;
        let mut visitor = Visitor::active(&host).await;
        let [there] = &host.connections.list()[..] else {
            panic!("one session")
        };
        if ends_lanes {
            visitor.send.finish().unwrap();
            visitor.send.stopped().await.unwrap();
        }
        visitor.link.close(ErrorCode::ABORTED.0, "had enough").await;
        let closed = there.closed().await;
        assert_eq!(
            (closed.code, &closed.reason[..], closed.by_peer),
            (ErrorCode::ABORTED, "had enough", true),
            "lanes ended first: {ends_lanes}"
        );
    }
}

/// Spec: TRANS-42, TRANS-43
#[tokio::test]
async fn a_datagram_holds_one_heartbeat_and_anything_else_is_dropped() {
    let host = Host::start(echo()).await;
    let mut visitor = Visitor::active(&host).await;
    let good = heartbeat(&visitor.clock, 7);
    let mut elsewhere = good.clone();
    elsewhere[1] = 1; // stream 1
    let mut cut = good.clone();
    cut.pop();
    for dropped in [
        request(1, 99, Flags::default()),
        [good.clone(), good.clone()].concat(),
        elsewhere,
        cut,
        frame(0, FrameType::PART, &good[8..]),
        handshake(&Handshake::Challenge(Bytes::new())),
        vec![0; 100],
        Vec::new(),
    ] {
        visitor.link.send_datagram(&dropped).unwrap();
    }
    visitor.link.send_datagram(&good).unwrap();
    let answer = visitor.link.read_datagram().await.unwrap();
    let [(0, FrameType::MESSAGE, bytes)] = &frames(&answer)[..] else {
        panic!("one frame: {answer:x?}")
    };
    assert_eq!((bytes[4], bytes.len()), (0x02, 55), "a heartbeat");
    assert_eq!(bytes[7..11], [0; 4], "that asks for no answer");
    let echoed: [u8; 8] = bytes[35..43].try_into().unwrap();
    assert_ne!(echoed, [0; 8], "and says which it answers");
    // The session goes on. On lane 0 a heartbeat is answered there.
    visitor.is_served(1).await;
    visitor
        .send
        .write_all(&heartbeat(&visitor.clock, 8))
        .await
        .unwrap();
    let (stream, _, bytes) = next_frame(&mut visitor.recv).await;
    assert_eq!((stream, bytes[4]), (0, 0x02));
}

/// Spec: TRANS-47, TRANS-49
#[tokio::test]
async fn a_refusal_arrives_before_the_close_that_follows_it() {
    let host = Host::start(echo()).await;
    // Nobody here can judge a token.
    let config = SessionConfig::client().with_bearer(Bytes::from_static(b"token"));
    let mut visitor = Visitor::new(&host, config).await;
    visitor.send_first_flight().await;
    let refused = loop {
        if let Event::Refused(record) = visitor.event().await {
            break record;
        }
    };
    assert_eq!(refused.code, ErrorCode::UNAUTHENTICATED);
    // The lane ends in good order, and then comes the same code.
    assert_eq!(visitor.verdict().await, ErrorCode::UNAUTHENTICATED);
}

/// Spec: TRANS-52
#[tokio::test]
async fn a_session_is_not_resumed() {
    let host = Host::start(echo()).await;
    let mut visitor = Visitor::new(&host, SessionConfig::client()).await;
    let resume = Handshake::Resume(Resume {
        token: ResumeToken([7; 32]),
        lanes: Vec::new(),
    });
    visitor.send.write_all(&handshake(&resume)).await.unwrap();
    let (stream, _, bytes) = next_frame(&mut visitor.recv).await;
    assert_eq!((stream, bytes[4]), (0, 0x01), "a handshake message");
    match Handshake::decode(Bytes::from(bytes).slice(35..)).unwrap() {
        Handshake::Refused(record) => assert_eq!(record.code, ErrorCode::LOSS_OF_SESSION),
        other => panic!("{other:?}"),
    }
    assert_ne!(visitor.verdict().await, ErrorCode::OK);
}

// ---- an acceptor by hand ----

/// Spec: TRANS-21, TRANS-27, TRANS-29
#[tokio::test]
async fn a_client_asks_for_a_session_and_begins_lane_0_with_the_control_stream() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_owned();
    let ca = tokio::task::spawn_blocking(move || {
        LocalCa::load_or_create(&path, &["localhost"]).unwrap()
    })
    .await
    .unwrap();
    let tls = server_config(TlsPolicy::PreferPostQuantum, ca.live(), alpn::QUIC).unwrap();
    let socket = quic::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let endpoint = quic::server_endpoint(socket, tls).unwrap();
    let url = format!("remus://{}", endpoint.local_addr().unwrap());
    let trust = remus::Trust::from_pem_file(&LocalCa::certificate_path(data.path())).unwrap();
    let client = Client::builder(&url).trust(trust);

    let accepting = async {
        let connecting = endpoint.accept().await.unwrap().accept().unwrap();
        let config = Arc::new(remus_http3::Config::default());
        let http3 = remus_http3::Connection::accept_quic(connecting, config)
            .await
            .unwrap();
        let Some(Incoming::Session(request)) = http3.accept().await else {
            panic!("no session")
        };
        let head = request.head();
        assert_eq!(head.uri().path(), "/remus/v2");
        assert_eq!(head.uri().scheme_str(), Some("https"));
        assert_eq!(
            head.uri().authority().unwrap().as_str(),
            url.trim_start_matches("remus://")
        );
        assert!(head.headers().get("origin").is_none());
        assert_eq!(request.protocols(), ["remus.v2"]);
        let link = request.accept(Some("remus.v2")).await.unwrap();
        let (_send, mut recv) = link.accept_bi().await.unwrap();
        let mut kinds = Vec::new();
        for _ in 0..5 {
            let (stream, kind, bytes) = next_frame(&mut recv).await;
            assert_eq!((stream, kind), (0, FrameType::MESSAGE));
            kinds.push(bytes[4]);
        }
        assert_eq!(kinds, [0x01, 0x05, 0x01, 0x41, 0x04]);
        link
    };
    let (link, client) = tokio::join!(accepting, client.connect());
    drop((link, client.unwrap()));
}

// ---- two sessions without a carrier ----

/// A client's and an acceptor's session, and the lanes between them.
struct Pair {
    client: Session,
    acceptor: Session,
    now: Timestamp,
    /// All that the client has sent, by lane.
    sent: BTreeMap<u16, Vec<u8>>,
    /// What happened at the acceptor.
    events: Vec<Event>,
}

impl Pair {
    fn new(client: SessionConfig, acceptor: SessionConfig) -> Self {
        let now = Timestamp(1_000_000_000);
        let mut pair = Self {
            client: Session::client(client, now).unwrap(),
            acceptor: Session::acceptor(acceptor, now).unwrap(),
            now,
            sent: BTreeMap::new(),
            events: Vec::new(),
        };
        pair.exchange();
        assert!(pair.client.negotiated().is_some() && pair.acceptor.state().is_open());
        pair.sent.clear();
        pair.events.clear();
        pair
    }

    fn active() -> Self {
        Self::new(SessionConfig::client(), SessionConfig::acceptor())
    }

    /// Carries everything across until nothing moves any more.
    fn exchange(&mut self) {
        let mut up: BTreeMap<u16, Bytes> = BTreeMap::new();
        let mut down = BTreeMap::new();
        loop {
            let mut moved = false;
            for (lane, bytes) in collect(&mut self.client) {
                moved = true;
                self.sent.entry(lane).or_default().extend(&bytes);
                append(&mut up, lane, &bytes);
            }
            for (lane, bytes) in collect(&mut self.acceptor) {
                moved = true;
                append(&mut down, lane, &bytes);
            }
            moved |= deliver(&mut self.acceptor, &mut up, self.now);
            moved |= deliver(&mut self.client, &mut down, self.now);
            while let Some(event) = self.acceptor.poll_event(self.now) {
                moved = true;
                match event {
                    Event::Authenticate(_) => self.acceptor.grant(self.now, Grant::default()),
                    Event::Query(id, _) => {
                        self.acceptor
                            .answer_query(self.now, id, &QueryAnswer::default());
                    }
                    other => self.events.push(other),
                }
            }
            while self.client.poll_event(self.now).is_some() {
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }

    fn call(&mut self, shape: Shape) -> CallKey {
        self.client
            .call(self.now, Outgoing::default(), shape)
            .unwrap()
    }

    /// The acceptor's view of what `bytes` on `lane` are.
    fn judge(&mut self, lane: u16, bytes: Vec<u8>) -> Result<(), ErrorCode> {
        self.acceptor
            .handle_input(self.now, LaneId(lane), &mut bytes.into())
            .map_err(|error| error.code())
    }
}

fn collect(session: &mut Session) -> Vec<(u16, Vec<u8>)> {
    let dirty = session.take_dirty_lanes();
    let mut collected = Vec::new();
    for lane in (0..32).filter(|lane| dirty & (1 << lane) != 0) {
        let mut out = VecDeque::new();
        while session.poll_transmit(LaneId(lane), &mut out) {}
        if !out.is_empty() {
            collected.push((lane, out.make_contiguous().concat()));
        }
    }
    collected
}

fn append(lanes: &mut BTreeMap<u16, Bytes>, lane: u16, bytes: &[u8]) {
    let before = lanes.remove(&lane).unwrap_or_default();
    lanes.insert(lane, [&before[..], bytes].concat().into());
}

fn deliver(session: &mut Session, lanes: &mut BTreeMap<u16, Bytes>, now: Timestamp) -> bool {
    let mut moved = false;
    for (lane, bytes) in lanes {
        let before = bytes.len();
        session.handle_input(now, LaneId(*lane), bytes).unwrap();
        moved |= bytes.len() < before;
    }
    moved
}

/// Spec: TRANS-29, TRANS-30, TRANS-33
#[test]
fn frames_on_the_wrong_lane_end_the_session() {
    const WRONG: Result<(), ErrorCode> = Err(ErrorCode::STREAM_STATE);
    let end = Flags::STREAM_END;
    for (stream, bytes) in [
        (0, handshake(&Handshake::Challenge(Bytes::new()))),
        (1, request(1, 1, Flags::default())),
    ] {
        let mut pair = Pair::active();
        assert_eq!(pair.judge(1, bytes), WRONG, "stream {stream} on lane 1");
    }

    let mut pair = Pair::active();
    assert_eq!(pair.judge(1, request(3, 1, end)), Ok(()));
    assert_eq!(pair.judge(2, request(5, 2, end)), Ok(()));
    let rest = request(3, 3, end);
    assert_eq!(pair.judge(2, rest), WRONG, "a stream that changes its lane");

    // The ID is free again, and still keeps its lane.
    let mut pair = Pair::active();
    assert_eq!(pair.judge(1, request(3, 1, end)), Ok(()));
    pair.exchange();
    let Some(Event::Request(incoming)) = pair.events.pop() else {
        panic!("no request")
    };
    let answer = Answer::Reply {
        payload: Bytes::new(),
        context: Default::default(),
        flags: Flags::default(),
    };
    pair.acceptor.respond(pair.now, incoming.call, answer);
    assert_eq!(pair.judge(2, request(3, 2, end)), WRONG, "a second use");

    let now = Timestamp(1_000_000_000);
    let mut early = Session::acceptor(SessionConfig::acceptor(), now).unwrap();
    let error = early
        .handle_input(now, LaneId(1), &mut request(3, 1, end).into())
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::STREAM_STATE, "before it is active");
}

/// Spec: TRANS-30, TRANS-31, TRANS-32
#[test]
fn a_client_opens_lanes_when_it_may_and_no_more_than_sixteen() {
    let now = Timestamp(1_000_000_000);
    let mut early = Session::client(SessionConfig::client(), now).unwrap();
    early.call(now, Outgoing::default(), Shape::Unary).unwrap();
    assert!(early.call(now, Outgoing::default(), Shape::TwoWay).is_err());
    assert_eq!(early.take_dirty_lanes(), 1, "the first flight is on lane 0");

    let mut pair = Pair::active();
    for _ in 0..100 {
        pair.call(Shape::TwoWay);
    }
    pair.exchange();
    let lanes: Vec<u16> = pair.sent.keys().copied().collect();
    assert_eq!(lanes, (1..16).collect::<Vec<u16>>());

    let mut without = SessionConfig::acceptor();
    without.features = Features::BATCH;
    let mut pair = Pair::new(SessionConfig::client(), without);
    for _ in 0..100 {
        pair.call(Shape::TwoWay);
    }
    pair.exchange();
    assert_eq!(pair.sent.keys().copied().collect::<Vec<u16>>(), [0]);
}

/// Spec: TRANS-44
#[test]
fn heartbeats_go_on_lane_0_where_datagrams_were_not_agreed_on() {
    for (features, expected) in [(Features::DATAGRAMS, true), (Features::BATCH, false)] {
        let mut config = SessionConfig::acceptor();
        config.features = features;
        let mut pair = Pair::new(SessionConfig::client(), config);
        pair.client.set_datagrams(true);
        pair.client.probe(pair.now);
        assert_eq!(pair.client.poll_datagram().is_some(), expected);
        pair.exchange();
        assert_eq!(pair.sent.contains_key(&0), !expected);
    }
}

/// Spec: TRANS-35
#[test]
fn resets_follow_what_was_sent_on_the_same_lane() {
    let mut pair = Pair::active();
    let call = pair.call(Shape::TwoWay);
    pair.client.cancel(pair.now, call, ErrorCode::CANCELLED);
    pair.exchange();
    let [(lane, bytes)] = &pair.sent.iter().collect::<Vec<_>>()[..] else {
        panic!("one lane: {:?}", pair.sent.keys())
    };
    assert_ne!(**lane, 0);
    let kinds: Vec<FrameType> = frames(bytes).into_iter().map(|(_, kind, _)| kind).collect();
    assert_eq!(kinds[0], FrameType::MESSAGE, "the request");
    assert!(kinds.contains(&FrameType::STOP) && kinds.contains(&FrameType::RESET));
}

/// Spec: TRANS-37, TRANS-38
#[test]
fn the_end_of_a_lane_ends_what_it_carries_and_not_the_session() {
    let mut pair = Pair::active();
    let call = pair.call(Shape::TwoWay);
    let other = pair.call(Shape::TwoWay);
    pair.exchange();
    assert_eq!(pair.sent.keys().copied().collect::<Vec<u16>>(), [1, 2]);
    pair.client.handle_lane_end(LaneId(1)).unwrap();
    match pair.client.recv(call) {
        Some(Received::End(Some(error))) => assert_eq!(error.code, ErrorCode::LOSS_OF_SESSION),
        other => panic!("{other:?}"),
    }
    assert!(pair.client.state().is_open());
    assert!(pair.client.has_call(other) && pair.client.recv(other).is_none());

    let mut pair = Pair::active();
    let mut cut = request(3, 1, Flags::STREAM_END);
    cut.pop();
    assert_eq!(pair.judge(1, cut), Ok(()));
    let error = pair.acceptor.handle_lane_end(LaneId(1)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::MALFORMED);
}

/// Spec: TRANS-25
#[tokio::test]
async fn a_refused_session_leaves_the_connection_as_it_is() {
    let host = Host::start(echo()).await;
    let (_endpoint, connection, address) = http3(&host).await;
    let get = |path: &str| {
        http::Request::get(format!("https://{address}{path}"))
            .body(())
            .unwrap()
    };
    let refused = connection.connect(get("/no"), &[]).await.unwrap();
    assert!(refused.established().await.is_err());
    let (mut body, answer) = connection.request(get("/")).await.unwrap();
    body.finish().await.unwrap();
    let answer = answer.response().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let session = connection
        .connect(get("/remus/v2"), &["remus.v2"])
        .await
        .unwrap();
    assert!(session.established().await.is_ok());
}
