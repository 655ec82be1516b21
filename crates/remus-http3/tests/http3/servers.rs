//! This crate's client against servers by raw QUIC: every dialect of SETTINGS, and broken rules.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{ConnectionError, RecvStream, SendStream};
use remus_http3::{Code, Config, Connection, Error, Fault, Scope, fuzzing};

use crate::support::{Identity, client_endpoint, guarded, loopback};

/// Both ends of a connection: ours, and a server that does nothing by itself.
struct Pair {
    server: quinn::Connection,
    client: quinn::Connection,
    /// Kept, as dropping one closes its connections.
    _endpoint: quinn::Endpoint,
}

impl Pair {
    async fn new() -> Self {
        let identity = Identity::new();
        let endpoint = quinn::Endpoint::server(identity.server_config(), loopback()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let config = identity.client_config(b"h3");
        let connecting = client_endpoint().connect_with(config, address, "localhost");
        let server = async { endpoint.accept().await.unwrap().await.unwrap() };
        let (server, client) = tokio::join!(server, connecting.unwrap());
        Self {
            server,
            client: client.unwrap(),
            _endpoint: endpoint,
        }
    }

    /// Sends `bytes` on a unidirectional stream of the server.
    async fn uni(&self, bytes: &[u8]) -> SendStream {
        let mut send = self.server.open_uni().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send
    }

    async fn connect(&self) -> Result<Connection, Error> {
        Connection::client(self.client.clone(), Arc::default()).await
    }

    /// Asserts that the client closed the connection with `code`.
    async fn assert_closed_with(&self, code: Code) {
        match self.server.closed().await {
            ConnectionError::ApplicationClosed(close) => {
                assert_eq!(Code::from(close.error_code), code, "{close}");
            }
            other => panic!("{other}"),
        }
    }
}

fn frame(ty: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    fuzzing::encode_frame(ty, payload, &mut out);
    out
}

fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    fuzzing::encode_varint(value, &mut out);
    out
}

/// Pairs of identifier and value.
type Settings = [(u64, u64)];

/// A control stream that begins with these settings.
fn control(settings: &Settings) -> Vec<u8> {
    let pair = |(id, value): &(u64, u64)| [varint(*id), varint(*value)].concat();
    let payload: Vec<u8> = settings.iter().flat_map(pair).collect();
    [vec![0x00], frame(0x04, &payload)].concat()
}

const DRAFT02: &Settings = &[(0x8, 1), (0x33, 1), (0x2b60_3742, 1)];

fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = Vec::new();
    let mut encoder = fuzzing::Encoder::new(&mut section);
    for (name, value) in fields {
        encoder.field(name, value.as_bytes());
    }
    frame(0x01, &section)
}

/// Reads the head of a request: the value of one field.
async fn read_field(recv: &mut RecvStream, name: &str) -> Option<Bytes> {
    let mut decoder = fuzzing::MessageDecoder::new(fuzzing::Peer::Client, 1 << 16);
    loop {
        let mut bytes = recv.read_chunk(1, true).await.unwrap().unwrap().bytes;
        if let Some(fuzzing::MessageEvent::Head(section)) = decoder.decode(&mut bytes).unwrap() {
            let fields = fuzzing::decode_field_section(section, 1 << 16).unwrap();
            let field = fields.into_iter().find(|field| field.name == name);
            return field.map(|field| field.value);
        }
    }
}

fn get() -> http::Request<()> {
    http::Request::get("https://localhost/").body(()).unwrap()
}

/// Spec: TRANS-17
#[tokio::test]
async fn every_dialect_gets_the_protocol_name_it_expects() {
    guarded(async {
        let dialects: [(&str, &Settings, &str); 6] = [
            ("draft 02", DRAFT02, "webtransport"),
            (
                "draft 02 and 04",
                &[(0xff_d277, 1), (0x2b60_3742, 1)],
                "webtransport",
            ),
            ("draft 07", &[(0x33, 1), (0xc671_706a, 1)], "webtransport"),
            (
                "draft 13",
                &[(0x8, 1), (0x33, 1), (0x14e9_cd29, 1)],
                "webtransport",
            ),
            (
                "draft 15",
                &[(0x8, 1), (0x33, 1), (0x2c7c_f000, 1)],
                "webtransport-h3",
            ),
            (
                "all",
                &[
                    (0x33, 1),
                    (0x2b60_3742, 1),
                    (0xc671_706a, 1),
                    (0x2c7c_f000, 1),
                ],
                "webtransport",
            ),
        ];
        for (name, settings, token) in dialects {
            let pair = Pair::new().await;
            let _control = pair.uni(&control(settings)).await;
            let connection = pair.connect().await.unwrap();
            let session = connection.connect(get(), &["remus.v2"]).await.unwrap();
            let (mut send, mut recv) = pair.server.accept_bi().await.unwrap();
            let got = read_field(&mut recv, ":protocol").await;
            assert_eq!(got.as_deref(), Some(token.as_bytes()), "{name}");
            // Early hints, then the answer.
            let hints = headers(&[(":status", "103")]);
            let answer = headers(&[(":status", "200"), ("wt-protocol", "\"remus.v2\"")]);
            send.write_all(&[hints, answer].concat()).await.unwrap();
            let established = session.established().await.unwrap();
            assert_eq!(established.protocol.as_deref(), Some("remus.v2"), "{name}");
        }
    })
    .await;
}

/// Spec: TRANS-14
#[tokio::test]
async fn a_server_without_webtransport_or_datagrams_is_named_so() {
    guarded(async {
        let cases: [(&Settings, &str); 3] = [
            (&[(0x33, 1), (0x8, 1)], "WebTransport"),
            (&[(0x2b60_3742, 0), (0x33, 1)], "WebTransport"),
            (
                &[(0x2b60_3742, 1)],
                "HTTP datagrams, which WebTransport needs",
            ),
        ];
        for (settings, missing) in cases {
            let pair = Pair::new().await;
            let _control = pair.uni(&control(settings)).await;
            let connection = pair.connect().await.unwrap();
            match connection.connect(get(), &[]).await {
                Err(Error::NotOffered(what)) => assert_eq!(what, missing),
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_number_of_sessions_a_server_states_is_kept() {
    guarded(async {
        let pair = Pair::new().await;
        let _control = pair.uni(&control(&[(0x33, 1), (0xc671_706a, 2)])).await;
        let connection = pair.connect().await.unwrap();
        let _one = connection.connect(get(), &[]).await.unwrap();
        let _two = connection.connect(get(), &[]).await.unwrap();
        let three = connection.connect(get(), &[]).await;
        assert!(
            matches!(three, Err(Error::TooManySessions { max: 2 })),
            "{three:?}"
        );
    })
    .await;
}

/// Spec: TRANS-11, TRANS-14
#[tokio::test]
async fn a_server_that_sends_no_settings_is_not_waited_for_for_ever() {
    guarded(async {
        let pair = Pair::new().await;
        let config = Config::builder().settings_timeout(std::time::Duration::from_millis(50));
        let config = Arc::new(config.build().unwrap());
        match Connection::client(pair.client.clone(), config).await {
            Err(Error::Peer(fault)) => assert_eq!(fault.code, Code::H3_MISSING_SETTINGS),
            other => panic!("{other:?}"),
        }
        pair.assert_closed_with(Code::H3_MISSING_SETTINGS).await;
    })
    .await;
}

/// Spec: TRANS-24
#[tokio::test]
async fn a_protocol_that_was_not_offered_ends_the_session() {
    guarded(async {
        let pair = Pair::new().await;
        let _control = pair.uni(&control(DRAFT02)).await;
        let connection = pair.connect().await.unwrap();
        let session = connection.connect(get(), &["remus.v2"]).await.unwrap();
        let (mut send, mut recv) = pair.server.accept_bi().await.unwrap();
        read_field(&mut recv, ":method").await.unwrap();
        let answer = headers(&[(":status", "200"), ("wt-protocol", "\"other\"")]);
        send.write_all(&answer).await.unwrap();
        match session.established().await {
            Err(Error::Peer(Fault { code, scope, .. })) => {
                assert_eq!((code, scope), (Code::WT_ALPN_ERROR, Scope::Stream));
            }
            other => panic!("{other:?}"),
        }
        let stopped = send.stopped().await.unwrap().map(Code::from);
        assert_eq!(stopped, Some(Code::WT_ALPN_ERROR));
    })
    .await;
}

#[tokio::test]
async fn broken_answers_fail_the_session_and_leave_the_connection() {
    guarded(async {
        let many = headers(&[(":status", "103")]).repeat(9);
        let cases: Vec<(&str, Vec<u8>, Code)> = vec![
            ("no status", headers(&[("x", "1")]), Code::H3_MESSAGE_ERROR),
            (
                "101",
                headers(&[(":status", "101")]),
                Code::H3_MESSAGE_ERROR,
            ),
            (
                "informational answers without end",
                many,
                Code::H3_EXCESSIVE_LOAD,
            ),
            (
                "large head",
                [&[0x01][..], &varint(1 << 30)].concat(),
                Code::H3_EXCESSIVE_LOAD,
            ),
        ];
        let pair = Pair::new().await;
        let _control = pair.uni(&control(DRAFT02)).await;
        let connection = pair.connect().await.unwrap();
        for (name, bytes, code) in cases {
            let session = connection.connect(get(), &[]).await.unwrap();
            let (mut send, mut recv) = pair.server.accept_bi().await.unwrap();
            read_field(&mut recv, ":method").await.unwrap();
            send.write_all(&bytes).await.unwrap();
            match session.established().await {
                Err(Error::Peer(fault)) => assert_eq!(fault.code, code, "{name}"),
                other => panic!("{name}: {other:?}"),
            }
            // The same in the answer to a plain request.
            let (_body, response) = connection.request(get()).await.unwrap();
            let (mut send, mut recv) = pair.server.accept_bi().await.unwrap();
            read_field(&mut recv, ":method").await.unwrap();
            send.write_all(&bytes).await.unwrap();
            match response.response().await {
                Err(Error::Peer(fault)) => assert_eq!(fault.code, code, "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(pair.client.close_reason().is_none());
    })
    .await;
}

#[tokio::test]
async fn faults_of_a_server_that_end_the_connection() {
    guarded(async {
        let push = vec![0x01, 0x00];
        let max_push_id = [control(DRAFT02), frame(0x0d, &[1])].concat();
        let goaway_of_a_push = [control(DRAFT02), frame(0x07, &[2])].concat();
        for (bytes, code) in [
            (push, Code::H3_ID_ERROR),
            (max_push_id, Code::H3_FRAME_UNEXPECTED),
            (goaway_of_a_push, Code::H3_ID_ERROR),
        ] {
            let pair = Pair::new().await;
            let _stream = pair.uni(&bytes).await;
            let _ = pair.connect().await; // may be quicker than the fault
            pair.assert_closed_with(code).await;
        }
        // A request by the server.
        let pair = Pair::new().await;
        let _control = pair.uni(&control(DRAFT02)).await;
        let _connection = pair.connect().await.unwrap();
        let (mut send, _recv) = pair.server.open_bi().await.unwrap();
        send.write_all(&headers(&[(":method", "GET")]))
            .await
            .unwrap();
        pair.assert_closed_with(Code::H3_STREAM_CREATION_ERROR)
            .await;
    })
    .await;
}
