//! The report of `status` as text.

use std::fmt::Write as _;

use ipnetwork::IpNetwork;

use super::interface::{Interface, Setting};
use super::{Health, Report, own_gateways};
use crate::model::mac_text;
use crate::plan::uplinks::LeftOut;
use crate::plan::{GatewaySource, Note};

/// Number of addresses per row.
const ADDRESSES_PER_ROW: usize = 2;
/// Maximum number of addresses of an interface that the table shows.
const MAX_ADDRESSES: usize = 6;

/// Whether the text has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Style {
    Plain,
    Coloured,
}

/// Meaning of a part of the text, which decides its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sense {
    Head,
    Well,
    Doubtful,
    Wrong,
}

impl Style {
    /// Colours the text by its meaning (ECMA-48, "select graphic rendition").
    fn paint(self, sense: Sense, text: &str) -> String {
        let number = match sense {
            _ if self == Self::Plain => return text.into(),
            Sense::Head => 1,
            Sense::Wrong => 31,
            Sense::Well => 32,
            Sense::Doubtful => 33,
        };
        format!("\x1b[{number}m{text}\x1b[0m")
    }
}

impl Report {
    /// The report as text.
    pub(in super::super) fn to_table(&self, style: Style) -> String {
        let mut out = self.first_line(style);
        out.push_str(&columns(style, &self.uplink_rows(), |_| None));
        self.write_interfaces(style, &mut out);
        // Writing to a string does not fail.
        out.push('\n');
        if self.record.is_some() {
            let networks: Vec<_> = self.networks().into_iter().collect();
            let holders: Vec<_> = self.holders.iter().map(|(name, _)| name.as_str()).collect();
            let _ = writeln!(out, "attachments    {}", self.attachments);
            let _ = writeln!(out, "networks       {}", or_none(&networks.join(", ")));
            let _ = writeln!(out, "held by        {}", or_none(&self.held_text(&holders)));
        }
        self.write_pods(&mut out);
        let rate = self.rates.as_ref().and_then(|rates| rates.drops);
        self.write_offloaded(&mut out);
        let place = if self.is_pod() { "in this pod" } else { "on this node" };
        let drops = counted(self.counters.drops.as_ref(), rate);
        let _ = writeln!(out, "rp_filter      {drops} packets dropped {place}");
        self.write_left_out(&mut out);
        let head = "Without an answer, with symroute or without it";
        write_notes(&mut out, &style.paint(Sense::Doubtful, head), &self.unanswered);
        if !self.limits.is_empty() {
            let _ = writeln!(out, "\nLimits of this backend here:\n  {}", self.limits.join("\n  "));
        }
        self.write_wrong(style, &mut out);
        if !self.unseen.is_empty() {
            out.push('\n');
        }
        for unseen in &self.unseen {
            let _ = writeln!(out, "{} {unseen}", style.paint(Sense::Doubtful, "cannot see"));
        }
        out
    }

    fn first_line(&self, style: Style) -> String {
        let Some(record) = &self.record else {
            let state = style.paint(Sense::Doubtful, "symroute is not in force");
            if self.is_pod() {
                return format!(
                    "{state} in this pod: no ADD with \"scope\": \"pod\" was about it.\nWith the \
                     default settings the uplinks would be:\n\n"
                );
            }
            return format!(
                "{state} on this node: no pod is attached, and \"symroutectl up\" was not \
                 called.\nWith the default settings the uplinks would be:\n\n"
            );
        };
        let sense = if self.health() == Health::Well { Sense::Well } else { Sense::Wrong };
        format!(
            "{}: {}, mark {}, rules {} to {}, settings of network \"{}\"\n\n",
            style.paint(sense, "symroute is in force"),
            self.backend.as_deref().unwrap_or("backend not known"),
            self.settings.field,
            self.settings.priority,
            if self.is_pod() { self.settings.rules().source } else { self.settings.rules().end },
            record.network,
        )
    }

    /// Whether the report is about a pod's own data plane.
    fn is_pod(&self) -> bool {
        self.pods.is_none()
    }

    /// Writes the number of pods with a data plane of their own or, in such a pod, that nothing is to do.
    fn write_pods(&self, out: &mut String) {
        match self.pods {
            // Writing to a string does not fail.
            Some(pods) if pods > 0 => {
                let _ = writeln!(out, "pods           {pods} with a data plane of their own");
            }
            None if self.record.is_some() && self.uplinks.is_empty() => {
                out.push_str(
                    "nothing to do  fewer than two interfaces: all replies leave by the one\n",
                );
            }
            _ => {}
        }
    }

    /// Writes the number of offloaded connections by uplink.
    fn write_offloaded(&self, out: &mut String) {
        let Some(offloaded) = &self.offloaded else { return };
        let each = self.uplinks.iter().map(|u| format!("{} by {}", offloaded.count_of(u), u.name));
        let each: Vec<_> = each.collect();
        // Writing to a string does not fail.
        let _ = writeln!(out, "offloaded      connections now: {}", each.join(", "));
        if !offloaded.without.is_empty() {
            let several = offloaded.without.join(", ");
            let _ = writeln!(out, "               {several}: none, because of several routers");
        }
    }

    fn write_interfaces(&self, style: Style, out: &mut String) {
        if self.interfaces.is_empty() {
            return;
        }
        let head = [
            "INTERFACE",
            "LINK",
            "RP_FILTER",
            "SRC_VALID_MARK",
            "CONNECTIONS",
            "PACKETS",
            "ADDRESSES",
        ];
        let mut rows = vec![head.map(String::from).to_vec()];
        let mut lost = vec![false];
        for interface in &self.interfaces {
            let more = self.interface_rows(interface);
            lost.resize(lost.len() + more.len(), !(interface.is_up && interface.carrier));
            rows.extend(more);
        }
        let sense = |row: usize| lost[row].then_some(Sense::Wrong);
        out.push('\n');
        out.push_str(&columns(style, &rows, sense));
    }

    /// The rows of an interface: more than one if it has many addresses.
    fn interface_rows(&self, interface: &Interface) -> Vec<Vec<String>> {
        let id = self.uplinks.iter().find(|u| u.link == interface.link).map_or(0, |u| u.id);
        let rates = self.rates.as_ref();
        let bound = rates.and_then(|rates| rates.bound.get(&id).copied());
        let steered = rates.and_then(|rates| rates.steered.get(&id).copied());
        let lead = [
            interface.name.clone(),
            link_text(interface).into(),
            setting_text(interface.rp_filter, &interface.name),
            setting_text(interface.src_valid_mark, &interface.name),
            counted(self.counters.bound.get(&id), bound),
            counted(self.counters.steered.get(&id), steered),
        ];
        let mut addresses = address_rows(&interface.addresses).into_iter();
        let first = addresses.next().unwrap_or_else(|| "-".into());
        let row = |lead: &[String], last: String| [lead, &[last]].concat();
        let empty = [const { String::new() }; 6];
        let more = addresses.map(|last| row(&empty, last));
        std::iter::once(row(&lead, first)).chain(more).collect()
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
                let unit = &router.uplink_via;
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
        out.push_str("\nNot used as uplinks; to use one, name it in \"uplinks\":\n");
        let row = |l: &LeftOut| {
            let kind = if l.kind.is_empty() { "NIC" } else { &l.kind };
            vec![format!("  {}", l.name), kind.to_string(), l.why.clone()]
        };
        let rows: Vec<_> = self.left_out.iter().map(row).collect();
        // These rows have no head, so the first one must not be painted as one.
        out.push_str(&columns(Style::Plain, &rows, |_| None));
    }

    fn write_wrong(&self, style: Style, out: &mut String) {
        if !self.pending.is_empty() {
            let head = "Differs from the plan; \"symroutectl up\" or the next pod corrects it:";
            let _ = writeln!(out, "\n{}", style.paint(Sense::Wrong, head));
            for step in &self.pending {
                let _ = writeln!(out, "  {step}");
            }
        }
        write_notes(out, &style.paint(Sense::Wrong, "What is wrong"), &self.notes);
    }
}

fn write_notes(out: &mut String, head: &str, notes: &[Note]) {
    if notes.is_empty() {
        return;
    }
    // Writing to a string does not fail.
    let _ = writeln!(out, "\n{head}:");
    for note in notes {
        let _ = writeln!(out, "  {}\n    -> {}", note.what, note.remedy);
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn link_text(interface: &Interface) -> &'static str {
    match (interface.is_up, interface.carrier) {
        (false, _) => "down",
        (true, false) => "no carrier",
        (true, true) => "up",
    }
}

/// The value that counts and its origin: `1 by all`.
fn setting_text(setting: Setting, interface: &str) -> String {
    format!("{} by {}", setting.in_force(), setting.decider(interface))
}

/// A counter and its rate: `7 (0.2/s)`, or `-` if the counter is not known.
fn counted(number: Option<&u64>, rate: Option<f64>) -> String {
    match (number, rate) {
        (None, _) => "-".into(),
        (Some(number), None) => number.to_string(),
        (Some(number), Some(rate)) => format!("{number} ({rate:.1}/s)"),
    }
}

/// Rows of [`ADDRESSES_PER_ROW`] addresses. A last row has the number of those beyond [`MAX_ADDRESSES`].
fn address_rows(addresses: &[IpNetwork]) -> Vec<String> {
    let shown = &addresses[..addresses.len().min(MAX_ADDRESSES)];
    let text =
        |some: &[IpNetwork]| some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut rows: Vec<_> = shown.chunks(ADDRESSES_PER_ROW).map(text).collect();
    let more = addresses.len() - shown.len();
    rows.extend((more > 0).then(|| format!("and {more} more, see --json")));
    rows
}

/// Aligns rows as columns. The first row is the head; `sense` gives the meaning of each other row.
fn columns(style: Style, rows: &[Vec<String>], sense: impl Fn(usize) -> Option<Sense>) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(String::len).max();
    let widths: Vec<usize> = (0..count).map(|at| width(at).unwrap_or(0)).collect();
    let mut out = String::new();
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let line = cells.join("  ");
        let sense = if at == 0 { Some(Sense::Head) } else { sense(at) };
        let line = line.trim_end();
        let line = sense.map_or_else(|| line.to_owned(), |sense| style.paint(sense, line));
        let _ = writeln!(out, "{line}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_addresses_are_counted() {
        let address = |number: u8| IpNetwork::new([10, 0, 0, number].into(), 24).unwrap();
        let few: Vec<_> = (1..4).map(address).collect();
        assert_eq!(address_rows(&few), ["10.0.0.1/24, 10.0.0.2/24", "10.0.0.3/24"]);
        let many: Vec<_> = (1..=50).map(address).collect();
        let rows = address_rows(&many);
        assert_eq!((rows.len(), rows[3].as_str()), (4, "and 44 more, see --json"));
        assert_eq!(address_rows(&[]), [""; 0]);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let rows = [["A", "B"], ["long", "c"]].map(|row| row.map(String::from).to_vec());
        let plain = columns(Style::Plain, &rows, |_| Some(Sense::Wrong));
        assert_eq!(plain, "A     B\nlong  c\n");
        let coloured = columns(Style::Coloured, &rows, |_| Some(Sense::Wrong));
        assert_eq!(coloured, "\x1b[1mA     B\x1b[0m\n\x1b[31mlong  c\x1b[0m\n");
    }

    #[test]
    fn counters_that_are_not_known_are_no_zero() {
        assert_eq!(counted(None, None), "-");
        assert_eq!(counted(Some(&7), None), "7");
        assert_eq!(counted(Some(&7), Some(0.25)), "7 (0.2/s)");
    }
}
