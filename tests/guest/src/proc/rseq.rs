//! Restartable sequences (rseq(2), kernel `include/uapi/linux/rseq.h`).

use crate::t::*;
use libc::*;
use std::arch::asm;
use std::cell::UnsafeCell;
use std::ptr::addr_of_mut;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    registration,
    processor_number,
    aborted_by_preemption,
    aborted_by_signal,
    inherited_by_fork,
    gone_with_exec,
    gone_with_exec_in_place,
    gone_with_the_thread
];

const UNREGISTER: i32 = 1;
/// Precedes every abort handler.
const SIGNATURE: u32 = 0x1234_5678;
/// The size of the structure's first version.
const LEN: u32 = 32;

#[repr(C, align(32))]
struct Area {
    cpu_id_start: AtomicU32,
    cpu_id: AtomicU32,
    section: u64,
    flags: u32,
    rest: [u32; 3],
}

#[repr(C, align(32))]
struct Section {
    version: u32,
    flags: u32,
    start: u64,
    length: u64,
    abort: u64,
}

/// Runs `f` in a thread without a registered area (the C library registers one for each of its own), and passes it one.
fn bare(f: fn(&mut Area)) {
    extern "C" fn start(arg: *mut c_void) -> i32 {
        // SAFETY: the pointer is the function that `bare` was given; the parent waits until it returns.
        let f: fn(&mut Area) = unsafe { std::mem::transmute(arg) };
        let mut area =
            Area { cpu_id_start: 0.into(), cpu_id: (-1i32 as u32).into(), section: 0, flags: 0, rest: [0; 3] };
        f(&mut area);
        // SAFETY: the area belongs to this thread, registered or not; it must not outlive the frame.
        unsafe { syscall(SYS_rseq, addr_of_mut!(area), LEN, UNREGISTER, SIGNATURE) };
        0
    }
    // SAFETY: a process that shares memory, on a stack of its own that is not used after it ends. A forked child
    // inherits the C library's area; `CLONE_VM` drops it.
    unsafe {
        let stack = anon(64 * PAGE, RW);
        let pid =
            ok(clone(start, stack.add(64 * PAGE).cast(), CLONE_VM | CLONE_FILES | SIGCHLD, f as *mut c_void)) as i32;
        assert_eq!(reap(pid), 0);
    }
}

unsafe fn rseq(area: *mut Area, len: u32, flags: i32, signature: u32) -> i64 {
    syscall(SYS_rseq, area, len, flags, signature)
}

unsafe fn registration() {
    bare(|a| unsafe {
        fails(rseq(a, LEN, UNREGISTER, SIGNATURE), EINVAL); // none is registered
        fails(rseq(a, LEN, 2, SIGNATURE), EINVAL);
        fails(rseq(a, LEN - 4, 0, SIGNATURE), EINVAL);
        fails(rseq((a as *mut Area).byte_add(8), LEN, 0, SIGNATURE), EINVAL);
        fails(rseq(0xffff_ffff_ffff_ffe0u64 as *mut Area, LEN, 0, SIGNATURE), EFAULT);
        is(rseq(a, LEN, 0, SIGNATURE), 0);
        fails(rseq(a, LEN, 0, SIGNATURE), EBUSY);
        fails(rseq(a, LEN, 0, SIGNATURE + 1), EPERM);
        fails(rseq((a as *mut Area).add(1), LEN, 0, SIGNATURE), EINVAL);
        fails(rseq(a, LEN, UNREGISTER, SIGNATURE + 1), EPERM);
        is(rseq(a, LEN, UNREGISTER, SIGNATURE), 0);
        fails(rseq(a, LEN, UNREGISTER, SIGNATURE), EINVAL);
    });
}

unsafe fn processor_number() {
    bare(|a| unsafe {
        is(rseq(a, LEN, 0, SIGNATURE), 0);
        // The thread may migrate between the two calls, but not every time.
        let mut same = false;
        for _ in 0..1000 {
            // Not sched_getcpu(3), which would use another thread's area here.
            let mut cpu = 0u32;
            ok(syscall(SYS_getcpu, &raw mut cpu, 0, 0));
            same |= a.cpu_id.load(SeqCst) == cpu;
        }
        assert!(same);
        assert_eq!(a.cpu_id.load(SeqCst), a.cpu_id_start.load(SeqCst));
    });
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

/// Loops in a critical section until it is aborted.
unsafe fn endless(a: &mut Area) {
    struct Shared(UnsafeCell<Section>);
    // SAFETY: one thread at a time uses it.
    unsafe impl Sync for Shared {}
    static SECTION: Shared = Shared(UnsafeCell::new(Section { version: 0, flags: 0, start: 0, length: 0, abort: 0 }));
    let s = SECTION.0.get();
    asm!(
        "lea {t}, [rip + 2f]",
        "mov [{s} + 8], {t}",
        "lea {u}, [rip + 3f]",
        "sub {u}, {t}",
        "mov [{s} + 16], {u}",
        "lea {t}, [rip + 4f]",
        "mov [{s} + 24], {t}",
        "mov [{a} + 8], {s}",
        "2:",
        "pause",
        "jmp 2b",
        "3:",
        "ud2",
        ".long {signature}",
        "4:",
        t = out(reg) _,
        u = out(reg) _,
        s = in(reg) s,
        a = in(reg) a,
        signature = const SIGNATURE,
    );
    assert_eq!(a.section, 0, "the host forgets a section that it has aborted");
}

unsafe fn aborted_by_preemption() {
    bare(|a| unsafe {
        is(rseq(a, LEN, 0, SIGNATURE), 0);
        // Another process competes for the processor, so a preemption comes sooner or later.
        let cpus: cpu_set_t = {
            let mut c = std::mem::zeroed();
            CPU_SET(sched_getcpu() as usize, &mut c);
            c
        };
        ok(sched_setaffinity(0, std::mem::size_of_val(&cpus), &cpus));
        let other = ok(fork()) as i32;
        if other == 0 {
            loop {
                std::hint::spin_loop();
            }
        }
        endless(a);
        ok(kill(other, SIGKILL));
        reap(other);
    });
}

unsafe fn aborted_by_signal() {
    bare(|a| unsafe {
        is(rseq(a, LEN, 0, SIGNATURE), 0);
        extern "C" fn count(_: i32) {
            SIGNALS.fetch_add(1, SeqCst);
        }
        on(SIGUSR1, count as *const () as usize, SA_RESTART);
        let me = syscall(SYS_getpid) as i32;
        let sender = ok(fork()) as i32;
        if sender == 0 {
            usleep(5000);
            _exit(kill(me, SIGUSR1));
        }
        endless(a);
        assert_eq!(reap(sender), 0);
        assert_eq!(SIGNALS.load(SeqCst), 1);
    });
}

unsafe fn inherited_by_fork() {
    bare(|a| unsafe {
        is(rseq(a, LEN, 0, SIGNATURE), 0);
        let a: *mut Area = a;
        in_child(|| fails(rseq(a, LEN, 0, SIGNATURE), EBUSY));
    });
}

unsafe fn gone_with_exec() {
    // The C library of the new program could not start if the old area were still registered.
    bare(|a| unsafe {
        is(rseq(a, LEN, 0, SIGNATURE), 0);
        in_child(|| {
            execl(c"/bin/true".as_ptr(), c"true".as_ptr(), std::ptr::null::<c_char>());
            _exit(1);
        });
    });
}

unsafe fn gone_with_exec_in_place() {
    // A program that executes itself several times.
    let sh = c"/bin/sh".as_ptr();
    let script = c"i=$1; [ $i = 0 ] || exec /bin/sh -c \"$0\" \"$0\" $((i-1))".as_ptr();
    let pid = spawn(|| {
        execl(sh, c"sh".as_ptr(), c"-c".as_ptr(), script, script, c"20".as_ptr(), std::ptr::null::<c_char>());
        1
    });
    exits(pid, 0);
}

unsafe fn gone_with_the_thread() {
    // The C library registers an area in each thread's stack mapping, which it frees once the thread has ended.
    let hs: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..100 {
                    // Too large for the C library's cache of stacks.
                    std::thread::Builder::new().stack_size(64 << 20).spawn(|| ()).unwrap().join().unwrap();
                }
            })
        })
        .collect();
    for h in hs {
        h.join().unwrap();
    }
}
