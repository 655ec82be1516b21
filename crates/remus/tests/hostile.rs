//! Peers that break the rules, against a live server that serves somebody else meanwhile: each gets its own code. What
//! they may cost is measured in `memory.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

#[path = "support/raider.rs"]
mod raider;
mod support;

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use raider::{Raider, echo, frame, is_served, request};
use remus::{ErrorCode, TlsPolicy};
use remus_session::LaneId;
use remus_transport::quic;
use remus_wire::{Flags, FrameHeader, FrameType, Message, MessageType, RequestId, StreamId};
use support::Host;

/// Spec: CORE-83
#[tokio::test]
async fn each_broken_rule_has_its_own_code() {
    let host = Host::start(echo()).await;
    let bystander = host.client().await;
    let whole = request(
        1,
        "test.v1.Echo/Echo",
        Flags::default(),
        Bytes::from_static(&[1; 64]),
    );
    let mut lies = whole.clone();
    lies[3] = lies[3].wrapping_add(9); // the total length
    let mut lies_inside = whole.clone();
    lies_inside[23..27].copy_from_slice(&u32::MAX.to_be_bytes()); // the routing length
    let huge = FrameHeader {
        stream: StreamId(1),
        kind: FrameType::MESSAGE,
        len: u32::MAX,
    }
    .encode();
    let cases: [(&str, Vec<u8>, ErrorCode); 9] = [
        (
            "unknown frame type",
            frame(1, FrameType(0x0099), b"x"),
            ErrorCode::UNKNOWN_FRAME,
        ),
        ("zeroed buffer", vec![0; 4096], ErrorCode::UNKNOWN_FRAME),
        (
            "a frame of 4 GiB",
            huge.to_vec(),
            ErrorCode::FRAME_TOO_LARGE,
        ),
        (
            "a message that lies about its length",
            frame(1, FrameType::MESSAGE, &lies),
            ErrorCode::MALFORMED,
        ),
        (
            "a message that lies about its routing",
            frame(1, FrameType::MESSAGE, &lies_inside),
            ErrorCode::ROUTING_TOO_LARGE,
        ),
        (
            "a stream of the wrong parity",
            frame(4, FrameType::MESSAGE, &whole),
            ErrorCode::STREAM_STATE,
        ),
        (
            "a request on the control stream",
            frame(0, FrameType::MESSAGE, &whole),
            ErrorCode::UNEXPECTED_MESSAGE,
        ),
        (
            "a shared region that nobody offered",
            frame(1, FrameType::REFERENCE, &[0; 16]),
            ErrorCode::UNIMPLEMENTED,
        ),
        (
            "noise",
            (0..2000_u32)
                .flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes())
                .collect(),
            ErrorCode::UNKNOWN_FRAME,
        ),
    ];
    for (name, bytes, expected) in cases {
        let (code, reason) = Raider::active(&host).await.sends(&bytes).await;
        assert_eq!(code, expected, "{name}: {reason}");
        assert!(!reason.is_empty(), "{name} is explained");
        is_served(&bystander).await;
    }
}

/// Spec: CORE-57
#[tokio::test]
async fn more_than_was_granted_is_a_flow_control_error() {
    let host = Host::start(echo()).await;
    let bystander = host.client().await;
    let raider = Raider::active(&host).await;
    // The method reads nothing, so its stream is granted one window and then no more.
    let mut bytes = frame(
        3,
        FrameType::MESSAGE,
        &request(1, "test.v1.Echo/Unread", Flags::default(), Bytes::new()),
    );
    let mut element = Message::new(MessageType::STREAM, Bytes::from(vec![5; 16_000]));
    element.request_id = RequestId(1);
    let mut encoded = BytesMut::new();
    element.encode(&mut encoded);
    for _ in 0..10 {
        bytes.extend(frame(3, FrameType::MESSAGE, &encoded));
    }
    let (code, reason) = raider.sends(&bytes).await;
    assert_eq!(code, ErrorCode::FLOW_CONTROL, "{reason}");
    is_served(&bystander).await;
}

#[tokio::test]
async fn a_frame_cut_by_the_end_of_the_lane_is_malformed() {
    let host = Host::start(echo()).await;
    let mut raider = Raider::active(&host).await;
    let whole = frame(
        1,
        FrameType::MESSAGE,
        &request(
            1,
            "test.v1.Echo/Echo",
            Flags::default(),
            Bytes::from_static(&[1; 64]),
        ),
    );
    raider
        .send
        .write_all(&whole[..whole.len() - 10])
        .await
        .unwrap();
    raider.send.finish().unwrap();
    let (code, reason) = raider.verdict().await;
    assert_eq!(code, ErrorCode::MALFORMED, "{reason}");
}

#[tokio::test]
async fn requests_before_the_handshake_are_out_of_turn() {
    let host = Host::start(echo()).await;
    let raider = Raider::new(&host).await;
    let (code, reason) = raider
        .sends(&frame(
            1,
            FrameType::MESSAGE,
            &request(1, "test.v1.Echo/Echo", Flags::default(), Bytes::new()),
        ))
        .await;
    assert_eq!(code, ErrorCode::UNEXPECTED_MESSAGE, "{reason}");
}

#[tokio::test]
async fn garbage_on_the_port_and_a_wrong_alpn_hurt_nobody() {
    let host = Host::start(echo()).await;
    let bystander = host.client().await;
    let address: SocketAddr = host.url.trim_start_matches("remus://").parse().unwrap();
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut noise = vec![0_u8; 1400];
    for round in 0..2000_u32 {
        for (n, byte) in noise.iter_mut().enumerate() {
            *byte = (round
                .wrapping_mul(31)
                .wrapping_add(n as u32)
                .wrapping_mul(2_654_435_761)
                >> 24) as u8;
        }
        noise[0] = if round % 2 == 0 { 0xc3 } else { 0x43 };
        let _ = socket
            .send_to(&noise[..1200 + (round as usize % 200)], address)
            .await;
    }
    is_served(&bystander).await;
    let tls = remus_security::client_config(TlsPolicy::RequirePostQuantum, &host.trust, &[b"smtp"])
        .unwrap();
    let endpoint = quic::client_endpoint(tls).unwrap();
    let error = endpoint
        .connect(address, "127.0.0.1")
        .unwrap()
        .await
        .unwrap_err();
    // RFC 7301 §3.2: no_application_protocol, alert 120.
    assert!(
        matches!(&error, quinn::ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == 0x178),
        "{error}"
    );
    is_served(&bystander).await;
}

/// What is due at the end is the close; nobody waits for lanes that were never opened, or that broke.
#[tokio::test]
async fn a_peer_that_announces_its_end_and_keeps_the_link_is_closed_when_its_grace_is_over() {
    let host = Host::start(echo()).await;
    let mut raider = Raider::active(&host).await;
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let grace = std::time::Duration::from_millis(100);
    let now = raider.clock.now();
    raider
        .session
        .shut_down(now, ErrorCode::OK, "enough", "", grace);
    let mut out = VecDeque::new();
    raider.session.poll_transmit(LaneId::ZERO, &mut out);
    for chunk in out {
        raider.send.write_all(&chunk).await.unwrap();
    }
    let (code, _) = raider.verdict().await;
    assert_eq!(code, ErrorCode::OK);
    let took = start.elapsed();
    assert!(
        took < std::time::Duration::from_secs(1),
        "{took:?} by the virtual clock: something lingered"
    );
}
