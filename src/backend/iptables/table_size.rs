//! How large the tables mangle of iptables-legacy are: the kernel reports no event when their rules
//! change, but a rule that comes or goes changes these numbers.
//!
//! Layout: `struct ipt_getinfo` and `struct ip6t_getinfo` (`linux/netfilter_ipv4/ip_tables.h`,
//! `linux/netfilter_ipv6/ip6_tables.h`), which are the same.

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
    /// Hooks, and where their chains begin and end.
    hooks: [u32; 11],
    entries: u32,
    bytes: u32,
}

/// Rules and bytes of the tables of IPv4 and IPv6; none of a family that the kernel lacks.
pub(crate) type Sizes = [Option<(u32, u32)>; 2];

pub(crate) fn sizes() -> Sizes {
    Family::ALL.map(|family| of_family(family).ok())
}

fn of_family(family: Family) -> io::Result<(u32, u32)> {
    let (domain, level) = match family {
        Family::V4 => (AddressFamily::Inet, libc::SOL_IP),
        Family::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
    };
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = Info { name: [0; 32], hooks: [0; 11], entries: 0, bytes: 0 };
    info.name[..6].copy_from_slice(b"mangle");
    #[expect(clippy::cast_possible_truncation, reason = "84")]
    let mut len = size_of::<Info>() as libc::socklen_t;
    // SAFETY: the pointers and the length describe `info` and `len`, which outlive the call; the
    // descriptor is open.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut len)
    };
    Errno::result(answer)?;
    Ok((info.entries, info.bytes))
}
