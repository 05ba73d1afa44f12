//! A map of prefixes with fast look-up. A pod may have thousands of routes, so no look-up walks all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::Family;

/// Prefixes with a value for each.
#[derive(Debug)]
pub(crate) struct Prefixes<T> {
    all: BTreeMap<IpNetwork, T>,
    /// Families and lengths of the prefixes.
    lengths: BTreeSet<(Family, u8)>,
}

impl<T> Prefixes<T> {
    /// Prefixes that contain the address, the longest first.
    pub(crate) fn around(&self, ip: IpAddr) -> impl Iterator<Item = (IpNetwork, &T)> {
        let family = Family::of(ip);
        let lengths = self.lengths.range((family, 0)..=(family, u8::MAX)).rev();
        lengths.filter_map(move |&(_, length)| {
            let net = plain(IpNetwork::new(ip, length).ok()?);
            self.all.get(&net).map(|value| (net, value))
        })
    }

    /// Whether a prefix contains the address.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.around(ip).next().is_some()
    }

    /// Value of the longest prefix that contains the whole network.
    pub(crate) fn nearest(&self, net: IpNetwork) -> Option<&T> {
        let mut around = self.around(net.ip());
        around.find(|(wide, _)| wide.prefix() <= net.prefix()).map(|(_, value)| value)
    }
}

impl<T> FromIterator<(IpNetwork, T)> for Prefixes<T> {
    /// If a prefix occurs twice, the last value counts.
    fn from_iter<I: IntoIterator<Item = (IpNetwork, T)>>(found: I) -> Self {
        let all: BTreeMap<_, _> =
            found.into_iter().map(|(net, value)| (plain(net), value)).collect();
        let lengths = all.keys().map(|net| (Family::of(net.ip()), net.prefix())).collect();
        Self { all, lengths }
    }
}

impl FromIterator<IpNetwork> for Prefixes<()> {
    fn from_iter<I: IntoIterator<Item = IpNetwork>>(found: I) -> Self {
        found.into_iter().map(|net| (net, ())).collect()
    }
}

/// The prefix with its host bits cleared.
fn plain(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

/// Whether the network contains an address of the set.
pub(crate) fn any_in(addresses: &BTreeSet<IpAddr>, net: IpNetwork) -> bool {
    addresses.range(net.network()..=net.broadcast()).next().is_some()
}

/// Whether the network equals or contains one of the set. Networks of the set have no host bits.
pub(crate) fn any_within(networks: &BTreeSet<(IpAddr, u8)>, net: IpNetwork) -> bool {
    // A wider network begins at a lower address, or sorts before this one.
    let all = (net.network(), net.prefix())..=(net.broadcast(), u8::MAX);
    networks.range(all).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_comes_first() {
        let all = ["10.0.0.0/8", "10.1.2.3/16", "::/0", "10.1.2.3/32"].map(net);
        let prefixes: Prefixes<usize> = all.into_iter().zip(0..).collect();
        let around = |ip: &str| -> Vec<usize> {
            prefixes.around(ip.parse().unwrap()).map(|(_, value)| *value).collect()
        };
        assert_eq!(around("10.1.2.3"), [3, 1, 0]);
        assert_eq!(around("10.2.0.1"), [0]);
        assert_eq!(around("fd00::1"), [2]);
        assert!(!prefixes.has("11.0.0.1".parse().unwrap()));
        assert_eq!(prefixes.nearest(net("10.1.2.0/24")), Some(&1));
        assert_eq!(prefixes.nearest(net("10.0.0.0/7")), None);
        let twice: Prefixes<u8> =
            [(net("10.0.0.0/8"), 1), (net("10.9.0.0/8"), 2)].into_iter().collect();
        assert_eq!(twice.nearest(net("10.0.0.0/8")), Some(&2), "the last one counts");
    }

    #[test]
    fn what_lies_within() {
        let addresses: BTreeSet<IpAddr> =
            ["10.1.0.0", "fd00::1"].map(|ip| ip.parse().unwrap()).into();
        assert!(any_in(&addresses, net("10.0.0.0/8")) && any_in(&addresses, net("10.1.0.0/32")));
        assert!(any_in(&addresses, net("::/0")) && !any_in(&addresses, net("10.2.0.0/16")));
        let networks: BTreeSet<(IpAddr, u8)> =
            ["10.1.0.0/16", "10.2.0.0/24"].map(|text| (net(text).ip(), net(text).prefix())).into();
        for within in ["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "0.0.0.0/0"] {
            assert!(any_within(&networks, net(within)), "{within}");
        }
        for wider in ["10.1.0.0/24", "10.1.2.0/24", "10.3.0.0/16", "::/0"] {
            assert!(!any_within(&networks, net(wider)), "{wider}");
        }
    }
}
