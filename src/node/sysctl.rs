//! `src_valid_mark` of interfaces: the kernel's reverse path filter then judges by the mark.

use std::collections::BTreeMap;
use std::{env, fs};

use crate::error::{Error, absent_is_none};
use crate::model::{Facts, Link};
use crate::names;

/// The path of `src_valid_mark` of an interface.
fn path(name: &str) -> String {
    // A container's own /proc/sys is read-only.
    let proc = env::var(names::PROC_VARIABLE).unwrap_or_else(|_| "/proc".into());
    format!("{proc}/sys/net/ipv4/conf/{name}/src_valid_mark")
}

/// The value of each interface, by index.
pub(crate) fn src_valid_mark(links: &[Link]) -> Result<BTreeMap<u32, u32>, Error> {
    let mut found = BTreeMap::new();
    for link in links {
        let path = path(&link.name);
        // None: the interface went away since it was listed.
        let text = absent_is_none(fs::read_to_string(&path));
        let text = text.map_err(|source| Error::Sysctl { path, source })?;
        found.extend(text.map(|text| (link.index, text.trim().parse().unwrap_or(0))));
    }
    Ok(found)
}

/// Sets it, or sets it back.
pub(crate) fn set_src_valid_mark(facts: &Facts, link: u32, on: bool) -> Result<(), Error> {
    // An interface that has gone took its sysctls with it.
    let Some(link) = facts.link(link) else { return Ok(()) };
    let path = path(&link.name);
    let written = absent_is_none(fs::write(&path, if on { "1" } else { "0" }));
    written.map(drop).map_err(|source| Error::Sysctl { path, source })
}
