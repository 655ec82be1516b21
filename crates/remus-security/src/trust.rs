//! Whom a client trusts: certificate authorities, or one pinned certificate.
//!
//! Owns reading roots and verifying a server's certificate against them; refuses to know TLS
//! versions and key exchanges, which are the policy's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::files::{self, MAX_PEM_BYTES};
use crate::fingerprint::Fingerprint;
use crate::policy::TlsConfigError;

/// Whom a client trusts to be the server it asked for.
#[derive(Clone, Debug)]
pub struct Trust(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Roots(Arc<RootCertStore>),
    Pinned(Fingerprint),
}

impl Trust {
    /// Trusts certificates that chain to one of the authorities in the PEM file at `path`, such as
    /// a node's `ca.pem`, and that carry the name the client asked for.
    ///
    /// # Errors
    ///
    /// As [`Trust::from_pem_files`].
    pub fn from_pem_file(path: &Path) -> Result<Self, TrustError> {
        Self::from_pem_files([path])
    }

    /// The same with the authorities of several files; a file may hold several itself.
    ///
    /// # Errors
    ///
    /// [`TrustError::Read`]: a file cannot be read, or is over 1 MiB. [`TrustError::NoCertificate`]:
    /// one holds no certificate, or none was given. [`TrustError::BadPem`] and
    /// [`TrustError::BadCertificate`]: what is in one cannot be parsed.
    pub fn from_pem_files<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        for path in paths {
            add_roots(&mut roots, path.as_ref())?;
        }
        if roots.is_empty() {
            return Err(TrustError::NoFile);
        }
        Ok(Self(Kind::Roots(Arc::new(roots))))
    }

    /// Trusts certificates that chain to `authority`, given in DER.
    ///
    /// # Errors
    ///
    /// The reason of rustls why the certificate cannot be a root.
    pub fn from_der(authority: CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority)?;
        Ok(Self(Kind::Roots(Arc::new(roots))))
    }

    /// Trusts the one certificate with this SHA-256, whatever its name and whoever signed it, within its
    /// time of validity: the native counterpart of a browser's `serverCertificateHashes`.
    ///
    /// Another certificate fails the handshake with a [`PinMismatch`].
    #[must_use]
    pub fn pinned(certificate: Fingerprint) -> Self {
        Self(Kind::Pinned(certificate))
    }

    /// The verifier that enforces this trust with the signature algorithms of `provider`.
    pub(crate) fn verifier(
        &self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, TlsConfigError> {
        Ok(match &self.0 {
            Kind::Roots(roots) => {
                WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider).build()?
            }
            Kind::Pinned(expected) => Arc::new(PinVerifier {
                expected: *expected,
                provider,
            }),
        })
    }
}

/// Why roots could not be loaded from a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// No file was named, so nothing would be trusted.
    #[error("no file of trusted certificates was given")]
    NoFile,
    /// A file cannot be read.
    #[error("cannot read the trusted certificates in {}: {source}", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A file has no certificate in it.
    #[error(
        "{} holds no certificate: expected PEM that begins with -----BEGIN CERTIFICATE-----",
        .0.display()
    )]
    NoCertificate(PathBuf),
    /// A file is broken PEM.
    #[error("{} is not valid PEM: {source}", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    BadPem { path: PathBuf, source: pem::Error },
    /// A certificate in a file cannot be a root.
    #[error("certificate {number} in {} cannot be trusted as a root: {source}", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    BadCertificate {
        path: PathBuf,
        number: usize,
        source: rustls::Error,
    },
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), TrustError> {
    let text = files::read(path, MAX_PEM_BYTES).map_err(|source| TrustError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut number = 0;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        number += 1;
        let certificate = certificate.map_err(|source| TrustError::BadPem {
            path: path.to_owned(),
            source,
        })?;
        roots
            .add(certificate)
            .map_err(|source| TrustError::BadCertificate {
                path: path.to_owned(),
                number,
                source,
            })?;
    }
    if number == 0 {
        return Err(TrustError::NoCertificate(path.to_owned()));
    }
    Ok(())
}

/// The server presented another certificate than the pinned one.
///
/// Reaches the caller as the inner error of [`CertificateError::Other`]; [`PinMismatch::find`] digs
/// it out of whatever wraps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's certificate has SHA-256 {presented}, and {expected} is pinned")]
#[expect(missing_docs, reason = "the message names every field")]
pub struct PinMismatch {
    pub expected: Fingerprint,
    pub presented: Fingerprint,
}

impl PinMismatch {
    /// The mismatch that caused `error`, if one did.
    #[must_use]
    pub fn find<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = inner(error);
        }
        None
    }
}

/// The error wrapped in `error`, also where it does not name it as its source.
fn inner<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e (dyn std::error::Error + 'static)> {
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        // Its source is the source of the wrapped error, which leaves that one out.
        return error.get_ref().map(|inner| inner as _);
    }
    match error.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => {
            Some(inner.as_ref())
        }
        _ => error.source(),
    }
}

/// Accepts one end-entity certificate, by its digest.
#[derive(Debug)]
struct PinVerifier {
    expected: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = Fingerprint::of(end_entity);
        if presented != self.expected {
            let mismatch = PinMismatch {
                expected: self.expected,
                presented,
            };
            return Err(CertificateError::Other(OtherError(Arc::new(mismatch))).into());
        }
        // The digest does not change when the certificate expires, and the key of one that did may
        // no longer be looked after.
        let (not_before, not_after) = validity(end_entity)?;
        let now = i128::from(now.as_secs());
        if now < i128::from(not_before) {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > i128::from(not_after) {
            return Err(CertificateError::Expired.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // No policy offers TLS 1.2, so nothing calls this; if something did, refusing is right.
        Err(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Proves that the server holds the key of the certificate, which is public.
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The first and last second of validity, in seconds since the Unix epoch.
fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), CertificateError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.validity();
    Ok((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::TlsPolicy;

    /// Spec: TRANS-9
    #[test]
    fn a_pinned_certificate_is_refused_outside_its_time() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2001, 9, 9); // 999993600
        params.not_after = rcgen::date_time_ymd(2001, 9, 10); // 1000080000
        let certificate = params.self_signed(&key).unwrap();
        let verifier = Trust::pinned(Fingerprint::of(certificate.der()))
            .verifier(TlsPolicy::RequirePostQuantum.provider())
            .unwrap();
        let verify_at = |seconds| {
            let name = ServerName::try_from("localhost").unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            verifier
                .verify_server_cert(certificate.der(), &[], &name, &[], now)
                .map(drop)
        };
        assert_eq!(
            verify_at(999_993_599),
            Err(CertificateError::NotValidYet.into())
        );
        assert_eq!(verify_at(999_993_600), Ok(()));
        assert_eq!(verify_at(1_000_080_000), Ok(()));
        assert_eq!(
            verify_at(1_000_080_001),
            Err(CertificateError::Expired.into())
        );
    }
}
