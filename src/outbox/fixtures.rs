//! The starting point of the outbox and relay tests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Config, Limits, Outbox, Record, Sync, Workers};
use crate::message::Envelope;
use crate::metrics::Metrics;
use crate::time::{Clock, Timestamp};

/// When the scripted clocks begin.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

pub(crate) fn settings(folder: &Path) -> Config {
    Config {
        path: folder.join("outbox.db"),
        sync: Sync::Off, // what a test of the process alone needs
        max_bytes: 1 << 30,
        dedupe_window: Duration::from_secs(600),
        history: Duration::from_secs(1_000_000_000),
        history_events: 1000,
        remember_ids: Duration::from_secs(90 * 86_400),
        remember_ids_max: 100_000,
        quarantine_events: 3,
    }
}

pub(crate) const LIMITS: Limits =
    Limits { max_queued: 1000, slow: Duration::from_secs(1000), history_gives_way: false };

pub(crate) fn open(settings: &Config, clock: &Clock) -> (Outbox, Workers) {
    Outbox::open(settings, LIMITS, Arc::new(Metrics::new("embedded")), clock.clone()).unwrap()
}

pub(crate) async fn close(workers: Workers) {
    tokio::task::spawn_blocking(|| workers.close()).await.unwrap();
}

/// A callback's event: topics of one name have one id.
pub(crate) fn record(topic_id: &str, accepted_at: Timestamp) -> Record {
    let event = Envelope {
        id: crate::event::id(1, topic_id, None),
        event_type: "t.v1".into(),
        source: "/apps/1".into(),
        time: accepted_at,
        sdk_app_id: 1,
        topic_id: topic_id.into(),
        group_id: "group".into(),
        platform: None,
        data: format!(r#"{{"sdk_app_id":1,"topic_id":{topic_id:?}}}"#),
    };
    Record { accepted_at, event, traceparent: None, confirm: None }
}

/// The position, id and topic of every event that is kept.
pub(crate) fn kept(outbox: &Outbox) -> Vec<(u64, Uuid, String)> {
    let slots = outbox.reader().unwrap().run_here(|reading| reading.after(0, 10_000)).unwrap();
    let events = slots.into_iter().map(|slot| slot.unwrap());
    events.map(|stored| (stored.position, stored.event.id, stored.event.topic_id)).collect()
}

impl Record {
    /// The same callback once more.
    pub(crate) fn again(&self) -> Self {
        let (event, traceparent) = (self.event.clone(), self.traceparent.clone());
        Record { accepted_at: self.accepted_at, event, traceparent, confirm: None }
    }
}
