//! CNI errors: `{cniVersion, code, msg, details}` on stdout. A user sees `msg; details` in the
//! pod's events and nothing else, so the cause and the way out are in there.

use std::fmt;

use serde_json::json;

use crate::error::Error;
use crate::process::cut;

/// No part of an answer is longer, whatever the runtime or a pod has passed: it ends up in events.
const MOST: usize = 2048;

/// Error codes. Source: CNI specification 1.1.0, section "Error"; 8 is libcni's
/// `ErrInvalidNetNS`; 100 and above are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The version of the protocol is not one of ours.
    IncompatibleVersion = 1,
    /// A necessary variable is missing or wrong.
    Environment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The content can't be decoded.
    Decode = 6,
    Config = 7,
    /// The network namespace is not the pod's.
    NetworkNamespace = 8,
    /// Something passing is in the way.
    TryAgain = 11,
    /// No ADD could succeed (answer to STATUS).
    Unavailable = 50,
    Kernel = 100,
    /// A file of ours could not be read or written.
    State = 101,
    /// The pod is not served as ADD left it (answer to CHECK).
    NotAsAdded = 102,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) msg: String,
    /// The way out, or more about the cause.
    pub(crate) details: String,
}

impl Failure {
    pub(crate) fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: cut(msg, MOST), details: String::new() }
    }

    /// The same with details.
    pub(crate) fn with(self, details: impl Into<String>) -> Self {
        Self { details: cut(details, MOST), ..self }
    }

    /// The document for stdout.
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
            Error::Namespace { .. } | Error::NoPod(_) | Error::OutOfSight(_) => {
                Code::NetworkNamespace
            }
            Error::Busy { .. } | Error::XtablesLock { .. } => Code::TryAgain,
        };
        Self::new(code, format!("symroute: {error}")).with(error.way_out().unwrap_or_default())
    }
}
