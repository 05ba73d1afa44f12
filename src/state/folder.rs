//! A look into a folder that costs the same however many files are in it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use nix::errno::Errno;

/// Room for a few entries. The C library reads 32 KiB of them at once, some 500 pods.
const ROOM: usize = 512;
/// Offset of the entry's length in `struct linux_dirent64` (`linux/dirent.h`): behind the inode and
/// the place, eight bytes each.
const LENGTH: usize = 16;
/// Offset of its name: behind the length and the type.
const NAME: usize = 19;

/// Whether there is a file whose name does not begin with a dot.
pub(super) fn has_visible(path: &Path) -> io::Result<bool> {
    let folder = File::open(path)?;
    let mut buffer = [0; ROOM];
    loop {
        // SAFETY: the kernel writes no more than the length into the buffer, which outlives the
        // call, and the descriptor is open.
        let read = unsafe {
            libc::syscall(libc::SYS_getdents64, folder.as_raw_fd(), buffer.as_mut_ptr(), ROOM)
        };
        let read = Errno::result(read).map_err(io::Error::from)?;
        let Some(entries) = usize::try_from(read).ok().and_then(|read| buffer.get(..read)) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if entries.is_empty() {
            return Ok(false);
        }
        if names(entries).any(|first| first != b'.') {
            return Ok(true);
        }
    }
}

/// The first byte of each name.
fn names(mut entries: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let length = entries.get(LENGTH..LENGTH + 2)?.try_into().ok()?;
        let first = *entries.get(NAME)?;
        // At least its own header, or this would not end.
        entries = entries.get(usize::from(u16::from_ne_bytes(length)).max(NAME)..)?;
        Some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::temp_dir::TempDir;

    #[test]
    fn hidden_files_do_not_count_however_many() {
        let folder = TempDir::new();
        assert!(!has_visible(&folder).unwrap());
        for number in 0..200 {
            fs::write(folder.join(format!(".hidden-{number}")), "").unwrap();
        }
        assert!(!has_visible(&folder).unwrap());
        fs::write(folder.join("seen"), "").unwrap();
        assert!(has_visible(&folder).unwrap());
        fs::remove_dir_all(&*folder).unwrap();
        assert_eq!(has_visible(&folder).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
