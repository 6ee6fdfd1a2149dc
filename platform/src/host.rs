//! Safe wrappers around the host calls that the Sentry makes beyond what `nix` offers safely.
