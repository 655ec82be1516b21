//! Replays every vector of `vectors/`: bytes decode to the stated value and encode back to the same bytes, or fail as
//! stated.

use core::time::Duration;
use std::{collections::BTreeSet, fs, path::Path};

use bytes::{Bytes, BytesMut};
use remus_wire::{
    Batch, Capability, CompressedPayload, Context, DEFAULT_MAX_FRAME, DecodeError, ErrorCode,
    ErrorRecord, Flags, Frame, Handshake, Heartbeat, Message, MessageLimits, MethodId, Priority,
    Query, QueryAnswer, Routing, Schema, ServiceId, ServiceRecord, Shutdown, StreamEnd, Ttl,
};
use serde_json::{Value, json};

use crate::support::{self, hex, to_bytes, unhex};

/// A vector of one of the files, with what its keys say.
struct Vector {
    /// File and name, for failures.
    id: String,
    record: String,
    bytes: Vec<u8>,
    json: Value,
}

/// What a decoder makes of the bytes: the value, the bytes it encodes to, and how much of the input it took.
struct Decoded {
    value: Value,
    encoded: Bytes,
    encoded_len: usize,
    /// What was not taken; only frames leave something.
    rest: Vec<u8>,
}

fn load() -> Vec<Vector> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors");
    let mut vectors = Vec::new();
    for entry in fs::read_dir(directory).expect("the directory of vectors") {
        let path = entry.expect("a directory entry").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let file = fs::read_to_string(&path).expect("a readable file");
        let file: Value = serde_json::from_str(&file).expect("JSON");
        let family = file["family"].as_str().expect("a family").to_owned();
        for json in file["vectors"].as_array().expect("a list of vectors") {
            let name = json["name"].as_str().expect("a name");
            vectors.push(Vector {
                id: format!("{family}/{}/{name}", json["record"]),
                record: json["record"].as_str().expect("a record").to_owned(),
                bytes: unhex(json["hex"].as_str().expect("hex")),
                json: json.clone(),
            });
        }
    }
    vectors
}

fn limits(vector: &Value) -> MessageLimits {
    let limit = |name: &str, default| {
        vector["limits"][name]
            .as_u64()
            .map_or(default, |limit| u32::try_from(limit).expect("32 bits"))
    };
    MessageLimits {
        message: limit("message", MessageLimits::DEFAULT.message),
        context: limit("context", MessageLimits::DEFAULT.context),
        routing: limit("routing", MessageLimits::DEFAULT.routing),
    }
}

/// `None`: more bytes are needed.
fn decode(record: &str, bytes: &Bytes, vector: &Value) -> Result<Option<Decoded>, DecodeError> {
    macro_rules! record {
        ($decoded:expr, $json:path) => {
            record!($decoded, $json, |record| record.encoded_len())
        };
        ($decoded:expr, $json:path, |$record:ident| $len:expr) => {{
            let $record = $decoded?;
            Decoded {
                value: $json(&$record),
                encoded: to_bytes(|out| $record.encode(out)),
                encoded_len: $len,
                rest: Vec::new(),
            }
        }};
    }
    let limits = limits(vector);
    let bytes = bytes.clone();
    Ok(Some(match record {
        "frame" => {
            let max_frame = vector["max_frame"]
                .as_u64()
                .map_or(DEFAULT_MAX_FRAME, |max| {
                    u32::try_from(max).expect("32 bits")
                });
            let mut input = BytesMut::from(&bytes[..]);
            let frame = match Frame::decode(&mut input, max_frame) {
                Ok(Some(frame)) => frame,
                other => {
                    assert_eq!(input, bytes, "nothing is taken");
                    other?;
                    return Ok(None);
                }
            };
            Decoded {
                value: support::frame(&frame),
                encoded: to_bytes(|out| frame.encode(out)),
                encoded_len: frame.encoded_len(),
                rest: input.to_vec(),
            }
        }
        "message" => record!(Message::decode(bytes, &limits), support::message),
        "routing" => record!(Routing::decode(bytes), support::routing),
        "context" => record!(Context::decode(bytes), support::context),
        "compressed" => {
            record!(
                CompressedPayload::decode(bytes, limits.message),
                support::compressed
            )
        }
        "batch" => record!(Batch::decode(bytes, &limits), support::batch),
        "handshake" => record!(Handshake::decode(bytes), support::handshake),
        "heartbeat" => record!(Heartbeat::decode(bytes), support::heartbeat, |_r| {
            Heartbeat::LEN
        }),
        "shutdown" => record!(Shutdown::decode(bytes), support::shutdown),
        "schema" => record!(Schema::decode(bytes), support::schema),
        "capability" => {
            record!(Capability::decode(bytes), support::capability, |_r| {
                Capability::LEN
            })
        }
        "error" => record!(ErrorRecord::decode(bytes), support::error),
        "stream_end" => record!(StreamEnd::decode(bytes), support::stream_end),
        "service" => record!(ServiceRecord::decode(bytes), support::service),
        "query" => record!(Query::decode(bytes), support::query),
        "query_answer" => record!(QueryAnswer::decode(bytes), support::query_answer),
        other => panic!("unknown record {other}"),
    }))
}

#[test]
fn records_decode_and_encode_as_stated() {
    let mut replayed = 0;
    for vector in load() {
        if is_value(&vector.record) {
            continue;
        }
        replayed += 1;
        let Vector {
            id,
            record,
            bytes,
            json,
        } = vector;
        let bytes = Bytes::from(bytes);
        let outcomes = ["value", "error", "incomplete"].map(|key| json.get(key));
        match (decode(&record, &bytes, &json), outcomes) {
            (Ok(Some(decoded)), [Some(value), None, None]) => {
                assert_eq!(&decoded.value, value, "{id}: decoded value");
                assert_eq!(
                    decoded.encoded_len,
                    decoded.encoded.len(),
                    "{id}: encoded_len"
                );
                let rest = json["rest"].as_str().unwrap_or_default();
                assert_eq!(hex(&decoded.rest), rest, "{id}: rest");
                let taken = bytes.len() - decoded.rest.len();
                if json["canonical"] == json!(false) {
                    assert_ne!(
                        decoded.encoded,
                        bytes[..taken],
                        "{id}: is canonical after all"
                    );
                } else {
                    assert_eq!(hex(&decoded.encoded), hex(&bytes[..taken]), "{id}: encoded");
                }
            }
            (Ok(None), [None, None, Some(Value::Bool(true))]) => {}
            (Err(error), [None, Some(stated), None]) => {
                let at = error.at();
                let got = json!({
                    "name": error.name(),
                    "record": at.record,
                    "field": at.field,
                    "offset": at.offset,
                    "code": error.error_code().0,
                });
                assert_eq!(&got, stated, "{id}: {error}");
            }
            (Ok(Some(decoded)), _) => panic!("{id}: decoded to {}", decoded.value),
            (Ok(None), _) => panic!("{id}: more bytes are needed"),
            (Err(error), _) => panic!("{id}: {error}"),
        }
    }
    assert!(replayed >= 250, "only {replayed} vectors were found");
}

fn is_value(record: &str) -> bool {
    matches!(record, "id" | "ttl" | "ttl_of" | "priority" | "retry")
}

#[test]
fn values_mean_what_is_stated() {
    let mut replayed = 0;
    for vector in load() {
        if !is_value(&vector.record) {
            continue;
        }
        replayed += 1;
        let Vector {
            id,
            record,
            bytes,
            json,
        } = vector;
        let number = bytes
            .iter()
            .take(8)
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let short = u16::try_from(number).unwrap_or_default();
        let got = match record.as_str() {
            "id" => {
                let name = String::from_utf8(bytes).expect("a name in UTF-8");
                assert_eq!(ServiceId::of(&name).0, MethodId::of(&name).0, "{id}");
                json!(ServiceId::of(&name).0)
            }
            "ttl" => json!(
                Ttl(short)
                    .to_duration()
                    .map(|budget| budget.as_millis().to_string())
            ),
            "ttl_of" => json!(Ttl::from_duration(Duration::from_micros(number)).0),
            "priority" => {
                let priority = Priority(short);
                json!({ "class": priority.class(), "order": priority.order() })
            }
            "retry" => {
                let code = ErrorCode(u32::try_from(number).expect("32 bits"));
                json!({ "retryable": code.is_retryable(), "refused_before_it_ran": code.is_refusal() })
            }
            other => panic!("unknown value {other}"),
        };
        assert_eq!(got, json["value"], "{id}");
    }
    assert!(replayed >= 50, "only {replayed} vectors were found");
}

/// What a typed function sets is what the vectors hold, byte for byte.
#[test]
fn options_set_by_name_encode_as_the_vectors_do() {
    let mut rebuilt = 0;
    for vector in load() {
        if vector.json.get("value").is_none() {
            continue;
        }
        let bytes = Bytes::from(vector.bytes);
        match vector.record.as_str() {
            "routing" => {
                let routing = Routing::decode(bytes).expect("a valid vector");
                if let Some(built) = support::rebuilt_routing(&routing) {
                    assert_eq!(built, routing, "{}", vector.id);
                    rebuilt += 1;
                }
            }
            "context" => {
                let context = Context::decode(bytes).expect("a valid vector");
                if let Some(built) = support::rebuilt_context(&context) {
                    assert_eq!(built, context, "{}", vector.id);
                    rebuilt += 1;
                }
            }
            _ => {}
        }
    }
    assert!(rebuilt >= 20, "only {rebuilt} were rebuilt");
}

#[test]
fn flags_have_the_names_that_the_vectors_give_them() {
    let mut named = 0;
    for vector in load() {
        if let Some(name) = vector.json["flag_name"].as_str() {
            let message = Message::decode(vector.bytes.into(), &MessageLimits::DEFAULT);
            let flags = message.expect("a valid vector").flags;
            assert_eq!(flags.to_string(), name);
            named |= flags.0;
        }
    }
    assert_eq!(Flags(named), Flags(0x0fff), "every flag has a vector");
}

/// A valid vector that is cut anywhere is never accepted as the same record, and never panics.
#[test]
fn cut_vectors_are_refused() {
    for vector in load() {
        if is_value(&vector.record) || vector.json.get("value").is_none() {
            continue;
        }
        let bytes = Bytes::from(vector.bytes);
        let whole = decode(&vector.record, &bytes, &vector.json)
            .ok()
            .flatten()
            .expect("valid");
        for len in 0..bytes.len() - whole.rest.len() {
            let cut = decode(&vector.record, &bytes.slice(..len), &vector.json);
            let accepted = matches!(&cut, Ok(Some(decoded)) if decoded.value == whole.value);
            let allowed = match vector.record.as_str() {
                // Eight zero bytes of routing say what none say.
                "routing" => len == 0 && bytes.iter().all(|byte| *byte == 0),
                _ => false,
            };
            assert!(!accepted || allowed, "{} cut at {len}", vector.id);
        }
    }
}

#[test]
fn vectors_have_names_of_their_own() {
    let mut names = BTreeSet::new();
    for vector in load() {
        assert!(
            names.insert(vector.id.clone()),
            "{} stands twice",
            vector.id
        );
    }
}
