//! Opens the outbox: lock, recovery, schema, threads, in this order.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;

use rusqlite::Connection;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::batch::Answers;
use super::health::Condition;
use super::history::History;
use super::ids::Ids;
use super::lock::Lock;
use super::log::{Log, run_checkpoints};
use super::recovery::{CutOff, cut_off, has_lost_its_log, make_durable};
use super::reserve::Reserve;
use super::writer::Writer;
use super::{
    Command, Config, Limits, OpenError, Outbox, Refusal, Shared, Workers, connection, schema,
};
use crate::metrics::Metrics;
use crate::time::{Clock, Timestamp, milliseconds};

pub(super) fn start(
    config: &Config,
    limits: Limits,
    metrics: Arc<Metrics>,
    clock: Clock,
) -> Result<(Outbox, Workers), OpenError> {
    let unusable = |reason: String| OpenError::unusable(&config.path, reason);
    connection::check_library(rusqlite::version_number()).map_err(unusable)?;
    let lock = Arc::new(Lock::acquire(&config.path)?);
    warn_of_a_lost_log(&lock, &config.path);
    let cut_off = secure(lock.path()).map_err(unusable)?;
    let connection = connection::open_for_writing(lock.path())?;
    let checkpoints = connection::open_for_checkpoints(lock.path())?;

    let (commands, received) = mpsc::channel();
    let (answers, to_answer) = tokio::sync::mpsc::unbounded_channel::<Answers>();
    let (due, checkpoint_due) = mpsc::sync_channel(1);
    let ends = Ends { received, answers, due, metrics, clock: clock.clone() };
    let writer = build(config, limits, &lock, connection, ends)
        .map_err(|error| unusable(schema::explain(&error, lock.path())))?;
    if let Some(cut_off) = cut_off {
        report(&cut_off, writer.position, &config.path);
    }
    match writer.reserve.hold() {
        Ok(true) => {}
        Ok(false) => writer.condition.refuse(Refusal::DiskFull, &writer.shared),
        Err(error) => return Err(unusable(format!("cannot write beside it: {error}"))),
    }
    lock.watch().map_err(|error| unusable(error.to_string()))?;

    let outbox = Outbox {
        commands: commands.clone(),
        shared: writer.shared.clone(),
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
            .map_err(|error| unusable(format!("cannot start a thread to write it: {error}")))
    };
    let (to_writer, reserve) = (commands.clone(), writer.reserve.clone());
    let writing = Box::new(move || writer.run());
    let copying =
        Box::new(move || run_checkpoints(&checkpoints, &checkpoint_due, &to_writer, &reserve));
    let workers = Workers {
        writer: spawn("outbox-writer", writing)?,
        checkpointer: spawn("outbox-check", copying)?,
        commands,
        lock,
    };
    Ok((outbox, workers))
}

fn warn_of_a_lost_log(lock: &Lock, path: &Path) {
    if has_lost_its_log(lock.path()) {
        tracing::warn!(
            path = %path.display(),
            "the last run did not end in order, and the outbox's log (-wal) is gone: if it was deleted, so were the \
             last events that were answered OK; after a power cut it may be that nothing was in it"
        );
    }
}

/// Makes durable what the last run left. Returns the unreadable end of its log, if there is one.
fn secure(path: &Path) -> Result<Option<CutOff>, String> {
    let cut_off = cut_off(path).map_err(|error| format!("cannot read its log: {error}"))?;
    make_durable(path).map_err(|error| format!("cannot sync what was recovered: {error}"))?;
    Ok(cut_off)
}

/// The channels and shared parts that the writer is given.
struct Ends {
    received: mpsc::Receiver<Command>,
    answers: UnboundedSender<Answers>,
    due: mpsc::SyncSender<()>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// Creates the writer and loads its state from the file.
fn build(
    config: &Config,
    limits: Limits,
    lock: &Arc<Lock>,
    connection: Connection,
    ends: Ends,
) -> rusqlite::Result<Writer> {
    let page_size = schema::pragma::<u64>(&connection, "page_size")?;
    let log = Log::new(ends.due, config.max_bytes / page_size);
    connection::limit_log(&connection, log.max_pages() * page_size)?;
    let shared = Arc::new(Shared::default());
    shared.slow.store(milliseconds(limits.slow), Ordering::Relaxed);
    let now = ends.clock.steady();
    let mut writer = Writer {
        connection,
        commands: ends.received,
        answers: ends.answers,
        shared,
        last: watch::Sender::new(0),
        condition: Condition::new(lock.path().to_owned(), config.max_bytes),
        metrics: ends.metrics,
        config: config.clone(),
        clock: ends.clock,
        lock: lock.clone(),
        reserve: Reserve::of(lock.path()),
        ids: Ids::new(config.dedupe_window, config.remember_ids, config.remember_ids_max),
        history: History::new(
            config.history,
            config.history_events,
            config.max_bytes,
            limits.history_gives_way,
        ),
        log,
        page_size,
        position: 0,
        sync: None,
        settled_at: now,
        settling: Vec::new(),
        forgets: false,
        unmeasured: 0,
        is_stepped: false,
    };
    writer.load()?;
    Ok(writer)
}

/// Delivers the answers to the waiters.
async fn hand_out(mut answers: tokio::sync::mpsc::UnboundedReceiver<Answers>) {
    while let Some(answers) = answers.recv().await {
        for (waiter, outcome) in answers {
            let _ = waiter.send(outcome); // the client may have hung up; its event is safe
        }
    }
}

/// After a power cut the log may end in data that was never synced, and so never answered. Unreadable
/// whole transactions are another matter: the disk may have lost or altered them.
fn report(cut_off: &CutOff, position: u64, path: &Path) {
    let CutOff { bytes, commits, written_at } = cut_off;
    let written_at = Timestamp::from(*written_at);
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
