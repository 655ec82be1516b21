//! The commands, one module each.

mod bench;
mod call;
mod carrier;
mod cp;
mod ls;
mod ping;
mod publish;
mod subscribe;
mod up;

use std::time::Duration;

use bytes::Bytes;
use remus::Reply;

use crate::cli::{Cli, Command};
use crate::connect::{Node, late};
use crate::exit;
use crate::failure::{Outcome, Stop};
use crate::output::Output;

/// Runs the command to its end, to its time limit, or to Ctrl-C.
pub(crate) async fn run(cli: Cli, output: &Output) -> Outcome {
    let connection = cli.connection;
    let limit = connection.timeout;
    match cli.command {
        Command::Up(command) => up::run(command, connection.data, output).await,
        // Each of these keeps to the limit by itself, so that it can say goodbye to the node.
        Command::Sub(command) => subscribe::run(command, &connection, output).await,
        Command::Ping(command) => ping::run(command, &connection, output).await,
        Command::Call(command) => call::run(command, &connection, output).await,
        Command::Pub(command) => publish::run(command, &connection, output).await,
        Command::Ls(command) => ls::run(command, &connection, output).await,
        Command::Carrier(command) => carrier::run(command, &connection, output).await,
        Command::Cp(command) => cp::run(command, &connection, output).await,
        Command::Bench(command) => within(limit, bench::run(command, &connection, output)).await,
        Command::ExitCodes => output.data(exit::help().as_bytes()),
    }
}

/// Runs `work` with the node until it is done, until the time limit, or until Ctrl-C, and closes the connection afterwards
/// whatever came of it: the node would otherwise keep the session for a client that comes back.
async fn with_node<T>(
    node: Node,
    output: &Output,
    work: impl AsyncFnOnce(&Node) -> Outcome<T>,
) -> Outcome<T> {
    let connecting = async { Ok(node.connect_and_tell(output).await?) };
    let connection = interruptible(node.in_time(connecting)).await?;
    let outcome = interruptible(node.in_time(work(&node))).await;
    node.leave(&connection).await;
    outcome
}

/// Why not all requests of a stream were sent.
enum Unsent {
    /// The input is wrong or cannot be read.
    Here(Stop),
    /// The peer, or the connection, took no more.
    ByPeer(remus::Error),
}

/// Sends a stream of requests by `sending` and takes the one answer; the peer may give it, or give up, while the input still
/// hesitates, and then nothing more is sent and no result of `sending` is there.
async fn exchange<T>(
    sending: impl Future<Output = Result<T, Unsent>>,
    reply: Reply<Bytes>,
) -> Outcome<(Option<T>, Bytes)> {
    let answer = reply.response();
    tokio::pin!(answer, sending);
    let sent = tokio::select! {
        // Where both are there, the answer is to all that was sent.
        biased;
        sent = &mut sending => sent,
        answer = &mut answer => return Ok((None, answer?.into_inner())),
    };
    match sent {
        Ok(sent) => Ok((Some(sent), answer.await?.into_inner())),
        Err(Unsent::Here(stop)) => Err(stop),
        // Its answer says why.
        Err(Unsent::ByPeer(error)) => Err(match answer.await {
            Err(reason) => reason.into(),
            Ok(_) => error.into(),
        }),
    }
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let Some(limit) = limit else {
        return work.await;
    };
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(late(limit).into()),
    }
}

/// Drops `work` on Ctrl-C, which cancels calls and removes what is half done.
async fn interruptible<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::select! {
        outcome = work => outcome,
        () = interrupt() => Err(Stop::Interrupted),
    }
}

/// Ctrl-C; never, where the system has no such thing.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}
