//! Records as the JSON that the test vectors use. Described in `vectors/README.md`.

use bytes::Bytes;
use remus_wire::{
    AuthenticationRecord, Batch, Capability, CompressedPayload, Context, ErrorRecord, Frame,
    FrameBody, Handshake, Heartbeat, LaneOffset, Message, Query, QueryAnswer, Routing, Schema,
    SchemaEntry, ServiceRecord, Shutdown, StreamEnd, Version, VersionRecord,
};
use serde_json::{Map, Value, json};

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    assert!(
        text.len().is_multiple_of(2),
        "hex has an even number of digits"
    );
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits"))
        .collect()
}

pub(crate) fn frame(frame: &Frame) -> Value {
    let mut value = match &frame.body {
        FrameBody::Message(bytes) | FrameBody::Part(bytes) | FrameBody::Last(bytes) => {
            json!({ "payload": hex(bytes) })
        }
        FrameBody::Credit { limit } => json!({ "limit": limit.to_string() }),
        FrameBody::Reset(code) | FrameBody::Stop(code) => json!({ "code": code.0 }),
        FrameBody::Reference {
            region,
            offset,
            len,
        } => {
            json!({ "region": region, "offset": offset.to_string(), "length": len })
        }
        FrameBody::Ack { lane, offset } => {
            json!({ "lane": lane, "offset": offset.to_string() })
        }
        FrameBody::Ignored(_) => json!({ "ignored": true }),
        other => panic!("a frame that has no vectors: {other:?}"),
    };
    let kind = frame.body.kind();
    value["stream"] = json!(frame.stream.0);
    value["type"] = kind.name().map_or(json!(kind.0), |name| json!(name));
    value
}

pub(crate) fn message(message: &Message) -> Value {
    json!({
        "type": message.kind.0,
        "flags": message.flags.0,
        "request_id": message.request_id.0,
        "timestamp": message.timestamp.0.to_string(),
        "priority": message.priority.0,
        "ttl": message.ttl.0,
        "routing": routing(&message.routing),
        "context": context(&message.context),
        "payload": hex(&message.payload),
    })
}

fn options<'a>(options: impl Iterator<Item = (u8, &'a [u8])>) -> Value {
    options
        .map(|(kind, value)| json!([kind, hex(value)]))
        .collect()
}

/// Puts in what is there: an absent option has no key.
fn put(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        map.insert(key.into(), value);
    }
}

fn some_list(list: Vec<Value>) -> Option<Value> {
    (!list.is_empty()).then_some(Value::Array(list))
}

pub(crate) fn routing(routing: &Routing) -> Value {
    let mut map = Map::new();
    map.insert("service_id".into(), json!(routing.service.0));
    map.insert("method_id".into(), json!(routing.method.0));
    map.insert("options".into(), options(routing.options()));
    put(
        &mut map,
        "affinity_key",
        routing.affinity().map(|key| json!(hex(key))),
    );
    put(
        &mut map,
        "target_node",
        routing.target_node().map(|id| json!(id.0)),
    );
    put(
        &mut map,
        "origin_region",
        routing.origin_region().map(|id| json!(id.0)),
    );
    let regions = routing.allowed_regions().map(|id| json!(id.0)).collect();
    put(&mut map, "allowed_regions", some_list(regions));
    let trail = routing.hop_trail().map(|id| json!(id.0)).collect();
    put(&mut map, "hop_trail", some_list(trail));
    put(&mut map, "topic", routing.topic().map(|name| json!(name)));
    let range = routing
        .version_range()
        .map(|(lowest, highest)| json!([lowest.0, highest.0]));
    put(&mut map, "version_range", range);
    put(
        &mut map,
        "hop_limit",
        routing.hop_limit().map(|hops| json!(hops)),
    );
    put(
        &mut map,
        "preferred_zone",
        routing.preferred_zone().map(|id| json!(id.0)),
    );
    Value::Object(map)
}

pub(crate) fn context(context: &Context) -> Value {
    let mut map = Map::new();
    map.insert("options".into(), options(context.options()));
    let trace = context.trace().map(|trace| {
        json!({ "trace_id": hex(&trace.trace_id), "span_id": hex(&trace.span_id), "flags": trace.flags })
    });
    put(&mut map, "trace_context", trace);
    put(
        &mut map,
        "baggage",
        context.baggage().map(|text| json!(text)),
    );
    put(&mut map, "tenant", context.tenant().map(|text| json!(text)));
    let record = context
        .authentication()
        .map(|record| authentication(&record));
    put(&mut map, "authentication", record);
    put(
        &mut map,
        "content_type",
        context.content_type().map(|text| json!(text)),
    );
    put(
        &mut map,
        "idempotency_key",
        context.idempotency_key().map(|key| json!(hex(key))),
    );
    let dots = context
        .causal_dots()
        .map(|dot| json!([dot.replica, dot.counter]))
        .collect();
    put(&mut map, "causal_dots", some_list(dots));
    put(
        &mut map,
        "service_name",
        context.service_name().map(|text| json!(text)),
    );
    put(
        &mut map,
        "padding",
        context.padding_len().map(|len| json!(len)),
    );
    let custom = context
        .custom()
        .map(|(key, value)| json!([key, hex(value)]))
        .collect();
    put(&mut map, "custom", some_list(custom));
    Value::Object(map)
}

fn authentication(record: &AuthenticationRecord) -> Value {
    json!({ "method": record.method.0, "token": hex(&record.token), "claims": record.claims.as_str() })
}

pub(crate) fn compressed(payload: &CompressedPayload) -> Value {
    json!({
        "algorithm": payload.algorithm.0,
        "original_length": payload.original_len,
        "bytes": hex(&payload.bytes),
    })
}

pub(crate) fn batch(batch: &Batch) -> Value {
    json!({ "messages": batch.messages.iter().map(message).collect::<Vec<_>>() })
}

fn version(record: &VersionRecord) -> Value {
    let extensions: Vec<Value> = record
        .extensions
        .iter()
        .map(|extension| json!({ "id": extension.id.0, "value": hex(&extension.value) }))
        .collect();
    let mut value = json!({
        "major": record.version.major,
        "minor": record.version.minor,
        "features": record.features.0,
        "compression": record.compression.0,
        "extensions": extensions,
    });
    if let Some(timeout) = record.idle_timeout() {
        value["idle_timeout_ms"] = json!(u32::try_from(timeout.as_millis()).expect("32 bits"));
    }
    if let Some(window) = record.resume_window() {
        value["resume_window_ms"] = json!(u32::try_from(window.as_millis()).expect("32 bits"));
    }
    if let Some(id) = record.unsupported() {
        value["unsupported"] = json!(id.0);
    }
    value
}

fn offsets(lanes: &[LaneOffset]) -> Value {
    lanes
        .iter()
        .map(|entry| json!([entry.lane, entry.offset.to_string()]))
        .collect()
}

pub(crate) fn handshake(step: &Handshake) -> Value {
    match step {
        Handshake::Offer(record) => json!({ "step": "offer", "version": version(record) }),
        Handshake::Accept(record) => json!({ "step": "accept", "version": version(record) }),
        Handshake::Authenticate(record) => {
            let mut value = authentication(record);
            value["step"] = json!("authenticate");
            value
        }
        Handshake::Challenge(bytes) => json!({ "step": "challenge", "challenge": hex(bytes) }),
        Handshake::Authenticated(step) => json!({
            "step": "authenticated",
            "session": step.session,
            "token": hex(&step.token.0),
            "expires": step.expires.0.to_string(),
            "claims": step.claims.as_str(),
        }),
        Handshake::Refused(record) => {
            let mut value = json!({ "step": "refused", "error": error(record) });
            if let Some(spoken) = record.detail(Version::SPOKEN_DETAIL) {
                let spoken = Version::decode_spoken(spoken).expect("a list of versions");
                value["spoken"] = spoken.iter().map(|v| json!([v.major, v.minor])).collect();
            }
            value
        }
        Handshake::Resume(step) => json!({
            "step": "resume",
            "token": hex(&step.token.0),
            "lanes": offsets(&step.lanes),
        }),
        Handshake::Resumed(lanes) => json!({ "step": "resumed", "lanes": offsets(lanes) }),
    }
}

pub(crate) fn heartbeat(record: &Heartbeat) -> Value {
    json!({
        "origin": record.origin.0.to_string(),
        "received": record.received.0.to_string(),
        "load": record.load.0,
    })
}

pub(crate) fn shutdown(record: &Shutdown) -> Value {
    json!({
        "code": record.code.0,
        "grace_ms": u32::try_from(record.grace.as_millis()).expect("32 bits"),
        "last_request": record.last_request.0,
        "reason": record.reason.as_str(),
        "redirect": record.redirect.as_str(),
    })
}

fn schema_entry(entry: &SchemaEntry) -> Value {
    json!({
        "service_id": entry.service.0,
        "major": entry.major,
        "minor": entry.minor,
        "digest": hex(&entry.digest),
    })
}

pub(crate) fn schema(record: &Schema) -> Value {
    let (step, entries): (&str, Vec<Value>) = match record {
        Schema::Offer(entries) => ("offer", entries.iter().map(schema_entry).collect()),
        Schema::Want(entries) => ("want", entries.iter().map(schema_entry).collect()),
        Schema::Give(gifts) => {
            let gift = |gift: &remus_wire::SchemaGift| {
                let mut value = schema_entry(&gift.entry);
                value["descriptor"] = json!(hex(&gift.descriptor));
                value["genuine"] = json!(gift.is_genuine());
                value
            };
            ("give", gifts.iter().map(gift).collect())
        }
    };
    json!({ "step": step, "entries": entries })
}

pub(crate) fn capability(record: &Capability) -> Value {
    json!({
        "node": record.node.0,
        "node_type": record.node_type.0,
        "capabilities": record.capabilities.0,
        "max_frame": record.limits.max_frame,
        "max_message": record.limits.max_message,
        "max_streams": record.limits.max_streams,
        "max_calls": record.limits.max_calls,
        "stream_window": record.limits.stream_window,
        "session_window": record.limits.session_window,
        "resources": {
            "cpu": record.resources.cpu_millicores,
            "memory": record.resources.memory_kib,
            "network": record.resources.network_kib_per_s,
            "storage": record.resources.storage_iops,
        },
    })
}

pub(crate) fn error(record: &ErrorRecord) -> Value {
    let details: Vec<Value> = record
        .details
        .iter()
        .map(|detail| json!([detail.kind.as_str(), hex(&detail.value)]))
        .collect();
    json!({
        "code": record.code.0,
        "retry_after_ms": record.retry_after.map(|wait| u32::try_from(wait.as_millis()).expect("32 bits")),
        "message": record.message.as_str(),
        "details": details,
    })
}

pub(crate) fn stream_end(record: &StreamEnd) -> Value {
    json!({ "error": record.error.as_ref().map(error) })
}

pub(crate) fn service(record: &ServiceRecord) -> Value {
    let endpoints: Vec<Value> = record
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "node": endpoint.node.0,
                "region": endpoint.region.0,
                "zone": endpoint.zone.0,
                "transport": endpoint.transport.0,
                "weight": endpoint.weight,
                "cost": endpoint.cost,
                "url": endpoint.url.as_str(),
            })
        })
        .collect();
    let load = record.load;
    json!({
        "service_id": record.service.0,
        "version": record.version.to_string(),
        "capabilities": record.capabilities.0,
        "health": record.health.to_bytes(),
        "load": [load.cpu(), load.memory(), load.queue(), load.network()],
        "endpoints": endpoints,
    })
}

pub(crate) fn query(record: &Query) -> Value {
    json!({
        "service_id": record.service.0,
        "min_version": record.min_version.to_string(),
        "capabilities": record.capabilities.0,
        "watch": record.watch,
        "max_answers": record.max_answers,
        "filter": record.filter.as_str(),
    })
}

pub(crate) fn query_answer(record: &QueryAnswer) -> Value {
    json!({ "records": record.records.iter().map(service).collect::<Vec<_>>() })
}

/// Sets each option again by its typed function; `None` where an option is not known.
pub(crate) fn rebuilt_routing(routing: &Routing) -> Option<Routing> {
    let mut built = Routing::to(routing.service, routing.method);
    for (kind, value) in routing.options() {
        match kind {
            1 => built.set_affinity(value).ok()?,
            2 => built.set_target_node(routing.target_node()?),
            3 => built.set_origin_region(routing.origin_region()?),
            4 => built
                .set_allowed_regions(&routing.allowed_regions().collect::<Vec<_>>())
                .ok()?,
            5 => built
                .set_hop_trail(&routing.hop_trail().collect::<Vec<_>>())
                .ok()?,
            6 => built.set_topic(routing.topic()?).ok()?,
            7 => {
                let (lowest, highest) = routing.version_range()?;
                built.set_version_range(lowest, highest);
            }
            8 => built.set_hop_limit(routing.hop_limit()?),
            9 => built.set_preferred_zone(routing.preferred_zone()?),
            _ => return None,
        }
    }
    Some(built)
}

/// Sets each option again by its typed function; `None` where an option is not known, or counts as absent.
pub(crate) fn rebuilt_context(context: &Context) -> Option<Context> {
    let mut built = Context::new();
    let mut custom = context.custom();
    for (kind, value) in context.options() {
        match kind {
            1 => built.set_trace(context.trace()?),
            2 => built.set_baggage(context.baggage()?).ok()?,
            3 => built.set_tenant(context.tenant()?).ok()?,
            4 => built.set_authentication(&context.authentication()?).ok()?,
            5 => built.set_content_type(context.content_type()?).ok()?,
            6 => built.set_idempotency_key(value).ok()?,
            7 => built
                .set_causal_dots(&context.causal_dots().collect::<Vec<_>>())
                .ok()?,
            8 => built.set_service_name(context.service_name()?).ok()?,
            9 if value.iter().all(|byte| *byte == 0) => built.set_padding(value.len()).ok()?,
            0x7f => {
                let (key, value) = custom.next()?;
                built.add_custom(key, value).ok()?;
            }
            _ => return None,
        }
    }
    Some(built)
}

/// Encodes by a function that writes to a buffer.
pub(crate) fn to_bytes(encode: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::new();
    encode(&mut out);
    out.into()
}
