//! How much useless work a peer may cause: a bucket that refills with time.

use std::time::Duration;

use tokio::time::Instant;

/// A bucket of tokens; each useless thing costs one.
#[derive(Debug)]
pub(crate) struct Budget {
    left: u32,
    max: u32,
    /// Time in which one token comes back.
    refill: Duration,
    refilled: Instant,
}

/// Time in which an empty bucket is full again.
const REFILL_TIME: Duration = Duration::from_secs(4);

impl Budget {
    /// A full bucket of `max` tokens, at least one.
    pub(crate) fn new(max: u32, now: Instant) -> Self {
        let max = max.max(1);
        let refill = REFILL_TIME.checked_div(max).unwrap_or(REFILL_TIME);
        Self {
            left: max,
            max,
            refill: refill.max(Duration::from_nanos(1)),
            refilled: now,
        }
    }

    /// Takes a token; false when there is none.
    pub(crate) fn charge(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled);
        let back = elapsed.as_nanos().checked_div(self.refill.as_nanos());
        let back = back
            .and_then(|back| u32::try_from(back).ok())
            .unwrap_or(u32::MAX);
        if back > 0 {
            self.left = self.left.saturating_add(back).min(self.max);
            self.refilled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_empties_it_and_time_refills_it() {
        let start = Instant::now();
        let mut budget = Budget::new(4, start);
        let burst: Vec<_> = (0..5).map(|_| budget.charge(start)).collect();
        assert_eq!(burst, [true, true, true, true, false]);
        let later = start + Duration::from_secs(1);
        assert!(budget.charge(later));
        assert!(!budget.charge(later));
        let much_later = later + Duration::from_secs(3600);
        let burst: Vec<_> = (0..5).map(|_| budget.charge(much_later)).collect();
        assert_eq!(burst, [true, true, true, true, false]);
    }
}
