//! Writes the table of targets and the measured values.

use std::fmt::Write as _;

use crate::report::{Figures, NOOP};
use crate::stats::Measured;

/// A value, and the half width of its 95 % confidence interval if known. `None`: not measured.
type Found = Option<(f64, Option<f64>)>;

/// The table under construction.
struct Targets<'a> {
    figures: &'a Figures,
    text: String,
}

/// Maximum ratio to "before". Two runs of one program differ by up to 2 %.
const NOISE: f64 = 1.02;
/// Maximum ratio to "before" for the largest of many ratios.
const NOISE_OF_MANY: f64 = 1.05;

/// The table of targets as Markdown.
pub(crate) fn table(figures: &Figures) -> String {
    let text = "\n## Targets\n\n| what | target | measured | |\n|---|---:|---:|---|\n".to_owned();
    let mut targets = Targets { figures, text };
    targets.calls();
    targets.scale();
    targets.parallel();
    targets.path();
    targets.offload();
    targets.size("plugin, MB", "program_bytes", 1e6, 2.2);
    targets.size("most memory of ADD, MiB", "peak_kib", 1024.0, 4.0);
    targets.text
}

fn ratio(one: Option<&Measured>, two: Option<&Measured>) -> Found {
    let (one, two) = (one?, two?);
    let value = one.median / two.median;
    Some((value, Some(value * one.doubt.hypot(two.doubt))))
}

/// Difference of two medians, and the half width of its confidence interval.
fn difference(one: Option<&Measured>, two: Option<&Measured>) -> Option<(f64, f64)> {
    let (one, two) = (one?, two?);
    Some((one.median - two.median, (one.median * one.doubt).hypot(two.median * two.doubt)))
}

fn quotient(one: Option<(f64, f64)>, two: Option<(f64, f64)>) -> Found {
    let ((one, one_doubt), (two, two_doubt)) = (one?, two?);
    let value = one / two;
    Some((value, Some(value * (one_doubt / one).hypot(two_doubt / two))))
}

impl<'a> Targets<'a> {
    /// Writes a row whose value must not exceed `limit`.
    fn row(&mut self, what: &str, found: Found, limit: f64) {
        let met = found.map(|(value, _)| value <= limit);
        self.write(what, &format!("≤ {limit:.3}"), found, met);
    }

    /// Writes a row whose value must reach `limit`.
    fn at_least(&mut self, what: &str, found: Found, limit: f64) {
        let met = found.map(|(value, _)| value >= limit);
        self.write(what, &format!("≥ {limit:.3}"), found, met);
    }

    fn write(&mut self, what: &str, target: &str, found: Found, met: Option<bool>) {
        let shown = match found {
            Some((value, Some(doubt))) if doubt.is_finite() => format!("{value:.3} ± {doubt:.3}"),
            Some((value, _)) => format!("{value:.3}"),
            None => "–".into(),
        };
        let verdict = match met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None if found.is_some() => "no target",
            None => "not measured",
        };
        let _ = writeln!(self.text, "| {what} | {target} | {shown} | {verdict} |");
    }

    fn size(&mut self, what: &str, key: &str, unit: f64, limit: f64) {
        let size = self.figures.all[key].as_f64();
        self.row(what, size.map(|size| (size / unit, None)), limit);
    }

    /// Writes the ratio to the release to compare with. Writes nothing without such a release.
    fn before(&mut self, what: &str, row: Option<&'a Measured>, limit: f64) {
        if let Some(before) = row.and_then(|row| self.figures.before(row)) {
            self.row(what, ratio(row, Some(before)), limit);
        }
    }

    fn calls(&mut self) {
        let figures = self.figures;
        let own = |verb: &str| figures.find("calls", "symroute", verb);
        let peer = |label: &str| figures.find("calls", label, "ADD");
        for (verb, limit) in [("ADD", 1.25), ("DEL", 1.02), ("CHECK", 1.25), ("STATUS", 1.15)] {
            self.row(&format!("{verb} / no-op"), ratio(own(verb), peer(NOOP)), limit);
        }
        for (what, label, limit) in [
            ("tuning that does nothing", "tuning, empty configuration", 0.5),
            ("firewall, iptables-nft", "firewall, iptables-nft", 1.0 / 15.0),
            ("firewall, iptables-legacy", "firewall, iptables-legacy", 1.0 / 15.0),
        ] {
            self.row(&format!("ADD / {what}"), ratio(own("ADD"), peer(label)), limit);
        }
        for verb in ["ADD", "DEL", "CHECK", "STATUS", "VERSION"] {
            self.before(&format!("{verb} / before"), own(verb), NOISE);
        }
    }

    fn scale(&mut self) {
        let figures = self.figures;
        let find = |label: &str, verb: &str| figures.find("scale", label, verb);
        let pods = |row: &&Measured| row.label.strip_suffix(" pods")?.parse::<u32>().ok();
        let most = figures.section("scale").max_by_key(pods);
        let most = most.map_or("5000 pods", |row| &row.label);
        for verb in ["ADD", "DEL"] {
            for (label, limit) in [
                (most, 1.1),
                ("50000 iptables-nft rules", 1.05),
                ("50000 iptables-legacy rules", 1.05),
                ("3000 ip rules", 1.05),
                ("15 uplinks", 1.1),
                ("all of it", 1.1),
            ] {
                let found = ratio(find(label, verb), find("empty node", verb));
                self.row(&format!("{verb}, {label} / empty node"), found, limit);
            }
        }
        let over =
            |row: &&Measured| figures.before(row).map_or(0.0, |before| row.median / before.median);
        let slowest = figures.section("scale").max_by(|a, b| over(a).total_cmp(&over(b)));
        if let Some(row) = slowest {
            let what = format!("the slowest by it, {} on {}, / before", row.call, row.label);
            self.before(&what, slowest, NOISE_OF_MANY);
        }
        for word in ["up", "status"] {
            let mut rows = figures.section("tool").filter(|row| row.call == word);
            let (few, many) = (rows.next(), rows.next());
            let label = many.map_or("5000 pods", |row| &row.label);
            self.row(&format!("tool {word}, {label} / 5 pods"), ratio(many, few), 1.1);
        }
    }

    fn parallel(&mut self) {
        for (what, label) in [
            ("64 ADDs at once / 64 no-ops, p99", "64 at once"),
            ("the same while links change", "64 at once, links change"),
        ] {
            let p99 = |call: &str| Some(self.figures.find("parallel", label, call)?.p99);
            let found = p99("ADD").zip(p99("no-op")).map(|(one, two)| (one / two, None));
            self.row(what, found, 2.0);
        }
    }

    fn path(&mut self) {
        let figures = self.figures;
        let find =
            |label: &str, way: &str| figures.find("path", label, &format!("{way}, 64 bytes"));
        let own = "symroute, nftables";
        for (than, base) in [
            ("no plugin", "no plugin, no conntrack"),
            ("with conntrack alone", "no plugin, conntrack"),
            ("with an ip rule, too", "no plugin, conntrack and an ip rule"),
        ] {
            for (what, way) in [
                ("requests", "request"),
                ("replies", "reply"),
                ("DNATed requests", "DNATed request"),
            ] {
                let fewer = ratio(find(base, way), find(own, way));
                let fewer = fewer.map(|(share, doubt)| {
                    (100.0 * (1.0 - share), doubt.map(|doubt| 100.0 * doubt))
                });
                // Without connections there is no DNAT.
                if way != "DNATed request" || base != "no plugin, no conntrack" {
                    self.row(&format!("fewer {what} per second than {than}, %"), fewer, 5.0);
                }
            }
        }
        // Cost over a node that does not track connections.
        let added = |label: &str| {
            let bare = find("no plugin, no conntrack", "reply")?;
            Some(find(label, "reply")?.median - bare.median)
        };
        for (backend, variant) in
            [("nftables", "nft"), ("iptables-nft", "nft"), ("iptables-legacy", "legacy")]
        {
            let rules = added(&format!("AWS connmark rules, iptables-{variant}"));
            // On a busy machine the rules may seem to cost nothing.
            let rules = rules.filter(|cost| *cost > 0.0);
            let found = added(&format!("symroute, {backend}")).zip(rules);
            let found = found.map(|(ours, rules)| (ours / rules, None));
            self.row(&format!("cost of a reply / AWS rules, {backend}"), found, 1.5);
        }
        for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
            // DNATed requests have to be faster.
            for (way, limit) in [("request", NOISE), ("reply", NOISE), ("DNATed request", 1.0)] {
                let label = format!("symroute, {backend}");
                self.before(&format!("{way}, {backend} / before"), find(&label, way), limit);
            }
        }
    }

    /// Targets of a flowtable, measured in the user-mode kernel, which always has flowtables.
    fn offload(&mut self) {
        let figures = self.figures;
        let find = |label: &str, call: &str| figures.find("um", label, call);
        let own = "symroute, nftables, offload";
        let (bare, alone) = ("no plugin, no conntrack", "no plugin, conntrack");
        // Packets per second of `one` as a multiple of those of `other`.
        let times = |call: &str, one: &str, other: &str| ratio(find(other, call), find(one, call));
        // The same multiple without the time of client, router and pod.
        let of_node = |call: &str, one: &str, other: &str| {
            let rest = find("no node", call);
            quotient(difference(find(other, call), rest), difference(find(one, call), rest))
        };
        let ways = [("requests", "request, 64 bytes"), ("replies", "reply, 64 bytes")];
        for (than, base, limit) in [("no netfilter", bare, 1.05), ("conntrack alone", alone, 1.25)]
        {
            for (what, call) in ways {
                let what = format!("{what} per second with offload / {than}");
                self.at_least(&what, times(call, own, base), limit);
            }
        }
        let mut note = |what: String, found| self.write(&what, "–", found, None);
        for (than, base) in [("no netfilter", bare), ("conntrack alone", alone)] {
            for (what, call) in ways {
                note(
                    format!("{what} of the node alone per second with offload / {than}"),
                    of_node(call, own, base),
                );
            }
        }
        for (what, call) in ways {
            let what = format!("DNATed {what} per second with offload / conntrack alone");
            note(what, times(&format!("DNATed {call}"), own, alone));
        }
        let short = "short TCP connection";
        note(
            format!("{short}s per second with offload / without"),
            times(short, own, "symroute, nftables"),
        );
        note(
            format!("{short}s of the node alone per second with offload / without"),
            of_node(short, own, "symroute, nftables"),
        );
        // Without Gbit/s, where more is better.
        for row in figures.section("um").filter(|row| row.unit != "Gbit/s") {
            let what = format!("{}, {}, user-mode kernel / before", row.call, row.label);
            self.before(&what, Some(row), NOISE);
        }
    }
}
