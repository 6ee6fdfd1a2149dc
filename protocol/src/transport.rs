//! Packets, with at most one descriptor each, over a `SOCK_SEQPACKET` Unix socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{
    recvmsg, sendmsg, sockopt, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// A connected pair of sockets of the right kind; both are closed on exec.
pub fn socketpair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Fails with `EPROTOTYPE` unless `socket` preserves packet boundaries.
pub fn check_socket(socket: impl AsFd) -> Result<()> {
    if sockopt::socket_type(&socket)? == SocketType::SEQPACKET {
        Ok(())
    } else {
        Err(Errno::PROTOTYPE)
    }
}

/// Sends one packet, with a descriptor if there is one. Does not raise `SIGPIPE`. With `block` false, fails with
/// `EAGAIN` if there is no room.
pub fn send(socket: impl AsFd, packet: &[u8], descriptor: Option<BorrowedFd<'_>>, block: bool) -> Result<()> {
    let mut flags = SendFlags::NOSIGNAL;
    if !block {
        flags |= SendFlags::DONTWAIT;
    }
    loop {
        let result = match &descriptor {
            None => rustix::net::send(&socket, packet, flags),
            Some(fd) => {
                let fds = [*fd];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                    return Err(Errno::INVAL);
                }
                sendmsg(&socket, &[IoSlice::new(packet)], &mut control, flags)
            }
        };
        match result {
            Ok(n) if n == packet.len() => return Ok(()),
            Ok(_) => return Err(Errno::MSGSIZE),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// A received packet.
#[derive(Debug)]
pub struct Received {
    /// Its bytes in the buffer; 0 means that the peer has closed the connection.
    pub len: usize,
    /// The descriptor that came along.
    pub descriptor: Option<OwnedFd>,
    /// Whether part of it was lost: it was larger than the buffer, or had more descriptors (they are closed).
    pub truncated: bool,
    /// It had a descriptor that this process has no room for; the host has closed it.
    pub descriptor_lost: bool,
}

/// Receives one packet into `buf`. With `block` false, fails with `EAGAIN` if there is none.
pub fn receive(socket: impl AsFd, buf: &mut [u8], block: bool) -> Result<Received> {
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if !block {
        flags |= RecvFlags::DONTWAIT;
    }
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = match recvmsg(&socket, &mut [IoSliceMut::new(buf)], &mut control, flags) {
            Ok(message) => message,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        };
        let mut descriptor = None;
        let mut truncated = message.flags.contains(ReturnFlags::TRUNC);
        let cut = message.flags.contains(ReturnFlags::CTRUNC);
        for item in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = item {
                for fd in fds {
                    if descriptor.is_none() {
                        descriptor = Some(fd);
                    } else {
                        truncated = true;
                    }
                }
            }
        }
        // There is space for one descriptor: if that is used, there were more; if not, the host could not install the
        // first.
        truncated |= cut && descriptor.is_some();
        let descriptor_lost = cut && descriptor.is_none();
        return Ok(Received { len: message.bytes.min(buf.len()), descriptor, truncated, descriptor_lost });
    }
}
