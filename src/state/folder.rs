//! Reads parts of a folder at a cost that does not depend on the number of files.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// Bytes for a few entries. The C library reads 32 KiB of them at once, some 300 pods.
const ROOM: usize = 512;
/// Maximum number of files that are counted one by one. The kubelet runs 110 pods at most by
/// default.
const COUNTED: usize = 128;
/// Bytes that a tmpfs adds to the size of a folder for each file (`BOGO_DIRENT_SIZE`,
/// `mm/shmem.c`).
const TMPFS_ENTRY: u64 = 20;
/// Entries in the size of a tmpfs folder that are not files: the folder itself and its parent.
const TMPFS_OWN: u64 = 2;
/// Offsets in `struct linux_dirent64` (`linux/dirent.h`): the position behind the entry (8 bytes),
/// the length of the entry (2 bytes), and the name, which ends with a zero byte.
const PLACE: usize = 8;
const LENGTH: usize = 16;
const NAME: usize = 19;

/// Reads a folder a few entries at a time.
struct Reader {
    folder: File,
    buffer: [u8; ROOM],
    /// Part of the buffer that holds unread entries.
    rest: std::ops::Range<usize>,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Self> {
        let folder = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)?;
        Ok(Self { folder, buffer: [0; ROOM], rest: 0..0 })
    }

    /// The next file whose name does not begin with a dot, and the position behind it.
    fn next(&mut self) -> io::Result<Option<(OsString, u64)>> {
        while !self.rest.is_empty() || self.fill()? {
            let entry = parse(&self.buffer[self.rest.clone()]);
            let (name, place, length) = entry.ok_or(io::ErrorKind::InvalidData)?;
            self.rest.start += length;
            if !name.as_encoded_bytes().starts_with(b".") {
                return Ok(Some((name, place)));
            }
        }
        Ok(None)
    }

    /// Reads more entries into the buffer; false at the end of the folder.
    fn fill(&mut self) -> io::Result<bool> {
        // SAFETY: the kernel writes no more than the length into the buffer, which outlives the
        // call, and the descriptor is open.
        let read = unsafe {
            let (folder, buffer) = (self.folder.as_raw_fd(), self.buffer.as_mut_ptr());
            libc::syscall(libc::SYS_getdents64, folder, buffer, ROOM)
        };
        let read = Errno::result(read).map_err(io::Error::from)?;
        // Never more than the buffer has room for.
        self.rest = 0..usize::try_from(read).unwrap_or(0);
        Ok(read != 0)
    }
}

/// Name of the first entry, the position behind it, and its length in bytes.
fn parse(entries: &[u8]) -> Option<(OsString, u64, usize)> {
    let place = u64::from_ne_bytes(entries.get(PLACE..PLACE + 8)?.try_into().ok()?);
    let length = u16::from_ne_bytes(entries.get(LENGTH..LENGTH + 2)?.try_into().ok()?).into();
    let name = CStr::from_bytes_until_nul(entries.get(NAME..length)?).ok()?;
    Some((OsStr::from_bytes(name.to_bytes()).to_owned(), place, length))
}

/// Whether there is a file whose name does not begin with a dot.
pub(super) fn has_visible(path: &Path) -> io::Result<bool> {
    Ok(Reader::open(path)?.next()?.is_some())
}

/// Number of files whose name does not begin with a dot. From [`COUNTED`] files on, a tmpfs gives
/// the number, which includes hidden files of running and killed calls.
pub(super) fn count(path: &Path) -> io::Result<usize> {
    let mut reader = Reader::open(path)?;
    let is_tmpfs = fstatfs(&reader.folder).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
    let mut found = 0;
    while reader.next()?.is_some() {
        found += 1;
        if is_tmpfs && found == COUNTED {
            let entries = reader.folder.metadata()?.size() / TMPFS_ENTRY;
            return Ok(usize::try_from(entries.saturating_sub(TMPFS_OWN)).unwrap_or(found));
        }
    }
    Ok(found)
}

/// Names of up to `most` files without a leading dot from a position on, and the position behind
/// them. The end leads back to the beginning. An invalid position counts as the beginning.
pub(super) fn slice(path: &Path, from: u64, most: usize) -> io::Result<(Vec<OsString>, u64)> {
    let mut reader = Reader::open(path)?;
    let mut is_first_round = reader.folder.seek(SeekFrom::Start(from)).is_ok() && from != 0;
    let (mut names, mut behind) = (Vec::new(), from);
    while names.len() < most {
        match reader.next()? {
            Some((name, place)) => {
                if names.contains(&name) {
                    return Ok((names, 0));
                }
                names.push(name);
                behind = place;
            }
            None if is_first_round => {
                is_first_round = false;
                // ext4 cannot seek back from the end.
                reader = Reader::open(path)?;
            }
            None => return Ok((names, 0)),
        }
    }
    Ok((names, behind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;

    use crate::temp_dir::TempDir;

    fn fill(folder: &Path, names: impl Iterator<Item = String>) {
        names.for_each(|name| fs::write(folder.join(name), "").unwrap());
    }

    #[test]
    fn hidden_files_do_not_count_however_many() {
        let folder = TempDir::new();
        assert!(!has_visible(&folder).unwrap());
        fill(&folder, (0..200).map(|number| format!(".hidden-{number}")));
        assert!(!has_visible(&folder).unwrap());
        assert_eq!(count(&folder).unwrap(), 0);
        fill(&folder, std::iter::once("seen".into()));
        assert!(has_visible(&folder).unwrap());
        assert_eq!(count(&folder).unwrap(), 1);
        fs::remove_dir_all(&*folder).unwrap();
        assert_eq!(has_visible(&folder).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn slices_go_round_and_miss_nothing() {
        for files in [0, 1, 7, 8, 9, 100] {
            let folder = TempDir::new();
            fill(&folder, (0..files).map(|number| format!("{number:0>90}")));
            let (mut seen, mut place) = (BTreeSet::new(), 0);
            for _ in 0..=files / 8 {
                let (names, next) = slice(&folder, place, 8).unwrap();
                assert_eq!(names.len(), files.min(8));
                assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "each once");
                seen.extend(names);
                place = next;
            }
            assert_eq!(seen.len(), files);
            assert_eq!(count(&folder).unwrap(), files);
        }
    }

    #[test]
    fn many_are_counted_without_a_look_at_each() {
        // This folder is a tmpfs on every system.
        let folder = Path::new("/dev/shm").join(format!("symroute-count-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fill(&folder, (0..1000).map(|number| number.to_string()));
        let counted = count(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(counted.unwrap(), 1000);
    }
}
