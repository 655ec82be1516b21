//! Typed calls, streams and topics between two programs, over one authenticated, post-quantum-encrypted connection.
//!
//! # A server
//!
//! A [`Service`] is a set of methods, a [`Router`] a set of services, a [`Server`] the sockets in front of it.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use remus::{Json, LocalCa, Request, Response, Router, Server, Service};
//!
//! let greeter = Service::new("greet.v1.Greeter")
//!     .unary("Hello", Json, |request: Request<String>| async move {
//!         Ok(Response::new(format!("hello, {}", request.into_inner())))
//!     });
//! let ca = LocalCa::load_or_create(std::path::Path::new("data"), &["localhost"])?;
//! let server = Server::builder(Router::new().service(greeter))
//!     .identity(ca.live())
//!     .listen("[::]:4433".parse()?)
//!     .bind()?;
//! server.serve(std::future::pending()).await;
//! # Ok(()) }
//! ```
//!
//! # A client
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use remus::{Client, Json, Trust};
//!
//! let trust = Trust::from_pem_file(std::path::Path::new("data/tls/ca.pem"))?;
//! let client = Client::builder("remus://localhost:4433").trust(trust).connect().await?;
//! let answer = client.method("greet.v1.Greeter/Hello").unary::<String, String>(Json, &"Ada".into()).await?;
//! println!("{}", answer.into_inner());
//! # Ok(()) }
//! ```
//!
//! Every call takes part in the same rules: a deadline travels with it and shrinks on the way, dropping its future cancels the
//! work behind it, streams hold their sender back when nobody reads, and an [`Error`] says whether trying again is safe.
//!
//! [`Router`] and [`Client`] are `tower::Service`s of [`Request<Body>`](Request), so tower's middleware fits both ends.

#![forbid(unsafe_code)]

mod carrier;
mod client;
mod codec;
mod error;
mod message;
mod names;
mod router;
mod server;
mod stream;
mod topics;

pub use carrier::{CARRIER_SERVICE, SwitchAnswer, SwitchRequest};
pub use client::{Client, ClientBuilder, DEFAULT_TIMEOUT, MethodCall};
pub use codec::{Codec, Codecs, Json, Raw};
pub use error::{Error, ErrorDetail};
pub use message::{Body, Element, Metadata, Request, Response};
pub use remus_security::{
    Fingerprint, LiveIdentity, LocalCa, Negotiated as TlsNegotiated, TlsPolicy, Trust,
};
pub use remus_session::{CloseReason, Grant, Negotiated, PathEstimate, SessionConfig};
pub use remus_transport::quic::{SHARDS_MAX, ShardError, ShardGroup, ShardStatistics};
pub use remus_transport::web::{self, Body as HttpBody};
pub use remus_transport::webtransport::{ConnectError, DEFAULT_PORT};
pub use remus_transport::{Carrier, Connection, ConnectionStatus, HEAD_START, SwitchError};
pub use remus_wire::{
    AuthMethod, AuthenticationRecord, ErrorCode, Limits, MethodId, Priority, ServiceId,
};
pub use router::{
    BoxFuture, MethodDescription, MethodKind, Route, Router, Service, ServiceDescription,
};
pub use server::{
    Authenticator, BindError, Connections, DEFAULT_GRACE, OpenSession, Server, ServerBuilder,
};
pub use stream::{Reply, StreamSender, Streaming};
pub use topics::{
    Broker, Overflow, Publication, RemoteSubscription, SUBSCRIPTION_BYTES_MAX, SUBSCRIPTIONS_MAX,
    SubscribeOptions, Subscription, TOPICS_SERVICE, TopicDescription,
};
