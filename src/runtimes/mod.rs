//! The container runtimes of a node: the directories of plugins and conflists in their configuration, and
//! the directories for symroute that follow from these.
//!
//! containerd: `bin_dir`, `bin_dirs`, `conf_dir`, `max_conf_num` (docs/cri/config.md of containerd).
//! CRI-O: `plugin_dirs`, `network_dir`, `cni_default_network` (docs/crio.conf.5.md of CRI-O).

mod files;
pub(crate) mod places;

use std::path::{Path, PathBuf};

use files::Settings;

use crate::plain_file::{self, Links};

const CONTAINERD: &str = "containerd";
const CRIO: &str = "CRI-O";
/// Main files of containerd: those of Kubernetes distributions with their own containerd come first.
const CONTAINERD_FILES: [&str; 4] = [
    "var/snap/microk8s/current/args/containerd.toml",
    "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    "etc/containerd/config.toml",
];
const CONTAINERD_FRAGMENTS: &str = "etc/containerd/conf.d";
const CRIO_FILE: &str = "etc/crio/crio.conf";
const CRIO_FRAGMENTS: &str = "etc/crio/crio.conf.d";
/// Tables of CNI in containerd's configuration, for the versions 3, 2 and 1 of its format.
const CONTAINERD_TABLES: [&[&str]; 3] = [
    &["plugins", "io.containerd.cri.v1.runtime", "cni"],
    &["plugins", "io.containerd.grpc.v1.cri", "cni"],
    &["plugins", "cri", "cni"],
];
const CRIO_TABLES: [&[&str]; 1] = [&["crio", "network"]];
/// Files that name the runtime that the kubelet calls. The first file with a name counts, because the first
/// two files make the last arguments of the kubelet's command line.
const OF_KUBELET: [&str; 5] = [
    "etc/default/kubelet",
    "etc/sysconfig/kubelet",
    "var/lib/kubelet/kubeadm-flags.env",
    "var/lib/kubelet/instance-config.yaml",
    "var/lib/kubelet/config.yaml",
];

/// Sockets of running runtimes, including those of Kubernetes distributions.
const SOCKETS: [(&str, &str); 5] = [
    ("run/containerd/containerd.sock", CONTAINERD),
    ("run/k3s/containerd/containerd.sock", CONTAINERD),
    ("run/k0s/containerd.sock", CONTAINERD),
    ("var/snap/microk8s/common/run/containerd.sock", CONTAINERD),
    ("run/crio/crio.sock", CRIO),
];

/// A value and its source, such as `bin_dir of /etc/containerd/config.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sourced<T> {
    pub(crate) value: T,
    pub(crate) source: String,
}

/// Settings of CNI in a runtime's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Runtime {
    pub(crate) name: &'static str,
    /// Directories in which the runtime looks for plugins.
    pub(crate) plugins: Option<Sourced<Vec<String>>>,
    /// Directory from which the runtime reads conflists.
    pub(crate) conflists: Option<Sourced<String>>,
    /// Setting that makes the runtime take other networks than the first: its file and its text.
    pub(crate) not_first: Option<(PathBuf, String)>,
    /// Name of the only network that the runtime takes.
    pub(crate) network: Option<String>,
}

/// Reads the configurations of the runtimes in a node's file system. If the file system shows which of them
/// the kubelet calls, returns only that one.
pub(crate) fn read(root: &Path) -> Vec<Runtime> {
    let containerd = CONTAINERD_FILES.iter().find(|file| root.join(file).exists());
    let containerd = files::of_containerd(root, containerd.copied(), CONTAINERD_FRAGMENTS);
    let crio = files::of_crio(root, CRIO_FILE, CRIO_FRAGMENTS);
    let mut found: Vec<Runtime> =
        [runtime(CONTAINERD, &containerd, &CONTAINERD_TABLES), runtime(CRIO, &crio, &CRIO_TABLES)]
            .into_iter()
            .flatten()
            .collect();
    if let Some(called) = called_by_kubelet(root) {
        if found.iter().any(|runtime| runtime.name == called) {
            found.retain(|runtime| runtime.name == called);
        }
    }
    found
}

fn runtime(name: &'static str, settings: &Settings, tables: &[&[&str]]) -> Option<Runtime> {
    if settings.is_empty() {
        return None;
    }
    let list = |key: &str| settings.list(tables, key).filter(|said| !said.value.is_empty());
    let text = |key: &str| settings.text(tables, key).filter(|said| !said.value.is_empty());
    let one = |said: Sourced<String>| Sourced { value: vec![said.value], source: said.source };
    let plugins = ["bin_dirs", "plugin_dirs"].into_iter().find_map(list);
    let plugins = plugins.or_else(|| ["bin_dir", "plugin_dir"].into_iter().find_map(text).map(one));
    let network = settings.text(tables, "cni_default_network");
    let network = network.filter(|said| !said.value.is_empty());
    let many = settings.number(tables, "max_conf_num").filter(|(_, number)| *number != 1);
    let many = many.map(|(file, number)| (file, format!("max_conf_num = {number}")));
    let named = network.as_ref().and_then(|said| {
        let (file, _) = settings.place(tables, "cni_default_network")?;
        Some((file, format!("cni_default_network = \"{}\"", said.value)))
    });
    Some(Runtime {
        name,
        plugins,
        conflists: ["conf_dir", "network_dir"].into_iter().find_map(text),
        not_first: many.or(named),
        network: network.map(|said| said.value),
    })
}

/// Whether the runtime sends the DEL of a Kubernetes pod to the plugins that the conflist names at that time.
/// containerd does; CRI-O calls the plugins of the ADD, whose conflist it keeps with the result.
/// `false` if CRI-O runs or the runtime is not known: the removal then waits for pods, perhaps needlessly.
pub(crate) fn dels_follow_the_conflist(root: &Path) -> bool {
    let running =
        |name: &str| SOCKETS.iter().any(|(file, of)| *of == name && root.join(file).exists());
    if running(CRIO) {
        return false;
    }
    match called_by_kubelet(root) {
        Some(called) => called == CONTAINERD,
        None => running(CONTAINERD) || matches!(&read(root)[..], [only] if only.name == CONTAINERD),
    }
}

fn called_by_kubelet(root: &Path) -> Option<&'static str> {
    let read = |file: &&str| {
        plain_file::read_text(&root.join(file), plain_file::LONGEST, Links::Followed).ok()
    };
    let texts = OF_KUBELET.iter().filter_map(read);
    texts.into_iter().find_map(|text| {
        let called = |socket: &str| text.contains(socket);
        [("crio.sock", CRIO), ("containerd.sock", CONTAINERD)]
            .into_iter()
            .find_map(|(socket, name)| called(socket).then_some(name))
    })
}

#[cfg(test)]
mod tests;
