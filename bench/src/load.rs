//! Load: closed loops, an open loop, streams, topics, connections, and the window in which they are measured.
//!
//! What a peer must offer for it are the traits [`Dial`], [`Echo`], [`Download`], [`Upload`] and [`Topics`].

mod bulk;
mod connections;
mod topic;
mod unary;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::peer::Target;
use crate::process::{cpu_time, machine_time, resident_bytes};
use crate::{Failure, Result};

pub(crate) use bulk::{download, upload};
pub(crate) use connections::{idle, setup};
pub(crate) use topic::topic;
pub(crate) use unary::{unary, unary_local};

// ---- what peers offer ------------------------------------------------------------------------------

/// A peer's client side, prepared once for a driver: trust and settings are read, nothing is connected.
pub(crate) trait Dial: Sized + 'static {
    /// A connection for calls.
    type Client: LocalEcho;

    fn prepare(target: &Target) -> Result<Self>;

    /// Connects. Closing is by dropping the client.
    fn connect(&self) -> impl Future<Output = Result<Self::Client>>;
}

/// Calls that come back as they were sent, from any thread.
pub(crate) trait Echo: Clone + Send + 'static {
    fn call(&self, payload: Bytes) -> impl Future<Output = Result<Bytes>> + Send;
}

/// Calls that come back as they were sent, for a peer whose clients cannot leave their thread.
pub(crate) trait LocalEcho: Clone + 'static {
    fn call_local(&self, payload: Bytes) -> impl Future<Output = Result<Bytes>>;
}

impl<E: Echo> LocalEcho for E {
    fn call_local(&self, payload: Bytes) -> impl Future<Output = Result<Bytes>> {
        self.call(payload)
    }
}

/// Messages of a stream from the server that does not end by itself.
pub(crate) trait Download {
    /// The bytes of the next message, or of the next piece where the peer has no messages. Its length and first bytes are
    /// checked with [`check`] where it is a message.
    fn next(&mut self) -> impl Future<Output = Result<usize>>;
}

/// A stream to the server, which counts the bytes.
pub(crate) trait Upload: Sized {
    /// Sends one write; returns when there is room for another.
    fn send(&mut self, payload: Bytes) -> impl Future<Output = Result<()>>;

    /// Ends the stream: the bytes that the server counted.
    fn finish(self) -> impl Future<Output = Result<u64>>;
}

/// A peer's publishers and subscribers, each on a connection of its own.
pub(crate) trait Topics: Sized + 'static {
    type Publisher: Publisher;
    type Subscriber: Subscriber;

    fn prepare(target: &Target) -> Result<Self>;

    /// A publisher to the one topic of the bench.
    fn publisher(&self) -> impl Future<Output = Result<Self::Publisher>>;

    /// A subscriber of it; everything published after this returns must arrive.
    fn subscriber(&self) -> impl Future<Output = Result<Self::Subscriber>>;
}

/// See [`Topics`].
pub(crate) trait Publisher: Send + 'static {
    fn publish(&mut self, payload: Bytes) -> impl Future<Output = Result<()>> + Send;

    /// Sends what the peer's client holds back to send it together. Called before the publisher waits.
    fn flush(&mut self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

/// See [`Topics`].
pub(crate) trait Subscriber: Send + 'static {
    fn next(&mut self) -> impl Future<Output = Result<Bytes>> + Send;
}

// ---- payloads --------------------------------------------------------------------------------------

/// Bytes at the front of a payload that tell it from others.
const STAMP_BYTES: usize = 8;

/// A payload of `size` bytes that begins with `number`, as far as it has room.
pub(crate) fn payload(number: u64, size: usize) -> Bytes {
    let stamp = number.to_be_bytes();
    let mut bytes = vec![0x5a; size];
    for (byte, stamp) in bytes.iter_mut().zip(stamp) {
        *byte = stamp;
    }
    Bytes::from(bytes)
}

/// The number at the front of what [`payload`] made.
fn number(payload: &[u8]) -> Option<u64> {
    payload
        .first_chunk()
        .map(|stamp| u64::from_be_bytes(*stamp))
}

/// Checks that `got` is `sent`: the length and the stamp. All of it would measure memcmp.
pub(crate) fn check(sent: &[u8], got: &[u8]) -> Result<()> {
    if got.len() != sent.len() {
        return Err(format!("{} bytes came back for {}", got.len(), sent.len()).into());
    }
    let stamp = |bytes| <[u8]>::get(bytes, ..STAMP_BYTES.min(sent.len()));
    if stamp(got) != stamp(sent) {
        return Err(format!("{:?} came back for {:?}", stamp(got), stamp(sent)).into());
    }
    Ok(())
}

// ---- the window ------------------------------------------------------------------------------------

/// What is measured, and whose CPU counts beside this process's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
    pub(crate) server_pid: u32,
}

/// What a driver tells the orchestrator.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) operations: f64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// Of all processes involved, in the window.
    pub(crate) cpu_seconds: f64,
    /// Of all others on the machine, in the window: the noise.
    pub(crate) others_cpu_seconds: f64,
    /// Of the server, at the end of the window.
    pub(crate) rss_bytes: u64,
    /// Of an operation; none where one operation has no beginning and end of its own.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// Idle: the server's memory for one more connection, and this process's.
    pub(crate) connection_bytes: Option<f64>,
    pub(crate) client_connection_bytes: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measured,
    Over,
}

/// Where in its window a run is. Cheap to ask on every operation.
#[derive(Clone)]
struct Gauge(Arc<AtomicU8>);

impl Gauge {
    fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::WarmUp,
            1 => Phase::Measured,
            _ => Phase::Over,
        }
    }

    fn is_over(&self) -> bool {
        self.phase() == Phase::Over
    }

    fn is_measured(&self) -> bool {
        self.phase() == Phase::Measured
    }
}

/// What the window's thread saw.
struct Readings {
    elapsed: Duration,
    cpu: Duration,
    others_cpu: Duration,
    rss_bytes: u64,
}

/// A running window.
struct Watch(std::thread::JoinHandle<Result<Readings>>);

impl Window {
    /// Starts it, on a thread of its own: a runtime under load has no time to keep time.
    fn start(self) -> (Gauge, Watch) {
        let gauge = Gauge(Arc::default());
        let phase = Arc::clone(&gauge.0);
        let watch = std::thread::spawn(move || {
            let cpu = || -> Result<(Duration, Duration)> {
                let ours = cpu_time(std::process::id())? + cpu_time(self.server_pid)?;
                Ok((ours, machine_time()?))
            };
            std::thread::sleep(self.warm_up);
            let readings = (|| {
                let (before, start) = (cpu()?, Instant::now());
                phase.store(1, Ordering::Relaxed);
                std::thread::sleep(self.length);
                let (elapsed, after) = (start.elapsed(), cpu()?);
                let ours = after.0.saturating_sub(before.0);
                let all = after.1.saturating_sub(before.1);
                Ok(Readings {
                    elapsed,
                    cpu: ours,
                    others_cpu: all.saturating_sub(ours),
                    rss_bytes: resident_bytes(self.server_pid)?,
                })
            })();
            phase.store(2, Ordering::Relaxed);
            readings
        });
        (gauge, Watch(watch))
    }
}

impl Watch {
    /// The outcome, once the load has ended by itself.
    fn outcome(
        self,
        operations: f64,
        bytes: u64,
        latencies: Option<&Latencies>,
    ) -> Result<Outcome> {
        let readings = self
            .0
            .join()
            .map_err(|_| Failure::from("the window's thread panicked"))??;
        let quantile = |q| latencies.and_then(|latencies| latencies.quantile_us(q));
        Ok(Outcome {
            operations,
            bytes,
            seconds: readings.elapsed.as_secs_f64(),
            cpu_seconds: readings.cpu.as_secs_f64(),
            others_cpu_seconds: readings.others_cpu.as_secs_f64(),
            rss_bytes: readings.rss_bytes,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            ..Outcome::default()
        })
    }
}

/// Latencies of a run.
struct Latencies(Histogram<u32>);

impl Latencies {
    /// A minute, in nanoseconds: longer than any driver may run.
    const MAX_NS: u64 = 60_000_000_000;

    fn new() -> Result<Self> {
        // Three digits: percentiles within 0.1 %.
        Ok(Self(Histogram::new_with_bounds(1, Self::MAX_NS, 3)?))
    }

    fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(ns);
    }

    fn count(&self) -> u64 {
        self.0.len()
    }

    fn quantile_us(&self, quantile: f64) -> Option<f64> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a minute in nanoseconds has 36 bits"
        )]
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile) as f64 / 1e3)
    }
}

/// Latencies that one task takes: four bytes each and no lock, so that taking them does not show.
#[derive(Default)]
struct Taken(Vec<u32>);

impl Taken {
    fn record(&mut self, latency: Duration) {
        // Saturates at 4.3 s.
        self.0
            .push(u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX));
    }

    fn pour_into(self, latencies: &mut Latencies) {
        for ns in self.0 {
            latencies.record(Duration::from_nanos(u64::from(ns)));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_payload_is_noticed() {
        assert!(check(&payload(5, 64), &payload(5, 64)).is_ok());
        assert!(
            check(&payload(5, 64), &payload(6, 64)).is_err(),
            "of another call"
        );
        assert!(check(&payload(5, 64), &payload(5, 63)).is_err(), "cut");
        assert!(check(b"abc", b"abd").is_err(), "shorter than its number");
        assert!(check(b"", b"").is_ok());
    }
}
