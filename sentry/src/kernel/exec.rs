//! execve(2): finds and reads the program, and moves the task into a fresh address space.
//!
//! The caller's state stays unchanged until the new image is complete in a *new* address space, so errors are
//! simply returned. (A file that becomes unreadable while it is loaded is an error too; Linux would kill the
//! process.)

use super::strings::Strings;
use super::task::Completion;
use super::user_ns::UserNs;
use super::wait::Turn;
use super::{cred, Cred, Task};
use crate::arch::elf::{Elf, Phdr};
use crate::error::{Errno, Result, SysError, SysResult};
use crate::fs::deny::{self, DenyWrite};
use crate::fs::vfs::{self, LookupFlags, Path};
use crate::fs::{Attr, File, MapSource, Timespec};
use crate::mm::io::Dst;
use crate::mm::space::Map;
use crate::mm::text::{is_code, Images, Texts};
use crate::mm::vma::{page_up, Backing, Vma};
use crate::mm::Mm;
use crate::syscalls::Ctx;
use parking_lot::Mutex;
use platform::executor::aside;
use platform::{Enter, GuestThread, Op, Regs, Trap, PAGE_SIZE};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Deepest chain of `#!` interpreters.
const MAX_SCRIPTS: usize = 5;
/// Longest `#!` line that is parsed (`BINPRM_BUF_SIZE`).
const SCRIPT_LINE: usize = 256;
/// Longest single argument (`MAX_ARG_STRLEN`).
pub const MAX_ARG_STRLEN: usize = 32 * 4096;
/// Largest stack mapped if the limit is "unlimited".
const STACK_MAX: u64 = 64 << 20;
const STACK_MIN: u64 = 128 << 10;
/// Above this many strings, or bytes of them, others are served while the stack is made.
const MANY_STRINGS: usize = 1 << 14;
const LONG_STRINGS: usize = 1 << 20;
/// Since Linux 6.3 (`linux/auxvec.h`).
const AT_RSEQ_FEATURE_SIZE: u64 = 27;
const AT_RSEQ_ALIGN: u64 = 28;

/// Personality bits that every execve clears, and those that execve of a program with more rights clears.
const READ_IMPLIES_EXEC: u32 = 0x40_0000;
const PER_CLEAR_ON_SETID: u32 =
    READ_IMPLIES_EXEC | (libc::ADDR_NO_RANDOMIZE | libc::ADDR_COMPAT_LAYOUT | libc::MMAP_PAGE_ZERO) as u32;

/// The program to run.
pub struct Program {
    pub file: Arc<File>,
    /// Name as given, for AT_EXECFN and scripts.
    pub name: Vec<u8>,
    pub argv: Strings,
    pub envp: Strings,
}

/// True for a script without a `#!` line, which execvp(3) and shells run with `/bin/sh`.
pub fn is_bare_script(file: &Arc<File>) -> bool {
    let Ok(head) = read_at(file, 0, 4096) else { return false };
    let line = head.split(|&b| b == b'\n').next().unwrap_or(&[]);
    !head.starts_with(b"\x7fELF") && !head.starts_with(b"#!") && !line.contains(&0)
}

/// A new image.
pub struct Image {
    pub mm: Arc<Mm>,
    /// The thread of a new address space that runs the image; `None`: the caller's thread replaces its own
    /// program, by `ops`.
    pub thread: Option<Box<dyn GuestThread>>,
    ops: Vec<Op>,
    regs: Regs,
    pub cred: Cred,
    /// `AT_SECURE`.
    pub secure: bool,
    /// The caller may read the program.
    pub readable: bool,
    /// Bits of the personality that it does not keep.
    clears: u32,
    pub comm: Vec<u8>,
}

/// Opens a file for execution: a regular file with execute permission.
pub fn open_exec(task: &Task, dirfd: i32, path: &[u8], flags: LookupFlags) -> Result<Arc<File>> {
    let p = vfs::resolve(task, dirfd, path, flags | LookupFlags::WILL_OPEN)?;
    open_path(task, p)
}

fn open_path(task: &Task, p: Path) -> Result<Arc<File>> {
    let attr = p.inode().attr()?;
    if attr.is_symlink() {
        return Err(Errno::ELOOP);
    }
    if !attr.is_file() {
        return Err(Errno::EACCES);
    }
    vfs::perm::permission(&p, &task.cred(), vfs::perm::MAY_EXEC)?;
    if p.forbids(vfs::MountFlags::NOEXEC) {
        return Err(Errno::EACCES);
    }
    let ops = p.inode().clone().open(libc::O_RDONLY)?;
    if !p.inode().volatile() {
        // As open(2) does.
        vfs::perm::permission(&p, &task.cred(), vfs::perm::MAY_EXEC)?;
    }
    Ok(File::new(ops, libc::O_RDONLY, Some(p)))
}

/// Reads `len` bytes at `offset`; fewer at the end of the file.
fn read_at(file: &Arc<File>, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0u8; len];
    let mut done = 0;
    while done < len {
        let mut dst = Dst::kernel(&mut buf[done..]);
        match file.ops.read(file, &mut dst, offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(SysError::Errno(e)) => return Err(e),
            Err(SysError::Restart(_)) => return Err(Errno::EIO),
        }
    }
    buf.truncate(done);
    Ok(buf)
}

/// Follows `#!` lines to a binary and changes the arguments as Linux does.
fn resolve_scripts(task: &Task, prog: &mut Program) -> Result<(Vec<u8>, Option<DenyWrite>)> {
    for _ in 0..=MAX_SCRIPTS {
        let runner = prog.file.path.as_ref().map(deny::deny_write).transpose()?.flatten();
        let head = read_at(&prog.file, 0, 4096)?;
        if !head.starts_with(b"#!") {
            return Ok((head, runner));
        }
        let line = &head[2..head.len().min(SCRIPT_LINE)];
        let end = match line.iter().position(|&b| b == b'\n' || b == 0) {
            Some(e) => e,
            None if head.len() < SCRIPT_LINE => line.len(),
            // A truncated interpreter name must not run another program; truncated arguments are accepted.
            None if line.iter().skip_while(|b| is_blank(b)).any(is_blank) => line.len(),
            None => return Err(Errno::ENOEXEC),
        };
        let mut words = line[..end].splitn(2, |_| false);
        let text = trim(words.next().unwrap_or_default());
        let cut = text.iter().position(is_blank).unwrap_or(text.len());
        let (interp, arg) = (text[..cut].to_vec(), trim(&text[cut..]).to_vec());
        if interp.is_empty() {
            return Err(Errno::ENOEXEC);
        }
        let file = open_exec(task, libc::AT_FDCWD, &interp, LookupFlags::FOLLOW)?;
        match arg.is_empty() {
            true => prog.argv.replace_first(&[&interp, &prog.name]),
            false => prog.argv.replace_first(&[&interp, &arg, &prog.name]),
        }
        prog.file = file;
        prog.name = interp;
    }
    Err(Errno::ELOOP)
}

fn is_blank(b: &u8) -> bool {
    *b == b' ' || *b == b'\t'
}

fn trim(mut s: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = s {
        s = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\r'] = s {
        s = rest;
    }
    s
}

fn host_fd(file: &Arc<File>) -> Result<Arc<OwnedFd>> {
    match file.ops.map(file, false)? {
        MapSource::Host(fd) => Ok(fd),
        MapSource::Anon => Err(Errno::EACCES),
    }
}

/// Maps the segments of one ELF file at `bias`.
fn map_segments(
    elf: &Elf,
    file: &Arc<File>,
    bias: u64,
    map: &mut Map,
    texts: &Texts,
    ops: &mut Vec<Op>,
    zero: &mut Vec<(u64, usize)>,
) -> Result<()> {
    let fd = host_fd(file)?;
    let first = ops.len();
    let mut code = Vec::new();
    for p in elf.loads() {
        code.extend(map_segment(p, file, &fd, bias, map, texts, ops, zero)?);
    }
    let lowest = bias.wrapping_add(elf.extent().0);
    let trampoline = (lowest.saturating_sub(platform::patch::TRAMPOLINE), lowest);
    if trampoline.0 >= platform::GUEST_MIN && map.vmas.range(trampoline.0, trampoline.1).next().is_none() {
        map.vmas.update(lowest, lowest + PAGE_SIZE, |v| v.gap = true);
    }
    // Only when all segments are in place can a trampoline page be placed without a collision.
    for start in code {
        let at = ops[first..].iter().position(|op| matches!(op, Op::MapFile { addr, .. } if *addr == start));
        let Some(at) = at.map(|at| first + at) else { continue };
        let mut op = Some(ops.remove(at));
        let domain = map.images.domain();
        let patched = Images::mapped(map, start, &mut op, domain);
        ops.extend(op);
        ops.extend(patched);
    }
    Ok(())
}

fn map_segment(
    p: &Phdr,
    file: &Arc<File>,
    fd: &Arc<OwnedFd>,
    bias: u64,
    map: &mut Map,
    texts: &Texts,
    ops: &mut Vec<Op>,
    zero: &mut Vec<(u64, usize)>,
) -> Result<Option<u64>> {
    let mut code = None;
    let at = bias.checked_add(p.vaddr).ok_or(Errno::ENOEXEC)?;
    let start = at & !(PAGE_SIZE - 1);
    let pad = at - start;
    let mem_end = page_up(at + p.memsz).ok_or(Errno::ENOEXEC)?;
    if start < platform::GUEST_MIN || mem_end > platform::GUEST_MAX {
        return Err(Errno::ENOEXEC);
    }
    let prot = p.prot();
    let mut anon_from = start;
    map.vmas.remove(start, mem_end);
    if p.filesz > 0 {
        let file_end = page_up(at + p.filesz).ok_or(Errno::ENOEXEC)?;
        let offset = p.offset - pad;
        ops.push(Op::MapFile { addr: start, len: file_end - start, prot, shared: false, file: fd.clone(), offset });
        let text = if is_code(prot, false) { texts.of(file) } else { None };
        code = text.is_some().then_some(start);
        map.vmas.insert(Vma {
            backing: Backing::File { file: file.clone(), fd: fd.clone() },
            offset,
            text,
            ..Map::anon(start, file_end, prot, "")
        });
        anon_from = file_end;
        let tail = (file_end - (at + p.filesz)) as usize;
        if p.memsz > p.filesz && tail > 0 && prot & libc::PROT_WRITE != 0 {
            zero.push((at + p.filesz, tail));
        }
    }
    if mem_end > anon_from {
        ops.push(Op::MapAnon { addr: anon_from, len: mem_end - anon_from, prot, shared: false, flags: 0 });
        map.vmas.insert(Map::anon(anon_from, mem_end, prot, ""));
    }
    Ok(code)
}

/// Cached facts about an executable file.
#[derive(Default)]
struct ProgramInfo {
    /// The file's capabilities and the `ctime` they were read at: every change of them changes the `ctime`.
    caps: Mutex<Option<(Timespec, Option<cred::FileCaps>)>>,
    /// The host has mapped all segments before.
    mapped: AtomicBool,
}

fn known(p: &Path) -> Option<Arc<ProgramInfo>> {
    Some(p.inode().extra()?.get_or_insert(ProgramInfo::default))
}

fn file_caps(p: &Path, attr: &Attr) -> Option<cred::FileCaps> {
    // On volatile inodes the timestamps are too coarse to detect a change.
    let known = if p.inode().volatile() { None } else { known(p) };
    if let Some((_, caps)) = known.as_ref().and_then(|k| *k.caps.lock()).filter(|(t, _)| *t == attr.ctime) {
        return caps;
    }
    let raw = p.inode().get_xattr(b"security.capability").ok();
    let caps = raw.and_then(|raw| cred::FileCaps::parse(&raw));
    if let Some(k) = known {
        *k.caps.lock() = Some((attr.ctime, caps));
    }
    caps
}

fn random_u64() -> u64 {
    let mut b = [0u8; 8];
    platform::aux::random(&mut b);
    u64::from_le_bytes(b)
}

/// Whether the program has rights that its caller lacks.
fn gains(old: &Cred, new: &Cred) -> bool {
    new.euid != old.euid
        || new.egid != old.egid
        || new.fsuid != old.fsuid
        || new.fsgid != old.fsgid
        || new.permitted & !old.permitted != 0
}

/// Whether tasks of other processes share the caller's root, working directory and umask.
fn shares_fs(task: &Task) -> bool {
    let fs = task.fs();
    let tree = task.kernel.tree.lock();
    tree.tasks.values().any(|t| !Arc::ptr_eq(&t.group, &task.group) && Arc::ptr_eq(&t.fs.read(), &fs))
}

/// Whether the program, which gains nothing, may be loaded in the process that `thread` is in. A task that is alone in
/// it can clean it up; that its memory may have been tampered with (the stub's, too) is no harm as long as the program
/// has no right that its caller lacks. What is left in the hand-off area and on the stub's stacks must be no more than
/// the program may read: all programs of the process have had its rights, and others of its user may look into it.
fn can_reuse_mm(task: &Task, thread: &dyn GuestThread, new: &Cred) -> bool {
    let began = task.mm().map().began.clone();
    let same = |c: &Cred| began.as_ref().is_some_and(|b| b.same_rights(c));
    if task.group.dumpable.load(Ordering::SeqCst) != 1 || !same(new) || !same(&task.cred()) {
        return false;
    }
    let sole = task.mm.read().user_count() == 1 && task.tid() == task.group.pid;
    sole && task.group.links.lock().threads.len() == 1 && thread.sole() && thread.gs_base() == 0
}

/// Linux's `ELF_ET_DYN_BASE` on x86-64: base of position-independent programs, without the random part.
const PIE_BASE: u64 = 0x5555_5555_4000;

/// Where a program may be loaded.
pub enum LoadInto<'a> {
    /// The thread's own process, if `can_reuse_mm` allows it.
    Of(&'a dyn GuestThread),
    /// An unused address space.
    Fresh(Box<dyn GuestThread>),
}

/// Loads a program into a fresh address space, or prepares to load it in the caller's.
pub async fn load(task: &Arc<Task>, mut prog: Program, into: LoadInto<'_>) -> Result<Image> {
    if prog.argv.is_empty() {
        // As Linux since 5.18: an empty argv gets one empty string.
        prog.argv.push(b"");
    }
    let (head, runner) = resolve_scripts(task, &mut prog)?;
    let file = prog.file.clone();
    let elf = Elf::parse(&head, &mut |o, n| read_at(&file, o, n))?;
    let interp = match elf.interp() {
        None => None,
        Some(p) => {
            if p.filesz < 2 || p.filesz > 4096 {
                return Err(Errno::ENOEXEC);
            }
            let mut name = read_at(&file, p.offset, p.filesz as usize)?;
            if name.pop() != Some(0) || name.contains(&0) {
                return Err(Errno::ENOEXEC);
            }
            let f = open_exec(task, libc::AT_FDCWD, &name, LookupFlags::FOLLOW)?;
            let _runner = f.path.as_ref().map(deny::deny_write).transpose()?;
            let head = read_at(&f, 0, 4096)?;
            let e = Elf::parse(&head, &mut |o, n| read_at(&f, o, n)).map_err(|e| {
                if e == Errno::ENOEXEC {
                    Errno::ELIBBAD
                } else {
                    e
                }
            })?;
            Some((f, e))
        }
    };
    let old = task.cred();
    let cred::ExecCred { cred: new_cred, secure } = match file.path.as_ref() {
        Some(p) => {
            // Rights come from files of the task's own mounts alone, and of file systems that its user namespace could mount.
            let nosuid = p.forbids(vfs::MountFlags::NOSUID)
                || !task.ns().mnt.has(p.mount())
                || !p.mount().sb().gives_rights_to(&old.user_ns());
            let a = p.inode().attr()?;
            let caps = if cred::depends_on_file_caps(&old, a.mode) { file_caps(p, &a) } else { None };
            let mut file = cred::ExecFile { uid: a.uid, gid: a.gid, mode: a.mode, caps, nosuid, ..Default::default() };
            let new = cred::exec_cred(&old, &file)?;
            // Computed only if needed: `shares_fs` visits every task.
            file.shared = gains(&old, &new.cred) && shares_fs(task);
            if file.shared {
                cred::exec_cred(&old, &file)?
            } else {
                new
            }
        }
        None => cred::ExecCred { cred: (*old).clone(), secure: false },
    };

    let stack_limit = task.limit(libc::RLIMIT_STACK);
    let stack_len = page_up(stack_limit.clamp(STACK_MIN, STACK_MAX)).unwrap_or(STACK_MAX);
    let readable = match &file.path {
        Some(p) => vfs::perm::permission(p, &old, vfs::perm::MAY_READ).is_ok(),
        None => true,
    };
    let clears = if gains(&old, &new_cred) { PER_CLEAR_ON_SETID } else { READ_IMPLIES_EXEC };
    let rights = secure || !readable || gains(&old, &new_cred);
    let mut map = Map::with_stack(stack_len, random_u64());
    map.images = Images::for_program((!rights).then_some(&new_cred));
    map.began = Some(Arc::new(new_cred.clone()));
    let (mut ops, mut zero) = (Vec::new(), Vec::new());
    let texts = &task.kernel.texts;

    let (lo, hi) = elf.extent();
    let bias = if !elf.pie {
        0
    } else if interp.is_some() {
        let align = elf.align();
        ((PIE_BASE + ((random_u64() & 0xfff_ffff) << 12)) & !(align - 1)).wrapping_sub(lo & !(align - 1))
    } else {
        (map.find_room_for_text(hi - lo + elf.align())?.0 & !(elf.align() - 1)).wrapping_sub(lo)
    };
    map_segments(&elf, &file, bias, &mut map, texts, &mut ops, &mut zero)?;
    let entry = bias.wrapping_add(elf.entry);
    let (start, base) = match &interp {
        None => (entry, 0),
        Some((f, e)) => {
            let (ilo, ihi) = e.extent();
            let ibias = if e.pie { map.find_room_for_text(ihi - ilo)?.0.wrapping_sub(ilo) } else { 0 };
            map_segments(e, f, ibias, &mut map, texts, &mut ops, &mut zero)?;
            (ibias.wrapping_add(e.entry), ibias)
        }
    };
    for p in elf.loads() {
        let (s, e) = (bias.wrapping_add(p.vaddr), bias.wrapping_add(p.vaddr + p.filesz));
        if p.flags & 1 != 0 {
            map.code = (if map.code.0 == 0 { s } else { map.code.0.min(s) }, map.code.1.max(e));
        } else if p.flags & 2 != 0 {
            map.data = (s, e);
        }
    }
    // A program without interpreter (a dynamic linker, a static PIE) lies among the mappings, without room
    // for a heap above it: Linux puts its heap at the base of position-independent programs.
    let end = if elf.pie && interp.is_none() { PIE_BASE } else { bias.wrapping_add(hi) };
    map.brk_start = end + ((random_u64() & 0x1fff) << 12);
    map.brk = map.brk_start;
    map.exe = file.path.clone();
    map.runs = runner.map(Arc::new);

    let (bottom, top) = map.stack;
    let prot = libc::PROT_READ | libc::PROT_WRITE | if elf.exec_stack() { libc::PROT_EXEC } else { 0 };
    ops.push(Op::MapAnon { addr: bottom, len: top - bottom, prot, shared: false, flags: libc::MAP_NORESERVE });
    map.vmas.insert(Map::anon(bottom, top, prot, "[stack]"));

    // If the host has mapped the files before, the operations run when the program starts, and a failure then
    // kills it (`run`). Otherwise they run here, before the point of no return, since the host may refuse a
    // file.
    let files = [Some(&file), interp.as_ref().map(|(f, _)| f)].into_iter().flatten();
    let known: Vec<_> = files.map(|f| f.path.as_ref().and_then(known)).collect();
    let tried = known.iter().all(|k| k.as_ref().is_some_and(|k| k.mapped.load(Ordering::Relaxed)));
    // What a stub does not take stays in our memory; one that has not run a program yet takes it.
    let length = prog.argv.bytes().len() + prog.envp.bytes().len();
    let short = length < platform::STAGE_MAX / 2;
    let (mut thread, space) = match into {
        LoadInto::Of(own) if tried && !rights && short && can_reuse_mm(task, own, &new_cred) => {
            let all = (platform::GUEST_MIN, platform::GUEST_MAX - platform::GUEST_MIN);
            ops.insert(0, Op::Unmap { addr: all.0, len: all.1 });
            ops.push(Op::RestoreFp { addr: 0 });
            (None, own.address_space())
        }
        LoadInto::Of(own) => {
            let new = poll_fn(|cx| task.kernel.platform.poll_new(cx)).await?;
            let space = new.address_space();
            let old = own.address_space().lineage();
            // One that was made by vfork(2) leaves its parent where it is.
            space.set_lineage(if task.mm.read().user_count() == 1 { old } else { old.child() });
            (Some(new), space)
        }
        LoadInto::Fresh(new) => {
            let space = new.address_space();
            (Some(new), space)
        }
    };
    let aux = Aux {
        phdr: bias.wrapping_add(elf.phdr_addr()),
        phnum: elf.phdrs.len() as u64,
        base,
        entry,
        secure,
        vdso: space.vdso().map(|v| v.0),
        cred: &new_cred,
    };
    let many = prog.argv.len() + prog.envp.len() > MANY_STRINGS
        || prog.argv.bytes().len() + prog.envp.bytes().len() > LONG_STRINGS;
    if many {
        task.kernel.executor.calm().await;
    }
    let mut content = || stack_content(&mut map, &prog, &aux);
    let (sp, bytes) = if many { aside(content) } else { content() }?;
    if let Some(thread) = thread.as_mut().filter(|_| !tried) {
        for op in ops.drain(..) {
            thread.queue(op);
        }
        thread.enter(Enter::Stay);
        match poll_fn(|cx| thread.poll_trap(cx)).await {
            Trap::OpsDone => {}
            Trap::OpFailed { errno, .. } => return Err(errno),
            t => {
                log::debug!("unexpected trap while loading a program: {t:?}");
                return Err(Errno::ENOMEM);
            }
        }
        for k in known.into_iter().flatten() {
            k.mapped.store(true, Ordering::Relaxed);
        }
    }
    ops.extend(zero.into_iter().map(|(addr, n)| Op::CopyOut { addr, data: vec![0; n] }));
    ops.push(Op::CopyOut { addr: sp, data: bytes });
    ops.push(Op::SetFs(0));
    let regs = Regs { rip: start, rsp: sp, eflags: 0x202, orig_rax: u64::MAX, ..Regs::default() };
    let base_name = prog.name.rsplit(|&b| b == b'/').next().unwrap_or_default();
    let comm = base_name[..base_name.len().min(15)].to_vec();
    if let Some(thread) = &mut thread {
        prepare(&mut **thread, std::mem::take(&mut ops), regs);
    }
    let mm = Mm::new(space, map);
    mm.end_with_space(&task.kernel);
    Ok(Image { mm, thread, ops, regs, cred: new_cred, secure, readable, clears, comm })
}

/// Sets the thread's first operations and its registers.
fn prepare(thread: &mut dyn GuestThread, ops: Vec<Op>, regs: Regs) {
    for op in ops {
        thread.queue(op);
    }
    *thread.regs_mut() = regs;
}

struct Aux<'a> {
    phdr: u64,
    phnum: u64,
    base: u64,
    entry: u64,
    secure: bool,
    vdso: Option<u64>,
    cred: &'a Cred,
}

/// Start address and bytes of the initial stack (System V ABI, "Initial Stack and Register State").
fn stack_content(map: &mut Map, prog: &Program, aux: &Aux<'_>) -> Result<(u64, Vec<u8>)> {
    let (bottom, top) = map.stack;
    let (arg_len, env_len) = (prog.argv.bytes().len(), prog.envp.bytes().len());
    let pointers = (prog.argv.len() + prog.envp.len() + 2 + 1 + 2 * 24) * 8;
    // At most a quarter of the stack (execve(2), "Limits").
    if arg_len + env_len + pointers > ((top - bottom) / 4) as usize {
        return Err(Errno::E2BIG);
    }
    // From the top down: 8 zero bytes, the file name, the environment, the arguments, the platform's name,
    // random bytes.
    let name_at = top - 8 - (prog.name.len() as u64 + 1);
    let env_at = name_at - env_len as u64;
    let arg_at = env_at - arg_len as u64;
    let platform_at = (arg_at & !15) - 16;
    let random_at = platform_at - 16;
    let mut random = [0u8; 16];
    platform::aux::random(&mut random);
    let mut auxv: Vec<u64> = Vec::new();
    let mut put = |k: u64, v: u64| auxv.extend([k, v]);
    if let Some(v) = aux.vdso {
        put(libc::AT_SYSINFO_EHDR, v);
    }
    put(51, platform::aux::auxval(51).max(2048));
    put(libc::AT_HWCAP, platform::aux::auxval(libc::AT_HWCAP));
    put(libc::AT_PAGESZ, PAGE_SIZE);
    put(libc::AT_CLKTCK, 100);
    put(libc::AT_PHDR, aux.phdr);
    put(libc::AT_PHENT, 56);
    put(libc::AT_PHNUM, aux.phnum);
    put(libc::AT_BASE, aux.base);
    put(libc::AT_FLAGS, 0);
    put(libc::AT_ENTRY, aux.entry);
    let ns = &aux.cred.user_ns;
    put(libc::AT_UID, u64::from(ns.uid_out(aux.cred.uid)));
    put(libc::AT_EUID, u64::from(ns.uid_out(aux.cred.euid)));
    put(libc::AT_GID, u64::from(ns.gid_out(aux.cred.gid)));
    put(libc::AT_EGID, u64::from(ns.gid_out(aux.cred.egid)));
    put(libc::AT_SECURE, u64::from(aux.secure));
    put(libc::AT_RANDOM, random_at);
    put(libc::AT_HWCAP2, platform::aux::auxval(libc::AT_HWCAP2));
    put(libc::AT_EXECFN, name_at);
    put(libc::AT_PLATFORM, platform_at);
    for rseq in [AT_RSEQ_FEATURE_SIZE, AT_RSEQ_ALIGN] {
        // The host fills the area.
        match platform::aux::auxval(rseq) {
            0 => {}
            v => put(rseq, v),
        }
    }
    put(libc::AT_NULL, 0);
    let words = 1 + prog.argv.len() + 1 + prog.envp.len() + 1 + auxv.len();
    let sp = (random_at - words as u64 * 8) & !15;
    let mut b = vec![0u8; (top - sp) as usize];
    let mut at = 0;
    let mut word = |v: u64| {
        b[at..at + 8].copy_from_slice(&v.to_le_bytes());
        at += 8;
    };
    word(prog.argv.len() as u64);
    let mut s = arg_at;
    for a in prog.argv.iter() {
        word(s);
        s += a.len() as u64;
    }
    word(0);
    s = env_at;
    for e in prog.envp.iter() {
        word(s);
        s += e.len() as u64;
    }
    word(0);
    for v in &auxv {
        word(*v);
    }
    let mut text = |addr: u64, data: &[u8]| {
        let o = (addr - sp) as usize;
        b[o..o + data.len()].copy_from_slice(data);
    };
    text(random_at, &random);
    text(platform_at, b"x86_64\0");
    text(arg_at, prog.argv.bytes());
    text(env_at, prog.envp.bytes());
    text(name_at, &prog.name);
    map.args = (arg_at, env_at);
    map.env = (env_at, name_at);
    map.auxv = auxv;
    map.start_stack = sp;
    Ok((sp, b))
}

/// execve(2)/execveat(2) of the calling task.
pub async fn execve(cx: &mut Ctx<'_>, file: Arc<File>, name: Vec<u8>, argv: Strings, envp: Strings) -> SysResult {
    let task = cx.task.clone();
    let guard = super::exec_guard::hold(&task).await?;
    let image = load(&task, Program { file, name, argv, envp }, LoadInto::Of(&*cx.thread)).await?;
    // The task may take over the thread group leader's id.
    let tid = task.tid();
    // The point of no return: the other threads end.
    de_thread(&task).await?;
    if image.thread.is_some() && task.mm.read().user_count() == 1 {
        crate::time::cpu::settle(&task);
    }
    let gains = gains(&task.cred(), &image.cred);
    let own = image.cred.euid == image.cred.uid && image.cred.egid == image.cred.gid && image.readable && !gains;
    if gains && shares_fs(&task) {
        // Tasks that began to share the fs context after the check in `load` are separated from this one.
        let fs = task.fs().lock().clone();
        *task.fs.write() = Arc::new(parking_lot::Mutex::new(fs));
    }
    // A program that cannot be read belongs to the initial namespace, as far as looking into it is concerned.
    *task.group.dump_ns.write() = if image.readable { image.cred.user_ns.clone() } else { UserNs::first() };
    if !own {
        // Before the new memory is visible to other processes.
        task.group.dumpable.store(0, Ordering::SeqCst);
    }
    let old_mm = std::mem::replace(&mut *task.mm.write(), image.mm);
    // Tasks that share the old memory (after vfork) must not wait for operations of a thread that has left.
    old_mm.settled(tid);
    old_mm.user_gone();
    *task.comm.lock() = image.comm;
    {
        // Signal actions are no longer shared, and handlers are reset.
        let mut own = task.group.actions.read().lock().clone();
        own.reset_for_exec();
        *task.group.actions.write() = Arc::new(parking_lot::Mutex::new(own));
    }
    task.change_mask(|s| {
        s.alt = super::signal::AltStack { sp: 0, size: 0, flags: libc::SS_DISABLE };
        if let Some(m) = s.saved_mask.take() {
            s.mask = m;
        }
    });
    // The ctid word belongs to the old memory, which other tasks (vfork) may still use.
    let ctid = task.clear_child_tid.swap(0, Ordering::SeqCst);
    if ctid != 0 && old_mm.user_count() > 0 {
        let mem = crate::mm::UserMem { space: old_mm.space() };
        let _ = mem.write(ctid, &0u32);
    }
    task.robust_list.store(0, Ordering::SeqCst);
    let rseq = task.rseq.lock().undo();
    if gains || image.secure {
        task.pdeathsig.store(0, Ordering::SeqCst);
    }
    task.group.dumpable.store(i32::from(own), Ordering::SeqCst);
    task.attrs.personality.fetch_and(!image.clears, Ordering::Relaxed);
    {
        // Before it has its rights: what its predecessor asked for does not reach it then.
        let mut r = task.group.links.lock();
        r.did_exec = true;
        r.execs += 1;
        r.exit_signal = libc::SIGCHLD;
    }
    *task.cred.write() = Arc::new(image.cred);
    drop(guard);
    // A table shared by CLONE_FILES stays with the other tasks; this one gets a copy.
    let files = task.files();
    let files = if Arc::strong_count(&files) > 2 {
        if files.is_large() {
            task.kernel.executor.room().await;
        }
        let own = files.duplicate();
        *task.files.write() = own.clone();
        own
    } else {
        files
    };
    let (mut from, mut turn) = (Some(0), Turn::new());
    while let Some(at) = from {
        let (gone, next) = files.remove_some(at, |_, e| e.cloexec);
        for f in gone {
            f.ops.on_close(&f, &task);
            drop(f);
            turn.next().await;
        }
        turn.look().await;
        from = next;
    }
    crate::time::on_exec(&task.group);
    let done: Option<Arc<Completion>> = task.vfork_done.lock().take();
    if let Some(v) = done {
        v.complete();
    }
    match image.thread {
        Some(new) => cx.replace = Some(new),
        None => {
            old_mm.space().invalidate_returns();
            if let Some(op) = rseq {
                cx.thread.queue(op);
            }
            prepare(cx.thread, image.ops, image.regs);
            cx.reloads = true;
        }
    }
    Ok(0)
}

/// Ends the other threads of the process and takes over the process's id.
async fn de_thread(task: &Arc<Task>) -> Result<()> {
    let group = &task.group;
    {
        let r = group.links.lock();
        if r.exiting.is_some() {
            return Err(Errno::EINTR);
        }
        if r.threads.len() == 1 && task.tid() == group.pid {
            return Ok(());
        }
        for t in r.threads.iter().filter(|t| !Arc::ptr_eq(t, task)) {
            *t.exec_kill.lock() = Some(0);
            t.killed.store(true, Ordering::SeqCst);
        }
    }
    let others: Vec<Arc<Task>> = group.links.lock().threads.iter().filter(|t| !Arc::ptr_eq(t, task)).cloned().collect();
    for t in &others {
        t.notify();
    }
    let alone = || (group.links.lock().threads.len() == 1).then_some(());
    if task.wait_killable(&group.exit_wait, alone).await.is_err() {
        return Err(Errno::EINTR);
    }
    if task.tid() != group.pid {
        let mut tree = task.kernel.tree.lock();
        let old = task.tid();
        task.take_over_tid(group.pid);
        tree.tasks.insert(group.pid, task.clone());
        tree.remove_task(old);
    }
    Ok(())
}
