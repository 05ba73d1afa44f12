//! Compares what `explain` says of a request with what happens to it on the wire.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::agent::plugin_object;
use crate::lab::backend::Backend;
use crate::lab::flows::{BASELINE, PATIENT, assert_all_work, assert_only_these_fail};
use crate::lab::traffic::{Connection, Proto, ask};
use crate::lab::two_nics::{CLIENT, CLIENT6, NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};
use crate::lab::verdicts::side_in_force;

/// A client's request to an address of the node or of a pod, and the NIC that it arrives on.
struct Request {
    nic: &'static str,
    to: SocketAddr,
}

impl Request {
    fn client(&self) -> &'static str {
        if self.to.is_ipv4() { CLIENT } else { CLIENT6 }
    }

    /// Whether the client gets an answer. Where it must not, the test waits only briefly.
    fn is_answered(&self, layout: &TwoNics, expected: bool) -> bool {
        let deadline = if expected { PATIENT } else { BASELINE };
        ask(&layout.client, Proto::Tcp, self.to, deadline).is_ok()
    }

    fn explain(&self, layout: &TwoNics, config: &str) -> Value {
        let to = self.to.to_string();
        let words =
            ["explain", "--from", self.client(), "--to", &to, "--in", self.nic, "--config", config];
        let json = layout.node.symroute(&[&words[..], &["--json"]].concat());
        let report: Value = serde_json::from_str(&json.stdout).expect(&json.stderr);
        let request = report["requests"][0].clone();
        let symmetric = side_in_force(&request)["symmetric"] == true;
        assert_eq!(json.code, Some(if symmetric { 0 } else { 4 }), "{request:#}");
        let text = layout.node.symroute(&words);
        assert_eq!(text.code, json.code, "{}", text.stdout);
        for line in side_in_force(&request)["story"].as_array().expect("a story") {
            assert!(text.stdout.contains(line.as_str().expect("text")), "{}", text.stdout);
        }
        request
    }
}

fn requests() -> Vec<Request> {
    let mut all = Vec::new();
    for (at, nic) in NICS.into_iter().enumerate() {
        for (address, port) in
            [(NODE[at], 10250), (NODE6[at], 10250), (POD[at], 8080), (POD6[at], 8080)]
        {
            let ip = address.parse().expect("an address");
            all.push(Request { nic, to: SocketAddr::new(ip, port) });
        }
    }
    for address in TwoNics::addresses_behind_eth1(1) {
        let ip = address.parse().expect("an address");
        all.push(Request { nic: "eth1", to: SocketAddr::new(ip, 8080) });
    }
    all
}

/// Explains and sends each request. Returns the numbers of answered and of unanswered ones.
fn compare(layout: &TwoNics, what: &str, config: &str) -> (usize, usize) {
    let mut counts = (0, 0);
    for request in requests() {
        let said = request.explain(layout, config);
        let expected = side_in_force(&said)["symmetric"] == true;
        let answered = request.is_answered(layout, expected);
        assert_eq!(answered, expected, "{what}: {} by {}: {said:#}", request.to, request.nic);
        if answered { counts.0 += 1 } else { counts.1 += 1 }
    }
    println!("explain, {what}: {} requests answered and {} not, as it says", counts.0, counts.1);
    counts
}

#[test]
fn its_verdict_is_what_happens() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let settings = json!({ "uplinks": NICS });
    let config = plugin_object(&layout.node, &settings);
    for rp_filter in ["1", "2", "0"] {
        for name in ["all", "eth0", "eth1"] {
            layout.node.ns.sysctl(&format!("ipv4/conf/{name}/rp_filter"), rp_filter);
        }
        let foreseen: Vec<bool> = requests()
            .iter()
            .map(|request| request.explain(&layout, &config)["with"]["symmetric"] == true)
            .collect();
        let (answered, lost) = compare(&layout, &format!("rp_filter {rp_filter}"), &config);
        assert!(answered > 2 && lost > 2, "{answered} and {lost}");
        layout.node.add(&settings, &pod);
        let (answered, lost) =
            compare(&layout, &format!("rp_filter {rp_filter}, with symroute"), &config);
        assert_eq!((answered, lost), (requests().len(), 0));
        assert!(foreseen.iter().all(|symmetric| *symmetric), "{foreseen:?}");
        layout.node.del(&settings, &pod);
    }
}

/// `explain` names the rule, the table and the router that an operator has to look at.
#[test]
fn it_names_rule_table_and_router() {
    let layout = two_nics();
    let node = &layout.node;
    let said = |to: &str| {
        let ran = node.symroute(&["explain", "--from", CLIENT, "--to", to, "--in", "eth1"]);
        ran.stdout
    };
    let without = said(NODE[1]);
    for wanted in [
        "203.0.113.9 -> 10.21.0.10, arrives on eth1",
        "lost: strict rp_filter drops the request at eth1",
        "the way back to 203.0.113.9 is eth0: rule 32766, table main, via 10.20.0.1",
        "net.ipv4.conf.all.rp_filter is 1",
        "the same: eth1 is no uplink",
    ] {
        assert!(without.contains(wanted), "{wanted:?} in\n{without}");
    }
    node.up(&json!({ "uplinks": NICS }));
    let with = said(NODE[1]);
    assert!(
        with.contains("answered: the reply leaves by eth1: rule 402, table 47002, via 10.21.0.1"),
        "{with}"
    );
    node.down();
    let elsewhere =
        node.symroute(&["explain", "--from", CLIENT6, "--to", NODE6[1], "--in", "eth1"]);
    assert_eq!(elsewhere.code, Some(4));
    assert!(elsewhere.stdout.contains("another interface than eth1"), "{}", elsewhere.stdout);
    for (words, why) in [
        (&["--to", NODE6[1]][..], "one is IPv4 and the other IPv6"),
        (&["--to", NODE[1], "--in", "eth7"], "no such interface"),
    ] {
        let ran = node.symroute(&[&["explain", "--from", CLIENT], words].concat());
        assert!(ran.code == Some(1) && ran.stderr.contains(why), "{}", ran.stderr);
    }
}

/// Requests that symroute does not bind, and the reason that `explain` gives.
#[test]
fn it_says_why_a_request_is_not_bound() {
    let layout = two_nics();
    let node = &layout.node;
    let said = |settings: Value, to: &str, from: &str| {
        node.up(&settings);
        let ran = node.symroute(&["explain", "--from", from, "--to", to, "--in", "eth1", "--json"]);
        node.down();
        let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
        report["requests"][0]["notBound"].as_str().unwrap_or_default().to_owned()
    };
    for (settings, to, from, why) in [
        (json!({"uplinks": NICS, "host": false}), NODE[1], CLIENT, "\"host\" is false"),
        (json!({"uplinks": NICS, "exclude": [NODE[1]]}), NODE[1], CLIENT, "\"exclude\" has"),
        (json!({"uplinks": ["eth0"]}), NODE[1], CLIENT, "eth1 is no uplink"),
        (json!({"uplinks": NICS}), NODE[1], POD[0], "\"hairpin\" is false"),
        (json!({"uplinks": NICS}), NODE[1], CLIENT, ""),
    ] {
        let found = said(settings, to, from);
        assert!(found.contains(why) && found.is_empty() == why.is_empty(), "{why:?}: {found:?}");
    }
}

/// A Service on a NodePort of every address, with one backend on this node and one elsewhere.
const SERVICE: &str = "table ip kube-proxy {
  map ports {
    type inet_proto . inet_service : verdict
    elements = { tcp . 30080 : goto service, udp . 30081 : goto local }
  }
  chain prerouting {
    type nat hook prerouting priority dstnat
    fib daddr type local meta l4proto . th dport vmap @ports
  }
  chain service {
    meta mark set meta mark | 0x4000
    numgen random mod 2 vmap { 0 : goto local, 1 : goto remote }
  }
  chain local { meta l4proto { tcp, udp } dnat to 10.21.0.50:8080; }
  chain remote { meta l4proto { tcp, udp } dnat to 203.0.113.9:8080; }
  chain postrouting {
    type nat hook postrouting priority srcnat
    meta mark & 0x4000 == 0 return
    masquerade
  }
}";

/// Every uplink, every address of the node and every NodePort, in one table.
#[test]
fn all_of_a_node() {
    let layout = two_nics();
    layout.node.ns.nft(SERVICE);
    let said = || layout.node.symroute(&["explain", "--from", CLIENT, "--all"]);
    let lines = |text: &str| {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().map(words).collect::<Vec<_>>()
    };
    layout.node.up(&json!({ "uplinks": NICS }));
    let with = said();
    assert_eq!(
        lines(&with.stdout),
        [
            "requests from 203.0.113.9, by what they ask and where they arrive, with symroute",
            "eth0 eth1",
            "10.20.0.10 answered answered",
            "10.21.0.10 answered answered",
            "NodePort 30080/tcp answered answered",
            "NodePort 30081/udp answered answered",
        ]
    );
    assert_eq!(with.code, Some(0));
    let ran = layout.node.symroute(&["explain", "--from", CLIENT, "--all", "--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let cell = &report["rows"][2]["cells"][1];
    assert_eq!(cell["column"], "eth1");
    let requests = cell["requests"].as_array().expect("requests");
    let to: Vec<_> = requests.iter().map(|request| &request["dnat"]["to"]).collect();
    assert_eq!(to, ["10.21.0.50:8080", "203.0.113.9:8080"], "{report:#}");
    layout.node.down();
    let config = plugin_object(&layout.node, &json!({ "uplinks": NICS }));
    let words = ["explain", "--from", CLIENT, "--all", "--config", &config];
    let without = layout.node.symroute(&words);
    assert!(
        lines(&without.stdout)[2].contains("answered lost: strict rp_filter"),
        "{}",
        without.stdout
    );
    assert_eq!(without.code, Some(4));
    let ask = |port| {
        let to = format!("{}:{port}", NODE[1]).parse().expect("an address");
        ask(&layout.client, Proto::Tcp, to, BASELINE)
    };
    assert!(ask(10250).is_err(), "what it calls lost is lost");
}

/// `explain` describes an answer for each backend of a NodePort, and names the chain that chose it.
#[test]
fn each_backend_of_a_service() {
    let layout = two_nics();
    let node = &layout.node;
    node.ns.nft(SERVICE);
    let to = format!("{}:30080", NODE[1]);
    let said = |more: &[&str]| {
        let words = ["explain", "--from", CLIENT, "--to", &to, "--in", "eth1"];
        node.symroute(&[&words[..], more].concat()).stdout
    };
    let without = said(&[]);
    for wanted in [
        "203.0.113.9 -> 10.21.0.10:30080 (tcp), arrives on eth1",
        "DNAT              to 10.21.0.50:8080, by nftables ip kube-proxy, local; 1 of 2 that may be chosen",
        "DNAT              to 203.0.113.9:8080, by nftables ip kube-proxy, remote; 2 of 2",
    ] {
        assert!(without.contains(wanted), "{wanted:?} in\n{without}");
    }
    assert!(!said(&["--proto", "udp"]).contains("DNAT"), "the port of another protocol");
    node.ns.nft("insert rule ip kube-proxy service ip option ra exists dnat to 10.9.9.9");
    let unsure = said(&[]);
    assert!(unsure.contains("not understood    nftables ip kube-proxy, service: "), "{unsure}");
    node.ns.nft("insert rule ip kube-proxy prerouting tcp dport 30080 drop");
    assert!(said(&[]).contains("lost: a rule of netfilter drops the request"), "{}", said(&[]));
    let client = ask(&layout.client, Proto::Tcp, to.parse().expect("an address"), BASELINE);
    assert!(client.is_err(), "and it does");
}

/// For a live connection `explain` takes backend and uplink from conntrack.
#[test]
fn a_connection_that_is_alive() {
    let layout = two_nics();
    let node = &layout.node;
    node.ns.nft(SERVICE);
    node.up(&json!({ "uplinks": NICS }));
    let to = format!("{}:30080", NODE[1]).parse().expect("an address");
    // The other backend is the client itself, which runs a server too.
    let alive = (0..20).find_map(|_| {
        let mut connection = Connection::open(&layout.client, to, BASELINE).ok()?;
        connection.ask().is_ok_and(|answer| answer.who == "pod1").then_some(connection)
    });
    let alive = alive.expect("one of the connections goes to the pod");
    let from = alive.local().to_string();
    let words = ["explain", "--from", &from, "--to", &to.to_string(), "--in", "eth1"];
    let said = node.symroute(&words).stdout;
    for wanted in [
        "DNAT              to 10.21.0.50:8080, by nftables ip kube-proxy, local\n",
        &format!("connections       from port {}: bound to eth1, mark 0x", alive.local().port()),
        "answered: the reply leaves by eth1: rule 402",
    ] {
        assert!(said.contains(wanted), "{wanted:?} in\n{said}");
    }
    let mark = node.mark_of(Proto::Tcp, alive.local()).expect("conntrack knows it");
    assert!(said.contains(&format!("mark {mark:#x}, answered")), "{mark:#x} in {said}");
    let json = node.symroute(&[&words[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&json.stdout).expect(&json.stderr);
    let connections = report["requests"][0]["connections"].as_array().expect("connections");
    assert_eq!(connections.len(), 1, "the port chooses one: {report:#}");
    node.down();
}

/// Compares two pods by their addresses, and by their names in the runtime's cache.
#[test]
fn pods_are_compared() {
    let layout = two_nics();
    let node = &layout.node;
    let config = plugin_object(node, &json!({ "uplinks": NICS }));
    let said = |more: &[&str]| {
        let words = ["explain", "--from", CLIENT, "--config", &config];
        node.symroute(&[&words[..], more].concat())
    };
    let ran = said(&["--pod", POD[0], "--pod", POD[1]]);
    for wanted in [
        "requests from 203.0.113.9, without symroute",
        "10.20.0.50 is behind eth0 (table main)",
        "10.21.0.50 is behind eth1 (table 101)",
        "what differs: a request arrives on eth0; a request arrives on eth1; the pod sends",
    ] {
        assert!(ran.stdout.contains(wanted), "{wanted:?} in\n{}{}", ran.stdout, ran.stderr);
    }
    assert_eq!(ran.code, Some(4));
    for (at, pod) in layout.pods.iter().enumerate() {
        let to = format!("{}:8080", POD[at]).parse().expect("an address");
        assert!(
            ask(&layout.client, Proto::Tcp, to, PATIENT).is_ok(),
            "{} by its NIC",
            pod.ns.name()
        );
    }
    let cache = node.dir.join("results");
    std::fs::create_dir_all(&cache).expect("make the cache");
    for (name, address) in [("web-0", POD[0]), ("web-1", POD[1])] {
        let entry = json!({
            "kind": "cniCacheV1",
            "config": "eyJuYW1lIjoiazhzIn0=",
            "containerId": format!("c-{name}"),
            "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", name]],
            "result": {"ips": [{"address": format!("{address}/24")}]},
        });
        std::fs::write(cache.join(name), entry.to_string()).expect("write the cache");
    }
    let cache = cache.to_string_lossy();
    let words = ["--pod", "shop/web-0", "--pod", "c-web-1", "--cache-dir", &cache];
    let by_name = said(&words);
    for wanted in ["shop/web-0 (10.20.0.50) is behind eth0", "c-web-1 (10.21.0.50) is behind eth1"]
    {
        assert!(by_name.stdout.contains(wanted), "{}{}", by_name.stdout, by_name.stderr);
    }
    let json = said(&[&words[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&json.stdout).expect(&json.stderr);
    assert_eq!(report["differ"].as_array().map(Vec::len), Some(3), "{report:#}");
    let unknown = said(&["--pod", "shop/web-9", "--cache-dir", &cache]);
    assert!(unknown.code == Some(1) && unknown.stderr.contains("give its address"));
    node.up(&json!({ "uplinks": NICS }));
    let with = said(&["--pod", POD[0], "--pod", POD[1]]);
    assert!(with.stdout.contains("what differs: the pod sends\n"), "{}", with.stdout);
    node.down();
}

/// Path of what a pod sends, as a counter on the wire confirms.
#[test]
fn what_a_pod_sends() {
    let layout = two_nics();
    let node = &layout.node;
    node.ns.nft(
        "table inet probe {
           counter eth0 { }
           counter eth1 { }
           chain last {
             type filter hook postrouting priority 300;
             oifname eth0 ip daddr 203.0.113.9 counter name eth0
             oifname eth1 ip daddr 203.0.113.9 counter name eth1
           }
         }",
    );
    for (at, wanted) in [
        (0, "leaves the node by eth0: rule 32766, table main, via 10.20.0.1"),
        (1, "leaves the node by eth1: rule 1536, table 101, via 10.21.0.1"),
    ] {
        let veth = format!("enipod{at}");
        let words = ["explain", "--from", POD[at], "--to", CLIENT, "--in", &veth];
        let ran = node.symroute(&words);
        assert!(ran.code == Some(0) && ran.stdout.contains(wanted), "{}", ran.stdout);
        let to = format!("{CLIENT}:8080").parse().expect("an address");
        ask(&layout.pods[at].ns, Proto::Tcp, to, PATIENT).expect("an answer");
        let counted = NICS.map(|nic| node.ns.counter("probe", nic) > 0);
        assert_eq!(counted, [true, at == 1], "the pod's packets leave by the NIC that it named");
    }
}

/// A quality-of-service rule overwrites the whole conntrack mark after symroute's rules.
#[test]
fn a_connection_mark_that_is_overwritten_on_the_way() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let settings = json!({ "uplinks": NICS });
    // Where both variants have rules, only the kernel knows which come first.
    let is_legacy = Backend::of_run() == Backend::IptablesLegacy;
    let program = if is_legacy { "iptables-legacy" } else { "iptables-nft" };
    let rule = |what: &str| {
        let words = format!("{program} -t mangle {what} FORWARD -j CONNMARK --set-mark 1");
        node.ns.exec(&words.split(' ').collect::<Vec<_>>(), "");
    };
    let flows = [layout.flow_to_pod(1, "pod101 203.0.113.9"), layout.flow_to_host()];
    let explain = || {
        let words = ["explain", "--from", CLIENT, "--to", "10.21.0.101:8080", "--in", "eth1"];
        node.symroute(&words).stdout
    };
    let lost = "symroute's mark is not on each packet";
    rule("-A");
    let plan = plugin_object(node, &settings);
    let words = ["explain", "--from", CLIENT, "--to", "10.21.0.101", "--in", "eth1", "--config"];
    let text = node.symroute(&[&words[..], &[&plan]].concat()).stdout;
    assert!(text.contains(lost) && text.contains("the reply leaves by eth0"), "{text}");
    node.add(&settings, &pod);
    assert_only_these_fail(&flows, &["pod 10.21.0.101:8080"]);
    assert!(explain().contains(lost), "{}", explain());
    rule("-D");
    node.ns.exec(&["conntrack", "-F"], "");
    assert_all_work(&flows);
    assert!(!explain().contains(lost), "{}", explain());
    node.del(&settings, &pod);
}
