//! Counting under valgrind.

use std::path::PathBuf;
use std::process::Command;

use crate::cases::Case;

/// What the compiler calls itself and what it compiles for: another one makes other code, so its counts cannot be compared.
pub(crate) fn compiler() -> Result<String, String> {
    let output = output(Command::new("rustc").arg("-vV"))?;
    let field = |name: &str| {
        output
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
            .ok_or_else(|| format!("rustc -vV does not tell its {name}"))
    };
    let version = output.lines().next().unwrap_or_default();
    Ok(format!("{version} for {}", field("host:")?))
}

/// Instructions for one item of the case.
pub(crate) fn per_item(case: &Case) -> Result<u64, String> {
    let few = instructions(case, case.rounds)?;
    let many = instructions(case, case.rounds.saturating_mul(11))?;
    let items = u64::from(case.rounds)
        .saturating_mul(10)
        .saturating_mul(case.items.into());
    Ok(many.saturating_sub(few).div_ceil(items.max(1)))
}

/// Instructions of a process that does the case's operation `count` times.
fn instructions(case: &Case, count: u32) -> Result<u64, String> {
    let own = std::env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
    let profile = Profile::new();
    let mut command = Command::new("valgrind");
    command
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", profile.0.display()))
        .arg(own)
        .args(["run", case.name, &count.to_string()])
        // The C library picks memcpy and the like by processor. One choice for all, so that a baseline holds on another machine.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM",
        );
    output(&mut command)?;
    let text = std::fs::read_to_string(&profile.0)
        .map_err(|error| format!("{}: {error}", profile.0.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("summary: "))
        .and_then(|count| count.trim().parse().ok())
        .ok_or_else(|| format!("{}: callgrind left no summary", case.name))
}

/// The file that callgrind writes, as long as it is needed.
struct Profile(PathBuf);

impl Profile {
    fn new() -> Self {
        let name = format!("remus-instructions.{}.out", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        // Where it cannot be removed it was never written.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{name} cannot be run: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name}: {}\n{text}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
