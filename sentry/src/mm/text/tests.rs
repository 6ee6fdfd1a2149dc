//! What the copies of all files together may take, and which files are kept.

use super::*;
use crate::error::SysResult;
use crate::fs::file::FileOps;
use crate::fs::types::Attr;
use std::any::Any;

/// A file of zeros that says it was written at `version`.
struct Code {
    ino: u64,
    version: i64,
}

impl FileOps for Code {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        let n = WHOLE.saturating_sub(offset).min(4096) as usize;
        dst.put(&vec![0; n]).map_err(Into::into)
    }
    fn attr(&self) -> Result<Attr> {
        let mtime = Timespec { sec: self.version, nsec: 0 };
        Ok(Attr { dev: 1, ino: self.ino, size: WHOLE, mtime, ..Attr::default() })
    }
}

fn file(ino: u64, version: i64) -> Arc<File> {
    File::new(Box::new(Code { ino, version }), libc::O_RDONLY, None)
}

fn place(texts: &Texts, ino: u64, version: i64) -> Place {
    let file = file(ino, version);
    let text = texts.of(&file).unwrap();
    Place { file, text, code: (0, WHOLE), base: 1 << 30, offset: 64 }
}

const DOMAIN: Domain = Domain { uid: 0, gid: 0, permitted: 0 };

/// Traps often enough for a first copy: what processes would show from then on.
fn heat(texts: &Texts, place: &Place) -> Option<Arc<Copy>> {
    // How long proofs take depends on the machine's load, and is not what is tested here.
    texts.proofs_until.store(0, Ordering::Relaxed);
    let record = place.text.make_record(texts, DOMAIN)?;
    for _ in 0..FIRST {
        let step = record.trapped(texts, place, libc::SYS_read as u32, || Some(-(TRAMPOLINE as i64)));
        record.act(texts, place, step);
    }
    let copy = record.state.lock().copy.clone();
    copy
}

/// One test: the budget is the process's.
#[test]
fn copies_have_a_bound_whatever_still_shows_them() {
    let texts = Texts::new(true);
    // Rewritten and mapped again and again, with every mapping kept.
    let mut shown = Vec::new();
    for version in 0..100 {
        let place = place(&texts, 1, version);
        let copy = heat(&texts, &place);
        shown.extend(copy.map(|c| (c, place)));
    }
    let total = |shown: &[(Arc<Copy>, Place)]| shown.iter().map(|s| s.0.len()).sum::<u64>();
    assert!(shown.len() > 20 && total(&shown) <= MAX_COPIED, "{} copies", shown.len());
    // Old versions get no copies any more.
    assert!(heat(&texts, &shown[0].1).is_none());
    // What is not shown any more comes back.
    shown.truncate(1);
    assert!(COPIED.left() >= MAX_COPIED - (WHOLE + TRAMPOLINE));
    drop(shown);
    assert_eq!(COPIED.left(), MAX_COPIED);

    // Files that nothing maps make room for others.
    let copied = |ino| heat(&texts, &place(&texts, ino, 0)).is_some();
    assert!((2..100).all(copied));
    assert!(COPIED.left() < MAX_COPIED / 2 + WHOLE);
    drop(texts);
    assert_eq!(COPIED.left(), MAX_COPIED);
}

#[test]
fn files_that_nothing_maps_are_forgotten() {
    let texts = Texts::new(true);
    let held = texts.of(&file(0, 0)).unwrap();
    for ino in 1..4 * MAX_FILES as u64 {
        assert!(texts.of(&file(ino, 0)).is_some(), "file {ino}");
    }
    assert!(texts.files.lock().len() <= MAX_FILES);
    assert!(Arc::ptr_eq(&held, &texts.of(&file(0, 0)).unwrap()));
    // The one used last is among those that stay.
    let texts = Texts::new(true);
    let all: Vec<_> = (0..MAX_FILES as u64).map(|ino| texts.of(&file(ino, 0)).unwrap()).collect();
    assert!(texts.of(&file(1 << 20, 0)).is_none());
    let first = Arc::downgrade(&all[0]);
    drop(all);
    texts.of(&file(0, 0)).unwrap();
    texts.of(&file(1 << 20, 0)).unwrap();
    assert!(first.upgrade().is_some() && texts.files.lock().len() == MAX_FILES / 2 + 1);
}
