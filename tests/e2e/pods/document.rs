//! docs/pods.md shows the state of a pod, and its commands run.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::site::{Site, settings};
use crate::lab::backend::Backend;
use crate::text::{compare, fenced, printed};

const PAGE: &str = "docs/pods.md";

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE)).expect("read the page")
}

/// `SYMROUTE_BLESS=1` writes the current output into the page. A developer reviews and commits it.
#[test]
fn the_page_shows_what_the_pod_prints() {
    // The page shows the output for nftables.
    if Backend::of_run() != Backend::Nftables {
        return;
    }
    let site = Site::new(2);
    for number in 0..2 {
        site.add(&settings(), number);
    }
    let status = site.node.symroute(&["status", "--netns", &site.pod.path()]);
    compare(
        PAGE,
        &[("symroutectl status", status.stdout), ("ip rule", printed(&site.pod, "ip rule"))],
    );
    site.assert_answers();
}

#[test]
fn the_commands_of_the_page_run_with_its_settings() {
    let site = Site::new(2);
    let page = page();
    let conflist: Value = serde_json::from_str(fenced(&page, "json")[0]).expect("JSON");
    let entry = &conflist["plugins"][1];
    assert_eq!(entry["type"], "symroute");
    let settings = json!({"scope": entry["scope"]});
    for number in 0..2 {
        site.add(&settings, number);
    }
    let mut ran = 0;
    for line in fenced(&page, "sh").into_iter().flat_map(str::lines) {
        let words = line.strip_prefix("sudo symroutectl ").unwrap_or_else(|| panic!("{line}"));
        let netns = site.pod.path();
        let words: Vec<&str> = words
            .split(' ')
            .map(|word| if word == "/run/netns/POD" { netns.as_str() } else { word })
            .collect();
        site.node.symroute(&words).assert_success(line);
        ran += 1;
    }
    assert_eq!(ran, 2, "commands of {PAGE}");
}
