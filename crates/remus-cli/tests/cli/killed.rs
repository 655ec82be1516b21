//! A node that is killed without a word, as its clients see it.

use std::time::Duration;

use bytes::Bytes;
use remus::{Client, Json, LocalCa, Raw, SubscribeOptions, Trust};
use serde_json::Value;

use crate::support::{Node, PATIENCE};

/// The silence after which both sides agree that the other is gone.
const IDLE: Duration = Duration::from_secs(2);

/// How long the client looks for the node again after that.
const WINDOW: Duration = Duration::from_secs(2);

#[test]
fn clients_of_a_killed_node_hear_a_retryable_error_and_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut node = Node::start_at(&data, "127.0.0.1:0", &[]);
    let listen = node.listen();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let trust = Trust::from_pem_file(&LocalCa::certificate_path(&data)).unwrap();
    let builder = Client::builder(&node.url)
        .trust(trust)
        .idle_timeout(IDLE)
        .session(|config| config.resume_window = WINDOW)
        .connect_timeout(IDLE);
    let (client, connection, mut subscription) = runtime.block_on(async {
        let client = builder.connect().await.unwrap();
        let subscription = client
            .subscribe("nobody.publishes.this", SubscribeOptions::default())
            .await
            .unwrap();
        (
            client.clone(),
            client.connection().await.unwrap(),
            subscription,
        )
    });
    let negotiated = connection.negotiated().unwrap().idle_timeout;
    assert_eq!(negotiated, IDLE, "the lower of both sides' values");

    node.running.signal("KILL");
    node.running.wait();
    runtime.block_on(async {
        // Whatever was open ends by itself, with an error that says that trying again is right.
        let ended = tokio::time::timeout(PATIENCE, async {
            let subscription = subscription.next().await.unwrap().unwrap_err();
            (subscription, connection.closed().await)
        });
        let (error, reason) = ended.await.expect("a dead node is noticed");
        assert!(error.is_retryable(), "{error}");
        assert!(
            reason.reason.contains("not resumed within 2000 ms"),
            "the window: {}",
            reason.reason
        );
        let (upload, reply) = client
            .method("file.v1.Files/Put")
            .client_stream::<Bytes, Bytes>(Raw)
            .await
            .map_or_else(
                |error| (Some(error), None),
                |(_, reply)| (None, Some(reply)),
            );
        let error = match reply {
            Some(reply) => reply.response().await.unwrap_err(),
            None => upload.unwrap(),
        };
        assert!(error.is_retryable(), "{error}");
    });

    let again = Node::start_at(&data, &listen, &[]);
    assert_eq!(again.listen(), listen);
    runtime.block_on(async {
        let answered = tokio::time::timeout(PATIENCE, async {
            loop {
                match client
                    .method("host.v1.Host/Info")
                    .unary::<Value, Value>(Json, &Value::Null)
                    .await
                {
                    Ok(info) => break info.into_inner(),
                    Err(error) => assert!(error.is_retryable(), "{error}"),
                }
            }
        });
        let info = answered
            .await
            .expect("the same client reaches the node again");
        assert!(info.get("cores").is_some(), "{info}");
    });
}
