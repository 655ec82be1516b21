//! `remus bench topic`: messages through a topic of its own, from publish to arrival at each subscriber.
//!
//! Publisher and subscribers are this process, so that one clock measures the whole way. Each message begins with when it was due.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use remus::{Client, Error, ErrorCode, Overflow, RemoteSubscription, SubscribeOptions};
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::cli::{BenchTopic, Connection as Options};
use crate::failure::{Failure, Outcome};
use crate::output::Output;

use super::pace::{self, Pace};
use super::report::{
    Percentiles, Table, Tally, Times, bytes_per_second, grouped, grouped_rate, per_second, time,
};
use super::{DRAIN_MAX, Limit, Peers, Setting, must_have_some};

const PUBLISH: &str = "remus.v2.Topics/Publish";

/// Messages that the node has not confirmed, unless told otherwise: enough to fill the way to most nodes and back.
const IN_FLIGHT: u32 = 64;
const IN_FLIGHT_OPEN_LOOP: u32 = 1024;

/// The time in a message that says that no further one follows.
const LAST: u64 = u64::MAX;

pub(super) async fn run(
    command: BenchTopic,
    options: &Options,
    output: &Output,
    ended: watch::Receiver<bool>,
) -> Outcome {
    let connections = command.subscribers.saturating_add(1);
    let peers = Peers::connect(connections, options, PUBLISH, &ended, output).await?;
    let Some(publisher) = peers.node(0) else {
        return Ok(());
    };
    // Nobody else's, by chance alone.
    let topic = format!("bench.{:016x}", RandomState::new().build_hasher().finish());
    let shared = Arc::new(Shared {
        base: Instant::now(),
        measured_from: AtomicU64::new(LAST),
        counts: Mutex::new(Counts::new()?),
    });
    let mut subscribers = JoinSet::new();
    for number in 1..peers.connections.len() {
        let Some(node) = peers.node(number) else {
            continue;
        };
        // Nothing may be lost: a subscriber who is behind holds the publisher back.
        let options = SubscribeOptions {
            overflow: Overflow::Wait,
            ..SubscribeOptions::default()
        };
        let subscription = node.client.subscribe(&topic, options).await?;
        subscribers.spawn(receive(subscription, Arc::clone(&shared)));
    }
    let load = Load {
        client: publisher.client.clone(),
        topic: topic.clone(),
        size: command.size,
        in_flight: command.in_flight.unwrap_or(match command.rate {
            None => IN_FLIGHT,
            Some(_) => IN_FLIGHT_OPEN_LOOP,
        }),
        rate: command.rate,
        shared: Arc::clone(&shared),
    };
    if !command.span.warm_up.is_zero() {
        let limit = Limit::warming_up(&command.span, &ended);
        load.run(&limit, None).await;
        limit.go_on()?;
        *shared.counts() = Counts::new()?;
    }
    let limit = Limit::measuring(&command.span, &ended);
    shared
        .measured_from
        .store(shared.nanos(limit.begin), Ordering::Relaxed);
    load.run(&limit, command.span.count).await;
    let publishing = limit.begin.elapsed();
    let arrived = async {
        publisher.client.publish(&topic, message(LAST, 8)).await?;
        while subscribers.join_next().await.is_some() {}
        Ok::<_, Error>(())
    };
    let missing = match tokio::time::timeout(DRAIN_MAX, arrived).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some(Error::new(
            ErrorCode::DEADLINE_EXCEEDED,
            "not everything arrived within 5 s after the last publication",
        )),
    };
    subscribers.shutdown().await;
    let fresh = Counts::new()?;
    let mut counts = std::mem::replace(&mut *shared.counts(), fresh);
    if let Some(error) = missing {
        counts.tally.add(error);
    }
    counts.publishing = publishing;
    counts.delivering = counts.last_arrival.map_or(publishing, |last| {
        last.saturating_duration_since(limit.begin)
    });
    let name = peers.name();
    peers.leave().await;
    must_have_some(counts.delivered, &counts.tally)?;
    if counts.delivered == 0 && !limit.was_interrupted() {
        return Err(Failure::new(ErrorCode::UNAVAILABLE, "nothing arrived").into());
    }
    let setting = Setting {
        bench: "topic",
        url: &options.url,
        size: command.size,
        connections: usize::try_from(connections).unwrap_or(usize::MAX),
        rate: command.rate,
        interrupted: limit.was_interrupted(),
        elapsed_s: publishing.as_secs_f64(),
    };
    tell(&name, setting, &command, load.in_flight, &counts, output)
}

/// What publisher and subscribers have in common.
struct Shared {
    /// What times in messages count from.
    base: Instant,
    /// Messages that were due before this are not measured, in ns since `base`.
    measured_from: AtomicU64,
    counts: Mutex<Counts>,
}

impl Shared {
    fn nanos(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.base).as_nanos();
        u64::try_from(nanos).unwrap_or(LAST - 1)
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of it.
struct Counts {
    published: u64,
    delivered: u64,
    /// From when a message was due to its arrival, for each subscriber.
    times: Times,
    /// How long after it was due each message of an open loop was sent.
    late: Times,
    /// Messages of an open loop that were due and never sent.
    unsent: u64,
    tally: Tally,
    last_arrival: Option<Instant>,
    /// Until the node had confirmed all.
    publishing: Duration,
    /// Until the last message arrived.
    delivering: Duration,
}

impl Counts {
    fn new() -> Outcome<Self> {
        Ok(Self {
            published: 0,
            delivered: 0,
            times: Times::new()?,
            late: Times::new()?,
            unsent: 0,
            tally: Tally::default(),
            last_arrival: None,
            publishing: Duration::ZERO,
            delivering: Duration::ZERO,
        })
    }

    fn publish(&mut self, result: Result<(), Error>) {
        match result {
            Ok(()) => self.published = self.published.saturating_add(1),
            Err(error) => self.tally.add(error),
        }
    }
}

/// A message of `size` bytes that was due at `nanos`.
fn message(nanos: u64, size: usize) -> Bytes {
    let mut payload = BytesMut::with_capacity(size);
    payload.put_u64(nanos);
    payload.resize(size.max(8), 0x5a);
    payload.freeze()
}

/// Takes messages until the last one.
async fn receive(mut subscription: RemoteSubscription, shared: Arc<Shared>) {
    while let Some(next) = subscription.next().await {
        let publication = match next {
            Ok(publication) => publication,
            Err(error) => {
                shared.counts().tally.add(error);
                return;
            }
        };
        let now = Instant::now();
        let Some(nanos) = publication.payload.first_chunk::<8>() else {
            continue; // a stranger's
        };
        let due = u64::from_be_bytes(*nanos);
        if due == LAST {
            return;
        }
        if due < shared.measured_from.load(Ordering::Relaxed) {
            continue;
        }
        let mut counts = shared.counts();
        counts.delivered = counts.delivered.saturating_add(1);
        let took = shared.nanos(now).saturating_sub(due);
        counts.times.add(Duration::from_nanos(took));
        counts.last_arrival = Some(now);
    }
}

/// What is being published.
struct Load {
    client: Client,
    topic: String,
    size: usize,
    in_flight: u32,
    rate: Option<u64>,
    shared: Arc<Shared>,
}

impl Load {
    /// Publishes until `limit` is over, or `count` messages are out, and waits until the node has confirmed them.
    async fn run(&self, limit: &Limit, count: Option<u64>) {
        let mut publishing = JoinSet::new();
        match self.rate {
            None => self.closed_loop(limit, count, &mut publishing),
            Some(rate) => {
                let pace = Pace::new(limit.begin, rate);
                self.open_loop(limit, count, pace, &mut publishing).await;
            }
        }
        let drained = async { while publishing.join_next().await.is_some() {} };
        let over = async {
            limit.over().await;
            tokio::time::sleep(DRAIN_MAX).await;
        };
        tokio::select! {
            () = drained => {}
            () = over => self.shared.counts().tally.add(Error::deadline_exceeded(
                "the node did not confirm all within 5 s",
            )),
        }
        publishing.shutdown().await;
    }

    fn closed_loop(&self, limit: &Limit, count: Option<u64>, publishing: &mut JoinSet<()>) {
        let left = Arc::new(AtomicU64::new(count.unwrap_or(u64::MAX)));
        for _ in 0..self.in_flight {
            let (client, topic, size) = (self.client.clone(), self.topic.clone(), self.size);
            let (limit, left, shared) =
                (limit.clone(), Arc::clone(&left), Arc::clone(&self.shared));
            publishing.spawn(async move {
                loop {
                    let begin = Instant::now();
                    let take = |left: u64| left.checked_sub(1);
                    if limit.is_over(begin)
                        || left
                            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                            .is_err()
                    {
                        return;
                    }
                    let payload = message(shared.nanos(begin), size);
                    let result = client.publish(&topic, payload).await;
                    shared.counts().publish(result);
                }
            });
        }
    }

    async fn open_loop(
        &self,
        limit: &Limit,
        count: Option<u64>,
        pace: Pace,
        publishing: &mut JoinSet<()>,
    ) {
        let places = usize::try_from(self.in_flight).unwrap_or(usize::MAX);
        let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        let mut number = 0;
        while number < count.unwrap_or(u64::MAX) {
            let due = pace.due(number);
            if limit.end.is_some_and(|end| due >= end) {
                break;
            }
            pace::until(due, limit).await;
            let place = tokio::select! {
                biased;
                place = Arc::clone(&places).acquire_owned() => place,
                () = limit.over() => break,
            };
            let Ok(place) = place else { break };
            let sent = Instant::now();
            if limit.is_over(sent) {
                break;
            }
            number += 1;
            while publishing.try_join_next().is_some() {}
            let (client, topic) = (self.client.clone(), self.topic.clone());
            let shared = Arc::clone(&self.shared);
            let payload = message(shared.nanos(due), self.size);
            publishing.spawn(async move {
                let result = client.publish(&topic, payload).await;
                drop(place);
                let mut counts = shared.counts();
                counts.late.add_between(due, sent);
                counts.publish(result);
            });
        }
        // As in calls: what was due and never sent has waited this long at least.
        let now = Instant::now();
        let end = limit.end.map_or(now, |end| end.min(now));
        let due = pace.due_before(end).min(count.unwrap_or(u64::MAX));
        let mut counts = self.shared.counts();
        for number in number..due {
            counts.times.add_between(pace.due(number), end);
        }
        counts.unsent = due.saturating_sub(number);
    }
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    setting: Setting<'a>,
    subscribers: u32,
    in_flight: u32,
    published: u64,
    published_per_s: f64,
    delivered: u64,
    delivered_per_s: f64,
    latency_us: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    late_us: Option<Percentiles>,
    unsent: u64,
    missing: u64,
    errors: BTreeMap<String, u64>,
}

fn tell(
    name: &str,
    setting: Setting<'_>,
    command: &BenchTopic,
    in_flight: u32,
    counts: &Counts,
    output: &Output,
) -> Outcome {
    let size = u64::try_from(setting.size).unwrap_or(u64::MAX);
    let published_per_s = per_second(counts.published, counts.publishing);
    let delivered_per_s = per_second(counts.delivered, counts.delivering);
    let expected = counts
        .published
        .saturating_mul(u64::from(command.subscribers));
    let missing = expected.saturating_sub(counts.delivered);
    if output.is_json() {
        return output.json(&Told {
            subscribers: command.subscribers,
            in_flight,
            published: counts.published,
            published_per_s,
            delivered: counts.delivered,
            delivered_per_s,
            latency_us: counts.times.percentiles(),
            late_us: counts.late.percentiles(),
            unsent: counts.unsent,
            missing,
            errors: counts.tally.by_name(),
            setting,
        });
    }
    let how = match setting.rate {
        None => format!("{in_flight} in flight"),
        Some(rate) => format!("{} due a second", grouped(rate)),
    };
    let bytes = per_second(counts.delivered.saturating_mul(size), counts.delivering);
    let mut table = Table::new(
        &format!(
            "messages of {} B through {name}, {how}, subscribers: {}, for {}",
            grouped(size),
            command.subscribers,
            time(setting.elapsed_s * 1e6),
        ),
        &output.paint,
    )
    .line(
        "published",
        &format!(
            "{}, {} a second",
            grouped(counts.published),
            grouped_rate(published_per_s)
        ),
    )
    .line(
        "delivered",
        &format!(
            "{}, {} a second, {}",
            grouped(counts.delivered),
            grouped_rate(delivered_per_s),
            bytes_per_second(bytes)
        ),
    )
    .times("latency", counts.times.percentiles())
    .times("sent late", counts.late.percentiles());
    if counts.unsent > 0 {
        let text = format!(
            "{}, with the time they had waited in the latency",
            grouped(counts.unsent)
        );
        table = table.line("not sent", &text);
    }
    if missing > 0 {
        table = table.line("missing", &grouped(missing));
    }
    output.data(table.errors(&counts.tally).text().as_bytes())
}
