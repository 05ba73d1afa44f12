//! Reads the BPF programs that get arriving packets of an interface before netfilter does.
//!
//! Layouts: `union bpf_attr` and `struct bpf_prog_info` of `linux/bpf.h`, `struct tcmsg` of
//! `linux/rtnetlink.h`, `linux/pkt_cls.h`, `linux/if_link.h`.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;

use crate::doctor::bypass::{Program, Where};
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, find, string, u32_at};
use crate::netlink::{Error, Socket};

const IFINFOMSG: usize = 16;
/// Bytes of `struct tcmsg`.
const TCMSG: usize = 20;
/// Maximum number of tcx programs of one interface that are named.
const MAX_PROGRAMS: usize = 16;

/// The programs of an interface.
pub(super) fn programs(rtnetlink: &mut Socket, link: u32) -> Result<Vec<Program>, Error> {
    let mut found = xdp(rtnetlink, link)?;
    found.extend(filters(rtnetlink, link)?);
    let names = tcx(link).into_iter().map(Some);
    found.extend(names.map(|name| Program { link, at: Where::Tcx, name }));
    Ok(found)
}

fn xdp(rtnetlink: &mut Socket, link: u32) -> Result<Vec<Program>, Error> {
    let mut body = [0; IFINFOMSG];
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    let mut request = Writer::default();
    request.message(RTM_GETLINK, NLM_F_REQUEST, &body);
    let attached = rtnetlink.query(&mut request, |message| {
        let xdp = find(message.body.get(IFINFOMSG..)?, IFLA_XDP);
        let attached = xdp.and_then(|xdp| find(xdp, IFLA_XDP_ATTACHED));
        Some(attached.is_some_and(|mode| mode != [0]))
    });
    let program =
        |is_attached: bool| is_attached.then_some(Program { link, at: Where::Xdp, name: None });
    match attached {
        Ok(attached) => Ok(program(attached).into_iter().collect()),
        // The interface has been deleted meanwhile.
        Err(error) if error.errno == Errno::ENODEV => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The programs that `tc filter` shows.
fn filters(rtnetlink: &mut Socket, link: u32) -> Result<Vec<Program>, Error> {
    let mut body = [0; TCMSG];
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    body[12..16].copy_from_slice(&TC_H_CLSACT_INGRESS.to_ne_bytes());
    let mut request = Writer::default();
    request.message(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, &body);
    let found = rtnetlink.dump(&mut request, |body| filter(body, link));
    match found {
        // The interface has no clsact qdisc, or the kernel has no filters.
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENODEV | Errno::EOPNOTSUPP) => {
            Ok(Vec::new())
        }
        other => other,
    }
}

fn filter(body: &[u8], link: u32) -> Option<Program> {
    let attributes = body.get(TCMSG..)?;
    let is_here = u32_at(body, 4)? == link && u32_at(body, 12)? == TC_H_CLSACT_INGRESS;
    let is_bpf = find(attributes, TCA_KIND).map(string)? == "bpf";
    // The kernel dumps each classifier without options, and then its filters.
    let name = find(attributes, TCA_OPTIONS).and_then(|options| find(options, TCA_BPF_NAME))?;
    (is_here && is_bpf).then(|| Program { link, at: Where::Tc, name: Some(string(name)) })
}

/// Input and output of `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    link: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    /// Flags and ids that are not requested, and the revision.
    rest: [u64; 4],
}

/// Input of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
#[derive(Default)]
struct Info {
    before: [u64; 8],
    name: [u8; 16],
}

/// Names of the programs at tcx ingress; none if the kernel has no tcx or refuses the query.
fn tcx(link: u32) -> Vec<String> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut query = Query {
        link,
        attach_type: BPF_TCX_INGRESS,
        ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(MAX_PROGRAMS).unwrap_or(0),
        ..Query::default()
    };
    // With ENOSPC, the kernel has filled the buffer, and there are more programs.
    if !matches!(bpf(BPF_PROG_QUERY, &mut query), Ok(_) | Err(Errno::ENOSPC)) {
        return Vec::new();
    }
    let count = usize::try_from(query.count).unwrap_or(0).min(MAX_PROGRAMS);
    ids[..count].iter().filter_map(|id| name(*id).ok()).collect()
}

fn name(id: u32) -> Result<String, Errno> {
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0])?;
    // SAFETY: the kernel has just opened the descriptor, and no other code has it.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = Info::default();
    let mut get = GetInfo {
        fd: u32::try_from(program.as_raw_fd()).map_err(|_| Errno::EBADF)?,
        length: u32::try_from(size_of::<Info>()).unwrap_or(0),
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut get)?;
    Ok(string(&info.name))
}

/// The system call bpf(2). `attributes` is a prefix of the command's part of `union bpf_attr`; the kernel
/// treats the rest as zero.
fn bpf<T>(command: u32, attributes: &mut T) -> Result<i32, Errno> {
    // SAFETY: the kernel reads and writes only `size_of::<T>()` bytes of `attributes`. Buffers that `attributes`
    // points to belong to the caller, and `attributes` contains their sizes.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    Errno::result(answer).and_then(|answer| i32::try_from(answer).map_err(|_| Errno::EBADF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_of_the_kernel() {
        assert_eq!((size_of::<Query>(), size_of::<GetInfo>(), size_of::<Info>()), (64, 16, 80));
    }

    #[test]
    fn a_filter_with_a_name() {
        let message = |kind: &str, parent: u32, name: Option<&str>| {
            let mut body = [0; TCMSG];
            body[4..8].copy_from_slice(&3_u32.to_ne_bytes());
            body[12..16].copy_from_slice(&parent.to_ne_bytes());
            let mut message = Writer::default();
            message.bytes(&body);
            message.str(TCA_KIND, kind);
            message.nest(TCA_OPTIONS, |options| {
                if let Some(name) = name {
                    options.str(TCA_BPF_NAME, name);
                }
            });
            message.as_bytes().to_vec()
        };
        let name = Some("cil_from_netdev-eth1");
        let found = filter(&message("bpf", TC_H_CLSACT_INGRESS, name), 3).unwrap();
        assert_eq!(found.name.as_deref(), name);
        for other in [
            message("u32", TC_H_CLSACT_INGRESS, name),
            message("bpf", TC_H_CLSACT_INGRESS + 1, name),
            message("bpf", TC_H_CLSACT_INGRESS, None),
            Vec::new(),
        ] {
            assert_eq!(filter(&other, 3), None);
        }
    }
}
