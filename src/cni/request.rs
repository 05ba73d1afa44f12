//! A call of a runtime: its environment and its configuration, checked in the order in which
//! libcni's own plugins check.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{Code, Failure, LATEST, VERSIONS};
use crate::config;
use crate::state::Key;

/// The version that a configuration without `cniVersion` has.
const OLDEST: &str = "0.1.0";

/// The verbs that come with a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Enroll a pod.
    Add,
    /// Take it out again.
    Del,
}

/// The variables of a call; empty where unset.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: String,
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_PATH`
    pub path: String,
}

impl Environment {
    /// The variables of this process; none without `CNI_COMMAND`.
    #[must_use]
    pub fn of_process() -> Option<Self> {
        let read = |name| env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
        let command = read("CNI_COMMAND");
        (!command.is_empty()).then(|| Self {
            command,
            container: read("CNI_CONTAINERID"),
            netns: read("CNI_NETNS"),
            ifname: read("CNI_IFNAME"),
            path: read("CNI_PATH"),
        })
    }

    /// The verb, if all that it needs is there.
    pub(super) fn check(&self) -> Result<Command, Failure> {
        let command = match self.command.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            other => {
                let msg = format!("unknown CNI_COMMAND: {other}");
                return Err(Failure::new(Code::Environment, msg).with("known: ADD, DEL, VERSION"));
            }
        };
        let needed = [
            ("CNI_CONTAINERID", &self.container, true),
            ("CNI_NETNS", &self.netns, command == Command::Add),
            ("CNI_IFNAME", &self.ifname, true),
            ("CNI_PATH", &self.path, true),
        ];
        let missing: Vec<_> = needed
            .iter()
            .filter(|(_, value, needed)| *needed && value.is_empty())
            .map(|(name, ..)| *name)
            .collect();
        if !missing.is_empty() {
            let msg = format!("required env variables [{}] missing", missing.join(","));
            return Err(Failure::new(Code::Environment, msg));
        }
        self.check_values()?;
        Ok(command)
    }

    fn check_values(&self) -> Result<(), Failure> {
        let wrong = |name: &str, value: &str, rule: &str| {
            Failure::new(Code::Environment, format!("invalid {name}: {value:?}")).with(rule)
        };
        if !is_name(&self.container) {
            return Err(wrong("CNI_CONTAINERID", &self.container, NAME_RULE));
        }
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if self.ifname.len() > 15
            || [".", ".."].contains(&&*self.ifname)
            || self.ifname.contains(bad)
        {
            let rule = "1 to 15 bytes without '/', ':' or white space, and not '.' or '..'";
            return Err(wrong("CNI_IFNAME", &self.ifname, rule));
        }
        Ok(())
    }
}

const NAME_RULE: &str = "a letter or digit, followed by letters, digits, '_', '.' or '-'";

/// `^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// A checked call.
#[derive(Debug)]
pub struct Request<'a> {
    /// `cniVersion` of the configuration.
    pub version: String,
    /// Which attachment it is about.
    pub key: Key,
    /// Path of the pod's network namespace; may be empty for DEL.
    pub netns: &'a str,
    /// The plugin's configuration, `prevResult` left out.
    pub config: Map<String, Value>,
    /// `prevResult` byte for byte.
    pub prev_result: Option<Box<RawValue>>,
}

impl<'a> Request<'a> {
    /// Decodes the configuration. A failure comes with the version in which it is to be told.
    pub(super) fn parse(
        command: Command,
        environment: &'a Environment,
        stdin: &[u8],
    ) -> Result<Self, (&'static str, Failure)> {
        let told = |failure| (LATEST, failure);
        let decode = |error: String| {
            told(Failure::new(Code::Decode, format!("decode the configuration on stdin: {error}")))
        };
        let text = match std::str::from_utf8(stdin) {
            Ok(text) => Cow::Borrowed(text),
            // Of a DEL only the names matter, and those are ASCII.
            Err(_) if command == Command::Del => String::from_utf8_lossy(stdin),
            Err(error) => return Err(decode(error.to_string())),
        };
        let mut raw: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(&text).map_err(|error| decode(error.to_string()))?;
        let prev_result = raw.remove("prevResult").filter(|raw| raw.get() != "null");
        let mut config = Map::new();
        // Keys of others are not looked into: they may hold what we can't read.
        raw.retain(|key, _| key == "name" || key == "cniVersion" || config::KEYS.contains(&&**key));
        for (key, value) in raw {
            let value = serde_json::from_str(value.get()).map_err(|e| decode(e.to_string()))?;
            config.insert(key, value);
        }
        let network = name(&config).map_err(told)?;
        let version = version(&config).map_err(told)?;
        let key = Key {
            network,
            container: environment.container.clone(),
            ifname: environment.ifname.clone(),
        };
        Ok(Self { version, key, netns: &environment.netns, config, prev_result })
    }
}

fn name(config: &Map<String, Value>) -> Result<String, Failure> {
    match config.get("name") {
        Some(Value::String(name)) if is_name(name) => Ok(name.clone()),
        None => Err(Failure::new(Code::Config, "missing network name").with("set \"name\"")),
        Some(other) => {
            let msg = format!("invalid network name: {other}");
            Err(Failure::new(Code::Config, msg).with(NAME_RULE))
        }
    }
}

fn version(config: &Map<String, Value>) -> Result<String, Failure> {
    let version = match config.get("cniVersion") {
        None => OLDEST,
        Some(Value::String(version)) if version.is_empty() => OLDEST,
        Some(Value::String(version)) => version,
        Some(other) => {
            let msg = format!("decode \"cniVersion\": {other} is not a string");
            return Err(Failure::new(Code::Decode, msg));
        }
    };
    if VERSIONS.contains(&version) {
        return Ok(version.to_string());
    }
    let msg = format!("incompatible CNI version: \"cniVersion\" is \"{version}\"");
    let details = format!("supported: {}", VERSIONS.join(", "));
    Err(Failure::new(Code::IncompatibleVersion, msg).with(details))
}
