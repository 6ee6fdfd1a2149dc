//! The Sentry's side: a connection to a Gofer, and handles to the files it serves.
//!
//! Calls are synchronous and may be made from any thread; a call holds the connection for its whole round trip. Every
//! call can fail with any errno of the host call behind it, and also with:
//!
//! * `EIO`: the connection is lost, now or earlier ([`Client::is_dead`]), or the Gofer broke the protocol, which ends
//!   the connection, too;
//! * `EINVAL`, `ENAMETOOLONG`: a name that no directory entry can have; detected before anything is sent;
//! * `EMFILE`: the Gofer's limit of files held is reached. Drop handles and try again;
//! * `ENFILE`: this process has too many descriptors for the one that came along ([`Client::set_descriptor_bound`],
//!   or its own limit). The operation may have been carried out;
//! * `EROFS`: the tree is read-only.
//!
//! Dropping a [`Handle`] does not contact the Gofer: the fid joins a list that travels with the next request (or on
//! its own, without waiting, once the list is long). [`Client::flush`] sends the list now. Call it after the last
//! handle of a deleted file is dropped, since the host keeps the file's blocks until then.
//!
//! Lock order: `Inner::conn`, then `Inner::released`.

use std::fmt;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::Arc;

use nix::errno::Errno;
use parking_lot::Mutex;

use crate::reply::{self, NodeRef};
use crate::request::{Header, Names, Op, Request};
use crate::types::*;
use crate::wire::{DecodeError, Reader};
use crate::{transport, MAX_DIR_BYTES, MAX_MESSAGE, MAX_RELEASE};

pub use crate::reply::{DirEntry, WalkEnd};

/// Result of a call.
pub type Result<T> = std::result::Result<T, Errno>;

/// Length of the list of released fids at which dropping a handle tries to send it.
const RELEASE_AT: usize = 64;

/// A connection to a Gofer. Clones share it; it closes when the last clone and the last [`Handle`] are gone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    conn: Mutex<Conn>,
    released: Mutex<Vec<Fid>>,
    dead: AtomicBool,
    max_fids: u32,
    /// Requests sent, for statistics.
    requests: AtomicU64,
    /// Descriptors that come along must have numbers below this one.
    descriptor_bound: AtomicI32,
}

/// The descriptor of a reply, if any; an error if it could not be kept.
type Donated = Option<Result<OwnedFd>>;

struct Conn {
    socket: OwnedFd,
    tag: u32,
    request: Vec<u8>,
    reply: Box<[u8]>,
    releasing: Vec<Fid>,
}

/// A file that the Gofer holds for this client. Keeps the connection alive.
pub struct Handle {
    inner: Arc<Inner>,
    fid: Fid,
}

/// A file that was attached or created, with its attributes.
#[derive(Debug)]
pub struct Node {
    /// The file.
    pub handle: Handle,
    /// Its attributes.
    pub attr: Attr,
}

/// A node found on a walk.
#[derive(Debug)]
pub struct Walked {
    /// The file, if the walk requested a fid for this node.
    pub handle: Option<Handle>,
    /// Its attributes.
    pub attr: Attr,
    /// Target of a symlink.
    pub target: Option<Box<[u8]>>,
}

/// Outcome of a walk.
#[derive(Debug)]
pub struct Walk {
    /// The nodes found, in order. Fewer than the names requested unless `end` is `Complete`.
    pub nodes: Vec<Walked>,
    /// Why the walk ended.
    pub end: WalkEnd,
    /// The last node opened, if requested, if the walk was complete and the node is a regular file. The walk is valid
    /// even if this failed.
    pub file: Option<Result<OwnedFd>>,
}

/// Attributes and the whole content of a file; `None` if it could not be read this way.
pub type SmallFile = Option<(Attr, Box<[u8]>)>;

/// The first entries of a directory that was named.
#[derive(Debug)]
pub struct List {
    /// The directory, if there are more.
    pub rest: Option<Handle>,
    /// Attributes of what each name led to; the last is the directory.
    pub way: Vec<Attr>,
    /// Its first entries.
    pub page: DirPage,
}

/// A run of directory entries.
#[derive(Debug, Default)]
pub struct DirPage {
    bytes: Vec<u8>,
    /// Offset of each entry.
    at: Vec<u32>,
    /// The last entry's cookie.
    last: Option<u64>,
    /// Whether the directory ends here; otherwise the last entry's cookie leads to the next page.
    pub eof: bool,
}

/// A directory of a tree listing, and its first entries.
#[derive(Debug)]
pub struct TreePage {
    /// 0 for the directory of the request, else the number of an earlier one; the first has number 1.
    pub parent: usize,
    /// Its name there.
    pub name: Box<[u8]>,
    /// Its attributes.
    pub attr: Attr,
    /// Its entries.
    pub page: DirPage,
}

impl DirPage {
    fn decode(r: &mut Reader<'_>) -> crate::wire::Result<Self> {
        let head = reply::DirPage::decode(r)?;
        let start = r.rest();
        // An entry has at least 20 bytes, so this is less than the packet.
        let most = usize::from(head.count).min(start.len() / 20);
        let (mut at, mut last) = (Vec::with_capacity(most), None);
        for _ in 0..head.count {
            at.push(u32::try_from(start.len() - r.rest().len()).map_err(|_| DecodeError::TooLong("page"))?);
            last = Some(DirEntry::decode(r)?.cookie);
        }
        let bytes = start.get(..start.len() - r.rest().len()).ok_or(DecodeError::Truncated)?;
        Ok(DirPage { bytes: bytes.to_vec(), at, last, eof: head.eof })
    }

    /// The entries as received, one after the other, and the offset of each; decode them by [`DirEntry::decode`].
    pub fn into_parts(self) -> (Vec<u8>, Vec<u32>) {
        (self.bytes, self.at)
    }

    /// The cookie to continue from.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// The entries, without `.` and `..`.
    pub fn iter(&self) -> impl Iterator<Item = DirEntry<'_>> {
        let mut r = Reader::new(&self.bytes);
        self.at.iter().map_while(move |_| DirEntry::decode(&mut r).ok())
    }
}

impl Client {
    /// Takes over a connected `SOCK_SEQPACKET` socket and does the handshake with the Gofer at its other end.
    pub fn connect(socket: OwnedFd) -> Result<Self> {
        transport::check_socket(&socket).map_err(from_rustix)?;
        let mut inner = Inner {
            conn: Mutex::new(Conn {
                socket,
                tag: 0,
                request: Vec::with_capacity(1024),
                reply: vec![0; MAX_MESSAGE].into_boxed_slice(),
                releasing: Vec::with_capacity(MAX_RELEASE),
            }),
            released: Mutex::new(Vec::with_capacity(RELEASE_AT)),
            dead: AtomicBool::new(false),
            max_fids: 0,
            requests: AtomicU64::new(0),
            descriptor_bound: AtomicI32::new(RawFd::MAX),
        };
        let hello = Request::Hello { magic: crate::MAGIC, version: crate::VERSION };
        inner.max_fids = inner.call(&hello, None, |r, _| reply::Hello::decode(r))?.max_fids;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Requests sent so far.
    pub fn requests(&self) -> u64 {
        self.inner.requests.load(Ordering::Relaxed)
    }

    /// The root of a tree, by the name that the launcher gave it. `ENOENT` if there is none of that name.
    pub fn attach(&self, name: &str) -> Result<Node> {
        Inner::node(&self.inner, &Request::Attach { name: name.as_bytes() })
    }

    /// A read-only descriptor of the memory behind `memfd`, which the Gofer reopens: no mapping of it can become
    /// writable. `EINVAL` for anything but a memfd.
    pub fn reopen_read_only(&self, memfd: BorrowedFd<'_>) -> Result<OwnedFd> {
        self.inner.call(&Request::ReopenReadOnly, Some(memfd), |_, fd| fd.take().ok_or(DecodeError::BadDescriptors))?
    }

    /// From now on, descriptors that come along with this number or a higher one are closed, and the call fails with
    /// `ENFILE`.
    pub fn set_descriptor_bound(&self, number: RawFd) {
        self.inner.descriptor_bound.store(number, Ordering::Relaxed);
    }

    /// Sends the list of dropped handles to the Gofer, without waiting for it.
    pub fn flush(&self) {
        if !self.is_dead() {
            self.inner.send_released(&mut self.inner.conn.lock(), true);
        }
    }

    /// Whether the connection is lost. If so, every call fails with `EIO`, permanently.
    pub fn is_dead(&self) -> bool {
        self.inner.dead.load(Ordering::Relaxed)
    }

    /// The Gofer's limit of handles.
    pub fn max_handles(&self) -> u32 {
        self.inner.max_fids
    }
}

impl Handle {
    /// The fid, for display.
    pub fn fid(&self) -> Fid {
        self.fid
    }

    /// Another reference to the connection of this handle.
    pub fn client(&self) -> Client {
        Client { inner: self.inner.clone() }
    }

    /// Looks up `names` (1 to [`MAX_WALK`](crate::MAX_WALK)), one below the other, starting in this directory, and
    /// returns every node on the way. Stops early at a symlink, at a name that does not exist, and at a node that is
    /// no directory. If the last node is a regular file, opens it with the flags of `open`.
    pub fn walk(&self, names: &[&[u8]], fids: WalkFids, open: Option<OpenFlags>) -> Result<Walk> {
        let request = Request::Walk { dir: self.fid, fids, open, names: Names::List(names) };
        self.inner.call(&request, None, |r, fd| {
            let head = reply::Walk::decode(r)?;
            let mut nodes = Vec::with_capacity(usize::from(head.count));
            for _ in 0..head.count {
                let NodeRef { fid, attr, target } = NodeRef::decode(r)?;
                nodes.push(Walked {
                    handle: fid.map(|fid| Handle { inner: self.inner.clone(), fid }),
                    attr,
                    target: target.map(Into::into),
                });
            }
            let file = match (fd.take(), head.open_errno) {
                (Some(fd), 0) => Some(fd),
                (None, 0) => None,
                (None, errno) => Some(Err(errno_from_wire(errno))),
                (Some(_), _) => return Err(DecodeError::BadDescriptors),
            };
            Ok(Walk { nodes, end: head.end, file })
        })
    }

    /// Opens this regular file. Directories, devices, fifos and sockets are never opened: `EISDIR`, `ENXIO`; a
    /// symlink is `ELOOP`.
    pub fn open(&self, flags: OpenFlags) -> Result<OwnedFd> {
        self.open_and_look(flags).map(|(_, fd)| fd)
    }

    /// As [`open`](Self::open), with the attributes that the file has now.
    pub fn open_and_look(&self, flags: OpenFlags) -> Result<(Attr, OwnedFd)> {
        let (attr, fd) = self.inner.call(&Request::Open { fid: self.fid, flags }, None, |r, fd| {
            Ok((reply::decode_attr(r)?, fd.take().ok_or(DecodeError::BadDescriptors)?))
        })?;
        Ok((attr, fd?))
    }

    /// Creates a regular file in this directory and opens it. `EEXIST` if the name exists.
    pub fn create(&self, name: &[u8], new: NewNode, flags: OpenFlags) -> Result<(Node, OwnedFd)> {
        let (node, fd) = self.inner.call(&Request::Create { dir: self.fid, name, new, flags }, None, |r, fd| {
            let node = Inner::decode_node(&self.inner, r)?;
            Ok((node, fd.take().ok_or(DecodeError::BadDescriptors)?))
        })?;
        Ok((node, fd?))
    }

    /// Creates a directory in this one.
    pub fn mkdir(&self, name: &[u8], new: NewNode) -> Result<Node> {
        Inner::node(&self.inner, &Request::Mkdir { dir: self.fid, name, new })
    }

    /// Creates a symlink in this directory. The mode in `new` is ignored.
    pub fn symlink(&self, name: &[u8], target: &[u8], new: NewNode) -> Result<Node> {
        Inner::node(&self.inner, &Request::Symlink { dir: self.fid, name, target, new })
    }

    /// Creates a fifo, a socket or an empty regular file in this directory.
    pub fn mknod(&self, name: &[u8], kind: MknodKind, new: NewNode) -> Result<Node> {
        Inner::node(&self.inner, &Request::Mknod { dir: self.fid, name, kind, new })
    }

    /// Gives `target` another name, in this directory. Returns the same node, with a new handle.
    pub fn link(&self, name: &[u8], target: &Handle) -> Result<Node> {
        self.same_connection(target)?;
        Inner::node(&self.inner, &Request::Link { target: target.fid, dir: self.fid, name })
    }

    /// Removes a name from this directory; `is_dir` states the kind it must have, like `AT_REMOVEDIR`.
    pub fn unlink(&self, name: &[u8], is_dir: bool) -> Result<()> {
        self.inner.call(&Request::Unlink { dir: self.fid, name, is_dir }, None, |_, _| Ok(()))
    }

    /// Moves `old_name` in this directory to `new_name` in `new_dir`.
    pub fn rename(&self, old_name: &[u8], new_dir: &Handle, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        self.same_connection(new_dir)?;
        let request = Request::Rename { old_dir: self.fid, old_name, new_dir: new_dir.fid, new_name, flags };
        self.inner.call(&request, None, |_, _| Ok(()))
    }

    /// Target of this symlink. (A walk has already returned it.)
    pub fn readlink(&self) -> Result<Vec<u8>> {
        self.bytes(&Request::Readlink { fid: self.fid })
    }

    /// Current attributes.
    pub fn getattr(&self) -> Result<Attr> {
        self.inner.call(&Request::Getattr { fid: self.fid }, None, |r, _| reply::decode_attr(r))
    }

    /// Changes attributes, and returns all attributes afterwards. See [`SetAttr`] for the order.
    pub fn setattr(&self, set: SetAttr) -> Result<Attr> {
        self.inner.call(&Request::Setattr { fid: self.fid, set }, None, |r, _| reply::decode_attr(r))
    }

    /// A page of this directory's entries: those after `cookie`. 0 is for the first page (which reads the directory
    /// afresh), the last entry's cookie for the next.
    pub fn read_dir(&self, cookie: u64, detail: Detail) -> Result<DirPage> {
        let request = Request::ReadDir { dir: self.fid, cookie, max_bytes: MAX_DIR_BYTES, detail };
        self.inner.call(&request, None, |r, _| DirPage::decode(r))
    }

    /// The first page of the directory that `names` (1 to [`MAX_WALK`](crate::MAX_WALK)) lead to from this one, and a handle to get the others by, if
    /// there are any.
    pub fn list(&self, names: &[&[u8]], detail: Detail) -> Result<List> {
        let request = Request::List { dir: self.fid, detail, names: Names::List(names) };
        self.inner.call(&request, None, |r, _| {
            let fid = reply::List::decode(r)?.fid;
            let rest = fid.map(|fid| Handle { inner: self.inner.clone(), fid });
            let way = decode_way(r, names.len())?;
            Ok(List { rest, way, page: DirPage::decode(r)? })
        })
    }

    /// The directories `names` (1 to [`MAX_WALK`](crate::MAX_WALK)) in this one and the trees below them, up to
    /// `max_bytes`. Each directory precedes its contents, and only the last page may be incomplete.
    pub fn list_tree(&self, names: &[&[u8]], max_bytes: u32, detail: Detail) -> Result<Vec<TreePage>> {
        let request = Request::ListTree { dir: self.fid, max_bytes, detail, names: Names::List(names) };
        self.inner.call(&request, None, |r, _| {
            let mut pages = Vec::new();
            while !r.rest().is_empty() {
                let dir = reply::TreeDir::decode(r, pages.len() + 1)?;
                let (parent, name, attr) = (usize::from(dir.parent), dir.name.into(), dir.attr);
                pages.push(TreePage { parent, name, attr, page: DirPage::decode(r)? });
            }
            Ok(pages)
        })
    }

    /// Attributes and content of those regular files `names`, in the directory that `way` leads to from this one,
    /// that are no larger than `max_size`. `way` and `names` are together at most [`MAX_FILES`](crate::MAX_FILES)
    /// names, at least one of them a file. There are fewer answers than names if the reply is full.
    pub fn read_files(&self, way: &[&[u8]], names: &[&[u8]], max_size: u32) -> Result<Vec<SmallFile>> {
        self.read_files_below(way, names, max_size).map(|(_, files)| files)
    }

    /// As [`read_files`](Self::read_files), with the attributes of the directories that `way` leads through.
    pub fn read_files_below(
        &self,
        way: &[&[u8]],
        names: &[&[u8]],
        max_size: u32,
    ) -> Result<(Vec<Attr>, Vec<SmallFile>)> {
        let all = [way, names].concat();
        let levels = u8::try_from(way.len()).map_err(|_| Errno::E2BIG)?;
        let request = Request::ReadFiles { dir: self.fid, max_size, way: levels, names: Names::List(&all) };
        self.inner.call(&request, None, |r, _| {
            let way = decode_way(r, way.len())?;
            let mut files = Vec::with_capacity(names.len());
            while !r.rest().is_empty() {
                if files.len() == names.len() {
                    return Err(DecodeError::Trailing);
                }
                let file = reply::FileContent::decode(r)?.file;
                files.push(file.map(|(attr, content)| (attr, content.into())));
            }
            Ok((way, files))
        })
    }

    /// Statistics of the file system that contains this file.
    pub fn statfs(&self) -> Result<StatFs> {
        self.inner.call(&Request::Statfs { fid: self.fid }, None, |r, _| reply::decode_statfs(r))
    }

    /// Value of an extended attribute. `EOPNOTSUPP` for namespaces that the Gofer does not serve.
    pub fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.bytes(&Request::GetXattr { fid: self.fid, name })
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.inner.call(&Request::SetXattr { fid: self.fid, name, value, mode }, None, |_, _| Ok(()))
    }

    /// Names of the extended attributes, each terminated by NUL.
    pub fn list_xattr(&self) -> Result<Vec<u8>> {
        self.bytes(&Request::ListXattr { fid: self.fid })
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.inner.call(&Request::RemoveXattr { fid: self.fid, name }, None, |_, _| Ok(()))
    }

    /// Writes this regular file or directory to disk. (`fsync` on a descriptor of the file does the same.)
    pub fn fsync(&self, data_only: bool) -> Result<()> {
        self.inner.call(&Request::Fsync { fid: self.fid, data_only }, None, |_, _| Ok(()))
    }

    fn bytes(&self, request: &Request<'_>) -> Result<Vec<u8>> {
        self.inner.call(request, None, |r, _| reply::decode_bytes(r).map(<[u8]>::to_vec))
    }

    fn same_connection(&self, other: &Handle) -> Result<()> {
        if Arc::ptr_eq(&self.inner, &other.inner) {
            Ok(())
        } else {
            Err(Errno::EXDEV)
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let waiting = {
            let mut released = self.inner.released.lock();
            released.push(self.fid);
            released.len()
        };
        // A call in progress no longer takes the list along, but the next one will; so nothing is lost by not waiting
        // for the lock.
        if waiting >= RELEASE_AT && !self.inner.dead.load(Ordering::Relaxed) {
            if let Some(mut conn) = self.inner.conn.try_lock() {
                self.inner.send_released(&mut conn, false);
            }
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:#x})", self.fid.raw())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("dead", &self.is_dead()).finish_non_exhaustive()
    }
}

impl Inner {
    /// Sends a request, waits for its reply, and lets `parse` take the body (and the descriptor).
    ///
    /// `parse` runs with the connection locked and must make no call itself. It may drop handles: that only tries the
    /// lock.
    fn call<T>(
        &self,
        request: &Request<'_>,
        descriptor: Option<BorrowedFd<'_>>,
        parse: impl FnOnce(&mut Reader<'_>, &mut Donated) -> crate::wire::Result<T>,
    ) -> Result<T> {
        request.check().map_err(errno_from_check)?;
        let mut guard = self.conn.lock();
        if self.dead.load(Ordering::Relaxed) {
            return Err(Errno::EIO);
        }
        let conn = &mut *guard;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.take_released(&mut conn.releasing);
        conn.tag = conn.tag.wrapping_add(1);
        request.encode(&mut conn.request, conn.tag, &conn.releasing);
        match self.exchange(conn, request.op(), descriptor, parse) {
            Ok(result) => result,
            Err(why) => {
                self.die(conn, &why);
                Err(Errno::EIO)
            }
        }
    }

    /// The outer result is that of the connection, the inner one the Gofer's answer.
    fn exchange<T>(
        &self,
        conn: &mut Conn,
        op: Op,
        descriptor: Option<BorrowedFd<'_>>,
        parse: impl FnOnce(&mut Reader<'_>, &mut Donated) -> crate::wire::Result<T>,
    ) -> std::result::Result<Result<T>, Lost> {
        transport::send(&conn.socket, &conn.request, descriptor, true).map_err(Lost::Socket)?;
        let received = transport::receive(&conn.socket, &mut conn.reply, true).map_err(Lost::Socket)?;
        if received.len == 0 {
            return Err(Lost::Closed);
        }
        let packet = conn.reply.get(..received.len).ok_or(Lost::Reply(DecodeError::Truncated))?;
        let (header, mut r) = Header::decode(packet).map_err(Lost::Reply)?;
        if header.op != op || header.tag != conn.tag || header.status > reply::MAX_ERRNO {
            return Err(Lost::Reply(DecodeError::BadValue("reply header")));
        }
        let bound = self.descriptor_bound.load(Ordering::Relaxed);
        let mut donated = match received.descriptor {
            Some(fd) if fd.as_raw_fd() < bound => Some(Ok(fd)),
            Some(_) => Some(Err(Errno::ENFILE)),
            None => received.descriptor_lost.then_some(Err(Errno::ENFILE)),
        };
        if received.truncated || header.aux != u16::from(donated.is_some()) {
            return Err(Lost::Reply(DecodeError::BadDescriptors));
        }
        if header.status != 0 {
            return Ok(Err(errno_from_wire(header.status)));
        }
        let value = parse(&mut r, &mut donated).map_err(Lost::Reply)?;
        r.end().map_err(Lost::Reply)?;
        if donated.is_some() {
            return Err(Lost::Reply(DecodeError::BadDescriptors));
        }
        Ok(Ok(value))
    }

    /// Moves up to [`MAX_RELEASE`] waiting fids to `to`.
    fn take_released(&self, to: &mut Vec<Fid>) {
        to.clear();
        let mut released = self.released.lock();
        if released.len() <= MAX_RELEASE {
            mem::swap(&mut *released, to);
        } else {
            let keep = released.len() - MAX_RELEASE;
            to.extend(released.drain(keep..));
        }
    }

    /// Sends all waiting fids; without `block`, only as many as the socket has room for.
    fn send_released(&self, conn: &mut Conn, block: bool) {
        loop {
            self.take_released(&mut conn.releasing);
            if conn.releasing.is_empty() {
                return;
            }
            conn.tag = conn.tag.wrapping_add(1);
            Request::Release.encode(&mut conn.request, conn.tag, &conn.releasing);
            match transport::send(&conn.socket, &conn.request, None, block) {
                Ok(()) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.released.lock().append(&mut conn.releasing);
                    return;
                }
                Err(e) => return self.die(conn, &Lost::Socket(e)),
            }
        }
    }

    fn die(&self, conn: &Conn, why: &Lost) {
        self.dead.store(true, Ordering::Relaxed);
        // The process that started the Gofer reports how it ended; a malformed reply is known only here.
        let level = if matches!(why, Lost::Reply(_)) { log::Level::Error } else { log::Level::Debug };
        log::log!(level, "lost the Gofer: {why}");
        // The other side may be waiting. A failure here has no consequence.
        let _ = rustix::net::shutdown(conn.socket.as_fd(), rustix::net::Shutdown::Both);
    }

    fn node(this: &Arc<Self>, request: &Request<'_>) -> Result<Node> {
        this.call(request, None, |r, _| Self::decode_node(this, r))
    }

    fn decode_node(this: &Arc<Self>, r: &mut Reader<'_>) -> crate::wire::Result<Node> {
        let NodeRef { fid, attr, .. } = NodeRef::decode(r)?;
        let fid = fid.ok_or(DecodeError::BadValue("fid"))?;
        Ok(Node { handle: Handle { inner: this.clone(), fid }, attr })
    }
}

/// The attributes of the directories that `levels` names lead through.
fn decode_way(r: &mut Reader<'_>, levels: usize) -> crate::wire::Result<Vec<Attr>> {
    (0..levels).map(|_| reply::decode_attr(r)).collect()
}

/// Why the connection is given up.
enum Lost {
    Closed,
    Socket(rustix::io::Errno),
    Reply(DecodeError),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => write!(f, "it closed the connection"),
            Self::Socket(e) => write!(f, "{e}"),
            Self::Reply(e) => write!(f, "bad reply: {e}"),
        }
    }
}

fn from_rustix(e: rustix::io::Errno) -> Errno {
    Errno::from_raw(e.raw_os_error())
}

fn errno_from_wire(errno: u32) -> Errno {
    i32::try_from(errno).map_or(Errno::EIO, Errno::from_raw)
}

/// The errno for a request that the decoder would reject.
fn errno_from_check(e: DecodeError) -> Errno {
    match e {
        DecodeError::TooLong("xattr name") => Errno::ERANGE,
        DecodeError::TooLong("xattr value" | "list of names") => Errno::E2BIG,
        DecodeError::TooLong(_) => Errno::ENAMETOOLONG,
        _ => Errno::EINVAL,
    }
}
