//! Writes a tar archive of a few small files (ustar, IEEE Std 1003.1, pax).
//!
//! The crate `tar` also reads and unpacks archives, follows links, and sets times and attributes. This module
//! only needs one header of 512 bytes, whose fields are text.

use std::time::{SystemTime, UNIX_EPOCH};

/// Size of a block. An archive consists of whole blocks.
const BLOCK: usize = 512;
/// Maximum bytes of a file name.
const NAME: usize = 100;
/// Position of the checksum in the header.
const CHECKSUM: std::ops::Range<usize> = 148..156;

#[derive(Debug)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    /// Modification time of all files, in seconds since 1970.
    time: u64,
}

impl Archive {
    /// An empty archive whose files have this modification time.
    pub(super) fn at(time: SystemTime) -> Self {
        let time = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { bytes: Vec::new(), time }
    }

    /// Adds a file with mode 0600. Cuts a name of more than 100 bytes.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) {
        self.bytes.extend_from_slice(&header(name, content.len(), self.time));
        self.bytes.extend_from_slice(content);
        self.fill();
    }

    /// The bytes of the archive.
    pub(super) fn end(mut self) -> Vec<u8> {
        // Two empty blocks mark the end.
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn fill(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }
}

fn header(name: &str, length: usize, time: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    let mut end = name.len().min(NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    put(0, &name[..end]);
    put(100, "0000600\0");
    // Owner and group are root.
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, &format!("{:011o}\0", time & 0o777_7777_7777));
    // A regular file.
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    // Blanks stand for the checksum while it is computed.
    put(CHECKSUM.start, "        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn headers_are_as_posix_has_them() {
        let mut archive = Archive::at(UNIX_EPOCH + Duration::from_secs(0o1234));
        archive.add("a/b.txt", b"hello\n");
        archive.add(&"x".repeat(300), &[b'y'; 513]);
        let bytes = archive.end();
        // Two headers, one and two blocks of content, the end.
        assert_eq!(bytes.len(), (1 + 1 + 1 + 2 + 2) * BLOCK);
        assert_eq!(&bytes[..8], b"a/b.txt\0");
        assert_eq!(&bytes[124..136], b"00000000006\0");
        assert_eq!(&bytes[136..148], b"00000001234\0");
        assert_eq!(&bytes[257..265], b"ustar\x0000");
        let sum: u32 = bytes[..BLOCK]
            .iter()
            .enumerate()
            .map(|(at, byte)| if CHECKSUM.contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        assert_eq!(&bytes[CHECKSUM], format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(&bytes[BLOCK..BLOCK + 7], b"hello\n\0");
        assert_eq!(bytes[2 * BLOCK + 99..2 * BLOCK + 101], *b"x0");
    }
}
