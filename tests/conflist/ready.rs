//! Checks the conflists in `conf/`, which operators copy. `tests/runtimes` loads them with libcni.

use std::fs;
use std::path::Path;

use crate::node::{Node, copy};

#[test]
fn every_conflist_of_ours_is_ready() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/primaries");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .expect("conf/primaries")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    let wanted = [
        "aws-vpc-cni",
        "both-scopes",
        "bridge",
        "calico",
        "cilium",
        "cilium-on-aws",
        "flannel",
        "ipvlan",
        "kindnet",
        "multus",
        "multus-delegate",
        "ptp",
        "terway",
    ];
    assert_eq!(names, wanted);
    for name in names {
        let node = Node::new();
        copy(&folder.join(&name), &node.conf_dir());
        let file = if name == "multus" { "--file 10-flannel.conflist" } else { "" };
        node.run(&format!("check {file}")).assert_code(0, &name);
        let before = node.files();
        node.run(&format!("add {file}")).assert_code(0, &name);
        assert_eq!(node.files(), before, "{name}");
    }
}
