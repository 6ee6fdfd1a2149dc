//! Options of the OCI commands: those of runc, with the same meaning.

use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Options before the command, for the commands that manage containers.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Options of the commands that manage containers (before the command)")]
pub struct Globals {
    /// Directory of the containers' state [default: /run/runsc-rs; for users, $XDG_RUNTIME_DIR/runsc-rs]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Append errors and warnings to FILE as well
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Form of the lines in the log
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Log what the runtime does, not only warnings
    #[arg(long)]
    pub debug: bool,

    /// Have systemd make the cgroups; `cgroupsPath` of a bundle is `slice:prefix:name` then
    #[arg(long)]
    pub systemd_cgroup: bool,

    /// Accepted for runc's sake: what the caller may do is found out
    #[arg(long, value_name = "WHEN", hide = true, num_args = 0..=1, require_equals = true)]
    pub rootless: Option<Option<String>>,

    /// Accepted for runc's sake
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,

    /// crun's way to say --systemd-cgroup
    #[arg(long, value_name = "MANAGER", hide = true)]
    pub cgroup_manager: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// How a container is made of a bundle: options of `create` and of `run`.
#[derive(Clone, Debug, Default, Args)]
pub struct BundleArgs {
    /// Directory of the bundle: `config.json` and the root file system [default: the current one]
    #[arg(long, short = 'b', value_name = "DIR")]
    pub bundle: Option<PathBuf>,

    /// Unix socket that gets the master of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,

    /// File to write the number of the container's process to: its monitor on the host
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Pass on N more descriptors, from 3 (after those of LISTEN_FDS)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u8,

    /// Accepted for runc's sake: there is no pivot_root(2) on the host to be avoided
    #[arg(long, hide = true)]
    pub no_pivot: bool,

    /// Accepted for runc's sake: a sandbox has no keyring of the host's
    #[arg(long, hide = true)]
    pub no_new_keyring: bool,

    /// Accepted for runc's sake
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub bundle: BundleArgs,

    /// Name of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct IdArgs {
    /// Name of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// Signal all processes of the container, not just the first
    #[arg(long, short = 'a')]
    pub all: bool,

    /// Name of the container
    #[arg(value_name = "ID")]
    pub id: String,

    /// Name, with or without SIG, or number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM", allow_hyphen_values = true)]
    pub signal: String,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Kill the container if it runs, and succeed if there is none
    #[arg(long, short = 'f')]
    pub force: bool,

    /// Name of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Unix socket that gets the master of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,

    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,

    /// Set a variable (repeatable)
    #[arg(long, short = 'e', value_name = "K=V")]
    pub env: Vec<String>,

    /// Give the process a terminal
    #[arg(long, short = 't')]
    pub tty: bool,

    /// User and group to be
    #[arg(long, short = 'u', value_name = "UID[:GID]")]
    pub user: Option<String>,

    /// One more group (repeatable)
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,

    /// Take the process from FILE, in the form that it has in config.json
    #[arg(long, short = 'p', value_name = "FILE")]
    pub process: Option<PathBuf>,

    /// Return when the process runs
    #[arg(long, short = 'd')]
    pub detach: bool,

    /// File to write the number of the process's agent on the host to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,

    /// Give the process one more capability (repeatable)
    #[arg(long, short = 'c', value_name = "CAP")]
    pub cap: Vec<String>,

    /// Pass on N more descriptors, from 3 (after those of LISTEN_FDS)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u8,

    /// Start the process even if the container is paused: it runs once the container is resumed
    #[arg(long)]
    pub ignore_paused: bool,

    /// Has no meaning in a sandbox
    #[arg(long, value_name = "LABEL", hide = true)]
    pub process_label: Option<String>,

    /// Has no meaning in a sandbox
    #[arg(long, value_name = "PROFILE", hide = true)]
    pub apparmor: Option<String>,

    /// Cgroup in the container (not there yet)
    #[arg(long, value_name = "PATH", hide = true)]
    pub cgroup: Vec<String>,

    /// Name of the container
    #[arg(value_name = "ID")]
    pub id: String,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    #[arg(long, short = 'f', value_enum, default_value_t = Format::Table)]
    pub format: Format,

    /// Name of the container
    #[arg(value_name = "ID")]
    pub id: String,

    /// Options of ps(1), which are ignored
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTION", hide = true)]
    pub options: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[arg(long, short = 'f', value_enum, default_value_t = Format::Table)]
    pub format: Format,

    /// Names only
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// File with the resources, in the form of `linux.resources`; `-` is standard input. Other options are ignored then
    #[arg(long, short = 'r', value_name = "FILE")]
    pub resources: Option<PathBuf>,

    /// Weight of block input and output, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,

    /// Period of --cpu-quota, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,

    /// Processor time in each period, in microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,

    /// Weight against other containers
    #[arg(long, value_name = "SHARES", alias = "cpu-shares")]
    pub cpu_share: Option<u64>,

    /// Period of --cpu-rt-runtime, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_rt_period: Option<u64>,

    /// Processor time for real-time scheduling in each period, in microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,

    /// Processors to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,

    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,

    /// Limit of memory: bytes, perhaps with k, m or g; -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<String>,

    /// Memory to be kept when the host is short of it
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,

    /// Limit of memory and swap together; -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,

    /// Most processes and threads; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,

    /// Name of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Time between two lines (`5s`, `500ms`)
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_interval)]
    pub interval: std::time::Duration,

    /// Print one line and end
    #[arg(long)]
    pub stats: bool,

    /// Name of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

fn parse_interval(text: &str) -> Result<std::time::Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| "write a number and a unit: 5s, 500ms, 1m".to_string())?;
    let (number, unit) = match text.get(digits.len()..).unwrap_or_default() {
        "" | "s" => (number, 1000),
        "ms" => (number, 1),
        "m" => (number, 60_000),
        "h" => (number, 3_600_000),
        _ => return Err("the unit is ms, s, m or h".into()),
    };
    match number.checked_mul(unit) {
        Some(ms) if ms > 0 => Ok(std::time::Duration::from_millis(ms)),
        _ => Err("duration interval must be greater than 0".into()),
    }
}

#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Directory of the bundle [default: the current one]
    #[arg(long, short = 'b', value_name = "DIR")]
    pub bundle: Option<PathBuf>,

    /// For a container of an ordinary user
    #[arg(long)]
    pub rootless: bool,
}

/// Options of `checkpoint` and `restore`, which are refused whatever they are.
#[derive(Debug, Args)]
pub struct RefusedArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub rest: Vec<OsString>,
}
