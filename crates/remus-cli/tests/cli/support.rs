//! The real binary, and real nodes of it.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// What is waited for at most before a test counts as failed. Nothing waits this long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// The binary, with nothing of this environment that it would read.
pub(crate) fn remus<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remus"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("REMUS_") || name_text.contains("COLOR") {
            command.env_remove(&name);
        }
    }
    command
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    /// Standard output of a command that did what it should.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        String::from_utf8(self.stdout).unwrap()
    }

    /// The same as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.good();
        assert_eq!(text.lines().count(), 1, "one document on one line: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Standard error of a command that failed with `code` and wrote no data.
    #[track_caller]
    pub(crate) fn bad(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stdout.is_empty(), "data in spite of failure: {self:?}");
        self.stderr
    }
}

/// Runs `command` with `input` to its end.
pub(crate) fn run(mut command: Command, input: &[u8]) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that fails early leaves its input unread.
    let writing = thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let status = wait(&mut child);
    writing.join().unwrap();
    Ended {
        code: status.code(),
        stdout: stdout.join().unwrap(),
        stderr: String::from_utf8(stderr.join().unwrap()).unwrap(),
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for the end of `child`, which is killed when it takes too long.
#[track_caller]
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= until {
            child.kill().unwrap();
            panic!("still running after {PATIENCE:?}");
        }
        thread::sleep(LOOK);
    }
}

/// A process that runs on, killed at the end of the test.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdout: Lines::of(child.stdout.take().unwrap()),
            stderr: Lines::of(child.stderr.take().unwrap()),
            child,
        }
    }

    /// Sends a signal by its name, such as `TERM`.
    #[cfg(unix)]
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(sent.success());
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> Option<i32> {
        wait(&mut self.child).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines as they come.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    fn of(from: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(from).lines() {
                let Ok(line) = line else { break };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self(lines)
    }

    /// The next line; `None` at the end.
    #[track_caller]
    pub(crate) fn next(&self) -> Option<String> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("no line within {PATIENCE:?}"),
        }
    }

    /// The next line if there is one already.
    pub(crate) fn try_next(&self) -> Option<String> {
        self.0.try_recv().ok()
    }

    /// The next line with `part` in it.
    #[track_caller]
    pub(crate) fn until(&self, part: &str) -> String {
        let mut seen = Vec::new();
        while let Some(line) = self.next() {
            if line.contains(part) {
                return line;
            }
            seen.push(line);
        }
        panic!("ended without {part:?} after {seen:#?}");
    }
}

/// A node on a port of its own.
pub(crate) struct Node {
    pub(crate) running: Running,
    pub(crate) url: String,
    pub(crate) digest: String,
    pub(crate) data: PathBuf,
    _directory: Option<TempDir>,
}

impl Node {
    /// A node on any free port, with a new data directory.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more arguments to `up`.
    pub(crate) fn start_with(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Self::start_at(&directory.path().join("data"), "127.0.0.1:0", more);
        node._directory = Some(directory);
        node
    }

    /// A node with the data directory `data`, listening at `listen`.
    pub(crate) fn start_at(data: &Path, listen: &str, more: &[&str]) -> Self {
        let mut command = remus(["up", "-o", "json", "--listen", listen]);
        command.arg("--data").arg(data).args(more);
        let running = Running::start(command);
        let Some(line) = running.stdout.next() else {
            panic!("no node: {:?}", running.stderr.next())
        };
        let told: Value = serde_json::from_str(&line).unwrap();
        let field = |name: &str| told.get(name).and_then(Value::as_str).unwrap().to_owned();
        Self {
            running,
            url: field("url"),
            digest: field("certificate_sha256"),
            data: data.to_owned(),
            _directory: None,
        }
    }

    /// The address that it listens at.
    pub(crate) fn listen(&self) -> String {
        self.url.replace("remus://localhost", "127.0.0.1")
    }

    /// A command that talks to this node.
    pub(crate) fn remus<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = remus(arguments);
        command
            .env("REMUS_URL", &self.url)
            .env("REMUS_DATA", &self.data);
        command
    }

    /// Runs a command without input.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        run(self.remus(arguments), b"")
    }

    /// Starts `remus sub`, and returns when it stands.
    #[track_caller]
    pub(crate) fn subscribe(&self, arguments: &[&str]) -> Running {
        let running = Running::start(self.remus([&["sub"], arguments].concat()));
        running.stderr.until("subscribed to");
        running
    }

    /// The URL of a path on this node.
    pub(crate) fn path(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }
}

/// `length` bytes without a pattern that a mistake in the order of chunks would keep.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
