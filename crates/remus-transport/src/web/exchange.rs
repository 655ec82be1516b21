//! The sequence rules of one HTTP link, both directions, as the acceptor keeps them. Spec: carriers §3.2.
//!
//! Numbers and bytes, nothing else: no request, no clock, no waiting.
//! Invariant: what is kept are the numbers from `acknowledged + 1` to `sent`, without a gap.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Refusal;

/// Numbers are exact in every language that has no 64-bit integers. Spec: carriers §3.2.
pub(crate) const NUMBER_MAX: u64 = (1 << 53) - 1;

#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// The highest number taken of what comes up.
    taken: u64,
    /// The highest number given to what goes down.
    sent: u64,
    kept: VecDeque<Bytes>,
    kept_len: usize,
}

/// What an `up` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    /// To be taken.
    Next,
    /// Taken before.
    Repeated,
}

impl Exchange {
    /// The highest number taken of what comes up.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes that are kept until they are acknowledged.
    pub(crate) fn kept_len(&self) -> usize {
        self.kept_len
    }

    /// The highest number that the client has acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        let kept = u64::try_from(self.kept.len()).unwrap_or(u64::MAX);
        self.sent.saturating_sub(kept)
    }

    /// Judges the number of an `up`. Spec: CARR-20.
    pub(crate) fn judge(&self, number: u64) -> Result<Upload, Refusal> {
        let expected = self.taken.saturating_add(1);
        if number > expected {
            return Err(Refusal::SequenceGap {
                expected,
                got: number,
            });
        }
        Ok(if number == expected {
            Upload::Next
        } else {
            Upload::Repeated
        })
    }

    /// Takes the next `up`.
    pub(crate) fn take(&mut self) {
        self.taken = self.taken.saturating_add(1);
    }

    /// The client has taken all up to `number`. What it says twice does nothing. Spec: CARR-17, CARR-18.
    pub(crate) fn acknowledge(&mut self, number: u64) -> Result<(), Refusal> {
        if number > self.sent {
            return Err(Refusal::AcknowledgeUnsent {
                sent: self.sent,
                got: number,
            });
        }
        while self.acknowledged() < number
            && let Some(bytes) = self.kept.pop_front()
        {
            self.kept_len = self.kept_len.saturating_sub(bytes.len());
        }
        Ok(())
    }

    /// As [`Exchange::acknowledge`], by who begins to read behind `number`. Spec: CARR-25.
    pub(crate) fn begin_reading(&mut self, number: u64) -> Result<(), Refusal> {
        let before = self.acknowledged();
        if number < before {
            return Err(Refusal::AcknowledgeStale {
                before,
                got: number,
            });
        }
        self.acknowledge(number)
    }

    /// Gives `bytes` the next number, and keeps them.
    pub(crate) fn keep(&mut self, bytes: Bytes) -> u64 {
        self.sent = self.sent.saturating_add(1);
        self.kept_len = self.kept_len.saturating_add(bytes.len());
        self.kept.push_back(bytes);
        self.sent
    }

    /// What was kept under `number`.
    pub(crate) fn kept(&self, number: u64) -> Option<Bytes> {
        let place = number.checked_sub(self.acknowledged())?.checked_sub(1)?;
        self.kept.get(usize::try_from(place).ok()?).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CARR-20
    #[test]
    fn uploads_are_taken_in_turn_and_once() {
        let mut exchange = Exchange::default();
        assert_eq!(exchange.judge(1), Ok(Upload::Next));
        let gap = Refusal::SequenceGap {
            expected: 1,
            got: 2,
        };
        assert_eq!(exchange.judge(2), Err(gap));
        exchange.take();
        assert_eq!(exchange.judge(1), Ok(Upload::Repeated));
        assert_eq!(exchange.judge(2), Ok(Upload::Next));
        assert_eq!(exchange.taken(), 1);
    }

    /// Spec: CARR-17, CARR-18, CARR-25
    #[test]
    fn what_is_not_acknowledged_is_kept_under_its_number() {
        let mut exchange = Exchange::default();
        let unsent = |sent, got| Err(Refusal::AcknowledgeUnsent { sent, got });
        assert_eq!(exchange.acknowledge(0), Ok(()));
        assert_eq!(exchange.acknowledge(1), unsent(0, 1));
        for n in 1..=3_u8 {
            assert_eq!(exchange.keep(Bytes::from(vec![n; 10])), u64::from(n));
        }
        assert_eq!(exchange.kept_len(), 30);
        assert_eq!(exchange.acknowledge(2), Ok(()));
        assert_eq!((exchange.kept(1), exchange.kept(2)), (None, None));
        assert_eq!(exchange.kept(3), Some(Bytes::from(vec![3; 10])));
        assert_eq!(exchange.kept(4), None);
        assert_eq!(exchange.acknowledge(1), Ok(()), "an old one is no error");
        let stale = Refusal::AcknowledgeStale { before: 2, got: 1 };
        assert_eq!(exchange.begin_reading(1), Err(stale));
        assert_eq!(exchange.begin_reading(2), Ok(()));
        assert_eq!(exchange.begin_reading(4), unsent(3, 4));
        assert_eq!(exchange.begin_reading(3), Ok(()));
        assert_eq!((exchange.kept_len(), exchange.acknowledged()), (0, 3));
    }
}
