//! What a bulk stream does to small calls on the same connection.
//!
//! `cargo run --release -p remus --example beside` runs rounds of 64-byte calls, one at a time, alone and beside a stream of
//! 64 MiB in 32 KiB elements, in turn, and prints the percentiles of both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a measurement that fails says so and ends"
)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use remus::{Client, LocalCa, Raw, Request, Response, Router, Server, Service, Trust};

const ROUNDS: usize = 5;
const CALLS: usize = 2000;
const STREAM_BYTES: usize = 64 * 1024 * 1024;
const ELEMENT_BYTES: usize = 32 * 1024;

fn services() -> Router {
    Router::new().service(
        Service::new("bench.v1.Bench")
            .unary("Echo", Raw, |request: Request<Bytes>| async move {
                Ok(Response::new(request.into_inner()))
            })
            .server_stream("Bulk", Raw, |_: Request<Bytes>| async move {
                let element = Bytes::from(vec![7; ELEMENT_BYTES]);
                Ok(Response::new(stream::iter(
                    (0..STREAM_BYTES / ELEMENT_BYTES).map(move |_| Ok(element.clone())),
                )))
            }),
    )
}

/// Latencies of calls made one after the other until `stop` says so, at least one.
async fn calls(client: &Client, mut stop: impl FnMut(usize) -> bool) -> Vec<Duration> {
    let payload = Bytes::from(vec![1; 64]);
    let mut latencies = Vec::new();
    while !stop(latencies.len()) || latencies.is_empty() {
        let start = Instant::now();
        client
            .method("bench.v1.Bench/Echo")
            .unary::<Bytes, Bytes>(Raw, &payload)
            .await
            .expect("the call is answered");
        latencies.push(start.elapsed());
    }
    latencies
}

fn percentile(sorted: &[Duration], p: f64) -> Duration {
    let at = ((sorted.len() - 1) as f64 * p).round() as usize;
    sorted[at]
}

fn show(name: &str, mut latencies: Vec<Duration>) -> Duration {
    latencies.sort_unstable();
    let (p50, p99) = (percentile(&latencies, 0.5), percentile(&latencies, 0.99));
    println!(
        "{name:>8}: {:>6} calls, p50 {p50:>10.1?}, p99 {p99:>10.1?}",
        latencies.len()
    );
    p99
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = tempfile::tempdir()?;
    let ca = LocalCa::load_or_create(data.path(), &["localhost"])?;
    let trust = Trust::from_pem_file(&LocalCa::certificate_path(data.path()))?;
    let (tell, address) = std::sync::mpsc::channel();
    let identity = ca.live();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listen = "127.0.0.1:0".parse().expect("it is an address");
            let server = Server::builder(services())
                .identity(identity)
                .listen(listen)
                .bind()
                .expect("a port is free");
            tell.send(server.local_address())
                .expect("somebody waits for it");
            server.serve(std::future::pending()).await;
        });
    });
    let address = address.recv()?;
    runtime().block_on(async move {
        let client = Client::builder(&format!("remus://{address}"))
            .trust(trust)
            .connect()
            .await?;
        calls(&client, |made| made >= 200).await; // warm
        let (mut alone, mut beside, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            alone.extend(calls(&client, |made| made >= CALLS).await);
            let bulk = client
                .method("bench.v1.Bench/Bulk")
                .server_stream::<Bytes, Bytes>(Raw, &Bytes::new())
                .await?;
            let start = Instant::now();
            let reading = tokio::spawn(async move {
                let mut bulk = bulk.into_inner();
                let mut bytes = 0;
                while let Ok(Some(element)) = bulk.message().await {
                    bytes += element.len();
                }
                bytes
            });
            beside.extend(calls(&client, |_| reading.is_finished()).await);
            let bytes = reading.await?;
            assert_eq!(bytes, STREAM_BYTES, "the stream arrived whole");
            rates.push(bytes as f64 / start.elapsed().as_secs_f64() / 1e6);
        }
        let (a, b) = (show("alone", alone), show("beside", beside));
        rates.sort_by(f64::total_cmp);
        println!(
            "the stream ran at {:.0} MB/s (median), p99 rose {:.1} times",
            rates[rates.len() / 2],
            b.as_secs_f64() / a.as_secs_f64()
        );
        client.close().await;
        Ok(())
    })
}
