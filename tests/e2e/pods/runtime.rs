//! A runtime that makes mistakes: wrong paths, and calls that are repeated, late, parallel or
//! killed.

use std::fs;
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

use super::plain::{Plain, assert_fails, assert_no_files, node_and_pod};
use crate::lab::node::Node;
use crate::lab::plugin::Call;
use crate::lab::snapshot::Snapshot;
use crate::lab::strace::{Blow, Syscall};

fn del_with_empty_netns(node: &Node, pod: &Plain, leg: usize) -> Call {
    let network = node.network(&Plain::settings(), None);
    Call::cni("DEL", &network, &pod.id, "", &format!("net{leg}"))
}

/// Attaches a pod, changes the target of its path, and detaches it.
fn del_when_the_path_is(what: &str, change: impl Fn(&Node, &Plain)) {
    for named in [true, false] {
        let (node, pod) = node_and_pod();
        let before = Snapshot::take(&node);
        pod.both(&node, "ADD");
        assert!(pod.has_rules(), "the pod is served");
        change(&node, &pod);
        for leg in [1, 0] {
            let call = if named {
                pod.call(&node, "DEL", leg)
            } else {
                del_with_empty_netns(&node, &pod, leg)
            };
            let ran = node.call(&call);
            ran.assert_success("DEL");
            assert_eq!(ran.stdout, "", "DEL prints nothing");
        }
        assert_no_files(&node, what);
        before.assert_unchanged(&Snapshot::take(&node));
    }
}

#[test]
fn del_with_the_path_gone() {
    del_when_the_path_is("nothing there", |_, pod| fs::remove_file(&pod.path).expect("remove"));
}

#[test]
fn del_with_a_link_to_nothing() {
    del_when_the_path_is("a link to nothing", |_, pod| pod.lead_to("/nonexistent/place"));
}

#[test]
fn del_with_something_else_at_the_path() {
    del_when_the_path_is("a FIFO", |_, pod| {
        fs::remove_file(&pod.path).expect("remove");
        nix::unistd::mkfifo(&pod.path, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
    });
    for place in ["/etc/hostname", "/proc", "/dev/zero", "/proc/self/ns/mnt", "/proc/version"] {
        del_when_the_path_is(place, |_, pod| pod.lead_to(place));
    }
    del_when_the_path_is("a loop of links", |_, pod| {
        pod.lead_to(pod.path.to_str().expect("UTF-8"));
    });
}

#[test]
fn del_with_the_nodes_own_namespace_at_the_path() {
    del_when_the_path_is("the node's own", |node, pod| pod.lead_to(&node.ns.path()));
}

/// A DEL without its namespace enters none and does not wait, because all locks are free.
#[test]
fn del_of_a_pod_that_has_gone_waits_for_nothing() {
    let (node, pod) = node_and_pod();
    pod.ran(&node, "ADD", 0).assert_success("ADD");
    let call = pod.call(&node, "DEL", 0);
    fs::remove_file(&pod.path).expect("remove");
    drop(pod);
    let (ran, calls) = node.traced(&call);
    ran.assert_success("DEL");
    assert_no_files(&node, "the namespace has gone");
    let locks: Vec<_> = calls.iter().filter(|call| call.name == "flock").collect();
    assert!(!locks.is_empty(), "strace sees the locks");
    for Syscall { name, line, .. } in &calls {
        assert!(!["setns", "nanosleep", "clock_nanosleep"].contains(&&**name), "{line}");
        assert!(name != "flock" || line.ends_with("= 0"), "a lock is tried again: {line}");
    }
}

/// The other pod also has symroute's rules, and keeps all of them.
#[test]
fn del_with_another_pods_namespace_at_the_path() {
    let (node, pod) = node_and_pod();
    let other = Plain::new(&node, "other");
    other.both(&node, "ADD");
    let before = other.snapshot(&node);
    pod.both(&node, "ADD");
    pod.lead_to(&other.ns.path());
    for leg in 0..2 {
        pod.ran(&node, "DEL", leg).assert_success("DEL");
        before.assert_unchanged_but_files(&other.snapshot(&node));
    }
    before.assert_unchanged(&other.snapshot(&node));
    other.both(&node, "CHECK");
}

/// The runtime makes a pod again with the same id, without a DEL in between. The old namespace may
/// still exist.
#[test]
fn add_in_a_new_namespace() {
    for is_gone in [true, false] {
        let (node, mut pod) = node_and_pod();
        pod.both(&node, "ADD");
        let fresh = Plain::new(&node, "fresh");
        let old = std::mem::replace(&mut pod.ns, fresh.ns);
        let (old, before) = if is_gone {
            drop(old);
            (None, None)
        } else {
            let taken = Snapshot::of(&old, &node);
            (Some(old), Some(taken))
        };
        pod.lead_to(&pod.ns.path());
        let clean = Snapshot::of(&pod.ns, &node);
        pod.both(&node, "ADD");
        assert!(pod.has_rules(), "the new pod is served");
        pod.both(&node, "CHECK");
        if let Some((old, before)) = old.as_ref().zip(before) {
            before.assert_unchanged_but_files(&Snapshot::of(old, &node));
        }
        pod.both(&node, "DEL");
        clean.assert_unchanged_but_files(&pod.snapshot(&node));
        assert_no_files(&node, "a pod that was made anew");
    }
}

#[test]
fn calls_twice_and_late() {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    pod.both(&node, "ADD");
    let once = pod.snapshot(&node);
    pod.both(&node, "ADD");
    once.assert_unchanged(&pod.snapshot(&node));
    // The address belongs to another pod by now.
    let next = Plain::new(&node, "next");
    next.both(&node, "ADD");
    let of_next = next.snapshot(&node);
    pod.both(&node, "DEL");
    of_next.assert_unchanged_but_files(&next.snapshot(&node));
    pod.both(&node, "DEL");
    next.both(&node, "CHECK");
    next.both(&node, "DEL");
    before.assert_unchanged(&pod.snapshot(&node));
}

/// A changed or invalid configuration must not prevent the end of a pod.
#[test]
fn del_with_another_configuration() {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    let path = pod.path.to_str().expect("UTF-8");
    for settings in [
        json!({"scope": "host"}),
        json!({"scope": 7, "uplinks": {}}),
        json!({"scope": "pod", "backend": "nftables", "uplinks": ["nothing*"], "markMask": "0xff0000"}),
    ] {
        pod.both(&node, "ADD");
        for leg in 0..2 {
            let network = node.network(&settings, None);
            let ran = node.cni("DEL", &network, &pod.id, path, &format!("net{leg}"));
            ran.assert_success("DEL with other settings");
        }
        before.assert_unchanged(&pod.snapshot(&node));
    }
    pod.both(&node, "ADD");
    let served = pod.snapshot(&node);
    // A DEL that the plugin cannot parse fails and changes nothing: it may be meant for another
    // pod.
    for (garbage, code) in
        [("", 6), ("{", 6), ("\0\0\0", 6), ("[]", 6), ("{\"scope\": \"pod\"}", 7)]
    {
        assert_fails(&node.cni("DEL", garbage, &pod.id, path, "net0"), code, &[]);
        served.assert_unchanged(&pod.snapshot(&node));
    }
    pod.both(&node, "DEL");
    before.assert_unchanged(&pod.snapshot(&node));
}

#[test]
fn check_names_what_is_missing() {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    pod.both(&node, "ADD");
    pod.ns.nft("flush table inet symroute");
    let ran = pod.ran(&node, "CHECK", 0);
    assert_fails(&ran, 102, &["table inet symroute"]);
    pod.both(&node, "ADD");
    pod.both(&node, "CHECK");
    pod.ns.nft("delete table inet symroute");
    assert_fails(&pod.ran(&node, "CHECK", 0), 102, &["not in force"]);
    pod.both(&node, "ADD");
    pod.ns.ip("rule del priority 402");
    assert_fails(&pod.ran(&node, "CHECK", 0), 102, &["net0"]);
    pod.both(&node, "ADD");
    pod.both(&node, "DEL");
    before.assert_unchanged(&pod.snapshot(&node));
}

fn gc(node: &Node, valid: &[(&str, &str)]) -> Call {
    node.gc_call(&Plain::settings(), valid)
}

#[test]
fn gc_takes_what_is_not_listed() {
    let (node, pod) = node_and_pod();
    let gone = Plain::new(&node, "gone");
    let before = pod.snapshot(&node);
    pod.both(&node, "ADD");
    gone.both(&node, "ADD");
    let id = gone.id.clone();
    fs::remove_file(&gone.path).expect("remove the path");
    drop(gone);
    node.call(&gc(&node, &[(&pod.id, "net0")])).assert_success("GC");
    let left: Vec<_> = fs::read_dir(node.dir.join("run/netns")).expect("the pods").collect();
    assert_eq!(left.len(), 1, "of {} and {id}: {left:?}", pod.id);
    pod.ran(&node, "CHECK", 0).assert_success("CHECK of what is listed");
    assert!(!pod.ran(&node, "CHECK", 1).success, "what is not listed is detached");
    node.call(&gc(&node, &[])).assert_success("GC");
    before.assert_unchanged(&pod.snapshot(&node));
}

/// The next GC removes what an earlier DEL could not.
#[test]
fn gc_ends_what_a_del_has_begun() {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    pod.ran(&node, "ADD", 0).assert_success("ADD");
    let call = pod.call(&node, "DEL", 0);
    let (_, calls) = node.traced(&call);
    pod.ran(&node, "ADD", 0).assert_success("ADD");
    let step = calls.iter().find(|call| call.name == "setns").expect("the pod is entered");
    assert!(!node.struck(&call, step, Blow::Kill).success, "DEL is killed");
    assert!(pod.has_rules(), "DEL was killed before it did its work");
    node.call(&gc(&node, &[])).assert_success("GC");
    before.assert_unchanged(&pod.snapshot(&node));
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let (node, pod) = node_and_pod();
    pod.ns.ip("rule add from 192.0.2.1 lookup 47001 priority 1000");
    let before = pod.snapshot(&node);
    let on_node = Snapshot::take(&node);
    let set =
        json!({"scope": "pod", "backend": "nftables", "uplinks": ["net*"], "tableBase": 47000});
    for leg in 0..2 {
        let ran = node.call(&pod.call_with(&node, "ADD", leg, &set));
        assert_fails(&ran, 7, &["tableBase"]);
        before.assert_unchanged(&pod.snapshot(&node));
    }
    on_node.assert_unchanged(&Snapshot::take(&node));
}

#[test]
fn adds_at_the_same_time() {
    let node = Node::new("node");
    let pods: Vec<_> = (0..4).map(|_| Plain::new(&node, "pod")).collect();
    let before: Vec<_> = pods.iter().map(|pod| pod.snapshot(&node)).collect();
    for _ in 0..6 {
        let each = |verb: &'static str| {
            thread::scope(|scope| {
                for pod in &pods {
                    for leg in 0..2 {
                        let node = &node;
                        scope.spawn(move || pod.ran(node, verb, leg).assert_success(verb));
                    }
                }
            });
        };
        each("ADD");
        each("CHECK");
        each("DEL");
        assert_no_files(&node, "all pods have gone");
    }
    for (pod, before) in pods.iter().zip(&before) {
        before.assert_unchanged(&pod.snapshot(&node));
    }
}

/// Pods start and end all the time, so the plugin often creates and removes their common folder.
#[test]
fn pods_that_come_and_go() {
    let node = Node::new("node");
    let pods: Vec<_> = (0..4).map(|_| Plain::new(&node, "pod")).collect();
    thread::scope(|scope| {
        for pod in &pods {
            let node = &node;
            scope.spawn(move || {
                for _ in 0..25 {
                    pod.ran(node, "ADD", 0).assert_success("ADD");
                    pod.ran(node, "DEL", 0).assert_success("DEL");
                }
            });
        }
    });
    assert_no_files(&node, "all pods have gone");
}

/// Kills a call at each of its changes, and at each entry into a namespace. The runtime's DEL then
/// cleans up.
fn kill_at_each_change(verb: &str, prepare: impl Fn(&Node, &Plain)) {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    let quiet = json!({"scope": "pod", "backend": "nftables", "uplinks": ["net*"], "log": {"level": "off"}});
    let call = pod.call_with(&node, verb, 0, &quiet);
    prepare(&node, &pod);
    let (ran, calls) = node.traced(&call);
    ran.assert_success("the run without a blow");
    pod.both(&node, "DEL");
    before.assert_unchanged(&pod.snapshot(&node));
    let main = calls.iter().position(|call| call.name == "sigaltstack").unwrap_or(0);
    let steps: Vec<_> = calls.iter().skip(main).collect();
    let steps = steps.into_iter().filter(|step| step.is_change() || step.name == "setns");
    let mut walked = 0;
    for step in steps {
        prepare(&node, &pod);
        assert!(!node.struck(&call, step, Blow::Kill).success, "a killed call does not succeed");
        pod.both(&node, "DEL");
        let left = before.difference(&pod.snapshot(&node));
        assert!(left.is_empty(), "at {}: {}\n{left}", step.name, step.line);
        walked += 1;
    }
    println!("points walked: {walked}");
    assert!(walked > 12, "{walked} points");
}

#[test]
fn an_add_is_killed() {
    kill_at_each_change("ADD", |_, _| ());
}

#[test]
fn a_del_is_killed() {
    kill_at_each_change("DEL", |node, pod| pod.ran(node, "ADD", 0).assert_success("ADD"));
}

#[test]
fn without_the_capability_the_error_is_clear() {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    let bare = ["setpriv", "--bounding-set=-sys_admin"];
    let ran = node.call_under(&bare, &pod.call(&node, "ADD", 0));
    assert_fails(&ran, 8, &["CAP_SYS_ADMIN", "enter the network namespace"]);
    before.assert_unchanged(&pod.snapshot(&node));
    pod.both(&node, "ADD");
    let ran = node.call_under(&bare, &pod.call(&node, "DEL", 0));
    ran.assert_success("DEL");
    pod.both(&node, "DEL");
    before.assert_unchanged(&pod.snapshot(&node));
}

/// The plugin returns from the pod's namespace. Inside it starts no program, and opens only
/// sysctls, its own files, and files about the kernel or its namespace.
#[test]
fn the_pod_is_left_again() {
    let (node, pod) = node_and_pod();
    let inode = |path: &str| {
        use std::os::unix::fs::MetadataExt as _;
        format!("net:[{}]", fs::metadata(path).expect("a namespace").ino())
    };
    let (own, theirs) = (inode(&node.ns.path()), pod.ns.name().to_owned());
    for verb in ["ADD", "CHECK", "DEL"] {
        let (ran, calls) = node.traced(&pod.call(&node, verb, 0));
        ran.assert_success(verb);
        assert_eq!(calls[0].name, "execve", "the plugin itself is started");
        let calls = &calls[1..];
        let entries: Vec<&Syscall> = calls.iter().filter(|call| call.name == "setns").collect();
        assert!(!entries.is_empty() && entries.len() % 2 == 0, "{verb}: {} setns", entries.len());
        let mut inside = false;
        let (mut opened, mut sockets, mut connected) = (0, 0, 0);
        for call in calls {
            assert!(
                !["execve", "execveat", "fork", "vfork"].contains(&&*call.name),
                "{}",
                call.line
            );
            if call.name == "setns" {
                inside = !inside;
                let wanted = if inside { &theirs } else { &own };
                assert!(call.line.contains(wanted.as_str()), "{verb}: {}, not {wanted}", call.line);
            }
            sockets += usize::from(inside && call.line.starts_with("socket(AF_NETLINK"));
            let to_kernel = call.name == "connect" && call.line.contains("nl_pid=0");
            connected += usize::from(inside && to_kernel);
            if inside && call.name == "openat" {
                let run = call.line.contains("/run/symroute");
                let fine =
                    ["/proc/sys/net/", "/proc/thread-self/ns/net", "symroute.log", "/sys/module"];
                assert!(run || fine.iter().any(|path| call.line.contains(path)), "{}", call.line);
                opened += 1;
            }
        }
        assert!(sockets > 0 && sockets == connected, "{verb}: each socket trusts the kernel alone");
        assert!(!inside, "{verb}: the last entry is into the own namespace");
        assert!(opened > 0, "{verb}: nothing was opened, so nothing was seen");
    }
    pod.both(&node, "DEL");
    assert_no_files(&node, "all has gone");
}

/// A call waits for another one that holds the lock of the pod's state, but no longer than it says.
#[test]
fn a_call_that_waits_comes_to_an_end() {
    let (node, pod) = node_and_pod();
    pod.both(&node, "ADD");
    let folder = fs::read_dir(node.dir.join("run/netns")).expect("the pods").next();
    let folder = folder.expect("a pod").expect("an entry").path();
    let folder = fs::File::open(folder).expect("open the folder");
    let held = Flock::lock(folder, FlockArg::LockExclusiveNonblock);
    let held = held.map_err(|(_, errno)| errno).expect("a free lock");
    let ran = pod.ran(&node, "ADD", 0);
    let del = pod.ran(&node, "DEL", 0);
    drop(held);
    assert_fails(&ran, 11, &["waited 10 s"]);
    del.assert_success("DEL");
    pod.both(&node, "DEL");
    assert_no_files(&node, "all has gone");
}
