//! What a look is denied: a user without root may not read nftables, ipsets and iptables.

use nix::errno::Errno;

use crate::error::Error;

/// What could not be read, and why. A state that can't be read is an error: whether symroute is in
/// force is not known then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unseen {
    /// Whether what is denied is noted; otherwise it is an error.
    is_noted: bool,
    rules: Option<String>,
}

impl Unseen {
    /// Notes what is denied.
    pub(crate) fn noted() -> Self {
        Self { is_noted: true, rules: None }
    }

    /// Whether nftables, ipsets or the rules of iptables could not be read.
    pub(crate) fn hides_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// What was read of the rules, or the default value with a note where the reader may not read them.
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

    /// The same as a line of its own for a person.
    pub(crate) fn text(&self) -> String {
        self.line().map_or_else(String::new, |line| format!("cannot see {line}\n"))
    }
}

/// Whether root could have done it.
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
