//! What the agent costs: memory with a thousand pods, and processor time on an idle node and while
//! pods come and go.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::lab::agent::{Agent, until};
use crate::lab::plugin::Call;
use crate::lab::process::memory;
use crate::lab::two_nics::{NICS, two_nics};

const PODS: u64 = 1000;

/// Processor time of all threads together. Only `stat` includes threads that have ended.
fn processor(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("read the statistics");
    let (_, rest) = text.rsplit_once(')').expect("a name in parentheses");
    let words: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| words[at].parse::<u64>().expect("a number");
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

#[test]
fn a_thousand_pods_fit_into_ten_mebibytes() {
    let layout = two_nics();
    let node = &layout.node;
    node.ns.ip("route add 10.99.0.0/16 dev enipod0 scope link");
    let settings = json!({"uplinks": NICS, "log": {"level": "warn"}});
    let config = crate::agent::plugin_object(node, &settings);
    let agent = Agent::ready(node, &["--config", &config, "--resync", "5s"]);
    for number in 0..PODS {
        let address = format!("10.99.{}.{}/32", number / 250, number % 250 + 1);
        let result = json!({"cniVersion": "1.0.0", "ips": [{"address": address}]}).to_string();
        let network = node.network(&settings, Some(&result));
        let netns = layout.pods[0].ns.path();
        let add = Call::cni("ADD", &network, &format!("c{number}"), &netns, "eth0");
        node.call(&add).assert_success("one of many");
    }
    until("all are known", || agent.metric("symroute_pods") == PODS);
    let looks = agent.metric("symroute_looks_total");
    until("looks with all of them", || agent.metric("symroute_looks_total") >= looks + 2);
    let (now, most) = (memory(agent.pid(), "VmRSS"), memory(agent.pid(), "VmHWM"));
    let page = agent.get("/metrics").1;
    let look = page.lines().find(|line| line.starts_with("symroute_last_look_seconds"));
    println!("{PODS} pods: {now} kB resident, at most {most} kB; {look:?}");
    // The program text of this build is several times as large as that of the static release build.
    // So only allocated memory counts; 4 MiB stand in for the text.
    let own = if std::env::var_os("SYMROUTE_BIN").is_some() {
        most
    } else {
        memory(agent.pid(), "RssAnon") + 4 * 1024
    };
    assert!(own < 10 * 1024, "{own} kB");

    let looks = agent.metric("symroute_looks_total");
    let (begin, before) = (Instant::now(), processor(agent.pid()));
    until("two more looks", || {
        // Each request for metrics costs the agent processor time too.
        std::thread::sleep(Duration::from_secs(1));
        agent.metric("symroute_looks_total") >= looks + 2
    });
    let used = processor(agent.pid()).saturating_sub(before);
    println!("idle with {PODS} pods for {:?}, two looks: {used:?}", begin.elapsed());

    let (begin, before) = (Instant::now(), processor(agent.pid()));
    let (looks, churn) = (agent.metric("symroute_looks_total"), 300);
    let mut batch = String::new();
    for number in 0..churn {
        batch += &format!(
            "link add eni{number} type veth peer name eth0 netns {}\n\
             link set eni{number} up\n\
             route add 10.98.{}.{} dev eni{number}\n",
            layout.client.name(),
            number / 250,
            number % 250 + 1
        )
        .replace("peer name eth0", &format!("peer name p{number}"));
    }
    node.ns.ip(&batch);
    let removal: Vec<_> = (0..churn).map(|number| format!("link del eni{number}")).collect();
    node.ns.ip(&removal.join("\n"));
    let (wall, used) = (begin.elapsed(), processor(agent.pid()).saturating_sub(before));
    let looked = agent.metric("symroute_looks_total") - looks;
    println!("{churn} interfaces came and went in {wall:?}: {used:?} of the agent, {looked} looks");
    assert!(looked <= 2 + wall.as_secs() / 5, "pods are no reason to look");
}

#[test]
fn an_idle_agent_costs_nothing() {
    let layout = two_nics();
    let config = crate::agent::plugin_object(&layout.node, &json!({"uplinks": NICS}));
    let agent = Agent::ready(&layout.node, &["--config", &config, "--resync", "2s"]);
    let looks = "symroute_looks_total";
    let (at, before) = (agent.metric(looks), processor(agent.pid()));
    let begin = Instant::now();
    until("five looks by the clock", || {
        std::thread::sleep(Duration::from_secs(1));
        agent.metric(looks) >= at + 5
    });
    let (wall, used) = (begin.elapsed(), processor(agent.pid()).saturating_sub(before));
    println!("idle for {wall:?}, a look every 2 s: {used:?}");
    // At the default resync of 30 s a turn may take 30 ms. This limit is higher, for an unoptimised
    // build on a busy machine.
    assert!(used <= wall / 50, "{used:?} of {wall:?}");
}
