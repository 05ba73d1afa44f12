//! Replaces the addresses and names of a node, consistently in one bundle.
//!
//! If two addresses share the first N bits, so do their pseudonyms. This is the construction of Crypto-PAn: a
//! keyed function of the preceding bits decides whether a bit is flipped. The key is random and is never
//! stored. Data that does not identify a node stays: loopback, documentation, link-local and multicast
//! prefixes, the private ranges themselves, masks, default routes.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use crate::model::{Mac, mac_text};

/// IPv4 prefixes that map to themselves, and whether the rest of the address stays too.
const KEPT4: [(Ipv4Addr, u8, bool); 12] = [
    (Ipv4Addr::UNSPECIFIED, 8, true),
    (Ipv4Addr::new(127, 0, 0, 0), 8, true),
    (Ipv4Addr::new(169, 254, 0, 0), 16, true),
    (Ipv4Addr::new(192, 0, 2, 0), 24, true),
    (Ipv4Addr::new(198, 51, 100, 0), 24, true),
    (Ipv4Addr::new(203, 0, 113, 0), 24, true),
    // Multicast, masks and broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3, true),
    (Ipv4Addr::new(10, 0, 0, 0), 8, false),
    (Ipv4Addr::new(100, 64, 0, 0), 10, false),
    (Ipv4Addr::new(172, 16, 0, 0), 12, false),
    (Ipv4Addr::new(192, 168, 0, 0), 16, false),
    (Ipv4Addr::new(198, 18, 0, 0), 15, false),
];
const KEPT6: [(Ipv6Addr, u8, bool); 8] = [
    // Unspecified and loopback.
    (Ipv6Addr::UNSPECIFIED, 120, true),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, true),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, false),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, false),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64, false),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, false),
    // Multicast. In the solicited-node range the last bits come from an address.
    (Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0), 104, false),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, true),
];

/// Maximum number of cuts at the end of a word that may be an address.
const CUTS: usize = 4;

/// The pseudonyms of one bundle.
#[derive(Debug)]
pub(crate) struct Pseudonyms {
    key: RandomState,
    /// Names in lower case and their pseudonyms, longest names first.
    names: Vec<(String, String)>,
    /// Words that look like addresses but are not.
    kept: Vec<String>,
}

impl Pseudonyms {
    /// Creates pseudonyms for a node with host name `host`. `kept`: words that stay unchanged.
    pub(crate) fn new(host: &str, kept: &[&str]) -> Self {
        let mut names = vec![(host.to_lowercase(), "host-1".to_owned())];
        // The host name without its domain.
        if let Some((first, _)) = host.split_once('.') {
            names.push((first.to_lowercase(), "host-1".to_owned()));
        }
        names.retain(|(name, _)| !name.is_empty() && name != "localhost");
        let kept = kept.iter().map(ToString::to_string).collect();
        Self { key: RandomState::new(), names, kept }
    }

    /// Replaces addresses and names in JSON, including its keys.
    pub(crate) fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(list) => list.iter().map(|one| self.value(one)).collect(),
            Value::Object(object) => {
                object.iter().map(|(key, one)| (self.text(key), self.value(one))).collect()
            }
            other => other.clone(),
        }
    }

    /// Replaces addresses and names in a text.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for (name, other) in &self.names {
            if let Some(changed) = replaced(&text, name, other) {
                text = changed.into();
            }
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = &*text;
        while let Some(start) = rest.find(is_of_word) {
            out.push_str(&rest[..start]);
            rest = &rest[start..];
            let word = &rest[..rest.find(|c| !is_of_word(c)).unwrap_or(rest.len())];
            rest = &rest[word.len()..];
            out.push_str(&self.word(word, prefix_length(rest)));
        }
        out + rest
    }

    /// Replaces the addresses in a word. `length`: length of the prefix, if "/N" follows the word.
    fn word(&self, word: &str, length: Option<u8>) -> String {
        let (mut out, mut rest) = (String::new(), word);
        // A word may be as long as the text, so each part is examined only once.
        loop {
            if let Some(changed) = self.known(rest, length) {
                return out + &changed;
            }
            // The word may end with a full stop, with a colon as in "192.0.2.1: no route", or with both after
            // "fd00::".
            let cuts = std::iter::successors(without_end(rest), |cut| without_end(cut)).take(CUTS);
            if let Some((cut, changed)) =
                { cuts }.find_map(|cut| Some((cut, self.known(cut, None)?)))
            {
                return out + &changed + &rest[cut.len()..];
            }
            if let Some((changed, behind)) = self.dashed(rest) {
                return out + &changed + behind;
            }
            let Some(at) = rest.find(['-', '_', '+']) else {
                return out + &self.numbers(rest, length.filter(|_| without_end(rest).is_none()));
            };
            out += &self.part(&rest[..at]);
            out += &rest[at..=at];
            rest = &rest[at + 1..];
            if rest.is_empty() {
                return out;
            }
        }
    }

    /// Replaces the addresses in a part of a word.
    fn part(&self, part: &str) -> String {
        if part.is_empty() { String::new() } else { self.word(part, None) }
    }

    /// The replacement for a word that is kept, or that is an address.
    fn known(&self, word: &str, length: Option<u8>) -> Option<String> {
        if self.kept.iter().any(|kept| kept == word) {
            return Some(word.into());
        }
        self.whole(word, length)
    }

    /// The replacement for a word that is an address.
    fn whole(&self, word: &str, length: Option<u8>) -> Option<String> {
        if let Ok(ip) = word.parse::<IpAddr>() {
            return Some(self.address(ip, length).to_string());
        }
        // Hardware addresses have colons, or dashes in host names and leases.
        for sign in [":", "-"] {
            if let Some(mac) = mac(word, sign) {
                return Some(mac_text(self.mac(mac)).replace(':', sign));
            }
        }
        // systemd names a NIC after its hardware address.
        let plain = word.strip_prefix("enx").filter(|hex| hex.len() == 12)?;
        let mac = plain.as_bytes().chunks(2).map(hex_byte).collect::<Option<Vec<u8>>>()?;
        let other = self.mac(mac.try_into().ok()?);
        Some(format!("enx{}", mac_text(other).replace(':', "")))
    }

    /// Replaces "10-0-1-2" as in "ip-10-0-1-2", a host name in clouds. Also returns the rest of the word.
    fn dashed<'a>(&self, word: &'a str) -> Option<(String, &'a str)> {
        // An IPv4 address has at most 15 characters.
        let end = word.bytes().take(16).position(|c| !c.is_ascii_digit() && c != b'-');
        let found = &word[..end.unwrap_or(word.len().min(16))];
        let found = found.trim_end_matches('-');
        let ip: Ipv4Addr = found.replace('-', ".").parse().ok()?;
        let other = self.address(ip.into(), None).to_string().replace('.', "-");
        Some((other, &word[found.len()..]))
    }

    /// Replaces IPv4 addresses among other characters of a word, for instance before a port.
    fn numbers(&self, word: &str, length: Option<u8>) -> String {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (mut out, mut rest) = (String::new(), word);
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let end = rest[start..].find(|c| !is_number(c)).map_or(rest.len(), |end| start + end);
            // Leave out the last dot in "192.0.2.1.nip.io".
            let end = start + rest[start..end].trim_end_matches('.').len();
            let (before, found, behind) = (&rest[..start], &rest[start..end], &rest[end..]);
            out.push_str(before);
            let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphabetic());
            let is_apart = !is_letter(before.chars().last()) && !is_letter(behind.chars().next());
            match found.parse::<Ipv4Addr>().ok().filter(|_| is_apart) {
                Some(ip) => {
                    let length = length.filter(|_| behind.is_empty());
                    out.push_str(&self.address(ip.into(), length).to_string());
                }
                None => out.push_str(found),
            }
            rest = behind;
        }
        out + rest
    }

    /// Replaces an address. If it is a prefix of this length, its host bits stay 0.
    fn address(&self, ip: IpAddr, length: Option<u8>) -> IpAddr {
        match ip {
            IpAddr::V4(ip) => {
                let kept = KEPT4.map(|(net, length, whole)| (net.to_bits().into(), length, whole));
                let other = self.bits(u128::from(ip.to_bits()), 32, length, &kept);
                // Only the low 32 bits are used.
                Ipv4Addr::from_bits(u32::try_from(other).unwrap_or_default()).into()
            }
            IpAddr::V6(ip) => {
                if let Some(ip) = ip.to_ipv4_mapped() {
                    return match self.address(ip.into(), None) {
                        IpAddr::V4(other) => other.to_ipv6_mapped().into(),
                        other @ IpAddr::V6(_) => other,
                    };
                }
                let kept = KEPT6.map(|(net, length, whole)| (net.to_bits(), length, whole));
                Ipv6Addr::from_bits(self.bits(ip.to_bits(), 128, length, &kept)).into()
            }
        }
    }

    fn bits(&self, ip: u128, width: u8, length: Option<u8>, kept: &[(u128, u8, bool)]) -> u128 {
        let first = |bits: u128, count: u8| {
            if count == 0 { 0 } else { bits >> (width - count) }
        };
        let mut other = ip;
        for at in 0..width {
            let before = first(ip, at);
            // Keep the bit if all bits before it match a kept prefix, or if it is in an address that is kept whole.
            let stays = kept.iter().any(|&(net, count, whole)| {
                let common = at.min(count);
                first(net, common) == first(ip, common) && (at < count || whole)
            });
            if !stays && self.key.hash_one((width, at, before)) & 1 == 1 {
                other ^= 1 << (width - 1 - at);
            }
        }
        let rest = |length: u8| u128::MAX.checked_shr(128 - u32::from(width - length)).unwrap_or(0);
        match length.filter(|length| *length <= width) {
            Some(length) if ip & rest(length) == 0 => other & !rest(length),
            _ => other,
        }
    }

    /// Replaces a hardware address with a locally administered one.
    fn mac(&self, mac: Mac) -> Mac {
        if mac == [0; 6] || mac == [0xff; 6] {
            return mac;
        }
        let hash = self.key.hash_one(mac).to_ne_bytes();
        [0x02, hash[0], hash[1], hash[2], hash[3], hash[4]]
    }
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '+')
}

/// The number N if the text begins with "/N".
fn prefix_length(rest: &str) -> Option<u8> {
    let rest = rest.strip_prefix('/')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// The word without dots at its end, or otherwise without one colon.
fn without_end(word: &str) -> Option<&str> {
    let shorter = word.trim_end_matches('.');
    let shorter = if shorter.len() < word.len() { shorter } else { shorter.strip_suffix(':')? };
    (!shorter.is_empty()).then_some(shorter)
}

fn mac(word: &str, between: &str) -> Option<Mac> {
    if word.len() != 17 {
        return None;
    }
    let bytes: Vec<u8> =
        word.split(between).map(|hex| hex_byte(hex.as_bytes())).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn hex_byte(hex: &[u8]) -> Option<u8> {
    let is_hex = hex.len() == 2 && hex.iter().all(u8::is_ascii_hexdigit);
    u8::from_str_radix(std::str::from_utf8(hex).ok().filter(|_| is_hex)?, 16).ok()
}

/// Replaces a name where it is not part of a longer word. `None` if it does not occur. `name` is in lower case.
fn replaced(text: &str, name: &str, other: &str) -> Option<String> {
    // ASCII lower case keeps the positions of all bytes.
    let lower = text.to_ascii_lowercase();
    let (mut out, mut done) = (String::new(), 0);
    for (at, _) in lower.match_indices(name) {
        let end = at + name.len();
        let is_name = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        if at < done || is_name(text[..at].chars().last()) || is_name(text[end..].chars().next()) {
            continue;
        }
        out.push_str(&text[done..at]);
        out.push_str(other);
        done = end;
    }
    (done > 0).then(|| out + &text[done..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_lab() -> Pseudonyms {
        Pseudonyms::new("Web-3.example.net", &["6.18.44.2-cloud"])
    }

    #[test]
    fn what_only_looks_like_an_address_stays() {
        let other = of_lab();
        for text in [
            "kernel 6.18.44, 6.18.44.2-cloud, symroute 0.2.0 at 12:34:56",
            "default via 0.0.0.0/0 ::/0 255.255.255.0 127.0.0.1 ::1 224.0.0.5 255.255.255.255",
            "192.0.2.1 198.51.100.7 203.0.113.9:80 2001:db8::1/64 169.254.169.254",
            "mark 0x100/0x1f00 table 47001, std::net, v1.2.3.4, 1.2.3.4.5, 300.1.1.1, 2026-11-30",
            "00:00:00:00:00:00 ff:ff:ff:ff:ff:ff deadbeef-0000-4000-8000-000000000000",
            "",
            "\u{fc}\u{df} :-_+. \u{1F980}",
        ] {
            assert_eq!(other.text(text), text);
        }
    }

    #[test]
    fn addresses_are_found_wherever_they_stand() {
        let other = of_lab();
        let stand_in = |text: &str| other.text(text);
        let (v4, v6, mac) =
            (stand_in("8.8.20.10"), stand_in("fd00:1::5"), stand_in("52:54:00:12:34:56"));
        assert_ne!((v4.as_str(), v6.as_str()), ("8.8.20.10", "fd00:1::5"));
        assert!(v6.starts_with("fd") || v6.starts_with("fc"), "{v6}");
        assert!(mac.starts_with("02:") && mac != "52:54:00:12:34:56", "{mac}");
        for (text, wanted) in [
            ("from 8.8.20.10.", format!("from {v4}.")),
            ("fd00:1::5.: fd00:1::5-fd00:1::5_x", format!("{v6}.: {v6}-{v6}_x")),
            ("8.8.20.10:80->[fd00:1::5]:443", format!("{v4}:80->[{v6}]:443")),
            ("\"8.8.20.10\",src=8.8.20.10;8.8.20.10: no", format!("\"{v4}\",src={v4};{v4}: no")),
            ("8.8.20.10-8.8.20.10", format!("{v4}-{v4}")),
            ("app.8.8.20.10.nip.io", format!("app.{v4}.nip.io")),
            ("52-54-00-12-34-56", mac.replace(':', "-")),
            ("ip-8-8-20-10.internal", format!("ip-{}.internal", v4.replace('.', "-"))),
            ("fd00:1::5%eth0 FD00:1:0::5: x", format!("{v6}%eth0 {v6}: x")),
            ("lladdr 52:54:00:12:34:56 enx525400123456", {
                format!("lladdr {mac} enx{}", mac.replace(':', ""))
            }),
        ] {
            assert_eq!(stand_in(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_word_may_be_as_long_as_a_log() {
        let other = of_lab();
        for part in ["-", "1-", "a_", "aa-", ":", ".", "-:", "1.", "10-0-0-1", "::-"] {
            let text = part.repeat(64 * 1024 / part.len());
            assert_eq!(other.text(&text).lines().count(), 1, "{part}");
        }
        let (many, v4) = ("-".repeat(1000), other.text("8.8.20.10"));
        assert_eq!(other.text(&format!("{many}8.8.20.10{many}")), format!("{many}{v4}{many}"));
        assert_ne!(other.text("fd00:1::."), "fd00:1::.", "an address that ends in colons");
    }

    #[test]
    fn names_are_replaced_where_they_stand_alone() {
        let text = "WEB-3: web-3.example.net cobweb-3 web-33 web-3.local";
        assert_eq!(of_lab().text(text), "host-1: host-1 cobweb-3 web-33 host-1.local");
        let none = Pseudonyms::new("localhost", &[]);
        assert_eq!(none.text("localhost:80"), "localhost:80");
    }

    #[test]
    fn values_and_keys_of_json_are_read_unescaped() {
        let other = of_lab();
        let value = serde_json::json!({"8.8.20.10": ["a\n8.8.20.10", 8, null]});
        let v4 = other.text("8.8.20.10");
        let wanted = serde_json::json!({v4.as_str(): [format!("a\n{v4}"), 8, null]});
        assert_eq!(other.value(&value), wanted);
    }

    proptest::proptest! {
        #[test]
        fn shared_prefixes_stay_shared(a: u32, b: u32, length in 0_u8..=32) {
            let other = of_lab();
            let map = |bits: u32, length| match other.address(Ipv4Addr::from(bits).into(), length) {
                IpAddr::V4(ip) => ip.to_bits(),
                IpAddr::V6(_) => unreachable!(),
            };
            let (x, y) = (map(a, None), map(b, None));
            assert_eq!((a ^ b).leading_zeros(), (x ^ y).leading_zeros());
            // A prefix stays a prefix, and contains the pseudonyms of its addresses.
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            assert_eq!(map(a & mask, Some(length)), x & mask);
            let is_private = |bits: u32| Ipv4Addr::from(bits).is_private();
            assert_eq!(is_private(a), is_private(x));
        }

        #[test]
        fn the_same_of_ipv6(a: u128, bit in 0_u32..128) {
            let other = of_lab();
            let map = |bits: u128| match other.address(Ipv6Addr::from(bits).into(), None) {
                IpAddr::V6(ip) => ip.to_bits(),
                IpAddr::V4(_) => unreachable!(),
            };
            let b = a ^ 1 << bit;
            assert_eq!((a ^ b).leading_zeros(), (map(a) ^ map(b)).leading_zeros());
        }

        #[test]
        fn any_text_is_read(text: String) {
            of_lab().text(&text);
        }
    }
}
