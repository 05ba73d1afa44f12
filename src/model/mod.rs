//! Plain values that every part speaks of: what a node looks like, and our bits of the mark.

mod facts;
mod mark;
mod netfilter;

pub(crate) use facts::*;
pub(crate) use mark::{Field, MarkMatch};
pub(crate) use netfilter::*;
