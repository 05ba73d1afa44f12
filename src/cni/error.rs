//! CNI errors: `{cniVersion, code, msg, details}` on stdout. A user sees only `msg; details` in the
//! pod's events, so the two contain the cause and the remedy.

use std::fmt;

use serde_json::json;

use crate::error::Error;
use crate::process::cut;

/// Maximum length of `msg` and of `details` in bytes: both end up in events, and the runtime or a pod
/// controls parts of them.
const MAX_TEXT_BYTES: usize = 2048;

/// Error codes of the CNI specification 1.1.0, section "Error"; 8 is libcni's `ErrInvalidNetNS`, and
/// those from 100 on are symroute's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The plugin does not support the version of the protocol.
    IncompatibleVersion = 1,
    /// A required variable is missing or wrong.
    Environment = 4,
    /// Reading stdin or writing stdout failed.
    Io = 5,
    /// The configuration can't be decoded.
    Decode = 6,
    Config = 7,
    /// The network namespace is not the pod's.
    NetworkNamespace = 8,
    /// Another process holds a lock.
    TryAgain = 11,
    /// No ADD can succeed (answer to STATUS).
    Unavailable = 50,
    Kernel = 100,
    /// A file of the node state can't be read or written.
    State = 101,
    /// The node does not serve the pod as ADD left it (answer to CHECK).
    NotAsAdded = 102,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) msg: String,
    /// The remedy, or more about the cause.
    pub(crate) details: String,
}

impl Failure {
    pub(crate) fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: cut(msg, MAX_TEXT_BYTES), details: String::new() }
    }

    /// Sets `details`, cut to the maximum length.
    pub(crate) fn with(self, details: impl Into<String>) -> Self {
        Self { details: cut(details, MAX_TEXT_BYTES), ..self }
    }

    /// The error document for stdout.
    pub(crate) fn to_json(&self, version: &str) -> String {
        json!({
            "cniVersion": version,
            "code": self.code as u32,
            "msg": self.msg,
            "details": self.details,
        })
        .to_string()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Config(_) | Error::Disagreement { .. } | Error::TooMany { .. } => Code::Config,
            Error::Kernel { .. } | Error::Sysctl { .. } | Error::Iptables { .. } => Code::Kernel,
            Error::State(_) => Code::State,
            Error::Namespace { .. } | Error::NotAPod(_) | Error::NamespaceNotVisible(_) => {
                Code::NetworkNamespace
            }
            Error::Busy { .. } | Error::XtablesLock { .. } => Code::TryAgain,
        };
        Self::new(code, format!("symroute: {error}")).with(error.remedy().unwrap_or_default())
    }
}
