//! A QUIC stream with what was read ahead of it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll},
};

use bytes::Bytes;

use crate::{Code, varint};

/// A receive stream whose first bytes are looked at before its owner is known.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) recv: quinn::RecvStream,
    /// Bytes that were read and not yet used.
    pub(crate) input: Bytes,
}

/// Polls for the next bytes of `recv`, at most `max`; `None` at its end.
pub(crate) fn poll_chunk(
    recv: &mut quinn::RecvStream,
    cx: &mut Context<'_>,
    max: usize,
) -> Poll<Result<Option<Bytes>, quinn::ReadError>> {
    // The waker is kept by the connection, not by this future, so it may be dropped at once.
    pin!(recv.read_chunk(max, true))
        .poll(cx)
        .map_ok(|chunk| chunk.map(|chunk| chunk.bytes))
}

impl Reader {
    pub(crate) fn new(recv: quinn::RecvStream) -> Self {
        Self {
            recv,
            input: Bytes::new(),
        }
    }

    /// Polls for more input once all of it is used; false at the end of the stream.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, quinn::ReadError>> {
        if !self.input.is_empty() {
            return Poll::Ready(Ok(true));
        }
        poll_chunk(&mut self.recv, cx, usize::MAX).map_ok(|chunk| match chunk {
            Some(bytes) => {
                self.input = bytes;
                true
            }
            None => false,
        })
    }

    /// Waits for more input once all of it is used; false at the end of the stream.
    ///
    /// Cancel safe. Gives other tasks their turn, as a peer can keep a stream readable for ever.
    pub(crate) async fn fill(&mut self) -> Result<bool, quinn::ReadError> {
        tokio::task::consume_budget().await;
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Reads one integer; `None` if the stream ends before or inside it. Not cancel safe.
    pub(crate) async fn varint(&mut self) -> Result<Option<u64>, quinn::ReadError> {
        let mut decoder = varint::Decoder::default();
        loop {
            if let Some(value) = decoder.decode(&mut self.input) {
                return Ok(Some(value));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Asks the peer to send no more. Harmless on a stream that ended.
    pub(crate) fn stop(&mut self, code: Code) {
        self.input = Bytes::new();
        let _ = self.recv.stop(code.to_quic()); // an error says that the stream is closed already
    }
}

/// Abandons `send`. Harmless on a stream that ended.
pub(crate) fn reset(send: &mut quinn::SendStream, code: Code) {
    let _ = send.reset(code.to_quic()); // an error says that the stream is closed already
}

/// Writes the front of `data` without waiting, and returns how much.
pub(crate) async fn try_write(
    send: &mut quinn::SendStream,
    data: &[u8],
) -> Result<usize, quinn::WriteError> {
    poll_fn(|cx| match pin!(send.write(data)).poll(cx) {
        Poll::Ready(written) => Poll::Ready(written),
        Poll::Pending => Poll::Ready(Ok(0)),
    })
    .await
}
