//! The CNI protocol, specification 1.1.0: reads environment and stdin, writes one document to stdout and
//! returns an exit code. docs/cni.md has the order of the checks.

mod add;
pub(crate) mod annotations;
mod check;
mod del;
mod error;
mod gc;
mod request;
pub(crate) mod result;
mod status;
pub(crate) mod version;

use std::io::{self, Read};

pub(crate) use error::{Code, Failure};
pub use request::Environment;
pub(crate) use request::{Command, Request};
pub(crate) use version::VERSIONS;

use crate::capabilities::{self, Capabilities};
use crate::process;
use version::LATEST;

/// Maximum length of stdin in bytes.
const STDIN_MAX: u64 = 16 * 1024 * 1024;

/// Answers one call of a runtime and returns the exit code.
#[must_use]
pub fn run(environment: &Environment) -> u8 {
    // The settings, which are read later, decide whether the call enters the pod's namespace.
    capabilities::keep_in_reserve(Capabilities::POD, Capabilities::NAMESPACES);
    let answer = read_stdin().and_then(|stdin| answer(environment, &stdin));
    let (text, code) = match answer {
        Ok(text) => (text, 0),
        Err((version, failure)) => {
            log::error!("{}: {failure}", environment.command);
            (failure.to_json(&version), 1)
        }
    };
    if let Err(error) = process::print(text.as_bytes()) {
        // The runtime has not got the answer, so it must not take the call for done.
        log::error!("{}: write the answer: {error}", environment.command);
        return 1;
    }
    if environment.command == Command::Add.name() && code == 0 {
        add::reconcile_if_overdue();
    }
    code
}

/// Keeps the capabilities to enter a pod's network namespace, or drops them for good.
fn settle_capabilities(enters: bool) {
    capabilities::keep(if enters { Capabilities::NAMESPACES } else { Capabilities::POD });
}

/// Logs errors that must not fail the call.
fn log_failures(request: &Request<'_>, failures: &[crate::error::Error]) {
    for error in failures {
        log::error!("{} ({}): {error}", request.key.container, request.key.ifname);
    }
}

/// The `cniVersion` of an error document, and the failure.
type Versioned = (String, Failure);

fn read_stdin() -> Result<Vec<u8>, Versioned> {
    let mut bytes = Vec::new();
    let fail = |code, text: String| (LATEST.to_string(), Failure::new(code, text));
    io::stdin()
        .lock()
        .take(STDIN_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| fail(Code::Io, format!("read the configuration from stdin: {error}")))?;
    if bytes.len() as u64 > STDIN_MAX {
        return Err(fail(Code::Decode, "the configuration on stdin exceeds 16 MiB".into()));
    }
    Ok(bytes)
}

fn answer(environment: &Environment, stdin: &[u8]) -> Result<String, Versioned> {
    if environment.command == "VERSION" {
        return Ok(versions(stdin));
    }
    let with = |version: &str| {
        let version = version.to_string();
        move |failure| (version, failure)
    };
    environment.check_presence().map_err(with(LATEST))?;
    let request = Request::parse(environment, stdin).map_err(with(LATEST))?;
    let with_version = with(&request.version);
    let silent = |outcome: Result<(), Failure>| outcome.map(|()| String::new());
    let outcome = request.command().and_then(|command| match command {
        Command::Add => add::add(&request),
        Command::Check => silent(check::check(&request)),
        Command::Gc => silent(gc::gc(&request)),
        Command::Status => silent(status::status(&request)),
        Command::Del => {
            del::del(&request);
            Ok(String::new())
        }
    });
    outcome.map_err(with_version)
}

/// The answer to VERSION: the `cniVersion` of the request and all versions that the plugin supports.
/// Accepts an empty or invalid stdin.
fn versions(stdin: &[u8]) -> String {
    let asked = serde_json::from_slice::<serde_json::Value>(stdin)
        .ok()
        .and_then(|value| value.get("cniVersion")?.as_str().map(str::to_string));
    let version = asked.unwrap_or_else(|| LATEST.to_string());
    serde_json::json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string()
}
