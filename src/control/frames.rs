//! Frames of the control protocol on a stream socket, as a client sends and receives them: see [`super::protocol`].

use super::protocol::{MAX_BODY, MAX_DESCRIPTORS};
use nix::errno::Errno;
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
use serde::{de::DeserializeOwned, Serialize};
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Sends one message; its descriptors go with the first byte.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_BODY || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::from(Errno::E2BIG));
    }
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let mut control: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
    let mut left: &[u8] = &frame;
    while !left.is_empty() {
        let fd = socket.as_fd().as_raw_fd();
        match sendmsg::<()>(fd, &[IoSlice::new(left)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(n) => {
                control = &[];
                left = left.get(n..).unwrap_or_default();
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Receives one message; `None` at the end of the connection.
pub fn receive<T: DeserializeOwned>(mut socket: impl Read) -> io::Result<Option<T>> {
    let mut length = [0u8; 4];
    let mut got = 0;
    while let Some(rest) = length.get_mut(got..).filter(|r| !r.is_empty()) {
        match socket.read(rest) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && got == 0 => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_BODY {
        return Err(invalid("the Sentry sent a frame that is too long"));
    }
    // What has been announced is not allocated before it is there.
    let mut body = Vec::new();
    if socket.by_ref().take(length as u64).read_to_end(&mut body)? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&body).map(Some).map_err(|e| invalid(&format!("the Sentry sent a malformed frame: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{Reply, Request, Target};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_arrive_as_sent() {
        let (a, b) = UnixStream::pair().unwrap();
        let request = Request::Signal { container: "x".into(), to: Target::Process(3), signal: 15 };
        send(&a, &request, &[]).unwrap();
        send(&a, &Request::Hello { version: 1 }, &[a.as_fd()]).unwrap();
        assert_eq!(receive::<Request>(&b).unwrap(), Some(request));
        assert_eq!(receive::<Request>(&b).unwrap(), Some(Request::Hello { version: 1 }));
        drop(a);
        assert_eq!(receive::<Request>(&b).unwrap(), None);
    }

    #[test]
    fn malformed_frames_are_errors() {
        for bytes in [&[255u8, 255, 255, 255][..], &[2, 0, 0, 0, b'{', b'{'], &[9, 0], &[9, 0, 0, 0, b'"']] {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(bytes).unwrap();
            drop(a);
            assert!(receive::<Reply>(&b).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn long_messages_are_refused_by_the_sender() {
        let (a, _b) = UnixStream::pair().unwrap();
        let request = Request::State { container: "x".repeat(MAX_BODY) };
        assert!(send(&a, &request, &[]).is_err());
    }
}
