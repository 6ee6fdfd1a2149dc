//! A kit for trees that exist only in the kernel (procfs, sysfs, devpts).
//!
//! * [`Super`]: what the nodes of one tree share (device number, magic, time).
//! * [`StaticDir`]: a directory whose entries are made once. A directory that changes implements [`Inode`] and [`List`] itself
//!   and opens by [`open_dir`].
//! * [`Content`]: a text that is generated when it is read at offset 0 (and kept for the reads that follow up to its
//!   end, so that one reader sees one state); opens as [`OpenText`]. All texts that are kept together have a bound
//!   ([`TEXTS`]). [`TextFile`] is one made of closures.
//! * [`Symlink`]: a fixed target.
//! * [`Put`]: appends numbers and padding to a byte buffer without going through `fmt`.

use super::dir::{seek_without_end, Dir, DirFile};
use super::file::{File, FileOps};
use super::types::*;
use crate::error::{later, Errno, Result, SysResult};
use crate::kernel::pid_ns::PidNs;
use crate::kernel::Kernel;
use crate::mm::io::{Dst, Src};
use parking_lot::Mutex;
use platform::budget::{of_heap, Budget, Charge};
use platform::executor::Rounds;
use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

pub const PROC_SUPER_MAGIC: u64 = 0x9fa0;
pub const SYSFS_MAGIC: u64 = 0x6265_6572;
pub const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// Longest text that one write to a generated file may carry (Linux takes less than a page).
pub const MAX_STORE: usize = 4096;

/// Memory of all texts that open files keep, and of one text while it is generated.
const TEXTS_MAX: usize = if cfg!(test) { 8 << 20 } else { 256 << 20 };
static TEXTS: LazyLock<Budget> = LazyLock::new(|| Budget::new(of_heap(TEXTS_MAX as u64, 6)));
/// A text up to this length is generated anew for each read when memory for texts is used up.
const SHORT: usize = 64 << 10;

/// What generates a text of guest-made length asks now and then whether it may go on.
pub fn check_length(out: &[u8], rounds: &mut Rounds) -> Result<()> {
    rounds.step().map_err(later)?;
    if out.len() as u64 > TEXTS.most() / 2 {
        return Err(Errno::ENOMEM);
    }
    Ok(())
}

/// Position of the first entry after `.` and `..`.
pub const FIRST: u64 = 2;

/// What the nodes of one tree share.
pub struct Super {
    pub kernel: Arc<Kernel>,
    pub dev: u64,
    pub magic: u64,
    pub made: Timespec,
    pub blksize: u32,
    /// The pid namespace whose numbers procfs shows.
    pub pid_ns: Arc<PidNs>,
    next_ino: AtomicU64,
}

impl Super {
    /// `first_ino`: the numbers below it are the tree's to give out by itself.
    pub fn new(kernel: &Arc<Kernel>, magic: u64, blksize: u32, first_ino: u64) -> Arc<Self> {
        Self::with_pids(kernel, magic, blksize, first_ino, PidNs::first())
    }
    pub fn with_pids(kernel: &Arc<Kernel>, magic: u64, blksize: u32, first_ino: u64, pid_ns: Arc<PidNs>) -> Arc<Self> {
        Arc::new(Super {
            dev: super::vfs::anonymous_dev(),
            kernel: kernel.clone(),
            magic,
            made: Timespec::now(),
            blksize,
            pid_ns,
            next_ino: AtomicU64::new(first_ino),
        })
    }
    pub fn ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }
    /// Attributes of a node of root's, empty as such nodes are.
    pub fn attr(&self, ino: u64, mode: u32, nlink: u32) -> Attr {
        Attr {
            dev: self.dev,
            ino,
            mode,
            nlink,
            blksize: self.blksize,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            btime: self.made,
            ..Attr::default()
        }
    }
    pub fn statfs(&self) -> StatFs {
        StatFs { kind: self.magic, bsize: 4096, namelen: 255, ..StatFs::default() }
    }
}

/// A generated file takes times, ownership and `O_TRUNC` without keeping them; its mode stays.
pub fn ignore_set_attr(set: &SetAttr) -> Result<()> {
    if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// A directory's entries, for [`open_dir`].
pub trait List: Inode {
    /// Gives the entries from position `pos` (at least [`FIRST`]) to `sink`, until it is full.
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()>;
}

/// An open directory.
pub fn open_dir(dir: Arc<dyn List>) -> Box<dyn FileOps> {
    Box::new(DirFile(Listed(dir)))
}

struct Listed(Arc<dyn List>);

impl Dir for Listed {
    fn attr(&self) -> Result<Attr> {
        self.0.attr()
    }
    fn list(&self, _: &File, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        self.0.list(pos, sink)
    }
    fn fsync(&self, _: bool) -> Result<()> {
        Err(Errno::EINVAL)
    }
}

/// `DT_*` of a mode.
pub fn dir_kind(mode: u32) -> u8 {
    ((mode & libc::S_IFMT) >> 12) as u8
}

/// Names and what they stand for.
pub type Entries = Vec<(Vec<u8>, Arc<dyn Inode>)>;

/// A directory with entries that never change.
pub struct StaticDir {
    sup: Arc<Super>,
    ino: u64,
    mode: u32,
    entries: LazyLock<Entries, Box<dyn FnOnce() -> Entries + Send>>,
}

impl StaticDir {
    pub fn make(sup: &Arc<Super>, entries: Entries) -> Arc<dyn Inode> {
        Self::with_mode(sup, 0o555, entries)
    }
    pub fn with_mode(sup: &Arc<Super>, mode: u32, entries: Entries) -> Arc<dyn Inode> {
        Self::lazy(sup, mode, move || entries)
    }
    /// Its entries are made when they are first asked for: most sandboxes never look.
    pub fn lazy(sup: &Arc<Super>, mode: u32, make: impl FnOnce() -> Entries + Send + 'static) -> Arc<dyn Inode> {
        let entries = LazyLock::new(Box::new(make) as Box<dyn FnOnce() -> Entries + Send>);
        Arc::new(StaticDir { sup: sup.clone(), ino: sup.ino(), mode, entries })
    }
}

impl Inode for StaticDir {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let dirs = self.entries.iter().filter(|(_, e)| e.as_any().is::<StaticDir>()).count() as u32;
        Ok(self.sup.attr(self.ino, libc::S_IFDIR | self.mode, 2 + dirs))
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, e)| e.clone()).ok_or(Errno::ENOENT)
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Ok(open_dir(self))
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
}

impl List for StaticDir {
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        for (i, (name, e)) in self.entries.iter().enumerate().skip((pos - FIRST) as usize) {
            let a = e.attr()?;
            if !sink(DirEntry { name, ino: a.ino, kind: dir_kind(a.mode), next: i as u64 + FIRST + 1 }) {
                break;
            }
        }
        Ok(())
    }
}

/// A text that the kernel generates, and perhaps takes.
pub trait Content: Send + Sync {
    fn generate(&self, out: &mut Vec<u8>) -> Result<()>;
    /// One `write` of at most [`MAX_STORE`] bytes.
    fn store(&self, _text: &[u8]) -> Result<()> {
        Err(Errno::EINVAL)
    }
    /// Bytes to set aside for the text.
    fn size_hint(&self) -> usize {
        512
    }
}

/// A text that is kept; its memory is counted.
struct Kept {
    text: Vec<u8>,
    _room: Charge,
}

impl Kept {
    /// `Err`: there is no room to keep it.
    fn new(mut text: Vec<u8>) -> std::result::Result<Kept, Vec<u8>> {
        if text.capacity() > SHORT {
            text.shrink_to_fit();
        }
        match TEXTS.take(text.capacity() as u64) {
            Some(room) => Ok(Kept { text, _room: room }),
            None => Err(text),
        }
    }
}

#[derive(Default)]
enum Reading {
    #[default]
    Fresh,
    Within(Kept),
    /// It was read to its end, which was here.
    Ended(usize),
}

/// An open text. `seq_file` semantics: a read at offset 0 shows the state of that moment, the reads after it go on in the same text.
pub struct OpenText {
    content: Arc<dyn Content>,
    text: Mutex<Reading>,
}

impl OpenText {
    pub fn open(content: Arc<dyn Content>) -> Box<dyn FileOps> {
        Box::new(OpenText { content, text: Mutex::default() })
    }
}

impl FileOps for OpenText {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        let mut held = self.text.lock();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = |text: &[u8], dst: &mut Dst<'_>| -> Result<(usize, bool)> {
            let from = from.min(text.len());
            let n = dst.put(&text[from..])?;
            Ok((n, from + n == text.len()))
        };
        match &*held {
            Reading::Within(kept) if from > 0 => {
                let (n, end) = part(&kept.text, dst)?;
                if end {
                    let len = kept.text.len();
                    *held = Reading::Ended(len);
                }
                return Ok(n);
            }
            Reading::Ended(len) if from > 0 && from >= *len => return Ok(0),
            _ => {}
        }
        *held = Reading::Fresh;
        let mut text = Vec::with_capacity(self.content.size_hint());
        self.content.generate(&mut text)?;
        let (n, end) = part(&text, dst)?;
        *held = if end {
            Reading::Ended(text.len())
        } else {
            match Kept::new(text) {
                Ok(kept) => Reading::Within(kept),
                Err(text) if text.len() <= SHORT => Reading::Fresh,
                Err(_) => return Err(Errno::ENOMEM.into()),
            }
        };
        Ok(n)
    }
    fn write(&self, _: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        let n = src.remaining();
        if n > MAX_STORE {
            return Err(Errno::EINVAL.into());
        }
        let text = src.take_vec(MAX_STORE)?;
        if text.len() < n {
            return Err(Errno::EFAULT.into());
        }
        self.content.store(&text)?;
        Ok((n, offset.saturating_add(n as u64)))
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, _: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        // seq_lseek knows no end.
        seek_without_end(offset, whence, current)
    }
}

type Generate = Box<dyn Fn(&mut Vec<u8>) -> Result<()> + Send + Sync>;
type Store = Box<dyn Fn(&[u8]) -> Result<()> + Send + Sync>;

/// A regular file made of closures.
pub struct TextFile {
    sup: Arc<Super>,
    ino: u64,
    mode: u32,
    size: u64,
    generate: Generate,
    store: Option<Store>,
}

impl TextFile {
    pub fn make(
        sup: &Arc<Super>,
        mode: u32,
        generate: impl Fn(&mut Vec<u8>) -> Result<()> + Send + Sync + 'static,
    ) -> Arc<dyn Inode> {
        Self::build(sup, mode, Box::new(generate), None)
    }
    pub fn writable(
        sup: &Arc<Super>,
        mode: u32,
        generate: impl Fn(&mut Vec<u8>) -> Result<()> + Send + Sync + 'static,
        store: impl Fn(&[u8]) -> Result<()> + Send + Sync + 'static,
    ) -> Arc<dyn Inode> {
        Self::build(sup, mode, Box::new(generate), Some(Box::new(store)))
    }
    /// A text that never changes.
    pub fn fixed(sup: &Arc<Super>, mode: u32, text: impl Into<Vec<u8>>) -> Arc<dyn Inode> {
        let text = text.into();
        Self::make(sup, mode, move |out| {
            out.extend_from_slice(&text);
            Ok(())
        })
    }
    fn build(sup: &Arc<Super>, mode: u32, generate: Generate, store: Option<Store>) -> Arc<dyn Inode> {
        // A sysfs attribute claims a page.
        let size = if sup.magic == SYSFS_MAGIC { 4096 } else { 0 };
        Arc::new(TextFile { sup: sup.clone(), ino: sup.ino(), mode, size, generate, store })
    }
}

impl Content for TextFile {
    fn generate(&self, out: &mut Vec<u8>) -> Result<()> {
        (self.generate)(out)
    }
    fn store(&self, text: &[u8]) -> Result<()> {
        match &self.store {
            Some(s) => s(text),
            None => Err(Errno::EIO),
        }
    }
}

impl Inode for TextFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr { size: self.size, ..self.sup.attr(self.ino, libc::S_IFREG | self.mode, 1) })
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        ignore_set_attr(set)
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        // No capability writes what nothing takes (a sysctl without a handler answers EACCES even to root).
        if flags & libc::O_ACCMODE != libc::O_RDONLY && self.store.is_none() {
            return Err(Errno::EACCES);
        }
        Ok(OpenText::open(self))
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
}

/// A symbolic link with a fixed target.
pub struct Symlink {
    sup: Arc<Super>,
    ino: u64,
    target: Vec<u8>,
}

impl Symlink {
    pub fn make(sup: &Arc<Super>, target: impl Into<Vec<u8>>) -> Arc<dyn Inode> {
        Arc::new(Symlink { sup: sup.clone(), ino: sup.ino(), target: target.into() })
    }
}

impl Inode for Symlink {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let size = self.target.len() as u64;
        Ok(Attr { size, ..self.sup.attr(self.ino, libc::S_IFLNK | 0o777, 1) })
    }
    fn readlink(&self) -> Result<Vec<u8>> {
        Ok(self.target.clone())
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Err(Errno::ELOOP)
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
}

/// Appends to a text.
pub trait Put {
    fn s(&mut self, text: &str) -> &mut Self;
    fn b(&mut self, bytes: &[u8]) -> &mut Self;
    /// Decimal.
    fn d(&mut self, n: u64) -> &mut Self;
    /// Decimal with a sign.
    fn i(&mut self, n: i64) -> &mut Self;
    /// Decimal, right-aligned in `width`.
    fn dw(&mut self, n: u64, width: usize) -> &mut Self;
    /// Lower-case hexadecimal with at least `digits` digits.
    fn x(&mut self, n: u64, digits: usize) -> &mut Self;
    /// `n` spaces.
    fn sp(&mut self, n: usize) -> &mut Self;
    /// Bytes with those of `bad`, control characters of that set and `\` as octal escapes (`seq_escape`).
    fn esc(&mut self, bytes: &[u8], bad: &[u8]) -> &mut Self;
}

impl Put for Vec<u8> {
    fn s(&mut self, text: &str) -> &mut Self {
        self.extend_from_slice(text.as_bytes());
        self
    }
    fn b(&mut self, bytes: &[u8]) -> &mut Self {
        self.extend_from_slice(bytes);
        self
    }
    fn d(&mut self, n: u64) -> &mut Self {
        self.dw(n, 0)
    }
    fn i(&mut self, n: i64) -> &mut Self {
        if n < 0 {
            self.push(b'-');
        }
        self.d(n.unsigned_abs())
    }
    fn dw(&mut self, mut n: u64, width: usize) -> &mut Self {
        let mut buf = [0u8; 20];
        let mut at = buf.len();
        loop {
            at -= 1;
            buf[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                break;
            }
        }
        self.sp(width.saturating_sub(buf.len() - at));
        self.extend_from_slice(&buf[at..]);
        self
    }
    fn x(&mut self, n: u64, digits: usize) -> &mut Self {
        let need = (16 - n.leading_zeros() as usize / 4).max(digits).clamp(1, 16);
        for k in (0..need).rev() {
            self.push(b"0123456789abcdef"[(n >> (4 * k)) as usize & 15]);
        }
        self
    }
    fn sp(&mut self, n: usize) -> &mut Self {
        self.resize(self.len() + n, b' ');
        self
    }
    fn esc(&mut self, bytes: &[u8], bad: &[u8]) -> &mut Self {
        for &c in bytes {
            if c == b'\\' || bad.contains(&c) {
                self.extend_from_slice(&[b'\\', b'0' + (c >> 6), b'0' + (c >> 3 & 7), b'0' + (c & 7)]);
            } else {
                self.push(c);
            }
        }
        self
    }
}

/// The number that a write to a numeric file gives: blanks around it are fine, anything else is `EINVAL`.
pub fn parse_int(text: &[u8]) -> Result<i64> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    std::str::from_utf8(text).ok().and_then(|s| s.trim().parse().ok()).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_printf_does() {
        let mut v = Vec::new();
        v.d(0).s(" ").d(u64::MAX).s(" ").i(-5).s(" ").dw(42, 8).s(" ").x(0, 8).s(" ").x(0xdead_beef, 2);
        assert_eq!(v, b"0 18446744073709551615 -5       42 00000000 deadbeef");
        let mut v = Vec::new();
        v.x(0, 1).s(" ").x(u64::MAX, 1).s(" ").esc(b"a b\\", b" ");
        assert_eq!(v, b"0 ffffffffffffffff a\\040b\\134");
    }

    struct Lines(usize, std::sync::atomic::AtomicUsize);
    impl Content for Lines {
        fn generate(&self, out: &mut Vec<u8>) -> Result<()> {
            out.resize(self.0, b'0' + self.1.fetch_add(1, Ordering::Relaxed) as u8);
            Ok(())
        }
    }

    #[test]
    fn a_text_is_kept_to_its_end_and_all_of_them_have_a_bound() {
        let open = |n| File::new(OpenText::open(Arc::new(Lines(n, 0.into()))), libc::O_RDONLY, None);
        let read = |f: &File, n: usize, at: u64| {
            let mut b = vec![0; n];
            let n = f.ops.read(f, &mut Dst::kernel(&mut b), at).map_err(|_| Errno::ENOMEM)?;
            b.truncate(n);
            Ok(b)
        };
        let f = open(10);
        assert_eq!(read(&f, 4, 0), Ok(b"0000".to_vec()));
        assert_eq!((read(&f, 4, 4), read(&f, 4, 8)), (Ok(b"0000".to_vec()), Ok(b"00".to_vec())));
        assert_eq!((read(&f, 4, 10), read(&f, 4, 99)), (Ok(vec![]), Ok(vec![])));
        assert_eq!((read(&f, 4, 0), read(&f, 9, 4)), (Ok(b"1111".to_vec()), Ok(b"111111".to_vec())));
        assert_eq!(read(&f, 4, 7), Ok(b"222".to_vec()));
        // Each keeps an eighth of what there is.
        let files: Vec<_> = (0..9).map(|_| open(TEXTS_MAX / 8 - 4096)).collect();
        for f in &files[..8] {
            assert_eq!(read(f, 1, 0), Ok(b"0".to_vec()));
        }
        assert_eq!(read(&files[8], 1, 0), Err(Errno::ENOMEM));
        // One is read to its end.
        assert_eq!(read(&files[0], 9, TEXTS_MAX as u64 / 8 - 4097), Ok(b"0".to_vec()));
        assert_eq!(read(&files[8], 1, 0), Ok(b"1".to_vec()));
        let few = open(SHORT);
        assert_eq!(read(&few, 1, 0), Ok(b"0".to_vec()));
        drop(files);
        assert!(TEXTS.left() >= (TEXTS_MAX - SHORT) as u64);
    }

    #[test]
    fn numbers_are_parsed_with_blanks_only() {
        assert_eq!(parse_int(b" 12\n"), Ok(12));
        assert_eq!(parse_int(b"-1000"), Ok(-1000));
        assert_eq!(parse_int(b"1x"), Err(Errno::EINVAL));
        assert_eq!(parse_int(b""), Err(Errno::EINVAL));
    }
}
