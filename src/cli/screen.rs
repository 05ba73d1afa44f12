//! Output of `--watch`: a terminal's screen that is redrawn, or a stream of lines.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::process;

/// Switches to xterm's alternate screen buffer, without cursor (DECTCEM) and line wrap (DECAWM).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Moves to the first cell and erases the screen.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Result of [`Screen::wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// The time has passed.
    Elapsed,
    /// A signal asks the tool to end.
    Ended,
}

/// Standard output and the signals that end the watch. Dropping it restores the terminal.
#[derive(Debug)]
pub(super) struct Screen {
    signals: SignalFd,
    is_terminal: bool,
}

impl Screen {
    pub(super) fn open() -> Result<Self, Errno> {
        let signals = process::ending_signals()?;
        let is_terminal = io::stdout().is_terminal();
        if is_terminal {
            process::print(ENTER.as_bytes())?;
        }
        Ok(Self { signals, is_terminal })
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Shows a text. On a terminal it replaces the previous text.
    pub(super) fn show(&self, text: &str) -> Result<(), Errno> {
        if !self.is_terminal {
            return process::print(text.as_bytes());
        }
        // A newline after the last line would scroll the screen.
        let lines: Vec<_> = text.lines().take(height()).collect();
        process::print(format!("{CLEAR}{}", lines.join("\r\n")).as_bytes())
    }

    /// Waits this long, or until a signal asks the tool to end.
    pub(super) fn wait(&self, time: Duration) -> Waited {
        let mut asked = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut asked, timeout) {
            Ok(0) | Err(_) => Waited::Elapsed,
            Ok(_) => Waited::Ended,
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_terminal {
            let _ = process::print(LEAVE.as_bytes());
        }
    }
}

/// Number of lines of the terminal; `usize::MAX` if it reports none.
fn height() -> usize {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a `struct winsize` through the pointer, and `size` outlives the call.
    let rc = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if rc == 0 && size.ws_row > 0 { usize::from(size.ws_row) } else { usize::MAX }
}
