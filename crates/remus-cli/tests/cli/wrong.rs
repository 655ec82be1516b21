//! What is wrong is told: what, why, and what to try; with its exit code, and without data.

use std::net::UdpSocket;

use serde_json::Value;

use crate::support::{Node, noise, remus, run};

/// A command line, its exit code, and what the error says.
type Case<'a> = (&'a [&'a str], i32, &'a [&'a str]);

#[test]
fn wrong_input_is_told_to_people_and_to_programs() {
    let node = Node::start();
    let cases: &[Case] = &[
        (&["frobnicate"], 2, &["unrecognized subcommand"]),
        (&["ls", "--no-such-option"], 2, &["--no-such-option"]),
        (&["ls", "--carrier", "quic"], 2, &["webtransport"]),
        (&["ls", "--timeout", "soon"], 2, &["500ms"]),
        (&["ls", "--url", "localhost"], 2, &["localhost", "remus://"]),
        (&["ls", "--url", "http://localhost"], 2, &["scheme"]),
        (&["ls", "--url", "remus://localhost:0"], 2, &["port"]),
        (&["ls", "--url", "remus://user@localhost"], 2, &["user"]),
        (
            &["ls", "--url", "remus://no-such-host.invalid"],
            5,
            &["no-such-host.invalid"],
        ),
        (&["ls", "--log", "=="], 2, &["log filter"]),
        (
            &["ls", "--ca", "/nowhere/ca.pem"],
            4,
            &["/nowhere/ca.pem", "--ca"],
        ),
        (&["ls", "--ca", "/dev/null"], 2, &["no certificate"]),
        (&["call", "host"], 2, &["SERVICE/METHOD"]),
        (
            &["call", "host.v1.Hots/Info"],
            4,
            &["host.v1.Hots", "`host.v1.Host/Info`"],
        ),
        (
            &["call", "host.v1.Host/Inof"],
            4,
            &["host.v1.Host/Inof", "`host.v1.Host/Info`"],
        ),
        (&["call", "Host/Info"], 4, &["`host.v1.Host/Info`"]),
        (
            &["call", "nothing.like/It"],
            4,
            &["nothing.like", "remus ls methods"],
        ),
        (
            &["call", "host.v1.Host/Info", "{\"a\": }"],
            2,
            &["line 1, column 7", "argument"],
        ),
        (
            &["call", "host.v1.Host/Info", "{\n'a': 1}"],
            2,
            &["line 2, column 1"],
        ),
        (
            &["call", "host.v1.Host/Info", "@/nowhere/x.json"],
            4,
            &["/nowhere/x.json"],
        ),
        (&["call", "host.v1.Host/Info", "@"], 2, &["@FILE"]),
        (
            &["call", "file.v1.Files/Stat", "{\"path\": 7}"],
            2,
            &["INVALID_ARGUMENT"],
        ),
        (
            &["call", "file.v1.Files/Stat", "{\"path\": \"none\"}"],
            4,
            &["NOT_FOUND"],
        ),
        (&["call", "file.v1.Files/Put", "7"], 2, &["path"]),
        (&["pub", "a..b", "x"], 2, &["a..b"]),
        (&["pub", "a.*", "x"], 2, &["a.*"]),
        (&["sub", "a.>.b"], 2, &["a.>.b"]),
        (&["bench"], 2, &["rpc", "stream", "topic"]),
        (&["bench", "rpc", "--size", "2MiB"], 2, &["--size", "1MiB"]),
        (&["bench", "rpc", "--rate", "fast"], 2, &["--rate", "fast"]),
        (&["bench", "topic", "--size", "8"], 2, &["16"]),
        (
            &["bench", "rpc", "--to", "http://localhost"],
            2,
            &["scheme"],
        ),
        (&["cp", "a", "b"], 2, &["neither side is on a node"]),
        (&["cp", "-", "-"], 2, &["neither side is on a node"]),
        (&["cp", "remus://a/x", "remus://b/x"], 2, &["both sides"]),
        (&["cp", "-", "remus:///x"], 2, &["no host"]),
        (&["cp", "remus://localhost/", "x"], 2, &["no file"]),
        (&["cp", ".", "remus://localhost/x"], 2, &["is a directory"]),
    ];
    for (arguments, code, parts) in cases {
        let text = node.run(*arguments).bad(*code);
        for part in *parts {
            assert!(
                text.contains(part),
                "{arguments:?} does not say {part:?}: {text}"
            );
        }
        assert!(text.starts_with("error: "), "{arguments:?}: {text}");

        let line = node
            .run([arguments, &["-o", "json"][..]].concat())
            .bad(*code);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["error"]["exit"], *code, "{line}");
        assert!(value["error"]["code"].is_string(), "{line}");
        assert!(value["error"]["message"].is_string(), "{line}");
    }
    // All of that has not hurt the node.
    node.run(["ls"]).good();
}

#[test]
fn a_line_of_streamed_input_is_told_by_its_number() {
    let node = Node::start();
    let call = ["call", "file.v1.Files/Put", "-m", "path=x"];
    let error = run(node.remus(call), b"1\n\n{]\n").bad(2);
    assert!(error.contains("line 3 of standard input"), "{error}");
    assert!(!node.data.join("files/x").exists());
}

#[test]
fn what_is_too_large_is_a_limit() {
    let node = Node::start();
    let error = run(node.remus(["pub", "a", "-"]), &noise(4 * 1024 * 1024 + 1)).bad(7);
    assert!(
        error.contains("4 MiB") && error.contains("remus cp"),
        "{error}"
    );
    let metadata = format!("k={}", "v".repeat(100_000));
    let error = node
        .run(["call", "host.v1.Host/Info", "-m", &metadata])
        .bad(7);
    assert!(error.contains("CONTEXT_TOO_LARGE"), "{error}");
}

#[test]
fn no_node_is_told_at_once_with_what_to_do() {
    // Its authority stays when it goes.
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start_at(directory.path(), "127.0.0.1:0", &[]);
    let (url, data) = (node.url.clone(), node.data.clone());
    drop(node);
    for arguments in [
        &["ls"][..],
        &["sub", "a"],
        &["ping"],
        &["pub", "a"],
        &["bench", "rpc"],
    ] {
        let mut command = remus(arguments);
        command.env("REMUS_URL", &url).env("REMUS_DATA", &data);
        let error = run(command, b"").bad(5);
        assert!(error.contains("no node answers at localhost:"), "{error}");
        assert!(
            error.contains("`remus up`") && error.contains("--url"),
            "{error}"
        );
    }
}

#[test]
fn a_port_that_stays_silent_is_given_up_in_time() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("remus://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let node = Node::start();
    let error = node.run(["ls", "--url", &url, "--timeout", "700ms"]).bad(5);
    assert!(error.contains("error: "), "{error}");
}

#[test]
fn whom_to_trust_is_asked_for_and_held_to() {
    let node = Node::start();
    let other = Node::start();
    let empty = tempfile::tempdir().unwrap();

    let mut command = node.remus(["ls"]);
    command.env("REMUS_DATA", empty.path());
    let error = run(command, b"").bad(3);
    assert!(
        error.contains("ca.pem does not exist") && error.contains("--pin"),
        "{error}"
    );

    let mut command = node.remus(["ls"]);
    command.env("REMUS_DATA", &other.data);
    let error = run(command, b"").bad(3);
    assert!(
        error.contains("is not trusted") && error.contains("--data"),
        "{error}"
    );

    let error = node.run(["ls", "--pin", &other.digest]).bad(3);
    assert!(
        error.contains("is not trusted") && error.contains(&node.digest),
        "{error}"
    );

    // What fits is enough, without any directory.
    let authority = node.data.join("tls/ca.pem");
    for trust in [
        ["--pin", &node.digest],
        ["--ca", authority.to_str().unwrap()],
    ] {
        let mut command = remus(["ls", "services", "--url", &node.url]);
        command.args(trust).env("REMUS_DATA", empty.path());
        assert!(run(command, b"").good().contains("host.v1.Host"));
    }
}

#[test]
fn exit_codes_are_documented_in_the_help() {
    let text = run(remus(["help", "exit-codes"]), b"").good();
    for code in ["0", "1", "2", "3", "4", "5", "6", "7", "130"] {
        assert!(
            text.lines()
                .any(|line| line.trim().starts_with(&format!("{code}  "))),
            "{code} in {text}"
        );
    }
    assert_eq!(run(remus(["exit-codes"]), b"").good(), text);
}
