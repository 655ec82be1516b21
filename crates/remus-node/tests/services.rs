//! The services of a node, over real connections.

mod support;

use bytes::Bytes;
use futures_util::StreamExt as _;
use remus::{Client, ErrorCode, Json, Raw, SubscribeOptions, Trust};
use remus_node::bench::{BENCH_ELEMENTS_MAX, BENCH_SIZE_MAX, Taken};
use remus_node::directory::DirectoryListing;
use remus_node::files::{EntryKind, Listing};
use remus_node::host::{CpuSample, HostInfo, ProcessInfo};
use serde_json::{Value, json};
use support::{get, put, start, start_with};

async fn ask(client: &Client, method: &str, request: Value) -> Result<Value, remus::Error> {
    let answer = client
        .method(method)
        .unary::<Value, Value>(Json, &request)
        .await?;
    Ok(answer.into_inner())
}

/// Bytes without a pattern that a mistake in the order of chunks would keep.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

#[tokio::test]
async fn the_host_is_described() {
    let running = start();
    let client = running.client().await;
    for request in [json!({}), Value::Null] {
        let info = ask(&client, "host.v1.Host/Info", request).await.unwrap();
        let info: HostInfo = serde_json::from_value(info).unwrap();
        assert_eq!(info.name, running.node.name());
        assert!(info.cores > 0 && info.memory.total_bytes > 0, "{info:?}");
    }
    let error = ask(&client, "host.v1.Host/Info", json!({"verbose": true}))
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::INVALID_ARGUMENT);
}

#[tokio::test]
async fn processes_come_as_a_stream_in_the_order_asked_for() {
    let running = start();
    let client = running.client().await;
    let request = json!({"limit": 5, "sort": "memory"});
    let stream = client
        .method("host.v1.Host/Processes")
        .server_stream::<Value, Value>(Json, &request)
        .await
        .unwrap();
    let processes: Vec<ProcessInfo> = stream
        .into_inner()
        .map(|process| serde_json::from_value(process.unwrap()).unwrap())
        .collect()
        .await;
    assert!((1..=5).contains(&processes.len()), "{processes:?}");
    assert!(
        processes.is_sorted_by(|a, b| a.memory_bytes >= b.memory_bytes),
        "{processes:?}"
    );

    let wrong = client
        .method("host.v1.Host/Processes")
        .server_stream::<Value, Value>(Json, &json!({"sort": "name"}))
        .await;
    let error = wrong.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::INVALID_ARGUMENT);
}

#[tokio::test]
async fn all_four_topics_arrive_and_again() {
    let running = start();
    let client = running.client().await;
    let mut samples = client
        .subscribe("host.>", SubscribeOptions::default())
        .await
        .unwrap();
    let mut topics = std::collections::BTreeMap::<String, usize>::new();
    while topics.values().filter(|count| **count > 1).count() < 4 {
        let publication = samples.next().await.unwrap().unwrap();
        let tokens: Vec<_> = publication.topic().split('.').collect();
        assert_eq!(
            (tokens.len(), tokens[0]),
            (3, "host"),
            "{}",
            publication.topic()
        );
        if tokens[2] == "cpu" {
            let sample: CpuSample = serde_json::from_slice(&publication.payload).unwrap();
            assert!(sample.elapsed_ms > 0, "{sample:?}");
        }
        *topics.entry(tokens[2].to_owned()).or_default() += 1;
    }
    let names: Vec<_> = topics.keys().collect();
    assert_eq!(names, ["cpu", "disk", "memory", "net"]);
}

#[tokio::test]
async fn what_one_client_publishes_another_on_any_shard_receives() {
    let running = start();
    let mut subscriptions = Vec::new();
    // The kernel chooses a shard by the client's port: of sixteen, hardly all are on one.
    for _ in 0..16 {
        let client = running.client().await;
        let options = SubscribeOptions::default();
        let subscription = client.subscribe("chat.*", options).await.unwrap();
        subscriptions.push((client, subscription));
    }
    let publisher = running.client().await;
    publisher.publish("chat.room", "hello").await.unwrap();
    for (_, subscription) in &mut subscriptions {
        let publication = subscription.next().await.unwrap().unwrap();
        assert_eq!(
            (publication.topic(), &*publication.payload),
            ("chat.room", &b"hello"[..])
        );
    }
}

#[tokio::test]
async fn a_file_of_several_megabytes_survives_the_way_there_and_back() {
    let running = start();
    let client = running.client().await;
    let content = noise(5_000_003);
    let size = content.len().to_string();
    let stored = put(
        &client,
        &[("path", "dir/noise.bin"), ("size", &size)],
        &content,
    )
    .await
    .unwrap();
    assert_eq!(stored.path, "dir/noise.bin");
    assert_eq!(stored.size, 5_000_003);
    assert!(std::fs::read(running.root().join("dir/noise.bin")).unwrap() == content);

    let received = get(&client, "dir/noise.bin").await.unwrap();
    assert!(received.content == content);
    assert_eq!(received.first.get_str("size"), Some(size.as_str()));
    assert_eq!(
        received.last.get_str("sha256"),
        Some(stored.sha256.as_str())
    );

    // The digest is one that others compute as well.
    let fields = [("path", "again"), ("sha256", stored.sha256.as_str())];
    put(&client, &fields, &content).await.unwrap();
    let error = put(
        &client,
        &[("path", "other"), ("sha256", &stored.sha256)],
        b"x",
    )
    .await
    .unwrap_err();
    assert_eq!(error.code(), ErrorCode::DATA_LOSS);
    assert!(!running.root().join("other").exists());
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let running = start();
    let client = running.client().await;
    let stored = put(&client, &[("path", "empty")], b"").await.unwrap();
    // SHA-256 of nothing, from FIPS 180-4.
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!((stored.size, stored.sha256.as_str()), (0, nothing));
    let received = get(&client, "empty").await.unwrap();
    assert_eq!(
        (received.content.len(), received.last.get_str("sha256")),
        (0, Some(nothing))
    );
}

#[tokio::test]
async fn paths_that_lead_out_are_refused() {
    let running = start();
    let client = running.client().await;
    std::fs::write(running.data.path().join("secret"), "secret").unwrap();
    for path in [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "..",
        "",
        "a\0b",
        ".uploads/0",
    ] {
        let request = json!({ "path": path });
        for method in ["file.v1.Files/Stat", "file.v1.Files/Remove"] {
            let error = ask(&client, method, request.clone()).await.unwrap_err();
            assert_eq!(
                error.code(),
                ErrorCode::INVALID_ARGUMENT,
                "{method} {path:?}"
            );
        }
        let error = get(&client, path).await.err().unwrap();
        assert_eq!(error.code(), ErrorCode::INVALID_ARGUMENT, "Get {path:?}");
        let error = put(&client, &[("path", path)], b"x").await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::INVALID_ARGUMENT, "Put {path:?}");
    }
    assert_eq!(
        std::fs::read(running.data.path().join("secret")).unwrap(),
        b"secret"
    );
}

#[tokio::test]
async fn files_over_the_limit_are_refused_and_leave_nothing() {
    let running = start_with(|settings| settings.max_file_bytes = Some(100_000));
    let client = running.client().await;
    put(&client, &[("path", "fits")], &noise(100_000))
        .await
        .unwrap();
    let promised = put(&client, &[("path", "a"), ("size", "100001")], b"")
        .await
        .unwrap_err();
    let unpromised = put(&client, &[("path", "a")], &noise(3_000_000))
        .await
        .unwrap_err();
    for error in [promised, unpromised] {
        assert_eq!(error.code(), ErrorCode::RESOURCE_EXHAUSTED);
        assert!(
            error.message().contains("this node takes 100000 at most"),
            "{error}"
        );
    }
    let broken = put(&client, &[("path", "a"), ("size", "10")], &noise(9))
        .await
        .unwrap_err();
    assert_eq!(broken.code(), ErrorCode::DATA_LOSS);
    let listing = ask(&client, "file.v1.Files/List", json!({})).await.unwrap();
    let listing: Listing = serde_json::from_value(listing).unwrap();
    let names: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    assert_eq!(names, ["fits"]);
    assert_eq!(listing.entries[0].kind, EntryKind::File);
}

#[tokio::test]
async fn the_directory_tells_services_topics_and_peers() {
    let running = start();
    let client = running.client().await;
    client.publish("chat.room", "hello").await.unwrap();
    let listing = ask(&client, "remus.v2.Directory/List", json!({}))
        .await
        .unwrap();
    let listing: DirectoryListing = serde_json::from_value(listing).unwrap();
    assert_eq!(listing.node.name, running.node.name());
    assert_eq!(listing.node.listen, running.node.address());
    let mut services: Vec<_> = listing
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    services.sort_unstable();
    assert_eq!(
        services,
        [
            "file.v1.Files",
            "host.v1.Host",
            "remus.v2.Bench",
            "remus.v2.Directory",
            "remus.v2.Sessions",
            "remus.v2.Topics"
        ]
    );
    assert!(
        listing
            .topics
            .iter()
            .any(|topic| topic.name == "chat.room" && topic.published == 1)
    );
    assert_eq!(listing.peer_count, 1);
    assert!(
        listing.peers[0].calls >= 1 && listing.peers[0].bytes_in > 0,
        "{:?}",
        listing.peers
    );
}

#[tokio::test]
async fn a_client_that_pins_the_certificate_needs_no_authority() {
    let running = start();
    let trust = Trust::pinned(running.node.fingerprint());
    let client = Client::builder(&running.url())
        .trust(trust)
        .connect()
        .await
        .unwrap();
    ask(&client, "host.v1.Host/Info", json!({})).await.unwrap();
}

#[tokio::test]
async fn what_is_measured_against_echoes_sends_and_takes() {
    let running = start();
    let client = running.client().await;
    // Before that, nobody knows how long a message may be.
    let connection = client.connection().await.unwrap();
    connection.active().await.unwrap();
    let payload = Bytes::from(noise(BENCH_SIZE_MAX));
    let echo = async |payload: &Bytes| {
        let call = client.method("remus.v2.Bench/Echo");
        call.unary::<Bytes, Bytes>(Raw, payload).await
    };
    assert_eq!(echo(&payload).await.unwrap().into_inner(), payload);
    assert_eq!(echo(&Bytes::new()).await.unwrap().into_inner(), "");
    let error = echo(&noise(BENCH_SIZE_MAX + 1).into()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::MESSAGE_TOO_LARGE);

    let down = async |request: Value| {
        let request = Bytes::from(request.to_string());
        let call = client.method("remus.v2.Bench/Down");
        let stream = call.server_stream::<Bytes, Bytes>(Raw, &request).await;
        let elements: Vec<_> = stream.unwrap().into_inner().collect().await;
        elements.into_iter().collect::<Result<Vec<_>, _>>()
    };
    let elements = down(json!({"size": 100, "count": 50})).await.unwrap();
    assert_eq!(elements.len(), 50);
    assert!(elements.iter().all(|element| element.len() == 100));
    assert_eq!(down(json!({"size": 1, "count": 0})).await.unwrap(), [""; 0]);
    for (wrong, code) in [
        (
            json!({"size": BENCH_SIZE_MAX + 1, "count": 1}),
            ErrorCode::MESSAGE_TOO_LARGE,
        ),
        (
            json!({"size": 1, "count": BENCH_ELEMENTS_MAX + 1}),
            ErrorCode::INVALID_ARGUMENT,
        ),
        (json!({"size": 1}), ErrorCode::INVALID_ARGUMENT),
    ] {
        assert_eq!(down(wrong).await.unwrap_err().code(), code);
    }

    let up = async |sizes: &[usize]| {
        let call = client.method("remus.v2.Bench/Up");
        let (mut sender, reply) = call.client_stream::<Bytes, Bytes>(Raw).await?;
        for size in sizes {
            // What it does not take any more, its answer explains.
            let _ = sender.send(&noise(*size).into()).await;
        }
        sender.finish();
        reply.response().await.map(remus::Response::into_inner)
    };
    let taken: Taken = serde_json::from_slice(&up(&[3, 0, 70_000]).await.unwrap()).unwrap();
    let expected = Taken {
        elements: 3,
        bytes: 70_003,
    };
    assert_eq!(taken, expected);
    let error = up(&[BENCH_SIZE_MAX + 1]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::MESSAGE_TOO_LARGE);
}
