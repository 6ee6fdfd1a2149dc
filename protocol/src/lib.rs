//! Wire format between the Sentry and the Gofer, and the client side of it.
