//! Faults of symroute's entry in the conflist that the runtime reads.

use std::path::Path;

use super::{CONFLIST, Finding, OUT_OF_STEP, Severity};
use crate::config::source::NetworkConfig;
use crate::conflist::{State, View};
use crate::state::Record;

/// A warning if the runtime does not call symroute's entry as it should. A missing entry is no fault: the node
/// may use `symroutectl up` instead.
pub(crate) fn finding(view: &View, dir: &Path) -> Option<Finding> {
    let (what, why) = match view.state {
        State::Misplaced => (
            "has our entry before the primary plugin's",
            "the runtime calls symroute before the primary plugin has given the pod an address",
        ),
        State::Duplicate => (
            "has our entry more than once",
            "the runtime calls symroute more than once for each pod, with the settings of each entry",
        ),
        State::OtherMode => (
            "has our entry, and a file of our own has it too",
            "which of the two the runtime takes depends on their names",
        ),
        State::Stale => (
            "has changed since symroute created its own file from it",
            "the runtime starts pods by the older list",
        ),
        State::Ready
        | State::Missing
        | State::Differs
        | State::WaitingForPrimary(_)
        | State::Refused(_) => return None,
    };
    let file = dir.join(view.file.as_deref()?);
    Some(Finding {
        id: CONFLIST,
        severity: Severity::Warning,
        what: format!("{} {what}", file.display()),
        evidence: vec![why.into()],
        remedy: format!(
            "symroutectl conflist add --conf-dir {}, which puts it right",
            dir.display()
        ),
    })
}

/// A finding if the conflist asks for settings that are not in force, or for invalid ones. `asked`: the
/// settings of the conflist, `None` if no conflist in `dir` names symroute, or the reason why symroute refuses
/// them.
pub(crate) fn settings(
    asked: &Result<Option<NetworkConfig>, String>,
    record: Option<&Record>,
    dir: &Path,
    agent_runs: bool,
) -> Option<Finding> {
    let dir = dir.display();
    let finding = |severity, what: String, evidence: String, remedy: String| Finding {
        id: OUT_OF_STEP,
        severity,
        what,
        evidence: vec![evidence],
        remedy,
    };
    match asked {
        Err(why) => Some(finding(
            Severity::Problem,
            format!("a conflist of {dir} has settings that symroute refuses"),
            why.clone(),
            "correct it: until then no pod of its network starts".into(),
        )),
        Ok(None) => None,
        Ok(Some(asked)) => {
            let record = record.filter(|record| record.network == asked.network)?;
            let (key, wanted, found) = asked.config.settings.differing(&record.settings)?;
            Some(finding(
                Severity::Warning,
                "the conflist asks for other settings than those in force on this node".into(),
                format!(
                    "\"{key}\" is {found}, and network \"{}\" asks for {wanted}",
                    asked.network
                ),
                if agent_runs {
                    "none if they are new: the agent brings them into force, or its log says why not"
                        .into()
                } else {
                    format!("symroutectl up --conf-dir {dir}")
                },
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conflist::{Directory, Wanted};
    use crate::temp_dir::TempDir;
    use serde_json::json;
    use std::fs;

    fn found(plugins: &[&str]) -> Option<Finding> {
        let dir = TempDir::new();
        let plugins: Vec<_> = plugins.iter().map(|kind| json!({"type": kind})).collect();
        let list = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": plugins});
        fs::write(dir.join("10-lab.conflist"), list.to_string()).unwrap();
        let view = Directory::open(&*dir).examine(&Wanted::default()).unwrap();
        finding(&view, &dir)
    }

    #[test]
    fn where_our_entry_has_to_stand() {
        assert_eq!(found(&["ptp"]), None);
        assert_eq!(found(&["ptp", "symroute"]), None);
        assert_eq!(found(&["ptp", "portmap", "symroute"]), None);
        for wrong in [&["symroute", "ptp"][..], &["ptp", "symroute", "symroute"]] {
            assert_eq!(found(wrong).unwrap().id, CONFLIST, "{wrong:?}");
        }
    }
}
