//! `symroutectl explain`: shows which way a request and its reply take through this node, and why.

mod grids;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{EXIT_UNHEALTHY, Failure};
use crate::config::Settings;
use crate::config::source::{Reader, SettingsSource};
use crate::explain::Packet;
use crate::explain::ask::{Asker, Explained};
use crate::model::Family;
use crate::names;
use crate::netfilter;
use crate::netlink::uapi::IPPROTO_TCP;

/// Version of the JSON report, raised when a key changes its meaning or is removed.
const VERSION: u32 = 1;

const ABOUT: &str = "\
The tool asks the kernel what it would do with a client's request and with the reply: on the
node as it is, without symroute, and with symroute. The node does not need symroute, and the
tool changes nothing. If --to has a port, the tool follows DNAT by nftables and iptables
(NodePorts, load balancers). If --from is an address of the node, the node itself sends the
request. The tool ignores filters in input and forward, so a firewall may still drop it.

";

pub(super) fn tail() -> String {
    let codes = [
        (0, "each reply leaves through the NIC of its request, or the request leaves the node"),
        (EXIT_UNHEALTHY, "as the node is now, a request gets lost or its reply takes another NIC"),
    ];
    let examples = [
        "explain --from 203.0.113.9 --to 10.21.0.10",
        "explain --from 203.0.113.9 --to 10.21.0.10:30080 --proto udp",
        "explain --from 203.0.113.9 --to 10.244.1.5 --in eth1",
        "explain --from 203.0.113.9 --all",
        "explain --pod default/web-0 --pod default/web-1",
        "explain --netns /run/netns/POD --from 203.0.113.9 --to 10.1.0.5",
        "explain --from 10.244.1.5 --to 203.0.113.9 --in vethf00",
    ];
    super::tail(ABOUT, &codes, &examples)
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Address of the client
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = address, required_unless_present = "pods")]
    from: Option<End>,
    /// Address that the client calls: one of the node, a pod or a Service
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = address, required_unless_present_any = ["all", "pods"])]
    to: Option<End>,
    /// NIC of arrival [default: found from --from and --to, or each uplink]
    #[arg(long = "in", value_name = "NIC")]
    link: Option<String>,
    /// tcp, udp, icmp, sctp or a number [default: tcp if --to has a port]
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    proto: Option<u8>,
    /// Plan with the settings in this file if symroute is not in force
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the runtime's conflists
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
    /// Ask in this network namespace of a pod instead of on the node
    #[arg(long, value_name = "PATH", conflicts_with = "pods")]
    pub(super) netns: Option<PathBuf>,
    /// Explain each address of the node and each NodePort, on each uplink
    #[arg(long, conflicts_with_all = ["to", "link", "proto"])]
    all: bool,
    /// Pod as address, NAMESPACE/NAME or container id; repeat to compare
    #[arg(long = "pod", value_name = "POD", conflicts_with_all = ["to", "all", "link", "proto"])]
    pods: Vec<String>,
    /// Directory of the runtime's ADD results
    #[arg(long, value_name = "DIR", default_value = names::CACHE_DIR)]
    cache_dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Address of a client or server, with or without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) ip: IpAddr,
    pub(super) port: Option<u16>,
}

pub(super) fn address(text: &str) -> Result<End, &'static str> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(End { ip: address.ip(), port: Some(address.port()) });
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let ip = bare.parse().map_err(|_| "wanted: ADDRESS or ADDRESS:PORT")?;
    Ok(End { ip, port: None })
}

pub(super) fn protocol(text: &str) -> Result<u8, &'static str> {
    netfilter::protocol(text).ok_or("wanted: tcp, udp, icmp, sctp or a number")
}

/// Runs the command. Returns the text to print and the exit code.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let mut node = super::node_of(words.netns.as_deref())?;
    // The settings of a pod may have "scope": "pod", which `Reader::Up` refuses.
    let reader = if node.is_pod() { Reader::Agent } else { Reader::Up };
    let mut settings = settings_by(reader, words.config.as_deref(), &words.conf_dir)?;
    if node.is_pod() {
        settings = settings.for_pod();
    }
    let mut asker = Asker::of_any(&mut node, &settings)?;
    let given = words.link.as_deref().map(|name| {
        let link = asker.facts().links.iter().find(|link| link.name == name);
        link.map(|link| link.index).ok_or_else(|| {
            Failure::Failed(format!("--in {name}: no such interface; see \"ip link\""))
        })
    });
    let given = given.transpose()?;
    if !words.pods.is_empty() {
        return grids::pods(&mut asker, words);
    }
    let Some(End { ip: from, port: client_port }) = words.from else {
        return Err(Failure::Failed("--from or --pod is wanted".into()));
    };
    let Some(End { ip: to, port }) = words.to else {
        return grids::all(&mut asker, words, from);
    };
    if Family::of(to) != Family::of(from) {
        let text = format!("--from {from} and --to {to}: one is IPv4 and the other IPv6");
        return Err(Failure::Failed(text));
    }
    let arrivals = match given {
        Some(link) => vec![link],
        None => asker.arrivals(from, to)?,
    };
    let protocol = words.proto.or(port.map(|_| IPPROTO_TCP));
    let mut found: Vec<Explained> = Vec::new();
    for link in arrivals {
        let packet = Packet { from, to, link, protocol, port, client_port };
        found.extend(asker.explain(packet)?);
    }
    let unread = asker.netfilter.unread.clone();
    if found.is_empty() {
        let text = "no interface leads outside, so no request arrives; name one by --in";
        return Err(Failure::Failed(text.into()));
    }
    let is_well = found.iter().all(|one| one.now().is_well(&one.packet));
    let facts = asker.facts();
    let text = if words.json {
        let requests: Vec<_> = found.iter().map(|one| one.to_json(facts)).collect();
        let report = json!({"version": VERSION, "requests": requests, "notSeen": unread});
        format!("{report:#}\n")
    } else {
        let requests: Vec<_> = found.iter().map(|one| one.to_text(&asker.view)).collect();
        let unread = unread.into_iter().map(|what| format!("cannot see {what}\n"));
        requests.into_iter().chain(unread).collect::<Vec<_>>().join("\n")
    };
    Ok((text, if is_well { 0 } else { EXIT_UNHEALTHY }))
}

/// The settings to plan with: those of `config`, otherwise of a conflist in [`names::CONF_DIR`], otherwise the
/// defaults.
pub(super) fn settings(config: Option<&Path>) -> Result<Settings, Failure> {
    settings_in(config, Path::new(names::CONF_DIR))
}

/// The settings to plan with: those of `config`, otherwise of a conflist in `conf_dir`, otherwise the defaults.
pub(super) fn settings_in(config: Option<&Path>, conf_dir: &Path) -> Result<Settings, Failure> {
    settings_by(Reader::Up, config, conf_dir)
}

/// The settings to plan with. Reads `config` as `reader` does: `up` refuses unknown keys and a file that
/// serves pods alone.
fn settings_by(
    reader: Reader,
    config: Option<&Path>,
    conf_dir: &Path,
) -> Result<Settings, Failure> {
    let read = if let Some(file) = config {
        SettingsSource::File(file.into()).read(reader).map_err(Failure::Failed)?
    } else {
        // A broken conflist counts as none.
        SettingsSource::Folder(conf_dir.into()).read(Reader::Agent).unwrap_or_default()
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
        assert_eq!(words.from, Some(End { ip: ip("192.0.2.1"), port: Some(4711) }));
        assert_eq!(words.to, Some(End { ip: ip("2001:db8::1"), port: Some(80) }));
        let words = parsed("--from 192.0.2.1 --to 192.0.2.2:53 --proto udp --in eth1").unwrap();
        assert_eq!(words.proto, Some(17));
        assert_eq!(words.link.as_deref(), Some("eth1"));
        let words = parsed("--from 2001:db8::9 --all --json").unwrap();
        assert!(words.all && words.json && words.to.is_none());
        let words = parsed("--pod shop/web-0 --pod 10.244.1.5").unwrap();
        assert_eq!(words.pods, ["shop/web-0", "10.244.1.5"]);
        for wrong in [
            "",
            "--pod a --to 192.0.2.1",
            "--pod a --all",
            "--from 192.0.2.1",
            "--to 192.0.2.1",
            "--from host --to 192.0.2.1",
            "--from 192.0.2.1 --to 192.0.2.2 --all",
            "--from 192.0.2.1 --to 192.0.2.2 --in",
            "--from 192.0.2.1 --to 192.0.2.2 --proto tcpp",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
