//! Sends all cases to a plugin, and puts each answer into a few words.

use serde_json::{Value, json};

use super::cases::Case;
use crate::lab::backend::Backend;
use crate::lab::node::{Node, Pod};
use crate::lab::plugin::{Call, Ran};
use crate::lab::two_nics::two_nics;

/// What a plugin did.
pub(super) struct Answer {
    /// "ok", "ok 1.0.0" with the version of the result, or "code 7"; anything else in full.
    pub(super) outcome: String,
    /// The document on stdout with the pod's own path and addresses taken out; null without one.
    pub(super) document: Value,
    pub(super) stdout: String,
}

impl Answer {
    fn of(ran: Ran, pod: &Pod, number: u32) -> Self {
        let text = ran.stdout.replace(&pod.ns.path(), "NETNS");
        let [v4, v6] = addresses(number);
        let text = text.replace(&v4, "IPV4").replace(&v6, "IPV6");
        let document: Value = serde_json::from_str(&text).unwrap_or_default();
        let outcome = match (ran.code, &document) {
            (Some(0), Value::Null) if ran.stdout.is_empty() => "ok".to_owned(),
            (Some(0), Value::Object(object)) => match object.get("cniVersion") {
                Some(Value::String(version)) => format!("ok {version}"),
                _ => format!("ok {}", object.get("code").map_or("", |_| "with an error document")),
            },
            (Some(1), Value::Object(object)) if object.contains_key("code") => {
                format!("code {}", object["code"])
            }
            (code, _) => format!("exit code {code:?}, stdout {text:?}"),
        };
        Self { outcome, document, stdout: ran.stdout }
    }
}

/// The addresses of the pod with this number.
fn addresses(number: u32) -> [String; 2] {
    [format!("10.20.1.{number}"), format!("2001:db8:20::1:{number}")]
}

fn pod(node: &Node, number: u32) -> Pod {
    let addresses = addresses(number);
    let pod = node.pod(&format!("p{number}"), &addresses.each_ref().map(String::as_str));
    // sbr adds routes via the gateway that the result names.
    pod.ns.ip("route add 169.254.1.1 dev eth0");
    pod
}

/// The plugin's answers to all the cases, on a node of its own.
pub(super) fn answers(plugin: &str, cases: &[Case]) -> Vec<Answer> {
    let layout = two_nics();
    let node = &layout.node;
    let program = match plugin {
        "symroute" => env!("CARGO_BIN_EXE_symroute").to_owned(),
        peer => format!("/usr/lib/cni/{peer}"),
    };
    let mut kind = json!({"type": plugin});
    if plugin == "symroute" {
        Backend::of_run().into_settings(&mut kind);
    }
    let kind = kind.to_string().trim_matches(['{', '}']).to_owned();
    let mut number = 1;
    let mut of_now = pod(node, number);
    let mut answers = Vec::new();
    for case in cases {
        let filled = |text: &str| {
            let [v4, v6] = addresses(number);
            text.replace("\"type\":\"PLUGIN\"", &kind)
                .replace("NETNS", &of_now.ns.path())
                .replace("NODE", &node.ns.path())
                .replace("IPV4", &v4)
                .replace("IPV6", &v6)
                .replace("PLUGIN", plugin)
                .replace("CONTAINER", &of_now.id)
                .replace("LOG", node.log().to_str().expect("UTF-8"))
        };
        let call = |verb: &str, stdin: &str| {
            Call::cni(verb, &filled(stdin), &of_now.id, &of_now.ns.path(), "eth0")
        };
        if let Some(network) = &case.after_add_of {
            let ran = node.call_program(&[&program], &call("ADD", network));
            ran.assert_success(&format!("{plugin}: ADD before {}", case.name()));
        }
        let mut asked = call(case.verb, &case.stdin);
        for (name, value) in &case.variables {
            asked = asked.with(name, &filled(value));
        }
        let ran = node.call_program(&[&program], &asked);
        let used = case.after_add_of.is_some() || (case.verb == "ADD" && ran.success);
        answers.push(Answer::of(ran, &of_now, number));
        if used {
            // The next case must not see what this one left in the pod.
            let network = super::cases::network("1.0.0");
            node.call_program(&[&program], &call("DEL", &network)).assert_success("DEL");
            number += 1;
            of_now = pod(node, number);
        }
    }
    answers
}
