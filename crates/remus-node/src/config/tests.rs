use super::*;

fn parse(text: &str) -> Result<Settings, ConfigError> {
    file::parse(Path::new("remus.toml"), text)
}

fn message(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// An environment with a home directory and `variables`.
fn environment(
    variables: &'static [(&'static str, &'static str)],
) -> impl Fn(&str) -> Option<OsString> {
    move |name| {
        [("HOME", "/home/ada")]
            .iter()
            .chain(variables)
            .rev()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.into())
    }
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("remus.toml");
    fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn defaults_hold_where_nothing_is_set() {
    let config = Config::resolve(None, &environment(&[]), Settings::default()).unwrap();
    assert_eq!(config.data(), Path::new("/home/ada/.local/share/remus"));
    assert_eq!(config.listen().to_string(), "[::]:4433");
    assert_eq!(config.grace(), Duration::from_secs(10));
    assert_eq!(config.files(), FileLimits::default());
    assert_eq!(Some(config.shards()), thread::available_parallelism().ok());
}

#[test]
fn every_key_is_read_from_a_file() {
    let settings = parse(
        r#"
        data = "/srv/remus"
        listen = "127.0.0.1:5000"
        block_udp = true
        names = ["node.example.org"]
        allowed_origins = ["HTTPS://App.example.org"]
        grace_ms = 1_500
        shards = 0x2
        [files]
        max_file_bytes = 1_048_576
        max_uploads = 3
        max_downloads = 4
        "#,
    );
    let expected = Settings {
        data: Some("/srv/remus".into()),
        listen: Some("127.0.0.1:5000".parse().unwrap()),
        block_udp: Some(true),
        names: Some(vec!["node.example.org".into()]),
        allowed_origins: Some(vec!["https://app.example.org".into()]),
        grace: Some(Duration::from_millis(1500)),
        shards: Some(2),
        max_file_bytes: Some(1_048_576),
        max_uploads: Some(3),
        max_downloads: Some(4),
    };
    assert_eq!(settings.unwrap(), expected);
}

#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let (_directory, path) = file("data = '/file'\nlisten = '[::1]:1'\nshards = 1\n");
    let environment = environment(&[("REMUS_LISTEN", "[::1]:2"), ("REMUS_SHARDS", "2")]);
    let flags = Settings {
        shards: Some(3),
        ..Settings::default()
    };
    let config = Config::resolve(Some(&path), &environment, flags).unwrap();
    assert_eq!(config.data(), Path::new("/file"));
    assert_eq!(config.listen().port(), 2);
    assert_eq!(config.shards().get(), 3);
}

#[test]
fn an_unknown_key_is_an_error_with_its_line_and_the_nearest_known_one() {
    let near = |text, line: usize, key: &str, near: &str| {
        assert_eq!(
            message(text),
            format!("remus.toml, line {line}: there is no setting `{key}`; did you mean `{near}`?")
        );
    };
    near("listen = '[::]:1'\nlissten = 1\n", 2, "lissten", "listen");
    near(
        "\n\nallowed-origins = []\n",
        3,
        "allowed-origins",
        "allowed_origins",
    );
    near("grace = 5\n", 1, "grace", "grace_ms");
    near(
        "[files]\nmax_upload = 1\n",
        2,
        "files.max_upload",
        "files.max_uploads",
    );
    near("max_uploads = 1\n", 1, "max_uploads", "files.max_uploads");
    near("[file]\nmax_uploads = 1\n", 1, "file", "files");
}

#[test]
fn an_unknown_key_like_none_is_an_error_that_lists_the_known_ones() {
    let text = message("telemetry = true\n");
    assert!(
        text.starts_with(
            "remus.toml, line 1: there is no setting `telemetry`; there are: data, listen, "
        ),
        "{text}"
    );
    let long = format!("{} = 1", "x".repeat(100_000));
    assert!(message(&long).contains("there are: data"));
}

#[test]
fn values_out_of_range_or_of_the_wrong_kind_are_refused_with_place_and_range() {
    for (text, expected) in [
        (
            "\ngrace_ms = 600_001",
            "line 2: `grace_ms` must be a whole number from 0 to 600000, not 600001",
        ),
        (
            "grace_ms = -1",
            "line 1: `grace_ms` must be a whole number from 0 to 600000, not -1",
        ),
        (
            "shards = 0",
            "line 1: `shards` must be a whole number from 1 to 256, not 0",
        ),
        (
            "shards = 99999999999999999999",
            "line 1: `shards` must be a whole number from 1 to 256, not 99999999999999999999",
        ),
        (
            "shards = 1.5",
            "line 1: `shards` must be a number, not a number with a fraction",
        ),
        (
            "shards = '2'",
            "line 1: `shards` must be a number, not text",
        ),
        (
            "files.max_uploads = 4097",
            "line 1: `files.max_uploads` must be a whole number from 1 to 4096, not 4097",
        ),
        ("data = ''", "line 1: `data` must be a directory, not empty"),
        (
            "data = 3",
            "line 1: `data` must be text in quotes, not a number",
        ),
        (
            "listen = '4433'",
            "line 1: `listen` must be ADDRESS:PORT, such as [::]:4433 or 127.0.0.1:4433, not \"4433\"",
        ),
        (
            "names = 'a'",
            "line 1: `names` must be a list of texts, not text",
        ),
        (
            "names = [1]",
            "line 1: `names` must be a list of texts, not a list of something else than texts",
        ),
        (
            "allowed_origins = ['https://a.example/path']",
            "line 1: `allowed_origins` must hold origins such as https://app.example.org, without a path; \
             \"https://a.example/path\" is none",
        ),
        (
            "files = 3",
            "line 1: `files` must be a table, [files], not a number",
        ),
    ] {
        assert_eq!(message(text), format!("remus.toml, {expected}"));
    }
    let many = format!("names = [{}]", "'a',".repeat(61));
    assert!(message(&many).ends_with("holds 61 names, and a certificate takes 60"));
}

#[test]
fn broken_toml_is_an_error_with_its_line() {
    let text = message("shards = 1\nlisten = \n");
    assert!(text.starts_with("remus.toml, line 2: "), "{text}");
    let text = message("shards = 1\nshards = 2\n");
    assert!(text.starts_with("remus.toml, line 2: "), "{text}");
}

#[test]
fn the_environment_is_checked_like_the_file() {
    let environment = environment(&[("REMUS_GRACE_MS", "soon")]);
    let error = Config::resolve(None, &environment, Settings::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "environment: `REMUS_GRACE_MS` must be a whole number from 0 to 600000, not soon"
    );
}

#[test]
fn lists_in_the_environment_are_separated_by_commas_and_empty_variables_do_not_count() {
    let environment = environment(&[
        ("REMUS_NAMES", "a.example.org, b.example.org,"),
        ("REMUS_LISTEN", ""),
    ]);
    let config = Config::resolve(None, &environment, Settings::default()).unwrap();
    assert_eq!(config.names(), ["a.example.org", "b.example.org"]);
    assert_eq!(config.listen().port(), DEFAULT_PORT);
}

#[test]
fn flags_are_checked_too() {
    let error = |settings| {
        Config::resolve(None, &environment(&[]), settings)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(Settings {
            grace: Some(Duration::MAX),
            ..Settings::default()
        }),
        format!(
            "command line: `grace_ms` must be a whole number from 0 to 600000, not {}",
            u64::MAX
        )
    );
    assert_eq!(
        error(Settings {
            shards: Some(0),
            ..Settings::default()
        }),
        "command line: `shards` must be a whole number from 1 to 256, not 0"
    );
    assert!(
        error(Settings {
            allowed_origins: Some(vec!["app.example.org".into()]),
            ..Settings::default()
        })
        .contains("\"app.example.org\" is none")
    );
}

#[test]
fn the_data_directory_follows_xdg_only_if_absolute() {
    let data = |variables| {
        Config::resolve(None, &environment(variables), Settings::default())
            .unwrap()
            .data()
            .to_owned()
    };
    assert_eq!(data(&[("XDG_DATA_HOME", "/xdg")]), Path::new("/xdg/remus"));
    assert_eq!(
        data(&[("XDG_DATA_HOME", "xdg")]),
        Path::new("/home/ada/.local/share/remus")
    );
    assert_eq!(
        data(&[("REMUS_DATA", "/d"), ("XDG_DATA_HOME", "/xdg")]),
        Path::new("/d")
    );
    let nothing = Config::resolve(None, &|_| None, Settings::default());
    assert!(matches!(nothing, Err(ConfigError::NoDataDirectory)));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Some(Path::new("/no/such/remus.toml")), Settings::default());
    let text = error.unwrap_err().to_string();
    assert!(
        text.starts_with("cannot read the configuration /no/such/remus.toml: "),
        "{text}"
    );
    let (_directory, path) = file(&"#".repeat(2 << 20));
    let error = Config::load(Some(&path), Settings::default()).unwrap_err();
    assert!(error.to_string().ends_with("it is over 1 MiB"));
}

#[test]
fn yes_and_no_are_told_from_anything_else() {
    let blocked = |value: &'static str| {
        let environment = |name: &str| (name == "REMUS_BLOCK_UDP").then(|| value.into());
        let flags = Settings {
            data: Some("data".into()),
            ..Settings::default()
        };
        Config::resolve(None, &environment, flags).map(|config| config.block_udp())
    };
    for (text, expected) in [("true", true), ("1", true), ("false", false), ("0", false)] {
        assert_eq!(blocked(text).unwrap(), expected, "{text}");
    }
    assert_eq!(
        blocked("maybe").unwrap_err().to_string(),
        "environment: `REMUS_BLOCK_UDP` must be true or false, not \"maybe\""
    );
    assert!(message("block_udp = 1\n").ends_with("must be true or false, not a number"));
}
