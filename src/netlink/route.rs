//! Messages of rtnetlink: dumps of links, addresses, neighbours, routes and rules; changes of
//! routes and rules; look-ups of routes and neighbours.
//!
//! Layouts: `struct ifinfomsg`, `rtmsg`, `rtnexthop` (`linux/rtnetlink.h`), `ifaddrmsg`
//! (`linux/if_addr.h`), `ndmsg` (`linux/neighbour.h`) and `fib_rule_hdr` (`linux/fib_rules.h`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::uapi::*;
use super::wire::{Writer, attrs, find, ip, string, u16_at, u32_at};
use super::{Error, Socket};
use crate::model::{
    Action, Address, Family, FoundRule, Link, Mac, MarkMatch, Neighbours, Nexthop, Route, Rule,
};

/// Kinds of route that [`routes`] reads.
const KINDS: [u8; 4] = [RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT];
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
/// Bytes of `struct ndmsg`.
const NDMSG: usize = 12;
const FIB_RULE_HDR: usize = 12;
/// Bytes of `struct rtnexthop`.
const RTNEXTHOP: usize = 8;

fn dump_request(kind: u16, body: &[u8]) -> Writer {
    let mut request = Writer::default();
    request.message(kind, NLM_F_REQUEST | NLM_F_DUMP, body);
    request
}

pub(crate) fn links(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let mut request = dump_request(RTM_GETLINK, &[0; IFINFOMSG]);
    request.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    socket.dump(&mut request, parse_link)
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link = Link { index: u32_at(body, 4)?, flags: u32_at(body, 8)?, ..Link::default() };
    let mut elsewhere = false;
    for (kind, payload) in attrs(body.get(IFINFOMSG..)?) {
        match kind {
            IFLA_IFNAME => link.name = string(payload),
            IFLA_LINK => link.parent = u32_at(payload, 0),
            IFLA_LINK_NETNSID => elsewhere = true,
            IFLA_MTU => link.mtu = u32_at(payload, 0).unwrap_or(0),
            IFLA_CARRIER => link.carrier = payload == [1],
            IFLA_LINKINFO => {
                link.kind = find(payload, IFLA_INFO_KIND).map(string);
                link.port_of = find(payload, IFLA_INFO_SLAVE_KIND).map(string);
                if link.kind.as_deref() == Some("vrf") {
                    link.vrf_table = find(payload, IFLA_INFO_DATA)
                        .and_then(|data| find(data, IFLA_VRF_TABLE))
                        .and_then(|table| u32_at(table, 0));
                }
            }
            _ => {}
        }
    }
    // The index belongs to another network namespace.
    if elsewhere {
        link.parent = None;
    }
    Some(link)
}

/// Lists all addresses of both families.
pub(crate) fn addresses(socket: &mut Socket) -> Result<Vec<Address>, Error> {
    socket.dump(&mut dump_request(RTM_GETADDR, &[0; IFADDRMSG]), parse_address)
}

fn parse_address(body: &[u8]) -> Option<Address> {
    let (prefix, scope, link) = (*body.get(1)?, *body.get(3)?, u32_at(body, 4)?);
    let rest = body.get(IFADDRMSG..)?;
    let peer = find(rest, IFA_ADDRESS).and_then(ip)?;
    let own = find(rest, IFA_LOCAL).and_then(ip).unwrap_or(peer);
    Some(Address { link, net: IpNetwork::new(peer, prefix).ok()?, ip: own, scope })
}

/// Lists hardware addresses of the resolved neighbours that `keep` accepts.
pub(crate) fn neighbours(
    socket: &mut Socket,
    keep: impl Fn(u32, IpAddr) -> bool,
) -> Result<Neighbours, Error> {
    let found = socket.dump(&mut dump_request(RTM_GETNEIGH, &[0; NDMSG]), |body| {
        let (link, state) = (u32_at(body, 4)?, u16_at(body, 8)?);
        let attributes = body.get(NDMSG..)?;
        let ip = find(attributes, NDA_DST).and_then(ip).filter(|&ip| keep(link, ip))?;
        let mac = find(attributes, NDA_LLADDR)?.try_into().ok()?;
        (state != 0 && state & NUD_UNRESOLVED == 0).then_some(((link, ip), mac))
    })?;
    Ok(found.into_iter().collect())
}

/// Hardware address of one neighbour. `None` if the kernel has not resolved it, or does not answer
/// for a single neighbour (before Linux 5.0).
pub(crate) fn neighbour(socket: &mut Socket, link: u32, ip: IpAddr) -> Option<Mac> {
    let mut body = [0; NDMSG];
    body[0] = Family::of(ip).number();
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    let mut request = Writer::default();
    request.message(RTM_GETNEIGH, NLM_F_REQUEST, &body);
    request.ip(NDA_DST, ip);
    let found = socket.query(&mut request, |message| {
        let state = u16_at(message.body, 8)?;
        let mac = find(message.body.get(NDMSG..)?, NDA_LLADDR)?.try_into().ok()?;
        (state != 0 && state & NUD_UNRESOLVED == 0).then_some(mac)
    });
    found.ok()
}

/// Makes the kernel resolve a neighbour, as if the node sent a packet to it.
pub(crate) fn resolve(socket: &mut Socket, link: u32, ip: IpAddr) -> Result<(), Error> {
    let mut body = [0; NDMSG];
    body[0] = Family::of(ip).number();
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    body[10] = NTF_USE;
    let mut request = Writer::default();
    request.message(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, &body);
    request.ip(NDA_DST, ip);
    socket.acknowledged(&mut request)
}

/// Lists the routes of one family, from every table, that `keep` accepts: unicast, blackhole,
/// unreachable and prohibit.
pub(crate) fn routes(
    socket: &mut Socket,
    family: Family,
    keep: impl Fn(&Route) -> bool,
) -> Result<Vec<Route>, Error> {
    let mut body = [0; RTMSG];
    body[0] = family.number();
    socket.dump(&mut dump_request(RTM_GETROUTE, &body), |body| {
        parse_route(body, &KINDS).filter(&keep)
    })
}

/// Lists the tables with a `local` route that is wide ([`Route::is_wide`]). A transparent proxy
/// uses such a table to receive packets for any destination.
pub(crate) fn local_tables(socket: &mut Socket, family: Family) -> Result<BTreeSet<u32>, Error> {
    let mut body = [0; RTMSG];
    body[0] = family.number();
    let found = socket.dump(&mut dump_request(RTM_GETROUTE, &body), |body| {
        let route = parse_route(body, &[RTN_LOCAL])?;
        route.is_wide().then_some(route.table)
    })?;
    Ok(found.into_iter().collect())
}

fn parse_route(body: &[u8], kinds: &[u8]) -> Option<Route> {
    let family = Family::from_number(*body.first()?)?;
    let kind = *body.get(7)?;
    if u32_at(body, 8)? & RTM_F_CLONED != 0 || !kinds.contains(&kind) {
        return None;
    }
    let mut route = Route {
        table: u32::from(*body.get(4)?),
        dst: family.default_route(),
        kind,
        scope: *body.get(6)?,
        protocol: *body.get(5)?,
        metric: 0,
        nexthops: Vec::new(),
        metrics: Vec::new(),
        // Source prefix or TOS.
        is_special: body.get(2..4)? != [0; 2],
    };
    let onlink = u32_at(body, 8)? & RTNH_F_ONLINK != 0;
    let (mut link, mut gateway) = (None, None);
    for (kind, payload) in attrs(body.get(RTMSG..)?) {
        match kind {
            RTA_DST => route.dst = IpNetwork::new(ip(payload)?, *body.get(1)?).ok()?,
            RTA_TABLE => route.table = u32_at(payload, 0)?,
            RTA_PRIORITY => route.metric = u32_at(payload, 0)?,
            RTA_METRICS => route.metrics = payload.to_vec(),
            RTA_OIF => link = u32_at(payload, 0),
            RTA_GATEWAY => gateway = ip(payload),
            RTA_VIA => gateway = ip(payload.get(2..)?),
            RTA_MULTIPATH => route.nexthops = parse_nexthops(payload, &mut route.is_special),
            RTA_ENCAP_TYPE => route.is_special = true,
            _ => {}
        }
    }
    if let Some(link) = link {
        route.nexthops.push(Nexthop { link, gateway, onlink, weight: 0 });
    }
    Some(route)
}

fn parse_nexthops(mut payload: &[u8], is_special: &mut bool) -> Vec<Nexthop> {
    let mut found = Vec::new();
    while let (Some(len), Some(link)) = (u16_at(payload, 0), u32_at(payload, 4)) {
        let len = usize::from(len);
        let Some(rest) = payload.get(RTNEXTHOP..len) else { break };
        *is_special |= find(rest, RTA_ENCAP_TYPE).is_some();
        let gateway = attrs(rest).find_map(|(kind, payload)| match kind {
            RTA_GATEWAY => ip(payload),
            RTA_VIA => payload.get(2..).and_then(ip),
            _ => None,
        });
        // `rtnh_flags` and `rtnh_hops` are the bytes after the length.
        let (onlink, weight) = (u32::from(payload[2]) & RTNH_F_ONLINK != 0, payload[3]);
        found.push(Nexthop { link, gateway, onlink, weight });
        payload = payload.get((len + 3) & !3..).unwrap_or(&[]);
    }
    found
}

pub(crate) fn rules(socket: &mut Socket, family: Family) -> Result<Vec<FoundRule>, Error> {
    let mut body = [0; FIB_RULE_HDR];
    body[0] = family.number();
    socket.dump(&mut dump_request(RTM_GETRULE, &body), parse_rule)
}

fn parse_rule(body: &[u8]) -> Option<FoundRule> {
    let family = Family::from_number(*body.first()?)?;
    let flags = u32_at(body, 8)?;
    let (mut table, mut target) = (u32::from(*body.get(4)?), 0);
    let (mut mark, mut bits) = (None, None);
    let mut rule = Rule::of_all(family, 0, Action::Nop, 0);
    let is_inverted = flags & FIB_RULE_INVERT != 0;
    // `tos`: the type of service.
    let mut more = *body.get(3)? != 0;
    for (kind, payload) in attrs(body.get(FIB_RULE_HDR..)?) {
        match kind {
            FRA_PRIORITY => rule.priority = u32_at(payload, 0)?,
            FRA_TABLE => table = u32_at(payload, 0)?,
            FRA_GOTO => target = u32_at(payload, 0)?,
            FRA_FWMARK => mark = u32_at(payload, 0),
            FRA_FWMASK => bits = u32_at(payload, 0),
            FRA_SRC => rule.from = IpNetwork::new(ip(payload)?, *body.get(2)?).ok(),
            FRA_DST => rule.to = IpNetwork::new(ip(payload)?, *body.get(1)?).ok(),
            FRA_IIFNAME => rule.iif = Some(string(payload)),
            FRA_PROTOCOL => rule.protocol = *payload.first()?,
            // The kernel sets -1, which suppresses no route, for each rule without this attribute.
            FRA_SUPPRESS_PREFIXLEN => {
                rule.suppress = Some(u32_at(payload, 0)?).filter(|&length| length != u32::MAX);
            }
            _ => more = true,
        }
    }
    let is_by_mark = bits.is_some_and(|bits| bits != 0);
    let has_net = *body.get(1)? != 0 || *body.get(2)? != 0;
    rule.is_inverted = is_inverted && is_by_mark && !more && !has_net && rule.iif.is_none();
    more |= is_inverted;
    rule.other_selectors = more || has_net;
    more |= rule.iif.is_some();
    let (from, to) = (rule.from, rule.to);
    rule.from = from.filter(|_| !more && to.is_none());
    rule.to = to.filter(|_| !more && from.is_none());
    rule.action = match *body.get(7)? {
        FR_ACT_TO_TBL => Action::Lookup(table),
        FR_ACT_GOTO => Action::Goto(target),
        FR_ACT_NOP => Action::Nop,
        other => Action::Other(other),
    };
    if let Some(bits) = bits.filter(|&bits| bits != 0) {
        rule.mark = Some(MarkMatch { value: mark.unwrap_or(0), mask: bits });
    }
    Some(FoundRule { rule, message: body.to_vec() })
}

/// Adds a route. If the same route exists, does nothing.
pub(crate) fn add_route(socket: &mut Socket, route: &Route) -> Result<(), Error> {
    change_route(socket, route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, &[Errno::EEXIST])
}

/// Replaces the route with the same destination and metric, in one step.
pub(crate) fn replace_route(socket: &mut Socket, route: &Route) -> Result<(), Error> {
    change_route(socket, route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &[])
}

/// Deletes a route. A route that no longer exists is no error.
pub(crate) fn delete_route(socket: &mut Socket, route: &Route) -> Result<(), Error> {
    change_route(socket, route, RTM_DELROUTE, 0, &[Errno::ESRCH, Errno::ENODEV])
}

fn change_route(
    socket: &mut Socket,
    route: &Route,
    kind: u16,
    flags: u16,
    tolerated: &[Errno],
) -> Result<(), Error> {
    let mut body = [0; RTMSG];
    body[0] = route.family().number();
    body[1] = route.dst.prefix();
    body[5] = route.protocol;
    body[6] = route.scope;
    body[7] = route.kind;
    let only = route.nexthops.first().filter(|_| route.nexthops.len() == 1);
    if only.is_some_and(|hop| hop.onlink) {
        body[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let mut request = Writer::default();
    request.message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, &body);
    if !route.is_default() {
        request.ip(RTA_DST, route.dst.ip());
    }
    request.u32(RTA_TABLE, route.table);
    if route.metric != 0 {
        request.u32(RTA_PRIORITY, route.metric);
    }
    if !route.metrics.is_empty() && kind == RTM_NEWROUTE {
        request.attr(RTA_METRICS | NLA_F_NESTED, &route.metrics);
    }
    match only {
        Some(hop) => {
            request.u32(RTA_OIF, hop.link);
            if let Some(gateway) = hop.gateway {
                write_gateway(&mut request, route.family(), gateway);
            }
        }
        None => request.attr(RTA_MULTIPATH, &multipath(route)),
    }
    tolerate(socket.acknowledged(&mut request), tolerated)
}

/// The payload of `RTA_MULTIPATH`: a `struct rtnexthop` for each next hop, with the router after
/// it.
fn multipath(route: &Route) -> Vec<u8> {
    let mut hops = Vec::new();
    for hop in &route.nexthops {
        let mut gateway = Writer::default();
        if let Some(ip) = hop.gateway {
            write_gateway(&mut gateway, route.family(), ip);
        }
        // A router's attribute has at most 24 bytes.
        let length = u16::try_from(RTNEXTHOP + gateway.as_bytes().len()).unwrap_or(u16::MAX);
        let flags = if hop.onlink { RTNH_F_ONLINK } else { 0 };
        hops.extend_from_slice(&length.to_ne_bytes());
        hops.extend_from_slice(&[flags.to_le_bytes()[0], hop.weight]);
        hops.extend_from_slice(&hop.link.to_ne_bytes());
        hops.extend_from_slice(gateway.as_bytes());
    }
    hops
}

/// Writes `RTA_GATEWAY`, or for a router of the other family `RTA_VIA`: two bytes with its family,
/// and the address.
fn write_gateway(request: &mut Writer, family: Family, gateway: IpAddr) {
    if Family::of(gateway) == family {
        return request.ip(RTA_GATEWAY, gateway);
    }
    let mut via = u16::from(Family::of(gateway).number()).to_ne_bytes().to_vec();
    match gateway {
        IpAddr::V4(ip) => via.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => via.extend_from_slice(&ip.octets()),
    }
    request.attr(RTA_VIA, &via);
}

/// Adds a rule. If the same rule exists, does nothing.
pub(crate) fn add_rule(socket: &mut Socket, rule: &Rule) -> Result<(), Error> {
    let mut request = Writer::default();
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request.message(RTM_NEWRULE, flags, &rule_message(rule));
    tolerate(socket.acknowledged(&mut request), &[Errno::EEXIST])
}

/// Body of the message that adds or deletes exactly this rule.
pub(crate) fn rule_message(rule: &Rule) -> Vec<u8> {
    let mut body = [0; FIB_RULE_HDR];
    body[0] = rule.family.number();
    body[7] = match rule.action {
        Action::Lookup(_) => FR_ACT_TO_TBL,
        Action::Goto(_) => FR_ACT_GOTO,
        Action::Nop => FR_ACT_NOP,
        Action::Other(other) => other,
    };
    body[1] = rule.to.map_or(0, |net| net.prefix());
    body[2] = rule.from.map_or(0, |net| net.prefix());
    let mut message = Writer::default();
    message.bytes(&body);
    if let Some(to) = rule.to {
        message.ip(FRA_DST, to.network());
    }
    if let Some(from) = rule.from {
        message.ip(FRA_SRC, from.network());
    }
    message.u32(FRA_PRIORITY, rule.priority);
    message.attr(FRA_PROTOCOL, &[rule.protocol]);
    match rule.action {
        Action::Lookup(table) => message.u32(FRA_TABLE, table),
        Action::Goto(target) => message.u32(FRA_GOTO, target),
        Action::Nop | Action::Other(_) => {}
    }
    if let Some(MarkMatch { value, mask }) = rule.mark {
        message.u32(FRA_FWMARK, value);
        message.u32(FRA_FWMASK, mask);
    }
    if let Some(iif) = &rule.iif {
        message.str(FRA_IIFNAME, iif);
    }
    if let Some(length) = rule.suppress {
        message.u32(FRA_SUPPRESS_PREFIXLEN, length);
    }
    message.as_bytes().to_vec()
}

/// Deletes exactly the rule that a dump returned. A missing attribute would be a wildcard.
pub(crate) fn delete_rule(socket: &mut Socket, found: &FoundRule) -> Result<(), Error> {
    let mut body = found.message.clone();
    if let Some(flags) = u32_at(&body, 8) {
        body[8..12].copy_from_slice(&(flags & !FIB_RULE_CONDITION).to_ne_bytes());
    }
    let mut request = Writer::default();
    request.message(RTM_DELRULE, NLM_F_REQUEST | NLM_F_ACK, &body);
    tolerate(socket.acknowledged(&mut request), &[Errno::ENOENT])
}

fn tolerate(result: Result<(), Error>, tolerated: &[Errno]) -> Result<(), Error> {
    match result {
        Err(error) if tolerated.contains(&error.errno) => Ok(()),
        other => other,
    }
}

/// A route look-up: where would the kernel send such a packet?
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup {
    pub(crate) to: IpAddr,
    /// Source address; `None` if the kernel still has to choose it.
    pub(crate) from: Option<IpAddr>,
    /// Index of the incoming interface, which needs `from`; `None` for the node's own packets.
    pub(crate) iif: Option<u32>,
    /// Packet mark.
    pub(crate) mark: u32,
}

/// The kernel's answer to a [`Lookup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    /// `RTN_*`: 1 is unicast, 2 is local.
    pub(crate) kind: u8,
    /// Table in which the kernel found the route.
    pub(crate) table: u32,
    pub(crate) link: u32,
    /// The router; `None` if the destination is on the link.
    pub(crate) gateway: Option<IpAddr>,
}

/// Makes route look-ups, including the reverse path filter: a martian is an error. `RTM_GETROUTE`
/// reads one route and does not wait for the routing lock.
pub(crate) fn lookups(
    socket: &mut Socket,
    questions: &[Lookup],
) -> Result<Vec<Result<Way, Error>>, Error> {
    let mut requests = Writer::with_capacity(64 * questions.len());
    for question in questions {
        write_lookup(&mut requests, question);
    }
    socket.queries(&mut requests, |message| {
        let kind = *message.body.get(7)?;
        let mut way = Way { kind, table: u32::from(*message.body.get(4)?), link: 0, gateway: None };
        for (attr, payload) in attrs(message.body.get(RTMSG..)?) {
            match attr {
                RTA_TABLE => way.table = u32_at(payload, 0)?,
                RTA_OIF => way.link = u32_at(payload, 0)?,
                RTA_GATEWAY => way.gateway = ip(payload),
                RTA_VIA => way.gateway = ip(payload.get(2..)?),
                _ => {}
            }
        }
        Some(way)
    })
}

fn write_lookup(request: &mut Writer, question: &Lookup) {
    let family = Family::of(question.to);
    let full: u8 = if family == Family::V4 { 32 } else { 128 };
    let mut body = [0; RTMSG];
    body[0] = family.number();
    body[1] = full;
    body[2] = if question.from.is_some() { full } else { 0 };
    // Without this flag, an IPv4 answer always names table main. An IPv6 answer always names the
    // right table, and the kernel refuses the flag.
    if family == Family::V4 {
        body[8..12].copy_from_slice(&RTM_F_LOOKUP_TABLE.to_ne_bytes());
    }
    request.message(RTM_GETROUTE, NLM_F_REQUEST, &body);
    request.ip(RTA_DST, question.to);
    if let Some(source) = question.from {
        request.ip(RTA_SRC, source);
    }
    if let Some(iif) = question.iif {
        request.u32(RTA_IIF, iif);
    }
    if question.mark != 0 {
        request.u32(RTA_MARK, question.mark);
    }
}
