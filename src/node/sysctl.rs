//! `src_valid_mark` of interfaces: the kernel's reverse path filter then judges by the mark.

use std::collections::BTreeMap;
use std::io;
use std::{env, fs};

use crate::error::Error;
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
        match fs::read_to_string(&path) {
            Ok(text) => drop(found.insert(link.index, text.trim().parse().unwrap_or(0))),
            // The interface went away since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Sysctl { path, source }),
        }
    }
    Ok(found)
}

/// Sets it, or sets it back.
pub(crate) fn set_src_valid_mark(facts: &Facts, link: u32, on: bool) -> Result<(), Error> {
    // An interface that has gone took its sysctls with it.
    let Some(link) = facts.link(link) else {
        return Ok(());
    };
    let path = path(&link.name);
    match fs::write(&path, if on { "1" } else { "0" }) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Sysctl { path, source })
        }
        _ => Ok(()),
    }
}
