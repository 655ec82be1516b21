//! What is measured: the cases, their parameters, and the matrices of them that a run goes through.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Result;

/// Bytes of a small message, of one on a topic, and of a large one.
const SMALL: usize = 64;
const TOPIC: usize = 128;
const LARGE: usize = 64 * 1024;

/// Kinds of work.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Calls with one answer each, on one connection.
    Unary,
    /// Messages from the server, one stream on one connection.
    Stream,
    /// Bytes to the server, one stream.
    #[value(name = "bulk_up", alias = "bulk-up")]
    BulkUp,
    /// Bytes from the server, one stream.
    #[value(name = "bulk_down", alias = "bulk-down")]
    BulkDown,
    /// Messages from one publisher to subscribers, through a broker; every one on a connection of its own.
    Topic,
    /// From nothing to the first answer, one connection after the other.
    Setup,
    /// Connections that do nothing, and the memory of the server for them; calls are made beside them.
    Idle,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Stream => "stream",
            Self::BulkUp => "bulk_up",
            Self::BulkDown => "bulk_down",
            Self::Topic => "topic",
            Self::Setup => "setup",
            Self::Idle => "idle",
        }
    }
}

/// The runtime of client and server, where they are ours to choose.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Runtime {
    /// tokio's current-thread runtime, `w0` in the results.
    Current,
    /// tokio's multi-thread runtime with two workers, `w2` in the results.
    Multi,
}

impl Runtime {
    /// Workers of [`Runtime::Multi`].
    const WORKERS: usize = 2;

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Current => "w0",
            Self::Multi => "w2",
        }
    }

    /// The name on the command line.
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Multi => "multi",
        }
    }

    pub(crate) fn build(self) -> Result<tokio::runtime::Runtime> {
        let mut builder = match self {
            Self::Current => tokio::runtime::Builder::new_current_thread(),
            Self::Multi => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(Self::WORKERS);
                builder
            }
        };
        Ok(builder.enable_all().build()?)
    }
}

/// One kind of work with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    /// Bytes of a payload: a call's in both directions, a message's, a write's.
    pub(crate) size: usize,
    /// Unary: calls in flight. Of the others, one.
    pub(crate) in_flight: usize,
    /// Topic: subscribers. Idle: idle connections. Of the others, one.
    pub(crate) count: usize,
    /// Unary: calls per second of an open loop.
    pub(crate) rate: Option<u64>,
    pub(crate) runtime: Runtime,
}

impl Case {
    fn new(kind: Kind, size: usize) -> Self {
        Self {
            kind,
            size,
            in_flight: 1,
            count: 1,
            rate: None,
            runtime: Runtime::Current,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            size,
            in_flight,
            count,
            rate,
            ..
        } = self;
        match (kind, rate) {
            (Kind::Unary, None) => write!(f, "unary {size} B x{in_flight}"),
            (Kind::Unary, Some(rate)) => write!(f, "unary {size} B at {rate}/s"),
            (Kind::Topic, _) => write!(f, "topic {size} B 1->{count}"),
            (Kind::Idle, _) => write!(f, "idle {count}"),
            (Kind::Setup, _) => f.write_str("setup"),
            _ => write!(f, "{} {size} B", kind.name()),
        }
    }
}

/// What was asked for on the command line.
pub(crate) struct Matrix<'a> {
    pub(crate) quick: bool,
    pub(crate) only: &'a [Kind],
    pub(crate) in_flight: Option<usize>,
    pub(crate) size: Option<usize>,
    pub(crate) rate: Option<u64>,
    pub(crate) subscribers: Option<usize>,
    pub(crate) connections: Option<usize>,
    pub(crate) runtime: Runtime,
}

impl Matrix<'_> {
    pub(crate) fn cases(&self) -> Vec<Case> {
        let all = [
            Kind::Unary,
            Kind::Stream,
            Kind::BulkUp,
            Kind::BulkDown,
            Kind::Topic,
            Kind::Setup,
            Kind::Idle,
        ];
        all.into_iter()
            .filter(|kind| self.only.is_empty() || self.only.contains(kind))
            // A runtime of two workers is a question about calls and streams.
            .filter(|kind| {
                self.runtime == Runtime::Current || matches!(kind, Kind::Unary | Kind::Stream)
            })
            .flat_map(|kind| self.of(kind))
            .map(|case| Case {
                runtime: self.runtime,
                ..case
            })
            .collect()
    }

    fn of(&self, kind: Kind) -> Vec<Case> {
        match kind {
            Kind::Unary => {
                let case = Case::new(kind, self.size.unwrap_or(SMALL));
                if self.rate.is_some() {
                    return vec![Case {
                        rate: self.rate,
                        ..case
                    }];
                }
                choice(self.in_flight, &[1, 64, 256], self.quick)
                    .into_iter()
                    .map(|in_flight| Case {
                        in_flight,
                        ..case.clone()
                    })
                    .collect()
            }
            Kind::Stream => choice(self.size, &[1024, LARGE], false)
                .into_iter()
                .map(|size| Case::new(kind, size))
                .collect(),
            Kind::BulkUp | Kind::BulkDown => vec![Case::new(kind, self.size.unwrap_or(LARGE))],
            Kind::Topic => choice(self.subscribers, &[1, 16], false)
                .into_iter()
                .map(|count| Case {
                    count,
                    ..Case::new(kind, self.size.unwrap_or(TOPIC))
                })
                .collect(),
            Kind::Setup => vec![Case::new(kind, self.size.unwrap_or(SMALL))],
            Kind::Idle => choice(self.connections, &[2000, 10_000], self.quick)
                .into_iter()
                .take(if self.quick { 1 } else { usize::MAX })
                .map(|count| Case {
                    count: if self.quick && self.connections.is_none() {
                        200
                    } else {
                        count
                    },
                    ..Case::new(kind, self.size.unwrap_or(SMALL))
                })
                .collect(),
        }
    }
}

/// What was asked for, or all of the matrix, or, in the quick matrix, all but the last.
fn choice(asked: Option<usize>, all: &[usize], quick: bool) -> Vec<usize> {
    match (asked, all) {
        (Some(value), _) => vec![value],
        (None, [most @ .., _]) if quick => most.to_vec(),
        (None, all) => all.to_vec(),
    }
}
