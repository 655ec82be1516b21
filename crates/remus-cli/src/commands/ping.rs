//! `remus ping`: how far the node is, and how it is reached.

use std::net::SocketAddr;
use std::time::Duration;

use remus::{ConnectionStatus, ErrorCode, PathEstimate};
use serde::Serialize;

use crate::cli::{Connection, Ping};
use crate::connect::Node;
use crate::directory::Directory;
use crate::failure::{Failure, Outcome, Stop, printable};
use crate::output::Output;

use super::with_node;

/// How long an echo is waited for; a node that is slower than this is as good as gone.
const ECHO_MAX: Duration = Duration::from_secs(5);

/// One measurement for programs.
#[derive(Serialize)]
struct Measured<'a> {
    seq: u64,
    rtt_us: u64,
    clock_offset_us: i64,
    url: &'a str,
    address: String,
    node: Option<&'a str>,
    carrier: &'static str,
    protocol: String,
    tls: &'a str,
    key_exchange: Option<&'a str>,
}

/// What a series of measurements comes to.
#[derive(Default)]
struct Series {
    count: u64,
    least: Option<Duration>,
    most: Duration,
    sum: Duration,
}

impl Series {
    fn add(&mut self, rtt: Duration) {
        self.count = self.count.saturating_add(1);
        self.least = Some(self.least.map_or(rtt, |least| least.min(rtt)));
        self.most = self.most.max(rtt);
        self.sum = self.sum.saturating_add(rtt);
    }

    fn mean(&self) -> Duration {
        self.sum
            .checked_div(u32::try_from(self.count).unwrap_or(u32::MAX))
            .unwrap_or_default()
    }
}

pub(crate) async fn run(command: Ping, options: &Connection, output: &Output) -> Outcome {
    let node = Node::of(options)?;
    let mut series = Series::default();
    let outcome = with_node(node, output, async |node| {
        measure(node, &command, options, output, &mut series).await
    })
    .await;
    if series.count > 0 && !output.is_json() && !matches!(outcome, Err(Stop::PipeClosed)) {
        output.line(&format!(
            "{} answered, round trip {} least, {} mean, {} most",
            series.count,
            milliseconds(series.least.unwrap_or_default()),
            milliseconds(series.mean()),
            milliseconds(series.most),
        ))?;
    }
    match outcome {
        // Asked for the result so far.
        Err(Stop::Interrupted) if series.count > 0 => Ok(()),
        outcome => outcome,
    }
}

async fn measure(
    node: &Node,
    command: &Ping,
    options: &Connection,
    output: &Output,
    series: &mut Series,
) -> Outcome {
    let connection = node.client.connection().await?;
    connection.active().await.map_err(ended)?;
    let negotiated = connection
        .negotiated()
        .ok_or_else(|| Failure::new(ErrorCode::INTERNAL, "the session has not begun"))?;
    let tls = node.client.tls();
    let (version, key_exchange) = match &tls {
        Some(tls) => (tls.version, tls.key_exchange),
        None => ("unknown", None),
    };
    let address = connection.remote_address();
    // An IPv4 address that came through a socket for both is shown as what it is.
    let address = SocketAddr::new(address.ip().to_canonical(), address.port()).to_string();
    // A server without a directory has no name.
    let name = Directory::fetch(node)
        .await?
        .and_then(|directory| Some(directory.node.get("name")?.as_str()?.to_owned()));
    let protocol = format!(
        "remus {}.{}",
        negotiated.version.major, negotiated.version.minor
    );
    let carrier = connection.carrier();
    if !output.is_json() {
        output.line(&format!(
            "{} ({address}), node {}, {protocol} over {carrier}, {version} with {}",
            node.name(),
            printable(name.as_deref().unwrap_or("without a name")),
            key_exchange.unwrap_or("a key exchange that is not shown"),
        ))?;
    }
    for seq in 1..=command.count {
        let path = echo(&connection).await?;
        // What carried the echo; it may change at any time.
        let carrier = connection.carrier();
        let PathEstimate {
            latest_rtt,
            clock_offset_us,
            ..
        } = path;
        series.add(latest_rtt);
        if output.is_json() {
            output.json(&Measured {
                seq,
                rtt_us: u64::try_from(latest_rtt.as_micros()).unwrap_or(u64::MAX),
                clock_offset_us,
                url: &options.url,
                address: address.clone(),
                node: name.as_deref(),
                carrier: carrier.name(),
                protocol: protocol.clone(),
                tls: version,
                key_exchange,
            })?;
        } else {
            output.line(&format!(
                "{seq}: round trip {} over {carrier}, clock offset {}",
                milliseconds(latest_rtt),
                offset(clock_offset_us),
            ))?;
        }
        if seq < command.count {
            tokio::time::sleep(command.interval).await;
        }
    }
    Ok(())
}

fn ended(reason: remus::CloseReason) -> Failure {
    Failure::from(remus::Error::from(reason))
}

/// One echo. While there is no carrier it is not missed, and one that went with its carrier is asked for again.
async fn echo(connection: &remus::Connection) -> Outcome<PathEstimate> {
    let mut status = connection.watch_status();
    loop {
        let is_suspended = matches!(
            *status.borrow_and_update(),
            ConnectionStatus::Suspended { .. }
        );
        let late = async {
            if is_suspended {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(ECHO_MAX).await;
        };
        tokio::select! {
            // The driver never goes without a last status.
            _ = status.changed() => {}
            path = connection.ping(), if !is_suspended => return Ok(path.map_err(ended)?),
            () = late => {
                let text = format!("no echo within {} s", ECHO_MAX.as_secs());
                return Err(Failure::new(ErrorCode::DEADLINE_EXCEEDED, text).into());
            }
        }
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1e3)
}

/// The node's clock minus ours.
fn offset(offset_us: i64) -> String {
    let sign = if offset_us < 0 { '-' } else { '+' };
    let size = offset_us.unsigned_abs();
    format!("{sign}{}.{:03} ms", size / 1000, size % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_have_a_sign() {
        assert_eq!(offset(0), "+0.000 ms");
        assert_eq!(offset(-1_500), "-1.500 ms");
        assert_eq!(offset(i64::MIN), "-9223372036854775.808 ms");
    }

    #[test]
    fn a_series_knows_its_least_mean_and_most() {
        let mut series = Series::default();
        for ms in [3, 1, 5] {
            series.add(Duration::from_millis(ms));
        }
        assert_eq!(
            (series.count, series.least, series.mean(), series.most),
            (
                3,
                Some(Duration::from_millis(1)),
                Duration::from_millis(3),
                Duration::from_millis(5)
            )
        );
        assert_eq!(Series::default().mean(), Duration::ZERO);
    }
}
