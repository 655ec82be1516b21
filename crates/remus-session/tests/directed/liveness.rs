//! Clock, deadlines, heartbeats and silence. Spec: core §7, §8.

use std::time::Duration;

use bytes::Bytes;
use remus_session::{Received, SessionConfig, Shape};
use remus_wire::{ErrorCode, Heartbeat, Load, Message, MessageType, Timestamp, Ttl, VersionRecord};

use crate::support::*;

fn heartbeat(id: u32, sent: u64, origin: u64, received: u64) -> Vec<u8> {
    let mut payload = bytes::BytesMut::new();
    let record = Heartbeat {
        origin: Timestamp(origin),
        received: Timestamp(received),
        load: Load(5),
    };
    record.encode(&mut payload);
    let mut beat = message(MessageType::HEARTBEAT, id, payload.freeze());
    beat.timestamp = Timestamp(sent);
    whole(0, &beat)
}

/// The heartbeats among what leaves now: request ID, header timestamp, record.
fn beats(rig: &mut Rig) -> Vec<(u32, u64, Heartbeat)> {
    rig.sent_messages()
        .into_iter()
        .filter(|(_, message)| message.kind == MessageType::HEARTBEAT)
        .map(|(_, message)| {
            let record = Heartbeat::decode(message.payload).unwrap();
            (message.request_id.0, message.timestamp.0, record)
        })
        .collect()
}

/// Spec: CORE-68, CORE-69
#[test]
fn timestamps_follow_what_was_seen() {
    let mut rig = Rig::acceptor();
    let mut ahead = request(1);
    ahead.timestamp = Timestamp(START + 30 * SECOND);
    rig.feed(&whole(1, &ahead)).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "");
    let answer = rig.sent_messages().pop().unwrap().1;
    assert!(
        answer.timestamp > ahead.timestamp,
        "an effect is later than its cause"
    );

    let mut broken = request(2);
    broken.timestamp = Timestamp(u64::MAX);
    rig.feed(&whole(1, &broken)).unwrap();
    let incoming = rig.incoming();
    rig.respond(incoming.call, "");
    let answer = rig.sent_messages().pop().unwrap().1;
    assert!(
        answer.timestamp.0 <= START + 61 * SECOND,
        "one broken clock drags nobody along"
    );
    assert_eq!(rig.session.statistics().timestamps_clamped, 1);
}

/// Spec: CORE-68
#[test]
fn timestamps_follow_control_messages_but_no_heartbeats() {
    const STAMP: std::ops::Range<usize> = 8 + 11..8 + 19;
    let ahead = START + 30 * SECOND;
    let mut rig = Rig::acceptor();
    rig.feed(&heartbeat(0, ahead, 0, 0)).unwrap();
    rig.feed(&query(8)).unwrap();
    let answer = rig.sent_messages().pop().unwrap().1;
    assert!(answer.timestamp.0 < ahead, "a clock that is only compared");

    let mut asked = query(9);
    asked[STAMP].copy_from_slice(&ahead.to_be_bytes());
    rig.feed(&asked).unwrap();
    let answer = rig.sent_messages().pop().unwrap().1;
    assert!(
        answer.timestamp.0 > ahead,
        "an effect is later than its cause"
    );
}

/// Spec: CORE-70
#[test]
fn a_budget_counts_from_arrival() {
    let mut rig = Rig::acceptor();
    let mut timed = request(1);
    timed.timestamp = Timestamp(START - 3_600 * SECOND); // it says nothing about the deadline
    timed.ttl = Ttl::from_duration(Duration::from_millis(500));
    rig.feed(&whole(1, &timed)).unwrap();
    let incoming = rig.incoming();
    assert_eq!(incoming.deadline, Some(Timestamp(START + SECOND / 2)));
    rig.wait(SECOND / 2 - 1);
    assert_eq!(rig.cancelled(incoming.call), None);
    assert_eq!(
        rig.session.poll_timeout(),
        Some(Timestamp(START + SECOND / 2))
    );
    rig.wait(1);
    assert_eq!(
        rig.cancelled(incoming.call),
        Some(ErrorCode::DEADLINE_EXCEEDED),
        "the work stops"
    );
    assert_eq!(
        rig.sent_errors(),
        [(1, 1, ErrorCode::DEADLINE_EXCEEDED)],
        "and the caller hears of it"
    );
    rig.respond(incoming.call, "too late");
    assert!(rig.sent_messages().is_empty());

    let mut spent = request(2);
    spent.ttl = Ttl::SPENT;
    rig.feed(&whole(1, &spent)).unwrap();
    assert_eq!(rig.sent_errors(), [(1, 2, ErrorCode::DEADLINE_EXCEEDED)]);
}

/// The caller's own deadline, on both kinds of stream.
///
/// Spec: CORE-37, CORE-70
#[test]
fn a_caller_gives_up_when_its_time_is_over() {
    let mut client = Rig::client();
    let now = client.at();
    let unary = client.session.call(now, within(100), Shape::Unary).unwrap();
    let streaming = client
        .session
        .call(now, within(100), Shape::ServerStream)
        .unwrap();
    let sent = client.sent_messages();
    assert!(sent.iter().all(|(_, message)| message.ttl == Ttl(100)));
    client
        .feed_on(1, &whole(3, &element(2, "in time")))
        .unwrap();
    client.wait(100_000);
    assert_eq!(client.failure(unary), Some(ErrorCode::DEADLINE_EXCEEDED));
    assert_eq!(
        client.sent_errors(),
        [(1, 1, ErrorCode::DEADLINE_EXCEEDED)],
        "the work behind it stops"
    );
    assert!(
        matches!(client.session.recv(streaming), Some(Received::Element(_))),
        "what had come is there"
    );
    assert!(
        matches!(client.session.recv(streaming), Some(Received::End(Some(error))) if error.code == ErrorCode::DEADLINE_EXCEEDED)
    );
    client.session.release(client.at(), streaming);
    client.events.clear();
    client.feed_on(1, &whole(3, &element(2, "late"))).unwrap();
    client
        .feed_on(1, &reset(3, ErrorCode::DEADLINE_EXCEEDED))
        .unwrap();
    client.feed(&whole(1, &response(1, "late"))).unwrap();
    assert!(client.events.is_empty());
    client.sent();
    assert_eq!(
        client.session.occupancy(),
        remus_session::Occupancy::default()
    );
}

/// Spec: CORE-71, CORE-72
#[test]
fn a_probe_is_answered_at_once_with_four_times() {
    let mut rig = Rig::acceptor();
    rig.session.set_load(Load(77));
    let peer = 5_000_000; // the peer's clock stands elsewhere
    rig.feed(&heartbeat(9, peer, 0, 0)).unwrap();
    let beat = beats(&mut rig);
    let record = Heartbeat {
        origin: Timestamp(peer),
        received: Timestamp(START),
        load: Load(77),
    };
    assert_eq!(beat, [(0, START, record)]);
    rig.feed(&heartbeat(0, peer + 1, 0, 0)).unwrap();
    assert!(beats(&mut rig).is_empty(), "an answer is not answered");

    // The hybrid clock runs ahead of the physical one, and heartbeats don't show it.
    let mut ahead = request(1);
    ahead.timestamp = Timestamp(START + 50 * SECOND);
    rig.feed(&whole(1, &ahead)).unwrap();
    rig.feed(&heartbeat(10, peer + 2, 0, 0)).unwrap();
    assert_eq!(beats(&mut rig)[0].1, START);

    // By the way it came.
    rig.session.set_datagrams(true);
    rig.feed(&heartbeat(11, peer + 3, 0, 0)).unwrap();
    assert_eq!(beats(&mut rig).len(), 1);
    assert!(rig.session.poll_datagram().is_none());
    let now = rig.at();
    rig.session
        .handle_datagram(now, Bytes::from(heartbeat(12, peer + 4, 0, 0)));
    assert!(beats(&mut rig).is_empty());
    let mut datagram = bytes::BytesMut::from(&rig.session.poll_datagram().unwrap()[..]);
    let frame = remus_wire::Frame::decode(&mut datagram, 1_000)
        .unwrap()
        .unwrap();
    let remus_wire::FrameBody::Message(bytes) = frame.body else {
        panic!("{frame:?}")
    };
    let answer = Message::decode(bytes, &ANY).unwrap();
    assert_eq!(
        (answer.kind, answer.request_id.0),
        (MessageType::HEARTBEAT, 0)
    );
    assert!(datagram.is_empty() && rig.session.poll_datagram().is_none());
}

/// Spec: CORE-72
#[test]
fn the_exchange_gives_round_trip_and_offset() {
    let mut client = Rig::client();
    client.session.probe(client.at());
    let (id, sent, _) = beats(&mut client)[0];
    assert!(id != 0 && sent == START);
    client.now += 30_000;
    // Ten ms there, five ms of work, fifteen back; the peer's clock is an hour ahead.
    let arrived = START + 3_600 * SECOND + 10_000;
    client
        .feed(&heartbeat(0, arrived + 5_000, START, arrived))
        .unwrap();
    let path = client.session.path().unwrap();
    assert_eq!(path.latest_rtt, Duration::from_millis(25));
    let error = path.clock_offset_us - 3_600_000_000;
    assert!(
        error.abs() <= 2_500,
        "half the asymmetry is the method's error: {error}"
    );
    assert_eq!(path.peer_load, Load(5));
    // Repeated, from the future, or of a clock that was set back: nothing is measured.
    for (sent, origin, received) in [
        (arrived, START, arrived),
        (arrived, START + 90_000, arrived),
        (5, START + 1, 9),
    ] {
        client.feed(&heartbeat(0, sent, origin, received)).unwrap();
        assert_eq!(
            client.session.path().unwrap().latest_rtt,
            Duration::from_millis(25)
        );
    }
}

/// Spec: CORE-72
#[test]
fn probes_that_an_application_asks_for_are_no_flood() {
    let mut duo = Duo::new(SessionConfig::client(), SessionConfig::acceptor());
    let mut sent = 0;
    for _ in 0..20_000 {
        let now = duo.client.at();
        duo.client.session.probe(now);
        let due = duo.client.session.poll_timeout().unwrap();
        if due <= now {
            duo.client.session.handle_timeout(now);
        }
        sent += usize::from(pour(&mut duo.client, &mut duo.acceptor));
        pour(&mut duo.acceptor, &mut duo.client);
        duo.client.now += 500;
        duo.acceptor.now += 500;
    }
    assert!(
        (1_200..=1_251).contains(&sent),
        "ten seconds, one every 8 ms: {sent}"
    );
    assert!(duo.acceptor.closed().is_none());
}

fn short_idle() -> (Rig, u64) {
    let mut config = SessionConfig::acceptor();
    config.idle_timeout = Duration::from_secs(3);
    (Rig::acceptor_with(config, GENEROUS), 3 * SECOND)
}

/// Spec: CORE-74, CORE-75
#[test]
fn a_silent_peer_is_probed_and_then_given_up() {
    let (mut rig, idle) = short_idle();
    rig.session.set_datagrams(true);
    rig.feed(&whole(1, &request(1))).unwrap();
    let incoming = rig.incoming();
    let mut probes = Vec::new();
    while rig.closed().is_none() {
        let due = rig.session.poll_timeout().unwrap().0;
        rig.wait(due - rig.now);
        for (id, at, _) in beats(&mut rig) {
            assert!(id != 0);
            probes.push(at - START);
        }
        assert!(
            rig.session.poll_datagram().is_none(),
            "nothing that may get lost"
        );
    }
    assert_eq!(probes, [idle / 3, idle / 3 * 2]);
    assert_eq!(rig.now - START, idle);
    assert_eq!(rig.closed().unwrap().code, ErrorCode::IDLE_TIMEOUT);
    assert!(rig.cancelled(incoming.call).is_some(), "the work stops");
}

/// Spec: CORE-74, CORE-75
#[test]
fn whatever_is_heard_keeps_a_session() {
    let (mut rig, idle) = short_idle();
    rig.session.set_datagrams(true);
    let mut by_datagram = 0;
    for n in 0..20_u64 {
        rig.wait(idle / 2);
        if n % 2 == 0 {
            rig.feed(&credit(1, GENEROUS.stream_window as u64 + n + 1))
                .unwrap();
        } else {
            let now = rig.at();
            rig.session
                .handle_datagram(now, Bytes::from(heartbeat(0, now.0, 0, 0)));
        }
        rig.sent();
        while rig.session.poll_datagram().is_some() {
            by_datagram += 1;
        }
    }
    assert!(rig.closed().is_none());
    rig.wait(idle / 3);
    rig.feed(&credit(1, 1 << 40)).unwrap();
    rig.wait(idle / 3);
    while rig.session.poll_datagram().is_some() {
        by_datagram += 1;
    }
    assert_eq!(
        by_datagram, 0,
        "probes of a peer that was silent that long are reliable"
    );
    rig.wait(idle);
    assert_eq!(rig.closed().unwrap().code, ErrorCode::IDLE_TIMEOUT);
}

/// Spec: CORE-13, CORE-75
#[test]
fn the_negotiated_timeout_is_the_one_that_counts() {
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    let mut offer = VersionRecord::new(all_features());
    offer.set_idle_timeout(Duration::from_millis(1));
    acceptor
        .feed(&handshake(&remus_wire::Handshake::Offer(offer)))
        .unwrap();
    for record in first_flight(GENEROUS).iter().skip(1) {
        acceptor.feed(record).unwrap();
    }
    acceptor.wait(499_999);
    assert!(acceptor.closed().is_none());
    acceptor.wait(1);
    assert_eq!(acceptor.closed().unwrap().code, ErrorCode::IDLE_TIMEOUT);
}

/// Two sessions that have nothing to say keep each other alive, with or without datagrams.
///
/// Spec: CORE-74
#[test]
fn idle_sessions_keep_each_other_alive() {
    for datagrams in [false, true] {
        let mut duo = Duo::new(SessionConfig::client(), SessionConfig::acceptor());
        duo.client.session.set_datagrams(datagrams);
        duo.acceptor.session.set_datagrams(datagrams);
        for _ in 0..100 {
            duo.wait(SECOND);
            duo.exchange();
            for _ in 0..2 {
                let (client, acceptor) = (&mut duo.client, &mut duo.acceptor);
                let now = client.at();
                while let Some(datagram) = client.session.poll_datagram() {
                    acceptor.session.handle_datagram(now, datagram);
                }
                while let Some(datagram) = acceptor.session.poll_datagram() {
                    client.session.handle_datagram(now, datagram);
                }
            }
        }
        assert!(duo.client.closed().is_none() && duo.acceptor.closed().is_none());
        assert_eq!(
            duo.client.session.path().unwrap().latest_rtt,
            Duration::ZERO
        );
    }
}
