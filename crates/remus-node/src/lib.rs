//! One node: the services, topics and listeners behind `remus up`.
//!
//! [`Node::start`] takes a [`Config`] and gives a node that runs: QUIC (WebTransport and HTTP/3) and TCP (HTTP/2 and HTTP/1.1) on one
//! port, or TCP alone, with an identity of its own, and these services:
//!
//! | service | is |
//! | --- | --- |
//! | `host.v1.Host` | the machine: [`host`] |
//! | `file.v1.Files` | files under the data directory: [`files`] |
//! | `remus.v2.Bench` | something to measure against: [`mod@bench`] |
//! | `remus.v2.Directory` | what is served, and who is connected: [`directory`] |
//! | `remus.v2.Sessions` | what carries the sessions: [`sessions`] |
//! | `remus.v2.Topics` | publish and subscribe, with `host.<name>.cpu`, `memory`, `disk` and `net` every second |
//!
//! ```no_run
//! use remus_node::{Config, Node, Settings};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::load(None, Settings::default())?;
//! let node = Node::start(&config)?;
//! println!("listening on {}", node.address());
//! // ... wait for a signal ...
//! node.shut_down();
//! # Ok(()) }
//! ```
//!
//! The whole state of a node is in its data directory: `tls/` the identity, `files/` the files, `node.lock` the lock that keeps a
//! second node out.

#![forbid(unsafe_code)]

pub mod bench;
pub mod config;
pub mod directory;
pub mod files;
pub mod host;
mod lock;
mod node;
mod port;
pub mod sessions;
mod transports;
pub mod web;

pub use config::{Config, ConfigError, FileLimits, Settings, data_directory};
pub use lock::DataError;
pub use node::{Node, NodeError};
pub use port::{Holder, PortError, Protocol};
