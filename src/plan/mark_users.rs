//! Programs that use bits of the mark, recognised by what they have on the node.

use crate::model::{Action, Facts, Rule};

/// A program, the prefix of its interfaces' names, and the bits that it uses.
struct User {
    name: &'static str,
    interface: &'static str,
    bits: u32,
}

/// Bits as in the sources of these programs in 2026. kube-proxy is missing: every cluster uses its
/// bits.
const USERS: [User; 7] = [
    // Cluster and identity in all bits except 12 to 15, which IPsec and WireGuard use.
    User { name: CILIUM, interface: "cilium_", bits: 0xffff_0fff },
    User { name: "Calico", interface: "cali", bits: 0xffff_0000 },
    User { name: "Tailscale", interface: "tailscale", bits: 0x00ff_0000 },
    User { name: "kube-router", interface: "kube-bridge", bits: 0x0003_0000 },
    User { name: "Antrea", interface: "antrea-gw", bits: 0xc000_00ff },
    User { name: "Weave", interface: "weave", bits: 0x0006_0000 },
    User { name: "OVN-Kubernetes", interface: "ovn-k8s-mp", bits: 0x0000_03ff },
];
const CILIUM: &str = "Cilium";
/// Tables of Cilium's rules for packets to and from its proxies.
const OF_CILIUM: [u32; 2] = [2004, 2005];
/// Masks that identify the program of a rule.
const BY_MASK: [(u32, &str); 3] =
    [(0x3f00, "mwan3"), (0x00ff_0000, "Tailscale"), (0xffff_0000, "Calico")];
/// kube-proxy's bits, and the one by which old kubelets marked packets to drop.
const OF_KUBERNETES: u32 = 0xc000;

/// Name of the program that a rule belongs to, if the rule has a known mask or table.
pub(crate) fn owner(rule: &Rule) -> Option<&'static str> {
    let mask = rule.mark?.mask;
    match rule.action {
        Action::Lookup(table) if OF_CILIUM.contains(&table) => Some(CILIUM),
        _ => BY_MASK.iter().find(|(known, _)| *known == mask).map(|(_, name)| *name),
    }
}

/// Mark bits of all known programs that are on the node, and those of Kubernetes.
pub(super) fn bits(facts: &Facts) -> u32 {
    let is_here = |user: &&User| {
        facts.links.iter().any(|link| link.name.starts_with(user.interface))
            || facts.foreign_rules().any(|rule| owner(rule) == Some(user.name))
    };
    USERS.iter().filter(is_here).fold(OF_KUBERNETES, |all, user| all | user.bits)
}
