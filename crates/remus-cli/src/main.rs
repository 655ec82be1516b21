//! The `remus` command: `up` runs a node, everything else talks to one.
//!
//! Data goes to standard output, everything else to standard error; each kind of failure has its exit code.

mod cli;
mod commands;
mod connect;
mod directory;
mod exit;
mod failure;
mod input;
mod json;
mod logging;
mod output;

use std::io::Write as _;

use crate::cli::{Cli, Command, Format, Parsed};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, Stop};
use crate::output::Output;

fn main() {
    let exit = run();
    // Threads may still wait in a read of standard input; they end with the process.
    std::process::exit(i32::from(exit.code()));
}

fn run() -> Exit {
    let cli = match cli::parse(std::env::args_os().collect()) {
        Parsed::Run(cli) => *cli,
        Parsed::Print(text) => {
            // Whoever closed the pipe does not want the rest.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            return Exit::Ok;
        }
        Parsed::Wrong {
            failure,
            text,
            format,
        } => {
            let text = match format {
                Format::Text => text,
                Format::Json => failure.json(),
            };
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
            return failure.exit();
        }
    };
    let output = Output::new(&cli.talk);
    match execute(cli, &output) {
        Ok(()) | Err(Stop::PipeClosed) => Exit::Ok,
        Err(Stop::Interrupted) => Exit::Interrupted,
        Err(Stop::Failed(failure)) => {
            output.failure(&failure);
            failure.exit()
        }
    }
}

fn execute(cli: Cli, output: &Output) -> Outcome {
    logging::start(
        cli.talk.log.as_deref(),
        matches!(cli.command, Command::Up(_)),
        output,
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(
                remus::ErrorCode::RESOURCE_EXHAUSTED,
                format!("cannot start the runtime: {error}"),
            )
        })?;
    let outcome = runtime.block_on(commands::run(cli, output));
    runtime.shutdown_background();
    outcome
}
