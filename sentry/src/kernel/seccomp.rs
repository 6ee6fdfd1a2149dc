//! Seccomp filters that a guest sets for itself (seccomp(2)): classic BPF over the call's number and
//! arguments, run before dispatch. They confine guest programs from each other; the sandbox's own security
//! does not depend on them.

use super::signal::{SigFields, SigInfo};
use super::{exit, send, Task};
use crate::error::{Errno, Result};
use crate::syscalls::Ctx;
use platform::budget::{of_heap, Budget, Charge};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

/// `AUDIT_ARCH_X86_64`.
const ARCH: u32 = 0xc000_003e;
/// Bytes of `struct seccomp_data`.
const DATA_LEN: u32 = 64;
const MEM_WORDS: usize = 16;
/// `BPF_MAXINSNS`, and the limit for all filters of a task together (each counts four more instructions).
const MAX_INSNS: usize = 4096;
const MAX_PATH: usize = (1 << 18) / 8;

pub const RET_KILL_PROCESS: u32 = 0x8000_0000;
pub const RET_KILL_THREAD: u32 = 0;
pub const RET_TRAP: u32 = 0x0003_0000;
pub const RET_ERRNO: u32 = 0x0005_0000;
pub const RET_LOG: u32 = 0x7ffc_0000;
pub const RET_ALLOW: u32 = 0x7fff_0000;
const ACTION: u32 = 0xffff_0000;
const DATA: u32 = 0xffff;
const MAX_ERRNO: u32 = 4095;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Instructions of all programs in the sandbox, 64 MiB of them; a task's list of programs counts too, an instruction each.
static INSNS: LazyLock<Budget> = LazyLock::new(|| Budget::new(of_heap(64 << 20, 2) / size_of::<Insn>() as u64));
/// What a program is beside its instructions.
const PROGRAM_COST: u64 = 12;

/// A checked program: every jump lands inside, the last instruction returns.
pub struct Program(Vec<Insn>, #[allow(dead_code)] Charge);

/// All filters of a task, newest first.
pub struct Filter {
    programs: Vec<Arc<Program>>,
    _charge: Charge,
}

impl Program {
    pub fn check(insns: Vec<Insn>) -> Result<Program> {
        if insns.is_empty() || insns.len() > MAX_INSNS {
            return Err(Errno::EINVAL);
        }
        for (i, n) in insns.iter().enumerate() {
            let room = insns.len() - i - 1;
            let good = match n.code {
                // LD W ABS.
                0x20 => n.k % 4 == 0 && n.k < DATA_LEN,
                // LD, LDX of the length or a constant; RET; NEG; TAX, TXA.
                0x80 | 0x81 | 0x00 | 0x01 | 0x06 | 0x16 | 0x84 | 0x07 | 0x87 => true,
                // ADD, SUB, MUL, AND, OR, XOR, by constant and by X; DIV, LSH, RSH by X.
                0x04 | 0x14 | 0x24 | 0x54 | 0x44 | 0xa4 => true,
                0x0c | 0x1c | 0x2c | 0x5c | 0x4c | 0xac | 0x3c | 0x6c | 0x7c => true,
                0x34 => n.k != 0,
                0x64 | 0x74 => n.k < 32,
                // LD, LDX, ST, STX of scratch memory.
                0x60 | 0x61 | 0x02 | 0x03 => (n.k as usize) < MEM_WORDS,
                0x05 => (n.k as usize) < room,
                // JEQ, JGT, JGE, JSET.
                0x15 | 0x25 | 0x35 | 0x45 | 0x1d | 0x2d | 0x3d | 0x4d => {
                    usize::from(n.jt) < room && usize::from(n.jf) < room
                }
                _ => false,
            };
            if !good {
                return Err(Errno::EINVAL);
            }
        }
        match insns.last().map(|n| n.code) {
            Some(0x06 | 0x16) => {
                let charge = INSNS.take(insns.len() as u64 + PROGRAM_COST).ok_or(Errno::ENOMEM)?;
                Ok(Program(insns, charge))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Runs the program over `struct seccomp_data`, given as words. It terminates, since jumps go forward
    /// only.
    fn run(&self, data: &[u32; 16]) -> u32 {
        let (mut a, mut x) = (0u32, 0u32);
        let mut mem = [0u32; MEM_WORDS];
        let mut pc = 0usize;
        while let Some(n) = self.0.get(pc) {
            pc += 1;
            let source = if n.code & 8 != 0 { x } else { n.k };
            let slot = n.k as usize % MEM_WORDS;
            match n.code {
                0x20 => a = data[(n.k / 4) as usize % 16],
                0x80 => a = DATA_LEN,
                0x81 => x = DATA_LEN,
                0x00 => a = n.k,
                0x01 => x = n.k,
                0x60 => a = mem[slot],
                0x61 => x = mem[slot],
                0x02 => mem[slot] = a,
                0x03 => mem[slot] = x,
                0x06 => return n.k,
                0x16 => return a,
                0x84 => a = a.wrapping_neg(),
                0x07 => x = a,
                0x87 => a = x,
                0x04 | 0x0c => a = a.wrapping_add(source),
                0x14 | 0x1c => a = a.wrapping_sub(source),
                0x24 | 0x2c => a = a.wrapping_mul(source),
                0x34 | 0x3c => match a.checked_div(source) {
                    Some(q) => a = q,
                    None => return 0,
                },
                0x54 | 0x5c => a &= source,
                0x44 | 0x4c => a |= source,
                0xa4 | 0xac => a ^= source,
                0x64 | 0x6c => a = a.wrapping_shl(source),
                0x74 | 0x7c => a = a.wrapping_shr(source),
                0x05 => pc += n.k as usize,
                code => {
                    let taken = match code & 0xf7 {
                        0x15 => a == source,
                        0x25 => a > source,
                        0x35 => a >= source,
                        _ => a & source != 0,
                    };
                    pc += usize::from(if taken { n.jt } else { n.jf });
                }
            }
        }
        RET_KILL_THREAD
    }
}

impl Filter {
    /// The combined result of all filters: the strictest action; among equals that of the newest filter.
    fn verdict(&self, data: &[u32; 16]) -> u32 {
        let mut best = RET_ALLOW;
        for p in &self.programs {
            let r = p.run(data);
            if ((r & ACTION) as i32) < (best & ACTION) as i32 {
                best = r;
            }
        }
        best
    }

    fn cost(&self) -> usize {
        self.programs.iter().map(|p| p.0.len() + 4).sum()
    }

    /// Whether the filters of `other` are the oldest filters of this one.
    fn descends_from(&self, other: Option<&Arc<Filter>>) -> bool {
        let Some(o) = other else { return true };
        let Some(newest) = o.programs.first() else { return true };
        let Some(skip) = self.programs.len().checked_sub(o.programs.len()) else { return false };
        // A program is added once, so what is older than it is the same in all lists that have it.
        self.programs.get(skip).is_some_and(|p| Arc::ptr_eq(p, newest))
    }
}

fn install(task: &Task, filter: &Arc<Filter>) {
    *task.attrs.filters.write() = Some(filter.clone());
    task.attrs.filtered.store(true, Ordering::SeqCst);
}

fn forbid_new_privs(task: &Task) {
    let mut cred = task.cred.write();
    if !cred.no_new_privs {
        *cred = Arc::new(super::Cred { no_new_privs: true, ..(**cred).clone() });
    }
}

/// Copies the parent's filters and `no_new_privs` to a new task. The caller holds the links of the parent's process
/// until a new thread is in them: a filter for all threads is either there already or finds the thread.
pub fn inherit(parent: &Task, child: &Task) {
    let filters = parent.attrs.filters.read().clone();
    *child.attrs.filters.write() = filters;
    child.attrs.filtered.store(parent.attrs.filtered.load(Ordering::SeqCst), Ordering::SeqCst);
    if parent.cred.read().no_new_privs {
        forbid_new_privs(child);
    }
}

/// Adds a filter to the caller, or with `sync` to all threads of its process. `Ok(tid)` other than 0: that
/// thread's filters have diverged from the caller's. With `sync` the caller holds the
/// process's [`exec_guard`](super::exec_guard).
pub fn attach(task: &Arc<Task>, program: Program, sync: bool) -> Result<i32> {
    // Until all have it: no other filter comes in between, and no thread is made.
    let links = task.group.links.lock();
    let old = task.attrs.filters.read().clone();
    let threads = if sync { links.threads.clone() } else { Vec::new() };
    let base = match &old {
        Some(f) => f.clone(),
        None => Arc::new(Filter { programs: Vec::new(), _charge: INSNS.nothing() }),
    };
    if base.cost() + program.0.len() + 4 > MAX_PATH {
        return Err(Errno::ENOMEM);
    }
    for t in threads.iter().filter(|t| !Arc::ptr_eq(t, task)) {
        if t.attrs.strict.load(Ordering::SeqCst) || !base.descends_from(t.attrs.filters.read().as_ref()) {
            return Ok(t.tid());
        }
    }
    let charge = INSNS.take(base.programs.len() as u64 + PROGRAM_COST).ok_or(Errno::ENOMEM)?;
    let mut programs = Vec::with_capacity(base.programs.len() + 1);
    programs.push(Arc::new(program));
    programs.extend(base.programs.iter().cloned());
    let filter = Arc::new(Filter { programs, _charge: charge });
    let no_new_privs = task.cred.read().no_new_privs;
    for t in threads.iter().filter(|t| !Arc::ptr_eq(t, task)) {
        if no_new_privs {
            forbid_new_privs(t);
        }
        install(t, &filter);
    }
    install(task, &filter);
    drop(links);
    for t in threads.iter().filter(|t| !Arc::ptr_eq(t, task)) {
        t.refresh_answers();
    }
    task.refresh_answers();
    Ok(0)
}

/// Runs the filters on a call. `Some`: the call returns this value without being carried out.
pub fn check(cx: &mut Ctx<'_>) -> Option<u64> {
    if cx.task.attrs.strict.load(Ordering::Relaxed) {
        let fine = [libc::SYS_read, libc::SYS_write, libc::SYS_exit, libc::SYS_rt_sigreturn];
        if fine.iter().any(|nr| *nr as u64 == cx.nr) {
            return None;
        }
        cx.exit = Some(exit::signaled(libc::SIGKILL, false));
        return Some(0);
    }
    let filter = cx.task.attrs.filters.read().clone()?;
    let ip = cx.thread.regs().rip;
    let mut data = [0u32; 16];
    data[0] = cx.nr as u32;
    data[1] = ARCH;
    data[2] = ip as u32;
    data[3] = (ip >> 32) as u32;
    for (pair, arg) in data[4..].chunks_exact_mut(2).zip(cx.args) {
        pair[0] = arg as u32;
        pair[1] = (arg >> 32) as u32;
    }
    let verdict = filter.verdict(&data);
    let value = verdict & DATA;
    match verdict & ACTION {
        RET_ALLOW => None,
        RET_LOG => {
            log::info!("[{}] seccomp filter logs call {}", cx.task.tid(), cx.nr);
            None
        }
        RET_ERRNO => Some(i64::from(value.min(MAX_ERRNO)).wrapping_neg() as u64),
        RET_TRAP => {
            let fields = SigFields::Sys { addr: ip, nr: cx.nr as i32 };
            // SYS_SECCOMP; rax keeps the call's number for the handler.
            send::force(cx.task, SigInfo { signo: libc::SIGSYS, errno: value as i32, code: 1, fields });
            Some(cx.nr)
        }
        // RET_TRACE and RET_USER_NOTIF: there is no tracer and no listener.
        0x7ff0_0000 | 0x7fc0_0000 => Some(-i64::from(libc::ENOSYS) as u64),
        action => {
            let status = exit::signaled(libc::SIGSYS, false);
            let alone = cx.task.group.links.lock().threads.len() <= 1;
            if action != RET_KILL_THREAD || alone {
                exit::start_group_exit(&cx.task.group, status, Some(cx.task.tid()));
            }
            cx.exit = Some(status);
            Some(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn i(code: u16, jt: u8, jf: u8, k: u32) -> Insn {
        Insn { code, jt, jf, k }
    }
    fn data(nr: u32) -> [u32; 16] {
        let mut d = [0; 16];
        d[0] = nr;
        d[1] = ARCH;
        d
    }

    #[test]
    fn a_filter_on_the_call_number() {
        let p = Program::check(vec![
            i(0x20, 0, 0, 0),
            i(0x15, 0, 1, 39),
            i(0x06, 0, 0, RET_ERRNO | 1),
            i(0x06, 0, 0, RET_ALLOW),
        ]);
        let p = p.ok().unwrap();
        assert_eq!(p.run(&data(39)), RET_ERRNO | 1);
        assert_eq!(p.run(&data(40)), RET_ALLOW);
    }

    #[test]
    fn bad_programs_are_refused() {
        let bad = |insns| Program::check(insns).err() == Some(Errno::EINVAL);
        assert!(bad(vec![]));
        assert!(bad(vec![i(0x20, 0, 0, 0)]));
        assert!(bad(vec![i(0x20, 0, 0, 64), i(0x06, 0, 0, 0)]));
        assert!(bad(vec![i(0x20, 0, 0, 2), i(0x06, 0, 0, 0)]));
        assert!(bad(vec![i(0x05, 0, 0, 1), i(0x06, 0, 0, 0)]));
        assert!(bad(vec![i(0x05, 0, 0, u32::MAX), i(0x06, 0, 0, 0)]));
        assert!(bad(vec![i(0x15, 1, 0, 1), i(0x06, 0, 0, 0)]));
        assert!(bad(vec![i(0x34, 0, 0, 0), i(0x06, 0, 0, 0)]));
        assert!(bad(vec![i(0x28, 0, 0, 0), i(0x06, 0, 0, 0)]));
        assert!(bad(vec![i(0x60, 0, 0, 16), i(0x06, 0, 0, 0)]));
        assert!(bad(vec![i(0x06, 0, 0, 0); MAX_INSNS + 1]));
    }

    #[test]
    fn programs_have_a_budget() {
        let most = INSNS.left();
        let all = INSNS.take(most).unwrap();
        let program = || Program::check(vec![i(0x06, 0, 0, RET_ALLOW)]);
        assert_eq!(program().err(), Some(Errno::ENOMEM));
        drop(all);
        let p = program().ok().unwrap();
        assert!(INSNS.left() < most);
        drop(p);
    }

    #[test]
    fn the_strictest_action_wins() {
        let ret = |k| Arc::new(Program::check(vec![i(0x06, 0, 0, k)]).ok().unwrap());
        let f = |list: &[u32]| Filter { programs: list.iter().map(|k| ret(*k)).collect(), _charge: INSNS.nothing() };
        assert_eq!(f(&[RET_ALLOW, RET_ERRNO | 5]).verdict(&data(0)), RET_ERRNO | 5);
        assert_eq!(f(&[RET_ERRNO | 6, RET_ERRNO | 5]).verdict(&data(0)), RET_ERRNO | 6);
        assert_eq!(f(&[RET_KILL_THREAD, RET_KILL_PROCESS]).verdict(&data(0)), RET_KILL_PROCESS);
        assert_eq!(f(&[RET_TRAP, RET_KILL_THREAD]).verdict(&data(0)), RET_KILL_THREAD);
    }

    #[test]
    fn arithmetic_does_not_trap() {
        let p = Program::check(vec![i(0x00, 0, 0, 1), i(0x01, 0, 0, 0), i(0x3c, 0, 0, 0), i(0x06, 0, 0, RET_ALLOW)]);
        assert_eq!(p.ok().unwrap().run(&data(0)), RET_KILL_THREAD);
        let p = Program::check(vec![i(0x00, 0, 0, 1), i(0x01, 0, 0, 99), i(0x6c, 0, 0, 0), i(0x16, 0, 0, 0)]);
        p.ok().unwrap().run(&data(0));
    }
}
