//! The stored counts, and how far from them is still the same.

use std::fmt;
use std::path::PathBuf;

/// How far a count may be from the stored one, in per cent.
///
/// Runs differ by 0.2 % at most (seeds of hash tables). The rest leaves room for another release of the C library, whose memcpy
/// and malloc are counted as well. What is beyond was changed here.
pub(crate) const TOLERANCE_PER_CENT: f64 = 5.0;

const HEAD: &str = "\
# Instructions for one item of each case, counted by callgrind; `./test` compares.
# cargo run --release -p remus-instructions -- --store   # writes this file anew
";

/// Key of the line that names the compiler.
const COMPILER: &str = "compiler";

/// What was stored.
pub(crate) struct Baseline {
    pub(crate) compiler: String,
    /// Instructions by case.
    pub(crate) counts: Vec<(String, u64)>,
}

impl Baseline {
    pub(crate) fn load() -> Result<Self, String> {
        let path = path();
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|line| format!("{}: {line}", path.display()))
    }

    pub(crate) fn store(&self) -> Result<(), String> {
        let path = path();
        std::fs::write(&path, self.to_string())
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        self.counts
            .iter()
            .find_map(|(stored, count)| (stored == name).then_some(*count))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut compiler = None;
        let mut counts = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (key, value) = line.split_once(" = ").ok_or(line)?;
            let key = key.trim();
            if key == COMPILER {
                compiler = Some(value.to_owned());
            } else {
                let count = value.parse().map_err(|error| format!("{line}: {error}"))?;
                counts.push((key.to_owned(), count));
            }
        }
        Ok(Self {
            compiler: compiler.ok_or("it does not name its compiler")?,
            counts,
        })
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}{COMPILER} = {}", self.compiler)?;
        for (name, count) in &self.counts {
            writeln!(f, "{name} = {count}")?;
        }
        Ok(())
    }
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("baseline.txt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_again() {
        let baseline = Baseline {
            compiler: "rustc 1.0.0 for x86_64-unknown-linux-gnu".to_owned(),
            counts: vec![("a".to_owned(), 12), ("b".to_owned(), 3)],
        };
        let read = Baseline::parse(&baseline.to_string()).unwrap();
        assert_eq!(read.compiler, baseline.compiler);
        assert_eq!(read.counts, baseline.counts);
        assert_eq!(read.count("b"), Some(3));
        assert_eq!(read.count("c"), None);
    }

    #[test]
    fn a_line_that_is_no_count_is_told() {
        for text in ["compiler = r\na = many\n", "compiler = r\na\n", "a = 1\n"] {
            assert!(Baseline::parse(text).is_err(), "{text}");
        }
    }

    /// Each case is stored, and nothing else is: a case that was renamed would no longer be compared.
    #[test]
    fn the_stored_cases_are_the_cases() {
        let stored: Vec<String> = Baseline::load()
            .unwrap()
            .counts
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let cases: Vec<&str> = crate::cases::CASES.iter().map(|case| case.name).collect();
        assert_eq!(stored, cases);
    }
}
