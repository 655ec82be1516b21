//! Version, limits, identity, directory and schemas. Spec: core §3.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use remus_session::{
    CallError, ConfigError, Event, Grant, INITIAL_LIMITS, SessionConfig, Shape, State,
};
use remus_wire::{
    AuthenticationRecord, Capabilities, ErrorCode, ErrorRecord, Extension, ExtensionId, Features,
    Flags, FrameBody, Handshake, Health, Limits, Load, MessageType, Query, QueryAnswer, RequestId,
    Resume, ResumeToken, Schema, SchemaEntry, SchemaGift, ServiceId, ServiceRecord, ServiceVersion,
    Timestamp, Version, VersionRecord,
};

use crate::support::*;

fn offer_of(record: VersionRecord) -> Vec<u8> {
    handshake(&Handshake::Offer(record))
}

fn accept_of(record: VersionRecord) -> Vec<u8> {
    handshake(&Handshake::Accept(record))
}

fn version(major: u16, minor: u16) -> VersionRecord {
    VersionRecord {
        version: Version { major, minor },
        ..VersionRecord::new(all_features())
    }
}

/// The accept or the refusal that an acceptor answers with.
fn answer_to(offer: Vec<u8>) -> (Handshake, Option<ErrorCode>) {
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    let code = acceptor.feed(&offer).err().map(|error| error.code());
    let sent = acceptor.sent_messages();
    assert_eq!(sent.len(), 1);
    (Handshake::decode(sent[0].1.payload.clone()).unwrap(), code)
}

/// Spec: CORE-9, CORE-11
#[test]
fn the_lower_minor_and_the_common_features_are_accepted() {
    let mut newer = version(2, 7);
    newer.features = Features::BATCH | Features::EDGE | Features(1 << 31);
    let (Handshake::Accept(accepted), None) = answer_to(offer_of(newer)) else {
        panic!("a higher minor is no reason to refuse")
    };
    assert_eq!(accepted.version, Version { major: 2, minor: 0 });
    assert_eq!(accepted.features, Features::BATCH);
}

/// Spec: CORE-9
#[test]
fn an_unknown_major_is_refused_with_what_is_spoken() {
    for major in [0, 1, 3, u16::MAX] {
        let (answer, code) = answer_to(offer_of(version(major, 0)));
        assert_eq!(code, Some(ErrorCode::UNSUPPORTED_VERSION));
        let Handshake::Refused(record) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(record.code, ErrorCode::UNSUPPORTED_VERSION);
        let spoken = record.detail(Version::SPOKEN_DETAIL).unwrap();
        assert_eq!(
            Version::decode_spoken(spoken).unwrap(),
            [Version { major: 2, minor: 0 }]
        );
    }
}

/// The refusal reaches the client's application whole, and its early calls did not run.
///
/// Spec: CORE-9, CORE-19
#[test]
fn a_refused_client_hears_why() {
    let mut client = Rig::fresh_client(SessionConfig::client());
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing("early"), Shape::Unary)
        .unwrap();
    let mut record = ErrorRecord::new(ErrorCode::UNSUPPORTED_VERSION, "not that one");
    record
        .details
        .push(Version::spoken(&[Version { major: 3, minor: 1 }]));
    client
        .feed(&handshake(&Handshake::Refused(record)))
        .unwrap();
    let refused = client.events.iter().find_map(|event| match event {
        Event::Refused(record) => Some(record.detail(Version::SPOKEN_DETAIL)?.clone()),
        _ => None,
    });
    assert_eq!(
        Version::decode_spoken(&refused.unwrap()).unwrap(),
        [Version { major: 3, minor: 1 }]
    );
    assert_eq!(client.failure(call), Some(ErrorCode::UNSUPPORTED_VERSION));
    let closed = client.closed().unwrap();
    assert!(closed.by_peer && closed.code == ErrorCode::UNSUPPORTED_VERSION);
}

/// Spec: CORE-10
#[test]
fn a_client_takes_no_version_that_it_did_not_offer() {
    for (major, minor) in [(1, 0), (3, 0), (2, 1)] {
        let mut client = Rig::fresh_client(SessionConfig::client());
        let code = fault(&mut client, &accept_of(version(major, minor)));
        assert_eq!(code, ErrorCode::UNSUPPORTED_VERSION);
    }
}

/// Spec: CORE-11
#[test]
fn what_the_peer_does_not_have_is_not_used() {
    let mut client = Rig::fresh_client(SessionConfig::client());
    let mut answers = first_answers(GENEROUS);
    answers[0] = accept_of(VersionRecord::new(Features::NONE));
    for answer in answers {
        client.feed(&answer).unwrap();
    }
    let now = client.at();
    let batch = client.session.call_batch(now, vec![outgoing("")], None);
    assert!(matches!(batch, Err(CallError::NotOffered(_))));
    client.session.set_datagrams(true);
    client.session.probe(now);
    assert!(client.session.poll_datagram().is_none());
    client
        .session
        .call(now, outgoing(""), Shape::ServerStream)
        .unwrap();
    assert!(client.sent().iter().all(|(lane, _)| *lane == 0), "one lane");
}

/// Spec: CORE-12
#[test]
fn an_extension_that_must_be_understood_and_is_not_is_refused() {
    let extended = |id: u16| {
        let mut record = version(2, 0);
        record.extensions.push(Extension {
            id: ExtensionId(id),
            value: Bytes::from_static(b"?"),
        });
        record
    };
    let (answer, code) = answer_to(offer_of(extended(0x8042)));
    assert_eq!(code, Some(ErrorCode::UNSUPPORTED_EXTENSION));
    assert!(
        matches!(answer, Handshake::Refused(record) if record.code == ErrorCode::UNSUPPORTED_EXTENSION)
    );
    let (answer, code) = answer_to(offer_of(extended(0x0042)));
    assert!(code.is_none() && matches!(answer, Handshake::Accept(_)));

    let mut client = Rig::fresh_client(SessionConfig::client());
    assert_eq!(
        fault(&mut client, &accept_of(extended(0x8042))),
        ErrorCode::UNSUPPORTED_EXTENSION
    );
    let mut client = Rig::fresh_client(SessionConfig::client());
    client.feed(&accept_of(extended(0x0042))).unwrap();
}

/// Spec: CORE-13
#[test]
fn the_lower_idle_timeout_holds_and_none_is_below_half_a_second() {
    let cases = [
        (Some(60_000), 10_000),
        (Some(2_000), 2_000),
        (Some(500), 500),
        (Some(499), 500),
        (Some(0), 500),
        (None, 10_000),
    ];
    for (theirs, expected) in cases {
        let mut record = version(2, 0);
        if let Some(millis) = theirs {
            record.set_idle_timeout(Duration::from_millis(millis));
        }
        let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
        acceptor.feed(&offer_of(record.clone())).unwrap();
        for step in first_flight(GENEROUS).iter().skip(1) {
            acceptor.feed(step).unwrap();
        }
        let mut client = Rig::fresh_client(SessionConfig::client());
        client.feed(&accept_of(record)).unwrap();
        for step in first_answers(GENEROUS).iter().skip(1) {
            client.feed(step).unwrap();
        }
        for rig in [acceptor, client] {
            let settled = rig.session.negotiated().unwrap().idle_timeout;
            assert_eq!(settled, Duration::from_millis(expected), "{theirs:?}");
        }
    }
}

/// Sixty-four early calls of a KiB, and not a byte more than the initial limits allow.
///
/// Spec: CORE-14
#[test]
fn a_first_flight_keeps_to_the_initial_limits() {
    let mut client = Rig::fresh_client(SessionConfig::client());
    let now = client.at();
    for n in 0.. {
        match client
            .session
            .call(now, outgoing(vec![7; 1024]), Shape::Unary)
        {
            Ok(_) => {}
            Err(error) => {
                assert_eq!((n, error), (64, CallError::TooManyCalls { limit: 64 }));
                break;
            }
        }
    }
    let too_large = outgoing(vec![0; 66_000]);
    let error = client.session.notify(now, too_large).unwrap_err();
    assert!(matches!(error, CallError::MessageTooLarge { .. }));
    let frames = client.sent();
    let on_stream_1: usize = frames
        .iter()
        .filter(|(_, frame)| frame.stream.0 == 1)
        .map(|(_, frame)| frame.body.encoded_len())
        .sum();
    assert_eq!(on_stream_1, 65_536, "all of the initial window");
    assert!(
        frames
            .iter()
            .all(|(_, frame)| frame.body.encoded_len() <= 16_448)
    );
    for answer in first_answers(GENEROUS) {
        client.feed(&answer).unwrap();
    }
    let rest: usize = client
        .sent()
        .iter()
        .map(|(_, frame)| frame.body.encoded_len())
        .sum();
    assert_eq!(
        on_stream_1 + rest,
        64 * (1024 + 35),
        "the peer's own window lets the rest out"
    );
}

/// Spec: CORE-15
#[test]
fn limits_below_the_initial_ones_end_the_session() {
    type Set = fn(&mut Limits);
    let cases: [(&str, Set); 5] = [
        ("max_frame", |limits| {
            limits.max_frame = INITIAL_LIMITS.max_frame - 1
        }),
        ("max_message", |limits| {
            limits.max_message = INITIAL_LIMITS.max_message - 1
        }),
        ("max_calls", |limits| {
            limits.max_calls = INITIAL_LIMITS.max_calls - 1
        }),
        ("stream_window", |limits| {
            limits.stream_window = INITIAL_LIMITS.stream_window - 1
        }),
        ("session_window", |limits| {
            limits.session_window = INITIAL_LIMITS.session_window - 1
        }),
    ];
    for (name, lower) in cases {
        let mut limits = GENEROUS;
        lower(&mut limits);
        let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
        acceptor.feed(&offer()).unwrap();
        assert_eq!(
            fault(&mut acceptor, &capability(limits)),
            ErrorCode::MALFORMED,
            "{name}"
        );
        assert!(acceptor.closed().unwrap().reason.contains(name));
        let mut config = SessionConfig::client();
        lower(&mut config.limits);
        let ConfigError { field, .. } = config.validate().unwrap_err();
        assert_eq!(field, name, "and nobody states them by mistake");
    }
    Rig::acceptor_with(SessionConfig::acceptor(), INITIAL_LIMITS);
}

/// Spec: CORE-16
#[test]
fn what_the_application_gives_is_cut_to_one_frame() {
    let record = ServiceRecord {
        service: ServiceId(7),
        version: ServiceVersion::new(1, 0, 0),
        capabilities: Capabilities::default(),
        health: Health::from_bytes([1, 1, 1, 1]),
        load: Load(0),
        endpoints: Vec::new(),
    };
    let small = Limits {
        max_frame: INITIAL_LIMITS.max_frame,
        ..GENEROUS
    };
    let mut acceptor = Rig::acceptor_with(SessionConfig::acceptor(), small);
    let answer = QueryAnswer {
        records: vec![record; 1024],
    };
    let now = acceptor.at();
    acceptor.session.answer_query(now, RequestId(9), &answer);
    let sent = acceptor.sent();
    assert_eq!(sent.len(), 1);
    let FrameBody::Message(bytes) = sent[0].1.body.clone() else {
        panic!("{sent:?}")
    };
    assert!(bytes.len() <= 16_448 && bytes.len() > 16_400);
    let message = remus_wire::Message::decode(bytes, &ANY).unwrap();
    let records = QueryAnswer::decode(message.payload).unwrap().records;
    assert_eq!(records.len(), (16_448 - 35 - 4) / 24);

    let long = "ü".repeat(40_000);
    acceptor
        .session
        .shut_down(now, ErrorCode::OK, &long, &long, Duration::from_secs(1));
    let sent = acceptor.sent_messages();
    let shutdown = remus_wire::Shutdown::decode(sent[0].1.payload.clone()).unwrap();
    assert_eq!(
        (shutdown.reason.len(), shutdown.redirect.len()),
        (1024, 1024)
    );

    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    acceptor.grant = None;
    acceptor.feed(&first_flight(small).concat()).unwrap();
    let mut error = ErrorRecord::new(ErrorCode::PERMISSION_DENIED, long.as_str());
    error.details.push(Version::spoken(&[Version::CURRENT]));
    acceptor.session.refuse(Timestamp(START), error);
    let refusal = acceptor.sent_messages().pop().unwrap().1;
    assert!(refusal.encoded_len() <= 16_448);

    let mut config = SessionConfig::client();
    config.authentication.token = Bytes::from(vec![0; 20_000]);
    assert_eq!(config.validate().unwrap_err().field, "authentication");
}

/// A client that renews in a hurry does not trip over its own handshake.
///
/// Spec: CORE-17, CORE-20
#[test]
fn renewals_wait_for_their_turn_and_the_latest_wins() {
    let record = |token: &'static [u8]| AuthenticationRecord {
        token: Bytes::from_static(token),
        ..AuthenticationRecord::default()
    };
    let mut client = Rig::fresh_client(SessionConfig::client());
    client.sent();
    let now = client.at();
    client.session.authenticate(now, record(b"one"));
    client.session.authenticate(now, record(b"two"));
    for answer in first_answers(GENEROUS).iter().take(4) {
        client.feed(answer).unwrap();
        assert!(client.sent().is_empty(), "not before it is active");
    }
    client.feed(&schema_want()).unwrap();
    let tokens = |rig: &mut Rig| -> Vec<Bytes> {
        rig.sent_messages()
            .into_iter()
            .map(
                |(_, message)| match Handshake::decode(message.payload).unwrap() {
                    Handshake::Authenticate(record) => record.token,
                    other => panic!("{other:?}"),
                },
            )
            .collect()
    };
    assert_eq!(tokens(&mut client), [&b"two"[..]]);
    client.session.authenticate(now, record(b"three"));
    assert!(client.sent().is_empty(), "one at a time");
    client.feed(&authenticated()).unwrap();
    assert_eq!(tokens(&mut client), [&b"three"[..]]);
    client.feed(&authenticated()).unwrap();
    assert_eq!(
        fault(&mut client, &authenticated()),
        ErrorCode::UNEXPECTED_MESSAGE,
        "nobody asked"
    );

    let mut acceptor = Rig::acceptor();
    acceptor.grant = None;
    acceptor.feed(&authenticate()).unwrap();
    assert_eq!(
        fault(&mut acceptor, &authenticate()),
        ErrorCode::UNEXPECTED_MESSAGE,
        "two at once"
    );
}

/// The rest of the first flight, early calls included, comes before the answer to the challenge, and is not lost.
///
/// Spec: CORE-18
#[test]
fn a_challenge_takes_one_more_turn() {
    let mut client = Rig::fresh_client(SessionConfig::client());
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing("early"), Shape::Unary)
        .unwrap();
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    acceptor.grant = None;
    pour(&mut client, &mut acceptor);
    for round in 0..2_u8 {
        acceptor.session.challenge(now, Bytes::from(vec![round]));
        acceptor.resume().unwrap();
        pour(&mut acceptor, &mut client);
        let Some(Event::Challenge(challenge)) = client.events.pop_back() else {
            panic!("{:?}", client.events)
        };
        assert_eq!(challenge, vec![round]);
        let record = AuthenticationRecord {
            token: challenge,
            ..AuthenticationRecord::default()
        };
        client.session.authenticate(now, record);
        acceptor.events.clear();
        pour(&mut client, &mut acceptor);
        assert!(matches!(
            acceptor.events.pop_back(),
            Some(Event::Authenticate(_))
        ));
        assert!(acceptor.events.is_empty(), "nothing runs yet");
    }
    acceptor.session.grant(now, Grant::default());
    acceptor.take_events();
    let incoming = acceptor.incoming();
    acceptor.respond(incoming.call, "late but there");
    pour(&mut acceptor, &mut client);
    assert_eq!(client.session.state(), State::Active);
    assert_eq!(
        client.answer(call).unwrap().unwrap().payload,
        "late but there"
    );

    // What is held is a query and a schema offer, each once, and a request only behind them.
    for wrong in [
        vec![schema_offer()],
        vec![query(1), query(2)],
        vec![whole(1, &request(1))],
    ] {
        let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
        acceptor.grant = None;
        acceptor
            .feed(&first_flight(GENEROUS)[..3].concat())
            .unwrap();
        acceptor.session.challenge(now, Bytes::new());
        assert_eq!(
            fault(&mut acceptor, &wrong.concat()),
            ErrorCode::UNEXPECTED_MESSAGE
        );
    }
}

/// Spec: CORE-19
#[test]
fn a_refused_identity_ends_the_session_on_both_sides() {
    let mut client = Rig::fresh_client(SessionConfig::client());
    let now = client.at();
    let call = client
        .session
        .call(now, outgoing("early"), Shape::Unary)
        .unwrap();
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    acceptor.grant = None;
    pour(&mut client, &mut acceptor);
    acceptor.session.refuse(
        now,
        ErrorRecord::new(ErrorCode::PERMISSION_DENIED, "not you"),
    );
    acceptor.take_events();
    assert_eq!(
        acceptor.closed().unwrap().code,
        ErrorCode::PERMISSION_DENIED
    );
    assert!(
        acceptor
            .events
            .iter()
            .all(|event| !matches!(event, Event::Request(_))),
        "nothing ran"
    );
    pour(&mut acceptor, &mut client);
    assert_eq!(client.closed().unwrap().code, ErrorCode::PERMISSION_DENIED);
    assert_eq!(client.failure(call), Some(ErrorCode::PERMISSION_DENIED));
}

/// Calls go on while a renewal is decided; a refusal ends the session.
///
/// Spec: CORE-20, CORE-84
#[test]
fn a_renewal_holds_nothing_up() {
    let mut duo = Duo::new(SessionConfig::client(), SessionConfig::acceptor());
    duo.acceptor.grant = None;
    let now = duo.client.at();
    duo.client
        .session
        .authenticate(now, AuthenticationRecord::default());
    let call = duo
        .client
        .session
        .call(now, outgoing("meanwhile"), Shape::Unary)
        .unwrap();
    duo.exchange();
    assert!(duo.acceptor.session.wants_input());
    let incoming = duo.acceptor.incoming();
    duo.acceptor.respond(incoming.call, "yes");
    duo.exchange();
    assert_eq!(duo.client.answer(call).unwrap().unwrap().payload, "yes");

    let call = duo
        .client
        .session
        .call(now, outgoing("open"), Shape::Unary)
        .unwrap();
    duo.exchange();
    let incoming = duo.acceptor.incoming();
    duo.acceptor
        .session
        .refuse(now, ErrorRecord::new(ErrorCode::UNAUTHENTICATED, "expired"));
    duo.acceptor.take_events();
    assert!(
        duo.acceptor.cancelled(incoming.call).is_some(),
        "the work stops"
    );
    pour(&mut duo.acceptor, &mut duo.client);
    assert_eq!(duo.client.failure(call), Some(ErrorCode::UNAUTHENTICATED));
}

/// Spec: CORE-21, CORE-22, CORE-40
#[test]
fn what_requires_authentication_is_refused_without() {
    let protected = |id| {
        whole(
            1,
            &flagged(MessageType::REQUEST, id, Flags::REQUIRES_AUTH, "x"),
        )
    };
    let mut anonymous = Rig::fresh_acceptor(SessionConfig::acceptor());
    anonymous.grant = Some(Grant::default());
    for record in first_flight(GENEROUS) {
        anonymous.feed(&record).unwrap();
    }
    anonymous.sent();
    anonymous.feed(&protected(1)).unwrap();
    assert_eq!(
        anonymous.sent_errors(),
        [(1, 1, ErrorCode::UNAUTHENTICATED)]
    );
    anonymous.feed(&whole(1, &request(2))).unwrap();
    anonymous.incoming();

    let mut known = Rig::fresh_acceptor(SessionConfig::acceptor());
    let expires = Timestamp(START + SECOND);
    known.grant = Some(Grant {
        authenticated: true,
        expires,
        ..Grant::default()
    });
    for record in first_flight(GENEROUS) {
        known.feed(&record).unwrap();
    }
    known.sent();
    known.feed(&protected(1)).unwrap();
    known.incoming();
    known.now += SECOND;
    known.feed(&protected(2)).unwrap();
    assert_eq!(
        known.sent_errors(),
        [(1, 2, ErrorCode::UNAUTHENTICATED)],
        "it has expired"
    );
    known.grant = Some(Grant {
        authenticated: true,
        ..Grant::default()
    });
    known.feed(&authenticate()).unwrap();
    known.feed(&protected(3)).unwrap();
    known.incoming();
}

/// Spec: CORE-23
#[test]
fn queries_are_answered_by_their_request_id_at_any_time() {
    let mut acceptor = Rig::acceptor();
    for id in [5, 4_000_000_000, 5] {
        acceptor.feed(&query(id)).unwrap();
        let sent = acceptor.sent_messages();
        assert_eq!(
            (sent[0].0, sent[0].1.kind, sent[0].1.request_id.0),
            (0, MessageType::RESPONSE, id)
        );
    }
    // A call may bear the same ID, and a client may be asked as well.
    acceptor.feed(&query(77)).unwrap();
    acceptor.feed(&whole(1, &request(77))).unwrap();
    acceptor.incoming();
    let mut client = Rig::client();
    client.feed(&query(3)).unwrap();
    assert_eq!(client.sent_messages()[0].1.request_id.0, 3);
    assert_eq!(
        fault(&mut client, &query_answer(1)),
        ErrorCode::UNEXPECTED_MESSAGE,
        "nobody asked"
    );
}

/// Spec: CORE-24
#[test]
fn schemas_that_nobody_offered_or_wanted_end_the_session() {
    let gift = SchemaGift::new(ServiceId(1), 1, 0, Bytes::from_static(b"descriptor"));
    let entry: SchemaEntry = gift.entry;
    let mut acceptor = Rig::acceptor();
    acceptor.feed(&schema(&Schema::Offer(vec![entry]))).unwrap();
    let sent = acceptor.sent_messages();
    assert_eq!(
        Schema::decode(sent[0].1.payload.clone()).unwrap(),
        Schema::Want(Vec::new())
    );
    assert_eq!(
        fault(&mut acceptor, &schema(&Schema::Want(vec![entry]))),
        ErrorCode::UNIMPLEMENTED
    );
    let mut client = Rig::client();
    assert_eq!(
        fault(&mut client, &schema(&Schema::Give(vec![gift]))),
        ErrorCode::UNIMPLEMENTED
    );
}

/// Spec: TRANS-52
#[test]
fn resumption_is_refused() {
    let mut acceptor = Rig::fresh_acceptor(SessionConfig::acceptor());
    let resume = Handshake::Resume(Resume {
        token: ResumeToken([7; 32]),
        lanes: Vec::new(),
    });
    assert_eq!(
        fault(&mut acceptor, &handshake(&resume)),
        ErrorCode::UNIMPLEMENTED
    );
    let sent = acceptor.sent_messages();
    let Handshake::Refused(record) = Handshake::decode(sent[0].1.payload.clone()).unwrap() else {
        panic!("{sent:?}")
    };
    assert_eq!(record.code, ErrorCode::LOSS_OF_SESSION);
}

/// Spec: CORE-3
#[test]
fn a_query_whose_text_is_cut_off_is_malformed() {
    let mut acceptor = Rig::acceptor();
    let cut = control(MessageType::QUERY, 1, |out| {
        Query::default().encode(out);
        out.put_u8(0);
    });
    assert_eq!(fault(&mut acceptor, &cut), ErrorCode::MALFORMED);
    assert_eq!(acceptor.session.state(), State::Closed);
}
