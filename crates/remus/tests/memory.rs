//! What a hostile peer may cost in memory, measured as the peak of what is resident.
//!
//! A process has one such figure for all that it does, so each test runs in a process of its own ([`alone`]); a first client
//! has connected and been served there before anything is counted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a step that fails is a test that fails"
)]

#[path = "support/raider.rs"]
mod raider;
mod support;

use std::process::Command;

use bytes::Bytes;
use raider::{ELEMENT_BYTES, Raider, echo, frame, is_served, request};
use remus::{Client, ErrorCode, Raw};
use remus_session::SessionConfig;
use remus_wire::{Flags, FrameType};
use support::Host;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Readers that stop to read at the same time.
const DEAF_READERS: usize = 8;

/// What both ends of one connection may take for themselves, in bytes: TLS, QUIC, HTTP/3 and the tables of a session.
const CONNECTION_MAX: usize = 2 * 128 * KIB;

/// Bytes that a lane has ready for the network, at most.
const LANE_READY_MAX: usize = 64 * KIB;

/// Bytes that QUIC holds of one stream: the sender until they are acknowledged, the receiver until they are read.
const QUIC_STREAM_MAX: usize = 2 * MIB;

/// The buffers into which an endpoint receives: 32 batches of at most 64 KiB at a time.
const RECEIVE_BUFFERS_MAX: usize = 2 * MIB;

/// What one deaf reader may cost both ends together, in bytes (1 MiB): its window has come and lies at the reader, the stream's
/// queue and a lane's worth wait at the writer. Twice that, since what waits is in pieces and the allocator rounds each up.
fn deaf_reader_max() -> usize {
    let config = SessionConfig::acceptor();
    let window = config.limits.stream_window as usize;
    CONNECTION_MAX + 2 * (window + config.max_stream_queued_bytes + LANE_READY_MAX)
}

/// What a flood of requests may cost both ends together, in bytes (some 9 MiB): it is cut off where the shared stream's first window
/// ends, so most of it is what QUIC had under way by then. Twice the window: the requests, and as many answers.
fn flood_max() -> usize {
    let window = SessionConfig::acceptor().limits.stream_window as usize;
    CONNECTION_MAX
        + 2 * QUIC_STREAM_MAX
        + 2 * RECEIVE_BUFFERS_MAX
        + 2 * (2 * window + LANE_READY_MAX)
}

/// Set in the process that runs one test alone.
const ALONE: &str = "REMUS_TEST_ALONE";

/// Runs `test` in a process of its own, which is this program again with nothing else to do.
fn alone(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(ALONE).is_some() {
        // Where the system gives huge pages unasked, one byte touched in a receive buffer would count as 2 MiB.
        rustix::thread::disable_transparent_huge_pages(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(test);
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}, alone: {}", output.status);
    assert!(text.contains("1 passed"), "{name} ran");
}

/// A line of `/proc/self/status`, in bytes.
fn status_bytes(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * KIB
}

/// What is resident when the counting begins.
struct Baseline(usize);

impl Baseline {
    /// A host, a client of it that has been served, and what both of them, the runtime and the allocator have taken for that.
    async fn after_warm_up() -> (Host, Client, Self) {
        let host = Host::start(echo()).await;
        let bystander = host.client().await;
        for _ in 0..200 {
            is_served(&bystander).await;
        }
        (host, bystander, Self(status_bytes("VmRSS:")))
    }

    /// The most that was resident at any time, above what was at the beginning.
    fn peak(&self) -> usize {
        status_bytes("VmHWM:").saturating_sub(self.0)
    }
}

fn is_within(what: &str, cost: usize, limit: usize) {
    println!("{what}: {} KiB of {} KiB", cost / KIB, limit / KIB);
    assert!(cost < limit, "{what}: {cost} bytes, limit {limit}");
}

/// Requests that nobody hears the answers of.
#[test]
fn a_hundred_thousand_requests_without_reading_answers_are_bounded() {
    alone(
        "a_hundred_thousand_requests_without_reading_answers_are_bounded",
        async {
            let (host, bystander, baseline) = Baseline::after_warm_up().await;
            let mut raider = Raider::active(&host).await;
            let payload = Bytes::from(vec![3; 1024]);
            for id in 1..=100_000_u32 {
                let bytes = frame(
                    1,
                    FrameType::MESSAGE,
                    &request(id, "test.v1.Echo/Echo", Flags::default(), payload.clone()),
                );
                if raider.send.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // The answers have nowhere to go, so the requests are no longer taken in, and no more of them are granted.
            let (code, reason) = raider.verdict().await;
            assert_eq!(code, ErrorCode::FLOW_CONTROL, "{reason}");
            for _ in 0..50 {
                is_served(&bystander).await;
            }
            is_within("a flood", baseline.peak(), flood_max());
        },
    );
}

/// Subscribers that have stopped to read.
#[test]
fn a_peer_that_stops_reading_a_stream_is_bounded() {
    alone("a_peer_that_stops_reading_a_stream_is_bounded", async {
        let (host, bystander, baseline) = Baseline::after_warm_up().await;
        let mut deaf = Vec::new();
        for _ in 0..DEAF_READERS {
            let client = host.client().await;
            let stream = client
                .method("test.v1.Echo/Endless")
                .server_stream::<Bytes, Bytes>(Raw, &Bytes::new())
                .await
                .unwrap();
            deaf.push((client, stream));
        }
        for _ in 0..200 {
            is_served(&bystander).await;
        }
        is_within(
            "deaf readers",
            baseline.peak(),
            DEAF_READERS * deaf_reader_max(),
        );
        // The stream was held, not broken: it goes on where it stopped.
        for (_, stream) in &mut deaf {
            for _ in 0..100 {
                assert_eq!(
                    stream.get_mut().message().await.unwrap().unwrap().len(),
                    ELEMENT_BYTES
                );
            }
        }
    });
}
