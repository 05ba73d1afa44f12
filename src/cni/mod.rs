//! The CNI protocol, seen from the runtime: environment and stdin in, one document on stdout and
//! an exit code out. Specification: CNI 1.1.0; the order of checks is in docs/design.md.

mod add;
mod del;
mod error;
mod request;
mod result;

use std::io::{self, Read, Write};
use std::process::ExitCode;

pub use error::{Code, Failure};
pub use request::{Command, Environment, Request};

/// Versions of the protocol that we speak, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version of an answer to a request whose own version is not known.
const LATEST: &str = "1.1.0";
/// Most that is read from stdin.
const STDIN_MAX: u64 = 16 * 1024 * 1024;

/// Answers one call of a runtime.
#[must_use]
pub fn run(environment: &Environment) -> ExitCode {
    let answer = read_stdin().and_then(|stdin| answer(environment, &stdin));
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err((version, failure)) => {
            log::error!("{}: {failure}", environment.command);
            (failure.to_json(&version), ExitCode::FAILURE)
        }
    };
    // A runtime that has gone away reads nothing; there is nobody to tell.
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    code
}

/// A failure with the version in which it is to be told.
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
        return Ok(version(stdin));
    }
    let with = |version: &str| {
        let version = version.to_string();
        move |failure| (version, failure)
    };
    let command = environment.check().map_err(with(LATEST))?;
    let request = Request::parse(command, environment, stdin).map_err(|f| with(f.0)(f.1))?;
    let told = with(&request.version);
    match command {
        Command::Add => add::add(&request).map_err(told),
        Command::Del => {
            del::del(&request);
            Ok(String::new())
        }
    }
}

/// The answer to VERSION: the version asked for, and all that we speak. Looks at nothing else and
/// takes an empty stdin.
fn version(stdin: &[u8]) -> String {
    let asked = serde_json::from_slice::<serde_json::Value>(stdin)
        .ok()
        .and_then(|value| value.get("cniVersion")?.as_str().map(str::to_string));
    let version = asked.unwrap_or_else(|| LATEST.to_string());
    serde_json::json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string()
}
