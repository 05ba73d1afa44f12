//! Facts from the kernel and from the state directory. Slow: it dumps tables. Never on the fast
//! path.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use nix::errno::Errno;

use crate::config::Settings;
use crate::error::Error;
use crate::facts::{Facts, Family, Link, Route};
use crate::netlink::uapi::{RT_TABLE_LOCAL, RT_TABLE_MAIN};
use crate::netlink::{self, Socket, nft, route};
use crate::plan::ours;

/// Everything that reconcile looks at. `owned`: the settings by which state is known as ours.
///
/// The enrolled addresses are left out: see [`crate::node`] for the order in which they are read.
pub fn facts(
    rtnetlink: &mut Socket,
    nftables: &mut Socket,
    owned: &[&Settings],
) -> Result<Facts, Error> {
    let mut facts = Facts {
        links: route::links(rtnetlink).map_err(Error::kernel("list interfaces"))?,
        addresses: route::addresses(rtnetlink).map_err(Error::kernel("list addresses"))?,
        ..Facts::default()
    };
    for family in Family::ALL {
        let keep = |r: &Route| matters(r, owned);
        let routes = supported(route::routes(rtnetlink, family, keep), family)
            .map_err(Error::kernel(format!("list {family} routes")))?;
        facts.routes.extend(routes);
        let rules = supported(route::rules(rtnetlink, family), family)
            .map_err(Error::kernel(format!("list {family} rules")))?;
        facts.rules.extend(rules);
    }
    facts.ours = ours::take(owned, &facts.links, &mut facts.routes, &mut facts.rules);
    facts.ours.table = nft::table(nftables).map_err(Error::kernel("read table inet symroute"))?;
    facts.src_valid_mark = src_valid_mark(&facts.links)?;
    Ok(facts)
}

/// A kernel without IPv6 has none of its objects.
fn supported<T>(
    found: Result<Vec<T>, netlink::Error>,
    family: Family,
) -> Result<Vec<T>, netlink::Error> {
    match found {
        Err(error)
            if family == Family::V6
                && matches!(error.errno, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) =>
        {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Default routes of any table, what main has, what our tables have, and what lies on a link.
/// Of a large routing table elsewhere nothing else is kept.
fn matters(route: &Route, owned: &[&Settings]) -> bool {
    let ours = || owned.iter().any(|settings| ours::is_table(settings, route.table));
    let on_link = || route.nexthops.iter().any(|hop| hop.gateway.is_none());
    route.table != RT_TABLE_LOCAL
        && (route.is_default() || route.table == RT_TABLE_MAIN || on_link() || ours())
}

/// The path of `src_valid_mark` of an interface.
#[must_use]
pub fn src_valid_mark_path(name: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{name}/src_valid_mark")
}

fn src_valid_mark(links: &[Link]) -> Result<BTreeMap<u32, u32>, Error> {
    let mut found = BTreeMap::new();
    for link in links {
        let path = src_valid_mark_path(&link.name);
        match fs::read_to_string(&path) {
            Ok(text) => drop(found.insert(link.index, text.trim().parse().unwrap_or(0))),
            // The interface went away since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Sysctl { path, source }),
        }
    }
    Ok(found)
}
