//! Reports the agent's state to systemd (`sd_notify`): datagrams to the socket in `NOTIFY_SOCKET`.

use std::env;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager's socket. `None` if no service manager listens.
#[derive(Debug)]
pub(crate) struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    /// The manager that `NOTIFY_SOCKET` names. An invalid name counts as no manager.
    pub(crate) fn of_environment() -> Self {
        let address = env::var_os("NOTIFY_SOCKET").and_then(|name| match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
            [b'/', ..] => SocketAddr::from_pathname(&name).ok(),
            _ => None,
        });
        Self(UnixDatagram::unbound().ok().zip(address))
    }

    /// Sends lines like `READY=1`.
    pub(crate) fn notify(&self, text: &str) {
        if let Some((socket, address)) = &self.0 {
            // The agent works without a manager, so a manager that has ended is no error.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

/// Time after which systemd kills the agent without a `WATCHDOG=1` (`WatchdogSec=`). `None` if
/// systemd does not watch this process.
pub(crate) fn watchdog() -> Option<Duration> {
    let of_us = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
    let microseconds = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    of_us.then(|| Duration::from_micros(microseconds))
}
