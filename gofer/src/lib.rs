//! The Gofer: serves one tree of host files to the Sentry over a socket.
