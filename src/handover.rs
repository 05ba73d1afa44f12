//! Hands a command line over from the plugin to the tool. In older releases one program was both,
//! so units, manifests and people call the plugin with a command of the tool. The plugin then
//! becomes the tool by exec.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::names::{PROGRAM, TOOL, TOOL_DIR};
use crate::process;

/// Exit code of a wrong command line.
const EXIT_NO_TOOL: u8 = 2;

/// Becomes the tool with the same arguments; returns an exit code only if that fails. The plugin
/// prints its own version without the tool, so that both versions can be compared.
pub fn run(words: impl IntoIterator<Item = OsString>) -> u8 {
    let words: Vec<OsString> = words.into_iter().collect();
    if matches!(&words[..], [_, only] if only == "--version" || only == "-V") {
        let _ = process::print(concat!("symroute ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
        return 0;
    }
    let mut reason = format!("is neither beside it, nor in PATH, nor in {TOOL_DIR}");
    for tool in candidates(words.first()) {
        let error = Command::new(&tool).args(words.iter().skip(1)).exec();
        if error.kind() != io::ErrorKind::NotFound {
            reason = format!("does not run: {}: {error}", tool.display());
            break;
        }
    }
    let _ = writeln!(
        io::stderr().lock(),
        "{PROGRAM}: container runtimes call this program, as a CNI plugin; commands are for \
         {TOOL}, which {reason}; put it in place: sudo ./install.sh install"
    );
    EXIT_NO_TOOL
}

/// Paths where the tool may be, the best one first. Empty if this program was called by the tool's
/// name: it would call itself for ever.
fn candidates(called_as: Option<&OsString>) -> Vec<PathBuf> {
    if called_as.is_some_and(|name| Path::new(name).ends_with(TOOL)) {
        return Vec::new();
    }
    let own = env::current_exe().ok().and_then(|path| Some(path.parent()?.to_path_buf()));
    let path = env::var_os("PATH").unwrap_or_default();
    // A relative entry would run a file of the caller's directory.
    let named = env::split_paths(&path).filter(|folder| folder.is_absolute());
    let folders = own.into_iter().chain(named).chain([PathBuf::from(TOOL_DIR)]);
    folders.map(|folder| folder.join(TOOL)).collect()
}
