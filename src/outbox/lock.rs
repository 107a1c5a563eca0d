//! The outbox's file: who may use it, and whether it is still the one that was opened. The lock is on the
//! file itself, so that a symbolic or a hard link to it leads to the same lock.
//!
//! The lock is taken with `flock`, which SQLite does not use. Its descriptor must outlive all SQLite
//! connections: closing any descriptor of a file drops all of the process's POSIX locks on it, and those
//! are SQLite's.

use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::OpenError;

/// The file holds user names and ids.
const MODE: u32 = 0o600;

/// How often to retry opening a file that is replaced while it is being opened.
const TRIES: usize = 5;

pub(super) struct Lock {
    file: File,
    /// With links resolved, the way SQLite resolves them.
    path: PathBuf,
    /// The files that were there once SQLite had opened them.
    opened: OnceLock<[(PathBuf, Identity); 3]>,
}

/// Identifies a file independently of its name: device and inode.
type Identity = (u64, u64);

/// Why a path cannot be an outbox, if it cannot. Also used to check paths from the configuration.
pub(crate) fn unsuitable(path: &Path) -> Option<String> {
    let text = path.to_string_lossy();
    if text == ":memory:" || text.starts_with("file:") {
        return Some("is not a file on disk: name one on a disk that survives the process".into());
    }
    let kind = fs::metadata(path).ok()?.file_type();
    if kind.is_file() {
        return None;
    }
    Some(match kind {
        kind if kind.is_dir() => "is a directory: name a file in it".into(),
        kind if kind.is_char_device() || kind.is_block_device() => "is a device, not a file".into(),
        _ => "is not a regular file".into(),
    })
}

/// Why a bridge could not keep an outbox here, as far as that can be told without touching anything.
pub(crate) fn unwritable(path: &Path) -> Option<String> {
    if let Some(reason) = no_directory(path) {
        return Some(reason);
    }
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()); // its other files are beside it
    let folder = real.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    if let Err(error) = access(folder, Access::WRITE_OK | Access::EXEC_OK) {
        return Some(format!("cannot create files in {}: {error}", folder.display()));
    }
    match access(&real, Access::READ_OK | Access::WRITE_OK) {
        Err(error) if error != Errno::NOENT => Some(format!("cannot write it: {error}")),
        _ => None,
    }
}

fn no_directory(path: &Path) -> Option<String> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())?;
    Some(format!("there is no directory {}", folder.display()))
}

/// Which file a path leads to, as a text that two processes on a host can compare.
pub(crate) fn identity_of(path: &Path) -> Option<String> {
    let (device, inode) = identity(path).ok()?;
    Some(format!("{device}:{inode}"))
}

/// SQLite deletes a log whose file is missing or empty; this one may hold events that were answered OK.
fn log_without_file(path: &Path) -> Option<String> {
    const HEADER: u64 = 32; // of a log without a frame
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let log = beside(&real, "-wal");
    let length = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    (length(&real) == 0 && length(&log) > HEADER).then(|| {
        format!(
            "it is missing or empty, and its log {} is not: put the file back beside the log, or move the log \
             away to begin anew without what is in it",
            log.display()
        )
    })
}

/// Whether another process has the outbox open for writing, as far as this container can see.
pub(super) fn is_in_use(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !locked_by(&found, "FLOCK").is_empty())
}

/// The name of a file next to the outbox, such as its log.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Lock {
    /// Creates the file if it does not exist. The error names the process that already has it open.
    pub(super) fn acquire(path: &Path) -> Result<Self, OpenError> {
        if let Some(fault) = unsuitable(path) {
            return Err(OpenError::unusable(path, format!("it {fault}")));
        }
        if let Some(reason) = no_directory(path).or_else(|| log_without_file(path)) {
            return Err(OpenError::unusable(path, reason));
        }
        let unusable = |error: io::Error| OpenError::unusable(path, error);
        for _ in 0..TRIES {
            let mut options = File::options();
            let options = options.read(true).write(true).create(true).truncate(false).mode(MODE);
            let file = options.open(path).map_err(unusable)?;
            let found = file.metadata().map_err(unusable)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(OpenError::InUse { path: path.to_owned(), holder: holder(&found) });
                }
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
            }
            let real = fs::canonicalize(path).map_err(unusable)?;
            if identity(&real).map_err(unusable)? == of(&found) {
                take_over_from_first_release(path)?;
                let lock = Lock { file, path: real, opened: OnceLock::new() };
                lock.keep_private().map_err(unusable)?;
                lock.warn_of_other_names(&found);
                return Ok(lock);
            }
        }
        Err(OpenError::unusable(path, "it keeps being replaced"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets other processes use the outbox. The descriptor stays open as long as a connection may be.
    pub(super) fn release(&self) {
        let _ = self.file.unlock(); // closing the descriptor unlocks it anyway
    }

    /// SQLite gives its other files the mode of the first one; files that already exist may be readable
    /// by others.
    fn keep_private(&self) -> io::Result<()> {
        for suffix in ["", "-wal", "-shm"] {
            let path = beside(&self.path, suffix);
            match fs::metadata(&path) {
                Ok(found) if found.mode() & 0o777 != MODE => {
                    let private = fs::set_permissions(&path, Permissions::from_mode(MODE));
                    if let Err(error) = private {
                        // Another user's file on a volume shared by group: still usable.
                        tracing::warn!(
                            path = %path.display(), %error,
                            "cannot restrict the outbox to its owner (mode 0600): it holds user ids and \
                             names, so make sure that nobody else can read it"
                        );
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn warn_of_other_names(&self, found: &Metadata) {
        if found.nlink() > 1 {
            tracing::warn!(
                path = %self.path.display(), names = found.nlink(),
                "the outbox has more than one name (hard links): always start the bridge with this one, \
                 because the file's log is kept beside it"
            );
        }
    }

    /// Remembers the identity of all three open files.
    pub(super) fn watch(&self) -> io::Result<()> {
        let found = |suffix| {
            let path = beside(&self.path, suffix);
            identity(&path).map(|identity| (path, identity))
        };
        let _ = self.opened.set([found("")?, found("-wal")?, found("-shm")?]);
        Ok(())
    }

    /// Fails if further writes would go into a file that nobody can find again.
    pub(super) fn check(&self) -> Result<(), String> {
        for (path, opened) in self.opened.get().into_iter().flatten() {
            match identity(path) {
                Ok(found) if found == *opened => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(format!("cannot watch {}: {error}", path.display()));
                }
                _ => {
                    let path = path.display();
                    return Err(format!(
                        "{path} was deleted, moved or replaced while the bridge was running: put it \
                         back, with its -wal, and start again"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Release 0.1.0 locked a separate file next to the outbox. A 0.1.0 that still runs is respected;
/// otherwise that file is removed.
fn take_over_from_first_release(path: &Path) -> Result<(), OpenError> {
    let old = beside(path, ".lock");
    let Ok(file) = File::open(&old) else { return Ok(()) };
    if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        let holder = fs::read_to_string(&old).unwrap_or_default();
        let holder = holder.trim().parse::<u32>().map(|pid| format!(" (process {pid})"));
        let holder = holder.unwrap_or_default();
        return Err(OpenError::InUse { path: path.to_owned(), holder });
    }
    let _ = fs::remove_file(&old); // harmless if it stays
    Ok(())
}

fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|found| of(&found))
}

fn of(found: &Metadata) -> Identity {
    (found.dev(), found.ino())
}

/// " (process 4711)" for the process that has locked a file, if the system tells.
fn holder(found: &Metadata) -> String {
    let pids = locked_by(found, "FLOCK");
    pids.first().map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// The processes other than this one that are reading the outbox.
pub(super) fn readers(outbox: &Path) -> Vec<u32> {
    let Ok(found) = fs::metadata(beside(outbox, "-shm")) else { return Vec::new() };
    locked_by(&found, "POSIX").into_iter().filter(|pid| *pid != std::process::id()).collect()
}

/// Reads `/proc/locks`, a line of which is `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`. It only
/// shows processes of this container.
fn locked_by(found: &Metadata, kind: &str) -> Vec<u32> {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let inode = format!(":{}", found.ino());
    let pid = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_it = fields.get(1) == Some(&kind) && fields.get(5)?.ends_with(&inode);
        is_it.then(|| fields.get(4)?.parse().ok()).flatten()
    };
    let mut pids: Vec<u32> = locks.lines().filter_map(pid).filter(|pid| *pid > 0).collect();
    pids.sort_unstable(); // a process may hold several locks
    pids.dedup();
    pids
}
