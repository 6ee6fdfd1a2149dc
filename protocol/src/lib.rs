//! The wire format between the Sentry and the Gofer, and the client side of it.
//!
//! One connection is one `SOCK_SEQPACKET` Unix socket; one packet is one message. The client (the Sentry) sends
//! requests and the server (the Gofer) answers each with exactly one reply, in order, except [`Op::Release`], which
//! has none. Integers are little-endian. `docs/gofer-protocol.md` describes every message.
//!
//! # Guarantees
//! * Decoding never panics and never allocates more than the packet's own size. Every length is checked against the
//!   rest of the packet, every enumeration and flag word against the defined values, and no byte may follow the last
//!   field. The two sides do not trust each other.
//! * A name is 1 to 255 bytes without `/` or NUL and is neither `.` nor `..`. The decoder checks this, so server code
//!   never sees another kind of name; the protocol cannot express a path.
//! * A [`Fid`] names a file that the server holds. The server chooses it, and never reuses a released fid within the
//!   lifetime of a connection (its upper half is a generation). So late use is answered with `EBADF`, never with
//!   another file.
//!
//! # Structure
//! [`wire`]: the bounds-checked reader and the writer; [`types`]: types common to both sides; [`request`] and
//! [`reply`]: the messages; [`transport`]: packets with descriptors; [`client`]: the Sentry's interface.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
pub mod reply;
pub mod request;
pub mod transport;
pub mod types;
pub mod wire;

pub use client::{Client, Handle};
pub use types::*;

/// Magic number, the first field of the handshake: "RSGF".
pub const MAGIC: u32 = u32::from_le_bytes(*b"RSGF");
/// The protocol's version. Both sides must have the same: they are parts of one binary.
pub const VERSION: u16 = 9;
/// Size of the largest packet, header included. It fits the default socket buffer three times.
pub const MAX_MESSAGE: usize = 68 * 1024;
/// Most bytes of directory entries in one reply.
pub const MAX_DIR_BYTES: u32 = 64 * 1024;
/// Most bytes of content per file in a reply to [`Op::ReadFiles`](request::Op::ReadFiles).
pub const MAX_CONTENT: u32 = 64 * 1024;
/// Longest name, as in Linux (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Longest symlink target: `PATH_MAX` without the NUL.
pub const MAX_TARGET: usize = 4095;
/// Most names in one request, except `ReadFiles`.
pub const MAX_WALK: usize = 64;
/// Most names in a [`ReadFiles`](request::Request::ReadFiles).
pub const MAX_FILES: usize = 128;
/// Most fids released along with one request.
pub const MAX_RELEASE: usize = 256;
/// Largest value of an extended attribute, as in Linux (`XATTR_SIZE_MAX`).
pub const MAX_XATTR: usize = 64 * 1024;
