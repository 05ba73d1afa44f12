//! What the tool reports about a pod with symroute's rules, and about its node.

use std::fs;

use serde_json::{Value, json};

use super::site::{CLIENT, Site, address, settings};

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn status_shows_the_pod_and_not_the_node() {
    let site = Site::new(3);
    let netns = site.pod.path();
    let status = |words: &[&str]| {
        let ran = site.node.symroute(&[&["status", "--json"], words].concat());
        (parsed(&ran.stdout), ran.code)
    };
    let in_pod = ["--netns", &netns];
    let (report, code) = status(&in_pod);
    assert_eq!((&report["inForce"], code), (&json!(false), Some(3)), "before the first ADD");

    for number in 0..3 {
        site.add(&settings(), number);
    }
    let (report, code) = status(&in_pod);
    let names: Vec<_> =
        report["uplinks"].as_array().expect("a list").iter().map(|u| &u["name"]).collect();
    assert_eq!(names, ["eth0", "net1", "net2"]);
    assert_eq!(
        (&report["inForce"], &report["attachments"], code),
        (&json!(true), &json!(3), Some(0))
    );
    assert_eq!(report["uplinks"][1]["ipv4"]["learnedFrom"], "result of its plugin");
    assert_eq!(report["off"], json!([]));
    let (report, code) = status(&[]);
    assert_eq!(
        (&report["inForce"], &report["pods"], code),
        (&json!(false), &json!(1), Some(3)),
        "the node"
    );
    let listed = site.node.symroute(&["attachments", "--json"]).stdout;
    let listed = parsed(&listed);
    assert_eq!(listed["enrolled"].as_array().map(Vec::len), Some(3), "{listed}");

    // The pod's counters count its own traffic.
    site.assert_answers();
    let (report, _) = status(&in_pod);
    assert_eq!(report["counters"]["rpFilterDrops"], json!(site.rp_filter_drops()));
    assert!(report["uplinks"][1]["counters"]["connectionsBound"].as_u64() >= Some(4), "{report}");

    for number in [2, 1] {
        site.detach(&settings(), number);
    }
    let table = site.node.symroute(&["status", "--netns", &netns]);
    assert_eq!(table.code, Some(0), "{}", table.stdout);
    assert!(table.stdout.contains("fewer than two interfaces"), "{}", table.stdout);
    // `--force` also removes the last attachment, for which no DEL will follow.
    site.node.symroute(&["down", "--force"]).assert_success("down --force");
    assert_eq!(status(&in_pod).1, Some(3));
}

#[test]
fn explain_says_what_becomes_of_a_request_in_the_pod() {
    let site = Site::new(2);
    let netns = site.pod.path();
    let explain = || {
        let words = ["explain", "--json", "--netns", &netns, "--from", CLIENT, "--to"];
        let ran = site.node.symroute(&[&words[..], &[&address(1), "--in", "net1"]].concat());
        (parsed(&ran.stdout)["requests"][0].clone(), ran.code)
    };
    let (_, code) = explain();
    assert_eq!(code, Some(4), "strict rp_filter drops it without the plugin");
    for number in 0..2 {
        site.add(&settings(), number);
    }
    let (request, code) = explain();
    assert_eq!(code, Some(0), "{request:#}");
    site.assert_answers();
}

#[test]
fn a_path_that_is_no_pod_is_an_error() {
    let site = Site::new(1);
    let own = site.node.ns.path();
    for path in ["/run/netns/absent", "/etc/hostname", own.as_str()] {
        let ran = site.node.symroute(&["status", "--netns", path]);
        assert_eq!(ran.code, Some(1), "{path}: {}", ran.stdout);
        assert!(ran.stderr.contains("network namespace of a pod"), "{path}: {}", ran.stderr);
    }
}

/// A container may lack the folder of the pods' namespaces. `down` then leaves the rules and the
/// files of such a pod.
#[test]
fn down_keeps_the_files_of_a_pod_that_it_can_not_see() {
    let site = Site::new(2);
    for number in 0..2 {
        site.add(&settings(), number);
    }
    let of_pods = site.node.dir.join("run/netns");
    let folder = fs::read_dir(&of_pods).expect("list the pods").next().expect("a pod");
    let file = folder.expect("a pod").path().join("namespace");
    let seen = fs::read_to_string(&file).expect("read the file");
    fs::write(&file, seen.replace("/run/netns/", "/nowhere/")).expect("write the file");
    let ran = site.node.symroute(&["down", "--force"]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("can't be seen"), "{}", ran.stderr);
    site.assert_answers();

    fs::write(&file, seen).expect("write the file");
    let rules = || site.pod.exec(&["ip", "rule"], "");
    assert!(rules().contains("47002"));
    site.node.symroute(&["down", "--force"]).assert_success("down --force");
    assert!(!rules().contains("47002") && !of_pods.exists());
}
