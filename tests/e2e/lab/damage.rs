//! Things that may be in the place of a file that the programs read.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::backend::Backend;

/// Something in the place of a file: a text without meaning, or not a regular file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Damage {
    Content(&'static [u8]),
    Folder,
    LinkToItself,
    LinkToZeros,
    Fifo,
    /// A file longer than any file of the state.
    Long,
}

const DAMAGE: [Damage; 11] = [
    Damage::Content(b""),
    Damage::Content(b"{"),
    Damage::Content(b"[]"),
    Damage::Content(b"{\"version\":1}"),
    Damage::Content(b"\0\0\0\0"),
    Damage::Content(b"{\"version\":1,\xff\xfe"),
    Damage::Folder,
    Damage::LinkToItself,
    Damage::LinkToZeros,
    Damage::Fifo,
    Damage::Long,
];

impl Damage {
    /// All kinds of damage. Reading files does not depend on the backend, so a third is enough with
    /// iptables.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let step = if Backend::of_run().is_iptables() { 3 } else { 1 };
        DAMAGE.into_iter().step_by(step)
    }

    /// Replaces the file with the damage.
    pub(crate) fn put(self, file: &Path) {
        if file.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            fs::remove_dir_all(file).expect("remove the folder");
        } else if file.symlink_metadata().is_ok() {
            fs::remove_file(file).expect("remove the file");
        }
        let made = match self {
            Self::Content(bytes) => fs::write(file, bytes),
            Self::Folder => fs::create_dir(file).and_then(|()| fs::write(file.join("a"), "b")),
            Self::LinkToItself => symlink(file, file),
            Self::LinkToZeros => symlink("/dev/zero", file),
            Self::Fifo => mkfifo(file, Mode::S_IRWXU).map_err(Into::into),
            Self::Long => File::create(file).and_then(|file| file.set_len(300 << 20)),
        };
        made.unwrap_or_else(|error| panic!("{self:?} at {}: {error}", file.display()));
    }
}
