//! Copies in, along with the trap, the bytes that the Sentry will read for the most frequent calls: a path, a small
//! buffer.

use crate::abi::*;
use crate::asm::{stub_copy, stub_copy_str};

/// Index of an argument in the context's registers.
const ARG: [usize; 6] = [8, 9, 12, 2, 0, 1];

enum Prefetch {
    Nothing,
    /// The NUL-terminated string that this argument points to.
    Path(usize),
    /// Pointer argument, length argument, size of an element.
    Buf(usize, usize, u64),
    /// Pointer argument and size.
    Fixed(usize, u64),
    /// This number of bytes at the stack pointer.
    Stack(u64),
    /// The head of the robust futex list.
    Robust,
}

fn prefetch_of(nr: u64) -> Prefetch {
    use Prefetch::*;
    match nr {
        // open stat lstat access chdir mkdir rmdir creat unlink readlink chmod execve statfs
        2 | 4 | 6 | 21 | 80 | 83 | 84 | 85 | 87 | 89 | 90 | 59 | 137 => Path(0),
        // openat mkdirat newfstatat unlinkat readlinkat fchmodat faccessat utimensat statx openat2 faccessat2 execveat
        257 | 258 | 262 | 263 | 267 | 268 | 269 | 280 | 332 | 437 | 439 | 322 => Path(1),
        // write pwrite64 sendto connect bind
        1 | 18 | 44 | 42 | 49 => Buf(1, 2, 1),
        // writev readv
        20 | 19 => Buf(1, 2, 16),
        // poll ppoll
        7 | 271 => Buf(0, 1, 8),
        // clone3
        435 => Buf(0, 1, 1),
        // rt_sigaction rt_sigprocmask
        13 => Fixed(1, 32),
        14 => Fixed(1, 8),
        // rt_sigreturn
        15 => Stack(304),
        // nanosleep clock_nanosleep
        35 => Fixed(0, 16),
        230 => Fixed(2, 16),
        // epoll_ctl
        233 => Fixed(3, 12),
        // recvmsg sendmsg
        46 | 47 => Fixed(1, 56),
        // prlimit64
        302 => Fixed(2, 16),
        // exit exit_group
        60 | 231 => Robust,
        _ => Nothing,
    }
}

/// # Safety
/// `cell` is this thread's own.
pub unsafe fn prefetch(cell: *mut Cell, nr: u64, gregs: &[u64; R_ORIG]) {
    // SAFETY: guest memory is touched through the copy routines only.
    unsafe {
        let to = cell as u64 + STAGE_IN;
        match nr {
            // set_robust_list
            273 => (*cell).robust = gregs[ARG[0]],
            // execve execveat
            59 | 322 => (*cell).robust = 0,
            _ => {}
        }
        let (addr, len) = match prefetch_of(nr) {
            Prefetch::Nothing => (0, 0),
            Prefetch::Path(i) => {
                let p = gregs[ARG[i]];
                (p, if p == 0 { 0 } else { stub_copy_str(to, p, 4096) })
            }
            Prefetch::Buf(p, n, each) => {
                let (p, n) = (gregs[ARG[p]], gregs[ARG[n]]);
                let n = if n > STAGE_IN_MAX as u64 { 0 } else { n * each };
                (p, copy(to, p, n))
            }
            Prefetch::Robust => ((*cell).robust, copy(to, (*cell).robust, 24)),
            Prefetch::Stack(n) => (gregs[R_RSP], copy(to, gregs[R_RSP], n)),
            Prefetch::Fixed(p, n) => {
                let p = gregs[ARG[p]];
                (p, copy(to, p, n))
            }
        };
        (*cell).post.pre_addr = addr;
        (*cell).post.pre_len = len;
    }
}

unsafe fn copy(to: u64, from: u64, n: u64) -> u64 {
    if from == 0 || n == 0 || n > STAGE_IN_MAX as u64 {
        return 0;
    }
    // SAFETY: `to` has room for STAGE_IN_MAX bytes; `stub_copy` handles faults on `from`.
    n - unsafe { stub_copy(to, from, n) }
}
