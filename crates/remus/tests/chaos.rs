//! A real client and server with a bad network between them: whatever it does, each call is answered once, and right.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a step that fails is a test that fails"
)]

mod support;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use remus::{Client, Json, Raw, Request, Response, Router, Service, Streaming};
use remus_testing::chaos::{Chance, Counts, Proxy, Settings};
use remus_testing::{Rng, for_each_seed};
use support::Host;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What a call asks for: its answer is its payload, and a mark that no other call has.
const METHOD: &str = "test.v1.Chaos/Echo";

/// Calls that run at a time.
const WORKERS: u32 = 16;

/// Calls that the gate of a [`World`] lets through at a time: all that a test makes.
const GATE: u32 = 1000;

/// Server, proxy and client, the last of which knows the proxy's address alone.
struct World {
    host: Host,
    proxy: Proxy,
    client: Client,
    /// How often the handler of calls ran.
    handled: Arc<AtomicU32>,
    /// What each call waits for before it is answered.
    gate: Arc<Semaphore>,
}

impl World {
    async fn new(seed: u64, settings: Settings) -> Self {
        let handled = Arc::new(AtomicU32::new(0));
        let gate = Arc::new(Semaphore::new(GATE as usize));
        let host = Host::start(Router::new().service(service(&handled, &gate))).await;
        let server = host.url.trim_start_matches("remus://").parse().unwrap();
        let proxy = Proxy::to(server)
            .seed(seed)
            .settings(settings)
            .start()
            .await
            .unwrap();
        let client = Client::builder(&format!("remus://{}", proxy.address()))
            .trust(host.trust.clone())
            .connect()
            .await
            .unwrap();
        let connection = client.connection().await.unwrap();
        connection.active().await.unwrap();
        Self {
            host,
            proxy,
            client,
            handled,
            gate,
        }
    }

    /// Waits until the counts are as they have to become.
    async fn until(&self, reached: impl Fn(&Counts) -> bool) {
        while !reached(&self.proxy.handle().counts()) {
            tokio::task::yield_now().await;
        }
    }

    async fn end(mut self) {
        self.client.close().await;
        self.host.ended().await;
        self.proxy.close().await;
    }
}

fn service(handled: &Arc<AtomicU32>, gate: &Arc<Semaphore>) -> Service {
    let (handled, gate) = (Arc::clone(handled), Arc::clone(gate));
    Service::new("test.v1.Chaos")
        .unary("Echo", Raw, move |request: Request<Bytes>| {
            handled.fetch_add(1, Ordering::Relaxed);
            let gate = Arc::clone(&gate);
            async move {
                let _open = gate.acquire().await.unwrap();
                Ok(Response::new(request.into_inner()))
            }
        })
        .server_stream("Count", Json, |request: Request<u32>| async move {
            Ok(Response::new(stream::iter(0..request.into_inner()).map(Ok)))
        })
        .client_stream("Sum", Json, |request: Request<Streaming<u64>>| async move {
            let mut numbers = request.into_inner();
            let mut sum = 0;
            while let Some(number) = numbers.message().await? {
                sum += number;
            }
            Ok(Response::new(sum))
        })
}

/// Makes a call with a payload of its own, and judges its answer.
async fn call(client: Client, payload: Bytes) {
    let answer = client
        .method(METHOD)
        .unary::<Bytes, Bytes>(Raw, &payload)
        .await
        .unwrap();
    assert!(answer.into_inner() == payload, "{} bytes", payload.len());
}

/// So many calls at a time until all are made, with payloads from nothing to some packets.
async fn calls(client: &Client, rng: &mut Rng, count: u32) {
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let client = client.clone();
        let mut rng = rng.fork();
        workers.spawn(async move {
            for _ in (worker..count).step_by(WORKERS.try_into().unwrap()) {
                let most = if rng.chance(1, 4) { 40_000 } else { 200 };
                let len = rng.index(most);
                call(client.clone(), rng.bytes(len).into()).await;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
}

async fn counted(client: &Client, count: u32) {
    let mut numbers = client
        .method("test.v1.Chaos/Count")
        .server_stream::<u32, u32>(Json, &count)
        .await
        .unwrap()
        .into_inner();
    for expected in 0..count {
        assert_eq!(numbers.message().await.unwrap(), Some(expected));
    }
    assert_eq!(numbers.message().await.unwrap(), None);
}

async fn summed(client: &Client, count: u64) {
    let (mut numbers, sum) = client
        .method("test.v1.Chaos/Sum")
        .client_stream::<u64, u64>(Json)
        .await
        .unwrap();
    for number in 0..count {
        numbers.send(&number).await.unwrap();
    }
    numbers.finish();
    let sum = sum.response().await.unwrap().into_inner();
    assert_eq!(sum, count * (count - 1) / 2);
}

/// Runs it to its end on a runtime of its own.
fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

#[test]
fn loss_disorder_duplicates_and_jitter_change_no_answer() {
    let mut settings = Settings::default();
    settings.udp.each(|udp| {
        udp.delay = Duration::from_millis(1);
        udp.jitter = Duration::from_millis(2);
        udp.loss = Chance::percent(1);
        udp.duplicate = Chance::percent(1);
        udp.reorder = Chance::percent(2);
    });
    for_each_seed(3, |rng| {
        run(async {
            let world = World::new(rng.seed(), settings).await;
            tokio::join!(
                calls(&world.client, rng, 400),
                counted(&world.client, 5000),
                summed(&world.client, 5000),
            );
            assert_eq!(world.handled.load(Ordering::Relaxed), 400);
            assert_eq!(world.host.connections.list().len(), 1);
            // The network was as bad as it was meant to be.
            let counts = world.proxy.handle().counts().udp;
            for way in [counts.up, counts.down] {
                assert!(
                    way.lost > 0 && way.duplicated > 0 && way.reordered > 0,
                    "{counts:?}"
                );
            }
            world.end().await;
        });
    });
}

/// Calls that were made before it, calls that are made in it, and a stream in the middle: all go on where they were.
#[test]
fn a_second_without_any_network_loses_no_call() {
    for_each_seed(1, |rng| {
        run(async {
            let world = World::new(rng.seed(), Settings::default()).await;
            let handle = world.proxy.handle();
            let (before, inside) = (32, 32);
            let closed = Arc::clone(&world.gate)
                .acquire_many_owned(GATE)
                .await
                .unwrap();
            let mut open = JoinSet::new();
            for _ in 0..before {
                open.spawn(call(world.client.clone(), rng.bytes(2000).into()));
            }
            while world.handled.load(Ordering::Relaxed) < before {
                tokio::task::yield_now().await;
            }
            let mut numbers = world
                .client
                .method("test.v1.Chaos/Count")
                .server_stream::<u32, u32>(Json, &100_000)
                .await
                .unwrap()
                .into_inner();
            for expected in 0..100 {
                assert_eq!(numbers.message().await.unwrap(), Some(expected));
            }

            handle.udp(|udp| udp.black_hole = true);
            drop(closed);
            for _ in 0..inside {
                open.spawn(call(world.client.clone(), rng.bytes(2000).into()));
            }
            world
                .until(|counts| counts.udp.up.swallowed > 0 && counts.udp.down.swallowed > 0)
                .await;
            // How long it lasts; nothing is concluded from the clock.
            tokio::time::sleep(Duration::from_secs(1)).await;
            handle.udp(|udp| udp.black_hole = false);

            while let Some(answered) = open.join_next().await {
                answered.unwrap();
            }
            for expected in 100..100_000 {
                assert_eq!(numbers.message().await.unwrap(), Some(expected));
            }
            assert_eq!(numbers.message().await.unwrap(), None);
            let handled = world.handled.load(Ordering::Relaxed);
            assert_eq!(handled, before + inside);
            assert_eq!(world.host.connections.list().len(), 1);
            world.end().await;
        });
    });
}

/// A router that has started again gives the client another port. QUIC follows it, so nobody above notices.
#[test]
fn a_client_that_comes_from_another_port_keeps_its_session() {
    for_each_seed(1, |rng| {
        run(async {
            let world = World::new(rng.seed(), Settings::default()).await;
            calls(&world.client, rng, 32).await;
            for _ in 0..3 {
                world.proxy.handle().reset_udp();
                calls(&world.client, rng, 32).await;
            }
            assert_eq!(world.handled.load(Ordering::Relaxed), 4 * 32);
            assert_eq!(world.host.connections.list().len(), 1);
            world.end().await;
        });
    });
}
