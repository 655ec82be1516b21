//! A deterministic generator for simulations: the same seed, the same run, on every machine.
//!
//! Not for secrets. The algorithm is SplitMix64 (Steele, Lea, Flood 2014), which passes BigCrush, takes
//! any seed and fits in one word; a test below holds it to published values, because a seed that somebody
//! noted down has to mean the same run next year.

use std::env;

/// Environment variable that names the one seed to run.
pub const SEED_VARIABLE: &str = "REMUS_SEED";

/// A generator with its seed.
///
/// When a test panics while one is alive, the seed is printed with the command that repeats it.
#[derive(Debug)]
pub struct Rng {
    seed: u64,
    state: u64,
    /// A fork stays silent: its parent's seed is the one that repeats the run.
    root: bool,
}

impl Rng {
    /// A generator that yields the sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            state: seed,
            root: true,
        }
    }

    /// What this generator began with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A generator of its own, so that one part of a simulation can draw more or less without changing
    /// what another part sees.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        let seed = self.next_u64();
        Self {
            seed,
            state: seed,
            root: false,
        }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`, each as likely as the next; 0 where `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of a product is uniform but for a bias of bound / 2^64, far under what any
        // number of simulated steps could show.
        let product = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(0) // half of 128 bits always fits
    }

    /// The same for an index into something of `length` elements; 0 where there are none.
    pub fn index(&mut self, length: usize) -> usize {
        let bound = u64::try_from(length).unwrap_or(u64::MAX);
        usize::try_from(self.below(bound)).unwrap_or(0) // below a usize always fits
    }

    /// A number from `low` to `high`, both included; `low` where `high` is less.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.saturating_sub(low).checked_add(1) {
            Some(span) => low.saturating_add(self.below(span)),
            None => self.next_u64(), // the whole range
        }
    }

    /// True in `hits` of `of` cases: `chance(1, 10)` is one in ten.
    pub fn chance(&mut self, hits: u64, of: u64) -> bool {
        self.below(of) < hits
    }

    /// One of the elements, or `None` if there are none.
    pub fn pick<'t, T>(&mut self, from: &'t [T]) -> Option<&'t T> {
        from.get(self.index(from.len()))
    }

    /// Puts the elements into a random order.
    pub fn shuffle<T>(&mut self, elements: &mut [T]) {
        for last in (1..elements.len()).rev() {
            elements.swap(last, self.index(last + 1));
        }
    }

    /// Overwrites `bytes` with random ones.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next_u64().to_le_bytes();
            for (byte, random) in chunk.iter_mut().zip(random) {
                *byte = random;
            }
        }
    }

    /// `length` random bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }
}

impl Drop for Rng {
    #[expect(
        clippy::print_stderr,
        reason = "a failed test has to say how to repeat it"
    )]
    fn drop(&mut self) {
        if self.root && std::thread::panicking() {
            eprintln!(
                "seed {}: repeat with {SEED_VARIABLE}={}",
                self.seed, self.seed
            );
        }
    }
}

/// Runs `simulation` with the seeds 0 to `count` - 1, or with the one in `REMUS_SEED` alone.
///
/// # Panics
///
/// If the simulation does, after printing its seed; or if `REMUS_SEED` is set and no number, because
/// a run that was meant to repeat a failure must not pass by running something else.
pub fn for_each_seed(count: u64, mut simulation: impl FnMut(&mut Rng)) {
    let only = env::var(SEED_VARIABLE).ok();
    for seed in seeds(count, only.as_deref()) {
        simulation(&mut Rng::new(seed));
    }
}

#[expect(
    clippy::panic,
    reason = "documented: a mistyped seed fails the test that it was meant for"
)]
fn seeds(count: u64, only: Option<&str>) -> std::ops::Range<u64> {
    match only.map(|text| (text, text.parse::<u64>())) {
        None => 0..count,
        Some((_, Ok(seed))) => seed..seed.saturating_add(1),
        Some((text, Err(error))) => panic!("{SEED_VARIABLE}={text}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yields_the_published_sequence() {
        // The values that the authors' C code and Java's SplittableRandom give for this seed.
        let mut rng = Rng::new(1_234_567);
        let first: Vec<u64> = (0..5).map(|_| rng.next_u64()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821,
            ]
        );
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_all_of_it() {
        let mut rng = Rng::new(1);
        let mut seen = [0u32; 6];
        for _ in 0..6000 {
            seen[rng.index(seen.len())] += 1;
        }
        // 1000 each is expected, with a standard deviation of 29.
        assert!(
            seen.iter().all(|&times| (850..1150).contains(&times)),
            "{seen:?}"
        );
        assert!((0..1000).all(|_| (3..=5).contains(&rng.between(3, 5))));
        assert_eq!(
            (
                rng.below(0),
                rng.below(1),
                rng.between(7, 7),
                rng.between(9, 2)
            ),
            (0, 0, 7, 9)
        );
        assert!((0..100).any(|_| rng.between(0, u64::MAX) > u64::MAX / 2));
    }

    #[test]
    fn chances_are_kept() {
        let mut rng = Rng::new(2);
        let hits = (0..10_000).filter(|_| rng.chance(1, 10)).count();
        // 1000 is expected, with a standard deviation of 30.
        assert!((850..1150).contains(&hits), "{hits}");
        assert!(!rng.chance(0, 10) && rng.chance(10, 10));
    }

    #[test]
    fn a_shuffle_moves_and_keeps_every_element() {
        let mut rng = Rng::new(3);
        let mut elements: Vec<u32> = (0..100).collect();
        rng.shuffle(&mut elements);
        assert!(!elements.is_sorted());
        elements.sort_unstable();
        assert!(elements.into_iter().eq(0..100));
        rng.shuffle::<u32>(&mut []);
        assert_eq!(rng.pick::<u32>(&[]), None);
    }

    #[test]
    fn bytes_differ_from_call_to_call_and_repeat_with_the_seed() {
        let mut rng = Rng::new(4);
        let bytes = rng.bytes(13);
        assert_eq!(bytes.len(), 13);
        assert_ne!(bytes, rng.bytes(13));
        assert_eq!(bytes, Rng::new(4).bytes(13));
    }

    #[test]
    fn a_fork_does_not_disturb_its_parent() {
        let mut quiet = Rng::new(5);
        let _ = quiet.fork();
        let mut busy = Rng::new(5);
        let mut fork = busy.fork();
        for _ in 0..10 {
            fork.next_u64();
        }
        assert_eq!(quiet.next_u64(), busy.next_u64());
    }

    #[test]
    fn the_environment_chooses_one_seed() {
        assert_eq!(seeds(3, None), 0..3);
        assert_eq!(seeds(3, Some("17")), 17..18);
        std::panic::catch_unwind(|| seeds(3, Some("0x17"))).unwrap_err();
    }
}
