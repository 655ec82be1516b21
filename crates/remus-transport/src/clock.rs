//! The time that a session sees.

use std::time::{SystemTime, UNIX_EPOCH};

use remus_wire::Timestamp;
use tokio::time::Instant;

/// The wall clock when it was made, plus what the runtime's monotonic clock has counted since: never runs backwards.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    start_us: u64,
}

impl Clock {
    /// A clock that starts from the wall clock as it is now.
    #[must_use]
    pub fn new() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            start: Instant::now(),
            start_us: u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let elapsed = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Timestamp(self.start_us.saturating_add(elapsed))
    }

    /// The moment at which [`Clock::now`] will say `at`.
    #[must_use]
    pub fn instant(&self, at: Timestamp) -> Instant {
        let after = std::time::Duration::from_micros(at.0.saturating_sub(self.start_us));
        // A day is longer than any timer here waits; it stands in for times beyond the clock's range.
        self.start
            .checked_add(after)
            .unwrap_or_else(|| self.start + std::time::Duration::from_secs(86_400))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
