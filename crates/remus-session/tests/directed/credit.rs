//! Credit, and messages in parts. Spec: core §5.3, §5.4.

use bytes::Bytes;
use remus_session::{Event, Occupancy, Received, SessionConfig, Shape};
use remus_wire::{ErrorCode, Flags, Frame, FrameBody, FrameType, Limits, MessageType};

use crate::support::*;

/// Payload bytes of message frames on a stream.
fn data(frames: &[(u16, Frame)], stream: u16) -> usize {
    frames
        .iter()
        .filter(|(_, frame)| frame.stream.0 == stream)
        .map(|(_, frame)| match &frame.body {
            FrameBody::Message(bytes) | FrameBody::Part(bytes) | FrameBody::Last(bytes) => {
                bytes.len()
            }
            _ => 0,
        })
        .sum()
}

/// The limits that are granted among some frames: of the session and of a stream.
fn granted(frames: &[(u16, Frame)], stream: u16) -> Option<u64> {
    frames
        .iter()
        .filter(|(_, frame)| frame.stream.0 == stream)
        .filter_map(|(_, frame)| match frame.body {
            FrameBody::Credit { limit } => Some(limit),
            _ => None,
        })
        .next_back()
}

/// Spec: CORE-57, CORE-59
#[test]
fn more_than_the_credit_ends_the_session() {
    // A stream: exactly the window is taken.
    let mut rig = Rig::acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    rig.feed(&whole(3, &element(1, vec![0; 65_536 - 35 - 35 - 35])))
        .unwrap();
    let mut over = Rig::acceptor();
    over.feed(&whole(3, &open_request(1))).unwrap();
    over.feed(&whole(3, &element(1, vec![0; 60_000]))).unwrap();
    let beyond = whole(3, &element(1, vec![0; 65_536 - 60_000 - 35 - 35 - 35 + 1]));
    assert_eq!(fault(&mut over, &beyond), ErrorCode::FLOW_CONTROL);
    rig.feed(&whole(3, &element(1, Bytes::new()))).unwrap();
    assert_eq!(
        fault(&mut rig, &whole(3, &element(1, Bytes::new()))),
        ErrorCode::FLOW_CONTROL
    );

    // The session: several streams, each within its window.
    let mut config = SessionConfig::acceptor();
    config.limits.session_window = 100_000;
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    for (stream, id) in [(3, 1), (5, 2)] {
        rig.feed(&whole(stream, &open_request(id))).unwrap();
    }
    rig.feed(&whole(3, &element(1, vec![0; 50_000]))).unwrap();
    assert_eq!(
        fault(&mut rig, &whole(5, &element(2, vec![0; 50_000]))),
        ErrorCode::FLOW_CONTROL
    );

    // A shared stream: requests that wait are not taken in.
    let mut config = SessionConfig::acceptor();
    config.max_queued_bytes = 64 * 1024;
    let mut rig = Rig::acceptor_with(
        config,
        Limits {
            stream_window: 64 * 1024,
            ..GENEROUS
        },
    );
    rig.feed(&whole(1, &request(1))).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, vec![0; 200_000]);
    assert!(rig.session.is_congested());
    let mut id = 1;
    let code = loop {
        id += 1;
        match rig.feed(&whole(
            1,
            &message(MessageType::REQUEST, id, vec![0; 10_000]),
        )) {
            Ok(()) => assert!(id < 10),
            Err(error) => break error.code(),
        }
    };
    assert_eq!(code, ErrorCode::FLOW_CONTROL);
}

/// Spec: CORE-58, CORE-76
#[test]
fn a_credit_that_does_not_raise_the_limit_changes_nothing() {
    let peer = Limits {
        stream_window: 64 * 1024,
        session_window: 64 * 1024,
        ..GENEROUS
    };
    let mut client = Rig::client_with(SessionConfig::client(), peer);
    let now = client.at();
    client
        .session
        .call(now, outgoing(vec![0; 200_000]), Shape::Unary)
        .unwrap();
    assert_eq!(data(&client.sent(), 3), 65_536);
    for stream in [0, 3] {
        for limit in [0, 10, 65_536] {
            client.feed(&credit(stream, limit)).unwrap();
        }
    }
    assert_eq!(data(&client.sent(), 3), 0);
    client.feed(&credit(0, 1 << 20)).unwrap();
    assert_eq!(data(&client.sent(), 3), 0, "of the session only");
    client.feed(&credit(3, 100_000)).unwrap();
    assert_eq!(data(&client.sent(), 3), 100_000 - 65_536);
    client.feed(&credit(3, u64::MAX)).unwrap();
    assert_eq!(data(&client.sent(), 3), 200_035 - 100_000);
}

/// Streams that lack the session's credit hold up neither small calls nor their answers, on the same lane.
///
/// Spec: CORE-59
#[test]
fn calls_get_through_without_session_credit() {
    let peer = Limits {
        session_window: 64 * 1024,
        ..GENEROUS
    };
    let mut config = SessionConfig::client();
    config.extra_lanes = 0;
    let mut client = Rig::client_with(config, peer);
    let now = client.at();
    for _ in 0..3 {
        client
            .session
            .call(now, outgoing(vec![0; 100_000]), Shape::Unary)
            .unwrap();
    }
    let frames = client.sent();
    assert_eq!(
        data(&frames, 3) + data(&frames, 5) + data(&frames, 7),
        65_536
    );
    for n in 0..200 {
        client
            .session
            .call(now, outgoing("small"), Shape::Unary)
            .unwrap();
        assert_eq!(data(&client.sent(), 1), 40, "call {n}");
    }
    assert_eq!(client.session.occupancy().parked, 3);
    // And when credit comes, everything goes on.
    client.feed(&credit(0, 1 << 30)).unwrap();
    let frames = client.sent();
    assert_eq!(
        data(&frames, 3) + data(&frames, 5) + data(&frames, 7),
        3 * 100_035 - 65_536
    );

    let mut rig = Rig::acceptor_with(SessionConfig::acceptor(), peer);
    let mut last = 0;
    for id in 1..=20 {
        rig.feed(&whole(1, &request(id))).unwrap();
        let incoming = rig.incoming();
        rig.respond(incoming.call, vec![0; 10_000]);
        last += data(&rig.sent(), 1);
    }
    assert_eq!(
        last,
        20 * 10_035,
        "answers on the shared stream need none of it"
    );
}

/// A reader that takes everything always leaves its peer at least half a window, whatever the sizes.
///
/// Spec: CORE-60
#[test]
fn credit_comes_back_as_elements_are_read() {
    let mut config = SessionConfig::acceptor();
    config.limits.session_window = 64 * 1024;
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let incoming = rig.incoming();
    let (mut stream, mut session, mut sent) = (65_536, 65_536, 35_u64);
    for n in 0..500_u64 {
        let message = element(1, vec![0; usize::try_from(n * 37 % 9_000).unwrap()]);
        sent += message.encoded_len() as u64;
        rig.feed(&whole(3, &message)).unwrap();
        assert!(matches!(
            rig.session.recv(incoming.call),
            Some(Received::Element(_))
        ));
        let frames = rig.sent();
        stream = granted(&frames, 3).unwrap_or(stream);
        session = granted(&frames, 0).unwrap_or(session);
        assert!(
            stream >= sent + 32_768 && session >= sent + 32_768,
            "after {n}"
        );
    }
    // One that takes nothing gives nothing.
    let unread = rig.session.occupancy().unread_bytes;
    assert_eq!(unread, 0);
    for _ in 0..3 {
        rig.feed(&whole(3, &element(1, vec![0; 9_000]))).unwrap();
    }
    assert!(rig.sent().is_empty());
    assert_eq!(rig.session.occupancy().unread_bytes, 3 * 9_035);
}

/// Ten bytes of credit at a time are enough to get on.
///
/// Spec: CORE-61
#[test]
fn a_sender_uses_the_credit_that_it_has() {
    let peer = Limits {
        stream_window: 64 * 1024,
        ..GENEROUS
    };
    let mut client = Rig::client_with(SessionConfig::client(), peer);
    let now = client.at();
    client
        .session
        .call(now, outgoing(vec![0; 66_000]), Shape::Unary)
        .unwrap();
    let mut sent = data(&client.sent(), 3);
    while sent < 66_035 {
        client.feed(&credit(3, sent as u64 + 10)).unwrap();
        let more = data(&client.sent(), 3);
        assert_eq!(more, 10.min(66_035 - sent));
        sent += more;
    }
    // The same for the session's.
    let peer = Limits {
        session_window: 64 * 1024,
        ..GENEROUS
    };
    let mut client = Rig::client_with(SessionConfig::client(), peer);
    client
        .session
        .call(now, outgoing(vec![0; 66_000]), Shape::Unary)
        .unwrap();
    let mut sent = data(&client.sent(), 3);
    while sent < 66_035 {
        client.feed(&credit(0, sent as u64 + 10)).unwrap();
        let more = data(&client.sent(), 3);
        assert_eq!(more, 10.min(66_035 - sent));
        sent += more;
    }
}

/// Spec: CORE-62
#[test]
fn parts_that_do_not_make_a_message_end_the_session() {
    let long = parts(3, &message(MessageType::REQUEST, 1, vec![0; 1_000]), 400);
    let interrupted = [long[0].clone(), whole(3, &element(1, "x"))].concat();
    let lone = frame(3, FrameBody::Last(Bytes::from_static(b"x")));
    let mut early = long[0].clone();
    early.extend(frame(3, FrameBody::Last(Bytes::from_static(b"x"))));
    let mut late = long[..2].concat();
    late.extend(frame(3, FrameBody::Part(Bytes::from(vec![0; 400]))));
    let cases = [
        (
            "a message inside another",
            interrupted,
            ErrorCode::MALFORMED,
        ),
        ("a LAST alone", lone, ErrorCode::UNEXPECTED_MESSAGE),
        ("a LAST too early", early, ErrorCode::MALFORMED),
        ("a PART too many", late, ErrorCode::MALFORMED),
        (
            "a header that is cut off",
            [
                frame(3, FrameBody::Part(Bytes::from_static(&[0, 0, 0, 40]))),
                frame(3, FrameBody::Last(Bytes::from_static(&[0x10]))),
            ]
            .concat(),
            ErrorCode::MALFORMED,
        ),
    ];
    for (name, bytes, code) in cases {
        assert_eq!(fault(&mut Rig::acceptor(), &bytes), code, "{name}");
    }
}

/// A message of 4 MiB through windows of 64 KiB, with nothing taken in before it is whole.
///
/// Spec: CORE-63
#[test]
fn a_message_larger_than_the_windows_arrives() {
    let mut config = SessionConfig::acceptor();
    config.limits.session_window = 64 * 1024;
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    // Something unread stands before it.
    rig.feed(&whole(5, &open_request(2))).unwrap();
    rig.feed(&whole(5, &element(2, vec![0; 10_000]))).unwrap();
    let large = flagged(
        MessageType::REQUEST,
        1,
        Flags::STREAM_END,
        vec![7; 4_000_000],
    );
    let (mut stream, mut session, mut sent) = (65_536, 65_536, 0);
    for part in parts(3, &large, 16_384) {
        sent += part.len() as u64 - 8;
        assert!(
            sent <= stream && sent + 10_070 <= session,
            "stuck at {sent}"
        );
        rig.feed(&part).unwrap();
        let frames = rig.sent();
        stream = granted(&frames, 3).unwrap_or(stream);
        session = granted(&frames, 0).unwrap_or(session);
    }
    rig.incoming();
    assert_eq!(rig.incoming().message.payload.len(), 4_000_000);
    assert_eq!(rig.session.occupancy().assembling, 0);
    assert!(
        session <= 10_070 + 2 * 65_536 + 4_100_000,
        "and no more is granted for it"
    );
}

/// Spec: CORE-64
#[test]
fn too_much_that_is_half_received_costs_the_stream_only() {
    let config = || {
        let mut config = SessionConfig::acceptor();
        config.limits.max_message = 64 * 1024;
        config.max_assembly_bytes = 100_000;
        config
    };
    let begin = |stream, kind, id| {
        parts(
            stream,
            &flagged(kind, id, Flags::STREAM_END, vec![0; 60_000]),
            10_000,
        )
        .swap_remove(0)
    };

    // A request: refused, and the peer may try it again.
    let mut rig = Rig::acceptor_with(config(), GENEROUS);
    rig.feed(&begin(3, MessageType::REQUEST, 1)).unwrap();
    rig.feed(&begin(5, MessageType::REQUEST, 2)).unwrap();
    let frames = rig.sent();
    assert_eq!(
        code_of(&frames, 5, FrameType::STOP),
        Some(ErrorCode::QUEUE_FULL)
    );
    assert_eq!(
        code_of(&frames, 5, FrameType::RESET),
        Some(ErrorCode::QUEUE_FULL)
    );
    assert_eq!(code_of(&frames, 3, FrameType::STOP), None);
    let held = rig.session.occupancy();
    assert_eq!((held.assembling, held.unread_bytes), (60_035, 10_000));
    rig.feed(&reset(5, ErrorCode::QUEUE_FULL)).unwrap();
    // A shared stream is not given up.
    rig.feed(&begin(1, MessageType::REQUEST, 3)).unwrap();
    for part in &parts(
        1,
        &flagged(MessageType::REQUEST, 3, Flags::STREAM_END, vec![0; 60_000]),
        10_000,
    )[1..]
    {
        rig.feed(part).unwrap();
    }
    assert_eq!(rig.incoming().message.request_id.0, 3);
    for part in &parts(
        3,
        &flagged(MessageType::REQUEST, 1, Flags::STREAM_END, vec![0; 60_000]),
        10_000,
    )[1..]
    {
        rig.feed(part).unwrap();
    }
    assert_eq!(rig.incoming().message.request_id.0, 1);

    // An element of a call that runs: the call ends, and both applications know that it ran.
    let mut rig = Rig::acceptor_with(config(), GENEROUS);
    rig.feed(&whole(5, &open_request(2))).unwrap();
    let incoming = rig.incoming();
    rig.feed(&begin(3, MessageType::REQUEST, 1)).unwrap();
    rig.feed(&begin(5, MessageType::STREAM, 2)).unwrap();
    assert_eq!(
        rig.cancelled(incoming.call),
        Some(ErrorCode::RESOURCE_EXHAUSTED)
    );
    assert_eq!(rig.sent_errors(), [(5, 2, ErrorCode::RESOURCE_EXHAUSTED)]);

    // Answers: the caller's side.
    let mut client_config = config();
    client_config.features = SessionConfig::client().features;
    let mut client = Rig::client_with(client_config, GENEROUS);
    let now = client.at();
    let unary = client
        .session
        .call(now, outgoing("x"), Shape::Unary)
        .unwrap();
    let stream = client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    let kept = client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    client.sent();
    client
        .feed_on(2, &begin(5, MessageType::STREAM, 3))
        .unwrap();
    client
        .feed_on(1, &begin(3, MessageType::STREAM, 2))
        .unwrap();
    client.feed(&begin(4, MessageType::RESPONSE, 1)).unwrap();
    assert_eq!(client.failure(unary), Some(ErrorCode::RESOURCE_EXHAUSTED));
    let Some(Received::End(Some(record))) = client.session.recv(stream) else {
        panic!("it ends")
    };
    assert_eq!(record.code, ErrorCode::RESOURCE_EXHAUSTED);
    assert!(client.session.recv(kept).is_none());
    let frames = client.sent();
    for stream in [3, 4] {
        assert_eq!(
            code_of(&frames, stream, FrameType::STOP),
            Some(ErrorCode::RESOURCE_EXHAUSTED)
        );
    }
    assert_eq!(client.session.occupancy().assembling, 60_035);
}

/// An answer's stream that the answerer resets: the call fails, if it can be told which.
///
/// Spec: CORE-39
#[test]
fn an_answer_that_is_abandoned_half_way_fails_its_call() {
    let mut client = Rig::client();
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing("x"), Shape::Unary)
        .unwrap();
    let answer = flagged(MessageType::RESPONSE, 1, Flags::STREAM_END, vec![0; 50_000]);
    client.feed(&parts(4, &answer, 10_000)[0]).unwrap();
    client.feed(&reset(4, ErrorCode::UNAVAILABLE)).unwrap();
    assert_eq!(client.failure(call), Some(ErrorCode::UNAVAILABLE));
    client.sent();
    assert_eq!(client.session.occupancy(), Occupancy::default());
    assert!(
        !client
            .events
            .iter()
            .any(|event| matches!(event, Event::Closed(_)))
    );
}
