//! The values of the proof that an ADD makes. A reconcile writes them when nothing is left to do,
//! and removes them before it changes the kernel.
//!
//! The first line has the backend, the fingerprint in force, and the fingerprints of all settings
//! that it fulfils. Then there is one line for each question:
//!
//! ```text
//! nftables 3735928559 3735928559 1729
//! 3 47001 256 192.0.2.1 10.0.0.10      (interface, table, mark, outside, the node itself)
//! main 192.0.2.1 3 254 10.0.0.1        (outside, interface, table, router)
//! offload                              (only with a flowtable)
//! ```

use std::fmt::Write as _;
use std::net::{AddrParseError, IpAddr};
use std::str::FromStr;

use super::{Error, State};
use crate::backend::Marker;
use crate::model::Variant;
use crate::plan::proof::Question;

/// Name of the file. Older releases remove hidden files with the node state.
pub(super) const FILE: &str = ".ready";
/// Stands for a missing address.
const NONE: &str = "-";
/// First word of a line about an [`Ordinary`].
const MAIN: &str = "main";
/// The line that means that the node has a flowtable.
const OFFLOAD: &str = "offload";

/// Where the node sends a packet without a mark. The uplinks' tables were made for this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ordinary {
    pub(crate) to: IpAddr,
    pub(crate) link: u32,
    pub(crate) table: u32,
    pub(crate) gateway: Option<IpAddr>,
}

/// The values of a node that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) marker: Marker,
    /// Fingerprint in force; see [`crate::config::Settings::fingerprint`].
    pub(crate) fingerprint: u32,
    /// Fingerprints of all settings that the one in force fulfils.
    pub(crate) fulfils: Vec<u32>,
    pub(crate) questions: Vec<Question>,
    pub(crate) ordinary: Vec<Ordinary>,
    /// Whether the node has a flowtable.
    pub(crate) offloads: bool,
}

fn or_none(ip: Option<IpAddr>) -> String {
    ip.map_or_else(|| NONE.to_string(), |ip| ip.to_string())
}

impl Ready {
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{} {}", self.marker, self.fingerprint);
        for form in &self.fulfils {
            // Writing to a string does not fail.
            let _ = write!(text, " {form}");
        }
        text.push('\n');
        for Question { link, table, mark, outside, local } in &self.questions {
            let _ = writeln!(text, "{link} {table} {mark} {outside} {}", or_none(*local));
        }
        for Ordinary { to, link, table, gateway } in &self.ordinary {
            let _ = writeln!(text, "{MAIN} {to} {link} {table} {}", or_none(*gateway));
        }
        if self.offloads {
            let _ = writeln!(text, "{OFFLOAD}");
        }
        text
    }

    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut head = lines.next()?.split_ascii_whitespace();
        let (marker, fingerprint) = (head.next()?, read(head.next())?);
        let fulfils = head.map(|form| form.parse().ok()).collect::<Option<_>>()?;
        let all =
            [Marker::Nftables, Marker::Iptables(Variant::Nft), Marker::Iptables(Variant::Legacy)];
        let marker = all.into_iter().find(|known| known.to_string() == marker)?;
        let (mut questions, mut ordinary, mut offloads) = (Vec::new(), Vec::new(), false);
        for line in lines {
            if line == OFFLOAD {
                offloads = true;
                continue;
            }
            match line.strip_prefix(MAIN) {
                Some(rest) => ordinary.push(parse_ordinary(rest)?),
                None => questions.push(parse_question(line)?),
            }
        }
        Some(Self { marker, fingerprint, fulfils, questions, ordinary, offloads })
    }
}

fn read<T: FromStr>(word: Option<&str>) -> Option<T> {
    word?.parse().ok()
}

fn parse_address(word: &str) -> Result<Option<IpAddr>, AddrParseError> {
    if word == NONE { Ok(None) } else { word.parse().map(Some) }
}

fn parse_ordinary(entry: &str) -> Option<Ordinary> {
    let mut words = entry.split_ascii_whitespace();
    let (to, link) = (read(words.next())?, read(words.next())?);
    let (table, gateway) = (read(words.next())?, parse_address(words.next()?).ok()?);
    Some(Ordinary { to, link, table, gateway })
}

fn parse_question(entry: &str) -> Option<Question> {
    let mut words = entry.split_ascii_whitespace();
    let (link, table) = (read(words.next())?, read(words.next())?);
    let mark = read(words.next())?;
    let outside: IpAddr = read(words.next())?;
    let local = parse_address(words.next()?).ok()?;
    Some(Question { link, table, mark, outside, local })
}

impl State {
    /// The values to prove; none if the node is not ready.
    pub(crate) fn ready(&self) -> Option<Ready> {
        let text = Self::read(&self.path(&[FILE])).ok()??;
        Ready::from_text(&text)
    }

    pub(crate) fn set_ready(&self, ready: &Ready) -> Result<(), Error> {
        if self.ready().as_ref() == Some(ready) {
            return Ok(());
        }
        self.write("", FILE, &ready.to_text())
    }

    /// Marks the node as not ready: every ADD takes the slow path from now on.
    pub(crate) fn unset_ready(&self) -> Result<(), Error> {
        Self::remove(&self.path(&[FILE])).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_half_of_it_is_nothing_else() {
        let question = |outside: &str, local: Option<&str>| Question {
            link: 3,
            table: 47001,
            mark: 0x100,
            outside: outside.parse().unwrap(),
            local: local.map(|ip| ip.parse().unwrap()),
        };
        let ready = Ready {
            marker: Marker::Iptables(Variant::Legacy),
            fingerprint: u32::MAX,
            fulfils: vec![u32::MAX, 0],
            questions: vec![
                question("192.0.2.1", Some("10.0.0.10")),
                question("2001:db8::1", None),
            ],
            ordinary: vec![Ordinary {
                to: "192.0.2.1".parse().unwrap(),
                link: 3,
                table: 254,
                gateway: None,
            }],
            offloads: true,
        };
        let text = ready.to_text();
        assert_eq!(Ready::from_text(&text), Some(ready));
        for wrong in [
            "",
            "nftables",
            "other 5\n",
            "nftables x\n",
            "nftables 5\n1 2 3\n",
            "nftables 5\nmain 3\n",
        ] {
            assert_eq!(Ready::from_text(wrong), None, "{wrong}");
        }
    }
}
