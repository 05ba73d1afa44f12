//! prevResult: the plugin refuses what is not a valid result. It accepts every shape that another
//! plugin may print, and prints it byte for byte.

use serde_json::json;

use super::{Start, assert_refused, on_a_node, valid_settings};
use crate::lab::flows::assert_all_work;
use crate::lab::plugin::Call;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{TwoNics, two_nics};

/// An ADD with this text as prevResult.
fn add(layout: &TwoNics, prev_result: &str) -> Call {
    let network = layout.node.network(&valid_settings(), None);
    let network = network.strip_suffix('}').expect("an object");
    let stdin = format!("{network},\"prevResult\":{prev_result}}}");
    let pod = &layout.pods[0];
    Call::cni("ADD", &stdin, &pod.id, &pod.ns.path(), "eth0")
}

#[test]
fn results_that_are_none() {
    let table: &[(&str, &[&str])] = &[
        ("null", &["missing \"prevResult\"", "chained", "primary plugin"]),
        ("[]", &["\"prevResult\"", "not an object", "valid result"]),
        ("5", &["\"prevResult\"", "not an object"]),
        ("\"10.20.0.50\"", &["\"prevResult\"", "not an object"]),
        ("true", &["\"prevResult\"", "not an object"]),
        ("{\"ips\":{}}", &["\"prevResult\"", "\"ips\" is no list: {}"]),
        ("{\"ips\":\"10.20.0.50\"}", &["\"prevResult\"", "\"ips\" is no list"]),
        ("{\"ips\":[null]}", &["\"prevResult\"", "ips[0].address", "null"]),
        ("{\"ips\":[{}]}", &["\"prevResult\"", "ips[0].address", "{}"]),
        ("{\"ips\":[\"10.20.0.50/32\"]}", &["\"prevResult\"", "ips[0].address"]),
        ("{\"ips\":[{\"address\":5}]}", &["\"prevResult\"", "ips[0].address", "5"]),
        ("{\"ips\":[{\"address\":\"\"}]}", &["\"prevResult\"", "ips[0].address", "\"\""]),
        ("{\"ips\":[{\"address\":\"pod\"}]}", &["\"prevResult\"", "ips[0].address", "pod"]),
        ("{\"ips\":[{\"address\":\"10.20.0.50/33\"}]}", &["ips[0].address", "10.20.0.50/33"]),
        (
            "{\"ips\":[{\"address\":\"10.20.0.50/32\"},{\"address\":\"10.20.0.300/32\"}]}",
            &["ips[1].address", "10.20.0.300/32"],
        ),
    ];
    for start in [Start::Empty, Start::InUse] {
        on_a_node(start, |layout| {
            let no_key = layout.node.network(&valid_settings(), None);
            let pod = &layout.pods[0];
            let no_key = Call::cni("ADD", &no_key, &pod.id, &pod.ns.path(), "eth0");
            assert_refused(layout, &[(no_key, 7, &["missing \"prevResult\"", "chained"])]);
            for (prev_result, words) in table {
                assert_refused(layout, &[(add(layout, prev_result), 7, words)]);
            }
        });
    }
}

/// Results, each with the addresses that an ADD attaches.
const SHAPES: &[(&str, &[&str])] = &[
    ("{\"cniVersion\":\"1.0.0\"}", &[]),
    ("{\"cniVersion\":\"1.0.0\",\"interfaces\":null,\"ips\":null,\"dns\":{}}", &[]),
    ("{\"cniVersion\":\"1.0.0\",\"interfaces\":null,\"ips\":[],\"routes\":null}", &[]),
    ("{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.20.0.50/32\"}]}", &["10.20.0.50"]),
    (
        "{\"cniVersion\":\"1.0.0\",\"ips\":[{\"interface\":99,\"address\":\"10.20.0.50/32\"}],\
         \"interfaces\":[]}",
        &["10.20.0.50"],
    ),
    (
        "{\"cniVersion\":\"1.0.0\",\"ips\":[{\"interface\":-1,\"address\":\"10.20.0.50/24\"}],\
         \"dns\":{}}",
        &["10.20.0.50"],
    ),
    (
        "{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.20.0.50/32\"},\
         {\"address\":\"10.20.0.50/24\"},{\"address\":\"10.20.0.50/32\"}]}",
        &["10.20.0.50"],
    ),
    (
        "{\"cniVersion\":\"1.0.0\",\"ips\":[{\"version\":\"4\",\"address\":\"10.20.0.50/32\"},\
         {\"version\":\"6\",\"address\":\"2001:db8:20::50/128\"},\
         {\"version\":\"4\",\"address\":\"10.20.0.51/32\"},\
         {\"version\":\"6\",\"address\":\"2001:DB8:20:0::51/128\"}]}",
        &["10.20.0.50", "10.20.0.51", "2001:db8:20::50", "2001:db8:20::51"],
    ),
    // Addresses that no host outside can reach.
    (
        "{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"169.254.7.7/32\"},\
         {\"address\":\"fe80::7/64\"},{\"address\":\"127.0.0.1/8\"}]}",
        &[],
    ),
    // White space, order of keys, escapes, numbers and duplicates of unknown keys.
    (
        " {\t\"ips\" :\r\n [ {\"address\"\n:\"\\u0031\\u0030.20.0.50\\/32\" } ]  ,\
         \"zeta\":1.50e+2,\"alpha\":123456789012345678901234567890,\"alpha\":-0.0,\
         \"\\u00e4\\ud83d\\ude00\":\"\u{e4}\u{1f600}\\u0000</script>\",\
         \"cniVersion\":\"1.0.0\",\"cniVersion\":\"1.0.0\" , \"dns\":{ }}",
        &["10.20.0.50"],
    ),
    (
        "{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"eni\",\"mac\":\"254\",\
         \"sandbox\":\"1\"},null,5],\"ips\":[{\"address\":\"10.20.0.50/32\",\"gateway\":7}]}",
        &["10.20.0.50"],
    ),
];

/// On a node where each ADD is the first, and on one where another pod is attached.
#[test]
fn results_of_every_shape() {
    for start in [Start::Empty, Start::InUse] {
        on_a_node(start, |layout| {
            for (prev_result, addresses) in SHAPES {
                assert_survived(layout, prev_result, addresses);
            }
        });
    }
}

fn assert_survived(layout: &TwoNics, prev_result: &str, addresses: &[&str]) {
    let node = &layout.node;
    let before = Snapshot::take(node);
    let call = add(layout, prev_result);
    let ran = node.call(&call);
    ran.assert_success(prev_result);
    assert_eq!(ran.stdout, prev_result.trim(), "prevResult is printed as it came");
    let pods = node.attachments();
    let pod = pods.iter().find(|pod| pod["container"] == json!(layout.pods[0].id));
    let mut attached: Vec<_> = pod.expect("the pod is attached")["addresses"]
        .as_array()
        .expect("a list of addresses")
        .iter()
        .map(|address| address.as_str().expect("an address"))
        .collect();
    attached.sort_unstable();
    assert_eq!(attached, addresses, "attached of {prev_result}");
    assert_all_work(&[layout.flow_to_host()]);
    node.call(&call.with("CNI_COMMAND", "DEL")).assert_success("DEL");
    before.assert_unchanged(&Snapshot::take(node));
}

/// The plugin also passes on a result that is much larger than a pipe's buffer.
#[test]
fn a_result_of_a_megabyte() {
    let layout = two_nics();
    let before = Snapshot::take(&layout.node);
    let text = format!("{{\"cniVersion\":\"1.0.0\",\"padding\":\"{}\"}}", "x".repeat(1 << 20));
    let call = add(&layout, &text);
    let ran = layout.node.call(&call);
    ran.assert_success("ADD");
    assert!(ran.stdout == text, "printed {} bytes of {}", ran.stdout.len(), text.len());
    layout.node.call(&call.with("CNI_COMMAND", "DEL")).assert_success("DEL");
    before.assert_unchanged(&Snapshot::take(&layout.node));
}
