//! Directory listings.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::reply::{self, DirEntry, DirPage, TreeDir};
use protocol::request::Names;
use protocol::wire::{check_name, Reader, Writer};
use protocol::{Detail, Fid, FileKind};
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use crate::fids::File;
use crate::ops::io;
use crate::parallel::{self, Form, Items, Scratch, Second};
use crate::server::{Answer, Server};
use crate::sys;

/// Most directories open for listing at a time.
const MAX_STREAMS: usize = 32;

/// Most levels of one tree listing; each level holds a descriptor.
const MAX_LEVELS: usize = 32;

/// Entries examined together.
const BATCH: usize = 128;

/// Smallest page: holds one entry with attributes, whatever its name.
const MIN_PAGE: usize = 512;

/// Directories open for listing, the most recently used last.
///
/// A directory is opened for its first page and closed after its last, so that a file system that keeps state with
/// the open directory (a snapshot, a cursor) sees one listing as a whole. If there are too many, the least recently
/// used one is closed; its listing continues from the cookie alone.
#[derive(Debug, Default)]
pub struct Streams(VecDeque<(Fid, OwnedFd)>);

impl Streams {
    fn take(&mut self, fid: Fid) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(f, _)| *f == fid)?;
        self.0.remove(at).map(|(_, fd)| fd)
    }

    fn put(&mut self, fid: Fid, fd: OwnedFd) {
        if self.0.len() >= MAX_STREAMS {
            self.0.pop_front();
        }
        self.0.push_back((fid, fd));
    }

    /// Closes the listing of this directory, if any.
    pub fn close(&mut self, fid: Fid) {
        self.take(fid);
    }
}

impl Server {
    pub(crate) fn read_dir(
        &mut self,
        dir: Fid,
        cookie: u64,
        max_bytes: u32,
        detail: Detail,
        w: &mut Writer<'_>,
    ) -> Answer {
        let file = self.fids.get(dir)?;
        file.check_directory()?;
        let stream = match self.streams.take(dir) {
            Some(stream) => stream,
            None => self.descriptors.reopen(&file.fd, OFlags::RDONLY | OFlags::DIRECTORY)?,
        };
        if i64::try_from(cookie).is_err() {
            return Err(Errno::INVAL);
        }
        rustix::fs::seek(&stream, SeekFrom::Start(cookie))?;
        let max_bytes = usize::try_from(max_bytes).unwrap_or(0);
        let page = self.listing.fill(stream.as_fd(), file.fd.as_fd(), max_bytes, detail, None, w)?;
        if !page.eof {
            self.streams.put(dir, stream);
        }
        Ok(None)
    }

    /// The first page of the directory that `names` lead to, and a fid for further pages, if any.
    pub(crate) fn list(&mut self, dir: Fid, names: Names<'_>, detail: Detail, w: &mut Writer<'_>) -> Answer {
        let start = self.fids.get(dir)?;
        start.check_directory()?;
        let (tree, read_only) = (start.tree, start.read_only);
        // The decoder lets no empty list of names pass.
        reply::List { fid: None }.encode(w);
        let way = w.len();
        let fd = sys::open_way(&start.fd, names.iter(), |a| reply::encode_attr(w, a))?.ok_or(Errno::INVAL)?;
        // Not a directory: ENOTDIR. Nothing else is opened by this.
        let stream = self.descriptors.reopen(&fd, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let max_bytes = (protocol::MAX_DIR_BYTES as usize).saturating_sub(w.len() - way);
        let page = self.listing.fill(stream.as_fd(), fd.as_fd(), max_bytes, detail, None, w)?;
        if !page.eof {
            let fid = self.fids.insert(File { fd, kind: FileKind::Directory, tree, read_only })?;
            reply::List { fid: Some(fid) }.patch(w);
            self.streams.put(fid, stream);
        }
        Ok(None)
    }

    /// Lists several directories of `dir` and the trees below them, on the same file system, until the reply is full.
    pub(crate) fn list_tree(
        &mut self,
        dir: Fid,
        max_bytes: u32,
        detail: Detail,
        names: Names<'_>,
        w: &mut Writer<'_>,
    ) -> Answer {
        let top = self.fids.get(dir)?;
        top.check_directory()?;
        let device = sys::stat(&top.fd)?.dev;
        let end = w.len() + usize::try_from(max_bytes).unwrap_or(0);
        let mut left: Vec<Box<[u8]>> = names.iter().map(Box::from).collect();
        left.reverse();
        let mut levels = vec![Level { fd: top.fd.try_clone().map_err(io)?, number: 0, left }];
        let mut number = 0u16;
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.left.pop() else {
                levels.pop();
                continue;
            };
            let open = || -> Result<_, Errno> {
                let fd = sys::open_child(&level.fd, &name)?;
                let attr = sys::look(&fd)?;
                if attr.kind() != FileKind::Directory || attr.dev != device {
                    return Err(Errno::NOTDIR);
                }
                Ok((self.descriptors.reopen(&fd, OFlags::RDONLY | OFlags::DIRECTORY)?, fd, attr))
            };
            // A client that asks for this directory alone gets its error.
            let Ok((stream, fd, attr)) = open() else { continue };
            let start = w.len();
            let record = TreeDir { parent: level.number, name: &name, attr };
            let room = end.saturating_sub(start + record.size());
            if room < MIN_PAGE || number == u16::MAX {
                break;
            }
            record.encode(w);
            let mut left = Vec::new();
            match self.listing.fill(stream.as_fd(), fd.as_fd(), room, detail, Some(&mut left), w) {
                Ok(page) if page.eof => {}
                Ok(page) if page.count > 0 => break,
                _ => {
                    w.truncate(start);
                    break;
                }
            }
            number += 1;
            if !left.is_empty() && levels.len() < MAX_LEVELS {
                left.reverse();
                levels.push(Level { fd, number, left });
            }
        }
        Ok(None)
    }
}

/// A directory on the current path of a tree listing.
struct Level {
    fd: OwnedFd,
    /// Its number in the reply.
    number: u16,
    /// Subdirectories still to be listed, in reverse order.
    left: Vec<Box<[u8]>>,
}

/// Buffers and threads for listings and contents.
#[derive(Debug)]
pub struct ListingState {
    entries: Box<[MaybeUninit<u8>]>,
    pub room: Scratch,
    pub second: Option<Second>,
}

impl ListingState {
    pub fn new(second: Option<Second>) -> Self {
        let entries = vec![MaybeUninit::uninit(); 32 * 1024].into_boxed_slice();
        Self { entries, room: Scratch::new(), second }
    }

    /// Appends a page of the next entries of `stream` (the directory `dir`, open for reading), and collects the names
    /// of subdirectories.
    fn fill(
        &mut self,
        stream: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
        max_bytes: usize,
        detail: Detail,
        mut subdirectories: Option<&mut Vec<Box<[u8]>>>,
        w: &mut Writer<'_>,
    ) -> Result<DirPage, Errno> {
        let mut page = DirPage { count: 0, eof: true };
        let head = w.len();
        page.encode(w);
        let end = w.len() + max_bytes.max(MIN_PAGE);
        let mut entries = RawDir::new(stream, &mut self.entries);
        let mut items = Items::default();
        let mut failed = None;
        while failed.is_none() {
            items.clear();
            while items.len() < BATCH {
                match entries.next() {
                    Some(Ok(entry)) => {
                        let name = entry.file_name().to_bytes();
                        // This skips `.` and `..`, and anything that only a broken file system could return.
                        if check_name(name).is_ok() {
                            items.push(entry.ino(), entry.next_entry_cookie(), kind(entry.file_type()), name);
                        }
                    }
                    Some(Err(e)) => {
                        failed = Some(e);
                        break;
                    }
                    None => break,
                }
            }
            let mut left = items.len();
            if left == 0 {
                break;
            }
            let form = Form::Entry(detail);
            let most = end.saturating_sub(w.len());
            parallel::look(self.second.as_ref(), dir, form, &mut items, most, &mut self.room, |answer| {
                let Ok(mut entry) = DirEntry::decode(&mut Reader::new(answer)) else { return false };
                let room = end.saturating_sub(w.len());
                if page.count == 0 && answer.len() > room {
                    entry.content = None;
                }
                if entry.size() > room || page.count == u16::MAX {
                    return false;
                }
                if entry.size() == answer.len() {
                    w.bytes(answer);
                } else {
                    entry.encode(w);
                }
                page.count += 1;
                left -= 1;
                if let (Some(list), FileKind::Directory) = (&mut subdirectories, entry.kind) {
                    list.push(entry.name.into());
                }
                true
            });
            if left > 0 {
                page.eof = false;
                break;
            }
        }
        match failed {
            // The entries read so far are an answer; the error will recur for the next page.
            Some(_) if page.count > 0 => page.eof = false,
            Some(e) => return Err(e),
            None => {}
        }
        page.patch(w, head);
        Ok(page)
    }
}

fn kind(file_type: FileType) -> FileKind {
    match file_type {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Unknown => FileKind::Unknown,
    }
}
