//! Who says what when, until calls flow. Spec: core §2.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use remus_session::{CallError, Event, LaneId, SessionConfig, SessionError, Shape, State};
use remus_wire::{
    ErrorCode, Frame, FrameBody, Handshake, Heartbeat, Message, MessageType, QueryAnswer, Schema,
    Shutdown,
};

use crate::support::*;

/// Every control record that a peer can send, by name.
fn records() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("offer", offer()),
        ("accept", accept()),
        ("capability", capability(GENEROUS)),
        ("authenticate", authenticate()),
        (
            "challenge",
            handshake(&Handshake::Challenge(Bytes::from_static(b"sign"))),
        ),
        ("authenticated", authenticated()),
        ("query", query(5)),
        ("answer", query_answer(5)),
        ("schema offer", schema_offer()),
        ("schema want", schema_want()),
        (
            "heartbeat",
            control(MessageType::HEARTBEAT, 1, |out| {
                Heartbeat::default().encode(out)
            }),
        ),
        (
            "shutdown",
            control(MessageType::SHUTDOWN, 0, |out| {
                Shutdown::default().encode(out)
            }),
        ),
        ("a request", whole(0, &request(1))),
        ("an announcement", control(MessageType::ANNOUNCE, 0, |_| ())),
        ("an unknown type", control(MessageType(0x77), 0, |_| ())),
    ]
}

/// Each state of either side takes what the table says, and ends the session for anything else.
///
/// Spec: CORE-1, CORE-17, CORE-73
#[test]
fn out_of_turn_records_end_the_session_in_every_state() {
    let acceptor_takes: [&[&str]; 6] = [
        &["offer"],
        &["capability"],
        &["authenticate"],
        &["query"],
        &["schema offer"],
        &[
            "authenticate",
            "query",
            "schema offer",
            "schema want",
            "heartbeat",
            "shutdown",
        ],
    ];
    let client_takes: [&[&str]; 6] = [
        &["accept"],
        &["capability"],
        &["challenge", "authenticated"],
        &[], // the answer to query 5 answers nothing
        &["schema want"],
        &[
            "query",
            "schema offer",
            "schema want",
            "heartbeat",
            "shutdown",
        ],
    ];
    let states = [
        State::VersionNegotiation,
        State::CapabilityExchange,
        State::Authentication,
        State::ServiceDiscovery,
        State::SchemaExchange,
        State::Active,
    ];
    for (step, state) in states.into_iter().enumerate() {
        for (name, bytes) in records() {
            let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
            let mut client = Rig::fresh_client(SessionConfig::client());
            for record in first_flight(GENEROUS).iter().take(step) {
                acceptor.feed(record).unwrap();
            }
            for record in first_answers(GENEROUS).iter().take(step) {
                client.feed(record).unwrap();
            }
            for (rig, takes) in [
                (&mut acceptor, acceptor_takes[step]),
                (&mut client, client_takes[step]),
            ] {
                assert_eq!(rig.session.state(), state);
                let side = rig.session.side();
                if takes.contains(&name) {
                    rig.feed(&bytes).unwrap();
                } else {
                    let code = fault(rig, &bytes);
                    assert_eq!(
                        code,
                        ErrorCode::UNEXPECTED_MESSAGE,
                        "{side:?} in {state}: {name}"
                    );
                }
            }
        }
    }
}

/// Spec: CORE-1
#[test]
fn frames_without_messages_do_not_belong_on_the_control_stream() {
    for (name, bytes) in [
        ("PART", frame(0, FrameBody::Part(Bytes::from_static(b"x")))),
        ("LAST", frame(0, FrameBody::Last(Bytes::from_static(b"x")))),
        ("RESET", reset(0, ErrorCode::OK)),
        ("STOP", stop(0, ErrorCode::OK)),
    ] {
        let code = fault(&mut Rig::acceptor(), &bytes);
        assert_eq!(code, ErrorCode::UNEXPECTED_MESSAGE, "{name}");
    }
}

/// One flight there, one back, and the first call's answer is in it.
///
/// Spec: CORE-2, CORE-3, CORE-4, CORE-5, TRANS-46
#[test]
fn the_first_call_is_answered_in_one_round_trip() {
    let mut client = Rig::fresh_client(SessionConfig::client());
    let call = client
        .session
        .call(client.at(), outgoing("early"), Shape::Unary)
        .unwrap();
    let mut flight = VecDeque::new();
    assert!(client.session.poll_transmit(LaneId::ZERO, &mut flight));
    assert!(
        !client.session.poll_transmit(LaneId::ZERO, &mut flight),
        "all of it at once"
    );
    let flight = flight.iter().flatten().copied().collect::<Vec<_>>();
    assert_eq!(
        kinds(&flight),
        [
            (0, MessageType::HANDSHAKE, 1),
            (0, MessageType::CAPABILITY, 0),
            (0, MessageType::HANDSHAKE, 3),
            (0, MessageType::QUERY, 0),
            (0, MessageType::SCHEMA, 1),
            (1, MessageType::REQUEST, 0),
        ]
    );

    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    acceptor.feed(&flight).unwrap();
    let incoming = acceptor.incoming();
    assert_eq!(incoming.message.payload, "early");
    acceptor.respond(incoming.call, "at once");
    let mut answers = VecDeque::new();
    assert!(acceptor.session.poll_transmit(LaneId::ZERO, &mut answers));
    assert!(!acceptor.session.poll_transmit(LaneId::ZERO, &mut answers));
    let answers = answers.iter().flatten().copied().collect::<Vec<_>>();
    assert_eq!(
        kinds(&answers),
        [
            (0, MessageType::HANDSHAKE, 2),
            (0, MessageType::CAPABILITY, 0),
            (0, MessageType::HANDSHAKE, 5),
            (0, MessageType::RESPONSE, 0),
            (0, MessageType::SCHEMA, 2),
            (1, MessageType::RESPONSE, 0),
        ]
    );

    client.feed(&answers).unwrap();
    assert_eq!(client.session.state(), State::Active);
    assert_eq!(client.answer(call).unwrap().unwrap().payload, "at once");
}

/// Stream, type and, for records with steps, the step of each message in some frames.
fn kinds(bytes: &[u8]) -> Vec<(u16, MessageType, u8)> {
    let mut bytes = BytesMut::from(bytes);
    let mut kinds = Vec::new();
    while let Some(frame) = Frame::decode(&mut bytes, u32::MAX).unwrap() {
        let FrameBody::Message(message) = frame.body else {
            panic!("{frame:?} in a first flight")
        };
        let message = Message::decode(message, &ANY).unwrap();
        let step = match message.kind {
            MessageType::HANDSHAKE | MessageType::SCHEMA => message.payload[0],
            _ => 0,
        };
        kinds.push((frame.stream.0, message.kind, step));
    }
    assert!(bytes.is_empty());
    kinds
}

/// Each record is answered by itself: a client that sends one and waits gets on.
///
/// Spec: CORE-3
#[test]
fn each_record_is_answered_as_soon_as_it_is_there() {
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    let answers = [
        MessageType::HANDSHAKE,
        MessageType::CAPABILITY,
        MessageType::HANDSHAKE,
        MessageType::RESPONSE,
        MessageType::SCHEMA,
    ];
    for (record, answer) in first_flight(GENEROUS).iter().zip(answers) {
        acceptor.feed(record).unwrap();
        let sent = acceptor.sent_messages();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].1.kind, answer);
    }
}

/// While the application thinks about the client, or about its query, nothing behind that is looked at.
///
/// Spec: CORE-4, CORE-6
#[test]
fn an_undecided_record_holds_up_what_is_behind_it() {
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    let grant = acceptor.grant.take().unwrap();
    acceptor.answers_queries = false;
    let mut flight = first_flight(GENEROUS).concat();
    flight.extend(whole(1, &request(1)));
    acceptor.feed(&flight).unwrap();
    assert_eq!(acceptor.session.state(), State::Authentication);
    assert!(!acceptor.session.wants_input());
    assert_eq!(acceptor.sent_messages().len(), 2, "accept and Capability");
    assert!(
        acceptor
            .events
            .iter()
            .all(|event| matches!(event, Event::Authenticate(_)))
    );

    acceptor.session.grant(acceptor.at(), grant);
    acceptor.resume().unwrap();
    assert_eq!(acceptor.session.state(), State::ServiceDiscovery);
    assert!(!acceptor.session.wants_input());
    let Some(Event::Query(id, _)) = acceptor.events.pop_back() else {
        panic!("the query is asked: {:?}", acceptor.events)
    };
    assert_eq!(acceptor.sent_messages().len(), 1, "authenticated");

    let now = acceptor.at();
    acceptor
        .session
        .answer_query(now, id, &QueryAnswer::default());
    acceptor.resume().unwrap();
    assert_eq!(acceptor.session.state(), State::Active);
    let kinds: Vec<MessageType> = acceptor
        .sent_messages()
        .iter()
        .map(|(_, message)| message.kind)
        .collect();
    assert_eq!(kinds, [MessageType::RESPONSE, MessageType::SCHEMA]);
    assert_eq!(acceptor.incoming().message.request_id.0, 1);
}

/// Spec: CORE-5, CORE-7
#[test]
fn only_small_unary_calls_leave_before_the_session_is_active() {
    let mut client = Rig::fresh_client(SessionConfig::client());
    let now = client.at();
    let large = vec![0; 20_000];
    for (request, shape) in [
        (outgoing(""), Shape::ServerStream),
        (outgoing(""), Shape::TwoWay),
        (outgoing(large), Shape::Unary),
        // More than anybody takes by then; the acceptor may take it later.
        (outgoing(vec![0; 100_000]), Shape::Unary),
    ] {
        assert_eq!(
            client.session.call(now, request, shape),
            Err(CallError::NotOpen)
        );
    }
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    for record in first_flight(GENEROUS).iter().take(4) {
        acceptor.feed(record).unwrap();
    }
    let early = acceptor.session.call(now, outgoing(""), Shape::Unary);
    assert_eq!(early, Err(CallError::NotOpen));
}

/// A request before the handshake, on whichever stream and lane, at either side.
///
/// Spec: CORE-5, CORE-7, TRANS-30
#[test]
fn a_request_before_the_handshake_ends_the_session() {
    for step in 0..5 {
        let prepared = || {
            let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
            for record in first_flight(GENEROUS).iter().take(step) {
                acceptor.feed(record).unwrap();
            }
            acceptor
        };
        for stream in [1, 3] {
            let code = fault(&mut prepared(), &whole(stream, &closed_request(1)));
            assert_eq!(
                code,
                ErrorCode::UNEXPECTED_MESSAGE,
                "stream {stream} at step {step}"
            );
        }
        let code = fault_on(&mut prepared(), 1, &whole(3, &closed_request(1)));
        assert_eq!(code, ErrorCode::STREAM_STATE, "another lane at step {step}");

        let mut client = Rig::fresh_client(SessionConfig::client());
        for record in first_answers(GENEROUS).iter().take(step) {
            client.feed(record).unwrap();
        }
        let code = fault(&mut client, &whole(2, &request(1)));
        assert_eq!(code, ErrorCode::UNEXPECTED_MESSAGE, "at step {step}");
    }
}

/// The handshake's limit covers silence, a slow peer, and an application that never decides.
///
/// Spec: CORE-8
#[test]
fn a_handshake_that_takes_too_long_ends_the_session() {
    let mut config = SessionConfig::acceptor();
    config.handshake_timeout = Duration::from_secs(3);
    // It is no idle timeout: nothing of what comes prolongs it, and silence does not shorten it.
    config.idle_timeout = Duration::from_millis(500);

    let silent = Rig::fresh_acceptor(config.clone());
    let mut slow = Rig::fresh_acceptor(config.clone());
    slow.feed(&offer()).unwrap();
    let mut undecided = Rig::fresh_acceptor(config.clone());
    undecided.grant = None;
    undecided.feed(&first_flight(GENEROUS).concat()).unwrap();
    let mut unanswered = Rig::fresh_acceptor(config);
    unanswered.answers_queries = false;
    unanswered.feed(&first_flight(GENEROUS).concat()).unwrap();

    for mut rig in [silent, slow, undecided, unanswered] {
        let due = rig.session.poll_timeout().unwrap();
        assert_eq!(due.0, START + 3 * SECOND);
        rig.wait(2 * SECOND);
        assert!(rig.closed().is_none());
        rig.wait(SECOND);
        assert_eq!(rig.closed().unwrap().code, ErrorCode::HANDSHAKE_TIMEOUT);
    }

    let mut client = Rig::fresh_client(SessionConfig::client());
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing("early"), Shape::Unary)
        .unwrap();
    client.wait(10 * SECOND);
    assert_eq!(client.closed().unwrap().code, ErrorCode::HANDSHAKE_TIMEOUT);
    assert_eq!(
        client.failure(call),
        Some(ErrorCode::LOSS_OF_SESSION),
        "which is retryable"
    );
}

/// Spec: CORE-1
#[test]
fn garbage_before_the_handshake_ends_the_session() {
    let codes = [
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            ErrorCode::UNKNOWN_FRAME,
        ),
        (vec![0; 64], ErrorCode::UNKNOWN_FRAME),
        (vec![0xff; 64], ErrorCode::FRAME_TOO_LARGE),
    ];
    for (bytes, code) in codes {
        let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
        assert_eq!(fault(&mut acceptor, &bytes), code);
    }
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    let wrong_schema = schema(&Schema::Want(Vec::new()));
    let error = acceptor.feed(&wrong_schema).unwrap_err();
    assert!(
        matches!(error, SessionError::MisplacedMessage { .. }),
        "{error}"
    );
}
