//! A file beside the outbox that holds half a mebibyte for the day when the disk is full: it is given
//! up then, so that what was delivered can still be settled, and its space used again. Whether it can
//! be written anew tells whether there is room again.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::lock::beside;

const BYTES: usize = 512 * 1024;

#[derive(Clone)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn of(outbox: &Path) -> Self {
        Reserve { path: beside(outbox, "-reserve") }
    }

    /// Sets the space aside, if it is not. Whether there is room; an error is of another kind.
    pub(super) fn hold(&self) -> io::Result<bool> {
        if fs::metadata(&self.path).is_ok_and(|found| found.len() == BYTES as u64) {
            return Ok(true);
        }
        let result = write(&self.path);
        if result.is_err() {
            self.release();
        }
        match result {
            Ok(()) => Ok(true),
            Err(error) if is_want_of_room(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn release(&self) {
        let _ = fs::remove_file(&self.path); // it may be gone already
    }

    /// Asks the disk whether it is full: of a quota that is used up SQLite only says that a write failed.
    pub(super) fn is_disk_full(&self) -> bool {
        self.release();
        matches!(self.hold(), Ok(false))
    }
}

/// Not zeros, which some file systems do not store.
fn write(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&vec![0xa5; BYTES])?;
    file.sync_data()
}

fn is_want_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}
