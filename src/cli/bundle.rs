//! `symroutectl bundle`: writes one file with everything that a bug report needs.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Parser as _};
use serde_json::{Value, json};

use super::{CommandLine, Failure, text_of};
use crate::bundle::pseudonym::Pseudonyms;
use crate::bundle::{Bundle, Content, files, kernel};
use crate::model::Family;
use crate::names;
use crate::netlink::{Socket, route};
use crate::node::Node;
use crate::plan::proof::OUTSIDE;
use crate::process;

const ABOUT: &str = "\
The file is a tar archive. It has the output of status, doctor and explain, rules, routes,
links, neighbour entries of routers, sysctls, counters, symroute's nftables or iptables rules,
the state in /run/symroute, conflists without possible secrets, and the end of the plugin's
log. It has no packets, keys, tokens or environment variables. missing.txt in the archive
names what the tool could not read, and why. The tool changes nothing on the node and
overwrites no file.

";

pub(super) fn tail() -> String {
    let examples = ["bundle", "bundle --anonymous report.tar", "bundle - | tar -xf - -C /tmp"];
    super::tail(ABOUT, &[(0, "written, also where parts are missing")], &examples)
}

/// Maximum number of addresses that the bundle explains.
const MAX_ADDRESSES: usize = 64;

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// The file to write, "-" for standard output [default: symroute-bundle-HOST-TIME.tar]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Replace addresses and the host name by pseudonyms, the same in all files
    #[arg(long)]
    anonymous: bool,
    /// Directory of the runtime's conflists
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
}

/// Runs the command. Returns the text to print and the exit code.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let time = SystemTime::now();
    let (host, release) = files::machine();
    let pseudonyms =
        words.anonymous.then(|| Pseudonyms::new(&host, &[&release, env!("CARGO_PKG_VERSION")]));
    let path = words.file.clone().unwrap_or_else(|| default_name(&host, words.anonymous, time));
    let is_stream = path == Path::new("-");
    // Checked first: the work below takes some seconds.
    if !is_stream && path.symlink_metadata().is_ok() {
        let text = format!("{}: this file exists already; name another FILE", path.display());
        return Err(Failure::Failed(text));
    }
    let bundle = gather(&words.conf_dir, &host, &release, time);
    let archive = bundle.to_tar(pseudonyms.as_ref(), time);
    if is_stream {
        let written = process::print(&archive);
        written.map_err(|error| Failure::Failed(format!("write the archive: {error}")))?;
        return Ok((String::new(), 0));
    }
    write(&path, &archive)?;
    let (parts, missing) = bundle.counts();
    let more = if words.anonymous {
        ""
    } else {
        "; it has addresses and names of this node, which --anonymous replaces"
    };
    let text = format!(
        "{}: {parts} files, {missing} things missing{more}\nread it before you attach it\n",
        path.display()
    );
    Ok((text, 0))
}

/// Creates a file with mode 0600. An existing file is an error.
fn write(path: &Path, archive: &[u8]) -> Result<(), Failure> {
    let failed = |error| Failure::Failed(format!("write {}: {error}", path.display()));
    let opened = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(failed)?;
    file.write_all(archive).and_then(|()| file.sync_all()).map_err(|error| {
        // Half an archive is useless.
        let _ = fs::remove_file(path);
        failed(error)
    })
}

fn default_name(host: &str, is_anonymous: bool, time: SystemTime) -> PathBuf {
    let time = humantime::format_rfc3339_seconds(time).to_string().replace(['-', ':'], "");
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let host: String = host.chars().filter(is_plain).collect();
    let host = if is_anonymous { "anonymous" } else { &host };
    format!("symroute-bundle-{host}-{time}.tar").into()
}

fn gather(conf_dir: &Path, host: &str, release: &str, time: SystemTime) -> Bundle {
    let mut bundle = Bundle::default();
    let version = json!({
        "symroute": env!("CARGO_PKG_VERSION"),
        "kernel": release,
        "architecture": std::env::consts::ARCH,
        "host": host,
        "time": humantime::format_rfc3339_seconds(time).to_string(),
    });
    bundle.add("version.json", Ok(Content::Json(version)));
    let folder = conf_dir.display().to_string();
    let status = report_of(&["status", "--json", "--conf-dir", &folder]);
    explain(&mut bundle, status.as_ref().ok(), &folder);
    bundle.add("status.json", status.map(Content::Json));
    bundle.add(
        "doctor.json",
        report_of(&["doctor", "--json", "--conf-dir", &folder]).map(Content::Json),
    );
    match (Node::to_look(), super::explain::settings_in(None, conf_dir)) {
        (Ok(mut node), Ok(settings)) => kernel::collect(&mut bundle, &mut node, &settings),
        (Err(error), _) => bundle.miss("links.json and the like", error.to_string()),
        (_, Err(failure)) => bundle.miss("links.json and the like", text_of(failure)),
    }
    files::sysctls(&mut bundle, &interfaces());
    files::counters(&mut bundle);
    files::state(&mut bundle, Path::new(names::STATE_DIR));
    files::conflists(&mut bundle, conf_dir);
    files::log(&mut bundle, &files::log_file(conf_dir));
    bundle
}

/// Adds the explanation of a request to each address of the node, on each uplink. With more than
/// [`MAX_ADDRESSES`] addresses, such as those of Services with IPVS, it explains only the uplinks' own
/// addresses.
fn explain(bundle: &mut Bundle, status: Option<&Value>, conf_dir: &str) {
    let addresses = Socket::route().and_then(|mut socket| route::addresses(&mut socket));
    let are_few = addresses.is_ok_and(|addresses| addresses.len() <= MAX_ADDRESSES);
    for (family, name) in [(Family::V4, "explain-ipv4.json"), (Family::V6, "explain-ipv6.json")] {
        let client = OUTSIDE.of(family).to_string();
        let words = ["explain", "--from", &client, "--json", "--conf-dir", conf_dir];
        if are_few {
            bundle.add(name, report_of(&[&words[..], &["--all"]].concat()).map(Content::Json));
            continue;
        }
        bundle.miss(
            name,
            format!("more than {MAX_ADDRESSES} addresses: those of uplinks alone are here"),
        );
        let own = own_addresses(status, family);
        let asked = own
            .iter()
            .take(MAX_ADDRESSES)
            .map(|ip| report_of(&[&words[..], &["--to", ip]].concat()));
        let answers: Result<Vec<Value>, String> = asked.collect();
        bundle.add(name, answers.map(|answers| Content::Json(answers.into())));
    }
}

/// The addresses of the uplinks, taken from the JSON report of `status`.
fn own_addresses(status: Option<&Value>, family: Family) -> Vec<String> {
    let uplinks = status.and_then(|status| status["uplinks"].as_array()).into_iter().flatten();
    let texts = uplinks.flat_map(|uplink| uplink["addresses"].as_array().into_iter().flatten());
    let ips = texts.filter_map(|text| text.as_str()?.split('/').next());
    let of_family = |ip: &&str| ip.parse().is_ok_and(|ip| Family::of(ip) == family);
    ips.filter(of_family).map(str::to_owned).collect()
}

/// Runs another command of this tool and returns its JSON report, or the error text.
fn report_of(words: &[&str]) -> Result<Value, String> {
    let words = [&[names::TOOL], words].concat();
    let line = CommandLine::try_parse_from(words).map_err(|error| error.to_string())?;
    let (text, _) = line.command.run().map_err(text_of)?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// The names of the interfaces in the kernel's order, in which those of pods come late.
fn interfaces() -> Vec<String> {
    let links = Socket::route().and_then(|mut socket| route::links(&mut socket));
    links.unwrap_or_default().into_iter().map(|link| link.name).collect()
}
