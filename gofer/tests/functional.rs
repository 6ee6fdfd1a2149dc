//! Effects of each operation, with a server in a thread and with a confined one.

mod common;

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{symlink, FileTypeExt, MetadataExt, PermissionsExt};

use common::{content, find, walk, Fixture, Mode};
use nix::errno::Errno;
use protocol::client::{DirEntry, List, WalkEnd};
use protocol::{
    Client, Detail, FileKind, MknodKind, NewNode, OpenFlags, RenameFlags, SetAttr, SetTime, Time, WalkFids, XattrMode,
};

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod thread { $(#[test] fn $name() { super::run(super::Mode::Thread, super::$name); })* }
        mod confined { $(#[test] fn $name() { super::run(super::Mode::Confined, super::$name); })* }
    };
}

cases!(
    attach_finds_trees_by_name,
    walk_reports_every_node,
    walk_stops_early,
    walk_opens_the_last_node,
    open_honours_its_flags,
    only_regular_files_are_opened,
    create_makes_and_opens,
    nodes_of_every_kind_are_made,
    link_unlink_rename,
    setattr_sets,
    listing_is_complete,
    listing_includes_small_files,
    listing_continues_while_entries_vanish,
    small_files_are_read_together,
    trees_are_listed_depth_first,
    attributes_of_the_file_system,
    extended_attributes,
    access_control_lists_of_fifos,
    read_only_trees_do_not_change,
    a_single_file_is_a_tree,
    nothing_crosses_trees,
    memfds_are_reopened,
    handles_are_released,
    fsync_works,
);

fn run(mode: Mode, case: fn(&Fixture, &Client)) {
    let (fixture, client) = Fixture::client(mode);
    case(&fixture, &client);
    assert!(!client.is_dead());
}

const RO: OpenFlags = OpenFlags::READ;
const RW: OpenFlags = OpenFlags::READ_WRITE;

fn attach_finds_trees_by_name(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap();
    assert_eq!(root.attr.kind(), FileKind::Directory);
    assert_eq!(root.attr.ino, fs::metadata(fx.host("")).unwrap().ino());
    assert_eq!(client.attach("nothing").unwrap_err(), Errno::ENOENT);
    assert_eq!(client.attach("").unwrap_err(), Errno::ENOENT);
    assert_eq!(client.attach(&"x".repeat(5000)).unwrap_err(), Errno::ENAMETOOLONG);
}

fn walk_reports_every_node(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    let found = root.walk(&[b"dir", b"inner"], WalkFids::Each, None).unwrap();
    assert_eq!((found.nodes.len(), found.end), (2, WalkEnd::Complete));
    assert!(found.file.is_none());
    let host = fs::metadata(fx.host("dir/inner")).unwrap();
    let attr = found.nodes[1].attr;
    assert_eq!((attr.mode, attr.ino, attr.size, attr.dev), (host.mode(), host.ino(), 5, host.dev()));
    assert_eq!((attr.uid, attr.gid, attr.nlink), (host.uid(), host.gid(), 1));
    assert_eq!((attr.blocks, u64::from(attr.blksize)), (host.blocks(), host.blksize()));
    assert_eq!((attr.mtime.sec, i64::from(attr.mtime.nsec)), (host.mtime(), host.mtime_nsec()));
    let dir = found.nodes[0].handle.as_ref().unwrap();
    assert_eq!(find(dir, "inner").attr, attr);
    assert_eq!(found.nodes[1].handle.as_ref().unwrap().getattr().unwrap(), attr);
    let found = root.walk(&[b"dir", b"inner"], WalkFids::None, None).unwrap();
    assert!(found.nodes.iter().all(|n| n.handle.is_none()) && found.nodes.len() == 2);
    let found = root.walk(&[b"dir", b"inner"], WalkFids::Last, None).unwrap();
    assert_eq!(found.nodes.iter().map(|n| n.handle.is_some()).collect::<Vec<_>>(), [false, true]);
}

fn walk_stops_early(_: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    for (path, nodes, end) in [
        ("missing", 0, WalkEnd::Missing),
        ("dir/missing/x", 1, WalkEnd::Missing),
        ("to_dir/inner", 1, WalkEnd::Symlink),
        ("up/root", 1, WalkEnd::Symlink),
        ("file/x", 1, WalkEnd::NotDirectory),
        ("dir/inner/x/y", 2, WalkEnd::NotDirectory),
        ("secret", 1, WalkEnd::Complete),
    ] {
        let found = walk(&root, path).unwrap();
        assert_eq!((found.nodes.len(), found.end), (nodes, end), "{path}");
        assert_eq!(
            found.nodes.last().is_some_and(|n| n.handle.is_some()),
            nodes > 0 && end != WalkEnd::Missing,
            "{path}"
        );
    }
    let link = walk(&root, "abs").unwrap().nodes.remove(0);
    assert_eq!(link.target.as_deref(), Some(&b"/etc/passwd"[..]));
    assert_eq!(link.handle.unwrap().readlink().unwrap(), b"/etc/passwd");
    let file = find(&root, "file").handle;
    assert_eq!(walk(&file, "x").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(file.readlink().unwrap_err(), Errno::EINVAL);
}

fn walk_opens_the_last_node(_: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    let open = |names: &[&[u8]]| root.walk(names, WalkFids::None, Some(RO)).unwrap();
    let mut text = String::new();
    fs::File::from(open(&[b"dir", b"inner"]).file.unwrap().unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "inner");
    for names in [&[&b"dir"[..]][..], &[b"to_file"], &[b"missing"], &[b"file", b"x"]] {
        assert!(open(names).file.is_none());
    }
    let ro = client.attach("ro").unwrap().handle;
    let found = ro.walk(&[b"file"], WalkFids::Last, Some(RW)).unwrap();
    assert_eq!((found.end, found.file.unwrap().unwrap_err()), (WalkEnd::Complete, Errno::EROFS));
    assert!(found.nodes[0].handle.is_some());
}

fn open_honours_its_flags(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    let file = find(&root, "file").handle;
    let open = |flags| fs::File::from(file.open(flags).unwrap());
    let mut text = String::new();
    open(RO).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert!(open(RO).write_all(b"x").is_err());
    open(RW).write_all(b"J").unwrap();
    assert!(open(OpenFlags::WRITE).read(&mut [0]).is_err());
    open(OpenFlags::WRITE | OpenFlags::APPEND).write_all(b"!").unwrap();
    assert_eq!(content(&fx.host("file")), "Jello!");
    open(RW | OpenFlags::TRUNC);
    assert_eq!(content(&fx.host("file")), "");
    // The handle is for the file, not for its name.
    fs::rename(fx.host("file"), fx.host("dir/elsewhere")).unwrap();
    open(RW).write_all(b"moved").unwrap();
    assert_eq!(content(&fx.host("dir/elsewhere")), "moved");
    assert_eq!(file.open(OpenFlags::empty()).unwrap_err(), Errno::EINVAL);
    assert_eq!(file.open(OpenFlags::READ | OpenFlags::TRUNC).unwrap_err(), Errno::EINVAL);
}

fn only_regular_files_are_opened(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    nix::unistd::mkfifo(&fx.host("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(fx.host("socket")).unwrap();
    for (name, errno) in
        [("dir", Errno::EISDIR), ("to_file", Errno::ELOOP), ("fifo", Errno::ENXIO), ("socket", Errno::ENXIO)]
    {
        assert_eq!(find(&root, name).handle.open(RO).unwrap_err(), errno, "{name}");
        assert!(root.walk(&[name.as_bytes()], WalkFids::None, Some(RO)).unwrap().file.is_none());
    }
}

fn create_makes_and_opens(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    let (node, fd) = root.create(b"new", NewNode::with_mode(0o4751), RW).unwrap();
    let mut file = fs::File::from(fd);
    file.write_all(b"content").unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), content(&fx.host("new")).as_str()), ("content", "content"));
    assert_eq!(node.attr.mode, 0o104751);
    assert_eq!(node.handle.getattr().unwrap().size, 7);
    for name in ["new", "dir", "to_file", "secret", "up"] {
        assert_eq!(root.create(name.as_bytes(), NewNode::with_mode(0o600), RW).unwrap_err(), Errno::EEXIST, "{name}");
    }
    assert_eq!(root.create(b"x", NewNode::with_mode(0o600), OpenFlags::empty()).unwrap_err(), Errno::EINVAL);
    assert_eq!(node.handle.create(b"x", NewNode::with_mode(0o600), RW).unwrap_err(), Errno::ENOTDIR);
    if common::root_for("files made for other users") {
        let new = NewNode { mode: 0o6755, uid: Some(1234), gid: Some(4321) };
        let (node, _) = root.create(b"owned", new, RW).unwrap();
        assert_eq!((node.attr.mode, node.attr.uid, node.attr.gid), (0o106755, 1234, 4321));
        // They are theirs from the start: by the time at which they could be given away another node can have the name.
        let new = NewNode { mode: 0o755, ..new };
        let made = [
            root.mkdir(b"their_dir", new),
            root.symlink(b"their_link", b"x", new),
            root.mknod(b"their_fifo", MknodKind::Fifo, new),
        ];
        for node in made.map(Result::unwrap) {
            assert_eq!((node.attr.uid, node.attr.gid, node.attr.ctime), (1234, 4321, node.attr.btime));
        }
        let node = root.mkdir(b"own", NewNode::with_mode(0o755)).unwrap();
        assert_eq!((node.attr.uid, node.attr.gid), (0, 0), "the server is itself again");
        let dir = root.mkdir(b"closed", NewNode { mode: 0o700, uid: Some(0), gid: Some(0) }).unwrap().handle;
        assert_eq!(dir.mkdir(b"in", new).unwrap().attr.uid, 1234, "permissions are the client's to check");
    }
}

fn nodes_of_every_kind_are_made(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    let new = NewNode::with_mode(0o1770);
    let dir = root.mkdir(b"made", new).unwrap();
    assert_eq!(dir.attr.mode, 0o041770);
    assert_eq!(root.mkdir(b"made", new).unwrap_err(), Errno::EEXIST);
    assert_eq!(dir.handle.mknod(b"regular", MknodKind::Regular, new).unwrap().attr.mode, 0o101770);
    assert_eq!(dir.handle.mknod(b"fifo", MknodKind::Fifo, NewNode::with_mode(0o622)).unwrap().attr.mode, 0o010622);
    assert_eq!(dir.handle.mknod(b"socket", MknodKind::Socket, NewNode::with_mode(0o622)).unwrap().attr.mode, 0o140622);
    assert!(fs::metadata(fx.host("made/fifo")).unwrap().file_type().is_fifo());
    let link = dir.handle.symlink(b"link", b"../../../anywhere", new).unwrap();
    assert_eq!(link.attr.kind(), FileKind::Symlink);
    assert_eq!(link.handle.readlink().unwrap(), b"../../../anywhere");
    assert_eq!(fs::read_link(fx.host("made/link")).unwrap().to_str(), Some("../../../anywhere"));
    for target in [&b""[..], b"a\0b"] {
        assert_eq!(root.symlink(b"bad", target, new).unwrap_err(), Errno::EINVAL);
    }
    assert_eq!(root.symlink(b"bad", &[b'x'; 4096], new).unwrap_err(), Errno::ENAMETOOLONG);
}

fn link_unlink_rename(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    let (file, dir) = (find(&root, "file"), find(&root, "dir").handle);
    let second = dir.link(b"second", &file.handle).unwrap();
    assert_eq!((second.attr.ino, second.attr.nlink), (file.attr.ino, 2));
    let to_file = find(&root, "to_file");
    assert_eq!(
        dir.link(b"link2", &to_file.handle).unwrap().attr.ino,
        to_file.attr.ino,
        "the link itself, not what it points to"
    );
    assert_eq!(root.link(b"x", &dir).unwrap_err(), Errno::EPERM);
    assert_eq!(root.link(b"to_dir", &file.handle).unwrap_err(), Errno::EEXIST);

    assert_eq!(root.unlink(b"dir", false).unwrap_err(), Errno::EISDIR);
    assert_eq!(root.unlink(b"dir", true).unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(root.unlink(b"file", true).unwrap_err(), Errno::ENOTDIR);
    root.unlink(b"file", false).unwrap();
    assert_eq!(root.unlink(b"file", false).unwrap_err(), Errno::ENOENT);
    assert_eq!(file.handle.getattr().unwrap().nlink, 1);
    dir.unlink(b"deep", true).unwrap();

    dir.rename(b"second", &root, b"third", RenameFlags::default()).unwrap();
    assert_eq!(content(&fx.host("third")), "hello");
    assert_eq!(root.rename(b"third", &dir, b"inner", RenameFlags::NOREPLACE).unwrap_err(), Errno::EEXIST);
    root.rename(b"third", &dir, b"inner", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((content(&fx.host("third")), content(&fx.host("dir/inner"))), ("inner".into(), "hello".into()));
    let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
    assert_eq!(root.rename(b"third", &dir, b"inner", both).unwrap_err(), Errno::EINVAL);
    root.rename(b"up", &root, b"still_up", RenameFlags::default()).unwrap();
    assert!(fs::symlink_metadata(fx.host("still_up")).unwrap().is_symlink());
}

fn setattr_sets(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    let file = find(&root, "file").handle;
    let at = |sec| Some(SetTime::At(Time { sec, nsec: 5 }));
    let attr = file
        .setattr(SetAttr { mode: Some(0o4640), size: Some(2), atime: at(-7), mtime: at(1 << 33), ..SetAttr::default() })
        .unwrap();
    assert_eq!((attr.mode, attr.size), (0o104640, 2));
    assert_eq!((attr.atime, attr.mtime), (Time { sec: -7, nsec: 5 }, Time { sec: 1 << 33, nsec: 5 }));
    let attr = file.setattr(SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() }).unwrap();
    assert_eq!(attr.atime.sec, -7);
    assert!(attr.mtime.sec < 1 << 33);
    assert_eq!(content(&fx.host("file")), "he");
    let link = find(&root, "to_file").handle;
    assert_eq!(link.setattr(SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap_err(), Errno::EOPNOTSUPP);
    assert_eq!(link.setattr(SetAttr { mtime: at(9), ..SetAttr::default() }).unwrap().mtime.sec, 9);
    assert_ne!(file.getattr().unwrap().mtime.sec, 9, "a link's times are its own");
    let dir = find(&root, "dir").handle;
    assert_eq!(dir.setattr(SetAttr { mode: Some(0o700), ..SetAttr::default() }).unwrap().mode, 0o040700);
    assert_eq!(dir.setattr(SetAttr { size: Some(0), ..SetAttr::default() }).unwrap_err(), Errno::EISDIR);
    assert_eq!(link.setattr(SetAttr { size: Some(0), ..SetAttr::default() }).unwrap_err(), Errno::EINVAL);
    assert_eq!(file.setattr(SetAttr::default()).unwrap(), file.getattr().unwrap());
    if common::root_for("changes of a file's owner") {
        let owner = SetAttr { uid: Some(77), gid: Some(88), ..SetAttr::default() };
        let attr = link.setattr(owner).unwrap();
        assert_eq!((attr.uid, attr.gid), (77, 88));
        assert_ne!(file.getattr().unwrap().uid, 77);
        let attr = file.setattr(SetAttr { uid: Some(5), ..SetAttr::default() }).unwrap();
        assert_eq!((attr.uid, attr.gid), (5, fs::metadata(fx.host("file")).unwrap().gid()));
        // Permissions that exclude all users do not exclude the Gofer.
        fs::set_permissions(fx.host("file"), fs::Permissions::from_mode(0o000)).unwrap();
        file.open(RW).unwrap();
    }
}

fn listing_is_complete(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    let mut expected = vec![];
    fs::create_dir(fx.host("many")).unwrap();
    for i in 0..2000 {
        let name = format!("entry-{i}-{}", "x".repeat(i % 200));
        fs::write(fx.host("many").join(&name), "").unwrap();
        expected.push(name);
    }
    expected.sort();
    let many = find(&root, "many").handle;
    for detail in [Detail::Names, Detail::Attr, Detail::Content(100)] {
        let (mut found, mut cookie, mut pages) = (vec![], 0, 0);
        loop {
            let page = many.read_dir(cookie, detail).unwrap();
            pages += 1;
            assert_eq!(page.iter().count(), page.len());
            for entry in page.iter() {
                assert_eq!(entry.attr.is_some(), detail.has_attr());
                assert!(entry.attr.is_none_or(|a| a.ino == entry.ino && a.kind() == FileKind::Regular));
                assert!(matches!(entry.kind, FileKind::Regular | FileKind::Unknown));
                found.push(String::from_utf8(entry.name.to_vec()).unwrap());
                cookie = entry.cookie;
            }
            if page.eof {
                break;
            }
            assert!(!page.is_empty());
        }
        assert!(pages > 1);
        found.sort();
        assert_eq!(found, expected);
    }
    // By name, in one request; the handle that comes back has the rest.
    let List { rest, way, page: first } = root.list(&[b"many"], Detail::Attr).unwrap();
    assert_eq!(way.iter().map(|a| a.ino).collect::<Vec<_>>(), [fs::metadata(fx.host("many")).unwrap().ino()]);
    let mut found: Vec<_> = first.iter().map(|e| (e.name.to_vec(), e.cookie)).collect();
    let rest = rest.unwrap();
    let mut eof = first.eof;
    while !eof {
        let page = rest.read_dir(found.last().unwrap().1, Detail::Attr).unwrap();
        found.extend(page.iter().map(|e| (e.name.to_vec(), e.cookie)));
        eof = page.eof;
    }
    let mut found: Vec<_> = found.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect();
    found.sort();
    assert_eq!(found, expected);
    let List { rest, way, page } = root.list(&[b"dir", b"deep"], Detail::Names).unwrap();
    assert!(rest.is_none() && page.is_empty() && page.eof && way.len() == 2);
    assert_eq!(root.list(&[b"file"], Detail::Names).unwrap_err(), Errno::ENOTDIR);
    assert_eq!(root.list(&[b"file", b"x"], Detail::Names).unwrap_err(), Errno::ENOTDIR);
    assert_eq!(root.list(&[b"dir", b"none"], Detail::Names).unwrap_err(), Errno::ENOENT);
    for link in ["to_dir", "up", "abs"] {
        assert!(root.list(&[link.as_bytes()], Detail::Names).is_err(), "{link}");
        assert!(root.list(&[link.as_bytes(), b"x"], Detail::Names).is_err(), "{link}");
    }
    let deep = find(&root, "dir/deep").handle;
    let page = deep.read_dir(0, Detail::Names).unwrap();
    assert!(page.is_empty() && page.eof);
    assert_eq!(find(&root, "file").handle.read_dir(0, Detail::Names).unwrap_err(), Errno::ENOTDIR);
    assert!(many.read_dir(u64::MAX, Detail::Names).is_err());
}

fn listing_includes_small_files(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    fs::create_dir(fx.host("files")).unwrap();
    let at = |name: &str| fx.host("files").join(name);
    for i in 0..300 {
        fs::write(at(&format!("{i}")), format!("{i} ").repeat(i)).unwrap();
    }
    fs::create_dir(at("dir")).unwrap();
    symlink("0", at("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), rustix::fs::Mode::RWXU).unwrap();
    let check = |entries: Vec<DirEntry<'_>>, most: u64| {
        for e in &entries {
            let (attr, name) = (e.attr.unwrap(), std::str::from_utf8(e.name).unwrap());
            assert_eq!(attr.ino, e.ino);
            let small = attr.kind() == FileKind::Regular && attr.size <= most;
            assert_eq!(e.content, small.then(|| fs::read(at(name)).unwrap()).as_deref(), "{name}");
        }
        entries.len()
    };
    let dir = find(&root, "files").handle;
    for most in [0, 500, protocol::MAX_CONTENT] {
        let (mut found, mut cookie) = (0, 0);
        loop {
            let page = dir.read_dir(cookie, Detail::Content(most)).unwrap();
            found += check(page.iter().collect(), most.into());
            cookie = page.last().unwrap_or(cookie);
            if page.eof {
                break;
            }
            assert!(!page.is_empty());
        }
        assert_eq!(found, 303);
    }
    let page = root.list(&[b"files"], Detail::Content(500)).unwrap().page;
    assert!(!page.is_empty());
    check(page.iter().collect(), 500);
    let pages = root.list_tree(&[b"files"], 60_000, Detail::Content(500)).unwrap();
    assert!(!pages[0].page.is_empty());
    check(pages[0].page.iter().collect(), 500);
    // Files larger than a page come without content.
    fs::create_dir(fx.host("one")).unwrap();
    fs::write(fx.host("one/large"), "x".repeat(65_536)).unwrap();
    let pages = root.list_tree(&[b"one"], 10_000, Detail::Content(protocol::MAX_CONTENT)).unwrap();
    let entry = pages[0].page.iter().next().unwrap();
    assert!(pages[0].page.eof && entry.content.is_none() && entry.attr.unwrap().size == 65_536);
    assert_eq!(root.list(&[b"one"], Detail::Content(protocol::MAX_CONTENT + 1)).unwrap_err(), Errno::ENAMETOOLONG);
}

fn small_files_are_read_together(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    fs::write(fx.host("empty"), "").unwrap();
    fs::write(fx.host("exact"), "x".repeat(100)).unwrap();
    fs::write(fx.host("larger"), "x".repeat(101)).unwrap();
    nix::unistd::mkfifo(&fx.host("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let names: Vec<&[u8]> =
        vec![b"file", b"none", b"dir", b"to_file", b"secret", b"abs", b"empty", b"fifo", b"exact", b"larger", b"file"];
    let files = root.read_files(&[], &names, 100).unwrap();
    let read: Vec<_> = files.iter().map(|f| f.as_ref().map(|(_, c)| c.len())).collect();
    assert_eq!(read, [Some(5), None, None, None, None, None, Some(0), None, Some(100), None, Some(5)]);
    let (attr, content) = files[0].as_ref().unwrap();
    assert_eq!((&content[..], attr.ino), (&b"hello"[..], fs::metadata(fx.host("file")).unwrap().ino()));
    // As many as one reply holds.
    let big = vec![7u8; 30_000];
    for i in 0..5 {
        fs::write(fx.host(&format!("big{i}")), &big).unwrap();
    }
    let files = root.read_files(&[], &[b"big0", b"big1", b"big2", b"big3", b"big4"], protocol::MAX_CONTENT).unwrap();
    assert_eq!(files.len(), 2);
    assert!(files.iter().all(|f| f.as_ref().is_some_and(|(_, c)| **c == big[..])));
    fs::write(fx.host("big0"), vec![1u8; 65_536]).unwrap();
    let files = root.read_files(&[], &[b"big0", b"big1"], protocol::MAX_CONTENT).unwrap();
    assert_eq!(files.iter().flatten().map(|(_, c)| c.len()).collect::<Vec<_>>(), [65_536]);
    assert_eq!(find(&root, "file").handle.read_files(&[], &[b"x"], 1).unwrap_err(), Errno::ENOTDIR);
    assert_eq!(root.read_files(&[], &[b".."], 1).unwrap_err(), Errno::EINVAL);
    assert_eq!(root.read_files(&[], &[], 1).unwrap_err(), Errno::EINVAL);
    // In a directory below.
    fs::create_dir_all(fx.host("way/down")).unwrap();
    fs::write(fx.host("way/down/x"), "abc").unwrap();
    let (way, files) = root.read_files_below(&[b"way", b"down"], &[b"x", b"none"], 100).unwrap();
    assert_eq!(way.last().unwrap().ino, fs::metadata(fx.host("way/down")).unwrap().ino());
    assert_eq!(files.iter().map(|f| f.as_ref().map(|(_, c)| &c[..])).collect::<Vec<_>>(), [Some(&b"abc"[..]), None]);
    assert_eq!(root.read_files(&[b"way", b"none"], &[b"x"], 100).unwrap_err(), Errno::ENOENT);
    assert_eq!(root.read_files(&[b"way", b".."], &[b"x"], 100).unwrap_err(), Errno::EINVAL);
    assert_eq!(root.read_files(&[b"way"], &[], 100).unwrap_err(), Errno::EINVAL);
}

fn trees_are_listed_depth_first(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    for dir in ["t/a/x", "t/a/y/z", "t/b", "t/c"] {
        fs::create_dir_all(fx.host(dir)).unwrap();
        fs::write(fx.host(dir).join("file"), "").unwrap();
    }
    std::os::unix::fs::symlink("../b", fx.host("t/a/link")).unwrap();
    let t = find(&root, "t").handle;
    // Their paths, in order, and the number of entries of each.
    let paths = |pages: &[protocol::client::TreePage]| {
        let mut paths: Vec<(String, usize)> = vec![(String::new(), 0)];
        for p in pages {
            let path = format!("{}/{}", paths[p.parent].0, String::from_utf8_lossy(&p.name));
            assert_eq!(p.attr.ino, fs::metadata(fx.host("t").join(&path[1..])).unwrap().ino());
            paths.push((path, p.page.len()));
        }
        paths.split_off(1)
    };
    for detail in [Detail::Names, Detail::Attr, Detail::Content(100)] {
        let pages = t.list_tree(&[b"c", b"none", b"a", b"link", b"b"], 60_000, detail).unwrap();
        assert!(pages.iter().all(|p| p.page.eof && p.page.iter().all(|e| e.attr.is_some() == detail.has_attr())));
        let paths = paths(&pages);
        let (first, last) = (&paths[..2], &paths[paths.len() - 1]);
        assert_eq!((first, last), (&[("/c".into(), 1), ("/a".into(), 3)][..], &("/b".into(), 1)));
        let mut below = paths[2..paths.len() - 1].to_vec();
        below.sort();
        assert_eq!(below, [("/a/x".into(), 1), ("/a/y".into(), 1), ("/a/y/z".into(), 1)]);
        let at = |path: &str| paths.iter().position(|p| p.0 == path).unwrap();
        assert_eq!(at("/a/y/z"), at("/a/y") + 1);
    }
    assert!(t.list_tree(&[b"none", b"a"], 0, Detail::Attr).unwrap().is_empty());
    // If the page is full, the last one is incomplete.
    fs::create_dir(fx.host("t/a/many")).unwrap();
    for i in 0..1000 {
        fs::write(fx.host(&format!("t/a/many/{i}")), "").unwrap();
    }
    let pages = t.list_tree(&[b"a", b"b"], 8192, Detail::Attr).unwrap();
    let (last, whole) = pages.split_last().unwrap();
    assert!(!last.page.eof && &*last.name == b"many" && whole.iter().all(|p| p.page.eof));
    let many = find(&root, "t/a/many").handle;
    let rest = many.read_dir(last.page.iter().last().unwrap().cookie, Detail::Names).unwrap();
    assert_eq!(last.page.len() + rest.len(), 1000);
    assert_eq!(t.list_tree(&[b".."], 100, Detail::Attr).unwrap_err(), Errno::EINVAL);
    assert_eq!(find(&root, "file").handle.list_tree(&[b"x"], 100, Detail::Attr).unwrap_err(), Errno::ENOTDIR);
}

fn listing_continues_while_entries_vanish(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    fs::create_dir(fx.host("many")).unwrap();
    for i in 0..3000 {
        fs::write(fx.host("many").join(format!("{i:0100}")), "").unwrap();
    }
    let many = find(&root, "many").handle;
    let mut left = 3000;
    // As `rm -r` does: removes the listed entries before the next page.
    let mut cookie = 0;
    loop {
        let page = many.read_dir(cookie, Detail::Names).unwrap();
        for entry in page.iter() {
            many.unlink(entry.name, false).unwrap();
            left -= 1;
            cookie = entry.cookie;
        }
        if page.eof {
            break;
        }
    }
    assert_eq!(left, 0);
    // More listings in progress than the server keeps open.
    for i in 0..500 {
        fs::write(fx.host("many").join(format!("{i:0200}")), "").unwrap();
    }
    let listings: Vec<_> = (0..40).map(|_| find(&root, "many").handle).collect();
    let first: Vec<_> = listings.iter().map(|l| l.read_dir(0, Detail::Names).unwrap()).collect();
    for (listing, first) in listings.iter().zip(&first) {
        assert!(!first.eof);
        let second = listing.read_dir(first.iter().last().unwrap().cookie, Detail::Names).unwrap();
        assert_eq!((first.len() + second.len(), second.eof), (500, true));
    }
}

fn attributes_of_the_file_system(fx: &Fixture, client: &Client) {
    let st = client.attach("root").unwrap().handle.statfs().unwrap();
    let host = nix::sys::statfs::statfs(&fx.dir).unwrap();
    assert_eq!((st.blocks, st.files), (host.blocks(), host.files()));
    assert_eq!(
        (i128::from(st.bsize), i128::from(st.kind)),
        (i128::from(host.block_size()), i128::from(host.filesystem_type().0))
    );
    assert_eq!(st.namelen, 255);
}

fn extended_attributes(_: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    let file = find(&root, "file").handle;
    assert_eq!(file.list_xattr().unwrap(), b"");
    file.set_xattr(b"user.a", b"value", XattrMode::Any).unwrap();
    assert_eq!(file.get_xattr(b"user.a").unwrap(), b"value");
    assert_eq!(file.set_xattr(b"user.a", b"", XattrMode::Create).unwrap_err(), Errno::EEXIST);
    assert_eq!(file.set_xattr(b"user.b", b"", XattrMode::Replace).unwrap_err(), Errno::ENODATA);
    assert_eq!(file.list_xattr().unwrap(), b"user.a\0");
    file.remove_xattr(b"user.a").unwrap();
    assert_eq!(file.get_xattr(b"user.a").unwrap_err(), Errno::ENODATA);
    for name in [&b"security.capability"[..], b"trusted.overlay.opaque", b"system.posix_acl"] {
        assert_eq!(file.set_xattr(name, b"x", XattrMode::Any).unwrap_err(), Errno::EOPNOTSUPP);
        assert_eq!(file.remove_xattr(name).unwrap_err(), Errno::EOPNOTSUPP);
    }
    assert_eq!(file.set_xattr(b"user.a", &vec![0; 65537], XattrMode::Any).unwrap_err(), Errno::E2BIG);
    assert_eq!(file.get_xattr(&[b'x'; 256]).unwrap_err(), Errno::ERANGE);
    assert_eq!(file.get_xattr(b"").unwrap_err(), Errno::EINVAL);
    let link = find(&root, "to_file").handle;
    assert_eq!(link.set_xattr(b"user.a", b"", XattrMode::Any).unwrap_err(), Errno::EPERM);
    assert_eq!(link.get_xattr(b"user.a").unwrap_err(), Errno::ENODATA);
    assert_eq!(link.list_xattr().unwrap(), b"");
}

fn access_control_lists_of_fifos(fx: &Fixture, client: &Client) {
    const ACL: &[u8] = b"system.posix_acl_access";
    let root = client.attach("root").unwrap().handle;
    let fifo = root.mknod(b"fifo", MknodKind::Fifo, NewNode::with_mode(0o600)).unwrap().handle;
    assert_eq!(fifo.get_xattr(ACL).unwrap_err(), Errno::ENODATA);
    // The owner, user 3000, the group, the mask, others.
    let entries = [(1u16, 6u16, u32::MAX), (2, 6, 3000), (4, 0, u32::MAX), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend([&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    let name = std::str::from_utf8(ACL).unwrap();
    match rustix::fs::setxattr(fx.host("fifo"), name, &acl, rustix::fs::XattrFlags::empty()) {
        Ok(()) => assert_eq!(fifo.get_xattr(ACL).unwrap(), acl),
        Err(e) => assert_eq!(e, rustix::io::Errno::OPNOTSUPP),
    }
    assert_eq!(fifo.get_xattr(b"user.a").unwrap_err(), Errno::ENODATA);
    assert_eq!(find(&root, "to_file").handle.get_xattr(ACL).unwrap_err(), Errno::ENODATA);
}

fn read_only_trees_do_not_change(fx: &Fixture, client: &Client) {
    let ro = client.attach("ro").unwrap().handle;
    let (file, dir) = (find(&ro, "file").handle, find(&ro, "dir").handle);
    let new = NewNode::with_mode(0o777);
    let refused = Some(Errno::EROFS);
    for flags in [RW, OpenFlags::WRITE, RW | OpenFlags::TRUNC, OpenFlags::WRITE | OpenFlags::APPEND] {
        assert_eq!(file.open(flags).err(), refused);
        assert_eq!(ro.walk(&[b"file"], WalkFids::None, Some(flags)).unwrap().file.unwrap().err(), refused);
    }
    assert_eq!(ro.create(b"x", new, RO).err(), refused);
    assert_eq!(dir.mkdir(b"x", new).err(), refused);
    assert_eq!(dir.symlink(b"x", b"y", new).err(), refused);
    assert_eq!(dir.mknod(b"x", MknodKind::Fifo, new).err(), refused);
    assert_eq!(dir.link(b"x", &file).err(), refused);
    assert_eq!(ro.unlink(b"file", false).err(), refused);
    assert_eq!(ro.rename(b"file", &dir, b"x", RenameFlags::default()).err(), refused);
    let sets = [
        SetAttr { mode: Some(0o777), ..SetAttr::default() },
        SetAttr { uid: Some(1), ..SetAttr::default() },
        SetAttr { size: Some(0), ..SetAttr::default() },
        SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() },
    ];
    for set in sets {
        assert_eq!(file.setattr(set).err(), refused);
    }
    assert_eq!(file.set_xattr(b"user.a", b"", XattrMode::Any).err(), refused);
    assert_eq!(file.remove_xattr(b"user.a").err(), refused);
    assert_eq!(content(&fx.dir.join("ro/file")), "hello");
    let mut text = String::new();
    fs::File::from(file.open(RO).unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

fn a_single_file_is_a_tree(fx: &Fixture, client: &Client) {
    let file = client.attach("file").unwrap();
    assert_eq!(file.attr.kind(), FileKind::Regular);
    fs::File::from(file.handle.open(RW).unwrap()).write_all(b"S").unwrap();
    assert_eq!(content(&fx.dir.join("single")), "Single");
    assert_eq!(walk(&file.handle, "x").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(file.handle.create(b"x", NewNode::with_mode(0), RW).unwrap_err(), Errno::ENOTDIR);
}

fn nothing_crosses_trees(_: &Fixture, client: &Client) {
    let (root, ro) = (client.attach("root").unwrap().handle, client.attach("ro").unwrap().handle);
    let file = find(&ro, "file").handle;
    assert_eq!(root.link(b"x", &file).unwrap_err(), Errno::EXDEV);
    assert_eq!(ro.rename(b"file", &root, b"x", RenameFlags::default()).unwrap_err(), Errno::EXDEV);
    assert_eq!(root.rename(b"file", &ro, b"x", RenameFlags::EXCHANGE).unwrap_err(), Errno::EXDEV);
    let (_other, other_client) = Fixture::client(Mode::Thread);
    let other = other_client.attach("root").unwrap().handle;
    assert_eq!(root.rename(b"file", &other, b"x", RenameFlags::default()).unwrap_err(), Errno::EXDEV);
    assert_eq!(root.link(b"x", &other).unwrap_err(), Errno::EXDEV);
}

fn memfds_are_reopened(fx: &Fixture, client: &Client) {
    use nix::sys::memfd::{memfd_create, MFdFlags};
    let mut memfd = fs::File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
    memfd.write_all(b"memory").unwrap();
    let mut reopened = fs::File::from(client.reopen_read_only(memfd.as_fd()).unwrap());
    let mut text = String::new();
    reopened.read_to_string(&mut text).unwrap();
    assert_eq!(text, "memory");
    assert!(reopened.write_all(b"x").is_err());
    memfd.write_all(b" shared").unwrap();
    reopened.read_to_string(&mut text).unwrap();
    assert_eq!(text, "memory shared");
    // No other kind is reopened: neither named files, nor devices, nor pipes.
    let named = fs::File::open(fx.host("file")).unwrap();
    let device = fs::File::open("/dev/null").unwrap();
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let deleted = {
        fs::write(fx.host("deleted"), "").unwrap();
        let file = fs::File::open(fx.host("deleted")).unwrap();
        fs::remove_file(fx.host("deleted")).unwrap();
        file
    };
    for fd in [named.as_fd(), device.as_fd(), pipe.as_fd()] {
        assert_eq!(client.reopen_read_only(fd).unwrap_err(), Errno::EINVAL);
    }
    if nix::sys::statfs::fstatfs(&deleted).unwrap().filesystem_type() != nix::sys::statfs::TMPFS_MAGIC {
        assert_eq!(client.reopen_read_only(deleted.as_fd()).unwrap_err(), Errno::EINVAL);
    }
}

fn handles_are_released(_: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    assert_eq!(client.max_handles(), 1000);
    // Ten times as many as the server holds at a time.
    for _ in 0..10_000 {
        find(&root, "file");
    }
    let held: Vec<_> = (0..999).map(|_| client.attach("root").unwrap()).collect();
    assert_eq!(client.attach("root").unwrap_err(), Errno::EMFILE);
    let full = root.walk(&[b"dir", b"inner"], WalkFids::Each, Some(RO)).unwrap();
    assert_eq!((full.nodes.len(), full.end), (0, WalkEnd::Failed(Errno::EMFILE as u32)));
    assert!(full.file.is_none());
    assert!(root.walk(&[b"dir", b"inner"], WalkFids::None, Some(RO)).unwrap().file.is_some());
    drop(held);
    client.flush();
    find(&root, "dir/inner");
}

fn fsync_works(fx: &Fixture, client: &Client) {
    let root = client.attach("root").unwrap().handle;
    for path in ["dir", "file"] {
        find(&root, path).handle.fsync(false).unwrap();
        find(&root, path).handle.fsync(true).unwrap();
    }
    assert_eq!(find(&root, "to_file").handle.fsync(false).unwrap_err(), Errno::EINVAL);
    nix::unistd::mkfifo(&fx.host("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(find(&root, "fifo").handle.fsync(false).unwrap_err(), Errno::EINVAL);
}
