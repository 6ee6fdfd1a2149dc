//! One client's connection, as the Sentry sees it: frames in, frames out, nothing that waits.
//!
//! A client is trusted with the containers, and with nothing else: what it sends is bounded before it is looked at,
//! what it does not take is kept up to a bound, and a mistake ends its connection.

use crate::control::protocol::{Reply, Request, MAX_BODY, MAX_DESCRIPTORS};
use nix::errno::Errno;
use nix::sys::socket::{send, MsgFlags};
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Most bytes that wait for a client that reads slowly.
const MAX_UNSENT: usize = 2 * MAX_BODY;
/// Bytes received at a time.
const CHUNK: usize = 64 << 10;

/// A request with the descriptors that came along.
pub struct Frame {
    pub request: Request,
    pub descriptors: Vec<OwnedFd>,
}

#[derive(Default)]
pub struct Buffers {
    received: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    unsent: VecDeque<u8>,
}

/// What ends a connection.
#[derive(Debug)]
pub enum Closed {
    ByPeer,
    Malformed(String),
    Host(Errno),
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::ByPeer => f.write_str("the peer has closed it"),
            Closed::Malformed(what) => write!(f, "malformed: {what}"),
            Closed::Host(e) => write!(f, "{}", e.desc()),
        }
    }
}

impl Buffers {
    /// Takes what has arrived; `Ok(false)`: there is nothing more for now.
    pub fn receive(&mut self, socket: &OwnedFd) -> Result<bool, Closed> {
        if self.received.len() > MAX_BODY + 4 {
            return Ok(false);
        }
        let mut chunk = [0u8; CHUNK];
        let mut data = [IoSliceMut::new(&mut chunk)];
        let (n, fds) = match platform::host::recv_with_fds(socket.as_fd(), &mut data, libc::MSG_DONTWAIT) {
            Ok(r) => r,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            Err(e) => return Err(Closed::Host(e)),
        };
        self.descriptors.extend(fds);
        if self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(Closed::Malformed("too many descriptors".into()));
        }
        if n == 0 {
            return Err(Closed::ByPeer);
        }
        self.received.extend_from_slice(chunk.get(..n).unwrap_or_default());
        Ok(true)
    }

    /// The next complete request.
    pub fn next(&mut self) -> Result<Option<Frame>, Closed> {
        let Some((length, rest)) = self.received.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_BODY {
            return Err(Closed::Malformed(format!("a frame of {length} bytes")));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let request = serde_json::from_slice(body).map_err(|e| Closed::Malformed(e.to_string()))?;
        self.received.drain(..4 + length);
        Ok(Some(Frame { request, descriptors: std::mem::take(&mut self.descriptors) }))
    }

    /// Sends a reply, or keeps what the client does not take yet.
    pub fn reply(&mut self, socket: &OwnedFd, reply: &Reply) -> Result<(), Closed> {
        let body = serde_json::to_vec(reply).map_err(|e| Closed::Malformed(e.to_string()))?;
        if self.unsent.len() + body.len() > MAX_UNSENT {
            return Err(Closed::Malformed("it takes no replies".into()));
        }
        self.unsent.extend((body.len() as u32).to_le_bytes());
        self.unsent.extend(body);
        self.flush(socket)
    }

    /// Sends as much as the client takes.
    pub fn flush(&mut self, socket: &OwnedFd) -> Result<(), Closed> {
        loop {
            let (first, _) = self.unsent.as_slices();
            if first.is_empty() {
                return Ok(());
            }
            match send(socket.as_raw_fd(), first, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => {
                    self.unsent.drain(..n.min(self.unsent.len()));
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(Closed::Host(e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::VERSION;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn frame(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32).to_le_bytes(), body].concat()
    }

    #[test]
    fn requests_arrive_whole_however_they_are_cut() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let b = OwnedFd::from(b);
        let mut buffers = Buffers::default();
        let bytes = frame(&serde_json::to_vec(&Request::Hello { version: VERSION }).unwrap());
        for byte in &bytes[..bytes.len() - 1] {
            a.write_all(&[*byte]).unwrap();
            assert!(buffers.receive(&b).unwrap());
            assert!(buffers.next().unwrap().is_none());
        }
        a.write_all(&bytes[bytes.len() - 1..]).unwrap();
        assert!(buffers.receive(&b).unwrap());
        assert_eq!(buffers.next().unwrap().unwrap().request, Request::Hello { version: VERSION });
        assert!(!buffers.receive(&b).unwrap());
        drop(a);
        assert!(matches!(buffers.receive(&b), Err(Closed::ByPeer)));
    }

    #[test]
    fn mistakes_end_the_connection() {
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        for body in [&b"{}"[..], b"", b"null", b"{\"request\":\"nothing\"}", b"\xff", &deep] {
            let mut buffers = Buffers { received: frame(body), ..Buffers::default() };
            assert!(matches!(buffers.next(), Err(Closed::Malformed(_))));
        }
        let mut long = Buffers { received: (MAX_BODY as u32 + 1).to_le_bytes().to_vec(), ..Buffers::default() };
        assert!(long.next().is_err());
    }
}
