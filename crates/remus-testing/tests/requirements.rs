//! Every requirement of the specification is named by a test, and every named one exists.
//!
//! A requirement is a paragraph of `docs/spec/*.md` that begins with its id in bold, such as
//! `**DEMO-12**`, and whose first line says MUST. A test names it by writing the id down: in the code, a
//! comment or a message of a test, or in a file of vectors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The line that begins the tests of a source file.
const TESTS_BEGIN: &str = "#[cfg(test)]";

/// A text with the name it goes by in messages.
struct Source {
    name: String,
    text: String,
}

impl Source {
    fn lines(&self) -> impl Iterator<Item = (String, &str)> {
        (1..)
            .zip(self.text.lines())
            .map(|(number, line)| (format!("{}:{number}", self.name), line))
    }
}

/// Holds the specification against the tests, and returns what is wrong with either.
fn check(spec: &[Source], tests: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    // Only the families that the specification uses: SHA-256 and UTF-8 look just like ids.
    let families: BTreeSet<&str> = spec
        .iter()
        .flat_map(|page| page.text.lines())
        .filter_map(leading_id)
        .map(|id| id.family)
        .collect();

    let mut defined: BTreeMap<Id<'_>, String> = BTreeMap::new();
    for (place, line) in spec.iter().flat_map(Source::lines) {
        let leading = leading_id(line);
        for id in bold_ids(line).filter(|id| families.contains(id.family)) {
            if Some(id) != leading {
                problems.push(format!(
                    "{place}: {id} is bold, but does not begin the line"
                ));
            }
        }
        let Some(id) = leading else { continue };
        if !line.contains("MUST") {
            problems.push(format!("{place}: {id} says no MUST on its first line"));
        }
        if let Some(first) = defined.get(&id) {
            problems.push(format!("{place}: {id} is already defined at {first}"));
        } else {
            defined.insert(id, place);
        }
    }

    let mut named = BTreeSet::new();
    for (place, line) in tests.iter().flat_map(Source::lines) {
        for id in ids(line).filter(|id| families.contains(id.family)) {
            if !defined.contains_key(&id) {
                problems.push(format!("{place}: {id} is not in the specification"));
            }
            named.insert(id);
        }
    }
    for (id, place) in &defined {
        if !named.contains(id) {
            problems.push(format!("{place}: {id} is named by no test"));
        }
    }
    problems
}

/// The id of a requirement: its family, such as `DEMO`, and its number.
///
/// The number is kept as written, so `DEMO-07` and `DEMO-7` are two ids, one of them undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id<'t> {
    family: &'t str,
    number: &'t str,
}

impl std::fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.family, self.number)
    }
}

impl<'t> Id<'t> {
    /// Two or more capitals or digits that begin with a capital, a hyphen, digits, nothing else.
    fn parse(word: &'t str) -> Option<Self> {
        let (family, number) = word.split_once('-')?;
        let is_family = family.len() >= 2
            && family.starts_with(|c: char| c.is_ascii_uppercase())
            && family
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        (is_family && is_number).then_some(Self { family, number })
    }
}

/// All ids in a line, each a word of its own.
fn ids(line: &str) -> impl Iterator<Item = Id<'_>> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_'))
        .filter_map(Id::parse)
}

/// The ids in a line that are set in bold, with nothing else inside the stars.
fn bold_ids(line: &str) -> impl Iterator<Item = Id<'_>> {
    // Every second piece lies between stars.
    line.split("**").skip(1).step_by(2).filter_map(Id::parse)
}

/// The id that a line defines: in bold, at its beginning or at that of a list item or table row.
fn leading_id(line: &str) -> Option<Id<'_>> {
    let line = line
        .trim_start()
        .trim_start_matches(['-', '|', '>'])
        .trim_start();
    let (id, _) = line.strip_prefix("**")?.split_once("**")?;
    Id::parse(id)
}

/// The part of a Rust file that is test code, with its lines kept in place.
fn test_code(name: &str, text: String) -> String {
    if name.ends_with("/tests.rs") || name.contains("/tests/") {
        return text;
    }
    let mut inside = false;
    let mut tests = String::new();
    for line in text.lines() {
        inside |= line.trim() == TESTS_BEGIN;
        if inside {
            tests.push_str(line);
        }
        tests.push('\n');
    }
    tests
}

/// All files under `directory` whose name ends in `.extension`, in order; none if it does not exist.
fn files(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<io::Result<_>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            files(&path, extension, found)?;
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(())
}

/// The files under `root/directory`, by their path from `root`.
fn sources(root: &Path, directory: &str, extension: &str) -> io::Result<Vec<Source>> {
    let mut paths = Vec::new();
    files(&root.join(directory), extension, &mut paths)?;
    let read = |path: PathBuf| {
        let name = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .to_string_lossy()
            .replace('\\', "/");
        Ok(Source {
            name,
            text: fs::read_to_string(path)?,
        })
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn every_requirement_is_tested_and_every_tested_one_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let spec = sources(&root, "docs/spec", "md").unwrap();
    assert!(
        spec.iter()
            .flat_map(|page| page.text.lines())
            .any(|line| leading_id(line).is_some()),
        "docs/spec defines no requirement: it is missing, or this test no longer reads it"
    );
    let mut tests = sources(&root, "vectors", "json").unwrap();
    for Source { name, text } in sources(&root, "crates", "rs").unwrap() {
        let text = test_code(&name, text);
        tests.push(Source { name, text });
    }
    let problems = check(&spec, &tests);
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

// The ids below are of a family that the specification does not use, so this file names none of it.

/// Checks one page against one test file.
fn problems(page: &str, test: &str) -> Vec<String> {
    let source = |name: &str, text: &str| Source {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    check(&[source("page.md", page)], &[source("test.rs", test)])
}

const PAGE: &str = "# Page\n\n**DEMO-1** A peer MUST. See DEMO-2.\n\n**DEMO-2** It MUST NOT.\n";
const NONE: [&str; 0] = [];

#[test]
fn a_page_whose_requirements_are_all_named_is_accepted() {
    assert_eq!(problems(PAGE, "// DEMO-1, DEMO-2\n"), NONE);
    assert_eq!(
        problems(PAGE, r#"{"spec": ["DEMO-1"]} "DEMO-2: it does""#),
        NONE
    );
    let other_places = "- **DEMO-1** MUST\n\n  **DEMO-2** MUST\n\n| **DEMO-3** | MUST |\n";
    assert_eq!(problems(other_places, "DEMO-1 DEMO-2 DEMO-3"), NONE);
}

#[test]
fn a_requirement_that_no_test_names_is_listed() {
    let unnamed = "page.md:5: DEMO-2 is named by no test";
    assert_eq!(problems(PAGE, "DEMO-1"), [unnamed]);
    // Each of these is another word that contains the id or looks like it.
    for near in [
        "DEMO-22", "DEMO-2a", "XDEMO-2", "DEMO-2-1", "DEMO_2", "DEMO-02", "ÜDEMO-2",
    ] {
        let found = problems(PAGE, &format!("DEMO-1 {near}"));
        assert!(
            found.iter().any(|problem| problem == unnamed),
            "{near}: {found:?}"
        );
    }
}

#[test]
fn an_id_that_the_specification_does_not_define_is_listed() {
    let found = problems(PAGE, "DEMO-1 DEMO-2\n\n// DEMO-3");
    assert_eq!(found, ["test.rs:3: DEMO-3 is not in the specification"]);
    let found = problems(PAGE, "DEMO-1 DEMO-2 DEMO-02");
    assert_eq!(found, ["test.rs:1: DEMO-02 is not in the specification"]);
    assert_eq!(problems(PAGE, "DEMO-1 DEMO-2 SHA-256 UTF-8 P-256"), NONE);
}

#[test]
fn an_id_that_is_defined_twice_is_listed() {
    let found = problems(
        &format!("{PAGE}\n**DEMO-1** It MUST again.\n"),
        "DEMO-1 DEMO-2",
    );
    assert_eq!(found, ["page.md:7: DEMO-1 is already defined at page.md:3"]);
}

#[test]
fn an_id_without_must_is_listed() {
    for text in ["**DEMO-1** It should.\nIt MUST.\n", "**DEMO-1** It must.\n"] {
        let found = problems(text, "DEMO-1");
        assert_eq!(found, ["page.md:1: DEMO-1 says no MUST on its first line"]);
    }
}

#[test]
fn a_bold_id_that_is_hidden_inside_a_line_is_listed() {
    let found = problems(&format!("{PAGE}Also, **DEMO-3** MUST.\n"), "DEMO-1 DEMO-2");
    assert_eq!(
        found,
        ["page.md:6: DEMO-3 is bold, but does not begin the line"]
    );
    let found = problems("**DEMO-1** MUST, **DEMO-2** MUST\n", "DEMO-1");
    assert_eq!(
        found,
        ["page.md:1: DEMO-2 is bold, but does not begin the line"]
    );
}

#[test]
fn bold_words_that_are_no_ids_are_text() {
    let text = "**Note** that **SHA-256**, **DEMO-1 and more**, **A-1**, **IO-** and ** ** MUST\n";
    assert_eq!(problems(&format!("{PAGE}{text}"), "DEMO-1 DEMO-2"), NONE);
}

#[test]
fn only_the_tests_of_a_source_file_count() {
    let source = "/// DEMO-1\nfn f() {}\n\n    #[cfg(test)]\nmod tests {} // DEMO-2\n";
    let tests = test_code("crates/demo/src/lib.rs", source.to_owned());
    assert_eq!(
        ids(&tests).map(|id| id.to_string()).collect::<Vec<_>>(),
        ["DEMO-2"]
    );
    assert_eq!(
        tests.lines().count(),
        source.lines().count(),
        "line numbers stay right"
    );
    let mention = "// DEMO-1 is not below #[cfg(test)]\n".to_owned();
    assert_eq!(test_code("crates/demo/src/lib.rs", mention), "\n");

    for whole in ["crates/demo/src/part/tests.rs", "crates/demo/tests/api.rs"] {
        assert_eq!(test_code(whole, source.to_owned()), source, "{whole}");
    }
}
