//! Interfaces that come and go one by one, as Multus attaches them.

use super::site::{Site, name, settings};
use crate::lab::flows::assert_only_these_fail;
use crate::lab::snapshot::Snapshot;

/// Eight interfaces: without the plugin only the one with the default route answers.
#[test]
fn each_of_eight_interfaces_answers_by_itself() {
    let site = Site::new(8);
    let before = site.snapshot();
    let host = Snapshot::take(&site.node);
    let flows = site.all_flows();
    let broken: Vec<&str> =
        flows.iter().map(|flow| &*flow.name).filter(|name| !name.starts_with("eth0")).collect();
    assert_only_these_fail(&flows, &broken);
    assert!(site.strays() + site.drops() > 0, "nothing was dropped without the plugin");
    site.pod.exec(&["conntrack", "-F"], "");

    for number in 0..8 {
        site.add(&settings(), number);
    }
    for number in 0..8 {
        site.check(&settings(), number);
    }
    site.assert_answers();
    // Once more, on connections that the kernel has never seen.
    site.pod.exec(&["conntrack", "-F"], "");
    site.assert_answers();
    host.assert_unchanged_but_files(&Snapshot::take(&site.node));
    for number in (0..8).rev() {
        site.del(&settings(), number);
    }
    before.assert_unchanged(&site.snapshot());
    println!("{}", name(7));
}
