//! Messages of `nf_tables`: reads the table's content, and changes it in batches.
//!
//! Layouts: `linux/netfilter/nf_tables.h`. Integers of nfnetlink are in network byte order. Values
//! that rules compare are in the byte order of the packet's field or of the kernel's variable:
//! addresses in network order, marks and interface indexes in host order.

use nix::errno::Errno;

use super::base_chains::FIRST_CHAIN;
use super::encode::{rule_body, set_numbers, set_userdata, write_goto};
use super::fingerprint;
use super::rules::TableFamily::{self, Inet};
use super::rules::{Chain, Expression, Flowtable, Hook, Rule, Set};
use super::table_diff::TableChange;
use crate::model::{ElementData, Elements, FoundChain, FoundFlowtable, FoundSet, Table};
use crate::names::{LOOPBACK, TABLE};
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, attrs, be_i32_at, be32_at, find, string};
use crate::netlink::{Error, Socket};

/// Bytes of `struct nfgenmsg`.
pub(super) const NFGENMSG: usize = 4;
/// Maximum number of elements in a message: their list has to stay below 64 KiB.
const CHUNK: usize = 512;
/// Maximum number of devices in a message (`NFT_NETDEVICE_MAX`, `linux/netfilter/nf_tables.h`).
const DEVICES: usize = 255;

/// The type of an `nf_tables` message (`NFT_MSG_*`).
pub(crate) fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

/// `struct nfgenmsg` for a table of this family.
fn header(family: TableFamily) -> [u8; NFGENMSG] {
    [family.number(), 0, 0, 0]
}

pub(super) fn get(message: u16, flags: u16, table_attr: u16) -> Writer {
    get_in(Inet, message, flags, table_attr)
}

fn get_in(family: TableFamily, message: u16, flags: u16, table_attr: u16) -> Writer {
    let mut request = Writer::with_capacity(128);
    write_get(&mut request, family, message, flags, table_attr);
    request
}

fn write_get(request: &mut Writer, family: TableFamily, message: u16, flags: u16, table_attr: u16) {
    request.message(kind(message), NLM_F_REQUEST | flags, &header(family));
    request.str(table_attr, TABLE);
}

/// Reads everything in symroute's table of this family; `None` if it does not exist.
pub(crate) fn table(socket: &mut Socket, family: TableFamily) -> Result<Option<Table>, Error> {
    let get = |message, flags, attr| get_in(family, message, flags, attr);
    let is_ours = |body: &[u8], attrs: &[u8], attr| is_ours_in(family, body, attrs, attr);
    let flags = socket.query(&mut get(NFT_MSG_GETTABLE, 0, NFTA_TABLE_NAME), |message| {
        be32_at(find(message.body.get(NFGENMSG..)?, NFTA_TABLE_FLAGS)?, 0)
    });
    let flags = match flags {
        Err(error) if error.errno == Errno::ENOENT => return Ok(None),
        other => other?,
    };
    let mut found = Table { dormant: flags & NFT_TABLE_F_DORMANT != 0, ..Table::default() };
    for (name, chain) in
        socket.dump(&mut get(NFT_MSG_GETCHAIN, NLM_F_DUMP, NFTA_CHAIN_TABLE), |b| {
            let attrs = b.get(NFGENMSG..)?;
            is_ours(b, attrs, NFTA_CHAIN_TABLE).then(|| parse_chain(attrs))
        })?
    {
        found.chains.insert(name, chain);
    }
    let rules = socket.dump(&mut get(NFT_MSG_GETRULE, NLM_F_DUMP, NFTA_RULE_TABLE), |b| {
        let attrs = b.get(NFGENMSG..)?;
        let chain = find(attrs, NFTA_RULE_CHAIN).map(string)?;
        let print = find(attrs, NFTA_RULE_USERDATA).and_then(fingerprint::of_userdata);
        is_ours(b, attrs, NFTA_RULE_TABLE).then_some((chain, print))
    })?;
    for (chain, print) in rules {
        found.chains.entry(chain).or_default().rules.push(print);
    }
    let sets = socket.dump(&mut get(NFT_MSG_GETSET, NLM_F_DUMP, NFTA_SET_TABLE), |b| {
        let attrs = b.get(NFGENMSG..)?;
        is_ours(b, attrs, NFTA_SET_TABLE).then(|| parse_set(attrs))
    })?;
    // An anonymous set belongs to its rule, and the kernel deletes it with the rule.
    for (name, mut set) in sets.into_iter().filter(|(_, s)| s.flags & NFT_SET_ANONYMOUS == 0) {
        set.elements = elements_in(socket, family, &name)?;
        found.sets.insert(name, set);
    }
    let flowtables =
        socket.dump(&mut get(NFT_MSG_GETFLOWTABLE, NLM_F_DUMP, NFTA_FLOWTABLE_TABLE), |b| {
            let attrs = b.get(NFGENMSG..)?;
            is_ours(b, attrs, NFTA_FLOWTABLE_TABLE).then(|| parse_flowtable(attrs))
        })?;
    found.flowtables.extend(flowtables);
    Ok(Some(found))
}

/// Whether prerouting of the table inet has a rule. A flush deletes rules but leaves chains and
/// sets.
pub(crate) fn has_rules(socket: &mut Socket) -> Result<bool, Error> {
    let mut request = get(NFT_MSG_GETCHAIN, 0, NFTA_CHAIN_TABLE);
    request.str(NFTA_CHAIN_NAME, FIRST_CHAIN);
    let found = socket.query(&mut request, |message| {
        be32_at(find(message.body.get(NFGENMSG..)?, NFTA_CHAIN_USE)?, 0)
    });
    match found {
        Err(error) if error.errno == Errno::ENOENT => Ok(false),
        other => Ok(other? != 0),
    }
}

/// Whether a dumped message is about the table `inet symroute`. Older kernels ignore the filter in
/// the request.
pub(super) fn is_ours(body: &[u8], attrs: &[u8], attr: u16) -> bool {
    is_ours_in(Inet, body, attrs, attr)
}

fn is_ours_in(family: TableFamily, body: &[u8], attrs: &[u8], attr: u16) -> bool {
    let of_family = body.first() == Some(&family.number());
    of_family && find(attrs, attr).map(string).as_deref() == Some(TABLE)
}

fn parse_chain(body: &[u8]) -> (String, FoundChain) {
    let (mut name, mut chain) = (String::new(), FoundChain::default());
    let mut kind = String::new();
    let mut hook = None;
    for (attr, payload) in attrs(body) {
        match attr {
            NFTA_CHAIN_NAME => name = string(payload),
            NFTA_CHAIN_TYPE => kind = string(payload),
            NFTA_CHAIN_HOOK => {
                hook = find(payload, NFTA_HOOK_HOOKNUM)
                    .and_then(|p| be32_at(p, 0))
                    .zip(find(payload, NFTA_HOOK_PRIORITY).and_then(|p| be_i32_at(p, 0)));
            }
            _ => {}
        }
    }
    chain.hook = hook.map(|(number, priority)| (kind, number, priority));
    (name, chain)
}

fn parse_set(body: &[u8]) -> (String, FoundSet) {
    let (mut name, mut set) = (String::new(), FoundSet::default());
    for (attr, payload) in attrs(body) {
        let number = be32_at(payload, 0).unwrap_or(0);
        match attr {
            NFTA_SET_NAME => name = string(payload),
            NFTA_SET_FLAGS => set.flags = number,
            NFTA_SET_KEY_TYPE => set.key_type = number,
            NFTA_SET_DATA_TYPE => set.data_type = number,
            NFTA_SET_DESC => {
                set.size = find(payload, NFTA_SET_DESC_SIZE).and_then(|size| be32_at(size, 0));
            }
            _ => {}
        }
    }
    (name, set)
}

fn parse_flowtable(body: &[u8]) -> (String, FoundFlowtable) {
    let (mut name, mut flowtable) = (String::new(), FoundFlowtable::default());
    for (attr, payload) in attrs(body) {
        match attr {
            NFTA_FLOWTABLE_NAME => name = string(payload),
            NFTA_FLOWTABLE_FLAGS => flowtable.flags = be32_at(payload, 0).unwrap_or(0),
            NFTA_FLOWTABLE_HOOK => {
                let priority = find(payload, NFTA_FLOWTABLE_HOOK_PRIORITY);
                flowtable.priority = priority.and_then(|p| be_i32_at(p, 0)).unwrap_or(0);
                let devices = find(payload, NFTA_FLOWTABLE_HOOK_DEVS).unwrap_or_default();
                flowtable.devices = attrs(devices).map(|(_, name)| string(name)).collect();
            }
            _ => {}
        }
    }
    (name, flowtable)
}

/// Reads all elements of a set or map of the table inet.
pub(crate) fn elements(socket: &mut Socket, set: &str) -> Result<Elements, Error> {
    elements_in(socket, Inet, set)
}

fn elements_in(socket: &mut Socket, family: TableFamily, set: &str) -> Result<Elements, Error> {
    let mut request = get_in(family, NFT_MSG_GETSETELEM, NLM_F_DUMP, NFTA_SET_ELEM_LIST_TABLE);
    request.str(NFTA_SET_ELEM_LIST_SET, set);
    let lists = socket.dump(&mut request, |b| Some(parse_elements(b.get(NFGENMSG..)?)))?;
    Ok(lists.into_iter().flatten().collect())
}

fn parse_elements(body: &[u8]) -> Vec<(Vec<u8>, ElementData)> {
    let Some(list) = find(body, NFTA_SET_ELEM_LIST_ELEMENTS) else { return Vec::new() };
    attrs(list).filter_map(|(_, element)| parse_element(element)).collect()
}

fn parse_element(element: &[u8]) -> Option<(Vec<u8>, ElementData)> {
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?.to_vec();
    let data = match find(element, NFTA_SET_ELEM_DATA) {
        None => ElementData::None,
        Some(data) => match find(data, NFTA_DATA_VERDICT) {
            Some(verdict) => ElementData::Goto(string(find(verdict, NFTA_VERDICT_CHAIN)?)),
            None => ElementData::Value(find(data, NFTA_DATA_VALUE)?.to_vec()),
        },
    };
    Some((key, data))
}

/// Looks up one element in a set or map of the table inet, and returns its data. `None` if the set
/// has no such element.
pub(crate) fn element(
    socket: &mut Socket,
    set: &str,
    key: &[u8],
) -> Result<Option<ElementData>, Error> {
    look_up(socket, &[(set, key)])?.pop().unwrap_or(Ok(None))
}

/// Looks up elements in sets and maps of the table inet, all at once; see [`element`].
pub(crate) fn look_up(
    socket: &mut Socket,
    elements: &[(&str, &[u8])],
) -> Result<Vec<Result<Option<ElementData>, Error>>, Error> {
    let mut requests = Writer::with_capacity(96 * elements.len());
    for (set, key) in elements {
        write_get(&mut requests, Inet, NFT_MSG_GETSETELEM, 0, NFTA_SET_ELEM_LIST_TABLE);
        requests.str(NFTA_SET_ELEM_LIST_SET, set);
        requests.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| write_element(w, key, &ElementData::None));
    }
    let answers = socket.queries(&mut requests, |message| {
        let mut found = parse_elements(message.body.get(NFGENMSG..)?);
        found.pop().map(|(_, data)| data)
    })?;
    let absent = |answer| match answer {
        Ok(data) => Ok(Some(data)),
        Err(Error { errno: Errno::ENOENT, .. }) => Ok(None),
        Err(error) => Err(error),
    };
    Ok(answers.into_iter().map(absent).collect())
}

fn write_element(w: &mut Writer, key: &[u8], data: &ElementData) {
    w.nest(NFTA_LIST_ELEM, |w| {
        w.nest(NFTA_SET_ELEM_KEY, |w| w.attr(NFTA_DATA_VALUE, key));
        match data {
            ElementData::None => {}
            ElementData::Value(value) => {
                w.nest(NFTA_SET_ELEM_DATA, |w| w.attr(NFTA_DATA_VALUE, value));
            }
            ElementData::Goto(chain) => w.nest(NFTA_SET_ELEM_DATA, |w| write_goto(w, chain)),
        }
    });
}

/// Writes the message that opens or closes a batch. Its resource id is the subsystem.
pub(crate) fn batch_edge(messages: &mut Writer, edge: u16) {
    let subsystem = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    messages.message(edge, NLM_F_REQUEST, &[0, 0, subsystem[0], subsystem[1]]);
}

/// Makes these changes in one transaction, and waits for the kernel's one answer.
pub(crate) fn commit(
    socket: &mut Socket,
    family: TableFamily,
    changes: &[TableChange],
) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut messages = Writer::with_capacity(512);
    batch_edge(&mut messages, NFNL_MSG_BATCH_BEGIN);
    let mut batch = Batch { messages, family, sets: 0 };
    for change in changes {
        batch.add(change);
    }
    // The kernel acknowledges only the last change: answers to each would overflow the socket.
    batch.messages.add_flags(NLM_F_ACK);
    batch_edge(&mut batch.messages, NFNL_MSG_BATCH_END);
    let has_devices = |change: &TableChange| {
        matches!(
            change,
            TableChange::NewFlowtable(_)
                | TableChange::AddDevices(_)
                | TableChange::RemoveDevices(_)
        )
    };
    match socket.batch(&mut batch.messages) {
        // A pod's interface disappeared meanwhile.
        Err(Error { errno: Errno::ENOENT, text }) if changes.iter().any(has_devices) => {
            Err(Error { errno: Errno::ENODEV, text })
        }
        other => other,
    }
}

/// Whether the kernel has flowtables. Sends a transaction that makes one, and a rule that uses it.
/// The transaction fails at its end, so nothing changes.
pub(crate) fn has_flowtables(socket: &mut Socket) -> Result<bool, Error> {
    let mut messages = Writer::with_capacity(512);
    batch_edge(&mut messages, NFNL_MSG_BATCH_BEGIN);
    let mut batch = Batch { messages, family: Inet, sets: 0 };
    let flowtable = Flowtable { name: PROBE, priority: 0, devices: [LOOPBACK.into()].into() };
    let hook = Hook { kind: "filter", number: NF_INET_FORWARD, priority: 0 };
    let rule = Rule { comment: None, expressions: vec![Expression::Offload(PROBE)] };
    batch.add(&TableChange::NewTable);
    batch.add(&TableChange::NewFlowtable(flowtable));
    batch.add(&TableChange::NewChain(Chain {
        name: PROBE.into(),
        hook: Some(hook),
        rules: vec![],
    }));
    batch.add(&TableChange::AppendRule(PROBE.into(), rule));
    batch.table(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK);
    batch_edge(&mut batch.messages, NFNL_MSG_BATCH_END);
    match socket.batch(&mut batch.messages) {
        Err(Error { errno: Errno::EEXIST, .. }) => Ok(true),
        Err(Error { errno: Errno::ENOENT | Errno::EOPNOTSUPP, .. }) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Name of the flowtable and of the chain in [`has_flowtables`].
const PROBE: &str = "probe";

/// Changes, encoded as messages.
struct Batch {
    messages: Writer,
    family: TableFamily,
    /// Number of new sets so far. Each new set needs a number of its own in the batch.
    sets: u32,
}

/// Attributes that name the table and the changed object in it.
const CHAIN: (u16, u16) = (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME);
const RULE: (u16, u16) = (NFTA_RULE_TABLE, NFTA_RULE_CHAIN);
const SET: (u16, u16) = (NFTA_SET_TABLE, NFTA_SET_NAME);
const FLOWTABLE: (u16, u16) = (NFTA_FLOWTABLE_TABLE, NFTA_FLOWTABLE_NAME);
const ELEMENTS: (u16, u16) = (NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET);

impl Batch {
    fn add(&mut self, change: &TableChange) {
        match change {
            TableChange::NewTable => self.table(NFT_MSG_NEWTABLE, NLM_F_CREATE),
            TableChange::DeleteTable => self.table(NFT_MSG_DELTABLE, 0),
            TableChange::NewChain(chain) => self.new_chain(chain),
            TableChange::DeleteChain(name) => drop(self.named(NFT_MSG_DELCHAIN, 0, CHAIN, name)),
            TableChange::FlushChain(name) => drop(self.named(NFT_MSG_DELRULE, 0, RULE, name)),
            TableChange::AppendRule(chain, rule) => self.append_rule(chain, rule),
            TableChange::NewSet(set) => self.new_set(set),
            TableChange::DeleteSet(name) => drop(self.named(NFT_MSG_DELSET, 0, SET, name)),
            TableChange::AddElements(set, elements) => {
                self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, set, elements);
            }
            TableChange::DeleteElements(set, elements) => {
                self.elements(NFT_MSG_DELSETELEM, 0, set, elements);
            }
            TableChange::NewFlowtable(flowtable) | TableChange::AddDevices(flowtable) => {
                self.devices(NFT_MSG_NEWFLOWTABLE, NLM_F_CREATE, flowtable);
            }
            TableChange::DeleteFlowtable(name) => {
                self.named(NFT_MSG_DELFLOWTABLE, 0, FLOWTABLE, name);
            }
            TableChange::RemoveDevices(flowtable) => {
                self.devices(NFT_MSG_DELFLOWTABLE, 0, flowtable);
            }
        }
    }

    fn table(&mut self, message: u16, flags: u16) {
        self.messages.message(kind(message), NLM_F_REQUEST | flags, &header(self.family));
        self.messages.str(NFTA_TABLE_NAME, TABLE);
    }

    /// Starts a message about the object of this name in symroute's table.
    fn named(
        &mut self,
        message: u16,
        flags: u16,
        (table_attr, name_attr): (u16, u16),
        name: &str,
    ) -> &mut Writer {
        let w = &mut self.messages;
        w.message(kind(message), NLM_F_REQUEST | flags, &header(self.family));
        w.str(table_attr, TABLE);
        w.str(name_attr, name);
        w
    }

    fn new_chain(&mut self, chain: &Chain) {
        let w = self.named(NFT_MSG_NEWCHAIN, NLM_F_CREATE, CHAIN, &chain.name);
        if let Some(hook) = chain.hook {
            w.nest(NFTA_CHAIN_HOOK, |w| {
                w.be32(NFTA_HOOK_HOOKNUM, hook.number);
                w.be_i32(NFTA_HOOK_PRIORITY, hook.priority);
            });
            w.be_i32(NFTA_CHAIN_POLICY, NF_ACCEPT);
            w.str(NFTA_CHAIN_TYPE, hook.kind);
        }
    }

    fn append_rule(&mut self, chain: &str, rule: &Rule) {
        let w = self.named(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, RULE, chain);
        let body = rule_body(rule);
        w.bytes(body.as_bytes());
        w.attr(NFTA_RULE_USERDATA, &fingerprint::userdata(rule, body.as_bytes()));
    }

    fn new_set(&mut self, set: &Set) {
        self.sets += 1;
        let (id, numbers) = (self.sets, set_numbers(set));
        let w = self.named(NFT_MSG_NEWSET, NLM_F_CREATE, SET, &set.name);
        w.be32(NFTA_SET_FLAGS, numbers.flags);
        w.be32(NFTA_SET_KEY_TYPE, numbers.key_type);
        w.be32(NFTA_SET_KEY_LEN, numbers.key_len);
        if let Some((data_type, data_len)) = numbers.data {
            w.be32(NFTA_SET_DATA_TYPE, data_type);
            w.be32(NFTA_SET_DATA_LEN, data_len);
        }
        if let Some(size) = set.size {
            w.nest(NFTA_SET_DESC, |w| w.be32(NFTA_SET_DESC_SIZE, size));
        }
        w.be32(NFTA_SET_ID, id);
        w.attr(NFTA_SET_USERDATA, &set_userdata(set));
    }

    /// Adds a flowtable with its devices, or adds or removes devices of one.
    fn devices(&mut self, message: u16, flags: u16, flowtable: &Flowtable) {
        let devices: Vec<_> = flowtable.devices.iter().collect();
        for some in devices.chunks(DEVICES) {
            let w = self.named(message, flags, FLOWTABLE, flowtable.name);
            w.nest(NFTA_FLOWTABLE_HOOK, |w| {
                w.be32(NFTA_FLOWTABLE_HOOK_NUM, NF_NETDEV_INGRESS);
                w.be_i32(NFTA_FLOWTABLE_HOOK_PRIORITY, flowtable.priority);
                w.nest(NFTA_FLOWTABLE_HOOK_DEVS, |w| {
                    for name in some {
                        w.str(NFTA_DEVICE_NAME, name);
                    }
                });
            });
            if message == NFT_MSG_NEWFLOWTABLE {
                w.be32(NFTA_FLOWTABLE_FLAGS, NFT_FLOWTABLE_COUNTER);
            }
        }
    }

    fn elements(&mut self, message: u16, flags: u16, set: &str, elements: &Elements) {
        let mut elements = elements.iter().peekable();
        while elements.peek().is_some() {
            let w = self.named(message, flags, ELEMENTS, set);
            w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                for (key, data) in elements.by_ref().take(CHUNK) {
                    write_element(w, key, data);
                }
            });
        }
    }
}
