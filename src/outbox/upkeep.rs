//! What the writer does between batches: periodic work, checking whether a refusal is over, and making
//! room on a full disk.

use std::sync::atomic::Ordering::Relaxed;

use super::batch::Batch;
use super::health::StorageError;
use super::writer::Writer;
use super::{Refusal, history, ids};

/// Pages to return at a time when there is hardly room to log that.
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

    /// Periodic work, once a second.
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
                // Meeting a lock while making room does not end the full-disk state: the reserve has been
                // given up by then, and is only restored when the disk has room again.
                let is_disk_full = self.condition.refusal() == Some(Refusal::DiskFull);
                self.roll_back(if is_disk_full { Refusal::DiskFull } else { refusal });
                Ok(())
            }
            Err(StorageError::Broken(reason)) => Err(reason),
        }
    }

    /// On a full disk a checkpoint would use up the last of the room: it has to wait until there is less
    /// to copy.
    pub(super) fn look_after_log(&mut self) -> Result<(), String> {
        if self.condition.refusal() == Some(Refusal::DiskFull) {
            return Ok(());
        }
        let looked = self.log.look_after(&self.connection, self.lock.path());
        StorageError::tolerate(looked, &self.reserve)
    }

    /// While the outbox refuses, or a commit took too long, finds out whether that is over. Nothing else
    /// will, because a load balancer that follows `/readyz` no longer sends callbacks.
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

    /// A commit that changes nothing, but is synced like one that accepts an event.
    fn write_nothing(&mut self) -> rusqlite::Result<()> {
        self.set_sync(true)?;
        let sql = "UPDATE relay SET settled_through = settled_through";
        self.timed(|writer| writer.connection.execute(sql, [])).map(drop)
    }

    /// On a full disk: uses the reserve's space to settle and remove delivered events and to empty the
    /// log, so that this space can be reused. Keeps the reserve while there is nothing to settle.
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
        // As far as possible: each step leaves less to copy, and copying must not grow the file.
        while history::vacuum(&self.connection, VACUUM_STEP)? {}
        let (pages, _) = history::pages(&self.connection)?;
        let length = std::fs::metadata(self.lock.path()).map_or(0, |found| found.len());
        if pages * self.page_size <= length {
            self.log.finish(&self.connection)?;
        }
        self.measure()
    }

    /// Returns whether there may be more to trim.
    fn settle_and_trim(&mut self) -> rusqlite::Result<bool> {
        let written = self.write(&Batch::default(), true)?;
        let has_trimmed = written.trimmed_through.is_some();
        // There is nobody to answer, and measuring, which may fail in here, is repeated at the end.
        let _ = self.apply(Batch::default(), written);
        Ok(has_trimmed)
    }
}
