//! Writes the metrics in Prometheus' text format (version 0.0.4). The format is lines of text; a
//! crate for it would be larger than this file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::cause::Cause;
use super::status::{Board, MarkedBy};
use crate::backend::Marker;
use crate::backend::counts::Counts;
use crate::error::Error;
use crate::netlink::Socket;
use crate::netstat;
use crate::node::counters;
use crate::plan::Uplink;

#[derive(Debug, Default)]
struct Page(String);

impl Page {
    /// Writes one metric: its name, type and help text, and a value for each set of labels.
    fn family<L: AsRef<str>>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        values: impl IntoIterator<Item = (L, f64)>,
    ) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP symroute_{name} {help}\n# TYPE symroute_{name} {kind}");
        for (labels, value) in values {
            let labels = labels.as_ref();
            let _ = if labels.is_empty() {
                writeln!(self.0, "symroute_{name} {value}")
            } else {
                writeln!(self.0, "symroute_{name}{{{labels}}} {value}")
            };
        }
    }

    /// Writes a metric without labels.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family((name, kind, help), [("", value)]);
    }
}

/// `name="value"`, with quotes, backslashes and line ends escaped.
fn label(name: &str, value: impl std::fmt::Display) -> String {
    let value = value.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

/// The page of all metrics. Counters above 2^53 lose their last digits, as always in Prometheus.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floating point numbers only")]
pub(crate) fn page(
    board: &Board,
    counts: Option<&Counts>,
    offloaded: Option<&BTreeMap<u32, u64>>,
) -> String {
    let mut page = Page::default();
    let tally = &board.tally;
    let version = label("version", env!("CARGO_PKG_VERSION"));
    page.family(("build_info", "gauge", "Version of the running agent."), [(version, 1.0)]);
    let ready = f64::from(u8::from(board.unready().is_empty()));
    page.one("ready", "gauge", "1 if /readyz answers 200, otherwise 0.", ready);
    let uplinks = board.uplinks.iter().map(|u| {
        let labels = [label("uplink", &u.name), label("id", u.id), label("table", u.table)];
        (labels.join(","), 1.0)
    });
    page.family(("uplink_info", "gauge", "Uplinks of the active configuration."), uplinks);
    let help = "Problems although the configuration is in place; symroutectl status lists them.";
    page.one("notes", "gauge", help, board.notes as f64);
    page.one("pods", "gauge", "Attachments on this node.", tally.pods as f64);
    let outcomes = [("done", tally.reconciles), ("failed", tally.failures)];
    let outcomes = outcomes.map(|(outcome, n)| (label("outcome", outcome), n as f64));
    let help = "Reconciles, by outcome. A look that finds no difference is not a reconcile.";
    page.family(("reconciles_total", "counter", help), outcomes);
    let by_cause = |value: &dyn Fn(Cause) -> f64| {
        Cause::ALL.map(|cause| (label("cause", cause), value(cause)))
    };
    let repairs = by_cause(&|cause| tally.repairs.get(&cause).copied().unwrap_or(0) as f64);
    let help = "Repairs, by the cause that led to them. One repair may have several causes.";
    page.family(("repairs_total", "counter", help), repairs);
    let contested = by_cause(&|cause| f64::from(u8::from(tally.contested.contains(&cause))));
    let help = "1 while another program undoes symroute's changes again and again.";
    page.family(("contested", "gauge", help), contested);
    page.one("looks_total", "counter", "Turns of the agent.", tally.turns as f64);
    let took = tally.last_turn.as_secs_f64();
    page.one("last_look_seconds", "gauge", "Duration of the last turn in seconds.", took);
    page.one("events_total", "counter", "Events that led to a look.", board.events as f64);
    page.one("events_lost_total", "counter", "Times the kernel dropped events.", board.lost as f64);
    let puts = |name: &str| tally.puts.get(name).copied().unwrap_or(0) as f64;
    let help = "Times that the agent put its entry into a conflist.";
    page.one("conflist_rewrites_total", "counter", help, puts("conflist"));
    let help = "Times that the agent installed the plugin's binary.";
    page.one("binary_installs_total", "counter", help, puts("binary"));
    if let Some(drops) = netstat::rp_filter_drops() {
        let help = "Packets that rp_filter of the node dropped (TcpExtIPReversePathFilter).";
        page.one("rp_filter_drops_total", "counter", help, drops as f64);
    }
    let by_uplink = |of: &BTreeMap<u32, u64>| {
        let value = |u: &Uplink| (label("uplink", &u.name), u.total(of) as f64);
        let lines = board.uplinks.iter().map(value);
        lines.collect::<Vec<_>>()
    };
    if let Some(offloaded) = offloaded {
        let help = "Connections of the uplink in the flowtable now; their packets pass no rule.";
        page.family(("connections_offloaded", "gauge", help), by_uplink(offloaded));
    }
    if let Some(counts) = counts {
        let help = "Connections that symroute bound to the uplink on which they arrived.";
        page.family(("connections_bound_total", "counter", help), by_uplink(&counts.bound));
        let help = "Packets that symroute made leave through the uplink.";
        page.family(("packets_steered_total", "counter", help), by_uplink(&counts.steered));
        let help = "Packets whose mark served only rp_filter, so that symroute removed the mark.";
        page.one("evidence_dropped_total", "counter", help, counts.cleared as f64);
    }
    page.0
}

/// Cache of the data plane's counters, with the time of each read.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    read: Option<(MarkedBy, Instant, Counts)>,
    offloaded: Option<(MarkedBy, Instant, BTreeMap<u32, u64>)>,
}

impl Counters {
    /// Time for which a read is used again. To read counters of iptables, the agent runs programs;
    /// to find offloaded connections, the kernel walks all connections.
    const FRESH: Duration = Duration::from_secs(10);

    /// Number of offloaded connections by the uplink's id. `None` without a flowtable, or if the
    /// read fails.
    pub(crate) fn offloaded(&mut self, by: MarkedBy) -> Option<BTreeMap<u32, u64>> {
        let fresh = |(of, at, _): &&(MarkedBy, Instant, BTreeMap<u32, u64>)| {
            *of == by && at.elapsed() < Self::FRESH
        };
        if let Some((_, _, offloaded)) = self.offloaded.as_ref().filter(fresh) {
            return Some(offloaded.clone());
        }
        let read = by.offloads.then(|| counters::offloaded(by.field))?;
        let read = read.inspect_err(|error| log::info!("metrics: {error}")).ok()?;
        self.offloaded = Some((by, Instant::now(), read.clone()));
        Some(read)
    }

    /// Counts of the rules. `None` if the read fails.
    pub(crate) fn counts(&mut self, by: MarkedBy) -> Option<Counts> {
        let fresh = |(of, at, _): &&(MarkedBy, Instant, Counts)| {
            *of == by && by.marker != Marker::Nftables && at.elapsed() < Self::FRESH
        };
        if let Some((_, _, counts)) = self.read.as_ref().filter(fresh) {
            return Some(counts.clone());
        }
        let read = |mut socket| counters::read(&mut socket, by.marker, by.field);
        let opened = Socket::netfilter().map_err(Error::kernel("open a socket to netfilter"));
        match opened.and_then(read) {
            Ok(counts) => {
                self.read = Some((by, Instant::now(), counts.clone()));
                Some(counts)
            }
            Err(error) => {
                log::info!("metrics: {error}");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_value_to_a_line() {
        let uplink = Uplink {
            id: 1,
            link: 2,
            name: "e\"t\\h".into(),
            table: 47001,
            ways: BTreeMap::new(),
            routers: Vec::new(),
            usual_macs: Vec::new(),
        };
        let board = Board { uplinks: vec![uplink], has_looked: true, ..Board::default() };
        let counts = Counts { bound: [(1, 3), (2, 9)].into(), ..Counts::default() };
        let text = page(&board, Some(&counts), Some(&[(1, 4)].into()));
        let bound = "symroute_connections_bound_total{uplink=\"e\\\"t\\\\h\"} 3\n";
        assert!(text.contains(bound), "{text}");
        let offloaded = "symroute_connections_offloaded{uplink=\"e\\\"t\\\\h\"} 4\n";
        assert!(text.contains(offloaded), "{text}");
        assert!(
            text.contains(
                "symroute_uplink_info{uplink=\"e\\\"t\\\\h\",id=\"1\",table=\"47001\"} 1\n"
            )
        );
        assert!(text.contains("\nsymroute_ready 1\n"));
        assert!(text.contains("symroute_repairs_total{cause=\"rules\"} 0\n"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("symroute_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }

    /// Names of symroute's metrics in a text.
    fn named(text: &str) -> std::collections::BTreeSet<&str> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("symroute_")).collect()
    }

    #[test]
    fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
        let board = Board { has_looked: true, ..Board::default() };
        let text = page(&board, Some(&Counts::default()), None);
        let there = named(&text);
        for asking in [
            include_str!("../../conf/kubernetes/podmonitor/prometheusrule.yaml"),
            include_str!("../../conf/grafana/symroute.json"),
        ] {
            let wanted = named(asking);
            assert!(wanted.len() > 3);
            let missing: Vec<_> = wanted.difference(&there).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    }
}
