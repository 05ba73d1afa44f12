//! Where no agent runs, a later ADD notices a NIC that no pod leaves by: once a minute at most, and
//! after its answer.

use std::fs::File;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::lab::agent::until;
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::two_nics;

#[test]
fn a_nic_that_no_pod_leaves_by() {
    let mut layout = two_nics();
    let settings = json!({"uplinks": ["eth*"]});
    let before = Snapshot::take(&layout.node);
    layout.node.add(&settings, &layout.pods[0]);
    layout.router.plug("eth2", &layout.node.ns, "eth2", &["10.22.0.1"]);
    layout.router.assign("eth2", "10.22.0.10");
    layout.router.check_sources(&["eth0", "eth1", "eth2"]);
    let node = &layout.node;
    node.ns.ip("addr add 10.22.0.10/24 dev eth2
         route add default via 10.22.0.1 dev eth2 table 102");
    let flow = || {
        let (to, answer) = ("10.22.0.10:10250", "host 203.0.113.9");
        [Flow::new("host on eth2", &layout.client, Proto::Tcp, to, answer)]
    };
    let is_known = || node.ns.exec(&["ip", "rule"], "").contains("lookup 47003");
    node.add(&settings, &layout.pods[1]);
    assert!(!is_known(), "a look was just now, and none is due");
    assert_only_these_fail(&flow(), &["host on eth2"]);

    let record = File::options().append(true).open(node.dir.join("run/node.json"));
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    record.and_then(|file| file.set_modified(long_ago)).expect("age the record");
    node.add(&settings, &layout.pods[1]);
    until("eth2 is an uplink", is_known);
    assert_all_work(&flow());

    for pod in &layout.pods {
        node.del(&settings, pod);
    }
    node.ns.ip("link del eth2");
    before.assert_unchanged(&Snapshot::take(node));
}
