//! Errors of work on a node. Each text names the operation, the object and the remedy.

use std::fmt;
use std::io;

use nix::errno::Errno;

use crate::config::Invalid;
use crate::netlink;
use crate::state;

/// Error of work on a node or in a pod's network namespace.
#[derive(Debug)]
pub(crate) enum Error {
    /// A setting is wrong or can't be kept on this node. Nothing has changed.
    Config(Invalid),
    /// Another network is in force with a different setting. Nothing has changed.
    Disagreement {
        /// The key on which the two disagree.
        key: String,
        /// Name and value of the network that asks.
        asks: (String, String),
        /// Name and value of the network in force.
        in_force: (String, String),
    },
    Kernel {
        /// The operation and its object: `add rule 402`.
        operation: String,
        source: netlink::Error,
    },
    Sysctl {
        path: String,
        source: io::Error,
    },
    Iptables {
        operation: String,
        message: String,
    },
    /// Another process holds the lock of iptables-legacy, `/run/xtables.lock`.
    XtablesLock {
        /// Process id of the holder, if known.
        holder: Option<u32>,
        /// Time spent waiting.
        seconds: u64,
    },
    /// The network namespace of a pod can't be opened or entered.
    Namespace {
        path: String,
        source: io::Error,
    },
    /// The directory of a pod's network namespace does not exist here, as in a container without it.
    NamespaceNotVisible(String),
    /// The namespace at this path is not that of a pod.
    NotAPod(String),
    /// A pod has more objects of one kind than the limit.
    TooMany {
        /// Kind of the objects, in the plural.
        what: &'static str,
        count: usize,
        most: usize,
    },
    /// A file of the state can't be read or written.
    State(state::Error),
    /// Another process reconciles the node.
    Busy {
        /// Process id of the holder, if known.
        holder: Option<u32>,
        /// Time spent waiting.
        seconds: u64,
    },
}

impl Error {
    /// Error constructor for `map_err`: the kernel refused `operation`.
    pub(crate) fn kernel(operation: impl Into<String>) -> impl FnOnce(netlink::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Kernel { operation, source }
    }

    /// Error constructor for `map_err`: the network namespace at `path` can't be opened or entered.
    pub(crate) fn namespace(path: &str) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Namespace { path: path.into(), source }
    }

    /// Whether the running kernel lacks a feature: it is not built in, and no module provides it.
    pub(crate) fn is_of_kernel(&self) -> bool {
        let Self::Kernel { source, .. } = self else { return false };
        matches!(source.errno, Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT)
    }

    /// The remedy, unless the message already contains it.
    pub(crate) fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Kernel { source, .. } => match source.errno {
                Errno::EPERM | Errno::EACCES => {
                    Some("run as root, or with the capability CAP_NET_ADMIN")
                }
                _ if self.is_of_kernel() => Some(
                    "the kernel lacks a part: it needs nf_tables with family inet, fib and ct, or \
                     else ip_set with hash:ip and hash:net, and \"backend\": \"iptables\"",
                ),
                Errno::ETIMEDOUT => Some(
                    "the pod's owner has to remove routes, rules or sets from the pod's network \
                     namespace",
                ),
                Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR => Some("try again"),
                _ => Some("see the kernel's message; \"symroutectl status\" shows what is there"),
            },
            Self::State(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some("run as root")
            }
            Self::Sysctl { .. } => Some("mount /proc/sys writable and run as root"),
            Self::State(_) => Some("make /run/symroute writable for root"),
            Self::Iptables { .. } => Some(
                "install iptables and the kernel's parts for set, conntrack, mark, connmark and \
                 rpfilter, or set \"backend\": \"nftables\"",
            ),
            Self::Busy { .. } | Self::XtablesLock { .. } => {
                Some("try again; if it lasts, see what that process waits for")
            }
            Self::Namespace { .. } => {
                Some("run as root, with the capabilities CAP_SYS_ADMIN and CAP_SYS_PTRACE")
            }
            Self::NamespaceNotVisible(_) => {
                Some("run \"symroutectl down --force\" on the node, or end the pod")
            }
            Self::NotAPod(_) => Some(
                "the path has to lead to the network namespace of a pod that runs, not to the node's",
            ),
            Self::TooMany { .. } => Some("\"scope\": \"host\" does not look into pods"),
            Self::Config(_) | Self::Disagreement { .. } => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(invalid) => invalid.fmt(f),
            Self::Disagreement { key, asks, in_force } => write!(
                f,
                "network \"{}\" sets \"{key}\": {}, but network \"{}\" is in force on this node \
                 with \"{key}\": {}; give both the same value",
                asks.0, asks.1, in_force.0, in_force.1,
            ),
            Self::Kernel { operation, source } => write!(f, "{operation}: {source}"),
            Self::Sysctl { path, source } => write!(f, "{path}: {source}"),
            Self::State(error) => error.fmt(f),
            Self::Namespace { path, source } => {
                write!(f, "enter the network namespace {path}: {source}")
            }
            Self::NamespaceNotVisible(path) => write!(
                f,
                "the network namespace {path} can't be seen from here: that pod keeps its data plane"
            ),
            Self::NotAPod(path) => write!(f, "{path}: not the network namespace of a pod"),
            Self::TooMany { what, count, most } => {
                write!(f, "the pod has {count} {what}, and no more than {most} are looked at")
            }
            Self::Iptables { operation, message } => write!(f, "{operation}: {message}"),
            Self::Busy { holder, seconds } => {
                let by = holder_name(*holder);
                write!(f, "the node is being reconciled by {by}; waited {seconds} s")
            }
            Self::XtablesLock { holder, seconds } => {
                let by = holder_name(*holder);
                write!(f, "/run/xtables.lock is held by {by}; waited {seconds} s")
            }
        }
    }
}

fn holder_name(process: Option<u32>) -> String {
    process.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Kernel { source, .. } => Some(source),
            Self::Sysctl { source, .. } | Self::Namespace { source, .. } => Some(source),
            Self::State(error) => error.source(),
            _ => None,
        }
    }
}

/// Turns the error "not found" into `None`.
pub(crate) fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Config(invalid)
    }
}

impl From<state::Error> for Error {
    fn from(error: state::Error) -> Self {
        Self::State(error)
    }
}
