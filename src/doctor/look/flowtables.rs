//! Reads the flowtables of nftables.
//!
//! Layouts: `enum nft_flowtable_attributes` of `linux/netfilter/nf_tables.h`.

use crate::doctor::bypass::Flowtable;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, attrs, find, string};
use crate::netlink::{Error, Socket};

/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// All flowtables, with the interfaces whose packets they take.
pub(crate) fn all(socket: &mut Socket) -> Result<Vec<Flowtable>, Error> {
    let mut request = Writer::with_capacity(64);
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETFLOWTABLE;
    request.message(kind, NLM_F_REQUEST | NLM_F_DUMP, &[0; NFGENMSG]);
    socket.dump(&mut request, |body| flowtable(body.get(NFGENMSG..)?))
}

fn flowtable(attributes: &[u8]) -> Option<Flowtable> {
    let hook = find(attributes, NFTA_FLOWTABLE_HOOK)?;
    let devices = find(hook, NFTA_FLOWTABLE_HOOK_DEVS).unwrap_or_default();
    let is_device = |(kind, _): &(u16, &[u8])| *kind == NFTA_DEVICE_NAME;
    Some(Flowtable {
        table: string(find(attributes, NFTA_FLOWTABLE_TABLE)?),
        name: string(find(attributes, NFTA_FLOWTABLE_NAME)?),
        links: attrs(devices).filter(is_device).map(|(_, name)| string(name)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flowtable_and_its_interfaces() {
        let mut message = Writer::default();
        message.str(NFTA_FLOWTABLE_TABLE, "f");
        message.str(NFTA_FLOWTABLE_NAME, "fast");
        message.nest(NFTA_FLOWTABLE_HOOK, |hook| {
            hook.nest(NFTA_FLOWTABLE_HOOK_DEVS, |devices| {
                devices.str(NFTA_DEVICE_NAME, "eth0");
                devices.str(NFTA_DEVICE_NAME, "eth1");
            });
        });
        let found = flowtable(message.as_bytes()).unwrap();
        assert_eq!((found.table.as_str(), found.name.as_str()), ("f", "fast"));
        assert_eq!(found.links, ["eth0", "eth1"]);
    }
}
