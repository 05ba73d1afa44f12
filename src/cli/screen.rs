//! Standard output that is renewed again and again: a terminal's screen, or lines for a program.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::process;

/// Another screen than that of the shell, without a cursor and without folded lines (xterm's
/// "alternate screen buffer", DECTCEM, DECAWM).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// To the first cell, and everything from there on empty.
const CLEAR: &str = "\x1b[H\x1b[J";

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// The time is over.
    Long,
    /// A signal asks for the end.
    Ended,
}

/// The screen, and the signals that end what is shown on it. Dropped, it gives the terminal back.
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

    /// Shows a text, in the place of the one before where that can be.
    pub(super) fn show(&self, text: &str) -> Result<(), Errno> {
        if !self.is_terminal {
            return process::print(text.as_bytes());
        }
        // The last line has no end, or the screen would move up.
        let lines: Vec<_> = text.lines().take(height()).collect();
        process::print(format!("{CLEAR}{}", lines.join("\r\n")).as_bytes())
    }

    /// Waits this long, or until a signal asks for the end.
    pub(super) fn wait(&self, time: Duration) -> Waited {
        let mut asked = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut asked, timeout) {
            Ok(0) | Err(_) => Waited::Long,
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

/// The lines of the terminal; as many as there may be where it does not say.
fn height() -> usize {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a `struct winsize` to where the pointer leads, which outlives the call.
    let rc = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if rc == 0 && size.ws_row > 0 { usize::from(size.ws_row) } else { usize::MAX }
}
