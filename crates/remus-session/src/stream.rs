//! Both halves of a stream: what waits to be sent under the peer's credit, and what is granted to the peer. Spec: core §5.
//!
//! Knows nothing of calls, lanes or clocks. The offsets belong to the stream ID, not to the call that uses it: they go on
//! rising when the ID is used again, so a CREDIT frame that comes late is harmless.
//!
//! Invariants: `offset <= limit` on the sending half; `consumed <= offset <= granted` on the receiving half.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use remus_wire::{Message, StreamId, Timestamp};

use crate::{CallKey, LaneId};

/// A message that waits for its turn or for credit.
#[derive(Debug)]
pub(crate) struct Queued {
    /// As it is; of one that has left in part, the payload that has not.
    pub(crate) message: Message,
    /// What is left of the head of one that has to leave in parts.
    head: Option<Bytes>,
    /// Whether the direction ends with it.
    pub(crate) ends: bool,
}

impl Queued {
    pub(crate) fn new(message: Message, ends: bool) -> Self {
        Self {
            message,
            head: None,
            ends,
        }
    }

    pub(crate) fn len(&self) -> usize {
        let head = match &self.head {
            None => self.message.head_len(),
            Some(head) => head.len(),
        };
        head.saturating_add(self.message.payload.len())
    }

    /// Head and payload, to be sent in parts.
    pub(crate) fn parts(&mut self) -> (&mut Bytes, &mut Bytes) {
        let message = &mut self.message;
        let head = self.head.get_or_insert_with(|| {
            let mut head = BytesMut::with_capacity(message.head_len());
            message.encode_head(&mut head);
            head.freeze()
        });
        (head, &mut message.payload)
    }
}

/// The messages of one priority class that wait on a stream.
#[derive(Debug)]
pub(crate) struct ClassQueue {
    pub(crate) class: u8,
    pub(crate) items: VecDeque<Queued>,
    /// Whether the stream stands in its lane's turns for this class.
    pub(crate) in_turns: bool,
}

/// What we send.
#[derive(Debug, Default)]
pub(crate) struct SendHalf {
    pub(crate) offset: u64,
    pub(crate) limit: u64,
    /// One queue a class: a stream of one call has one, a shared stream up to eight.
    queues: Vec<ClassQueue>,
    /// The class whose front message has left in part: nothing else may leave before its rest.
    pub(crate) cut: Option<u8>,
    pub(crate) queued_bytes: usize,
    /// Waits for credit of the session.
    pub(crate) parked: bool,
    /// Something of the stream's present use has left: the peer knows of it.
    pub(crate) known: bool,
    /// The last byte, or a RESET, has left or is queued to leave: nothing may be added.
    pub(crate) finished: bool,
    /// The last byte, or a RESET, has been handed to the lane.
    pub(crate) ended: bool,
}

impl SendHalf {
    pub(crate) fn credit(&self) -> u64 {
        self.limit.saturating_sub(self.offset)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queues.iter().all(|queue| queue.items.is_empty())
    }

    pub(crate) fn queue_mut(&mut self, class: u8) -> Option<&mut ClassQueue> {
        self.queues.iter_mut().find(|queue| queue.class == class)
    }

    pub(crate) fn queues_mut(&mut self) -> impl Iterator<Item = &mut ClassQueue> {
        self.queues.iter_mut()
    }

    pub(crate) fn push(&mut self, class: u8, item: Queued) {
        self.queued_bytes = self.queued_bytes.saturating_add(item.len());
        if let Some(queue) = self.queue_mut(class) {
            queue.items.push_back(item);
            return;
        }
        self.queues.push(ClassQueue {
            class,
            items: VecDeque::from([item]),
            in_turns: false,
        });
    }

    /// Drops what waits, and returns how many bytes that were.
    pub(crate) fn clear(&mut self) -> usize {
        for queue in &mut self.queues {
            queue.items.clear();
        }
        self.cut = None;
        core::mem::take(&mut self.queued_bytes)
    }
}

/// What both hosts may take between credit and the bytes that it allows, beside the path: four times some process is woken.
/// In µs.
const HOSTS_US: u64 = 250;

/// What the peer sends.
#[derive(Debug, Default)]
pub(crate) struct RecvHalf {
    /// The lane that it comes on: after a resumption [`ANY_LANE`], until the first of it has come.
    pub(crate) lane: LaneId,
    pub(crate) offset: u64,
    pub(crate) consumed: u64,
    pub(crate) granted: u64,
    /// How far beyond what was taken the peer may send: grows while the peer uses it up faster than the path needs.
    pub(crate) window: u32,
    /// When the last credit was granted, and what had been taken then.
    granted_at: Timestamp,
    taken_then: u64,
    pub(crate) assembly: Option<crate::assembly::Assembly>,
    pub(crate) ended: bool,
    /// We have asked the peer to stop: what still comes is dropped.
    pub(crate) discard: Option<crate::assembly::Discard>,
    /// A CREDIT frame is due.
    pub(crate) credit_due: bool,
}

impl RecvHalf {
    /// The limit that could be granted now: a window beyond what was taken, and room for a message that is half here.
    pub(crate) fn target(&self) -> u64 {
        let assembling = self
            .assembly
            .as_ref()
            .and_then(|assembly| assembly.total)
            .unwrap_or(0);
        self.consumed
            .saturating_add(self.window.into())
            .saturating_add(u64::try_from(assembling).unwrap_or(u64::MAX))
    }

    /// Whether so much has been taken that the peer should hear of it: half a window, so that it neither runs dry nor is told
    /// too often.
    pub(crate) fn is_credit_due(&self) -> bool {
        !self.credit_due && self.target().saturating_sub(self.granted) >= u64::from(self.window / 2)
    }

    /// The limit to announce now.
    ///
    /// A peer that hears of every half window needs one and a half times what fits on the path. When half a window was taken in
    /// less than three quarters of an empty path's round trip, the window is smaller than that, holds the peer up, and doubles,
    /// up to `max`. Otherwise more would only stand in a queue somewhere, in front of calls that are in a hurry.
    pub(crate) fn grant(&mut self, now: Timestamp, round_trip_us: u64, max: u32) -> u64 {
        self.credit_due = false;
        let taken = self.consumed.saturating_sub(self.taken_then);
        let elapsed = now.0.saturating_sub(self.granted_at.0);
        if taken >= u64::from(self.window / 2) {
            let by_path = elapsed < round_trip_us / 4 * 3;
            // What stands in front of small calls there is bounded by what the carrier has in flight, not by this window.
            let by_hosts = elapsed < HOSTS_US;
            if by_path || by_hosts {
                self.window = self.window.saturating_mul(2).min(max.max(self.window));
            }
        }
        self.granted_at = now;
        self.taken_then = self.consumed;
        self.granted = self.granted.max(self.target());
        self.granted
    }
}

/// The lane of a direction of which nothing has come yet: whichever comes first.
pub(crate) const ANY_LANE: LaneId = LaneId(u16::MAX);

/// One stream ID and whoever uses it now.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The lane that our direction takes: the ID keeps it while the carrier lasts, so that its uses cannot overtake each other.
    pub(crate) lane: LaneId,
    /// The lane that it takes where the carrier has it.
    pub(crate) home: LaneId,
    pub(crate) send: SendHalf,
    pub(crate) recv: RecvHalf,
    pub(crate) call: Option<CallKey>,
    /// In use: from the first frame until both directions ended.
    pub(crate) open: bool,
    pub(crate) class: u8,
    /// One RESET and one STOP a use cost nothing, also when they cross our own end; more are charged.
    pub(crate) free_reset: bool,
    pub(crate) free_stop: bool,
}

impl Stream {
    pub(crate) fn new(lane: LaneId, send_limit: u32, recv_window: u32) -> Self {
        Self {
            lane,
            home: lane,
            send: SendHalf {
                limit: send_limit.into(),
                ..SendHalf::default()
            },
            recv: RecvHalf {
                lane,
                granted: recv_window.into(),
                window: recv_window,
                ..RecvHalf::default()
            },
            call: None,
            open: false,
            class: 0,
            free_reset: false,
            free_stop: false,
        }
    }

    /// Whether the ID belongs to everybody: 1 is the client's for unary calls, 2 the acceptor's.
    pub(crate) fn is_shared(id: StreamId) -> bool {
        matches!(id.0, 1 | 2)
    }

    /// Takes the ID into use (again).
    pub(crate) fn reopen(&mut self, class: u8) {
        self.open = true;
        self.call = None;
        self.class = class;
        self.free_reset = true;
        self.free_stop = true;
        self.send.known = false;
        self.send.finished = false;
        self.send.ended = false;
        self.recv.ended = false;
        self.recv.assembly = None;
        self.recv.discard = None;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.open && self.send.ended && self.recv.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CORE-51, CORE-58
    #[test]
    fn credit_is_absolute_and_never_shrinks() {
        let mut half = RecvHalf {
            granted: 1000,
            window: 1000,
            offset: 900,
            ..RecvHalf::default()
        };
        half.consumed = 500;
        assert_eq!(half.grant(Timestamp(1_000_000), 10, 1000), 1500);
        half.consumed = 400;
        let again = half.grant(Timestamp(2_000_000), 10, 1000);
        assert_eq!(again, 1500, "never lower");
    }

    #[test]
    fn the_window_grows_only_while_the_path_needs_it() {
        let mut half = RecvHalf {
            granted: 1000,
            window: 1000,
            ..RecvHalf::default()
        };
        let mut now = 1_000_000;
        // Half a window every 5 ms on a path of 10 ms: it holds the peer up.
        for _ in 0..3 {
            half.offset += u64::from(half.window / 2);
            half.consumed = half.offset;
            now += 5_000;
            half.grant(Timestamp(now), 10_000, 4000);
        }
        assert_eq!(half.window, 4000, "doubled, up to its limit");
        let mut half = RecvHalf {
            granted: 1000,
            window: 1000,
            ..RecvHalf::default()
        };
        for _ in 0..10 {
            half.offset += 500;
            half.consumed = half.offset;
            now += 15_000;
            half.grant(Timestamp(now), 10_000, 4000);
        }
        assert_eq!(half.window, 1000, "the path is full already");
    }

    #[test]
    fn hosts_that_hold_the_sender_up_widen_the_window() {
        let mut half = RecvHalf {
            granted: 65_536,
            window: 65_536,
            ..RecvHalf::default()
        };
        let mut now = 1_000_000;
        for _ in 0..10 {
            half.offset += u64::from(half.window / 2);
            half.consumed = half.offset;
            now += HOSTS_US - 1;
            half.grant(Timestamp(now), 10, 4 << 20);
        }
        assert_eq!(half.window, 4 << 20, "as far as it may");
        half.window = 65_536;
        half.consumed += 65_536;
        half.grant(Timestamp(now + HOSTS_US), 10, 4 << 20);
        assert_eq!(half.window, 65_536, "a slow reader is given no more");
    }
}
