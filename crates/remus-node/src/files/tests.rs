//! The tree and the service, without a network. `tests/files.rs` has the same over real connections.

use std::fs;
use std::pin::pin;

use super::*;
use futures_util::StreamExt as _;

struct Tree {
    data: tempfile::TempDir,
    files: Files,
}

impl Tree {
    fn new() -> Self {
        Self::with_limits(FileLimits::default())
    }

    fn with_limits(limits: FileLimits) -> Self {
        let data = tempfile::tempdir().unwrap();
        let files = Files::open(data.path(), limits).unwrap();
        Self { data, files }
    }

    fn root(&self) -> std::path::PathBuf {
        self.data.path().join("files")
    }

    fn uploads(&self) -> usize {
        fs::read_dir(self.root().join(path::UPLOADS))
            .unwrap()
            .count()
    }

    fn stage(&self, content: &[u8]) -> store::Staged {
        let mut staged = self.files.store.begin().unwrap();
        staged.write(content).unwrap();
        staged
    }

    fn put(&self, path: &str, content: &[u8], overwrite: bool) -> Result<Stored, Error> {
        self.stage(content).keep(&at(path), overwrite, None)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Error> {
        let mut reading = self.files.store.read(&at(path))?;
        let mut all = Vec::new();
        loop {
            let (bytes, digest) = reading.next()?;
            all.extend(bytes);
            if digest.is_some() {
                return Ok(all);
            }
        }
    }
}

fn at(path: &str) -> FilePath {
    FilePath::parse(path).unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorCode {
    result.unwrap_err().code()
}

/// SHA-256 of "abc", from FIPS 180-4.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn what_is_put_is_there_with_its_digest_and_nothing_else() {
    let tree = Tree::new();
    let stored = tree.put("a/b/c.txt", b"abc", false).unwrap();
    assert_eq!((stored.size, stored.sha256.as_str()), (3, ABC));
    assert_eq!(fs::read(tree.root().join("a/b/c.txt")).unwrap(), b"abc");
    assert_eq!(tree.get("a/b/c.txt").unwrap(), b"abc");
    assert_eq!(tree.uploads(), 0);
}

#[test]
fn an_upload_that_breaks_leaves_nothing_behind_and_what_was_there_stays() {
    let tree = Tree::new();
    tree.put("a", b"old", false).unwrap();
    let staged = tree.stage(b"new");
    assert_eq!(tree.uploads(), 1);
    drop(staged);
    assert_eq!(tree.uploads(), 0);
    let wrong = tree.stage(b"new").keep(&at("a"), true, Some(ABC));
    assert_eq!(code(wrong), ErrorCode::DATA_LOSS);
    assert_eq!(tree.uploads(), 0);
    assert_eq!(tree.get("a").unwrap(), b"old");
}

#[test]
fn what_a_crash_left_of_uploads_is_removed_at_the_next_start() {
    let tree = Tree::new();
    tree.put("kept", b"kept", false).unwrap();
    fs::write(tree.root().join(".uploads/17"), "half").unwrap();
    let again = Files::open(tree.data.path(), FileLimits::default()).unwrap();
    assert_eq!(tree.uploads(), 0);
    again.store.stat(&at("kept")).unwrap();
}

#[test]
fn an_existing_file_is_only_replaced_when_asked_to() {
    let tree = Tree::new();
    tree.put("a", b"first", false).unwrap();
    assert_eq!(
        code(tree.put("a", b"second", false)),
        ErrorCode::ALREADY_EXISTS
    );
    assert_eq!(tree.get("a").unwrap(), b"first");
    tree.put("a", b"third", true).unwrap();
    assert_eq!(tree.get("a").unwrap(), b"third");
}

#[test]
fn of_two_uploads_to_one_path_the_first_to_end_wins_unless_the_second_may_overwrite() {
    let tree = Tree::new();
    let (one, two, three) = (tree.stage(b"one"), tree.stage(b"two"), tree.stage(b"three"));
    two.keep(&at("a"), false, None).unwrap();
    assert_eq!(
        code(one.keep(&at("a"), false, None)),
        ErrorCode::ALREADY_EXISTS
    );
    assert_eq!(tree.get("a").unwrap(), b"two");
    three.keep(&at("a"), true, None).unwrap();
    assert_eq!(tree.get("a").unwrap(), b"three");
}

#[test]
fn many_uploads_to_one_path_at_a_time_keep_exactly_one_whole() {
    let tree = Tree::new();
    let store = &tree.files.store;
    let kept = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_u8)
            .map(|number| {
                scope.spawn(move || {
                    let mut staged = store.begin().unwrap();
                    for _ in 0..64 {
                        staged.write(&[number; 1024]).unwrap();
                    }
                    staged.keep(&at("dir/same"), false, None)
                })
            })
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.filter_map(Result::ok).collect::<Vec<_>>()
    });
    assert_eq!(kept.len(), 1);
    let content = tree.get("dir/same").unwrap();
    assert_eq!(content.len(), 64 * 1024);
    assert!(content.iter().all(|byte| *byte == content[0]));
    assert_eq!(tree.uploads(), 0);
}

#[test]
fn files_and_directories_are_not_mistaken_for_each_other() {
    let tree = Tree::new();
    tree.put("dir/file", b"x", false).unwrap();
    for result in [
        tree.put("dir", b"x", true).map(|_| ()),
        tree.put("dir/file/below", b"x", true).map(|_| ()),
        tree.get("dir").map(|_| ()),
        tree.files.store.remove(&at("dir")).map(|_| ()),
        tree.files
            .store
            .list(Some(&at("dir/file")), "", 10)
            .map(|_| ()),
    ] {
        assert_eq!(code(result), ErrorCode::FAILED_PRECONDITION);
    }
    assert_eq!(code(tree.get("none")), ErrorCode::NOT_FOUND);
    assert_eq!(
        code(tree.files.store.stat(&at("no/ne"))),
        ErrorCode::NOT_FOUND
    );
}

#[test]
fn removing_takes_files_and_empty_directories() {
    let tree = Tree::new();
    tree.put("dir/file", b"abc", false).unwrap();
    let removed = tree.files.store.remove(&at("dir/file")).unwrap();
    assert_eq!((removed.kind, removed.size), (EntryKind::File, 3));
    let removed = tree.files.store.remove(&at("dir")).unwrap();
    assert_eq!(removed.kind, EntryKind::Directory);
    assert_eq!(
        code(tree.files.store.remove(&at("dir"))),
        ErrorCode::NOT_FOUND
    );
}

#[test]
fn listings_come_in_pages_by_name_without_what_belongs_to_the_node() {
    let tree = Tree::new();
    for name in ["d", "b", "a/x", "c"] {
        tree.put(name, b"12", false).unwrap();
    }
    let store = &tree.files.store;
    let page = |after: &str, limit| {
        let listing = store.list(None, after, limit).unwrap();
        let names: Vec<_> = listing
            .entries
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        (names.join(" "), listing.more)
    };
    assert_eq!(page("", 10), ("a b c d".into(), false));
    assert_eq!(page("", 2), ("a b".into(), true));
    assert_eq!(page("b", 2), ("c d".into(), false));
    assert_eq!(page("zz", 2), (String::new(), false));
    let inner = store.list(Some(&at("a")), "", 10).unwrap();
    assert_eq!(
        (inner.entries[0].name.as_str(), inner.entries[0].size),
        ("x", 2)
    );
    assert!(inner.entries[0].modified_us > 1_600_000_000_000_000);
    assert_eq!(store.stat(&at("a")).unwrap().kind, EntryKind::Directory);
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree with ways out of it: to a directory, to a file, absolute and relative, and in a chain.
    fn tree_with_ways_out() -> (Tree, tempfile::TempDir) {
        let tree = Tree::new();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        fs::write(tree.data.path().join("secret"), "secret").unwrap();
        let root = tree.root();
        symlink(outside.path(), root.join("out")).unwrap();
        symlink(outside.path().join("secret"), root.join("file")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("../secret", root.join("upfile")).unwrap();
        symlink("out", root.join("chain")).unwrap();
        symlink("/", root.join("slash")).unwrap();
        (tree, outside)
    }

    #[test]
    fn no_link_leads_a_reader_out() {
        let (tree, _outside) = tree_with_ways_out();
        for path in [
            "out/secret",
            "file",
            "up/secret",
            "upfile",
            "chain/secret",
            "slash/etc/passwd",
            "up/files/../secret",
        ] {
            let Ok(path) = FilePath::parse(path) else {
                continue;
            };
            let error = tree.files.store.read(&path).err().unwrap();
            assert_eq!(
                error.code(),
                ErrorCode::PERMISSION_DENIED,
                "{path}: {error}"
            );
        }
        for path in ["out", "up", "chain", "slash"] {
            let result = tree.files.store.list(Some(&at(path)), "", 10);
            assert_eq!(code(result), ErrorCode::PERMISSION_DENIED, "{path}");
        }
    }

    #[test]
    fn no_link_leads_a_writer_out() {
        let (tree, outside) = tree_with_ways_out();
        for path in [
            "out/new",
            "up/new",
            "chain/new",
            "out/dir/new",
            "slash/tmp/new",
        ] {
            let error = tree.put(path, b"x", true).unwrap_err();
            assert_eq!(
                error.code(),
                ErrorCode::PERMISSION_DENIED,
                "{path}: {error}"
            );
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert!(!tree.data.path().join("new").exists());
        assert_eq!(tree.uploads(), 0);
    }

    #[test]
    fn writing_to_a_link_replaces_the_link_not_what_it_names() {
        let (tree, outside) = tree_with_ways_out();
        assert_eq!(
            code(tree.put("file", b"x", false)),
            ErrorCode::ALREADY_EXISTS
        );
        tree.put("file", b"x", true).unwrap();
        assert_eq!(tree.get("file").unwrap(), b"x");
        assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    }

    #[test]
    fn removing_a_link_removes_the_link() {
        let (tree, outside) = tree_with_ways_out();
        let removed = tree.files.store.remove(&at("file")).unwrap();
        assert_eq!(removed.kind, EntryKind::Other);
        let result = tree.files.store.remove(&at("out/secret"));
        assert_eq!(code(result), ErrorCode::PERMISSION_DENIED);
        assert!(outside.path().join("secret").exists());
    }

    #[test]
    fn a_link_to_nothing_is_no_directory_to_write_to() {
        let tree = Tree::new();
        symlink("nothing", tree.root().join("link")).unwrap();
        let result = tree.put("link/new", b"x", false);
        assert_eq!(code(result), ErrorCode::FAILED_PRECONDITION);
    }

    #[test]
    fn links_within_the_tree_are_followed() {
        let tree = Tree::new();
        tree.put("dir/file", b"abc", false).unwrap();
        symlink("dir", tree.root().join("link")).unwrap();
        assert_eq!(tree.get("link/file").unwrap(), b"abc");
    }

    #[test]
    fn a_root_that_is_a_link_to_another_disk_is_the_operators_choice() {
        let data = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), data.path().join("files")).unwrap();
        let files = Files::open(data.path(), FileLimits::default()).unwrap();
        let staged = files.store.begin().unwrap();
        staged.keep(&at("a"), false, None).unwrap();
        assert!(elsewhere.path().join("a").exists());
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let tree = Tree::new();
        let socket = std::os::unix::net::UnixListener::bind(tree.root().join("socket")).unwrap();
        let result = tree.files.store.read(&at("socket"));
        assert_eq!(code(result.map(|_| ())), ErrorCode::FAILED_PRECONDITION);
        drop(socket);
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let tree = Tree::new();
    tree.put("a", &vec![1; 2 * BATCH_BYTES], false).unwrap();
    let mut reading = tree.files.store.read(&at("a")).unwrap();
    reading.next().unwrap();
    let file = fs::File::options()
        .write(true)
        .open(tree.root().join("a"))
        .unwrap();
    file.set_len(10).unwrap();
    assert_eq!(code(reading.next()), ErrorCode::ABORTED);
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_read_as_it_was() {
    let tree = Tree::new();
    let old = vec![1; 2 * BATCH_BYTES];
    tree.put("a", &old, false).unwrap();
    let mut reading = tree.files.store.read(&at("a")).unwrap();
    let (mut all, _) = reading.next().unwrap();
    tree.put("a", b"new", true).unwrap();
    let (rest, digest) = reading.next().unwrap();
    all.extend(rest);
    assert!(digest.is_some());
    assert_eq!(all, old);
}

/// What `Get` answers: the content, and the metadata that came with the first and the last element.
async fn collect(tree: &Tree, path: &str) -> (Vec<u8>, remus::Metadata, remus::Metadata) {
    let place = place(&tree.files.downloads, "downloads").unwrap();
    let download = download::start(Arc::clone(&tree.files.store), at(path), place).await;
    let elements: Vec<_> = download.unwrap().collect().await;
    let elements: Vec<_> = elements.into_iter().map(Result::unwrap).collect();
    assert!(
        elements
            .iter()
            .all(|element| element.payload.len() <= CHUNK_BYTES)
    );
    let content = elements
        .iter()
        .flat_map(|element| element.payload.to_vec())
        .collect();
    let metadata = |element: Option<&remus::Element>| element.unwrap().metadata.clone();
    (
        content,
        metadata(elements.first()),
        metadata(elements.last()),
    )
}

#[tokio::test]
async fn downloads_of_every_size_carry_size_and_digest() {
    let tree = Tree::new();
    for size in [
        0,
        1,
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        BATCH_BYTES - 1,
        BATCH_BYTES,
        BATCH_BYTES + 1,
        3 * BATCH_BYTES + 7,
    ] {
        let content: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let stored = tree.put("a", &content, true).unwrap();
        let (received, first, last) = collect(&tree, "a").await;
        assert_eq!(received.len(), size);
        assert!(received == content, "{size} bytes");
        assert_eq!(first.get_str("size"), Some(size.to_string().as_str()));
        assert!(first.get_str("modified_us").is_some());
        assert_eq!(last.get_str("sha256"), Some(stored.sha256.as_str()));
        assert_eq!(last.get_str("size"), Some(size.to_string().as_str()));
        assert_eq!(size > CHUNK_BYTES, first.get("sha256").is_none());
    }
    assert_eq!(
        tree.files.downloads.available_permits(),
        tree.files.limits.max_downloads
    );
}

#[tokio::test]
async fn transfers_beyond_the_limit_are_refused_as_retryable_and_places_come_back() {
    let tree = Tree::with_limits(FileLimits {
        max_downloads: 1,
        ..FileLimits::default()
    });
    tree.put("a", &vec![0; 10 * BATCH_BYTES], false).unwrap();
    let first = place(&tree.files.downloads, "downloads").unwrap();
    let download = download::start(Arc::clone(&tree.files.store), at("a"), first)
        .await
        .unwrap();
    let error = place(&tree.files.downloads, "downloads").unwrap_err();
    assert!(
        error.was_refused() && error.retry_after().is_some(),
        "{error}"
    );
    drop(download);
    // The reader gives its place back when it sees that nobody reads.
    let _again = tree.files.downloads.acquire().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_download_that_nobody_reads_is_given_up() {
    let tree = Tree::new();
    tree.put("a", &vec![0; 10 * BATCH_BYTES], false).unwrap();
    let only = place(&tree.files.downloads, "downloads").unwrap();
    let download = download::start(Arc::clone(&tree.files.store), at("a"), only)
        .await
        .unwrap();
    let mut download = pin!(download);
    download.next().await.unwrap().unwrap();
    // Time stands still but for what waits: this returns when the reader has waited for its limit.
    let all = u32::try_from(tree.files.limits.max_downloads).unwrap();
    let _all = tree.files.downloads.acquire_many(all).await.unwrap();
    let rest: Vec<_> = download.collect().await;
    let last = rest.into_iter().next_back().unwrap();
    assert_eq!(last.unwrap_err().code(), ErrorCode::ABORTED);
}
