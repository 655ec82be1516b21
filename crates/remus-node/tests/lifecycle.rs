//! Starting and stopping nodes.

mod support;

use bytes::Bytes;
use remus::{ConnectionStatus, Json, Raw, SubscribeOptions};
use remus_node::files::Stored;
use remus_node::{Config, Node, NodeError, PortError};
use serde_json::{Value, json};
use support::{put, settings, start};

#[test]
fn a_second_node_on_one_port_is_told_who_has_it() {
    let running = start();
    let data = tempfile::tempdir().unwrap();
    let mut settings = settings(&data);
    settings.listen = Some(running.node.address());
    let error = Node::start(&Config::new(settings).unwrap()).unwrap_err();
    let text = error.to_string();
    let NodeError::Port(PortError::Taken { address, .. }) = error else {
        panic!("{text}")
    };
    assert_eq!(address, running.node.address());
    if cfg!(target_os = "linux") {
        let process = format!(" is taken by process {} (", std::process::id());
        assert!(text.contains(&process), "{text}");
    }
    assert!(text.ends_with("choose another with --listen"), "{text}");
}

#[test]
fn a_second_node_on_one_data_directory_is_told_who_has_it() {
    let running = start();
    let error = Node::start(&Config::new(settings(&running.data)).unwrap()).unwrap_err();
    assert!(matches!(error, NodeError::Data(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
}

#[tokio::test]
async fn a_node_that_starts_again_has_its_identity_and_its_files() {
    let running = start();
    let fingerprint = running.node.fingerprint();
    let client = running.client().await;
    put(&client, &[("path", "kept")], b"kept").await.unwrap();
    client.close().await;
    let data = running.data;
    running.node.shut_down();

    let node = Node::start(&Config::new(settings(&data)).unwrap()).unwrap();
    assert_eq!(node.fingerprint(), fingerprint);
    let again = support::Running { node, data };
    let received = support::get(&again.client().await, "kept").await.unwrap();
    assert_eq!(received.content, b"kept");
}

#[test]
fn stopping_gives_back_port_and_directory() {
    let running = start();
    let address = running.node.address();
    let data = running.data;
    running.node.shut_down();
    let mut settings = settings(&data);
    settings.listen = Some(address);
    Node::start(&Config::new(settings).unwrap())
        .unwrap()
        .shut_down();
}

#[tokio::test]
async fn a_drain_finishes_what_was_accepted_and_refuses_the_rest_as_retryable() {
    let running = start();
    let client = running.client().await;
    let connection = client.connection().await.unwrap();
    let options = SubscribeOptions::default();
    let mut subscription = client.subscribe("some.topic", options).await.unwrap();

    // An upload that the node has accepted: it has taken the first chunk when it grants credit for far more than its window.
    let call = client.method("file.v1.Files/Put").metadata("path", "slow");
    let (mut upload, reply) = call.client_stream::<Bytes, Bytes>(Raw).await.unwrap();
    let chunk = Bytes::from(vec![7; 50_000]);
    for _ in 0..100 {
        upload.send(&chunk).await.unwrap();
    }

    let mut status = connection.watch_status();
    let node = running.node;
    let stopping = tokio::task::spawn_blocking(move || node.shut_down());
    let is_draining = |status: &ConnectionStatus| matches!(status, ConnectionStatus::Draining(_));
    status.wait_for(is_draining).await.unwrap();

    // New work on the same session.
    let error = client
        .method("host.v1.Host/Info")
        .unary::<Value, Value>(Json, &json!({}))
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let ended = loop {
        match subscription.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(ended.is_retryable(), "{ended}");

    // The rest of what was accepted.
    for _ in 0..100 {
        upload.send(&chunk).await.unwrap();
    }
    upload.finish();
    let answer = reply.response().await.unwrap();
    let stored: Stored = serde_json::from_slice(answer.get_ref()).unwrap();
    assert_eq!(stored.size, 10_000_000);
    stopping.await.unwrap();
    let content = std::fs::read(running.data.path().join("files/slow")).unwrap();
    assert_eq!(content.len(), 10_000_000);
}

#[tokio::test]
async fn an_upload_that_does_not_end_within_the_grace_leaves_nothing() {
    let running = support::start_with(|settings| {
        settings.grace = Some(std::time::Duration::from_millis(100));
    });
    let client = running.client().await;
    let call = client.method("file.v1.Files/Put").metadata("path", "slow");
    let (mut upload, reply) = call.client_stream::<Bytes, Bytes>(Raw).await.unwrap();
    let chunk = Bytes::from(vec![7; 50_000]);
    for _ in 0..100 {
        upload.send(&chunk).await.unwrap();
    }
    let node = running.node;
    tokio::task::spawn_blocking(move || node.shut_down())
        .await
        .unwrap();
    let error = reply.response().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let root = running.data.path().join("files");
    let names: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, [".uploads"]);
    assert_eq!(std::fs::read_dir(root.join(".uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_node_that_works_has_not_failed() {
    let running = start();
    tokio::select! {
        what = running.node.failed() => panic!("{what} ended"),
        client = running.client() => drop(client),
    }
}
