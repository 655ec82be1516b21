//! Times and errors, counted, and how they are told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use remus::{Error, ErrorCode};
use serde::Serialize;

use crate::failure::{Failure, Outcome, Stop};
use crate::output::Paint;

/// Times that are told apart: 1 ns to an hour, each to one part in a thousand.
const TIME_NS_MAX: u64 = 3_600_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// How long things took. About 300 KiB, whatever their number.
#[derive(Clone, Debug)]
pub(super) struct Times(Histogram<u64>);

impl Times {
    pub(super) fn new() -> Outcome<Self> {
        Histogram::new_with_bounds(1, TIME_NS_MAX, SIGNIFICANT_DIGITS)
            .map(Self)
            .map_err(|error| {
                Stop::from(Failure::new(
                    ErrorCode::INTERNAL,
                    format!("there is no histogram: {error}"),
                ))
            })
    }

    pub(super) fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos);
    }

    /// The time from `begin` to `end`; none where they are the other way round.
    pub(super) fn add_between(&mut self, begin: Instant, end: Instant) {
        self.add(end.saturating_duration_since(begin));
    }

    /// Adds all of `other`.
    pub(super) fn join(&mut self, other: &Self) {
        // Both have the same bounds, so that everything fits.
        let _ = self.0.add(&other.0);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// `None` where nothing was measured.
    pub(super) fn percentiles(&self) -> Option<Percentiles> {
        (!self.0.is_empty()).then(|| {
            let at = |quantile| micros(self.0.value_at_quantile(quantile));
            Percentiles {
                min: micros(self.0.min()),
                mean: (self.0.mean() / 10.0).round() / 100.0,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                max: micros(self.0.max()),
            }
        })
    }
}

/// In µs, to a hundredth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Percentiles {
    /// The ones that people look at.
    pub(super) fn text(&self) -> String {
        let Self {
            p50,
            p90,
            p99,
            p99_9,
            max,
            ..
        } = *self;
        format!(
            "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
            time(p50),
            time(p90),
            time(p99),
            time(p99_9),
            time(max)
        )
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "below 2^53 ns, and three digits of it count"
)]
fn micros(nanos: u64) -> f64 {
    (nanos as f64 / 10.0).round() / 100.0
}

/// A time in µs, for people: three digits and the unit that fits.
pub(super) fn time(micros: f64) -> String {
    match micros {
        us if us < 10.0 => format!("{us:.2} µs"),
        us if us < 100.0 => format!("{us:.1} µs"),
        us if us < 1e3 => format!("{us:.0} µs"),
        us if us < 1e4 => format!("{:.2} ms", us / 1e3),
        us if us < 1e5 => format!("{:.1} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Operations that failed, by their code.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<u32, (u64, Option<Error>)>);

impl Tally {
    pub(super) fn add(&mut self, error: Error) {
        let entry = self.0.entry(error.code().0).or_default();
        entry.0 = entry.0.saturating_add(1);
        entry.1.get_or_insert(error);
    }

    /// An error of the kind that was met most often.
    pub(super) fn most_frequent(&self) -> Option<Failure> {
        let (_, error) = self.0.values().max_by_key(|(count, _)| *count)?;
        error.clone().map(Failure::from)
    }

    /// Numbers by names, for programs.
    pub(super) fn by_name(&self) -> BTreeMap<String, u64> {
        self.0
            .iter()
            .map(|(code, (count, _))| (ErrorCode(*code).to_string(), *count))
            .collect()
    }

    fn text(&self) -> String {
        let by_name = self.by_name();
        if by_name.is_empty() {
            return "none".to_owned();
        }
        let one = |(name, count): (&String, &u64)| format!("{count} {name}");
        by_name.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// So many a second; 0 where no time passed.
#[expect(
    clippy::cast_precision_loss,
    reason = "a number of operations or bytes to three digits"
)]
pub(super) fn per_second(count: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 {
        (count as f64 / seconds * 10.0).round() / 10.0
    } else {
        0.0
    }
}

/// A rate of bytes, for people.
pub(super) fn bytes_per_second(rate: f64) -> String {
    match rate {
        rate if rate < 1e3 => format!("{rate:.0} B/s"),
        rate if rate < 1e6 => format!("{:.1} kB/s", rate / 1e3),
        rate if rate < 1e9 => format!("{:.1} MB/s", rate / 1e6),
        rate => format!("{:.2} GB/s", rate / 1e9),
    }
}

/// A number, for people: its digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate of operations, for people.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is positive and below 10 billion"
)]
pub(super) fn grouped_rate(rate: f64) -> String {
    if rate < 100.0 {
        format!("{rate:.1}")
    } else {
        grouped(rate as u64)
    }
}

/// The table for people: a line for each thing, with its name before it.
pub(super) struct Table<'a> {
    text: String,
    paint: &'a Paint,
}

impl<'a> Table<'a> {
    pub(super) fn new(title: &str, paint: &'a Paint) -> Self {
        let strong = paint.strong;
        Self {
            text: format!("{strong}{title}{strong:#}\n"),
            paint,
        }
    }

    pub(super) fn line(mut self, name: &str, value: &str) -> Self {
        let faint = self.paint.faint;
        let _ = writeln!(self.text, "  {faint}{name:<10}{faint:#} {value}");
        self
    }

    pub(super) fn times(self, name: &str, times: Option<Percentiles>) -> Self {
        match times {
            Some(times) => self.line(name, &times.text()),
            None => self,
        }
    }

    pub(super) fn errors(self, tally: &Tally) -> Self {
        self.line("errors", &tally.text())
    }

    pub(super) fn text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_with_three_digits() {
        for (micros, text) in [
            (0.75, "0.75 µs"),
            (85.31, "85.3 µs"),
            (853.1, "853 µs"),
            (1_234.0, "1.23 ms"),
            (12_345.0, "12.3 ms"),
            (123_456.0, "123 ms"),
            (12_345_678.0, "12.35 s"),
        ] {
            assert_eq!(time(micros), text);
        }
    }

    #[test]
    fn numbers_and_rates_are_told_in_groups() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(grouped_rate(12.34), "12.3");
        assert_eq!(grouped_rate(123_456.7), "123,456");
        assert_eq!(bytes_per_second(12.0), "12 B/s");
        assert_eq!(bytes_per_second(12_345_678.0), "12.3 MB/s");
        assert_eq!(per_second(5, Duration::from_secs(2)), 2.5);
        assert_eq!(per_second(5, Duration::ZERO), 0.0);
    }

    #[test]
    fn percentiles_are_those_of_what_was_added() {
        let mut times = Times::new().unwrap();
        assert_eq!(times.percentiles(), None);
        for us in 1..=1000 {
            times.add(Duration::from_micros(us));
        }
        let told = times.percentiles().unwrap();
        assert!((told.p50 - 500.0).abs() < 1.0, "{told:?}");
        assert!((told.p99_9 - 999.0).abs() < 1.0, "{told:?}");
        assert!((told.max - 1000.0).abs() < 1.0, "{told:?}");
        times.add(Duration::from_secs(10_000));
        assert!(times.percentiles().unwrap().max >= 3_600_000_000.0);
    }

    #[test]
    fn errors_are_counted_by_code() {
        let mut tally = Tally::default();
        assert_eq!(tally.text(), "none");
        assert_eq!(tally.most_frequent(), None);
        tally.add(Error::unavailable("one"));
        for _ in 0..2 {
            tally.add(Error::deadline_exceeded("two"));
        }
        assert_eq!(tally.text(), "2 DEADLINE_EXCEEDED, 1 UNAVAILABLE");
        let failure = tally.most_frequent().unwrap();
        assert_eq!(failure.code(), ErrorCode::DEADLINE_EXCEEDED);
    }
}
