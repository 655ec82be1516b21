//! Pairs of sessions over a carrier that delays, cuts, loses and reorders as far as it may, with applications that do as they
//! please. See `remus_testing::sim` for what is held against what.

use remus_testing::sim::{Features, Figures, World};
use remus_testing::{SEED_VARIABLE, for_each_seed};

/// Runs that many worlds, and sums up what came of them.
fn simulate(seeds: usize, steps: usize, features: Features) -> Figures {
    let mut all = Figures::default();
    for_each_seed(seeds as u64, |rng| {
        let mut world = World::new(rng.fork(), features);
        world.run(steps);
        let one = world.figures();
        all.calls += one.calls;
        all.good += one.good;
        all.bad += one.bad;
        all.elements += one.elements;
        all.resumptions += one.resumptions;
        all.repeats += one.repeats;
        all.refusals += one.refusals;
        all.replayed += one.replayed;
    });
    all
}

/// A simulation in which hardly anything happens would pass.
fn assert_lively(figures: Figures, seeds: usize) {
    if std::env::var_os(SEED_VARIABLE).is_none() {
        let lively = figures.calls > 20 * seeds
            && figures.good * 4 > figures.calls
            && figures.bad > seeds
            && figures.elements > 5 * seeds;
        assert!(lively, "{figures:?} in {seeds} worlds");
    }
}

/// Calls of every shape, both ways, while nothing ends early.
#[test]
fn calls_complete_whatever_the_carrier_does() {
    let features = Features {
        endings: false,
        deadlines: false,
        carriers: false,
    };
    assert_lively(simulate(3_000, 500, features), 3_000);
}

/// The same with deadlines, which end calls at either side at any moment.
#[test]
fn calls_end_once_when_time_runs_out() {
    let features = Features {
        endings: false,
        deadlines: true,
        carriers: false,
    };
    assert_lively(simulate(3_000, 500, features), 3_000);
}

/// The same with shutdowns, aborts, lost carriers and idle timeouts in the middle.
#[test]
fn calls_end_once_when_sessions_end() {
    let features = Features {
        endings: true,
        deadlines: true,
        carriers: false,
    };
    assert_lively(simulate(3_000, 500, features), 3_000);
}

/// A carrier that is cut or changed at any moment loses nothing and doubles nothing, also where the resumption itself is lost, is asked
/// for again, races with another, or where somebody presents a token that is spent.
///
/// Spec: CORE-90
#[test]
fn calls_complete_whatever_becomes_of_carriers() {
    let features = Features {
        endings: false,
        deadlines: false,
        carriers: true,
    };
    let seeds = 2_000;
    let figures = simulate(seeds, 500, features);
    assert_lively(figures, seeds);
    if std::env::var_os(SEED_VARIABLE).is_none() {
        let lively = figures.resumptions > seeds as u64
            && figures.repeats * 4 > seeds
            && figures.replayed > 100_000 * seeds as u64;
        assert!(lively, "{figures:?} in {seeds} worlds");
    }
}

/// The same with deadlines, shutdowns, aborts and silence.
///
/// Spec: CORE-90
#[test]
fn calls_end_once_whatever_becomes_of_carriers() {
    let features = Features {
        endings: true,
        deadlines: true,
        carriers: true,
    };
    let seeds = 2_000;
    let figures = simulate(seeds, 500, features);
    if std::env::var_os(SEED_VARIABLE).is_none() {
        let lively = figures.calls > 20 * seeds
            && figures.good * 4 > figures.calls
            && figures.resumptions * 2 > seeds as u64
            && figures.refusals * 20 > seeds;
        assert!(lively, "{figures:?} in {seeds} worlds");
    }
}

/// Stream IDs, request IDs and credit are used again and again.
#[test]
fn nothing_is_left_behind_in_long_sessions() {
    let features = Features {
        endings: false,
        deadlines: true,
        carriers: false,
    };
    assert_lively(simulate(40, 10_000, features), 40);
}
