//! Runs the programs of iptables. Slow path only: an ADD or DEL that finds its node state in place
//! runs nothing of this.
//!
//! The `iptables` crate reads rules of iptables-nft: its `list_table` passes no `--wait`, and
//! brings no regular expressions into the program. For the rest symroute runs programs that the
//! crate does not know. `iptables-restore` makes changes. `iptables-legacy-save` does not wait for
//! the lock, unlike `iptables-legacy -S`.

use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use iptables::IPTables;

use super::restore_script::{Script, parse};
use crate::capabilities;
use crate::error::Error;
use crate::flock::{self, Held};
use crate::model::{Family, Mangle, PerFamily, Variant, VariantUse};
use crate::names;
use crate::plain_file;
use crate::process::{VALUE_MOST, cut};

/// The lock that all users of iptables-legacy take (`XT_LOCK_NAME`, iptables/xshared.h).
const LOCK: &str = "/run/xtables.lock";
/// Environment variable with the path of the lock (iptables 1.8.6 and later).
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";
/// Exit code for a held lock, and for errors of the kernel (`RESOURCE_PROBLEM`, xtables.h).
const RESOURCE_PROBLEM: i32 = 4;
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// Folders to search after those of PATH, because runtimes pass a short PATH.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// Chains that show which variant the kubelet and kube-proxy use.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
/// Tables in which symroute counts other programs' rules.
const TABLES: [&str; 4] = ["mangle", "nat", "filter", "raw"];

/// Runs iptables, and waits for its lock until a deadline.
#[derive(Debug)]
pub(crate) struct Programs {
    started: Instant,
    deadline: Instant,
    /// An existing file that no program locks; see [`Self::change`]. `None` if there is nothing to
    /// change.
    unlocked: Option<PathBuf>,
}

impl Programs {
    /// `patience`: total time to wait for the lock, from now on.
    pub(crate) fn patient(patience: Duration, unlocked: Option<PathBuf>) -> Self {
        let now = Instant::now();
        Self { started: now, deadline: now + patience, unlocked }
    }

    pub(crate) fn installed() -> Vec<Variant> {
        let is_installed = |variant: &Variant| program(*variant, Family::V4, "").is_some();
        Variant::ALL.into_iter().filter(is_installed).collect()
    }

    /// Reads table mangle, as far as symroute needs it. Skips a legacy table that the kernel does
    /// not have, because reading would create it.
    pub(crate) fn mangle(variant: Variant, family: Family) -> Result<Mangle, Error> {
        if !has_table(variant, family, "mangle") {
            return Ok(Mangle::default());
        }
        let lines = Self::list(variant, family, "mangle")?;
        Ok(parse(lines.iter().map(String::as_str)))
    }

    /// Table mangle as `iptables-save` prints it, with the counters.
    pub(crate) fn mangle_with_counts(variant: Variant, family: Family) -> Result<String, Error> {
        if !has_table(variant, family, "mangle") {
            return Ok(String::new());
        }
        Self::save(variant, family, &["-c", "-t", "mangle"])
    }

    /// All tables as `iptables-save` prints them. Empty if the kernel has no legacy table, because
    /// reading would create one.
    pub(crate) fn saved(variant: Variant, family: Family) -> Result<String, Error> {
        if !TABLES.iter().any(|table| has_table(variant, family, table)) {
            return Ok(String::new());
        }
        Self::save(variant, family, &[])
    }

    /// Reports whether the kubelet's chains are in this variant, and how many rules other programs
    /// have.
    pub(crate) fn use_of(variant: Variant) -> Result<VariantUse, Error> {
        let mut found = VariantUse::default();
        for family in Family::ALL {
            for table in TABLES {
                if !has_table(variant, family, table) {
                    continue;
                }
                let lines = match Self::list(variant, family, table) {
                    // A kernel without this table, or without IPv6, has no rules in it.
                    Err(Error::Iptables { .. }) => continue,
                    other => other?,
                };
                let hint = |line: &String| {
                    let chain = line.strip_prefix("-N ").and_then(|l| l.split(' ').next());
                    chain.is_some_and(|chain| HINTS.contains(&chain))
                };
                found.has_kubelet_chains |= lines.iter().any(hint);
                let others =
                    |line: &&String| line.starts_with("-A ") && !line.contains(names::CHAIN_PREFIX);
                found.foreign_rules += lines.iter().filter(others).count();
            }
        }
        Ok(found)
    }

    /// Reads a table as `iptables -S` prints it.
    fn list(variant: Variant, family: Family, table: &str) -> Result<Vec<String>, Error> {
        match variant {
            Variant::Nft => Self::list_nft(family, table),
            Variant::Legacy => Self::save_legacy(family, table),
        }
    }

    fn list_nft(family: Family, table: &str) -> Result<Vec<String>, Error> {
        let program = require_program(Variant::Nft, family, "")?;
        let operation = format!("{} -t {table} -S", program.display());
        let failed = |message: String| Error::Iptables { operation, message };
        // The crate wants a `'static` name. Only two names exist.
        let cmd: &'static str = program.to_string_lossy().into_owned().leak();
        let tool = IPTables { cmd, has_check: true, has_wait: false, is_numeric: false };
        match tool.list_table(table) {
            // A table always has lines for its built-in chains.
            Ok(lines) if lines.iter().any(|line| line.starts_with('-')) => Ok(lines),
            Ok(_) => Err(failed("it printed nothing; run it by hand to see why".into())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    fn save_legacy(family: Family, table: &str) -> Result<Vec<String>, Error> {
        let text = Self::save(Variant::Legacy, family, &["-t", table])?;
        let line = |line: &str| match line.strip_prefix(':') {
            Some(chain) => format!("-N {chain}"),
            None => line.to_string(),
        };
        Ok(text.lines().map(line).collect())
    }

    /// Runs `iptables-save` and returns its output.
    fn save(variant: Variant, family: Family, arguments: &[&str]) -> Result<String, Error> {
        let program = require_program(variant, family, "-save")?;
        let operation = format!("{} {}", program.display(), arguments.join(" "));
        let output = Command::new(&program).args(arguments).stdin(Stdio::null()).output();
        let failed = |message: String| Error::Iptables { operation, message };
        match output {
            Ok(output) if output.status.success() => {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            }
            Ok(output) => Err(failed(stderr_of(&output))),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Runs all scripts. If one fails, undoes those before it. Holds the lock of iptables-legacy
    /// from the first to the last, so that no other program makes a change in between.
    pub(crate) fn run(&self, scripts: &[Script]) -> Result<(), Error> {
        let legacy = scripts.iter().any(|script| script.variant == Variant::Legacy);
        let mut lock = if legacy { Some(self.lock()?) } else { None };
        for (at, script) in scripts.iter().enumerate() {
            if let Err(error) = self.change(script, &script.change, &mut lock) {
                for done in scripts[..at].iter().rev() {
                    if let Err(error) = self.change(done, &done.undo, &mut lock) {
                        log::warn!("undo: {error}");
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Runs one script of a transaction. `lock`: the lock of iptables-legacy, if this process holds
    /// it.
    fn change(&self, script: &Script, text: &str, lock: &mut Option<Held>) -> Result<(), Error> {
        let program = require_program(script.variant, script.family, "-restore")?;
        // A long list of changes must not hide the error.
        let what = cut(script.what.join(", "), VALUE_MOST);
        let operation = format!("{}: {what}", program.display());
        let failed = |message: String| Error::Iptables { operation: operation.clone(), message };
        loop {
            let mut command = Command::new(&program);
            command.arg("--noflush");
            if script.variant == Variant::Legacy {
                // Some releases wait for ever without a limit.
                command.args(["--wait", "1"]);
            }
            if let Some(unlocked) = self.unlocked.as_ref().filter(|_| lock.is_some()) {
                // This process holds the lock that each program takes. The program gets another
                // file to lock.
                command.env(LOCK_VARIABLE, unlocked);
            }
            let (code, message) = feed(command, text).map_err(|e| failed(e.to_string()))?;
            match code {
                Some(0) => return Ok(()),
                // This release of iptables ignores the variable and wants the lock that this
                // process holds. `take` releases it.
                Some(RESOURCE_PROBLEM) if lock.take().is_some() => {}
                Some(RESOURCE_PROBLEM) if script.variant == Variant::Legacy && is_locked() => {
                    self.pause()?;
                }
                _ => return Err(failed(message)),
            }
        }
    }

    fn lock(&self) -> Result<Held, Error> {
        let failed =
            |message: String| Error::Iptables { operation: format!("lock {LOCK}"), message };
        // iptables creates a missing file, so symroute does, too.
        let mut options = File::options();
        options.read(true).append(true).create(true);
        // A new file is for root only, because a process that can open it can lock it.
        let opened = options.mode(plain_file::MODE).custom_flags(libc::O_NONBLOCK).open(LOCK);
        let locked = opened.and_then(|file| flock::lock(file, self.deadline));
        locked.map_err(|error| failed(error.to_string()))?.ok_or_else(|| self.locked_too_long())
    }

    fn locked_too_long(&self) -> Error {
        let seconds = self.started.elapsed().as_secs();
        Error::XtablesLock { holder: flock::holder(Path::new(LOCK)), seconds }
    }

    fn pause(&self) -> Result<(), Error> {
        if Instant::now() >= self.deadline {
            return Err(self.locked_too_long());
        }
        thread::sleep(PAUSE);
        Ok(())
    }
}

/// Runs a program with this input, and returns its exit code and its error text.
fn feed(mut command: Command, input: &str) -> std::io::Result<(Option<i32>, String)> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading early reports why by its exit code.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    Ok((output.status.code(), stderr_of(&output)))
}

/// Error text of a program, in one line.
fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")
}

/// Whether another program holds the lock of iptables-legacy.
fn is_locked() -> bool {
    let Ok(file) = File::open(LOCK) else { return false };
    !matches!(flock::lock(file, Instant::now()), Ok(Some(_)))
}

/// Whether the table exists. For iptables-legacy the kernel lists its tables.
fn has_table(variant: Variant, family: Family, table: &str) -> bool {
    let list = || fs::read_to_string(names::LEGACY_TABLES.of(family));
    variant == Variant::Nft || list().is_ok_and(|text| text.lines().any(|line| line == table))
}

fn require_program(variant: Variant, family: Family, suffix: &str) -> Result<PathBuf, Error> {
    capabilities::limit_programs();
    program(variant, family, suffix).ok_or_else(|| Error::Iptables {
        operation: format!("find {}{suffix}", name(variant, family)),
        message: "there is no such program in PATH or in the usual places".into(),
    })
}

fn name(variant: Variant, family: Family) -> String {
    let name = variant.to_string();
    match family {
        Family::V4 => name,
        Family::V6 => name.replacen("ip", "ip6", 1),
    }
}

/// Path of a program under the name of its variant, or under plain `iptables` if that is this
/// variant. The target of the link shows which variant plain `iptables` is, without running it.
fn program(variant: Variant, family: Family, suffix: &str) -> Option<PathBuf> {
    if let Some(path) = find(&format!("{}{suffix}", name(variant, family))) {
        return Some(path);
    }
    let plain = PerFamily("iptables", "ip6tables").of(family);
    let path = find(&format!("{plain}{suffix}"))?;
    let real = fs::canonicalize(&path).ok()?.file_name()?.to_string_lossy().into_owned();
    // Before 1.8 only the legacy variant existed, without a variant in its name.
    let is = if real.contains("nft") { Variant::Nft } else { Variant::Legacy };
    (is == variant).then_some(path)
}

fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|p| p.is_file())
}
