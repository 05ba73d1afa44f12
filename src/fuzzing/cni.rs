//! Targets for the input that a runtime gives to the plugin.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::cni::{self, Environment, Request, VERSIONS, annotations, result, version};
use crate::config::{self, Masquerade};

/// CNI verbs, and two words that are not verbs.
const VERBS: [&str; 8] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "add"];

fn environment(verb: &str) -> Environment {
    Environment {
        command: verb.into(),
        container: "c1".into(),
        netns: "/run/netns/pod".into(),
        ifname: "eth0".into(),
    }
}

/// A call of the plugin. The first byte chooses the verb; the rest is the configuration on stdin.
pub(super) fn stdin(bytes: &[u8]) {
    let Some((first, stdin)) = bytes.split_first() else { return };
    let environment = environment(VERBS[usize::from(*first) % VERBS.len()]);
    let request = match Request::parse(&environment, stdin) {
        Ok(request) => request,
        Err(failure) => return is_told(&failure, "1.1.0"),
    };
    assert!(VERSIONS.contains(&request.version.as_str()), "{}", request.version);
    let name = request.key.file_name();
    assert!(!name.contains('/') && name.len() < 256, "{name}");
    if let Err(failure) = request.command() {
        is_told(&failure, &request.version);
    }
    if let Ok(config) = config::parse(&request.config) {
        is_kept(&config.settings);
    }
    let _ = annotations::read(&request.config);
    if let Some(result) = &request.prev_result {
        is_answered(result, &request.version);
    }
}

/// Asserts that the error document of a failure has its code, the version and a message.
fn is_told(failure: &cni::Failure, version: &str) {
    let document: Value = serde_json::from_str(&failure.to_json(version)).expect("JSON");
    assert_eq!(document["code"], failure.code as u32);
    assert_eq!(document["cniVersion"], version);
    assert!(document["msg"].as_str().is_some_and(|text| !text.is_empty()));
}

/// A plugin object of a conflist.
pub(super) fn settings(bytes: &[u8]) {
    let Ok(object) = serde_json::from_slice::<Map<String, Value>>(bytes) else { return };
    assert!(config::unknown(&object).all(|key| !key.to_string().is_empty()));
    match config::parse(&object) {
        Ok(config) => is_kept(&config.settings),
        Err(invalid) => assert!(!invalid.to_string().is_empty()),
    }
}

/// Whether these settings can be in force. Before that, the masquerade mark may share bits with the mark field,
/// and the plugin then chooses another field.
pub(super) fn could_be_in_force(settings: &config::Settings) -> bool {
    match &settings.masquerade {
        Masquerade::Mark { mark, .. } => !settings.field.has(mark.mask),
        Masquerade::Auto | Masquerade::Off => true,
    }
}

/// Asserts that settings written as JSON and read again are equal.
fn is_kept(settings: &config::Settings) {
    if !could_be_in_force(settings) {
        return;
    }
    let words = settings.to_json();
    let again = match config::parse(&words) {
        Ok(config) => config.settings,
        Err(invalid) => panic!("symroute can't read the settings that it wrote: {invalid}"),
    };
    let again = config::Settings { automatic: settings.automatic, ..again };
    assert_eq!(&again, settings);
    assert!(again.fulfil(settings) && settings.differing(&again).is_none());
    assert!(settings.fulfilled(false).contains(&settings.fingerprint(false)));
}

/// A prevResult of another plugin, answered in each version of the protocol.
pub(super) fn prev_result(bytes: &[u8]) {
    let Ok(result) = serde_json::from_slice::<Box<RawValue>>(bytes) else { return };
    for version in VERSIONS {
        is_answered(&result, version);
    }
}

/// Asserts that the answer has the version and the addresses of the prevResult, and that a second
/// conversion changes nothing.
fn is_answered(result: &RawValue, version: &str) {
    let found = result::addresses(result);
    for (name, routers) in result::gateways(result, "eth0") {
        assert!(config::is_interface_name(&name) && !routers.is_empty(), "{name}: {routers:?}");
    }
    let Ok(answer) = version::answer(result, version) else { return };
    let answer: Box<RawValue> = match serde_json::from_str(&answer) {
        Ok(answer) => answer,
        Err(error) => panic!("the answer is no JSON: {error}: {answer}"),
    };
    let document: Value = serde_json::from_str(answer.get()).unwrap_or_default();
    // A value of another plugin may hold a number that serde_json can't represent.
    if document.is_object() {
        assert_eq!(document["cniVersion"], version, "{answer}");
    }
    assert_eq!(version::answer(&answer, version).ok().as_deref(), Some(answer.get()));
    let (Ok(found), Ok(kept)) = (found, result::addresses(&answer)) else { return };
    assert!(kept.iter().all(|ip| found.contains(ip)), "{kept:?} of {found:?}");
    // The oldest versions have room for one address of each family.
    if version::family(version).is_some_and(|family| family > version::Family::Single) {
        assert_eq!(kept, found, "{answer}");
    }
}
