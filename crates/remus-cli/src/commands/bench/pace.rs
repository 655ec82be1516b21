//! When operations of an open loop are due, and waiting for it more exactly than the runtime's timers do.

use std::time::{Duration, Instant};

use super::Limit;

/// Timers fire up to a millisecond late; what is nearer than this is waited for by looking at the clock.
const NEAR: Duration = Duration::from_millis(2);

/// Operations at a fixed rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    begin: Instant,
    per_second: u64,
}

impl Pace {
    pub(super) fn new(begin: Instant, per_second: u64) -> Self {
        Self { begin, per_second }
    }

    /// When operation `number`, counted from 0, is due.
    pub(super) fn due(&self, number: u64) -> Instant {
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(self.per_second.max(1));
        let after = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.begin.checked_add(after).unwrap_or(self.begin)
    }

    /// How many operations are due before `end`.
    pub(super) fn due_before(&self, end: Instant) -> u64 {
        let nanos = end.saturating_duration_since(self.begin).as_nanos();
        let number = (nanos * u128::from(self.per_second)).div_ceil(1_000_000_000);
        u64::try_from(number).unwrap_or(u64::MAX)
    }
}

/// Waits until `due`, or until `limit` is over. Everything else on this thread goes on meanwhile.
pub(super) async fn until(due: Instant, limit: &Limit) {
    loop {
        let now = Instant::now();
        if now >= due || limit.is_over(now) {
            return;
        }
        match due.saturating_duration_since(now).checked_sub(NEAR) {
            Some(far) if !far.is_zero() => tokio::select! {
                () = tokio::time::sleep(far) => {}
                () = limit.over() => {}
            },
            _ => tokio::task::yield_now().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_due_at_their_own_times() {
        let begin = Instant::now();
        let pace = Pace::new(begin, 3);
        let after = |number| pace.due(number).duration_since(begin).as_nanos();
        assert_eq!(
            [after(0), after(1), after(2), after(3)],
            [0, 333_333_333, 666_666_666, 1_000_000_000]
        );
        // No error adds up: a day later it is still right.
        assert_eq!(after(3 * 86_400), 86_400_000_000_000);
        for (ms, count) in [(0, 0), (1, 1), (333, 1), (334, 2), (1000, 3), (1001, 4)] {
            let end = begin + Duration::from_millis(ms);
            assert_eq!(pace.due_before(end), count, "{ms} ms");
        }
    }
}
