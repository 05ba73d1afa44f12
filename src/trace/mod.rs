//! `symroutectl trace`: follows the packets of one flow through this node, without BPF.
//!
//! Two sources of the kernel are joined. [`ruleset`] puts an nftables table of its own in place that
//! does nothing but ask for trace messages of the flow's packets; [`message`] reads these. The
//! tracepoints of an own tracefs [`instance`] have each routing table that was tried, and drops;
//! [`text`] reads these.
//!
//! The two are joined exactly where the kernel has the tracepoint `sock:sk_data_ready` (6.3): it
//! fires for each trace message that reaches our socket, so it puts the messages in order with the
//! look-ups of the same processor. [`join`] makes packets of that, and [`words`] tells of them.

mod guard;
mod instance;
mod join;
mod live;
pub(crate) mod message;
mod routers;
mod ruleset;
mod summary;
pub(crate) mod text;
mod tracepoints;
mod words;

use std::net::IpAddr;

pub(crate) use live::{Cannot, Options, link_name, run};
pub(crate) use summary::Summary;

use message::Headers;

/// Which packets: those of a client's connections, and the replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) from: IpAddr,
    pub(crate) from_port: Option<u16>,
    /// What the client calls: the address before any DNAT.
    pub(crate) to: IpAddr,
    pub(crate) to_port: Option<u16>,
    /// `IPPROTO_*`; none for all. Always known where a port is.
    pub(crate) protocol: Option<u8>,
}

impl Flow {
    /// Whether the packet goes from the client to the server.
    fn is_request(&self, headers: &Headers) -> bool {
        let port = |wanted: Option<u16>| {
            wanted.is_none_or(|wanted| headers.ports.is_none_or(|(from, _)| from == wanted))
        };
        headers.from == self.from && port(self.from_port)
    }
}
