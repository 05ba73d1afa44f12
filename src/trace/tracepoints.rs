//! The tracepoints of a trace: enables them, and finds the trace's own socket in their lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::process;

use super::Flow;
use super::instance::{self, Instance};
use crate::backend::nftables::table::kind;
use crate::netlink::listener::{Heard, Listener};
use crate::netlink::uapi::*;
use crate::netlink::wire::Writer;

/// Event for each message that reaches a socket.
const MESSAGE_QUEUED: &str = "sock/sk_data_ready";
/// Maximum number of attempts to find the trace's own socket.
const TRIES: u32 = 8;

/// The enabled tracepoints, in a tracefs instance of their own.
#[derive(Debug)]
pub(crate) struct Tracepoints {
    instance: Instance,
}

impl Tracepoints {
    /// Enables the tracepoints that this flow needs. The listener must not have joined a group yet.
    /// Error: why the trace has no tracepoints.
    pub(crate) fn arm(listener: &mut Listener, flow: &Flow) -> Result<Self, String> {
        let root = instance::mounted()?;
        instance::remove_leftovers(root);
        let mut this = Self { instance: Instance::new(root)? };
        let socket = this.find(listener)?;
        this.instance.enable(MESSAGE_QUEUED, Some(&format!("skaddr == {socket}")))?;
        // Drops the lines from before the filter.
        this.fresh()?;
        // `ETH_P_IP` and `ETH_P_IPV6`.
        let protocol = if flow.from.is_ipv4() { 0x0800 } else { 0x86dd };
        match flow.from {
            IpAddr::V4(client) => {
                // The filter language has no addresses, but compares four bytes as a number in host
                // byte order.
                let number = u32::from_ne_bytes(client.octets());
                let filter = format!("src == {number} || dst == {number}");
                this.instance.enable("fib/fib_table_lookup", Some(&filter))?;
            }
            IpAddr::V6(_) => this.instance.enable("fib6/fib6_table_lookup", None)?,
        }
        let format = this.instance.read("events/skb/kfree_skb/format");
        let filter = unspecified(&format)
            .map(|number| format!("reason != {number} && protocol == {protocol}"));
        if filter.is_some() {
            this.instance.enable("skb/kfree_skb", filter.as_deref())?;
        }
        Ok(this)
    }

    /// The kernel's address of the listener's socket, as text. Makes the kernel send messages to
    /// the socket, and looks for the address that appears as often.
    fn find(&mut self, listener: &mut Listener) -> Result<String, String> {
        let old = "the kernel can't say which messages belong to which look-ups (6.4 can)";
        self.instance.write("options/fields", "1").map_err(|error| format!("{old}: {error}"))?;
        let netfilter =
            format!("family == {} && protocol == {}", libc::AF_NETLINK, libc::NETLINK_NETFILTER);
        self.instance
            .enable(MESSAGE_QUEUED, Some(&netfilter))
            .map_err(|error| format!("{old}: {error}"))?;
        let mut found: Option<BTreeSet<String>> = None;
        for attempt in 0..TRIES {
            self.fresh()?;
            // Another trace that begins now has another process id. So in at least one attempt it
            // sends another number of messages.
            let count = 4 + (process::id() >> (4 * attempt) & 0xf);
            for _ in 0..count {
                provoke(listener).map_err(|why| format!("ask nf_tables: {why}"))?;
            }
            let these = written_to(&self.fresh()?, count);
            let both = found.map(|before| before.intersection(&these).cloned().collect());
            let both: BTreeSet<String> = both.unwrap_or(these);
            if let (1, Some(socket)) = (both.len(), both.first()) {
                self.instance.write("options/fields", "0")?;
                return Ok(socket.clone());
            }
            found = Some(both);
        }
        Err(format!("{old}: symroutectl did not find its own socket"))
    }

    /// Lines since the last call, before the trace follows packets.
    fn fresh(&mut self) -> Result<Vec<String>, String> {
        self.lines().map_err(|error| format!("read the tracepoints: {error}"))
    }

    pub(crate) fn pipe(&self) -> Option<&File> {
        self.instance.pipe()
    }

    /// Whether the last call of [`Self::lines`] read all lines.
    pub(crate) fn is_drained(&self) -> bool {
        self.instance.is_drained()
    }

    pub(crate) fn lines(&mut self) -> Result<Vec<String>, io::Error> {
        self.instance.lines()
    }
}

/// Makes the kernel send one message to this socket.
fn provoke(listener: &mut Listener) -> Result<(), &'static str> {
    let mut request = Writer::with_capacity(32);
    request.message(kind(NFT_MSG_GETGEN), NLM_F_REQUEST, &[NFPROTO_UNSPEC, 0, 0, 0]);
    listener.ask(&request).map_err(nix::errno::Errno::desc)?;
    match listener.hear() {
        Ok(Heard::Datagram(_)) => Ok(()),
        Ok(_) => Err("no answer"),
        Err(errno) => Err(errno.desc()),
    }
}

/// Addresses of the sockets that exactly `count` lines name.
fn written_to(lines: &[String], count: u32) -> BTreeSet<String> {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for line in lines {
        let socket = line.split_once("skaddr=").and_then(|(_, rest)| rest.split(' ').next());
        let number = socket.filter(|text| {
            let digits = text.strip_prefix("0x").unwrap_or_default();
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        if let Some(socket) = number {
            *seen.entry(socket).or_default() += 1;
        }
    }
    let found = seen.into_iter().filter(|(_, seen)| *seen == count);
    found.map(|(socket, _)| socket.to_owned()).collect()
}

/// Number of the reason `NOT_SPECIFIED` in the format file of `kfree_skb`.
fn unspecified(format: &str) -> Option<u32> {
    let (before, _) = format.split_once(", \"NOT_SPECIFIED\"")?;
    before.rsplit_once("{ ")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_that_was_written_to() {
        let line = |socket: &str| {
            format!(
                "x-1 [001] ..... 1.000001: sk_data_ready: skaddr={socket} (-1) family=0x10 (16)"
            )
        };
        let of = |sockets: &[&str]| sockets.iter().map(|s| line(s)).collect::<Vec<_>>();
        let lines = of(&["0xa1", "0xb2", "0xg", "0xa1", "", "0xc3", "0xc3"]);
        assert_eq!(written_to(&lines, 2), ["0xa1", "0xc3"].map(str::to_owned).into());
        assert_eq!(written_to(&lines, 1), ["0xb2".to_owned()].into());
        assert_eq!(written_to(&lines, 3), BTreeSet::new());
    }

    #[test]
    fn the_reason_that_says_nothing() {
        let format =
            "__print_symbolic(REC->reason, { 2, \"NOT_SPECIFIED\" }, { 3, \"NO_SOCKET\" })";
        assert_eq!(unspecified(format), Some(2));
        assert_eq!(unspecified("location=%pS"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            let _ = (written_to(&[format!("skaddr={text}")], 1), unspecified(&text));
        }
    }
}
