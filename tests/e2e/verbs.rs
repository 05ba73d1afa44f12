//! CHECK, GC, STATUS, and what all verbs have in common.

use serde_json::{Value, json};

use crate::lab::backend::Backend;
use crate::lab::flows::{assert_all_work, assert_only_these_fail};
use crate::lab::node::{Node, Pod};
use crate::lab::plugin::{Call, Ran};
use crate::lab::proof::Proof;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, two_nics};

fn settings() -> Value {
    json!({"uplinks": NICS})
}

fn check(node: &Node, settings: &Value, pod: &Pod) -> Ran {
    node.call(&node.call_of("CHECK", settings, pod))
}

#[test]
fn check_holds_after_add_and_sees_what_is_missing() {
    let layout = two_nics();
    let (node, pod) = (&layout.node, &layout.pods[1]);
    let (code, msg) = check(node, &settings(), pod).cni_error();
    assert!(code == 102 && msg.contains("not attached with 10.21.0.50"), "{code}: {msg}");
    node.add(&settings(), pod);
    let ran = check(node, &settings(), pod);
    ran.assert_success("CHECK right after ADD");
    assert_eq!(ran.stdout, "");
    // Changes of routes that later plugins and operators make.
    node.ns.ip("route add 198.51.100.0/24 via 10.20.0.1 dev eth0
         route replace default via 10.20.0.1 dev eth0 metric 50
         rule add pref 900 from 10.99.0.0/16 lookup main");
    check(node, &settings(), pod).assert_success("CHECK after others changed routes");
    let in_force = if Backend::of_run().is_iptables() { "are gone" } else { "not in force" };
    let damages: [(&str, &str, &dyn Fn()); 4] = [
        ("all rules lost", in_force, &|| node.flush_all_rules()),
        ("the table of eth1", "uplink", &|| node.ns.ip("route flush table 47002")),
        ("rule 402", "uplink", &|| node.ns.ip("rule del pref 402 fwmark 0x200/0xf00")),
        ("rule 401", "uplink", &|| node.ns.ip("rule del pref 401 iif eth1")),
    ];
    let mut wrong = Vec::new();
    for (what, word, damage) in damages {
        damage();
        let ran = check(node, &settings(), pod);
        if ran.success {
            wrong.push(format!("{what} is not seen"));
        } else {
            let (code, msg) = ran.cni_error();
            let is_for_people = !msg.contains("Some(");
            if code != 102 || !msg.contains(word) || !msg.contains(" up\\\"") || !is_for_people {
                wrong.push(format!("{what}: {msg}"));
            }
        }
        node.up(&settings());
        check(node, &settings(), pod).assert_success(what);
        node.down();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (code, _) = check(node, &json!({"uplinks": NICS, "hairpin": true}), pod).cni_error();
    assert_eq!(code, 102, "other settings are not in force");
    node.del(&settings(), pod);
    assert_eq!(check(node, &settings(), pod).cni_error().0, 102);
}

/// A tunnel that is no uplink takes the pod's route to the outside.
#[test]
fn check_holds_after_a_tunnel_took_the_default_route() {
    let layout = two_nics();
    let (node, pod) = (&layout.node, &layout.pods[0]);
    node.add(&settings(), pod);
    check(node, &settings(), pod).assert_success("CHECK right after ADD");
    node.ns.ip("tuntap add tun8 mode tun
         link set tun8 up
         addr add 10.8.1.2/24 dev tun8
         addr add 2001:db8:8::2/64 dev tun8 nodad
         route replace default dev tun8");
    node.ns.ip6("route replace default dev tun8 metric 1");
    check(node, &settings(), pod).assert_success("CHECK since the tunnel");
    // The pod starts again, and so does another one.
    for pod in &layout.pods {
        node.add(&settings(), pod);
        check(node, &settings(), pod).assert_success("CHECK after another ADD");
    }
    for pod in &layout.pods {
        node.del(&settings(), pod);
    }
}

/// Calls GC of a network with this list of valid attachments. `Null` is a list; `None` leaves the key out.
fn gc(node: &Node, network: &str, key: &str, list: Option<&Value>) -> Ran {
    let mut text = json!({"cniVersion": "1.1.0", "name": network, "type": "symroute"});
    if let Some(list) = list {
        text[key] = list.clone();
    }
    node.cni("GC", &text.to_string(), "", "", "")
}

fn attached(node: &Node) -> Vec<String> {
    let pods = node.attachments();
    let name = |p: &Value| format!("{} {}", p["network"], p["container"]).replace('"', "");
    let mut names: Vec<String> = pods.iter().map(name).collect();
    names.sort();
    names
}

#[test]
fn gc_takes_out_what_the_runtime_does_not_know() {
    let layout = two_nics();
    let node = &layout.node;
    let proof = Proof::begin(node, &layout.router);
    let add = |network: &str, id: &str, address: &str| {
        let prev = format!(r#"{{"cniVersion":"1.0.0","ips":[{{"address":"{address}/32"}}]}}"#);
        let text = node.network(&settings(), Some(&prev));
        let text = text.replace("\"lab\"", &format!("\"{network}\""));
        node.cni("ADD", &text, id, &layout.pods[0].ns.path(), "eth0").assert_success("ADD");
    };
    add("one", "a", "10.20.1.1");
    add("one", "b", "10.20.1.2");
    add("two", "a", "10.20.1.3");
    let valid = "cni.dev/valid-attachments";
    gc(node, "one", valid, None).assert_success("GC without a list");
    assert_eq!(attached(node), ["one a", "one b", "two a"]);
    let list = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "e"}]);
    gc(node, "one", valid, Some(&list)).assert_success("GC with a list");
    assert_eq!(attached(node), ["one a", "two a"], "b has another interface in the list");
    let (code, msg) = gc(node, "one", valid, Some(&json!([{"containerID": 7}]))).cni_error();
    assert!(code == 6 && msg.contains("containerID"), "{code}: {msg}");
    gc(node, "one", "cni.dev/attachments", Some(&Value::Null)).assert_success("GC with null");
    assert_eq!(attached(node), ["two a"]);
    gc(node, "two", valid, Some(&json!([]))).assert_success("GC with an empty list");
    proof.assert_as_before();
}

#[test]
fn status_says_whether_an_add_could_succeed() {
    let layout = two_nics();
    let node = &layout.node;
    let text = |settings: Value| {
        let mut text = json!({"cniVersion": "1.1.0", "name": "lab", "type": "symroute"});
        text.as_object_mut().expect("an object").extend(settings.as_object().expect("one").clone());
        text.to_string()
    };
    let status = |text: &str| node.cni("STATUS", text, "", "", "");
    let ran = status(&text(settings()));
    ran.assert_success("STATUS on an empty node");
    assert_eq!(ran.stdout, "");
    node.up(&settings());
    status(&text(settings())).assert_success("STATUS with node state");
    let (code, msg) = status(&text(json!({"markMask": "0x1"}))).cni_error();
    assert!(code == 50 && msg.contains("markMask"), "{code}: {msg}");
    let without = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    let ran = node.call_under(&without, &Call::cni("STATUS", &text(settings()), "", "", ""));
    let (code, msg) = ran.cni_error();
    assert!(code == 50 && msg.contains("CAP_NET_ADMIN"), "{code}: {msg}");
    node.down();
}

/// STATUS all the time, DEL several times a pod and also of pods that have no attachment, GC never.
#[test]
fn as_containerd_2_calls() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let (node, before_us) = (&layout.node, &layout.pods[0]);
    let proof = Proof::begin(node, &layout.router);
    let network =
        |prev: Option<&str>| node.network(&settings(), prev).replace("\"1.0.0\"", "\"1.1.0\"");
    let status = || node.cni("STATUS", &network(None), "", "", "").assert_success("STATUS");
    let last_del = |pod: &Pod| {
        node.cni("DEL", &network(None), &pod.id, "", "eth0").assert_success("DEL with neither");
    };
    let flows = || [layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")];
    status();
    assert_only_these_fail(&flows(), &["host on eth1", "pod 10.21.0.101:8080"]);
    node.cni("ADD", &network(Some(&pod.prev_result)), &pod.id, &pod.ns.path(), "eth0")
        .assert_success("ADD");
    let served = Snapshot::take(node);
    for _ in 0..20 {
        status();
    }
    // The pod ran before symroute came to the node.
    last_del(before_us);
    served.assert_unchanged(&Snapshot::take(node));
    assert_all_work(&flows());
    node.cni("DEL", &network(Some(&pod.prev_result)), &pod.id, &pod.ns.path(), "eth0")
        .assert_success("DEL with both");
    for _ in 0..2 {
        last_del(&pod);
        status();
    }
    proof.assert_as_before();
}

/// Every verb, with a result of 64 KiB, in 8 MiB of memory for data.
#[test]
fn every_verb_stays_small() {
    let layout = two_nics();
    let (node, pod) = (&layout.node, &layout.pods[1]);
    let mut result: Value = serde_json::from_str(&pod.prev_result).expect("JSON");
    result["cniVersion"] = json!("1.1.0");
    result["padding"] = json!("x".repeat(64 * 1024));
    let network = node.network(&settings(), Some(&result.to_string()));
    let small = ["sh", "-c", "ulimit -d 8192 && exec \"$@\"", "sh"];
    for verb in ["STATUS", "ADD", "CHECK", "GC", "DEL", "VERSION"] {
        let call = Call::cni(verb, &network, &pod.id, &pod.ns.path(), "eth0");
        node.call_under(&small, &call).assert_success(verb);
    }
}

/// symroute reads 16 MiB of input, and not a byte more.
#[test]
fn stdin_has_a_limit() {
    const LIMIT: usize = 16 * 1024 * 1024;
    let layout = two_nics();
    let (node, pod) = (&layout.node, &layout.pods[1]);
    let proof = Proof::begin(node, &layout.router);
    let network = node.network(&settings(), Some(&pod.prev_result));
    let padded = |length: usize| format!("{network}{}", " ".repeat(length - network.len()));
    let call = |verb, text: &str| node.cni(verb, text, &pod.id, &pod.ns.path(), "eth0");
    let (code, msg) = call("ADD", &padded(LIMIT + 1)).cni_error();
    assert!(code == 6 && msg.contains("16 MiB"), "{code}: {msg}");
    proof.assert_as_before();
    call("ADD", &padded(LIMIT)).assert_success("ADD");
    call("DEL", &padded(LIMIT)).assert_success("DEL");
    proof.assert_as_before();
}

/// A DEL must not fail because of bytes that it does not need.
#[test]
fn del_takes_what_add_refuses() {
    let layout = two_nics();
    let (node, pod) = (&layout.node, &layout.pods[1]);
    let proof = Proof::begin(node, &layout.router);
    node.add(&settings(), pod);
    let odd = format!(
        "{{\"cniVersion\":\"1.0.0\",\"name\":\"lab\",\"a\":\"\\ud800\",\"b\":{}1{},\"c\":1e999}}",
        "[".repeat(300),
        "]".repeat(300)
    );
    node.cni("DEL", &odd, &pod.id, "", "eth0").assert_success("DEL of odd JSON");
    proof.assert_as_before();
}

#[test]
fn up_takes_the_first_conflist_of_a_folder_that_names_us() {
    let layout = two_nics();
    let (node, folder) = (&layout.node, layout.node.dir.join("net.d"));
    let up = || node.symroute(&["up", "--conf-dir", folder.to_str().expect("UTF-8")]);
    let network = |name: &str, plugin: Value| {
        json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "ptp"}, plugin]})
            .to_string()
    };
    let mut ours = json!({"type": "symroute", "uplinks": NICS});
    Backend::of_run().into_settings(&mut ours);
    let write = |file: &str, text: &str| {
        std::fs::create_dir_all(&folder).expect("make the folder");
        std::fs::write(folder.join(file), text).expect("write a conflist");
    };
    write("05-half.conflist", "{\"name\": ");
    write("10-other.conflist", &network("other", json!({"type": "portmap"})));
    write("20-lab.conflist", &network("lab", ours.clone()));
    write("30-late.conflist", &network("late", ours));
    up().assert_success("up");
    let status = node.symroute(&["status", "--json"]).stdout;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!((&status["network"], &status["settings"]["uplinks"]), (&json!("lab"), &json!(NICS)));
    std::fs::remove_dir_all(&folder).expect("remove the folder");
    up().assert_success("what is in force stays");
    write("20-lab.conflist", &network("lab", json!({"type": "symroute", "uplinks": 7})));
    let ran = up();
    assert!(ran.code == Some(1) && ran.stderr.contains("\"uplinks\": 7"), "{}", ran.stderr);
    node.down();
}
