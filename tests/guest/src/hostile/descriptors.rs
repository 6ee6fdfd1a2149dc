//! Descriptors that are not the guest's: inherited by accident, guessed, passed, reopened.

use super::raw::*;
use super::*;

/// Examines a descriptor number, if it is open.
unsafe fn look(fd: i32, how: &str) {
    let mut data = [0u8; 512];
    let n = pread(fd, data.as_mut_ptr().cast(), 512, 0);
    search(&data[..n.clamp(0, 512) as usize], &format!("descriptor {fd}, {how}"));
}

pub unsafe fn descriptors() {
    raw::arm();
    let gate = Gate::new();
    // Only the standard streams (and the pipe to the bystander) were inherited.
    let mut open_ones = Vec::new();
    for fd in (0..4096).chain([1 << 16, 1 << 20, i32::MAX, -1, -100]) {
        if fcntl(fd, F_GETFD) != -1 {
            open_ones.push(fd);
            look(fd, "as it was");
        }
    }
    if open_ones.len() > 4 {
        got(&format!("descriptors {open_ones:?}"));
    }
    for fd in 0..64 {
        for name in [
            format!("/proc/self/fd/{fd}"),
            format!("/dev/fd/{fd}"),
            format!("/proc/self/fdinfo/{fd}"),
            format!("/proc/2/fd/{fd}"),
        ] {
            let again = open(c(&name).as_ptr(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
            if again >= 0 {
                look(again, &name);
                close(again);
            }
        }
    }
    // The descriptor numbers of the host's processes, in every call that takes one: closed, duplicated, sent.
    let mut pair = [0; 2];
    ok(socketpair(AF_UNIX, SOCK_STREAM, 0, pair.as_mut_ptr()));
    for fd in 3..200 {
        if open_ones.contains(&fd) || pair.contains(&fd) {
            continue;
        }
        let mut control = [0u64; 3];
        *control.as_mut_ptr().cast::<cmsghdr>() = zeroed();
        control[0] = 20;
        control[1] = 1 | 1 << 32;
        control[2] = fd as u64;
        let mut byte = 7u8;
        let mut iov = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut msg: msghdr = zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = 24;
        if sendmsg(pair[0], &msg, MSG_DONTWAIT) != -1 {
            got(&format!("to send descriptor {fd}"));
        }
        if dup(fd) != -1 || lseek(fd, 0, SEEK_CUR) != -1 || close(fd) != -1 {
            got(&format!("descriptor {fd} in use"));
        }
    }
    // Malformed control messages: wrong lengths, levels and counts of descriptors.
    for len in [0u64, 1, 15, 16, 17, 19, 20, 24, 4096, u64::MAX, 1 << 63, 16 + 4 * 254] {
        let mut control = [u64::MAX; 64];
        control[0] = len;
        control[1] = 1 | 1 << 32;
        let mut byte = 7u8;
        let mut iov = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut msg: msghdr = zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        for total in [16usize, 24, 512, usize::MAX] {
            msg.msg_controllen = total as _;
            sendmsg(pair[0], &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
    }
    // Descriptors sent to the sender itself in a ring, then closed: they cannot be received any more.
    for _ in 0..50 {
        let mut p = [0; 2];
        ok(socketpair(AF_UNIX, SOCK_STREAM, 0, p.as_mut_ptr()));
        for (from, what) in [(p[0], p[1]), (p[1], p[0])] {
            let mut control = [20u64, 1 | 1 << 32, what as u64];
            let mut byte = 7u8;
            let mut iov = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
            let mut msg: msghdr = zeroed();
            msg.msg_iov = &mut iov;
            msg.msg_iovlen = 1;
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = 24;
            sendmsg(from, &msg, MSG_DONTWAIT);
        }
        close(p[0]);
        close(p[1]);
    }
    // The stub's control socket has no message for an unsolicited reader.
    survive(4, |i| {
        let mut bytes = [0u8; 256];
        let mut control = [0u64; 32];
        let iov = [bytes.as_mut_ptr() as u64, 256];
        let msg = [0u64, 0, iov.as_ptr() as u64, 1, control.as_mut_ptr() as u64, 256, 0];
        let r = gate.call(SYS_recvmsg, [9, msg.as_ptr() as u64, [0x40u64, 0x42, 0x4000_0040, 0x40][i], 0, 0, 0]);
        if r > 0 {
            got(&format!("{r} bytes from the control socket"));
        }
        for fd in 0..64 {
            for at in [0x4000_0000_0000u64, AREA] {
                let r = gate.call(SYS_mmap, [at, if at == AREA { 4096 * 0x2_0000 } else { 4096 }, 3, 0x11, fd, 0]);
                if r == at as i64 {
                    got(&format!("memory by descriptor {fd}"));
                }
            }
        }
    });
    // File handles instead of names.
    for fd in [open(c"/".as_ptr(), O_RDONLY), open(c"/ro".as_ptr(), O_RDONLY), open(c"/rw".as_ptr(), O_RDONLY)] {
        let mut handle = [0u64; 18];
        for inode in [1u64, 2, 3, 128, 1 << 32 | 2] {
            for kind in [1u64, 0x81, 2, 0xff] {
                handle[0] = 8 | kind << 32;
                handle[1] = inode;
                let r = syscall(SYS_open_by_handle_at, fd, handle.as_ptr(), O_RDONLY);
                if r >= 0 {
                    got(&format!("a file by handle {inode}"));
                }
            }
        }
    }
}
