//! Pseudo terminals: random settings, input and ioctls on both ends.

use super::Random;
use libc::*;

/// Bytes that are special to a line discipline.
const FAVOURITES: &[u8] = b"\x03\x04\x08\x11\x12\x13\x15\x16\x17\x1a\x1c\x7f\r\n\t \0\xffa\xc3\xa4";

const REQUESTS: &[u64] = &[
    TCGETS,
    TCSETS,
    TCSETSW,
    TCSETSF,
    TCGETA,
    TCSETA,
    TCSETAW,
    TCSETAF,
    TCXONC,
    TCFLSH,
    TIOCEXCL,
    TIOCNXCL,
    TIOCSCTTY,
    TIOCGPGRP,
    TIOCSPGRP,
    TIOCOUTQ,
    TIOCSTI,
    TIOCGWINSZ,
    TIOCSWINSZ,
    FIONREAD,
    TIOCPKT,
    FIONBIO,
    TIOCNOTTY,
    TIOCSETD,
    TIOCGETD,
    TIOCGSID,
    TIOCGPTN,
    TIOCSPTLCK,
    TIOCGLCKTRMIOS,
    TIOCSLCKTRMIOS,
    TIOCVHANGUP,
    TIOCCONS,
    TCSBRK,
];

unsafe fn settings(fd: i32, random: &mut Random) {
    let mut t: termios = std::mem::zeroed();
    tcgetattr(fd, &mut t);
    for flags in [&mut t.c_iflag, &mut t.c_oflag, &mut t.c_cflag, &mut t.c_lflag] {
        for _ in 0..random.below(3) {
            *flags ^= 1 << random.below(18);
        }
    }
    for _ in 0..random.below(4) {
        t.c_cc[random.below(19) as usize] = random.of(FAVOURITES);
    }
    t.c_line = if random.below(20) == 0 { random.next() as u8 } else { 0 };
    ioctl(fd, random.of(&[TCSETS, TCSETS, TCSETSF]), &t);
}

pub unsafe fn round(mut random: Random) {
    super::limits();
    // The terminal's signals, stops included, must not affect the round.
    for signal in [SIGINT, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU, SIGHUP, SIGWINCH, SIGCONT] {
        libc::signal(signal, SIG_IGN);
    }
    setsid();
    let mut ends = Vec::new();
    for _ in 0..2 {
        let master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
        unlockpt(master);
        let name = ptsname(master);
        if master < 0 || name.is_null() {
            return;
        }
        let flags = if random.below(2) == 0 { O_NOCTTY } else { 0 };
        ends.extend([master, open(name, O_RDWR | O_NONBLOCK | flags)]);
    }
    let mut buffer = vec![0u8; 8192];
    for _ in 0..3000 {
        let fd = random.of(&ends);
        match random.below(12) {
            0 => settings(fd, &mut random),
            1 => {
                let request = random.of(REQUESTS);
                let words: Vec<u64> = (0..16).map(|_| random.value()).collect();
                let by_value = matches!(request, TCXONC | TCFLSH | TCSBRK | TIOCSCTTY);
                if by_value {
                    ioctl(fd, request, random.below(5));
                } else {
                    ioctl(fd, request, words.as_ptr());
                }
            }
            2..=4 => {
                let len = random.below(buffer.len() as u64) as usize;
                read(fd, buffer.as_mut_ptr().cast(), len);
            }
            5 => {
                tcsetattr(fd, TCSANOW, &std::mem::zeroed());
            }
            _ => {
                let len = random.of(&[1, 1, 2, 7, 100, 5000]);
                let data = random.bytes(len, FAVOURITES);
                write(fd, data.as_ptr().cast(), data.len());
            }
        }
    }
}
