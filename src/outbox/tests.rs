//! The outbox's rules, without a network around it. Kills, full disks and failing syncs are tried on
//! the whole program, in `tests/it`.

use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::fixtures::{START, close, kept, record};
use super::*;
use crate::time::Timestamp;

fn settings(folder: &TempDir) -> Config {
    Config { sync: Sync::Full, ..fixtures::settings(folder.path()) }
}

fn open(settings: &Config) -> (Outbox, Workers) {
    fixtures::open(settings, &Clock::scripted(START))
}

fn at(milliseconds: u64) -> Timestamp {
    Timestamp::from_millis(milliseconds)
}

async fn append(outbox: &Outbox, topic_id: &str, accepted_at: u64) -> Outcome {
    outbox.append(record(topic_id, at(accepted_at))).unwrap().await.unwrap()
}

/// Appends so many at once. How many of them were accepted.
async fn append_many(outbox: &Outbox, prefix: &str, count: u64) -> u64 {
    let record = |number| {
        let mut record = record(&format!("{prefix}-{number}"), at(1));
        record.event.data = format!(r#"{{"sdk_app_id":1,"filler":"{}"}}"#, "x".repeat(300));
        record
    };
    let answers: Vec<_> = (0..count).map(|number| outbox.append(record(number)).unwrap()).collect();
    let mut accepted = 0;
    for answer in answers {
        accepted += u64::from(answer.await.unwrap() == Ok(Receipt::Accepted));
    }
    accepted
}

async fn quarantine(outbox: &Outbox) -> Outcome {
    let callback = Quarantined {
        sdk_app_id: 1,
        client_ip: None,
        client_platform: None,
        received_at: at(0),
        reason: "r".into(),
        body: b"\xff".to_vec(),
    };
    outbox.quarantine(callback).unwrap().await.unwrap()
}

/// Trimming goes on between the batches: waits for it.
async fn oldest_is(outbox: &Outbox, position: u64) {
    let mut patience = 0;
    while kept(outbox)[0].0 != position {
        patience += 1;
        assert!(patience < 1000, "the oldest is {}, not {position}", kept(outbox)[0].0);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn settled(through: u64) -> Settlement {
    Settlement { through, ..Settlement::default() }
}

#[tokio::test]
async fn events_come_back_in_the_order_of_acceptance() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, workers) = open(&settings(&folder));
    for number in 0..20 {
        assert_eq!(append(&outbox, &format!("t{number}"), number).await, Ok(Receipt::Accepted));
    }
    for (index, (position, _, topic_id)) in kept(&outbox).into_iter().enumerate() {
        assert_eq!((position, topic_id), (index as u64 + 1, format!("t{index}")));
    }
    assert_eq!((*outbox.last().borrow(), outbox.pending()), (20, 20));
    close(workers).await;
}

#[tokio::test]
async fn a_repeat_is_a_duplicate_inside_the_window_and_another_event_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let clock = Clock::scripted(START);
    let after = |milliseconds: u64| {
        let now = START + Duration::from_millis(milliseconds);
        clock.set(now, now);
        now.as_millis()
    };
    let (outbox, workers) = fixtures::open(&settings, &clock);
    let window = 600_000;
    assert_eq!(append(&outbox, "t", after(0)).await, Ok(Receipt::Accepted));
    assert_eq!(append(&outbox, "t", after(window - 1)).await, Ok(Receipt::Duplicate));
    assert_eq!(append(&outbox, "t", after(window)).await, Ok(Receipt::Accepted));
    close(workers).await;

    let (outbox, workers) = fixtures::open(&settings, &clock);
    let repeat = append(&outbox, "t", after(window + 1000)).await;
    assert_eq!(repeat, Ok(Receipt::Duplicate), "after a start");
    let kept = kept(&outbox);
    let first = record("t", at(0)).event.id;
    let ids: Vec<_> = kept.iter().map(|(_, id, _)| *id).collect();
    assert_eq!(
        ids,
        [first, crate::event::recreated_id(first, START + Duration::from_millis(window))]
    );
    close(workers).await;
}

#[tokio::test]
async fn two_of_the_same_in_one_batch_are_one_event() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, workers) = open(&settings(&folder));
    let answers: Vec<_> = (0..50).map(|_| outbox.append(record("t", at(7))).unwrap()).collect();
    let mut receipts = Vec::new();
    for answer in answers {
        receipts.push(answer.await.unwrap().unwrap());
    }
    let accepted = receipts.iter().filter(|receipt| **receipt == Receipt::Accepted).count();
    assert_eq!((accepted, kept(&outbox).len()), (1, 1));
    close(workers).await;
}

#[tokio::test]
async fn a_waiter_that_goes_away_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, workers) = open(&settings(&folder));
    drop(outbox.append(record("gone", at(1))).unwrap());
    assert_eq!(append(&outbox, "stayed", 1).await, Ok(Receipt::Accepted));
    let topics: Vec<_> = kept(&outbox).into_iter().map(|(_, _, topic)| topic).collect();
    assert_eq!(topics, ["gone", "stayed"]);
    close(workers).await;
}

#[tokio::test]
async fn a_queue_that_is_full_refuses_and_a_locked_file_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let limits = Limits { max_queued: 3, ..fixtures::LIMITS };
    let metrics = Arc::new(Metrics::new("embedded"));
    let (outbox, workers) =
        Outbox::open(&settings, limits, metrics, Clock::scripted(START)).unwrap();
    let other = Connection::open(&settings.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waiting: Vec<_> =
        (0..3).map(|number| outbox.append(record(&format!("t{number}"), at(1))).unwrap()).collect();
    assert_eq!(outbox.append(record("one more", at(1))).unwrap_err(), Refusal::QueueFull);
    for answer in waiting {
        assert_eq!(answer.await.unwrap(), Err(Refusal::Locked));
    }
    assert_eq!(*outbox.health().borrow(), Health::Refusing(Refusal::Locked));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(append(&outbox, "t0", 1).await, Ok(Receipt::Accepted), "a refused one was not seen");
    assert_eq!(*outbox.health().borrow(), Health::Taking);
    close(workers).await;
}

#[tokio::test]
async fn quarantine_keeps_bytes_and_has_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, workers) = open(&settings(&folder));
    for _ in 0..3 {
        assert_eq!(quarantine(&outbox).await, Ok(Receipt::Quarantined));
    }
    assert_eq!(quarantine(&outbox).await, Err(Refusal::QuarantineFull));
    assert_eq!(
        append(&outbox, "good", 1).await,
        Ok(Receipt::Accepted),
        "good ones are still taken"
    );
    assert_eq!(*outbox.health().borrow(), Health::Taking);
    let quarantined_row =
        outbox.reader().unwrap().run_here(|reading| reading.quarantined(1)).unwrap().unwrap();
    assert_eq!(
        (quarantined_row.content, quarantined_row.reason.as_deref()),
        (b"\xff".to_vec(), Some("r"))
    );
    close(workers).await;
}

#[tokio::test]
async fn history_is_trimmed_but_never_what_is_still_to_be_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Config { history_events: 10, ..settings(&folder) };
    let (outbox, workers) = open(&settings);
    for number in 0..40 {
        append(&outbox, &format!("t{number}"), 1).await.unwrap();
    }
    oldest_is(&outbox, 1).await; // nothing is delivered yet

    let again = Again { position: 5, attempts: 1, not_before: at(0), reason: "r".into() };
    outbox.settle(Settlement { again: vec![again], ..settled(35) }).await.unwrap();
    oldest_is(&outbox, 31).await; // the last ten: what is to be tried again holds nothing up…
    assert_eq!(outbox.pending(), 5 + 1);
    let reader = outbox.reader().unwrap();
    let due = reader.run_here(|reading| reading.due(START, START, 10)).unwrap();
    let due: Vec<_> = due.into_iter().map(|due| due.slot.unwrap().event.topic_id).collect();
    assert_eq!(due, ["t4"], "…for it has a copy of its own");

    outbox.settle(Settlement { delivered_at_last: vec![5], ..settled(35) }).await.unwrap();
    assert_eq!(outbox.pending(), 5);
    close(workers).await;

    let (outbox, workers) = open(&settings);
    assert_eq!(outbox.settled_through(), 35);
    append(&outbox, "after a start", 1).await.unwrap();
    assert_eq!(*outbox.last().borrow(), 41, "positions go on");
    close(workers).await;
}

#[tokio::test]
async fn what_the_sink_refuses_is_kept_as_a_dead_letter() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Config { history_events: 1, ..settings(&folder) };
    let (outbox, workers) = open(&settings);
    for number in 1..=5 {
        append(&outbox, &format!("t{number}"), 1).await.unwrap();
    }
    let refused = Refused { position: 2, at: at(9), reason: "too large".into() };
    outbox.settle(Settlement { refused: vec![refused], ..settled(5) }).await.unwrap();
    oldest_is(&outbox, 5).await;
    let reader = outbox.reader().unwrap();
    let dead = reader.run_here(|reading| reading.list(List::DeadLetters, 0, 10)).unwrap();
    assert_eq!((dead.len(), dead[0].position, outbox.dead_letters()), (1, 2, 1));
    assert_eq!(dead[0].reason.as_deref(), Some("too large"));
    let event = std::str::from_utf8(&dead[0].content).unwrap();
    assert_eq!(Envelope::open(event).unwrap().topic_id, "t2");
    assert_eq!(reader.run_here(|reading| reading.at(2)).unwrap().unwrap().state, "dead");
    close(workers).await;
}

#[tokio::test]
async fn an_outbox_has_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let (_outbox, workers) = open(&settings);
    let limits = Limits { max_queued: 1, ..fixtures::LIMITS };
    let metrics = Arc::new(Metrics::new("embedded"));
    let second = Outbox::open(&settings, limits, metrics, Clock::scripted(START));
    let error = second.err().expect("it is in use").to_string();
    let pid = std::process::id();
    assert!(
        error.contains(&format!("another topic-bridge (process {pid}) uses the outbox")),
        "{error}"
    );
    close(workers).await;
    close(open(&settings).1).await;
}

#[tokio::test]
async fn delivered_history_gives_way_before_a_callback_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Config { max_bytes: 1 << 20, ..settings(&folder) };
    let limits = Limits { history_gives_way: true, ..fixtures::LIMITS };
    let (metrics, clock) = (Arc::new(Metrics::new("kafka")), Clock::scripted(START));
    let (outbox, workers) = Outbox::open(&settings, limits, metrics, clock).unwrap();
    // Some three times as much as there is room for, a part of it always still to be delivered.
    for round in 0..60_u64 {
        let taken = append_many(&outbox, &format!("t{round}"), 100).await;
        assert_eq!(taken, 100, "in round {round}");
        outbox.settle(settled(round * 100)).await.unwrap();
    }
    let oldest = kept(&outbox)[0].0;
    assert!((1000..=5901).contains(&oldest), "the oldest kept is {oldest}");
    assert_eq!((outbox.pending(), *outbox.last().borrow()), (100, 6000));

    // What is not delivered does not give way.
    let mut taken = 0;
    for round in 0..60 {
        taken += append_many(&outbox, &format!("u{round}"), 100).await;
    }
    assert!(taken < 6000);
    assert_eq!(kept(&outbox)[0].0, 5901);
    assert_eq!(outbox.pending(), 100 + taken);
    close(workers).await;
}
