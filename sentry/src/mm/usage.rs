//! What is shown of an address space: its sizes, and the strings that its program was started with.

use super::vma::Vma;
use super::{Mm, UserMem};

/// Most of a process's arguments or environment that is shown, in bytes. (Linux has no bound but `execve`'s.)
const MAX_STRINGS: u64 = 2 << 20;

/// Sizes of an address space, in bytes.
#[derive(Default)]
pub struct Sizes {
    pub total: u64,
    pub rss_anon: u64,
    pub rss_file: u64,
    pub rss_shmem: u64,
    pub data: u64,
    pub stack: u64,
    pub exec: u64,
    pub text: u64,
    pub locked: u64,
    pub count: u64,
}

impl Sizes {
    pub fn rss(&self) -> u64 {
        self.rss_anon + self.rss_file + self.rss_shmem
    }
}

/// Bytes of a mapping that count as resident. Only the host knows which pages are; what can be written to is taken to be
/// touched up to a bound, so that a large reservation does not look like use.
pub fn resident(v: &Vma) -> u64 {
    const RESERVATION: u64 = 64 << 20;
    let len = v.end - v.start;
    if v.prot == 0 {
        0
    } else if v.path().is_some() {
        len.min(RESERVATION)
    } else if v.label == "[stack]" {
        len.min(132 << 10)
    } else if len > RESERVATION {
        len / 16
    } else {
        len
    }
}

pub fn sizes(mm: &Mm) -> Sizes {
    let mut z = Sizes::default();
    let m = mm.map();
    z.text = m.code.1.saturating_sub(m.code.0);
    for v in m.vmas.iter() {
        let len = v.len();
        let rss = resident(v);
        z.count += 1;
        z.total += len;
        if v.locked {
            z.locked += len;
        }
        match (v.path().is_some(), v.shared) {
            (true, _) => z.rss_file += rss,
            (false, true) => z.rss_shmem += rss,
            (false, false) => z.rss_anon += rss,
        }
        if v.label == "[stack]" {
            z.stack += len.min(132 << 10);
        } else if v.prot & libc::PROT_WRITE != 0 && !v.shared {
            z.data += len;
        } else if v.prot & libc::PROT_EXEC != 0 && v.prot & libc::PROT_WRITE == 0 {
            z.exec += len;
        }
    }
    z
}

/// Appends guest memory as far as it is readable.
pub fn copy(mem: &UserMem, from: u64, to: u64, out: &mut Vec<u8>) {
    let len = to.saturating_sub(from).min(MAX_STRINGS) as usize;
    let at = out.len();
    out.resize(at + len, 0);
    let n = mem.read_some(from, out.get_mut(at..).unwrap_or_default()).unwrap_or(0);
    out.truncate(at + n);
}

/// Appends the arguments, each with its NUL (`/proc/PID/cmdline`).
pub fn arguments(mm: &Mm, out: &mut Vec<u8>) {
    let (args, env) = {
        let m = mm.map();
        (m.args, m.env)
    };
    let mem = mm.for_others();
    copy(&mem, args.0, args.1, out);
    // setproctitle(3): a process that has overwritten its last NUL goes on into what was the environment.
    if out.last().is_some_and(|&c| c != 0) && env.0 == args.1 {
        let at = out.len();
        copy(&mem, env.0, env.1, out);
        if let Some(end) = out.iter().skip(at).position(|&c| c == 0) {
            out.truncate(at + end + 1);
        }
    }
}
