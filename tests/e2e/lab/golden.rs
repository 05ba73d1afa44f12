//! Compares the tool's output with files that a developer has reviewed.

use std::env;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::agent::until;
use super::node::Node;
use crate::agent::plugin_object;

/// The finding about packets that the reverse path filter drops while `doctor` watches.
const DROPS: &str = "[rp-filter-drops]";

/// A request: the NIC that it arrives on (empty if the node itself sends it), the client, and the
/// destination.
pub(crate) type Request<'a> = (&'a str, &'a str, &'a str);

impl Node {
    /// Asserts that `doctor` and `explain` print what the file of this name contains.
    /// `SYMROUTE_BLESS=1` writes the file.
    pub(crate) fn assert_explained(&self, name: &str, settings: &Value, requests: &[Request<'_>]) {
        let config = plugin_object(self, settings);
        let mut text = String::new();
        // The server of a failed flow repeats its answer for a minute, at growing intervals.
        until("no packet is dropped while doctor looks", || {
            text = self.symroute(&["doctor", "--for", "0s", "--config", &config]).stdout;
            !text.contains(DROPS)
        });
        for (nic, from, to) in requests {
            let words = ["explain", "--from", from, "--to", to, "--config", &config];
            let place = if nic.is_empty() { &[][..] } else { &["--in", nic] };
            text += "\n";
            text += &self.symroute(&[&words[..], place].concat()).stdout;
        }
        // Live connections differ from run to run.
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains("from port ")).collect();
        let text = lines.join("\n") + "\n";
        let text = without_macs(&text).replace("iptables-nft nat", "iptables nat");
        let text = text.replace("iptables-legacy nat", "iptables nat");
        let path = format!("{}/tests/e2e/explained/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let path = Path::new(&path);
        if env::var_os("SYMROUTE_BLESS").is_some() {
            fs::create_dir_all(path.parent().expect("a folder")).expect("make the folder");
            fs::write(path, &text).expect("write the file");
        }
        let known = fs::read_to_string(path).unwrap_or_default();
        assert_eq!(text, known, "{}: SYMROUTE_BLESS=1 writes what is said now", path.display());
    }
}

/// The text without hardware addresses, which differ from run to run. Whether the kernel knows one
/// does, too.
fn without_macs(text: &str) -> String {
    let mut parts = text.split("(hardware address ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += "(hardware address MAC";
        out += part.find(')').map_or("", |at| &part[at..]);
    }
    out
}
