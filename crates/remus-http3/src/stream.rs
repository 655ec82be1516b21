//! Streams of a WebTransport session. Spec: draft-ietf-webtrans-http3 §4.2 to §4.4.
//!
//! Payload passes through as quinn has it: no copy, no task and no allocation per read or write.
//! Invariant: a stream that is registered with an open session is reset when the session ends.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::{BufMut, Bytes};

use crate::{Code, queue::lock, reader, session::SessionShared};

/// Why writing to a stream failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The peer wants no more; [`Code::to_application`] is the code of its application.
    #[error("peer stopped the stream: {0}")]
    Stopped(Code),
    /// The session ended, and the stream with it.
    #[error("session ended")]
    SessionEnded,
    /// The connection ended.
    #[error("connection ended: {0}")]
    Lost(#[from] quinn::ConnectionError),
    /// The stream was finished or reset by this side: a misuse by the application.
    #[error("stream is already finished or reset")]
    Finished,
}

/// Why reading from a stream failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The peer abandoned the stream; [`Code::to_application`] is the code of its application.
    #[error("peer reset the stream: {0}")]
    Reset(Code),
    /// The session ended, and the stream with it.
    #[error("session ended")]
    SessionEnded,
    /// The connection ended.
    #[error("connection ended: {0}")]
    Lost(#[from] quinn::ConnectionError),
    /// The stream was stopped by this side: a misuse by the application.
    #[error("stream is already stopped")]
    Stopped,
}

impl WriteError {
    /// The code the peer's application stopped the stream with, if that is what happened.
    #[must_use]
    pub fn application_code(&self) -> Option<u32> {
        match self {
            Self::Stopped(code) => code.to_application(),
            _ => None,
        }
    }
}

impl ReadError {
    /// The code the peer's application reset the stream with, if that is what happened.
    #[must_use]
    pub fn application_code(&self) -> Option<u32> {
        match self {
            Self::Reset(code) => code.to_application(),
            _ => None,
        }
    }
}

impl From<quinn::WriteError> for WriteError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Stopped(code.into()),
            quinn::WriteError::ConnectionLost(error) => Self::Lost(error),
            quinn::WriteError::ClosedStream => Self::Finished,
            // Early data that the server refused went with its connection attempt.
            quinn::WriteError::ZeroRttRejected => Self::Lost(quinn::ConnectionError::Reset),
        }
    }
}

impl From<quinn::ReadError> for ReadError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset(code.into()),
            quinn::ReadError::ConnectionLost(error) => Self::Lost(error),
            quinn::ReadError::ClosedStream | quinn::ReadError::IllegalOrderedRead => Self::Stopped,
            quinn::ReadError::ZeroRttRejected => Self::Lost(quinn::ConnectionError::Reset),
        }
    }
}

/// How far one direction of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Finished or reset by the application, or read to its end.
    Done,
    /// Stopped by the application.
    Stopped,
    /// Reset by the peer.
    Reset(Code),
    /// Ended because the session did.
    SessionEnded,
}

/// One direction of a stream, reachable by its owner and by the session that may end it.
#[derive(Debug)]
pub(crate) struct Half<Q> {
    session: Arc<SessionShared>,
    /// Its place in the session's registry.
    slot: usize,
    /// What QUIC calls the stream.
    id: quinn::StreamId,
    state: Mutex<HalfState<Q>>,
}

#[derive(Debug)]
struct HalfState<Q> {
    quic: Q,
    /// Bytes that were read ahead; always empty in the sending direction.
    input: Bytes,
    phase: Phase,
    /// The task that waits for this stream, so that the end of the session wakes it.
    waker: Option<Waker>,
}

impl<Q> HalfState<Q> {
    fn keep_waker(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }
}

pub(crate) type SendHalf = Half<quinn::SendStream>;
pub(crate) type RecvHalf = Half<quinn::RecvStream>;

impl<Q> Half<Q> {
    pub(crate) fn new(
        session: Arc<SessionShared>,
        slot: usize,
        id: quinn::StreamId,
        quic: Q,
        input: Bytes,
    ) -> Arc<Self> {
        Arc::new(Self {
            session,
            slot,
            id,
            state: Mutex::new(HalfState {
                quic,
                input,
                phase: Phase::Open,
                waker: None,
            }),
        })
    }

    /// Ends this direction, if it is open, because the session ended.
    fn abort(&self, abandon: impl FnOnce(&mut Q)) {
        let mut state = lock(&self.state);
        if state.phase == Phase::Open {
            state.phase = Phase::SessionEnded;
            state.input = Bytes::new();
            abandon(&mut state.quic);
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl SendHalf {
    /// Resets the stream, if it is open, because the session ended.
    pub(crate) fn end_with_session(&self) {
        self.abort(|quic| reader::reset(quic, Code::WT_SESSION_GONE));
    }
}

impl RecvHalf {
    /// Stops the stream, if it is open, because the session ended.
    pub(crate) fn end_with_session(&self) {
        self.abort(|quic| {
            let _ = quic.stop(Code::WT_SESSION_GONE.to_quic()); // an error: it is closed already
        });
    }
}

/// The sending direction of a stream.
///
/// Dropped without [`finish`](Self::finish), it is reset with application code 0, so that the peer
/// never takes a part for the whole.
#[derive(Debug)]
pub struct SendStream {
    half: Arc<SendHalf>,
}

impl SendStream {
    pub(crate) fn new(half: Arc<SendHalf>) -> Self {
        Self { half }
    }

    /// Runs `write` on the QUIC stream, unless the stream is over.
    fn poll_with<T>(
        &self,
        cx: &mut Context<'_>,
        write: impl FnOnce(
            &mut quinn::SendStream,
            &mut Context<'_>,
        ) -> Poll<Result<T, quinn::WriteError>>,
    ) -> Poll<Result<T, WriteError>> {
        let mut state = lock(&self.half.state);
        match state.phase {
            Phase::Open => {}
            Phase::Done | Phase::Stopped | Phase::Reset(_) => {
                return Poll::Ready(Err(WriteError::Finished));
            }
            Phase::SessionEnded => return Poll::Ready(Err(WriteError::SessionEnded)),
        }
        match write(&mut state.quic, cx) {
            Poll::Ready(result) => Poll::Ready(result.map_err(Into::into)),
            Poll::Pending => {
                state.keep_waker(cx);
                Poll::Pending
            }
        }
    }

    /// Polls to write the front of `data`; how many bytes were taken.
    ///
    /// One task at a time can wait on a stream.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, WriteError>> {
        self.poll_with(cx, |quic, cx| pin!(quic.write(data)).poll(cx))
    }

    /// Polls to write from the front of `chunks` without copying; how many bytes were taken.
    ///
    /// Chunks that were taken become empty, one that was taken in part keeps its rest.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, WriteError>> {
        self.poll_with(cx, |quic, cx| {
            pin!(quic.write_chunks(chunks))
                .poll(cx)
                .map_ok(|written| written.bytes)
        })
    }

    /// Writes the front of `data` and returns how many bytes were taken, waiting while flow control
    /// or the send window let none pass.
    ///
    /// # Errors
    ///
    /// [`WriteError::Stopped`] when the peer refuses more; [`WriteError::SessionEnded`] and
    /// [`WriteError::Lost`] when session or connection ended; [`WriteError::Finished`] after
    /// `finish` or `reset`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a future dropped before it completes has written nothing.
    pub async fn write(&mut self, data: &[u8]) -> Result<usize, WriteError> {
        poll_fn(|cx| self.poll_write(cx, data)).await
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write); a part may have been written.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: a dropped future may have written a part. [`write`](Self::write) is.
    pub async fn write_all(&mut self, mut data: &[u8]) -> Result<(), WriteError> {
        while !data.is_empty() {
            let written = self.write(data).await?;
            data = data.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes all of `chunks` without copying them, and leaves them empty.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write); what was not written is still in `chunks`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was not written is still in `chunks`.
    pub async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), WriteError> {
        let mut rest = chunks;
        loop {
            let done = rest.iter().take_while(|chunk| chunk.is_empty()).count();
            rest = rest.get_mut(done..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            poll_fn(|cx| self.poll_write_chunks(cx, rest)).await?;
        }
    }

    /// Ends the stream after what was written, which is still delivered.
    ///
    /// # Errors
    ///
    /// [`WriteError::Finished`] if it was finished or reset before; [`WriteError::SessionEnded`].
    pub fn finish(&mut self) -> Result<(), WriteError> {
        let mut state = lock(&self.half.state);
        match state.phase {
            Phase::Open => {
                state.phase = Phase::Done;
                state.quic.finish().map_err(|_| WriteError::Finished)
            }
            Phase::Done | Phase::Stopped | Phase::Reset(_) => Err(WriteError::Finished),
            Phase::SessionEnded => Err(WriteError::SessionEnded),
        }
    }

    /// Abandons the stream with the application's `code`; what was not delivered may be lost.
    ///
    /// Does nothing on a stream that was reset, or whose session ended.
    pub fn reset(&mut self, code: u32) {
        let mut state = lock(&self.half.state);
        if state.phase != Phase::SessionEnded {
            state.phase = Phase::Done;
            reader::reset(&mut state.quic, Code::from_application(code));
        }
    }

    /// Sets the priority against the other streams of the connection; higher goes first, strictly.
    ///
    /// Streams begin at 0. A stream that ended ignores it.
    pub fn set_priority(&self, priority: i32) {
        let _ = lock(&self.half.state).quic.set_priority(priority); // an error: it is closed already
    }

    /// Waits until the peer stops the stream (`Some`), or has acknowledged all of a finished one
    /// (`None`).
    ///
    /// # Errors
    ///
    /// [`WriteError::SessionEnded`] and [`WriteError::Lost`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn stopped(&self) -> Result<Option<Code>, WriteError> {
        let stopped = lock(&self.half.state).quic.stopped();
        tokio::select! {
            biased;
            stopped = stopped => match stopped {
                Ok(code) => {
                    if lock(&self.half.state).phase == Phase::SessionEnded {
                        return Err(WriteError::SessionEnded);
                    }
                    Ok(code.map(Into::into))
                }
                Err(quinn::StoppedError::ConnectionLost(error)) => Err(WriteError::Lost(error)),
                Err(quinn::StoppedError::ZeroRttRejected) => {
                    Err(WriteError::Lost(quinn::ConnectionError::Reset))
                }
            },
            () = self.half.session.ended() => Err(WriteError::SessionEnded),
        }
    }

    /// Resets a stream that could not be given to the application.
    pub(crate) fn refuse(self, code: Code) {
        let mut state = lock(&self.half.state);
        if state.phase == Phase::Open {
            state.phase = Phase::Done;
            reader::reset(&mut state.quic, code);
        }
    }

    /// The QUIC stream ID.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.half.id.into()
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.half.session.forget_send(self.half.slot);
        let mut state = lock(&self.half.state);
        if state.phase == Phase::Open {
            state.phase = Phase::Done;
            reader::reset(&mut state.quic, Code::from_application(0));
        }
    }
}

/// The receiving direction of a stream.
///
/// Dropped before its end was read, it is stopped with application code 0.
#[derive(Debug)]
pub struct RecvStream {
    half: Arc<RecvHalf>,
}

impl RecvStream {
    pub(crate) fn new(half: Arc<RecvHalf>) -> Self {
        Self { half }
    }

    /// Polls for the next bytes, at most `max` (at least 1), without copying; `None` at the end of the
    /// stream.
    ///
    /// One task at a time can wait on a stream.
    ///
    /// # Errors
    ///
    /// As [`read_chunk`](Self::read_chunk).
    pub fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, ReadError>> {
        let mut state = lock(&self.half.state);
        match state.phase {
            Phase::Open => {}
            Phase::Done => return Poll::Ready(Ok(None)),
            Phase::Stopped => return Poll::Ready(Err(ReadError::Stopped)),
            Phase::Reset(code) => return Poll::Ready(Err(ReadError::Reset(code))),
            Phase::SessionEnded => return Poll::Ready(Err(ReadError::SessionEnded)),
        }
        let max = max.max(1);
        if !state.input.is_empty() {
            let len = state.input.len().min(max);
            return Poll::Ready(Ok(Some(state.input.split_to(len))));
        }
        match reader::poll_chunk(&mut state.quic, cx, max) {
            Poll::Ready(result) => {
                match &result {
                    Ok(None) => state.phase = Phase::Done,
                    Err(quinn::ReadError::Reset(code)) => {
                        state.phase = Phase::Reset((*code).into())
                    }
                    Ok(Some(_)) | Err(_) => {}
                }
                Poll::Ready(result.map_err(Into::into))
            }
            Poll::Pending => {
                state.keep_waker(cx);
                Poll::Pending
            }
        }
    }

    /// Waits for the next bytes, at most `max`, without copying; `None` at the end of the stream.
    ///
    /// Where one chunk ends says nothing about the peer's writes.
    ///
    /// # Errors
    ///
    /// [`ReadError::Reset`] when the peer abandoned the stream; [`ReadError::SessionEnded`] and
    /// [`ReadError::Lost`] when session or connection ended; [`ReadError::Stopped`] after `stop`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a future dropped before it completes has taken no byte.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, ReadError> {
        poll_fn(|cx| self.poll_read_chunk(cx, max)).await
    }

    /// Waits for bytes and copies them to `buf`, as many as there are and fit; how many, 0 at the end
    /// of the stream or if `buf` is full.
    ///
    /// # Errors
    ///
    /// As [`read_chunk`](Self::read_chunk).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a future dropped before it completes has taken no byte.
    pub async fn read_buf(&mut self, buf: &mut impl BufMut) -> Result<usize, ReadError> {
        if !buf.has_remaining_mut() {
            return Ok(0);
        }
        match self.read_chunk(buf.remaining_mut()).await? {
            Some(chunk) => {
                buf.put_slice(&chunk);
                Ok(chunk.len())
            }
            None => Ok(0),
        }
    }

    /// Asks the peer to send no more, with the application's `code`; unread bytes are lost.
    ///
    /// Does nothing on a stream that ended.
    pub fn stop(&mut self, code: u32) {
        let mut state = lock(&self.half.state);
        if state.phase == Phase::Open {
            state.phase = Phase::Stopped;
            state.input = Bytes::new();
            let _ = state.quic.stop(Code::from_application(code).to_quic()); // an error: it ended
        }
    }

    /// Stops a stream that could not be given to the application.
    pub(crate) fn refuse(self, code: Code) {
        let mut state = lock(&self.half.state);
        if state.phase == Phase::Open {
            state.phase = Phase::Stopped;
            state.input = Bytes::new();
            let _ = state.quic.stop(code.to_quic()); // an error: it ended
        }
    }

    /// The QUIC stream ID.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.half.id.into()
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.half.session.forget_recv(self.half.slot);
        self.stop(0);
    }
}
