//! What the processes of a sandbox and those that manage it say to each other.
//!
//! [`command`]: between a command (or a monitor) and the Sentry that it has started, over a socket pair. [`protocol`]:
//! between any process that may manage a container and the container's Sentry, over a connection to `control.sock` of
//! the state directory; [`server`] is the Sentry's side of it.

mod command;
pub mod frames;
pub mod protocol;
pub mod server;

pub use command::{FromSentry, ToSentry};
