//! Interrupted `up`, `down`, CHECK and GC. A step that fails is reported or harmless, an attached pod
//! is served all the time, and the next call completes the work.

use serde_json::json;

use super::refusals::{cni_error_fault, error_of};
use super::{Findings, Scene, up_call};
use crate::lab::backend::Backend;
use crate::lab::load::Load;
use crate::lab::plugin::{Call, Ran};
use crate::lab::snapshot::Snapshot;
use crate::lab::strace::{Blow, Syscall};
use crate::lab::two_nics::POD;

/// A change, a request, and an answer that says whether a change was made. Requests are the same with
/// each backend.
fn is_of_interest(step: &Syscall) -> bool {
    let acknowledges = || step.is_answer() && step.line.contains("NLMSG_ERROR");
    let is_asked = || step.is_request() || acknowledges();
    step.is_change() || (!Backend::of_run().is_iptables() && is_asked())
}

/// Checks the output of a command of the tool. Returns what is wrong.
fn message_fault(ran: &Ran) -> String {
    let says = ran.stderr.lines().any(|line| line.starts_with("symroutectl: "));
    if ran.success || (ran.code == Some(1) && says) {
        return String::new();
    }
    format!("exit code {:?}, stderr {:?}", ran.code, ran.stderr)
}

#[test]
fn a_step_in_up() {
    let scene = Scene::new();
    let steps = scene.steps(&up_call(&scene), is_of_interest);
    scene.node().down();
    let mut findings = Findings::default();
    for step in &steps {
        let ran = scene.strike(&up_call(&scene), step, error_of(step));
        findings.note(step, &message_fault(&ran));
        scene.up();
        scene.assert_host_is_served();
        scene.node().down();
        findings.note(step, &scene.leftovers());
    }
    findings.assert_none(steps.len());
}

#[test]
fn a_step_in_down() {
    let scene = Scene::new();
    let down = Call::tool(&["down"]);
    scene.up();
    let steps = scene.steps(&down, is_of_interest);
    let mut findings = Findings::default();
    for step in &steps {
        scene.up();
        let ran = scene.strike(&down, step, error_of(step));
        findings.note(step, &message_fault(&ran));
        scene.node().down();
        findings.note(step, &scene.leftovers());
    }
    findings.assert_none(steps.len());
}

/// A CHECK changes nothing, whatever fails.
#[test]
fn a_step_in_check() {
    let scene = Scene::new();
    scene.add();
    let check = scene.call("CHECK");
    let before = Snapshot::take(scene.node());
    let steps = scene.steps(&check, |step| step.is_change() || step.is_request());
    let mut findings = Findings::default();
    for step in &steps {
        let ran = scene.strike(&check, step, error_of(step));
        if !ran.success {
            findings.note(step, &cni_error_fault(&ran));
        }
        findings.note(step, &before.difference(&Snapshot::take(scene.node())));
    }
    scene.assert_served();
    scene.node().del(&scene.settings(), &scene.pod);
    findings.assert_none(steps.len());
}

/// A GC whose list holds the scene's pod alone.
fn gc(scene: &Scene) -> Call {
    scene.node().gc_call(&scene.settings(), &[(&scene.pod.id, "eth0")])
}

/// Interrupts a GC at each step, while it has one attachment to remove.
fn strike_gc(blow: impl Fn(&Syscall) -> Blow, of_interest: impl Fn(&Syscall) -> bool) {
    let scene = Scene::new();
    let stale = &scene.layout.pods[0];
    scene.add();
    let served = Snapshot::take(scene.node());
    let load = Load::kept(&scene.layout.client, POD[1], 8080);
    // Settings of its own: they are in the kernel.
    let mut hairpin = scene.settings();
    hairpin["runtimeConfig"] =
        json!({"io.kubernetes.cri.pod-annotations": {"symroute.io/hairpin": "true"}});
    scene.node().add(&hairpin, stale);
    let steps = scene.steps(&gc(&scene), of_interest);
    let mut findings = Findings::default();
    for step in &steps {
        scene.node().add(&hairpin, stale);
        let ran = scene.strike(&gc(&scene), step, blow(step));
        if !ran.success && matches!(blow(step), Blow::Error(_)) {
            findings.note(step, &cni_error_fault(&ran));
        }
        scene.node().call(&gc(&scene)).assert_success("another GC");
        findings.note(step, &served.difference(&Snapshot::take(scene.node())));
    }
    load.assert_goes_on("all of them");
    scene.assert_served();
    scene.node().del(&scene.settings(), &scene.pod);
    findings.assert_none(steps.len());
}

#[test]
fn a_step_in_gc() {
    strike_gc(error_of, is_of_interest);
}

#[test]
fn gc_killed_then_gc() {
    strike_gc(|_| Blow::Kill, Syscall::is_change);
}
