//! Tests of the crate as a whole, by its public interface: the vectors, the specification, and what holds for every record.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests: a failure is a failed test"
)]

mod properties;
mod specification;
mod support;
mod vectors;
