//! The cases: what a runtime may say, and where symroute answers otherwise than the peers.
//!
//! Placeholders in a text: NETNS, IPV4, IPV6 and CONTAINER are the pod's. NODE is the node's own
//! network namespace, PLUGIN the type of the plugin, and LOG the node's log file.

use serde_json::{Value, json};

use crate::lab::two_nics::NICS;

/// One call.
pub(super) struct Case {
    /// What is special about the call.
    pub(super) what: String,
    pub(super) verb: &'static str,
    /// `cniVersion` of the configuration; "–" where the version itself is the fault.
    pub(super) version: &'static str,
    /// The configuration of an ADD that comes first and must succeed.
    pub(super) after_add_of: Option<String>,
    pub(super) variables: Vec<(&'static str, String)>,
    pub(super) stdin: String,
    /// symroute's answer and the reason, where some peers answer otherwise.
    pub(super) differs: Option<(String, &'static str)>,
}

impl Case {
    pub(super) fn name(&self) -> String {
        format!("{} {}, {}", self.verb, self.version, self.what)
    }

    fn after_add(self) -> Self {
        Self { after_add_of: Some(network("1.0.0")), ..self }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    fn differs(self, ours: &str, reason: &'static str) -> Self {
        Self { differs: Some((ours.to_owned(), reason)), ..self }
    }

    /// Sets the answer of those cases only for which the condition holds.
    fn differs_if(self, condition: bool, ours: &str, reason: &'static str) -> Self {
        if condition { self.differs(ours, reason) } else { self }
    }
}

const ALL: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const VERBS: [&str; 3] = ["ADD", "DEL", "CHECK"];

fn case(what: impl Into<String>, verb: &'static str, version: &'static str, stdin: String) -> Case {
    let (what, differs) = (what.into(), None);
    Case { what, verb, version, after_add_of: None, variables: Vec::new(), stdin, differs }
}

/// A valid configuration.
pub(super) fn network(version: &str) -> String {
    changed(version, |_| {})
}

/// A valid configuration with a change.
fn changed(version: &str, change: impl Fn(&mut Value)) -> String {
    let mut network = json!({
        "cniVersion": version, "name": "lab", "type": "PLUGIN",
        "uplinks": NICS, "log": {"level": "debug", "file": "LOG"},
        "prevResult": result(version),
    });
    change(&mut network);
    network.to_string()
}

/// A valid configuration without one key.
fn without(version: &str, key: &str) -> String {
    changed(version, |network| {
        network.as_object_mut().expect("an object").shift_remove(key);
    })
}

/// What a primary plugin of this version prints.
fn result(version: &str) -> Value {
    let address = |ip: &str, gateway: &str| match version {
        "1.0.0" | "1.1.0" => json!({"interface": 1, "address": ip, "gateway": gateway}),
        _ => {
            let family = if ip.starts_with("IPV4") { "4" } else { "6" };
            json!({"version": family, "interface": 1, "address": ip, "gateway": gateway})
        }
    };
    match version {
        "0.1.0" | "0.2.0" => json!({
            "cniVersion": version,
            "ip4": {"ip": "IPV4/32", "gateway": "169.254.1.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "IPV6/128", "gateway": "fe80::1"},
            "dns": {},
        }),
        _ => json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "enip", "mac": "02:03:00:00:00:01"},
                {"name": "eth0", "sandbox": "NETNS"},
            ],
            "ips": [address("IPV4/32", "169.254.1.1"), address("IPV6/128", "fe80::1")],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["10.0.0.10"]},
        }),
    }
}

/// All cases.
pub(super) fn all() -> Vec<Case> {
    let parts = [
        well,
        newer_verbs,
        missing_variables,
        wrong_variables,
        namespaces,
        stdin,
        names,
        versions,
        order,
        results,
        conversions,
        annotations,
    ];
    parts.iter().flat_map(|part| part()).collect()
}

/// The reasons why symroute answers otherwise.
mod because {
    pub(super) const NEWER: &str = "the peers' release supports versions up to 1.0.0";
    pub(super) const ECHO: &str = "symroute echoes the requested version, as the specification \
        says; the peers report their newest";
    pub(super) const NEWER_VERB: &str = "the peers' release does not know the verb";
    pub(super) const TWICE: &str = "a runtime may repeat an ADD; sbr fails on its own routes";
    pub(super) const GONE: &str = "the pod was never added, and symroute looks for its attachment; \
        these peers check the pod only, or nothing";
    pub(super) const NO_FAILING_DEL: &str = "a failing DEL stops the chain and leaks addresses, \
        and DEL needs only the attachment's name";
    pub(super) const NO_DELEGATE: &str = "symroute calls no other plugin, so it needs no CNI_PATH";
    pub(super) const OWN_NAMESPACE: &str = "newer releases of the CNI library answer 8, too; \
        symroute never attaches the node's own namespace";
    pub(super) const BAD_NAMESPACE: &str = "symroute checks the namespace first, and reports the \
        kind of fault";
    pub(super) const NULL: &str = "null is not a configuration; Go decodes it as an empty one";
    pub(super) const NAME: &str = "a bad name is reported as a bad name, whatever its JSON type";
    pub(super) const NULL_VERSION: &str = "null is not a string; Go decodes it as an empty one";
    pub(super) const SAME_FOR_ALL: &str = "ADD and DEL get this answer, from the peers too";
    pub(super) const KIND: &str = "symroute reports the kind of fault; the peers answer 999 for \
        every fault that their library misses";
    pub(super) const NO_ADDRESS: &str = "a pod without an address needs nothing; sbr has no \
        address to work with";
    pub(super) const CONVERTED: &str = "symroute converts the result; libcni does so before each \
        plugin, but other runtimes may not";
    pub(super) const UNVERSIONED: &str = "such a result has the configuration's version; sbr \
        misses the interfaces";
    pub(super) const SETTING: &str = "only symroute has this setting";
}

use because::*;

/// Valid calls in each version.
fn well() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in ALL {
        let newer = version == "1.1.0";
        let checked = newer || version == "1.0.0" || version == "0.4.0";
        let printed = format!("ok {version}");
        let of = |what: &str, verb| case(what, verb, version, network(version));
        let unchained = case("without prevResult", "DEL", version, without(version, "prevResult"));
        cases.extend([
            of("as it should be", "ADD").differs_if(newer, &printed, NEWER),
            of("twice", "ADD").after_add().differs(&printed, if newer { NEWER } else { TWICE }),
            of("never added", "DEL").differs_if(newer, "ok", NEWER),
            of("after ADD", "DEL").after_add().differs_if(newer, "ok", NEWER),
            unchained.after_add().differs_if(newer, "ok", NEWER),
            of("after ADD", "CHECK").after_add().differs_if(newer, "ok", NEWER),
            of("never added", "CHECK").differs_if(checked, "code 102", GONE),
            of("as it should be", "VERSION").differs_if(version != "1.0.0", &printed, ECHO),
        ]);
    }
    cases
}

/// GC and STATUS.
fn newer_verbs() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        for verb in ["GC", "STATUS"] {
            let ours = if version == "1.1.0" { "ok" } else { "code 1" };
            let case = case("as it should be", verb, version, without(version, "prevResult"));
            cases.push(case.differs(ours, NEWER_VERB));
        }
    }
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let lists = [
            ("nothing", json!([])),
            ("null", json!(null)),
            ("this attachment", json!([{"containerID": "CONTAINER", "ifname": "eth0"}])),
        ];
        for (what, list) in lists {
            let network = changed("1.1.0", |network| network[key] = list.clone());
            let case = case(format!("\"{key}\" is {what}"), "GC", "1.1.0", network);
            cases.push(case.after_add().differs("ok", NEWER_VERB));
        }
    }
    cases
}

fn missing_variables() -> Vec<Case> {
    let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
    let mut cases = Vec::new();
    for verb in VERBS {
        for name in names {
            let case = case(format!("no {name}"), verb, "1.0.0", network("1.0.0")).with(name, "");
            let optional = verb == "DEL" && name == "CNI_NETNS";
            cases.push(match name {
                "CNI_PATH" if verb == "ADD" => case.differs("ok 1.0.0", NO_DELEGATE),
                "CNI_PATH" => case.after_add().differs("ok", NO_DELEGATE),
                _ => case.differs_if(optional, "ok", NO_FAILING_DEL),
            });
        }
        let none = case("no variable but CNI_COMMAND", verb, "1.0.0", network("1.0.0"));
        cases.push(names.iter().fold(none, |case, name| case.with(name, "")));
    }
    for (verb, ours, reason) in
        [("VERSION", "ok 1.1.0", ECHO), ("GC", "ok", NEWER_VERB), ("STATUS", "ok", NEWER_VERB)]
    {
        let none = case("no variable but CNI_PATH", verb, "1.1.0", without("1.1.0", "prevResult"))
            .differs(ours, reason);
        cases.push(names[..3].iter().fold(none, |case, name| case.with(name, "")));
    }
    cases
}

fn wrong_variables() -> Vec<Case> {
    let mut cases = Vec::new();
    for verb in ["ADD", "DEL"] {
        for id in ["-a", ".a", "_a", "a b", "a/b", "../a", "ä"] {
            let case = case(format!("CNI_CONTAINERID={id}"), verb, "1.0.0", network("1.0.0"));
            cases.push(case.with("CNI_CONTAINERID", id));
        }
        let case_of = |ifname: &str| {
            let case = case(format!("CNI_IFNAME={ifname:?}"), verb, "1.0.0", network("1.0.0"));
            case.with("CNI_IFNAME", ifname)
        };
        for ifname in [".", "..", "a/b", "a:b", "a b", "a\tb", "name-of-16-bytes"] {
            cases.push(case_of(ifname));
        }
    }
    for verb in ["GET", "add", "ADD ", "UPDATE"] {
        cases.push(case("no such verb", verb, "1.0.0", network("1.0.0")));
    }
    cases
}

/// `CNI_NETNS` that is not a pod's.
fn namespaces() -> Vec<Case> {
    let mut cases = Vec::new();
    for verb in VERBS {
        let files = [
            ("is the caller's own", "NODE", OWN_NAMESPACE),
            ("is not there", "/run/no-such-folder/netns", BAD_NAMESPACE),
            ("is no network namespace", "/dev/null", BAD_NAMESPACE),
            ("is a folder", "/", BAD_NAMESPACE),
        ];
        for (what, path, reason) in files {
            let case = case(format!("CNI_NETNS {what}"), verb, "1.0.0", network("1.0.0"))
                .with("CNI_NETNS", path);
            cases.push(match verb {
                "DEL" => case.differs_if(path != "NODE", "ok", NO_FAILING_DEL),
                _ => case.differs("code 8", reason),
            });
        }
    }
    cases
}

fn stdin() -> Vec<Case> {
    let texts = [
        "",
        " \n",
        "not json",
        "[]",
        "5",
        "null",
        "\"lab\"",
        "{\"name\":\"lab\"",
        "{}{}",
        "{}",
        "\u{feff}{}",
        "{'name': 'lab'}",
    ];
    let mut cases = Vec::new();
    for verb in VERBS {
        for text in texts {
            let case = case(format!("stdin is {text:?}"), verb, "–", text.to_owned());
            cases.push(case.differs_if(text == "null", "code 6", NULL));
        }
    }
    for text in ["", "{", "[]", "{\"cniVersion\": 5}"] {
        let case = case(format!("stdin is {text:?}"), "VERSION", "–", text.to_owned());
        cases.push(case.differs("ok 1.1.0", NEWER));
    }
    cases
}

fn names() -> Vec<Case> {
    let long = "n".repeat(300);
    let mut cases = Vec::new();
    for verb in VERBS {
        for name in [
            json!(""),
            json!("-lab"),
            json!(".lab"),
            json!("a b"),
            json!("a/b"),
            json!("ä"),
            json!(5),
            json!(null),
            json!(["lab"]),
        ] {
            let network = changed("1.0.0", |network| network["name"] = name.clone());
            let case = case(format!("\"name\" is {name}"), verb, "1.0.0", network);
            let typed = !(name.is_string() || name.is_null());
            cases.push(case.differs_if(typed, "code 7", NAME));
        }
        cases.push(case("no \"name\"", verb, "1.0.0", without("1.0.0", "name")));
    }
    let network = changed("1.0.0", |network| network["name"] = json!(long));
    cases.push(case("\"name\" has 300 letters", "DEL", "1.0.0", network));
    cases
}

fn versions() -> Vec<Case> {
    let mut cases = Vec::new();
    for verb in VERBS {
        for version in [
            json!("9.9.9"),
            json!("1.2.0"),
            json!("0.5.0"),
            json!("1.0"),
            json!("1"),
            json!("latest"),
            json!("v1.0.0"),
            json!("1.0.0-rc1"),
            json!(" 1.0.0"),
            json!(1),
            json!(["1.0.0"]),
            json!({}),
        ] {
            let network = changed("1.0.0", |network| network["cniVersion"] = version.clone());
            let odd = ["latest", "v1.0.0", "1.0.0-rc1", " 1.0.0"];
            let odd = verb == "CHECK" && version.as_str().is_some_and(|text| odd.contains(&text));
            let case = case(format!("\"cniVersion\" is {version}"), verb, "–", network);
            cases.push(case.differs_if(odd, "code 1", SAME_FOR_ALL));
        }
        // To the peers all these are 0.1.0.
        for version in [json!(""), json!(null)] {
            let network = changed("0.1.0", |network| network["cniVersion"] = version.clone());
            let case = case(format!("\"cniVersion\" is {version}"), verb, "–", network);
            cases.push(case.differs_if(version.is_null(), "code 6", NULL_VERSION));
        }
        cases.push(case("no \"cniVersion\"", verb, "–", without("0.1.0", "cniVersion")));
    }
    cases
}

/// Two faults at once: which of them the answer names.
fn order() -> Vec<Case> {
    let faulty = |keys: &[&(&str, Value)]| {
        changed("1.0.0", |network| {
            for (key, value) in keys.iter().copied() {
                network[*key] = value.clone();
            }
        })
    };
    let (bad_name, bad_version) = (("name", json!("-")), ("cniVersion", json!("9.9.9")));
    let no_version = ("cniVersion", json!(5));
    vec![
        case("no CNI_IFNAME, empty stdin", "ADD", "–", String::new()).with("CNI_IFNAME", ""),
        case("no CNI_IFNAME, unknown version", "DEL", "–", faulty(&[&bad_version]))
            .with("CNI_IFNAME", ""),
        case("no variable, empty stdin", "GET", "–", String::new())
            .with("CNI_PATH", "")
            .with("CNI_IFNAME", "")
            .with("CNI_CONTAINERID", ""),
        case("empty stdin", "GET", "–", String::new()),
        case("bad name", "GET", "–", faulty(&[&bad_name])),
        case("unknown version", "GET", "–", faulty(&[&bad_version])),
        case("bad CNI_CONTAINERID", "GET", "1.0.0", network("1.0.0")).with("CNI_CONTAINERID", "-"),
        case("bad name, unknown version", "ADD", "–", faulty(&[&bad_name, &bad_version])),
        case("bad name, \"cniVersion\" is 5", "ADD", "–", faulty(&[&bad_name, &no_version])),
        case("bad CNI_IFNAME, empty stdin", "ADD", "–", String::new()).with("CNI_IFNAME", "a/b"),
        case("bad CNI_CONTAINERID, empty stdin", "DEL", "–", String::new())
            .with("CNI_CONTAINERID", "-"),
        case("bad CNI_CONTAINERID, bad name", "ADD", "1.0.0", faulty(&[&bad_name]))
            .with("CNI_CONTAINERID", "-"),
        case("bad CNI_CONTAINERID, unknown version", "ADD", "–", faulty(&[&bad_version]))
            .with("CNI_CONTAINERID", "-"),
        case("unknown version, no prevResult", "ADD", "–", {
            faulty(&[&bad_version, &("prevResult", json!(null))])
        }),
        case("unknown version, own namespace", "ADD", "–", faulty(&[&bad_version]))
            .with("CNI_NETNS", "NODE"),
        case("\"cniVersion\" is 5, own namespace", "ADD", "–", faulty(&[&no_version]))
            .with("CNI_NETNS", "NODE"),
        case("no prevResult, own namespace", "ADD", "1.0.0", without("1.0.0", "prevResult"))
            .with("CNI_NETNS", "NODE")
            .differs("code 8", OWN_NAMESPACE),
        case("own namespace", "CHECK", "0.3.1", network("0.3.1")).with("CNI_NETNS", "NODE"),
    ]
}

/// A change of prevResult.
fn with_result(version: &str, change: impl Fn(&mut Value)) -> String {
    changed(version, |network| change(&mut network["prevResult"]))
}

fn results() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut faulty = |what: String, network: String| {
        cases.push(case(what.clone(), "ADD", "1.0.0", network.clone()).differs("code 7", KIND));
        cases.push(
            case(what.clone(), "CHECK", "1.0.0", network.clone())
                .after_add()
                .differs("code 7", KIND),
        );
        let absent = what == "no prevResult" || what == "prevResult is null";
        cases.push(case(what, "DEL", "1.0.0", network).differs_if(!absent, "ok", NO_FAILING_DEL));
    };
    faulty("no prevResult".into(), without("1.0.0", "prevResult"));
    for (what, value) in [("null", json!(null)), ("[]", json!([])), ("5", json!(5))] {
        let network = changed("1.0.0", |network| network["prevResult"] = value.clone());
        faulty(format!("prevResult is {what}"), network);
    }
    for address in [json!("10.20.0"), json!("10.20.0.50"), json!(5), json!(null)] {
        let network = with_result("1.0.0", |result| result["ips"][0]["address"] = address.clone());
        faulty(format!("ips[0].address is {address}"), network);
    }
    faulty("\"ips\" is {}".into(), with_result("1.0.0", |result| result["ips"] = json!({})));
    let shapes: [(&str, Change); 8] = [
        ("\"ips\" is null", |result| result["ips"] = json!(null)),
        ("\"ips\" is []", |result| result["ips"] = json!([])),
        ("\"interfaces\" is null", |result| {
            result["interfaces"] = json!(null);
            result["ips"] = json!([{"address": "IPV4/32"}]);
        }),
        ("an address twice", |result| result["ips"][1] = result["ips"][0].clone()),
        ("ips[0].interface is null", |result| result["ips"][0]["interface"] = json!(null)),
        ("a key of others", |result| result["kubernetes.io/x"] = json!({"a": [1, 2]})),
        ("a table number as MAC", |result| result["interfaces"][0]["mac"] = json!("254")),
        ("\"dns\" is missing", |result| {
            result.as_object_mut().expect("an object").shift_remove("dns");
        }),
    ];
    for (what, change) in shapes {
        let none = what.starts_with("\"ips\"");
        let add = case(what, "ADD", "1.0.0", with_result("1.0.0", change));
        cases.push(add.differs_if(none, "ok 1.0.0", NO_ADDRESS));
        cases.push(case(what, "DEL", "1.0.0", with_result("1.0.0", change)));
    }
    cases
}

type Change = fn(&mut Value);

/// The versions whose results have the same form.
fn family(version: &str) -> usize {
    match version {
        "0.1.0" | "0.2.0" => 0,
        "0.3.0" | "0.3.1" | "0.4.0" => 1,
        _ => 2,
    }
}

/// prevResult is of another version than the configuration.
fn conversions() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in ALL {
        for of_result in ["0.2.0", "0.3.1", "0.4.0", "1.0.0"] {
            if version == of_result {
                continue;
            }
            let network = changed(version, |network| network["prevResult"] = result(of_result));
            let case = case(format!("prevResult of {of_result}"), "ADD", version, network);
            let printed = format!("ok {version}");
            cases.push(if family(version) == family(of_result) {
                case.differs_if(version == "1.1.0", &printed, NEWER)
            } else {
                case.differs(&printed, CONVERTED)
            });
        }
    }
    for of_result in [json!("9.9.9"), json!(""), json!(5)] {
        let network = with_result("1.0.0", |result| result["cniVersion"] = of_result.clone());
        let case = case(format!("prevResult of {of_result}"), "ADD", "1.0.0", network);
        cases.push(case.differs("code 1", KIND));
    }
    let unversioned = with_result("1.0.0", |result| {
        result.as_object_mut().expect("an object").shift_remove("cniVersion");
    });
    let cases_of = [
        ("prevResult without a version", unversioned),
        ("prevResult is {}", changed("1.0.0", |network| network["prevResult"] = json!({}))),
    ];
    for (what, network) in cases_of {
        let case = case(what, "ADD", "1.0.0", network);
        cases.push(case.differs("ok 1.0.0", UNVERSIONED));
    }
    cases
}

/// Annotations of the pod.
fn annotations() -> Vec<Case> {
    let network = |annotations: Value| {
        changed("1.0.0", |network| {
            let key = "io.kubernetes.cri.pod-annotations";
            network["runtimeConfig"] = json!({key: annotations.clone()});
        })
    };
    let mut cases = Vec::new();
    for (key, value, allowed) in [
        ("symroute.io/enabled", "false", true),
        ("symroute.io/enabled", "true", true),
        ("symroute.io/enabled", "no", false),
        ("symroute.io/hairpin", "true", true),
        ("symroute.io/hairpin", "1", false),
        ("symroute.io/enable", "false", false),
        ("example.org/enabled", "what", true),
    ] {
        let (what, stdin) = (format!("annotation {key}: {value:?}"), network(json!({key: value})));
        let add = case(what.clone(), "ADD", "1.0.0", stdin.clone());
        cases.push(add.differs_if(!allowed, "code 7", SETTING));
        let after = allowed.then(|| stdin.clone());
        let check = case(what.clone(), "CHECK", "1.0.0", stdin.clone());
        if allowed {
            cases.push(Case { after_add_of: after, ..check });
        }
        cases.push(case(what, "DEL", "1.0.0", stdin));
    }
    cases
}
