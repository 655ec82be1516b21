//! Logs, on standard error.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::failure::{Failure, Outcome};
use crate::output::Output;

/// Starts logging by `filter`, or by the default of the command: for a node, which runs unseen, everything that an operator wants
/// to know; for a command that somebody waits for, what is wrong.
pub(crate) fn start(filter: Option<&str>, is_node: bool, output: &Output) -> Outcome {
    let default = if is_node { "info" } else { "warn" };
    let filter = match filter.map(str::trim) {
        None | Some("") => default,
        Some(filter) => filter,
    };
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!("the log filter {filter:?} cannot be read: {error}"))
            .hint("a level (error, warn, info, debug, trace), or targets such as warn,remus=debug")
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(output.colors_stderr())
        .with_target(
            is_node || filter.max_level_hint() > Some(tracing::level_filters::LevelFilter::INFO),
        );
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| {
            Failure::new(
                remus::ErrorCode::INTERNAL,
                format!("logging cannot be started: {error}"),
            )
            .into()
        })
}
