//! FNV-1a: stable over releases, unlike the standard library's hasher.

use std::hash::Hasher;

/// State of a 64-bit FNV-1a hash.
pub(crate) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Fnv {
    /// The hash of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut hasher = Self::default();
        hasher.write(bytes);
        hasher
    }

    /// The hash in 32 bits, the two halves folded into one.
    pub(crate) fn folded(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the other half is folded in")]
        let folded = (self.0 ^ self.0 >> 32) as u32;
        folded
    }
}
