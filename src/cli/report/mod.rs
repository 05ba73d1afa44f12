//! The report of `status`: what is in force, what is wrong, and the remedy.
//!
//! ```text
//! mod        reads the node
//! interface  state of the uplinks' interfaces: addresses, rp_filter, carrier
//! offload    number of connections in the flowtable
//! rates      counters per second between two reports (pure)
//! table      the report as text                      (pure)
//! json       the report as JSON                      (pure)
//! ```

mod interface;
mod json;
mod offload;
mod rates;
mod table;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use crate::backend::Marker;
use crate::backend::counts::Counts;
use crate::config::Settings;
use crate::error::Error;
use crate::model::Family;
use crate::netstat;
use crate::node::apply::describe;
use crate::node::{Node, counters};
use crate::plan::backend::limits as limits_of;
use crate::plan::routers::Router;
use crate::plan::uplinks::LeftOut;
use crate::plan::{Note, Uplink};
use crate::process;
use crate::state::Record;
use interface::Interface;
use offload::Offloaded;
use rates::{Counters, Rates};
pub(super) use table::Style;

/// State of a node or pod, which decides the exit code of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    NotInForce,
    Well,
    Unhealthy,
}

#[derive(Debug)]
pub(super) struct Report {
    record: Option<Record>,
    settings: Settings,
    uplinks: Vec<Uplink>,
    /// Number of attachments that hold the node state.
    attachments: usize,
    /// Number of pods with a data plane of their own; `None` in the report of such a pod.
    pods: Option<usize>,
    /// Name and network of each hold on the node state.
    holders: Vec<(String, String)>,
    notes: Vec<Note>,
    left_out: Vec<LeftOut>,
    unanswered: Vec<Note>,
    limits: Vec<String>,
    pending: Vec<String>,
    /// Backend that sets the marks; `None` if symroute is not in force.
    backend: Option<String>,
    /// The interfaces of `uplinks`, in the same order.
    interfaces: Vec<Interface>,
    counters: Counters,
    /// Whether the rules put connections into a flowtable; `None` if the tool can't read the rules.
    offloads: Option<bool>,
    /// Offloaded connections; `None` without a flowtable, or if the tool can't read it.
    offloaded: Option<Offloaded>,
    /// Rates since an earlier report, if one exists.
    rates: Option<Rates>,
    /// What the tool could not read, and why.
    unseen: Vec<String>,
}

impl Report {
    pub(super) fn of(node: &mut Node) -> Result<Self, Error> {
        let some = node.state.some_attachments()?;
        let attachments = node.state.count()?;
        let holders = node.state.holders()?;
        let pods = if node.is_pod() { None } else { Some(node.state.pods()?.len()) };
        let own = node.state.with_own_settings()?;
        let unreadable = own.unreadable.iter().chain(&some.found.unreadable);
        let mut notes: Vec<_> = unreadable.map(|path| damaged(path)).collect();
        let mut settings = Settings::default();
        let (mut uplinks, mut left_out, mut unanswered) = (Vec::new(), Vec::new(), Vec::new());
        let (mut pending, mut backend, mut limits) = (Vec::new(), None, Vec::new());
        let (mut interfaces, mut counts, mut unseen) = (Vec::new(), None, Vec::new());
        let (mut offloads, mut offloaded) = (Some(false), None);
        let record = node.record()?;
        let lost = record.as_ref().is_some_and(|r| r.network.is_empty());
        if lost {
            notes.push(Note {
                what: "/run/symroute/node.json is lost or damaged: which settings are in force is \
                       not known"
                    .into(),
                remedy: "symroutectl up --config FILE".into(),
            });
        }
        match node.view(&settings) {
            _ if lost => {}
            Ok(view) => {
                let marker = view.plan.marker();
                interfaces = interface::of_uplinks(&view.plan.uplinks, &view.facts)?;
                if record.is_some() {
                    offloads = (!node.unseen.hides_rules()).then(|| view.plan.offloads());
                }
                if record.is_some() && !node.unseen.hides_rules() {
                    match counters::read(&mut node.kernel.netfilter, marker, view.settings.field) {
                        Ok(read) => counts = Some(read),
                        Err(error) => unseen.push(format!("the counters: {error}")),
                    }
                    match Offloaded::of(&view) {
                        Ok(found) => offloaded = found,
                        Err(error) => {
                            unseen.push(format!("how many connections are offloaded: {error}"));
                        }
                    }
                }
                backend = record.is_some().then(|| marker.to_string());
                limits = limits_of(&view.plan);
                notes.extend(view.plan.notes);
                uplinks = view.plan.uplinks;
                left_out = view.plan.left_out;
                if let Some(counts) = counts.as_ref().filter(|_| marker == Marker::Nftables) {
                    left_out.extend(receiving(view.plan.silent.iter(), counts));
                }
                unanswered = view.plan.unanswered;
                settings = view.settings;
                if record.is_some() {
                    let steps = view.steps.iter();
                    pending = steps.map(|step| describe(step, &view.facts)).collect();
                }
            }
            // The report has to show settings that can't be kept, so they are not an error.
            Err(Error::Config(invalid)) => notes.push(Note {
                what: format!("the settings can't be kept: {invalid}"),
                remedy: "mend that, then: symroutectl up".into(),
            }),
            Err(other) => return Err(other),
        }
        if record.is_some() && attachments == 0 && holders.is_empty() {
            notes.push(Note {
                what: "the node state is in force, but no attachment and no hold needs it".into(),
                remedy: "symroutectl down, or symroutectl up to hold it".into(),
            });
        }
        let settings = record.as_ref().map_or(settings, |r| r.settings.clone());
        let counters =
            Counters::of(Instant::now(), &uplinks, counts.as_ref(), netstat::rp_filter_drops());
        unseen.extend(node.unseen.line());
        let mut report = Self {
            record,
            settings,
            uplinks,
            attachments,
            pods,
            holders,
            notes,
            left_out,
            unanswered,
            limits,
            pending,
            backend,
            interfaces,
            counters,
            offloads,
            offloaded,
            rates: None,
            unseen,
        };
        report.remove_control_characters();
        Ok(report)
    }

    /// Removes control characters from the texts: a pod may give its rules and interfaces any names.
    fn remove_control_characters(&mut self) {
        let notes = self.notes.iter_mut().chain(&mut self.unanswered);
        let left_out = self.left_out.iter_mut();
        let texts = notes.flat_map(|note| [&mut note.what, &mut note.remedy]);
        let texts = texts.chain(left_out.flat_map(|l| [&mut l.name, &mut l.kind, &mut l.why]));
        let lines = self.pending.iter_mut().chain(&mut self.limits).chain(&mut self.unseen);
        for text in texts.chain(lines) {
            *text = process::without_control_characters(text);
        }
    }

    /// Adds the rates since an earlier report.
    pub(super) fn compare_with(&mut self, before: &Self) {
        self.rates = Some(self.counters.since(&before.counters));
    }

    /// Whether the tool could not read a part of the node that [`Self::health`] depends on.
    pub(super) fn is_blind(&self) -> bool {
        self.record.is_some() && !self.unseen.is_empty()
    }

    /// Adds faults that are not of the node itself, such as unknown keys in a conflist.
    pub(super) fn note(&mut self, notes: impl IntoIterator<Item = Note>) {
        self.notes.extend(notes);
    }

    pub(super) fn health(&self) -> Health {
        match (&self.record, self.notes.is_empty() && self.pending.is_empty()) {
            (None, _) => Health::NotInForce,
            (Some(_), true) => Health::Well,
            (Some(_), false) => Health::Unhealthy,
        }
    }

    /// The network whose settings are in force, and those that hold the node state.
    fn networks(&self) -> BTreeSet<&str> {
        let holders = self.holders.iter().map(|(_, network)| network.as_str());
        let leader = self.record.iter().map(|record| record.network.as_str());
        holders.chain(leader).filter(|network| !network.is_empty()).collect()
    }
}

/// The families in which a router's table differs from the uplink's, each with its first next hop.
fn own_gateways<'a>(
    uplink: &'a Uplink,
    router: &'a Router,
) -> impl Iterator<Item = (Family, IpAddr)> + 'a {
    let ways =
        router.uplink_via.ways.iter().filter(|(family, way)| uplink.ways.get(family) != Some(way));
    ways.filter_map(|(&family, way)| Some((family, way.gateways().next()?)))
}

/// The NICs without address and default route on which new connections from outside arrive.
fn receiving<'a>(
    silent: impl Iterator<Item = &'a (u32, String)>,
    counts: &Counts,
) -> impl Iterator<Item = LeftOut> {
    silent.filter_map(|(link, name)| {
        let packets = counts.silent.get(link).filter(|&&packets| packets > 0)?;
        let why = format!(
            "no address and no default route, but {packets} packets of new connections from outside"
        );
        Some(LeftOut { name: name.clone(), kind: String::new(), why })
    })
}

/// Reports a damaged file of an attachment. The caller checks only some attachments, so that `status`
/// takes no longer on a full node.
fn damaged(path: &Path) -> Note {
    Note {
        what: format!("{} is empty or damaged: that attachment counts as absent", path.display()),
        remedy: "restart the pod; the next reconcile removes the file".into(),
    }
}
