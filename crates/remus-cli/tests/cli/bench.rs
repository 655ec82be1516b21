//! Measuring a node.

use serde_json::Value;

use crate::support::{Node, Running};

/// The line that `remus bench` with these words tells programs.
#[track_caller]
fn measured(node: &Node, words: &str) -> Value {
    let arguments = words.split_whitespace().chain(["-o", "json"]);
    node.run(["bench"].into_iter().chain(arguments)).json()
}

#[track_caller]
fn number(value: &Value, name: &str) -> f64 {
    value[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name} in {value}"))
}

/// The times are there, and in order.
#[track_caller]
fn assert_times(value: &Value, name: &str) {
    let names = ["min", "p50", "p90", "p99", "p99_9", "max"];
    let times = names.map(|quantile| number(&value[name], quantile));
    assert!(times.is_sorted(), "{value}");
    assert!(times[0] > 0.0, "{value}");
}

#[test]
fn calls_are_counted_and_their_times_told() {
    let node = Node::start();
    let told = measured(
        &node,
        "rpc --count 200 --in-flight 8 --connections 2 --size 1KiB --warm-up 0",
    );
    assert_eq!(told["calls"], 200, "{told}");
    assert_eq!(
        (&told["bench"], &told["size"], &told["in_flight"]),
        (&"rpc".into(), &1024.into(), &8.into())
    );
    assert_eq!(
        (&told["connections"], &told["unsent"]),
        (&2.into(), &0.into())
    );
    assert_eq!(told["errors"], serde_json::json!({}));
    assert_eq!(told["url"], node.url.as_str());
    assert!(told.get("rate").is_none() && told.get("late_us").is_none());
    assert!(number(&told, "per_s") > 0.0 && number(&told, "elapsed_s") > 0.0);
    assert_times(&told, "latency_us");
}

#[test]
fn people_are_told_the_same_in_words() {
    let node = Node::start();
    let text = node
        .run([
            "bench",
            "rpc",
            "-n",
            "50",
            "--warm-up",
            "10ms",
            "--to",
            &node.url,
        ])
        .good();
    for part in [
        "calls of 64 B at localhost:",
        "1 in flight, connections: 1",
        "answered   50, ",
        "latency    p50 ",
        ", p99.9 ",
        ", max ",
        "errors     none",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let text = node
        .run(["bench", "stream", "-n", "50", "--warm-up", "0"])
        .good();
    assert!(text.contains("received   50, "), "{text}");
    assert!(text.contains("gap        p50 "), "{text}");
    let text = node
        .run(["bench", "topic", "-n", "50", "--warm-up", "0"])
        .good();
    assert!(text.contains("delivered  50, "), "{text}");
}

#[test]
fn an_open_loop_begins_its_calls_when_they_are_due() {
    let node = Node::start();
    let told = measured(&node, "rpc --rate 500 --count 100 --warm-up 0");
    assert_eq!((&told["calls"], &told["rate"]), (&100.into(), &500.into()));
    // The last one is due 99/500 s after the first, however fast the node is.
    assert!(number(&told, "elapsed_s") >= 0.198, "{told}");
    assert_times(&told, "latency_us");
    assert!(number(&told["late_us"], "max") >= 0.0, "{told}");
}

/// What cannot be sent in time is not left out: otherwise a node would look the better the less it does.
#[test]
fn what_was_due_and_never_sent_counts_with_the_time_it_waited() {
    let node = Node::start();
    // More than any node answers one at a time.
    let told = measured(
        &node,
        "rpc --rate 10000000 --in-flight 1 --duration 300ms --warm-up 0",
    );
    let (calls, unsent) = (number(&told, "calls"), number(&told, "unsent"));
    assert!((calls + unsent - 3_000_000.0).abs() < 1.0, "{told}");
    assert!(unsent > calls, "{told}");
    // Half of them were due in the first half of the time, and hardly any of these was sent.
    assert!(number(&told["latency_us"], "p50") > 100_000.0, "{told}");
    assert!(number(&told["late_us"], "max") > 100_000.0, "{told}");
}

#[test]
fn streams_are_measured_both_ways() {
    let node = Node::start();
    let told = measured(
        &node,
        "stream --count 1001 --streams 4 --size 5000 --warm-up 0",
    );
    assert_eq!(
        (&told["elements"], &told["up"]),
        (&1001.into(), &false.into())
    );
    assert_times(&told, "gap_us");
    let bytes = number(&told, "bytes_per_s") / number(&told, "per_s");
    assert!((bytes - 5000.0).abs() < 50.0, "{told}");
    assert_eq!(told["errors"], serde_json::json!({}));

    let told = measured(&node, "stream --up --count 1001 --streams 4 --warm-up 0");
    assert_eq!(
        (&told["elements"], &told["size"]),
        (&1001.into(), &1024.into())
    );
    assert!(told["wait_us"].is_object() && told.get("gap_us").is_none());
    assert_eq!(told["errors"], serde_json::json!({}));

    for way in [&[][..], &["--up"]] {
        let arguments = [
            &[
                "bench",
                "stream",
                "--duration",
                "200ms",
                "--warm-up",
                "50ms",
            ],
            way,
            &["-o", "json"],
        ];
        let told = node.run(arguments.concat()).json();
        assert!(number(&told, "elements") > 0.0, "{told}");
        assert_eq!(told["errors"], serde_json::json!({}), "{told}");
    }
}

#[test]
fn every_subscriber_gets_every_message() {
    let node = Node::start();
    let told = measured(&node, "topic --count 300 --subscribers 3 --warm-up 50ms");
    assert_eq!(
        (&told["published"], &told["delivered"], &told["missing"]),
        (&300.into(), &900.into(), &0.into())
    );
    assert_eq!(told["connections"], 4);
    assert_times(&told, "latency_us");
    let told = measured(&node, "topic --rate 400 --count 40 --warm-up 0 --size 16");
    assert_eq!(
        (&told["delivered"], &told["rate"]),
        (&40.into(), &400.into())
    );
    assert!(number(&told, "elapsed_s") >= 0.0975, "{told}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_with_what_there_is() {
    let node = Node::start();
    for what in ["rpc", "stream", "topic"] {
        let words = [
            "bench",
            what,
            "--duration",
            "1h",
            "--warm-up",
            "0",
            "-o",
            "json",
        ];
        let mut running = Running::start(node.remus(words));
        // It is at work as soon as the node sees calls of it.
        let until = std::time::Instant::now() + crate::support::PATIENCE;
        loop {
            assert!(std::time::Instant::now() < until, "{what} does not begin");
            let peers = node.run(["ls", "peers", "-o", "json"]).json();
            let is_busy =
                |peer: &Value| number(peer, "bytes_in") + number(peer, "bytes_out") > 20_000.0;
            if peers.as_array().unwrap().iter().any(is_busy) {
                break;
            }
        }
        running.signal("INT");
        assert_eq!(running.wait(), Some(0), "{what}");
        let told: Value = serde_json::from_str(&running.stdout.next().unwrap()).unwrap();
        assert_eq!(
            (&told["bench"], &told["interrupted"]),
            (&what.into(), &true.into())
        );
        assert!(number(&told, "elapsed_s") < 3000.0);
        let count = ["calls", "elements", "delivered"]
            .iter()
            .find_map(|name| told[*name].as_u64());
        assert!(count.unwrap() > 0, "{told}");
    }
    // And the node is none the worse.
    node.run(["ls"]).good();
}

/// What has not begun has no result.
#[cfg(unix)]
#[test]
fn ctrl_c_before_anything_was_measured_ends_it_without_a_result() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("remus://{}", silent.local_addr().unwrap());
    let node = Node::start();
    let mut running = Running::start(node.remus(["bench", "rpc", "--to", &url]));
    // Its first packet shows that it is at work.
    silent
        .set_read_timeout(Some(crate::support::PATIENCE))
        .unwrap();
    silent.recv(&mut [0; 2048]).unwrap();
    running.signal("INT");
    assert_eq!(running.wait(), Some(130));
    assert_eq!(running.stdout.next(), None);
}

#[cfg(unix)]
#[test]
fn a_node_that_dies_is_told_by_the_codes_of_its_errors() {
    let node = Node::start();
    let words = [
        "bench",
        "rpc",
        "--duration",
        "1h",
        "--warm-up",
        "0",
        "-o",
        "json",
    ];
    let mut running = Running::start(node.remus(words));
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    let mut calls = 0.0;
    while calls < 100.0 {
        assert!(std::time::Instant::now() < until, "it does not begin");
        let peers = node.run(["ls", "peers", "-o", "json"]).json();
        let numbers = peers.as_array().unwrap().iter();
        calls = numbers
            .map(|peer| number(peer, "calls"))
            .fold(0.0, f64::max);
    }
    node.running.signal("KILL");
    drop(node);
    // The call that was open is not answered any more, whether the session notices in time or not.
    running.signal("INT");
    assert_eq!(running.wait(), Some(0));
    let told: Value = serde_json::from_str(&running.stdout.next().unwrap()).unwrap();
    assert!(number(&told, "calls") >= 99.0, "{told}");
    let errors = told["errors"].as_object().unwrap().len();
    let unanswered = number(&told, "unanswered");
    assert!(errors > 0 || unanswered > 0.0, "{told}");
}
