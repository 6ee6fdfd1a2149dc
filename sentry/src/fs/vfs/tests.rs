//! Path resolution, mounts, permissions over tmpfs.

use super::*;
use crate::fs::tmpfs::{TmpFs, TmpOptions};
use crate::fs::NewNode;
use crate::kernel::{cred, Cred};

struct Tree {
    ns: Arc<MountNamespace>,
    cred: Cred,
}

fn tmp() -> Arc<Mount> {
    TmpFs::mount(&TmpOptions { mode: 0o755, ..TmpOptions::default() }, MountFlags::empty(), None).unwrap()
}

impl Tree {
    fn new() -> Tree {
        let t = Tree { ns: MountNamespace::new(tmp()), cred: Cred::user(0, 0, Vec::new(), cred::CAP_ALL) };
        t.make("/a", NewNode::Dir);
        t.make("/a/b", NewNode::Dir);
        t.make("/a/b/f", NewNode::File);
        t
    }
    fn walk<'a>(&'a self, root: &Path, flags: LookupFlags) -> Resolver<'a> {
        Resolver::new(&self.cred, RootRef::Fixed(root.clone()), flags)
    }
    fn with(&self, p: &str, flags: LookupFlags) -> Result<Path> {
        self.walk(&self.ns.root(), flags).resolve(self.ns.root(), p.as_bytes())
    }
    fn find(&self, p: &str) -> Result<Path> {
        self.with(p, LookupFlags::FOLLOW)
    }
    fn make(&self, p: &str, node: NewNode<'_>) {
        let at = self.walk(&self.ns.root(), LookupFlags::empty()).parent(self.ns.root(), p.as_bytes()).unwrap();
        ops::create(&at.dir, at.name(Errno::EEXIST).unwrap(), node, 0o755, &self.cred, false).unwrap();
    }
    fn name(&self, p: &Path) -> String {
        String::from_utf8(p.display(&self.ns.root()).unwrap()).unwrap()
    }
}

#[test]
fn dots_slashes_and_kinds() {
    let t = Tree::new();
    assert_eq!(t.name(&t.find("//a/./b/../b//f").unwrap()), "/a/b/f");
    assert_eq!(t.name(&t.find("/../../a/").unwrap()), "/a");
    assert_eq!(t.find("/a/b/f/").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(t.find("/a/b/f/..").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(t.find("/a/nothing/x").unwrap_err(), Errno::ENOENT);
    assert_eq!(t.find("").unwrap_err(), Errno::ENOENT);
    assert_eq!(t.find(&"n".repeat(256)).unwrap_err(), Errno::ENAMETOOLONG);
    assert!(t.with("", LookupFlags::EMPTY_PATH).unwrap() == t.ns.root());
}

#[test]
fn symbolic_links() {
    let t = Tree::new();
    t.make("/l", NewNode::Symlink(b"a/b"));
    t.make("/abs", NewNode::Symlink(b"/l/f"));
    t.make("/loop", NewNode::Symlink(b"loop"));
    t.make("/up", NewNode::Symlink(b"../../.."));
    assert_eq!(t.name(&t.find("/l/f").unwrap()), "/a/b/f");
    assert_eq!(t.name(&t.find("/abs").unwrap()), "/a/b/f");
    assert_eq!(t.find("/abs/").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(t.find("/loop").unwrap_err(), Errno::ELOOP);
    assert!(t.with("/l", LookupFlags::empty()).unwrap().dentry().is_symlink());
    assert!(t.with("/l/", LookupFlags::empty()).unwrap().is_dir());
    assert_eq!(t.with("/l/f", LookupFlags::NO_SYMLINKS).unwrap_err(), Errno::ELOOP);
    // 40 links in a row are the most.
    for i in 1..=41 {
        t.make(
            &format!("/s{i}"),
            NewNode::Symlink(if i == 1 { b"a".to_vec() } else { format!("s{}", i - 1).into() }.as_slice()),
        );
    }
    assert!(t.find("/s40").is_ok());
    assert_eq!(t.find("/s41").unwrap_err(), Errno::ELOOP);
    // Scoped resolution.
    let a = t.find("/a").unwrap();
    let beneath = |p: &[u8], f| t.walk(&t.ns.root(), f).resolve(a.clone(), p);
    assert_eq!(beneath(b"../a/b", LookupFlags::BENEATH).unwrap_err(), Errno::EXDEV);
    assert_eq!(beneath(b"/a", LookupFlags::BENEATH).unwrap_err(), Errno::EXDEV);
    assert_eq!(t.name(&beneath(b"b/../b/f", LookupFlags::BENEATH).unwrap()), "/a/b/f");
    assert_eq!(t.name(&beneath(b"/../../b", LookupFlags::IN_ROOT).unwrap()), "/a/b");
}

#[test]
fn mounts_are_crossed_both_ways() {
    let t = Tree::new();
    let m = tmp();
    t.ns.mount(&m, &t.find("/a/b").unwrap()).unwrap();
    assert_eq!(t.find("/a/b/f").unwrap_err(), Errno::ENOENT);
    t.make("/a/b/inside", NewNode::Dir);
    let inside = t.find("/a/b/inside").unwrap();
    assert_eq!(t.name(&inside), "/a/b/inside");
    assert_eq!(t.name(&t.find("/a/b/inside/../..").unwrap()), "/a");
    assert_eq!(t.with("/a/b", LookupFlags::NO_XDEV).unwrap_err(), Errno::EXDEV);
    t.make("/c", NewNode::Dir);
    let from = t.find("/a").unwrap();
    t.ns.bind(&from, &t.find("/c").unwrap(), true).unwrap();
    assert_eq!(t.name(&t.find("/c/b/inside").unwrap()), "/c/b/inside");
    // Busy below a rename and a removal; gone after the unmount.
    let at = t.walk(&t.ns.root(), LookupFlags::empty()).parent(t.ns.root(), b"/a/b").unwrap();
    assert_eq!(ops::remove(&at, ops::Remove::Dir, &t.cred).unwrap_err(), Errno::EBUSY);
    drop(m);
    assert_eq!(t.ns.umount(t.find("/a/b").unwrap(), false).unwrap_err(), Errno::EBUSY);
    drop(inside);
    t.ns.umount(t.find("/a/b").unwrap(), false).unwrap();
    assert!(t.find("/a/b/f").is_ok());
}

#[test]
fn permissions() {
    let t = Tree::new();
    let user = Cred::user(1000, 1000, vec![50], 0);
    let as_user = |p: &[u8]| {
        let root = t.ns.root();
        Resolver::new(&user, RootRef::Fixed(root.clone()), LookupFlags::FOLLOW).resolve(root, p)
    };
    let b = t.find("/a/b").unwrap();
    ops::chmod(&b, 0o710, &t.cred).unwrap();
    assert_eq!(as_user(b"/a/b/f").unwrap_err(), Errno::EACCES);
    ops::chown(&b, None, Some(50), &t.cred).unwrap();
    let f = as_user(b"/a/b/f").unwrap();
    assert_eq!(ops::chmod(&f, 0o777, &user).unwrap_err(), Errno::EPERM);
    assert_eq!(perm::permission(&f, &user, perm::MAY_WRITE).unwrap_err(), Errno::EACCES);
    let at = t.walk(&t.ns.root(), LookupFlags::empty()).parent(t.ns.root(), b"/a/b/f").unwrap();
    assert_eq!(ops::remove(&at, ops::Remove::File, &user).unwrap_err(), Errno::EACCES);
    // Sticky: only the owner of the file or the directory may.
    ops::chmod(&b, 0o1777, &t.cred).unwrap();
    assert_eq!(ops::remove(&at, ops::Remove::File, &user).unwrap_err(), Errno::EPERM);
    t.ns.root().mount().set_flags(MountFlags::RDONLY);
    assert_eq!(ops::remove(&at, ops::Remove::File, &t.cred).unwrap_err(), Errno::EROFS);
}

#[test]
fn names_known_to_be_missing_are_bounded_across_directories() {
    let t = Tree::new();
    let top = t.ns.root();
    for i in 0..30 {
        let d = ops::create(&top, format!("d{i}").as_bytes(), NewNode::Dir, 0o755, &t.cred, false).unwrap();
        for j in 0..4000 {
            assert!(d.dentry().lookup(format!("n{j}").as_bytes()).unwrap().is_none());
        }
        assert!(top.dentry().sb().missing() <= 66_000);
    }
    // The oldest went first; what is known of a name that was made is right.
    let d = t.find("/d29").unwrap();
    assert!(matches!(d.dentry().cached(b"n7"), Some(None)));
    assert!(t.find("/d0").unwrap().dentry().cached(b"n7").is_none());
    ops::create(&d, b"n7", NewNode::Dir, 0o755, &t.cred, false).unwrap();
    assert!(t.find("/d29/n7").is_ok());
    let before = top.dentry().sb().missing();
    t.find("/d29/n7").unwrap().dentry().lookup(b"x").unwrap();
    assert_eq!(top.dentry().sb().missing(), before + 1);
}

#[test]
fn deep_trees_neither_walk_nor_drop_by_recursion() {
    let t = Tree::new();
    let mut at = t.ns.root();
    for _ in 0..100_000 {
        at = ops::create(&at, b"d", NewNode::Dir, 0o755, &t.cred, false).unwrap();
    }
    assert_eq!(at.display(&t.ns.root()), Err(Errno::ENAMETOOLONG));
    drop(at);
    drop(t);
}
