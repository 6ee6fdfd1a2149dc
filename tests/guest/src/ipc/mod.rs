//! System V IPC (sysvipc(7)), POSIX message queues.

mod mqueue;

use crate::t::*;
use libc::*;
use std::ptr::null;

pub const GROUPS: &[(&str, &[crate::Case])] = &[
    ("sysv", cases![semaphores, undo_at_exit, messages, shared_memory, many_sets, limits_are_reported, listed_in_proc]),
    ("mqueue", mqueue::CASES),
];

const NEW: i32 = IPC_CREAT | IPC_EXCL | 0o600;

fn op(num: u16, by: i16, flags: i32) -> sembuf {
    sembuf { sem_num: num, sem_op: by, sem_flg: flags as i16 }
}

unsafe fn semaphores() {
    let id = ok(semget(IPC_PRIVATE, 2, NEW));
    ok(semctl(id, 0, SETVAL, 1));
    ok(semop(id, [op(0, -1, 0), op(1, 2, 0)].as_mut_ptr(), 2));
    is(semctl(id, 1, GETVAL), 2);
    // The operations are atomic.
    fails(semop(id, [op(1, -1, 0), op(0, -1, IPC_NOWAIT)].as_mut_ptr(), 2), EAGAIN);
    is(semctl(id, 1, GETVAL), 2);
    let pid = spawn(|| {
        ok(semop(id, &mut op(0, -1, 0), 1));
        0
    });
    asleep(pid);
    is(semctl(id, 0, GETNCNT), 1);
    ok(semop(id, &mut op(0, 1, 0), 1));
    exits(pid, 0);
    let pid = spawn(|| {
        fails(semop(id, &mut op(0, -1, 0), 1), EIDRM);
        0
    });
    asleep(pid);
    ok(semctl(id, 0, IPC_RMID));
    exits(pid, 0);
    fails(semop(id, &mut op(0, 1, 0), 1), EINVAL);
}

unsafe fn undo_at_exit() {
    let id = ok(semget(IPC_PRIVATE, 1, NEW));
    ok(semctl(id, 0, SETVAL, 5));
    in_child(|| {
        ok(semop(id, &mut op(0, -3, SEM_UNDO), 1));
        is(semctl(id, 0, GETVAL), 2);
    });
    is(semctl(id, 0, GETVAL), 5);
    ok(semctl(id, 0, IPC_RMID));
}

unsafe fn messages() {
    #[repr(C)]
    struct Message {
        kind: i64,
        text: [u8; 8],
    }
    let id = ok(msgget(IPC_PRIVATE, NEW));
    for kind in [3, 1, 2] {
        let m = Message { kind, text: [kind as u8; 8] };
        ok(msgsnd(id, (&raw const m).cast(), 8, 0));
    }
    let mut m = Message { kind: 0, text: [0; 8] };
    let p = (&raw mut m).cast();
    is(msgrcv(id, p, 8, 2, 0), 8);
    assert_eq!(m.text, [2; 8]);
    is(msgrcv(id, p, 8, -3, 0), 8);
    assert_eq!(m.kind, 1);
    fails(msgrcv(id, p, 4, 0, 0), E2BIG);
    is(msgrcv(id, p, 4, 0, MSG_NOERROR), 4);
    fails(msgrcv(id, p, 8, 0, IPC_NOWAIT), ENOMSG);
    m.kind = 0;
    fails(msgsnd(id, (&raw const m).cast(), 8, 0), EINVAL);
    ok(msgctl(id, IPC_RMID, std::ptr::null_mut()));
}

unsafe fn shared_memory() {
    let id = ok(shmget(IPC_PRIVATE, 10_000, NEW));
    let p = ok(shmat(id, null(), 0)).cast::<u8>();
    *p = 1;
    in_child(|| *p.add(9_999) = 2);
    assert_eq!(*p.add(9_999), 2);
    let q = ok(shmat(id, null(), SHM_RDONLY)).cast::<u8>();
    assert_eq!(*q, 1);
    let mut ds: shmid_ds = zeroed();
    ok(shmctl(id, IPC_STAT, &mut ds));
    assert_eq!((ds.shm_segsz, ds.shm_nattch), (10_000, 2));
    // A removed segment exists until it is detached.
    ok(shmctl(id, IPC_RMID, &mut ds));
    assert_eq!(*p, 1);
    ok(shmdt(p.cast()));
    ok(shmdt(q.cast()));
    fails(shmat(id, null(), 0), EINVAL);
    fails(shmdt(q.cast()), EINVAL);
}

unsafe fn many_sets() {
    let ids: Vec<i32> = (0..3000).map(|_| ok(semget(IPC_PRIVATE, 1, NEW))).collect();
    let distinct: std::collections::BTreeSet<i32> = ids.iter().copied().collect();
    assert_eq!(distinct.len(), ids.len());
    for id in &ids {
        ok(semctl(*id, 0, IPC_RMID));
    }
    // A released id is not the next to be used.
    let id = ok(semget(IPC_PRIVATE, 1, NEW));
    assert!(!distinct.contains(&id));
    ok(semctl(id, 0, IPC_RMID));
}

unsafe fn listed_in_proc() {
    let row = |kind: &str, id: i32| {
        let text = std::fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap();
        let words = |l: &str| l.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        text.lines().skip(1).map(words).find(|w| w[1] == id.to_string())
    };
    let id = ok(msgget(IPC_PRIVATE, NEW));
    ok(msgsnd(id, [1i64, 2].as_ptr().cast(), 8, 0));
    let w = row("msg", id).unwrap();
    assert_eq!((w[0].as_str(), &w[2..5]), ("0", ["600", "8", "1"].map(String::from).as_slice()));
    assert_eq!(w[7], geteuid().to_string());
    ok(msgctl(id, IPC_RMID, std::ptr::null_mut()));
    assert!(row("msg", id).is_none());
    let id = ok(semget(IPC_PRIVATE, 3, NEW));
    assert_eq!(row("sem", id).unwrap()[2..4], ["600", "3"].map(String::from));
    ok(semctl(id, 0, IPC_RMID));
    let id = ok(shmget(IPC_PRIVATE, 5000, NEW));
    let w = row("shm", id).unwrap();
    assert_eq!((w[3].as_str(), w[4].parse(), w[6].as_str()), ("5000", Ok(getpid()), "0"));
    ok(shmctl(id, IPC_RMID, std::ptr::null_mut()));
}

unsafe fn limits_are_reported() {
    let mut info = [0u64; 14];
    ok(shmctl(0, 3, info.as_mut_ptr().cast()));
    let told = |name: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap();
    assert_eq!(told("shmmax").trim(), info[0].to_string());
    assert_eq!(told("shmmni").trim(), info[2].to_string());
    assert_eq!(told("shmall").trim(), info[4].to_string());
}
