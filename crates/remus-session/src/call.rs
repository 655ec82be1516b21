//! Calls in flight, of either side, and how they are found again. Spec: core §4.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use core::time::Duration;
use remus_wire::{
    Context, ErrorCode, ErrorRecord, Flags, Message, Priority, RequestId, Routing, StreamId,
    Timestamp,
};

/// A call as the application knows it. Spent keys are recognised, never mistaken for a later call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey {
    pub(crate) index: u32,
    pub(crate) serial: u32,
}

impl CallKey {
    /// Place of the call in its session's table: small, and free for another call when this one is over.
    #[must_use]
    pub fn index(self) -> usize {
        usize::try_from(self.index).unwrap_or(usize::MAX)
    }
}

/// Which directions of a call carry more than one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One request, one answer.
    Unary,
    /// One request, any number of answers.
    ServerStream,
    /// Any number of elements, one answer.
    ClientStream,
    /// Both.
    TwoWay,
}

impl Shape {
    /// Whether elements follow the request.
    #[must_use]
    pub fn request_streams(self) -> bool {
        matches!(self, Self::ClientStream | Self::TwoWay)
    }
}

/// A request to be sent.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    /// Where it goes.
    pub routing: Routing,
    /// What travels with it.
    pub context: Context,
    /// Idempotent, sensitive and the like; the session adds what belongs to it.
    pub flags: Flags,
    /// How urgent it is.
    pub priority: Priority,
    /// The time budget; `None` for none.
    pub timeout: Option<Duration>,
    /// The application's bytes. Must be empty where elements follow: they carry the data.
    pub payload: Bytes,
}

/// The answer to a unary call.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It worked.
    Reply {
        /// The application's bytes.
        payload: Bytes,
        /// What travels with it.
        context: Context,
        /// Cacheable, sensitive and the like.
        flags: Flags,
    },
    /// It did not.
    Error(ErrorRecord),
}

/// What a streaming call delivers, in order.
#[derive(Clone, Debug)]
pub enum Received {
    /// One element, or the answer to a call that streamed its request.
    Element(Message),
    /// The direction ended; with an error where it did not end well. Nothing follows.
    End(Option<ErrorRecord>),
}

/// Something in a streaming call's inbox.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// The session's count of reads when it came: as long as it waits, that read's memory does.
    pub(crate) read: u64,
    pub(crate) received: Received,
}

/// What a streaming call has received and the application has not taken. A unary call has none, and its entry stays small.
#[expect(
    clippy::box_collection,
    reason = "nearly all calls are unary: a queue of no elements is three words more to make, move and drop in each"
)]
#[derive(Debug, Default)]
pub(crate) struct Inbox(Option<Box<VecDeque<Waiting>>>);

impl Inbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.front().is_none()
    }

    pub(crate) fn front(&self) -> Option<&Waiting> {
        self.0.as_ref()?.front()
    }

    pub(crate) fn push_back(&mut self, waiting: Waiting) {
        self.0.get_or_insert_default().push_back(waiting);
    }

    pub(crate) fn pop_front(&mut self) -> Option<Waiting> {
        self.0.as_mut()?.pop_front()
    }

    /// Everything that waits.
    pub(crate) fn take(&mut self) -> VecDeque<Waiting> {
        self.0.take().map_or_else(VecDeque::new, |all| *all)
    }
}

/// One call in flight.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) serial: u32,
    /// Whether we made it.
    pub(crate) local: bool,
    pub(crate) request_id: RequestId,
    pub(crate) stream: StreamId,
    /// Whether the stream is this call's alone.
    pub(crate) owns_stream: bool,
    /// Whether the application reads it through the inbox.
    pub(crate) streams: bool,
    pub(crate) priority: Priority,
    /// When it ends for want of an answer.
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) inbox: Inbox,
    /// Whether `Readable` is out and not yet answered by an empty `recv`.
    pub(crate) signalled: bool,
    /// Nothing more will be put into the inbox.
    pub(crate) recv_ended: bool,
    /// The application ended its direction, or was stopped.
    pub(crate) send_ended: bool,
    pub(crate) stopped: Option<ErrorCode>,
    pub(crate) wants_writable: bool,
    /// Counted against the limit on open calls.
    pub(crate) counted: bool,
    /// Whether the application knows the key: of a call of the peer's, once it was handed out.
    pub(crate) announced: bool,
    /// The batch it belongs to and its place there.
    pub(crate) member: Option<(u32, u32)>,
    /// The peer's batch whose answers are gathered for this call.
    pub(crate) gathers: Option<u32>,
    /// Its answer waits among the events: the key means nothing any more, but its index is not free yet. Giving the call up now takes
    /// the answer back.
    pub(crate) spent: bool,
    /// For a batch of ours: how many calls it holds.
    pub(crate) batch_len: Option<usize>,
}

/// A batch of the peer's whose answers are being gathered.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) outer: CallKey,
    pub(crate) members: Vec<CallKey>,
    pub(crate) answers: Vec<Option<Message>>,
    pub(crate) missing: usize,
    pub(crate) bytes: usize,
}

/// Request IDs of our open calls: monotonic, so that a shutdown can say "up to here", and found by masking.
///
/// An ID whose slot is still taken by a long-running call is skipped, so a lookup never probes.
#[derive(Debug)]
pub(crate) struct LocalIds {
    slots: Vec<Option<(u32, u32)>>,
    next: u32,
}

impl LocalIds {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![None; 16],
            next: 1,
        }
    }

    /// Draws the next ID for the call at `index`; `open` is the number of open calls, which decides the table's size.
    pub(crate) fn insert(&mut self, index: u32, open: usize) -> RequestId {
        if open.saturating_mul(2) >= self.slots.len() {
            self.grow();
        }
        loop {
            let id = self.next;
            self.next = self.next.checked_add(1).unwrap_or(1);
            let mask = self.mask();
            if let Some(slot @ None) = self.slots.get_mut(id as usize & mask) {
                *slot = Some((id, index));
                return RequestId(id);
            }
        }
    }

    pub(crate) fn get(&self, id: RequestId) -> Option<u32> {
        match self.slots.get(id.0 as usize & self.mask()) {
            Some(&Some((taken, index))) if taken == id.0 => Some(index),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, id: RequestId) {
        let mask = self.mask();
        if let Some(slot) = self.slots.get_mut(id.0 as usize & mask)
            && matches!(slot, Some((taken, _)) if *taken == id.0)
        {
            *slot = None;
        }
    }

    fn mask(&self) -> usize {
        self.slots.len().saturating_sub(1)
    }

    /// Doubles the table. IDs that differ modulo the old size differ modulo the new one, so nothing collides.
    fn grow(&mut self) {
        let mut slots = vec![None; self.slots.len().saturating_mul(2)];
        let mask = slots.len().saturating_sub(1);
        for entry in self.slots.iter().flatten() {
            if let Some(slot) = slots.get_mut(entry.0 as usize & mask) {
                *slot = Some(*entry);
            }
        }
        self.slots = slots;
    }
}

/// A request ID of the peer's that is in use.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PeerId {
    /// The request waits to be handed out; with a code, it was cancelled meanwhile.
    Waiting(Option<ErrorCode>),
    /// The call at this index.
    Open(u32),
}

/// Request IDs of the peer's calls, from their arrival to their end. The peer chooses them, so the hash is seeded.
pub(crate) type PeerIds = HashMap<u32, PeerId, foldhash::fast::RandomState>;

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CORE-27
    #[test]
    fn ids_rise_skip_what_is_open_and_survive_growth() {
        let mut ids = LocalIds::new();
        let long = ids.insert(7, 0);
        let mut previous = long;
        for n in 0..10_000_u32 {
            let id = ids.insert(n, 1);
            assert!(id.0 > previous.0, "IDs rise");
            assert_eq!(ids.get(id), Some(n));
            ids.remove(id);
            assert_eq!(ids.get(id), None);
            previous = id;
        }
        assert_eq!(ids.get(long), Some(7), "the long call is still found");
        let many: Vec<_> = (0..3000_u32)
            .map(|n| (n, ids.insert(n, n as usize + 1)))
            .collect();
        for (n, id) in many {
            assert_eq!(ids.get(id), Some(n));
        }
        assert_eq!(ids.get(long), Some(7));
    }
}
