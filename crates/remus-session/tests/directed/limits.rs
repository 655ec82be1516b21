//! What a hostile peer can make a session hold: numbers. Spec: core §5.3, §8.3.

use std::time::Duration;

use bytes::Bytes;
use remus_session::{Event, LaneId, SessionConfig, SessionError, Shape};
use remus_wire::{
    Capabilities, ErrorCode, Flags, FrameType, Health, Limits, Load, Message, MessageType,
    QueryAnswer, RequestId, ServiceId, ServiceRecord, ServiceVersion,
};

use crate::support::*;

/// Hands in bytes without the checks of [`Rig::feed`], which look at every table each time.
fn push(rig: &mut Rig, bytes: Vec<u8>) -> Result<(), SessionError> {
    let mut input = Bytes::from(bytes);
    let now = rig.at();
    rig.session.handle_input(now, LaneId::ZERO, &mut input)?;
    assert!(input.is_empty());
    Ok(())
}

/// Answers whatever is handed out, and returns how much that was.
fn answer_all(rig: &mut Rig, answer: &Bytes) -> u64 {
    let now = rig.at();
    let mut answered = 0;
    while let Some(event) = rig.session.poll_event(now) {
        if let Event::Request(incoming) = event {
            rig.respond(incoming.call, answer.clone());
            answered += 1;
        }
    }
    answered
}

/// A peer that behaves until its window is as large as windows get, and then sends a hundred thousand requests without reading
/// an answer. The acceptor hands out what its output has room for, takes in as many as the credit allows, and holds nothing else.
///
/// Spec: CORE-57, CORE-60
#[test]
fn a_hundred_thousand_requests_without_reading_the_answers() {
    let answer = Bytes::from(vec![0; 10_000]);
    let mut rig = Rig::acceptor();
    let mut id = 0;
    let mut sent = 0_u64;
    while rig.session.credits_given()[1].1.1 < sent + (4 << 20) - 70_000 {
        id += 1;
        let message = message(MessageType::REQUEST, id, vec![0; 16_000]);
        sent += message.encoded_len() as u64;
        push(&mut rig, whole(1, &message)).unwrap();
        answer_all(&mut rig, &Bytes::new());
        rig.sent();
        assert!(id < 10_000, "the window grows");
    }

    let (first, mut answered) = (id, 0);
    let limit = rig.session.credits_given()[1].1.1;
    for _ in 0..100_000 {
        id += 1;
        let message = message(MessageType::REQUEST, id, Bytes::new());
        sent += message.encoded_len() as u64;
        assert!(sent <= limit);
        push(&mut rig, whole(1, &message)).unwrap();
        answered += answer_all(&mut rig, &answer);
        if id % 1_000 == 0 {
            rig.session.check().unwrap();
        }
    }
    let held = rig.session.occupancy();
    assert!(
        (400..450).contains(&answered),
        "{answered} answers of 10 kB fill the queue of 4 MiB"
    );
    assert_eq!(
        held.requests as u64,
        100_000 - answered,
        "the others wait, paid for by credit"
    );
    assert_eq!(held.unread_bytes, 35 * (100_000 - answered));
    assert_eq!(held.calls, 0);
    assert!(held.queued_bytes < (4 << 20) + 20_000, "{held:?}");

    // It could go on as far as its credit reaches, and not a request further.
    let error = loop {
        id += 1;
        if let Err(error) = push(
            &mut rig,
            whole(1, &message(MessageType::REQUEST, id, Bytes::new())),
        ) {
            break error;
        }
    };
    assert_eq!(error.code(), ErrorCode::FLOW_CONTROL);
    assert!(u64::from(id - first) <= (4 << 20) / 35 + 1);
    rig.take_events();
    assert_eq!(rig.session.occupancy().requests, 0);
}

/// An honest peer that sends only what its credit allows, and whose reads are not answered either: both come to rest.
///
/// Spec: CORE-60
#[test]
fn an_honest_peer_that_reads_nothing_comes_to_rest() {
    let mut client = Rig::fresh_client(SessionConfig::client());
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    pour(&mut client, &mut acceptor);
    pour(&mut acceptor, &mut client);
    let now = client.at();
    let answer = Bytes::from(vec![0; 10_000]);
    let mut out = std::collections::VecDeque::new();
    let (mut made, mut refused) = (0, 0);
    for _ in 0..100_000 {
        match client.session.notify(now, outgoing(vec![0; 100])) {
            Ok(()) => made += 1,
            Err(_) => refused += 1,
        }
        let _ = client
            .session
            .call(now, outgoing(vec![0; 100]), Shape::Unary);
        while client.session.poll_transmit(LaneId::ZERO, &mut out) {
            for chunk in out.drain(..) {
                push(&mut acceptor, chunk.to_vec()).unwrap();
            }
        }
        answer_all(&mut acceptor, &answer);
    }
    assert!(made > 10_000 && refused > 10_000, "{made} {refused}");
    for rig in [&client, &acceptor] {
        rig.session.check().unwrap();
        let held = rig.session.occupancy();
        assert!(
            held.queued_bytes < 5 << 20 && held.calls <= 1024,
            "{held:?}"
        );
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
        rig.session
            .handle_input(now, LaneId::ZERO, &mut input)
            .unwrap();
        reads.push(read);
    }
    rig.take_events();
    let held = reads.iter().filter(|read| !read.is_unique()).count();
    assert!(
        held <= 16,
        "{held} reads of 60 kB are held by elements of 5 bytes"
    );
    assert_eq!(
        std::iter::from_fn(|| rig.session.recv(incoming.call)).count(),
        100
    );
}

/// Events that nobody takes stop the input.
///
/// Spec: CORE-77
#[test]
fn events_that_pile_up_stop_the_input() {
    let mut client = Rig::client_with(wide_windows(), GENEROUS);
    let now = client.at();
    for _ in 0..1024 {
        client
            .session
            .call(now, outgoing(""), Shape::Unary)
            .unwrap();
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
        client
            .session
            .handle_input(now, LaneId::ZERO, &mut input)
            .unwrap();
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
            rig.feed(&bytes)
                .unwrap_or_else(|error| panic!("{name}, number {n}: {error}"));
            rig.sent();
        }
        assert_eq!(fault(&mut rig, &bytes), ErrorCode::CONTROL_FLOOD, "{name}");

        // A steady 256 a second is let through for as long as it lasts.
        let mut rig = Rig::acceptor();
        for _ in 0..2_000 {
            rig.now += SECOND / 256 + 1;
            rig.feed(&bytes)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            rig.sent();
        }
    }
    // In datagrams nothing ends; they are dropped.
    let mut rig = Rig::acceptor();
    rig.session.set_datagrams(true);
    let now = rig.at();
    let beat = control(MessageType::HEARTBEAT, 1, |out| {
        remus_wire::Heartbeat::default().encode(out)
    });
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
    for id in 1..=3_000 {
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
    // What needs no credit to ask for: an answer to a query, as large as they get.
    let record = ServiceRecord {
        service: ServiceId(7),
        version: ServiceVersion::new(1, 0, 0),
        capabilities: Capabilities::default(),
        health: Health::from_bytes([1, 1, 1, 1]),
        load: Load(0),
        endpoints: Vec::new(),
    };
    let answer = QueryAnswer {
        records: vec![record; 1024],
    };
    let mut rig = Rig::acceptor();
    rig.answers_queries = false;
    let mut answered = 0;
    let error = loop {
        if let Err(error) = rig.feed(&query(answered)) {
            break error;
        }
        answered += 1;
        let now = rig.at();
        rig.session.answer_query(now, RequestId(answered), &answer);
        assert!(rig.session.queued_bytes() <= (1 << 20) + 32 * 1024);
    };
    assert!(matches!(error, SessionError::NotReading(_)), "{error}");
    assert_eq!(error.code(), ErrorCode::CONTROL_FLOOD);
    assert_eq!(answered, 43, "1 MiB of 24.6 kB each");

    // What is answered by a RESET costs a request each, and so credit.
    let mut rig = Rig::acceptor();
    let mut id = 0;
    let error = loop {
        id += 1;
        let bytes = [whole(3, &open_request(id)), reset(3, ErrorCode::CANCELLED)].concat();
        if let Err(error) = push(&mut rig, bytes) {
            break error;
        }
        rig.take_events();
        rig.events.clear();
        assert!(rig.session.queued_bytes() < 64 * 1024);
    };
    assert_eq!(error.code(), ErrorCode::FLOW_CONTROL);
}

/// Deadlines of calls that ended long before them do not pile up.
#[test]
fn deadlines_of_ended_calls_are_forgotten() {
    let mut rig = Rig::acceptor();
    for id in 1..=20_000 {
        let mut message = request(id);
        message.ttl = remus_wire::Ttl::from_duration(Duration::from_secs(3_600));
        push(&mut rig, whole(1, &message)).unwrap();
        answer_all(&mut rig, &Bytes::new());
        if id % 100 == 0 {
            rig.sent(); // which checks the session
        }
    }
    let due = rig.session.poll_timeout().unwrap();
    assert!(
        due.0 < START + 60 * SECOND,
        "the next heartbeat, not a stale deadline"
    );
}

/// Batches and calls that are opened and given up in a circle leave nothing behind.
#[test]
fn giving_up_in_a_circle_leaves_nothing_behind() {
    let mut rig = Rig::acceptor();
    let members: Vec<Message> = (1..=100).map(request).collect();
    let mut payload = bytes::BytesMut::new();
    remus_wire::Batch { messages: members }.encode(&mut payload);
    let batch = flagged(
        MessageType::REQUEST,
        7,
        Flags::BATCH_REQUEST,
        payload.freeze(),
    );
    for _ in 0..300 {
        rig.feed(&whole(1, &batch)).unwrap();
        assert_eq!(rig.session.open_peer_calls(), 100);
        rig.feed(&whole(1, &error(7, ErrorCode::CANCELLED)))
            .unwrap();
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
    let peer = Limits {
        stream_window: 64 * 1024,
        ..GENEROUS
    };
    let mut client = Rig::client_with(config, peer);
    let now = client.at();
    let mut made = 0;
    let error = loop {
        match client
            .session
            .call(now, outgoing(vec![0; 10_000]), Shape::Unary)
        {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), ErrorCode::QUEUE_FULL);
    assert_eq!(made, 7, "70 kB");
    assert!(client.session.ready_for(Shape::Unary).is_err());
    client.sent();
    assert!(
        client
            .events
            .iter()
            .any(|event| matches!(event, Event::Uncongested))
    );
    client.session.ready_for(Shape::Unary).unwrap();
    assert_eq!(count(&client.sent(), 1, FrameType::MESSAGE), 0);
}
