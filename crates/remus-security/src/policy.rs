//! The TLS policy: which versions and key exchanges are spoken, decided once for every carrier.
//!
//! Owns the rustls configurations of clients and servers; refuses to know where an identity comes
//! from or whom a client trusts. Spec: transport, TLS.
//!
//! Invariant: every configuration made here names its crypto provider. A process that links two
//! providers is then no different from one that links one.

use std::sync::{Arc, LazyLock};

use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::server::{ResolvesServerCert, ServerSessionMemoryCache};
use rustls::{
    ClientConfig, CommonState, ConfigBuilder, NamedGroup, ProtocolVersion, ServerConfig,
    SupportedProtocolVersion,
};

use crate::trust::Trust;

/// The protocol versions on offer. Nothing below TLS 1.3 is offered or accepted, and no newer version
/// has been published; when one is, this is the line to change.
static VERSIONS: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

/// Sessions that a server remembers for resumption, in entries, in memory only.
///
/// A resumed TLS session spares a client the certificate's 1 KiB and the server a signature. Each
/// entry is a few hundred bytes, so this many cost about 1 MiB; the oldest make way for new ones, whose
/// loss costs a full handshake and nothing else.
const RESUMABLE_SESSIONS: usize = 4096;

/// Servers that a client remembers sessions for, in entries; the oldest make way.
const RESUMABLE_SERVERS: usize = 256;

/// Application protocols (ALPN) by carrier, in order of preference.
pub mod alpn {
    /// HTTP/3, and with it WebTransport: all that is spoken over QUIC.
    pub const QUIC: &[&[u8]] = &[b"h3"];
    /// HTTP/2 and HTTP/1.1: what a TCP listener speaks.
    pub const TCP: &[&[u8]] = &[b"h2", b"http/1.1"];
    /// HTTP/2 alone: a client that has many requests to make at a time.
    pub const HTTP2: &[&[u8]] = &[b"h2"];
    /// HTTP/1.1 alone: a client that is going to ask for a WebSocket upgrade.
    pub const HTTP1: &[&[u8]] = &[b"http/1.1"];
}

/// Which key exchanges a TLS configuration speaks. TLS 1.3 is common to both. Spec: transport, TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsPolicy {
    /// X25519MLKEM768 and nothing else: a recording made today stays closed to a quantum computer.
    ///
    /// What native clients use. A server without it is refused in the handshake.
    RequirePostQuantum,
    /// X25519MLKEM768 first, X25519 for a peer that does not know it.
    ///
    /// What servers use, because some browsers still have no post-quantum key exchange. A peer that
    /// can do both gets X25519MLKEM768 if it lists it first, as all known ones do.
    PreferPostQuantum,
}

impl TlsPolicy {
    /// The key exchange groups spoken, most wanted first.
    fn groups(self) -> &'static [&'static dyn SupportedKxGroup] {
        static REQUIRED: [&dyn SupportedKxGroup; 1] = [aws_lc_rs::kx_group::X25519MLKEM768];
        static PREFERRED: [&dyn SupportedKxGroup; 2] = [
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
        ];
        match self {
            Self::RequirePostQuantum => &REQUIRED,
            Self::PreferPostQuantum => &PREFERRED,
        }
    }

    /// The crypto provider restricted to this policy, for what builds its own rustls configuration.
    #[must_use]
    pub fn provider(self) -> Arc<CryptoProvider> {
        static REQUIRED: LazyLock<Arc<CryptoProvider>> =
            LazyLock::new(|| restricted_to(TlsPolicy::RequirePostQuantum.groups()));
        static PREFERRED: LazyLock<Arc<CryptoProvider>> =
            LazyLock::new(|| restricted_to(TlsPolicy::PreferPostQuantum.groups()));
        Arc::clone(match self {
            Self::RequirePostQuantum => &REQUIRED,
            Self::PreferPostQuantum => &PREFERRED,
        })
    }

    /// What a connection under this policy has negotiated once it stands, as far as that is certain.
    ///
    /// For carriers that do not show it, such as QUIC: the policy allows one version, and if it allows
    /// one key exchange too, then that is the one. Otherwise [`Negotiated::key_exchange`] is `None`.
    #[must_use]
    pub fn negotiates(self) -> Negotiated {
        let [version] = VERSIONS;
        let key_exchange = match self.groups() {
            [only] => group_name(only.name()),
            _ => None,
        };
        Negotiated {
            version: version_name(version.version),
            key_exchange,
        }
    }
}

/// The protocol version and key exchange of a connection, by the names people know, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Negotiated {
    /// The protocol version, such as `TLS 1.3`.
    pub version: &'static str,
    /// The key exchange group, such as `X25519MLKEM768`; `None` where it is not known.
    pub key_exchange: Option<&'static str>,
}

impl Negotiated {
    /// What a rustls connection has negotiated, or `None` while its handshake is under way.
    #[must_use]
    pub fn of(connection: &CommonState) -> Option<Self> {
        Some(Self {
            version: version_name(connection.protocol_version()?),
            key_exchange: group_name(connection.negotiated_key_exchange_group()?.name()),
        })
    }
}

/// Why a TLS configuration could not be made. Always the program's fault or its build's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// The crypto provider cannot do what the policy asks for.
    #[error("the crypto provider does not support the TLS policy: {0}")]
    Provider(#[source] rustls::Error),
    /// The roots cannot be used for verification.
    #[error("the trusted roots cannot be used: {0}")]
    Roots(#[from] rustls::client::VerifierBuilderError),
}

/// A server's TLS configuration: `policy`, certificates from `identity`, the protocols `alpn`.
///
/// Clients are not asked for a certificate: they authenticate inside the session. Early data (0-RTT)
/// is not accepted. The same configuration may serve any number of listeners of one carrier; quinn
/// takes it through `QuicServerConfig::try_from`. `identity` is usually a [`crate::LiveIdentity`].
///
/// # Errors
///
/// [`TlsConfigError::Provider`]: the provider lacks what the policy needs.
pub fn server_config(
    policy: TlsPolicy,
    identity: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let mut config = ServerConfig::builder_with_provider(policy.provider())
        .with_protocol_versions(&VERSIONS)
        .map_err(TlsConfigError::Provider)?
        .with_no_client_auth()
        .with_cert_resolver(identity);
    config.alpn_protocols = owned(alpn);
    config.session_storage = ServerSessionMemoryCache::new(RESUMABLE_SESSIONS);
    Ok(Arc::new(config))
}

/// A client's TLS configuration: `policy`, servers that `trust` accepts, the protocols `alpn`.
///
/// Early data (0-RTT) is not sent. quinn takes the configuration through
/// `QuicClientConfig::try_from`. For what to report of a connection made with it, see
/// [`TlsPolicy::negotiates`].
///
/// # Errors
///
/// [`TlsConfigError::Provider`]: the provider lacks what the policy needs.
/// [`TlsConfigError::Roots`]: `trust` holds no usable root.
pub fn client_config(
    policy: TlsPolicy,
    trust: &Trust,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let verifier = trust.verifier(policy.provider())?;
    let builder: ConfigBuilder<ClientConfig, WantsClientCert> =
        ClientConfig::builder_with_provider(policy.provider())
            .with_protocol_versions(&VERSIONS)
            .map_err(TlsConfigError::Provider)?
            .dangerous() // named so for custom verifiers; ours are in `trust`
            .with_custom_certificate_verifier(verifier);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = owned(alpn);
    config.resumption = Resumption::in_memory_sessions(RESUMABLE_SERVERS);
    Ok(Arc::new(config))
}

fn restricted_to(groups: &[&'static dyn SupportedKxGroup]) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = groups.to_vec();
    Arc::new(provider)
}

fn owned(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_3 => "TLS 1.3",
        // Not on offer above; the registry's name serves if a policy of the future allows it.
        other => other.as_str().unwrap_or("TLS of an unknown version"),
    }
}

fn group_name(group: NamedGroup) -> Option<&'static str> {
    group.as_str()
}
