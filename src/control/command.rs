//! Messages between the command and the Sentry, over a `SOCK_SEQPACKET` socket pair: one packet, one message.
//!
//! The command trusts nothing that comes in here beyond its form: a Sentry in a guest's hands could send anything, and
//! all it gains is an exit status or a line on standard error.

use nix::errno::Errno;
use nix::sys::socket::{recv, send, MsgFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Longest text of a [`FromSentry::Failed`].
const MAX_TEXT: usize = 4096;

/// From the command to the Sentry.
#[derive(Debug)]
pub enum ToSentry {
    /// A signal for the guest; `terminal`: the terminal made it (or must be told like that), so it is for the
    /// foreground process group.
    Signal { signal: i32, terminal: bool },
    /// The answer to [`FromSentry::AskForeground`].
    Foreground(bool),
    /// A connection of a client of the control protocol ([`super::protocol`]) that the monitor has accepted and
    /// checked.
    Client(OwnedFd),
}

/// From the Sentry to the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromSentry {
    /// The guest's first process runs.
    Started,
    /// The guest's first process has ended; its wait(2) status.
    Exited(i32),
    /// The guest's first process was stopped by job control.
    Stopped,
    /// It goes on.
    Continued,
    /// Whether the command's process group is in the foreground of its terminal; answered by [`ToSentry::Foreground`].
    AskForeground,
    /// A [`ToSentry::Signal`] has been taken up: one for each, in their order.
    Taken,
    /// The connection to the Gofer has ended. How, the command knows.
    LostGofer,
    /// Nothing could be run: what to print, and the exit status.
    Failed { status: u8, text: String },
}

impl ToSentry {
    /// Fails with `EAGAIN` if the Sentry has not taken up anything for long.
    pub fn send(&self, socket: impl AsFd) -> nix::Result<()> {
        let packet = match self {
            ToSentry::Signal { signal, terminal } => {
                let mut packet = vec![b's', u8::from(*terminal)];
                packet.extend_from_slice(&signal.to_le_bytes());
                packet
            }
            ToSentry::Foreground(yes) => vec![b'f', u8::from(*yes)],
            ToSentry::Client(connection) => {
                let sent = protocol::transport::send(socket, b"n", Some(connection.as_fd()), false);
                return sent.map_err(|e| Errno::from_raw(e.raw_os_error()));
            }
        };
        send_packet(socket, &packet, MsgFlags::MSG_DONTWAIT)
    }

    /// The next message, if there is one; `None` means that the command is gone. Fails with `EAGAIN` when there is
    /// nothing yet.
    pub fn receive(socket: impl AsFd) -> nix::Result<Option<Self>> {
        let mut buf = [0u8; 16];
        let received = match protocol::transport::receive(socket, &mut buf, false).map_err(|e| e.raw_os_error()) {
            Ok(r) => r,
            Err(libc::ECONNRESET) => return Ok(None),
            Err(e) => return Err(Errno::from_raw(e)),
        };
        match buf.get(..received.len).ok_or(Errno::EPROTO)? {
            [] => Ok(None),
            [b'n'] => match received.descriptor {
                Some(connection) => Ok(Some(ToSentry::Client(connection))),
                // There was no room for it; the client finds its connection closed.
                None => Err(Errno::ENFILE),
            },
            [b's', terminal, a, b, c, d] => {
                Ok(Some(ToSentry::Signal { signal: i32::from_le_bytes([*a, *b, *c, *d]), terminal: *terminal != 0 }))
            }
            [b'f', yes] => Ok(Some(ToSentry::Foreground(*yes != 0))),
            _ => Err(Errno::EPROTO),
        }
    }
}

impl FromSentry {
    pub fn send(&self, socket: impl AsFd) -> nix::Result<()> {
        let packet = match self {
            FromSentry::Started => vec![b'r'],
            FromSentry::Exited(status) => [&[b'x'][..], &status.to_le_bytes()].concat(),
            FromSentry::Stopped => vec![b'z'],
            FromSentry::Continued => vec![b'c'],
            FromSentry::AskForeground => vec![b'a'],
            FromSentry::Taken => vec![b't'],
            FromSentry::LostGofer => vec![b'g'],
            FromSentry::Failed { status, text } => {
                let mut p = vec![b'f', *status];
                p.extend_from_slice(text.as_bytes().get(..MAX_TEXT).unwrap_or(text.as_bytes()));
                p
            }
        };
        send_packet(socket, &packet, MsgFlags::empty())
    }

    /// As [`ToSentry::receive`].
    pub fn receive(socket: impl AsFd) -> nix::Result<Option<Self>> {
        let mut buf = [0u8; MAX_TEXT + 2];
        match receive_packet(socket, &mut buf)? {
            [] => Ok(None),
            [b'r'] => Ok(Some(FromSentry::Started)),
            [b'x', a, b, c, d] => Ok(Some(FromSentry::Exited(i32::from_le_bytes([*a, *b, *c, *d])))),
            [b'z'] => Ok(Some(FromSentry::Stopped)),
            [b'c'] => Ok(Some(FromSentry::Continued)),
            [b'a'] => Ok(Some(FromSentry::AskForeground)),
            [b't'] => Ok(Some(FromSentry::Taken)),
            [b'g'] => Ok(Some(FromSentry::LostGofer)),
            [b'f', status, text @ ..] => {
                Ok(Some(FromSentry::Failed { status: *status, text: String::from_utf8_lossy(text).into_owned() }))
            }
            _ => Err(Errno::EPROTO),
        }
    }
}

fn send_packet(socket: impl AsFd, packet: &[u8], flags: MsgFlags) -> nix::Result<()> {
    loop {
        match send(socket.as_fd().as_raw_fd(), packet, flags | MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

fn receive_packet(socket: impl AsFd, buf: &mut [u8]) -> nix::Result<&[u8]> {
    loop {
        match recv(socket.as_fd().as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => return buf.get(..n).ok_or(Errno::EPROTO),
            Err(Errno::ECONNRESET) => return Ok(&[]),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_sent() {
        let (a, b) = protocol::transport::socketpair().unwrap();
        assert_eq!(FromSentry::receive(&a), Err(Errno::EAGAIN));
        for m in [
            FromSentry::Started,
            FromSentry::Exited(200 << 8),
            FromSentry::Stopped,
            FromSentry::Continued,
            FromSentry::AskForeground,
            FromSentry::Taken,
            FromSentry::LostGofer,
            FromSentry::Failed { status: 127, text: "no".into() },
        ] {
            m.send(&b).unwrap();
            assert_eq!(FromSentry::receive(&a), Ok(Some(m)));
        }
        for m in
            [ToSentry::Signal { signal: 15, terminal: true }, ToSentry::Foreground(true), ToSentry::Foreground(false)]
        {
            m.send(&a).unwrap();
            assert_eq!(format!("{:?}", ToSentry::receive(&b).unwrap().unwrap()), format!("{m:?}"));
        }
        ToSentry::Client(std::fs::File::open("/dev/null").unwrap().into()).send(&a).unwrap();
        assert!(matches!(ToSentry::receive(&b), Ok(Some(ToSentry::Client(_)))));
        drop(a);
        assert!(matches!(ToSentry::receive(&b), Ok(None)));
    }
}
