//! Names and numbers that exist on a node: symroute's objects in the kernel, and its files.

use crate::model::{MarkMatch, PerFamily};

/// Name of the nftables tables, of the families inet and arp. symroute owns everything in them.
pub(crate) const TABLE: &str = "symroute";

/// Set with the fingerprint of the settings and the ruleset version in force; see
/// [`crate::config::Settings::fingerprint`].
pub(crate) const IN_FORCE: &str = "in_force";
/// Map with the numbers by which symroute recognises its own state: [`LAYOUT_MASK`],
/// [`LAYOUT_PRIORITY`], [`LAYOUT_TABLES`]. With [`RESTORE`] it lets symroute clean the node up when
/// the files are lost.
pub(crate) const LAYOUT: &str = "layout";
/// Key of `markMask` in [`LAYOUT`].
pub(crate) const LAYOUT_MASK: u32 = 1;
/// Key of `rulePriority` in [`LAYOUT`].
pub(crate) const LAYOUT_PRIORITY: u32 = 2;
/// Key of `tableBase` in [`LAYOUT`].
pub(crate) const LAYOUT_TABLES: u32 = 3;
/// Set of the interfaces whose `src_valid_mark` was 0 before symroute set it.
pub(crate) const RESTORE: &str = "restore";
/// Map from an uplink's index to its id, as the conntrack mark carries it. It is the record of the
/// ids.
pub(crate) const IDS: &str = "ids";
/// Set of the uplinks, by index.
pub(crate) const UPLINKS: &str = "uplinks";
/// Set of the interfaces that lead outside, uplinks or not. A source that the node routes to one of
/// them is not a local pod.
pub(crate) const OUTSIDE: &str = "outside";
/// Verdict map for first packets from an uplink with several routers: interface and hardware
/// address -> chain of that router.
pub(crate) const ROUTERS: &str = "routers";
/// Verdict map for requests of bound connections from an uplink with several routers: interface and
/// hardware address -> chain of that router.
pub(crate) const REROUTED: &str = "rerouted";
/// Maximum number of NICs without address and default route that are counted.
pub(crate) const SILENT_MOST: u32 = 16;
/// Verdict map for first packets: incoming interface -> chain of that uplink.
pub(crate) const ARRIVE: &str = "arrive";
/// Verdict map for packets of an answered connection that is bound to another uplink: incoming
/// interface -> chain of that uplink.
pub(crate) const ANSWERED: &str = "answered";
/// Verdict map for ICMP errors: incoming interface -> chain of that uplink.
pub(crate) const ERRORS: &str = "errors";
/// Verdict map for replies in output: conntrack mark -> chain of the uplink that they leave
/// through.
pub(crate) const REPLIES: &str = "replies";
/// Verdict map for bound connections: conntrack mark -> chain of the uplink. Exists only where
/// there are many uplinks.
pub(crate) const BOUND: &str = "bound";
/// Verdict map for connections that turn round on an uplink: conntrack mark -> chain of that
/// uplink.
pub(crate) const TURNED: &str = "turned";
/// Set of the conntrack marks of bound connections.
pub(crate) const MARKS: &str = "marks";
/// Sets of the uplinks' own addresses: interface and address.
pub(crate) const OWN: PerFamily<&str> = PerFamily("own4", "own6");
/// Name of the flowtable, and of the last chain of forward, which puts connections into it. nft
/// can't read back a listing that has its keyword "offload" as a name.
pub(crate) const OFFLOAD: &str = "flows";
/// Verdict map for requests in forward: incoming uplink -> chain that may offload the connection.
pub(crate) const OFFLOAD_BY: &str = "flows_by";
/// Map from an uplink's index to its MTU. A new value makes reconcile flush the flowtable, because
/// connections in it keep the old MTU.
pub(crate) const MTUS: &str = "mtus";
/// Sets of the uplinks' own addresses, without the interface.
pub(crate) const OWNED: PerFamily<&str> = PerFamily("owned4", "owned6");
/// Sets of the addresses of pods that accept a local pod's address as a source.
pub(crate) const HAIRPIN: PerFamily<&str> = PerFamily("hairpin4", "hairpin6");
/// Sets of the addresses of pods that an annotation leaves out.
pub(crate) const LEFT_OUT: PerFamily<&str> = PerFamily("leftout4", "leftout6");
/// Sets of the uplinks through which a masqueraded connection of a pod must not leave.
pub(crate) const STEER: PerFamily<&str> = PerFamily("steer4", "steer6");

/// Prefix of the name of `trace`'s own nftables table. The process id and the start time of the
/// process follow.
pub(crate) const TRACE_TABLE: &str = "symroute-trace-";
/// Prefix of the name of `trace`'s own tracefs instance. The process id and the start time of the
/// process follow.
pub(crate) const TRACE_INSTANCE: &str = "symroute-";
/// Mount point of the kernel's tracefs.
pub(crate) const TRACEFS: &str = "/sys/kernel/tracing";
/// Files in which the kernel lists the tables of iptables-legacy, one name a line. They are those of the
/// thread's network namespace, which may be another one than that of its process.
pub(crate) const LEGACY_TABLES: PerFamily<&str> =
    PerFamily("/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names");

/// Option that selects the family in a command of `ip`, with the space behind it.
pub(crate) const IP_OPTION: PerFamily<&str> = PerFamily("", "-6 ");

/// Built-in chains of table mangle from which a rule jumps to a chain of symroute.
pub(crate) const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Prefix of the names of symroute's chains in the tables mangle, and of all its ipsets except
/// [`NODE_SET`].
pub(crate) const CHAIN_PREFIX: &str = "symroute-";
/// Chain that counts the packets that got the mark of their connection.
pub(crate) const COUNT_RESTORED: &str = "symroute-restore";
/// Chain that counts connections when they are bound.
pub(crate) const COUNT_BOUND: &str = "symroute-bind";
/// Chain that counts packets that turn round on an uplink, without the uplink's id at its end.
pub(crate) const COUNT_TURNED: &str = "symroute-uturn-";
/// Chain that counts packets whose mark was evidence only.
pub(crate) const COUNT_CLEARED: &str = "symroute-clear";
/// ipset whose comments record what is in force.
pub(crate) const NODE_SET: &str = "symroute";
/// ipsets of the prefixes that main leads to an interface that is not outside.
pub(crate) const INSIDE: PerFamily<&str> = PerFamily("symroute-inside4", "symroute-inside6");
/// ipsets of the single addresses that main leads outside.
pub(crate) const HOSTS: PerFamily<&str> = PerFamily("symroute-hosts4", "symroute-hosts6");
/// ipsets of the pods that accept a local pod's address as a source.
pub(crate) const HAIRPIN_SET: PerFamily<&str> = PerFamily("symroute-hairpin4", "symroute-hairpin6");
/// ipsets of the pods that an annotation leaves out.
pub(crate) const LEFT_OUT_SET: PerFamily<&str> =
    PerFamily("symroute-leftout4", "symroute-leftout6");
/// File in [`LASTING_DIR`] in which install.sh notes the node's directories.
pub(crate) const PLACES_NOTE: &str = "places";
/// Version of the rules, chains and sets of both backends. Raise it whenever a release changes
/// them.
pub(crate) const RULESET_VERSION: u32 = 6;

/// Default of `markMask`: bits 8 to 12. By default no other known program uses them as conntrack
/// mark.
pub(crate) const MARK_MASK: u32 = 0x1f00;
/// Default of `rulePriority`. No other known program uses 300 to 499.
pub(crate) const RULE_PRIORITY: u32 = 400;
/// Default of `tableBase`.
pub(crate) const TABLE_BASE: u32 = 47000;
/// Loopback interface: the incoming interface in look-ups that no packet causes.
pub(crate) const LOOPBACK: &str = "lo";
/// Stands for an interface's name in a sysctl of all interfaces.
pub(crate) const ALL_LINKS: &str = "all";
/// Interface that kube-proxy makes when it uses IPVS.
pub(crate) const OF_KUBE_PROXY: &str = "kube-ipvs0";
/// kube-proxy's mark of packets that it will masquerade, and its mask.
pub(crate) const KUBE_MASQUERADE: MarkMatch = MarkMatch { value: 0x4000, mask: 0x4000 };

/// Marks that other programs put on requests before symroute binds them: kube-proxy, and the AWS
/// VPC CNI for requests that arrive on the first NIC.
pub(crate) const MARKS_ON_REQUESTS: [u32; 2] = [0x4000, 0x80];

/// `type` of the plugin in a conflist, and its program's name in the directories of plugins.
pub(crate) const PLUGIN_TYPE: &str = "symroute";
/// Directory in which runtimes look for conflists by default.
pub(crate) const CONF_DIR: &str = "/etc/cni/net.d";
/// Directory of the runtime's plugins on most systems.
pub(crate) const BIN_DIR: &str = "/opt/cni/bin";
/// Environment variable that names another path of `/proc`, for a container that has the node's
/// mounted.
pub(crate) const PROC_VARIABLE: &str = "SYMROUTE_PROC";
/// Directory in which libcni keeps the results of ADD.
pub(crate) const CACHE_DIR: &str = "/var/lib/cni/results";
/// symroute's own conflist beside the primary plugin's file, in own-file mode.
pub(crate) const OWN_CONFLIST: &str = "05-symroute.conflist";
/// symroute's own conflist where the primary plugin's file is a single plugin and its name comes
/// before [`OWN_CONFLIST`].
pub(crate) const OWN_CONFLIST_FIRST: &str = "00-symroute.conflist";
/// File that gets a conflist's new text before it replaces the old one. It is hidden, and no
/// runtime reads its suffix.
pub(crate) const CONFLIST_TEMPORARY: &str = ".symroute.new";
/// State that outlives a boot: copies of conflists as found, and the journal of changes.
pub(crate) const LASTING_DIR: &str = "/var/lib/symroute";

/// State of this boot: attachments, the node record, the lock. With systemd it is a tmpfs, so a
/// reboot removes it together with the kernel's rules.
pub(crate) const STATE_DIR: &str = "/run/symroute";
/// Maximum processor time in seconds of the work in a pod's namespace, and of each iptables program
/// that it starts.
pub(crate) const CPU_OF_POD: u64 = 30;
/// Maximum number of interfaces of a pod. The plugin refuses a pod with more, because it has to
/// read each.
pub(crate) const LINKS_OF_POD: usize = 1024;
/// Maximum number of addresses of a pod. The plugin refuses a pod with more.
pub(crate) const ADDRESSES_OF_POD: usize = 4096;
/// Maximum number of other programs' rules in a pod. The plugin refuses a pod with more.
pub(crate) const RULES_OF_POD: usize = 4096;
/// Maximum number of other programs' routes in a pod, counted by hops. The plugin refuses a pod
/// with more. Only these count: routes of main, default routes, on-link routes, and tables that
/// rules name by an address of the pod.
pub(crate) const ROUTES_OF_POD: usize = 16_384;
/// Maximum number of routers of a pod's interface that get distinguished.
pub(crate) const ROUTERS_OF_POD: usize = 32;
/// Maximum number of networks behind a pod's uplinks that get a rule.
pub(crate) const NETWORKS_OF_POD: usize = 128;
/// Directory below [`STATE_DIR`] with a folder for each pod that has its own data plane.
pub(crate) const PODS_DIR: &str = "netns";
/// Name of the plugin's program, as the kernel reports it for a process.
pub(crate) const PROGRAM: &str = "symroute";
/// Name of the command line tool's program, as the kernel reports it for a process.
pub(crate) const TOOL: &str = "symroutectl";
/// Directory of the tool, unless the operator gave install.sh another one.
pub(crate) const TOOL_DIR: &str = "/usr/local/bin";
/// Default of `log.file`.
pub(crate) const LOG_FILE: &str = "/var/log/symroute.log";
