//! A matrix of flows that run side by side, and what became of each.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use super::netns::Netns;
use super::traffic::{Answer, Proto, ask};

/// How long a flow may take that is expected to fail: one SYN and one retransmission.
pub(crate) const BASELINE: Duration = Duration::from_millis(1500);
/// How long a flow may take that has to work.
pub(crate) const PATIENT: Duration = Duration::from_secs(8);

/// One question from `from` to `to`, and the answer it must get.
pub(crate) struct Flow<'a> {
    pub(crate) name: String,
    pub(crate) from: &'a Netns,
    pub(crate) proto: Proto,
    pub(crate) to: SocketAddr,
    pub(crate) who: &'a str,
    pub(crate) seen_as: IpAddr,
}

impl<'a> Flow<'a> {
    /// `to` is `address:port`; `answer` is `<who> <the client's address as the server sees it>`.
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
            to: to
                .parse()
                .unwrap_or_else(|error| panic!("{name}: {to}: {error}")),
            who,
            seen_as: seen_as
                .parse()
                .unwrap_or_else(|error| panic!("{name}: {seen_as}: {error}")),
        }
    }

    fn run(&self, deadline: Duration) -> Outcome {
        let wanted = Answer {
            who: self.who.to_owned(),
            seen_as: self.seen_as,
        };
        let failure = match ask(self.from, self.proto, self.to, deadline) {
            Ok(answer) if answer == wanted => None,
            Ok(answer) => Some(format!("{answer:?} instead of {wanted:?}")),
            Err(error) => Some(error.to_string()),
        };
        Outcome {
            flow: self.name.clone(),
            failure,
        }
    }
}

pub(crate) struct Outcome {
    pub(crate) flow: String,
    pub(crate) failure: Option<String>,
}

/// Runs all flows at once; outcomes are in the order of the flows.
pub(crate) fn run_all(flows: &[Flow<'_>], deadline: Duration) -> Vec<Outcome> {
    thread::scope(|scope| {
        let running: Vec<_> = flows
            .iter()
            .map(|flow| scope.spawn(move || flow.run(deadline)))
            .collect();
        running
            .into_iter()
            .map(|flow| flow.join().expect("a flow does not panic"))
            .collect()
    })
}

/// The names of the flows that failed.
pub(crate) fn failed(outcomes: &[Outcome]) -> Vec<&str> {
    outcomes
        .iter()
        .filter(|outcome| outcome.failure.is_some())
        .map(|outcome| outcome.flow.as_str())
        .collect()
}

/// Runs all flows and panics with the reasons unless every one of them works.
pub(crate) fn assert_all_work(flows: &[Flow<'_>]) {
    let failures: Vec<String> = run_all(flows, PATIENT)
        .into_iter()
        .filter_map(|outcome| Some(format!("{}: {}", outcome.flow, outcome.failure?)))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} flows failed:\n{}",
        failures.len(),
        flows.len(),
        failures.join("\n")
    );
}
