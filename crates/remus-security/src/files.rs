//! The few file operations an identity needs: bounded reads, writes that are whole or absent even
//! across a crash, and a lock between processes.
//!
//! Knows nothing of certificates. Errors are plain [`io::Error`]; the caller knows which file it was.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Largest PEM file that is read, in bytes. The whole of a browser's root store is a quarter of it, and
/// without a limit a path such as `/dev/zero` would fill the memory.
pub(crate) const MAX_PEM_BYTES: u64 = 1 << 20;

/// Time between two tries to take a lock that another process holds. The standard library can wait for
/// a file lock, but not for a limited time.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Permissions of a private file: its owner reads and writes it, nobody else does anything.
#[cfg(unix)]
const PRIVATE: u32 = 0o600;
/// Permissions of a public file.
#[cfg(unix)]
const PUBLIC: u32 = 0o644;
/// Permissions of a directory that holds both kinds.
#[cfg(unix)]
const DIRECTORY: u32 = 0o755;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Private,
    Public,
}

/// Reads a whole file of at most `max` bytes.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more tells a file of exactly `max` bytes from a longer one.
    File::open(path)?
        .take(max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= max) {
        return Ok(bytes);
    }
    Err(io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("file is over {max} bytes"),
    ))
}

/// Makes `directory` and its parents where missing. Others may enter it, not change it.
pub(crate) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, DIRECTORY);
    builder.create(directory)?;
    match directory.parent() {
        Some(parent) if parent != Path::new("") => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

/// Replaces the file `name` in `directory` with `bytes`, so that at every moment, and after a crash at
/// every moment, there is the old file or the new one whole. On return the new one is on disk.
///
/// The caller holds the lock of the directory: two writers of one name would use one temporary file.
pub(crate) fn replace(
    directory: &Path,
    name: &str,
    bytes: &[u8],
    access: Access,
) -> io::Result<()> {
    let temporary = directory.join(format!(".{name}.new"));
    // A crash may have left one behind. Removing it, then insisting on a new file, also keeps a
    // planted link or a looser mode from being written through.
    match fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let written = create(&temporary, access)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, directory.join(name)));
    if let Err(error) = written {
        // The write's error is the one to report, whether or not this succeeds.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_directory(directory)
}

/// Creates a file that must not exist yet, with its final permissions from the first moment.
fn create(path: &Path, access: Access) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    restrict(&mut options, access);
    options.open(path)
}

/// Gives a file that `options` create the permissions of `access`.
#[cfg(unix)]
fn restrict(options: &mut OpenOptions, access: Access) {
    let mode = match access {
        Access::Private => PRIVATE,
        Access::Public => PUBLIC,
    };
    std::os::unix::fs::OpenOptionsExt::mode(options, mode);
}

/// Elsewhere a file inherits its access list from the directory.
#[cfg(not(unix))]
fn restrict(_options: &mut OpenOptions, _access: Access) {}

/// Makes renames in `directory` survive a crash.
fn sync_directory(directory: &Path) -> io::Result<()> {
    // Elsewhere a directory cannot be opened as a file, and the file system orders renames itself.
    if cfg!(unix) {
        File::open(directory)?.sync_all()
    } else {
        Ok(())
    }
}

/// The permission bits by which others than the owner could use `path`, or `None` if there are none.
#[cfg(unix)]
pub(crate) fn exposed_mode(path: &Path) -> io::Result<Option<u32>> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

/// Elsewhere access is governed by lists inherited from the user's directory.
#[cfg(not(unix))]
pub(crate) fn exposed_mode(_path: &Path) -> io::Result<Option<u32>> {
    Ok(None)
}

/// Holds a directory for one process and one thread of it, until dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock that the file `path` stands for, or gives `None` when another holder kept it
    /// for all of `patience`. The file stays behind: removing it would let two holders in.
    pub(crate) fn acquire(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        restrict(&mut options, Access::Private);
        let file = options.open(path)?;
        let give_up = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self { _file: file })),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() >= give_up => return Ok(None),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_RETRY),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_a_waiter_gives_up_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::acquire(&path, Duration::ZERO).unwrap().expect("free");
        assert!(Lock::acquire(&path, Duration::ZERO).unwrap().is_none());
        assert!(Lock::acquire(&path, LOCK_RETRY * 2).unwrap().is_none());
        drop(held);
        assert!(Lock::acquire(&path, Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn a_waiter_gets_the_lock_when_its_holder_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::acquire(&path, Duration::ZERO).unwrap().expect("free");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| Lock::acquire(&path, Duration::from_secs(60)));
            drop(held);
            assert!(waiter.join().unwrap().unwrap().is_some());
        });
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        // A directory of the target's name makes the rename fail, after the write.
        fs::create_dir(directory.path().join("target")).unwrap();
        fs::write(directory.path().join("target/inside"), "kept").unwrap();
        replace(directory.path(), "target", b"new", Access::Public).unwrap_err();
        let left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["target"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_is_private_before_its_first_byte_and_never_written_through_a_link() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let file = create(&path, Access::Private).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777,
            PRIVATE
        );

        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "untouched").unwrap();
        symlink(&elsewhere, directory.path().join(".key.new")).unwrap();
        replace(directory.path(), "key", b"secret", Access::Private).unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret");
        assert_eq!(exposed_mode(&path).unwrap(), None);
    }
}
