//! `remus up`: runs a node until it is told to stop.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use remus::ErrorCode;
use remus_node::{Config, ConfigError, DataError, Node, NodeError, PortError, Settings};
use serde::Serialize;
use tokio::task::{JoinError, spawn_blocking};

use crate::cli::Up;
use crate::failure::{Failure, Outcome, Stop, code_of};
use crate::output::{Output, json_line};

pub(crate) async fn run(command: Up, data: Option<PathBuf>, output: &Output) -> Outcome {
    let flags = Settings {
        data,
        listen: command.listen,
        block_udp: command.block_udp.then_some(true),
        ..Settings::default()
    };
    let config = Config::load(command.config.as_deref(), flags).map_err(misconfigured)?;
    // Before the node is there, so that a signal during its start is not lost.
    let mut signals = Signals::new()?;
    let node = spawn_blocking(move || Node::start(&config))
        .await
        .map_err(crashed)?
        .map_err(not_started)?;
    match announce(&node, output) {
        // A node outlives whoever read its first lines.
        Ok(()) | Err(Stop::PipeClosed) => {}
        Err(stop) => return Err(stop),
    }
    let failed = tokio::select! {
        () = signals.next() => None,
        what = node.failed() => Some(what),
    };
    match failed {
        None => output.note("stopping when accepted calls have finished; once more: at once"),
        Some(what) => output.warn(&format!("{what} has ended, so the node stops")),
    }
    let stopping = spawn_blocking(move || node.shut_down());
    tokio::select! {
        stopped = stopping => stopped.map_err(crashed)?,
        // The process ends, and with it everything that is left.
        () = signals.next() => output.warn("stopped at once; open calls are cut off"),
    }
    match failed {
        None => Ok(()),
        Some(what) => Err(Failure::new(
            ErrorCode::INTERNAL,
            format!("the node failed: {what} has ended"),
        )
        .hint("the log above may say why; --log debug says more")
        .into()),
    }
}

/// What the node says of itself when it runs.
#[derive(Serialize)]
struct Announced<'a> {
    name: &'a str,
    version: &'static str,
    url: String,
    dashboard: String,
    address: SocketAddr,
    data: &'a Path,
    certificate_sha256: String,
    ca: PathBuf,
}

fn announce(node: &Node, output: &Output) -> Outcome {
    let announced = Announced {
        name: node.name(),
        version: env!("CARGO_PKG_VERSION"),
        dashboard: dashboard(node.address()),
        url: url(node.address()),
        address: node.address(),
        data: node.data(),
        certificate_sha256: node.fingerprint().to_string(),
        ca: node.authority_path(),
    };
    if output.is_json() {
        let mut line = json_line(&announced)?;
        line.push('\n');
        return output.data(line.as_bytes());
    }
    let (strong, faint) = (output.paint.strong, output.paint.faint);
    let mut text = format!(
        "{strong}remus {}{strong:#}, node {}\n",
        announced.version, announced.name
    );
    let default_data = remus_node::data_directory(None).ok();
    for (name, value) in [
        ("url", announced.url.clone()),
        ("dashboard", announced.dashboard.clone()),
        ("data", announced.data.display().to_string()),
        (
            "certificate",
            format!("SHA-256 {}", announced.certificate_sha256),
        ),
        (
            "try",
            suggestion(&announced.url, announced.data, default_data.as_deref()),
        ),
    ] {
        let _ = writeln!(text, "  {faint}{name:<11}{faint:#}  {value}");
    }
    output.data(text.as_bytes())
}

/// Where clients on this machine find it.
fn url(address: SocketAddr) -> String {
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_loopback() {
        format!("remus://localhost:{}", address.port())
    } else {
        format!("remus://{address}")
    }
}

/// Where browsers on this machine find its dashboard. A node that has only IPv4 is named by its address: for WebTransport,
/// Chromium takes the first address of a name, which is ::1 for localhost, and no other.
fn dashboard(address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => format!("https://localhost:{}/", address.port()),
        IpAddr::V4(ip) if ip.is_unspecified() => format!("https://127.0.0.1:{}/", address.port()),
        _ => format!("https://{address}/"),
    }
}

/// A command that works as it stands.
fn suggestion(url: &str, data: &Path, default_data: Option<&Path>) -> String {
    const DEFAULT_URL: &str = "remus://localhost:4433";
    let mut command = String::from("remus call host.v1.Host/Info");
    if url != DEFAULT_URL {
        let _ = write!(command, " --url {url}");
    }
    if Some(data) != default_data {
        let _ = write!(command, " --data {}", quoted(&data.display().to_string()));
    }
    command
}

/// `text` as a shell takes it for one word.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn misconfigured(error: ConfigError) -> Failure {
    let code = match &error {
        ConfigError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            ErrorCode::NOT_FOUND
        }
        _ => ErrorCode::INVALID_ARGUMENT,
    };
    Failure::new(code, error.to_string())
}

fn not_started(error: NodeError) -> Failure {
    let code = match &error {
        NodeError::Port(PortError::Taken { .. }) | NodeError::Data(DataError::InUse { .. }) => {
            ErrorCode::FAILED_PRECONDITION
        }
        NodeError::Port(PortError::Forbidden { .. }) => ErrorCode::PERMISSION_DENIED,
        NodeError::Port(PortError::NotLocal { .. }) => ErrorCode::INVALID_ARGUMENT,
        NodeError::Data(DataError::Io { source, .. }) => code_of(source),
        _ => ErrorCode::UNKNOWN,
    };
    Failure::new(code, error.to_string())
}

fn crashed(error: JoinError) -> Failure {
    Failure::new(ErrorCode::INTERNAL, format!("the node crashed: {error}"))
}

/// What tells the node to stop.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Outcome<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let failed = |error: io::Error| {
                Failure::new(
                    ErrorCode::UNKNOWN,
                    format!("cannot listen for signals: {error}"),
                )
            };
            Ok(Self {
                interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
                terminate: signal(SignalKind::terminate()).map_err(failed)?,
            })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        super::interrupt().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_one_that_clients_here_can_use() {
        let url = |text: &str| url(text.parse().unwrap());
        assert_eq!(url("[::]:4433"), "remus://localhost:4433");
        assert_eq!(url("0.0.0.0:1"), "remus://localhost:1");
        assert_eq!(url("127.0.0.1:1"), "remus://localhost:1");
        assert_eq!(url("10.0.0.1:1"), "remus://10.0.0.1:1");
        assert_eq!(url("[2001:db8::1]:1"), "remus://[2001:db8::1]:1");
    }

    #[test]
    fn the_dashboard_is_where_browsers_here_find_it() {
        let dashboard = |text: &str| dashboard(text.parse().unwrap());
        assert_eq!(dashboard("[::]:4433"), "https://localhost:4433/");
        assert_eq!(dashboard("0.0.0.0:1"), "https://127.0.0.1:1/");
        assert_eq!(dashboard("127.0.0.1:1"), "https://127.0.0.1:1/");
        assert_eq!(dashboard("[::1]:1"), "https://[::1]:1/");
    }

    #[test]
    fn the_suggestion_names_what_is_not_the_default() {
        let default = Path::new("/home/u/.local/share/remus");
        assert_eq!(
            suggestion("remus://localhost:4433", default, Some(default)),
            "remus call host.v1.Host/Info"
        );
        assert_eq!(
            suggestion(
                "remus://localhost:5",
                Path::new("/tmp/a b's"),
                Some(default)
            ),
            "remus call host.v1.Host/Info --url remus://localhost:5 --data '/tmp/a b'\\''s'"
        );
    }
}
