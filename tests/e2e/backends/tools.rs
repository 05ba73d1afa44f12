//! A tool fails before or after its work. The ADD then fails and leaves nothing behind, or it
//! succeeds without that tool. Where tools are missing, the error says what to install.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{VARIANTS, bare_del, settings};
use crate::lab::backend::Backend;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::two_nics;

const SYSTEM: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A folder with a stand-in for each tool of iptables and ipset, which counts its calls and fails
/// when the file `fail` says so.
struct Tools(PathBuf);

impl Tools {
    fn new(node: &Node) -> Self {
        let tools = Self(node.dir.join("tools"));
        fs::create_dir_all(&tools.0).expect("make a folder");
        let mut names = vec!["ipset".to_owned(), "iptables".to_owned(), "ip6tables".to_owned()];
        for backend in VARIANTS {
            for job in ["", "-save", "-restore"] {
                names.extend([false, true].map(|v6| backend.tool(v6, job)));
            }
            names.push(format!("x{}", &backend.tool(false, "-multi")[2..]));
        }
        for name in ["iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"] {
            names.push(name.to_owned());
        }
        for name in names {
            let file = tools.0.join(&name);
            fs::write(&file, script(&tools.0, &name)).expect("write a program");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
        }
        tools
    }

    /// Makes the tool with this number fail from now on; 0 for none.
    fn arm(&self, number: usize, when: &str) {
        fs::write(self.0.join("count"), "0").expect("reset the count");
        fs::write(self.0.join("fail"), format!("{number} {when}")).expect("tell which");
    }

    /// Number of tools started so far.
    fn count(&self) -> usize {
        let count = fs::read_to_string(self.0.join("count")).expect("the count");
        count.trim().parse().expect("a number")
    }

    fn path(&self) -> String {
        format!("{}:{SYSTEM}", self.0.display())
    }
}

fn script(folder: &Path, name: &str) -> String {
    let folder = folder.display();
    format!(
        "#!/bin/sh
         read -r count <{folder}/count
         count=$((count + 1))
         echo \"$count\" >{folder}/count
         read -r number when <{folder}/fail
         PATH={SYSTEM}
         if [ \"$count\" != \"$number\" ]; then exec {name} \"$@\"; fi
         if [ \"$when\" = after ]; then {name} \"$@\"; fi
         echo '{name}: told to fail' >&2
         exit 4
        "
    )
    .replace("\n         ", "\n")
}

/// Each tool of the first ADD fails once before and once after its work.
fn each_fails(variant: Backend) {
    let layout = two_nics();
    let (node, pod, settings) = (&layout.node, &layout.pods[1], settings(variant.name()));
    let tools = Tools::new(node);
    let add = node.call_of("ADD", &settings, pod).with("PATH", &tools.path());
    let before = Snapshot::take(node);
    tools.arm(0, "never");
    node.call(&add).assert_success("ADD");
    let count = tools.count();
    assert!(count > 0, "ADD starts tools");
    node.del(&settings, pod);
    before.assert_unchanged(&Snapshot::take(node));
    let mut wrong = String::new();
    for when in ["before", "after"] {
        for number in 1..=count {
            tools.arm(number, when);
            let ran = node.call(&add);
            if ran.success {
                assert_all_work(&[layout.flow_to_host()]);
                node.del(&settings, pod);
            } else {
                let (_, text) = ran.cni_error();
                assert!(text.contains("told to fail"), "does not say what the tool said: {text}");
            }
            let left = before.difference(&Snapshot::take(node));
            if !left.is_empty() {
                let outcome = if ran.success { "succeeded" } else { "failed" };
                let _ = writeln!(
                    wrong,
                    "tool {number} of {count} failed {when} its work; ADD {outcome} and left:\n{left}"
                );
                node.call(&bare_del(node, &settings, pod)).assert_success("DEL");
                before.assert_unchanged(&Snapshot::take(node));
            }
        }
    }
    assert!(wrong.is_empty(), "{variant:?}:\n{wrong}");
}

#[test]
fn each_of_iptables_nft_fails() {
    each_fails(Backend::IptablesNft);
}

#[test]
fn each_of_iptables_legacy_fails() {
    each_fails(Backend::IptablesLegacy);
}

/// Each tool of the last DEL fails once. The DEL succeeds, and the next one completes the work.
#[test]
fn each_of_the_last_del_fails() {
    for variant in VARIANTS {
        let layout = two_nics();
        let (node, pod, settings) = (&layout.node, &layout.pods[1], settings(variant.name()));
        let tools = Tools::new(node);
        let del = node.call_of("DEL", &settings, pod).with("PATH", &tools.path());
        let before = Snapshot::take(node);
        node.add(&settings, pod);
        tools.arm(0, "never");
        node.call(&del).assert_success("DEL");
        let count = tools.count();
        assert!(count > 0, "the last DEL starts tools");
        for number in 1..=count {
            node.add(&settings, pod);
            tools.arm(number, "before");
            let ran = node.call(&del);
            ran.assert_success("DEL");
            assert_eq!(ran.stdout, "", "DEL prints nothing");
            node.call(&bare_del(node, &settings, pod)).assert_success("another DEL");
            let left = before.difference(&Snapshot::take(node));
            assert!(left.is_empty(), "{variant:?}, tool {number} of {count}; left:\n{left}");
        }
    }
}

/// No iptables tool is installed: the error has its code and words, and nothing changes.
#[test]
fn tools_that_are_missing() {
    let hidden =
        "mount -t tmpfs none /usr/sbin && mount -t tmpfs none /usr/local/sbin && exec \"$@\"";
    for backend in ["iptables", "iptables-nft", "iptables-legacy"] {
        let layout = two_nics();
        let node = &layout.node;
        let before = Snapshot::take(node);
        let add = node.call_of("ADD", &settings(backend), &layout.pods[1]);
        let (code, text) = node.call_under(&["sh", "-c", hidden, "sh"], &add).cni_error();
        assert_eq!(code, 7, "{text}");
        for word in ["backend", "iptables", "installed"] {
            assert!(text.contains(word), "does not say {word}: {text}");
        }
        before.assert_unchanged(&Snapshot::take(node));
        // The default backend needs no tool.
        let add = node.call_of("ADD", &settings("auto"), &layout.pods[1]);
        node.call_under(&["sh", "-c", hidden, "sh"], &add).assert_success("ADD with \"auto\"");
        node.del(&settings("auto"), &layout.pods[1]);
        before.assert_unchanged(&Snapshot::take(node));
    }
}
