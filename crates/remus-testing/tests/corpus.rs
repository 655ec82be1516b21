//! Every input that fuzzing kept is replayed through the body of its target.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use remus_testing::fuzz::{Body, TARGETS};

/// Most inputs that a target keeps, and their most bytes: what reaches something new, not what was ever tried.
const MAX_FILES: usize = 60;
const MAX_BYTES: u64 = 64 * 1024;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// What a directory holds, in order.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The names in a directory, without their extension.
fn names(directory: &Path) -> io::Result<BTreeSet<String>> {
    let stem = |path: PathBuf| {
        path.file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
    };
    Ok(entries(directory)?.into_iter().filter_map(stem).collect())
}

#[test]
fn every_target_has_a_corpus_a_file_and_a_body() {
    let bodies: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(
        names(&fuzz().join("corpus")).unwrap(),
        bodies,
        "fuzz/corpus"
    );
    assert_eq!(
        names(&fuzz().join("fuzz_targets")).unwrap(),
        bodies,
        "fuzz/fuzz_targets"
    );
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let binaries = manifest
        .lines()
        .skip_while(|line| *line != "[[bin]]")
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    assert_eq!(
        binaries.map(str::to_owned).collect::<BTreeSet<_>>(),
        bodies,
        "fuzz/Cargo.toml"
    );
    for name in &bodies {
        let target = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(
            target.contains(&format!("fuzz::{name}(data)")),
            "fuzz_targets/{name}.rs calls another body"
        );
    }
}

#[test]
fn every_kept_input_passes() {
    let mut failed = Vec::new();
    for (name, body) in TARGETS {
        let files = entries(&fuzz().join("corpus").join(name)).unwrap();
        assert!(
            (1..=MAX_FILES).contains(&files.len()),
            "{name}: {} inputs",
            files.len()
        );
        let sizes = files.iter().map(|path| fs::metadata(path).unwrap().len());
        let bytes: u64 = sizes.sum();
        assert!(bytes <= MAX_BYTES, "{name}: {bytes} bytes");
        for path in files {
            if !passes(*body, &fs::read(&path).unwrap()) {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// The body's panic has been printed; this keeps the others running.
fn passes(body: Body, data: &[u8]) -> bool {
    std::panic::catch_unwind(|| body(data)).is_ok()
}
