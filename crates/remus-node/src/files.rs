//! `file.v1.Files`: real files under `<data>/files`, streamed in both directions, each with its SHA-256.
//!
//! | method | takes | answers |
//! | --- | --- | --- |
//! | `Put` | a stream of raw chunks; metadata `path`, and optionally `size` (decimal), `sha256` (hex), `overwrite` (`true`) | JSON [`Stored`] |
//! | `Get` | JSON [`PathRequest`] | a stream of raw chunks; metadata as below |
//! | `List` | JSON [`ListRequest`] | JSON [`Listing`] |
//! | `Stat` | JSON [`PathRequest`] | JSON [`Entry`] |
//! | `Remove` | JSON [`PathRequest`] | JSON [`Entry`], what it was |
//!
//! What `Get` sends has metadata beside its first element (`size` and `modified_us`, decimal) and beside its last one (`size`,
//! and `sha256` in hex: computed on the way, so that the node reads the file once and the receiver can check it without asking
//! again). A file that is one element, or empty, has all of it there.
//!
//! A file appears under its name only when all of it is on disk: uploads are written elsewhere and renamed. Two uploads to one
//! path don't disturb each other; with `overwrite` the one that ends last wins, without it the first.
//!
//! Owns everything below its root, and no path leads out of it: names are checked first, and every name is then resolved
//! relative to the root's handle in such a way that no symbolic link escapes it, also not one that is made at the same time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use remus::{
    Body, Codec as _, Error, ErrorCode, Json, MethodKind, Raw, Request, Response, Service,
    Streaming,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::FileLimits;

mod download;
mod path;
mod store;
mod upload;

use self::path::FilePath;
pub use self::store::FilesError;
use self::store::Store;

/// Full name of the service.
pub const FILES_SERVICE: &str = "file.v1.Files";

/// Bytes that go to or come from the disk at once: each time costs a hop to another thread, about 10 µs, and in these bytes
/// SHA-256 takes 1.5 ms.
const BATCH_BYTES: usize = 16 * CHUNK_BYTES;

/// Bytes of one element of a download: with its header it fits into one frame of 64 KiB, so that nothing is put together anew.
const CHUNK_BYTES: usize = 60 * 1024;

/// How long a transfer may stand still before it is given up, so that stalled peers don't hold the places of others.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Entries of one answer of `List`: about 200 KiB of JSON.
const ENTRIES_MAX: usize = 1000;

/// What stands for transfers that wait for a place: how long to wait before trying again.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// A file that `Put` has stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its path below the node's files.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of its content, in lower-case hex.
    pub sha256: String,
}

/// The request of `Get`, `Stat` and `Remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRequest {
    /// Path below the node's files, with `/` between names.
    pub path: String,
}

/// The request of `List`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListRequest {
    /// The directory; empty for the root.
    pub path: String,
    /// Only names after this one, to go on where an answer ended.
    pub after: String,
    /// Most entries to answer with; 0, and what is over 1,000, means 1,000.
    pub limit: usize,
}

/// One page of a directory, in the order of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Whether there are more after the last of these.
    pub more: bool,
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name within its directory in a listing, whole path elsewhere.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of a file; 0 for everything else.
    pub size: u64,
    /// When the content changed last, in µs since the Unix epoch; 0 where the system doesn't say.
    pub modified_us: u64,
}

/// What an [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, a device, or another thing that can't be read through this service.
    Other,
}

/// The files of one node.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    store: Arc<Store>,
    uploads: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    limits: FileLimits,
}

impl Files {
    /// Opens `<data>/files`, which is made if it is not there, and removes what uploads left behind that a crash cut off.
    ///
    /// Reads and writes the disk: call it outside of async code.
    pub(crate) fn open(data: &Path, limits: FileLimits) -> Result<Self, FilesError> {
        Ok(Self {
            store: Arc::new(Store::open(data)?),
            uploads: Arc::new(Semaphore::new(limits.max_uploads)),
            downloads: Arc::new(Semaphore::new(limits.max_downloads)),
            limits,
        })
    }

    /// Removes what is left of uploads. None may be running.
    pub(crate) fn clean(&self) -> Result<(), FilesError> {
        self.store.clean()
    }

    /// The service.
    pub(crate) fn service(&self) -> Service {
        let (put, get) = (self.clone(), self.clone());
        let (list, stat, remove) = (self.clone(), self.clone(), self.clone());
        Service::new(FILES_SERVICE)
            .describe("Stores and serves files under the node's data directory, with SHA-256.")
            .client_stream("Put", (Raw, Json), move |request| put.clone().put(request))
            .raw("Get", MethodKind::ServerStream, move |request| {
                get.clone().get(request)
            })
            .unary(
                "List",
                Json,
                move |request: Request<Option<ListRequest>>| {
                    let wanted = request.into_inner().unwrap_or_default();
                    list.clone().answer(move |store| {
                        let path = match wanted.path.as_str() {
                            "" => None,
                            path => Some(FilePath::parse(path)?),
                        };
                        let limit = match wanted.limit {
                            0 => ENTRIES_MAX,
                            limit => limit.min(ENTRIES_MAX),
                        };
                        store.list(path.as_ref(), &wanted.after, limit)
                    })
                },
            )
            .unary("Stat", Json, move |request: Request<PathRequest>| {
                let path = request.into_inner().path;
                stat.clone()
                    .answer(move |store| store.stat(&FilePath::parse(&path)?))
            })
            .unary("Remove", Json, move |request: Request<PathRequest>| {
                let path = request.into_inner().path;
                remove
                    .clone()
                    .answer(move |store| store.remove(&FilePath::parse(&path)?))
            })
    }

    async fn put(self, request: Request<Streaming<Bytes>>) -> Result<Response<Stored>, Error> {
        let wanted = upload::Wanted::from_metadata(request.metadata())?;
        let _place = place(&self.uploads, "uploads")?;
        let limit = self.limits.max_file_bytes;
        let stored = upload::receive(self.store, wanted, limit, request.into_inner()).await?;
        Ok(Response::new(stored))
    }

    async fn get(self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let wanted: PathRequest = Json.decode(request.into_inner().into_single()?)?;
        let path = FilePath::parse(&wanted.path)?;
        let place = place(&self.downloads, "downloads")?;
        let download = download::start(self.store, path, place).await?;
        Ok(Response::new(Body::stream(download)))
    }

    async fn answer<T: Send + 'static>(
        self,
        work: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<Response<T>, Error> {
        blocking(move || work(&self.store)).await.map(Response::new)
    }
}

/// A place among the transfers of one direction.
fn place(places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Error> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        let text = format!("the node has as many {what} as it allows");
        Error::new(ErrorCode::TOO_MANY_CALLS, text).with_retry_after(BUSY_RETRY)
    })
}

/// Does `work` on a thread that may block. Dropped, the work still runs to its end.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    finished(tokio::task::spawn_blocking(work).await)
}

fn finished<T>(result: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    result.unwrap_or_else(|error| {
        // Work is never aborted while its runtime lives, so it panicked or the node is ending.
        tracing::debug!(%error, "file work did not finish");
        Err(Error::unavailable("the node stopped in the middle of it"))
    })
}

#[cfg(test)]
mod tests;
