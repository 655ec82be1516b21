//! NATS: nats-server with TLS between two clients of async-nats.
//!
//! The server process starts a responder and becomes nats-server, whose log goes to the responder: it learns the address from
//! it, subscribes to the calls, says `ready` for both, and ends with the log. Calls go from the driver through the server to
//! the responder, a process of its own, and back; the CPU of all three counts.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::Target;
use crate::case::Runtime;
use crate::load::{Dial, Echo, Publisher, Subscriber, Topics};
use crate::process::ready;
use crate::tls::{Files, KeyExchange, SERVER_NAME};
use crate::{Failure, Result};

/// Where calls and messages are sent.
const ECHO: &str = "bench.echo";
const TOPIC: &str = "bench.topic";

/// Connections that the server takes, above what the idle case opens. Its default is 65,536, less than the case may be asked for.
const CONNECTIONS_MAX: usize = 1_000_000;

/// Messages that a subscriber's client holds; more would be dropped. Four times what the load lets the publisher be ahead.
const SUBSCRIPTION_MAX: usize = 65_536;

/// What `bench/setup` installs, below the target directory.
const INSTALLED: &str = "tools/nats-server-2.12.8/nats-server";

/// The server's program: what `bench/setup` installed, or else what is on the `PATH`.
fn program() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(target.join(INSTALLED))
        .chain(std::env::split_paths(&path).map(|directory| directory.join("nats-server")))
        .find(|program| program.is_file())
}

/// Why there is no server here.
pub(crate) fn missing() -> Option<String> {
    program()
        .is_none()
        .then(|| "there is no nats-server here; bench/setup installs it".to_owned())
}

// ---- the server ------------------------------------------------------------------------------------

/// Becomes nats-server. Returns only if that fails.
pub(crate) fn serve(tls: &Files, runtime: Runtime) -> Result<()> {
    let program = program().ok_or("there is no nats-server here")?;
    let quoted = |path: PathBuf| format!("{:?}", path.to_string_lossy());
    // Port -1 is any free one. The handshake comes first, before the server has spoken: a round trip less.
    let config = format!(
        "listen: \"127.0.0.1:-1\"\n\
         max_connections: {CONNECTIONS_MAX}\n\
         tls {{ cert_file: {}, key_file: {}, handshake_first: true }}\n",
        quoted(tls.certificate()),
        quoted(tls.key()),
    );
    let file = tls.path().join("nats.conf");
    std::fs::write(&file, config)?;
    let mut responder = Command::new(std::env::current_exe()?)
        .arg("nats-responder")
        .arg("--tls")
        .arg(tls.path())
        .args(["--runtime", runtime.argument()])
        .stdin(Stdio::piped())
        .spawn()?;
    let log = responder.stdin.take().ok_or("the responder has no stdin")?;
    Err(Command::new(program)
        .arg("--config")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .exec()
        .into())
}

/// Answers calls until the server, whose log is on stdin, ends.
pub(crate) async fn respond(tls: &Files) -> Result<()> {
    let mut log = BufReader::new(tokio::io::stdin()).lines();
    let mut address = None;
    while let Some(line) = log.next_line().await? {
        if let Some((_, text)) = line.split_once("Listening for client connections on ") {
            address = Some(text.parse::<SocketAddr>()?);
        } else if line.contains("Server is ready") {
            let address = address.ok_or("the server is ready but did not say where")?;
            let client = Dialler::new(tls, address)?.connect().await?;
            let mut calls = client.subscribe(ECHO).await?;
            // Its answer comes behind the subscription.
            client.flush().await?;
            tokio::spawn(async move {
                while let Some(call) = calls.next().await {
                    if let Some(reply) = call.reply {
                        client.publish(reply, call.payload).await?;
                    }
                }
                Ok::<_, Failure>(())
            });
            ready(address);
            std::io::stdout().flush()?;
        } else if line.contains("[ERR]") || line.contains("[FTL]") {
            eprintln!("{line}");
        }
    }
    Ok(())
}

// ---- the client ------------------------------------------------------------------------------------

pub(crate) struct Dialler {
    options: ConnectOptions,
    url: String,
}

impl Dialler {
    fn new(tls: &Files, address: SocketAddr) -> Result<Self> {
        let config = tls.client_config(KeyExchange::Classical, &[])?;
        Ok(Self {
            options: ConnectOptions::new()
                .tls_client_config((*config).clone())
                .require_tls(true)
                .tls_first()
                .subscription_capacity(SUBSCRIPTION_MAX),
            url: format!("tls://{SERVER_NAME}:{}", address.port()),
        })
    }
}

impl Dial for Dialler {
    type Client = Client;

    fn prepare(target: &Target) -> Result<Self> {
        Self::new(&target.tls, target.address)
    }

    async fn connect(&self) -> Result<Client> {
        Ok(self.options.clone().connect(&self.url).await?)
    }
}

impl Echo for Client {
    async fn call(&self, payload: Bytes) -> Result<Bytes> {
        Ok(self.request(ECHO, payload).await?.payload)
    }
}

impl Topics for Dialler {
    type Publisher = Client;
    type Subscriber = Subscription;

    fn prepare(target: &Target) -> Result<Self> {
        Self::new(&target.tls, target.address)
    }

    async fn publisher(&self) -> Result<Client> {
        self.connect().await
    }

    async fn subscriber(&self) -> Result<Subscription> {
        let client = self.connect().await?;
        let messages = client.subscribe(TOPIC).await?;
        client.flush().await?;
        Ok(Subscription {
            messages,
            _client: client,
        })
    }
}

impl Publisher for Client {
    async fn publish(&mut self, payload: Bytes) -> Result<()> {
        Ok(Self::publish(self, TOPIC, payload).await?)
    }
}

pub(crate) struct Subscription {
    messages: async_nats::Subscriber,
    /// The connection ends with its last client.
    _client: Client,
}

impl Subscriber for Subscription {
    async fn next(&mut self) -> Result<Bytes> {
        let message = self.messages.next().await;
        Ok(message.ok_or("the subscription ended")?.payload)
    }
}
