//! Other carriers than the best, and changes of them.

use std::net::UdpSocket;

use crate::support::{Node, noise, run};

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
