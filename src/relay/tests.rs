//! The relay over a real outbox and a sink whose verdicts are scripted.

use super::*;
use crate::outbox::fixtures::{self, START, record};
use crate::outbox::{List, Workers};
use crate::sink::scripted::{Journal, Scripted};
use crate::time::Clock;
use crate::verdict::{Kind, Verdict};

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// An outbox that holds `events` events, and what it takes to run a relay over it.
struct Bench {
    outbox: Outbox,
    workers: Workers,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    folder: tempfile::TempDir,
}

impl Bench {
    async fn new(events: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = fixtures::settings(folder.path());
        let (outbox, workers) = fixtures::open(&config, &Clock::system());
        let metrics = Arc::new(Metrics::new("embedded"));
        for number in 0..events {
            let record = record(&format!("t{number}"), START);
            outbox.append(record).unwrap().await.unwrap().unwrap();
        }
        let stop = watch::Sender::new(false);
        Bench { outbox, workers, metrics, stop, folder }
    }

    fn relay(&self, sink: Scripted) -> Relay {
        let config = Config {
            batch: 10,
            retry_min: Duration::from_millis(1),
            retry_max: Duration::from_millis(4),
            confirm_timeout: Duration::from_secs(1),
            drain_timeout: Duration::from_millis(50),
        };
        let reader = self.outbox.reader().unwrap();
        let sink = Sink::scripted(sink);
        Relay::new(config, self.outbox.clone(), reader, sink, self.metrics.clone())
    }

    /// Runs the relay until nothing is pending, then stops it.
    async fn drain(&self, sink: Scripted) {
        let relay = self.relay(sink);
        let state = relay.state();
        let running = tokio::spawn(relay.run(self.stop.subscribe()));
        while self.outbox.pending() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!running.is_finished());
        }
        assert_eq!(*state.borrow(), SinkState::Up);
        self.stop.send_replace(true);
        running.await.unwrap().unwrap();
    }

    /// Another program's connection to the file.
    fn other(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.folder.path().join("outbox.db")).unwrap()
    }

    fn dead(&self) -> Vec<(u64, String)> {
        let reader = self.outbox.reader().unwrap();
        let dead = reader.run_here(|reading| reading.list(List::DeadLetters, 0, 100)).unwrap();
        dead.into_iter().map(|dead| (dead.position, dead.reason.unwrap())).collect()
    }

    async fn end(self) {
        tokio::task::spawn_blocking(|| self.workers.close()).await.unwrap();
    }
}

fn reason() -> Reason {
    Reason::new(Kind::Other, "because")
}

fn delivered(journal: &Journal) -> Vec<u64> {
    let journal = journal.lock().unwrap();
    let all = journal.iter().flatten();
    all.filter(|(_, verdict)| *verdict == Verdict::Delivered).map(|(at, _)| *at).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_delivered_in_order_in_batches() {
    let bench = Bench::new(35).await;
    let (sink, journal) = Scripted::new(|_| Verdict::Delivered);
    bench.drain(sink).await;
    assert_eq!(delivered(&journal), (1..=35).collect::<Vec<_>>());
    let sizes: Vec<_> = journal.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [10, 10, 10, 5]);
    assert_eq!(bench.metrics.published.get(), 35);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_that_fails_is_tried_again_by_itself_while_the_line_moves_on() {
    let bench = Bench::new(20).await;
    let mut tries = 0;
    let (sink, journal) = Scripted::new(move |position| {
        if position == 3 {
            tries += 1;
        }
        if position == 3 && tries < 4 { Verdict::Later(reason()) } else { Verdict::Delivered }
    });
    bench.drain(sink).await;
    let delivered = delivered(&journal);
    assert_eq!(delivered.iter().filter(|position| **position == 3).count(), 1);
    let mut others = delivered;
    others.retain(|position| *position != 3);
    assert_eq!(others, (1..=20).filter(|position| *position != 3).collect::<Vec<_>>());
    assert_eq!(bench.metrics.publish_errors.of("other").get(), 3);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_becomes_a_dead_letter_and_the_line_moves_on() {
    let bench = Bench::new(12).await;
    let (sink, journal) = Scripted::new(|position| match position {
        4 | 11 => Verdict::Refused(reason()),
        _ => Verdict::Delivered,
    });
    bench.drain(sink).await;
    assert_eq!(delivered(&journal).len(), 10);
    let reader = bench.outbox.reader().unwrap();
    let dead = reader.run_here(|reading| reading.list(List::DeadLetters, 0, 10)).unwrap();
    let dead: Vec<_> = dead.iter().map(|dead| (dead.position, dead.reason.as_deref())).collect();
    assert_eq!(dead, [(4, Some("because")), (11, Some("because"))]);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_sink_is_away_one_event_probes_and_order_is_kept() {
    let bench = Bench::new(25).await;
    let mut calls = 0;
    // The first batch is cut in the middle, though its last event got through; then two probes fail.
    let (sink, journal) = Scripted::new(move |_| {
        calls += 1;
        let is_away = matches!(calls, 5..=9 | 11 | 12);
        if is_away { Verdict::Away(reason()) } else { Verdict::Delivered }
    });
    bench.drain(sink).await;
    let sizes: Vec<_> = journal.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes[..4], [10, 1, 1, 1], "a batch, two probes that fail, one that does not");
    let delivered = delivered(&journal);
    let expected: Vec<_> = [1, 2, 3, 4, 10].into_iter().chain(5..=9).chain(11..=25).collect();
    assert_eq!(delivered, expected, "what was ahead is not sent twice");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_in_time_and_the_next_start_goes_on() {
    let bench = Bench::new(30).await;
    let (sink, _) = Scripted::new(|position| match position {
        1..=10 => Verdict::Delivered,
        _ => Verdict::Away(reason()),
    });
    let relay = bench.relay(sink);
    let mut state = relay.state();
    let running = tokio::spawn(relay.run(bench.stop.subscribe()));
    state.wait_for(|state| matches!(state, SinkState::Away(..))).await.unwrap();
    bench.stop.send_replace(true);
    running.await.unwrap().unwrap();
    assert_eq!(bench.outbox.pending(), 20);

    bench.stop.send_replace(false);
    let (sink, journal) = Scripted::new(|_| Verdict::Delivered);
    bench.drain(sink).await;
    assert_eq!(delivered(&journal), (11..=30).collect::<Vec<_>>());
    bench.end().await;
}

/// Waits for what a task of its own brings about.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn unroutable() -> Verdict {
    Verdict::Later(Reason::new(Kind::Unroutable, "nothing is bound"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_alike_is_a_sink_that_is_away_and_keeps_its_order() {
    let bench = Bench::new(35).await;
    let mut calls = 0;
    let (sink, journal) = Scripted::new(move |_| {
        calls += 1;
        if calls <= 27 { unroutable() } else { Verdict::Delivered }
    });
    let mut relay = bench.relay(sink);
    relay.config.retry_max = Duration::from_secs(10); // looks no further down the line before
    let mut state = relay.state();
    let running = tokio::spawn(relay.run(bench.stop.subscribe()));
    state.wait_for(|state| matches!(state, SinkState::Away(_, Kind::Unroutable))).await.unwrap();
    assert_eq!(bench.outbox.deferred(), 0);
    eventually("all is delivered", || bench.outbox.pending() == 0).await;
    assert_eq!(bench.outbox.deferred(), 0);
    bench.stop.send_replace(true);
    running.await.unwrap().unwrap();
    // A batch in which the end got through makes the rest of it wait for its turn, nothing else.
    let (first, rest) = (&delivered(&journal)[..3], &delivered(&journal)[3..]);
    assert_eq!(first, [8, 9, 10]);
    let expected: Vec<_> = (1..=7).chain(11..=35).collect();
    assert_eq!(rest, expected, "what was deferred goes first");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_that_get_through_show_that_it_is_the_events_and_not_the_sink() {
    let bench = Bench::new(60).await;
    let is_bound = Arc::new(AtomicBool::new(false));
    let bound = is_bound.clone();
    let (sink, journal) = Scripted::new(move |position| match position {
        1..=25 if !bound.load(Ordering::Relaxed) => unroutable(),
        _ => Verdict::Delivered,
    });
    let relay = bench.relay(sink);
    let state = relay.state();
    let running = tokio::spawn(relay.run(bench.stop.subscribe()));
    eventually("the others are delivered", || bench.outbox.pending() == 25).await;
    assert_eq!(bench.outbox.deferred(), 25);
    is_bound.store(true, Ordering::Relaxed);
    eventually("all is delivered", || bench.outbox.pending() == 0).await;
    assert_eq!(*state.borrow(), SinkState::Up);
    bench.stop.send_replace(true);
    running.await.unwrap().unwrap();
    let mut all = delivered(&journal);
    all.sort_unstable();
    assert_eq!(all, (1..=60).collect::<Vec<_>>(), "each once");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_something_gets_through_what_was_deferred_goes_first_and_in_order() {
    let bench = Bench::new(30).await;
    let is_bound = Arc::new(AtomicBool::new(false));
    let bound = is_bound.clone();
    let (sink, journal) = Scripted::new(move |position| match position % 3 {
        0 if !bound.load(Ordering::Relaxed) => unroutable(),
        _ => Verdict::Delivered,
    });
    let mut relay = bench.relay(sink);
    relay.config.retry_min = Duration::from_secs(3600); // their own time is far away
    relay.config.retry_max = Duration::from_secs(3600);
    while *bench.outbox.last().borrow() > relay.cursor {
        relay.round().await.unwrap();
    }
    assert_eq!(bench.outbox.deferred(), 10);
    journal.lock().unwrap().clear();
    is_bound.store(true, Ordering::Relaxed);
    let record = record("a new one", START);
    bench.outbox.append(record).unwrap().await.unwrap().unwrap();
    relay.probed_at = relay.probed_at - ASK_EVERY;
    while bench.outbox.pending() > 0 {
        relay.round().await.unwrap();
        relay.flush().await.unwrap();
    }
    let expected: Vec<_> = (1..=10).map(|number| number * 3).chain([31]).collect();
    assert_eq!(delivered(&journal), expected);
    drop(relay);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deferred_and_the_line_take_turns() {
    let bench = Bench::new(100).await;
    let (sink, journal) = Scripted::new(|position| match position {
        2..=10 => unroutable(),
        _ => Verdict::Delivered,
    });
    let mut relay = bench.relay(sink);
    relay.config.retry_min = Duration::from_nanos(1); // always due
    relay.config.retry_max = Duration::from_nanos(1);
    while *bench.outbox.last().borrow() > relay.cursor {
        relay.round().await.unwrap();
    }
    let rounds = journal.lock().unwrap().len();
    assert!(rounds <= 20, "{rounds} rounds for ten batches of the line");
    assert_eq!(bench.outbox.deferred(), 9);
    drop(relay);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_judges_too_few_loses_nothing() {
    let bench = Bench::new(12).await;
    let (mut sink, _journal) = Scripted::new(|_| Verdict::Delivered);
    sink.forgets = 2;
    let mut relay = bench.relay(sink);
    assert_eq!(relay.round().await.unwrap(), Round::Away);
    assert_eq!((relay.cursor, bench.outbox.pending()), (0, 12));
    while *bench.outbox.last().borrow() > relay.cursor {
        relay.round().await.unwrap();
    }
    relay.flush().await.unwrap();
    assert_eq!(bench.outbox.pending(), 0);
    drop(relay);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_more_than_the_watermark_is_written_before_the_next_round() {
    let bench = Bench::new(6).await;
    let (sink, journal) = Scripted::new(|position| match position {
        2 | 4 => Verdict::Refused(reason()),
        6 => unroutable(),
        _ => Verdict::Delivered,
    });
    let other = bench.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let relay = bench.relay(sink);
    let running = tokio::spawn(relay.run(bench.stop.subscribe()));
    let mut health = bench.outbox.health();
    health
        .wait_for(|health| {
            *health == crate::outbox::Health::Refusing(crate::outbox::Refusal::Locked)
        })
        .await
        .unwrap();
    assert_eq!(journal.lock().unwrap().len(), 1, "nothing is sent while it waits to be written");
    other.execute_batch("ROLLBACK").unwrap();
    eventually("it is written", || bench.outbox.dead_letters() == 2).await;
    assert_eq!(delivered(&journal), [1, 3, 5]);
    assert_eq!(bench.dead(), [(2, "because".into()), (4, "because".into())]);
    bench.stop.send_replace(true);
    running.await.unwrap().unwrap();
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_disk_has_altered_becomes_a_dead_letter_and_the_line_goes_on() {
    let bench = Bench::new(12).await;
    let other = bench.other();
    for (position, alter) in [
        (3, "data = CAST(replace(data, 't2', 'x2') AS TEXT)"),
        (5, "topic_id = CAST(x'74ff' AS TEXT)"),
        (7, "accepted_at = 'yesterday'"),
        (9, "id = x'00'"),
    ] {
        let sql = format!("UPDATE events SET {alter} WHERE position = {position}");
        assert_eq!(other.execute(&sql, []).unwrap(), 1);
    }
    let (sink, journal) = Scripted::new(|_| Verdict::Delivered);
    bench.drain(sink).await;
    assert_eq!(delivered(&journal), [1, 2, 4, 6, 8, 10, 11, 12]);
    let dead = bench.dead();
    assert_eq!(dead.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [3, 5, 7, 9]);
    assert!(dead.iter().all(|(_, reason)| reason.contains("damaged")), "{dead:?}");
    drop(other);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pending_is_counted_once() {
    let bench = Bench::new(10).await;
    let mut calls = 0;
    let (sink, _journal) = Scripted::new(move |position| {
        calls += 1;
        match position {
            4 if calls <= 10 => Verdict::Away(reason()),
            6 => unroutable(),
            8 => Verdict::Refused(reason()),
            _ => Verdict::Delivered,
        }
    });
    let mut relay = bench.relay(sink);
    assert_eq!(relay.round().await.unwrap(), Round::Away);
    relay.flush().await.unwrap();
    assert_eq!((bench.outbox.pending(), bench.outbox.deferred()), (7, 0));
    while *bench.outbox.last().borrow() > relay.cursor {
        relay.round().await.unwrap();
    }
    relay.flush().await.unwrap();
    assert_eq!((bench.outbox.pending(), bench.outbox.deferred()), (1, 1));
    assert_eq!(bench.outbox.dead_letters(), 1);
    drop(relay);
    bench.end().await;
}
