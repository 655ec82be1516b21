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
const PRIVATE: u32 = 0o600;
/// Permissions of a public file.
const PUBLIC: u32 = 0o644;
/// Permissions of a directory that holds both kinds.
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
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, DIRECTORY);
    builder.create(directory)
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
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(
        &mut options,
        match access {
            Access::Private => PRIVATE,
            Access::Public => PUBLIC,
        },
    );
    options.open(path)
}

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
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, PRIVATE);
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
