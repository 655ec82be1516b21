//! Whole TLS handshakes in memory, between this crate's configurations and foreign ones.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be made is a failed test"
)]

use std::path::Path;
use std::sync::Arc;

use remus_security::{
    Fingerprint, LocalCa, Negotiated, PinMismatch, TlsPolicy, Trust, alpn, client_config,
    server_config,
};
use rustls::crypto::{SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Error, PeerIncompatible, RootCertStore,
    ServerConfig, ServerConnection,
};

/// Which side gave up, and why.
#[derive(Debug)]
enum Refusal {
    Client(Error),
    Server(Error),
}

/// Runs a handshake to its end or to the first error.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), Refusal> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        feed(&mut server, &flight).map_err(Refusal::Server)?;
        flight.clear();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        feed(&mut client, &flight).map_err(Refusal::Client)?;
    }
    Ok((client, server))
}

fn feed<Data>(
    to: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<Data>>,
    mut bytes: &[u8],
) -> Result<(), Error> {
    while !bytes.is_empty() {
        to.read_tls(&mut bytes).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

fn server_of(ca: &LocalCa, policy: TlsPolicy) -> Arc<ServerConfig> {
    server_config(policy, ca.live(), alpn::TCP).unwrap()
}

fn client_for(data: &Path, policy: TlsPolicy) -> Arc<ClientConfig> {
    let trust = Trust::from_pem_file(&LocalCa::certificate_path(data)).unwrap();
    client_config(policy, &trust, alpn::TCP).unwrap()
}

/// A client nobody here configured, with the given key exchanges.
fn foreign_client(ca: &LocalCa, groups: &[&'static dyn SupportedKxGroup]) -> Arc<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = groups.to_vec();
    let mut roots = RootCertStore::empty();
    roots.add(ca.authority().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

const NO_NAMES: &[&str] = &[];

fn node() -> (tempfile::TempDir, LocalCa) {
    let data = tempfile::tempdir().unwrap();
    let ca = LocalCa::load_or_create(data.path(), NO_NAMES).unwrap();
    (data, ca)
}

/// Spec: TRANS-5
#[test]
fn native_peers_speak_tls_1_3_with_post_quantum_key_exchange() {
    let (data, ca) = node();
    let client = client_for(data.path(), TlsPolicy::RequirePostQuantum);
    let server = server_of(&ca, TlsPolicy::PreferPostQuantum);
    let (client, server) = handshake(&client, &server, "localhost").unwrap();
    for side in [Negotiated::of(&client), Negotiated::of(&server)] {
        let negotiated = side.unwrap();
        assert_eq!(negotiated.version, "TLS 1.3");
        assert_eq!(negotiated.key_exchange, Some("X25519MLKEM768"));
        assert_eq!(negotiated, TlsPolicy::RequirePostQuantum.negotiates());
    }
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
}

#[test]
fn what_a_policy_promises_leaves_out_what_it_leaves_open() {
    let preferred = TlsPolicy::PreferPostQuantum.negotiates();
    assert_eq!(
        (preferred.version, preferred.key_exchange),
        ("TLS 1.3", None)
    );
}

#[test]
fn a_resumed_session_exchanges_post_quantum_keys_again() {
    let (data, ca) = node();
    let client = client_for(data.path(), TlsPolicy::RequirePostQuantum);
    let server = server_of(&ca, TlsPolicy::PreferPostQuantum);
    let first = handshake(&client, &server, "localhost").unwrap().0;
    assert_eq!(first.handshake_kind(), Some(rustls::HandshakeKind::Full));
    let second = handshake(&client, &server, "localhost").unwrap().0;
    assert_eq!(
        second.handshake_kind(),
        Some(rustls::HandshakeKind::Resumed)
    );
    assert_eq!(
        Negotiated::of(&second),
        Some(TlsPolicy::RequirePostQuantum.negotiates())
    );
}

/// Spec: TRANS-6
#[test]
fn a_classic_client_is_refused_where_post_quantum_is_required_and_served_where_preferred() {
    let (_data, ca) = node();
    let classic = foreign_client(&ca, &[aws_lc_rs::kx_group::X25519]);

    match handshake(
        &classic,
        &server_of(&ca, TlsPolicy::RequirePostQuantum),
        "localhost",
    ) {
        Err(Refusal::Server(Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon))) => {}
        other => panic!("{other:?}"),
    }
    let served = handshake(
        &classic,
        &server_of(&ca, TlsPolicy::PreferPostQuantum),
        "localhost",
    );
    let negotiated = Negotiated::of(&served.unwrap().0).unwrap();
    assert_eq!(negotiated.key_exchange, Some("X25519"));
}

/// Spec: TRANS-6
#[test]
fn a_client_that_lists_post_quantum_first_gets_it() {
    let (_data, ca) = node();
    let browser = foreign_client(
        &ca,
        &[
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
    );
    let (client, _) = handshake(
        &browser,
        &server_of(&ca, TlsPolicy::PreferPostQuantum),
        "localhost",
    )
    .unwrap();
    assert_eq!(
        Negotiated::of(&client).unwrap().key_exchange,
        Some("X25519MLKEM768")
    );
}

/// Spec: TRANS-5
#[test]
fn a_native_client_refuses_a_classic_server() {
    let (data, ca) = node();
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let classic = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(ca.live());
    let native = client_for(data.path(), TlsPolicy::RequirePostQuantum);
    match handshake(&native, &Arc::new(classic), "localhost") {
        Err(Refusal::Server(Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon))) => {}
        other => panic!("{other:?}"),
    }
}

/// A TLS record around a handshake message.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    let mut bytes = vec![22, 3, 1];
    bytes.extend(length(body.len() + 4));
    bytes.extend([kind, 0]);
    bytes.extend(length(body.len()));
    bytes.extend(body);
    bytes
}

/// Spec: TRANS-4
#[test]
fn a_tls_1_2_client_is_refused() {
    let (_data, ca) = node();
    // A ClientHello as before 2018: no supported_versions, so TLS 1.2 is the best it knows.
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.push(0); // session ID
    hello.extend([0, 2, 0xc0, 0x2b]); // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    hello.extend([1, 0]); // no compression
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 29][..], // supported groups: X25519
        &[0, 11, 0, 2, 1, 0],            // point formats
        &[0, 13, 0, 4, 0, 2, 4, 3],      // signatures: ECDSA P-256
    ]
    .concat();
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);

    for policy in [TlsPolicy::RequirePostQuantum, TlsPolicy::PreferPostQuantum] {
        let mut server = ServerConnection::new(server_of(&ca, policy)).unwrap();
        match feed(&mut server, &record(1, &hello)) {
            // Which of the two depends on whether another crate of the build has TLS 1.2 compiled in.
            Err(Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            )) => {}
            other => panic!("{policy:?}: {other:?}"),
        }
    }
}

/// Spec: TRANS-4
#[test]
fn a_tls_1_2_server_is_refused() {
    let (data, _ca) = node();
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.push(0); // session ID
    hello.extend([0xc0, 0x2b]); // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    hello.push(0); // no compression
    for policy in [TlsPolicy::RequirePostQuantum, TlsPolicy::PreferPostQuantum] {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(client_for(data.path(), policy), name).unwrap();
        client.write_tls(&mut Vec::new()).unwrap();
        match feed(&mut client, &record(2, &hello)) {
            Err(Error::PeerIncompatible(
                PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            )) => {}
            other => panic!("{policy:?}: {other:?}"),
        }
    }
}

/// Spec: TRANS-7
#[test]
fn another_application_protocol_is_refused() {
    let (data, ca) = node();
    let trust = Trust::from_pem_file(&LocalCa::certificate_path(data.path())).unwrap();
    let client = client_config(TlsPolicy::RequirePostQuantum, &trust, &[b"smtp"]).unwrap();
    match handshake(
        &client,
        &server_of(&ca, TlsPolicy::PreferPostQuantum),
        "localhost",
    ) {
        Err(Refusal::Server(Error::NoApplicationProtocol)) => {}
        other => panic!("{other:?}"),
    }
}

/// Spec: TRANS-8
#[test]
fn the_server_is_known_by_each_of_its_names_and_no_other() {
    let data = tempfile::tempdir().unwrap();
    let names = ["node-7.example.org", "192.0.2.7"];
    let ca = LocalCa::load_or_create(data.path(), &names).unwrap();
    let client = client_for(data.path(), TlsPolicy::RequirePostQuantum);
    let server = server_of(&ca, TlsPolicy::PreferPostQuantum);
    for name in [
        "localhost",
        "127.0.0.1",
        "::1",
        "node-7.example.org",
        "192.0.2.7",
    ] {
        handshake(&client, &server, name).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    match handshake(&client, &server, "node-8.example.org") {
        Err(Refusal::Client(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ))) => {}
        other => panic!("{other:?}"),
    }
}

/// Spec: TRANS-8
#[test]
fn a_server_of_another_authority_is_refused() {
    let (_data, ca) = node();
    let (elsewhere, _other) = node();
    let client = client_for(elsewhere.path(), TlsPolicy::RequirePostQuantum);
    match handshake(
        &client,
        &server_of(&ca, TlsPolicy::PreferPostQuantum),
        "localhost",
    ) {
        Err(Refusal::Client(Error::InvalidCertificate(CertificateError::UnknownIssuer))) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn authorities_of_several_files_are_all_trusted() {
    let (data_a, a) = node();
    let (data_b, b) = node();
    let files = [data_a.path(), data_b.path()].map(LocalCa::certificate_path);
    let trust = Trust::from_pem_files(&files).unwrap();
    let client = client_config(TlsPolicy::RequirePostQuantum, &trust, alpn::TCP).unwrap();
    for ca in [&a, &b] {
        handshake(
            &client,
            &server_of(ca, TlsPolicy::PreferPostQuantum),
            "localhost",
        )
        .unwrap();
    }
}

/// Spec: TRANS-9
#[test]
fn a_pinned_certificate_is_accepted_under_any_name() {
    let (_data, ca) = node();
    let pinned = Trust::pinned(ca.identity().fingerprint());
    let client = client_config(TlsPolicy::RequirePostQuantum, &pinned, alpn::TCP).unwrap();
    let server = server_of(&ca, TlsPolicy::PreferPostQuantum);
    handshake(&client, &server, "not-in-the-certificate.example").unwrap();
}

/// Spec: TRANS-8, TRANS-9
#[test]
fn a_certificate_other_than_the_pinned_one_is_refused_with_both_digests() {
    let (_data, ca) = node();
    let expected = Fingerprint::of(b"another certificate");
    let client = client_config(
        TlsPolicy::RequirePostQuantum,
        &Trust::pinned(expected),
        alpn::TCP,
    )
    .unwrap();
    match handshake(
        &client,
        &server_of(&ca, TlsPolicy::PreferPostQuantum),
        "localhost",
    ) {
        Err(Refusal::Client(error)) => {
            let presented = ca.identity().fingerprint();
            // As a carrier reports it: wrapped.
            let error = std::io::Error::other(error);
            assert_eq!(
                PinMismatch::find(&error),
                Some(&PinMismatch {
                    expected,
                    presented
                })
            );
        }
        other => panic!("{other:?}"),
    }
}

/// Spec: TRANS-9
#[test]
fn a_pinned_certificate_without_its_key_is_refused() {
    let (_data, ca) = node();
    let (_other_data, other) = node();
    // A thief shows the pinned certificate, which is public, and signs with a key of its own.
    let provider = TlsPolicy::PreferPostQuantum.provider();
    let key = other.identity().private_key().clone_key();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let forged = rustls::sign::CertifiedKey::new(ca.identity().chain().to_vec(), key);
    let thief = rustls::sign::SingleCertAndKey::from(forged);
    let server = server_config(TlsPolicy::PreferPostQuantum, Arc::new(thief), alpn::TCP).unwrap();

    let pinned = Trust::pinned(ca.identity().fingerprint());
    let client = client_config(TlsPolicy::RequirePostQuantum, &pinned, alpn::TCP).unwrap();
    match handshake(&client, &server, "localhost") {
        Err(Refusal::Client(Error::InvalidCertificate(CertificateError::BadSignature))) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_running_server_presents_a_replaced_identity_from_the_next_handshake_on() {
    let (_data, ca) = node();
    let server = server_of(&ca, TlsPolicy::PreferPostQuantum);
    let next = LocalCa::load_or_create(tempfile::tempdir().unwrap().path(), NO_NAMES).unwrap();
    let connect_pinned_to = |fingerprint| {
        let trust = Trust::pinned(fingerprint);
        let client = client_config(TlsPolicy::RequirePostQuantum, &trust, alpn::TCP).unwrap();
        handshake(&client, &server, "localhost").map(drop)
    };
    connect_pinned_to(ca.identity().fingerprint()).unwrap();
    let before = ca.identity().fingerprint();
    ca.live().replace(next.identity());
    connect_pinned_to(next.identity().fingerprint()).unwrap();
    assert!(connect_pinned_to(before).is_err());
}
