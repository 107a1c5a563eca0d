//! The relay over a real outbox and a sink whose verdicts are scripted.

use super::*;
use crate::outbox::fixtures::{self, START, record};
use crate::outbox::{List, Workers};
use crate::sink::scripted::{Journal, Scripted};
use crate::time::Clock;

/// An outbox that holds `events` events, and what it takes to run a relay over it.
struct Bench {
    outbox: Outbox,
    workers: Workers,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    _folder: tempfile::TempDir,
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
        Bench { outbox, workers, metrics, stop, _folder: folder }
    }

    fn relay(&self, sink: Scripted) -> Relay {
        let config = config::Relay {
            batch: 10,
            retry_min: Duration::from_millis(1),
            retry_max: Duration::from_millis(4),
            confirm_timeout: Duration::from_secs(1),
            drain_timeout: Duration::from_millis(50),
        };
        let reader = self.outbox.reader().unwrap();
        let sink = Sink::Scripted(sink);
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
    assert_eq!(bench.metrics.publish_errors.with_label_values(&["other"]).get(), 3);
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
    let dead: Vec<_> =
        dead.iter().map(|dead| (dead.position, dead.reason.as_deref())).collect();
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
