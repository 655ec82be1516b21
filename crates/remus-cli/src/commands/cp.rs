//! `remus cp`: files to the node and from it, checked by SHA-256 on both sides.
//!
//! Disk and digest are on a thread of their own, so that they and the network don't wait for each other.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use remus::{ErrorCode, Json, Raw};
use remus_node::files::{PathRequest, Stored};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::cli::{Connection, Copy};
use crate::connect::Node;
use crate::failure::{Failure, Outcome, Stop};
use crate::output::Output;

use super::{Unsent, exchange, with_node};

/// How a path on a node begins.
const SCHEME: &str = "remus://";

const PUT: &str = "file.v1.Files/Put";
const GET: &str = "file.v1.Files/Get";

/// Bytes of one element of an upload: with its header it fits into one frame of 64 KiB, so that nothing is put together anew.
const CHUNK_BYTES: usize = 60 * 1024;

/// Chunks between the thread of the disk and the network, in both directions: 1 MiB, so that neither waits for the other's
/// every hiccup.
const CHUNKS_WAITING: usize = 16;

/// What to try where a file is there already.
const REPLACE_HINT: &str = "without --no-clobber it is replaced";

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// `remus://host:port` and a path below the node's files.
    Node { url: String, path: String },
    /// A file here.
    File(PathBuf),
    /// Standard input or output.
    Standard,
}

impl Place {
    fn parse(argument: &OsStr) -> Outcome<Self> {
        if argument == "-" {
            return Ok(Self::Standard);
        }
        let Some(rest) = argument.to_str().and_then(|text| text.strip_prefix(SCHEME)) else {
            return Ok(Self::File(argument.into()));
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() {
            return Err(Failure::usage(format!("{SCHEME}{rest} names no host"))
                .hint("remus://HOST[:PORT]/PATH, such as remus://localhost/notes.txt")
                .into());
        }
        Ok(Self::Node {
            url: format!("{SCHEME}{authority}"),
            path: path.to_owned(),
        })
    }

    fn shown(&self) -> String {
        match self {
            Self::Node { url, path } => format!("{url}/{path}"),
            Self::File(path) => path.display().to_string(),
            Self::Standard => "-".to_owned(),
        }
    }
}

/// What was copied.
#[derive(Serialize)]
struct Copied {
    source: String,
    destination: String,
    bytes: u64,
    sha256: String,
    seconds: f64,
    bytes_per_second: f64,
}

pub(crate) async fn run(command: Copy, options: &Connection, output: &Output) -> Outcome {
    let source = Place::parse(&command.source)?;
    let destination = Place::parse(&command.destination)?;
    let to_stdout = destination == Place::Standard;
    let (source, destination, (done, taken)) = match (source, destination) {
        (Place::Node { url, path }, local @ (Place::File(_) | Place::Standard)) => {
            if path.is_empty() || path.ends_with('/') {
                return Err(
                    Failure::usage(format!("{url}/{path} names no file on the node"))
                        .hint("name one, as in remus://localhost/notes.txt")
                        .into(),
                );
            }
            let sink = Sink::at(&local, &path, command.no_clobber)?;
            let shown = match &sink {
                Sink::File { target, .. } => target.display().to_string(),
                Sink::Through(..) => local.shown(),
            };
            let node = Node::at(&url, options)?;
            let from = format!("{url}/{path}");
            let done = with_node(node, output, async |node| {
                timed(download(node, path, sink, output)).await
            });
            (from, shown, done.await?)
        }
        (local @ (Place::File(_) | Place::Standard), Place::Node { url, path }) => {
            let source = Source::at(&local)?;
            let path = target_path(&local, path)?;
            let node = Node::at(&url, options)?;
            let to = format!("{url}/{path}");
            let overwrite = !command.no_clobber;
            let done = with_node(node, output, async |node| {
                timed(upload(node, source, &path, overwrite, output)).await
            });
            (local.shown(), to, done.await?)
        }
        (Place::Node { .. }, Place::Node { .. }) => {
            return Err(Failure::usage("both sides are on a node")
                .hint("copy to a file here first, or pipe: remus cp SRC - | remus cp - DST")
                .into());
        }
        _ => {
            return Err(Failure::usage("neither side is on a node")
                .hint("one side is remus://HOST[:PORT]/PATH, such as remus://localhost/notes.txt")
                .into());
        }
    };
    let seconds = taken.as_secs_f64();
    // A length in bytes is exact in a double up to 8 PiB.
    let bytes_per_second = if seconds > 0.0 {
        done.bytes as f64 / seconds
    } else {
        0.0
    };
    let copied = Copied {
        source,
        destination,
        bytes: done.bytes,
        sha256: done.sha256,
        seconds,
        bytes_per_second,
    };
    let text = format!(
        "{} -> {}: {} in {:.1} s ({}/s), SHA-256 {}",
        copied.source,
        copied.destination,
        size(copied.bytes as f64),
        copied.seconds,
        size(copied.bytes_per_second),
        copied.sha256,
    );
    // Where standard output is the file itself, nothing else may be in it.
    if to_stdout {
        output.note(&text);
        return Ok(());
    }
    if output.is_json() {
        return output.json(&copied);
    }
    output.line(&text)
}

/// The result of a transfer, and how long it took: without connecting, which says nothing about the next one.
async fn timed(transfer: impl Future<Output = Outcome<Done>>) -> Outcome<(Done, Duration)> {
    let started = Instant::now();
    let done = transfer.await?;
    Ok((done, started.elapsed()))
}

/// The path on the node: one that ends in `/`, or none, takes the name of the file.
fn target_path(source: &Place, path: String) -> Outcome<String> {
    if !path.is_empty() && !path.ends_with('/') {
        return Ok(path);
    }
    let name = match source {
        Place::File(source) => source.file_name().and_then(OsStr::to_str),
        _ => None,
    };
    let Some(name) = name else {
        return Err(
            Failure::usage("the destination has no name, and the source gives none")
                .hint("name the file, as in remus://localhost/notes.txt")
                .into(),
        );
    };
    Ok(format!("{path}{name}"))
}

/// What came through.
#[derive(Debug)]
struct Done {
    bytes: u64,
    sha256: String,
}

async fn upload(
    node: &Node,
    source: Source,
    path: &str,
    overwrite: bool,
    output: &Output,
) -> Outcome<Done> {
    let mut call = node
        .client
        .method(PUT)
        .metadata("path", path)
        .metadata("overwrite", if overwrite { "true" } else { "false" });
    if let Some(size) = source.size {
        call = call.metadata("size", size.to_string());
    }
    if let Some(left) = node.left() {
        call = call.timeout(left);
    }
    let bar = Bar::new(source.size, output);
    let (mut sender, reply) = call.client_stream::<Bytes, Bytes>(Raw).await?;
    let (mut chunks, read) = source.start()?;
    let sending = async {
        while let Some(chunk) = chunks.recv().await {
            sender.send(&chunk).await.map_err(Unsent::ByPeer)?;
            bar.add(chunk.len());
        }
        // Not whole: the sender is dropped without an end, so the node keeps nothing.
        let done = finished(read.await).map_err(Unsent::Here)?;
        sender.finish();
        Ok(done)
    };
    let (done, answer) = exchange(sending, reply).await.map_err(|stop| match stop {
        Stop::Failed(failure) if failure.code() == ErrorCode::ALREADY_EXISTS => {
            failure.or_hint(REPLACE_HINT).into()
        }
        other => other,
    })?;
    let done = done.ok_or_else(|| {
        Failure::new(
            ErrorCode::INTERNAL,
            "the node answered before it had the whole file",
        )
    })?;
    bar.clear();
    let stored: Stored = remus::Codec::decode(&Json, answer)?;
    compare(&done, stored.size, &stored.sha256)?;
    Ok(done)
}

async fn download(node: &Node, path: String, sink: Sink, output: &Output) -> Outcome<Done> {
    let mut call = node.client.method(GET);
    if let Some(left) = node.left() {
        call = call.timeout(left);
    }
    let request = remus::Codec::encode(&Json, &PathRequest { path })?;
    let mut elements = call
        .server_stream::<Bytes, Bytes>(Raw, &request)
        .await?
        .into_inner();
    // Nothing is made here before the node has something to give.
    let mut next = elements.message().await?;
    let size: Option<u64> = elements
        .metadata()
        .get_str("size")
        .and_then(|digits| digits.parse().ok());
    let bar = Bar::new(size, output);
    let Receiving {
        chunks,
        written,
        partial,
    } = sink.start()?;
    while let Some(chunk) = next {
        bar.add(chunk.len());
        // Refused only when writing failed, and `written` says why.
        if !chunk.is_empty() && chunks.send(chunk).await.is_err() {
            break;
        }
        next = elements.message().await?;
    }
    let told = elements.metadata().get_str("sha256").map(str::to_owned);
    drop(chunks);
    let received = finished(written.await)?;
    bar.clear();
    let told = told.ok_or_else(|| {
        Failure::new(
            ErrorCode::DATA_LOSS,
            "the node sent no SHA-256, so the copy is not known to be whole",
        )
    })?;
    compare(&received, size.unwrap_or(received.bytes), &told)?;
    if let Some(partial) = partial {
        partial.keep()?;
    }
    Ok(received)
}

/// What the two sides have to agree on.
fn compare(done: &Done, their_bytes: u64, their_sha256: &str) -> Outcome {
    if done.bytes == their_bytes && done.sha256.eq_ignore_ascii_case(their_sha256) {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::DATA_LOSS,
        format!(
            "the copy differs: {} bytes with SHA-256 {} here, {their_bytes} with {their_sha256} on the node",
            done.bytes, done.sha256
        ),
    )
    .hint("copy again; if it was changed meanwhile, it will fit then")
    .into())
}

fn finished<T>(result: Result<Outcome<T>, oneshot::error::RecvError>) -> Outcome<T> {
    result.unwrap_or_else(|_| {
        Err(Failure::new(ErrorCode::INTERNAL, "the thread of the disk is gone").into())
    })
}

fn on_thread(work: impl FnOnce() + Send + 'static) -> Outcome {
    thread::Builder::new()
        .name("disk".to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|error| {
            Failure::new(
                ErrorCode::RESOURCE_EXHAUSTED,
                format!("cannot start a thread: {error}"),
            )
            .into()
        })
}

/// A digest and a count, on the way.
#[derive(Default)]
struct Count {
    hasher: Sha256,
    bytes: u64,
}

impl Count {
    fn add(&mut self, chunk: &[u8]) {
        self.hasher.update(chunk);
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
    }

    fn done(self) -> Done {
        let digest = self.hasher.finalize();
        Done {
            bytes: self.bytes,
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// A file that is read.
struct Source {
    reader: Box<dyn Read + Send>,
    /// What errors call it.
    name: PathBuf,
    /// Bytes, where they are known before.
    size: Option<u64>,
}

impl Source {
    fn at(place: &Place) -> Outcome<Self> {
        let Place::File(path) = place else {
            return Ok(Self {
                reader: Box::new(io::stdin()),
                name: "standard input".into(),
                size: None,
            });
        };
        let failed = |error: io::Error| Failure::file("read", path, &error);
        let file = File::open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?;
        if kind.is_dir() {
            return Err(
                Failure::usage(format!("{} is a directory", path.display()))
                    .hint("files are copied one by one; tar it first: tar c DIR | remus cp - remus://HOST/DIR.tar")
                    .into(),
            );
        }
        Ok(Self {
            reader: Box::new(file),
            name: path.clone(),
            // Pipes and devices tell no size.
            size: kind.is_file().then_some(kind.len()),
        })
    }

    /// Reads on a thread of its own; the receiver of the result hears when all is read.
    fn start(mut self) -> Outcome<(mpsc::Receiver<Bytes>, oneshot::Receiver<Outcome<Done>>)> {
        let (chunks, taken) = mpsc::channel(CHUNKS_WAITING);
        let (end, ended) = oneshot::channel();
        on_thread(move || {
            let result = self.read(&chunks);
            // The result is there before the end of the chunks is seen.
            let _ =
                end.send(result.map_err(|error| Failure::file("read", &self.name, &error).into()));
        })?;
        Ok((taken, ended))
    }

    fn read(&mut self, chunks: &mpsc::Sender<Bytes>) -> io::Result<Done> {
        let mut count = Count::default();
        loop {
            let mut chunk = BytesMut::zeroed(CHUNK_BYTES);
            let filled = fill(&mut self.reader, &mut chunk)?;
            if filled == 0 {
                return Ok(count.done());
            }
            chunk.truncate(filled);
            count.add(&chunk);
            if chunks.blocking_send(chunk.freeze()).is_err() {
                return Ok(count.done()); // nobody wants the rest, nor this result
            }
        }
    }
}

/// Reads until `buffer` is full or the input ends, and says how much of it was filled.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Where a download goes.
#[derive(Debug)]
enum Sink {
    /// A file that appears when it is whole.
    File { target: PathBuf, no_clobber: bool },
    /// Something that takes bytes as they come: standard output, or a device or pipe.
    Through(Option<PathBuf>),
}

impl Sink {
    fn at(place: &Place, remote: &str, no_clobber: bool) -> Outcome<Self> {
        let Place::File(path) = place else {
            return Ok(Self::Through(None));
        };
        let name = remote.rsplit('/').next().unwrap_or(remote);
        let ends_in_slash = path.as_os_str().as_encoded_bytes().last() == Some(&b'/');
        let target = if path.is_dir() || ends_in_slash {
            // The node's name for it becomes a name here, and must not become a way.
            let plain = Path::new(name).file_name() == Some(OsStr::new(name));
            if !plain {
                return Err(
                    Failure::usage(format!("`{name}` is no name for a file here"))
                        .hint("name the file that it should become")
                        .into(),
                );
            }
            path.join(name)
        } else {
            path.clone()
        };
        match fs::metadata(&target) {
            Ok(kind) if kind.is_dir() => {
                Err(Failure::usage(format!("{} is a directory", target.display())).into())
            }
            Ok(kind) if !kind.is_file() => Ok(Self::Through(Some(target))),
            Ok(_) if no_clobber => Err(taken(&target).into()),
            Ok(_) => {
                // Through a symbolic link, to the file that it names.
                let target = fs::canonicalize(&target).unwrap_or(target);
                Ok(Self::File { target, no_clobber })
            }
            Err(_) => Ok(Self::File { target, no_clobber }),
        }
    }

    /// Opens it, and writes on a thread of its own what is sent; the receiver of the result hears when all is written.
    fn start(self) -> Outcome<Receiving> {
        let (mut writer, name, partial): (Box<dyn Write + Send>, _, _) = match self {
            Self::Through(None) => (Box::new(io::stdout()), "standard output".into(), None),
            Self::Through(Some(path)) => {
                let file = OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .map_err(|error| Failure::file("write", &path, &error))?;
                (Box::new(file), path, None)
            }
            Self::File { target, no_clobber } => {
                let (file, partial) = Partial::create(target, no_clobber)?;
                (Box::new(file), partial.target.clone(), Some(partial))
            }
        };
        let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING);
        let (end, written) = oneshot::channel();
        on_thread(move || {
            let result = drain(waiting, &mut *writer).map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Stop::PipeClosed,
                _ => Failure::file("write", &name, &error).into(),
            });
            drop(writer);
            let _ = end.send(result);
        })?;
        Ok(Receiving {
            chunks,
            written,
            partial,
        })
    }
}

fn taken(target: &Path) -> Failure {
    Failure::new(
        ErrorCode::ALREADY_EXISTS,
        format!("{} is there already", target.display()),
    )
    .hint(REPLACE_HINT)
}

/// A download being written.
struct Receiving {
    chunks: mpsc::Sender<Bytes>,
    written: oneshot::Receiver<Outcome<Done>>,
    /// Looked after here and not by the thread, which may not get to it before the process ends.
    partial: Option<Partial>,
}

fn drain(mut waiting: mpsc::Receiver<Bytes>, to: &mut dyn Write) -> io::Result<Done> {
    let mut count = Count::default();
    while let Some(chunk) = waiting.blocking_recv() {
        count.add(&chunk);
        to.write_all(&chunk)?;
    }
    to.flush()?;
    Ok(count.done())
}

/// A file beside its target, under another name until it is whole. Dropped before that, it is removed.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    target: PathBuf,
    no_clobber: bool,
    kept: bool,
}

impl Partial {
    fn create(target: PathBuf, no_clobber: bool) -> Outcome<(File, Self)> {
        let name = target
            .file_name()
            .ok_or_else(|| Failure::usage(format!("{} names no file", target.display())))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.part", std::process::id()));
        let path = target.with_file_name(partial);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| Failure::file("write", &path, &error))?;
        let partial = Self {
            path,
            target,
            no_clobber,
            kept: false,
        };
        // A file that is replaced keeps who may read it.
        if let Ok(old) = fs::metadata(&partial.target) {
            file.set_permissions(old.permissions())
                .map_err(|error| Failure::file("write", &partial.path, &error))?;
        }
        Ok((file, partial))
    }

    fn keep(mut self) -> Outcome {
        let failed = |error: io::Error| Failure::file("write", &self.target, &error);
        if self.no_clobber {
            // Unlike a rename, this fails where somebody made the file meanwhile.
            match fs::hard_link(&self.path, &self.target) {
                Ok(()) => return Ok(()), // the other name is removed
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(taken(&self.target).into());
                }
                // Some file systems have no links.
                Err(_) if self.target.exists() => return Err(taken(&self.target).into()),
                Err(_) => {}
            }
        }
        fs::rename(&self.path, &self.target).map_err(failed)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: what cannot be removed is named so that people see what it is.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A progress bar on standard error, where a person looks at it.
struct Bar(ProgressBar);

impl Bar {
    fn new(size: Option<u64>, output: &Output) -> Self {
        if !output.may_animate() {
            return Self(ProgressBar::hidden());
        }
        let template = match size {
            Some(_) => {
                "{decimal_bytes:>10} of {decimal_total_bytes} [{bar:30}] {decimal_bytes_per_sec}, {eta} left"
            }
            None => "{decimal_bytes:>10} {spinner} {decimal_bytes_per_sec}",
        };
        let bar = match size {
            Some(size) => ProgressBar::new(size),
            None => ProgressBar::no_length(),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    fn add(&self, bytes: usize) {
        self.0.inc(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Bytes for people, in powers of 1000 as disks and networks count.
fn size(bytes: f64) -> String {
    let mut value = bytes;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB", "PB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{value:.0} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        Place::parse(OsStr::new(text)).unwrap()
    }

    fn exit<T: std::fmt::Debug>(outcome: Outcome<T>) -> u8 {
        match outcome.unwrap_err() {
            Stop::Failed(failure) => failure.exit().code(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_place_is_a_node_a_file_or_a_pipe() {
        let node = |url: &str, path: &str| Place::Node {
            url: url.into(),
            path: path.into(),
        };
        assert_eq!(place("-"), Place::Standard);
        assert_eq!(place("./-"), Place::File("./-".into()));
        assert_eq!(place("a/b"), Place::File("a/b".into()));
        assert_eq!(place("remus://h:1/a/b"), node("remus://h:1", "a/b"));
        assert_eq!(place("remus://[::1]:1/"), node("remus://[::1]:1", ""));
        assert_eq!(place("remus://h"), node("remus://h", ""));
        // Nothing is decoded and nothing resolved: the node judges what was written.
        assert_eq!(place("remus://h/../a%2e?#"), node("remus://h", "../a%2e?#"));
        assert_eq!(exit(Place::parse(OsStr::new("remus:///a"))), 2);
    }

    #[test]
    fn a_destination_without_a_name_takes_the_one_of_the_source() {
        let file = Place::File("dir/x.txt".into());
        let path = |path: &str| target_path(&file, path.to_owned()).unwrap();
        assert_eq!(path(""), "x.txt");
        assert_eq!(path("sub/"), "sub/x.txt");
        assert_eq!(path("sub"), "sub");
        assert_eq!(exit(target_path(&Place::Standard, String::new())), 2);
        assert_eq!(exit(target_path(&Place::File("..".into()), "a/".into())), 2);
    }

    #[test]
    fn the_name_on_the_node_leads_nowhere_else_here() {
        let directory = tempfile::tempdir().unwrap();
        let into = Place::File(directory.path().into());
        assert!(matches!(
            Sink::at(&into, "a/x.txt", false).unwrap(),
            Sink::File { target, .. } if target == directory.path().join("x.txt")
        ));
        for name in ["..", "a/..", "."] {
            assert_eq!(exit(Sink::at(&into, name, false)), 2, "{name}");
        }
    }

    #[test]
    fn what_is_not_kept_leaves_nothing_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        fs::write(&target, "old").unwrap();
        let (mut file, partial) = Partial::create(target.clone(), false).unwrap();
        file.write_all(b"half").unwrap();
        drop(partial);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        let (mut file, partial) = Partial::create(target.clone(), false).unwrap();
        file.write_all(b"new").unwrap();
        partial.keep().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_clobber_holds_even_for_what_appears_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        let (_, partial) = Partial::create(target.clone(), true).unwrap();
        fs::write(&target, "theirs").unwrap();
        assert_eq!(exit(partial.keep()), 6);
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        let other = directory.path().join("y");
        Partial::create(other.clone(), true)
            .unwrap()
            .1
            .keep()
            .unwrap();
        assert!(other.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        let file = Place::File(target);
        assert_eq!(exit(Sink::at(&file, "r", true)), 6);
    }

    #[cfg(unix)]
    #[test]
    fn a_replaced_file_keeps_its_mode_and_a_link_its_target() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        let link = directory.path().join("link");
        symlink(&real, &link).unwrap();
        let Sink::File { target, no_clobber } =
            Sink::at(&Place::File(link.clone()), "r", false).unwrap()
        else {
            panic!("not a file")
        };
        Partial::create(target, no_clobber)
            .unwrap()
            .1
            .keep()
            .unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"");
        assert!(link.is_symlink());
        let mode = fs::metadata(&real).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn both_sides_must_agree_on_length_and_digest() {
        let done = Done {
            bytes: 3,
            sha256: "ab".into(),
        };
        assert!(compare(&done, 3, "AB").is_ok());
        assert_eq!(exit(compare(&done, 4, "ab")), 1);
        assert_eq!(exit(compare(&done, 3, "ac")), 1);
    }

    #[test]
    fn a_source_is_cut_into_chunks_and_counted() {
        let source = Source {
            reader: Box::new(io::repeat(7).take(u64::try_from(CHUNK_BYTES + 1).unwrap())),
            name: "x".into(),
            size: None,
        };
        let (mut chunks, ended) = source.start().unwrap();
        let mut lengths = Vec::new();
        while let Some(chunk) = chunks.blocking_recv() {
            lengths.push(chunk.len());
        }
        assert_eq!(lengths, [CHUNK_BYTES, 1]);
        let done = ended.blocking_recv().unwrap().unwrap();
        assert_eq!(done.bytes, u64::try_from(CHUNK_BYTES + 1).unwrap());
        let expected = Sha256::digest(vec![7; CHUNK_BYTES + 1]);
        let hex: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(done.sha256, hex);
    }

    #[test]
    fn sizes_are_in_the_unit_that_fits() {
        assert_eq!(size(0.0), "0 B");
        assert_eq!(size(999.0), "999 B");
        assert_eq!(size(1_000.0), "1.0 kB");
        assert_eq!(size(1.5e9), "1.5 GB");
        assert_eq!(size(1e18), "1000.0 PB");
    }
}
