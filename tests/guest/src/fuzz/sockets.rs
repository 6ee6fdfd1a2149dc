//! Sockets of every family: options, addresses, ancillary data, and netlink requests of almost correct structure.

use super::Random;
use libc::*;
use std::mem::size_of;

const LEVELS: &[i32] = &[SOL_SOCKET, SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_IPV6, 270, 263, 0x100];

/// A scratch buffer with addresses, options and messages.
struct Scratch(Vec<u64>);

impl Scratch {
    fn fill(&mut self, random: &mut Random) {
        for word in &mut self.0 {
            *word = random.value();
        }
    }
    fn at(&mut self, random: &mut Random) -> *mut c_void {
        let start = random.below(self.0.len() as u64 - 64) as usize;
        self.0[start..].as_mut_ptr().cast()
    }
}

/// A length that is often correct.
fn length(random: &mut Random) -> u32 {
    match random.below(8) {
        0 => random.value() as u32,
        _ => random.of(&[0, 1, 2, 4, 8, 12, 16, 28, 36, 110]),
    }
}

unsafe fn address(random: &mut Random, scratch: &mut Scratch) -> (*const sockaddr, u32) {
    let at = scratch.at(random).cast::<u8>();
    let family = random.of(&[AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_UNSPEC, AF_PACKET]) as u16;
    at.cast::<u16>().write_unaligned(family);
    match i32::from(family) {
        AF_UNIX => {
            let name = random.of(&[&b"\0a"[..], b"\0b", b"socket", b"./socket\0x"]);
            at.add(2).copy_from(name.as_ptr(), name.len());
            return (at.cast(), if random.below(4) == 0 { length(random) } else { 2 + name.len() as u32 });
        }
        AF_INET => {
            let port = random.of(&[0u16, 2000, 2001, 2002]).to_be_bytes();
            let ip = random.of(&[[127, 0, 0, 1], [0; 4], [224, 0, 0, 1], [255; 4], [10, 0, 0, 1]]);
            at.add(2).copy_from(port.as_ptr(), 2);
            at.add(4).copy_from(ip.as_ptr(), 4);
        }
        _ => {}
    }
    (at.cast(), length(random))
}

/// A netlink message with a header, a fixed part and attributes, some of them nested or truncated.
fn request(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..1 + random.below(3) {
        let start = out.len();
        out.extend([0; 4]);
        let kinds = [16, 17, 18, 19, 20, 21, 22, 24, 26, 28, 30, 32, 36, 38, 40, 64, 66, 78, 80];
        let kind = if random.below(8) == 0 { random.next() as u16 } else { random.of(&kinds) };
        let flags = random.of(&[1u16, 5, 0x301, 0x305, 0x601, 0xffff]);
        out.extend(kind.to_le_bytes());
        out.extend(flags.to_le_bytes());
        out.extend(random.value().to_le_bytes());
        let fixed = random.of(&[1, 8, 12, 16, 20, 24]);
        out.extend(random.bytes(fixed, &[0, 1, 2, 10]));
        while random.below(4) > 0 && out.len() < 2000 {
            out.resize(out.len().next_multiple_of(4), 0);
            let len = random.of(&[0, 1, 4, 8, 16, 40]);
            let told = if random.below(6) == 0 { random.next() as u16 } else { len as u16 + 4 };
            let attribute = random.below(60) as u16 | if random.below(6) == 0 { 0x8000 } else { 0 };
            out.extend(told.to_le_bytes());
            out.extend(attribute.to_le_bytes());
            out.extend(random.bytes(len, &[0, 1, 4, 127, b'l', b'o']));
        }
        let told = if random.below(8) == 0 { random.value() as u32 } else { (out.len() - start) as u32 };
        out[start..start + 4].copy_from_slice(&told.to_le_bytes());
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// Ancillary data: descriptors, credentials, and garbage.
unsafe fn control(random: &mut Random, fds: &[i32]) -> Vec<u64> {
    let mut words = Vec::new();
    for _ in 0..random.below(3) {
        let n = random.of(&[0, 1, 2, 5, 254]);
        let told = if random.below(8) == 0 { random.value() } else { 16 + 4 * n };
        let level = if random.below(6) == 0 { random.of(LEVELS) } else { SOL_SOCKET };
        words.push(told);
        words.push(level as u64 | (random.of(&[SCM_RIGHTS, SCM_CREDENTIALS, 4, 37]) as u64) << 32);
        for _ in 0..n.div_ceil(2) {
            words.push(random.of(fds) as u64 | (random.of(fds) as u64) << 32);
        }
    }
    words
}

unsafe fn message(fd: i32, random: &mut Random, scratch: &mut Scratch, fds: &[i32]) {
    let mut data = if random.below(3) == 0 { request(random) } else { random.bytes(300, b"\0a") };
    let mut iov = iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut words = control(random, fds);
    let mut m: msghdr = std::mem::zeroed();
    if random.below(2) == 0 {
        let (name, len) = address(random, scratch);
        (m.msg_name, m.msg_namelen) = (name.cast_mut().cast(), len);
    }
    (m.msg_iov, m.msg_iovlen) = (&mut iov, 1);
    (m.msg_control, m.msg_controllen) = (words.as_mut_ptr().cast(), words.len() * size_of::<u64>());
    let flags = MSG_DONTWAIT | if random.below(4) == 0 { 1 << random.below(20) } else { 0 };
    if random.below(2) == 0 {
        sendmsg(fd, &m, flags | MSG_NOSIGNAL);
    } else {
        words.resize(64, 0);
        (m.msg_control, m.msg_controllen) = (words.as_mut_ptr().cast(), random.below(512) as usize);
        recvmsg(fd, &mut m, flags);
    }
}

pub unsafe fn round(mut random: Random) {
    super::limits();
    let dir = std::env::temp_dir().join(format!("fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::env::set_current_dir(&dir).unwrap();
    let mut scratch = Scratch(vec![0; 4096]);
    let mut fds = Vec::new();
    for domain in [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET] {
        for kind in [SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_RAW] {
            let protocol = if domain == AF_NETLINK { random.of(&[0, 4, 9, 15, 16]) } else { 0 };
            fds.push(socket(domain, kind | SOCK_NONBLOCK, protocol));
        }
    }
    let mut pair = [0; 2];
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair.as_mut_ptr());
    fds.extend(pair);
    fds.retain(|fd| *fd > 2);
    for i in 0..4000 {
        if i % 100 == 0 {
            scratch.fill(&mut random);
        }
        let fd = random.of(&fds);
        let option = if random.below(8) == 0 { random.value() as i32 } else { random.below(90) as i32 };
        match random.below(12) {
            0..=2 => drop(setsockopt(fd, random.of(LEVELS), option, scratch.at(&mut random), length(&mut random))),
            3 | 4 => {
                let mut len = length(&mut random).min(512);
                getsockopt(fd, random.of(LEVELS), option, scratch.at(&mut random), &mut len);
            }
            5 => {
                let (at, len) = address(&mut random, &mut scratch);
                bind(fd, at, len);
            }
            6 => {
                let (at, len) = address(&mut random, &mut scratch);
                connect(fd, at, len);
            }
            7 => drop(listen(fd, random.value() as i32)),
            8 => {
                let new = accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), SOCK_NONBLOCK);
                if new >= 0 && fds.len() < 200 {
                    fds.push(new);
                }
            }
            9 if random.below(8) == 0 => drop(shutdown(fd, random.below(4) as i32)),
            9 => {
                let data = request(&mut random);
                send(fd, data.as_ptr().cast(), data.len(), MSG_DONTWAIT | MSG_NOSIGNAL);
            }
            _ => message(fd, &mut random, &mut scratch, &fds),
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
}
