//! Collects what files contain: sysctls, counters, the state of this boot, conflists, the log.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Bundle, Content, harmless};
use crate::names;
use crate::plain_file::{self, Links};

/// Sysctls of the whole node, below /proc/sys/net.
const OF_NODE: [&str; 14] = [
    "ipv4/ip_forward",
    "ipv4/icmp_errors_use_inbound_ifaddr",
    "ipv4/fwmark_reflect",
    "ipv4/tcp_fwmark_accept",
    "ipv4/tcp_l3mdev_accept",
    "ipv4/fib_multipath_hash_policy",
    "ipv4/ip_early_demux",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/default/forwarding",
    "ipv6/fwmark_reflect",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_tcp_be_liberal",
    "netfilter/nf_conntrack_tcp_loose",
];
/// Sysctls of each interface, and of `all` and `default`.
const OF_INTERFACE: [&str; 9] = [
    "rp_filter",
    "src_valid_mark",
    "arp_ignore",
    "arp_announce",
    "arp_filter",
    "forwarding",
    "accept_local",
    "route_localnet",
    "send_redirects",
];
/// Files with counters, below /proc/thread-self/net, which belongs to this thread's network namespace.
const COUNTERS: [&str; 5] = ["netstat", "snmp", "snmp6", "dev", "stat/nf_conntrack"];
/// Maximum number of interfaces whose sysctls are read. A full node has one for each pod.
const MAX_INTERFACES: usize = 64;
/// Maximum number of attachment files.
const MAX_PODS: usize = 64;
/// Bytes that are read from the end of the log.
const MAX_LOG_BYTES: u64 = 64 * 1024;
/// Maximum number of bytes that are read of a state file or conflist.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Adds sysctls. `interfaces`: names, NICs first.
pub(crate) fn sysctls(bundle: &mut Bundle, interfaces: &[String]) {
    const FILE: &str = "sysctls.json";
    let mut found = Map::new();
    let mut read = |key: String, bundle: &mut Bundle| {
        let text = match fs::read_to_string(format!("/proc/sys/net/{key}")) {
            Ok(text) => json!(text.trim()),
            // The kernel lacks the feature, or the interface has been deleted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Value::Null,
            Err(error) => return bundle.miss(FILE, format!("{key}: {error}")),
        };
        found.insert(key, text);
    };
    for key in OF_NODE {
        read(key.into(), bundle);
    }
    let shown = interfaces.iter().take(MAX_INTERFACES).map(String::as_str);
    for interface in ["all", "default"].into_iter().chain(shown) {
        for key in OF_INTERFACE {
            read(format!("ipv4/conf/{interface}/{key}"), bundle);
        }
    }
    if let Some(more) = interfaces.len().checked_sub(MAX_INTERFACES + 1) {
        bundle.miss(FILE, format!("{} more interfaces", more + 1));
    }
    bundle.add(FILE, Ok(Content::Json(Value::Object(found))));
}

/// Adds counters of the kernel.
pub(crate) fn counters(bundle: &mut Bundle) {
    for name in COUNTERS {
        let path = format!("/proc/thread-self/net/{name}");
        let read = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"));
        let file = format!("counters/{}.txt", name.replace('/', "-"));
        bundle.add(&file, read.map(Content::Text));
    }
}

/// Adds the state of this boot.
pub(crate) fn state(bundle: &mut Bundle, folder: &Path) {
    const FILE: &str = "state.json";
    let mut found = Map::new();
    for (below, most) in [("", usize::MAX), ("hold", usize::MAX), ("pods", MAX_PODS)] {
        let names = match names_in(&folder.join(below)) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                bundle.miss(FILE, format!("{}: {error}", folder.join(below).display()));
                continue;
            }
        };
        for name in names.iter().take(most) {
            let path = folder.join(below).join(name);
            let key = Path::new(below).join(name).display().to_string();
            match state_file(&path) {
                Ok(Some(value)) => drop(found.insert(key, value)),
                Ok(None) => {}
                Err(error) => bundle.miss(FILE, format!("{}: {error}", path.display())),
            }
        }
        if names.len() > most {
            bundle.miss(FILE, format!("{} more files in {below}", names.len() - most));
        }
    }
    bundle.add(FILE, Ok(Content::Json(Value::Object(found))));
}

/// The content of a state file, or the target of a symbolic link; `None` for a folder.
fn state_file(path: &Path) -> io::Result<Option<Value>> {
    let kind = path.symlink_metadata()?.file_type();
    if kind.is_symlink() {
        return Ok(Some(json!({"link": fs::read_link(path)?})));
    }
    if !kind.is_file() {
        return Ok(None);
    }
    let bytes = beginning(path)?;
    let text = || json!(String::from_utf8_lossy(&bytes));
    Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(|_| text())))
}

/// Adds the conflists without possible secrets.
pub(crate) fn conflists(bundle: &mut Bundle, folder: &Path) {
    let names = match names_in(folder) {
        Ok(names) => names,
        Err(error) => {
            return bundle.miss("conflists.json", format!("{}: {error}", folder.display()));
        }
    };
    let mut found = Map::new();
    for name in &names {
        let is_conflist = [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
        let path = folder.join(name);
        // Of other files, for instance a kubeconfig, only the name is added.
        let kept = if is_conflist && path.is_file() {
            let read = beginning(&path).map_err(|error| error.to_string());
            read.and_then(|text| harmless::of_conflist(&text))
        } else {
            Ok(Value::Null)
        };
        match kept {
            Ok(value) => drop(found.insert(name.clone(), value)),
            Err(why) => bundle.miss("conflists.json", format!("{name}: {why}")),
        }
    }
    bundle.add("conflists.json", Ok(Content::Json(Value::Object(found))));
}

/// Adds the end of the plugin's log.
pub(crate) fn log(bundle: &mut Bundle, file: &Path) {
    let read = end_of(file).map_err(|error| format!("{}: {error}", file.display()));
    bundle.add("log.txt", read.map(Content::Text));
}

/// The last lines of a file, without an incomplete first line.
fn end_of(file: &Path) -> io::Result<String> {
    let mut file = plain_file::open(file, Links::Refused)?;
    let begin = file.metadata()?.len().saturating_sub(MAX_LOG_BYTES);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole =
        if begin == 0 { &*text } else { text.split_once('\n').map_or("", |(_, rest)| rest) };
    Ok(whole.to_owned())
}

fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    plain_file::open(path, Links::Followed)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    let mut names: Vec<_> = names.filter_map(io::Result::transpose).collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

/// The host name, and the release of the kernel.
pub(crate) fn machine() -> (String, String) {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    (read("hostname"), read("osrelease"))
}

/// The log file that a conflist in `folder` sets for the plugin, otherwise the default.
pub(crate) fn log_file(folder: &Path) -> std::path::PathBuf {
    use crate::config::source::{Reader, SettingsSource};
    let found = SettingsSource::Folder(folder.into()).read(Reader::Agent).ok().flatten();
    found.map_or_else(|| names::LOG_FILE.into(), |found| found.config.log.file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    #[test]
    fn the_end_of_a_log_begins_with_a_whole_line() {
        let folder = TempDir::new();
        let path = folder.join("log");
        fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(end_of(&path).unwrap(), "one\ntwo\n");
        let many: Vec<_> = (0..10_000).map(|number| format!("line {number:09}\n")).collect();
        let many = many.concat();
        fs::write(&path, &many).unwrap();
        let end = end_of(&path).unwrap();
        assert!(end.starts_with("line ") && many.ends_with(&end));
        assert!(end.len() as u64 <= MAX_LOG_BYTES && end.len() as u64 > MAX_LOG_BYTES - 100);
    }

    #[test]
    fn of_other_files_only_the_name_is_taken() {
        let folder = TempDir::new();
        fs::write(folder.join("calico-kubeconfig"), "token: SECRET").unwrap();
        fs::write(folder.join("10-a.conflist"), "{\"name\": \"a\", \"token\": \"SECRET\"}")
            .unwrap();
        fs::write(folder.join("20-b.conf"), "SECRET").unwrap();
        let mut bundle = Bundle::default();
        conflists(&mut bundle, &folder);
        let text = format!("{bundle:?}");
        assert!(text.contains("calico-kubeconfig") && !text.contains("SECRET"), "{text}");
        assert!(text.contains("20-b.conf: no JSON"), "{text}");
    }
}
