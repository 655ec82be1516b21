//! One node, assembled: data directory, port, identity, services, and a few threads that serve them.
//!
//! | thread | does |
//! | --- | --- |
//! | `remus-shard-N` | one tokio runtime with its own QUIC socket on the common port (unless UDP is blocked), and a share in the TCP listener; each connection stays on its thread |
//! | `remus-renewal` | the renewal of the certificate |
//! | `remus-host` | watches the machine |
//!
//! Beside them are the threads on which a runtime reads and writes files, as long as there are any to read and write. Stopping
//! a node joins all of them.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use remus::{
    BindError, Broker, Connections, Fingerprint, LocalCa, Router, Server, ShardError, ShardGroup,
};
use remus_security::IdentityError;
use sysinfo::Networks;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::bench;
use crate::config::Config;
use crate::directory::{Contents, Directory, NodeDescription};
use crate::files::{Files, FilesError};
use crate::host::{Host, HostThread};
use crate::lock::{DataError, DataLock};
use crate::port::{self, Port, PortError, Protocol};
use crate::sessions::Sessions;
use crate::transports;
use crate::web::{self, Site};

/// Threads of one shard that read and write files at a time: what a disk does in parallel. What is more, waits.
const FILE_THREADS: usize = 16;

/// How often to see whether the certificate is due. It is renewed when three days are left of it.
const RENEWAL_CHECK: Duration = Duration::from_secs(60 * 60);

/// A node that runs.
///
/// End it with [`Node::shut_down`]. Dropped, it cuts off what is open, and still joins its threads.
#[derive(Debug)]
pub struct Node {
    address: SocketAddr,
    data: PathBuf,
    name: String,
    authority: Arc<LocalCa>,
    phase: watch::Sender<Phase>,
    /// The first thread that ended though nobody had told it to.
    failed: watch::Receiver<Option<&'static str>>,
    site: Site,
    files: Files,
    shards: Vec<JoinHandle<()>>,
    renewal: Option<JoinHandle<()>>,
    stop_renewal: CancellationToken,
    host: Option<HostThread>,
    /// Given back last, when nothing writes any more.
    _lock: DataLock,
}

/// What the shards are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Serve,
    /// Finish what was accepted, within the grace period.
    Drain,
    /// Drop everything.
    End,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The port cannot be listened on.
    #[error(transparent)]
    Port(#[from] PortError),
    /// There is no certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The files cannot be opened.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The machine does not let itself be watched.
    #[error("cannot watch this machine: {0}")]
    Host(#[source] io::Error),
    /// A shard cannot listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The shards cannot share the port.
    #[error(transparent)]
    Shards(#[from] ShardError),
    /// A thread or its runtime cannot be started.
    #[error("cannot start the thread {name}: {source}")]
    #[expect(missing_docs, reason = "the message names every field")]
    Thread { name: String, source: io::Error },
}

impl Node {
    /// Starts a node, and returns when it takes connections.
    ///
    /// Blocks for as long as the disk needs: call it outside of async code.
    ///
    /// # Errors
    ///
    /// [`NodeError`]; nothing is left running then.
    pub fn start(config: &Config) -> Result<Self, NodeError> {
        let lock = DataLock::acquire(config.data())?;
        let Port { listener, address } = port::take(config.listen(), config.block_udp())?;
        let authority = Arc::new(LocalCa::load_or_create(config.data(), &names(config))?);
        let files = Files::open(config.data(), config.files())?;

        let broker = Broker::new();
        let samples = broker.clone();
        let (host, host_thread) = Host::start(move |topic, sample| {
            if let Err(error) = samples.try_publish(topic, sample) {
                tracing::debug!(%error, topic, "a sample was not published");
            }
        })
        .map_err(NodeError::Host)?;
        let name = host.name().to_owned();

        let directory = Directory::default();
        let sessions = Sessions::default();
        let router = Router::new()
            .topics(&broker)
            .service(directory.service())
            .service(sessions.service())
            .service(host.service())
            .service(files.service())
            .service(bench::service());
        let services = router.services().to_vec();

        let (phase, _) = watch::channel(Phase::Serve);
        let (failure, failed) = watch::channel(None);
        let site = Site::new(name.clone(), address.port(), authority.live());
        let mut node = Self {
            address,
            data: config.data().to_owned(),
            name: name.clone(),
            authority,
            phase,
            failed,
            site,
            files,
            shards: Vec::new(),
            renewal: None,
            stop_renewal: CancellationToken::new(),
            host: Some(host_thread),
            _lock: lock,
        };
        // From here on, an error drops `node`, which ends what runs already.

        // Elsewhere than on Linux the kernel does not spread connections over sockets that share a port.
        let count = if cfg!(target_os = "linux") {
            config.shards().get()
        } else {
            1
        };
        let group = ShardGroup::new(count)?;
        let mut connections = Vec::with_capacity(count);
        for number in 0..count {
            let tcp = match listener.try_clone() {
                Ok(tcp) => tcp,
                Err(source) => return Err(port::explain(address, Protocol::Tcp, source).into()),
            };
            connections.push(node.start_shard(&group, number, tcp, config, &router, &failure)?);
        }
        node.start_renewal(failure)?;
        sessions.fill(connections.clone());
        directory.fill(Contents {
            node: NodeDescription {
                name,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                listen: address,
                started: seconds_since_epoch(),
                shards: count,
            },
            services,
            broker,
            shards: connections,
        });
        node.site.set_ready(true);
        Ok(node)
    }

    /// Where it listens, with the port's real number.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it can be reached: all addresses of this machine if it listens on all, otherwise the one. Link-local addresses of
    /// IPv6 are left out, as they are of no use without an interface.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        if !self.address.ip().is_unspecified() {
            return vec![self.address];
        }
        let is_listened_on = |ip: &IpAddr| self.address.is_ipv6() || ip.is_ipv4();
        let is_link_local = |ip: &IpAddr| match ip {
            IpAddr::V4(_) => false,
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let networks = Networks::new_with_refreshed_list();
        let mut ips: Vec<_> = networks
            .iter()
            .flat_map(|networks| networks.values())
            .flat_map(|network| network.ip_networks())
            .map(|network| network.addr)
            .filter(|ip| is_listened_on(ip) && !is_link_local(ip))
            .collect();
        // This machine first, then IPv4, which people can type.
        ips.sort_by_key(|ip| (!ip.is_loopback(), ip.is_ipv6(), *ip));
        ips.dedup();
        let port = self.address.port();
        ips.into_iter().map(|ip| (ip, port).into()).collect()
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory that holds all of the node's state.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The certificate of the authority that clients are to trust.
    #[must_use]
    pub fn authority_path(&self) -> PathBuf {
        LocalCa::certificate_path(&self.data)
    }

    /// SHA-256 of the certificate in force, which clients may pin; it is renewed every ten days.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.authority.identity().fingerprint()
    }

    /// Waits until a part of the node ends that should not, and says which. The node is of no use then, and is to be shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn failed(&self) -> &'static str {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(what) => what.unwrap_or("a thread"),
            // All threads have ended as they were told to, so none will fail.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops the node, and returns when nothing of it runs any more.
    ///
    /// New calls are refused as retryable and subscriptions end so; calls and transfers that were accepted may finish within the
    /// [grace period](Config::grace), and are then cut off. `/readyz` says meanwhile that the node takes no new work. Blocks for up to
    /// the grace period and a few seconds: call it outside of async code.
    pub fn shut_down(mut self) {
        self.site.set_ready(false);
        self.phase.send_replace(Phase::Drain);
        self.join();
    }

    /// Waits for all threads, the shards having been told to end.
    fn join(&mut self) {
        for shard in self.shards.drain(..) {
            report(shard.join(), "shard");
        }
        self.stop_renewal.cancel();
        if let Some(renewal) = self.renewal.take() {
            report(renewal.join(), "renewal");
            // Only the first time, and not for a node that never got this far.
            if let Err(error) = self.files.clean() {
                tracing::warn!(%error, "what is left of uploads stays until the next start");
            }
        }
        if let Some(host) = self.host.take() {
            host.stop();
        }
    }

    fn start_shard(
        &mut self,
        group: &ShardGroup,
        number: usize,
        tcp: TcpListener,
        config: &Config,
        router: &Router,
        failure: &watch::Sender<Option<&'static str>>,
    ) -> Result<Connections, NodeError> {
        let name = format!("remus-shard-{number}");
        let runtime = runtime(&name)?;
        let mut builder = Server::builder(router.clone())
            .identity(self.authority.live())
            .listen(self.address)
            .tcp_listener(tcp)
            .shard(group, number);
        for origin in config.allowed_origins() {
            builder = builder.allow_origin(origin);
        }
        let mut pages = self.site.router();
        if config.block_udp() {
            builder = builder.without_quic();
            pages = transports::without_udp(pages);
        }
        builder = builder.http(move |request| Box::pin(web::answer(request, pages.clone())));
        let server = {
            let _context = runtime.enter();
            builder.bind().map_err(|error| match error {
                BindError::Address { address, source } => {
                    port::explain(address, Protocol::Udp, source).into()
                }
                other => NodeError::Bind(other),
            })?
        };
        let connections = server.connections();

        let grace = config.grace();
        let (mut draining, mut ending) = (self.phase.subscribe(), self.phase.subscribe());
        let guard = Guard::new("a shard", &self.phase, failure);
        let serve = move || {
            let _guard = guard;
            runtime.block_on(async move {
                // The node going away counts as both.
                let drain =
                    async move { drop(draining.wait_for(|now| *now >= Phase::Drain).await) };
                let end = async move { drop(ending.wait_for(|now| *now == Phase::End).await) };
                tokio::select! {
                    () = server.serve_with_grace(drain, grace) => {}
                    () = end => {}
                }
            });
            // Dropping the runtime waits for files that are being read and written.
        };
        self.shards.push(spawn(name, serve)?);
        Ok(connections)
    }

    fn start_renewal(
        &mut self,
        failure: watch::Sender<Option<&'static str>>,
    ) -> Result<(), NodeError> {
        const NAME: &str = "remus-renewal";
        let runtime = runtime(NAME)?;
        let stop = self.stop_renewal.clone();
        let authority = Arc::clone(&self.authority);
        let guard = Guard::new("the renewal of the certificate", &self.phase, &failure);
        let serve = move || {
            let _guard = guard;
            runtime.block_on(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    never = renew(authority) => match never {},
                }
            });
        };
        self.renewal = Some(spawn(NAME.to_owned(), serve)?);
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::End);
        self.join();
    }
}

/// Says so when a thread ends that nobody has told to.
struct Guard {
    what: &'static str,
    phase: watch::Receiver<Phase>,
    failure: watch::Sender<Option<&'static str>>,
}

impl Guard {
    fn new(
        what: &'static str,
        phase: &watch::Sender<Phase>,
        failure: &watch::Sender<Option<&'static str>>,
    ) -> Self {
        Self {
            what,
            phase: phase.subscribe(),
            failure: failure.clone(),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if *self.phase.borrow() == Phase::Serve {
            self.failure.send_replace(Some(self.what));
        }
    }
}

fn report(joined: thread::Result<()>, what: &str) {
    if joined.is_err() {
        tracing::error!("a {what} thread has panicked");
    }
}

fn runtime(name: &str) -> Result<Runtime, NodeError> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(FILE_THREADS)
        .thread_name(format!("{name}-io"))
        .build()
        .map_err(|source| NodeError::Thread {
            name: name.to_owned(),
            source,
        })
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, NodeError> {
    thread::Builder::new()
        .name(name.clone())
        .spawn(work)
        .map_err(|source| NodeError::Thread { name, source })
}

/// The names in the certificate, beside the machine's own: those of the configuration, and the address that is listened on.
fn names(config: &Config) -> Vec<String> {
    let ip = config.listen().ip();
    let listened_on = (!ip.is_unspecified()).then(|| ip.to_string());
    config.names().iter().cloned().chain(listened_on).collect()
}

/// Renews the certificate when it is due.
async fn renew(authority: Arc<LocalCa>) -> Infallible {
    let mut checks = interval(RENEWAL_CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        checks.tick().await;
        let authority = Arc::clone(&authority);
        match tokio::task::spawn_blocking(move || authority.renew_if_due()).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(identity))) => {
                tracing::info!(fingerprint = %identity.fingerprint(), "renewed the certificate");
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot renew the certificate"),
            Err(error) => tracing::error!(%error, "renewing the certificate broke"),
        }
    }
}

fn seconds_since_epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
