//! The operator's bad day, on the whole program: each kind of damage once, and what the operator is told to do. The
//! systematic run, page by page and bit by bit, is `outbox::damage`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::bridge::{Bridge, Ended, body, is_delivered, program, run};
use crate::outbox_file::{ask, beside, list, serve_on};

const NO_SINK: [(&str, &str); 3] =
    [("sink", "nats"), ("nats.servers", "nats://127.0.0.1:1"), ("relay.drain_timeout", "100ms")];

const EVENTS: usize = 40;

/// The files of an outbox whose bridge was killed, with all of it in the log but the first event.
struct Files {
    file: Vec<u8>,
    log: Vec<u8>,
    index: Vec<u8>,
    events: Vec<Value>,
}

fn killed() -> Files {
    let mut bridge = Bridge::start(&NO_SINK);
    assert_eq!(bridge.call(&body("topic 0")).status, 200);
    bridge.stop();
    let mut bridge = bridge.restart(&[]);
    for number in 1..EVENTS {
        assert_eq!(bridge.call(&body(&format!("topic {number}"))).status, 200);
    }
    assert_eq!(bridge.call("not json").status, 400);
    bridge.signal("KILL");
    bridge.ended();
    let read = |suffix| fs::read(beside(&bridge.outbox(), suffix)).unwrap();
    let (file, log, index) = (read(""), read("-wal"), read("-shm"));
    let events = list(&bridge.outbox(), &[]);
    assert_eq!(events.len(), EVENTS);
    Files { file, log, index, events }
}

impl Files {
    fn lay_out(&self) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let outbox = folder.path().join("outbox.db");
        fs::write(&outbox, &self.file).unwrap();
        fs::write(beside(&outbox, "-wal"), &self.log).unwrap();
        fs::write(beside(&outbox, "-shm"), &self.index).unwrap();
        fs::write(beside(&outbox, "-reserve"), []).unwrap();
        (folder, outbox)
    }
}

/// Twice, as a supervisor does it: the same end each time, with a message that helps, and nothing gets worse.
fn check_ends(outbox: &Path, words: &[&str]) -> Ended {
    let contents = |suffix: &str| fs::read(beside(outbox, suffix)).ok();
    let first = run(&mut serve_on(outbox));
    let left = ["", "-wal"].map(contents);
    let second = run(&mut serve_on(outbox));
    assert_eq!((first.code, second.code), (Some(1), Some(1)), "{first:?}");
    assert!(["", "-wal"].map(contents) == left, "a second start changes nothing more");
    for ended in [&first, &second] {
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        for word in words.iter().chain(&[outbox.to_str().unwrap()]) {
            assert!(ended.stderr.contains(word), "{word:?} should be in {}", ended.stderr);
        }
    }
    second
}

fn start_on(outbox: &Path) -> Bridge {
    Bridge::start(&[("outbox.path", outbox.to_str().unwrap()), ("sink", "embedded")])
}

#[test]
fn a_log_whose_file_is_gone_is_not_deleted_with_what_is_in_it() {
    let files = killed();
    for is_there in [false, true] {
        let (_folder, outbox) = files.lay_out();
        if is_there {
            fs::write(&outbox, []).unwrap()
        } else {
            fs::remove_file(&outbox).unwrap()
        }
        check_ends(&outbox, &["put the file back", "-wal"]);
        assert_eq!(fs::read(beside(&outbox, "-wal")).unwrap(), files.log);
        fs::write(&outbox, &files.file).unwrap();
        assert_eq!(start_on(&outbox).events().len(), EVENTS, "as it was told");
    }
}

#[test]
fn a_log_that_was_deleted_or_cut_after_a_kill_is_told() {
    let files = killed();
    for (keep, words) in [(None, "log (-wal) is gone"), (Some(files.log.len() / 2), "was cut off")]
    {
        let (_folder, outbox) = files.lay_out();
        match keep {
            Some(keep) => fs::write(beside(&outbox, "-wal"), &files.log[..keep]).unwrap(),
            None => fs::remove_file(beside(&outbox, "-wal")).unwrap(),
        }
        let bridge = start_on(&outbox);
        assert_eq!(bridge.logged(words).len(), 1, "{}", bridge.log());
        let left = bridge.events();
        assert!(!left.is_empty() && left.len() < EVENTS);
        let sent: Vec<_> = files.events.iter().map(|line| line["event"].clone()).collect();
        assert_eq!(left, sent[..left.len()], "what is left is true");
        assert_eq!(bridge.call(&body("goes on")).status, 200);
    }
}

#[test]
fn an_index_of_junk_or_none_and_a_reserve_of_any_size_do_no_harm() {
    let files = killed();
    for suffix in ["-shm", "-reserve"] {
        for junk in [None, Some(Vec::new()), Some(vec![0xa5; 40_000])] {
            let (_folder, outbox) = files.lay_out();
            match junk {
                Some(junk) => fs::write(beside(&outbox, suffix), junk).unwrap(),
                None => fs::remove_file(beside(&outbox, suffix)).unwrap(),
            }
            assert_eq!(start_on(&outbox).events().len(), EVENTS, "{suffix}");
        }
    }
}

#[test]
fn a_watermark_that_the_disk_has_raised_passes_over_nothing() {
    let files = killed();
    let (folder, outbox) = files.lay_out();
    let file = rusqlite::Connection::open(&outbox).unwrap();
    file.execute("UPDATE relay SET settled_through = 30", []).unwrap();
    file.close().unwrap();
    check_ends(&outbox, &["the watermark", "outbox salvage"]);
    let checked = run(program().args(["outbox", "check", "--path"]).arg(&outbox));
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.stdout.contains("watermark"), "{}", checked.stdout);
    let new = folder.path().join("new.db");
    let salvaged: Value = serde_json::from_str(&salvage(&outbox, &new)).unwrap();
    assert_eq!((&salvaged["pending"], &salvaged["is_in_doubt"]), (&EVENTS.into(), &true.into()));
    let bridge = start_on(&new);
    is_delivered(&bridge);
    assert_eq!(bridge.metric("topic_bridge_quarantined"), 1.0);
    let sent: Vec<_> = files.events.iter().map(|line| line["event"].clone()).collect();
    assert_eq!(bridge.events(), sent);
}

/// What it says, as JSON.
fn salvage(outbox: &Path, new: &Path) -> String {
    ask(outbox, &["salvage", new.to_str().unwrap()])
}

#[test]
fn an_event_that_has_vanished_becomes_a_dead_letter_that_says_so() {
    let files = killed();
    let (_folder, outbox) = files.lay_out();
    let file = rusqlite::Connection::open(&outbox).unwrap();
    file.execute("DELETE FROM events WHERE position IN (7, 8, 40)", []).unwrap();
    file.close().unwrap();
    let bridge = start_on(&outbox);
    is_delivered(&bridge);
    let dead = list(&outbox, &["--dead"]);
    let positions: Vec<_> = dead.iter().map(|line| line["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [7, 8, 40]);
    assert!(
        dead.iter().all(|line| line["reason"].as_str().unwrap().contains("missing")),
        "{dead:?}"
    );
    assert_eq!(bridge.events().len(), EVENTS - 3);
    assert_eq!(bridge.call(&body("goes on")).status, 200);
    assert_eq!(bridge.page("").header("next-after"), Some("41"), "no position is used again");
}

#[test]
fn salvage_saves_what_can_be_read_around_pages_of_noise_and_counts_the_rest() {
    let files = killed();
    let (_folder, outbox) = files.lay_out();
    let file = rusqlite::Connection::open(&outbox).unwrap();
    file.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    file.close().unwrap();
    let whole = fs::read(&outbox).unwrap();
    let known: BTreeMap<_, _> =
        files.events.iter().map(|line| (line["position"].as_u64(), line.clone())).collect();
    let (mut all, mut most) = (0, 0);
    for page in 0..whole.len() / 4096 {
        let mut damaged = whole.clone();
        damaged[page * 4096..(page + 1) * 4096].fill(0xa5);
        fs::write(&outbox, &damaged).unwrap();
        let new = beside(&outbox, &format!("-new-{page}"));
        let salvaged: Value = serde_json::from_str(&salvage(&outbox, &new)).unwrap();
        assert!(fs::read(&outbox).unwrap() == damaged, "page {page}: the damaged file is another");
        let found = list(&new, &[]);
        for line in &found {
            let before = &known[&line["position"].as_u64()];
            assert_eq!((&line["event"], &line["state"]), (&before["event"], &"pending".into()));
        }
        let missing = salvaged["missing"].as_u64().unwrap() as usize;
        let is_counted = found.len() + missing >= EVENTS || found.is_empty();
        assert!(is_counted, "page {page}: {} of {EVENTS}, and {salvaged}", found.len());
        let bridge = start_on(&new);
        assert_eq!(bridge.call(&body("goes on")).status, 200, "page {page}");
        let last = bridge.page("").header("next-after").unwrap().parse::<usize>().unwrap();
        assert!(last == EVENTS + 1 || found.is_empty(), "page {page}: it goes on at {last}");
        all += usize::from(found.len() == EVENTS);
        most += usize::from(found.len() * 2 > EVENTS);
        let left = fs::read_dir(outbox.parent().unwrap()).unwrap();
        let copies =
            left.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("-copy"));
        assert_eq!(copies.count(), 0);
    }
    let pages = whole.len() / 4096;
    assert!(all >= pages / 4 && most >= pages - 2, "all of it {all} times of {pages}, most {most}");
}

#[test]
fn salvage_overwrites_nothing_and_leaves_a_running_bridge_alone() {
    let bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(&body("one")).status, 200);
    assert!(
        ask(&bridge.outbox(), &["check"]).contains(r#""is_good":true"#),
        "beside a running bridge"
    );
    let new = bridge.home().join("new.db");
    let refused = |outbox: &Path, words: &str| {
        let mut command = program();
        let ended = run(command.args(["outbox", "salvage"]).arg(&new).arg("--path").arg(outbox));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(words), "{words} should be in {}", ended.stderr);
    };
    refused(&bridge.outbox(), "a bridge runs on it");
    assert!(!new.exists());
    let foreign = bridge.home().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    refused(&foreign, "it is not a topic-bridge outbox");
    refused(&bridge.home().join("nothing"), "nothing");
    refused(bridge.home(), "it is not a file");
    assert!(!new.exists());
    fs::write(&new, "mine").unwrap();
    refused(&foreign, "it exists");
    assert_eq!(fs::read_to_string(&new).unwrap(), "mine");
}

#[test]
fn a_file_that_may_not_be_written_is_told() {
    let files = killed();
    let (_folder, outbox) = files.lay_out();
    fs::set_permissions(&outbox, fs::Permissions::from_mode(0o400)).unwrap();
    if fs::OpenOptions::new().write(true).open(&outbox).is_ok() {
        eprintln!("SKIPPED: this user may write whatever its mode is");
        return;
    }
    let ended = run(&mut serve_on(&outbox));
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert!(ended.stderr.contains("cannot write"), "{}", ended.stderr);
}
