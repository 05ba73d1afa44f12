//! One timed call, with the same before it for every program.
//!
//! A program that ran just now finds its code, the kernel's paths for it and their branches in the
//! processor's caches. So another program runs before each timed call, whatever is timed, and no two
//! timed calls are tied together: what a call needs is made after an earlier one, not before it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::lab::{Lab, Plugin, disturber, tool_here};

/// The pod that every node has.
const KEPT: u32 = 0;
/// The first pod that no node has.
pub(crate) const NEW: u32 = 20_000;
/// For so long after a DEL, a release that had pods in the kernel made the next calls wait with it
/// for what `nf_tables` frees later. Nodes on which that happens are rare.
pub(crate) const SETTLED: Duration = Duration::from_millis(60);

/// A node, and the program that is called on it.
pub(crate) struct Site {
    pub(crate) lab: Lab,
    plugin: Plugin,
    disturber: Plugin,
    /// `ip` commands for the pod that have to come before an ADD.
    repair: &'static str,
    /// The pod of the next ADD.
    next: u32,
    /// A pod that is there for the next DEL.
    spare: Option<u32>,
    /// Pauses so long after a DEL, before the next timed call.
    pause: Duration,
    removed: Option<Instant>,
}

impl Site {
    pub(crate) fn new(lab: Lab, plugin: Plugin, repair: &'static str) -> Self {
        Self {
            lab,
            plugin,
            disturber: disturber(),
            repair,
            next: NEW,
            spare: None,
            pause: Duration::ZERO,
            removed: None,
        }
    }

    /// A node of symroute with pods on it. There is always one more: the last pod would take the
    /// node's state with it.
    pub(crate) fn filled(lab: Lab, plugin: Plugin, pods: u32) -> Self {
        lab.node.run(|| {
            for pod in KEPT..=pods {
                plugin.call_here(&lab, "ADD", pod);
            }
        });
        Self { pause: SETTLED, ..Self::new(lab, plugin, "") }
    }

    /// Microseconds of one call. ADD is of a new pod, DEL of one that is there, others of the pod
    /// that stays.
    pub(crate) fn timed(&mut self, verb: &str) -> f64 {
        let pod = match verb {
            "ADD" => self.new_pod(),
            "DEL" => self.spare.take().unwrap_or_else(|| self.add()),
            _ => KEPT,
        };
        if let Some(removed) = self.removed {
            sleep(self.pause.saturating_sub(removed.elapsed()));
        }
        let Self { lab, plugin, disturber, .. } = self;
        let took = lab.node.run(|| {
            disturber.call_here(lab, "ADD", KEPT);
            plugin.call_here(lab, verb, pod)
        });
        match verb {
            "ADD" => {
                plugin.call(lab, "DEL", pod);
                self.removed = Some(Instant::now());
            }
            "DEL" => {
                self.removed = Some(Instant::now());
                self.spare = Some(self.add());
            }
            _ => {}
        }
        took
    }

    /// Microseconds of one call of the tool.
    pub(crate) fn timed_tool(&self, tool: &str, word: &str) -> f64 {
        let Self { lab, disturber, .. } = self;
        lab.node.run(|| {
            disturber.call_here(lab, "ADD", KEPT);
            tool_here(tool, word)
        })
    }

    fn add(&mut self) -> u32 {
        let pod = self.new_pod();
        self.plugin.call(&self.lab, "ADD", pod);
        pod
    }

    fn new_pod(&mut self) -> u32 {
        if !self.repair.is_empty() {
            self.lab.pod.ip(self.repair);
        }
        self.next += 1;
        self.next
    }
}
