//! The HTTP bindings by hand: exchanges of the vectors over each version of HTTP, WebSockets that break rules, and what HTTP
//! itself refuses.
//!
//! Spec: carriers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a step that fails is a test that fails"
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remus::{Carrier, Client, ErrorCode, Raw, Response, Router, Service, TlsPolicy};
use remus_security::{alpn, client_config};
use serde_json::Value;
use support::Host;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A frame that is skipped.
const FRAME: &[u8] = &[0, 0, 0x80, 0, 0, 0, 0, 0];

fn echo() -> Router {
    Router::new().service(Service::new("test.v1.Echo").unary(
        "Echo",
        Raw,
        |request: remus::Request<Bytes>| async move { Ok(Response::new(request.into_inner())) },
    ))
}

async fn host() -> Host {
    Host::start_with(echo(), |builder| {
        builder.allow_origin("https://app.example.org")
    })
    .await
}

fn address(host: &Host) -> SocketAddr {
    host.url.strip_prefix("remus://").unwrap().parse().unwrap()
}

async fn tls(host: &Host, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    let config = client_config(TlsPolicy::RequirePostQuantum, &host.trust, protocols).unwrap();
    let stream = TcpStream::connect(address(host)).await.unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Version {
    Http1,
    Http2,
    Http3,
}

/// Makes one request on a connection of its own, and gives the whole answer.
async fn ask(host: &Host, version: Version, request: Request<Bytes>) -> http::Response<Bytes> {
    let uri = format!("https://{}{}", address(host), request.uri());
    match version {
        Version::Http1 => {
            let io = TokioIo::new(tls(host, alpn::HTTP1).await);
            let (mut sender, connection) = http1::handshake(io).await.unwrap();
            let running = tokio::spawn(connection);
            let mut request = request.map(Full::new);
            let authority = address(host).to_string().parse().unwrap();
            request.headers_mut().insert(http::header::HOST, authority);
            let (head, body) = sender.send_request(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            running.abort();
            http::Response::from_parts(head, body)
        }
        Version::Http2 => {
            let io = TokioIo::new(tls(host, alpn::HTTP2).await);
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            let running = tokio::spawn(connection);
            let mut request = request.map(Full::new);
            *request.uri_mut() = uri.parse().unwrap();
            let (head, body) = sender.send_request(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            running.abort();
            http::Response::from_parts(head, body)
        }
        Version::Http3 => {
            let tls = client_config(TlsPolicy::RequirePostQuantum, &host.trust, alpn::QUIC);
            let endpoint = remus_transport::quic::client_endpoint(tls.unwrap()).unwrap();
            let quic = endpoint
                .connect(address(host), "127.0.0.1")
                .unwrap()
                .await
                .unwrap();
            let config = Arc::new(remus_http3::Config::default());
            let connection = remus_http3::Connection::client(quic, config).await.unwrap();
            let (mut head, content) = request.into_parts();
            head.uri = uri.parse().unwrap();
            let (mut body, answer) = connection
                .request(Request::from_parts(head, ()))
                .await
                .unwrap();
            // The server may answer before it has read all.
            let _ = body.send_data(content).await;
            let _ = body.finish().await;
            let (head, body) = answer.response().await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            http::Response::from_parts(head, body)
        }
    }
}

fn request(method: &str, path: &str, fields: &[(&str, &str)], body: Bytes) -> Request<Bytes> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

async fn open(host: &Host, version: Version) -> (String, String) {
    let opening = request("POST", "/remus/v2/sessions", &[], Bytes::new());
    let answer = ask(host, version, opening).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let json: Value = serde_json::from_slice(answer.body()).unwrap();
    let text = |name: &str| json[name].as_str().unwrap().to_owned();
    let (id, secret) = (text("id"), text("secret"));
    assert_eq!(
        answer.headers()["location"],
        format!("/remus/v2/sessions/{id}")
    );
    assert_eq!(json["hold_ms"], 25_000);
    assert_eq!(json["idle_ms"], 60_000);
    assert_eq!(json["up_max"], 1_048_576);
    (id, secret)
}

fn bytes_of(hex: &str) -> Bytes {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// The exchanges of `vectors/http`, over each version of HTTP. Spec: CARR-4, CARR-36
#[tokio::test]
async fn exchanges_go_as_the_vectors_say_over_every_version() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../vectors/http/exchanges.json"
    );
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut host = host().await;
    for version in [Version::Http1, Version::Http2, Version::Http3] {
        for exchange in file["exchanges"].as_array().unwrap() {
            let (id, secret) = open(&host, version).await;
            let filled = |value: &Value| {
                value
                    .as_str()
                    .unwrap()
                    .replace("{id}", &id)
                    .replace("{secret}", &secret)
            };
            for (number, step) in exchange["steps"].as_array().unwrap().iter().enumerate() {
                let name = format!("{version:?} {} step {number}", exchange["name"]);
                let mut asking = Request::builder()
                    .method(step["method"].as_str().unwrap())
                    .uri(filled(&step["path"]));
                for (field, value) in step["fields"].as_object().unwrap() {
                    asking = asking.header(field, filled(value));
                }
                let body = step["hex"].as_str().map_or_else(Bytes::new, bytes_of);
                let answer = ask(&host, version, asking.body(body).unwrap()).await;
                assert_eq!(
                    u64::from(answer.status().as_u16()),
                    step["status"].as_u64().unwrap(),
                    "{name}: {:?}",
                    answer.body()
                );
                if let Some(code) = step["code"].as_str() {
                    let json: Value = serde_json::from_slice(answer.body()).unwrap();
                    assert_eq!(json["code"], code, "{name}");
                    assert!(!json["message"].as_str().unwrap().is_empty(), "{name}");
                    assert_eq!(answer.headers()["content-type"], "application/json");
                }
                if step["status"] == 426 && matches!(version, Version::Http1) {
                    assert_eq!(answer.headers()["upgrade"], "websocket");
                }
                for (field, value) in step["answer"].as_object().into_iter().flatten() {
                    assert_eq!(answer.headers()[field], value.as_str().unwrap(), "{name}");
                }
            }
        }
    }
    host.ended().await;
    assert_eq!(host.connections.links(), 0, "nothing is left");
}

/// One link, each of whose requests comes by another version. Spec: CARR-4
#[tokio::test]
async fn a_link_belongs_to_no_connection() {
    let host = host().await;
    let (id, secret) = open(&host, Version::Http1).await;
    let authorization = format!("Bearer {secret}");
    for (n, version) in [
        (1, Version::Http3),
        (2, Version::Http2),
        (3, Version::Http1),
    ] {
        let number = n.to_string();
        let fields = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/remus-frames"),
            ("remus-sequence", number.as_str()),
        ];
        let path = format!("/remus/v2/sessions/{id}/up");
        let up = request("POST", &path, &fields, Bytes::from_static(FRAME));
        let answer = ask(&host, version, up).await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(answer.headers()["remus-acknowledge"], number);
    }
}

/// Spec: CARR-3, CARR-19
#[tokio::test]
async fn what_is_too_long_is_refused() {
    let host = host().await;
    for version in [Version::Http1, Version::Http2, Version::Http3] {
        let (id, secret) = open(&host, version).await;
        let authorization = format!("Bearer {secret}");
        let fields = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/remus-frames"),
            ("remus-sequence", "1"),
        ];
        let path = format!("/remus/v2/sessions/{id}/up");
        if !matches!(version, Version::Http1) {
            // Over HTTP/1.1 the connection ends under a client that goes on writing; which it sees first is a race.
            let up = request("POST", &path, &fields, Bytes::from(vec![0; 1_048_577]));
            let answer = ask(&host, version, up).await;
            assert_eq!(
                answer.status(),
                StatusCode::PAYLOAD_TOO_LARGE,
                "{version:?}"
            );
        }
        let long = format!("/remus/v2/sessions/{}", "x".repeat(2000));
        let answer = ask(&host, version, request("GET", &long, &fields, Bytes::new())).await;
        assert_eq!(answer.status(), StatusCode::URI_TOO_LONG, "{version:?}");
    }
}

/// What is no HTTP is refused by HTTP, and the next connection is served.
#[tokio::test]
async fn malformed_http_is_refused() {
    let host = host().await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000));
    for (text, status) in [
        ("GET\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", "400"),
        ("GET / HTTP/9.9\r\n\r\n", "400"),
        (
            "POST /remus/v2/sessions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
            "400",
        ),
        (
            "POST /remus/v2/sessions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "400",
        ),
        (long.as_str(), "4"),
    ] {
        let mut stream = tls(&host, alpn::HTTP1).await;
        // It may be refused before all of it was written.
        let _ = stream.write_all(text.as_bytes()).await;
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer} for {}",
            &text[..text.len().min(60)]
        );
    }
    assert_eq!(host.connections.links(), 0);
    open(&host, Version::Http1).await;
}

const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A WebSocket by hand, over HTTP/1.1.
async fn websocket(host: &Host) -> WebSocketStream<TlsStream<TcpStream>> {
    let mut stream = tls(host, alpn::HTTP1).await;
    let text = format!(
        "GET /remus/v2/ws HTTP/1.1\r\nhost: x\r\n{UPGRADE}sec-websocket-protocol: other, remus.v2\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    for line in [
        "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
        "sec-websocket-protocol: remus.v2\r\n",
    ] {
        assert!(answer.contains(line), "{answer}");
    }
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

async fn close_code<S>(socket: &mut WebSocketStream<S>) -> u16
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Close(Some(frame)) => return frame.code.into(),
            Message::Close(None) => panic!("a close says why"),
            _ => {}
        }
    }
}

/// Spec: CARR-2, CARR-3, CARR-9, CARR-10
#[tokio::test]
async fn websockets_that_break_rules_are_closed_with_their_codes() {
    let host = host().await;
    for (message, code) in [
        (Message::text("frames?"), 1003),
        (Message::binary(vec![0; 1_048_577]), 1009),
        (Message::binary(&FRAME[1..]), 4000 + 0x100),
        (Message::binary([FRAME, &[0, 0]].concat()), 4000 + 0x100),
        // A frame, but of a type that is not to be skipped.
        (Message::binary(vec![0, 0, 0, 99, 0, 0, 0, 0]), 4000 + 0x108),
    ] {
        let mut socket = websocket(&host).await;
        // It may be refused before all of it was written.
        let _ = socket.send(message).await;
        assert_eq!(close_code(&mut socket).await, code);
    }
    // Whoever plays by the rules goes on.
    let mut socket = websocket(&host).await;
    socket.send(Message::binary(FRAME)).await.unwrap();
    socket.send(Message::binary(Vec::new())).await.unwrap();
    socket
        .send(Message::Ping(Bytes::from_static(b"?")))
        .await
        .unwrap();
    let pong = socket.next().await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong(Bytes::from_static(b"?")));
}

/// Spec: CARR-7
#[tokio::test]
async fn a_websocket_without_the_subprotocol_is_refused() {
    let host = host().await;
    for offered in ["", "sec-websocket-protocol: remus.v1\r\n"] {
        let mut stream = tls(&host, alpn::HTTP1).await;
        let text = format!(
            "GET /remus/v2/ws HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade\r\n{UPGRADE}{offered}\r\n"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 400");
    }
}

/// Extended CONNECT. Spec: CARR-6
#[tokio::test]
async fn a_websocket_over_http2_is_one_stream_of_its_connection() {
    let host = host().await;
    let io = TokioIo::new(tls(&host, alpn::HTTP2).await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let running = tokio::spawn(connection);
    let uri = format!("https://{}/remus/v2/ws", address(&host));
    // A plain request first: its answer comes behind the server's SETTINGS.
    let plain = Request::get(&uri).body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(plain).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UPGRADE_REQUIRED);
    let asking = Request::builder()
        .method(Method::CONNECT)
        .uri(&uri)
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "remus.v2")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = sender.send_request(asking).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "remus.v2");
    let io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    socket.send(Message::binary(FRAME)).await.unwrap();
    socket.send(Message::text("no frames")).await.unwrap();
    assert_eq!(close_code(&mut socket).await, 1003);
    running.abort();
}

/// Spec: CARR-11, CARR-12
#[tokio::test]
async fn a_session_that_ends_in_order_closes_its_websocket_with_1000() {
    let host = host().await;
    let client = Client::builder(&host.url)
        .trust(host.trust.clone())
        .carriers([Carrier::WebSocket])
        .connect()
        .await
        .unwrap();
    let connection = client.connection().await.unwrap();
    connection.active().await.unwrap();
    let at_server = host.connections.list().pop().unwrap();
    assert_eq!(at_server.carrier(), Carrier::WebSocket);
    client.close().await;
    assert_eq!(connection.closed().await.code, ErrorCode::OK);
    assert_eq!(at_server.closed().await.code, ErrorCode::OK);
    at_server.finished().await;
}

/// What a client sees of a connection that breaks is no end in order.
#[tokio::test]
async fn a_websocket_that_breaks_is_lost() {
    let host = host().await;
    let mut socket = websocket(&host).await;
    // A link is a session's when its first frame has been looked at.
    socket.send(Message::binary(FRAME)).await.unwrap();
    let at_server = loop {
        match host.connections.list().pop() {
            Some(connection) => break connection,
            None => tokio::task::yield_now().await,
        }
    };
    drop(socket);
    assert_eq!(at_server.closed().await.code, ErrorCode::UNAVAILABLE);
}
