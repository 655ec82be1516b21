//! A session that loses its carrier and goes on with another one: core §3.5.

use std::collections::VecDeque;

use bytes::Bytes;
use remus_session::{
    CarrierInfo, Event, Grant, LANES_MAX, LaneId, Peeked, ResumeRequest, SessionConfig, Shape,
    State, peek_resume,
};
use remus_wire::{ErrorCode, ResumeToken};

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
    let mut duo = Duo {
        client: Rig::fresh_client(SessionConfig::client().with_resumption(true)),
        acceptor: Rig::fresh_acceptor(SessionConfig::acceptor().with_resumption(true)),
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
fn request(client: &mut Rig, carrier: CarrierInfo) -> ResumeRequest {
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
    let asked = request(&mut duo.client, carrier);
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
