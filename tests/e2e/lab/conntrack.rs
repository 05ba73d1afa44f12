//! The node's conntrack entry of a connection.

use std::net::SocketAddr;

use super::node::Node;
use super::traffic::Proto;

impl Node {
    /// The conntrack mark of the connection that this end opened; `None` where conntrack does not
    /// know it.
    pub(crate) fn mark_of(&self, proto: Proto, from: SocketAddr) -> Option<u32> {
        let family = if from.is_ipv4() { "ipv4" } else { "ipv6" };
        let protocol = match proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        };
        let (address, port) = (from.ip().to_string(), from.port().to_string());
        let list = ["conntrack", "-L", "-f", family, "-p", protocol];
        let of = ["--orig-src", &address, "--orig-port-src", &port];
        let text = self.ns.exec(&[&list[..], &of].concat(), "");
        let mark = text.split_whitespace().find_map(|word| word.strip_prefix("mark="))?;
        Some(mark.parse().expect("a number"))
    }
}
