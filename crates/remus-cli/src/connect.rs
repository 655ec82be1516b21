//! To the node: whom to trust, how to reach it, and what to say when that fails.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use remus::{Carrier, Client, ConnectionStatus, ErrorCode, LocalCa, SessionConfig, Trust};
use remus_transport::webtransport::{CONNECT_TIMEOUT, Target};
use tokio::net::{TcpStream, UdpSocket};

use crate::cli::Connection;
use crate::failure::{Failure, Outcome};
use crate::output::Output;

/// How often each address is asked whether anything listens there: a datagram may be lost.
const PROBES: u32 = 3;

/// Pause between two of these questions.
const PROBE_PAUSE: Duration = Duration::from_millis(200);

/// How long the connection is given to close when the work is done.
const CLOSING_MAX: Duration = Duration::from_millis(500);

/// How long the last packets are given to leave this machine: a turn of the runtime, and many times that.
const LAST_PACKETS: Duration = Duration::from_millis(5);

/// Addresses of one host name that are asked.
const ADDRESSES_MAX: usize = 8;

/// Where the roots come from, for what to try when they don't fit.
#[derive(Clone, Debug)]
enum Roots {
    Pinned,
    Given(PathBuf),
    Local(PathBuf),
}

/// A node, and the way to it.
pub(crate) struct Node {
    pub(crate) client: Client,
    target: Target,
    carriers: Vec<Carrier>,
    roots: Roots,
    timeout: Option<Duration>,
    deadline: Option<Instant>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// The node that the options name. Nothing is sent yet.
    pub(crate) fn of(options: &Connection) -> Outcome<Self> {
        Self::at(&options.url, options)
    }

    /// The node at `url`, with everything else as the options say.
    pub(crate) fn at(url: &str, options: &Connection) -> Outcome<Self> {
        let target = Target::parse(url).map_err(|error| {
            Failure::usage(error.to_string()).hint("a URL such as remus://localhost:4433")
        })?;
        let (trust, roots) = trust(options, &target)?;
        let mut carriers = Vec::new();
        for carrier in options.carrier.iter().map(|carrier| carrier.named()) {
            if !carriers.contains(&carrier) {
                carriers.push(carrier);
            }
        }
        if carriers.is_empty() {
            carriers.extend(Carrier::ALL);
        }
        let mut builder = Client::builder(url)
            .trust(trust)
            .carriers(carriers.iter().copied());
        if let Some(timeout) = options.timeout {
            builder = builder
                .connect_timeout(timeout.min(CONNECT_TIMEOUT))
                .timeout(timeout);
        }
        let client = builder.lazy()?;
        // A time that the clock cannot hold is no limit.
        let deadline = options
            .timeout
            .and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(Self {
            client,
            target,
            carriers,
            roots,
            timeout: options.timeout,
            deadline,
        })
    }

    /// Host and port.
    pub(crate) fn name(&self) -> String {
        self.target.authority()
    }

    /// What is left of `--timeout`, if it was given.
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        Some(left.max(Duration::from_millis(1)))
    }

    /// Does `work` within what is left of `--timeout`.
    pub(crate) async fn in_time<T>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        let (Some(left), Some(timeout)) = (self.left(), self.timeout) else {
            return work.await;
        };
        match tokio::time::timeout(left, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(late(timeout).into()),
        }
    }

    /// Connects, and gives up at once where nothing listens.
    pub(crate) async fn connect(&self) -> Result<remus::Connection, Failure> {
        let ports = Ports::of(&self.carriers);
        tokio::select! {
            connected = self.client.connection() => {
                connected.map_err(|error| self.unreachable(&error))
            }
            () = nobody_listens(&self.target, ports) => Err(self.silent(ports.refused())),
        }
    }

    /// The same, and from now on a person hears what becomes of the connection: notes of lost carriers, and with `--verbose` of
    /// each carrier.
    pub(crate) async fn connect_and_tell(
        &self,
        output: &Output,
    ) -> Result<remus::Connection, Failure> {
        let connection = self.connect().await?;
        let (name, followed, output) = (self.name(), connection.clone(), output.clone());
        // Ends with the connection, or with the command.
        tokio::spawn(async move { tell(&name, &followed, &output).await });
        Ok(connection)
    }

    /// Says goodbye, so that the node need not wait for the silence to become long, and gives it up after [`CLOSING_MAX`].
    pub(crate) async fn close(&self) {
        let _ = tokio::time::timeout(CLOSING_MAX, self.client.close()).await;
    }

    /// The same for a command that used `connection` and no other, without staying to answer what the node may send again
    /// because an acknowledgement was lost: on a good path that takes longer than most commands.
    pub(crate) async fn leave(&self, connection: &remus::Connection) {
        if matches!(connection.status(), ConnectionStatus::Suspended { .. }) {
            return; // nobody would hear it
        }
        let over = async {
            connection.shut_down(ErrorCode::OK, "the client is done", "", CLOSING_MAX);
            connection.finished().await;
        };
        if tokio::time::timeout(CLOSING_MAX, over).await.is_ok() {
            let _ = tokio::time::timeout(LAST_PACKETS, self.client.close()).await;
        }
    }

    fn unreachable(&self, error: &remus::Error) -> Failure {
        match error.code() {
            ErrorCode::UNAUTHENTICATED => Failure::new(
                ErrorCode::UNAUTHENTICATED,
                format!(
                    "the certificate of {} is not trusted: {}",
                    self.name(),
                    error.message()
                ),
            )
            .hint(match &self.roots {
                Roots::Pinned => {
                    "compare --pin with the digest that `remus up` prints (it changes every ten days, with the certificate), or \
                     trust the node's authority with --ca"
                        .to_owned()
                }
                Roots::Given(path) => format!(
                    "{} does not hold the authority of that node: take <data>/tls/ca.pem from it, or use --pin",
                    path.display()
                ),
                Roots::Local(path) => format!(
                    "the node keeps its data elsewhere than {}: name its directory with --data, its authority with --ca, or its \
                     certificate's digest with --pin",
                    path.display()
                ),
            }),
            ErrorCode::UNAVAILABLE | ErrorCode::DEADLINE_EXCEEDED => self.silent(error.message()),
            _ => Failure::from(error.clone()),
        }
    }

    fn silent(&self, why: &str) -> Failure {
        let name = self.name();
        let hint = if is_local(&self.target) {
            "start one with `remus up`, or name another with --url"
        } else {
            "check the name and that UDP or TCP reaches it, or name another node with --url"
        };
        Failure::new(
            ErrorCode::UNAVAILABLE,
            format!("no node answers at {name}: {why}"),
        )
        .hint(hint)
    }
}

fn is_local(target: &Target) -> bool {
    target.host().eq_ignore_ascii_case("localhost")
        || target
            .host()
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whose certificates are taken: `--pin`, `--ca`, or the authority of the node on this machine.
fn trust(options: &Connection, target: &Target) -> Outcome<(Trust, Roots)> {
    if let Some(pin) = options.pin {
        return Ok((Trust::pinned(pin), Roots::Pinned));
    }
    if let Some(path) = &options.ca {
        let trust = Trust::from_pem_file(path).map_err(|error| {
            let code = if path.exists() {
                ErrorCode::INVALID_ARGUMENT
            } else {
                ErrorCode::NOT_FOUND
            };
            Failure::new(code, error.to_string())
                .hint("--ca takes a PEM file, such as <data>/tls/ca.pem of the node")
        })?;
        return Ok((trust, Roots::Given(path.clone())));
    }
    let data = remus_node::data_directory(options.data.as_deref())
        .map_err(|error| Failure::usage(error.to_string()))?;
    let path = LocalCa::certificate_path(&data);
    match Trust::from_pem_file(&path) {
        Ok(trust) => Ok((trust, Roots::Local(data))),
        Err(error) if path.exists() => {
            Err(Failure::new(ErrorCode::UNAUTHENTICATED, error.to_string()).into())
        }
        Err(_) => Err(Failure::new(
            ErrorCode::UNAUTHENTICATED,
            format!(
                "there is nothing to know {} by: {} does not exist",
                target.authority(),
                path.display()
            ),
        )
        .hint(if is_local(target) {
            "start a node with `remus up`, which makes it; or name the node's directory with --data, its authority with --ca, or \
             its certificate's digest with --pin"
        } else {
            "name the node's authority with --ca (its <data>/tls/ca.pem), or its certificate's digest with --pin"
        })
        .into()),
    }
}

/// What `--timeout` has ended.
pub(crate) fn late(timeout: Duration) -> Failure {
    Failure::new(
        ErrorCode::DEADLINE_EXCEEDED,
        format!("not done within the {timeout:?} of --timeout"),
    )
    .hint("a longer --timeout, or none")
}

/// Says what becomes of `connection`, until it ends.
async fn tell(name: &str, connection: &remus::Connection, output: &Output) {
    let mut status = connection.watch_status();
    let mut carrier = connection.carrier();
    let mut lost: Option<Instant> = None;
    output.detail(&format!("connected to {name} over {carrier}"));
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        match now {
            ConnectionStatus::Suspended { reason, .. } if lost.is_none() => {
                lost = Some(Instant::now());
                // The node may keep the session for a shorter time than this; it does not say.
                let window = SessionConfig::client().resume_window.as_secs();
                output.note(&format!(
                    "carrier lost ({carrier}: {reason}): looking for another one, up to {window} s"
                ));
            }
            ConnectionStatus::Active => {
                let before = std::mem::replace(&mut carrier, connection.carrier());
                if let Some(since) = lost.take() {
                    let gap = since.elapsed().as_millis();
                    output.note(&format!(
                        "goes on over {carrier} after {gap} ms, with nothing lost"
                    ));
                } else if carrier != before {
                    output.detail(&format!("goes on over {carrier} instead of {before}"));
                }
            }
            ConnectionStatus::Closed(_) => return,
            _ => {}
        }
    }
}

/// What has to refuse before a command gives up.
#[derive(Clone, Copy)]
struct Ports {
    udp: bool,
    tcp: bool,
}

impl Ports {
    fn of(carriers: &[Carrier]) -> Self {
        let any = |wanted: fn(&Carrier) -> bool| carriers.iter().any(wanted);
        Self {
            // Long-polling tries HTTP/3 first.
            udp: any(|carrier| matches!(carrier, Carrier::WebTransport | Carrier::LongPoll)),
            tcp: any(|carrier| *carrier != Carrier::WebTransport),
        }
    }

    fn refused(self) -> &'static str {
        match (self.udp, self.tcp) {
            (true, false) => "nothing listens on that port, which --carrier limits to UDP",
            (false, true) => "nothing listens on that port, which --carrier limits to TCP",
            _ => "nothing listens on that port",
        }
    }
}

/// Returns when the operating system has said for each address of the host that nothing listens on the port, and never otherwise.
///
/// QUIC cannot tell this from silence and would wait its whole time: an answer of that kind may be forged. Here it ends a command
/// that a person waits for, so the worst that a forger achieves is another try. A node may leave UDP alone, so TCP is asked as well.
async fn nobody_listens(target: &Target, ports: Ports) {
    let Ok(addresses) = tokio::net::lookup_host((target.host(), target.port())).await else {
        return std::future::pending().await;
    };
    let mut asked: u32 = 0;
    for address in addresses.take(ADDRESSES_MAX) {
        if (ports.udp && !refuses(address).await) || (ports.tcp && !refuses_tcp(address).await) {
            return std::future::pending().await;
        }
        asked = asked.saturating_add(1);
    }
    if asked == 0 {
        std::future::pending().await
    }
}

async fn refuses(address: SocketAddr) -> bool {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let Ok(socket) = UdpSocket::bind(any).await else {
        return true; // this machine cannot send to such an address at all
    };
    if socket.connect(address).await.is_err() {
        return true;
    }
    for _ in 0..PROBES {
        // No QUIC packet is a zero, so a node drops it without an answer.
        if socket.send(&[0]).await.is_err_and(is_refusal) {
            return true;
        }
        let mut answer = [0; 1];
        match tokio::time::timeout(PROBE_PAUSE, socket.recv(&mut answer)).await {
            Ok(Err(error)) => return is_refusal(error),
            Ok(Ok(_)) => return false,
            Err(_) => {}
        }
    }
    false
}

async fn refuses_tcp(address: SocketAddr) -> bool {
    let patience = PROBE_PAUSE.saturating_mul(PROBES);
    let connecting = tokio::time::timeout(patience, TcpStream::connect(address));
    connecting
        .await
        .is_ok_and(|connected| connected.is_err_and(is_refusal))
}

fn is_refusal(error: std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ConnectionRefused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    }

    #[test]
    fn a_port_that_nobody_has_is_told_from_one_that_is_silent() {
        run(async {
            let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = silent.local_addr().unwrap();
            assert!(!refuses(address).await);
            drop(silent);
            assert!(refuses(address).await);

            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            assert!(!refuses_tcp(address).await);
            drop(listener);
            assert!(refuses_tcp(address).await);
        });
    }

    #[test]
    fn loopback_is_local() {
        for (url, local) in [
            ("remus://localhost", true),
            ("remus://LOCALHOST:1", true),
            ("remus://127.1.2.3", true),
            ("remus://[::1]:1", true),
            ("remus://localhost.example.org", false),
            ("remus://10.0.0.1", false),
        ] {
            assert_eq!(is_local(&Target::parse(url).unwrap()), local, "{url}");
        }
    }
}
