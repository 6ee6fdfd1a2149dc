use super::*;

fn root() -> Cred {
    Cred::user(0, 0, vec![], CAP_ALL)
}

fn user(uid: u32, euid: u32, suid: u32) -> Cred {
    Cred { uid, euid, suid, fsuid: euid, ..Cred::user(uid.max(1), 100, vec![], CAP_ALL) }
}

fn uids(c: &Cred) -> (u32, u32, u32, u32) {
    (c.uid, c.euid, c.suid, c.fsuid)
}

#[test]
fn setuid_of_root_changes_all_and_drops_capabilities() {
    let c = root().setuid(7).unwrap();
    assert_eq!(uids(&c), (7, 7, 7, 7));
    assert_eq!((c.permitted, c.effective), (0, 0));
    assert_eq!(c.bounding, CAP_ALL);
}

#[test]
fn setuid_of_a_user_switches_between_real_and_saved() {
    let c = user(5, 5, 9).setuid(9).unwrap();
    assert_eq!(uids(&c), (5, 9, 9, 9));
    assert_eq!(user(5, 9, 9).setuid(6), Err(Errno::EPERM));
    assert_eq!(user(5, 9, 9).setuid(NO_ID), Err(Errno::EINVAL));
}

#[test]
fn setreuid_moves_the_saved_id() {
    // (before, ruid, euid) => after
    let keep = NO_ID;
    let table = [
        ((5, 6, 7), (keep, 5), Ok((5, 5, 7, 5))),
        ((5, 6, 7), (keep, 7), Ok((5, 7, 7, 7))),
        ((5, 6, 6), (6, 5), Ok((6, 5, 5, 5))),
        ((5, 6, 7), (5, keep), Ok((5, 6, 6, 6))),
        ((5, 6, 7), (7, keep), Err(Errno::EPERM)),
        ((5, 6, 7), (keep, 8), Err(Errno::EPERM)),
    ];
    for ((r, e, s), (nr, ne), want) in table {
        assert_eq!(user(r, e, s).setreuid(nr, ne).map(|c| uids(&c)), want, "{r} {e} {s} -> {nr} {ne}");
    }
}

#[test]
fn setresuid_allows_any_of_the_three() {
    let c = user(5, 6, 7);
    assert_eq!(c.setresuid(7, 5, 6).map(|c| uids(&c)), Ok((7, 5, 6, 5)));
    assert_eq!(c.setresuid(NO_ID, NO_ID, NO_ID).map(|c| uids(&c)), Ok((5, 6, 7, 6)));
    assert_eq!(c.setresuid(NO_ID, NO_ID, 8), Err(Errno::EPERM));
}

#[test]
fn effective_capabilities_follow_the_effective_user() {
    let c = root().setresuid(NO_ID, 5, NO_ID).unwrap();
    assert_eq!((c.permitted, c.effective), (CAP_ALL, 0));
    let c = c.setresuid(NO_ID, 0, NO_ID).unwrap();
    assert_eq!(c.effective, CAP_ALL);
}

#[test]
fn keepcaps_keeps_the_permitted_set() {
    let c = root().set_keepcaps(true).unwrap().setuid(5).unwrap();
    assert_eq!((c.permitted, c.effective), (CAP_ALL, 0));
    let fixed = Cred { securebits: SECBIT_NO_SETUID_FIXUP, ..root() };
    assert_eq!(fixed.setuid(5).unwrap().effective, CAP_ALL);
}

#[test]
fn setfsuid_moves_the_file_capabilities() {
    let c = root().setfsuid(5).unwrap();
    assert!(!c.has(CAP_DAC_OVERRIDE) && c.has(CAP_SETUID));
    assert!(c.setfsuid(0).unwrap().has(CAP_DAC_OVERRIDE));
    assert_eq!(user(5, 5, 5).setfsuid(6), None);
}

#[test]
fn capset_only_takes_away() {
    let c = Cred { permitted: 0b111, effective: 0b111, inheritable: 0, bounding: 0b1111, ..user(5, 5, 5) };
    assert_eq!(c.capset(0b1, 0b11, 0b1).map(|c| (c.effective, c.permitted, c.inheritable)), Ok((0b1, 0b11, 0b1)));
    assert_eq!(c.capset(0, 0b1000, 0), Err(Errno::EPERM));
    assert_eq!(c.capset(0b100, 0b11, 0), Err(Errno::EPERM));
    assert_eq!(c.capset(0, 0, 0b1000), Err(Errno::EPERM));
    let p = Cred { permitted: CAP_SETPCAP, effective: CAP_SETPCAP, ..c };
    assert!(p.capset(0, 0, 0b1000).is_ok());
    assert_eq!(p.capset(0, 0, 0b1_0000), Err(Errno::EPERM));
}

#[test]
fn capset_lowers_ambient() {
    let c = Cred { permitted: 3, effective: 3, inheritable: 3, ambient: 3, ..user(5, 5, 5) };
    assert_eq!(c.capset(0, 3, 1).unwrap().ambient, 1);
    assert_eq!(c.capset(0, 2, 3).unwrap().ambient, 2);
}

#[test]
fn securebits_lock() {
    let c = root().set_securebits(u64::from(SECBIT_NOROOT | SECBIT_NOROOT << 1)).unwrap();
    assert_eq!(c.set_securebits(u64::from(SECBIT_NOROOT)), Err(Errno::EPERM));
    assert_eq!(c.set_securebits(u64::from(SECBIT_NOROOT << 1)), Err(Errno::EPERM));
    assert_eq!(root().set_securebits(1 << 20), Err(Errno::EPERM));
    assert_eq!(user(5, 5, 5).set_securebits(0), Err(Errno::EPERM));
}

#[test]
fn exec_of_a_plain_file() {
    let plain = ExecFile { mode: 0o755, ..Default::default() };
    let e = exec_cred(&root(), &plain).unwrap();
    assert_eq!((e.cred.permitted, e.cred.effective, e.secure), (CAP_ALL, CAP_ALL, false));
    // execve clears a user's capabilities, except ambient ones.
    let c = Cred { permitted: 3, effective: 3, inheritable: 1, ambient: 1, ..user(5, 5, 5) };
    let e = exec_cred(&c, &plain).unwrap();
    assert_eq!((e.cred.permitted, e.cred.effective, e.cred.ambient, e.secure), (1, 1, 1, false));
}

#[test]
fn exec_of_a_set_user_id_root_file() {
    let suid = ExecFile { mode: 0o4755, ..Default::default() };
    let e = exec_cred(&user(5, 5, 5), &suid).unwrap();
    assert_eq!(uids(&e.cred), (5, 0, 0, 0));
    assert_eq!((e.cred.effective, e.secure), (CAP_ALL, true));
    let nnp = Cred { no_new_privs: true, ..user(5, 5, 5) };
    let e = exec_cred(&nnp, &suid).unwrap();
    assert_eq!(uids(&e.cred), (5, 5, 5, 5));
    assert_eq!((e.cred.effective, e.secure), (0, false));
    let e = exec_cred(&user(5, 5, 5), &ExecFile { nosuid: true, ..suid }).unwrap();
    assert_eq!(uids(&e.cred), (5, 5, 5, 5));
}

#[test]
fn exec_of_a_set_group_id_file() {
    let f = |mode| exec_cred(&user(5, 5, 5), &ExecFile { gid: 42, mode, ..Default::default() }).unwrap();
    assert_eq!((f(0o2755).cred.egid, f(0o2755).secure), (42, true));
    assert_eq!(f(0o2745).cred.egid, 100);
}

#[test]
fn exec_with_file_capabilities() {
    let mut raw = [0u8; 20];
    raw[0] = 1;
    raw[3] = 2;
    raw[5] = 0x20; // CAP_NET_RAW
    let caps = FileCaps::parse(&raw).unwrap();
    assert_eq!(caps, FileCaps { permitted: CAP_NET_RAW, inheritable: 0, effective: true, root: 0 });
    let file = ExecFile { mode: 0o755, caps: Some(caps), ..Default::default() };
    let e = exec_cred(&user(5, 5, 5), &file).unwrap();
    assert_eq!((e.cred.permitted, e.cred.effective, e.secure), (CAP_NET_RAW, CAP_NET_RAW, true));
    let bound = Cred { bounding: 0, ..user(5, 5, 5) };
    assert_eq!(exec_cred(&bound, &file), Err(Errno::EPERM));
    let nnp = Cred { no_new_privs: true, ..user(5, 5, 5) };
    assert_eq!(exec_cred(&nnp, &file).unwrap().cred.permitted, 0);
    assert_eq!(FileCaps::parse(&raw[..12]), None);
}
