//! One publisher, some subscribers, nothing lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{
    Gauge, Latencies, Outcome, Publisher, Subscriber, Taken, Topics, Window, float, number,
};
use crate::Result;
use crate::case::Case;
use crate::peer::Target;

/// Messages that the publisher may be ahead of the slowest subscriber, so that no peer has to drop any.
const AHEAD_MAX: u64 = 16_384;

/// Messages between two looks at the subscribers, and between two reports of one.
const REPORT_EVERY: u64 = 256;

/// One message in so many has its latency taken.
const SAMPLE_EVERY: u64 = 64;

/// Bytes of a message that are used: its number, and when it was sent.
const HEADER_BYTES: usize = 16;

/// Number of the message that ends a run.
const LAST: u64 = u64::MAX;

/// What one subscriber has received.
#[derive(Default)]
struct Progress {
    received: AtomicU64,
}

struct Shared {
    progress: Vec<Progress>,
    moved: Notify,
    epoch: Instant,
}

impl Shared {
    fn slowest(&self) -> u64 {
        self.progress
            .iter()
            .map(|progress| progress.received.load(Ordering::Relaxed))
            .min()
            .unwrap_or(0)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Publishes as fast as the slowest subscriber takes it. An operation is a message that one subscriber received.
pub(crate) async fn topic<P: Topics>(
    case: &Case,
    target: &Target,
    window: Window,
) -> Result<Outcome> {
    let size = case.size.max(HEADER_BYTES);
    let peer = P::prepare(target)?;
    let mut subscribers = Vec::with_capacity(case.count);
    for _ in 0..case.count {
        subscribers.push(peer.subscriber().await?);
    }
    let publisher = peer.publisher().await?;
    let shared = Arc::new(Shared {
        progress: (0..case.count).map(|_| Progress::default()).collect(),
        moved: Notify::new(),
        epoch: Instant::now(),
    });
    let (gauge, watch) = window.start();
    let mut receiving = JoinSet::new();
    for (at, subscriber) in subscribers.into_iter().enumerate() {
        receiving.spawn(receive(subscriber, at, shared.clone(), gauge.clone()));
    }
    let sending = tokio::spawn(send(publisher, size, shared, gauge));

    let (mut delivered, mut latencies) = (0, Latencies::new()?);
    while let Some(received) = receiving.join_next().await {
        let (count, taken) = received??;
        delivered += count;
        taken.pour_into(&mut latencies);
    }
    let _publisher = sending.await??;
    watch.outcome(float(delivered), delivered * size as u64, Some(&latencies))
}

/// Returns the publisher, so that its connection outlives the last message.
async fn send<P: Publisher>(
    mut publisher: P,
    size: usize,
    shared: Arc<Shared>,
    gauge: Gauge,
) -> Result<P> {
    let mut message = vec![0x5a; size];
    let mut next = 0_u64;
    loop {
        let last = next.is_multiple_of(REPORT_EVERY) && gauge.is_over();
        let too_far = || next + REPORT_EVERY > shared.slowest() + AHEAD_MAX;
        if next.is_multiple_of(REPORT_EVERY) && too_far() {
            publisher.flush().await?;
            while too_far() {
                // A report between the look and the wait is kept as a permit.
                shared.moved.notified().await;
            }
        }
        let header = [if last { LAST } else { next }, shared.now_ns()].map(u64::to_be_bytes);
        for (byte, stamp) in message.iter_mut().zip(header.as_flattened()) {
            *byte = *stamp;
        }
        publisher
            .publish(bytes::Bytes::copy_from_slice(&message))
            .await?;
        if last {
            publisher.flush().await?;
            return Ok(publisher);
        }
        next += 1;
    }
}

async fn receive<S: Subscriber>(
    mut subscriber: S,
    at: usize,
    shared: Arc<Shared>,
    gauge: Gauge,
) -> Result<(u64, Taken)> {
    let progress = shared.progress.get(at).ok_or("a subscriber has no place")?;
    let (mut expected, mut counted, mut taken) = (0_u64, 0_u64, Taken::default());
    loop {
        let message = subscriber.next().await?;
        let got = number(&message).ok_or("a message came without its number")?;
        if got == LAST {
            return Ok((counted, taken));
        }
        if got != expected {
            return Err(format!("message {got} came where {expected} was due").into());
        }
        expected += 1;
        if gauge.is_measured() {
            counted += 1;
            if expected.is_multiple_of(SAMPLE_EVERY) {
                let sent = message.get(8..).and_then(number).unwrap_or(0);
                taken.record(std::time::Duration::from_nanos(
                    shared.now_ns().saturating_sub(sent),
                ));
            }
        }
        if expected.is_multiple_of(REPORT_EVERY) {
            progress.received.store(expected, Ordering::Relaxed);
            shared.moved.notify_one();
        }
    }
}
