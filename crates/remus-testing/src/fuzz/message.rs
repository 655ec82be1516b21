//! Messages, with their routing, context and compressed payload, and batches of them. Spec: message format §3.

use bytes::Bytes;
use remus_wire::{
    Batch, CompressedPayload, Context, DecodeError, Dot, Flags, Limit, Message, MessageLimits,
    NodeId, RegionId, Routing, ServiceVersion, TraceContext, ZoneId,
};

use super::record::check_error;

/// Limits so low that most inputs meet one, in bytes.
const TIGHT: MessageLimits = MessageLimits {
    message: 200,
    context: 40,
    routing: 24,
};

/// Limits that no message meets: what it says of itself is all that can be wrong.
const UNLIMITED: MessageLimits = MessageLimits {
    message: u32::MAX,
    context: u32::MAX,
    routing: u32::MAX,
};

/// One message: it encodes to the bytes it came from, its beginning is judged as the whole is, limits change nothing but
/// what they refuse, and options that are set leave the others alone.
pub fn message(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let decoded = Message::decode(bytes.clone(), &MessageLimits::DEFAULT);
    check_beginning(data, &decoded);
    check_limits(bytes, &decoded);
    match decoded {
        Ok(message) => {
            check_encoding(data, &message);
            check_parts(&message);
            check_setters(message);
        }
        Err(error) => check_error(&error, data.len()),
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    assert_eq!(bytes.len(), message.encoded_len());
    bytes
}

/// Eight zeros of routing say nothing, and nothing takes no bytes: the one thing that has two encodings.
fn zero_routing_len(message: &Message, source_len: usize) -> usize {
    let longer = source_len.saturating_sub(message.encoded_len());
    if message.routing.is_empty() && longer == 8 {
        8
    } else {
        0
    }
}

fn check_encoding(data: &[u8], message: &Message) {
    let encoded = encoded(message);
    if zero_routing_len(message, data.len()) == 0 {
        assert_eq!(encoded, data, "the encoding of {message:?}");
    }
    let again = Message::decode(encoded.into(), &MessageLimits::DEFAULT);
    assert_eq!(again.as_ref(), Ok(message));

    let mut head = Vec::new();
    message.encode_head(&mut head);
    assert_eq!(head.len(), message.head_len());
    assert!(data.ends_with(&message.payload));
}

fn check_beginning(data: &[u8], decoded: &Result<Message, DecodeError>) {
    for len in (0..data.len().min(64)).chain([data.len()]) {
        let prefix = data.get(..len).unwrap_or_default();
        match (Message::peek_len(prefix, &MessageLimits::DEFAULT), decoded) {
            (Ok(None), _) => assert!(len < 4),
            (Ok(Some(total)), Ok(_)) => assert_eq!(usize::try_from(total), Ok(data.len())),
            (Ok(Some(_)), Err(_)) => {}
            (Err(error), Err(_)) => check_error(&error, len),
            (Err(error), Ok(message)) => {
                unreachable!("{len} bytes are refused, the whole is not: {error}, {message:?}")
            }
        }
    }
}

fn check_limits(bytes: Bytes, decoded: &Result<Message, DecodeError>) {
    match (Message::decode(bytes, &TIGHT), decoded) {
        (Ok(tight), Ok(message)) => assert_eq!(tight, *message),
        (
            Err(DecodeError::TooLarge {
                at,
                value,
                max,
                limit,
            }),
            _,
        ) => {
            let expected = match limit {
                Limit::Message => TIGHT.message,
                Limit::Routing => TIGHT.routing,
                Limit::Context => TIGHT.context,
                _ => unreachable!("{at}: no limit of a message: {limit:?}"),
            };
            assert_eq!(max, u64::from(expected));
            assert!(value > max, "{at}: {value} is not above {max}");
        }
        (Err(tight), Err(error)) => assert_eq!(tight, *error),
        (tight, decoded) => unreachable!("limits decide: {tight:?} where it was {decoded:?}"),
    }
}

/// Routing and context are the same on their own, and a payload that is said to be compressed is read as such.
fn check_parts(message: &Message) {
    let mut routing = Vec::new();
    message.routing.encode(&mut routing);
    assert_eq!(routing.len(), message.routing.encoded_len());
    assert_eq!(
        Routing::decode(routing.into()).as_ref(),
        Ok(&message.routing)
    );

    let mut context = Vec::new();
    message.context.encode(&mut context);
    assert_eq!(context.len(), message.context.encoded_len());
    assert_eq!(
        Context::decode(context.into()).as_ref(),
        Ok(&message.context)
    );

    // What the accessors give is what stands in the options.
    let options = |kind: u8| {
        message
            .context
            .options()
            .filter(move |(found, _)| *found == kind)
    };
    assert_eq!(message.context.custom().count(), options(0x7f).count());
    assert_eq!(
        message.context.authentication().is_some(),
        options(4).count() == 1
    );
    assert_eq!(
        message.context.tenant().map(str::as_bytes),
        options(3).next().map(|(_, value)| value)
    );
    assert!(message.context.trace().is_none_or(|trace| trace.is_valid()));

    if message.flags.contains(Flags::COMPRESSED) {
        match CompressedPayload::decode(message.payload.clone(), MessageLimits::DEFAULT.message) {
            Ok(payload) => {
                let mut bytes = Vec::new();
                payload.encode(&mut bytes);
                assert_eq!(bytes.len(), payload.encoded_len());
                assert_eq!(bytes, message.payload);
                assert!(payload.original_len <= MessageLimits::DEFAULT.message);
            }
            Err(error) => check_error(&error, message.payload.len()),
        }
    }
}

/// Setting options keeps the others, in order, and gives a message that can be sent.
fn check_setters(mut message: Message) {
    let untouched = |message: &Message| -> Vec<(u8, Vec<u8>)> {
        let routing = message
            .routing
            .options()
            .filter(|(kind, _)| !matches!(kind, 2..=9));
        let context = message
            .context
            .options()
            .filter(|(kind, _)| !matches!(kind, 1 | 3 | 6 | 7 | 0x7f));
        routing
            .chain(context)
            .map(|(kind, value)| (kind, value.to_vec()))
            .collect()
    };
    let others = untouched(&message);
    let customs = message.context.custom().count();

    let node = NodeId(0x0102_0304);
    let dots = [Dot {
        replica: 1,
        counter: 2,
    }];
    let trace = TraceContext {
        trace_id: [1; 16],
        span_id: [2; 8],
        flags: 1,
    };
    let versions = (ServiceVersion::new(1, 0, 0), ServiceVersion::new(2, 0, 0));
    message.routing.set_target_node(node);
    message.routing.set_origin_region(RegionId(5));
    message.routing.set_version_range(versions.0, versions.1);
    message.routing.set_hop_limit(3);
    message.routing.set_preferred_zone(ZoneId(6));
    message.context.set_trace(trace);
    let set = [
        message
            .routing
            .set_allowed_regions(&[RegionId(5), RegionId(7)]),
        message.routing.set_hop_trail(&[]),
        message.routing.set_topic("a.b"),
        message.context.set_tenant("t"),
        message.context.set_idempotency_key(b"k"),
        message.context.set_causal_dots(&dots),
        message.context.add_custom("key", b"value"),
    ];
    assert!(set.iter().all(Result::is_ok));

    let sent = Message::decode(encoded(&message).into(), &UNLIMITED);
    assert_eq!(sent.as_ref(), Ok(&message));
    assert_eq!(message.routing.target_node(), Some(node));
    assert_eq!(message.routing.origin_region(), Some(RegionId(5)));
    assert!(
        message
            .routing
            .allowed_regions()
            .eq([RegionId(5), RegionId(7)])
    );
    assert_eq!(message.routing.hop_trail().count(), 0);
    assert_eq!(message.routing.topic(), Some("a.b"));
    assert_eq!(message.routing.version_range(), Some(versions));
    assert_eq!(message.routing.hop_limit(), Some(3));
    assert_eq!(message.routing.preferred_zone(), Some(ZoneId(6)));
    assert_eq!(message.context.trace(), Some(trace));
    assert_eq!(message.context.tenant(), Some("t"));
    assert_eq!(message.context.idempotency_key(), Some(&b"k"[..]));
    assert!(message.context.causal_dots().eq(dots));
    assert_eq!(
        message.context.custom().last(),
        Some(("key", &b"value"[..]))
    );
    assert_eq!(message.context.custom().count(), customs.saturating_add(1));
    assert_eq!(untouched(&message), others, "options that were not set");
}

/// A batch: it encodes to the bytes it came from, and holds no batch.
pub fn batch(data: &[u8]) {
    let batch = match Batch::decode(Bytes::copy_from_slice(data), &MessageLimits::DEFAULT) {
        Ok(batch) => batch,
        Err(error) => return check_error(&error, data.len()),
    };
    let mut bytes = Vec::new();
    batch.encode(&mut bytes);
    assert_eq!(bytes.len(), batch.encoded_len());
    assert_eq!(
        Batch::decode(bytes.clone().into(), &MessageLimits::DEFAULT).as_ref(),
        Ok(&batch)
    );

    let mut rest = data.get(4..).unwrap_or_default();
    for message in &batch.messages {
        assert!(
            !message.flags.contains(Flags::BATCH_REQUEST),
            "a batch in a batch"
        );
        // Alone it is the same message.
        let Ok(Some(len)) = Message::peek_len(rest, &MessageLimits::DEFAULT) else {
            unreachable!("in the batch, but not alone: {message:?}");
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let Some((alone, after)) = rest.split_at_checked(len) else {
            unreachable!("beyond the batch: {message:?}");
        };
        rest = after;
        let alone = Message::decode(Bytes::copy_from_slice(alone), &MessageLimits::DEFAULT);
        assert_eq!(alone.as_ref(), Ok(message));
    }
    assert!(rest.is_empty());
    if batch
        .messages
        .iter()
        .all(|message| !message.routing.is_empty())
    {
        assert_eq!(bytes, data, "the encoding of {batch:?}");
    }

    bytes.push(0);
    assert!(
        Batch::decode(bytes.into(), &MessageLimits::DEFAULT).is_err(),
        "a byte more"
    );
}
