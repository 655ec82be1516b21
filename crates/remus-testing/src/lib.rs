//! Fixtures for tests: a deterministic generator for simulations.
//!
//! A dev-dependency only: nothing here ships.

mod rng;

pub use rng::{Rng, SEED_VARIABLE, for_each_seed};
