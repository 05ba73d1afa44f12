//! The public configuration: the plugin object of a conflist, checked and typed.

pub(crate) mod file;
mod parse;
mod pattern;
pub(crate) mod source;
mod unknown;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

pub(crate) use parse::{is_interface_name, parse};
pub(crate) use pattern::Pattern;
pub(crate) use unknown::unknown;

use crate::hash::Fnv;
use crate::model::{Field, MarkMatch, Variant};
use crate::names;
use crate::process::{VALUE_MOST, cut};

const MARK_MASK: &str = "markMask";
const RULE_PRIORITY: &str = "rulePriority";
pub(crate) const OFFLOAD: &str = "offload";

/// The keys of the plugin object that are ours.
pub(crate) const KEYS: [&str; 13] = [
    "uplinks",
    "gateways",
    "exclude",
    "host",
    "hairpin",
    "masquerade",
    "backend",
    MARK_MASK,
    RULE_PRIORITY,
    "tableBase",
    OFFLOAD,
    "scope",
    "log",
];

/// A wrong configuration value: CNI error 7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// The key, with its place: `gateways.eth1`.
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) hint: String,
}

impl Invalid {
    /// A wrong value with what is allowed in its place.
    pub(crate) fn new(key: impl Into<String>, value: &Value, hint: impl Into<String>) -> Self {
        let key = cut(key, VALUE_MOST);
        Self { key, value: cut(value.to_string(), VALUE_MOST), hint: hint.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\": {}: {}", self.key, self.value, self.hint)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    pub(crate) scope: Scope,
    pub(crate) log: Log,
}

impl From<Settings> for Config {
    fn from(settings: Settings) -> Self {
        Self { settings, scope: Scope::HOST, log: Log::default() }
    }
}

/// Where the data plane is built: in at least one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scope {
    /// In the network namespace of the node.
    pub(crate) host: bool,
    /// In the network namespace of each pod.
    pub(crate) pod: bool,
}

impl Scope {
    pub(crate) const HOST: Self = Self { host: true, pod: false };
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// Least level that is written.
    pub(crate) level: log::LevelFilter,
    pub(crate) file: PathBuf,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: log::LevelFilter::Warn, file: PathBuf::from(names::LOG_FILE) }
    }
}

/// What is set for an uplink in `gateways`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Gateways {
    /// There is no router: every client is on the link.
    OnLink,
    /// Its routers, those that are used where nothing else says which one first.
    Routers(Vec<IpAddr>),
}

impl Gateways {
    fn to_json(&self) -> Value {
        match self {
            Self::OnLink => json!(ON_LINK),
            Self::Routers(routers) => json!(routers),
        }
    }
}

/// The word for [`Gateways::OnLink`].
const ON_LINK: &str = "onlink";

/// Which packets of a pod are steered to the uplink whose address they will be masqueraded with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Masquerade {
    /// Where an uplink has no address of its own.
    Auto,
    /// Nowhere.
    Off,
    /// Packets with this mark, whatever uplink they would leave by.
    Mark {
        mark: MarkMatch,
        /// Name of the uplink to leave by; none for that of main's default route.
        via: Option<String>,
    },
}

/// Who does the marking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Backend {
    /// nftables where the kernel has it.
    Auto,
    /// nftables, over netlink.
    Nftables,
    /// iptables, in the variant that the node's other rules are in.
    Iptables,
    /// iptables, in this variant.
    Variant(Variant),
}

/// Which numbers the plugin chooses by what is on the node. [`Settings`] has the ones that it chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Automatic {
    pub(crate) mark: bool,
    pub(crate) priority: bool,
}

/// The word for a number of [`Automatic`].
pub(crate) const AUTO: &str = "auto";

/// The settings that hold for a node as a whole: two networks on it have to agree on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) uplinks: Vec<Pattern>,
    /// Gateways by uplink name, where they can't be found.
    pub(crate) gateways: BTreeMap<String, Gateways>,
    /// Connections to these destinations are never bound, since their replies are meant to take
    /// another way: direct server return, anycast.
    pub(crate) exclude: Vec<IpNetwork>,
    /// Whether the node's own sockets and `NodePort`s with remote backends are served too.
    pub(crate) host: bool,
    /// Whether a local pod's address is accepted as a source on an uplink.
    pub(crate) hairpin: bool,
    pub(crate) masquerade: Masquerade,
    pub(crate) backend: Backend,
    pub(crate) field: Field,
    pub(crate) priority: u32,
    /// Uplink `id` has table `table_base + id`.
    pub(crate) table_base: u32,
    /// Whether bound connections are put into a flowtable.
    pub(crate) offload: bool,
    pub(crate) automatic: Automatic,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            uplinks: vec![Pattern::Auto],
            gateways: BTreeMap::new(),
            exclude: Vec::new(),
            host: true,
            hairpin: false,
            masquerade: Masquerade::Auto,
            backend: Backend::Auto,
            // The default mask has five bits.
            #[expect(clippy::unwrap_used, reason = "see above; a test covers it")]
            field: Field::new(names::MARK_MASK).unwrap(),
            priority: names::RULE_PRIORITY,
            table_base: names::TABLE_BASE,
            offload: false,
            automatic: Automatic { mark: true, priority: false },
        }
    }
}

impl Automatic {
    /// The keys whose numbers are chosen.
    pub(crate) fn keys(self) -> Vec<&'static str> {
        let all = [(self.mark, MARK_MASK), (self.priority, RULE_PRIORITY)];
        all.iter().filter_map(|&(is, key)| is.then_some(key)).collect()
    }

    /// The choices that these keys stand for.
    pub(crate) fn of(keys: &[&str]) -> Self {
        Self { mark: keys.contains(&MARK_MASK), priority: keys.contains(&RULE_PRIORITY) }
    }

    /// Every set of choices.
    fn all() -> [Self; 4] {
        [(false, false), (false, true), (true, false), (true, true)]
            .map(|(mark, priority)| Self { mark, priority })
    }
}

/// What is asked for: a number that the plugin chooses is none of it.
impl Hash for Settings {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { uplinks, gateways, exclude, host, hairpin, masquerade, backend, .. } = self;
        let Self { field, priority, table_base, offload, automatic, .. } = self;
        let priority = (!automatic.priority).then_some(priority);
        let field = (!automatic.mark).then_some(field);
        (uplinks, gateways, exclude, host, hairpin, masquerade, backend).hash(state);
        (field, priority, table_base).hash(state);
        // Without it the number is that of releases that do not know it.
        offload.then_some(OFFLOAD).into_iter().for_each(|word| word.hash(state));
    }
}

impl Settings {
    /// These settings with the numbers of those in force, where the plugin has the choice.
    pub(crate) fn with_choices_of(&self, in_force: &Self) -> Self {
        let priority = if self.automatic.priority { in_force.priority } else { self.priority };
        let field = if self.automatic.mark { in_force.field } else { self.field };
        Self { field, priority, ..self.clone() }
    }

    /// Whether these settings, which are in force, are those that are asked for. A number may be asked
    /// for or left to the plugin, and be the same.
    pub(crate) fn fulfil(&self, asked: &Self) -> bool {
        Self { automatic: self.automatic, ..asked.with_choices_of(self) } == *self
    }

    /// The settings in the words of the public contract, all keys present, with the numbers that were
    /// chosen.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let masquerade = match &self.masquerade {
            Masquerade::Auto => json!("auto"),
            Masquerade::Off => json!("off"),
            Masquerade::Mark { mark, via } => {
                let mut object = Map::new();
                object.insert("mark".into(), json!(mark.to_string()));
                object.extend(via.iter().map(|via| ("via".into(), json!(via))));
                Value::Object(object)
            }
        };
        let gateways: Map<_, _> =
            self.gateways.iter().map(|(name, set)| (name.clone(), set.to_json())).collect();
        let exclude: Vec<_> = self.exclude.iter().map(ToString::to_string).collect();
        let uplinks: Vec<_> = self.uplinks.iter().map(ToString::to_string).collect();
        let all = [
            ("uplinks", json!(uplinks)),
            ("gateways", Value::Object(gateways)),
            ("exclude", json!(exclude)),
            ("host", json!(self.host)),
            ("hairpin", json!(self.hairpin)),
            ("masquerade", masquerade),
            ("backend", json!(self.backend.to_string())),
            (MARK_MASK, json!(self.field.to_string())),
            (RULE_PRIORITY, json!(self.priority)),
            ("tableBase", json!(self.table_base)),
            (OFFLOAD, json!(self.offload)),
        ];
        all.map(|(key, value)| (key.to_string(), value)).into_iter().collect()
    }

    /// The first key whose value is not the one in force: its name, the value here and the one in force.
    pub(crate) fn differing(&self, in_force: &Self) -> Option<(String, Value, Value)> {
        if in_force.fulfil(self) {
            return None;
        }
        let (asked, found) = (self.with_choices_of(in_force).to_json(), in_force.to_json());
        let mut differing = asked.into_iter().filter(|(key, value)| found.get(key) != Some(value));
        let (key, value) = differing.next()?;
        let other = found.get(&key).cloned().unwrap_or_default();
        Some((key, value, other))
    }

    /// A number that stands for these settings, the version of the ruleset, and whether it is one
    /// for a node with IPVS. It lies in the table as one element, so that an ADD sees in one look
    /// whether all of that is in force.
    pub(crate) fn fingerprint(&self, ipvs: bool) -> u32 {
        let mut hasher = Fnv::default();
        (names::RULESET_VERSION, self, ipvs).hash(&mut hasher);
        hasher.folded()
    }

    /// The fingerprints of all settings that these fulfil; see [`Settings::fulfil`].
    pub(crate) fn fulfilled(&self, ipvs: bool) -> Vec<u32> {
        let form = |automatic| Self { automatic, ..self.clone() }.fingerprint(ipvs);
        Automatic::all().map(form).into()
    }

    /// Both numbers, without IPVS and with it.
    pub(crate) fn fingerprints(&self) -> [u32; 2] {
        [false, true].map(|ipvs| self.fingerprint(ipvs))
    }

    /// The same for the namespace of a pod: its own sockets are what is asked, nothing in it is masqueraded by
    /// kube-proxy, and it forwards too little to be worth a flowtable.
    pub(crate) fn for_pod(&self) -> Self {
        Self { host: true, masquerade: Masquerade::Off, offload: false, ..self.clone() }
    }

    /// Where our rules stand.
    pub(crate) fn rules(&self) -> RulePriorities {
        let first = self.priority;
        RulePriorities {
            ask_alone: first.saturating_sub(2),
            ask: first.saturating_sub(1),
            skip: first,
            request: first + 1,
            bound: first + 2,
            end: first + 3,
            inside: first + 4,
            source: first + 5,
        }
    }

    pub(crate) fn table(&self, id: u32) -> u32 {
        self.table_base + id
    }
}

/// Priorities of our rules. Those from `skip` to `end` have to be ours alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RulePriorities {
    /// A look-up that asks main for routes to single addresses (iptables).
    pub(crate) ask_alone: u32,
    /// A look-up that asks main alone; behind `ask_alone` its end.
    pub(crate) ask: u32,
    /// Unmarked packets go on at `end`.
    pub(crate) skip: u32,
    /// Requests go on at `end`.
    pub(crate) request: u32,
    /// Everything else that is marked is looked up in an uplink's table.
    pub(crate) bound: u32,
    /// Does nothing. In a pod, what leads to a network behind an uplink goes on at `source` here.
    pub(crate) end: u32,
    /// Only in a pod: from an uplink's address, main's routes to what lies inside.
    pub(crate) inside: u32,
    /// Only in a pod: from an uplink's address, the uplink's table.
    pub(crate) source: u32,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Variant(variant) => return variant.fmt(f),
        })
    }
}
