//! Sets up what a container sees when it starts: the root, bind mounts, /proc, /sys, /dev.

use super::gofer::GoferFs;
use super::overlay::Overlay;
use super::tmpfs::{Reopen, TmpFs, TmpInode, TmpOptions};
use super::vfs::{Dentry, LookupFlags, Mount, MountFlags, MountNamespace, Path, Resolver, RootRef, SuperBlock};
use super::*;
use crate::error::{Errno, Result};
use crate::kernel::{cred, Cred, Kernel};
use protocol::Client;
use std::sync::Arc;

/// A tree of the Gofer and where it goes.
#[derive(Clone, Debug)]
pub struct TreeMount {
    /// Name to attach to.
    pub name: String,
    /// Absolute.
    pub target: Vec<u8>,
    pub read_only: bool,
}

#[derive(Clone, Debug)]
pub struct RootOptions {
    /// The first is the root.
    pub trees: Vec<TreeMount>,
    /// Writes to the root stay in memory.
    pub overlay: bool,
    /// Nobody outside changes the root while the sandbox runs.
    pub exclusive: bool,
    /// The first process's user.
    pub user: u32,
}

/// Builds the tree, makes it the kernel's mount namespace and returns its root.
pub fn build_root(kernel: &Arc<Kernel>, client: &Client, options: &RootOptions) -> Result<Path> {
    let reopen: Arc<Reopen> = {
        let client = client.clone();
        Arc::new(move |fd| client.reopen_read_only(fd))
    };
    let (root_tree, binds) = options.trees.split_first().ok_or(Errno::EINVAL)?;
    let mut flags = MountFlags::RELATIME;
    flags.set(MountFlags::RDONLY, root_tree.read_only && !options.overlay);
    let lower = GoferFs::attach(client, &root_tree.name, options.exclusive || options.overlay)?;
    let root = if options.overlay {
        let upper = TmpFs::root(&TmpOptions { first_ino: 1 << 40, ..TmpOptions::default() }, Some(reopen.clone()));
        Mount::of(Overlay::root(upper, lower)?, SuperBlock::new("overlay", b"overlay", String::new()), flags)?
    } else {
        Mount::of(lower, SuperBlock::new("gofer", root_tree.name.as_bytes(), String::new()), flags)?
    };
    let ns = MountNamespace::new(root);
    let shm = Dentry::root(
        TmpFs::root(&TmpOptions::default(), Some(reopen.clone())),
        &SuperBlock::new("tmpfs", b"tmpfs", String::new()),
    )?;
    // A second boot does not happen; the first value stays.
    let _ = kernel.shm.set(Path::new(Mount::new(shm.clone(), MountFlags::empty()), shm));
    let _ = kernel.reopen.set(reopen.clone());
    let b = Builder { ns: ns.clone(), cred: Cred::user(0, 0, Vec::new(), cred::CAP_ALL) };
    let guarded = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
    b.mount(b"/proc", pseudo("proc", super::proc::new(kernel), guarded)?);
    let sys = pseudo("sysfs", super::sys::new(kernel), guarded | MountFlags::RDONLY)?;
    b.mount(b"/sys", sys);
    b.mount(b"/dev", dev(&reopen, options.user)?);
    b.mount(b"/dev/pts", pseudo("devpts", super::tty::devpts::new(kernel), MountFlags::NOSUID | MountFlags::NOEXEC)?);
    let shm = TmpOptions { mode: 0o1777, ..TmpOptions::default() };
    b.mount(b"/dev/shm", TmpFs::mount(&shm, guarded - MountFlags::NOEXEC, Some(reopen))?);
    for t in binds {
        let mut flags = MountFlags::RELATIME;
        flags.set(MountFlags::RDONLY, t.read_only);
        b.mount(&t.target, GoferFs::mount(client, &t.name, false, flags)?);
    }
    let path = ns.root();
    *kernel.mounts.write() = Some(ns);
    Ok(path)
}

fn pseudo(kind: &'static str, root: Arc<dyn Inode>, flags: MountFlags) -> Result<Arc<Mount>> {
    Mount::of(root, SuperBlock::new(kind, kind.as_bytes(), String::new()), flags)
}

/// /dev is a small tmpfs, so that programs can add to it.
fn dev(reopen: &Arc<Reopen>, user: u32) -> Result<Arc<Mount>> {
    let options = TmpOptions { size: 64 << 20, mode: 0o755, ..TmpOptions::default() };
    let root = TmpFs::root(&options, Some(reopen.clone()));
    for &(name, mode, gid, major, minor) in super::dev::NODES {
        let uid = if name == "console" { user } else { 0 };
        root.create(name.as_bytes(), NewNode::Char(libc::makedev(major, minor)), mode, uid, gid)?;
    }
    for &(name, target) in super::dev::LINKS {
        root.create(name.as_bytes(), NewNode::Symlink(target.as_bytes()), 0o777, 0, 0)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        root.create(name.as_bytes(), NewNode::Dir, 0o755, 0, 0)?;
    }
    let sb = SuperBlock::new("tmpfs", b"tmpfs", "size=65536k,mode=755".into());
    Mount::of(root, sb, MountFlags::NOSUID | MountFlags::RELATIME)
}

struct Builder {
    ns: Arc<MountNamespace>,
    cred: Cred,
}

impl Builder {
    fn find(&self, path: &[u8]) -> Result<Path> {
        let root = self.ns.root();
        Resolver::new(&self.cred, RootRef::Fixed(root.clone()), LookupFlags::FOLLOW | LookupFlags::IN_ROOT)
            .resolve(root, path)
    }
    /// The place to mount on, made if the tree lacks it and can be changed.
    fn place(&self, target: &[u8], dir: bool) -> Result<Path> {
        match self.find(target) {
            Err(Errno::ENOENT) => {}
            r => return r,
        }
        let names: Vec<&[u8]> = target.split(|&b| b == b'/').filter(|n| !n.is_empty()).collect();
        let mut at = self.ns.root();
        let mut so_far = Vec::new();
        for (i, name) in names.iter().enumerate() {
            so_far.push(b'/');
            so_far.extend_from_slice(name);
            at = match self.find(&so_far) {
                Ok(p) => p,
                Err(Errno::ENOENT) => {
                    let last = i + 1 == names.len();
                    let node = if last && !dir { NewNode::File } else { NewNode::Dir };
                    vfs::ops::create(&at, name, node, if last && !dir { 0o644 } else { 0o755 }, &self.cred, false)?
                }
                Err(e) => return Err(e),
            };
        }
        Ok(at)
    }
    /// Mounts, or says why not: a root that lacks the place and cannot be changed goes without.
    fn mount(&self, target: &[u8], mount: Arc<Mount>) {
        let dir = mount.root_dentry().is_dir();
        let r = self.place(target, dir).and_then(|p| self.ns.mount(&mount, &p));
        if let Err(e) = r {
            log::warn!("cannot mount {} in the sandbox: {}", String::from_utf8_lossy(target), e.desc());
        }
    }
}

/// memfd_create(2).
pub fn memfd(kernel: &Kernel, name: &[u8], mode: u32, sealing: bool, cred: &Cred) -> Result<Arc<File>> {
    let home = kernel.shm.get().ok_or(Errno::ENOSYS)?;
    let root: &TmpInode = home.inode().as_any().downcast_ref().ok_or(Errno::ENOSYS)?;
    let inode = root.node(&NewNode::File, mode, cred.fsuid, cred.fsgid, None)?;
    inode.forget_name();
    inode.allow_sealing(sealing);
    let mut shown = b"memfd:".to_vec();
    shown.extend_from_slice(name);
    let d = home.dentry().nameless(inode.clone(), &shown)?;
    let ops = inode.open(libc::O_RDWR)?;
    Ok(File::new(ops, libc::O_RDWR, Some(Path::new(home.mount().clone(), d))))
}
