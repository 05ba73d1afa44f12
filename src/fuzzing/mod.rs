//! Fuzz targets: one function for each kind of bytes that symroute reads from other programs or the kernel. Only
//! builds for tests and for fuzzing have this module; see `fuzz/README.md`.
//!
//! A target accepts any bytes and panics if an assertion fails. A target must not take long or much memory.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a target reports a failed assertion by a panic"
)]

mod cni;
mod conflist;
mod files;
mod kernel;
mod netfilter;
mod rtnetlink;
mod text;

/// Function that reads any bytes and panics if an assertion fails.
pub type Target = fn(&[u8]);

/// All targets by name. Each has a program `fuzz/fuzz_targets/NAME.rs` and a directory `fuzz/corpus/NAME`.
pub const TARGETS: &[(&str, Target)] = &[
    // Input of the plugin from a runtime.
    ("stdin", cni::stdin),
    ("settings", cni::settings),
    ("prev_result", cni::prev_result),
    // Files.
    ("conflist", conflist::text),
    ("conf_dir", conflist::folder),
    ("record", files::record),
    ("attachment", files::attachment),
    ("ready", files::ready),
    ("result_cache", files::result_cache),
    // Netlink messages of the kernel.
    ("links", rtnetlink::links),
    ("addresses", rtnetlink::addresses),
    ("routes", rtnetlink::routes),
    ("rules", rtnetlink::rules),
    ("mark_users", rtnetlink::mark_users),
    ("nft_own", netfilter::own),
    ("nft_elements", netfilter::elements),
    ("nft_others", netfilter::others),
    ("nft_marks", netfilter::marks),
    ("nft_events", netfilter::events),
    ("ipset", netfilter::ipset),
    ("conntrack", netfilter::conntrack),
    // Text of other programs and of the kernel, and packets.
    ("iptables_save", text::iptables_save),
    ("proc_files", text::proc_files),
    ("trace_pipe", text::trace_pipe),
    ("pseudonyms", text::pseudonyms),
    ("packet", text::packet),
];

/// The target with this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::panic::catch_unwind;
    use std::path::{Path, PathBuf};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
    }

    fn names(folder: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// The corpus contains every input with which a target once failed.
    #[test]
    fn the_corpus_holds() {
        for (name, target) in TARGETS {
            let files: Vec<_> = fs::read_dir(folder("corpus").join(name)).unwrap().collect();
            assert!(!files.is_empty(), "{name}: no corpus");
            for file in files {
                let path = file.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                // A truncated input must not fail either.
                for end in [bytes.len(), bytes.len() / 2, 0] {
                    let ran = catch_unwind(|| target(&bytes[..end]));
                    assert!(ran.is_ok(), "{}, {end} bytes of it: see above", path.display());
                }
            }
        }
    }

    #[test]
    fn each_target_has_a_program_and_a_corpus() {
        let known: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(known.len(), TARGETS.len(), "two targets have one name");
        assert_eq!(names(&folder("fuzz_targets")), known);
        assert_eq!(names(&folder("corpus")), known);
    }
}
