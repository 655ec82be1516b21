//! Bytes that are no valid frames or messages: each ends the session, with a code of its own. Spec: core §10.

use bytes::Bytes;
use remus_session::{Event, LaneId, SessionConfig};
use remus_wire::{Context, ErrorCode, Flags, FrameBody, Message, MessageType, Routing};

use crate::support::*;

/// Spec: CORE-83, WIRE-9, WIRE-12, WIRE-14, WIRE-15, WIRE-23, WIRE-24
#[test]
fn each_kind_of_broken_bytes_has_its_code() {
    let lying = |at: usize, value: u32| {
        let mut bytes = bytes_of(&request(1)).to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        frame(1, FrameBody::Message(bytes.into()))
    };
    let mut routing = Routing::new();
    routing.set_affinity(&[7; 9_000]).unwrap();
    let large_routing = Message {
        routing,
        ..request(1)
    };
    let mut context = Context::new();
    for _ in 0..3 {
        context.add_custom("k", &[0; 30_000]).unwrap();
    }
    let large_context = Message {
        context,
        ..request(1)
    };
    let huge = message(MessageType::REQUEST, 1, vec![0; 5 << 20]);
    let first_part = frame(3, FrameBody::Part(bytes_of(&huge).slice(..1_000)));

    let cases = [
        ("a zeroed buffer", vec![0; 4096], ErrorCode::UNKNOWN_FRAME),
        (
            "an unknown frame type",
            raw_frame(1, 0x7fff, b"x"),
            ErrorCode::UNKNOWN_FRAME,
        ),
        (
            "a frame that is too long",
            vec![0, 1, 0, 1, 0, 1, 0, 1],
            ErrorCode::FRAME_TOO_LARGE,
        ),
        (
            "a CREDIT of 7 bytes",
            raw_frame(1, 4, &[0; 7]),
            ErrorCode::MALFORMED,
        ),
        ("an empty PART", raw_frame(1, 2, b""), ErrorCode::MALFORMED),
        (
            "an empty message",
            raw_frame(1, 1, b""),
            ErrorCode::MALFORMED,
        ),
        (
            "a total length that is too short",
            lying(0, 37),
            ErrorCode::MALFORMED,
        ),
        (
            "a total length that is too long",
            lying(0, 39),
            ErrorCode::MALFORMED,
        ),
        (
            "a total length beyond the limit",
            lying(0, 5 << 20),
            ErrorCode::MESSAGE_TOO_LARGE,
        ),
        (
            "a routing length beyond the message",
            lying(23, 100),
            ErrorCode::MALFORMED,
        ),
        (
            "a payload length beyond the message",
            lying(31, 4),
            ErrorCode::MALFORMED,
        ),
        (
            "a payload length within the message",
            lying(31, 2),
            ErrorCode::MALFORMED,
        ),
        (
            "large routing",
            whole(1, &large_routing),
            ErrorCode::ROUTING_TOO_LARGE,
        ),
        (
            "large context",
            parts(1, &large_context, 40_000).concat(),
            ErrorCode::CONTEXT_TOO_LARGE,
        ),
        (
            "the first part of a large message",
            first_part,
            ErrorCode::MESSAGE_TOO_LARGE,
        ),
        (
            "an element with a broken end",
            whole(3, &{
                let mut end = stream_end(1);
                end.payload = Bytes::from_static(b"no error record");
                end
            }),
            ErrorCode::MALFORMED,
        ),
    ];
    for (name, bytes, code) in cases {
        let mut rig = Rig::acceptor_with(wide_windows(), GENEROUS);
        if name.starts_with("an element") {
            rig.feed(&whole(3, &open_request(1))).unwrap();
        }
        assert_eq!(fault(&mut rig, &bytes), code, "{name}");
        let held = rig.session.occupancy();
        assert_eq!(
            (
                held.calls,
                held.requests,
                held.assembling,
                held.queued_bytes
            ),
            (0, 0, 0, 0),
            "{name}"
        );
        // What comes after the end is nobody's business any more.
        rig.feed(&whole(1, &request(2))).unwrap();
        assert!(rig.events.iter().all(
            |event| !matches!(event, Event::Request(incoming) if incoming.message.request_id.0 == 2)
        ));
    }
}

/// Until an acceptor has stated its limit the default holds, whether its own is lower or higher.
///
/// Spec: WIRE-12
#[test]
fn the_frame_limit_holds_from_when_it_is_stated() {
    for (own, taken_after) in [(16_448, 16_448), (1 << 20, 1 << 20)] {
        let mut config = SessionConfig::acceptor();
        config.limits.max_frame = own;
        let frame_of = |len: usize| raw_frame(9, 0x8001, &vec![0; len]);
        let mut fresh = Rig::fresh_acceptor(config.clone());
        fresh.feed(&frame_of(65_536)).unwrap();
        let code = fault(&mut fresh, &frame_of(65_537));
        assert_eq!(code, ErrorCode::FRAME_TOO_LARGE);
        let mut active = Rig::acceptor_with(config, GENEROUS);
        active.feed(&frame_of(taken_after)).unwrap();
        let code = fault(&mut active, &frame_of(taken_after + 1));
        assert_eq!(code, ErrorCode::FRAME_TOO_LARGE);
    }
}

/// Spec: TRANS-37
#[test]
fn a_lane_that_ends_within_a_frame_ends_the_session() {
    let bytes = whole(1, &request(1));
    for cut in 1..bytes.len() {
        let mut rig = Rig::acceptor();
        rig.feed(&bytes[..cut]).unwrap();
        let error = rig.session.handle_lane_end(LaneId::ZERO).unwrap_err();
        rig.take_events();
        assert_eq!(error.code(), ErrorCode::MALFORMED, "cut at {cut}");
        assert_eq!(rig.closed().unwrap().code, ErrorCode::MALFORMED);
    }
    let mut rig = Rig::acceptor();
    rig.feed(&bytes).unwrap();
    rig.session.handle_lane_end(LaneId::ZERO).unwrap();
}

/// Spec: TRANS-38
#[test]
fn a_lane_that_ends_between_frames_takes_its_streams_with_it() {
    let mut rig = Rig::acceptor();
    rig.feed_on(1, &whole(3, &open_request(1))).unwrap();
    rig.feed_on(1, &whole(5, &closed_request(2))).unwrap();
    rig.feed_on(2, &whole(7, &open_request(3))).unwrap();
    let [cut, whole_one, other] = [rig.incoming(), rig.incoming(), rig.incoming()];
    rig.session.handle_lane_end(LaneId(1)).unwrap();
    rig.take_events();
    assert_eq!(rig.cancelled(cut.call), Some(ErrorCode::LOSS_OF_SESSION));
    assert_eq!(rig.cancelled(whole_one.call), None, "all of it is here");
    assert_eq!(rig.cancelled(other.call), None);
    assert!(rig.closed().is_none());
}

/// Spec: TRANS-29, TRANS-33, CORE-83
#[test]
fn frames_on_the_wrong_lane_end_the_session() {
    let mut rig = Rig::acceptor();
    assert_eq!(
        fault_on(&mut rig, 1, &query(1)),
        ErrorCode::STREAM_STATE,
        "control"
    );
    let mut rig = Rig::acceptor();
    assert_eq!(
        fault_on(&mut rig, 1, &whole(1, &request(1))),
        ErrorCode::STREAM_STATE,
        "shared"
    );

    let mut rig = Rig::acceptor();
    rig.feed_on(1, &whole(3, &open_request(1))).unwrap();
    let code = fault_on(&mut rig, 2, &whole(3, &element(1, "x")));
    assert_eq!(code, ErrorCode::STREAM_STATE, "one direction on two lanes");

    let mut rig = Rig::acceptor();
    rig.feed_on(1, &whole(3, &closed_request(1))).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "done");
    rig.sent();
    let code = fault_on(&mut rig, 2, &whole(3, &closed_request(2)));
    assert_eq!(
        code,
        ErrorCode::STREAM_STATE,
        "also when the ID is used again"
    );

    let mut rig = Rig::acceptor();
    let code = fault_on(&mut rig, 16, &whole(3, &closed_request(1)));
    assert_eq!(code, ErrorCode::STREAM_STATE, "there are sixteen lanes");
}

/// Spec: WIRE-16, CORE-76
#[test]
fn ignorable_frames_are_skipped() {
    let mut rig = Rig::acceptor();
    for kind in [0x8000, 0x9abc, 0xffff] {
        rig.feed(&raw_frame(40_000, kind, b"whatever")).unwrap();
    }
    rig.feed(&whole(1, &request(1))).unwrap();
    rig.incoming();
}

/// Spec: CORE-83
#[test]
fn what_was_not_offered_ends_the_session() {
    let reference = frame(
        3,
        FrameBody::Reference {
            region: 1,
            offset: 2,
            len: 3,
        },
    );
    assert_eq!(
        fault(&mut Rig::acceptor(), &reference),
        ErrorCode::UNIMPLEMENTED
    );
}

/// Spec: CORE-42, CORE-40
#[test]
fn compression_that_nobody_agreed_on_is_refused() {
    let mut rig = Rig::acceptor();
    let packed = |kind, id| flagged(kind, id, Flags::COMPRESSED, "zzz");
    rig.feed(&whole(1, &packed(MessageType::REQUEST, 1)))
        .unwrap();
    assert_eq!(
        rig.sent_errors(),
        [(1, 1, ErrorCode::UNIMPLEMENTED)],
        "a request alone"
    );
    rig.feed(&whole(3, &open_request(2))).unwrap();
    assert_eq!(
        fault(&mut rig, &whole(3, &packed(MessageType::STREAM, 2))),
        ErrorCode::UNIMPLEMENTED
    );

    let mut client = Rig::client_with(SessionConfig::client(), GENEROUS);
    let now = client.at();
    client
        .session
        .call(now, outgoing("x"), remus_session::Shape::Unary)
        .unwrap();
    let code = fault(&mut client, &whole(1, &packed(MessageType::RESPONSE, 1)));
    assert_eq!(code, ErrorCode::UNIMPLEMENTED);
}

/// The same bytes in a datagram cost nothing but the datagram.
///
/// Spec: CORE-73, CORE-83, TRANS-42, TRANS-43
#[test]
fn broken_datagrams_are_dropped() {
    let mut rig = Rig::acceptor();
    let mut twice = whole(0, &request(1));
    twice.extend(whole(0, &request(2)));
    let broken = [
        vec![0; 100],
        vec![0xff; 100],
        whole(1, &request(1)),
        whole(0, &request(1)),
        query(1),
        authenticate(),
        twice,
        control(MessageType::HEARTBEAT, 1, |out| {
            out.extend_from_slice(b"short")
        }),
    ];
    for bytes in broken {
        let now = rig.at();
        rig.session.handle_datagram(now, Bytes::from(bytes));
        rig.take_events();
        assert!(rig.events.is_empty() && rig.session.check().is_ok());
    }
    assert!(rig.sent().is_empty());
}
