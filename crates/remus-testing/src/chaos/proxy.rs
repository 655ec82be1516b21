//! The proxy as its users hold it: made, changed, counted, ended.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::command::Command;
use super::line::Link;
use super::settings::{Direction, Protocol, Settings, Tcp, Udp, Ways};
use super::{tcp, udp};

/// How often a port number that is free for TCP is tried for UDP. Two in a row that are taken are rare already.
pub const BIND_ATTEMPTS: u32 = 32;

/// What the tasks of a proxy and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) server: SocketAddr,
    pub(super) seed: u64,
    pub(super) state: watch::Sender<State>,
    pub(super) udp: Ways<Arc<Link>>,
    pub(super) flows: udp::Flows,
    pub(super) tcp: tcp::Totals,
}

/// What changes while a proxy runs. Each task watches it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) settings: Settings,
    /// How often flows were forgotten.
    pub(super) udp_resets: u64,
    /// How often connections were reset.
    pub(super) tcp_resets: u64,
    /// The proxy ends.
    pub(super) closing: bool,
}

/// Waits for the proxy's end.
pub(super) async fn closing(state: &mut watch::Receiver<State>) {
    // An error means that nobody is left who could tell us.
    let _ = state.wait_for(|state| state.closing).await;
}

/// How a proxy is to be; from [`Proxy::to`].
#[derive(Clone, Copy, Debug)]
#[must_use = "it does nothing until it is started"]
pub struct Builder {
    server: SocketAddr,
    listen: Option<SocketAddr>,
    seed: u64,
    settings: Settings,
}

impl Builder {
    /// Where it listens. Port 0 lets the kernel choose one that is free for both protocols. The default is port 0 of loopback, of the
    /// server's kind of address.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// What its decisions are drawn from; default 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The conditions that it begins with; without them it passes everything on at once.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Binds and serves, on tasks of the runtime that it is called on.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the server's address or port is unspecified; else that of the operating system, `AddrInUse` among them.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing listens unless it has completed.
    pub async fn start(self) -> io::Result<Proxy> {
        if self.server.ip().is_unspecified() || self.server.port() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is no address to send to", self.server),
            ));
        }
        let listen = self.listen.unwrap_or_else(|| {
            let ip = match self.server {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            SocketAddr::new(ip, 0)
        });
        let (listener, socket) = bind(listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server: self.server,
            seed: self.seed,
            state: watch::Sender::new(State {
                settings: self.settings,
                ..State::default()
            }),
            udp: Ways::default(),
            flows: udp::Flows::default(),
            tcp: tcp::Totals::default(),
        });
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            tokio::join!(
                udp::serve(socket, Arc::clone(&serving)),
                tcp::serve(listener, serving)
            );
        });
        Ok(Proxy {
            address,
            handle: Handle { shared },
            task: Some(task),
        })
    }
}

/// Sockets of both kinds with one port number.
async fn bind(address: SocketAddr) -> io::Result<(TcpListener, tokio::net::UdpSocket)> {
    let mut attempts = if address.port() == 0 {
        BIND_ATTEMPTS
    } else {
        1
    };
    loop {
        // TCP first: its ephemeral ports are the scarcer ones.
        let listener = TcpListener::bind(address).await?;
        match udp::bind(listener.local_addr()?) {
            Ok(socket) => return Ok((listener, socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 1 => attempts -= 1,
            Err(error) => return Err(error),
        }
    }
}

/// A running proxy. Dropped, it stops: its tasks end as soon as the runtime comes to them, and its sockets with them.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    handle: Handle,
    task: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Begins to describe a proxy to a server: one address, of which UDP and TCP are passed on to the same port number.
    pub fn to(server: SocketAddr) -> Builder {
        Builder {
            server,
            listen: None,
            seed: 0,
            settings: Settings::default(),
        }
    }

    /// Where it listens, for UDP and for TCP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it is changed and counted with.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops it, and returns when its sockets are closed and its port is free.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it stops all the same.
    pub async fn close(mut self) {
        self.stop();
        if let Some(task) = self.task.take() {
            // It fails only with its runtime, and then nothing is left either.
            let _ = task.await;
        }
    }

    fn stop(&self) {
        self.handle
            .shared
            .state
            .send_modify(|state| state.closing = true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Changes a proxy while it runs, and counts what it did. Clones are the same; after the proxy's end it has no effect.
///
/// A change holds for whatever arrives after the call has returned.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// The conditions as they are.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.shared.state.borrow().settings
    }

    /// Changes all conditions in one step.
    pub fn change(&self, change: impl FnOnce(&mut Settings)) {
        self.shared
            .state
            .send_modify(|state| change(&mut state.settings));
    }

    /// Changes the conditions of UDP in both directions.
    pub fn udp(&self, change: impl FnMut(&mut Udp)) {
        self.change(|settings| settings.udp.each(change));
    }

    /// Changes the conditions of UDP in one direction.
    pub fn udp_way(&self, direction: Direction, change: impl FnOnce(&mut Udp)) {
        self.change(|settings| change(settings.udp.way_mut(direction)));
    }

    /// Changes the conditions of TCP in both directions.
    pub fn tcp(&self, change: impl FnMut(&mut Tcp)) {
        self.change(|settings| settings.tcp.each(change));
    }

    /// Changes the conditions of TCP in one direction.
    pub fn tcp_way(&self, direction: Direction, change: impl FnOnce(&mut Tcp)) {
        self.change(|settings| change(settings.tcp.way_mut(direction)));
    }

    /// Whether new connections are reset at once, as if nobody listened.
    pub fn refuse_tcp(&self, refuse: bool) {
        self.change(|settings| settings.refuse_tcp = refuse);
    }

    /// Forgets all flows, as a router does that has started again: what is on its way is gone, and what comes next reaches the server
    /// from another port.
    pub fn reset_udp(&self) {
        self.shared.state.send_modify(|state| state.udp_resets += 1);
    }

    /// Resets all connections that it has taken, at both ends; what is on its way is gone.
    pub fn reset_tcp(&self) {
        self.shared.state.send_modify(|state| state.tcp_resets += 1);
    }

    /// Carries out a command.
    pub fn apply(&self, command: Command) {
        self.change(|settings| command.apply(settings));
        if let Command::Reset(protocol) = command {
            if protocol != Some(Protocol::Tcp) {
                self.reset_udp();
            }
            if protocol != Some(Protocol::Udp) {
                self.reset_tcp();
            }
        }
    }

    /// What has happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            udp: Ways {
                up: self.shared.udp.up.counts(),
                down: self.shared.udp.down.counts(),
            },
            flows: self.shared.flows.counts(),
            tcp: self.shared.tcp.counts(),
        }
    }
}

/// What a proxy has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// To the datagrams of each direction.
    pub udp: Ways<UdpCounts>,
    /// To those who send them.
    pub flows: FlowCounts,
    /// To connections.
    pub tcp: TcpCounts,
}

/// Datagrams of one direction. `arrived + duplicated` is the sum of how they ended (delivered, lost, overflowed, swallowed, failed) and
/// of what is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounts {
    /// Came to the proxy.
    pub arrived: u64,
    /// Were handed to the kernel on the other side.
    pub delivered: u64,
    /// Were lost by [`Udp::loss`].
    pub lost: u64,
    /// Were sent once more by [`Udp::duplicate`].
    pub duplicated: u64,
    /// Were overtaken by at least one, by [`Udp::reorder`].
    pub reordered: u64,
    /// Found no room: a limit was reached, or the link's backlog.
    pub overflowed: u64,
    /// Went into a black hole, or were on their way when their flow ended.
    pub swallowed: u64,
    /// Were refused by the kernel when they were to be sent on.
    pub failed: u64,
}

/// Addresses of clients, each with a port towards the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Those that were heard of.
    pub begun: u64,
    /// Those among them that are forgotten: after [`FLOW_IDLE`](super::FLOW_IDLE), or by [`Handle::reset_udp`].
    pub ended: u64,
}

/// Connections and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounts {
    /// Connections that were taken.
    pub accepted: u64,
    /// Those among them that have ended, in whichever way.
    pub ended: u64,
    /// Those that were reset at once: by [`Settings::refuse_tcp`], or because
    /// [`CONNECTIONS_MAX`](super::CONNECTIONS_MAX) were open.
    pub refused: u64,
    /// Those whose server could not be reached.
    pub unreachable: u64,
    /// Those that [`Handle::reset_tcp`] ended.
    pub reset: u64,
    /// Bytes that were handed to the kernel on the other side.
    pub bytes: Ways<u64>,
}
