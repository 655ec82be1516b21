//! Topics over a real connection.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

mod support;

use remus::{Broker, ErrorCode, Overflow, Router, SubscribeOptions};
use support::Host;

/// Spec: CORE-87, CORE-88
#[tokio::test]
async fn what_is_published_reaches_those_who_match() {
    let broker = Broker::new();
    let host = Host::start(Router::new().topics(&broker)).await;
    let (publisher, reader) = (host.client().await, host.client().await);
    let mut all = reader
        .subscribe("chat.>", SubscribeOptions::default())
        .await
        .unwrap();
    let mut one = reader
        .subscribe("chat.*.left", SubscribeOptions::default())
        .await
        .unwrap();
    publisher.publish("chat.room", "hello").await.unwrap();
    publisher.publish("chat.room.left", "bye").await.unwrap();
    publisher.publish("other", "x").await.unwrap();
    publisher
        .publish_unacknowledged("chat.end", "end")
        .await
        .unwrap();
    for (topic, payload) in [
        ("chat.room", "hello"),
        ("chat.room.left", "bye"),
        ("chat.end", "end"),
    ] {
        let publication = all.next().await.unwrap().unwrap();
        assert_eq!(
            (publication.topic(), &publication.payload[..]),
            (topic, payload.as_bytes())
        );
    }
    assert_eq!(one.next().await.unwrap().unwrap().topic(), "chat.room.left");
    let error = publisher.publish("chat.*", "x").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::INVALID_ARGUMENT);
    assert_eq!(
        reader
            .subscribe("a..b", SubscribeOptions::default())
            .await
            .unwrap_err()
            .code(),
        ErrorCode::INVALID_ARGUMENT
    );
    drop((all, one));
    // Dropping reaches the broker: its table empties.
    while broker.subscriptions() > 0 {
        reader.publish("tick", "").await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_waits_holds_the_publisher_back_and_loses_nothing() {
    let host = Host::start(Router::new().topics(&Broker::new())).await;
    let (publisher, reader) = (host.client().await, host.client().await);
    let options = SubscribeOptions {
        overflow: Overflow::Wait,
        capacity: 4,
        queue_group: None,
    };
    let mut subscription = reader.subscribe("bulk", options).await.unwrap();
    const COUNT: u32 = 3000;
    let publishing = tokio::spawn(async move {
        let payload = vec![7_u8; 4000];
        for _ in 0..COUNT {
            publisher.publish("bulk", payload.clone()).await.unwrap();
        }
    });
    for _ in 0..COUNT {
        assert_eq!(
            subscription.next().await.unwrap().unwrap().payload.len(),
            4000
        );
    }
    publishing.await.unwrap();
}

#[tokio::test]
async fn subscriptions_end_as_retryable_when_the_server_stops() {
    let mut host = Host::start(Router::new().topics(&Broker::new())).await;
    let client = host.client().await;
    let mut subscription = client
        .subscribe(">", SubscribeOptions::default())
        .await
        .unwrap();
    host.stop();
    let error = subscription.next().await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    drop((subscription, client));
    host.ended().await;
}
