//! The floors' frames, `u32 length | u32 id | payload`, over any pair of byte streams.
//!
//! A connection begins with a [`Mode`] and a size. Everything that can be sent together is: the client's writer takes all that
//! is queued, the server answers all frames of one read with one write. No header, deadline, cancellation or flow control of
//! their own: this is what the carrier costs, and the least that multiplexing costs.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use slab::Slab;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, oneshot};

use crate::Result;
use crate::load::{Download, Echo, Upload, check, payload};

/// Bytes before a payload.
const HEADER_BYTES: usize = 8;

/// Room for one read: several QUIC packets, or a TLS record, or what TCP has.
const READ_BYTES: usize = 64 * 1024;

/// Bytes of messages that the server writes at once in a stream.
const WRITE_BYTES: usize = 64 * 1024;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Frames come back as they were sent.
    Echo,
    /// The server sends frames with payloads of the given size.
    Messages,
    /// The server sends bytes, in writes of the given size.
    Down,
    /// The client sends bytes; the server answers with their number, a `u64`.
    Up,
}

/// The first bytes of a connection.
pub(crate) fn preamble(mode: Mode, size: usize) -> Result<[u8; 5]> {
    let mode = match mode {
        Mode::Echo => 0,
        Mode::Messages => 1,
        Mode::Down => 2,
        Mode::Up => 3,
    };
    let [a, b, c, d] = u32::try_from(size)?.to_be_bytes();
    Ok([mode, a, b, c, d])
}

fn put_frame(out: &mut BytesMut, id: u32, payload: &[u8]) {
    // Payloads of the bench are far below 4 GiB; a longer one fails the check at the other end.
    out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_u32(id);
    out.put_slice(payload);
}

/// Takes a whole frame off the front, if one is there.
fn take_frame(read: &mut BytesMut) -> Option<(u32, Bytes)> {
    let mut header = read.get(..HEADER_BYTES)?;
    let (length, id) = (header.get_u32() as usize, header.get_u32());
    if read.len() < HEADER_BYTES + length {
        return None;
    }
    read.advance(HEADER_BYTES);
    Some((id, read.split_to(length).freeze()))
}

/// Reads what is there. False at the end of the stream.
async fn read_more(from: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> Result<bool> {
    read.reserve(READ_BYTES);
    Ok(from.read_buf(read).await? > 0)
}

// ---- the server ------------------------------------------------------------------------------------

/// Serves one connection until the client ends it.
pub(crate) async fn serve(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> Result<()> {
    let mode = from.read_u8().await?;
    let size = from.read_u32().await? as usize;
    let mut read = BytesMut::new();
    match mode {
        0 => {
            let mut out = BytesMut::new();
            while read_more(&mut from, &mut read).await? {
                while let Some((id, payload)) = take_frame(&mut read) {
                    put_frame(&mut out, id, &payload);
                }
                to.write_all(&out).await?;
                to.flush().await?;
                out.clear();
            }
        }
        1 => {
            let message = payload(0, size);
            let mut out = BytesMut::new();
            loop {
                while out.len() < WRITE_BYTES {
                    put_frame(&mut out, 0, &message);
                }
                to.write_all(&out).await?;
                out.clear();
            }
        }
        2 => {
            let piece = payload(0, size);
            loop {
                to.write_all(&piece).await?;
            }
        }
        _ => {
            let mut count = 0_u64;
            while read_more(&mut from, &mut read).await? {
                count += read.len() as u64;
                read.clear();
            }
            to.write_u64(count).await?;
            to.shutdown().await?;
        }
    }
    Ok(())
}

// ---- calls -----------------------------------------------------------------------------------------

/// A connection in [`Mode::Echo`]. `K` keeps it open.
pub(crate) struct Client<K> {
    shared: Arc<Shared>,
    kept: K,
}

impl<K: Clone> Clone for Client<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            kept: self.kept.clone(),
        }
    }
}

struct Shared {
    state: Mutex<State>,
    queued: Notify,
}

#[derive(Default)]
struct State {
    /// What the writer takes next. Bounded by the calls in flight.
    out: BytesMut,
    waiting: Slab<oneshot::Sender<Bytes>>,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails all calls that wait, and those to come.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
    }
}

/// Ends the reader and writer with the last client.
pub(crate) struct Tasks([tokio::task::AbortHandle; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl<K: Clone> Client<(Arc<Tasks>, K)> {
    /// Calls over two streams that have not been used yet.
    pub(crate) async fn start(
        mut from: impl AsyncRead + Unpin + Send + 'static,
        mut to: impl AsyncWrite + Unpin + Send + 'static,
        kept: K,
    ) -> Result<Self> {
        let mut state = State::default();
        state.out.put_slice(&preamble(Mode::Echo, 0)?);
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            queued: Notify::new(),
        });
        let writer = shared.clone();
        let writing = tokio::spawn(async move {
            let mut out = BytesMut::new();
            loop {
                std::mem::swap(&mut out, &mut writer.lock().out);
                if out.is_empty() {
                    writer.queued.notified().await;
                    continue;
                }
                if to.write_all(&out).await.is_err() || to.flush().await.is_err() {
                    return writer.close();
                }
                out.clear();
            }
        });
        let reader = shared.clone();
        let reading = tokio::spawn(async move {
            let mut read = BytesMut::new();
            while let Ok(true) = read_more(&mut from, &mut read).await {
                let mut state = reader.lock();
                while let Some((id, payload)) = take_frame(&mut read) {
                    if let Some(waiting) = state.waiting.try_remove(id as usize) {
                        // A call that was given up needs no answer.
                        let _ = waiting.send(payload);
                    }
                }
            }
            reader.close();
        });
        let tasks = Arc::new(Tasks([writing.abort_handle(), reading.abort_handle()]));
        Ok(Self {
            shared,
            kept: (tasks, kept),
        })
    }
}

impl<K: Clone + Send + Sync + 'static> Echo for Client<K> {
    async fn call(&self, payload: Bytes) -> Result<Bytes> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            if state.closed {
                return Err("the connection is closed".into());
            }
            let id = u32::try_from(state.waiting.insert(answer))?;
            put_frame(&mut state.out, id, &payload);
        }
        self.shared.queued.notify_one();
        answered
            .await
            .map_err(|_| "the connection was lost during the call".into())
    }
}

// ---- streams ---------------------------------------------------------------------------------------

/// A connection in [`Mode::Messages`] or [`Mode::Down`]. `K` keeps it open.
pub(crate) struct Incoming<R, W, K> {
    from: R,
    read: BytesMut,
    /// What a message must look like, where there are messages.
    message: Option<Bytes>,
    _kept: (W, K),
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin, K> Incoming<R, W, K> {
    pub(crate) async fn start(
        from: R,
        mut to: W,
        size: usize,
        messages: bool,
        kept: K,
    ) -> Result<Self> {
        let mode = if messages { Mode::Messages } else { Mode::Down };
        to.write_all(&preamble(mode, size)?).await?;
        to.flush().await?;
        Ok(Self {
            from,
            read: BytesMut::new(),
            message: messages.then(|| payload(0, size)),
            _kept: (to, kept),
        })
    }
}

impl<R: AsyncRead + Unpin, W, K> Download for Incoming<R, W, K> {
    async fn next(&mut self) -> Result<usize> {
        loop {
            match &self.message {
                Some(message) => {
                    if let Some((_, got)) = take_frame(&mut self.read) {
                        check(message, &got)?;
                        return Ok(got.len());
                    }
                }
                None if !self.read.is_empty() => {
                    let length = self.read.len();
                    self.read.clear();
                    return Ok(length);
                }
                None => {}
            }
            if !read_more(&mut self.from, &mut self.read).await? {
                return Err("the stream ended".into());
            }
        }
    }
}

/// A connection in [`Mode::Up`]. `K` keeps it open.
pub(crate) struct Outgoing<R, W, K> {
    from: R,
    to: W,
    _kept: K,
}

impl<R, W: AsyncWrite + Unpin, K> Outgoing<R, W, K> {
    pub(crate) async fn start(from: R, mut to: W, kept: K) -> Result<Self> {
        to.write_all(&preamble(Mode::Up, 0)?).await?;
        Ok(Self {
            from,
            to,
            _kept: kept,
        })
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin, K> Upload for Outgoing<R, W, K> {
    async fn send(&mut self, payload: Bytes) -> Result<()> {
        Ok(self.to.write_all(&payload).await?)
    }

    async fn finish(mut self) -> Result<u64> {
        self.to.shutdown().await?;
        Ok(self.from.read_u64().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_off_whole_wherever_a_read_ends() {
        let mut all = BytesMut::new();
        put_frame(&mut all, 7, b"seven");
        put_frame(&mut all, 8, b"");
        for cut in 0..=all.len() {
            let mut read = BytesMut::from(all.get(..cut).unwrap());
            let mut frames = Vec::new();
            frames.extend(std::iter::from_fn(|| take_frame(&mut read)));
            read.extend_from_slice(all.get(cut..).unwrap());
            frames.extend(std::iter::from_fn(|| take_frame(&mut read)));
            assert_eq!(
                frames,
                [(7, Bytes::from_static(b"seven")), (8, Bytes::new())],
                "cut at {cut}"
            );
        }
    }

    #[tokio::test]
    async fn calls_fail_when_the_connection_ends() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let (from, to) = tokio::io::split(ours);
        let client = Client::start(from, to, ()).await.unwrap();
        let call = tokio::spawn({
            let client = client.clone();
            async move { client.call(Bytes::from_static(b"?")).await }
        });
        drop(theirs);
        assert!(call.await.unwrap().is_err(), "a call under way");
        assert!(client.call(Bytes::new()).await.is_err(), "a later one");
    }
}
