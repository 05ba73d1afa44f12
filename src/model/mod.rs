//! Plain values that all parts of the program use: facts about a node, and the bits of the mark.

mod facts;
mod mark;
mod netfilter;

pub(crate) use facts::*;
pub(crate) use mark::{Field, MarkMatch};
pub(crate) use netfilter::*;
