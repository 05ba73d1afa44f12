//! Patterns that name uplinks: `auto`, `eth0`, `eth*`, `!eth2`.

use std::fmt;

use wildmatch::WildMatch;

/// One entry of `uplinks`: a pattern of interface names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Pattern {
    /// The interfaces that the plugin finds to lead outside.
    Auto,
    /// Interfaces with this name, or that match this glob (`*` and `?`).
    Name(String),
    /// Interfaces to leave out, even if another entry names them.
    Not(String),
}

impl Pattern {
    /// Whether an interface name matches a name or glob.
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
