//! The crate by its public API: against itself, against peers that others wrote, and against peers
//! that break the rules.

mod aioquic;
mod h3;
mod hostile;
mod requests;
mod sessions;
mod support;
mod web_transport_quinn;
