//! The thread that asks the operating system, once a second and when somebody wants to know.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use remus::{Error, ErrorCode};
use serde::Serialize;
use sysinfo::{
    Disks, MINIMUM_CPU_UPDATE_INTERVAL, Networks, ProcessRefreshKind, ProcessesToUpdate, System,
    UpdateKind, Users,
};
use tokio::sync::oneshot;

use super::{CpuSample, Disk, DiskSample, HostInfo, MemorySample, NetSample, Network, ProcessInfo};

/// Time between two samples of what goes to topics.
const PERIOD: Duration = Duration::from_secs(1);

/// CPU usage of a process is counted from its last sample, unless that is older than this: then it would say little of now.
const BASELINE_MAX: Duration = Duration::from_secs(10);

/// Users' names are looked up anew after this, where a process belongs to somebody unknown.
const USERS_MAX: Duration = Duration::from_secs(60);

/// Questions that wait for the thread, which answers within a second. Beyond it, they are refused as retryable.
const QUESTIONS_MAX: usize = 1024;

/// Disks, and network interfaces, in a sample: a machine with thousands of mounts or of virtual interfaces keeps its samples
/// below 16 KiB, and so cheap to publish.
const DEVICES_MAX: usize = 64;

/// All processes at one time. Shared by all who asked at that time.
pub(super) type Processes = Arc<[ProcessInfo]>;

/// A question to the thread.
pub(super) enum Command {
    Info(oneshot::Sender<HostInfo>),
    Processes(oneshot::Sender<Processes>),
    Stop,
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub(super) struct Commands(SyncSender<Command>);

pub(super) fn channel() -> (Commands, Receiver<Command>) {
    let (sender, receiver) = sync_channel(QUESTIONS_MAX);
    (Commands(sender), receiver)
}

impl Commands {
    /// Asks, without waiting.
    pub(super) fn send(&self, command: Command) -> Result<(), Error> {
        self.0.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => Error::new(
                ErrorCode::TOO_MANY_CALLS,
                "too many questions about this host wait for an answer",
            )
            .with_retry_after(PERIOD),
            TrySendError::Disconnected(_) => Error::unavailable("the node is shutting down"),
        })
    }

    /// Ends the thread, after what it was asked before.
    pub(super) fn stop(&self) {
        // It fails only where the thread has ended already.
        let _ = self.0.send(Command::Stop);
    }
}

pub(super) struct Sampler<P> {
    publish: P,
    host: HostInfo,
    system: System,
    disks: Disks,
    networks: Networks,
    /// When the counters behind rates were read last.
    read_at: Instant,
    users: Option<(Users, Instant)>,
    /// When processes were sampled last.
    baseline: Option<Instant>,
    waiting: Vec<oneshot::Sender<Processes>>,
}

impl<P: FnMut(&str, Bytes)> Sampler<P> {
    /// Reads all counters for the first time.
    pub(super) fn new(topic_name: &str, publish: P) -> Result<Self, sysinfo::Error> {
        let mut system = System::new()?;
        system.refresh_cpu_all();
        system.refresh_memory();
        let mut sampler = Self {
            publish,
            host: describe_host(topic_name, &system),
            system,
            disks: Disks::new_with_refreshed_list()?,
            networks: Networks::new_with_refreshed_list()?,
            read_at: Instant::now(),
            users: None,
            baseline: None,
            waiting: Vec::new(),
        };
        sampler.update_host(Duration::ZERO);
        Ok(sampler)
    }

    /// Works until it is told to stop, or nobody is left who could ask.
    pub(super) fn run(&mut self, commands: &Receiver<Command>) {
        let mut due = self.read_at + PERIOD;
        loop {
            let next = self
                .processes_due()
                .map_or(due, |processes| processes.min(due));
            match commands.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Command::Info(answer)) => {
                    // Nobody waits for it any more where this fails.
                    let _ = answer.send(self.host.clone());
                }
                Ok(Command::Processes(answer)) => self.ask_for_processes(answer),
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if self.processes_due().is_some_and(|at| at <= now) {
                self.answer_processes();
            }
            if due <= now {
                self.sample();
                // After a pause, such as the machine's sleep, what was missed stays so.
                due = (due + PERIOD).max(Instant::now());
            }
        }
    }

    /// Reads all counters and publishes what they say.
    fn sample(&mut self) {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.read_at);
        self.read_at = now;
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        self.disks.refresh(true);
        self.networks.refresh(true);
        self.update_host(elapsed);

        let (at_us, elapsed_ms) = (now_us(), millis(elapsed));
        let cpu = CpuSample {
            at_us,
            elapsed_ms,
            usage_percent: tenths(self.system.global_cpu_usage()),
            cores_percent: self
                .system
                .cpus()
                .iter()
                .map(|core| tenths(core.usage()))
                .collect(),
            load_average: self.host.load_average,
        };
        let disk = DiskSample {
            at_us,
            elapsed_ms,
            disks: self.host.disks.clone(),
        };
        let net = NetSample {
            at_us,
            elapsed_ms,
            networks: self.host.networks.clone(),
        };
        let memory = self.host.memory.clone();
        self.publish("cpu", &cpu);
        self.publish("memory", &memory);
        self.publish("disk", &disk);
        self.publish("net", &net);
    }

    fn publish(&mut self, what: &str, sample: &impl Serialize) {
        let topic = format!("host.{}.{what}", self.host.topic_name);
        match serde_json::to_vec(sample) {
            Ok(json) => (self.publish)(&topic, json.into()),
            Err(error) => tracing::error!(%error, topic, "a sample cannot be written as JSON"),
        }
    }

    /// Brings up to date what `Info` tells.
    fn update_host(&mut self, elapsed: Duration) {
        let load = System::load_average().unwrap_or_default();
        self.host.load_average = [load.one, load.five, load.fifteen];
        self.host.uptime_s = System::uptime().unwrap_or_default();
        self.host.memory = MemorySample {
            at_us: now_us(),
            total_bytes: self.system.total_memory(),
            used_bytes: self.system.used_memory(),
            available_bytes: self.system.available_memory(),
            swap_total_bytes: self.system.total_swap(),
            swap_used_bytes: self.system.used_swap(),
        };
        self.host.disks = self
            .disks
            .iter()
            .map(|disk| Disk {
                mount: disk.mount_point().display().to_string(),
                device: disk.name().display().to_string(),
                file_system: disk.file_system().display().to_string(),
                total_bytes: disk.total_space(),
                available_bytes: disk.available_space(),
                read_bytes_per_s: rate(disk.usage().read_bytes, elapsed),
                written_bytes_per_s: rate(disk.usage().written_bytes, elapsed),
            })
            .collect();
        self.host.disks.sort_by(|a, b| a.mount.cmp(&b.mount));
        self.host.disks.truncate(DEVICES_MAX);
        self.host.networks = self
            .networks
            .iter()
            .map(|(name, network)| Network {
                name: name.display().to_string(),
                received_bytes: network.total_received(),
                transmitted_bytes: network.total_transmitted(),
                received_bytes_per_s: rate(network.received(), elapsed),
                transmitted_bytes_per_s: rate(network.transmitted(), elapsed),
                errors: network
                    .total_errors_on_received()
                    .saturating_add(network.total_errors_on_transmitted()),
            })
            .collect();
        self.host.networks.sort_by(|a, b| a.name.cmp(&b.name));
        self.host.networks.truncate(DEVICES_MAX);
    }

    fn ask_for_processes(&mut self, answer: oneshot::Sender<Processes>) {
        self.waiting.push(answer);
        let is_old = |at: Instant| at.elapsed() > BASELINE_MAX;
        if self.baseline.is_none_or(is_old) {
            self.refresh_processes();
        }
    }

    /// When those who wait for processes can be answered: CPU usage takes two samples with some time between them.
    fn processes_due(&self) -> Option<Instant> {
        if self.waiting.is_empty() {
            return None;
        }
        self.baseline.map(|at| at + MINIMUM_CPU_UPDATE_INTERVAL)
    }

    fn refresh_processes(&mut self) {
        self.system.refresh_processes_specifics(
            ProcessesToUpdate::All,
            true,
            ProcessRefreshKind::nothing()
                .with_cpu()
                .with_memory()
                .with_user(UpdateKind::OnlyIfNotSet)
                .without_tasks(),
        );
        self.baseline = Some(Instant::now());
    }

    fn answer_processes(&mut self) {
        self.refresh_processes();
        self.refresh_users();
        let users = self.users.as_ref().map(|(users, _)| users);
        let processes: Processes = self
            .system
            .processes()
            .values()
            .map(|process| ProcessInfo {
                list: 0,
                pid: process.pid().as_u32(),
                name: process.name().display().to_string(),
                cpu_percent: tenths(process.cpu_usage()),
                memory_bytes: process.memory(),
                started: process.start_time(),
                user: process.user_id().map(|id| {
                    let user = users.and_then(|users| users.get_user_by_id(id));
                    user.map_or_else(|| id.to_string(), |user| user.name().to_owned())
                }),
            })
            .collect();
        for answer in self.waiting.drain(..) {
            // Nobody waits for it any more where this fails.
            let _ = answer.send(Arc::clone(&processes));
        }
    }

    /// Looks the users up again where somebody is unknown, and the last look is long ago.
    fn refresh_users(&mut self) {
        let is_recent = |at: &Instant| at.elapsed() < USERS_MAX;
        if self.users.as_ref().is_some_and(|(_, at)| is_recent(at)) {
            return;
        }
        match Users::new_with_refreshed_list() {
            Ok(users) => self.users = Some((users, Instant::now())),
            Err(error) => tracing::debug!(%error, "cannot list the users of this host"),
        }
    }
}

/// What does not change while the machine is up.
fn describe_host(topic_name: &str, system: &System) -> HostInfo {
    let os = System::long_os_version().or_else(|_| System::name());
    HostInfo {
        name: System::host_name().unwrap_or_else(|_| topic_name.to_owned()),
        topic_name: topic_name.to_owned(),
        os: os.unwrap_or_default(),
        kernel: System::kernel_version().unwrap_or_default(),
        architecture: System::cpu_arch(),
        processor: system
            .cpus()
            .first()
            .map(|core| core.brand().trim().to_owned())
            .unwrap_or_default(),
        cores: system.cpus().len(),
        boot_time: System::boot_time().unwrap_or_default(),
        uptime_s: 0,
        load_average: [0.0; 3],
        memory: MemorySample {
            at_us: 0,
            total_bytes: 0,
            used_bytes: 0,
            available_bytes: 0,
            swap_total_bytes: 0,
            swap_used_bytes: 0,
        },
        disks: Vec::new(),
        networks: Vec::new(),
    }
}

/// Bytes per second; 0 before there is a second sample.
pub(super) fn rate(bytes: u64, elapsed: Duration) -> u64 {
    let nanos = elapsed.as_nanos();
    let per_second = u128::from(bytes)
        .saturating_mul(1_000_000_000)
        .checked_div(nanos);
    per_second.map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
}

/// A share in percent, with one digit after the point; nothing real is measured more exactly.
pub(super) fn tenths(percent: f32) -> f64 {
    if percent.is_finite() {
        (f64::from(percent) * 10.0).round() / 10.0
    } else {
        0.0
    }
}

fn millis(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

fn now_us() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}
