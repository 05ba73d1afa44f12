//! Which devices feed the flowtable, where the settings want one.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Note, Plan};
use crate::config::{Invalid, OFFLOAD, Settings};
use crate::model::{Facts, Link};
use crate::netlink::uapi::IFF_LOOPBACK;

/// Kinds of interface that lead to pods. A bridge stands for the pods at its ports.
const TO_PODS: [&str; 2] = ["veth", "bridge"];

/// Index and name of each device whose packets the flowtable takes: uplinks, and what leads to pods. None
/// where there is to be no flowtable.
/// Error: the settings want one that this node can't have.
pub(super) fn devices(
    facts: &Facts,
    settings: &Settings,
    plan: &mut Plan,
) -> Result<Option<BTreeMap<u32, String>>, Invalid> {
    if !settings.offload || plan.uplinks.is_empty() {
        return Ok(None);
    }
    if !facts.tooling.nftables {
        let hint = "a flowtable needs nf_tables, which this kernel has not; set false";
        return Err(Invalid::new(OFFLOAD, &json!(true), hint));
    }
    if !facts.tooling.flowtables {
        plan.notes.push(Note {
            what: "this kernel has no flowtables, so no connection is offloaded".into(),
            way_out: "take a kernel with CONFIG_NF_FLOW_TABLE and CONFIG_NFT_FLOW_OFFLOAD, or set \
                      \"offload\": false"
                .into(),
        });
        return Ok(None);
    }
    let several = plan.uplinks.iter().filter(|uplink| !uplink.routers.is_empty());
    plan.not_offloaded = several.map(|uplink| uplink.name.clone()).collect();
    let is_uplink = |link: &Link| plan.uplinks.iter().any(|uplink| uplink.link == link.index);
    let feeds = facts.links.iter().filter(|link| is_uplink(link) || leads_to_pods(link));
    Ok(Some(feeds.map(|link| (link.index, link.name.clone())).collect()))
}

/// Whether packets of pods come in by this interface. A port of a bridge is left out: by a port the kernel
/// would send frames with the hardware address that it knew at the connection's first packet.
pub(crate) fn leads_to_pods(link: &Link) -> bool {
    let of_kind = link.kind.as_deref().is_some_and(|kind| TO_PODS.contains(&kind));
    of_kind && link.port_of.is_none() && link.flags & IFF_LOOPBACK == 0
}
