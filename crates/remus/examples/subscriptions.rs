//! What a publication costs at a broker with many subscriptions: it should grow with those that match, and with nothing else.
//!
//! `cargo run --release -p remus --example subscriptions` opens 0, 1,000 and 100,000 subscriptions that do not match, half of them
//! with wildcards, and 1, 10 and 100 that do, and prints the time of a publication: medians of rounds that take turns.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measurement that fails says so and ends"
)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use remus::{Broker, Overflow, SubscribeOptions, Subscription};

const OTHERS: [usize; 3] = [0, 1_000, 100_000];
const MATCHING: [usize; 3] = [1, 10, 100];
const ROUNDS: usize = 11;
const PUBLICATIONS: u32 = 2_000;

fn options() -> SubscribeOptions {
    SubscribeOptions {
        overflow: Overflow::DropOldest,
        capacity: 1,
        queue_group: None,
    }
}

/// A broker and the subscriptions that keep it busy.
struct Setting {
    others: usize,
    matching: usize,
    broker: Broker,
    _open: Vec<Subscription>,
    took: Vec<Duration>,
}

impl Setting {
    fn new(others: usize, matching: usize) -> Self {
        let broker = Broker::new();
        let subscribe = |pattern: &str| {
            let subscription = broker.subscribe(pattern, options());
            subscription.expect("the broker takes it")
        };
        let patterns = (0..others).map(|n| match n % 4 {
            0 => format!("orders.eu.{n}"),
            1 => format!("orders.us.{n}.placed"),
            2 => format!("orders.*.{n}"),
            _ => format!("metrics.{n}.>"),
        });
        let mut open: Vec<_> = patterns.map(|pattern| subscribe(&pattern)).collect();
        open.extend((0..matching).map(|n| match n % 3 {
            0 => subscribe("orders.eu.new"),
            1 => subscribe("orders.*.new"),
            _ => subscribe("orders.>"),
        }));
        Self {
            others,
            matching,
            broker,
            _open: open,
            took: Vec::new(),
        }
    }

    fn round(&mut self) {
        let payload = Bytes::from_static(&[7; 128]);
        let start = Instant::now();
        for _ in 0..PUBLICATIONS {
            let published = self.broker.try_publish("orders.eu.new", payload.clone());
            published.expect("the broker is open");
        }
        self.took.push(start.elapsed() / PUBLICATIONS);
    }
}

fn main() {
    let mut settings: Vec<Setting> = MATCHING
        .into_iter()
        .flat_map(|matching| OTHERS.map(|others| Setting::new(others, matching)))
        .collect();
    for _ in 0..ROUNDS {
        settings.iter_mut().for_each(Setting::round);
    }
    println!("matching  others      a publication");
    for setting in &mut settings {
        setting.took.sort_unstable();
        let median = setting.took.get(ROUNDS / 2).copied().unwrap_or_default();
        println!(
            "{:>8}  {:>7}  {median:>15.0?}",
            setting.matching, setting.others
        );
    }
}
