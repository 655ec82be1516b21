//! Fixtures for tests: a deterministic generator for simulations, the bodies of the fuzz targets, and a proxy that harms what passes it.
//!
//! A dev-dependency only: nothing here ships.

pub mod chaos;
pub mod fuzz;
mod rng;
pub mod sim;

pub use rng::{Rng, SEED_VARIABLE, for_each_seed};
