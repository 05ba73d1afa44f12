//! Whether links and references lead to something.

use std::collections::{BTreeMap, BTreeSet};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::Finding;
use super::prose;
use super::tree::{File, Kind};

/// Documents that name constants and variables of the code.
const ABOUT_CODE: [&str; 3] = ["ARCHITECTURE.md", "CONTRIBUTING.md", "tests/README.md"];

/// What can be referred to.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Files and folders.
    paths: BTreeSet<String>,
    /// By file.
    headings: BTreeMap<String, BTreeSet<String>>,
    /// Everything but documents and this check, as one text.
    code: String,
}

impl Tree {
    pub(crate) fn new(files: Vec<File>) -> Self {
        let mut tree =
            Self { paths: BTreeSet::new(), headings: BTreeMap::new(), code: String::new() };
        for file in files {
            let parents = file.path.match_indices('/').map(|(end, _)| file.path[..end].to_owned());
            tree.paths.extend(parents);
            if file.kind == Kind::Markdown {
                tree.headings.insert(file.path.clone(), headings(&file.text));
            } else if !file.path.starts_with("tests/language/") {
                tree.code.push_str(&file.text);
            }
            tree.paths.insert(file.path);
        }
        tree
    }

    /// Links to files and headings that are not there.
    pub(crate) fn dead_links(&self, file: &File) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (event, range) in Parser::new_ext(&file.text, Options::ENABLE_TABLES).into_offset_iter()
        {
            let Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) = event
            else {
                continue;
            };
            if dest_url.contains("://") || self.leads(&file.path, &dest_url) {
                continue;
            }
            let line = 1 + file.text[..range.start].matches('\n').count();
            findings.push(Finding { line, what: format!("a dead link: {dest_url}") });
        }
        findings
    }

    fn leads(&self, from: &str, link: &str) -> bool {
        let (path, heading) = link.split_once('#').unwrap_or((link, ""));
        let path = if path.is_empty() { Some(from.to_owned()) } else { beside(from, path) };
        let Some(path) = path.filter(|path| self.paths.contains(path)) else { return false };
        heading.is_empty() || self.headings.get(&path).is_some_and(|all| all.contains(heading))
    }

    /// Paths, modules, constants and variables of this tree that are named and not there.
    pub(crate) fn dead_references(&self, file: &File) -> Vec<Finding> {
        let mut findings = Vec::new();
        for block in prose::blocks(file) {
            for code in &block.code {
                let is_dead = self.is_dead_path(&file.path, code)
                    || self.is_dead_module(file, code)
                    || self.is_dead_constant(file, code);
                if is_dead {
                    findings.push(Finding { line: block.line, what: format!("no {code} exists") });
                }
            }
        }
        findings
    }

    fn is_dead_path(&self, from: &str, code: &str) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        // `NAME` stands for any name.
        let is_template = code.contains("NAME");
        let path = code.trim_end_matches('/');
        let (first, _) = path.split_once('/').unwrap_or(("", ""));
        let is_ours = ["src", "tests", "docs", "conf", "scripts", "benches", "fuzz", "demo", "e2e"];
        is_ours.contains(&first)
            && !is_template
            && path.chars().all(plain)
            && !self.paths.contains(path)
            && !beside(from, path).is_some_and(|path| self.paths.contains(&path))
    }

    /// Of documents only: rustdoc looks after comments.
    fn is_dead_module(&self, file: &File, code: &str) -> bool {
        let plain = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        // An IPv6 address begins with hexadecimal digits.
        let is_address = |part: &str| part.chars().all(|c| c.is_ascii_hexdigit());
        let parts: Vec<_> = code.trim_end_matches("()").split("::").collect();
        if file.kind != Kind::Markdown
            || parts.len() < 2
            || is_address(parts[0])
            || !parts.iter().all(|part| plain(part))
        {
            return false;
        }
        let is_module = |path: &[&str]| {
            let path = path.join("/");
            ["src", "tests/e2e"].iter().any(|root| {
                let file = format!("{root}/{path}");
                self.paths.contains(&file) || self.paths.contains(&format!("{file}.rs"))
            })
        };
        let (last, before) = parts.split_last().unwrap_or((&"", &[]));
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let has = |kinds: &[&str], name: &str| {
            kinds.iter().any(|kind| {
                let item = format!("{kind} {name}");
                let mut found = self.code.match_indices(&item);
                found.any(|(at, _)| !self.code[at + item.len()..].starts_with(is_word))
            })
        };
        let is_type =
            |parts: &[&str]| parts.len() == 1 && has(&["struct", "enum", "trait"], parts[0]);
        let has_item = has(&["fn", "struct", "enum", "trait", "const", "mod"], last);
        // The end of a test's path may be empty: `text::`.
        !(is_module(&parts)
            || (is_module(before) && (last.is_empty() || has_item))
            || (is_type(before) && has_item))
    }

    fn is_dead_constant(&self, file: &File, code: &str) -> bool {
        let name = code.split('=').next().unwrap_or(code);
        let plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        ABOUT_CODE.contains(&file.path.as_str())
            && name.contains('_')
            && name.chars().all(plain)
            && !self.code.contains(name)
    }
}

/// The path from the root of what a file names by a path from its own folder.
fn beside(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The anchors that hosts of repositories make of headings.
fn headings(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open: Option<String> = None;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => open = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => found.extend(open.take().map(|text| anchor(&text))),
            Event::Text(words) | Event::Code(words) => {
                if let Some(open) = &mut open {
                    open.push_str(&words);
                }
            }
            _ => {}
        }
    }
    found
}

fn anchor(heading: &str) -> String {
    let lower = heading.to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
