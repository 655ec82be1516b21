//! Other carriers than the best, and changes of them.

use std::net::UdpSocket;

use crate::support::{Node, Running, noise, run};

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
