//! What the AWS VPC CNI writes on a node: its mangle and nat rules, and its prevResult.

use std::net::Ipv4Addr;

use serde_json::json;

use super::backend::Backend;
use super::kubeproxy::Flavour;
use super::netns::Netns;
use super::node::{Pod, with_prefix};

/// Value of `AWS_VPC_K8S_CNI_EXTERNALSNAT`, and the backend that does the SNAT.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Snat {
    /// No netfilter rules of the AWS plugin: an old version, or another program flushed them.
    NoRules,
    /// `true`: connection marks only.
    External,
    /// `false`: connection marks and SNAT to the primary address, by iptables.
    ByIptables,
    /// `false`: connection marks and SNAT to the primary address, by nftables.
    ByNftables,
}

impl Snat {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoRules => "no-rules",
            Self::External => "externalsnat-true",
            Self::ByIptables => "externalsnat-false-iptables",
            Self::ByNftables => "externalsnat-false-nft",
        }
    }

    /// The mode of kube-proxy beside this setting.
    pub(crate) fn kube_proxy(self) -> Flavour {
        match self {
            Self::NoRules | Self::External | Self::ByIptables => Flavour::Iptables,
            Self::ByNftables => Flavour::Nftables,
        }
    }
}

/// Writes the rules of ipamd for a node whose primary NIC is `eth0`.
pub(crate) fn install(ns: &Netns, snat: Snat, vpc: &str, primary: Ipv4Addr) {
    if snat == Snat::NoRules {
        return;
    }
    let restore = Backend::of_run().tool(false, "-restore");
    ns.exec(&[&restore, "--noflush"], MANGLE);
    match snat {
        Snat::NoRules | Snat::External => {}
        Snat::ByIptables => {
            ns.exec(&[&restore, "--noflush"], &nat_iptables(vpc, primary));
        }
        Snat::ByNftables => ns.nft(&nat_nftables(vpc, primary)),
    }
}

const MANGLE: &str = "*mangle
-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x80/0x80
-A PREROUTING -i eni+ -j CONNMARK --restore-mark --mask 0x80
-A PREROUTING -i vlan+ -j CONNMARK --restore-mark --mask 0x80
COMMIT
";

fn nat_iptables(vpc: &str, primary: Ipv4Addr) -> String {
    format!(
        "*nat
:AWS-CONNMARK-CHAIN-0 - [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
-A PREROUTING -i eni+ -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -j CONNMARK --restore-mark --mask 0x80
-A AWS-CONNMARK-CHAIN-0 -d {vpc} -j RETURN
-A AWS-CONNMARK-CHAIN-0 -j CONNMARK --set-xmark 0x80/0x80
-A POSTROUTING -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d {vpc} -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL -j SNAT --to-source {primary} --random-fully
COMMIT
"
    )
}

/// Rules of versions 1.23.0 and 1.23.1. The last rule of `nat-prerouting` overwrites the whole
/// packet mark.
fn nat_nftables(vpc: &str, primary: Ipv4Addr) -> String {
    format!(
        "table ip aws-cni {{
chain snat-mark {{
  ip daddr {vpc} return
  ct mark set ct mark | 0x80
}}
chain nat-prerouting {{
  type nat hook prerouting priority -90; policy accept;
  fib daddr type local return
  iifname \"eni*\" jump snat-mark
  meta mark set ct mark & 0x80
}}
chain nat-postrouting {{
  type nat hook postrouting priority srcnat; policy accept;
  ip daddr {vpc} return
  oifname != \"vlan*\" fib daddr type != local snat to {primary} fully-random
}}
}}
"
    )
}

/// Replaces the pod's prevResult with the text that the AWS VPC CNI prints: version 0.4.0, the
/// device number in `mac`, a dummy interface, no routes.
pub(crate) fn hand_over(pod: &mut Pod, name: &str, device: u8, addresses: &[&str]) {
    let ips: Vec<_> = addresses
        .iter()
        .map(|address| {
            let version = if address.contains(':') { "6" } else { "4" };
            json!({"version": version, "interface": 1, "address": with_prefix(address)})
        })
        .collect();
    let interfaces = json!([
        {"name": format!("eni{name}")},
        {"name": "eth0", "mac": device.to_string(), "sandbox": pod.ns.path()},
        {"name": format!("dummy{name}"), "mac": "0", "sandbox": "1"}
    ]);
    let ips = json!(ips);
    pod.prev_result = format!(
        "{{\"cniVersion\":\"0.4.0\", \"interfaces\":{interfaces}, \"ips\":{ips}, \"dns\":{{}}}}"
    );
}
