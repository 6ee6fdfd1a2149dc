//! Code whose calls may have been patched: jumped into at any byte, rewritten, mapped over while others run it, copied,
//! and its trampoline pages forged. A process that leaves its own copy alone must not notice.

use super::raw::*;
use super::*;

/// The function's offset in the file.
const AT: usize = ELF_CODE;
const LEN: usize = 2 * PAGE;
/// mov eax, 111 (getpgrp); syscall; cmp rax, -4095; ret
const CODE: [u8; 14] = [0xb8, 111, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0xc3];
const RX: i32 = PROT_READ | PROT_EXEC;

unsafe fn map(fd: i32) -> *mut u8 {
    ok(mmap(std::ptr::null_mut(), LEN, RX, MAP_PRIVATE, fd, 0)).cast()
}

unsafe fn call(p: *const u8) -> i64 {
    let f: extern "C" fn() -> i64 = std::mem::transmute(p.add(AT));
    f()
}

/// The slot of the function's call, if it has been patched.
unsafe fn trampoline(p: *const u8) -> Option<u64> {
    let code = std::slice::from_raw_parts(p.add(AT), 16);
    let jump = code.iter().take(6).position(|b| *b == 0xe9)?;
    let distance = i32::from_le_bytes(code[jump + 1..jump + 5].try_into().unwrap());
    Some((p as u64 + AT as u64 + jump as u64 + 5).wrapping_add(distance as i64 as u64))
}

unsafe fn heat(p: *const u8) -> Option<u64> {
    for _ in 0..400 {
        is(call(p), getpgrp() as i64);
    }
    trampoline(p)
}

pub unsafe fn sites() {
    raw::arm();
    let gate = Gate::new();
    let t = Tmp::new();
    let page = elf(LEN, &CODE);
    let path = t.file("code", &page);
    let fd = ok(open(path.as_ptr(), O_RDONLY));
    // This process continues with the same code, and checks it after each attack.
    let p = map(fd);
    let slot = heat(p);
    let bystander_is_right = |what: &str| {
        for _ in 0..50 {
            if call(p) != getpgrp() as i64 {
                got(&format!("another process's call changed by {what}"));
            }
        }
    };
    // Jumps to every byte around the call.
    survive(64, |i| drop(jump(p as u64 + AT as u64 + i as u64 - 16, [SYS_getpgrp as u64, 0, 0, 0, 0, 0, 0])));
    if let Some(slot) = slot {
        let base = slot & !0xffff;
        survive(1024, |i| drop(jump(base + i as u64, [SYS_getpgrp as u64, 0, 0, 0, 0, 0, 0])));
        // Through its slot, with a register that gives the stub another return address, and with another GS.
        survive(16, |i| {
            let word = *((slot & !0xffff) as *const u64);
            let to = [TEXT, TEXT + 0x40, word, slot][i % 4];
            jump(to, [[0u64, 39, 202, 15][i / 4], AREA, slot, 1, 0, 0, 0]);
        });
        bystander_is_right("jumps");
        // Its trampoline page is written, by the guest's calls and without the Sentry.
        survive(24, |i| {
            let start = slot & !0xfff;
            let r = match i % 3 {
                0 => mprotect(start as *mut c_void, PAGE, RW | PROT_EXEC) as i64,
                1 => gate.call(SYS_mprotect, [start, PAGE as u64, 7, 0, 0, 0]),
                _ => gate.call(SYS_mmap, [start, PAGE as u64, 7, 0x32, u64::MAX, 0]),
            };
            if r < 0 {
                return;
            }
            let bytes = std::slice::from_raw_parts_mut(start as *mut u8, PAGE);
            match i / 3 {
                0 => bytes.fill(0xcc),
                1 => bytes.fill(0),
                2 => bytes.iter_mut().enumerate().for_each(|(n, b)| *b = b.wrapping_add(n as u8)),
                3 => bytes.copy_from_slice(std::slice::from_raw_parts((TEXT & !0xfff) as *const u8, PAGE)),
                // Marks and displacements that point anywhere.
                4 => (0..PAGE / 8).for_each(|n| *((start as *mut u64).add(n)) = 0x7570_cbd1_9a4e_03f5),
                5 => bytes.iter_mut().rev().enumerate().for_each(|(n, b)| *b ^= (n % 7) as u8),
                6 => bytes[24..].iter_mut().step_by(64).for_each(|b| *b = 0xeb),
                _ => bytes[0..].iter_mut().step_by(64).for_each(|b| *b = 0xe8),
            }
            for _ in 0..50 {
                jump(p as u64 + AT as u64, [SYS_getpgrp as u64, 0, 0, 0, 0, 0, 0]);
            }
            // Signals that arrive while it is there.
            on(SIGALRM, nothing as *const () as usize, SA_RESTART);
            let every = timeval { tv_sec: 0, tv_usec: 300 };
            setitimer(ITIMER_REAL, &itimerval { it_interval: every, it_value: every }, std::ptr::null_mut());
            for _ in 0..200 {
                jump(p as u64 + AT as u64, [SYS_getpgrp as u64, 0, 0, 0, 0, 0, 0]);
            }
        });
        bystander_is_right("a forged trampoline");
    }
    // The code itself is changed in place.
    survive(6, |i| {
        let start = p as u64;
        let r = match i % 2 {
            0 => mprotect(p.cast(), LEN, RW | PROT_EXEC) as i64,
            _ => gate.call(SYS_mprotect, [start, LEN as u64, 7, 0, 0, 0]),
        };
        if r == 0 {
            match i / 2 {
                0 => *p.add(AT + 1) ^= 0x55,
                1 => std::ptr::write_bytes(p.add(AT), 0xe9, 16),
                _ => std::ptr::copy(p.add(AT), p.add(AT + 3), 16),
            }
            for _ in 0..100 {
                jump(start + AT as u64, [SYS_getpgrp as u64, 0, 0, 0, 0, 0, 0]);
            }
        }
    });
    bystander_is_right("changed code");
    // One thread maps over, unmaps, protects and repatches it while others run it.
    survive(5, |i| {
        let mine = map(fd);
        heat(mine);
        let at = mine as usize;
        for _ in 0..2 {
            std::thread::spawn(move || loop {
                call(at as *const u8);
            });
        }
        for n in 0..150 {
            let p = mine.cast::<c_void>();
            match i {
                0 => drop(ok(mmap(p, LEN, RX, MAP_PRIVATE | MAP_FIXED, fd, 0))),
                1 => {
                    mprotect(p, LEN, RW | PROT_EXEC);
                    *mine.add(LEN - 1) = n as u8;
                    mprotect(p, LEN, RX);
                }
                2 => {
                    for below in 1..20usize {
                        let q = mine.sub(below * PAGE).cast();
                        mmap(q, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
                        munmap(q, PAGE);
                    }
                }
                3 => {
                    let pid = fork();
                    if pid == 0 {
                        call(mine);
                        _exit(0);
                    }
                    waitpid(pid, std::ptr::null_mut(), 0);
                }
                _ => {
                    mremap(p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, mine.add(0x10_0000));
                    mremap(mine.add(0x10_0000).cast(), LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, mine);
                }
            }
        }
        _exit(0);
    });
    bystander_is_right("a process that maps over its own");
    let now = std::fs::read(t.s("code")).unwrap();
    if now != page {
        got("a file changed through its mapping");
    }
}
