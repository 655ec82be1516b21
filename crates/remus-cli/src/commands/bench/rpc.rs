//! `remus bench rpc`: calls with one request and one answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use remus::{Client, Error, Raw};
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::cli::{BenchRpc, Connection as Options};
use crate::failure::Outcome;
use crate::output::Output;

use super::pace::{self, Pace};
use super::report::{
    Percentiles, Table, Tally, Times, bytes_per_second, grouped, grouped_rate, per_second, time,
};
use super::{DRAIN_MAX, Limit, Peers, Setting, must_have_some};

const ECHO: &str = "remus.v2.Bench/Echo";

/// Calls of an open loop that may be open at once unless told otherwise. More of them are not measured sooner: their time counts
/// from when they were due.
const IN_FLIGHT_OPEN_LOOP: u32 = 1024;

pub(super) async fn run(
    command: BenchRpc,
    options: &Options,
    output: &Output,
    ended: watch::Receiver<bool>,
) -> Outcome {
    let peers = Peers::connect(command.connections, options, ECHO, &ended, output).await?;
    let in_flight = command.in_flight.unwrap_or(match command.rate {
        None => 1,
        Some(_) => IN_FLIGHT_OPEN_LOOP,
    });
    let clients = (0..peers.connections.len())
        .filter_map(|number| peers.node(number))
        .map(|node| node.client.clone())
        .collect();
    let load = Load {
        clients,
        payload: Bytes::from(vec![0x5a; command.size]),
        in_flight,
        rate: command.rate,
    };
    if !command.span.warm_up.is_zero() {
        let limit = Limit::warming_up(&command.span, &ended);
        load.run(&limit, None).await?;
        limit.go_on()?;
    }
    let limit = Limit::measuring(&command.span, &ended);
    let counts = load.run(&limit, command.span.count).await?;
    let name = peers.name();
    peers.leave().await;
    must_have_some(counts.times.count(), &counts.tally)?;
    let setting = Setting {
        bench: "rpc",
        url: &options.url,
        size: command.size,
        connections: load.clients.len(),
        rate: command.rate,
        interrupted: limit.was_interrupted(),
        elapsed_s: counts.elapsed.as_secs_f64(),
    };
    tell(&name, setting, in_flight, &counts, output)
}

/// What is being done.
struct Load {
    clients: Vec<Client>,
    payload: Bytes,
    in_flight: u32,
    rate: Option<u64>,
}

/// What came of it.
struct Counts {
    /// Of the calls that were answered well, and of those that were due and never sent.
    times: Times,
    /// How long after it was due each call of an open loop was sent.
    late: Times,
    tally: Tally,
    answered: u64,
    /// Calls of an open loop that were due and never sent.
    unsent: u64,
    /// Calls that were sent, and of which nothing came within [`DRAIN_MAX`] after the end.
    unanswered: u64,
    elapsed: Duration,
}

impl Counts {
    fn new() -> Outcome<Self> {
        Ok(Self {
            times: Times::new()?,
            late: Times::new()?,
            tally: Tally::default(),
            answered: 0,
            unsent: 0,
            unanswered: 0,
            elapsed: Duration::ZERO,
        })
    }

    fn add(&mut self, due: Instant, result: Result<(), Error>) {
        match result {
            Ok(()) => {
                self.times.add_between(due, Instant::now());
                self.answered = self.answered.saturating_add(1);
            }
            Err(error) => self.tally.add(error),
        }
    }
}

impl Load {
    /// Makes calls until `limit` is over, or `count` of them were made.
    async fn run(&self, limit: &Limit, count: Option<u64>) -> Outcome<Counts> {
        let counts = Arc::new(Mutex::new(Counts::new()?));
        let lock = || counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut calls = JoinSet::new();
        let mut open = Open::default();
        match self.rate {
            None => self.closed_loop(limit, count, &counts, &mut calls, &open),
            Some(rate) => {
                let pace = Pace::new(limit.begin, rate);
                let unsent = self
                    .open_loop(limit, count, pace, &counts, &mut calls, &mut open)
                    .await;
                lock().unsent = unsent;
            }
        }
        let drained = async { while calls.join_next().await.is_some() {} };
        let over = async {
            limit.over().await;
            tokio::time::sleep(DRAIN_MAX).await;
        };
        tokio::select! {
            () = drained => {}
            () = over => {}
        }
        calls.shutdown().await;
        let elapsed = limit.begin.elapsed();
        let mut counts = lock();
        let mut ended = std::mem::replace(&mut *counts, Counts::new()?);
        ended.elapsed = elapsed;
        ended.unanswered = open.0.load(Ordering::Relaxed);
        Ok(ended)
    }

    /// As many callers as calls may be open, each with one call after the other.
    fn closed_loop(
        &self,
        limit: &Limit,
        count: Option<u64>,
        counts: &Arc<Mutex<Counts>>,
        calls: &mut JoinSet<()>,
        open: &Open,
    ) {
        let left = Arc::new(AtomicU64::new(count.unwrap_or(u64::MAX)));
        for number in 0..self.in_flight {
            let Some(client) = self.client(u64::from(number)) else {
                return;
            };
            let (limit, counts, left) = (limit.clone(), Arc::clone(counts), Arc::clone(&left));
            let (payload, open) = (self.payload.clone(), open.clone());
            calls.spawn(async move {
                loop {
                    let begin = Instant::now();
                    if limit.is_over(begin) || !take_one(&left) {
                        return;
                    }
                    open.0.fetch_add(1, Ordering::Relaxed);
                    let result = echo(&client, &payload).await;
                    open.0.fetch_sub(1, Ordering::Relaxed);
                    counts
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .add(begin, result);
                }
            });
        }
    }

    /// A call whenever one is due. Returns how many were due and never sent.
    async fn open_loop(
        &self,
        limit: &Limit,
        count: Option<u64>,
        pace: Pace,
        counts: &Arc<Mutex<Counts>>,
        calls: &mut JoinSet<()>,
        open: &mut Open,
    ) -> u64 {
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
            let (Ok(place), Some(client)) = (place, self.client(number)) else {
                break;
            };
            let sent = Instant::now();
            if limit.is_over(sent) {
                break;
            }
            number += 1;
            let (counts, payload, open) = (Arc::clone(counts), self.payload.clone(), open.clone());
            open.0.fetch_add(1, Ordering::Relaxed);
            // What has ended is forgotten, so that the set holds no more than the places.
            while calls.try_join_next().is_some() {}
            calls.spawn(async move {
                let result = echo(&client, &payload).await;
                open.0.fetch_sub(1, Ordering::Relaxed);
                drop(place);
                let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                counts.late.add_between(due, sent);
                counts.add(due, result);
            });
        }
        // What was due by now and never sent has waited this long at least: leaving it out would leave out the worst.
        let now = Instant::now();
        let end = limit.end.map_or(now, |end| end.min(now));
        let due = pace.due_before(end).min(count.unwrap_or(u64::MAX));
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        for number in number..due {
            counts.times.add_between(pace.due(number), end);
        }
        due.saturating_sub(number)
    }

    fn client(&self, number: u64) -> Option<Client> {
        let count = u64::try_from(self.clients.len()).ok()?;
        let place = usize::try_from(number.checked_rem(count)?).ok()?;
        self.clients.get(place).cloned()
    }
}

/// Calls that are open.
#[derive(Clone, Default)]
struct Open(Arc<AtomicU64>);

fn take_one(left: &AtomicU64) -> bool {
    let take = |left: u64| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        .is_ok()
}

async fn echo(client: &Client, payload: &Bytes) -> Result<(), Error> {
    let answer = client
        .method(ECHO)
        .unary::<Bytes, Bytes>(Raw, payload)
        .await?
        .into_inner();
    if answer.len() == payload.len() {
        Ok(())
    } else {
        Err(Error::data_loss("an echo is not what was sent"))
    }
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    setting: Setting<'a>,
    in_flight: u32,
    calls: u64,
    per_s: f64,
    latency_us: Option<Percentiles>,
    /// Of an open loop: how late this side was itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    late_us: Option<Percentiles>,
    unsent: u64,
    unanswered: u64,
    errors: BTreeMap<String, u64>,
}

fn tell(
    name: &str,
    setting: Setting<'_>,
    in_flight: u32,
    counts: &Counts,
    output: &Output,
) -> Outcome {
    let rate = per_second(counts.answered, counts.elapsed);
    if output.is_json() {
        return output.json(&Told {
            in_flight,
            calls: counts.answered,
            per_s: rate,
            latency_us: counts.times.percentiles(),
            late_us: counts.late.percentiles(),
            unsent: counts.unsent,
            unanswered: counts.unanswered,
            errors: counts.tally.by_name(),
            setting,
        });
    }
    let how = match setting.rate {
        None => format!("{in_flight} in flight"),
        Some(rate) => format!("{} due a second", grouped(rate)),
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "a size below 2^53 bytes, to three digits"
    )]
    let bytes = rate * setting.size as f64;
    let mut table = Table::new(
        &format!(
            "calls of {} B at {name}, {how}, connections: {}, for {}",
            grouped(u64::try_from(setting.size).unwrap_or(u64::MAX)),
            setting.connections,
            time(setting.elapsed_s * 1e6),
        ),
        &output.paint,
    )
    .line(
        "answered",
        &format!(
            "{}, {} a second, {} each way",
            grouped(counts.answered),
            grouped_rate(rate),
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
    if counts.unanswered > 0 {
        table = table.line("no answer", &grouped(counts.unanswered));
    }
    output.data(table.errors(&counts.tally).text().as_bytes())
}
