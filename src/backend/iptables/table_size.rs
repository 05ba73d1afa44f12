//! Sizes of tables of iptables-legacy. The kernel reports no event when their rules change, but a
//! new or deleted rule changes these numbers.
//!
//! Layout: `struct ipt_getinfo` and the identical `struct ip6t_getinfo`
//! (`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`).

use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::model::Family;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;

#[repr(C)]
struct Info {
    name: [u8; 32],
    /// A bit for each built-in chain.
    valid_hooks: u32,
    /// Offsets at which their chains begin and end.
    hooks: [u32; 10],
    entries: u32,
    bytes: u32,
}

/// Number of rules and of bytes, for IPv4 and IPv6; `None` for a family that the kernel lacks.
pub(crate) type Sizes = [Option<(u32, u32)>; 2];

/// Sizes of table mangle.
pub(crate) fn sizes() -> Sizes {
    let size = |family| info(family, "mangle").ok().map(|info| (info.entries, info.bytes));
    Family::ALL.map(size)
}

/// Number of rules and chains that a table has besides its built-in chains. The question makes the
/// kernel create the table.
pub(crate) fn entries_added(family: Family, table: &str) -> io::Result<u32> {
    let info = info(family, table)?;
    // Each built-in chain ends with an entry for its policy, and the table with an entry of its
    // own.
    Ok(info.entries.saturating_sub(info.valid_hooks.count_ones() + 1))
}

fn info(family: Family, table: &str) -> io::Result<Info> {
    let (domain, level) = match family {
        Family::V4 => (AddressFamily::Inet, libc::SOL_IP),
        Family::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
    };
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = Info { name: [0; 32], valid_hooks: 0, hooks: [0; 10], entries: 0, bytes: 0 };
    // The last byte stays zero.
    let name = table.as_bytes().iter().take(info.name.len() - 1);
    name.zip(&mut info.name).for_each(|(from, to)| *to = *from);
    #[expect(clippy::cast_possible_truncation, reason = "84")]
    let mut len = size_of::<Info>() as libc::socklen_t;
    // SAFETY: the pointers and the length describe `info` and `len`, which outlive the call; the
    // descriptor is open.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut len)
    };
    Errno::result(answer)?;
    Ok(info)
}
