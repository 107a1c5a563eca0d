//! Answered OK survives a power cut at any moment: the bridge runs on top of a library that records what
//! it does to the outbox's files, and from this record the tests build images of what a disk may hold
//! after a power cut. The bridge starts again on each image, and nothing that was answered before the cut
//! may be missing.
//!
//! `BRIDGE_POWER_CUTS=20000` makes that many images instead of some hundreds, `BRIDGE_SEED` selects
//! different ones. An image that fails is kept, and its path is reported.

mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

use crate::bridge::{APP, Bridge, TOPIC_CREATED, body, eventually, signed};
use crate::http;
use crate::preload::recorder;
use disk::{Disk, Record, Survivors};

/// Small, so that the history is trimmed, and the log copied and begun anew, many times.
const SETTINGS: [(&str, &str); 2] =
    [("outbox.max_bytes", "4 MiB"), ("outbox.history_events", HISTORY_TEXT)];
const HISTORY_TEXT: &str = "150";
const HISTORY: u64 = 150;

/// The namespace of event ids, as docs/consuming.md tells it.
const EVENT_IDS: Uuid = Uuid::from_u128(0x22f64f84_0446_59ea_94db_3f472410cb17);

/// The bridge's files, and the record of what is done to them.
struct Recording {
    library: PathBuf,
    record: PathBuf,
    hold: PathBuf,
    _folder: TempDir,
}

impl Recording {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = recorder(folder.path());
        let (record, hold) = (folder.path().join("record"), folder.path().join("hold"));
        Recording { library, record, hold, _folder: folder }
    }

    /// A last word on the command that runs on this outbox.
    fn of(&self, outbox: &Path) -> impl FnOnce(&mut Command) {
        let outbox = outbox.to_owned();
        move |command| {
            command
                .env("LD_PRELOAD", &self.library)
                .env("RECORD_FOR", outbox)
                .env("RECORD_TO", &self.record)
                .env("HOLD_SYNC_IF_EXISTS", &self.hold);
        }
    }

    /// All that is in the record by now has happened before whatever is seen next.
    fn mark(&self) -> u64 {
        fs::metadata(&self.record).map_or(0, |found| found.len())
    }
}

/// What the world outside has seen, each with how far the record was by then.
#[derive(Default)]
struct Seen {
    answered: Vec<(String, u64)>,
    quarantined: Vec<(String, u64)>,
    positions: BTreeMap<u64, (String, u64)>,
}

/// Callbacks over a few connections, of all sizes, a malformed one now and then, and a reader beside them.
fn load(bridge: &Bridge, recording: &Recording, prefix: &str, count: usize, seen: &Mutex<Seen>) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                read(bridge, recording, seen);
            }
            read(bridge, recording, seen);
        });
        let clients: Vec<_> = (0..4)
            .map(|client| {
                scope.spawn(move || {
                    let mut connection = http::Connection::open(bridge.ingress);
                    for number in 0..count {
                        let topic = format!("{prefix}-{client}-{number}");
                        let is_odd = number % 20 == 7;
                        let name = "x".repeat(number * 37 % 3000);
                        let text = body(&topic).replace("MyFirstTopic", &name);
                        let text = if is_odd { format!("{topic} is malformed") } else { text };
                        let target = signed(TOPIC_CREATED, &[]);
                        let reply = connection.request("POST", &target, &[], text.as_bytes());
                        let mark = recording.mark();
                        let mut seen = seen.lock().unwrap();
                        match reply.status {
                            200 => seen.answered.push((topic, mark)),
                            400 => seen.quarantined.push((text, mark)),
                            other => panic!("{other}: {reply:?}"),
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

fn read(bridge: &Bridge, recording: &Recording, seen: &Mutex<Seen>) {
    let after = seen.lock().unwrap().positions.keys().next_back().copied().unwrap_or(0);
    let page = bridge.page(&format!("?after={after}"));
    let mark = recording.mark();
    let next: u64 = page.header("next-after").unwrap().parse().unwrap();
    let events: Vec<Value> =
        page.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = next + 1 - events.len() as u64; // positions have no holes
    let mut seen = seen.lock().unwrap();
    for (position, event) in (first..).zip(events) {
        let id = event["id"].as_str().unwrap().to_owned();
        seen.positions.entry(position).or_insert((id, mark));
    }
}

/// A run with a stop and a kill in its middle, recorded.
fn recorded(settings: &[(&str, &str)], count: usize) -> (Recording, Seen) {
    let recording = Recording::new();
    let seen = Mutex::new(Seen::default());
    let home = tempfile::tempdir().unwrap();
    let outbox = home.path().join("outbox.db");
    let settings = [settings, &[("outbox.path", outbox.to_str().unwrap())]].concat();
    let mut bridge = Bridge::start_with(&settings, recording.of(&outbox));
    load(&bridge, &recording, "first", count, &seen);
    bridge.stop();
    let bridge = bridge.restart_with(&[], recording.of(&outbox));
    load(&bridge, &recording, "second", count, &seen);
    let bridge = bridge.restart_with(&[], recording.of(&outbox)); // after a kill
    load(&bridge, &recording, "third", count, &seen);
    bridge.kill();
    (recording, seen.into_inner().unwrap())
}

/// Makes images of a record, starts the bridge on each, and says what is missing where.
struct Trial<'t> {
    before: Disk,
    record: &'t Record,
    seen: &'t Seen,
    settings: &'t [(&'t str, &'t str)],
    seed: u64,
}

/// How many images, and what was wrong with some.
#[derive(Default, Debug)]
struct Outcome {
    images: usize,
    failures: Vec<String>,
}

impl Trial<'_> {
    fn run(&self, images: usize) -> Outcome {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut cuts: Vec<_> = (0..images).map(|_| random.usize(..=self.record.len())).collect();
        cuts.sort_unstable();
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(Vec::new());
        let made = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (mut disk, mut at) = (self.before.clone(), 0);
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(cut) = cuts.get(number).copied() else { return };
                        disk.advance(self.record, at, cut);
                        at = cut;
                        let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
                        made.fetch_add(1, Ordering::Relaxed);
                        if let Err(fault) = self.try_image(&disk, cut, seed) {
                            failures
                                .lock()
                                .unwrap()
                                .push(format!("cut {cut}, seed {seed}: {fault}"));
                        }
                    }
                });
            }
        });
        Outcome { images: made.into_inner(), failures: failures.into_inner().unwrap() }
    }

    /// One image; of one in eight the recovery is cut, too.
    fn try_image(&self, disk: &Disk, cut: usize, seed: u64) -> Result<(), String> {
        let mut random = fastrand::Rng::with_seed(seed);
        let survivors = random
            .choice([
                Survivors::None,
                Survivors::All,
                Survivors::First,
                Survivors::Some,
                Survivors::Some,
            ])
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        disk.image(folder.path(), survivors, &mut random);
        let mark = self.record.mark_of(cut);
        let result = match seed % 8 {
            0 => self.cut_again(folder.path(), mark, &mut random),
            _ => {
                self.start_on(folder.path(), |_| {}).and_then(|()| self.check(folder.path(), mark))
            }
        };
        result.map_err(|fault| {
            format!("{fault} ({survivors:?}; kept in {})", folder.keep().display())
        })
    }

    fn cut_again(
        &self,
        folder: &Path,
        mark: u64,
        random: &mut fastrand::Rng,
    ) -> Result<(), String> {
        let before = Disk::of(folder);
        let recording = Recording::new();
        self.start_on(folder, recording.of(&folder.join("outbox.db")))?;
        let record = Record::read(&recording.record);
        for _ in 0..3 {
            let cut = random.usize(..=record.len());
            let mut disk = before.clone();
            disk.advance(&record, 0, cut);
            let again = tempfile::tempdir().unwrap();
            disk.image(again.path(), Survivors::Some, random);
            self.start_on(again.path(), |_| {})
                .and_then(|()| self.check(again.path(), mark))
                .map_err(|fault| {
                    format!(
                        "after a cut {cut} in the recovery: {fault}, {}",
                        again.keep().display()
                    )
                })?;
        }
        Ok(())
    }

    /// Starts, is ready, and is killed.
    fn start_on(&self, folder: &Path, prepare: impl FnOnce(&mut Command)) -> Result<(), String> {
        let outbox = folder.join("outbox.db");
        let settings = [self.settings, &[("outbox.path", outbox.to_str().unwrap())]].concat();
        let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let bridge = Bridge::start_with(&settings, prepare);
            eventually("it is ready", || (bridge.readiness().0 == 200).then_some(()));
            bridge.page("?limit=1");
            bridge.kill();
        }));
        started.map_err(|_| "the bridge does not start".to_owned())
    }

    /// What was seen before the cut has to be there.
    fn check(&self, folder: &Path, mark: u64) -> Result<(), String> {
        let found = Found::read(&folder.join("outbox.db"));
        let newest = found.events.keys().chain(found.ids.values()).max().copied().unwrap_or(0);
        let oldest = found.events.keys().next().copied().unwrap_or(newest + 1);
        for (topic, _) in self.seen.answered.iter().filter(|(_, at)| *at <= mark) {
            let id = Uuid::new_v5(&EVENT_IDS, format!("{APP}//{topic}").as_bytes());
            let position =
                found.ids.get(&id).ok_or(format!("{topic} was answered, and is forgotten"))?;
            let is_kept = found.events.get(position) == Some(&id);
            let was_trimmed = *position < oldest && newest - position >= HISTORY;
            if !(is_kept || was_trimmed) {
                return Err(format!("{topic} was answered, and its event is not there"));
            }
        }
        for (position, (id, _)) in self.seen.positions.iter().filter(|(_, (_, at))| *at <= mark) {
            if *position > newest {
                return Err(format!("position {position} was seen, and will be given again"));
            }
            if let Some(found) = found.events.get(position).filter(|found| found.to_string() != *id)
            {
                return Err(format!("position {position} was that of {id}, and is of {found}"));
            }
        }
        let lost = |(text, at): &&(String, u64)| *at <= mark && !found.quarantined.contains(text);
        match self.seen.quarantined.iter().find(lost) {
            Some((text, _)) => Err(format!("{text:?} was quarantined, and is not there")),
            None => Ok(()),
        }
    }
}

/// What is in an outbox.
struct Found {
    events: BTreeMap<u64, Uuid>,
    ids: BTreeMap<Uuid, u64>,
    quarantined: BTreeSet<String>,
}

impl Found {
    fn read(outbox: &Path) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let outbox = Connection::open_with_flags(outbox, flags).unwrap();
        let pairs = |sql: &str| -> Vec<(u64, Uuid)> {
            let mut statement = outbox.prepare(sql).unwrap();
            let pair = |row: &rusqlite::Row| {
                let id = Uuid::from_slice(row.get_ref(1)?.as_blob()?).unwrap();
                Ok((row.get(0)?, id))
            };
            statement.query_map([], pair).unwrap().map(Result::unwrap).collect()
        };
        let mut statement = outbox.prepare("SELECT body FROM quarantine").unwrap();
        let quarantined = statement
            .query_map([], |row| {
                Ok(String::from_utf8_lossy(row.get_ref(0)?.as_blob()?).into_owned())
            })
            .unwrap();
        Found {
            events: pairs("SELECT position, id FROM events").into_iter().collect(),
            ids: pairs("SELECT position, first_id FROM ids")
                .into_iter()
                .map(|(p, id)| (id, p))
                .collect(),
            quarantined: quarantined.map(Result::unwrap).collect(),
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn images() -> usize {
    usize::try_from(setting("BRIDGE_POWER_CUTS", 300)).unwrap()
}

#[test]
fn what_was_answered_survives_a_power_cut_at_any_moment() {
    let (recording, seen) = recorded(&SETTINGS, 60);
    let record = Record::read(&recording.record);
    assert!(seen.answered.len() > 600 && seen.quarantined.len() >= 36, "{}", seen.answered.len());
    let seed = setting("BRIDGE_SEED", 1);
    let (before, seen) = (Disk::default(), &seen);
    let trial = Trial { before, record: &record, seen, settings: &SETTINGS, seed };
    let outcome = trial.run(images());
    assert!(outcome.failures.is_empty(), "{outcome:#?}");
    assert_eq!(outcome.images, images());
    eprintln!(
        "{} images of {} writes and syncs, none of which lost anything",
        images(),
        record.len()
    );
}

#[test]
fn a_weaker_sync_is_found_out() {
    let settings = [&SETTINGS[..], &[("outbox.sync", "normal")]].concat();
    let (recording, seen) = recorded(&settings, 15);
    let record = Record::read(&recording.record);
    let (before, seen) = (Disk::default(), &seen);
    let trial = Trial { before, record: &record, seen, settings: &SETTINGS, seed: 1 };
    let outcome = trial.run(40);
    let losses = outcome.failures.iter().filter(|fault| fault.contains("was answered")).count();
    assert!(losses > 0, "{outcome:#?}");
    eprintln!("{losses} of {} images lost something", outcome.images);
}

#[test]
fn what_was_recovered_is_durable_before_a_repeat_of_it_is_answered() {
    let recording = Recording::new();
    let home = tempfile::tempdir().unwrap();
    let outbox = home.path().join("outbox.db");
    let settings = [("outbox.path", outbox.to_str().unwrap())];
    let bridge = Bridge::start_with(&settings, recording.of(&outbox));
    assert_eq!(bridge.call(&body("before")).status, 200);
    fs::write(&recording.hold, "").unwrap();
    assert_eq!(bridge.call(&body("hung")).status, 503, "its sync does not end");
    let pid = bridge.pid();
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    fs::remove_file(&recording.hold).unwrap();
    let bridge = bridge.restart_with(&[], recording.of(&outbox));
    assert_eq!(bridge.call(&body("hung")).status, 200, "the platform's retry");
    let mark = recording.mark();
    bridge.kill();

    let record = Record::read(&recording.record);
    let cut = record.cut_at(mark);
    let answered = ["before", "hung"].map(|topic| (topic.to_owned(), mark));
    let seen = Seen { answered: answered.into(), ..Seen::default() };
    let mut disk = Disk::default();
    disk.advance(&record, 0, cut);
    let trial =
        Trial { before: Disk::default(), record: &record, seen: &seen, settings: &[], seed: 1 };
    let folder = tempfile::tempdir().unwrap();
    disk.image(folder.path(), Survivors::None, &mut fastrand::Rng::with_seed(1));
    trial.start_on(folder.path(), |_| {}).unwrap();
    trial.check(folder.path(), mark).unwrap();
}

#[test]
fn a_power_cut_in_a_migration_leaves_the_outbox_as_it_was_or_whole() {
    let home = tempfile::tempdir().unwrap();
    let outbox = home.path().join("outbox.db");
    let older = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data/outbox-v2.db");
    fs::copy(older, &outbox).unwrap();
    let settings =
        [("outbox.history", "36500d"), ("sink", "nats"), ("nats.servers", "nats://127.0.0.1:1")];
    let before = Disk::of(home.path());
    let recording = Recording::new();
    let started = [&settings[..], &[("outbox.path", outbox.to_str().unwrap())]].concat();
    Bridge::start_with(&started, recording.of(&outbox)).kill();
    let whole = Found::read(&outbox);
    assert!(whole.events.len() > 10 && whole.quarantined.len() == 3);

    let record = Record::read(&recording.record);
    let seen = Seen {
        positions: whole.events.iter().map(|(at, id)| (*at, (id.to_string(), 0))).collect(),
        quarantined: whole.quarantined.iter().map(|text| (text.clone(), 0)).collect(),
        ..Seen::default()
    };
    let trial = Trial { before, record: &record, seen: &seen, settings: &settings, seed: 1 };
    let outcome = trial.run(images() / 8);
    assert!(outcome.failures.is_empty(), "{outcome:#?}");
}
