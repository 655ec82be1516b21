//! How many flights it takes until a client's first bytes are there.
//!
//! A relay between the endpoints lets one direction through at a time, so what arrives proves what it
//! did not have to wait for. No clock is involved.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use remus_http3::{Config, Connection, Incoming};
use tokio::{net::UdpSocket, sync::Notify, task::JoinHandle};

use crate::support::{Identity, client_endpoint, guarded, loopback, read_all};

/// Largest UDP payload that is relayed, in bytes.
const MAX_DATAGRAM: usize = 65_535;

/// Forwards datagrams between one client and one server; each direction can be held.
struct Relay {
    address: SocketAddr,
    gates: Arc<Gates>,
    task: JoinHandle<()>,
}

struct Gates {
    /// Only the first flight of the client, which is Initial packets alone, goes to the server.
    holds_second_flight: AtomicBool,
    /// Nothing goes to the client.
    holds_answers: AtomicBool,
    changed: Notify,
}

impl Relay {
    async fn start(server: SocketAddr) -> Self {
        let front = UdpSocket::bind(loopback()).await.unwrap();
        let back = UdpSocket::bind(loopback()).await.unwrap();
        back.connect(server).await.unwrap();
        let address = front.local_addr().unwrap();
        let gates = Arc::new(Gates {
            holds_second_flight: AtomicBool::new(true),
            holds_answers: AtomicBool::new(false),
            changed: Notify::new(),
        });
        let task = tokio::spawn(forward(front, back, gates.clone()));
        Self {
            address,
            gates,
            task,
        }
    }

    fn set(&self, gate: impl FnOnce(&Gates) -> &AtomicBool, is_held: bool) {
        gate(&self.gates).store(is_held, Ordering::SeqCst);
        self.gates.changed.notify_one();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(front: UdpSocket, back: UdpSocket, gates: Arc<Gates>) {
    let (mut up, mut down) = (vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]);
    let mut client = None;
    let mut held = Vec::new();
    loop {
        tokio::select! {
            received = front.recv_from(&mut up) => {
                let (len, from) = received.unwrap();
                client = Some(from);
                held.push(up[..len].to_vec());
            }
            received = back.recv(&mut down) => {
                let len = received.unwrap();
                // What is held back here is lost, as a network loses it: QUIC sends it again.
                if let Some(client) = client && !gates.holds_answers.load(Ordering::SeqCst) {
                    front.send_to(&down[..len], client).await.unwrap();
                }
            }
            () = gates.changed.notified() => {}
        }
        let holds = gates.holds_second_flight.load(Ordering::SeqCst);
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut held)
            .into_iter()
            .partition(|datagram| !holds || is_initial_alone(datagram));
        held = later;
        for datagram in now {
            back.send(&datagram).await.unwrap();
        }
    }
}

/// Whether a datagram is one Initial packet and nothing else. Spec: RFC 9000 §17.2.2.
fn is_initial_alone(datagram: &[u8]) -> bool {
    fn varint(input: &mut &[u8]) -> usize {
        let (value, used) = remus_http3::fuzzing::decode_varint(input).unwrap();
        *input = &input[used..];
        usize::try_from(value).unwrap()
    }
    if datagram[0] & 0xf0 != 0xc0 {
        return false;
    }
    let mut rest = &datagram[5..];
    for _connection_id in 0..2 {
        let len = usize::from(rest[0]);
        rest = &rest[1 + len..];
    }
    let token = varint(&mut rest);
    rest = &rest[token..];
    let len = varint(&mut rest);
    len == rest.len()
}

/// Spec: TRANS-11, TRANS-45
#[tokio::test]
async fn a_streams_payload_goes_with_the_end_of_the_handshake() {
    guarded(async {
        let identity = Identity::new();
        let endpoint = quinn::Endpoint::server(identity.server_config(), loopback()).unwrap();
        let server = endpoint.local_addr().unwrap();
        let relay = Relay::start(server).await;

        // First flight: the client's Initials go up, everything the server answers comes down.
        let accepting = tokio::spawn(async move {
            let connecting = endpoint.accept().await.unwrap().accept().unwrap();
            let config = Arc::new(Config::default());
            let connection = Connection::accept_quic(connecting, config).await.unwrap();
            let Some(Incoming::Session(request)) = connection.accept().await else {
                panic!("no session");
            };
            let session = request.accept(None).await.unwrap();
            let (mut send, mut recv) = session.accept_bi().await.unwrap();
            let got = read_all(&mut recv).await;
            send.write_all(b"answer").await.unwrap();
            send.finish().unwrap();
            (got, session)
        });
        let config = identity.client_config(b"h3");
        let connecting = client_endpoint().connect_with(config, relay.address, "localhost");
        let quic = connecting.unwrap().await.unwrap();
        let connection = Connection::client(quic, Arc::default()).await.unwrap();
        assert!(
            connection.settings().unwrap().webtransport(),
            "SETTINGS came with the server's first flight"
        );

        // Second flight: from now on the client hears nothing. It sends the end of its handshake, the
        // request, a stream and its payload, and the server gets all of it.
        relay.set(|gates| &gates.holds_answers, true);
        let request = http::Request::get(format!("https://{server}/"));
        let session = connection
            .connect(request.body(()).unwrap(), &["remus.v2"])
            .await
            .unwrap();
        let (mut send, mut recv) = session.open_bi().await.unwrap();
        send.write_all(b"first flight").await.unwrap();
        send.finish().unwrap();
        relay.set(|gates| &gates.holds_second_flight, false);
        let (got, _theirs) = accepting.await.unwrap();
        assert_eq!(got, b"first flight");

        // The answer comes back by the next flight.
        relay.set(|gates| &gates.holds_answers, false);
        assert_eq!(read_all(&mut recv).await, b"answer");
        assert_eq!(session.established().await.unwrap().status, 200);
    })
    .await;
}

/// Passes the client's first datagram on and holds the rest until the server has acknowledged it.
///
/// Returns how many it held.
async fn split(server: SocketAddr, front: UdpSocket, told: tokio::sync::oneshot::Sender<usize>) {
    let back = UdpSocket::bind(loopback()).await.unwrap();
    back.connect(server).await.unwrap();
    let (mut up, mut down) = (vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]);
    let (len, client) = front.recv_from(&mut up).await.unwrap();
    back.send(&up[..len]).await.unwrap();
    // Both have arrived by now: a client sends its first flight at once.
    let answer = back.recv(&mut down).await.unwrap();
    let mut held = 0;
    while let Ok(len) = front.try_recv(&mut up) {
        back.send(&up[..len]).await.unwrap();
        held += 1;
    }
    told.send(held).unwrap();
    front.send_to(&down[..answer], client).await.unwrap();
    loop {
        tokio::select! {
            received = front.recv(&mut up) => {
                back.send(&up[..received.unwrap()]).await.unwrap();
            }
            received = back.recv(&mut down) => {
                front.send_to(&down[..received.unwrap()], client).await.unwrap();
            }
        }
    }
}

/// A post-quantum ClientHello fills two datagrams, and the network may deliver them one by one.
#[tokio::test]
async fn a_first_flight_that_arrives_in_pieces_is_one() {
    guarded(async {
        let identity = Identity::new();
        let endpoint = quinn::Endpoint::server(identity.server_config(), loopback()).unwrap();
        let front = UdpSocket::bind(loopback()).await.unwrap();
        let address = front.local_addr().unwrap();
        let (told, held) = tokio::sync::oneshot::channel();
        let relay = tokio::spawn(split(endpoint.local_addr().unwrap(), front, told));
        let accepting = tokio::spawn(async move {
            let connecting = endpoint.accept().await.unwrap().accept().unwrap();
            let connection = Connection::accept_quic(connecting, Arc::default()).await;
            (connection.unwrap(), endpoint)
        });
        let config = identity.client_config(b"h3");
        let connecting = client_endpoint().connect_with(config, address, "localhost");
        let quic = connecting.unwrap().await.unwrap();
        assert!(held.await.unwrap() > 0, "the ClientHello was in one piece");
        let connection = Connection::client(quic, Arc::default()).await.unwrap();
        assert!(connection.settings().unwrap().webtransport());
        drop(accepting.await.unwrap());
        relay.abort();
    })
    .await;
}
