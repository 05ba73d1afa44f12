//! Tests of the state directory.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::config::Settings;
use crate::facts::Family;

static NEXT: AtomicU32 = AtomicU32::new(0);

struct Temporary(State);

impl Temporary {
    fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("symroute-state-{}-{n}", std::process::id()));
        Self(State::new(dir))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0.dir);
    }
}

fn pod(container: &str, addresses: &[&str]) -> Attachment {
    Attachment {
        key: Key { network: "net".into(), container: container.into(), ifname: "eth0".into() },
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        hairpin: false,
        adopted: false,
    }
}

#[test]
fn one_agent_to_a_node() {
    let temporary = Temporary::new();
    let state = &temporary.0;
    let alone = state.be_the_agent().unwrap().unwrap();
    assert_eq!(state.be_the_agent().unwrap().unwrap_err(), Some(std::process::id()));
    state.clear().unwrap();
    assert!(state.be_the_agent().unwrap().is_err(), "what is cleared is not the lock");
    drop(alone);
    drop(state.be_the_agent().unwrap().unwrap());
    state.clear().unwrap();
    assert!(!state.path(&["agent"]).exists(), "nobody has it");
}

#[test]
fn a_removal_takes_what_was_enrolled_and_no_more() {
    let temporary = Temporary::new();
    let state = &temporary.0;
    assert!(state.is_idle().unwrap());
    let a = pod("a", &["10.0.0.1", "fd00::1"]);
    state.enroll(&a).unwrap();
    assert!(!state.is_idle().unwrap());
    assert_eq!(state.begin_removal(&pod("b", &[]).key).unwrap(), None);
    assert_eq!(state.begin_removal(&a.key).unwrap(), Some(a.clone()));
    // Cut short and asked again.
    assert_eq!(state.begin_removal(&a.key).unwrap(), Some(a.clone()));
    for &address in &a.addresses {
        assert!(state.disown(address, &a.key.file_name()).unwrap());
    }
    state.end_removal(&a.key).unwrap();
    assert_eq!(state.begin_removal(&a.key).unwrap(), None);
    assert!(state.is_idle().unwrap());
    state.clear().unwrap();
    assert_eq!(fs::read_dir(&state.dir).unwrap().count(), 0);
}

#[test]
fn a_late_removal_leaves_the_new_owner_alone() {
    let temporary = Temporary::new();
    let state = &temporary.0;
    let (old, new) = (pod("old", &["10.0.0.1"]), pod("new", &["10.0.0.1"]));
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    state.enroll(&old).unwrap();
    state.enroll(&new).unwrap();
    assert!(!state.disown(address, &old.key.file_name()).unwrap());
    assert_eq!(state.owner(address).as_ref(), Some(&new));
    assert!(state.disown(address, &new.key.file_name()).unwrap());
    assert_eq!(state.owner(address), None);
}

#[test]
fn names_fit_whatever_their_length() {
    let long = "x".repeat(5000);
    let key = Key { network: long.clone(), container: long, ifname: "eth0".into() };
    assert!(key.file_name().len() <= 255 - ".-".len() - 39);
}

#[test]
fn damaged_files_are_reported_and_swept() {
    let temporary = Temporary::new();
    let state = &temporary.0;
    let good = pod("good", &["10.0.0.1"]);
    state.enroll(&good).unwrap();
    for (name, text) in
        [("empty", ""), ("cut", "{\"version\":1,"), ("other", "[]"), ("newer", "{\"version\":2}")]
    {
        state.write("pods", name, text).unwrap();
    }
    let (found, unreadable) = state.attachments().unwrap();
    assert_eq!((found, unreadable.len()), (vec![good], 4));
    state.sweep(&unreadable).unwrap();
    assert_eq!(state.list("pods").unwrap().len(), 1);
    state.write("", record::FILE, "{").unwrap();
    assert_eq!(state.record().unwrap(), None);
}

#[test]
fn the_record_survives_a_round_trip() {
    let temporary = Temporary::new();
    let state = &temporary.0;
    let record = Record {
        network: "k8s".into(),
        settings: Settings::default(),
        previous: vec![Settings { host: false, ..Settings::default() }],
        src_valid_mark: [3, 7].into(),
        made: [(Family::V6, "INPUT".into())].into(),
    };
    state.set_record(&record).unwrap();
    assert_eq!(state.record().unwrap(), Some(record));
}

#[test]
fn a_held_lock_ends_in_busy_with_the_holder() {
    let temporary = Temporary::new();
    let state = &temporary.0;
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
