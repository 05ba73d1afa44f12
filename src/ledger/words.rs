//! The ledger as a table for a person, and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Action, Entry, Hook, Ledger, Mark, Place, Point, Unseen, Use};

impl Mark {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Connection => "connection",
        }
    }
}

impl Action {
    /// Text for a person.
    fn words(self) -> &'static str {
        match self {
            Self::Sets => "sets",
            Self::Clears => "clears",
            Self::Overwrites => "overwrites the whole mark",
            Self::Saves => "saves to the connection",
            Self::Restores => "restores from the connection",
            Self::ComparesMasked => "compares masked",
            Self::ComparesWhole => "compares the whole mark",
            Self::Copies => "copies to what the kernel answers",
            Self::LooksUp => "has rp_filter look it up",
            Self::Unknown => "may do anything",
        }
    }

    /// JSON value for programs.
    fn key(self) -> &'static str {
        match self {
            Self::Sets => "sets",
            Self::Clears => "clears",
            Self::Overwrites => "overwrites",
            Self::Saves => "saves",
            Self::Restores => "restores",
            Self::ComparesMasked => "compares-masked",
            Self::ComparesWhole => "compares-whole",
            Self::Copies => "copies",
            Self::LooksUp => "looks-up",
            Self::Unknown => "unknown",
        }
    }
}

impl Point {
    fn name(self) -> String {
        match self {
            Self::Ingress => "ingress".into(),
            Self::Prerouting => "prerouting".into(),
            Self::Input => "input".into(),
            Self::Forward => "forward".into(),
            Self::Output => "output".into(),
            Self::Postrouting => "postrouting".into(),
            Self::Egress => "egress".into(),
            Self::Other(number) => format!("hook {number}"),
        }
    }
}

fn hooks_text(hooks: &[Hook]) -> String {
    let each = hooks.iter().map(|hook| format!("{} {}", hook.point.name(), hook.priority));
    each.collect::<Vec<_>>().join(", ")
}

impl Place {
    /// The chain, and the place with an empty chain.
    fn split(&self) -> (Option<&str>, Self) {
        let mut rest = self.clone();
        match (self, &mut rest) {
            (Self::Nftables { chain, .. }, Self::Nftables { chain: empty, .. })
            | (Self::Legacy { chain, .. }, Self::Legacy { chain: empty, .. }) => {
                empty.clear();
                (Some(chain), rest)
            }
            _ => (None, rest),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Nftables { family, table, .. } => format!("nft {family} {table}"),
            Self::Legacy { family, table, .. } => format!("iptables-legacy {family} {table}"),
            Self::Rule { family, priority, .. } => format!("{family} rule {priority}"),
            Self::WireGuard { device } => format!("WireGuard {device}"),
            Self::Xfrm { what } => format!("XFRM {what}"),
            Self::Tc { device, what } => format!("tc {device} {what}"),
            Self::Sysctl { name } => format!("sysctl {name}"),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Nftables { .. } => "nftables",
            Self::Legacy { .. } => "iptables-legacy",
            Self::Rule { .. } => "rule",
            Self::WireGuard { .. } => "wireguard",
            Self::Xfrm { .. } => "xfrm",
            Self::Tc { .. } => "tc",
            Self::Sysctl { .. } => "sysctl",
        }
    }

    fn to_json(&self) -> Value {
        let mut out = match self {
            Self::Nftables { family, table, .. } => json!({"family": family, "table": table}),
            Self::Legacy { family, table, .. } => {
                json!({"family": family.to_string(), "table": table})
            }
            Self::WireGuard { device } => json!({"device": device}),
            Self::Xfrm { what } => json!({"object": what}),
            Self::Tc { device, what } => json!({"device": device, "object": what}),
            Self::Sysctl { name } => json!({"name": name}),
            Self::Rule { family, priority, inverted } => {
                json!({"family": family.to_string(), "priority": priority, "inverted": inverted})
            }
        };
        out["kind"] = self.kind().into();
        out
    }
}

impl Entry {
    /// The entry as one line of evidence.
    pub(crate) fn to_line(&self) -> String {
        let (chain, place) = self.place.split();
        let mut line = place.name();
        if let Some(chain) = chain {
            let _ = write!(line, " {chain}");
            if !self.hooks.is_empty() {
                let _ = write!(line, " ({})", hooks_text(&self.hooks));
            }
        }
        let Use { mark, action, bits, value } = self.usage;
        let _ = write!(line, ": {}, {} mark, bits {bits:#x}", action.words(), mark.name());
        if let Some(value) = value {
            let _ = write!(line, ", value {value:#x}");
        }
        if let Some(comment) = &self.comment {
            let _ = write!(line, " [{comment}]");
        }
        line
    }
}

/// Chains, values and comments of entries that are otherwise equal.
#[derive(Debug, Default)]
struct Row<'a> {
    chains: BTreeSet<&'a str>,
    values: BTreeSet<u32>,
    comments: BTreeSet<&'a str>,
}

/// Whether the entry is symroute's, owner, place without chain, hooks, mark, action, and bits.
type RowKey<'a> = (bool, &'a str, Place, &'a [Hook], Mark, Action, u32);

impl Ledger {
    /// Groups the entries into rows. symroute's own rows come last.
    fn rows(&self) -> BTreeMap<RowKey<'_>, Row<'_>> {
        let mut rows: BTreeMap<RowKey<'_>, Row<'_>> = BTreeMap::new();
        for entry in &self.entries {
            let (chain, place) = entry.place.split();
            let usage = entry.usage;
            let owner = if entry.ours { "symroute" } else { &entry.owner };
            let key =
                (entry.ours, owner, place, &entry.hooks[..], usage.mark, usage.action, usage.bits);
            let row = rows.entry(key).or_default();
            row.chains.extend(chain);
            row.values.extend(usage.value);
            row.comments.extend(entry.comment.as_deref());
        }
        rows
    }

    /// A table for a person.
    pub(crate) fn to_table(&self) -> String {
        let head = ["OWNER", "MARK", "BITS", "DOES", "WHERE", "HOOK"].map(String::from);
        let mut lines = vec![head];
        for ((_, owner, place, hooks, mark, action, bits), row) in self.rows() {
            let chains = match row.chains.len() {
                0 => String::new(),
                1..=2 => format!(" {}", row.chains.iter().copied().collect::<Vec<_>>().join(", ")),
                many => {
                    let first = row.chains.first().copied().unwrap_or_default();
                    format!(" {first} and {} more chains", many - 1)
                }
            };
            lines.push([
                owner.into(),
                mark.name().into(),
                format!("{bits:#x}"),
                action.words().into(),
                place.name() + &chains,
                hooks_text(hooks),
            ]);
        }
        let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max();
        let widths: Vec<usize> = (0..6).map(|column| width(column).unwrap_or(0)).collect();
        let mut out = String::new();
        for line in &lines {
            let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            out += cells.collect::<Vec<_>>().join("  ").trim_end();
            out.push('\n');
        }
        out
    }

    /// A JSON array for programs.
    pub(crate) fn to_json(&self) -> Value {
        let row = |(key, row): (RowKey<'_>, Row<'_>)| {
            let (ours, owner, place, hooks, mark, action, bits) = key;
            let hook = |hook: &Hook| json!({"point": hook.point.name(), "priority": hook.priority});
            let hex = |number: u32| format!("{number:#x}");
            json!({
                "owner": owner,
                "ours": ours,
                "mark": mark.name(),
                "bits": hex(bits),
                "does": action.key(),
                "values": row.values.into_iter().map(hex).collect::<Vec<_>>(),
                "place": place.to_json(),
                "chains": row.chains,
                "hooks": hooks.iter().map(hook).collect::<Vec<_>>(),
                "comments": row.comments,
            })
        };
        Value::Array(self.rows().into_iter().map(row).collect())
    }
}

impl Unseen {
    pub(crate) fn to_text(&self) -> String {
        format!("cannot see: {}, because {}", self.what, self.why)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"what": self.what, "why": self.why, "remedy": self.remedy})
    }
}

#[cfg(test)]
mod tests {
    use super::super::ChainKind;
    use super::*;

    fn entry(chain: &str, owner: &str) -> Entry {
        Entry {
            owner: owner.into(),
            ours: owner == "symroute",
            place: Place::Nftables { family: "ip", table: "mangle".into(), chain: chain.into() },
            hooks: vec![Hook { point: Point::Forward, priority: 0, kind: ChainKind::Filter }],
            usage: Use {
                mark: Mark::Packet,
                action: Action::Sets,
                bits: 0x10000,
                value: Some(0x10000),
            },
            comment: Some("a reason".into()),
        }
    }

    #[test]
    fn rows_of_many_chains_are_one() {
        let chains = ["cali-fw-a", "cali-fw-b", "cali-fw-c"];
        let mut entries: Vec<_> = chains.iter().map(|chain| entry(chain, "Calico")).collect();
        entries.push(entry("symroute-via-1", "symroute"));
        let ledger = Ledger { entries, unseen: Vec::new() };
        let wanted = "\
OWNER     MARK    BITS     DOES  WHERE                                        HOOK
Calico    packet  0x10000  sets  nft ip mangle cali-fw-a and 2 more chains    forward 0
symroute  packet  0x10000  sets  nft ip mangle symroute-via-1                 forward 0
";
        let squeezed = |text: &str| {
            text.lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&ledger.to_table()), squeezed(wanted));
        let json = ledger.to_json();
        assert_eq!((&json[0]["chains"], &json[0]["bits"]), (&json!(chains), &json!("0x10000")));
        assert_eq!(json[0]["hooks"], json!([{"point": "forward", "priority": 0}]));
        let line = "nft ip mangle cali-fw-a (forward 0): sets, packet mark, bits 0x10000, value \
                    0x10000 [a reason]";
        assert_eq!(ledger.entries[0].to_line(), line);
    }
}
