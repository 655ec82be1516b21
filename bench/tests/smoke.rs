//! The harness itself: every case of Remus runs and comes out as a line that programs can read. No figure is judged.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails says so and ends"
)]

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_remus-bench"))
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn lines(output: &Output) -> Vec<Value> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "it failed:\n{stderr}");
    let stdout = String::from_utf8(output.stdout.clone()).expect("the output is UTF-8");
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("`{line}`: {error}")))
        .collect()
}

fn number(line: &Value, field: &str) -> f64 {
    line[field]
        .as_f64()
        .unwrap_or_else(|| panic!("no number `{field}` in {line}"))
}

#[test]
fn every_case_of_remus_comes_out_as_a_line() {
    let lines = lines(&bench(&[
        "--quick",
        "--peers=remus",
        "--seconds=1",
        "--in-flight=8",
        "--size=300",
        "--subscribers=3",
        "--connections=5",
    ]));
    let cases: BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| line["case"].as_str())
        .collect();
    let all = [
        "bulk_down",
        "bulk_up",
        "idle",
        "setup",
        "stream",
        "topic",
        "unary",
    ];
    assert_eq!(cases, BTreeSet::from(all));
    assert_eq!(lines.len(), all.len(), "one line each");
    for line in &lines {
        assert_eq!(line["peer"], "remus");
        assert_eq!(line["carrier"], "webtransport");
        assert_eq!(line["runtime"], "w0");
        assert_eq!(line["size"], 300);
        assert!(number(line, "cpu_us_per_op") >= 0.0, "{line}");
        assert!(number(line, "rss_bytes") > 0.0, "{line}");
        assert!(number(line, "per_s") > 0.0, "nothing was done: {line}");
        if !matches!(
            line["case"].as_str(),
            Some("stream" | "bulk_up" | "bulk_down")
        ) {
            let (p50, p99) = (number(line, "p50_us"), number(line, "p99_us"));
            assert!(0.0 < p50 && p50 <= p99, "{line}");
        }
    }
    let of = |case: &str| lines.iter().find(|line| line["case"] == case).unwrap();
    assert_eq!(of("unary")["in_flight"], 8);
    assert_eq!(of("topic")["count"], 3);
    assert!(number(of("idle"), "connection_bytes") > 0.0);
}

#[test]
fn peers_are_measured_in_rounds_and_set_against_each_other() {
    let output = bench(&[
        "--only=unary",
        "--peers=remus,raw-quinn",
        "--in-flight=4",
        "--rounds=2",
        "--seconds=1",
        "--samples",
    ]);
    let lines = lines(&output);
    let rounds: Vec<(&str, Option<u64>)> = lines
        .iter()
        .map(|line| (line["peer"].as_str().unwrap(), line["round"].as_u64()))
        .collect();
    assert_eq!(
        rounds,
        [
            ("remus", Some(1)),
            ("raw-quinn", Some(1)),
            ("remus", Some(2)),
            ("raw-quinn", Some(2)),
            ("remus", None),
            ("raw-quinn", None),
        ],
        "peers take turns, and the medians come last"
    );
    let table = String::from_utf8_lossy(&output.stderr);
    assert!(table.contains("x as good"), "{table}");
}

#[test]
fn an_open_loop_starts_as_many_calls_as_asked() {
    let lines = lines(&bench(&[
        "--only=unary",
        "--peers=remus",
        "--rate=200",
        "--rounds=1",
        "--seconds=0.5",
    ]));
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["rate"], 200);
    // All that were started in the window come back: a loop that waited for answers would have made more.
    assert!(number(&lines[0], "per_s") < 400.0, "{}", lines[0]);
}

#[test]
fn a_driver_without_a_server_fails_and_says_why() {
    let case =
        r#"{"kind":"unary","size":64,"in_flight":1,"count":1,"rate":null,"runtime":"current"}"#;
    let pid = std::process::id().to_string();
    let output = bench(&[
        "drive",
        "raw-tcp",
        case,
        "--address=127.0.0.1:1",
        "--server-pid",
        &pid,
        "--tls=.",
        "--seconds=1",
        "--warm-up-ms=1",
    ]);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("refused"), "{stderr}");
}

#[test]
fn remus_is_measured_over_each_carrier_that_is_named() {
    let names = ["webtransport", "websocket", "http-poll", "http-events"];
    for case in ["unary", "stream"] {
        let lines = lines(&bench(&[
            &format!("--only={case}"),
            "--peers=remus",
            &format!("--carriers={}", names.join(",")),
            "--in-flight=8",
            "--size=300",
            "--rounds=1",
            "--seconds=0.5",
        ]));
        let carriers: Vec<_> = lines.iter().map(|line| &line["carrier"]).collect();
        assert_eq!(carriers, names);
        for line in &lines {
            assert_eq!(line["peer"], "remus");
            assert!(number(line, "per_s") > 0.0, "nothing was done: {line}");
        }
    }
    let output = bench(&["--peers=tonic", "--carriers=websocket"]);
    assert!(!output.status.success(), "there is nothing to carry");
}
