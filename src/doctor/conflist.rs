//! How our entry stands in the conflist that the runtime reads.

use std::path::Path;

use super::{CONFLIST, Finding, Severity};
use crate::conflist::{State, View};

/// An entry that a runtime would not call as it should. An entry that is missing is no finding: the node may
/// do with `symroutectl up`.
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
            "has changed since our own file was made of it",
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
