//! Netlink messages: headers and attributes (netlink(7)).

use crate::error::Errno;

pub const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;
pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_MULTI: u16 = 2;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const HEADER: usize = 16;

/// `struct nlmsghdr`.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub len: u32,
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    pub pid: u32,
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..)?.first_chunk().map(|c| u32::from_ne_bytes(*c))
}
fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    b.get(at..)?.first_chunk().map(|c| u16::from_ne_bytes(*c))
}

impl Header {
    pub fn read(b: &[u8]) -> Option<Header> {
        Some(Header {
            len: u32_at(b, 0)?,
            kind: u16_at(b, 4)?,
            flags: u16_at(b, 6)?,
            seq: u32_at(b, 8)?,
            pid: u32_at(b, 12)?,
        })
    }
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.len.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&self.flags.to_ne_bytes());
        out.extend_from_slice(&self.seq.to_ne_bytes());
        out.extend_from_slice(&self.pid.to_ne_bytes());
    }
}

/// The messages of a datagram: header, payload. The iterator ends at the first malformed one.
pub fn messages(mut b: &[u8]) -> impl Iterator<Item = (Header, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let h = Header::read(b)?;
        let len = h.len as usize;
        let whole = b.get(..len).filter(|_| len >= HEADER)?;
        b = b.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((h, &whole[HEADER..], whole))
    })
}

/// The attributes after the fixed part of a message: type (without its flag bits) and value.
pub fn attributes(mut b: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(u16_at(b, 0)?), u16_at(b, 2)?);
        let value = b.get(4..len)?;
        b = b.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind & 0x3fff, value))
    })
}

/// A datagram of answers under construction.
pub struct Reply {
    pub data: Vec<u8>,
    seq: u32,
    pid: u32,
    start: usize,
}

impl Reply {
    /// Starts the answers to message `seq`, addressed to port `pid`.
    pub fn new(seq: u32, pid: u32) -> Self {
        Reply { data: Vec::new(), seq, pid, start: 0 }
    }
    /// Starts a message with its fixed part.
    pub fn begin(&mut self, kind: u16, flags: u16, fixed: &[u8]) {
        self.start = self.data.len();
        Header { len: 0, kind, flags, seq: self.seq, pid: self.pid }.write(&mut self.data);
        self.data.extend_from_slice(fixed);
        self.pad();
    }
    fn pad(&mut self) {
        self.data.resize(self.data.len().next_multiple_of(4), 0);
        let len = (self.data.len() - self.start) as u32;
        if let Some(at) = self.data.get_mut(self.start..self.start + 4) {
            at.copy_from_slice(&len.to_ne_bytes());
        }
    }
    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        self.data.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.data.extend_from_slice(&kind.to_ne_bytes());
        self.data.extend_from_slice(value);
        self.pad();
    }
    pub fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }
    /// `NLMSG_ERROR`: an acknowledgement, or an error with the message that caused it.
    pub fn error(&mut self, e: Option<Errno>, request: &[u8], cap: bool) {
        const CAPPED: u16 = 0x100;
        let whole = e.is_some() && !cap;
        let mut fixed = (-e.map_or(0, |e| e as i32)).to_ne_bytes().to_vec();
        fixed.extend_from_slice(if whole { request } else { request.get(..HEADER).unwrap_or(request) });
        self.begin(NLMSG_ERROR, if whole { 0 } else { CAPPED }, &fixed);
    }
    pub fn done(&mut self) {
        self.begin(NLMSG_DONE, NLM_F_MULTI, &0i32.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let mut r = Reply::new(7, 9);
        r.begin(16, NLM_F_MULTI, &[1; 5]);
        r.attr(3, b"lo\0");
        r.attr_u32(4, 65536);
        r.done();
        let all: Vec<_> = messages(&r.data).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].0.kind, all[0].0.seq, all[0].0.pid, all[1].0.kind), (16, 7, 9, NLMSG_DONE));
        let attrs: Vec<_> = attributes(&all[0].1[8..]).collect();
        assert_eq!(attrs, [(3, &b"lo\0"[..]), (4, &65536u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn malformed() {
        assert_eq!(messages(&[1; 15]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
        let mut b = vec![0; 16];
        b[0] = 17;
        assert_eq!(messages(&b).count(), 0);
        assert_eq!(attributes(&[3, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[255, 255, 0, 0]).count(), 0);
    }
}
