//! `host.v1.Host`, and the topics `host.<name>.cpu`, `memory`, `disk` and `net`: what the machine under the node does.
//!
//! | method | takes | answers |
//! | --- | --- | --- |
//! | `Info` | `{}` | JSON [`HostInfo`] |
//! | `Processes` | JSON [`ProcessesRequest`], all of it optional | a stream of JSON [`ProcessInfo`] |
//!
//! Each topic gets one JSON object a second: [`CpuSample`], [`MemorySample`], [`DiskSample`], [`NetSample`]. Rates are over the
//! time that really passed, which each sample states. Command lines and environments of processes are not told: they hold
//! secrets.
//!
//! One thread asks the operating system and nothing else does, so that a slow disk or a long list of processes holds up no
//! connection. It ends with the node.

use std::collections::VecDeque;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::stream;
use remus::{Error, Json, Request, Response, Service};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

mod sampler;

use self::sampler::{Command, Commands, Processes, Sampler};

/// Full name of the service.
pub const HOST_SERVICE: &str = "host.v1.Host";

/// Processes that are told where the request doesn't say how many: a screen full.
const PROCESSES_DEFAULT: usize = 50;

/// Processes that one sample tells at most. Above it, hardly anything is left that is not idle.
const PROCESSES_MAX: usize = 10_000;

/// Time between two samples of a watched list, in milliseconds: CPU usage is counted in ticks of 10 ms, so that a shorter time
/// would tell noise.
const INTERVAL_MS: std::ops::RangeInclusive<u64> = 250..=60_000;
const INTERVAL_MS_DEFAULT: u64 = 1000;

/// Longest token that a host name becomes in a topic: the longest name of a machine in DNS.
const TOKEN_MAX: usize = 63;

/// What the machine is, and how it is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The machine's name.
    pub name: String,
    /// Its name in topics: `host.<topic_name>.cpu`.
    pub topic_name: String,
    /// The operating system, with its version.
    pub os: String,
    /// The kernel's version.
    pub kernel: String,
    /// The processor's architecture, such as `x86_64`.
    pub architecture: String,
    /// The processor's model.
    pub processor: String,
    /// Logical cores.
    pub cores: usize,
    /// When it started, in s since the Unix epoch.
    pub boot_time: u64,
    /// For how long it has been up, in s.
    pub uptime_s: u64,
    /// Average number of processes that ran or wanted to, over 1, 5 and 15 minutes.
    pub load_average: [f64; 3],
    /// Main memory.
    pub memory: MemorySample,
    /// File systems, as far as they are on disks.
    pub disks: Vec<Disk>,
    /// Network interfaces.
    pub networks: Vec<Network>,
}

/// What goes to `host.<name>.cpu`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuSample {
    /// When it was taken, in µs since the Unix epoch.
    pub at_us: u64,
    /// Over what time usage is counted, in ms.
    pub elapsed_ms: u64,
    /// Usage of all cores together, 0 to 100.
    pub usage_percent: f64,
    /// Usage of each core, 0 to 100.
    pub cores_percent: Vec<f64>,
    /// Average number of processes that ran or wanted to, over 1, 5 and 15 minutes.
    pub load_average: [f64; 3],
}

/// What goes to `host.<name>.memory`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySample {
    /// When it was taken, in µs since the Unix epoch.
    pub at_us: u64,
    /// All there is.
    pub total_bytes: u64,
    /// In use by programs.
    pub used_bytes: u64,
    /// What programs could still get, with what caches would give back.
    pub available_bytes: u64,
    /// Swap there is.
    pub swap_total_bytes: u64,
    /// Swap in use.
    pub swap_used_bytes: u64,
}

/// What goes to `host.<name>.disk`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSample {
    /// When it was taken, in µs since the Unix epoch.
    pub at_us: u64,
    /// Over what time rates are counted, in ms.
    pub elapsed_ms: u64,
    /// The disks, by mount point; at most 64.
    pub disks: Vec<Disk>,
}

/// One file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: String,
    /// Its device.
    pub device: String,
    /// Its type, such as `ext4`.
    pub file_system: String,
    /// Its size.
    pub total_bytes: u64,
    /// What is free for ordinary users.
    pub available_bytes: u64,
    /// Bytes read from the device per second.
    pub read_bytes_per_s: u64,
    /// Bytes written to the device per second.
    pub written_bytes_per_s: u64,
}

/// What goes to `host.<name>.net`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSample {
    /// When it was taken, in µs since the Unix epoch.
    pub at_us: u64,
    /// Over what time rates are counted, in ms.
    pub elapsed_ms: u64,
    /// The interfaces, by name; at most 64.
    pub networks: Vec<Network>,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name, such as `eth0`.
    pub name: String,
    /// Bytes received since it came up.
    pub received_bytes: u64,
    /// Bytes sent since it came up.
    pub transmitted_bytes: u64,
    /// Bytes received per second.
    pub received_bytes_per_s: u64,
    /// Bytes sent per second.
    pub transmitted_bytes_per_s: u64,
    /// Packets that could not be received or sent, since it came up.
    pub errors: u64,
}

/// What list of processes is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessesRequest {
    /// How many; default 50, at most 10,000.
    pub limit: Option<usize>,
    /// Which ones come first.
    pub sort: ProcessSort,
    /// Whether to send a new list again and again, until the caller has enough.
    pub watch: bool,
    /// Time between two lists, in ms; default 1,000, range 250 to 60,000.
    pub interval_ms: Option<u64>,
}

/// The order of a list of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessSort {
    /// The ones that use most CPU time come first.
    #[default]
    Cpu,
    /// The ones that use most memory come first.
    Memory,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Which list of this stream it belongs to, from 1.
    pub list: u64,
    /// Its ID.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// CPU time it used since the sample before; 100 is all of one core.
    pub cpu_percent: f64,
    /// Memory it holds.
    pub memory_bytes: u64,
    /// When it started, in s since the Unix epoch.
    pub started: u64,
    /// Whose it is: the user's name, or their ID where they have no name.
    pub user: Option<String>,
}

/// The machine, as seen by the node. Cheap to clone; all share one thread.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    commands: Commands,
    name: String,
}

/// The thread behind a [`Host`].
#[derive(Debug)]
pub(crate) struct HostThread {
    commands: Commands,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Starts the thread, which gives each sample, as JSON, to `publish`, with its topic.
    pub(crate) fn start(
        publish: impl FnMut(&str, Bytes) + Send + 'static,
    ) -> io::Result<(Self, HostThread)> {
        let name = sysinfo::System::host_name().unwrap_or_else(|_| "localhost".to_owned());
        let topic_name = topic_token(&name);
        let (commands, receiver) = sampler::channel();
        let mut sampler = Sampler::new(&topic_name, publish).map_err(io::Error::other)?;
        let thread = thread::Builder::new()
            .name("remus-host".to_owned())
            .spawn(move || sampler.run(&receiver))?;
        let host = Self {
            commands: commands.clone(),
            name,
        };
        let thread = HostThread {
            commands,
            thread: Some(thread),
        };
        Ok((host, thread))
    }

    /// The machine's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The service.
    pub(crate) fn service(&self) -> Service {
        let (info, processes) = (self.clone(), self.clone());
        Service::new(HOST_SERVICE)
            .describe("What the machine under the node is and does.")
            .unary("Info", Json, move |_: Request<Option<Empty>>| {
                let host = info.clone();
                async move { host.ask(Command::Info).await.map(Response::new) }
            })
            .server_stream(
                "Processes",
                Json,
                move |request: Request<Option<ProcessesRequest>>| {
                    let host = processes.clone();
                    async move {
                        let wanted = request.into_inner().unwrap_or_default();
                        Ok(Response::new(host.processes(wanted)?))
                    }
                },
            )
    }

    fn processes(
        self,
        wanted: ProcessesRequest,
    ) -> Result<impl Stream<Item = Result<ProcessInfo, Error>> + Send + 'static, Error> {
        let limit = wanted.limit.unwrap_or(PROCESSES_DEFAULT);
        if !(1..=PROCESSES_MAX).contains(&limit) {
            return Err(Error::invalid_argument(format!(
                "`limit` must be from 1 to {PROCESSES_MAX}, not {limit}"
            )));
        }
        let interval_ms = wanted.interval_ms.unwrap_or(INTERVAL_MS_DEFAULT);
        if !INTERVAL_MS.contains(&interval_ms) {
            return Err(Error::invalid_argument(format!(
                "`interval_ms` must be from {} to {}, not {interval_ms}",
                INTERVAL_MS.start(),
                INTERVAL_MS.end()
            )));
        }
        let watched = Watched {
            host: self,
            limit,
            sort: wanted.sort,
            interval: Duration::from_millis(interval_ms),
            lists: if wanted.watch { u64::MAX } else { 1 },
            list: 0,
            due: Instant::now(),
            ready: VecDeque::new(),
        };
        Ok(stream::try_unfold(watched, Watched::next))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (sender, answer) = oneshot::channel();
        self.commands.send(command(sender))?;
        answer
            .await
            .map_err(|_| Error::unavailable("the node is shutting down"))
    }
}

/// A request that asks for nothing in particular.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// A stream of lists.
struct Watched {
    host: Host,
    limit: usize,
    sort: ProcessSort,
    interval: Duration,
    /// How many are wanted.
    lists: u64,
    /// Which one is being sent.
    list: u64,
    /// When the next one may be taken: a list that its reader took long to read is not made up for.
    due: Instant,
    ready: VecDeque<ProcessInfo>,
}

impl Watched {
    async fn next(mut self) -> Result<Option<(ProcessInfo, Self)>, Error> {
        loop {
            if let Some(process) = self.ready.pop_front() {
                return Ok(Some((process, self)));
            }
            if self.list >= self.lists {
                return Ok(None);
            }
            sleep_until(self.due).await;
            self.due = Instant::now() + self.interval;
            let all: Processes = self.host.ask(Command::Processes).await?;
            self.list = self.list.saturating_add(1);
            self.ready = top(&all, self.sort, self.limit)
                .map(|process| ProcessInfo {
                    list: self.list,
                    ..process.clone()
                })
                .collect();
        }
    }
}

/// The first `limit` of `processes` in the order of `sort`.
fn top(
    processes: &[ProcessInfo],
    sort: ProcessSort,
    limit: usize,
) -> impl Iterator<Item = &ProcessInfo> {
    let mut sorted: Vec<_> = processes.iter().collect();
    sorted.sort_by(|a, b| {
        let by_memory = b.memory_bytes.cmp(&a.memory_bytes);
        let by_cpu = b.cpu_percent.total_cmp(&a.cpu_percent);
        match sort {
            ProcessSort::Cpu => by_cpu.then(by_memory),
            ProcessSort::Memory => by_memory.then(by_cpu),
        }
        .then(a.pid.cmp(&b.pid))
    });
    sorted.into_iter().take(limit)
}

impl HostThread {
    /// Ends the thread and waits for it.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.commands.stop();
        if thread.join().is_err() {
            tracing::error!("the thread that watches the host has panicked");
        }
    }
}

impl Drop for HostThread {
    fn drop(&mut self) {
        self.end();
    }
}

/// A host name as one token of a topic: dots separate tokens there, and `*` and `>` mean others.
fn topic_token(name: &str) -> String {
    let token: String = name
        .chars()
        .map(|letter| match letter {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => letter.to_ascii_lowercase(),
            _ => '-',
        })
        .take(TOKEN_MAX)
        .collect();
    if token.is_empty() {
        "localhost".to_owned()
    } else {
        token
    }
}

#[cfg(test)]
mod tests;
