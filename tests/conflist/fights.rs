//! Other programs write the same files.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::node::{FLANNEL, Node, files};

/// The primary plugin writes its file again at each start.
#[test]
fn after_a_rewrite_the_new_file_is_the_original() {
    let node = Node::with_flannel();
    node.run("add").assert_code(0, "add");
    let newer = FLANNEL.replace("true", "false");
    node.write(&newer);
    node.run("check").assert_code(3, "check");
    node.run("add").assert_code(0, "add");
    node.run("remove").assert_code(0, "remove");
    assert_eq!(fs::read_to_string(node.primary()).expect("read"), newer);
}

/// Another program reformats the file with our entry. The removal restores the original bytes.
#[test]
fn a_new_layout_is_undone() {
    let node = Node::with_flannel();
    node.run("add").assert_code(0, "add");
    let text = fs::read_to_string(node.primary()).expect("read");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    node.write(&value.to_string());
    node.run("check").assert_code(0, "check");
    node.run("remove").assert_code(0, "remove");
    assert_eq!(fs::read_to_string(node.primary()).expect("read"), FLANNEL);
}

/// Another program changes another plugin's object. The removal keeps this change.
#[test]
fn a_new_meaning_stays() {
    let node = Node::with_flannel();
    node.run("add").assert_code(0, "add");
    let text = fs::read_to_string(node.primary()).expect("read");
    node.write(&text.replace("hairpinMode\": true", "hairpinMode\": false"));
    node.run("remove").assert_code(0, "remove");
    let wanted = FLANNEL.replace("hairpinMode\": true", "hairpinMode\": false");
    assert_eq!(fs::read_to_string(node.primary()).expect("read"), wanted);
}

#[test]
fn too_many_rewrites_are_a_fight() {
    let node = Node::with_flannel();
    for _ in 0..5 {
        node.write(FLANNEL);
        node.run("add").assert_code(0, "add");
    }
    node.write(FLANNEL);
    let ran = node.run("add");
    ran.assert_code(1, "the sixth");
    assert!(ran.said.contains("went missing 5 times within a minute"), "{}", ran.said);
    assert_eq!(fs::read_to_string(node.primary()).expect("read"), FLANNEL);
}

/// An operator may add and remove the entry any number of times.
#[test]
fn our_own_removals_are_no_fight() {
    let node = Node::with_flannel();
    for _ in 0..8 {
        node.run("add").assert_code(0, "add");
        node.run("remove").assert_code(0, "remove");
    }
}

#[test]
fn mode_and_litter() {
    let node = Node::with_flannel();
    let mode = |path| fs::metadata(path).expect("a file").permissions().mode() & 0o7777;
    fs::set_permissions(node.primary(), PermissionsExt::from_mode(0o640)).expect("chmod");
    fs::write(node.conf_dir().join(".symroute.new"), "half").expect("litter");
    node.run("add").assert_code(0, "add");
    assert_eq!(mode(node.primary()), 0o640);
    assert_eq!(node.files().len(), 1);
    node.run("add --mode own-file").assert_code(0, "own file");
    assert_eq!(mode(node.conf_dir().join("05-symroute.conflist")), 0o640);
    let secret = files(&node.state_dir());
    assert!(secret.contains_key("originals/10-flannel.conflist"), "{:?}", secret.keys());
    assert_eq!(mode(node.state_dir().join("originals/10-flannel.conflist")), 0o600);
    fs::write(node.conf_dir().join(".symroute.new"), "half").expect("litter");
    node.run("add").assert_code(0, "nothing to do");
    assert!(!node.files().contains_key(".symroute.new"));
}

/// Eight processes add the entry at the same time, and the file gets one entry.
#[test]
fn all_at_once() {
    let node = Node::with_flannel();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| node.run("add").assert_code(0, "add"));
        }
    });
    let text = fs::read_to_string(node.primary()).expect("read");
    assert_eq!(text.matches("\"symroute\"").count(), 1);
}

/// Another program writes the file all the time. The file always is one of the two texts, whole.
#[test]
fn a_writer_that_never_rests() {
    let node = Node::with_flannel();
    let newer = FLANNEL.replace("cbr0", "cbr1");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..400 {
                let other = node.conf_dir().join(".other");
                fs::write(&other, if n % 2 == 0 { FLANNEL } else { &newer }).expect("write");
                fs::rename(&other, node.primary()).expect("rename");
            }
        });
        while !writer.is_finished() {
            let _ = node.run("add --file 10-flannel.conflist");
            let text = fs::read_to_string(node.primary()).expect("read");
            serde_json::from_str::<serde_json::Value>(&text).expect("whole");
        }
    });
    node.run("remove").assert_code(0, "remove");
    let text = fs::read_to_string(node.primary()).expect("read");
    assert!(text == FLANNEL || text == newer, "{text}");
    assert!(!node.files().contains_key(".symroute.new"));
}

/// The operator gives settings, mode and file only once.
#[test]
fn a_plain_add_puts_back_what_was_wanted() {
    let node = Node::with_flannel();
    let entry = node.root.join("entry.json");
    fs::write(&entry, r#"{"uplinks": ["eth7"]}"#).expect("write");
    let words = format!("add --config {}", entry.display());
    node.run(&words).assert_code(0, "add");
    let wanted = node.files();
    node.write(FLANNEL);
    node.run("add").assert_code(0, "add");
    assert_eq!(node.files(), wanted);
    node.run("add --mode own-file").assert_code(0, "own file");
    let wanted = node.files();
    fs::remove_file(node.primary()).expect("the primary's file goes");
    node.run("add").assert_code(3, "the copy goes");
    assert!(node.files().is_empty());
    node.write(FLANNEL);
    node.run("check").assert_code(3, "check");
    node.run("add").assert_code(0, "add");
    assert_eq!(node.files(), wanted);
    node.run("remove").assert_code(0, "remove");
    node.run("add").assert_code(0, "all is forgotten");
    let text = fs::read_to_string(node.primary()).expect("read");
    assert!(text.contains("\"symroute\"") && !text.contains("eth7"), "{text}");
}

/// Multus's file comes first, and the operator names the primary's file only once.
#[test]
fn a_file_that_was_named_is_remembered() {
    let node = Node::with_flannel();
    let multus = node.conf_dir().join("00-multus.conf");
    fs::write(&multus, r#"{"name": "m", "type": "multus"}"#).expect("write");
    node.run("add").assert_code(1, "refused");
    node.run("add --file 10-flannel.conflist").assert_code(0, "add");
    node.run("check").assert_code(0, "check");
    fs::remove_file(&multus).expect("Multus goes");
    fs::rename(node.primary(), node.conf_dir().join("20-new.conflist")).expect("rename");
    node.run("check").assert_code(0, "a file that has gone is forgotten");
}

/// A node may get symroute before its primary plugin. The operator gives settings and mode at that moment
/// only; the agent and later calls add the entry without them.
#[test]
fn what_was_wanted_before_the_primary_is_remembered() {
    for (has_folder, rest) in [(true, None), (true, Some("")), (false, None)] {
        let node = Node::new();
        if !has_folder {
            fs::remove_dir(node.conf_dir()).expect("remove the conf dir");
        }
        if let Some(text) = rest {
            node.write(text);
        }
        let entry = node.root.join("entry.json");
        fs::write(&entry, r#"{"uplinks": ["eth7"]}"#).expect("write");
        node.run(&format!("add --config {}", entry.display())).assert_code(3, "waiting");
        node.run("add --mode own-file").assert_code(3, "waiting still");
        fs::create_dir_all(node.conf_dir()).expect("make the conf dir");
        node.write(FLANNEL);
        node.run("add").assert_code(0, "add");
        let own = node.files().remove("05-symroute.conflist").expect("a file of its own");
        assert!(String::from_utf8_lossy(&own).contains("eth7"), "{own:?}");
        assert_eq!(fs::read_to_string(node.primary()).expect("read"), FLANNEL);
    }
}
