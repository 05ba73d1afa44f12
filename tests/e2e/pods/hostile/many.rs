//! More state than a call can read or remove at once.

use super::*;

/// Thousands of rules and routes that look like symroute's.
#[test]
fn many_rules_and_routes_that_look_like_ours() {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    let rules = lines(5_000, |n| {
        format!(
            "rule add from 10.{}.{}.1 fwmark 0/0x1f00 lookup 47003 priority 405 protocol kernel",
            n >> 8,
            n & 255
        )
    });
    let routes = lines(100_000, |n| {
        format!(
            "route add 11.{}.{}.{}/32 dev net1 table 47009 proto kernel",
            n >> 16,
            n >> 8 & 255,
            n & 255
        )
    });
    pod.ns.ip(&(rules + &routes));
    for verb in ["ADD", "DEL"] {
        for leg in 0..2 {
            assert_error_is_clear(&pod.ran(&node, verb, leg));
        }
    }
    // Removing all of them may take more than one call.
    pod.ran(&node, "ADD", 0).assert_success("ADD");
    pod.ran(&node, "DEL", 0).assert_success("DEL");
    before.assert_unchanged(&pod.snapshot(&node));
}

/// A route to an address made of this number.
fn route_by(n: u32, link: &str) -> String {
    format!("route add 11.{}.{}.{}/32 dev {link}", n >> 16, n >> 8 & 255, n & 255)
}

/// Asserts that ADD fails with these words, CHECK ends cleanly, and DEL succeeds. Nothing is left.
fn assert_refused(node: &Node, pod: &Plain, words: &[&str]) {
    let before = pod.ns.exec(&["ip", "rule"], "");
    for leg in 0..2 {
        let ran = pod.ran(node, "ADD", leg);
        assert_fails(&ran, 7, words);
        assert_error_is_clear(&pod.ran(node, "CHECK", leg));
        pod.ran(node, "DEL", leg).assert_success("DEL");
    }
    assert_eq!(pod.ns.exec(&["ip", "rule"], ""), before, "rules");
    assert!(!pod.has_rules(), "nothing is left in the pod");
    assert_no_files(node, "too many");
}

/// Asserts that ADD, CHECK and DEL succeed and leave nothing.
fn assert_served(node: &Node, pod: &Plain, what: &str) {
    let before = pod.ns.exec(&["ip", "rule"], "");
    for verb in ["ADD", "CHECK", "DEL"] {
        for leg in 0..2 {
            let ran = pod.ran(node, verb, leg);
            ran.assert_success(&format!("{verb}, {what}"));
        }
    }
    assert_eq!(pod.ns.exec(&["ip", "rule"], ""), before, "rules, {what}");
    let left = "ip route show table all | grep -c 'table 470' || true";
    assert_eq!(pod.ns.exec(&["sh", "-c", left], "").trim(), "0", "routes, {what}");
    assert!(!pod.has_rules(), "the pod is as it was: {what}");
    assert_no_files(node, what);
}

#[test]
fn many_routes_and_rules_elsewhere() {
    let (node, pod) = node_and_pod();
    let route = |n| route_by(n, "far1 table 9");
    let rule = |n: u32| {
        let place = 50_000 - n;
        format!("rule add from 12.{}.{}.1 lookup 9 priority {place}", n >> 8, n & 255)
    };
    pod.ns.ip(&(lines(15_000, route) + &lines(4_000, rule)));
    assert_served(&node, &pod, "routes and rules");
    pod.ns.ip(&lines(16_000, |n| rule(4_000 + n)));
    assert_refused(&node, &pod, &["20005 rules", "4096"]);
    let (node, pod) = node_and_pod();
    pod.ns.ip(&lines(100_000, route));
    assert_refused(&node, &pod, &["routes, and no more than 16384"]);
}

/// The plugin examines each route of main. Half of them lead through one uplink, and half through
/// another one or inside.
#[test]
fn many_routes_in_main() {
    for others in ["net0", "far1"] {
        let (node, pod) = node_and_pod();
        let route = |n| route_by(n, if n & 1 == 0 { others } else { "net1" });
        pod.ns.ip(&lines(16_000, route));
        assert_served(&node, &pod, others);
        pod.ns.ip(&lines(84_000, |n| route(16_000 + n)));
        assert_refused(&node, &pod, &["routes, and no more than 16384"]);
    }
}

/// For each of these networks, each of these rules sends answers of the pod's own address
/// elsewhere.
#[test]
fn many_rules_by_an_own_address() {
    let (node, pod) = node_and_pod();
    let bridges = lines(32, |n| {
        format!(
            "link add inner{n} type bridge
             link set inner{n} addrgenmode none
             link set inner{n} up
             addr add 10.8.{n}.1/24 dev inner{n}"
        )
    });
    let rules =
        lines(4_000, |n| format!("rule add from 10.7.0.10 lookup 9 priority {}", 10_000 - n));
    pod.ns.ip(&(bridges + &rules + "route add default via 10.7.0.1 dev net0 table 9\n"));
    assert_served(&node, &pod, "rules by an address");
}

#[test]
fn many_addresses() {
    let (node, pod) = node_and_pod();
    let address = |n: u32| format!("addr add 10.9.{}.{}/32 dev net1", n >> 8, n & 255);
    pod.ns.ip(&lines(2_000, address));
    assert_served(&node, &pod, "addresses");
    pod.both(&node, "ADD");
    pod.ns.ip(&lines(8_000, |n| address(2_000 + n)));
    let ran = pod.ran(&node, "ADD", 0);
    assert_fails(&ran, 7, &["addresses, and no more than 4096"]);
    pod.both(&node, "DEL");
    assert_refused(&node, &pod, &["addresses, and no more than 4096"]);
}

#[test]
fn too_many_interfaces() {
    let (node, pod) = node_and_pod();
    let links: String = lines(520, |n| format!("link add a{n} type veth peer name b{n}"));
    pod.both(&node, "ADD");
    pod.ns.ip(&links);
    let ran = pod.ran(&node, "ADD", 0);
    assert_fails(&ran, 7, &["1045 interfaces", "1024"]);
    pod.ran(&node, "CHECK", 0).assert_success("CHECK");
    // A DEL never fails.
    pod.both(&node, "DEL");
    assert!(!pod.has_rules(), "nothing is left in the pod");
    assert_no_files(&node, "many interfaces");
    let ran = pod.ran(&node, "ADD", 0);
    assert_fails(&ran, 7, &["1024"]);
    assert!(!pod.has_rules(), "nothing is left in the pod");
    assert_no_files(&node, "many interfaces");
}
