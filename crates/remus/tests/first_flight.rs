//! How many round trips the first answer takes, counted on a path with a known delay and a clock that only moves when
//! everything waits: what is computed takes no time, so time is round trips and nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use remus::{Client, Raw, Request, Response, Router, Service};
use support::Host;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// One way through the relay.
const ONE_WAY: Duration = Duration::from_millis(500);
const ROUND_TRIP: Duration = Duration::from_secs(1);

/// Passes datagrams on in order, each `ONE_WAY` after it came.
async fn relay(server: SocketAddr) -> SocketAddr {
    let front = std::sync::Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let back = std::sync::Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = front.local_addr().unwrap();
    let (to_client, client) = tokio::sync::watch::channel(None::<SocketAddr>);
    let delayed = |from: std::sync::Arc<UdpSocket>,
                   to: std::sync::Arc<UdpSocket>,
                   seen: Option<tokio::sync::watch::Sender<Option<SocketAddr>>>,
                   target: Box<dyn Fn() -> Option<SocketAddr> + Send>| {
        let (queue, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
        tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                let (len, source) = from.recv_from(&mut buffer).await.unwrap();
                if let Some(seen) = &seen {
                    seen.send_replace(Some(source));
                }
                queue
                    .send((Instant::now() + ONE_WAY, buffer[..len].to_vec()))
                    .await
                    .unwrap();
            }
        });
        tokio::spawn(async move {
            while let Some((at, datagram)) = due.recv().await {
                tokio::time::sleep_until(at).await;
                if let Some(target) = target() {
                    let _ = to.send_to(&datagram, target).await;
                }
            }
        });
    };
    delayed(
        front.clone(),
        back.clone(),
        Some(to_client),
        Box::new(move || Some(server)),
    );
    delayed(back, front, None, Box::new(move || *client.borrow()));
    address
}

/// Round trips since `start`, to the nearest one; panics where it is not near a whole number of them.
fn round_trips(start: Instant) -> u32 {
    let exact = start.elapsed().as_secs_f64() / ROUND_TRIP.as_secs_f64();
    let whole = exact.round();
    assert!(
        (exact - whole).abs() < 0.2,
        "{exact} round trips are not a whole number: something waited for a timer"
    );
    whole as u32
}

/// Spec: CORE first flight: offer to schema offer and the first call leave together, and are answered together.
///
/// Spec: TRANS-46
#[tokio::test]
async fn the_first_answer_comes_one_round_trip_after_the_quic_handshake() {
    let echo =
        Service::new("test.v1.Echo").unary("Echo", Raw, |request: Request<Bytes>| async move {
            Ok(Response::new(request.into_inner()))
        });
    let host = Host::start(Router::new().service(echo)).await;
    let server: SocketAddr = host.url.trim_start_matches("remus://").parse().unwrap();
    tokio::time::pause();
    let relay = relay(server).await;

    let start = Instant::now();
    let client = Client::builder(&format!("remus://{relay}"))
        .trust(host.trust.clone())
        .connect()
        .await
        .unwrap();
    assert_eq!(
        round_trips(start),
        1,
        "the QUIC handshake, with the server's SETTINGS in its one flight"
    );
    let answer = client
        .method("test.v1.Echo/Echo")
        .unary::<Bytes, Bytes>(Raw, &Bytes::from_static(b"hi"))
        .await
        .unwrap();
    assert_eq!(answer.into_inner(), "hi");
    assert_eq!(
        round_trips(start),
        2,
        "WebTransport request, five lifecycle steps and the call share one round trip"
    );
    client.connection().await.unwrap().active().await.unwrap();
    assert_eq!(
        round_trips(start),
        2,
        "the whole lifecycle was complete by then"
    );
}
