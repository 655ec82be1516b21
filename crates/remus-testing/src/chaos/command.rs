//! Conditions as text, for people: `udp down loss 1%`, `tcp reset`.

use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use super::settings::{Chance, DELAY_MAX, Direction, Protocol, Settings};

/// Something to do to a proxy while it runs.
///
/// As text: `[udp|tcp] [up|down] NAME VALUE`, `[udp|tcp] reset`, or `clear`. What is left out means both. Names and values:
///
/// | name | value | for |
/// | --- | --- | --- |
/// | `delay`, `jitter` | a time: `20ms`, `1.5s`, `250us` | both |
/// | `loss`, `duplicate`, `reorder` | a share or percentage: `0.01`, `1%` | UDP |
/// | `bandwidth` | bits a second: `512kbit`, `10mbit`, `1gbit`; or `off` | both |
/// | `blackhole` | `on` or `off` | both |
/// | `refuse` | `on` or `off`; no direction | TCP |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// One condition becomes another.
    Change(Change),
    /// Flows are forgotten, or connections reset; `None` is both.
    Reset(Option<Protocol>),
    /// Everything passes at once again.
    Clear,
}

impl Command {
    /// Changes conditions as it says. A reset changes none: it is something that happens to a proxy that runs.
    pub fn apply(self, settings: &mut Settings) {
        match self {
            Self::Change(change) => {
                let Change {
                    protocol,
                    direction,
                    setting,
                } = change;
                setting.apply(settings, protocol, direction);
            }
            Self::Reset(_) => {}
            Self::Clear => *settings = Settings::default(),
        }
    }
}

/// Which condition becomes what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// `None` is every protocol that has such a condition.
    pub protocol: Option<Protocol>,
    /// `None` is both.
    pub direction: Option<Direction>,
    /// The condition with its new value.
    pub setting: Setting,
}

/// A condition with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the fields of `Udp` and `Tcp`")]
pub enum Setting {
    Delay(Duration),
    Jitter(Duration),
    Loss(Chance),
    Duplicate(Chance),
    Reorder(Chance),
    Bandwidth(Option<NonZeroU64>),
    BlackHole(bool),
    /// [`Settings::refuse_tcp`].
    Refuse(bool),
}

impl Setting {
    /// Of which protocol alone it is a condition.
    const fn only_of(self) -> Option<Protocol> {
        match self {
            Self::Loss(_) | Self::Duplicate(_) | Self::Reorder(_) => Some(Protocol::Udp),
            Self::Refuse(_) => Some(Protocol::Tcp),
            Self::Delay(_) | Self::Jitter(_) | Self::Bandwidth(_) | Self::BlackHole(_) => None,
        }
    }

    /// Sets it for a protocol and a direction, or for all.
    fn apply(
        self,
        settings: &mut Settings,
        protocol: Option<Protocol>,
        direction: Option<Direction>,
    ) {
        for way in Direction::BOTH {
            if direction.is_some_and(|only| only != way) {
                continue;
            }
            if protocol != Some(Protocol::Tcp) {
                let udp = settings.udp.way_mut(way);
                match self {
                    Self::Delay(value) => udp.delay = value,
                    Self::Jitter(value) => udp.jitter = value,
                    Self::Loss(value) => udp.loss = value,
                    Self::Duplicate(value) => udp.duplicate = value,
                    Self::Reorder(value) => udp.reorder = value,
                    Self::Bandwidth(value) => udp.bandwidth = value,
                    Self::BlackHole(value) => udp.black_hole = value,
                    Self::Refuse(_) => {}
                }
            }
            if protocol != Some(Protocol::Udp) {
                let tcp = settings.tcp.way_mut(way);
                match self {
                    Self::Delay(value) => tcp.delay = value,
                    Self::Jitter(value) => tcp.jitter = value,
                    Self::Bandwidth(value) => tcp.bandwidth = value,
                    Self::BlackHole(value) => tcp.black_hole = value,
                    Self::Refuse(value) => settings.refuse_tcp = value,
                    Self::Loss(_) | Self::Duplicate(_) | Self::Reorder(_) => {}
                }
            }
        }
    }
}

/// Why a text is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// A word that means nothing here.
    #[error(
        "`{0}` is no command; it could be delay, jitter, loss, duplicate, reorder, bandwidth, blackhole, refuse, reset or clear"
    )]
    Unknown(String),
    /// There is no name, or no value.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// There are more words than the command has.
    #[error("`{0}` is too much")]
    TooMuch(String),
    /// The value is none.
    #[error("`{value}` is no value for {name}; it takes {expected}")]
    #[expect(missing_docs, reason = "the message names every field")]
    Value {
        name: &'static str,
        value: String,
        expected: &'static str,
    },
    /// TCP repairs it before anybody sees it, or UDP has no connections.
    #[error("{0} is a condition of {1} alone")]
    NotOf(&'static str, &'static str),
    /// It has no direction.
    #[error("{0} has no direction")]
    NoDirection(&'static str),
}

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split_whitespace().peekable();
        let protocol = words.next_if(|word| matches!(*word, "udp" | "tcp"));
        let protocol = protocol.map(|word| match word {
            "udp" => Protocol::Udp,
            _ => Protocol::Tcp,
        });
        let direction = words.next_if(|word| matches!(*word, "up" | "down"));
        let direction = direction.map(|word| match word {
            "up" => Direction::Up,
            _ => Direction::Down,
        });
        let name = words.next().ok_or(CommandError::Missing("the command"))?;
        let command = match name {
            "reset" if direction.is_some() => return Err(CommandError::NoDirection("reset")),
            "reset" => Self::Reset(protocol),
            "clear" if protocol.is_none() && direction.is_none() => Self::Clear,
            _ => {
                let setting = setting(name, words.next())?;
                match (setting.only_of(), protocol) {
                    (Some(Protocol::Udp), Some(Protocol::Tcp)) => {
                        return Err(CommandError::NotOf("that", "UDP"));
                    }
                    (Some(Protocol::Tcp), Some(Protocol::Udp)) => {
                        return Err(CommandError::NotOf("that", "TCP"));
                    }
                    _ => {}
                }
                if matches!(setting, Setting::Refuse(_)) && direction.is_some() {
                    return Err(CommandError::NoDirection("refuse"));
                }
                Self::Change(Change {
                    protocol,
                    direction,
                    setting,
                })
            }
        };
        match words.next() {
            None => Ok(command),
            Some(word) => Err(CommandError::TooMuch(word.to_owned())),
        }
    }
}

fn setting(name: &str, value: Option<&str>) -> Result<Setting, CommandError> {
    // The name that messages use, with what makes the setting of its value.
    type Read = fn(&str) -> Result<Setting, &'static str>;
    let (name, read): (&'static str, Read) = match name {
        "delay" => ("delay", |value| time(value).map(Setting::Delay)),
        "jitter" => ("jitter", |value| time(value).map(Setting::Jitter)),
        "loss" => ("loss", |value| value.parse().map(Setting::Loss)),
        "duplicate" => ("duplicate", |value| value.parse().map(Setting::Duplicate)),
        "reorder" => ("reorder", |value| value.parse().map(Setting::Reorder)),
        "bandwidth" => ("bandwidth", |value| {
            bandwidth(value).map(Setting::Bandwidth)
        }),
        "blackhole" => ("blackhole", |value| switch(value).map(Setting::BlackHole)),
        "refuse" => ("refuse", |value| switch(value).map(Setting::Refuse)),
        unknown => return Err(CommandError::Unknown(unknown.to_owned())),
    };
    let value = value.ok_or(CommandError::Missing("the value"))?;
    read(value).map_err(|expected| CommandError::Value {
        name,
        value: value.to_owned(),
        expected,
    })
}

fn switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off"),
    }
}

/// The number in front of a unit, and the unit.
fn quantity(text: &str) -> Option<(f64, &str)> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at_checked(unit_at)?;
    let number: f64 = number.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some((number, unit))
}

fn time(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a time up to 60 s, such as 20ms, 1.5s or 250us";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (number, unit) = quantity(text).ok_or(EXPECTED)?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        _ => return Err(EXPECTED),
    };
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| *time <= DELAY_MAX)
        .ok_or(EXPECTED)
}

/// Bits a second as people say them, in bytes.
fn bandwidth(text: &str) -> Result<Option<NonZeroU64>, &'static str> {
    const EXPECTED: &str =
        "bits a second, such as 512kbit, 10mbit or 1gbit, at least 8 and at most 1000gbit, or off";
    if text == "off" {
        return Ok(None);
    }
    let (number, unit) = quantity(text).ok_or(EXPECTED)?;
    let bits = match unit {
        "bit" => number,
        "kbit" => number * 1e3,
        "mbit" => number * 1e6,
        "gbit" => number * 1e9,
        _ => return Err(EXPECTED),
    };
    if bits > 1e12 {
        return Err(EXPECTED);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to 10^12"
    )]
    let bytes = (bits / 8.0) as u64;
    NonZeroU64::new(bytes).map(Some).ok_or(EXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(commands: &[&str]) -> Settings {
        let mut settings = Settings::default();
        for text in commands {
            text.parse::<Command>().unwrap().apply(&mut settings);
        }
        settings
    }

    #[test]
    fn what_is_left_out_means_both() {
        let mut expected = Settings::default();
        expected
            .udp
            .each(|udp| udp.delay = Duration::from_millis(20));
        expected
            .tcp
            .each(|tcp| tcp.delay = Duration::from_millis(20));
        expected.tcp.down.jitter = Duration::from_micros(1500);
        expected.udp.up.black_hole = true;
        expected.tcp.up.black_hole = true;
        expected.udp.each(|udp| udp.loss = Chance::percent(1));
        expected.udp.down.reorder = Chance::per_million(5000);
        expected.udp.each(|udp| udp.duplicate = Chance::percent(2));
        expected
            .tcp
            .each(|tcp| tcp.bandwidth = NonZeroU64::new(1_250_000));
        expected.refuse_tcp = true;
        let commands = [
            "delay 20ms",
            "tcp down jitter 1.5ms",
            "up blackhole on",
            "loss 1%",
            "udp down reorder 0.005",
            "udp duplicate 2%",
            "tcp bandwidth 10mbit",
            "refuse on",
        ];
        assert_eq!(settings(&commands), expected);
        let back = [
            "delay 0",
            "jitter 0s",
            "blackhole off",
            "loss 0",
            "reorder 0",
            "duplicate 0%",
            "bandwidth off",
            "tcp refuse off",
        ];
        assert_eq!(
            settings(&[&commands[..], &back[..]].concat()),
            Settings::default()
        );
    }

    #[test]
    fn commands_without_a_value() {
        assert_eq!("udp reset".parse(), Ok(Command::Reset(Some(Protocol::Udp))));
        assert_eq!(
            " tcp  reset ".parse(),
            Ok(Command::Reset(Some(Protocol::Tcp)))
        );
        assert_eq!("reset".parse(), Ok(Command::Reset(None)));
        assert_eq!("clear".parse(), Ok(Command::Clear));
    }

    #[test]
    fn values_have_units() {
        for (text, time) in [
            ("250us", Duration::from_micros(250)),
            ("1.5s", Duration::from_millis(1500)),
            ("60s", DELAY_MAX),
        ] {
            let setting = Setting::Delay(time);
            let change = Change {
                protocol: None,
                direction: None,
                setting,
            };
            let command = format!("delay {text}").parse();
            assert_eq!(command, Ok(Command::Change(change)), "{text}");
        }
        for (text, bytes) in [("8bit", 1), ("512kbit", 64_000), ("1gbit", 125_000_000)] {
            assert_eq!(bandwidth(text), Ok(NonZeroU64::new(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, message) in [
            ("", "the command is missing"),
            ("udp", "the command is missing"),
            ("udp loss", "the value is missing"),
            ("udp loss 1% 2%", "`2%` is too much"),
            ("udp reset now", "`now` is too much"),
            ("udp up reset", "reset has no direction"),
            ("up refuse on", "refuse has no direction"),
            ("tcp loss 1%", "that is a condition of UDP alone"),
            ("udp refuse on", "that is a condition of TCP alone"),
            (
                "blackhole yes",
                "`yes` is no value for blackhole; it takes on or off",
            ),
        ] {
            let error = text.parse::<Command>().unwrap_err();
            assert_eq!(error.to_string(), message, "{text}");
        }
        for text in [
            "sctp loss 1%",
            "udp clear",
            "delay 20",
            "delay ms",
            "delay -1s",
            "delay 61s",
            "delay 1h",
            "delay 1e400s",
            "loss 2",
            "bandwidth 0kbit",
            "bandwidth 7bit",
            "bandwidth 1001gbit",
            "bandwidth on",
        ] {
            text.parse::<Command>().unwrap_err();
        }
    }
}
