//! `topic-bridge outbox check`: what is damaged, and where. It changes nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::print;
use crate::outbox::{Report, check};

/// Exit code 1 if anything is damaged.
pub(super) fn run(path: &Path, is_json: bool) -> anyhow::Result<ExitCode> {
    let report = check(path)?;
    print(&if is_json { lines(&report) } else { text(&report, path) })?;
    Ok(ExitCode::from(u8::from(!report.findings.is_empty())))
}

/// A line for each finding, and one with the verdict.
fn lines(report: &Report) -> String {
    let mut lines = String::new();
    for finding in &report.findings {
        let _ = writeln!(lines, "{}", json!(finding)); // writing to memory cannot fail
    }
    let rows: serde_json::Map<_, _> =
        report.rows.iter().map(|(table, rows)| ((*table).to_owned(), json!(rows))).collect();
    let (is_good, findings) = (report.findings.is_empty(), report.findings.len());
    let _ =
        writeln!(lines, "{}", json!({ "is_good": is_good, "findings": findings, "rows": rows }));
    lines
}

fn text(report: &Report, path: &Path) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "damaged       {}: {}", finding.place, finding.what);
    }
    for (table, rows) in &report.rows {
        let _ = writeln!(text, "{table:<13} {rows} rows can be read");
    }
    let path = path.display();
    let _ = match report.findings.len() {
        0 => writeln!(text, "the outbox is good"),
        count => writeln!(
            text,
            "the outbox is damaged: {count} findings; check the disk. A bridge that still starts on it makes dead \
             letters of damaged events. To save what can be read, stop the bridge and run\n  \
             topic-bridge outbox salvage {path}.new --path {path}"
        ),
    };
    text
}
