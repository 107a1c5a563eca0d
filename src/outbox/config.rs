//! `[outbox]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lock::{unsuitable, unwritable};
use crate::config::value::{CENTURY, choice, count, duration, file, size};
use crate::config::{Keys, Value};

/// How large an SQLite file with pages of 4 KiB can be.
const MAX_BYTES: u64 = 16 << 40;

/// What `outbox.max_bytes` limits sooner.
const MANY: u64 = 1_000_000_000;

/// Two gigabytes of memory.
const MAX_IDS: u64 = 100_000_000;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) path: PathBuf,
    pub(crate) sync: Sync,
    pub(crate) max_bytes: u64,
    pub(crate) dedupe_window: Duration,
    pub(crate) history: Duration,
    pub(crate) history_events: u64,
    pub(crate) remember_ids: Duration,
    pub(crate) remember_ids_max: u64,
    pub(crate) quarantine_events: u64,
}

/// What a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Sync {
    Full,
    Normal,
    Off,
}

impl Sync {
    /// As `PRAGMA synchronous` calls it.
    pub(super) fn pragma(self) -> &'static str {
        match self {
            Sync::Full => "FULL",
            Sync::Normal => "NORMAL",
            Sync::Off => "OFF",
        }
    }
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        Config {
            path: Self::read_path(keys),
            sync: keys.read("outbox.sync", |value| {
                choice(value, &[("full", Sync::Full), ("normal", Sync::Normal), ("off", Sync::Off)])
            }),
            max_bytes: keys.read("outbox.max_bytes", size(MAX_BYTES)),
            dedupe_window: keys.read("outbox.dedupe_window", duration(CENTURY)),
            history: keys.read("outbox.history", duration(CENTURY)),
            history_events: keys.read("outbox.history_events", count(MANY)),
            remember_ids: keys.read("outbox.remember_ids", duration(CENTURY)),
            remember_ids_max: keys.read("outbox.remember_ids_max", count(MAX_IDS)),
            quarantine_events: keys.read("outbox.quarantine_events", count(MANY)),
        }
    }

    /// The outbox in a file, so set that opening it removes nothing: an operator's command changes what it says, and
    /// the bridge whose limits count may have others.
    pub(crate) fn keeping_all(&self, path: &Path) -> Self {
        Config {
            path: path.to_owned(),
            history: CENTURY,
            history_events: MANY,
            remember_ids: CENTURY,
            remember_ids_max: MAX_IDS,
            quarantine_events: MANY,
            ..self.clone()
        }
    }

    /// Why no outbox could be kept here, if that shows.
    pub(crate) fn fault_of_path(&self) -> Option<String> {
        unwritable(&self.path)
    }

    pub(crate) fn read_path(keys: &mut Keys) -> PathBuf {
        keys.read("outbox.path", outbox_file)
    }
}

/// A path that can be an outbox, whether the file exists yet or not.
fn outbox_file(value: &Value) -> Result<PathBuf, String> {
    let path = file(value)?;
    match unsuitable(&path) {
        Some(fault) => Err(format!("{:?} {fault}", path.display().to_string())),
        None => Ok(path),
    }
}
