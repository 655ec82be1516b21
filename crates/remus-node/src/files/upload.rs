//! The receiving half: from a stream of chunks to a file.

use std::sync::Arc;

use bytes::Bytes;
use remus::{Error, Metadata, Streaming};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::path::FilePath;
use super::store::{Staged, Store};
use super::{BATCH_BYTES, STALL_MAX, Stored, blocking, finished};

/// What a client wants to store, and promises of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    path: FilePath,
    size: Option<u64>,
    sha256: Option<String>,
    overwrite: bool,
}

impl Wanted {
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        let field = |name: &str| match metadata.get(name) {
            None => Ok(None),
            Some(value) => std::str::from_utf8(value).map(Some).map_err(|_| {
                Error::invalid_argument(format!("the metadata `{name}` is not valid UTF-8"))
            }),
        };
        let Some(path) = field("path")? else {
            return Err(Error::invalid_argument(
                "the metadata `path` is missing: it says where to store the file",
            ));
        };
        let size = match field("size")? {
            None => None,
            Some(digits) => Some(digits.parse().map_err(|_| {
                Error::invalid_argument(
                    "the metadata `size` must be the number of bytes in decimal digits",
                )
            })?),
        };
        let sha256 = match field("sha256")? {
            None => None,
            Some(hex) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Some(hex.to_ascii_lowercase())
            }
            Some(_) => {
                return Err(Error::invalid_argument(
                    "the metadata `sha256` must be 64 hexadecimal digits",
                ));
            }
        };
        let overwrite = match field("overwrite")? {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => {
                return Err(Error::invalid_argument(
                    "the metadata `overwrite` must be `true` or `false`",
                ));
            }
        };
        Ok(Self {
            path: FilePath::parse(path)?,
            size,
            sha256,
            overwrite,
        })
    }
}

/// Stores what `chunks` bring. Dropped, or failed, it leaves nothing behind.
pub(super) async fn receive(
    store: Arc<Store>,
    wanted: Wanted,
    limit: u64,
    mut chunks: Streaming<Bytes>,
) -> Result<Stored, Error> {
    if let Some(size) = wanted.size.filter(|size| *size > limit) {
        return Err(too_large(size, limit));
    }
    let (target, overwrite) = (wanted.path.clone(), wanted.overwrite);
    let staged = blocking(move || {
        store.check_target(&target, overwrite)?;
        store.begin()
    })
    .await?;

    let mut writer = Writer::new(staged);
    let mut received: u64 = 0;
    loop {
        let chunk = match timeout(STALL_MAX, chunks.message()).await {
            Ok(chunk) => chunk?,
            Err(_) => {
                return Err(Error::aborted(format!(
                    "nothing came for {} s; nothing was kept",
                    STALL_MAX.as_secs()
                )));
            }
        };
        let Some(chunk) = chunk else { break };
        received = received.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        if let Some(promised) = wanted.size.filter(|promised| received > *promised) {
            return Err(Error::invalid_argument(format!(
                "over {promised} bytes came, and {promised} were promised; nothing was kept"
            )));
        }
        if received > limit {
            return Err(too_large(received, limit));
        }
        writer.write(&chunk).await?;
    }
    if let Some(promised) = wanted.size.filter(|promised| received < *promised) {
        return Err(Error::data_loss(format!(
            "{received} bytes came, and {promised} were promised; nothing was kept"
        )));
    }
    let staged = writer.finish().await?;
    blocking(move || staged.keep(&wanted.path, wanted.overwrite, wanted.sha256.as_deref())).await
}

fn too_large(size: u64, limit: u64) -> Error {
    Error::resource_exhausted(format!(
        "the file has at least {size} bytes, and this node takes {limit} at most"
    ))
}

/// Collects chunks, and writes them in batches while the next one fills: at most one is being written.
///
/// Copying into the batch costs a tenth of hashing it, and bounds what an upload holds: chunks of one byte each would keep the
/// packets alive that they came in.
struct Writer {
    disk: Disk,
    batch: Vec<u8>,
}

enum Disk {
    Idle(Staged, Vec<u8>),
    Busy(JoinHandle<Result<(Staged, Vec<u8>), Error>>),
    /// It failed, or the future that used it was dropped in between.
    Lost,
}

impl Writer {
    fn new(staged: Staged) -> Self {
        Self {
            disk: Disk::Idle(staged, Vec::new()),
            batch: Vec::new(),
        }
    }

    /// Takes `chunk`, waiting for the disk where it is behind.
    async fn write(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.batch.extend_from_slice(chunk);
        if self.batch.len() >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let (mut staged, spare) = self.settle().await?;
        let mut batch = std::mem::replace(&mut self.batch, spare);
        self.disk = Disk::Busy(tokio::task::spawn_blocking(move || {
            staged.write(&batch)?;
            batch.clear();
            Ok((staged, batch))
        }));
        Ok(())
    }

    /// Waits until nothing is being written.
    async fn settle(&mut self) -> Result<(Staged, Vec<u8>), Error> {
        match std::mem::replace(&mut self.disk, Disk::Lost) {
            Disk::Idle(staged, spare) => Ok((staged, spare)),
            Disk::Busy(writing) => finished(writing.await),
            Disk::Lost => Err(Error::internal("an upload went on after it failed")),
        }
    }

    /// Writes the rest.
    async fn finish(mut self) -> Result<Staged, Error> {
        self.flush().await?;
        let (staged, _) = self.settle().await?;
        Ok(staged)
    }
}

#[cfg(test)]
mod tests {
    use remus::ErrorCode;

    use super::*;

    fn wanted(fields: &[(&str, &str)]) -> Result<Wanted, Error> {
        let mut metadata = Metadata::default();
        for (name, value) in fields {
            metadata.insert(name, value).unwrap();
        }
        Wanted::from_metadata(&metadata)
    }

    #[test]
    fn metadata_says_what_is_wanted() {
        let digest = "Ab".repeat(32);
        let all = [
            ("path", "a/b"),
            ("size", "12"),
            ("sha256", &digest),
            ("overwrite", "true"),
        ];
        let expected = Wanted {
            path: FilePath::parse("a/b").unwrap(),
            size: Some(12),
            sha256: Some("ab".repeat(32)),
            overwrite: true,
        };
        assert_eq!(wanted(&all).unwrap(), expected);
        let least = wanted(&[("path", "a")]).unwrap();
        assert_eq!(
            (least.size, least.sha256, least.overwrite),
            (None, None, false)
        );
    }

    #[test]
    fn metadata_that_makes_no_sense_is_refused() {
        for fields in [
            &[][..],
            &[("size", "1")],
            &[("path", "../a")],
            &[("path", "a"), ("size", "-1")],
            &[("path", "a"), ("size", "1e3")],
            &[("path", "a"), ("sha256", "ab")],
            &[("path", "a"), ("overwrite", "yes")],
        ] {
            let error = wanted(fields).unwrap_err();
            assert_eq!(error.code(), ErrorCode::INVALID_ARGUMENT, "{fields:?}");
        }
        let mut metadata = Metadata::default();
        metadata.insert("path", [0xff]).unwrap();
        let error = Wanted::from_metadata(&metadata).unwrap_err();
        assert_eq!(error.message(), "the metadata `path` is not valid UTF-8");
    }
}
