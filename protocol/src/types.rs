//! Types common to both sides: fids, attributes, flags.

use std::num::NonZeroU64;

use bitflags::bitflags;

use crate::wire::{DecodeError, Reader, Result, Writer};

/// A file that the server holds for the client. Never zero; on the wire zero means "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fid(pub NonZeroU64);

impl Fid {
    /// The fid with this number, unless it is zero.
    pub fn new(raw: u64) -> Option<Self> {
        NonZeroU64::new(raw).map(Self)
    }

    /// The number.
    pub fn raw(self) -> u64 {
        self.0.get()
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Self::new(r.u64()?).ok_or(DecodeError::BadValue("fid"))
    }

    pub(crate) fn decode_option(r: &mut Reader<'_>) -> Result<Option<Self>> {
        Ok(Self::new(r.u64()?))
    }
}

/// Kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Not reported by the file system (only in directory entries).
    Unknown = 0,
    /// A fifo.
    Fifo = 1,
    /// A character device.
    CharDevice = 2,
    /// A directory.
    Directory = 4,
    /// A block device.
    BlockDevice = 6,
    /// A regular file.
    Regular = 8,
    /// A symbolic link.
    Symlink = 10,
    /// A Unix socket.
    Socket = 12,
}

impl FileKind {
    /// The kind with this `DT_*` number.
    pub fn from_dirent(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Unknown,
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }

    /// The kind in the `S_IFMT` bits of a mode.
    pub fn from_mode(mode: u32) -> Self {
        u8::try_from((mode >> 12) & 0xf).ok().and_then(Self::from_dirent).unwrap_or(Self::Unknown)
    }

    /// The `DT_*` number.
    pub fn dirent(self) -> u8 {
        self as u8
    }

    /// The `S_IFMT` bits of a mode.
    pub fn mode_bits(self) -> u32 {
        u32::from(self as u8) << 12
    }
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since 1970; negative before.
    pub sec: i64,
    /// Nanoseconds, below 10⁹.
    pub nsec: u32,
}

impl Time {
    pub(crate) fn encode(self, w: &mut Writer<'_>) {
        w.i64(self.sec);
        w.u32(self.nsec);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let t = Self { sec: r.i64()?, nsec: r.u32()? };
        if t.nsec >= 1_000_000_000 {
            return Err(DecodeError::BadValue("nanoseconds"));
        }
        Ok(t)
    }
}

/// Whether a node has a POSIX access ACL of its own. A default ACL does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum AclState {
    /// Not checked.
    #[default]
    Unknown = 0,
    /// The mode says it all.
    Absent = 1,
    /// It has one.
    Present = 2,
}

impl AclState {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        match r.u8()? {
            0 => Ok(Self::Unknown),
            1 => Ok(Self::Absent),
            2 => Ok(Self::Present),
            _ => Err(DecodeError::BadValue("state of an ACL")),
        }
    }
}

bitflags::bitflags! {
    /// What the host's mount that a node is on forbids.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Limits: u8 {
        /// A program that is run gets no rights of its owner's.
        const NOSUID = 1;
        /// No program is run.
        const NOEXEC = 2;
    }
}

/// What `statx` tells about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attr {
    /// Kind and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner, as the Gofer's user namespace shows it.
    pub uid: u32,
    /// Group, as the Gofer's user namespace shows it.
    pub gid: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Inode number, unique within `dev`.
    pub ino: u64,
    /// Size in bytes; of a symlink, the length of its target.
    pub size: u64,
    /// Blocks of 512 bytes in use.
    pub blocks: u64,
    /// Device the node is on, as `makedev` packs it.
    pub dev: u64,
    /// Device that a device node represents, as `makedev` packs it.
    pub rdev: u64,
    /// Preferred size of a read or write.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last status change.
    pub ctime: Time,
    /// Creation; zero if the file system does not record it.
    pub btime: Time,
    /// Whether it has a POSIX ACL.
    pub acl: AclState,
    /// What its mount forbids.
    pub limits: Limits,
}

impl Attr {
    /// Bytes on the wire.
    pub const SIZE: usize = 4 * 5 + 8 * 5 + 12 * 4 + 2;

    /// Kind of the node.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode)
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.u32(self.mode);
        w.u32(self.uid);
        w.u32(self.gid);
        w.u32(self.nlink);
        w.u64(self.ino);
        w.u64(self.size);
        w.u64(self.blocks);
        w.u64(self.dev);
        w.u64(self.rdev);
        w.u32(self.blksize);
        for t in [self.atime, self.mtime, self.ctime, self.btime] {
            t.encode(w);
        }
        w.u8(self.acl as u8);
        w.u8(self.limits.bits());
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            mode: r.u32()?,
            uid: r.u32()?,
            gid: r.u32()?,
            nlink: r.u32()?,
            ino: r.u64()?,
            size: r.u64()?,
            blocks: r.u64()?,
            dev: r.u64()?,
            rdev: r.u64()?,
            blksize: r.u32()?,
            atime: Time::decode(r)?,
            mtime: Time::decode(r)?,
            ctime: Time::decode(r)?,
            btime: Time::decode(r)?,
            acl: AclState::decode(r)?,
            limits: Limits::from_bits(r.u8()?).ok_or(DecodeError::BadValue("limits"))?,
        })
    }
}

/// Statistics of a file system, as from `statfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatFs {
    /// Magic number of the file system type.
    pub kind: u64,
    /// Preferred block size.
    pub bsize: u64,
    /// Unit of the block counts.
    pub frsize: u64,
    /// Total blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for unprivileged users.
    pub bavail: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Longest name.
    pub namelen: u64,
    /// `ST_*` flags of the mount.
    pub flags: u64,
}

impl StatFs {
    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        for v in [
            self.kind,
            self.bsize,
            self.frsize,
            self.blocks,
            self.bfree,
            self.bavail,
            self.files,
            self.ffree,
            self.namelen,
            self.flags,
        ] {
            w.u64(v);
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            kind: r.u64()?,
            bsize: r.u64()?,
            frsize: r.u64()?,
            blocks: r.u64()?,
            bfree: r.u64()?,
            bavail: r.u64()?,
            files: r.u64()?,
            ffree: r.u64()?,
            namelen: r.u64()?,
            flags: r.u64()?,
        })
    }
}

bitflags! {
    /// How to open a descriptor. At least one of `READ` and `WRITE` must be set.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct OpenFlags: u32 {
        /// For reading (and executing).
        const READ = 1;
        /// For writing.
        const WRITE = 1 << 1;
        /// Every write goes to the end (`O_APPEND`).
        const APPEND = 1 << 2;
        /// Truncates the file first (`O_TRUNC`); needs `WRITE`.
        const TRUNC = 1 << 3;
        /// `O_DIRECT`.
        const DIRECT = 1 << 4;
        /// `O_SYNC`.
        const SYNC = 1 << 5;
        /// `O_DSYNC`.
        const DSYNC = 1 << 6;
        /// `O_NOATIME`; `EPERM` unless the Gofer has the right.
        const NOATIME = 1 << 7;
    }

    /// How a rename treats an existing new name, as in `renameat2`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct RenameFlags: u32 {
        /// Fail with `EEXIST` if the new name exists.
        const NOREPLACE = 1;
        /// Exchange the two.
        const EXCHANGE = 2;
    }
}

impl OpenFlags {
    /// For reading and writing.
    pub const READ_WRITE: Self = Self::READ.union(Self::WRITE);

    /// A valid combination of flags, from their bits.
    pub(crate) fn decode(raw: u32) -> Result<Self> {
        let flags = Self::from_bits(raw).ok_or(DecodeError::BadValue("open flags"))?;
        if !flags.intersects(Self::READ_WRITE) || (flags.contains(Self::TRUNC) && !flags.contains(Self::WRITE)) {
            return Err(DecodeError::BadValue("open flags"));
        }
        Ok(flags)
    }

    /// Whether a descriptor opened like this can change the file.
    pub fn writes(self) -> bool {
        self.contains(Self::WRITE)
    }
}

impl RenameFlags {
    pub(crate) fn decode(raw: u32) -> Result<Self> {
        match Self::from_bits(raw) {
            Some(flags) if flags != Self::all() => Ok(flags),
            _ => Err(DecodeError::BadValue("rename flags")),
        }
    }
}

/// Which nodes of a walk get a fid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WalkFids {
    /// None: attributes only.
    None = 0,
    /// The last node found.
    Last = 1,
    /// Every node.
    Each = 2,
}

impl WalkFids {
    pub(crate) fn decode(raw: u8) -> Result<Self> {
        Ok(match raw {
            0 => Self::None,
            1 => Self::Last,
            2 => Self::Each,
            _ => return Err(DecodeError::BadValue("walk fids")),
        })
    }
}

/// Information that a listing includes for each entry besides name and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    Names,
    /// Attributes.
    Attr,
    /// Attributes, and the content of regular files of at most this size.
    Content(u32),
}

impl Detail {
    /// Whether attributes are included.
    pub fn has_attr(self) -> bool {
        self != Self::Names
    }

    pub(crate) fn encode(self, w: &mut Writer<'_>) {
        let (kind, size) = match self {
            Self::Names => (0, 0),
            Self::Attr => (1, 0),
            Self::Content(size) => (2, size),
        };
        w.u8(kind);
        w.u32(size);
    }

    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Content(size) if size > crate::MAX_CONTENT => Err(DecodeError::TooLong("content")),
            _ => Ok(()),
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let detail = match (r.u8()?, r.u32()?) {
            (0, 0) => Self::Names,
            (1, 0) => Self::Attr,
            (2, size) => Self::Content(size),
            _ => return Err(DecodeError::BadValue("detail")),
        };
        detail.check().map(|()| detail)
    }
}

/// Permissions and owner of a new node.
///
/// The mode is used as given (the caller has applied its umask). Without an owner the host chooses it; with one, the
/// whole operation fails if the Gofer may not set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNode {
    /// Permissions: the lower 12 bits of a mode.
    pub mode: u32,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

impl NewNode {
    /// Permissions only.
    pub fn with_mode(mode: u32) -> Self {
        Self { mode, uid: None, gid: None }
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.u32(self.mode & 0o7777);
        w.u32(self.uid.unwrap_or(u32::MAX));
        w.u32(self.gid.unwrap_or(u32::MAX));
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { mode: decode_permissions(r)?, uid: decode_id(r)?, gid: decode_id(r)? })
    }
}

/// A new timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The host's current time.
    Now,
    /// This time.
    At(Time),
}

/// Attributes to change; `None` leaves one unchanged.
///
/// They are applied in this order: size, owner and group, mode, times. The first failure ends the request; earlier
/// changes stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permissions: the lower 12 bits of a mode.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size; regular files only.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    const MODE: u8 = 1;
    const SIZE: u8 = 2;

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        let mut mask = 0;
        if self.mode.is_some() {
            mask |= Self::MODE;
        }
        if self.size.is_some() {
            mask |= Self::SIZE;
        }
        w.u8(mask);
        w.u32(self.mode.unwrap_or(0) & 0o7777);
        w.u32(self.uid.unwrap_or(u32::MAX));
        w.u32(self.gid.unwrap_or(u32::MAX));
        w.u64(self.size.unwrap_or(0));
        for t in [self.atime, self.mtime] {
            let (tag, time) = match t {
                None => (0, Time::default()),
                Some(SetTime::Now) => (1, Time::default()),
                Some(SetTime::At(time)) => (2, time),
            };
            w.u8(tag);
            time.encode(w);
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let mask = r.u8()?;
        if mask & !(Self::MODE | Self::SIZE) != 0 {
            return Err(DecodeError::BadValue("attribute mask"));
        }
        let mode = decode_permissions(r)?;
        let (uid, gid) = (decode_id(r)?, decode_id(r)?);
        let size = r.u64()?;
        if i64::try_from(size).is_err() {
            return Err(DecodeError::BadValue("size"));
        }
        let mut times = [None; 2];
        for t in &mut times {
            let tag = r.u8()?;
            let time = Time::decode(r)?;
            *t = match tag {
                0 => None,
                1 => Some(SetTime::Now),
                2 => Some(SetTime::At(time)),
                _ => return Err(DecodeError::BadValue("time")),
            };
        }
        Ok(Self {
            mode: (mask & Self::MODE != 0).then_some(mode),
            uid,
            gid,
            size: (mask & Self::SIZE != 0).then_some(size),
            atime: times[0],
            mtime: times[1],
        })
    }
}

/// Kinds that [`Mknod`](crate::request::Request::Mknod) can create. The Sentry handles device nodes itself; they
/// never reach the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MknodKind {
    /// A regular file, empty.
    Regular,
    /// A fifo.
    Fifo,
    /// A Unix socket.
    Socket,
}

impl MknodKind {
    /// The same as a file kind.
    pub fn file_kind(self) -> FileKind {
        match self {
            Self::Regular => FileKind::Regular,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
        }
    }

    pub(crate) fn decode(raw: u8) -> Result<Self> {
        Ok(match FileKind::from_dirent(raw) {
            Some(FileKind::Regular) => Self::Regular,
            Some(FileKind::Fifo) => Self::Fifo,
            Some(FileKind::Socket) => Self::Socket,
            _ => return Err(DecodeError::BadValue("node kind")),
        })
    }
}

/// How an extended attribute is set, as in `setxattr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum XattrMode {
    /// Create or replace.
    Any = 0,
    /// It must not exist.
    Create = 1,
    /// It must exist.
    Replace = 2,
}

impl XattrMode {
    pub(crate) fn decode(raw: u8) -> Result<Self> {
        Ok(match raw {
            0 => Self::Any,
            1 => Self::Create,
            2 => Self::Replace,
            _ => return Err(DecodeError::BadValue("xattr mode")),
        })
    }
}

fn decode_id(r: &mut Reader<'_>) -> Result<Option<u32>> {
    let id = r.u32()?;
    Ok((id != u32::MAX).then_some(id))
}

fn decode_permissions(r: &mut Reader<'_>) -> Result<u32> {
    let mode = r.u32()?;
    if mode & !0o7777 != 0 {
        return Err(DecodeError::BadValue("mode"));
    }
    Ok(mode)
}
