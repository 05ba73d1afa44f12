//! The one place for names and numbers that exist on a node: objects of ours in the kernel, and
//! files.

/// The nftables table, of family inet. Its name is its ownership: whatever stands in it is ours.
pub const TABLE: &str = "symroute";

/// Set with the fingerprint of the settings and the ruleset version in force; see
/// [`crate::config::Settings::fingerprint`].
pub const IN_FORCE: &str = "in_force";
/// Map with the numbers by which state of ours is known: [`LAYOUT_MASK`], [`LAYOUT_PRIORITY`],
/// [`LAYOUT_TABLES`]. With [`RESTORE`] it lets the node be cleaned up when the files are lost.
pub const LAYOUT: &str = "layout";
/// Key of `markMask` in [`LAYOUT`].
pub const LAYOUT_MASK: u32 = 1;
/// Key of `rulePriority` in [`LAYOUT`].
pub const LAYOUT_PRIORITY: u32 = 2;
/// Key of `tableBase` in [`LAYOUT`].
pub const LAYOUT_TABLES: u32 = 3;
/// Set of the interfaces whose `src_valid_mark` was 0 before us.
pub const RESTORE: &str = "restore";
/// Map from an uplink's index to its id, as the conntrack mark carries it. 0 stands for an
/// interface that leads outside but is no uplink by the settings, so that an ADD knows it.
pub const IDS: &str = "ids";
/// Set of the uplinks' indexes.
pub const UPLINKS: &str = "uplinks";
/// Set of the interfaces that lead outside, uplinks or not: a source that is routed there is no
/// local pod's.
pub const OUTSIDE: &str = "outside";
/// Verdict map: what came in by an uplink goes to the uplink's chain.
pub const ARRIVE: &str = "arrive";
/// Verdict map: conntrack mark of a reply -> the uplink it leaves by.
pub const REPLIES: &str = "replies";
/// Verdict map: conntrack mark with D -> the uplink it is sent out by.
pub const SENT: &str = "sent";
/// Verdict map: conntrack mark -> the uplink's chain, where there are many uplinks.
pub const BOUND: &str = "bound";
/// Set of the conntrack marks of plain ids.
pub const PLAIN: &str = "plain";
/// Addresses of the enrolled pods.
pub const PODS4: &str = "pods4";
/// Addresses of the enrolled pods.
pub const PODS6: &str = "pods6";
/// Addresses of the pods that accept a local pod's address as a source.
pub const HAIRPIN4: &str = "hairpin4";
/// Addresses of the pods that accept a local pod's address as a source.
pub const HAIRPIN6: &str = "hairpin6";
/// The sets that hold pods.
pub const OF_PODS: [&str; 4] = [PODS4, PODS6, HAIRPIN4, HAIRPIN6];
/// Uplinks that a masqueraded connection of a pod must not leave by.
pub const STEER4: &str = "steer4";
/// Uplinks that a masqueraded connection of a pod must not leave by.
pub const STEER6: &str = "steer6";

/// Chains in the tables mangle, and ipsets, are ours if their name begins with this.
pub const CHAIN_PREFIX: &str = "symroute-";
/// Of those, where iptables counts: what got the mark of its connection, …
pub const COUNT_RESTORED: &str = "symroute-restore";
/// … connections when they are bound, …
pub const COUNT_BOUND: &str = "symroute-bind";
/// … packets that turn round, by the id of the uplink behind this, …
pub const COUNT_TURNED: &str = "symroute-uturn-";
/// … and marks that were evidence only.
pub const COUNT_CLEARED: &str = "symroute-clear";
/// The ipset that tells what is in force with iptables, in comments.
pub const NODE_SET: &str = "symroute";
/// ipset of the prefixes that the node leads to something that is not outside.
pub const INSIDE4: &str = "symroute-inside4";
/// ipset of the prefixes that the node leads to something that is not outside.
pub const INSIDE6: &str = "symroute-inside6";
/// ipset of the same name as the set of the table, with a prefix.
pub const IPSETS: [(&str, &str); 4] = [
    (PODS4, "symroute-pods4"),
    (PODS6, "symroute-pods6"),
    (HAIRPIN4, "symroute-hairpin4"),
    (HAIRPIN6, "symroute-hairpin6"),
];
/// Raised whenever the table's shape or its rules change between releases.
pub const RULESET_VERSION: u32 = 3;

/// Default of `markMask`: bits 8 to 12, which no neighbour uses as conntrack mark by default.
pub const MARK_MASK: u32 = 0x1f00;
/// Default of `rulePriority`: 300 to 499 are used by nobody we know of.
pub const RULE_PRIORITY: u32 = 400;
/// Default of `tableBase`.
pub const TABLE_BASE: u32 = 47000;
/// The interface that kube-proxy makes when it uses IPVS.
pub const OF_KUBE_PROXY: &str = "kube-ipvs0";
/// kube-proxy's mark of packets that it will masquerade, and its mask.
pub const KUBE_MASQUERADE: (u32, u32) = (0x4000, 0x4000);

/// Our `type` in a conflist, and the program's name in the directories of plugins.
pub const PLUGIN_TYPE: &str = "symroute";
/// Where runtimes look for conflists by default.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// Where the runtime's plugins are on most systems.
pub const BIN_DIR: &str = "/opt/cni/bin";
/// Environment variable that names another place of `/proc`, for a container with the node's.
pub const PROC_VARIABLE: &str = "SYMROUTE_PROC";
/// Where libcni keeps the results of ADD.
pub const CACHE_DIR: &str = "/var/lib/cni/results";
/// The conflist of ours beside the primary's, in own-file mode.
pub const OWN_CONFLIST: &str = "05-symroute.conflist";
/// Where a conflist's new text is written before it takes the place of the old one. Hidden, and
/// with a suffix that no runtime reads.
pub const CONFLIST_TEMPORARY: &str = ".symroute.new";
/// State that outlives a boot: copies of conflists as found, and the journal of changes.
pub const LASTING_DIR: &str = "/var/lib/symroute";

/// State of this boot: attachments, the node record, the lock. A tmpfs on every system that has
/// systemd, so it goes with the kernel's rules at a reboot.
pub const STATE_DIR: &str = "/run/symroute";
/// Name of the plugin's program, as the kernel tells it of a process.
pub const PROGRAM: &str = "symroute";
/// Name of the command line tool, likewise.
pub const TOOL: &str = "symroutectl";
/// Where the tool is unless install.sh was told otherwise.
pub const TOOL_DIR: &str = "/usr/local/bin";
/// Default of `log.file`.
pub const LOG_FILE: &str = "/var/log/symroute.log";
