//! Holds the chapter "Message Format" against the code and the tests: its requirements, registries, limits and examples.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use remus_wire::{
    AuthMethod, Compression, DEFAULT_MAX_FRAME, ErrorCode, ErrorRecord, Frame, FrameBody,
    FrameType, HealthStatus, MAX_ANSWERS, MAX_BATCH, MAX_ENDPOINTS, MAX_ERROR_DETAILS,
    MAX_EXTENSIONS, MAX_FRAME, MAX_LANES, MAX_OPTION_LEN, MAX_SCHEMA_ENTRIES, MIN_MAX_FRAME,
    Message, MessageLimits, MessageType, MethodId, NodeType, ServiceId, TransportKind,
};
use serde_json::Value;

use crate::support::unhex;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn chapter() -> String {
    fs::read_to_string(root().join("docs/spec/message-format.md")).expect("the chapter")
}

/// The chapter's text from a heading to the next of the same or a higher level.
fn section<'a>(chapter: &'a str, heading: &str) -> &'a str {
    let start = chapter.find(&format!("\n{heading}")).expect("the heading") + 1;
    let level = heading.chars().take_while(|c| *c == '#').count();
    let body = &chapter[start..];
    let end = body
        .match_indices("\n#")
        .map(|(at, _)| at)
        .find(|at| body[at + 1..].chars().take_while(|c| *c == '#').count() <= level);
    &body[..end.unwrap_or(body.len())]
}

/// Every `WIRE-n` in a text.
fn ids(text: &str) -> BTreeSet<u32> {
    text.match_indices("WIRE-")
        .filter_map(|(at, prefix)| {
            let digits = &text[at + prefix.len()..];
            let end = digits
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(digits.len());
            digits[..end].parse().ok()
        })
        .collect()
}

/// The requirements of the chapter, each with its text.
fn requirements(chapter: &str) -> BTreeMap<u32, String> {
    let mut requirements = BTreeMap::new();
    for paragraph in chapter.split("\n\n") {
        if let Some(rest) = paragraph.strip_prefix("**WIRE-") {
            let (number, text) = rest.split_once("**").expect("a number between asterisks");
            let number = number.parse().expect("a number");
            assert!(
                requirements.insert(number, text.to_owned()).is_none(),
                "WIRE-{number} stands twice"
            );
        }
    }
    requirements
}

fn vectors() -> Vec<Value> {
    let mut vectors = Vec::new();
    for entry in fs::read_dir(root().join("vectors")).expect("the directory of vectors") {
        let path = entry.expect("a directory entry").path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let file: Value =
                serde_json::from_str(&fs::read_to_string(path).expect("a file")).expect("JSON");
            vectors.extend(file["vectors"].as_array().expect("a list").iter().cloned());
        }
    }
    vectors
}

/// What the tests of this crate name behind `Spec:`.
fn named_by_tests() -> BTreeSet<u32> {
    let mut named = BTreeSet::new();
    for directory in ["src", "tests/wire"] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("a directory entry").path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(path).expect("a file");
                for line in text.lines().filter(|line| line.contains("Spec: WIRE-")) {
                    named.extend(ids(line));
                }
            }
        }
    }
    named
}

fn named_by_vectors() -> BTreeSet<u32> {
    let mut named = BTreeSet::new();
    for vector in vectors() {
        for requirement in vector["requirement"]
            .as_array()
            .expect("a list of requirements")
        {
            named.extend(ids(requirement.as_str().expect("a requirement")));
        }
    }
    named
}

#[test]
fn every_must_is_named_by_a_test_or_a_vector() {
    let chapter = chapter();
    let requirements = requirements(&chapter);
    assert!(
        requirements.len() > 50,
        "only {} requirements were found",
        requirements.len()
    );
    let named: BTreeSet<u32> = named_by_tests()
        .union(&named_by_vectors())
        .copied()
        .collect();
    let unnamed: Vec<_> = requirements
        .iter()
        .filter(|(number, text)| text.contains("MUST") && !named.contains(number))
        .collect();
    assert!(unnamed.is_empty(), "no test names {unnamed:#?}");
    let unknown: Vec<_> = named
        .iter()
        .filter(|number| !requirements.contains_key(number))
        .collect();
    assert!(
        unknown.is_empty(),
        "tests name requirements that do not exist: {unknown:?}"
    );
    // A MUST without a number could not be named.
    let numbered: usize = requirements
        .values()
        .map(|text| text.matches("MUST").count())
        .sum();
    let notation = "**MUST**, **MUST NOT**".matches("MUST").count();
    assert_eq!(
        chapter.matches("MUST").count(),
        numbered + notation,
        "a MUST without a number"
    );
}

#[test]
fn every_vector_names_a_section_that_exists() {
    let chapter = chapter();
    for vector in vectors() {
        let section = vector["section"].as_str().expect("a section");
        let exists = chapter.lines().any(|line| {
            line.trim_start_matches('#')
                .strip_prefix(' ')
                .is_some_and(|title| {
                    line.starts_with('#') && title.split(' ').next() == Some(section)
                })
        });
        assert!(exists, "{}: section {section}", vector["name"]);
    }
}

/// Spec: WIRE-9. That the decoder gives these codes is what the replay of the vectors shows.
#[test]
fn every_decode_error_has_a_vector_and_the_code_of_the_table() {
    let chapter = chapter();
    let table: BTreeMap<&str, &str> = section(&chapter, "### 1.1")
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            Some((
                cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?,
                *cells.get(3)?,
            ))
        })
        .collect();
    assert!(table.len() > 10, "only {} errors were found", table.len());
    let mut seen = BTreeSet::new();
    for vector in vectors() {
        if let Some(name) = vector["error"]["name"].as_str() {
            let code = u32::try_from(vector["error"]["code"].as_u64().expect("a code"));
            let code = ErrorCode(code.expect("32 bits"));
            assert_eq!(table.get(name).copied(), code.name(), "{name}");
            seen.insert(name.to_owned());
        }
    }
    let unseen: Vec<_> = table.keys().filter(|name| !seen.contains(**name)).collect();
    assert!(unseen.is_empty(), "no vector shows {unseen:?}");
}

/// Pairs of a number and a name that stand in neighbouring cells of a section's tables.
fn registry(section: &str) -> BTreeMap<u32, String> {
    let mut registry = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        for pair in cells.windows(2) {
            let number = pair[0].strip_prefix("0x").map_or_else(
                || pair[0].parse().ok(),
                |hex| u32::from_str_radix(hex, 16).ok(),
            );
            if let Some(number) = number
                && pair[1].chars().next().is_some_and(char::is_alphabetic)
            {
                registry.insert(number, pair[1].to_owned());
            }
        }
    }
    registry
}

/// `StateSync`, `signed challenge` and `STATE_SYNC` are one name.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .collect::<String>()
        .to_lowercase()
}

fn assert_same(
    registry: &BTreeMap<u32, String>,
    range: core::ops::Range<u32>,
    name: impl Fn(u32) -> Option<&'static str>,
) {
    for number in range {
        assert_eq!(
            registry.get(&number).map(|name| plain(name)),
            name(number).map(plain),
            "{number:#x}"
        );
    }
}

#[test]
fn registries_are_those_of_the_code() {
    let chapter = chapter();
    assert_same(&registry(section(&chapter, "### 6.9")), 0..0x1000, |n| {
        ErrorCode(n).name()
    });
    assert_same(&registry(section(&chapter, "### 6.2")), 0..0x100, |n| {
        MessageType(u8::try_from(n).expect("8 bits")).name()
    });
    assert_same(&registry(section(&chapter, "## 2 Frame")), 0..0x8000, |n| {
        FrameType(u16::try_from(n).expect("16 bits")).name()
    });
}

#[test]
fn code_sets_in_a_line_are_those_of_the_code() {
    let chapter = chapter();
    let has = |text: &str, number: u32, name: Option<&'static str>| {
        // "2 mutual TLS identity" is MUTUAL_TLS.
        let found = text.split([',', ':', '|', '.', '\n']).any(|part| {
            part.trim().split_once(' ').is_some_and(|(first, rest)| {
                first == number.to_string()
                    && name.is_some_and(|name| plain(rest).contains(&plain(name)))
            })
        });
        assert!(found, "{number} {name:?} in {text}");
    };
    let methods = section(&chapter, "### 6.7");
    let algorithms = section(&chapter, "### 6.8");
    let others = section(&chapter, "### 6.10");
    (0..6).for_each(|n| has(methods, n, AuthMethod(n).name()));
    (1..6).for_each(|n| has(algorithms, n.into(), Compression(n).name()));
    (1..8).for_each(|n| has(others, n, NodeType(n).name()));
    (0..5).for_each(|n| has(others, n.into(), HealthStatus(n).name()));
    (1..6).for_each(|n| has(others, n.into(), TransportKind(n).name()));
}

#[test]
fn limits_are_those_of_the_code() {
    let chapter = chapter();
    let limits = section(&chapter, "## 5 Limits");
    let stated = |what: &str| {
        let row = limits
            .lines()
            .find(|line| line.starts_with(&format!("| {what} |")))
            .expect("a row of the table");
        let cell = row.split('|').nth(2).expect("a limit");
        cell.split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse::<u32>().ok())
            .collect::<Vec<_>>()
    };
    let defaults = MessageLimits::DEFAULT;
    assert_eq!(stated("frame payload"), [DEFAULT_MAX_FRAME, MAX_FRAME]);
    assert_eq!(stated("message"), [defaults.message]);
    assert_eq!(stated("context"), [defaults.context]);
    assert_eq!(stated("routing information"), [defaults.routing]);
    assert_eq!(
        stated("option value"),
        [u32::try_from(MAX_OPTION_LEN).expect("32 bits")]
    );
    assert_eq!(stated("messages of a batch"), [MAX_BATCH]);
    assert_eq!(stated("extensions of a version record"), [MAX_EXTENSIONS]);
    assert_eq!(stated("lane offsets"), [u32::from(MAX_LANES)]);
    assert_eq!(stated("entries of a Schema message"), [MAX_SCHEMA_ENTRIES]);
    assert_eq!(stated("details of an error record"), [MAX_ERROR_DETAILS]);
    assert_eq!(stated("endpoints of a service record"), [MAX_ENDPOINTS]);
    assert_eq!(stated("service records of an answer"), [MAX_ANSWERS]);
    assert!(chapter.contains(&format!("a max_frame below {MIN_MAX_FRAME} ")));
}

/// The bytes of the chapter's examples: two hexadecimal digits each, at the start of a line.
fn examples(chapter: &str) -> Vec<Bytes> {
    let mut examples = Vec::new();
    for block in section(chapter, "## 7").split("```").skip(1).step_by(2) {
        let mut bytes = String::new();
        for line in block.lines() {
            let is_byte =
                |word: &&str| word.len() == 2 && word.chars().all(|c| c.is_ascii_hexdigit());
            line.split_whitespace()
                .take_while(is_byte)
                .for_each(|byte| bytes.push_str(byte));
        }
        examples.push(unhex(&bytes).into());
    }
    examples
}

#[test]
fn the_example_is_what_it_says() {
    let examples = examples(&chapter());
    let mut messages = Vec::new();
    for example in &examples {
        let mut input = BytesMut::from(&example[..]);
        let frame = Frame::decode(&mut input, DEFAULT_MAX_FRAME)
            .expect("valid")
            .expect("whole");
        assert!(input.is_empty());
        assert_eq!(frame.stream.0, 1);
        if let FrameBody::Message(bytes) = frame.body {
            messages.push(Message::decode(bytes, &MessageLimits::DEFAULT).expect("valid"));
        }
    }
    assert_eq!(messages.len(), 2);
    assert_eq!(
        messages[0].routing.service,
        ServiceId::of("acme.shop.v1.Cart")
    );
    assert_eq!(
        messages[0].routing.method,
        MethodId::of("acme.shop.v1.Cart/Add")
    );
    assert_eq!(messages[0].context.content_type(), Some("application/json"));
    assert_eq!(messages[0].payload, r#"{"id":42}"#);
    assert_eq!(messages[1].request_id, messages[0].request_id);
    let error = ErrorRecord::decode(messages[1].payload.clone()).expect("an error record");
    assert_eq!(
        (error.code, &*error.message),
        (ErrorCode::NOT_FOUND, "no such item")
    );
}
