//! What holds for every record: it comes back as it was, its length is what it says, and no bytes make a decoder panic.
//!
//! Spec: WIRE-1, WIRE-4, WIRE-5, WIRE-21.

use core::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, option, prelude::*, sample::select};
use remus_wire::{
    AuthMethod, Authenticated, AuthenticationRecord, Batch, Capabilities, Capability,
    CompressedPayload, Compression, CompressionCaps, Context, DecodeError, Dot, Endpoint,
    ErrorCode, ErrorDetail, ErrorRecord, Extension, ExtensionId, Features, Flags, Frame, FrameBody,
    FrameType, Handshake, Health, Heartbeat, LaneOffset, Limits, Load, MAX_FRAME, MAX_LANES,
    MIN_MAX_FRAME, Message, MessageLimits, MessageType, MethodId, NodeId, NodeType, Priority,
    Query, QueryAnswer, RegionId, RequestId, ResourceRecord, Resume, ResumeToken, Routing, Schema,
    SchemaEntry, SchemaGift, ServiceId, ServiceRecord, ServiceVersion, Shutdown, StreamEnd,
    StreamId, Text, Timestamp, TraceContext, TransportKind, Ttl, Version, VersionRecord, ZoneId,
};

/// Every record of the crate, so that one property can be stated for all.
#[derive(Clone, Debug, PartialEq)]
enum Record {
    Message(Message),
    Routing(Routing),
    Context(Context),
    Compressed(CompressedPayload),
    Batch(Batch),
    Handshake(Handshake),
    Authentication(AuthenticationRecord),
    Heartbeat(Heartbeat),
    Shutdown(Shutdown),
    Schema(Schema),
    Capability(Capability),
    Error(ErrorRecord),
    StreamEnd(StreamEnd),
    Service(ServiceRecord),
    Query(Query),
    QueryAnswer(QueryAnswer),
}

const KINDS: usize = 16;

impl Record {
    fn kind(&self) -> usize {
        match self {
            Self::Message(_) => 0,
            Self::Routing(_) => 1,
            Self::Context(_) => 2,
            Self::Compressed(_) => 3,
            Self::Batch(_) => 4,
            Self::Handshake(_) => 5,
            Self::Authentication(_) => 6,
            Self::Heartbeat(_) => 7,
            Self::Shutdown(_) => 8,
            Self::Schema(_) => 9,
            Self::Capability(_) => 10,
            Self::Error(_) => 11,
            Self::StreamEnd(_) => 12,
            Self::Service(_) => 13,
            Self::Query(_) => 14,
            Self::QueryAnswer(_) => 15,
        }
    }

    fn decode(kind: usize, bytes: Bytes) -> Result<Self, DecodeError> {
        let limits = MessageLimits::DEFAULT;
        Ok(match kind {
            0 => Self::Message(Message::decode(bytes, &limits)?),
            1 => Self::Routing(Routing::decode(bytes)?),
            2 => Self::Context(Context::decode(bytes)?),
            3 => Self::Compressed(CompressedPayload::decode(bytes, limits.message)?),
            4 => Self::Batch(Batch::decode(bytes, &limits)?),
            5 => Self::Handshake(Handshake::decode(bytes)?),
            6 => Self::Authentication(AuthenticationRecord::decode(bytes)?),
            7 => Self::Heartbeat(Heartbeat::decode(bytes)?),
            8 => Self::Shutdown(Shutdown::decode(bytes)?),
            9 => Self::Schema(Schema::decode(bytes)?),
            10 => Self::Capability(Capability::decode(bytes)?),
            11 => Self::Error(ErrorRecord::decode(bytes)?),
            12 => Self::StreamEnd(StreamEnd::decode(bytes)?),
            13 => Self::Service(ServiceRecord::decode(bytes)?),
            14 => Self::Query(Query::decode(bytes)?),
            15 => Self::QueryAnswer(QueryAnswer::decode(bytes)?),
            _ => unreachable!("kinds end at {KINDS}"),
        })
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Message(record) => record.encode(&mut out),
            Self::Routing(record) => record.encode(&mut out),
            Self::Context(record) => record.encode(&mut out),
            Self::Compressed(record) => record.encode(&mut out),
            Self::Batch(record) => record.encode(&mut out),
            Self::Handshake(record) => record.encode(&mut out),
            Self::Authentication(record) => record.encode(&mut out),
            Self::Heartbeat(record) => record.encode(&mut out),
            Self::Shutdown(record) => record.encode(&mut out),
            Self::Schema(record) => record.encode(&mut out),
            Self::Capability(record) => record.encode(&mut out),
            Self::Error(record) => record.encode(&mut out),
            Self::StreamEnd(record) => record.encode(&mut out),
            Self::Service(record) => record.encode(&mut out),
            Self::Query(record) => record.encode(&mut out),
            Self::QueryAnswer(record) => record.encode(&mut out),
        }
        out.freeze()
    }

    fn encoded_len(&self) -> usize {
        match self {
            Self::Message(record) => record.encoded_len(),
            Self::Routing(record) => record.encoded_len(),
            Self::Context(record) => record.encoded_len(),
            Self::Compressed(record) => record.encoded_len(),
            Self::Batch(record) => record.encoded_len(),
            Self::Handshake(record) => record.encoded_len(),
            Self::Authentication(record) => record.encoded_len(),
            Self::Heartbeat(_) => Heartbeat::LEN,
            Self::Shutdown(record) => record.encoded_len(),
            Self::Schema(record) => record.encoded_len(),
            Self::Capability(_) => Capability::LEN,
            Self::Error(record) => record.encoded_len(),
            Self::StreamEnd(record) => record.encoded_len(),
            Self::Service(record) => record.encoded_len(),
            Self::Query(record) => record.encoded_len(),
            Self::QueryAnswer(record) => record.encoded_len(),
        }
    }

    /// Whether a beginning of the bytes may be a record too: those without a length of their own.
    fn may_be_cut(&self) -> bool {
        matches!(
            self,
            Self::Routing(_) | Self::Context(_) | Self::Compressed(_) | Self::StreamEnd(_)
        )
    }
}

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn text() -> impl Strategy<Value = Text> {
    "\\PC{0,12}".prop_map(Text::from)
}

fn millis() -> impl Strategy<Value = Duration> {
    (0..u32::MAX).prop_map(|ms| Duration::from_millis(ms.into()))
}

fn routing() -> impl Strategy<Value = Routing> {
    let fixed = (
        any::<u32>(),
        any::<u32>(),
        option::of(any::<u8>()),
        option::of(any::<u32>()),
    );
    let lists = (
        vec(any::<u32>(), 0..4),
        vec(any::<u32>(), 0..4),
        option::of(any::<(u32, u32)>()),
    );
    let ids = (option::of(any::<u32>()), option::of(any::<u32>()));
    (fixed, lists, ids, option::of(blob()), option::of(text())).prop_map(
        |((service, method, hops, node), (regions, trail, range), (origin, zone), key, topic)| {
            let mut routing = Routing::to(ServiceId(service), MethodId(method));
            let regions: Vec<_> = regions.into_iter().map(RegionId).collect();
            let trail: Vec<_> = trail.into_iter().map(NodeId).collect();
            if let Some(topic) = topic {
                routing.set_topic(&topic).expect("short");
            }
            routing.set_allowed_regions(&regions).expect("short");
            if let Some(hops) = hops {
                routing.set_hop_limit(hops);
            }
            if let Some(node) = node {
                routing.set_target_node(NodeId(node));
            }
            if let Some((lowest, highest)) = range {
                routing.set_version_range(ServiceVersion(lowest), ServiceVersion(highest));
            }
            routing.set_hop_trail(&trail).expect("short");
            if let Some(key) = key {
                routing.set_affinity(&key).expect("short");
            }
            if let Some(origin) = origin {
                routing.set_origin_region(RegionId(origin));
            }
            if let Some(zone) = zone {
                routing.set_preferred_zone(ZoneId(zone));
            }
            assert_eq!(routing.allowed_regions().collect::<Vec<_>>(), regions);
            assert_eq!(routing.hop_trail().collect::<Vec<_>>(), trail);
            routing
        },
    )
}

fn context() -> impl Strategy<Value = Context> {
    let trace = option::of((any::<[u8; 16]>(), any::<[u8; 8]>(), any::<u8>()));
    let texts = (
        option::of(text()),
        option::of(text()),
        option::of(text()),
        option::of(text()),
    );
    let dots = vec(any::<(u32, u32)>(), 0..4);
    let rest = (
        option::of(authentication()),
        option::of(blob()),
        option::of(0_usize..64),
    );
    (trace, texts, dots, vec((text(), blob()), 0..4), rest).prop_map(
        |(trace, (baggage, tenant, kind, name), dots, custom, (auth, key, padding))| {
            let mut context = Context::new();
            if let Some((trace_id, span_id, flags)) = trace {
                context.set_trace(TraceContext {
                    trace_id,
                    span_id,
                    flags,
                });
            }
            for (key, value) in &custom {
                context.add_custom(key, value).expect("short");
            }
            if let Some(baggage) = baggage {
                context.set_baggage(&baggage).expect("short");
            }
            if let Some(tenant) = tenant {
                context.set_tenant(&tenant).expect("short");
            }
            if let Some(auth) = auth {
                context.set_authentication(&auth).expect("short");
                assert_eq!(context.authentication(), Some(auth));
            }
            if let Some(kind) = kind {
                context.set_content_type(&kind).expect("short");
            }
            if let Some(key) = key {
                context.set_idempotency_key(&key).expect("short");
            }
            if let Some(name) = name {
                context.set_service_name(&name).expect("short");
            }
            if let Some(padding) = padding {
                context.set_padding(padding).expect("short");
            }
            let dots: Vec<_> = dots
                .into_iter()
                .map(|(replica, counter)| Dot { replica, counter })
                .collect();
            context.set_causal_dots(&dots).expect("short");
            assert_eq!(context.causal_dots().collect::<Vec<_>>(), dots);
            let kept: Vec<_> = context.custom().collect();
            assert_eq!(kept.len(), custom.len());
            for ((key, value), (kept_key, kept_value)) in custom.iter().zip(kept) {
                assert_eq!((key.as_str(), &value[..]), (kept_key, kept_value));
            }
            context
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let head = (
        1..=u8::MAX,
        any::<u16>(),
        any::<u32>(),
        any::<u64>(),
        any::<u16>(),
        any::<u16>(),
    );
    (head, routing(), context(), blob()).prop_map(
        |((kind, flags, request, timestamp, priority, ttl), routing, context, payload)| Message {
            kind: MessageType(kind),
            flags: Flags(flags),
            request_id: RequestId(request),
            timestamp: Timestamp(timestamp),
            priority: Priority(priority),
            ttl: Ttl(ttl),
            routing,
            context,
            payload,
        },
    )
}

fn authentication() -> impl Strategy<Value = AuthenticationRecord> {
    (any::<u32>(), blob(), text()).prop_map(|(method, token, claims)| AuthenticationRecord {
        method: AuthMethod(method),
        token,
        claims,
    })
}

fn error() -> impl Strategy<Value = ErrorRecord> {
    let detail = (text(), blob()).prop_map(|(kind, value)| ErrorDetail { kind, value });
    (
        1..=u32::MAX,
        option::of(millis()),
        text(),
        vec(detail, 0..5),
    )
        .prop_map(|(code, retry_after, message, details)| ErrorRecord {
            code: ErrorCode(code),
            retry_after,
            message,
            details,
        })
}

fn version() -> impl Strategy<Value = VersionRecord> {
    let extensions = proptest::collection::btree_map(16_u16..0x8000, (any::<bool>(), blob()), 0..5);
    (
        any::<[u16; 2]>(),
        any::<[u32; 2]>(),
        extensions,
        option::of(millis()),
        option::of(millis()),
    )
        .prop_map(
            |([major, minor], [features, compression], extensions, idle, window)| {
                let extension = |(number, (must, value)): (u16, (bool, Bytes))| Extension {
                    id: ExtensionId(number | u16::from(must) << 15),
                    value,
                };
                let mut record = VersionRecord {
                    version: Version { major, minor },
                    features: Features(features),
                    compression: CompressionCaps(compression),
                    extensions: extensions.into_iter().map(extension).collect(),
                };
                if let Some(idle) = idle {
                    record.set_idle_timeout(idle);
                }
                if let Some(window) = window {
                    record.set_resume_window(window);
                }
                assert_eq!(record.idle_timeout(), idle);
                assert_eq!(record.resume_window(), window);
                record
            },
        )
}

fn offsets() -> impl Strategy<Value = Vec<LaneOffset>> {
    proptest::collection::hash_map(0..MAX_LANES, any::<u64>(), 0..=16).prop_map(|lanes| {
        let entry = |(lane, offset)| LaneOffset { lane, offset };
        lanes.into_iter().map(entry).collect()
    })
}

fn handshake() -> impl Strategy<Value = Handshake> {
    let token = || any::<[u8; 32]>().prop_map(ResumeToken);
    prop_oneof![
        version().prop_map(Handshake::Offer),
        version().prop_map(Handshake::Accept),
        authentication().prop_map(Handshake::Authenticate),
        blob().prop_map(Handshake::Challenge),
        (any::<u32>(), token(), any::<u64>(), text()).prop_map(
            |(session, token, expires, claims)| Handshake::Authenticated(Authenticated {
                session,
                token,
                expires: Timestamp(expires),
                claims,
            })
        ),
        error().prop_map(Handshake::Refused),
        (token(), offsets()).prop_map(|(token, lanes)| Handshake::Resume(Resume { token, lanes })),
        offsets().prop_map(Handshake::Resumed),
    ]
}

fn schema() -> impl Strategy<Value = Schema> {
    let entry = || {
        (any::<u32>(), any::<[u16; 2]>(), any::<[u8; 32]>()).prop_map(
            |(service, [major, minor], digest)| SchemaEntry {
                service: ServiceId(service),
                major,
                minor,
                digest,
            },
        )
    };
    let gift = (any::<u32>(), any::<[u16; 2]>(), blob()).prop_map(
        |(service, [major, minor], descriptor)| {
            let gift = SchemaGift::new(ServiceId(service), major, minor, descriptor);
            assert!(gift.is_genuine());
            gift
        },
    );
    prop_oneof![
        vec(entry(), 0..5).prop_map(Schema::Offer),
        vec(entry(), 0..5).prop_map(Schema::Want),
        vec(gift, 0..5).prop_map(Schema::Give),
    ]
}

fn capability() -> impl Strategy<Value = Capability> {
    (
        any::<[u32; 3]>(),
        MIN_MAX_FRAME..=MAX_FRAME,
        any::<[u32; 5]>(),
        any::<[u32; 4]>(),
    )
        .prop_map(|(node, max_frame, limits, resources)| Capability {
            node: NodeId(node[0]),
            node_type: NodeType(node[1]),
            capabilities: Capabilities(node[2]),
            limits: Limits {
                max_frame,
                max_message: limits[0],
                max_streams: limits[1],
                max_calls: limits[2],
                stream_window: limits[3],
                session_window: limits[4],
            },
            resources: ResourceRecord {
                cpu_millicores: resources[0],
                memory_kib: resources[1],
                network_kib_per_s: resources[2],
                storage_iops: resources[3],
            },
        })
}

fn service() -> impl Strategy<Value = ServiceRecord> {
    let endpoint = (any::<[u32; 4]>(), any::<[u16; 2]>(), text()).prop_map(
        |([node, region, zone, cost], [transport, weight], url)| Endpoint {
            node: NodeId(node),
            region: RegionId(region),
            zone: ZoneId(zone),
            transport: TransportKind(transport),
            weight,
            cost,
            url,
        },
    );
    (any::<[u32; 4]>(), any::<[u8; 4]>(), vec(endpoint, 0..4)).prop_map(
        |([service, version, capabilities, load], health, endpoints)| ServiceRecord {
            service: ServiceId(service),
            version: ServiceVersion(version),
            capabilities: Capabilities(capabilities),
            health: Health::from_bytes(health),
            load: Load(load),
            endpoints,
        },
    )
}

fn query() -> impl Strategy<Value = Query> {
    (any::<[u32; 4]>(), any::<bool>(), text()).prop_map(
        |([service, min_version, capabilities, max_answers], watch, filter)| Query {
            service: ServiceId(service),
            min_version: ServiceVersion(min_version),
            capabilities: Capabilities(capabilities),
            watch,
            max_answers,
            filter,
        },
    )
}

fn batch() -> impl Strategy<Value = Batch> {
    vec(message(), 0..4).prop_map(|mut messages| {
        for message in &mut messages {
            message.flags = message.flags.difference(Flags::BATCH_REQUEST);
        }
        Batch { messages }
    })
}

fn record() -> impl Strategy<Value = Record> {
    let compressed =
        (1_u8..=5, 0_u32..=4 << 20, blob()).prop_map(|(algorithm, original_len, bytes)| {
            CompressedPayload {
                algorithm: Compression(algorithm),
                original_len,
                bytes,
            }
        });
    let heartbeat =
        (any::<[u64; 2]>(), any::<u32>()).prop_map(|([origin, received], load)| Heartbeat {
            origin: Timestamp(origin),
            received: Timestamp(received),
            load: Load(load),
        });
    let shutdown = (any::<[u32; 2]>(), millis(), text(), text()).prop_map(
        |([code, last], grace, reason, redirect)| Shutdown {
            code: ErrorCode(code),
            grace,
            last_request: RequestId(last),
            reason,
            redirect,
        },
    );
    prop_oneof![
        3 => message().prop_map(Record::Message),
        1 => routing().prop_map(Record::Routing),
        1 => context().prop_map(Record::Context),
        1 => compressed.prop_map(Record::Compressed),
        1 => batch().prop_map(Record::Batch),
        3 => handshake().prop_map(Record::Handshake),
        1 => authentication().prop_map(Record::Authentication),
        1 => heartbeat.prop_map(Record::Heartbeat),
        1 => shutdown.prop_map(Record::Shutdown),
        1 => schema().prop_map(Record::Schema),
        1 => capability().prop_map(Record::Capability),
        1 => error().prop_map(Record::Error),
        1 => option::of(error()).prop_map(|error| Record::StreamEnd(StreamEnd { error })),
        1 => service().prop_map(Record::Service),
        1 => query().prop_map(Record::Query),
        1 => vec(service(), 0..3)
            .prop_map(|records| Record::QueryAnswer(QueryAnswer { records })),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let bytes = || vec(any::<u8>(), 1..60).prop_map(Bytes::from);
    let body = prop_oneof![
        blob().prop_map(FrameBody::Message),
        bytes().prop_map(FrameBody::Part),
        blob().prop_map(FrameBody::Last),
        any::<u64>().prop_map(|limit| FrameBody::Credit { limit }),
        any::<u32>().prop_map(|code| FrameBody::Reset(ErrorCode(code))),
        any::<u32>().prop_map(|code| FrameBody::Stop(ErrorCode(code))),
        (any::<u32>(), any::<u64>(), any::<u32>()).prop_map(|(region, offset, len)| {
            FrameBody::Reference {
                region,
                offset,
                len,
            }
        }),
        (any::<u16>(), any::<u64>()).prop_map(|(lane, offset)| FrameBody::Ack { lane, offset }),
        (0x8000..=u16::MAX).prop_map(|kind| FrameBody::Ignored(FrameType(kind))),
    ];
    (any::<u16>(), body).prop_map(|(stream, body)| Frame {
        stream: StreamId(stream),
        body,
    })
}

/// What a decoder accepts comes back as it was, but for routing information of eight zeros, which is left out.
fn assert_comes_back(kind: usize, bytes: &Bytes) {
    let Ok(decoded) = Record::decode(kind, bytes.clone()) else {
        return;
    };
    let encoded = decoded.encode();
    assert_eq!(encoded.len(), decoded.encoded_len());
    assert_eq!(Record::decode(kind, encoded.clone()), Ok(decoded.clone()));
    let holds_routing = matches!(
        decoded,
        Record::Message(_) | Record::Routing(_) | Record::Batch(_)
    );
    assert!(
        encoded == bytes || (holds_routing && encoded.len() < bytes.len()),
        "{decoded:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn records_come_back_as_they_were(record in record()) {
        let bytes = record.encode();
        prop_assert_eq!(bytes.len(), record.encoded_len());
        prop_assert_eq!(Record::decode(record.kind(), bytes), Ok(record));
    }

    #[test]
    fn cut_records_are_refused(record in record()) {
        let bytes = record.encode();
        for len in 0..bytes.len() {
            let cut = bytes.slice(..len);
            match Record::decode(record.kind(), cut.clone()) {
                Ok(decoded) => {
                    prop_assert!(record.may_be_cut() && decoded != record);
                    prop_assert_eq!(decoded.encode().len() <= len, true);
                }
                Err(error) => prop_assert!(error.at().offset <= len, "{}", error),
            }
        }
    }

    #[test]
    fn lengthened_records_are_refused(record in record(), more in 0_u8..) {
        let mut bytes = record.encode().to_vec();
        bytes.push(more);
        let decoded = Record::decode(record.kind(), bytes.into());
        prop_assert!(decoded.is_err() || record.may_be_cut(), "{:?}", decoded);
    }

    #[test]
    fn flipped_bits_never_panic(record in record(), bits in vec(any::<proptest::sample::Index>(), 1..4)) {
        let mut bytes = record.encode().to_vec();
        if !bytes.is_empty() {
            for bit in bits {
                let bit = bit.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        assert_comes_back(record.kind(), &bytes.into());
    }

    #[test]
    fn any_bytes_never_panic(kind in 0..KINDS, bytes in vec(any::<u8>(), 0..200)) {
        assert_comes_back(kind, &bytes.into());
    }

    /// Small numbers everywhere, so that lengths and counts are often plausible.
    #[test]
    fn plausible_bytes_never_panic(
        kind in 0..KINDS,
        bytes in vec(select(&[0, 0, 0, 0, 1, 2, 3, 8, 0x7f, 0x80][..]), 0..200),
    ) {
        assert_comes_back(kind, &bytes.into());
    }

    #[test]
    fn a_message_with_any_routing_and_context_never_panics(
        routing in vec(select(&[0, 0, 0, 1, 2, 3, 4, 6, 7, 8, 0x7f, 0x80][..]), 0..60),
        context in vec(select(&[0, 0, 0, 1, 2, 3, 4, 6, 7, 8, 0x7f, 0x80][..]), 0..60),
    ) {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(35 + routing.len() + context.len()).unwrap().to_be_bytes());
        bytes.push(0x10);
        bytes.extend([0; 18]);
        bytes.extend(u32::try_from(routing.len()).unwrap().to_be_bytes());
        bytes.extend(&routing);
        bytes.extend(u32::try_from(context.len()).unwrap().to_be_bytes());
        bytes.extend(&context);
        bytes.extend([0; 4]);
        let bytes = Bytes::from(bytes);
        assert_comes_back(0, &bytes);
        // Of the whole, exactly what the parts make.
        let parts = Routing::decode(routing.into()).and_then(|_| Context::decode(context.into()));
        let whole = Message::decode(bytes, &MessageLimits::DEFAULT);
        prop_assert_eq!(whole.is_ok(), parts.is_ok());
    }

    /// A carrier may cut the bytes anywhere: the frames are the same.
    #[test]
    fn frames_come_back_however_the_bytes_are_cut(
        frames in vec(frame(), 0..8),
        cuts in vec(any::<proptest::sample::Index>(), 0..12),
    ) {
        let mut bytes = BytesMut::new();
        for frame in &frames {
            let before = bytes.len();
            frame.encode(&mut bytes);
            prop_assert_eq!(bytes.len() - before, frame.encoded_len());
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let mut decoded = Vec::new();
        let mut input = BytesMut::new();
        let mut arrived = 0;
        for cut in cuts {
            input.extend_from_slice(&bytes[arrived..cut]);
            arrived = cut;
            loop {
                let before = input.len();
                match Frame::decode(&mut input, 256).expect("valid frames") {
                    Some(frame) => decoded.push(frame),
                    None => {
                        prop_assert_eq!(input.len(), before, "nothing is taken");
                        break;
                    }
                }
            }
        }
        prop_assert_eq!(decoded, frames);
        prop_assert!(input.is_empty());
    }

    #[test]
    fn any_frame_bytes_never_panic(bytes in vec(any::<u8>(), 0..40), max in any::<u32>()) {
        let mut input = BytesMut::from(&bytes[..]);
        match Frame::decode(&mut input, max) {
            Ok(Some(frame)) => prop_assert!(frame.encoded_len() <= bytes.len()),
            Ok(None) | Err(_) => prop_assert_eq!(&input[..], &bytes[..]),
        }
    }

    /// Spec: WIRE-19, WIRE-22. The more of a message is there, the more is judged, and never otherwise than the whole is.
    #[test]
    fn the_first_part_is_judged_as_the_whole_is(
        message in message(),
        bit in any::<proptest::sample::Index>(),
        max in 35_u32..400,
    ) {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        let bit = bit.index(27 * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let bytes = bytes.freeze();
        let limits = MessageLimits { message: max, ..MessageLimits::DEFAULT };
        let whole = Message::decode(bytes.clone(), &limits);
        for len in 0..bytes.len() {
            match Message::peek_len(&bytes[..len], &limits) {
                Ok(None) => prop_assert!(len < 4),
                Ok(Some(total)) => prop_assert_eq!(&total.to_be_bytes()[..], &bytes[..4]),
                Err(error) => {
                    // A message that is shorter than it says is known only once it ended.
                    let other_length = matches!(whole, Err(DecodeError::LengthMismatch { .. }));
                    prop_assert!(whole == Err(error) || other_length, "{} {:?}", error, whole);
                }
            }
        }
    }

    /// Decoding copies nothing: the parts lie in the buffer that came in.
    #[test]
    fn decoded_parts_lie_in_the_input(message in message()) {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        let bytes = bytes.freeze();
        let decoded = Message::decode(bytes.clone(), &MessageLimits::DEFAULT).expect("valid");
        let input = bytes.as_ptr_range();
        let lies_in_input = |part: &[u8]| part.is_empty() || input.contains(&part.as_ptr());
        prop_assert!(lies_in_input(&decoded.payload));
        prop_assert!(decoded.routing.options().all(|(_, value)| lies_in_input(value)));
        prop_assert!(decoded.context.options().all(|(_, value)| lies_in_input(value)));
    }

    #[test]
    fn budgets_are_rounded_up_to_less_than_a_unit_more(micros in 1_u64..2_000_000_000_000) {
        let budget = Duration::from_micros(micros);
        let stated = Ttl::from_duration(budget).to_duration().expect("a budget");
        let longest = Ttl::MAX.to_duration().expect("a budget");
        if budget <= longest {
            prop_assert!(stated >= budget, "rounded down");
            // A unit is at most 1/163 of what needed it; 1 ms where the finest unit does.
            prop_assert!(stated - budget <= Duration::from_millis(1).max(budget / 100), "{stated:?}");
        } else {
            prop_assert_eq!(stated, longest);
        }
    }
}
