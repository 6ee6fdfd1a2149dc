//! Sets up what a container sees when it starts: the root, bind mounts, /proc, /sys, /dev.

use super::fstype::{Config, Mounter, Type};
use super::gofer::GoferFs;
use super::overlay::Overlay;
use super::tmpfs::{Reopen, TmpFs, TmpInode, TmpOptions};
use super::vfs::{
    Dentry, LookupFlags, Mount, MountFlags, MountNamespace, Path, PropagationType, Resolver, RootRef, SuperBlock,
};
use super::*;
use crate::error::{Errno, Result, SysError};
use crate::ipc::IpcNamespace;
use crate::kernel::pid_ns::PidNs;
use crate::kernel::{cred, Cred, Kernel};
use crate::mm::io::Src;
use protocol::Client;
use std::sync::Arc;

/// What is mounted.
#[derive(Clone, Debug)]
pub enum Source {
    /// A tree of the Gofer's, by its name.
    Tree(String),
    /// A new file system of this type, as mount(2) names it.
    Type(&'static str),
    /// A small tmpfs with the device nodes that every container has.
    Dev,
    /// Another place of the guest's that is mounted already.
    Bind(Vec<u8>),
}

/// A mount of a container beside its root.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Absolute; made if it is missing.
    pub target: Vec<u8>,
    pub source: Source,
    /// Shown as its source.
    pub name: Vec<u8>,
    /// `MS_*` flags of mount(2), of propagation too.
    pub flags: u64,
    /// Options of the file system.
    pub data: Vec<u8>,
    /// A failure is an error; otherwise it is logged, and the container goes without.
    pub required: bool,
}

/// The file systems of a container.
#[derive(Clone, Debug)]
pub struct RootOptions {
    /// The Gofer's tree that is the root.
    pub tree: String,
    pub read_only: bool,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE` for the root, perhaps with `MS_REC`; 0: private.
    pub propagation: u64,
    /// Writes to the root stay in memory.
    pub overlay: bool,
    /// No other process changes the root while the sandbox runs.
    pub exclusive: bool,
    /// In this order.
    pub mounts: Vec<MountSpec>,
    /// Made after the mounts.
    pub devices: Vec<DeviceSpec>,
    /// Covered at last: a file by an empty one, a directory by an empty one. What is missing is skipped.
    pub masked_paths: Vec<Vec<u8>>,
    /// Made read-only at last. What is missing is skipped.
    pub read_only_paths: Vec<Vec<u8>>,
    /// Paths below `/proc/sys` (`net/ipv4/ip_forward`), and what is written there before the paths above are covered.
    pub sysctls: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first process's user, who owns `/dev/console`.
    pub user: u32,
}

/// A device node.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    pub path: Vec<u8>,
    /// Type and permissions.
    pub mode: u32,
    pub rdev: u64,
    pub uid: u32,
    pub gid: u32,
}

/// A mount that could not be made, and why.
#[derive(Debug)]
pub struct MountError {
    pub target: Vec<u8>,
    pub errno: Errno,
}

impl From<Errno> for MountError {
    fn from(errno: Errno) -> Self {
        MountError { target: b"/".to_vec(), errno }
    }
}

impl std::fmt::Display for MountError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mounting {}: {}", String::from_utf8_lossy(&self.target), self.errno.desc())
    }
}

/// Builds a container's tree of mounts. `pids`: what a procfs in it shows.
pub fn build_root(
    kernel: &Arc<Kernel>,
    client: &Client,
    options: &RootOptions,
    ipc: &Arc<IpcNamespace>,
    pids: &Arc<PidNs>,
) -> Result<Arc<MountNamespace>, MountError> {
    let reopen: Arc<Reopen> = {
        let client = client.clone();
        Arc::new(move |fd| client.reopen_read_only(fd))
    };
    let flags = MountFlags::RELATIME;
    let lower = GoferFs::attach(client, &options.tree, options.exclusive)?;
    let root = if options.overlay {
        let upper = TmpFs::root(&TmpOptions { first_ino: 1 << 40, ..TmpOptions::default() }, Some(reopen.clone()));
        Mount::of(Overlay::root(upper, lower)?, SuperBlock::new("overlay", b"overlay", String::new()), flags)?
    } else {
        Mount::of(lower, SuperBlock::new("gofer", options.tree.as_bytes(), String::new()), flags)?
    };
    let shm = Dentry::root(
        TmpFs::root(&TmpOptions::default(), Some(reopen.clone())),
        &SuperBlock::new("tmpfs", b"tmpfs", String::new()),
    )?;
    // Those of the first container serve all.
    let _ = kernel.shm.set(Path::new(Mount::new(shm.clone(), MountFlags::empty()), shm));
    let _ = kernel.reopen.set(reopen);
    let ns = MountNamespace::new(root.clone());
    let cred = Cred::user(0, 0, Vec::new(), cred::CAP_ALL);
    let b = Builder { ipc: ipc.clone(), pids: pids.clone(), ns: ns.clone(), cred };
    for m in &options.mounts {
        match b.mount_spec(kernel, client, options, m) {
            Err(errno) if m.required => return Err(MountError { target: m.target.clone(), errno }),
            Err(e) => {
                log::warn!("cannot mount {} in the sandbox: {}", String::from_utf8_lossy(&m.target), e.desc())
            }
            Ok(()) => {}
        }
    }
    let at = |target: &[u8]| {
        let target = target.to_vec();
        move |errno| MountError { target, errno }
    };
    for d in &options.devices {
        b.device(d).map_err(at(&d.path))?;
    }
    for (name, value) in &options.sysctls {
        let path = [b"/proc/sys/", name.as_slice()].concat();
        b.write(&path, value).map_err(at(&path))?;
    }
    for path in &options.masked_paths {
        b.mask(kernel, path).map_err(at(path))?;
    }
    for path in &options.read_only_paths {
        b.protect(path).map_err(at(path))?;
    }
    b.propagate(&ns.root(), options.propagation)?;
    // Not before: mount points and device nodes that the tree lacks were made in it.
    if options.read_only {
        root.set_flags(flags | MountFlags::RDONLY);
    }
    Ok(ns)
}

/// /dev is a small tmpfs, so that programs can add to it.
fn dev(kernel: &Kernel, user: u32, flags: MountFlags) -> Result<Arc<Mount>> {
    let options = TmpOptions { size: 64 << 20, mode: 0o755, ..TmpOptions::default() };
    let root = TmpFs::root(&options, kernel.reopen.get().cloned());
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
    Mount::of(root, sb, flags)
}

/// An option of a tmpfs that container runtimes have beside those of the kernel.
const COPY_UP: &[u8] = b"tmpcopyup";

fn copies_up(m: &MountSpec) -> bool {
    m.data.split(|&b| b == b',').any(|option| option == COPY_UP)
}

struct Builder {
    ipc: Arc<IpcNamespace>,
    pids: Arc<PidNs>,
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
    /// Gives a mount the type of propagation that `MS_*` flags name, if they name one.
    fn propagate(&self, at: &Path, flags: u64) -> Result<()> {
        let flag = flags & (libc::MS_SHARED | libc::MS_SLAVE | libc::MS_PRIVATE | libc::MS_UNBINDABLE);
        match flag {
            0 => Ok(()),
            flag => self.ns.change_type(at, PropagationType::of_flag(flag)?, flags & libc::MS_REC != 0),
        }
    }
    fn mount_spec(&self, kernel: &Arc<Kernel>, client: &Client, options: &RootOptions, m: &MountSpec) -> Result<()> {
        let flags = MountFlags::from_bits_truncate(m.flags as u32);
        let mount = match &m.source {
            Source::Type("tmpfs") if copies_up(m) => return self.mount_filled(kernel, m, flags),
            Source::Tree(name) => GoferFs::mount(client, name, false, flags)?,
            Source::Dev => dev(kernel, options.user, flags)?,
            Source::Type(kind) => {
                let mut config = Config::new(Type::find(kind.as_bytes())?);
                config.source = m.name.clone();
                config.set_all(&m.data)?;
                let find = |path: &[u8]| self.find(path);
                let (cred, ipc, pids) = (&self.cred, &self.ipc, Some(&self.pids));
                let mounter = Mounter { kernel, cred, ipc, pids, ns: None, find: &find };
                Mount::new(config.create(&mounter)?, flags)
            }
            Source::Bind(from) => {
                let from = self.find(from)?;
                let place = self.place(&m.target, from.is_dir())?;
                let new = self.ns.bind(&from, &place, m.flags & libc::MS_REC != 0)?;
                new.set_flags(flags);
                return self.propagate(&new.root(), m.flags);
            }
        };
        let place = self.place(&m.target, mount.root_dentry().is_dir())?;
        self.ns.mount(&mount, &place)?;
        self.propagate(&mount.root(), m.flags)
    }
    /// Mounts a tmpfs that begins with what is in its place. Nothing is copied before it is changed.
    fn mount_filled(&self, kernel: &Arc<Kernel>, m: &MountSpec, flags: MountFlags) -> Result<()> {
        let others: Vec<&[u8]> = m.data.split(|&b| b == b',').filter(|o| *o != COPY_UP).collect();
        let place = self.place(&m.target, true)?;
        let o = TmpOptions { first_ino: 1 << 40, ..super::fstype::tmpfs(&others.join(&b','))? };
        let shown = format!("size={}k,mode={:o}", o.size / 1024, place.inode().attr()?.mode & 0o7777);
        let upper = TmpFs::root(&o, kernel.reopen.get().cloned());
        let root = Overlay::root(upper, place.inode().clone())?;
        let mount = Mount::of(root, SuperBlock::new("tmpfs", &m.name, shown), flags)?;
        self.ns.mount(&mount, &place)?;
        self.propagate(&mount.root(), m.flags)
    }
    /// Makes a device node, unless there is the same one already.
    fn device(&self, d: &DeviceSpec) -> Result<()> {
        let kind = d.mode & libc::S_IFMT;
        match self.find(&d.path) {
            Ok(p) if p.kind() == kind && p.inode().attr()?.rdev == d.rdev => return Ok(()),
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
        let slash = d.path.iter().rposition(|&c| c == b'/').ok_or(Errno::EINVAL)?;
        let (dir, name) = (d.path.get(..slash).unwrap_or_default(), d.path.get(slash + 1..).unwrap_or_default());
        let dir = self.place(dir, true)?;
        let node = match kind {
            libc::S_IFCHR => NewNode::Char(d.rdev),
            libc::S_IFBLK => NewNode::Block(d.rdev),
            libc::S_IFIFO => NewNode::Fifo,
            _ => return Err(Errno::EINVAL),
        };
        let made = vfs::ops::create(&dir, name, node, d.mode & 0o7777, &self.cred, false)?;
        vfs::ops::chown(&made, Some(d.uid), Some(d.gid), &self.cred)
    }
    /// Writes a file that is there.
    fn write(&self, path: &[u8], data: &[u8]) -> Result<()> {
        let file = vfs::open_place(self.find(path)?, libc::O_WRONLY, &self.cred)?;
        match file.ops.write(&file, &mut Src::kernel(data), 0) {
            Ok(_) => Ok(()),
            Err(SysError::Errno(e)) => Err(e),
            Err(SysError::Restart(_)) => Err(Errno::EINTR),
        }
    }
    /// Covers a path, so that nothing of it can be read.
    fn mask(&self, kernel: &Arc<Kernel>, path: &[u8]) -> Result<()> {
        let place = match self.find(path) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            r => r?,
        };
        if place.is_dir() {
            let empty = TmpOptions { size: 0, mode: 0o755, ..TmpOptions::default() };
            let cover = TmpFs::mount(&empty, MountFlags::RDONLY, kernel.reopen.get().cloned())?;
            return self.ns.mount(&cover, &place);
        }
        let null = self.find(b"/dev/null")?;
        self.ns.bind(&null, &place, false).map(|_| ())
    }
    /// Makes a path read-only, with what is mounted below it as it is.
    fn protect(&self, path: &[u8]) -> Result<()> {
        let place = match self.find(path) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            r => r?,
        };
        let flags = place.mount().flags();
        let cover = self.ns.bind(&place, &place, true)?;
        cover.set_flags(flags | MountFlags::RDONLY);
        Ok(())
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
