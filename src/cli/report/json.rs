//! The JSON report of `status`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::interface::{Interface, Setting};
use super::rates::Rates;
use super::{Report, own_gateways};
use crate::model::{PerFamily, mac_text};
use crate::plan::routers::Router;
use crate::plan::{Note, Uplink};

/// Version of the JSON report, raised when a key changes its meaning or is removed.
const VERSION: u32 = 2;

impl Report {
    /// The report as one JSON object.
    pub(in super::super) fn to_json(&self) -> Value {
        let uplinks: Vec<_> = self.uplinks.iter().map(|u| self.uplink_json(u)).collect();
        let held_by: Vec<_> = self.holders.iter().map(|(name, _)| name).collect();
        let left_out: Vec<_> = self
            .left_out
            .iter()
            .map(|l| json!({"name": l.name, "kind": l.kind, "why": l.why}))
            .collect();
        json!({
            "version": VERSION,
            "inForce": self.record.is_some(),
            "network": self.record.as_ref().map(|r| &r.network),
            "backend": self.backend,
            "settings": self.settings.to_json(),
            "automatic": self.settings.automatic.keys(),
            "uplinks": uplinks,
            "networks": self.networks(),
            "attachments": self.attachments,
            "pods": self.pods,
            "heldBy": held_by,
            "leftOut": left_out,
            "unanswered": notes_json(&self.unanswered),
            "offloads": self.offloads,
            "notOffloaded": self.offloaded.as_ref().map_or(&[][..], |o| &o.without[..]),
            "limits": self.limits,
            "off": notes_json(&self.notes),
            "pending": self.pending,
            "counters": {
                "rpFilterDrops": self.counters.drops,
                "rpFilterDropsPerSecond": self.rates.as_ref().and_then(|rates| rates.drops),
            },
            "notSeen": self.unseen,
        })
    }

    fn uplink_json(&self, uplink: &Uplink) -> Value {
        let mark = format!("{:#x}", self.settings.field.of(uplink.id));
        let (name, id, table) = (&uplink.name, uplink.id, uplink.table);
        let mut object = json!({"name": name, "id": id, "mark": mark, "table": table});
        for (&family, way) in &uplink.ways {
            let key = PerFamily("ipv4", "ipv6").of(family);
            let gateways: Vec<_> = way.gateways().collect();
            object[key] = json!({
                "gateway": gateways.first(),
                "gateways": gateways,
                "learnedFrom": way.source.to_string(),
            });
        }
        let router = |r: &Router| {
            let (id, table) = (r.uplink_via.id, r.uplink_via.table);
            let gateways: Vec<_> = own_gateways(uplink, r).map(|(_, ip)| ip).collect();
            json!({"id": id, "table": table, "hardwareAddress": mac_text(r.mac), "gateways": gateways})
        };
        if !uplink.routers.is_empty() {
            object["routers"] = uplink.routers.iter().map(router).collect();
        }
        if let Some(interface) = self.interfaces.iter().find(|i| i.link == uplink.link) {
            interface.add_to(&mut object);
        }
        object["counters"] = self.counters_json(uplink.id);
        object["counters"]["connectionsOffloaded"] =
            json!(self.offloaded.as_ref().map(|offloaded| offloaded.count_of(uplink)));
        object
    }

    fn counters_json(&self, id: u32) -> Value {
        let per_second = |of: fn(&Rates) -> &BTreeMap<u32, f64>| {
            self.rates.as_ref().and_then(|rates| of(rates).get(&id).copied())
        };
        json!({
            "connectionsBound": self.counters.bound.get(&id),
            "connectionsBoundPerSecond": per_second(|rates| &rates.bound),
            "packetsSteered": self.counters.steered.get(&id),
            "packetsSteeredPerSecond": per_second(|rates| &rates.steered),
        })
    }
}

impl Interface {
    fn add_to(&self, object: &mut Value) {
        object["addresses"] = self.addresses.iter().map(ToString::to_string).collect();
        object["link"] = json!({"up": self.is_up, "carrier": self.carrier});
        object["rpFilter"] = self.rp_filter.to_json();
        object["srcValidMark"] = self.src_valid_mark.to_json();
    }
}

impl Setting {
    fn to_json(self) -> Value {
        json!({
            "all": self.all,
            "interface": self.own,
            "inForce": self.in_force(),
            "decidedBy": self.decider("interface"),
        })
    }
}

fn notes_json(notes: &[Note]) -> Vec<Value> {
    notes.iter().map(|n| json!({"what": n.what, "wayOut": n.remedy})).collect()
}
