//! `symroutectl marks`: lists which program uses which bits of the marks.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{EXIT_UNHEALTHY, Failure};
use crate::doctor::{Finding, marks};
use crate::error::Error;
use crate::ledger::{self, Unseen};
use crate::node::Node;

/// Version of the JSON report, raised when a key changes its meaning or is removed.
const VERSION: u32 = 1;

const ABOUT: &str = "\
The tool reads the rules of nftables, iptables and ip rule, tc filters, IPsec policies,
WireGuard devices and sysctls. It prints which program does what to which bits of the packet
mark and of the conntrack mark, with hook and priority. Rows that differ only in the chain are
merged. Below the table it prints what clashes with symroute's bits, like doctor. It can't
read what BPF programs do, and does not list those attached with tcx. The node does not need
symroute, and the tool changes nothing.

";

pub(super) fn tail() -> String {
    let codes = [(0, "nothing clashes with symroute's bits"), (EXIT_UNHEALTHY, "something does")];
    let examples = ["marks", "marks --json | jq -r '.clashes[].what'"];
    super::tail(ABOUT, &codes, &examples)
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Compare with the settings in this file if symroute is not in force
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command. Returns the text to print and the exit code.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let settings = super::explain::settings(words.config.as_deref())?;
    let mut node = Node::open()?;
    let record = node.record()?;
    let ledger = ledger::read::ledger(&mut node.kernel, record.as_ref());
    let in_force = record.as_ref().map(|record| record.settings.field);
    let (field, clashes) = match node.view(&settings) {
        Ok(view) => {
            let field = in_force.unwrap_or(view.settings.field);
            (Some(field), marks::clashes(&ledger, &view, in_force))
        }
        // doctor reports what is wrong with the settings.
        Err(Error::Config(_)) => (in_force, marks::without_plan(&ledger, in_force)),
        Err(other) => return Err(other.into()),
    };
    let code = if clashes.is_empty() { 0 } else { EXIT_UNHEALTHY };
    if words.json {
        let report = json!({
            "version": VERSION,
            "markMask": field.map(|field| field.to_string()),
            "inForce": in_force.is_some(),
            "marks": ledger.to_json(),
            "clashes": clashes.iter().map(Finding::to_json).collect::<Vec<_>>(),
            "unseen": ledger.unseen.iter().map(Unseen::to_json).collect::<Vec<_>>(),
        });
        return Ok((format!("{report:#}\n"), code));
    }
    let mut text = ledger.to_table();
    text.push('\n');
    for unseen in &ledger.unseen {
        let _ = writeln!(text, "{}", unseen.to_text());
    }
    match field {
        None => text += "not judged: there is no plan for this node, symroutectl doctor says why\n",
        Some(field) if clashes.is_empty() => {
            let _ = writeln!(text, "ok: nothing clashes with symroute's bits, {field}");
        }
        Some(field) => {
            let _ = writeln!(text, "symroute's bits: {field}");
            text.extend(clashes.iter().map(Finding::to_text));
        }
    }
    Ok((text, code))
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::*;

    #[test]
    fn command_lines() {
        let words = |line: &str| match super::super::tests::parsed(line) {
            Ok(Command::Marks(words)) => words,
            other => panic!("{other:?}"),
        };
        assert_eq!(words("marks --json"), Words { config: None, json: true });
        assert_eq!(words("marks --config a").config, Some("a".into()));
        assert!(super::super::tests::parsed("marks now").is_err());
    }
}
