//! `symroutectl attachments`: lists the pods that still need the plugin, to check before its removal.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::result_cache::{self, Entry};
use super::{EXIT_UNHEALTHY, Failure};
use crate::error::absent_is_none;
use crate::names;
use crate::plain_file::{self, Links};
use crate::runtimes;
use crate::runtimes::places::below;
use crate::state::{Attachment, State};

/// Version of the JSON report, raised when a key changes its meaning or is removed.
const VERSION: u32 = 2;

/// Multus's cache of ADD results, below the parent of the runtime's cache. At a pod's end Multus calls
/// the plugins that it called at the start, with any runtime.
const OF_MULTUS: &str = "multus/results";

pub(super) fn tail() -> String {
    let examples = ["attachments", "attachments --json | jq -r '.cached[]'"];
    super::tail("", &[(0, "there are none"), (EXIT_UNHEALTHY, "there are some")], &examples)
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Directory of the runtime's ADD results
    #[arg(long, value_name = "DIR", default_value = names::CACHE_DIR)]
    cache_dir: PathBuf,
    /// Root of another node's file system, on which nothing runs
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

impl Words {
    fn cache(&self) -> PathBuf {
        below(&self.root, &self.cache_dir)
    }

    /// The state below `/run/symroute`; `None` with `--root`, because no node runs on that file system.
    fn state(&self) -> Option<State> {
        (self.root == Path::new("/")).then(|| State::new(names::STATE_DIR))
    }
}

/// Key and first word of the lists of attached pods. The install.sh of each release reads it.
const ATTACHED: &str = "enrolled";

/// The pods that the runtime's cache or symroute's state knows.
#[derive(Debug)]
pub(super) struct Found {
    /// Files of the caches of the runtime and of Multus, with their contents.
    cache: Vec<(PathBuf, Entry)>,
    attached: Vec<Attachment>,
    /// Path of the runtime's cache if it does not exist.
    missing: Option<PathBuf>,
    /// At the DEL of a Kubernetes pod, the runtime calls the plugins that the conflist names at that time.
    dels_follow_conflist: bool,
}

impl Found {
    /// Reads the caches of the runtime and of Multus and, if given, the state of this boot. `root` is the
    /// node's file system, which shows what runtime the node has.
    pub(super) fn of(root: &Path, cache: &Path, state: Option<&State>) -> Result<Self, Failure> {
        let mut states = Vec::new();
        if let Some(state) = state {
            states.push(state.clone());
            states.extend(state.pods()?);
        }
        let mut attached: Vec<Attachment> = Vec::new();
        for state in states {
            for attachment in state.attachments()?.readable {
                // A pod may have an attachment on the node and one in its own data plane.
                if attached.iter().all(|known| known.key != attachment.key) {
                    attached.push(attachment);
                }
            }
        }
        let mut entries = entries_of(cache)?;
        if let Some(above) = cache.parent() {
            entries.extend(entries_of(&above.join(OF_MULTUS))?);
        }
        let missing = (!cache.is_dir()).then(|| cache.to_path_buf());
        let dels_follow_conflist = runtimes::dels_follow_the_conflist(root);
        Ok(Self { cache: entries, attached, missing, dels_follow_conflist })
    }

    /// Cache files of the pods whose DEL will call symroute even if the conflist no longer names it.
    fn entries_that_call_us(&self) -> impl Iterator<Item = &(PathBuf, Entry)> {
        let follows = |path: &Path, entry: &Entry| {
            self.dels_follow_conflist
                && entry.pod.is_some()
                && !path.parent().is_some_and(|dir| dir.ends_with(OF_MULTUS))
        };
        let calls =
            move |(path, entry): &&(PathBuf, Entry)| entry.names_us && !follows(path, entry);
        self.cache.iter().filter(calls)
    }

    /// The pod of a container as `namespace/name`, if the cache knows it.
    fn pod(&self, container: &str) -> Option<&str> {
        let of = |(_, entry): &&(PathBuf, Entry)| entry.container == container;
        self.cache.iter().filter(of).find_map(|(_, entry)| entry.pod.as_deref())
    }

    /// The addresses of a pod, found by `namespace/name` or by the beginning of its container id.
    pub(super) fn addresses_of(&self, pod: &str) -> Vec<IpAddr> {
        let is = |container: &str| container.len() >= pod.len() && container.starts_with(pod);
        let cached = self.cache.iter().map(|(_, entry)| entry);
        let cached = cached.filter(|e| e.pod.as_deref() == Some(pod) || is(&e.container));
        let named = |container: &str| self.pod(container) == Some(pod) || is(container);
        let attached = self.attached.iter().filter(|a| named(&a.key.container));
        let mut found: Vec<IpAddr> = Vec::new();
        let all = cached.flat_map(|e| &e.addresses).chain(attached.flat_map(|a| &a.addresses));
        for ip in all {
            if !found.contains(ip) {
                found.push(*ip);
            }
        }
        found
    }

    /// Keeps only the pods whose DEL will call symroute after the entry is removed from the conflist.
    pub(super) fn that_call_us(mut self) -> Self {
        let unknown = self.decisive_missing_cache().is_some();
        self.attached.retain(|_| unknown);
        self
    }

    /// The missing cache, if pods are attached and only the cache could say whether their DEL calls symroute.
    fn decisive_missing_cache(&self) -> Option<&Path> {
        self.missing.as_deref().filter(|_| !self.dels_follow_conflist && !self.attached.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries_that_call_us().next().is_none() && self.attached.is_empty()
    }

    /// One line for each cache file and attachment.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        if let Some(cache) = self.decisive_missing_cache() {
            let _ = writeln!(
                text,
                "{}: no such directory, so nothing shows which pods' DEL will call symroute; name \
                                 the runtime's cache with --cache-dir",
                cache.display()
            );
        }
        for (path, entry) in self.entries_that_call_us() {
            let pod =
                entry.pod.as_deref().map_or_else(|| "a pod".into(), |pod| format!("pod {pod}"));
            let _ = writeln!(text, "{}: {pod} whose DEL will call symroute", path.display());
        }
        for Attachment { key, .. } in &self.attached {
            let pod =
                self.pod(&key.container).map_or_else(String::new, |pod| format!("pod {pod}, "));
            let _ = writeln!(
                text,
                "{ATTACHED}: {pod}{} of container {}, network {}",
                key.ifname, key.container, key.network
            );
        }
        text
    }

    fn to_json(&self) -> String {
        let cached = self.entries_that_call_us().map(|(path, _)| path.to_string_lossy());
        let pods = self.entries_that_call_us().map(|(path, entry)| {
            json!({"file": path.to_string_lossy(), "container": entry.container, "pod": entry.pod})
        });
        let attached = self.attached.iter().map(|pod| {
            json!({
                "network": pod.key.network,
                "pod": self.pod(&pod.key.container),
                "container": pod.key.container,
                "ifname": pod.key.ifname,
                "addresses": pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "hairpin": pod.hairpin,
                "leftOut": pod.left_out,
            })
        });
        let report = json!({
            "version": VERSION,
            "cached": cached.collect::<Vec<_>>(),
            "cachedPods": pods.collect::<Vec<_>>(),
            ATTACHED: attached.collect::<Vec<_>>(),
        });
        format!("{report:#}\n")
    }
}

pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let found = Found::of(&words.root, &words.cache(), words.state().as_ref())?;
    let text = if words.json { found.to_json() } else { found.to_text() };
    let code = if found.is_empty() { 0 } else { EXIT_UNHEALTHY };
    Ok((text, code))
}

/// Reads the cache files in this folder, sorted by path. Skips files that libcni did not write.
fn entries_of(folder: &Path) -> Result<Vec<(PathBuf, Entry)>, Failure> {
    let fail = |error: io::Error| Failure::Failed(format!("read {}: {error}", folder.display()));
    let entries = absent_is_none(fs::read_dir(folder)).map_err(fail)?;
    let mut found = Vec::new();
    for entry in entries.into_iter().flatten() {
        let path = entry.map_err(fail)?.path();
        let text = plain_file::read_text(&path, plain_file::LONGEST, Links::Followed);
        found.extend(result_cache::read(&text.unwrap_or_default()).map(|entry| (path, entry)));
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use crate::state::Key;
    use crate::temp_dir::TempDir;
    use std::collections::BTreeMap;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn without_a_cache_who_is_attached_may_need_us() {
        let root = TempDir::new();
        let (cache, state) = (root.join("results"), State::new(root.join("run")));
        let key = Key { network: "lab".into(), container: "c1".into(), ifname: "eth0".into() };
        let addresses = vec!["10.99.0.2".parse().unwrap()];
        let netns = String::new();
        let pod = Attachment {
            key,
            netns,
            addresses,
            hairpin: false,
            left_out: false,
            gateways: BTreeMap::new(),
        };
        let need_us = |pod: &Attachment| {
            state.attach(pod).unwrap();
            Found::of(&root.join("node"), &cache, Some(&state)).unwrap().that_call_us()
        };
        let text = need_us(&pod).to_text();
        assert!(text.contains("no such directory") && text.contains("container c1"), "{text}");
        fs::create_dir_all(&cache).unwrap();
        assert!(need_us(&pod).is_empty(), "it is not in the cache");
    }

    /// A file of the runtime's cache. Only a Kubernetes pod has a name.
    fn cached(plugin: &str, pod: Option<&str>) -> String {
        let config = json!({"name": "lab", "plugins": [{"type": "bridge"}, {"type": plugin}]});
        let arguments =
            pod.map(|pod| json!([["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", pod]]));
        json!({"kind": "cniCacheV1", "config": STANDARD.encode(config.to_string()),
            "networkName": "lab", "containerId": "c1", "ifName": "eth0", "cniArgs": arguments,
            "result": {"ips": []}})
        .to_string()
    }

    #[test]
    fn caches_of_the_runtime_and_of_multus_are_looked_at() {
        let root = TempDir::new();
        let cache = root.join("results");
        let of = || Found::of(&root.join("node"), &cache, None).unwrap();
        assert!(of().is_empty(), "no such directory");
        for (folder, plugin) in [("results", "portmap"), (OF_MULTUS, "symroute")] {
            fs::create_dir_all(root.join(folder)).unwrap();
            fs::write(root.join(folder).join("lab-c1-eth0"), cached(plugin, None)).unwrap();
        }
        let found = of();
        let paths: Vec<_> = found.entries_that_call_us().map(|(path, _)| path.clone()).collect();
        assert_eq!(paths, [root.join("multus/results/lab-c1-eth0")]);
        assert!(found.to_text().contains("multus/results/lab-c1-eth0: a pod whose DEL"));
    }

    #[test]
    fn containerd_ends_pods_of_kubernetes_by_the_conflist_of_now() {
        let root = TempDir::new();
        let (cache, node) = (root.join("results"), root.join("node"));
        for (folder, name, pod) in [
            ("results", "web", Some("web-0")),
            ("results", "podman", None),
            (OF_MULTUS, "nets", Some("web-1")),
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
            fs::write(root.join(folder).join(name), cached("symroute", pod)).unwrap();
        }
        let need_us = || {
            let found = Found::of(&node, &cache, None).unwrap();
            let name = |(path, _): &(PathBuf, _)| path.file_name().unwrap().to_owned();
            let mut names: Vec<_> = found.entries_that_call_us().map(name).collect();
            names.sort();
            names
        };
        assert_eq!(need_us(), ["nets", "podman", "web"], "nothing says which runtime it is");
        fs::create_dir_all(node.join("run/containerd")).unwrap();
        fs::write(node.join("run/containerd/containerd.sock"), "").unwrap();
        assert_eq!(need_us(), ["nets", "podman"]);
        let kubelet_calls = |file: &str, socket: &str| {
            let file = node.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("--container-runtime-endpoint=unix:///run/{socket}")).unwrap();
        };
        kubelet_calls("var/lib/kubelet/kubeadm-flags.env", "containerd/containerd.sock");
        assert_eq!(need_us(), ["nets", "podman"], "the kubelet says it");
        kubelet_calls("etc/default/kubelet", "crio/crio.sock");
        assert_eq!(need_us(), ["nets", "podman", "web"], "these words come last");
        kubelet_calls("etc/default/kubelet", "containerd/containerd.sock");
        fs::create_dir_all(node.join("run/crio")).unwrap();
        fs::write(node.join("run/crio/crio.sock"), "").unwrap();
        assert_eq!(need_us(), ["nets", "podman", "web"], "CRI-O runs, whatever a file says");
    }
}
