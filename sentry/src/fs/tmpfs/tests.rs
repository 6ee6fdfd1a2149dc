//! Content, limits and accounting of a tmpfs.

use super::*;
use crate::mm::io::{Dst, Src};

fn fs(size: u64) -> Arc<TmpInode> {
    TmpFs::root(&TmpOptions { size, inodes: 20, ..TmpOptions::default() }, None)
}

fn file(root: &Arc<TmpInode>, name: &str) -> Arc<TmpInode> {
    root.create(name.as_bytes(), NewNode::File, 0o644, 0, 0).unwrap();
    root.get(name.as_bytes()).unwrap()
}

fn write(f: &TmpInode, data: &[u8], at: u64) -> Result<usize> {
    f.write_at(&mut Src::kernel(data), at, false).map(|r| r.0)
}

fn read(f: &TmpInode, at: u64, n: usize) -> Vec<u8> {
    let mut b = vec![0xee; n];
    let n = f.read_at(&mut Dst::kernel(&mut b), at).unwrap();
    b.truncate(n);
    b
}

#[test]
fn content_moves_from_the_heap_to_a_memfd_unseen() {
    let root = fs(64 << 20);
    let f = file(&root, "f");
    write(&f, b"begin", 0).unwrap();
    write(&f, b"end", 300_000).unwrap();
    assert_eq!(f.size(), 300_003);
    assert_eq!((read(&f, 0, 5), read(&f, 5, 4)), (b"begin".to_vec(), vec![0; 4]));
    assert_eq!(read(&f, 299_999, 100), b"\0end");
    assert!(read(&f, 300_003, 1).is_empty() && read(&f, u64::MAX, 1).is_empty());
    assert_eq!(f.write_at(&mut Src::kernel(b"!"), 0, true).unwrap(), (1, 300_004));
    f.set_attr(&SetAttr { size: Some(3), ..SetAttr::default() }).unwrap();
    f.set_attr(&SetAttr { size: Some(6), ..SetAttr::default() }).unwrap();
    assert_eq!(read(&f, 0, 10), b"beg\0\0\0");
    f.set_attr(&SetAttr { size: Some(1 << 30), ..SetAttr::default() }).unwrap();
    assert!(f.attr().unwrap().blocks < 1000, "a hole takes no room");
    assert_eq!(write(&f, b"x", u64::MAX).unwrap_err(), Errno::EFBIG);
}

#[test]
fn the_limits_hold_and_room_comes_back() {
    let root = fs(2 << 20);
    let f = file(&root, "f");
    let chunk = vec![1u8; 64 * 1024];
    let mut at = 0;
    let full = loop {
        match write(&f, &chunk, at) {
            Ok(n) => at += n as u64,
            Err(e) => break e,
        }
        assert!(at <= 4 << 20);
    };
    assert_eq!(full, Errno::ENOSPC);
    assert!(root.statfs().unwrap().bfree < 200);
    root.take(b"f").unwrap();
    drop(f);
    assert_eq!(root.statfs().unwrap().bfree, (2 << 20) / PAGE);
    for i in 0..19 {
        file(&root, &i.to_string());
    }
    assert_eq!(root.create(b"more", NewNode::File, 0, 0, 0).err(), Some(Errno::ENOSPC));
    root.take(b"0").unwrap();
    file(&root, "more");
}

#[test]
fn many_files_together_never_take_more_than_the_limit() {
    for hole in [false, true] {
        let root = TmpFs::root(&TmpOptions { size: 4 << 20, inodes: 1000, ..TmpOptions::default() }, None);
        let chunk = vec![1u8; 200 * 1024];
        let (mut held, mut files) = (0, Vec::new());
        let full = loop {
            let f = file(&root, &files.len().to_string());
            if hole {
                f.set_attr(&SetAttr { size: Some(1 << 20), ..SetAttr::default() }).unwrap();
            }
            let r = write(&f, &chunk, 0);
            files.push(f);
            match r {
                Ok(n) => held += n as u64,
                Err(e) => break e,
            }
            let taken: u64 = files.iter().map(|f| f.attr().unwrap().blocks * 512).sum();
            assert!(taken <= 4 << 20, "{taken}");
        };
        assert_eq!(full, Errno::ENOSPC);
        assert!((4 << 20) - held < 8 * PAGE, "all of it can be used: {held}");
        // Existing content can be overwritten.
        for f in &files[..files.len() - 2] {
            for _ in 0..3 {
                let r = write(f, &chunk, 0);
                assert!(hole || r == Ok(chunk.len()), "{r:?}");
            }
        }
        assert_eq!(files[0].fallocate(0, 2 << 20, 1 << 20), Err(Errno::ENOSPC));
        for i in 0..files.len() {
            root.take(i.to_string().as_bytes()).unwrap();
        }
        drop(files);
        assert_eq!(root.statfs().unwrap().bfree, (4 << 20) / PAGE);
    }
}

#[test]
fn attributes_and_texts_of_links_count() {
    let root = fs(256 * 1024);
    let full = root.statfs().unwrap().bfree;
    let f = file(&root, "f");
    f.set_xattr(b"user.a", &[1; 60_000], 0).unwrap();
    f.set_xattr(b"user.a", &[1; 50_000], 0).unwrap();
    f.set_xattr(b"user.b", &[1; 50_000], 0).unwrap();
    let g = file(&root, "g");
    g.set_xattr(b"user.a", &[1; 60_000], 0).unwrap();
    g.set_xattr(b"user.b", &[1; 60_000], 0).unwrap();
    let h = file(&root, "h");
    assert_eq!(h.set_xattr(b"user.a", &[1; 60_000], 0), Err(Errno::ENOSPC));
    f.remove_xattr(b"user.b").unwrap();
    h.set_xattr(b"user.a", &[1; 60_000], 0).unwrap();
    drop((f, g, h));
    for n in ["f", "g", "h"] {
        root.take(n.as_bytes()).unwrap();
    }
    assert_eq!(root.statfs().unwrap().bfree, full);
    root.create(b"short", NewNode::Symlink(b"to"), 0, 0, 0).unwrap();
    assert_eq!(root.statfs().unwrap().bfree, full);
    root.create(b"long", NewNode::Symlink(&[b'a'; 4000]), 0, 0, 0).unwrap();
    assert_eq!(root.statfs().unwrap().bfree, full - 1);
    root.take(b"long").unwrap();
    assert_eq!(root.statfs().unwrap().bfree, full);
}

#[test]
fn seals() {
    let root = fs(1 << 20);
    let f = file(&root, "f");
    assert_eq!(f.add_seals(libc::F_SEAL_GROW).unwrap_err(), Errno::EPERM);
    f.allow_sealing(true);
    write(&f, b"1234", 0).unwrap();
    f.add_seals(libc::F_SEAL_GROW | libc::F_SEAL_SHRINK).unwrap();
    assert_eq!(write(&f, b"12345", 0).unwrap_err(), Errno::EPERM);
    assert_eq!(f.set_attr(&SetAttr { size: Some(1), ..SetAttr::default() }).unwrap_err(), Errno::EPERM);
    write(&f, b"abcd", 0).unwrap();
    f.add_seals(libc::F_SEAL_WRITE | libc::F_SEAL_SEAL).unwrap();
    assert_eq!(write(&f, b"x", 0).unwrap_err(), Errno::EPERM);
    assert_eq!(f.add_seals(libc::F_SEAL_GROW).unwrap_err(), Errno::EPERM);
}

#[test]
fn kept_descriptors_do_not_write_to_a_sealed_file() {
    use std::os::unix::fs::FileExt;
    let root = fs(8 << 20);
    let kept = |f: &TmpInode| {
        let MapSource::Host(fd) = f.map_source(true, true).unwrap() else { panic!("no descriptor") };
        (std::fs::File::from(fd.try_clone().unwrap()), fd)
    };
    for (name, far) in [("dense", 5u64), ("sparse", 3 << 20)] {
        let f = file(&root, name);
        f.allow_sealing(true);
        write(&f, b"harmless", 0).unwrap();
        write(&f, b"far", far).unwrap();
        let before = f.attr().unwrap().blocks;
        let (kept, fd) = kept(&f);
        assert_eq!(f.add_seals(libc::F_SEAL_WRITE).unwrap_err(), Errno::EBUSY);
        drop(fd);
        f.add_seals(libc::F_SEAL_WRITE).unwrap();
        kept.write_all_at(b"EVIL", 0).unwrap();
        assert_eq!((read(&f, 0, 4), read(&f, far, 9)), (b"harm".to_vec(), b"far".to_vec()), "{name}");
        assert_eq!((f.size(), f.attr().unwrap().blocks), (far + 3, before), "{name}");
    }
    // A mapping that is allowed to continue still maps the file.
    let f = file(&root, "future");
    f.allow_sealing(true);
    write(&f, b"before", 0).unwrap();
    let (mapping, fd) = kept(&f);
    f.add_seals(libc::F_SEAL_FUTURE_WRITE).unwrap();
    mapping.write_all_at(b"beyond", 0).unwrap();
    assert_eq!(read(&f, 0, 6), b"beyond");
    drop(fd);
}

#[test]
fn offsets_of_a_directory_survive_changes() {
    let root = fs(1 << 20);
    for n in ["a", "b", "c", "d"] {
        file(&root, n);
    }
    let first = root.entries(0, 2);
    root.take(b"a").unwrap();
    root.take(b"c").unwrap();
    file(&root, "e");
    let rest: Vec<_> = root.entries(first[1].0, 10).into_iter().map(|e| e.1.to_vec()).collect();
    assert_eq!(rest, [b"d".to_vec(), b"e".to_vec()]);
}

#[test]
fn a_directory_of_very_many_names() {
    let inode = file(&fs(1 << 20), "f");
    let mut dir = Dir::default();
    let names: Vec<_> = (0..3 * super::MANY_NAMES).map(|n| n.to_string().into_bytes()).collect();
    for n in &names {
        assert!(dir.put(n, inode.clone()).is_none());
    }
    assert!(dir.put(&names[7], inode.clone()).is_some());
    assert!(names.iter().all(|n| dir.get(n).is_some()));
    for n in &names[1..] {
        dir.take(n).unwrap();
    }
    let mut left = Vec::new();
    dir.clear(&mut left, &mut Rounds::new());
    assert!(left.len() == 1 && dir.entries.is_empty() && dir.names.is_empty());
}
