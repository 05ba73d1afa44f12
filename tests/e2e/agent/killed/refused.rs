//! Settings that cannot work on the node, with a kill at each change of the agent. The conflist
//! stays as the primary wrote it, and the kernel state stays as it was.

use std::fs;
use std::thread;

use super::Scene;
use crate::agent::conflist;
use crate::lab::agent::{Agent, until};
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::NICS;
use crate::node_first::refusals;

impl Scene {
    /// Whether the agent refuses its settings with this word.
    fn refuses(&self, word: &str) -> bool {
        let (code, text) = self.node().agents_page("/readyz");
        code == 503 && text.contains(word)
    }

    fn assert_conflist_is_the_primarys(&self, when: &str) {
        let file = self.folders[0].join("10-lab.conflist");
        let text = fs::read_to_string(file).expect("read the conflist");
        assert_eq!(text, conflist(self.node(), None), "{when}");
    }

    /// Kills an agent with these settings at each of its changes, and returns their number.
    fn strike_all_refused(&self, word: &str) -> usize {
        let before = Snapshot::take(self.node());
        let changes = self.run_until(None, || self.refuses(word)).changes;
        let made: Vec<usize> = (0..changes.len()).filter(|at| changes[*at].made).collect();
        self.forget();
        for at in &made {
            let run = self.run_until(Some(*at), || self.refuses(word));
            let when = format!("killed at {at}: {}", changes[*at].what);
            assert!(run.was_struck, "{when}: it was not");
            self.assert_conflist_is_the_primarys(&when);
            self.forget();
            before.assert_unchanged(&Snapshot::take(self.node()));
        }
        made.len()
    }

    /// Removes the agent's files from the disk, so that the next run writes them again.
    fn forget(&self) {
        for name in ["symroute", ".symroute.new"] {
            let _ = fs::remove_file(self.folders[1].join(name));
        }
        let _ = fs::remove_dir_all(&self.folders[2]);
        let run = self.node().dir.join("run");
        let _ = fs::remove_dir_all(&run);
        fs::create_dir(run).expect("make the folder");
    }
}

#[test]
fn with_settings_that_can_not_work() {
    let strike = |(settings, spoil, mend, word): (_, &str, &str, &str)| {
        let scene = Scene::new();
        scene.node().ns.ip(spoil);
        scene.want_settings(settings);
        let count = scene.strike_all_refused(word);
        assert!(count > 3, "{word}: {count} changes");
        println!("points walked: {count} ({word})");
        let arguments = scene.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let agent = Agent::start(scene.node(), &arguments);
        until("the next agent refuses them, too", || scene.refuses(word));
        drop(agent);
        scene.assert_conflist_is_the_primarys("after the last kill");
        scene.node().ns.ip(mend);
        scene.want(&NICS);
        drop(scene.agent());
        scene.clean_up();
    };
    thread::scope(|scope| {
        let nodes = refusals().map(|refusal| scope.spawn(move || strike(refusal)));
        for node in nodes {
            node.join().expect("no finding");
        }
    });
}
