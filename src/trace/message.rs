//! Reads trace messages of `nf_tables`: the result of a rule or a chain for a packet.
//!
//! Layout: `enum nft_trace_attributes` of `linux/netfilter/nf_tables.h`, filled by
//! `nft_trace_notify` of `net/netfilter/nf_tables_trace.c`. Only the first message of a chain has
//! the headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netlink::uapi::*;
use crate::netlink::wire;
use crate::netlink::wire::{be_i32_at, be32_at, find, string};

/// Size of `struct nfgenmsg` in bytes.
const NFGENMSG: usize = 4;

/// One trace message: the result of a rule or a chain for a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Id of the packet, equal in all its messages. The kernel may reuse it for a later packet.
    pub(crate) id: u32,
    /// Family and name as nft writes them, for example "inet symroute".
    pub(crate) table: String,
    pub(crate) chain: String,
    pub(crate) kind: Kind,
    /// Packet mark after the rule.
    pub(crate) mark: u32,
    /// Index of the incoming interface.
    pub(crate) iif: Option<u32>,
    /// Index of the outgoing interface.
    pub(crate) oif: Option<u32>,
    pub(crate) headers: Option<Headers>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The rule with this handle matched. `drops`: whether its verdict is drop.
    Rule { handle: u64, drops: bool },
    /// The packet reached the end of a base chain. `drops`: whether the policy is drop.
    End { drops: bool },
    /// A message without a new result.
    Other,
}

/// Sender, receiver and protocol of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Headers {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// `IPPROTO_*`; with IPv6 possibly the number of an extension header.
    pub(crate) protocol: u8,
    /// Source and destination port of TCP or UDP.
    pub(crate) ports: Option<(u16, u16)>,
    /// Flags of TCP.
    pub(crate) flags: Option<u8>,
    /// Type and code of ICMP or ICMPv6.
    pub(crate) icmp: Option<(u8, u8)>,
}

/// What an ICMP message says about a packet of its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IcmpError {
    /// The packet could not be delivered.
    Undelivered,
    /// The packet is too big for a link, or another router is nearer. The receiver adapts.
    Advice,
}

impl Headers {
    /// Source address and port; port 0 if there is none.
    pub(crate) fn sender(&self) -> SocketAddr {
        SocketAddr::new(self.from, self.ports.map_or(0, |(from, _)| from))
    }

    /// Destination address and port; port 0 if there is none.
    pub(crate) fn receiver(&self) -> SocketAddr {
        SocketAddr::new(self.to, self.ports.map_or(0, |(_, to)| to))
    }

    /// The error if this is an ICMP error (RFC 792, RFC 4443) or a redirect of IPv4. Conntrack counts
    /// these messages to the connection of the packet that they are about.
    pub(crate) fn icmp_error(&self) -> Option<IcmpError> {
        match (self.protocol, self.icmp?) {
            // Fragmentation needed, redirect; packet too big.
            (IPPROTO_ICMP, (3, 4) | (5, _)) | (IPPROTO_ICMPV6, (2, _)) => Some(IcmpError::Advice),
            (IPPROTO_ICMP, (3 | 4 | 11 | 12, _)) | (IPPROTO_ICMPV6, (1..=4, _)) => {
                Some(IcmpError::Undelivered)
            }
            _ => None,
        }
    }
}

/// Reads a netlink message. `None` if it is not a trace message or lacks an attribute.
pub(crate) fn parse(message: wire::Message<'_>) -> Option<Message> {
    if message.kind != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE {
        return None;
    }
    let family = family(*message.body.first()?);
    let body = message.body.get(NFGENMSG..)?;
    let number = |attribute| find(body, attribute).and_then(|payload| be32_at(payload, 0));
    let handle = find(body, NFTA_TRACE_RULE_HANDLE)
        .and_then(|payload| Some(u64::from_be_bytes(payload.get(..8)?.try_into().ok()?)));
    let drops = find(body, NFTA_TRACE_VERDICT)
        .and_then(|verdict| find(verdict, NFTA_VERDICT_CODE))
        .and_then(|code| be_i32_at(code, 0))
        == Some(NF_DROP);
    let kind = match (number(NFTA_TRACE_TYPE)?, handle) {
        (NFT_TRACETYPE_RULE, Some(handle)) => Kind::Rule { handle, drops },
        (NFT_TRACETYPE_POLICY, _) => Kind::End { drops: number(NFTA_TRACE_POLICY) == Some(0) },
        _ => Kind::Other,
    };
    let network = find(body, NFTA_TRACE_NETWORK_HEADER);
    Some(Message {
        id: number(NFTA_TRACE_ID)?,
        table: format!("{family} {}", string(find(body, NFTA_TRACE_TABLE)?)),
        chain: string(find(body, NFTA_TRACE_CHAIN)?),
        kind,
        mark: number(NFTA_TRACE_MARK).unwrap_or(0),
        iif: number(NFTA_TRACE_IIF),
        oif: number(NFTA_TRACE_OIF),
        headers: network.and_then(|bytes| headers(bytes, find(body, NFTA_TRACE_TRANSPORT_HEADER))),
    })
}

/// nft's name for the family of a table.
fn family(number: u8) -> &'static str {
    match number {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        NFPROTO_IPV6 => "ip6",
        NFPROTO_ARP => "arp",
        NFPROTO_BRIDGE => "bridge",
        NFPROTO_NETDEV => "netdev",
        _ => "unknown",
    }
}

/// Reads `struct iphdr` or `struct ipv6hdr`, and `struct tcphdr`, `struct udphdr` or
/// `struct icmphdr`.
fn headers(network: &[u8], transport: Option<&[u8]>) -> Option<Headers> {
    let (from, to, protocol): (IpAddr, IpAddr, u8) = match network.first()? >> 4 {
        4 => (
            Ipv4Addr::from(<[u8; 4]>::try_from(network.get(12..16)?).ok()?).into(),
            Ipv4Addr::from(<[u8; 4]>::try_from(network.get(16..20)?).ok()?).into(),
            *network.get(9)?,
        ),
        6 => (
            Ipv6Addr::from(<[u8; 16]>::try_from(network.get(8..24)?).ok()?).into(),
            Ipv6Addr::from(<[u8; 16]>::try_from(network.get(24..40)?).ok()?).into(),
            *network.get(6)?,
        ),
        _ => return None,
    };
    let icmp = transport.filter(|_| [IPPROTO_ICMP, IPPROTO_ICMPV6].contains(&protocol));
    let icmp = icmp.and_then(|bytes| Some((*bytes.first()?, *bytes.get(1)?)));
    let transport = transport.filter(|_| [IPPROTO_TCP, IPPROTO_UDP].contains(&protocol));
    let port = |at: usize| {
        let bytes = transport?.get(at..at + 2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    let flags = transport.filter(|_| protocol == IPPROTO_TCP).and_then(|t| t.get(13).copied());
    Some(Headers { from, to, protocol, ports: port(0).zip(port(2)), flags, icmp })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::netlink::wire::{Writer, messages};

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    /// A message as Linux 6.18 sends it, with the attributes' bytes in hexadecimal.
    fn sent(attributes: &[(u16, &str)]) -> Option<Message> {
        let mut w = Writer::default();
        w.message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE, 0, &[1, 0, 0, 0]);
        w.str(NFTA_TRACE_CHAIN, "o");
        w.str(NFTA_TRACE_TABLE, "tr");
        for (kind, hex) in attributes {
            w.attr(*kind, &bytes(hex));
        }
        messages(w.as_bytes()).find_map(parse)
    }

    #[test]
    fn messages_of_a_kernel() {
        let rule = sent(&[
            (15, "00000002"),
            (4, "00000003"),
            (6, "334f7715"),
            (3, "000000000000000c"),
            (5, "08000100ffffffff"),
            (14, "00000007"),
            (12, "00000003"),
            (13, "0001"),
            (8, "45000028000040004006f4a70a15000acb007109"),
            (9, "00638dec000000009afd640950140000dc510000"),
        ]);
        let rule = rule.unwrap();
        assert_eq!(rule.kind, Kind::Rule { handle: 12, drops: false });
        assert_eq!((rule.id, rule.mark, rule.iif, rule.oif), (0x334f_7715, 7, None, Some(3)));
        assert_eq!((rule.table.as_str(), rule.chain.as_str()), ("inet tr", "o"));
        let headers = rule.headers.unwrap();
        assert_eq!(headers.sender(), "10.21.0.10:99".parse().unwrap());
        assert_eq!(headers.receiver(), "203.0.113.9:36332".parse().unwrap());
        assert_eq!((headers.protocol, headers.flags), (6, Some(0x14)));
        let end = sent(&[(4, "00000001"), (6, "334f7715"), (16, "00000001")]).unwrap();
        assert_eq!((end.kind, end.mark), (Kind::End { drops: false }, 0));
        let v6 = sent(&[
            (4, "00000003"),
            (6, "113c26a7"),
            (3, "0000000000000008"),
            (5, "0800010000000000"),
            (10, "00000002"),
            (8, "600c00cf0028064020010db800210000000000000000000920010db8002100000000000000000010"),
            (9, "bec20063e44bc1d300000000a002fd205bfb0000"),
        ]);
        let v6 = v6.unwrap();
        assert_eq!(v6.kind, Kind::Rule { handle: 8, drops: true });
        assert_eq!(v6.headers.unwrap().receiver(), "[2001:db8:21::10]:99".parse().unwrap());
        assert_eq!(sent(&[(4, "00000003")]), None, "without an id");
    }

    #[test]
    fn icmp_errors() {
        let error = |protocol: &str, transport: &str| {
            let network = format!("450000540000400040{protocol}f4a70a15000acb007109");
            let sent = sent(&[(4, "00000001"), (6, "334f7715"), (8, &network), (9, transport)]);
            sent.unwrap().headers.unwrap().icmp_error()
        };
        let undelivered = Some(IcmpError::Undelivered);
        assert_eq!(error("01", "0301fcfe00000000"), undelivered, "host unreachable");
        assert_eq!(error("01", "0b00fcfe00000000"), undelivered, "too many hops");
        assert_eq!(error("01", "0304fcfe000005dc"), Some(IcmpError::Advice), "too big");
        assert_eq!(error("01", "0800fcfe00000000"), None, "an echo request");
        assert_eq!(error("06", "030100509afd640950140000dc510000"), None, "TCP");
        assert_eq!(error("3a", "0103fcfe00000000"), undelivered, "address unreachable");
        assert_eq!(error("3a", "0200fcfe00000000"), Some(IcmpError::Advice), "too big");
        assert_eq!(error("3a", "8000fcfe00000000"), None, "an echo request");
        assert_eq!(error("01", "03"), None, "no code");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(kinds: Vec<(u8, Vec<u8>)>, rest: Vec<u8>) {
            let mut w = Writer::default();
            w.message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE, 0, &[1, 0, 0, 0]);
            for (kind, payload) in &kinds {
                w.attr(u16::from(kind % 18), payload);
            }
            w.bytes(&rest);
            for message in messages(w.as_bytes()) {
                let _ = parse(message);
            }
        }
    }
}
