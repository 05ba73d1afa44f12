//! Starts the sources of events, one task for each source.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::cause::Cause;
use super::events::files::{self, Folder};
use super::events::{nftables, route};
use super::filter::Event;
use super::managed_file::Keeper;
use super::{Options, Shared, lock};
use crate::backend::iptables::table_size;
use crate::config::source::SettingsSource;

/// Pause before the agent opens a failed source again.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between two reads of the table sizes of iptables-legacy.
const POLL: Duration = Duration::from_secs(1);

impl Shared {
    /// Counts an event that matters, and adds its cause.
    fn happened(&self, cause: Cause) {
        let mut board = lock(&self.board);
        board.events += 1;
        board.lost += u64::from(cause == Cause::Lost);
        drop(board);
        self.pending.add(cause);
    }
}

/// Starts all sources. A netlink source that starts later asks for a look when it listens.
/// Error: the kernel refuses a signal handler or an inotify instance.
pub(super) fn start(shared: &Arc<Shared>, options: &Options) -> Result<(), String> {
    signals(shared)?;
    folders(shared, options)?;
    tokio::spawn(rtnetlink(Arc::clone(shared)));
    tokio::spawn(nf_tables(Arc::clone(shared)));
    tokio::spawn(iptables_legacy(Arc::clone(shared)));
    Ok(())
}

/// SIGTERM and SIGINT end the agent.
fn signals(shared: &Arc<Shared>) -> Result<(), String> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(|error| format!("wait for signals: {error}"))?;
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            signals.recv().await;
            shared.stop.store(true, Ordering::Relaxed);
            shared.pending.wake();
        });
    }
    Ok(())
}

fn folders(shared: &Arc<Shared>, options: &Options) -> Result<(), String> {
    let mut folders: Vec<_> = options.keepers.iter().map(Keeper::folder).collect();
    folders.extend([folder_of(&options.source)]);
    let watches = files::Watches::on(folders)?;
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        if let Err(error) = watches.watch(|cause| shared.happened(cause)).await {
            log::error!("agent: {error}; from now on the agent notices changed files at a resync");
        }
    });
    Ok(())
}

/// The directory to watch for changes of the settings.
fn folder_of(source: &SettingsSource) -> Folder {
    let (path, names) = match source {
        SettingsSource::File(path) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let name = path.file_name().map(|name| vec![name.to_os_string()]);
            (parent.unwrap_or(Path::new(".")), name)
        }
        SettingsSource::Folder(path) => (path.as_path(), None),
    };
    Folder { path: path.into(), cause: Cause::Conflist, names }
}

async fn rtnetlink(shared: Arc<Shared>) {
    loop {
        // The socket missed earlier events, so ask for a look at the whole node.
        let ready = || shared.pending.add(Cause::Lost);
        let take = |event: Event| {
            let cause = lock(&shared.filter).judge(event);
            if let Some(cause) = cause {
                shared.happened(cause);
            }
        };
        if let Err(error) = route::watch(ready, take).await {
            log::error!("agent: {error}; trying again in a second");
        }
        sleep(PAUSE).await;
    }
}

async fn nf_tables(shared: Arc<Shared>) {
    loop {
        let ready = || shared.pending.add(Cause::Lost);
        let take = |event| {
            shared.happened(match event {
                nftables::Event::Foreign => Cause::Nftables,
                nftables::Event::Mangle if !lock(&shared.filter).minds_iptables_nft() => return,
                nftables::Event::Mangle => Cause::Iptables,
                nftables::Event::Lost => Cause::Lost,
            });
        };
        if let Err(error) = nftables::watch(ready, take).await {
            log::error!("agent: {error}; trying again in a second");
        }
        sleep(PAUSE).await;
    }
}

/// Reads the table sizes of iptables-legacy once a second: the kernel reports no events for it.
async fn iptables_legacy(shared: Arc<Shared>) {
    loop {
        sleep(POLL).await;
        let sizes = lock(&shared.filter).minds_iptables_legacy().then(table_size::sizes);
        if let Some(cause) = sizes.and_then(|sizes| lock(&shared.filter).judge_sizes(sizes)) {
            shared.happened(cause);
        }
    }
}
