//! Stream IDs and the ends of their directions. Spec: core §5.1, §5.2.

use bytes::Bytes;
use remus_session::{CallError, Occupancy, Received, SendError, SessionConfig, Shape};
use remus_wire::{ErrorCode, Flags, FrameType, Limits, MessageType};

use crate::support::*;

/// Spec: CORE-47, CORE-83
#[test]
fn the_other_sides_parity_ends_the_session() {
    assert_eq!(
        fault(&mut Rig::acceptor(), &whole(4, &closed_request(1))),
        ErrorCode::STREAM_STATE
    );
    assert_eq!(
        fault(&mut Rig::client(), &whole(3, &closed_request(1))),
        ErrorCode::STREAM_STATE
    );
    // Nor may it go on with a stream of ours that is over.
    let mut client = Rig::client();
    let now = client.at();
    client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    client.feed_on(1, &whole(3, &stream_end(1))).unwrap();
    client.sent();
    assert_eq!(
        fault_on(&mut client, 1, &whole(3, &element(1, "x"))),
        ErrorCode::STREAM_STATE
    );
}

/// Too many streams cost the stream, not the session, and no memory; a CREDIT for an impossible one costs the session.
///
/// Spec: CORE-48, CORE-58
#[test]
fn streams_beyond_the_limit_are_refused_one_by_one() {
    let mut config = SessionConfig::acceptor();
    config.limits.max_streams = 2;
    let peer = Limits {
        max_streams: 1,
        ..GENEROUS
    };
    let mut rig = Rig::acceptor_with(config.clone(), peer);
    for (stream, id) in [(3, 1), (5, 2)] {
        rig.feed(&whole(stream, &open_request(id))).unwrap();
        rig.incoming();
    }
    for stream in [7, 9, 1001, 65_535] {
        rig.feed(&whole(stream, &open_request(3))).unwrap();
        rig.feed(&whole(stream, &element(3, vec![0; 10_000])))
            .unwrap();
        let frames = rig.sent();
        assert_eq!(
            code_of(&frames, stream, FrameType::STOP),
            Some(ErrorCode::TOO_MANY_STREAMS)
        );
        assert_eq!(
            code_of(&frames, stream, FrameType::RESET),
            Some(ErrorCode::TOO_MANY_STREAMS)
        );
    }
    assert!(rig.events.is_empty());
    let held = rig.session.occupancy();
    assert_eq!(
        (held.calls, held.open_streams, held.unread_bytes),
        (2, 2, 0)
    );

    for stream in 0..=6 {
        rig.feed(&credit(stream, 1 << 31)).unwrap();
    }
    assert_eq!(
        fault(&mut rig, &credit(7, 1 << 31)),
        ErrorCode::STREAM_STATE
    );

    // From this side: no more than the peer takes, and the caller hears that nothing ran.
    let mut client = Rig::client_with(
        SessionConfig::client(),
        Limits {
            max_streams: 2,
            ..GENEROUS
        },
    );
    let now = client.at();
    let refused = client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    let error = client.session.call(now, outgoing("x"), Shape::ServerStream);
    assert_eq!(error, Err(CallError::TooManyStreams { limit: 2 }));
    client.feed(&stop(3, ErrorCode::TOO_MANY_STREAMS)).unwrap();
    client.feed(&reset(3, ErrorCode::TOO_MANY_STREAMS)).unwrap();
    let Some(Received::End(Some(record))) = client.session.recv(refused) else {
        panic!("it ends")
    };
    assert_eq!(record.code, ErrorCode::TOO_MANY_STREAMS);
    client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    client.session.check().unwrap();
}

/// Credit that refused streams have used is given back.
///
/// Spec: CORE-48, CORE-60
#[test]
fn refused_streams_do_not_use_up_the_session() {
    let mut config = SessionConfig::acceptor();
    config.limits.max_streams = 0;
    config.limits.session_window = 64 * 1024;
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    let mut granted = 64 * 1024;
    let mut sent = 0;
    for _ in 0..40 {
        sent += 10_035;
        assert!(sent <= granted, "the peer could not go on");
        rig.feed(&whole(3, &element(1, vec![0; 10_000]))).unwrap();
        for (_, frame) in rig.sent() {
            if let (0, remus_wire::FrameBody::Credit { limit }) = (frame.stream.0, frame.body) {
                granted = limit;
            }
        }
    }
}

/// Spec: CORE-49
#[test]
fn a_stream_begins_with_a_request() {
    for message in [
        element(1, "x"),
        stream_end(1),
        message(MessageType(0x77), 1, Bytes::new()),
    ] {
        assert_eq!(
            fault(&mut Rig::acceptor(), &whole(3, &message)),
            ErrorCode::UNEXPECTED_MESSAGE
        );
        assert_eq!(
            fault(&mut Rig::client(), &whole(4, &message)),
            ErrorCode::UNEXPECTED_MESSAGE
        );
    }
    // An answer for nobody is ignored, and its stream ended.
    let mut client = Rig::client();
    client
        .feed(&whole(
            4,
            &flagged(MessageType::RESPONSE, 9, Flags::STREAM_END, "x"),
        ))
        .unwrap();
    assert_eq!(
        code_of(&client.sent(), 4, FrameType::RESET),
        Some(ErrorCode::OK)
    );
    assert_eq!(client.session.occupancy(), Occupancy::default());
}

/// Spec: CORE-50
#[test]
fn data_after_the_end_ends_the_session() {
    let ends: [(&str, Vec<u8>); 3] = [
        ("StreamEnd", whole(3, &stream_end(1))),
        (
            "the flag",
            whole(3, &flagged(MessageType::STREAM, 1, Flags::STREAM_END, "x")),
        ),
        ("a whole request", Vec::new()),
    ];
    for (name, end) in ends {
        for after in [
            whole(3, &element(1, "y")),
            parts(3, &element(1, vec![0; 100]), 50)[0].clone(),
        ] {
            let mut rig = Rig::acceptor();
            let first = if end.is_empty() {
                closed_request(1)
            } else {
                open_request(1)
            };
            rig.feed(&whole(3, &first)).unwrap();
            rig.feed(&end).unwrap();
            assert_eq!(fault(&mut rig, &after), ErrorCode::STREAM_STATE, "{name}");
        }
    }
}

/// The ID goes on with its offsets, and a CREDIT of its old use that comes late is as good as any.
///
/// Spec: CORE-51, CORE-57
#[test]
fn a_stream_id_is_used_again_and_its_offsets_rise() {
    let peer = Limits {
        stream_window: 64 * 1024,
        ..GENEROUS
    };
    let mut client = Rig::client_with(SessionConfig::client(), peer);
    let now = client.at();
    let mut sent = 0;
    for _ in 0..4 {
        let call = client
            .session
            .call(now, outgoing(vec![0; 20_000]), Shape::ServerStream)
            .unwrap();
        let frames = client.sent();
        assert!(
            frames
                .iter()
                .all(|(lane, frame)| *lane == 1 && frame.stream.0 == 3),
            "its lane and ID"
        );
        sent += frames
            .iter()
            .map(|(_, frame)| frame.body.encoded_len())
            .sum::<usize>();
        client.session.cancel(now, call, ErrorCode::CANCELLED);
        client.sent();
        client.feed_on(1, &reset(3, ErrorCode::CANCELLED)).unwrap();
        assert_eq!(client.session.occupancy().open_streams, 0);
    }
    assert_eq!(
        sent, 65_536,
        "four times 20,035 bytes would be more than the ID's credit"
    );
}

/// Spec: CORE-51
#[test]
fn late_credit_of_an_old_use_serves_the_new_one() {
    let peer = Limits {
        stream_window: 64 * 1024,
        ..GENEROUS
    };
    let mut client = Rig::client_with(SessionConfig::client(), peer);
    let now = client.at();
    client
        .session
        .call(now, outgoing(vec![0; 60_000]), Shape::ServerStream)
        .unwrap();
    client.sent();
    client.feed_on(1, &whole(3, &stream_end(1))).unwrap();
    client
        .session
        .call(now, outgoing(vec![0; 60_000]), Shape::ServerStream)
        .unwrap();
    let first: usize = client
        .sent()
        .iter()
        .map(|(_, frame)| frame.body.encoded_len())
        .sum();
    assert_eq!(first, 65_536 - 60_035, "what the old use left");
    client.feed(&credit(3, 60_035 + 65_536)).unwrap();
    let rest: usize = client
        .sent()
        .iter()
        .map(|(_, frame)| frame.body.encoded_len())
        .sum();
    assert_eq!(first + rest, 60_035);
    assert!(client.closed().is_none());
}

/// Spec: CORE-52
#[test]
fn shared_streams_have_no_end() {
    for stream in [0, 1, 2] {
        for bytes in [reset(stream, ErrorCode::OK), stop(stream, ErrorCode::OK)] {
            assert_eq!(
                fault(&mut Rig::acceptor(), &bytes),
                ErrorCode::UNEXPECTED_MESSAGE
            );
        }
    }
}

/// Spec: CORE-53
#[test]
fn a_stop_is_answered_by_a_reset_and_nothing_else() {
    let peer = Limits {
        stream_window: 64 * 1024,
        ..GENEROUS
    };
    let mut client = Rig::client_with(SessionConfig::client(), peer);
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing(""), Shape::ClientStream)
        .unwrap();
    client
        .session
        .send(now, call, outgoing(vec![0; 100_000]))
        .unwrap();
    client.sent();
    client
        .feed_on(1, &stop(3, ErrorCode::OUT_OF_RANGE))
        .unwrap();
    assert_eq!(
        client.session.send(now, call, outgoing("x")),
        Err(SendError::Stopped(ErrorCode::OUT_OF_RANGE))
    );
    client.feed(&credit(3, 1 << 30)).unwrap();
    client.session.finish(now, call, None);
    let frames = client.sent();
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert_eq!(
        code_of(&frames, 3, FrameType::RESET),
        Some(ErrorCode::OUT_OF_RANGE)
    );
    // The answer may still come.
    client
        .feed_on(1, &whole(3, &response(1, "anyway")))
        .unwrap();
    assert!(
        matches!(client.session.recv(call), Some(Received::Element(message)) if message.payload == "anyway")
    );
}

/// Spec: CORE-54
#[test]
fn who_did_not_open_a_stream_sends_no_stop_after_its_own_end() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let incoming = rig.incoming();
    let now = rig.at();
    rig.session.finish(now, incoming.call, None);
    let frames = rig.sent();
    let kinds: Vec<FrameType> = frames.iter().map(|(_, frame)| frame.body.kind()).collect();
    assert_eq!(kinds, [FrameType::STOP, FrameType::MESSAGE], "before it");
    let mut frames = Vec::new();
    for _ in 0..50 {
        rig.feed(&whole(3, &element(1, vec![0; 5_000]))).unwrap();
        // Credit comes back as fast as it is used.
        frames.extend(rig.sent());
    }
    assert_eq!(count(&frames, 3, FrameType::STOP), 0, "and never after it");
    rig.feed(&whole(3, &stream_end(1))).unwrap();
    rig.sent();
    assert_eq!(rig.session.occupancy(), Occupancy::default());
    // The opener takes the ID into use again at once.
    rig.feed(&whole(3, &closed_request(2))).unwrap();
    rig.incoming();
    assert_eq!(count(&rig.sent(), 3, FrameType::STOP), 0);
}

/// Spec: CORE-55
#[test]
fn a_stop_or_reset_that_crosses_the_end_is_ignored() {
    let mut client = Rig::client();
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    client.sent();
    client.feed_on(1, &whole(3, &element(1, "one"))).unwrap();
    client.feed_on(1, &whole(3, &stream_end(1))).unwrap();
    client.feed_on(1, &stop(3, ErrorCode::CANCELLED)).unwrap();
    client.feed_on(1, &reset(3, ErrorCode::CANCELLED)).unwrap();
    client.feed(&reset(33, ErrorCode::CANCELLED)).unwrap();
    client.feed(&stop(34, ErrorCode::CANCELLED)).unwrap();
    assert!(client.sent().is_empty());
    assert!(matches!(
        client.session.recv(call),
        Some(Received::Element(_))
    ));
    assert!(matches!(
        client.session.recv(call),
        Some(Received::End(None))
    ));
}

/// Spec: CORE-56, CORE-60
#[test]
fn what_comes_after_a_stop_is_dropped_and_its_credit_given_back() {
    let mut config = SessionConfig::acceptor();
    config.limits.session_window = 64 * 1024;
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "enough");
    let (mut stream_limit, mut session_limit, mut sent) = (65_536, 65_536, 35);
    for _ in 0..100 {
        let message = element(1, vec![0; 9_000]);
        sent += message.encoded_len() as u64;
        assert!(
            sent <= stream_limit && sent <= session_limit,
            "the sender could not go on"
        );
        // In parts, so that the end has to be found in what is dropped.
        for part in parts(3, &message, 4_000) {
            rig.feed(&part).unwrap();
        }
        for (_, frame) in rig.sent() {
            match (frame.stream.0, frame.body) {
                (0, remus_wire::FrameBody::Credit { limit }) => session_limit = limit,
                (3, remus_wire::FrameBody::Credit { limit }) => stream_limit = limit,
                _ => {}
            }
        }
        assert_eq!(rig.session.occupancy().unread_bytes, 0);
    }
    for part in parts(3, &stream_end(1), 10) {
        rig.feed(&part).unwrap();
    }
    rig.sent();
    assert_eq!(rig.session.occupancy(), Occupancy::default());
}
