//! State of the uplinks' interfaces for `status`: link, addresses, `rp_filter`, `src_valid_mark`.

use ipnetwork::IpNetwork;

use crate::error::Error;
use crate::model::{Facts, Link, is_link_local};
use crate::netlink::uapi::IFF_UP;
use crate::node::sysctl;
use crate::plan::Uplink;

/// State of the interface of an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    /// Index of the interface.
    pub(super) link: u32,
    pub(super) name: String,
    /// Whether the interface is administratively up (`IFF_UP`).
    pub(super) is_up: bool,
    pub(super) carrier: bool,
    /// The node's own addresses on the interface, without link-local ones.
    pub(super) addresses: Vec<IpNetwork>,
    pub(super) rp_filter: Setting,
    pub(super) src_valid_mark: Setting,
}

/// An IPv4 sysctl that has two values, of which the larger one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Setting {
    /// Value of `net.ipv4.conf.all`.
    pub(super) all: u32,
    /// Value of the interface.
    pub(super) own: u32,
}

impl Setting {
    /// The value that the kernel uses: `IN_DEV_MAXCONF` for `rp_filter`; `IN_DEV_ORCONF` for
    /// `src_valid_mark`, of which only 0 or not matters (linux/inetdevice.h).
    pub(super) fn in_force(self) -> u32 {
        self.all.max(self.own)
    }

    /// Names the value that counts: `"all"`, `"both"`, or `interface` for that of the interface.
    pub(super) fn decider(self, interface: &str) -> &str {
        match self.all.cmp(&self.own) {
            std::cmp::Ordering::Less => interface,
            std::cmp::Ordering::Equal => "both",
            std::cmp::Ordering::Greater => "all",
        }
    }
}

/// The interfaces of these uplinks. Leaves out an interface that no longer exists.
pub(super) fn of_uplinks(uplinks: &[Uplink], facts: &Facts) -> Result<Vec<Interface>, Error> {
    let links = uplinks.iter().filter_map(|uplink| facts.link(uplink.link));
    links.map(|link| of_link(link, facts)).collect()
}

fn of_link(link: &Link, facts: &Facts) -> Result<Interface, Error> {
    let filter = sysctl::rp_filter_of(&link.name)?;
    let (all, own) = sysctl::src_valid_mark_of(&link.name)?;
    let addresses = facts.addresses.iter().filter(|a| a.link == link.index && !is_link_local(a.ip));
    Ok(Interface {
        link: link.index,
        name: link.name.clone(),
        is_up: link.flags & IFF_UP != 0,
        carrier: link.carrier,
        addresses: addresses.filter_map(|a| IpNetwork::new(a.ip, a.net.prefix()).ok()).collect(),
        rp_filter: Setting { all: filter.all, own: filter.own },
        src_valid_mark: Setting { all, own },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_value_decides() {
        let decided = |all, own| {
            let setting = Setting { all, own };
            (setting.in_force(), setting.decider("eth0").to_owned())
        };
        assert_eq!(decided(1, 0), (1, "all".into()));
        assert_eq!(decided(1, 2), (2, "eth0".into()));
        assert_eq!(decided(1, 1), (1, "both".into()));
        assert_eq!(decided(0, 0), (0, "both".into()));
    }
}
