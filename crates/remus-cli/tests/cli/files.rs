//! Copying.

use std::fs;
use std::io::Write as _;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::support::{Node, Running, noise, run};

/// More than all buffers on the way together, and no multiple of any chunk.
const LENGTH: usize = 9 * 1024 * 1024 + 12_345;

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn names(directory: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_goes_up_and_comes_down_the_same() {
    let node = Node::start();
    let here = tempfile::tempdir().unwrap();
    let content = noise(LENGTH);
    let (from, back) = (here.path().join("from.bin"), here.path().join("back.bin"));
    fs::write(&from, &content).unwrap();

    let up = node.run(
        [from.to_str().unwrap(), &node.path("sub/there.bin")]
            .iter()
            .fold(
                vec!["cp".to_owned(), "-o".to_owned(), "json".to_owned()],
                |mut arguments, path| {
                    arguments.push((*path).to_owned());
                    arguments
                },
            ),
    );
    let up = up.json();
    assert_eq!(up["bytes"], LENGTH);
    assert_eq!(up["sha256"], hex(&content));
    assert_eq!(
        fs::read(node.data.join("files/sub/there.bin")).unwrap(),
        content,
        "what the node keeps"
    );

    let down = node.run(["cp", &node.path("sub/there.bin"), back.to_str().unwrap()]);
    let told = down.good();
    assert!(told.contains(&hex(&content)), "{told}");
    assert_eq!(fs::read(&back).unwrap(), content);
    assert_eq!(
        names(here.path()),
        ["back.bin", "from.bin"],
        "nothing else is left"
    );
}

#[test]
fn pipes_and_empty_files_are_files_too() {
    let node = Node::start();
    let here = tempfile::tempdir().unwrap();
    for content in [noise(100_000), Vec::new()] {
        let up = run(node.remus(["cp", "-", &node.path("piped")]), &content);
        assert!(up.good().contains(&hex(&content)));
        let down = node.run(["cp", &node.path("piped"), "-"]);
        assert_eq!(down.code, Some(0), "{}", down.stderr);
        assert_eq!(down.stdout, content, "data alone is on standard output");
        assert!(down.stderr.contains(&hex(&content)), "{}", down.stderr);
        let file = here.path().join("file");
        node.run(["cp", &node.path("piped"), file.to_str().unwrap()])
            .good();
        assert_eq!(fs::read(file).unwrap(), content);
    }
}

#[test]
fn a_directory_takes_the_file_under_its_own_name() {
    let node = Node::start();
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("name.txt");
    fs::write(&file, "x").unwrap();
    for to in ["", "into/"] {
        node.run(["cp", file.to_str().unwrap(), &node.path(to)])
            .good();
    }
    assert!(node.data.join("files/into/name.txt").exists());
    let down = here.path().join("down");
    fs::create_dir(&down).unwrap();
    node.run(["cp", &node.path("name.txt"), down.to_str().unwrap()])
        .good();
    assert_eq!(names(&down), ["name.txt"]);
}

#[test]
fn replacing_can_be_refused_on_both_sides() {
    let node = Node::start();
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("f");
    fs::write(&file, "one").unwrap();
    let (local, remote) = (file.to_str().unwrap(), node.path("f"));
    node.run(["cp", "--no-clobber", local, &remote]).good();
    let error = node.run(["cp", "--no-clobber", local, &remote]).bad(6);
    assert!(error.contains("without --no-clobber"), "{error}");
    let error = node.run(["cp", "-n", &remote, local]).bad(6);
    assert!(error.contains("is there already"), "{error}");
    fs::write(&file, "two").unwrap();
    node.run(["cp", local, &remote]).good();
    assert_eq!(fs::read(node.data.join("files/f")).unwrap(), b"two");
}

#[test]
fn what_leads_out_of_the_files_is_refused() {
    let node = Node::start();
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("f");
    fs::write(&file, "x").unwrap();
    let (local, target) = (file.to_str().unwrap(), here.path().join("stolen"));
    // It is there: reaching it would work if the path were followed.
    assert!(node.data.join("tls/ca.key").exists());
    for path in [
        "../tls/ca.key",
        "a/../../tls/ca.key",
        "/tls/ca.key",
        "..",
        ".",
    ] {
        node.run(["cp", local, &node.path(path)]).bad(2);
        node.run(["cp", &node.path(path), target.to_str().unwrap()])
            .bad(2);
        let request = serde_json::json!({ "path": path }).to_string();
        let error = node
            .run(["call", "file.v1.Files/Get", &request, "--raw"])
            .bad(2);
        assert!(error.contains("is refused"), "{path}: {error}");
    }
    assert_eq!(names(here.path()), ["f"]);
    assert!(
        names(&node.data.join("files"))
            .iter()
            .all(|name| name == ".uploads")
    );
}

#[test]
fn what_is_not_there_is_not_found_and_leaves_nothing() {
    let node = Node::start();
    let here = tempfile::tempdir().unwrap();
    let target = here.path().join("t");
    let error = node
        .run([
            "cp",
            &node.path("missing"),
            target.to_str().unwrap(),
            "-o",
            "json",
        ])
        .bad(4);
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(error["error"]["code"], "NOT_FOUND");
    let missing = here.path().join("missing");
    node.run(["cp", missing.to_str().unwrap(), &node.path("x")])
        .bad(4);
    assert!(names(here.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn an_upload_that_is_interrupted_leaves_nothing() {
    let node = Node::start();
    let mut copying = Running::start(node.remus(["cp", "-", &node.path("half")]));
    let mut input = copying.child.stdin.take().unwrap();
    input.write_all(&noise(300_000)).unwrap();
    // The node has begun when its directory for uploads has a file.
    let uploads = node.data.join("files/.uploads");
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while names(&uploads).is_empty() {
        assert!(std::time::Instant::now() < until, "no upload began");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    copying.signal("INT");
    assert_eq!(copying.wait(), Some(130));
    while !names(&uploads).is_empty() {
        assert!(std::time::Instant::now() < until, "the half is kept");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    node.run(["cp", &node.path("half"), "-"]).bad(4);
}
