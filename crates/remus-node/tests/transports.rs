//! A node that leaves UDP alone says so.

mod support;

use std::net::UdpSocket;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::header::CONTENT_LENGTH;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remus::TlsPolicy;
use remus_node::web::WellKnown;
use remus_security::{alpn, client_config};
use support::start_with;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Spec: CARR-37
#[tokio::test]
async fn carriers_that_need_udp_are_not_listed_where_it_is_blocked() {
    let running = start_with(|settings| settings.block_udp = Some(true));
    let address = running.node.address();
    UdpSocket::bind(address).unwrap();

    let config = client_config(TlsPolicy::RequirePostQuantum, &running.trust(), alpn::TCP);
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = TlsConnector::from(config.unwrap())
        .connect("localhost".try_into().unwrap(), stream)
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = |method, path: &str| {
        let url = format!("https://localhost:{}{path}", address.port());
        let request = Request::builder().method(method).uri(url);
        request.body(Empty::<Bytes>::new()).unwrap()
    };

    let answer = sender
        .send_request(request(Method::GET, "/.well-known/remus"))
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let known: WellKnown = serde_json::from_slice(&body).unwrap();
    let kinds: Vec<_> = known
        .transports
        .iter()
        .map(|one| one.kind.as_str())
        .collect();
    assert_eq!(kinds, ["websocket", "http-poll", "http-events"]);
    assert_eq!(known.certificates.len(), 1);

    let head = sender
        .send_request(request(Method::HEAD, "/.well-known/remus"))
        .await
        .unwrap();
    let length = head.headers().get(CONTENT_LENGTH).unwrap();
    assert_eq!(length.to_str().unwrap(), body.len().to_string());

    // The rest of the site is there as ever.
    let ready = sender
        .send_request(request(Method::GET, "/readyz"))
        .await
        .unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
}
