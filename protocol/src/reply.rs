//! Replies of the server.
//!
//! The server writes a reply with [`begin`], the body's own `encode`, and [`finish`]; or with [`error`] alone. The
//! client decodes it with [`Header::decode`] and the body's `decode`.

use crate::request::{Header, Op};
use crate::types::*;
use crate::wire::{DecodeError, Reader, Result, Writer};
use crate::{MAX_MESSAGE, MAX_TARGET, MAX_WALK};

/// Largest errno.
pub const MAX_ERRNO: u32 = 4095;

/// Replaces the content of `buf` by the header of a successful reply. The body follows, then [`finish`].
pub fn begin(buf: &mut Vec<u8>, op: Op, tag: u32) -> Writer<'_> {
    buf.clear();
    let mut w = Writer::new(buf);
    Header { length: 0, op, aux: 0, tag, status: 0 }.encode(&mut w);
    w
}

/// Completes the header: the length of the packet and the number of descriptors attached.
pub fn finish(buf: &mut Vec<u8>, descriptors: u16) {
    let length = u32::try_from(buf.len()).unwrap_or(u32::MAX);
    let mut w = Writer::new(buf);
    w.patch(0, &length.to_le_bytes());
    w.patch(6, &descriptors.to_le_bytes());
}

/// Replaces the content of `buf` by a complete error reply.
pub fn error(buf: &mut Vec<u8>, op: Op, tag: u32, errno: u32) {
    buf.clear();
    let length = u32::try_from(Header::SIZE).unwrap_or(0);
    Header { length, op, aux: 0, tag, status: errno.clamp(1, MAX_ERRNO) }.encode(&mut Writer::new(buf));
}

/// Rewrites a complete reply whose descriptor could not be sent: a walk stays valid, with its last node not opened;
/// any other operation has failed. Returns the fid that the original reply contained and is lost, if any.
pub fn without_descriptor(buf: &mut Vec<u8>, errno: u32) -> Result<Option<Fid>> {
    let errno = errno.clamp(1, MAX_ERRNO);
    let (header, mut body) = Header::decode(buf)?;
    match header.op {
        Op::Walk => {
            let walk = Walk::decode(&mut body)?;
            Walk { open_errno: errno, ..walk }.patch(&mut Writer::new(buf));
            finish(buf, 0);
            Ok(None)
        }
        op => {
            let fid = if op == Op::Create { Fid::decode_option(&mut body)? } else { None };
            error(buf, op, header.tag, errno);
            Ok(fid)
        }
    }
}

/// Answer to the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The server's version.
    pub version: u16,
    /// Limit of files held; beyond it new ones fail with `EMFILE`.
    pub max_fids: u32,
}

impl Hello {
    /// Appends it.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u16(self.version);
        w.u32(self.max_fids);
    }

    /// Reads it.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let hello = Self { version: r.u16()?, max_fids: r.u32()? };
        if hello.version != crate::VERSION {
            return Err(DecodeError::BadVersion);
        }
        Ok(hello)
    }
}

/// A node in a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRef<'a> {
    /// The fid made for it, if requested.
    pub fid: Option<Fid>,
    /// Its attributes.
    pub attr: Attr,
    /// Target of a symlink.
    pub target: Option<&'a [u8]>,
}

impl<'a> NodeRef<'a> {
    /// Appends it.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.fid.map_or(0, Fid::raw));
        self.attr.encode(w);
        w.short_bytes(self.target.unwrap_or(&[]));
    }

    /// Reads it.
    pub fn decode(r: &mut Reader<'a>) -> Result<Self> {
        let (fid, attr) = (Fid::decode_option(r)?, Attr::decode(r)?);
        let target = r.short_bytes(MAX_TARGET, "symlink target")?;
        if !target.is_empty() && attr.kind() != FileKind::Symlink {
            return Err(DecodeError::BadValue("symlink target"));
        }
        Ok(Self { fid, attr, target: (!target.is_empty()).then_some(target) })
    }
}

/// Why a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkEnd {
    /// Every name was found.
    Complete,
    /// The name after the last node does not exist.
    Missing,
    /// The last node is a symlink and names are left.
    Symlink,
    /// The last node is neither directory nor symlink and names are left.
    NotDirectory,
    /// Looking up the name after the last node failed with this errno.
    Failed(u32),
}

impl WalkEnd {
    fn parts(self) -> (u8, u32) {
        match self {
            Self::Complete => (0, 0),
            Self::Missing => (1, 0),
            Self::Symlink => (2, 0),
            Self::NotDirectory => (3, 0),
            Self::Failed(errno) => (4, errno.clamp(1, MAX_ERRNO)),
        }
    }

    fn from_parts(end: u8, errno: u32) -> Result<Self> {
        Ok(match (end, errno) {
            (0, 0) => Self::Complete,
            (1, 0) => Self::Missing,
            (2, 0) => Self::Symlink,
            (3, 0) => Self::NotDirectory,
            (4, 1..=MAX_ERRNO) => Self::Failed(errno),
            _ => return Err(DecodeError::BadValue("walk end")),
        })
    }
}

/// Answer to a walk: a fixed part, then the nodes found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    /// Nodes that follow.
    pub count: u16,
    /// Why the walk ended.
    pub end: WalkEnd,
    /// Errno of the attempt to open the last node; 0 if it succeeded (a descriptor is attached) or was not made.
    pub open_errno: u32,
}

impl Walk {
    /// Appends the fixed part.
    pub fn encode(&self, w: &mut Writer<'_>) {
        let (end, errno) = self.end.parts();
        w.u16(self.count);
        w.u8(end);
        w.u32(errno);
        w.u32(self.open_errno);
    }

    /// Overwrites the fixed part, written right after the header, once the outcome is known.
    pub fn patch(&self, w: &mut Writer<'_>) {
        let mut fixed = Vec::with_capacity(16);
        self.encode(&mut Writer::new(&mut fixed));
        w.patch(Header::SIZE, &fixed);
    }

    /// Reads the fixed part.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let count = r.u16()?;
        if usize::from(count) > MAX_WALK {
            return Err(DecodeError::TooLong("list of nodes"));
        }
        let end = WalkEnd::from_parts(r.u8()?, r.u32()?)?;
        let open_errno = r.u32()?;
        if open_errno > MAX_ERRNO {
            return Err(DecodeError::BadValue("errno"));
        }
        Ok(Self { count, end, open_errno })
    }
}

/// A directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Cookie for the part of the listing after this entry.
    pub cookie: u64,
    /// Its kind; some file systems do not report it.
    pub kind: FileKind,
    /// Its name.
    pub name: &'a [u8],
    /// Its attributes, if requested and if it still existed.
    pub attr: Option<Attr>,
    /// Its whole content, as long as the attributes say: for a small enough regular file, if requested and readable.
    pub content: Option<&'a [u8]>,
}

impl<'a> DirEntry<'a> {
    /// Bytes on the wire.
    pub fn size(&self) -> usize {
        let attr = if self.attr.is_some() { Attr::SIZE } else { 0 };
        8 + 8 + 1 + 1 + self.name.len() + 1 + attr + self.content.map_or(0, |c| 4 + c.len())
    }

    /// Appends it.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.ino);
        w.u64(self.cookie);
        w.u8(self.kind.dirent());
        w.name(self.name);
        match (&self.attr, self.content) {
            (None, _) => w.u8(0),
            (Some(attr), None) => {
                w.u8(1);
                attr.encode(w);
            }
            (Some(attr), Some(content)) => {
                w.u8(2);
                attr.encode(w);
                w.long_bytes(content);
            }
        }
    }

    /// The name only of the entry at the start of `bytes`, for searching entries that have been decoded before.
    pub fn peek_name(bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (&n, rest) = bytes.get(8 + 8 + 1..)?.split_first()?;
        rest.get(..usize::from(n))
    }

    /// Reads it.
    pub fn decode(r: &mut Reader<'a>) -> Result<Self> {
        let (ino, cookie) = (r.u64()?, r.u64()?);
        let kind = FileKind::from_dirent(r.u8()?).ok_or(DecodeError::BadValue("file kind"))?;
        let name = r.name()?;
        let told = r.u8()?;
        let attr = if told > 0 { Some(Attr::decode(r)?) } else { None };
        let content = match (told, &attr) {
            (2, Some(attr)) => Some(decode_content(r, attr)?),
            (0 | 1, _) => None,
            _ => return Err(DecodeError::BadValue("detail")),
        };
        Ok(Self { ino, cookie, kind, name, attr, content })
    }
}

/// Fixed part in front of a page of directory entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirPage {
    /// Entries that follow.
    pub count: u16,
    /// Whether the directory ends with them.
    pub eof: bool,
}

impl DirPage {
    /// Appends it.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u16(self.count);
        w.u8(u8::from(self.eof));
    }

    /// Overwrites the fixed part, written at byte `at` of the reply, once the outcome is known.
    pub fn patch(&self, w: &mut Writer<'_>, at: usize) {
        let [low, high] = self.count.to_le_bytes();
        w.patch(at, &[low, high, u8::from(self.eof)]);
    }

    /// Reads it.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { count: r.u16()?, eof: r.bool("eof")? })
    }
}

/// Fixed part in front of the page that answers a listing by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    /// The directory, if more pages follow.
    pub fid: Option<Fid>,
}

impl List {
    /// Appends it.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.fid.map_or(0, Fid::raw));
    }

    /// Overwrites the fixed part, written right after the header.
    pub fn patch(&self, w: &mut Writer<'_>) {
        w.patch(Header::SIZE, &self.fid.map_or(0, Fid::raw).to_le_bytes());
    }

    /// Reads it.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { fid: Fid::decode_option(r)? })
    }
}

/// Fixed part in front of each page in a reply to [`Op::ListTree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeDir<'a> {
    /// Its parent: 0 for the directory of the request, else the number of an earlier one of this reply; the first has
    /// number 1.
    pub parent: u16,
    /// Its name there.
    pub name: &'a [u8],
    /// Its attributes.
    pub attr: Attr,
}

impl<'a> TreeDir<'a> {
    /// Bytes on the wire.
    pub fn size(&self) -> usize {
        2 + 1 + self.name.len() + Attr::SIZE
    }

    /// Appends it.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u16(self.parent);
        w.name(self.name);
        self.attr.encode(w);
    }

    /// Reads it; it is number `number` of its reply.
    pub fn decode(r: &mut Reader<'a>, number: usize) -> Result<Self> {
        let dir = Self { parent: r.u16()?, name: r.name()?, attr: Attr::decode(r)? };
        if usize::from(dir.parent) >= number || dir.attr.kind() != FileKind::Directory {
            return Err(DecodeError::BadValue("directory"));
        }
        Ok(dir)
    }
}

/// The result for one name in a reply to [`Op::ReadFiles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileContent<'a> {
    /// Attributes and the whole content, as long as they say. `None` for files that are not regular, are too large,
    /// are being changed, or cannot be read.
    pub file: Option<(Attr, &'a [u8])>,
}

impl<'a> FileContent<'a> {
    /// Bytes on the wire for a file of `len` bytes.
    pub fn size(len: usize) -> usize {
        1 + Attr::SIZE + 4 + len
    }

    /// Appends it.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u8(u8::from(self.file.is_some()));
        if let Some((attr, content)) = &self.file {
            attr.encode(w);
            w.long_bytes(content);
        }
    }

    /// Reads it.
    pub fn decode(r: &mut Reader<'a>) -> Result<Self> {
        if !r.bool("has_content")? {
            return Ok(Self { file: None });
        }
        let attr = Attr::decode(r)?;
        let content = decode_content(r, &attr)?;
        Ok(Self { file: Some((attr, content)) })
    }
}

/// Reads the whole content of a file with these attributes.
fn decode_content<'a>(r: &mut Reader<'a>, attr: &Attr) -> Result<&'a [u8]> {
    let content = r.long_bytes(MAX_MESSAGE, "content")?;
    if attr.kind() != FileKind::Regular || attr.size != content.len() as u64 {
        return Err(DecodeError::BadValue("content"));
    }
    Ok(content)
}

/// Appends attributes as a body.
pub fn encode_attr(w: &mut Writer<'_>, attr: &Attr) {
    attr.encode(w);
}

/// Reads attributes as a body.
pub fn decode_attr(r: &mut Reader<'_>) -> Result<Attr> {
    Attr::decode(r)
}

/// Appends a statfs body.
pub fn encode_statfs(w: &mut Writer<'_>, stat: &StatFs) {
    stat.encode(w);
}

/// Reads a statfs body.
pub fn decode_statfs(r: &mut Reader<'_>) -> Result<StatFs> {
    StatFs::decode(r)
}

/// Reads a body of bytes with their length.
pub fn decode_bytes<'a>(r: &mut Reader<'a>) -> Result<&'a [u8]> {
    r.long_bytes(MAX_MESSAGE, "bytes")
}
