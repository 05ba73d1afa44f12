//! What a person reads in this tree: documents, comments and messages. Sentences are short, words are
//! plain, and what they refer to exists. CONTRIBUTING.md has the rules. Needs no root.

#![expect(clippy::expect_used, reason = "a test stops at the first thing that is not as expected")]

mod links;
mod prose;
mod tree;
mod words;

use std::fmt::Write as _;

use prose::Block;
use tree::{File, Kind};

/// A fault, and the line it is in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    line: usize,
    what: String,
}

/// Fails with one line for each finding.
#[track_caller]
fn assert_none(findings: impl Iterator<Item = (String, Finding)>) {
    let mut report = String::new();
    let mut count = 0;
    for (path, Finding { line, what }) in findings {
        writeln!(report, "{path}:{line}: {what}").expect("write to a string");
        count += 1;
    }
    assert!(count == 0, "{count} findings; CONTRIBUTING.md has the rules:\n{report}");
}

/// Checks each file by this function.
#[track_caller]
fn check(files: &[File], check: impl Fn(&File) -> Vec<Finding>) {
    assert_none(files.iter().flat_map(|file| {
        check(file).into_iter().map(|finding| (file.path.clone(), finding)).collect::<Vec<_>>()
    }));
}

#[test]
fn documents_and_comments_have_short_sentences_and_plain_words() {
    let files = tree::files();
    let count = |kind| files.iter().filter(|file| file.kind == kind).count();
    assert!(count(Kind::Markdown) > 10 && count(Kind::Rust) > 300 && count(Kind::Hash) > 50);
    check(&files, |file| prose::blocks(file).iter().flat_map(words::judge).collect());
}

#[test]
fn messages_have_short_sentences_and_plain_words() {
    let mut files = tree::files();
    files.retain(|file| file.kind == Kind::Rust && file.path.starts_with("src/"));
    check(&files, |file| {
        // One word alone is a key or a name.
        let messages = prose::messages(file).into_iter().filter(|it| it.text.trim().contains(' '));
        messages.flat_map(|block| words::judge(&block)).collect()
    });
}

#[test]
fn links_lead_to_files_and_headings() {
    let tree = links::Tree::new(tree::files());
    let mut files = tree::files();
    files.retain(|file| file.kind == Kind::Markdown);
    check(&files, |file| tree.dead_links(file));
}

#[test]
fn code_that_is_referred_to_exists() {
    let tree = links::Tree::new(tree::files());
    check(&tree::files(), |file| tree.dead_references(file));
}

#[test]
fn the_check_finds_what_it_is_for() {
    let long = "word ".repeat(31);
    for (text, says) in [
        (format!("Short. {long}."), "31 words"),
        (format!("| a |\n|---|\n| {long} |"), "31 words"),
        (format!("- Short.\n- Also\n  short: {long}"), "33 words"),
        ("One is told\nnothing.".to_owned(), "\"told\""),
        ("There is no way\nout of it.".to_owned(), "\"way out\""),
        ("**Somebody** else.".to_owned(), "\"Somebody\""),
    ] {
        let blocks = prose::markdown(&text, 1);
        let found: Vec<_> = blocks.iter().flat_map(words::judge).collect();
        assert!(found.len() == 1 && found[0].what.contains(says), "{text}: {found:?}");
    }
    let code =
        format!("    {long}\n\n```sh\n{long}\n```\n`{long}` is one word, and `told` is code.");
    let blocks = prose::markdown(&code, 1);
    assert_eq!(blocks.iter().flat_map(words::judge).collect::<Vec<_>>(), []);
}

#[test]
fn the_check_reads_comments_and_messages() {
    let rust = |text: &str| File { path: "a.rs".into(), kind: Kind::Rust, text: text.into() };
    let lines = |blocks: Vec<Block>| -> Vec<(usize, String)> {
        blocks.into_iter().map(|block| (block.line, block.text)).collect()
    };
    let file = rust(
        "//! One,\n//! two.\n\nfn f() {\n    // Three.\n    g(\"// no\"); // Four.\n}\n\n/// Five.\nstruct S;\n",
    );
    let found = lines(prose::blocks(&file));
    let expected = [(1, "One, two."), (5, "Three."), (6, "Four."), (9, "Five.")];
    assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    let file = rust("fn f() {\n    g(\"a \\\n       b\", 'c', b\"d\");\n    h(r\"e\");\n}\n");
    let expected = [(2, "a b"), (4, "e")].map(|(line, text)| (line, text.to_owned()));
    assert_eq!(lines(prose::messages(&file)), expected);
}
