//! A program that reads the outbox in a transaction that it does not end makes the log grow. No callback
//! is refused before the log reaches the size limit of the outbox; then the bridge says what to do.

use rusqlite::{Connection, OpenFlags};

use crate::bridge::{Bridge, body, eventually};
use crate::disk::{check_refusal, fill, resumes};
use crate::outbox_file::beside;

const REASON: &str = "a program reads the outbox in a transaction that it does not end";
const MAX_BYTES: u64 = 4 << 20;

/// As `sqlite3 -readonly` with a BEGIN that nobody remembers.
fn forgotten_reader(bridge: &Bridge) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let reader = Connection::open_with_flags(bridge.outbox(), flags).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM events").unwrap();
    reader
}

fn log_length(bridge: &Bridge) -> u64 {
    std::fs::metadata(beside(&bridge.outbox(), "-wal")).unwrap().len()
}

#[test]
fn a_reader_that_forgot_its_transaction_is_named_when_the_log_is_as_long_as_the_outbox_may_be() {
    let bridge = Bridge::start(&[("outbox.max_bytes", "4 MiB")]);
    assert_eq!(bridge.call(&body("first")).status, 200);
    let reader = forgotten_reader(&bridge);
    let (answered, refusal) = fill(&bridge, "t", 100);
    let length = log_length(&bridge);
    assert!(length > MAX_BYTES / 10 * 9, "refused at {length} bytes of the log");
    assert!(length < MAX_BYTES / 10 * 13, "refused only at {length} bytes of the log");
    check_refusal(&bridge, &refusal, "a reader holds the outbox's log", REASON);
    eventually("the log names the remedy and the reader", || {
        let log = bridge.log();
        let pid = std::process::id().to_string();
        let names_it = |line: &str| line.contains("end it") && line.contains(&pid);
        log.lines().any(names_it).then_some(())
    });
    assert_eq!(bridge.call(&body("first")).status, 200, "what is durable needs no room");

    drop(reader);
    resumes(&bridge);
    assert_eq!(bridge.topic_ids().len(), 1 + answered.len() + 1);
    eventually("the log is short again", || {
        let length = log_length(&bridge);
        let more = bridge.call(&body(&format!("more {length}")));
        (more.status == 200 && length < MAX_BYTES).then_some(())
    });
}

/// What was written cannot be told from what is still to be written while it is held, so the program
/// that starts meanwhile must neither fail nor wait.
#[test]
fn a_bridge_starts_beside_a_reader_that_forgot_its_transaction() {
    let bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(&body("first")).status, 200);
    let reader = forgotten_reader(&bridge);
    let bridge = bridge.restart(&[]);
    assert_eq!(bridge.call(&body("second")).status, 200);
    assert_eq!(bridge.topic_ids(), ["first", "second"]);
    drop(reader);
}
