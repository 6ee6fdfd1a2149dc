//! Resource limits (getrlimit(2)).

pub const RLIMIT_COUNT: usize = 16;
pub const RLIM_INFINITY: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    pub cur: u64,
    pub max: u64,
}

/// All limits of a thread group, indexed by `RLIMIT_*`.
#[derive(Clone, Debug)]
pub struct Limits(pub [Rlimit; RLIMIT_COUNT]);

impl Default for Limits {
    /// Linux's limits of the first process, with Debian's usual descriptor limits.
    fn default() -> Self {
        let inf = Rlimit { cur: RLIM_INFINITY, max: RLIM_INFINITY };
        let mut l = [inf; RLIMIT_COUNT];
        l[libc::RLIMIT_STACK as usize] = Rlimit { cur: 8 << 20, max: RLIM_INFINITY };
        l[libc::RLIMIT_CORE as usize] = Rlimit { cur: 0, max: RLIM_INFINITY };
        l[libc::RLIMIT_NOFILE as usize] = Rlimit { cur: 1024, max: 1 << 20 };
        l[libc::RLIMIT_MEMLOCK as usize] = Rlimit { cur: 8 << 20, max: 8 << 20 };
        l[libc::RLIMIT_NPROC as usize] = Rlimit { cur: 32768, max: 32768 };
        l[libc::RLIMIT_SIGPENDING as usize] = Rlimit { cur: 32768, max: 32768 };
        l[libc::RLIMIT_MSGQUEUE as usize] = Rlimit { cur: 819200, max: 819200 };
        l[libc::RLIMIT_NICE as usize] = Rlimit { cur: 0, max: 0 };
        l[libc::RLIMIT_RTPRIO as usize] = Rlimit { cur: 0, max: 0 };
        Limits(l)
    }
}

impl Limits {
    pub fn cur(&self, which: u32) -> u64 {
        self.0.get(which as usize).map_or(RLIM_INFINITY, |l| l.cur)
    }
}
