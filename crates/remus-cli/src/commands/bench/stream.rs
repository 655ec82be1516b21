//! `remus bench stream`: elements one after the other, from the node or to it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use remus::{Client, Error, Raw};
use remus_node::bench::{BENCH_ELEMENTS_MAX, DownRequest, Taken};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::{BenchStream, Connection as Options};
use crate::failure::Outcome;
use crate::output::{Output, json_line};

use super::report::{
    Percentiles, Table, Tally, Times, bytes_per_second, grouped, grouped_rate, per_second, time,
};
use super::{DRAIN_MAX, Limit, Peers, Setting, must_have_some};

const DOWN: &str = "remus.v2.Bench/Down";
const UP: &str = "remus.v2.Bench/Up";

pub(super) async fn run(
    command: BenchStream,
    options: &Options,
    output: &Output,
    ended: watch::Receiver<bool>,
) -> Outcome {
    let method = if command.up { UP } else { DOWN };
    let peers = Peers::connect(1, options, method, &ended, output).await?;
    let Some(node) = peers.node(0) else {
        return Ok(());
    };
    let load = Load {
        client: node.client.clone(),
        up: command.up,
        size: command.size,
        streams: u64::from(command.streams),
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
    must_have_some(counts.elements, &counts.tally)?;
    let setting = Setting {
        bench: "stream",
        url: &options.url,
        size: command.size,
        connections: 1,
        rate: None,
        interrupted: limit.was_interrupted(),
        elapsed_s: counts.elapsed.as_secs_f64(),
    };
    tell(&name, setting, &command, &counts, output)
}

/// What is being done.
struct Load {
    client: Client,
    up: bool,
    size: usize,
    streams: u64,
}

/// What came of it.
struct Counts {
    /// Elements that have arrived at the other end.
    elements: u64,
    /// Down: from the arrival of one element to that of the next. Up: how long each waited until the stream took it.
    times: Times,
    tally: Tally,
    elapsed: Duration,
}

impl Counts {
    fn new() -> Outcome<Self> {
        Ok(Self {
            elements: 0,
            times: Times::new()?,
            tally: Tally::default(),
            elapsed: Duration::ZERO,
        })
    }
}

impl Load {
    /// Runs all streams until `limit` is over, or `count` elements have gone through all of them together.
    async fn run(&self, limit: &Limit, count: Option<u64>) -> Outcome<Counts> {
        let mut counts = Counts::new()?;
        let mut running = JoinSet::new();
        for number in 0..self.streams {
            let share = match count {
                None => BENCH_ELEMENTS_MAX,
                // The first ones take what does not divide.
                Some(count) => {
                    (count / self.streams).saturating_add(u64::from(number < count % self.streams))
                }
            };
            let (client, limit, size) = (self.client.clone(), limit.clone(), self.size);
            let times = Times::new()?;
            if self.up {
                running.spawn(async move { up(client, limit, size, share, times).await });
            } else {
                running.spawn(async move { down(client, limit, size, share, times).await });
            }
        }
        let collected = async {
            while let Some(ended) = running.join_next().await {
                // A stream that panicked has said so.
                let Ok((elements, times, result)) = ended else {
                    continue;
                };
                counts.elements = counts.elements.saturating_add(elements);
                counts.times.join(&times);
                if let Err(error) = result {
                    counts.tally.add(error);
                }
            }
        };
        let over = async {
            limit.over().await;
            tokio::time::sleep(DRAIN_MAX).await;
        };
        let unanswered = tokio::select! {
            () = collected => false,
            () = over => true,
        };
        if unanswered {
            counts.tally.add(Error::deadline_exceeded(
                "a stream did not end within 5 s after it was to",
            ));
        }
        running.shutdown().await;
        counts.elapsed = limit.begin.elapsed();
        Ok(counts)
    }
}

type Ended = (u64, Times, Result<(), Error>);

/// Receives until the node has sent all, or it is over.
async fn down(client: Client, limit: Limit, size: usize, count: u64, mut times: Times) -> Ended {
    let mut elements = 0;
    let result = async {
        let request = json_line(&DownRequest { size, count })
            .map_err(|_| Error::internal("the request cannot be written"))?;
        let mut stream = client
            .method(DOWN)
            .server_stream::<Bytes, Bytes>(Raw, &Bytes::from(request))
            .await?
            .into_inner();
        let over = limit.over();
        tokio::pin!(over);
        let mut before = Instant::now();
        loop {
            let element = tokio::select! {
                biased;
                element = stream.message() => element?,
                () = &mut over => return Ok(()),
            };
            let now = Instant::now();
            match element {
                None => return Ok(()),
                Some(element) if element.len() != size => {
                    return Err(Error::data_loss("an element is not what was asked for"));
                }
                Some(_) => {}
            }
            times.add_between(before, now);
            elements += 1;
            before = now;
            if limit.is_over(now) {
                return Ok(());
            }
        }
    }
    .await;
    (elements, times, result)
}

/// Sends until all is sent, or it is over; what the node says it took, counts.
async fn up(client: Client, limit: Limit, size: usize, count: u64, mut times: Times) -> Ended {
    let mut taken = Taken::default();
    let result = async {
        let (mut sender, reply) = client.method(UP).client_stream::<Bytes, Bytes>(Raw).await?;
        let payload = Bytes::from(vec![0x5a; size]);
        let sending = async {
            let over = limit.over();
            tokio::pin!(over);
            let mut sent: u64 = 0;
            while sent < count {
                let begin = Instant::now();
                if limit.is_over(begin) {
                    break;
                }
                tokio::select! {
                    biased;
                    // The answer says why it takes no more.
                    result = sender.send(&payload) => if result.is_err() { break },
                    () = &mut over => break,
                }
                times.add_between(begin, Instant::now());
                sent += 1;
            }
            sender.finish();
            sent
        };
        let sent = sending.await;
        let answer = reply.response().await?.into_inner();
        taken = serde_json::from_slice(&answer)
            .map_err(|error| Error::internal(format!("the answer cannot be read: {error}")))?;
        if taken.elements == sent {
            Ok(())
        } else {
            Err(Error::data_loss(
                "the node took another number than was sent",
            ))
        }
    }
    .await;
    (taken.elements, times, result)
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    setting: Setting<'a>,
    up: bool,
    streams: u32,
    elements: u64,
    per_s: f64,
    bytes_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_us: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_us: Option<Percentiles>,
    errors: BTreeMap<String, u64>,
}

fn tell(
    name: &str,
    setting: Setting<'_>,
    command: &BenchStream,
    counts: &Counts,
    output: &Output,
) -> Outcome {
    let size = u64::try_from(setting.size).unwrap_or(u64::MAX);
    let rate = per_second(counts.elements, counts.elapsed);
    let bytes = per_second(counts.elements.saturating_mul(size), counts.elapsed);
    let times = counts.times.percentiles();
    let (gap, wait) = if command.up {
        (None, times)
    } else {
        (times, None)
    };
    if output.is_json() {
        return output.json(&Told {
            up: command.up,
            streams: command.streams,
            elements: counts.elements,
            per_s: rate,
            bytes_per_s: bytes,
            gap_us: gap,
            wait_us: wait,
            errors: counts.tally.by_name(),
            setting,
        });
    }
    let (way, arrived) = if command.up {
        ("to", "taken")
    } else {
        ("from", "received")
    };
    let table = Table::new(
        &format!(
            "elements of {} B {way} {name}, streams: {}, for {}",
            grouped(size),
            command.streams,
            time(setting.elapsed_s * 1e6),
        ),
        &output.paint,
    )
    .line(
        arrived,
        &format!(
            "{}, {} a second, {}",
            grouped(counts.elements),
            grouped_rate(rate),
            bytes_per_second(bytes)
        ),
    )
    .times("gap", gap)
    .times("wait", wait);
    output.data(table.errors(&counts.tally).text().as_bytes())
}
