//! What a hostile peer can make a session hold: numbers. Spec: core §5.3, §8.3.

use std::time::Duration;

use bytes::Bytes;
use remus_session::{Event, LaneId, SessionConfig, Shape};
use remus_wire::{ErrorCode, Flags, FrameType, Limits, Message, MessageType};

use crate::support::*;

/// A hundred thousand requests whose answers nobody reads. The acceptor hands out what its output has room for, then takes in
/// as many as the credit of the shared stream allows, and the peer that goes on is the one that breaks a rule.
///
/// Spec: CORE-57, CORE-60
#[test]
fn a_hundred_thousand_requests_without_reading_the_answers() {
    let window = u64::from(SessionConfig::acceptor().limits.stream_window);
    for payload in [0, 64, 4_000] {
        let mut rig = Rig::acceptor();
        let mut limit = window;
        let (mut sent, mut answered, mut most_waiting) = (0_u64, 0_u64, 0);
        let mut ended = None;
        for id in 1..=100_000 {
            let message = message(MessageType::REQUEST, id, vec![0; payload]);
            sent += message.encoded_len() as u64;
            if let Err(error) = rig.feed(&whole(1, &message)) {
                assert!(sent > limit, "an honest sender is never accused");
                ended = Some((id, error.code()));
                break;
            }
            while let Some(Event::Request(incoming)) = rig.events.pop_front() {
                rig.respond(incoming.call, vec![0; 10_000]);
                answered += 1;
            }
            // The peer hears of its credit, but reads nothing of the answers: what leaves lane 0 stands in its socket.
            let held = rig.session.occupancy();
            most_waiting = most_waiting.max(held.requests);
            limit = rig.session.credits_given()[1].1.1;
            assert!(held.queued_bytes < (4 << 20) + 20_000, "{held:?}");
            assert!(held.calls <= 1024, "{held:?}");
            assert!(held.requests as u64 <= 4 * (4 << 20) / 35);
            assert!(held.unread_bytes <= 4 << 20, "{held:?}");
        }
        let (id, code) = ended.expect("its credit does not reach that far");
        assert_eq!(code, ErrorCode::FLOW_CONTROL);
        assert!((400..450).contains(&answered), "{answered} answers of 10 kB fill the queue of 4 MiB");
        // Whoever waits is paid for by credit: the window that was granted, by the size of a request.
        assert!(u64::from(id) <= answered + limit / 35 + 1);
        assert!(most_waiting as u64 <= (4 << 20) / 35);
    }
}

/// The same, kept up by an honest peer that only sends what its credit allows: it comes to rest, and nothing grows.
///
/// Spec: CORE-60
#[test]
fn an_honest_peer_that_reads_nothing_comes_to_rest() {
    let mut client = Rig::fresh_client(SessionConfig::client());
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    pour(&mut client, &mut acceptor);
    pour(&mut acceptor, &mut client);
    let now = client.at();
    let mut made = 0;
    for _ in 0..100_000 {
        if client.session.notify(now, outgoing(vec![0; 100])).is_ok() {
            made += 1;
        }
        let _ = client.session.call(now, outgoing(vec![0; 100]), Shape::Unary);
        pour(&mut client, &mut acceptor);
        while let Some(event) = acceptor.events.pop_front() {
            if let Event::Request(incoming) = event
                && incoming.answered
            {
                acceptor.respond(incoming.call, vec![0; 10_000]);
            }
        }
    }
    assert!(made > 10_000);
    for rig in [&client, &acceptor] {
        let held = rig.session.occupancy();
        assert!(held.queued_bytes < 11 << 20 && held.calls <= 1024, "{held:?}");
    }
    assert!(client.closed().is_none() && acceptor.closed().is_none());
}

/// Small messages that came in large reads do not keep the reads in memory.
///
/// Spec: CORE-60
#[test]
fn a_message_that_waits_holds_its_own_bytes_only() {
    let mut rig = Rig::acceptor();
    rig.feed(&whole(3, &open_request(1))).unwrap();
    let incoming = rig.incoming();
    let now = rig.at();
    let mut reads = Vec::new();
    for _ in 0..100 {
        let mut read = whole(3, &element(1, "small"));
        let used = read.len();
        read.resize(used + 60_000, 0);
        let read = Bytes::from(read);
        let mut input = read.slice(..used);
        rig.session.handle_input(now, LaneId::ZERO, &mut input).unwrap();
        reads.push(read);
    }
    rig.take_events();
    let held = reads.iter().filter(|read| !read.is_unique()).count();
    assert!(held <= 16, "{held} reads of 60 kB are held by elements of 5 bytes");
    assert_eq!(std::iter::from_fn(|| rig.session.recv(incoming.call)).count(), 100);
}

/// Events that nobody takes stop the input.
///
/// Spec: CORE-77
#[test]
fn events_that_pile_up_stop_the_input() {
    let mut client = Rig::client();
    let now = client.at();
    for _ in 0..1024 {
        client.session.call(now, outgoing(""), Shape::Unary).unwrap();
    }
    client.sent();
    let mut input = Vec::new();
    for round in 0..6_u32 {
        for id in 1..=1024 {
            input.extend(whole(1, &response(round * 1024 + id, "")));
        }
    }
    let mut input = Bytes::from(input);
    for round in 1..=5_u32 {
        client.session.handle_input(now, LaneId::ZERO, &mut input).unwrap();
        if round < 5 {
            for _ in 0..1024 {
                let _ = client.session.call(now, outgoing(""), Shape::Unary);
            }
        }
    }
    let mut taken = 0;
    while client.session.poll_event(now).is_some() {
        taken += 1;
    }
    assert!(taken <= 4096 + 1, "{taken}");
}

/// Spec: CORE-76
#[test]
fn control_traffic_is_bounded_by_a_rate() {
    let floods: [(&str, Vec<u8>); 6] = [
        ("queries", query(1)),
        ("ignorable frames", raw_frame(9, 0x8001, b"")),
        ("credit that changes nothing", credit(3, 0)),
        ("resets of nothing", reset(33, ErrorCode::CANCELLED)),
        ("stops of nothing", stop(33, ErrorCode::CANCELLED)),
        ("streams beyond the limit", whole(60_001, &element(1, ""))),
    ];
    for (name, bytes) in floods {
        let mut rig = Rig::acceptor();
        rig.now += 20 * SECOND; // the bucket is full again after the handshake
        for n in 0..1024 {
            rig.feed(&bytes).unwrap_or_else(|error| panic!("{name}, number {n}: {error}"));
            rig.sent();
        }
        assert_eq!(fault(&mut rig, &bytes), ErrorCode::CONTROL_FLOOD, "{name}");

        // A steady 256 a second is let through for as long as it lasts.
        let mut rig = Rig::acceptor();
        for _ in 0..5_000 {
            rig.now += SECOND / 256 + 1;
            rig.feed(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            rig.sent();
        }
    }
    // In datagrams nothing ends; they are dropped.
    let mut rig = Rig::acceptor();
    rig.session.set_datagrams(true);
    let now = rig.at();
    let beat = control(MessageType::HEARTBEAT, 1, |out| remus_wire::Heartbeat::default().encode(out));
    for _ in 0..3_000 {
        rig.session.handle_datagram(now, Bytes::from(beat.clone()));
    }
    rig.take_events();
    assert!(rig.closed().is_none());
}

/// Calls that are given up as fast as they are made are not control traffic: each paid for its request.
///
/// Spec: CORE-76
#[test]
fn resets_of_streams_in_use_are_free_once() {
    let mut rig = Rig::acceptor();
    for id in 1..=10_000 {
        rig.feed(&whole(3, &open_request(id))).unwrap();
        rig.incoming();
        rig.feed(&stop(3, ErrorCode::CANCELLED)).unwrap();
        rig.feed(&reset(3, ErrorCode::CANCELLED)).unwrap();
        rig.sent();
        rig.events.clear();
        assert_eq!(rig.session.occupancy().calls, 0);
    }
}

/// A peer that makes this side talk and never reads is let go.
///
/// Spec: CORE-77
#[test]
fn control_output_that_nobody_reads_is_bounded() {
    // Resets without end, each an answer to a request that was given up.
    let mut rig = Rig::acceptor();
    let mut most = 0;
    let mut ended = None;
    for id in 1..=1_000_000 {
        let mut bytes = whole(3, &open_request(id));
        bytes.extend(reset(3, ErrorCode::CANCELLED));
        if let Err(error) = rig.feed(&bytes) {
            ended = Some(error.code());
            break;
        }
        rig.events.clear();
        most = most.max(rig.session.queued_bytes());
    }
    assert_eq!(ended, Some(ErrorCode::CONTROL_FLOOD));
    assert!(most <= (1 << 20) + 100, "{most}");
}

/// Deadlines of calls that ended long before them do not pile up.
#[test]
fn deadlines_of_ended_calls_are_forgotten() {
    let mut rig = Rig::acceptor();
    for id in 1..=100_000 {
        let mut message = request(id);
        message.ttl = remus_wire::Ttl::from_duration(Duration::from_secs(3_600));
        rig.feed(&whole(1, &message)).unwrap(); // which checks the session
        let incoming = rig.incoming();
        rig.respond(incoming.call, "");
        if id % 100 == 0 {
            rig.sent();
        }
    }
    let due = rig.session.poll_timeout().unwrap();
    assert!(due.0 < START + 60 * SECOND, "the next heartbeat, not a stale deadline");
}

/// Batches and calls that are opened and given up in a circle leave nothing behind.
#[test]
fn giving_up_in_a_circle_leaves_nothing_behind() {
    let mut rig = Rig::acceptor();
    let members: Vec<Message> = (1..=100).map(request).collect();
    let mut payload = bytes::BytesMut::new();
    remus_wire::Batch { messages: members }.encode(&mut payload);
    let batch = flagged(MessageType::REQUEST, 7, Flags::BATCH_REQUEST, payload.freeze());
    for _ in 0..300 {
        rig.feed(&whole(1, &batch)).unwrap();
        assert_eq!(rig.session.open_peer_calls(), 100);
        rig.feed(&whole(1, &error(7, ErrorCode::CANCELLED))).unwrap();
        assert_eq!(rig.session.open_peer_calls(), 0);
        rig.events.clear();
        rig.sent();
    }
    let held = rig.session.occupancy();
    assert_eq!((held.calls, held.batches, held.peer_ids), (0, 0, 0));
}

/// The send queue refuses calls, and says when there is room.
///
/// Spec: CORE-40
#[test]
fn a_full_queue_refuses_calls_here() {
    let mut config = SessionConfig::client();
    config.max_queued_bytes = 64 * 1024;
    let peer = Limits { stream_window: 64 * 1024, ..GENEROUS };
    let mut client = Rig::client_with(config, peer);
    let now = client.at();
    let mut made = 0;
    let error = loop {
        match client.session.call(now, outgoing(vec![0; 10_000]), Shape::Unary) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), ErrorCode::QUEUE_FULL);
    assert_eq!(made, 7, "70 kB");
    assert!(client.session.ready_for(Shape::Unary).is_err());
    client.sent();
    assert!(client.events.iter().any(|event| matches!(event, Event::Uncongested)));
    client.session.ready_for(Shape::Unary).unwrap();
    assert_eq!(count(&client.sent(), 1, FrameType::MESSAGE), 0);
}
