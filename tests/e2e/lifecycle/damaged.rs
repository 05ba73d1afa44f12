//! State files that are damaged, empty or gone.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::settings;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Pod;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{TwoNics, two_nics};

const DAMAGE: [&str; 5] = ["", "{", "[]", "{\"version\":1}", "\0\0\0\0"];

/// The file of the one attachment there is.
fn pod_file(layout: &TwoNics) -> PathBuf {
    let folder = fs::read_dir(layout.node.dir.join("run/pods")).expect("list the pods' files");
    folder.map(|entry| entry.expect("an entry").path()).next().expect("a file")
}

fn scene() -> (TwoNics, Pod, Snapshot) {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let before = Snapshot::take(&layout.node);
    (layout, pod, before)
}

fn assert_flows(layout: &TwoNics) {
    assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
}

fn assert_served(layout: &TwoNics) {
    assert_flows(layout);
    let status = layout.node.symroute(&["status"]);
    assert_eq!(status.code, Some(0), "{}", status.stdout);
}

/// `status` fails and names the file, as a table and as JSON.
fn assert_reported(layout: &TwoNics, name: &str) {
    for arguments in [&["status"][..], &["status", "--json"]] {
        let status = layout.node.symroute(arguments);
        assert_eq!(status.code, Some(4), "{}{}", status.stdout, status.stderr);
        assert!(status.stdout.contains(name), "does not say {name}:\n{}", status.stdout);
    }
}

/// Nothing in the kernel comes from it, so all goes on, and the pod's own DEL ends it.
#[test]
fn an_attachment_is_damaged() {
    let (layout, pod, before) = scene();
    for text in DAMAGE {
        layout.node.add(&settings(), &pod);
        let file = pod_file(&layout);
        fs::write(&file, text).expect("damage the file");
        assert_flows(&layout);
        assert_reported(&layout, file.file_name().and_then(|name| name.to_str()).expect("UTF-8"));
        // Another ADD, as a restart of the pod brings, mends it.
        layout.node.add(&settings(), &pod);
        assert_eq!(layout.node.attachments().len(), 1);
        fs::write(&file, text).expect("damage the file again");
        // It counts as absent, so the node state goes with the hold.
        layout.node.up(&settings());
        assert_served(&layout);
        layout.node.down();
        before.assert_unchanged(&Snapshot::take(&layout.node));
        layout.node.add(&settings(), &pod);
        fs::write(&file, text).expect("damage the file once more");
        layout.node.del(&settings(), &pod);
        before.assert_unchanged(&Snapshot::take(&layout.node));
    }
}

/// The file of a pod with settings of its own, which are in the kernel.
#[test]
fn own_settings_are_damaged() {
    let (layout, pod, before) = scene();
    let mut hairpin = settings();
    hairpin["runtimeConfig"] = json!({
        "io.kubernetes.cri.pod-annotations": {"symroute.io/hairpin": "true"}
    });
    for text in DAMAGE {
        layout.node.add(&hairpin, &pod);
        let files = fs::read_dir(layout.node.dir.join("run")).expect("list the files");
        let mut paths = files.map(|entry| entry.expect("an entry").path());
        let is_own = |path: &PathBuf| path.to_string_lossy().contains("/.own-");
        let file = paths.find(is_own).expect("a file of own settings");
        fs::write(&file, text).expect("damage the file");
        let name = file.file_name().expect("a name").to_str().expect("UTF-8");
        assert_reported(&layout, name);
        layout.node.add(&hairpin, &pod);
        assert_served(&layout);
        fs::write(&file, text).expect("damage the file again");
        layout.node.up(&settings());
        assert_served(&layout);
        layout.node.down();
        fs::write(&file, text).expect("damage the file once more");
        layout.node.del(&settings(), &pod);
        before.assert_unchanged(&Snapshot::take(&layout.node));
    }
}

/// The pod goes on; by the next ADD it holds the node state again.
#[test]
fn an_attachment_is_gone() {
    let (layout, pod, before) = scene();
    layout.node.add(&settings(), &pod);
    fs::remove_file(pod_file(&layout)).expect("remove the file");
    assert_flows(&layout);
    assert_reported(&layout, "no attachment");
    layout.node.add(&settings(), &pod);
    assert_eq!(layout.node.attachments().len(), 1);
    assert_served(&layout);
    fs::remove_file(pod_file(&layout)).expect("remove the file again");
    layout.node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(&layout.node));
}

/// The table itself remembers enough to take all away.
#[test]
fn the_record_is_damaged() {
    let (layout, pod, before) = scene();
    let file = layout.node.dir.join("run/node.json");
    for text in DAMAGE {
        layout.node.add(&settings(), &pod);
        fs::write(&file, text).expect("damage the file");
        assert_reported(&layout, "node.json");
        layout.node.up(&settings());
        assert_served(&layout);
        layout.node.down();
        layout.node.del(&settings(), &pod);
        before.assert_unchanged(&Snapshot::take(&layout.node));
    }
}

#[test]
fn the_record_is_damaged_and_the_last_pod_goes() {
    let (layout, pod, before) = scene();
    let file = layout.node.dir.join("run/node.json");
    layout.node.add(&settings(), &pod);
    fs::write(&file, "").expect("damage the file");
    layout.node.add(&settings(), &pod);
    layout.node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(&layout.node));
}

/// Everything below /run/symroute is gone while the kernel's state is there.
#[test]
fn all_files_are_gone() {
    files_are_gone(|_| true);
}

/// The same, but for the links that tell what there is.
#[test]
fn all_files_but_links_are_gone() {
    files_are_gone(|path| !path.is_symlink());
}

fn files_are_gone(goes: impl Fn(&Path) -> bool) {
    let (layout, pod, before) = scene();
    layout.node.add(&settings(), &pod);
    // What is mounted stays, as a tmpfs would.
    let folder = fs::read_dir(layout.node.dir.join("run")).expect("list the files");
    for path in folder.map(|entry| entry.expect("an entry").path()).filter(|path| goes(path)) {
        let is_folder = path.is_dir() && !path.is_symlink();
        let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    layout.node.add(&settings(), &pod);
    assert_served(&layout);
    layout.node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(&layout.node));
}
