//! The file for a problem report: what it contains, what it never contains, and that the tool
//! changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::backend::Backend;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Node;
use crate::lab::plugin::{Call, Ran, TOOL};
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, two_nics};

/// The host name that the tool finds.
const HOST: &str = "lab-host-17.example.internal";
/// A secret that must never be in the file.
const SECRET: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6";

/// Makes a folder with a token in a conflist and a kubeconfig beside it.
fn conf_dir(node: &Node) -> PathBuf {
    let folder = node.dir.join("net.d");
    fs::create_dir_all(&folder).expect("make the conf dir");
    let mut ours = json!({"type": "symroute", "uplinks": NICS, "password": SECRET});
    ours["log"] = json!({"level": "debug", "file": node.log()});
    Backend::of_run().into_settings(&mut ours);
    let conflist = json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [
            {
                "type": "calico",
                "mtu": 1440,
                "kubernetes": {"k8s_auth_token": SECRET, "kubeconfig": "/etc/cni/net.d/kubeconfig"},
                "etcd_key": SECRET,
            },
            ours,
        ],
    });
    fs::write(folder.join("10-calico.conflist"), conflist.to_string()).expect("write");
    fs::write(folder.join("kubeconfig"), format!("token: {SECRET}")).expect("write");
    folder
}

/// Calls the tool on a node with its own host name and with a secret among its variables.
fn called(node: &Node, under: &[&str], arguments: &[&str]) -> Ran {
    let named = format!("echo {HOST} >/proc/sys/kernel/hostname && exec \"$@\"");
    let prefix = ["unshare", "--uts", "sh", "-c", &named, "sh"];
    let call = Call::tool(arguments).with("SERVICE_ACCOUNT_TOKEN", SECRET);
    node.call_program(&[&prefix[..], under].concat(), &call)
}

/// Makes a bundle and unpacks it with tar: its bytes, and the text of each file by its name.
fn bundle(node: &Node, name: &str, more: &[&str]) -> (Vec<u8>, BTreeMap<String, String>) {
    let (file, folder) = (node.dir.join(name), conf_dir(node));
    let paths = [file.to_str().expect("UTF-8"), folder.to_str().expect("UTF-8")];
    let words = [&["bundle", paths[0], "--conf-dir", paths[1]], more].concat();
    let ran = called(node, &[TOOL], &words);
    ran.assert_success("bundle");
    assert!(ran.stdout.starts_with(paths[0]), "{}", ran.stdout);
    let rights = fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(rights & 0o7777, 0o600, "only its owner may read it");
    (fs::read(&file).expect("read the file"), unpacked(node, &file))
}

fn unpacked(node: &Node, file: &Path) -> BTreeMap<String, String> {
    let tar = |words: &[&str]| {
        let output = Command::new("tar").args(words).arg(file).output().expect("run tar");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "tar {words:?}: {said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let target = node.dir.join("unpacked");
    fs::create_dir_all(&target).expect("make a folder");
    let listed = tar(&["-tf"]);
    tar(&["-C", target.to_str().expect("UTF-8"), "-xf"]);
    let read = |name: &str| {
        let text = fs::read_to_string(target.join(name)).expect("read a file");
        (name.strip_prefix("symroute-bundle/").expect("one folder").to_owned(), text)
    };
    let found = listed.lines().map(read).collect();
    fs::remove_dir_all(&target).expect("remove the folder");
    found
}

fn json_of(files: &BTreeMap<String, String>, name: &str) -> Value {
    serde_json::from_str(&files[name]).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The requests in the table of `explain --all`.
fn requests_of(table: &Value) -> Vec<Value> {
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let cells = list(&table["rows"]).into_iter().flat_map(|row| list(&row["cells"]));
    cells.flat_map(|cell| list(&cell["requests"])).collect()
}

#[test]
fn it_has_what_a_report_needs() {
    let layout = two_nics();
    let node = &layout.node;
    node.add(&json!({ "uplinks": NICS }), &layout.pods[0]);
    assert_all_work(&[layout.flow_to_host()]);
    let before = Snapshot::take(node);
    let (bytes, files) = bundle(node, "one.tar", &[]);
    before.assert_unchanged(&Snapshot::take(node));
    let names: BTreeSet<&str> = files.keys().map(String::as_str).collect();
    for wanted in [
        "version.json",
        "status.json",
        "doctor.json",
        "explain-ipv4.json",
        "explain-ipv6.json",
        "links.json",
        "rules-ipv4.txt",
        "rules-ipv6.txt",
        "routes-ipv4.txt",
        "routes-ipv6.txt",
        "neighbours.json",
        "netfilter.json",
        "sysctls.json",
        "counters/netstat.txt",
        "counters/snmp.txt",
        "state.json",
        "conflists.json",
        "log.txt",
        "missing.txt",
    ] {
        assert!(names.contains(wanted), "{wanted} in {names:?}");
    }
    let read = |name: &str| json_of(&files, name);
    assert_eq!(read("version.json")["host"], HOST);
    assert_eq!(read("status.json")["uplinks"][1]["counters"]["connectionsBound"], 1);
    assert!(read("doctor.json")["findings"].is_array());
    // On each uplink to each address of the node.
    let requests = requests_of(&read("explain-ipv4.json"));
    assert!(requests.len() >= 4, "{requests:?}");
    assert!(files["rules-ipv4.txt"].contains("402: fwmark 0x200/0xf00 lookup 47002"));
    assert!(files["routes-ipv4.txt"].contains("default via 10.21.0.1 dev eth1 table 47002"));
    let routers = read("neighbours.json");
    let first = routers.as_array().expect("routers").iter().find(|r| r["router"] == "10.21.0.1");
    assert!(first.expect("the router")["hardwareAddress"].is_string(), "{routers}");
    assert_eq!(read("sysctls.json")["ipv4/conf/eth1/src_valid_mark"], "1");
    assert!(read("state.json")["node.json"]["settings"].is_object());
    assert!(read("state.json").as_object().expect("files").keys().any(|k| k.starts_with("pods/")));
    assert!(files["log.txt"].contains("set src_valid_mark of eth1"), "{}", files["log.txt"]);
    let calico = &read("conflists.json")["10-calico.conflist"]["plugins"][0];
    assert_eq!(*calico, json!({"type": "calico", "mtu": 1440, "keysLeftOut": 2}));
    assert_eq!(read("conflists.json")["kubeconfig"], Value::Null, "no more than its name");
    if Backend::of_run() == Backend::Nftables {
        assert!(files["nftables.txt"].contains("table inet symroute {"));
        assert!(read("netfilter.json")["inet"]["chains"]["bind_2"]["rules"].as_u64() > Some(0));
    } else {
        let rules = read("netfilter.json")["mangle"].to_string();
        assert!(rules.contains("symroute-prerouting"), "{rules}");
        assert!(read("netfilter.json")["ipsets"]["symroute"].is_object());
    }
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains(SECRET), "a secret");
    // The tool does not overwrite an existing file.
    let file = node.dir.join("one.tar");
    let ran = called(node, &[TOOL], &["bundle", file.to_str().expect("UTF-8")]);
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    assert!(ran.stderr.contains("this file exists already"), "{}", ran.stderr);
    assert_eq!(fs::read(&file).expect("read"), bytes);
}

/// A node with an address for each Service, as IPVS creates them.
#[test]
fn many_addresses_are_not_all_explained() {
    let layout = two_nics();
    let node = &layout.node;
    let batch: Vec<_> = (1..=100).map(|n| format!("addr add 10.96.0.{n}/32 dev lo\n")).collect();
    node.ns.ip(&batch.concat());
    node.up(&json!({ "uplinks": NICS }));
    let (_, files) = bundle(node, "many.tar", &[]);
    assert!(files["missing.txt"].contains("explain-ipv4.json: more than 64 addresses"));
    let answers = json_of(&files, "explain-ipv4.json");
    let to = |answer: &Value| answer["requests"][0]["to"].clone();
    let to: Vec<_> = answers.as_array().expect("answers").iter().map(to).collect();
    assert_eq!(to, [json!("10.20.0.10"), json!("10.21.0.10")]);
}

/// Makes bundles without symroute: on standard output, and in a file named after the host.
#[test]
fn a_node_without_symroute() {
    let layout = two_nics();
    let node = &layout.node;
    let before = Snapshot::take(node);
    let target = node.dir.join("here");
    fs::create_dir(&target).expect("make a folder");
    let target_text = target.to_str().expect("UTF-8");
    let within = ["sh", "-c", "cd \"$0\" && exec \"$@\"", target_text, TOOL];
    called(node, &within, &["bundle"]).assert_success("bundle");
    let stream = ["sh", "-c", "\"$@\" >\"$0\"/stream.tar", target_text, TOOL];
    called(node, &stream, &["bundle", "-"]).assert_success("bundle -");
    before.assert_unchanged(&Snapshot::take(node));
    let names = fs::read_dir(&target).expect("list").map(|entry| entry.expect("a file").path());
    let mut found: Vec<PathBuf> = names.collect();
    found.sort();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[1].display().to_string().contains(&format!("/symroute-bundle-{HOST}-2")));
    for file in found {
        let files = unpacked(node, &file);
        assert_eq!(json_of(&files, "status.json")["inForce"], false);
        let found = json_of(&files, "doctor.json")["findings"].to_string();
        assert!(found.contains("not-in-force"), "{found}");
    }
}

/// The words of a text, made of letters, digits, `.` and `:`.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || ".:".contains(c))).collect()
}

#[test]
fn it_can_be_anonymous() {
    let layout = two_nics();
    let node = &layout.node;
    node.ns.ip("addr add fd12:3456:789a::10/64 dev eth1 nodad");
    node.add(&json!({ "uplinks": NICS }), &layout.pods[0]);
    fs::write(node.log(), format!("{HOST}: no route to 10.21.0.1, ip-10-21-0-10\n"))
        .expect("write");
    let (bytes, files) = bundle(node, "anonymous.tar", &["--anonymous"]);
    let text = String::from_utf8_lossy(&bytes).to_lowercase();
    let macs = NICS.map(|nic| node.ns.mac(nic));
    let found = words(&text);
    for secret in [
        "10.20.0.10",
        "10.21.0.10",
        "10.20.0.1",
        "10.21.0.1",
        "10.20.0.50",
        "10.20.0.0",
        "10.21.0.0",
    ] {
        assert!(!found.contains(secret), "{secret}");
    }
    for secret in ["fd12:3456:789a:", "10-21-0-10", &macs[0], &macs[1], "lab-host-17", SECRET] {
        assert!(!text.contains(&secret.to_lowercase()), "{secret}");
    }
    // An address has the same pseudonym everywhere, and subnets are still subnets.
    let status = json_of(&files, "status.json");
    let links = json_of(&files, "links.json");
    let eth1 = links.as_array().expect("links").iter().find(|l| l["name"] == "eth1").expect("eth1");
    let address = |of: &Value| of["ip"].as_str().expect("an address").to_owned();
    let own = address(&eth1["addresses"][0]);
    let uplink = &status["uplinks"][1];
    assert_eq!(uplink["addresses"][0], format!("{own}/24"));
    let router = uplink["ipv4"]["gateway"].as_str().expect("a router");
    let net = |ip: &str| ip.rsplit_once('.').expect("IPv4").0.to_owned();
    assert_eq!(net(router), net(&own), "the router is in the NIC's subnet");
    assert!(own.starts_with("10."), "it is private still: {own}");
    assert!(
        files["routes-ipv4.txt"].contains(&format!("default via {router} dev eth1 table 47002"))
    );
    assert!(files["routes-ipv4.txt"].contains(&format!("{}.0/24 dev eth1", net(&own))));
    let requests = requests_of(&json_of(&files, "explain-ipv4.json"));
    assert!(requests.iter().any(|request| request["to"] == own), "{requests:?}");
    assert_eq!(requests[0]["from"], "192.0.2.1", "documentation addresses stay");
    let dashed = own.replace('.', "-");
    assert_eq!(files["log.txt"], format!("host-1: no route to {router}, ip-{dashed}\n"));
    // Numbers that are not addresses stay.
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("read");
    let version = json_of(&files, "version.json");
    assert_eq!(version["kernel"], kernel.trim());
    assert_eq!(
        (&version["host"], &version["symroute"]),
        (&json!("host-1"), &json!(env!("CARGO_PKG_VERSION")))
    );
    // Another bundle has other pseudonyms.
    let (_, again) = bundle(node, "again.tar", &["--anonymous"]);
    assert_ne!(again["routes-ipv4.txt"], files["routes-ipv4.txt"]);
    assert!(files["rules-ipv4.txt"].contains("402: fwmark 0x200/0xf00 lookup 47002"));
}

/// A user without root gets what the kernel allows, and a list of what is missing.
#[test]
fn without_root_the_rest_is_named() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let (copy, file) = (node.dir.join("symroutectl"), node.dir.join("user"));
    fs::copy(TOOL, &copy).expect("copy the tool");
    fs::create_dir(&file).expect("make a folder");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o777)).expect("open it");
    let file = file.join("user.tar");
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let under = [&user[..], &[copy.to_str().expect("UTF-8")]].concat();
    called(node, &under, &["bundle", file.to_str().expect("UTF-8")]).assert_success("bundle");
    let files = unpacked(node, &file);
    let missing = &files["missing.txt"];
    assert!(missing.contains("netfilter.json: ") && missing.contains("run as root"), "{missing}");
    assert!(!files.contains_key("netfilter.json"));
    assert!(missing.contains("status.json: ") && missing.contains("/run/symroute"), "{missing}");
    assert!(files["routes-ipv4.txt"].contains("table 47002"));
}
