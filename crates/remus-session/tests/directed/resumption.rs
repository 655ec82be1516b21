//! A session that loses its carrier and goes on with another one: core §3.5.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use remus_session::{
    CallError, CallKey, CarrierInfo, Event, Grant, LANES_MAX, LaneId, Peeked, RESUME_REQUEST_MAX,
    Received, ResumeError, ResumeRequest, SessionConfig, Shape, State, peek_resume, refuse_resume,
};
use remus_wire::{
    AuthMethod, Authenticated, AuthenticationRecord, ErrorCode, Features, Frame, FrameBody,
    FrameType, Handshake, LaneOffset, Message, MessageType, ResumeToken, Text, Timestamp,
    VersionRecord,
};

use crate::support::*;

const WIDE: CarrierInfo = CarrierInfo {
    lanes: LANES_MAX,
    datagrams: false,
};

const TOKENS: [ResumeToken; 3] = [
    ResumeToken([1; 32]),
    ResumeToken([2; 32]),
    ResumeToken([3; 32]),
];

/// Two active sessions that can be resumed, with the first token.
fn resumable() -> Duo {
    resumable_with(
        SessionConfig::client().with_resumption(true),
        SessionConfig::acceptor().with_resumption(true),
    )
}

fn resumable_with(client: SessionConfig, acceptor: SessionConfig) -> Duo {
    let mut duo = Duo {
        client: Rig::fresh_client(client),
        acceptor: Rig::fresh_acceptor(acceptor),
    };
    duo.acceptor.grant = Some(Grant {
        session: 1,
        authenticated: true,
        token: TOKENS[0],
        ..Grant::default()
    });
    duo.exchange();
    assert!(duo.client.session.is_resumable() && duo.acceptor.session.is_resumable());
    duo.client.events.clear();
    duo.acceptor.events.clear();
    duo
}

/// What leaves on a lane now, and is lost.
fn lose(rig: &mut Rig) -> usize {
    let mut out = VecDeque::new();
    for lane in 0..LANES_MAX {
        while rig.session.poll_transmit(LaneId(lane), &mut out) {}
    }
    rig.take_events();
    out.iter().map(Bytes::len).sum()
}

/// The client's request, as the acceptor's driver finds it.
fn asked_by(client: &mut Rig, carrier: CarrierInfo) -> ResumeRequest {
    let now = client.at();
    client.session.attach(now, carrier).unwrap();
    let mut out = VecDeque::new();
    assert!(client.session.poll_transmit(LaneId::ZERO, &mut out));
    assert!(!client.session.poll_transmit(LaneId::ZERO, &mut out));
    let bytes: Vec<u8> = out.into_iter().flatten().collect();
    for len in 0..bytes.len() {
        assert_eq!(peek_resume(&bytes[..len]), Peeked::NeedMore);
    }
    match peek_resume(&bytes) {
        Peeked::Resume(request) => {
            assert_eq!(request.len, bytes.len());
            request
        }
        other => panic!("{other:?}"),
    }
}

/// The client takes up its session on a new carrier.
fn resume(duo: &mut Duo, next: ResumeToken, carrier: CarrierInfo) {
    let asked = asked_by(&mut duo.client, carrier);
    let now = duo.acceptor.at();
    duo.acceptor
        .session
        .resume(now, &asked, next, carrier)
        .unwrap();
    duo.exchange();
    assert!(!duo.client.session.is_suspended() && !duo.acceptor.session.is_suspended());
    assert_eq!(duo.client.session.resume_token(), next);
    assert_eq!(duo.acceptor.session.unconfirmed_token(), None);
}

fn cut(rig: &mut Rig) {
    let now = rig.at();
    assert!(rig.session.suspend(now, ErrorCode::UNAVAILABLE, "cut"));
    rig.session.check().unwrap();
    rig.take_events();
}

/// An active client that can be resumed with the first token; its acceptor is hand-written.
fn client_alone() -> Rig {
    let mut client = Rig::fresh_client(SessionConfig::client().with_resumption(true));
    let features = all_features() | Features::RESUMPTION;
    client
        .feed(&handshake(&Handshake::Accept(VersionRecord::new(features))))
        .unwrap();
    client.feed(&capability(GENEROUS)).unwrap();
    client.feed(&step_5(TOKENS[0])).unwrap();
    client.feed(&query_answer(1)).unwrap();
    client.feed(&schema_want()).unwrap();
    client.sent();
    client.events.clear();
    assert!(client.session.is_resumable());
    client
}

/// An active acceptor that can be resumed with the first token; its client is hand-written.
fn acceptor_alone(config: SessionConfig) -> Rig {
    let acceptor = acceptor_granting(config, TOKENS[0]);
    assert!(acceptor.session.is_resumable());
    acceptor
}

fn acceptor_granting(config: SessionConfig, token: ResumeToken) -> Rig {
    let mut acceptor = Rig::fresh_acceptor(config.with_resumption(true));
    acceptor.grant = Some(Grant {
        session: 1,
        authenticated: true,
        token,
        ..Grant::default()
    });
    let features = all_features() | Features::RESUMPTION;
    acceptor
        .feed(&handshake(&Handshake::Offer(VersionRecord::new(features))))
        .unwrap();
    for record in &first_flight(GENEROUS)[1..] {
        acceptor.feed(record).unwrap();
    }
    acceptor.sent();
    acceptor.events.clear();
    acceptor
}

fn step_5(token: ResumeToken) -> Vec<u8> {
    handshake(&Handshake::Authenticated(Authenticated {
        session: 1,
        token,
        expires: Timestamp::ZERO,
        claims: Text::new(),
    }))
}

fn resumed(lanes: &[(u16, u64)]) -> Vec<u8> {
    handshake(&Handshake::Resumed(offsets(lanes)))
}

fn offsets(lanes: &[(u16, u64)]) -> Vec<LaneOffset> {
    lanes
        .iter()
        .map(|&(lane, offset)| LaneOffset { lane, offset })
        .collect()
}

fn ack(lane: u16, offset: u64) -> Vec<u8> {
    frame(0, FrameBody::Ack { lane, offset })
}

/// The acknowledgements among what was sent.
fn acks(frames: &[(u16, Frame)]) -> Vec<(u16, u64)> {
    let acks = frames
        .iter()
        .filter(|(lane, frame)| *lane == 0 && frame.stream.0 == 0);
    acks.filter_map(|(_, frame)| match frame.body {
        FrameBody::Ack { lane, offset } => Some((lane, offset)),
        _ => None,
    })
    .collect()
}

/// A hand-written client asks an acceptor.
fn ask(
    acceptor: &mut Rig,
    token: ResumeToken,
    lanes: &[(u16, u64)],
    next: ResumeToken,
) -> Result<u32, ResumeError> {
    let now = acceptor.at();
    let asked = ResumeRequest {
        token,
        lanes: offsets(lanes),
        authentication: AuthenticationRecord::default(),
        len: 0,
    };
    let result = acceptor.session.resume(now, &asked, next, WIDE);
    acceptor.session.check().unwrap();
    result
}

/// The steps of the handshake that leave first, and the frames behind them.
fn answer_to_request(acceptor: &mut Rig) -> (Vec<LaneOffset>, ResumeToken, Vec<(u16, Frame)>) {
    let mut frames = acceptor.sent();
    let behind = frames.split_off(2);
    let mut steps = frames.into_iter().map(|(lane, frame)| {
        assert_eq!((lane, frame.stream.0), (0, 0));
        let FrameBody::Message(bytes) = frame.body else {
            panic!("{frame:?}")
        };
        Handshake::decode(Message::decode(bytes, &ANY).unwrap().payload).unwrap()
    });
    match (steps.next(), steps.next()) {
        (Some(Handshake::Resumed(lanes)), Some(Handshake::Authenticated(step))) => {
            (lanes, step.token, behind)
        }
        other => panic!("{other:?}"),
    }
}

fn call(rig: &mut Rig, payload: impl Into<Bytes>, shape: Shape) -> CallKey {
    let now = rig.at();
    rig.session.call(now, outgoing(payload), shape).unwrap()
}

fn payload(len: usize) -> Bytes {
    (0..len)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect::<Vec<_>>()
        .into()
}

/// Spec: CORE-90
#[test]
fn a_call_that_was_lost_on_its_way_is_answered_on_the_next_carrier() {
    let mut duo = resumable();
    let now = duo.client.at();
    let call = duo
        .client
        .session
        .call(now, outgoing(Bytes::from_static(b"ask")), Shape::Unary)
        .unwrap();
    assert!(lose(&mut duo.client) > 0);
    cut(&mut duo.client);
    cut(&mut duo.acceptor);
    assert!(duo.client.session.is_suspended());
    assert_eq!(duo.client.session.state(), State::Active);
    resume(&mut duo, TOKENS[1], WIDE);
    let incoming = duo.acceptor.incoming();
    assert_eq!(incoming.message.payload, "ask");
    // And the answer on its way back.
    duo.acceptor
        .respond(incoming.call, Bytes::from_static(b"answer"));
    assert!(lose(&mut duo.acceptor) > 0);
    cut(&mut duo.acceptor);
    resume(&mut duo, TOKENS[2], CarrierInfo::ONE_LANE);
    assert_eq!(duo.client.answer(call).unwrap().unwrap().payload, "answer");
    assert_eq!(duo.client.session.statistics().resumptions, 2);
    let events =
        |rig: &Rig, wanted: fn(&Event) -> bool| rig.events.iter().filter(|e| wanted(e)).count();
    assert_eq!(
        events(&duo.client, |e| matches!(e, Event::Suspended { .. })),
        1
    );
    assert_eq!(events(&duo.client, |e| matches!(e, Event::Resumed)), 2);
}

/// Spec: CORE-91
#[test]
fn a_session_that_cannot_be_resumed_ends_with_its_carrier() {
    let without_feature = Rig::client();
    let mut without_token = acceptor_granting(SessionConfig::acceptor(), ResumeToken::NONE);
    without_token.feed(&ack(0, 1)).unwrap();
    let kept = without_token.session.retained_bytes();
    assert_eq!(kept, 0, "nothing is kept for nothing");
    let not_active = Rig::fresh_client(SessionConfig::client().with_resumption(true));
    let mut ending = client_alone();
    let now = ending.at();
    let _open = call(&mut ending, payload(3), Shape::Unary);
    ending
        .session
        .shut_down(now, ErrorCode::OK, "done", "", Duration::from_secs(1));
    for mut rig in [without_feature, without_token, not_active, ending] {
        assert!(!rig.session.is_resumable());
        let now = rig.at();
        assert!(!rig.session.suspend(now, ErrorCode::UNAVAILABLE, "cut"));
        rig.take_events();
        assert_eq!(rig.closed().unwrap().code, ErrorCode::UNAVAILABLE);
    }
    // A carrier that the peer closed, and an end while there is none.
    let mut closed = client_alone();
    closed.session.carrier_lost(ErrorCode::OK, "bye");
    assert_eq!(closed.session.state(), State::Closed);
    let mut alone = client_alone();
    cut(&mut alone);
    let now = alone.at();
    alone
        .session
        .shut_down(now, ErrorCode::OK, "done", "", Duration::from_secs(1));
    assert_eq!(alone.session.state(), State::Closed);
    assert!(!alone.session.is_suspended());
}

/// Spec: CORE-92, CORE-97
#[test]
fn a_client_counts_whole_frames_and_begins_the_epoch_with_the_token() {
    let mut client = client_alone();
    let so_far: usize = [
        handshake(&Handshake::Accept(VersionRecord::new(all_features()))),
        capability(GENEROUS),
        step_5(TOKENS[0]),
        query_answer(1),
        schema_want(),
    ]
    .iter()
    .map(Vec::len)
    .sum();
    let early = whole(1, &response(77, Bytes::from_static(b"nobody waits")));
    client.feed(&early).unwrap();
    let half = whole(1, &response(78, payload(10_000)));
    client.feed(&half[..5_000]).unwrap();
    let before = client.session.statistics().bytes_out;
    let key = call(&mut client, payload(10), Shape::Unary);
    lose(&mut client);
    let asked = asked_by(&mut client, WIDE);
    let counted = u64::try_from(so_far + early.len()).unwrap();
    assert_eq!(asked.token, TOKENS[0]);
    assert_eq!(
        asked.lanes,
        offsets(&[(0, counted)]),
        "a cut frame does not count"
    );
    // Nothing leaves before the answer, nor with half of it.
    let _later = call(&mut client, payload(10), Shape::Unary);
    assert!(client.sent().is_empty());
    client.feed(&resumed(&[])[..9]).unwrap();
    cut(&mut client);
    let again = asked_by(&mut client, CarrierInfo::ONE_LANE);
    assert_eq!(again.lanes, asked.lanes);
    // With step 8 alone the epoch has not begun: the token is still the old one.
    client.feed(&resumed(&[(0, before)])).unwrap();
    assert!(client.session.is_suspended() && client.sent().is_empty());
    cut(&mut client);
    assert_eq!(asked_by(&mut client, WIDE).token, TOKENS[0]);
    let mut answer = resumed(&[(0, before)]);
    answer.extend(step_5(TOKENS[1]));
    answer.extend(whole(
        1,
        &response(1, Bytes::from_static(b"first of the epoch")),
    ));
    client.feed(&answer).unwrap();
    assert!(!client.session.is_suspended());
    assert!(
        client.answer(key).is_some(),
        "what came behind the answer is taken in"
    );
    let sent = client.sent_messages();
    assert_eq!(
        sent[0].1.kind,
        MessageType::REQUEST,
        "what was lost leaves first"
    );
    // The next epoch's offset counts that answer alone.
    let asked = asked_by(&mut client, WIDE);
    let counted = whole(1, &response(1, Bytes::from_static(b"first of the epoch"))).len();
    assert_eq!(
        asked.lanes,
        offsets(&[(0, u64::try_from(counted).unwrap())])
    );
    assert_eq!(asked.token, TOKENS[1]);
}

/// Spec: CORE-97
#[test]
fn a_client_that_is_not_answered_as_it_must_ends_the_session() {
    for wrong in [
        step_5(TOKENS[1]),
        schema_want(),
        credit(1, 1 << 40),
        whole(1, &response(1, payload(10))),
        resumed(&[(0, 1 << 40)]),
        resumed(&[(3, 1)]),
    ] {
        let mut client = client_alone();
        asked_by(&mut client, WIDE);
        assert!(client.feed(&wrong).is_err(), "{wrong:?}");
        assert_eq!(client.session.state(), State::Closed);
    }
    let mut client = client_alone();
    let key = call(&mut client, payload(10), Shape::Unary);
    asked_by(&mut client, WIDE);
    let now = client.at();
    client.feed(&refuse_resume(now, "not here")).unwrap();
    assert_eq!(client.failure(key), Some(ErrorCode::LOSS_OF_SESSION));
    assert_eq!(client.closed().unwrap().code, ErrorCode::LOSS_OF_SESSION);
}

/// Spec: CORE-93, CORE-101
#[test]
fn streams_take_the_lanes_that_the_carrier_has() {
    let mut client = client_alone();
    for _ in 0..3 {
        call(&mut client, Bytes::new(), Shape::TwoWay);
    }
    let lanes = |frames: &[(u16, Frame)]| {
        let own = frames.iter().filter(|(_, frame)| frame.stream.0 >= 3);
        own.map(|(lane, frame)| (frame.stream.0, *lane))
            .collect::<Vec<_>>()
    };
    assert_eq!(lanes(&client.sent()), [(3, 1), (5, 2), (7, 3)]);
    let before = client.session.statistics().bytes_out;
    let on_lane_0 = before - 3 * 43;
    let mut carriers = (1..).map(|n| [n; 32]).map(ResumeToken).skip(1);
    for (info, expected) in [
        (CarrierInfo::ONE_LANE, [(3, 0), (5, 0), (7, 0)]),
        (
            CarrierInfo {
                lanes: 3,
                datagrams: false,
            },
            [(7, 0), (3, 1), (5, 2)],
        ),
        (WIDE, [(3, 1), (5, 2), (7, 3)]),
    ] {
        let claimed = if info == CarrierInfo::ONE_LANE {
            on_lane_0
        } else {
            0
        };
        asked_by(&mut client, info);
        client.feed(&resumed(&[(0, claimed)])).unwrap();
        client.feed(&step_5(carriers.next().unwrap())).unwrap();
        assert_eq!(lanes(&client.sent()), expected, "{info:?}");
    }
    // The peer chooses as well, for each direction and epoch once.
    client
        .feed_on(0, &whole(3, &element(1, payload(10))))
        .unwrap();
    client
        .feed_on(2, &whole(5, &element(2, payload(10))))
        .unwrap();
    client
        .feed_on(2, &whole(5, &element(2, payload(10))))
        .unwrap();
    assert_eq!(
        fault_on(&mut client, 1, &whole(3, &element(1, payload(10)))),
        ErrorCode::STREAM_STATE
    );
}

/// Spec: CORE-98, CORE-99
#[test]
fn an_acceptor_answers_first_and_then_sends_what_was_not_taken_in() {
    let mut acceptor = acceptor_alone(SessionConfig::acceptor());
    let before = acceptor.session.statistics().bytes_out;
    acceptor.feed_on(3, &whole(5, &closed_request(9))).unwrap();
    let incoming = acceptor.incoming();
    let now = acceptor.at();
    acceptor.session.probe(now);
    for n in 0..3 {
        let now = acceptor.at();
        let element = outgoing(payload(30_000 + n));
        acceptor.session.send(now, incoming.call, element).unwrap();
    }
    let sent = acceptor.sent();
    assert!(sent.iter().any(|(lane, _)| *lane == 3));
    acceptor.respond(incoming.call, payload(5));
    let token = TOKENS[1];
    ask(&mut acceptor, TOKENS[0], &[(0, before)], token).unwrap();
    let (lanes, next, again) = answer_to_request(&mut acceptor);
    let bytes = u64::try_from(whole(5, &closed_request(9)).len()).unwrap();
    assert_eq!(
        lanes.iter().find(|lane| lane.lane == 3).unwrap().offset,
        bytes
    );
    assert_eq!(next, token);
    assert!(
        again.iter().all(|(lane, _)| *lane == 0),
        "no other lane is sure to be there"
    );
    let elements = |frames: &[(u16, Frame)]| -> Vec<Frame> {
        let own = frames.iter().filter(|(_, frame)| frame.stream.0 == 5);
        own.map(|(_, frame)| frame.clone()).collect()
    };
    let (first, second) = (elements(&sent), elements(&again));
    assert!(second.starts_with(&first), "the same frames");
    assert_eq!(second.len(), first.len() + 1, "and then what is newer");
    assert_eq!(acks(&again), []);
    let heartbeats = again
        .iter()
        .filter(|(_, frame)| frame.stream.0 == 0)
        .count();
    assert_eq!(heartbeats, 0, "neither acknowledgements nor heartbeats");
    assert!(ask(&mut acceptor, TOKENS[1], &[(0, 1 << 40)], TOKENS[2]).is_err());
    assert!(ask(&mut acceptor, TOKENS[1], &[], ResumeToken::NONE).is_err());
}

/// Spec: CORE-94, CORE-95
#[test]
fn what_was_taken_in_is_acknowledged_by_the_lane() {
    let mut acceptor = acceptor_alone(wide_windows());
    let so_far = acceptor.session.statistics().bytes_in;
    let element = whole(3, &element(9, payload(30_000)));
    acceptor.feed_on(1, &whole(3, &open_request(9))).unwrap();
    acceptor.feed_on(1, &element).unwrap();
    acceptor.feed_on(1, &element).unwrap();
    assert_eq!(acks(&acceptor.sent()), [], "less than 64 KiB");
    let bytes = 43 + 3 * u64::try_from(element.len()).unwrap();
    acceptor.feed_on(1, &element).unwrap();
    assert_eq!(acks(&acceptor.sent()), [(1, bytes)]);
    let now = acceptor.at();
    acceptor.session.probe(now);
    assert_eq!(
        acks(&acceptor.sent()),
        [(0, so_far)],
        "with a heartbeat, what is left"
    );
    acceptor.now += SECOND;
    let now = acceptor.at();
    acceptor.session.probe(now);
    assert_eq!(acks(&acceptor.sent()), [], "nothing new");
    acceptor.feed(&ack(0, 1)).unwrap();
    acceptor.now += SECOND;
    let now = acceptor.at();
    acceptor.session.probe(now);
    assert_eq!(acks(&acceptor.sent()), [], "nothing but an acknowledgement");
}

/// Spec: CORE-94
#[test]
fn an_acknowledgement_that_cannot_be_ends_the_session() {
    let fresh = || acceptor_alone(SessionConfig::acceptor());
    let sent = fresh().session.statistics().bytes_out;
    let mut acceptor = fresh();
    acceptor.feed(&ack(0, sent)).unwrap();
    assert_eq!(acceptor.session.retained_bytes(), 0);
    assert_eq!(
        fault(&mut fresh(), &ack(0, sent + 1)),
        ErrorCode::FLOW_CONTROL
    );
    assert_eq!(fault(&mut fresh(), &ack(7, 1)), ErrorCode::FLOW_CONTROL);
    assert_eq!(fault(&mut fresh(), &ack(77, 1)), ErrorCode::FLOW_CONTROL);
    let stray = frame(3, FrameBody::Ack { lane: 0, offset: 1 });
    assert_eq!(fault(&mut fresh(), &stray), ErrorCode::UNEXPECTED_MESSAGE);
    assert_eq!(
        fault_on(&mut fresh(), 1, &ack(0, 1)),
        ErrorCode::UNEXPECTED_MESSAGE
    );
    assert_eq!(
        fault(&mut Rig::acceptor(), &ack(0, 1)),
        ErrorCode::UNIMPLEMENTED
    );
    let early = SessionConfig::acceptor().with_resumption(true);
    assert_eq!(
        fault(&mut Rig::fresh_acceptor(early), &ack(0, 0)),
        ErrorCode::UNEXPECTED_MESSAGE
    );
    let again = ack(0, sent).repeat(2_000);
    assert_eq!(fault(&mut acceptor, &again), ErrorCode::CONTROL_FLOOD);
}

/// Spec: CORE-96
#[test]
fn a_sender_that_keeps_as_much_as_it_may_sends_nothing_new() {
    let mut config = SessionConfig::acceptor();
    config.max_retained_bytes = 256 * 1024;
    config.max_stream_queued_bytes = 4 << 20;
    let limit = config.max_retained_bytes;
    let mut acceptor = acceptor_alone(config);
    acceptor.feed(&whole(3, &closed_request(9))).unwrap();
    let incoming = acceptor.incoming();
    let now = acceptor.at();
    for _ in 0..20 {
        let element = outgoing(payload(60_000));
        acceptor.session.send(now, incoming.call, element).unwrap();
    }
    acceptor.sent();
    let kept = acceptor.session.retained_bytes();
    assert!((limit..limit + 128 * 1024).contains(&kept), "{kept}");
    assert!(acceptor.session.queued_bytes() > 800_000, "the rest waits");
    // It asks how far the client came, and acknowledges what comes.
    acceptor.wait(10_000);
    let probes = acceptor.sent();
    assert_eq!(count(&probes, 0, FrameType::MESSAGE), 1);
    let two_way = |n: u16| {
        let mut frames = whole(n, &open_request(n.into()));
        frames.extend(whole(n, &element(n.into(), payload(60_000))));
        frames
    };
    acceptor.feed(&two_way(5)).unwrap();
    acceptor.feed(&two_way(7)).unwrap();
    assert_eq!(acks(&acceptor.sent()).len(), 1);
    let sent = acceptor.session.statistics().bytes_out;
    acceptor.feed(&ack(0, sent)).unwrap();
    acceptor.sent();
    let mut waiting = acceptor.session.queued_bytes();
    while waiting > 0 {
        let sent = acceptor.session.statistics().bytes_out;
        acceptor.feed(&ack(0, sent)).unwrap();
        acceptor.sent();
        let left = acceptor.session.queued_bytes();
        assert!(left < waiting, "an acknowledgement lets it go on");
        waiting = left;
    }
}

/// Spec: CORE-100
#[test]
fn a_frame_that_was_cut_is_handed_on_once() {
    let begin = |acceptor: &mut Rig, taken: usize| {
        acceptor.feed_on(2, &whole(3, &open_request(9))).unwrap();
        let frame = whole(3, &element(9, payload(40_000)));
        acceptor.feed_on(2, &frame[..taken]).unwrap();
        frame
    };
    for taken in [3, 8, 9, 5_000, 39_000] {
        let mut acceptor = acceptor_alone(SessionConfig::acceptor());
        let frame = begin(&mut acceptor, taken);
        let before = acceptor.session.statistics().bytes_out;
        ask(&mut acceptor, TOKENS[0], &[(0, before)], TOKENS[1]).unwrap();
        let (lanes, ..) = answer_to_request(&mut acceptor);
        assert!(lanes.contains(&LaneOffset {
            lane: 2,
            offset: 43
        }));
        // It comes again, on another lane, and is cut once more, before and behind where it was cut.
        let again = if taken > 20_000 { 20_000 } else { 30_000 };
        acceptor.feed_on(1, &frame[..again]).unwrap();
        ask(&mut acceptor, TOKENS[1], &[], TOKENS[2]).unwrap();
        acceptor.sent();
        for piece in frame.chunks(7_777) {
            acceptor.feed(piece).unwrap();
        }
        acceptor.feed(&whole(3, &stream_end(9))).unwrap();
        let incoming = acceptor.incoming();
        let Some(Received::Element(message)) = acceptor.session.recv(incoming.call) else {
            panic!("the element has come")
        };
        assert!(message.payload == payload(40_000), "cut at {taken}");
        assert!(matches!(
            acceptor.session.recv(incoming.call),
            Some(Received::End(None))
        ));
    }
    for wrong in [
        whole(3, &stream_end(9)),
        parts(3, &element(9, payload(40_000)), 20_000).remove(0),
    ] {
        let mut acceptor = acceptor_alone(SessionConfig::acceptor());
        begin(&mut acceptor, 30_000);
        ask(&mut acceptor, TOKENS[0], &[], TOKENS[1]).unwrap();
        acceptor.sent();
        assert_eq!(fault(&mut acceptor, &wrong), ErrorCode::MALFORMED);
    }
}

/// A peer that drops a carrier ends its lanes, whatever is under way on them.
///
/// Spec: TRANS-37, TRANS-38
#[test]
fn the_end_of_a_lane_takes_nothing_from_a_session_that_can_be_resumed() {
    let element = whole(3, &element(9, payload(40_000)));
    for lane in [0, 2] {
        for taken in [0, 3, 20_000] {
            let mut acceptor = acceptor_alone(SessionConfig::acceptor());
            acceptor.feed_on(lane, &whole(3, &open_request(9))).unwrap();
            acceptor.feed_on(lane, &element[..taken]).unwrap();
            for ended in [lane, LaneId::ZERO.0] {
                acceptor.session.handle_lane_end(LaneId(ended)).unwrap();
            }
            let incoming = acceptor.incoming();
            cut(&mut acceptor);
            let before = acceptor.session.statistics().bytes_out;
            ask(&mut acceptor, TOKENS[0], &[(0, before)], TOKENS[1]).unwrap();
            acceptor.sent();
            acceptor.feed(&element).unwrap();
            acceptor.feed(&whole(3, &stream_end(9))).unwrap();
            let Some(Received::Element(message)) = acceptor.session.recv(incoming.call) else {
                panic!("lane {lane} ended behind {taken} bytes, and the call with it")
            };
            assert!(message.payload == payload(40_000));
            assert!(matches!(
                acceptor.session.recv(incoming.call),
                Some(Received::End(None))
            ));
        }
    }
}

/// Spec: CORE-102
#[test]
fn a_request_whose_answer_was_lost_is_answered_again() {
    let mut duo = resumable();
    let key = call(&mut duo.client, payload(10), Shape::Unary);
    lose(&mut duo.client);
    let asked = asked_by(&mut duo.client, WIDE);
    let now = duo.acceptor.at();
    let resume = |acceptor: &mut Rig, asked: &ResumeRequest, next| {
        acceptor.session.resume(now, asked, next, WIDE)
    };
    let first = resume(&mut duo.acceptor, &asked, TOKENS[1]).unwrap();
    let told = answer_to_request(&mut duo.acceptor);
    assert_eq!(duo.acceptor.session.unconfirmed_token(), Some(TOKENS[0]));
    // The answer is lost, and so is the next; meanwhile the acceptor calls.
    let back = call(&mut duo.acceptor, payload(20_000), Shape::Unary);
    duo.acceptor.sent();
    cut(&mut duo.client);
    assert_eq!(
        asked_by(&mut duo.client, CarrierInfo::ONE_LANE).lanes,
        asked.lanes
    );
    let second = resume(&mut duo.acceptor, &asked, TOKENS[2]).unwrap();
    assert_ne!(first, second, "the carrier before is of no use any more");
    let again = answer_to_request(&mut duo.acceptor);
    assert_eq!(
        (again.0, again.1),
        (told.0, told.1),
        "the same offsets, the same token"
    );
    assert!(again.2.len() > told.2.len(), "and all of the epoch");
    let other = ResumeRequest {
        lanes: offsets(&[(0, 1)]),
        ..asked.clone()
    };
    assert_eq!(
        resume(&mut duo.acceptor, &other, TOKENS[2]),
        Err(ResumeError::Differs)
    );
    cut(&mut duo.client);
    asked_by(&mut duo.client, CarrierInfo::ONE_LANE);
    resume(&mut duo.acceptor, &asked, TOKENS[2]).unwrap();
    duo.exchange();
    // With the first byte of the client the old token is spent.
    assert_eq!(duo.client.session.resume_token(), TOKENS[1]);
    assert_eq!(
        resume(&mut duo.acceptor, &asked, TOKENS[2]),
        Err(ResumeError::WrongToken)
    );
    let incoming = duo.acceptor.incoming();
    duo.acceptor.respond(incoming.call, payload(1));
    let incoming = duo.client.incoming();
    duo.client.respond(incoming.call, payload(2));
    duo.exchange();
    assert!(duo.client.answer(key).unwrap().is_ok());
    assert!(duo.acceptor.answer(back).unwrap().is_ok());
}

/// Spec: CORE-103
#[test]
fn a_token_that_is_not_the_session_s_leaves_it_as_it_was() {
    let mut acceptor = acceptor_alone(SessionConfig::acceptor());
    let before = acceptor.session.attachment();
    for wrong in [ResumeToken([7; 32]), ResumeToken::NONE] {
        let asked = ask(&mut acceptor, wrong, &[], TOKENS[1]);
        assert_eq!(asked, Err(ResumeError::WrongToken));
    }
    let far = ask(&mut acceptor, TOKENS[0], &[(0, 1 << 40)], TOKENS[1]);
    assert!(matches!(far, Err(ResumeError::WrongOffset { lane: 0, .. })));
    let acknowledged = acceptor.session.statistics().bytes_out;
    acceptor.feed(&ack(0, acknowledged)).unwrap();
    let back = ask(
        &mut acceptor,
        TOKENS[0],
        &[(0, acknowledged - 1)],
        TOKENS[1],
    );
    assert!(matches!(
        back,
        Err(ResumeError::WrongOffset { lane: 0, .. })
    ));
    assert_eq!(acceptor.session.attachment(), before);
    acceptor.feed(&whole(1, &request(5))).unwrap();
    acceptor.incoming();
    let refusal = refuse_resume(acceptor.at(), &"x".repeat(5_000));
    let mut bytes = bytes::BytesMut::from(&refusal[..]);
    let frame = Frame::decode(&mut bytes, u32::MAX).unwrap().unwrap();
    let FrameBody::Message(message) = frame.body else {
        panic!("{frame:?}")
    };
    let step = Handshake::decode(Message::decode(message, &ANY).unwrap().payload).unwrap();
    let Handshake::Refused(record) = step else {
        panic!("{step:?}")
    };
    assert_eq!(record.code, ErrorCode::LOSS_OF_SESSION);
    // A client may not ask within a session.
    let stray = handshake(&Handshake::Resume(remus_wire::Resume {
        token: TOKENS[0],
        lanes: Vec::new(),
    }));
    assert_eq!(fault(&mut acceptor, &stray), ErrorCode::UNEXPECTED_MESSAGE);
    let closed = ask(&mut acceptor, TOKENS[0], &[], TOKENS[1]);
    assert_eq!(closed, Err(ResumeError::NotResumable));
    for other in [offer(), credit(1, 5), whole(1, &request(5))] {
        assert_eq!(peek_resume(&other), Peeked::NotResume);
    }
}

/// Spec: CORE-107
#[test]
fn a_client_says_who_it_is_when_it_comes_back() {
    let bearer = |token: &'static str| AuthenticationRecord {
        method: AuthMethod::BEARER_JWT,
        token: Bytes::from_static(token.as_bytes()),
        claims: Text::from(r#"{"scope":"read"}"#),
    };
    let mut nobody = resumable();
    let asked = asked_by(&mut nobody.client, WIDE);
    assert_eq!(asked.authentication, AuthenticationRecord::default());
    let mut config = SessionConfig::client().with_resumption(true);
    config.authentication = bearer("first");
    let acceptor = SessionConfig::acceptor().with_resumption(true);
    let mut duo = resumable_with(config, acceptor);
    let asked = asked_by(&mut duo.client, CarrierInfo::ONE_LANE);
    assert_eq!(asked.authentication, bearer("first"));
    // The newest counts, also where its renewal could not leave any more.
    let now = duo.client.at();
    duo.client.session.authenticate(now, bearer("second"));
    resume(&mut duo, TOKENS[1], WIDE);
    let asked = asked_by(&mut duo.client, WIDE);
    assert_eq!(asked.authentication, bearer("second"));
    // One that no request has room for: the session ends with its carrier rather than wait in vain.
    resume(&mut duo, TOKENS[2], WIDE);
    let large = AuthenticationRecord {
        token: payload(16 * 1024),
        ..bearer("")
    };
    let now = duo.client.at();
    duo.client.session.authenticate(now, large);
    assert!(!duo.client.session.is_resumable());
    // The largest that there is room for.
    let mut config = SessionConfig::client().with_resumption(true);
    config.authentication = AuthenticationRecord {
        token: payload(16 * 1024 - 12),
        method: AuthMethod::BEARER_JWT,
        claims: Text::new(),
    };
    let acceptor = SessionConfig::acceptor().with_resumption(true);
    let mut duo = resumable_with(config.clone(), acceptor);
    let now = duo.client.at();
    duo.client.session.attach(now, WIDE).unwrap();
    let mut out = VecDeque::new();
    duo.client.session.poll_transmit(LaneId::ZERO, &mut out);
    let bytes: Vec<u8> = out.into_iter().flatten().collect();
    let Peeked::Resume(asked) = peek_resume(&bytes) else {
        panic!("{} bytes", bytes.len())
    };
    assert_eq!(asked.authentication, config.authentication);
    assert!(bytes.len() <= RESUME_REQUEST_MAX);
    assert_eq!(peek_resume(&bytes[..bytes.len() - 1]), Peeked::NeedMore);
}

/// Spec: CORE-104
#[test]
fn the_token_of_a_renewal_says_nothing() {
    let mut client = client_alone();
    let now = client.at();
    client
        .session
        .authenticate(now, AuthenticationRecord::default());
    client.feed(&step_5(TOKENS[2])).unwrap();
    assert_eq!(client.session.resume_token(), TOKENS[0]);
    let mut duo = resumable();
    resume(&mut duo, TOKENS[1], WIDE);
    let now = duo.client.at();
    duo.client
        .session
        .authenticate(now, AuthenticationRecord::default());
    let grant = Grant {
        token: TOKENS[2],
        ..duo.acceptor.grant.clone().unwrap()
    };
    duo.acceptor.grant = Some(grant);
    duo.exchange();
    assert_eq!(duo.acceptor.session.resume_token(), TOKENS[1]);
    resume(&mut duo, TOKENS[2], WIDE);
}

/// Spec: CORE-105
#[test]
fn a_session_without_a_carrier_waits_as_long_as_both_sides_do() {
    let mut config = SessionConfig::acceptor().with_resumption(true);
    config.resume_window = Duration::from_secs(5);
    let mut duo = resumable_with(SessionConfig::client().with_resumption(true), config);
    let key = call(&mut duo.client, payload(5), Shape::Unary);
    let now = duo.client.at();
    let short = duo
        .client
        .session
        .call(now, within(1_000), Shape::Unary)
        .unwrap();
    cut(&mut duo.client);
    cut(&mut duo.acceptor);
    let deadline = duo.client.session.resume_deadline().unwrap();
    assert_eq!(deadline.0, duo.client.now + 5 * SECOND);
    duo.wait(SECOND);
    assert_eq!(
        duo.client.failure(short),
        Some(ErrorCode::DEADLINE_EXCEEDED)
    );
    assert_eq!(duo.client.failure(key), None);
    let new = call(&mut duo.client, payload(5), Shape::Unary);
    // Attempts do not prolong it.
    asked_by(&mut duo.client, WIDE);
    cut(&mut duo.client);
    assert_eq!(duo.client.session.resume_deadline(), Some(deadline));
    duo.wait(4 * SECOND);
    for key in [key, new] {
        assert_eq!(duo.client.failure(key), Some(ErrorCode::LOSS_OF_SESSION));
    }
    for rig in [&duo.client, &duo.acceptor] {
        assert_eq!(rig.closed().unwrap().code, ErrorCode::LOSS_OF_SESSION);
        assert_eq!(rig.session.retained_bytes(), 0);
    }
    let now = duo.client.at();
    let after = duo
        .client
        .session
        .call(now, outgoing(payload(5)), Shape::Unary);
    assert_eq!(after, Err(CallError::Closed));
}

/// What waits while there is no carrier waits within the usual limits.
///
/// Spec: CORE-105
#[test]
fn a_session_without_a_carrier_does_not_hold_more_than_one_with_it() {
    let mut client = client_alone();
    cut(&mut client);
    let now = client.at();
    let refused = (0..2_000).find_map(|_| {
        client
            .session
            .call(now, outgoing(payload(16_000)), Shape::Unary)
            .err()
    });
    assert!(matches!(
        refused,
        Some(CallError::QueueFull { .. } | CallError::TooManyCalls { .. })
    ));
    assert!(client.session.queued_bytes() <= 5 << 20);
    client.session.check().unwrap();
}

/// Spec: CORE-106
#[test]
fn silence_suspends_and_does_not_end() {
    let mut client = client_alone();
    client.wait(10 * SECOND);
    assert!(client.session.is_suspended());
    let told = client.events.iter().any(
        |event| matches!(event, Event::Suspended { code, .. } if *code == ErrorCode::IDLE_TIMEOUT),
    );
    assert!(told && client.closed().is_none());
    // Without an answer the client gives the next carrier up as well.
    asked_by(&mut client, WIDE);
    client.events.clear();
    client.wait(10 * SECOND);
    assert!(matches!(
        client.events.front(),
        Some(Event::Suspended { .. })
    ));
    assert!(client.session.is_suspended() && client.closed().is_none());
}
