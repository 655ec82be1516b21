//! The Remus session, sans-IO: lifecycle, calls, streams, credit, priorities, deadlines, liveness. Spec: core.
//!
//! Bytes, commands and time go in; bytes, events and deadlines come out. Nothing here is `async`, opens a socket, reads a
//! clock, spawns or draws randomness, so the same code runs under a socket, in a simulation and under a fuzzer.
//!
//! The call order, for whoever drives a [`Session`]:
//!
//! 1. Feed what arrived: [`Session::handle_input`] for each lane, [`Session::handle_datagram`].
//! 2. Take what it caused: [`Session::poll_event`] until `None`.
//! 3. Command: [`Session::call`], [`Session::respond`], [`Session::send`], [`Session::recv`], …
//! 4. Send what is due: [`Session::poll_transmit`] for each lane in [`Session::take_dirty_lanes`], [`Session::poll_datagram`].
//! 5. Come back by [`Session::poll_timeout`] and call [`Session::handle_timeout`].
//!
//! Time is a [`Timestamp`](remus_wire::Timestamp) that never runs backwards: the wall clock at the start plus what a
//! monotonic clock has counted since.

#![forbid(unsafe_code)]

mod assembly;
mod call;
mod clock;
mod config;
mod error;
mod event;
mod lane;
mod liveness;
mod log;
mod resumption;
mod session;
mod state;
mod stream;

pub use call::{Answer, CallKey, Outgoing, Received, Shape};
pub use clock::CLOCK_SKEW_MAX;
pub use config::{
    CALLS_MAX, ConfigError, DEFAULT_LIMITS, INITIAL_LIMITS, STREAMS_MAX, SessionConfig,
};
pub use error::{CallError, CloseReason, SendError, SessionError};
pub use event::{Event, Grant, Incoming, Negotiated, Side};
pub use lane::{LANES_MAX, LaneId};
pub use liveness::PathEstimate;
pub use resumption::{
    CarrierInfo, Peeked, RESUME_REQUEST_MAX, ResumeError, ResumeRequest, peek_resume, refuse_resume,
};
#[doc(hidden)]
pub use session::Occupancy;
pub use session::{Session, Statistics};
pub use state::{Input, State, UnexpectedInput};

/// Largest message, in bytes, that may travel on a stream shared with others (wire §2).
///
/// 16 KiB takes 13 µs at 10 Gbit/s and 13 ms at 10 Mbit/s: what waits behind it hardly notices.
pub const SHARED_MESSAGE_MAX: usize = 16 * 1024;
