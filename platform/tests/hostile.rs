//! A guest that knows the stub jumps to each of its `syscall` instructions, with registers of its choice.

mod common;
use common::*;
use nix::sys::uio::{process_vm_readv, RemoteIoVec};
use nix::unistd::Pid;
use platform::{Enter, Op, Trap};

const TEXT: u64 = 0x7fff_0000_1000;
const AREA: u64 = 0x7fff_4000_0000;
const GLOBAL: u64 = 0x7fff_2000_0000;

guest_code!(idle, "2: mov eax, 39", "syscall", "jmp 2b");

/// Addresses of the stub's `syscall` instructions (and of bytes that look like one).
fn syscall_sites(pid: i32) -> Vec<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|l| l.starts_with(&format!("{TEXT:x}-"))).unwrap();
    let end = u64::from_str_radix(line.split(['-', ' ']).nth(1).unwrap(), 16).unwrap();
    let mut text = vec![0; (end - TEXT) as usize];
    let remote = [RemoteIoVec { base: TEXT as usize, len: text.len() }];
    let n = process_vm_readv(Pid::from_raw(pid), &mut [std::io::IoSliceMut::new(&mut text)], &remote).unwrap();
    assert_eq!(n, text.len());
    (0..n - 1).filter(|i| text[*i] == 0x0f && text[i + 1] == 5).map(|i| TEXT + i as u64).collect()
}

fn arm(t: &mut Guest, site: u64, nr: u64, args: [u64; 6]) {
    let r = t.regs_mut();
    r.rip = site;
    r.rax = nr;
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
    r.rsp = STACK + 0x8000;
}

#[test]
fn no_call_outside_the_list_gets_through() {
    sandbox(|platform, _| async move {
        let (mut t, _) = start(&platform, idle()).await;
        let sites = syscall_sites(t.address_space().host_pid());
        assert!(sites.len() > 5);
        let own = DATA;
        let calls: &[(libc::c_long, [u64; 6])] = &[
            (libc::SYS_read, [0, own, 8, 0, 0, 0]),
            (libc::SYS_write, [9, own, 8, 0, 0, 0]),
            (libc::SYS_write, [1, own, 16, 0, 0, 0]),
            (libc::SYS_write, [10, own, 8, 0, 0, 0]),
            (libc::SYS_open, [own, 0, 0, 0, 0, 0]),
            (libc::SYS_openat, [u64::MAX, own, 0, 0, 0, 0]),
            (libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
            (libc::SYS_sendmsg, [9, own, 0, 0, 0, 0]),
            (libc::SYS_recvmsg, [1, own, 0, 0, 0, 0]),
            (libc::SYS_dup2, [0, 5, 0, 0, 0, 0]),
            (libc::SYS_close, [0, 0, 0, 0, 0, 0]),
            (libc::SYS_close, [1, 0, 0, 0, 0, 0]),
            (libc::SYS_close, [9, 0, 0, 0, 0, 0]),
            (libc::SYS_execve, [own, 0, 0, 0, 0, 0]),
            (libc::SYS_fork, [0; 6]),
            (libc::SYS_vfork, [0; 6]),
            (libc::SYS_clone, [0x1000_0000 | 17, 0, 0, 0, 0, 0]),
            (libc::SYS_clone, [17, 0, 0, 0, 0, 0]),
            (libc::SYS_clone, [0x50f00 | 0x80_0000, own, 0, 0, 0, 0]),
            (libc::SYS_clone3, [own, 88, 0, 0, 0, 0]),
            (libc::SYS_kill, [1, 9, 0, 0, 0, 0]),
            (libc::SYS_tgkill, [1, 1, 9, 0, 0, 0]),
            (libc::SYS_ptrace, [16, 1, 0, 0, 0, 0]),
            (libc::SYS_process_vm_readv, [1, own, 1, own, 1, 0]),
            (libc::SYS_process_vm_writev, [1, own, 1, own, 1, 0]),
            (libc::SYS_prctl, [4, 0, 0, 0, 0, 0]),
            (libc::SYS_prctl, [59, 0, 0, 0, 0, 0]),
            (libc::SYS_seccomp, [1, 0, own, 0, 0, 0]),
            (libc::SYS_arch_prctl, [0x1002, 0, 0, 0, 0, 0]),
            (libc::SYS_rt_sigaction, [31, own, 0, 8, 0, 0]),
            (libc::SYS_mmap, [TEXT, 0x1000, 7, 0x32, u64::MAX, 0]),
            (libc::SYS_mmap, [0, 0x1000, 7, 0x22, u64::MAX, 0]),
            (libc::SYS_mmap, [AREA, 0x1000, 3, 0x11, 0, 0]),
            (libc::SYS_mmap, [0x1_0000, 0x20_0000, 7, 0x40032, u64::MAX, 0]),
            (libc::SYS_mprotect, [GLOBAL, 0x1000, 3, 0, 0, 0]),
            (libc::SYS_mprotect, [TEXT, 0x1000, 7, 0, 0, 0]),
            (libc::SYS_mremap, [GLOBAL, 0x1000, 0x1000, 3, own, 0]),
            (libc::SYS_mremap, [AREA, 0x1000, 0x1000, 3, own, 0]),
            (libc::SYS_mremap, [own, 0x1000, 0x1000, 3, TEXT, 0]),
            (libc::SYS_munmap, [TEXT, 0x1000, 0, 0, 0, 0]),
            (libc::SYS_munmap, [0, u64::MAX, 0, 0, 0, 0]),
            (libc::SYS_madvise, [AREA, 0x20000, libc::MADV_DOFORK as u64, 0, 0, 0]),
            (libc::SYS_madvise, [own, 0x1000, libc::MADV_MERGEABLE as u64, 0, 0, 0]),
            (libc::SYS_madvise, [own, 0x1000, libc::MADV_HWPOISON as u64, 0, 0, 0]),
            (libc::SYS_futex, [own, 6, 0, 0, 0, 0]),
            (libc::SYS_io_uring_setup, [1, own, 0, 0, 0, 0]),
            (libc::SYS_bpf, [0; 6]),
            (libc::SYS_userfaultfd, [0; 6]),
            (libc::SYS_memfd_create, [own, 0, 0, 0, 0, 0]),
            (libc::SYS_pidfd_open, [1, 0, 0, 0, 0, 0]),
            (libc::SYS_setuid, [0; 6]),
            (libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0]),
        ];
        for &site in &sites {
            for &(nr, args) in calls {
                arm(&mut t, site, nr as u64, args);
                assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall, "{nr} at {site:#x}");
                assert_eq!((t.regs().orig_rax, t.regs().rip), (nr as u64, site + 2));
            }
            // 335 and 336 (uretprobe, uprobe) pass every filter and answer SIGILL.
            for nr in (0..480).filter(|n| {
                ![335, 336, 3, 10, 11, 14, 15, 24, 25, 26, 28, 47, 60, 131, 202, 218, 231, 309, 334, 449].contains(n)
            }) {
                arm(&mut t, site, nr, [0x7; 6]);
                assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall, "{nr} at {site:#x}");
            }
        }
        // The process is unchanged: it has the control socket, the poller's doorbell and eight doorbells of workers.
        let (fds, pid) = (10, t.address_space().host_pid());
        assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), fds);
        t.regs_mut().rip = CODE;
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!(t.regs().orig_rax, 39);
    });
}

guest_code!(
    wild,
    // Repeatedly overwrites its own cell: state, posts, answers, operations.
    "movabs rdi, 0x7fff40000000",
    "movabs rax, 0x0102030405060708",
    "mov edx, 4096",
    "2: mov rsi, rdi",
    "mov ecx, 512",
    "3: mov [rsi], rax",
    "add rsi, 8",
    "rol rax, 3",
    "dec ecx",
    "jnz 3b",
    "inc rax",
    "dec edx",
    "jnz 2b",
    "mov eax, 39",
    "syscall",
    "jmp 2b",
);

#[test]
fn garbage_in_the_cell_harms_only_its_writer() {
    sandbox(|platform, executor| async move {
        let mut bystander = start(&platform, idle()).await.0;
        for round in 0..20 {
            let mut t = load(&platform, wild()).await;
            let mut d = thread(&mut t, None).await;
            // One thread overwrites the cell of the other, which makes calls.
            d.regs_mut().rip = CODE;
            d.regs_mut().rsp = STACK + 0x4000;
            t.regs_mut().rip = CODE + 0x1000;
            t.queue(Op::Protect { addr: CODE, len: 0x4000, prot: RW });
            t.queue(Op::CopyOut { addr: CODE + 0x1000, data: idle().to_vec() });
            t.queue(Op::Protect { addr: CODE, len: 0x4000, prot: RX });
            t.enter(Enter::Full);
            d.enter(Enter::Full);
            let space = t.address_space();
            let deadline = platform::executor::now_ns() + 20_000_000;
            let mut timer = Some(executor.timer(deadline, std::task::Waker::noop().clone()));
            std::future::poll_fn(|cx| {
                let now = platform::executor::now_ns();
                if now >= deadline {
                    return std::task::Poll::Ready(());
                }
                timer = Some(executor.timer(deadline.min(now + 1_000_000), cx.waker().clone()));
                for t in [&mut t, &mut d] {
                    for _ in 0..50 {
                        match t.poll_trap(cx) {
                            std::task::Poll::Ready(Trap::Dead { .. }) | std::task::Poll::Pending => break,
                            std::task::Poll::Ready(_) => {
                                if round % 2 == 0 {
                                    t.queue(anon(0x1000_0000, 0x1000, RW));
                                }
                                t.enter(Enter::Return)
                            }
                        }
                    }
                }
                std::task::Poll::Pending
            })
            .await;
            space.kill();
            assert_eq!(answer(&mut bystander, 1).await, Trap::Syscall);
        }
    });
}

#[test]
fn fork_handshakes_need_a_token_and_ends_are_noticed() {
    sandbox(|platform, _| async move {
        // (call, arguments, the signal it dies of)
        let cases: &[(u64, [u64; 6], i32)] = &[
            // A fork handshake with an unknown token.
            (0x4e4f, [1, 0, 0, 0, 0, 0], libc::SIGKILL),
            (libc::SYS_exit_group as u64, [3, 0, 0, 0, 0, 0], 0),
            (libc::SYS_exit as u64, [3, 0, 0, 0, 0, 0], 0),
        ];
        for &(nr, args, signal) in cases {
            let (mut t, _) = start(&platform, idle()).await;
            let site = syscall_sites(t.address_space().host_pid())[0];
            arm(&mut t, site, nr, args);
            assert_eq!(enter(&mut t, Enter::Full).await, Trap::Dead { signal }, "{nr}");
            assert_eq!(enter(&mut t, Enter::Full).await, Trap::Dead { signal });
            t.start_fork();
            assert!(std::future::poll_fn(|cx| t.poll_fork(cx)).await.is_err());
            t.start_thread(None);
            assert!(std::future::poll_fn(|cx| t.poll_thread(cx)).await.is_err());
        }
        // A signal frame of its own making gives it its own memory at most.
        let (mut t, _) = start(&platform, idle()).await;
        let site = syscall_sites(t.address_space().host_pid())[0];
        arm(&mut t, site, 15, [0; 6]);
        let end = enter(&mut t, Enter::Full).await;
        assert!(matches!(end, Trap::Fault(_) | Trap::Dead { .. }), "{end:?}");
        // HELLO_NR from guest code is a call that does not exist.
        let (mut t, _) = start(&platform, idle()).await;
        let site = syscall_sites(t.address_space().host_pid())[0];
        arm(&mut t, site, 0x4e4e, [0; 6]);
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!(t.regs().orig_rax, 0x4e4e);
    });
}

guest_code!(
    liar,
    // Repeatedly reports the tid in r12 as that of the thread just made by slot 0.
    "movabs rbx, 0x7fff40000000",
    "2: mov [rbx + 132], r12d",
    "jmp 2b",
);

#[test]
fn a_false_tid_reaches_no_other_thread() {
    sandbox(|platform, _| async move {
        // A thread that the Sentry could move, but that belongs to no stub.
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let victim = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid()).unwrap();
            let _ = ended.recv();
        });
        let tid = told.recv().unwrap();
        let before = nix::sched::sched_getaffinity(tid).unwrap();

        let mut t = load(&platform, liar()).await;
        let mut d = thread(&mut t, None).await;
        d.regs_mut().r12 = tid.as_raw() as u64;
        d.regs_mut().rip = CODE;
        d.enter(Enter::Full);
        for core in [0, 1] {
            for _ in 0..60 {
                let new = thread(&mut t, None).await;
                new.interrupter().pin(Some(&[1 << core]));
                assert_eq!(nix::sched::sched_getaffinity(tid).unwrap(), before);
            }
        }
        // Threads with a true tid are pinned.
        let mut honest = load(&platform, idle()).await;
        let new = thread(&mut honest, None).await;
        new.interrupter().pin(Some(&[1]));
        let pid = honest.address_space().host_pid();
        let pinned = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter(|task| {
            let status = std::fs::read_to_string(task.as_ref().unwrap().path().join("status")).unwrap();
            status.lines().any(|l| l.strip_prefix("Cpus_allowed_list:").is_some_and(|l| l.trim() == "0"))
        });
        let cores = std::thread::available_parallelism().unwrap().get();
        assert!(cores == 1 || pinned.count() == 1);
        t.address_space().kill();
        drop(end);
        victim.join().unwrap();
    });
}

guest_code!(
    hoarder,
    // Posts calls in the cell of slot 1, reports all operations as done, and takes no descriptor.
    "movabs rbx, 0x7fff40020000",
    "2: mov dword ptr [rbx + 128], 1",
    "3: mov eax, 1",
    "xchg [rbx], eax",
    "4: pause",
    "cmp dword ptr [rbx], 4",
    "jne 4b",
    "mov eax, [rbx + 16]",
    "mov [rbx + 64], eax",
    "cmp dword ptr [rbx + 8], 3",
    "jne 2b",
    "mov dword ptr [rbx + 128], 4",
    "jmp 3b",
);

/// Descriptors sent to many processes and never taken: their number is bounded, and other processes get theirs.
#[test]
fn descriptors_that_are_not_taken_are_few() {
    hoard(false, 256);
}

/// Processes of one ancestor share what it may have; one that has none of them for an ancestor has its own.
#[test]
fn descriptors_are_shared_among_ancestors() {
    hoard(true, 160);
}

fn hoard(family: bool, most: usize) {
    sandbox(move |platform, executor| async move {
        const HOARDERS: usize = 40;
        let file = std::sync::Arc::new(std::os::fd::OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap()));
        let map =
            || Op::MapFile { addr: 0x1000_0000, len: 0x1000, prot: 1, shared: false, file: file.clone(), offset: 0 };
        let mut bystander = load(&platform, idle()).await;
        let root = bystander.address_space().lineage();
        let ancestor = if family { root.child() } else { root };
        let mut all = Vec::new();
        for _ in 0..HOARDERS {
            let mut t = load(&platform, hoarder()).await;
            t.address_space().set_lineage(ancestor.child());
            let mut d = thread(&mut t, None).await;
            d.regs_mut().rip = CODE;
            d.enter(Enter::Full);
            all.push((t, d, 0));
        }
        let begun = platform::executor::now_ns();
        let mut timer = None;
        let mut asked = false;
        let mut served = 0;
        std::future::poll_fn(|cx| {
            let now = platform::executor::now_ns();
            timer = Some(executor.timer(now + 2_000_000, cx.waker().clone()));
            for (_, d, given) in &mut all {
                if let std::task::Poll::Ready(trap) = d.poll_trap(cx) {
                    if matches!(trap, Trap::Syscall) {
                        d.queue(map());
                        d.enter(Enter::Return);
                        *given += 1;
                    }
                }
            }
            let given: usize = all.iter().map(|a| a.2).sum();
            assert!(all.iter().all(|a| a.2 <= 20), "a process has {:?}", all.iter().map(|a| a.2).max());
            // What was asked for counts, and each waits with one more.
            assert!(given <= most + HOARDERS, "{given} in all");
            if now - begun < 1_000_000_000 {
                return std::task::Poll::Pending;
            }
            // The hoarders have had their time. An honest process is served, at the latest when some hoarders have
            // been killed for it.
            if !asked {
                asked = true;
                bystander.queue(map());
                bystander.enter(Enter::Stay);
            }
            match bystander.poll_trap(cx) {
                std::task::Poll::Ready(trap) => {
                    assert_eq!(trap, Trap::OpsDone);
                    served += 1;
                    asked = false;
                }
                std::task::Poll::Pending => assert!(now - begun < 60_000_000_000, "a bystander is not served"),
            }
            if served == 20 {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
        for (t, ..) in &all {
            t.address_space().kill();
        }
    });
}
