//! Many pods at once.

use std::thread;
use std::time::{Duration, Instant};

use super::{assert_silent, call};
use crate::lab::flows::assert_all_work;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{TwoNics, two_nics};

const PODS: u8 = 8;

/// Runs `work` for each pod, by its name and address, on a thread of its own.
fn for_each_pod(work: impl Fn(&str, &str) + Sync) {
    thread::scope(|scope| {
        for number in 0..PODS {
            let (id, address) = (format!("pod{number}"), format!("10.21.0.{}", 200 + number));
            let work = &work;
            scope.spawn(move || work(&id, &address));
        }
    });
}

fn add(layout: &TwoNics, id: &str, address: &str) {
    layout.node.call(&call(layout, "ADD", id, &[address])).assert_success(id);
    // A DEL that removes everything at this moment looks again and restores it.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !layout.node.is_attached(address) {
        assert!(Instant::now() < deadline, "{id} is enrolled after its ADD has succeeded");
    }
}

fn del(layout: &TwoNics, id: &str, address: &str) {
    assert_silent(&layout.node, &call(layout, "DEL", id, &[address]), id);
}

#[test]
fn all_come_then_all_go() {
    let layout = two_nics();
    let before = Snapshot::take(&layout.node);
    for_each_pod(|id, address| add(&layout, id, address));
    assert_all_work(&[layout.flow_to_host()]);
    let status = layout.node.symroute(&["status"]);
    assert_eq!(status.code, Some(0), "{}", status.stdout);
    assert_eq!(layout.node.attachments().len(), usize::from(PODS));
    for_each_pod(|id, address| del(&layout, id, address));
    before.assert_unchanged(&Snapshot::take(&layout.node));
}

/// The last pod ends while the first one starts, again and again.
#[test]
fn all_come_and_go() {
    let layout = two_nics();
    let before = Snapshot::take(&layout.node);
    for_each_pod(|id, address| {
        for _ in 0..10 {
            add(&layout, id, address);
            del(&layout, id, address);
        }
    });
    before.assert_unchanged(&Snapshot::take(&layout.node));
}

/// A lasting pod is served all the time, while other pods reuse each other's addresses.
#[test]
fn others_come_and_go() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let settings = super::settings();
    let before = Snapshot::take(&layout.node);
    layout.node.add(&settings, &pod);
    let alone = Snapshot::take(&layout.node);
    thread::scope(|scope| {
        let racing = scope.spawn(|| {
            for_each_pod(|id, _| {
                for _ in 0..10 {
                    let add = call(&layout, "ADD", id, &["10.21.0.200"]);
                    layout.node.call(&add).assert_success("ADD");
                    del(&layout, id, "10.21.0.200");
                }
            });
        });
        while !racing.is_finished() {
            assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
        }
    });
    alone.assert_unchanged(&Snapshot::take(&layout.node));
    layout.node.del(&settings, &pod);
    before.assert_unchanged(&Snapshot::take(&layout.node));
}

/// Runtimes send a DEL twice, here at once, for an address that another pod has by now.
#[test]
fn two_late_dels_at_once() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let settings = super::settings();
    let before = Snapshot::take(&layout.node);
    for _ in 0..20 {
        let old = |verb| call(&layout, verb, "old", &["10.21.0.101"]);
        layout.node.call(&old("ADD")).assert_success("ADD of the old pod");
        layout.node.add(&settings, &pod);
        for_each_pod(|_, _| assert_silent(&layout.node, &old("DEL"), "a late DEL"));
        assert!(layout.node.is_attached("10.21.0.101"), "the pod of now stays enrolled");
        assert_all_work(&[layout.flow_to_pod(1, "pod101 203.0.113.9")]);
        layout.node.del(&settings, &pod);
    }
    before.assert_unchanged(&Snapshot::take(&layout.node));
}
