//! Other carriers than the best, and changes of them.

use std::io::Write as _;
use std::net::UdpSocket;
use std::time::Instant;

use serde_json::Value;

use crate::support::{Node, PATIENCE, Running, noise, run};

#[test]
fn everything_works_where_no_udp_gets_through() {
    let node = Node::start_with(&["--block-udp"]);
    // Nobody has the port on UDP, not even shared.
    UdpSocket::bind(node.listen()).unwrap();

    let info = node.run(["call", "host.v1.Host/Info"]).json();
    assert!(info["cores"].as_u64().unwrap() >= 1, "{info}");
    assert!(node.run(["ls"]).good().contains("host.v1.Host"));
    let peers = node.run(["ls", "peers", "-o", "json"]).json();
    assert_eq!(peers[0]["carrier"], "websocket", "{peers}");
    let ping = ["ping", "--count", "1", "-o", "json"];
    assert_eq!(node.run(ping).json()["carrier"], "websocket");

    let mut subscriber = node.subscribe(&["chat.*", "--count", "1"]);
    node.run(["pub", "chat.room", "hello"]).good();
    assert_eq!(subscriber.stdout.next().as_deref(), Some("chat.room hello"));
    assert_eq!(subscriber.wait(), Some(0));

    let content = noise(1_000_000);
    run(node.remus(["cp", "-", &node.path("there")]), &content).good();
    let back = node.run(["cp", &node.path("there"), "-"]);
    assert_eq!(back.code, Some(0), "{}", back.stderr);
    assert!(back.stdout == content, "{} bytes", back.stdout.len());
}

#[test]
fn a_carrier_that_the_node_does_not_have_is_told_at_once() {
    let node = Node::start_with(&["--block-udp"]);
    let error = node.run(["ls", "--carrier", "webtransport"]).bad(5);
    assert!(error.contains("--carrier limits to UDP"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_command_says_what_it_waits_for_and_ends_when_it_is_told_to() {
    let node = Node::start();
    let ping = [
        "ping",
        "--carrier",
        "websocket",
        "--count",
        "100000",
        "--interval",
        "10ms",
    ];
    let mut endless = Running::start(node.remus(ping));
    let mut limited = Running::start(node.remus([&ping[..], &["--timeout", "5s"]].concat()));
    for running in [&endless, &limited] {
        running.stdout.until("1: round trip");
    }
    node.running.signal("KILL");
    let lost = endless.stderr.until("carrier lost (websocket: ");
    assert!(
        lost.ends_with("looking for another one, up to 60 s"),
        "{lost}"
    );
    // Ctrl-C ends it at once, with the result so far.
    endless.signal("INT");
    assert_eq!(endless.wait(), Some(0));
    endless.stdout.until(" answered, round trip");
    assert_eq!(limited.wait(), Some(5));
    limited.stderr.until("not done within the 5s of --timeout");
}

/// The sessions that are not the asking command's own.
fn others(node: &Node) -> Vec<Value> {
    let mut sessions = node.run(["carrier", "ls", "-o", "json"]).json();
    let sessions = sessions.as_array_mut().unwrap();
    assert_eq!(
        sessions
            .iter()
            .filter(|session| session["own"] == true)
            .count(),
        1,
        "{sessions:?}"
    );
    sessions.retain(|session| session["own"] == false);
    std::mem::take(sessions)
}

/// The number of the only session over `carrier` that is not the asking command's own.
fn over(node: &Node, carrier: &str) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let sessions = others(node);
        let mut over = sessions
            .iter()
            .filter(|session| session["carrier"] == carrier);
        // A command that has just ended may still be there.
        if let (Some(one), None) = (over.next(), over.next()) {
            return one["number"].to_string();
        }
        assert!(Instant::now() < until, "{sessions:?}");
    }
}

#[test]
fn no_event_and_no_byte_is_missing_however_carriers_are_dropped_and_switched() {
    const EVENTS: usize = 60;
    let node = Node::start();
    let count = EVENTS.to_string();
    let mut subscriber = node.subscribe(&[
        "numbers",
        "--count",
        &count,
        "-v",
        "--carrier",
        "websocket,http-poll",
    ]);
    // A call that streams: it goes on for as long as its input does.
    let content = noise(2_000_000);
    let mut upload = Running::start(node.remus(["cp", "-", &node.path("up"), "-v"]));
    let mut input = upload.child.stdin.take().unwrap();
    upload.stderr.until("over webtransport");
    let mut pieces = content.chunks(content.len() / 10);

    for n in 0..EVENTS {
        node.run(["pub", "numbers", &n.to_string()]).good();
        match n {
            5 | 45 => {
                let dropped = node.run(["carrier", "drop", "all", "-o", "json"]).json();
                assert!(dropped["dropped"].as_u64().unwrap() >= 2, "{dropped}");
                for running in [&subscriber, &upload] {
                    running.stderr.until("carrier lost");
                    running.stderr.until("goes on over ");
                }
            }
            15 => {
                let switch = ["carrier", "switch", &over(&node, "websocket"), "http-poll"];
                assert!(node.run(switch).good().contains("goes on over http-poll"));
                subscriber.stderr.until("goes on over http-poll");
            }
            25 => {
                let switch = [
                    "carrier",
                    "switch",
                    &over(&node, "webtransport"),
                    "http-events",
                ];
                node.run(switch).good();
                upload.stderr.until("goes on over http-events");
            }
            35 => {
                node.run(["carrier", "drop", &over(&node, "http-events")])
                    .good();
                upload.stderr.until("carrier lost");
                upload.stderr.until("goes on over ");
            }
            _ => {}
        }
        if n % 6 == 0 {
            input.write_all(pieces.next().unwrap()).unwrap();
        }
    }
    assert!(pieces.next().is_none());
    let sessions = others(&node);
    let mut resumptions = sessions
        .iter()
        .filter_map(|session| session["resumptions"].as_u64());
    assert!(resumptions.any(|times| times >= 4), "{sessions:?}");
    drop(input);
    assert_eq!(upload.wait(), Some(0));
    for n in 0..EVENTS {
        assert_eq!(subscriber.stdout.next(), Some(format!("numbers {n}")));
    }
    assert_eq!(subscriber.wait(), Some(0));
    let back = node.run(["cp", &node.path("up"), "-"]);
    assert!(back.stdout == content, "{} bytes", back.stdout.len());
}

#[test]
fn what_cannot_be_dropped_or_switched_is_told() {
    let node = Node::start();
    let error = node.run(["carrier", "drop", "4711"]).bad(4);
    assert!(error.contains("there is no session 4711"), "{error}");
    let listening = node.subscribe(&["x", "--carrier", "websocket"]);
    let switch = [
        "carrier",
        "switch",
        &over(&node, "websocket"),
        "webtransport",
    ];
    let error = node.run(switch).bad(6);
    assert!(
        error.contains("was told not to use webtransport"),
        "{error}"
    );
    let text = node.run(["carrier", "ls"]).good();
    assert!(
        text.starts_with("SESSION") && text.contains("open, this one"),
        "{text}"
    );
    drop(listening);
}
