//! Flows that run in parallel, and the outcome of each.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use super::netns::Netns;
use super::sweep;
use super::traffic::{Answer, Proto, ask};
use super::verdicts::Recorded;

/// How long a flow may take that is expected to fail: one SYN and one retransmission.
pub(crate) const BASELINE: Duration = Duration::from_millis(1500);
/// How long a flow may take that has to work.
pub(crate) const PATIENT: Duration = Duration::from_secs(8);

/// One question from `from` to `to`, and the answer that it must get.
pub(crate) struct Flow<'a> {
    pub(crate) name: String,
    pub(super) from: &'a Netns,
    pub(super) proto: Proto,
    pub(super) to: SocketAddr,
    who: &'a str,
    seen_as: IpAddr,
}

impl<'a> Flow<'a> {
    /// Makes a flow. `to` is `address:port`; `answer` is `<who> <the client's address as the server
    /// sees it>`.
    pub(crate) fn new(
        name: &str,
        from: &'a Netns,
        proto: Proto,
        to: &str,
        answer: &'a str,
    ) -> Self {
        let (who, seen_as) = answer.split_once(' ').expect("who and an address");
        Self {
            name: name.to_owned(),
            from,
            proto,
            to: to.parse().unwrap_or_else(|error| panic!("{name}: {to}: {error}")),
            who,
            seen_as: seen_as.parse().unwrap_or_else(|error| panic!("{name}: {seen_as}: {error}")),
        }
    }

    /// Whether a request that a node got belongs to this flow.
    pub(super) fn has_request(&self, one: &Recorded) -> bool {
        let from = one.from.parse().expect("an address");
        let to = (self.to.ip().to_string(), u64::from(self.to.port()));
        (&to.0, to.1, self.proto.word()) == (&one.to, one.port, &one.protocol)
            && self.from.has_address(from)
    }

    /// Why the flow did not get its answer; `None` if it did.
    pub(super) fn failure(&self, deadline: Duration) -> Option<String> {
        let wanted = Answer { who: self.who.to_owned(), seen_as: self.seen_as };
        match ask(self.from, self.proto, self.to, deadline) {
            Ok(answer) if answer == wanted => None,
            Ok(answer) => Some(format!("{answer:?} instead of {wanted:?}")),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// Runs all flows at once. Asserts that those named in `broken`, and only those, fail.
pub(crate) fn assert_only_these_fail(flows: &[Flow<'_>], broken: &[&str]) {
    sweep::begin_recording();
    assert_only_these_fail_in_pods(flows, broken);
    sweep::assert_explain_is_right(flows, broken);
}

/// Like [`assert_only_these_fail`], but does not ask `explain`: here pods make flows fail that
/// their node serves, and `explain` does not know what a pod does.
pub(crate) fn assert_only_these_fail_in_pods(flows: &[Flow<'_>], broken: &[&str]) {
    for name in broken {
        assert!(flows.iter().any(|flow| flow.name == *name), "there is no flow {name:?}");
    }
    let surprise = |flow: &Flow<'_>| {
        if broken.contains(&flow.name.as_str()) {
            let works = flow.failure(BASELINE).is_none();
            works.then(|| format!("{}: works, though it must not", flow.name))
        } else {
            Some(format!("{}: {}", flow.name, flow.failure(PATIENT)?))
        }
    };
    let surprises: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> =
            flows.iter().map(|flow| scope.spawn(move || surprise(flow))).collect();
        running.into_iter().filter_map(|flow| flow.join().expect("a flow does not panic")).collect()
    });
    let (count, all) = (surprises.len(), flows.len());
    assert!(surprises.is_empty(), "{count} of {all} flows:\n{}", surprises.join("\n"));
}

/// Runs all flows at once. Panics with the reasons if one of them fails.
pub(crate) fn assert_all_work(flows: &[Flow<'_>]) {
    assert_only_these_fail(flows, &[]);
}
