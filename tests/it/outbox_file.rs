//! The outbox's file as its operator sees it: listed by the program's own command, and opened with SQLite.

use std::path::{Path, PathBuf};
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

/// The path of what SQLite keeps beside the file: "-wal" or "-shm".
pub(crate) fn beside(outbox: &Path, suffix: &str) -> PathBuf {
    let mut path = outbox.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Changes the bytes of an event in an outbox that no bridge uses, as a disk that decays does: what
/// else its row holds stays as it is.
pub(crate) fn damage_event(outbox: &Path, position: u64, damage: impl FnOnce(&mut [u8])) {
    let outbox = Connection::open(outbox).unwrap();
    let has_data = "SELECT count(*) FROM pragma_table_info('events') WHERE name = 'data'";
    let has_data: bool = outbox.query_row(has_data, [], |row| row.get(0)).unwrap();
    let column = if has_data { "data" } else { "event" };
    let sql = format!("SELECT CAST({column} AS BLOB) FROM events WHERE position = ?1");
    let mut bytes: Vec<u8> = outbox.query_row(&sql, [position], |row| row.get(0)).unwrap();
    let before = bytes.clone();
    damage(&mut bytes);
    assert_ne!(bytes, before);
    let sql = format!("UPDATE events SET {column} = CAST(?1 AS TEXT) WHERE position = ?2");
    assert_eq!(outbox.execute(&sql, rusqlite::params![bytes, position]).unwrap(), 1);
    outbox.close().unwrap();
}

/// Where the frames of a write-ahead log begin that are part of it: those behind them are of an
/// earlier round. <https://www.sqlite.org/fileformat.html#the_write_ahead_log>
pub(crate) struct Log {
    pub(crate) bytes: Vec<u8>,
    pub(crate) frame_size: usize,
    /// The frames of this round.
    pub(crate) frames: usize,
}

impl Log {
    const HEADER: usize = 32;

    pub(crate) fn read(outbox: &Path) -> Self {
        let bytes = std::fs::read(beside(outbox, "-wal")).unwrap();
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let frame_size = 24 + number(8) as usize;
        let salts = &bytes[16..24];
        let is_of_this_round = |frame: &&[u8]| &frame[8..16] == salts;
        let frames = bytes[Self::HEADER..].chunks_exact(frame_size);
        let frames = frames.take_while(is_of_this_round).count();
        Log { frame_size, frames, bytes }
    }

    /// How often the log began again from its beginning.
    pub(crate) fn round(&self) -> u32 {
        u32::from_be_bytes(self.bytes[12..16].try_into().unwrap())
    }

    pub(crate) fn frame(&self, number: usize) -> usize {
        Self::HEADER + number * self.frame_size
    }

    pub(crate) fn has_older_frames(&self) -> bool {
        self.bytes.len() > self.frame(self.frames)
    }
}
