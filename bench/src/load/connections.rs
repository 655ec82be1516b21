//! Connections: how long one takes, and what an idle one costs.

use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Dial, Latencies, LocalEcho as _, Outcome, Window, check, float, payload};
use crate::Result;
use crate::case::Case;
use crate::peer::Target;
use crate::process::resident_bytes;

/// Handshakes under way at a time while the idle connections are made. Enough to keep two cores busy; with many more, the
/// packets of all of them overflow the server's socket, and what is measured then is how long a carrier waits for its timers.
const DIALLING: usize = 8;

/// From nothing to the first answer, one connection after the other. Ending a connection is not in its latency.
pub(crate) async fn setup<P: Dial>(
    case: &Case,
    target: &Target,
    window: Window,
) -> Result<Outcome> {
    let peer = P::prepare(target)?;
    let sent = payload(0, case.size);
    let mut latencies = Latencies::new()?;
    let (gauge, watch) = window.start();
    while !gauge.is_over() {
        let start = Instant::now();
        let client = peer.connect().await?;
        let answer = client.call_local(sent.clone()).await?;
        let latency = start.elapsed();
        check(&sent, &answer)?;
        if gauge.is_measured() {
            latencies.record(latency);
        }
        drop(client);
    }
    let connections = latencies.count();
    watch.outcome(float(connections), 0, Some(&latencies))
}

/// Opens the connections, makes one call on each, then measures calls on one more; at the end each answers again.
pub(crate) async fn idle<P: Dial>(case: &Case, target: &Target, window: Window) -> Result<Outcome> {
    let peer = P::prepare(target)?;
    let sent = payload(0, case.size);
    let connect = async || {
        let client = peer.connect().await?;
        check(&sent, &client.call_local(sent.clone()).await?)?;
        Ok::<_, crate::Failure>(client)
    };
    // What the first connections make a server allocate once is not theirs.
    let busy = connect().await?;
    let memory = || -> Result<(f64, f64)> {
        let bytes = |pid| Ok::<_, crate::Failure>(float(resident_bytes(pid)?));
        Ok((bytes(window.server_pid)?, bytes(std::process::id())?))
    };
    let before = memory()?;
    let clients: Vec<P::Client> = stream::iter(0..case.count)
        .map(|_| connect())
        .buffer_unordered(DIALLING)
        .try_collect()
        .await?;
    let after = memory()?;

    let mut latencies = Latencies::new()?;
    let (gauge, watch) = window.start();
    while !gauge.is_over() {
        let start = Instant::now();
        check(&sent, &busy.call_local(sent.clone()).await?)?;
        if gauge.is_measured() {
            latencies.record(start.elapsed());
        }
    }
    let calls = latencies.count();
    let outcome = watch.outcome(float(calls), calls * case.size as u64, Some(&latencies))?;
    for client in &clients {
        check(&sent, &client.call_local(sent.clone()).await?)?;
    }
    let each = |(after, before): (f64, f64)| (after - before) / case.count.max(1) as f64;
    Ok(Outcome {
        connection_bytes: Some(each((after.0, before.0))),
        client_connection_bytes: Some(each((after.1, before.1))),
        ..outcome
    })
}
