//! The hybrid logical clock behind every message's timestamp. Spec: core §7.
//!
//! It orders; no deadline is computed from it.

use core::time::Duration;

use remus_wire::Timestamp;

/// How far a peer's timestamp may run ahead of the local clock before it is clamped.
///
/// 60 s forgives a machine without time synchronisation and keeps one broken clock from dragging every other along.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);

/// `max(own clock, last seen + 1)`: never runs backwards along a causal chain.
#[derive(Debug, Default)]
pub(crate) struct HybridClock {
    last: u64,
    clamped: u64,
}

impl HybridClock {
    /// The timestamp of the next message.
    pub(crate) fn tick(&mut self, now: Timestamp) -> Timestamp {
        self.last = now.0.max(self.last.saturating_add(1));
        Timestamp(self.last)
    }

    /// Takes in a peer's timestamp.
    pub(crate) fn observe(&mut self, now: Timestamp, seen: Timestamp) {
        let ceiling = now
            .0
            .saturating_add(u64::try_from(CLOCK_SKEW_MAX.as_micros()).unwrap_or(u64::MAX));
        if seen.0 > ceiling {
            self.clamped = self.clamped.saturating_add(1);
        }
        self.last = self.last.max(seen.0.min(ceiling));
    }

    /// How many timestamps were clamped.
    pub(crate) fn clamped(&self) -> u64 {
        self.clamped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CORE-68, CORE-69
    #[test]
    fn never_runs_backwards_and_clamps_a_peer_from_the_future() {
        let mut clock = HybridClock::default();
        assert_eq!(clock.tick(Timestamp(100)), Timestamp(100));
        assert_eq!(clock.tick(Timestamp(90)), Timestamp(101));
        clock.observe(Timestamp(100), Timestamp(5_000));
        assert_eq!(clock.tick(Timestamp(102)), Timestamp(5_001));
        clock.observe(Timestamp(200), Timestamp(u64::MAX));
        assert_eq!(clock.clamped(), 1);
        assert_eq!(clock.tick(Timestamp(200)), Timestamp(60_000_201));
    }
}
