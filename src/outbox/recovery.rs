//! What is done to the files before SQLite reads them. After a kill, or after a sync that failed, the
//! page cache may hold more of the log than the disk does, and SQLite would treat it as durable. So the
//! log is rewritten and synced before anything in it counts.
//!
//! SQLite silently cuts off a log where it becomes unreadable; this module reports how much was lost.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::SystemTime;

use super::lock::beside;

const CHUNK: usize = 1 << 20;

/// From SQLite's file format: "The Write-Ahead Log".
const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const MAGIC: u32 = 0x377f_0682; // plus one: the checksums are big-endian

/// The unreadable end of a log.
#[derive(Debug, PartialEq)]
pub(super) struct CutOff {
    pub(super) bytes: u64,
    /// Transactions that end in it. If there are none, nothing in it was ever answered OK.
    pub(super) commits: u64,
    pub(super) written_at: SystemTime,
}

/// Makes the log durable as it is, and the file names in the folder. What cannot be synced does not count.
pub(super) fn make_durable(outbox: &Path) -> io::Result<()> {
    let log = beside(outbox, "-wal");
    match File::options().read(true).write(true).open(&log) {
        Ok(file) => {
            // Pages of a failed sync may be marked clean: only rewritten pages are synced.
            let (mut buffer, mut at) = (vec![0; CHUNK], 0);
            loop {
                let read = file.read_at(&mut buffer, at)?;
                if read == 0 {
                    break;
                }
                file.write_all_at(&buffer[..read], at)?;
                at += read as u64;
            }
            file.sync_all()?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let folder = outbox.parent().filter(|folder| !folder.as_os_str().is_empty());
    match File::open(folder.unwrap_or(Path::new(".")))?.sync_all() {
        // Some file systems cannot sync a folder; they keep the names without it.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            Ok(())
        }
        result => result,
    }
}

/// Whether the last run did not end in order, and its log is gone. An orderly end removes both the log and the
/// reserve.
pub(super) fn has_lost_its_log(outbox: &Path) -> bool {
    let is_there = |suffix| beside(outbox, suffix).exists();
    is_there("-reserve")
        && !is_there("-wal")
        && outbox.metadata().is_ok_and(|found| found.len() > 0)
}

/// Looks for frames of the log's current generation behind the last readable one.
pub(super) fn cut_off(outbox: &Path) -> io::Result<Option<CutOff>> {
    let file = match File::open(beside(outbox, "-wal")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    let log = unreadable(BufReader::with_capacity(CHUNK, file), found.len())?;
    let (mut bytes, mut commits) = (log.bytes, log.commits);
    // The end of a log that was truncated there is not to be seen, but its index may know of it.
    let missing = match index(outbox) {
        // An empty index beside an empty log is what a reader leaves that may not write.
        Some((salts, end, frame))
            if end > 0 && (salts == log.salts || found.len() < HEADER as u64) =>
        {
            end.saturating_mul(frame).saturating_add(HEADER as u64).saturating_sub(found.len())
        }
        _ => 0,
    };
    if missing > 0 {
        (bytes, commits) = (bytes + missing, commits.max(1));
    }
    let written_at = found.modified()?;
    Ok((bytes > 0).then_some(CutOff { bytes, commits, written_at }))
}

/// What the log's index says of it: the salts of its current generation, how many frames are committed, and the
/// size of a frame.
/// From SQLite's "WAL-Index File Format". The index is never synced: after a power cut it may be anything.
fn index(outbox: &Path) -> Option<([u32; 2], u64, u64)> {
    let mut index = [0; 96];
    File::open(beside(outbox, "-shm")).ok()?.read_exact(&mut index).ok()?;
    let (first, second) = index.split_at(48);
    let native =
        |at: usize| u32::from_ne_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
    let is_sound = first == second
        && first[12] == 1
        && checksum((0, 0), &first[..40], cfg!(target_endian = "big")) == (native(40), native(44));
    let page = u64::from(u16::from_ne_bytes([first[14], first[15]]));
    let frame = FRAME_HEADER as u64 + if page == 1 { 65536 } else { page };
    is_sound.then(|| ([word(first, 32), word(first, 36)], u64::from(native(16)), frame))
}

/// What a log holds besides what can be read.
#[derive(Default)]
struct Unreadable {
    bytes: u64,
    commits: u64,
    salts: [u32; 2],
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Frames of earlier generations behind its end do not count.
fn unreadable(mut log: impl Read, length: u64) -> io::Result<Unreadable> {
    let mut header = [0; HEADER];
    if length < HEADER as u64 {
        return Ok(Unreadable::default());
    }
    log.read_exact(&mut header)?;
    let is_big_endian = word(&header, 0) == MAGIC + 1;
    let mut sum = checksum((0, 0), &header[..24], is_big_endian);
    let is_sound = sum == (word(&header, 24), word(&header, 28));
    let page_size = word(&header, 8) as usize;
    if word(&header, 0) & !1 != MAGIC || !is_sound || !(512..=65536).contains(&page_size) {
        return Ok(Unreadable { bytes: length - HEADER as u64, ..Unreadable::default() });
    }
    let salts = [word(&header, 16), word(&header, 20)];
    let mut frame = vec![0; FRAME_HEADER + page_size];
    let (mut is_readable, mut at, mut end, mut last, mut commits) = (true, HEADER as u64, 0, 0, 0);
    while log.read_exact(&mut frame).is_ok() {
        at += frame.len() as u64;
        let is_of_this_round = [word(&frame, 8), word(&frame, 12)] == salts;
        if is_readable {
            sum = checksum(sum, &frame[..8], is_big_endian);
            sum = checksum(sum, &frame[FRAME_HEADER..], is_big_endian);
            is_readable = is_of_this_round
                && word(&frame, 0) != 0
                && sum == (word(&frame, 16), word(&frame, 20));
        }
        if is_readable {
            end = at;
        } else if is_of_this_round {
            last = at;
            commits += u64::from(word(&frame, 4) != 0);
        }
    }
    let bytes = last.saturating_sub(end.max(HEADER as u64));
    Ok(Unreadable { bytes, commits, salts })
}

fn checksum((mut a, mut b): (u32, u32), bytes: &[u8], is_big_endian: bool) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let bytes = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        a = a.wrapping_add(word(0)).wrapping_add(b);
        b = b.wrapping_add(word(4)).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// A log of several commits, as SQLite writes it, not checkpointed.
    fn log() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE t (x); PRAGMA wal_checkpoint(RESTART);",
            )
            .unwrap();
        for _ in 0..5 {
            connection.execute("INSERT INTO t VALUES (randomblob(9000))", []).unwrap();
        }
        std::fs::read(beside(&path, "-wal")).unwrap()
    }

    fn of(log: &[u8]) -> (u64, u64) {
        let found = unreadable(log, log.len() as u64).unwrap();
        (found.bytes, found.commits)
    }

    #[test]
    fn a_log_that_can_be_read_to_its_end_has_nothing_cut_off() {
        let log = log();
        assert_eq!(of(&log), (0, 0));
        assert_eq!(of(&log[..0]), (0, 0));
        let frame = FRAME_HEADER + 4096;
        assert_eq!(of(&log[..log.len() - frame - 100]), (0, 0), "a transaction that never ended");
    }

    #[test]
    fn a_damaged_frame_takes_all_behind_it_along() {
        let mut log = log();
        let frame = FRAME_HEADER + 4096;
        let frames = (log.len() - HEADER) / frame;
        log[HEADER + 4 * frame + 200] ^= 1;
        let (bytes, commits) = of(&log);
        assert_eq!(bytes, ((frames - 4) * frame) as u64);
        assert!((1..=5).contains(&commits), "{commits}");
    }

    #[test]
    fn a_damaged_head_takes_the_whole_log_along() {
        let mut log = log();
        log[17] ^= 1;
        assert_eq!(of(&log).0, (log.len() - HEADER) as u64);
    }
}
