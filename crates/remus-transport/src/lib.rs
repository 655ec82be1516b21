//! Carriers under a session: sockets, the WebTransport link, the driver that joins a link to a session. Spec: transport.
//!
//! The first crate that knows sockets, clocks and tasks. An application uses `remus`, which is built on this.
//!
//! - [`quic`]: UDP sockets and QUIC settings, each with its reason.
//! - [`webtransport`]: dialling and accepting a WebTransport link.
//! - [`tcp`] and [`web`]: the same sessions over WebSocket and HTTP, beside the pages of whoever serves.
//! - [`dial`]: opening a session over a carrier of one's choice.
//! - [`Connection`]: one session on one link, driven by a few tasks that live on the runtime on which it was made.

#![forbid(unsafe_code)]

mod clock;
mod congestion;
mod connection;
pub mod dial;
mod driver;
mod ladder;
mod link;
pub mod quic;
mod sessions;
mod shard;
pub mod tcp;
pub mod web;
mod websocket;
pub mod webtransport;

pub use clock::Clock;
pub use connection::{
    CallReceiver, CallSender, Connection, ConnectionStatus, PeerRequest, PendingCall, SwitchError,
};
pub use driver::{Dispatch, Handler, HandlerFuture, LINGER_MAX, code_of_status};
pub use ladder::{HEAD_START, Ladder};
pub use link::Carrier;
pub use sessions::{SUSPENDED_MAX, Sessions};
