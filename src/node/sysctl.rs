//! Sysctls of the kernel's reverse path filter: `rp_filter`, and `src_valid_mark`, with which it
//! uses the packet mark.

use std::collections::BTreeMap;
use std::{env, fs};

use crate::error::{Error, absent_is_none};
use crate::model::{Facts, Link, RpFilter};
use crate::names;

const RP_FILTER: &str = "rp_filter";
const SRC_VALID_MARK: &str = "src_valid_mark";

/// Path of an IPv4 setting of an interface.
fn path(name: &str, setting: &str) -> String {
    format!("{}/ipv4/conf/{name}/{setting}", folder())
}

/// The folder of the kernel's network settings.
fn folder() -> String {
    // A container's own /proc/sys is read-only.
    let proc = env::var(names::PROC_VARIABLE).unwrap_or_else(|_| "/proc".into());
    format!("{proc}/sys/net")
}

/// Value of a setting, by its path below `net`; none if it can't be read.
pub(crate) fn value(path: &str) -> Option<u32> {
    fs::read_to_string(format!("{}/{path}", folder())).ok()?.trim().parse().ok()
}

/// Value of an interface's setting; none if the interface is gone.
fn read(name: &str, setting: &str) -> Result<Option<u32>, Error> {
    let path = path(name, setting);
    let text = absent_is_none(fs::read_to_string(&path));
    let text = text.map_err(|source| Error::Sysctl { path, source })?;
    Ok(text.map(|text| text.trim().parse().unwrap_or(0)))
}

/// The `rp_filter` that the kernel applies to each of these interfaces, by index
/// (`IN_DEV_RPFILTER`, `linux/inetdevice.h`).
pub(crate) fn rp_filter<'a>(
    links: impl Iterator<Item = &'a Link>,
) -> Result<BTreeMap<u32, u32>, Error> {
    let of_all = read(names::ALL_LINKS, RP_FILTER)?.unwrap_or(0);
    let mut found = BTreeMap::new();
    for link in links {
        found.extend(read(&link.name, RP_FILTER)?.map(|own| (link.index, own.max(of_all))));
    }
    Ok(found)
}

/// Both `rp_filter` settings that apply to an interface.
pub(crate) fn rp_filter_of(name: &str) -> Result<RpFilter, Error> {
    let value = |name: &str| Ok::<_, Error>(read(name, RP_FILTER)?.unwrap_or(0));
    Ok(RpFilter { all: value(names::ALL_LINKS)?, own: value(name)? })
}

/// `src_valid_mark` of `all`, and of an interface. The kernel uses the mark if either is 1.
pub(crate) fn src_valid_mark_of(name: &str) -> Result<(u32, u32), Error> {
    let value = |name: &str| Ok::<_, Error>(read(name, SRC_VALID_MARK)?.unwrap_or(0));
    Ok((value(names::ALL_LINKS)?, value(name)?))
}

/// `src_valid_mark` of each interface, by index.
pub(crate) fn src_valid_mark(links: &[Link]) -> Result<BTreeMap<u32, u32>, Error> {
    let mut found = BTreeMap::new();
    for link in links {
        found.extend(read(&link.name, SRC_VALID_MARK)?.map(|value| (link.index, value)));
    }
    Ok(found)
}

/// Sets `src_valid_mark` of an interface to 1, or back to 0.
pub(crate) fn set_src_valid_mark(facts: &Facts, link: u32, on: bool) -> Result<(), Error> {
    // An interface that has gone took its sysctls with it.
    let Some(link) = facts.link(link) else { return Ok(()) };
    let path = path(&link.name, SRC_VALID_MARK);
    let written = absent_is_none(fs::write(&path, if on { "1" } else { "0" }));
    written.map(drop).map_err(|source| Error::Sysctl { path, source })
}
