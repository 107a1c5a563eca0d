//! Opens the outbox: lock, recovery, schema, threads, in this order.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use tokio::sync::watch;

use super::batch::Answers;
use super::health::Condition;
use super::history::History;
use super::ids::Ids;
use super::lock::Lock;
use super::log::{Log, run_checkpoints};
use super::recovery::{CutOff, cut_off, make_durable};
use super::reserve::Reserve;
use super::writer::Writer;
use super::{Limits, OpenError, Outbox, Refusal, Shared, Workers, schema};
use crate::config;
use crate::event::rfc3339;
use crate::metrics::Metrics;
use crate::time::{self, Clock};

pub(super) fn start(
    config: &config::Outbox,
    limits: Limits,
    metrics: Arc<Metrics>,
    clock: Clock,
) -> Result<(Outbox, Workers), OpenError> {
    let unusable = |reason: String| OpenError::unusable(&config.path, reason);
    schema::check_library(rusqlite::version_number()).map_err(unusable)?;
    let lock = Arc::new(Lock::acquire(&config.path)?);
    let path = lock.path();
    let cut_off =
        cut_off(path).map_err(|error| unusable(format!("cannot read its log: {error}")))?;
    make_durable(path)
        .map_err(|error| unusable(format!("cannot sync what was recovered: {error}")))?;
    let reserve = Reserve::of(path);
    let connection = schema::open_for_writing(path)?;
    let checkpoints = schema::open_for_checkpoints(path)?;
    let no_page_size = |error: rusqlite::Error| unusable(schema::explain(&error, path));
    let page_size = schema::pragma::<u64>(&connection, "page_size").map_err(no_page_size)?;

    let (commands, received) = mpsc::channel();
    let (answers, to_answer) = tokio::sync::mpsc::unbounded_channel::<Answers>();
    let (checkpoint, checkpoint_due) = mpsc::sync_channel(1);
    let shared = Arc::new(Shared::default());
    shared.slow.store(milliseconds(limits.slow), std::sync::atomic::Ordering::Relaxed);
    let mut writer = Writer {
        connection,
        commands: received,
        answers,
        shared: shared.clone(),
        last: watch::Sender::new(0),
        condition: Condition::new(path.to_owned(), config.max_bytes),
        metrics,
        config: config.clone(),
        clock: clock.clone(),
        lock: lock.clone(),
        reserve: reserve.clone(),
        ids: Ids::new(
            milliseconds(config.dedupe_window),
            milliseconds(config.remember_ids),
            config.remember_ids_max,
        ),
        history: History::new(
            milliseconds(config.history),
            config.history_events,
            config.max_bytes,
            config.history_gives_way,
        ),
        log: Log::new(checkpoint, config.max_bytes / page_size),
        page_size,
        position: 0,
        sync: None,
        settled_at: Instant::now(),
        settling: Vec::new(),
        forgets: false,
        unmeasured: 0,
    };
    let log_bytes = writer.log.max_pages() * page_size;
    schema::limit_log(&writer.connection, log_bytes)
        .and_then(|()| writer.load())
        .map_err(|error| unusable(schema::explain(&error, path)))?;
    if let Some(cut_off) = cut_off {
        report(&cut_off, writer.position, &config.path);
    }
    match reserve.hold() {
        Ok(true) => {}
        Ok(false) => writer.condition.refuse(Refusal::DiskFull, &shared),
        Err(error) => return Err(unusable(format!("cannot write beside it: {error}"))),
    }
    lock.watch().map_err(|error| unusable(error.to_string()))?;

    let outbox = Outbox {
        commands: commands.clone(),
        shared,
        last: writer.last.subscribe(),
        health: writer.condition.health.subscribe(),
        max_queued: limits.max_queued,
        clock,
        lock: lock.clone(),
    };
    tokio::spawn(hand_out(to_answer));
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| unusable(format!("no thread to write it: {error}")))
    };
    let to_writer = commands.clone();
    let workers = Workers {
        writer: spawn("outbox-writer", Box::new(move || writer.run()))?,
        checkpointer: spawn(
            "outbox-check",
            Box::new(move || run_checkpoints(&checkpoints, &checkpoint_due, &to_writer, &reserve)),
        )?,
        commands,
        lock,
    };
    Ok((outbox, workers))
}

/// Wakes whoever waits.
async fn hand_out(mut answers: tokio::sync::mpsc::UnboundedReceiver<Answers>) {
    while let Some(answers) = answers.recv().await {
        for (waiter, outcome) in answers {
            let _ = waiter.send(outcome); // the client may have hung up; its event is safe
        }
    }
}

/// After a power cut the log may end in what was never synced, and so never answered. Whole
/// transactions that cannot be read are more than that: the disk has lost or altered them.
fn report(cut_off: &CutOff, position: u64, path: &std::path::Path) {
    let CutOff { bytes, commits, written_at } = cut_off;
    let written_at = rfc3339(time::since_epoch(*written_at));
    let path = path.display();
    if *commits == 0 {
        tracing::info!(
            %path, bytes, position, %written_at,
            "the end of the outbox's log was cut off: a transaction that had not ended, and was not \
             answered; `position` is that of the last event kept"
        );
        return;
    }
    tracing::warn!(
        %path, bytes, commits, position, %written_at,
        "the end of the outbox's log cannot be read and was cut off: after a power cut that is what had \
         not been synced; otherwise the disk has lost or altered events that were answered OK after \
         `position`, the last that is kept: check the disk"
    );
}

pub(super) fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
