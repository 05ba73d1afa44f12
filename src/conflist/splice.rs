//! Adds an entry to the text of a conflist or removes it, in the file's own layout. Every other byte
//! stays.

use serde_json::{Map, Value};

use super::Network;

/// The text with an entry behind the last plugin. [`without`] is the exact inverse.
#[must_use]
pub fn insert(network: &Network<'_>, entry: &Map<String, Value>) -> String {
    let text = network.text;
    let Some(last) = network.plugins.last() else { return text.to_string() };
    let separator = separator(network);
    let entry = layout(network, &text[last.place.clone()], last.place.start, entry);
    format!("{}{separator}{entry}{}", &text[..last.place.end], &text[last.place.end..])
}

/// The text with `entry` instead of the plugin at index `at`.
pub(super) fn replace(network: &Network<'_>, at: usize, entry: &Map<String, Value>) -> String {
    let Some(plugin) = network.plugins.get(at) else { return network.text.to_string() };
    let place = plugin.place.clone();
    let entry = layout(network, &network.text[place.clone()], place.start, entry);
    format!("{}{entry}{}", &network.text[..place.start], &network.text[place.end..])
}

/// The text without the plugin at index `at`. The only plugin of a list stays.
pub(super) fn remove(network: &Network<'_>, at: usize) -> String {
    let places: Vec<_> = network.plugins.iter().map(|plugin| plugin.place.clone()).collect();
    let gap = match (at, places.len()) {
        (0, 0 | 1) => return network.text.to_string(),
        (0, _) => places[0].start..places[1].start,
        _ => places[at - 1].end..places[at].end,
    };
    format!("{}{}", &network.text[..gap.start], &network.text[gap.end..])
}

/// The text of a list without our entries. A list that has only our entries stays as it is.
#[must_use]
pub fn without(file: &str, text: &str) -> String {
    let mut text = text.to_string();
    while let Ok(network) = Network::parse(file, text.as_bytes()) {
        let Some(last) = network.ours().pop().filter(|_| !network.is_ours_alone()) else { break };
        text = remove(&network, last);
    }
    text
}

/// Makes a list of a file that is a single plugin, like libcni's `ConfListFromConf`.
pub(super) fn list_of(network: &Network<'_>) -> String {
    let version = network.version.iter().map(|v| format!("  \"cniVersion\": {},\n", quoted(v)));
    let version: String = version.collect();
    let name = quoted(&network.name);
    let plugin = network.text.trim().replace('\n', "\n    ");
    format!("{{\n{version}  \"name\": {name},\n  \"plugins\": [\n    {plugin}\n  ]\n}}\n")
}

/// Whether two JSON texts differ only in white space between tokens.
#[must_use]
pub fn same_meaning(one: &str, other: &str) -> bool {
    tokens(one).eq(tokens(other))
}

fn tokens(text: &str) -> impl Iterator<Item = char> {
    let (mut quoted, mut escaped) = (false, false);
    text.chars().filter(move |&c| {
        let was_quoted = quoted;
        if !escaped && c == '"' {
            quoted = !quoted;
        }
        escaped = quoted && !escaped && c == '\\';
        was_quoted || !matches!(c, ' ' | '\t' | '\r' | '\n')
    })
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The text between the last plugin and ours: that between the last two plugins, or a comma and the white
/// space before the only plugin.
fn separator(network: &Network<'_>) -> String {
    let (text, plugins) = (network.text, &network.plugins);
    if let [.., one, two] = plugins.as_slice() {
        return text[one.place.end..two.place.start].to_string();
    }
    let start = plugins.first().map_or(0, |plugin| plugin.place.start);
    let lead = &text[text[..start].trim_end().len()..start];
    match (lead.contains('\n'), is_airy(text)) {
        (true, _) => format!(",{lead}"),
        (false, true) => ", ".into(),
        (false, false) => ",".into(),
    }
}

/// Whether the text has a space after colons.
fn is_airy(text: &str) -> bool {
    text.contains("\": ") || text.contains("\" : ")
}

/// Formats an entry in the layout of the plugin object `like`, which begins at byte `start`.
fn layout(network: &Network<'_>, like: &str, start: usize, entry: &Map<String, Value>) -> String {
    if !like.contains('\n') {
        let (colon, comma) = if is_airy(network.text) { (": ", ", ") } else { (":", ",") };
        return one_line_object(entry, colon, comma);
    }
    let newline = if network.text.contains("\r\n") { "\r\n" } else { "\n" };
    let row = &network.text[network.text[..start].rfind('\n').map_or(0, |at| at + 1)..start];
    let outer: String = row.chars().take_while(|c| matches!(c, ' ' | '\t')).collect();
    let inner = like.lines().nth(1).map_or("", |l| &l[..l.len() - l.trim_start().len()]);
    let step = inner.strip_prefix(outer.as_str()).filter(|s| !s.is_empty()).unwrap_or("  ");
    let pretty = serde_json::to_string_pretty(entry).unwrap_or_default();
    let lines = pretty.lines().map(|line| {
        let rest = line.trim_start_matches(' ');
        format!("{}{rest}", step.repeat((line.len() - rest.len()) / 2))
    });
    lines.collect::<Vec<_>>().join(&format!("{newline}{outer}"))
}

fn one_line(value: &Value, colon: &str, comma: &str) -> String {
    match value {
        Value::Array(list) => {
            let items = list.iter().map(|item| one_line(item, colon, comma));
            format!("[{}]", items.collect::<Vec<_>>().join(comma))
        }
        Value::Object(object) => one_line_object(object, colon, comma),
        other => other.to_string(),
    }
}

fn one_line_object(object: &Map<String, Value>, colon: &str, comma: &str) -> String {
    let pairs = object
        .iter()
        .map(|(key, value)| format!("{}{colon}{}", quoted(key), one_line(value, colon, comma)));
    format!("{{{}}}", pairs.collect::<Vec<_>>().join(comma))
}
