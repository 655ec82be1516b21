//! Whether the peer is there, how far away it is, and how its clock differs. Spec: core §8.

use core::time::Duration;

use remus_wire::{Heartbeat, Load, Timestamp};

/// What heartbeats have measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathEstimate {
    /// Smoothed round trip: 7/8 of the old value and 1/8 of the new, as TCP and QUIC do.
    pub rtt: Duration,
    /// The newest round trip.
    pub latest_rtt: Duration,
    /// The smallest round trip seen.
    pub min_rtt: Duration,
    /// The peer's clock minus ours, in µs, from the exchange with the smallest round trip of the last eight.
    pub clock_offset_us: i64,
    /// How busy the peer last said it was.
    pub peer_load: Load,
}

/// How many exchanges the clock offset is chosen from.
const OFFSET_WINDOW: usize = 8;

/// Shortest time between two probes: 125 a second, half of what a peer lets through before it calls them a flood.
const PROBE_INTERVAL_MIN_US: u64 = 8_000;

/// Heartbeats of one session.
#[derive(Debug)]
pub(crate) struct Liveness {
    idle_us: u64,
    last_heard: Timestamp,
    last_probe: Timestamp,
    next_probe: Timestamp,
    next_id: u32,
    /// The peer's last heartbeat: its timestamp, and when it arrived.
    peer_last: Option<(Timestamp, Timestamp)>,
    estimate: Option<PathEstimate>,
    recent: [(u64, i64); OFFSET_WINDOW],
    exchanges: usize,
    /// Our newest probe that has come back; older ones are ignored.
    newest_origin: u64,
}

impl Liveness {
    pub(crate) fn new(now: Timestamp, idle: Duration) -> Self {
        let idle_us = u64::try_from(idle.as_micros()).unwrap_or(u64::MAX);
        Self {
            idle_us,
            last_heard: now,
            last_probe: Timestamp::ZERO,
            next_probe: Timestamp(now.0.saturating_add(idle_us / 3)),
            next_id: 1,
            peer_last: None,
            estimate: None,
            recent: [(u64::MAX, 0); OFFSET_WINDOW],
            exchanges: 0,
            newest_origin: 0,
        }
    }

    pub(crate) fn set_idle_ms(&mut self, now: Timestamp, idle_ms: u64) {
        self.idle_us = idle_ms.saturating_mul(1000);
        self.next_probe = Timestamp(now.0.saturating_add(self.idle_us / 3));
    }

    /// Calls flow from now on, so silence counts.
    pub(crate) fn start(&mut self, now: Timestamp) {
        self.last_heard = now;
        self.next_probe = Timestamp(now.0.saturating_add(self.idle_us / 3));
    }

    /// Calls flow from now on by another way: what was measured does not hold for it.
    pub(crate) fn start_path(&mut self, now: Timestamp) {
        self.start(now);
        self.estimate = None;
        self.recent = [(u64::MAX, 0); OFFSET_WINDOW];
        self.exchanges = 0;
        self.last_probe = Timestamp::ZERO;
    }

    pub(crate) fn idle_ms(&self) -> u64 {
        self.idle_us / 1000
    }

    pub(crate) fn heard(&mut self, now: Timestamp) {
        self.last_heard = now;
    }

    pub(crate) fn last_heard(&self) -> Timestamp {
        self.last_heard
    }

    pub(crate) fn expires_at(&self) -> Timestamp {
        Timestamp(self.last_heard.0.saturating_add(self.idle_us))
    }

    pub(crate) fn probe_at(&self) -> Timestamp {
        self.next_probe
    }

    /// Whether a probe may leave now; otherwise the next one leaves as soon as it may.
    pub(crate) fn may_probe(&mut self, now: Timestamp) -> bool {
        let earliest = self.last_probe.0.saturating_add(PROBE_INTERVAL_MIN_US);
        if now.0 < earliest {
            self.next_probe = self.next_probe.min(Timestamp(earliest));
        }
        now.0 >= earliest
    }

    /// The next probe leaves as soon as it may.
    pub(crate) fn hurry(&mut self) {
        let earliest = self.last_probe.0.saturating_add(PROBE_INTERVAL_MIN_US);
        self.next_probe = self.next_probe.min(Timestamp(earliest));
    }

    /// Whether the peer has been silent for so long that a probe must not be left to an unreliable datagram.
    pub(crate) fn is_suspicious(&self, now: Timestamp) -> bool {
        now.0.saturating_sub(self.last_heard.0) >= self.idle_us / 3
    }

    /// A probe and the request ID that marks it as one.
    pub(crate) fn probe(&mut self, now: Timestamp, load: Load) -> (u32, Heartbeat) {
        self.last_probe = now;
        self.next_probe = Timestamp(now.0.saturating_add(self.idle_us / 3));
        let id = self.next_id;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        (id, self.heartbeat(load))
    }

    pub(crate) fn heartbeat(&self, load: Load) -> Heartbeat {
        let (origin, arrived) = self.peer_last.unwrap_or((Timestamp(0), Timestamp(0)));
        Heartbeat {
            origin,
            received: arrived,
            load,
        }
    }

    /// Takes in the peer's heartbeat that it sent at `sent` by its clock. True when it completed an exchange.
    pub(crate) fn on_heartbeat(
        &mut self,
        now: Timestamp,
        sent: Timestamp,
        heartbeat: &Heartbeat,
    ) -> bool {
        if self.peer_last.is_none_or(|(last, _)| sent.0 >= last.0) {
            self.peer_last = Some((sent, now));
        }
        // NTP's four times: origin (t1, our clock), arrived (t2, theirs), sent (t3, theirs), now (t4, ours).
        let (t1, t2, t3, t4) = (heartbeat.origin.0, heartbeat.received.0, sent.0, now.0);
        if t1 == 0 || t1 <= self.newest_origin || t1 > t4 || t2 > t3 {
            return false; // nothing to measure, a repeat, or a clock that was set back
        }
        self.newest_origin = t1;
        let rtt = t4.saturating_sub(t1).saturating_sub(t3.saturating_sub(t2));
        let offset = midpoint(
            t2.cast_signed().wrapping_sub(t1.cast_signed()),
            t3.cast_signed().wrapping_sub(t4.cast_signed()),
        );
        if let Some(slot) = self.recent.get_mut(self.exchanges % OFFSET_WINDOW) {
            *slot = (rtt, offset);
        }
        self.exchanges = self.exchanges.wrapping_add(1);
        let clock_offset_us = self
            .recent
            .iter()
            .min_by_key(|(rtt, _)| *rtt)
            .map_or(offset, |(_, offset)| *offset);
        let latest = Duration::from_micros(rtt);
        self.estimate = Some(match self.estimate {
            None => PathEstimate {
                rtt: latest,
                latest_rtt: latest,
                min_rtt: latest,
                clock_offset_us,
                peer_load: heartbeat.load,
            },
            Some(old) => PathEstimate {
                rtt: (old.rtt.saturating_mul(7).saturating_add(latest)) / 8,
                latest_rtt: latest,
                min_rtt: old.min_rtt.min(latest),
                clock_offset_us,
                peer_load: heartbeat.load,
            },
        });
        true
    }

    pub(crate) fn estimate(&self) -> Option<PathEstimate> {
        self.estimate
    }
}

fn midpoint(a: i64, b: i64) -> i64 {
    i64::try_from((i128::from(a) + i128::from(b)) / 2).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CORE-72
    #[test]
    fn measures_round_trip_and_offset_from_four_times() {
        let mut live = Liveness::new(Timestamp(1_000_000), Duration::from_secs(3));
        // Sent at 1,000,000; the peer's clock is 500 ahead; 40 there, 10 of work, 60 back.
        let beat = Heartbeat {
            origin: Timestamp(1_000_000),
            received: Timestamp(1_000_540),
            load: Load(7),
        };
        assert!(live.on_heartbeat(Timestamp(1_000_110), Timestamp(1_000_550), &beat));
        let estimate = live.estimate().unwrap();
        assert_eq!(estimate.latest_rtt, Duration::from_micros(100));
        assert_eq!(
            estimate.clock_offset_us, 490,
            "half of the asymmetry of 20 is the method's error"
        );
        assert!(
            !live.on_heartbeat(Timestamp(1_000_200), Timestamp(1_000_560), &beat),
            "a repeat measures nothing"
        );
    }

    #[test]
    fn a_clock_set_back_measures_nothing() {
        let mut live = Liveness::new(Timestamp(1_000), Duration::from_secs(3));
        let beat = Heartbeat {
            origin: Timestamp(5_000),
            received: Timestamp(1),
            load: Load(0),
        };
        assert!(!live.on_heartbeat(Timestamp(2_000), Timestamp(2), &beat));
        assert_eq!(live.estimate(), None);
    }
}
