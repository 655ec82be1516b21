//! `remus ls`: what the node has.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use remus::{ErrorCode, MethodKind};
use serde_json::Value;

use crate::cli::{Connection, List, Listed};
use crate::connect::Node;
use crate::directory::Directory;
use crate::failure::{Failure, Outcome, printable};
use crate::json::Json;
use crate::output::{Output, Paint};

use super::with_node;

pub(crate) async fn run(command: List, connection: &Connection, output: &Output) -> Outcome {
    let node = Node::of(connection)?;
    let directory = with_node(node, output, async |node| {
        Directory::fetch(node).await?.ok_or_else(|| {
            Failure::new(
                ErrorCode::UNIMPLEMENTED,
                format!("{} has no directory", node.name()),
            )
            .hint("it is a server, but no node; `remus call` works where you know the names")
            .into()
        })
    })
    .await?;
    if output.is_json() {
        return json(&directory, command.what, output);
    }
    let paint = &output.paint;
    let now = SystemTime::now();
    let text = match command.what {
        Some(Listed::Services) => services(&directory, paint),
        Some(Listed::Methods) => methods(&directory, paint),
        Some(Listed::Topics) => topics(&directory, now, paint),
        Some(Listed::Peers) => peers(&directory, paint),
        None => [
            node_line(&directory, paint),
            services(&directory, paint),
            methods(&directory, paint),
            topics(&directory, now, paint),
            peers(&directory, paint),
        ]
        .join("\n"),
    };
    output.data(text.as_bytes())
}

fn json(directory: &Directory, what: Option<Listed>, output: &Output) -> Outcome {
    if what.is_none() {
        // As it came, with fields that this version does not know.
        return match Json::parse(&directory.whole) {
            Ok(json) => output.line(&json.line()),
            Err(invalid) => Err(Failure::new(
                ErrorCode::INTERNAL,
                format!("the node's directory is not JSON: {invalid}"),
            )
            .into()),
        };
    }
    match what {
        Some(Listed::Methods) => {
            let methods: Vec<Value> = directory
                .methods()
                .map(|(name, kind)| serde_json::json!({ "name": name, "kind": kind }))
                .collect();
            output.json(&methods)
        }
        Some(Listed::Topics) => output.json(&directory.topics),
        Some(Listed::Peers) => output.json(&directory.peers),
        Some(Listed::Services) | None => output.json(&directory.services),
    }
}

/// Who the node is.
fn node_line(directory: &Directory, paint: &Paint) -> String {
    let field = |name: &str| directory.node.get(name).and_then(Value::as_str);
    let row = ["name", "version", "listen"].map(|name| field(name).unwrap_or("-").to_owned());
    table(
        &["NODE", "VERSION", "LISTENS AT"],
        vec![row.to_vec()],
        paint,
    )
}

fn services(directory: &Directory, paint: &Paint) -> String {
    let rows = directory.services.iter().map(|service| {
        vec![
            service.name.clone(),
            service.methods.len().to_string(),
            service.description.clone(),
        ]
    });
    table(
        &["SERVICE", "METHODS", "DESCRIPTION"],
        rows.collect(),
        paint,
    )
}

fn methods(directory: &Directory, paint: &Paint) -> String {
    let rows = directory
        .methods()
        .map(|(name, kind)| vec![name, kind_name(kind).to_owned()]);
    table(&["METHOD", "KIND"], rows.collect(), paint)
}

fn kind_name(kind: MethodKind) -> &'static str {
    match kind {
        MethodKind::Unary => "unary",
        MethodKind::ServerStream => "server-stream",
        MethodKind::ClientStream => "client-stream",
        MethodKind::TwoWay => "two-way",
    }
}

fn topics(directory: &Directory, now: SystemTime, paint: &Paint) -> String {
    let rows = directory.topics.iter().map(|topic| {
        vec![
            topic.name.clone(),
            topic.published.to_string(),
            topic.subscribers.to_string(),
            ago(topic.last_published_us, now),
        ]
    });
    let header = ["TOPIC", "PUBLISHED", "SUBSCRIBERS", "LAST"];
    table(&header, rows.collect(), paint)
}

/// How long ago a moment of the node's clock was by ours.
pub(super) fn ago(moment_us: u64, now: SystemTime) -> String {
    if moment_us == 0 {
        return "-".to_owned();
    }
    let moment = SystemTime::UNIX_EPOCH + Duration::from_micros(moment_us);
    // Clocks differ: what is yet to come has just been.
    let age = now.duration_since(moment).unwrap_or_default().as_secs();
    match age {
        0 => "now".to_owned(),
        1..120 => format!("{age} s ago"),
        120..7200 => format!("{} min ago", age / 60),
        _ => format!("{} h ago", age / 3600),
    }
}

/// The order of the columns of peers; others follow by name.
const PEER_COLUMNS: [&str; 7] = [
    "address",
    "carrier",
    "rtt_us",
    "calls",
    "open_calls",
    "bytes_in",
    "bytes_out",
];

/// Peers are told by fields that may grow, so what is there decides on the columns.
fn peers(directory: &Directory, paint: &Paint) -> String {
    let mut columns: Vec<String> = Vec::new();
    for peer in directory.peers.iter().filter_map(Value::as_object) {
        for name in peer.keys() {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
    }
    let place = |name: &String| {
        let known = PEER_COLUMNS.iter().position(|known| known == name);
        known.unwrap_or(PEER_COLUMNS.len())
    };
    columns.sort_by_key(|name| (place(name), name.clone()));
    if columns.is_empty() {
        columns.push("address".to_owned());
    }
    let rows = directory.peers.iter().map(|peer| {
        let field = |name: &String| match peer.get(name) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => address(text),
            Some(other) => other.to_string(),
        };
        columns.iter().map(field).collect()
    });
    let header: Vec<String> = columns
        .iter()
        .map(|name| match name.as_str() {
            "address" => "PEER".to_owned(),
            "rtt_us" => "RTT µs".to_owned(),
            name => name.replace('_', " ").to_uppercase(),
        })
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    table(&header, rows.collect(), paint)
}

/// An IPv4 address that came through a socket for both as what it is, anything else as it stands.
pub(super) fn address(text: &str) -> String {
    match text.parse::<SocketAddr>() {
        Ok(address) => SocketAddr::new(address.ip().to_canonical(), address.port()).to_string(),
        Err(_) => text.to_owned(),
    }
}

/// Columns two spaces apart, under a header; nothing follows the last one.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>, paint: &Paint) -> String {
    let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| one_line(cell)).collect())
        .collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            std::iter::once(&header)
                .chain(&rows)
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        })
        .collect();
    let line = |row: &Vec<String>| {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        text.truncate(text.trim_end().len());
        text
    };
    let strong = paint.strong;
    let mut text = format!("{strong}{}{strong:#}\n", line(&header));
    for row in &rows {
        text.push_str(&line(row));
        text.push('\n');
    }
    if rows.is_empty() {
        let faint = paint.faint;
        let _ = writeln!(text, "{faint}none{faint:#}");
    }
    text
}

fn one_line(cell: &str) -> String {
    printable(cell).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["longer".to_owned(), "1".to_owned()],
            vec!["ü".to_owned(), "a\nb\u{1b}".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", "N"], rows, &Paint::plain()),
            "NAME    N\nlonger  1\nü       a b\\u{1b}\n"
        );
        assert_eq!(
            table(&["NAME"], Vec::new(), &Paint::plain()),
            "NAME\nnone\n"
        );
    }

    #[test]
    fn peers_show_whatever_the_node_tells() {
        let directory: Directory = serde_json::from_value(serde_json::json!({"peers": [
            {"node": 7, "address": "[::1]:5"},
            {"address": "[::1]:6", "open_calls": 2},
        ]}))
        .unwrap();
        assert_eq!(
            peers(&directory, &Paint::plain()),
            "PEER     OPEN CALLS  NODE\n[::1]:5  -           7\n[::1]:6  2           -\n"
        );
    }

    #[test]
    fn ages_are_in_the_unit_that_fits() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |age: u64| ago((1_000_000 - age) * 1_000_000, now);
        assert_eq!(ago(0, now), "-");
        assert_eq!(ago(2_000_000_000_000, now), "now");
        assert_eq!(at(0), "now");
        assert_eq!(at(119), "119 s ago");
        assert_eq!(at(120), "2 min ago");
        assert_eq!(at(7_200), "2 h ago");
    }
}
