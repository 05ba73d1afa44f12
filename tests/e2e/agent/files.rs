//! Folders that the agent watches: conflists and plugins.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;

use serde_json::json;

use crate::agent::{answers, conflist, status};
use crate::lab::agent::{Agent, until};
use crate::lab::two_nics::{NICS, NODE, two_nics};

#[test]
fn settings_of_the_conflist_are_followed() {
    let layout = two_nics();
    let (node, folder) = (&layout.node, layout.node.dir.join("net.d"));
    let uplinks = json!({"uplinks": NICS});
    let file = folder.join("10-lab.conflist");
    // Without a conflist, without its folder even, the defaults are in force: "auto" finds none
    // of the NICs here, which are veths.
    let agent = Agent::start(node, &["--conf-dir", folder.to_str().expect("UTF-8")]);
    until("not ready", || agent.get("/readyz").1.contains("no interface leads outside"));
    fs::create_dir(&folder).expect("make the folder");
    fs::write(folder.join("05-half.conflist"), "{\"name\": \"lab\", \"plugins\": [{\"type\"")
        .expect("write half a file");
    fs::write(&file, conflist(node, None)).expect("write the primary's conflist");
    fs::write(folder.join(".new"), conflist(node, Some(&uplinks))).expect("write a conflist");
    assert!(!answers(&layout, NODE[1], 10250));
    fs::rename(folder.join(".new"), &file).expect("rename it");
    until("the settings are in force", || answers(&layout, NODE[1], 10250));
    until("ready", || agent.get("/readyz").0 == 200);
    assert_eq!(status(node)["network"], "lab");
    let hairpin = json!({"uplinks": NICS, "hairpin": true});
    fs::write(&file, conflist(node, Some(&hairpin))).expect("change the settings");
    until("new settings are in force", || status(node)["settings"]["hairpin"] == true);
    let wrong = json!({"uplinks": 7});
    fs::write(&file, conflist(node, Some(&wrong))).expect("spoil the settings");
    until("the mistake is told", || agent.get("/readyz").1.contains("\"uplinks\": 7"));
    assert!(answers(&layout, NODE[1], 10250), "what was in force stays");
    fs::remove_file(&file).expect("remove the conflist");
    until("a file that went is no mistake", || agent.get("/readyz").0 == 200);
    assert_eq!(status(node)["settings"]["hairpin"], true, "what was in force stays");
}

#[test]
fn the_binary_is_kept_in_place() {
    let layout = two_nics();
    let (node, bin) = (&layout.node, layout.node.dir.join("bin"));
    fs::create_dir(&bin).expect("make the folder");
    let (from, to) = (node.dir.join("from"), bin.join("symroute"));
    fs::write(&from, "a program").expect("write the program");
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let config = crate::agent::plugin_object(node, &json!({"uplinks": NICS}));
    let arguments = ["--config", &config, "--install", &text(&from), "--bin-dir", &text(&bin)];
    let agent = Agent::ready(node, &arguments);
    assert_eq!(fs::read(&to).expect("read the program"), b"a program");
    fs::write(&to, "another").expect("overwrite it");
    let in_place = || fs::read(&to).is_ok_and(|bytes| bytes == b"a program");
    until("the copy is the given one", in_place);
    fs::remove_file(&to).expect("remove it");
    until("it is back", in_place);
    let mode = fs::metadata(&to).expect("look at it").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    until("counted", || agent.metric("symroute_binary_installs_total") >= 3);
}

#[test]
fn systemd_is_told() {
    let layout = two_nics();
    let node = &layout.node;
    let path = node.dir.join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind a socket");
    socket.set_read_timeout(Some(crate::lab::agent::PATIENT)).expect("a deadline");
    let config = crate::agent::plugin_object(node, &json!({"uplinks": NICS}));
    let agent = Agent::with(
        node,
        &["--config", &config],
        &[("NOTIFY_SOCKET", path.to_str().expect("UTF-8")), ("WATCHDOG_USEC", "600000")],
    );
    let mut told = Vec::new();
    let mut buffer = [0; 512];
    while told.iter().filter(|text| *text == "WATCHDOG=1").count() < 5
        || !told.iter().any(|text| text == "READY=1")
    {
        let len = socket.recv(&mut buffer).expect("a message");
        told.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
    }
    assert!(agent.end(nix::sys::signal::Signal::SIGTERM).success());
    until("the end is told", || {
        let len = socket.recv(&mut buffer).expect("a message");
        &buffer[..len] == b"STOPPING=1"
    });
}
