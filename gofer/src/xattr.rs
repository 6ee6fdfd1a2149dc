//! Extended attributes.
//!
//! Only some are served. Attributes that the kernel itself interprets are not for a guest to set on the host:
//! `security.capability` would make a program privileged there, `trusted.*` controls overlayfs.

use std::os::fd::OwnedFd;

use protocol::wire::Writer;
use protocol::{Fid, FileKind, XattrMode};
use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use crate::server::{Answer, Server};
use crate::sys;

/// Names and namespaces that can be read, and whether they can be set, too.
const SERVED: &[(&[u8], bool)] = &[
    (b"user.", true),
    (b"security.capability", false),
    (b"system.posix_acl_access", true),
    (b"system.posix_acl_default", true),
];

fn served(name: &[u8], to_set: bool) -> bool {
    SERVED.iter().any(|(prefix, settable)| {
        let matches = if prefix.ends_with(b".") {
            name.starts_with(prefix) && name.len() > prefix.len()
        } else {
            name == *prefix
        };
        matches && (*settable || !to_set)
    })
}

impl Server {
    pub(crate) fn get_xattr(&mut self, fid: Fid, name: &[u8], w: &mut Writer<'_>) -> Answer {
        if !served(name, false) {
            return Err(Errno::OPNOTSUPP);
        }
        let n = match self.open_for_xattr(fid, false)? {
            Some(fd) => rustix::fs::fgetxattr(fd, name, &mut self.listing.room.scratch[..])?,
            None => {
                let file = self.fids.get(fid)?;
                if file.kind == FileKind::Symlink || !name.starts_with(b"system.") {
                    return Err(Errno::NODATA);
                }
                sys::xattr_of_held(&file.fd, name, &mut self.listing.room.scratch)?
            }
        };
        w.long_bytes(self.listing.room.scratch.get(..n).ok_or(Errno::RANGE)?);
        Ok(None)
    }

    pub(crate) fn set_xattr(&mut self, fid: Fid, name: &[u8], value: &[u8], mode: XattrMode) -> Answer {
        if !served(name, true) {
            return Err(Errno::OPNOTSUPP);
        }
        let flags = match mode {
            XattrMode::Any => XattrFlags::empty(),
            XattrMode::Create => XattrFlags::CREATE,
            XattrMode::Replace => XattrFlags::REPLACE,
        };
        let fd = self.open_for_xattr(fid, true)?.ok_or(Errno::PERM)?;
        rustix::fs::fsetxattr(fd, name, value, flags)?;
        Ok(None)
    }

    pub(crate) fn list_xattr(&mut self, fid: Fid, w: &mut Writer<'_>) -> Answer {
        let n = match self.open_for_xattr(fid, false)? {
            Some(fd) => rustix::fs::flistxattr(fd, &mut self.listing.room.scratch[..])?,
            None => 0,
        };
        let mut names = Vec::with_capacity(n);
        for name in
            self.listing.room.scratch.get(..n).unwrap_or(&[]).split(|&b| b == 0).filter(|name| served(name, false))
        {
            names.extend_from_slice(name);
            names.push(0);
        }
        w.long_bytes(&names);
        Ok(None)
    }

    pub(crate) fn remove_xattr(&mut self, fid: Fid, name: &[u8]) -> Answer {
        if !served(name, true) {
            return Err(Errno::OPNOTSUPP);
        }
        let fd = self.open_for_xattr(fid, true)?.ok_or(Errno::PERM)?;
        rustix::fs::fremovexattr(fd, name)?;
        Ok(None)
    }

    /// Returns a descriptor for the attribute calls, which take none of `O_PATH`. `None` for nodes other than files
    /// and directories: Linux has no `user.*` attributes there. (They may have an ACL, which is read without opening
    /// them.)
    fn open_for_xattr(&self, fid: Fid, to_set: bool) -> Result<Option<OwnedFd>, Errno> {
        let file = self.fids.get(fid)?;
        if to_set {
            file.check_writable()?;
        }
        match file.kind {
            FileKind::Regular | FileKind::Directory => self.descriptors.reopen(&file.fd, OFlags::RDONLY).map(Some),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::served;

    #[test]
    fn attributes_that_the_host_interprets_cannot_be_set() {
        assert!(served(b"user.a", true) && served(b"user.a", false));
        assert!(served(b"security.capability", false) && !served(b"security.capability", true));
        assert!(served(b"system.posix_acl_access", true));
        assert!(!served(b"user.", false) && !served(b"user", false));
        for name in
            [&b"trusted.overlay.opaque"[..], b"security.selinux", b"security.capability2", b"system.posix_acl", b""]
        {
            assert!(!served(name, false) && !served(name, true));
        }
    }
}
