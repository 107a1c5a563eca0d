//! A file next to the outbox that reserves half a mebibyte. When the disk is full it is given up, so that
//! delivered events can still be settled and their space reused. Being able to write it again shows that
//! there is room again.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::lock::beside;

const BYTES: usize = 512 * 1024;

/// Room that must exist in addition to the reserve.
const MORE_BYTES: usize = 64 * 1024;

#[derive(Clone)]
pub(super) struct Reserve {
    outbox: PathBuf,
    path: PathBuf,
    /// Simulates a full disk.
    #[cfg(test)]
    pub(super) is_full: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Reserve {
    pub(super) fn of(outbox: &Path) -> Self {
        Reserve {
            outbox: outbox.to_owned(),
            path: beside(outbox, "-reserve"),
            #[cfg(test)]
            is_full: std::sync::Arc::default(),
        }
    }

    pub(super) fn outbox(&self) -> &Path {
        &self.outbox
    }

    /// Creates the reserve if it is missing. Returns whether there is room for it and some more; other
    /// failures are errors.
    pub(super) fn hold(&self) -> io::Result<bool> {
        #[cfg(test)]
        if self.is_full.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(false);
        }
        let is_held = fs::metadata(&self.path).is_ok_and(|found| found.len() == BYTES as u64);
        if !is_held && !try_writing(&self.path, BYTES)? {
            return Ok(false);
        }
        let probe = beside(&self.outbox, "-probe");
        let has_room = try_writing(&probe, MORE_BYTES);
        let _ = fs::remove_file(probe); // it may not exist
        has_room
    }

    pub(super) fn release(&self) {
        let _ = fs::remove_file(&self.path); // it may already be gone
    }

    /// Tests whether the disk is full: for an exhausted quota SQLite only reports that a write failed.
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self.hold(), Ok(false))
    }
}

/// Whether there is room for a file of this many bytes; if not, the file is removed. Does not write
/// zeros, because some file systems do not store them.
fn try_writing(path: &Path, bytes: usize) -> io::Result<bool> {
    let write = || {
        let mut options = File::options();
        let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&vec![0xa5; bytes])?;
        file.sync_data()
    };
    match write() {
        Ok(()) => Ok(true),
        Err(error) => {
            let _ = fs::remove_file(path); // half of it is useless
            if is_want_of_room(&error) { Ok(false) } else { Err(error) }
        }
    }
}

fn is_want_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}
