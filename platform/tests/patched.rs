//! Calls from patched sites, as the Sentry sees them.

mod common;
use common::*;
use platform::patch::{Outcome, Text, TRAMPOLINE};
use platform::proof::prove;
use platform::{Enter, Op, Platform, Trap};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::Arc;

/// Where the code begins in its file.
const AT: u64 = 0x100;
const LEN: u64 = 0x4000;

/// An ELF file whose only symbol is a function with the code.
fn elf(code: &[u8]) -> Vec<u8> {
    const SYMBOLS: u64 = 0x3000;
    let mut f = vec![0x90u8; LEN as usize];
    let mut put = |at: usize, words: &[u64]| {
        for (i, w) in words.iter().enumerate() {
            f[at + i * 8..at + i * 8 + 8].copy_from_slice(&w.to_le_bytes());
        }
    };
    put(
        0,
        &[0x0001_0102_464c_457f, 0, 0x0000_0001_003e_0003, 0, 64, 120, 0x0038_0040_0000_0000, 0x0000_0002_0040_0001],
    );
    put(64, &[0x5_0000_0001, 0, 0, 0, LEN, LEN, 0x1000]);
    put(120, &[0; 8]);
    put(184, &[2 << 32, 0, 0, SYMBOLS, 48, 0, 0, 0]);
    put(SYMBOLS as usize, &[0, 0, 0, 0x0001_0012_0000_0000, AT, code.len() as u64]);
    f[AT as usize..AT as usize + code.len()].copy_from_slice(code);
    f
}

/// An address space that runs `code` from a text that can be patched.
async fn load_text(platform: &impl Platform, code: &[u8]) -> (Guest, Code) {
    let text = Text::new(LEN, -(TRAMPOLINE as i64)).unwrap();
    let file = elf(code);
    text.fill(0, LEN, |b| b.copy_from_slice(&file));
    let mut t = std::future::poll_fn(|cx| platform.poll_new(cx)).await.unwrap();
    t.queue(anon(DATA, DATA_LEN, RW));
    t.queue(anon(STACK, 0x1_0000, RW));
    let map = |addr, len, offset| Op::MapFile { addr, len, prot: RX, shared: false, file: text.fd().clone(), offset };
    t.queue(map(CODE - TRAMPOLINE, TRAMPOLINE, 0));
    t.queue(map(CODE, LEN, TRAMPOLINE));
    assert_eq!(enter(&mut t, Enter::Stay).await, Trap::OpsDone);
    t.regs_mut().rip = CODE + AT;
    t.regs_mut().rsp = STACK + 0xfff0;
    (t, Code { text, file })
}

struct Code {
    text: Text,
    file: Vec<u8>,
}

/// Patches the site of the call that `t` has stopped on.
fn patch_here(t: &Guest, code: &Code) {
    let site = t.regs().rip - 2 - CODE;
    let mut read = |at: u64, buf: &mut [u8]| {
        let rest = code.file.get(at as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        n
    };
    let proof = &prove(&mut read, &[site])[0];
    assert_eq!(code.text.patch(site, proof, false), Outcome::Done);
}

fn trapped(t: &Guest) -> bool {
    t.trapped()
}

guest_code!(
    registers,
    // Sets registers that the call must not change, then makes the call, then checks them.
    "2: mov rbx, 0x1111",
    "mov rbp, 0x2222",
    "mov r12, 0x3333",
    "mov r13, 0x4444",
    "mov r14, 0x5555",
    "mov r15, 0x6666",
    "mov r8, 0x88",
    "mov r9, 0x99",
    "mov r10, 0xaa",
    "mov rdi, 0xd1",
    "mov rsi, 0x51",
    "mov rdx, 0xdd",
    "mov qword ptr [rsp - 8], 0x77",
    "mov qword ptr [rsp - 128], 0x78",
    "movq xmm3, rbp",
    "movq xmm15, r12",
    "fldpi",
    "mov r11, -1",
    "add r11, 1",
    "std",
    "mov eax, 39",
    "syscall",
    "pushfq",
    "cld",
    "pop r11",
    "and r11d, 0xcd5",
    "cmp r11d, 0x455",
    "jne 3f",
    "cmp qword ptr [rsp - 128], 0x78",
    "jne 3f",
    "movq rcx, xmm15",
    "cmp rcx, r12",
    "jne 3f",
    "fldpi",
    "fcomip st, st(1)",
    "jne 3f",
    "fstp st",
    "movq rcx, xmm3",
    "cmp rcx, 0x2222",
    "jne 3f",
    "jmp 2b",
    "3: ud2",
);

#[test]
fn only_the_result_register_changes() {
    sandbox(|platform, _| async move {
        let (mut t, text) = load_text(&*platform, registers()).await;
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        let first = *t.regs();
        assert!(trapped(&t));
        patch_here(&t, &text);
        for i in 0..1000 {
            assert_eq!(answer(&mut t, i).await, Trap::Syscall, "{:x?}", t.regs());
            assert!(!trapped(&t));
            let mut r = *t.regs();
            assert_eq!(r.rsp, first.rsp);
            // The values that `syscall` leaves there; for a call with a signal, the host sets them.
            (r.rax, r.r11) = (first.rax, first.r11);
            assert_eq!(r, first);
        }
        assert!(platform.stats().iter().any(|(name, n)| *name == "calls from patched sites" && *n == 1000));
    });
}

guest_code!(behind, "2: mov eax, 39", "inc ebx", "syscall", "cmp rax, -4095", "jae 3f", "jmp 2b", "3: ud2",);

#[test]
fn a_call_in_progress_returns() {
    sandbox(|platform, _| async move {
        let (mut t, text) = load_text(&*platform, behind()).await;
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        let rip = t.regs().rip;
        patch_here(&t, &text);
        for i in 0..100 {
            assert_eq!(answer(&mut t, i).await, Trap::Syscall, "{:x?}", t.regs());
            assert_eq!((t.regs().rip, t.regs().rbx, trapped(&t)), (rip, 2 + i, false));
        }
        // Restart as the kernel does it, with the registers from before the call; and return to the address after it
        // with all registers.
        t.regs_mut().rip -= 2;
        t.regs_mut().rax = 39;
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!((t.regs().rip, t.regs().rbx, trapped(&t)), (rip, 101, false));
        t.regs_mut().rax = 5;
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!((t.regs().rip, t.regs().rbx, trapped(&t)), (rip, 102, false));
        t.regs_mut().rax = -3i64 as u64;
        let Trap::Fault(f) = enter(&mut t, Enter::Full).await else { panic!() };
        assert_eq!(f.signal, libc::SIGILL);
    });
}

guest_code!(
    counting,
    // Each call's result must be right; r12 counts.
    "xor r12d, r12d",
    "2: mov eax, 39",
    "syscall",
    "cmp eax, 1234",
    "jne 3f",
    "mov eax, 102",
    "inc r12",
    "syscall",
    "cmp rax, -4095",
    "jae 3f",
    "cmp eax, 77",
    "jne 3f",
    "jmp 2b",
    "3: ud2",
);

/// Interrupts a thread repeatedly.
struct Stopper(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Stopper {
    fn new(t: &Guest) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (interrupter, s) = (t.interrupter(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut n = 0u32;
            while !s.load(Relaxed) {
                interrupter.interrupt();
                n = n.wrapping_mul(1664525).wrapping_add(1013904223);
                std::thread::sleep(std::time::Duration::from_micros(u64::from(n >> 26)));
            }
        });
        Stopper(stop, Some(thread))
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
        self.1.take().map(|t| t.join());
    }
}

/// Interrupts at any moment: no call is lost or made twice, and the kernel always sees the guest's own code.
fn interrupt_at_any_moment(answers: bool) {
    sandbox(move |platform, _| async move {
        let (mut t, text) = load_text(&*platform, counting()).await;
        let reply = |nr: u64| if nr == 39 { 1234 } else { 77 };
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        patch_here(&t, &text);
        assert_eq!(answer(&mut t, 1234).await, Trap::Syscall);
        patch_here(&t, &text);
        assert_eq!(answer(&mut t, 77).await, Trap::Syscall);
        if answers {
            t.local_answers().answer(39, Some(1234));
            t.local_answers().answer(102, Some(77));
        }
        let stopper = Stopper::new(&t);
        let (mut calls, mut interrupts, mut in_code) = (0u64, 0, 0);
        let mut how = Enter::Return;
        t.regs_mut().rax = 1234;
        let mut last = t.regs().r12;
        while interrupts < 3_000 {
            match enter(&mut t, how).await {
                Trap::Syscall => {
                    calls += 1;
                    t.regs_mut().rax = reply(t.regs().orig_rax);
                    how = Enter::Return;
                }
                Trap::Interrupted => {
                    interrupts += 1;
                    let at = t.regs().rip.wrapping_sub(CODE);
                    assert!((AT..AT + counting().len() as u64).contains(&at), "{:x?}", t.regs());
                    in_code += 1;
                    how = Enter::Full;
                }
                other => panic!("{other:?} {:x?}", t.regs()),
            }
            let count = t.regs().r12;
            assert!(count >= last && (answers || count <= last + 1), "{last} {count}");
            last = count;
        }
        drop(stopper);
        assert!(in_code > 0 && (answers || calls > 1000), "{in_code} {calls}");
    });
}

#[test]
fn interrupts_at_any_moment() {
    interrupt_at_any_moment(false);
}

#[test]
fn interrupts_while_the_stub_answers() {
    interrupt_at_any_moment(true);
}

guest_code!(
    storing,
    // As in musl: the value stored before the call must be the original r11, and be stored once.
    "xor r12d, r12d",
    "2: mov eax, 39",
    "lea r11, [r12 + 0x7000]",
    "mov r13, r11",
    "mov [rsp + 8], r11",
    "syscall",
    "cmp [rsp + 8], r13",
    "jne 3f",
    "cmp eax, 1234",
    "jne 3f",
    "mov qword ptr [rsp + 8], 0",
    "inc r12",
    "jmp 2b",
    "3: ud2",
);

#[test]
fn interrupts_around_a_displaced_store() {
    for answers in [false, true] {
        sandbox(move |platform, _| async move {
            let (mut t, text) = load_text(&*platform, storing()).await;
            assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
            patch_here(&t, &text);
            let rip = t.regs().rip;
            assert_eq!(answer(&mut t, 1234).await, Trap::Syscall);
            assert_eq!((t.regs().rip, t.regs().r12, trapped(&t)), (rip, 1, false));
            t.local_answers().answer(39, answers.then_some(1234));
            let stopper = Stopper::new(&t);
            let (mut interrupts, mut how) = (0, Enter::Return);
            t.regs_mut().rax = 1234;
            while interrupts < 3_000 {
                match enter(&mut t, how).await {
                    Trap::Syscall => {
                        t.regs_mut().rax = 1234;
                        how = Enter::Return;
                    }
                    Trap::Interrupted => {
                        interrupts += 1;
                        let at = t.regs().rip.wrapping_sub(CODE);
                        assert!((AT..AT + storing().len() as u64).contains(&at), "{:x?}", t.regs());
                        how = Enter::Full;
                    }
                    other => panic!("{other:?} {:x?}", t.regs()),
                }
            }
            drop(stopper);
            assert!(t.regs().r12 > 1000, "{:x?}", t.regs());
        });
    }
}

#[test]
fn a_fault_of_a_displaced_store_is_at_its_own_address() {
    sandbox(|platform, _| async move {
        let (mut t, text) = load_text(&*platform, storing()).await;
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        patch_here(&t, &text);
        assert_eq!(answer(&mut t, 1234).await, Trap::Syscall);
        assert!(!trapped(&t));
        let rip = t.regs().rip;
        t.regs_mut().rip = rip - 7;
        t.regs_mut().rsp = CODE + 0x1000;
        let Trap::Fault(f) = enter(&mut t, Enter::Full).await else { panic!() };
        assert_eq!((f.signal, f.addr, t.regs().rip), (libc::SIGSEGV, CODE + 0x1008, rip - 7));
    });
}

guest_code!(
    yielding,
    // Only the result register changes; r12 counts.
    "xor r12d, r12d",
    "2: mov r8, 0x88",
    "mov rdi, 0xd1",
    "mov qword ptr [rsp - 128], 0x78",
    "std",
    "mov r11d, 0x7fffffff",
    "add r11d, 1",
    "mov eax, 24",
    "syscall",
    "pushfq",
    "cld",
    "pop r11",
    "and r11d, 0xcd5",
    "cmp r11d, 0xc94",
    "jne 3f",
    "test eax, eax",
    "jne 3f",
    "cmp r8, 0x88",
    "jne 3f",
    "cmp rdi, 0xd1",
    "jne 3f",
    "cmp qword ptr [rsp - 128], 0x78",
    "jne 3f",
    "inc r12",
    "jmp 2b",
    "3: ud2",
);

#[test]
fn interrupts_while_threads_yield() {
    sandbox(|platform, _| async move {
        let (mut t, text) = load_text(&*platform, yielding()).await;
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!(t.regs().orig_rax, 24);
        patch_here(&t, &text);
        for _ in 0..100 {
            assert_eq!(answer(&mut t, 0).await, Trap::Syscall, "{:x?}", t.regs());
            assert!(!trapped(&t));
        }
        platform.set_native_futex(true, false);
        t.regs_mut().rax = 0;
        let stopper = Stopper::new(&t);
        let mut last = t.regs().r12;
        let mut how = Enter::Return;
        for _ in 0..1_000 {
            assert_eq!(enter(&mut t, how).await, Trap::Interrupted, "{:x?}", t.regs());
            how = Enter::Full;
            let at = t.regs().rip.wrapping_sub(CODE);
            assert!((AT..AT + yielding().len() as u64).contains(&at), "{:x?}", t.regs());
            assert!(t.regs().r12 >= last);
            last = t.regs().r12;
        }
        drop(stopper);
        assert!(last > 1000, "{last}");
        // A filtered thread traps for every call.
        t.local_answers().filtered(true);
        let mut trap = enter(&mut t, how).await;
        if trap == Trap::Interrupted {
            // The stopper's last interrupt, sent when it had been told to stop.
            trap = enter(&mut t, Enter::Full).await;
        }
        assert_eq!(trap, Trap::Syscall);
        assert_eq!((t.regs().orig_rax, trapped(&t)), (24, false));
    });
}

guest_code!(
    own_gs,
    "2: mov eax, 39",
    "syscall",
    "mov ebx, eax",
    "mov eax, 102",
    "inc r12",
    "syscall",
    "cmp rax, -4095",
    "jmp 2b",
);

#[test]
fn guests_with_a_gs_of_their_own() {
    sandbox(|platform, _| async move {
        for gs in [DATA, 0, 0x6666_0000] {
            let (mut t, text) = load_text(&*platform, own_gs()).await;
            assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
            patch_here(&t, &text);
            assert_eq!(answer(&mut t, 1).await, Trap::Syscall);
            patch_here(&t, &text);
            assert_eq!(answer(&mut t, 1).await, Trap::Syscall);
            assert_eq!((trapped(&t), t.gs_base()), (false, 0));
            t.queue(Op::SetGs(gs));
            for i in 0..20 {
                assert_eq!(answer(&mut t, i).await, Trap::Syscall);
                assert!(trapped(&t) && t.gs_base() == gs, "{gs:x} {:x}", t.gs_base());
                assert_eq!(t.regs().orig_rax, if i % 2 == 0 { 102 } else { 39 });
                let at = t.regs().rip.wrapping_sub(CODE);
                assert!((AT..AT + 64).contains(&at), "{:x?}", t.regs());
                assert_eq!(t.regs().rbx, if i % 2 == 0 { i } else { i - 1 });
            }
            // The child has the same GS.
            let mut child = fork(&mut t).await;
            assert_eq!(answer(&mut child, 0).await, Trap::Syscall);
            assert_eq!(child.gs_base(), gs);
        }
    });
}

#[test]
fn fork_handshakes_by_a_patched_call() {
    sandbox(|platform, _| async move {
        let (mut t, text) = load_text(&*platform, own_gs()).await;
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        patch_here(&t, &text);
        assert_eq!(answer(&mut t, 1).await, Trap::Syscall);
        patch_here(&t, &text);
        for round in 0..50 {
            assert_eq!(answer(&mut t, 1).await, Trap::Syscall);
            assert!(!trapped(&t));
            let mut child = fork(&mut t).await;
            let mut sister = thread(&mut t, Some(0x5000)).await;
            for (i, c) in [&mut child, &mut sister].into_iter().enumerate() {
                assert_eq!(*c.regs(), *t.regs());
                c.regs_mut().rax = 0;
                c.regs_mut().rsp -= 64 * i as u64;
                assert_eq!(enter(c, Enter::Full).await, Trap::Syscall, "{round}");
                assert!(!trapped(c), "{round} {i}");
                for _ in 0..3 {
                    assert_eq!(answer(c, 9).await, Trap::Syscall);
                    assert!(!trapped(c));
                }
                assert_eq!(c.fs_base(), if i == 1 { 0x5000 } else { 0 });
            }
            drop(child);
            drop(sister);
        }
    });
}

guest_code!(vectors, "mov rax, 0x1234", "movq xmm5, rax", "2: mov eax, 39", "syscall", "movq r13, xmm5", "jmp 2b",);

#[test]
fn an_answer_may_need_a_frame() {
    sandbox(|platform, _| async move {
        let (mut t, text) = load_text(&*platform, vectors()).await;
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        patch_here(&t, &text);
        assert_eq!(answer(&mut t, 1).await, Trap::Syscall);
        for _ in 0..100 {
            assert!(!trapped(&t));
            // As for a signal handler: the state is saved and reset, …
            t.queue(Op::SaveFp { addr: DATA + 0x1000 });
            assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
            assert_eq!((t.regs().r13, trapped(&t)), (0, false));
            // … in the kernel's format, …
            let mut saved = vec![0; platform.fp_state_size()];
            t.address_space().read(DATA + 0x1000, &mut saved).unwrap();
            let word = |at: usize| u32::from_le_bytes(saved[at..at + 4].try_into().unwrap());
            assert_eq!((word(464), word(160 + 5 * 16), word(512) & 3), (0x4650_5853, 0x1234, 3));
            assert_eq!(word(word(480) as usize), 0x4650_5845);
            // … and restored.
            t.queue(Op::RestoreFp { addr: DATA + 0x1000 });
            assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
            assert_eq!((t.regs().r13, trapped(&t)), (0x1234, false));
        }
    });
}

guest_code!(
    waiting,
    "2: lea rdi, [rip + 4f]",
    "mov esi, 128",
    "xor edx, edx",
    "xor r10d, r10d",
    "mov eax, 202",
    "syscall",
    "mov rbx, rax",
    "mov eax, 39",
    "syscall",
    "jmp 2b",
    "4: .long 0",
);

#[test]
fn futex_waits_by_a_patched_call_end_with_an_interrupt() {
    sandbox(|platform, executor| async move {
        platform.set_native_futex(true, false);
        let (mut t, text) = load_text(&*platform, waiting()).await;
        // The call traps, and the stub makes it when the Sentry says so.
        t.local_answers().filtered(true);
        assert_eq!(enter(&mut t, Enter::Full).await, Trap::Syscall);
        assert_eq!(t.regs().orig_rax, 202);
        patch_here(&t, &text);
        let call = *t.regs();
        let interrupter = t.interrupter();
        for round in 0..200 {
            let filtered = round % 2 == 0;
            t.local_answers().filtered(filtered);
            if round > 0 {
                // Once more from the beginning.
                t.regs_mut().rip = call.rip - 2 - 5;
                let r = t.regs_mut();
                (r.rdi, r.rsi, r.rdx, r.r10) = (call.rdi, call.rsi, call.rdx, call.r10);
                t.enter(Enter::Full);
                if filtered {
                    assert_eq!(trap(&mut t).await, Trap::Syscall);
                    assert_eq!((t.regs().orig_rax, trapped(&t)), (202, false));
                    t.enter(Enter::Native);
                }
            } else {
                t.enter(Enter::Native);
            }
            if round % 3 != 0 {
                sleep(&executor, 200_000 * (round % 4)).await;
            }
            interrupter.interrupt();
            assert_eq!(trap(&mut t).await, Trap::Interrupted);
            let r = t.regs();
            // Before the call, or cut short in it.
            if r.orig_rax == 202 {
                assert_eq!((r.rip, r.rdi), (call.rip, call.rdi));
            } else {
                assert!(r.rip >= CODE + AT && r.rip <= call.rip, "{r:x?}");
            }
        }
    });
}

async fn sleep(executor: &Arc<platform::Executor>, ns: u64) {
    let until = platform::executor::now_ns() + ns;
    let mut timer = None;
    std::future::poll_fn(|cx| {
        if platform::executor::now_ns() >= until {
            return std::task::Poll::Ready(());
        }
        timer = Some(executor.timer(until, cx.waker().clone()));
        std::task::Poll::Pending
    })
    .await
}
