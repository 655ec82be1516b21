//! The sending half: from a file to a stream of chunks.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use remus::{Element, Error, Metadata};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::path::FilePath;
use super::store::{Reading, Store};
use super::{CHUNK_BYTES, STALL_MAX, blocking, finished};

/// Batches that are read ahead of the one that is being sent. One keeps the disk and the network busy at the same time.
const READ_AHEAD: usize = 1;

/// Opens the file at `path`. The permit is given back when the file has been read, or nobody wants more of it.
pub(super) async fn start(
    store: Arc<Store>,
    path: FilePath,
    place: OwnedSemaphorePermit,
) -> Result<Download, Error> {
    let reading = blocking(move || store.read(&path)).await?;
    let (size, modified_us) = (reading.size, reading.modified_us);
    let (sender, batches) = mpsc::channel(READ_AHEAD);
    let reader = tokio::spawn(async move {
        let _place = place;
        read(reading, sender).await;
    });
    Ok(Download {
        batches,
        reader,
        batch: Batch::default(),
        size,
        modified_us,
        begun: false,
        ended: false,
    })
}

#[derive(Default)]
struct Batch {
    bytes: Bytes,
    /// With the last batch only: the digest of the whole file.
    sha256: Option<String>,
}

/// Reads to the end of the file, or until nobody takes what was read.
async fn read(mut reading: Reading, batches: Sender<Result<Batch, Error>>) {
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let (bytes, sha256) = reading.next()?;
            let bytes = Bytes::from(bytes);
            Ok((reading, Batch { bytes, sha256 }))
        });
        let (batch, next) = match finished(read.await) {
            Ok((reading, batch)) => {
                let next = batch.sha256.is_none().then_some(reading);
                (Ok(batch), next)
            }
            Err(error) => (Err(error), None),
        };
        let sent = timeout(STALL_MAX, batches.send(batch)).await;
        match (sent, next) {
            (Ok(Ok(())), Some(next)) => reading = next,
            _ => return,
        }
    }
}

/// A file as the elements of an answer. Owns the task that reads.
pub(super) struct Download {
    batches: Receiver<Result<Batch, Error>>,
    reader: JoinHandle<()>,
    batch: Batch,
    size: u64,
    modified_us: u64,
    begun: bool,
    ended: bool,
}

impl Download {
    /// The next element, of what is in the batch.
    fn cut(&mut self) -> Result<Element, Error> {
        let length = self.batch.bytes.len().min(CHUNK_BYTES);
        let payload = self.batch.bytes.split_to(length);
        let mut metadata = Metadata::default();
        let is_last = self.batch.bytes.is_empty() && self.batch.sha256.is_some();
        if is_last || !self.begun {
            metadata.insert("size", self.size.to_string())?;
        }
        if !self.begun {
            metadata.insert("modified_us", self.modified_us.to_string())?;
        }
        if let (true, Some(sha256)) = (is_last, &self.batch.sha256) {
            metadata.insert("sha256", sha256)?;
        }
        self.begun = true;
        self.ended = is_last;
        Ok(Element {
            payload,
            metadata,
            ..Element::default()
        })
    }
}

impl Stream for Download {
    type Item = Result<Element, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.batch.bytes.is_empty() {
            match ready!(self.batches.poll_recv(cx)) {
                Some(Ok(batch)) => self.batch = batch,
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(Error::aborted(format!(
                        "nobody took the file's next bytes for {} s",
                        STALL_MAX.as_secs()
                    )))));
                }
            }
        }
        Poll::Ready(Some(self.cut()))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
