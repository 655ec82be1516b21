//! Calls: their shapes, IDs, answers, cancels, refusals, batches. Spec: core §4.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use remus_session::{
    Answer, CallError, Event, Incoming, Outgoing, Received, SendError, SessionConfig, Shape,
};
use remus_wire::{
    Batch, Context, ErrorCode, ErrorRecord, Flags, FrameType, Limits, Message, MessageType,
    Priority, StreamEnd, Ttl,
};

use crate::support::*;

fn element_payloads(rig: &mut Rig, call: remus_session::CallKey) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    while let Some(received) = rig.session.recv(call) {
        match received {
            Received::Element(message) => payloads.push(message.payload),
            Received::End(None) => payloads.push(Bytes::from_static(b"END")),
            Received::End(Some(error)) => payloads.push(Bytes::from(error.code.to_string())),
        }
    }
    payloads
}

/// The four shapes as the wire shows them.
///
/// Spec: CORE-25, CORE-26, CORE-29, CORE-31
#[test]
fn shapes_use_the_message_types_of_the_table() {
    let mut client = Rig::client();
    let now = client.at();
    let mut made = Vec::new();
    for shape in [
        Shape::Unary,
        Shape::ServerStream,
        Shape::ClientStream,
        Shape::TwoWay,
    ] {
        let payload = if shape.request_streams() { "" } else { "ask" };
        made.push(client.session.call(now, outgoing(payload), shape).unwrap());
    }
    client.session.send(now, made[2], outgoing("one")).unwrap();
    client.session.finish(now, made[2], None);
    let enough = ErrorRecord::new(ErrorCode::ABORTED, "enough");
    client.session.finish(now, made[3], Some(enough));
    let mut sent: Vec<_> = client
        .sent_messages()
        .into_iter()
        .map(|(stream, message)| {
            let ends = message.flags.contains(Flags::STREAM_END);
            (
                stream,
                message.kind,
                message.request_id.0,
                ends,
                message.payload.len(),
            )
        })
        .collect();
    sent.sort_by_key(|(stream, ..)| *stream);
    let error_len = 16 + 6;
    assert_eq!(
        sent,
        [
            (1, MessageType::REQUEST, 1, false, 3),
            (3, MessageType::REQUEST, 2, true, 3),
            (5, MessageType::REQUEST, 3, false, 0),
            (5, MessageType::STREAM, 3, false, 3),
            (5, MessageType::STREAM_END, 3, true, 0),
            (7, MessageType::REQUEST, 4, false, 0),
            (7, MessageType::STREAM_END, 4, true, error_len),
        ]
    );
    let wrong = client.session.call(now, outgoing("data"), Shape::TwoWay);
    assert_eq!(wrong, Err(CallError::UnexpectedPayload));

    // And as they are answered, by lane of the stream.
    client.feed(&whole(1, &response(1, "unary"))).unwrap();
    client.feed_on(1, &whole(3, &element(2, "a"))).unwrap();
    client
        .feed_on(
            1,
            &whole(3, &flagged(MessageType::STREAM, 2, Flags::STREAM_END, "b")),
        )
        .unwrap();
    client.feed_on(2, &whole(5, &response(3, "sum"))).unwrap();
    client.feed_on(3, &whole(7, &element(4, "c"))).unwrap();
    client
        .feed_on(3, &whole(7, &error(4, ErrorCode::DATA_LOSS)))
        .unwrap();
    assert_eq!(client.answer(made[0]).unwrap().unwrap().payload, "unary");
    assert_eq!(element_payloads(&mut client, made[1]), ["a", "b", "END"]);
    assert_eq!(element_payloads(&mut client, made[2]), ["sum", "END"]);
    assert_eq!(element_payloads(&mut client, made[3]), ["c", "DATA_LOSS"]);
}

/// Spec: CORE-25
#[test]
fn a_request_that_streams_has_no_payload() {
    let wrong = message(MessageType::REQUEST, 1, "data");
    assert_eq!(
        fault(&mut Rig::acceptor(), &whole(3, &wrong)),
        ErrorCode::UNEXPECTED_MESSAGE
    );
    // One that said that nothing follows has ended its direction.
    let mut rig = Rig::acceptor();
    rig.feed(&whole(3, &closed_request(1))).unwrap();
    assert_eq!(
        fault(&mut rig, &whole(3, &element(1, "data"))),
        ErrorCode::STREAM_STATE
    );
}

/// Spec: CORE-26
#[test]
fn an_answered_call_is_over() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(1, &request(1))).unwrap();
    let incoming = rig.incoming();
    assert!(incoming.answered && incoming.ended && !incoming.owns_stream);
    rig.respond(incoming.call, "one");
    rig.respond(incoming.call, "two");
    rig.session
        .release(remus_wire::Timestamp(START), incoming.call);
    assert_eq!(rig.sent_messages().len(), 1);
    let now = rig.at();
    assert_eq!(
        rig.session.send(now, incoming.call, outgoing("x")),
        Err(SendError::Closed)
    );
}

/// A handler that ends without an answer, or with one that no error record can say, does not leave its caller waiting.
///
/// Spec: CORE-26
#[test]
fn what_no_answer_can_say_is_said_otherwise() {
    let mut rig = Rig::acceptor();
    for id in 1..=3 {
        rig.feed(&whole(1, &request(id))).unwrap();
    }
    let now = rig.at();
    let [dropped, ok, wordy] = [rig.incoming(), rig.incoming(), rig.incoming()];
    rig.session.release(now, dropped.call);
    rig.session.respond(
        now,
        ok.call,
        Answer::Error(ErrorRecord::new(ErrorCode::OK, "fine")),
    );
    let mut record = ErrorRecord::new(ErrorCode::NOT_FOUND, "x".repeat(5 << 20));
    record.details = vec![remus_wire::Version::spoken(&[remus_wire::Version::CURRENT]); 100];
    rig.session.respond(now, wordy.call, Answer::Error(record));
    let codes = [
        (1, 1, ErrorCode::INTERNAL),
        (1, 2, ErrorCode::UNKNOWN),
        (1, 3, ErrorCode::NOT_FOUND),
    ];
    assert_eq!(rig.sent_errors(), codes);
}

/// Spec: CORE-27
#[test]
fn request_ids_rise_over_all_streams() {
    let mut client = Rig::client();
    let now = client.at();
    let mut last = 0;
    for n in 0..50 {
        let shape = if n % 3 == 0 {
            Shape::ServerStream
        } else {
            Shape::Unary
        };
        let call = client.session.call(now, outgoing("x"), shape).unwrap();
        let id = client.sent_messages()[0].1.request_id.0;
        assert!(id > last, "IDs rise");
        last = id;
        client.session.cancel(now, call, ErrorCode::CANCELLED);
        client.sent();
    }
}

/// Spec: CORE-28
#[test]
fn a_request_id_that_is_in_use_ends_the_session() {
    let prepared = || {
        let mut rig = Rig::acceptor();
        rig.feed(&whole(1, &request(7))).unwrap();
        rig
    };
    let mut open = prepared();
    assert_eq!(
        fault(&mut open, &whole(1, &request(7))),
        ErrorCode::DUPLICATE_REQUEST
    );
    let mut on_its_own = prepared();
    let code = fault(&mut on_its_own, &whole(3, &closed_request(7)));
    assert_eq!(code, ErrorCode::DUPLICATE_REQUEST);

    let mut waiting = congested();
    waiting.feed(&whole(1, &request(7))).unwrap();
    assert_eq!(
        fault(&mut waiting, &whole(1, &request(7))),
        ErrorCode::DUPLICATE_REQUEST
    );

    let mut answered = prepared();
    let incoming = answered.incoming();
    answered.respond(incoming.call, "");
    answered.feed(&whole(1, &request(7))).unwrap();
    answered.incoming();
}

/// An acceptor that hands out no more requests, because its answers are not read.
fn congested() -> Rig {
    let mut config = SessionConfig::acceptor();
    config.max_queued_bytes = 64 * 1024;
    let peer = Limits {
        stream_window: 64 * 1024,
        ..GENEROUS
    };
    let mut rig = Rig::acceptor_with(config, peer);
    for id in 1_000_000.. {
        if rig.session.is_congested() {
            break;
        }
        rig.feed(&whole(1, &request(id))).unwrap();
        let incoming = rig.incoming();
        rig.respond(incoming.call, vec![0; 15_000]);
        rig.sent();
    }
    rig
}

/// Spec: CORE-30
#[test]
fn request_id_zero_is_never_answered() {
    let mut rig = Rig::acceptor();
    let mut refused = request(0);
    refused.flags = Flags::REQUIRES_CONSENSUS;
    let mut spent = request(0);
    spent.ttl = Ttl::SPENT;
    for message in [request(0), request(0), refused, spent] {
        rig.feed(&whole(1, &message)).unwrap();
    }
    for _ in 0..2 {
        let incoming = rig.incoming();
        assert!(!incoming.answered);
        rig.respond(incoming.call, "nobody hears this");
    }
    assert!(rig.events.is_empty(), "the others were dropped");
    assert!(rig.sent_messages().is_empty());
    assert_eq!(rig.session.statistics().requests_dropped, 2);
    assert_eq!(rig.session.occupancy().calls, 0);
}

/// Spec: CORE-32, CORE-34
#[test]
fn unary_calls_of_any_size_are_taken_on_either_kind_of_stream() {
    let large: Bytes = vec![7; 100_000].into();
    let mut rig = Rig::acceptor_with(wide_windows(), GENEROUS);
    let on_shared = message(MessageType::REQUEST, 1, large.clone());
    for part in parts(1, &on_shared, 60_000) {
        rig.feed(&part).unwrap();
    }
    assert_eq!(rig.incoming().message.payload, large);
    rig.feed(&whole(3, &closed_request(2))).unwrap();
    let small = rig.incoming();
    assert!(small.owns_stream && small.ended && small.answered);

    // The same from this side: what is large has a stream of its own.
    let mut client = Rig::client();
    let now = client.at();
    client
        .session
        .call(now, outgoing(vec![0; 16 * 1024 - 35]), Shape::Unary)
        .unwrap();
    client
        .session
        .call(now, outgoing(vec![0; 16 * 1024 - 34]), Shape::Unary)
        .unwrap();
    let streams: Vec<u16> = client
        .sent_messages()
        .iter()
        .map(|(stream, _)| *stream)
        .collect();
    assert_eq!(streams, [1, 3]);
}

/// Spec: CORE-33
#[test]
fn messages_that_do_not_belong_on_their_stream_end_the_session() {
    let request_of_peer = whole(1, &request(1));
    for (name, bytes) in [
        ("an element on a shared stream", whole(1, &element(1, "x"))),
        ("an end on a shared stream", whole(1, &stream_end(1))),
        (
            "a Response on the caller's shared stream",
            whole(1, &response(1, "x")),
        ),
        ("a request on ours", whole(2, &request(1))),
        (
            "control on a shared stream",
            whole(1, &message(MessageType::SHUTDOWN, 0, Bytes::new())),
        ),
        (
            "an unknown type",
            whole(1, &message(MessageType(0x77), 0, Bytes::new())),
        ),
        (
            "a second request on an own stream",
            [whole(3, &open_request(2)), whole(3, &open_request(3))].concat(),
        ),
        (
            "a Response from the caller",
            [whole(3, &open_request(2)), whole(3, &response(2, "x"))].concat(),
        ),
        (
            "an Announce",
            whole(3, &message(MessageType::ANNOUNCE, 0, Bytes::new())),
        ),
    ] {
        let mut rig = Rig::acceptor();
        rig.feed(&request_of_peer).unwrap();
        assert_eq!(
            fault(&mut rig, &bytes),
            ErrorCode::UNEXPECTED_MESSAGE,
            "{name}"
        );
    }
}

/// The caller takes a large answer from the answerer's stream, and ends the other direction; then the ID is free.
///
/// Spec: CORE-34
#[test]
fn a_large_answer_has_a_stream_of_its_own() {
    let mut duo = Duo::new(SessionConfig::client(), SessionConfig::acceptor());
    let now = duo.client.at();
    let large: Bytes = vec![9; 300_000].into();
    for _ in 0..3 {
        let call = duo
            .client
            .session
            .call(now, outgoing("ask"), Shape::Unary)
            .unwrap();
        pour(&mut duo.client, &mut duo.acceptor);
        let incoming = duo.acceptor.incoming();
        duo.acceptor.respond(incoming.call, large.clone());
        while duo.client.answer(call).is_none() {
            let frames = duo.acceptor.sent();
            let mut messages = frames.iter().filter(|(_, frame)| {
                matches!(
                    frame.body.kind(),
                    FrameType::MESSAGE | FrameType::PART | FrameType::LAST
                )
            });
            assert!(
                messages.all(|(_, frame)| frame.stream.0 == 4),
                "the same ID each time"
            );
            for (lane, frame) in &frames {
                let mut bytes = Vec::new();
                frame.encode(&mut bytes);
                duo.client.feed_on(*lane, &bytes).unwrap();
            }
            if let Some(answer) = duo.client.answer(call) {
                assert_eq!(answer.unwrap().payload, large);
                break;
            }
            pour(&mut duo.client, &mut duo.acceptor);
        }
        assert_eq!(
            duo.acceptor.session.occupancy().open_streams,
            1,
            "until the caller ends its direction"
        );
        let ending = duo.client.sent();
        assert_eq!(code_of(&ending, 4, FrameType::RESET), Some(ErrorCode::OK));
        duo.acceptor.feed(&reset(4, ErrorCode::OK)).unwrap();
        for (lane, frame) in ending
            .iter()
            .filter(|(_, frame)| frame.body.kind() == FrameType::CREDIT)
        {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            duo.acceptor.feed_on(*lane, &bytes).unwrap();
        }
        assert_eq!(duo.acceptor.session.occupancy().open_streams, 0);
    }

    // A caller that grants no streams gets it in parts on the shared one.
    let none = Limits {
        max_streams: 0,
        ..GENEROUS
    };
    let mut rig = Rig::acceptor_with(SessionConfig::acceptor(), none);
    rig.feed(&whole(1, &request(1))).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, large.clone());
    let sent = rig.sent_messages();
    assert_eq!((sent[0].0, sent[0].1.payload.len()), (1, large.len()));
}

/// Spec: CORE-35, CORE-53
#[test]
fn an_early_answer_stops_what_still_comes() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    rig.feed(&whole(3, &element(1, "one"))).unwrap();
    let incoming = rig.incoming();
    assert!(!incoming.ended);
    rig.respond(incoming.call, "enough");
    let frames = rig.sent();
    let kinds: Vec<FrameType> = frames
        .iter()
        .filter(|(_, frame)| frame.stream.0 == 3)
        .map(|(_, frame)| frame.body.kind())
        .collect();
    assert_eq!(
        kinds,
        [FrameType::STOP, FrameType::MESSAGE],
        "before the end of this direction"
    );
    assert_eq!(code_of(&frames, 3, FrameType::STOP), Some(ErrorCode::OK));
    rig.feed(&whole(3, &element(1, "two"))).unwrap();
    assert_eq!(rig.session.occupancy().open_streams, 1);
    rig.feed(&reset(3, ErrorCode::OK)).unwrap();
    assert_eq!(rig.session.occupancy(), remus_session::Occupancy::default());

    // A caller whose elements end instead is as good.
    rig.feed(&whole(3, &open_request(2))).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "enough");
    rig.feed(&whole(3, &element(2, "one"))).unwrap();
    rig.feed(&whole(3, &stream_end(2))).unwrap();
    rig.sent();
    assert_eq!(rig.session.occupancy(), remus_session::Occupancy::default());
}

/// Spec: CORE-36, CORE-37
#[test]
fn an_answer_that_crosses_a_cancel_is_ignored() {
    let mut client = Rig::client();
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing("x"), Shape::Unary)
        .unwrap();
    client.session.cancel(now, call, ErrorCode::CANCELLED);
    let sent = client.sent_messages();
    let order: Vec<_> = sent
        .iter()
        .map(|(stream, message)| (*stream, message.kind, message.request_id.0))
        .collect();
    assert_eq!(
        order,
        [(1, MessageType::REQUEST, 1), (1, MessageType::ERROR, 1)]
    );
    let record = ErrorRecord::decode(sent[1].1.payload.clone()).unwrap();
    assert_eq!(record.code, ErrorCode::CANCELLED);
    client.feed(&whole(1, &response(1, "late"))).unwrap();
    client.feed(&whole(1, &response(1, "again"))).unwrap();
    client
        .feed(&whole(
            4,
            &flagged(MessageType::RESPONSE, 1, Flags::STREAM_END, "large"),
        ))
        .unwrap();
    assert!(client.events.is_empty());
    client.sent();
    assert_eq!(
        client.session.occupancy(),
        remus_session::Occupancy::default()
    );
}

/// An answer that has arrived, but not been taken, is taken back by a cancel; the next call is not mistaken for the old one.
///
/// Spec: CORE-36
#[test]
fn an_answer_that_waits_does_not_survive_a_cancel() {
    let mut client = Rig::client();
    let now = client.at();
    let old = client
        .session
        .call(now, outgoing("x"), Shape::Unary)
        .unwrap();
    let mut input = Bytes::from(whole(1, &response(1, "old")));
    client
        .session
        .handle_input(now, remus_session::LaneId::ZERO, &mut input)
        .unwrap();
    client.session.cancel(now, old, ErrorCode::CANCELLED);
    let new = client
        .session
        .call(now, outgoing("y"), Shape::Unary)
        .unwrap();
    client.take_events();
    assert!(client.events.is_empty());
    client.feed(&whole(1, &response(2, "new"))).unwrap();
    assert_eq!(client.answer(new).unwrap().unwrap().payload, "new");
}

/// A cancel of a low class does not wait behind, nor overtake, its own request.
///
/// Spec: CORE-37, CORE-66
#[test]
fn a_cancel_does_not_overtake_its_request() {
    let peer = Limits {
        stream_window: 64 * 1024,
        ..GENEROUS
    };
    let mut client = Rig::client_with(SessionConfig::client(), peer);
    let now = client.at();
    for _ in 0..8 {
        client
            .session
            .call(now, outgoing(vec![0; 15_000]), Shape::Unary)
            .unwrap();
    }
    let low = client
        .session
        .call(now, of_class(0, "low"), Shape::Unary)
        .unwrap();
    client.session.cancel(now, low, ErrorCode::CANCELLED);
    client
        .session
        .call(now, of_class(7, "high"), Shape::Unary)
        .unwrap();
    let mut frames = client.sent();
    client.feed(&credit(1, 1 << 20)).unwrap();
    frames.extend(client.sent());
    let kinds: Vec<(u8, u8)> = frames
        .iter()
        .filter(|(_, frame)| frame.stream.0 == 1)
        .filter_map(|(_, frame)| match &frame.body {
            remus_wire::FrameBody::Message(bytes) => {
                let message = Message::decode(bytes.clone(), &ANY).unwrap();
                Some((message.kind.0, message.priority.class()))
            }
            _ => None,
        })
        .collect();
    let place = |wanted| kinds.iter().position(|kind| *kind == wanted).unwrap();
    assert!(place((0x10, 0)) < place((0x12, 0)), "{kinds:?}");
    assert!(
        place((0x10, 7)) < place((0x10, 0)),
        "the urgent one goes first: {kinds:?}"
    );
}

/// Spec: CORE-38
#[test]
fn a_cancelled_request_stops_wherever_it_is() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(1, &request(1))).unwrap();
    let incoming = rig.incoming();
    rig.feed(&whole(1, &error(1, ErrorCode::CANCELLED)))
        .unwrap();
    assert_eq!(rig.cancelled(incoming.call), Some(ErrorCode::CANCELLED));
    rig.respond(incoming.call, "too late");
    rig.feed(&whole(1, &error(1, ErrorCode::CANCELLED)))
        .unwrap();
    rig.feed(&whole(1, &error(99, ErrorCode::CANCELLED)))
        .unwrap();
    assert!(rig.sent_messages().is_empty());

    // One that still waits is never handed out, and an open one is stopped at once, though others wait before the cancel.
    let mut rig = congested();
    rig.feed(&whole(1, &request(1))).unwrap();
    rig.feed(&whole(1, &request(2))).unwrap();
    rig.feed(&whole(1, &error(1, ErrorCode::CANCELLED)))
        .unwrap();
    assert_eq!(rig.session.occupancy().requests, 2);
    rig.feed(&credit(1, 1 << 30)).unwrap();
    rig.sent();
    assert_eq!(rig.incoming().message.request_id.0, 2);
    assert!(
        !rig.events
            .iter()
            .any(|event| matches!(event, Event::Request(_) | Event::Cancelled(..)))
    );
    assert_eq!(rig.session.occupancy().peer_ids, 1);
}

/// Spec: CORE-38
#[test]
fn a_cancel_reaches_a_handler_while_answers_wait() {
    let mut config = SessionConfig::acceptor();
    config.max_queued_bytes = 64 * 1024;
    let peer = Limits {
        stream_window: 64 * 1024,
        ..GENEROUS
    };
    let mut rig = Rig::acceptor_with(config, peer);
    for id in 1..=12 {
        rig.feed(&whole(1, &request(id))).unwrap();
    }
    let handlers: Vec<Incoming> = (0..12).map(|_| rig.incoming()).collect();
    for incoming in &handlers[..11] {
        rig.respond(incoming.call, vec![0; 15_000]);
        rig.sent();
    }
    assert!(rig.session.is_congested());
    rig.feed(&whole(1, &error(12, ErrorCode::CANCELLED)))
        .unwrap();
    assert_eq!(rig.cancelled(handlers[11].call), Some(ErrorCode::CANCELLED));
}

/// Spec: CORE-37, CORE-38, CORE-39
#[test]
fn a_call_with_its_own_stream_is_given_up_by_stop_or_reset() {
    let cancels: [(&str, Vec<Vec<u8>>); 3] = [
        (
            "STOP and RESET",
            vec![
                stop(3, ErrorCode::CANCELLED),
                reset(3, ErrorCode::CANCELLED),
            ],
        ),
        ("RESET", vec![reset(3, ErrorCode::ABORTED)]),
        (
            "STOP, then the rest",
            vec![
                stop(3, ErrorCode::CANCELLED),
                whole(3, &element(1, "x")),
                whole(3, &stream_end(1)),
            ],
        ),
    ];
    for (name, frames) in cancels {
        let mut rig = Rig::acceptor();
        rig.feed(&whole(3, &open_request(1))).unwrap();
        let incoming = rig.incoming();
        let now = rig.at();
        rig.session
            .send(now, incoming.call, outgoing("partial"))
            .unwrap();
        for frame in frames {
            rig.feed(&frame).unwrap();
        }
        assert!(rig.cancelled(incoming.call).is_some(), "{name}");
        assert_eq!(
            count(&rig.sent(), 3, FrameType::RESET),
            1,
            "{name}: this direction ends"
        );
        assert_eq!(
            rig.session.occupancy(),
            remus_session::Occupancy::default(),
            "{name}"
        );
        assert!(rig.session.recv(incoming.call).is_none());
    }
    // From this side.
    let mut client = Rig::client();
    let now = client.at();
    let whole_request = client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    let open = client
        .session
        .call(now, outgoing(""), Shape::TwoWay)
        .unwrap();
    client.sent();
    client
        .session
        .cancel(now, whole_request, ErrorCode::CANCELLED);
    client
        .session
        .cancel(now, open, ErrorCode::DEADLINE_EXCEEDED);
    let frames = client.sent();
    assert_eq!(
        (
            count(&frames, 3, FrameType::STOP),
            count(&frames, 3, FrameType::RESET)
        ),
        (1, 0)
    );
    assert_eq!(
        (
            count(&frames, 5, FrameType::STOP),
            count(&frames, 5, FrameType::RESET)
        ),
        (1, 1)
    );
    assert_eq!(
        code_of(&frames, 5, FrameType::RESET),
        Some(ErrorCode::DEADLINE_EXCEEDED)
    );
}

/// Spec: CORE-39
#[test]
fn a_request_that_never_became_whole_is_ended_on_both_sides() {
    let large = flagged(MessageType::REQUEST, 1, Flags::STREAM_END, vec![0; 50_000]);
    for ending in [
        reset(3, ErrorCode::CANCELLED),
        stop(3, ErrorCode::CANCELLED),
    ] {
        let mut rig = Rig::acceptor();
        rig.feed(&parts(3, &large, 10_000)[0]).unwrap();
        rig.feed(&ending).unwrap();
        assert_eq!(count(&rig.sent(), 3, FrameType::RESET), 1);
        if ending[3] == 6 {
            rig.feed(&reset(3, ErrorCode::CANCELLED)).unwrap();
        }
        assert_eq!(rig.session.occupancy(), remus_session::Occupancy::default());
        assert!(rig.events.is_empty());
    }
}

/// A call that is given up before anything of it has left is never heard of, and its stream ID is free at once.
///
/// Spec: CORE-37
#[test]
fn a_call_that_never_left_leaves_no_trace() {
    let dry = Limits {
        stream_window: 64 * 1024,
        session_window: 64 * 1024,
        ..GENEROUS
    };
    let mut client = Rig::client_with(SessionConfig::client(), dry);
    let now = client.at();
    client
        .session
        .call(now, outgoing(vec![0; 70_000]), Shape::Unary)
        .unwrap();
    client.sent();
    let unsent = client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    assert_eq!(client.session.occupancy().open_streams, 2);
    client.session.cancel(now, unsent, ErrorCode::CANCELLED);
    assert_eq!(client.session.occupancy().open_streams, 1);
    assert!(client.sent().is_empty());
}

/// A streaming call that is over no longer owns its stream: releasing it does not touch who uses the ID now.
///
/// Spec: CORE-51
#[test]
fn releasing_a_finished_call_leaves_the_next_use_of_its_stream_alone() {
    let mut duo = Duo::new(SessionConfig::client(), SessionConfig::acceptor());
    let now = duo.client.at();
    let old = duo
        .client
        .session
        .call(now, outgoing("x"), Shape::ServerStream)
        .unwrap();
    duo.exchange();
    let incoming = duo.acceptor.incoming();
    duo.acceptor.session.finish(now, incoming.call, None);
    duo.exchange();
    let new = duo
        .client
        .session
        .call(now, outgoing(""), Shape::TwoWay)
        .unwrap();
    duo.client.session.finish(now, old, None);
    duo.client.session.release(now, old);
    duo.exchange();
    let incoming = duo.acceptor.incoming();
    assert_eq!(duo.acceptor.cancelled(incoming.call), None);
    duo.client
        .session
        .send(now, new, outgoing("still there"))
        .unwrap();
    duo.exchange();
    assert_eq!(
        element_payloads(&mut duo.acceptor, incoming.call),
        ["still there"]
    );
}

/// Spec: CORE-40, CORE-41
#[test]
fn requests_are_refused_each_with_its_code() {
    let mut config = SessionConfig::acceptor();
    config.limits.max_calls = 64;
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    let mut consensus = request(1);
    consensus.flags = Flags::REQUIRES_CONSENSUS;
    let mut spent = request(2);
    spent.ttl = Ttl::SPENT;
    rig.feed(&whole(1, &consensus)).unwrap();
    rig.feed(&whole(1, &spent)).unwrap();
    let codes = [
        (1, 1, ErrorCode::UNIMPLEMENTED),
        (1, 2, ErrorCode::DEADLINE_EXCEEDED),
    ];
    assert_eq!(rig.sent_errors(), codes);

    for id in 10..74 {
        rig.feed(&whole(1, &request(id))).unwrap();
        rig.incoming();
    }
    rig.feed(&whole(1, &request(74))).unwrap();
    rig.feed(&whole(3, &open_request(75))).unwrap();
    let codes = [
        (1, 74, ErrorCode::TOO_MANY_CALLS),
        (3, 75, ErrorCode::TOO_MANY_CALLS),
    ];
    assert_eq!(rig.sent_errors(), codes);
    assert!(rig.events.is_empty(), "nothing of them ran");
    assert_eq!(rig.session.open_peer_calls(), 64);
    rig.feed(&whole(1, &error(10, ErrorCode::CANCELLED)))
        .unwrap();
    rig.feed(&whole(1, &request(76))).unwrap();
    assert_eq!(
        rig.incoming().message.request_id.0,
        76,
        "there is room again"
    );

    // This side keeps to the peer's limit.
    let mut client = Rig::client_with(
        SessionConfig::client(),
        Limits {
            max_calls: 64,
            ..GENEROUS
        },
    );
    let now = client.at();
    for _ in 0..64 {
        client
            .session
            .call(now, outgoing("x"), Shape::Unary)
            .unwrap();
    }
    let error = client.session.call(now, outgoing("x"), Shape::Unary);
    assert_eq!(error, Err(CallError::TooManyCalls { limit: 64 }));
}

fn batch(id: u32, members: &[Message]) -> Message {
    let mut payload = BytesMut::new();
    Batch {
        messages: members.to_vec(),
    }
    .encode(&mut payload);
    flagged(
        MessageType::REQUEST,
        id,
        Flags::BATCH_REQUEST,
        payload.freeze(),
    )
}

/// Spec: CORE-43, CORE-44
#[test]
fn a_batch_is_answered_as_a_whole_and_in_order() {
    let mut rig = Rig::acceptor();
    let mut refused = request(2);
    refused.flags = Flags::COMPRESSED;
    let mut consensus = request(4);
    consensus.flags = Flags::REQUIRES_CONSENSUS;
    let mut spent = request(5);
    spent.ttl = Ttl::SPENT;
    rig.feed(&whole(
        1,
        &batch(9, &[request(1), refused, request(3), consensus, spent]),
    ))
    .unwrap();
    let [first, third] = [rig.incoming(), rig.incoming()];
    assert!(rig.events.is_empty(), "the others were refused");
    let now = rig.at();
    rig.session.respond(
        now,
        third.call,
        Answer::Error(ErrorRecord::new(ErrorCode::NOT_FOUND, "")),
    );
    assert!(rig.sent_messages().is_empty());
    rig.respond(first.call, "one");
    let sent = rig.sent_messages();
    let (stream, answer) = &sent[0];
    assert_eq!(
        (*stream, answer.kind, answer.request_id.0),
        (1, MessageType::RESPONSE, 9)
    );
    assert!(answer.flags.contains(Flags::BATCH_REQUEST));
    let answers = Batch::decode(answer.payload.clone(), &ANY)
        .unwrap()
        .messages;
    let codes: Vec<_> = answers
        .iter()
        .map(|answer| {
            (
                answer.request_id.0,
                ErrorRecord::decode(answer.payload.clone())
                    .map(|record| record.code)
                    .ok(),
            )
        })
        .collect();
    let expected = [
        (1, None),
        (2, Some(ErrorCode::UNIMPLEMENTED)),
        (3, Some(ErrorCode::NOT_FOUND)),
        (4, Some(ErrorCode::UNIMPLEMENTED)),
        (5, Some(ErrorCode::DEADLINE_EXCEEDED)),
    ];
    assert_eq!(codes, expected);
    assert_eq!(rig.session.occupancy(), remus_session::Occupancy::default());
}

/// Spec: CORE-43
#[test]
fn a_batch_with_a_wrong_number_of_answers_has_failed() {
    let answers = |count: u32, flags: Flags| {
        let messages = (1..=count).map(|id| response(id, "x")).collect();
        let mut payload = BytesMut::new();
        Batch { messages }.encode(&mut payload);
        whole(
            1,
            &flagged(MessageType::RESPONSE, 1, flags, payload.freeze()),
        )
    };
    for (count, flags) in [
        (1, Flags::BATCH_REQUEST),
        (3, Flags::BATCH_REQUEST),
        (2, Flags::NONE),
    ] {
        let mut client = Rig::client();
        let now = client.at();
        let call = client
            .session
            .call_batch(now, vec![outgoing("a"), outgoing("b")], None)
            .unwrap();
        client.feed(&answers(count, flags)).unwrap();
        assert_eq!(client.failure(call), Some(ErrorCode::INTERNAL));
    }
    let mut client = Rig::client();
    let now = client.at();
    client
        .session
        .call_batch(now, vec![outgoing("a"), outgoing("b")], None)
        .unwrap();
    client.feed(&answers(2, Flags::BATCH_REQUEST)).unwrap();
    assert!(
        matches!(client.events.front(), Some(Event::BatchAnswer(_, answers)) if answers.len() == 2)
    );
}

/// Spec: CORE-44
#[test]
fn batches_have_limits() {
    let mut config = SessionConfig::acceptor();
    config.limits.max_calls = 64;
    let mut rig = Rig::acceptor_with(config, GENEROUS);
    let many: Vec<Message> = (1..=65).map(request).collect();
    let nested = batch(1, &[batch(1, &[request(1)])]);
    let element_inside = batch(1, &[request(1), element(2, "x")]);
    let mut cut = batch(1, &[request(1)]);
    cut.payload.truncate(20);
    for (name, message, code) in [
        (
            "more than calls are left",
            batch(1, &many),
            ErrorCode::TOO_MANY_CALLS,
        ),
        ("nothing", batch(1, &[]), ErrorCode::INVALID_ARGUMENT),
        ("an element", element_inside, ErrorCode::INVALID_ARGUMENT),
        ("a batch", nested, ErrorCode::MALFORMED),
        ("half a message", cut, ErrorCode::MALFORMED),
    ] {
        rig.feed(&whole(1, &message)).unwrap();
        assert_eq!(rig.sent_errors(), [(1, 1, code)], "{name}");
        assert!(rig.events.is_empty(), "{name}");
        assert_eq!(rig.session.occupancy().calls, 0, "{name}");
    }
    rig.feed(&whole(1, &batch(1, &many[..64]))).unwrap();
    assert_eq!(rig.session.open_peer_calls(), 64, "each member counts");

    let mut client = Rig::client();
    let now = client.at();
    for requests in [Vec::new(), vec![Outgoing::default(); 1025]] {
        let error = client.session.call_batch(now, requests, None);
        assert_eq!(error, Err(CallError::BadBatch { max: 1024 }));
    }
}

/// Spec: CORE-45, CORE-85
#[test]
fn answers_that_do_not_fit_together_are_replaced_one_by_one() {
    let small = Limits {
        max_message: 64 * 1024,
        ..GENEROUS
    };
    let mut rig = Rig::acceptor_with(SessionConfig::acceptor(), small);
    let members: Vec<Message> = (1..=1024)
        .map(|id| message(MessageType::REQUEST, id, Bytes::new()))
        .collect();
    rig.feed(&whole(1, &batch(1, &members))).unwrap();
    for _ in 0..1024 {
        let incoming = rig.incoming();
        rig.respond(incoming.call, vec![0; 10_000]);
    }
    let sent = rig.sent_messages();
    assert!(sent[0].1.encoded_len() <= 64 * 1024);
    let answers = Batch::decode(sent[0].1.payload.clone(), &ANY)
        .unwrap()
        .messages;
    assert_eq!(answers.len(), 1024);
    assert_eq!(
        answers[0].kind,
        MessageType::RESPONSE,
        "the first still fits"
    );
    let record = ErrorRecord::decode(answers[1023].payload.clone()).unwrap();
    assert_eq!(record.code, ErrorCode::MESSAGE_TOO_LARGE);
}

/// Spec: CORE-46
#[test]
fn a_batch_takes_its_members_with_it() {
    let mut rig = Rig::acceptor();
    let mut short = request(2);
    short.ttl = Ttl::from_duration(Duration::from_millis(10));
    let mut outer = batch(5, &[request(1), short, request(3)]);
    outer.ttl = Ttl::from_duration(Duration::from_millis(50));
    rig.feed(&whole(1, &outer)).unwrap();
    let [first, second, third] = [rig.incoming(), rig.incoming(), rig.incoming()];
    assert_eq!(second.deadline.unwrap().0, START + 10_000);
    assert_eq!(first.deadline.unwrap().0, START + 50_000, "the batch's own");
    rig.wait(20_000);
    assert_eq!(
        rig.cancelled(second.call),
        Some(ErrorCode::DEADLINE_EXCEEDED)
    );
    assert_eq!(rig.cancelled(first.call), None);
    rig.feed(&whole(1, &error(5, ErrorCode::CANCELLED)))
        .unwrap();
    assert_eq!(rig.cancelled(first.call), Some(ErrorCode::CANCELLED));
    assert_eq!(rig.cancelled(third.call), Some(ErrorCode::CANCELLED));
    assert!(rig.sent_messages().is_empty());
    assert_eq!(rig.session.occupancy(), remus_session::Occupancy::default());

    // By its deadline it is answered, and every member too.
    rig.feed(&whole(1, &outer)).unwrap();
    rig.wait(60_000);
    let sent = rig.sent_messages();
    let answers = Batch::decode(sent[0].1.payload.clone(), &ANY)
        .unwrap()
        .messages;
    assert!(
        answers
            .iter()
            .all(|answer| answer.kind == MessageType::ERROR)
    );
    assert_eq!(rig.session.occupancy(), remus_session::Occupancy::default());
}

/// Spec: CORE-85
#[test]
fn an_answer_that_the_caller_does_not_take_is_replaced() {
    let small = Limits {
        max_message: 64 * 1024,
        ..GENEROUS
    };
    let mut config = SessionConfig::acceptor();
    config.max_queued_bytes = 64 * 1024;
    config.max_answer_bytes = 128 * 1024;
    let mut rig = Rig::acceptor_with(config, small);
    let now = rig.at();
    for id in 1..=6 {
        rig.feed(&whole(1, &request(id))).unwrap();
    }
    let handlers: Vec<Incoming> = (0..6).map(|_| rig.incoming()).collect();
    rig.respond(handlers[0].call, vec![0; 65_536]);
    let mut context = Context::new();
    for _ in 0..3 {
        context.add_custom("k", &[0; 30_000]).unwrap();
    }
    let reply = Answer::Reply {
        payload: Bytes::new(),
        context,
        flags: Flags::NONE,
    };
    rig.session.respond(now, handlers[1].call, reply);
    // Nobody reads: what is beyond the bound on answers is not kept.
    for incoming in &handlers[2..] {
        rig.respond(incoming.call, vec![0; 60_000]);
    }
    let queued = rig.session.queued_bytes();
    assert!(queued < 130 * 1024, "{queued}");
    let errors = rig.sent_errors();
    assert_eq!(errors[0], (1, 1, ErrorCode::MESSAGE_TOO_LARGE));
    assert_eq!(
        errors[1],
        (1, 2, ErrorCode::MESSAGE_TOO_LARGE),
        "90 KB are more than 64 KiB first of all"
    );
    assert_eq!(
        errors[2..],
        [
            (1, 5, ErrorCode::RESOURCE_EXHAUSTED),
            (1, 6, ErrorCode::RESOURCE_EXHAUSTED)
        ]
    );

    let mut rig = Rig::acceptor();
    rig.feed(&whole(1, &request(1))).unwrap();
    let incoming = rig.incoming();
    let mut context = Context::new();
    for _ in 0..3 {
        context.add_custom("k", &[0; 30_000]).unwrap();
    }
    let reply = Answer::Reply {
        payload: Bytes::new(),
        context,
        flags: Flags::NONE,
    };
    rig.session.respond(now, incoming.call, reply);
    assert_eq!(rig.sent_errors(), [(1, 1, ErrorCode::CONTEXT_TOO_LARGE)]);
}

/// What the peer would refuse never leaves.
///
/// Spec: CORE-14
#[test]
fn oversized_requests_and_elements_are_refused_here() {
    let mut client = Rig::client_with(
        SessionConfig::client(),
        Limits {
            max_message: 1 << 20,
            ..GENEROUS
        },
    );
    let now = client.at();
    let mut big_context = outgoing("");
    for _ in 0..3 {
        big_context.context.add_custom("k", &[0; 30_000]).unwrap();
    }
    let mut big_routing = outgoing("");
    big_routing.routing.set_affinity(&[0; 9_000]).unwrap();
    let big = outgoing(vec![0; 1 << 20]);
    let unary = |client: &mut Rig, request: &Outgoing| {
        client
            .session
            .call(now, request.clone(), Shape::Unary)
            .unwrap_err()
    };
    assert!(matches!(
        unary(&mut client, &big),
        CallError::MessageTooLarge { .. }
    ));
    assert!(
        matches!(unary(&mut client, &big_context), CallError::ContextTooLarge { len, limit: 65_536 } if len > 90_000)
    );
    assert!(matches!(
        unary(&mut client, &big_routing),
        CallError::RoutingTooLarge { limit: 8_192, .. }
    ));
    let call = client
        .session
        .call(now, outgoing(""), Shape::ClientStream)
        .unwrap();
    let element = |client: &mut Rig, element: &Outgoing| {
        client.session.send(now, call, element.clone()).unwrap_err()
    };
    assert!(matches!(
        element(&mut client, &big),
        SendError::MessageTooLarge { .. }
    ));
    assert!(matches!(
        element(&mut client, &big_context),
        SendError::ContextTooLarge { .. }
    ));
    assert!(matches!(
        element(&mut client, &big_routing),
        SendError::RoutingTooLarge { .. }
    ));
    client.session.finish(
        now,
        call,
        Some(ErrorRecord::new(ErrorCode::OK, "x".repeat(2 << 20))),
    );
    let end = client.sent_messages().pop().unwrap().1;
    let end = StreamEnd::decode(end.payload).unwrap().error.unwrap();
    assert_eq!((end.code, end.message.len()), (ErrorCode::UNKNOWN, 1024));
    assert_eq!(Priority::default().class(), 3);
}
