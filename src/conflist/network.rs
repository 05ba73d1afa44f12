//! Parses one file of the conf dir as a runtime does (libcni's `ConfListFromBytes`, `ConfFromBytes`).

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::names;

/// Types of Multus, which calls the primary's list itself. An entry behind Multus would also serve networks
/// that are not the node's.
const MULTUS: [&str; 3] = ["multus", "multus-cni", "multus-shim"];
/// Types of plugins that may have a file of their own but make no pod network.
const NO_PRIMARY: [&str; 3] = ["loopback", "istio-cni", "linkerd-cni"];

/// A JSON object with undecoded values.
type Object<'a> = BTreeMap<String, &'a RawValue>;

/// The network of a file.
#[derive(Debug, Clone)]
pub struct Network<'a> {
    pub(crate) text: &'a str,
    /// `name` of the network, not empty.
    pub(crate) name: String,
    /// `cniVersion` of the network, if present.
    pub(crate) version: Option<String>,
    /// Whether the file is a list of plugins and not a single plugin.
    pub(crate) is_list: bool,
    /// The plugins in order, at least one.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// `type` of the plugin.
    pub kind: String,
    /// Byte range of the plugin object in the text.
    pub place: Range<usize>,
}

impl Plugin {
    fn is_ours(&self) -> bool {
        self.kind == names::PLUGIN_TYPE
    }
}

impl<'a> Network<'a> {
    /// Parses a file with this name. Error: why no runtime takes it, in a few words.
    pub fn parse(file: &str, content: &'a [u8]) -> Result<Self, String> {
        if content.iter().all(u8::is_ascii_whitespace) {
            return Err("empty".into());
        }
        let text = std::str::from_utf8(content).map_err(|_| "not UTF-8".to_string())?;
        let object: Object<'_> = serde_json::from_str(text).map_err(|e| format!("no JSON: {e}"))?;
        let is_list = file.ends_with(".conflist");
        let name = string(&object, "name")?.filter(|name| !name.is_empty()).ok_or("no \"name\"")?;
        let version = string(&object, "cniVersion")?;
        let plugins = if is_list {
            plugins(text, &object)?
        } else {
            if object.contains_key("plugins") && !object.contains_key("type") {
                return Err("a list belongs into a file that ends in .conflist".into());
            }
            let kind = kind(&object)?;
            vec![Plugin { kind, place: 0..text.len() }]
        };
        Ok(Self { text, name, version, is_list, plugins })
    }

    /// Indexes of our entries in [`Self::plugins`].
    #[must_use]
    pub fn ours(&self) -> Vec<usize> {
        let ours = self.plugins.iter().enumerate().filter(|(_, plugin)| plugin.is_ours());
        ours.map(|(place, _)| place).collect()
    }

    /// The plugin object at an index of [`Self::plugins`].
    #[must_use]
    pub fn settings(&self, place: usize) -> Map<String, Value> {
        let text = self.plugins.get(place).and_then(|plugin| self.text.get(plugin.place.clone()));
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    pub(crate) fn is_multus(&self) -> bool {
        self.plugins.iter().any(|plugin| MULTUS.contains(&plugin.kind.as_str()))
    }

    /// Whether none of the plugins makes a pod network.
    pub(crate) fn is_no_primary(&self) -> bool {
        self.plugins.iter().all(|plugin| NO_PRIMARY.contains(&plugin.kind.as_str()))
    }

    pub(crate) fn is_ours_alone(&self) -> bool {
        self.plugins.iter().all(Plugin::is_ours)
    }

    /// Whether Cilium is among the plugins, alone or chained behind another primary (`chaining-mode`).
    pub(crate) fn is_cilium(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.kind == "cilium-cni")
    }

    /// Whether this is Multus's file and names `file`, as `clusterNetwork` or as the file that Multus waits
    /// for (`readinessindicatorfile`).
    pub(crate) fn is_multus_that_names(&self, file: &str) -> bool {
        self.is_multus() && self.text.contains(file)
    }

    /// Whether this is Multus's file and has a copy of the network `name` without our entry.
    pub(crate) fn delegates_without_us(&self, name: &str) -> bool {
        let settings: Value = serde_json::from_str(self.text).unwrap_or_default();
        let own = settings.get("plugins").and_then(Value::as_array).into_iter().flatten();
        let delegates = own.chain([&settings]).filter_map(|p| p.get("delegates")?.as_array());
        let mut copies = delegates.flatten().filter(|d| d.get("name").is_some_and(|n| n == name));
        copies.any(|copy| {
            let mut plugins = copy.get("plugins").and_then(Value::as_array).into_iter().flatten();
            plugins.all(|plugin| plugin.get("type").is_none_or(|t| t != names::PLUGIN_TYPE))
        })
    }
}

fn string(object: &Object<'_>, key: &str) -> Result<Option<String>, String> {
    let Some(value) = object.get(key) else { return Ok(None) };
    let string = serde_json::from_str(value.get());
    string.map(Some).map_err(|_| format!("\"{key}\" is no string"))
}

fn kind(object: &Object<'_>) -> Result<String, String> {
    string(object, "type")?.filter(|kind| !kind.is_empty()).ok_or_else(|| "no \"type\"".into())
}

fn plugins(text: &str, object: &Object<'_>) -> Result<Vec<Plugin>, String> {
    let list = object.get("plugins").ok_or("no \"plugins\"")?;
    let list: Vec<&RawValue> =
        serde_json::from_str(list.get()).map_err(|_| "\"plugins\" is no list")?;
    if list.is_empty() {
        return Err("\"plugins\" is empty".into());
    }
    let plugin = |(number, raw): (usize, &&RawValue)| {
        let at = |why: &str| format!("plugin {}: {why}", number + 1);
        let object: Object<'_> = serde_json::from_str(raw.get()).map_err(|_| at("no object"))?;
        // The raw value borrows from the text, so the difference of the pointers is its offset.
        let start = raw.get().as_ptr().addr() - text.as_ptr().addr();
        let kind = kind(&object).map_err(|why| at(&why))?;
        Ok(Plugin { kind, place: start..start + raw.get().len() })
    };
    list.iter().enumerate().map(plugin).collect()
}
