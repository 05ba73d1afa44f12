//! `symroutectl agent`: runs as a daemon and restores the active configuration whenever another
//! program changes it.
//!
//! [`events`] report what happened, and [`filter`] decides whether an event may matter. The
//! [`cause`]s gather for a moment ([`pace`]). Then one turn of [`heal`] looks at the node and
//! repairs it. The plugin does not need the agent.

pub(crate) mod binary;
pub(crate) mod cause;
pub(crate) mod conflist;
pub(crate) mod events;
pub(crate) mod filter;
pub(crate) mod heal;
pub(crate) mod http;
pub(crate) mod managed_file;
pub(crate) mod metrics;
pub(crate) mod notify;
pub(crate) mod pace;
mod sources;
pub(crate) mod status;

use std::future::ready;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::config::source::SettingsSource;
use crate::process;
use crate::state::{AgentLock, State};
use cause::{Cause, Causes, Pending};
use filter::Filter;
use heal::Healer;
use http::{Answer, Answers};
use managed_file::Keeper;
use metrics::Counters;
use notify::Manager;
use status::{Board, Status};

/// `/healthz` fails when the loop has not turned for this long.
const MAX_BEAT_AGE: Duration = Duration::from_secs(60);
/// Maximum time that the loop waits for an event.
const BEAT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) source: SettingsSource,
    /// The runtime's directory of cached CNI results.
    pub(crate) cache: PathBuf,
    /// Address that serves `/healthz`, `/readyz` and `/metrics`; `None` serves nothing.
    pub(crate) listen: Option<SocketAddr>,
    /// Values of the HTTP `Host` header to accept beside addresses, `localhost` and the host name.
    pub(crate) hosts: Vec<String>,
    /// Time between two looks at the whole node without an event.
    pub(crate) resync: Duration,
    pub(crate) keepers: Vec<Keeper>,
}

/// State that all tasks of the agent share.
#[derive(Debug)]
struct Shared {
    pending: Pending,
    filter: Mutex<Filter>,
    board: Mutex<Board>,
    beat: Mutex<Instant>,
    stop: std::sync::atomic::AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the agent until SIGTERM or SIGINT. The active configuration and the agent's hold stay.
/// Error: why the agent can't start, or that a turn panicked.
pub(crate) fn run(options: Options) -> Result<(), String> {
    let _lock = only_agent()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        // The kernel reports this name with each change of nftables; see `events::nftables`.
        .thread_name(crate::names::PROGRAM)
        // One for a turn, one for a page of metrics at the same time.
        .max_blocking_threads(2)
        .build()
        .map_err(|error| format!("start: {error}"))?;
    runtime.block_on(serve(options))
}

/// Takes the lock that keeps a second agent from running on this node.
/// Error: another agent runs, or the lock can't be taken.
fn only_agent() -> Result<AgentLock, String> {
    let state = State::new(crate::names::STATE_DIR);
    AgentLock::acquire(&state).map_err(|error| error.to_string())?.map_err(|pid| {
        let who = pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
        format!("an agent runs on this node already, {who}; stop that one first")
    })
}

async fn serve(options: Options) -> Result<(), String> {
    let shared = Arc::new(Shared {
        pending: Pending::default(),
        filter: Mutex::default(),
        board: Mutex::default(),
        beat: Mutex::new(Instant::now()),
        stop: false.into(),
    });
    if let Some(address) = options.listen {
        let listener = http::listen(address).await?;
        let local = ["localhost".to_owned(), process::host_name()];
        let names = options.hosts.iter().cloned().chain(local).collect();
        tokio::spawn(http::serve(listener, names, answers(&shared)));
    }
    // Before the first look: the kernel then reports what changes during that look.
    sources::start(&shared, &options)?;
    let healer = Healer::new(options.source, options.keepers, options.cache);
    shared.pending.add(Cause::Start);
    Loop::new(shared, healer, options.resync).run().await
}

fn answers(shared: &Arc<Shared>) -> Answers {
    let shared = Arc::clone(shared);
    let counters = Arc::new(Mutex::new(Counters::default()));
    // One page at a time, so that requests never take the thread that a turn needs.
    let turnstile = Arc::new(Semaphore::new(1));
    Arc::new(move |path| {
        if path == "/metrics" {
            let (shared, counters) = (Arc::clone(&shared), Arc::clone(&counters));
            let turnstile = Arc::clone(&turnstile);
            return Box::pin(async move {
                let only = turnstile.acquire_owned().await.ok()?;
                // To read counters of iptables, the agent runs programs; the loop must not wait.
                let page = spawn_blocking(move || {
                    let _only = only;
                    let marked_by = lock(&shared.board).marked_by;
                    let counts = marked_by.and_then(|by| lock(&counters).counts(by));
                    let offloaded = marked_by.and_then(|by| lock(&counters).offloaded(by));
                    metrics::page(&lock(&shared.board), counts.as_ref(), offloaded.as_ref())
                });
                page.await.ok().map(|text| Answer { is_ok: true, text })
            });
        }
        Box::pin(ready(at_once(&shared, path)))
    })
}

/// Answers `/healthz` and `/readyz` from memory. `None` for other paths.
fn at_once(shared: &Shared, path: &str) -> Option<Answer> {
    match path {
        "/healthz" => {
            let since = lock(&shared.beat).elapsed();
            let text = format!("the loop turned {} s ago\n", since.as_secs());
            Some(Answer { is_ok: since < MAX_BEAT_AGE, text })
        }
        "/readyz" => {
            let board = lock(&shared.board);
            let reasons = board.unready();
            let text = if reasons.is_empty() { "ready".into() } else { reasons.join("\n") };
            Some(Answer { is_ok: reasons.is_empty(), text: text + "\n" })
        }
        _ => None,
    }
}

/// The main loop: waits for causes and starts a turn for them.
struct Loop {
    shared: Arc<Shared>,
    healer: Option<Healer>,
    resync: Duration,
    beat: Duration,
    manager: Manager,
    next_resync: Instant,
    next_retry: Option<Instant>,
    failures: u32,
    /// Causes that wait until `until`, because another program undoes the repairs again and again.
    deferred: Causes,
    until: Option<Instant>,
    reported_ready: bool,
}

impl Loop {
    fn new(shared: Arc<Shared>, healer: Healer, resync: Duration) -> Self {
        let beat = notify::watchdog().map_or(BEAT, |limit| (limit / 3).min(BEAT));
        Self {
            shared,
            healer: Some(healer),
            resync,
            beat,
            manager: Manager::of_environment(),
            next_resync: Instant::now() + resync,
            next_retry: None,
            failures: 0,
            deferred: Causes::new(),
            until: None,
            reported_ready: false,
        }
    }

    async fn run(mut self) -> Result<(), String> {
        loop {
            let woken = timeout(self.max_wait(), self.shared.pending.added()).await.is_ok();
            *lock(&self.shared.beat) = Instant::now();
            self.manager.notify("WATCHDOG=1");
            if self.shared.stop.load(std::sync::atomic::Ordering::Relaxed) {
                self.manager.notify("STOPPING=1");
                log::info!("agent: a signal ends it; what is in force stays");
                return Ok(());
            }
            if woken {
                gather_events(&self.shared.pending).await;
            }
            let causes = self.due();
            if causes.is_empty() {
                continue;
            }
            let Some(healer) = self.healer.take() else { continue };
            let took = self.turn(healer, causes).await?;
            sleep(pace::rest_after(took)).await;
        }
    }

    /// Maximum time to wait for a cause: until the next resync, retry, deferred turn or beat.
    fn max_wait(&self) -> Duration {
        let dates = [Some(self.next_resync), self.next_retry, self.until];
        let now = Instant::now();
        let until = |date: Instant| date.saturating_duration_since(now);
        dates.into_iter().flatten().map(until).fold(self.beat, Duration::min)
    }

    /// Takes the causes for a turn that starts now. Empty: no turn is due.
    fn due(&mut self) -> Causes {
        let now = Instant::now();
        let mut causes = self.shared.pending.take();
        if self.next_resync <= now {
            causes.insert(Cause::Resync);
        }
        if self.next_retry.is_some_and(|date| date <= now) {
            causes.insert(Cause::Retry);
        }
        causes.append(&mut self.deferred);
        self.until = None;
        let wait = self.healer.as_mut().and_then(|healer| healer.repairs.wait(&causes, now));
        if let Some(wait) = wait {
            self.deferred = std::mem::take(&mut causes);
            self.until = Some(now + wait);
        }
        causes
    }

    async fn turn(&mut self, mut healer: Healer, causes: Causes) -> Result<Duration, String> {
        let begin = Instant::now();
        let all = causes.iter().any(|cause| cause.is_periodic());
        let turned = spawn_blocking(move || {
            let status = healer.turn(&causes);
            (healer, status)
        });
        let (healer, status) = turned.await.map_err(|error| format!("a turn ended: {error}"))?;
        self.healer = Some(healer);
        if all {
            self.next_resync = Instant::now() + self.resync;
        }
        self.failures = if status.failed() { self.failures.saturating_add(1) } else { 0 };
        self.next_retry =
            (self.failures > 0).then(|| Instant::now() + pace::retry_after(self.failures));
        self.publish(status);
        Ok(begin.elapsed())
    }

    fn publish(&mut self, status: Status) {
        if let Some(found) = &status.found {
            let plan = &found.view.plan;
            let uplinks = plan.uplinks.iter().map(|uplink| uplink.link).collect();
            let mut filter = lock(&self.shared.filter);
            let before = std::mem::replace(&mut filter.offloads, plan.offloads());
            filter.learn(&found.settings, uplinks, &found.view.facts);
            if plan.offloads() && !before {
                // The filter ignored interfaces of pods that appeared since the look.
                self.shared.pending.add(Cause::Pods);
            }
            filter.variant = plan.xtables.as_ref().map(|xtables| xtables.variant);
            filter.sizes = status.sizes;
        }
        let mut board = lock(&self.shared.board);
        board.update(status);
        if !self.reported_ready {
            // Also with invalid settings: a restart would not repair those.
            self.manager.notify("READY=1");
            self.reported_ready = true;
        }
        let text = board.unready().first().map_or("ready".into(), |text| text.replace('\n', " "));
        self.manager.notify(&format!("STATUS={text}"));
    }
}

/// Waits for further causes until none arrives for [`pace::QUIET`], at most [`pace::CEILING`].
async fn gather_events(pending: &Pending) {
    let end = Instant::now() + pace::CEILING;
    loop {
        let left = end.saturating_duration_since(Instant::now()).min(pace::QUIET);
        if left.is_zero() || timeout(left, pending.added()).await.is_err() {
            return;
        }
    }
}
