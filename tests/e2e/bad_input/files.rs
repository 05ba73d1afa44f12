//! Files that another program has prepared, and files without an end.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::valid_settings;
use crate::agent::conflist;
use crate::lab::agent::Agent;
use crate::lab::damage::Damage;
use crate::lab::plugin::{Call, Ran};
use crate::lab::two_nics::{TwoNics, two_nics};

/// Runs a command of the tool with limits of time and memory. A tool that read an endless file to
/// its end would exceed the memory limit.
fn limited(layout: &TwoNics, arguments: &[&str]) -> Ran {
    let limits = ["timeout", "20", "prlimit", "--as=800000000"];
    let ran = layout.node.call_under(&limits, &Call::tool(arguments));
    let ended = ran.code.is_some_and(|code| code < 124);
    assert!(ended, "{arguments:?}: {:?} {}", ran.code, ran.stderr);
    ran
}

#[test]
fn files_of_other_kinds_are_no_wait() {
    let layout = two_nics();
    let folders = ["net.d", "cache", "lasting"].map(|name| layout.node.dir.join(name));
    for folder in &folders {
        fs::create_dir(folder).expect("make the folder");
    }
    let [conf, cache, lasting] = folders.each_ref().map(|path| path.to_str().expect("UTF-8"));
    fs::write(folders[0].join("10-lab.conflist"), conflist(&layout.node, Some(&valid_settings())))
        .expect("write the conflist");
    for damage in Damage::all() {
        damage.put(&folders[0].join("05-a.conflist"));
        damage.put(&folders[0].join("99-z.conf"));
        damage.put(&folders[1].join("lab-c1-eth0"));
        damage.put(&folders[2].join("places"));
        limited(&layout, &["up", "--conf-dir", conf]).assert_success("up");
        limited(&layout, &["conflist", "check", "--conf-dir", conf, "--state-dir", lasting]);
        limited(&layout, &["doctor", "--for", "0s", "--conf-dir", conf]);
        limited(&layout, &["attachments", "--cache-dir", cache]);
        limited(&layout, &["bundle", "--conf-dir", conf, "-"]).assert_success("bundle");
        let file = folders[0].join("05-a.conflist");
        let ran = limited(&layout, &["up", "--config", file.to_str().expect("UTF-8")]);
        assert_eq!(ran.code, Some(1), "{damage:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("05-a.conflist"), "{damage:?}: {}", ran.stderr);
    }
    layout.node.down();
}

/// Whether an unprivileged process can lock this file or folder.
fn can_be_locked(path: &Path) -> bool {
    let without_rights = [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ];
    let mut command = Command::new("setpriv");
    command.args(without_rights).args(["flock", "--nonblock"]).arg(path).arg("true");
    command.output().expect("run setpriv").status.success()
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("change the mode");
}

#[test]
fn only_root_can_lock_what_the_plugin_locks() {
    let layout = two_nics();
    let run = layout.node.dir.join("run");
    // The mode that an older release left.
    allow(&run, 0o755);
    assert!(can_be_locked(&run), "the test can fail");
    layout.node.up(&valid_settings());
    assert!(
        !can_be_locked(&run),
        "{:o}",
        run.metadata().expect("it is there").permissions().mode()
    );
    let file = run.join("agent");
    fs::write(&file, "").expect("write the file of an older release");
    allow(&file, 0o644);
    let config = crate::agent::plugin_object(&layout.node, &valid_settings());
    let agent = Agent::ready(&layout.node, &["--config", &config]);
    // The file is also safe where the folder lets other users in.
    allow(&run, 0o755);
    assert!(!can_be_locked(&file));
    for entry in fs::read_dir(&run).expect("list the state") {
        let entry = entry.expect("an entry");
        let mode = entry.path().symlink_metadata().expect("it is there").permissions().mode();
        let is_link = entry.path().is_symlink();
        assert!(is_link || mode % 0o100 == 0, "{}: {mode:o}", entry.path().display());
    }
    drop(agent);
}

#[test]
fn the_log_is_never_written_through_a_link() {
    let layout = two_nics();
    let (node, log, victim) = (&layout.node, layout.node.log(), layout.node.dir.join("victim"));
    fs::write(&victim, "as it was").expect("write the victim");
    symlink(&victim, &log).expect("plant the link");
    node.add(&valid_settings(), &layout.pods[0]);
    node.del(&valid_settings(), &layout.pods[0]);
    assert_eq!(fs::read_to_string(&victim).expect("read it"), "as it was");
    fs::remove_file(&log).expect("remove the link");
    mkfifo(&log, Mode::S_IRWXU).expect("plant a pipe");
    node.add(&valid_settings(), &layout.pods[0]);
    node.del(&valid_settings(), &layout.pods[0]);
    fs::remove_file(&log).expect("remove the pipe");
    node.add(&valid_settings(), &layout.pods[0]);
    node.del(&valid_settings(), &layout.pods[0]);
    let mode = log.metadata().expect("a log").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn long_values_are_cut() {
    let layout = two_nics();
    let long = "x".repeat(1 << 20);
    let wrong = |key: &str, value: Value| {
        let mut network = json!({"cniVersion": "1.0.0", "name": "lab", "type": "symroute"});
        network[key] = value;
        network.to_string()
    };
    let many: Vec<_> = (0..100_000).map(|number| format!("eth{number}/")).collect();
    let pod = &layout.pods[0];
    for network in [
        wrong("uplinks", json!([long])),
        wrong("uplinks", json!(many)),
        wrong("gateways", json!({&long: 7})),
        wrong("markMask", json!(long)),
        wrong("name", json!(long)),
        wrong("cniVersion", json!(long)),
        wrong("prevResult", json!({"cniVersion": "1.0.0", "ips": [{"address": long}]})),
        wrong("prevResult", json!({"cniVersion": long})),
        wrong("log", json!({"file": long})),
    ] {
        let ran = layout.node.cni("ADD", &network, &pod.id, &pod.ns.path(), "eth0");
        assert_eq!(ran.code, Some(1), "{}", &network[..200]);
        assert!(ran.stdout.len() < 8192, "{} bytes for {}", ran.stdout.len(), &network[..200]);
        let file = layout.node.dir.join("long.json");
        fs::write(&file, &network).expect("write the configuration");
        let ran = layout.node.symroute(&["up", "--config", file.to_str().expect("UTF-8")]);
        assert!(ran.stderr.len() < 8192, "{} bytes for {}", ran.stderr.len(), &network[..200]);
        layout.node.down();
    }
    let unknown = wrong(&long, json!(1));
    let file = layout.node.dir.join("long.json");
    fs::write(&file, unknown).expect("write the configuration");
    let ran = layout.node.symroute(&["up", "--config", file.to_str().expect("UTF-8")]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("unknown key") && ran.stderr.len() < 8192, "{}", ran.stderr.len());
}
