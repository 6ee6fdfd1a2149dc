//! Behaviour of a guest's process, as the Sentry sees it.

mod common;
use common::*;
use platform::{Enter, Errno, Op, Trap};
use std::sync::Arc;

guest_code!(
    getpid,
    "2: mov eax, 39",
    "mov edi, 0x1234",
    "movabs rsi, 0x1122334455667788",
    "syscall",
    "mov rbx, rax",
    "jmp 2b",
);

#[test]
fn system_calls_are_trapped_and_answered() {
    sandbox(|platform, _| async move {
        let (mut t, trap) = start(&platform, getpid()).await;
        assert_eq!(trap, Trap::Syscall);
        for i in 0..10_000u64 {
            assert_eq!(t.regs().orig_rax, 39);
            assert_eq!(t.regs().rdi, 0x1234);
            assert_eq!(t.regs().rsi, 0x1122_3344_5566_7788);
            if i > 0 {
                assert_eq!(t.regs().rbx, i - 1);
            }
            assert_eq!(answer(&mut t, i).await, Trap::Syscall);
        }
    });
}

guest_code!(
    fault,
    "mov eax, 1",
    "syscall",
    "movabs rcx, 0xdead0000",
    "mov rax, [rcx]",
    "ud2",
    "xor ecx, ecx",
    "div ecx",
    "int 0x80",
    "int3",
    "hlt",
);

#[test]
fn faults_are_reported() {
    sandbox(|platform, _| async move {
        let (mut t, _) = start(&platform, fault()).await;
        let Trap::Fault(f) = answer(&mut t, 0).await else { panic!() };
        assert_eq!((f.signal, f.code, f.addr, f.trapno, f.error), (libc::SIGSEGV, 1, 0xdead_0000, 14, 4));
        t.regs_mut().rip += 3;
        let Trap::Fault(f) = enter(&mut t, Enter::Full).await else { panic!() };
        assert_eq!((f.signal, f.trapno), (libc::SIGILL, 6));
        t.regs_mut().rip += 2;
        let Trap::Fault(f) = enter(&mut t, Enter::Full).await else { panic!() };
        assert_eq!((f.signal, f.trapno), (libc::SIGFPE, 0));
        t.regs_mut().rip += 2;
        // A call of the i386 table counts as a call that does not exist.
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!(t.regs().orig_rax, u64::MAX);
        let Trap::Fault(f) = enter(&mut t, Enter::Full).await else { panic!() };
        assert_eq!((f.signal, f.trapno), (libc::SIGTRAP, 3));
        let Trap::Fault(f) = enter(&mut t, Enter::Full).await else { panic!() };
        assert_eq!((f.signal, f.trapno), (libc::SIGSEGV, 13));
    });
}

guest_code!(
    copies,
    "lea rdi, [rip + 3f]",
    "mov eax, 2",
    "syscall",
    "mov edi, 1",
    "lea rsi, [rip + 3f]",
    "mov edx, 5",
    "mov eax, 1",
    "syscall",
    "2: mov edi, 0x500000",
    "mov eax, 0",
    "syscall",
    "mov rbx, [0x500000]",
    "jmp 2b",
    "3: .asciz \"/etc/passwd\"",
);

#[test]
fn small_arguments_are_prefetched_and_results_copied_out() {
    sandbox(|platform, _| async move {
        let (mut t, _) = start(&platform, copies()).await;
        assert_eq!(t.prefetched(t.regs().rdi), Some(&b"/etc/passwd\0"[..]));
        assert_eq!(t.prefetched(t.regs().rdi + 1), None);
        answer(&mut t, 0).await;
        assert_eq!(t.prefetched(t.regs().rsi), Some(&b"/etc/"[..]));
        answer(&mut t, 0).await;
        assert_eq!(t.prefetched(t.regs().rdi), None);
        t.queue(Op::CopyOut { addr: DATA, data: b"abcdefgh".to_vec() });
        answer(&mut t, 8).await;
        assert_eq!(t.regs().rbx, u64::from_le_bytes(*b"abcdefgh"));
        // Larger than the staging buffer.
        let big: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        t.queue(Op::CopyOut { addr: DATA + 0x1000, data: big.clone() });
        assert_eq!(answer(&mut t, 9).await, Trap::Syscall);
        let mut back = vec![0; big.len()];
        let space = t.address_space();
        assert_eq!(space.read(DATA + 0x1000, &mut back), Ok(big.len()));
        assert!(back == big);
        // Not writable: the call fails, the rest of the queue is carried out.
        for len in [8, 200_000] {
            t.queue(Op::CopyOut { addr: CODE, data: vec![1; len] });
            t.queue(Op::CopyOut { addr: DATA, data: b"12345678".to_vec() });
            assert_eq!(answer(&mut t, 9).await, Trap::Syscall);
            assert_eq!(t.regs().rbx, u64::from_le_bytes(*b"12345678"));
        }
        t.queue(Op::CopyOut { addr: 1 << 63, data: vec![1; 8] });
        assert_eq!(answer(&mut t, 9).await, Trap::Syscall);
        // With a whole context, a failed copy is reported.
        t.queue(Op::CopyOut { addr: DATA, data: vec![1; 8] });
        t.queue(Op::CopyOut { addr: CODE, data: vec![1; 8] });
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::OpFailed { index: 1, errno: Errno::EFAULT });
        // Reads and writes by the Sentry respect the protection, and stop at the first bad page.
        assert_eq!(space.write(CODE, b"x"), Ok(0));
        assert_eq!(space.write(DATA + DATA_LEN - 4, b"12345678"), Ok(4));
        assert_eq!(space.read(DATA + DATA_LEN - 4, &mut [0; 8]), Ok(4));
        assert_eq!(space.read(0, &mut [0; 8]), Ok(0));
        assert_eq!(space.read(platform::GUEST_MAX, &mut [0; 8]), Ok(0));
        assert_eq!(space.read(0x7fff_0000_1000, &mut [0; 8]), Ok(0));
        assert_eq!(space.read(u64::MAX - 3, &mut [0; 8]), Ok(0));
        let (vdso, _) = space.vdso().unwrap();
        let mut magic = [0; 4];
        assert_eq!(space.read(vdso, &mut magic), Ok(4));
        assert_eq!(&magic, b"\x7fELF");
    });
}

#[test]
fn many_operations_go_in_rounds_and_the_failing_one_is_named() {
    sandbox(|platform, _| async move {
        let (mut t, _) = start(&platform, getpid()).await;
        for i in 0..100 {
            t.queue(anon(0x1000_0000 + i * 0x2000, 0x1000, RW));
        }
        t.queue(Op::Protect { addr: 0x2000_0000, len: 0x1000, prot: RW });
        t.queue(anon(0x3000_0000, 0x1000, RW));
        let settled = t.ops_settled();
        assert_eq!(answer(&mut t, 0).await, Trap::OpFailed { index: 100, errno: Errno::ENOMEM });
        let space = t.address_space();
        assert_eq!(space.write(0x1000_0000 + 99 * 0x2000, b"x"), Ok(1));
        assert_eq!(space.write(0x3000_0000, b"x"), Ok(0));
        assert!(!settled.settled());
        t.queue(Op::Unmap { addr: 0x1000_0000, len: 0x1000 });
        t.queue(Op::Remap { addr: 0x1000_2000, len: 0x1000, new_addr: 0x4000_0000, new_len: 0x3000, flags: 0 });
        t.queue(Op::Advise { addr: 0x4000_0000, len: 0x3000, advice: libc::MADV_DONTNEED });
        assert_eq!(answer(&mut t, 0).await, Trap::Syscall);
        assert!(settled.settled());
        assert_eq!(space.write(0x4000_2000, b"x"), Ok(1));
        assert_eq!(space.write(0x1000_0000, b"x"), Ok(0));
        for bad in [
            anon(0x1000_0001, 0x1000, RW),
            anon(0x1000_0000, 0, RW),
            anon(platform::GUEST_MAX, 0x1000, RW),
            anon(0, 0x1000, RW),
        ] {
            t.queue(bad);
            assert_eq!(answer(&mut t, 0).await, Trap::OpFailed { index: 0, errno: Errno::EINVAL });
        }
        assert_eq!(answer(&mut t, 0).await, Trap::Syscall);
    });
}

guest_code!(
    forks,
    "mov rbx, 0x77",
    "mov qword ptr [0x500000], 5",
    "mov eax, 57",
    "syscall",
    "mov rcx, [0x500000]",
    "inc qword ptr [0x500000]",
    "2: mov rdi, rax",
    "mov rsi, [0x500000]",
    "mov eax, 60",
    "syscall",
    "jmp 2b",
);

#[test]
fn forks_are_copies() {
    sandbox(|platform, _| async move {
        let (mut t, _) = start(&platform, forks()).await;
        assert_eq!(t.regs().orig_rax, 57);
        let before = std::time::Instant::now();
        let mut c = fork(&mut t).await;
        println!("fork: {:?}", before.elapsed());
        assert_ne!(t.address_space().host_pid(), c.address_space().host_pid());
        assert_eq!(c.regs(), t.regs());
        c.regs_mut().rax = 0;
        assert_eq!(enter(&mut c, Enter::Return).await, Trap::Syscall);
        assert_eq!((c.regs().rdi, c.regs().rsi, c.regs().rbx), (0, 6, 0x77));
        assert_eq!(answer(&mut t, 42).await, Trap::Syscall);
        assert_eq!((t.regs().rdi, t.regs().rsi), (42, 6));
        // A grandchild, after its parent's end.
        let mut g = fork(&mut c).await;
        drop(c);
        g.queue(anon(0x1000_0000, 0x1000, RW));
        assert_eq!(answer(&mut g, 0).await, Trap::Syscall);
        for _ in 0..20 {
            let mut next = fork(&mut g).await;
            assert_eq!(answer(&mut next, 0).await, Trap::Syscall);
            g = next;
        }
        g.address_space().kill();
        // The guest may make a call before the signal reaches it.
        let mut trap = enter(&mut g, Enter::Return).await;
        while trap == Trap::Syscall {
            trap = enter(&mut g, Enter::Return).await;
        }
        assert_eq!(trap, Trap::Dead { signal: 9 });
        assert_eq!(g.address_space().read(DATA, &mut [0; 8]), Err(Errno::ESRCH));
    });
}

guest_code!(
    spins,
    "2: mov eax, 56",
    "syscall",
    "test rax, rax",
    "jz 4f",
    "lock inc qword ptr [0x500000]",
    "jmp 2b",
    "4: lock inc qword ptr [0x500008]",
    "cmp qword ptr [0x500010], 0",
    "je 4b",
    "mov eax, 60",
    "mov rdi, fs:[0]",
    "syscall",
    "hlt",
);

#[test]
fn threads_share_memory_and_can_be_interrupted() {
    sandbox(|platform, _| async move {
        let (mut t, _) = start(&platform, spins()).await;
        let space = t.address_space();
        assert_eq!(space.write(DATA + 0x100, &0x1234u64.to_le_bytes()), Ok(8));
        let mut c = thread(&mut t, Some(DATA + 0x100)).await;
        assert_eq!(c.address_space().host_pid(), space.host_pid());
        assert_eq!(c.fs_base(), DATA + 0x100);
        let rip = c.regs().rip;
        c.regs_mut().rax = 0;
        c.regs_mut().rsp = STACK + 0x8000;
        c.enter(Enter::Full);
        for i in 1..100u64 {
            assert_eq!(answer(&mut t, i).await, Trap::Syscall);
        }
        let stop = c.interrupter();
        stop.interrupt();
        assert_eq!(trap(&mut c).await, Trap::Interrupted);
        assert!(c.regs().rip >= rip && c.regs().rip < rip + 64);
        // An interrupt has no effect on a stopped thread.
        stop.interrupt();
        assert_eq!(space.write(DATA + 0x10, &[1]), Ok(1));
        assert_eq!(enter(&mut c, Enter::Full).await, Trap::Syscall);
        assert_eq!((c.regs().orig_rax, c.regs().rdi), (60, 0x1234));
        drop(c);
        // Slots are reused.
        for _ in 0..100 {
            let mut c = thread(&mut t, Some(DATA + 0x100)).await;
            c.regs_mut().rax = 0;
            assert_eq!(enter(&mut c, Enter::Full).await, Trap::Syscall);
        }
        // Dropped while it runs.
        assert_eq!(space.write(DATA + 0x10, &[0]), Ok(1));
        for _ in 0..20 {
            let mut c = thread(&mut t, None).await;
            c.regs_mut().rax = 0;
            c.enter(Enter::Full);
        }
        assert_eq!(answer(&mut t, 1).await, Trap::Syscall);
    });
}

guest_code!(
    vectors,
    "2: mov eax, 24",
    "movaps xmm3, [0x500000]",
    "syscall",
    "movaps [0x500010], xmm3",
    "mov eax, 25",
    "syscall",
    "jmp 2b",
);

#[test]
fn floating_point_state_is_kept_saved_and_loaded() {
    sandbox(|platform, _| async move {
        use platform::Platform;
        let mut t = load(&platform, vectors()).await;
        let space = t.address_space();
        let peek = |at: u64| {
            let mut b = [0; 8];
            space.read(at, &mut b).unwrap();
            u64::from_le_bytes(b)
        };
        assert_eq!(space.write(DATA, &[9; 16]), Ok(16));
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!(answer(&mut t, 0).await, Trap::Syscall);
        assert_eq!(peek(DATA + 16), 0x0909_0909_0909_0909);
        answer(&mut t, 0).await;
        // Saved and reset.
        t.queue(Op::SaveFp { addr: DATA + 0x1000 });
        answer(&mut t, 0).await;
        assert_eq!(peek(DATA + 16), 0);
        assert_eq!(peek(DATA + 0x1000 + 160 + 3 * 16), 0x0909_0909_0909_0909);
        assert_eq!(peek(DATA + 0x1000 + 464) as u32, 0x4650_5853);
        let mut all = vec![0; platform.fp_state_size()];
        assert_eq!(space.read(DATA + 0x1000, &mut all), Ok(all.len()));
        assert!(all.windows(4).any(|w| w == 0x4650_5845u32.to_le_bytes()));
        answer(&mut t, 0).await;
        // Loaded.
        t.queue(Op::RestoreFp { addr: DATA + 0x1000 });
        answer(&mut t, 0).await;
        assert_eq!(peek(DATA + 16), 0x0909_0909_0909_0909);
        answer(&mut t, 0).await;
        // Garbage does no harm.
        assert_eq!(space.write(DATA + 0x1000 + 464, &[0xff; 4]), Ok(4));
        assert_eq!(space.write(DATA + 0x1000 + 24, &[0xff; 8]), Ok(8));
        assert_eq!(space.write(DATA + 0x1000 + 512, &[0xff; 64]), Ok(64));
        t.queue(Op::RestoreFp { addr: DATA + 0x1000 });
        answer(&mut t, 0).await;
        assert_eq!(peek(DATA + 16), 0x0909_0909_0909_0909);
        // The last address with enough room for it.
        let top = platform::GUEST_MAX - 0x4000;
        t.queue(Op::MapAnon { addr: top, len: 0x4000, prot: 3, shared: false, flags: 0 });
        let last = (platform::GUEST_MAX - platform.fp_state_size() as u64) & !63;
        t.queue(Op::SaveFp { addr: last });
        answer(&mut t, 0).await;
        assert_eq!(peek(last + 464) as u32, 0x4650_5853);
        t.queue(Op::RestoreFp { addr: last });
        answer(&mut t, 0).await;
        let mut c = fork(&mut t).await;
        answer(&mut c, 0).await;
        t.queue(Op::RestoreFp { addr: 0x1000 });
        assert_eq!(answer(&mut t, 0).await, Trap::OpFailed { index: 0, errno: Errno::EFAULT });
    });
}

guest_code!(
    maps,
    "2: mov rbx, [0x10000000]",
    "mov eax, 39",
    "syscall",
    "mov qword ptr [0x10000008], 7",
    "mov eax, 40",
    "syscall",
    "jmp 2b",
);

#[test]
fn files_are_mapped() {
    sandbox(|platform, _| async move {
        let mut t = load(&platform, maps()).await;
        let file = platform::host::SharedFile::new(platform::budget::Use::File).unwrap();
        file.copy_in(0x1000, b"contents").unwrap();
        file.set_len(0x3000).unwrap();
        let map =
            |shared| Op::MapFile { addr: 0x1000_0000, len: 0x2000, prot: RW, shared, file: file.fd(), offset: 0x1000 };
        t.queue(map(true));
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!(t.regs().rbx, u64::from_le_bytes(*b"contents"));
        answer(&mut t, 0).await;
        let mut b = [0; 8];
        file.copy_out(0x1008, &mut b);
        assert_eq!(b, 7u64.to_le_bytes());
        for i in 0..100 {
            t.queue(Op::MapFile {
                addr: 0x2000_0000 + i * 0x1000,
                len: 0x1000,
                prot: RW,
                shared: false,
                file: file.fd(),
                offset: 0,
            });
        }
        assert_eq!(answer(&mut t, 0).await, Trap::Syscall);
        // A shared writable mapping of a read-only descriptor: EACCES, and the descriptor does not stay.
        let null = std::fs::File::open("/proc/self/exe").unwrap();
        t.queue(Op::MapFile {
            addr: 0x3000_0000,
            len: 0x1000,
            prot: RW,
            shared: true,
            file: Arc::new(null.into()),
            offset: 0,
        });
        assert_eq!(answer(&mut t, 0).await, Trap::OpFailed { index: 0, errno: Errno::EACCES });
        let fds = std::fs::read_dir(format!("/proc/{}/fd", t.address_space().host_pid())).unwrap().count();
        assert_eq!(fds, 10);
    });
}

#[test]
fn a_guest_process_is_bare() {
    sandbox(|platform, _| async move {
        let t = fresh(&platform).await;
        let pid = t.address_space().host_pid();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        println!("{maps}");
        for line in maps.lines() {
            let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
            assert!(start >= platform::GUEST_MAX, "{line}");
            assert!(!line.contains("stack"));
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        println!("{status}");
        for want in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(want), "{want}");
        }
    });
}

guest_code!(
    futexes,
    // Parent and child pass a word back and forth with private futexes; each adds 1 to it when its lowest bit selects
    // that process.
    "mov eax, 56",
    "syscall",
    "mov r12, rax",
    "and r12, 1",
    "mov r13d, 20000",
    "2: mov r14d, [0x500000]",
    "mov eax, r14d",
    "and eax, 1",
    "cmp eax, r12d",
    "je 3f",
    "mov eax, 202",
    "mov edi, 0x500000",
    "mov esi, 128",
    "mov edx, r14d",
    "xor r10d, r10d",
    "syscall",
    "jmp 2b",
    "3: lock inc dword ptr [0x500000]",
    "mov eax, 202",
    "mov edi, 0x500000",
    "mov esi, 129",
    "mov edx, 1",
    "syscall",
    "dec r13d",
    "jnz 2b",
    "mov eax, 60",
    "syscall",
    // Then one long sleep.
    "4: mov eax, 202",
    "mov edi, 0x500100",
    "mov esi, 128",
    "xor edx, edx",
    "xor r10d, r10d",
    "syscall",
    "mov rbx, rax",
    "mov eax, 61",
    "syscall",
    "jmp 4b",
);

#[test]
fn private_futexes_need_no_sentry() {
    sandbox(|platform, executor| async move {
        use platform::Platform;
        platform.set_native_futex(true, false);
        let (mut t, _) = start(&platform, futexes()).await;
        let mut c = thread(&mut t, None).await;
        let calls = |platform: &platform::systrap::Systrap| platform.stats()[0].1;
        let before = calls(&platform);
        t.regs_mut().rax = 0;
        c.regs_mut().rax = 1;
        c.regs_mut().rsp -= 0x1000;
        let begin = std::time::Instant::now();
        t.enter(Enter::Full);
        c.enter(Enter::Full);
        assert_eq!(trap(&mut t).await, Trap::Syscall);
        assert_eq!(trap(&mut c).await, Trap::Syscall);
        println!("{:?} a turn", begin.elapsed() / 40000);
        assert_eq!((t.regs().orig_rax, c.regs().orig_rax), (60, 60));
        assert_eq!(calls(&platform) - before, 2);
        let space = t.address_space();
        let mut b = [0; 4];
        space.read(DATA, &mut b).unwrap();
        assert_eq!(u32::from_le_bytes(b), 40000);

        // Interrupted at any moment, the wait ends, and is reported as not done.
        let stop = t.interrupter();
        t.regs_mut().rax = 0;
        t.enter(Enter::Return);
        for i in 0..2000u64 {
            let deadline = platform::executor::now_ns() + i * 40;
            let mut timer = None;
            std::future::poll_fn(|cx| {
                if platform::executor::now_ns() >= deadline {
                    return std::task::Poll::Ready(());
                }
                timer = Some(executor.timer(deadline, cx.waker().clone()));
                std::task::Poll::Pending
            })
            .await;
            stop.interrupt();
            assert_eq!(trap(&mut t).await, Trap::Interrupted);
            let r = *t.regs();
            if r.orig_rax == 202 {
                assert_eq!((r.rax, r.rdi), (202, 0x50_0100));
                t.regs_mut().rip -= 2;
            } else {
                assert_eq!(r.orig_rax, u64::MAX);
            }
            t.enter(Enter::Full);
        }
        // A word that has changed: the result is the host's.
        stop.interrupt();
        assert_eq!(trap(&mut t).await, Trap::Interrupted);
        space.write(DATA + 0x100, &[1]).unwrap();
        t.regs_mut().rip = t.regs().rip - if t.regs().orig_rax == 202 { 2 } else { 0 };
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!((t.regs().orig_rax, t.regs().rbx as i64), (61, -libc::EAGAIN as i64));
        drop(c);
    });
}
