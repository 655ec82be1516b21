//! Several QUIC endpoints, one a thread, on one UDP port: which of them a datagram belongs to, and its way there.
//!
//! The kernel chooses among sockets that share a port by both addresses of a datagram. A client whose address changes (another
//! network, a NAT that forgot) therefore comes to another socket than the one that holds its connection. So each connection ID
//! says whose it is, and a socket hands what is not its own to the shard that it belongs to, through a bounded queue in memory.
//!
//! Owns the form of connection IDs and the queues between shards; knows nothing of connections.
//! Invariant: a datagram that belongs to the shard that received it is neither copied nor waits, whatever others receive.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::sessions::Sessions;
use crate::web::Links;
use crate::web::links::LinkTable;

mod connection_id;

pub(crate) use self::connection_id::Generator;
use self::connection_id::{ConnectionIds, destination};

/// Shards that one port can have: their number is one byte of a connection ID.
pub const SHARDS_MAX: usize = 256;

/// Bytes that wait for one shard: as many as its socket holds in the kernel. Beyond it datagrams are dropped, as the network may.
const WAITING_BYTES_MAX: usize = super::quic::SOCKET_BUFFER_BYTES;

/// Buffers that wait for one shard, each of a datagram or of several that arrived as one: bounds what tiny ones cost beside
/// their bytes, to some 80 KiB.
const WAITING_BUFFERS_MAX: usize = 1024;

/// The endpoints that share one UDP port. Cheap to clone; all clones are the same group.
///
/// Each number in it serves one endpoint at a time: see [`quic::shard_endpoint`](crate::quic::shard_endpoint).
#[derive(Clone)]
pub struct ShardGroup(Arc<Group>);

struct Group {
    /// A link's requests may come to any of the shards.
    links: LinkTable,
    /// A session may go on over a carrier that came to any of the shards.
    sessions: Arc<Sessions>,
    ids: ConnectionIds,
    inboxes: Box<[Inbox]>,
    handed_on: AtomicU64,
    dropped: AtomicU64,
}

/// What went from one shard of a group to another, since the group was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStatistics {
    /// Buffers that one shard received and another one took: a datagram each, or several that arrived as one.
    pub handed_on: u64,
    /// Buffers that were dropped because their shard was behind, or is not there.
    pub dropped: u64,
}

/// Why an endpoint cannot be a shard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// No group has that many shards, or none.
    #[error("a port has 1 to {SHARDS_MAX} shards, not {count}")]
    #[expect(missing_docs, reason = "the message names every field")]
    Count { count: usize },
    /// There is no such shard.
    #[error("there is no shard {number} in a group of {count}")]
    #[expect(missing_docs, reason = "the message names every field")]
    Number { number: usize, count: usize },
    /// Another endpoint is that shard.
    #[error("shard {number} has an endpoint already")]
    #[expect(missing_docs, reason = "the message names every field")]
    Taken { number: usize },
    /// The operating system gave no random bytes for the secret.
    #[error("no random bytes for connection IDs")]
    Random,
}

impl ShardGroup {
    /// A group of `count` shards, 1 to [`SHARDS_MAX`], with a secret of its own.
    ///
    /// # Errors
    ///
    /// [`ShardError::Count`], [`ShardError::Random`].
    pub fn new(count: usize) -> Result<Self, ShardError> {
        if !(1..=SHARDS_MAX).contains(&count) {
            return Err(ShardError::Count { count });
        }
        Ok(Self(Arc::new(Group {
            links: LinkTable::default(),
            sessions: Arc::default(),
            ids: ConnectionIds::new(count)?,
            inboxes: (0..count).map(|_| Inbox::default()).collect(),
            handed_on: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        })))
    }

    /// How many shards it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.inboxes.len()
    }

    /// Where the servers of all shards find the sessions that have lost their carrier.
    #[must_use]
    pub fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(&self.0.sessions)
    }

    /// HTTP links for one shard's server: it keeps its own, and finds those of the others.
    #[must_use]
    pub fn links(&self) -> Links {
        Links::of(self.0.links.clone())
    }

    /// Counts of what went from one shard to another.
    #[must_use]
    pub fn statistics(&self) -> ShardStatistics {
        ShardStatistics {
            handed_on: self.0.handed_on.load(Ordering::Relaxed),
            dropped: self.0.dropped.load(Ordering::Relaxed),
        }
    }

    /// Makes `socket` the one of shard `number`.
    pub(crate) fn open(
        &self,
        number: usize,
        socket: Arc<dyn AsyncUdpSocket>,
    ) -> Result<ShardSocket, ShardError> {
        let count = self.count();
        let (Some(inbox), Ok(shard)) = (self.0.inboxes.get(number), u8::try_from(number)) else {
            return Err(ShardError::Number { number, count });
        };
        let mut waiting = inbox.lock();
        if waiting.is_open {
            return Err(ShardError::Taken { number });
        }
        waiting.is_open = true;
        drop(waiting);
        Ok(ShardSocket {
            socket,
            group: Arc::clone(&self.0),
            shard,
            inbox_was_last: AtomicBool::new(false),
        })
    }

    /// Makes the connection IDs of shard `number`.
    pub(crate) fn generator(&self, number: u8) -> Generator {
        Generator::new(self.0.ids.clone(), number)
    }
}

impl fmt::Debug for ShardGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardGroup")
            .field("count", &self.count())
            .field("statistics", &self.statistics())
            .finish()
    }
}

impl Group {
    /// Takes from a received buffer what belongs to other shards than `here`, and hands it on.
    ///
    /// A buffer holds datagrams of one sender. They belong to one connection unless that sender has several to this port, so all
    /// but the first are compared with the one before.
    fn sort(&self, here: u8, meta: &mut RecvMeta, buffer: &mut [u8]) {
        let Some(received) = buffer.get(..meta.len) else {
            return;
        };
        let stride = meta.stride.clamp(1, meta.len.max(1));
        let mut last = None;
        let mut owner = here;
        let mut owner_of = |datagram: &[u8]| {
            let id = destination(datagram);
            if id != last {
                last = id;
                owner = id.and_then(|id| self.ids.shard(id)).unwrap_or(here);
            }
            owner
        };
        let mut datagrams = received.chunks(stride);
        let first = datagrams.next().map_or(here, &mut owner_of);
        if datagrams.all(|datagram| owner_of(datagram) == first) {
            if first != here {
                self.hand_on(first, *meta, received);
                meta.len = 0; // nothing for the endpoint
            }
            return;
        }
        // Several connections of one sender, in shards of their own.
        let (mut kept, mut start) = (0, 0);
        while start < meta.len {
            let end = start.saturating_add(stride).min(meta.len);
            let datagram = buffer.get(start..end).unwrap_or_default();
            let owner = owner_of(datagram);
            if owner == here {
                // Forward by whole strides at most, so what is kept lies as it would have arrived.
                buffer.copy_within(start..end, kept);
                kept += end - start;
            } else {
                let one = RecvMeta {
                    len: datagram.len(),
                    stride: datagram.len(),
                    ..*meta
                };
                self.hand_on(owner, one, datagram);
            }
            start = end;
        }
        meta.len = kept;
    }

    fn hand_on(&self, shard: u8, meta: RecvMeta, content: &[u8]) {
        let taken = self
            .inboxes
            .get(usize::from(shard))
            .is_some_and(|inbox| inbox.put(meta, content));
        let counter = if taken {
            &self.handed_on
        } else {
            &self.dropped
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What other shards received for one shard.
#[derive(Default)]
struct Inbox {
    /// Whether something waits: looked at without the lock, so that an empty inbox costs its shard nothing. Written under it.
    is_filled: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Whether there is an endpoint that takes from it.
    is_open: bool,
    buffers: VecDeque<Buffer>,
    bytes: usize,
    /// The task of an endpoint that has nothing to do.
    idle: Option<Waker>,
}

/// Received bytes, with what the kernel said of them.
struct Buffer {
    meta: RecvMeta,
    content: Box<[u8]>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room; what does not fit is for the sender to send again.
    fn put(&self, meta: RecvMeta, content: &[u8]) -> bool {
        let mut waiting = self.lock();
        let bytes = waiting.bytes.saturating_add(content.len());
        if !waiting.is_open
            || bytes > WAITING_BYTES_MAX
            || waiting.buffers.len() >= WAITING_BUFFERS_MAX
        {
            return false;
        }
        waiting.bytes = bytes;
        waiting.buffers.push_back(Buffer {
            meta,
            content: content.into(),
        });
        self.is_filled.store(true, Ordering::Release);
        let idle = waiting.idle.take();
        drop(waiting);
        if let Some(task) = idle {
            task.wake();
        }
        true
    }

    /// Moves what waits into `buffers`, and says how many it filled; with none, `idle` is woken when something comes.
    fn take(&self, idle: &Waker, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let mut waiting = self.lock();
        let mut filled = 0;
        for (target, meta) in buffers.iter_mut().zip(metas) {
            let Some(buffer) = waiting.buffers.pop_front() else {
                break;
            };
            waiting.bytes = waiting.bytes.saturating_sub(buffer.content.len());
            *meta = buffer.meta;
            match target.get_mut(..buffer.content.len()) {
                Some(target) => target.copy_from_slice(&buffer.content),
                // All endpoints receive into buffers of one size, so this is not met.
                None => meta.len = 0,
            }
            filled += 1;
        }
        self.is_filled
            .store(!waiting.buffers.is_empty(), Ordering::Release);
        if filled == 0 && !waiting.idle.as_ref().is_some_and(|old| old.will_wake(idle)) {
            waiting.idle = Some(idle.clone());
        }
        filled
    }

    fn close(&self) {
        let closed = std::mem::take(&mut *self.lock());
        self.is_filled.store(false, Ordering::Release);
        drop(closed);
    }
}

/// The socket of one shard: receives what belongs to it, whichever socket of the group it came to.
pub(crate) struct ShardSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    group: Arc<Group>,
    shard: u8,
    /// Whose turn it is where both have something: neither may starve the other.
    inbox_was_last: AtomicBool,
}

impl ShardSocket {
    pub(crate) fn shard(&self) -> u8 {
        self.shard
    }

    /// `None` cannot be, as it was found when the socket was made.
    fn inbox(&self) -> Option<&Inbox> {
        self.group.inboxes.get(usize::from(self.shard))
    }

    /// Reads from the inbox, or from the socket where the inbox is empty or had its turn.
    fn poll_either(
        &self,
        inbox: &Inbox,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if inbox.is_filled.load(Ordering::Acquire) {
            if !self.inbox_was_last.swap(true, Ordering::Relaxed) {
                let filled = inbox.take(cx.waker(), buffers, metas);
                if filled > 0 {
                    return Poll::Ready(Ok(filled));
                }
            }
            self.inbox_was_last.store(false, Ordering::Relaxed);
        }
        match self.socket.poll_recv(cx, buffers, metas) {
            Poll::Ready(Ok(received)) => {
                for (meta, buffer) in metas.iter_mut().zip(buffers).take(received) {
                    self.group.sort(self.shard, meta, buffer);
                }
                Poll::Ready(Ok(received))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match inbox.take(cx.waker(), buffers, metas) {
                0 => Poll::Pending,
                filled => Poll::Ready(Ok(filled)),
            },
        }
    }
}

impl AsyncUdpSocket for ShardSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match self.inbox() {
            Some(inbox) => self.poll_either(inbox, cx, buffers, metas),
            None => self.socket.poll_recv(cx, buffers, metas),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl Drop for ShardSocket {
    fn drop(&mut self) {
        if let Some(inbox) = self.inbox() {
            inbox.close();
        }
    }
}

impl fmt::Debug for ShardSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardSocket")
            .field("shard", &self.shard)
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
