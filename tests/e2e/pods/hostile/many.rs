//! More than a call can read or remove at once.

use super::*;

/// Thousands of them.
#[test]
fn many_rules_and_routes_that_look_like_ours() {
    let (node, pod) = site("pod");
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
            is_clear(&pod.ran(&node, verb, leg));
        }
    }
    // It may take more than one call.
    pod.ran(&node, "ADD", 0).assert_success("ADD");
    pod.ran(&node, "DEL", 0).assert_success("DEL");
    before.assert_unchanged(&pod.snapshot(&node));
}

#[test]
fn many_routes_and_rules_elsewhere() {
    let (node, pod) = site("pod");
    let routes = lines(100_000, |n| {
        format!("route add 11.{}.{}.{}/32 dev far1 table 9", n >> 16, n >> 8 & 255, n & 255)
    });
    let rules = lines(20_000, |n| {
        format!("rule add from 12.{}.{}.1 lookup 9 priority {}", n >> 8, n & 255, 50_000 - n)
    });
    pod.ns.ip(&(routes + &rules));
    for verb in ["ADD", "CHECK", "DEL"] {
        for leg in 0..2 {
            let ran = pod.ran(&node, verb, leg);
            ran.assert_success(verb);
        }
    }
    assert!(!pod.has_rules(), "the pod is as it was");
    assert_no_files(&node, "many routes and rules");
}

/// Routes of main are of interest, so each is looked at. Half of them lead by one uplink.
#[test]
fn many_routes_in_main() {
    let (node, pod) = site("pod");
    let before = pod.ns.exec(&["ip", "rule"], "");
    let routes = lines(50_000, |n| {
        format!("route add 11.{}.{}.{}/32 dev net{}", n >> 16, n >> 8 & 255, n & 255, n & 1)
    });
    pod.ns.ip(&routes);
    for verb in ["ADD", "CHECK", "DEL"] {
        for leg in 0..2 {
            let ran = pod.ran(&node, verb, leg);
            is_clear(&ran);
            assert!(ran.success || verb == "CHECK", "{verb}: {} {}", ran.stdout, ran.stderr);
        }
    }
    assert_eq!(pod.ns.exec(&["ip", "rule"], ""), before, "rules");
    assert_eq!(
        pod.ns
            .exec(&["sh", "-c", "ip route show table all | grep -c 'table 470' || true"], "")
            .trim(),
        "0"
    );
    assert_no_files(&node, "many routes");
}

#[test]
fn too_many_interfaces() {
    let (node, pod) = site("pod");
    let links: String = lines(520, |n| format!("link add a{n} type veth peer name b{n}"));
    pod.both(&node, "ADD");
    pod.ns.ip(&links);
    let ran = pod.ran(&node, "ADD", 0);
    assert_fails(&ran, 7, &["1045 interfaces", "1024"]);
    pod.ran(&node, "CHECK", 0).assert_success("CHECK");
    // To go is never refused.
    for leg in 0..2 {
        pod.ran(&node, "DEL", leg).assert_success("DEL");
    }
    assert!(!pod.has_rules(), "nothing is left in the pod");
    assert_no_files(&node, "many interfaces");
    let ran = pod.ran(&node, "ADD", 0);
    assert_fails(&ran, 7, &["1024"]);
    assert!(!pod.has_rules(), "nothing is left in the pod");
    assert_no_files(&node, "many interfaces");
}
