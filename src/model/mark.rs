//! The bits of the mark that are ours, and how an id is written in them.

use std::fmt;

/// No node has more uplinks than this.
const ID_MAX: u32 = 255;

/// The field of the mark that is ours. Its top bit is D ("is sent out by"), the others hold the
/// id of an uplink, lowest bit first. The bits need not lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Field(u32);

impl Field {
    /// A field of at least two bits; none for fewer.
    pub(crate) fn new(mask: u32) -> Option<Self> {
        (mask.count_ones() >= 2).then_some(Self(mask))
    }

    pub(crate) fn mask(self) -> u32 {
        self.0
    }

    /// A mark that has exactly these bits of the field.
    pub(crate) fn matches(self, value: u32) -> MarkMatch {
        MarkMatch { value, mask: self.0 }
    }

    /// The bit D: the top bit of the field.
    pub(crate) fn d(self) -> u32 {
        1 << self.0.ilog2()
    }

    /// Whether any of these bits is one of the field's.
    pub(crate) fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// The mark of a look-up that asks main for routes to single addresses (iptables). A packet
    /// with this mark that comes in by an uplink turns round there; such a look-up has `iif lo`.
    pub(crate) fn ask(self) -> u32 {
        self.d() | self.of(1)
    }

    /// The mark of a pod's reply that is not bound: no rule of ours looks for it, as no uplink of a pod has the
    /// largest id.
    pub(crate) fn unbound(self) -> u32 {
        self.0
    }

    pub(crate) fn id_mask(self) -> u32 {
        self.0 & !self.d()
    }

    /// The largest id: how many uplinks can be told apart. Wide fields are not used up: each id
    /// claims a routing table.
    pub(crate) fn max_id(self) -> u32 {
        (u32::MAX >> (32 - self.id_mask().count_ones())).min(ID_MAX)
    }

    /// The mark that carries `id` (1 to [`Field::max_id`]).
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

/// What some bits of a mark are, or are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MarkMatch {
    pub(crate) value: u32,
    /// The bits that count.
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
