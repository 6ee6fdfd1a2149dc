//! The line discipline (termios(3)): what becomes of bytes typed at a terminal and of those a program writes to it.
//! Pure state; the caller locks it, sends the signals it asks for and wakes whoever waits.

use std::collections::VecDeque;

/// `struct termios` of the kernel.
#[derive(Clone, Copy, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct Termios {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; 19],
}

/// Bytes of the old `struct termio`, its padding included.
const TERMIO: usize = 18;

impl Termios {
    /// As `TCGETA` gives it: the low halves of the flags and the first characters.
    pub fn to_termio(self) -> [u8; TERMIO] {
        let mut b = [0; TERMIO];
        for (to, flags) in b.chunks_exact_mut(2).zip([self.iflag, self.oflag, self.cflag, self.lflag]) {
            to.copy_from_slice(&(flags as u16).to_le_bytes());
        }
        b[8] = self.line;
        b[9..17].copy_from_slice(&self.cc[..8]);
        b
    }
    /// With what `locked` (`TIOCSLCKTRMIOS`) keeps taken from `old`.
    pub fn keeping(mut self, old: &Termios, locked: &Termios) -> Termios {
        let keep = |new: &mut u32, old: u32, mask: u32| *new = (*new & !mask) | (old & mask);
        keep(&mut self.iflag, old.iflag, locked.iflag);
        keep(&mut self.oflag, old.oflag, locked.oflag);
        keep(&mut self.cflag, old.cflag, locked.cflag);
        keep(&mut self.lflag, old.lflag, locked.lflag);
        if locked.line != 0 {
            self.line = old.line;
        }
        for ((new, old), locked) in self.cc.iter_mut().zip(old.cc).zip(locked.cc) {
            if locked != 0 {
                *new = old;
            }
        }
        self
    }
    /// No bit set: nothing locked.
    pub const NONE: Termios = Termios { iflag: 0, oflag: 0, cflag: 0, lflag: 0, line: 0, cc: [0; 19] };
    /// Is output stopped by ^S and started by ^Q?
    fn usual_flow(&self) -> bool {
        self.iflag & libc::IXON != 0 && self.cc[libc::VSTOP] == 0x13 && self.cc[libc::VSTART] == 0x11
    }
    /// What `TCSETA` makes of it.
    pub fn with_termio(mut self, b: &[u8; TERMIO]) -> Termios {
        let low = |flags: u32, at: usize| (flags & !0xffff) | u32::from(u16::from_le_bytes([b[at], b[at + 1]]));
        self.iflag = low(self.iflag, 0);
        self.oflag = low(self.oflag, 2);
        self.cflag = low(self.cflag, 4);
        self.lflag = low(self.lflag, 6);
        self.line = b[8];
        self.cc[..8].copy_from_slice(&b[9..17]);
        self
    }
}

/// `struct termios2`: with speeds as numbers.
#[derive(Clone, Copy, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct Termios2 {
    pub base: Termios,
    /// Bits a second.
    pub ispeed: u32,
    pub ospeed: u32,
}

/// Says that a speed is one of those that have no number of their own (asm-generic/termbits.h).
const BOTHER: u32 = 0o10000;
const CBAUD: u32 = 0o10017;
/// Where `c_cflag` has the speed of the input.
const IBSHIFT: u32 = 16;
/// Bits a second, by number of speed.
const SPEEDS: [u32; 31] = [
    0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400, 460800,
    500000, 576000, 921600, 1000000, 1152000, 1500000, 2000000, 2500000, 3000000, 3500000, 4000000,
];

impl Termios2 {
    /// With the speeds that the flags name; `other` are those of `BOTHER`.
    pub fn of(base: Termios, other: (u32, u32)) -> Termios2 {
        let speed = |bits: u32, other: u32| match bits & CBAUD {
            BOTHER => other,
            b if b & BOTHER != 0 => SPEEDS.get((b & !BOTHER) as usize + 15).copied().unwrap_or(0),
            b => SPEEDS.get(b as usize).copied().unwrap_or(0),
        };
        let ospeed = speed(base.cflag, other.1);
        let own = base.cflag >> IBSHIFT;
        let ispeed = if own & CBAUD == 0 { ospeed } else { speed(own, other.0) };
        Termios2 { base, ispeed, ospeed }
    }
}

impl Default for Termios {
    fn default() -> Self {
        let mut cc = [0u8; 19];
        cc[libc::VINTR] = 3;
        cc[libc::VQUIT] = 0x1c;
        cc[libc::VERASE] = 0x7f;
        cc[libc::VKILL] = 0x15;
        cc[libc::VEOF] = 4;
        cc[libc::VMIN] = 1;
        cc[libc::VSTART] = 0x11;
        cc[libc::VSTOP] = 0x13;
        cc[libc::VSUSP] = 0x1a;
        cc[libc::VREPRINT] = 0x12;
        cc[libc::VDISCARD] = 0xf;
        cc[libc::VWERASE] = 0x17;
        cc[libc::VLNEXT] = 0x16;
        Termios {
            iflag: libc::ICRNL | libc::IXON,
            oflag: libc::OPOST | libc::ONLCR,
            cflag: libc::B38400 | libc::CS8 | libc::CREAD,
            lflag: libc::ISIG
                | libc::ICANON
                | libc::ECHO
                | libc::ECHOE
                | libc::ECHOK
                | libc::ECHOCTL
                | libc::ECHOKE
                | libc::IEXTEN,
            line: 0,
            cc,
        }
    }
}

/// What the first byte of a read in packet mode tells (ioctl_tty(2), `TIOCPKT`).
pub mod packet {
    pub const DATA: u8 = 0;
    pub const FLUSHREAD: u8 = 1;
    pub const FLUSHWRITE: u8 = 2;
    pub const STOP: u8 = 4;
    pub const START: u8 = 8;
    pub const NOSTOP: u8 = 16;
    pub const DOSTOP: u8 = 32;
}

/// Most typed bytes that wait to be read (`N_TTY_BUF_SIZE`), and most written ones that wait for the master.
pub const IN_MAX: usize = 4096;
pub const OUT_MAX: usize = 64 * 1024;

#[derive(Default)]
pub struct Ldisc {
    pub termios: Termios,
    /// The line being edited (canonical mode).
    partial: Vec<u8>,
    /// What may be read, and in canonical mode the lengths of the lines in it (0: end of file).
    ready: VecDeque<u8>,
    lines: VecDeque<usize>,
    /// What the master may read.
    pub out: VecDeque<u8>,
    literal: bool,
    /// Output is stopped, by a typed character or by `TCXONC` (then `by_request`, and only `TCXONC` starts it).
    stopped: bool,
    by_request: bool,
    /// Echoes that wait for output to start.
    held: VecDeque<u8>,
    /// Packet mode of the master (`TIOCPKT`), and what it is to be told next.
    packet: bool,
    status: u8,
}

impl Ldisc {
    fn l(&self, flag: u32) -> bool {
        self.termios.lflag & flag != 0
    }
    fn is(&self, which: usize, c: u8) -> bool {
        let v = self.termios.cc[which];
        v != 0 && v == c
    }

    /// Where output goes.
    fn sink(&mut self) -> &mut VecDeque<u8> {
        match self.stopped {
            true => &mut self.held,
            false => &mut self.out,
        }
    }
    /// Will it take what a program writes?
    pub fn writable(&self) -> bool {
        !self.stopped && self.out.len() + 2 <= OUT_MAX
    }
    fn report(&mut self, what: u8, not: u8) {
        if self.packet {
            self.status = (self.status & !not) | what;
        }
    }
    fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            self.report(packet::STOP, packet::START);
        }
    }
    fn start(&mut self) {
        if self.stopped && !self.by_request {
            self.stopped = false;
            let room = OUT_MAX.saturating_sub(self.out.len());
            self.held.truncate(room);
            self.out.append(&mut self.held);
            self.report(packet::START, packet::STOP);
        }
    }
    /// `TCOOFF`, `TCOON` of tcflow(3).
    pub fn flow(&mut self, off: bool) {
        if off {
            self.by_request = true;
            self.stop();
        } else if std::mem::take(&mut self.by_request) {
            self.start();
        }
    }
    /// A byte for the other end, as it is and at once (`TCIOFF`, `TCION`).
    pub fn send(&mut self, c: u8) {
        if self.out.len() < OUT_MAX {
            self.out.push_back(c);
        }
    }
    /// Turns packet mode on or off.
    pub fn set_packet(&mut self, on: bool) {
        if on && !self.packet {
            self.status = 0;
        }
        self.packet = on;
    }
    pub fn packet(&self) -> bool {
        self.packet
    }
    /// Does the master have something to be told?
    pub fn has_status(&self) -> bool {
        self.packet && self.status != 0
    }
    pub fn take_status(&mut self) -> u8 {
        std::mem::take(&mut self.status)
    }

    /// A byte that a program writes or that is echoed.
    pub fn output(&mut self, c: u8) {
        if self.termios.oflag & libc::OPOST != 0 {
            if c == b'\n' && self.termios.oflag & libc::ONLCR != 0 {
                self.sink().push_back(b'\r');
            } else if c == b'\r' && self.termios.oflag & libc::OCRNL != 0 {
                self.sink().push_back(b'\n');
                return;
            }
        }
        self.sink().push_back(c);
    }
    fn echo(&mut self, c: u8) {
        let newline = c == b'\n' && self.l(libc::ECHONL) && self.l(libc::ICANON);
        if !(self.l(libc::ECHO) || newline) {
            return;
        }
        if self.sink().len() >= OUT_MAX {
            return;
        }
        if self.l(libc::ECHOCTL) && (c < 0x20 || c == 0x7f) && c != b'\n' && c != b'\t' {
            self.sink().push_back(b'^');
            self.sink().push_back(c ^ 0x40);
        } else {
            self.output(c);
        }
    }
    /// Takes back the last character of the line.
    fn erase(&mut self) -> bool {
        let Some(mut c) = self.partial.pop() else { return false };
        if self.termios.iflag & libc::IUTF8 != 0 {
            while c & 0xc0 == 0x80 {
                match self.partial.pop() {
                    Some(p) => c = p,
                    None => break,
                }
            }
        }
        if self.l(libc::ECHO) && self.sink().len() < OUT_MAX {
            let width = if c < 0x20 && self.l(libc::ECHOCTL) { 2 } else { 1 };
            for _ in 0..width {
                let shown = if self.l(libc::ECHOE) { &b"\x08 \x08"[..] } else { &b"\x7f"[..] };
                self.sink().extend(shown);
            }
        }
        true
    }
    fn finish_line(&mut self, end: Option<u8>) {
        self.partial.extend(end);
        self.lines.push_back(self.partial.len());
        self.ready.extend(self.partial.drain(..));
    }

    /// True if another byte may be typed.
    pub fn room(&self) -> bool {
        self.ready.len() + self.partial.len() < IN_MAX && self.lines.len() < IN_MAX
    }

    /// A typed byte; the signal that it stands for, if any.
    pub fn input(&mut self, mut c: u8) -> Option<i32> {
        let i = self.termios.iflag;
        if i & libc::ISTRIP != 0 {
            c &= 0x7f;
        }
        if !std::mem::take(&mut self.literal) {
            if i & libc::IXON != 0 && (self.is(libc::VSTART, c) || self.is(libc::VSTOP, c)) {
                match self.is(libc::VSTART, c) {
                    true => self.start(),
                    false => self.stop(),
                }
                return None;
            }
            if self.l(libc::ISIG) {
                let signal = if self.is(libc::VINTR, c) {
                    Some(libc::SIGINT)
                } else if self.is(libc::VQUIT, c) {
                    Some(libc::SIGQUIT)
                } else if self.is(libc::VSUSP, c) {
                    Some(libc::SIGTSTP)
                } else {
                    None
                };
                if signal.is_some() {
                    if !self.l(libc::NOFLSH) {
                        self.flush_input();
                        self.flush_output();
                    }
                    if i & libc::IXON != 0 {
                        self.start();
                    }
                    self.echo(c);
                    return signal;
                }
            }
            if i & libc::IXON != 0 && i & libc::IXANY != 0 {
                self.start();
            }
            match c {
                b'\r' if i & libc::IGNCR != 0 => return None,
                b'\r' if i & libc::ICRNL != 0 => c = b'\n',
                b'\n' if i & libc::INLCR != 0 => c = b'\r',
                _ => {}
            }
            if self.l(libc::ICANON) {
                if self.is(libc::VERASE, c) {
                    self.erase();
                    return None;
                }
                if self.is(libc::VKILL, c) {
                    while self.erase() {}
                    return None;
                }
                if self.l(libc::IEXTEN) && self.is(libc::VWERASE, c) {
                    while self.partial.last() == Some(&b' ') {
                        self.erase();
                    }
                    while self.partial.last().is_some_and(|&c| c != b' ') {
                        self.erase();
                    }
                    return None;
                }
                if self.l(libc::IEXTEN) && self.is(libc::VLNEXT, c) {
                    self.literal = true;
                    return None;
                }
                if self.is(libc::VEOF, c) {
                    self.finish_line(None);
                    return None;
                }
                if c == b'\n' || self.is(libc::VEOL, c) || self.is(libc::VEOL2, c) {
                    self.echo(c);
                    self.finish_line(Some(c));
                    return None;
                }
            }
        }
        self.echo(c);
        if self.l(libc::ICANON) {
            self.partial.push(c);
        } else {
            self.ready.push_back(c);
        }
        None
    }

    pub fn flush_input(&mut self) {
        self.partial.clear();
        self.ready.clear();
        self.lines.clear();
        self.report(packet::FLUSHREAD, 0);
    }
    pub fn flush_output(&mut self) {
        self.out.clear();
        self.held.clear();
        self.report(packet::FLUSHWRITE, 0);
    }

    /// Bytes that a read would give now: `None` if it has to wait.
    pub fn readable(&self) -> Option<usize> {
        if self.l(libc::ICANON) {
            return self.lines.front().copied();
        }
        let (min, time) = (self.termios.cc[libc::VMIN] as usize, self.termios.cc[libc::VTIME]);
        let need = if time == 0 { min } else { min.min(1) };
        match self.ready.len() {
            0 if min == 0 && time != 0 => None,
            n if n >= need => Some(n),
            _ => None,
        }
    }
    /// For `FIONREAD`.
    pub fn queued(&self) -> usize {
        self.ready.len()
    }
    /// Reads up to `max` bytes of what [`Ldisc::readable`] promised.
    pub fn take(&mut self, max: usize) -> Vec<u8> {
        let n = self.readable().unwrap_or(0).min(max);
        if self.l(libc::ICANON) {
            if let Some(line) = self.lines.front_mut() {
                *line -= n;
                if *line == 0 {
                    self.lines.pop_front();
                }
            }
        }
        self.ready.drain(..n.min(self.ready.len())).collect()
    }
    /// New settings; what was typed stays readable in the other mode.
    pub fn set(&mut self, t: Termios) {
        let (old, new) = (self.l(libc::ICANON), t.lflag & libc::ICANON != 0);
        let (flow, no_flow) = (packet::DOSTOP, packet::NOSTOP);
        match (self.termios.usual_flow(), t.usual_flow()) {
            (false, true) => self.report(flow, no_flow),
            (true, false) => self.report(no_flow, flow),
            _ => {}
        }
        if self.termios.iflag & libc::IXON != 0 && t.iflag & libc::IXON == 0 {
            self.start();
        }
        self.termios = t;
        if old && !new {
            self.lines.clear();
            self.ready.extend(self.partial.drain(..));
        } else if !old && new && !self.ready.is_empty() {
            self.lines.push_back(self.ready.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(l: &mut Ldisc, text: &[u8]) -> Vec<i32> {
        text.iter().filter_map(|&c| l.input(c)).collect()
    }

    #[test]
    fn lines_are_edited_and_echoed() {
        let mut l = Ldisc::default();
        assert!(typed(&mut l, b"ax\x7fb\r").is_empty());
        assert_eq!(l.readable(), Some(3));
        assert_eq!(l.take(2), b"ab");
        assert_eq!(l.take(9), b"\n");
        assert_eq!(l.readable(), None);
        assert_eq!(Vec::from(l.out.clone()), b"ax\x08 \x08b\r\n");
        typed(&mut l, b"\x04");
        assert_eq!(l.readable(), Some(0));
        assert_eq!(l.take(5), b"");
        assert_eq!(l.readable(), None);
    }

    #[test]
    fn output_stops_and_starts() {
        let mut l = Ldisc::default();
        typed(&mut l, b"\x13ab");
        assert!(!l.writable() && l.out.is_empty());
        typed(&mut l, b"\x11");
        assert!(l.writable());
        assert_eq!(Vec::from(l.out.clone()), b"ab");
        l.flow(true);
        typed(&mut l, b"\x11");
        assert!(!l.writable());
        l.flow(false);
        assert!(l.writable());
    }

    /// What is typed shows only as long as there is room for it.
    #[test]
    fn no_typing_fills_more_than_the_room() {
        // Nothing but lines that are erased; erasing and killing; stopping, typing, starting.
        for keys in ["\x01\x7f", "abc\x15", "ab cd\x17\x17", "\x13a\x7fb\x7f\x11", "\x13abc\x15\x11\x13"] {
            let mut l = Ldisc::default();
            for _ in 0..OUT_MAX {
                typed(&mut l, keys.as_bytes());
            }
            assert!(l.out.len() + l.held.len() <= 2 * OUT_MAX + 64, "{keys:?}: {} {}", l.out.len(), l.held.len());
        }
    }

    #[test]
    fn speeds_are_told_as_numbers() {
        let with = |cflag| {
            let t = Termios2::of(Termios { cflag, ..Termios::default() }, (7, 8));
            (t.ispeed, t.ospeed)
        };
        assert_eq!(with(libc::B38400), (38400, 38400));
        assert_eq!(with(libc::B4000000), (4000000, 4000000));
        assert_eq!(with(libc::B57600 | libc::B9600 << IBSHIFT), (9600, 57600));
        assert_eq!(with(BOTHER | BOTHER << IBSHIFT), (7, 8));
    }

    #[test]
    fn control_characters_are_signals_or_bytes() {
        let mut l = Ldisc::default();
        assert_eq!(typed(&mut l, b"abc\x03"), [libc::SIGINT]);
        assert_eq!(l.readable(), None);
        let raw = Termios { lflag: 0, iflag: 0, ..Termios::default() };
        l.set(raw);
        assert!(typed(&mut l, b"\x03\r").is_empty());
        assert_eq!(l.take(9), b"\x03\r");
    }
}
