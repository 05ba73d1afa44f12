//! BPF programs that get an uplink's packets before netfilter.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::{NICS, found, json, report};
use crate::lab::flows::PATIENT;
use crate::lab::not_run::kernel_lacks;
use crate::lab::traffic::{Proto, ask};
use crate::lab::two_nics::{NODE, two_nics};

/// Program and attach types of BPF, as `linux/bpf.h` numbers them.
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
const TCX_INGRESS: u32 = 46;
const AT_XDP: u32 = 37;

/// Attributes of `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    at: u64,
    licence: u64,
    log: [u64; 2],
    version_and_flags: [u32; 2],
    name: [u8; 16],
    link: u32,
    attach_type: u32,
}

/// Attributes of `BPF_LINK_CREATE`.
#[repr(C)]
struct Attach {
    program: u32,
    link: u32,
    place: u32,
    flags: u32,
    rest: [u64; 4],
}

fn bpf<T>(command: u32, attributes: &mut T) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads no more than the given size, which is that of `attributes`.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    let fd = i32::try_from(Errno::result(fd)?).expect("a descriptor");
    // SAFETY: the kernel has just opened it, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program that passes all packets on. It stays attached until the descriptors are
/// dropped.
fn attach(interface: &str, name: &str, (kind, at): (u32, u32)) -> Result<[OwnedFd; 2], Errno> {
    // Two instructions, `r0 = TCX_NEXT` or `r0 = XDP_PASS`, and `exit`. Each has code, registers,
    // offset and number.
    let verdict: i32 = if kind == XDP { 2 } else { -1 };
    let [a, b, c, d] = verdict.to_le_bytes();
    let instructions = [[0xb7, 0, 0, 0, a, b, c, d], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let licence = c"GPL";
    let mut load = Load {
        kind,
        instructions: 2,
        at: instructions.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        log: [0; 2],
        version_and_flags: [0; 2],
        name: [0; 16],
        link: 0,
        attach_type: 0,
    };
    load.name[..name.len()].copy_from_slice(name.as_bytes());
    let program = bpf(5, &mut load)?;
    let mut attach = Attach {
        program: u32::try_from(program.as_raw_fd()).expect("a descriptor"),
        link: if_nametoindex(interface)?,
        place: at,
        flags: 0,
        rest: [0; 4],
    };
    Ok([bpf(28, &mut attach)?, program])
}

#[test]
fn programs_of_an_uplink() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    for (interface, name, place, shown) in [
        ("eth1", "monitor", (SCHED_CLS, TCX_INGRESS), None),
        ("enipod1", "cil_from_netdev", (SCHED_CLS, TCX_INGRESS), None),
        ("eth1", "cil_from_netdev", (SCHED_CLS, TCX_INGRESS), Some("tcx ingress: cil_from_netdev")),
        ("eth1", "balancer", (XDP, AT_XDP), Some("XDP")),
    ] {
        let attached = match node.ns.run(|| attach(interface, name, place)) {
            Ok(attached) => attached,
            Err(errno @ (Errno::EINVAL | Errno::ENOSYS)) => {
                return kernel_lacks(&format!("{name} at {interface}: {}", errno.desc()));
            }
            Err(errno) => panic!("{name} at {interface}: {errno}"),
        };
        match shown {
            None => assert_eq!(found(node, &[]), ["note no-agent"], "{name} at {interface}"),
            Some(line) => {
                let text = report(node, &[]).to_string();
                assert!(text.contains("packets of eth1") && text.contains(line), "{text}");
                assert_eq!(found(node, &[]), ["note bpf-routing", "note no-agent"], "{name}");
            }
        }
        // The program lets packets go on to netfilter.
        let to = format!("{}:10250", NODE[1]).parse().expect("an address");
        ask(&layout.client, Proto::Tcp, to, PATIENT).expect("an answer");
        drop(attached);
        assert_eq!(found(node, &[]), ["note no-agent"], "{name} is gone");
    }
    node.down();
}
