//! An established TCP connection over loopback: two [`Queue`]s between two ends, and the TCP states that a program can
//! observe.
//!
//! A closed queue has carried a FIN: its bytes can still be read, then comes the end of file. A reset leaves the queue
//! open and sets an error on the other end. A send to an end that is gone succeeds, and the sender's end is then reset.

use crate::abi::PollEvents;
use crate::error::{Errno, Result};
use crate::kernel::wait::WaitQueue;
use crate::mm::io::{Dst, Src};
use crate::net::queue::Queue;
use crate::net::socket::RecvMsg;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::Arc;

/// States as `TCP_INFO` and `/proc/net/tcp` number them.
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const FIN_WAIT2: u8 = 5;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LISTEN: u8 = 10;
}

/// The part of a socket that the connection's other end uses too.
#[derive(Default)]
pub struct Shared {
    pub wake: Arc<WaitQueue>,
    /// Pending error (`SO_ERROR`).
    pub error: AtomicI32,
    /// This socket's contribution to the capacity of the queues that it sends to and receives from.
    pub snd: AtomicUsize,
    pub rcv: AtomicUsize,
}

impl Shared {
    pub fn take_error(&self) -> i32 {
        if self.error.load(Ordering::SeqCst) == 0 {
            return 0;
        }
        self.error.swap(0, Ordering::SeqCst)
    }
}

struct End {
    shared: Arc<Shared>,
    /// The socket is closed: it reads and writes no more.
    gone: AtomicBool,
    /// The connection was reset.
    reset: AtomicBool,
}

struct Pair {
    ends: [End; 2],
    /// `queues[i]` is read by end `i`.
    queues: [Queue; 2],
}

/// One end's handle to a connection.
#[derive(Clone)]
pub struct Link {
    pair: Arc<Pair>,
    side: usize,
}

impl Link {
    pub fn pair(a: &Arc<Shared>, b: &Arc<Shared>) -> (Link, Link) {
        let end =
            |s: &Arc<Shared>| End { shared: s.clone(), gone: AtomicBool::new(false), reset: AtomicBool::new(false) };
        let queue = || Queue::new(false, 0);
        let pair = Arc::new(Pair { ends: [end(a), end(b)], queues: [queue(), queue()] });
        let l = Link { pair: pair.clone(), side: 0 };
        l.resize();
        (l, Link { pair, side: 1 })
    }
    pub fn rx(&self) -> &Queue {
        &self.pair.queues[self.side]
    }
    pub fn tx(&self) -> &Queue {
        &self.pair.queues[1 - self.side]
    }
    fn own(&self) -> &End {
        &self.pair.ends[self.side]
    }
    fn other(&self) -> &End {
        &self.pair.ends[1 - self.side]
    }
    /// Recomputes the queue capacities after `SO_SNDBUF` or `SO_RCVBUF` of an end has changed.
    pub fn resize(&self) {
        for (i, q) in self.pair.queues.iter().enumerate() {
            let (to, from) = (&self.pair.ends[i].shared, &self.pair.ends[1 - i].shared);
            q.set_cap(to.rcv.load(Ordering::Relaxed) + from.snd.load(Ordering::Relaxed));
        }
    }
    pub fn state(&self) -> u8 {
        if self.own().reset.load(Ordering::SeqCst) {
            return state::CLOSE;
        }
        match (self.tx().closed(), self.rx().closed()) {
            (false, false) => state::ESTABLISHED,
            (false, true) => state::CLOSE_WAIT,
            (true, false) => state::FIN_WAIT2,
            (true, true) => state::CLOSE,
        }
    }

    /// Delivers a RST to the other end.
    fn reset_other(&self) {
        let o = self.other();
        let over = self.rx().closed() && self.tx().closed();
        if o.gone.load(Ordering::SeqCst) || over || o.reset.swap(true, Ordering::SeqCst) {
            return;
        }
        let e = if self.tx().closed() { libc::EPIPE } else { libc::ECONNRESET };
        o.shared.error.store(e, Ordering::SeqCst);
        o.shared.wake.wake_all();
    }

    /// Closes this end: with a FIN, or with a RST if unread bytes are lost or `abort` is set.
    pub fn close(&self, abort: bool) {
        self.own().gone.store(true, Ordering::SeqCst);
        if self.rx().desert() || abort {
            self.reset_other();
        } else {
            self.tx().close();
            self.other().shared.wake.wake_all();
        }
    }

    /// `shutdown(SHUT_WR)`.
    pub fn shut_send(&self) {
        self.tx().close();
        self.other().shared.wake.wake_all();
    }

    pub fn send(&self, src: &mut Src<'_>, urgent: bool) -> Result<usize> {
        let own = self.own();
        let e = own.shared.take_error();
        if e != 0 {
            return Err(Errno::from_raw(e));
        }
        if own.reset.load(Ordering::SeqCst) {
            return Err(Errno::EPIPE);
        }
        let before = src.remaining();
        let r = if urgent { self.tx().send_urgent(src) } else { self.tx().send_bytes(src, &mut None) };
        match r {
            Ok(n) => {
                self.other().shared.wake.wake(if urgent {
                    PollEvents::READABLE | PollEvents::PRI
                } else {
                    PollEvents::READABLE
                });
                Ok(n)
            }
            Err(Errno::EPIPE) if !self.tx().closed() && before == 0 => Ok(0),
            Err(Errno::EPIPE) if !self.tx().closed() => {
                // The other end is gone: the bytes count as sent, and the reset that answers them arrives at once.
                let e = if self.rx().closed() { libc::EPIPE } else { libc::ECONNRESET };
                if !own.reset.swap(true, Ordering::SeqCst) {
                    own.shared.error.store(e, Ordering::SeqCst);
                    own.shared.wake.wake_all();
                }
                Ok(before)
            }
            Err(e) => Err(e),
        }
    }

    pub fn recv(&self, dst: &mut Dst<'_>, msg: &mut RecvMsg, shut: bool) -> Result<usize> {
        match self.rx().recv(dst, msg) {
            Ok(t) => {
                if t.room {
                    self.other().shared.wake.wake(PollEvents::SOCKET_WRITABLE);
                }
                Ok(t.n)
            }
            Err(Errno::EAGAIN) => {
                let own = self.own();
                let e = own.shared.take_error();
                if e != 0 {
                    return Err(Errno::from_raw(e));
                }
                if shut || own.reset.load(Ordering::SeqCst) {
                    return Ok(0);
                }
                Err(Errno::EAGAIN)
            }
            Err(e) => Err(e),
        }
    }

    /// The state that poll(2) reports on.
    pub fn status(&self, inline: bool) -> Status {
        let reset = self.own().reset.load(Ordering::SeqCst);
        let (_, rx_closed, _) = self.rx().status();
        let (_, tx_closed, room) = self.tx().status();
        Status {
            readable: self.rx().readable(inline),
            urgent: self.rx().urgent(),
            ended: rx_closed || reset,
            writable: room,
            shut: tx_closed || reset,
        }
    }
}

/// The state of a connection that poll(2) reports.
pub struct Status {
    /// Bytes to read.
    pub readable: usize,
    pub urgent: bool,
    /// The end of file has been reached or will follow the readable bytes.
    pub ended: bool,
    pub writable: bool,
    /// Sending is no longer possible.
    pub shut: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Arc<Shared>, Link, Arc<Shared>, Link) {
        let s = || Arc::new(Shared { snd: AtomicUsize::new(50), rcv: AtomicUsize::new(50), ..Shared::default() });
        let (a, b) = (s(), s());
        let (l, m) = Link::pair(&a, &b);
        (a, l, b, m)
    }
    fn get(l: &Link) -> Result<usize> {
        l.recv(&mut Dst::kernel(&mut [0; 100]), &mut RecvMsg::default(), false)
    }
    fn put(l: &Link) -> Result<usize> {
        l.send(&mut Src::kernel(&[0; 70]), false)
    }

    #[test]
    fn fin_then_reset() {
        let (_, l, b, m) = pair();
        assert_eq!((put(&l), put(&l), put(&l)), (Ok(70), Ok(30), Err(Errno::EAGAIN)));
        l.close(false);
        assert_eq!((get(&m), get(&m), m.state()), (Ok(100), Ok(0), state::CLOSE_WAIT));
        assert_eq!(put(&m), Ok(70));
        assert_eq!((b.error.load(Ordering::SeqCst), m.state()), (libc::EPIPE, state::CLOSE));
        assert_eq!(put(&m), Err(Errno::EPIPE));
        assert_eq!(put(&m), Err(Errno::EPIPE));
    }

    #[test]
    fn reset_by_unread_data() {
        let (a, l, _, m) = pair();
        assert_eq!((put(&l), put(&m)), (Ok(70), Ok(70)));
        m.close(false);
        assert_eq!((get(&l), get(&l), get(&l)), (Ok(70), Err(Errno::ECONNRESET), Ok(0)));
        assert_eq!(put(&l), Err(Errno::EPIPE));
        assert_eq!(a.take_error(), 0);
    }
}
