//! Errors of system calls: an errno for the guest, or an interruption with its restart rule.

pub use nix::errno::Errno;
use platform::executor::NoRoom;

/// Restart rule of a call that a signal interrupted (Linux `ERESTART*`, see signal(7) "Interruption of system
/// calls").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// `ERESTARTSYS`: restarts if the handler has `SA_RESTART` or no handler runs; else `EINTR`.
    Sys,
    /// `ERESTARTNOINTR`: always restarts.
    NoIntr,
    /// `ERESTARTNOHAND`: restarts only if no handler runs; else `EINTR`.
    NoHand,
    /// `ERESTART_RESTARTBLOCK`: continues through `restart_syscall` if no handler runs; else `EINTR`.
    Block,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysError {
    Errno(Errno),
    Restart(Restart),
}

impl From<Errno> for SysError {
    fn from(e: Errno) -> Self {
        SysError::Errno(e)
    }
}

/// What [`NoRoom`] is on its way to the dispatcher, which makes the call again. No file system's own error is taken for it, since
/// the dispatcher asks whether there was one.
pub const LATER: Errno = Errno::ESTRPIPE;

impl From<NoRoom> for SysError {
    fn from(_: NoRoom) -> Self {
        SysError::Errno(LATER)
    }
}

/// For where the error type is [`Errno`], which has no conversion of ours.
pub fn later(_: NoRoom) -> Errno {
    LATER
}

impl SysError {
    pub const INTR: SysError = SysError::Restart(Restart::Sys);
}

/// Result of a function that fails only with an errno.
pub type Result<T, E = Errno> = std::result::Result<T, E>;
/// Result of a system call: the value for `rax`.
pub type SysResult<T = u64> = std::result::Result<T, SysError>;
