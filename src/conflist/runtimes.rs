//! What the container runtime's own configuration says about the conf dir.

use std::fs;
use std::path::{Path, PathBuf};

/// Where containerd and CRI-O are configured, folders of fragments included: k3s and RKE2 carry
/// a containerd of their own.
const FILES: [&str; 3] = [
    "etc/containerd/config.toml",
    "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "var/lib/rancher/rke2/agent/etc/containerd/config.toml",
];
const FOLDERS: [&str; 2] = ["etc/containerd/conf.d", "etc/crio/crio.conf.d"];
const CRIO: &str = "etc/crio/crio.conf";

/// The setting by which the runtime takes other networks than the first, and the file it is in.
pub(super) fn not_first(root: &Path) -> Option<(PathBuf, String)> {
    let fragments = FOLDERS.iter().flat_map(|folder| {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    });
    let files = FILES.iter().chain([&CRIO]).map(|file| root.join(file)).chain(fragments);
    files.into_iter().find_map(|path| {
        let text = fs::read_to_string(&path).ok()?;
        setting(&text).map(|setting| (path, setting))
    })
}

/// `max_conf_num` other than 1 (containerd), or a `cni_default_network` (CRI-O). Both keys occur
/// nowhere else in these files, so their lines tell enough.
fn setting(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.split('#').next()?;
        let (key, value) = line.split_once('=')?;
        let (key, value) = (key.trim().trim_matches('"'), value.trim());
        let tells = match key {
            "max_conf_num" => value != "1",
            "cni_default_network" => !value.trim_matches(['"', '\'']).is_empty(),
            _ => false,
        };
        tells.then(|| format!("{key} = {value}"))
    })
}

#[cfg(test)]
mod tests {
    use super::setting;

    #[test]
    fn settings_that_matter() {
        let containerd = "[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  max_conf_num = ";
        assert_eq!(setting(&format!("{containerd}1 # the default")), None);
        assert_eq!(setting(&format!("{containerd}0\n")).as_deref(), Some("max_conf_num = 0"));
        assert_eq!(setting("# max_conf_num = 0"), None);
        assert_eq!(setting("cni_default_network = \"\""), None);
        let crio = setting("cni_default_network = \"blue\"");
        assert_eq!(crio.as_deref(), Some("cni_default_network = \"blue\""));
    }
}
