//! `[outbox]`.

use std::path::PathBuf;
use std::time::Duration;

use super::lock::unsuitable;
use crate::config::value::{choice, count, duration, file, size};
use crate::config::{Keys, Value};

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
            max_bytes: keys.read("outbox.max_bytes", size),
            dedupe_window: keys.read("outbox.dedupe_window", duration),
            history: keys.read("outbox.history", duration),
            history_events: keys.read("outbox.history_events", count),
            remember_ids: keys.read("outbox.remember_ids", duration),
            remember_ids_max: keys.read("outbox.remember_ids_max", count),
            quarantine_events: keys.read("outbox.quarantine_events", count),
        }
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
