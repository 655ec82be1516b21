//! The command line: what can be written, and what it means.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use remus::Fingerprint;

use crate::exit;
use crate::failure::Failure;

/// Talk to a Remus node, or run one.
#[derive(Debug, Parser)]
#[command(
    name = "remus",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "Start with `remus up`. Exit codes: `remus help exit-codes`.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) talk: Talk,
}

/// How the command talks. For every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Talk {
    /// Form of the output
    #[arg(short = 'o', long = "output", value_name = "FORMAT", global = true)]
    #[arg(value_enum, default_value_t = Format::Text, help_heading = "Output")]
    pub(crate) format: Format,
    /// When to use colours; auto also looks at NO_COLOR and CLICOLOR_FORCE
    #[arg(long, value_name = "WHEN", global = true)]
    #[arg(value_enum, default_value_t = Color::Auto, help_heading = "Output")]
    pub(crate) color: Color,
    /// Only data and errors: no notes, no progress
    #[arg(short, long, global = true, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// More notes: the carrier in use, and every change of it
    #[arg(
        short,
        long,
        global = true,
        help_heading = "Output",
        conflicts_with = "quiet"
    )]
    pub(crate) verbose: bool,
    /// What to log on standard error, such as debug, or warn,remus=trace [default: warn; for up: info]
    #[arg(long, value_name = "FILTER", env = "REMUS_LOG", hide_env_values = true)]
    #[arg(global = true, help_heading = "Output")]
    pub(crate) log: Option<String>,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs: one document, or one line for each element of what streams
    Json,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

/// Which node to talk to, and how. For every command but `up`, which uses the data directory alone.
#[derive(Clone, Debug, Args)]
pub(crate) struct Connection {
    /// Which node to talk to
    #[arg(
        long,
        visible_alias = "to",
        env = "REMUS_URL",
        hide_env_values = true,
        global = true
    )]
    #[arg(default_value = "remus://localhost:4433", help_heading = "Node")]
    pub(crate) url: String,
    /// Data directory of the local node; its CA is trusted [default: $XDG_DATA_HOME/remus or ~/.local/share/remus]
    #[arg(long, value_name = "DIR", env = "REMUS_DATA", hide_env_values = true)]
    #[arg(global = true, help_heading = "Node")]
    pub(crate) data: Option<PathBuf>,
    /// Trust the authorities in this PEM file instead
    #[arg(long, value_name = "FILE", global = true, help_heading = "Node")]
    pub(crate) ca: Option<PathBuf>,
    /// Trust only the certificate with this digest, as `remus up` prints it
    #[arg(long, value_name = "SHA256", global = true, help_heading = "Node")]
    #[arg(conflicts_with = "ca")]
    pub(crate) pin: Option<Fingerprint>,
    /// Use these carriers and no others, the preferred one first; may be repeated [default: all of them]
    #[arg(
        long,
        value_name = "NAME",
        value_enum,
        value_delimiter = ',',
        global = true
    )]
    #[arg(help_heading = "Node")]
    pub(crate) carrier: Vec<Carrier>,
    /// How long the command may take in all, such as 500ms, 10s or 2m [default: 10s to connect, 30s for an answer]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    #[arg(global = true, help_heading = "Node")]
    pub(crate) timeout: Option<Duration>,
}

/// Options of [`Connection`] that `up` does not have.
const CLIENT_ONLY: [&str; 5] = ["url", "ca", "pin", "carrier", "timeout"];

/// What frames travel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Carrier {
    /// WebTransport over HTTP/3, on UDP
    #[value(name = "webtransport")]
    WebTransport,
    /// A WebSocket, on TCP
    #[value(name = "websocket")]
    WebSocket,
    /// HTTP requests that wait for their answers, on UDP or TCP
    #[value(name = "http-poll")]
    LongPoll,
    /// HTTP requests one way and server-sent events the other, on TCP
    #[value(name = "http-events")]
    ServerSentEvents,
}

impl Carrier {
    /// The same to the library.
    pub(crate) fn named(self) -> remus::Carrier {
        match self {
            Self::WebTransport => remus::Carrier::WebTransport,
            Self::WebSocket => remus::Carrier::WebSocket,
            Self::LongPoll => remus::Carrier::LongPoll,
            Self::ServerSentEvents => remus::Carrier::ServerSentEvents,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node
    ///
    /// Runs until Ctrl-C or SIGTERM, then lets accepted calls finish; a second signal ends it at once. Settings come from
    /// the defaults, the file, REMUS_* variables and options, each overriding what stands before it.
    Up(Up),
    /// Call a method
    ///
    /// Whether request and answer stream is looked up at the node. For a method whose requests stream, each line of the
    /// input is one request.
    Call(Call),
    /// Publish to a topic
    ///
    /// Ends when the node's broker has taken the message.
    Pub(Publish),
    /// Subscribe to topics
    ///
    /// Prints one line for each message until Ctrl-C, and subscribes again when the node went away and came back. What is
    /// published meanwhile is missed.
    Sub(Subscribe),
    /// List what the node has
    Ls(List),
    /// Measure the round trip to the node, and show how it is connected
    Ping(Ping),
    /// Copy a file to the node or from it
    ///
    /// One side is remus://HOST[:PORT]/PATH, the other a file here, or - for standard input or output. Both sides compute
    /// the SHA-256 of what they read and wrote, and the copy fails if they differ. A file appears under its name only when
    /// it is whole.
    Cp(Copy),
    /// See what carries the node's sessions, and change it
    ///
    /// Nothing is lost by a carrier that is dropped or switched: calls, streams and subscriptions go on over the next one.
    Carrier(CarrierCommand),
    /// Measure what a node and the way to it carry
    ///
    /// Measures until the time or the number is reached, or until Ctrl-C, and then says what came of it. Without --rate the
    /// next operation waits for the one before it, so that a node that stands still for a second also stops the measurement:
    /// that shows what it carries. With --rate operations begin when they are due, and their latency counts from then on,
    /// whether anything could be sent or not: that shows how long users wait.
    Bench(Bench),
    /// What exit codes mean
    #[command(hide = true)]
    ExitCodes,
}

/// Arguments of [`Command::Up`].
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Where to listen, on UDP (unless it is blocked) and TCP; port 0 takes any free one [default: [::]:4433]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Leave UDP alone, so that clients come over TCP: how they fare behind many a firewall
    #[arg(long)]
    pub(crate) block_udp: bool,
    /// Settings in TOML
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Arguments of [`Command::Call`].
#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Full name, such as host.v1.Host/Info; `remus ls methods` lists them
    #[arg(value_name = "SERVICE/METHOD")]
    pub(crate) method: String,
    /// The request: JSON, @FILE, or - for standard input [default: {}; standard input where requests stream]
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    pub(crate) input: Option<OsString>,
    /// Take the answer as a stream, without asking the node
    #[arg(long)]
    pub(crate) stream: bool,
    /// Send metadata; may be repeated
    #[arg(long, short = 'm', value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,
    /// The call may run twice: repeat it where the connection is lost
    #[arg(long)]
    pub(crate) idempotent: bool,
    /// Send the input and write the answer as bytes, which need not be JSON
    #[arg(long)]
    pub(crate) raw: bool,
}

/// Arguments of [`Command::Pub`].
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Such as chat.room
    pub(crate) topic: String,
    /// Text, @FILE, or - for standard input [default: nothing]
    #[arg(value_name = "PAYLOAD", allow_hyphen_values = true)]
    pub(crate) payload: Option<OsString>,
}

/// Arguments of [`Command::Sub`].
#[derive(Debug, Args)]
pub(crate) struct Subscribe {
    /// Such as chat.room, chat.* or 'host.>': `*` stands for one token, `>` for the rest
    pub(crate) pattern: String,
    /// Share the messages with the others in this group: each goes to one of them
    #[arg(long, value_name = "GROUP")]
    pub(crate) queue: Option<String>,
    /// End after this many messages
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// What the node does when this side is too slow
    #[arg(long, value_enum, default_value_t = Overflow::DropOldest)]
    pub(crate) overflow: Overflow,
    /// Messages that may wait at the node
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) capacity: u32,
    /// Print payloads alone, as they are, each followed by a line break
    #[arg(long)]
    pub(crate) raw: bool,
}

/// What the node does when a subscriber is too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Overflow {
    /// Publishers wait
    Wait,
    /// The oldest message makes way
    DropOldest,
    /// The new message is dropped
    DropNewest,
    /// The subscription ends, with an error
    End,
}

/// Arguments of [`Command::Ls`].
#[derive(Debug, Args)]
pub(crate) struct List {
    /// What to list; without it, everything
    #[arg(value_enum)]
    pub(crate) what: Option<Listed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Listed {
    Services,
    Methods,
    Topics,
    Peers,
}

/// Arguments of [`Command::Ping`].
#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// End after this many
    #[arg(long, short = 'n', default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: u64,
    /// Pause between two
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(crate) interval: Duration,
}

/// Arguments of [`Command::Cp`].
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// What to copy
    #[arg(value_name = "SRC")]
    pub(crate) source: OsString,
    /// Where to; a directory, or a path that ends in /, takes the file under its own name
    #[arg(value_name = "DST")]
    pub(crate) destination: OsString,
    /// Fail rather than replace a file
    #[arg(long, short = 'n')]
    pub(crate) no_clobber: bool,
}

/// Arguments of [`Command::Carrier`].
#[derive(Debug, Args)]
pub(crate) struct CarrierCommand {
    #[command(subcommand)]
    pub(crate) what: Carriers,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Carriers {
    /// List the node's sessions
    Ls,
    /// Drop a session's carrier, as if the network had broken
    Drop {
        /// The session's number, or all: every session but this command's own
        #[arg(value_name = "SESSION|all", value_parser = session_or_all)]
        session: Chosen,
    },
    /// Ask a session's client to go on over another carrier
    Switch {
        /// The session's number
        session: u64,
        /// The carrier to go on over
        #[arg(value_enum, value_name = "NAME")]
        to: Carrier,
    },
}

/// One session, or all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen(pub(crate) Option<u64>);

fn session_or_all(text: &str) -> Result<Chosen, String> {
    if text == "all" {
        return Ok(Chosen(None));
    }
    let number = text.parse().map(|number| Chosen(Some(number)));
    number.map_err(|_| {
        "expected the number of a session, as `remus carrier ls` shows it, or all".to_owned()
    })
}

/// Arguments of [`Command::Bench`].
#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: Measured,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Measured {
    /// Calls with one request and one answer: an echo
    Rpc(BenchRpc),
    /// Streams of elements, from the node or, with --up, to it
    Stream(BenchStream),
    /// Messages through a topic, from publish to arrival
    Topic(BenchTopic),
}

/// How long to measure.
#[derive(Clone, Debug, Args)]
pub(crate) struct Span {
    /// Measure for this long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// Measure this many operations instead, however long they take
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..=BENCH_COUNT_MAX))]
    #[arg(conflicts_with = "duration")]
    pub(crate) count: Option<u64>,
    /// Do the same for this long before, without measuring it
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration_or_none)]
    pub(crate) warm_up: Duration,
}

/// Most operations of one measurement: what the node sends in one stream.
const BENCH_COUNT_MAX: u64 = remus_node::bench::BENCH_ELEMENTS_MAX;

/// Most operations a second: one every 100 ns, which nothing here reaches.
const BENCH_RATE_MAX: u64 = 10_000_000;

/// Arguments of [`Measured::Rpc`].
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchRpc {
    /// Bytes of each request and answer, such as 64 or 16KiB; at most 1MiB
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = bench_size)]
    pub(crate) size: usize,
    /// Calls that are open at once, over all connections [default: 1; with --rate at most 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) in_flight: Option<u32>,
    /// Connections that they are made over
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) connections: u32,
    /// Begin so many calls a second, whether the ones before are answered or not
    #[arg(long, value_name = "PER_SECOND")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=BENCH_RATE_MAX))]
    pub(crate) rate: Option<u64>,
    #[command(flatten)]
    pub(crate) span: Span,
}

/// Arguments of [`Measured::Stream`].
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchStream {
    /// Send to the node rather than receive from it
    #[arg(long)]
    pub(crate) up: bool,
    /// Bytes of each element, such as 64 or 16KiB; at most 1MiB
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = bench_size)]
    pub(crate) size: usize,
    /// Streams at once, all on one connection
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) streams: u32,
    #[command(flatten)]
    pub(crate) span: Span,
}

/// Arguments of [`Measured::Topic`].
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchTopic {
    /// Bytes of each message, such as 128 or 16KiB; 16 to 1MiB
    #[arg(long, value_name = "BYTES", default_value = "128", value_parser = bench_message_size)]
    pub(crate) size: usize,
    /// Subscribers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) subscribers: u32,
    /// Messages that the node has not yet confirmed [default: 64; with --rate at most 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) in_flight: Option<u32>,
    /// Publish so many a second, whether the ones before are confirmed or not
    #[arg(long, value_name = "PER_SECOND")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=BENCH_RATE_MAX))]
    pub(crate) rate: Option<u64>,
    #[command(flatten)]
    pub(crate) span: Span,
}

/// Bytes that a message of `bench topic` needs for what it is measured by.
pub(crate) const BENCH_MESSAGE_MIN: usize = 16;

fn bench_size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit: usize = match text.get(digits.len()..) {
        Some("" | "B") => 1,
        Some("KiB") => 1024,
        Some("MiB") => 1024 * 1024,
        _ => return Err("the units are B, KiB and MiB, as in 16KiB".to_owned()),
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty();
    if !plain {
        return Err("expected a number of bytes, as in 64 or 16KiB".to_owned());
    }
    let bytes: Option<usize> = digits.parse().ok();
    bytes
        .and_then(|number| number.checked_mul(unit))
        .filter(|bytes| *bytes <= remus_node::bench::BENCH_SIZE_MAX)
        .ok_or_else(|| "the most is 1MiB".to_owned())
}

fn bench_message_size(text: &str) -> Result<usize, String> {
    let bytes = bench_size(text)?;
    if bytes < BENCH_MESSAGE_MIN {
        return Err(format!(
            "the least is {BENCH_MESSAGE_MIN}: a message carries what it is measured by"
        ));
    }
    Ok(bytes)
}

/// [`duration`], or `0` for none.
fn duration_or_none(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" | "0ms" => Ok(Duration::ZERO),
        text => duration(text),
    }
}

/// Longest time that an option takes: what a message's time budget can say is longer still.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads `500ms`, `10s`, `2m`, `1h`; a number alone is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit_ms = match text.get(digits.len()..) {
        Some("ms") => 1.0,
        Some("" | "s") => 1e3,
        Some("m") => 60e3,
        Some("h") => 3600e3,
        _ => return Err("the units are ms, s, m and h, as in 500ms".to_owned()),
    };
    let plain = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = digits
        .parse()
        .ok()
        .filter(|_| plain)
        .ok_or("expected a number and a unit, as in 500ms, 10s or 2m")?;
    let duration = Duration::try_from_secs_f64(number * unit_ms / 1e3)
        .ok()
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or("the longest is 24h")?;
    if duration < Duration::from_millis(1) {
        return Err("the shortest is 1ms".to_owned());
    }
    Ok(duration)
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// What the arguments amount to.
pub(crate) enum Parsed {
    /// A command to run.
    Run(Box<Cli>),
    /// Something to print on standard output: a help text or the version.
    Print(String),
    /// No valid command line.
    Wrong {
        /// For programs.
        failure: Box<Failure>,
        /// For people: the same with styles and usage.
        text: String,
        /// What was said of the output up to there.
        format: Format,
    },
}

/// Reads the arguments, of which the first is the program's name.
pub(crate) fn parse(arguments: Vec<OsString>) -> Parsed {
    let (format, color) = ahead(&arguments);
    let mut command = Cli::command()
        .color(match color {
            Color::Auto => clap::ColorChoice::Auto,
            Color::Always => clap::ColorChoice::Always,
            Color::Never => clap::ColorChoice::Never,
        })
        .mut_subcommand("exit-codes", |topic| topic.override_help(exit::help()))
        // Options of all commands that mean nothing to `up`: its own hide them in its help, and an error says so below.
        .mut_subcommand("up", |up| {
            up.args(CLIENT_ONLY.map(|name| clap::Arg::new(name).long(name).hide(true)))
        });
    let matches = match command.try_get_matches_from_mut(arguments) {
        Ok(matches) => matches,
        Err(error) => return refused(&error, format, color),
    };
    if let Some(("up", up)) = matches.subcommand() {
        let given =
            |name: &&str| up.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
        if let Some(name) = CLIENT_ONLY.iter().find(|name| given(name)) {
            let error = command.error(
                clap::error::ErrorKind::ArgumentConflict,
                format!("`up` runs a node and has no option --{name}; it takes --data, --listen, --block-udp and --config"),
            );
            return refused(&error, format, color);
        }
    }
    match Cli::from_arg_matches(&matches) {
        Ok(cli) => Parsed::Run(Box::new(cli)),
        Err(error) => refused(&error.format(&mut command), format, color),
    }
}

fn refused(error: &clap::Error, format: Format, color: Color) -> Parsed {
    let rendered = error.render();
    let stream_is_colored = match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto if error.use_stderr() => {
            anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
        }
        Color::Auto => {
            anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
        }
    };
    let text = if stream_is_colored {
        rendered.ansi().to_string()
    } else {
        rendered.to_string()
    };
    if !error.use_stderr() {
        return Parsed::Print(text);
    }
    let plain = match error.kind() {
        // The help alone does not say what is wrong.
        clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "no command was given".to_owned()
        }
        _ => rendered.to_string(),
    };
    let message = plain.strip_prefix("error: ").unwrap_or(&plain).trim_end();
    // The first paragraph says what is wrong; usage follows.
    let (message, rest) = message.split_once("\n\n").unwrap_or((message, ""));
    let mut failure = Failure::usage(message);
    if let Some(tip) = rest
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "))
    {
        failure = failure.hint(tip);
    }
    Parsed::Wrong {
        failure: Box::new(failure.or_hint("`remus --help` shows commands and options")),
        text,
        format,
    }
}

/// The form of output and the colours that the arguments ask for, read before they are known to be valid: an error in them has to
/// be told in the form that was asked for.
fn ahead(arguments: &[OsString]) -> (Format, Color) {
    let (mut format, mut color) = (Format::Text, Color::Auto);
    let mut arguments = arguments.iter().skip(1).filter_map(|text| text.to_str());
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            break;
        }
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (argument, None),
        };
        match name {
            "-o" | "--output" => {
                let value = value.or_else(|| arguments.next());
                format = value
                    .and_then(|value| Format::from_str(value, false).ok())
                    .unwrap_or(format);
            }
            "-ojson" => format = Format::Json,
            "--color" => {
                let value = value.or_else(|| arguments.next());
                color = value
                    .and_then(|value| Color::from_str(value, false).ok())
                    .unwrap_or(color);
            }
            _ => {}
        }
    }
    (format, color)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Parsed {
        let words = std::iter::once("remus").chain(line.split_whitespace());
        parse(words.map(OsString::from).collect())
    }

    fn cli(line: &str) -> Cli {
        match parsed(line) {
            Parsed::Run(cli) => *cli,
            Parsed::Print(text) | Parsed::Wrong { text, .. } => panic!("{line}: {text}"),
        }
    }

    fn wrong(line: &str) -> (String, Format) {
        match parsed(line) {
            Parsed::Wrong {
                failure, format, ..
            } => {
                assert_eq!(failure.exit().code(), 2);
                (failure.json(), format)
            }
            Parsed::Run(cli) => panic!("{line}: {cli:?}"),
            Parsed::Print(text) => panic!("{line}: {text}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for line in [
            "--url remus://h:1 -o json ls",
            "ls --url remus://h:1 -o json",
            "ls --url=remus://h:1 -ojson",
        ] {
            let cli = cli(line);
            assert_eq!(cli.connection.url, "remus://h:1");
            assert_eq!(cli.talk.format, Format::Json);
        }
    }

    #[test]
    fn carriers_are_named_one_by_one_or_together() {
        for line in [
            "ls --carrier http-poll,websocket",
            "ls --carrier http-poll --carrier websocket",
        ] {
            let expected = vec![Carrier::LongPoll, Carrier::WebSocket];
            assert_eq!(cli(line).connection.carrier, expected, "{line}");
        }
        for carrier in Carrier::value_variants() {
            let value = carrier.to_possible_value().unwrap();
            assert_eq!(value.get_name(), carrier.named().name());
        }
    }

    #[test]
    fn up_has_no_options_of_clients() {
        for option in [
            "--url remus://h",
            "--ca x",
            "--carrier webtransport",
            "--timeout 1s",
        ] {
            let (json, _) = wrong(&format!("up {option}"));
            assert!(json.contains("has no option --"), "{json}");
        }
        assert_eq!(cli("up --data d").connection.data, Some(PathBuf::from("d")));
    }

    #[test]
    fn wrong_lines_are_refused_with_the_reason() {
        for (line, reason) in [
            ("", "no command was given"),
            ("frobnicate", "unrecognized subcommand 'frobnicate'"),
            ("ls --no-such", "unexpected argument '--no-such'"),
            (
                "ls --carrier carrier-pigeon",
                "possible values: webtransport, websocket, http-poll, http-events",
            ),
            ("ls --timeout soon", "the units are ms, s, m and h"),
            ("ls --timeout 10y", "the units are ms, s, m and h"),
            ("ls --timeout 0s", "the shortest is 1ms"),
            ("ls --timeout 1e9s", "expected a number and a unit"),
            ("ls --timeout=-1s", "expected a number and a unit"),
            ("ls --timeout 25h", "the longest is 24h"),
            ("ls --pin 12", "2 hexadecimal digits instead of 64"),
            ("ls --ca a --pin 12", "2 hexadecimal digits instead of 64"),
            (
                "ls everything",
                "possible values: services, methods, topics, peers",
            ),
            ("sub x --count 0", "0 is not in 1.."),
            ("sub x --capacity 65537", "65537 is not in 1..=65536"),
            (
                "sub x --overflow explode",
                "possible values: wait, drop-oldest",
            ),
            ("call a/b --metadata novalue", "expected KEY=VALUE"),
            ("up --listen 4433", "invalid socket address"),
            ("cp onlyone", "required arguments were not provided"),
            ("carrier", "no command was given"),
            (
                "carrier drop everything",
                "expected the number of a session",
            ),
            ("carrier switch 3", "required arguments were not provided"),
            ("carrier switch 3 pigeon", "possible values: webtransport"),
            ("bench", "no command was given"),
            ("bench everything", "unrecognized subcommand"),
            ("bench rpc --size 2MiB", "the most is 1MiB"),
            ("bench rpc --size 1GB", "the units are B, KiB and MiB"),
            ("bench rpc --size KiB", "expected a number of bytes"),
            ("bench rpc --in-flight 0", "0 is not in 1..=65536"),
            ("bench rpc --connections 2000", "2000 is not in 1..=1024"),
            ("bench rpc --rate 0", "0 is not in 1..=10000000"),
            ("bench rpc --count 0", "0 is not in 1..="),
            ("bench rpc --count 1 --duration 1s", "cannot be used with"),
            ("bench rpc --duration 0s", "the shortest is 1ms"),
            ("bench stream --rate 5", "unexpected argument '--rate'"),
            ("bench stream --streams 257", "257 is not in 1..=256"),
            ("bench topic --size 15", "the least is 16"),
            ("bench topic --subscribers 0", "0 is not in 1..=1024"),
            ("-o yaml ls", "possible values: text, json"),
        ] {
            let (json, _) = wrong(line);
            assert!(json.contains(reason), "{line}: {json}");
        }
    }

    #[test]
    fn a_wrong_line_is_told_in_the_form_it_asks_for() {
        for line in [
            "ls --no-such -o json",
            "-o=json frobnicate",
            "ls -ojson --no-such",
        ] {
            assert_eq!(wrong(line).1, Format::Json, "{line}");
        }
        assert_eq!(wrong("call -- -o json x y z").1, Format::Text);
    }

    #[test]
    fn times_have_units() {
        for (text, ms) in [
            ("250ms", 250),
            ("3", 3_000),
            ("1.5s", 1_500),
            ("2m", 120_000),
            ("24h", 86_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1 s", "inf", "NaN", "1s2", "1.2.3s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("0", 0), ("64", 64), ("7B", 7), ("16KiB", 16_384)] {
            assert_eq!(bench_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(bench_size("1MiB"), Ok(1_048_576));
        for text in ["", "-1", "1 KiB", "1.5KiB", "1kb", "99999999999999999999"] {
            assert!(bench_size(text).is_err(), "{text:?}");
        }
        assert_eq!(duration_or_none("0"), Ok(Duration::ZERO));
        assert_eq!(duration_or_none("5ms"), Ok(Duration::from_millis(5)));
    }

    #[test]
    fn the_node_to_measure_has_two_names() {
        for line in ["bench rpc --to remus://h:1", "bench --url remus://h:1 rpc"] {
            assert_eq!(cli(line).connection.url, "remus://h:1");
        }
    }

    #[test]
    fn the_exit_codes_have_a_help_topic() {
        let Parsed::Print(text) = parsed("help exit-codes") else {
            panic!("no help")
        };
        assert!(text.contains("DEADLINE_EXCEEDED"), "{text}");
        assert!(matches!(parsed("--version"), Parsed::Print(text) if text.starts_with("remus ")));
    }
}
