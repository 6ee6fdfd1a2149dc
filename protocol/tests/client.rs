//! The client's behaviour with a Gofer that is gone or hostile.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::{spawn, JoinHandle};

use nix::errno::Errno;
use protocol::reply::{self, NodeRef};
use protocol::request::{Header, Op, Request};
use protocol::{transport, Attr, Client, Fid, OpenFlags, MAX_MESSAGE};

/// Answers the handshake and an attach, then each request by `answer`, until that returns no more.
fn fake(
    mut answer: impl FnMut(&[u8], &OwnedFd) -> Option<(Vec<u8>, Option<OwnedFd>)> + Send + 'static,
) -> (Client, protocol::Handle, JoinHandle<()>) {
    let (ours, theirs) = transport::socketpair().unwrap();
    let server = spawn(move || {
        let mut packet = vec![0; MAX_MESSAGE];
        let mut reply = Vec::new();
        loop {
            let n = transport::receive(&theirs, &mut packet, true).map_or(0, |r| r.len);
            if n == 0 {
                return;
            }
            let (header, _, request) = Request::decode(&packet[..n]).unwrap();
            let fd = match request {
                Request::Hello { .. } => {
                    let mut w = reply::begin(&mut reply, Op::Hello, header.tag);
                    reply::Hello { version: protocol::VERSION, max_fids: 10 }.encode(&mut w);
                    reply::finish(&mut reply, 0);
                    None
                }
                Request::Attach { .. } => {
                    let mut w = reply::begin(&mut reply, Op::Attach, header.tag);
                    NodeRef { fid: Fid::new(1), attr: Attr::default(), target: None }.encode(&mut w);
                    reply::finish(&mut reply, 0);
                    None
                }
                _ => match answer(&packet[..n], &theirs) {
                    Some((bytes, fd)) => {
                        reply = bytes;
                        fd
                    }
                    None => return,
                },
            };
            transport::send(&theirs, &reply, fd.as_ref().map(AsFd::as_fd), true).unwrap();
        }
    });
    let client = Client::connect(ours).unwrap();
    let root = client.attach("").unwrap().handle;
    (client, root, server)
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// A reply to a request with this body and a descriptor count of `aux`.
fn respond(packet: &[u8], aux: u16, body: &[u8]) -> Vec<u8> {
    let (header, _, _) = Request::decode(packet).unwrap();
    let mut buf = Vec::new();
    reply::begin(&mut buf, header.op, header.tag).bytes(body);
    reply::finish(&mut buf, aux);
    buf
}

#[test]
fn a_lost_connection_is_eio_for_ever() {
    let (client, root, server) = fake(|_, _| None);
    assert!(!client.is_dead());
    assert_eq!(root.getattr(), Err(Errno::EIO));
    assert!(client.is_dead());
    server.join().unwrap();
    assert_eq!(root.open(OpenFlags::READ).err(), Some(Errno::EIO));
    assert_eq!(client.attach("x").err(), Some(Errno::EIO));
    client.flush();
    drop(root);
}

#[test]
fn a_missing_peer_is_an_error() {
    let (ours, theirs) = transport::socketpair().unwrap();
    drop(theirs);
    assert_eq!(Client::connect(ours).err(), Some(Errno::EIO));
    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!(Client::connect(a.into()).err(), Some(Errno::EPROTOTYPE));
    assert!(Client::connect(null()).is_err());
}

#[test]
fn an_errno_is_passed_on() {
    let (client, root, _server) = fake(|packet, _| {
        let (header, _, _) = Request::decode(packet).unwrap();
        let mut buf = Vec::new();
        reply::error(&mut buf, header.op, header.tag, Errno::ESTALE as u32);
        Some((buf, None))
    });
    assert_eq!(root.getattr(), Err(Errno::ESTALE));
    assert_eq!(root.unlink(b"x", false), Err(Errno::ESTALE));
    assert!(!client.is_dead());
}

#[test]
fn bad_replies_end_the_connection() {
    type Answer = fn(&[u8]) -> (Vec<u8>, Option<OwnedFd>);
    let answers: &[(&str, Answer)] = &[
        ("empty body", |p| (respond(p, 0, &[]), None)),
        ("trailing byte", |p| (respond(p, 0, &[0; Attr::SIZE + 1]), None)),
        ("bad nanoseconds", |p| (respond(p, 0, &[0xff; Attr::SIZE]), None)),
        ("unexpected descriptor", |p| (respond(p, 1, &[0; Attr::SIZE]), Some(null()))),
        ("uncounted descriptor", |p| (respond(p, 0, &[0; Attr::SIZE]), Some(null()))),
        ("missing descriptor", |p| (respond(p, 1, &[0; Attr::SIZE]), None)),
        ("other operation", |p| {
            let mut buf = respond(p, 0, &[0; Attr::SIZE]);
            buf[4] = Op::Statfs as u8;
            (buf, None)
        }),
        ("other tag", |p| {
            let mut buf = respond(p, 0, &[0; Attr::SIZE]);
            buf[8] ^= 1;
            (buf, None)
        }),
        ("impossible errno", |p| {
            let mut buf = respond(p, 0, &[]);
            buf[13] = 0x10;
            (buf, None)
        }),
        ("short header", |_| (vec![0; Header::SIZE - 1], None)),
        ("nothing like it", |_| (b"garbage that is longer than a header".to_vec(), None)),
    ];
    for (what, answer) in answers {
        let (client, root, _server) = fake(|p, _| Some(answer(p)));
        assert_eq!(root.getattr(), Err(Errno::EIO), "{what}");
        assert!(client.is_dead(), "{what}");
    }
}

#[test]
fn a_missing_descriptor_ends_the_connection() {
    let (client, root, _server) = fake(|p, _| Some((respond(p, 0, &[]), None)));
    assert_eq!(root.open(OpenFlags::READ).err(), Some(Errno::EIO));
    assert!(client.is_dead());
}

#[test]
fn more_descriptors_than_one_end_the_connection() {
    use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let (client, root, _server) = fake(|p, socket| {
        let fds = [socket.as_fd(), socket.as_fd(), socket.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let reply = respond(p, 1, &[]);
        sendmsg(socket, &[std::io::IoSlice::new(&reply)], &mut control, SendFlags::NOSIGNAL).unwrap();
        None
    });
    assert_eq!(root.open(OpenFlags::READ).err(), Some(Errno::EIO));
    assert!(client.is_dead());
}

#[test]
fn invalid_requests_are_not_sent() {
    let (client, root, _server) = fake(|_, _| panic!("nothing was to be sent"));
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
        assert_eq!(root.unlink(name, false), Err(Errno::EINVAL));
    }
    assert_eq!(root.unlink(&[b'x'; 256], false), Err(Errno::ENAMETOOLONG));
    assert_eq!(root.walk(&[], protocol::WalkFids::None, None).err(), Some(Errno::EINVAL));
    assert_eq!(root.walk(&[&b"x"[..]; 65], protocol::WalkFids::None, None).err(), Some(Errno::E2BIG));
    assert!(!client.is_dead());
    drop(root);
    drop(client);
}

#[test]
fn released_fids_travel_with_requests() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new((0, 0)));
    let counts = seen.clone();
    let (client, root, _server) = fake(move |p, _| {
        let (header, released, request) = Request::decode(p).unwrap();
        let mut counts = counts.lock().unwrap();
        counts.0 += released.iter().count();
        if request == Request::Release {
            counts.1 += 1;
            // This one has no reply; answer the next request instead.
            return Some((Vec::new(), None));
        }
        let mut buf = Vec::new();
        reply::error(&mut buf, header.op, header.tag, 1);
        Some((buf, None))
    });
    for _ in 0..10 {
        drop(client.attach("").unwrap());
    }
    assert_eq!(root.getattr(), Err(Errno::EPERM));
    // Attaches took nine along, `getattr` the tenth; the fake does not count the former.
    assert_eq!(*seen.lock().unwrap(), (1, 0));
    drop(client.attach("").unwrap());
    assert_eq!(root.getattr(), Err(Errno::EPERM));
    assert_eq!(*seen.lock().unwrap(), (2, 0));
}
