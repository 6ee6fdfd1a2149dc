//! `runsc-rs syscalls`: prints the supported system calls, from the table that dispatches them.

use crate::cli::SyscallsArgs;
use anyhow::Result;
use sentry::syscalls::{table::TABLE, Entry, Support};
use serde_json::json;
use std::io::{ErrorKind, Write};

pub fn print(args: &SyscallsArgs) -> Result<()> {
    let mut rows: Vec<&Entry> = TABLE.iter().collect();
    rows.sort_by_key(|e| e.nr);
    let text = if args.json { as_json(&rows)? } else { as_table(&rows) };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        r => Ok(r?),
    }
}

fn level(support: Support) -> &'static str {
    match support {
        Support::Full => "full",
        Support::Partial => "partial",
    }
}

fn signature(entry: &Entry) -> String {
    let args: Vec<&str> = entry.args.iter().map(|a| a.0).collect();
    format!("{}({})", entry.name, args.join(", "))
}

fn as_table(rows: &[&Entry]) -> String {
    let width = rows.iter().map(|e| signature(e).len()).max().unwrap_or(0);
    let mut out = format!("{:>4}  {:<width$}  {:<7}  NOTE\n", "NR", "SYSTEM CALL", "SUPPORT");
    for e in rows {
        let line = format!("{:>4}  {:<width$}  {:<7}  {}", e.nr, signature(e), level(e.support), e.note);
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.push_str(&format!("\n{} calls; every other answers ENOSYS.\n", rows.len()));
    out
}

fn as_json(rows: &[&Entry]) -> Result<String> {
    let rows: Vec<_> = rows
        .iter()
        .map(|e| {
            let args: Vec<&str> = e.args.iter().map(|a| a.0).collect();
            json!({ "nr": e.nr, "name": e.name, "args": args, "support": level(e.support), "note": e.note })
        })
        .collect();
    Ok(format!("{}\n", serde_json::to_string_pretty(&rows)?))
}
