//! A bad network by hand: a proxy for UDP and TCP whose conditions are typed while it runs.

use std::io::{self, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::thread;

use remus_testing::chaos::{Command, Handle, Proxy, Settings};
use tokio::sync::mpsc;

const HELP: &str = "\
A proxy for UDP and TCP that makes a good network bad.

    chaos --to ADDRESS [--listen ADDRESS] [--seed NUMBER] [--CONDITION VALUE]... [--set COMMAND]...

--to ADDRESS        the server, such as 127.0.0.1:4433
--listen ADDRESS    where clients connect, UDP and TCP; default a free port of loopback
--seed NUMBER       what decisions are drawn from; default 0
--delay 20ms        any condition below, for both directions of every protocol that has it
--set COMMAND       a command below, before the first byte passes: --set 'tcp down delay 1s'

Commands, one a line, while it runs; without udp or tcp they mean both, without up (to the server) or down both ways:

    [udp|tcp] [up|down] delay TIME           how long everything is on its way: 20ms, 1.5s, 250us
    [udp|tcp] [up|down] jitter TIME          up to so much is added, in order
    [udp] [up|down] loss SHARE               0.01 or 1%
    [udp] [up|down] duplicate SHARE
    [udp] [up|down] reorder SHARE            overtaken by the next few
    [udp|tcp] [up|down] bandwidth RATE|off   512kbit, 10mbit, 1gbit
    [udp|tcp] [up|down] blackhole on|off     nothing passes; TCP goes on where it was
    [tcp] refuse on|off                      new connections are reset at once
    [udp|tcp] reset                          UDP: what comes next is from another port; TCP: connections are reset
    clear                                    everything passes at once again
    show | counts | help | quit
";

/// Lines that may wait to be carried out; beyond it the input is not read.
const LINES_MAX: usize = 16;

/// What the command line asks for.
#[derive(Debug, Default)]
struct Arguments {
    to: Option<SocketAddr>,
    listen: Option<SocketAddr>,
    seed: u64,
    commands: Vec<Command>,
    help: bool,
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        if word == "--help" || word == "-h" {
            arguments.help = true;
            continue;
        }
        let name = word
            .strip_prefix("--")
            .ok_or_else(|| format!("`{word}` is too much"))?;
        let value = words
            .next()
            .ok_or_else(|| format!("{word} takes a value"))?;
        let command = match name {
            "to" => {
                arguments.to = Some(address(&value)?);
                continue;
            }
            "listen" => {
                arguments.listen = Some(address(&value)?);
                continue;
            }
            "seed" => {
                arguments.seed = value
                    .parse()
                    .map_err(|_| format!("`{value}` is no seed; it takes a number"))?;
                continue;
            }
            "set" => value,
            condition => format!("{condition} {value}"),
        };
        let command = command
            .parse()
            .map_err(|error| format!("{word}: {error}"))?;
        arguments.commands.push(command);
    }
    Ok(arguments)
}

/// An address as text, or the first of a name, IPv4 before IPv6.
fn address(text: &str) -> Result<SocketAddr, String> {
    let addresses = text
        .to_socket_addrs()
        .map_err(|error| format!("`{text}` is no address with a port: {error}"))?;
    addresses
        .min_by_key(SocketAddr::is_ipv6)
        .ok_or_else(|| format!("`{text}` has no address"))
}

fn main() -> ExitCode {
    let arguments = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => return failed(&message, 2),
    };
    let Some(to) = arguments.to else {
        if arguments.help {
            return match say(HELP) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        return failed("--to is missing; --help tells the rest", 2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = runtime.and_then(|runtime| runtime.block_on(serve(to, &arguments)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string(), 1),
    }
}

fn failed(message: &str, code: u8) -> ExitCode {
    // Where nobody can be told, the exit code still says it.
    let _ = writeln!(io::stderr(), "chaos: {message}");
    ExitCode::from(code)
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    out.flush()
}

async fn serve(to: SocketAddr, arguments: &Arguments) -> io::Result<()> {
    let mut builder = Proxy::to(to).seed(arguments.seed);
    if let Some(listen) = arguments.listen {
        builder = builder.listen(listen);
    }
    let mut settings = Settings::default();
    for command in &arguments.commands {
        command.apply(&mut settings);
    }
    let proxy = builder.settings(settings).start().await?;
    say(&format!(
        "{} leads to {to}, UDP and TCP, seed {}",
        proxy.address(),
        arguments.seed
    ))?;
    // Input blocks, and only a thread may. It ends with the process.
    let (lines, mut typed) = mpsc::channel(LINES_MAX);
    thread::spawn(move || {
        for line in io::stdin().lines() {
            let Ok(line) = line else { break };
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    while let Some(line) = typed.recv().await {
        match line.trim() {
            "" => {}
            "quit" => {
                proxy.close().await;
                return Ok(());
            }
            line => say(&answer(line, proxy.handle()))?,
        }
    }
    // Without anybody to type, it serves until it is killed.
    std::future::pending().await
}

/// Carries out a line and says what became of it.
fn answer(line: &str, handle: &Handle) -> String {
    match line {
        "show" => format!("{:#?}", handle.settings()),
        "counts" => format!("{:#?}", handle.counts()),
        "help" => HELP.to_owned(),
        line => match line.parse() {
            Ok(command) => {
                handle.apply(command);
                "done".to_owned()
            }
            Err(error) => format!("{error}"),
        },
    }
}
