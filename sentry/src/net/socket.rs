//! The open socket: the part that all families share (options of `SOL_SOCKET`, plain reads and writes), and [`Proto`],
//! the interface of a family.

use super::scm::{Scm, Ucred, WireCred};
use super::NetNs;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::fs::anon::AnonInode;
use crate::fs::{Attr, File, FileOps, SetAttr};
use crate::kernel::cred::NO_ID;
use crate::kernel::current;
use crate::kernel::wait::WaitQueue;
use crate::kernel::Task;
use crate::mm::io::{Dst, Src};
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::Arc;

/// `net.core.wmem_default` and `wmem_max`, doubled as the options report them.
pub const BUF_DEFAULT: usize = 212_992;
const BUF_MAX: u32 = 212_992;
const SNDBUF_MIN: usize = 4608;
const RCVBUF_MIN: usize = 2304;

/// A message to send.
#[derive(Default)]
pub struct SendMsg {
    /// `MSG_*`.
    pub flags: i32,
    /// The destination address, if given.
    pub addr: Option<Vec<u8>>,
    pub scm: Option<Box<Scm>>,
    /// Control messages of other levels: level, type, data.
    pub control: Vec<(i32, i32, Vec<u8>)>,
}

/// The parameters of a receive, and its results.
#[derive(Default)]
pub struct RecvMsg {
    /// The `MSG_*` flags of the call.
    pub flags: i32,
    /// Count the bytes without copying them (`MSG_TRUNC` on TCP).
    pub discard: bool,
    /// Read an urgent byte in line (`SO_OOBINLINE`).
    pub inline: bool,
    /// The `MSG_*` flags of the result.
    pub out_flags: i32,
    pub from: Option<Arc<[u8]>>,
    pub scm: Option<Box<Scm>>,
    /// The bytes came from a stretch with ancillary data: the read ends with it.
    pub marked: bool,
    /// Length of the whole message.
    pub real_len: usize,
    /// Other control messages: level, type, data.
    pub control: Vec<(i32, i32, Vec<u8>)>,
}

impl RecvMsg {
    pub fn new(flags: i32) -> Self {
        RecvMsg { flags, ..RecvMsg::default() }
    }
}

/// The state of a connect(2).
pub enum Connect {
    Done,
    /// Retry when this queue is woken.
    Wait(Arc<WaitQueue>),
}

/// A socket of one family. Dropping it closes it.
pub trait Proto: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    /// The queue that is woken when `poll` changes.
    fn queue(&self) -> &Arc<WaitQueue>;
    fn poll(&self) -> PollEvents;
    fn bind(&self, _s: &Socket, _task: &Task, _addr: &[u8]) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }
    fn listen(&self, _s: &Socket, _task: &Task, _backlog: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }
    /// Takes a pending connection; `EAGAIN` if there is none.
    fn accept(&self, _s: &Socket) -> Result<Box<dyn Proto>> {
        Err(Errno::EOPNOTSUPP)
    }
    /// `again`: the call continues after [`Connect::Wait`].
    fn connect(&self, _s: &Socket, _task: &Task, _addr: &[u8], _nonblock: bool, _again: bool) -> Result<Connect> {
        Err(Errno::EOPNOTSUPP)
    }
    /// The local address as `sockaddr`.
    fn local(&self) -> Vec<u8>;
    fn peer(&self) -> Result<Vec<u8>>;
    /// The peer address that accept(2) reports.
    fn accepted_from(&self) -> Option<Vec<u8>> {
        self.peer().ok()
    }
    fn shutdown(&self, _how: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }
    /// Sends a message; takes `msg.scm` on success.
    fn send(&self, s: &Socket, src: &mut Src<'_>, msg: &mut SendMsg) -> Result<usize>;
    fn recv(&self, s: &Socket, dst: &mut Dst<'_>, msg: &mut RecvMsg) -> Result<usize>;
    /// Returns the pending error and clears it (`SO_ERROR`).
    fn take_error(&self) -> i32 {
        0
    }
    fn listening(&self) -> bool {
        false
    }
    fn peer_cred(&self) -> Option<Ucred> {
        None
    }
    /// Reads an option of the family's own levels.
    fn get_opt(&self, _s: &Socket, _level: i32, _name: i32) -> Result<Vec<u8>> {
        Err(Errno::ENOPROTOOPT)
    }
    fn set_opt(&self, _s: &Socket, _task: &Task, _level: i32, _name: i32, _value: &[u8]) -> Result<()> {
        Err(Errno::ENOPROTOOPT)
    }
    /// A `SOL_SOCKET` option has changed that the family may depend on.
    fn opts_changed(&self, _s: &Socket) {}
    /// Bytes that the next read would return (`FIONREAD`), and bytes sent but not yet read (`SIOCOUTQ`).
    fn pending(&self) -> (usize, usize) {
        (0, 0)
    }
    fn ioctl(&self, _task: &Task, _cmd: u32, _arg: u64) -> SysResult {
        Err(Errno::ENOTTY.into())
    }
}

/// Options of `SOL_SOCKET`.
#[derive(Default)]
pub struct Options {
    pub reuse_addr: AtomicBool,
    pub reuse_port: AtomicBool,
    pub keepalive: AtomicBool,
    pub broadcast: AtomicBool,
    pub oob_inline: AtomicBool,
    pub dont_route: AtomicBool,
    pub debug: AtomicBool,
    pub pass_cred: AtomicBool,
    pub timestamp: AtomicBool,
    pub timestamp_ns: AtomicBool,
    pub no_check: AtomicBool,
    /// Seconds, or -1.
    pub linger: AtomicI32,
    pub priority: AtomicI32,
    pub mark: AtomicI32,
    pub rcv_lowat: AtomicI32,
    /// In ns; 0 for none.
    pub rcv_timeo: AtomicU64,
    pub snd_timeo: AtomicU64,
    pub snd_buf: AtomicU64,
    pub rcv_buf: AtomicU64,
    /// The guest set a size, which replaces the family's default.
    pub snd_buf_set: AtomicBool,
    pub rcv_buf_set: AtomicBool,
}

pub struct Socket {
    pub domain: i32,
    /// `SOCK_*`.
    pub kind: i32,
    pub protocol: i32,
    /// The network namespace of its creator.
    pub net: Arc<NetNs>,
    pub opts: Options,
    anon: AnonInode,
    pub proto: Box<dyn Proto>,
}

/// The socket behind an open file, or `ENOTSOCK`.
pub fn of(file: &File) -> Result<&Socket> {
    file.ops.as_any().downcast_ref().ok_or(Errno::ENOTSOCK)
}

const TIMEVAL: usize = 16;

fn flag(value: &[u8]) -> Result<i32> {
    match value {
        [a, b, c, d, ..] => Ok(i32::from_ne_bytes([*a, *b, *c, *d])),
        _ => Err(Errno::EINVAL),
    }
}

impl Socket {
    pub fn new(task: &Task, domain: i32, kind: i32, protocol: i32, proto: Box<dyn Proto>) -> Self {
        let opts = Options::default();
        opts.linger.store(-1, Ordering::Relaxed);
        opts.rcv_lowat.store(1, Ordering::Relaxed);
        opts.snd_buf.store(BUF_DEFAULT as u64, Ordering::Relaxed);
        opts.rcv_buf.store(BUF_DEFAULT as u64, Ordering::Relaxed);
        let net = task.ns().net.clone();
        let s = Socket { domain, kind, protocol, opts, net, anon: AnonInode::socket(task), proto };
        s.proto.opts_changed(&s);
        s
    }
    /// The socket that accept(2) returns: it inherits the listener's options.
    pub fn accepted(&self, task: &Task, proto: Box<dyn Proto>) -> Self {
        let mut s = Socket::new(task, self.domain, self.kind, self.protocol, proto);
        s.net = self.net.clone();
        let (a, b) = (&self.opts, &s.opts);
        for (from, to) in [
            (&a.reuse_addr, &b.reuse_addr),
            (&a.reuse_port, &b.reuse_port),
            (&a.keepalive, &b.keepalive),
            (&a.oob_inline, &b.oob_inline),
            (&a.pass_cred, &b.pass_cred),
            (&a.snd_buf_set, &b.snd_buf_set),
            (&a.rcv_buf_set, &b.rcv_buf_set),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        b.linger.store(a.linger.load(Ordering::Relaxed), Ordering::Relaxed);
        b.snd_buf.store(a.snd_buf.load(Ordering::Relaxed), Ordering::Relaxed);
        b.rcv_buf.store(a.rcv_buf.load(Ordering::Relaxed), Ordering::Relaxed);
        s.proto.opts_changed(&s);
        s
    }
    pub fn file(self, flags: i32) -> Arc<File> {
        File::new(Box::new(self), libc::O_RDWR | flags, None)
    }
    pub fn ino(&self) -> u64 {
        self.anon.ino()
    }
    /// The inode's permissions, which fchmod(2) changes.
    pub fn mode(&self) -> u32 {
        self.anon.attr().mode & 0o7777
    }
    /// A short write loses nothing: true for stream sockets.
    pub fn is_stream(&self) -> bool {
        self.kind == libc::SOCK_STREAM
    }
    pub fn pass_cred(&self) -> bool {
        self.opts.pass_cred.load(Ordering::Relaxed)
    }
    /// The timeout of a blocking call.
    pub fn timeout(&self, sending: bool) -> Option<u64> {
        let t = if sending { &self.opts.snd_timeo } else { &self.opts.rcv_timeo };
        Some(t.load(Ordering::Relaxed)).filter(|&t| t != 0)
    }

    fn flag_opt(&self, name: i32) -> Option<&AtomicBool> {
        let o = &self.opts;
        Some(match name {
            libc::SO_REUSEADDR => &o.reuse_addr,
            libc::SO_REUSEPORT => &o.reuse_port,
            libc::SO_KEEPALIVE => &o.keepalive,
            libc::SO_BROADCAST => &o.broadcast,
            libc::SO_OOBINLINE => &o.oob_inline,
            libc::SO_DONTROUTE => &o.dont_route,
            libc::SO_DEBUG => &o.debug,
            libc::SO_NO_CHECK => &o.no_check,
            libc::SO_PASSCRED => &o.pass_cred,
            libc::SO_TIMESTAMP => &o.timestamp,
            libc::SO_TIMESTAMPNS => &o.timestamp_ns,
            _ => return None,
        })
    }

    /// getsockopt(2): the whole value.
    pub fn get_opt(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        if level != libc::SOL_SOCKET {
            return self.proto.get_opt(self, level, name);
        }
        if let Some(f) = self.flag_opt(name) {
            return Ok(i32::from(f.load(Ordering::Relaxed)).to_ne_bytes().to_vec());
        }
        let o = &self.opts;
        let int = |v: i32| Ok(v.to_ne_bytes().to_vec());
        let time = |ns: u64| {
            let mut v = ((ns / 1_000_000_000) as i64).to_ne_bytes().to_vec();
            v.extend_from_slice(&((ns % 1_000_000_000 / 1000) as i64).to_ne_bytes());
            Ok(v)
        };
        match name {
            libc::SO_TYPE => int(self.kind),
            libc::SO_DOMAIN => int(self.domain),
            libc::SO_PROTOCOL => int(self.protocol),
            libc::SO_ERROR => int(self.proto.take_error()),
            libc::SO_ACCEPTCONN => int(i32::from(self.proto.listening())),
            libc::SO_SNDBUF => int(o.snd_buf.load(Ordering::Relaxed) as i32),
            libc::SO_RCVBUF => int(o.rcv_buf.load(Ordering::Relaxed) as i32),
            libc::SO_RCVLOWAT => int(o.rcv_lowat.load(Ordering::Relaxed)),
            libc::SO_SNDLOWAT => int(1),
            libc::SO_PRIORITY => int(o.priority.load(Ordering::Relaxed)),
            libc::SO_MARK => int(o.mark.load(Ordering::Relaxed)),
            libc::SO_LINGER => {
                let l = o.linger.load(Ordering::Relaxed);
                let mut v = i32::from(l >= 0).to_ne_bytes().to_vec();
                v.extend_from_slice(&l.max(0).to_ne_bytes());
                Ok(v)
            }
            // The old and the "new" form are the same on a 64-bit architecture.
            libc::SO_RCVTIMEO | 66 => time(o.rcv_timeo.load(Ordering::Relaxed)),
            libc::SO_SNDTIMEO | 67 => time(o.snd_timeo.load(Ordering::Relaxed)),
            libc::SO_PEERCRED => {
                // Unknown ids are -1 to every task.
                let c = match self.proto.peer_cred().filter(|c| c.uid != NO_ID).zip(current::get()) {
                    Some((c, task)) => c.seen_by(&task),
                    None => WireCred { pid: 0, uid: NO_ID, gid: NO_ID },
                };
                let mut v = c.pid.to_ne_bytes().to_vec();
                v.extend_from_slice(&c.uid.to_ne_bytes());
                v.extend_from_slice(&c.gid.to_ne_bytes());
                Ok(v)
            }
            libc::SO_COOKIE => Ok(self.ino().to_ne_bytes().to_vec()),
            libc::SO_INCOMING_CPU => int(-1),
            libc::SO_BINDTODEVICE => Ok(Vec::new()),
            _ => self.proto.get_opt(self, level, name),
        }
    }

    /// setsockopt(2).
    pub fn set_opt(&self, task: &Task, level: i32, name: i32, value: &[u8]) -> Result<()> {
        use crate::kernel::cred::{CAP_NET_ADMIN, CAP_NET_RAW};
        if level != libc::SOL_SOCKET {
            return self.proto.set_opt(self, task, level, name, value);
        }
        let o = &self.opts;
        let admin = || if task.cred().has(CAP_NET_ADMIN) { Ok(()) } else { Err(Errno::EPERM) };
        if let Some(f) = self.flag_opt(name) {
            let on = flag(value)? != 0;
            f.store(on, Ordering::Relaxed);
            self.proto.opts_changed(self);
            return Ok(());
        }
        match name {
            libc::SO_SNDBUF | libc::SO_SNDBUFFORCE => {
                if name == libc::SO_SNDBUFFORCE {
                    admin()?;
                }
                let v = (flag(value)? as u32).min(BUF_MAX) as usize * 2;
                o.snd_buf.store(v.max(SNDBUF_MIN) as u64, Ordering::Relaxed);
                o.snd_buf_set.store(true, Ordering::Relaxed);
                self.proto.opts_changed(self);
            }
            libc::SO_RCVBUF | libc::SO_RCVBUFFORCE => {
                if name == libc::SO_RCVBUFFORCE {
                    admin()?;
                }
                let v = (flag(value)? as u32).min(BUF_MAX) as usize * 2;
                o.rcv_buf.store(v.max(RCVBUF_MIN) as u64, Ordering::Relaxed);
                o.rcv_buf_set.store(true, Ordering::Relaxed);
                self.proto.opts_changed(self);
            }
            libc::SO_RCVLOWAT => {
                let v = flag(value)?;
                o.rcv_lowat.store(if v < 0 { i32::MAX } else { v.max(1) }, Ordering::Relaxed);
                self.proto.opts_changed(self);
            }
            libc::SO_PRIORITY => {
                let v = flag(value)?;
                if !(0..=6).contains(&v) {
                    admin()?;
                }
                o.priority.store(v, Ordering::Relaxed);
            }
            libc::SO_MARK => {
                let v = flag(value)?;
                let c = task.cred();
                if !c.has(CAP_NET_ADMIN) && !c.has(CAP_NET_RAW) {
                    return Err(Errno::EPERM);
                }
                o.mark.store(v, Ordering::Relaxed);
            }
            libc::SO_LINGER => {
                let (on, secs) = (flag(value)?, flag(value.get(4..).unwrap_or(&[]))?);
                o.linger.store(if on != 0 { secs.max(0) } else { -1 }, Ordering::Relaxed);
                self.proto.opts_changed(self);
            }
            libc::SO_RCVTIMEO | 66 => o.rcv_timeo.store(timeout(value)?, Ordering::Relaxed),
            libc::SO_SNDTIMEO | 67 => o.snd_timeo.store(timeout(value)?, Ordering::Relaxed),
            libc::SO_TYPE
            | libc::SO_DOMAIN
            | libc::SO_PROTOCOL
            | libc::SO_ERROR
            | libc::SO_ACCEPTCONN
            | libc::SO_PEERCRED
            | libc::SO_SNDLOWAT => return Err(Errno::ENOPROTOOPT),
            libc::SO_DETACH_FILTER => return Err(Errno::ENOENT),
            _ => return self.proto.set_opt(self, task, level, name, value),
        }
        Ok(())
    }
}

/// Parses `struct timeval` into ns; 0 for no timeout.
fn timeout(value: &[u8]) -> Result<u64> {
    if value.len() < TIMEVAL {
        return Err(Errno::EINVAL);
    }
    let word = |i: usize| value[i..i + 8].try_into().map_or(0, i64::from_ne_bytes);
    let (sec, usec) = (word(0), word(8));
    if !(0..1_000_000).contains(&usec) {
        return Err(Errno::EDOM);
    }
    if sec < 0 {
        // Linux returns at once; the shortest timeout has the same effect.
        return Ok(1);
    }
    Ok((sec as u64).saturating_mul(1_000_000_000).saturating_add(usec as u64 * 1000))
}

const SIOCOUTQ: u32 = 0x5411;

impl FileOps for Socket {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, _offset: u64) -> SysResult<usize> {
        if dst.remaining() == 0 && self.is_stream() {
            return Ok(0);
        }
        Ok(self.proto.recv(self, dst, &mut RecvMsg::default())?)
    }
    fn write(&self, _file: &File, src: &mut Src<'_>, _offset: u64) -> SysResult<(usize, u64)> {
        Ok((self.proto.send(self, src, &mut SendMsg::default())?, 0))
    }
    fn poll(&self, _file: &File) -> PollEvents {
        self.proto.poll()
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.proto.queue())
    }
    fn sigpipe(&self) -> bool {
        self.is_stream()
    }
    fn timeout(&self, write: bool) -> Option<u64> {
        Socket::timeout(self, write)
    }
    fn ioctl(&self, _file: &File, task: &Task, cmd: u32, arg: u64) -> SysResult<u64> {
        let n = match cmd {
            c if u64::from(c) == libc::FIONREAD => {
                if self.proto.listening() {
                    return Err(Errno::EINVAL.into());
                }
                self.proto.pending().0
            }
            SIOCOUTQ => {
                if self.proto.listening() {
                    return Err(Errno::EINVAL.into());
                }
                self.proto.pending().1
            }
            _ => {
                return match self.proto.ioctl(task, cmd, arg) {
                    Err(SysError::Errno(Errno::ENOTTY)) => super::device::ioctl(&self.net, task, cmd, arg),
                    r => r,
                }
            }
        };
        task.mem().write(arg, &(n.min(i32::MAX as usize) as i32))?;
        Ok(0)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(self.anon.attr())
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.anon.set_attr(set)
    }
    fn anon_name(&self) -> String {
        format!("socket:[{}]", self.ino())
    }
}
