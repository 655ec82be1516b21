//! Turns on a lane, and order within a stream. Spec: core §6.

use std::collections::VecDeque;

use bytes::Bytes;
use remus_session::{LaneId, Received, SessionConfig, Shape};
use remus_wire::Limits;

use crate::support::*;

/// Bytes that the pipe moves in a millisecond: 80 Mbit/s.
const RATE: usize = 10_000;

/// Bytes that a small call waits for at most, beside one bulk transfer of its class on its lane: the 64 KiB that stand ready, and the
/// rest of a turn of the bulk, with the frame's header.
const WAIT_MAX: usize = 64 * 1024 + 16 * 1024 + 64;

/// What is to be sent, as fast as a pipe of fixed rate takes it.
struct Line {
    pending: VecDeque<Bytes>,
    len: usize,
    moved: usize,
}

impl Line {
    /// Moves as many bytes as the pipe takes; asks the session for more only when it has none, as a driver does.
    fn run(&mut self, from: &mut Rig, to: &mut Rig, mut room: usize) {
        while room > 0 {
            if self.len == 0 {
                if !from.session.poll_transmit(LaneId::ZERO, &mut self.pending) {
                    return;
                }
                self.len = self.pending.iter().map(Bytes::len).sum();
                from.take_events();
            }
            let Some(front) = self.pending.front_mut() else {
                return;
            };
            let take = front.len().min(room);
            let cut = front.split_to(take);
            if front.is_empty() {
                self.pending.pop_front();
            }
            self.len -= take;
            self.moved += take;
            room -= take;
            to.feed(&cut).unwrap();
        }
    }
}

fn one_lane() -> Duo {
    let mut config = SessionConfig::client();
    config.extra_lanes = 0;
    Duo::new(config, SessionConfig::acceptor())
}

/// Sixty-four MiB beside calls of 64 bytes, on one lane of 80 Mbit/s, in virtual time.
///
/// Spec: CORE-67
#[test]
fn a_bulk_transfer_does_not_hold_up_small_calls() {
    let mut duo = one_lane();
    let now = duo.client.at();
    let bulk = duo
        .client
        .session
        .call(now, outgoing(""), Shape::ClientStream)
        .unwrap();
    let payload = Bytes::from(vec![7; 1 << 20]);
    let (mut left, mut received) = (64, 0);
    let mut line = Line {
        pending: VecDeque::new(),
        len: 0,
        moved: 0,
    };
    let mut waiting = None;
    let mut waits = Vec::new();
    let mut handler = None;
    while received < 64 << 20 {
        duo.client.now += 1_000;
        duo.acceptor.now += 1_000;
        let now = duo.client.at();
        while left > 0
            && duo
                .client
                .session
                .send(now, bulk, outgoing(payload.clone()))
                .is_ok()
        {
            left -= 1;
        }
        if waiting.is_none() {
            let call = duo
                .client
                .session
                .call(now, outgoing(vec![1; 64]), Shape::Unary)
                .unwrap();
            waiting = Some((call, line.moved));
        }
        line.run(&mut duo.client, &mut duo.acceptor, RATE);
        while let Some(event) = duo.acceptor.events.pop_front() {
            if let remus_session::Event::Request(incoming) = event {
                if incoming.owns_stream {
                    handler = Some(incoming.call);
                } else {
                    let (_, began) = waiting.unwrap();
                    waits.push(line.moved - began);
                    duo.acceptor.respond(incoming.call, vec![2; 64]);
                }
            }
        }
        if let Some(handler) = handler {
            while let Some(Received::Element(element)) = duo.acceptor.session.recv(handler) {
                received += element.payload.len();
            }
        }
        pour(&mut duo.acceptor, &mut duo.client);
        if let Some((call, _)) = waiting
            && duo.client.answer(call).is_some()
        {
            waiting = None;
        }
    }
    waits.sort_unstable();
    assert!(waits.len() > 500, "{} calls", waits.len());
    let slack = RATE; // a call that is made between two reads of the pipe
    let worst = waits[waits.len() - 1];
    assert!(
        worst <= WAIT_MAX + slack,
        "a call waited for {worst} bytes of others"
    );
}

/// A thousand small calls get as much of the lane as one large stream, not one message to its 16 KiB.
///
/// Spec: CORE-67
#[test]
fn many_small_calls_share_a_lane_evenly_with_a_large_one() {
    let mut duo = one_lane();
    let now = duo.client.at();
    duo.client
        .session
        .call(now, outgoing(vec![0; 4_000_000]), Shape::Unary)
        .unwrap();
    let mut ready = VecDeque::new();
    duo.client.session.poll_transmit(LaneId::ZERO, &mut ready);
    for _ in 0..1_000 {
        duo.client
            .session
            .call(now, outgoing(vec![0; 64]), Shape::Unary)
            .unwrap();
    }
    let mut between = 0;
    for (_, frame) in duo.client.sent() {
        if frame.stream.0 == 1 {
            assert!(
                between <= 16 * 1024,
                "{between} bytes of the large one at once"
            );
            between = 0;
        } else {
            between += frame.body.encoded_len();
        }
    }
}

/// Spec: CORE-67
#[test]
fn the_lowest_class_gets_its_share() {
    let mut config = SessionConfig::client();
    config.extra_lanes = 0;
    config.max_stream_queued_bytes = 1 << 30;
    config.max_queued_bytes = 1 << 30;
    config.max_answer_bytes = 1 << 30;
    let mut client = Rig::client_with(
        config,
        Limits {
            stream_window: 1 << 30,
            ..GENEROUS
        },
    );
    let now = client.at();
    let low = client
        .session
        .call(now, of_class(0, ""), Shape::ClientStream)
        .unwrap();
    let high = client
        .session
        .call(now, of_class(7, ""), Shape::ClientStream)
        .unwrap();
    client.sent();
    let payload = Bytes::from(vec![0; 1 << 20]);
    for _ in 0..64 {
        client
            .session
            .send(now, high, outgoing(payload.clone()))
            .unwrap();
    }
    client.session.send(now, low, outgoing(payload)).unwrap();
    let (mut of_high, mut of_low) = (0, 0);
    for (_, frame) in client.sent() {
        if frame.stream.0 == 5 {
            of_high += frame.body.encoded_len();
        } else if of_high < 63 << 20 {
            of_low += frame.body.encoded_len();
        }
    }
    let share = of_high / of_low.max(1);
    assert!(
        (64..=256).contains(&share),
        "a class has twice what is below it, so 128 to 1: {share}"
    );
}

/// Calls of all classes on a shared stream: the urgent go first, the others are not forgotten, and each class stays in order.
///
/// Spec: CORE-65, CORE-66, CORE-67
#[test]
fn classes_of_a_shared_stream_take_turns() {
    let mut client = Rig::client_with(
        SessionConfig::client(),
        Limits {
            stream_window: 64 * 1024,
            ..GENEROUS
        },
    );
    let now = client.at();
    for _ in 0..4 {
        client
            .session
            .call(now, outgoing(vec![0; 16 * 1024 - 35]), Shape::Unary)
            .unwrap();
    }
    client.sent(); // the window is used up now
    for n in 0..200_u32 {
        for class in [0, 3, 7] {
            let payload = n.to_be_bytes().repeat(250);
            client
                .session
                .call(now, of_class(class, payload), Shape::Unary)
                .unwrap();
        }
    }
    client.feed(&credit(1, 1 << 30)).unwrap();
    let mut next = [0_u32; 8];
    let mut first_low = 0;
    for (_, message) in client.sent_messages() {
        let class = usize::from(message.priority.class());
        let number = u32::from_be_bytes(message.payload[..4].try_into().unwrap());
        assert_eq!(number, next[class], "class {class} in order");
        next[class] += 1;
        if class == 0 && number == 0 {
            first_low = next[7];
        }
    }
    assert_eq!((next[0], next[3], next[7]), (200, 200, 200));
    assert!(
        (1..200).contains(&first_low),
        "the lowest class did not wait for all of the highest: {first_low}"
    );
}

/// Spec: CORE-65
#[test]
fn elements_arrive_in_order() {
    let mut duo = Duo::new(SessionConfig::client(), SessionConfig::acceptor());
    let now = duo.client.at();
    let call = duo
        .client
        .session
        .call(now, outgoing(""), Shape::TwoWay)
        .unwrap();
    duo.exchange();
    let incoming = duo.acceptor.incoming();
    let mut got = 0_u32;
    let mut sent = 0_u32;
    while got < 500 {
        while sent < 500 {
            let len = usize::try_from(sent * 997 % 30_000).unwrap();
            let payload = [&sent.to_be_bytes()[..], &vec![0; len]].concat();
            if duo
                .client
                .session
                .send(now, call, outgoing(payload))
                .is_err()
            {
                break;
            }
            sent += 1;
        }
        duo.exchange();
        while let Some(Received::Element(element)) = duo.acceptor.session.recv(incoming.call) {
            assert_eq!(element.payload[..4], got.to_be_bytes());
            got += 1;
        }
    }
}
