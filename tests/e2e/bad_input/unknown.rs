//! Unknown keys of symroute's own object. A command refuses the object that an operator passes to
//! it, and `status` reports the keys of one that is already in a conflist.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Start, on_a_node};
use crate::lab::node::Node;
use crate::lab::plugin::Ran;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, two_nics};

const SAID: &str = "\"uplink\": unknown key; known: uplinks, gateways, ";

fn write(path: &Path, value: &Value) -> String {
    fs::write(path, value.to_string()).expect("write a file");
    path.to_str().expect("UTF-8").to_owned()
}

fn conflist(ours: &Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "ptp"}, ours]})
}

fn assert_refused(ran: &Ran, what: &str) {
    assert_eq!(ran.code, Some(1), "{what}: {}{}", ran.stdout, ran.stderr);
    let said = &ran.stderr;
    assert!(said.contains(SAID) && said.contains("did you mean \"uplinks\"?"), "{what}: {said}");
}

/// Makes the folder with flannel's conflist, for `conflist add` and the agent.
fn conf_dir(node: &Node) -> String {
    let folder = node.dir.join("net.d");
    fs::create_dir_all(&folder).expect("make the conf dir");
    let flannel = json!({"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "flannel"}]});
    write(&folder.join("10-flannel.conflist"), &flannel);
    folder.to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_slip_is_refused_before_anything_is_changed() {
    for start in [Start::Empty, Start::InUse] {
        on_a_node(start, |layout| {
            let node = &layout.node;
            let wrong = json!({"type": "symroute", "uplink": NICS});
            let object = write(&node.dir.join("wrong.json"), &wrong);
            let list = write(&node.dir.join("wrong.conflist"), &conflist(&wrong));
            let (folder, state) = (conf_dir(node), node.dir.join("lasting"));
            let state = state.to_str().expect("UTF-8");
            let places = ["--conf-dir", &folder, "--state-dir", state];
            let before = Snapshot::take(node);
            let primary = fs::read(node.dir.join("net.d/10-flannel.conflist")).expect("read");
            for words in [
                vec!["up", "--config", &object],
                vec!["up", "--config", &list],
                [&["conflist", "add", "--config", &object][..], &places].concat(),
                [&["agent", "--listen", "off", "--entry", &object][..], &places].concat(),
            ] {
                assert_refused(&node.symroute(&words), &words.join(" "));
            }
            before.assert_unchanged(&Snapshot::take(node));
            let now = fs::read(node.dir.join("net.d/10-flannel.conflist")).expect("read");
            assert_eq!(now, primary);
            assert!(!Path::new(state).exists(), "nothing is remembered");
        });
    }
}

#[test]
fn status_names_a_slip_in_a_conflist() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({"uplinks": NICS}));
    let folder = node.dir.join("net.d");
    let words = ["status", "--conf-dir", folder.to_str().expect("UTF-8")];
    assert_eq!(node.symroute(&words).code, Some(0), "no such directory");
    fs::create_dir(&folder).expect("make the conf dir");
    let file = folder.join("10-lab.conflist");
    let slip = json!({"type": "symroute", "uplinks": NICS, "uplink": 5, "_why": "", "io.x/y": 1});
    write(&file, &conflist(&slip));
    let ran = node.symroute(&words);
    assert_eq!(ran.code, Some(4), "{}{}", ran.stdout, ran.stderr);
    for wanted in [file.to_str().expect("UTF-8"), SAID, "symroutectl conflist add --config"] {
        assert!(ran.stdout.contains(wanted), "{wanted}: {}", ran.stdout);
    }
    let json = node.symroute(&[&words[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(report["off"].as_array().map(Vec::len), Some(1), "{report:#}");
    write(&file, &conflist(&json!({"type": "symroute", "uplinks": NICS})));
    assert_eq!(node.symroute(&words).code, Some(0));
    // A typing error must not stop the boot: `up` uses the folder's conflist as an ADD would.
    write(&file, &conflist(&slip));
    let ran = node.symroute(&["up", words[1], words[2]]);
    ran.assert_success("up --conf-dir");
    assert!(ran.stdout.contains(SAID), "{}", ran.stdout);
    node.down();
}
