//! The field: symroute's bits of the mark, and how they hold an id.

use std::fmt;

/// Maximum id, and so the maximum number of uplinks.
const ID_MAX: u32 = 255;

/// symroute's bits of the mark. The top bit is D ("is sent out through"). The others hold the id of
/// an uplink, lowest bit first. The bits need not be adjacent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Field(u32);

impl Field {
    /// A field of these bits; `None` for fewer than two bits.
    pub(crate) fn new(mask: u32) -> Option<Self> {
        (mask.count_ones() >= 2).then_some(Self(mask))
    }

    pub(crate) fn mask(self) -> u32 {
        self.0
    }

    /// Matches marks whose field equals `value`.
    pub(crate) fn matches(self, value: u32) -> MarkMatch {
        MarkMatch { value, mask: self.0 }
    }

    /// Bit D: the top bit of the field.
    pub(crate) fn d(self) -> u32 {
        1 << self.0.ilog2()
    }

    /// Whether any of `bits` belongs to the field.
    pub(crate) fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// Packet mark of the look-up that asks main for a route to a single address (iptables). The
    /// look-up has `iif lo`; a packet with this mark that arrives on an uplink turns round there.
    pub(crate) fn ask_mark(self) -> u32 {
        self.d() | self.of(1)
    }

    /// Packet mark of a pod's reply that is not bound: all bits of the field. No rule of symroute
    /// matches it, because no uplink of a pod has the largest id.
    pub(crate) fn unbound_mark(self) -> u32 {
        self.0
    }

    /// Bits of the field that hold the id.
    pub(crate) fn id_mask(self) -> u32 {
        self.0 & !self.d()
    }

    /// The largest id. Wide fields are not used up, because each id claims a routing table.
    pub(crate) fn max_id(self) -> u32 {
        (u32::MAX >> (32 - self.id_mask().count_ones())).min(ID_MAX)
    }

    /// The mark that carries `id`, which is 1 to [`Field::max_id`].
    pub(crate) fn of(self, id: u32) -> u32 {
        self.id_bits()
            .enumerate()
            .fold(0, |mark, (n, bit)| mark | if id >> n & 1 == 1 { bit } else { 0 })
    }

    /// The id that a mark carries; 0 for none.
    pub(crate) fn id(self, mark: u32) -> u32 {
        self.id_bits().enumerate().fold(0, |id, (n, bit)| id | u32::from(mark & bit != 0) << n)
    }

    /// The bits of the id, lowest first.
    fn id_bits(self) -> impl Iterator<Item = u32> {
        let mask = self.id_mask();
        (0..32).map(|n| 1 << n).filter(move |bit| mask & bit != 0)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A value of some bits of a mark, to match or to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MarkMatch {
    pub(crate) value: u32,
    /// The bits to compare or to set.
    pub(crate) mask: u32,
}

impl fmt::Display for MarkMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_field() {
        let field = Field::new(0x1f00).unwrap();
        assert_eq!((field.d(), field.id_mask(), field.max_id()), (0x1000, 0x0f00, 15));
        assert_eq!((field.of(1), field.of(15), field.id(0x1200)), (0x100, 0xf00, 2));
        assert_eq!((Field::new(0x100), Field::new(0)), (None, None));
    }

    proptest! {
        #[test]
        fn an_id_survives_any_field(mask: u32, id: u32) {
            prop_assume!(mask.count_ones() >= 2);
            let field = Field::new(mask).unwrap();
            let id = id.min(field.max_id());
            prop_assert_eq!(field.id(field.of(id) | field.d() | !mask), id);
            prop_assert_eq!(field.of(id) & !field.id_mask(), 0);
        }
    }
}
