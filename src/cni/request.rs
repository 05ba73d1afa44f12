//! A call of a runtime: environment and configuration, checked in the order of libcni's own plugins.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::version::at_least;
use super::{Code, Failure, VERSIONS, gc};
use crate::config;
use crate::state::Key;

/// Version of a configuration without `cniVersion`.
const OLDEST: &str = "0.1.0";

/// The values of `CNI_COMMAND` that have a configuration: all except `VERSION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl Command {
    const ALL: [Self; 5] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }

    fn is_about_pod(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    /// The first version of the protocol that has the verb.
    fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del => OLDEST,
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }
}

/// The variables of a call, empty if unset. `CNI_PATH` is missing, because the plugin calls no other one.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub(crate) command: String,
    /// `CNI_CONTAINERID`
    pub(crate) container: String,
    /// `CNI_NETNS`
    pub(crate) netns: String,
    /// `CNI_IFNAME`
    pub(crate) ifname: String,
}

impl Environment {
    /// The variables of this process; `None` without `CNI_COMMAND`.
    #[must_use]
    pub fn of_process() -> Option<Self> {
        let read = |name| env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
        let command = read("CNI_COMMAND");
        (!command.is_empty()).then(|| Self {
            command,
            container: read("CNI_CONTAINERID"),
            netns: read("CNI_NETNS"),
            ifname: read("CNI_IFNAME"),
        })
    }

    /// Error: the names of all missing variables. Accepts an unknown verb, which [`Request::parse`] reports
    /// after it has decoded the configuration.
    pub(super) fn check_presence(&self) -> Result<(), Failure> {
        let Some(command) = Command::named(&self.command) else { return Ok(()) };
        let pod = command.is_about_pod();
        let needed = [
            ("CNI_CONTAINERID", &self.container, pod),
            ("CNI_NETNS", &self.netns, pod && command != Command::Del),
            ("CNI_IFNAME", &self.ifname, pod),
        ];
        let missing: Vec<_> = needed
            .iter()
            .filter(|(_, value, needed)| *needed && value.is_empty())
            .map(|(name, ..)| *name)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let msg = format!("required env variables [{}] missing", missing.join(","));
        Err(Failure::new(Code::Environment, msg))
    }

    fn check_values(&self) -> Result<(), Failure> {
        if !Command::named(&self.command).is_some_and(Command::is_about_pod) {
            return Ok(());
        }
        let wrong = |name: &str, value: &str, rule: &str| {
            Failure::new(Code::Environment, format!("invalid {name}: {value:?}")).with(rule)
        };
        if !is_name(&self.container) {
            return Err(wrong("CNI_CONTAINERID", &self.container, NAME_RULE));
        }
        if !config::is_interface_name(&self.ifname) {
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

#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// `cniVersion` of the configuration.
    pub(crate) version: String,
    /// `CNI_COMMAND`
    command: Command,
    /// The attachment; GC and STATUS use only its network.
    pub(crate) key: Key,
    /// Path of the pod's network namespace; may be empty for DEL.
    pub(crate) netns: &'a str,
    /// Our keys and the protocol's keys of the configuration, without `prevResult`.
    pub(crate) config: Map<String, Value>,
    /// `prevResult` byte for byte.
    pub(crate) prev_result: Option<Box<RawValue>>,
}

impl<'a> Request<'a> {
    /// Decodes the configuration and checks the values of the environment.
    pub(crate) fn parse(environment: &'a Environment, stdin: &[u8]) -> Result<Self, Failure> {
        let decode = |error: String| {
            Failure::new(Code::Decode, format!("decode the configuration on stdin: {error}"))
        };
        let text = match std::str::from_utf8(stdin) {
            Ok(text) => Cow::Borrowed(text),
            // A DEL uses only names, which are ASCII.
            Err(_) if environment.command == "DEL" => String::from_utf8_lossy(stdin),
            Err(error) => return Err(decode(error.to_string())),
        };
        let mut raw: BTreeMap<String, &RawValue> =
            serde_json::from_str(&text).map_err(|error| decode(error.to_string()))?;
        let prev_result = raw.remove("prevResult").filter(|raw| raw.get() != "null");
        let prev_result = prev_result.map(ToOwned::to_owned);
        let mut config = Map::new();
        // Other plugins' keys may have values that serde_json can't read, such as 1e400.
        raw.retain(|key, _| PROTOCOL.contains(&&**key) || config::KEYS.contains(&&**key));
        for (key, value) in raw {
            let value = serde_json::from_str(value.get()).map_err(|e| decode(e.to_string()))?;
            config.insert(key, value);
        }
        let network = name(&config)?;
        environment.check_values()?;
        let command = Command::named(&environment.command).ok_or_else(|| {
            let msg = format!("unknown CNI_COMMAND: {}", environment.command);
            Failure::new(Code::Environment, msg).with("known: ADD, DEL, CHECK, GC, STATUS, VERSION")
        })?;
        let version = version(&config)?;
        let (container, ifname) = (environment.container.clone(), environment.ifname.clone());
        let key = Key { network, container, ifname };
        Ok(Self { version, command, key, netns: &environment.netns, config, prev_result })
    }

    /// The verb. Error: the request's version of the protocol does not have the verb.
    pub(crate) fn command(&self) -> Result<Command, Failure> {
        let since = self.command.since();
        if at_least(&self.version, since) {
            return Ok(self.command);
        }
        let msg = format!(
            "{} came with CNI {since}, \"cniVersion\" is {}",
            self.command.name(),
            self.version
        );
        Err(Failure::new(Code::IncompatibleVersion, msg).with("raise \"cniVersion\""))
    }
}

/// Keys of the protocol that the plugin reads.
const PROTOCOL: [&str; 5] = ["name", "cniVersion", "runtimeConfig", gc::LISTS[0], gc::LISTS[1]];

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn environment(command: &str) -> Environment {
        let text = |text: &str| text.to_string();
        Environment {
            command: text(command),
            container: text("c1"),
            netns: text("/run/netns/x"),
            ifname: text("eth0"),
        }
    }

    #[test]
    fn bytes_that_are_no_text_fail_all_but_del() {
        let stdin = b"{\"cniVersion\":\"1.0.0\",\"name\":\"lab\",\"other\":\"\xff\xfe\"}";
        for command in ["ADD", "CHECK", "GC", "STATUS"] {
            let environment = environment(command);
            let failure = Request::parse(&environment, stdin).unwrap_err();
            assert_eq!(failure.code, Code::Decode, "{command}");
        }
        let del = environment("DEL");
        assert_eq!(Request::parse(&del, stdin).unwrap().key.network, "lab");
    }

    proptest! {
        #[test]
        fn no_input_panics(stdin: Vec<u8>, text: String, command in "(ADD|DEL|GC|[A-Z]{0,3})") {
            let environment = environment(&command);
            let _ = Request::parse(&environment, &stdin);
            let wrapped = format!("{{\"name\":\"lab\",\"cniVersion\":{text:?},\"prevResult\":{text:?}}}");
            let _ = Request::parse(&environment, wrapped.as_bytes());
        }
    }
}
