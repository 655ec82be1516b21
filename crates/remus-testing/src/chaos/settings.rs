//! What can be wrong with a network, for each protocol and direction.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use crate::Rng;

/// Longest delay and longest jitter; more counts as this much. Beyond it nobody waits, and what is on its way needs memory.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// Parts of a whole in which a [`Chance`] is kept.
const MILLION: u32 = 1_000_000;

/// A probability, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance(u32);

impl Chance {
    /// It does not happen.
    pub const NEVER: Self = Self(0);

    /// It happens each time.
    pub const ALWAYS: Self = Self(MILLION);

    /// So many in a million; more than all count as all.
    #[must_use]
    pub const fn per_million(parts: u32) -> Self {
        Self(if parts > MILLION { MILLION } else { parts })
    }

    /// So many in a hundred; more than all count as all.
    #[must_use]
    pub const fn percent(parts: u32) -> Self {
        Self::per_million(parts.saturating_mul(MILLION / 100))
    }

    /// The same in millionths, 0 to 1,000,000.
    #[must_use]
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// Whether it happens this time; takes one number from the generator, whatever the chance.
    pub(super) fn happens(self, rng: &mut Rng) -> bool {
        rng.chance(u64::from(self.0), u64::from(MILLION))
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / f64::from(MILLION / 100))
    }
}

/// A share such as `0.01`, or a percentage such as `1%`.
impl FromStr for Chance {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "a share from 0 to 1, such as 0.01, or a percentage, such as 1%";
        let (number, whole) = match text.strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text, 1.0),
        };
        let share = number.parse::<f64>().map_err(|_| EXPECTED)? / whole;
        if !(0.0..=1.0).contains(&share) {
            return Err(EXPECTED);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the share is from 0 to 1"
        )]
        let millionths = (share * f64::from(MILLION)).round() as u32;
        Ok(Self::per_million(millionths))
    }
}

/// Which of the two protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Connections.
    Tcp,
}

/// Which way something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

impl Direction {
    /// Both ways.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];
}

/// Conditions for datagrams in one direction. The default passes everything on at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Udp {
    /// How long each datagram is on its way, at most [`DELAY_MAX`].
    pub delay: Duration,
    /// What is added to the delay of each, from nothing to this much, each as likely; at most [`DELAY_MAX`]. It keeps the order, as a
    /// queue in a router does; [`Udp::reorder`] changes it.
    pub jitter: Duration,
    /// How many are lost.
    pub loss: Chance,
    /// How many arrive twice.
    pub duplicate: Chance,
    /// How many are overtaken by the next few: one to [`OVERTAKEN_BY_MAX`](super::OVERTAKEN_BY_MAX) of them, unless none come within
    /// [`REORDER_HOLD`](super::REORDER_HOLD).
    pub reorder: Chance,
    /// Bytes of payload a second that all flows together can send; `None` is no limit. What would wait longer than
    /// [`BACKLOG_MAX`](super::BACKLOG_MAX) for its turn is dropped.
    pub bandwidth: Option<NonZeroU64>,
    /// Whether everything vanishes without a word, what is on its way too.
    pub black_hole: bool,
}

/// Conditions for the bytes of connections in one direction. The default passes everything on at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// How long each byte is on its way, at most [`DELAY_MAX`]. No more than [`WINDOW_BYTES`](super::WINDOW_BYTES) of a connection are.
    pub delay: Duration,
    /// What is added to the delay of each piece that is read, from nothing to this much, each as likely; at most [`DELAY_MAX`].
    pub jitter: Duration,
    /// Bytes a second that all connections together can send; `None` is no limit. Beyond it nothing more is read.
    pub bandwidth: Option<NonZeroU64>,
    /// Whether nothing passes, the end of a connection neither. Nothing is lost by it, for TCP would send it again: when it is lifted,
    /// everything goes on. Upward it also keeps new connections from reaching the server.
    pub black_hole: bool,
}

/// The same thing for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways<T> {
    /// From the client to the server.
    pub up: T,
    /// From the server to the client.
    pub down: T,
}

impl<T> Ways<T> {
    /// That of one direction.
    #[must_use]
    pub const fn way(&self, direction: Direction) -> &T {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    /// That of one direction, to be changed.
    pub const fn way_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    /// Changes both.
    pub fn each(&mut self, mut change: impl FnMut(&mut T)) {
        change(&mut self.up);
        change(&mut self.down);
    }
}

/// All conditions at one time. The default passes everything on at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// For datagrams.
    pub udp: Ways<Udp>,
    /// For connections.
    pub tcp: Ways<Tcp>,
    /// Whether new connections are reset as soon as they are taken, as if nobody listened.
    pub refuse_tcp: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_read_as_shares_and_percentages() {
        for (text, millionths) in [
            ("0", 0),
            ("0%", 0),
            ("0.01", 10_000),
            ("1%", 10_000),
            ("0.5%", 5_000),
            ("0.000001", 1),
            ("1", 1_000_000),
            ("100%", 1_000_000),
        ] {
            let chance: Chance = text.parse().unwrap();
            assert_eq!(chance.millionths(), millionths, "{text}");
            assert_eq!(chance.to_string().parse(), Ok(chance), "{text}");
        }
        for text in ["", "%", "-0.1", "1.1", "101%", "NaN", "inf", "1 %", "half"] {
            text.parse::<Chance>().unwrap_err();
        }
        assert_eq!(Chance::percent(101), Chance::ALWAYS);
        assert_eq!(Chance::percent(u32::MAX), Chance::ALWAYS);
        assert_eq!(Chance::percent(3), Chance::per_million(30_000));
    }

    #[test]
    fn a_chance_takes_one_number_whatever_it_is() {
        for chance in [Chance::NEVER, Chance::percent(50), Chance::ALWAYS] {
            let (mut asked, mut other) = (Rng::new(1), Rng::new(1));
            chance.happens(&mut asked);
            other.next_u64();
            assert_eq!(asked.next_u64(), other.next_u64());
        }
        let mut rng = Rng::new(2);
        assert!((0..1000).all(|_| Chance::ALWAYS.happens(&mut rng)));
        assert!((0..1000).all(|_| !Chance::NEVER.happens(&mut rng)));
    }
}
