//! Files of namespaces (namespaces(7), ioctl_ns(2)): what the links in `/proc/PID/ns` lead to.
//!
//! Each is the root of a mount of its own that is nowhere. A bind mount of one, and an open file, keep the namespace
//! alive.

use super::types::*;
use super::vfs::{Dentry, Mount, MountFlags, Path, SuperBlock};
use super::{File, FileOps};
use crate::error::{Errno, Result, SysResult};
use crate::kernel::ns::{Namespace, NsKind};
use crate::kernel::Task;
use std::any::Any;
use std::sync::{Arc, LazyLock};

/// Device number of the file system, as the first of those without a device that Linux makes.
const DEV: u64 = 4;
const NSFS_MAGIC: u64 = 0x6e73_6673;

static SUPER: LazyLock<Arc<SuperBlock>> = LazyLock::new(|| SuperBlock::new("nsfs", b"nsfs", String::new()));

pub struct NsInode {
    ns: Namespace,
}

/// The namespace that a file is of.
pub fn of(path: &Path) -> Option<&Namespace> {
    path.inode().as_any().downcast_ref::<NsInode>().map(|i| &i.ns)
}

/// The place of a namespace's file.
pub fn path(ns: Namespace) -> Result<Path> {
    let root = Dentry::root(Arc::new(NsInode { ns }), &SUPER)?;
    Ok(Path::new(Mount::new(root.clone(), MountFlags::empty()), root))
}

/// A descriptor of a namespace for `task`.
fn install(task: &Task, ns: Namespace) -> SysResult<u64> {
    let place = path(ns)?;
    let ops = place.inode().clone().open(libc::O_RDONLY)?;
    Ok(task.install_fd(File::new(ops, libc::O_RDONLY, Some(place)), true)? as u64)
}

impl Inode for NsInode {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let ino = self.ns.common().inum;
        Ok(Attr { dev: DEV, ino, mode: libc::S_IFREG | 0o444, nlink: 1, blksize: 4096, ..Attr::default() })
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Ok(Box::new(NsFile { ns: self.ns.clone() }))
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { kind: NSFS_MAGIC, bsize: 4096, namelen: 255, ..StatFs::default() })
    }
    fn own_name(&self) -> Option<Vec<u8>> {
        Some(self.ns.name().into_bytes())
    }
}

/// An open namespace.
struct NsFile {
    ns: Namespace,
}

const NS_GET_USERNS: u32 = 0xb701;
const NS_GET_PARENT: u32 = 0xb702;
const NS_GET_NSTYPE: u32 = 0xb703;
const NS_GET_OWNER_UID: u32 = 0xb704;
/// `_IOR(NSIO, 5, __u64)`.
const NS_GET_MNTNS_ID: u32 = 0x8008_b705;

impl FileOps for NsFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn ioctl(&self, _file: &File, task: &Task, cmd: u32, arg: u64) -> SysResult<u64> {
        match cmd {
            NS_GET_NSTYPE => Ok(self.ns.kind().flag()),
            NS_GET_USERNS => {
                // That of a user namespace is its parent.
                let owner = match &self.ns {
                    Namespace::User(n) => n.parent_for(&task.cred())?,
                    other => other.common().owner(),
                };
                if !owner.visible_to(&task.cred()) {
                    return Err(Errno::EPERM.into());
                }
                install(task, Namespace::User(owner))
            }
            NS_GET_PARENT => install(task, self.ns.parent(task)?),
            NS_GET_OWNER_UID => match &self.ns {
                Namespace::User(n) => {
                    task.mem().write(arg, &n.owner_uid_for(&task.cred()))?;
                    Ok(0)
                }
                _ => Err(Errno::EINVAL.into()),
            },
            NS_GET_MNTNS_ID if self.ns.kind() == NsKind::Mnt => {
                task.mem().write(arg, &self.ns.common().inum)?;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY.into()),
        }
    }
}
