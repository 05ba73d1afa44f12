//! `symroutectl trace`: follows the packets of one flow through this node, without BPF.
//!
//! The trace has two sources. [`ruleset`] installs an nftables table that only asks the kernel for
//! trace messages of the flow's packets; [`message`] reads them. The tracepoints of a separate
//! tracefs [`instance`] report each routing table that the kernel tried, and drops; [`text`] reads
//! them.
//!
//! The tracepoint `sock:sk_data_ready` (Linux 6.3) fires for each trace message that reaches the
//! trace's socket. So it gives the order of the messages and the look-ups of one processor.
//! [`join`] builds packets from both, and [`words`] prints them.

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

/// Packets to follow: those of a client's connections, and the replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) from: IpAddr,
    pub(crate) from_port: Option<u16>,
    /// Address to which the client sends, before any DNAT.
    pub(crate) to: IpAddr,
    pub(crate) to_port: Option<u16>,
    /// `IPPROTO_*`; `None` for all protocols. Never `None` with a port.
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
