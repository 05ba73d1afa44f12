//! Parses the output of `iptables-save` and `ip6tables-save` (iptables-save(8), iptables-extensions(8)).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Base, Chain, Condition, Hook, Match, Mix, Part, Rule, Table, Target};
use crate::model::{Family, MarkMatch};
use crate::names;

/// The tables in `text`. `program`, for example "iptables", becomes the first word of their names.
pub(crate) fn parse(program: &str, family: Family, text: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            let name = format!("{program} {name}");
            tables.push(Table { name, family: Some(family), chains: [].into() });
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split(' ');
            let name = words.next().unwrap_or(declared);
            let base = base(table.name.rsplit(' ').next().unwrap_or_default(), name);
            let drops = words.next() == Some("DROP");
            let base = base.map(|base| Base { drops, ..base });
            table.chains.insert(name.into(), Chain { base, rules: Vec::new() });
        } else if line.starts_with("-A ")
            && let Some((chain, rule)) = rule(&words(line))
        {
            table.chains.entry(chain).or_default().rules.push(rule);
        }
    }
    tables
}

/// The hook and priority of a built-in chain (`NF_IP_PRI_*` of `linux/netfilter_ipv4.h`).
fn base(table: &str, chain: &str) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    let priority = match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Postrouting | Hook::Input) => 100,
        ("nat", _) => -100,
        ("security", _) => 50,
        _ => 0,
    };
    let reroutes = (table, hook) == ("mangle", Hook::Output);
    Some(Base { hook, priority, is_nat: table == "nat", drops: false, reroutes })
}

/// The words of a line. Quotes hold a word together, and a backslash quotes the next character.
pub(crate) fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    let mut signs = line.chars();
    while let Some(sign) = signs.next() {
        match sign {
            '\\' => word.extend(signs.next()),
            '"' => (quoted, any) = (!quoted, true),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            other => word.push(other),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

/// The parsed parts of one rule.
#[derive(Default)]
struct Parts {
    conditions: Vec<Condition>,
    target: Option<Target>,
    /// The module of the last `-m`; `aim` is the target of `-j`.
    module: String,
    aim: String,
    inverted: bool,
    is_of_iif: bool,
    masks: [Option<u32>; 2],
}

fn rule(words: &[String]) -> Option<(String, Rule)> {
    let mut words = words.iter().map(String::as_str);
    let (Some("-A"), Some(chain)) = (words.next(), words.next()) else { return None };
    let mut parts = Parts::default();
    while let Some(word) = words.next() {
        parts.take(word, &mut words);
    }
    if parts.is_of_iif {
        for condition in &mut parts.conditions {
            if let Match::ToNode { is_of_iif } = &mut condition.is {
                *is_of_iif = true;
            }
        }
    }
    let target = Part::Do(parts.target());
    let rule = parts.conditions.into_iter().map(Part::If).chain([target]).collect();
    Some((chain.into(), Rule(rule)))
}

impl Parts {
    fn add_match(&mut self, is: Match) {
        self.conditions.push(Condition { is, inverted: std::mem::take(&mut self.inverted) });
    }

    /// Adds a match, or an unknown match if `is` is `None`.
    fn add_match_or_unknown(&mut self, is: Option<Match>, option: &str, value: &str) {
        self.add_match(is.unwrap_or_else(|| Match::Unknown(format!("{option} {value}"))));
    }

    fn take<'a>(&mut self, word: &'a str, rest: &mut impl Iterator<Item = &'a str>) {
        // Options without a value.
        match word {
            "!" => return self.inverted = true,
            "--limit-iface-in" => return self.is_of_iif = true,
            "--random" | "--random-fully" | "--persistent" | "--validmark" | "--rsource"
            | "--rdest" | "--reap" | "--rttl" => return,
            // `--set` of "recent" records the packet and matches every packet.
            "--set" if self.module == "recent" => return,
            "--rcheck" | "--update" | "--remove" | "--syn" | "--loose" | "--invert" => {
                let module = self.module.clone();
                return self.add_match_or_unknown(None, &module, word);
            }
            // Another value of an option that is not understood.
            value if !value.starts_with('-') => return,
            "--notrack" => return self.target = Some(Target::Untrack),
            "--restore-mark" | "--save-mark" => return self.aim = format!("{} {word}", self.aim),
            _ => {}
        }
        let value = rest.next().unwrap_or_default();
        match word {
            "-m" => self.module = value.into(),
            "-j" => self.aim = value.into(),
            "-g" => self.target = Some(Target::Goto(value.into())),
            "-i" => self.add_match(Match::In(value.into())),
            "-o" => self.add_match(Match::Out(value.into())),
            "-s" => self.add_match_or_unknown(net(value).map(Match::From), word, value),
            "-d" => self.add_match_or_unknown(net(value).map(Match::To), word, value),
            "-p" => self.add_match_or_unknown(protocol(value).map(Match::Protocol), word, value),
            "--dport" => self.add_match_or_unknown(ports(value), word, value),
            "--dports" => self.add_match_or_unknown(several(value), word, value),
            // These modify another option of "recent".
            "--name" | "--mask" | "--seconds" | "--hitcount" if self.module == "recent" => {}
            "--dst-type" if value == "LOCAL" => self.add_match(Match::ToNode { is_of_iif: false }),
            "--src-type" if value == "LOCAL" => self.add_match(Match::FromNode),
            "--mark" if self.module == "mark" => {
                self.add_match_or_unknown(mark(value).map(Match::Mark), word, value);
            }
            "--mark" if self.module == "connmark" => {
                self.add_match_or_unknown(mark(value).map(Match::Connection), word, value);
            }
            "--ctstate" | "--state" => {
                let has = |wanted| value.split(',').any(|state| state == wanted);
                self.add_match(Match::State { new: has("NEW"), established: has("ESTABLISHED") });
            }
            "--mode" => self.add_match(Match::Chance),
            "--comment" | "--probability" | "--every" | "--packet" => {}
            "--to-destination" => self.target = dnat(value),
            "--to-source" => self.target = value.parse().ok().map(Target::Snat),
            "--to-ports" if self.aim == "MASQUERADE" => {}
            "--set-xmark" | "--set-mark" | "--or-mark" | "--and-mark" | "--xor-mark" => {
                self.set(word, value);
            }
            "--mask" => self.masks = [number(value); 2],
            "--nfmask" => self.masks[0] = number(value),
            "--ctmask" => self.masks[1] = number(value),
            _ if self.aim.is_empty() => self.add_match_or_unknown(None, word, value),
            _ => {}
        }
    }

    fn set(&mut self, word: &str, value: &str) {
        let Some(MarkMatch { value, mask }) = mark(value) else { return };
        let mix = match word {
            "--and-mark" => Mix { keep: value, take: 0, xor: 0 },
            "--xor-mark" => Mix { keep: u32::MAX, take: 0, xor: value },
            "--or-mark" => Mix { keep: !value, take: 0, xor: value },
            // `--set-mark` also clears the bits of the value (`mark_tg`, net/netfilter/xt_mark.c).
            "--set-mark" => Mix { keep: !(mask | value), take: 0, xor: value },
            _ => Mix { keep: !mask, take: 0, xor: value },
        };
        let is_packets = self.aim == "MARK";
        self.target = Some(if is_packets { Target::Mark(mix) } else { Target::Connection(mix) });
    }

    fn target(&mut self) -> Target {
        if let Some(target) = self.target.take() {
            return target;
        }
        let [packets, connections] = self.masks.map(|mask| mask.unwrap_or(u32::MAX));
        let mix = |own: u32, other: u32| Mix { keep: !own, take: other, xor: 0 };
        match self.aim.as_str() {
            "" | "LOG" | "NFLOG" | "TRACE" | "TCPMSS" | "CT" | "SET" => Target::Nothing,
            "NOTRACK" => Target::Untrack,
            "ACCEPT" => Target::Accept,
            "DROP" | "REJECT" => Target::Drop,
            "RETURN" => Target::Return,
            "MASQUERADE" => Target::Masquerade,
            "CONNMARK --restore-mark" => Target::Mark(mix(packets, connections)),
            "CONNMARK --save-mark" => Target::Connection(mix(connections, packets)),
            "DNAT" | "SNAT" | "MARK" | "CONNMARK" | "REDIRECT" | "TPROXY" | "NETMAP" => {
                Target::Unknown(format!("-j {}", self.aim))
            }
            ours if ours.starts_with(names::CHAIN_PREFIX) => Target::Symroute,
            chain => Target::Jump(chain.into()),
        }
    }
}

fn net(text: &str) -> Option<IpNetwork> {
    text.parse().ok()
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Parses `0x80/0x80`, or `0x80` for the whole mark.
fn mark(text: &str) -> Option<MarkMatch> {
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    Some(MarkMatch { value: number(value)?, mask: number(mask)? })
}

/// Parses `30000` or `30000:32767`.
fn ports(text: &str) -> Option<Match> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(Match::Port(first.parse().ok()?, last.parse().ok()?))
}

/// Parses `80,443,8000:8100`.
fn several(text: &str) -> Option<Match> {
    let range = |text: &str| match ports(text)? {
        Match::Port(first, last) => Some((first, last)),
        _ => None,
    };
    text.split(',').map(range).collect::<Option<_>>().map(Match::Ports)
}

/// Parses the name or number of a protocol to `IPPROTO_*`.
pub(crate) fn protocol(text: &str) -> Option<u8> {
    match text {
        "icmp" => Some(1),
        "tcp" => Some(6),
        "udp" => Some(17),
        "icmpv6" | "ipv6-icmp" => Some(58),
        "sctp" => Some(132),
        number => number.parse().ok(),
    }
}

/// Parses `10.244.1.5:8080`, `[2001:db8::5]:8080`, or only an address. `None` for a range.
fn dnat(text: &str) -> Option<Target> {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Some(Target::Dnat { to: address.ip(), port: Some(address.port()) });
    }
    let to: IpAddr = text.trim_matches(['[', ']']).parse().ok()?;
    Some(Target::Dnat { to, port: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        match rule(&words(&format!("-A C {text}"))).unwrap().1.0.pop() {
            Some(Part::Do(target)) => target,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rules_of_kube_proxy_and_of_aws() {
        let text = "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n\
                    -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
                    -A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment \"kube-system/dns: cluster \\\"IP\\\"\" \
                    -m udp --dport 53 -j KUBE-SVC-A\n\
                    -A KUBE-SERVICES ! -s 10.244.0.0/16 -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
                    COMMIT\n*mangle\n:PREROUTING ACCEPT [0:0]\n\
                    -A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK \
                    --set-xmark 0x80/0x80\nCOMMIT\n";
        let tables = parse("iptables", Family::V4, text);
        assert_eq!(tables.len(), 2);
        assert_eq!(tables[0].name, "iptables nat");
        let base = tables[0].chains["PREROUTING"].base.unwrap();
        assert!(base.is_nat && base.priority == -100 && base.hook == Hook::Prerouting);
        let security = super::base("security", "INPUT").map(|base| base.priority);
        assert_eq!(security, Some(50));
        let services = &tables[0].chains["KUBE-SERVICES"].rules;
        let is = |is: Match| Part::If(Condition { is, inverted: false });
        assert_eq!(
            services[0].0[..3],
            [
                is(Match::To("10.96.0.10/32".parse().unwrap())),
                is(Match::Protocol(17)),
                is(Match::Port(53, 53)),
            ]
        );
        assert!(matches!(&services[1].0[0], Part::If(condition) if condition.inverted));
        assert_eq!(services[1].0.last(), Some(&Part::Do(Target::Jump("KUBE-NODEPORTS".into()))));
        let aws = &tables[1].chains["PREROUTING"].rules[0];
        assert!(aws.0.contains(&is(Match::ToNode { is_of_iif: true })), "{aws:?}");
        let mix = Mix { keep: !0x80, take: 0, xor: 0x80 };
        assert_eq!(aws.0.last(), Some(&Part::Do(Target::Connection(mix))));
    }

    #[test]
    fn targets() {
        let dnat = |to: &str, port| Target::Dnat { to: to.parse().unwrap(), port };
        let all = u32::MAX;
        for (text, wanted) in [
            ("-j DNAT --to-destination 10.244.1.5:8080", dnat("10.244.1.5", Some(8080))),
            ("-j DNAT --to-destination [2001:db8::5]:80", dnat("2001:db8::5", Some(80))),
            ("-j DNAT --to-destination 10.0.0.1", dnat("10.0.0.1", None)),
            ("-j DNAT --to-destination 10.0.0.1-10.0.0.9", Target::Unknown("-j DNAT".into())),
            (
                "-j SNAT --to-source 10.0.0.1 --random-fully",
                Target::Snat("10.0.0.1".parse().unwrap()),
            ),
            (
                "-j MARK --set-xmark 0x4000/0x0",
                Target::Mark(Mix { keep: all, take: 0, xor: 0x4000 }),
            ),
            ("-j MARK --or-mark 0x4000", Target::Mark(Mix { keep: !0x4000, take: 0, xor: 0x4000 })),
            (
                "-j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
                Target::Mark(Mix { keep: !0x80, take: 0x80, xor: 0 }),
            ),
            ("-j CONNMARK --save-mark", Target::Connection(Mix { keep: 0, take: all, xor: 0 })),
            ("-j symroute-prerouting", Target::Symroute),
            ("-g KUBE-SEP-X", Target::Goto("KUBE-SEP-X".into())),
            ("-j RETURN", Target::Return),
        ] {
            assert_eq!(target(text), wanted, "{text}");
        }
        let ports = "-A C -p tcp -m multiport --dports 80,8000:8100 -j ACCEPT";
        let ports = rule(&words(ports)).unwrap().1;
        let wanted = Match::Ports(vec![(80, 80), (8000, 8100)]);
        assert_eq!(ports.0[1], Part::If(Condition { is: wanted, inverted: false }));
        let sticky = "-A C -p tcp -m recent --set --name S --mask 255.255.255.255 --rsource -m tcp \
                      -j DNAT --to-destination 10.0.0.1:80";
        let sticky = rule(&words(sticky)).unwrap().1;
        assert_eq!(sticky.0.len(), 2, "the protocol and DNAT: {sticky:?}");
        let again =
            "-A C -m recent --rcheck --seconds 10800 --reap --name S --rsource -j KUBE-SEP-A";
        let again = rule(&words(again)).unwrap().1;
        assert_eq!(again.0.last(), Some(&Part::Do(Target::Jump("KUBE-SEP-A".into()))));
        let odd =
            rule(&words("-A C -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT")).unwrap().1;
        let unknown = Match::Unknown("--match-set KUBE-CLUSTER-IP".into());
        assert_eq!(odd.0[0], Part::If(Condition { is: unknown, inverted: false }));
    }
}
