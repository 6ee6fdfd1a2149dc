//! Helpers of the cases: assertions about system calls, scratch directories, child processes, bounded waiting.

use libc::*;
use std::ffi::CString;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest time that a case waits for an event.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Puts the process into a known state: default signal actions, no blocked signals, umask 022.
pub fn prepare() {
    // A failure prints place and message on one line, and ends the whole process, in whatever thread or child it
    // happens.
    std::panic::set_hook(Box::new(|p| {
        let line = format!("{}\n", p.to_string().replace('\n', " "));
        // SAFETY: a plain buffer; `_exit` runs no destructors.
        unsafe {
            write(2, line.as_ptr().cast(), line.len());
            _exit(1)
        }
    }));
    // SAFETY: plain calls with valid arguments, before any thread is started.
    unsafe {
        let mut none: sigset_t = std::mem::zeroed();
        sigemptyset(&mut none);
        sigprocmask(SIG_SETMASK, &none, std::ptr::null_mut());
        for s in [
            SIGSEGV, SIGBUS, SIGPIPE, SIGINT, SIGQUIT, SIGHUP, SIGTERM, SIGCHLD, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1,
            SIGUSR2,
        ] {
            signal(s, SIG_DFL);
        }
        umask(0o022);
    }
}

/// The return value of a system call.
pub trait Ret: Copy + Debug {
    fn value(self) -> i64;
}
macro_rules! ret { ($($t:ty),*) => { $(impl Ret for $t { fn value(self) -> i64 { self as i64 } })* } }
ret!(i32, i64, isize, u32, u64, usize);
impl Ret for *mut c_void {
    fn value(self) -> i64 {
        self as i64
    }
}
impl Ret for *mut c_char {
    fn value(self) -> i64 {
        if self.is_null() {
            -1
        } else {
            0
        }
    }
}

pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub fn name_of(e: i32) -> String {
    std::io::Error::from_raw_os_error(e).to_string()
}

/// The call must succeed; returns its value.
#[track_caller]
pub fn ok<T: Ret>(r: T) -> T {
    if r.value() == -1 {
        panic!("call failed: {}", name_of(errno()));
    }
    r
}

/// The call must have failed with `want`.
#[track_caller]
pub fn fails<T: Ret>(r: T, want: i32) {
    if r.value() != -1 {
        panic!("call returned {r:?} and should have failed with {}", name_of(want));
    }
    if errno() != want {
        panic!("call failed with {} and should have with {}", name_of(errno()), name_of(want));
    }
}

/// The call must return `want`.
#[track_caller]
pub fn is<T: Ret>(r: T, want: i64) {
    if r.value() != want {
        panic!("call returned {r:?} ({}) and should have returned {want}", name_of(errno()));
    }
}

/// For calls that return an error number (`pthread_*`, `posix_*`).
#[track_caller]
pub fn zero(r: i32) {
    assert!(r == 0, "call returned {}", name_of(r));
}

pub fn c(s: &str) -> CString {
    CString::new(s).unwrap()
}

pub unsafe fn zeroed<T>() -> T {
    std::mem::zeroed()
}

/// True for root; otherwise prints that the case was skipped. Cases that need privilege begin with it.
pub fn root() -> bool {
    let is = unsafe { geteuid() } == 0;
    if !is {
        eprintln!("left out: needs root");
    }
    is
}

/// A scratch directory, removed with its contents at the end.
pub struct Tmp(pub PathBuf, i32);

impl Tmp {
    pub fn new() -> Tmp {
        let mut t = c(&format!("{}/guest-tests.XXXXXX", std::env::temp_dir().display())).into_bytes_with_nul();
        let p = unsafe { mkdtemp(t.as_mut_ptr().cast()) };
        assert!(!p.is_null(), "mkdtemp: {}", name_of(errno()));
        t.pop();
        Tmp(PathBuf::from(String::from_utf8(t).unwrap()), unsafe { getpid() })
    }
    pub fn s(&self, name: &str) -> String {
        format!("{}/{name}", self.0.display())
    }
    pub fn p(&self, name: &str) -> CString {
        c(&self.s(name))
    }
    /// Creates a file with this content.
    pub fn file(&self, name: &str, data: &[u8]) -> CString {
        std::fs::write(self.s(name), data).unwrap();
        self.p(name)
    }
    /// Opens a new empty file for reading and writing.
    pub fn open(&self, name: &str) -> i32 {
        unsafe { ok(open(self.p(name).as_ptr(), O_RDWR | O_CREAT | O_CLOEXEC, 0o644)) }
    }
}

impl Drop for Tmp {
    fn drop(&mut self) {
        if unsafe { getpid() } == self.1 {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Runs `f` in a forked child, whose exit status is the result.
pub unsafe fn spawn(f: impl FnOnce() -> i32) -> pid_t {
    let pid = ok(fork());
    if pid == 0 {
        let r = f();
        _exit(r);
    }
    pid
}

/// Waits for a child to end and returns its raw status.
#[track_caller]
pub unsafe fn reap(pid: pid_t) -> i32 {
    let mut st = 0;
    loop {
        let r = waitpid(pid, &mut st, 0);
        if r == -1 && errno() == EINTR {
            continue;
        }
        assert_eq!(ok(r), pid);
        return st;
    }
}

/// Waits for a child and requires that it exits with `code`.
#[track_caller]
pub unsafe fn exits(pid: pid_t, code: i32) {
    let st = reap(pid);
    assert!(WIFEXITED(st) && WEXITSTATUS(st) == code, "child status {st:#x}, wanted exit {code}");
}

/// Waits for a child and requires that signal `sig` killed it.
#[track_caller]
pub unsafe fn dies(pid: pid_t, sig: i32) {
    let st = reap(pid);
    assert!(WIFSIGNALED(st) && WTERMSIG(st) == sig, "child status {st:#x}, wanted signal {sig}");
}

/// Runs `f` in a child; a failed assertion in it fails the case.
#[track_caller]
pub unsafe fn in_child(f: impl FnOnce()) {
    let pid = spawn(|| {
        f();
        0
    });
    exits(pid, 0);
}

/// Repeats `f` until it is true, for at most [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, mut f: impl FnMut() -> bool) {
    let start = Instant::now();
    while !f() {
        assert!(start.elapsed() < PATIENCE, "did not happen: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// State letter of a process (`R`, `S`, `T`, `Z` …) from /proc, `-` when it is gone.
pub fn state_of(pid: pid_t) -> char {
    let Ok(s) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return '-' };
    s.rsplit_once(") ").and_then(|(_, r)| r.chars().next()).unwrap_or('-')
}

/// Waits until a process or thread sleeps in the kernel.
#[track_caller]
pub fn asleep(pid: pid_t) {
    eventually("sleeping", || state_of(pid) == 'S');
}

pub unsafe fn pipe_pair() -> (i32, i32) {
    let mut p = [0; 2];
    ok(pipe2(p.as_mut_ptr(), O_CLOEXEC));
    (p[0], p[1])
}

/// Writes all of `b`.
#[track_caller]
pub unsafe fn put(fd: i32, b: &[u8]) {
    let mut done = 0;
    while done < b.len() {
        let n = ok(write(fd, b[done..].as_ptr().cast(), b.len() - done));
        done += n as usize;
    }
}

/// One read of at most `max` bytes.
#[track_caller]
pub unsafe fn get(fd: i32, max: usize) -> Vec<u8> {
    let mut v = vec![0u8; max];
    let n = ok(read(fd, v.as_mut_ptr().cast(), max));
    v.truncate(n as usize);
    v
}

/// Reads exactly `n` bytes.
#[track_caller]
pub unsafe fn get_all(fd: i32, n: usize) -> Vec<u8> {
    let mut v = Vec::new();
    while v.len() < n {
        let b = get(fd, n - v.len());
        assert!(!b.is_empty(), "end of file after {} of {n} bytes", v.len());
        v.extend(b);
    }
    v
}

pub unsafe fn stat_of(path: &CString) -> stat {
    let mut st = zeroed();
    ok(stat(path.as_ptr(), &mut st));
    st
}

pub unsafe fn fstat_of(fd: i32) -> stat {
    let mut st = zeroed();
    ok(fstat(fd, &mut st));
    st
}

/// Installs a handler with `flags` (no `SA_RESTART` by default).
pub unsafe fn on(sig: i32, f: usize, flags: i32) {
    let mut a: sigaction = zeroed();
    a.sa_sigaction = f;
    a.sa_flags = flags;
    ok(sigaction(sig, &a, std::ptr::null_mut()));
}

pub extern "C" fn nothing(_: i32) {}

pub fn set_of(sigs: &[i32]) -> sigset_t {
    unsafe {
        let mut s = zeroed();
        sigemptyset(&mut s);
        for &g in sigs {
            sigaddset(&mut s, g);
        }
        s
    }
}

pub unsafe fn block(sigs: &[i32]) {
    ok(sigprocmask(SIG_BLOCK, &set_of(sigs), std::ptr::null_mut()));
}

/// Sends `sig` to this process from a child once it sleeps, to interrupt a wait. Reap it with `exits(pid, 0)`.
pub unsafe fn interrupt_me(sig: i32) -> pid_t {
    let me = getpid();
    spawn(|| {
        asleep(me);
        ok(kill(me, sig));
        0
    })
}

/// Gives up root for good, in a child: for permission checks.
pub unsafe fn become_nobody() {
    ok(setgroups(0, std::ptr::null()));
    ok(setresgid(65534, 65534, 65534));
    ok(setresuid(65534, 65534, 65534));
}

pub const BAD: *mut c_void = 0x10 as *mut c_void;

/// Anonymous private memory.
pub unsafe fn anon(len: usize, prot: i32) -> *mut u8 {
    ok(mmap(std::ptr::null_mut(), len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)).cast()
}

/// Anonymous memory shared with children.
pub unsafe fn shared(len: usize) -> *mut u8 {
    ok(mmap(std::ptr::null_mut(), len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)).cast()
}

pub const PAGE: usize = 4096;
pub const RW: i32 = PROT_READ | PROT_WRITE;

/// The offset of the code in an [`elf`].
pub const ELF_CODE: usize = 256;

/// An ELF program of `len` bytes whose only function is `code`, surrounded by nops, with a symbol.
pub fn elf(len: usize, code: &[u8]) -> Vec<u8> {
    const SYMBOLS: usize = 0x800;
    let mut file = vec![0x90u8; len];
    let mut put = |at: usize, words: &[u64]| {
        for (i, w) in words.iter().enumerate() {
            file[at + i * 8..at + i * 8 + 8].copy_from_slice(&w.to_ne_bytes());
        }
    };
    let (entry, all) = (ELF_CODE as u64, len as u64);
    // The ELF header, one program header, two section headers.
    put(0, &[0x0001_0102_464c_457f, 0, 0x0000_0001_003e_0003, entry, 64, 120, 0x0038_0040_0000_0000, 0x2_0040_0001]);
    put(64, &[0x5_0000_0001, 0, 0, 0, all, all, 0x1000]);
    put(120, &[0; 8]);
    put(184, &[2 << 32, 0, 0, SYMBOLS as u64, 48, 0, 0, 0]);
    put(SYMBOLS, &[0, 0, 0, 0x0001_0012_0000_0000, entry, code.len() as u64]);
    file[ELF_CODE..ELF_CODE + code.len()].copy_from_slice(code);
    file
}
