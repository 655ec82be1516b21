//! The time budget of a message. Spec: message format §3.

use core::time::Duration;

/// The time that is left for a message when it is sent: a unit in the top 2 bits, a value in the low 14.
///
/// Units: 0 is 1 ms, 1 is 100 ms, 2 is 1 s, 3 is 1 min, so the longest is 16383 min (11 days). A receiver counts it down
/// from arrival; clocks are not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ttl(pub u16);

impl Ttl {
    /// No limit.
    pub const NONE: Self = Self(0);
    /// A budget that is spent: value 0 of a unit other than ms, because value 0 of that says "no limit".
    pub const SPENT: Self = Self(1 << Self::UNIT_SHIFT);
    /// The longest budget that can be stated: 16383 min.
    pub const MAX: Self = Self(u16::MAX);

    const UNIT_SHIFT: u32 = 14;
    const VALUE_MASK: u16 = (1 << Self::UNIT_SHIFT) - 1;
    /// What one of each unit is, in ms.
    const UNITS_MS: [(u16, u32); 4] = [(0, 1), (1, 100), (2, 1_000), (3, 60_000)];

    /// The shortest budget that can be stated and is not less than `budget`, in the finest unit that holds it.
    ///
    /// Zero gives [`Ttl::SPENT`], what exceeds [`Ttl::MAX`] gives that.
    #[must_use]
    pub fn from_duration(budget: Duration) -> Self {
        if budget.is_zero() {
            return Self::SPENT;
        }
        let millis = budget.as_nanos().div_ceil(1_000_000);
        for (unit, unit_ms) in Self::UNITS_MS {
            match u16::try_from(millis.div_ceil(unit_ms.into())) {
                Ok(value) if value <= Self::VALUE_MASK => {
                    return Self(unit << Self::UNIT_SHIFT | value);
                }
                _ => {}
            }
        }
        Self::MAX
    }

    /// As [`from_duration`](Self::from_duration); `None` gives [`Ttl::NONE`].
    #[must_use]
    pub fn from_option(budget: Option<Duration>) -> Self {
        budget.map_or(Self::NONE, Self::from_duration)
    }

    /// The budget, or `None` where there is no limit.
    #[must_use]
    pub const fn to_duration(self) -> Option<Duration> {
        if self.0 == 0 {
            return None;
        }
        let unit_ms: u64 = match self.0 >> Self::UNIT_SHIFT {
            0 => 1,
            1 => 100,
            2 => 1_000,
            _ => 60_000,
        };
        // Widening, in a function that must be const.
        Some(Duration::from_millis(
            (self.0 & Self::VALUE_MASK) as u64 * unit_ms,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn rounds_up_to_what_can_be_stated() {
        let cases = [
            (ms(1), 0x0001),
            (Duration::from_nanos(1), 0x0001),
            (ms(16_383), 0x3fff),
            (ms(16_384), 0x4000 | 164),
            (ms(1_638_300), 0x7fff),
            (ms(1_638_301), 0x8000 | 1_639),
            (Duration::from_secs(16_383), 0xbfff),
            (Duration::from_secs(16_384), 0xc000 | 274),
            (Duration::from_secs(16_383 * 60), 0xffff),
            (Duration::MAX, 0xffff),
            (Duration::ZERO, 0x4000),
        ];
        for (budget, wire) in cases {
            assert_eq!(Ttl::from_duration(budget), Ttl(wire), "{budget:?}");
        }
        assert_eq!(Ttl::from_option(None), Ttl::NONE);
    }

    #[test]
    fn every_value_is_a_budget_and_comes_back_no_shorter() {
        assert_eq!(Ttl::NONE.to_duration(), None);
        for wire in 1..=u16::MAX {
            let budget = Ttl(wire).to_duration().unwrap();
            assert_eq!(
                Ttl::from_duration(budget).to_duration(),
                Some(budget),
                "{wire:#06x}"
            );
        }
    }
}
