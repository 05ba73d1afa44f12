//! Tests of what runtimes' configurations say.

use std::fs;

use super::places::{Given, conflists, plugins};
use super::*;
use crate::temp_dir::TempDir;

/// A node's file system with these files.
fn node(files: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new();
    for (file, text) in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

const V2: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n";
const CONTAINERD: &str = "etc/containerd/config.toml";

fn plugins_of(root: &Path, given: &Given, primary: Option<&str>) -> Result<String, String> {
    let found = plugins(root, &read(root), given, primary);
    found.map(|place| place.value.display().to_string()).map_err(|reason| reason.to_string())
}

#[test]
fn settings_that_take_other_networks() {
    let said = |file: &str, text: &str| {
        let found = read(&node(&[(file, text)])).pop();
        found.and_then(|runtime| runtime.not_first).map(|(_, said)| said)
    };
    assert_eq!(said(CONTAINERD, &format!("{V2}max_conf_num = 1 # the default")), None);
    let many = said(CONTAINERD, &format!("{V2}max_conf_num = 0\n"));
    assert_eq!(many.as_deref(), Some("max_conf_num = 0"));
    assert_eq!(said(CONTAINERD, "# max_conf_num = 0"), None);
    assert_eq!(said("etc/crio/crio.conf", "[crio.network]\ncni_default_network = \"\""), None);
    let blue =
        said("etc/crio/crio.conf.d/5.conf", "[crio.network]\ncni_default_network = \"blue\"");
    assert_eq!(blue.as_deref(), Some("cni_default_network = \"blue\""));
}

#[test]
fn the_runtime_says_where_it_looks() {
    let nothing = Given::default();
    for (files, wanted) in [
        (vec![(CONTAINERD, format!("{V2}bin_dir = \"/usr/lib/cni\"\n"))], "/usr/lib/cni"),
        (
            vec![(
                CONTAINERD,
                "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/a', '/b']\n"
                    .into(),
            )],
            "/a",
        ),
        (
            vec![
                (CONTAINERD, format!("imports = [\"more/*.toml\"]\n{V2}bin_dir = \"/opt/cni/bin\"\n")),
                ("etc/containerd/more/1.toml", format!("{V2}bin_dir = \"/imported\"\n")),
            ],
            "/imported",
        ),
        (
            vec![
                ("etc/crio/crio.conf", "[crio.network]\nplugin_dirs = [\"/first\"]\n".into()),
                ("etc/crio/crio.conf.d/1", "[crio.network]\nplugin_dirs = [\n \"/later\",\n]\n".into()),
            ],
            "/later",
        ),
        (vec![], "/opt/cni/bin"),
    ] {
        let files: Vec<(&str, &str)> = files.iter().map(|(f, t)| (*f, t.as_str())).collect();
        let root = node(&files);
        assert_eq!(plugins_of(&root, &nothing, None).as_deref(), Ok(wanted));
    }
}

#[test]
fn of_several_directories_the_primarys_is_taken() {
    let text = "[crio.network]\nplugin_dirs = [\"/a\", \"/b\"]\nnetwork_dir = \"/nets\"\n";
    let root = node(&[("etc/crio/crio.conf", text), ("b/flannel", "")]);
    assert_eq!(plugins_of(&root, &Given::default(), Some("flannel")).as_deref(), Ok("/b"));
    let found = conflists(&root, &read(&root), &Given::default()).unwrap();
    assert_eq!(
        found,
        Sourced { value: "/nets".into(), source: "network_dir of /etc/crio/crio.conf".into() }
    );
    // Without a configuration, the primary's program decides.
    let root = node(&[("usr/libexec/cni/flannel", "")]);
    let found = plugins_of(&root, &Given::default(), Some("flannel"));
    assert_eq!(found.as_deref(), Ok("/usr/libexec/cni"));
}

#[test]
fn disagreement_is_refused_with_both_sides() {
    let here = format!("{V2}bin_dir = \"/usr/lib/cni\"\nconf_dir = \"/nets\"\n");
    let crio = "[crio.network]\nplugin_dirs = [\"/opt/cni/bin\"]\n";
    let named = Given { plugins: Some("/opt/cni/bin".into()), ..Given::default() };
    let root = node(&[(CONTAINERD, &here), ("opt/cni/bin/flannel", "")]);
    for (given, primary, words) in [
        (&named, None, ["--bin-dir /opt/cni/bin", "/usr/lib/cni"]),
        (&Given::default(), Some("flannel"), ["is in /opt/cni/bin", "says /usr/lib/cni"]),
    ] {
        let said = plugins_of(&root, given, primary).unwrap_err();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    let given = Given { conflists: Some("/etc/cni/net.d".into()), ..Given::default() };
    let said = conflists(&root, &read(&root), &given).unwrap_err().to_string();
    assert!(said.contains("--conf-dir /etc/cni/net.d") && said.contains("/nets"), "{said}");
    // Two runtimes: an error, unless a file names the one that the kubelet calls.
    let both = [(CONTAINERD, here.as_str()), ("etc/crio/crio.conf", crio)];
    let said = plugins_of(&node(&both), &Given::default(), None).unwrap_err();
    assert!(said.contains("bin_dir of") && said.contains("plugin_dirs of"), "{said}");
    let kubelet = ("var/lib/kubelet/kubeadm-flags.env", "--endpoint=unix:///run/crio/crio.sock");
    let root = node(&[both[0], both[1], kubelet]);
    assert_eq!(plugins_of(&root, &Given::default(), None).as_deref(), Ok("/opt/cni/bin"));
    // The distribution's link replaces the path of its current release.
    let text = V2.to_owned() + "bin_dir = \"/snap/7/bin\"\nconf_dir = \"/snap/7/nets\"\n";
    let root = node(&[(CONTAINERD, &text), ("snap/7/bin/flannel", ""), ("snap/7/nets/x", "")]);
    std::os::unix::fs::symlink("7", root.join("snap/current")).unwrap();
    let [likely_plugins, likely_conflists] =
        ["/snap/current/bin", "/snap/current/nets"].map(|dir| Some(PathBuf::from(dir)));
    let given = Given { likely_plugins, likely_conflists, ..Given::default() };
    assert_eq!(plugins_of(&root, &given, Some("flannel")).as_deref(), Ok("/snap/current/bin"));
    let found = conflists(&root, &read(&root), &given).unwrap();
    assert_eq!(found.value, Path::new("/snap/current/nets"));
    // A link to the right directory counts as this directory.
    let root = node(&[(CONTAINERD, &here), ("opt/cni/bin/flannel", "")]);
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    std::os::unix::fs::symlink(root.join("opt/cni/bin"), root.join("usr/lib/cni")).unwrap();
    assert_eq!(plugins_of(&root, &named, Some("flannel")).as_deref(), Ok("/opt/cni/bin"));
}
