//! Which attachment an address belongs to now. A late DEL of the attachment that had it before
//! must not take it from the pod that has it since.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::symlink;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{Attachment, Error, State, absent_is_none};

impl State {
    /// Makes the attachment whose file has this name the owner of an address.
    pub(super) fn own(&self, address: IpAddr, name: &str) -> Result<(), Error> {
        let address = address.to_string();
        // As it is for a new pod: the address is nobody's, and a link is there at once or not.
        if symlink(name, self.path(&["owners", &address])).is_ok() {
            return Ok(());
        }
        self.place("owners", &address, name, |temporary| {
            match symlink(name, temporary) {
                // Of a call that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    fs::remove_file(temporary).and_then(|()| symlink(name, temporary))
                }
                other => other,
            }
        })
    }

    /// Ends an attachment's ownership. False if the address belongs to another one by now: then
    /// it has to stay enrolled.
    pub fn disown(&self, address: IpAddr, name: &str) -> Result<bool, Error> {
        let folder = self.path(&["owners"]);
        let path = folder.join(address.to_string());
        // Removing what was looked at would hit an owner that comes in between. So the link is
        // taken away first, looked at again, and put back if it is another's by then.
        let taken = folder.join(format!(".{name}-{address}"));
        match absent_is_none(fs::read_link(&path)).map_err(Error::at("read", &path))? {
            Some(owner) if owner.as_os_str() != name => return Ok(false),
            Some(_) => {
                let moved = absent_is_none(fs::rename(&path, &taken));
                if moved.map_err(Error::at("move", &path))?.is_none() {
                    return Ok(true);
                }
            }
            // Nothing to take, unless a call like this one was killed half-way.
            None => {}
        }
        let Some(owner) =
            absent_is_none(fs::read_link(&taken)).map_err(Error::at("read", &taken))?
        else {
            return Ok(true);
        };
        let mine = owner.as_os_str() == name;
        if !mine {
            let _ = renameat2(AT_FDCWD, &taken, AT_FDCWD, &path, RenameFlags::RENAME_NOREPLACE);
        }
        Self::remove(&taken)?;
        Ok(mine)
    }

    /// The attachment that an address belongs to.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<Attachment> {
        let name = fs::read_link(self.path(&["owners", &address.to_string()])).ok()?;
        let text = Self::read(&self.path(&["pods"]).join(name)).ok()??;
        Attachment::from_json(&text)
    }

    /// Removes links to attachments that are no more.
    pub(super) fn sweep_owners(&self) -> Result<(), Error> {
        for address in self.list("owners")? {
            let path = self.path(&["owners", &address]);
            let Ok(owner) = fs::read_link(&path) else {
                continue;
            };
            let gone = !self.path(&["pods"]).join(&owner).exists();
            if let (true, Some(name), Ok(address)) = (gone, owner.to_str(), address.parse()) {
                self.disown(address, name)?;
            }
        }
        Ok(())
    }
}
