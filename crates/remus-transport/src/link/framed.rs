//! A link of one lane whose bytes somebody else carries: a WebSocket's task, or HTTP requests as they come. Spec: carriers §1.
//!
//! Owns the two bounded queues between session and carrier, and the link's end. Knows nothing of HTTP.
//! Invariant: both queues hold whole frames, so whatever is taken from them may be put into a message of its own.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use remus_wire::{ErrorCode, FrameHeader};
use tokio::sync::watch;

use super::{Carrier, LaneError, LinkEnd};

/// Longest unit that a carrier of this kind carries at once, in bytes of frames. Spec: CARR-3.
pub(crate) const UNIT_MAX: usize = 1024 * 1024;

/// Bytes that wait for the session before the carrier takes no more from the network: one unit, so that the next one can come in
/// while the session works on the last.
const INCOMING_MAX: usize = UNIT_MAX;

/// Bytes that wait for the carrier before the session is held back: a few times what a session gives at once (64 KiB), so that
/// the carrier never runs dry, and little enough that what is urgent need not wait for long.
const OUTGOING_MAX: usize = 256 * 1024;

/// How long closing may take: what stands ready has left by then, so this is for the farewell of both sides. Spec: CARR-12.
pub(crate) const CLOSE_MAX: Duration = Duration::from_secs(2);

/// One link; all clones are the same.
#[derive(Clone)]
pub(crate) struct Framed(Arc<Shared>);

impl fmt::Debug for Framed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framed")
            .field("carrier", &self.carrier())
            .field("remote", &self.0.remote)
            .finish_non_exhaustive()
    }
}

struct Shared {
    remote: SocketAddr,
    closes_at_once: bool,
    state: Mutex<State>,
    end: watch::Sender<Option<LinkEnd>>,
}

/// What carries the link. It ends soon after the link.
pub(crate) type Runner = Pin<Box<dyn Future<Output = ()> + Send>>;

struct State {
    runner: Option<Runner>,
    carrier: Carrier,
    lane_taken: bool,
    incoming: VecDeque<Bytes>,
    incoming_len: usize,
    /// The session takes nothing more: what comes is dropped.
    stopped: bool,
    outgoing: VecDeque<Unit>,
    outgoing_len: usize,
    /// Nothing follows what is in `outgoing`.
    finished: bool,
    /// All of it has arrived at the peer, as far as the carrier can tell.
    delivered: bool,
    /// The session wants the link closed.
    closing: Option<(ErrorCode, String)>,
    ended: bool,
    /// The end, while the session has not read all that came before it.
    unread_end: Option<LinkEnd>,
    /// The session's reader waits for something to read.
    reader: Option<Waker>,
    /// The session's writer waits for room, or for delivery.
    writer: Option<Waker>,
    /// The carrier waits for something to send, or for room.
    source: Option<Waker>,
    sink: Option<Waker>,
}

/// Whole frames, as the session gave them.
#[derive(Debug)]
struct Unit {
    chunks: VecDeque<Bytes>,
    len: usize,
}

/// What the carrier is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    /// Send this: whole frames, [`UNIT_MAX`] at most.
    Frames { chunks: VecDeque<Bytes>, len: usize },
    /// Close, with the session's code and reason: nothing follows.
    Close { code: ErrorCode, reason: String },
    /// The link has ended.
    Ended,
}

impl Framed {
    pub(crate) fn new(carrier: Carrier, remote: SocketAddr) -> Self {
        Self::make(carrier, remote, false)
    }

    /// A link without a task: requests come for it, or don't, so closing it does not wait for one.
    pub(crate) fn for_requests(carrier: Carrier, remote: SocketAddr) -> Self {
        Self::make(carrier, remote, true)
    }

    fn make(carrier: Carrier, remote: SocketAddr, closes_at_once: bool) -> Self {
        Self(Arc::new(Shared {
            remote,
            closes_at_once,
            state: Mutex::new(State {
                runner: None,
                carrier,
                lane_taken: false,
                incoming: VecDeque::new(),
                incoming_len: 0,
                stopped: false,
                outgoing: VecDeque::new(),
                outgoing_len: 0,
                finished: false,
                delivered: false,
                closing: None,
                ended: false,
                unread_end: None,
                reader: None,
                writer: None,
                source: None,
                sink: None,
            }),
            end: watch::Sender::new(None),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn carrier(&self) -> Carrier {
        self.lock().carrier
    }

    /// An HTTP link is what its reader makes of it. Spec: carriers §3.
    pub(crate) fn set_carrier(&self, carrier: Carrier) {
        self.lock().carrier = carrier;
    }

    /// Says what carries it; whoever drives its session runs that.
    pub(crate) fn set_runner(&self, runner: impl Future<Output = ()> + Send + 'static) {
        self.lock().runner = Some(Box::pin(runner));
    }

    pub(crate) fn take_runner(&self) -> Option<Runner> {
        self.lock().runner.take()
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.0.remote
    }

    // ---- the session's side ----

    /// Its one lane, the first time.
    pub(crate) fn take_lane(&self) -> Option<(FramedReader, FramedWriter)> {
        let mut state = self.lock();
        if state.ended || std::mem::replace(&mut state.lane_taken, true) {
            return None;
        }
        Some((FramedReader(self.clone()), FramedWriter(self.clone())))
    }

    pub(crate) fn end(&self) -> Option<LinkEnd> {
        self.0.end.borrow().clone()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Code and reason with which the session wants the link closed, if it does.
    pub(crate) fn asked_to_close(&self) -> Option<(ErrorCode, String)> {
        self.lock().closing.clone()
    }

    /// Waits for the end. Cancel safe.
    pub(crate) async fn closed(&self) -> LinkEnd {
        let mut end = self.0.end.subscribe();
        match end.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(end)) => end.clone(),
            // The sender lives as long as `self`.
            _ => LinkEnd::Local,
        }
    }

    /// Asks the carrier to close the link, and waits until it has; not longer than [`CLOSE_MAX`].
    pub(crate) async fn close(&self, code: ErrorCode, reason: &str) {
        let source = {
            let mut state = self.lock();
            state
                .closing
                .get_or_insert_with(|| (code, reason.to_owned()));
            state.finished = true;
            state.source.take()
        };
        if self.0.closes_at_once {
            self.set_end(LinkEnd::Local);
        }
        wake(source);
        if tokio::time::timeout(CLOSE_MAX, self.closed())
            .await
            .is_err()
        {
            self.set_end(LinkEnd::Local);
        }
    }

    // ---- the carrier's side ----

    /// Polls for what is to be sent: units of whole frames that are joined up to `max` bytes, or one that is longer.
    ///
    /// Pending where there is nothing.
    pub(crate) fn poll_outgoing(&self, cx: &mut Context<'_>, max: usize) -> Poll<Outgoing> {
        let mut state = self.lock();
        if state.ended {
            return Poll::Ready(Outgoing::Ended);
        }
        if let Some(first) = state.outgoing.pop_front() {
            let Unit {
                mut chunks,
                mut len,
            } = first;
            while let Some(next) = state.outgoing.front()
                && len.saturating_add(next.len) <= max
                && let Some(mut next) = state.outgoing.pop_front()
            {
                len = len.saturating_add(next.len);
                chunks.append(&mut next.chunks);
            }
            state.outgoing_len = state.outgoing_len.saturating_sub(len);
            let writer = state.writer.take();
            drop(state);
            wake(writer);
            return Poll::Ready(Outgoing::Frames { chunks, len });
        }
        if let Some((code, reason)) = &state.closing {
            return Poll::Ready(Outgoing::Close {
                code: *code,
                reason: reason.clone(),
            });
        }
        state.source = Some(cx.waker().clone());
        Poll::Pending
    }

    /// All that was taken from [`Framed::poll_outgoing`] so far has arrived, as far as the carrier can tell.
    pub(crate) fn note_delivered(&self) {
        let mut state = self.lock();
        if !state.finished || !state.outgoing.is_empty() {
            return; // more follows, so nobody waits for this
        }
        state.delivered = true;
        let writer = state.writer.take();
        drop(state);
        wake(writer);
    }

    /// Ready when there is room for what comes from the network.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.incoming_len < INCOMING_MAX || state.stopped || state.ended {
            return Poll::Ready(());
        }
        state.sink = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Gives the session what came: whole frames.
    pub(crate) fn put_incoming(&self, frames: Bytes) {
        if frames.is_empty() {
            return;
        }
        let reader = {
            let mut state = self.lock();
            if state.stopped || state.ended {
                return;
            }
            state.incoming_len = state.incoming_len.saturating_add(frames.len());
            state.incoming.push_back(frames);
            state.reader.take()
        };
        wake(reader);
    }

    /// The link is over. Only the first reason counts.
    ///
    /// The session hears of it when it has read all that came before: the last answers must not lose a race against the end.
    pub(crate) fn set_end(&self, end: LinkEnd) {
        let (wakers, told) = {
            let mut state = self.lock();
            let first = !std::mem::replace(&mut state.ended, true);
            let reads = state.lane_taken && !state.stopped && state.reader.is_none();
            let told = if first && reads && end != LinkEnd::Local {
                state.unread_end = Some(end);
                None
            } else if first {
                Some(end)
            } else if end == LinkEnd::Local {
                // Who closes waits no longer for a reader that does not come.
                state.unread_end.take()
            } else {
                None
            };
            state.outgoing.clear();
            state.outgoing_len = 0;
            let wakers = [
                state.reader.take(),
                state.writer.take(),
                state.source.take(),
                state.sink.take(),
            ];
            (wakers, told)
        };
        self.tell_end(told);
        wakers.into_iter().for_each(wake);
    }

    /// The link broke.
    pub(crate) fn lose(&self, reason: &str) {
        self.set_end(LinkEnd::Lost {
            reason: reason.to_owned(),
        });
    }

    fn tell_end(&self, end: Option<LinkEnd>) {
        if end.is_some() {
            self.0.end.send_replace(end);
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// What the session reads.
#[derive(Debug)]
pub(crate) struct FramedReader(Framed);

impl FramedReader {
    /// As [`super::LaneReader::poll_chunks`].
    pub(crate) fn poll_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Poll<Option<Result<(), LaneError>>> {
        let mut state = self.0.lock();
        if state.incoming.is_empty() {
            if state.ended {
                let end = state.unread_end.take();
                drop(state);
                self.0.tell_end(end);
                return Poll::Ready(Some(Err(LaneError::Ended)));
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        chunks.append(&mut state.incoming);
        state.incoming_len = 0;
        let sink = state.sink.take();
        drop(state);
        wake(sink);
        Poll::Ready(None)
    }

    pub(crate) fn stop(&mut self) {
        let (sink, end) = {
            let mut state = self.0.lock();
            state.stopped = true;
            state.incoming.clear();
            state.incoming_len = 0;
            (state.sink.take(), state.unread_end.take())
        };
        self.0.tell_end(end);
        wake(sink);
    }
}

impl Drop for FramedReader {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the session writes.
#[derive(Debug)]
pub(crate) struct FramedWriter(Framed);

impl FramedWriter {
    /// As [`super::LaneWriter::write`].
    pub(crate) async fn write(&mut self, chunks: &mut VecDeque<Bytes>) -> Result<(), LaneError> {
        let len = chunks.iter().map(Bytes::len).sum();
        poll_fn(|cx| self.poll_write(cx, chunks, len)).await
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
        len: usize,
    ) -> Poll<Result<(), LaneError>> {
        let mut state = self.0.lock();
        if state.ended {
            return Poll::Ready(Err(LaneError::Ended));
        }
        if state.outgoing_len >= OUTGOING_MAX {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.outgoing_len = state.outgoing_len.saturating_add(len);
        state.outgoing.push_back(Unit {
            chunks: std::mem::take(chunks),
            len,
        });
        let source = state.source.take();
        drop(state);
        wake(source);
        Poll::Ready(Ok(()))
    }

    /// As [`super::LaneWriter::finish`].
    pub(crate) async fn finish(&mut self) {
        let source = {
            let mut state = self.0.lock();
            state.finished = true;
            state.source.take()
        };
        wake(source);
        poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.delivered || state.ended {
                return Poll::Ready(());
            }
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Whether `bytes` are whole frames, none or more of them; what they say is the session's to judge. Spec: CARR-2.
pub(crate) fn are_whole_frames(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Some((header, rest)) = bytes.split_first_chunk::<{ FrameHeader::LEN }>() else {
            return false;
        };
        let len = usize::try_from(FrameHeader::decode(*header).len);
        let Some(next) = len.ok().and_then(|len| rest.get(len..)) else {
            return false;
        };
        bytes = next;
    }
    true
}
