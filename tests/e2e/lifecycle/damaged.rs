//! State files that are damaged, empty or gone.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::settings;
use crate::lab::damage::Damage;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Pod;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{TwoNics, two_nics};

/// The path of the only attachment's file.
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

/// The kernel holds nothing of the attachment, so calls go on. The pod's own DEL removes the file.
#[test]
fn an_attachment_is_damaged() {
    let (layout, pod, before) = scene();
    for damage in Damage::all() {
        layout.node.add(&settings(), &pod);
        let file = pod_file(&layout);
        damage.put(&file);
        assert_flows(&layout);
        let name = file.file_name().expect("a name").to_str().expect("UTF-8");
        layout.node.assert_status_names(name);
        // Another ADD, as after a restart of the pod, repairs the file.
        layout.node.add(&settings(), &pod);
        assert_eq!(layout.node.attachments().len(), 1);
        damage.put(&file);
        // A damaged file counts as absent, so the node state ends with the hold.
        layout.node.up(&settings());
        assert_served(&layout);
        layout.node.down();
        before.assert_unchanged(&Snapshot::take(&layout.node));
        layout.node.add(&settings(), &pod);
        damage.put(&file);
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
    for damage in Damage::all() {
        layout.node.add(&hairpin, &pod);
        let files = fs::read_dir(layout.node.dir.join("run")).expect("list the files");
        let mut paths = files.map(|entry| entry.expect("an entry").path());
        let is_own = |path: &PathBuf| path.to_string_lossy().contains("/.own-");
        let file = paths.find(is_own).expect("a file of own settings");
        damage.put(&file);
        let name = file.file_name().expect("a name").to_str().expect("UTF-8");
        layout.node.assert_status_names(name);
        layout.node.add(&hairpin, &pod);
        assert_served(&layout);
        damage.put(&file);
        layout.node.up(&settings());
        assert_served(&layout);
        layout.node.down();
        damage.put(&file);
        layout.node.del(&settings(), &pod);
        before.assert_unchanged(&Snapshot::take(&layout.node));
    }
}

/// The pod is served. After its next ADD it holds the node state again.
#[test]
fn an_attachment_is_gone() {
    let (layout, pod, before) = scene();
    layout.node.add(&settings(), &pod);
    fs::remove_file(pod_file(&layout)).expect("remove the file");
    assert_flows(&layout);
    layout.node.assert_status_names("no attachment");
    layout.node.add(&settings(), &pod);
    assert_eq!(layout.node.attachments().len(), 1);
    assert_served(&layout);
    fs::remove_file(pod_file(&layout)).expect("remove the file again");
    layout.node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(&layout.node));
}

/// The nftables table alone records enough to remove everything.
#[test]
fn the_record_is_damaged() {
    let (layout, pod, before) = scene();
    let file = layout.node.dir.join("run/node.json");
    for damage in Damage::all() {
        layout.node.add(&settings(), &pod);
        damage.put(&file);
        layout.node.assert_status_names("node.json");
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
    Damage::Content(b"").put(&file);
    layout.node.add(&settings(), &pod);
    layout.node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(&layout.node));
}

/// Everything below /run/symroute is gone while the kernel's state is there.
#[test]
fn all_files_are_gone() {
    files_are_gone(|_| true);
}

/// Everything below /run/symroute but its symbolic links is gone.
#[test]
fn all_files_but_links_are_gone() {
    files_are_gone(|path| !path.is_symlink());
}

fn files_are_gone(goes: impl Fn(&Path) -> bool) {
    let (layout, pod, before) = scene();
    layout.node.add(&settings(), &pod);
    // A mount point stays, as a tmpfs would.
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

/// Damages each state file, and adds some that do not belong there. Calls go on, and `down --force`
/// leaves nothing in the kernel or on disk.
#[test]
fn an_odd_file_in_any_place_of_the_state() {
    let (layout, pod, before) = scene();
    let other = &layout.pods[0];
    let places =
        ["node.json", "marking", ".ready", ".next", "hold/up", "agent", "owners", "pods/stray"];
    for place in places {
        for damage in Damage::all() {
            layout.node.up(&settings());
            layout.node.add(&settings(), &pod);
            damage.put(&layout.node.dir.join("run").join(place));
            // The next call has to take the slow path.
            layout.node.ns.ip("rule del pref 402");
            layout.node.add(&settings(), other);
            assert_flows(&layout);
            layout.node.up(&settings());
            layout.node.del(&settings(), other);
            let down = layout.node.symroute(&["down", "--force"]);
            assert_eq!(down.code, Some(0), "{damage:?} at {place}: {}", down.stderr);
            before.assert_unchanged(&Snapshot::take(&layout.node));
        }
    }
}

/// A file in the place of a folder, and one whose name is no text.
#[test]
fn a_folder_of_the_state_is_no_folder() {
    let (layout, pod, before) = scene();
    for place in ["pods", "hold"] {
        layout.node.add(&settings(), &pod);
        for damage in [Damage::Content(b"a file"), Damage::LinkToItself, Damage::Fifo] {
            damage.put(&layout.node.dir.join("run").join(place));
            layout.node.up(&settings());
            layout.node.add(&settings(), &pod);
            assert_flows(&layout);
        }
        let down = layout.node.symroute(&["down", "--force"]);
        assert_eq!(down.code, Some(0), "{}", down.stderr);
        before.assert_unchanged(&Snapshot::take(&layout.node));
    }
}

#[test]
fn a_name_in_the_state_is_no_text() {
    let (layout, pod, before) = scene();
    for folder in ["pods", "hold", ""] {
        layout.node.add(&settings(), &pod);
        layout.node.up(&settings());
        let name = OsStr::from_bytes(b"\xff\xfe");
        let file = layout.node.dir.join("run").join(folder).join(name);
        fs::write(&file, "{}").expect("write the file");
        let down = layout.node.symroute(&["down", "--force"]);
        assert_eq!(down.code, Some(0), "{}", down.stderr);
        let left = layout.node.symroute(&["status"]).stdout;
        assert!(left.contains("not in force"), "{folder}: {left}");
        let _ = fs::remove_file(&file);
        before.assert_unchanged(&Snapshot::take(&layout.node));
    }
}
