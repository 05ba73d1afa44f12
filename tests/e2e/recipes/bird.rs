//! BIRD as a BGP speaker, in a namespace of the lab, with its files in a directory of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::{env, process};

use crate::lab::netns::{Netns, has_to_keep, unique};

/// A BIRD that runs until this value is dropped. That ends its sessions.
pub(super) struct Bird {
    child: Child,
    dir: PathBuf,
}

impl Bird {
    /// Starts a speaker on a node. It announces to these routers what `protocols` gives to it, accepts
    /// nothing from them, and touches no route of the kernel, as MetalLB's speaker.
    pub(super) fn announcing(ns: &Netns, protocols: &str, peers: &[(&str, &str)]) -> Self {
        let mut text = format!("router id {};\nprotocol device {{}}\n{protocols}\n", peers[0].0);
        for (own, router) in peers {
            text.push_str(&session(
                &format!("local {own} as 64500; neighbor {router} as 64501; connect delay time 1; connect retry time 1;"),
                "import none; export all; next hop self;",
            ));
        }
        Self::start(ns, &text)
    }

    /// Starts a router that writes the routes that these nodes announce into its routing table.
    pub(super) fn listening(ns: &Netns, own: &str, nodes: &[&str]) -> Self {
        let mut text = format!(
            "router id {own};
             protocol device {{}}
             protocol kernel {{ ipv4 {{ import none; export all; }}; }}\n"
        );
        for node in nodes {
            text.push_str(&session(
                &format!("local {own} as 64501; neighbor {node} as 64500; passive on;"),
                "import all; export none;",
            ));
        }
        Self::start(ns, &text)
    }

    fn start(ns: &Netns, text: &str) -> Self {
        let dir = env::temp_dir().join(format!("symroute-bird-{}-{}", process::id(), unique()));
        fs::create_dir_all(&dir).expect("make the directory of bird");
        fs::write(dir.join("bird.conf"), text).expect("write its configuration");
        let child = Command::new("ip")
            .args(["netns", "exec", ns.name(), "bird", "-f", "-c"])
            .arg(dir.join("bird.conf"))
            .arg("-s")
            .arg(dir.join("bird.ctl"))
            .stdin(Stdio::null())
            .spawn()
            .expect("start bird");
        Self { child, dir }
    }
}

fn session(ends: &str, routes: &str) -> String {
    format!("protocol bgp {{ {ends} ipv4 {{ {routes} }}; }}\n")
}

impl Drop for Bird {
    fn drop(&mut self) {
        // `ip` has become bird, so the process is the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if has_to_keep() {
            println!("kept: {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
