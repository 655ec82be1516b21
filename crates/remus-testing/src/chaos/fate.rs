//! What happens to each datagram: a function of the seed, and of nothing that a clock or another datagram does.
//!
//! Invariant: every decision takes the same count of numbers from the generator, so a condition that changes does not change what the
//! others do to later datagrams.

use std::time::Duration;

use crate::Rng;

use super::settings::{DELAY_MAX, Direction, Protocol, Udp};

/// Most datagrams that overtake one that is reordered. Enough to pass the three that QUIC and TCP take for a mere disorder.
pub const OVERTAKEN_BY_MAX: u32 = 8;

/// What happens to one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// It does not arrive; then nothing else applies.
    pub lost: bool,
    /// It arrives twice.
    pub duplicated: bool,
    /// How many of those that follow arrive before it: 0, or up to [`OVERTAKEN_BY_MAX`].
    pub overtaken_by: u32,
    /// What is added to the delay.
    pub jitter: Duration,
}

/// The fates of the datagrams of one direction of a flow, one after the other.
#[derive(Debug)]
pub struct Fates {
    rng: Rng,
}

impl Fates {
    /// Those of a direction of the flow or connection of this number, counted from 0 for each protocol, under a proxy's seed.
    #[must_use]
    pub fn new(seed: u64, protocol: Protocol, flow: u64, direction: Direction) -> Self {
        let place = flow
            .wrapping_mul(4)
            .wrapping_add(match (protocol, direction) {
                (Protocol::Udp, Direction::Up) => 0,
                (Protocol::Udp, Direction::Down) => 1,
                (Protocol::Tcp, Direction::Up) => 2,
                (Protocol::Tcp, Direction::Down) => 3,
            });
        // Both are scattered before they meet: neighbouring seeds and neighbouring flows have nothing in common.
        let mut scattered = Rng::new(Rng::new(seed).next_u64() ^ Rng::new(!place).next_u64());
        Self {
            rng: scattered.fork(),
        }
    }

    /// What happens to the next datagram.
    pub fn next(&mut self, conditions: &Udp) -> Fate {
        let lost = conditions.loss.happens(&mut self.rng);
        let duplicated = conditions.duplicate.happens(&mut self.rng);
        let reordered = conditions.reorder.happens(&mut self.rng);
        let by = u32::try_from(self.rng.between(1, u64::from(OVERTAKEN_BY_MAX)))
            .unwrap_or(OVERTAKEN_BY_MAX);
        Fate {
            lost,
            duplicated,
            overtaken_by: if reordered { by } else { 0 },
            jitter: self.jitter(conditions.jitter),
        }
    }

    /// What is added to the delay of the next piece of a connection.
    pub(super) fn jitter(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.min(DELAY_MAX).as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.between(0, most))
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Chance;
    use super::*;

    fn bad() -> Udp {
        Udp {
            jitter: Duration::from_millis(10),
            loss: Chance::percent(1),
            duplicate: Chance::percent(2),
            reorder: Chance::percent(5),
            ..Udp::default()
        }
    }

    fn fates(seed: u64, flow: u64, direction: Direction, conditions: &Udp) -> Vec<Fate> {
        let mut fates = Fates::new(seed, Protocol::Udp, flow, direction);
        (0..100_000).map(|_| fates.next(conditions)).collect()
    }

    /// Whether a count of 100,000 is what its chance makes likely: within six standard deviations.
    fn is_likely(count: usize, chance: f64) -> bool {
        let expected = 100_000.0 * chance;
        let deviation = (expected * (1.0 - chance)).sqrt();
        (f64::from(u32::try_from(count).unwrap()) - expected).abs() < 6.0 * deviation
    }

    #[test]
    fn chances_are_kept_and_independent() {
        let fates = fates(1, 0, Direction::Up, &bad());
        let count = |which: fn(&Fate) -> bool| fates.iter().filter(|fate| which(fate)).count();
        assert!(is_likely(count(|fate| fate.lost), 0.01));
        assert!(is_likely(count(|fate| fate.duplicated), 0.02));
        assert!(is_likely(count(|fate| fate.overtaken_by > 0), 0.05));
        assert!(is_likely(
            count(|fate| fate.duplicated && fate.overtaken_by > 0),
            0.001
        ));
        let twice = fates
            .windows(2)
            .filter(|pair| pair[0].duplicated && pair[1].duplicated);
        assert!(is_likely(twice.count(), 0.0004));
        for by in 1..=OVERTAKEN_BY_MAX {
            let count = fates.iter().filter(|fate| fate.overtaken_by == by).count();
            assert!(is_likely(count, 0.05 / 8.0), "{by}: {count}");
        }
    }

    #[test]
    fn jitter_is_spread_evenly_over_its_range() {
        let fates = fates(2, 0, Direction::Down, &bad());
        assert!(
            fates
                .iter()
                .all(|fate| fate.jitter <= Duration::from_millis(10))
        );
        for tenth in 0..10 {
            let range = Duration::from_millis(tenth)..Duration::from_millis(tenth + 1);
            let count = fates.iter().filter(|fate| range.contains(&fate.jitter));
            assert!(is_likely(count.count(), 0.1), "{range:?}");
        }
    }

    #[test]
    fn a_seed_repeats_them_and_every_direction_and_flow_has_its_own() {
        let first = fates(3, 0, Direction::Up, &bad());
        assert_eq!(first, fates(3, 0, Direction::Up, &bad()));
        for other in [
            fates(3, 0, Direction::Down, &bad()),
            fates(3, 1, Direction::Up, &bad()),
            fates(4, 0, Direction::Up, &bad()),
        ] {
            let both = first.iter().zip(&other).filter(|(a, b)| a.lost && b.lost);
            assert!(is_likely(both.count(), 0.0001));
        }
    }

    #[test]
    fn one_condition_leaves_the_others_alone() {
        let all = fates(5, 0, Direction::Up, &bad());
        let mut fewer = bad();
        fewer.loss = Chance::NEVER;
        fewer.jitter = Duration::ZERO;
        for (all, fewer) in all.iter().zip(fates(5, 0, Direction::Up, &fewer)) {
            assert_eq!(all.duplicated, fewer.duplicated);
            assert_eq!(all.overtaken_by, fewer.overtaken_by);
        }
        let good = fates(5, 0, Direction::Up, &Udp::default());
        assert!(good.iter().all(|fate| *fate
            == Fate {
                lost: false,
                duplicated: false,
                overtaken_by: 0,
                jitter: Duration::ZERO,
            }));
    }

    #[test]
    fn the_longest_jitter_is_a_limit() {
        let endless = Udp {
            jitter: Duration::MAX,
            ..Udp::default()
        };
        let mut fates = Fates::new(6, Protocol::Udp, 0, Direction::Up);
        assert!((0..1000).all(|_| fates.next(&endless).jitter <= DELAY_MAX));
    }
}
