//! Counters, and their growth per second between two reports.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backend::counts::Counts;
use crate::plan::Uplink;

/// The counters at one moment.
#[derive(Debug, Clone)]
pub(super) struct Counters {
    at: Instant,
    /// Connections that the rules bound, by the uplink's id. Empty if the tool can't read the counters.
    pub(super) bound: BTreeMap<u32, u64>,
    /// Packets that the rules steered to the uplink, by its id. Empty if the tool can't read the counters.
    pub(super) steered: BTreeMap<u32, u64>,
    /// Packets that `rp_filter` has dropped on the whole node.
    pub(super) drops: Option<u64>,
}

/// Growth of the counters per second.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) bound: BTreeMap<u32, f64>,
    pub(super) steered: BTreeMap<u32, f64>,
    pub(super) drops: Option<f64>,
}

impl Counters {
    /// The counters of these uplinks; those of routers are added to their uplink's.
    pub(super) fn of(
        at: Instant,
        uplinks: &[Uplink],
        counts: Option<&Counts>,
        drops: Option<u64>,
    ) -> Self {
        let by_uplink = |of: fn(&Counts) -> &BTreeMap<u32, u64>| {
            let Some(counts) = counts else { return BTreeMap::new() };
            uplinks.iter().map(|u| (u.id, u.total(of(counts)))).collect()
        };
        let (bound, steered) = (by_uplink(|c| &c.bound), by_uplink(|c| &c.steered));
        Self { at, bound, steered, drops }
    }

    /// The growth per second since an earlier report.
    pub(super) fn since(&self, before: &Self) -> Rates {
        let time = self.at.saturating_duration_since(before.at);
        let rates = |now: &BTreeMap<u32, u64>, before: &BTreeMap<u32, u64>| {
            let rate =
                |(id, now): (&u32, &u64)| Some((*id, per_second(*before.get(id)?, *now, time)?));
            now.iter().filter_map(rate).collect()
        };
        let drops = self.drops.zip(before.drops);
        Rates {
            bound: rates(&self.bound, &before.bound),
            steered: rates(&self.steered, &before.steered),
            drops: drops.and_then(|(now, before)| per_second(before, now, time)),
        }
    }
}

/// The growth of a counter per second. A counter that shrank was reset to 0 in between. `None` if no
/// time has passed.
#[expect(clippy::cast_precision_loss, reason = "a rate is a rounded number")]
fn per_second(before: u64, now: u64, time: Duration) -> Option<f64> {
    let grown = now.checked_sub(before).unwrap_or(now);
    (!time.is_zero()).then(|| grown as f64 / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_by_time() {
        let at = Instant::now();
        let counters = |seconds, bound: &[(u32, u64)], drops| Counters {
            at: at + Duration::from_secs(seconds),
            bound: bound.iter().copied().collect(),
            steered: BTreeMap::new(),
            drops,
        };
        let before = counters(0, &[(1, 10), (2, 50)], Some(7));
        // The second counter was reset, and the third one is new.
        let now = counters(2, &[(1, 15), (2, 4), (3, 9)], Some(7));
        let rates = now.since(&before);
        assert_eq!(rates.bound, [(1, 2.5), (2, 2.0)].into());
        assert_eq!(rates.drops, Some(0.0));
        assert_eq!(before.since(&before), Rates::default(), "no time has passed");
        let unread = counters(4, &[], None);
        assert_eq!(unread.since(&now), Rates::default());
    }
}
