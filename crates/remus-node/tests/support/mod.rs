//! A real node on a free port of the loopback interface, and clients of it.

#![allow(dead_code, reason = "each test file uses its part")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use bytes::Bytes;
use remus::{Client, Error, Metadata, Raw, Streaming, Trust};
use remus_node::files::Stored;
use remus_node::{Config, Node, Settings};

pub(crate) struct Running {
    pub(crate) node: Node,
    pub(crate) data: tempfile::TempDir,
}

pub(crate) fn settings(data: &tempfile::TempDir) -> Settings {
    Settings {
        data: Some(data.path().to_owned()),
        listen: Some("127.0.0.1:0".parse().unwrap()),
        shards: Some(2),
        grace: Some(Duration::from_secs(10)),
        ..Settings::default()
    }
}

pub(crate) fn start() -> Running {
    start_with(|_| {})
}

pub(crate) fn start_with(change: impl FnOnce(&mut Settings)) -> Running {
    let data = tempfile::tempdir().unwrap();
    let mut settings = settings(&data);
    change(&mut settings);
    let node = Node::start(&Config::new(settings).unwrap()).unwrap();
    Running { node, data }
}

impl Running {
    pub(crate) fn url(&self) -> String {
        format!("remus://127.0.0.1:{}", self.node.address().port())
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::from_pem_file(&self.node.authority_path()).unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        let builder = Client::builder(&self.url()).trust(self.trust());
        builder.connect().await.unwrap()
    }

    pub(crate) fn root(&self) -> std::path::PathBuf {
        self.data.path().join("files")
    }
}

/// What `Get` sent.
pub(crate) struct Received {
    pub(crate) content: Vec<u8>,
    pub(crate) first: Metadata,
    pub(crate) last: Metadata,
}

pub(crate) async fn get(client: &Client, path: &str) -> Result<Received, Error> {
    let request = serde_json::to_vec(&serde_json::json!({ "path": path })).unwrap();
    let call = client.method("file.v1.Files/Get");
    let mut stream: Streaming<Bytes> = call
        .server_stream(Raw, &Bytes::from(request))
        .await?
        .into_inner();
    let mut content = Vec::new();
    let mut first = None;
    while let Some(chunk) = stream.message().await? {
        first.get_or_insert_with(|| stream.metadata().clone());
        content.extend_from_slice(&chunk);
    }
    Ok(Received {
        content,
        first: first.unwrap(),
        last: stream.metadata().clone(),
    })
}

pub(crate) async fn put(
    client: &Client,
    metadata: &[(&str, &str)],
    content: &[u8],
) -> Result<Stored, Error> {
    let mut call = client.method("file.v1.Files/Put");
    for (name, value) in metadata {
        call = call.metadata(name, value);
    }
    let (mut sender, reply) = call.client_stream::<Bytes, Bytes>(Raw).await?;
    for chunk in content.chunks(50_000) {
        // A node that has refused the upload takes no more; why, is in its answer.
        if sender.send(&Bytes::copy_from_slice(chunk)).await.is_err() {
            break;
        }
    }
    sender.finish();
    let answer = reply.response().await?;
    Ok(serde_json::from_slice(answer.get_ref()).unwrap())
}
