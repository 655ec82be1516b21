//! This crate's client against its server: plain requests beside sessions.

use crate::support::{Node, assert_echoes, guarded};
use std::future::poll_fn;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body::Body;
use remus_http3::{Code, Config, Connection, Error, HeadError};

async fn get(connection: &Connection, request: Request<()>) -> (http::response::Parts, Vec<u8>) {
    let (mut send, response) = connection.request(request).await.unwrap();
    send.finish().await.unwrap();
    let (head, mut body) = response.response().await.unwrap().into_parts();
    let body = body.collect(1 << 20).await.unwrap().unwrap();
    (head, body.to_vec())
}

#[tokio::test]
async fn requests_and_sessions_share_a_connection() {
    guarded(async {
        let node = Node::start();
        let connection = node.connect().await;
        let session = connection.connect(node.get("/echo"), &[]).await.unwrap();
        let (head, body) = get(&connection, node.get("/")).await;
        assert_eq!((head.status, &body[..]), (StatusCode::OK, &b"hello"[..]));
        assert_eq!(head.headers["x-method"], "GET");
        assert_echoes(&session).await;

        let head_request = Request::head(node.url("/")).body(()).unwrap();
        let (head, body) = get(&connection, head_request).await;
        assert_eq!((head.status, body.len()), (StatusCode::OK, 0));
    })
    .await;
}

#[tokio::test]
async fn a_body_streams_both_ways_at_once_and_ends_with_trailers() {
    guarded(async {
        let node = Node::start();
        let connection = node.connect().await;
        let request = Request::post(node.url("/")).body(()).unwrap();
        let (mut send, response) = connection.request(request).await.unwrap();
        send.send_data(Bytes::from_static(b"first")).await.unwrap();
        let response = response.response().await.unwrap();
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), &b"first"[..]);
        let large = Bytes::from(vec![9; 3_000_000]);
        let (sent, got) = tokio::join!(
            async {
                send.send_data(large.clone()).await?;
                send.finish().await
            },
            body.collect(usize::MAX)
        );
        sent.unwrap();
        assert!(got.unwrap().unwrap() == large);
        assert_eq!(body.trailers().unwrap()["x-end"], "yes");
        assert!(matches!(
            send.send_data(large).await,
            Err(Error::BodyFinished)
        ));
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_it_says_is_an_error() {
    guarded(async {
        let node = Node::start();
        let connection = node.connect().await;
        for length in ["3", "99"] {
            let request = Request::post(node.url("/"))
                .header("content-length", length)
                .body(())
                .unwrap();
            let (mut send, response) = connection.request(request).await.unwrap();
            let _ = send.send_data(Bytes::from_static(b"seven..")).await;
            let _ = send.finish().await;
            // The server gives up on the answer that it had begun.
            let error = match response.response().await {
                Ok(response) => response.into_body().collect(99).await.unwrap_err(),
                Err(error) => error,
            };
            assert!(
                matches!(error, Error::Reset(Code::H3_INTERNAL_ERROR)),
                "{error}"
            );
        }
        let (head, _) = get(&connection, node.get("/")).await;
        assert_eq!(head.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_cut_off_never_looks_whole() {
    guarded(async {
        let node = Node::start();
        let connection = node.connect().await;
        let request = Request::post(node.url("/")).body(()).unwrap();
        let (mut send, response) = connection.request(request).await.unwrap();
        send.send_data(Bytes::from_static(b"half")).await.unwrap();
        let mut body = response.response().await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), &b"half"[..]);
        drop(send);
        let error = body.data().await.unwrap_err();
        assert!(matches!(error, Error::Reset(_)), "{error}");
        let again = body.data().await.unwrap_err();
        assert!(matches!(again, Error::Reset(_)), "the error stays: {again}");
    })
    .await;
}

#[tokio::test]
async fn more_requests_than_allowed_may_be_sent_again() {
    guarded(async {
        let config = Config::builder().max_requests(1).build().unwrap();
        let node = Node::with(config, quinn::TransportConfig::default());
        let connection = node.connect().await;
        let post = || Request::post(node.url("/")).body(()).unwrap();
        let (mut first, response) = connection.request(post()).await.unwrap();
        let mut body = response.response().await.unwrap().into_body();
        let (_send, refused) = connection.request(post()).await.unwrap();
        let error = refused.response().await.unwrap_err();
        assert!(
            matches!(error, Error::Reset(Code::H3_REQUEST_REJECTED)),
            "{error}"
        );
        first.finish().await.unwrap();
        assert_eq!(body.collect(9).await.unwrap().unwrap(), &b""[..]);
        // The server lets go of the first request after its answer was sent, so a later one can come
        // while it still counts: it is then rejected again, until it is not.
        loop {
            let (mut send, response) = connection.request(post()).await.unwrap();
            let _ = send.finish().await;
            match response.response().await {
                Ok(response) => break assert_eq!(response.status(), StatusCode::OK),
                Err(Error::Reset(Code::H3_REQUEST_REJECTED)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_head_over_the_servers_limit_is_not_sent() {
    guarded(async {
        let config = Config::builder()
            .max_field_section_bytes(2048)
            .build()
            .unwrap();
        let node = Node::with(config, quinn::TransportConfig::default());
        let connection = node.connect().await;
        let request = Request::get(node.url("/"))
            .header("x-long", "x".repeat(3000))
            .body(())
            .unwrap();
        let error = connection.request(request).await.unwrap_err();
        assert!(
            matches!(error, Error::Head(HeadError::TooLarge { max: 2048, .. })),
            "{error}"
        );
    })
    .await;
}

#[tokio::test]
async fn what_is_no_http_is_answered_501() {
    guarded(async {
        let node = Node::start();
        let connection = node.connect().await;
        let plain = Request::builder()
            .method(Method::CONNECT)
            .uri("a.example:443")
            .body(())
            .unwrap();
        let (_send, response) = connection.request(plain).await.unwrap();
        let response = response.response().await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED);
        let mut websocket = Request::builder()
            .method(Method::CONNECT)
            .uri(node.url("/"))
            .body(())
            .unwrap();
        websocket
            .extensions_mut()
            .insert(remus_http3::Protocol::from_static("websocket"));
        let (_send, response) = connection.request(websocket).await.unwrap();
        let response = response.response().await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED);
    })
    .await;
}

#[tokio::test]
async fn dropping_an_answer_cancels_the_request() {
    guarded(async {
        let node = Node::start();
        let connection = node.connect().await;
        let request = Request::post(node.url("/")).body(()).unwrap();
        let (mut send, response) = connection.request(request).await.unwrap();
        send.send_data(Bytes::from_static(b"x")).await.unwrap();
        drop(response);
        // The echo cannot write its answer any more, so it drops the body it reads.
        let stopped = loop {
            match send.send_data(Bytes::from_static(b"more")).await {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        assert!(
            matches!(stopped, Error::Stopped(Code::H3_NO_ERROR)),
            "{stopped}"
        );
        let (head, _) = get(&connection, node.get("/")).await;
        assert_eq!(head.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_body_is_one_for_routers() {
    guarded(async {
        let node = Node::start();
        let connection = node.connect().await;
        let request = Request::post(node.url("/")).body(()).unwrap();
        let (mut send, response) = connection.request(request).await.unwrap();
        send.send_data(Bytes::from_static(b"through"))
            .await
            .unwrap();
        send.finish().await.unwrap();
        let body = response.response().await.unwrap().into_body();
        assert!(!body.is_end_stream());
        let mut body = std::pin::pin!(body);
        let (mut data, mut trailers) = (Vec::new(), None);
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            match frame.unwrap().into_data() {
                Ok(piece) => data.extend_from_slice(&piece),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        assert_eq!(data, b"through");
        assert_eq!(trailers.unwrap()["x-end"], "yes");
        assert!(body.is_end_stream());
    })
    .await;
}
