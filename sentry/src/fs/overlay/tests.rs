//! The overlay over a tmpfs as the lower layer, used through the VFS.

use super::*;
use crate::fs::tmpfs::{TmpFs, TmpOptions};
use crate::fs::vfs::open::open_from;
use crate::fs::vfs::ops::{self, Remove};
use crate::fs::vfs::{LookupFlags, Mount, MountFlags, Path, Resolver, RootRef, SuperBlock};
use crate::kernel::{cred, Cred};
use crate::mm::io::{Dst, Src};

struct Tree {
    root: Path,
    cred: Cred,
}

impl Tree {
    fn new() -> Tree {
        let lower = TmpFs::root(&TmpOptions::default(), None);
        let file = |dir: &Arc<dyn Inode>, name: &str, text: &str| {
            let f = dir.create(name.as_bytes(), NewNode::File, 0o644, 0, 0).unwrap();
            let t: &TmpInode = f.as_any().downcast_ref().unwrap();
            t.write_at(&mut Src::kernel(text.as_bytes()), 0, false).unwrap();
            f
        };
        let root: Arc<dyn Inode> = lower.clone();
        let d = root.create(b"d", NewNode::Dir, 0o755, 0, 0).unwrap();
        let e = d.create(b"e", NewNode::Dir, 0o755, 0, 0).unwrap();
        file(&e, "deep", "deep");
        file(&d, "x", "x");
        let f = file(&root, "f", "lower");
        root.link(b"f2", &f).unwrap();
        file(&root, "one", "1");
        let upper = TmpFs::root(&TmpOptions { first_ino: 1 << 40, ..TmpOptions::default() }, None);
        let root = Overlay::root(upper, lower).unwrap();
        let sb = SuperBlock::new("overlay", b"overlay", String::new());
        let m = Mount::of(root, sb, MountFlags::empty()).unwrap();
        Tree { root: m.root(), cred: Cred::user(0, 0, Vec::new(), cred::CAP_ALL) }
    }
    fn resolver(&self) -> Resolver<'_> {
        Resolver::new(&self.cred, RootRef::Fixed(self.root.clone()), LookupFlags::empty())
    }
    fn find(&self, p: &str) -> Result<Path> {
        self.resolver().resolve(self.root.clone(), p.as_bytes())
    }
    fn parent(&self, p: &str) -> vfs::Parent {
        self.resolver().parent(self.root.clone(), p.as_bytes()).unwrap()
    }
    fn ino(&self, p: &str) -> u64 {
        self.find(p).unwrap().inode().attr().unwrap().ino
    }
    fn open(&self, p: &str, flags: i32) -> Result<Arc<File>> {
        let root = RootRef::Fixed(self.root.clone());
        let none = LookupFlags::empty();
        open_from(&self.cred, root, self.root.clone(), p.as_bytes(), flags, 0o644, none, || 0)?.file()
    }
    fn write(&self, p: &str, text: &str) {
        let f = self.open(p, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC).unwrap();
        f.ops.write(&f, &mut Src::kernel(text.as_bytes()), 0).unwrap();
    }
    fn read_file(f: &File) -> String {
        let mut b = [0u8; 64];
        let n = f.ops.read(f, &mut Dst::kernel(&mut b), 0).unwrap();
        String::from_utf8(b[..n].to_vec()).unwrap()
    }
    fn read(&self, p: &str) -> String {
        Self::read_file(&self.open(p, libc::O_RDONLY).unwrap())
    }
    fn list(&self, p: &str) -> Vec<String> {
        let f = self.open(p, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
        let mut out = Vec::new();
        // One entry per call, so that the offsets are tested.
        let mut pos = 0;
        loop {
            let mut got = None;
            f.ops
                .readdir(&f, pos, &mut |e| {
                    if got.is_some() {
                        return false;
                    }
                    got = Some((String::from_utf8(e.name.to_vec()).unwrap(), e.next));
                    true
                })
                .unwrap();
            let Some((name, next)) = got else { break };
            pos = next;
            if name != "." && name != ".." {
                out.push(name);
            }
        }
        out.sort();
        out
    }
    fn rm(&self, p: &str) -> Result<()> {
        ops::remove(&self.parent(p), Remove::File, &self.cred)
    }
    fn rmdir(&self, p: &str) -> Result<()> {
        ops::remove(&self.parent(p), Remove::Dir, &self.cred)
    }
    fn mkdir(&self, p: &str) {
        let at = self.parent(p);
        ops::create(&at.dir, at.name(Errno::EEXIST).unwrap(), NewNode::Dir, 0o755, &self.cred, false).unwrap();
    }
    fn mv(&self, a: &str, b: &str, flags: RenameFlags) -> Result<()> {
        ops::rename(&self.parent(a), &self.parent(b), flags, &self.cred)
    }
}

#[test]
fn copy_up_keeps_number_and_open_readers() {
    let t = Tree::new();
    let ino = t.ino("/one");
    let reader = t.open("/one", libc::O_RDONLY).unwrap();
    t.write("/one", "changed");
    assert_eq!(t.read("/one"), "changed");
    assert_eq!(Tree::read_file(&reader), "changed");
    assert_eq!(t.ino("/one"), ino);
    let deep = t.ino("/d/e/deep");
    ops::chmod(&t.find("/d/e/deep").unwrap(), 0o600, &t.cred).unwrap();
    assert_eq!((t.ino("/d/e/deep"), t.read("/d/e/deep")), (deep, "deep".into()));
    assert_eq!(t.list("/d"), ["e", "x"]);
}

#[test]
fn whiteouts_and_opaque_directories() {
    let t = Tree::new();
    t.rm("/one").unwrap();
    assert_eq!(t.find("/one").unwrap_err(), Errno::ENOENT);
    assert_eq!(t.list("/"), ["d", "f", "f2"]);
    t.write("/one", "again");
    assert_eq!(t.read("/one"), "again");
    assert_eq!(t.rmdir("/d").unwrap_err(), Errno::ENOTEMPTY);
    t.rm("/d/x").unwrap();
    t.rm("/d/e/deep").unwrap();
    t.rmdir("/d/e").unwrap();
    t.rmdir("/d").unwrap();
    t.mkdir("/d");
    assert!(t.list("/d").is_empty());
    assert_eq!(t.find("/d/x").unwrap_err(), Errno::ENOENT);
}

#[test]
fn directories_move_with_their_lower_entries() {
    let t = Tree::new();
    let deep = t.find("/d/e/deep").unwrap();
    t.mv("/d", "/moved", RenameFlags::empty()).unwrap();
    assert_eq!(t.list("/"), ["f", "f2", "moved", "one"]);
    assert_eq!(t.list("/moved"), ["e", "x"]);
    assert_eq!(deep.display(&t.root).unwrap(), b"/moved/e/deep");
    // A change below the moved directory is copied up into it, and the old name stays gone.
    t.rm("/moved/e/deep").unwrap();
    t.rmdir("/moved/e").unwrap();
    assert_eq!(t.list("/"), ["f", "f2", "moved", "one"]);
    t.mkdir("/d");
    assert!(t.list("/d").is_empty());
    t.mv("/moved", "/d", RenameFlags::empty()).unwrap();
    assert_eq!((t.list("/d"), t.read("/d/x")), (vec!["x".to_string()], "x".into()));
    t.mv("/d", "/one", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((t.list("/one"), t.read("/d")), (vec!["x".to_string()], "1".into()));
}

#[test]
fn a_directory_does_not_move_below_itself() {
    let t = Tree::new();
    assert_eq!(t.mv("/d", "/d/e/z", RenameFlags::empty()).unwrap_err(), Errno::EINVAL);
    assert_eq!(t.mv("/d/e", "/d", RenameFlags::empty()).unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(t.mv("/f", "/one", RenameFlags::NOREPLACE).unwrap_err(), Errno::EEXIST);
}

#[test]
fn names_of_one_lower_file_stay_one_file() {
    let t = Tree::new();
    assert_eq!(t.ino("/f"), t.ino("/f2"));
    t.write("/f", "new");
    assert_eq!(t.read("/f2"), "new");
    let links = |p: &str| t.find(p).unwrap().inode().attr().unwrap().nlink;
    assert_eq!((links("/f"), links("/f2")), (2, 2));
    t.rm("/f").unwrap();
    assert_eq!((links("/f2"), t.read("/f2")), (1, "new".into()));
    let at = t.parent("/d/third");
    ops::link(&t.find("/f2").unwrap(), &at, &t.cred).unwrap();
    assert_eq!((links("/d/third"), t.ino("/d/third")), (2, t.ino("/f2")));
}

#[test]
fn removed_but_open_files_live_on() {
    let t = Tree::new();
    let f = t.open("/one", libc::O_RDWR).unwrap();
    t.rm("/one").unwrap();
    f.ops.write(&f, &mut Src::kernel(b"22"), 0).unwrap();
    assert_eq!(Tree::read_file(&f), "22");
    assert_eq!(f.attr().unwrap().nlink, 0);
    assert_eq!(f.path.as_ref().unwrap().display(&t.root).unwrap(), b"/one (deleted)");
    // The name is removed before the copy-up: a later change does not bring it back.
    let place = t.find("/d/x").unwrap();
    t.rm("/d/x").unwrap();
    ops::chmod(&place, 0o600, &t.cred).unwrap();
    assert_eq!(t.find("/d/x").unwrap_err(), Errno::ENOENT);
    assert_eq!(t.list("/d"), ["e"]);
}

#[test]
fn copy_up_leaves_holes() {
    const AT: u64 = 100 << 20;
    const SIZE: u64 = 200 << 20;
    let lower = TmpFs::root(&TmpOptions::default(), None);
    let file = lower.create(b"sparse", NewNode::File, 0o644, 0, 0).unwrap();
    let file: &TmpInode = file.as_any().downcast_ref().unwrap();
    file.write_at(&mut Src::kernel(b"first"), 0, false).unwrap();
    file.write_at(&mut Src::kernel(b"middle"), AT, false).unwrap();
    file.set_attr(&SetAttr { size: Some(SIZE), ..SetAttr::default() }).unwrap();
    let root = Overlay::root(TmpFs::root(&TmpOptions::default(), None), lower).unwrap();
    let i = root.find(b"sparse").unwrap();
    i.copy_up(true).unwrap();
    let a = i.attr().unwrap();
    assert_eq!(a.size, SIZE);
    assert!(a.blocks * 512 < 1 << 20, "{} blocks", a.blocks);
    let up = i.upper.get().unwrap();
    for (at, text) in [(0, &b"first\0"[..]), (AT - 1, b"\0middle\0"), (SIZE - 2, b"\0\0")] {
        let mut b = vec![7; text.len()];
        assert_eq!(up.read_at(&mut Dst::kernel(&mut b), at), Ok(text.len()));
        assert_eq!(b, text);
    }
}

#[test]
fn a_removed_name_stays_removed_when_another_is_copied_up() {
    let t = Tree::new();
    let open = t.open("f", libc::O_RDONLY).unwrap();
    t.rm("f").unwrap();
    t.write("f2", "new");
    assert_eq!(t.find("f").unwrap_err(), Errno::ENOENT);
    assert_eq!((t.read("f2").as_str(), Tree::read_file(&open).as_str()), ("new", "new"));
}

/// The cached size of the lower file may be outdated.
#[test]
fn a_sparse_file_that_has_grown_is_copied_up_to_the_size_that_was_known() {
    let lower = TmpFs::root(&TmpOptions::default(), None);
    let from = lower.create(b"f", NewNode::File, 0o644, 0, 0).unwrap();
    let mut attr = from.attr().unwrap();
    attr.size = 4096;
    let file: &TmpInode = from.as_any().downcast_ref().unwrap();
    file.write_at(&mut Src::kernel(b"far"), 1 << 20, false).unwrap();
    let to = lower.node(&NewNode::File, 0o644, 0, 0, None).unwrap();
    copy_up::copy_content(&from, &to, &attr).unwrap();
    assert_eq!(to.size(), 4096);
}

#[test]
fn only_listings_of_both_layers_are_kept_and_they_have_a_bound() {
    let t = Tree::new();
    t.mkdir("new");
    for i in 0..2000 {
        t.write(&format!("new/{i:0200}"), "");
        t.write(&format!("d/{i:0200}"), "");
    }
    let begin = |dir: &str| {
        let f = t.open(dir, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
        let mut names = 0;
        let r = f.ops.readdir(&f, 0, &mut |_| {
            names += 1;
            names < 10
        });
        r.map(|()| f)
    };
    // The memory would not suffice if each open directory kept its entries.
    let open: Vec<_> = (0..100).map(|_| begin("new").unwrap()).collect();
    let merged: Vec<_> = (0..100).map_while(|_| begin("d").ok()).collect();
    assert!(!merged.is_empty() && merged.len() < 10);
    assert_eq!(begin("d").err(), Some(Errno::ENOMEM));
    drop(merged);
    assert_eq!(t.list("d").len(), 2002);
    assert_eq!(t.list("new").len(), 2000);
    // Removing an entry changes the offset of no other.
    t.rm(&format!("new/{:0200}", 0)).unwrap();
    let mut at = Vec::new();
    open[0]
        .ops
        .readdir(&open[0], 9, &mut |e| {
            at.push(e.next);
            at.len() < 3
        })
        .unwrap();
    assert_eq!(at, [10, 11, 12]);
    assert_eq!(t.rmdir("new"), Err(Errno::ENOTEMPTY));
}

#[test]
fn a_hard_link_that_is_replaced_leaves_its_file_the_other_name() {
    let t = Tree::new();
    t.mv("/one", "/f2", RenameFlags::empty()).unwrap();
    t.write("/f", "changed");
    assert_eq!((t.read("/f"), t.read("/f2")), ("changed".into(), "1".into()));
    assert_ne!(t.find("/f").unwrap().inode().attr().unwrap().nlink, 0);
    ops::link(&t.find("/f").unwrap(), &t.parent("/f3"), &t.cred).unwrap();
    assert_eq!(t.read("/f3"), "changed");
}

#[test]
fn linking_unnamed_files() {
    let t = Tree::new();
    for (name, changed) in [("/one", false), ("/d/x", true)] {
        if changed {
            t.write(name, "new");
        }
        let place = t.find(name).unwrap();
        t.rm(name).unwrap();
        assert_eq!(ops::link(&place, &t.parent("/again"), &t.cred), Err(Errno::ENOENT), "{name}");
    }
    // A file created without a name can be linked once, unless it was opened with `O_EXCL`.
    let f = t.open("/d", libc::O_TMPFILE | libc::O_RDWR).unwrap();
    let place = f.path.as_ref().unwrap();
    ops::link(place, &t.parent("/first"), &t.cred).unwrap();
    t.rm("/first").unwrap();
    assert_eq!(ops::link(place, &t.parent("/second"), &t.cred), Err(Errno::ENOENT));
    let f = t.open("/d", libc::O_TMPFILE | libc::O_RDWR | libc::O_EXCL).unwrap();
    assert_eq!(ops::link(f.path.as_ref().unwrap(), &t.parent("/third"), &t.cred), Err(Errno::ENOENT));
}

#[test]
fn a_lower_device_with_the_number_of_a_whiteout_is_a_device() {
    let t = Tree::new();
    let lower = ovl(t.root.inode()).unwrap().lower.clone().unwrap();
    lower.create(b"device", NewNode::Char(0), 0o600, 0, 0).unwrap();
    ops::chmod(&t.find("/device").unwrap(), 0o644, &t.cred).unwrap();
    t.mv("/device", "/d/moved", RenameFlags::empty()).unwrap();
    assert_eq!(t.find("/d/moved").unwrap().inode().attr().unwrap().mode, libc::S_IFCHR | 0o644);
    assert_eq!(t.list("/d"), ["e", "moved", "x"]);
    assert_eq!(t.find("/device").unwrap_err(), Errno::ENOENT);
}

#[test]
fn a_copy_keeps_the_host_mounts_restrictions() {
    let t = Tree::new();
    let lower = ovl(t.root.inode()).unwrap().lower.clone().unwrap().lookup(b"one").unwrap();
    lower.as_any().downcast_ref::<TmpInode>().unwrap().limit(MountFlags::NOSUID);
    assert!(t.find("/one").unwrap().forbids(MountFlags::NOSUID) && !t.find("/f").unwrap().forbids(MountFlags::NOSUID));
    t.mv("/one", "/d/moved", RenameFlags::empty()).unwrap();
    assert!(t.find("/d/moved").unwrap().forbids(MountFlags::NOSUID));
}
