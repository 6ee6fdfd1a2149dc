//! Posts that claim a `syscall` instruction at places where its bytes are in the middle of another instruction: in a
//! set-user-ID program of root, and in a library that root's programs use. Both must still compute the same results.

use super::raw::*;
use super::*;
use std::ffi::CStr;
use std::sync::atomic::AtomicU32;

const LEN: usize = 0x2000;
/// sub $32, %rsp; movb $5, 15(%rsp); mov $5, %eax; movzbl 15(%rsp), %ecx; add $32, %rsp; add %eax, %ecx
const SUM: [u8; 25] = [
    0x48, 0x83, 0xec, 0x20, 0xc6, 0x44, 0x24, 0x0f, 0x05, 0xb8, 5, 0, 0, 0, 0x0f, 0xb6, 0x4c, 0x24, 0x0f, 0x48, 0x83,
    0xc4, 0x20, 0x01, 0xc1,
];
/// The position in the `movb` of the bytes of a `syscall`, followed by bytes that could be displaced.
const SITE: usize = ELF_CODE + 7;
/// mov %ecx, %ebx; mov $107 (geteuid), %eax; syscall; lea (%rax, %rbx), %edi; mov $231 (exit_group), %eax; syscall
const EXIT: [u8; 19] = [0x89, 0xcb, 0xb8, 107, 0, 0, 0, 0x0f, 0x05, 0x8d, 0x3c, 0x18, 0xb8, 231, 0, 0, 0, 0x0f, 0x05];
/// mov %ecx, %eax; ret
const RETURN: [u8; 3] = [0x89, 0xc8, 0xc3];
const TIMES: usize = 1500;

/// Posts calls from `site` in the cell of the second thread, which is this one.
unsafe fn post(site: u64) {
    let cell = AREA + SLOT;
    let word = |at: u64| (cell + at) as *mut u32;
    let state = || (*word(0).cast::<AtomicU32>()).load(SeqCst);
    let rsp = &raw const cell as u64;
    for _ in 0..TIMES {
        let regs = (cell + 136) as *mut u64;
        (0..19).for_each(|i| regs.add(i).write_volatile(0));
        for (i, v) in [(13, 39), (15, rsp), (16, site + 2), (17, 0x202), (18, 39)] {
            regs.add(i).write_volatile(v);
        }
        word(312).cast::<u64>().write_volatile(0);
        let mut kind = 1;
        loop {
            word(128).write_volatile(kind);
            (*word(0).cast::<AtomicU32>()).store(1, SeqCst);
            while state() != 4 {
                sched_yield();
            }
            // Reports the operations of the answer as done, and those that follow.
            word(64).write_volatile(word(16).read_volatile());
            if word(8).read_volatile() != 3 {
                break;
            }
            kind = 4;
        }
    }
}

/// A user claims a call at `SITE` of the file, again and again.
unsafe fn attack(path: &CStr) {
    let pid = spawn(|| {
        become_user();
        let fd = ok(open(path.as_ptr(), O_RDONLY));
        let p = ok(mmap(std::ptr::null_mut(), LEN, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0));
        let site = p as u64 + SITE as u64;
        let forger = std::thread::spawn(move || post(site));
        while !forger.is_finished() {
            usleep(1000);
        }
        0
    });
    let since = Instant::now();
    while waitpid(pid, std::ptr::null_mut(), WNOHANG) != pid {
        if since.elapsed() > 3 * PATIENCE {
            return end(pid);
        }
        usleep(1000);
    }
}

unsafe fn become_user() {
    ok(setgroups(0, std::ptr::null()));
    ok(setresgid(1000, 1000, 1000));
    ok(setresuid(1000, 1000, 1000));
    ok(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
}

unsafe fn program(path: &CStr, user: bool) -> i32 {
    reap(spawn(|| {
        if user {
            become_user();
        }
        execv(path.as_ptr(), [path.as_ptr(), std::ptr::null()].as_ptr());
        255
    }))
}

/// Runs `f` in a process of the attacker's user; returns its status.
unsafe fn as_user(f: impl FnOnce() -> i32) -> i32 {
    reap(spawn(|| {
        become_user();
        f() >> 8
    }))
}

unsafe fn library(path: &CStr) -> i32 {
    reap(spawn(|| {
        let fd = ok(open(path.as_ptr(), O_RDONLY));
        let p = ok(mmap(std::ptr::null_mut(), LEN, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0));
        let f: extern "C" fn() -> i32 = std::mem::transmute(p.cast::<u8>().add(ELF_CODE));
        f()
    }))
}

pub unsafe fn forged() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    ok(chmod(t.p("").as_ptr(), 0o755));
    let file = |name: &str, end: &[u8], mode| {
        let path = t.file(name, &elf(LEN, &[&SUM, end].concat()));
        ok(chown(path.as_ptr(), 0, 0));
        ok(chmod(path.as_ptr(), mode));
        path
    };
    let (victim, lib) = (file("victim", &EXIT, 0o4755), file("library", &RETURN, 0o644));
    // Without section headers, so that no table describes its code.
    let bare = file("bare", &RETURN, 0o644);
    let w = ok(open(bare.as_ptr(), O_WRONLY));
    is(pwrite(w, [0u8; 2].as_ptr().cast(), 2, 60), 2);
    ok(close(w));
    // A program that runs all the time, with the library mapped before the attack.
    let fd = ok(open(lib.as_ptr(), O_RDONLY));
    let p = ok(mmap(std::ptr::null_mut(), LEN, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0));
    let f: extern "C" fn() -> i32 = std::mem::transmute(p.cast::<u8>().add(ELF_CODE));
    let right = |when: &str| {
        for (what, status) in [
            ("the user's program", program(&victim, true)),
            ("root's program", program(&victim, false)),
            ("the library", library(&lib)),
            ("the library without tables", library(&bare)),
            ("the same for its user", as_user(|| library(&bare))),
            ("the library mapped before", f() << 8),
        ] {
            if status != 10 << 8 {
                got(&format!("{what} to compute something else {when}: {status:#x}"));
            }
        }
    };
    right("at first");
    for path in [&victim, &lib, &bare] {
        attack(path);
    }
    right("after forged calls");
}
