//! Sessions that change their carrier in the middle of everything: nothing is lost, and nothing comes twice.
//!
//! Spec: core §3.5, carriers §11. The seed of a run is printed; REMUS_SEED sets it, REMUS_MOVES and REMUS_MIB the size.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use remus::{
    Broker, Carrier, Client, ConnectionStatus, Error, ErrorCode, Raw, Request, Response, Router,
    Service, Streaming, SubscribeOptions,
};
use remus_testing::Rng;
use remus_testing::chaos::Proxy;
use support::Host;

/// How often each numbered call was executed.
type Executed = Arc<Mutex<HashMap<Bytes, u32>>>;

const ELEMENT: usize = 32 * 1024;

fn services(executed: Executed) -> Router {
    Router::new().topics(&Broker::new()).service(
        Service::new("test.v1.Moved")
            .unary("Count", Raw, move |request: Request<Bytes>| {
                let executed = Arc::clone(&executed);
                async move {
                    let number = request.into_inner();
                    *executed.lock().unwrap().entry(number.clone()).or_default() += 1;
                    // Some answers take their time, so that carriers break while their calls are under way.
                    if number.last().is_some_and(|last| last % 4 == 0) {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    Ok(Response::new(number))
                }
            })
            .server_stream("Down", Raw, |request: Request<Bytes>| async move {
                let body = request.into_inner();
                let count = u32::from_be_bytes(body.as_ref().try_into().unwrap());
                Ok(Response::new(futures_util::stream::iter(
                    (0..count).map(|n| Ok(element(n))),
                )))
            })
            .client_stream("Up", Raw, |request: Request<Streaming<Bytes>>| async move {
                let mut elements = request.into_inner();
                let mut n = 0_u32;
                while let Some(got) = elements.message().await? {
                    if got != element(n) {
                        return Err(Error::data_loss(format!("element {n} is another one")));
                    }
                    n += 1;
                }
                Ok(Response::new(Bytes::copy_from_slice(&n.to_be_bytes())))
            }),
    )
}

/// Bytes that tell which element of a stream they are, wherever one looks.
fn element(n: u32) -> Bytes {
    let mut bytes = Vec::with_capacity(ELEMENT);
    let mut state = n;
    while bytes.len() < ELEMENT {
        bytes.extend_from_slice(&state.to_be_bytes());
        state = state.wrapping_mul(2_654_435_761).wrapping_add(n);
    }
    bytes.into()
}

fn size_of(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

async fn client(host: &Host, carriers: &[Carrier]) -> Client {
    Client::builder(&host.url)
        .trust(host.trust.clone())
        .carriers(carriers.iter().copied())
        .connect()
        .await
        .unwrap()
}

/// Calls until told to stop; returns how many.
async fn calls(client: Client, lane: u32, stop: Arc<AtomicBool>) -> u32 {
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        let number = Bytes::copy_from_slice(&(lane * 1_000_000 + made).to_be_bytes());
        let answer: Response<Bytes> = client
            .method("test.v1.Moved/Count")
            .timeout(Duration::from_secs(120))
            .unary(Raw, &number)
            .await
            .unwrap_or_else(|error| panic!("call {lane}/{made}: {error}"));
        assert_eq!(answer.into_inner(), number);
        made += 1;
    }
    made
}

async fn download(client: Client, count: u32, done: Arc<AtomicUsize>) {
    let request = Bytes::copy_from_slice(&count.to_be_bytes());
    let down: Response<Streaming<Bytes>> = client
        .method("test.v1.Moved/Down")
        .server_stream(Raw, &request)
        .await
        .unwrap();
    let mut down = down.into_inner();
    for n in 0..count {
        let got = down.message().await.unwrap().expect("it is not over");
        assert_eq!(got, element(n), "element {n}");
        done.fetch_add(1, Ordering::Relaxed);
    }
    assert!(down.message().await.unwrap().is_none(), "and no more");
}

async fn upload(client: Client, count: u32, done: Arc<AtomicUsize>) {
    let (mut sender, reply) = client
        .method("test.v1.Moved/Up")
        .client_stream::<Bytes, Bytes>(Raw)
        .await
        .unwrap();
    for n in 0..count {
        sender.send(&element(n)).await.unwrap();
        done.fetch_add(1, Ordering::Relaxed);
    }
    sender.finish();
    let taken = reply.response().await.unwrap().into_inner();
    assert_eq!(taken, Bytes::copy_from_slice(&count.to_be_bytes()));
}

/// Every event of a topic, in order, until the last.
async fn events(client: Client, topic: String, ready: tokio::sync::oneshot::Sender<()>) -> u32 {
    let mut events = client
        .subscribe(&topic, SubscribeOptions::default())
        .await
        .unwrap();
    ready.send(()).unwrap();
    let mut n = 0_u32;
    loop {
        let event = events.next().await.expect("it goes on").unwrap();
        if event.payload.is_empty() {
            return n;
        }
        assert_eq!(
            event.payload,
            Bytes::copy_from_slice(&n.to_be_bytes()),
            "{topic}"
        );
        n += 1;
    }
}

async fn back_in_service(client: &Client) {
    let connection = client.connection().await.unwrap();
    let mut status = connection.watch_status();
    status
        .wait_for(|status| !matches!(status, ConnectionStatus::Suspended { .. }))
        .await
        .unwrap();
}

/// A session that stalls fails the test, and does not hold up all of them. Ten to fifty times what it takes.
const STALLED: Duration = Duration::from_secs(300);

async fn in_time(test: impl Future<Output = ()>) {
    let ended = tokio::time::timeout(STALLED, test).await;
    ended.expect("the session stalled");
}

/// How a carrier is taken from a session.
enum Harm {
    /// By asking for it: dropped as if the network had broken, or left for another one.
    Demand,
    /// By a network that resets every TCP connection and swallows every datagram for a while.
    Network,
}

/// The test that matters.
async fn everything_moves(carriers: &[Carrier], harm: Harm, moves: u32, mib: u32) {
    let seed = std::env::var("REMUS_SEED").map_or_else(
        |_| u64::from(std::process::id()),
        |seed| seed.parse().unwrap(),
    );
    let moves = size_of("REMUS_MOVES", moves);
    let count = size_of("REMUS_MIB", mib) * 1024 * 1024 / ELEMENT as u32;
    println!("REMUS_SEED={seed}, {moves} moves, {count} elements each way");
    let mut rng = Rng::new(seed);
    let executed = Executed::default();
    let host = Host::start(services(Arc::clone(&executed))).await;
    let proxy = Proxy::to(host.url.trim_start_matches("remus://").parse().unwrap())
        .seed(seed)
        .start()
        .await
        .unwrap();
    let network = proxy.handle();
    let client = Client::builder(&format!("remus://{}", proxy.address()))
        .trust(host.trust.clone())
        .carriers(carriers.iter().copied())
        .idle_timeout(Duration::from_secs(1)) // how soon silence is noticed
        .head_start(Duration::from_millis(50))
        .connect()
        .await
        .unwrap();
    let publisher = support_publisher(&host).await;
    let before = client.connection().await.unwrap();
    before.active().await.unwrap();

    let mut listeners = Vec::new();
    for topic in ["moved.one", "moved.two", "moved.three"] {
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        listeners.push(tokio::spawn(events(
            client.clone(),
            topic.to_owned(),
            ready,
        )));
        is_ready.await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut n = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                for topic in ["moved.one", "moved.two", "moved.three"] {
                    let payload = Bytes::copy_from_slice(&n.to_be_bytes());
                    publisher.publish(topic, payload).await.unwrap();
                }
                n += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for topic in ["moved.one", "moved.two", "moved.three"] {
                publisher.publish(topic, Bytes::new()).await.unwrap();
            }
            n
        }
    });
    let callers: Vec<_> = (0..64)
        .map(|lane| tokio::spawn(calls(client.clone(), lane, Arc::clone(&stop))))
        .collect();
    let (downs, ups) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let downloading = tokio::spawn(download(client.clone(), count, Arc::clone(&downs)));
    let uploading = tokio::spawn(upload(client.clone(), count, Arc::clone(&ups)));

    // The moves are spread over the transfers, so that each finds both under way.
    for step in 1..=moves {
        let due = (u64::from(count) * u64::from(step) / u64::from(moves + 1)) as usize;
        while downs
            .load(Ordering::Relaxed)
            .max(ups.load(Ordering::Relaxed))
            < due
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!downloading.is_finished() || !uploading.is_finished() || step == moves);
        }
        let connection = client.connection().await.unwrap();
        let from = connection.carrier();
        if matches!(harm, Harm::Network) {
            println!("{step}: the network fails under {from}");
            network.udp(|udp| udp.black_hole = true);
            network.reset_tcp();
            // New connections over TCP go through. So many answers came by what the client found instead.
            let before = executed.lock().unwrap().len();
            while executed.lock().unwrap().len() < before + 200 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            network.udp(|udp| udp.black_hole = false);
        }
        let wanted = *rng.pick(carriers).unwrap();
        let from = connection.carrier();
        if matches!(harm, Harm::Demand) && rng.chance(1, 3) {
            println!("{step}: cut {from}");
            connection.drop_carrier();
        } else {
            println!("{step}: switch {from} -> {wanted}");
            connection.switch_carrier(wanted).await.unwrap();
        }
        back_in_service(&client).await;
    }
    downloading.await.unwrap();
    uploading.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let published = publishing.await.unwrap();
    for listener in listeners {
        assert_eq!(listener.await.unwrap(), published, "events, each once");
    }
    let mut made = 0;
    for caller in callers {
        made += caller.await.unwrap();
    }
    {
        let executed = executed.lock().unwrap();
        assert_eq!(executed.len(), made as usize, "calls that were executed");
        assert!(executed.values().all(|times| *times == 1), "each once");
    }
    let after = client.connection().await.unwrap();
    let resumptions = after.statistics().resumptions;
    println!("{made} calls, {published} events a topic, {resumptions} resumptions");
    assert!(resumptions >= u64::from(moves) / 2, "it did move");
    assert!(
        matches!(before.status(), ConnectionStatus::Active),
        "one session all the way"
    );
}

/// A client whose own carrier is left alone.
async fn support_publisher(host: &Host) -> Client {
    client(host, &[Carrier::WebTransport]).await
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_however_the_carrier_changes() {
    in_time(everything_moves(&Carrier::ALL, Harm::Demand, 50, 48)).await;
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_however_the_network_fails() {
    in_time(everything_moves(&Carrier::ALL, Harm::Network, 8, 16)).await;
}

/// Streams on several lanes move to a carrier that has one, and back to one that has many. Spec: CORE-93, CORE-101
#[tokio::test]
async fn streams_on_many_lanes_go_on_over_one_and_over_many_again() {
    let count = 128;
    let host = Host::start(services(Executed::default())).await;
    let client = client(&host, &[Carrier::WebTransport, Carrier::WebSocket]).await;
    let connection = client.connection().await.unwrap();
    connection.active().await.unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let mut transfers = Vec::new();
    for _ in 0..4 {
        let (down, up) = (client.clone(), client.clone());
        let (downs, ups) = (Arc::clone(&done), Arc::clone(&done));
        transfers.push(tokio::spawn(download(down, count, downs)));
        transfers.push(tokio::spawn(upload(up, count, ups)));
    }
    let all = 8 * count as usize;
    let reached = async |part: usize| {
        while done.load(Ordering::Relaxed) < part {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(
                !transfers.iter().all(tokio::task::JoinHandle::is_finished),
                "some of them go on"
            );
        }
    };
    reached(all / 16).await;
    assert!(connection.open_lanes() > 4, "lanes beside lane 0");
    connection.switch_carrier(Carrier::WebSocket).await.unwrap();
    reached(all / 8).await;
    assert_eq!(connection.open_lanes(), 1);
    connection
        .switch_carrier(Carrier::WebTransport)
        .await
        .unwrap();
    for transfer in transfers {
        transfer.await.unwrap();
    }
    assert!(connection.open_lanes() > 1, "the lanes that they had");
    assert_eq!(connection.statistics().resumptions, 2);
    // New streams too, and the acknowledgements of all lanes are of those that the other side means.
    upload(client.clone(), count, Arc::default()).await;
    download(client.clone(), count, Arc::default()).await;
    connection.drop_carrier();
    upload(client.clone(), count, Arc::default()).await;
    assert_eq!(connection.statistics().resumptions, 3);
}

#[tokio::test]
async fn a_call_waits_out_a_cut_and_runs_once() {
    let executed = Executed::default();
    let host = Host::start(services(Arc::clone(&executed))).await;
    let client = client(&host, &[Carrier::WebTransport]).await;
    let connection = client.connection().await.unwrap();
    connection.active().await.unwrap();
    for n in 0..20_u32 {
        let number = Bytes::copy_from_slice(&(n * 4).to_be_bytes());
        let method = client.method("test.v1.Moved/Count");
        let call = method.unary::<Bytes, Bytes>(Raw, &number);
        let cut = async {
            tokio::task::yield_now().await;
            connection.drop_carrier();
        };
        let (answer, ()) = tokio::join!(call, cut);
        assert_eq!(answer.unwrap().into_inner(), number);
    }
    assert!(executed.lock().unwrap().values().all(|times| *times == 1));
    assert!(connection.statistics().resumptions > 0);
}

#[tokio::test]
async fn a_server_that_knows_nothing_of_the_session_says_so() {
    let executed = Executed::default();
    // A runtime of its own, which ends without a word to anybody, as a process that is killed.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let starting = Host::start(services(Arc::clone(&executed)));
    let mut host = runtime.spawn(starting).await.unwrap();
    let address = host.url.trim_start_matches("remus://").parse().unwrap();
    let client = client(&host, &[Carrier::WebTransport, Carrier::WebSocket]).await;
    let connection = client.connection().await.unwrap();
    connection.active().await.unwrap();
    let ending = move || runtime.shutdown_timeout(Duration::from_secs(10));
    tokio::task::spawn_blocking(ending).await.unwrap();
    let host = host.restart(services(executed), address).await;
    let reason = connection.closed().await;
    assert_eq!(reason.code, ErrorCode::LOSS_OF_SESSION, "{reason:?}");
    let number = Bytes::from_static(&[0, 0, 0, 1]);
    let answer: Response<Bytes> = client
        .method("test.v1.Moved/Count")
        .unary(Raw, &number)
        .await
        .unwrap();
    assert_eq!(answer.into_inner(), number, "on a session of its own");
    drop(host);
}

#[tokio::test]
async fn a_session_moves_from_every_carrier_to_every_other() {
    for from in Carrier::ALL {
        for to in Carrier::ALL {
            let host = Host::start(services(Executed::default())).await;
            let client = client(&host, &[from]).await;
            let connection = client.connection().await.unwrap();
            connection.active().await.unwrap();
            connection.switch_carrier(to).await.unwrap();
            assert_eq!(connection.carrier(), to, "from {from}");
            let number = Bytes::from_static(&[0, 0, 0, 1]);
            let answer: Response<Bytes> = client
                .method("test.v1.Moved/Count")
                .unary(Raw, &number)
                .await
                .unwrap();
            assert_eq!(answer.into_inner(), number, "{from} to {to}");
        }
    }
}
