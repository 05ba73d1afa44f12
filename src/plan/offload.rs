//! Decides which devices the flowtable takes packets from, if the settings want one.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Note, Plan, uplinks};
use crate::backend::spec::Offload;
use crate::config::{Invalid, OFFLOAD, Settings};
use crate::model::{Facts, Flowtables, Link};
use crate::names::OFFLOAD as OFFLOADING;
use crate::netlink::uapi::IFF_LOOPBACK;

/// Kinds of interface that lead to pods. A bridge stands for the pods at its ports.
const TO_PODS: [&str; 2] = ["veth", "bridge"];

/// Devices of the flowtable: uplinks, and interfaces that lead to pods. None if the node gets no flowtable.
/// Error: the settings want a flowtable and the kernel has no `nf_tables`.
pub(super) fn decide(
    facts: &Facts,
    settings: &Settings,
    plan: &mut Plan,
) -> Result<Option<Offload>, Invalid> {
    if !settings.offload || plan.uplinks.is_empty() {
        return Ok(None);
    }
    if !facts.tooling.nftables {
        let hint = "a flowtable needs nf_tables, which this kernel lacks; set false";
        return Err(Invalid::new(OFFLOAD, &json!(true), hint));
    }
    let lacks = match facts.tooling.flowtables {
        Flowtables::Usable => None,
        Flowtables::Missing => Some((
            "this kernel has no flowtables",
            "take a kernel with CONFIG_NETFILTER_INGRESS, CONFIG_NF_FLOW_TABLE, \
             CONFIG_NF_FLOW_TABLE_INET and CONFIG_NFT_FLOW_OFFLOAD",
        )),
        Flowtables::WithoutMarks => Some((
            "flowtables of this kernel look up the route of replies without the mark",
            "take a kernel from 5.19 on",
        )),
    };
    if let Some((what, remedy)) = lacks {
        plan.notes.push(Note {
            what: format!("{what}, so no connection is offloaded"),
            remedy: format!("{remedy}, or set \"offload\": false"),
        });
        return Ok(None);
    }
    if !facts.tooling.keeps_udp {
        plan.notes.push(Note {
            what: "no UDP connection is offloaded: conntrack would forget it when it leaves the flowtable".into(),
            remedy: "set net.netfilter.nf_conntrack_udp_timeout_stream 10 s or more above \
                      nf_flowtable_udp_timeout, or \"offload\": false"
                .into(),
        });
    }
    let several = plan.uplinks.iter().filter(|uplink| !uplink.routers.is_empty());
    plan.not_offloaded = several.map(|uplink| uplink.name.clone()).collect();
    let found = facts.ours.table.iter().filter_map(|table| table.flowtables.get(OFFLOADING));
    let found: BTreeSet<&String> = found.flat_map(|flowtable| &flowtable.devices).collect();
    let outside = uplinks::outside(facts, &plan.src_valid_mark);
    // An ADD adds any device that leads to its pod.
    let of_an_add = |link: &Link| {
        found.contains(&link.name) && link.port_of.is_none() && !outside.contains(&link.index)
    };
    let to_pods = |link: &Link| leads_to_pods(link) && !outside.contains(&link.index);
    let feeds = |link: &&Link| {
        plan.src_valid_mark.contains(&link.index) || to_pods(link) || of_an_add(link)
    };
    let feeds = facts.links.iter().filter(feeds);
    let devices = feeds.map(|link| link.name.clone()).collect();
    Ok(Some(Offload { devices, udp: facts.tooling.keeps_udp }))
}

/// Whether packets of pods arrive on this interface. A bridge port does not count: there the kernel would keep
/// using the hardware address from the connection's first packet.
pub(crate) fn leads_to_pods(link: &Link) -> bool {
    let of_kind = link.kind.as_deref().is_some_and(|kind| TO_PODS.contains(&kind));
    of_kind && link.port_of.is_none() && link.flags & IFF_LOOPBACK == 0
}
