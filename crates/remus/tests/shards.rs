//! Servers that share one port, one a thread, and clients whose address changes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a step that fails is a test that fails"
)]

use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use remus::{
    BindError, Connection, Connections, Grant, LocalCa, Raw, Request, Response, Router, Server,
    Service, ServiceId, SessionConfig, ShardError, ShardGroup, Streaming, TlsPolicy, Trust,
};
use remus_security::{alpn, client_config};
use remus_session::{Answer, Outgoing, Shape};
use remus_transport::quic::{self, EndpointError};
use remus_transport::webtransport::{self, CONNECT_TIMEOUT, Target};
use remus_transport::{Dispatch, Handler, PeerRequest};
use remus_wire::{
    AuthenticationRecord, ErrorCode, ErrorRecord, MethodId, Query, QueryAnswer, Routing, Text,
};
use tokio::sync::oneshot;

/// Changes of the address after which a client has been on both sockets, but for a chance of 1 in 2^63.
const CHANGES_MAX: usize = 64;

/// What one shard serves; the answers say which it is.
fn router(number: usize) -> Router {
    let service =
        Service::new("test.v1.Shard")
            .unary("Which", Raw, move |request: Request<Bytes>| async move {
                let mut answer = vec![u8::try_from(number).unwrap()];
                answer.extend_from_slice(&request.into_inner());
                Ok(Response::new(Bytes::from(answer)))
            })
            .two_way(
                "Mirror",
                Raw,
                |request: Request<Streaming<Bytes>>| async move {
                    Ok(Response::new(request.into_inner()))
                },
            );
    Router::new().service(service)
}

/// Two shards, each on a thread with a runtime of its own.
struct Shards {
    group: ShardGroup,
    address: SocketAddr,
    connections: Vec<Connections>,
    trust: Trust,
    stops: Vec<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
    _data: tempfile::TempDir,
}

impl Shards {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let authority = LocalCa::load_or_create(data.path(), &["localhost"]).unwrap();
        let trust = Trust::from_pem_file(&LocalCa::certificate_path(data.path())).unwrap();
        let group = ShardGroup::new(2).unwrap();
        let mut address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (mut connections, mut stops, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..2 {
            let builder = Server::builder(router(number))
                .identity(authority.live())
                .listen(address)
                .shard(&group, number);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let server = {
                let _context = runtime.enter();
                builder.bind().unwrap()
            };
            address = server.local_address();
            connections.push(server.connections());
            let (stop, stopped) = oneshot::channel();
            stops.push(stop);
            threads.push(std::thread::spawn(move || {
                runtime.block_on(server.serve(async { drop(stopped.await) }));
            }));
        }
        Self {
            group,
            address,
            connections,
            trust,
            stops,
            threads,
            _data: data,
        }
    }

    /// Stops both, while clients on this runtime can still say goodbye.
    async fn end(self) {
        drop(self.stops);
        let join = || {
            for thread in self.threads {
                thread.join().unwrap();
            }
        };
        tokio::task::spawn_blocking(join).await.unwrap();
    }
}

/// A client's side that serves nothing.
struct Nothing;

impl Handler for Nothing {
    fn authenticate(
        &self,
        _: &Connection,
        _: AuthenticationRecord,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, ErrorRecord>> + Send>> {
        Box::pin(std::future::ready(Ok(Grant::default())))
    }

    fn directory(&self, _: &Query) -> QueryAnswer {
        QueryAnswer::default()
    }

    fn request(&self, _: &Connection, _: PeerRequest) -> Dispatch {
        let record = ErrorRecord::new(ErrorCode::UNIMPLEMENTED, Text::from_static("nothing here"));
        Dispatch::Ready(Answer::Error(record))
    }
}

/// One session of a client that can move.
struct Mobile {
    endpoint: quinn::Endpoint,
    connection: Connection,
}

impl Mobile {
    async fn connect(shards: &Shards) -> Self {
        let tls = client_config(TlsPolicy::RequirePostQuantum, &shards.trust, alpn::QUIC).unwrap();
        Self::again(quic::client_endpoint(tls).unwrap(), shards).await
    }

    async fn again(endpoint: quinn::Endpoint, shards: &Shards) -> Self {
        let connection = webtransport::connect(
            &endpoint,
            &Target::parse(&format!("remus://{}", shards.address)).unwrap(),
            SessionConfig::client(),
            Arc::new(Nothing),
            CONNECT_TIMEOUT,
        )
        .await
        .unwrap();
        connection.active().await.unwrap();
        Self {
            endpoint,
            connection,
        }
    }

    /// Goes on from another port.
    fn change_address(&self) {
        let any = self.endpoint.local_addr().unwrap().ip();
        let socket = quic::bind(SocketAddr::new(any, 0), false).unwrap();
        self.endpoint.rebind(socket).unwrap();
    }

    /// The number of the shard that answers.
    async fn which(&self, payload: &[u8]) -> u8 {
        let answer = self
            .connection
            .call(request("Which", payload))
            .await
            .unwrap_or_else(|error| panic!("{error:?}"));
        let (number, rest) = answer.payload.split_first().unwrap();
        assert_eq!(rest, payload);
        *number
    }

    /// Changes the address until packets come to the other shard's socket, with a call after each change.
    async fn wander(&self, shards: &Shards) {
        let home = self.which(b"at home").await;
        let before = shards.group.statistics().handed_on;
        for _ in 0..CHANGES_MAX {
            self.change_address();
            assert_eq!(self.which(b"elsewhere").await, home);
            if shards.group.statistics().handed_on > before {
                return;
            }
        }
        panic!("the client never came to the other socket");
    }
}

fn request(method: &str, payload: &[u8]) -> Outgoing {
    Outgoing {
        routing: Routing::to(
            ServiceId::of("test.v1.Shard"),
            MethodId::of(&format!("test.v1.Shard/{method}")),
        ),
        payload: Bytes::copy_from_slice(payload),
        ..Outgoing::default()
    }
}

#[tokio::test]
async fn a_session_stays_with_its_shard_wherever_its_client_goes() {
    let shards = Shards::start();
    let mobile = Mobile::connect(&shards).await;
    let home = mobile.which(b"first").await;
    let session = mobile.connection.negotiated().unwrap().grant.session;
    // A stream is open the whole time, and each of its elements comes back, once and in order.
    let (mut sender, mut receiver) = mobile
        .connection
        .start(request("Mirror", b""), Shape::TwoWay)
        .await
        .unwrap();
    let mut number: u32 = 0;
    for _ in 0..4 {
        for _ in 0..16 {
            number += 1;
            let element = Outgoing {
                payload: Bytes::copy_from_slice(&number.to_be_bytes()),
                ..Outgoing::default()
            };
            sender.send(element).await.unwrap();
        }
        mobile.wander(&shards).await;
    }
    sender.finish(None);
    for expected in 1..=number {
        let element = receiver.recv().await.unwrap().unwrap();
        assert_eq!(element.payload, &expected.to_be_bytes()[..]);
    }
    assert!(receiver.recv().await.is_none());
    assert_eq!(mobile.which(b"last").await, home);
    assert_eq!(
        mobile.connection.negotiated().unwrap().grant.session,
        session
    );
    let open: Vec<_> = shards
        .connections
        .iter()
        .map(|shard| shard.list().len())
        .collect();
    let expected = if home == 0 { [1, 0] } else { [0, 1] };
    assert_eq!(open, expected, "one session, never a second one");
    drop(mobile);
    shards.end().await;
}

#[tokio::test]
async fn a_client_on_the_other_socket_moves_as_much_as_it_likes() {
    const BYTES: usize = 8 * 1024 * 1024;
    let shards = Shards::start();
    let mobile = Mobile::connect(&shards).await;
    mobile.wander(&shards).await;
    let (mut sender, mut receiver) = mobile
        .connection
        .start(request("Mirror", b""), Shape::TwoWay)
        .await
        .unwrap();
    let sending = async {
        let payload = Bytes::from(vec![7; 32 * 1024]);
        for _ in 0..BYTES / payload.len() {
            let element = Outgoing {
                payload: payload.clone(),
                ..Outgoing::default()
            };
            sender.send(element).await.unwrap();
        }
        sender.finish(None);
    };
    let receiving = async {
        let mut received = 0;
        while let Some(element) = receiver.recv().await {
            received += element.unwrap().payload.len();
        }
        received
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert_eq!(received, BYTES);
    drop(mobile);
    shards.end().await;
}

#[tokio::test]
async fn connections_of_one_client_may_be_in_different_shards() {
    let shards = Shards::start();
    let first = Mobile::connect(&shards).await;
    first.wander(&shards).await;
    // From the same socket, which now leads to the other shard.
    let second = Mobile::again(first.endpoint.clone(), &shards).await;
    let homes = (first.which(b"").await, second.which(b"").await);
    assert_ne!(homes.0, homes.1);
    let payload = vec![1; 20_000];
    for _ in 0..8 {
        first.change_address();
        let calls =
            (0..32).map(|_| async { tokio::join!(first.which(&payload), second.which(&payload)) });
        let answers: Vec<_> = futures_util::future::join_all(calls).await;
        assert!(answers.iter().all(|answer| *answer == homes), "{answers:?}");
    }
    drop((first, second));
    shards.end().await;
}

#[tokio::test]
async fn datagrams_of_nobody_reach_no_other_shard() {
    const DATAGRAMS: usize = 20_000;
    let shards = Shards::start();
    let mobile = Mobile::connect(&shards).await;
    let home = mobile.which(b"before").await;
    let senders: Vec<_> = (0..8)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    let mut seed: u64 = 0x9E37_79B9_7F4A_7C15;
    for (number, sender) in (0..DATAGRAMS).zip(senders.iter().cycle()) {
        // xorshift64: each looks like a packet of another connection.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let mut datagram = [0x41; 60];
        for (byte, random) in datagram.iter_mut().skip(1).zip(seed.to_be_bytes()) {
            *byte = random;
        }
        // What the kernel has no room for is lost, as on any path.
        let _ = sender.send_to(&datagram, shards.address);
        if number % 1000 == 0 {
            assert_eq!(mobile.which(b"meanwhile").await, home);
        }
    }
    assert_eq!(mobile.which(b"after").await, home);
    let statistics = shards.group.statistics();
    // One in 65,536 is taken for one of the other shard's.
    assert!(
        statistics.handed_on + statistics.dropped < 30,
        "{statistics:?}"
    );
    drop(mobile);
    shards.end().await;
}

#[tokio::test]
async fn a_shard_that_is_not_there_or_taken_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_owned();
    let authority =
        tokio::task::spawn_blocking(move || LocalCa::load_or_create(&path, &["localhost"]))
            .await
            .unwrap()
            .unwrap();
    let server = |group: &ShardGroup, number| {
        Server::builder(Router::new())
            .identity(authority.live())
            .listen("127.0.0.1:0".parse().unwrap())
            .shard(group, number)
            .bind()
    };
    let group = ShardGroup::new(2).unwrap();
    let error = server(&group, 2).unwrap_err();
    assert!(
        matches!(
            error,
            BindError::Endpoint(EndpointError::Shard(ShardError::Number { .. }))
        ),
        "{error}"
    );
    assert_eq!(error.to_string(), "there is no shard 2 in a group of 2");
    let _first = server(&group, 0).unwrap();
    assert_eq!(
        server(&group, 0).unwrap_err().to_string(),
        "shard 0 has an endpoint already"
    );
}
