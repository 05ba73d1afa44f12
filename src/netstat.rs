//! The kernel's counters in `/proc/net/netstat`.

use std::fs;

/// `TcpExtIPReversePathFilter` of this network namespace: packets that `rp_filter` has dropped.
pub(crate) fn rp_filter_drops() -> Option<u64> {
    // The thread may be in another network namespace than its process.
    let text = fs::read_to_string("/proc/thread-self/net/netstat").ok()?;
    value(&text, "TcpExt:", "IPReversePathFilter")
}

/// A value of one group. A group is a line of names, then a line of values.
fn value(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|word| word == name)?;
    values.split(' ').nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netstat_is_read_by_name() {
        let text = "TcpExt: A IPReversePathFilter B\nTcpExt: 1 42 3\nIpExt: A\nIpExt: 9\n";
        assert_eq!(value(text, "TcpExt:", "IPReversePathFilter"), Some(42));
        assert_eq!(value(text, "TcpExt:", "C"), None);
    }
}
