//! What a start logs about the write-ahead log that it finds: one line if a part of it was damaged and
//! cut off, and nothing after an ordinary end, even a kill.

use std::fs;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::bridge::{Bridge, body, eventually};
use crate::crash::load_until_killed;
use crate::outbox_file::{Log, beside};

const WORDS: &str = "was cut off";

fn kill(bridge: &mut Bridge) {
    bridge.signal("KILL");
    bridge.ended();
}

fn check_silent(bridge: &Bridge, after: &str) {
    assert_eq!(bridge.logged(WORDS), Vec::<Value>::new(), "{after}");
}

/// Overwrites some bytes of a frame's page.
fn damage(bridge: &Bridge, log: &Log, frame: usize) {
    let mut bytes = log.bytes.clone();
    let at = log.frame(frame) + 24 + 100;
    bytes[at..at + 16].fill(0xa5);
    fs::write(beside(&bridge.outbox(), "-wal"), bytes).unwrap();
}

fn check_told(bridge: &Bridge, cut_off: std::ops::RangeInclusive<usize>) {
    let lines = bridge.logged(WORDS);
    assert_eq!(lines.len(), 1, "{}", bridge.log());
    let (level, fields) = (&lines[0]["level"], &lines[0]["fields"]);
    assert!(level == "WARN" || level == "ERROR", "{}", lines[0]);
    let bytes = fields["bytes"].as_u64().expect("how much") as usize;
    assert!(cut_off.contains(&bytes), "{bytes} bytes, not {cut_off:?}");
    let last = bridge.page("").header("next-after").unwrap().parse::<u64>().unwrap();
    assert_eq!(fields["position"].as_u64(), Some(last), "the last position that is left");
    assert!(!fields["written_at"].is_null(), "when that was written");
    assert_eq!(bridge.call(&body("goes on")).status, 200);
}

#[test]
fn a_log_with_a_damaged_frame_is_cut_off_there_and_that_is_told() {
    let mut bridge = Bridge::start(&[]);
    for number in 0..60 {
        assert_eq!(bridge.call(&body(&format!("topic {number}"))).status, 200);
    }
    kill(&mut bridge);
    let log = Log::read(&bridge.outbox());
    assert!(log.frames > 60, "each event is in the log: {}", log.frames);
    let middle = log.frames / 2;
    damage(&bridge, &log, middle);
    let bridge = bridge.restart(&[]);
    let found = bridge.topic_ids().len();
    assert!((5..60).contains(&found), "{found} events are left");
    // From the frame, or the transaction that it belongs to, to the end of the log.
    let rest = log.bytes.len() - log.frame(middle);
    check_told(&bridge, rest.min(log.frame(log.frames) - log.frame(middle))..=log.bytes.len());

    let bridge = bridge.restart(&[]);
    check_silent(&bridge, "it is told once");
}

/// The first frame: the whole log is gone, and its length must not be taken for an empty one's.
#[test]
fn a_log_that_is_damaged_from_its_beginning_is_told_too() {
    let mut bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(&body("before")).status, 200);
    bridge.stop();
    let mut bridge = bridge.restart(&[]);
    for number in 0..20 {
        assert_eq!(bridge.call(&body(&format!("topic {number}"))).status, 200);
    }
    kill(&mut bridge);
    let log = Log::read(&bridge.outbox());
    damage(&bridge, &log, 0);
    let bridge = bridge.restart(&[]);
    assert_eq!(bridge.topic_ids(), ["before"]);
    check_told(&bridge, log.frame(log.frames) - log.frame(0)..=log.bytes.len());
}

#[test]
fn an_ordinary_kill_leaves_nothing_to_tell() {
    let mut bridge = Bridge::start(&[]);
    for round in 0..5 {
        load_until_killed(&bridge, 20 + round * 37);
        bridge = bridge.restart(&[]);
        check_silent(&bridge, "killed under load");
    }
    bridge.stop();
    let bridge = bridge.restart(&[]);
    check_silent(&bridge, "stopped in order");
}

/// `sqlite3 -readonly` on the file of a stopped bridge leaves an empty log and an empty index, because it may not
/// remove them. Of those 32 bytes were once said to be cut off.
#[test]
fn what_a_reader_leaves_beside_a_stopped_outbox_is_not_a_damaged_log() {
    let mut bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(&body("before")).status, 200);
    bridge.stop();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let reader = Connection::open_with_flags(bridge.outbox(), flags).unwrap();
    let count = |row: &rusqlite::Row| row.get::<_, u64>(0);
    assert_eq!(reader.query_row("SELECT count(*) FROM events", [], count), Ok(1));
    drop(reader);
    assert!(beside(&bridge.outbox(), "-shm").exists(), "or there is nothing to try");
    let bridge = bridge.restart(&[]);
    check_silent(&bridge, "nobody wrote");
    assert_eq!(bridge.topic_ids(), ["before"]);
}

/// Frames of an earlier round, under another salt, lie behind the end of this one.
#[test]
fn a_log_that_began_again_from_its_beginning_is_not_a_damaged_one() {
    let mut bridge = Bridge::start(&[]);
    let name = "x".repeat(8000);
    assert_eq!(bridge.call(&body("first")).status, 200);
    let first_round = Log::read(&bridge.outbox()).round();
    let mut number = 0;
    eventually("the log begins again", || {
        number += 1;
        let body = body(&format!("topic {number}")).replace("MyFirstTopic", &name);
        assert_eq!(bridge.call(&body).status, 200);
        let log = (number % 50 == 0).then(|| Log::read(&bridge.outbox()))?;
        (log.round() != first_round && log.has_older_frames()).then_some(())
    });
    kill(&mut bridge);
    let log = Log::read(&bridge.outbox());
    assert!(log.has_older_frames(), "{} frames in {} bytes", log.frames, log.bytes.len());
    let bridge = bridge.restart(&[]);
    check_silent(&bridge, "older frames are no damage");
    assert_eq!(bridge.events().len(), number + 1);
}
