//! Traffic that goes on while a test changes the node.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::netns::Netns;
use super::traffic::Connection;

const PATIENT: Duration = Duration::from_secs(8);
/// Shortest pause between questions. The pause is as long as the last answer took if that is
/// longer, so that eight loads do not use up a slow machine.
const PACE: Duration = Duration::from_millis(2);

/// Repeats questions as long as this value lives.
pub(crate) struct Load {
    name: String,
    answers: Receiver<io::Result<()>>,
    _running: Sender<()>,
}

impl Load {
    /// Repeats questions on one connection.
    pub(crate) fn kept(client: &Netns, address: &str, port: u16) -> Self {
        let mut connection = Connection::open(client, at(address, port), PATIENT)
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        Self::start(client, format!("a connection to {address}"), move || connection.ask())
    }

    /// Repeats questions, each on a new connection.
    pub(crate) fn anew(client: &Netns, address: &str, port: u16) -> Self {
        let to = at(address, port);
        Self::start(client, format!("connections to {address}"), move || {
            Connection::open_here(to, PATIENT)?.ask()
        })
    }

    fn start<T>(
        client: &Netns,
        name: String,
        mut ask: impl FnMut() -> io::Result<T> + Send + 'static,
    ) -> Self {
        let (answered, answers) = channel();
        let (running, stopped) = channel();
        let client = client.handle();
        thread::spawn(move || {
            client.enter();
            let mut pause = PACE;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let begin = Instant::now();
                let answer = ask().map(drop);
                pause = PACE.max(begin.elapsed());
                let failed = answer.is_err();
                // The receiver sees the end of the channel.
                if answered.send(answer).is_err() || failed {
                    return;
                }
            }
        });
        Self { name, answers, _running: running }
    }

    /// Waits for 20 more answers. Returns how many there were since the last call.
    pub(crate) fn assert_goes_on(&self, after: &str) -> usize {
        let mut seen = 0;
        let mut look = |answer: io::Result<()>| {
            seen += 1;
            answer.unwrap_or_else(|error| panic!("{} stopped after {after}: {error}", self.name));
        };
        while let Ok(answer) = self.answers.try_recv() {
            look(answer);
        }
        for _ in 0..20 {
            let answer = self.answers.recv_timeout(PATIENT * 2);
            look(answer.unwrap_or_else(|_| panic!("{} stopped after {after}", self.name)));
        }
        seen
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}
