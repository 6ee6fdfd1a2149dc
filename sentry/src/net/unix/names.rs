//! Names of AF_UNIX sockets: paths, abstract names, or none.

use crate::error::{Errno, Result};
use crate::fs::vfs::walk::{self, LookupFlags};
use crate::fs::vfs::{ops, perm, Path as Place};
use crate::fs::NewNode;
use crate::kernel::Task;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

const PATH_AT: usize = 2;
/// `sun_path`.
const SUN_PATH: usize = 108;

/// A bound socket, whatever its type.
pub type Bound = Weak<dyn Any + Send + Sync>;

/// The abstract names in use.
#[derive(Default)]
pub struct Names {
    taken: Mutex<HashMap<Vec<u8>, Bound>>,
    last_auto: Mutex<u32>,
}

/// The bound socket, attached to its inode.
struct AtInode(Mutex<Bound>);

/// A parsed `sockaddr_un`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// The family only: bind(2) picks an abstract name.
    Auto,
    Path(Vec<u8>),
    /// With the leading NUL.
    Abstract(Vec<u8>),
}

impl Name {
    pub fn parse(addr: &[u8]) -> Result<Name> {
        if addr.len() < PATH_AT || addr.len() > PATH_AT + SUN_PATH {
            return Err(Errno::EINVAL);
        }
        if u16::from_ne_bytes([addr[0], addr[1]]) != libc::AF_UNIX as u16 {
            return Err(Errno::EINVAL);
        }
        let rest = &addr[PATH_AT..];
        Ok(match rest.first() {
            None => Name::Auto,
            Some(0) => Name::Abstract(rest.to_vec()),
            Some(_) => Name::Path(rest.split(|&b| b == 0).next().unwrap_or(rest).to_vec()),
        })
    }
    /// The name as `getsockname(2)` reports it.
    pub fn sockaddr(&self) -> Arc<[u8]> {
        let mut v = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
        match self {
            Name::Auto => {}
            Name::Abstract(n) => v.extend_from_slice(n),
            Name::Path(p) => {
                v.extend_from_slice(p);
                v.push(0);
            }
        }
        v.into()
    }
}

/// The `sockaddr` of a socket without a name.
pub fn unnamed() -> Vec<u8> {
    (libc::AF_UNIX as u16).to_ne_bytes().to_vec()
}

impl Names {
    /// Binds `sock` to `name`. Returns the name and, for a path, its place in the file system. The socket must hold on
    /// to that place: lookups find the socket through its inode, which could be evicted otherwise. `mode`: the socket's
    /// own, which fchmod(2) may have changed.
    pub fn bind(&self, task: &Task, name: Name, sock: Bound, mode: u32) -> Result<(Name, Option<Place>)> {
        match name {
            Name::Path(p) => {
                let mode = ops::NewMode { mode: mode & 0o7777, umask: task.fs().lock().umask };
                let parent = walk::resolve_parent(task, libc::AT_FDCWD, &p, LookupFlags::empty())?;
                let last = parent.name(Errno::EADDRINUSE)?;
                let made = ops::create(&parent.dir, last, NewNode::Socket, mode, &task.cred(), parent.slash);
                let place = made.map_err(|e| if e == Errno::EEXIST { Errno::EADDRINUSE } else { e })?;
                let extra = place.inode().extra().ok_or(Errno::EPERM)?;
                let at = extra.get_or_insert(|| AtInode(Mutex::new(sock.clone())));
                *at.0.lock() = sock;
                Ok((Name::Path(p), Some(place)))
            }
            Name::Abstract(n) => {
                let mut t = self.taken.lock();
                if t.get(&n).is_some_and(|s| s.strong_count() > 0) {
                    return Err(Errno::EADDRINUSE);
                }
                t.insert(n.clone(), sock);
                Ok((Name::Abstract(n), None))
            }
            Name::Auto => {
                let mut t = self.taken.lock();
                let mut last = self.last_auto.lock();
                for _ in 0..=0xfffffu32 {
                    *last = (*last + 1) & 0xfffff;
                    let mut n = vec![0];
                    n.extend_from_slice(format!("{:05x}", *last).as_bytes());
                    if t.get(&n).is_none_or(|s| s.strong_count() == 0) {
                        t.insert(n.clone(), sock);
                        return Ok((Name::Abstract(n), None));
                    }
                }
                Err(Errno::ENOSPC)
            }
        }
    }

    /// Frees an abstract name if `sock` holds it.
    pub fn release(&self, name: &Name, sock: &Bound) {
        if let Name::Abstract(n) = name {
            let mut t = self.taken.lock();
            if t.get(n).is_some_and(|s| Weak::ptr_eq(s, sock)) {
                t.remove(n);
            }
        }
    }

    /// The socket that is bound to `name`.
    pub fn find(&self, task: &Task, name: &Name) -> Result<Arc<dyn Any + Send + Sync>> {
        match name {
            Name::Auto => Err(Errno::EINVAL),
            Name::Abstract(n) => {
                let found = self.taken.lock().get(n).and_then(Weak::upgrade);
                found.ok_or(Errno::ECONNREFUSED)
            }
            Name::Path(p) => {
                let place = walk::resolve(task, libc::AT_FDCWD, p, LookupFlags::FOLLOW)?;
                perm::permission(&place, &task.cred(), perm::MAY_WRITE)?;
                if place.kind() != libc::S_IFSOCK {
                    return Err(Errno::ECONNREFUSED);
                }
                let at = place.inode().extra().and_then(|e| e.get::<AtInode>()).ok_or(Errno::ECONNREFUSED)?;
                let found = at.0.lock().upgrade();
                found.ok_or(Errno::ECONNREFUSED)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let mut a = vec![1, 0];
        assert_eq!(Name::parse(&a), Ok(Name::Auto));
        a.extend_from_slice(b"/run/x\0junk");
        let n = Name::parse(&a).unwrap();
        assert_eq!(n, Name::Path(b"/run/x".to_vec()));
        assert_eq!(&*n.sockaddr(), b"\x01\0/run/x\0");
        assert_eq!(Name::parse(b"\x01\0\0ab\0"), Ok(Name::Abstract(b"\0ab\0".to_vec())));
        assert_eq!(Name::parse(b"\x02\0ab"), Err(Errno::EINVAL));
        assert_eq!(Name::parse(&[1; 111]), Err(Errno::EINVAL));
    }
}
