//! The structures that calls read and fill (x86-64 layouts).

use super::flags;
use super::show::*;
use std::fmt::Write;

/// Writes a structure of `size` bytes, or the address if it cannot be read.
fn with(view: &View<'_>, addr: u64, size: usize, out: &mut String, write: impl FnOnce(&Raw, &mut String)) {
    match view.raw(addr, size) {
        Some(raw) => write(&raw, out),
        None => pointer(addr, out),
    }
}

fn mode(m: u64, out: &mut String) {
    one(flags::FILE_TYPE, m & 0o170_000, out);
    put!(out, "|0{:o}", m & 0o7777);
}

/// The size, or the device number of a device.
fn size_or_dev(mode: u64, size: i64, major: u64, minor: u64, out: &mut String) {
    if matches!((mode & 0o170_000) as u32, libc::S_IFCHR | libc::S_IFBLK) {
        put!(out, "st_rdev=makedev({major:#x}, {minor:#x})");
    } else {
        put!(out, "st_size={size}");
    }
}

pub fn stat(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 144, out, |s, out| {
        out.push_str("{st_mode=");
        mode(s.u32(24), out);
        out.push_str(", ");
        let dev = s.u64(40);
        size_or_dev(s.u32(24), s.i64(48), libc::major(dev).into(), libc::minor(dev).into(), out);
        out.push_str(", ...}");
    });
}

pub fn statx(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 256, out, |s, out| {
        out.push_str("{stx_mask=");
        bits(flags::STATX, s.u32(0), out);
        out.push_str(", stx_mode=");
        mode(s.u16(28), out);
        put!(out, ", stx_size={}, ...}}", s.u64(40));
    });
}

pub fn statfs(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 120, out, |s, out| {
        put!(
            out,
            "{{f_type={:#x}, f_bsize={}, f_blocks={}, f_bfree={}, ...}}",
            s.u64(0),
            s.i64(8),
            s.u64(16),
            s.u64(24)
        );
    });
}

fn timespec_at(s: &Raw, at: usize, out: &mut String) {
    match s.i64(at + 8) {
        libc::UTIME_NOW => out.push_str("UTIME_NOW"),
        libc::UTIME_OMIT => out.push_str("UTIME_OMIT"),
        nsec => put!(out, "{{tv_sec={}, tv_nsec={nsec}}}", s.i64(at)),
    }
}

fn timeval_at(s: &Raw, at: usize, out: &mut String) {
    put!(out, "{{tv_sec={}, tv_usec={}}}", s.i64(at), s.i64(at + 8));
}

pub fn timespec(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 16, out, |s, out| timespec_at(s, 0, out));
}

pub fn timespec_pair(view: &View<'_>, addr: u64, out: &mut String) {
    array(view, addr, 2, 16, out, |s, out| timespec_at(s, 0, out));
}

pub fn timeval(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 16, out, |s, out| timeval_at(s, 0, out));
}

pub fn timeval_pair(view: &View<'_>, addr: u64, out: &mut String) {
    array(view, addr, 2, 16, out, |s, out| timeval_at(s, 0, out));
}

pub fn itimerspec(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 32, out, |s, out| {
        out.push_str("{it_interval=");
        timespec_at(s, 0, out);
        out.push_str(", it_value=");
        timespec_at(s, 16, out);
        out.push('}');
    });
}

pub fn itimerval(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 32, out, |s, out| {
        out.push_str("{it_interval=");
        timeval_at(s, 0, out);
        out.push_str(", it_value=");
        timeval_at(s, 16, out);
        out.push('}');
    });
}

/// A signal set as strace(1) prints it: its members, or with `~` its non-members.
fn set(v: u64, out: &mut String) {
    let listed = v.count_ones() <= 32;
    out.push_str(if listed { "[" } else { "~[" });
    let shown = if listed { v } else { !v };
    let mut first = true;
    for n in (1..=64).filter(|n| shown >> (n - 1) & 1 != 0) {
        if !first {
            out.push(' ');
        }
        let name = flags::signal(n);
        out.push_str(name.strip_prefix("SIG").unwrap_or(&name));
        first = false;
    }
    out.push(']');
}

pub fn sigset(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 8, out, |s, out| set(s.u64(0), out));
}

/// The pair of set address and size that pselect6 takes.
pub fn sigset_and_size(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 16, out, |s, out| {
        out.push_str("{sigmask=");
        sigset(view, s.u64(0), out);
        put!(out, ", sigsetsize={}}}", s.u64(8));
    });
}

pub fn sigaction(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 32, out, |s, out| {
        out.push_str("{sa_handler=");
        match s.u64(0) {
            0 => out.push_str("SIG_DFL"),
            1 => out.push_str("SIG_IGN"),
            h => put!(out, "{h:#x}"),
        }
        out.push_str(", sa_mask=");
        set(s.u64(24), out);
        out.push_str(", sa_flags=");
        bits(flags::SA, s.u64(8), out);
        out.push('}');
    });
}

pub fn altstack(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 24, out, |s, out| {
        out.push_str("{ss_sp=");
        pointer(s.u64(0), out);
        out.push_str(", ss_flags=");
        bits(flags::SS, s.u32(8), out);
        put!(out, ", ss_size={}}}", s.u64(16));
    });
}

pub fn siginfo(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 128, out, |s, out| {
        let (signo, code) = (s.i32(0) as i32, s.i32(8) as i32);
        put!(out, "{{si_signo={}, si_code={}", flags::signal(signo as u64), flags::si_code(signo, code));
        if signo == libc::SIGCHLD || code <= 0 {
            put!(out, ", si_pid={}, si_uid={}", s.i32(16), s.u32(20));
        }
        if signo == libc::SIGCHLD {
            out.push_str(", si_status=");
            if code == 1 {
                put!(out, "{}", s.i32(24));
            } else {
                out.push_str(&flags::signal(s.i32(24) as u64));
            }
        }
        out.push_str(", ...}");
    });
}

pub fn wait_status(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 4, out, |s, out| {
        let st = s.i32(0) as i32;
        out.push('[');
        if libc::WIFEXITED(st) {
            put!(out, "{{WIFEXITED(s) && WEXITSTATUS(s) == {}}}", libc::WEXITSTATUS(st));
        } else if libc::WIFSIGNALED(st) {
            let core = if libc::WCOREDUMP(st) { " && WCOREDUMP(s)" } else { "" };
            put!(out, "{{WIFSIGNALED(s) && WTERMSIG(s) == {}{core}}}", flags::signal(libc::WTERMSIG(st) as u64));
        } else if libc::WIFSTOPPED(st) {
            put!(out, "{{WIFSTOPPED(s) && WSTOPSIG(s) == {}}}", flags::signal(libc::WSTOPSIG(st) as u64));
        } else if libc::WIFCONTINUED(st) {
            out.push_str("{WIFCONTINUED(s)}");
        } else {
            put!(out, "{st}");
        }
        out.push(']');
    });
}

pub fn rusage(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 144, out, |s, out| {
        out.push_str("{ru_utime=");
        timeval_at(s, 0, out);
        out.push_str(", ru_stime=");
        timeval_at(s, 16, out);
        out.push_str(", ...}");
    });
}

pub fn rlimit(view: &View<'_>, addr: u64, out: &mut String) {
    let value = |v: u64, out: &mut String| match v {
        u64::MAX => out.push_str("RLIM64_INFINITY"),
        v if v >= 1024 && v % 1024 == 0 => put!(out, "{}*1024", v / 1024),
        v => put!(out, "{v}"),
    };
    with(view, addr, 16, out, |s, out| {
        out.push_str("{rlim_cur=");
        value(s.u64(0), out);
        out.push_str(", rlim_max=");
        value(s.u64(8), out);
        out.push('}');
    });
}

pub fn open_how(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 24, out, |s, out| {
        out.push_str("{flags=");
        open_flags(s.u64(0), out);
        if s.u64(8) != 0 {
            put!(out, ", mode=0{:o}", s.u64(8));
        }
        out.push_str(", resolve=");
        bits(flags::RESOLVE, s.u64(16), out);
        out.push('}');
    });
}

/// The flags of `clone`; the lowest byte is the exit signal.
pub fn clone_flags(v: u64, out: &mut String) {
    let signal = v & 0xff;
    if v & !0xff != 0 || signal == 0 {
        bits(flags::CLONE, v & !0xff, out);
    }
    if signal != 0 {
        if v & !0xff != 0 {
            out.push('|');
        }
        out.push_str(&flags::signal(signal));
    }
}

pub fn clone_args(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 64, out, |s, out| {
        out.push_str("{flags=");
        bits(flags::CLONE, s.u64(0), out);
        for (name, at) in [("pidfd", 8), ("child_tid", 16), ("parent_tid", 24)] {
            if s.u64(at) != 0 {
                put!(out, ", {name}={:#x}", s.u64(at));
            }
        }
        out.push_str(", exit_signal=");
        out.push_str(&flags::signal(s.u64(32)));
        out.push_str(", stack=");
        pointer(s.u64(40), out);
        put!(out, ", stack_size={:#x}", s.u64(48));
        if s.u64(56) != 0 {
            put!(out, ", tls={:#x}", s.u64(56));
        }
        out.push('}');
    });
}

pub fn int(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 4, out, |s, out| put!(out, "[{}]", s.i32(0)));
}

pub fn long(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 8, out, |s, out| put!(out, "[{}]", s.i64(0)));
}

pub fn fd_pair(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 8, out, |s, out| put!(out, "[{}, {}]", s.i32(0), s.i32(4)));
}

/// A vector of `n` elements; its first `left` bytes are valid.
fn iov(view: &View<'_>, addr: u64, n: u64, mut left: u64, out: &mut String) {
    array(view, addr, n, 16, out, |s, out| {
        out.push_str("{iov_base=");
        let len = s.u64(8).min(left);
        left -= len;
        data(view, s.u64(0), len, out);
        put!(out, ", iov_len={}}}", s.u64(8));
    });
}

pub fn iov_in(view: &View<'_>, addr: u64, out: &mut String) {
    iov(view, addr, view.arg(2), u64::MAX, out);
}

pub fn iov_out(view: &View<'_>, addr: u64, out: &mut String) {
    iov(view, addr, view.arg(2), view.result, out);
}

/// As many bytes as the call returned.
pub fn data_out(view: &View<'_>, addr: u64, out: &mut String) {
    data(view, addr, view.result, out);
}

/// The text that a call has filled in, up to its NUL.
pub fn text_out(view: &View<'_>, addr: u64, out: &mut String) {
    text(view, addr, out);
}

pub fn utsname(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 390, out, |s, out| {
        out.push_str("{sysname=");
        quoted(s.text(0, 65), false, out);
        out.push_str(", nodename=");
        quoted(s.text(65, 65), false, out);
        out.push_str(", ...}");
    });
}

pub fn sysinfo(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 112, out, |s, out| {
        put!(out, "{{uptime={}, totalram={}, freeram={}, procs={}, ...}}", s.i64(0), s.u64(32), s.u64(40), s.u16(80));
    });
}

/// One id, as filled by getresuid.
pub fn id(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 4, out, |s, out| put!(out, "[{}]", s.u32(0)));
}

pub fn groups(view: &View<'_>, addr: u64, out: &mut String) {
    array(view, addr, view.arg(0), 4, out, |s, out| put!(out, "{}", s.u32(0)));
}

pub fn groups_out(view: &View<'_>, addr: u64, out: &mut String) {
    array(view, addr, view.result, 4, out, |s, out| put!(out, "{}", s.u32(0)));
}

pub fn affinity(view: &View<'_>, addr: u64, out: &mut String) {
    let Some(s) = view.raw(addr, view.arg(1).min(128) as usize) else { return pointer(addr, out) };
    out.push('[');
    let set = s.0.iter().enumerate().flat_map(|(i, b)| (0..8).filter(move |n| b >> n & 1 != 0).map(move |n| i * 8 + n));
    for (i, cpu) in set.enumerate() {
        put!(out, "{}{cpu}", if i > 0 { " " } else { "" });
    }
    out.push(']');
}

pub fn flock(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 32, out, |s, out| {
        out.push_str("{l_type=");
        one(flags::LOCK, s.u16(0), out);
        out.push_str(", l_whence=");
        one(flags::SEEK, s.u16(2), out);
        put!(out, ", l_start={}, l_len={}}}", s.i64(8), s.i64(16));
    });
}

/// The third argument of fcntl.
pub fn fcntl(view: &View<'_>, v: u64, out: &mut String) {
    match view.arg(1) as i32 {
        libc::F_SETFD if v == libc::FD_CLOEXEC as u64 => out.push_str("FD_CLOEXEC"),
        libc::F_SETFL => open_flags(v, out),
        libc::F_SETLK | libc::F_SETLKW | libc::F_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW | libc::F_OFD_GETLK => {
            flock(view, v, out)
        }
        libc::F_ADD_SEALS => bits(flags::SEALS, v, out),
        _ => put!(out, "{}", v as i64),
    }
}

/// Whether fcntl's command takes a third argument.
pub fn fcntl_has_arg(view: &View<'_>) -> bool {
    !matches!(
        view.arg(1) as i32,
        libc::F_GETFD | libc::F_GETFL | libc::F_GETOWN | libc::F_GETPIPE_SZ | libc::F_GET_SEALS
    )
}

pub fn ioctl(view: &View<'_>, v: u64, out: &mut String) {
    match view.arg(1) & 0xffff_ffff {
        libc::TCGETS | libc::TCSETS | libc::TCSETSW | libc::TCSETSF => with(view, v, 36, out, |s, out| {
            put!(
                out,
                "{{c_iflag={:#x}, c_oflag={:#x}, c_cflag={:#x}, c_lflag={:#x}, ...}}",
                s.u32(0),
                s.u32(4),
                s.u32(8),
                s.u32(12)
            );
        }),
        libc::TIOCGWINSZ | libc::TIOCSWINSZ => with(view, v, 8, out, |s, out| {
            put!(out, "{{ws_row={}, ws_col={}, ws_xpixel={}, ws_ypixel={}}}", s.u16(0), s.u16(2), s.u16(4), s.u16(6));
        }),
        libc::FIONREAD
        | libc::TIOCOUTQ
        | libc::FIONBIO
        | libc::FIOASYNC
        | libc::TIOCGPGRP
        | libc::TIOCSPGRP
        | libc::TIOCGSID
        | libc::TIOCGPTN
        | libc::TIOCSPTLCK => int(view, v, out),
        libc::TCSBRK | libc::TCXONC | libc::TCFLSH | libc::TIOCSCTTY => put!(out, "{}", v as i64),
        _ => pointer(v, out),
    }
}

/// `["ls", "-l"]`
pub fn strings(view: &View<'_>, addr: u64, out: &mut String) {
    if view.raw(addr, 8).is_none() {
        return pointer(addr, out);
    }
    out.push('[');
    for i in 0..=ITEMS {
        let Some(p) = view.raw(addr.wrapping_add(i * 8), 8).map(|r| r.u64(0)).filter(|p| *p != 0) else { break };
        if i > 0 {
            out.push_str(", ");
        }
        if i == ITEMS {
            out.push_str("...");
            break;
        }
        text(view, p, out);
    }
    out.push(']');
}

/// The environment: the number of variables.
pub fn variables(view: &View<'_>, addr: u64, out: &mut String) {
    pointer(addr, out);
    if addr != 0 {
        let n = (0..4096).take_while(|i| view.raw(addr.wrapping_add(i * 8), 8).is_some_and(|r| r.u64(0) != 0)).count();
        put!(out, " /* {n} vars */");
    }
}

pub fn seccomp_args(view: &View<'_>, addr: u64, out: &mut String) {
    if view.arg(0) != libc::SECCOMP_SET_MODE_FILTER as u64 {
        return pointer(addr, out);
    }
    with(view, addr, 16, out, |s, out| put!(out, "{{len={}, filter={:#x}}}", s.u16(0), s.u64(8)));
}

pub fn capabilities(view: &View<'_>, addr: u64, out: &mut String) {
    with(view, addr, 24, out, |s, out| {
        let both = |at: usize| s.u32(at) | s.u32(at + 12) << 32;
        put!(out, "{{effective={:#x}, permitted={:#x}, inheritable={:#x}}}", both(0), both(4), both(8));
    });
}

pub fn prctl_text(view: &View<'_>) -> bool {
    view.arg(0) == libc::PR_SET_NAME as u64
}

/// The second argument of prctl.
pub fn prctl(view: &View<'_>, v: u64, out: &mut String) {
    match view.arg(0) as i32 {
        libc::PR_SET_NAME => text(view, v, out),
        libc::PR_SET_PDEATHSIG => out.push_str(&flags::signal(v)),
        libc::PR_GET_NAME | libc::PR_GET_PDEATHSIG | libc::PR_GET_CHILD_SUBREAPER => pointer(v, out),
        _ if v > 0xffff => put!(out, "{v:#x}"),
        _ => put!(out, "{v}"),
    }
}

/// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME are part of the operation.
pub fn futex_op(_: &View<'_>, v: u64, out: &mut String) {
    let v = v & 0xffff_ffff;
    one(flags::FUTEX, v & 0x7f, out);
    if v & 0x80 != 0 {
        out.push_str("_PRIVATE");
    }
    if v & 0x100 != 0 {
        out.push_str("|FUTEX_CLOCK_REALTIME");
    }
}

/// The fourth argument of futex: a timeout or a number.
pub fn futex_timeout(view: &View<'_>, v: u64, out: &mut String) {
    match (view.arg(1) & 0x7f) as i32 {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET | libc::FUTEX_LOCK_PI => timespec(view, v, out),
        _ => put!(out, "{v}"),
    }
}

pub fn futex_has_timeout(view: &View<'_>) -> bool {
    !matches!((view.arg(1) & 0x7f) as i32, libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET)
}

pub fn futex_has_second(view: &View<'_>) -> bool {
    matches!(
        (view.arg(1) & 0x7f) as i32,
        libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE | libc::FUTEX_WAKE_OP | libc::FUTEX_CMP_REQUEUE_PI
    )
}

pub fn futex_has_third(view: &View<'_>) -> bool {
    futex_has_second(view) || matches!((view.arg(1) & 0x7f) as i32, libc::FUTEX_WAIT_BITSET | libc::FUTEX_WAKE_BITSET)
}
