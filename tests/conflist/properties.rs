//! Property tests with conflists of any shape and layout.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use symroute::conflist::{Network, insert, same_meaning, without};

const FILE: &str = "10-any.conflist";

/// Writes a JSON value with the next text of `blanks` between its tokens.
fn render(value: &Value, blanks: &mut impl Iterator<Item = String>, out: &mut String) {
    let mut blank = |out: &mut String| out.push_str(&blanks.next().unwrap_or_default());
    match value {
        Value::Array(list) => {
            out.push('[');
            blank(out);
            for (n, item) in list.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                out.push_str(&blanks.next().unwrap_or_default());
                render(item, blanks, out);
                out.push_str(&blanks.next().unwrap_or_default());
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            blank(out);
            for (n, (key, item)) in map.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                out.push_str(&blanks.next().unwrap_or_default());
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(&blanks.next().unwrap_or_default());
                out.push(':');
                out.push_str(&blanks.next().unwrap_or_default());
                render(item, blanks, out);
                out.push_str(&blanks.next().unwrap_or_default());
            }
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~é\\[\\]{}\",\\\\]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z\"\\\\]{1,6}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn any_object(kind: &'static str) -> impl Strategy<Value = Value> {
    let pairs = prop::collection::vec(("[a-z]{1,6}", any_value()), 0..4);
    (pairs, 0..4_usize).prop_map(move |(pairs, at)| {
        let mut object: Map<String, Value> = pairs.into_iter().collect();
        let at = at.min(object.len());
        object.shift_insert(at, "type".into(), json!(kind));
        Value::Object(object)
    })
}

/// The text of a conflist without our entry.
fn any_list() -> impl Strategy<Value = String> {
    let plugins = prop::collection::vec(any_object("other"), 1..5);
    let more = prop::collection::vec(("[A-Z]{1,4}", any_value()), 0..3);
    let blanks = prop::collection::vec("[ \t\n\r]{0,4}", 1..9);
    (plugins, more, blanks, any::<bool>()).prop_map(|(plugins, more, blanks, first)| {
        let mut list: Map<String, Value> = more.into_iter().collect();
        list.insert("name".into(), json!("n"));
        let at = if first { 0 } else { list.len() };
        list.shift_insert(at, "plugins".into(), Value::from(plugins));
        let mut text = blanks[0].clone();
        render(&Value::Object(list), &mut blanks.iter().cycle().cloned(), &mut text);
        text + &blanks[0]
    })
}

fn any_entry() -> impl Strategy<Value = Map<String, Value>> {
    any_object("symroute").prop_map(|value| value.as_object().cloned().unwrap_or_default())
}

proptest! {
    #[test]
    fn adding_and_removing_is_nothing(text in any_list(), entry in any_entry()) {
        let network = Network::parse(FILE, text.as_bytes()).expect("a list");
        let added = insert(&network, &entry);
        let with_us = Network::parse(FILE, added.as_bytes()).expect("still a list");
        let last = network.plugins.len();
        prop_assert_eq!(with_us.ours(), vec![last]);
        prop_assert_eq!(with_us.settings(last), entry);
        for (one, other) in network.plugins.iter().zip(&with_us.plugins) {
            prop_assert_eq!(&text[one.place.clone()], &added[other.place.clone()]);
        }
        let mut wanted: Value = serde_json::from_str(&text).expect("JSON");
        wanted["plugins"].as_array_mut().expect("a list").push(with_us.settings(last).into());
        let now: Value = serde_json::from_str(&added).expect("JSON");
        prop_assert_eq!(now, wanted);
        prop_assert!(!same_meaning(&text, &added));
        prop_assert_eq!(without(FILE, &added), text);
    }

    /// A list with three entries of ours, one of them first. The other plugins stay in their order.
    #[test]
    fn all_of_ours_go(text in any_list(), entry in any_entry()) {
        let network = Network::parse(FILE, text.as_bytes()).expect("a list");
        let first = network.plugins[0].place.start;
        let ours = Value::Object(entry.clone()).to_string();
        let added = insert(&network, &entry);
        let added = format!("{}{ours} , {ours},{}", &added[..first], &added[first..]);
        prop_assert_eq!(Network::parse(FILE, added.as_bytes()).expect("a list").ours().len(), 3);
        prop_assert_eq!(without(FILE, &added), text);
    }

    #[test]
    fn blanks_have_no_meaning(value in any_value(), one in "[ \t\n\r]{0,3}", other in "[ \t\n\r]{0,3}") {
        let (mut a, mut b) = (String::new(), String::new());
        render(&value, &mut std::iter::repeat(one), &mut a);
        render(&value, &mut std::iter::repeat(other), &mut b);
        prop_assert!(same_meaning(&a, &b));
        b.push('0');
        prop_assert!(!same_meaning(&a, &b));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Network::parse(FILE, &bytes);
        let _ = Network::parse("10-any.conf", &bytes);
    }
}
