//! Peers that break the rules, by raw QUIC: each gets its own code, and the node serves on.

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt};
use remus_http3::{Code, Config, fuzzing};

use crate::support::{Node, assert_echoes, client_endpoint, guarded, impatient};

const SETTINGS: &[u8] = &[0x00, 0x04, 0x02, 0x33, 0x01];

/// A hostile client: raw QUIC to a node that has another, honest session all the while.
struct Hostile {
    node: Node,
    honest: remus_http3::Session,
    quic: Connection,
    /// Kept, as the end of the control stream would be a fault of its own.
    control: Option<SendStream>,
}

impl Hostile {
    /// Connected, with its SETTINGS sent.
    async fn new() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let mut hostile = Self::without_settings(config).await;
        hostile.control = Some(hostile.uni(SETTINGS).await);
        hostile
    }

    async fn without_settings(config: Config) -> Self {
        let node = Node::with(config, quinn::TransportConfig::default());
        let honest = node.session("/echo").await;
        assert_echoes(&honest).await;
        let quic = node.quic().await;
        Self {
            node,
            honest,
            quic,
            control: None,
        }
    }

    async fn uni(&self, bytes: &[u8]) -> SendStream {
        let mut send = self.quic.open_uni().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send
    }

    async fn bi(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.quic.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        (send, recv)
    }

    /// Waits for the connection to be closed with `code`, and shows that others are served.
    async fn expect_close(self, code: Code) {
        match self.quic.closed().await {
            ConnectionError::ApplicationClosed(close) => {
                assert_eq!(Code::from(close.error_code), code, "{close}");
                assert!(
                    !close.reason.is_empty(),
                    "the reason says which rule was broken"
                );
            }
            other => panic!("{other}"),
        }
        assert_echoes(&self.honest).await;
        self.node.assert_serves().await;
    }

    /// Shows that the hostile client's own connection still works, and others are served.
    async fn expect_service(&self) {
        let (mut send, mut recv) = self.bi(&get("/")).await;
        send.finish().unwrap();
        let answer = recv.read_to_end(1000).await.unwrap();
        assert!(answer.ends_with(b"hello"), "{answer:x?}");
        assert_echoes(&self.honest).await;
        self.node.assert_serves().await;
    }

    /// A session of the hostile client: its CONNECT stream, and its ID.
    async fn session(&self) -> (SendStream, RecvStream, u64) {
        let (send, mut recv) = self.bi(&connect("/echo")).await;
        assert_eq!(read_status(&mut recv).await, 200);
        let id = u64::from(send.id());
        (send, recv, id)
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

fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = Vec::new();
    let mut encoder = fuzzing::Encoder::new(&mut section);
    for (name, value) in fields {
        encoder.field(name, value.as_bytes());
    }
    frame(0x01, &section)
}

fn get(path: &str) -> Vec<u8> {
    headers(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
    ])
}

fn connect(path: &str) -> Vec<u8> {
    headers(&[
        (":method", "CONNECT"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
        (":protocol", "webtransport"),
    ])
}

/// Reads the head of an answer: its status.
async fn read_status(recv: &mut RecvStream) -> u16 {
    let mut decoder = fuzzing::MessageDecoder::new(fuzzing::Peer::Server, 1 << 16);
    loop {
        let chunk = recv.read_chunk(1, true).await.unwrap().expect("an answer");
        let mut bytes = chunk.bytes;
        if let Some(fuzzing::MessageEvent::Head(section)) = decoder.decode(&mut bytes).unwrap() {
            let fields = fuzzing::decode_field_section(section, 1 << 16).unwrap();
            return fuzzing::decode_response(fields).unwrap().status().as_u16();
        }
    }
}

fn code(code: VarInt) -> Code {
    code.into()
}

/// The code that a stream is reset with.
async fn reset_code(recv: &mut RecvStream) -> Code {
    match recv.read_to_end(10_000).await {
        Err(quinn::ReadToEndError::Read(ReadError::Reset(reset))) => code(reset),
        other => panic!("{other:?}"),
    }
}

/// The code that a stream is stopped with.
async fn stop_code(send: &mut SendStream) -> Code {
    code(send.stopped().await.unwrap().expect("a stop"))
}

// ---- before HTTP/3 ----

/// Spec: TRANS-7
#[tokio::test]
async fn garbage_datagrams_and_a_wrong_alpn() {
    guarded(async {
        let node = Node::start();
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for n in 0..200u8 {
            let garbage = vec![n.wrapping_mul(37); 1 + usize::from(n) * 7];
            socket.send_to(&garbage, node.address).await.unwrap();
        }
        let config = node.identity.client_config(b"h2");
        let connecting = client_endpoint().connect_with(config, node.address, "localhost");
        match connecting.unwrap().await {
            // TLS alert 120, no_application_protocol, as QUIC carries it.
            Err(ConnectionError::ConnectionClosed(close)) => {
                assert_eq!(u64::from(close.error_code), 0x100 + 120);
            }
            other => panic!("{other:?}"),
        }
        node.assert_serves().await;
    })
    .await;
}

// ---- the control stream ----

/// Spec: TRANS-11, TRANS-15, TRANS-16
#[tokio::test]
async fn faults_on_unidirectional_streams_end_the_connection() {
    guarded(async {
        let settings_twice = [SETTINGS, &frame(0x04, &[])].concat();
        let settings_then = |ty, payload: &[u8]| [SETTINGS, &frame(ty, payload)].concat();
        let huge_settings = [&[0x00, 0x04][..], &varint(1 << 40), &[0; 100]].concat();
        let cases: Vec<(&str, Vec<u8>, Code)> = vec![
            (
                "GOAWAY first",
                [&[0x00][..], &frame(0x07, &[0])].concat(),
                Code::H3_MISSING_SETTINGS,
            ),
            ("SETTINGS twice", settings_twice, Code::H3_FRAME_UNEXPECTED),
            ("DATA", settings_then(0x00, b"x"), Code::H3_FRAME_UNEXPECTED),
            (
                "HEADERS",
                settings_then(0x01, b"x"),
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "HTTP/2 PING",
                settings_then(0x06, b"x"),
                Code::H3_FRAME_UNEXPECTED,
            ),
            (
                "wrong setting",
                vec![0x00, 0x04, 0x02, 0x33, 0x02],
                Code::H3_SETTINGS_ERROR,
            ),
            (
                "setting cut",
                vec![0x00, 0x04, 0x01, 0x33],
                Code::H3_FRAME_ERROR,
            ),
            ("huge SETTINGS", huge_settings, Code::H3_EXCESSIVE_LOAD),
            (
                "push stream",
                vec![0x01, 0x00],
                Code::H3_STREAM_CREATION_ERROR,
            ),
            (
                "QPACK insertion",
                vec![0x02, 0xc0, 0x01, b'x'],
                Code::QPACK_ENCODER_STREAM_ERROR,
            ),
            (
                "QPACK capacity",
                vec![0x02, 0x3f, 0xbd, 0x01],
                Code::QPACK_ENCODER_STREAM_ERROR,
            ),
            (
                "QPACK acknowledgement",
                vec![0x03, 0x84],
                Code::QPACK_DECODER_STREAM_ERROR,
            ),
            (
                "session ID of a server's stream",
                vec![0x40, 0x54, 0x01],
                Code::H3_ID_ERROR,
            ),
        ];
        for (name, bytes, code) in cases {
            println!("{name}");
            let hostile = Hostile::without_settings(Config::default()).await;
            let _stream = hostile.uni(&bytes).await;
            hostile.expect_close(code).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_second_control_stream_ends_the_connection() {
    guarded(async {
        for ty in [0x00, 0x02, 0x03] {
            let hostile = Hostile::new().await;
            let _first = hostile.uni(&[ty]).await;
            let _second = hostile.uni(&[ty]).await;
            hostile.expect_close(Code::H3_STREAM_CREATION_ERROR).await;
        }
    })
    .await;
}

#[tokio::test]
async fn closing_a_critical_stream_ends_the_connection() {
    guarded(async {
        for ty in [0x02, 0x03] {
            let hostile = Hostile::new().await;
            hostile.uni(&[ty]).await.finish().unwrap();
            hostile.expect_close(Code::H3_CLOSED_CRITICAL_STREAM).await;
        }
        let mut hostile = Hostile::new().await;
        hostile.control.take().unwrap().finish().unwrap();
        hostile.expect_close(Code::H3_CLOSED_CRITICAL_STREAM).await;
        let mut hostile = Hostile::new().await;
        let mut control = hostile.control.take().unwrap();
        hostile.expect_service().await; // so that the stream's type was read
        control.reset(VarInt::from_u32(0)).unwrap();
        hostile.expect_close(Code::H3_CLOSED_CRITICAL_STREAM).await;
    })
    .await;
}

/// Spec: TRANS-11
#[tokio::test]
async fn no_settings_at_all_ends_the_connection() {
    guarded(async {
        // Long enough for the honest clients of the same server on a busy machine.
        let config = Config::builder().settings_timeout(std::time::Duration::from_secs(2));
        let hostile = Hostile::without_settings(config.build().unwrap()).await;
        // A request for a session is kept until the settings are there, which they never are.
        let _request = hostile.bi(&connect("/echo")).await;
        hostile.expect_close(Code::H3_MISSING_SETTINGS).await;
    })
    .await;
}

/// Spec: TRANS-15
#[tokio::test]
async fn unknown_streams_frames_and_settings_are_skipped() {
    guarded(async {
        let hostile = Hostile::without_settings(Config::default()).await;
        // Settings and frames of GREASE around SETTINGS.
        let mut control = vec![0x00];
        control.extend(frame(
            0x04,
            &[&varint(0x21 + 0x1f)[..], &[9], &[0x33, 1]].concat(),
        ));
        control.extend(frame(0x21, b"grease"));
        control.extend(frame(0xf0700, b"\0u=3"));
        let _control = hostile.uni(&control).await;
        let mut unknown = hostile.uni(&[&varint(0x21)[..], b"grease"].concat()).await;
        assert_eq!(
            stop_code(&mut unknown).await,
            Code::H3_STREAM_CREATION_ERROR
        );
        // A stream that ends before its type is no fault.
        hostile.uni(&[]).await.finish().unwrap();
        let request = [frame(0x21, b"grease"), get("/"), frame(0x40, b"")].concat();
        let (mut send, mut recv) = hostile.bi(&request).await;
        send.finish().unwrap();
        assert_eq!(read_status(&mut recv).await, 200);
        hostile.expect_service().await;
    })
    .await;
}

// ---- request streams ----

/// Spec: TRANS-16, TRANS-27
#[tokio::test]
async fn faults_on_request_streams_that_end_the_connection() {
    guarded(async {
        let cases: Vec<(&str, Vec<u8>, Code)> = vec![
            ("DATA first", frame(0x00, b"x"), Code::H3_FRAME_UNEXPECTED),
            ("SETTINGS", frame(0x04, b""), Code::H3_FRAME_UNEXPECTED),
            (
                "HTTP/2 PRIORITY",
                frame(0x02, b""),
                Code::H3_FRAME_UNEXPECTED,
            ),
            ("frame cut", get("/")[..9].to_vec(), Code::H3_FRAME_ERROR),
            (
                "GREASE cut",
                vec![0x21, 0x20, 1, 2, 3],
                Code::H3_FRAME_ERROR,
            ),
            ("garbage", vec![0xee; 200], Code::H3_FRAME_ERROR),
            (
                "field section cut",
                frame(0x01, &[0, 0, 0x51, 0x20]),
                Code::QPACK_DECOMPRESSION_FAILED,
            ),
            (
                "dynamic reference",
                frame(0x01, &[0, 0, 0x80]),
                Code::QPACK_DECOMPRESSION_FAILED,
            ),
            (
                "session ID",
                [varint(0x41), varint(2)].concat(),
                Code::H3_ID_ERROR,
            ),
        ];
        for (name, bytes, code) in cases {
            println!("{name}");
            let hostile = Hostile::new().await;
            let (mut send, _recv) = hostile.bi(&bytes).await;
            let _ = send.finish();
            hostile.expect_close(code).await;
        }
    })
    .await;
}

#[tokio::test]
async fn faults_on_request_streams_that_end_the_stream() {
    guarded(async {
        let [method, scheme, authority, path] = [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", "/"),
        ];
        let cases: Vec<(&str, Vec<u8>, Code)> = vec![
            ("nothing", Vec::new(), Code::H3_REQUEST_INCOMPLETE),
            (
                "only GREASE",
                frame(0x21, b"x"),
                Code::H3_REQUEST_INCOMPLETE,
            ),
            (
                "no path",
                headers(&[method, scheme, authority]),
                Code::H3_MESSAGE_ERROR,
            ),
            (
                "connection field",
                headers(&[method, scheme, authority, path, ("connection", "close")]),
                Code::H3_MESSAGE_ERROR,
            ),
            (
                "CONNECT without :protocol, but with a path",
                headers(&[(":method", "CONNECT"), scheme, authority, path]),
                Code::H3_MESSAGE_ERROR,
            ),
        ];
        let hostile = Hostile::new().await;
        for (name, bytes, code) in cases {
            println!("{name}");
            let (mut send, mut recv) = hostile.bi(&bytes).await;
            let _ = send.finish();
            assert_eq!(reset_code(&mut recv).await, code, "{name}");
            hostile.expect_service().await;
        }
        // CONNECT without :protocol, well-formed: a tunnel, which is not here.
        let tunnel = headers(&[(":method", "CONNECT"), authority]);
        let (_send, mut recv) = hostile.bi(&tunnel).await;
        assert_eq!(read_status(&mut recv).await, 501);
        hostile.expect_service().await;
    })
    .await;
}

#[tokio::test]
async fn a_large_head_is_answered_431() {
    guarded(async {
        let hostile = Hostile::new().await;
        // By its announced length alone, before a byte of it was sent.
        let announced = [&[0x01][..], &varint(1 << 40)].concat();
        let (mut send, mut recv) = hostile.bi(&announced).await;
        assert_eq!(read_status(&mut recv).await, 431);
        assert_eq!(stop_code(&mut send).await, Code::H3_EXCESSIVE_LOAD);
        // By what it decodes to: 65 KiB out of one byte for each field.
        let mut section = vec![0, 0];
        let method_get = 0xd1; // 42 bytes by the count of RFC 9114
        section.extend(std::iter::repeat_n(method_get, (65 << 10) / 42));
        let (_send, mut recv) = hostile.bi(&frame(0x01, &section)).await;
        assert_eq!(read_status(&mut recv).await, 431);
        hostile.expect_service().await;
    })
    .await;
}

#[tokio::test]
async fn half_a_head_is_not_waited_for_for_ever() {
    guarded(async {
        let hostile = Hostile::with(impatient().build().unwrap()).await;
        let mut halves = Vec::new();
        for _ in 0..90 {
            halves.push(hostile.bi(&get("/")[..9]).await);
        }
        for (send, recv) in &mut halves {
            assert_eq!(reset_code(recv).await, Code::H3_REQUEST_INCOMPLETE);
            assert_eq!(stop_code(send).await, Code::H3_REQUEST_INCOMPLETE);
        }
        let mut nothing = hostile.uni(&[0x40]).await;
        assert_eq!(
            stop_code(&mut nothing).await,
            Code::H3_STREAM_CREATION_ERROR
        );
        hostile.expect_service().await;
    })
    .await;
}

/// Spec: TRANS-18
#[tokio::test]
async fn both_names_of_the_protocol_open_a_session() {
    guarded(async {
        let hostile = Hostile::new().await;
        for protocol in ["webtransport", "webtransport-h3"] {
            let request = headers(&[
                (":method", "CONNECT"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "/echo"),
                (":protocol", protocol),
            ]);
            let (_send, mut recv) = hostile.bi(&request).await;
            assert_eq!(read_status(&mut recv).await, 200, "{protocol}");
        }
    })
    .await;
}

#[tokio::test]
async fn floods_of_nothing_end_the_connection() {
    guarded(async {
        let config = || Config::builder().max_peer_faults(50).build().unwrap();
        // Empty DATA frames in a body, GREASE frames before a head, on the control stream, capsules.
        let empty_data = [headers(&[
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", "/"),
        ])]
        .into_iter()
        .chain(std::iter::repeat_n(frame(0x00, b""), 100))
        .collect::<Vec<_>>()
        .concat();
        let grease = frame(0x21, b"x").repeat(100);
        let capsules = [
            connect("/echo"),
            frame(0x00, &frame(0x21, b"x").repeat(100)),
        ]
        .concat();
        for bytes in [empty_data, grease.clone(), capsules] {
            let hostile = Hostile::with(config()).await;
            let (_send, _recv) = hostile.bi(&bytes).await;
            hostile.expect_close(Code::H3_EXCESSIVE_LOAD).await;
        }
        let mut hostile = Hostile::with(config()).await;
        let control = hostile.control.as_mut().unwrap();
        control.write_all(&grease).await.unwrap();
        hostile.expect_close(Code::H3_EXCESSIVE_LOAD).await;
    })
    .await;
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    guarded(async {
        let config = Config::builder()
            .max_peer_faults(50)
            .max_incoming(4)
            .max_requests(4);
        let hostile = Hostile::with(config.build().unwrap()).await;
        let request = connect("/no-such")[..20].to_vec();
        while hostile.quic.close_reason().is_none() {
            let Ok((mut send, mut recv)) = hostile.quic.open_bi().await else {
                break;
            };
            let _ = send.write_all(&request).await;
            let _ = send.reset(VarInt::from_u32(0x10c));
            let _ = recv.stop(VarInt::from_u32(0x10c));
        }
        hostile.expect_close(Code::H3_EXCESSIVE_LOAD).await;
    })
    .await;
}

// ---- sessions ----

/// Spec: TRANS-48, TRANS-50
#[tokio::test]
async fn faults_of_capsules_end_the_session_only() {
    guarded(async {
        let unknown = |len: u64| [&varint(0x1234)[..], &varint(len)].concat();
        let long_reason = frame(0x2843, &[b'x'; 4 + 1025]);
        let cases: Vec<(&str, Vec<u8>, Code)> = vec![
            (
                "huge unknown capsule",
                unknown(1 << 50),
                Code::H3_EXCESSIVE_LOAD,
            ),
            (
                "unknown capsule above the limit",
                unknown((64 << 10) + 1),
                Code::H3_EXCESSIVE_LOAD,
            ),
            ("long reason", long_reason, Code::H3_MESSAGE_ERROR),
            ("short CLOSE", frame(0x2843, b"abc"), Code::H3_MESSAGE_ERROR),
            (
                "reason not UTF-8",
                frame(0x2843, b"\0\0\0\x01\xff"),
                Code::H3_MESSAGE_ERROR,
            ),
            (
                "DRAIN with a value",
                frame(0x78ae, b"x"),
                Code::H3_MESSAGE_ERROR,
            ),
            (
                "data after CLOSE",
                [frame(0x2843, b"\0\0\0\x01"), vec![0x21]].concat(),
                Code::H3_MESSAGE_ERROR,
            ),
        ];
        let hostile = Hostile::new().await;
        for (name, bytes, code) in cases {
            println!("{name}");
            let (mut send, mut recv, id) = hostile.session().await;
            let (mut stream, _) = hostile.bi(&[varint(0x41), varint(id)].concat()).await;
            send.write_all(&frame(0x00, &bytes)).await.unwrap();
            assert_eq!(reset_code(&mut recv).await, code, "{name}");
            assert_eq!(stop_code(&mut send).await, code, "{name}");
            assert_eq!(
                stop_code(&mut stream).await,
                Code::WT_SESSION_GONE,
                "{name}"
            );
            hostile.expect_service().await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_end_of_the_connect_stream_inside_a_capsule_ends_the_session() {
    guarded(async {
        let hostile = Hostile::new().await;
        let (mut send, mut recv, _) = hostile.session().await;
        send.write_all(&frame(0x00, &[0x40])).await.unwrap();
        send.finish().unwrap();
        assert_eq!(reset_code(&mut recv).await, Code::H3_MESSAGE_ERROR);
        // Inside a frame, the peers no longer agree on anything.
        let (mut send, _recv, _) = hostile.session().await;
        send.write_all(&[0x00, 0x05, 0x40]).await.unwrap();
        send.finish().unwrap();
        hostile.expect_close(Code::H3_FRAME_ERROR).await;
    })
    .await;
}

/// Spec: TRANS-48
#[tokio::test]
async fn data_after_close_is_an_error_even_when_it_comes_later() {
    guarded(async {
        let hostile = Hostile::new().await;
        let (mut send, mut recv, _) = hostile.session().await;
        let close = frame(0x00, &frame(0x2843, b"\0\0\0\x07bye"));
        send.write_all(&close).await.unwrap();
        assert_eq!(
            recv.read_to_end(99).await.unwrap(),
            b"",
            "the server ends its side"
        );
        send.write_all(&frame(0x00, b"more")).await.unwrap();
        assert_eq!(stop_code(&mut send).await, Code::H3_MESSAGE_ERROR);
        hostile.expect_service().await;
    })
    .await;
}

/// Spec: TRANS-45
#[tokio::test]
async fn early_streams_and_datagrams_wait_for_their_session() {
    guarded(async {
        let config = Config::builder()
            .max_early_streams(2)
            .max_early_datagram_bytes(2 * 65);
        let hostile = Hostile::with(config.build().unwrap()).await;
        let (mut connect_send, mut connect_recv) = hostile.quic.open_bi().await.unwrap();
        let id = u64::from(connect_send.id());
        let header = [varint(0x41), varint(id)].concat();
        let mut streams = Vec::new();
        for n in 0..3u8 {
            let (mut send, recv) = hostile.bi(&[&header[..], &[n]].concat()).await;
            // One after the other, so that it is known which one finds no room.
            if n == 2 {
                assert_eq!(
                    stop_code(&mut send).await,
                    Code::WT_BUFFERED_STREAM_REJECTED
                );
            } else {
                send.finish().unwrap();
                streams.push(recv);
            }
        }
        for n in 0..3u8 {
            let datagram = [varint(id / 4), vec![n]].concat();
            hostile.quic.send_datagram(datagram.into()).unwrap();
        }
        // Another session, whose datagram comes back after those were taken in.
        let (_send, _recv, other) = hostile.session().await;
        let datagram: Bytes = [varint(other / 4), b"?".to_vec()].concat().into();
        hostile.quic.send_datagram(datagram.clone()).unwrap();
        assert_eq!(hostile.quic.read_datagram().await.unwrap(), datagram);

        connect_send.write_all(&connect("/echo")).await.unwrap();
        assert_eq!(read_status(&mut connect_recv).await, 200);
        for (n, mut recv) in (0u8..).zip(streams) {
            assert_eq!(recv.read_to_end(9).await.unwrap(), [n]);
        }
        for n in 1..3u8 {
            let datagram = hostile.quic.read_datagram().await.unwrap();
            assert_eq!(
                datagram,
                [varint(id / 4), vec![n]].concat(),
                "the oldest was lost"
            );
        }
        hostile.expect_service().await;
    })
    .await;
}

#[tokio::test]
async fn early_streams_do_not_wait_for_ever() {
    guarded(async {
        let hostile = Hostile::with(impatient().build().unwrap()).await;
        let mut streams = Vec::new();
        for _ in 0..10 {
            // A session that is far in the future.
            streams.push(hostile.uni(&[varint(0x54), varint(4000)].concat()).await);
        }
        for stream in &mut streams {
            assert_eq!(stop_code(stream).await, Code::WT_BUFFERED_STREAM_REJECTED);
        }
        hostile.expect_service().await;
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_early_streams_is_refused_and_then_ends_the_connection() {
    guarded(async {
        let hostile = Hostile::new().await;
        let header = [varint(0x54), varint(4000)].concat();
        let mut refused = 0u32;
        while hostile.quic.close_reason().is_none() {
            let Ok(mut stream) = hostile.quic.open_uni().await else {
                break;
            };
            if stream.write_all(&header).await.is_err() {
                break;
            }
            // Those that are kept use up QUIC's stream limit; those refused give it back.
            if refused > 0 || stream.id().index() > 70 {
                match stream.stopped().await {
                    Ok(stopped) => {
                        assert_eq!(stopped.map(code), Some(Code::WT_BUFFERED_STREAM_REJECTED));
                        refused += 1;
                    }
                    Err(_) => break,
                }
            } else {
                std::mem::forget(stream);
            }
        }
        assert!(refused > 100, "{refused} were refused one by one");
        hostile.expect_close(Code::H3_EXCESSIVE_LOAD).await;
    })
    .await;
}

/// Spec: TRANS-50
#[tokio::test]
async fn streams_of_what_is_no_session_are_refused() {
    guarded(async {
        let hostile = Hostile::new().await;
        // A plain request is no session.
        let (mut send, mut recv) = hostile.bi(&get("/")).await;
        send.finish().unwrap();
        assert_eq!(read_status(&mut recv).await, 200);
        let plain = u64::from(send.id());
        let mut stream = hostile.uni(&[varint(0x54), varint(plain)].concat()).await;
        assert_eq!(stop_code(&mut stream).await, Code::WT_SESSION_GONE);
        // A session that was closed is none any more.
        let (mut send, mut recv, id) = hostile.session().await;
        send.finish().unwrap();
        assert_eq!(recv.read_to_end(9).await.unwrap(), b"");
        let (mut send, mut recv) = hostile.bi(&[varint(0x41), varint(id)].concat()).await;
        assert_eq!(stop_code(&mut send).await, Code::WT_SESSION_GONE);
        assert_eq!(reset_code(&mut recv).await, Code::WT_SESSION_GONE);
        hostile.expect_service().await;
    })
    .await;
}

/// Spec: TRANS-41
#[tokio::test]
async fn faults_of_datagrams() {
    guarded(async {
        let hostile = Hostile::new().await;
        // For nobody: dropped.
        hostile
            .quic
            .send_datagram([varint(77), vec![1]].concat().into())
            .unwrap();
        hostile.expect_service().await;
        // No quarter stream ID: a fault of the connection.
        hostile
            .quic
            .send_datagram(Bytes::from_static(&[0xc0, 0]))
            .unwrap();
        hostile.expect_close(Code::H3_DATAGRAM_ERROR).await;
        let hostile = Hostile::new().await;
        hostile
            .quic
            .send_datagram(varint((1 << 62) - 1).into())
            .unwrap();
        hostile.expect_close(Code::H3_DATAGRAM_ERROR).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_resets_its_connect_stream_ends_its_session() {
    guarded(async {
        let mut hostile = Hostile::new().await;
        let (mut send, _recv, id) = hostile.session().await;
        let (mut stream, _) = hostile.bi(&[varint(0x41), varint(id)].concat()).await;
        send.reset(VarInt::from_u32(0x10c)).unwrap();
        assert_eq!(stop_code(&mut stream).await, Code::WT_SESSION_GONE);
        match hostile.node.ended.recv().await.unwrap() {
            Err(remus_http3::Error::Reset(code)) => assert_eq!(code, Code::H3_REQUEST_CANCELLED),
            other => panic!("{other:?}"),
        }
        hostile.expect_service().await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_up_nobody() {
    guarded(async {
        let hostile = Hostile::with(impatient().build().unwrap()).await;
        // The echo fills the windows of as many streams as there may be, and waits.
        let (_send, _recv, id) = hostile.session().await;
        let header = [varint(0x41), varint(id)].concat();
        let mut streams = Vec::new();
        for _ in 0..20 {
            let (mut send, recv) = hostile.bi(&header).await;
            let filling = tokio::spawn(async move { send.write_all(&[0; 3 << 20]).await });
            streams.push((filling, recv));
        }
        assert_echoes(&hostile.honest).await;
        hostile.node.assert_serves().await;
        for (filling, _) in &streams {
            filling.abort();
        }
    })
    .await;
}
