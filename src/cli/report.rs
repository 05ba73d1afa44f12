//! `status`: what is in force, what is wrong, and the remedy; as a table and as JSON.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::backend::Marker;
use crate::config::Settings;
use crate::error::Error;
use crate::model::{Family, Field, PerFamily, mac_text};
use crate::node::Node;
use crate::node::apply::describe;
use crate::node::counters;
use crate::plan::backend::limits as limits_of;
use crate::plan::routers::Router;
use crate::plan::uplinks::LeftOut;
use crate::plan::{GatewaySource, Note, Uplink};
use crate::state::Record;

/// Raised when keys of the JSON report change their meaning or go away.
const VERSION: u32 = 2;

/// How a node fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    NotInForce,
    Well,
    Off,
}

#[derive(Debug)]
pub(super) struct Report {
    record: Option<Record>,
    settings: Settings,
    uplinks: Vec<Uplink>,
    /// How many attachments hold the node state.
    attachments: usize,
    holders: Vec<(String, String)>,
    notes: Vec<Note>,
    left_out: Vec<LeftOut>,
    unanswered: Vec<Note>,
    limits: Vec<String>,
    pending: Vec<String>,
    /// Who marks.
    backend: Option<String>,
}

impl Report {
    pub(super) fn of(node: &mut Node) -> Result<Self, Error> {
        let some = node.state.some_attachments()?;
        let attachments = node.state.count()?;
        let holders = node.state.holders()?;
        let own = node.state.with_own_settings()?;
        let unreadable = own.unreadable.iter().chain(&some.found.unreadable);
        let mut notes: Vec<_> = unreadable.map(|path| damaged(path)).collect();
        let mut settings = Settings::default();
        let (mut uplinks, mut left_out, mut unanswered) = (Vec::new(), Vec::new(), Vec::new());
        let (mut pending, mut backend, mut limits) = (Vec::new(), None, Vec::new());
        let record = node.record()?;
        let lost = record.as_ref().is_some_and(|r| r.network.is_empty());
        if lost {
            notes.push(Note {
                what: "/run/symroute/node.json is lost or damaged: which settings are in force is \
                       not known"
                    .into(),
                way_out: "symroutectl up --config FILE".into(),
            });
        }
        match node.view(&settings) {
            _ if lost => {}
            Ok(view) => {
                let marker = view.plan.marker();
                backend = record.is_some().then(|| marker.to_string());
                limits = limits_of(&view.plan);
                notes.extend(view.plan.notes);
                uplinks = view.plan.uplinks;
                left_out = view.plan.left_out;
                let silent = view.plan.silent.iter().filter(|_| record.is_some());
                left_out.extend(receiving(silent, marker, view.settings.field)?);
                unanswered = view.plan.unanswered;
                settings = view.settings;
                if record.is_some() {
                    let steps = view.steps.iter();
                    pending = steps.map(|step| describe(step, &view.facts)).collect();
                }
            }
            // What can't be kept is the very thing to report.
            Err(Error::Config(invalid)) => notes.push(Note {
                what: format!("the settings can't be kept: {invalid}"),
                way_out: "mend that, then: symroutectl up".into(),
            }),
            Err(other) => return Err(other),
        }
        if record.is_some() && attachments == 0 && holders.is_empty() {
            notes.push(Note {
                what: "the node state is in force, but no attachment and no hold needs it".into(),
                way_out: "symroutectl down, or symroutectl up to hold it".into(),
            });
        }
        let settings = record.as_ref().map_or(settings, |r| r.settings.clone());
        Ok(Self {
            record,
            settings,
            uplinks,
            attachments,
            holders,
            notes,
            left_out,
            unanswered,
            limits,
            pending,
            backend,
        })
    }

    /// Adds what is wrong beside the node itself.
    pub(super) fn note(&mut self, notes: impl IntoIterator<Item = Note>) {
        self.notes.extend(notes);
    }

    pub(super) fn health(&self) -> Health {
        match (&self.record, self.notes.is_empty() && self.pending.is_empty()) {
            (None, _) => Health::NotInForce,
            (Some(_), true) => Health::Well,
            (Some(_), false) => Health::Off,
        }
    }

    /// The networks in whose name the node state is in force or held.
    fn networks(&self) -> BTreeSet<&str> {
        let holders = self.holders.iter().map(|(_, network)| network.as_str());
        let leader = self.record.iter().map(|record| record.network.as_str());
        holders.chain(leader).filter(|network| !network.is_empty()).collect()
    }

    pub(super) fn to_json(&self) -> String {
        let uplinks: Vec<_> = self.uplinks.iter().map(|u| self.uplink_json(u)).collect();
        let held_by: Vec<_> = self.holders.iter().map(|(name, _)| name).collect();
        let left_out: Vec<_> = self
            .left_out
            .iter()
            .map(|l| json!({"name": l.name, "kind": l.kind, "why": l.why}))
            .collect();
        let report = json!({
            "version": VERSION,
            "inForce": self.record.is_some(),
            "network": self.record.as_ref().map(|r| &r.network),
            "backend": self.backend,
            "settings": self.settings.to_json(),
            "automatic": self.settings.automatic.keys(),
            "uplinks": uplinks,
            "networks": self.networks(),
            "attachments": self.attachments,
            "heldBy": held_by,
            "leftOut": left_out,
            "unanswered": notes_json(&self.unanswered),
            "limits": self.limits,
            "off": notes_json(&self.notes),
            "pending": self.pending,
        });
        format!("{report:#}\n")
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
            let (id, table) = (r.by_it.id, r.by_it.table);
            let gateways: Vec<_> = own_gateways(uplink, r).map(|(_, ip)| ip).collect();
            json!({"id": id, "table": table, "hardwareAddress": mac_text(r.mac), "gateways": gateways})
        };
        if !uplink.routers.is_empty() {
            object["routers"] = uplink.routers.iter().map(router).collect();
        }
        object
    }

    pub(super) fn to_table(&self) -> String {
        let mut out = String::new();
        let field = self.settings.field;
        // Writing to a string does not fail.
        let _ = match &self.record {
            None => writeln!(
                out,
                "symroute is not in force on this node: no pod is attached, and \"symroutectl up\" \
                 was not called.\nWith the default settings the uplinks would be:\n"
            ),
            Some(record) => writeln!(
                out,
                "symroute is in force: {}, mark {field}, rules {} to {}, settings of network \
                 \"{}\"\n",
                self.backend.as_deref().unwrap_or("backend not known"),
                self.settings.priority,
                self.settings.rules().end,
                record.network,
            ),
        };
        out.push_str(&columns(&self.uplink_rows()));
        if self.record.is_some() {
            out.push('\n');
            let networks: Vec<_> = self.networks().into_iter().collect();
            let holders: Vec<_> = self.holders.iter().map(|(name, _)| name.as_str()).collect();
            let _ = writeln!(out, "attachments    {}", self.attachments);
            let _ = writeln!(out, "networks       {}", or_none(&networks.join(", ")));
            let _ = writeln!(out, "held by        {}", or_none(&self.held_text(&holders)));
        }
        self.write_left_out(&mut out);
        write_notes(&mut out, "Without an answer, with symroute or without it", &self.unanswered);
        if !self.limits.is_empty() {
            let _ = writeln!(out, "\nLimits of this backend here:\n  {}", self.limits.join("\n  "));
        }
        self.write_off(&mut out);
        out
    }

    fn held_text(&self, holders: &[&str]) -> String {
        let mut parts: Vec<String> = holders.iter().map(ToString::to_string).collect();
        if self.attachments > 0 {
            parts.push(format!("{} attachment(s)", self.attachments));
        }
        parts.join(", ")
    }

    fn uplink_rows(&self) -> Vec<Vec<String>> {
        let head = ["UPLINK", "ID", "MARK", "TABLE", "FAMILY", "GATEWAY", "LEARNED FROM"];
        let mut rows = vec![head.map(String::from).to_vec()];
        for uplink in &self.uplinks {
            let mark = format!("{:#x}", self.settings.field.of(uplink.id));
            let lead = [uplink.name.clone(), uplink.id.to_string(), mark, uplink.table.to_string()];
            if uplink.ways.is_empty() {
                rows.push([&lead[..], &["-", "-", "-"].map(String::from)].concat());
            }
            for (family, way) in &uplink.ways {
                let gateways: Vec<_> = way.gateways().map(|ip| ip.to_string()).collect();
                let gateway = match &gateways[..] {
                    [] if way.source == GatewaySource::PointToPoint => "(none needed)".into(),
                    [] if !way.hops.is_empty() => "(on the link)".into(),
                    [] => "-".into(),
                    all => all.join(", "),
                };
                let tail = [family.to_string(), gateway, way.source.to_string()];
                rows.push([&lead[..], &tail].concat());
            }
            for router in &uplink.routers {
                let unit = &router.by_it;
                let mark = format!("{:#x}", self.settings.field.of(unit.id));
                let lead = [uplink.name.clone(), unit.id.to_string(), mark, unit.table.to_string()];
                for (family, ip) in own_gateways(uplink, router) {
                    let from = format!("requests from {}", mac_text(router.mac));
                    let tail = [family.to_string(), ip.to_string(), from];
                    rows.push([&lead[..], &tail].concat());
                }
            }
        }
        rows
    }

    fn write_left_out(&self, out: &mut String) {
        if self.left_out.is_empty() {
            return;
        }
        out.push_str("\nNo uplinks; to use one, name it in \"uplinks\":\n");
        let row = |l: &LeftOut| {
            let kind = if l.kind.is_empty() { "NIC" } else { &l.kind };
            vec![format!("  {}", l.name), kind.to_string(), l.why.clone()]
        };
        out.push_str(&columns(&self.left_out.iter().map(row).collect::<Vec<_>>()));
    }

    fn write_off(&self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push_str("\nNot as it should be; \"symroutectl up\" or the next pod mends it:\n");
            for step in &self.pending {
                let _ = writeln!(out, "  {step}");
            }
        }
        write_notes(out, "What is off", &self.notes);
    }
}

fn write_notes(out: &mut String, head: &str, notes: &[Note]) {
    if notes.is_empty() {
        return;
    }
    // Writing to a string does not fail.
    let _ = writeln!(out, "\n{head}:");
    for note in notes {
        let _ = writeln!(out, "  {}\n    -> {}", note.what, note.way_out);
    }
}

fn notes_json(notes: &[Note]) -> Vec<Value> {
    notes.iter().map(|n| json!({"what": n.what, "wayOut": n.way_out})).collect()
}

/// The families in which a router leads another way than the uplink does, with its address.
fn own_gateways<'a>(
    uplink: &'a Uplink,
    router: &'a Router,
) -> impl Iterator<Item = (Family, IpAddr)> + 'a {
    let ways =
        router.by_it.ways.iter().filter(|(family, way)| uplink.ways.get(family) != Some(way));
    ways.filter_map(|(&family, way)| Some((family, way.gateways().next()?)))
}

/// The NICs that no address and no default route speaks for, but new connections do.
fn receiving<'a>(
    silent: impl Iterator<Item = &'a (u32, String)>,
    marker: Marker,
    field: Field,
) -> Result<Vec<LeftOut>, Error> {
    let mut silent = silent.peekable();
    if marker != Marker::Nftables || silent.peek().is_none() {
        return Ok(Vec::new());
    }
    let counts = counters::read(marker, field)?.silent;
    let receiving = silent.filter_map(|(link, name)| {
        let packets = counts.get(link).filter(|&&packets| packets > 0)?;
        let why = format!(
            "no address and no default route, but {packets} packets of new connections from outside"
        );
        Some(LeftOut { name: name.clone(), kind: String::new(), why })
    });
    Ok(receiving.collect())
}

/// What is wrong with files of the state. Only some attachments are read, so that this takes no
/// longer on a full node.
fn damaged(path: &Path) -> Note {
    Note {
        what: format!("{} is empty or damaged: that attachment counts as absent", path.display()),
        way_out: "restart the pod; the next reconcile removes the file".into(),
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Rows as left-aligned columns.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(String::len).max();
    let widths: Vec<usize> = (0..count).map(|at| width(at).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    out
}
