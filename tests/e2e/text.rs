//! The node state as people read it: what `nft` and `ip` print, and what the documents say.

use std::env;
use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};

use crate::lab::backend::Backend;
use crate::lab::netns::Netns;
use crate::lab::not_run::only_nftables;
use crate::lab::proof::Proof;
use crate::lab::two_nics::{NICS, two_nics};

/// nft prints our table cleanly, and its text makes the same table elsewhere.
#[test]
fn the_table_survives_as_text() {
    if !only_nftables("it is about the text of the nftables table") {
        return;
    }
    let layout = two_nics();
    let settings = json!({"uplinks": NICS, "masquerade": {"mark": "0x4000", "via": "eth0"}});
    for pod in &layout.pods {
        layout.node.add(&settings, pod);
    }
    let list = ["nft", "-s", "list", "table", "inet", "symroute"];
    let text = layout.node.ns.exec(&list, "");
    for wanted in ["10.20.0.10", "2001:db8:21::10", "\"eth1\" : 0x00000200", "goto send_1"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    let elsewhere = Netns::new("elsewhere");
    // The text names interfaces, so they have to be there.
    elsewhere.ip("link add eth0 type veth peer name eth1");
    elsewhere.nft(&text);
    assert_eq!(in_order(&elsewhere.exec(&list, "")), in_order(&text));
}

/// The elements of a hash come in any order, on one line or on several.
fn in_order(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("elements = { ") {
        let (list, after) = after.split_once(" }").expect("an end of the elements");
        let mut elements: Vec<&str> = list.split(',').map(str::trim).collect();
        elements.sort_unstable();
        out.push_str(before);
        out.push_str("elements = { ");
        out.push_str(&elements.join(", "));
        out.push_str(" }");
        rest = after;
    }
    out + rest
}

/// Where the block behind `<!-- printed: COMMAND -->` lies in a document.
fn block(document: &str, command: &str) -> Range<usize> {
    let marker = format!("<!-- printed: {command} -->\n```text\n");
    let start = document.find(&marker).unwrap_or_else(|| panic!("{marker} is in the document"));
    let start = start + marker.len();
    start..start + document[start..].find("```").expect("an end of the block")
}

/// The output of a command, without the blanks that `ip` leaves at ends of lines.
pub(crate) fn printed(ns: &Netns, command: &str) -> String {
    let argv: Vec<&str> = command.split(' ').collect();
    let text = ns.exec(&argv, "");
    text.lines().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

/// `SYMROUTE_BLESS=1` writes what is printed now into the document, to be looked at and committed.
#[test]
fn the_documents_show_what_the_node_prints() {
    let layout = two_nics();
    for pod in &layout.pods {
        layout.node.add(&json!({"uplinks": NICS}), pod);
    }
    let mut commands = vec![
        "ip route show table 47001",
        "ip -6 route show table 47001",
        "ip route show table 47002",
    ];
    // These are the same with every backend; the document shows the rest as nftables has it.
    let nftables = Backend::of_run() == Backend::Nftables;
    if nftables {
        commands.push("ip rule");
        commands.push("nft -s list table inet symroute");
        commands.push("nft -s list table arp symroute");
    }
    let mut shown: Vec<_> =
        commands.into_iter().map(|c| (c, printed(&layout.node.ns, c))).collect();
    if nftables {
        shown.push(("symroutectl status", layout.node.symroute(&["status"]).stdout));
    }
    let rules = "iptables-nft -t mangle -S";
    let other = two_nics();
    other.node.add(&json!({"uplinks": NICS, "backend": "iptables-nft"}), &other.pods[1]);
    shown.push((rules, printed(&other.node.ns, rules)));
    let all = printed(&other.node.ns, "ip rule");
    let own = all.lines().filter(|line| ["398:", "399:"].iter().any(|of| line.starts_with(of)));
    shown.push(("ip rule, with iptables", own.flat_map(|line| [line, "\n"]).collect()));
    compare("docs/node-state.md", &shown);
}

/// Compares what is printed now with what a document of the project shows.
pub(crate) fn compare(document: &str, shown: &[(&str, String)]) {
    let (name, path) = (document, Path::new(env!("CARGO_MANIFEST_DIR")).join(document));
    let mut document = fs::read_to_string(&path).expect("read the document");
    let bless = env::var_os("SYMROUTE_BLESS").is_some();
    for (command, now) in shown {
        let now = in_order(now);
        let range = block(&document, command);
        if bless {
            document.replace_range(range, &now);
        } else {
            assert_eq!(document[range], now, "{name}, {command}");
        }
    }
    if bless {
        fs::write(&path, document).expect("write the document");
    }
}

/// The fenced blocks of a language in a document.
pub(crate) fn fenced<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    let blocks = document.split(opening.as_str()).skip(1);
    blocks.map(|rest| rest.split("```").next().expect("an end")).collect()
}

/// Every command of the README runs: those of the program here, with the README's own conflist;
/// the others in `tests/run`.
#[test]
fn every_command_of_the_readme_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("read the README");
    let run = fs::read_to_string(root.join("tests/run")).expect("read tests/run");
    let layout = two_nics();
    let proof = Proof::begin(&layout.node, &layout.router);
    let conflist = layout.node.dir.join("10-k8s.conflist");
    // The lab's NICs are veths, which "auto" never takes.
    let json = fenced(&readme, "json")[0].replace("\"auto\"", "\"eth0\", \"eth1\"");
    let mut json: Value = serde_json::from_str(&json).expect("JSON");
    Backend::of_run().into_settings(&mut json["plugins"][1]);
    fs::write(&conflist, json.to_string()).expect("write the conflist");
    let (mut own, mut others) = (0, 0);
    for line in fenced(&readme, "sh").into_iter().flat_map(str::lines) {
        let command = line.strip_prefix("sudo ").unwrap_or(line);
        if let Some(arguments) = command.strip_prefix("symroutectl ") {
            let arguments: Vec<&str> = arguments
                .split(' ')
                .map(|word| match word.strip_prefix("/etc/cni/net.d/") {
                    Some(_) => conflist.to_str().expect("UTF-8"),
                    None => word,
                })
                .collect();
            layout.node.symroute(&arguments).assert_success(line);
            own += 1;
        } else {
            // tests/install installs, on nodes of its own.
            let elsewhere = ["./tests/run", "./install.sh install"];
            let known = elsewhere.contains(&command) || run.contains(command);
            assert!(known, "tests/run runs {command}");
            others += 1;
        }
    }
    assert_eq!((own, others), (4, 4), "commands in the README");
    proof.assert_as_before();
}
