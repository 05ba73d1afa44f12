//! The one place for names and numbers that exist on a node: objects of ours in the kernel, and
//! files.

use crate::model::{MarkMatch, PerFamily};

/// The nftables table, of family inet. Its name is its ownership: whatever stands in it is ours.
pub(crate) const TABLE: &str = "symroute";

/// Set with the fingerprint of the settings and the ruleset version in force; see
/// [`crate::config::Settings::fingerprint`].
pub(crate) const IN_FORCE: &str = "in_force";
/// Map with the numbers by which state of ours is known: [`LAYOUT_MASK`], [`LAYOUT_PRIORITY`],
/// [`LAYOUT_TABLES`]. With [`RESTORE`] it lets the node be cleaned up when the files are lost.
pub(crate) const LAYOUT: &str = "layout";
/// Key of `markMask` in [`LAYOUT`].
pub(crate) const LAYOUT_MASK: u32 = 1;
/// Key of `rulePriority` in [`LAYOUT`].
pub(crate) const LAYOUT_PRIORITY: u32 = 2;
/// Key of `tableBase` in [`LAYOUT`].
pub(crate) const LAYOUT_TABLES: u32 = 3;
/// Set of the interfaces whose `src_valid_mark` was 0 before us.
pub(crate) const RESTORE: &str = "restore";
/// Map from an uplink's index to its id, as the conntrack mark carries it: the record of the ids.
pub(crate) const IDS: &str = "ids";
pub(crate) const UPLINKS: &str = "uplinks";
/// Set of the interfaces that lead outside, uplinks or not: a source that is routed there is no
/// local pod's.
pub(crate) const OUTSIDE: &str = "outside";
/// Verdict map: a first packet by an uplink with several routers goes to the chain of the one that it
/// came from, by interface and hardware address.
pub(crate) const ROUTERS: &str = "routers";
/// Verdict map: the same for a request of a connection that is bound.
pub(crate) const REROUTED: &str = "rerouted";
/// So many NICs that nothing speaks for are counted, at most.
pub(crate) const SILENT_MOST: u32 = 16;
/// Verdict map: a first packet goes to the chain of the uplink that it came in by.
pub(crate) const ARRIVE: &str = "arrive";
/// Verdict map: the same for a packet of a connection that is bound to another uplink and answered.
pub(crate) const ANSWERED: &str = "answered";
/// Verdict map: the same for ICMP errors.
pub(crate) const ERRORS: &str = "errors";
/// Verdict map: conntrack mark of a reply -> the uplink that it leaves by.
pub(crate) const REPLIES: &str = "replies";
/// Verdict map: conntrack mark -> the uplink's chain, where there are many uplinks.
pub(crate) const BOUND: &str = "bound";
/// Verdict map: conntrack mark of a connection that turns round on an uplink -> the uplink's chain.
pub(crate) const TURNED: &str = "turned";
/// Set of the conntrack marks of bound connections.
pub(crate) const MARKS: &str = "marks";
/// Set of the uplinks' own addresses: interface and address.
pub(crate) const OWN: PerFamily<&str> = PerFamily("own4", "own6");
/// The flowtable, and the last chain of forward, which puts connections into it. "offload" is a word of nft, which
/// would not read its own listing with that.
pub(crate) const OFFLOAD: &str = "flows";
/// Verdict map: a request that came in by an uplink goes to the chain that may offload its connection.
pub(crate) const OFFLOAD_BY: &str = "flows_by";
/// Map from an uplink's index to its MTU, with which connections came into the flowtable: another one sends them
/// back to the rules.
pub(crate) const MTUS: &str = "mtus";
/// Set of the uplinks' own addresses, without the interface.
pub(crate) const OWNED: PerFamily<&str> = PerFamily("owned4", "owned6");
/// Addresses of the pods that accept a local pod's address as a source.
pub(crate) const HAIRPIN: PerFamily<&str> = PerFamily("hairpin4", "hairpin6");
/// Addresses of the pods that are left out.
pub(crate) const LEFT_OUT: PerFamily<&str> = PerFamily("leftout4", "leftout6");
/// Uplinks that a masqueraded connection of a pod must not leave by.
pub(crate) const STEER: PerFamily<&str> = PerFamily("steer4", "steer6");

/// `trace` has its own nftables table and its own tracefs instance. Their names end with the process
/// id and the start time of the process.
pub(crate) const TRACE_TABLE: &str = "symroute-trace-";
/// The same for the tracefs instance.
pub(crate) const TRACE_INSTANCE: &str = "symroute-";
/// Where the kernel's tracefs is mounted.
pub(crate) const TRACEFS: &str = "/sys/kernel/tracing";

/// What `ip` is called with for each family, before its object.
pub(crate) const IP_OPTION: PerFamily<&str> = PerFamily("", "-6 ");

/// The built-in chains of table mangle that we jump from.
pub(crate) const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Chains in the tables mangle, and ipsets, are ours if their name begins with this.
pub(crate) const CHAIN_PREFIX: &str = "symroute-";
/// Chain that counts the packets that got the mark of their connection.
pub(crate) const COUNT_RESTORED: &str = "symroute-restore";
/// Chain that counts connections when they are bound.
pub(crate) const COUNT_BOUND: &str = "symroute-bind";
/// Chain that counts packets that turn round on an uplink; the uplink's id stands behind it.
pub(crate) const COUNT_TURNED: &str = "symroute-uturn-";
/// Chain that counts marks that were evidence only.
pub(crate) const COUNT_CLEARED: &str = "symroute-clear";
/// The ipset that says in comments what is in force.
pub(crate) const NODE_SET: &str = "symroute";
/// ipset of the prefixes that main leads to something that is not outside.
pub(crate) const INSIDE: PerFamily<&str> = PerFamily("symroute-inside4", "symroute-inside6");
/// ipset of the single addresses that main leads outside.
pub(crate) const HOSTS: PerFamily<&str> = PerFamily("symroute-hosts4", "symroute-hosts6");
/// ipset of the pods that accept a local pod's address as a source.
pub(crate) const HAIRPIN_SET: PerFamily<&str> = PerFamily("symroute-hairpin4", "symroute-hairpin6");
/// ipset of the pods that are left out.
pub(crate) const LEFT_OUT_SET: PerFamily<&str> =
    PerFamily("symroute-leftout4", "symroute-leftout6");
/// In the lasting directory: what install.sh noted of the node's directories.
pub(crate) const PLACES_NOTE: &str = "places";
/// Raised whenever the table's shape or its rules change between releases.
pub(crate) const RULESET_VERSION: u32 = 6;

/// Default of `markMask`: bits 8 to 12, which no neighbour uses as conntrack mark by default.
pub(crate) const MARK_MASK: u32 = 0x1f00;
/// Default of `rulePriority`: no program that we know of uses 300 to 499.
pub(crate) const RULE_PRIORITY: u32 = 400;
/// Default of `tableBase`.
pub(crate) const TABLE_BASE: u32 = 47000;
/// The interface by which a look-up of a rule of ours comes in that no packet has made.
pub(crate) const LOOPBACK: &str = "lo";
/// What a sysctl of all interfaces has in the place of an interface's name.
pub(crate) const ALL_LINKS: &str = "all";
/// The interface that kube-proxy makes when it uses IPVS.
pub(crate) const OF_KUBE_PROXY: &str = "kube-ipvs0";
/// kube-proxy's mark of packets that it will masquerade, and its mask.
pub(crate) const KUBE_MASQUERADE: MarkMatch = MarkMatch { value: 0x4000, mask: 0x4000 };

/// Marks that neighbours put on requests before they are bound: kube-proxy's, and the one of the AWS
/// VPC CNI for what comes in by the first NIC.
pub(crate) const MARKS_ON_REQUESTS: [u32; 2] = [0x4000, 0x80];

/// Our `type` in a conflist, and the program's name in the directories of plugins.
pub(crate) const PLUGIN_TYPE: &str = "symroute";
/// Where runtimes look for conflists by default.
pub(crate) const CONF_DIR: &str = "/etc/cni/net.d";
/// Where the runtime's plugins are on most systems.
pub(crate) const BIN_DIR: &str = "/opt/cni/bin";
/// Environment variable that names another place of `/proc`, for a container with the node's.
pub(crate) const PROC_VARIABLE: &str = "SYMROUTE_PROC";
/// Where libcni keeps the results of ADD.
pub(crate) const CACHE_DIR: &str = "/var/lib/cni/results";
/// The conflist of ours beside the primary's, in own-file mode.
pub(crate) const OWN_CONFLIST: &str = "05-symroute.conflist";
/// The same where the primary's file, a single plugin, comes before that name.
pub(crate) const OWN_CONFLIST_FIRST: &str = "00-symroute.conflist";
/// Where a conflist's new text is written before it takes the place of the old one. Hidden, and
/// with a suffix that no runtime reads.
pub(crate) const CONFLIST_TEMPORARY: &str = ".symroute.new";
/// State that outlives a boot: copies of conflists as found, and the journal of changes.
pub(crate) const LASTING_DIR: &str = "/var/lib/symroute";

/// State of this boot: attachments, the node record, the lock. A tmpfs on every system that has
/// systemd, so it goes with the kernel's rules at a reboot.
pub(crate) const STATE_DIR: &str = "/run/symroute";
/// Seconds of a processor that the work in a pod's namespace may take, and each program of iptables that it starts.
pub(crate) const CPU_OF_POD: u64 = 30;
/// A pod with more interfaces is refused: to look at each takes time.
pub(crate) const LINKS_OF_POD: usize = 1024;
/// The same for addresses.
pub(crate) const ADDRESSES_OF_POD: usize = 4096;
/// The same for rules of other programs.
pub(crate) const RULES_OF_POD: usize = 4096;
/// The same for routes of other programs that matter, each counted by its hops: those of main, default routes, what
/// lies on a link, and tables that rules name by an address of the pod.
pub(crate) const ROUTES_OF_POD: usize = 16_384;
/// So many routers of an interface of a pod are told apart, at most.
pub(crate) const ROUTERS_OF_POD: usize = 32;
/// So many networks behind the uplinks of a pod get a rule, at most.
pub(crate) const NETWORKS_OF_POD: usize = 128;
/// Below [`STATE_DIR`]: a folder for each pod that has a data plane of its own.
pub(crate) const PODS_DIR: &str = "netns";
/// Name of the plugin's program, as the kernel tells it of a process.
pub(crate) const PROGRAM: &str = "symroute";
/// Name of the command line tool, likewise.
pub(crate) const TOOL: &str = "symroutectl";
/// Where the tool is unless install.sh was told otherwise.
pub(crate) const TOOL_DIR: &str = "/usr/local/bin";
/// Default of `log.file`.
pub(crate) const LOG_FILE: &str = "/var/log/symroute.log";
