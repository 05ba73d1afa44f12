//! Settings for `up`: from a conflist or from a plugin object.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::Failure;
use crate::config::{self, Config, Invalid, Log, Scope, Settings};

/// The network that `up` without a name acts for.
pub(super) const OWN_NETWORK: &str = "symroute up";
/// Our `type` in a conflist.
const TYPE: &str = "symroute";

/// A configuration and the network that it belongs to.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) network: String,
    pub(super) config: Config,
}

pub(super) fn default() -> Config {
    Config { settings: Settings::default(), scope: Scope::Host, log: Log::default() }
}

pub(super) fn read(path: &Path) -> Result<Source, Failure> {
    let fail = |text: String| Failure::Failed(format!("{}: {text}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
    let object = value.as_object().ok_or_else(|| fail("not a JSON object".into()))?;
    let name = object.get("name").and_then(Value::as_str).unwrap_or(OWN_NETWORK);
    let plugin = plugin(object).map_err(fail)?;
    let config = config::parse(plugin).map_err(|invalid| fail(invalid.to_string()))?;
    Ok(Source { network: name.to_string(), config })
}

/// The one entry of ours in a conflist, or the object itself where it is a plugin object.
fn plugin(object: &Map<String, Value>) -> Result<&Map<String, Value>, String> {
    let ours = |plugin: &&Map<String, Value>| plugin.get("type").is_none_or(|t| t == TYPE);
    let Some(plugins) = object.get("plugins") else {
        return Some(object).filter(ours).ok_or_else(|| {
            format!(
                "\"type\" is {}, not \"{TYPE}\"; give a conflist or our own plugin object",
                object["type"]
            )
        });
    };
    let list = plugins.as_array().ok_or("\"plugins\" is not a list")?;
    let named = |plugin: &&Map<String, Value>| plugin.get("type").is_some_and(|t| t == TYPE);
    let mut found = list.iter().filter_map(Value::as_object).filter(named);
    match (found.next(), found.next()) {
        (Some(plugin), None) => Ok(plugin),
        (None, _) => Err(format!(
            "no plugin of type \"{TYPE}\" in \"plugins\"; add {{\"type\": \"{TYPE}\"}} behind the \
             primary plugin"
        )),
        (Some(_), Some(_)) => Err(format!("more than one plugin of type \"{TYPE}\"; keep one")),
    }
}

pub(super) fn check_scope(config: &Config) -> Result<(), Failure> {
    if config.scope == Scope::Pod {
        let hint = "\"up\" serves the node; a pod's own data plane is made by its ADD";
        let invalid = Invalid::new("scope", &"pod".into(), hint);
        return Err(Failure::Failed(invalid.to_string()));
    }
    Ok(())
}
