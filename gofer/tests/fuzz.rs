//! Fuzzes the protocol: an honest client and an honest server, and between them a proxy that changes packets in one
//! direction. Neither end may panic, and nothing outside the trees may change.
//!
//! Each test runs for `FUZZ_SECONDS` (2 if not set) with the seed `FUZZ_SEED` (by default from the clock). A failure
//! prints the seed.

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::spawn;
use std::time::{Duration, Instant, SystemTime};

use common::{content, Fixture, Mode};
use gofer::Error;
use nix::sys::socket::{shutdown, Shutdown};
use protocol::{transport, Client, Detail, Handle, MknodKind, NewNode, OpenFlags, RenameFlags, SetAttr, WalkFids};
use protocol::{XattrMode, MAX_MESSAGE};

/// A sequence of numbers that depends on the seed alone (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 11) % n as u64) as usize
    }
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Changes a packet: bytes, words, its length.
fn mutate(packet: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if packet.is_empty() {
            return;
        }
        // Headers and the first fields matter most.
        let at = if random.below(2) == 0 { random.below(packet.len().min(64)) } else { random.below(packet.len()) };
        let value = random.of(&[0, 1, u64::MAX, 1 << 31, 0x7fff_ffff, 4096]).wrapping_add(random.next() & 0x0f);
        match random.below(6) {
            0 => packet[at] ^= 1 << random.below(8),
            1 => packet[at] = random.next() as u8,
            2 | 3 => {
                let size = random.of(&[2, 4, 8]);
                if let Some(to) = packet.get_mut(at..at + size) {
                    to.copy_from_slice(&value.to_le_bytes()[..size]);
                }
            }
            4 => packet.truncate(at),
            _ => packet.extend((0..random.below(40)).map(|i| i as u8)),
        }
    }
    packet.truncate(MAX_MESSAGE);
}

/// Forwards packets until one end is closed, and changes one in `of` (0: none).
fn pass_on(from: Arc<OwnedFd>, to: Arc<OwnedFd>, mut random: Random, of: usize) {
    let mut buffer = vec![0; MAX_MESSAGE];
    while let Ok(received) = transport::receive(&*from, &mut buffer, true) {
        if received.len == 0 {
            break;
        }
        let mut packet = buffer[..received.len].to_vec();
        if of > 0 && random.below(of) == 0 {
            mutate(&mut packet, &mut random);
        }
        let fd = received.descriptor.as_ref().map(AsFd::as_fd);
        if packet.is_empty() || transport::send(&*to, &packet, fd, true).is_err() {
            break;
        }
    }
    for end in [from, to] {
        let _ = shutdown(end.as_raw_fd(), Shutdown::Both);
    }
}

const NAMES: &[&[u8]] = &[b"file", b"dir", b"inner", b"deep", b"to_file", b"up", b"new", b"other", b"nowhere"];

/// One request of an honest client.
fn ask(handles: &mut Vec<Handle>, random: &mut Random) {
    let h = &handles[random.below(handles.len())];
    let (name, other) = (random.of(NAMES), random.of(NAMES));
    let new = NewNode::with_mode(0o755);
    let made = match random.below(18) {
        0 => h.create(name, new, OpenFlags::READ | OpenFlags::WRITE).map(|n| Some(n.0.handle)),
        1 => h.mkdir(name, new).map(|n| Some(n.handle)),
        2 => h.symlink(name, b"file", new).map(|n| Some(n.handle)),
        3 => h.mknod(name, MknodKind::Fifo, new).map(|n| Some(n.handle)),
        4 => h.link(name, h).map(|n| Some(n.handle)),
        5 => h.unlink(name, random.below(2) == 0).map(|()| None),
        6 => h.rename(name, h, other, RenameFlags::empty()).map(|()| None),
        7 => h.readlink().map(|_| None),
        8 => h.setattr(SetAttr { mode: Some(0o700), ..SetAttr::default() }).map(|_| None),
        9 => h.read_dir(0, Detail::Content(4096)).map(|_| None),
        10 => h.list(&[name], Detail::Attr).map(|l| l.rest),
        11 => h.list_tree(&[name, other], 10_000, Detail::Attr).map(|_| None),
        12 => h.read_files(&[name], &[other], 4096).map(|_| None),
        13 => h.get_xattr(b"user.name").map(|_| None),
        14 => h.set_xattr(b"user.name", b"value", XattrMode::Any).map(|()| None),
        15 => h.list_xattr().map(|_| None),
        16 => h.open(OpenFlags::READ).map(|_| None),
        _ => h.walk(&[name, other], WalkFids::Each, Some(OpenFlags::READ)).map(|mut w| {
            let node = w.nodes.pop();
            node.and_then(|n| n.handle)
        }),
    };
    if let Ok(Some(handle)) = made {
        handles.push(handle);
        if handles.len() > 12 {
            handles.swap_remove(1);
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Changes one request in `requests`, one reply in `replies`; 0: none.
fn fuzz(requests: usize, replies: usize) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = setting("FUZZ_SEED").unwrap_or(now.as_secs());
    let end = Instant::now() + Duration::from_secs(setting("FUZZ_SECONDS").unwrap_or(2));
    println!("seed {seed}");
    let mut rounds = 0;
    while Instant::now() < end {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(rounds));
        rounds += 1;
        let (fixture, server) = Fixture::start(Mode::Thread, 100);
        let (client, middle) = transport::socketpair().unwrap();
        let (server, middle) = (Arc::new(server), Arc::new(middle));
        let (one, two) = (Random::new(random.next()), Random::new(random.next()));
        let there = spawn({
            let (from, to) = (middle.clone(), server.clone());
            move || pass_on(from, to, one, requests)
        });
        let back = spawn(move || pass_on(server, middle, two, replies));
        if let Ok(client) = Client::connect(client) {
            let trees = ["root", "ro", "file"].iter().filter_map(|t| client.attach(t).ok());
            let mut handles: Vec<_> = trees.map(|n| n.handle).collect();
            for _ in 0..60 {
                if handles.is_empty() || client.is_dead() {
                    break;
                }
                ask(&mut handles, &mut random);
            }
        }
        there.join().unwrap();
        back.join().unwrap();
        assert_eq!(content(&fixture.dir.join("secret")), "secret", "seed {seed}");
        assert_eq!(content(&fixture.dir.join("ro/file")), "hello", "seed {seed}");
        let ended = fixture.join();
        let fair = matches!(ended, Ok(()) | Err(Error::Protocol(_)) | Err(Error::Connection(_)));
        assert!(fair, "seed {seed}: {ended:?}");
    }
    println!("{rounds} rounds");
}

#[test]
fn hostile_requests() {
    fuzz(8, 0);
}

#[test]
fn hostile_replies() {
    fuzz(0, 8);
}
