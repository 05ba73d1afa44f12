//! Another program flushes symroute's rules, routes or tables.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::agent::{answers, plugin_object};
use crate::lab::agent::{Agent, until};
use crate::lab::backend::Backend;
use crate::lab::flows::assert_only_these_fail;
use crate::lab::not_run::only_nftables;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, NODE, TwoNics, two_nics};

/// Whether the client reaches the host on eth1, which only symroute makes possible.
fn reached(layout: &TwoNics) -> bool {
    answers(layout, NODE[1], 10250)
}

/// `ip rule flush` also deletes the kernel's default rules, which an operator then adds again.
fn flush_rules(layout: &TwoNics) {
    let ns = &layout.node.ns;
    ns.ip("rule flush
         rule add pref 32766 lookup main
         rule add pref 32767 lookup default");
    ns.ip6(
        "rule flush
         rule add pref 32766 lookup main",
    );
}

fn flush_nftables(layout: &TwoNics) {
    layout.node.ns.nft("flush ruleset");
}

/// Deletes symroute's rules and routes, as systemd-networkd would if it took them for foreign ones.
fn restart_networkd(layout: &TwoNics) {
    let ns = &layout.node.ns;
    ns.ip("route flush table 47001
         route flush table 47002
         rule del pref 400
         rule del pref 401
         rule del pref 402");
    ns.ip6(
        "route flush table 47002
         rule del pref 402",
    );
}

fn assert_heals(damage: impl Fn(&TwoNics)) {
    let layout = two_nics();
    let settings = json!({"uplinks": NICS});
    layout.node.up(&settings);
    assert!(reached(&layout), "reached with us");
    damage(&layout);
    assert_only_these_fail(&[layout.flow_to_host()], &["host on eth1"]);
    let agent = Agent::ready(&layout.node, &["--config", &plugin_object(&layout.node, &settings)]);
    until("healed by the first look", || reached(&layout));
    for _ in 0..3 {
        damage(&layout);
        until("healed by an event", || reached(&layout));
        until("nothing differs", || layout.node.symroute(&["status"]).success);
    }
    assert_eq!(agent.get("/readyz"), (200, "ready\n".into()));
}

#[test]
fn rules_are_put_back() {
    assert_heals(flush_rules);
}

#[test]
fn the_nftables_table_is_put_back() {
    if !only_nftables("it is about the table of nftables") {
        return;
    }
    assert_heals(flush_nftables);
}

#[test]
fn tables_of_uplinks_are_put_back() {
    assert_heals(restart_networkd);
}

#[test]
fn a_flush_of_iptables_is_no_concern_of_ours() {
    let layout = two_nics();
    let settings = json!({"uplinks": NICS});
    let agent = Agent::ready(&layout.node, &["--config", &plugin_object(&layout.node, &settings)]);
    let before = agent.metric("symroute_events_total");
    for family in ["iptables", "ip6tables"] {
        layout.node.ns.exec(&[family, "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT"], "");
        layout.node.ns.exec(&[family, "-t", "nat", "-F"], "");
        layout.node.ns.exec(&[family, "-F"], "");
    }
    assert!(reached(&layout));
    assert_eq!(agent.metric("symroute_events_total"), before, "not even a look");
}

#[test]
fn who_undoes_us_again_and_again_is_told_of_and_answered_slowly() {
    let layout = two_nics();
    let settings = json!({"uplinks": NICS});
    let agent = Agent::ready(&layout.node, &["--config", &plugin_object(&layout.node, &settings)]);
    let backend = Backend::of_run();
    let cause = if backend.is_iptables() { "iptables" } else { "nftables" };
    let of_cause = |name: &str| agent.metric(&format!("symroute_{name}{{cause=\"{cause}\"}}"));
    let stands = || match backend {
        Backend::Nftables => layout.node.ns.backends().contains(&backend),
        variant => layout.node.ns.mangle(variant).contains("-j symroute-prerouting"),
    };
    let mut times = 0;
    until("contested", || {
        if stands() {
            layout.node.flush_all_rules();
            times += 1;
        }
        of_cause("contested") > 0
    });
    assert!((7..20).contains(&times), "{times}");
    let (code, text) = agent.get("/readyz");
    assert!(code == 503 && text.contains(cause), "{code} {text}");
    until("healed all the same", || reached(&layout));
    assert!(of_cause("repairs_total") >= 7);
}

#[test]
fn a_signal_removes_nothing_and_a_quiet_agent_writes_nothing() {
    let layout = two_nics();
    let file = plugin_object(&layout.node, &json!({"uplinks": NICS}));
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let agent = Agent::ready(&layout.node, &["--config", &file, "--resync", "1s"]);
        let before = Snapshot::take(&layout.node);
        let (looks, reconciles) =
            ("symroute_looks_total", "symroute_reconciles_total{outcome=\"done\"}");
        let (at, made) = (agent.metric(looks), agent.metric(reconciles));
        until("three looks later", || agent.metric(looks) >= at + 3);
        assert_eq!(agent.metric(reconciles), made, "nothing differed, so nothing was done");
        assert!(agent.end(signal).success());
        before.assert_unchanged(&Snapshot::take(&layout.node));
        assert!(reached(&layout));
    }
    layout.node.down();
    assert_eq!(layout.node.symroute(&["status"]).code, Some(3), "not in force");
}

/// Causes more events than the kernel queues for a process that does not read them.
#[test]
fn what_lost_events_told_of_is_healed() {
    let layout = two_nics();
    let settings = json!({"uplinks": NICS});
    let agent = Agent::ready(&layout.node, &["--config", &plugin_object(&layout.node, &settings)]);
    let lost = agent.metric("symroute_events_lost_total");
    let pid = Pid::from_raw(agent.pid().try_into().expect("a process id"));
    kill(pid, Signal::SIGSTOP).expect("stop the agent");
    let routes = |verb: &str| -> String {
        let line = |n| format!("route {verb} blackhole 198.18.{}.{}/32\n", n / 250, n % 250);
        (0..10_000).map(line).collect()
    };
    layout.node.ns.ip(&routes("add"));
    flush_rules(&layout);
    layout.node.ns.ip(&routes("del"));
    assert!(!reached(&layout));
    kill(pid, Signal::SIGCONT).expect("let the agent go on");
    until("healed", || reached(&layout));
    assert!(agent.metric("symroute_events_lost_total") > lost, "events were lost");
}
