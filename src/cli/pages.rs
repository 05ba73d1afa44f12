//! Completions and manual pages, made from the clap declarations of the command line.

use std::fs;
use std::io;
use std::path::Path;

use clap::{CommandFactory as _, ValueEnum};
use clap_complete::{generate, shells};
use clap_mangen::Man;

use super::{CommandLine, Failure};
use crate::names;

/// The shells that completions are available for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The completion script for a shell.
pub(super) fn completions(shell: Shell) -> String {
    let (mut command, mut text) = (CommandLine::command(), Vec::new());
    match shell {
        Shell::Bash => generate(shells::Bash, &mut command, names::TOOL, &mut text),
        Shell::Zsh => generate(shells::Zsh, &mut command, names::TOOL, &mut text),
        Shell::Fish => generate(shells::Fish, &mut command, names::TOOL, &mut text),
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The tool's manual page as text, or empty text after writing one page per command into `folder`.
pub(super) fn manual(folder: Option<&Path>) -> Result<String, Failure> {
    let command = CommandLine::command();
    let Some(folder) = folder else {
        let mut page = Vec::new();
        let fail = |error: io::Error| Failure::Failed(format!("make the page: {error}"));
        Man::new(command).render(&mut page).map_err(fail)?;
        return Ok(String::from_utf8_lossy(&page).into_owned());
    };
    let fail = |error: io::Error| Failure::Failed(format!("{}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(fail)?;
    clap_mangen::generate_to(command, folder).map_err(fail)?;
    Ok(String::new())
}
