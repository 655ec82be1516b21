//! What comes out: a JSON line for each case and peer, and a table of them with ratios.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::Result;
use crate::case::{Case, Kind, Runtime};
use crate::load::Outcome;
use crate::peer::Peer;

/// Cores that others may use in a round that counts as quiet. The bench itself needs both of a small machine.
const QUIET_CORES: f64 = 0.12;

/// Quiet rounds without which the disturbed ones count as well.
const QUIET_ROUNDS: usize = 2;

/// One measurement, or the median of several.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) carrier: &'static str,
    /// `w0`: current-thread on both sides, `w2`: multi-thread with two workers, `own`: the peer brings its own.
    pub(crate) runtime: &'static str,
    pub(crate) in_flight: usize,
    pub(crate) size: usize,
    /// Subscribers of a topic, idle connections; one otherwise.
    pub(crate) count: usize,
    /// Calls per second of an open loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<u64>,
    /// Calls, messages delivered, writes of `size` bytes, connections.
    pub(crate) per_s: f64,
    pub(crate) bytes_per_s: f64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// Of client, server and broker together.
    pub(crate) cpu_us_per_op: f64,
    /// Cores that other processes, or the host of a virtual machine, used meanwhile.
    pub(crate) others_cores: f64,
    /// Of the server at the end.
    pub(crate) rss_bytes: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection_bytes: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_connection_bytes: Option<f64>,
}

/// A row with where it comes from.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    row: &'a Row,
    #[serde(skip_serializing_if = "Option::is_none")]
    round: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spread: Option<&'a Spread>,
}

/// Of how many rounds a row is the median, and how far apart their rates were.
#[derive(Debug, Serialize)]
struct Spread {
    rounds: usize,
    /// Rounds left out because others used the machine.
    disturbed: usize,
    per_s_min: f64,
    per_s_max: f64,
}

/// A median and its spread.
pub(crate) struct Median {
    row: Row,
    spread: Spread,
}

impl Median {
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(&Line {
            row: &self.row,
            round: None,
            spread: Some(&self.spread),
        })?)
    }
}

impl Row {
    pub(crate) fn new(case: &Case, peer: Peer, runtime: Runtime, outcome: &Outcome) -> Self {
        let Outcome {
            operations,
            bytes,
            seconds,
            cpu_seconds,
            ..
        } = *outcome;
        #[expect(clippy::cast_precision_loss, reason = "bytes of a run are below 2^52")]
        Self {
            case: case.kind.name(),
            peer: peer.product(),
            carrier: peer.carrier(),
            runtime: if peer.brings_runtime() {
                "own"
            } else {
                runtime.name()
            },
            in_flight: case.in_flight,
            size: case.size,
            count: case.count,
            rate: case.rate,
            per_s: rounded(operations / seconds),
            bytes_per_s: rounded(bytes as f64 / seconds),
            p50_us: outcome.p50_us,
            p99_us: outcome.p99_us,
            cpu_us_per_op: rounded(cpu_seconds * 1e6 / operations.max(1.0)),
            others_cores: rounded(outcome.others_cpu_seconds / seconds),
            rss_bytes: outcome.rss_bytes as f64,
            connection_bytes: outcome.connection_bytes.map(rounded),
            client_connection_bytes: outcome.client_connection_bytes.map(rounded),
        }
    }

    pub(crate) fn json(&self, round: usize) -> Result<String> {
        Ok(serde_json::to_string(&Line {
            row: self,
            round: Some(round),
            spread: None,
        })?)
    }

    /// What a case is about, and whether more of it is better.
    fn figure(&self, kind: Kind) -> Figure {
        match kind {
            Kind::Setup => Figure {
                value: self.p50_us.unwrap_or(f64::NAN) / 1e3,
                unit: "ms",
                more_is_better: false,
            },
            Kind::Idle => Figure {
                value: self.connection_bytes.unwrap_or(f64::NAN) / 1024.0,
                unit: "KiB each",
                more_is_better: false,
            },
            Kind::BulkUp | Kind::BulkDown => Figure {
                value: self.bytes_per_s / 1e6,
                unit: "MB/s",
                more_is_better: true,
            },
            Kind::Unary if self.in_flight == 1 => Figure {
                value: self.p50_us.unwrap_or(f64::NAN),
                unit: "us p50",
                more_is_better: false,
            },
            Kind::Unary | Kind::Stream | Kind::Topic => Figure {
                value: self.per_s,
                unit: "/s",
                more_is_better: true,
            },
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            case,
            peer,
            carrier,
            size,
            in_flight,
            count,
            ..
        } = self;
        write!(
            f,
            "{case} {size} B x{in_flight} n={count} {peer} ({carrier}): {:.0}/s",
            self.per_s
        )?;
        if let (Some(p50), Some(p99)) = (self.p50_us, self.p99_us) {
            write!(f, ", p50 {p50:.1} us, p99 {p99:.1} us")?;
        }
        if let Some(bytes) = self.connection_bytes {
            write!(f, ", {:.1} KiB a connection", bytes / 1024.0)?;
        }
        write!(f, ", CPU {:.2} us", self.cpu_us_per_op)?;
        if self.others_cores > QUIET_CORES {
            write!(f, "; others used {:.2} cores", self.others_cores)?;
        }
        Ok(())
    }
}

struct Figure {
    value: f64,
    unit: &'static str,
    more_is_better: bool,
}

/// All rows of a run.
#[derive(Default)]
pub(crate) struct Report {
    rows: BTreeMap<Case, BTreeMap<Peer, Vec<Row>>>,
    failed: BTreeSet<(Case, Peer)>,
    skipped: BTreeMap<Peer, String>,
}

impl Report {
    pub(crate) fn add(&mut self, case: &Case, peer: Peer, row: Row) {
        let peers = self.rows.entry(case.clone()).or_default();
        peers.entry(peer).or_default().push(row);
    }

    pub(crate) fn fail(&mut self, case: &Case, peer: Peer) {
        self.failed.insert((case.clone(), peer));
    }

    pub(crate) fn skip(&mut self, peer: Peer, reason: &str) {
        self.skipped.insert(peer, reason.to_owned());
    }

    pub(crate) fn is_skipped(&self, peer: Peer) -> bool {
        self.skipped.contains_key(&peer)
    }

    /// A row for each case and peer: each field is the median of its rounds.
    pub(crate) fn medians(&self) -> Vec<Median> {
        self.rows
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(|rows| median(rows))
            .collect()
    }

    /// The figures that matter, each beside that of Remus.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        for (case, peers) in &self.rows {
            let medians: Vec<(Peer, Median)> = peers
                .iter()
                .filter_map(|(peer, rows)| Some((*peer, median(rows)?)))
                .collect();
            let of = |wanted: Peer| {
                let found = medians.iter().find(|(peer, _)| *peer == wanted);
                found.map(|(_, median)| median.row.figure(case.kind))
            };
            let remus = of(Peer::Remus);
            let _ = writeln!(out, "\n{case}, {}", case.runtime.name());
            let _ = writeln!(
                out,
                "  {:<17} {:>22} {:>11} {:>11} {:>11}  {:>9}  remus is",
                "", "", "p50 us", "p99 us", "CPU us", "disturbed"
            );
            for (peer, Median { row, spread }) in &medians {
                let disturbed = if row.others_cores > QUIET_CORES {
                    "ALL"
                } else if spread.disturbed > 0 {
                    "some"
                } else {
                    ""
                };
                let figure = row.figure(case.kind);
                let ratio = match &remus {
                    Some(remus) if *peer != Peer::Remus => {
                        let times = if figure.more_is_better {
                            remus.value / figure.value
                        } else {
                            figure.value / remus.value
                        };
                        format!("{times:.2} x as good")
                    }
                    _ => String::new(),
                };
                let _ = writeln!(
                    out,
                    "  {:<17} {:>12} {:<9} {:>11} {:>11} {:>11.2}  {disturbed:>9}  {ratio}",
                    peer.name(),
                    number(figure.value),
                    figure.unit,
                    row.p50_us.map_or_else(String::new, number),
                    row.p99_us.map_or_else(String::new, number),
                    row.cpu_us_per_op,
                );
            }
        }
        for (case, peer) in &self.failed {
            let _ = writeln!(out, "\n{case}: {} FAILED at least once", peer.name());
        }
        for (peer, reason) in &self.skipped {
            let _ = writeln!(out, "\n{} was SKIPPED: {reason}", peer.name());
        }
        out
    }
}

/// To the thousandth, which is more than the digits that mean something.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// With the digits that mean something.
fn number(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

/// Of the quiet rounds, where there are enough.
fn median(all: &[Row]) -> Option<Median> {
    let quiet: Vec<Row> = all
        .iter()
        .filter(|row| row.others_cores <= QUIET_CORES)
        .cloned()
        .collect();
    let rows = if quiet.len() < QUIET_ROUNDS {
        all
    } else {
        &quiet
    };
    let of = |field: &dyn Fn(&Row) -> Option<f64>| -> Option<f64> {
        let mut values: Vec<f64> = rows.iter().filter_map(field).collect();
        values.sort_by(f64::total_cmp);
        let upper = values.get(values.len() / 2)?;
        let lower = values.get(values.len().saturating_sub(1) / 2)?;
        Some((upper + lower) / 2.0)
    };
    let per_s = |row: &Row| Some(row.per_s);
    let rates = || rows.iter().map(|row| row.per_s);
    Some(Median {
        row: Row {
            per_s: of(&per_s)?,
            bytes_per_s: of(&|row| Some(row.bytes_per_s))?,
            p50_us: of(&|row| row.p50_us),
            p99_us: of(&|row| row.p99_us),
            cpu_us_per_op: of(&|row| Some(row.cpu_us_per_op))?,
            others_cores: of(&|row| Some(row.others_cores))?,
            rss_bytes: of(&|row| Some(row.rss_bytes))?,
            connection_bytes: of(&|row| row.connection_bytes),
            client_connection_bytes: of(&|row| row.client_connection_bytes),
            ..rows.first()?.clone()
        },
        spread: Spread {
            rounds: rows.len(),
            disturbed: all.len() - rows.len(),
            per_s_min: rates().fold(f64::INFINITY, f64::min),
            per_s_max: rates().fold(f64::NEG_INFINITY, f64::max),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(per_s: f64, others_cores: f64) -> Row {
        let outcome = Outcome {
            operations: per_s,
            seconds: 1.0,
            cpu_seconds: 2.0,
            others_cpu_seconds: others_cores,
            p50_us: Some(1e6 / per_s),
            ..Outcome::default()
        };
        let case = Case {
            kind: Kind::Unary,
            size: 64,
            in_flight: 64,
            count: 1,
            rate: None,
            runtime: Runtime::Current,
        };
        Row::new(&case, Peer::Remus, Runtime::Current, &outcome)
    }

    #[test]
    fn medians_are_of_the_quiet_rounds() {
        let rows = [
            row(100.0, 0.0),
            row(10.0, 0.5),
            row(300.0, 0.1),
            row(20.0, 0.9),
        ];
        let Median { row, spread } = median(&rows).unwrap();
        assert_eq!(row.per_s, 200.0);
        assert_eq!((spread.rounds, spread.disturbed), (2, 2));
        assert_eq!((spread.per_s_min, spread.per_s_max), (100.0, 300.0));
    }

    #[test]
    fn one_quiet_round_is_too_few() {
        let rows = [row(100.0, 0.0), row(10.0, 0.5), row(20.0, 0.9)];
        let Median { row, spread } = median(&rows).unwrap();
        assert_eq!(row.per_s, 20.0);
        assert_eq!((spread.rounds, spread.disturbed), (3, 0));
    }
}
