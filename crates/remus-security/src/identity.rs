//! A certificate with its key, and the slot in a running server where it can be exchanged.
//!
//! Knows nothing of files: [`crate::LocalCa`] makes identities.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::fingerprint::Fingerprint;

/// A certificate chain with the private key of its first certificate.
pub struct Identity {
    certified: Arc<CertifiedKey>,
    key: PrivateKeyDer<'static>,
    fingerprint: Fingerprint,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Identity {
    /// `certified` holds at least one certificate, `end_entity`, and `key` belongs to it.
    pub(crate) fn new(
        certified: CertifiedKey,
        key: PrivateKeyDer<'static>,
        end_entity: &CertificateDer<'_>,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Self {
        let fingerprint = Fingerprint::of(end_entity);
        Self {
            certified: Arc::new(certified),
            key,
            fingerprint,
            not_before,
            not_after,
        }
    }

    /// The certificates as a server sends them: the node's own, without the authority, which a
    /// client has or has no use for.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The private key.
    #[must_use]
    pub fn private_key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// SHA-256 of the node's own certificate, which a client may pin.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The first moment at which the certificate is valid.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last second in which the certificate is valid.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl fmt::Debug for Identity {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("fingerprint", &self.fingerprint)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The identity a running server presents, which may be exchanged at any time.
///
/// Give it to [`crate::server_config`]. Handshakes that begin after [`LiveIdentity::replace`]
/// present the new certificate; connections that stand are not touched.
#[derive(Debug)]
pub struct LiveIdentity(RwLock<Arc<Identity>>);

impl LiveIdentity {
    /// Begins with `identity`.
    #[must_use]
    pub fn new(identity: Arc<Identity>) -> Self {
        Self(RwLock::new(identity))
    }

    /// The identity presented now.
    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        // A thread that panicked cannot have left the pointer half written.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Presents `identity` from the next handshake on.
    pub fn replace(&self, identity: Arc<Identity>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }
}

impl ResolvesServerCert for LiveIdentity {
    /// The one identity, whatever name the client asked for: it verifies the name itself.
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current().certified))
    }
}
