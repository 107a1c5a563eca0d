//! A file beside the outbox that holds half a mebibyte for the day when the disk is full: it is given
//! up then, so that what was delivered can still be settled, and its space used again. Whether it can
//! be written anew tells whether there is room again.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::lock::beside;

const BYTES: usize = 512 * 1024;

/// What there has to be room for beside it.
const MORE_BYTES: usize = 64 * 1024;

#[derive(Clone)]
pub(super) struct Reserve {
    outbox: PathBuf,
    path: PathBuf,
}

impl Reserve {
    pub(super) fn of(outbox: &Path) -> Self {
        Reserve { outbox: outbox.to_owned(), path: beside(outbox, "-reserve") }
    }

    pub(super) fn outbox(&self) -> &Path {
        &self.outbox
    }

    /// Sets the space aside, if it is not. Whether there is room, also for more; an error is of another
    /// kind.
    pub(super) fn hold(&self) -> io::Result<bool> {
        let is_held = fs::metadata(&self.path).is_ok_and(|found| found.len() == BYTES as u64);
        let result = if is_held { Ok(()) } else { write(&self.path, BYTES) };
        let result = result.and_then(|()| {
            let probe = beside(&self.outbox, "-probe");
            let result = write(&probe, MORE_BYTES);
            let _ = fs::remove_file(probe); // there may be none
            result
        });
        match result {
            Ok(()) => Ok(true),
            Err(error) if is_want_of_room(&error) => {
                self.release();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn release(&self) {
        let _ = fs::remove_file(&self.path); // it may be gone already
    }

    /// Asks the disk whether it is full: of a quota that is used up SQLite only says that a write failed.
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self.hold(), Ok(false))
    }
}

/// Not zeros, which some file systems do not store.
fn write(path: &Path, bytes: usize) -> io::Result<()> {
    let mut options = File::options();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&vec![0xa5; bytes])?;
    file.sync_data()
}

fn is_want_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}
