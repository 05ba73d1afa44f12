//! Which program a table, a chain or a rule is of, known by the names that it gives them.

use crate::names;

/// Beginnings of the names of chains and tables, the longer ones before those that they contain.
/// Compared without regard to case.
const BY_NAME: [(&str, &str); 34] = [
    ("kube-proxy", "kube-proxy"),
    ("kube-router", "kube-router"),
    ("kube-nwplcy", "kube-router"),
    ("kube-pod-fw", "kube-router"),
    ("kube-firewall", "kubelet"),
    ("kube-kubelet", "kubelet"),
    ("kube-", "kube-proxy"),
    ("cali-", "Calico"),
    ("calico", "Calico"),
    ("cilium", "Cilium"),
    ("old_cilium", "Cilium"),
    ("aws-", "AWS VPC CNI"),
    ("ts-", "Tailscale"),
    ("tailscale", "Tailscale"),
    ("netbird", "NetBird"),
    ("wg-quick", "wg-quick"),
    ("mwan3", "mwan3"),
    ("antrea", "Antrea"),
    ("weave", "Weave"),
    ("ovn-kube", "OVN-Kubernetes"),
    ("istio", "Istio"),
    ("linkerd", "Linkerd"),
    ("proxy_init", "Linkerd"),
    ("docker", "Docker"),
    ("flannel", "flannel"),
    ("firewalld", "firewalld"),
    ("libvirt", "libvirt"),
    ("cni-hostport", "CNI plugin portmap"),
    ("cni-", "CNI plugin"),
    ("netavark", "Netavark"),
    ("ufw", "ufw"),
    ("fw4", "OpenWrt firewall"),
    ("f2b", "fail2ban"),
    ("vyos", "VyOS"),
];

/// Beginnings of comments.
const BY_COMMENT: [(&str, &str); 4] = [
    ("AWS", "AWS VPC CNI"),
    ("cali:", "Calico"),
    ("cilium", "Cilium"),
    ("kubernetes", "kube-proxy"),
];

/// Tables that many programs use: their names say nothing of the program.
const COMMON: [&str; 6] = ["filter", "mangle", "nat", "raw", "security", "firewall"];

fn known(list: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let begins =
        |begin: &str| name.get(..begin.len()).is_some_and(|n| n.eq_ignore_ascii_case(begin));
    list.iter().find(|(begin, _)| begins(begin)).map(|(_, program)| *program)
}

/// The program that a rule in this chain is of, or else the name of its table or chain.
pub(crate) fn of_chain(table: &str, chain: &str, comment: Option<&str>) -> String {
    let by_name = known(&BY_NAME, chain).or_else(|| known(&BY_NAME, table));
    let by_comment = || known(&BY_COMMENT, comment?);
    if let Some(program) = by_name.or_else(by_comment) {
        return program.into();
    }
    if COMMON.contains(&table) { format!("chain {chain}") } else { format!("table {table}") }
}

/// Whether symroute has made this table of nftables.
pub(crate) fn is_our_table(family: &str, table: &str) -> bool {
    table == names::TABLE && ["inet", "arp"].contains(&family)
}

/// Whether symroute has made this chain of iptables.
pub(crate) fn is_our_chain(table: &str, chain: &str) -> bool {
    table == "mangle" && chain.starts_with(names::CHAIN_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_name() {
        for (table, chain, comment, wanted) in [
            ("nat", "KUBE-MARK-MASQ", None, "kube-proxy"),
            ("filter", "KUBE-ROUTER-FORWARD", None, "kube-router"),
            ("mangle", "cali-PREROUTING", None, "Calico"),
            ("mangle", "PREROUTING", Some("AWS, primary ENI"), "AWS VPC CNI"),
            ("netbird", "mangle-prerouting", None, "NetBird"),
            ("mangle", "ts-forward", None, "Tailscale"),
            ("mangle", "PREROUTING", None, "chain PREROUTING"),
            ("site", "pre", Some("ours"), "table site"),
            ("mangle", "ké", None, "chain ké"),
        ] {
            assert_eq!(of_chain(table, chain, comment), wanted);
        }
    }
}
