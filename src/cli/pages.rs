//! What is made of the description of the command line: completions and manual pages.

use std::fs;
use std::io;
use std::path::Path;

use clap::{CommandFactory as _, ValueEnum};
use clap_complete::{generate, shells};
use clap_mangen::Man;

use super::{CommandLine, Failure};
use crate::names;

/// The shells that there are completions for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The text that the shell is to read.
pub(super) fn completions(shell: Shell) -> String {
    let (mut command, mut text) = (CommandLine::command(), Vec::new());
    match shell {
        Shell::Bash => generate(shells::Bash, &mut command, names::TOOL, &mut text),
        Shell::Zsh => generate(shells::Zsh, &mut command, names::TOOL, &mut text),
        Shell::Fish => generate(shells::Fish, &mut command, names::TOOL, &mut text),
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The tool's page; or one page per command, written into a directory.
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
