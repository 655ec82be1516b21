//! The names a node's certificate carries.
//!
//! Invariant: every name in a [`Names`] is a valid DNS name in lower case or an IP address in its
//! canonical form, so two sets of names are equal exactly if their texts are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rcgen::SanType;
use rustls::pki_types::DnsName;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::local_ca::IdentityError;

/// Names by which every node is reached from its own machine.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Most names in one certificate: it goes into the first flight of each handshake, and 64 names
/// add about one packet to it.
pub(crate) const MAX_NAMES: usize = 64;

/// The set of names of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names(BTreeSet<Name>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Dns(String),
    Ip(IpAddr),
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Ip(address));
        }
        let lower = text.trim_end_matches('.').to_ascii_lowercase();
        DnsName::try_from(lower.as_str()).ok()?;
        Some(Self::Dns(lower))
    }
}

impl Names {
    /// The local names, this machine's host name, and `extra`.
    ///
    /// A host name that is no valid DNS name (one with a space, say) is left out: the machine
    /// works under it, and nobody could verify it.
    pub(crate) fn of_this_machine<S: AsRef<str>>(extra: &[S]) -> Result<Self, IdentityError> {
        let host = gethostname::gethostname().into_string().ok();
        Self::new(host.as_deref(), extra)
    }

    fn new<S: AsRef<str>>(host: Option<&str>, extra: &[S]) -> Result<Self, IdentityError> {
        let mut names: BTreeSet<Name> = LOCAL
            .into_iter()
            .chain(host)
            .filter_map(Name::parse)
            .collect();
        for text in extra.iter().map(AsRef::as_ref) {
            let name = Name::parse(text).ok_or_else(|| IdentityError::InvalidName {
                name: text.to_owned(),
            })?;
            names.insert(name);
        }
        if names.len() > MAX_NAMES {
            return Err(IdentityError::TooManyNames { count: names.len() });
        }
        Ok(Self(names))
    }

    /// The names in `certificate`, or `None` if it carries others than DNS names and addresses.
    pub(crate) fn in_certificate(certificate: &X509Certificate<'_>) -> Option<Self> {
        let extension = certificate.subject_alternative_name().ok()??;
        let names = extension.value.general_names.iter().map(|name| match name {
            GeneralName::DNSName(text) => Name::parse(text),
            GeneralName::IPAddress(bytes) => address(bytes).map(Name::Ip),
            _ => None,
        });
        names.collect::<Option<_>>().map(Self)
    }

    /// The names in the form that rcgen puts into a certificate.
    pub(crate) fn to_san(&self) -> Result<Vec<SanType>, rcgen::Error> {
        let to_san = |name: &Name| {
            Ok(match name {
                Name::Dns(text) => SanType::DnsName(text.as_str().try_into()?),
                Name::Ip(address) => SanType::IpAddress(*address),
            })
        };
        self.0.iter().map(to_san).collect()
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(host: Option<&str>, extra: &[&str]) -> Result<Names, IdentityError> {
        Names::new(host, extra)
    }

    #[test]
    fn equal_names_in_other_spellings_are_one_name() {
        let plain = names(Some("alpha"), &["node.example.org", "2001:db8::1"]).unwrap();
        let other = names(
            Some("ALPHA"),
            &[
                "Node.Example.ORG.",
                "node.example.org",
                "2001:0db8:0::0001",
                "LOCALHOST",
                "::1",
            ],
        );
        assert_eq!(plain, other.unwrap());
    }

    #[test]
    fn an_unusable_host_name_is_left_out_and_an_unusable_given_name_refused() {
        assert_eq!(
            names(Some("my box"), &[]).unwrap(),
            names(None, &[]).unwrap()
        );
        for bad in [
            "my_box!",
            "",
            "a b",
            "*.example.org",
            "-",
            "https://example.org",
        ] {
            match names(None, &[bad]) {
                Err(IdentityError::InvalidName { name }) => assert_eq!(name, bad),
                other => panic!("{bad:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_number_of_names_is_limited() {
        let many: Vec<String> = (0..MAX_NAMES)
            .map(|n| format!("n{n}.example.org"))
            .collect();
        let fits = &many[..MAX_NAMES - LOCAL.len()];
        assert!(Names::new(None, fits).is_ok());
        match Names::new(None, &many) {
            Err(IdentityError::TooManyNames { count }) => assert_eq!(count, MAX_NAMES + 3),
            other => panic!("{other:?}"),
        }
    }
}
