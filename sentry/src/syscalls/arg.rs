//! Argument types of system calls: conversion of registers to typed values, and their output in `--strace`.

use crate::mm::UserMem;

/// Output format of an argument in `--strace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    Signed,
    Unsigned,
    Hex,
    Octal,
    Fd,
    /// A NUL-terminated string in guest memory.
    Str,
    Signal,
}

/// An argument type that the table can use.
pub trait Arg {
    const SHOW: Show;
    fn decode(raw: u64) -> Self;
}

macro_rules! plain {
    ($($t:ty => $show:ident),*) => { $( impl Arg for $t {
        const SHOW: Show = Show::$show;
        fn decode(raw: u64) -> Self { raw as $t }
    } )* };
}
plain!(i32 => Signed, u32 => Unsigned, i64 => Signed, u64 => Unsigned, usize => Unsigned);

macro_rules! wrapper {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $show:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub $inner);
        impl Arg for $name {
            const SHOW: Show = Show::$show;
            fn decode(raw: u64) -> Self { $name(raw as $inner) }
        }
    };
}
wrapper!(/// A descriptor (or `AT_FDCWD`).
    Fd, i32, Fd);
wrapper!(/// An address in guest memory.
    Addr, u64, Hex);
wrapper!(/// The address of a path name.
    PathPtr, u64, Str);
wrapper!(/// Flags.
    Flags, u32, Hex);
wrapper!(/// A file mode.
    Mode, u32, Octal);
wrapper!(/// A signal number.
    Sig, i32, Signal);

impl Addr {
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// The text of one argument.
pub fn show(how: Show, raw: u64, mem: &UserMem) -> String {
    match how {
        Show::Signed => (raw as i64 as i32 as i64).to_string(),
        Show::Unsigned => raw.to_string(),
        Show::Hex => format!("{raw:#x}"),
        Show::Octal => format!("{:#o}", raw as u32),
        Show::Fd if raw as i32 == libc::AT_FDCWD => "AT_FDCWD".into(),
        Show::Fd => (raw as i32).to_string(),
        Show::Str if raw == 0 => "NULL".into(),
        Show::Str => match mem.read_path(raw) {
            Ok(p) => format!("{:?}", String::from_utf8_lossy(&p)),
            Err(_) => format!("{raw:#x}"),
        },
        Show::Signal => match nix::sys::signal::Signal::try_from(raw as i32) {
            Ok(s) => s.as_str().to_string(),
            Err(_) => (raw as i32).to_string(),
        },
    }
}
