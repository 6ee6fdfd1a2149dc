//! Every message survives encoding and decoding, and other bytes do no harm.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use protocol::reply::{self, DirEntry, FileContent, NodeRef, TreeDir, WalkEnd};
use protocol::request::{Header, Names, Op, Request};
use protocol::wire::{DecodeError, Reader, Writer};
use protocol::{
    AclState, Attr, Detail, Fid, FileKind, MknodKind, NewNode, OpenFlags, RenameFlags, SetAttr, SetTime, StatFs, Time,
    WalkFids, XattrMode,
};

fn fid() -> impl Strategy<Value = Fid> {
    (1..=u64::MAX).prop_map(|raw| Fid::new(raw).unwrap())
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>().prop_filter("no name has it", |b| *b != b'/' && *b != 0), 1..=255)
        .prop_filter("no name", |n| n != b"." && n != b"..")
}

fn id() -> impl Strategy<Value = Option<u32>> {
    option::of(0..u32::MAX)
}

fn new_node() -> impl Strategy<Value = NewNode> {
    (0..=0o7777u32, id(), id()).prop_map(|(mode, uid, gid)| NewNode { mode, uid, gid })
}

fn open_flags() -> impl Strategy<Value = OpenFlags> {
    (1..256u32).prop_map(OpenFlags::from_bits_truncate).prop_filter("means nothing", |f| {
        f.intersects(OpenFlags::READ_WRITE) && (f.writes() || !f.contains(OpenFlags::TRUNC))
    })
}

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0..1_000_000_000u32).prop_map(|(sec, nsec)| Time { sec, nsec })
}

fn set_time() -> impl Strategy<Value = Option<SetTime>> {
    option::of(prop_oneof![Just(SetTime::Now), time().prop_map(SetTime::At)])
}

fn set_attr() -> impl Strategy<Value = SetAttr> {
    (option::of(0..=0o7777u32), id(), id(), option::of(0..=i64::MAX as u64), set_time(), set_time())
        .prop_map(|(mode, uid, gid, size, atime, mtime)| SetAttr { mode, uid, gid, size, atime, mtime })
}

fn attr() -> impl Strategy<Value = Attr> {
    let ids = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
    let sizes = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let acl = prop_oneof![Just(AclState::Unknown), Just(AclState::Absent), Just(AclState::Present)];
    (ids, sizes, (time(), time(), time(), time()), acl).prop_map(
        |((mode, uid, gid, nlink, blksize), (ino, size, blocks, dev, rdev), (atime, mtime, ctime, btime), acl)| Attr {
            mode,
            uid,
            gid,
            nlink,
            ino,
            size,
            blocks,
            dev,
            rdev,
            blksize,
            atime,
            mtime,
            ctime,
            btime,
            acl,
            limits: protocol::Limits::from_bits_truncate(acl as u8),
        },
    )
}

/// The parts of requests.
#[derive(Debug, Clone)]
struct Parts {
    fids: (Fid, Fid),
    names: Vec<Vec<u8>>,
    bytes: Vec<u8>,
    new: NewNode,
    open: OpenFlags,
    set: SetAttr,
    numbers: (u64, u32),
    choice: (u8, bool),
}

fn parts() -> impl Strategy<Value = Parts> {
    let bytes = vec(1..=255u8, 1..4000);
    (
        (fid(), fid()),
        vec(name(), 2..=64),
        bytes,
        new_node(),
        open_flags(),
        set_attr(),
        (any::<u64>(), 0..=65536u32),
        any::<(u8, bool)>(),
    )
        .prop_map(|(fids, names, bytes, new, open, set, numbers, choice)| Parts {
            fids,
            names,
            bytes,
            new,
            open,
            set,
            numbers,
            choice,
        })
}

/// One request of every kind.
fn requests<'a>(p: &'a Parts, names: &'a [&'a [u8]]) -> Vec<Request<'a>> {
    let (fid, dir) = p.fids;
    let (name, name2) = (&p.names[0][..], &p.names[1][..]);
    let (new, bytes) = (p.new, &p.bytes[..]);
    let pick = |n: u8| p.choice.0 % n;
    let fids = [WalkFids::None, WalkFids::Last, WalkFids::Each][usize::from(pick(3))];
    let kind = [MknodKind::Regular, MknodKind::Fifo, MknodKind::Socket][usize::from(pick(3))];
    let mode = [XattrMode::Any, XattrMode::Create, XattrMode::Replace][usize::from(pick(3))];
    let flags = [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE][usize::from(pick(3))];
    let xattr = name;
    let detail = if p.choice.1 { Detail::Content(p.numbers.1) } else { Detail::Attr };
    vec![
        Request::Hello { magic: protocol::MAGIC, version: protocol::VERSION },
        Request::Attach { name: bytes },
        Request::Walk { dir, fids, open: p.choice.1.then_some(p.open), names: Names::List(names) },
        Request::Open { fid, flags: p.open },
        Request::Create { dir, name, new, flags: p.open },
        Request::Mkdir { dir, name, new },
        Request::Symlink { dir, name, target: bytes, new },
        Request::Mknod { dir, name, kind, new },
        Request::Link { target: fid, dir, name },
        Request::Unlink { dir, name, is_dir: p.choice.1 },
        Request::Rename { old_dir: fid, old_name: name, new_dir: dir, new_name: name2, flags },
        Request::Readlink { fid },
        Request::Getattr { fid },
        Request::Setattr { fid, set: p.set },
        Request::ReadDir { dir, cookie: p.numbers.0, max_bytes: p.numbers.1, detail },
        Request::Statfs { fid },
        Request::GetXattr { fid, name: xattr },
        Request::SetXattr { fid, name: xattr, value: bytes, mode },
        Request::ListXattr { fid },
        Request::RemoveXattr { fid, name: xattr },
        Request::Fsync { fid, data_only: p.choice.1 },
        Request::Release,
        Request::ReopenReadOnly,
        Request::List { dir, detail, names: Names::List(names) },
        Request::ReadFiles { dir, max_size: p.numbers.1, way: 0, names: Names::List(names) },
        Request::ListTree { dir, max_bytes: p.numbers.1, detail, names: Names::List(names) },
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn requests_survive(p in parts(), tag: u32, released in vec(fid(), 0..300)) {
        let names: Vec<&[u8]> = p.names.iter().map(Vec::as_slice).collect();
        let all = requests(&p, &names);
        prop_assert_eq!(all.iter().map(Request::op).collect::<Vec<_>>(), Op::ALL);
        let mut buf = Vec::new();
        for request in all {
            prop_assert_eq!(request.check(), Ok(()));
            request.encode(&mut buf, tag, &released);
            let (header, gone, decoded) = Request::decode(&buf).unwrap();
            prop_assert_eq!(decoded, request);
            prop_assert_eq!((header.tag, header.op), (tag, request.op()));
            let sent = &released[..released.len().min(protocol::MAX_RELEASE)];
            prop_assert_eq!(gone.iter().collect::<Vec<_>>(), sent);
        }
    }

    #[test]
    fn a_part_of_a_request_is_no_request(p in parts(), cut: prop::sample::Index, extra in vec(any::<u8>(), 1..20)) {
        let names: Vec<&[u8]> = p.names.iter().map(Vec::as_slice).collect();
        let mut buf = Vec::new();
        for request in requests(&p, &names) {
            request.encode(&mut buf, 1, &[p.fids.0]);
            let mut short = buf[..cut.index(buf.len())].to_vec();
            prop_assert_eq!(Request::decode(&short).err(), Some(DecodeError::Truncated));
            // With a matching length, a field is cut.
            if short.len() >= Header::SIZE {
                let length = (short.len() as u32).to_le_bytes();
                short[..4].copy_from_slice(&length);
                prop_assert!(Request::decode(&short).is_err());
            }
            buf.extend_from_slice(&extra);
            prop_assert_eq!(Request::decode(&buf).err(), Some(DecodeError::Trailing));
            let length = (buf.len() as u32).to_le_bytes();
            buf[..4].copy_from_slice(&length);
            prop_assert_eq!(Request::decode(&buf).err(), Some(DecodeError::Trailing));
        }
    }

    #[test]
    fn noise_does_no_harm(
        op in 0..30u16,
        aux in 0..4u16,
        mut body in vec(any::<u8>(), 0..600),
        at: prop::sample::Index,
    ) {
        let mut buf = Vec::new();
        let mut w = Writer::new(&mut buf);
        w.u32(16 + body.len() as u32);
        w.u16(op);
        w.u16(aux);
        w.u64(0);
        w.bytes(&body);
        if let Ok((_, released, request)) = Request::decode(&buf) {
            prop_assert_eq!(released.iter().count() <= usize::from(aux), true);
            prop_assert_eq!(request.op() as u16, op);
            if let Request::Walk { names, .. } = request {
                prop_assert_eq!(names.iter().count(), names.len());
            }
        }
        // Noise as replies.
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = 0;
        }
        let mut r = Reader::new(&body);
        let _ = NodeRef::decode(&mut r);
        let _ = DirEntry::decode(&mut Reader::new(&body));
        let _ = reply::Walk::decode(&mut Reader::new(&body));
        let _ = reply::decode_bytes(&mut Reader::new(&body));
        let _ = FileContent::decode(&mut Reader::new(&body));
        let _ = TreeDir::decode(&mut Reader::new(&body), 1);
        let _ = Header::decode(&body);
    }

    #[test]
    fn mutations_do_no_harm(p in parts(), at: prop::sample::Index, value: u8) {
        let names: Vec<&[u8]> = p.names.iter().map(Vec::as_slice).collect();
        let mut buf = Vec::new();
        for request in requests(&p, &names) {
            request.encode(&mut buf, 1, &[p.fids.0]);
            let at = at.index(buf.len());
            buf[at] = value;
            if let Ok((_, _, Request::Walk { names, .. })) = Request::decode(&buf) {
                for name in names.iter() {
                    prop_assert!(protocol::wire::check_name(name).is_ok());
                }
            }
        }
    }

    #[test]
    fn replies_survive(attr in attr(), f in option::of(fid()), name in name(), cookie: u64, errno in 1..=4095u32) {
        let target = (attr.kind() == FileKind::Symlink).then_some(&name[..]);
        let mut buf = Vec::new();
        let node = NodeRef { fid: f, attr, target };
        let mut w = reply::begin(&mut buf, Op::Walk, 7);
        let failed = WalkEnd::Failed(errno);
        for end in [WalkEnd::Complete, WalkEnd::Missing, WalkEnd::Symlink, WalkEnd::NotDirectory, failed] {
            let walk = reply::Walk { count: 1, end, open_errno: errno };
            reply::Walk { count: 0, end: WalkEnd::Complete, open_errno: 0 }.encode(&mut w);
            walk.patch(&mut w);
            let mut fixed = Vec::new();
            walk.encode(&mut Writer::new(&mut fixed));
            prop_assert_eq!(reply::Walk::decode(&mut Reader::new(&fixed)), Ok(walk));
            w.truncate(Header::SIZE);
            w.bytes(&fixed);
            node.encode(&mut w);
            w.truncate(Header::SIZE + fixed.len());
            node.encode(&mut w);
        }
        reply::finish(&mut buf, 1);
        let (header, mut r) = Header::decode(&buf).unwrap();
        prop_assert_eq!((header.op, header.aux, header.tag, header.status), (Op::Walk, 1, 7, 0));
        reply::Walk::decode(&mut r).unwrap();
        prop_assert_eq!(NodeRef::decode(&mut r), Ok(node));
        prop_assert_eq!(r.end(), Ok(()));

        let regular = Attr { mode: 0o100_644, size: name.len() as u64, ..attr };
        for (attr, content) in [(None, None), (Some(attr), None), (Some(regular), Some(&name[..]))] {
            let entry = DirEntry { ino: cookie, cookie, kind: FileKind::Socket, name: &name, attr, content };
            let mut buf = Vec::new();
            entry.encode(&mut Writer::new(&mut buf));
            prop_assert_eq!(buf.len(), entry.size());
            prop_assert_eq!(DirEntry::decode(&mut Reader::new(&buf)), Ok(entry));
        }
        for file in [None, Some((regular, &name[..]))] {
            let content = FileContent { file };
            let mut buf = Vec::new();
            content.encode(&mut Writer::new(&mut buf));
            prop_assert_eq!(buf.len(), file.map_or(1, |_| FileContent::size(name.len())));
            prop_assert_eq!(FileContent::decode(&mut Reader::new(&buf)), Ok(content));
        }
        let directory = Attr { mode: 0o040_755, ..attr };
        for (parent, number, good) in [(0, 1, true), (4, 5, true), (5, 5, false), (6, 5, false)] {
            let dir = TreeDir { parent, name: &name, attr: directory };
            let mut buf = Vec::new();
            dir.encode(&mut Writer::new(&mut buf));
            prop_assert_eq!(buf.len(), dir.size());
            let decoded = TreeDir::decode(&mut Reader::new(&buf), number);
            prop_assert_eq!(decoded, if good { Ok(dir) } else { Err(DecodeError::BadValue("directory")) });
        }
        for wrong in [Attr { size: regular.size + 1, ..regular }, Attr { mode: 0o040_755, ..regular }] {
            let mut buf = Vec::new();
            FileContent { file: Some((wrong, &name)) }.encode(&mut Writer::new(&mut buf));
            prop_assert_eq!(FileContent::decode(&mut Reader::new(&buf)), Err(DecodeError::BadValue("content")));
        }
        let mut buf = Vec::new();
        reply::encode_attr(&mut Writer::new(&mut buf), &attr);
        prop_assert_eq!(buf.len(), Attr::SIZE);
        prop_assert_eq!(reply::decode_attr(&mut Reader::new(&buf)), Ok(attr));
        reply::error(&mut buf, Op::Open, 9, errno);
        let (header, r) = Header::decode(&buf).unwrap();
        prop_assert_eq!((header.status, header.tag, r.rest()), (errno, 9, &[][..]));
    }
}

#[test]
fn statfs_survives() {
    let st = StatFs {
        kind: 1,
        bsize: 2,
        frsize: 3,
        blocks: 4,
        bfree: 5,
        bavail: 6,
        files: 7,
        ffree: 8,
        namelen: 9,
        flags: 10,
    };
    let mut buf = Vec::new();
    reply::encode_statfs(&mut Writer::new(&mut buf), &st);
    assert_eq!(reply::decode_statfs(&mut Reader::new(&buf)), Ok(st));
}

/// A request with an arbitrary body.
fn raw(op: Op, body: &[u8]) -> Vec<u8> {
    let mut buf = Vec::new();
    let length = (Header::SIZE + body.len()) as u32;
    Header { length, op, aux: 0, tag: 0, status: 0 }.encode(&mut Writer::new(&mut buf));
    buf.extend_from_slice(body);
    buf
}

#[test]
fn invalid_names_are_refused() {
    for name in [&b""[..], b".", b"..", b"/", b"a/b", b"/etc", b"a\0", b"\0", b"../x"] {
        let mut body = vec![1, 0, 0, 0, 0, 0, 0, 0, name.len() as u8];
        body.extend_from_slice(name);
        body.push(0);
        assert_eq!(Request::decode(&raw(Op::Unlink, &body)).err(), Some(DecodeError::BadName), "{name:?}");
        let mut walk = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, b'x', name.len() as u8];
        walk.extend_from_slice(name);
        assert_eq!(Request::decode(&raw(Op::Walk, &walk)).err(), Some(DecodeError::BadName), "{name:?}");
        let fid = Fid::new(1).unwrap();
        let request = Request::Unlink { dir: fid, name, is_dir: false };
        assert_eq!(request.check(), Err(DecodeError::BadName));
    }
    for name in [&b"..."[..], b".a", b"..a", b" ", b"\xff\xfe", b"-", b"\n"] {
        assert_eq!(Request::Unlink { dir: Fid::new(1).unwrap(), name, is_dir: false }.check(), Ok(()));
    }
}

#[test]
fn limits_hold() {
    let fid = Fid::new(1).unwrap();
    let long = vec![b'x'; 70_000];
    let new = NewNode::with_mode(0);
    let names = vec![&b"x"[..]; 65];
    let files = vec![&b"x"[..]; 129];
    let mut buf = Vec::new();
    for (request, error) in [
        (Request::Attach { name: &long[..4096] }, DecodeError::TooLong("attach name")),
        (Request::Symlink { dir: fid, name: b"x", target: &long[..4096], new }, DecodeError::TooLong("symlink target")),
        (Request::GetXattr { fid, name: &long[..256] }, DecodeError::TooLong("xattr name")),
        (
            Request::SetXattr { fid, name: b"x", value: &long[..65537], mode: XattrMode::Any },
            DecodeError::TooLong("xattr value"),
        ),
        (
            Request::Walk { dir: fid, fids: WalkFids::None, open: None, names: Names::List(&names) },
            DecodeError::TooLong("list of names"),
        ),
        (
            Request::ReadFiles { dir: fid, max_size: 1, way: 1, names: Names::List(&files) },
            DecodeError::TooLong("list of names"),
        ),
        (
            Request::ReadFiles {
                dir: fid,
                max_size: protocol::MAX_CONTENT + 1,
                way: 0,
                names: Names::List(&names[..1]),
            },
            DecodeError::TooLong("content"),
        ),
        (
            Request::ReadFiles { dir: fid, max_size: 1, way: 2, names: Names::List(&names[..2]) },
            DecodeError::BadValue("number of names"),
        ),
        (
            Request::ListTree { dir: fid, max_bytes: 65537, detail: Detail::Attr, names: Names::List(&names[..1]) },
            DecodeError::TooLong("directory page"),
        ),
        (
            Request::List { dir: fid, detail: Detail::Content(65537), names: Names::List(&names[..1]) },
            DecodeError::TooLong("content"),
        ),
        (
            Request::ReadDir { dir: fid, cookie: 0, max_bytes: 1, detail: Detail::Content(65537) },
            DecodeError::TooLong("content"),
        ),
    ] {
        assert_eq!(request.check(), Err(error));
        request.encode(&mut buf, 0, &[]);
        assert_eq!(Request::decode(&buf).err(), Some(error));
    }
    let request = Request::ReadDir { dir: fid, cookie: 0, max_bytes: 65537, detail: Detail::Names };
    request.encode(&mut buf, 0, &[]);
    assert_eq!(Request::decode(&buf).err(), Some(DecodeError::TooLong("directory page")));
    // The largest possible request fits.
    let largest = Request::SetXattr { fid, name: &long[..255], value: &long[..65536], mode: XattrMode::Any };
    largest.encode(&mut buf, 0, &vec![fid; protocol::MAX_RELEASE]);
    assert!(buf.len() <= protocol::MAX_MESSAGE);
    assert_eq!(Request::decode(&buf).unwrap().2, largest);
    // A longer one is rejected, whatever its contents.
    let mut huge = raw(Op::Getattr, &vec![0; protocol::MAX_MESSAGE]);
    assert_eq!(Request::decode(&huge).err(), Some(DecodeError::Trailing));
    huge[6] = 255;
    huge[7] = 255;
    assert!(Request::decode(&huge).is_err());
}

#[test]
fn other_versions_are_refused() {
    let mut buf = Vec::new();
    for (magic, version) in [(protocol::MAGIC, protocol::VERSION + 1), (protocol::MAGIC + 1, protocol::VERSION)] {
        Request::Hello { magic, version }.encode(&mut buf, 0, &[]);
        assert_eq!(Request::decode(&buf).err(), Some(DecodeError::BadVersion));
    }
    assert_eq!(Op::from_raw(0), Err(DecodeError::UnknownOp(0)));
    assert_eq!(Op::from_raw(27), Err(DecodeError::UnknownOp(27)));
    for (i, op) in Op::ALL.iter().enumerate() {
        assert_eq!((*op as usize, Op::from_raw(*op as u16)), (i + 1, Ok(*op)));
    }
}
