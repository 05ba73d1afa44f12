//! `symroutectl explain`: where a request and its reply go on this node, and why.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{EXIT_OFF, Failure};
use crate::config::Settings;
use crate::config::source::{Reader, SettingsSource};
use crate::explain::Packet;
use crate::explain::ask::{Asker, Explained};
use crate::model::Family;
use crate::names;
use crate::node::Node;

/// Raised when keys of the JSON report change their meaning or go away.
const VERSION: u32 = 1;

const ABOUT: &str = "\
Asks the kernel what it would do with a request from a client, and with the reply: on the
node as it is, without symroute and with it. Needs no symroute on the node, and changes
nothing. It does not look at DNAT: for a NodePort or a load balancer's address name the
address that the request has after it.

";

pub(super) fn tail() -> String {
    let codes = [
        (0, "each request is answered by the interface it came in by, or leaves the node"),
        (EXIT_OFF, "one is lost, or its reply leaves elsewhere, as the node is now"),
    ];
    let examples = [
        "explain --from 203.0.113.9 --to 10.21.0.10",
        "explain --from 203.0.113.9 --to 10.244.1.5 --in eth1",
        "explain --from 203.0.113.9 --all",
        "explain --from 10.244.1.5 --to 203.0.113.9 --in vethf00",
    ];
    super::tail(ABOUT, &codes, &examples)
}

/// Which requests.
#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// The client
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = address)]
    from: IpAddr,
    /// What it asks: an address of the node or of a pod
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = address, required_unless_present = "all")]
    to: Option<IpAddr>,
    /// Where it arrives [default: the NIC that has --to, else each uplink]
    #[arg(long = "in", value_name = "NIC")]
    link: Option<String>,
    /// Settings to plan by where symroute is not in force
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Each address of the node, by each uplink
    #[arg(long, conflicts_with = "to")]
    all: bool,
    /// Print one JSON object for programs
    #[arg(long)]
    json: bool,
}

/// An address, with or without a port.
fn address(text: &str) -> Result<IpAddr, &'static str> {
    let with_port = || text.parse().map(|address: SocketAddr| address.ip());
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse().or_else(|_| with_port()).map_err(|_| "wanted: ADDRESS or ADDRESS:PORT")
}

/// Runs the command: what it prints, and its exit code.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let mut node = Node::open()?;
    let mut asker = Asker::of(&mut node, &settings(words.config.as_deref())?)?;
    let given = words.link.as_deref().map(|name| {
        let link = asker.facts().links.iter().find(|link| link.name == name);
        link.map(|link| link.index).ok_or_else(|| {
            Failure::Failed(format!("--in {name}: no such interface; see \"ip link\""))
        })
    });
    let given = given.transpose()?;
    let targets: Vec<IpAddr> = match words.to {
        Some(to) if Family::of(to) != Family::of(words.from) => {
            let text = format!("--from {} and --to {to}: one family is wanted", words.from);
            return Err(Failure::Failed(text));
        }
        Some(to) => vec![to],
        None => {
            let own = asker.public_addresses().map(|address| address.ip);
            own.filter(|ip| Family::of(*ip) == Family::of(words.from)).collect()
        }
    };
    let mut found: Vec<Explained> = Vec::new();
    for to in targets {
        let arrivals = match given {
            Some(link) => vec![link],
            None if words.all => asker.uplinks(),
            None => asker.arrivals(to),
        };
        for link in arrivals {
            found.push(asker.explain(Packet { from: words.from, to, link })?);
        }
    }
    if found.is_empty() {
        let text = "no interface leads outside, so no request arrives; name one by --in";
        return Err(Failure::Failed(text.into()));
    }
    let is_well = found.iter().all(|one| one.now().is_well(&one.packet));
    let facts = asker.facts();
    let text = if words.json {
        let requests: Vec<_> = found.iter().map(|one| one.to_json(facts)).collect();
        format!("{:#}\n", json!({"version": VERSION, "requests": requests}))
    } else {
        found.iter().map(|one| one.to_text(facts)).collect::<Vec<_>>().join("\n")
    };
    Ok((text, if is_well { 0 } else { EXIT_OFF }))
}

/// The settings to plan by: those of --config, else of the runtime's conflist, else the defaults.
pub(super) fn settings(config: Option<&Path>) -> Result<Settings, Failure> {
    let read = if let Some(file) = config {
        SettingsSource::File(file.into()).read(Reader::Up).map_err(Failure::Failed)?
    } else {
        // A conflist that can't be read says nothing.
        SettingsSource::Folder(names::CONF_DIR.into()).read(Reader::Agent).unwrap_or_default()
    };
    Ok(read.map(|found| found.config.settings).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::*;

    fn parsed(line: &str) -> Result<Words, String> {
        match super::super::tests::parsed(&format!("explain {line}"))? {
            Command::Explain(words) => Ok(words),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn command_lines() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let words = parsed("--from 192.0.2.1:4711 --to [2001:db8::1]:80 --in eth1").unwrap();
        assert_eq!((words.from, words.to), (ip("192.0.2.1"), Some(ip("2001:db8::1"))));
        assert_eq!(words.link.as_deref(), Some("eth1"));
        let words = parsed("--from 2001:db8::9 --all --json").unwrap();
        assert!(words.all && words.json && words.to.is_none());
        for wrong in [
            "",
            "--from 192.0.2.1",
            "--to 192.0.2.1",
            "--from host --to 192.0.2.1",
            "--from 192.0.2.1 --to 192.0.2.2 --all",
            "--from 192.0.2.1 --to 192.0.2.2 --in",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
