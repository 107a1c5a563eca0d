//! What the writer does beside the batches: what is due by the clock, finding out whether a refusal is
//! over, and making room on a full disk.

use std::sync::atomic::Ordering::Relaxed;

use super::batch::Batch;
use super::health::StorageError;
use super::writer::Writer;
use super::{Refusal, history, ids};

/// Pages that are given back at a time where there is hardly room to write that down.
const VACUUM_STEP: u64 = 64;

impl Writer {
    pub(super) fn measure(&mut self) -> rusqlite::Result<()> {
        self.unmeasured = 0;
        let (pages, free) = history::pages(&self.connection)?;
        let ids = self.ids.len() * ids::ROW_BYTES;
        let used = (pages.saturating_sub(free) * self.page_size).saturating_sub(ids);
        self.shared.bytes.store(used, Relaxed);
        self.shared.log_bytes.store(self.log_bytes(), Relaxed);
        if self.condition.refusal() != Some(Refusal::DiskFull) {
            self.history.measure(used);
        }
        Ok(())
    }

    /// Once a second: what is due by the clock.
    pub(super) fn tick(&mut self) -> Result<(), String> {
        let now = self.clock.steady();
        self.look_after_log()?;
        let result = self
            .history
            .expire(&self.connection, now)
            .and_then(|()| self.ids.has_surplus(&self.connection, now))
            .map(|forgets| self.forgets = forgets)
            .and_then(|()| self.measure())
            .and_then(|()| self.probe());
        match result.map_err(|error| StorageError::of(&error, &self.reserve)) {
            Ok(()) => Ok(()),
            Err(StorageError::Refused(refusal)) => {
                // A lock that is met while room is made ends nothing: the reserve is given up then, and
                // only a full disk that is over brings it back.
                let is_disk_full = self.condition.refusal() == Some(Refusal::DiskFull);
                self.roll_back(if is_disk_full { Refusal::DiskFull } else { refusal });
                Ok(())
            }
            Err(StorageError::Broken(reason)) => Err(reason),
        }
    }

    /// On a full disk a checkpoint would take the last of the room: it comes when there is less to copy.
    pub(super) fn look_after_log(&mut self) -> Result<(), String> {
        if self.condition.refusal() == Some(Refusal::DiskFull) {
            return Ok(());
        }
        let looked = self.log.look_after(&self.connection, self.lock.path());
        StorageError::tolerate(looked, &self.reserve)
    }

    /// While it refuses, or a commit took too long, finds out whether that is over: nobody else will,
    /// once a load balancer has acted on `/readyz`.
    fn probe(&mut self) -> rusqlite::Result<()> {
        match self.condition.refusal() {
            None if self.shared.slow_commit(self.clock.steady()).is_some() => {
                self.write_nothing()?
            }
            None => history::give_space_back(&self.connection)?,
            Some(Refusal::Full) => {
                let used = self.shared.bytes.load(Relaxed);
                if used + used / 100 < self.config.max_bytes {
                    self.condition.take();
                }
            }
            Some(Refusal::LogHeld) => {
                self.log.finish(&self.connection)?;
                if self.log_bytes() < self.config.max_bytes {
                    self.condition.take();
                }
            }
            Some(Refusal::DiskFull) => self.make_room()?,
            Some(_) => {
                self.write_nothing()?;
                self.condition.take();
            }
        }
        Ok(())
    }

    /// A commit that changes nothing, synced as one that takes an event.
    fn write_nothing(&mut self) -> rusqlite::Result<()> {
        self.set_sync(true)?;
        let sql = "UPDATE relay SET settled_through = settled_through";
        self.timed(|writer| writer.connection.execute(sql, [])).map(drop)
    }

    /// On a full disk: with the room that the reserve gives, settles what was delivered, lets it go, and
    /// empties the log, whose space and the file's can be used again then. The reserve is kept for as long
    /// as there is nothing to settle.
    fn make_room(&mut self) -> rusqlite::Result<()> {
        if self.reserve.hold().unwrap_or(false) {
            self.history.press(false);
            self.condition.take();
            return Ok(());
        }
        let (_, free) = history::pages(&self.connection)?;
        let has_work = self.is_behind() || !self.settling.is_empty() || self.surplus().is_some();
        if !has_work && free == 0 {
            return Ok(());
        }
        self.reserve.release();
        self.history.press(true);
        while self.settle_and_trim()? {}
        // As far as it goes: each step leaves less to be copied, and the file must not grow by that.
        while history::vacuum(&self.connection, VACUUM_STEP)? {}
        let (pages, _) = history::pages(&self.connection)?;
        let length = std::fs::metadata(self.lock.path()).map_or(0, |found| found.len());
        if pages * self.page_size <= length {
            self.log.finish(&self.connection)?;
        }
        self.measure()
    }

    /// Whether there may be more.
    fn settle_and_trim(&mut self) -> rusqlite::Result<bool> {
        let written = self.write(&Batch::default(), true)?;
        let has_trimmed = written.trimmed_through.is_some();
        // It answers nobody; and what it may fail in, measuring, is done again at the end.
        let _ = self.apply(Batch::default(), written);
        Ok(has_trimmed)
    }
}
