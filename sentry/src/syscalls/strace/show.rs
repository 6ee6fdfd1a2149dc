//! The kinds of arguments and their formats. Guest memory is only read: a line is printed whether it is
//! readable or not.

use super::flags::{self, Names};
use crate::mm::UserMem;
use std::fmt::Write;

/// Longest part of a string or buffer that is printed, as in strace(1).
const SHOWN: usize = 32;
/// Most items of an array that are printed.
pub const ITEMS: u64 = 32;

/// Writes the value at an address, or a value that depends on other arguments.
pub type Printer = fn(&View<'_>, u64, &mut String);

/// Kind of an argument.
#[derive(Clone, Copy)]
pub enum Kind {
    Signed,
    Long,
    Unsigned,
    Pointer,
    /// A number in hexadecimal that is not an address.
    Hex,
    Octal,
    Fd,
    /// A directory descriptor for relative paths.
    Dir,
    Path,
    /// A string that is not a path: truncated.
    Text,
    Signal,
    /// Bits; unnamed ones follow in hexadecimal.
    Bits(Names),
    /// One of several values.
    One(Names),
    /// Data for the call; the field is the index of the length argument.
    Data(usize),
    /// Read before the call.
    In(Printer),
    /// Filled by the call: printed if it succeeded, otherwise the address.
    Out(Printer),
    /// Present only if the condition holds.
    If(fn(&View<'_>) -> bool, &'static Kind),
}

/// The arguments of one call and the memory that they point to.
pub struct View<'a> {
    pub mem: UserMem,
    pub args: [u64; 6],
    /// Result of a successful call.
    pub result: u64,
    /// Results of the call that are not in the guest's memory yet.
    pub staged: Option<&'a crate::mm::io::Staged>,
}

impl View<'_> {
    pub fn arg(&self, i: usize) -> u64 {
        self.args.get(i).copied().unwrap_or(0)
    }
    /// Up to `n` bytes; fewer if not all are readable.
    pub fn some(&self, addr: u64, n: usize) -> Option<Vec<u8>> {
        let mut buf = vec![0u8; n];
        let got = self.mem.read_some(addr, &mut buf).unwrap_or(0);
        let end = got.max(self.staged.map_or(0, |s| s.overlay(addr, &mut buf)));
        buf.truncate(end);
        (end > 0 || n == 0).then_some(buf)
    }
    /// A structure of `n` bytes.
    pub fn raw(&self, addr: u64, n: usize) -> Option<Raw> {
        if addr == 0 {
            return None;
        }
        self.some(addr, n).filter(|b| b.len() == n).map(Raw)
    }
}

/// A structure as bytes; fields beyond its end read as 0.
pub struct Raw(pub Vec<u8>);

impl Raw {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..at + N).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
    }
    pub fn u8(&self, at: usize) -> u64 {
        self.0.get(at).copied().unwrap_or(0).into()
    }
    pub fn u16(&self, at: usize) -> u64 {
        u16::from_ne_bytes(self.array(at)).into()
    }
    pub fn u32(&self, at: usize) -> u64 {
        u32::from_ne_bytes(self.array(at)).into()
    }
    pub fn i32(&self, at: usize) -> i64 {
        i32::from_ne_bytes(self.array(at)).into()
    }
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.array(at))
    }
    pub fn i64(&self, at: usize) -> i64 {
        i64::from_ne_bytes(self.array(at))
    }
    /// Up to the first NUL.
    pub fn text(&self, at: usize, len: usize) -> &[u8] {
        let b = self.0.get(at..(at + len).min(self.0.len())).unwrap_or(&[]);
        b.split(|&c| c == 0).next().unwrap_or(&[])
    }
}

/// Appends to a `String`; formatting into it cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { { let _ = write!($out, $($arg)*); } };
}
pub(super) use put;

pub fn pointer(v: u64, out: &mut String) {
    if v == 0 {
        out.push_str("NULL");
    } else {
        put!(out, "{v:#x}");
    }
}

pub fn bits(names: Names, v: u64, out: &mut String) {
    let mut left = v;
    let mut first = true;
    for &(bit, name) in names {
        if bit != 0 && left & bit == bit {
            if !first {
                out.push('|');
            }
            out.push_str(name);
            left &= !bit;
            first = false;
        }
    }
    match (left, first) {
        (0, false) => {}
        // Some sets have a name for "none".
        (0, true) => out.push_str(names.iter().find(|n| n.0 == 0).map_or("0", |n| n.1)),
        (_, true) => put!(out, "{left:#x}"),
        (_, false) => put!(out, "|{left:#x}"),
    }
}

pub fn one(names: Names, v: u64, out: &mut String) {
    match names.iter().find(|n| n.0 == v) {
        Some(n) => out.push_str(n.1),
        None => put!(out, "{v:#x}"),
    }
}

pub fn open_flags(v: u64, out: &mut String) {
    let v = v & 0xffff_ffff;
    if v & 3 == 3 {
        out.push_str("O_ACCMODE");
    } else {
        one(flags::ACCMODE, v & 3, out);
    }
    if v & !3 != 0 {
        out.push('|');
        bits(flags::OPEN, v & !3, out);
    }
}

pub fn fd(v: u64, out: &mut String) {
    if v as i32 == libc::AT_FDCWD {
        out.push_str("AT_FDCWD");
    } else {
        put!(out, "{}", v as i32);
    }
}

/// In quotes, with C escapes; `cut`: the text is truncated.
pub fn quoted(bytes: &[u8], cut: bool, out: &mut String) {
    out.push('"');
    for (i, &b) in bytes.iter().enumerate() {
        match b {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(b as char);
            }
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            b'\r' => out.push_str("\\r"),
            0x0b => out.push_str("\\v"),
            0x0c => out.push_str("\\f"),
            0x20..=0x7e => out.push(b as char),
            // Octal, with three digits if another digit follows.
            _ if bytes.get(i + 1).is_some_and(u8::is_ascii_digit) => put!(out, "\\{b:03o}"),
            _ => put!(out, "\\{b:o}"),
        }
    }
    out.push('"');
    if cut {
        out.push_str("...");
    }
}

/// `len` bytes at `addr`, truncated.
pub fn data(view: &View<'_>, addr: u64, len: u64, out: &mut String) {
    let shown = len.min(SHOWN as u64) as usize;
    match view.some(addr, shown) {
        Some(b) if addr != 0 => quoted(&b, len > b.len() as u64, out),
        _ => pointer(addr, out),
    }
}

pub fn path(view: &View<'_>, addr: u64, out: &mut String) {
    match view.mem.read_path(addr) {
        Ok(p) if addr != 0 => quoted(&p, false, out),
        _ => pointer(addr, out),
    }
}

pub fn text(view: &View<'_>, addr: u64, out: &mut String) {
    match view.some(addr, SHOWN + 1) {
        Some(b) if addr != 0 => {
            let end = b.iter().position(|&c| c == 0);
            quoted(&b[..end.unwrap_or(b.len().min(SHOWN))], end.is_none(), out);
        }
        _ => pointer(addr, out),
    }
}

/// `[item, item, …]`, `count` items of `size` bytes.
pub fn array(
    view: &View<'_>,
    addr: u64,
    count: u64,
    size: usize,
    out: &mut String,
    mut item: impl FnMut(&Raw, &mut String),
) {
    if count == 0 && addr != 0 {
        return out.push_str("[]");
    }
    if view.raw(addr, size).is_none() {
        return pointer(addr, out);
    }
    out.push('[');
    for i in 0..count.min(ITEMS) {
        if i > 0 {
            out.push_str(", ");
        }
        match view.raw(addr.wrapping_add(i * size as u64), size) {
            Some(raw) => item(&raw, out),
            None => {
                put!(out, "{:#x}", addr.wrapping_add(i * size as u64));
                break;
            }
        }
    }
    if count > ITEMS {
        out.push_str(", ...");
    }
    out.push(']');
}

impl Kind {
    /// Whether the call fills this argument.
    pub fn is_out(&self, view: &View<'_>) -> bool {
        match self {
            Kind::Out(_) => true,
            Kind::If(when, kind) => when(view) && kind.is_out(view),
            _ => false,
        }
    }
    /// Whether the argument is present.
    pub fn is_there(&self, view: &View<'_>) -> bool {
        !matches!(self, Kind::If(when, _) if !when(view))
    }
    /// Writes the argument; `done`: the call has succeeded.
    pub fn write(&self, view: &View<'_>, v: u64, done: bool, out: &mut String) {
        match *self {
            Kind::Signed => put!(out, "{}", v as i32),
            Kind::Long => put!(out, "{}", v as i64),
            Kind::Unsigned => put!(out, "{v}"),
            Kind::Pointer => pointer(v, out),
            Kind::Hex if v == 0 => out.push('0'),
            Kind::Hex => put!(out, "{v:#x}"),
            Kind::Octal => put!(out, "0{:o}", v as u32),
            Kind::Fd | Kind::Dir => fd(v, out),
            Kind::Path => path(view, v, out),
            Kind::Text => text(view, v, out),
            Kind::Signal => out.push_str(&flags::signal(v as i32 as u64)),
            Kind::Bits(names) => bits(names, v & 0xffff_ffff, out),
            Kind::One(names) => one(names, v & 0xffff_ffff, out),
            Kind::Data(len) => data(view, v, view.arg(len), out),
            Kind::In(write) => write(view, v, out),
            Kind::Out(write) if done => write(view, v, out),
            Kind::Out(_) => pointer(v, out),
            Kind::If(_, kind) => kind.write(view, v, done, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn bits_and_values() {
        assert_eq!(text(|o| bits(flags::PROT, 3, o)), "PROT_READ|PROT_WRITE");
        assert_eq!(text(|o| bits(flags::PROT, 0x41, o)), "PROT_READ|0x40");
        assert_eq!(text(|o| bits(flags::PROT, 0x40, o)), "0x40");
        assert_eq!(text(|o| bits(flags::PROT, 0, o)), "0");
        assert_eq!(text(|o| bits(flags::MAP, 0x22, o)), "MAP_PRIVATE|MAP_ANONYMOUS");
        assert_eq!(text(|o| bits(flags::MAP, 3, o)), "MAP_SHARED_VALIDATE");
        assert_eq!(text(|o| bits(flags::SA, 0x8400_0000, o)), "SA_RESETHAND|SA_RESTORER");
        assert_eq!(text(|o| one(flags::SEEK, 2, o)), "SEEK_END");
        assert_eq!(text(|o| one(flags::SEEK, 77, o)), "0x4d");
        assert_eq!(text(|o| open_flags(0o1102, o)), "O_RDWR|O_CREAT|O_TRUNC");
        assert_eq!(text(|o| open_flags(0, o)), "O_RDONLY");
        assert_eq!(text(|o| open_flags(0o20200000, o)), "O_RDONLY|O_TMPFILE");
        assert_eq!(text(|o| fd(libc::AT_FDCWD as u64, o)), "AT_FDCWD");
        assert_eq!(text(|o| fd(u64::MAX, o)), "-1");
    }

    #[test]
    fn strings_are_quoted_as_in_c() {
        assert_eq!(text(|o| quoted(b"a\"b\\c\n\0", false, o)), r#""a\"b\\c\n\0""#);
        assert_eq!(text(|o| quoted(b"\x7fELF\x012", true, o)), r#""\177ELF\0012"..."#);
    }

    #[test]
    fn fields_beyond_a_structure_read_as_zero() {
        let raw = Raw(vec![1, 0, 0, 0, 2]);
        assert_eq!((raw.u32(0), raw.u32(4), raw.u64(usize::MAX - 8), raw.text(9, 9)), (1, 0, 0, &b""[..]));
    }
}
