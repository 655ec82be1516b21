//! Publishing and subscribing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Node, PATIENCE, run};

#[test]
fn what_is_published_arrives_as_a_line() {
    let node = Node::start();
    let mut subscriber = node.subscribe(&["chat.*", "--count", "3"]);
    node.run(["pub", "chat.room", "hello"]).good();
    node.run(["pub", "other.room", "not for us"]).good();
    node.run(["pub", "chat.two", "a\nb\u{1b}[1m"]).good();
    run(node.remus(["pub", "chat.three", "-"]), b"from a pipe").good();
    assert_eq!(subscriber.wait(), Some(0));
    let lines: Vec<String> = std::iter::from_fn(|| subscriber.stdout.next()).collect();
    assert_eq!(
        lines,
        [
            "chat.room hello",
            "chat.two a\\nb\\u{1b}[1m",
            "chat.three from a pipe"
        ]
    );
}

#[test]
fn programs_get_json_with_the_kind_of_each_payload() {
    let node = Node::start();
    let mut subscriber = node.subscribe(&["a.>", "--count", "4", "-o", "json"]);
    let published = node.run(["pub", "a.b", r#"{"n": 1}"#, "-o", "json"]).json();
    assert_eq!(published, json!({"topic": "a.b", "bytes": 8}));
    node.run(["pub", "a.b", "plain"]).good();
    node.run(["pub", "a.b.c"]).good();
    run(node.remus(["pub", "a.b", "-"]), b"\xff\x00").good();
    assert_eq!(subscriber.wait(), Some(0));
    let lines: Vec<Value> = std::iter::from_fn(|| subscriber.stdout.next())
        .map(|line| serde_json::from_str(&line).unwrap())
        .collect();
    for (line, (name, value)) in lines.iter().zip([
        ("json", json!({"n": 1})),
        ("text", json!("plain")),
        ("text", json!("")),
        ("base64", json!("/wA=")),
    ]) {
        assert_eq!(line[name], value, "{line}");
        assert!(line["timestamp_us"].as_u64().unwrap() > 1_600_000_000_000_000);
        assert_eq!(line.as_object().unwrap().len(), 3, "{line}");
    }
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[2]["topic"], "a.b.c");
}

#[test]
fn raw_prints_payloads_as_they_are() {
    let node = Node::start();
    let mut subscriber = node.subscribe(&["a", "--count", "1", "--raw"]);
    node.run(["pub", "a", "\tx y"]).good();
    assert_eq!(subscriber.wait(), Some(0));
    assert_eq!(subscriber.stdout.next().as_deref(), Some("\tx y"));
}

#[test]
fn the_node_publishes_what_its_machine_does() {
    let node = Node::start();
    let mut subscriber = node.subscribe(&["host.>", "-n", "1", "-o", "json"]);
    assert_eq!(subscriber.wait(), Some(0));
    let line: Value = serde_json::from_str(&subscriber.stdout.next().unwrap()).unwrap();
    assert!(
        line["topic"].as_str().unwrap().starts_with("host."),
        "{line}"
    );
    assert!(line["json"].is_object(), "{line}");
}

/// Also: Ctrl-C is a good end.
#[cfg(unix)]
#[test]
fn a_queue_group_shares_and_ctrl_c_is_a_good_end() {
    const MESSAGES: usize = 12;
    let node = Node::start();
    let options = [
        "jobs",
        "--queue",
        "workers",
        "--capacity",
        "100",
        "--overflow",
        "wait",
    ];
    let mut workers = [node.subscribe(&options), node.subscribe(&options)];
    for number in 0..MESSAGES {
        node.run(["pub", "jobs", &number.to_string()]).good();
    }
    let until = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while seen.len() < MESSAGES {
        assert!(Instant::now() < until, "only {seen:?} came");
        seen.extend(workers.iter().filter_map(|worker| worker.stdout.try_next()));
        std::thread::sleep(Duration::from_millis(5));
    }
    for worker in &mut workers {
        worker.signal("INT");
        assert_eq!(worker.wait(), Some(0));
        seen.extend(std::iter::from_fn(|| worker.stdout.next()));
    }
    seen.sort();
    let mut expected: Vec<String> = (0..MESSAGES)
        .map(|number| format!("jobs {number}"))
        .collect();
    expected.sort();
    assert_eq!(seen, expected, "each message to one of the group");
}

#[cfg(unix)]
#[test]
fn a_subscriber_survives_the_death_of_the_node() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start_at(directory.path(), "127.0.0.1:0", &[]);
    let mut subscriber = node.subscribe(&["chat.>", "--count", "2"]);
    node.run(["pub", "chat.room", "before"]).good();
    assert_eq!(
        subscriber.stdout.next().as_deref(),
        Some("chat.room before")
    );
    let listen = node.listen();
    node.running.signal("KILL");
    drop(node);
    let waiting = subscriber.stderr.until("carrier lost");
    assert!(
        waiting.contains("looking for another one, up to 60 s"),
        "{waiting}"
    );
    let node = Node::start_at(directory.path(), &listen, &[]);
    // This node knows nothing of the session, and says so, which need not be waited for.
    subscriber.stderr.until("is gone");
    subscriber.stderr.until("is back");
    node.run(["pub", "chat.room", "after"]).good();
    assert_eq!(subscriber.stdout.next().as_deref(), Some("chat.room after"));
    assert_eq!(subscriber.wait(), Some(0));
}

#[test]
fn a_reader_who_has_had_enough_ends_it_quietly() {
    let node = Node::start();
    let mut command = node.remus(["sub", "host.>", "--quiet"]);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut stdout, &mut first).unwrap();
    drop(stdout);
    assert_eq!(crate::support::wait(&mut child).code(), Some(0));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn a_time_limit_ends_waiting() {
    let node = Node::start();
    let error = node
        .run([
            "sub",
            "nobody.here",
            "--count",
            "1",
            "--timeout",
            "300ms",
            "-q",
        ])
        .bad(5);
    assert!(error.contains("not done within the 300ms"), "{error}");
}
