//! Counts the instructions of the hot paths of codec and session, and holds them against `baseline.txt` beside this crate.
//!
//! Wall time tells little on a busy machine; the number of instructions is the same each time, so it shows a change of a
//! few per cent. Each case runs twice under valgrind's callgrind, a few times and many times: the difference is what the
//! operations cost, without the start of the process and the preparation.
//!
//! - `cargo run --release -p remus-instructions` compares, and fails where a count rose beyond the tolerance.
//! - `… -- --store` writes the baseline anew.
//! - `… -- run CASE COUNT` only does a case's operation so many times: for a profiler.
//!
//! Exit codes: 0, all within the tolerance or below; 1, a count rose, or counting failed; 200, the baseline is of another
//! compiler, and nothing was compared.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

mod baseline;
mod cases;
mod count;

use std::process::ExitCode;

use baseline::{Baseline, TOLERANCE_PER_CENT};
use cases::CASES;

/// Exit code that says that nothing was compared, as in `./test`.
const NOT_COMPARED: u8 = 200;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        [] => compare(),
        ["--store"] => store(),
        ["run", name, count] => run(name, count),
        _ => Err("arguments: none, --store, or run CASE COUNT".to_owned()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("remus-instructions: {error}");
        ExitCode::FAILURE
    })
}

fn run(name: &str, count: &str) -> Result<ExitCode, String> {
    let case = CASES
        .iter()
        .find(|case| case.name == name)
        .ok_or_else(|| format!("no case is called {name}"))?;
    let count = count.parse().map_err(|error| format!("{count}: {error}"))?;
    (case.run)(count);
    Ok(ExitCode::SUCCESS)
}

fn store() -> Result<ExitCode, String> {
    let compiler = count::compiler()?;
    let counts = CASES
        .iter()
        .map(|case| Ok((case.name.to_owned(), count::per_item(case)?)))
        .collect::<Result<_, String>>()?;
    let baseline = Baseline { compiler, counts };
    baseline.store()?;
    print!("{baseline}");
    Ok(ExitCode::SUCCESS)
}

fn compare() -> Result<ExitCode, String> {
    let baseline = Baseline::load()?;
    let compiler = count::compiler()?;
    if compiler != baseline.compiler {
        println!(
            "The baseline is of {}, but this is {compiler}: its counts mean nothing here.\n{HOW_TO_STORE}",
            baseline.compiler
        );
        return Ok(ExitCode::from(NOT_COMPARED));
    }
    println!(
        "{:<28} {:>10} {:>10}  change   instructions for each",
        "case", "before", "now"
    );
    let (mut risen, mut fallen) = (Vec::new(), Vec::new());
    for case in CASES {
        let now = count::per_item(case)?;
        let Some(before) = baseline.count(case.name) else {
            println!(
                "{:<28} {:>10} {now:>10}  new      {}",
                case.name, "", case.item
            );
            risen.push(case.name);
            continue;
        };
        let change = change_per_cent(before, now);
        println!(
            "{:<28} {before:>10} {now:>10}  {change:>+5.1} %  {}",
            case.name, case.item
        );
        if change > TOLERANCE_PER_CENT {
            risen.push(case.name);
        } else if change < -TOLERANCE_PER_CENT {
            fallen.push(case.name);
        }
    }
    Ok(verdict(&risen, &fallen))
}

const HOW_TO_STORE: &str =
    "cargo run --release -p remus-instructions -- --store   # writes a new baseline";

fn verdict(risen: &[&str], fallen: &[&str]) -> ExitCode {
    if !fallen.is_empty() {
        println!(
            "\nFewer by more than {TOLERANCE_PER_CENT} %: {}. Store that, or the next change may waste it unseen:\n{HOW_TO_STORE}",
            fallen.join(", ")
        );
    }
    if risen.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!(
        "\nMore by more than {TOLERANCE_PER_CENT} %, or not in the baseline: {}.\n\
         If that is worth what it buys, store it and say in the commit what it buys:\n{HOW_TO_STORE}",
        risen.join(", ")
    );
    ExitCode::FAILURE
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts are far below 2^52, and the result is rounded to a tenth"
)]
fn change_per_cent(before: u64, now: u64) -> f64 {
    (now as f64 - before as f64) * 100.0 / (before.max(1) as f64)
}
