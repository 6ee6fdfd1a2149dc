//! All host calls of the server.
//!
//! All of them work on descriptors: a name is only ever looked up in a directory held, and a node held is reopened
//! through [`Descriptors`]. The calls are rustix's safe ones, except where a note says otherwise.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::{AclState, Attr, FileKind, OpenFlags, StatFs, Time};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::path::DecInt;
use rustix::thread::CapabilitiesSecureBits;

use crate::{kernel_fs, mounts};

/// Result of a host call.
pub type Result<T> = std::result::Result<T, Errno>;

/// What is asked of a file.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);
const ACL: &std::ffi::CStr = c"system.posix_acl_access";
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// The directory `/proc/self/fd`, for reopening nodes: its entries are links to the files themselves, so no path is
/// looked up.
#[derive(Debug)]
pub struct Descriptors(OwnedFd);

impl Descriptors {
    /// Opens the directory of this process.
    pub fn open() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/proc/self/fd", flags, Mode::empty()).map(Self)
    }

    /// Opens the directory of this process as a detached mount, whose `..` leads nowhere.
    pub fn open_detached() -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(rustix::fs::CWD, "/proc/self/fd", flags).map(Self)
    }

    /// The number of the directory's own descriptor.
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Reopens the file behind `fd`. The caller must know that it is a regular file or directory: opening other kinds
    /// could block or have effects.
    pub fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::openat(&self.0, DecInt::from_fd(fd), flags, Mode::empty())
    }

    /// Another `O_PATH` descriptor of the file behind `fd`.
    pub fn hold(&self, fd: impl AsFd) -> Result<OwnedFd> {
        rustix::fs::openat(&self.0, DecInt::from_fd(fd), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    /// Gives the file behind `fd` the name `name` in `dir`.
    pub fn link(&self, fd: impl AsFd, dir: impl AsFd, name: &[u8]) -> Result<()> {
        rustix::fs::linkat(&self.0, DecInt::from_fd(fd), dir, name, AtFlags::SYMLINK_FOLLOW)
    }

    /// Sets the permissions of the file behind `fd`, which must not be a symlink.
    pub fn chmod(&self, fd: impl AsFd, mode: u32) -> Result<()> {
        rustix::fs::chmodat(&self.0, DecInt::from_fd(fd), Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
    }
}

/// Opens a path given by the launcher, with `O_PATH`.
pub fn open_host_path(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Clones the tree behind `fd`, with the mounts below it, as a detached mount: private, `..` leads nowhere, no
/// symlink is followed, devices and set-user-id have no effect, and if `read_only` nothing can be written.
pub fn detach(fd: impl AsFd, read_only: bool) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(fd, c"", flags)?;
    let mut set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSYMFOLLOW;
    if read_only {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    set_mount_attributes(&mount, set)?;
    Ok(mount)
}

/// Sets attributes on a detached mount and all below it, and makes them private.
#[allow(unsafe_code)] // no library wraps `mount_setattr`
fn set_mount_attributes(mount: &OwnedFd, set: u64) -> Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    // SAFETY: the path is a static C string, and `attr` outlives the call; the kernel reads as many bytes of it as
    // the last argument says, which is its size, and writes nothing. `mount` is an open descriptor while it is
    // borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// Opens the entry `name` of `dir` with `O_PATH`, whatever its kind. A mount there is checked: an interface of the
/// host's kernel is `ENOENT`.
pub fn open_child(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let open = |resolve| {
        rustix::fs::openat2(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
    };
    match open(BENEATH | ResolveFlags::NO_XDEV) {
        Err(Errno::XDEV) => {
            let fd = open(BENEATH)?;
            kernel_fs::check(&fd)?;
            Ok(fd)
        }
        result => result,
    }
}

/// Holds what `names` lead to from `dir`, one below the other; nothing if there are no names. `tell` gets the attributes of each.
pub fn open_way<'a>(
    dir: impl AsFd,
    names: impl Iterator<Item = &'a [u8]>,
    mut tell: impl FnMut(&Attr),
) -> Result<Option<OwnedFd>> {
    let mut at: Option<OwnedFd> = None;
    for name in names {
        let fd = open_child(at.as_ref().map_or(dir.as_fd(), |fd| fd.as_fd()), name)?;
        tell(&look(&fd)?);
        at = Some(fd);
    }
    Ok(at)
}

/// Opens the entry `name` of `dir`, which was a regular file a moment ago, for reading. Does not block, even if its
/// kind has changed. `EXDEV` if a file is mounted there.
pub fn open_file(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH | ResolveFlags::NO_XDEV)
}

/// Creates the regular file `name` in `dir` and opens it.
pub fn create(dir: impl AsFd, name: &[u8], flags: OpenFlags, mode: u32) -> Result<OwnedFd> {
    let flags =
        host_flags(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat2(dir, name, flags, Mode::from_raw_mode(mode & 0o7777), BENEATH)
}

/// Translates the protocol's open flags.
pub fn host_flags(flags: OpenFlags) -> OFlags {
    let mut host = match (flags.contains(OpenFlags::READ), flags.contains(OpenFlags::WRITE)) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        (_, false) => OFlags::RDONLY,
    };
    for (ours, theirs) in [
        (OpenFlags::APPEND, OFlags::APPEND),
        (OpenFlags::TRUNC, OFlags::TRUNC),
        (OpenFlags::DIRECT, OFlags::DIRECT),
        (OpenFlags::SYNC, OFlags::SYNC),
        (OpenFlags::DSYNC, OFlags::DSYNC),
        (OpenFlags::NOATIME, OFlags::NOATIME),
    ] {
        if flags.contains(ours) {
            host |= theirs;
        }
    }
    host
}

/// Attributes of the file behind `fd`.
pub fn stat(fd: impl AsFd) -> Result<Attr> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, WANTED).map(|st| attr(&st))
}

/// Attributes of the file behind `fd` for the client, with the presence of an ACL if that is reported.
pub fn look(fd: impl AsFd) -> Result<Attr> {
    let mut attr = stat(&fd)?;
    attr.acl = acl_state(&attr, fd.as_fd(), None);
    Ok(attr)
}

/// Attributes of the entry `name` of `dir` for the client, with the presence of an ACL if that is reported. As in
/// [`open_child`], an interface of the host's kernel is `ENOENT`.
pub fn look_at_child(dir: impl AsFd, name: &[u8]) -> Result<Attr> {
    let st = statx_child(&dir, name)?;
    if st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return look(open_child(dir, name)?);
    }
    let mut attr = attr(&st);
    attr.acl = acl_state(&attr, dir.as_fd(), Some(name));
    Ok(attr)
}

/// Attributes of the entry `name` of `dir`.
pub fn stat_child(dir: impl AsFd, name: &[u8]) -> Result<Attr> {
    statx_child(dir, name).map(|st| attr(&st))
}

fn statx_child(dir: impl AsFd, name: &[u8]) -> Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, WANTED)
}

/// `EBUSY` if something is mounted on the entry `name` of `dir`. The kernel checks for mount points only in the mount
/// namespace of the calling process, and the trees are in none: removing or moving such a name would detach the mount
/// for all processes of the host.
pub fn check_no_mount(dir: impl AsFd, name: &[u8]) -> Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let st = rustix::fs::statx(dir, name, flags, StatxFlags::empty())?;
    if st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::BUSY);
    }
    Ok(())
}

/// Whether the working directory is that of the process's descriptors.
static AT_DESCRIPTORS: AtomicBool = AtomicBool::new(false);
/// Whether the presence of ACLs is reported.
static REPORTS_ACLS: AtomicBool = AtomicBool::new(false);

/// Makes the directory of descriptors the working directory. The calls for extended attributes take no `O_PATH`
/// descriptor, but a path: the number of one. From now on the presence of ACLs is reported if `tell_acls`.
pub fn enter_descriptors(descriptors: &Descriptors, tell_acls: bool) -> Result<()> {
    rustix::process::fchdir(&descriptors.0)?;
    AT_DESCRIPTORS.store(true, Ordering::Relaxed);
    REPORTS_ACLS.store(tell_acls, Ordering::Relaxed);
    Ok(())
}

/// Reads the extended attribute `name` of the file behind `fd`, which must not be a symlink, into `buf`, without
/// opening the file.
pub fn xattr_of_held(fd: impl AsFd, name: &[u8], buf: &mut [u8]) -> Result<usize> {
    let number = DecInt::from_fd(fd);
    if AT_DESCRIPTORS.load(Ordering::Relaxed) {
        rustix::fs::getxattr(number.as_c_str(), name, buf)
    } else {
        rustix::fs::getxattr([b"/proc/self/fd/", number.as_bytes()].concat(), name, buf)
    }
}

fn acl_state(attr: &Attr, fd: BorrowedFd<'_>, name: Option<&[u8]>) -> AclState {
    if !REPORTS_ACLS.load(Ordering::Relaxed) {
        return AclState::Unknown;
    }
    // The kernel evaluates an ACL only if the group bits, which are its mask, are not all zero.
    if attr.kind() == FileKind::Symlink || attr.mode & 0o070 == 0 {
        return AclState::Absent;
    }
    let number = DecInt::from_fd(fd);
    let result = match name {
        None => rustix::fs::getxattr(number.as_c_str(), ACL, &mut [0u8; 0][..]),
        Some(name) => {
            let path = [number.as_bytes(), b"/", name].concat();
            rustix::fs::lgetxattr(&path[..], ACL, &mut [0u8; 0][..])
        }
    };
    match result {
        Ok(_) => AclState::Present,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => AclState::Absent,
        Err(_) => AclState::Unknown,
    }
}

fn attr(st: &Statx) -> Attr {
    Attr {
        mode: u32::from(st.stx_mode),
        uid: st.stx_uid,
        gid: st.stx_gid,
        nlink: st.stx_nlink,
        ino: st.stx_ino,
        size: st.stx_size,
        blocks: st.stx_blocks,
        dev: rustix::fs::makedev(st.stx_dev_major, st.stx_dev_minor),
        rdev: rustix::fs::makedev(st.stx_rdev_major, st.stx_rdev_minor),
        blksize: st.stx_blksize,
        atime: time(&st.stx_atime),
        mtime: time(&st.stx_mtime),
        ctime: time(&st.stx_ctime),
        btime: time(&st.stx_btime),
        acl: AclState::Unknown,
        limits: mounts::limits(st.stx_mnt_id),
    }
}

fn time(t: &StatxTimestamp) -> Time {
    // A broken file system may return any value; the protocol permits valid ones only.
    Time { sec: t.tv_sec, nsec: t.tv_nsec.min(999_999_999) }
}

/// Statistics of the file system that contains the file behind `fd`.
pub fn statfs(fd: impl AsFd) -> Result<StatFs> {
    let st = rustix::fs::fstatfs(fd)?;
    // The kernel's fields are signed words with an unsigned meaning; only a broken file system returns a negative
    // one.
    let word = |v: i64| u64::try_from(v).unwrap_or(0);
    Ok(StatFs {
        kind: word(st.f_type),
        bsize: word(st.f_bsize),
        frsize: word(st.f_frsize),
        blocks: st.f_blocks,
        bfree: st.f_bfree,
        bavail: st.f_bavail,
        files: st.f_files,
        ffree: st.f_ffree,
        namelen: word(st.f_namelen),
        flags: word(st.f_flags),
    })
}

/// Reads the target of the symlink behind `fd` into `buf`.
pub fn readlink(fd: impl AsFd, buf: &mut [u8]) -> Result<&[u8]> {
    let n = rustix::fs::readlinkat_raw(fd, c"", &mut *buf)?;
    buf.get(..n).ok_or(Errno::IO)
}

/// Sets owner and group of the file behind `fd`, symlinks included.
pub fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (uid, gid) = (uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw));
    rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)
}

/// What is made in between belongs to these ids; afterwards the thread has its own again. For such a thing needs no new owner, which would have
/// to be given to whatever has its name by then.
#[derive(Debug)]
pub struct Maker {
    own: Option<(u32, u32)>,
}

impl Maker {
    /// `EPERM` if this process may not act for them.
    pub fn become_ids(uid: Option<u32>, gid: Option<u32>) -> Result<Self> {
        let own = file_ids();
        let wanted = (uid.unwrap_or(own.0), gid.unwrap_or(own.1));
        if wanted == own {
            return Ok(Self { own: None });
        }
        set_file_ids(wanted);
        let maker = Self { own: Some(own) };
        if file_ids() == wanted {
            Ok(maker)
        } else {
            Err(Errno::PERM)
        }
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let Some(own) = self.own else { return };
        set_file_ids(own);
        if AT_DESCRIPTORS.load(Ordering::Relaxed) {
            // The kernel takes a change of ids for one of the process's nature, and forgets these.
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
        }
    }
}

fn file_ids() -> (u32, u32) {
    // No user has this number: nothing is set, and the answer is what there is.
    set_file_ids((u32::MAX, u32::MAX))
}

/// Sets the ids that files are made with, if the thread may, and returns those that it had.
#[allow(unsafe_code)] // no library wraps them
fn set_file_ids((uid, gid): (u32, u32)) -> (u32, u32) {
    // SAFETY: both take a number and change nothing but the calling thread's credentials.
    let (gid, uid) = unsafe { (libc::setfsgid(gid), libc::setfsuid(uid)) };
    (uid as u32, gid as u32)
}

/// Has the thread keep its capabilities while it is a [`Maker`]. Without the right to ask for that it could become nobody else anyway.
pub fn keep_capabilities() {
    let _ = rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP);
}

/// Whether `fd` is of a memfd: memory that never had a name.
pub fn is_memfd(fd: impl AsFd) -> Result<bool> {
    let attr = stat(&fd)?;
    // Only files in memory (tmpfs and hugetlbfs) have seals, and only those without a name have no links.
    Ok(attr.kind() == FileKind::Regular && attr.nlink == 0 && rustix::fs::fcntl_get_seals(&fd).is_ok())
}

/// Raises the soft limit of descriptors to the hard one and returns it.
pub fn raise_descriptor_limit() -> Result<u64> {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
