//! Starts the zygote: the stub's program, executed from memory, as a child of the Sentry.

use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};

use super::abi::{self, kind};
use super::filter;
use super::watched::Area;
use crate::executor::Executor;
use crate::Errno;

static STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub.elf"));

pub(super) struct Launched {
    pub(super) pid: i32,
    pub(super) area: Arc<Area>,
    pub(super) control: OwnedFd,
    pub(super) listener: OwnedFd,
    /// The listener's number in the zygote, which must close it.
    pub(super) listener_number: i32,
    pub(super) vdso: Option<(u64, u64)>,
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

pub(super) fn launch(executor: &Executor, yields: bool) -> io::Result<Launched> {
    // SAFETY: reads the auxiliary vector.
    let hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    if hwcap2 & 2 == 0 {
        return Err(unsupported("the processor or the host kernel (before 5.9) has no FSGSBASE"));
    }
    let (area, area_fd) = Area::new()?;
    let program = filter::stub_filter(stub_text()?, yields);
    executor.global.set_strict(&filter::strict_filter(stub_text()?));
    let mut bytes = (program.len() as u64).to_ne_bytes().to_vec();
    for i in &program {
        bytes.extend(i.code.to_ne_bytes());
        bytes.extend([i.jt, i.jf]);
        bytes.extend(i.k.to_ne_bytes());
    }
    area.stage_out(0, 0, &bytes);

    let (control, stub_control) = control_pair()?;
    let image = image()?;
    // In the order of their fixed numbers.
    let mut fds = vec![high(executor.doorbell())?];
    for which in 0..abi::DOORBELLS {
        fds.push(high(executor.doorbell_of(which))?);
    }
    fds.extend([high(&stub_control)?, high(&area_fd)?, high(executor.global.fd())?]);
    let pid = start(&image, &fds)?;
    drop((fds, stub_control, area_fd));

    let deadline = Instant::now() + STARTS_WITHIN;
    while area.state(0).load(std::sync::atomic::Ordering::Acquire) == abi::state::RUNNING {
        lives(pid)?;
        if Instant::now() > deadline {
            // SAFETY: our own child, not reaped yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the zygote does not start"));
        }
        // The zygote notifies the doorbell once it has started.
        crate::host::wait_readable(executor.doorbell().as_fd(), 1);
    }
    let post = area.read_post(0);
    if post.kind != kind::BORN {
        return Err(io::Error::other(format!("the zygote started wrongly (kind {})", post.kind)));
    }
    // rdi, rsi, rdx of `stub_hello`.
    let (vdso, vdso_len, listener_number) = (post.regs[8], post.regs[9], post.regs[12] as i32);
    let pidfd = pidfd_open(pid)?;
    // SAFETY: on success the call returns a new descriptor, which nothing else owns.
    let listener = unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), listener_number, 0));
        if fd.is_err() {
            // A dying process loses its descriptors a moment before it is dead.
            crate::host::wait_readable(pidfd.as_fd(), 200);
        }
        lives(pid)?;
        let fd = fd?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    let vdso = (vdso != 0).then_some((vdso, vdso_len));
    Ok(Launched { pid, area, control, listener, listener_number, vdso })
}

/// Returns an error if the zygote, which is not watched yet, has ended; leaves it to be reaped.
pub(super) fn lives(pid: i32) -> io::Result<()> {
    use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(nix::unistd::Pid::from_raw(pid)), flags)? {
        WaitStatus::Exited(_, step) => Err(io::Error::other(format!("the zygote ended while starting: step {step}"))),
        WaitStatus::Signaled(_, signal, _) => {
            Err(io::Error::other(format!("the zygote was killed by {signal} while starting")))
        }
        _ => Ok(()),
    }
}

/// How long the zygote may take to start; on an idle host it takes a millisecond.
pub(super) const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// Makes the two ends of a control socket: the Sentry's and the stub's.
pub(super) fn control_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

pub(super) fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: on success the call returns a new descriptor, which nothing else owns.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// A duplicate with a number above the fixed ones.
fn high(fd: impl std::os::fd::AsFd) -> Result<OwnedFd, Errno> {
    let fd = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(20))?;
    // SAFETY: a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The stub's program as an executable descriptor.
fn image() -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC;
    // Hosts that forbid executable memfds by default know MFD_EXEC; older ones reject the flag.
    let fd = memfd_create(c"runsc-stub", flags | MFdFlags::from_bits_retain(libc::MFD_EXEC))
        .or_else(|_| memfd_create(c"runsc-stub", flags))?;
    let mut file = std::fs::File::from(fd);
    file.write_all(STUB)?;
    Ok(high(&file)?)
}

/// The stub's text segment: the executable one.
fn stub_text() -> io::Result<std::ops::Range<u64>> {
    let word = |at: usize, n: usize| -> io::Result<u64> {
        let b = STUB.get(at..at + n).ok_or_else(|| unsupported("the embedded stub is cut short"))?;
        Ok(b.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)))
    };
    let (phoff, phentsize, phnum) = (word(32, 8)? as usize, word(54, 2)? as usize, word(56, 2)? as usize);
    for i in 0..phnum {
        let at = phoff + i * phentsize;
        if word(at, 4)? == 1 && word(at + 4, 4)? & 1 != 0 {
            let start = word(at + 16, 8)?;
            return Ok(start..start + word(at + 40, 8)?);
        }
    }
    Err(unsupported("the embedded stub has no text"))
}

fn start(image: &OwnedFd, fds: &[OwnedFd]) -> io::Result<i32> {
    const ARGV: [&CStr; 1] = [c"runsc-stub"];
    let argv = [ARGV[0].as_ptr(), std::ptr::null()];
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: the child makes only async-signal-safe calls, on values made before the fork, then executes or exits.
    unsafe {
        let pid = libc::fork();
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid > 0 {
            return Ok(pid);
        }
        // No signal from a terminal or to a process group reaches the stub then; it blocks the rest.
        libc::setsid();
        // Without randomisation the initial stack and the vDSO cannot collide with the stub's image.
        libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
        for (number, fd) in fds.iter().enumerate() {
            if libc::dup2(fd.as_raw_fd(), number as i32) < 0 {
                libc::_exit(101);
            }
        }
        libc::syscall(
            libc::SYS_execveat,
            image.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::_exit(102)
    }
}

/// Size of the state in a signal frame: the standard format of all enabled components, and the end mark.
pub(super) fn fp_state_size() -> usize {
    let leaf = std::arch::x86_64::__cpuid_count(0xd, 0);
    (leaf.ebx as usize + 4).next_multiple_of(64).max(576)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, OpKind, Register};

    /// The guest's vector registers keep their values while the stub runs on the path of a patched call.
    #[test]
    fn the_stub_uses_general_registers_only() {
        let text = stub_text().unwrap();
        // In the file the text begins one page after the headers.
        let start = (text.start - abi::IMAGE_BASE) as usize;
        let code = &STUB[start..start + (text.end - text.start) as usize];
        let mut decoder = Decoder::with_ip(64, code, text.start, DecoderOptions::NONE);
        let mut n = 0;
        while decoder.can_decode() {
            let insn = decoder.decode();
            n += 1;
            assert!(!insn.is_invalid(), "{:#x}", insn.ip());
            for i in 0..insn.op_count() {
                if insn.op_kind(i) == OpKind::Register {
                    let r = insn.op_register(i);
                    assert!((Register::AL..=Register::R15).contains(&r), "{r:?} at {:#x}", insn.ip());
                }
            }
        }
        assert!(n > 500);
        assert_eq!(code[..3], [0x48, 0x89, 0xc1], "patched calls enter here");
    }
}
