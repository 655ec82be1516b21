//! Rules of calls, heartbeats and the end of a session, one by one, against hand-written peers. Spec: core §4, §8, §9, §10.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a test says by a panic that it failed, and the helpers are shared with tests that use others of them"
)]

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use remus_session::{
    Answer, CallError, Event, LaneId, Outgoing, SessionConfig, SessionError, Shape,
};
use remus_wire::{
    Batch, Context, ErrorCode, ErrorRecord, Flags, FrameType, Handshake, Heartbeat, Limits, Load,
    Message, MessageType, RequestId, Shutdown, Timestamp,
};

#[path = "directed/support.rs"]
mod support;

use support::*;

/// A third of the idle timeout that these sessions agree on, 10 s, in µs and rounded down.
const THIRD: u64 = 10 * SECOND / 3;

/// A heartbeat that the peer sends at `sent` by its own clock.
fn beat(id: u32, sent: u64, origin: u64, received: u64) -> Vec<u8> {
    let record = Heartbeat {
        origin: Timestamp(origin),
        received: Timestamp(received),
        load: Load::default(),
    };
    let mut payload = BytesMut::new();
    record.encode(&mut payload);
    let mut beat = message(MessageType::HEARTBEAT, id, payload.freeze());
    beat.timestamp = Timestamp(sent);
    whole(0, &beat)
}

/// A probe that measures nothing.
fn probe(id: u32) -> Vec<u8> {
    beat(id, START, 0, 0)
}

/// The heartbeats that leave now on lanes.
fn beats(rig: &mut Rig) -> Vec<(Message, Heartbeat)> {
    rig.sent_messages()
        .into_iter()
        .filter(|(_, message)| message.kind == MessageType::HEARTBEAT)
        .map(|(stream, message)| {
            assert_eq!(stream, 0);
            let record = Heartbeat::decode(message.payload.clone()).unwrap();
            (message, record)
        })
        .collect()
}

fn shutdown(last: u32) -> Vec<u8> {
    let record = Shutdown {
        code: ErrorCode::OK,
        grace: Duration::from_secs(5),
        last_request: RequestId(last),
        ..Shutdown::default()
    };
    control(MessageType::SHUTDOWN, 0, |out| record.encode(out))
}

/// Announces the end, and tells what the peer is told.
fn go(rig: &mut Rig) -> Shutdown {
    let now = rig.at();
    rig.session
        .shut_down(now, ErrorCode::OK, "going", "", Duration::from_secs(5));
    let sent = rig.sent_messages();
    let (_, told) = sent
        .iter()
        .find(|(_, message)| message.kind == MessageType::SHUTDOWN)
        .expect("the peer is told");
    Shutdown::decode(told.payload.clone()).unwrap()
}

/// A client's call, with its request ID and stream.
fn call(rig: &mut Rig, request: Outgoing, shape: Shape) -> (remus_session::CallKey, u32, u16) {
    let now = rig.at();
    let key = rig.session.call(now, request, shape).unwrap();
    let sent = rig.sent_messages();
    assert_eq!(sent.len(), 1, "one request and nothing else");
    let (stream, message) = &sent[0];
    assert_eq!(message.kind, MessageType::REQUEST);
    (key, message.request_id.0, *stream)
}

fn no_answer(rig: &Rig) -> bool {
    !rig.events
        .iter()
        .any(|event| matches!(event, Event::Answer(..) | Event::Readable(_)))
}

/// Heartbeats bear the sender's own clock, though its other messages follow a peer that is ahead, and give back the peer's times.
///
/// Spec: CORE-72
#[test]
fn heartbeats_bear_the_own_clock_and_the_peers_last_times() {
    let ahead = START + 20 * SECOND;
    let mut rig = Rig::acceptor();
    let mut first = request(1);
    first.timestamp = Timestamp(ahead);
    rig.feed(&whole(1, &first)).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "done");
    assert!(rig.sent_messages()[0].1.timestamp.0 > ahead, "hybrid");

    rig.wait(SECOND);
    let at = rig.at();
    rig.session.probe(at);
    let sent = beats(&mut rig);
    assert_eq!(sent[0].0.timestamp, at);
    assert_eq!((sent[0].1.origin.0, sent[0].1.received.0), (0, 0));

    rig.now += 5_000;
    let arrived = rig.at();
    rig.feed(&beat(1, ahead, 0, 0)).unwrap();
    rig.now += 5_000;
    let later = rig.at();
    rig.session.probe(later);
    let sent = beats(&mut rig);
    assert_eq!(sent.len(), 2, "the answer and a probe of our own");
    let times: Vec<_> = sent.iter().map(|(m, _)| m.timestamp).collect();
    assert_eq!(times, [arrived, later]);
    for (_, record) in sent {
        assert_eq!((record.origin.0, record.received), (ahead, arrived));
    }
}

/// Round trip and offset come of the four times; an origin that is 0, ahead, or not later than one before measures nothing.
///
/// Spec: CORE-72
#[test]
fn heartbeats_measure_as_the_formulas_say() {
    let mut rig = Rig::client();
    let sent = rig.now;
    rig.session.probe(Timestamp(sent));
    rig.now += 1_000;
    let ahead = 7 * SECOND;
    // 400 µs there, 100 µs of work, 500 µs back, and a clock that is 7 s ahead.
    rig.feed(&beat(0, sent + ahead + 500, 0, 0)).unwrap();
    rig.feed(&beat(0, sent + ahead + 500, rig.now + 1, sent + ahead))
        .unwrap();
    assert_eq!(rig.session.path(), None);
    rig.feed(&beat(0, sent + ahead + 500, sent, sent + ahead + 400))
        .unwrap();
    let path = rig.session.path().unwrap();
    assert_eq!(path.latest_rtt, Duration::from_micros(900));
    assert_eq!(path.clock_offset_us, 7_000_000 - 50);
    rig.feed(&beat(0, sent + ahead + 600, sent, sent + ahead + 600))
        .unwrap();
    assert_eq!(rig.session.path(), Some(path), "a repeat");
}

/// Probes leave at least every third of the idle timeout, also while the peer is talking.
///
/// Spec: CORE-74
#[test]
fn probes_leave_every_third_of_the_idle_timeout() {
    let mut rig = Rig::acceptor();
    let (mut last, mut probes) = (rig.now, 0);
    while rig.now < START + 60 * SECOND {
        let due = rig.session.poll_timeout().unwrap().0.min(rig.now + SECOND);
        rig.wait(due - rig.now);
        rig.feed(&beat(0, START, 0, 0)).unwrap();
        for (message, _) in beats(&mut rig) {
            assert_ne!(message.request_id.0, 0, "it asks for an answer");
            (last, probes) = (rig.now, probes + 1);
        }
        assert!(rig.now - last <= THIRD, "{} µs without one", rig.now - last);
    }
    assert!(probes >= 18);
}

/// Where datagrams may carry probes, one that follows a third of silence is on lane 0 all the same.
///
/// Spec: CORE-74
#[test]
fn probes_after_silence_are_on_lane_0() {
    let mut rig = Rig::acceptor();
    rig.session.set_datagrams(true);
    rig.wait(SECOND);
    rig.feed(&beat(0, START, 0, 0)).unwrap();
    rig.wait(THIRD - SECOND);
    assert!(rig.session.poll_datagram().is_some(), "it was heard lately");
    assert!(beats(&mut rig).is_empty());
    rig.wait(THIRD);
    assert!(rig.session.poll_datagram().is_none());
    let sent = rig.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].0, sent[0].1.stream.0), (0, 0));
}

/// Lane 0, any other and a datagram are signs of life; their lack ends the session to the microsecond.
///
/// Spec: CORE-75
#[test]
fn silence_ends_the_session() {
    let mut rig = Rig::acceptor();
    rig.wait(9 * SECOND);
    rig.feed(&beat(0, START, 0, 0)).unwrap();
    rig.wait(9 * SECOND);
    rig.feed_on(1, &whole(3, &closed_request(1))).unwrap();
    rig.wait(9 * SECOND);
    let at = rig.at();
    rig.session
        .handle_datagram(at, Bytes::from(beat(0, START, 0, 0)));
    rig.wait(10 * SECOND - 1);
    assert!(rig.session.state().is_open());
    rig.wait(1);
    assert_eq!(rig.closed().unwrap().code, ErrorCode::IDLE_TIMEOUT);
    assert!(!rig.closed().unwrap().by_peer);
}

/// The bucket lets 1,024 through at once and 256 for each second, for each kind of what fills it, and not one more.
///
/// Spec: CORE-76
#[test]
fn control_traffic_is_bounded() {
    let drops = [
        ("heartbeats", beat(0, START, 0, 0)),
        ("frames to ignore", raw_frame(0, 0x8001, b"x")),
        ("credit that raises nothing", credit(0, 1)),
        ("credit of a stream that raises nothing", credit(1, 1)),
    ];
    for (name, one) in drops {
        let mut rig = Rig::acceptor();
        rig.now += 10 * SECOND; // what the first flight took is filled up again, and not more
        for n in 0..1_024 {
            assert_eq!(rig.feed(&one), Ok(()), "{name}: {n}");
        }
        rig.now += SECOND;
        for n in 0..256 {
            assert_eq!(rig.feed(&one), Ok(()), "{name}: {n} after a second");
        }
        assert_eq!(fault(&mut rig, &one), ErrorCode::CONTROL_FLOOD, "{name}");
    }
}

/// In a datagram, a probe beyond the bucket is dropped, and the session lives.
///
/// Spec: CORE-76
#[test]
fn a_flood_of_datagrams_is_dropped() {
    let mut rig = Rig::acceptor();
    rig.session.set_datagrams(true);
    rig.now += 10 * SECOND;
    let at = rig.at();
    for _ in 0..1_024 {
        rig.session.handle_datagram(at, Bytes::from(probe(1)));
        assert!(rig.session.poll_datagram().is_some());
    }
    rig.session.handle_datagram(at, Bytes::from(probe(1)));
    assert!(rig.session.poll_datagram().is_none());
    rig.take_events();
    assert!(rig.session.state().is_open());
}

/// A peer that has 1 MiB of answers wait, within the rate that is allowed, loses the session; one that reads does not.
///
/// Spec: CORE-77
#[test]
fn answers_that_nobody_reads_end_the_session() {
    let size = {
        let mut rig = Rig::acceptor();
        rig.feed(&probe(1)).unwrap();
        let mut out = VecDeque::new();
        while rig.session.poll_transmit(LaneId::ZERO, &mut out) {}
        out.iter().map(Bytes::len).sum::<usize>()
    };
    let most = 1024 * 1024 / size;
    let run = |reads: bool| {
        let mut rig = Rig::acceptor();
        for n in 0..most + 2 {
            if n % 200 == 0 {
                rig.now += SECOND;
            }
            if let Err(error) = rig.feed(&probe(1)) {
                return Some((n, error));
            }
            if reads {
                rig.sent();
            }
        }
        None
    };
    assert_eq!(run(true), None);
    let (n, error) = run(false).expect("the bound is reached");
    assert!(matches!(error, SessionError::NotReading(_)), "{error:?}");
    assert_eq!(error.code(), ErrorCode::CONTROL_FLOOD);
    assert!(n + 2 >= most, "{n} of {most} answers waited");
}

/// A Shutdown names the latest request that was begun, however late one that waits is.
///
/// Spec: CORE-79
#[test]
fn a_shutdown_names_the_last_request_begun() {
    assert_eq!(go(&mut Rig::acceptor()).last_request.0, 0);

    let mut rig = Rig::acceptor();
    for id in [5, 9, 7] {
        rig.feed(&whole(1, &request(id))).unwrap();
        rig.incoming();
    }
    let mut waiting = Bytes::from(whole(1, &request(10)));
    let now = rig.at();
    rig.session
        .handle_input(now, LaneId::ZERO, &mut waiting)
        .unwrap();
    rig.session
        .shut_down(now, ErrorCode::OK, "", "", Duration::from_secs(5));
    rig.take_events();
    let sent = rig.sent_messages();
    let told = sent
        .iter()
        .find(|(_, message)| message.kind == MessageType::SHUTDOWN);
    let record = Shutdown::decode(told.unwrap().1.payload.clone()).unwrap();
    assert_eq!(record.last_request.0, 9);
    let refused = sent
        .iter()
        .find(|(_, message)| message.kind == MessageType::ERROR)
        .map(|(_, message)| message.request_id.0);
    assert_eq!(refused, Some(10));
    assert!(rig.events.is_empty(), "it never began");
}

/// Who receives a Shutdown fails the calls after the one named, and those alone.
///
/// Spec: CORE-79
#[test]
fn calls_after_the_last_request_fail() {
    let mut rig = Rig::client();
    let (first, _, _) = call(&mut rig, outgoing("1"), Shape::Unary);
    let (second, id, _) = call(&mut rig, outgoing("2"), Shape::Unary);
    let (third, _, _) = call(&mut rig, outgoing("3"), Shape::Unary);
    rig.feed(&shutdown(id)).unwrap();
    assert_eq!(rig.failure(third), Some(ErrorCode::SHUTTING_DOWN));
    assert!(rig.answer(first).is_none());
    rig.feed(&whole(1, &response(id, "late"))).unwrap();
    assert_eq!(rig.answer(second).unwrap().unwrap().payload, "late");
}

/// The announcer refuses what comes then, also under an ID below the one it named; what it asked itself is taken on.
///
/// Spec: CORE-80
#[test]
fn requests_after_the_announcement_are_refused() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(1, &request(9))).unwrap();
    let open = rig.incoming();
    assert_eq!(go(&mut rig).last_request.0, 9);
    rig.feed(&whole(1, &request(4))).unwrap();
    rig.feed(&whole(3, &closed_request(10))).unwrap();
    assert!(rig.events.is_empty());
    let mut errors = rig.sent_errors();
    errors.sort_by_key(|(stream, ..)| *stream);
    let refused = ErrorCode::SHUTTING_DOWN;
    assert_eq!(errors, [(1, 4, refused), (3, 10, refused)]);
    rig.respond(open.call, "still");
    let sent = rig.sent_messages();
    assert_eq!(sent[0].1.kind, MessageType::RESPONSE);

    let mut peer = Rig::acceptor();
    peer.feed(&shutdown(0)).unwrap();
    peer.feed(&whole(1, &request(3))).unwrap();
    let incoming = peer.incoming();
    peer.respond(incoming.call, "taken on");
    assert_eq!(peer.sent_messages()[0].1.kind, MessageType::RESPONSE);
}

/// Before it is active, an acceptor refuses the session instead, a client just goes, and neither sends a Shutdown.
///
/// Spec: CORE-82
#[test]
fn there_is_no_shutdown_before_a_session_is_active() {
    let codes = [
        (ErrorCode::OK, ErrorCode::SHUTTING_DOWN),
        (ErrorCode::INTERNAL, ErrorCode::INTERNAL),
    ];
    for steps in 0..5 {
        for (given, told) in codes {
            let mut rig = Rig::fresh_acceptor(SessionConfig::acceptor());
            for record in first_flight(GENEROUS).iter().take(steps) {
                rig.feed(record).unwrap();
            }
            rig.sent();
            let now = rig.at();
            rig.session
                .shut_down(now, given, "going", "", Duration::from_secs(5));
            let sent = rig.sent_messages();
            assert_eq!(sent.len(), 1, "after {steps} records");
            assert_eq!(sent[0].1.kind, MessageType::HANDSHAKE);
            match Handshake::decode(sent[0].1.payload.clone()).unwrap() {
                Handshake::Refused(error) => assert_eq!(error.code, told),
                step => panic!("after {steps} records: {step:?}"),
            }
            assert!(rig.session.state().is_closed());
        }
    }
    let mut rig = Rig::fresh_client(SessionConfig::client());
    rig.sent();
    let now = rig.at();
    rig.session
        .shut_down(now, ErrorCode::OK, "", "", Duration::from_secs(5));
    assert!(rig.sent().is_empty());
    assert!(rig.closed().is_some());
}

/// A Shutdown that comes before the session is active ends it.
///
/// Spec: CORE-82
#[test]
fn an_early_shutdown_is_out_of_turn() {
    let mut rig = Rig::fresh_acceptor(SessionConfig::acceptor());
    rig.feed(&offer()).unwrap();
    let code = fault(&mut rig, &shutdown(0));
    assert_eq!(code, ErrorCode::UNEXPECTED_MESSAGE);
}

/// An answer goes out up to the caller's largest message; one byte more, or too much context, becomes the limit's error.
///
/// Spec: CORE-85
#[test]
fn answers_above_the_callers_limits_become_errors() {
    let max = 64 * 1024;
    let limits = Limits {
        max_message: max,
        ..GENEROUS
    };
    let mut rig = Rig::acceptor_with(SessionConfig::acceptor(), limits);
    let room = max as usize - Message::HEADER_LEN;
    for (id, len) in [(1, room), (2, room + 1)] {
        rig.feed(&whole(1, &request(id))).unwrap();
        let incoming = rig.incoming();
        rig.respond(incoming.call, vec![7; len]);
    }
    let sent = rig.sent_messages();
    assert_eq!(sent.len(), 2);
    for (_, message) in sent {
        if message.request_id.0 == 1 {
            assert_eq!(message.kind, MessageType::RESPONSE);
            assert_eq!(message.payload.len(), room);
        } else {
            let record = ErrorRecord::decode(message.payload).unwrap();
            assert_eq!(record.code, ErrorCode::MESSAGE_TOO_LARGE);
        }
    }
}

/// The same for an answer's context, whose limit is fixed.
///
/// Spec: CORE-85
#[test]
fn answers_with_too_much_context_become_errors() {
    let mut rig = Rig::acceptor();
    let mut context = Context::new();
    for n in 0..200_u32 {
        context.add_custom(&format!("k{n}"), &[0; 1_000]).unwrap();
    }
    rig.feed(&whole(1, &request(1))).unwrap();
    let incoming = rig.incoming();
    let reply = Answer::Reply {
        payload: Bytes::new(),
        context,
        flags: Flags::NONE,
    };
    let now = rig.at();
    rig.session.respond(now, incoming.call, reply);
    assert_eq!(rig.sent_errors(), [(1, 1, ErrorCode::CONTEXT_TOO_LARGE)]);
}

/// A request that elements follow has no payload, at either side; one that nothing follows says so on its own stream.
///
/// Spec: CORE-25, CORE-29, CORE-31
#[test]
fn requests_with_elements_have_no_payload_and_a_stream_to_themselves() {
    let mut broken = request(1);
    broken.flags = Flags::NONE;
    let code = fault(&mut Rig::acceptor(), &whole(3, &broken));
    assert_eq!(code, ErrorCode::UNEXPECTED_MESSAGE);

    let mut rig = Rig::client();
    let now = rig.at();
    let refused = rig.session.call(now, outgoing("x"), Shape::ClientStream);
    assert!(matches!(refused, Err(CallError::UnexpectedPayload)));
    let mut streams = vec![1];
    for shape in [Shape::ServerStream, Shape::ClientStream, Shape::TwoWay] {
        let key = rig.session.call(now, outgoing(""), shape).unwrap();
        if shape.request_streams() {
            rig.session.send(now, key, outgoing("element")).unwrap();
            rig.session.finish(now, key, None);
        }
        let sent = rig.sent_messages();
        let (stream, first) = &sent[0];
        assert_eq!(first.kind, MessageType::REQUEST);
        let ended = first.flags.contains(Flags::STREAM_END);
        assert_eq!(ended, !shape.request_streams(), "{shape:?}");
        assert!(!streams.contains(stream) && stream % 2 == 1, "{shape:?}");
        streams.push(*stream);
        for (on, message) in &sent {
            assert_eq!((on, message.request_id), (stream, first.request_id));
        }
    }
}

/// The ID of an open or waiting call is not to be used again, on whichever stream; that of an answered one is.
///
/// Spec: CORE-28
#[test]
fn an_id_that_is_open_ends_the_session() {
    let shared = whole(1, &request(7));
    let own = whole(3, &closed_request(7));
    let other = whole(5, &open_request(7));
    for (first, second) in [
        (&shared, &shared),
        (&shared, &own),
        (&own, &shared),
        (&own, &other),
    ] {
        let mut rig = Rig::acceptor();
        rig.feed(first).unwrap();
        assert_eq!(fault(&mut rig, second), ErrorCode::DUPLICATE_REQUEST);
        let both = [&first[..], second].concat(); // the first waits
        let code = fault(&mut Rig::acceptor(), &both);
        assert_eq!(code, ErrorCode::DUPLICATE_REQUEST);
    }
    let mut rig = Rig::acceptor();
    rig.feed(&shared).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "done");
    rig.feed(&own).unwrap();
    rig.incoming();
}

/// A request without an ID is worked on, any number at once, and neither its answer nor its refusal is sent.
///
/// Spec: CORE-30
#[test]
fn nobody_is_answered_under_id_0() {
    let mut rig = Rig::acceptor();
    let quiet = whole(1, &request(0));
    rig.feed(&quiet).unwrap();
    rig.feed(&quiet).unwrap();
    for _ in 0..2 {
        let incoming = rig.incoming();
        assert!(!incoming.answered);
        rig.respond(incoming.call, "nobody reads this");
    }
    let refused = flagged(MessageType::REQUEST, 0, Flags::REQUIRES_CONSENSUS, "ask");
    rig.feed(&whole(1, &refused)).unwrap();
    assert!(rig.events.is_empty());
    assert!(rig.sent_messages().is_empty());
}

/// What does not belong on a stream ends the session.
///
/// Spec: CORE-33
#[test]
fn each_stream_carries_its_own_kinds_only() {
    let cases = [
        ("an answer of the owner's", whole(1, &response(1, "x"))),
        ("an element on stream 1", whole(1, &element(1, "x"))),
        ("an end on stream 1", whole(1, &stream_end(1))),
        ("a request on stream 2", whole(2, &request(1))),
        ("an element on stream 2", whole(2, &element(1, "x"))),
        ("an element first", whole(3, &element(1, "x"))),
        (
            "two requests",
            [whole(3, &open_request(1)), whole(3, &open_request(2))].concat(),
        ),
        (
            "an answer of the opener's",
            [whole(3, &open_request(1)), whole(3, &response(1, "x"))].concat(),
        ),
        (
            "an unknown type",
            whole(1, &message(MessageType(0x77), 1, "x")),
        ),
    ];
    for (name, bytes) in cases {
        let code = fault(&mut Rig::acceptor(), &bytes);
        assert_eq!(code, ErrorCode::UNEXPECTED_MESSAGE, "{name}");
    }
}

/// STOP goes before an answer that comes while the caller still sends, and what still comes is dropped.
///
/// Spec: CORE-35
#[test]
fn an_early_answer_stops_the_caller() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "enough");
    let sent = rig.sent();
    let at = |kind| sent.iter().position(|(_, frame)| frame.body.kind() == kind);
    assert_eq!(code_of(&sent, 3, FrameType::STOP), Some(ErrorCode::OK));
    assert!(at(FrameType::STOP).unwrap() < at(FrameType::MESSAGE).unwrap());
    rig.feed(&whole(3, &element(1, "late"))).unwrap();
    assert!(rig.events.is_empty());
}

/// Answers that cross a cancel, a deadline or a shutdown are nobody's.
///
/// Spec: CORE-36
#[test]
fn answers_that_nobody_waits_for_are_ignored() {
    let mut rig = Rig::client();
    let (cancelled, first, _) = call(&mut rig, outgoing("1"), Shape::Unary);
    let (late, second, _) = call(&mut rig, within(100), Shape::Unary);
    let (failed, third, _) = call(&mut rig, outgoing("3"), Shape::Unary);
    let now = rig.at();
    rig.session.cancel(now, cancelled, ErrorCode::CANCELLED);
    rig.wait(200_000);
    assert_eq!(rig.failure(late), Some(ErrorCode::DEADLINE_EXCEEDED));
    rig.feed(&shutdown(second)).unwrap();
    assert_eq!(rig.failure(failed), Some(ErrorCode::SHUTTING_DOWN));
    for id in [first, second, third] {
        rig.feed(&whole(1, &response(id, "x"))).unwrap();
    }
    assert!(no_answer(&rig));
}

/// RESET gives a call up, whole or not, and is answered by RESET; after the answer it means nothing.
///
/// Spec: CORE-39
#[test]
fn reset_gives_up_a_call() {
    let up = reset(3, ErrorCode::CANCELLED);
    let mut rig = Rig::acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let key = rig.incoming().call;
    rig.feed(&up).unwrap();
    assert_eq!(rig.cancelled(key), Some(ErrorCode::CANCELLED));
    assert_eq!(count(&rig.sent(), 3, FrameType::RESET), 1);

    let mut rig = Rig::acceptor();
    rig.feed(&parts(3, &closed_request(1), 30)[0]).unwrap();
    rig.feed(&up).unwrap();
    assert_eq!(count(&rig.sent(), 3, FrameType::RESET), 1);
    assert!(rig.events.is_empty());

    let mut rig = Rig::acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let key = rig.incoming().call;
    rig.respond(key, "done");
    rig.sent();
    rig.feed(&up).unwrap();
    assert!(rig.sent().is_empty() && rig.events.is_empty());
}

/// Compressed without agreement costs a request alone, and anything else the session.
///
/// Spec: CORE-42
#[test]
fn compression_that_was_not_agreed_on_ends_the_session() {
    let squeezed = |kind, id| flagged(kind, id, Flags::COMPRESSED, "x");
    let mut rig = Rig::acceptor();
    rig.feed(&whole(1, &squeezed(MessageType::REQUEST, 1)))
        .unwrap();
    assert_eq!(rig.sent_errors(), [(1, 1, ErrorCode::UNIMPLEMENTED)]);
    rig.feed(&whole(3, &open_request(2))).unwrap();
    let code = fault(&mut rig, &whole(3, &squeezed(MessageType::STREAM, 2)));
    assert_eq!(code, ErrorCode::UNIMPLEMENTED);

    let mut rig = Rig::client();
    let (_, id, _) = call(&mut rig, outgoing("1"), Shape::Unary);
    let code = fault(&mut rig, &whole(1, &squeezed(MessageType::RESPONSE, id)));
    assert_eq!(code, ErrorCode::UNIMPLEMENTED);
}

fn batch(id: u32, messages: Vec<Message>) -> Vec<u8> {
    let mut payload = BytesMut::new();
    Batch { messages }.encode(&mut payload);
    let flags = Flags::BATCH_REQUEST;
    whole(
        1,
        &flagged(MessageType::REQUEST, id, flags, payload.freeze()),
    )
}

/// Members count as calls: what is more than are left, none, or not requests, is refused as a whole.
///
/// Spec: CORE-44
#[test]
fn batches_are_judged_as_calls() {
    let mut config = SessionConfig::acceptor();
    config.limits.max_calls = 64;
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    rig.feed(&whole(1, &request(1))).unwrap();
    rig.incoming();
    let members = |n| (1..=n).map(request).collect::<Vec<_>>();
    let garbage = flagged(
        MessageType::REQUEST,
        5,
        Flags::BATCH_REQUEST,
        &b"garbage"[..],
    );
    rig.feed(&batch(2, members(64))).unwrap();
    rig.feed(&batch(3, Vec::new())).unwrap();
    rig.feed(&batch(4, vec![request(1), response(2, "x")]))
        .unwrap();
    rig.feed(&whole(1, &garbage)).unwrap();
    assert!(rig.events.is_empty(), "nothing of them runs");
    let refusals = [
        (1, 2, ErrorCode::TOO_MANY_CALLS),
        (1, 3, ErrorCode::INVALID_ARGUMENT),
        (1, 4, ErrorCode::INVALID_ARGUMENT),
        (1, 5, ErrorCode::MALFORMED),
    ];
    assert_eq!(rig.sent_errors(), refusals);
    rig.feed(&batch(6, members(63))).unwrap();
    assert_eq!(rig.events.len(), 63);
    rig.feed(&whole(1, &request(7))).unwrap();
    assert_eq!(rig.sent_errors(), [(1, 7, ErrorCode::TOO_MANY_CALLS)]);
}

/// Of a batch's answers, those that don't fit any more become errors, and the others arrive.
///
/// Spec: CORE-45
#[test]
fn answers_that_do_not_fit_a_batch_become_errors_one_by_one() {
    let limits = Limits {
        max_message: 64 * 1024,
        ..GENEROUS
    };
    let mut rig = Rig::acceptor_with(SessionConfig::acceptor(), limits);
    rig.feed(&batch(9, (1..=3).map(request).collect())).unwrap();
    for len in [40_000, 40_000, 100] {
        let incoming = rig.incoming();
        rig.respond(incoming.call, vec![7; len]);
    }
    let sent = rig.sent_messages();
    let whole = &sent[0].1;
    assert!(whole.encoded_len() <= 64 * 1024);
    assert_eq!(whole.request_id.0, 9);
    let answers = Batch::decode(whole.payload.clone(), &ANY).unwrap().messages;
    let kinds: Vec<_> = answers.iter().map(|answer| answer.kind).collect();
    let (good, bad) = (MessageType::RESPONSE, MessageType::ERROR);
    assert_eq!(kinds, [good, bad, good]);
    let record = ErrorRecord::decode(answers[1].payload.clone()).unwrap();
    assert_eq!(record.code, ErrorCode::MESSAGE_TOO_LARGE);
}
