//! Folders that the agent watches: conflists and plugins.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::json;

use crate::agent::{answers, conflist, status};
use crate::lab::agent::{Agent, until};
use crate::lab::backend::Backend;
use crate::lab::node::Node;
use crate::lab::two_nics::{NICS, NODE, two_nics};

#[test]
fn settings_of_the_conflist_are_followed() {
    let layout = two_nics();
    let (node, folder) = (&layout.node, layout.node.dir.join("net.d"));
    let uplinks = json!({"uplinks": NICS});
    let file = folder.join("10-lab.conflist");
    // Without a conflist, even without its folder, the agent uses the defaults. All NICs here are
    // veths, so `"auto"` selects the one of main's default route.
    let agent = Agent::start(node, &["--conf-dir", folder.to_str().expect("UTF-8")]);
    until("ready with the defaults", || agent.get("/readyz").0 == 200);
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
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
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
    let receive = || {
        let mut buffer = [0; 512];
        loop {
            match socket.recv(&mut buffer) {
                // For example after the machine was paused.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                len => {
                    let len = len.expect("a message");
                    return String::from_utf8_lossy(&buffer[..len]).into_owned();
                }
            }
        }
    };
    while told.iter().filter(|text| *text == "WATCHDOG=1").count() < 5
        || !told.iter().any(|text| text == "READY=1")
    {
        told.push(receive());
    }
    assert!(agent.end(nix::sys::signal::Signal::SIGTERM).success());
    until("the end is reported", || receive() == "STOPPING=1");
}

/// Makes a folder with the primary's conflist and adds symroute's entry to it. Returns the conflist
/// and the arguments of an agent that keeps the entry there.
fn managed(node: &Node) -> (PathBuf, Vec<String>) {
    let (folder, state) = (node.dir.join("net.d"), node.dir.join("lasting"));
    fs::create_dir(&folder).expect("make the folder");
    let file = folder.join("10-lab.conflist");
    fs::write(&file, conflist(node, None)).expect("write the primary's conflist");
    let entry = node.dir.join("entry.json");
    let mut settings = json!({"type": "symroute", "uplinks": NICS});
    Backend::of_run().into_settings(&mut settings);
    fs::write(&entry, settings.to_string()).expect("write the entry");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let places = ["--conf-dir".into(), text(&folder), "--state-dir".into(), text(&state)];
    let entry = text(&entry);
    let mut add = vec!["conflist", "add", "--config", &entry];
    add.extend(places.iter().map(String::as_str));
    node.symroute(&add).assert_success("put our entry in");
    (file, [&["--manage-conflist".into()], &places[..]].concat())
}

fn has_us(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.contains("symroute"))
}

#[test]
fn the_entry_is_put_back_when_the_primary_rewrites_its_conflist() {
    let layout = two_nics();
    let node = &layout.node;
    let (file, arguments) = managed(node);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = Agent::ready(node, &arguments);
    assert!(answers(&layout, NODE[1], 10250), "the entry's settings are in force");
    for round in 1..=2 {
        fs::write(&file, conflist(node, None)).expect("rewrite the conflist");
        until("our entry is back", || has_us(&file));
        until("counted", || agent.metric("symroute_conflist_rewrites_total") == round);
        until("ready", || agent.get("/readyz").0 == 200);
    }
    let text = fs::read_to_string(&file).expect("read the conflist");
    assert!(text.contains("eth1"), "the entry as it was wanted: {text}");
    assert!(answers(&layout, NODE[1], 10250));
}

/// Serves the node's own sockets before there is a primary, with the settings of the entry that
/// waits for it. The defaults would leave eth1 out.
#[test]
fn the_settings_of_an_entry_that_waits_for_the_primary() {
    let layout = two_nics();
    let node = &layout.node;
    let (file, arguments) = managed(node);
    node.down();
    fs::remove_file(&file).expect("the primary has not come yet");
    assert!(!answers(&layout, NODE[1], 10250), "nothing is in force");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = Agent::start(node, &arguments);
    until("the node answers by eth1", || answers(&layout, NODE[1], 10250));
    assert_eq!(agent.get("/readyz").0, 503, "the entry is not in");
    fs::write(&file, conflist(node, None)).expect("the primary comes");
    until("the entry is in", || has_us(&file));
    until("the agent is ready", || agent.get("/readyz").0 == 200);
    assert!(answers(&layout, NODE[1], 10250));
}

/// A `DaemonSet` may have mounted a directory that the runtime does not read. The agent cannot read
/// the runtime's configuration; it only sees that the primary's program is missing.
#[test]
fn no_entry_where_the_primarys_program_is_not() {
    let layout = two_nics();
    let node = &layout.node;
    let (file, mut arguments) = managed(node);
    fs::write(&file, conflist(node, None)).expect("write the primary's conflist");
    let (from, bin) = (node.dir.join("from"), node.dir.join("bin"));
    fs::write(&from, "a program").expect("write the program");
    fs::create_dir(&bin).expect("make the folder");
    fs::write(bin.join("bridge"), "of no network here").expect("write another program");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let places = ["--install", &text(&from), "--bin-dir", &text(&bin)].map(str::to_owned);
    arguments.extend(places);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = Agent::start(node, &arguments);
    let mut said = String::new();
    until("the agent says why it is not ready", || {
        let (code, text) = agent.get("/readyz");
        said = text;
        code == 503 && said.contains("the primary's program ptp is not there")
    });
    assert!(said.contains("bin: ") && said.contains("hostPath"), "{said}");
    until("it looks again", || agent.metric("symroute_binary_installs_total") > 0);
    assert!(!has_us(&file), "the conflist is as it was");
    // Stands in for a corrected mount. In a container the link's target may not exist.
    std::os::unix::fs::symlink("/usr/lib/no-such-folder/ptp", bin.join("ptp")).expect("link it");
    until("the entry is in", || has_us(&file));
    until("the agent is ready", || agent.get("/readyz").0 == 200);
}

#[test]
fn a_conflist_that_somebody_else_wants_otherwise_is_left() {
    let layout = two_nics();
    let node = &layout.node;
    let (file, arguments) = managed(node);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = Agent::ready(node, &arguments);
    let primary = conflist(node, None);
    let mut told = String::new();
    until("the agent gives up", || {
        if has_us(&file) {
            let temporary = file.with_extension("new");
            fs::write(&temporary, &primary).expect("write a conflist");
            fs::rename(&temporary, &file).expect("rewrite the conflist");
        }
        let (code, text) = agent.get("/readyz");
        told = text;
        code == 503 && (told.contains("again and again") || told.contains("went missing"))
    });
    println!("{told}");
    assert!(told.contains("; "), "a way out: {told}");
    assert!(told.contains("10-lab.conflist") || told.contains("net.d"), "where: {told}");
    assert_eq!(fs::read_to_string(&file).expect("read"), primary, "left as it is");
    assert!(answers(&layout, NODE[1], 10250), "what is in force stays");
}

#[test]
fn a_second_agent_is_refused() {
    let layout = two_nics();
    let node = &layout.node;
    let config = crate::agent::plugin_object(node, &json!({"uplinks": NICS}));
    let agent = Agent::ready(node, &["--config", &config]);
    let second = node.symroute(&["agent", "--config", &config, "--listen", "off"]);
    let wanted = format!("process {}", agent.pid());
    assert!(second.code == Some(1) && second.stderr.contains(&wanted), "{}", second.stderr);
    assert!(agent.end(nix::sys::signal::Signal::SIGKILL).code().is_none());
    let third = Agent::ready(node, &["--config", &config]);
    assert!(third.end(nix::sys::signal::Signal::SIGTERM).success());
    node.down();
    assert!(!node.dir.join("run/agent").exists(), "nothing is left of it");
}

/// The kernel takes time to close the files of a killed agent, and so to release its lock.
#[test]
fn down_waits_for_an_agent_that_dies() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({"uplinks": NICS}));
    let path = node.dir.join("run/agent");
    let file = fs::File::create(&path).expect("make an agent's file");
    let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error);
    let held = held.expect("lock it");
    let looks = Inotify::init(InitFlags::empty()).expect("make a watch");
    looks.add_watch(&path, AddWatchFlags::IN_CLOSE).expect("watch the file");
    thread::scope(|scope| {
        let down = scope.spawn(|| node.down());
        // `down` has opened the file and found it locked.
        looks.read_events().expect("somebody looks");
        drop(held);
        down.join().expect("down");
    });
    assert!(!path.exists(), "nothing is left of it");
}
