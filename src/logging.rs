//! The log: a file, or standard error. The first line opens the file, so an ADD that logs nothing does not
//! touch it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::SystemTime;

use log::{LevelFilter, Metadata, Record};

use crate::config::Log;
use crate::{plain_file, process};

#[derive(Debug)]
struct Logger {
    /// None for standard error.
    path: Option<PathBuf>,
    file: Mutex<Option<File>>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Sends log lines to the configured file from now on. Later calls have no effect.
pub(crate) fn start(log: &Log) {
    begin(Some(log.file.clone()), log.level);
}

/// Sends log lines to standard error from now on, as in a container. Later calls have no effect.
pub(crate) fn start_on_stderr() {
    begin(None, LevelFilter::Info);
}

fn begin(path: Option<PathBuf>, level: LevelFilter) {
    let logger = LOGGER.get_or_init(|| Logger { path, file: Mutex::new(None) });
    // An error means that a logger is already set.
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}

/// Opens the log. A FIFO without a reader must not block a pod. A link could make root write to any file.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(plain_file::MODE);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY).open(path)
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Trace && log::max_level() >= metadata.level()
    }

    fn log(&self, record: &Record<'_>) {
        let Ok(mut file) = self.file.lock() else { return };
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        // A name that a pod has chosen must not start a new log line or control a terminal.
        let text =
            process::without_control_characters(&record.args().to_string()).replace('\n', "\n    ");
        let line = format!("{time} {:5} [{}] {text}\n", record.level(), std::process::id());
        let Some(path) = &self.path else {
            let _ = io::stderr().lock().write_all(line.as_bytes());
            return;
        };
        if file.is_none() {
            *file = open(path)
                .inspect_err(|error| {
                    let _ =
                        writeln!(io::stderr().lock(), "write the log {}: {error}", path.display());
                })
                .ok();
        }
        // One write per line: parallel calls append to one file. A log that can't be written must not fail a
        // pod.
        let _ = file.as_mut().map(|file| file.write_all(line.as_bytes()));
    }

    fn flush(&self) {}
}
