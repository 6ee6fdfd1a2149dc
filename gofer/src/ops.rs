//! Operations on names and nodes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::reply::{self, NodeRef, WalkEnd};
use protocol::request::Names;
use protocol::wire::Writer;
use protocol::{
    Attr, Fid, FileKind, MknodKind, NewNode, OpenFlags, RenameFlags, SetAttr, SetTime, WalkFids, MAX_MESSAGE,
    MAX_TARGET,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use crate::dir::ListingState;
use crate::fids::File;
use crate::parallel::{self, Form, Items};
use crate::server::{Answer, Server};
use crate::sys;

/// Set-user-id, set-group-id and sticky bits.
const SPECIAL_BITS: u32 = 0o7000;

impl Server {
    pub(crate) fn attach(&mut self, name: &[u8], w: &mut Writer<'_>) -> Answer {
        let (index, tree) =
            self.trees.iter().enumerate().find(|(_, tree)| tree.name.as_bytes() == name).ok_or(Errno::NOENT)?;
        let attr = sys::look(&tree.root)?;
        let file =
            File { fd: tree.root.try_clone().map_err(io)?, kind: tree.kind, tree: index, read_only: tree.read_only };
        self.reply_node(file, attr, w)
    }

    /// Adds a node to the table and replies with its fid and attributes.
    fn reply_node(&mut self, file: File, attr: Attr, w: &mut Writer<'_>) -> Answer {
        let fid = self.fids.insert(file)?;
        NodeRef { fid: Some(fid), attr, target: None }.encode(w);
        Ok(None)
    }

    pub(crate) fn walk(
        &mut self,
        dir: Fid,
        fids: WalkFids,
        open: Option<OpenFlags>,
        names: Names<'_>,
        w: &mut Writer<'_>,
    ) -> Answer {
        let start = self.fids.get(dir)?;
        start.check_directory()?;
        let (tree, read_only) = (start.tree, start.read_only);
        let mut head = reply::Walk { count: 0, end: WalkEnd::Complete, open_errno: 0 };
        let mut opened = None;
        head.encode(w);

        // The directory of the next lookup: held under a fid, or dropped after the next step.
        enum At {
            Held(Fid),
            Passing(OwnedFd),
        }
        let mut at = At::Held(dir);
        let mut target_buf = [0; MAX_TARGET];
        let last = names.len() - 1;
        for (i, name) in names.iter().enumerate() {
            let parent = match &at {
                At::Held(fid) => self.fids.get(*fid)?.fd.as_fd(),
                At::Passing(fd) => fd.as_fd(),
            };
            let (fd, attr) = match sys::open_child(parent, name).and_then(|fd| Ok((sys::look(&fd)?, fd))) {
                Ok((attr, fd)) => (fd, attr),
                Err(e) => {
                    head.end = if e == Errno::NOENT { WalkEnd::Missing } else { WalkEnd::Failed(wire_errno(e)) };
                    break;
                }
            };
            let kind = attr.kind();
            let target = match kind {
                FileKind::Symlink => sys::readlink(&fd, &mut target_buf).ok().filter(|t| !t.is_empty()),
                _ => None,
            };
            let end = match kind {
                _ if i == last => Some(WalkEnd::Complete),
                FileKind::Directory => None,
                FileKind::Symlink => Some(WalkEnd::Symlink),
                _ => Some(WalkEnd::NotDirectory),
            };
            if let (true, FileKind::Regular, Some(flags)) = (i == last, kind, open) {
                match self.open_regular(fd.as_fd(), flags, read_only) {
                    Ok(file) => opened = Some(file),
                    Err(e) => head.open_errno = wire_errno(e),
                }
            }
            let wants_fid = fids == WalkFids::Each || (fids == WalkFids::Last && end.is_some());
            let fid = if wants_fid {
                match self.fids.insert(File { fd, kind, tree, read_only }) {
                    Ok(fid) => {
                        at = At::Held(fid);
                        Some(fid)
                    }
                    Err(e) => {
                        head.end = WalkEnd::Failed(wire_errno(e));
                        (opened, head.open_errno) = (None, 0);
                        break;
                    }
                }
            } else {
                at = At::Passing(fd);
                None
            };
            NodeRef { fid, attr, target }.encode(w);
            head.count += 1;
            if let Some(end) = end {
                head.end = end;
                break;
            }
        }
        head.patch(w);
        Ok(opened)
    }

    pub(crate) fn open(&mut self, fid: Fid, flags: OpenFlags, w: &mut Writer<'_>) -> Answer {
        let file = self.fids.get(fid)?;
        match file.kind {
            FileKind::Regular => {
                let opened = self.open_regular(file.fd.as_fd(), flags, file.read_only)?;
                reply::encode_attr(w, &sys::look(&file.fd)?);
                Ok(Some(opened))
            }
            FileKind::Directory => Err(Errno::ISDIR),
            FileKind::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    /// Contents of small files, until the reply is full.
    pub(crate) fn read_files(
        &mut self,
        dir: Fid,
        max_size: u32,
        way: u8,
        names: Names<'_>,
        w: &mut Writer<'_>,
    ) -> Answer {
        let start = self.fids.get(dir)?;
        start.check_directory()?;
        let mut names = names.iter();
        let found = sys::open_way(&start.fd, names.by_ref().take(way.into()), |a| reply::encode_attr(w, a))?;
        let dir = found.as_ref().map_or(start.fd.as_fd(), |fd| fd.as_fd());
        let mut items = Items::default();
        names.for_each(|name| items.push(0, 0, FileKind::Unknown, name));
        let ListingState { second, room, .. } = &mut self.listing;
        let most = MAX_MESSAGE.saturating_sub(w.len());
        parallel::look(second.as_ref(), dir, Form::Content(max_size), &mut items, most, room, |answer| {
            let fits = w.len() + answer.len() <= MAX_MESSAGE;
            if fits {
                w.bytes(answer);
            }
            fits
        });
        Ok(None)
    }

    /// Opens a node known to be a regular file.
    fn open_regular(&self, fd: BorrowedFd<'_>, flags: OpenFlags, read_only: bool) -> Result<OwnedFd, Errno> {
        if read_only && flags.writes() {
            return Err(Errno::ROFS);
        }
        self.descriptors.reopen(fd, sys::host_flags(flags))
    }

    pub(crate) fn create(
        &mut self,
        dir: Fid,
        name: &[u8],
        new: NewNode,
        flags: OpenFlags,
        w: &mut Writer<'_>,
    ) -> Answer {
        self.fids.check_room()?;
        let parent = self.fids.get(dir)?;
        let (tree, parent) = (parent.tree, writable_dir(parent)?);
        let maker = sys::Maker::become_ids(new.uid, new.gid)?;
        let opened = sys::create(parent, name, flags, new.mode)?;
        drop(maker);
        let finish = || -> Result<_, Errno> {
            let fd = self.descriptors.hold(&opened)?;
            let attr = self.finish_new(fd.as_fd(), new.mode)?;
            Ok((fd, attr))
        };
        let (fd, attr) = finish().inspect_err(|_| undo(parent, name, &opened))?;
        let file = File { fd, kind: FileKind::Regular, tree, read_only: false };
        self.reply_node(file, attr, w)?;
        Ok(Some(opened))
    }

    pub(crate) fn mkdir(&mut self, dir: Fid, name: &[u8], new: NewNode, w: &mut Writer<'_>) -> Answer {
        let make = |parent: BorrowedFd<'_>| rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(new.mode));
        self.make(dir, name, FileKind::Directory, new, make, w)
    }

    pub(crate) fn symlink(&mut self, dir: Fid, name: &[u8], target: &[u8], new: NewNode, w: &mut Writer<'_>) -> Answer {
        self.make(dir, name, FileKind::Symlink, new, |parent| rustix::fs::symlinkat(target, parent, name), w)
    }

    pub(crate) fn mknod(&mut self, dir: Fid, name: &[u8], kind: MknodKind, new: NewNode, w: &mut Writer<'_>) -> Answer {
        let file_type = match kind {
            MknodKind::Regular => FileType::RegularFile,
            MknodKind::Fifo => FileType::Fifo,
            MknodKind::Socket => FileType::Socket,
        };
        let mode = Mode::from_raw_mode(new.mode);
        let make = |parent: BorrowedFd<'_>| rustix::fs::mknodat(parent, name, file_type, mode, 0);
        self.make(dir, name, kind.file_kind(), new, make, w)
    }

    /// Has `make` make a node named `name` in a directory, holds it for the client and tells it so.
    ///
    /// It is made with its owner. Nothing else is done to it: others may have put another node in its place by the time it can be held, and if that
    /// cannot be done, nobody could tell what there is to be removed.
    fn make(
        &mut self,
        dir: Fid,
        name: &[u8],
        kind: FileKind,
        new: NewNode,
        make: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
        w: &mut Writer<'_>,
    ) -> Answer {
        self.fids.check_room()?;
        let parent = self.fids.get(dir)?;
        let tree = parent.tree;
        let maker = sys::Maker::become_ids(new.uid, new.gid)?;
        make(writable_dir(parent)?)?;
        drop(maker);
        let fd = sys::open_child(&parent.fd, name)?;
        let attr = sys::stat(&fd)?;
        if attr.kind() != kind {
            return Err(Errno::IO);
        }
        self.reply_node(File { fd, kind, tree, read_only: false }, attr, w)
    }

    /// Special mode bits of a new file that the host has not set.
    fn finish_new(&self, fd: BorrowedFd<'_>, mode: u32) -> Result<Attr, Errno> {
        let attr = sys::stat(fd)?;
        let missing = mode & SPECIAL_BITS & !attr.mode;
        if missing == 0 {
            return Ok(attr);
        }
        self.descriptors.chmod(fd, attr.mode | missing)?;
        sys::stat(fd)
    }

    pub(crate) fn link(&mut self, target: Fid, dir: Fid, name: &[u8], w: &mut Writer<'_>) -> Answer {
        let (file, parent) = (self.fids.get(target)?, self.fids.get(dir)?);
        if file.tree != parent.tree {
            return Err(Errno::XDEV);
        }
        self.descriptors.link(&file.fd, writable_dir(parent)?, name)?;
        let copy =
            File { fd: file.fd.try_clone().map_err(io)?, kind: file.kind, tree: file.tree, read_only: file.read_only };
        let attr = sys::look(&copy.fd)?;
        self.reply_node(copy, attr, w)
    }

    pub(crate) fn unlink(&mut self, dir: Fid, name: &[u8], is_dir: bool) -> Answer {
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let dir = writable_dir(self.fids.get(dir)?)?;
        sys::check_no_mount(dir, name)?;
        rustix::fs::unlinkat(dir, name, flags)?;
        Ok(None)
    }

    pub(crate) fn rename(
        &mut self,
        old_dir: Fid,
        old_name: &[u8],
        new_dir: Fid,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Answer {
        let (old, new) = (self.fids.get(old_dir)?, self.fids.get(new_dir)?);
        if old.tree != new.tree {
            return Err(Errno::XDEV);
        }
        let mut host = rustix::fs::RenameFlags::empty();
        host.set(rustix::fs::RenameFlags::NOREPLACE, flags.contains(RenameFlags::NOREPLACE));
        host.set(rustix::fs::RenameFlags::EXCHANGE, flags.contains(RenameFlags::EXCHANGE));
        let (old, new) = (writable_dir(old)?, writable_dir(new)?);
        sys::check_no_mount(old, old_name)?;
        // With NOREPLACE the host returns EEXIST for any existing name.
        if !flags.contains(RenameFlags::NOREPLACE) {
            match sys::check_no_mount(new, new_name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        rustix::fs::renameat_with(old, old_name, new, new_name, host)?;
        Ok(None)
    }

    pub(crate) fn readlink(&mut self, fid: Fid, w: &mut Writer<'_>) -> Answer {
        let file = self.fids.get(fid)?;
        if file.kind != FileKind::Symlink {
            return Err(Errno::INVAL);
        }
        let mut target = [0; MAX_TARGET];
        w.long_bytes(sys::readlink(&file.fd, &mut target)?);
        Ok(None)
    }

    pub(crate) fn setattr(&mut self, fid: Fid, set: SetAttr, w: &mut Writer<'_>) -> Answer {
        let file = self.fids.get(fid)?;
        file.check_writable()?;
        if let Some(size) = set.size {
            match file.kind {
                FileKind::Regular => {}
                FileKind::Directory => return Err(Errno::ISDIR),
                _ => return Err(Errno::INVAL),
            }
            rustix::fs::ftruncate(self.descriptors.reopen(&file.fd, OFlags::WRONLY)?, size)?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            sys::chown(&file.fd, set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            if file.kind == FileKind::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            self.descriptors.chmod(&file.fd, mode)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times = Timestamps { last_access: timespec(set.atime), last_modification: timespec(set.mtime) };
            rustix::fs::utimensat(&file.fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        reply::encode_attr(w, &sys::look(&file.fd)?);
        Ok(None)
    }

    pub(crate) fn fsync(&mut self, fid: Fid, data_only: bool) -> Answer {
        let file = self.fids.get(fid)?;
        if !matches!(file.kind, FileKind::Regular | FileKind::Directory) {
            return Err(Errno::INVAL);
        }
        let fd = self.descriptors.reopen(&file.fd, OFlags::RDONLY)?;
        if data_only {
            rustix::fs::fdatasync(fd)?;
        } else {
            rustix::fs::fsync(fd)?;
        }
        Ok(None)
    }

    pub(crate) fn reopen_read_only(&mut self, memfd: Option<OwnedFd>) -> Answer {
        let memfd = memfd.ok_or(Errno::NFILE)?;
        if !sys::is_memfd(&memfd)? {
            return Err(Errno::INVAL);
        }
        self.descriptors.reopen(&memfd, OFlags::RDONLY).map(Some)
    }
}

/// The descriptor of a directory whose entries may be changed.
fn writable_dir(dir: &File) -> Result<BorrowedFd<'_>, Errno> {
    dir.check_directory()?;
    dir.check_writable()?;
    Ok(dir.fd.as_fd())
}

/// Removes the name of a file that was made but could not be finished, if it is still that file's. If that fails too it stays, as it does when a system
/// call is cut off in the middle.
fn undo(dir: BorrowedFd<'_>, name: &[u8], made: &OwnedFd) {
    let same = || Ok::<_, Errno>((sys::stat_child(dir, name)?, sys::stat(made)?));
    let removed = same().and_then(|(there, made)| {
        if (there.dev, there.ino) == (made.dev, made.ino) {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())
        } else {
            Ok(())
        }
    });
    if let Err(e) = removed {
        log::warn!("an unfinished file stays behind: {e}");
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(t)) => Timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() },
    }
}

fn wire_errno(e: Errno) -> u32 {
    u32::try_from(e.raw_os_error()).unwrap_or(reply::MAX_ERRNO)
}

/// The errno of a `std::io::Error`.
pub(crate) fn io(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}
