//! The `remus` binary, end to end: real nodes, real processes, loopback.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a step that fails is a test that fails"
)]

mod bench;
mod carriers;
mod files;
mod killed;
mod node;
mod odd;
mod support;
mod talking;
mod topics;
mod wrong;
