//! What a command reads: an argument, a file, or standard input.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::thread;

use bytes::Bytes;
use remus::ErrorCode;
use tokio::sync::mpsc;

use crate::failure::{Failure, Outcome};

/// Bytes of one request or payload: what a node takes in one message unless it says otherwise.
const INPUT_MAX: usize = 4 * 1024 * 1024;

/// Elements that are read ahead of what the node takes.
const READ_AHEAD: usize = 16;

/// Bytes of one element where the input has no lines: fits into one frame.
const PIECE_BYTES: usize = 60 * 1024;

/// Where input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// The argument itself.
    Argument(Bytes),
    /// `@FILE`.
    File(PathBuf),
    /// `-`.
    Standard,
}

impl Input {
    /// Reads an argument: `-` is standard input, `@` begins the name of a file, everything else is the input itself.
    pub(crate) fn parse(argument: &OsStr) -> Outcome<Self> {
        if argument == "-" {
            return Ok(Self::Standard);
        }
        let bytes = argument.as_encoded_bytes();
        if bytes.first() == Some(&b'@') {
            let Some(path) = without_first(argument) else {
                return Err(Failure::usage("@ is not followed by the name of a file")
                    .hint("@FILE reads a file, and - standard input")
                    .into());
            };
            return Ok(Self::File(path));
        }
        match argument.to_str() {
            Some(text) => Ok(Self::Argument(Bytes::copy_from_slice(text.as_bytes()))),
            None => Err(Failure::usage("the input on the command line is not UTF-8")
                .hint("pass it with @FILE, or - for standard input")
                .into()),
        }
    }

    /// What it is called in errors.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Argument(_) => "the argument".to_owned(),
            Self::File(path) => path.display().to_string(),
            Self::Standard => "standard input".to_owned(),
        }
    }

    /// All of it.
    pub(crate) async fn read(self) -> Outcome<Bytes> {
        if let Self::Argument(bytes) = self {
            return Ok(bytes);
        }
        let (sender, mut results) = mpsc::channel(1);
        on_thread(move || {
            let result = self.read_here();
            // Nobody waits any more: the command has ended.
            let _ = sender.blocking_send(result);
        })?;
        results.recv().await.unwrap_or_else(|| {
            Err(Failure::new(ErrorCode::INTERNAL, "the input was not read").into())
        })
    }

    fn open(&self) -> Outcome<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Argument(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            Self::File(path) => {
                Box::new(File::open(path).map_err(|error| Failure::file("read", path, &error))?)
            }
            Self::Standard => Box::new(io::stdin()),
        })
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        match self {
            Self::File(path) => Failure::file("read", path, error),
            _ => Failure::new(
                ErrorCode::UNKNOWN,
                format!("cannot read {}: {error}", self.name()),
            ),
        }
    }

    fn too_large(&self) -> Failure {
        Failure::new(
            ErrorCode::MESSAGE_TOO_LARGE,
            format!(
                "{} has over 4 MiB, which is more than one message",
                self.name()
            ),
        )
        .hint("`remus cp` sends files of any size")
    }

    fn read_here(&self) -> Outcome<Bytes> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(INPUT_MAX).unwrap_or(u64::MAX);
        self.open()?
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| self.unreadable(&error))?;
        if bytes.len() > INPUT_MAX {
            return Err(self.too_large().into());
        }
        Ok(bytes.into())
    }

    /// Its lines, without those that are empty, or its bytes in pieces; read on a thread of its own, a little ahead. Ends after
    /// the first error.
    pub(crate) fn elements(self, lines: bool) -> Outcome<mpsc::Receiver<Outcome<Element>>> {
        let (sender, elements) = mpsc::channel(READ_AHEAD);
        on_thread(move || {
            let result = self.send_elements(lines, &sender);
            if let Err(stop) = result {
                let _ = sender.blocking_send(Err(stop));
            }
        })?;
        Ok(elements)
    }

    fn send_elements(&self, lines: bool, sender: &mpsc::Sender<Outcome<Element>>) -> Outcome {
        let mut reader = BufReader::with_capacity(PIECE_BYTES, self.open()?);
        let mut number: usize = 0;
        loop {
            let mut bytes = Vec::new();
            let limit = if lines { INPUT_MAX } else { PIECE_BYTES };
            let mut limited = (&mut reader).take(u64::try_from(limit).unwrap_or(u64::MAX));
            let read = if lines {
                limited.read_until(b'\n', &mut bytes)
            } else {
                limited.read_to_end(&mut bytes)
            };
            if read.map_err(|error| self.unreadable(&error))? == 0 {
                return Ok(());
            }
            number = number.saturating_add(1);
            if lines {
                if bytes.len() == INPUT_MAX && bytes.last() != Some(&b'\n') {
                    return Err(self.too_large().into());
                }
                if bytes.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
            }
            let element = Element {
                number,
                bytes: bytes.into(),
            };
            if sender.blocking_send(Ok(element)).is_err() {
                return Ok(());
            }
        }
    }
}

/// One element of the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// The line that it is, from 1.
    pub(crate) number: usize,
    pub(crate) bytes: Bytes,
}

/// Runs `work` on a thread that ends with the process at the latest: nobody can interrupt a read of standard input.
fn on_thread(work: impl FnOnce() + Send + 'static) -> Outcome {
    thread::Builder::new()
        .name("input".to_owned())
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

/// `argument` without its first character, which is `@`; `None` if nothing is left.
fn without_first(argument: &OsStr) -> Option<PathBuf> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt as _;
        let rest = argument.as_bytes().get(1..)?;
        (!rest.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(rest)))
    }
    #[cfg(not(unix))]
    {
        let rest = argument.to_str()?.get(1..)?;
        (!rest.is_empty()).then(|| PathBuf::from(rest))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(work)
    }

    fn failure<T: std::fmt::Debug>(outcome: Outcome<T>) -> Failure {
        match outcome.unwrap_err() {
            crate::failure::Stop::Failed(failure) => *failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arguments_name_text_files_and_standard_input() {
        let parse = |text: &str| Input::parse(OsStr::new(text)).unwrap();
        assert_eq!(parse("-"), Input::Standard);
        assert_eq!(parse("@a b"), Input::File("a b".into()));
        assert_eq!(parse("{}"), Input::Argument(Bytes::from_static(b"{}")));
        assert_eq!(parse(""), Input::Argument(Bytes::new()));
        assert_eq!(parse("a@b"), Input::Argument(Bytes::from_static(b"a@b")));
        assert_eq!(failure(Input::parse(OsStr::new("@"))).exit().code(), 2);
    }

    #[test]
    fn a_file_that_is_not_there_or_too_large_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Input::File(directory.path().join("missing"));
        assert_eq!(failure(run(missing.read())).exit().code(), 4);
        let path = directory.path().join("large");
        let file = File::create(&path).unwrap();
        file.set_len(u64::try_from(INPUT_MAX).unwrap()).unwrap();
        assert_eq!(
            run(Input::File(path.clone()).read()).unwrap().len(),
            INPUT_MAX
        );
        file.set_len(u64::try_from(INPUT_MAX + 1).unwrap()).unwrap();
        assert_eq!(
            failure(run(Input::File(path.clone()).read())).exit().code(),
            7
        );
        // One line without an end is no smaller.
        let last = run(async {
            let mut elements = Input::File(path).elements(true).unwrap();
            elements.recv().await
        });
        assert_eq!(failure(last.unwrap()).exit().code(), 7);
    }

    #[test]
    fn elements_are_lines_or_pieces() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"a\":1}\n\n  \r\n2\n3").unwrap();
        let collect = |lines| {
            run(async {
                let mut elements = Input::File(file.path().into()).elements(lines).unwrap();
                let mut all = Vec::new();
                while let Some(element) = elements.recv().await {
                    let element = element.unwrap();
                    all.push((element.number, element.bytes));
                }
                all
            })
        };
        assert_eq!(
            collect(true),
            [
                (1, Bytes::from_static(b"{\"a\":1}\n")),
                (4, Bytes::from_static(b"2\n")),
                (5, Bytes::from_static(b"3")),
            ]
        );
        assert_eq!(
            collect(false),
            [(1, Bytes::from_static(b"{\"a\":1}\n\n  \r\n2\n3"))]
        );
    }
}
