//! Targets of runsc-rs: the most that an operation may cost, as a multiple of bare Linux.

const MICRO: &[(f64, &[&str])] = &[
    (
        1.1,
        &[
            "getpid",
            "getppid",
            "clock_gettime",
            "page_fault",
            "cow_fault_after_fork",
            "futex_pingpong",
            "mutex_contended_4t",
            "cpu_loop",
        ],
    ),
    (1.3, &["barrier_yield_16t"]),
    (
        1.5,
        &[
            "file_read_1m",
            "file_mmap_touch",
            "mmap_touch_munmap_64k",
            "pipe_stream_64k",
            "stat",
            "stat_usr",
            "stat_missing",
        ],
    ),
    (
        2.0,
        &[
            "fork_exit_wait",
            "fork_16m_exit_wait",
            "fork_exec_true",
            "vfork_exec_true",
            "thread_create_join",
            "file_pread_4k",
            "file_pwrite_4k",
            "open_close",
            "open_close_usr",
            "mprotect",
            "pipe_pingpong_procs",
            "pipe_pingpong_threads",
            "socketpair_pingpong",
        ],
    ),
];

/// The target of a row, if any.
pub fn of(name: &str, whole: bool) -> Option<f64> {
    match (whole, name) {
        // The start-up has a bound in milliseconds.
        (true, "true") => None,
        (true, "threads") => Some(1.3),
        (true, _) => Some(1.25),
        // Network rows have no target.
        (false, n) if n.starts_with("tcp_") || n.starts_with("udp_") => None,
        (false, n) => Some(MICRO.iter().find(|(_, names)| names.contains(&n)).map_or(2.5, |(bound, _)| *bound)),
    }
}

/// The target for the geometric mean of a table.
pub const MEAN: f64 = 1.2;
