//! Plain HTTP on the node's port, by clients that are not ours where there are any.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails here is a failed test"
)]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remus::{TlsPolicy, Trust};
use remus_node::web::{ConnectionFacts, WellKnown};
use remus_security::{alpn, client_config};
use support::{Running, start, start_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

async fn tls(running: &Running, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    let config = client_config(TlsPolicy::RequirePostQuantum, &running.trust(), protocols).unwrap();
    let stream = TcpStream::connect(running.node.address()).await.unwrap();
    let name = "localhost".try_into().unwrap();
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .unwrap()
}

fn request(running: &Running, path: &str) -> Request<Empty<Bytes>> {
    let url = format!("https://localhost:{}{path}", running.node.address().port());
    Request::get(url).body(Empty::new()).unwrap()
}

/// Spec: CARR-37
fn check(running: &Running, json: &[u8]) {
    let known: WellKnown = serde_json::from_slice(json).unwrap();
    let fingerprint = running.node.fingerprint();
    assert_eq!(known.node, running.node.name());
    assert_eq!(known.versions, ["2.0"]);
    assert_eq!(known.certificates[0].hex, fingerprint.to_string());
    assert_eq!(known.certificates[0].base64.len(), 44);
    let carriers: Vec<_> = known
        .transports
        .iter()
        .map(|transport| (transport.kind.as_str(), transport.path.as_str()))
        .collect();
    assert_eq!(
        carriers,
        [
            ("webtransport", "/remus/v2"),
            ("websocket", "/remus/v2/ws"),
            ("http-poll", "/remus/v2/sessions"),
            ("http-events", "/remus/v2/sessions"),
        ]
    );
    for transport in &known.transports {
        assert_eq!(transport.port, running.node.address().port());
        assert_eq!(transport.protocol, "remus.v2");
    }
}

#[tokio::test]
async fn http1_answers_with_the_nodes_description() {
    let running = start();
    let mut stream = tls(&running, alpn::HTTP1).await;
    let text = "GET /.well-known/remus HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: application/json"), "{head}");
    check(&running, body.as_bytes());
}

#[tokio::test]
async fn http2_answers_with_the_same_and_head_with_its_length() {
    let running = start();
    let stream = tls(&running, alpn::TCP).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let answer = sender
        .send_request(request(&running, "/.well-known/remus"))
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    check(&running, &body);

    let mut head = request(&running, "/.well-known/remus");
    *head.method_mut() = Method::HEAD;
    let answer = sender.send_request(head).await.unwrap();
    assert_eq!(answer.headers()["content-length"], body.len().to_string());

    for (path, status) in [
        ("/livez", StatusCode::OK),
        ("/readyz", StatusCode::OK),
        ("/", StatusCode::OK),
        ("/there-is-no-such-page", StatusCode::NOT_FOUND),
        ("/.well-known/", StatusCode::NOT_FOUND),
    ] {
        let answer = sender.send_request(request(&running, path)).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
    let mut post = request(&running, "/livez");
    *post.method_mut() = Method::POST;
    let answer = sender.send_request(post).await.unwrap();
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
}

/// Everything that the page names is there, as what it says it is, and the page may reach its node alone.
#[tokio::test]
async fn the_dashboard_is_there_with_its_files_and_its_policy() {
    let running = start();
    let stream = tls(&running, alpn::TCP).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut page = String::new();
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let answer = sender.send_request(request(&running, path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert_eq!(answer.headers()["content-type"], kind, "{path}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        let policy = answer.headers()["content-security-policy"]
            .to_str()
            .unwrap();
        for directive in [
            "default-src 'none'",
            "script-src 'self'",
            "connect-src 'self'",
        ] {
            let mut directives = policy.split("; ");
            assert!(directives.any(|one| one == directive), "{path}: {policy}");
        }
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(!body.is_empty(), "{path}");
        if path == "/" {
            page = String::from_utf8(body.into()).unwrap();
        } else {
            assert!(
                page.contains(&format!("\"{path}\"")),
                "the page names {path}"
            );
        }
    }
}

#[tokio::test]
async fn a_request_is_told_how_it_came() {
    let running = start();
    let stream = tls(&running, alpn::TCP).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let answer = sender
        .send_request(request(&running, "/connection"))
        .await
        .unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let facts: ConnectionFacts = serde_json::from_slice(&body).unwrap();
    assert_eq!(facts.http, "HTTP/2.0");
    assert_eq!(facts.tls, "TLS 1.3");
    assert_eq!(facts.key_exchange.as_deref(), Some("X25519MLKEM768"));
}

async fn http3(running: &Running) -> (quinn::Endpoint, remus_http3::Connection) {
    let tls = client_config(TlsPolicy::RequirePostQuantum, &running.trust(), alpn::QUIC).unwrap();
    let endpoint = remus_transport::quic::client_endpoint(tls).unwrap();
    let quic = endpoint
        .connect(running.node.address(), "localhost")
        .unwrap()
        .await
        .unwrap();
    let config = Arc::new(remus_http3::Config::default());
    let connection = remus_http3::Connection::client(quic, config).await.unwrap();
    (endpoint, connection)
}

fn head(running: &Running, method: Method, path: &str) -> Request<()> {
    let (mut head, _) = request(running, path).into_parts();
    head.method = method;
    Request::from_parts(head, ())
}

#[tokio::test]
async fn http3_answers_with_the_same() {
    let running = start();
    let (_endpoint, connection) = http3(&running).await;
    let (mut body, answer) = connection
        .request(head(&running, Method::GET, "/.well-known/remus"))
        .await
        .unwrap();
    body.finish().await.unwrap();
    let answer = answer.response().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let json = answer.into_body().collect().await.unwrap().to_bytes();
    check(&running, &json);

    let (mut body, answer) = connection
        .request(head(&running, Method::GET, "/nothing"))
        .await
        .unwrap();
    body.finish().await.unwrap();
    assert_eq!(
        answer.response().await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn an_http3_body_over_the_limit_is_refused() {
    let running = start();
    let (_endpoint, connection) = http3(&running).await;
    let (mut body, answer) = connection
        .request(head(&running, Method::POST, "/livez"))
        .await
        .unwrap();
    let chunk = Bytes::from(vec![0; 16 * 1024]);
    for _ in 0..5 {
        // The node may stop the body at any time from the limit on.
        let _ = body.send_data(chunk.clone()).await;
    }
    let _ = body.finish().await;
    assert_eq!(
        answer.response().await.unwrap().status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );

    let (mut body, answer) = connection
        .request(head(&running, Method::POST, "/livez"))
        .await
        .unwrap();
    for _ in 0..4 {
        body.send_data(chunk.clone()).await.unwrap();
    }
    body.finish().await.unwrap();
    assert_eq!(
        answer.response().await.unwrap().status(),
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test]
async fn a_stopping_node_says_that_it_takes_no_new_work() {
    // One shard: a shard that has no session has nothing to wait for, and would end the connection that is asked on.
    let running = start_with(|settings| settings.shards = Some(1));
    // An upload that holds the drain open.
    let client = running.client().await;
    let call = client.method("file.v1.Files/Put").metadata("path", "slow");
    let (mut upload, reply) = call
        .client_stream::<Bytes, Bytes>(remus::Raw)
        .await
        .unwrap();
    for _ in 0..100 {
        upload.send(&Bytes::from(vec![7; 50_000])).await.unwrap();
    }
    let mut status = client.connection().await.unwrap().watch_status();

    let stream = tls(&running, alpn::TCP).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let page = request(&running, "/readyz");
    let node = running.node;
    let stopping = tokio::task::spawn_blocking(move || node.shut_down());
    let is_draining =
        |status: &remus::ConnectionStatus| matches!(status, remus::ConnectionStatus::Draining(_));
    status.wait_for(is_draining).await.unwrap();
    let answer = sender.send_request(page).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    upload.finish();
    reply.response().await.unwrap();
    stopping.await.unwrap();
}

#[tokio::test]
async fn what_is_no_tls_is_closed_and_the_node_goes_on() {
    let running = start();
    let mut stream = TcpStream::connect(running.node.address()).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // An alert, or the end; never an answer in plain text.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
    let _works = tls(&running, alpn::TCP).await;
}

#[tokio::test]
async fn a_client_of_another_authority_gets_no_connection() {
    let (running, other) = (start(), start());
    let trust = Trust::from_pem_file(&other.node.authority_path()).unwrap();
    let config = client_config(TlsPolicy::RequirePostQuantum, &trust, alpn::TCP).unwrap();
    let stream = TcpStream::connect(running.node.address()).await.unwrap();
    let name = "localhost".try_into().unwrap();
    assert!(
        TlsConnector::from(config)
            .connect(name, stream)
            .await
            .is_err()
    );
}
