//! Patterns that name uplinks: `auto`, `eth0`, `eth*`, `!eth2`.

use std::fmt;

use wildmatch::WildMatch;

/// One entry of `uplinks`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Pattern {
    /// The interfaces that lead outside, by what the node looks like.
    Auto,
    /// Interfaces of this name, or matching this glob (`*` and `?`).
    Name(String),
    /// Leave these out, whatever else names them.
    Not(String),
}

impl Pattern {
    /// Whether a name fits a name or glob.
    pub(crate) fn fits(glob: &str, name: &str) -> bool {
        WildMatch::new(glob).matches(name)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Name(glob) => f.write_str(glob),
            Self::Not(glob) => write!(f, "!{glob}"),
        }
    }
}
