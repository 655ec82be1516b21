//! `remus carrier`: what carries the node's sessions, and how they fare without it.

use std::time::{Duration, SystemTime};

use remus::{ErrorCode, Json, SwitchAnswer};
use remus_node::sessions::{
    DropRequest, Dropped, MoveRequest, SESSIONS_SERVICE, SessionDescription, SessionListing,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::{CarrierCommand, Carriers, Connection};
use crate::connect::Node;
use crate::failure::{Failure, Outcome, printable};
use crate::output::{Output, Paint};

use super::ls::{address, ago, table};
use super::with_node;

pub(crate) async fn run(
    command: CarrierCommand,
    connection: &Connection,
    output: &Output,
) -> Outcome {
    let node = Node::of(connection)?;
    with_node(node, output, async |node| match command.what {
        Carriers::Ls => {
            let listing: SessionListing = ask(node, "List", &serde_json::json!({})).await?;
            if output.is_json() {
                return output.json(&listing.sessions);
            }
            let text = shown(&listing.sessions, SystemTime::now(), &output.paint);
            output.data(text.as_bytes())?;
            let left = listing.session_count.saturating_sub(listing.sessions.len());
            if left > 0 {
                output.note(&format!("and {left} more"));
            }
            Ok(())
        }
        Carriers::Drop { session } => {
            let request = DropRequest { session: session.0 };
            let answer: Dropped = ask(node, "Drop", &request).await?;
            if output.is_json() {
                return output.json(&answer);
            }
            output.line(&format!("carriers dropped: {}", answer.dropped))
        }
        Carriers::Switch { session, to } => {
            let to = to.named().name().to_owned();
            let answer: SwitchAnswer = ask(node, "Switch", &MoveRequest { session, to }).await?;
            if output.is_json() {
                return output.json(&answer);
            }
            let carrier = printable(&answer.carrier);
            output.line(&format!("session {session} goes on over {carrier}"))
        }
    })
    .await
}

async fn ask<Out: DeserializeOwned + Serialize + Send + 'static>(
    node: &Node,
    method: &str,
    request: &impl Serialize,
) -> Outcome<Out> {
    let unreadable = |error: serde_json::Error| {
        Failure::new(
            ErrorCode::INTERNAL,
            format!("request or answer cannot be read: {error}"),
        )
    };
    let request = serde_json::to_value(request).map_err(unreadable)?;
    let name = format!("{SESSIONS_SERVICE}/{method}");
    let mut call = node.client.method(&name);
    if let Some(left) = node.left() {
        call = call.timeout(left);
    }
    let answer = call.unary::<Value, Value>(Json, &request).await?;
    Ok(serde_json::from_value(answer.into_inner()).map_err(unreadable)?)
}

fn shown(sessions: &[SessionDescription], now: SystemTime, paint: &Paint) -> String {
    let rows = sessions.iter().map(|session| {
        let state = match (session.suspended, session.own) {
            (true, _) => "suspended",
            (false, true) => "open, this one",
            (false, false) => "open",
        };
        let since = Duration::from_secs(session.since).as_micros();
        vec![
            session.number.to_string(),
            address(&session.address.to_string()),
            session.carrier.clone(),
            ago(u64::try_from(since).unwrap_or(u64::MAX), now),
            session
                .rtt_us
                .map_or_else(|| "-".to_owned(), |rtt| rtt.to_string()),
            session.resumptions.to_string(),
            state.to_owned(),
        ]
    });
    let header = [
        "SESSION",
        "PEER",
        "CARRIER",
        "SINCE",
        "RTT µs",
        "RESUMPTIONS",
        "STATE",
    ];
    table(&header, rows.collect(), paint)
}
