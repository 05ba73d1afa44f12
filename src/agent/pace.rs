//! Limits how fast the agent works. Events gather for a moment, but a storm of events does not
//! delay a look for long. If another program undoes repairs again and again, the agent repairs at
//! a limited rate. The functions here read no clock: callers pass the time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::cause::{Cause, Causes};

/// Time without an event after which a turn begins.
pub(crate) const QUIET: Duration = Duration::from_millis(50);
/// Maximum time from the first event to the turn.
pub(crate) const CEILING: Duration = Duration::from_millis(200);
/// Length of the rest after a turn, as a multiple of the turn's duration.
const REST: u32 = 10;
/// Maximum rest after a turn: the agent has to repair the node within two seconds.
const LONGEST_REST: Duration = Duration::from_millis(800);
/// Maximum number of repairs for one cause within [`WINDOW`]. With more, the cause is contested.
const REPAIRS: usize = 6;
/// Time for which a repair counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Minimum time between two repairs for contested causes.
const PAUSE: Duration = Duration::from_secs(5);
/// First and longest pause before a retry after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Pause before the next retry after this many failures in a row.
pub(crate) fn retry_after(failures: u32) -> Duration {
    RETRY.0.saturating_mul(1 << failures.clamp(1, 6).saturating_sub(1)).min(RETRY.1)
}

/// Rest after a turn that took `look`.
pub(crate) fn rest_after(look: Duration) -> Duration {
    look.saturating_mul(REST).min(LONGEST_REST)
}

/// Times of the repairs within [`WINDOW`], by cause.
#[derive(Debug, Default)]
pub(crate) struct Repairs(BTreeMap<Cause, VecDeque<Instant>>);

impl Repairs {
    pub(crate) fn made(&mut self, causes: &Causes, now: Instant) {
        for &cause in causes.iter().filter(|cause| !cause.is_no_damage()) {
            let times = self.0.entry(cause).or_default();
            times.push_back(now);
            // This many are enough to see that the cause is contested.
            if times.len() > REPAIRS + 1 {
                times.pop_front();
            }
        }
    }

    /// Causes with more than [`REPAIRS`] repairs within [`WINDOW`].
    pub(crate) fn contested(&mut self, now: Instant) -> Causes {
        for times in self.0.values_mut() {
            times.retain(|&at| now.saturating_duration_since(at) < WINDOW);
        }
        self.0.retain(|_, times| !times.is_empty());
        self.0.iter().filter(|(_, times)| times.len() > REPAIRS).map(|(&cause, _)| cause).collect()
    }

    /// Time that a turn for these causes has to wait. `None` unless all of them are contested.
    pub(crate) fn wait(&mut self, causes: &Causes, now: Instant) -> Option<Duration> {
        let contested = self.contested(now);
        if causes.is_empty() || !causes.is_subset(&contested) {
            return None;
        }
        let last = causes.iter().filter_map(|cause| self.0.get(cause)?.back()).max()?;
        let wait = PAUSE.saturating_sub(now.saturating_duration_since(*last));
        (!wait.is_zero()).then_some(wait)
    }
}

/// Counts how often the agent put a managed file in place, and says when to stop.
#[derive(Debug, Default)]
pub(crate) struct Rewrites(VecDeque<Instant>);

impl Rewrites {
    /// Maximum number of rewrites within [`Self::WITHIN`].
    const MAX_REWRITES: usize = 5;
    /// Time for which a rewrite counts.
    const WITHIN: Duration = Duration::from_secs(120);

    /// Whether the agent may rewrite the file now.
    pub(crate) fn allow(&mut self, now: Instant) -> bool {
        self.0.retain(|&at| now.saturating_duration_since(at) < Self::WITHIN);
        self.0.len() < Self::MAX_REWRITES
    }

    /// Notes that the agent rewrote the file.
    pub(crate) fn made(&mut self, now: Instant) {
        self.0.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_repairs_are_made_at_once_and_later_ones_at_a_limited_rate() {
        let (mut repairs, begin) = (Repairs::default(), Instant::now());
        let rules = Causes::from([Cause::Rules]);
        for n in 0..=6 {
            let now = begin + Duration::from_secs(n);
            assert_eq!(repairs.wait(&rules, now), None, "repair {n}");
            repairs.made(&rules, now);
        }
        let now = begin + Duration::from_secs(7);
        assert_eq!(repairs.wait(&rules, now), Some(Duration::from_secs(4)));
        assert_eq!(repairs.contested(now), rules);
        let both = Causes::from([Cause::Rules, Cause::Links]);
        assert_eq!(repairs.wait(&both, now), None, "something else happened too");
        assert_eq!(repairs.wait(&rules, begin + Duration::from_secs(12)), None);
        let later = begin + Duration::from_secs(120);
        assert_eq!(repairs.contested(later), Causes::new());
    }

    #[test]
    fn looks_of_the_clock_are_nobodys_fault() {
        let (mut repairs, now) = (Repairs::default(), Instant::now());
        for _ in 0..20 {
            repairs.made(&Causes::from([Cause::Resync, Cause::Start, Cause::Pods]), now);
        }
        assert_eq!(repairs.contested(now), Causes::new());
    }

    #[test]
    fn pauses_have_ends() {
        assert_eq!(retry_after(0), Duration::from_secs(1));
        assert_eq!(retry_after(1), Duration::from_secs(1));
        assert_eq!(retry_after(3), Duration::from_secs(4));
        assert_eq!(retry_after(u32::MAX), Duration::from_secs(30));
        assert!(rest_after(Duration::from_secs(60)) < Duration::from_secs(1));
        let (mut rewrites, now) = (Rewrites::default(), Instant::now());
        let allowed = |rewrites: &mut Rewrites| {
            let allowed = rewrites.allow(now);
            if allowed {
                rewrites.made(now);
            }
            allowed
        };
        assert_eq!((0..9).filter(|_| allowed(&mut rewrites)).count(), 5);
        assert!(rewrites.allow(now + Duration::from_secs(120)));
    }
}
