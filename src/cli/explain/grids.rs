//! Tables of many requests: `--all`, and the comparison of pods with `--pod`.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use serde_json::json;

use super::super::attachments::Found;
use super::super::{EXIT_UNHEALTHY, Failure};
use super::{VERSION, Words};
use crate::explain::Packet;
use crate::explain::ask::Asker;
use crate::explain::grid::{Grid, behind};
use crate::explain::words::protocol_name;
use crate::model::Family;
use crate::names;
use crate::plan::proof::OUTSIDE;
use crate::state::State;

/// Runs `--all`: explains each address of the node and each NodePort on each uplink.
pub(super) fn all(
    asker: &mut Asker<'_>,
    words: &Words,
    from: IpAddr,
) -> Result<(String, u8), Failure> {
    let uplinks = asker.uplinks();
    let family = Family::of(from);
    let own: Vec<_> = asker.public_addresses().filter(|a| Family::of(a.ip) == family).collect();
    let of_link = |link: u32| own.iter().find(|a| a.link == link).map(|a| a.ip);
    let called: Vec<_> =
        uplinks.iter().filter_map(|link| of_link(*link).or(own.first().map(|a| a.ip))).collect();
    let own: Vec<IpAddr> = own.iter().map(|a| a.ip).collect();
    let mut grid = Grid { head: names_of(asker, &uplinks), rows: Vec::new() };
    for to in own {
        let cells = uplinks.iter().map(|link| asker.explain(Packet::plain(from, to, *link)));
        let cells = cells.collect::<Result<_, _>>()?;
        grid.rows.push((to.to_string(), cells));
    }
    let (node_ports, has_more) = asker.node_ports(family);
    for (protocol, port) in node_ports {
        let name = format!("NodePort {port}/{}", protocol_name(protocol));
        let mut cells = Vec::new();
        for (link, to) in uplinks.iter().zip(&called) {
            cells.push(asker.explain(Packet::plain(from, *to, *link).to_port(protocol, port))?);
        }
        grid.rows.push((name, cells));
    }
    let head = format!("requests from {from}, by what they ask and where they arrive");
    let tail =
        if has_more { "there are more NodePorts; ask for one by --to ADDRESS:PORT\n" } else { "" };
    render(asker, words, &grid, &head, tail)
}

/// Runs `--pod`: compares pods by a client's requests on each uplink and by what the pods send to the
/// client.
pub(super) fn pods(asker: &mut Asker<'_>, words: &Words) -> Result<(String, u8), Failure> {
    let pods: Vec<_> = words
        .pods
        .iter()
        .map(|pod| Ok((pod.clone(), addresses_of(pod, &words.cache_dir)?)))
        .collect::<Result<_, Failure>>()?;
    let wanted = words.from.map(|from| Family::of(from.ip));
    let have = |family: Family| pods.iter().all(|(_, ips)| of_family(ips, family).is_some());
    let mut families = Family::ALL.into_iter().filter(|f| wanted.is_none_or(|want| want == *f));
    let Some(family) = families.find(|family| have(*family)) else {
        return Err(Failure::Failed("--pod: the pods have no address of the same family".into()));
    };
    let client = words.from.map_or(OUTSIDE.of(family), |from| from.ip);
    let pods: Vec<(String, IpAddr)> =
        pods.into_iter().filter_map(|(name, ips)| Some((name, of_family(&ips, family)?))).collect();
    let head = pods.iter().map(|(name, ip)| match name.parse::<IpAddr>() {
        Ok(_) => name.clone(),
        Err(_) => format!("{name} ({ip})"),
    });
    let mut grid = Grid { head: head.collect(), rows: Vec::new() };
    let uplinks = asker.uplinks();
    for (link, name) in uplinks.iter().zip(names_of(asker, &uplinks)) {
        let cells = pods.iter().map(|(_, ip)| asker.explain(Packet::plain(client, *ip, *link)));
        let cells = cells.collect::<Result<_, _>>()?;
        grid.rows.push((format!("a request arrives on {name}"), cells));
    }
    let mut sent = Vec::new();
    for (name, ip) in &pods {
        let Some(link) = asker.link_of(*ip)? else {
            let text = format!("--pod {name}: no interface of this node leads to {ip}");
            return Err(Failure::Failed(text));
        };
        sent.push(asker.explain(Packet::plain(*ip, client, link))?);
    }
    grid.rows.push(("the pod sends".into(), sent));
    let mut tail = String::new();
    if let Some((_, cells)) = grid.rows.last() {
        for (head, cell) in grid.head.iter().zip(cells) {
            if let Some(nic) = behind(cell, asker.facts()) {
                // Writing to a string does not fail.
                let _ = writeln!(tail, "{head} is behind {nic}");
            }
        }
    }
    if pods.len() > 1 {
        let differ = grid.that_differ(asker.facts()).join("; ");
        let differ = if differ.is_empty() { "nothing" } else { &differ };
        let _ = writeln!(tail, "what differs: {differ}");
    }
    render(asker, words, &grid, &format!("requests from {client}"), &tail)
}

fn names_of(asker: &Asker<'_>, links: &[u32]) -> Vec<String> {
    links.iter().map(|link| asker.facts().link_name(*link)).collect()
}

fn of_family(ips: &[IpAddr], family: Family) -> Option<IpAddr> {
    ips.iter().copied().find(|ip| Family::of(*ip) == family)
}

fn render(
    asker: &Asker<'_>,
    words: &Words,
    grid: &Grid,
    head: &str,
    tail: &str,
) -> Result<(String, u8), Failure> {
    let facts = asker.facts();
    let is_well = grid.all().all(|one| one.now().is_well(&one.packet));
    let unread = &asker.netfilter.unread;
    let text = if words.json {
        let differ = grid.that_differ(facts);
        let rows = grid.to_json(facts);
        let report = json!({"version": VERSION, "rows": rows, "differ": differ, "notSeen": unread});
        format!("{report:#}\n")
    } else {
        let state = if asker.in_force { "with symroute" } else { "without symroute" };
        let mut text = format!("{head}, {state}\n{}{tail}", grid.to_text(facts));
        for what in unread {
            let _ = writeln!(text, "cannot see {what}");
        }
        text
    };
    if grid.head.is_empty() {
        return Err(Failure::Failed("no interface leads outside, so no request arrives".into()));
    }
    Ok((text, if is_well { 0 } else { EXIT_UNHEALTHY }))
}

/// The addresses of a pod, given as address, `namespace/name` or beginning of the container id. Error: the
/// runtime's cache and symroute's state know no such pod.
fn addresses_of(pod: &str, cache: &Path) -> Result<Vec<IpAddr>, Failure> {
    if let Ok(ip) = pod.parse() {
        return Ok(vec![ip]);
    }
    let state = State::new(names::STATE_DIR);
    let found = Found::of(Path::new("/"), cache, Some(&state))?.addresses_of(pod);
    if found.is_empty() {
        let text = format!(
            "--pod {pod}: {} and symroute's attachments know no such pod; give its address",
            cache.display()
        );
        return Err(Failure::Failed(text));
    }
    Ok(found)
}
