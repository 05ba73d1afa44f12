//! Finds the program that owns a table, chain or rule, from the names that programs use.

use crate::names;

/// Prefixes of the names of chains and tables, and their programs. A longer prefix precedes a shorter one that
/// it begins with. The comparison ignores case.
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

/// Prefixes of comments, and their programs.
const BY_COMMENT: [(&str, &str); 4] = [
    ("AWS", "AWS VPC CNI"),
    ("cali:", "Calico"),
    ("cilium", "Cilium"),
    ("kubernetes", "kube-proxy"),
];

/// Tables that many programs use, so that the name does not identify the program.
const COMMON: [&str; 6] = ["filter", "mangle", "nat", "raw", "security", "firewall"];

fn known(list: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let begins =
        |begin: &str| name.get(..begin.len()).is_some_and(|n| n.eq_ignore_ascii_case(begin));
    list.iter().find(|(begin, _)| begins(begin)).map(|(_, program)| *program)
}

/// The program that owns a rule in this chain; if unknown, the name of the table or chain.
pub(crate) fn of_chain(table: &str, chain: &str, comment: Option<&str>) -> String {
    let by_name = known(&BY_NAME, chain).or_else(|| known(&BY_NAME, table));
    let by_comment = || known(&BY_COMMENT, comment?);
    if let Some(program) = by_name.or_else(by_comment) {
        return program.into();
    }
    if COMMON.contains(&table) { format!("chain {chain}") } else { format!("table {table}") }
}

/// Whether symroute created this table of nftables.
pub(crate) fn is_our_table(family: &str, table: &str) -> bool {
    table == names::TABLE && ["inet", "arp"].contains(&family)
}

/// Whether symroute created this chain of iptables.
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
