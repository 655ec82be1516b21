//! What is said when a file of trusted certificates is not one.

use std::fs;

use remus_security::{LocalCa, Trust, TrustError};

const NO_NAMES: &[&str] = &[];

#[test]
fn each_way_a_file_can_be_wrong_has_its_own_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let refuse = |path: &std::path::Path| {
        let error = Trust::from_pem_file(path).unwrap_err();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        error
    };

    let missing = refuse(&directory.path().join("missing.pem"));
    assert!(matches!(missing, TrustError::Read { .. }), "{missing:?}");
    let large = refuse(&file("large.pem", &vec![b'\n'; (1 << 20) + 1]));
    assert!(matches!(large, TrustError::Read { .. }), "{large:?}");
    let empty = refuse(&file("empty.pem", b""));
    assert!(matches!(empty, TrustError::NoCertificate(_)), "{empty:?}");
    let cut = refuse(&file("cut.pem", b"-----BEGIN CERTIFICATE-----\nMIIB"));
    assert!(matches!(cut, TrustError::BadPem { .. }), "{cut:?}");
    let noise = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let noise = refuse(&file("noise.pem", noise));
    assert!(
        matches!(noise, TrustError::BadCertificate { number: 1, .. }),
        "{noise:?}"
    );

    let ca = LocalCa::load_or_create(directory.path(), NO_NAMES).unwrap();
    drop(ca);
    let mut two = fs::read(LocalCa::certificate_path(directory.path())).unwrap();
    two.extend(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let second = refuse(&file("two.pem", &two));
    assert!(
        matches!(second, TrustError::BadCertificate { number: 2, .. }),
        "{second:?}"
    );
}

#[test]
fn trusting_no_file_is_refused() {
    let none: [&str; 0] = [];
    assert!(matches!(
        Trust::from_pem_files(none),
        Err(TrustError::NoFile)
    ));
}

#[test]
fn a_file_of_exactly_the_limit_is_read() {
    let directory = tempfile::tempdir().unwrap();
    LocalCa::load_or_create(directory.path(), NO_NAMES).unwrap();
    let mut pem = fs::read(LocalCa::certificate_path(directory.path())).unwrap();
    pem.resize(1 << 20, b'\n');
    let path = directory.path().join("padded.pem");
    fs::write(&path, pem).unwrap();
    Trust::from_pem_file(&path).unwrap();
}
