//! AF_UNIX (unix(7)).
//!
//! [`names`]: bound addresses. [`conn`]: stream and seqpacket sockets, two queues between two ends. [`dgram`]: datagram
//! sockets, one queue each. [`gc`]: garbage collection of sockets in flight.

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
