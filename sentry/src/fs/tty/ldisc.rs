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
}

impl Ldisc {
    fn l(&self, flag: u32) -> bool {
        self.termios.lflag & flag != 0
    }
    fn is(&self, which: usize, c: u8) -> bool {
        let v = self.termios.cc[which];
        v != 0 && v == c
    }

    /// A byte that a program writes or that is echoed.
    pub fn output(&mut self, c: u8) {
        if self.termios.oflag & libc::OPOST != 0 {
            if c == b'\n' && self.termios.oflag & libc::ONLCR != 0 {
                self.out.push_back(b'\r');
            } else if c == b'\r' && self.termios.oflag & libc::OCRNL != 0 {
                self.out.push_back(b'\n');
                return;
            }
        }
        self.out.push_back(c);
    }
    fn echo(&mut self, c: u8) {
        let newline = c == b'\n' && self.l(libc::ECHONL) && self.l(libc::ICANON);
        if !(self.l(libc::ECHO) || newline) {
            return;
        }
        if self.out.len() >= OUT_MAX {
            return;
        }
        if self.l(libc::ECHOCTL) && (c < 0x20 || c == 0x7f) && c != b'\n' && c != b'\t' {
            self.out.push_back(b'^');
            self.out.push_back(c ^ 0x40);
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
        if self.l(libc::ECHO) {
            let width = if c < 0x20 && self.l(libc::ECHOCTL) { 2 } else { 1 };
            for _ in 0..width {
                self.out.extend(if self.l(libc::ECHOE) { &b"\x08 \x08"[..] } else { &b"\x7f"[..] });
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
                        self.out.clear();
                    }
                    self.echo(c);
                    return signal;
                }
            }
            if i & libc::IXON != 0 && (self.is(libc::VSTART, c) || self.is(libc::VSTOP, c)) {
                return None;
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
