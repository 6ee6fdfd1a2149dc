//! `events`: what a container uses, in runc's form.

use super::cgroup::Cgroup;
use crate::control::protocol::Stats;

/// One line of `events --stats`: `{"type":"stats","id":…,"data":{…}}`. The processor time, memory and processes of the container are the
/// Sentry's figures where there are some; the rest are those of the sandbox's cgroup, if it has one.
pub fn stats_line(id: &str, inside: Option<&Stats>, cgroup: Option<&Cgroup>) -> String {
    let _ = (id, inside, cgroup);
    todo!()
}

/// The line for an event without data (`oom`).
pub fn event_line(id: &str, kind: &str) -> String {
    let _ = (id, kind);
    todo!()
}
