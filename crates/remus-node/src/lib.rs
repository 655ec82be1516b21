//! One node: the services, topics and listeners behind `remus up`.

#![forbid(unsafe_code)]

pub mod config;
pub mod files;
pub mod host;
mod lock;
pub mod port;
