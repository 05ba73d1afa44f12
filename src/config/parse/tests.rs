//! Tests of the configuration contract.

use serde_json::json;

use super::*;
use crate::config::KEYS;

fn parsed(value: Value) -> Result<Config, Invalid> {
    let Value::Object(object) = value else { panic!("not an object") };
    parse(&object)
}

#[test]
fn nothing_set_is_the_default() {
    let config = parsed(json!({"type": "symroute", "unknown": [1, 2]})).unwrap();
    assert_eq!(config.settings, Settings::default());
    assert_eq!((config.scope, config.log), (Scope::HOST, Log::default()));
    assert_eq!(config.settings.field.mask(), 0x1f00);
}

#[test]
fn a_number_that_the_plugin_chooses_is_no_part_of_what_is_asked_for() {
    let asked = parsed(json!({"rulePriority": "auto"})).unwrap().settings;
    assert_eq!(asked.automatic.keys(), ["markMask", "rulePriority"]);
    assert_eq!(Automatic::of(&asked.automatic.keys()), asked.automatic);
    let moved = Settings { field: Field::new(0x3000).unwrap(), ..asked.clone() };
    assert!(
        moved.fulfil(&asked)
            && !moved.fulfil(&parsed(json!({"markMask": "7936"})).unwrap().settings)
    );
    let chosen = Settings { priority: 96, ..asked.clone() };
    assert_eq!(chosen.fingerprint(false), asked.fingerprint(false));
    assert_eq!(asked.with_choices_of(&chosen), chosen);
    let fixed = |priority| parsed(json!({"rulePriority": priority})).unwrap().settings;
    assert!(chosen.fulfil(&asked) && chosen.fulfil(&fixed(96)) && fixed(96).fulfil(&asked));
    assert!(!chosen.fulfil(&fixed(400)) && !fixed(400).fulfil(&fixed(96)));
    for (in_force, asked) in [(&chosen, &asked), (&chosen, &fixed(96)), (&fixed(96), &asked)] {
        assert!(in_force.fulfilled(true).contains(&asked.fingerprint(true)));
    }
    assert!(!chosen.fulfilled(true).contains(&fixed(400).fingerprint(true)));
}

/// Otherwise an ADD with other settings takes the fast path, and nothing changes on the node.
#[test]
fn every_key_of_a_node_changes_the_fingerprint() {
    let other = json!({
        "uplinks": ["eth7"],
        "gateways": {"eth1": "onlink"},
        "exclude": ["10.7.0.0/16"],
        "host": false,
        "hairpin": true,
        "masquerade": "off",
        "backend": "nftables",
        "markMask": "0xf0000",
        "rulePriority": 500,
        "tableBase": 255,
        "offload": true,
    });
    let fingerprint = |config: Value| parsed(config).unwrap().settings.fingerprint(false);
    for key in KEYS.into_iter().filter(|key| !["scope", "log"].contains(key)) {
        let changed = fingerprint(json!({key: other[key]}));
        assert_ne!(changed, fingerprint(json!({})), "{key}: a value for it belongs into this test");
    }
}

#[test]
fn every_key_is_read() {
    let config = parsed(json!({
        "uplinks": ["auto", "eth*", "!eth2"],
        "gateways": {"eth1": ["10.0.1.1", "10.0.1.2", "10.0.1.1", "fe80::1"], "int": "onlink"},
        "exclude": ["10.7.1.0/16", "::1:0:0"],
        "host": false,
        "hairpin": true,
        "masquerade": {"mark": "0x4000/0x4000", "via": "eth0"},
        "backend": "nftables",
        "markMask": "0xF0000",
        "rulePriority": 32760,
        "tableBase": 255,
        "offload": true,
        "scope": "pod",
        "log": {"level": "DEBUG", "file": "/tmp/x"}
    }))
    .unwrap();
    let settings = &config.settings;
    let not = Pattern::Not("eth2".into());
    assert_eq!(settings.uplinks, [Pattern::Auto, Pattern::Name("eth*".into()), not]);
    let routers = ["10.0.1.1", "10.0.1.2", "fe80::1"].map(|ip| ip.parse().unwrap());
    assert_eq!(settings.gateways["eth1"], Gateways::Routers(routers.to_vec()));
    assert_eq!(settings.gateways["int"], Gateways::OnLink);
    assert_eq!(settings.exclude, ["10.7.0.0/16".parse().unwrap(), "::1:0:0/128".parse().unwrap()]);
    assert_eq!((settings.host, settings.hairpin), (false, true));
    let via = Some("eth0".to_string());
    assert_eq!(settings.masquerade, Masquerade::Mark { mark: names::KUBE_MASQUERADE, via });
    assert_eq!((settings.backend, settings.field.mask()), (Backend::Nftables, 0xf_0000));
    assert_eq!((settings.priority, settings.table_base), (32760, 255));
    assert!(settings.offload);
    assert_eq!(config.scope, Scope { host: false, pod: true });
    assert_eq!(config.log.level, log::LevelFilter::Debug);
}

#[test]
fn the_scope_is_one_or_both() {
    let scope = |value: Value| parsed(json!({"scope": value})).map(|config| config.scope);
    let (host, pod) = (Scope::HOST, Scope { host: false, pod: true });
    assert_eq!(scope(json!("host")), Ok(host));
    assert_eq!(scope(json!(["host"])), Ok(host));
    assert_eq!(scope(json!(["pod"])), Ok(pod));
    let both = Scope { host: true, pod: true };
    assert_eq!(scope(json!(["host", "pod"])), Ok(both));
    assert_eq!(scope(json!(["pod", "host", "pod"])), Ok(both));
    // A pod has two more rules, which also have to come before main.
    assert!(parsed(json!({"rulePriority": 32762})).is_ok());
    let refused = parsed(json!({"rulePriority": 32761, "scope": ["host", "pod"]})).unwrap_err();
    assert_eq!(refused.key, "rulePriority");
}

#[test]
fn settings_survive_their_own_words() {
    for value in [
        json!({}),
        json!({"masquerade": "off", "hairpin": true, "gateways": {"a": ["::1:1"], "b": []}}),
        json!({"gateways": {"a": "onlink"}, "exclude": ["10.0.0.1", "2001:db8::/32"]}),
        json!({"masquerade": {"mark": "0x8"}, "uplinks": ["x?", "!y"], "markMask": "3"}),
    ] {
        let settings = parsed(value).unwrap().settings;
        let again = parse(&settings.to_json()).unwrap().settings;
        assert_eq!(Settings { automatic: settings.automatic, ..again.clone() }, settings);
        assert!(settings.fulfil(&again) && again.fulfil(&settings));
    }
    let other = Settings { hairpin: true, ..Settings::default() };
    assert_ne!(other.fingerprint(false), Settings::default().fingerprint(false));
    assert_ne!(other.fingerprint(false), other.fingerprint(true));
    assert_eq!(other.fingerprints(), [false, true].map(|ipvs| other.fingerprint(ipvs)));
}

#[test]
fn a_mask_that_is_given_leaves_out_the_masquerading_mark() {
    let with = |mask: &str| json!({"markMask": mask, "masquerade": {"mark": "0x100/0x100"}});
    assert_eq!(parsed(with("0x1f00")).unwrap_err().key, "masquerade");
    assert!(parsed(with("0x1f0000")).is_ok() && parsed(with("auto")).is_ok());
}

#[test]
fn wrong_values_are_named_with_their_key() {
    for (key, value) in [
        ("uplinks", json!("eth0")),
        ("uplinks", json!([])),
        ("uplinks", json!(["!eth0"])),
        ("uplinks", json!([7])),
        ("uplinks", json!(["an-interface-name"])),
        ("uplinks", json!(["a b"])),
        ("uplinks", json!([""])),
        ("gateways", json!([])),
        ("gateways.eth1", json!({"eth1": "10.0.0.1"})),
        ("gateways.eth1", json!({"eth1": ["10.0.0.256"]})),
        ("gateways.eth1", json!({"eth1": ["0.0.0.0"]})),
        ("gateways.eth1", json!({"eth1": ["onlink"]})),
        ("exclude", json!("10.0.0.0/8")),
        ("exclude", json!(["10.0.0.0/33"])),
        ("host", json!("true")),
        ("hairpin", json!(1)),
        ("masquerade", json!(true)),
        ("masquerade", json!({"mark": "0x4001/0x4000"})),
        ("masquerade", json!({"mark": 16384})),
        ("masquerade", json!({"via": ""})),
        ("masquerade", json!({"by": "eth0"})),
        ("backend", json!("nft")),
        ("backend", json!(null)),
        ("markMask", json!("0x100")),
        ("markMask", json!("0x0")),
        ("markMask", json!("0x100000000")),
        ("markMask", json!("0x+f")),
        ("markMask", json!(7936)),
        ("rulePriority", json!(0)),
        ("rulePriority", json!(32763)),
        ("rulePriority", json!(-1)),
        ("rulePriority", json!("400")),
        ("offload", json!("yes")),
        ("tableBase", json!(254)),
        ("tableBase", json!(4_294_967_295_u64)),
        ("scope", json!("node")),
        ("scope", json!([])),
        ("scope", json!(["host", "node"])),
        ("scope", json!({"host": true})),
        ("scope", json!(null)),
        ("log", json!("debug")),
        ("log.level", json!({"level": "loud"})),
        ("log.file", json!({"file": "relative"})),
    ] {
        let top = key.split('.').next().unwrap();
        let Err(invalid) = parsed(json!({ top: value.clone() })) else {
            panic!("{top}: {value} was taken");
        };
        assert_eq!(invalid.key, key, "{value}");
        assert!(!invalid.hint.is_empty());
        let shown = invalid.to_string();
        assert!(shown.starts_with(&format!("\"{key}\": ")), "{shown}");
    }
}
