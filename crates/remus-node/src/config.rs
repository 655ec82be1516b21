//! Settings of a node: defaults, then a TOML file, then the environment, then flags.
//!
//! Owns names, ranges and defaults of all settings, and where each value came from, so that an error says what to change.
//! Invariant: every value in a [`Config`] is within its range.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::net::{Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

mod file;

/// The port of a node unless another is given, for UDP and TCP alike.
pub const DEFAULT_PORT: u16 = 4433;

/// How long a stopping node waits for what it has accepted, unless told otherwise: long enough for an ordinary call, short
/// enough for a service manager, which kills after 90 s or so.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// Grace periods that make sense, in milliseconds. Nobody waits longer than ten minutes for a stop.
const GRACE_MS: RangeInclusive<u64> = 0..=600_000;

/// Shards that make sense: one for each core of a large machine.
const SHARDS: RangeInclusive<u64> = 1..=256;

/// Bytes of one stored file. The upper end is below 2^53, so that JavaScript reads it without loss.
const FILE_BYTES: RangeInclusive<u64> = 1..=1 << 50;

/// Transfers in one direction at a time.
const TRANSFERS: RangeInclusive<u64> = 1..=4096;

/// Origins that may be listed. The list is searched for each session that a browser opens.
const ORIGINS_MAX: usize = 256;

/// Names that may be listed here; the certificate adds those of the machine itself, up to 64 together.
const NAMES_MAX: usize = 60;

/// Largest configuration file. One with every setting is about 1 KiB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How much the node's file service takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLimits {
    /// Bytes of one file, at most; default 64 GiB, range 1 B to 1 PiB. What is above it is refused before it is written.
    pub max_file_bytes: u64,
    /// Uploads at a time; default 32, range 1 to 4,096. Each holds about 2 MiB of memory and one open file.
    pub max_uploads: usize,
    /// Downloads at a time; default 128, range 1 to 4,096. Each holds up to 3 MiB of memory and one open file.
    pub max_downloads: usize,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self {
            max_file_bytes: 64 << 30,
            max_uploads: 32,
            max_downloads: 128,
        }
    }
}

/// Settings from one source, such as the command line. What is `None` is left to the sources below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `data`, `REMUS_DATA`, `--data`: the directory that holds all of the node's state. Default `$XDG_DATA_HOME/remus`, or
    /// `~/.local/share/remus`.
    pub data: Option<PathBuf>,
    /// `listen`, `REMUS_LISTEN`, `--listen`: where the node listens, on UDP and TCP. Default `[::]:4433`, which takes IPv4 as
    /// well. Port 0 takes any free one.
    pub listen: Option<SocketAddr>,
    /// `block_udp`, `REMUS_BLOCK_UDP`, `--block-udp`: whether the node leaves UDP alone, so that clients come over TCP. Default
    /// no.
    pub block_udp: Option<bool>,
    /// `names`, `REMUS_NAMES` (separated by commas): DNS names and addresses in the node's certificate, beside `localhost` and
    /// the machine's own name. At most 60.
    pub names: Option<Vec<String>>,
    /// `allowed_origins`, `REMUS_ALLOWED_ORIGINS` (separated by commas): origins of web pages that may open sessions, such as
    /// `https://app.example.org`. Pages of the node itself always may. Default none else. At most 256.
    pub allowed_origins: Option<Vec<String>>,
    /// `grace_ms`, `REMUS_GRACE_MS`: how long a stopping node waits for calls that it has accepted. Default 10 s, range 0 to
    /// 10 min.
    pub grace: Option<Duration>,
    /// `shards`, `REMUS_SHARDS`: threads that serve connections. Default one for each core, range 1 to 256.
    pub shards: Option<usize>,
    /// `files.max_file_bytes`, `REMUS_FILES_MAX_FILE_BYTES`: see [`FileLimits::max_file_bytes`].
    pub max_file_bytes: Option<u64>,
    /// `files.max_uploads`, `REMUS_FILES_MAX_UPLOADS`: see [`FileLimits::max_uploads`].
    pub max_uploads: Option<usize>,
    /// `files.max_downloads`, `REMUS_FILES_MAX_DOWNLOADS`: see [`FileLimits::max_downloads`].
    pub max_downloads: Option<usize>,
}

/// A node's settings, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    data: PathBuf,
    listen: SocketAddr,
    block_udp: bool,
    names: Vec<String>,
    allowed_origins: Vec<String>,
    grace: Duration,
    shards: NonZeroUsize,
    files: FileLimits,
}

impl Config {
    /// The settings of this process: defaults, then `file`, then the environment, then `flags`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the setting, where it was set, and what is allowed.
    pub fn load(file: Option<&Path>, flags: Settings) -> Result<Self, ConfigError> {
        Self::resolve(file, &|name| env::var_os(name), flags)
    }

    /// The defaults, changed by `settings` alone.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn new(settings: Settings) -> Result<Self, ConfigError> {
        let of_data_directory = |name: &str| {
            DATA_DIRECTORY_VARIABLES
                .contains(&name)
                .then(|| env::var_os(name))
                .flatten()
        };
        Self::resolve(None, &of_data_directory, settings)
    }

    fn resolve(
        file: Option<&Path>,
        environment: &dyn Fn(&str) -> Option<OsString>,
        mut flags: Settings,
    ) -> Result<Self, ConfigError> {
        flags.check().map_err(|wrong| wrong.at(Origin::Flag))?;
        let mut settings = match file {
            Some(path) => file::parse(path, &read(path)?)?,
            None => Settings::default(),
        };
        settings.overlay(from_environment(environment)?);
        settings.overlay(flags);

        let defaults = FileLimits::default();
        Ok(Self {
            data: match settings.data {
                Some(data) => data,
                None => default_data_directory(environment).ok_or(ConfigError::NoDataDirectory)?,
            },
            listen: settings
                .listen
                .unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into()),
            block_udp: settings.block_udp.unwrap_or_default(),
            names: settings.names.unwrap_or_default(),
            allowed_origins: settings.allowed_origins.unwrap_or_default(),
            grace: settings.grace.unwrap_or(DEFAULT_GRACE),
            shards: settings
                .shards
                .and_then(NonZeroUsize::new)
                .unwrap_or_else(default_shards),
            files: FileLimits {
                max_file_bytes: settings.max_file_bytes.unwrap_or(defaults.max_file_bytes),
                max_uploads: settings.max_uploads.unwrap_or(defaults.max_uploads),
                max_downloads: settings.max_downloads.unwrap_or(defaults.max_downloads),
            },
        })
    }

    /// The directory that holds all of the node's state.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where the node listens, on UDP and TCP, or on TCP alone where [`Config::block_udp`] says so.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Whether it listens on TCP alone.
    #[must_use]
    pub fn block_udp(&self) -> bool {
        self.block_udp
    }

    /// Names in the certificate beside the machine's own.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Origins of web pages that may open sessions, beside the node's own.
    #[must_use]
    pub fn allowed_origins(&self) -> &[String] {
        &self.allowed_origins
    }

    /// How long a stopping node waits for what it has accepted.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Threads that serve connections.
    #[must_use]
    pub fn shards(&self) -> NonZeroUsize {
        self.shards
    }

    /// What the file service takes.
    #[must_use]
    pub fn files(&self) -> FileLimits {
        self.files
    }
}

/// The data directory of this machine's node, by the rules of [`Config::load`] without a file: `flag`, then `REMUS_DATA`, then
/// the default. Client commands find the local node's authority there.
///
/// # Errors
///
/// [`ConfigError::NoDataDirectory`].
pub fn data_directory(flag: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let environment = |name: &str| env::var_os(name);
    flag.map(Path::to_owned)
        .or_else(|| set(&environment, "REMUS_DATA").map(PathBuf::from))
        .or_else(|| default_data_directory(&environment))
        .ok_or(ConfigError::NoDataDirectory)
}

const DATA_DIRECTORY_VARIABLES: [&str; 3] = ["XDG_DATA_HOME", "HOME", "LOCALAPPDATA"];

fn default_data_directory(environment: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let [xdg, home, local] = DATA_DIRECTORY_VARIABLES;
    let directory = |name| set(environment, name).map(PathBuf::from);
    // The XDG specification: a relative path in the variable is to be ignored.
    let base = directory(xdg)
        .filter(|path| path.is_absolute())
        .or_else(|| directory(home).map(|home| home.join(".local").join("share")))
        .or_else(|| directory(local))?;
    Some(base.join("remus"))
}

fn default_shards() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// A variable that is set to something. Empty counts as not set, which is how a shell unsets for one command.
fn set(environment: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<OsString> {
    environment(name).filter(|value| !value.is_empty())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let error = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(error)?;
    file.take(FILE_BYTES_MAX.saturating_add(1))
        .read_to_string(&mut text)
        .map_err(error)?;
    if u64::try_from(text.len()).is_ok_and(|length| length <= FILE_BYTES_MAX) {
        Ok(text)
    } else {
        Err(error(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is over 1 MiB",
        )))
    }
}

/// One setting: its key in a file, and its variable in the environment.
struct Key {
    name: &'static str,
    variable: &'static str,
    put: fn(&mut Settings, Value) -> Result<(), String>,
}

/// Every setting there is.
const KEYS: [Key; 10] = [
    Key {
        name: "data",
        variable: "REMUS_DATA",
        put: |settings, value| {
            settings.data = Some(path(value)?);
            Ok(())
        },
    },
    Key {
        name: "listen",
        variable: "REMUS_LISTEN",
        put: |settings, value| {
            settings.listen = Some(address(&text(value)?)?);
            Ok(())
        },
    },
    Key {
        name: "block_udp",
        variable: "REMUS_BLOCK_UDP",
        put: |settings, value| {
            settings.block_udp = Some(truth(value)?);
            Ok(())
        },
    },
    Key {
        name: "names",
        variable: "REMUS_NAMES",
        put: |settings, value| {
            settings.names = Some(names(list(value)?)?);
            Ok(())
        },
    },
    Key {
        name: "allowed_origins",
        variable: "REMUS_ALLOWED_ORIGINS",
        put: |settings, value| {
            settings.allowed_origins = Some(origins(list(value)?)?);
            Ok(())
        },
    },
    Key {
        name: "grace_ms",
        variable: "REMUS_GRACE_MS",
        put: |settings, value| {
            settings.grace = Some(Duration::from_millis(number(value, &GRACE_MS)?));
            Ok(())
        },
    },
    Key {
        name: "shards",
        variable: "REMUS_SHARDS",
        put: |settings, value| {
            settings.shards = Some(count(value, &SHARDS)?);
            Ok(())
        },
    },
    Key {
        name: "files.max_file_bytes",
        variable: "REMUS_FILES_MAX_FILE_BYTES",
        put: |settings, value| {
            settings.max_file_bytes = Some(number(value, &FILE_BYTES)?);
            Ok(())
        },
    },
    Key {
        name: "files.max_uploads",
        variable: "REMUS_FILES_MAX_UPLOADS",
        put: |settings, value| {
            settings.max_uploads = Some(count(value, &TRANSFERS)?);
            Ok(())
        },
    },
    Key {
        name: "files.max_downloads",
        variable: "REMUS_FILES_MAX_DOWNLOADS",
        put: |settings, value| {
            settings.max_downloads = Some(count(value, &TRANSFERS)?);
            Ok(())
        },
    },
];

/// A value as a source gives it.
enum Value {
    /// From the environment, where everything is text.
    Variable(OsString),
    Text(String),
    Number(String),
    Truth(bool),
    List(Vec<String>),
    /// Something that no setting is; the text says what.
    Other(&'static str),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Variable(_) | Self::Text(_) => "text",
            Self::Number(_) => "a number",
            Self::Truth(_) => "true or false",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }
}

fn text(value: Value) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Variable(text) => text
            .into_string()
            .map_err(|_| "must be valid UTF-8".to_owned()),
        other => Err(format!("must be text in quotes, not {}", other.kind())),
    }
}

fn truth(value: Value) -> Result<bool, String> {
    match value {
        Value::Truth(truth) => Ok(truth),
        Value::Variable(_) => match text(value)?.as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(format!("must be true or false, not {other:?}")),
        },
        other => Err(format!("must be true or false, not {}", other.kind())),
    }
}

fn path(value: Value) -> Result<PathBuf, String> {
    let path = match value {
        // A path may hold what is no UTF-8.
        Value::Variable(path) => PathBuf::from(path),
        other => text(other)?.into(),
    };
    non_empty(&path)?;
    Ok(path)
}

fn non_empty(path: &Path) -> Result<(), String> {
    if path.as_os_str().is_empty() {
        return Err("must be a directory, not empty".to_owned());
    }
    Ok(())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("must be ADDRESS:PORT, such as [::]:4433 or 127.0.0.1:4433, not {text:?}")
    })
}

fn number(value: Value, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let digits = match value {
        Value::Number(digits) => digits,
        Value::Variable(_) => text(value)?,
        other => return Err(format!("must be a number, not {}", other.kind())),
    };
    match digits.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(out_of(range, &digits)),
    }
}

fn out_of(range: &RangeInclusive<u64>, found: &dyn fmt::Display) -> String {
    format!(
        "must be a whole number from {} to {}, not {found}",
        range.start(),
        range.end()
    )
}

fn count(value: Value, range: &RangeInclusive<u64>) -> Result<usize, String> {
    let number = number(value, range)?;
    usize::try_from(number).map_err(|_| out_of(range, &number))
}

fn list(value: Value) -> Result<Vec<String>, String> {
    match value {
        Value::List(items) => Ok(items),
        Value::Variable(_) => Ok(text(value)?
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()),
        other => Err(format!("must be a list of texts, not {}", other.kind())),
    }
}

/// Whether a name can stand in a certificate is for the certificate's maker to say; here is only that there are not too many.
fn names(names: Vec<String>) -> Result<Vec<String>, String> {
    if names.len() > NAMES_MAX {
        return Err(format!(
            "holds {} names, and a certificate takes {NAMES_MAX}",
            names.len()
        ));
    }
    Ok(names)
}

fn origins(origins: Vec<String>) -> Result<Vec<String>, String> {
    if origins.len() > ORIGINS_MAX {
        return Err(format!(
            "holds {} origins, and {ORIGINS_MAX} are allowed",
            origins.len()
        ));
    }
    origins.into_iter().map(|text| origin(&text)).collect()
}

/// An origin in the form in which browsers send it: scheme and host in lower case, no path. RFC 6454 §6.2.
fn origin(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let authority = lower
        .strip_prefix("https://")
        .or_else(|| lower.strip_prefix("http://"));
    let is_host = |authority: &str| {
        !authority.is_empty()
            && authority
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte))
    };
    if authority.is_some_and(is_host) {
        return Ok(lower);
    }
    Err(format!(
        "must hold origins such as https://app.example.org, without a path; {text:?} is none"
    ))
}

fn from_environment(
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    for key in &KEYS {
        if let Some(value) = set(environment, key.variable) {
            (key.put)(&mut settings, Value::Variable(value)).map_err(|problem| {
                ConfigError::Value {
                    key: key.variable,
                    origin: Origin::Environment,
                    problem,
                }
            })?;
        }
    }
    Ok(settings)
}

impl Settings {
    /// Takes over what `above` sets.
    fn overlay(&mut self, above: Self) {
        fn take<T>(below: &mut Option<T>, above: Option<T>) {
            if above.is_some() {
                *below = above;
            }
        }
        take(&mut self.data, above.data);
        take(&mut self.listen, above.listen);
        take(&mut self.block_udp, above.block_udp);
        take(&mut self.names, above.names);
        take(&mut self.allowed_origins, above.allowed_origins);
        take(&mut self.grace, above.grace);
        take(&mut self.shards, above.shards);
        take(&mut self.max_file_bytes, above.max_file_bytes);
        take(&mut self.max_uploads, above.max_uploads);
        take(&mut self.max_downloads, above.max_downloads);
    }

    /// Checks values that did not come through [`KEYS`], and brings them into their one form.
    fn check(&mut self) -> Result<(), Wrong> {
        let in_range = |key, value: Option<u64>, range: &RangeInclusive<u64>| match value {
            Some(value) if !range.contains(&value) => Err(Wrong {
                key,
                problem: out_of(range, &value),
            }),
            _ => Ok(()),
        };
        let wide =
            |value: Option<usize>| value.map(|value| u64::try_from(value).unwrap_or(u64::MAX));
        if let Some(data) = &self.data {
            non_empty(data).map_err(|problem| Wrong {
                key: "data",
                problem,
            })?;
        }
        if let Some(given) = self.names.take() {
            self.names = Some(names(given).map_err(|problem| Wrong {
                key: "names",
                problem,
            })?);
        }
        if let Some(given) = self.allowed_origins.take() {
            self.allowed_origins = Some(origins(given).map_err(|problem| Wrong {
                key: "allowed_origins",
                problem,
            })?);
        }
        let grace_ms = self
            .grace
            .map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        in_range("grace_ms", grace_ms, &GRACE_MS)?;
        in_range("shards", wide(self.shards), &SHARDS)?;
        in_range("files.max_file_bytes", self.max_file_bytes, &FILE_BYTES)?;
        in_range("files.max_uploads", wide(self.max_uploads), &TRANSFERS)?;
        in_range("files.max_downloads", wide(self.max_downloads), &TRANSFERS)
    }
}

struct Wrong {
    key: &'static str,
    problem: String,
}

impl Wrong {
    fn at(self, origin: Origin) -> ConfigError {
        ConfigError::Value {
            key: self.key,
            origin,
            problem: self.problem,
        }
    }
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// In a configuration file.
    #[expect(missing_docs, reason = "the names say it")]
    File { path: PathBuf, line: usize },
    /// In a variable of the environment.
    Environment,
    /// On the command line, or by the program that starts the node.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Environment => f.write_str("environment"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    Read { path: PathBuf, source: io::Error },
    /// The file is no TOML.
    #[error("{}, line {line}: {problem}", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    Syntax {
        path: PathBuf,
        line: usize,
        problem: String,
    },
    /// The file has a key that no setting has.
    #[error(
        "{}, line {line}: there is no setting `{key}`; {}",
        path.display(),
        suggestion(*nearest)
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    UnknownKey {
        path: PathBuf,
        line: usize,
        key: String,
        nearest: Option<&'static str>,
    },
    /// A value is not one that the setting takes.
    #[error("{origin}: `{key}` {problem}")]
    #[expect(missing_docs, reason = "the message names every field")]
    Value {
        key: &'static str,
        origin: Origin,
        problem: String,
    },
    /// Nothing says where the data directory is.
    #[error(
        "there is no home directory to keep the node's data in; choose a directory with --data or REMUS_DATA"
    )]
    NoDataDirectory,
}

fn suggestion(nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => {
            let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            format!("there are: {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
