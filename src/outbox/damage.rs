//! One outbox, damaged in every way that comes to mind, one way at a time. Either it opens, and whatever it shows is
//! what was written, and what it does not show is reported; or it says which file is damaged and what to do.
//! `BRIDGE_DAMAGE_CASES` sets how many random bits are flipped, `BRIDGE_SEED` which.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::ensure;
use rusqlite::Connection;
use tempfile::TempDir;

use super::fixtures::{LIMITS, START, close, record, settings};
use super::*;
use crate::outbox::check::check;
use crate::time::Timestamp;

const PAGE: usize = 4096;
const EVENTS: u64 = 150;
const SETTLED: u64 = 60;
const DEFERRED: [u64; 3] = [11, 22, 33];
const DEAD: [u64; 2] = [15, 25];

type Bodies = BTreeMap<u64, Vec<u8>>;

/// The files of an outbox, and what is in it.
struct Original {
    file: Vec<u8>,
    log: Vec<u8>,
    index: Vec<u8>,
    /// The same file some events earlier.
    earlier: Vec<u8>,
    events: BTreeMap<u64, Stored>,
    deferred: BTreeSet<u64>,
    dead: BTreeSet<u64>,
    quarantined: Bodies,
    faults: RefCell<Vec<String>>,
}

/// Where no sync costs anything, if there is such a place.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn read(path: &Path, suffix: &str) -> Vec<u8> {
    fs::read(lock::beside(path, suffix)).unwrap_or_default()
}

async fn append(outbox: &Outbox, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let mut record = record(&format!("topic {number}"), Timestamp::from_millis(number));
        record.event.data =
            format!(r#"{{"sdk_app_id":1,"filler":"{}"}}"#, "x".repeat(200 + number as usize));
        assert_eq!(outbox.append(record).unwrap().await.unwrap(), Ok(Receipt::Accepted));
    }
}

/// `in_log`: as a kill leaves it, with most of it in the log only.
async fn original(in_log: bool) -> Original {
    let folder = folder();
    let settings = settings(folder.path());
    let clock = Clock::scripted(START);
    let (outbox, workers) = fixtures::open(&settings, &clock);
    append(&outbox, 1..=90).await;
    for number in 0..3 {
        let callback = Quarantined {
            sdk_app_id: 1,
            client_ip: Some("192.0.2.1".into()),
            client_platform: None,
            received_at: START,
            reason: "body is not JSON".into(),
            body: format!("body {number} {}", "y".repeat(900)).into_bytes(),
        };
        assert!(outbox.quarantine(callback).unwrap().await.unwrap().is_ok());
    }
    close(workers).await;
    let earlier = read(&settings.path, "");
    let (outbox, workers) = fixtures::open(&settings, &clock);
    append(&outbox, 91..=EVENTS).await;
    let again =
        |position| Again { position, attempts: 1, not_before: START, reason: "later".into() };
    let refused = |position| Refused { position, at: START, reason: "too large".into() };
    let (again, refused) = (DEFERRED.map(again).to_vec(), DEAD.map(refused).to_vec());
    let settlement = Settlement { through: SETTLED, again, refused, ..Settlement::default() };
    outbox.settle(settlement).await.unwrap();
    let mut found = look(&outbox).unwrap();
    let mut files =
        [read(&settings.path, ""), read(&settings.path, "-wal"), read(&settings.path, "-shm")];
    close(workers).await;
    if !in_log {
        files = [read(&settings.path, ""), Vec::new(), Vec::new()];
    }
    let [file, log, index] = files;
    let events = std::mem::take(&mut found.events);
    assert_eq!(events.len() as u64, EVENTS);
    let (deferred, dead) = (found.deferred, found.dead);
    assert_eq!((deferred.len(), dead.len(), found.quarantined.len()), (3, 2, 3));
    Original {
        file,
        log,
        index,
        earlier,
        events,
        deferred,
        dead,
        quarantined: found.quarantined,
        faults: RefCell::default(),
    }
}

/// What an outbox shows.
#[derive(Default)]
struct Found {
    events: BTreeMap<u64, Stored>,
    /// Reported as damaged or missing.
    reported: BTreeSet<u64>,
    deferred: BTreeSet<u64>,
    dead: BTreeSet<u64>,
    quarantined: Bodies,
    settled_through: u64,
    last: u64,
}

fn look(outbox: &Outbox) -> Result<Found, String> {
    let reader = outbox.reader().map_err(|error| error.to_string())?;
    let last = *outbox.last().borrow();
    let settled_through = outbox.settled_through();
    let mut found = Found { settled_through, last, ..Found::default() };
    let note = |slot: Slot, found: &mut Found| match slot {
        Ok(stored) => drop(found.events.insert(stored.position, stored)),
        Err(damaged) => drop(found.reported.insert(damaged.position)),
    };
    // As the relay reads it, and after that the history.
    let mut cursor = settled_through;
    let error = |error: ReadError| error.to_string();
    while cursor < last {
        let slots = reader.run_here(|reading| reading.line(cursor, last, 50)).map_err(error)?;
        cursor = position(slots.last().expect("the queue never ends before its last position"));
        slots.into_iter().for_each(|slot| note(slot, &mut found));
    }
    let history = reader.run_here(|reading| reading.after(0, 10_000)).map_err(error)?;
    let history = history.into_iter().filter(|slot| position(slot) <= settled_through);
    history.for_each(|slot| note(slot, &mut found));
    let deferred = reader.run_here(|reading| reading.deferred_after(0, 1000)).map_err(error)?;
    found.deferred = deferred.iter().map(|deferred| position(&deferred.slot)).collect();
    let list = |list| reader.run_here(|reading| reading.list(list, 0, 1000)).map_err(error);
    found.dead = list(List::DeadLetters)?.into_iter().map(|kept| kept.position).collect();
    let whole = list(List::Quarantined)?.into_iter();
    let whole =
        whole.filter(|kept| !kept.reason.as_deref().unwrap_or_default().contains("is damaged"));
    found.quarantined = whole.map(|kept| (kept.position, kept.content)).collect();
    Ok(found)
}

/// One way to damage it.
struct Case<'c> {
    name: String,
    file: &'c [u8],
    log: &'c [u8],
    /// Some pages are of an earlier moment, with checksums that match.
    is_stale: bool,
}

impl Original {
    fn write(&self, case: &Case) -> (TempDir, PathBuf) {
        let folder = folder();
        let path = folder.path().join("outbox.db");
        fs::write(&path, case.file).unwrap();
        if !self.log.is_empty() {
            fs::write(lock::beside(&path, "-wal"), case.log).unwrap();
            fs::write(lock::beside(&path, "-shm"), &self.index).unwrap();
        }
        (folder, path)
    }

    /// Whether it opened.
    async fn check(&self, case: Case<'_>) -> bool {
        let name = case.name.clone();
        self.try_case(case).await.unwrap_or_else(|fault| {
            self.faults.borrow_mut().push(format!("{name}: {fault}"));
            false
        })
    }

    async fn try_case(&self, case: Case<'_>) -> anyhow::Result<bool> {
        let (folder, path) = self.write(&case);
        let cut_off = recovery::cut_off(&path).unwrap().is_some_and(|cut_off| cut_off.bytes > 0);
        let settings = settings(folder.path());
        let metrics = Arc::new(Metrics::new("embedded"));
        let clock = Clock::scripted(START);
        let (outbox, workers) = match Outbox::open(&settings, LIMITS, metrics, clock) {
            Ok(opened) => opened,
            Err(error) => return advises(&error.to_string(), &path).map(|()| false),
        };
        let found = look(&outbox);
        let newest = *outbox.last().borrow();
        let is_taken = take_one(&outbox).await;
        let last = *outbox.last().borrow();
        close(workers).await;
        ensure!(!is_taken || last > newest, "a new event is at {last}");
        match found {
            Ok(found) => self.judge(&case, &found, cut_off).map(|()| true),
            Err(error) => advises(&error, &path).map(|()| false),
        }
    }

    fn judge(&self, case: &Case, found: &Found, cut_off: bool) -> anyhow::Result<()> {
        for (position, stored) in &found.events {
            ensure!(
                self.events.get(position) == Some(stored),
                "{position} is not what was written"
            );
        }
        let is_told =
            |position| found.reported.contains(&position) || cut_off && position > found.last;
        let settled = found.settled_through;
        ensure!(settled <= SETTLED, "{settled} is settled, which is too much");
        ensure!(cut_off || case.is_stale || settled == SETTLED, "only {settled} is settled");
        let is_here = |position: &u64| found.events.contains_key(position) || is_told(*position);
        let lost: Vec<_> = (SETTLED + 1..=EVENTS).filter(|at| !is_here(at)).collect();
        ensure!(lost.is_empty(), "{lost:?} vanished in silence");
        let is_whole = (1..=SETTLED).all(|at| is_here(&at))
            && self.deferred.is_subset(&found.deferred)
            && self.dead.is_subset(&found.dead)
            && self.quarantined == found.quarantined;
        if !is_whole && !cut_off && !case.is_stale {
            let (_folder, path) = self.write(case);
            let is_found = check(&path).map_or(true, |report| !report.findings.is_empty());
            ensure!(is_found, "a check finds nothing");
        }
        Ok(())
    }
}

impl Drop for Original {
    /// All of them, since one run takes a while.
    fn drop(&mut self) {
        let faults = self.faults.take();
        assert!(
            faults.is_empty() || std::thread::panicking(),
            "{} faults: {faults:#?}",
            faults.len()
        );
    }
}

async fn take_one(outbox: &Outbox) -> bool {
    match outbox.append(record("one more", START)) {
        Ok(answer) => answer.await.is_ok_and(|outcome| outcome.is_ok()),
        Err(_) => false,
    }
}

/// The error names the file, and what to do.
fn advises(error: &str, path: &Path) -> anyhow::Result<()> {
    let helps = [
        "`topic-bridge outbox salvage",
        "it is not an SQLite file; set outbox.path",
        "a database of another program",
        "start that one",
        "put the file back",
    ];
    let is_named = error.contains(path.to_str().unwrap());
    ensure!(is_named && helps.iter().any(|help| error.contains(help)), "{error}: is no advice");
    Ok(())
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

fn pages(file: &[u8]) -> usize {
    file.len() / PAGE
}

#[tokio::test]
async fn a_file_that_ends_early_opens_with_what_is_true_or_says_what_to_do() {
    for in_log in [false, true] {
        let original = original(in_log).await;
        for end in 0..pages(&original.file) * 2 {
            let file = &original.file[..end * PAGE / 2];
            if file.is_empty() && !in_log {
                continue; // a new one
            }
            let name = format!("file cut at half page {end}, {in_log}");
            let case = Case { name, file, log: &original.log, is_stale: false };
            original.check(case).await;
        }
    }
}

#[tokio::test]
async fn a_log_that_ends_early_is_reported() {
    let original = original(true).await;
    let frame = 24 + PAGE;
    assert!(original.log.len() / frame > 60);
    let ends = (0..original.log.len() / frame)
        .flat_map(|number| [32 + number * frame, 40 + number * frame]);
    for end in ends.chain([0, 16]) {
        let log = &original.log[..end];
        let case =
            Case { name: format!("log cut at {end}"), file: &original.file, log, is_stale: false };
        original.check(case).await;
    }
}

#[tokio::test]
async fn a_flipped_bit_is_never_delivered_and_hides_nothing() {
    let mut random = fastrand::Rng::with_seed(number("BRIDGE_SEED", 11));
    let (mut opened, mut cases) = (0, 0);
    for in_log in [false, true] {
        let original = original(in_log).await;
        let (file, log) = (&original.file, &original.log);
        let headers = (0..pages(file)).flat_map(|page| (0..28).map(move |byte| page * PAGE + byte));
        let headers = headers.chain(28..100).map(|byte| byte * 8);
        let mut of_file: Vec<_> = headers.map(|bit| bit + random.usize(..8)).collect();
        let more = (0..number("BRIDGE_DAMAGE_CASES", 300)).map(|_| random.usize(..file.len() * 8));
        of_file.extend(more);
        for bit in of_file {
            let name = format!(
                "bit {} of byte {} of page {}, {in_log}",
                bit % 8,
                bit / 8 % PAGE,
                bit / 8 / PAGE + 1
            );
            let case = Case { name, file: &flipped(file, bit), log, is_stale: false };
            opened += usize::from(original.check(case).await);
            cases += 1;
        }
        for _ in 0..if in_log { number("BRIDGE_DAMAGE_CASES", 300) } else { 0 } {
            let bit = random.usize(..log.len() * 8);
            let name = format!("bit {} of byte {} of the log", bit % 8, bit / 8);
            let case = Case { name, file, log: &flipped(log, bit), is_stale: false };
            original.check(case).await;
        }
    }
    eprintln!("{opened} of {cases} files with a flipped bit opened");
    assert!(opened > cases / 4, "the others say what to do");
}

#[tokio::test]
async fn a_page_that_is_another_is_never_delivered_and_hides_nothing() {
    let original = original(false).await;
    let page = |bytes: &[u8], number: usize| bytes[number * PAGE..(number + 1) * PAGE].to_vec();
    for number in 0..pages(&original.file) {
        let next = (number + 1) % pages(&original.file);
        let mut others = vec![
            ("zeros", vec![0; PAGE], false),
            ("noise", vec![0xa5; PAGE], false),
            ("the next page", page(&original.file, next), false),
        ];
        if number < pages(&original.earlier) {
            others.push(("its earlier self", page(&original.earlier, number), true));
        }
        for (what, other, is_stale) in others {
            let mut file = original.file.clone();
            file[number * PAGE..(number + 1) * PAGE].copy_from_slice(&other);
            let name = format!("page {} is {what}", number + 1);
            original.check(Case { name, file: &file, log: &[], is_stale }).await;
        }
    }
}

#[tokio::test]
async fn whatever_is_damaged_is_found_by_a_check_and_an_outbox_that_is_whole_is_good() {
    for in_log in [false, true] {
        let original = original(in_log).await;
        let whole = Case {
            name: "whole".into(),
            file: &original.file,
            log: &original.log,
            is_stale: false,
        };
        let (_folder, path) = original.write(&whole);
        assert_eq!(check(&path).unwrap().findings, []);
        assert_eq!(fs::read(&path).unwrap(), original.file, "it is only read");
        assert_eq!(read(&path, "-wal"), original.log);
        assert!(original.check(whole).await);
    }
    let original = original(false).await;
    for sql in [
        "UPDATE events SET data = data || ' ' WHERE position = 100",
        "UPDATE events SET data = data || ' ' WHERE position = 1",
        "DELETE FROM events WHERE position = 70",
        "DELETE FROM events WHERE position > 140",
        "UPDATE relay SET settled_through = 61",
        "UPDATE relay SET settled_through = 1000, checksum = 0",
        "DELETE FROM relay",
        "INSERT INTO relay VALUES (7, 8)",
        "UPDATE ids SET position = 1000000 WHERE position = 150",
        "UPDATE ids SET first_id = zeroblob(16) WHERE position = 90",
        "UPDATE ids SET first_id = zeroblob(15) WHERE position = 90",
        "UPDATE quarantine SET body = 'other' WHERE number = 2",
        "UPDATE deferred SET group_id = 'other' WHERE position = 22",
        "UPDATE dead_letters SET group_id = 'other' WHERE position = 25",
    ] {
        let whole = Case { name: sql.into(), file: &original.file, log: &[], is_stale: false };
        let (_folder, path) = original.write(&whole);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        assert_ne!(check(&path).unwrap().findings, [], "{sql}");
        let (file, is_stale) = (fs::read(&path).unwrap(), false);
        original.check(Case { name: sql.into(), file: &file, log: &[], is_stale }).await;
    }
}
