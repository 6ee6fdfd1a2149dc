//! The host calls of the command and of its processes' set-up that no crate offers safely. All `unsafe` of the binary
//! is here.

use nix::errno::Errno;
use nix::unistd::Pid;
use std::convert::Infallible;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Bit N: standard stream N was open when the program was started.
static OPEN_AT_START: AtomicU8 = AtomicU8::new(0);

extern "C" fn before_main() {
    look_at_streams();
    bound_allocator();
}

fn look_at_streams() {
    for fd in 0..3 {
        // SAFETY: F_GETFD takes no pointer.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0 {
            OPEN_AT_START.fetch_or(1 << fd, Ordering::Relaxed);
        }
    }
}

/// Gives the C library's allocator one arena (mallopt(3), `M_ARENA_MAX`).
///
/// With more arenas glibc makes host calls by itself that no confined process may make: with the ninth it counts the
/// processors, for which it opens a file of `/sys`; the first time that it gives memory of another arena than the main
/// one back it opens `/proc/sys/vm/overcommit_memory`.
fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers; there is one thread. It fails for no value of this parameter.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Run before `main`, while there is one thread. std opens /dev/null in place of streams that are closed, and nothing
/// could be told afterwards; the allocator's arenas are bounded before there are any.
#[used]
#[link_section = ".init_array"]
static BEFORE_MAIN: extern "C" fn() = before_main;

/// Whether standard stream `n` was open when the program was started.
pub fn was_open(n: usize) -> bool {
    OPEN_AT_START.load(Ordering::Relaxed) >> n & 1 != 0
}

/// Which process we are in after [`clone_process`].
pub enum Cloned {
    Parent { pid: Pid, pidfd: OwnedFd },
    Child,
}

/// `clone` with new namespaces, as `fork` does it: the child goes on here with a copy of the memory.
///
/// The process must have one thread only, which is what makes it harmless; fails with `EBUSY` if it has more.
pub fn clone_process(namespaces: libc::c_int) -> nix::Result<Cloned> {
    if !single_threaded() {
        return Err(Errno::EBUSY);
    }
    let mut pidfd: RawFd = -1;
    let flags = namespaces | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: no stack is given, so the child runs on a copy of this one as after fork; there is one thread, so no lock
    // can be held by another; the kernel writes one int to `pidfd`, which outlives the call.
    let r = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, &raw mut pidfd, 0, 0) };
    match Errno::result(r)? {
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: Pid::from_raw(pid as libc::pid_t),
            // SAFETY: the kernel has just made this descriptor for us.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Whether this process has one thread. Without /proc there is no telling; the command starts no threads, so: yes.
fn single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").map_or(true, |d| d.count() == 1)
}

/// A descriptor for a process; readable when the process has ended. `ESRCH`: there is none of this number.
pub fn pidfd_open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: no pointer is involved; the result is checked.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel has just made this descriptor for us; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Takes over a descriptor that this process inherited under a number agreed upon. Fails with `EBADF` if it is not
/// open. To be called once for each number.
pub fn inherited_fd(number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer.
    Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: it is open, and nobody else in this freshly executed process knows of it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Makes `wanted[i].0` available as descriptor `wanted[i].1` after exec, and closes everything else from 3 on at exec.
/// For the child of [`clone_process`], just before exec; none of the descriptors may be dropped afterwards.
pub fn place_fds(wanted: &[(BorrowedFd<'_>, RawFd)]) -> nix::Result<()> {
    let top = wanted.iter().map(|w| w.1 + 1).max().unwrap_or(0).max(3);
    let mut moved = Vec::with_capacity(wanted.len());
    for (fd, _) in wanted {
        // Out of the way first, so that no target number is still in use as a source.
        // SAFETY: no pointer is involved; a new descriptor is made.
        moved.push(Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, top.max(64)) })?);
    }
    // SAFETY: no pointers; only marks descriptors.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    for (from, (_, to)) in moved.iter().zip(wanted) {
        // SAFETY: no pointers. What was at `to` is this child's copy of a descriptor that it will not use again.
        Errno::result(unsafe { libc::dup2(*from, *to) })?;
    }
    Ok(())
}

/// Standard input. It stays open as long as the process runs: what was closed at the start is /dev/null.
pub fn stdin() -> BorrowedFd<'static> {
    // SAFETY: see above.
    unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) }
}

/// Standard output; see [`stdin`].
pub fn stdout() -> BorrowedFd<'static> {
    // SAFETY: see there.
    unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) }
}

/// Puts /dev/null in place of the standard streams, so that what they were is not held open.
pub fn let_go_of_streams() -> nix::Result<()> {
    use nix::fcntl::{open, OFlag};
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    for stream in 0..3 {
        // SAFETY: no pointers. The streams stay open, as something else.
        Errno::result(unsafe { libc::dup2(null.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// Closes everything from 3 on but `kept`: for a clone that goes on without what its parent has open.
///
/// The clone must not use, nor drop, what else it knows to be open; so it never returns to where it was made.
pub fn close_all_but(kept: &[RawFd]) -> nix::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().copied().filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([RawFd::MAX]) {
        if first < fd {
            // SAFETY: no pointers; see above.
            Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) })?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// A descriptor of a process, to signal it and to wait for its end.
pub fn pidfd(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: takes numbers; the kernel makes a descriptor for us.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Signals the process of a pidfd.
pub fn pidfd_send(pidfd: &OwnedFd, signal: i32) -> nix::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no pointer is given.
    let r = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    Errno::result(r).map(drop)
}

/// Makes a terminal the controlling one of this process, a session leader without.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Size of a terminal's window.
pub fn window_size(terminal: BorrowedFd<'_>) -> nix::Result<libc::winsize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `winsize`.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok(size)
}

pub fn set_window_size(terminal: BorrowedFd<'_>, size: &libc::winsize) -> nix::Result<()> {
    // SAFETY: the kernel reads one `winsize`.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, std::ptr::from_ref(size)) }).map(drop)
}

/// The exit status that a shell gives for a wait(2) status.
pub fn shell_code(status: i32) -> u8 {
    let code = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    code as u8
}

/// Ends this process as a wait(2) status says: with an exit status, or by the signal, of which it leaves no core.
pub fn end_like(status: i32) -> ! {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: nothing relies on a handler or on the mask any more; the pointers are to live values.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            libc::signal(signal, libc::SIG_DFL);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, signal);
            libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            libc::kill(libc::getpid(), signal);
        }
        // A signal that ends no process of the host's.
        exit_now(128 + signal);
    }
    exit_now(libc::WEXITSTATUS(status))
}

/// Replaces the program by this very binary with `subcommand`, an empty environment and the descriptors as they are.
pub fn exec_self(subcommand: &std::ffi::CStr) -> Errno {
    let none: [&std::ffi::CStr; 0] = [];
    let r: nix::Result<Infallible> = nix::unistd::execve(c"/proc/self/exe", &[c"runsc-rs", subcommand], &none);
    match r {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

/// Ends the process without running destructors or exit handlers: for a child that could not exec.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: takes no pointer and does not return.
    unsafe { libc::_exit(status) }
}

/// The nice value of this process.
pub fn nice() -> i32 {
    // SAFETY: takes no pointer. The bare call tells 20 less the value, so that it cannot be taken for an error.
    let told = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    if (1..=40).contains(&told) {
        20 - told as i32
    } else {
        0
    }
}

/// Soft and hard limit of each resource of this process, in the order of their numbers.
pub fn limits() -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    // As many as the kernel knows.
    for resource in 0..64 {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes one `rlimit`.
        if unsafe { libc::getrlimit(resource, &mut limit) } != 0 {
            break;
        }
        all.push((limit.rlim_cur, limit.rlim_max));
    }
    all
}

/// `prctl` with plain numbers.
pub fn prctl(option: libc::c_int, a: u64, b: u64, c: u64) -> nix::Result<i32> {
    // SAFETY: used only for options whose arguments are numbers (see the callers in `confine`).
    Errno::result(unsafe { libc::prctl(option, a, b, c, 0) })
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// _LINUX_CAPABILITY_VERSION_3: 64 capabilities in two halves.
const CAP_VERSION: u32 = 0x2008_0522;

/// The calling thread's permitted capabilities.
pub fn permitted_caps() -> nix::Result<u64> {
    Ok(caps()?.0)
}

/// The calling thread's effective capabilities.
pub fn effective_caps() -> nix::Result<u64> {
    Ok(caps()?.1)
}

/// Permitted and effective ones.
fn caps() -> nix::Result<(u64, u64)> {
    let mut header = CapHeader { version: CAP_VERSION, pid: 0 };
    let mut data = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: both point to live values of the layout that version 3 has.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let whole = |word: fn(&CapData) -> u32| u64::from(word(&data[0])) | u64::from(word(&data[1])) << 32;
    Ok((whole(|d| d.permitted), whole(|d| d.effective)))
}

/// Sets the calling thread's permitted and effective capabilities to `set`, the inheritable ones to `inheritable`.
pub fn set_caps(set: u64, inheritable: u64) -> nix::Result<()> {
    let mut header = CapHeader { version: CAP_VERSION, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (set >> shift) as u32,
        permitted: (set >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: both point to live values of the layout that version 3 has.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// Has SIGSYS, which the seccomp filter raises for a call that is not on the list, end the process with a line that
/// names the call.
pub fn report_sigsys() -> nix::Result<()> {
    // SAFETY: the handler makes a few system calls and touches nothing but its own stack and an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigsys as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        Errno::result(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut())).map(drop)
    }
}

/// Ignores SIGXFSZ: who writes beyond `RLIMIT_FSIZE` gets `EFBIG`, instead of dying with the whole sandbox.
pub fn ignore_sigxfsz() -> nix::Result<()> {
    // SAFETY: no handler is set up, and nothing relies on the signal.
    match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(Errno::last()),
        _ => Ok(()),
    }
}

/// Has a panic end the process with one line. What the standard library would do, abort(3), makes host calls that are
/// not on the list.
pub fn report_panics(who: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        crate::logging::say(&format!(
            "runsc-rs: {who} met what should not be possible; this is a bug of runsc-rs: {panic}\n"
        ));
        crate::logging::finish();
        exit_now(PANIC_STATUS)
    }));
}

/// Status of a process that panicked.
pub const PANIC_STATUS: i32 = 123;

/// Status of a process that [`on_sigsys`] ended.
pub const SIGSYS_STATUS: i32 = 124;

/// Status of a process that was about to end by abort(3): what the standard library does when there is no memory. It
/// has said so.
pub const ABORT_STATUS: i32 = 122;

/// A plain write to standard error waits for nobody, and is what it must be ([`crate::outlet`]).
pub static STDERR_NEVER_WAITS: AtomicBool = AtomicBool::new(false);

extern "C" fn on_sigsys(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const TEXT: &[u8] =
        b"runsc-rs: host system call        is not on this process's list (seccomp); this is a bug of runsc-rs\n";
    let mut line = [0u8; TEXT.len()];
    line.copy_from_slice(TEXT);
    // SAFETY: the kernel passes a valid ucontext; for SIGSYS by seccomp, rax holds the number of the call.
    let nr = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RAX as usize] };
    if nr == libc::SYS_rt_sigaction {
        // abort(3) begins with it, and nothing else does here.
        // SAFETY: takes no pointer and does not return.
        unsafe {
            libc::syscall(libc::SYS_exit_group, ABORT_STATUS);
        }
    }
    let mut n = nr.unsigned_abs();
    for slot in line[27..33].iter_mut().rev() {
        if n == 0 && *slot == b' ' && nr != 0 {
            break;
        }
        *slot = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    // SAFETY: nothing is assumed of the descriptor.
    let stderr = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    // All that these calls are is on the list.
    let _ = match STDERR_NEVER_WAITS.load(Ordering::Relaxed) {
        true => nix::unistd::write(stderr, &line),
        false => platform::host::write_nowait(stderr, &line),
    };
    // SAFETY: takes no pointer and does not return.
    unsafe {
        libc::syscall(libc::SYS_exit_group, SIGSYS_STATUS);
    }
}
