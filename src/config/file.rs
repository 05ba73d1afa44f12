//! Reads our configuration from a file: a conflist that names symroute, or our plugin object.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Config, parse, unknown};
use crate::names::PLUGIN_TYPE as TYPE;
use crate::plain_file::{self, Links};

/// Content of a configuration file.
#[derive(Debug)]
pub(crate) struct Content {
    /// `name` of the network, if the file has one.
    pub(crate) network: Option<String>,
    pub(crate) config: Config,
    /// Whether the file is a list of plugins, as runtimes read it, and not a plugin object.
    pub(crate) is_list: bool,
}

/// Reads a file. With `strictly`, an unknown key is an error. Error: the fault, with the path in front.
pub(crate) fn read(path: &Path, strictly: bool) -> Result<Content, String> {
    let fail = |text: String| format!("{}: {text}", path.display());
    let text = plain_file::read_text(path, plain_file::LONGEST, Links::Followed)
        .map_err(|error| fail(error.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
    let object = value.as_object().ok_or_else(|| fail("not a JSON object".into()))?;
    let network = object.get("name").and_then(Value::as_str).map(str::to_string);
    let plugin = plugin(object).map_err(fail)?;
    if let Some(unknown) = unknown(plugin).next().filter(|_| strictly) {
        return Err(fail(unknown.to_string()));
    }
    let config = parse(plugin).map_err(|invalid| fail(invalid.to_string()))?;
    Ok(Content { network, config, is_list: object.contains_key("plugins") })
}

/// Whether a network lists symroute among its plugins.
pub(crate) fn names_us(network: &Value) -> bool {
    let ours = |plugin: &Value| plugin.get("type").is_some_and(|kind| kind == TYPE);
    let plugins = network.get("plugins").and_then(Value::as_array);
    ours(network) || plugins.is_some_and(|plugins| plugins.iter().any(ours))
}

/// Our only entry in a conflist, or `object` itself if it is a plugin object. Error: no entry, more than
/// one, or another plugin's object.
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
