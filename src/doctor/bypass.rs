//! What takes packets past connection tracking or netfilter: symroute can't bind such connections.

use std::net::IpAddr;

use super::{BPF, FLOWTABLE, Finding, IPVS, NOTRACK, Severity};
use crate::model::{Address, Facts};

/// A rule that exempts packets from connection tracking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Untracked {
    /// Where it stands, in words.
    pub(crate) place: String,
    /// The interface that it asks for, with a star behind the beginning of a name.
    pub(crate) link: Option<String>,
    /// The same by index.
    pub(crate) index: Option<u32>,
    /// The destination that it asks for.
    pub(crate) to: Option<IpAddr>,
}

/// A flowtable of nftables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flowtable {
    pub(crate) table: String,
    pub(crate) name: String,
    /// Names of the interfaces that feed it.
    pub(crate) links: Vec<String>,
}

/// Where a BPF program gets packets.
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

/// Beginnings of the names of programs that route packets: those of Cilium, of old releases of it, and of
/// Calico. Others count packets or watch them.
const ROUTING: [&str; 5] = ["cil_", "from-netdev", "from_netdev", "cali_", "calico_"];

/// A note for each uplink whose packets may pass by netfilter.
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
                "none if replies are right: what a program routes by itself passes by symroute. \
                     With Cilium, \"cilium status\" has to say \"Host Routing: Legacy\" \
                     (bpf.hostLegacyRouting=true)"
                    .into(),
        })
    };
    uplinks.iter().filter_map(finding).collect()
}

/// An uplink, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic<'a> {
    pub(crate) link: u32,
    pub(crate) name: &'a str,
}

/// A finding for each rule that takes requests by uplinks past connection tracking.
pub(crate) fn of_untracked(
    rules: &[Untracked],
    uplinks: &[Nic<'_>],
    facts: &Facts,
) -> Vec<Finding> {
    let finding = |rule: &Untracked| {
        let meets = |nic: &&Nic<'_>| {
            let name = rule.link.as_deref().is_none_or(|wanted| match wanted.strip_suffix('*') {
                Some(beginning) => nic.name.starts_with(beginning),
                None => nic.name == wanted,
            });
            let has = |to: IpAddr| {
                facts.addresses.iter().any(|a: &Address| a.link == nic.link && a.ip == to)
            };
            name && rule.index.is_none_or(|index| index == nic.link) && rule.to.is_none_or(has)
        };
        let names: Vec<_> = uplinks.iter().filter(meets).map(|nic| nic.name).collect();
        let names = (!names.is_empty()).then(|| names.join(" and "))?;
        Some(Finding {
            id: NOTRACK,
            severity: Severity::Warning,
            what: format!("a rule keeps requests by {names} from being tracked"),
            evidence: vec![
                format!("{} has a rule \"notrack\"", rule.place),
                "symroute binds tracked connections alone: replies to others go by the node's own \
                 routing"
                    .into(),
            ],
            remedy: "remove the rule, or have it name what needs no reply by its NIC; nft -a list \
                     ruleset shows it"
                .into(),
        })
    };
    rules.iter().filter_map(finding).collect()
}

/// A note for each flowtable that uplinks feed.
pub(crate) fn of_flowtables(flowtables: &[Flowtable], uplinks: &[Nic<'_>]) -> Vec<Finding> {
    let finding = |flowtable: &Flowtable| {
        let feeds = |nic: &&Nic<'_>| flowtable.links.iter().any(|name| name == nic.name);
        let names: Vec<_> = uplinks.iter().filter(feeds).map(|nic| nic.name).collect();
        let names = (!names.is_empty()).then(|| names.join(" and "))?;
        let Flowtable { table, name, .. } = flowtable;
        Some(Finding {
            id: FLOWTABLE,
            severity: Severity::Note,
            what: format!("flowtable {name} of table {table} takes packets of {names}"),
            evidence: vec![
                "what is in a flowtable passes by all hooks: a connection that was put there before \
                 symroute bound it keeps its way"
                    .into(),
            ],
            remedy: format!(
                "only if replies leave by another NIC: nft delete flowtable FAMILY {table} {name}"
            ),
        })
    };
    flowtables.iter().filter_map(finding).collect()
}

/// IPVS without connection tracking. `conntrack`: `net.ipv4.vs.conntrack`; `services`: the text of
/// `/proc/net/ip_vs`.
pub(crate) fn of_ipvs(conntrack: Option<u32>, services: &str) -> Option<Finding> {
    // Three lines of headings come first; lines of backends begin with an arrow.
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
    use crate::model::Family;

    const UPLINKS: [Nic<'_>; 2] = [Nic { link: 2, name: "eth0" }, Nic { link: 3, name: "eth1" }];

    fn names(rule: Untracked) -> Vec<String> {
        let ip: IpAddr = "10.21.0.10".parse().unwrap();
        let address = Address { link: 3, net: Family::host_route(ip), ip, scope: 0 };
        let facts = Facts { addresses: vec![address], ..Facts::default() };
        of_untracked(&[rule], &UPLINKS, &facts).into_iter().map(|found| found.what).collect()
    }

    #[test]
    fn only_rules_that_meet_requests_by_uplinks() {
        let any = Untracked::default();
        let to = |ip: &str| Untracked { to: ip.parse().ok(), ..Untracked::default() };
        let by = |name: &str| Untracked { link: Some(name.into()), ..Untracked::default() };
        let what =
            |names: &str| vec![format!("a rule keeps requests by {names} from being tracked")];
        assert_eq!(names(any), what("eth0 and eth1"));
        assert_eq!(names(by("eth1")), what("eth1"));
        assert_eq!(names(by("eth*")), what("eth0 and eth1"));
        assert_eq!(names(by("veth1")), [""; 0]);
        assert_eq!(names(to("10.21.0.10")), what("eth1"));
        // NodeLocal DNS.
        assert_eq!(names(to("169.254.20.10")), [""; 0]);
        assert_eq!(names(Untracked { index: Some(2), ..Untracked::default() }), what("eth0"));
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
