//! Programs that use bits of the mark, known by what they have on the node.

use crate::model::{Action, Facts, Rule};

/// A program, how its interfaces' names begin, and the bits that it uses.
struct User {
    name: &'static str,
    interface: &'static str,
    bits: u32,
}

/// As their sources have it in 2026. Bits that kube-proxy uses are every cluster's.
const USERS: [User; 7] = [
    // Cluster and identity in all but bits 12 to 15, which IPsec and WireGuard use.
    User { name: CILIUM, interface: "cilium_", bits: 0xffff_0fff },
    User { name: "Calico", interface: "cali", bits: 0xffff_0000 },
    User { name: "Tailscale", interface: "tailscale", bits: 0x00ff_0000 },
    User { name: "kube-router", interface: "kube-bridge", bits: 0x0003_0000 },
    User { name: "Antrea", interface: "antrea-gw", bits: 0xc000_00ff },
    User { name: "Weave", interface: "weave", bits: 0x0006_0000 },
    User { name: "OVN-Kubernetes", interface: "ovn-k8s-mp", bits: 0x0000_03ff },
];
const CILIUM: &str = "Cilium";
/// Tables to which Cilium's rules send what its proxies get and send.
const OF_CILIUM: [u32; 2] = [2004, 2005];
/// Masks by which the rules of other programs are known.
const BY_MASK: [(u32, &str); 3] =
    [(0x3f00, "mwan3"), (0x00ff_0000, "Tailscale"), (0xffff_0000, "Calico")];
/// kube-proxy's bits, and the one that old kubelets dropped packets by.
const OF_KUBERNETES: u32 = 0xc000;

/// The program that a rule is of, if it is a known one.
pub(crate) fn owner(rule: &Rule) -> Option<&'static str> {
    let mask = rule.mark?.mask;
    match rule.action {
        Action::Lookup(table) if OF_CILIUM.contains(&table) => Some(CILIUM),
        _ => BY_MASK.iter().find(|(known, _)| *known == mask).map(|(_, name)| *name),
    }
}

/// The bits that known programs use which are on the node.
pub(super) fn bits(facts: &Facts) -> u32 {
    let rules = || facts.rules.iter().map(|found| &found.rule);
    let is_here = |user: &&User| {
        facts.links.iter().any(|link| link.name.starts_with(user.interface))
            || rules().any(|rule| owner(rule) == Some(user.name))
    };
    USERS.iter().filter(is_here).fold(OF_KUBERNETES, |all, user| all | user.bits)
}
