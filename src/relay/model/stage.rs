//! What the model's world is made of: the outbox and its relay, a sink that says what it is told to, and
//! callbacks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use uuid::Uuid;

use super::super::{Metrics, Relay, config};
use super::checks::Call;
use super::oracle::WINDOW;
use super::{Answer, Script, Settings};
use crate::outbox::fixtures::{self, record};
use crate::outbox::{Limits, Outbox, Quarantined, Record, Stored, Workers};
use crate::sink::scripted::Scripted;
use crate::sink::{Kind, Reason, Sink, Verdict};
use crate::time::Clock;

pub(super) const RETRY_MIN: u64 = 1_000;
pub(super) const RETRY_MAX: u64 = 30_000;

/// What the sink is to say, and what it was asked.
pub(super) struct Stage {
    pub(super) script: Script,
    pub(super) said: usize,
    pub(super) calls: Vec<Call>,
}

pub(super) fn open(
    folder: &TempDir,
    settings: &Settings,
    clock: &Clock,
    stage: &Arc<Mutex<Stage>>,
) -> (Outbox, Workers, Box<Relay>) {
    let config = config::Outbox {
        max_bytes: settings.max_bytes,
        dedupe_window: Duration::from_millis(WINDOW),
        history: Duration::from_millis(settings.history),
        history_events: settings.history_events,
        history_gives_way: settings.history_gives_way,
        remember_ids: Duration::from_millis(settings.remember_ids),
        remember_ids_max: settings.remember_ids_max,
        quarantine_events: settings.quarantine_events,
        ..fixtures::settings(folder.path())
    };
    let limits = Limits { max_queued: 1000, slow: Duration::MAX };
    let metrics = Arc::new(Metrics::new("embedded"));
    let (outbox, workers) = Outbox::open(&config, limits, metrics.clone(), clock.clone()).unwrap();
    let config = config::Relay {
        batch: settings.batch,
        retry_min: Duration::from_millis(RETRY_MIN),
        retry_max: Duration::from_millis(RETRY_MAX),
        confirm_timeout: Duration::from_secs(1),
        drain_timeout: Duration::ZERO,
    };
    let (judging, asked) = (stage.clone(), stage.clone());
    let judge = move |events: &[_]| judging.lock().unwrap().judge(events);
    let is_ready = move || match asked.lock().unwrap().script.is_ready {
        true => Ok(()),
        false => Err(Reason::new(Kind::Unreachable, "scripted")),
    };
    let sink = Sink::Scripted(Scripted::judging(judge, is_ready));
    let reader = outbox.reader().unwrap();
    let relay = Box::new(Relay::new(config, outbox.clone(), reader, sink, metrics));
    (outbox, workers, relay)
}

impl Stage {
    fn judge(&mut self, events: &[Stored]) -> Vec<Verdict> {
        let reason = |kind| Reason::new(kind, "scripted");
        let Script { answers, missing, .. } = &self.script;
        let judged = events.len().saturating_sub(*missing);
        let verdicts: Vec<_> = (self.said..self.said + judged)
            .map(|at| match answers[at % answers.len()] {
                Answer::Delivered => Verdict::Delivered,
                Answer::Later(kind) => Verdict::Later(reason(kind)),
                Answer::Refused => Verdict::Refused(reason(Kind::Invalid)),
                Answer::Away => Verdict::Away(reason(Kind::Unreachable)),
            })
            .collect();
        self.said += events.len();
        self.calls.push(Call { events: events.to_vec(), verdicts: verdicts.clone() });
        verdicts
    }
}

pub(super) fn all_delivered() -> Script {
    Script { answers: vec![Answer::Delivered], missing: 0, is_ready: true }
}

/// Of each two topics the ids have the same hash in the outbox's table.
pub(super) fn event(topic: u8, size: usize, wall: u64) -> Record {
    let mut record = record(&format!("t{topic}"), wall);
    record.event.id = Uuid::from_u128(u128::from(topic / 2 + 1) << 96 | u128::from(topic));
    record.event.data = format!(r#"{{"topic_id":"t{topic}","filler":"{}"}}"#, "x".repeat(size));
    record.traceparent = topic.is_multiple_of(3).then(|| "00-1-2-01".into());
    record
}

pub(super) fn malformed(size: usize, received_at: u64) -> Quarantined {
    Quarantined {
        sdk_app_id: 1,
        client_ip: None,
        client_platform: None,
        received_at,
        reason: "scripted".into(),
        body: vec![0xff; size],
    }
}

/// A folder where files cost no disk, if there is such a place. Its name is not left to `tempfile`: the
/// generator that it would ask is the one that the test makes say the same each time.
pub(super) fn folder() -> TempDir {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let place = PathBuf::from("/dev/shm");
    let place = if place.is_dir() { place } else { std::env::temp_dir() };
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("model-{}-{number}-", std::process::id());
    tempfile::Builder::new().prefix(&name).tempdir_in(place).unwrap()
}
