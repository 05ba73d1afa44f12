//! Variables and stdin that no runtime should pass, and the VERSION call.

use serde_json::{Value, json};

use super::{Start, add, assert_refused, on_a_node, valid_settings};
use crate::lab::plugin::Call;
use crate::lab::two_nics::{TwoNics, two_nics};

const ALL: [&str; 3] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];

/// A call of this verb with this text on stdin.
fn with_stdin(layout: &TwoNics, verb: &str, stdin: &str) -> Call {
    let pod = &layout.pods[0];
    Call::cni(verb, stdin, &pod.id, &pod.ns.path(), "eth0")
}

fn on_both(work: impl Fn(&TwoNics)) {
    on_a_node(Start::Empty, &work);
    on_a_node(Start::InUse, &work);
}

#[test]
fn variables_that_are_missing() {
    on_both(|layout| {
        let add = add(layout, &valid_settings());
        let del = layout.node.call_of("DEL", &valid_settings(), &layout.pods[0]);
        for name in ALL {
            assert_refused(layout, &[(add.clone().with(name, ""), 4, &[name, "missing"])]);
            if name != "CNI_NETNS" {
                assert_refused(layout, &[(del.clone().with(name, ""), 4, &[name, "missing"])]);
            }
        }
        let none = |call: &Call| ALL.iter().fold(call.clone(), |call, name| call.with(name, ""));
        assert_refused(
            layout,
            &[
                (none(&add), 4, &ALL),
                (none(&del), 4, &["CNI_CONTAINERID", "CNI_IFNAME"]),
                // The plugin reports a missing variable before a fault of the configuration.
                (with_stdin(layout, "ADD", "").with("CNI_IFNAME", ""), 4, &["CNI_IFNAME"]),
                (add.clone().with("CNI_COMMAND", "GET"), 4, &["GET", "ADD", "DEL", "VERSION"]),
                (add.clone().with("CNI_COMMAND", "add"), 4, &["unknown CNI_COMMAND: add"]),
            ],
        );
    });
}

#[test]
fn variables_that_are_wrong() {
    on_both(|layout| {
        let add = add(layout, &valid_settings());
        for id in ["-a", ".a", "_a", "a b", "a/b", "../a", "a\n", "ä", " "] {
            let quoted = format!("{id:?}");
            let words = ["CNI_CONTAINERID", &quoted, "a letter or digit"];
            assert_refused(layout, &[(add.clone().with("CNI_CONTAINERID", id), 4, &words)]);
        }
        for ifname in [".", "..", "a/b", "a:b", "a b", "a\tb", "name-of-16-bytes"] {
            let quoted = format!("{ifname:?}");
            let words = ["CNI_IFNAME", &quoted, "1 to 15 bytes"];
            assert_refused(layout, &[(add.clone().with("CNI_IFNAME", ifname), 4, &words)]);
        }
    });
}

/// An ADD for which the runtime passes the node's own network namespace, or one that does not
/// exist.
#[test]
fn network_namespaces_that_are_not_the_pods() {
    on_both(|layout| {
        let add = add(layout, &valid_settings());
        let (own, none) = (layout.node.ns.path(), format!("{}-gone", layout.node.ns.path()));
        assert_refused(
            layout,
            &[
                (add.clone().with("CNI_NETNS", &own), 8, &[&own, "the node itself", "the pod's"]),
                (add.clone().with("CNI_NETNS", "/proc/self/ns/net"), 8, &["the node itself"]),
                (add.clone().with("CNI_NETNS", &none), 8, &[&none, "No such file"]),
                (add.clone().with("CNI_NETNS", "/dev/null/x"), 8, &["/dev/null/x"]),
            ],
        );
    });
}

#[test]
fn stdin_that_is_no_configuration() {
    let texts = ["", " \n", "not json", "[]", "5", "null", "\"lab\"", "{\"name\":\"lab\"", "{}{}"];
    on_both(|layout| {
        for text in texts {
            let both = ["ADD", "DEL"].map(|verb| with_stdin(layout, verb, text));
            let words: &[&str] = &["configuration on stdin"];
            assert_refused(layout, &both.map(|call| (call, 6, words)));
        }
    });
}

#[test]
fn names_and_versions() {
    let network = |change: &dyn Fn(&mut Value)| {
        let mut network = json!({"cniVersion": "1.0.0", "name": "lab", "type": "symroute"});
        change(&mut network);
        network.to_string()
    };
    let mut cases: Vec<(String, u64, Vec<String>)> = Vec::new();
    for name in [json!(""), json!("-lab"), json!("a b"), json!("ä"), json!(5), json!(null)] {
        let words = vec!["network name".to_owned(), name.to_string()];
        cases.push((network(&|n| n["name"] = name.clone()), 7, words));
    }
    let unnamed = json!({"cniVersion": "1.0.0", "type": "symroute"}).to_string();
    cases.push((unnamed, 7, vec!["missing network name".into(), "set \"name\"".into()]));
    for version in ["9.9.9", "1.0", "1.2.0", "latest"] {
        let words = vec![format!("\"{version}\""), "supported: ".into(), "1.1.0".into()];
        cases.push((network(&|n| n["cniVersion"] = json!(version)), 1, words));
    }
    for version in [json!(1), json!(null), json!(["1.0.0"])] {
        let words = vec!["\"cniVersion\"".into(), version.to_string(), "not a string".into()];
        cases.push((network(&|n| n["cniVersion"] = version.clone()), 6, words));
    }
    on_both(|layout| {
        for (text, code, words) in &cases {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            for verb in ["ADD", "DEL"] {
                assert_refused(layout, &[(with_stdin(layout, verb, text), *code, &words)]);
            }
        }
    });
}

/// An error has the CNI version of its request.
#[test]
fn errors_speak_the_version_of_the_request() {
    let layout = two_nics();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let network = json!({"cniVersion": version, "name": "lab", "host": 5}).to_string();
        let ran = layout.node.call(&with_stdin(&layout, "ADD", &network));
        let error: Value = serde_json::from_str(&ran.stdout).expect("an error in JSON");
        assert_eq!(error["cniVersion"], json!(version), "{error}");
    }
}

/// VERSION reads nothing else: libcni passes an empty stdin and a namespace "dummy".
#[test]
fn version_needs_nothing() {
    on_a_node(Start::InUse, |layout| {
        let asked = json!({"cniVersion": "0.4.0", "name": "/", "host": 5}).to_string();
        for (stdin, version) in [("", None), ("{", None), ("[]", None), (&asked, Some("0.4.0"))] {
            for call in [
                Call::of_plugin(&[]).with("CNI_COMMAND", "VERSION"),
                Call::cni("VERSION", stdin, "dummy", "dummy", "dummy"),
                Call::cni("VERSION", stdin, "-", "", "/"),
            ] {
                let ran = layout.node.call(&call);
                ran.assert_success("VERSION");
                let answer: Value = serde_json::from_str(&ran.stdout).expect("JSON");
                let known = answer["supportedVersions"].as_array().expect("a list of versions");
                for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                    assert!(known.contains(&json!(version)), "{answer}");
                }
                let said = answer["cniVersion"].as_str().expect("a version");
                assert!(known.contains(&json!(said)), "{answer}");
                if let (Some(version), true) = (version, call.has_stdin()) {
                    assert_eq!(said, version, "the version that was asked for");
                }
            }
        }
    });
}
