//! Which files' code is mapped patched (see [`platform::patch`]), and when.
//!
//! The unit is the file: traps are counted for each file of the sandbox, whichever process they come from. Once they have cost about
//! as much as a copy of the code does, the copy is made, with all sites patched that have trapped so far; from
//! then on every `mmap` and `execve` of the file maps the copy in place of the file's pages. A process that runs already
//! is moved over when it traps at a patched site. Sites that show later are patched in the copy, for all at once, where
//! that is possible while it is in use; for the rest a new copy is made by the same rule.
//!
//! # Believing
//! A trap is the word of a stub, and a hostile one tells of calls where there is none. So a site is patched only if the *file* proves it
//! ([`platform::proof`]), and what is told is kept by [`Domain`]: a record and its copies are for processes that could write each
//! other's memory anyway (`ptrace_may_access`, ptrace(2)). A process that others of its user may not look into (it is not dumpable, its
//! ids differ among each other) or that has a seccomp filter tells nothing; a program that has gained rights by `execve` tells nothing and shows
//! the file's own pages for good. One that changes its credentials goes on with what is mapped, which only those of before can change, and
//! is moved to the copies of its new domain when it is alone in its memory.
//!
//! Only code is replaced that is mapped privately and has never been writable. Before a process changes such a mapping (writable,
//! moved, partly replaced) it gets the file's own pages back: [`Images::retire`]. The trampoline page is not among the VMAs: the
//! guest neither sees it nor is given its place.
//!
//! # Bounds
//! A copy is charged to [`COPIED`] until the last mapping of it is gone, whether or not it is the newest one. The
//! record of a file that has changed makes no copies any more. When there are too many files, records or bytes, files
//! that nothing maps are forgotten.

use super::vma::{Backing, Vma};
use crate::error::{Errno, Result, SysError};
use crate::fs::types::Timespec;
use crate::fs::File;
use crate::kernel::{Cred, Task};
use crate::mm::io::Dst;
use crate::mm::space::Map;
use parking_lot::Mutex;
use platform::budget::{Budget, Charge};
use platform::executor::{aside, now_ns};
use platform::patch::{Outcome, Text, MAX_LEN, TRAMPOLINE};
use platform::proof;
use platform::{Enter, GuestThread, Op, Trap, GUEST_MAX, GUEST_MIN, PAGE_SIZE};
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

/// Files that are kept count of.
const MAX_FILES: usize = 1024;
/// Records of them all together, and of one file.
const MAX_RECORDS: usize = 1024;
const MAX_DOMAINS: usize = 16;
/// Sites of one record that are kept count of.
const MAX_SITES: usize = 1024;
/// Bytes of all copies together, trampoline pages included.
const MAX_COPIED: u64 = 64 << 20;
static COPIED: Budget = Budget::new(MAX_COPIED);
/// Code up to this length is copied whole, more in windows.
const WHOLE: u64 = 2 << 20;
const WINDOW: u64 = 512 << 10;
/// Traps at patched sites after which a process is moved to the copy.
const MOVE_AFTER: u32 = 6;
/// Traps in all before the first copy: a decoder's tables have to be made for it, which costs as much as so many traps. A
/// program that makes fewer calls ends before any of it pays.
const FIRST: u64 = 300;
/// After so many, the tables are made by a thread of their own, so that the first copy finds them.
const PREPARE: u64 = 100;

/// Time that proofs may take: so much at once, and this part of all time. A guest can have each of its sites asked for,
/// in files with tables as long as the bounds allow.
const PROOF_NS: u64 = 300_000_000;
const PROOF_PART: u64 = 16;

/// What a trap counts whose call the stub makes by itself. Patched it costs next to nothing, and not all such traps are told.
const NATIVE: u64 = 6;

/// Identity of a file's contents, as far as attributes tell.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Version {
    size: u64,
    mtime: Timespec,
    ctime: Timespec,
}

/// Processes that could write each other's memory: a dumpable one may be traced by another with the same user, group and capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    uid: u32,
    gid: u32,
    permitted: u64,
}

impl Domain {
    /// `None` if its ids are not the same ones: others may not look into it then. Also in a child user namespace, whose
    /// capabilities are not those of the initial one.
    pub fn of(c: &Cred) -> Option<Domain> {
        let same = [c.euid, c.suid, c.fsuid] == [c.uid; 3] && [c.egid, c.sgid, c.fsgid] == [c.gid; 3];
        (same && c.user_ns.is_initial()).then_some(Domain { uid: c.uid, gid: c.gid, permitted: c.permitted })
    }

    /// That of a task as it is now.
    pub fn now(task: &Task) -> Option<Domain> {
        let open = task.group.dumpable.load(Ordering::Relaxed) == 1;
        Domain::of(&task.cred.read()).filter(|_| open)
    }
}

/// All files that code has been mapped from.
#[derive(Default)]
pub struct Texts {
    pub enabled: bool,
    files: Mutex<HashMap<(u64, u64), Arc<FileText>>>,
    /// As many references as there are records, and one.
    records: Arc<()>,
    /// Counts calls of [`Texts::of`].
    clock: AtomicU64,
    /// Traps in all; counted up to [`FIRST`].
    seen: AtomicU64,
    /// When proofs have taken all the time that they may (a time of [`now_ns`]): later than now by what they owe.
    proofs_until: AtomicU64,
    /// For `--stats`.
    pub copies: AtomicU64,
    pub moves: AtomicU64,
}

/// One file's code.
#[derive(Default)]
pub struct FileText {
    version: Version,
    /// When it was last mapped, by [`Texts::clock`].
    used: AtomicU64,
    /// The file has changed: old mappings may go on, but nothing is copied for them.
    stale: AtomicBool,
    records: Mutex<Vec<(Domain, Arc<Record>)>>,
}

/// What the processes of one domain have told of it.
struct Record {
    state: Mutex<State>,
    _counted: Arc<()>,
}

#[derive(Default)]
struct State {
    /// Traps that a (new) copy would save from now on.
    heat: u64,
    /// Copies made so far: each must be worth more than the one before.
    made: u32,
    /// A thread makes the next one, from what this one is: nothing is patched in this one meanwhile, since a slot of the
    /// trampoline page must belong to the same site in both.
    making: bool,
    /// Threads that patch sites in this one.
    proving: u32,
    /// Offsets of `syscall` instructions, as told.
    sites: HashSet<u64>,
    copy: Option<Arc<Copy>>,
}

/// A patched copy of some of a file's pages.
pub struct Copy {
    text: Text,
    /// Sorted ranges of the file.
    filled: Vec<(u64, u64)>,
    _charge: Charge,
}

/// A copy that is mapped in an address space.
#[derive(Clone)]
struct Image {
    copy: Arc<Copy>,
    file: Arc<FileText>,
    /// Where the first byte of the file is or would be.
    base: u64,
    /// Addresses that show the copy.
    pieces: Vec<(u64, u64)>,
}

impl Image {
    fn trampoline(&self) -> (u64, u64) {
        let start = self.base.wrapping_add_signed(self.copy.text.trampoline());
        (start, start.wrapping_add(TRAMPOLINE))
    }

    /// Operations that give back the file's own pages, except in a range that goes away.
    fn own_pages(&self, map: &Map, gone: Option<(u64, u64)>) -> Vec<Op> {
        let mut ops = Vec::new();
        for (v, s, e) in self.pieces.iter().flat_map(|(s, e)| map.vmas.range(*s, *e).map(move |v| (v, *s, *e))) {
            let (start, end) = (v.start.max(s), v.end.min(e));
            let Backing::File { fd, .. } = &v.backing else { continue };
            let parts = match gone {
                Some(gone) => [(start, end.min(gone.0)), (start.max(gone.1), end)],
                None => [(start, end), (end, end)],
            };
            for (start, end) in parts.into_iter().filter(|(s, e)| s < e) {
                ops.push(Op::MapFile {
                    addr: start,
                    len: end - start,
                    prot: v.prot,
                    shared: false,
                    file: fd.clone(),
                    offset: v.offset + (start - v.start),
                });
            }
        }
        ops
    }
}

/// The copies in an address space.
#[derive(Clone, Default)]
pub struct Images {
    list: Vec<Image>,
    /// Whose copies they are.
    domain: Option<Domain>,
    /// Traps at patched sites by way of the file's own pages.
    missed: u32,
    /// Moving has failed: not tried again.
    fixed: bool,
}

fn meets(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

impl Texts {
    pub fn new(enabled: bool) -> Texts {
        Texts { enabled, ..Texts::default() }
    }

    /// The record of a file that is about to be mapped as code.
    pub fn of(&self, file: &File) -> Option<Arc<FileText>> {
        if !self.enabled {
            return None;
        }
        let attr = file.attr().ok().filter(|a| a.size > 0 && a.size < MAX_LEN)?;
        let version = Version { size: attr.size, mtime: attr.mtime, ctime: attr.ctime };
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut files = self.files.lock();
        if let Some(known) = files.get(&(attr.dev, attr.ino)).filter(|f| f.version == version) {
            known.used.store(now, Ordering::Relaxed);
            return Some(known.clone());
        }
        let crowded = files.len() >= MAX_FILES || Arc::strong_count(&self.records) > MAX_RECORDS;
        let evicted = if crowded { evict(&mut files) } else { Vec::new() };
        if files.len() >= MAX_FILES {
            return None;
        }
        let new = Arc::new(FileText { version, used: now.into(), ..FileText::default() });
        let old = files.insert((attr.dev, attr.ino), new.clone());
        drop(files);
        // Copies go without the lock: that unmaps them.
        drop(evicted);
        old.inspect(|o| o.supersede());
        Some(new)
    }

    /// Room for a copy of `len` bytes, at the cost of files that nothing maps.
    fn charge(&self, len: u64) -> Option<Charge> {
        COPIED.take(len).or_else(|| {
            let evicted = evict(&mut self.files.lock());
            drop(evicted);
            COPIED.take(len)
        })
    }

    /// Whether the sandbox has made so many calls by trap that copies are worth their first cost; `weight` more have come.
    fn ready(&self, weight: u64) -> bool {
        if self.seen.load(Ordering::Relaxed) >= FIRST {
            return true;
        }
        let before = self.seen.fetch_add(weight, Ordering::Relaxed);
        if before < PREPARE && before + weight >= PREPARE {
            // Without it the first copy takes the longer.
            let _ = std::thread::Builder::new().name("decoder".into()).spawn(platform::patch::prepare);
        }
        before + weight >= FIRST
    }

    /// Whether there is time left for a proof.
    fn may_prove(&self) -> bool {
        self.proofs_until.load(Ordering::Relaxed) < now_ns() + PROOF_NS * PROOF_PART
    }

    /// Does the work of a proof, with no lock held and everything else given to another thread; it counts.
    fn proving<R>(&self, f: impl FnOnce() -> R) -> R {
        aside(|| {
            let before = now_ns();
            let result = f();
            let owed = (now_ns() - before) * PROOF_PART;
            let add = |until: u64| Some(until.max(before) + owed);
            let _ = self.proofs_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
            result
        })
    }

    /// A program has started a thread: more calls are likely to follow.
    pub fn threaded(&self) {
        let seen = self.seen.load(Ordering::Relaxed);
        if self.enabled && seen < PREPARE {
            self.ready(PREPARE - seen);
        }
    }

    /// Sites that are patched in the newest copies, for `--stats`.
    pub fn patched(&self) -> usize {
        let files: Vec<_> = self.files.lock().values().cloned().collect();
        let copies = files.iter().flat_map(|f| f.copies());
        copies.map(|c| c.text.patched()).sum()
    }
}

/// Takes out the older half, and one at least, of the files that nothing maps.
fn evict(files: &mut HashMap<(u64, u64), Arc<FileText>>) -> Vec<Arc<FileText>> {
    // Clones are made with the lock held, or of one that something else has: nobody can get one of these meanwhile.
    let mut unused: Vec<_> = files
        .iter()
        .filter(|f| Arc::strong_count(f.1) == 1)
        .map(|(key, f)| (f.used.load(Ordering::Relaxed), *key))
        .collect();
    unused.sort_unstable();
    unused.truncate(unused.len().div_ceil(2));
    unused.iter().filter_map(|(_, key)| files.remove(key)).collect()
}

impl Copy {
    fn len(&self) -> u64 {
        self.filled.iter().map(|(s, e)| e - s).sum()
    }
    fn has(&self, offset: u64) -> bool {
        self.filled.iter().any(|(s, e)| (*s..*e).contains(&offset))
    }
}

/// Reads the file, up to its end; what lies behind stays as it is in the buffer. How many bytes there were.
fn read(file: &Arc<File>, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.ops.read(file, &mut Dst::kernel(&mut buf[done..]), offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(SysError::Errno(e)) => return Err(e),
            Err(SysError::Restart(_)) => return Err(Errno::EIO),
        }
    }
    Ok(done)
}

/// What has to be known of the mapping that trapped.
struct Place {
    file: Arc<File>,
    text: Arc<FileText>,
    /// The mapping, in the file; up to the file's end.
    code: (u64, u64),
    base: u64,
    offset: u64,
}

impl Place {
    fn of(vma: &Vma, site: u64) -> Option<Place> {
        let (Backing::File { file, .. }, Some(text)) = (&vma.backing, &vma.text) else { return None };
        // The file may have grown since: what lies behind its end as it was is not part of a copy.
        let len = text.version.size;
        let offset = vma.offset.checked_add(site.checked_sub(vma.start)?).filter(|o| *o < len)?;
        Some(Place {
            file: file.clone(),
            text: text.clone(),
            code: (vma.offset, (vma.offset + vma.len()).min(len.next_multiple_of(PAGE_SIZE))),
            base: vma.start.checked_sub(vma.offset)?,
            offset,
        })
    }
    /// What is copied around the site.
    fn window(&self) -> (u64, u64) {
        let (start, end) = self.code;
        if end - start <= WHOLE {
            return self.code;
        }
        let w = self.offset / WINDOW * WINDOW;
        (w.max(start), (w + WINDOW).min(end))
    }
}

impl FileText {
    fn record(&self, domain: Domain) -> Option<Arc<Record>> {
        self.records.lock().iter().find(|r| r.0 == domain).map(|r| r.1.clone())
    }

    /// The record for the domain, a new one if there is none yet.
    fn make_record(&self, texts: &Texts, domain: Domain) -> Option<Arc<Record>> {
        if let Some(known) = self.record(domain) {
            return Some(known);
        }
        let mut records = self.records.lock();
        if self.stale.load(Ordering::SeqCst)
            || records.len() >= MAX_DOMAINS
            || Arc::strong_count(&texts.records) > MAX_RECORDS
        {
            return None;
        }
        let new = Arc::new(Record { state: Mutex::default(), _counted: texts.records.clone() });
        records.push((domain, new.clone()));
        Some(new)
    }

    /// The file has changed.
    fn supersede(&self) {
        self.stale.store(true, Ordering::SeqCst);
        // Processes that show a copy keep it.
        let records = std::mem::take(&mut *self.records.lock());
        for (_, record) in records {
            let copy = record.state.lock().copy.take();
            drop(copy);
        }
    }

    fn copies(&self) -> Vec<Arc<Copy>> {
        self.records.lock().iter().filter_map(|r| r.1.state.lock().copy.clone()).collect()
    }
}

/// What the file proves of the sites.
fn prove(file: &Arc<File>, sites: &[u64]) -> Vec<proof::Proof> {
    let mut from = |offset: u64, buf: &mut [u8]| read(file, offset, buf).unwrap_or(0);
    proof::prove(&mut from, sites)
}

impl Copy {
    /// Patches what it can of the sites that were told of.
    fn patch(&self, file: &Arc<File>, sites: &HashSet<u64>, live: bool) {
        let open = |s: &u64| self.has(*s) && matches!(self.text.known(*s), None | Some(Outcome::Later));
        let sites: Vec<u64> = sites.iter().copied().filter(open).collect();
        for (site, proof) in sites.iter().zip(prove(file, &sites)) {
            self.text.patch(*site, &proof, live);
        }
    }
}

/// What is to be done about a trap.
enum Step {
    Nothing,
    /// The site is patched in the newest copy.
    Patched,
    /// Prove the site, and patch it in this copy.
    Prove(Arc<Copy>),
    /// Make a copy.
    Make(Plan),
}

/// What a new copy is made from.
struct Plan {
    old: Option<Arc<Copy>>,
    /// The old one has the site, which could not be patched there.
    wait: bool,
    /// Distance of the first copy's trampoline page.
    trampoline: Option<i64>,
    sites: HashSet<u64>,
    /// For the bytes of the copy.
    charge: Charge,
}

impl Record {
    /// Counts a trap; says what is to be done, for [`Record::act`].
    fn trapped(&self, texts: &Texts, place: &Place, nr: u32, trampoline: impl FnOnce() -> Option<i64>) -> Step {
        let mut state = self.state.lock();
        let state = &mut *state;
        if !state.sites.contains(&place.offset) {
            if state.sites.len() >= MAX_SITES {
                return Step::Nothing;
            }
            state.sites.insert(place.offset);
        }
        let mut wait = false;
        if let Some(copy) = state.copy.as_ref().filter(|c| c.has(place.offset)) {
            match copy.text.known(place.offset) {
                Some(Outcome::Done) => return Step::Patched,
                Some(Outcome::Later) => wait = true,
                None if texts.may_prove() && !state.making => {
                    state.proving += 1;
                    return Step::Prove(copy.clone());
                }
                _ => return Step::Nothing,
            }
        }
        // Those of threads that wait for each other come in crowds; the stub makes them by itself as soon as they are patched.
        let native = matches!(i64::from(nr), libc::SYS_futex | libc::SYS_sched_yield);
        let weight = if native { NATIVE } else { 1 };
        state.heat += weight;
        if !texts.ready(weight) || state.making || state.proving > 0 {
            return Step::Nothing;
        }
        let (start, end) = place.window();
        let price = (16 + (end - start) / (16 << 10)) << state.made.min(16);
        if state.heat < price || !texts.may_prove() {
            return Step::Nothing;
        }
        state.heat = 0;
        let grown = if wait { 0 } else { end - start };
        let len = TRAMPOLINE + state.copy.as_ref().map_or(0, |c| c.len()) + grown;
        // The next try is as many traps away.
        let Some(charge) = texts.charge(len).filter(|_| !place.text.stale.load(Ordering::SeqCst)) else {
            return Step::Nothing;
        };
        state.made += 1;
        state.making = true;
        let old = state.copy.clone();
        let trampoline = if old.is_none() { trampoline() } else { None };
        Step::Make(Plan { old, wait, trampoline, sites: state.sites.clone(), charge })
    }

    /// Does what is to be done, with no lock held: it takes long. True if the site is patched in the newest copy.
    fn act(&self, texts: &Texts, place: &Place, step: Step) -> bool {
        match step {
            Step::Nothing => false,
            Step::Patched => true,
            Step::Prove(copy) => {
                texts.proving(|| copy.patch(&place.file, &HashSet::from([place.offset]), true));
                self.state.lock().proving -= 1;
                copy.text.is_patched(place.offset)
            }
            Step::Make(plan) => {
                let before = plan.old.clone();
                let copy = texts.proving(|| plan.make(place));
                let mut state = self.state.lock();
                state.making = false;
                let same = match (&state.copy, &before) {
                    (Some(now), Some(old)) => Arc::ptr_eq(now, old),
                    (now, old) => now.is_none() && old.is_none(),
                };
                let Some(copy) = copy.filter(|_| same) else { return false };
                texts.copies.fetch_add(1, Ordering::Relaxed);
                let done = copy.text.is_patched(place.offset);
                log::debug!("patched text: {} bytes, {} sites", copy.len(), copy.text.patched());
                state.copy = Some(Arc::new(copy));
                done
            }
        }
    }
}

impl Plan {
    fn make(self, place: &Place) -> Option<Copy> {
        let (start, end) = place.window();
        let made = match (&self.old, self.wait) {
            (Some(old), true) => old.text.successor(&old.filled).ok().map(|t| (t, old.filled.clone())),
            (Some(old), false) => old.text.successor(&old.filled).ok().and_then(|t| {
                let mut filled = old.filled.clone();
                t.fill(start, end - start, |b| read(&place.file, start, b)).ok()?;
                filled.push((start, end));
                filled.sort_unstable();
                Some((t, filled))
            }),
            (None, _) => self.trampoline.and_then(|trampoline| {
                let t = Text::new(place.text.version.size, trampoline).ok()?;
                t.fill(start, end - start, |b| read(&place.file, start, b)).ok()?;
                Some((t, vec![(start, end)]))
            }),
        };
        let (text, filled) = made?;
        let copy = Copy { text, filled, _charge: self.charge };
        copy.patch(&place.file, &self.sites, false);
        Some(copy)
    }
}

/// Where a trampoline page for a file mapped at `base` can be, seen from there: below the lowest mapping that follows on. `beside`: the trampoline pages
/// that are there stay.
fn trampoline_for(map: &Map, vma_start: u64, base: u64, beside: bool) -> Option<i64> {
    let mut low = vma_start;
    while let Some(v) = map.vmas.find(low.checked_sub(1)?) {
        low = v.start;
        if vma_start - low > MAX_LEN {
            return None;
        }
    }
    let start = low.checked_sub(TRAMPOLINE).filter(|s| *s >= GUEST_MIN)?;
    let trampolines = beside && map.images.trampoline_in(start, low).is_some();
    let free = !trampolines && map.vmas.range(start, low).next().is_none();
    free.then(|| start.wrapping_sub(base) as i64)
}

impl Images {
    /// The start of a trampoline page in the range.
    pub fn trampoline_in(&self, start: u64, end: u64) -> Option<u64> {
        self.list.iter().map(Image::trampoline).find(|i| meets(*i, (start, end))).map(|i| i.0)
    }

    /// To be called before the mappings of a range change: `gone` if they are unmapped or replaced, else because they become
    /// writable or move. Gives back the files' own pages; the operations come before the change's own.
    pub fn retire(map: &mut Map, space: &dyn platform::AddressSpace, range: (u64, u64), gone: bool) -> Vec<Op> {
        let mut ops = Vec::new();
        if map.images.list.is_empty() {
            return ops;
        }
        let hit = |i: &Image| meets(i.trampoline(), range) || i.pieces.iter().any(|p| meets(*p, range));
        let (out, keep) = std::mem::take(&mut map.images.list).into_iter().partition(hit);
        map.images.list = keep;
        let out: Vec<Image> = out;
        for image in out {
            let own = image.own_pages(map, gone.then_some(range));
            let left = !own.is_empty();
            ops.extend(own);
            // Threads may be on their way back through the trampoline page; it stays while the code does.
            let trampoline = image.trampoline();
            if !left || meets(trampoline, range) {
                ops.push(Op::Unmap { addr: trampoline.0, len: TRAMPOLINE });
                space.invalidate_returns();
            }
        }
        ops
    }

    /// Gives back the files' own pages everywhere, and the trampoline pages' places.
    fn leave(map: &mut Map, space: &dyn platform::AddressSpace) -> Vec<Op> {
        let trampolines: Vec<_> = map.images.list.iter().map(Image::trampoline).collect();
        trampolines.into_iter().flat_map(|i| Images::retire(map, space, i, false)).collect()
    }

    /// Gives back the files' own pages everywhere, for good. Threads may be on their way through the trampoline pages: those stay.
    pub fn give_up(map: &mut Map) -> Vec<Op> {
        let ops = map.images.list.iter().flat_map(|i| i.own_pages(map, None)).collect();
        map.images.list.iter_mut().for_each(|i| i.pieces.clear());
        map.images.fixed = true;
        map.images.domain = None;
        ops
    }

    pub fn domain(&self) -> Option<Domain> {
        self.domain
    }

    /// For a program that is about to be loaded with these credentials; `None` if it gains rights: it never has copies then.
    pub fn for_program(cred: Option<&Cred>) -> Images {
        Images { domain: cred.and_then(Domain::of), fixed: cred.is_none(), ..Images::default() }
    }

    /// Operations that map the newest copy of `vma`'s code (about to be inserted, or there already) in place of the file's.
    fn show(map: &mut Map, vma: &Vma) -> Vec<Op> {
        let mut ops = Vec::new();
        let (Some(file), Some(domain)) = (vma.text.clone(), map.images.domain) else { return ops };
        let Some(copy) = file.record(domain).and_then(|r| r.state.lock().copy.clone()) else { return ops };
        let Some(base) = vma.start.checked_sub(vma.offset) else { return ops };
        let mut image = Image { copy, file, base, pieces: Vec::new() };
        let text = &image.copy.text;
        for (s, e) in &image.copy.filled {
            let (s, e) = ((*s).max(vma.offset), (*e).min(vma.offset + vma.len()));
            if s >= e {
                continue;
            }
            image.pieces.push((base + s, base + e));
            ops.push(Op::MapFile {
                addr: base + s,
                len: e - s,
                prot: vma.prot,
                shared: false,
                file: text.fd().clone(),
                offset: TRAMPOLINE + s,
            });
        }
        if ops.is_empty() {
            return ops;
        }
        let (start, end) = image.trampoline();
        let known = map.images.list.iter().position(|i| i.base == base && Arc::ptr_eq(&i.file, &image.file));
        let same = known.is_some_and(|k| Arc::ptr_eq(&map.images.list[k].copy, &image.copy));
        if !same {
            let free = start >= GUEST_MIN
                && start < end
                && end <= GUEST_MAX
                && map.vmas.range(start, end).next().is_none()
                && !map
                    .images
                    .list
                    .iter()
                    .enumerate()
                    .any(|(n, i)| Some(n) != known && meets(i.trampoline(), (start, end)));
            if !free {
                return Vec::new();
            }
            let prot = libc::PROT_READ | libc::PROT_EXEC;
            let op =
                Op::MapFile { addr: start, len: TRAMPOLINE, prot, shared: false, file: text.fd().clone(), offset: 0 };
            ops.insert(0, op);
        }
        match known {
            Some(k) => {
                let old = &mut map.images.list[k];
                old.copy = image.copy;
                old.pieces.retain(|p| !image.pieces.iter().any(|q| meets(*p, *q)));
                old.pieces.extend(image.pieces);
            }
            None => map.images.list.push(image),
        }
        ops
    }

    /// A mapping of code is being made (its VMA is in place) for a process of the domain: operations to come after the one
    /// that maps the file. May replace that one, if it covers the same.
    pub fn mapped(map: &mut Map, start: u64, op: &mut Option<Op>, domain: Option<Domain>) -> Vec<Op> {
        let Some(vma) = map.vmas.find(start).cloned() else { return Vec::new() };
        if vma.text.is_none() || map.images.domain != domain {
            return Vec::new();
        }
        let ops = Self::show(map, &vma);
        let whole = |o: &Op| match (o, &*op) {
            (Op::MapFile { addr, len, .. }, Some(Op::MapFile { addr: a, len: l, .. })) => addr == a && len == l,
            _ => false,
        };
        if ops.iter().any(whole) {
            *op = None;
        }
        ops
    }
}

/// The thread has trapped: perhaps its code is to be patched. Called before the call is carried out.
pub async fn trapped(task: &Arc<Task>, thread: &mut Box<dyn GuestThread>) {
    let texts = &task.kernel.texts;
    if !texts.enabled || task.attrs.filtered.load(Ordering::Relaxed) {
        return;
    }
    let Some(domain) = Domain::now(task) else { return };
    let site = thread.regs().rip.wrapping_sub(2);
    let nr = thread.regs().orig_rax as u32;
    let mm = task.mm();
    let (place, record, step) = {
        let map = mm.map();
        if map.images.fixed || !(map.images.domain == Some(domain) || mm.user_count() == 1) {
            return;
        }
        let Some(vma) = map.vmas.find(site) else { return };
        let Some(place) = Place::of(vma, site) else { return };
        let vma_start = vma.start;
        let Some(record) = place.text.make_record(texts, domain) else { return };
        let beside = map.images.domain == Some(domain);
        let step = record.trapped(texts, &place, nr, || trampoline_for(&map, vma_start, place.base, beside));
        (place, record, step)
    };
    if !record.act(texts, &place, step) {
        return;
    }
    {
        let mut map = mm.map();
        let newest = record.state.lock().copy.clone();
        let current = map.images.list.iter().any(|i| {
            i.pieces.iter().any(|(s, e)| (*s..*e).contains(&site))
                && newest.as_ref().is_some_and(|n| Arc::ptr_eq(n, &i.copy))
        });
        // It is there already: the trap was under way, or the thread has a GS of its own.
        if current {
            return;
        }
        map.images.missed += 1;
        if map.images.missed < MOVE_AFTER {
            return;
        }
        map.images.missed = 0;
    }
    mm.begin(task).await;
    let ops = {
        let mut map = mm.map();
        let Some(vma) = map.vmas.find(site).cloned() else { return };
        let mut ops = Vec::new();
        if map.images.domain != Some(domain) {
            if mm.user_count() != 1 {
                return;
            }
            ops = Images::leave(&mut map, &*mm.space());
            map.images.domain = Some(domain);
        }
        let shown = Images::show(&mut map, &vma);
        map.images.fixed |= shown.is_empty();
        ops.extend(shown);
        ops
    };
    if ops.is_empty() {
        return;
    }
    for op in ops {
        thread.queue(op);
    }
    mm.started(task.tid(), &**thread);
    thread.enter(Enter::Stay);
    let trap = poll_fn(|cx| thread.poll_trap(cx)).await;
    texts.moves.fetch_add(1, Ordering::Relaxed);
    if let Trap::OpFailed { errno, .. } = trap {
        log::debug!("[{}] patched text could not be mapped: {errno}", task.tid());
        mm.map().images.fixed = true;
    }
}

/// Whether a mapping of a file can be of use as patched text.
pub fn is_code(prot: i32, shared: bool) -> bool {
    !shared && prot & libc::PROT_EXEC != 0 && prot & libc::PROT_WRITE == 0
}

const _: () = assert!(TRAMPOLINE % PAGE_SIZE == 0);

#[cfg(test)]
mod tests;
