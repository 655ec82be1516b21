//! Where output goes: data to standard output, everything else to standard error.
//!
//! Knows formats and colours; refuses to know what is being said.
//! Invariant: nothing but data is ever written to standard output.

use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::thread;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use tokio::sync::{mpsc, oneshot};

use crate::cli::{Color, Format, Talk};
use crate::failure::{Failure, Outcome, Stop, printable};

/// Pieces of output that may wait for the reader of standard output: enough to keep the writing thread busy, few enough to
/// hold the node back when nobody reads. A piece is at most one message.
const WAITING_MAX: usize = 16;

/// Bytes that are collected before they are written while more are at hand.
const BUFFER_BYTES: usize = 64 * 1024;

/// The styles in use; without colour each of them is plain, and writes nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    pub(crate) error: Style,
    pub(crate) warning: Style,
    pub(crate) tip: Style,
    pub(crate) strong: Style,
    pub(crate) faint: Style,
}

impl Paint {
    pub(crate) fn plain() -> Self {
        let plain = Style::new();
        Self {
            error: plain,
            warning: plain,
            tip: plain,
            strong: plain,
            faint: plain,
        }
    }

    fn colored() -> Self {
        Self {
            error: AnsiColor::Red.on_default().bold(),
            warning: AnsiColor::Yellow.on_default().bold(),
            tip: AnsiColor::Cyan.on_default(),
            strong: Style::new().bold(),
            faint: Style::new().dimmed(),
        }
    }

    fn when(colored: bool) -> Self {
        if colored {
            Self::colored()
        } else {
            Self::plain()
        }
    }
}

/// How this run of the command talks.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    quiet: bool,
    verbose: bool,
    /// Whether a person looks at standard output.
    pub(crate) terminal: bool,
    stderr_terminal: bool,
    /// For standard output.
    pub(crate) paint: Paint,
    stderr_paint: Paint,
}

impl Output {
    /// Looks at what standard output and standard error are. `NO_COLOR`, `CLICOLOR_FORCE` and `TERM=dumb` count where
    /// the colour is [`Color::Auto`].
    pub(crate) fn new(talk: &Talk) -> Self {
        match talk.color {
            Color::Auto => ColorChoice::Auto,
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        }
        .write_global();
        let stdout = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        let stderr = AutoStream::choice(&io::stderr()) != ColorChoice::Never;
        Self {
            format: talk.format,
            quiet: talk.quiet,
            verbose: talk.verbose,
            terminal: io::stdout().is_terminal(),
            stderr_terminal: io::stderr().is_terminal(),
            paint: Paint::when(stdout),
            stderr_paint: Paint::when(stderr),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether standard error may show colours.
    pub(crate) fn colors_stderr(&self) -> bool {
        self.stderr_paint.error != Style::new()
    }

    /// Whether something that moves may be drawn on standard error.
    pub(crate) fn may_animate(&self) -> bool {
        self.stderr_terminal && !self.quiet && !self.is_json()
    }

    /// Writes data to standard output.
    pub(crate) fn data(&self, bytes: &[u8]) -> Outcome {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| unwritable(&error))
    }

    /// Writes a line of text as data.
    pub(crate) fn line(&self, text: &str) -> Outcome {
        self.data(format!("{text}\n").as_bytes())
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json(&self, value: &impl serde::Serialize) -> Outcome {
        self.line(&json_line(value)?)
    }

    /// Tells a person something beside the data, unless `--quiet` was given. One line on standard error.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.tell("note", self.stderr_paint.tip, text);
        }
    }

    /// Tells what only `--verbose` asks for. One line on standard error.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose {
            self.note(text);
        }
    }

    /// Warns, also under `--quiet`.
    pub(crate) fn warn(&self, text: &str) {
        self.tell("warning", self.stderr_paint.warning, text);
    }

    fn tell(&self, what: &str, style: Style, text: &str) {
        let line = if self.is_json() {
            let value = serde_json::json!({ what: text });
            format!("{value}\n")
        } else {
            let strong = self.stderr_paint.strong;
            format!(
                "{style}{what}{style:#}{strong}:{strong:#} {}\n",
                printable(text)
            )
        };
        // Where standard error is gone, there is nobody left to tell.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }

    /// Tells why the command failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        let text = if self.is_json() {
            failure.json()
        } else {
            failure.text(&self.stderr_paint)
        };
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}

/// A value as JSON without line breaks.
pub(crate) fn json_line(value: &impl serde::Serialize) -> Outcome<String> {
    serde_json::to_string(value).map_err(|error| {
        Failure::new(
            remus::ErrorCode::INTERNAL,
            format!("the output cannot be written as JSON: {error}"),
        )
        .into()
    })
}

fn unwritable(error: &io::Error) -> Stop {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Stop::PipeClosed;
    }
    Failure::new(
        remus::ErrorCode::UNKNOWN,
        format!("cannot write to standard output: {error}"),
    )
    .into()
}

/// Standard output for what streams: written by a thread of its own, so that a reader who takes its time, such as a pager,
/// holds up neither heartbeats nor Ctrl-C.
pub(crate) struct Printer {
    pieces: mpsc::Sender<Vec<u8>>,
    /// `None` once the end has been told.
    ended: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Printer {
    /// Starts the thread. It ends with [`Printer::finish`], with an error, or with the process.
    pub(crate) fn new() -> Outcome<Self> {
        let (pieces, waiting) = mpsc::channel(WAITING_MAX);
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name("stdout".to_owned())
            .spawn(move || {
                let _ = end.send(print(waiting));
            })
            .map_err(|error| {
                Failure::new(
                    remus::ErrorCode::RESOURCE_EXHAUSTED,
                    format!("cannot start a thread: {error}"),
                )
            })?;
        Ok(Self {
            pieces,
            ended: Some(ended),
        })
    }

    /// Hands a piece over, waiting while too many are waiting.
    pub(crate) async fn write(&mut self, piece: Vec<u8>) -> Outcome {
        if self.pieces.send(piece).await.is_ok() {
            return Ok(());
        }
        // It takes no more only after its end.
        self.end().await?;
        Err(Stop::PipeClosed)
    }

    /// Waits until everything has been written. An error that a write has told already is not told again.
    pub(crate) async fn finish(mut self) -> Outcome {
        let ended = self.ended.take();
        drop(self.pieces);
        told(ended).await
    }

    async fn end(&mut self) -> Outcome {
        told(self.ended.take()).await
    }
}

async fn told(ended: Option<oneshot::Receiver<io::Result<()>>>) -> Outcome {
    match ended {
        None => Ok(()),
        Some(ended) => match ended.await {
            Ok(Err(error)) => Err(unwritable(&error)),
            _ => Ok(()),
        },
    }
}

fn print(mut pieces: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut stdout = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
    while let Some(piece) = pieces.blocking_recv() {
        stdout.write_all(&piece)?;
        while let Ok(piece) = pieces.try_recv() {
            stdout.write_all(&piece)?;
        }
        stdout.flush()?;
    }
    Ok(())
}
