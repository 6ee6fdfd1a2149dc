//! Reads requests, carries them out, sends replies.

use std::os::fd::{AsFd, OwnedFd};

use protocol::reply;
use protocol::request::Request;
use protocol::wire::{DecodeError, Writer};
use protocol::{transport, Detail, MAX_MESSAGE};
use rustix::io::Errno;

use crate::dir::{ListingState, Streams};
use crate::fids::Fids;
use crate::{setup, sys, Error, Gofer, OpenTree};

/// State of the server, which handles one request at a time.
pub struct Server {
    conn: OwnedFd,
    greeted: bool,
    pub(crate) trees: Vec<OpenTree>,
    pub(crate) descriptors: sys::Descriptors,
    pub(crate) fids: Fids,
    pub(crate) max_fids: u32,
    pub(crate) streams: Streams,
    pub(crate) listing: ListingState,
}

/// Outcome of a request: its body is written, perhaps with a descriptor to attach; or it failed, and the body written
/// so far is void.
pub type Answer = Result<Option<OwnedFd>, Errno>;

enum Reply {
    None,
    Send(Option<OwnedFd>),
}

impl Server {
    /// Prepares to serve.
    pub fn new(gofer: Gofer, conn: OwnedFd) -> Result<Self, Error> {
        transport::check_socket(&conn).map_err(setup("the connection"))?;
        Ok(Self {
            conn,
            greeted: false,
            trees: gofer.trees,
            descriptors: gofer.descriptors,
            fids: Fids::new(gofer.max_fids),
            max_fids: gofer.max_fids,
            streams: Streams::default(),
            listing: ListingState::new(gofer.second),
        })
    }

    /// Serves until the connection ends.
    pub fn run(mut self) -> Result<(), Error> {
        let mut packet = vec![0; MAX_MESSAGE];
        let mut answer = Vec::with_capacity(MAX_MESSAGE);
        loop {
            let received = match transport::receive(&self.conn, &mut packet, true) {
                Ok(received) => received,
                Err(Errno::CONNRESET) => return Ok(()),
                Err(e) => return Err(Error::Connection(e)),
            };
            if received.len == 0 {
                return Ok(());
            }
            if received.truncated {
                return Err(Error::Protocol(DecodeError::TooLong("message")));
            }
            let packet = packet.get(..received.len).ok_or(Error::Protocol(DecodeError::Truncated))?;
            let descriptor = match self
                .handle(packet, received.descriptor, received.descriptor_lost, &mut answer)
                .map_err(Error::Protocol)?
            {
                Reply::None => continue,
                Reply::Send(descriptor) => descriptor,
            };
            let mut sent = transport::send(&self.conn, &answer, descriptor.as_ref().map(AsFd::as_fd), true);
            if let (Err(Errno::TOOMANYREFS), true) = (sent, descriptor.is_some()) {
                // The host limits the descriptors in flight of this process's user, wherever they are. The connection
                // stays usable.
                let errno = u32::try_from(Errno::NFILE.raw_os_error()).unwrap_or(reply::MAX_ERRNO);
                if let Some(fid) = reply::without_descriptor(&mut answer, errno).map_err(Error::Protocol)? {
                    self.fids.release(fid);
                }
                sent = transport::send(&self.conn, &answer, None, true);
            }
            match sent {
                Ok(()) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
                Err(e) => return Err(Error::Connection(e)),
            }
        }
    }

    /// Carries out the request in `packet` and writes its reply to `answer`. `lost`: a descriptor came along for
    /// which there was no room.
    fn handle(
        &mut self,
        packet: &[u8],
        descriptor: Option<OwnedFd>,
        descriptor_lost: bool,
        answer: &mut Vec<u8>,
    ) -> Result<Reply, DecodeError> {
        let (header, released, request) = Request::decode(packet)?;
        if (descriptor.is_some() || descriptor_lost) != matches!(request, Request::ReopenReadOnly) {
            return Err(DecodeError::BadDescriptors);
        }
        if self.greeted == matches!(request, Request::Hello { .. }) {
            return Err(DecodeError::BadValue("first message"));
        }
        for fid in released.iter() {
            self.streams.close(fid);
            self.fids.release(fid);
        }
        if matches!(request, Request::Release) {
            return Ok(Reply::None);
        }
        let mut w = reply::begin(answer, header.op, header.tag);
        if let (Some(second), true) = (&self.listing.second, reads_much(&request)) {
            second.get_ready();
        }
        let outcome = self.carry_out(request, descriptor, &mut w);
        if let Some(second) = &self.listing.second {
            second.rest();
        }
        match outcome {
            Ok(descriptor) => {
                reply::finish(answer, u16::from(descriptor.is_some()));
                Ok(Reply::Send(descriptor))
            }
            Err(e) => {
                reply::error(
                    answer,
                    header.op,
                    header.tag,
                    u32::try_from(e.raw_os_error()).unwrap_or(reply::MAX_ERRNO),
                );
                Ok(Reply::Send(None))
            }
        }
    }

    fn carry_out(&mut self, request: Request<'_>, descriptor: Option<OwnedFd>, w: &mut Writer<'_>) -> Answer {
        match request {
            Request::Hello { .. } => {
                self.greeted = true;
                reply::Hello { version: protocol::VERSION, max_fids: self.max_fids }.encode(w);
                Ok(None)
            }
            Request::Attach { name } => self.attach(name, w),
            Request::Walk { dir, fids, open, names } => self.walk(dir, fids, open, names, w),
            Request::Open { fid, flags } => self.open(fid, flags, w),
            Request::Create { dir, name, new, flags } => self.create(dir, name, new, flags, w),
            Request::Mkdir { dir, name, new } => self.mkdir(dir, name, new, w),
            Request::Symlink { dir, name, target, new } => self.symlink(dir, name, target, new, w),
            Request::Mknod { dir, name, kind, new } => self.mknod(dir, name, kind, new, w),
            Request::Link { target, dir, name } => self.link(target, dir, name, w),
            Request::Unlink { dir, name, is_dir } => self.unlink(dir, name, is_dir),
            Request::Rename { old_dir, old_name, new_dir, new_name, flags } => {
                self.rename(old_dir, old_name, new_dir, new_name, flags)
            }
            Request::Readlink { fid } => self.readlink(fid, w),
            Request::Getattr { fid } => {
                reply::encode_attr(w, &sys::look(&self.fids.get(fid)?.fd)?);
                Ok(None)
            }
            Request::Setattr { fid, set } => self.setattr(fid, set, w),
            Request::ReadDir { dir, cookie, max_bytes, detail } => self.read_dir(dir, cookie, max_bytes, detail, w),
            Request::List { dir, names, detail } => self.list(dir, names, detail, w),
            Request::ListTree { dir, max_bytes, detail, names } => self.list_tree(dir, max_bytes, detail, names, w),
            Request::ReadFiles { dir, max_size, way, names } => self.read_files(dir, max_size, way, names, w),
            Request::Statfs { fid } => {
                reply::encode_statfs(w, &sys::statfs(&self.fids.get(fid)?.fd)?);
                Ok(None)
            }
            Request::GetXattr { fid, name } => self.get_xattr(fid, name, w),
            Request::SetXattr { fid, name, value, mode } => self.set_xattr(fid, name, value, mode),
            Request::ListXattr { fid } => self.list_xattr(fid, w),
            Request::RemoveXattr { fid, name } => self.remove_xattr(fid, name),
            Request::Fsync { fid, data_only } => self.fsync(fid, data_only),
            Request::ReopenReadOnly => self.reopen_read_only(descriptor),
            Request::Release => Ok(None),
        }
    }
}

/// Whether a request probably covers more files than one thread should examine.
fn reads_much(request: &Request<'_>) -> bool {
    match request {
        Request::ListTree { max_bytes, detail: Detail::Attr, .. } => *max_bytes > 32 * 1024,
        Request::ListTree { detail, .. } | Request::List { detail, .. } | Request::ReadDir { detail, .. } => {
            matches!(detail, Detail::Content(_))
        }
        Request::ReadFiles { names, .. } => names.len() >= 32,
        _ => false,
    }
}
