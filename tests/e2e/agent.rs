//! `symroutectl agent` repairs what other programs do to the node. Events start each repair, never
//! the clock.
//!
//! The layout is the plain one with two NICs. Each test shows that the damage breaks traffic while
//! no agent runs.

mod before;
mod cost;
mod counts;
mod ended;
mod files;
mod flushed;
mod hard;
mod hotplug;
mod iptables;
mod killed;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::node::Node;
use crate::lab::traffic::{Proto, ask};
use crate::lab::two_nics::TwoNics;

/// Time limit of one try, too short for a retransmission.
const TRY: Duration = Duration::from_millis(400);

/// Whether the client gets an answer from this address and port.
fn answers(layout: &TwoNics, address: &str, port: u16) -> bool {
    let address: IpAddr = address.parse().expect("an address");
    ask(&layout.client, Proto::Tcp, SocketAddr::new(address, port), TRY).is_ok()
}

/// Writes a plugin object with these settings to a file and returns the file's path.
pub(crate) fn plugin_object(node: &Node, settings: &Value) -> String {
    let file = node.dir.join("agent.json");
    std::fs::write(&file, node.network(settings, None)).expect("write the configuration");
    file.to_str().expect("UTF-8").to_owned()
}

/// A conflist of the network `lab`: the primary and, if there are settings, symroute.
pub(crate) fn conflist(node: &Node, settings: Option<&Value>) -> String {
    let mut plugins = vec![json!({"type": "ptp"})];
    plugins.extend(settings.map(|settings| {
        let mut plugin: Value =
            serde_json::from_str(&node.network(settings, None)).expect("an object");
        let object = plugin.as_object_mut().expect("an object");
        object.remove("name");
        object.remove("cniVersion");
        plugin
    }));
    json!({"cniVersion": "1.0.0", "name": "lab", "plugins": plugins}).to_string()
}

/// What `symroutectl status --json` says.
fn status(node: &Node) -> Value {
    let ran = node.symroute(&["status", "--json"]);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stderr))
}
