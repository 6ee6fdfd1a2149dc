//! A hostile client: at worst it ends its own connection.

mod common;

use std::fs;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{symlink, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{find, Fixture, Mode};
use gofer::{Config, Error, Gofer, Tree};
use protocol::request::{Header, Names, Op, Request};
use protocol::wire::{DecodeError, Writer};
use protocol::{transport, Detail, Fid, NewNode, OpenFlags, WalkFids, MAX_MESSAGE};
use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// A connection that can send arbitrary packets.
struct Raw(OwnedFd);

impl Raw {
    fn start() -> (Fixture, Self) {
        let (fixture, socket) = Fixture::start(Mode::Thread, 100);
        (fixture, Self(socket))
    }

    fn greeted() -> (Fixture, Self) {
        let (fixture, raw) = Self::start();
        raw.call(&Request::Hello { magic: protocol::MAGIC, version: protocol::VERSION });
        (fixture, raw)
    }

    fn send(&self, packet: &[u8]) {
        // The server may have closed the connection already; the test then checks its result.
        let _ = transport::send(&self.0, packet, None, true);
    }

    fn receive(&self) -> Vec<u8> {
        let mut buf = vec![0; MAX_MESSAGE];
        let n = transport::receive(&self.0, &mut buf, true).map_or(0, |r| r.len);
        buf.truncate(n);
        buf
    }

    /// The reply's status; `None` if the connection was closed instead.
    fn call(&self, request: &Request<'_>) -> Option<u32> {
        let mut buf = Vec::new();
        request.encode(&mut buf, 0, &[]);
        self.send(&buf);
        let reply = self.receive();
        (!reply.is_empty()).then(|| Header::decode(&reply).unwrap().0.status)
    }

    fn send_with_descriptors(&self, packet: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        sendmsg(&self.0, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }
}

fn encoded(request: &Request<'_>) -> Vec<u8> {
    let mut buf = Vec::new();
    request.encode(&mut buf, 0, &[]);
    buf
}

fn fid() -> Fid {
    Fid::new(1 << 32 | 1).unwrap()
}

/// The server's result for one packet after the handshake.
fn outcome_of(packet: &[u8]) -> Result<(), Error> {
    let (fixture, raw) = Raw::greeted();
    raw.send(packet);
    drop(raw);
    fixture.join()
}

#[test]
fn paths_cannot_be_expressed() {
    for name in [&b".."[..], b".", b"", b"/etc/passwd", b"dir/inner", b"../secret", b"file\0", b"/"] {
        let dir = fid();
        let names = [&b"dir"[..], name];
        let new = NewNode::with_mode(0o777);
        for request in [
            Request::Walk { dir, fids: WalkFids::Last, open: Some(OpenFlags::READ), names: Names::List(&names) },
            Request::List { dir, detail: Detail::Attr, names: Names::List(&names) },
            Request::ReadFiles { dir, max_size: 10, way: 0, names: Names::List(&names) },
            Request::ReadFiles { dir, max_size: 10, way: 1, names: Names::List(&names) },
            Request::ListTree { dir, max_bytes: 1000, detail: Detail::Attr, names: Names::List(&names) },
            Request::Create { dir, name, new, flags: OpenFlags::READ },
            Request::Mkdir { dir, name, new },
            Request::Link { target: dir, dir, name },
            Request::Unlink { dir, name, is_dir: false },
            Request::Rename { old_dir: dir, old_name: name, new_dir: dir, new_name: b"x", flags: Default::default() },
            Request::Rename { old_dir: dir, old_name: b"x", new_dir: dir, new_name: name, flags: Default::default() },
        ] {
            let result = outcome_of(&encoded(&request));
            assert!(matches!(result, Err(Error::Protocol(DecodeError::BadName))), "{request:?}: {result:?}");
        }
    }
}

#[test]
fn the_handshake_comes_first_and_once() {
    for requests in [
        &[Request::Attach { name: b"root" }][..],
        &[Request::Release],
        &[Request::Hello { magic: protocol::MAGIC, version: protocol::VERSION + 1 }],
        &[
            Request::Hello { magic: protocol::MAGIC, version: protocol::VERSION },
            Request::Hello { magic: protocol::MAGIC, version: protocol::VERSION },
        ],
    ] {
        let (fixture, raw) = Raw::start();
        for request in requests {
            raw.send(&encoded(request));
        }
        assert!(matches!(fixture.join(), Err(Error::Protocol(_))), "{requests:?}");
        drop(raw);
    }
}

#[test]
fn messages_of_wrong_length_end_the_connection() {
    let requests = [
        Request::Walk { dir: fid(), fids: WalkFids::Each, open: None, names: Names::List(&[b"dir", b"inner"]) },
        Request::Create { dir: fid(), name: b"new", new: NewNode::with_mode(0), flags: OpenFlags::READ },
        Request::Attach { name: b"root" },
    ];
    for request in requests {
        let whole = encoded(&request);
        for n in 1..whole.len() {
            let mut part = whole[..n].to_vec();
            assert!(matches!(outcome_of(&part), Err(Error::Protocol(_))));
            if n >= 4 {
                part[..4].copy_from_slice(&u32::try_from(n).unwrap().to_le_bytes());
                assert!(matches!(outcome_of(&part), Err(Error::Protocol(_))));
            }
        }
    }
    let mut huge = encoded(&Request::Release);
    huge.resize(MAX_MESSAGE + 1, 0);
    assert!(matches!(outcome_of(&huge), Err(Error::Protocol(_))));
    // End of the connection; an empty packet looks the same.
    assert!(outcome_of(&[]).is_ok());
}

#[test]
fn noise_never_panics_the_server() {
    let (fixture, _raw) = Raw::start();
    let config = Config::new(vec![Tree { name: "root".into(), host_path: fixture.host(""), read_only: false }]);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut rounds = 0;
    while Instant::now() < deadline {
        rounds += 1;
        let (ours, theirs) = transport::socketpair().unwrap();
        let raw = Raw(ours);
        raw.send(&encoded(&Request::Hello { magic: protocol::MAGIC, version: protocol::VERSION }));
        raw.send(&encoded(&Request::Attach { name: b"root" }));
        // Well-formed fields, with bodies that are wrong in a few places only, so that many get through.
        for _ in 0..30 {
            let new = NewNode::with_mode(0o700);
            let name = [b'a' + (random() % 4) as u8];
            let dir = Fid::new(1 << 32 | (1 + random() % 6)).unwrap();
            let open = OpenFlags::READ_WRITE;
            let request = match random() % 17 {
                0 => {
                    Request::Walk { dir, fids: WalkFids::Each, open: Some(open), names: Names::List(&[&name, b"dir"]) }
                }
                1 => Request::Create { dir, name: &name, new, flags: open },
                2 => Request::Mkdir { dir, name: &name, new },
                3 => Request::Symlink { dir, name: &name, target: b"../..", new },
                4 => Request::Link { target: fid(), dir, name: &name },
                5 => Request::Unlink { dir, name: &name, is_dir: random() % 2 == 0 },
                6 => Request::Rename {
                    old_dir: dir,
                    old_name: b"a",
                    new_dir: fid(),
                    new_name: &name,
                    flags: Default::default(),
                },
                7 => Request::ReadDir { dir, cookie: random() % 5, max_bytes: 100, detail: Detail::Content(1000) },
                8 => Request::Setattr { fid: dir, set: Default::default() },
                9 => Request::Readlink { fid: dir },
                10 => Request::Fsync { fid: dir, data_only: true },
                11 => Request::Mknod { dir, name: &name, kind: protocol::MknodKind::Fifo, new },
                12 => Request::SetXattr { fid: dir, name: b"user.x", value: b"y", mode: protocol::XattrMode::Any },
                13 => Request::List { dir, detail: Detail::Attr, names: Names::List(&[b"dir", &name]) },
                14 => Request::ReadFiles {
                    dir,
                    max_size: 1000,
                    way: (random() % 3) as u8,
                    names: Names::List(&[b"dir", &name, b"file"]),
                },
                15 => Request::ListTree {
                    dir,
                    max_bytes: (random() % 65_536) as u32,
                    detail: if random() % 2 == 0 { Detail::Content(1000) } else { Detail::Attr },
                    names: Names::List(&[b"dir", &name, b"up", b"file"]),
                },
                _ => Request::Open { fid: dir, flags: open },
            };
            let mut packet = encoded(&request);
            if random() % 8 == 0 {
                let at = (random() % packet.len() as u64) as usize;
                packet[at] = random() as u8;
            }
            raw.send(&packet);
        }
        rustix::net::shutdown(&raw.0, rustix::net::Shutdown::Write).unwrap();
        match Gofer::open(&config).unwrap().serve(theirs) {
            Ok(()) | Err(Error::Protocol(_)) => {}
            Err(e) => panic!("{e}"),
        }
    }
    assert!(rounds > 20, "only {rounds} rounds");
}

#[test]
fn unexpected_descriptors_end_the_connection() {
    let null = fs::File::open("/dev/null").unwrap();
    let attach = encoded(&Request::Attach { name: b"root" });
    let reopen = encoded(&Request::ReopenReadOnly);
    for (packet, count) in [(&attach, 1), (&attach, 2), (&attach, 64), (&reopen, 2), (&reopen, 64)] {
        let (fixture, raw) = Raw::greeted();
        raw.send_with_descriptors(packet, &vec![null.as_fd(); count]);
        assert!(matches!(fixture.join(), Err(Error::Protocol(_))), "{count}");
    }
    assert!(matches!(outcome_of(&reopen), Err(Error::Protocol(DecodeError::BadDescriptors))));
}

#[test]
fn fids_are_neither_guessed_nor_used_late() {
    let (fixture, raw) = Raw::greeted();
    assert_eq!(raw.call(&Request::Attach { name: b"root" }), Some(0));
    let ebadf = Some(9);
    for guess in [2, 1 << 32 | 2, 2 << 32 | 1, u64::MAX, 1, 1 << 32] {
        let fid = Fid::new(guess).unwrap();
        assert_eq!(raw.call(&Request::Getattr { fid }), ebadf, "{guess:#x}");
        let walk = Request::Walk { dir: fid, fids: WalkFids::Each, open: None, names: Names::List(&[b"file"]) };
        assert_eq!(raw.call(&walk), ebadf);
    }
    assert_eq!(raw.call(&Request::Getattr { fid: fid() }), Some(0));
    // Released twice, along with a fid that never existed.
    let mut buf = Vec::new();
    Request::Getattr { fid: fid() }.encode(&mut buf, 0, &[fid(), fid(), Fid::new(77).unwrap()]);
    raw.send(&buf);
    assert_eq!(Header::decode(&raw.receive()).unwrap().0.status, 9);
    assert_eq!(raw.call(&Request::Attach { name: b"root" }), Some(0));
    assert_eq!(raw.call(&Request::Getattr { fid: fid() }), ebadf);
    assert_eq!(raw.call(&Request::Getattr { fid: Fid::new(2 << 32 | 1).unwrap() }), Some(0));
    drop(raw);
    fixture.join().unwrap();
}

#[test]
fn the_fid_limit_comes_before_the_memory_limit() {
    let (fixture, raw) = Raw::greeted();
    let attach = Request::Attach { name: b"root" };
    for _ in 0..100 {
        assert_eq!(raw.call(&attach), Some(0));
    }
    for _ in 0..100 {
        assert_eq!(raw.call(&attach), Some(24), "EMFILE");
        let new = NewNode::with_mode(0o700);
        assert_eq!(raw.call(&Request::Mkdir { dir: fid(), name: b"new", new }).map(|e| e == 24 || e == 17), Some(true));
    }
    assert_eq!(raw.call(&Request::Getattr { fid: fid() }), Some(0));
    drop(raw);
    fixture.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_blocks_only_itself() {
    let (fixture, raw) = Raw::greeted();
    let attach = encoded(&Request::Attach { name: b"root" });
    // Until both buffers are full.
    while transport::send(&raw.0, &attach, None, false).is_ok() {
        std::thread::sleep(Duration::from_micros(10));
    }
    drop(raw);
    fixture.join().unwrap();
}

#[test]
fn a_swapped_symlink_is_never_followed() {
    let (fixture, client) = Fixture::client(Mode::Thread);
    let outside = fixture.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("inner"), "stolen").unwrap();
    let stolen = fs::metadata(outside.join("inner")).unwrap().ino();
    symlink("../outside", fixture.host("evil")).unwrap();
    let (swap, evil) = (fixture.host("dir"), fixture.host("evil"));
    let done = AtomicBool::new(false);
    let (mut inside, mut stopped) = (0, 0);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                nix::fcntl::renameat2(
                    nix::fcntl::AT_FDCWD,
                    &swap,
                    nix::fcntl::AT_FDCWD,
                    &evil,
                    nix::fcntl::RenameFlags::RENAME_EXCHANGE,
                )
                .unwrap();
            }
        });
        let root = client.attach("root").unwrap().handle;
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline || inside == 0 || stopped == 0 {
            let walk = root.walk(&[b"dir", b"inner"], WalkFids::Each, Some(OpenFlags::READ)).unwrap();
            for node in &walk.nodes {
                assert_ne!(node.attr.ino, stolen);
            }
            match walk.file {
                Some(file) => {
                    let mut text = String::new();
                    fs::File::from(file.unwrap()).read_to_string(&mut text).unwrap();
                    assert_eq!(text, "inner");
                    inside += 1;
                }
                None => stopped += 1,
            }
            // A new file lands in the tree or nowhere.
            if let Some(dir) = walk.nodes.into_iter().next().and_then(|n| n.handle) {
                let _ = dir.create(b"new", NewNode::with_mode(0o600), OpenFlags::READ);
                let _ = dir.unlink(b"new", false);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(!outside.join("new").exists());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_directory_moved_away_leads_nowhere_else() {
    let (fixture, client) = Fixture::client(Mode::Confined);
    let root = client.attach("root").unwrap().handle;
    let deep = find(&root, "dir/deep").handle;
    fs::rename(fixture.host("dir"), fixture.dir.join("moved_out")).unwrap();
    // It is still held, like an open directory, but there is no way up from it.
    deep.getattr().unwrap();
    assert_eq!(deep.walk(&[b".."], WalkFids::Last, None).unwrap_err(), nix::errno::Errno::EINVAL);
    assert!(deep.read_dir(0, Detail::Attr).unwrap().is_empty());
}

#[test]
fn a_device_in_the_tree_is_seen_and_not_opened() {
    if !common::root_for("a_device_in_the_tree_is_seen_and_not_opened") {
        return;
    }
    use nix::sys::stat::{makedev, mknod, SFlag};
    for mode in [Mode::Thread, Mode::Confined] {
        let (fixture, client) = Fixture::client(mode);
        mknod(&fixture.host("mem"), SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRWXU, makedev(1, 1)).unwrap();
        let root = client.attach("root").unwrap().handle;
        let walk = root.walk(&[b"mem"], WalkFids::Last, Some(OpenFlags::READ)).unwrap();
        assert!(walk.file.is_none());
        assert_eq!(
            (walk.nodes[0].attr.kind(), walk.nodes[0].attr.rdev),
            (protocol::FileKind::CharDevice, makedev(1, 1))
        );
        let mem = walk.nodes.into_iter().next().unwrap().handle.unwrap();
        assert_eq!(mem.open(OpenFlags::READ).unwrap_err(), nix::errno::Errno::ENXIO);
    }
}

#[test]
fn the_server_ends_with_its_client() {
    let (fixture, client) = Fixture::client(Mode::Thread);
    let root = client.attach("root").unwrap().handle;
    drop(client);
    root.getattr().unwrap();
    drop(root);
    fixture.join().unwrap();
    // A process, too: the fixture waits for it and checks its status.
    let (fixture, client) = Fixture::client(Mode::Confined);
    drop(client);
    drop(fixture);
}

#[test]
fn header_fields_that_must_be_zero_are() {
    let mut packet = Vec::new();
    Header { length: 16, op: Op::Release, aux: 0, tag: 0, status: 1 }.encode(&mut Writer::new(&mut packet));
    assert!(matches!(outcome_of(&packet), Err(Error::Protocol(DecodeError::BadValue("status")))));
}

/// Other processes of the same user have as many descriptors in flight as the host allows: no descriptor is sent
/// then, and the connection stays.
#[test]
fn too_many_descriptors_in_flight_elsewhere() {
    let (fixture, client) = Fixture::client(Mode::Confined);
    let tree = client.attach("root").unwrap();
    // So low that no other process is affected.
    let low = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
    let pid = rustix::process::Pid::from_raw(fixture.pid());
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, low).unwrap();
    let (ours, theirs) = transport::socketpair().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let many = [ours.as_fd(); 100];
    assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
    sendmsg(&ours, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();

    let enfile = nix::errno::Errno::ENFILE;
    let file = find(&tree.handle, "file");
    let flags = OpenFlags::READ;
    for round in 0..2000 {
        // More than there are fids.
        let name = format!("new{round}");
        let new = NewNode { mode: 0o600, uid: None, gid: None };
        assert_eq!(tree.handle.create(name.as_bytes(), new, flags).map(drop), Err(enfile));
        fs::remove_file(fixture.host(&name)).unwrap();
    }
    assert_eq!(file.handle.open(flags).map(drop), Err(enfile));
    let walk = tree.handle.walk(&[b"dir", b"inner"], WalkFids::Last, Some(flags)).unwrap();
    assert!(walk.nodes.len() == 2 && matches!(walk.file, Some(Err(e)) if e == enfile), "{:?}", walk.file);
    drop((ours, theirs));
    file.handle.open(flags).unwrap();
    let walk = tree.handle.walk(&[b"dir", b"inner"], WalkFids::Last, Some(flags)).unwrap();
    assert!(matches!(walk.file, Some(Ok(_))));
}
