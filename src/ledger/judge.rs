//! Finds clashes between the ledger and symroute's bits.
//!
//! symroute needs its bits of the packet mark from its own hook to the routing decision. The packet keeps them
//! until symroute's postrouting chain clears them. symroute always needs its bits of the connection mark.

use std::collections::BTreeMap;

use super::{Action, ChainKind, Entry, Hook, Mark, Place, Point};
use crate::backend::Marker;
use crate::doctor::Severity;
use crate::model::{Field, MarkMatch};

/// symroute's bits, and where symroute marks packets.
#[derive(Debug, Clone)]
pub(crate) struct Ours {
    pub(crate) field: Field,
    pub(crate) marker: Marker,
    /// A field of free bits that `markMask` could use instead.
    pub(crate) free: Option<Field>,
    /// Marks that symroute's ip rules send to a table.
    pub(crate) steered: Vec<MarkMatch>,
}

/// How another program conflicts with symroute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// It writes all bits of the packet mark after symroute and before the routing decision.
    Overwrites,
    /// It writes all bits of the connection mark.
    OverwritesConnection,
    /// It writes only some bits, and some of these are symroute's.
    Writes,
    /// It writes the whole packet mark before symroute does, with a value that sets bits of symroute.
    Value,
    /// It compares bits of symroute.
    Compares,
    /// It writes symroute's bits of the connection mark by saving the packet mark.
    Saves,
    /// It writes symroute's bits of the packet mark by restoring the connection mark.
    Restores,
    /// It compares the whole mark, which no longer matches once symroute has set its bits.
    Exact,
}

/// A clash with one program, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clash {
    pub(crate) kind: Kind,
    pub(crate) severity: Severity,
    pub(crate) what: String,
    pub(crate) evidence: Vec<String>,
    pub(crate) remedy: String,
}

/// All clashes: at most one of each kind for each program.
pub(crate) fn clashes(entries: &[Entry], ours: &Ours) -> Vec<Clash> {
    let mut found: BTreeMap<(Kind, &str), Vec<&Entry>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| !entry.ours) {
        if let Some(kind) = ours.judge(entry) {
            found.entry((kind, &entry.owner)).or_default().push(entry);
        }
    }
    found.into_iter().map(|((kind, owner), entries)| ours.clash(kind, owner, &entries)).collect()
}

/// The bits that other programs use, as far as their rules show them.
pub(crate) fn used(entries: &[Entry]) -> u32 {
    let others = entries.iter().filter(|entry| !entry.ours);
    others.fold(0, |used, Entry { usage, .. }| {
        used | if usage.bits == u32::MAX { usage.value.unwrap_or(0) } else { usage.bits }
    })
}

impl Ours {
    /// Priority of the prerouting chain that marks.
    fn prerouting(&self) -> i32 {
        match self.marker {
            Marker::Nftables => -80,
            Marker::Iptables(_) => MANGLE,
        }
    }

    /// Priority of the postrouting chain that clears the mark.
    fn postrouting(&self) -> i32 {
        match self.marker {
            Marker::Nftables => 95,
            Marker::Iptables(_) => MANGLE,
        }
    }

    fn judge(&self, entry: &Entry) -> Option<Kind> {
        let usage = entry.usage;
        // symroute has already cleared its mark on packets that leave.
        let leaves = |hook: &Hook| hook.point == Point::Egress;
        let only_leaving = !entry.hooks.is_empty() && entry.hooks.iter().all(leaves);
        if only_leaving || !self.field.has(usage.bits) {
            return None;
        }
        let any = |at: &dyn Fn(&Hook) -> bool| entry.hooks.iter().any(at);
        match (usage.mark, usage.action) {
            (Mark::Packet, Action::Overwrites) if any(&|hook| self.is_before_routing(hook)) => {
                Some(Kind::Overwrites)
            }
            // symroute marks later and overwrites these bits, but only on packets of bound connections.
            (Mark::Packet, Action::Overwrites) => {
                usage.value.filter(|&value| self.field.has(value)).map(|_| Kind::Value)
            }
            (Mark::Connection, Action::Overwrites) => {
                let is_first = |hook: &Hook| self.is_before_binding(hook);
                let harmless = !entry.hooks.is_empty() && entry.hooks.iter().all(is_first);
                (!harmless).then_some(Kind::OverwritesConnection)
            }
            (_, Action::Sets | Action::Clears) => Some(Kind::Writes),
            (_, Action::Saves) => Some(Kind::Saves),
            (_, Action::Restores) => Some(Kind::Restores),
            (_, Action::ComparesMasked) => Some(Kind::Compares),
            (Mark::Connection, Action::ComparesWhole) => Some(Kind::Exact),
            (Mark::Packet, Action::ComparesWhole) => match entry.place {
                Place::Rule { inverted, .. } => (!inverted).then_some(Kind::Exact),
                Place::Xfrm { .. } => Some(Kind::Exact),
                _ => any(&|hook| self.is_marked_at(hook)).then_some(Kind::Exact),
            },
            (_, Action::Copies | Action::LooksUp | Action::Unknown) => None,
        }
    }

    /// Whether a packet mark that is written at this hook affects the route of a packet that symroute marked.
    /// Chains of equal priority run in the order of their creation, which is unknown here, so they count too.
    fn is_before_routing(&self, hook: &Hook) -> bool {
        let binds_by_packet = matches!(self.marker, Marker::Iptables(_));
        match hook.point {
            Point::Prerouting => hook.priority >= self.prerouting(),
            Point::Output => hook.kind == ChainKind::Route && hook.priority >= MANGLE,
            // At these hooks iptables binds a request according to its packet mark.
            Point::Input | Point::Forward => binds_by_packet && hook.priority < MANGLE,
            _ => false,
        }
    }

    /// Whether a chain at this hook never gets packets of a connection that symroute has already bound.
    fn is_before_binding(&self, hook: &Hook) -> bool {
        let early = matches!(self.marker, Marker::Iptables(_)) || hook.priority < self.prerouting();
        hook.kind == ChainKind::Nat && hook.point == Point::Prerouting && early
    }

    /// Whether packets carry symroute's mark at this hook.
    fn is_marked_at(&self, hook: &Hook) -> bool {
        match hook.point {
            Point::Prerouting => hook.priority >= self.prerouting(),
            Point::Output => hook.priority >= MANGLE,
            Point::Forward => true,
            Point::Postrouting => hook.priority < self.postrouting(),
            _ => false,
        }
    }

    fn clash(&self, kind: Kind, owner: &str, entries: &[&Entry]) -> Clash {
        let field = self.field;
        let bits = entries.iter().fold(0, |bits, entry| bits | self.shared(entry));
        let marks = marks(entries);
        let what = match kind {
            Kind::Overwrites => format!(
                "{owner} overwrites the whole packet mark between symroute's chain and the \
                 routing decision"
            ),
            Kind::OverwritesConnection => format!(
                "{owner} overwrites the whole connection mark, which says by which NIC replies leave"
            ),
            Kind::Writes => {
                format!("{owner} writes bits {bits:#x} of the {marks}, which are symroute's")
            }
            Kind::Value => format!(
                "{owner} gives packets a mark that has bits {bits:#x}, which are symroute's"
            ),
            Kind::Compares => {
                format!("{owner} looks at bits {bits:#x} of the {marks}, which are symroute's")
            }
            Kind::Saves => format!(
                "{owner} saves bits {bits:#x} of the packet mark over symroute's in the connection mark"
            ),
            Kind::Restores => format!(
                "{owner} restores bits {bits:#x} of the packet mark, which are symroute's, from the \
                 connection mark"
            ),
            Kind::Exact => format!(
                "{owner} compares the whole {marks}: what symroute has marked does not match"
            ),
        };
        let severity = match kind {
            // A NAT chain gets only the first packet of a connection, and none that an earlier chain has
            // translated.
            Kind::Overwrites if entries.iter().all(|entry| is_of_nat(entry)) => Severity::Warning,
            Kind::Overwrites | Kind::OverwritesConnection | Kind::Writes => Severity::Problem,
            Kind::Value if entries.iter().any(|entry| self.steers(entry)) => Severity::Problem,
            Kind::Value | Kind::Compares | Kind::Saves | Kind::Restores | Kind::Exact => {
                Severity::Warning
            }
        };
        let other_bits = || match self.free {
            Some(free) => {
                format!("set \"markMask\" to free bits, for instance {free}, then: symroutectl up")
            }
            None => "have that program use other bits; no others are free for symroute".into(),
        };
        let remedy = match kind {
            Kind::Writes | Kind::Value | Kind::Compares => other_bits(),
            Kind::Overwrites => format!(
                "have that program write only its own bits (nft: meta mark set meta mark & \
                 ~MASK | VALUE; iptables: --set-xmark VALUE/MASK), or write in prerouting before \
                 priority {}",
                self.prerouting()
            ),
            Kind::OverwritesConnection => {
                "have that program write only its own bits (nft: ct mark \
                 set ct mark & ~MASK | VALUE; iptables: CONNMARK --set-xmark VALUE/MASK)"
                    .into()
            }
            Kind::Saves | Kind::Restores => format!(
                "have that program copy only its own bits, and not {field} (iptables: --nfmask MASK \
                 --ctmask MASK)"
            ),
            Kind::Exact => format!(
                "have that program compare only its own bits: VALUE/MASK, with a mask that leaves \
                 out {field}"
            ),
        };
        let evidence = entries.iter().map(|entry| entry.to_line()).collect();
        Clash { kind, severity, what, evidence, remedy }
    }

    /// Whether a rule of symroute would match the value that the entry writes.
    fn steers(&self, entry: &Entry) -> bool {
        let takes = |value: u32| self.steered.iter().any(|mark| value & mark.mask == mark.value);
        entry.usage.value.is_some_and(takes)
    }

    /// The bits of symroute that an entry writes or compares.
    fn shared(&self, entry: &Entry) -> u32 {
        let bits = match (entry.usage.action, entry.usage.value) {
            (Action::Overwrites, Some(value)) => value,
            _ => entry.usage.bits,
        };
        bits & self.field.mask()
    }
}

/// Priority of table mangle. symroute's output chain has it with each backend.
const MANGLE: i32 = -150;

fn is_of_nat(entry: &Entry) -> bool {
    entry.hooks.iter().all(|hook| hook.kind == ChainKind::Nat)
}

fn marks(entries: &[&Entry]) -> &'static str {
    let has = |mark| entries.iter().any(|entry| entry.usage.mark == mark);
    match (has(Mark::Packet), has(Mark::Connection)) {
        (true, true) => "packet mark and the connection mark",
        (false, true) => "connection mark",
        _ => "packet mark",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Use;
    use crate::model::{Family, Variant};

    const NFTABLES: Marker = Marker::Nftables;
    const IPTABLES: Marker = Marker::Iptables(Variant::Nft);

    fn entry(mark: Mark, action: Action, bits: u32, value: u32, hook: (Point, i32)) -> Entry {
        Entry {
            owner: "table site".into(),
            ours: false,
            place: Place::Nftables { family: "ip", table: "site".into(), chain: "c".into() },
            hooks: vec![Hook { point: hook.0, priority: hook.1, kind: ChainKind::Filter }],
            usage: Use { mark, action, bits, value: Some(value) },
            comment: None,
        }
    }

    fn judged(entry: &Entry, marker: Marker) -> Option<Kind> {
        let steered = vec![MarkMatch { value: 0x200, mask: 0xf00 }];
        let ours = Ours { field: Field::new(0x1f00).unwrap(), marker, free: None, steered };
        let found = clashes(std::slice::from_ref(entry), &ours);
        assert!(found.len() <= 1);
        found.first().map(|clash| clash.kind)
    }

    #[test]
    fn programs_that_keep_to_their_bits_do_not_clash() {
        let pre = (Point::Prerouting, -150);
        for bits in [0x80, 0x4000, 0x8000, 0x00ff_0000, 0xffff_0000] {
            for mark in [Mark::Packet, Mark::Connection] {
                for action in [Action::Sets, Action::Clears, Action::Saves, Action::Restores] {
                    assert_eq!(judged(&entry(mark, action, bits, bits, pre), NFTABLES), None);
                }
                let compares = entry(mark, Action::ComparesMasked, bits, bits, pre);
                assert_eq!(judged(&compares, NFTABLES), None);
            }
        }
        let own = Entry { ours: true, ..entry(Mark::Packet, Action::Sets, 0x1f00, 0x100, pre) };
        assert_eq!(judged(&own, NFTABLES), None);
    }

    /// The whole packet mark matters only between symroute's hook and the routing decision.
    #[test]
    fn whole_packet_marks() {
        let at = |value, point, priority| {
            entry(Mark::Packet, Action::Overwrites, u32::MAX, value, (point, priority))
        };
        for (writer, nftables, iptables) in [
            (at(0x1, Point::Prerouting, -150), None, Some(Kind::Overwrites)),
            (at(0x1, Point::Prerouting, -300), None, None),
            (at(0x1, Point::Prerouting, -80), Some(Kind::Overwrites), Some(Kind::Overwrites)),
            (at(0x1_bd00, Point::Prerouting, -300), Some(Kind::Value), Some(Kind::Value)),
            (at(0x1, Point::Forward, -200), None, Some(Kind::Overwrites)),
            (at(0x1, Point::Forward, 0), None, None),
            (at(0x1, Point::Output, 0), None, None),
            (at(0x1, Point::Postrouting, 100), None, None),
            (at(0x200, Point::Ingress, 0), Some(Kind::Value), Some(Kind::Value)),
            (at(0x200, Point::Egress, 0), None, None),
        ] {
            assert_eq!(judged(&writer, NFTABLES), nftables, "{writer:?}");
            assert_eq!(judged(&writer, IPTABLES), iptables, "{writer:?}");
        }
        let mut output = at(0x1, Point::Output, -150);
        output.hooks[0].kind = ChainKind::Route;
        assert_eq!(judged(&output, NFTABLES), Some(Kind::Overwrites));
    }

    #[test]
    fn the_other_kinds() {
        let pre = (Point::Prerouting, -150);
        let whole = |mark, action| judged(&entry(mark, action, u32::MAX, 1, pre), NFTABLES);
        assert_eq!(whole(Mark::Connection, Action::Overwrites), Some(Kind::OverwritesConnection));
        assert_eq!(whole(Mark::Connection, Action::Saves), Some(Kind::Saves));
        assert_eq!(whole(Mark::Packet, Action::Restores), Some(Kind::Restores));
        assert_eq!(whole(Mark::Connection, Action::ComparesWhole), Some(Kind::Exact));
        assert_eq!(whole(Mark::Packet, Action::ComparesWhole), None);
        let forward = (Point::Forward, 0);
        let later = entry(Mark::Packet, Action::ComparesWhole, u32::MAX, 1, forward);
        assert_eq!(judged(&later, NFTABLES), Some(Kind::Exact));
        // A NAT chain gets only first packets, and writes the mark before symroute binds the connection.
        let mut first =
            entry(Mark::Connection, Action::Overwrites, u32::MAX, 1, (Point::Prerouting, -100));
        first.hooks[0].kind = ChainKind::Nat;
        assert_eq!((judged(&first, NFTABLES), judged(&first, IPTABLES)), (None, None));
        let masked = entry(Mark::Connection, Action::Clears, 0x100, 0, forward);
        assert_eq!(judged(&masked, NFTABLES), Some(Kind::Writes));
        let looks = entry(Mark::Packet, Action::ComparesMasked, 0xf00, 0x200, forward);
        assert_eq!(judged(&looks, NFTABLES), Some(Kind::Compares));
        for (inverted, wanted) in [(false, Some(Kind::Exact)), (true, None)] {
            let place = Place::Rule { family: Family::V4, priority: 32764, inverted };
            let rule = Entry { place, hooks: Vec::new(), ..later.clone() };
            assert_eq!(judged(&rule, NFTABLES), wanted);
        }
    }

    #[test]
    fn bits_that_are_used() {
        let pre = (Point::Prerouting, -150);
        let entries = [
            entry(Mark::Packet, Action::Sets, 0x4000, 0x4000, pre),
            entry(Mark::Packet, Action::Overwrites, u32::MAX, 0x1_0000, pre),
            entry(Mark::Packet, Action::Restores, u32::MAX, 0, pre),
        ];
        assert_eq!(used(&entries), 0x1_4000);
    }
}
