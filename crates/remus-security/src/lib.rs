//! TLS policy and identities: what is offered, what is trusted, and the local CA.
//!
//! Three questions have their one answer here, and no other crate builds a TLS configuration by hand:
//!
//! - **What is spoken?** [`TlsPolicy`]: TLS 1.3 and nothing below, with the hybrid post-quantum key
//!   exchange X25519MLKEM768 required between native peers and preferred towards everybody else.
//!   [`server_config`] and [`client_config`] turn a policy into what rustls and quinn take, and
//!   [`Negotiated`] says what came of it.
//! - **Whom do we trust?** [`Trust`]: certificate authorities from PEM files, or one certificate by
//!   its [`Fingerprint`].
//! - **Who are we?** [`LocalCa`]: a certificate authority of this machine and a short-lived node
//!   certificate, made on the first start and renewed while the node runs, through [`LiveIdentity`].
//!
//! This crate reads and writes the identity's few files, synchronously; it opens no socket, starts no
//! task and keeps no time of its own beyond asking the system clock.
//!
//! ```
//! use remus_security::{LocalCa, TlsPolicy, Trust, alpn, client_config, server_config};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let data = tempfile::tempdir()?;
//! # let data = data.path();
//! let ca = LocalCa::load_or_create(data, &["node-7.example.org"])?;
//! let server = server_config(TlsPolicy::PreferPostQuantum, ca.live(), alpn::QUIC)?;
//! let trust = Trust::from_pem_file(&LocalCa::certificate_path(data))?;
//! let client = client_config(TlsPolicy::RequirePostQuantum, &trust, alpn::QUIC)?;
//! # let _ = (server, client);
//! # Ok(())
//! # }
//! ```

mod files;
mod fingerprint;
mod identity;
mod local_ca;
mod names;
mod policy;
mod trust;

pub use fingerprint::{Fingerprint, FingerprintError};
pub use identity::{Identity, LiveIdentity};
pub use local_ca::{IdentityError, LocalCa};
pub use policy::{Negotiated, TlsConfigError, TlsPolicy, alpn, client_config, server_config};
pub use trust::{PinMismatch, Trust, TrustError};
