//! Processes: servers and drivers as children that cannot outlive the run, and what `/proc` says of them.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal};

use crate::Result;
use crate::case::{Case, Runtime};
use crate::load::Outcome;
use crate::peer::Peer;

/// Time in which a server must be ready.
const START_LIMIT: Duration = Duration::from_secs(15);

/// Pause between two attempts to reach a server that cannot say when it is ready.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// Lines of a child's stderr that are kept for the report of its failure: the last ones.
const STDERR_LINES_MAX: usize = 20;

/// Has the kernel kill this process when the one that started it ends, however it ends.
pub(crate) fn end_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// Raises the limit of open files to the hard limit: ten thousand connections need as many sockets.
pub(crate) fn raise_file_limit() -> Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?;
    Ok(())
}

/// What `/proc` counts time in: `USER_HZ`, the same on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

/// User and system time since its start of process `pid` and of those that it started and that still run, all threads, those
/// that ended included. Resolution 10 ms a process.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut sum = cpu_time_alone(pid)?;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile, and a kernel may be built without this file; then there are no children to see.
        let children = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            sum += cpu_time(child.parse()?)?;
        }
    }
    Ok(sum)
}

fn cpu_time_alone(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name, in parentheses, and may hold anything. utime and stime are fields 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || -> Result<u32> { Ok(fields.next().ok_or("stat ends early")?.parse()?) };
    Ok(TICK * (ticks()? + ticks()?))
}

/// What all processes of the machine have used since its start, and what its host took away from it.
pub(crate) fn machine_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let mut fields = stat.split_whitespace().skip(1);
    let mut sum = 0_u32;
    // user, nice, system; idle and iowait are not used, irq and softirq nobody's; steal is the host's.
    for counts in [true, true, true, false, false, false, false, true] {
        let ticks: u64 = fields.next().ok_or("stat ends early")?.parse()?;
        if counts {
            // Wraps after 497 days of one core; differences stay right.
            sum = sum.wrapping_add(u32::try_from(ticks & u64::from(u32::MAX))?);
        }
    }
    Ok(TICK * sum)
}

/// Resident memory of process `pid`, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    // Exact, where the kernel has it; the counter in `status` lags by some pages a thread.
    let (text, field) = match std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Ok(text) => (text, "Rss:"),
        Err(_) => (
            std::fs::read_to_string(format!("/proc/{pid}/status"))?,
            "VmRSS:",
        ),
    };
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .ok_or("the kernel does not tell the resident memory")?
        .parse()?;
    Ok(kib * 1024)
}

/// A child of this program, killed when it is dropped.
struct Process {
    child: Child,
    lines: Receiver<String>,
    stderr: Arc<Mutex<VecDeque<String>>>,
    stderr_reader: Option<std::thread::JoinHandle<()>>,
    what: String,
}

impl Process {
    fn start(what: String, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (tell, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                each_line(stdout, |line| tell.send(line).is_ok());
            });
        }
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&stderr);
        let stderr_reader = child.stderr.take().map(|stderr| {
            std::thread::spawn(move || {
                each_line(stderr, |line| {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    if kept.len() == STDERR_LINES_MAX {
                        kept.pop_front();
                    }
                    kept.push_back(line);
                    true
                });
            })
        });
        Ok(Self {
            child,
            lines,
            stderr,
            stderr_reader,
            what,
        })
    }

    /// The next line of its output.
    fn line(&mut self, limit: Duration) -> Result<String> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.failure(&format!("said nothing in {} s", limit.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                // The pipe is closed with the process, unless it has children of its own.
                if let Some(reader) = self.stderr_reader.take() {
                    let _ = reader.join();
                }
                Err(self.failure(&format!("ended early, {status}")))
            }
        }
    }

    fn failure(&self, how: &str) -> crate::Failure {
        let stderr = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = format!("the {} {how}", self.what);
        for line in stderr.iter() {
            text.push_str("\n    ");
            text.push_str(line);
        }
        text.into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn each_line(from: impl Read, mut take: impl FnMut(String) -> bool) {
    for line in BufReader::new(from).lines() {
        if !line.is_ok_and(&mut take) {
            return;
        }
    }
}

/// A peer's server, ready for connections.
pub(crate) struct Server {
    process: Process,
    address: SocketAddr,
}

impl Server {
    /// Starts it and waits until it can be reached.
    ///
    /// The child says `ready ADDRESS`, or, where it is about to become a program that cannot say so, `starting ADDRESS`.
    pub(crate) fn start(peer: Peer, runtime: Runtime, tls: &Path) -> Result<Self> {
        let tls = tls.to_string_lossy();
        let mut process = Process::start(
            format!("server of {}", peer.name()),
            &[
                "serve",
                peer.name(),
                "--tls",
                &tls,
                "--runtime",
                runtime.argument(),
            ],
        )?;
        let line = process.line(START_LIMIT)?;
        let address = match line.split_once(' ') {
            Some(("ready", address)) => address.parse()?,
            Some(("starting", address)) => {
                let address = address.parse()?;
                let deadline = Instant::now() + START_LIMIT;
                while TcpStream::connect(address).is_err() {
                    if process.child.try_wait()?.is_some() || Instant::now() > deadline {
                        return Err(process.failure("did not come up"));
                    }
                    std::thread::sleep(PROBE_INTERVAL);
                }
                address
            }
            _ => return Err(process.failure(&format!("is not ready but says `{line}`"))),
        };
        Ok(Self { process, address })
    }

    /// Has a driver do `case` against it, within `limit`.
    pub(crate) fn drive(
        mut self,
        peer: Peer,
        case: &Case,
        tls: &Path,
        seconds: f64,
        warm_up_ms: u64,
        limit: Duration,
    ) -> Result<Outcome> {
        let mut driver = Process::start(
            format!("driver of {}", peer.name()),
            &[
                "drive",
                peer.name(),
                &serde_json::to_string(case)?,
                "--address",
                &self.address.to_string(),
                "--server-pid",
                &self.process.child.id().to_string(),
                "--tls",
                &tls.to_string_lossy(),
                "--seconds",
                &seconds.to_string(),
                "--warm-up-ms",
                &warm_up_ms.to_string(),
            ],
        )?;
        let line = match driver.line(limit) {
            Ok(line) => line,
            Err(error) if self.process.child.try_wait()?.is_some() => {
                let server = self.process.line(Duration::ZERO).err();
                return Err(match server {
                    Some(server) => format!("{error}\n{server}").into(),
                    None => error,
                });
            }
            Err(error) => return Err(error),
        };
        serde_json::from_str(&line)
            .map_err(|error| driver.failure(&format!("printed `{line}`: {error}")))
    }
}

/// Tells the orchestrator that the server can be reached.
pub(crate) fn ready(address: SocketAddr) {
    println!("ready {address}");
}
