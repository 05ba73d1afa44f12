//! Reads files that another program may have prepared: a FIFO, a device, a link, an endless file. Only plain
//! files are read, without waiting and up to a limit.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::libc;

/// Mode of files that only the owner may read.
pub(crate) const MODE: u32 = 0o600;
/// Mode of folders that only the owner may open: a process that can open a folder can lock it.
pub(crate) const FOLDER_MODE: u32 = 0o700;

/// Maximum length in bytes of another program's text: containerd's limit for a conflist.
pub(crate) const LONGEST: u64 = 2 << 20;

/// Whether to follow a link in the place of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// For files of other programs: a `ConfigMap` is mounted as links.
    Followed,
    /// For symroute's own files, which are never links.
    Refused,
}

/// Opens a plain file for reading.
/// Error: `InvalidInput` for another kind of file.
pub(crate) fn open(path: &Path, links: Links) -> io::Result<File> {
    open_with_length(path, links).map(|(file, _)| file)
}

/// Opens a plain file like [`open`], and returns its length in bytes too.
fn open_with_length(path: &Path, links: Links) -> io::Result<(File, u64)> {
    let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    match links {
        // Opening a device may already have an effect.
        Links::Followed if !fs::metadata(path)?.is_file() => return Err(no_plain_file()),
        Links::Followed => {}
        Links::Refused => flags |= libc::O_NOFOLLOW,
    }
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if found.is_file() { Ok((file, found.len())) } else { Err(no_plain_file()) }
}

fn no_plain_file() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "not a plain file: write it to one")
}

/// Reads a plain file of up to `most` bytes.
/// Error: `InvalidInput` for another kind of file, `FileTooLarge` for a longer one.
pub(crate) fn read(path: &Path, most: u64, links: Links) -> io::Result<Vec<u8>> {
    let (file, length) = open_with_length(path, links)?;
    let too_long = || {
        let text = format!("longer than {most} bytes");
        io::Error::new(ErrorKind::FileTooLarge, text)
    };
    if length > most {
        return Err(too_long());
    }
    // Files of /proc have the length 0.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1);
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// Reads a plain text file of up to `most` bytes.
/// Error: as [`read`], and `InvalidData` for text that is not UTF-8.
pub(crate) fn read_text(path: &Path, most: u64, links: Links) -> io::Result<String> {
    let bytes = read(path, most, links)?;
    String::from_utf8(bytes).map_err(|error| {
        io::Error::new(ErrorKind::InvalidData, format!("not UTF-8: {}", error.utf8_error()))
    })
}

/// Whether the error is a fault of the file itself, so that another try would fail too.
pub(crate) fn is_damaged(error: &io::Error) -> bool {
    use ErrorKind::*;
    let by_kind = matches!(
        error.kind(),
        InvalidInput | InvalidData | FileTooLarge | IsADirectory | NotADirectory
    );
    // Errors of a link and of a socket.
    by_kind || matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO))
}

/// Creates a file with this content like [`create`].
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create(path)?.write_all(bytes)
}

/// Creates a temporary file that only its owner may read. Replaces whatever a killed call has left, and never
/// writes through a link.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(MODE).custom_flags(libc::O_NOFOLLOW);
    with_room(path, |path| options.open(path))
}

/// Calls `make` for `path`. If something has that name already, removes it and calls `make` again.
pub(crate) fn with_room<T>(path: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    match make(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            remove(path)?;
            make(path)
        }
        done => done,
    }
}

/// Opens a folder of symroute, and makes sure that only its owner may open it. Older releases let each process
/// open and so lock the folder.
pub(crate) fn folder_of_owner(path: &Path) -> io::Result<File> {
    let folder = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
    restrict(&folder, FOLDER_MODE)?;
    Ok(folder)
}

/// Takes away the rights that go beyond `mode`.
pub(crate) fn restrict(file: &File, mode: u32) -> io::Result<()> {
    let rights = file.metadata()?.permissions().mode() & 0o7777;
    if rights & mode == rights {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(mode))
}

/// Renames a temporary file to `path`, even if that is a folder.
pub(crate) fn put(temporary: &Path, path: &Path) -> io::Result<()> {
    match fs::rename(temporary, path) {
        Err(error) if error.kind() == ErrorKind::IsADirectory => {
            fs::remove_dir_all(path)?;
            fs::rename(temporary, path)
        }
        renamed => renamed,
    }
}

/// Removes a file or folder of symroute. Does not follow links.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::IsADirectory => fs::remove_dir_all(path),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use crate::temp_dir::TempDir;

    #[test]
    fn what_is_no_plain_file_is_an_error_and_no_wait() {
        let folder = TempDir::new();
        let at = |name: &str| folder.join(name);
        mkfifo(&at("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        symlink(at("fifo"), at("link-to-fifo")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("bytes"), b"\xff\xfe").unwrap();
        File::create(at("long")).unwrap().set_len(300 << 20).unwrap();
        for name in ["fifo", "link-to-fifo", "zero", "loop", "socket", "folder", "bytes", "long"] {
            for links in [Links::Followed, Links::Refused] {
                let error = read_text(&at(name), 1000, links).unwrap_err();
                assert!(is_damaged(&error), "{name}: {error}");
            }
        }
        let absent = read(&at("absent"), 1000, Links::Refused).unwrap_err();
        assert!(!is_damaged(&absent));
    }

    #[test]
    fn the_limit_is_the_last_length_that_is_read() {
        let folder = TempDir::new();
        let path = folder.join("file");
        fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4, Links::Refused).unwrap(), "four");
        assert_eq!(read(&path, 3, Links::Refused).unwrap_err().kind(), ErrorKind::FileTooLarge);
        symlink(&path, folder.join("link")).unwrap();
        assert_eq!(read_text(&folder.join("link"), 4, Links::Followed).unwrap(), "four");
        // This file has no length, and is longer than the limit.
        let endless = read(Path::new("/proc/self/smaps"), 100, Links::Refused);
        assert_eq!(endless.unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let folder = TempDir::new();
        let (path, victim) = (folder.join("temporary"), folder.join("victim"));
        fs::write(&victim, "as it was").unwrap();
        symlink(&victim, &path).unwrap();
        let made = create(&path).unwrap();
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
        assert!(!path.is_symlink());
    }

    #[test]
    fn a_folder_makes_room() {
        let folder = TempDir::new();
        let (temporary, path) = (folder.join("temporary"), folder.join("path"));
        for place in [&temporary, &path] {
            fs::create_dir_all(place.join("below")).unwrap();
        }
        create(&temporary).unwrap();
        put(&temporary, &path).unwrap();
        assert!(path.is_file() && !temporary.exists());
        remove(&path).unwrap();
        assert_eq!(remove(&path).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
