//! What has left on a lane and may have to leave again on another carrier. Spec: core §3.5.
//!
//! Owns the bytes from when they leave until the peer has acknowledged them, a piece at a time, and where each epoch's offsets stand.
//! Knows nothing of frames but where one may stop to send.
//! Invariants: `base <= at`; the first `left` entries are the bytes from `base` to `at`, and `waiting` are in the others; what the peer
//! has taken in lies between `base` and `sent`.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// What a piece costs beside its bytes: its entry here, and its part in the memory that it lies in.
///
/// So that many tiny pieces count for what they are.
pub(crate) const PIECE_COST: usize = 64;

/// One piece of what a lane carries.
#[derive(Debug)]
struct Entry {
    bytes: Bytes,
    /// Whether a frame ends with it.
    ends: bool,
}

impl Entry {
    fn cost(&self) -> usize {
        self.bytes.len().saturating_add(PIECE_COST)
    }
}

/// The peer acknowledged what was never sent, or takes back what it has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Impossible {
    pub(crate) offset: u64,
    pub(crate) sent: u64,
}

/// The log of one lane in one epoch.
#[derive(Debug, Default)]
pub(crate) struct Log {
    entries: VecDeque<Entry>,
    left: usize,
    base: u64,
    /// Offset of what leaves next.
    at: u64,
    /// The highest that it was in this epoch: more than `at` where the epoch leaves again from its start.
    sent: u64,
    waiting: usize,
}

impl Log {
    /// Bytes that wait to leave again.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Where the peer's acknowledgement stands.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.base
    }

    /// What all of it costs. Counts it anew.
    pub(crate) fn cost(&self) -> usize {
        self.entries.iter().map(Entry::cost).sum()
    }

    /// Recounts. For tests.
    pub(crate) fn check(&self) -> Result<(), String> {
        let len = |entries: &mut dyn Iterator<Item = &Entry>| -> usize {
            entries.map(|entry| entry.bytes.len()).sum()
        };
        let left = len(&mut self.entries.iter().take(self.left));
        let waiting = len(&mut self.entries.iter().skip(self.left));
        if self.left > self.entries.len() || waiting != self.waiting {
            return Err(format!("{waiting} bytes wait, {} counted", self.waiting));
        }
        if self.at.checked_sub(self.base) != Some(wide(left)) || self.sent < self.at {
            let (base, at, sent) = (self.base, self.at, self.sent);
            return Err(format!("{left} bytes from {base} to {at} of {sent}"));
        }
        Ok(())
    }

    /// Keeps what has just left, whole frames. Nothing may wait. Returns what it costs.
    pub(crate) fn keep<'b>(&mut self, pieces: impl Iterator<Item = &'b Bytes>) -> usize {
        let mut cost = 0_usize;
        for bytes in pieces {
            let entry = Entry {
                bytes: bytes.clone(),
                ends: false,
            };
            cost = cost.saturating_add(entry.cost());
            self.at = self.at.saturating_add(wide(entry.bytes.len()));
            self.entries.push_back(entry);
        }
        if let Some(last) = self.entries.back_mut() {
            last.ends = true;
        }
        self.left = self.entries.len();
        self.sent = self.sent.max(self.at);
        cost
    }

    /// Adds whole frames that are still to leave.
    pub(crate) fn append(&mut self, pieces: VecDeque<Bytes>) {
        for bytes in pieces {
            self.waiting = self.waiting.saturating_add(bytes.len());
            self.entries.push_back(Entry { bytes, ends: false });
        }
        if let Some(last) = self.entries.back_mut() {
            last.ends = true;
        }
    }

    /// Moves whole frames that wait to `out`, about `max` bytes. Returns how many it were.
    pub(crate) fn replay(&mut self, out: &mut VecDeque<Bytes>, max: usize) -> usize {
        let mut len = 0_usize;
        let mut ends = true;
        while let Some(entry) = self.entries.get(self.left)
            && (len < max || !ends)
        {
            out.push_back(entry.bytes.clone());
            len = len.saturating_add(entry.bytes.len());
            ends = entry.ends;
            self.left = self.left.saturating_add(1);
        }
        self.waiting = self.waiting.saturating_sub(len);
        self.at = self.at.saturating_add(wide(len));
        self.sent = self.sent.max(self.at);
        len
    }

    /// Everything of this epoch leaves again from its start. Nothing may have been acknowledged.
    pub(crate) fn rewind(&mut self) {
        self.left = 0;
        self.at = self.base;
        self.waiting = self.entries.iter().map(|entry| entry.bytes.len()).sum();
    }

    /// Whether `offset` can be acknowledged.
    pub(crate) fn judge(&self, offset: u64) -> Result<(), Impossible> {
        if (self.base..=self.sent).contains(&offset) {
            Ok(())
        } else {
            Err(Impossible {
                offset,
                sent: self.sent,
            })
        }
    }

    /// Lets go of what lies before `offset`. Returns what that had cost.
    pub(crate) fn acknowledge(&mut self, offset: u64) -> Result<usize, Impossible> {
        self.judge(offset)?;
        let mut rest = usize::try_from(offset.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let mut freed = 0_usize;
        while rest > 0
            && let Some(entry) = self.entries.front_mut()
        {
            let len = entry.bytes.len().min(rest);
            rest = rest.saturating_sub(len);
            if self.left == 0 {
                // It was taken in when it left before.
                self.waiting = self.waiting.saturating_sub(len);
            }
            if entry.bytes.len() > len {
                entry.bytes.advance(len);
                freed = freed.saturating_add(len);
            } else {
                freed = freed.saturating_add(entry.cost());
                self.entries.pop_front();
                self.left = self.left.saturating_sub(1);
            }
        }
        self.base = offset;
        self.at = self.at.max(offset);
        Ok(freed)
    }

    /// Lets go of all that has left.
    pub(crate) fn forget(&mut self) {
        self.entries.drain(..self.left.min(self.entries.len()));
        self.left = 0;
        self.base = self.at;
    }

    /// Hands over all that is kept, in order, and begins at 0.
    pub(crate) fn take(&mut self) -> VecDeque<Bytes> {
        core::mem::take(self)
            .entries
            .into_iter()
            .map(|entry| entry.bytes)
            .collect()
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(texts: &[&'static str]) -> VecDeque<Bytes> {
        texts
            .iter()
            .map(|text| Bytes::from_static(text.as_bytes()))
            .collect()
    }

    #[test]
    fn lets_go_of_what_is_acknowledged_and_of_nothing_else() {
        let mut log = Log::default();
        let cost = log.keep(pieces(&["abc", "defg"]).iter());
        assert_eq!(cost, 7 + 2 * PIECE_COST);
        assert_eq!(log.acknowledge(2), Ok(2));
        assert_eq!(log.acknowledge(2), Ok(0), "a repeat");
        assert_eq!(log.acknowledge(1), Err(Impossible { offset: 1, sent: 7 }));
        assert_eq!(log.acknowledge(8), Err(Impossible { offset: 8, sent: 7 }));
        assert_eq!(log.acknowledge(4), Ok(1 + PIECE_COST + 1));
        assert_eq!(log.cost(), 3 + PIECE_COST);
        assert_eq!(log.take(), pieces(&["efg"]));
        assert_eq!((log.acknowledged(), log.cost()), (0, 0));
    }

    #[test]
    fn replays_whole_frames_from_where_they_begin() {
        let mut log = Log::default();
        log.append(pieces(&["head", "payload"]));
        log.append(pieces(&["next"]));
        assert_eq!(log.waiting(), 15);
        let mut out = VecDeque::new();
        assert_eq!(log.replay(&mut out, 1), 11, "a frame is not cut");
        assert_eq!(
            log.judge(12),
            Err(Impossible {
                offset: 12,
                sent: 11
            })
        );
        assert_eq!(log.replay(&mut out, 1), 4);
        assert_eq!(log.replay(&mut out, 1), 0);
        assert_eq!(out, pieces(&["head", "payload", "next"]));
        log.rewind();
        assert_eq!(log.waiting(), 15);
        // What had left before the epoch was rewound may have been taken in.
        assert_eq!(log.replay(&mut out, 1), 11);
        assert_eq!(log.acknowledge(13), Ok(13 + 2 * PIECE_COST));
        assert_eq!((log.waiting(), log.check()), (2, Ok(())));
        assert_eq!(log.take(), pieces(&["xt"]));
    }
}
