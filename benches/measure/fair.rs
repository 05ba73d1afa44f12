//! Times a call under equal conditions for every program.
//!
//! A program that has just run finds its code and the kernel's code for it in the processor's
//! caches. So another program runs right before each timed call. A call's preparation, for example
//! an ADD before a DEL, runs after an earlier timed call and not right before this one.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::lab::{Lab, Plugin, disturber, tool_here};

/// Number of the pod that stays on every node.
const KEPT: u32 = 0;
/// Lowest number of new pods. No node begins with a pod of this number or above.
pub(crate) const NEW: u32 = 20_000;
/// Pause after a DEL before the next timed call. In a release that kept pods in nftables, a DEL
/// delayed later calls for this long, because `nf_tables` frees elements later. That is rare on
/// real nodes.
pub(crate) const SETTLED: Duration = Duration::from_millis(60);

/// A node, and the program to call on it.
pub(crate) struct Site {
    pub(crate) lab: Lab,
    plugin: Plugin,
    /// Program that runs before each timed call.
    disturber: Plugin,
    /// `ip` commands to run in the pod before an ADD.
    repair: &'static str,
    /// Number of the last new pod.
    next: u32,
    /// Pod that an earlier turn added for the next DEL.
    spare: Option<u32>,
    /// Minimum time from a DEL to the next timed call.
    pause: Duration,
    /// Time of the last DEL.
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

    /// A node of symroute with `pods` pods and the pod [`KEPT`]. With it, no DEL removes the node
    /// state.
    pub(crate) fn filled(lab: Lab, plugin: Plugin, pods: u32) -> Self {
        lab.node.run(|| {
            for pod in KEPT..=pods {
                plugin.call_here(&lab, "ADD", pod);
            }
        });
        Self { pause: SETTLED, ..Self::new(lab, plugin, "") }
    }

    /// Duration of one call in microseconds. An ADD is for a new pod, a DEL for an attached one,
    /// any other verb for [`KEPT`].
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

    /// Duration of one call of the tool in microseconds.
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
