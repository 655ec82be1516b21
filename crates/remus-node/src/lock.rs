//! The data directory, and the lock that keeps a second node out of it.
//!
//! The lock is the operating system's, on a file: it ends with its process, however that ends. The file stays, with the
//! holder's process ID in it, which is there to be read by people and by the error message, and decides nothing.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process;

/// Name of the lock file in the data directory.
const NAME: &str = "node.lock";

/// A data directory that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Another node uses it.
    #[error(
        "{} is in use by another node{}: stop it, or choose another directory with --data",
        directory.display(),
        pid.map(|pid| format!(", process {pid}")).unwrap_or_default()
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    InUse {
        directory: PathBuf,
        pid: Option<u32>,
    },
    /// The operating system refuses it.
    #[error("cannot {action} {}: {source}; choose another directory with --data", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl DataLock {
    /// Makes `directory`, for this user alone, if it is not there, and takes it.
    pub(crate) fn acquire(directory: &Path) -> Result<Self, DataError> {
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DataError::Io {
                action,
                path,
                source,
            }
        };
        make(directory).map_err(at("create", directory))?;
        let path = directory.join(NAME);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(at("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DataError::InUse {
                    directory: directory.to_owned(),
                    pid: holder(&mut file),
                });
            }
            Err(TryLockError::Error(error)) => return Err(at("lock", &path)(error)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", process::id()))
            .map_err(at("write", &path))?;
        Ok(Self { _file: file })
    }
}

fn make(directory: &Path) -> io::Result<()> {
    if fs::metadata(directory).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

fn holder(file: &mut File) -> Option<u32> {
    /// The digits of the largest process ID, and a line end.
    const LENGTH_MAX: u64 = 11;
    let mut text = String::new();
    file.take(LENGTH_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_is_kept_out_and_told_who_is_in() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("a/b");
        let held = DataLock::acquire(&directory).unwrap();
        let error = DataLock::acquire(&directory).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{} is in use by another node, process {}: stop it, or choose another directory with --data",
                directory.display(),
                process::id()
            )
        );
        drop(held);
        DataLock::acquire(&directory).unwrap();
    }

    #[test]
    fn a_lock_file_without_a_holder_is_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(
            directory.path().join(NAME),
            "4294967295 and more than a number",
        )
        .unwrap();
        let _held = DataLock::acquire(directory.path()).unwrap();
        let text = fs::read_to_string(directory.path().join(NAME)).unwrap();
        assert_eq!(text, format!("{}\n", process::id()));
    }

    #[test]
    #[cfg(unix)]
    fn a_new_directory_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("data");
        let _held = DataLock::acquire(&directory).unwrap();
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_path_that_is_no_directory_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataLock::acquire(&file).unwrap_err();
        let start = format!("cannot create {}: ", file.display());
        assert!(error.to_string().starts_with(&start), "{error}");
    }
}
