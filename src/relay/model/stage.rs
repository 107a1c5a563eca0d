//! What the model's world is made of: the outbox and its relay, a sink that says what it is told to, and
//! callbacks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use uuid::Uuid;

use super::super::{Config, Metrics, Relay};
use super::checks::Call;
use super::oracle::WINDOW;
use super::{Answer, Script, Settings};
use crate::outbox::fixtures::{self, record};
use crate::outbox::{self, Limits, Outbox, Quarantined, Record, Stored, Workers};
use crate::sink::Sink;
use crate::sink::scripted::Scripted;
use crate::time::{Clock, Timestamp};
use crate::verdict::{Kind, Reason, Verdict};

pub(super) const RETRY_MIN: Duration = Duration::from_secs(1);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(30);

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
    let config = outbox::Config {
        max_bytes: settings.max_bytes,
        dedupe_window: WINDOW,
        history: settings.history,
        history_events: settings.history_events,
        remember_ids: settings.remember_ids,
        remember_ids_max: settings.remember_ids_max,
        quarantine_events: settings.quarantine_events,
        ..fixtures::settings(folder.path())
    };
    let history_gives_way = settings.history_gives_way;
    let limits = Limits { max_queued: 1000, slow: Duration::MAX, history_gives_way };
    let metrics = Arc::new(Metrics::new("embedded"));
    let (outbox, workers) = Outbox::open(&config, limits, metrics.clone(), clock.clone()).unwrap();
    let config = Config {
        batch: settings.batch,
        retry_min: RETRY_MIN,
        retry_max: RETRY_MAX,
        confirm_timeout: Duration::from_secs(1),
        drain_timeout: Duration::ZERO,
    };
    let (judging, asked) = (stage.clone(), stage.clone());
    let judge = move |events: &[_]| judging.lock().unwrap().judge(events);
    let is_ready = move || match asked.lock().unwrap().script.is_ready {
        true => Ok(()),
        false => Err(Reason::new(Kind::Unreachable, "scripted")),
    };
    let sink = Sink::scripted(Scripted::judging(judge, is_ready));
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
                Answer::Alone if events.len() > 1 => Verdict::Alone(reason(Kind::TooLarge)),
                Answer::Alone => Verdict::Refused(reason(Kind::TooLarge)),
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
pub(super) fn event(topic: u8, size: usize, wall: Timestamp) -> Record {
    let mut record = record(&format!("t{topic}"), wall);
    record.event.id = Uuid::from_u128(u128::from(topic / 2 + 1) << 96 | u128::from(topic));
    record.event.data = format!(r#"{{"topic_id":"t{topic}","filler":"{}"}}"#, "x".repeat(size));
    record.traceparent = topic.is_multiple_of(3).then(|| "00-1-2-01".into());
    record
}

pub(super) fn malformed(size: usize, received_at: Timestamp) -> Quarantined {
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
