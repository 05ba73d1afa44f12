//! The mark that `WireGuard` devices set on their outer packets.
//!
//! Layouts: `include/uapi/linux/{genetlink,wireguard}.h`. The kernel's answer contains the private key of the
//! device, so the code extracts only the mark.

use nix::errno::Errno;

use super::{Action, Entry, Mark, Place, Use};
use crate::model::Link;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, find, u16_at, u32_at};
use crate::netlink::{Error, Socket};

/// Bytes of `struct genlmsghdr`: command, version, and two reserved bytes.
const GENLMSG: usize = 4;
const KIND: &str = "wireguard";

/// Reads the marks of the devices that have one. Sends no request if there is no device.
pub(crate) fn read(links: &[Link]) -> Result<Vec<Entry>, Error> {
    let devices: Vec<&Link> = links.iter().filter(|l| l.kind.as_deref() == Some(KIND)).collect();
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let mut socket = Socket::generic()?;
    let family = family(&mut socket, KIND)?;
    let mut found = Vec::new();
    for device in devices {
        let mut request = Writer::with_capacity(32);
        request.message(family, NLM_F_REQUEST | NLM_F_DUMP, &[WG_CMD_GET_DEVICE, 1, 0, 0]);
        request.u32(WGDEVICE_A_IFINDEX, device.index);
        let marks = match socket.dump(&mut request, mark) {
            // The device has been deleted meanwhile.
            Err(error) if error.errno == Errno::ENODEV => continue,
            other => other?,
        };
        found.extend(marks.into_iter().map(|mark| entry(&device.name, mark)));
    }
    Ok(found)
}

/// The id of a family of generic netlink.
fn family(socket: &mut Socket, name: &str) -> Result<u16, Error> {
    let mut request = Writer::with_capacity(64);
    request.message(GENL_ID_CTRL, NLM_F_REQUEST, &[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    request.str(CTRL_ATTR_FAMILY_NAME, name);
    socket.query(&mut request, |message| {
        u16_at(find(message.body.get(GENLMSG..)?, CTRL_ATTR_FAMILY_ID)?, 0)
    })
}

/// A device's mark; `None` for 0, which means no mark.
fn mark(body: &[u8]) -> Option<u32> {
    let mark = u32_at(find(body.get(GENLMSG..)?, WGDEVICE_A_FWMARK)?, 0)?;
    (mark != 0).then_some(mark)
}

fn entry(device: &str, mark: u32) -> Entry {
    let action = Action::Overwrites;
    Entry {
        owner: format!("WireGuard {device}"),
        ours: false,
        place: Place::WireGuard { device: device.into() },
        hooks: Vec::new(),
        usage: Use { mark: Mark::Packet, action, bits: u32::MAX, value: Some(mark) },
        comment: Some("its outer packets".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_devices() {
        let device = |mark: u32| {
            let mut w = Writer::default();
            w.attr(3, &[7; 32]);
            w.u32(WGDEVICE_A_FWMARK, mark);
            [&[0; GENLMSG][..], w.as_bytes()].concat()
        };
        assert_eq!(
            (mark(&device(0xca6c)), mark(&device(0)), mark(&[0; 2])),
            (Some(0xca6c), None, None)
        );
        let text = format!("{:?}", entry("wg0", 0xca6c));
        assert!(text.contains("51820") && !text.contains("7, 7"), "{text}");
    }

    /// Reads a family that every kernel has.
    #[test]
    fn families_are_found_by_name() {
        let mut socket = Socket::generic().unwrap();
        assert_eq!(family(&mut socket, "nlctrl"), Ok(GENL_ID_CTRL));
        assert_eq!(family(&mut socket, "no_such").unwrap_err().errno, Errno::ENOENT);
        assert_eq!(read(&[]), Ok(Vec::new()));
    }
}
