//! Priority of a message. Spec: message format §3.

/// How urgent a message is; higher is more urgent.
///
/// The top 3 bits are the class, the other 13 order messages within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u16);

impl Priority {
    /// Number of classes.
    pub const CLASSES: u8 = 8;
    /// Class 0: whenever nothing else is there to do.
    pub const BACKGROUND: Self = Self(0);
    /// Class 3: where a message belongs unless it says otherwise.
    pub const ORDINARY: Self = Self(3 << Self::CLASS_SHIFT);
    /// Class 6: what the High Priority flag marks.
    pub const HIGH: Self = Self(6 << Self::CLASS_SHIFT);
    /// Class 7: ahead of all others.
    pub const HIGHEST: Self = Self(7 << Self::CLASS_SHIFT);

    const CLASS_SHIFT: u32 = 13;
    const ORDER_MASK: u16 = (1 << Self::CLASS_SHIFT) - 1;

    /// The priority of this class and order; what exceeds 7 and 8191 counts as these.
    #[must_use]
    pub const fn new(class: u8, order: u16) -> Self {
        let class = if class < Self::CLASSES {
            class
        } else {
            Self::CLASSES - 1
        };
        let order = if order < Self::ORDER_MASK {
            order
        } else {
            Self::ORDER_MASK
        };
        // Widening, in a function that must be const.
        Self((class as u16) << Self::CLASS_SHIFT | order)
    }

    /// The class, 0 to 7.
    #[must_use]
    pub const fn class(self) -> u8 {
        let [high, _] = self.0.to_be_bytes();
        high >> 5
    }

    /// The order within the class, 0 to 8191.
    #[must_use]
    pub const fn order(self) -> u16 {
        self.0 & Self::ORDER_MASK
    }

    /// Whether the class is 6 or 7, which the High Priority flag marks.
    #[must_use]
    pub const fn is_high(self) -> bool {
        self.class() >= 6
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::ORDINARY
    }
}

impl From<u16> for Priority {
    fn from(value: u16) -> Self {
        Self(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_and_order_share_the_two_bytes() {
        assert_eq!(Priority::ORDINARY, Priority(0x6000));
        assert_eq!(Priority::HIGH, Priority(0xc000));
        assert_eq!(Priority::new(7, 8191), Priority(0xffff));
        assert_eq!(Priority::new(9, 9999), Priority(0xffff));
        for value in 0..=u16::MAX {
            let priority = Priority(value);
            assert_eq!(Priority::new(priority.class(), priority.order()), priority);
        }
    }
}
