//! Fixtures for tests: a deterministic generator for simulations, and the bodies of the fuzz targets.
//!
//! A dev-dependency only: nothing here ships.

pub mod fuzz;
mod rng;
pub mod sim;

pub use rng::{Rng, SEED_VARIABLE, for_each_seed};
