//! Pods with more addresses than a message or a socket's buffer holds.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::settings;
use crate::lab::flows::{Flow, assert_all_work};
use crate::lab::plugin::Call;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::two_nics;

fn addresses(count: usize) -> Vec<String> {
    let address = |at: usize| match at % 3 {
        0 => format!("2001:db8:30::{at:x}"),
        _ => format!("10.30.{}.{}", at / 250, at % 250 + 1),
    };
    (0..count).map(address).collect()
}

/// Calls ADD, CHECK and DEL twice each for a pod with this number of addresses.
fn works_with(count: usize) {
    let mut layout = two_nics();
    let addresses = addresses(count);
    let (last, last6) = (&addresses[count - 1], &addresses[count - 2]);
    assert!(last6.contains(':') != last.contains(':'), "one of each family");
    for address in [last, last6] {
        layout.router.assign("eth1", address);
    }
    layout.router.check_sources(&crate::lab::two_nics::NICS);
    let node = &layout.node;
    let mut routes = String::new();
    for address in &addresses {
        let _ = writeln!(routes, "route add {address} dev enipod1");
    }
    node.ns.ip(&routes);
    for address in [last, last6] {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        layout.pods[1].ns.ip(&format!("addr add {address} dev eth0 {nodad}"));
    }
    let before = Snapshot::take(node);
    let ips: Vec<Value> = addresses
        .iter()
        .map(|a| json!({"address": format!("{a}/{}", if a.contains(':') { 128 } else { 32 })}))
        .collect();
    let result = json!({"cniVersion": "1.0.0", "ips": ips}).to_string();
    let network = node.network(&settings(), Some(&result));
    // The test ends a call that hangs for a minute, and counts it as failed.
    let call = |verb: &str| {
        let call = Call::cni(verb, &network, "many", &layout.pods[1].ns.path(), "eth0");
        node.call(&call).assert_success(&format!("{verb} with {count} addresses"));
    };
    for _ in 0..2 {
        call("ADD");
        call("CHECK");
        let status = node.symroute(&["status"]);
        assert_eq!(status.code, Some(0), "{}", status.stdout);
    }
    let to = |address: &str| {
        let is_v6 = address.contains(':');
        if is_v6 { format!("[{address}]:8080") } else { format!("{address}:8080") }
    };
    let flow = |address: &str| {
        let answer = if address.contains(':') { "pod1 2001:db8:9::9" } else { "pod1 203.0.113.9" };
        Flow::new(address, &layout.client, Proto::Tcp, &to(address), answer)
    };
    assert_all_work(&[flow(last), flow(last6)]);
    call("DEL");
    call("DEL");
    before.assert_unchanged(&Snapshot::take(node));
}

#[test]
fn a_pod_with_200_addresses() {
    works_with(200);
}

#[test]
fn a_pod_with_500_addresses() {
    works_with(500);
}
