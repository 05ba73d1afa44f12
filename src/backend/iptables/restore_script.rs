//! The changes from the present rules to the desired ones, as input for
//! `iptables-restore --noflush`. That is one transaction, so packets never meet half of the rules.

use std::fmt::Write as _;

use super::rules::{Chain, fingerprint_of};
use crate::model::{Family, Mangle, Variant};
use crate::names::{CHAIN_PREFIX, HOOKS};

/// A change of one table mangle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) variant: Variant,
    pub(crate) family: Family,
    /// Input that makes the change.
    pub(crate) change: String,
    /// Input that undoes the change.
    pub(crate) undo: String,
    /// Description of the changes, for a person.
    pub(crate) what: Vec<String>,
}

/// Parses the output of `iptables -t mangle -S`, as far as symroute needs it.
pub(crate) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Mangle {
    let mut found = Mangle::default();
    for line in lines {
        let mut words = line.split_whitespace();
        let (Some(verb), Some(chain)) = (words.next(), words.next()) else { continue };
        let ours = chain.starts_with(CHAIN_PREFIX);
        match verb {
            "-N" if ours => drop(found.chains.entry(chain.into()).or_default()),
            "-A" if ours => found.chains.entry(chain.into()).or_default().push(line.into()),
            "-A" if HOOKS.contains(&chain) => {
                found.builtin.entry(chain.into()).or_default().push(line.into());
            }
            _ => {}
        }
    }
    found
}

/// The chain of symroute that a rule jumps or goes to.
fn leads_to(line: &str) -> Option<&str> {
    let (_, target) = line.rsplit_once(" -j ").or_else(|| line.rsplit_once(" -g "))?;
    let target = target.split_whitespace().next()?;
    target.starts_with(CHAIN_PREFIX).then_some(target)
}

/// Commands of one transaction.
#[derive(Default)]
struct Commands {
    declared: String,
    rules: String,
    jumps: String,
    flushed: String,
    deleted: String,
}

impl Commands {
    /// Makes a chain hold exactly these lines, whether it exists or not.
    fn fill(&mut self, chain: &str, lines: impl IntoIterator<Item = String>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.declared, ":{chain} - [0:0]");
        for line in lines {
            let _ = writeln!(self.rules, "{line}");
        }
    }

    fn remove(&mut self, chain: &str) {
        let _ = writeln!(self.flushed, "-F {chain}");
        let _ = writeln!(self.deleted, "-X {chain}");
    }

    fn text(&self) -> String {
        let Self { declared, rules, jumps, flushed, deleted } = self;
        format!("*mangle\n{declared}{rules}{jumps}{flushed}{deleted}COMMIT\n")
    }
}

/// Builds the script that changes `found` to `wanted`; `None` if nothing differs.
pub(crate) fn script(
    variant: Variant,
    family: Family,
    found: &Mangle,
    wanted: &[Chain],
) -> Option<Script> {
    let (mut change, mut undo) = (Commands::default(), Commands::default());
    let mut what = Vec::new();
    for chain in wanted {
        let name = &chain.name;
        let prints = chain.rules.iter().map(|rule| Some(rule.fingerprint()));
        match found.chains.get(name) {
            Some(lines) if lines.iter().map(|l| fingerprint_of(l)).eq(prints) => continue,
            Some(lines) => undo.fill(name, lines.iter().cloned()),
            None => undo.remove(name),
        }
        change.fill(name, chain.rules.iter().map(|rule| format!("-A {name} {}", rule.text())));
        what.push(format!("write chain {name}"));
    }
    for (name, lines) in &found.chains {
        if !wanted.iter().any(|chain| chain.name == *name) {
            change.remove(name);
            undo.fill(name, lines.iter().cloned());
            what.push(format!("remove chain {name}"));
        }
    }
    for hook in HOOKS {
        let lines = found.builtin.get(hook).map_or(&[][..], Vec::as_slice);
        let chain = wanted.iter().find(|chain| chain.hook == Some(hook));
        what.extend(set_jump(hook, lines, chain, &mut change, &mut undo));
    }
    (!what.is_empty()).then(|| Script {
        variant,
        family,
        change: change.text(),
        undo: undo.text(),
        what,
    })
}

/// Makes the jump to `wanted` the first rule of a built-in chain, and symroute's only rule there.
/// Deletes rules by their text, never by their number, because other programs may change the chain
/// meanwhile.
fn set_jump(
    hook: &str,
    lines: &[String],
    wanted: Option<&Chain>,
    change: &mut Commands,
    undo: &mut Commands,
) -> Option<String> {
    let ours: Vec<&String> = lines.iter().filter(|line| leads_to(line).is_some()).collect();
    let jump = wanted.map(|chain| format!("-j {}", chain.name));
    let is_in_place = match &jump {
        Some(jump) => ours.len() == 1 && lines.first() == Some(&format!("-A {hook} {jump}")),
        None => ours.is_empty(),
    };
    if is_in_place {
        return None;
    }
    let without_command = |line: &String| line.strip_prefix("-A ").unwrap_or(line).to_string();
    for line in &ours {
        let _ = writeln!(change.jumps, "-D {}", without_command(line));
    }
    if let Some(jump) = jump {
        let _ = writeln!(change.jumps, "-I {hook} 1 {jump}");
        let _ = writeln!(undo.jumps, "-D {hook} {jump}");
    }
    for line in ours.iter().rev() {
        let rule = without_command(line);
        let rule = rule.strip_prefix(hook).unwrap_or(&rule).trim_start();
        let _ = writeln!(undo.jumps, "-I {hook} 1 {rule}");
    }
    Some(match (wanted, ours.is_empty(), lines.first()) {
        (None, ..) => format!("remove the jump from {hook}"),
        (Some(_), true, _) => format!("jump from {hook}"),
        (Some(_), false, Some(before)) => {
            format!("put the jump first in {hook}, where \"{before}\" stands in front of it")
        }
        (Some(_), false, None) => format!("put the jump first in {hook}"),
    })
}
