//! Parses a plugin object into [`Config`]. Unknown keys are ignored. A wrong value is an error that names
//! the key, the value and the allowed values.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use super::{
    AUTO, Automatic, Backend, Config, Gateways, Invalid, Log, MARK_MASK, Masquerade, OFFLOAD,
    ON_LINK, Pattern, RULE_PRIORITY, Scope, Settings,
};
use crate::model::{Field, MarkMatch, Variant};
use crate::names;

/// Maximum length of an interface name in bytes: `IFNAMSIZ` without the terminating zero.
const NAME_MAX: usize = 15;
/// Allowed rule priorities P: P to P+3 have to lie between the rules of `local` (0) and `main` (32766).
const PRIORITIES: std::ops::RangeInclusive<u64> = 1..=32762;
/// Allowed rule priorities P in a pod, which also has P+4 and P+5.
const PRIORITIES_IN_PODS: std::ops::RangeInclusive<u64> = 1..=32760;
/// The tables `default`, `main` and `local` have the numbers 253 to 255.
const LAST_SYSTEM_TABLE: u64 = 255;

/// Parses symroute's own keys of the plugin object. Error: the first key with a wrong value.
pub(crate) fn parse(object: &Map<String, Value>) -> Result<Config, Invalid> {
    let default = Settings::default();
    let is_auto = |key: &str| object.get(key).is_some_and(|value| value == AUTO);
    let mark = is_auto(MARK_MASK) || !object.contains_key(MARK_MASK);
    let automatic = Automatic { mark, priority: is_auto(RULE_PRIORITY) };
    let field = if mark { default.field } else { field(object)? };
    let scope = scope(object)?;
    let priorities = if scope.pod { &PRIORITIES_IN_PODS } else { &PRIORITIES };
    let settings = Settings {
        uplinks: uplinks(object)?,
        gateways: gateways(object)?,
        exclude: exclude(object)?,
        host: boolean(object, "host", default.host)?,
        hairpin: boolean(object, "hairpin", default.hairpin)?,
        masquerade: masquerade(object, (!mark).then_some(field))?,
        backend: backend(object)?,
        field,
        priority: if automatic.priority {
            default.priority
        } else {
            number(object, RULE_PRIORITY, default.priority, priorities).map_err(or_auto)?
        },
        table_base: number(
            object,
            "tableBase",
            default.table_base,
            &(LAST_SYSTEM_TABLE..=u64::from(u32::MAX - field.max_id())),
        )?,
        offload: boolean(object, OFFLOAD, default.offload)?,
        automatic,
    };
    Ok(Config { settings, scope, log: log(object)? })
}

fn boolean(object: &Map<String, Value>, key: &str, default: bool) -> Result<bool, Invalid> {
    match object.get(key) {
        None => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(Invalid::new(key, other, "allowed: true, false")),
    }
}

/// Adds `"auto"` to the allowed values of an error.
fn or_auto(invalid: Invalid) -> Invalid {
    Invalid { hint: format!("{}, or \"{AUTO}\"", invalid.hint), ..invalid }
}

fn number(
    object: &Map<String, Value>,
    key: &str,
    default: u32,
    allowed: &std::ops::RangeInclusive<u64>,
) -> Result<u32, Invalid> {
    let Some(value) = object.get(key) else { return Ok(default) };
    value.as_u64().filter(|n| allowed.contains(n)).and_then(|n| u32::try_from(n).ok()).ok_or_else(
        || {
            let hint = format!("allowed: a number from {} to {}", allowed.start(), allowed.end());
            Invalid::new(key, value, hint)
        },
    )
}

fn field(object: &Map<String, Value>) -> Result<Field, Invalid> {
    let value = &object[MARK_MASK];
    value.as_str().and_then(hex).and_then(Field::new).ok_or_else(|| {
        Invalid::new(
            MARK_MASK,
            value,
            "allowed: a mask of at least 2 bits as text, like \"0x1f00\", or \"auto\"",
        )
    })
}

/// Parses a number of 32 bits, hexadecimal with `0x` or decimal.
fn hex(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // from_str_radix accepts a sign, which a mark must not have.
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
        None if !text.starts_with('+') => text.parse().ok(),
        _ => None,
    }
}

/// Whether the kernel accepts an interface name (`dev_valid_name`, net/core/dev.c).
pub(crate) fn is_interface_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

fn uplinks(object: &Map<String, Value>) -> Result<Vec<Pattern>, Invalid> {
    const HINT: &str = "allowed: a list of \"auto\", names, globs (\"eth*\") and \"!name\" to \
                        leave one out, with at least one that is no \"!name\"";
    let Some(value) = object.get("uplinks") else { return Ok(Settings::default().uplinks) };
    let wrong = |at: &Value| Invalid::new("uplinks", at, HINT);
    let list = value.as_array().ok_or_else(|| wrong(value))?;
    let mut patterns = Vec::with_capacity(list.len());
    for item in list {
        let text = item.as_str().ok_or_else(|| wrong(item))?;
        let (not, name) = text.strip_prefix('!').map_or((false, text), |name| (true, name));
        if !is_interface_name(name) {
            return Err(wrong(item));
        }
        patterns.push(match (not, name) {
            (false, "auto") => Pattern::Auto,
            (false, name) => Pattern::Name(name.into()),
            (true, name) => Pattern::Not(name.into()),
        });
    }
    if patterns.iter().all(|p| matches!(p, Pattern::Not(_))) {
        return Err(wrong(value));
    }
    Ok(patterns)
}

fn gateways(object: &Map<String, Value>) -> Result<BTreeMap<String, Gateways>, Invalid> {
    const HINT: &str = "allowed: an object from uplink names to lists of addresses, like \
                        {\"eth1\": [\"10.0.1.1\", \"fe80::1\"]}, or to \"onlink\" where \
                        there is no router";
    let Some(value) = object.get("gateways") else { return Ok(BTreeMap::new()) };
    let all = value.as_object().ok_or_else(|| Invalid::new("gateways", value, HINT))?;
    let mut found = BTreeMap::new();
    for (name, list) in all {
        let key = format!("gateways.{name}");
        if !is_interface_name(name) {
            return Err(Invalid::new(key, list, HINT));
        }
        if list == ON_LINK {
            found.insert(name.clone(), Gateways::OnLink);
            continue;
        }
        let mut addresses: Vec<IpAddr> = Vec::new();
        for item in list.as_array().ok_or_else(|| Invalid::new(&key, list, HINT))? {
            let ip: IpAddr = item
                .as_str()
                .and_then(|text| text.parse().ok())
                .filter(usable_gateway)
                .ok_or_else(|| Invalid::new(&key, item, HINT))?;
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        found.insert(name.clone(), Gateways::Routers(addresses));
    }
    Ok(found)
}

fn exclude(object: &Map<String, Value>) -> Result<Vec<IpNetwork>, Invalid> {
    const HINT: &str = "allowed: a list of addresses and prefixes, like [\"203.0.113.0/24\"]";
    let Some(value) = object.get("exclude") else { return Ok(Vec::new()) };
    let wrong = |at: &Value| Invalid::new("exclude", at, HINT);
    let mut found = Vec::new();
    for item in value.as_array().ok_or_else(|| wrong(value))? {
        let net: Option<IpNetwork> = item.as_str().and_then(|text| text.parse().ok());
        let net = net.ok_or_else(|| wrong(item))?;
        // Clears the host bits, so that an address with a prefix becomes its network.
        found.extend(IpNetwork::new(net.network(), net.prefix()));
    }
    Ok(found)
}

fn usable_gateway(ip: &IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast()
}

fn masquerade(object: &Map<String, Value>, field: Option<Field>) -> Result<Masquerade, Invalid> {
    const HINT: &str =
        "allowed: \"auto\", \"off\" or {\"mark\": \"0x4000/0x4000\", \"via\": \"eth0\"}";
    let key = "masquerade";
    let wrong = |at: &Value| Invalid::new(key, at, HINT);
    match object.get(key) {
        None => Ok(Masquerade::Auto),
        Some(Value::String(text)) if text == "auto" => Ok(Masquerade::Auto),
        Some(Value::String(text)) if text == "off" => Ok(Masquerade::Off),
        Some(whole @ Value::Object(object)) => {
            let mark = match object.get("mark") {
                None => names::KUBE_MASQUERADE,
                Some(mark) => {
                    let text = mark.as_str().ok_or_else(|| wrong(whole))?;
                    mark_and_mask(text).ok_or_else(|| wrong(whole))?
                }
            };
            let via = match object.get("via") {
                None => None,
                Some(Value::String(name)) if is_interface_name(name) => Some(name.clone()),
                Some(_) => return Err(wrong(whole)),
            };
            if object.keys().any(|key| key != "mark" && key != "via") {
                return Err(wrong(whole));
            }
            // The plugin chooses an automatic mask that leaves out this mark, so only a given mask can clash.
            if let Some(field) = field.filter(|field| field.has(mark.mask)) {
                let hint = format!("\"mark\" must lie outside of markMask {field}");
                return Err(Invalid::new(key, whole, hint));
            }
            Ok(Masquerade::Mark { mark, via })
        }
        Some(other) => Err(wrong(other)),
    }
}

/// Parses `value/mask`, where the value has no bits outside the mask. Without `/mask`, the value is the mask.
fn mark_and_mask(text: &str) -> Option<MarkMatch> {
    let (value, mask) = text.split_once('/').unwrap_or((text, text));
    let (value, mask) = (hex(value)?, hex(mask)?);
    (mask != 0 && value & !mask == 0).then_some(MarkMatch { value, mask })
}

fn backend(object: &Map<String, Value>) -> Result<Backend, Invalid> {
    let Some(value) = object.get("backend") else { return Ok(Backend::Auto) };
    match value.as_str() {
        Some("auto") => Ok(Backend::Auto),
        Some("nftables") => Ok(Backend::Nftables),
        Some("iptables") => Ok(Backend::Iptables),
        Some("iptables-nft") => Ok(Backend::Variant(Variant::Nft)),
        Some("iptables-legacy") => Ok(Backend::Variant(Variant::Legacy)),
        _ => {
            let hint = "allowed: \"auto\", \"nftables\", \"iptables\", \"iptables-nft\", \
                        \"iptables-legacy\"";
            Err(Invalid::new("backend", value, hint))
        }
    }
}

fn scope(object: &Map<String, Value>) -> Result<Scope, Invalid> {
    const HINT: &str = "allowed: \"host\", \"pod\", or both: [\"host\", \"pod\"]";
    let Some(value) = object.get("scope") else { return Ok(Scope::HOST) };
    let words = match value {
        Value::Array(words) => words.as_slice(),
        word => std::slice::from_ref(word),
    };
    let mut scope = Scope { host: false, pod: false };
    for word in words {
        match word.as_str() {
            Some("host") => scope.host = true,
            Some("pod") => scope.pod = true,
            _ => return Err(Invalid::new("scope", value, HINT)),
        }
    }
    if words.is_empty() {
        return Err(Invalid::new("scope", value, HINT));
    }
    Ok(scope)
}

fn log(object: &Map<String, Value>) -> Result<Log, Invalid> {
    let mut log = Log::default();
    let object = match object.get("log") {
        None => return Ok(log),
        Some(Value::Object(object)) => object,
        Some(other) => {
            return Err(Invalid::new(
                "log",
                other,
                "allowed: an object like {\"level\": \"warn\", \"file\": \"/var/log/symroute.log\"}",
            ));
        }
    };
    if let Some(level) = object.get("level") {
        log.level = level.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
            let hint = "allowed: \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\"";
            Invalid::new("log.level", level, hint)
        })?;
    }
    if let Some(file) = object.get("file") {
        log.file = file
            .as_str()
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .ok_or_else(|| Invalid::new("log.file", file, "allowed: an absolute path"))?;
    }
    Ok(log)
}

#[cfg(test)]
mod tests;
