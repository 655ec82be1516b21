//! Against `web-transport-quinn`, as client and as server.

use std::sync::Arc;

use http::StatusCode;
use remus_http3::{ClosedBy, Code, Config, Connection, Error, SessionClosed};
use url::Url;
use web_transport_quinn::{
    Client, ReadError, Server, SessionError, WebTransportError, WriteError,
    proto::{ConnectRequest, ConnectResponse},
};

use crate::support::{Identity, Node, client_endpoint, guarded, loopback, read_all};

async fn connect(node: &Node, path: &str) -> web_transport_quinn::Session {
    let client = Client::new(client_endpoint(), node.identity.client_config(b"h3"));
    let url: Url = node.url(path).parse().unwrap();
    let request = ConnectRequest::new(url).with_protocol("remus.v2");
    client.connect(request).await.unwrap()
}

/// Spec: TRANS-27, TRANS-41
#[tokio::test]
async fn its_client_gets_streams_and_datagrams_back() {
    guarded(async {
        let node = Node::start();
        let session = connect(&node, "/echo").await;
        assert_eq!(session.protocol(), Some("remus.v2"));

        let (mut send, mut recv) = session.open_bi().await.unwrap();
        send.write_all(b"both ways").await.unwrap();
        send.finish().unwrap();
        assert_eq!(recv.read_to_end(99).await.unwrap(), b"both ways");

        let mut send = session.open_uni().await.unwrap();
        send.write_all(b"one way").await.unwrap();
        send.finish().unwrap();
        let mut recv = session.accept_uni().await.unwrap();
        assert_eq!(recv.read_to_end(99).await.unwrap(), b"one way");

        session
            .send_datagram(b"datagram".as_slice().into())
            .unwrap();
        assert_eq!(session.read_datagram().await.unwrap(), &b"datagram"[..]);
    })
    .await;
}

#[tokio::test]
async fn its_client_closes_with_code_and_reason() {
    guarded(async {
        let mut node = Node::start();
        let session = connect(&node, "/echo").await;
        session.close(42, b"bye");
        let closed = node.ended.recv().await.unwrap().unwrap();
        let expected = SessionClosed {
            code: 42,
            reason: "bye".to_owned(),
            side: ClosedBy::Peer,
        };
        assert_eq!(closed, expected);
    })
    .await;
}

/// Spec: TRANS-47
#[tokio::test]
async fn its_client_learns_code_and_reason() {
    guarded(async {
        let node = Node::start();
        let session = connect(&node, "/close").await;
        session.send_datagram(b"now".as_slice().into()).unwrap();
        match session.closed().await {
            SessionError::WebTransportError(WebTransportError::Closed(code, reason)) => {
                assert_eq!((code, &reason[..]), (7, "the server is done"));
            }
            other => panic!("{other}"),
        }
    })
    .await;
}

#[tokio::test]
async fn its_client_learns_of_a_refusal() {
    guarded(async {
        let node = Node::start();
        let client = Client::new(client_endpoint(), node.identity.client_config(b"h3"));
        let url: Url = node.url("/refuse").parse().unwrap();
        let error = client.connect(url).await.err().unwrap();
        assert!(error.to_string().contains("403"), "{error}");
        node.assert_serves().await;
    })
    .await;
}

/// Their server, which does `serve` with its first session.
async fn with_their_server<F, S>(serve: F) -> (Connection, String, tokio::task::JoinHandle<()>)
where
    F: FnOnce(web_transport_quinn::Session) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let identity = Identity::new();
    let endpoint = quinn::Endpoint::server(identity.server_config(), loopback()).unwrap();
    let address = endpoint.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let request = Server::new(endpoint).accept().await.unwrap();
        if request.url.path() == "/refuse" {
            let quic = request.conn().clone();
            request.reject(StatusCode::FORBIDDEN).await.unwrap();
            quic.closed().await; // it would be closed with the last handle, before the answer is out
            return;
        }
        let response = match request.protocols.first() {
            Some(protocol) => ConnectResponse::OK.with_protocol(protocol.clone()),
            None => ConnectResponse::OK,
        };
        serve(request.respond(response).await.unwrap()).await;
    });
    let config = identity.client_config(b"h3");
    let quic = client_endpoint().connect_with(config, address, "localhost");
    let quic = quic.unwrap().await.unwrap();
    let connection = Connection::client(quic, Arc::new(Config::default())).await;
    (connection.unwrap(), format!("https://{address}"), server)
}

fn request(url: &str, path: &str) -> http::Request<()> {
    http::Request::get(format!("{url}{path}")).body(()).unwrap()
}

#[tokio::test]
async fn its_server_takes_what_goes_with_the_request() {
    guarded(async {
        let (connection, url, server) = with_their_server(|session| async move {
            let (mut send, mut recv) = session.accept_bi().await.unwrap();
            assert_eq!(recv.read_to_end(99).await.unwrap(), b"both ways");
            send.write_all(b"and back").await.unwrap();
            send.finish().unwrap();
            let mut recv = session.accept_uni().await.unwrap();
            assert_eq!(recv.read_to_end(99).await.unwrap(), b"one way");
            let mut send = session.open_uni().await.unwrap();
            send.write_all(b"the other way").await.unwrap();
            send.finish().unwrap();
            let datagram = session.read_datagram().await.unwrap();
            session.send_datagram(datagram).unwrap();
            match session.closed().await {
                SessionError::WebTransportError(WebTransportError::Closed(code, reason)) => {
                    assert_eq!((code, &reason[..]), (9, "all done"));
                }
                other => panic!("{other}"),
            }
        })
        .await;
        let session = connection
            .connect(request(&url, "/x?y"), &["remus.v2", "remus.v1"])
            .await
            .unwrap();
        let (mut send, mut recv) = session.open_bi().await.unwrap();
        send.write_all(b"both ways").await.unwrap();
        send.finish().unwrap();
        let mut uni = session.open_uni().await.unwrap();
        uni.write_all(b"one way").await.unwrap();
        uni.finish().unwrap();
        assert_eq!(read_all(&mut recv).await, b"and back");
        let established = session.established().await.unwrap();
        assert_eq!(established.protocol.as_deref(), Some("remus.v2"));
        let mut recv = session.accept_uni().await.unwrap();
        assert_eq!(read_all(&mut recv).await, b"the other way");
        session.send_datagram(b"datagram").unwrap();
        assert_eq!(session.read_datagram().await.unwrap(), &b"datagram"[..]);
        session.close(9, "all done").await;
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn its_server_closes_with_code_and_reason() {
    guarded(async {
        let (connection, url, server) = with_their_server(|session| async move {
            session.close(8, b"their server is done");
            session.closed().await;
        })
        .await;
        let session = connection.connect(request(&url, "/"), &[]).await.unwrap();
        let closed = session.closed().await.unwrap();
        let expected = SessionClosed {
            code: 8,
            reason: "their server is done".to_owned(),
            side: ClosedBy::Peer,
        };
        assert_eq!(closed, expected);
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn its_server_refuses() {
    guarded(async {
        let (connection, url, server) = with_their_server(|_| async {}).await;
        let session = connection
            .connect(request(&url, "/refuse"), &[])
            .await
            .unwrap();
        match session.established().await {
            Err(Error::Refused { status, .. }) => assert_eq!(status, StatusCode::FORBIDDEN),
            other => panic!("{other:?}"),
        }
        connection.close(Code::H3_NO_ERROR, "");
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn application_codes_pass_both_ways() {
    guarded(async {
        let (connection, url, server) = with_their_server(|session| async move {
            let (mut send, mut recv) = session.accept_bi().await.unwrap();
            let mut first = [0];
            recv.read_exact(&mut first).await.unwrap();
            send.reset(31).unwrap();
            recv.stop(u32::MAX).unwrap();
            // A stream that is reset before its header was read takes their session with it, so
            // the client waits for this answer.
            let mut recv = session.accept_uni().await.unwrap();
            recv.read_exact(&mut first).await.unwrap();
            let mut send = session.open_uni().await.unwrap();
            send.write_all(b"x").await.unwrap();
            let error = recv.read(&mut first).await.unwrap_err();
            assert!(matches!(error, ReadError::Reset(77)), "{error}");
            loop {
                match send.write(b"x").await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(WriteError::Stopped(code)) => break assert_eq!(code, 78),
                    Err(other) => panic!("{other}"),
                }
            }
        })
        .await;
        let session = connection.connect(request(&url, "/"), &[]).await.unwrap();
        let (mut send, mut recv) = session.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        let error = recv.read_chunk(9).await.unwrap_err();
        assert_eq!(error.application_code(), Some(31));
        let stopped = send.stopped().await.unwrap().unwrap();
        assert_eq!(stopped.to_application(), Some(u32::MAX));
        let mut uni = session.open_uni().await.unwrap();
        uni.write_all(b"x").await.unwrap();
        let mut recv = session.accept_uni().await.unwrap();
        uni.reset(77);
        recv.stop(78);
        server.await.unwrap();
    })
    .await;
}
