//! The seccomp filter of every stub, zygote included: it makes hostile code in a guest's process harmless.
//!
//! Assume an attacker that jumps to any `syscall` instruction of the stub with registers of its choice, on several
//! threads at once. The address of the instruction proves nothing about intent. It only separates the guest's own
//! calls (always trapped) from those where the arguments decide. So each rule must be safe by its arguments alone:
//!
//! | call | allowed | what the attacker gains |
//! |---|---|---|
//! | `mmap` | `MAP_FIXED`, range below `GUEST_MAX`, plain flags | memory; files only by descriptors given for mapping |
//! | `mmap` | the hand-off area at its one place | nothing: it has no descriptor of another area |
//! | `munmap mprotect mremap msync madvise` | ranges below `GUEST_MAX`; harmless advice | its own memory |
//! | `madvise` | `DONTFORK` on the area | nothing |
//! | `futex` | wait, wake, requeue | the rights of any program on its own memory |
//! | `futex_waitv` | always | the same: it only waits |
//! | `clone` | the exact flags of a fork or of a thread | more of itself (unrequested forks: `strays.rs`) |
//! | `recvmsg` | on the control socket | descriptors meant for this process |
//! | `write` | 8 bytes to a doorbell | wakes the Sentry |
//! | `close` | descriptors above the fixed ones, and the area's | nothing |
//! | `sigaltstack rt_sigreturn rt_sigprocmask` | always | interrupts do not reach it |
//! | `exit exit_group` | always | its own end |
//! | `getcpu` | always | nothing beyond the vDSO |
//! | `clock_gettime` | the calling thread's processor time, to below `GUEST_MAX` | little beyond `rdtsc` |
//! | `getrusage` | of this process or thread, to below `GUEST_MAX` | the host's accounting of itself |
//! | `rseq` | an area below `GUEST_MAX` | a jump that it could make itself |
//! | `sched_yield` | always | less processor time |
//! | `seccomp` | the second filter, for the whole process | more of its calls trap |
//! | `set_tid_address` | below `GUEST_MAX` | a word of its own memory is cleared when a thread exits |
//! | `prctl` | `PR_SET_PDEATHSIG, SIGKILL` | its own end |
//! | `membarrier` | `GLOBAL`, `PRIVATE_EXPEDITED` and its registration | barriers for its own threads |
//! | fork handshake | passed to the Sentry | an answer only for a pending token |
//!
//! All other calls trap, as do all calls of the i386 and x32 tables.
//!
//! # `sched_yield` from anywhere
//! The guest's own `sched_yield` passes, too, unless all calls must be seen: by its number, before the filter looks
//! at the instruction's address. This gives nothing beyond the stub's own instruction, and the host then answers
//! without running the filter at all (it caches the numbers that pass unconditionally). A guest with a filter of its
//! own needs the call to trap. Its process gets a *strict* filter on top of this one ([`strict_filter`]), which traps
//! the call again. The strict filter is in force before the guest's call that sets its filter returns, for all
//! threads of the process and for all that they create; filters cannot be removed.

use super::abi::*;

/// One BPF instruction (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

const LD_ABS: u16 = 0x20;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const JA: u16 = 0x05;
const ADD_X: u16 = 0x0c;
const TAX: u16 = 0x07;
const RET: u16 = 0x06;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const TRAP: u32 = libc::SECCOMP_RET_TRAP;
const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

const NR: u32 = 0;
const ARCH: u32 = 4;
const IP_LO: u32 = 8;
const IP_HI: u32 = 12;
const ARCH_X86_64: u32 = 0xc000_003e;

const fn arg_lo(i: u32) -> u32 {
    16 + 8 * i
}
const fn arg_hi(i: u32) -> u32 {
    20 + 8 * i
}

/// High half of `GUEST_MAX`; the low half is 0.
const MAX_HI: u32 = (crate::GUEST_MAX >> 32) as u32;
const _: () = assert!(
    MAX_HI + 1 == STUB_HI
        && crate::GUEST_MAX & 0xffff_ffff == 0
        && AREA_SIZE < 1 << 32
        && AREA_BASE >> 32 == STUB_HI as u64
);

/// A sequence of checks that ends in a verdict; a failed check traps. Jumps to the trap are resolved at the end.
#[derive(Default)]
struct Program {
    code: Vec<Insn>,
    /// Instructions whose jump on failure (`true`: on success) leads to the trap.
    fails: Vec<(usize, bool)>,
}

impl Program {
    fn push(&mut self, code: u16, k: u32) -> usize {
        self.code.push(Insn { code, jt: 0, jf: 0, k });
        self.code.len() - 1
    }
    fn load(&mut self, at: u32) {
        self.push(LD_ABS, at);
    }
    /// The accumulator must satisfy the comparison, or the call is trapped.
    fn need(&mut self, cmp: u16, k: u32) {
        let at = self.push(cmp, k);
        self.fails.push((at, false));
    }
    fn need_not(&mut self, cmp: u16, k: u32) {
        let at = self.push(cmp, k);
        self.fails.push((at, true));
    }
    fn need_word(&mut self, i: u32, value: u32) {
        self.load(arg_lo(i));
        self.need(JEQ, value);
    }
    fn need_u64(&mut self, i: u32, value: u64) {
        self.load(arg_hi(i));
        self.need(JEQ, (value >> 32) as u32);
        self.need_word(i, value as u32);
    }
    /// The call must come from the stub's text.
    fn need_text(&mut self, text: &std::ops::Range<u64>) {
        self.load(IP_HI);
        self.need(JEQ, (text.start >> 32) as u32);
        self.load(IP_LO);
        self.need(JGE, text.start as u32);
        self.need_not(JGT, text.end as u32);
    }
    /// `arg[a] + arg[l]` must stay below the stub, in 32-bit arithmetic: hi(a), hi(l) and their sum are below MAX_HI.
    /// The low halves, rounded up to a page, add at most 2^33, so the range ends at `MAX_HI + 1` (the stub's first
    /// page) at most; the 4 GiB between `GUEST_MAX` and there are unused.
    fn need_guest_range(&mut self, a: u32, l: u32) {
        self.load(arg_hi(a));
        self.need_not(JGE, MAX_HI);
        self.push(TAX, 0);
        self.load(arg_hi(l));
        self.need_not(JGE, MAX_HI);
        self.push(ADD_X, 0);
        self.need_not(JGE, MAX_HI);
    }
    fn verdict(&mut self, k: u32) {
        self.push(RET, k);
    }
    /// Runs `rule` if the call number (which stays in the accumulator) is `nr`; the rule must end in a verdict.
    fn on(&mut self, nr: libc::c_long, rule: impl FnOnce(&mut Program)) {
        let skip = self.push(JEQ, nr as u32);
        let over = self.push(JA, 0);
        self.code[skip].jf = 0;
        self.code[skip].jt = 1;
        rule(self);
        self.code[over].k = (self.code.len() - over - 1) as u32;
    }
    /// If argument `i` is `value`, runs `rule`, which must end in a verdict; otherwise falls through.
    fn if_arg(&mut self, i: u32, value: u64, rule: impl FnOnce(&mut Program)) {
        self.load(arg_hi(i));
        let first = self.push(JEQ, (value >> 32) as u32);
        self.load(arg_lo(i));
        let second = self.push(JEQ, value as u32);
        rule(self);
        let end = self.code.len();
        self.code[first].jf = (end - first - 1) as u8;
        self.code[second].jf = (end - second - 1) as u8;
    }
    /// Resolves jumps to the trap. A jump reaches 255 instructions only, so each check uses the next trap verdict.
    fn finish(mut self) -> Vec<Insn> {
        self.verdict(TRAP);
        let traps: Vec<usize> =
            self.code.iter().enumerate().filter(|(_, i)| i.code == RET && i.k == TRAP).map(|(at, _)| at).collect();
        for (at, on_true) in std::mem::take(&mut self.fails) {
            // A trap verdict always follows; `stub_filter` places them close enough.
            let target = traps.iter().copied().find(|t| *t > at).unwrap_or(self.code.len() - 1);
            let jump = u8::try_from(target - at - 1).unwrap_or(u8::MAX);
            debug_assert_eq!(usize::from(jump), target - at - 1);
            if on_true {
                self.code[at].jt = jump;
            } else {
                self.code[at].jf = jump;
            }
        }
        self.code
    }
}

/// `MAP_SHARED | PRIVATE | ANONYMOUS | NORESERVE | POPULATE | LOCKED` beside `MAP_FIXED`.
const MAP_ALLOWED: u32 = 0x1 | 0x2 | 0x20 | 0x4000 | 0x8000 | 0x2000 | 0x10;

/// `SECCOMP_FILTER_FLAG_TSYNC | SPEC_ALLOW | TSYNC_ESRCH`.
pub(super) const STRICT_FLAGS: u32 = 1 | 4 | 16;

/// On top of [`stub_filter`]: traps `sched_yield` that does not come from the stub.
pub fn strict_filter(text: std::ops::Range<u64>) -> Vec<Insn> {
    let mut p = Program::default();
    p.load(NR);
    p.on(libc::SYS_sched_yield, |p| {
        p.need_text(&text);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    p.verdict(ALLOW);
    p.finish()
}

/// The filter for stubs whose text is `text`; with `yields`, the guest's own `sched_yield` passes.
pub fn stub_filter(text: std::ops::Range<u64>, yields: bool) -> Vec<Insn> {
    let mut p = Program::default();
    p.load(ARCH);
    p.need(JEQ, ARCH_X86_64);
    if yields {
        p.load(NR);
        p.on(libc::SYS_sched_yield, |p| p.verdict(ALLOW));
    }
    p.need_text(&text);
    p.load(NR);
    // The most frequent first.
    if !yields {
        p.on(libc::SYS_sched_yield, |p| p.verdict(ALLOW));
    }
    p.on(libc::SYS_rt_sigreturn, |p| p.verdict(ALLOW));
    p.on(libc::SYS_futex, |p| {
        p.load(arg_lo(1));
        // Apart from FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME: no PI operations, nothing newer.
        p.need_not(JSET, !(0x180 | 0xf));
        for wanted in FUTEX_OPS {
            for flags in [0, 0x80, 0x100, 0x180] {
                let at = p.push(JEQ, wanted | flags);
                p.code[at].jf = 1;
                p.verdict(ALLOW);
            }
        }
        p.verdict(TRAP);
    });
    p.on(libc::SYS_write, |p| {
        p.load(arg_lo(0));
        p.need(JGE, DOORBELL_FD as u32);
        p.need_not(JGE, DOORBELLS_FD as u32 + DOORBELLS);
        p.need_u64(2, 8);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    p.on(libc::SYS_mmap, |p| {
        p.if_arg(0, AREA_BASE, |p| {
            p.need_u64(1, AREA_SIZE);
            p.need_word(2, 3);
            p.need_word(3, 0x11);
            p.verdict(ALLOW);
            p.verdict(TRAP);
        });
        p.load(arg_lo(3));
        p.need(JSET, 0x10);
        p.need_not(JSET, !MAP_ALLOWED);
        p.need_guest_range(0, 1);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    for nr in [libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_msync] {
        p.on(nr, |p| {
            p.need_guest_range(0, 1);
            p.verdict(ALLOW);
            p.verdict(TRAP);
        });
    }
    p.on(libc::SYS_madvise, |p| {
        p.if_arg(0, AREA_BASE, |p| {
            p.need_u64(1, AREA_SIZE);
            p.need_word(2, libc::MADV_DONTFORK as u32);
            p.verdict(ALLOW);
            p.verdict(TRAP);
        });
        p.need_guest_range(0, 1);
        p.load(arg_lo(2));
        p.need_not(JGT, 25);
        // Page sharing and reclaim affect, or disclose, more than this process.
        for refused in [libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE, libc::MADV_COLD, libc::MADV_PAGEOUT] {
            p.need_not(JEQ, refused as u32);
        }
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    p.on(libc::SYS_mremap, |p| {
        // Moves only to a given place, or stays: MREMAP_MAYMOVE alone would let the kernel choose.
        p.need_guest_range(0, 1);
        p.need_guest_range(0, 2);
        p.if_arg(3, 0, |p| p.verdict(ALLOW));
        p.load(arg_lo(3));
        p.need(JSET, libc::MREMAP_MAYMOVE as u32);
        p.need(JSET, libc::MREMAP_FIXED as u32);
        p.need_not(JSET, !(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP) as u32);
        p.need_guest_range(4, 2);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    // Barriers affect the memory accesses of this process's threads alone; GLOBAL (1) makes only the caller wait.
    p.on(libc::SYS_membarrier, |p| {
        p.need_u64(1, 0);
        for command in [1, 8, 16] {
            p.if_arg(0, command, |p| p.verdict(ALLOW));
        }
        p.verdict(TRAP);
    });
    p.on(libc::SYS_getcpu, |p| p.verdict(ALLOW));
    p.on(libc::SYS_futex_waitv, |p| p.verdict(ALLOW));
    p.on(libc::SYS_set_tid_address, |p| {
        p.load(arg_hi(0));
        p.need_not(JGE, MAX_HI);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    p.on(libc::SYS_clock_gettime, |p| {
        p.need_word(0, libc::CLOCK_THREAD_CPUTIME_ID as u32);
        p.load(arg_hi(1));
        p.need_not(JGE, MAX_HI);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    p.on(libc::SYS_getrusage, |p| {
        p.load(arg_hi(1));
        p.need_not(JGE, MAX_HI);
        for who in [libc::RUSAGE_SELF, libc::RUSAGE_THREAD] {
            p.if_arg(0, who as u64, |p| p.verdict(ALLOW));
        }
        p.verdict(TRAP);
    });
    // When it preempts the thread the host reads the area, and continues at an address named there: the thread could
    // have jumped there itself.
    p.on(libc::SYS_rseq, |p| {
        p.need_guest_range(0, 1);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    p.on(libc::SYS_clone, |p| {
        p.if_arg(0, FORK_FLAGS.into(), |p| p.verdict(ALLOW));
        p.need_u64(0, THREAD_FLAGS.into());
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    p.on(libc::SYS_recvmsg, |p| {
        p.need_word(0, CTL_FD as u32);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    p.on(libc::SYS_close, |p| {
        p.load(arg_lo(0));
        p.need(JGE, AREA_FD as u32);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    for nr in [libc::SYS_rt_sigprocmask, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_sigaltstack] {
        p.on(nr, |p| p.verdict(ALLOW));
    }
    p.on(libc::SYS_prctl, |p| {
        p.need_word(0, libc::PR_SET_PDEATHSIG as u32);
        p.need_u64(1, libc::SIGKILL as u64);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    // The program lies in memory that this process can only read.
    p.on(libc::SYS_seccomp, |p| {
        p.need_word(0, libc::SECCOMP_SET_MODE_FILTER);
        p.need_word(1, STRICT_FLAGS);
        p.need_u64(2, STRICT_AT);
        p.verdict(ALLOW);
        p.verdict(TRAP);
    });
    p.on(FORK_HANDSHAKE_NR.into(), |p| p.verdict(NOTIFY));
    p.finish()
}

/// WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET.
const FUTEX_OPS: [u32; 7] = [0, 1, 3, 4, 5, 9, 10];

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: std::ops::Range<u64> = 0x7fff_0000_1000..0x7fff_0000_3000;
    const G: u64 = crate::GUEST_MAX;

    /// An interpreter for the subset of classic BPF that the filter uses.
    fn eval(prog: &[Insn], nr: u32, arch: u32, ip: u64, args: [u64; 6]) -> u32 {
        let mut data = vec![nr, arch, ip as u32, (ip >> 32) as u32];
        for a in args {
            data.extend([a as u32, (a >> 32) as u32]);
        }
        let (mut pc, mut a, mut x) = (0usize, 0u32, 0u32);
        loop {
            let i = prog[pc];
            pc += 1;
            let mut jump = |c: bool| pc += usize::from(if c { i.jt } else { i.jf });
            match i.code {
                LD_ABS => a = data[i.k as usize / 4],
                TAX => x = a,
                ADD_X => a = a.wrapping_add(x),
                JEQ => jump(a == i.k),
                JGT => jump(a > i.k),
                JGE => jump(a >= i.k),
                JSET => jump(a & i.k != 0),
                JA => pc += i.k as usize,
                RET => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }
    fn call(nr: libc::c_long, args: [u64; 6]) -> u32 {
        let (with, without) = (stub_filter(TEXT, true), stub_filter(TEXT, false));
        let verdict = eval(&with, nr as u32, ARCH_X86_64, 0x7fff_0000_1234, args);
        assert_eq!(verdict, eval(&without, nr as u32, ARCH_X86_64, 0x7fff_0000_1234, args));
        verdict
    }

    #[test]
    fn the_guests_own_calls_are_trapped() {
        let (open, closed, strict) = (stub_filter(TEXT, true), stub_filter(TEXT, false), strict_filter(TEXT));
        for nr in 0..600 {
            for ip in [
                0x40_0000,
                0x7fff_0000_0fff,
                0x7fff_0000_3001,
                0x7ffe_0000_1234,
                0xffff_ffff_ff60_0000,
                0x8000_7fff_0000_1234,
            ] {
                let yields = i64::from(nr) == libc::SYS_sched_yield;
                assert_eq!(eval(&closed, nr, ARCH_X86_64, ip, [0; 6]), TRAP);
                assert_eq!(eval(&open, nr, ARCH_X86_64, ip, [0; 6]), if yields { ALLOW } else { TRAP });
                assert_eq!(eval(&strict, nr, ARCH_X86_64, ip, [0; 6]), if yields { TRAP } else { ALLOW });
            }
            for prog in [&open, &closed] {
                assert_eq!(eval(prog, nr, 0x4000_0003, 0x7fff_0000_1234, [0; 6]), TRAP);
                assert_eq!(eval(prog, nr | 0x4000_0000, ARCH_X86_64, 0x7fff_0000_1234, [0; 6]), TRAP);
            }
            assert_eq!(eval(&strict, nr, ARCH_X86_64, 0x7fff_0000_1234, [0; 6]), ALLOW);
        }
    }

    /// The kernel's analysis of a filter, for calls that skip it: the verdict must depend on the number (and
    /// architecture) alone.
    #[test]
    fn a_yield_passes_by_its_number() {
        let prog = stub_filter(TEXT, true);
        let (mut pc, mut a) = (0usize, 0u32);
        loop {
            let i = prog[pc];
            pc += 1;
            match (i.code, i.k) {
                (LD_ABS, NR) => a = libc::SYS_sched_yield as u32,
                (LD_ABS, ARCH) => a = ARCH_X86_64,
                (JEQ, k) => pc += usize::from(if a == k { i.jt } else { i.jf }),
                (JA, k) => pc += k as usize,
                (RET, k) => break assert_eq!(k, ALLOW),
                other => panic!("{other:x?}"),
            }
        }
    }

    #[test]
    fn only_listed_calls_pass() {
        let passing: Vec<i64> = (0..600).filter(|nr| call(*nr, [0; 6]) != TRAP).collect();
        assert_eq!(passing, [10, 11, 14, 15, 24, 25, 26, 28, 60, 98, 131, 202, 218, 231, 309, 334, 449]);
        for nr in [0, 2, 57, 58, 59, 62, 101, 200, 234, 310, 311, 319, 321, 322, 425, 435, 438] {
            assert_eq!(call(nr, [1, 1, 1, 1, 1, 1]), TRAP, "{nr}");
        }
    }

    #[test]
    fn used_time_is_reported_of_the_caller_alone() {
        for who in 0..600 {
            let own = who == libc::CLOCK_THREAD_CPUTIME_ID as u64;
            assert_eq!(call(libc::SYS_clock_gettime, [who, 0x1000, 0, 0, 0, 0]) == ALLOW, own, "{who}");
            assert_eq!(call(libc::SYS_getrusage, [who, 0x1000, 0, 0, 0, 0]) == ALLOW, who < 2, "{who}");
        }
        for at in [G, AREA_BASE, IMAGE_BASE, u64::MAX] {
            assert_eq!(call(libc::SYS_clock_gettime, [3, at, 0, 0, 0, 0]), TRAP);
            assert_eq!(call(libc::SYS_getrusage, [0, at, 0, 0, 0, 0]), TRAP);
        }
        let children = libc::RUSAGE_CHILDREN as i64 as u64;
        assert_eq!(call(libc::SYS_getrusage, [children, 0x1000, 0, 0, 0, 0]), TRAP);
    }

    #[test]
    fn ranges_end_below_the_stub() {
        for nr in [libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_msync, libc::SYS_madvise, libc::SYS_rseq] {
            assert_eq!(call(nr, [0x1000, 0x1000, 0, 0, 0, 0]), ALLOW);
            for (a, l) in [
                (G, 0x1000),
                (IMAGE_BASE, 0x1000),
                (ALT_BASE, 0x1000),
                (0x1000, G),
                (0x1000, u64::MAX),
                (u64::MAX - 0xfff, 0x1000),
                (G - 0x1000, 1 << 32),
                (0x7fff_0000_0000, 0),
                (0xffff_ffff, 0x7ffe_0000_0001),
                (0x4000_0000_0000, 0x4000_0000_0000),
            ] {
                assert_eq!(call(nr, [a, l, 0, 0, 0, 0]), TRAP, "{nr} {a:#x} {l:#x}");
            }
        }
        assert_eq!(call(libc::SYS_munmap, [G - 0x1000, 0x1000, 0, 0, 0, 0]), ALLOW);
        let edges = [
            0,
            1,
            0xfff,
            0xffff_ffff,
            0x1_0000_0000,
            0x7ffd_0000_0000,
            0x7ffd_ffff_ffff,
            G - 1,
            G,
            IMAGE_BASE - 1,
            u64::MAX,
        ];
        for a in edges {
            for l in edges {
                if call(libc::SYS_munmap, [a, l, 0, 0, 0, 0]) == ALLOW {
                    assert!(a + l.next_multiple_of(4096) <= IMAGE_BASE, "{a:#x} {l:#x}");
                }
            }
        }
    }

    #[test]
    fn mappings_are_fixed_and_plain() {
        let m = |a, l, f| call(libc::SYS_mmap, [a, l, 3, f, 5, 0]);
        assert_eq!(m(0x1000, 0x1000, 0x32), ALLOW);
        assert_eq!(m(0x1000, 0x1000, 0x22), TRAP);
        for bad in [0x40000, 0x100, 0x100000, 0x80000] {
            assert_eq!(m(0x1000, 0x1000, 0x32 | bad), TRAP, "{bad:#x}");
        }
        assert_eq!(m(AREA_BASE, AREA_SIZE, 0x11), ALLOW);
        assert_eq!(m(AREA_BASE, AREA_SIZE + 1, 0x11), TRAP);
        assert_eq!(m(AREA_BASE + 0x1000, 0x1000, 0x11), TRAP);
        assert_eq!(m(IMAGE_BASE + 0x1000, 0x1000, 0x32), TRAP);
    }

    #[test]
    fn moves_stay_inside() {
        let r = |a, o, n, f, t| call(libc::SYS_mremap, [a, o, n, f, t, 0]);
        assert_eq!(r(0x1000, 0x1000, 0x2000, 3, 0x10000), ALLOW);
        assert_eq!(r(0x1000, 0x1000, 0x2000, 0, 0), ALLOW);
        assert_eq!(r(0x1000, 0x1000, 0x2000, 1, 0), TRAP);
        assert_eq!(r(0x1000, 0x1000, 0x1000, 7, 0x10000), ALLOW);
        assert_eq!(r(0x1000, 0x1000, 0x1000, 7, IMAGE_BASE), TRAP);
        for bad in [2, 4, 5, 6, 11, 1 << 31] {
            assert_eq!(r(0x1000, 0x1000, 0x1000, bad, 0x10000), TRAP, "{bad}");
        }
        assert_eq!(r(0x1000, 0x1000, 0x2000, 3, IMAGE_BASE), TRAP);
        assert_eq!(r(IMAGE_BASE, 0x1000, 0x1000, 3, 0x10000), TRAP);
        assert_eq!(r(0x1000, 0x1000, G, 0, 0), TRAP);
    }

    #[test]
    fn the_rest_is_exact() {
        assert_eq!(call(libc::SYS_clone, [FORK_FLAGS.into(), 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_clone, [THREAD_FLAGS.into(), 0, 0, 0, 0, 0]), ALLOW);
        for bit in 0..64 {
            assert_eq!(call(libc::SYS_clone, [u64::from(FORK_FLAGS) ^ (1 << bit), 0, 0, 0, 0, 0]), TRAP);
            assert_eq!(call(libc::SYS_clone, [u64::from(THREAD_FLAGS) ^ (1 << bit), 0, 0, 0, 0, 0]), TRAP);
        }
        assert_eq!(call(libc::SYS_recvmsg, [CTL_FD as u64, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_recvmsg, [5, 0, 0, 0, 0, 0]), TRAP);
        assert_eq!(call(libc::SYS_write, [DOORBELL_FD as u64, 0, 8, 0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_write, [DOORBELL_FD as u64 + DOORBELLS as u64, 0, 8, 0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_write, [DOORBELL_FD as u64 + DOORBELLS as u64 + 2, 0, 8, 0, 0, 0]), TRAP);
        assert_eq!(call(libc::SYS_write, [DOORBELL_FD as u64, 0, 9, 0, 0, 0]), TRAP);
        assert_eq!(call(libc::SYS_write, [CTL_FD as u64, 0, 8, 0, 0, 0]), TRAP);
        assert_eq!(call(libc::SYS_close, [CTL_FD as u64, 0, 0, 0, 0, 0]), TRAP);
        assert_eq!(call(libc::SYS_close, [AREA_FD as u64 - 1, 0, 0, 0, 0, 0]), TRAP);
        assert_eq!(call(libc::SYS_close, [AREA_FD as u64, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_prctl, [1, 9, 0, 0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_prctl, [1, 0, 0, 0, 0, 0]), TRAP);
        assert_eq!(call(libc::SYS_prctl, [22, 9, 0, 0, 0, 0]), TRAP);
        assert_eq!(call(libc::SYS_seccomp, [1, STRICT_FLAGS.into(), STRICT_AT, 0, 0, 0]), ALLOW);
        for args in [
            [0, STRICT_FLAGS.into(), STRICT_AT],
            [1, 8, STRICT_AT],
            [1, STRICT_FLAGS.into(), STRICT_AT + 8],
            [1, 4, 0x1000],
        ] {
            assert_eq!(call(libc::SYS_seccomp, [args[0], args[1], args[2], 0, 0, 0]), TRAP);
        }
        assert_eq!(call(FORK_HANDSHAKE_NR.into(), [0; 6]), NOTIFY);
        for op in 0..16u64 {
            let ok = FUTEX_OPS.contains(&(op as u32));
            assert_eq!(call(libc::SYS_futex, [0, op, 0, 0, 0, 0]) == ALLOW, ok);
            assert_eq!(call(libc::SYS_futex, [0, op | 0x80, 0, 0, 0, 0]) == ALLOW, ok);
            assert_eq!(call(libc::SYS_futex, [0, op | 0x200, 0, 0, 0, 0]), TRAP);
        }
    }

    #[test]
    fn jumps_land_inside() {
        for prog in [stub_filter(TEXT, true), stub_filter(TEXT, false), strict_filter(TEXT)] {
            assert!(prog.len() < 4096);
            for (at, i) in prog.iter().enumerate() {
                if matches!(i.code, JEQ | JGT | JGE | JSET) {
                    assert!(at + 1 + usize::from(i.jt.max(i.jf)) < prog.len());
                }
            }
        }
    }
}
