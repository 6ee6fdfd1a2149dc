//! Systrap: seccomp `RET_TRAP` + SIGSYS, shared-memory hand-off.
