//! A table of what happens to many requests, by interface and destination.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::ask::Explained;
use super::words::{short, table_name};
use super::{Ending, Packet, Side};
use crate::model::Facts;

/// The results of one request; several if DNAT may choose between backends.
pub(crate) type Cell = Vec<Explained>;

/// Results by arrival (columns) and destination (rows).
#[derive(Debug, Default)]
pub(crate) struct Grid {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<(String, Vec<Cell>)>,
}

impl Grid {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Explained> {
        self.rows.iter().flat_map(|(_, cells)| cells).flatten()
    }

    /// The names of the rows whose cells differ from each other.
    pub(crate) fn that_differ(&self, facts: &Facts) -> Vec<&str> {
        let differs = |cells: &[Cell]| {
            let mut words = cells.iter().map(|cell| words(cell, facts));
            let first = words.next();
            words.any(|other| Some(other) != first)
        };
        let rows = self.rows.iter().filter(|(_, cells)| differs(cells));
        rows.map(|(name, _)| name.as_str()).collect()
    }

    /// Text for a person, in left-aligned columns.
    pub(crate) fn to_text(&self, facts: &Facts) -> String {
        let mut rows = vec![[&[String::new()][..], &self.head].concat()];
        rows.extend(self.rows.iter().map(|(name, cells)| {
            let cells = cells.iter().map(|cell| words(cell, facts));
            std::iter::once(name.clone()).chain(cells).collect::<Vec<_>>()
        }));
        let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(String::len).max();
        let widths: Vec<usize> = (0..=self.head.len()).map(|at| width(at).unwrap_or(0)).collect();
        let mut out = String::new();
        for row in rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }

    /// JSON for programs.
    pub(crate) fn to_json(&self, facts: &Facts) -> Value {
        let rows = self.rows.iter().map(|(name, cells)| {
            let cells = cells.iter().zip(&self.head).map(|(cell, head)| {
                let requests: Vec<_> = cell.iter().map(|one| one.to_json(facts)).collect();
                json!({"column": head, "requests": requests})
            });
            json!({"row": name, "cells": cells.collect::<Vec<_>>()})
        });
        rows.collect()
    }
}

/// A short text for a cell, for the node as it is now.
fn words(cell: &Cell, facts: &Facts) -> String {
    let mut all: Vec<String> = Vec::new();
    for one in cell {
        let text = short(one, facts);
        if !all.contains(&text) {
            all.push(text);
        }
    }
    if all.is_empty() { "-".into() } else { all.join("; ") }
}

/// The interface through which a pod's own packets leave the node without symroute.
pub(crate) fn behind(cell: &Cell, facts: &Facts) -> Option<String> {
    let Side { ending: Ending::Leaves(chosen), .. } = &cell.first()?.without else { return None };
    let table = table_name(chosen.way.table);
    Some(format!("{} (table {table})", facts.link_name(chosen.way.link)))
}

impl Packet {
    /// The packet with this protocol and destination port.
    pub(crate) fn to_port(self, protocol: u8, port: u16) -> Self {
        Self { protocol: Some(protocol), port: Some(port), ..self }
    }
}
