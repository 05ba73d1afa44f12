//! Takes the text for people out of a file.

use std::ops::Range;

use proc_macro2::{TokenStream, TokenTree};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::tree::{File, Kind};

/// A piece of text in which sentences end: a paragraph, an item of a list, a cell of a table.
#[derive(Debug)]
pub(crate) struct Block {
    /// The first line, counted from 1.
    pub(crate) line: usize,
    /// Without markup. What stands in backticks is one word.
    pub(crate) text: String,
    /// What stands in backticks.
    pub(crate) code: Vec<String>,
}

/// Documents, or comments.
pub(crate) fn blocks(file: &File) -> Vec<Block> {
    match file.kind {
        Kind::Markdown => markdown(&file.text, 1),
        Kind::Rust => comments(&file.text, &["///", "//!", "//"]),
        Kind::Hash => comments(&file.text, &["#"]),
        Kind::Other => Vec::new(),
    }
}

/// The text literals of a Rust file.
pub(crate) fn messages(file: &File) -> Vec<Block> {
    let tokens: TokenStream = file.text.parse().expect("Rust");
    let mut found = Vec::new();
    literals(tokens, &mut found);
    found
}

fn literals(tokens: TokenStream, found: &mut Vec<Block>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Group(group) => literals(group.stream(), found),
            TokenTree::Literal(literal) => {
                let (line, text) = (literal.span().start().line, literal.to_string());
                found.extend(text_of(&text).map(|text| Block { line, text, code: Vec::new() }));
            }
            // A doc comment is a comment.
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                tokens.next_if(|next| next.to_string() == "!");
                tokens.next_if(|next| next.to_string().trim_start_matches('[').starts_with("doc"));
            }
            _ => {}
        }
    }
}

/// The text of a literal, if it is one of text.
fn text_of(literal: &str) -> Option<String> {
    let raw = literal.starts_with('r');
    let inner = literal.trim_start_matches('r').trim_matches('#');
    let inner = inner.strip_prefix('"')?.strip_suffix('"')?;
    if raw {
        return Some(inner.to_owned());
    }
    let mut text = String::new();
    let mut rest = inner.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('\\', Some('\n')) => while rest.next_if(|c| c.is_whitespace()).is_some() {},
            ('\\', _) => match rest.next() {
                Some('n') => text.push('\n'),
                Some(c) => text.push(c),
                None => {}
            },
            _ => text.push(c),
        }
    }
    Some(text)
}

/// Comments on neighbouring lines are one text.
fn comments(text: &str, signs: &[&str]) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<(usize, &str, String)> = None;
    let mut close = |open: &mut Option<(usize, &str, String)>| {
        if let Some((line, _, text)) = open.take() {
            found.extend(markdown(&text, line));
        }
    };
    for (number, line) in text.lines().enumerate() {
        let own =
            signs.iter().find_map(|sign| Some((*sign, line.trim_start().strip_prefix(sign)?)));
        let own = own.filter(|(_, text)| !text.starts_with(['!', '[']));
        let trailing = || trailing(line, signs).map(|text| ("", text));
        let Some((sign, words)) = own.or_else(trailing) else {
            close(&mut open);
            continue;
        };
        match &mut open {
            Some((_, same, text)) if *same == sign && !sign.is_empty() => {
                text.push('\n');
                text.push_str(words);
            }
            _ => {
                close(&mut open);
                open = Some((number + 1, sign, words.to_owned()));
            }
        }
    }
    close(&mut open);
    found
}

/// The comment behind the code of a line.
fn trailing<'a>(line: &'a str, signs: &[&str]) -> Option<&'a str> {
    let sign = format!(" {} ", signs.last()?);
    let (code, comment) = line.split_once(&sign)?;
    let quotes = |sign: char| code.matches(sign).count() % 2 == 0;
    (quotes('"') && quotes('\'') && !code.trim().is_empty()).then_some(comment)
}

/// The blocks of a Markdown text that begins at this line.
pub(crate) fn markdown(text: &str, first: usize) -> Vec<Block> {
    let line = |range: Range<usize>| first + text[..range.start].matches('\n').count();
    let mut blocks: Vec<Block> = Vec::new();
    let mut is_open = false;
    let mut in_code = 0;
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(_)) => in_code += 1,
            Event::End(TagEnd::CodeBlock) => in_code -= 1,
            Event::Start(tag) if ends_block(tag.to_end()) => is_open = false,
            Event::End(tag) if ends_block(tag) => is_open = false,
            Event::Text(_)
            | Event::Code(_)
            | Event::InlineHtml(_)
            | Event::SoftBreak
            | Event::HardBreak
                if in_code == 0 =>
            {
                if !is_open {
                    is_open = true;
                    blocks.push(Block { line: line(range), text: String::new(), code: Vec::new() });
                }
                let Some(block) = blocks.last_mut() else { continue };
                match event {
                    Event::Text(words) => block.text.push_str(&words),
                    Event::Code(code) => {
                        block.text.push_str("`code`");
                        block.code.push(code.into_string());
                    }
                    Event::InlineHtml(_) => block.text.push_str("`code`"),
                    _ => block.text.push(' '),
                }
            }
            _ => {}
        }
    }
    blocks.retain(|block| !block.text.trim().is_empty());
    blocks
}

/// Whether no sentence goes on behind it.
fn ends_block(tag: TagEnd) -> bool {
    !matches!(
        tag,
        TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough | TagEnd::Link | TagEnd::Image
    )
}
