//! The node's conntrack entry of a connection.

use std::net::SocketAddr;

use super::netns::Netns;
use super::node::Node;
use super::traffic::Proto;

impl Netns {
    /// Output of a `conntrack` command, such as `-L`, about the connection that this end opened.
    pub(super) fn conntrack(&self, command: &str, proto: Proto, from: SocketAddr) -> String {
        let family = if from.is_ipv4() { "ipv4" } else { "ipv6" };
        let (address, port) = (from.ip().to_string(), from.port().to_string());
        let list = ["conntrack", command, "-f", family, "-p", proto.word()];
        let of = ["--orig-src", &address, "--orig-port-src", &port];
        self.exec(&[&list[..], &of].concat(), "")
    }
}

impl Node {
    /// The conntrack mark of the connection that this end opened; `None` where conntrack does not
    /// know it.
    pub(crate) fn mark_of(&self, proto: Proto, from: SocketAddr) -> Option<u32> {
        let text = self.ns.conntrack("-L", proto, from);
        let mark = text.split_whitespace().find_map(|word| word.strip_prefix("mark="))?;
        Some(mark.parse().expect("a number"))
    }
}
