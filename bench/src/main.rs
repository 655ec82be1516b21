//! Measures Remus beside its peers. `README.md` says what is measured, and how.
//!
//! One program in three parts: the orchestrator (`run`) starts a server and a driver as processes of their own for each case,
//! peer and round; `serve` is such a server, `drive` such a driver.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the results are its output"
)]

mod case;
mod load;
mod peer;
mod process;
mod report;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use case::{Case, Kind, Matrix, Runtime};
use clap::{Args, Parser, Subcommand};
use load::Window;
use peer::{Peer, Target};
use process::Server;
use report::{Report, Row};

/// What went wrong, for a person to read: this program reports and ends, nobody handles its errors.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Failure> = std::result::Result<T, E>;

/// Time of one measured window where `--seconds` says nothing, and in the quick matrix, in seconds.
const SECONDS: f64 = 1.5;
const QUICK_SECONDS: f64 = 0.25;

/// Rounds where `--rounds` says nothing: a median of five holds against two disturbed ones.
const ROUNDS: usize = 5;

/// Load before the window, in milliseconds: congestion windows, MTU discovery and branch predictors settle in it.
const WARM_UP_MS: u64 = 300;
const QUICK_WARM_UP_MS: u64 = 100;

/// What a driver may take beyond its window, and for each idle connection: a handshake, and a call at the end, on a busy machine.
const DRIVE_SLACK: Duration = Duration::from_secs(20);
const CONNECTION_SLACK: Duration = Duration::from_millis(20);

#[derive(Parser)]
#[command(
    name = "remus-bench",
    about,
    version,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// Serves a peer's side of every case until it is killed.
    #[command(hide = true)]
    Serve(Serve),
    /// Answers the calls that come through a NATS server, whose log is on stdin.
    #[command(hide = true)]
    NatsResponder(Responder),
    /// Drives one case and prints what was measured.
    #[command(hide = true)]
    Drive(Drive),
}

#[derive(Args)]
struct Run {
    /// The whole matrix in under a minute: one round of short windows, good for a look and not for a claim.
    #[arg(long)]
    quick: bool,
    /// Rounds; each visits every case and peer once. [default: 5, quick: 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of a measured window. [default: 1.5, quick: 0.25]
    #[arg(long)]
    seconds: Option<f64>,
    /// These cases only.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// These peers only.
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Of Remus: these carriers, instead of WebTransport alone; needs `remus` among the peers.
    #[arg(long, value_delimiter = ',', value_parser = carrier)]
    carriers: Vec<Peer>,
    /// Unary: calls in flight, instead of those of the matrix.
    #[arg(long)]
    in_flight: Option<usize>,
    /// Bytes of a payload, instead of those of the matrix.
    #[arg(long)]
    size: Option<usize>,
    /// Unary, open loop: calls started per second whatever the answers do; latency counts from the intended start.
    #[arg(long)]
    rate: Option<u64>,
    /// Topic: subscribers, instead of those of the matrix.
    #[arg(long)]
    subscribers: Option<usize>,
    /// Idle: connections, instead of those of the matrix.
    #[arg(long)]
    connections: Option<usize>,
    /// Runtime of client and server, for unary and stream.
    #[arg(long, value_enum, default_value = "current")]
    runtime: Runtime,
    /// Prints a line for each round as well, not only the medians.
    #[arg(long)]
    samples: bool,
}

#[derive(Args)]
struct Serve {
    peer: Peer,
    #[arg(long)]
    tls: PathBuf,
    #[arg(long, value_enum)]
    runtime: Runtime,
}

#[derive(Args)]
struct Responder {
    #[arg(long)]
    tls: PathBuf,
    #[arg(long, value_enum)]
    runtime: Runtime,
}

#[derive(Args)]
struct Drive {
    peer: Peer,
    /// The case, as JSON.
    case: String,
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    server_pid: u32,
    #[arg(long)]
    tls: PathBuf,
    #[arg(long)]
    seconds: f64,
    #[arg(long)]
    warm_up_ms: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        None => run(&cli.run),
        Some(Command::Serve(arguments)) => serve(&arguments),
        Some(Command::NatsResponder(arguments)) => nats_responder(&arguments),
        Some(Command::Drive(arguments)) => drive(&arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("remus-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn carrier(name: &str) -> Result<Peer, String> {
    let names = || remus::Carrier::ALL.map(remus::Carrier::name).join(", ");
    remus::Carrier::from_name(name)
        .and_then(Peer::over)
        .ok_or_else(|| format!("the carriers are {}", names()))
}

// ---- the orchestrator ------------------------------------------------------------------------------

fn run(run: &Run) -> Result<ExitCode> {
    let cases = Matrix {
        quick: run.quick,
        only: &run.only,
        in_flight: run.in_flight,
        size: run.size,
        rate: run.rate,
        subscribers: run.subscribers,
        connections: run.connections,
        runtime: run.runtime,
    }
    .cases();
    let mut peers = if run.peers.is_empty() {
        Peer::ALL.to_vec()
    } else {
        run.peers.clone()
    };
    if !run.carriers.is_empty() {
        let Some(remus) = peers.iter().position(|peer| *peer == Peer::Remus) else {
            return Err("--carriers is about remus, which is not among --peers".into());
        };
        peers.splice(remus..=remus, run.carriers.iter().copied());
    }
    let seconds = run
        .seconds
        .unwrap_or(if run.quick { QUICK_SECONDS } else { SECONDS });
    if !(0.01..=3600.0).contains(&seconds) {
        return Err(format!("a window of {seconds} s is outside 0.01 to 3,600").into());
    }
    let rounds = run.rounds.unwrap_or(if run.quick { 1 } else { ROUNDS });
    let warm_up_ms = if run.quick {
        QUICK_WARM_UP_MS
    } else {
        WARM_UP_MS
    };

    let tls = tls::Files::create()?;
    let mut report = Report::default();
    let mut failed = false;
    for round in 1..=rounds {
        for case in &cases {
            for &peer in peers.iter().filter(|peer| peer.supports(case)) {
                if report.is_skipped(peer) {
                    continue;
                }
                if let Some(reason) = peer.missing() {
                    eprintln!("skipping {}: {reason}", peer.name());
                    report.skip(peer, &reason);
                    continue;
                }
                match measure(case, peer, &tls, seconds, warm_up_ms) {
                    Ok(row) => {
                        eprintln!("round {round}/{rounds}: {row}");
                        if run.samples {
                            println!("{}", row.json(round)?);
                        }
                        report.add(case, peer, row);
                    }
                    Err(error) => {
                        failed = true;
                        eprintln!(
                            "round {round}/{rounds}: {case} {}: FAILED: {error}",
                            peer.name()
                        );
                        report.fail(case, peer);
                    }
                }
            }
        }
    }
    for median in report.medians() {
        println!("{}", median.json()?);
    }
    eprint!("{}", report.table());
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// One case against one peer, once: a fresh server, a fresh driver.
fn measure(
    case: &Case,
    peer: Peer,
    tls: &tls::Files,
    seconds: f64,
    warm_up_ms: u64,
) -> Result<Row> {
    let runtime = peer.runtime(case.runtime);
    let server = Server::start(peer, runtime, tls.path())?;
    let limit = Duration::from_secs_f64(seconds)
        + Duration::from_millis(warm_up_ms)
        + DRIVE_SLACK
        + CONNECTION_SLACK * u32::try_from(case.count)?;
    let outcome = server.drive(peer, case, tls.path(), seconds, warm_up_ms, limit)?;
    Ok(Row::new(case, peer, runtime, &outcome))
}

// ---- the two ends ----------------------------------------------------------------------------------

fn serve(arguments: &Serve) -> Result<ExitCode> {
    process::end_with_parent()?;
    process::raise_file_limit()?;
    let tls = tls::Files::open(&arguments.tls);
    arguments
        .runtime
        .build()?
        .block_on(peer::serve(arguments.peer, &tls, arguments.runtime))?;
    Ok(ExitCode::SUCCESS)
}

fn nats_responder(arguments: &Responder) -> Result<ExitCode> {
    process::end_with_parent()?;
    let tls = tls::Files::open(&arguments.tls);
    arguments
        .runtime
        .build()?
        .block_on(peer::nats_responder(&tls))?;
    Ok(ExitCode::SUCCESS)
}

fn drive(arguments: &Drive) -> Result<ExitCode> {
    process::end_with_parent()?;
    process::raise_file_limit()?;
    let case: Case = serde_json::from_str(&arguments.case)?;
    let target = Target {
        address: arguments.address,
        tls: tls::Files::open(&arguments.tls),
        carrier: arguments.peer.remus_carrier(),
    };
    let window = Window {
        warm_up: Duration::from_millis(arguments.warm_up_ms),
        length: Duration::from_secs_f64(arguments.seconds),
        server_pid: arguments.server_pid,
    };
    let outcome = arguments
        .peer
        .runtime(case.runtime)
        .build()?
        .block_on(peer::drive(arguments.peer, &case, &target, window))?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(ExitCode::SUCCESS)
}
