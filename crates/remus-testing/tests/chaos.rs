//! The chaos proxy with real sockets on both sides: what passes, what does not, and that its seed says which.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a step that fails is a test that fails"
)]

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use remus_testing::chaos::{
    CONNECTIONS_MAX, Chance, Counts, Direction, FLOW_IDLE, FLOWS_MAX, Fates, Handle, Protocol,
    Proxy, Settings, Udp,
};
use remus_testing::for_each_seed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

const LOOPBACK: &str = "127.0.0.1:0";

/// Where a port that a test has left is its own still: nobody else asks for ports there.
const ASIDE: &str = "127.0.0.2:0";

/// A server that answers with what it is told, on one port number for both protocols. It ends with its value.
struct Echo {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Echo {
    async fn start() -> Self {
        let (listener, socket) = loop {
            let listener = TcpListener::bind(LOOPBACK).await.unwrap();
            if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()).await {
                break (listener, socket);
            }
        };
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = vec![0; 65_535];
            loop {
                let (len, client) = socket.recv_from(&mut buffer).await.unwrap();
                socket.send_to(&buffer[..len], client).await.unwrap();
            }
        });
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
                connections.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    // A connection that is reset ends with an error.
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    let _ = to.shutdown().await;
                });
            }
        });
        Self {
            address,
            accepted,
            _tasks: tasks,
        }
    }
}

async fn client_of(proxy: &Proxy) -> UdpSocket {
    let client = UdpSocket::bind(LOOPBACK).await.unwrap();
    client.connect(proxy.address()).await.unwrap();
    client
}

/// Waits until the counts are as they have to become.
async fn until(handle: &Handle, reached: impl Fn(&Counts) -> bool) -> Counts {
    loop {
        let counts = handle.counts();
        if reached(&counts) {
            return counts;
        }
        tokio::task::yield_now().await;
    }
}

/// Sends a number and returns when nothing is on its way any more.
async fn send_and_settle(client: &UdpSocket, handle: &Handle, number: u32, sent: u64) {
    client.send(&number.to_be_bytes()).await.unwrap();
    until(handle, |counts| {
        let (up, down) = (counts.udp.up, counts.udp.down);
        let settled = up.delivered + up.lost + up.swallowed == up.arrived + up.duplicated;
        let answered =
            down.delivered + down.lost + down.swallowed == down.arrived + down.duplicated;
        up.arrived == sent && settled && answered && down.arrived == up.delivered
    })
    .await;
}

/// All numbers that have arrived.
async fn received(client: &UdpSocket, count: u64) -> Vec<u32> {
    let mut numbers = Vec::new();
    let mut buffer = [0; 4];
    for _ in 0..count {
        assert_eq!(client.recv(&mut buffer).await.unwrap(), 4);
        numbers.push(u32::from_be_bytes(buffer));
    }
    numbers
}

async fn echoes(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(answer == bytes);
}

fn pattern(len: u32) -> Vec<u8> {
    (0..len)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect()
}

#[tokio::test]
async fn one_port_number_leads_both_protocols_to_the_server() {
    let echo = Echo::start().await;
    let proxy = Proxy::to(echo.address).start().await.unwrap();
    let client = client_of(&proxy).await;
    for len in [0, 1, 1200, 6500, 65_000] {
        let payload = pattern(len);
        client.send(&payload).await.unwrap();
        let mut answer = vec![0; 65_535];
        let len = client.recv(&mut answer).await.unwrap();
        assert!(answer[..len] == payload);
    }
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    echoes(&mut stream, b"over TCP").await;
    let counts = proxy.handle().counts();
    assert_eq!((counts.udp.up.delivered, counts.udp.down.delivered), (5, 5));
    assert_eq!((counts.tcp.accepted, counts.tcp.bytes.up), (1, 8));
}

#[tokio::test]
async fn each_client_gets_its_own_answers() {
    let echo = Echo::start().await;
    let proxy = Proxy::to(echo.address).start().await.unwrap();
    let mut clients = Vec::new();
    for number in 0..20_u32 {
        let client = client_of(&proxy).await;
        client.send(&number.to_be_bytes()).await.unwrap();
        clients.push(client);
    }
    for (number, client) in (0..).zip(&clients) {
        assert_eq!(received(client, 1).await, [number]);
    }
}

/// What arrives, and how often, is what the decisions of both directions say, whatever the clock does.
#[tokio::test]
async fn the_seed_says_which_datagrams_arrive_and_how_often() {
    let echo = Echo::start().await;
    let conditions = Udp {
        loss: Chance::percent(20),
        duplicate: Chance::percent(20),
        jitter: Duration::from_micros(1500),
        ..Udp::default()
    };
    let mut settings = Settings::default();
    settings.udp.each(|udp| *udp = conditions);
    for seed in 0..3 {
        let proxy = Proxy::to(echo.address)
            // Where nobody else's late datagram can become a flow of its own.
            .listen(ASIDE.parse().unwrap())
            .seed(seed)
            .settings(settings)
            .start()
            .await
            .unwrap();
        // The second flow has decisions of its own.
        for flow in 0..2 {
            let client = client_of(&proxy).await;
            let mut up = Fates::new(seed, Protocol::Udp, flow, Direction::Up);
            let mut down = Fates::new(seed, Protocol::Udp, flow, Direction::Down);
            let mut expected = Vec::new();
            let copies = |fates: &mut Fates| {
                let fate = fates.next(&conditions);
                if fate.lost {
                    0
                } else {
                    1 + usize::from(fate.duplicated)
                }
            };
            let mut came = Vec::new();
            for number in 0..100 {
                let before = proxy.handle().counts().udp.down.delivered;
                let sent = flow * 100 + u64::from(number) + 1;
                send_and_settle(&client, proxy.handle(), number, sent).await;
                let delivered = proxy.handle().counts().udp.down.delivered - before;
                came.extend(received(&client, delivered).await);
                for _ in 0..copies(&mut up) {
                    expected.extend(std::iter::repeat_n(number, copies(&mut down)));
                }
            }
            assert_eq!(came, expected, "seed {seed}");
            assert!(expected.len() != 100 && expected.len() > 50);
        }
        proxy.close().await;
    }
}

/// Each is answered once, and as many come after a later one as were counted.
#[tokio::test]
async fn reordered_datagrams_arrive_after_later_ones() {
    let echo = Echo::start().await;
    let proxy = Proxy::to(echo.address).seed(3).start().await.unwrap();
    let handle = proxy.handle();
    handle.udp_way(Direction::Up, |udp| udp.reorder = Chance::percent(10));
    let client = client_of(&proxy).await;
    let mut came = Vec::new();
    // Few at a time, so that no kernel buffer overflows.
    for window in 0..20_u32 {
        for number in window * 20..(window + 1) * 20 {
            client.send(&number.to_be_bytes()).await.unwrap();
        }
        came.extend(received(&client, 20).await);
    }
    let mut highest = 0;
    let mut late = 0;
    for &number in &came {
        late += u64::from(number < highest);
        highest = highest.max(number);
    }
    assert_eq!(late, handle.counts().udp.up.reordered);
    came.sort_unstable();
    assert!(came.into_iter().eq(0..400));
}

#[tokio::test]
async fn a_black_hole_swallows_datagrams_in_the_direction_it_is_in() {
    let echo = Echo::start().await;
    let proxy = Proxy::to(echo.address).start().await.unwrap();
    let handle = proxy.handle();
    let client = client_of(&proxy).await;
    send_and_settle(&client, handle, 0, 1).await;
    handle.udp(|udp| udp.black_hole = true);
    send_and_settle(&client, handle, 1, 2).await;
    handle.udp_way(Direction::Up, |udp| udp.black_hole = false);
    send_and_settle(&client, handle, 2, 3).await;
    handle.udp(|udp| udp.black_hole = false);
    send_and_settle(&client, handle, 3, 4).await;
    assert_eq!(received(&client, 2).await, [0, 3]);
    let counts = handle.counts().udp;
    assert_eq!((counts.up.swallowed, counts.down.swallowed), (1, 1));
    assert_eq!((counts.up.delivered, counts.down.delivered), (3, 2));
}

#[tokio::test]
async fn a_reset_forgets_what_is_on_its_way_and_gives_flows_another_port() {
    let server = UdpSocket::bind(LOOPBACK).await.unwrap();
    let proxy = Proxy::to(server.local_addr().unwrap())
        .start()
        .await
        .unwrap();
    let handle = proxy.handle();
    let client = client_of(&proxy).await;
    let mut buffer = [0; 4];
    client.send(b"one").await.unwrap();
    let (_, before) = server.recv_from(&mut buffer).await.unwrap();
    handle.udp(|udp| udp.delay = Duration::from_secs(60));
    client.send(b"gone").await.unwrap();
    until(handle, |counts| counts.udp.up.arrived == 2).await;
    handle.udp(|udp| udp.delay = Duration::ZERO);
    handle.reset_udp();
    client.send(b"two").await.unwrap();
    let (len, after) = server.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..len], b"two");
    assert_ne!(before, after);
    until(handle, |counts| counts.udp.up.swallowed == 1).await;
    // Answers to the old port reach nobody, those to the new one the client.
    let _ = server.send_to(b"old", before).await;
    server.send_to(b"new", after).await.unwrap();
    let len = client.recv(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..len], b"new");
}

#[tokio::test]
async fn strangers_do_not_reach_a_client_through_its_flow() {
    let server = UdpSocket::bind(LOOPBACK).await.unwrap();
    let proxy = Proxy::to(server.local_addr().unwrap())
        .start()
        .await
        .unwrap();
    let client = client_of(&proxy).await;
    client.send(b"hi").await.unwrap();
    let mut buffer = [0; 8];
    let (_, flow) = server.recv_from(&mut buffer).await.unwrap();
    let stranger = UdpSocket::bind(LOOPBACK).await.unwrap();
    stranger.send_to(b"stranger", flow).await.unwrap();
    server.send_to(b"server", flow).await.unwrap();
    let len = client.recv(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..len], b"server");
    assert_eq!(proxy.handle().counts().udp.down.arrived, 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_found_when_it_is() {
    let address = {
        let unused = UdpSocket::bind(ASIDE).await.unwrap();
        unused.local_addr().unwrap()
    };
    let proxy = Proxy::to(address).start().await.unwrap();
    let client = client_of(&proxy).await;
    for _ in 0..3 {
        client.send(b"early").await.unwrap();
    }
    until(proxy.handle(), |counts| counts.udp.up.delivered == 3).await;
    let server = UdpSocket::bind(address).await.unwrap();
    client.send(b"late").await.unwrap();
    let mut buffer = [0; 8];
    let (len, _) = server.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..len], b"late");
}

#[tokio::test]
async fn bytes_of_connections_keep_their_order_under_every_condition() {
    let echo = Echo::start().await;
    let payload = pattern(3_000_000);
    for commands in [
        &["tcp delay 0"][..],
        &["tcp jitter 3ms"],
        &["tcp delay 5ms", "tcp up jitter 5ms"],
        &["tcp bandwidth 200mbit"],
    ] {
        let proxy = Proxy::to(echo.address).seed(5).start().await.unwrap();
        for command in commands {
            proxy.handle().apply(command.parse().unwrap());
        }
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut from, mut to) = stream.split();
        let send = async {
            to.write_all(&payload).await.unwrap();
            // Its end goes the same way, and the answer still comes back.
            to.shutdown().await.unwrap();
        };
        let mut answer = Vec::new();
        let ((), read) = tokio::join!(send, from.read_to_end(&mut answer));
        read.unwrap();
        assert!(answer == payload, "{commands:?}");
        let counts = until(proxy.handle(), |counts| counts.tcp.ended == 1)
            .await
            .tcp;
        assert_eq!((counts.bytes.up, counts.bytes.down), (3_000_000, 3_000_000));
    }
}

#[tokio::test]
async fn a_reset_breaks_both_ends_of_every_connection_and_none_that_follows() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap())
        .start()
        .await
        .unwrap();
    let mut ends = Vec::new();
    for _ in 0..3 {
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        ends.extend([client, server]);
    }
    proxy.handle().reset_tcp();
    for end in &mut ends {
        let error = end.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let counts = until(proxy.handle(), |counts| counts.tcp.ended == 3).await;
    assert_eq!(counts.tcp.reset, 3);
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"!").await.unwrap();
    server.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn who_breaks_off_is_seen_to_break_off() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap())
        .start()
        .await
        .unwrap();
    for breaks_off in Direction::BOTH {
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let (gone, mut left) = match breaks_off {
            Direction::Up => (client, server),
            Direction::Down => (server, client),
        };
        gone.set_zero_linger().unwrap();
        drop(gone);
        let error = left.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_black_hole_holds_connections_and_loses_none_of_their_bytes() {
    let echo = Echo::start().await;
    let proxy = Proxy::to(echo.address).start().await.unwrap();
    let handle = proxy.handle();
    let mut old = TcpStream::connect(proxy.address()).await.unwrap();
    echoes(&mut old, b"before").await;
    handle.tcp(|tcp| tcp.black_hole = true);
    old.write_all(b"during").await.unwrap();
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    new.write_all(b"new").await.unwrap();
    until(handle, |counts| counts.tcp.accepted == 2).await;
    // UDP goes on, and while it goes to and fro nothing else moves.
    let client = client_of(&proxy).await;
    for number in 0..20 {
        send_and_settle(&client, handle, number, u64::from(number) + 1).await;
    }
    assert_eq!(handle.counts().tcp.bytes.up, 6);
    assert_eq!(echo.accepted.load(Ordering::Relaxed), 1);
    handle.tcp(|tcp| tcp.black_hole = false);
    let mut answer = [0; 6];
    old.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"during");
    let mut answer = [0; 3];
    new.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"new");
}

#[tokio::test]
async fn connections_are_refused_on_demand_and_when_there_is_no_server() {
    let echo = Echo::start().await;
    let proxy = Proxy::to(echo.address).start().await.unwrap();
    let mut old = TcpStream::connect(proxy.address()).await.unwrap();
    echoes(&mut old, b"before").await;
    proxy.handle().refuse_tcp(true);
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    let error = new.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // What is open stays.
    echoes(&mut old, b"during").await;
    proxy.handle().refuse_tcp(false);
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    echoes(&mut new, b"after").await;
    assert_eq!(proxy.handle().counts().tcp.refused, 1);

    let nobody = {
        let unused = TcpListener::bind(ASIDE).await.unwrap();
        unused.local_addr().unwrap()
    };
    let proxy = Proxy::to(nobody).start().await.unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let error = client.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.handle().counts().tcp.unreachable, 1);
}

#[tokio::test]
async fn a_closed_proxy_has_left_its_port_and_a_dropped_one_leaves_it() {
    let echo = Echo::start().await;
    let proxy = Proxy::to(echo.address)
        .listen(ASIDE.parse().unwrap())
        .start()
        .await
        .unwrap();
    let address = proxy.address();
    let client = client_of(&proxy).await;
    send_and_settle(&client, proxy.handle(), 0, 1).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    echoes(&mut stream, b"hi").await;
    proxy.close().await;
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);

    let proxy = Proxy::to(echo.address)
        .listen(address)
        .start()
        .await
        .unwrap();
    assert_eq!(proxy.address(), address);
    let taken = Proxy::to(echo.address).listen(address).start().await;
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(proxy);
    loop {
        match Proxy::to(echo.address).listen(address).start().await {
            Ok(proxy) => break proxy.close().await,
            Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse),
        }
        tokio::task::yield_now().await;
    }
}

/// Both limits in one test, one after the other: each takes hundreds of sockets.
#[tokio::test]
async fn more_flows_and_connections_than_the_limits_are_refused_and_others_served() {
    let echo = Echo::start().await;
    let proxy = Proxy::to(echo.address).start().await.unwrap();
    let handle = proxy.handle();
    let mut clients = Vec::new();
    let mut sent = 0;
    for number in 0..u32::try_from(FLOWS_MAX).unwrap() {
        let client = client_of(&proxy).await;
        sent += 1;
        send_and_settle(&client, handle, number, sent).await;
        assert_eq!(received(&client, 1).await, [number]);
        clients.push(client);
    }
    let late = client_of(&proxy).await;
    late.send(b"late").await.unwrap();
    until(handle, |counts| counts.udp.up.overflowed == 1).await;
    clients[0].send(&[0; 4]).await.unwrap();
    assert_eq!(received(&clients[0], 1).await, [0]);
    // When the others are forgotten there is room.
    handle.reset_udp();
    until(handle, |counts| counts.flows.ended == counts.flows.begun).await;
    late.send(&[0; 4]).await.unwrap();
    assert_eq!(received(&late, 1).await, [0]);
    drop(clients);

    // They need no server while it is out of reach.
    handle.tcp(|tcp| tcp.black_hole = true);
    let mut streams = Vec::new();
    for number in 1..=u64::try_from(CONNECTIONS_MAX).unwrap() {
        streams.push(TcpStream::connect(proxy.address()).await.unwrap());
        until(handle, |counts| counts.tcp.accepted == number).await;
    }
    let mut late = TcpStream::connect(proxy.address()).await.unwrap();
    let error = late.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(handle.counts().tcp.refused, 1);
    handle.reset_tcp();
    until(handle, |counts| counts.tcp.ended == counts.tcp.accepted).await;
    handle.tcp(|tcp| tcp.black_hole = false);
    let mut late = TcpStream::connect(proxy.address()).await.unwrap();
    echoes(&mut late, b"room").await;
}

#[tokio::test]
async fn a_silent_flow_is_forgotten_and_begins_anew() {
    let server = UdpSocket::bind(LOOPBACK).await.unwrap();
    let proxy = Proxy::to(server.local_addr().unwrap())
        .start()
        .await
        .unwrap();
    let client = client_of(&proxy).await;
    let mut buffer = [0; 8];
    client.send(b"one").await.unwrap();
    let (_, before) = server.recv_from(&mut buffer).await.unwrap();
    tokio::time::pause();
    // A second more, as timers tick in milliseconds.
    tokio::time::advance(FLOW_IDLE + Duration::from_secs(1)).await;
    until(proxy.handle(), |counts| counts.flows.ended == 1).await;
    tokio::time::resume();
    client.send(b"two").await.unwrap();
    let (_, after) = server.recv_from(&mut buffer).await.unwrap();
    assert_ne!(before, after);
}

#[tokio::test]
async fn an_address_that_is_none_is_refused() {
    for address in ["127.0.0.1:0", "0.0.0.0:80", "[::]:80"] {
        let refused = Proxy::to(address.parse().unwrap()).start().await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

/// Ends the program with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn by_hand_it_does_what_is_typed() {
    let server = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let to = server.local_addr().unwrap().to_string();
    let mut program = Program(program(&[
        "--to",
        &to,
        "--seed",
        "7",
        "--loss",
        "100%",
        "--set",
        "tcp down delay 1s",
    ]));
    let mut input = program.0.stdin.take().unwrap();
    let mut output = BufReader::new(program.0.stdout.take().unwrap()).lines();
    let mut said = || output.next().unwrap().unwrap();
    let first = said();
    let address = first.split_whitespace().next().unwrap();
    assert_eq!(
        first,
        format!("{address} leads to {to}, UDP and TCP, seed 7")
    );

    let client = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    client.connect(address).unwrap();
    client.send(b"lost").unwrap();
    // Its number is asked for until it has been counted, so it is lost and not only late.
    loop {
        writeln!(input, "counts").unwrap();
        let mut counts = String::new();
        while !counts.ends_with("\n}") {
            counts.push('\n');
            counts.push_str(&said());
        }
        if counts.contains("lost: 1,") {
            break;
        }
    }
    writeln!(input, "udp loss 0").unwrap();
    assert_eq!(said(), "done");
    client.send(b"found").unwrap();
    let mut buffer = [0; 8];
    let (len, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"found");
    writeln!(input, "tcp loss 1%").unwrap();
    assert_eq!(said(), "that is a condition of UDP alone");
    writeln!(input, "tcp reset").unwrap();
    assert_eq!(said(), "done");
    writeln!(input, "quit").unwrap();
    assert!(program.0.wait().unwrap().success());
}

#[test]
fn by_hand_it_says_what_is_wrong() {
    for (arguments, message) in [
        (&[][..], "chaos: --to is missing; --help tells the rest\n"),
        (&["to"], "chaos: `to` is too much\n"),
        (&["--to"], "chaos: --to takes a value\n"),
        (
            &["--loss", "2"],
            "chaos: --loss: `2` is no value for loss; it takes a share from 0 to 1, such as 0.01, or a percentage, such as 1%\n",
        ),
        (
            &["--to", "127.0.0.1:80", "--seed", "x"],
            "chaos: `x` is no seed; it takes a number\n",
        ),
    ] {
        let output = program(arguments).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), message);
    }
    let output = program(&["--help"]).wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("blackhole")
    );
}

/// A change of conditions at any time loses and doubles nothing that no condition takes or doubles.
#[test]
fn conditions_that_change_in_between_lose_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for_each_seed(3, |rng| {
        runtime.block_on(async {
            let echo = Echo::start().await;
            let proxy = Proxy::to(echo.address)
                .seed(rng.seed())
                .start()
                .await
                .unwrap();
            let client = client_of(&proxy).await;
            let mut came = Vec::new();
            for window in 0..20_u32 {
                for number in window * 10..(window + 1) * 10 {
                    let (delay, jitter) = (rng.below(3000), rng.below(3000));
                    let reorder = Chance::percent(u32::try_from(rng.below(50)).unwrap());
                    proxy.handle().udp(|udp| {
                        udp.delay = Duration::from_micros(delay);
                        udp.jitter = Duration::from_micros(jitter);
                        udp.reorder = reorder;
                    });
                    client.send(&number.to_be_bytes()).await.unwrap();
                }
                came.extend(received(&client, 10).await);
            }
            came.sort_unstable();
            assert!(came.into_iter().eq(0..200));
        });
    });
}
