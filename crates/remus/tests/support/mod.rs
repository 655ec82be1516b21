//! A real server and client on loopback.

#![allow(
    unreachable_pub,
    dead_code,
    reason = "each test file uses a part of it"
)]

use std::sync::Arc;

use remus::{Carrier, Client, LocalCa, Router, Server, Trust};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server on an ephemeral port of loopback, and what is needed to reach it.
pub struct Host {
    pub url: String,
    pub trust: Trust,
    pub connections: remus::Connections,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
    data: tempfile::TempDir,
}

impl Host {
    pub async fn start(router: Router) -> Self {
        Self::start_with(router, |builder| builder).await
    }

    pub async fn start_with(
        router: Router,
        change: impl FnOnce(remus::ServerBuilder) -> remus::ServerBuilder,
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        Self::start_at(router, data, "127.0.0.1:0".parse().unwrap(), change).await
    }

    /// The same host again after its end: same certificate authority, same address.
    pub async fn restart(&mut self, router: Router, address: std::net::SocketAddr) -> Self {
        let data = std::mem::replace(&mut self.data, tempfile::tempdir().unwrap());
        Self::start_at(router, data, address, |builder| builder).await
    }

    async fn start_at(
        router: Router,
        data: tempfile::TempDir,
        address: std::net::SocketAddr,
        change: impl FnOnce(remus::ServerBuilder) -> remus::ServerBuilder,
    ) -> Self {
        let path = data.path().to_owned();
        let ca = tokio::task::spawn_blocking(move || {
            LocalCa::load_or_create(&path, &["localhost"]).unwrap()
        })
        .await
        .unwrap();
        let trust = Trust::from_pem_file(&LocalCa::certificate_path(data.path())).unwrap();
        let builder = Server::builder(router)
            .identity(ca.live() as Arc<_>)
            .listen(address);
        let server = change(builder).bind().unwrap();
        let url = format!("remus://127.0.0.1:{}", server.local_address().port());
        let connections = server.connections();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve_with_grace(
            async {
                let _ = stopped.await;
            },
            std::time::Duration::from_secs(5),
        ));
        Self {
            url,
            trust,
            connections,
            stop: Some(stop),
            task: Some(task),
            data,
        }
    }

    pub async fn client(&self) -> Client {
        Client::builder(&self.url)
            .trust(self.trust.clone())
            .carriers([Carrier::WebTransport])
            .connect()
            .await
            .unwrap()
    }

    /// Starts a graceful end; [`Host::ended`] waits for it.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    pub async fn ended(&mut self) {
        self.stop();
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
    }
}
