//! Rules of nftables that exempt packets from connection tracking, and flowtables. Rules of iptables-nft are
//! among them.
//!
//! Layouts: `linux/netfilter/nf_tables.h`, `linux/netfilter/xt_CT.h`.

use std::collections::BTreeSet;

use crate::doctor::bypass::{Flowtable, Untracked};
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, attrs, be32_at, find, ip, string, u16_at, u32_at};
use crate::netlink::{Error, Socket};

/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// Family, table, chain.
type Chain = (u8, String, String);

/// Matches of iptables that only narrow a rule down to some ports, or say nothing.
const NARROWING: [&str; 4] = ["udp", "tcp", "multiport", "comment"];

fn dump_of(message: u16) -> Writer {
    let mut request = Writer::with_capacity(64);
    let kind = NFNL_SUBSYS_NFTABLES << 8 | message;
    request.message(kind, NLM_F_REQUEST | NLM_F_DUMP, &[0; NFGENMSG]);
    request
}

/// The rules in base chains of prerouting, as far as they can be understood.
pub(super) fn rules(socket: &mut Socket) -> Result<Vec<Untracked>, Error> {
    let bases = socket.dump(&mut dump_of(NFT_MSG_GETCHAIN), |body| {
        let attributes = body.get(NFGENMSG..)?;
        let number = find(find(attributes, NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM)?;
        let is_prerouting = be32_at(number, 0)? == NF_INET_PRE_ROUTING;
        let chain = chain(body, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME)?;
        let is_routed = [NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6].contains(&chain.0);
        (is_prerouting && is_routed).then_some(chain)
    })?;
    let bases: BTreeSet<Chain> = bases.into_iter().collect();
    socket.dump(&mut dump_of(NFT_MSG_GETRULE), |body| {
        let of = chain(body, NFTA_RULE_TABLE, NFTA_RULE_CHAIN)?;
        let expressions = find(body.get(NFGENMSG..)?, NFTA_RULE_EXPRESSIONS)?;
        let rule = bases.contains(&of).then(|| untracked(expressions))??;
        Some(Untracked { place: format!("table {} of nftables, chain {}", of.1, of.2), ..rule })
    })
}

fn chain(body: &[u8], table: u16, name: u16) -> Option<Chain> {
    let attributes = body.get(NFGENMSG..)?;
    Some((*body.first()?, string(find(attributes, table)?), string(find(attributes, name)?)))
}

/// All flowtables, with the interfaces that feed them.
pub(super) fn flowtables(socket: &mut Socket) -> Result<Vec<Flowtable>, Error> {
    socket.dump(&mut dump_of(NFT_MSG_GETFLOWTABLE), |body| flowtable(body.get(NFGENMSG..)?))
}

fn flowtable(attributes: &[u8]) -> Option<Flowtable> {
    let hook = find(attributes, NFTA_FLOWTABLE_HOOK)?;
    let devices = find(hook, NFTA_FLOWTABLE_HOOK_DEVS).unwrap_or_default();
    let is_device = |(kind, _): &(u16, &[u8])| *kind == NFTA_DEVICE_NAME;
    Some(Flowtable {
        table: string(find(attributes, NFTA_FLOWTABLE_TABLE)?),
        name: string(find(attributes, NFTA_FLOWTABLE_NAME)?),
        links: attrs(devices).filter(is_device).map(|(_, name)| string(name)).collect(),
    })
}

/// What a register holds that a rule compares.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    InterfaceName,
    InterfaceIndex,
    Destination,
    /// A protocol or a port.
    Narrowing,
    Unknown,
}

/// The rule, if it exempts packets and asks for nothing but interface, destination and ports.
fn untracked(expressions: &[u8]) -> Option<Untracked> {
    let mut rule = Untracked::default();
    let mut loaded = Loaded::Unknown;
    for (_, expression) in attrs(expressions) {
        let name = string(find(expression, NFTA_EXPR_NAME)?);
        let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
        match name.as_str() {
            "notrack" => return Some(rule),
            "target" => return is_notrack(data).then_some(rule),
            "meta" => loaded = of_meta(data)?,
            "payload" => loaded = of_payload(data)?,
            "cmp" => compare(data, loaded, &mut rule)?,
            "lookup" if loaded == Loaded::Narrowing => {}
            "match" if NARROWING.contains(&string(find(data, NFTA_MATCH_NAME)?).as_str()) => {}
            "counter" => {}
            _ => return None,
        }
    }
    None
}

/// `-j CT --notrack`, or `-j NOTRACK` of old.
fn is_notrack(data: &[u8]) -> bool {
    let name = find(data, NFTA_TARGET_NAME).map(string);
    let flags = find(data, NFTA_TARGET_INFO).and_then(|info| u16_at(info, 0));
    match name.as_deref() {
        Some("CT") => flags.is_some_and(|flags| flags & XT_CT_NOTRACK != 0),
        Some("NOTRACK") => true,
        _ => false,
    }
}

/// None where the expression does not load, but sets.
fn of_meta(data: &[u8]) -> Option<Loaded> {
    find(data, NFTA_META_DREG)?;
    Some(match be32_at(find(data, NFTA_META_KEY)?, 0)? {
        NFT_META_IIFNAME => Loaded::InterfaceName,
        NFT_META_IIF => Loaded::InterfaceIndex,
        NFT_META_L4PROTO | NFT_META_NFPROTO | NFT_META_PROTOCOL => Loaded::Narrowing,
        _ => Loaded::Unknown,
    })
}

fn of_payload(data: &[u8]) -> Option<Loaded> {
    let number = |kind| be32_at(find(data, kind)?, 0);
    let offset = number(NFTA_PAYLOAD_OFFSET)?;
    Some(match (number(NFTA_PAYLOAD_BASE)?, offset, number(NFTA_PAYLOAD_LEN)?) {
        (NFT_PAYLOAD_TRANSPORT_HEADER, ..) => Loaded::Narrowing,
        // `daddr` of `struct iphdr` and `struct ipv6hdr`.
        (NFT_PAYLOAD_NETWORK_HEADER, 16, 4) | (NFT_PAYLOAD_NETWORK_HEADER, 24, 16) => {
            Loaded::Destination
        }
        _ => Loaded::Unknown,
    })
}

/// None where the comparison asks for something else.
fn compare(data: &[u8], loaded: Loaded, rule: &mut Untracked) -> Option<()> {
    if loaded == Loaded::Narrowing {
        return Some(());
    }
    let is_equal = be32_at(find(data, NFTA_CMP_OP)?, 0)? == NFT_CMP_EQ;
    let value = find(find(data, NFTA_CMP_DATA)?, NFTA_DATA_VALUE).filter(|_| is_equal)?;
    match loaded {
        // A name with its terminating zero, or the beginning of one.
        Loaded::InterfaceName if value.contains(&0) => rule.link = Some(string(value)),
        Loaded::InterfaceName => rule.link = Some(format!("{}*", string(value))),
        Loaded::InterfaceIndex => rule.index = u32_at(value, 0),
        Loaded::Destination => rule.to = Some(ip(value)?),
        Loaded::Narrowing | Loaded::Unknown => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(list: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
        list.nest(NFTA_LIST_ELEM, |element| {
            element.str(NFTA_EXPR_NAME, name);
            element.nest(NFTA_EXPR_DATA, data);
        });
    }

    fn meta(list: &mut Writer, key: u32) {
        expression(list, "meta", |data| {
            data.be32(NFTA_META_DREG, NFT_REG_1);
            data.be32(NFTA_META_KEY, key);
        });
    }

    fn cmp(list: &mut Writer, op: u32, value: &[u8]) {
        expression(list, "cmp", |data| {
            data.be32(NFTA_CMP_OP, op);
            data.nest(NFTA_CMP_DATA, |nested| nested.attr(NFTA_DATA_VALUE, value));
        });
    }

    fn payload(list: &mut Writer, base: u32, offset: u32, length: u32) {
        expression(list, "payload", |data| {
            data.be32(NFTA_PAYLOAD_BASE, base);
            data.be32(NFTA_PAYLOAD_OFFSET, offset);
            data.be32(NFTA_PAYLOAD_LEN, length);
        });
    }

    fn read(fill: impl FnOnce(&mut Writer)) -> Option<Untracked> {
        let mut list = Writer::default();
        fill(&mut list);
        untracked(list.as_bytes())
    }

    #[test]
    fn rules_that_are_understood() {
        let rule = read(|list| {
            meta(list, NFT_META_IIFNAME);
            cmp(list, NFT_CMP_EQ, b"eth1\0\0\0\0");
            meta(list, NFT_META_L4PROTO);
            cmp(list, NFT_CMP_EQ, &[17]);
            payload(list, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
            cmp(list, NFT_CMP_EQ, &[0, 53]);
            expression(list, "counter", |_| {});
            expression(list, "notrack", |_| {});
        });
        assert_eq!(rule.unwrap().link.as_deref(), Some("eth1"));
        let rule = read(|list| {
            meta(list, NFT_META_IIFNAME);
            cmp(list, NFT_CMP_EQ, b"eth");
            payload(list, NFT_PAYLOAD_NETWORK_HEADER, 16, 4);
            cmp(list, NFT_CMP_EQ, &[169, 254, 20, 10]);
            expression(list, "target", |data| {
                data.str(NFTA_TARGET_NAME, "CT");
                data.attr(NFTA_TARGET_INFO, &XT_CT_NOTRACK.to_ne_bytes());
            });
        });
        let rule = rule.unwrap();
        assert_eq!(rule.link.as_deref(), Some("eth*"));
        assert_eq!(rule.to, Some([169, 254, 20, 10].into()));
    }

    #[test]
    fn rules_that_ask_for_more_are_left_alone() {
        let notrack = |list: &mut Writer| expression(list, "notrack", |_| {});
        assert!(read(notrack).is_some());
        let by_mark = read(|list| {
            meta(list, NFT_META_MARK);
            cmp(list, NFT_CMP_EQ, &[0, 0, 2, 0]);
            notrack(list);
        });
        let not_this_one = read(|list| {
            meta(list, NFT_META_IIFNAME);
            cmp(list, NFT_CMP_NEQ, b"eth1\0");
            notrack(list);
        });
        let by_source = read(|list| {
            payload(list, NFT_PAYLOAD_NETWORK_HEADER, 12, 4);
            cmp(list, NFT_CMP_EQ, &[10, 0, 0, 1]);
            notrack(list);
        });
        let zone = read(|list| {
            expression(list, "target", |data| {
                data.str(NFTA_TARGET_NAME, "CT");
                data.attr(NFTA_TARGET_INFO, &[0; 2]);
            });
        });
        assert_eq!([by_mark, not_this_one, by_source, zone], [None, None, None, None]);
        assert_eq!(read(|list| expression(list, "counter", |_| {})), None);
    }

    #[test]
    fn a_flowtable_and_its_interfaces() {
        let mut message = Writer::default();
        message.str(NFTA_FLOWTABLE_TABLE, "f");
        message.str(NFTA_FLOWTABLE_NAME, "fast");
        message.nest(NFTA_FLOWTABLE_HOOK, |hook| {
            hook.nest(NFTA_FLOWTABLE_HOOK_DEVS, |devices| {
                devices.str(NFTA_DEVICE_NAME, "eth0");
                devices.str(NFTA_DEVICE_NAME, "eth1");
            });
        });
        let found = flowtable(message.as_bytes()).unwrap();
        assert_eq!((found.table.as_str(), found.name.as_str()), ("f", "fast"));
        assert_eq!(found.links, ["eth0", "eth1"]);
    }
}
