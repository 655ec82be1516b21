//! How sessions end. Spec: core §9, §10.

use std::time::Duration;

use bytes::BytesMut;
use remus_session::{CallError, Event, Received, SessionConfig, Shape, State};
use remus_wire::{ErrorCode, Handshake, MessageType, RequestId, Shutdown, Text};

use crate::support::*;

fn shutdown(last: u32, grace: Duration) -> Vec<u8> {
    let record = Shutdown {
        code: ErrorCode::OK,
        grace,
        last_request: RequestId(last),
        reason: Text::from_static("maintenance"),
        redirect: Text::new(),
    };
    let mut payload = BytesMut::new();
    record.encode(&mut payload);
    whole(0, &message(MessageType::SHUTDOWN, 0, payload.freeze()))
}

fn announce(rig: &mut Rig, grace: Duration) {
    let now = rig.at();
    rig.session.shut_down(
        now,
        ErrorCode::OK,
        "maintenance",
        "remus://elsewhere",
        grace,
    );
    rig.take_events();
}

const GRACE: Duration = Duration::from_secs(5);

/// Spec: CORE-78, CORE-79, CORE-80, CORE-81
#[test]
fn accepted_calls_finish_and_later_ones_are_refused() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(1, &request(4))).unwrap();
    rig.feed(&whole(3, &open_request(5))).unwrap();
    let [unary, streaming] = [rig.incoming(), rig.incoming()];
    announce(&mut rig, GRACE);
    let sent = rig.sent_messages();
    let record = Shutdown::decode(sent[0].1.payload.clone()).unwrap();
    assert_eq!((record.last_request.0, record.grace), (5, GRACE));
    assert_eq!(&*record.redirect, "remus://elsewhere");
    let now = rig.at();
    assert_eq!(
        rig.session.call(now, outgoing(""), Shape::Unary),
        Err(CallError::ShuttingDown)
    );

    rig.feed(&whole(1, &request(6))).unwrap();
    rig.feed(&whole(5, &closed_request(3))).unwrap();
    let refused = [
        (1, 6, ErrorCode::SHUTTING_DOWN),
        (5, 3, ErrorCode::SHUTTING_DOWN),
    ];
    assert_eq!(
        rig.sent_errors(),
        refused,
        "also an earlier ID that had not begun"
    );

    rig.feed(&whole(3, &element(5, "still flows"))).unwrap();
    assert!(matches!(
        rig.session.recv(streaming.call),
        Some(Received::Element(_))
    ));
    rig.respond(unary.call, "done");
    assert!(rig.closed().is_none());
    rig.respond(streaming.call, "done");
    assert!(rig.closed().is_none(), "the answers have not left");
    rig.sent();
    let closed = rig.closed().unwrap();
    assert!(closed.code == ErrorCode::OK && !closed.by_peer);
}

/// Spec: CORE-78, CORE-79
#[test]
fn calls_that_the_peer_did_not_take_on_may_be_tried_elsewhere() {
    let mut client = Rig::client();
    let now = client.at();
    let accepted = client
        .session
        .call(now, outgoing("1"), Shape::Unary)
        .unwrap();
    let unary = client
        .session
        .call(now, outgoing("2"), Shape::Unary)
        .unwrap();
    let streaming = client
        .session
        .call(now, outgoing("3"), Shape::ServerStream)
        .unwrap();
    client.sent();
    client.feed(&shutdown(1, GRACE)).unwrap();
    assert_eq!(client.session.state(), State::GracefulShutdown);
    assert_eq!(client.failure(unary), Some(ErrorCode::SHUTTING_DOWN));
    let Some(Received::End(Some(record))) = client.session.recv(streaming) else {
        panic!("it ends")
    };
    assert_eq!(record.code, ErrorCode::SHUTTING_DOWN);
    assert!(record.code.is_refusal());
    assert!(
        client
            .events
            .iter()
            .any(|event| matches!(event, Event::ShuttingDown(_)))
    );
    assert_eq!(
        client.session.call(now, outgoing(""), Shape::Unary),
        Err(CallError::ShuttingDown)
    );
    client.feed(&whole(1, &response(1, "in time"))).unwrap();
    assert_eq!(client.answer(accepted).unwrap().unwrap().payload, "in time");
    client.sent();
    assert!(client.closed().is_none(), "the announcer closes");
    client.session.carrier_lost(ErrorCode::OK, "maintenance");
    client.take_events();
    assert!(client.closed().unwrap().by_peer);

    let mut client = Rig::client();
    let none = client
        .session
        .call(now, outgoing("1"), Shape::Unary)
        .unwrap();
    client.feed(&shutdown(0, GRACE)).unwrap();
    assert_eq!(
        client.failure(none),
        Some(ErrorCode::SHUTTING_DOWN),
        "0 is none"
    );
}

/// Spec: CORE-80
#[test]
fn requests_of_who_announces_its_end_are_still_taken_on() {
    let mut rig = Rig::acceptor();
    rig.feed(&shutdown(0, GRACE)).unwrap();
    rig.feed_on(3, &whole(7, &closed_request(9))).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "yes");
    assert_eq!(rig.sent_messages()[0].1.kind, MessageType::RESPONSE);
}

/// Spec: CORE-81
#[test]
fn a_grace_that_is_over_ends_the_session_on_both_sides() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(1, &request(1))).unwrap();
    let incoming = rig.incoming();
    announce(&mut rig, GRACE);
    rig.sent();
    rig.wait(5 * SECOND - 1);
    assert!(rig.closed().is_none());
    rig.wait(1);
    assert_eq!(rig.closed().unwrap().code, ErrorCode::OK);
    assert_eq!(
        rig.cancelled(incoming.call),
        Some(ErrorCode::LOSS_OF_SESSION)
    );

    let mut client = Rig::client();
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing(""), Shape::Unary)
        .unwrap();
    client.feed(&shutdown(1, GRACE)).unwrap();
    client.wait(5 * SECOND);
    assert_eq!(
        client.failure(call),
        Some(ErrorCode::LOSS_OF_SESSION),
        "it may have run"
    );
}

/// Spec: CORE-81
#[test]
fn a_session_with_nothing_open_ends_when_its_announcement_has_left() {
    let mut duo = Duo::new(SessionConfig::client(), SessionConfig::acceptor());
    announce(&mut duo.acceptor, GRACE);
    assert!(duo.acceptor.closed().is_none());
    pour(&mut duo.acceptor, &mut duo.client);
    assert_eq!(duo.acceptor.closed().unwrap().code, ErrorCode::OK);
    assert!(duo.client.closed().is_none());
    duo.client.wait(5 * SECOND);
    assert!(duo.client.closed().unwrap().by_peer);
}

/// Spec: CORE-82
#[test]
fn before_it_is_active_a_session_is_refused_or_waits_for_its_early_calls() {
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    acceptor.feed(&offer()).unwrap();
    announce(&mut acceptor, GRACE);
    let sent = acceptor.sent_messages();
    let Handshake::Refused(record) =
        Handshake::decode(sent.last().unwrap().1.payload.clone()).unwrap()
    else {
        panic!("{sent:?}")
    };
    assert_eq!(record.code, ErrorCode::SHUTTING_DOWN);
    assert_eq!(acceptor.closed().unwrap().code, ErrorCode::OK);

    let mut client = Rig::fresh_client(SessionConfig::client());
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing("early"), Shape::Unary)
        .unwrap();
    client
        .feed(&handshake(&Handshake::Refused(record)))
        .unwrap();
    assert_eq!(
        client.failure(call),
        Some(ErrorCode::SHUTTING_DOWN),
        "it did not run"
    );

    let mut idle = Rig::fresh_client(SessionConfig::client());
    announce(&mut idle, GRACE);
    assert_eq!(idle.closed().unwrap().code, ErrorCode::OK);

    let mut client = Rig::fresh_client(SessionConfig::client());
    let call = client
        .session
        .call(now, outgoing("early"), Shape::Unary)
        .unwrap();
    announce(&mut client, GRACE);
    assert!(client.closed().is_none());
    client.sent();
    for answer in first_answers(GENEROUS) {
        client.feed(&answer).unwrap();
    }
    let sent = client.sent_messages();
    assert!(matches!(sent.as_slice(), [(0, message)] if message.kind == MessageType::SHUTDOWN));
    client.feed(&whole(1, &response(1, "done"))).unwrap();
    assert_eq!(client.answer(call).unwrap().unwrap().payload, "done");
    assert_eq!(client.closed().unwrap().code, ErrorCode::OK);
}

/// Spec: CORE-84
#[test]
fn what_open_calls_fail_with() {
    let codes = [
        (ErrorCode::OK, ErrorCode::LOSS_OF_SESSION),
        (ErrorCode::UNAVAILABLE, ErrorCode::LOSS_OF_SESSION),
        (ErrorCode::IDLE_TIMEOUT, ErrorCode::LOSS_OF_SESSION),
        (ErrorCode::SHUTTING_DOWN, ErrorCode::LOSS_OF_SESSION),
        (ErrorCode::QUEUE_FULL, ErrorCode::LOSS_OF_SESSION),
        (ErrorCode::UNAUTHENTICATED, ErrorCode::UNAUTHENTICATED),
        (ErrorCode::FLOW_CONTROL, ErrorCode::FLOW_CONTROL),
    ];
    for (ended, failed) in codes {
        let mut duo = Duo::new(SessionConfig::client(), SessionConfig::acceptor());
        let now = duo.client.at();
        let unary = duo
            .client
            .session
            .call(now, outgoing("x"), Shape::Unary)
            .unwrap();
        let streaming = duo
            .client
            .session
            .call(now, outgoing("x"), Shape::ServerStream)
            .unwrap();
        duo.exchange();
        let [first, second] = [duo.acceptor.incoming(), duo.acceptor.incoming()];
        duo.acceptor.session.abort(ended, "because");
        duo.acceptor.take_events();
        for call in [first.call, second.call] {
            assert_eq!(duo.acceptor.cancelled(call), Some(failed));
        }
        duo.client.session.carrier_lost(ended, "because");
        duo.client.take_events();
        assert_eq!(duo.client.failure(unary), Some(failed));
        let Some(Received::End(Some(record))) = duo.client.session.recv(streaming) else {
            panic!("it ends")
        };
        assert_eq!(record.code, failed);
        assert!(
            matches!(duo.client.events.back(), Some(Event::Closed(reason)) if reason.by_peer),
            "the last event"
        );
        duo.client.session.release(now, streaming);
        assert_eq!(duo.client.session.occupancy().calls, 0);
        assert_eq!(
            duo.client.session.call(now, outgoing(""), Shape::Unary),
            Err(CallError::Closed)
        );
        assert!(duo.client.session.poll_timeout().is_none());
    }
}

/// Spec: CORE-83
#[test]
fn nothing_follows_the_end() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(1, &request(1))).unwrap();
    let incoming = rig.incoming();
    fault(&mut rig, &[0; 64]);
    rig.events.clear();
    let now = rig.at();
    rig.respond(incoming.call, "x");
    rig.session.probe(now);
    rig.session.shut_down(now, ErrorCode::OK, "", "", GRACE);
    rig.session.abort(ErrorCode::INTERNAL, "");
    rig.feed(&whole(1, &request(2))).unwrap();
    rig.wait(100 * SECOND);
    assert!(rig.events.is_empty());
    assert!(rig.sent().is_empty());
}
