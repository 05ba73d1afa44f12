//! Programs and rules that take packets past connection tracking or netfilter, so that symroute can't bind
//! their connections.

use std::collections::{BTreeMap, BTreeSet};

use super::{BPF, EARLY_CHECK, FLOWTABLE, Finding, IPVS, NOTRACK, Severity};
use crate::names::{OFFLOAD, TABLE};

/// Rules that exempt requests from connection tracking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exempted {
    /// The uplinks that these requests arrive on.
    pub(crate) nics: BTreeSet<String>,
    /// Names of the protocols that the rules exempt: "TCP", "UDP".
    pub(crate) protocols: BTreeSet<&'static str>,
}

/// A flowtable of nftables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flowtable {
    pub(crate) table: String,
    pub(crate) name: String,
    /// Names of the interfaces whose packets the flowtable takes.
    pub(crate) links: Vec<String>,
}

/// The hook that a BPF program is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Xdp,
    Tc,
    Tcx,
}

/// A BPF program that gets the packets of an interface before netfilter does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) link: u32,
    pub(crate) at: Where,
    pub(crate) name: Option<String>,
}

/// Prefixes of the names of programs that route packets: those of Cilium, of its old releases, and of Calico.
/// Other programs count or watch packets.
const ROUTING: [&str; 5] = ["cil_", "from-netdev", "from_netdev", "cali_", "calico_"];

/// A note for each uplink that has a BPF program which may route packets past netfilter.
pub(crate) fn of_programs(programs: &[Program], uplinks: &[Nic<'_>]) -> Vec<Finding> {
    let routes = |program: &&Program| {
        let has = |name: &str| ROUTING.iter().any(|begin| name.starts_with(begin));
        program.at == Where::Xdp || program.name.as_deref().is_some_and(has)
    };
    let line = |program: &Program| {
        let at = match program.at {
            Where::Xdp => "XDP",
            Where::Tc => "tc ingress",
            Where::Tcx => "tcx ingress",
        };
        let name = program.name.as_deref().map_or_else(String::new, |name| format!(": {name}"));
        format!("{at}{name}")
    };
    let finding = |nic: &Nic<'_>| {
        let of_nic = programs.iter().filter(|program| program.link == nic.link);
        let lines: Vec<_> = of_nic.filter(routes).map(line).collect();
        (!lines.is_empty()).then(|| Finding {
            id: BPF,
            severity: Severity::Note,
            what: format!("BPF programs get the packets of {} before netfilter does", nic.name),
            evidence: lines,
            remedy:
                "none if replies are right: packets that a program routes by itself bypass symroute. \
                     With Cilium, \"cilium status\" has to say \"Host Routing: Legacy\" \
                     (bpf.hostLegacyRouting=true)"
                    .into(),
        })
    };
    uplinks.iter().filter_map(finding).collect()
}

/// Index and name of an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic<'a> {
    pub(crate) link: u32,
    pub(crate) name: &'a str,
}

/// A warning for each chain whose rules keep requests on uplinks from being tracked. The key is "table, chain".
pub(crate) fn of_untracked(by_chain: &BTreeMap<String, Exempted>) -> Vec<Finding> {
    let finding = |(place, Exempted { nics, protocols }): (&String, &Exempted)| {
        let join = |words: Vec<&str>| words.join(" and ");
        let nics = join(nics.iter().map(String::as_str).collect());
        let protocols = join(protocols.iter().copied().collect());
        Finding {
            id: NOTRACK,
            severity: Severity::Warning,
            what: format!("a rule keeps {protocols} requests by {nics} from being tracked"),
            evidence: vec![
                format!("{place}: a rule with \"notrack\""),
                "symroute binds only tracked connections: replies to others follow the node's own \
                 routing"
                    .into(),
            ],
            remedy: "remove the rule, or limit it to traffic that needs no reply through its NIC; \
                     \"nft -a list ruleset\" or \"iptables-legacy-save -t raw\" shows it"
                .into(),
        }
    };
    by_chain.iter().map(finding).collect()
}

/// A warning for each chain that checks the return path of requests before symroute marks them. The key is
/// "table, chain"; the value lists family and uplink of the requests.
pub(crate) fn of_checks(by_chain: &BTreeMap<String, BTreeSet<String>>) -> Vec<Finding> {
    let finding = |(place, requests): (&String, &BTreeSet<String>)| Finding {
        id: EARLY_CHECK,
        severity: Severity::Warning,
        what: format!(
            "a rule checks the way back before symroute marks requests: {}",
            requests.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        ),
        evidence: vec![
            format!("{place}: a rule with \"fib saddr . iif\""),
            "it knows only the node's own routing, and drops requests whose replies symroute sends \
             through another NIC"
                .into(),
        ],
        remedy: "turn off that check for the uplinks (firewalld: IPv6_rpfilter=no in \
                 firewalld.conf), or use an iptables backend, which marks before most such checks"
            .into(),
    };
    by_chain.iter().map(finding).collect()
}

/// A note for each flowtable of another program that takes packets of uplinks.
pub(crate) fn of_flowtables(flowtables: &[Flowtable], uplinks: &[Nic<'_>]) -> Vec<Finding> {
    let finding = |flowtable: &Flowtable| {
        if (flowtable.table.as_str(), flowtable.name.as_str()) == (TABLE, OFFLOAD) {
            return None;
        }
        let feeds = |nic: &&Nic<'_>| flowtable.links.iter().any(|name| name == nic.name);
        let names: Vec<_> = uplinks.iter().filter(feeds).map(|nic| nic.name).collect();
        let names = (!names.is_empty()).then(|| names.join(" and "))?;
        let Flowtable { table, name, .. } = flowtable;
        Some(Finding {
            id: FLOWTABLE,
            severity: Severity::Note,
            what: format!("flowtable {name} of table {table} takes packets of {names}"),
            evidence: vec![
                "packets of a flowtable bypass all hooks: a connection that was added there before \
                 symroute bound it keeps its route"
                    .into(),
            ],
            remedy: format!(
                "only if replies leave by another NIC: nft delete flowtable FAMILY {table} {name}"
            ),
        })
    };
    flowtables.iter().filter_map(finding).collect()
}

/// A warning if IPVS has services and does not track connections. `conntrack`: `net.ipv4.vs.conntrack`;
/// `services`: the text of `/proc/net/ip_vs`.
pub(crate) fn of_ipvs(conntrack: Option<u32>, services: &str) -> Option<Finding> {
    // The file has three lines of headings; lines of backends begin with an arrow.
    let is_service =
        |line: &&str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind));
    let services = services.lines().filter(is_service).count();
    (conntrack == Some(0) && services > 0).then(|| Finding {
        id: IPVS,
        severity: Severity::Warning,
        what: "IPVS forwards connections that are not tracked".into(),
        evidence: vec![
            "net.ipv4.vs.conntrack is 0".into(),
            format!("services of IPVS: {services}"),
        ],
        remedy: "sysctl -w net.ipv4.vs.conntrack=1, which kube-proxy sets by itself".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLINKS: [Nic<'_>; 2] = [Nic { link: 2, name: "eth0" }, Nic { link: 3, name: "eth1" }];

    #[test]
    fn what_is_exempted_is_named() {
        let exempted =
            Exempted { nics: ["eth0", "eth1"].map(Into::into).into(), protocols: ["UDP"].into() };
        let found = of_untracked(&[("iptables raw, PREROUTING".to_owned(), exempted)].into());
        assert_eq!(found[0].what, "a rule keeps UDP requests by eth0 and eth1 from being tracked");
        assert!(found[0].evidence[0].starts_with("iptables raw, PREROUTING: "));
    }

    #[test]
    fn early_checks_are_named_with_their_chain() {
        let place = "nftables inet firewalld, mangle_PREROUTING".to_owned();
        let found = of_checks(&[(place, ["IPv6 by eth1".to_owned()].into())].into());
        assert!(found[0].what.ends_with("requests: IPv6 by eth1"), "{}", found[0].what);
        assert!(found[0].evidence[0].starts_with("nftables inet firewalld, mangle_PREROUTING: "));
    }

    #[test]
    fn flowtables_of_uplinks() {
        let flowtable = |link: &str| Flowtable {
            table: "f".into(),
            name: "fast".into(),
            links: vec![link.into()],
        };
        let found = of_flowtables(&[flowtable("eth1"), flowtable("lan0")], &UPLINKS);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].what, "flowtable fast of table f takes packets of eth1");
        assert_eq!(found[0].severity, Severity::Note);
        let ours = Flowtable { table: TABLE.into(), name: OFFLOAD.into(), ..flowtable("eth1") };
        assert_eq!(of_flowtables(&[ours], &UPLINKS), []);
    }

    #[test]
    fn programs_that_route() {
        let program = |at, name: Option<&str>| Program { link: 3, at, name: name.map(Into::into) };
        let found = |program| of_programs(&[program], &UPLINKS).into_iter().map(|f| f.evidence);
        let lines = |program| found(program).flatten().collect::<Vec<_>>();
        let cilium = program(Where::Tcx, Some("cil_from_netdev"));
        assert_eq!(lines(cilium), ["tcx ingress: cil_from_netdev"]);
        assert_eq!(lines(program(Where::Xdp, None)), ["XDP"]);
        assert_eq!(lines(program(Where::Tc, Some("monitor"))), [""; 0]);
        assert_eq!(lines(Program { link: 9, at: Where::Xdp, name: None }), [""; 0]);
    }

    #[test]
    fn ipvs_without_conntrack() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
                    Prot LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                    TCP  0A0C7365:0050 rr \n  \
                    -> 0AFD04C2:1F40      Masq    1      0          0\n";
        assert_eq!(of_ipvs(Some(0), text).unwrap().evidence[1], "services of IPVS: 1");
        let (headings, _) = text.split_once("TCP").unwrap();
        for (conntrack, text) in [(Some(1), text), (None, text), (Some(0), headings), (Some(0), "")]
        {
            assert_eq!(of_ipvs(conntrack, text), None);
        }
    }
}
