//! Requests of the client.

use crate::types::*;
use crate::wire::{check_name, DecodeError, Reader, Result, Writer};
use crate::{
    MAX_CONTENT, MAX_DIR_BYTES, MAX_FILES, MAX_MESSAGE, MAX_NAME, MAX_RELEASE, MAX_TARGET, MAX_WALK, MAX_XATTR,
};

/// Number of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs)] // each is described at its request
pub enum Op {
    Hello = 1,
    Attach = 2,
    Walk = 3,
    Open = 4,
    Create = 5,
    Mkdir = 6,
    Symlink = 7,
    Mknod = 8,
    Link = 9,
    Unlink = 10,
    Rename = 11,
    Readlink = 12,
    Getattr = 13,
    Setattr = 14,
    ReadDir = 15,
    Statfs = 16,
    GetXattr = 17,
    SetXattr = 18,
    ListXattr = 19,
    RemoveXattr = 20,
    Fsync = 21,
    Release = 22,
    ReopenReadOnly = 23,
    List = 24,
    ReadFiles = 25,
    ListTree = 26,
}

impl Op {
    /// Every operation, in the order of the numbers.
    pub const ALL: [Self; 26] = [
        Self::Hello,
        Self::Attach,
        Self::Walk,
        Self::Open,
        Self::Create,
        Self::Mkdir,
        Self::Symlink,
        Self::Mknod,
        Self::Link,
        Self::Unlink,
        Self::Rename,
        Self::Readlink,
        Self::Getattr,
        Self::Setattr,
        Self::ReadDir,
        Self::Statfs,
        Self::GetXattr,
        Self::SetXattr,
        Self::ListXattr,
        Self::RemoveXattr,
        Self::Fsync,
        Self::Release,
        Self::ReopenReadOnly,
        Self::List,
        Self::ReadFiles,
        Self::ListTree,
    ];

    /// The operation with this number.
    pub fn from_raw(raw: u16) -> Result<Self> {
        usize::from(raw).checked_sub(1).and_then(|i| Self::ALL.get(i)).copied().ok_or(DecodeError::UnknownOp(raw))
    }
}

/// The first 16 bytes of every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes in the packet, header included.
    pub length: u32,
    /// The operation; a reply repeats that of its request.
    pub op: Op,
    /// In a request, the number of released fids after the header; in a reply, the number of descriptors attached.
    pub aux: u16,
    /// Chosen by the client; a reply repeats that of its request.
    pub tag: u32,
    /// In a reply the errno, or 0 for success; in a request 0.
    pub status: u32,
}

impl Header {
    /// Bytes on the wire.
    pub const SIZE: usize = 16;

    /// Appends it.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u32(self.length);
        w.u16(self.op as u16);
        w.u16(self.aux);
        w.u32(self.tag);
        w.u32(self.status);
    }

    /// Reads it from a packet and checks its length against the packet's.
    pub fn decode(packet: &[u8]) -> Result<(Self, Reader<'_>)> {
        let mut r = Reader::new(packet);
        let (length, op, aux, tag, status) = (r.u32()?, r.u16()?, r.u16()?, r.u32()?, r.u32()?);
        match usize::try_from(length) {
            Ok(n) if n == packet.len() && n <= MAX_MESSAGE => {}
            Ok(n) if n > packet.len() => return Err(DecodeError::Truncated),
            _ => return Err(DecodeError::Trailing),
        }
        Ok((Self { length, op: Op::from_raw(op)?, aux, tag, status }, r))
    }
}

/// The fids that a request releases.
#[derive(Debug, Clone, Copy)]
pub struct Released<'a>(&'a [u8]);

impl Released<'_> {
    /// The fids. The server ignores zeroes and unknown ones.
    pub fn iter(&self) -> impl Iterator<Item = Fid> + '_ {
        self.0.chunks_exact(8).filter_map(|c| c.try_into().ok().map(u64::from_le_bytes).and_then(Fid::new))
    }
}

/// Names, either the caller's own or in a packet (and then already checked).
#[derive(Debug, Clone, Copy)]
pub enum Names<'a> {
    /// The caller's.
    List(&'a [&'a [u8]]),
    /// From a packet: `count` checked names, each after its length byte.
    Wire {
        /// Number of names.
        count: usize,
        /// Their encoding.
        bytes: &'a [u8],
    },
}

impl<'a> Names<'a> {
    /// Number of names.
    pub fn len(&self) -> usize {
        match self {
            Self::List(names) => names.len(),
            Self::Wire { count, .. } => *count,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        let (list, bytes): (&[&[u8]], &[u8]) = match *self {
            Self::List(names) => (names, &[]),
            Self::Wire { bytes, .. } => (&[], bytes),
        };
        let mut r = Reader::new(bytes);
        list.iter().copied().chain(std::iter::from_fn(move || {
            let n = usize::from(r.u8().ok()?);
            r.bytes(n).ok()
        }))
    }

    fn encode(&self, w: &mut Writer<'_>) {
        w.u16(u16::try_from(self.len()).unwrap_or(u16::MAX));
        for name in self.iter() {
            w.name(name);
        }
    }

    fn decode(r: &mut Reader<'a>, most: usize) -> Result<Self> {
        let count = usize::from(r.u16()?);
        if count == 0 {
            return Err(DecodeError::BadValue("number of names"));
        }
        if count > most {
            return Err(DecodeError::TooLong("list of names"));
        }
        let start = r.rest();
        for _ in 0..count {
            r.name()?;
        }
        let bytes = start.get(..start.len() - r.rest().len()).ok_or(DecodeError::Truncated)?;
        Ok(Self::Wire { count, bytes })
    }
}

impl PartialEq for Names<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

/// A request. Its borrowed parts are in the packet from which it was decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // the names of the fields and the comments on the variants are enough
pub enum Request<'a> {
    /// The handshake, the first message: → [`Hello`](crate::reply::Hello).
    Hello { magic: u32, version: u16 },
    /// Attaches to a tree by its name: → node of its root.
    Attach { name: &'a [u8] },
    /// Looks up `names` one below the other, starting in `dir`: → [`Walk`](crate::reply::Walk). If the walk is
    /// complete and ends at a regular file, opens it with the flags of `open`.
    Walk { dir: Fid, fids: WalkFids, open: Option<OpenFlags>, names: Names<'a> },
    /// Opens a regular file: → empty, and a descriptor.
    Open { fid: Fid, flags: OpenFlags },
    /// Creates a regular file that must not exist and opens it: → node, and a descriptor.
    Create { dir: Fid, name: &'a [u8], new: NewNode, flags: OpenFlags },
    /// Creates a directory: → node.
    Mkdir { dir: Fid, name: &'a [u8], new: NewNode },
    /// Creates a symlink (the mode is ignored): → node.
    Symlink { dir: Fid, name: &'a [u8], target: &'a [u8], new: NewNode },
    /// Creates a fifo, socket or regular file: → node.
    Mknod { dir: Fid, name: &'a [u8], kind: MknodKind, new: NewNode },
    /// Gives `target` another name: → node.
    Link { target: Fid, dir: Fid, name: &'a [u8] },
    /// Removes a name: → empty.
    Unlink { dir: Fid, name: &'a [u8], is_dir: bool },
    /// Renames: → empty.
    Rename { old_dir: Fid, old_name: &'a [u8], new_dir: Fid, new_name: &'a [u8], flags: RenameFlags },
    /// Target of a symlink: → bytes.
    Readlink { fid: Fid },
    /// Attributes: → attributes.
    Getattr { fid: Fid },
    /// Changes attributes: → attributes afterwards.
    Setattr { fid: Fid, set: SetAttr },
    /// Entries of a directory after `cookie` (0: from the start, afresh) without `.` and `..`, at most `max_bytes` of
    /// them: → [`DirPage`](crate::reply::DirPage).
    ReadDir { dir: Fid, cookie: u64, max_bytes: u32, detail: Detail },
    /// Statistics of the file system: → statfs.
    Statfs { fid: Fid },
    /// Value of an extended attribute: → bytes.
    GetXattr { fid: Fid, name: &'a [u8] },
    /// Sets an extended attribute: → empty.
    SetXattr { fid: Fid, name: &'a [u8], value: &'a [u8], mode: XattrMode },
    /// Names of the extended attributes, each terminated by NUL: → bytes.
    ListXattr { fid: Fid },
    /// Removes an extended attribute: → empty.
    RemoveXattr { fid: Fid, name: &'a [u8] },
    /// Writes a file or directory to disk: → empty.
    Fsync { fid: Fid, data_only: bool },
    /// Only releases fids. Has no reply.
    Release,
    /// Takes a descriptor of a memfd: → empty, and a read-only descriptor of the same memory.
    ReopenReadOnly,
    /// The first page of the directory that `names` lead to, one below the other, starting in `dir`: →
    /// [`List`](crate::reply::List), page.
    List { dir: Fid, detail: Detail, names: Names<'a> },
    /// Attributes and content of regular files of at most `max_size` bytes in one directory: → as many
    /// [`FileContent`](crate::reply::FileContent)s as fit. The first `way` of `names` lead to that directory from
    /// `dir`, one below the other; the others are the files, in the order of the answers.
    ReadFiles { dir: Fid, max_size: u32, way: u8, names: Names<'a> },
    /// The directories `names` in `dir` and the trees below them, depth first, with at most `max_bytes` of entries: →
    /// [`TreeDir`](crate::reply::TreeDir)s, each with a page.
    ListTree { dir: Fid, max_bytes: u32, detail: Detail, names: Names<'a> },
}

impl<'a> Request<'a> {
    /// The operation.
    pub fn op(&self) -> Op {
        match self {
            Self::Hello { .. } => Op::Hello,
            Self::Attach { .. } => Op::Attach,
            Self::Walk { .. } => Op::Walk,
            Self::Open { .. } => Op::Open,
            Self::Create { .. } => Op::Create,
            Self::Mkdir { .. } => Op::Mkdir,
            Self::Symlink { .. } => Op::Symlink,
            Self::Mknod { .. } => Op::Mknod,
            Self::Link { .. } => Op::Link,
            Self::Unlink { .. } => Op::Unlink,
            Self::Rename { .. } => Op::Rename,
            Self::Readlink { .. } => Op::Readlink,
            Self::Getattr { .. } => Op::Getattr,
            Self::Setattr { .. } => Op::Setattr,
            Self::ReadDir { .. } => Op::ReadDir,
            Self::Statfs { .. } => Op::Statfs,
            Self::GetXattr { .. } => Op::GetXattr,
            Self::SetXattr { .. } => Op::SetXattr,
            Self::ListXattr { .. } => Op::ListXattr,
            Self::RemoveXattr { .. } => Op::RemoveXattr,
            Self::Fsync { .. } => Op::Fsync,
            Self::Release => Op::Release,
            Self::ReopenReadOnly => Op::ReopenReadOnly,
            Self::List { .. } => Op::List,
            Self::ReadFiles { .. } => Op::ReadFiles,
            Self::ListTree { .. } => Op::ListTree,
        }
    }

    /// Replaces the content of `buf` by this request, which releases `released` first (at most [`MAX_RELEASE`] are
    /// taken).
    pub fn encode(&self, buf: &mut Vec<u8>, tag: u32, released: &[Fid]) {
        buf.clear();
        let released = released.get(..MAX_RELEASE).unwrap_or(released);
        let aux = u16::try_from(released.len()).unwrap_or(0);
        let mut w = Writer::new(buf);
        Header { length: 0, op: self.op(), aux, tag, status: 0 }.encode(&mut w);
        for fid in released {
            w.u64(fid.raw());
        }
        self.encode_body(&mut w);
        let length = u32::try_from(w.len()).unwrap_or(u32::MAX);
        w.patch(0, &length.to_le_bytes());
    }

    fn encode_body(&self, w: &mut Writer<'_>) {
        match *self {
            Self::Hello { magic, version } => {
                w.u32(magic);
                w.u16(version);
            }
            Self::Attach { name } => w.short_bytes(name),
            Self::Walk { dir, fids, open, names } => {
                w.u64(dir.raw());
                w.u8(fids as u8);
                w.u32(open.map_or(0, |flags| flags.bits()));
                names.encode(w);
            }
            Self::Open { fid, flags } => {
                w.u64(fid.raw());
                w.u32(flags.bits());
            }
            Self::Create { dir, name, new, flags } => {
                w.u64(dir.raw());
                w.name(name);
                new.encode(w);
                w.u32(flags.bits());
            }
            Self::Mkdir { dir, name, new } => {
                w.u64(dir.raw());
                w.name(name);
                new.encode(w);
            }
            Self::Symlink { dir, name, target, new } => {
                w.u64(dir.raw());
                w.name(name);
                w.short_bytes(target);
                new.encode(w);
            }
            Self::Mknod { dir, name, kind, new } => {
                w.u64(dir.raw());
                w.name(name);
                w.u8(kind.file_kind().dirent());
                new.encode(w);
            }
            Self::Link { target, dir, name } => {
                w.u64(target.raw());
                w.u64(dir.raw());
                w.name(name);
            }
            Self::Unlink { dir, name, is_dir } => {
                w.u64(dir.raw());
                w.name(name);
                w.u8(u8::from(is_dir));
            }
            Self::Rename { old_dir, old_name, new_dir, new_name, flags } => {
                w.u64(old_dir.raw());
                w.name(old_name);
                w.u64(new_dir.raw());
                w.name(new_name);
                w.u32(flags.bits());
            }
            Self::Readlink { fid } | Self::Getattr { fid } | Self::Statfs { fid } | Self::ListXattr { fid } => {
                w.u64(fid.raw())
            }
            Self::Setattr { fid, set } => {
                w.u64(fid.raw());
                set.encode(w);
            }
            Self::ReadDir { dir, cookie, max_bytes, detail } => {
                w.u64(dir.raw());
                w.u64(cookie);
                w.u32(max_bytes);
                detail.encode(w);
            }
            Self::GetXattr { fid, name } | Self::RemoveXattr { fid, name } => {
                w.u64(fid.raw());
                w.short_bytes(name);
            }
            Self::SetXattr { fid, name, value, mode } => {
                w.u64(fid.raw());
                w.short_bytes(name);
                w.u8(mode as u8);
                w.long_bytes(value);
            }
            Self::Fsync { fid, data_only } => {
                w.u64(fid.raw());
                w.u8(u8::from(data_only));
            }
            Self::List { dir, detail, names } => {
                w.u64(dir.raw());
                detail.encode(w);
                names.encode(w);
            }
            Self::ReadFiles { dir, max_size, way, names } => {
                w.u64(dir.raw());
                w.u32(max_size);
                w.u8(way);
                names.encode(w);
            }
            Self::ListTree { dir, max_bytes, detail, names } => {
                w.u64(dir.raw());
                w.u32(max_bytes);
                detail.encode(w);
                names.encode(w);
            }
            Self::Release | Self::ReopenReadOnly => {}
        }
    }

    /// Decodes a packet.
    pub fn decode(packet: &'a [u8]) -> Result<(Header, Released<'a>, Self)> {
        let (header, mut r) = Header::decode(packet)?;
        if header.status != 0 {
            return Err(DecodeError::BadValue("status"));
        }
        let count = usize::from(header.aux);
        if count > MAX_RELEASE {
            return Err(DecodeError::TooLong("list of released fids"));
        }
        let released = Released(r.bytes(count * 8)?);
        let request = Self::decode_body(header.op, &mut r)?;
        r.end()?;
        Ok((header, released, request))
    }

    fn decode_body(op: Op, r: &mut Reader<'a>) -> Result<Self> {
        Ok(match op {
            Op::Hello => {
                let (magic, version) = (r.u32()?, r.u16()?);
                if (magic, version) != (crate::MAGIC, crate::VERSION) {
                    return Err(DecodeError::BadVersion);
                }
                Self::Hello { magic, version }
            }
            Op::Attach => Self::Attach { name: r.short_bytes(MAX_TARGET, "attach name")? },
            Op::Walk => {
                let (dir, fids) = (Fid::decode(r)?, WalkFids::decode(r.u8()?)?);
                let open = match r.u32()? {
                    0 => None,
                    raw => Some(OpenFlags::decode(raw)?),
                };
                Self::Walk { dir, fids, open, names: Names::decode(r, MAX_WALK)? }
            }
            Op::Open => Self::Open { fid: Fid::decode(r)?, flags: OpenFlags::decode(r.u32()?)? },
            Op::Create => Self::Create {
                dir: Fid::decode(r)?,
                name: r.name()?,
                new: NewNode::decode(r)?,
                flags: OpenFlags::decode(r.u32()?)?,
            },
            Op::Mkdir => Self::Mkdir { dir: Fid::decode(r)?, name: r.name()?, new: NewNode::decode(r)? },
            Op::Symlink => {
                let (dir, name) = (Fid::decode(r)?, r.name()?);
                let target = r.short_bytes(MAX_TARGET, "symlink target")?;
                if target.is_empty() || target.contains(&0) {
                    return Err(DecodeError::BadValue("symlink target"));
                }
                Self::Symlink { dir, name, target, new: NewNode::decode(r)? }
            }
            Op::Mknod => Self::Mknod {
                dir: Fid::decode(r)?,
                name: r.name()?,
                kind: MknodKind::decode(r.u8()?)?,
                new: NewNode::decode(r)?,
            },
            Op::Link => Self::Link { target: Fid::decode(r)?, dir: Fid::decode(r)?, name: r.name()? },
            Op::Unlink => Self::Unlink { dir: Fid::decode(r)?, name: r.name()?, is_dir: r.bool("is_dir")? },
            Op::Rename => Self::Rename {
                old_dir: Fid::decode(r)?,
                old_name: r.name()?,
                new_dir: Fid::decode(r)?,
                new_name: r.name()?,
                flags: RenameFlags::decode(r.u32()?)?,
            },
            Op::Readlink => Self::Readlink { fid: Fid::decode(r)? },
            Op::Getattr => Self::Getattr { fid: Fid::decode(r)? },
            Op::Setattr => Self::Setattr { fid: Fid::decode(r)?, set: SetAttr::decode(r)? },
            Op::ReadDir => {
                let (dir, cookie, max_bytes) = (Fid::decode(r)?, r.u64()?, r.u32()?);
                if max_bytes > MAX_DIR_BYTES {
                    return Err(DecodeError::TooLong("directory page"));
                }
                Self::ReadDir { dir, cookie, max_bytes, detail: Detail::decode(r)? }
            }
            Op::Statfs => Self::Statfs { fid: Fid::decode(r)? },
            Op::GetXattr => Self::GetXattr { fid: Fid::decode(r)?, name: decode_xattr_name(r)? },
            Op::SetXattr => {
                let (fid, name, mode) = (Fid::decode(r)?, decode_xattr_name(r)?, XattrMode::decode(r.u8()?)?);
                Self::SetXattr { fid, name, mode, value: r.long_bytes(MAX_XATTR, "xattr value")? }
            }
            Op::ListXattr => Self::ListXattr { fid: Fid::decode(r)? },
            Op::RemoveXattr => Self::RemoveXattr { fid: Fid::decode(r)?, name: decode_xattr_name(r)? },
            Op::Fsync => Self::Fsync { fid: Fid::decode(r)?, data_only: r.bool("data_only")? },
            Op::Release => Self::Release,
            Op::ReopenReadOnly => Self::ReopenReadOnly,
            Op::List => {
                let (dir, detail) = (Fid::decode(r)?, Detail::decode(r)?);
                Self::List { dir, detail, names: Names::decode(r, MAX_WALK)? }
            }
            Op::ReadFiles => {
                let (dir, max_size) = (Fid::decode(r)?, r.u32()?);
                if max_size > MAX_CONTENT {
                    return Err(DecodeError::TooLong("content"));
                }
                let (way, names) = (r.u8()?, Names::decode(r, MAX_FILES)?);
                if usize::from(way) >= names.len() {
                    return Err(DecodeError::BadValue("number of names"));
                }
                Self::ReadFiles { dir, max_size, way, names }
            }
            Op::ListTree => {
                let (dir, max_bytes) = (Fid::decode(r)?, r.u32()?);
                if max_bytes > MAX_DIR_BYTES {
                    return Err(DecodeError::TooLong("directory page"));
                }
                let detail = Detail::decode(r)?;
                Self::ListTree { dir, max_bytes, detail, names: Names::decode(r, MAX_WALK)? }
            }
        })
    }

    /// Checks whether the other side's decoder will accept the names and lengths. A client checks before it sends, so
    /// that a caller's mistake costs an errno and not the connection.
    pub fn check(&self) -> Result<()> {
        match *self {
            Self::Attach { name } if name.len() > MAX_TARGET => Err(DecodeError::TooLong("attach name")),
            Self::ReadFiles { max_size, .. } if max_size > MAX_CONTENT => Err(DecodeError::TooLong("content")),
            Self::ReadFiles { way, names, .. } if usize::from(way) >= names.len() => {
                Err(DecodeError::BadValue("number of names"))
            }
            Self::ListTree { max_bytes, .. } if max_bytes > MAX_DIR_BYTES => {
                Err(DecodeError::TooLong("directory page"))
            }
            Self::ReadDir { detail, .. } => detail.check(),
            Self::List { detail: Detail::Content(size), .. } | Self::ListTree { detail: Detail::Content(size), .. }
                if size > MAX_CONTENT =>
            {
                Err(DecodeError::TooLong("content"))
            }
            Self::Walk { names, .. }
            | Self::List { names, .. }
            | Self::ReadFiles { names, .. }
            | Self::ListTree { names, .. } => {
                if names.is_empty() {
                    return Err(DecodeError::BadValue("number of names"));
                }
                let most = if matches!(self, Self::ReadFiles { .. }) { MAX_FILES } else { MAX_WALK };
                if names.len() > most {
                    return Err(DecodeError::TooLong("list of names"));
                }
                names.iter().try_for_each(check_name)
            }
            Self::Symlink { name, target, .. } => {
                check_name(name)?;
                if target.len() > MAX_TARGET {
                    return Err(DecodeError::TooLong("symlink target"));
                }
                if target.is_empty() || target.contains(&0) {
                    return Err(DecodeError::BadValue("symlink target"));
                }
                Ok(())
            }
            Self::Create { name, flags, .. } => {
                OpenFlags::decode(flags.bits())?;
                check_name(name)
            }
            Self::Open { flags, .. } => OpenFlags::decode(flags.bits()).map(|_| ()),
            Self::Mkdir { name, .. }
            | Self::Mknod { name, .. }
            | Self::Link { name, .. }
            | Self::Unlink { name, .. } => check_name(name),
            Self::Rename { old_name, new_name, flags, .. } => {
                RenameFlags::decode(flags.bits())?;
                check_name(old_name)?;
                check_name(new_name)
            }
            Self::GetXattr { name, .. } | Self::RemoveXattr { name, .. } => check_xattr_name(name),
            Self::SetXattr { name, value, .. } => {
                if value.len() > MAX_XATTR {
                    return Err(DecodeError::TooLong("xattr value"));
                }
                check_xattr_name(name)
            }
            _ => Ok(()),
        }
    }
}

fn decode_xattr_name<'a>(r: &mut Reader<'a>) -> Result<&'a [u8]> {
    let name = r.short_bytes(MAX_NAME, "xattr name")?;
    check_xattr_name(name)?;
    Ok(name)
}

fn check_xattr_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(DecodeError::TooLong("xattr name"));
    }
    if name.is_empty() || name.contains(&0) {
        return Err(DecodeError::BadName);
    }
    Ok(())
}
