//! Calls, listings and pings.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::support::{Node, run};

#[test]
fn calls_a_method_with_one_answer() {
    let node = Node::start();
    let info = node.run(["call", "host.v1.Host/Info"]).json();
    assert!(info["cores"].as_u64().unwrap() >= 1, "{info}");
    // The same with everything said.
    let options = [
        "--timeout",
        "20s",
        "-m",
        "a=b",
        "--idempotent",
        "-o",
        "json",
    ];
    let arguments = [&["call", "host.v1.Host/Info", "{}"], &options[..]].concat();
    assert_eq!(node.run(arguments).json()["name"], info["name"]);
}

#[test]
fn takes_requests_from_arguments_files_and_standard_input() {
    let node = Node::start();
    let request = br#"{"path": "", "limit": 1}"#;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(request).unwrap();
    let at_file = format!("@{}", file.path().display());
    for (argument, input) in [
        (std::str::from_utf8(request).unwrap(), &b""[..]),
        (&at_file, b""),
        ("-", request),
    ] {
        let answer = run(node.remus(["call", "file.v1.Files/List", argument]), input).json();
        assert_eq!(answer, json!({"entries": [], "more": false}), "{argument}");
    }
}

#[test]
fn streams_answers_as_one_json_value_a_line() {
    let node = Node::start();
    for arguments in [
        &["call", "host.v1.Host/Processes"][..],
        &["call", "host.v1.Host/Processes", "--stream", "-o", "json"],
    ] {
        let text = node.run(arguments).good();
        let processes: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let own = u64::from(node.running.child.id());
        assert!(
            processes.iter().any(|process| process["pid"] == own),
            "the node is not among {} processes",
            processes.len()
        );
    }
}

#[test]
fn streams_requests_and_writes_raw_answers() {
    let node = Node::start();
    let put = ["call", "file.v1.Files/Put", "--raw", "-m", "path=notes.txt"];
    let stored: Value = serde_json::from_str(&run(node.remus(put), b"one\ntwo\n").good()).unwrap();
    assert_eq!(stored["size"], 8);
    let get = [
        "call",
        "file.v1.Files/Get",
        r#"{"path": "notes.txt"}"#,
        "--raw",
    ];
    assert_eq!(node.run(get).good(), "one\ntwo\n");
    // Without --raw, what is no JSON is refused rather than shown as something else.
    let get = ["call", "file.v1.Files/Get", r#"{"path": "notes.txt"}"#];
    let error = node.run(get).bad(1);
    assert!(
        error.contains("is not JSON") && error.contains("--raw"),
        "{error}"
    );
}

#[test]
fn lists_what_the_node_has() {
    let node = Node::start();
    node.run(["pub", "chat.room", "hello"]).good();
    let all = node.run(["ls", "-o", "json"]).json();
    let names = |value: &Value| -> Vec<String> {
        let items = value.as_array().unwrap().iter();
        items
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    };
    for (what, expected) in [
        ("services", "host.v1.Host"),
        ("methods", "file.v1.Files/Put"),
        ("topics", "chat.room"),
    ] {
        let listed = node.run(["ls", what, "-o", "json"]).json();
        assert!(names(&listed).contains(&expected.to_owned()), "{listed}");
        let text = node.run(["ls", what]).good();
        assert!(
            text.lines().any(|line| line.starts_with(expected)),
            "{text}"
        );
        assert!(node.run(["ls"]).good().contains(expected));
    }
    assert!(names(&all["services"]).contains(&"remus.v2.Topics".to_owned()));
    // Whoever asks is among the peers.
    let peers = node.run(["ls", "peers", "-o", "json"]).json();
    assert_eq!(peers[0]["carrier"], "webtransport", "{peers}");
    assert!(node.run(["ls", "peers"]).good().contains("127.0.0.1"));
}

#[test]
fn pings_and_tells_how_it_is_connected() {
    let node = Node::start();
    let arguments = ["ping", "--count", "3", "--interval", "50ms"];
    let text = node.run(arguments).good();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    for part in ["webtransport", "TLS 1.3", "X25519MLKEM768", "127.0.0.1"] {
        assert!(lines[0].contains(part), "{text}");
    }
    assert!(lines[3].starts_with("3: round trip "), "{text}");
    assert!(lines[4].starts_with("3 answered"), "{text}");

    let text = node.run([&arguments[..], &["-o", "json"]].concat()).good();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    for (seq, line) in (1..).zip(&lines) {
        assert_eq!(line["seq"], seq);
        assert!(line["rtt_us"].as_u64().is_some(), "{line}");
        assert!(line["clock_offset_us"].as_i64().is_some(), "{line}");
        assert!(line["node"].is_string(), "{line}");
        assert_eq!(line["tls"], "TLS 1.3");
        assert_eq!(line["key_exchange"], "X25519MLKEM768");
        assert_eq!(line["carrier"], "webtransport");
    }
}

#[test]
fn forces_any_carrier_and_tells_which_it_is() {
    let node = Node::start();
    for carrier in ["webtransport", "websocket", "http-poll", "http-events"] {
        let arguments = ["ls", "peers", "--carrier", carrier, "-v", "-o", "json"];
        let ended = node.run(arguments);
        assert!(
            ended.stderr.contains(&format!(" over {carrier}\"")),
            "{}",
            ended.stderr
        );
        let peers = ended.json();
        assert!(
            peers
                .as_array()
                .unwrap()
                .iter()
                .any(|peer| peer["carrier"] == carrier),
            "{peers}"
        );
        let text = node
            .run(["ping", "--count", "1", "--carrier", carrier])
            .good();
        let told: Vec<_> = text.matches(&format!(" over {carrier}")).collect();
        assert_eq!(told.len(), 2, "{text}");
        assert!(text.starts_with("localhost:"), "{text}");
    }
    let info = node.run([
        "call",
        "host.v1.Host/Info",
        "--carrier",
        "http-poll,websocket",
    ]);
    assert!(info.json()["cores"].is_u64());
}

#[test]
fn colours_come_only_where_they_are_wanted() {
    let node = Node::start();
    let colored = |environment: &[(&str, &str)], arguments: &[&str]| {
        let mut command = node.remus([&["ls", "services"], arguments].concat());
        command.envs(environment.iter().copied());
        run(command, b"").good().contains('\u{1b}')
    };
    assert!(!colored(&[], &[]), "a pipe is no terminal");
    assert!(colored(&[], &["--color", "always"]));
    assert!(colored(&[("CLICOLOR_FORCE", "1")], &[]));
    assert!(!colored(&[("CLICOLOR_FORCE", "1")], &["--color", "never"]));
    assert!(!colored(&[("NO_COLOR", "1")], &[]));
    assert!(!colored(
        &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")],
        &["--color=never"]
    ));
}
