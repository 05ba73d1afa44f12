//! FNV-1a: stable over releases, unlike the standard library's hasher.

/// 64 bits.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The same in 32 bits, the two halves folded into one.
pub(crate) fn fnv32(bytes: &[u8]) -> u32 {
    let hash = fnv(bytes);
    #[expect(clippy::cast_possible_truncation, reason = "the other half is folded in")]
    let folded = (hash ^ hash >> 32) as u32;
    folded
}
