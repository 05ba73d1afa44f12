//! Events of rtnetlink: interfaces, addresses, routes, rules.

use futures_util::StreamExt as _;
use ipnetwork::IpNetwork;
use rtnetlink::MulticastGroup::{
    Ipv4Ifaddr, Ipv4Route, Ipv4Rule, Ipv6Ifaddr, Ipv6Route, Ipv6Rule, Link as Links,
};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{InfoPortKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::proto::sys::AsyncSocket as _;

use crate::agent::filter::Event;
use crate::model::Link;

/// Receive buffer to ask for, in bytes. The kernel may grant less.
const BUFFER: usize = 1 << 20;

/// Joins the groups, calls `ready`, and then passes every event to `take` until the socket fails.
/// The kernel reports all changes after `ready`.
/// Error: the socket can't be opened, or was closed.
pub(crate) async fn watch(ready: impl FnOnce(), mut take: impl FnMut(Event)) -> Result<(), String> {
    let groups = [Links, Ipv4Ifaddr, Ipv4Route, Ipv4Rule, Ipv6Ifaddr, Ipv6Route, Ipv6Rule];
    let (mut connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&groups)
        .map_err(|error| format!("listen to rtnetlink: {error}"))?;
    // With a smaller buffer the kernel drops events earlier, and the agent notices that.
    let _ = connection.socket_mut().socket_mut().set_rx_buf_sz(BUFFER);
    let reading = tokio::spawn(connection);
    ready();
    while let Some((message, _)) = messages.next().await {
        match message.payload {
            NetlinkPayload::InnerMessage(message) => {
                if let Some(event) = event(message) {
                    take(event);
                }
            }
            NetlinkPayload::Overrun(_) => take(Event::Lost),
            _ => {}
        }
    }
    reading.abort();
    Err("the socket to rtnetlink was closed".into())
}

fn event(message: RouteNetlinkMessage) -> Option<Event> {
    use RouteNetlinkMessage as M;
    match message {
        // AF_BRIDGE: a bridge reports its ports in addition; the port itself sends AF_UNSPEC.
        M::NewLink(m) | M::DelLink(m) if m.header.interface_family != AddressFamily::Unspec => None,
        M::NewLink(m) => Some(Event::Link(link(m))),
        M::DelLink(m) => Some(Event::Gone(m.header.index)),
        M::NewAddress(AddressMessage { header, .. })
        | M::DelAddress(AddressMessage { header, .. }) => Some(Event::Address(header.index)),
        M::NewRoute(m) | M::DelRoute(m) => route(&m),
        M::NewRule(m) | M::DelRule(m) => Some(rule(&m)),
        _ => None,
    }
}

fn link(message: LinkMessage) -> Link {
    let flags = message.header.flags.bits();
    let mut link = Link { index: message.header.index, flags, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Carrier(carrier) => link.carrier = carrier == 1,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::PortKind(InfoPortKind::Bridge) => {
                            link.port_of = Some("bridge".into());
                        }
                        LinkInfo::PortKind(other) => link.port_of = Some(other.to_string()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn route(message: &RouteMessage) -> Option<Event> {
    if message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let (mut table, mut links) = (u32::from(message.header.table), Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|h| h.interface_index)),
            _ => {}
        }
    }
    if message.header.kind != RouteType::Unicast {
        links.clear();
    }
    Some(Event::Route { table, prefix: message.header.destination_prefix_length, links })
}

fn rule(message: &RuleMessage) -> Event {
    let (mut priority, mut table, mut marked) = (0, u32::from(message.header.table), false);
    let mut from = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Source(ip) => from = IpNetwork::new(*ip, message.header.src_len).ok(),
            RuleAttribute::FwMark(_) | RuleAttribute::FwMask(_) => marked = true,
            _ => {}
        }
    }
    Event::Rule { priority, table, marked, from }
}
