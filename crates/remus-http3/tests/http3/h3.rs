//! Against the `h3` crate's client: plain requests on the port that also serves WebTransport.

use bytes::{Buf, Bytes};
use http::{Request, StatusCode};

use crate::support::{Node, guarded};

type SendRequest = h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;

async fn connect(node: &Node) -> (SendRequest, tokio::task::JoinHandle<()>) {
    let quic = h3_quinn::Connection::new(node.quic().await);
    let mut builder = h3::client::builder();
    builder.send_grease(true);
    let (mut connection, requests) = builder.build(quic).await.unwrap();
    let driving = tokio::spawn(async move {
        let error = connection.wait_idle().await;
        assert!(error.is_h3_no_error(), "{error}");
    });
    (requests, driving)
}

async fn exchange(
    requests: &mut SendRequest,
    request: Request<()>,
    body: &[Bytes],
) -> (http::Response<()>, Vec<u8>, Option<http::HeaderMap>) {
    let mut stream = requests.send_request(request).await.unwrap();
    for piece in body {
        stream.send_data(piece.clone()).await.unwrap();
    }
    stream.finish().await.unwrap();
    let response = stream.recv_response().await.unwrap();
    let mut got = Vec::new();
    while let Some(mut piece) = stream.recv_data().await.unwrap() {
        got.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
    }
    let trailers = stream.recv_trailers().await.unwrap();
    (response, got, trailers)
}

#[tokio::test]
async fn its_client_gets_and_posts_on_the_same_port() {
    guarded(async {
        let node = Node::start();
        let session = node.session("/echo").await;
        let (mut requests, driving) = connect(&node).await;

        let get = Request::get(node.url("/index.html")).body(()).unwrap();
        let (response, body, trailers) = exchange(&mut requests, get, &[]).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-method"], "GET");
        assert_eq!((&body[..], trailers), (&b"hello"[..], None));

        let pieces: Vec<Bytes> = (0..50u8).map(|n| vec![n; 10_000].into()).collect();
        let post = Request::post(node.url("/"))
            .header("content-length", 500_000)
            .body(())
            .unwrap();
        let (response, body, trailers) = exchange(&mut requests, post, &pieces).await;
        assert_eq!(response.headers()["x-method"], "POST");
        assert!(body == pieces.concat());
        assert_eq!(trailers.unwrap()["x-end"], "yes");

        crate::support::assert_echoes(&session).await;
        drop(requests);
        driving.await.unwrap();
    })
    .await;
}
