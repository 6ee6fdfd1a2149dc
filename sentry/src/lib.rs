//! The Sentry: the guest kernel.
