//! System V IPC and sockets: errors that the other groups do not cover, and interrupted calls.

use super::waits::cut_short;
use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] =
    cases![shared_memory, semaphores, messages, sockets, interrupted_semaphores, interrupted_messages];

unsafe fn shared_memory() {
    fails(shmget(IPC_PRIVATE, 0, IPC_CREAT | 0o600), EINVAL);
    fails(shmget(0x7654_3210, 100, 0), ENOENT);
    let id = ok(shmget(IPC_PRIVATE, 100, IPC_CREAT | 0o600));
    let mut ds: shmid_ds = zeroed();
    zero(shmctl(id, IPC_STAT, &mut ds));
    assert_eq!(ds.shm_segsz, 100);
    fails(shmctl(id, 77, &mut ds), EINVAL);
    zero(shmctl(id, IPC_RMID, std::ptr::null_mut()));
    assert_eq!(shmctl(id, IPC_STAT, &mut ds), -1);
    assert!([EINVAL, EIDRM].contains(&errno()));
}

unsafe fn semaphores() {
    fails(semget(IPC_PRIVATE, -1, IPC_CREAT | 0o600), EINVAL);
    fails(semget(0x7654_3210, 1, 0), ENOENT);
    let id = ok(semget(IPC_PRIVATE, 2, IPC_CREAT | 0o600));
    let mut up = sembuf { sem_num: 0, sem_op: 3, sem_flg: 0 };
    zero(syscall(SYS_semop, id, &mut up, 1) as i32);
    is(semctl(id, 0, GETVAL), 3);
    up.sem_num = 2;
    fails(syscall(SYS_semop, id, &mut up, 1), EFBIG);
    fails(syscall(SYS_semop, id, &mut up, 0), EINVAL);
    fails(syscall(SYS_semop, id, BAD, 1), EFAULT);
    fails(semctl(id, 9, GETVAL), EINVAL);
    fails(semctl(id, 0, 99), EINVAL);
    zero(semctl(id, 0, IPC_RMID));
    fails(semctl(id, 0, GETVAL), EINVAL);
}

unsafe fn messages() {
    fails(msgget(0x7654_3210, 0), ENOENT);
    let id = ok(msgget(IPC_PRIVATE, IPC_CREAT | 0o600));
    let mut ds: msqid_ds = zeroed();
    zero(msgctl(id, IPC_STAT, &mut ds));
    assert_eq!(ds.msg_qnum, 0);
    fails(msgctl(id, 99, &mut ds), EINVAL);
    zero(msgctl(id, IPC_RMID, std::ptr::null_mut()));
    fails(msgctl(id, IPC_STAT, &mut ds), EINVAL);
}

unsafe fn sockets() {
    let mut header: mmsghdr = zeroed();
    let mut byte = 1u8;
    let mut iov = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    header.msg_hdr.msg_iov = &mut iov;
    header.msg_hdr.msg_iovlen = 1;
    fails(sendmmsg(-1, &mut header, 1, 0), EBADF);
    fails(recvmmsg(-1, &mut header, 1, 0, std::ptr::null_mut()), EBADF);
    fails(recvmsg(-1, &mut header.msg_hdr, 0), EBADF);
    fails(accept4(-1, std::ptr::null_mut(), std::ptr::null_mut(), 0), EBADF);
    let mut s = [0; 2];
    ok(socketpair(AF_UNIX, SOCK_DGRAM, 0, s.as_mut_ptr()));
    fails(accept4(s[0], std::ptr::null_mut(), std::ptr::null_mut(), 1), EINVAL);
    fails(recvmsg(s[0], &mut header.msg_hdr, MSG_DONTWAIT), EAGAIN);
    fails(recvmmsg(s[0], &mut header, 1, MSG_DONTWAIT, std::ptr::null_mut()), EAGAIN);
    is(sendmmsg(s[0], &mut header, 1, 0), 1);
    is(recvmmsg(s[1], &mut header, 1, 0, std::ptr::null_mut()), 1);
    assert_eq!(header.msg_len, 1);
    let (r, _w) = pipe_pair();
    fails(sendmmsg(r, &mut header, 1, 0), ENOTSOCK);
}

unsafe fn interrupted_semaphores() {
    let id = ok(semget(IPC_PRIVATE, 1, IPC_CREAT | 0o600));
    let mut down = sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
    cut_short(|| syscall(SYS_semop, id, &mut down, 1));
    let long = timespec { tv_sec: 1000, tv_nsec: 0 };
    cut_short(|| syscall(SYS_semtimedop, id, &mut down, 1, &long));
    zero(semctl(id, 0, IPC_RMID));
}

unsafe fn interrupted_messages() {
    let id = ok(msgget(IPC_PRIVATE, IPC_CREAT | 0o600));
    let mut m = [1i64; 600];
    cut_short(|| msgrcv(id, m.as_mut_ptr().cast(), 4096, 0, 0));
    let mut ds: msqid_ds = zeroed();
    zero(msgctl(id, IPC_STAT, &mut ds));
    while msgsnd(id, m.as_ptr().cast(), 4096, IPC_NOWAIT) == 0 {}
    assert_eq!(errno(), EAGAIN);
    cut_short(|| msgsnd(id, m.as_ptr().cast(), 4096, 0));
    zero(msgctl(id, IPC_RMID, std::ptr::null_mut()));
    let name = c(&format!("/guest-tests-{}", getpid()));
    let mut attr: mq_attr = zeroed();
    (attr.mq_maxmsg, attr.mq_msgsize) = (1, 8);
    let q = ok(mq_open(name.as_ptr(), O_RDWR | O_CREAT, 0o600, &mut attr));
    ok(mq_unlink(name.as_ptr()));
    ok(mq_send(q, c"1".as_ptr(), 1, 0));
    cut_short(|| mq_send(q, c"2".as_ptr(), 1, 0));
}
