//! One certificate authority and one P-256 certificate for all peers, made at each start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::Result;

/// The name in the certificate, beside the addresses of loopback.
pub(crate) const SERVER_NAME: &str = "localhost";

/// The key exchange of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyExchange {
    /// X25519MLKEM768, what Remus speaks.
    PostQuantum,
    /// X25519, what its peers speak: the cheaper one.
    Classical,
}

/// `ca.pem`, `cert.pem` and `key.pem` in a directory.
#[derive(Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    /// Deletes the directory with the run that made it.
    _owned: Option<tempfile::TempDir>,
}

impl Files {
    /// Makes them in a new temporary directory.
    pub(crate) fn create() -> Result<Self> {
        let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let names = [SERVER_NAME, "127.0.0.1", "::1"].map(str::to_owned);
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;

        let directory = tempfile::Builder::new().prefix("remus-bench-").tempdir()?;
        let files = Self {
            directory: directory.path().to_owned(),
            _owned: Some(directory),
        };
        std::fs::write(files.ca(), ca_certificate.pem())?;
        std::fs::write(files.certificate(), certificate.pem())?;
        std::fs::write(files.key(), key.serialize_pem())?;
        Ok(files)
    }

    /// Those that another process made.
    pub(crate) fn open(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            _owned: None,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// The certificate authority, PEM.
    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The server's certificate, PEM.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.join("cert.pem")
    }

    /// The server's key, PEM, PKCS#8.
    pub(crate) fn key(&self) -> PathBuf {
        self.directory.join("key.pem")
    }

    /// A server's configuration: TLS 1.3, protocols `alpn`.
    pub(crate) fn server_config(
        &self,
        key_exchange: KeyExchange,
        alpn: &[&str],
    ) -> Result<Arc<ServerConfig>> {
        let certificate = CertificateDer::from_pem_file(self.certificate())?;
        let key = PrivateKeyDer::from_pem_file(self.key())?;
        let mut config = ServerConfig::builder_with_provider(provider(key_exchange))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// A client's configuration: TLS 1.3, verified against the authority, no resumption, protocols `alpn`.
    pub(crate) fn client_config(
        &self,
        key_exchange: KeyExchange,
        alpn: &[&str],
    ) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca())?)?;
        let mut config = ClientConfig::builder_with_provider(provider(key_exchange))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        // Every handshake is a full one, for all peers.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// aws-lc-rs with one key exchange. The cipher suites stay in rustls' order: AES-256-GCM first.
pub(crate) fn provider(key_exchange: KeyExchange) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![match key_exchange {
        KeyExchange::PostQuantum => aws_lc_rs::kx_group::X25519MLKEM768,
        KeyExchange::Classical => aws_lc_rs::kx_group::X25519,
    }];
    Arc::new(provider)
}
