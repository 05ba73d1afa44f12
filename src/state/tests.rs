//! Tests of the state directory.

use std::time::Duration;

use super::attachment::Attachments;
use std::collections::BTreeMap;

use super::*;
use crate::config::{Automatic, Settings};
use crate::model::Family;
use crate::temp_dir::TempDir;

fn state() -> (TempDir, State) {
    let folder = TempDir::new();
    let state = State::new(folder.join("state"));
    (folder, state)
}

fn pod(container: &str, addresses: &[&str]) -> Attachment {
    Attachment {
        key: Key { network: "net".into(), container: container.into(), ifname: "eth0".into() },
        netns: String::new(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        hairpin: false,
        left_out: false,
        gateways: BTreeMap::new(),
    }
}

#[test]
fn one_agent_to_a_node() {
    let (_folder, state) = state();
    let lock = AgentLock::acquire(&state).unwrap().unwrap();
    assert_eq!(AgentLock::acquire(&state).unwrap().unwrap_err(), Some(std::process::id()));
    state.clear().unwrap();
    assert!(AgentLock::acquire(&state).unwrap().is_err(), "what is cleared is not the lock");
    drop(lock);
    drop(AgentLock::acquire(&state).unwrap().unwrap());
    state.clear().unwrap();
    assert!(!state.path(&["agent"]).exists(), "no agent has it");
}

#[test]
fn an_attachment_holds_the_node_state_until_it_is_detached() {
    let (_folder, state) = state();
    assert!(state.is_idle().unwrap());
    let a = pod("a", &["10.0.0.1", "fd00::1"]);
    let written = state.attach(&a).unwrap();
    assert_eq!(written, Written { has_own_settings: false, before: None });
    assert_eq!(state.attach(&a).unwrap().before, Some(a.clone()), "ADD twice");
    assert_eq!(state.attachment(&a.key).unwrap(), Some(a.clone()));
    assert!(!state.is_idle().unwrap());
    assert!(!state.detach(&pod("b", &[]).key).unwrap());
    assert!(!state.detach(&a.key).unwrap(), "it has no settings of its own");
    assert!(!state.detach(&a.key).unwrap(), "DEL twice");
    assert!(state.is_idle().unwrap());
    state.clear().unwrap();
    assert_eq!(fs::read_dir(&state.dir).unwrap().count(), 0);
}

#[test]
fn settings_of_a_pod_come_and_go_with_its_attachment() {
    let (_folder, state) = state();
    let plain = pod("a", &["10.0.0.1"]);
    let hairpin = Attachment { hairpin: true, ..plain.clone() };
    let left_out = Attachment { left_out: true, ..plain.clone() };
    assert!(state.attach(&hairpin).unwrap().has_own_settings);
    assert_eq!(state.with_own_settings().unwrap().readable, std::slice::from_ref(&hairpin));
    let written = state.attach(&left_out).unwrap();
    assert_eq!(written, Written { has_own_settings: true, before: Some(hairpin) });
    assert!(state.is_idle().unwrap(), "a pod that is left out holds nothing");
    assert_eq!(state.attachments().unwrap().readable, [left_out]);
    let written = state.attach(&plain).unwrap();
    assert!(written.has_own_settings && written.before.is_some(), "until now it had");
    assert!(!state.attach(&plain).unwrap().has_own_settings);
    assert_eq!(state.with_own_settings().unwrap(), Attachments::default());
    state.attach(&Attachment { hairpin: true, ..plain.clone() }).unwrap();
    assert!(state.detach(&plain.key).unwrap());
}

#[test]
fn folders_of_an_older_release_are_understood() {
    let (_folder, state) = state();
    let old = |container: &str, more: &str| {
        let key = pod(container, &[]).key;
        let text = format!(
            "{{\"version\":1,\"network\":\"net\",\"container\":\"{container}\",\
             \"ifname\":\"eth0\",\"addresses\":[\"10.0.0.1\"]{more}}}"
        );
        state.write("pods", &key.file_name(), &text).unwrap();
    };
    old("plain", "");
    old("adopted", ",\"adopted\":true");
    old("hairpin", ",\"hairpin\":true");
    state.write("gone", "x", "").unwrap();
    state.write("owners", "10.0.0.1", "").unwrap();
    state.migrate().unwrap();
    let names = |found: Attachments| {
        let mut names: Vec<_> = found.readable.into_iter().map(|a| a.key.container).collect();
        names.sort();
        names
    };
    assert_eq!(names(state.attachments().unwrap()), ["hairpin", "plain"]);
    assert_eq!(names(state.with_own_settings().unwrap()), ["hairpin"]);
    assert!(!state.path(&["gone"]).exists() && !state.path(&["owners"]).exists());
}

#[test]
fn names_fit_whatever_their_length() {
    let long = "x".repeat(5000);
    let key = Key { network: long.clone(), container: long, ifname: "eth0".into() };
    assert!(key.file_name().len() <= 255 - ".-".len() - 39);
}

#[test]
fn damaged_files_are_reported_and_swept() {
    let (_folder, state) = state();
    let good = pod("good", &["10.0.0.1"]);
    state.attach(&good).unwrap();
    for (name, text) in
        [("empty", ""), ("cut", "{\"version\":1,"), ("other", "[]"), ("newer", "{\"version\":2}")]
    {
        state.write("pods", name, text).unwrap();
    }
    let Attachments { readable, unreadable } = state.attachments().unwrap();
    assert_eq!((readable, unreadable.len()), (vec![good], 4));
    State::sweep(&unreadable).unwrap();
    assert_eq!(state.list("pods").unwrap().len(), 1);
    state.write("", record::FILE, "{").unwrap();
    assert_eq!(state.record().unwrap(), None);
}

#[test]
fn the_record_survives_a_round_trip() {
    let (_folder, state) = state();
    let record = Record {
        network: "k8s".into(),
        settings: Settings::default(),
        conflist: Some("/etc/cni/net.d/10-k8s.conflist".into()),
        // The plugin no longer needs to know whether it chose these numbers.
        previous: vec![Settings { automatic: Automatic::default(), ..Settings::default() }],
        src_valid_mark: [3, 7].into(),
        made_chains: [(Family::V6, "INPUT".into())].into(),
    };
    state.set_record(&record).unwrap();
    assert_eq!(state.record().unwrap(), Some(record));
}

#[test]
fn a_held_lock_ends_in_busy_with_the_holder() {
    let (_folder, state) = state();
    let held = state.lock(Duration::ZERO).unwrap();
    match state.lock(Duration::from_millis(20)) {
        Err(crate::error::Error::Busy { holder, .. }) => {
            assert_eq!(holder, Some(std::process::id()));
        }
        other => panic!("{other:?}"),
    }
    drop(held);
    state.lock(Duration::ZERO).unwrap();
}
