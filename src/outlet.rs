//! A stream of lines (the log, a trace) that never blocks its writer. Bytes that the reader does not take are kept, up
//! to a limit, and written with the next line; beyond the limit lines are dropped and counted.
//!
//! A regular file is written directly. A terminal must have `O_NONBLOCK` ([`crate::launch`] opens it anew). Anything
//! else (pipe, socket) is written with `RWF_NOWAIT`, since its flags are shared with other programs.

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::stat::fstat;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub struct Outlet<F> {
    fd: F,
    /// Writes do not block, whatever the reader does.
    never_waits: bool,
    kept: VecDeque<u8>,
    /// Limit of the bytes in `kept`.
    most: usize,
    left_out: u64,
}

impl<F: AsFd> Outlet<F> {
    pub fn new(fd: F, most: usize) -> Outlet<F> {
        let regular = fstat(&fd).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFREG);
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
        let never_waits = regular || flags.is_ok_and(|f| f.contains(OFlag::O_NONBLOCK));
        Outlet { fd, never_waits, kept: VecDeque::new(), most, left_out: 0 }
    }

    /// Whether plain writes to the stream never block.
    pub fn never_waits(&self) -> bool {
        self.never_waits
    }

    /// Writes a line, which includes its newline; keeps or drops it if the reader is slow.
    pub fn put(&mut self, line: &[u8]) {
        self.push();
        if self.left_out > 0 {
            let n = self.left_out;
            let note = format!("runsc-rs: {n} lines were dropped here: the reader was too slow\n");
            if self.keep(note.as_bytes()) {
                self.left_out = 0;
            }
        }
        if !self.keep(line) {
            self.left_out += 1;
        }
        self.push();
    }

    fn keep(&mut self, bytes: &[u8]) -> bool {
        let fits = self.kept.len() + bytes.len() <= self.most;
        if fits {
            self.kept.extend(bytes);
        }
        fits
    }

    /// Writes the kept bytes, as far as the reader takes them.
    fn push(&mut self) {
        while !self.kept.is_empty() {
            let bytes = self.kept.make_contiguous();
            let written = match self.never_waits {
                true => nix::unistd::write(&self.fd, bytes),
                false => platform::host::write_nowait(self.fd.as_fd(), bytes),
            };
            match written {
                Ok(n) if n > 0 => drop(self.kept.drain(..n)),
                Err(Errno::EINTR) => {}
                Ok(_) | Err(Errno::EAGAIN) => return,
                // The reader is gone.
                Err(_) => self.kept.clear(),
            }
        }
    }

    /// Called at the end: gives a slow reader a little time.
    pub fn finish(&mut self) {
        const PATIENCE: Duration = Duration::from_millis(300);
        let until = Instant::now() + PATIENCE;
        self.push();
        while !self.kept.is_empty() && Instant::now() < until {
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut fds, PollTimeout::from(20u8));
            self.push();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_full_pipe_does_not_block_and_dropped_lines_are_counted() {
        let (mut read, write) = std::io::pipe().unwrap();
        let mut outlet = Outlet::new(write, 1000);
        let line = [b'x'; 99].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        for _ in 0..2000 {
            outlet.put(&line);
        }
        let lost = outlet.left_out;
        assert!(lost > 1000, "{lost}");
        assert_eq!(outlet.kept.len(), 1000);
        let mut taken = vec![0; 60_000];
        read.read_exact(&mut taken).unwrap();
        outlet.put(b"last\n");
        outlet.finish();
        drop(outlet);
        read.read_to_end(&mut taken).unwrap();
        let text = String::from_utf8(taken).unwrap();
        assert!(text.ends_with("last\n"));
        assert!(text.contains(&format!("runsc-rs: {lost} lines were dropped")), "{lost}");
        assert_eq!(text.lines().filter(|l| l.len() == 99).count() as u64 + lost, 2000);
    }
}
