//! Names and numbers of signals, as `kill` takes them.

use anyhow::{anyhow, Result};
use nix::sys::signal::Signal;
use std::str::FromStr;

/// The last signal.
pub const LAST: i32 = 64;
const RTMIN: i32 = 34;

/// A number, or a name with or without `SIG`; `RTMIN+N` and `RTMAX-N` as well.
pub fn parse(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return Ok(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |base: &str, start: i32, sign: i32| {
        let rest = name.strip_prefix(base)?;
        let distance = match rest {
            "" => 0,
            _ => rest.strip_prefix(if sign > 0 { '+' } else { '-' })?.parse::<i32>().ok()?,
        };
        Some(start.checked_add(sign * distance)?).filter(|n| (RTMIN..=LAST).contains(n))
    };
    let known = match name {
        "POLL" => Some(libc::SIGIO),
        "CLD" => Some(libc::SIGCHLD),
        "IOT" => Some(libc::SIGABRT),
        _ => Signal::from_str(&format!("SIG{name}")).ok().map(|s| s as i32),
    };
    known
        .or_else(|| real_time("RTMIN", RTMIN, 1))
        .or_else(|| real_time("RTMAX", LAST, -1))
        .ok_or_else(|| anyhow!("unknown signal {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("usr1", 10),
            ("0", 0),
            ("64", 64),
            ("POLL", 29),
            ("IO", 29),
            ("CLD", 17),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for wrong in ["", "FOO", "SIG", "RTMIN-1", "RTMAX+1", "RTMIN+99", "RTMIN+2147483647", "9x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
