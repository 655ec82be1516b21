use std::fs;
use std::sync::Barrier;

use tempfile::TempDir;

use super::*;

const NO_NAMES: &[&str] = &[];

/// A moment to begin with: 2026-11-01 00:00:00 UTC, a whole second as certificates count.
fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_491_200)
}

fn names(extra: &[&str]) -> Names {
    Names::of_this_machine(extra).unwrap()
}

fn open_at(data: &TempDir, now: SystemTime) -> Result<LocalCa, IdentityError> {
    LocalCa::load_or_create_at(data.path(), names(NO_NAMES), now)
}

fn file(data: &TempDir, name: &str) -> PathBuf {
    data.path().join(DIRECTORY).join(name)
}

fn snapshot(data: &TempDir) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(data.path().join(DIRECTORY))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn the_first_start_makes_an_authority_and_a_certificate_and_the_next_one_loads_them() {
    let data = tempfile::tempdir().unwrap();
    let first = open_at(&data, start()).unwrap();
    let on_disk = snapshot(&data);
    let files: Vec<_> = on_disk
        .iter()
        .map(|(path, _)| path.file_name().unwrap())
        .collect();
    assert_eq!(
        files,
        [CA_KEY, CA_CERTIFICATE, LOCK, NODE_KEY, NODE_CERTIFICATE]
    );

    let second = open_at(&data, start() + DAY).unwrap();
    assert_eq!(
        second.identity().fingerprint(),
        first.identity().fingerprint()
    );
    assert_eq!(second.authority(), first.authority());
    assert_eq!(
        snapshot(&data),
        on_disk,
        "a start that needs nothing writes nothing"
    );
}

/// Spec: TRANS-10
#[test]
fn the_certificate_fits_what_browsers_demand_of_a_pinned_one() {
    let data = tempfile::tempdir().unwrap();
    let ca = open_at(&data, start()).unwrap();
    let identity = ca.identity();
    assert_eq!(identity.not_before(), start() - BACKDATED);
    assert_eq!(identity.not_after(), start() - BACKDATED + NODE_LIFETIME);
    assert!(NODE_LIFETIME <= DAY * 14);

    let [leaf] = identity.chain() else {
        panic!("one certificate and no more")
    };
    assert_eq!(identity.fingerprint(), Fingerprint::of(leaf));
    let parsed = parse(leaf, Path::new("leaf")).unwrap();
    assert_eq!(parsed.version(), x509_parser::x509::X509Version::V3);
    let algorithm = &parsed.public_key().algorithm;
    assert_eq!(algorithm.algorithm.to_id_string(), "1.2.840.10045.2.1"); // EC
    let curve = algorithm.parameters.as_ref().unwrap().as_oid().unwrap();
    assert_eq!(curve.to_id_string(), "1.2.840.10045.3.1.7"); // P-256
    assert!(!parsed.is_ca());

    let authority = parse(ca.authority(), Path::new("ca")).unwrap();
    assert_eq!(
        validity(&authority, Path::new("ca")).unwrap().1,
        start() - BACKDATED + CA_LIFETIME
    );
    assert_eq!(parsed.issuer(), authority.subject());
}

#[cfg(unix)]
#[test]
fn keys_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let data = tempfile::tempdir().unwrap();
    open_at(&data, start()).unwrap();
    let mode = |name| {
        fs::metadata(file(&data, name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!([CA_KEY, NODE_KEY, LOCK].map(mode), [0o600; 3]);
    for public in [CA_CERTIFICATE, NODE_CERTIFICATE] {
        assert_eq!(mode(public) & !0o644, 0, "{public}");
    }
}

#[cfg(unix)]
#[test]
fn a_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    for (name, mode) in [(CA_KEY, 0o644), (NODE_KEY, 0o640)] {
        let data = tempfile::tempdir().unwrap();
        open_at(&data, start()).unwrap();
        let path = file(&data, name);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        match open_at(&data, start()) {
            Err(IdentityError::Exposed {
                path: named,
                mode: seen,
            }) => {
                assert_eq!((named, seen), (path, mode));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn the_certificate_is_renewed_in_place_when_less_than_three_days_remain() {
    let data = tempfile::tempdir().unwrap();
    let ca = open_at(&data, start()).unwrap();
    let live = ca.live();
    let old = ca.identity();

    let last_fresh = old.not_after() - RENEW_WITHIN;
    assert!(ca.renew_if_due_at(last_fresh).unwrap().is_none());
    let due = last_fresh + Duration::from_secs(1);
    let new = ca.renew_if_due_at(due).unwrap().expect("renewed");

    assert_ne!(new.fingerprint(), old.fingerprint());
    assert_ne!(new.private_key(), old.private_key());
    assert_eq!(new.not_after(), due - BACKDATED + NODE_LIFETIME);
    assert_eq!(
        live.current().fingerprint(),
        new.fingerprint(),
        "running servers present it"
    );
    assert!(ca.renew_if_due_at(due).unwrap().is_none(), "renewed once");
    let restarted = open_at(&data, due).unwrap();
    assert_eq!(restarted.identity().fingerprint(), new.fingerprint());
    assert_eq!(restarted.authority(), ca.authority());
}

#[test]
fn a_start_with_an_expired_certificate_or_a_clock_set_back_makes_a_new_one() {
    let data = tempfile::tempdir().unwrap();
    let first = open_at(&data, start()).unwrap().identity().fingerprint();
    let after_a_year = open_at(&data, start() + DAY * 365)
        .unwrap()
        .identity()
        .fingerprint();
    assert_ne!(after_a_year, first);
    let set_back = open_at(&data, start() + DAY * 300).unwrap().identity();
    assert_ne!(set_back.fingerprint(), after_a_year);
    assert!(set_back.not_before() < start() + DAY * 300);
}

#[test]
fn a_certificate_renewed_by_another_process_is_taken_over() {
    let data = tempfile::tempdir().unwrap();
    let ours = open_at(&data, start()).unwrap();
    let later = start() + DAY * 11;
    let theirs = open_at(&data, later).unwrap();
    let taken = ours.renew_if_due_at(later).unwrap().expect("taken over");
    assert_eq!(taken.fingerprint(), theirs.identity().fingerprint());
}

#[test]
fn other_names_make_a_new_certificate_of_the_same_authority() {
    let data = tempfile::tempdir().unwrap();
    let open =
        |extra: &[&str]| LocalCa::load_or_create_at(data.path(), names(extra), start()).unwrap();
    let plain = open(&[]);
    let named = open(&["node.example.org", "2001:db8::1"]);
    assert_ne!(
        named.identity().fingerprint(),
        plain.identity().fingerprint()
    );
    assert_eq!(named.authority(), plain.authority());
    let same = open(&["2001:0db8::1", "NODE.example.org"]);
    assert_eq!(
        same.identity().fingerprint(),
        named.identity().fingerprint()
    );
    let removed = open(&["node.example.org"]);
    assert_ne!(
        removed.identity().fingerprint(),
        named.identity().fingerprint()
    );
}

#[test]
fn an_authority_out_of_its_time_is_refused_and_nothing_outlives_it() {
    let data = tempfile::tempdir().unwrap();
    open_at(&data, start()).unwrap();
    let end = start() - BACKDATED + CA_LIFETIME;

    let last_day = open_at(&data, end - DAY).unwrap();
    assert_eq!(last_day.identity().not_after(), end);
    assert!(
        last_day.renew_if_due_at(end - DAY / 2).unwrap().is_none(),
        "renewal cannot help"
    );
    for out_of_time in [end + Duration::from_secs(1), start() - BACKDATED * 2] {
        match open_at(&data, out_of_time) {
            Err(IdentityError::NotValidNow { path }) => {
                assert_eq!(path, file(&data, CA_CERTIFICATE));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn files_that_are_not_what_they_should_be_are_named_and_left_alone() {
    let pem = |label: &str| {
        format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n").into_bytes()
    };
    for name in [CA_CERTIFICATE, CA_KEY, NODE_CERTIFICATE, NODE_KEY] {
        let label = if name.ends_with(".key") {
            "PRIVATE KEY"
        } else {
            "CERTIFICATE"
        };
        let contents = [
            vec![],
            b"\xff\0 nonsense".to_vec(),
            pem(label),
            pem("NOVEL"),
        ];
        for (case, content) in contents.iter().enumerate() {
            let data = tempfile::tempdir().unwrap();
            open_at(&data, start()).unwrap();
            fs::write(file(&data, name), content).unwrap();
            let before = snapshot(&data);
            match open_at(&data, start()) {
                Err(error @ IdentityError::Corrupt { .. }) => {
                    let text = error.to_string();
                    assert!(text.contains(file(&data, name).to_str().unwrap()), "{text}");
                    assert!(text.contains("delete"), "says what to do: {text}");
                }
                other => panic!("{name}, case {case}: {other:?}"),
            }
            assert_eq!(
                snapshot(&data),
                before,
                "{name}, case {case}: nothing is overwritten"
            );
        }
    }
}

#[test]
fn unreadable_files_are_named() {
    for name in [CA_CERTIFICATE, CA_KEY, NODE_CERTIFICATE, NODE_KEY, LOCK] {
        let data = tempfile::tempdir().unwrap();
        open_at(&data, start()).unwrap();
        // A directory cannot be read as a file, whoever asks; permissions would not stop root.
        fs::remove_file(file(&data, name)).unwrap();
        fs::create_dir(file(&data, name)).unwrap();
        match open_at(&data, start()) {
            Err(IdentityError::Io { path, .. }) => assert_eq!(path, file(&data, name)),
            other => panic!("{name}: {other:?}"),
        }
    }
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join(DIRECTORY), "in the way").unwrap();
    match open_at(&data, start()) {
        Err(IdentityError::Io { path, .. }) => assert_eq!(path, data.path().join(DIRECTORY)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_authority_without_its_key_or_with_a_foreign_one_is_refused() {
    let data = tempfile::tempdir().unwrap();
    open_at(&data, start()).unwrap();
    let other = tempfile::tempdir().unwrap();
    open_at(&other, start()).unwrap();

    fs::copy(file(&other, CA_KEY), file(&data, CA_KEY)).unwrap();
    match open_at(&data, start()) {
        Err(IdentityError::Corrupt { path, .. }) => assert_eq!(path, file(&data, CA_KEY)),
        other => panic!("{other:?}"),
    }
    fs::remove_file(file(&data, CA_KEY)).unwrap();
    match open_at(&data, start()) {
        Err(IdentityError::KeyMissing { path }) => assert_eq!(path, file(&data, CA_KEY)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_certificate_that_is_no_authority_cannot_stand_in_for_one() {
    let data = tempfile::tempdir().unwrap();
    open_at(&data, start()).unwrap();
    fs::copy(file(&data, NODE_CERTIFICATE), file(&data, CA_CERTIFICATE)).unwrap();
    fs::copy(file(&data, NODE_KEY), file(&data, CA_KEY)).unwrap();
    match open_at(&data, start()) {
        Err(IdentityError::Corrupt { path, .. }) => assert_eq!(path, file(&data, CA_CERTIFICATE)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_crash_between_any_two_writes_heals_on_the_next_start() {
    // Each case removes what would not have been written yet, or brings back what would still be old.
    let crash_after_ca_key = |data: &TempDir| {
        for name in [CA_CERTIFICATE, NODE_KEY, NODE_CERTIFICATE] {
            fs::remove_file(file(data, name)).unwrap();
        }
    };
    let crash_after_ca = |data: &TempDir| {
        fs::remove_file(file(data, NODE_KEY)).unwrap();
        fs::remove_file(file(data, NODE_CERTIFICATE)).unwrap();
    };
    let crash_after_node_key = |data: &TempDir| {
        fs::remove_file(file(data, NODE_CERTIFICATE)).unwrap();
    };
    let crash_in_renewal = |data: &TempDir| {
        let old = fs::read(file(data, NODE_CERTIFICATE)).unwrap();
        open_at(data, start() + DAY * 11).unwrap();
        fs::write(file(data, NODE_CERTIFICATE), old).unwrap();
    };
    let crash_in_a_write = |data: &TempDir| {
        fs::remove_file(file(data, NODE_CERTIFICATE)).unwrap();
        fs::write(file(data, ".node.key.new"), "half a k").unwrap();
        fs::write(file(data, ".node.pem.new"), "half a c").unwrap();
    };
    let cases: [&dyn Fn(&TempDir); 5] = [
        &crash_after_ca_key,
        &crash_after_ca,
        &crash_after_node_key,
        &crash_in_renewal,
        &crash_in_a_write,
    ];
    for (case, crash) in cases.into_iter().enumerate() {
        let data = tempfile::tempdir().unwrap();
        open_at(&data, start()).unwrap();
        let ca_key = fs::read(file(&data, CA_KEY)).unwrap();
        crash(&data);
        let healed = open_at(&data, start()).unwrap_or_else(|error| panic!("case {case}: {error}"));
        assert_eq!(
            fs::read(file(&data, CA_KEY)).unwrap(),
            ca_key,
            "case {case}: same authority"
        );
        let again = open_at(&data, start()).unwrap();
        assert_eq!(
            again.identity().fingerprint(),
            healed.identity().fingerprint(),
            "case {case}"
        );
        assert_eq!(
            snapshot(&data).len(),
            5,
            "case {case}: nothing is left lying about"
        );
    }
}

#[test]
fn a_new_authority_makes_a_new_certificate() {
    let data = tempfile::tempdir().unwrap();
    let old = open_at(&data, start()).unwrap();
    fs::remove_file(file(&data, CA_CERTIFICATE)).unwrap();
    fs::remove_file(file(&data, CA_KEY)).unwrap();
    let new = open_at(&data, start()).unwrap();
    assert_ne!(new.authority(), old.authority());
    assert_ne!(new.identity().fingerprint(), old.identity().fingerprint());

    // The node that still runs must not present what its clients cannot verify.
    match old.renew_if_due_at(start() + DAY * 11) {
        Err(IdentityError::AuthorityChanged { path }) => {
            assert_eq!(path, file(&data, CA_CERTIFICATE));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn concurrent_first_starts_agree_on_one_identity() {
    const STARTS: usize = 8;
    for _ in 0..10 {
        let data = tempfile::tempdir().unwrap();
        let barrier = Barrier::new(STARTS);
        let seen: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..STARTS)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        let ca = open_at(&data, start()).unwrap();
                        (ca.authority().clone(), ca.identity().fingerprint())
                    })
                })
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap())
                .collect()
        });
        assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
        let on_disk = open_at(&data, start()).unwrap();
        assert_eq!(on_disk.identity().fingerprint(), seen[0].1);
    }
}

#[test]
fn the_key_is_not_in_the_debug_output() {
    let data = tempfile::tempdir().unwrap();
    let ca = open_at(&data, start()).unwrap();
    let text = format!("{ca:?} {:?}", ca.identity());
    assert!(
        !text.contains("PRIVATE") && !text.contains("secret"),
        "{text}"
    );
    let key = format!("{:?}", ca.identity().private_key().secret_der());
    assert!(!text.contains(key.trim_matches(['[', ']'])), "{text}");
}
