//! The directory tree behind the service. Synchronous: nothing here may run on a thread that serves connections.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::DirBuilder;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use aws_lc_rs::digest::{Context, SHA256};
use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, Metadata, OpenOptions};
use remus::Error;
use tokio::runtime::Handle;

use super::path::{FilePath, UPLOADS};
use super::{BATCH_BYTES, Entry, EntryKind, Listing, Stored};

/// Directory of the files in the data directory.
const DIRECTORY: &str = "files";

/// Why the files of a node can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// The operating system refuses it.
    #[error("cannot {action} {}: {source}", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The tree, through a handle: whatever happens to its path, this stays the root, and nothing outside of it is reached.
pub(super) struct Store {
    root: Dir,
    uploads: Dir,
    path: PathBuf,
    /// Held from the look at what is there to the rename over it, so that two uploads to one path don't both find it free.
    renaming: Mutex<()>,
    next: AtomicU64,
}

impl Store {
    pub(super) fn open(data: &Path) -> Result<Self, FilesError> {
        let path = data.join(DIRECTORY);
        let at = |action| {
            let path = path.clone();
            move |source| FilesError::Io {
                action,
                path,
                source,
            }
        };
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(at("create")(error));
            }
            _ => {}
        }
        let root = Dir::open_ambient_dir(&path, ambient_authority()).map_err(at("open"))?;
        match root.create_dir(UPLOADS) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(at("write to")(error));
            }
            _ => {}
        }
        let uploads = root.open_dir(UPLOADS).map_err(at("open the uploads in"))?;
        let store = Self {
            root,
            uploads,
            path,
            renaming: Mutex::new(()),
            next: AtomicU64::new(0),
        };
        store.clean()?;
        Ok(store)
    }

    /// Removes what is left of uploads that did not end.
    pub(super) fn clean(&self) -> Result<(), FilesError> {
        let remove_all = || -> io::Result<()> {
            for entry in self.uploads.entries()? {
                let name = entry?.file_name();
                self.uploads.remove_file(&name)?;
                tracing::info!(name = %name.display(), "removed what was left of an upload");
            }
            Ok(())
        };
        remove_all().map_err(|source| FilesError::Io {
            action: "remove what is left of uploads in",
            path: self.path.join(UPLOADS),
            source,
        })
    }

    /// Begins an upload.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Staged, Error> {
        // Unique in this process; the data directory's lock keeps others out, and leftovers are removed at the start.
        let name = format!("{}", self.next.fetch_add(1, Ordering::Relaxed));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        let file = self
            .uploads
            .open_with(&name, &options)
            .map_err(|error| failed("begin an upload", None, &error))?;
        Ok(Staged {
            file: Some(file),
            hash: Context::new(&SHA256),
            written: 0,
            name,
            store: Arc::clone(self),
        })
    }

    /// Refuses an upload to `path` that could not be kept.
    pub(super) fn check_target(&self, path: &FilePath, overwrite: bool) -> Result<(), Error> {
        match self.root.symlink_metadata(path.as_path()) {
            Ok(found) if found.is_dir() => Err(Error::failed_precondition(format!(
                "`{path}` is a directory"
            ))),
            Ok(_) if !overwrite => Err(Error::already_exists(format!(
                "there is a `{path}` already; ask for overwriting to replace it"
            ))),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("store", Some(path), &error)),
        }
    }

    /// Makes the directory that `path` is in, and those above it, and says whether it was missing.
    fn make_parent(&self, path: &FilePath) -> io::Result<bool> {
        let Some(parent) = path.parents().next() else {
            return Ok(false);
        };
        match self.root.metadata(parent) {
            Ok(found) if found.is_dir() => Ok(false),
            Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match self.root.create_dir_all(parent) {
                    // A link to nothing is in the way.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        Err(io::ErrorKind::NotADirectory.into())
                    }
                    made => made.map(|()| true),
                }
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn stat(&self, path: &FilePath) -> Result<Entry, Error> {
        let metadata = self
            .root
            .symlink_metadata(path.as_path())
            .map_err(|error| failed("look at", Some(path), &error))?;
        Ok(entry(path.to_string(), &metadata))
    }

    pub(super) fn remove(&self, path: &FilePath) -> Result<Entry, Error> {
        let found = self.stat(path)?;
        let removed = match found.kind {
            EntryKind::Directory => self.root.remove_dir(path.as_path()),
            EntryKind::File | EntryKind::Other => self.root.remove_file(path.as_path()),
        };
        removed
            .and_then(|()| sync(&self.root, path.parents().next()))
            .map_err(|error| failed("remove", Some(path), &error))?;
        Ok(found)
    }

    /// The first `limit` entries of the directory after the name `after`.
    pub(super) fn list(
        &self,
        path: Option<&FilePath>,
        after: &str,
        limit: usize,
    ) -> Result<Listing, Error> {
        let fail = |error: io::Error| failed("list", path, &error);
        let entries = match path {
            Some(path) => self.root.read_dir(path.as_path()),
            None => self.root.entries(),
        };
        // However large the directory is, no more than what is answered is held.
        let mut first = BTreeMap::new();
        let mut more = false;
        for found in entries.map_err(fail)? {
            let found = found.map_err(fail)?;
            // A name that is no UTF-8 cannot be asked for either.
            let Ok(name) = found.file_name().into_string() else {
                continue;
            };
            if name.as_str() <= after || (path.is_none() && name == UPLOADS) {
                continue;
            }
            first.insert(name, found);
            if first.len() > limit {
                first.pop_last();
                more = true;
            }
        }
        let entries = first
            .into_iter()
            .filter_map(|(name, found)| match found.metadata() {
                Ok(metadata) => Some(Ok(entry(name, &metadata))),
                // It went away in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => Some(Err(fail(error))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Listing { entries, more })
    }

    /// Opens a file for reading.
    pub(super) fn read(&self, path: &FilePath) -> Result<Reading, Error> {
        let fail = |error: io::Error| failed("read", Some(path), &error);
        let refuse_other = |metadata: &Metadata| match entry(String::new(), metadata) {
            Entry {
                kind: EntryKind::File,
                ..
            } => Ok(()),
            Entry {
                kind: EntryKind::Directory,
                ..
            } => Err(Error::failed_precondition(format!(
                "`{path}` is a directory"
            ))),
            _ => Err(Error::failed_precondition(format!("`{path}` is no file"))),
        };
        // Before it is opened, because opening a pipe would wait for its other end.
        refuse_other(&self.root.metadata(path.as_path()).map_err(fail)?)?;
        let file = self.root.open(path.as_path()).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        refuse_other(&metadata)?;
        let found = entry(path.to_string(), &metadata);
        Ok(Reading {
            file,
            hash: Context::new(&SHA256),
            left: found.size,
            size: found.size,
            modified_us: found.modified_us,
            path: path.clone(),
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// An upload that is not whole yet. Dropped, it leaves nothing behind.
pub(super) struct Staged {
    /// `None` once it was kept or removed.
    file: Option<File>,
    hash: Context,
    written: u64,
    name: String,
    store: Arc<Store>,
}

impl Staged {
    /// Appends `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(file) = &mut self.file else {
            return Err(Error::internal("an upload was written after its end"));
        };
        file.write_all(bytes)
            .map_err(|error| self.disk_failed("write", &error))?;
        self.hash.update(bytes);
        self.written = self
            .written
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Puts the file on disk under `path`, if its content is what was promised.
    pub(super) fn keep(
        mut self,
        path: &FilePath,
        overwrite: bool,
        promised: Option<&str>,
    ) -> Result<Stored, Error> {
        let sha256 = hex(self.hash.clone().finish().as_ref());
        if let Some(promised) = promised.filter(|promised| *promised != sha256) {
            return Err(Error::data_loss(format!(
                "what arrived has SHA-256 {sha256}, and {promised} was promised; nothing was kept"
            )));
        }
        let Some(file) = &self.file else {
            return Err(Error::internal("an upload was kept after its end"));
        };
        file.sync_all()
            .map_err(|error| self.disk_failed("write", &error))?;

        let store = Arc::clone(&self.store);
        let fail = |error: io::Error| failed("store", Some(path), &error);
        let made_parents = store.make_parent(path).map_err(fail)?;
        {
            let _alone = store
                .renaming
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            store.check_target(path, overwrite)?;
            store
                .uploads
                .rename(&self.name, &store.root, path.as_path())
                .map_err(fail)?;
            // Nothing is left to remove from here on.
            self.file = None;
        }
        // The name is as durable as the content only when its directory is, and a new directory only when its own parent is.
        let synced = if made_parents { usize::MAX } else { 1 };
        for directory in path.parents().map(Some).chain([None]).take(synced) {
            sync(&store.root, directory).map_err(fail)?;
        }
        Ok(Stored {
            path: path.to_string(),
            size: self.written,
            sha256,
        })
    }

    fn disk_failed(&self, action: &str, error: &io::Error) -> Error {
        if is_full(error) {
            return Error::resource_exhausted(format!(
                "the node's disk is full after {} bytes; nothing was kept",
                self.written
            ));
        }
        failed(action, None, error)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        let (store, name) = (Arc::clone(&self.store), std::mem::take(&mut self.name));
        let remove = move || {
            // Freeing a large file takes the disk a while: here, when the handle closes.
            drop(file);
            if let Err(error) = store.uploads.remove_file(&name) {
                tracing::warn!(%error, name, "cannot remove what is left of an upload");
            }
        };
        match Handle::try_current() {
            // Where the runtime is ending this may not run any more; then the node removes what is left.
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// A file that is being read.
pub(super) struct Reading {
    file: File,
    hash: Context,
    left: u64,
    pub(super) size: u64,
    pub(super) modified_us: u64,
    path: FilePath,
}

impl Reading {
    /// The next bytes, up to [`BATCH_BYTES`]; with the file's last ones, its SHA-256 in hex.
    pub(super) fn next(&mut self) -> Result<(Vec<u8>, Option<String>), Error> {
        let batch = u64::try_from(BATCH_BYTES)
            .unwrap_or(u64::MAX)
            .min(self.left);
        let mut bytes = Vec::with_capacity(usize::try_from(batch).unwrap_or(BATCH_BYTES));
        let read = (&mut self.file)
            .take(batch)
            .read_to_end(&mut bytes)
            .map_err(|error| failed("read", Some(&self.path), &error))?;
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        if read < batch {
            return Err(Error::aborted(format!(
                "`{}` became shorter while it was read",
                self.path
            )));
        }
        self.hash.update(&bytes);
        self.left = self.left.saturating_sub(read);
        let digest = (self.left == 0).then(|| hex(self.hash.clone().finish().as_ref()));
        Ok((bytes, digest))
    }
}

/// Makes what happened to names in a directory durable; `None` is the root.
fn sync(root: &Dir, directory: Option<&Path>) -> io::Result<()> {
    // Elsewhere directories can't be opened as files, and their names are durable by themselves.
    if cfg!(unix) {
        root.open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

fn entry(name: String, metadata: &Metadata) -> Entry {
    let kind = if metadata.is_file() {
        EntryKind::File
    } else if metadata.is_dir() {
        EntryKind::Directory
    } else {
        EntryKind::Other
    };
    let modified = metadata
        .modified()
        .ok()
        .map(cap_std::time::SystemTime::into_std);
    let since_epoch = modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Entry {
        name,
        kind,
        size: if kind == EntryKind::File {
            metadata.len()
        } else {
            0
        },
        modified_us: since_epoch
            .and_then(|since| u64::try_from(since.as_micros()).ok())
            .unwrap_or(0),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// What a client is told of an error of the operating system: never a path of this machine.
fn failed(action: &str, path: Option<&FilePath>, error: &io::Error) -> Error {
    let what = path.map_or_else(|| "the files".to_owned(), |path| format!("`{path}`"));
    match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!("there is no {what}")),
        io::ErrorKind::AlreadyExists => Error::already_exists(format!("there is a {what} already")),
        io::ErrorKind::NotADirectory => Error::failed_precondition(format!(
            "cannot {action} {what}: a file is where the path needs a directory"
        )),
        io::ErrorKind::IsADirectory => Error::failed_precondition(format!("{what} is a directory")),
        io::ErrorKind::DirectoryNotEmpty => {
            Error::failed_precondition(format!("{what} is a directory with something in it"))
        }
        // Also what the sandbox says to a symbolic link that leads out of the root.
        io::ErrorKind::PermissionDenied => {
            Error::permission_denied(format!("the node may not {action} {what}"))
        }
        _ if is_full(error) => {
            Error::resource_exhausted(format!("cannot {action} {what}: the node's disk is full"))
        }
        _ => Error::internal(format!("cannot {action} {what}: {error}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use remus::ErrorCode;

    use super::*;

    #[test]
    fn errors_of_the_system_become_errors_that_clients_can_act_on_and_name_no_path_of_the_machine()
    {
        let path = FilePath::parse("a/b").unwrap();
        for (kind, code) in [
            (io::ErrorKind::NotFound, ErrorCode::NOT_FOUND),
            (io::ErrorKind::AlreadyExists, ErrorCode::ALREADY_EXISTS),
            (io::ErrorKind::NotADirectory, ErrorCode::FAILED_PRECONDITION),
            (io::ErrorKind::IsADirectory, ErrorCode::FAILED_PRECONDITION),
            (
                io::ErrorKind::DirectoryNotEmpty,
                ErrorCode::FAILED_PRECONDITION,
            ),
            (
                io::ErrorKind::PermissionDenied,
                ErrorCode::PERMISSION_DENIED,
            ),
            (io::ErrorKind::StorageFull, ErrorCode::RESOURCE_EXHAUSTED),
            (io::ErrorKind::QuotaExceeded, ErrorCode::RESOURCE_EXHAUSTED),
            (io::ErrorKind::Other, ErrorCode::INTERNAL),
        ] {
            let error = failed("store", Some(&path), &kind.into());
            assert_eq!(error.code(), code, "{kind}");
            assert!(error.message().contains("`a/b`"), "{error}");
        }
    }
}
