//! Bounds-checked little-endian encoding.
//!
//! [`Reader`] decodes a packet and never reads past its end; [`Writer`] appends to a buffer that is reused for every
//! message, so that an exchange allocates nothing.

use std::fmt;

/// Why a packet could not be decoded. The connection is closed: it cannot be resynchronised with a peer that sends
/// such packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// A field reaches past the end of the packet.
    Truncated,
    /// Bytes follow the last field, or the length in the header differs from the packet's.
    Trailing,
    /// Unknown operation.
    UnknownOp(u16),
    /// A flag, enumeration or reserved field has an undefined value.
    BadValue(&'static str),
    /// A name that is empty, `.`, `..`, or contains `/` or NUL.
    BadName,
    /// A count or length above its limit.
    TooLong(&'static str),
    /// The handshake's magic number or version differs.
    BadVersion,
    /// More descriptors came with the packet than the message requires, or fewer.
    BadDescriptors,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "message is cut short"),
            Self::Trailing => write!(f, "message has bytes after its end"),
            Self::UnknownOp(op) => write!(f, "unknown operation {op}"),
            Self::BadValue(field) => write!(f, "bad value of {field}"),
            Self::BadName => write!(f, "not the name of a directory entry"),
            Self::TooLong(field) => write!(f, "{field} is too long"),
            Self::BadVersion => write!(f, "not this protocol, or another version of it"),
            Self::BadDescriptors => write!(f, "unexpected number of descriptors"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Result of decoding.
pub type Result<T> = std::result::Result<T, DecodeError>;

/// Decodes fields from the front of a packet.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from the start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A 16-bit number.
    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// A 32-bit number.
    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// A 64-bit number.
    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A signed 64-bit number.
    pub fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A byte that must be 0 or 1.
    pub fn bool(&mut self, field: &'static str) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::BadValue(field)),
        }
    }

    /// A 16-bit length of at most `max`, and that many bytes.
    pub fn short_bytes(&mut self, max: usize, field: &'static str) -> Result<&'a [u8]> {
        let n = usize::from(self.u16()?);
        if n > max {
            return Err(DecodeError::TooLong(field));
        }
        self.bytes(n)
    }

    /// A 32-bit length of at most `max`, and that many bytes.
    pub fn long_bytes(&mut self, max: usize, field: &'static str) -> Result<&'a [u8]> {
        let n = usize::try_from(self.u32()?).map_err(|_| DecodeError::TooLong(field))?;
        if n > max {
            return Err(DecodeError::TooLong(field));
        }
        self.bytes(n)
    }

    /// The name of a directory entry: see [`check_name`].
    pub fn name(&mut self) -> Result<&'a [u8]> {
        let n = usize::from(self.u8()?);
        let name = self.bytes(n)?;
        check_name(name)?;
        Ok(name)
    }

    /// The unread rest.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Checks that everything was read.
    pub fn end(self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing)
        }
    }
}

/// Whether `name` can be the name of a directory entry: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > crate::MAX_NAME {
        return Err(DecodeError::TooLong("name"));
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|&b| b == b'/' || b == 0) {
        return Err(DecodeError::BadName);
    }
    Ok(())
}

/// Appends fields to a buffer.
///
/// Lengths come from the caller's own, already checked values. One that does not fit its field is a bug of the
/// caller; it is cut to a value that the peer will reject, never wrapped around.
#[derive(Debug)]
pub struct Writer<'a> {
    buf: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Appends to `buf`.
    pub fn new(buf: &'a mut Vec<u8>) -> Self {
        Self { buf }
    }

    /// Bytes in the buffer.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether the buffer is empty.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Removes everything after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.buf.truncate(len);
    }

    /// Bytes without a length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// One byte.
    pub fn u8(&mut self, v: u8) {
        self.buf.push(v);
    }

    /// A 16-bit number.
    pub fn u16(&mut self, v: u16) {
        self.bytes(&v.to_le_bytes());
    }

    /// A 32-bit number.
    pub fn u32(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }

    /// A 64-bit number.
    pub fn u64(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }

    /// A signed 64-bit number.
    pub fn i64(&mut self, v: i64) {
        self.bytes(&v.to_le_bytes());
    }

    /// Bytes after a 16-bit length.
    pub fn short_bytes(&mut self, bytes: &[u8]) {
        self.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
        self.bytes(bytes);
    }

    /// Bytes after a 32-bit length.
    pub fn long_bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.bytes(bytes);
    }

    /// A name after its length byte.
    pub fn name(&mut self, name: &[u8]) {
        self.u8(u8::try_from(name.len()).unwrap_or(0));
        self.bytes(name);
    }

    /// Overwrites bytes written before; the part past the end is dropped.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(slot) = self.buf.get_mut(at..at.saturating_add(bytes.len())) {
            slot.copy_from_slice(bytes);
        }
    }
}
