//! The kernel refuses one step: the call fails and leaves nothing, or succeeds without that step.

use serde_json::Value;

use super::{Findings, Scene};
use crate::lab::plugin::Ran;
use crate::lab::snapshot::Snapshot;
use crate::lab::strace::{Blow, Syscall};

/// The error numbers that each kind of call fails with.
pub(super) fn error_of(step: &Syscall) -> Blow {
    Blow::Error(match step.name.as_str() {
        "sendto" | "sendmsg" | "recvfrom" | "recvmsg" => "ENOBUFS",
        "flock" => "ENOLCK",
        "clone" | "clone3" | "fork" | "vfork" => "EAGAIN",
        "wait4" | "waitid" => "ECHILD",
        "openat" if step.line.contains("/proc/sys") => "EROFS",
        "write" if step.line.contains("/proc/sys") => "EACCES",
        "write" => "ENOSPC",
        _ => "EIO",
    })
}

/// Checks the stdout of an ADD that failed. Returns what is wrong.
pub(super) fn cni_error_fault(ran: &Ran) -> String {
    let error: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
    let told = error["msg"].as_str().is_some_and(|msg| !msg.is_empty()) && error["code"].is_u64();
    if told && ran.code == Some(1) {
        return String::new();
    }
    format!("exit code {:?}, stdout {:?}, stderr {:?}", ran.code, ran.stdout, ran.stderr)
}

/// Every step of an ADD on an empty node.
fn refuse_in_first_add(of_interest: impl Fn(&Syscall) -> bool) {
    let mut scene = Scene::new();
    let steps = scene.steps(&scene.call("ADD"), of_interest);
    scene.node().call(&scene.call("DEL")).assert_success("DEL");
    let mut findings = Findings::default();
    for step in &steps {
        let ran = scene.strike(&scene.call("ADD"), step, error_of(step));
        let mut wrong = String::new();
        if ran.success {
            if ran.stdout != scene.pod.prev_result {
                wrong = format!("succeeded and printed {:?}", ran.stdout);
            }
            scene.assert_served();
            scene.node().call(&scene.call("DEL")).assert_success("DEL");
        } else {
            wrong = cni_error_fault(&ran);
        }
        let left = scene.leftovers();
        if !left.is_empty() {
            scene = Scene::new();
            wrong = format!(
                "{wrong}\nADD {}; left:\n{left}",
                if ran.success { "and DEL" } else { "failed" }
            );
        }
        findings.note(step, &wrong);
    }
    findings.assert_none(steps.len());
}

#[test]
fn a_change_in_the_first_add() {
    refuse_in_first_add(Syscall::is_change);
}

#[test]
fn a_request_in_the_first_add() {
    refuse_in_first_add(|call| call.is_request() && !call.is_change());
}

/// The kernel makes the change, but the program does not learn of it.
#[test]
fn an_answer_in_the_first_add() {
    let acknowledges = |call: &Syscall| call.is_answer() && call.line.contains("NLMSG_ERROR");
    refuse_in_first_add(acknowledges);
}

/// Another pod is attached; a failing ADD does not touch it.
#[test]
fn a_step_in_the_add_of_a_second_pod() {
    let scene = Scene::new();
    scene.add();
    let settings = scene.settings();
    let second = &scene.layout.pods[0];
    let add = scene.node().call_of("ADD", &settings, second);
    let before = Snapshot::take(scene.node());
    let steps = scene.steps(&add, |call| call.is_change() || call.is_request() || call.is_answer());
    scene.node().del(&settings, second);
    let mut findings = Findings::default();
    for step in &steps {
        let ran = scene.strike(&add, step, error_of(step));
        let mut wrong = String::new();
        if ran.success {
            if ran.stdout != second.prev_result {
                wrong = format!("succeeded and printed {:?}", ran.stdout);
            }
            scene.assert_served();
            scene.node().del(&settings, second);
        } else {
            wrong = cni_error_fault(&ran);
        }
        let left = before.difference(&Snapshot::take(scene.node()));
        if !left.is_empty() {
            wrong = format!("{wrong}\nleft:\n{left}");
            scene.node().del(&settings, second);
        }
        findings.note(step, &wrong);
    }
    scene.assert_served();
    scene.node().del(&settings, &scene.pod);
    assert_eq!(scene.leftovers(), "", "left after the last DEL");
    findings.assert_none(steps.len());
}

/// A failing ADD of the same attachment leaves it as the ADD before made it.
#[test]
fn a_step_in_another_add_of_the_same_pod() {
    let scene = Scene::new();
    scene.add();
    let add = scene.call("ADD");
    let before = Snapshot::take(scene.node());
    let steps = scene.steps(&add, |call| call.is_change() || call.is_request() || call.is_answer());
    let mut findings = Findings::default();
    for step in &steps {
        let ran = scene.strike(&add, step, error_of(step));
        let mut wrong = if ran.success { String::new() } else { cni_error_fault(&ran) };
        let left = before.difference(&Snapshot::take(scene.node()));
        if !left.is_empty() {
            wrong = format!("{wrong}\nchanged:\n{left}");
            scene.node().del(&scene.settings(), &scene.pod);
            scene.add();
        }
        findings.note(step, &wrong);
    }
    scene.assert_served();
    scene.node().del(&scene.settings(), &scene.pod);
    findings.note(&steps[0], &scene.leftovers());
    findings.assert_none(steps.len());
}

/// A DEL never fails. The next one does what it could not do.
#[test]
fn a_step_in_the_last_del() {
    let mut scene = Scene::new();
    scene.add();
    let of_interest = |call: &Syscall| call.is_change() || call.is_request() || call.is_answer();
    let steps = scene.steps(&scene.call("DEL"), of_interest);
    let mut findings = Findings::default();
    for step in &steps {
        scene.add();
        let ran = scene.strike(&scene.call("DEL"), step, error_of(step));
        let mut wrong = String::new();
        if !ran.success || !ran.stdout.is_empty() {
            wrong = format!("exit code {:?}, stdout {:?}\n", ran.code, ran.stdout);
        }
        scene.node().call(&scene.bare_del()).assert_success("another DEL");
        let left = scene.leftovers();
        if !left.is_empty() {
            scene = Scene::new();
            wrong = format!("{wrong}left after another DEL:\n{left}");
        }
        findings.note(step, &wrong);
    }
    findings.assert_none(steps.len());
}
