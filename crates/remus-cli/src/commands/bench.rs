//! `remus bench`: what a node and the way to it carry, and how long users of it wait.
//!
//! Without a rate the loop is closed: an operation begins when another has ended, so the time in which a node stands still is
//! measured once, by the operations that were open then, and the ones that would have come meanwhile are left out. That is fine
//! for what a node carries and wrong for how long users wait (coordinated omission). With a rate the loop is open: each operation
//! is due at its own time and its latency counts from then on, sent or not. What was due and never sent counts with the time that it
//! had waited at the end, which is the least that it can have been; and how late this side was itself is told beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use remus::{Connection, ErrorCode};
use serde::Serialize;
use tokio::sync::watch;

use crate::cli::{Bench, Connection as Options, Measured, Span};
use crate::connect::Node;
use crate::directory::Directory;
use crate::failure::{Failure, Outcome, Stop};
use crate::output::Output;

use super::interrupt;

mod pace;
mod report;
mod rpc;
mod stream;
mod topic;

/// What may still be open at the end of a measurement is waited for this long: a node that has stood still for longer counts as
/// one that does not answer.
const DRAIN_MAX: Duration = Duration::from_secs(5);

pub(crate) async fn run(command: Bench, options: &Options, output: &Output) -> Outcome {
    let (ending, ended) = watch::channel(false);
    let measuring = async {
        match command.what {
            Measured::Rpc(command) => rpc::run(command, options, output, ended).await,
            Measured::Stream(command) => stream::run(command, options, output, ended).await,
            Measured::Topic(command) => topic::run(command, options, output, ended).await,
        }
    };
    tokio::pin!(measuring);
    tokio::select! {
        outcome = &mut measuring => return outcome,
        // Asked for the result so far.
        () = interrupt() => {}
    }
    ending.send_replace(true);
    tokio::select! {
        outcome = measuring => outcome,
        // Not even for that.
        () = interrupt() => Err(Stop::Interrupted),
    }
}

/// Whether, and when, a measurement is over.
#[derive(Clone)]
struct Limit {
    begin: Instant,
    /// `None` where a number of operations ends it.
    end: Option<Instant>,
    ended: watch::Receiver<bool>,
}

impl Limit {
    /// From now on, for as long as `span` says.
    fn measuring(span: &Span, ended: &watch::Receiver<bool>) -> Self {
        Self::new(span.count.is_none().then_some(span.duration), ended)
    }

    /// From now on, for the time before that counts.
    fn warming_up(span: &Span, ended: &watch::Receiver<bool>) -> Self {
        Self::new(Some(span.warm_up), ended)
    }

    fn new(time: Option<Duration>, ended: &watch::Receiver<bool>) -> Self {
        let begin = Instant::now();
        Self {
            begin,
            // At most a day, which every clock can hold.
            end: time.and_then(|time| begin.checked_add(time)),
            ended: ended.clone(),
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.end.is_some_and(|end| now >= end) || *self.ended.borrow()
    }

    fn was_interrupted(&self) -> bool {
        *self.ended.borrow()
    }

    /// Ends the command where nothing was measured yet.
    fn go_on(&self) -> Outcome {
        if self.was_interrupted() {
            Err(Stop::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Waits until it is over; for ever where only a number of operations ends it.
    async fn over(&self) {
        let mut ended = self.ended.clone();
        let interrupted = async {
            if ended.wait_for(|ended| *ended).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        match self.end {
            Some(end) => tokio::select! {
                () = tokio::time::sleep_until(end.into()) => {}
                () = interrupted => {}
            },
            None => interrupted.await,
        }
    }
}

/// Connections to the node, opened before anything is measured.
struct Peers {
    nodes: Vec<Arc<Node>>,
    connections: Vec<Connection>,
}

impl Peers {
    /// Connects `count` times, and makes sure that the node has what is measured against.
    async fn connect(
        count: u32,
        options: &Options,
        method: &str,
        ended: &watch::Receiver<bool>,
        output: &Output,
    ) -> Outcome<Self> {
        let limit = Limit::new(None, ended);
        tokio::select! {
            peers = Self::connect_all(count, options, method, output) => peers,
            // There is no result yet.
            () = limit.over() => Err(Stop::Interrupted),
        }
    }

    async fn connect_all(
        count: u32,
        options: &Options,
        method: &str,
        output: &Output,
    ) -> Outcome<Self> {
        let mut peers = Self {
            nodes: Vec::new(),
            connections: Vec::new(),
        };
        for _ in 0..count {
            let node = Node::of(options)?;
            // The others fare alike, and one line says it.
            let connection = if peers.nodes.is_empty() {
                node.connect_and_tell(output).await?
            } else {
                node.connect().await?
            };
            let active = connection.active().await;
            active.map_err(|reason| Failure::from(remus::Error::from(reason)))?;
            peers.connections.push(connection);
            peers.nodes.push(Arc::new(node));
        }
        let first = peers
            .nodes
            .first()
            .ok_or_else(|| Failure::new(ErrorCode::INTERNAL, "no connection was asked for"))?;
        let directory = Directory::fetch(first).await?;
        let is_there =
            directory.is_some_and(|directory| directory.methods().any(|(name, _)| name == method));
        if !is_there {
            return Err(Failure::new(
                ErrorCode::NOT_FOUND,
                format!(
                    "{} has no method `{method}` to measure against",
                    first.name()
                ),
            )
            .hint("every node of this version has one: see what runs there with `remus ls`")
            .into());
        }
        Ok(peers)
    }

    /// The node of connection `number`, counted around.
    fn node(&self, number: usize) -> Option<&Arc<Node>> {
        let place = number.checked_rem(self.nodes.len())?;
        self.nodes.get(place)
    }

    fn name(&self) -> String {
        self.nodes
            .first()
            .map(|node| node.name())
            .unwrap_or_default()
    }

    async fn leave(self) {
        for (node, connection) in self.nodes.iter().zip(&self.connections) {
            node.leave(connection).await;
        }
    }
}

/// What all results say of how they came about.
#[derive(Serialize)]
struct Setting<'a> {
    bench: &'static str,
    url: &'a str,
    size: usize,
    connections: usize,
    /// `None` for a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
    interrupted: bool,
    elapsed_s: f64,
}

/// Fails where nothing at all was measured, with the error that was met most often.
fn must_have_some(answered: u64, tally: &report::Tally) -> Outcome {
    match tally.most_frequent() {
        Some(error) if answered == 0 => Err(Stop::from(error)),
        _ => Ok(()),
    }
}
