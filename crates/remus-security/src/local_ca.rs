//! The certificate authority of one machine, and the node certificate it issues.
//!
//! Four files under `<data>/tls/`: `ca.pem` and `ca.key`, made once, and `node.pem` and `node.key`,
//! made anew every ten days. Owns their life on disk and in memory; refuses to know about TLS.
//!
//! Invariants: a private key is never readable by others, from the moment its file exists. Of each pair
//! the key is written first, so a certificate on disk always had its key on disk before it. Whoever
//! writes holds the lock file, and the node certificate in memory is the one on disk or an older one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;

use crate::files::{self, Access, Lock, MAX_PEM_BYTES};
use crate::fingerprint::Fingerprint;
use crate::identity::{Identity, LiveIdentity};
use crate::names::{MAX_NAMES, Names};
use crate::policy::TlsPolicy;

/// Directory of the identity inside the data directory.
const DIRECTORY: &str = "tls";
const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const NODE_CERTIFICATE: &str = "node.pem";
const NODE_KEY: &str = "node.key";
const LOCK: &str = "lock";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Life of the authority. Clients carry its certificate by hand, so it should outlive the installation.
const CA_LIFETIME: Duration = DAY.saturating_mul(10 * 365);

/// Life of a node certificate. Browsers accept a pinned certificate of at most 14 days.
const NODE_LIFETIME: Duration = DAY.saturating_mul(13);

/// A node certificate with less life left is renewed: time enough to notice that renewal fails.
const RENEW_WITHIN: Duration = DAY.saturating_mul(3);

/// How far a new certificate's life begins in the past, for peers whose clocks are behind. It counts
/// towards the life, or browsers would refuse 13 days and something over 14.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// How long to wait for another process that holds the lock. Making both certificates takes a few
/// milliseconds and the disk's time for four small files, so a longer wait means that it hangs.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The certificate authority of this machine and the node certificate it has issued.
///
/// All calls read and write small files, synchronously: call them outside of an async runtime's own
/// threads, or where a few milliseconds do no harm.
///
/// # Renewal
///
/// The owner calls [`LocalCa::renew_if_due`] from time to time, such as every hour. When it has made
/// a new certificate, servers that were configured with [`LocalCa::live`] present it from the next
/// handshake on, and what the node says of itself (`/.well-known/remus`) takes the new fingerprint from
/// there. The authority is not renewed: it lives for ten years.
#[derive(Debug)]
pub struct LocalCa {
    directory: PathBuf,
    names: Names,
    authority: CertificateDer<'static>,
    live: Arc<LiveIdentity>,
}

impl LocalCa {
    /// Where the authority's certificate lies under the data directory `data`: the file that a client
    /// on the same machine reads, and that others copy, to trust the node.
    #[must_use]
    pub fn certificate_path(data: &Path) -> PathBuf {
        data.join(DIRECTORY).join(CA_CERTIFICATE)
    }

    /// Loads the identity under the data directory `data`, or makes what is missing of it.
    ///
    /// The certificate carries `localhost`, `127.0.0.1`, `::1`, the machine's host name and `names`, which
    /// are DNS names or IP addresses. It is renewed here if it has less than three days left, carries other
    /// names, or does not belong to the authority or the key beside it.
    ///
    /// Several processes may do this at once: they agree on one authority.
    ///
    /// # Errors
    ///
    /// A typed reason that names the file and says what to do. Nothing that exists is overwritten then.
    pub fn load_or_create<S: AsRef<str>>(data: &Path, names: &[S]) -> Result<Self, IdentityError> {
        Self::load_or_create_at(data, Names::of_this_machine(names)?, SystemTime::now())
    }

    fn load_or_create_at(
        data: &Path,
        names: Names,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        let directory = data.join(DIRECTORY);
        let (authority, node) = establish(&directory, &names, now)?;
        let live = Arc::new(LiveIdentity::new(Arc::new(node)));
        Ok(Self {
            directory,
            names,
            authority,
            live,
        })
    }

    /// The node's identity now.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        self.live.current()
    }

    /// The slot from which servers take their certificate; give it to [`crate::server_config`].
    #[must_use]
    pub fn live(&self) -> Arc<LiveIdentity> {
        Arc::clone(&self.live)
    }

    /// The authority's certificate.
    #[must_use]
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// Renews the node certificate if it has less than three days left, and returns the new identity
    /// if there is one; it is then the one of [`LocalCa::live`].
    ///
    /// A certificate that another process has renewed meanwhile is taken over from its file.
    ///
    /// # Errors
    ///
    /// As [`LocalCa::load_or_create`]. The identity in force stays, so a failure is worth a warning
    /// and another try, until the certificate expires.
    pub fn renew_if_due(&self) -> Result<Option<Arc<Identity>>, IdentityError> {
        self.renew_if_due_at(SystemTime::now())
    }

    fn renew_if_due_at(&self, now: SystemTime) -> Result<Option<Arc<Identity>>, IdentityError> {
        let current = self.live.current();
        if is_fresh(&current, now) {
            return Ok(None);
        }
        let (authority, node) = establish(&self.directory, &self.names, now)?;
        if authority != self.authority {
            // Clients that were told of the old authority would refuse the new certificate.
            return Err(IdentityError::AuthorityChanged {
                path: self.directory.join(CA_CERTIFICATE),
            });
        }
        if node.fingerprint() == current.fingerprint() {
            return Ok(None);
        }
        let node = Arc::new(node);
        self.live.replace(Arc::clone(&node));
        Ok(Some(node))
    }
}

/// Why an identity cannot be loaded or made. Each names the file, the reason and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The system refuses an operation on a file or directory.
    #[error(
        "cannot {action} {}: {source} (the user that runs the node must own it and its directory)",
        path.display()
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{} cannot be used: {reason}; {}", path.display(), remedy(path))]
    #[expect(missing_docs, reason = "the message names every field")]
    Corrupt { path: PathBuf, reason: String },
    /// Others than the owner may use a private key, so it may no longer be a secret.
    #[error(
        "{} is a private key with mode {mode:04o}, open to other users; if nobody can have read it, \
         run chmod 600 on it, otherwise {}",
        path.display(),
        remedy(path)
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    Exposed { path: PathBuf, mode: u32 },
    /// The authority's certificate is there, its key is not.
    #[error("{} is missing, so nothing new can be signed; {}", path.display(), remedy(path))]
    #[expect(missing_docs, reason = "the message names every field")]
    KeyMissing { path: PathBuf },
    /// The authority has expired, or is not valid yet.
    #[error(
        "{} is not valid at this time; check the system clock, and if it is right, {}",
        path.display(),
        remedy(path)
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    NotValidNow { path: PathBuf },
    /// The authority on disk is no longer the one this process began with.
    #[error(
        "{} was exchanged while the node runs; restart the node to use it",
        path.display()
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    AuthorityChanged { path: PathBuf },
    /// Another process holds the identity's lock.
    #[error(
        "another process has held {} for {} s; look for a second node with this data directory",
        path.display(),
        waited.as_secs()
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    Locked { path: PathBuf, waited: Duration },
    /// A given name can't stand in a certificate.
    #[error("{name:?} is neither a DNS name without wildcard nor an IP address")]
    #[expect(missing_docs, reason = "the message names every field")]
    InvalidName { name: String },
    /// More names than one certificate takes.
    #[error("{count} names are above the limit of {MAX_NAMES} in one certificate")]
    #[expect(missing_docs, reason = "the message names every field")]
    TooManyNames { count: usize },
    /// A key or certificate could not be generated.
    #[error("cannot generate a key or certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// What helps when the file at `path` can't be used.
fn remedy(path: &Path) -> &'static str {
    if path.ends_with(NODE_KEY) || path.ends_with(NODE_CERTIFICATE) {
        "delete it, and the node makes a new certificate when it starts"
    } else {
        "restore it from a backup, or delete the directory and give every client the new ca.pem that \
         the node then makes"
    }
}

/// Brings the four files into order under the lock, and loads them.
fn establish(
    directory: &Path,
    names: &Names,
    now: SystemTime,
) -> Result<(CertificateDer<'static>, Identity), IdentityError> {
    let at = |action, path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::Io {
            action,
            path,
            source,
        }
    };
    files::make_directory(directory).map_err(at("create directory", directory))?;
    let lock = directory.join(LOCK);
    let _held = Lock::acquire(&lock, LOCK_PATIENCE)
        .map_err(at("lock", &lock))?
        .ok_or(IdentityError::Locked {
            path: lock,
            waited: LOCK_PATIENCE,
        })?;

    let authority = match Authority::load(directory, now)? {
        Some(authority) => authority,
        None => Authority::create(directory, now)?,
    };
    let node = match load_node(directory, &authority, names, now)? {
        // In the authority's last days nothing can live longer than the authority.
        Some(node) if is_fresh(&node, now) || node.not_after() >= authority.not_after => node,
        _ => issue_node(directory, &authority, names, now)?,
    };
    Ok((authority.certificate, node))
}

/// The authority with its key, held only while something is being signed.
struct Authority {
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority in `directory`, or `None` if it has none yet.
    fn load(directory: &Path, now: SystemTime) -> Result<Option<Self>, IdentityError> {
        let path = directory.join(CA_CERTIFICATE);
        let Some(certificate) = read_certificate(&path)? else {
            return Ok(None);
        };
        let key_path = directory.join(CA_KEY);
        let key = read_ca_key(&key_path)?.ok_or_else(|| IdentityError::KeyMissing {
            path: key_path.clone(),
        })?;

        let parsed = parse(&certificate, &path)?;
        if !parsed.is_ca() {
            return Err(corrupt(&path, "the certificate is not one of an authority"));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(corrupt(
                &key_path,
                "the key is not the one of ca.pem beside it",
            ));
        }
        let (not_before, not_after) = validity(&parsed, &path)?;
        if now < not_before || now > not_after {
            return Err(IdentityError::NotValidNow { path });
        }
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|error| corrupt(&path, error))?;
        Ok(Some(Self {
            certificate,
            not_after,
            issuer,
        }))
    }

    /// Makes the authority, with the key that is there if a crash has left one without a certificate.
    fn create(directory: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        let key_path = directory.join(CA_KEY);
        let key = match read_ca_key(&key_path)? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                write(directory, CA_KEY, &key.serialize_pem(), Access::Private)?;
                key
            }
        };
        let not_before = now - BACKDATED;
        let not_after = not_before + CA_LIFETIME;
        let mut params = CertificateParams::default();
        // The key's digest tells the authorities of two machines apart, and stays the same if this
        // certificate has to be made again for the same key.
        let id: String = Fingerprint::of(key.public_key_raw())
            .to_string()
            .chars()
            .take(8)
            .collect();
        params.distinguished_name = common_name(&format!("Remus local CA {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, not_before, not_after);
        let certificate = params.self_signed(&key)?;
        write(
            directory,
            CA_CERTIFICATE,
            &certificate.pem(),
            Access::Public,
        )?;
        let certificate = certificate.der().clone();
        Ok(Self {
            certificate,
            not_after,
            issuer: Issuer::new(params, key),
        })
    }
}

/// The node's identity in `directory`, or `None` if there is none that clients would accept now.
fn load_node(
    directory: &Path,
    authority: &Authority,
    names: &Names,
    now: SystemTime,
) -> Result<Option<Identity>, IdentityError> {
    let path = directory.join(NODE_CERTIFICATE);
    let Some(certificate) = read_certificate(&path)? else {
        return Ok(None);
    };
    let key_path = directory.join(NODE_KEY);
    let Some(key) = read_private(&key_path)? else {
        return Ok(None);
    };
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| corrupt(&key_path, error))?;

    let parsed = parse(&certificate, &path)?;
    let (not_before, not_after) = validity(&parsed, &path)?;
    let same_names = Names::in_certificate(&parsed).as_ref() == Some(names);
    let certified = CertifiedKey::from_der(
        vec![certificate.clone()],
        key.clone_key(),
        &TlsPolicy::PreferPostQuantum.provider(),
    );
    let certified = match certified {
        Ok(certified) => certified,
        // A crash between the two files of a renewal leaves the new key beside the old certificate.
        Err(rustls::Error::InconsistentKeys(_)) => return Ok(None),
        Err(error) => return Err(corrupt(&key_path, error)),
    };
    let identity = Identity::new(certified, key, &certificate, not_before, not_after);
    let usable = same_names && is_accepted(&certificate, &authority.certificate, now);
    Ok(usable.then_some(identity))
}

/// Makes a new key and certificate for the node and puts them on disk.
fn issue_node(
    directory: &Path,
    authority: &Authority,
    names: &Names,
    now: SystemTime,
) -> Result<Identity, IdentityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let not_before = now - BACKDATED;
    let not_after = (not_before + NODE_LIFETIME).min(authority.not_after);
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Remus node");
    params.subject_alt_names = names.to_san()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, not_before, not_after);
    let certificate = params.signed_by(&key, &authority.issuer)?;

    write(directory, NODE_KEY, &key.serialize_pem(), Access::Private)?;
    write(
        directory,
        NODE_CERTIFICATE,
        &certificate.pem(),
        Access::Public,
    )?;

    // Load what was written rather than trust that it is what was meant.
    load_node(directory, authority, names, now)?.ok_or_else(|| {
        let reason = "the certificate just made fails its own verification";
        corrupt(&directory.join(NODE_CERTIFICATE), reason)
    })
}

/// Whether enough life is left. A clock that was set back makes a certificate one of the future.
fn is_fresh(identity: &Identity, now: SystemTime) -> bool {
    let left = identity
        .not_after()
        .duration_since(now)
        .unwrap_or(Duration::ZERO);
    now >= identity.not_before() && left >= RENEW_WITHIN
}

/// Whether a client that trusts `authority` accepts `certificate`, by the verifier that it uses.
fn is_accepted(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'static>,
    now: SystemTime,
) -> bool {
    let mut roots = RootCertStore::empty();
    if roots.add(authority.clone()).is_err() {
        return false;
    }
    let provider = TlsPolicy::PreferPostQuantum.provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let (Ok(verifier), Ok(name), Ok(now)) = (
        verifier,
        ServerName::try_from("localhost"),
        now.duration_since(SystemTime::UNIX_EPOCH),
    ) else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(now);
    verifier
        .verify_server_cert(certificate, &[], &name, &[], now)
        .is_ok()
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn set_validity(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let to_date = |time: SystemTime| {
        epoch
            + time
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or(Duration::ZERO)
    };
    params.not_before = to_date(not_before);
    params.not_after = to_date(not_after);
}

fn validity(
    certificate: &X509Certificate<'_>,
    path: &Path,
) -> Result<(SystemTime, SystemTime), IdentityError> {
    let to_time = |seconds: i64| {
        u64::try_from(seconds)
            .ok()
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            .ok_or_else(|| corrupt(path, "the certificate's validity is out of range"))
    };
    let validity = certificate.validity();
    Ok((
        to_time(validity.not_before.timestamp())?,
        to_time(validity.not_after.timestamp())?,
    ))
}

fn parse<'c>(
    certificate: &'c CertificateDer<'_>,
    path: &Path,
) -> Result<X509Certificate<'c>, IdentityError> {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(corrupt(path, "bytes remain after the certificate")),
        Err(error) => Err(corrupt(path, error)),
    }
}

/// The file's bytes, or `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    match files::read(path, MAX_PEM_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// The same for a private key, which nobody else may be able to read.
fn read_private(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    let exposed = files::exposed_mode(path).map_err(|source| IdentityError::Io {
        action: "read the permissions of",
        path: path.to_owned(),
        source,
    })?;
    match exposed {
        Some(mode) => Err(IdentityError::Exposed {
            path: path.to_owned(),
            mode,
        }),
        None => Ok(Some(bytes)),
    }
}

fn read_ca_key(path: &Path) -> Result<Option<KeyPair>, IdentityError> {
    let Some(pem) = read_private(path)? else {
        return Ok(None);
    };
    let pem = std::str::from_utf8(&pem).map_err(|error| corrupt(path, error))?;
    KeyPair::from_pem(pem)
        .map(Some)
        .map_err(|error| corrupt(path, error))
}

fn read_certificate(path: &Path) -> Result<Option<CertificateDer<'static>>, IdentityError> {
    let Some(pem) = read(path)? else {
        return Ok(None);
    };
    CertificateDer::from_pem_slice(&pem)
        .map(Some)
        .map_err(|error| corrupt(path, error))
}

fn write(directory: &Path, name: &str, text: &str, access: Access) -> Result<(), IdentityError> {
    files::replace(directory, name, text.as_bytes(), access).map_err(|source| IdentityError::Io {
        action: "write",
        path: directory.join(name),
        source,
    })
}

fn corrupt(path: &Path, reason: impl ToString) -> IdentityError {
    IdentityError::Corrupt {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests;
