//! Judges sentences and words.

use super::Finding;
use super::prose::Block;

/// More words than this make a reader begin again.
const LONGEST: usize = 30;

/// Ends of words that end no sentence.
const SHORT_FORMS: [&str; 5] = ["e.g.", "i.e.", "etc.", "vs.", "approx."];

/// Words not to use, and what to write.
const NOT_TO_USE: [(&str, &str); 24] = [
    ("somebody", "name the actor"),
    ("someone", "name the actor"),
    ("anybody", "name the actor"),
    ("nobody", "name the actor, or use the passive"),
    ("whoever", "name the actor"),
    ("whomever", "name the actor"),
    ("whom", "name the actor"),
    ("told", "\"reported\" or \"says\""),
    ("tell", "\"report\", \"say\" or \"show\""),
    ("tells", "\"reports\" or \"says\""),
    ("telling", "\"reporting\""),
    ("way out", "\"remedy\""),
    ("ways out", "\"remedies\""),
    ("is off", "\"is wrong\", \"is unhealthy\" or \"is disabled\""),
    ("are off", "\"are wrong\" or \"are disabled\""),
    ("was off", "\"was wrong\" or \"was disabled\""),
    ("would else", "\"would otherwise\""),
    ("enrol", "\"attach\""),
    ("enrols", "\"attaches\""),
    ("enroll", "\"attach\""),
    ("enrolled", "\"attached\""),
    ("speaks for", "say what is known of it"),
    ("are no more", "\"no longer exist\""),
    ("is no more", "\"no longer exists\""),
];

/// What is wrong with the language of this block.
pub(crate) fn judge(block: &Block) -> Vec<Finding> {
    let mut findings = Vec::new();
    for sentence in sentences(&block.text) {
        let count = sentence.iter().filter(|word| word.contains(char::is_alphanumeric)).count();
        if count > LONGEST {
            let what = format!("a sentence of {count} words: {}", sentence.join(" "));
            findings.push(Finding { line: block.line, what });
        }
        for (words, instead) in NOT_TO_USE {
            if let Some(found) = find(&sentence, words) {
                let what = format!("\"{found}\", write {instead}: {}", sentence.join(" "));
                findings.push(Finding { line: block.line, what });
            }
        }
    }
    findings
}

/// The words of each sentence.
fn sentences(text: &str) -> Vec<Vec<&str>> {
    let mut sentences = vec![Vec::new()];
    // A line of its own is a sentence: blocks have no line breaks, messages may.
    for line in text.lines() {
        for word in line.split_whitespace() {
            if let Some(last) = sentences.last_mut() {
                last.push(word);
            }
            let bare = word.trim_end_matches([')', '"', '\'', '*', ']']);
            if bare.ends_with(['.', '!', '?']) && !SHORT_FORMS.contains(&bare) {
                sentences.push(Vec::new());
            }
        }
        sentences.push(Vec::new());
    }
    sentences
}

/// The words as they stand in the sentence, if they do.
fn find(sentence: &[&str], words: &str) -> Option<String> {
    let wanted: Vec<_> = words.split(' ').collect();
    let bare = |word: &&str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_owned();
    let same = |part: &&[&str]| {
        part.iter().zip(&wanted).all(|(word, wanted)| bare(word).eq_ignore_ascii_case(wanted))
    };
    let found = sentence.windows(wanted.len()).find(same)?;
    Some(found.iter().map(bare).collect::<Vec<_>>().join(" "))
}
