//! The outbox's file as its operator meets it: listed by the program's own command, and opened with
//! SQLite.

use std::path::Path;
use std::process::Command;

use rusqlite::Connection;
use serde_json::Value;

use crate::bridge::{APPS, program, run};

/// The program on an outbox of one's own choice.
pub(crate) fn serve_on(outbox: &Path) -> Command {
    let mut command = program();
    for setting in ["ingress.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0"] {
        command.args(["--set", setting]);
    }
    let apps = format!("apps={APPS}");
    let path = format!("outbox.path={}", outbox.display());
    command.args(["--set", &apps, "--set", &path]);
    command
}

/// What `topic-bridge outbox … --json` says.
pub(crate) fn ask(outbox: &Path, arguments: &[&str]) -> String {
    let ended =
        run(program().arg("outbox").args(arguments).arg("--json").arg("--path").arg(outbox));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

/// The rows that `outbox list` shows, with `--dead`, say.
pub(crate) fn list(outbox: &Path, rows: &[&str]) -> Vec<Value> {
    let lines = ask(outbox, &[&["list", "--limit", "100000"], rows].concat());
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A number out of the file.
pub(crate) fn number(outbox: &Path, sql: &str) -> i64 {
    Connection::open(outbox).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}
