//! Sessions over every carrier: what holds over one, holds over all.
//!
//! Spec: carriers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

mod support;

use bytes::Bytes;
use futures_util::StreamExt as _;
use remus::{
    Broker, Carrier, Client, Error, ErrorCode, Raw, Request, Response, Router, Service, Streaming,
};
use support::Host;

/// Large enough for many messages, batches and turns of credit.
const LARGE: usize = 3 * 1024 * 1024;

fn services() -> Router {
    Router::new().topics(&Broker::new()).service(
        Service::new("test.v1.Carried")
            .unary("Echo", Raw, |request: Request<Bytes>| async move {
                Ok(Response::new(request.into_inner()))
            })
            .unary("Fail", Raw, |_: Request<Bytes>| async move {
                Err::<Response<Bytes>, _>(Error::not_found("not here"))
            })
            .two_way(
                "Through",
                Raw,
                |request: Request<Streaming<Bytes>>| async move {
                    Ok(Response::new(request.into_inner()))
                },
            ),
    )
}

async fn client(host: &Host, carrier: Carrier) -> Client {
    let client = Client::builder(&host.url)
        .trust(host.trust.clone())
        .carriers([carrier])
        .connect()
        .await
        .unwrap();
    assert_eq!(client.connection().await.unwrap().carrier(), carrier);
    client
}

async fn echo(client: &Client, payload: Bytes) -> Result<Bytes, Error> {
    let answer = client
        .method("test.v1.Carried/Echo")
        .unary::<Bytes, Bytes>(Raw, &payload)
        .await?;
    Ok(answer.into_inner())
}

/// Bytes that repeat with no power of two, so that what is lost or doubled shows.
fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i % 251) as u8).collect()
}

async fn calls_of_every_shape(carrier: Carrier) {
    let host = Host::start(services()).await;
    let client = client(&host, carrier).await;

    for len in [0, 64, 16 * 1024, LARGE] {
        let payload = pattern(len);
        assert_eq!(echo(&client, payload.clone()).await.unwrap(), payload);
    }
    let many = (0..200_u32).map(|n| {
        let client = &client;
        async move {
            let payload = Bytes::copy_from_slice(&n.to_be_bytes());
            assert_eq!(echo(client, payload.clone()).await.unwrap(), payload);
        }
    });
    futures_util::future::join_all(many).await;
    let error = client
        .method("test.v1.Carried/Fail")
        .unary::<Bytes, Bytes>(Raw, &Bytes::new())
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (ErrorCode::NOT_FOUND, "not here")
    );

    let (mut sender, mut receiver) = client
        .method("test.v1.Carried/Through")
        .two_way::<Bytes, Bytes>(Raw)
        .await
        .unwrap();
    let sending = async {
        for n in 0..200 {
            sender.send(&pattern(n * 100)).await.unwrap();
        }
        sender.finish();
    };
    let receiving = async {
        for n in 0..200 {
            assert_eq!(receiver.next().await.unwrap().unwrap(), pattern(n * 100));
        }
        assert!(receiver.next().await.is_none());
    };
    tokio::join!(sending, receiving);
}

/// The end of a session comes with its code, heartbeats travel as frames, and nothing is left of the link.
///
/// Spec: CARR-1, CARR-14, CARR-29, CARR-31
async fn ends_in_order(carrier: Carrier) {
    let mut host = Host::start(services()).await;
    let first = client(&host, carrier).await;
    let connection = first.connection().await.unwrap();
    connection.active().await.unwrap();
    connection.ping().await.unwrap();
    let at_server = host.connections.list().pop().unwrap();
    first.close().await;
    assert_eq!(connection.closed().await.code, ErrorCode::OK);
    assert_eq!(at_server.closed().await.code, ErrorCode::OK);
    at_server.finished().await;

    let second = client(&host, carrier).await;
    echo(&second, Bytes::new()).await.unwrap();
    let connection = second.connection().await.unwrap();
    host.ended().await;
    assert_eq!(connection.closed().await.code, ErrorCode::OK);
    assert_eq!(host.connections.links(), 0);
    assert!(host.connections.list().is_empty());
}

#[tokio::test]
async fn sessions_end_in_order_over_websocket() {
    ends_in_order(Carrier::WebSocket).await;
}

#[tokio::test]
async fn sessions_end_in_order_over_long_polling() {
    ends_in_order(Carrier::LongPoll).await;
}

#[tokio::test]
async fn sessions_end_in_order_over_server_sent_events() {
    ends_in_order(Carrier::ServerSentEvents).await;
}

#[tokio::test]
async fn websocket_carries_calls_of_every_shape() {
    calls_of_every_shape(Carrier::WebSocket).await;
}

#[tokio::test]
async fn long_polling_carries_calls_of_every_shape() {
    calls_of_every_shape(Carrier::LongPoll).await;
}

#[tokio::test]
async fn server_sent_events_carry_calls_of_every_shape() {
    calls_of_every_shape(Carrier::ServerSentEvents).await;
}
