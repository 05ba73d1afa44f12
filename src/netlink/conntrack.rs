//! Reads connections of conntrack (`ctnetlink_fill_info`, `net/netfilter/nf_conntrack_netlink.c`).
//!
//! Layouts: `enum ctattr_type` and the enumerations after it in
//! `linux/netfilter/nfnetlink_conntrack.h`. Ports and numbers are in network byte order.

use std::net::{IpAddr, SocketAddr};

use super::uapi::*;
use super::wire::{Writer, attrs, be32_at, find, ip};
use super::{Error, Socket};
use crate::model::Family;

/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// Sender and receiver in one direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// `IPPROTO_*`
    pub(crate) protocol: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Addresses of the first packet before NAT.
    pub(crate) original: Tuple,
    /// Addresses of a reply before conntrack undoes NAT.
    pub(crate) reply: Tuple,
    pub(crate) mark: u32,
    /// `IPS_*`
    pub(crate) status: u32,
}

/// Lists the connections from one address to another. Kernels before 5.8 return all connections of
/// the family, so this function filters them, too.
pub(crate) fn list_between(
    socket: &mut Socket,
    from: IpAddr,
    to: IpAddr,
) -> Result<Vec<Connection>, Error> {
    let family = Family::of(from);
    let mut request = dump(family.number());
    let [source, destination] = match family {
        Family::V4 => [CTA_IP_V4_SRC, CTA_IP_V4_DST],
        Family::V6 => [CTA_IP_V6_SRC, CTA_IP_V6_DST],
    };
    request.nest(CTA_TUPLE_ORIG, |w| {
        w.nest(CTA_TUPLE_IP, |w| {
            w.ip(source, from);
            w.ip(destination, to);
        });
    });
    request.nest(CTA_FILTER, |w| {
        w.u32(CTA_FILTER_ORIG_FLAGS, CTA_FILTER_F_CTA_IP_SRC | CTA_FILTER_F_CTA_IP_DST);
        w.u32(CTA_FILTER_REPLY_FLAGS, 0);
    });
    let found = socket.dump(&mut request, parse)?;
    let is_between =
        |one: &Connection| (one.original.from.ip(), one.original.to.ip()) == (from, to);
    Ok(found.into_iter().filter(is_between).collect())
}

/// Lists the connections of both families for which `is_wanted` holds. The others are not kept,
/// because a busy node has a million.
pub(crate) fn list(
    socket: &mut Socket,
    is_wanted: impl Fn(&Connection) -> bool,
) -> Result<Vec<Connection>, Error> {
    socket.dump(&mut dump(NFPROTO_UNSPEC), |body| parse(body).filter(&is_wanted))
}

/// Lists the conntrack mark of each connection that is in a flowtable.
pub(crate) fn marks_of_offloaded(socket: &mut Socket) -> Result<Vec<u32>, Error> {
    let mut request = dump(NFPROTO_UNSPEC);
    request.be32(CTA_STATUS, IPS_OFFLOAD);
    request.be32(CTA_STATUS_MASK, IPS_OFFLOAD);
    socket.dump(&mut request, |body| {
        let attributes = body.get(NFGENMSG..)?;
        let number = |kind| find(attributes, kind).and_then(|payload| be32_at(payload, 0));
        // Kernels before 5.16 return all connections.
        let is_offloaded = number(CTA_STATUS)? & IPS_OFFLOAD != 0;
        is_offloaded.then(|| number(CTA_MARK).unwrap_or(0))
    })
}

fn dump(family: u8) -> Writer {
    let mut request = Writer::default();
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
    request.message(kind, NLM_F_REQUEST | NLM_F_DUMP, &[family, 0, 0, 0]);
    request
}

fn parse(body: &[u8]) -> Option<Connection> {
    let attributes = body.get(NFGENMSG..)?;
    let number = |kind| find(attributes, kind).and_then(|payload| be32_at(payload, 0));
    Some(Connection {
        original: tuple(find(attributes, CTA_TUPLE_ORIG)?)?,
        reply: tuple(find(attributes, CTA_TUPLE_REPLY)?)?,
        mark: number(CTA_MARK).unwrap_or(0),
        status: number(CTA_STATUS).unwrap_or(0),
    })
}

fn tuple(nested: &[u8]) -> Option<Tuple> {
    let (mut from, mut to) = (None, None);
    for (kind, payload) in attrs(find(nested, CTA_TUPLE_IP)?) {
        match kind {
            CTA_IP_V4_SRC | CTA_IP_V6_SRC => from = ip(payload),
            CTA_IP_V4_DST | CTA_IP_V6_DST => to = ip(payload),
            _ => {}
        }
    }
    let proto = find(nested, CTA_TUPLE_PROTO)?;
    // A protocol without ports has no such attributes.
    let port = |kind| {
        let bytes = find(proto, kind).and_then(|payload| payload.get(..2)?.try_into().ok());
        bytes.map_or(0, u16::from_be_bytes)
    };
    Some(Tuple {
        from: SocketAddr::new(from?, port(CTA_PROTO_SRC_PORT)),
        to: SocketAddr::new(to?, port(CTA_PROTO_DST_PORT)),
        protocol: *find(proto, CTA_PROTO_NUM)?.first()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_tuple(w: &mut Writer, kind: u16, from: SocketAddr, to: SocketAddr) {
        w.nest(kind, |w| {
            w.nest(CTA_TUPLE_IP, |w| {
                w.ip(CTA_IP_V4_SRC, from.ip());
                w.ip(CTA_IP_V4_DST, to.ip());
            });
            w.nest(CTA_TUPLE_PROTO, |w| {
                w.attr(CTA_PROTO_NUM, &[6]);
                w.attr(CTA_PROTO_SRC_PORT, &from.port().to_be_bytes());
                w.attr(CTA_PROTO_DST_PORT, &to.port().to_be_bytes());
            });
        });
    }

    #[test]
    fn a_connection_with_dnat() {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (client, called) = (end("203.0.113.9:4711"), end("10.21.0.10:30080"));
        let pod = end("10.244.1.5:8080");
        let mut w = Writer::default();
        w.bytes(&[2, 0, 0, 0]);
        write_tuple(&mut w, CTA_TUPLE_ORIG, client, called);
        write_tuple(&mut w, CTA_TUPLE_REPLY, pod, client);
        w.be32(CTA_MARK, 0x200);
        w.be32(CTA_STATUS, 0x2a);
        let found = parse(w.as_bytes()).unwrap();
        assert_eq!((found.original.from, found.original.to), (client, called));
        assert_eq!((found.reply.from, found.mark, found.status), (pod, 0x200, 0x2a));
        let whole = w.as_bytes().len();
        assert!((0..whole / 2).all(|end| parse(&w.as_bytes()[..end]).is_none()));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
