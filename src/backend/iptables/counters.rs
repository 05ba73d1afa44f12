//! Reads the counters of the iptables rules.

use crate::backend::counts::Counted;
use crate::model::Field;
use crate::names;

/// Parses the output of `iptables-save -c`. A line of symroute's chains is
/// `[PACKETS:BYTES] -A CHAIN …`.
pub(crate) fn parse(field: Field, text: &str) -> impl Iterator<Item = (Counted, u64)> {
    text.lines().filter_map(move |line| {
        let (packets, chain, rule) = parts(line)?;
        let counted = match chain {
            names::COUNT_CLEARED => Counted::Cleared,
            names::COUNT_BOUND => Counted::Bound(id(field, rule)),
            // The first rule of the chain sets the mark and matches none.
            names::COUNT_RESTORED if rule.contains(MARK) => Counted::Steered(id(field, rule)),
            _ => Counted::Steered(chain.strip_prefix(names::COUNT_TURNED)?.parse().ok()?),
        };
        Some((counted, packets))
    })
}

const MARK: &str = "-m mark --mark ";

fn parts(line: &str) -> Option<(u64, &str, &str)> {
    let (numbers, rule) = line.strip_prefix('[')?.split_once("] -A ")?;
    let (chain, rule) = rule.split_once(' ')?;
    Some((numbers.split_once(':')?.0.parse().ok()?, chain, rule))
}

/// Id of the uplink whose mark a rule matches; 0 if the rule matches no mark.
fn id(field: Field, rule: &str) -> u32 {
    let value = rule.split_once(MARK).and_then(|(_, rest)| rest.split(['/', ' ']).next());
    let value = value.and_then(|value| value.strip_prefix("0x"));
    value.and_then(|hex| u32::from_str_radix(hex, 16).ok()).map_or(0, |mark| field.id(mark))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::counts::Counts;
    use crate::config::Settings;

    #[test]
    fn lines_of_both_families_add_up() {
        let text = "\
*mangle
:symroute-bind - [0:0]
[7:420] -A PREROUTING -j symroute-prerouting
[3:180] -A symroute-bind -m mark --mark 0x100/0x1f00 -m comment --comment \"x #0\" -j RETURN
[5:300] -A symroute-bind -m mark --mark 0x200/0x1f00 -m comment --comment \"x #0\" -j RETURN
[9:540] -A symroute-restore -m comment --comment x -j CONNMARK --restore-mark
[8:480] -A symroute-restore -m mark --mark 0x200/0x1f00 -j RETURN
[1:60] -A symroute-uturn-2 -j MARK --set-xmark 0x1200/0x1f00
[2:120] -A symroute-clear -j MARK --set-xmark 0x0/0x1f00
COMMIT
";
        let mut counts = Counts::default();
        for _ in 0..2 {
            counts.extend(parse(Settings::default().field, text));
        }
        assert_eq!(counts.bound, [(1, 6), (2, 10)].into());
        assert_eq!(counts.steered, [(2, 18)].into());
        assert_eq!(counts.cleared, 4);
    }
}
