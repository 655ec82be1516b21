//! Records that have exactly one encoding: the control payloads, discovery, errors. Spec: message format §4.

use std::fmt::Debug;

use bytes::Bytes;
use remus_wire::{
    Capability, DecodeError, ErrorRecord, Handshake, Heartbeat, Query, QueryAnswer, Schema,
    ServiceRecord, Shutdown, StreamEnd, Version,
};

use super::rng_of;

/// How a record is read and written.
struct Codec<T> {
    decode: fn(Bytes) -> Result<T, DecodeError>,
    encode: fn(&T, &mut Vec<u8>),
    encoded_len: fn(&T) -> usize,
}

/// Checks a record that ends where its own fields say so, and has one encoding for each value.
fn check<T: Debug + PartialEq>(data: &[u8], codec: &Codec<T>) -> Option<T> {
    let decode = |bytes: &[u8]| (codec.decode)(Bytes::copy_from_slice(bytes));
    let value = match decode(data) {
        Ok(value) => value,
        Err(error) => {
            check_error(&error, data.len());
            return None;
        }
    };
    let mut encoded = Vec::new();
    (codec.encode)(&value, &mut encoded);
    assert_eq!(
        encoded.len(),
        (codec.encoded_len)(&value),
        "encoded_len of {value:?}"
    );
    assert_eq!(encoded, data, "the encoding of {value:?}");

    // The record uses up its bytes exactly, so neither a part of it nor more than it is one.
    let cut = rng_of(data).index(data.len());
    let part = data.get(..cut).unwrap_or_default();
    match decode(part) {
        Ok(part) => assert!(data.is_empty(), "{cut} bytes of {value:?} are {part:?}"),
        Err(error) => check_error(&error, cut),
    }
    encoded.push(0);
    match decode(&encoded) {
        Ok(more) => unreachable!("{value:?} and a byte more are {more:?}"),
        Err(error) => check_error(&error, encoded.len()),
    }
    Some(value)
}

/// An error says where it lies, in the input; and tells the peer that the input is wrong.
pub(super) fn check_error(error: &DecodeError, len: usize) {
    let at = error.at();
    assert!(at.offset <= len, "{error}: beyond the input of {len} bytes");
    assert!(
        !at.record.is_empty() && !at.field.is_empty(),
        "{error}: no place"
    );
    assert!(error.to_string().starts_with(&at.to_string()), "{error}");
    assert!(error.error_code().name().is_some(), "{error}: no code");
}

/// A step of the handshake.
pub fn handshake(data: &[u8]) {
    let codec = Codec {
        decode: Handshake::decode,
        encode: Handshake::encode,
        encoded_len: Handshake::encoded_len,
    };
    match check(data, &codec) {
        Some(Handshake::Offer(record) | Handshake::Accept(record)) => {
            // What is set replaces what was there, and nothing else.
            let mut changed = record.clone();
            let timeout = std::time::Duration::from_secs(30);
            changed.set_idle_timeout(timeout);
            assert_eq!(changed.idle_timeout(), Some(timeout));
            let others = usize::from(record.idle_timeout().is_none());
            assert_eq!(
                changed.extensions.len(),
                record.extensions.len().saturating_add(others)
            );
            assert!(record.unsupported().is_none_or(|id| id.must_understand()));
        }
        Some(Handshake::Refused(record)) => {
            if let Some(value) = record.detail(Version::SPOKEN_DETAIL)
                && let Ok(versions) = Version::decode_spoken(value)
            {
                assert_eq!(Version::spoken(&versions).value, value);
            }
        }
        Some(Handshake::Authenticate(record)) => {
            let text = format!("{record:?}");
            assert!(
                text.contains(&format!("<{} bytes>", record.token.len())),
                "{text}"
            );
        }
        _ => {}
    }
}

/// A heartbeat.
pub fn heartbeat(data: &[u8]) {
    check(
        data,
        &Codec {
            decode: Heartbeat::decode,
            encode: Heartbeat::encode,
            encoded_len: |_| Heartbeat::LEN,
        },
    );
}

/// A shutdown.
pub fn shutdown(data: &[u8]) {
    check(
        data,
        &Codec {
            decode: Shutdown::decode,
            encode: Shutdown::encode,
            encoded_len: Shutdown::encoded_len,
        },
    );
}

/// A schema offer, want or give.
pub fn schema(data: &[u8]) {
    let codec = Codec {
        decode: Schema::decode,
        encode: Schema::encode,
        encoded_len: Schema::encoded_len,
    };
    if let Some(Schema::Give(gifts)) = check(data, &codec) {
        for gift in gifts {
            let entry = gift.entry;
            let descriptor = gift.descriptor.clone();
            let genuine =
                remus_wire::SchemaGift::new(entry.service, entry.major, entry.minor, descriptor);
            assert!(genuine.is_genuine());
            assert_eq!(gift.is_genuine(), gift == genuine);
        }
    }
}

/// The capabilities and limits of a node.
pub fn capability(data: &[u8]) {
    let codec = Codec {
        decode: Capability::decode,
        encode: Capability::encode,
        encoded_len: |_| Capability::LEN,
    };
    if let Some(capability) = check(data, &codec) {
        let range = remus_wire::MIN_MAX_FRAME..=remus_wire::MAX_FRAME;
        assert!(
            range.contains(&capability.limits.max_frame),
            "{capability:?}"
        );
    }
}

/// The same bytes as service record, query and answer.
pub fn discovery(data: &[u8]) {
    let service = check(
        data,
        &Codec {
            decode: ServiceRecord::decode,
            encode: ServiceRecord::encode,
            encoded_len: ServiceRecord::encoded_len,
        },
    );
    if let Some(service) = service {
        // As one of an answer it is the same record.
        let answer = QueryAnswer {
            records: vec![service],
        };
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        assert_eq!(bytes.get(4..), Some(data));
        assert_eq!(QueryAnswer::decode(bytes.into()), Ok(answer));
    }
    check(
        data,
        &Codec {
            decode: Query::decode,
            encode: Query::encode,
            encoded_len: Query::encoded_len,
        },
    );
    check(
        data,
        &Codec {
            decode: QueryAnswer::decode,
            encode: QueryAnswer::encode,
            encoded_len: QueryAnswer::encoded_len,
        },
    );
}

/// The same bytes as error record and end of a stream.
pub fn error_record(data: &[u8]) {
    let record = check(
        data,
        &Codec {
            decode: ErrorRecord::decode,
            encode: ErrorRecord::encode,
            encoded_len: ErrorRecord::encoded_len,
        },
    );
    let end = StreamEnd::decode(Bytes::copy_from_slice(data));
    match end {
        Ok(end) => {
            assert_eq!(end.encoded_len(), data.len());
            let mut encoded = Vec::new();
            end.encode(&mut encoded);
            assert_eq!(encoded, data, "the encoding of {end:?}");
            assert_eq!(
                end.error.is_none(),
                data.is_empty(),
                "only nothing is success"
            );
            assert_eq!(end.error, record);
        }
        Err(error) => {
            assert_eq!(record, None, "an error, but no end of a stream: {error}");
            check_error(&error, data.len());
        }
    }
}
