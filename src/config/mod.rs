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

/// symroute's own keys of the plugin object.
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
    /// The key with its place, such as `gateways.eth1`.
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) hint: String,
}

impl Invalid {
    /// An error that names the key, its value and the allowed values (`hint`).
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

/// Network namespaces in which symroute builds its data plane; at least one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scope {
    /// The network namespace of the node.
    pub(crate) host: bool,
    /// The network namespace of each pod.
    pub(crate) pod: bool,
}

impl Scope {
    pub(crate) const HOST: Self = Self { host: true, pod: false };
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// Lowest severity that the plugin writes.
    pub(crate) level: log::LevelFilter,
    pub(crate) file: PathBuf,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: log::LevelFilter::Warn, file: PathBuf::from(names::LOG_FILE) }
    }
}

/// Value of an uplink in `gateways`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Gateways {
    /// The uplink has no router: every client is on the link.
    OnLink,
    /// Routers of the uplink. The default routers come first.
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

/// Configuration value of [`Gateways::OnLink`].
const ON_LINK: &str = "onlink";

/// Packets of pods that symroute steers to the uplink with whose address the node masquerades them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Masquerade {
    /// Packets of uplinks without an address of their own.
    Auto,
    /// No packets.
    Off,
    /// Packets with this mark, on any uplink.
    Mark {
        mark: MarkMatch,
        /// Name of the uplink to steer to; `None` for that of the default route in table main.
        via: Option<String>,
    },
}

/// Packet filter that sets the marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Backend {
    /// nftables if the kernel has it, otherwise iptables.
    Auto,
    /// nftables, over netlink.
    Nftables,
    /// iptables, in the variant of the node's other rules.
    Iptables,
    /// iptables in a given variant.
    Variant(Variant),
}

/// Numbers that the plugin chooses to fit the node. [`Settings`] has the chosen numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Automatic {
    pub(crate) mark: bool,
    pub(crate) priority: bool,
}

/// Configuration value of a number that the plugin chooses.
pub(crate) const AUTO: &str = "auto";

/// Settings of the whole node. All networks on a node have to agree on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) uplinks: Vec<Pattern>,
    /// Routers by uplink name, for uplinks whose routers the plugin can't find.
    pub(crate) gateways: BTreeMap<String, Gateways>,
    /// Destinations whose connections symroute never binds, because their replies have to take another way:
    /// direct server return, anycast.
    pub(crate) exclude: Vec<IpNetwork>,
    /// Whether symroute also serves the node's own sockets and `NodePort`s with remote backends.
    pub(crate) host: bool,
    /// Whether an uplink accepts a local pod's address as a source.
    pub(crate) hairpin: bool,
    pub(crate) masquerade: Masquerade,
    pub(crate) backend: Backend,
    pub(crate) field: Field,
    pub(crate) priority: u32,
    /// Base of the table numbers: uplink `id` has table `table_base + id`.
    pub(crate) table_base: u32,
    /// Whether symroute puts bound connections into a flowtable.
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
    /// The configuration keys whose numbers the plugin chooses.
    pub(crate) fn keys(self) -> Vec<&'static str> {
        let all = [(self.mark, MARK_MASK), (self.priority, RULE_PRIORITY)];
        all.iter().filter_map(|&(is, key)| is.then_some(key)).collect()
    }

    /// Inverse of [`Self::keys`].
    pub(crate) fn of(keys: &[&str]) -> Self {
        Self { mark: keys.contains(&MARK_MASK), priority: keys.contains(&RULE_PRIORITY) }
    }

    /// All combinations.
    fn all() -> [Self; 4] {
        [(false, false), (false, true), (true, false), (true, true)]
            .map(|(mark, priority)| Self { mark, priority })
    }
}

/// Hashes the requested settings, without the numbers that the plugin chooses.
impl Hash for Settings {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Without "..", so that the compiler reports a new field that is missing here.
        let Self {
            uplinks,
            gateways,
            exclude,
            host,
            hairpin,
            masquerade,
            backend,
            field,
            priority,
            table_base,
            offload,
            automatic,
        } = self;
        let priority = (!automatic.priority).then_some(priority);
        let field = (!automatic.mark).then_some(field);
        (uplinks, gateways, exclude, host, hairpin, masquerade, backend).hash(state);
        (field, priority, table_base).hash(state);
        // Hashed only if set, so that the hash without it equals that of releases that do not know the key.
        offload.then_some(OFFLOAD).into_iter().for_each(|word| word.hash(state));
    }
}

impl Settings {
    /// These settings with the numbers of `in_force` where the plugin may choose.
    pub(crate) fn with_choices_of(&self, in_force: &Self) -> Self {
        let priority = if self.automatic.priority { in_force.priority } else { self.priority };
        let field = if self.automatic.mark { in_force.field } else { self.field };
        Self { field, priority, ..self.clone() }
    }

    /// Whether these settings, which are in force, meet the `asked` ones. A number meets both a request for
    /// this number and `"auto"`.
    pub(crate) fn fulfil(&self, asked: &Self) -> bool {
        Self { automatic: self.automatic, ..asked.with_choices_of(self) } == *self
    }

    /// The settings as a plugin object with all keys and with the chosen numbers.
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

    /// The first key whose value differs from `in_force`: key, own value, value in force.
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

    /// Hash of the settings, the version of the ruleset and whether the node has IPVS. The nftables table
    /// has it as one element, so that an ADD checks with one request whether all of that is in force.
    pub(crate) fn fingerprint(&self, ipvs: bool) -> u32 {
        let mut hasher = Fnv::default();
        (names::RULESET_VERSION, self, ipvs).hash(&mut hasher);
        hasher.folded()
    }

    /// The fingerprints of all settings that these settings meet; see [`Settings::fulfil`].
    pub(crate) fn fulfilled(&self, ipvs: bool) -> Vec<u32> {
        let form = |automatic| Self { automatic, ..self.clone() }.fingerprint(ipvs);
        Automatic::all().map(form).into()
    }

    /// The fingerprints without and with IPVS.
    pub(crate) fn fingerprints(&self) -> [u32; 2] {
        [false, true].map(|ipvs| self.fingerprint(ipvs))
    }

    /// These settings for the network namespace of a pod. Requests go to the pod's own sockets, kube-proxy
    /// masquerades nothing there, and a flowtable is not worth it, since a pod forwards little.
    pub(crate) fn for_pod(&self) -> Self {
        Self { host: true, masquerade: Masquerade::Off, offload: false, ..self.clone() }
    }

    /// The priorities of our rules.
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

/// Priorities of our rules. No other program may have a rule from `skip` to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RulePriorities {
    /// iptables: a look-up in table main for routes to single addresses.
    pub(crate) ask_alone: u32,
    /// nftables: a look-up in table main alone. iptables: the end of the look-up that `ask_alone` begins.
    pub(crate) ask: u32,
    /// Sends unmarked packets on to `end`.
    pub(crate) skip: u32,
    /// Sends requests on to `end`.
    pub(crate) request: u32,
    /// Looks up all other marked packets in an uplink's table.
    pub(crate) bound: u32,
    /// Does nothing. In a pod, sends packets to a network behind an uplink on to `source`.
    pub(crate) end: u32,
    /// Only in a pod: for packets from an uplink's address, main's routes to destinations inside.
    pub(crate) inside: u32,
    /// Only in a pod: for packets from an uplink's address, the uplink's table.
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
