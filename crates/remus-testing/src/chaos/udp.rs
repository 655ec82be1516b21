//! Datagrams: who they come from, the flow that each belongs to, and both directions of it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::fate::Fates;
use super::line::{Line, Link, Packet, count};
use super::proxy::{FlowCounts, Shared, State, closing};
use super::settings::{Direction, Protocol, Udp};

/// Flows at a time. Each has a socket and a task; beyond it the datagrams of new ones are dropped, and counted as overflow.
pub const FLOWS_MAX: usize = 256;

/// Silence after which a flow is forgotten: what a router grants by RFC 4787, and longer than peers wait for each other.
pub const FLOW_IDLE: Duration = Duration::from_secs(120);

/// Datagrams that may wait for the task of their flow. The listener takes up to 128 before others have their turn, so this is eight of
/// its turns; beyond it they are dropped, and counted as overflow.
pub const INBOX_PACKETS: usize = 1024;

/// Most payload of a datagram, in bytes: what UDP's length field holds.
pub const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Bytes asked of the kernel for each direction of a socket: what the peers behind it have, for what is lost here was not lost by seed.
/// The kernel gives what its limits allow.
pub const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// How long nothing is read after the kernel has reported an error, so that one that stays does not use up a processor.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// A socket with buffers of its own size.
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// A socket that reaches the server and is never told of its absence: a connected one would report it once for each datagram.
fn bind_towards(server: SocketAddr) -> io::Result<UdpSocket> {
    let ip = match server.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(ip) if ip.is_loopback() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    bind(SocketAddr::new(ip, 0))
}

/// How many flows there were.
#[derive(Debug, Default)]
pub(super) struct Flows {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Flows {
    pub(super) fn counts(&self) -> FlowCounts {
        FlowCounts {
            begun: self.begun.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
        }
    }
}

/// Where the task of a flow is reached.
struct Inbox {
    packets: mpsc::Sender<Packet>,
    /// How often flows had been forgotten when this one began.
    resets: u64,
}

/// Takes what clients send and hands each datagram to its flow, until the proxy ends.
pub(super) async fn serve(socket: UdpSocket, shared: Arc<Shared>) {
    let socket = Arc::new(socket);
    let mut state = shared.state.subscribe();
    let mut inboxes: HashMap<SocketAddr, Inbox> = HashMap::new();
    let mut flows: JoinSet<SocketAddr> = JoinSet::new();
    let mut flows_begun = 0_u64;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        tokio::select! {
            () = closing(&mut state) => break,
            Some(ended) = flows.join_next(), if !flows.is_empty() => {
                count(&shared.flows.ended);
                // A flow that came after one of the same address stays.
                if let Ok(client) = ended
                    && inboxes.get(&client).is_some_and(|inbox| inbox.packets.is_closed())
                {
                    inboxes.remove(&client);
                }
            }
            received = socket.recv_from(&mut buffer) => {
                let Ok((len, client)) = received else {
                    sleep(ERROR_PAUSE).await;
                    continue;
                };
                let Some(packet) = buffer.get(..len).and_then(|payload| shared.udp.up.take_in(payload)) else {
                    continue;
                };
                let resets = shared.state.borrow().udp_resets;
                let known = inboxes
                    .get(&client)
                    .is_some_and(|inbox| inbox.resets == resets && !inbox.packets.is_closed());
                if !known {
                    if flows.len() >= FLOWS_MAX {
                        count(&shared.udp.up.overflowed);
                        continue;
                    }
                    let Ok(upstream) = bind_towards(shared.server) else {
                        count(&shared.udp.up.failed);
                        continue;
                    };
                    let (packets, inbox) = mpsc::channel(INBOX_PACKETS);
                    let fates = |direction| Fates::new(shared.seed, Protocol::Udp, flows_begun, direction);
                    let flow = Flow {
                        client,
                        socket: Arc::clone(&socket),
                        upstream,
                        up: Line::new(Arc::clone(&shared.udp.up), fates(Direction::Up)),
                        down: Line::new(Arc::clone(&shared.udp.down), fates(Direction::Down)),
                        shared: Arc::clone(&shared),
                        resets,
                    };
                    flows_begun += 1;
                    count(&shared.flows.begun);
                    inboxes.insert(client, Inbox { packets, resets });
                    flows.spawn(flow.run(inbox, shared.state.subscribe()));
                }
                let sent = inboxes
                    .get(&client)
                    .map(|inbox| inbox.packets.try_send(packet));
                match sent {
                    Some(Ok(())) => {}
                    Some(Err(TrySendError::Full(_))) => count(&shared.udp.up.overflowed),
                    // It ended this very moment.
                    Some(Err(TrySendError::Closed(_))) | None => count(&shared.udp.up.swallowed),
                }
            }
        }
    }
    while flows.join_next().await.is_some() {}
}

/// What comes from one address of a client, and what the server answers there.
struct Flow {
    client: SocketAddr,
    /// The proxy's own, which clients know.
    socket: Arc<UdpSocket>,
    upstream: UdpSocket,
    up: Line,
    down: Line,
    shared: Arc<Shared>,
    resets: u64,
}

impl Flow {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Packet>,
        mut state: watch::Receiver<State>,
    ) -> SocketAddr {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        let mut idle_at = Instant::now() + FLOW_IDLE;
        loop {
            let now = *state.borrow_and_update();
            if now.closing || now.udp_resets != self.resets {
                break;
            }
            let udp = now.settings.udp;
            self.deliver(Direction::Up, &udp.up).await;
            self.deliver(Direction::Down, &udp.down).await;
            let due = self.up.next_due().into_iter().chain(self.down.next_due());
            let wake_at = due.min().unwrap_or(idle_at);
            tokio::select! {
                changed = state.changed() => if changed.is_err() { break },
                packet = inbox.recv() => {
                    let Some(packet) = packet else { break };
                    let now = Instant::now();
                    idle_at = now + FLOW_IDLE;
                    let conditions = state.borrow().settings.udp.up;
                    self.up.push(now, packet, &conditions);
                }
                received = self.upstream.recv_from(&mut buffer) => {
                    let Ok((len, sender)) = received else {
                        sleep(ERROR_PAUSE).await;
                        continue;
                    };
                    if sender != self.shared.server {
                        continue;
                    }
                    let now = Instant::now();
                    idle_at = now + FLOW_IDLE;
                    let packet = buffer.get(..len).and_then(|payload| self.shared.udp.down.take_in(payload));
                    if let Some(packet) = packet {
                        let conditions = state.borrow().settings.udp.down;
                        self.down.push(now, packet, &conditions);
                    }
                }
                () = sleep_until(wake_at) => if Instant::now() >= idle_at { break },
            }
        }
        inbox.close();
        while inbox.try_recv().is_ok() {
            count(&self.shared.udp.up.swallowed);
        }
        self.client
    }

    /// Sends on whatever is due.
    async fn deliver(&mut self, direction: Direction, conditions: &Udp) {
        let link: &Arc<Link> = self.shared.udp.way(direction);
        let line = match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        };
        while let Some(packet) = line.pop(Instant::now(), conditions) {
            if conditions.black_hole {
                count(&link.swallowed);
                continue;
            }
            let sent = match direction {
                Direction::Up => {
                    self.upstream
                        .send_to(&packet.payload, self.shared.server)
                        .await
                }
                Direction::Down => self.socket.send_to(&packet.payload, self.client).await,
            };
            count(match sent {
                Ok(_) => &link.delivered,
                Err(_) => &link.failed,
            });
        }
    }
}
