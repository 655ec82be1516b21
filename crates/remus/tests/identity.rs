//! Whose session it is: a token resumes one only for the client that it belongs to.
//!
//! Spec: core §3.5.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

#[path = "support/raider.rs"]
mod raider;
mod support;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use raider::{Raider, echo, frame, is_served, request};
use remus::{
    AuthMethod, AuthenticationRecord, Authenticator, BoxFuture, Carrier, Client, ConnectionStatus,
    Error, Grant,
};
use remus_session::{CarrierInfo, LaneId, Peeked, ResumeRequest, SessionConfig, peek_resume};
use remus_wire::{
    ErrorCode, Flags, Frame, FrameBody, Handshake, Message, MessageLimits, MessageType, Resume,
    ResumeToken, StreamId, Text,
};
use support::Host;
use tokio::sync::Barrier;

/// What an acceptor says about its clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Says {
    /// That it knows them.
    Nothing,
    /// What they may do.
    Claims,
    /// Who they are; what they may do differs from token to token.
    Subject,
}

/// Knows tokens of the form `name` and `name/number`, of everybody but Mallory.
struct Door {
    says: Says,
    /// Where two meet, once it is open.
    gate: Option<(Arc<Barrier>, Arc<AtomicBool>)>,
}

impl Door {
    fn new(says: Says) -> Self {
        Self { says, gate: None }
    }
}

impl Authenticator for Door {
    fn authenticate(&self, record: AuthenticationRecord) -> BoxFuture<Result<Grant, Error>> {
        let says = self.says;
        let gate = self.gate.clone();
        Box::pin(async move {
            if let Some((gate, is_open)) = gate
                && is_open.load(Ordering::SeqCst)
            {
                gate.wait().await;
            }
            let token = String::from_utf8(record.token.to_vec()).unwrap();
            let name = token.split('/').next().unwrap_or_default();
            if record.method != AuthMethod::BEARER_JWT || name == "mallory" {
                return Err(Error::unauthenticated("not known here"));
            }
            Ok(Grant {
                authenticated: true,
                claims: match says {
                    Says::Nothing => Text::new(),
                    Says::Claims => Text::from(format!("{{\"sub\":\"{name}\"}}")),
                    Says::Subject => Text::from(format!("{{\"token\":\"{token}\"}}")),
                },
                subject: match says {
                    Says::Subject => Text::from(name),
                    _ => Text::new(),
                },
                ..Grant::default()
            })
        })
    }
}

fn bearer(token: &str) -> AuthenticationRecord {
    AuthenticationRecord {
        method: AuthMethod::BEARER_JWT,
        token: Bytes::copy_from_slice(token.as_bytes()),
        claims: Text::new(),
    }
}

/// A session of this client's, and the request by which it would go on with it.
async fn session_of(host: &Host, token: &'static str) -> (Raider, ResumeRequest) {
    let config = SessionConfig::client()
        .with_resumption(true)
        .with_bearer(Bytes::from_static(token.as_bytes()));
    let mut owner = Raider::active_with(host, config).await;
    let now = owner.clock.now();
    owner.session.attach(now, CarrierInfo::ONE_LANE).unwrap();
    let mut out = VecDeque::new();
    owner.session.poll_transmit(LaneId::ZERO, &mut out);
    let bytes: Vec<u8> = out.into_iter().flatten().collect();
    let Peeked::Resume(asked) = peek_resume(&bytes) else {
        panic!("no request")
    };
    assert_eq!(asked.authentication, bearer(token));
    (owner, asked)
}

/// Someone who asks to go on with a session.
struct Asker {
    raider: Raider,
    input: BytesMut,
}

impl Asker {
    async fn new(
        host: &Host,
        token: ResumeToken,
        asked: &ResumeRequest,
        record: Option<&AuthenticationRecord>,
    ) -> Self {
        let mut raider = Raider::new(host).await;
        let step = Handshake::Resume(Resume {
            token,
            lanes: asked.lanes.clone(),
        });
        let mut payload = BytesMut::new();
        step.encode(&mut payload);
        let mut message = Message::new(MessageType::HANDSHAKE, payload.freeze());
        message.timestamp = raider.clock.now();
        if let Some(record) = record {
            message.context.set_authentication(record).unwrap();
        }
        let mut bytes = BytesMut::new();
        message.encode_frame(StreamId::CONTROL, &mut bytes);
        // In two pieces: nobody promises how a lane's bytes are cut.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        for piece in [first, second] {
            raider.send.write_all(piece).await.unwrap();
        }
        Self {
            raider,
            input: BytesMut::new(),
        }
    }

    /// The next message that comes on a stream; `None` where the link ends before.
    async fn next(&mut self, stream: StreamId) -> Option<Message> {
        loop {
            while let Some(frame) = Frame::decode(&mut self.input, u32::MAX).unwrap() {
                if let FrameBody::Message(bytes) = frame.body
                    && frame.stream == stream
                {
                    return Some(Message::decode(bytes, &MessageLimits::default()).unwrap());
                }
            }
            let chunk = self.raider.recv.read_chunk(65_536).await.ok()??;
            self.input.extend_from_slice(&chunk);
        }
    }

    async fn step(&mut self) -> Option<Handshake> {
        loop {
            let message = self.next(StreamId::CONTROL).await?;
            if message.kind == MessageType::HANDSHAKE {
                return Some(Handshake::decode(message.payload).unwrap());
            }
        }
    }

    /// What it is told why it may not, in step 6 and with the link's end.
    async fn refusal(mut self) -> String {
        let Some(Handshake::Refused(record)) = self.step().await else {
            panic!("it was not refused")
        };
        let (code, reason) = self.raider.verdict().await;
        assert_eq!(
            (record.code, code),
            (ErrorCode::LOSS_OF_SESSION, ErrorCode::LOSS_OF_SESSION)
        );
        assert_eq!(record.message.as_str(), reason);
        reason
    }

    /// The token of the new epoch, where it may go on.
    async fn granted(&mut self) -> Option<ResumeToken> {
        let (resumed, authenticated) = (self.step().await?, self.step().await?);
        match (resumed, authenticated) {
            (Handshake::Resumed(_), Handshake::Authenticated(step)) => Some(step.token),
            other => panic!("{other:?}"),
        }
    }

    /// Whether a call on the session is answered.
    async fn calls(&mut self) -> bool {
        let call = request(
            77,
            "test.v1.Echo/Echo",
            Flags::default(),
            Bytes::from_static(b"mine"),
        );
        let frame = frame(1, remus_wire::FrameType::MESSAGE, &call);
        if self.raider.send.write_all(&frame).await.is_err() {
            return false;
        }
        match self.next(StreamId(1)).await {
            Some(answer) => {
                assert_eq!(
                    (answer.request_id.0, &answer.payload[..]),
                    (77, &b"mine"[..])
                );
                true
            }
            None => false,
        }
    }
}

async fn host_with(door: Door) -> Host {
    Host::start_with(echo(), |builder| builder.authenticator(door)).await
}

/// Spec: CORE-97, CORE-103, CORE-108
#[tokio::test]
async fn a_token_resumes_a_session_for_whom_it_belongs_to_and_for_nobody_else() {
    for says in [Says::Nothing, Says::Claims, Says::Subject] {
        let host = host_with(Door::new(says)).await;
        let (owner, asked) = session_of(&host, "alice").await;
        let mut words = Vec::new();
        let (bob, mallory) = (bearer("bob"), bearer("mallory"));
        let other_method = AuthenticationRecord {
            method: AuthMethod::CAPABILITY_TOKEN,
            ..bearer("alice")
        };
        for stranger in [Some(&bob), Some(&mallory), Some(&other_method), None] {
            let asker = Asker::new(&host, asked.token, &asked, stranger).await;
            words.push(asker.refusal().await);
        }
        let alice = bearer("alice");
        let wrong = ResumeToken([7; 32]);
        let asker = Asker::new(&host, wrong, &asked, Some(&alice)).await;
        words.push(asker.refusal().await);
        assert!(owner.link.end().is_none(), "the session is as it was");

        let mut asker = Asker::new(&host, asked.token, &asked, Some(&alice)).await;
        let next = asker.granted().await.expect("it is hers");
        assert_ne!(next, asked.token);
        assert!(asker.calls().await, "{says:?}: the session goes on");
        owner.link.closed().await.ok();
        // By now the first token is spent, for its owner too.
        let late = Asker::new(&host, asked.token, &asked, Some(&alice)).await;
        words.push(late.refusal().await);
        assert!(asker.calls().await, "and nobody was harmed");
        words.dedup();
        assert_eq!(words.len(), 1, "{says:?}: the same words: {words:?}");
    }
}

/// Spec: CORE-108
#[tokio::test]
async fn another_token_of_the_same_client_does_where_the_acceptor_says_who_it_is() {
    for (says, goes_on) in [
        (Says::Nothing, false),
        (Says::Claims, true),
        (Says::Subject, true),
    ] {
        let host = host_with(Door::new(says)).await;
        let (_owner, asked) = session_of(&host, "alice/1").await;
        let renewed = bearer("alice/2");
        let mut asker = Asker::new(&host, asked.token, &asked, Some(&renewed)).await;
        if goes_on {
            asker.granted().await.expect("it is hers");
            assert!(asker.calls().await);
        } else {
            asker.refusal().await;
        }
    }
}

/// Spec: CORE-102, CORE-108
#[tokio::test]
async fn of_two_that_present_a_token_at_once_one_goes_on() {
    let gate = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let is_open = Arc::clone(&gate.1);
    let host = host_with(Door {
        says: Says::Subject,
        gate: Some(gate),
    })
    .await;
    let alice = bearer("alice");
    for _ in 0..10 {
        is_open.store(false, Ordering::SeqCst);
        let (owner, asked) = session_of(&host, "alice").await;
        is_open.store(true, Ordering::SeqCst);
        let attempt = async || {
            let mut asker = Asker::new(&host, asked.token, &asked, Some(&alice)).await;
            match asker.step().await {
                Some(Handshake::Resumed(_)) if asker.step().await.is_some() => {
                    let answered = asker.calls().await;
                    (answered, asker)
                }
                _ => (false, asker),
            }
        };
        let ((first, one), (second, other)) = tokio::join!(attempt(), attempt());
        assert!(first ^ second, "first: {first}, second: {second}");
        drop((one, other, owner));
    }
}

/// Spec: CORE-107
#[tokio::test]
async fn a_client_with_a_token_moves_with_it_and_with_the_next_one() {
    let host = host_with(Door::new(Says::Subject)).await;
    let client = Client::builder(&host.url)
        .trust(host.trust.clone())
        .carriers([Carrier::WebTransport, Carrier::WebSocket])
        .bearer("alice/1")
        .connect()
        .await
        .unwrap();
    let connection = client.connection().await.unwrap();
    connection.active().await.unwrap();
    for number in 1..=3_u64 {
        connection.switch_carrier(Carrier::WebSocket).await.unwrap();
        is_served(&client).await;
        connection
            .switch_carrier(Carrier::WebTransport)
            .await
            .unwrap();
        is_served(&client).await;
        assert_eq!(connection.statistics().resumptions, number * 2);
        connection.authenticate(bearer(&format!("alice/{}", number + 1)));
    }
}

/// A client drops its carrier by code 3000, and the session waits for it. Spec: CORE-91, TRANS-47, TRANS-53
#[tokio::test]
async fn a_carrier_can_be_closed_without_its_session() {
    for (code, ends) in [(3000, false), (0, true), (0x106, true)] {
        let host = Host::start(echo()).await;
        let config = SessionConfig::client().with_resumption(true);
        let raider = Raider::active_with(&host, config).await;
        let accepted = host.connections.list().pop().unwrap();
        let mut status = accepted.watch_status();
        raider.link.close(code, "bye").await;
        let after = status
            .wait_for(|status| {
                matches!(
                    status,
                    ConnectionStatus::Suspended { .. } | ConnectionStatus::Closed(_)
                )
            })
            .await
            .unwrap()
            .clone();
        match after {
            ConnectionStatus::Suspended { .. } => assert!(!ends, "code {code}"),
            ConnectionStatus::Closed(reason) => {
                assert!(ends, "code {code}");
                assert_eq!((reason.code.0, reason.by_peer), (code, true));
            }
            other => panic!("{other:?}"),
        }
    }
}
