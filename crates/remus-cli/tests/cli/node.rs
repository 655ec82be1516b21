//! `remus up`: what it says, how it stops, and what keeps it from starting.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Node, PATIENCE, Running, noise, remus, run};

#[test]
fn says_six_lines_of_which_the_last_works() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("my data");
    let mut command = remus(["up", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(&data);
    let node = Running::start(command);
    let lines: Vec<String> = (0..6).map(|_| node.stdout.next().unwrap()).collect();
    assert!(lines[0].starts_with("remus "), "{lines:#?}");
    assert!(lines[1].contains("remus://localhost:"), "{lines:#?}");
    assert!(lines[2].contains("https://127.0.0.1:"), "{lines:#?}");
    assert!(lines[3].contains(data.to_str().unwrap()), "{lines:#?}");
    let digest = lines[4].rsplit(' ').next().unwrap();
    assert_eq!(digest.len(), 64, "{lines:#?}");
    let suggestion = lines[5].trim().strip_prefix("try").unwrap().trim();
    let words = suggestion.strip_prefix("remus ").unwrap();
    // As a shell would take it.
    let mut words: Vec<&str> = words.split_whitespace().collect();
    let quoted = words.split_off(words.len() - 2).join(" ");
    assert_eq!(quoted.trim_matches('\''), data.to_str().unwrap());
    let mut command = remus(words);
    command.arg(&data);
    run(command, b"").json();
}

#[cfg(unix)]
#[test]
fn stops_on_either_signal_with_exit_0() {
    for signal in ["TERM", "INT"] {
        let mut node = Node::start();
        node.run(["call", "host.v1.Host/Info"]).good();
        node.running.signal(signal);
        assert_eq!(node.running.wait(), Some(0), "{signal}");
        assert_eq!(
            node.running.stdout.next(),
            None,
            "nothing but the first line is data"
        );
    }
}

#[cfg(unix)]
#[test]
fn lets_what_was_accepted_finish() {
    let directory = tempfile::tempdir().unwrap();
    let config = patient(directory.path());
    let mut node = Node::start_with(&["--config", &config]);
    let content = noise(200_000);
    let mut copying = begun_upload(&node, "late");
    node.running.signal("TERM");
    node.running.stderr.until("stopping");
    let mut input = copying.child.stdin.take().unwrap();
    input.write_all(&content).unwrap();
    drop(input);
    assert_eq!(copying.wait(), Some(0), "{:?}", copying.stderr.next());
    assert_eq!(node.running.wait(), Some(0));
    let kept = fs::read(node.data.join("files/late")).unwrap();
    assert!(kept.ends_with(&content));
}

#[cfg(unix)]
#[test]
fn new_work_is_refused_while_it_stops() {
    let directory = tempfile::tempdir().unwrap();
    let config = patient(directory.path());
    let node = Node::start_with(&["--config", &config]);
    let _copying = begun_upload(&node, "late");
    node.running.signal("TERM");
    node.running.stderr.until("stopping");
    // Soon new work is refused, as something that passes.
    let until = Instant::now() + PATIENCE;
    loop {
        let ended = node.run(["call", "host.v1.Host/Info", "--timeout", "5s"]);
        if ended.code != Some(0) {
            ended.bad(5);
            break;
        }
        assert!(Instant::now() < until, "new work is still taken");
    }
}

#[cfg(unix)]
#[test]
fn what_outlasts_the_grace_period_is_cut_off_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("node.toml");
    fs::write(&config, "grace_ms = 200\n").unwrap();
    let mut node = Node::start_with(&["--config", config.to_str().unwrap()]);
    // Its input stays open and silent, so it hears of the end only from the node.
    let mut copying = begun_upload(&node, "never");
    node.running.signal("TERM");
    assert_eq!(copying.wait(), Some(5));
    assert_eq!(copying.stdout.next(), None, "no data on failure");
    assert!(copying.stderr.next().unwrap().starts_with("error: "));
    assert_eq!(node.running.wait(), Some(0));
    assert!(!node.data.join("files/never").exists());
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_it_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = patient(directory.path());
    let mut node = Node::start_with(&["--config", &config]);
    let _copying = begun_upload(&node, "never");
    node.running.signal("TERM");
    node.running.stderr.until("stopping");
    node.running.signal("TERM");
    assert_eq!(node.running.wait(), Some(0));
}

/// A configuration with a grace period that is longer than any test waits.
#[cfg(unix)]
fn patient(directory: &Path) -> String {
    let config = directory.join("node.toml");
    fs::write(&config, "grace_ms = 600000\n").unwrap();
    config.to_str().unwrap().to_owned()
}

/// An upload that the node has accepted and that goes on.
#[cfg(unix)]
fn begun_upload(node: &Node, name: &str) -> Running {
    let mut copying = Running::start(node.remus(["cp", "-", &node.path(name)]));
    let input = copying.child.stdin.as_mut().unwrap();
    input.write_all(&noise(100_000)).unwrap();
    let uploads = node.data.join("files/.uploads");
    let until = Instant::now() + PATIENCE;
    while fs::read_dir(&uploads).unwrap().next().is_none() {
        assert!(Instant::now() < until, "no upload began");
        std::thread::sleep(Duration::from_millis(5));
    }
    copying
}

#[test]
fn a_taken_port_or_directory_is_a_conflict_that_says_who() {
    let node = Node::start();
    let own = node.running.child.id().to_string();
    let other = tempfile::tempdir().unwrap();
    let mut command = remus(["up", "--listen", &node.listen(), "--data"]);
    command.arg(other.path());
    let error = run(command, b"").bad(6);
    assert!(
        error.contains("is taken by") && error.contains("--listen"),
        "{error}"
    );
    if cfg!(target_os = "linux") {
        assert!(error.contains(&own), "{error}");
    }
    let mut command = remus(["up", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(&node.data);
    let error = run(command, b"").bad(6);
    assert!(
        error.contains("in use by another node") && error.contains(&own),
        "{error}"
    );
    // Neither has disturbed the first.
    node.run(["ls"]).good();
}

#[test]
fn a_wrong_configuration_is_told_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("node.toml");
    fs::write(&config, "\nlissten = \"[::]:1\"\n").unwrap();
    let data = directory.path().join("data");
    let arguments = [
        "up",
        "--config",
        config.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
    ];
    let error = run(remus(arguments), b"").bad(2);
    assert!(
        error.contains("line 2") && error.contains("`listen`"),
        "{error}"
    );
    let missing = ["up", "--config", "/nowhere/node.toml", "-o", "json"];
    let error = run(remus(missing), b"").bad(4);
    assert!(error.contains("/nowhere/node.toml"), "{error}");
    assert!(
        !data.exists(),
        "nothing is made for a node that does not start"
    );
}

#[test]
fn the_configuration_in_the_guide_is_valid() {
    let guide = include_str!("../../../../docs/guide/cli.md");
    let (_, from) = guide.split_once("```toml\n").unwrap();
    let (toml, _) = from.split_once("```").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("node.toml");
    fs::write(&config, toml).unwrap();
    // The option wins over the file, which names the port that everybody uses.
    let node = Node::start_with(&["--config", config.to_str().unwrap()]);
    node.run(["ls"]).good();
}
