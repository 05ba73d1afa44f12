//! The program is killed between two steps: the next call heals the node.

use super::{Findings, Scene, up_call};
use crate::lab::flows::assert_all_work;
use crate::lab::netns::Netns;
use crate::lab::plugin::Call;
use crate::lab::strace::{Blow, Syscall};

/// Kills `call` at each of its changes, on a node that `prepare` made ready. `heal` follows; then the
/// node has to be as before.
fn kill_at_each_change(
    prepare: impl Fn(&Scene),
    call: impl Fn(&Scene) -> Call,
    heal: impl Fn(&Scene),
) {
    let mut scene = Scene::new();
    prepare(&scene);
    let steps = scene.steps(&call(&scene), Syscall::is_change);
    scene = Scene::new();
    let mut findings = Findings::default();
    for step in &steps {
        prepare(&scene);
        let ran = scene.strike(&call(&scene), step, Blow::Kill);
        assert!(!ran.success, "a killed program does not succeed");
        heal(&scene);
        let left = scene.leftovers();
        if !left.is_empty() {
            findings.note(step, &format!("left:\n{left}"));
            scene = Scene::new();
        }
    }
    findings.assert_none(steps.len());
}

fn del(scene: &Scene) {
    scene.node().del(&scene.settings(), &scene.pod);
}

fn bare_del(scene: &Scene) {
    let ran = scene.node().call(&scene.bare_del());
    ran.assert_success("DEL without prevResult and namespace");
    assert_eq!(ran.stdout, "", "DEL prints nothing");
}

fn nothing(_: &Scene) {}

#[test]
fn the_first_add_then_add() {
    kill_at_each_change(
        nothing,
        |scene| scene.call("ADD"),
        |scene| {
            scene.add();
            scene.assert_served();
            del(scene);
        },
    );
}

#[test]
fn the_first_add_then_del() {
    kill_at_each_change(nothing, |scene| scene.call("ADD"), bare_del);
}

/// The runtime sends no DEL for the pod. Another pod starts and ends.
#[test]
fn the_first_add_then_up_and_down() {
    kill_at_each_change(
        nothing,
        |scene| scene.call("ADD"),
        |scene| {
            scene.up();
            let flow = scene.layout.flow_to_host();
            assert_all_work(&[flow]);
            let status = scene.node().symroute(&["status"]);
            assert_eq!(status.code, Some(0), "status:\n{}{}", status.stdout, status.stderr);
            scene.node().down();
            bare_del(scene);
        },
    );
}

#[test]
fn the_last_del_then_del() {
    kill_at_each_change(Scene::add, |scene| scene.call("DEL"), bare_del);
}

#[test]
fn the_last_del_then_add() {
    kill_at_each_change(
        Scene::add,
        |scene| scene.call("DEL"),
        |scene| {
            scene.add();
            scene.assert_served();
            del(scene);
        },
    );
}

/// A DEL of another pod completes the DEL that was killed.
#[test]
fn the_last_del_then_another_pods_del() {
    kill_at_each_change(
        Scene::add,
        |scene| scene.call("DEL"),
        |scene| {
            scene.node().del(&scene.settings(), &scene.layout.pods[0]);
            bare_del(scene);
        },
    );
}

#[test]
fn up_then_down() {
    kill_at_each_change(nothing, up_call, |scene| scene.node().down());
}

#[test]
fn up_then_up() {
    kill_at_each_change(nothing, up_call, |scene| {
        scene.up();
        assert_all_work(&[scene.layout.flow_to_host()]);
        scene.node().down();
    });
}

#[test]
fn up_then_a_pod() {
    kill_at_each_change(nothing, up_call, |scene| {
        scene.add();
        scene.assert_served();
        del(scene);
        scene.node().down();
    });
}

#[test]
fn down_then_down() {
    kill_at_each_change(Scene::up, |_| Call::tool(&["down"]), |scene| scene.node().down());
}

#[test]
fn down_then_a_pod() {
    kill_at_each_change(
        Scene::up,
        |_| Call::tool(&["down"]),
        |scene| {
            scene.add();
            scene.assert_served();
            del(scene);
            scene.node().down();
        },
    );
}

/// A late DEL of a pod whose address another pod has by now. Killed and sent again, it leaves that
/// other pod alone.
#[test]
fn a_late_del_then_another() {
    let scene = Scene::new();
    let dead = Netns::new("dead");
    let old = |verb| {
        let network = scene.node().network(&scene.settings(), Some(&scene.pod.prev_result));
        Call::cni(verb, &network, "the-old-one", &dead.path(), "eth0")
    };
    let prepare = || {
        scene.node().call(&old("ADD")).assert_success("ADD of the old pod");
        scene.add();
    };
    prepare();
    let steps = scene.steps(&old("DEL"), Syscall::is_change);
    del(&scene);
    let mut findings = Findings::default();
    for step in &steps {
        prepare();
        scene.strike(&old("DEL"), step, Blow::Kill);
        scene.node().call(&old("DEL")).assert_success("the second DEL");
        let status = scene.node().symroute(&["status"]);
        if status.code == Some(0) {
            scene.assert_served();
        } else {
            let what = format!("the node is not as it was for the pod of now:\n{}", status.stdout);
            findings.note(step, &what);
        }
        del(&scene);
        findings.note(step, &scene.leftovers());
    }
    findings.assert_none(steps.len());
}
