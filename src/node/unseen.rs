//! Rules that a reader may not see: a user without root may not read nftables, ipsets and iptables.

use nix::errno::Errno;

use crate::error::Error;

/// What could not be read, and why. An unreadable state directory is always an error: then nothing shows
/// whether symroute is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unseen {
    /// Whether denied reads are noted. Otherwise they are errors.
    is_noted: bool,
    rules: Option<String>,
}

impl Unseen {
    /// A value that notes denied reads instead of failing.
    pub(crate) fn noted() -> Self {
        Self { is_noted: true, rules: None }
    }

    /// Whether nftables, ipsets or the rules of iptables could not be read.
    pub(crate) fn hides_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// Passes a result on. A denied read becomes a note and the default value.
    pub(super) fn rules<T: Default>(&mut self, read: Result<T, Error>) -> Result<T, Error> {
        match read {
            Err(error) if self.is_noted && is_denied(&error) => {
                self.rules.get_or_insert_with(|| error.to_string());
                Ok(T::default())
            }
            other => other,
        }
    }

    /// What could not be seen, why, and the remedy.
    pub(crate) fn line(&self) -> Option<String> {
        let why = self.rules.as_ref()?;
        Some(format!("the rules of nftables and iptables: {why}; run as root"))
    }

    /// [`Self::line`] as a line of output; empty if everything was seen.
    pub(crate) fn text(&self) -> String {
        self.line().map_or_else(String::new, |line| format!("cannot see {line}\n"))
    }
}

/// Whether the kernel denied the call for lack of rights.
fn is_denied(error: &Error) -> bool {
    match error {
        Error::Kernel { source, .. } => matches!(source.errno, Errno::EPERM | Errno::EACCES),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink;

    #[test]
    fn only_a_look_may_be_denied_something() {
        let denied = |errno: Errno| {
            Err::<Option<u8>, _>(Error::kernel("list tables")(netlink::Error::from(errno)))
        };
        assert!(Unseen::default().rules(denied(Errno::EPERM)).is_err());
        let mut unseen = Unseen::noted();
        assert!(unseen.rules(denied(Errno::ENOBUFS)).is_err());
        assert!(!unseen.hides_rules() && unseen.text().is_empty());
        assert!(matches!(unseen.rules(denied(Errno::EPERM)), Ok(None)));
        assert!(unseen.hides_rules());
        let wanted = "cannot see the rules of nftables and iptables: list tables: Operation not \
                      permitted; run as root\n";
        assert_eq!(unseen.text(), wanted);
    }
}
