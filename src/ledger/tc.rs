//! Filters and actions of tc that compare or write marks, and BPF programs, which may do both.
//!
//! Layouts: `include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h` and `linux/tc_act/tc_skbedit.h`.

use super::{Action, ChainKind, Entry, Hook, Mark, Place, Point, Use, xtables};
use crate::model::Link;
use crate::netlink::Socket;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, attrs, find, string, u32_at};

/// Bytes of `struct tcmsg`.
const TCMSG: usize = 20;

/// Reads the ingress and egress filters of these interfaces.
pub(crate) fn read(socket: &mut Socket, links: &[Link]) -> Vec<Entry> {
    let mut found = Vec::new();
    for link in links {
        for (parent, point) in
            [(TC_H_CLSACT_INGRESS, Point::Ingress), (TC_H_CLSACT_EGRESS, Point::Egress)]
        {
            let mut body = [0; TCMSG];
            body[4..8].copy_from_slice(&link.index.to_ne_bytes());
            body[12..16].copy_from_slice(&parent.to_ne_bytes());
            let mut request = Writer::with_capacity(64);
            request.message(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, &body);
            // The interface has no clsact qdisc, or has been deleted meanwhile.
            let filters = socket.dump(&mut request, filter).unwrap_or_default();
            let entry = |(what, usage)| Entry {
                owner: format!("tc on {}", link.name),
                ours: false,
                place: Place::Tc { device: link.name.clone(), what },
                hooks: vec![Hook { point, priority: 0, kind: ChainKind::Filter }],
                usage,
                comment: None,
            };
            found.extend(filters.into_iter().flatten().map(entry));
        }
    }
    found
}

/// The uses of marks by a filter and its actions, each with the name of the filter or action.
fn filter(body: &[u8]) -> Option<Vec<(String, Use)>> {
    let attributes = body.get(TCMSG..)?;
    let kind = find(attributes, TCA_KIND).map(string)?;
    let options = find(attributes, TCA_OPTIONS)?;
    let mut found = Vec::new();
    let actions = match kind.as_str() {
        "bpf" => {
            let name = find(options, TCA_BPF_NAME).map(string).unwrap_or_default();
            found.push((format!("bpf {name}").trim_end().to_owned(), ANYTHING));
            TCA_BPF_ACT
        }
        "fw" => {
            let mask = find(options, TCA_FW_MASK).and_then(|payload| u32_at(payload, 0));
            let compared =
                xtables::compared(Mark::Packet, u32_at(body, 8)?, mask.unwrap_or(u32::MAX));
            found.extend(compared.map(|compared| ("fw".to_owned(), compared)));
            TCA_FW_ACT
        }
        "u32" => {
            // `struct tc_u32_mark`: value, mask, and number of matches.
            let mark = find(options, TCA_U32_MARK);
            let pair = mark.and_then(|mark| u32_at(mark, 0).zip(u32_at(mark, 4)));
            let compared = pair.and_then(|(v, m)| xtables::compared(Mark::Packet, v, m));
            found.extend(compared.map(|compared| ("u32".to_owned(), compared)));
            TCA_U32_ACT
        }
        "flower" | "basic" => TCA_FLOWER_ACT,
        "matchall" => TCA_MATCHALL_ACT,
        _ => return Some(found),
    };
    for (_, action) in attrs(find(options, actions).unwrap_or_default()) {
        found.extend(of_action(action));
    }
    Some(found)
}

/// The possible effect of a BPF program: any.
const ANYTHING: Use =
    Use { mark: Mark::Packet, action: Action::Unknown, bits: u32::MAX, value: None };

fn of_action(action: &[u8]) -> Option<(String, Use)> {
    let kind = find(action, TCA_ACT_KIND).map(string)?;
    let number = |attr| u32_at(find(find(action, TCA_ACT_OPTIONS)?, attr)?, 0);
    let usage = match kind.as_str() {
        "skbedit" => {
            let mask = number(TCA_SKBEDIT_MASK).unwrap_or(u32::MAX);
            xtables::written(Mark::Packet, number(TCA_SKBEDIT_MARK)?, mask)?
        }
        "connmark" => Use { action: Action::Restores, ..ANYTHING },
        "bpf" => ANYTHING,
        _ => return None,
    };
    Some((format!("action {kind}"), usage))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter_of(kind: &str, fill: impl FnOnce(&mut Writer)) -> Vec<(String, Action, u32)> {
        let mut w = Writer::default();
        w.str(TCA_KIND, kind);
        w.nest(TCA_OPTIONS, fill);
        let mut body = vec![0; TCMSG];
        body[8] = 7;
        body.extend_from_slice(w.as_bytes());
        let found = filter(&body).unwrap();
        found.into_iter().map(|(what, u)| (what, u.action, u.bits)).collect()
    }

    fn action(w: &mut Writer, kind: &str, fill: impl FnOnce(&mut Writer)) {
        w.nest(1, |w| {
            w.str(TCA_ACT_KIND, kind);
            w.nest(TCA_ACT_OPTIONS, fill);
        });
    }

    #[test]
    fn filters_and_actions() {
        assert_eq!(filter_of("fw", |_| {}), [("fw".into(), Action::ComparesWhole, u32::MAX)]);
        let masked = filter_of("fw", |w| w.u32(TCA_FW_MASK, 0xff));
        assert_eq!(masked, [("fw".into(), Action::ComparesMasked, 0xff)]);
        let program = filter_of("bpf", |w| w.str(TCA_BPF_NAME, "cil_from_netdev"));
        assert_eq!(program, [("bpf cil_from_netdev".into(), Action::Unknown, u32::MAX)]);
        let edits = filter_of("matchall", |w| {
            w.nest(TCA_MATCHALL_ACT, |w| {
                action(w, "skbedit", |w| {
                    w.u32(TCA_SKBEDIT_MARK, 0x5);
                    w.u32(TCA_SKBEDIT_MASK, 0xf);
                });
            });
        });
        assert_eq!(edits, [("action skbedit".into(), Action::Sets, 0xf)]);
        let restores = filter_of("flower", |w| {
            w.nest(TCA_FLOWER_ACT, |w| action(w, "connmark", |_| {}));
        });
        assert_eq!(restores, [("action connmark".into(), Action::Restores, u32::MAX)]);
        assert_eq!(filter_of("u32", |_| {}), []);
        assert_eq!(filter(&[0; 4]), None);
    }
}
