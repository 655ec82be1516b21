//! Streams as the core chapter rules them: who opens one, how it ends, what may be sent, in which order. Spec: core §5, §6.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a test says by panicking what is wrong, and uses some of the shared helpers only"
)]

use bytes::Bytes;
use remus_session::{CallKey, Event, Received, SessionConfig, Shape};
use remus_wire::{ErrorCode, Flags, Frame, FrameBody, FrameType, Limits, Message, MessageType};

#[path = "directed/support.rs"]
mod support;

use support::*;

const KIB: usize = 1024;

/// The smallest window that can be granted, in bytes.
const WINDOW: u32 = 64 * 1024;

/// A peer that grants this session's streams little.
const TIGHT_STREAMS: Limits = Limits {
    stream_window: WINDOW,
    ..GENEROUS
};

/// A peer that grants this session as a whole little.
const TIGHT_SESSION: Limits = Limits {
    session_window: WINDOW,
    ..GENEROUS
};

/// An acceptor that grants the smallest windows.
fn tight_acceptor() -> Rig {
    let mut config = SessionConfig::acceptor();
    config.limits.stream_window = WINDOW;
    config.limits.session_window = WINDOW;
    config.max_stream_window = WINDOW;
    Rig::acceptor_with(config, GENEROUS)
}

fn call(client: &mut Rig, shape: Shape) -> CallKey {
    let now = client.at();
    client.session.call(now, outgoing(""), shape).unwrap()
}

/// Bytes of messages that leave on a stream.
fn carried(frames: &[(u16, Frame)], stream: u16) -> usize {
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

/// The highest limit granted for a stream, or for the session.
fn granted(frames: &[(u16, Frame)], stream: u16) -> Option<u64> {
    frames
        .iter()
        .filter(|(_, frame)| frame.stream.0 == stream)
        .filter_map(|(_, frame)| match frame.body {
            FrameBody::Credit { limit } => Some(limit),
            _ => None,
        })
        .max()
}

fn received(rig: &mut Rig, call: CallKey) -> Vec<Received> {
    std::iter::from_fn(|| rig.session.recv(call)).collect()
}

/// Spec: CORE-47
#[test]
fn each_side_opens_streams_of_its_own_parity() {
    for (mut rig, theirs, ours) in [(Rig::acceptor(), 3, 4), (Rig::client(), 4, 3)] {
        rig.feed(&whole(theirs, &closed_request(1))).unwrap();
        rig.incoming();
        let code = fault(&mut rig, &whole(ours, &closed_request(2)));
        assert_eq!(code, ErrorCode::STREAM_STATE);
    }
}

/// An ID that was used is closed to the other side again, and open to its owner.
///
/// Spec: CORE-47
#[test]
fn a_stream_that_has_ended_is_only_opened_again() {
    let mut client = Rig::client();
    let now = client.at();
    client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    let lane = client.sent()[0].0;
    client
        .feed_on(lane, &whole(3, &error(1, ErrorCode::ABORTED)))
        .unwrap();
    let code = fault_on(&mut client, lane, &whole(3, &element(1, "late")));
    assert_eq!(code, ErrorCode::STREAM_STATE);

    let mut acceptor = Rig::acceptor();
    for id in 1..4 {
        acceptor.feed(&whole(3, &closed_request(id))).unwrap();
        let incoming = acceptor.incoming();
        acceptor.respond(incoming.call, "");
        acceptor.sent();
    }
}

/// Spec: CORE-48
#[test]
fn a_stream_above_the_granted_ones_is_refused_alone() {
    let mut config = SessionConfig::acceptor();
    config.limits.max_streams = 10;
    config.limits.session_window = WINDOW;
    config.limits.stream_window = WINDOW;
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    rig.feed(&whole(21, &closed_request(1))).unwrap();
    rig.incoming();
    let before = rig.session.occupancy();
    let mut limit = 0;
    for id in 2..12 {
        let refused = flagged(
            MessageType::REQUEST,
            id,
            Flags::STREAM_END,
            vec![0; 10 * KIB],
        );
        rig.feed(&whole(23, &refused)).unwrap();
        let frames = rig.sent();
        for kind in [FrameType::STOP, FrameType::RESET] {
            assert_eq!(
                code_of(&frames, 23, kind),
                Some(ErrorCode::TOO_MANY_STREAMS)
            );
        }
        assert_eq!(granted(&frames, 23), None);
        limit = limit.max(granted(&frames, 0).unwrap_or(0));
    }
    assert!(rig.events.is_empty(), "nothing was handed out");
    assert_eq!(rig.session.occupancy(), before, "nothing was kept");
    assert!(
        limit > WINDOW.into(),
        "what was dropped is granted again: {limit}"
    );
}

/// Spec: CORE-49
#[test]
fn a_stream_is_opened_by_a_request_or_an_answer() {
    for wrong in [
        element(1, "x"),
        stream_end(1),
        flagged(MessageType::STREAM, 1, Flags::STREAM_END, "x"),
    ] {
        let code = fault(&mut Rig::acceptor(), &whole(3, &wrong));
        assert_eq!(code, ErrorCode::UNEXPECTED_MESSAGE);
    }
    let mut client = Rig::client();
    let now = client.at();
    for (stream, id) in [(4, 1), (6, 2)] {
        let call = client
            .session
            .call(now, outgoing("x"), Shape::Unary)
            .unwrap();
        client.sent();
        let answer = if id == 1 {
            flagged(MessageType::RESPONSE, id, Flags::STREAM_END, "answer")
        } else {
            let plain = error(id, ErrorCode::NOT_FOUND);
            flagged(MessageType::ERROR, id, Flags::STREAM_END, plain.payload)
        };
        client.feed(&whole(stream, &answer)).unwrap();
        assert_eq!(client.answer(call).unwrap().is_ok(), id == 1);
    }
}

/// Spec: CORE-50
#[test]
fn nothing_follows_the_end_of_a_direction() {
    let late = element(1, "late");
    let [part, last] = <[Vec<u8>; 2]>::try_from(parts(3, &late, 36)).unwrap();
    let end = [
        whole(3, &stream_end(1)),
        whole(3, &flagged(MessageType::STREAM, 1, Flags::STREAM_END, "x")),
        reset(3, ErrorCode::ABORTED),
    ];
    for ending in &end {
        for after in [&whole(3, &late), &part, &last] {
            let mut client = Rig::client();
            call(&mut client, Shape::TwoWay);
            let lane = client.sent()[0].0;
            client.feed_on(lane, ending).unwrap();
            assert_eq!(client.session.occupancy().open_streams, 1, "ours is open");
            assert_eq!(fault_on(&mut client, lane, after), ErrorCode::STREAM_STATE);
        }
    }
    let mut acceptor = Rig::acceptor();
    acceptor.feed(&whole(3, &closed_request(1))).unwrap();
    let code = fault(&mut acceptor, &whole(3, &late));
    assert_eq!(code, ErrorCode::STREAM_STATE);
}

/// Spec: CORE-51
#[test]
fn offsets_and_credit_outlive_a_use() {
    // What this side grants.
    let mut rig = tight_acceptor();
    let mut offset = 0;
    let mut limit = u64::from(WINDOW);
    for id in 1..20 {
        let request = flagged(
            MessageType::REQUEST,
            id,
            Flags::STREAM_END,
            vec![0; 10 * KIB],
        );
        offset += bytes_of(&request).len() as u64;
        assert!(offset <= limit, "the peer may go on");
        rig.feed(&whole(3, &request)).unwrap();
        let incoming = rig.incoming();
        rig.respond(incoming.call, "");
        if let Some(more) = granted(&rig.sent(), 3) {
            assert!(more > limit);
            assert_eq!(more, offset + u64::from(WINDOW));
            limit = more;
        }
    }
    // What this side is granted.
    let mut client = Rig::client_with(SessionConfig::client(), TIGHT_STREAMS);
    let now = client.at();
    let mut sent = 0;
    for id in 1..=3 {
        client
            .session
            .call(now, outgoing(vec![0; 30 * KIB]), Shape::Unary)
            .unwrap();
        let frames = client.sent();
        sent += carried(&frames, 3);
        if id < 3 {
            let lane = frames[0].0;
            client.feed_on(lane, &whole(3, &response(id, ""))).unwrap();
        }
    }
    assert_eq!(sent, 64 * KIB, "the third use has what the others left");
}

/// Spec: CORE-52
#[test]
fn the_streams_that_are_always_there_have_no_end() {
    for stream in 0..=2 {
        for frame in [reset(stream, ErrorCode::OK), stop(stream, ErrorCode::OK)] {
            for mut rig in [Rig::acceptor(), Rig::client()] {
                assert_eq!(fault(&mut rig, &frame), ErrorCode::UNEXPECTED_MESSAGE);
            }
        }
    }
}

/// Spec: CORE-53
#[test]
fn stop_ends_a_direction_by_reset_and_drops_what_waits() {
    let mut client = Rig::client_with(SessionConfig::client(), TIGHT_STREAMS);
    let now = client.at();
    let key = call(&mut client, Shape::TwoWay);
    client
        .session
        .send(now, key, outgoing(vec![0; 100 * KIB]))
        .unwrap();
    assert_eq!(carried(&client.sent(), 3), 64 * KIB, "the rest waits");
    client.feed(&stop(3, ErrorCode::ABORTED)).unwrap();
    client.feed(&credit(3, 1 << 20)).unwrap();
    let frames = client.sent();
    assert_eq!(count(&frames, 3, FrameType::RESET), 1);
    assert_eq!(carried(&frames, 3), 0);
    assert!(client.session.send(now, key, outgoing("more")).is_err());
    client.feed(&stop(3, ErrorCode::ABORTED)).unwrap();
    assert_eq!(
        count(&client.sent(), 3, FrameType::RESET),
        0,
        "it has ended"
    );

    // A direction that has ended by a message gets no RESET.
    let mut ended = Rig::client();
    let now = ended.at();
    ended
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    ended.sent();
    ended.feed(&stop(3, ErrorCode::ABORTED)).unwrap();
    assert_eq!(count(&ended.sent(), 3, FrameType::RESET), 0);
}

/// Spec: CORE-54
#[test]
fn who_did_not_open_a_stream_does_not_stop_it_after_its_own_end() {
    let mut rig = Rig::acceptor();
    let now = rig.at();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "enough");
    let frames = rig.sent();
    assert_eq!(count(&frames, 3, FrameType::STOP), 1, "before its end");
    rig.session.cancel(now, incoming.call, ErrorCode::CANCELLED);
    rig.session.release(now, incoming.call);
    rig.feed(&whole(3, &element(1, "late"))).unwrap();
    for part in parts(3, &element(1, vec![0; 30 * KIB]), 10 * KIB) {
        rig.feed(&part).unwrap();
    }
    let frames = rig.sent();
    assert_eq!(count(&frames, 3, FrameType::STOP), 0);
    assert_eq!(count(&frames, 3, FrameType::RESET), 0);
    assert!(rig.events.is_empty(), "what still comes is dropped");
    // The ID's next use is untouched by the last.
    rig.feed(&whole(3, &stream_end(1))).unwrap();
    rig.feed(&whole(3, &open_request(2))).unwrap();
    rig.incoming();
    assert_eq!(count(&rig.sent(), 3, FrameType::STOP), 0);
}

/// Spec: CORE-55
#[test]
fn reset_and_stop_that_crossed_the_end_are_ignored() {
    let mut rig = Rig::acceptor();
    for stream in [3, 4, 101, 102] {
        rig.feed(&reset(stream, ErrorCode::ABORTED)).unwrap();
        rig.feed(&stop(stream, ErrorCode::ABORTED)).unwrap();
    }
    assert!(rig.sent().is_empty() && rig.events.is_empty());
    // A direction that has ended: the call goes on.
    rig.feed(&whole(3, &closed_request(1))).unwrap();
    let incoming = rig.incoming();
    rig.feed(&reset(3, ErrorCode::ABORTED)).unwrap();
    assert_eq!(rig.cancelled(incoming.call), None);
    rig.respond(incoming.call, "answer");
    assert_eq!(rig.sent_messages()[0].1.payload, "answer");
    // A stream that is not in use any more.
    rig.feed(&reset(3, ErrorCode::ABORTED)).unwrap();
    rig.feed(&stop(3, ErrorCode::ABORTED)).unwrap();
    assert!(rig.sent().is_empty() && rig.events.is_empty());

    // STOP for a direction that has ended, of a call that is open: its answer is still taken.
    let mut client = Rig::client();
    let now = client.at();
    let key = client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    let lane = client.sent()[0].0;
    client.feed(&stop(3, ErrorCode::ABORTED)).unwrap();
    client
        .feed_on(lane, &whole(3, &element(1, "still")))
        .unwrap();
    assert!(
        matches!(&received(&mut client, key)[..], [Received::Element(m)] if m.payload == "still")
    );
}

/// Spec: CORE-56
#[test]
fn what_comes_after_stop_is_counted_and_granted_again() {
    let mut rig = tight_acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "enough");
    assert_eq!(count(&rig.sent(), 3, FrameType::STOP), 1);
    let late = whole(3, &element(1, vec![0; 10 * KIB]));
    let (mut stream_limit, mut session_limit) = (0, 0);
    for _ in 0..20 {
        rig.feed(&late).unwrap();
        let frames = rig.sent();
        stream_limit = stream_limit.max(granted(&frames, 3).unwrap_or(0));
        session_limit = session_limit.max(granted(&frames, 0).unwrap_or(0));
    }
    assert!(rig.events.is_empty(), "dropped");
    assert!(stream_limit >= 200 * KIB as u64 && session_limit >= 200 * KIB as u64);
    // Counted: without news of more credit, a peer that goes on breaks the limit.
    let code = (0..20).find_map(|_| rig.feed(&late).err());
    assert_eq!(code.unwrap().code(), ErrorCode::FLOW_CONTROL);
}

/// Spec: CORE-58
#[test]
fn credit_only_ever_rises() {
    for (peer, stream) in [(TIGHT_STREAMS, 3), (TIGHT_SESSION, 0)] {
        let mut client = Rig::client_with(SessionConfig::client(), peer);
        let now = client.at();
        let key = call(&mut client, Shape::TwoWay);
        client
            .session
            .send(now, key, outgoing(vec![0; 200 * KIB]))
            .unwrap();
        let mut sent = carried(&client.sent(), 3);
        assert_eq!(sent, 64 * KIB, "where the limit begins");
        for (limit, reached) in [
            (0, 64 * KIB),
            (64 * KIB, 64 * KIB),
            (70_000, 70_000),
            (66_000, 70_000),
            (70_001, 70_001),
        ] {
            client.feed(&credit(stream, limit as u64)).unwrap();
            sent += carried(&client.sent(), 3);
            assert_eq!(sent, reached, "CREDIT {limit} on stream {stream}");
        }
    }
    let mut config = SessionConfig::acceptor();
    config.limits.max_streams = 10;
    // The peer's 64 streams are the more.
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    rig.feed(&credit(130, 1 << 20)).unwrap();
    let code = fault(&mut rig, &credit(131, 1 << 20));
    assert_eq!(code, ErrorCode::STREAM_STATE);
}

/// Spec: CORE-59
#[test]
fn shared_streams_pass_a_session_without_credit() {
    let mut client = Rig::client_with(
        SessionConfig::client(),
        Limits {
            stream_window: WINDOW,
            ..TIGHT_SESSION
        },
    );
    let now = client.at();
    let key = call(&mut client, Shape::TwoWay);
    client
        .session
        .send(now, key, outgoing(vec![0; 100 * KIB]))
        .unwrap();
    assert_eq!(carried(&client.sent(), 3), 64 * KIB);
    for _ in 0..6 {
        client
            .session
            .call(now, outgoing(vec![0; 15 * KIB]), Shape::Unary)
            .unwrap();
    }
    let sent = carried(&client.sent(), 1);
    assert_eq!(sent, 64 * KIB, "as much as the stream's own credit allows");
    client.feed(&query(77)).unwrap();
    assert!(carried(&client.sent(), 0) > 0, "control is answered");

    // In the other direction: elements that nobody takes use the session's window up.
    let mut rig = tight_acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    rig.incoming();
    let full = 64 * KIB - 35;
    for part in parts(3, &element(1, vec![0; full - 35]), 60 * KIB) {
        rig.feed(&part).unwrap();
    }
    // No more than that of a new limit is known to the peer, and the shared stream goes on.
    for id in 2..5 {
        let small = message(MessageType::REQUEST, id, vec![0; 15 * KIB]);
        rig.feed(&whole(1, &small)).unwrap();
        rig.incoming();
    }
    rig.feed(&query(78)).unwrap();
    // The session's window was full indeed.
    let code = fault(&mut rig, &whole(5, &closed_request(9)));
    assert_eq!(code, ErrorCode::FLOW_CONTROL);
}

/// Spec: CORE-62
#[test]
fn parts_keep_together_and_to_their_length() {
    let request = request(1);
    let [part, last] = <[Vec<u8>; 2]>::try_from(parts(1, &request, 36)).unwrap();
    let too_long = [part.clone(), frame(1, FrameBody::Last(vec![0; 9].into()))].concat();
    let too_short = [part.clone(), frame(1, FrameBody::Last(vec![0; 1].into()))].concat();
    let nested = [part.clone(), whole(1, &support::request(2))].concat();
    let bytes = Bytes::from_static(b"x");
    for (name, input, code) in [
        ("nested", nested, ErrorCode::MALFORMED),
        ("too long", too_long, ErrorCode::MALFORMED),
        ("too short", too_short, ErrorCode::MALFORMED),
        ("LAST alone", last.clone(), ErrorCode::UNEXPECTED_MESSAGE),
        (
            "PART of control",
            frame(0, FrameBody::Part(bytes.clone())),
            ErrorCode::UNEXPECTED_MESSAGE,
        ),
        (
            "LAST of control",
            frame(0, FrameBody::Last(bytes)),
            ErrorCode::UNEXPECTED_MESSAGE,
        ),
    ] {
        assert_eq!(fault(&mut Rig::acceptor(), &input), code, "{name}");
    }
    // Other streams, and frames that are no message, may come in between.
    let mut rig = Rig::acceptor();
    rig.feed(&part).unwrap();
    rig.feed(&whole(3, &closed_request(2))).unwrap();
    rig.feed(&credit(1, 1 << 31)).unwrap();
    rig.feed(&last).unwrap();
    assert_eq!(rig.incoming().message.request_id.0, 2);
    assert_eq!(rig.incoming().message.payload, request.payload);
}

/// Spec: CORE-63
#[test]
fn a_message_arrives_whole_whatever_the_windows() {
    let large = flagged(
        MessageType::REQUEST,
        1,
        Flags::STREAM_END,
        vec![3; 1024 * KIB],
    );
    let bytes = bytes_of(&large);
    for stream in [1, 3] {
        let mut rig = tight_acceptor();
        let header = frame(stream, FrameBody::Part(bytes.slice(..35)));
        rig.feed(&header).unwrap();
        let frames = rig.sent();
        let enough = u64::from(WINDOW) + bytes.len() as u64;
        assert!(granted(&frames, stream).unwrap() >= enough);
        if stream == 3 {
            assert!(granted(&frames, 0).unwrap() >= enough);
        }
        for part in bytes.slice(35..).chunks(60 * KIB) {
            let part = frame(stream, FrameBody::Part(Bytes::copy_from_slice(part)));
            rig.feed(&part).unwrap();
        }
        let last = frame(stream, FrameBody::Last(Bytes::new()));
        rig.feed(&last).unwrap();
        assert_eq!(rig.incoming().message.payload, large.payload);
    }
}

/// An acceptor or client that holds 4 MiB of half-received messages.
fn bounded(mut config: SessionConfig) -> SessionConfig {
    config.max_assembly_bytes = 4 * 1024 * KIB;
    config
}

/// The first part of a message of 3 MiB: two of them are too much.
fn half(stream: u16, message: Message) -> Vec<u8> {
    let payload = vec![0; 3 * 1024 * KIB].into();
    let whole = Message { payload, ..message };
    parts(stream, &whole, 1024).swap_remove(0)
}

/// Spec: CORE-64
#[test]
fn too_much_that_is_half_received_costs_its_stream_alone() {
    let mut rig = Rig::acceptor_with(bounded(SessionConfig::acceptor()), GENEROUS);
    rig.feed(&half(3, closed_request(1))).unwrap();
    assert_eq!(count(&rig.sent(), 3, FrameType::STOP), 0);
    rig.feed(&half(5, closed_request(2))).unwrap();
    rig.feed(&half(1, request(3))).unwrap();
    let frames = rig.sent();
    for kind in [FrameType::STOP, FrameType::RESET] {
        assert_eq!(code_of(&frames, 5, kind), Some(ErrorCode::QUEUE_FULL));
        assert_eq!(count(&frames, 3, kind) + count(&frames, 1, kind), 0);
    }
    assert!(!rig.session.state().is_closed());

    // What is not a request: its call ran, and ends.
    let mut client = Rig::client_with(bounded(SessionConfig::client()), GENEROUS);
    let [first, second] = [Shape::TwoWay, Shape::TwoWay].map(|shape| call(&mut client, shape));
    let frames = client.sent();
    for (stream, id) in [(3, 1), (5, 2)] {
        let lane = frames.iter().find(|(_, frame)| frame.stream.0 == stream);
        client
            .feed_on(lane.unwrap().0, &half(stream, element(id, "")))
            .unwrap();
    }
    assert!(received(&mut client, first).is_empty());
    assert!(matches!(
        &received(&mut client, second)[..],
        [Received::End(Some(error))] if error.code == ErrorCode::RESOURCE_EXHAUSTED
    ));
    assert!(!client.session.state().is_closed());
}

/// Spec: CORE-65
#[test]
fn elements_are_handed_out_in_the_order_sent() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let key = rig.incoming().call;
    for n in 0..60_u8 {
        let element = element(1, vec![n; 1 + usize::from(n % 5) * 300]);
        if n % 3 == 0 {
            for part in parts(3, &element, 30) {
                rig.feed(&part).unwrap();
            }
        } else {
            rig.feed(&whole(3, &element)).unwrap();
        }
    }
    rig.feed(&whole(3, &stream_end(1))).unwrap();
    assert!(matches!(rig.events.front(), Some(Event::Readable(k)) if *k == key));
    let mut taken = received(&mut rig, key);
    assert!(matches!(taken.pop(), Some(Received::End(None))));
    let order: Vec<u8> = taken
        .iter()
        .map(|received| match received {
            Received::Element(message) => message.payload[0],
            Received::End(_) => panic!("an end before the last element"),
        })
        .collect();
    assert_eq!(order, (0..60).collect::<Vec<u8>>());
}

/// Spec: CORE-66
#[test]
fn messages_of_one_class_stay_in_order_on_a_shared_stream() {
    let mut client = Rig::client();
    let now = client.at();
    for n in 0..60_u8 {
        client
            .session
            .call(now, of_class(n % 3, vec![n; 1000]), Shape::Unary)
            .unwrap();
    }
    let sent = client.sent_messages();
    assert_eq!(sent.len(), 60);
    for class in 0..3 {
        let order: Vec<u8> = sent
            .iter()
            .filter(|(stream, message)| *stream == 1 && message.priority.class() == class)
            .map(|(_, message)| message.payload[0])
            .collect();
        assert_eq!(order, (class..60).step_by(3).collect::<Vec<u8>>());
    }
}
