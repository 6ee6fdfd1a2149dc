//! AF_UNIX (unix(7)).
//!
//! [`names`]: where sockets are bound. [`conn`]: stream and seqpacket sockets, which are two queues between two ends.
//! [`dgram`]: datagram sockets, each with a queue of its own that anyone may send to. [`gc`]: sockets sent to each
//! other and forgotten.

pub mod conn;
pub mod dgram;
pub mod gc;
pub mod names;

pub use names::Names;

use super::socket::Proto;
use super::NetNs;
use crate::error::{Errno, Result};
use std::sync::Arc;

/// A new socket of `kind`.
pub fn new(ns: &Arc<NetNs>, kind: i32) -> Result<Box<dyn Proto>> {
    Ok(match kind {
        libc::SOCK_STREAM | libc::SOCK_SEQPACKET => Box::new(conn::Conn::new(ns, kind)),
        libc::SOCK_DGRAM => Box::new(dgram::Dgram::new(ns)),
        _ => return Err(Errno::ESOCKTNOSUPPORT),
    })
}
