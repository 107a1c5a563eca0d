//! What the model test asks of the writer's thread so that it can go step by step: whether any work is
//! left, several commands in one batch, a full disk.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::oneshot;

use super::writer::Writer;
use super::{Command, Outbox, Outcome, Quarantined, Record, history};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    /// Only asks what work is left.
    Look,
    /// From now on it ticks only when told to, and does not wait for locks.
    StepByStep,
    /// The file can grow by this many pages, and no further.
    FillDisk(u64),
    EmptyDisk,
}

/// The work that the writer has left once the commands before this are done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rest {
    pub(crate) settlements: usize,
    pub(crate) is_watermark_due: bool,
    pub(crate) has_surplus: bool,
    pub(crate) forgets: bool,
    pub(crate) is_checkpointing: bool,
    pub(crate) log_bytes: u64,
}

impl Rest {
    pub(crate) fn has_work(&self) -> bool {
        self.settlements > 0 || self.is_watermark_due || self.has_surplus || self.forgets
    }
}

/// A callback on its way in.
pub(crate) enum Submission {
    Event(Record),
    Malformed(Quarantined),
}

impl Outbox {
    pub(crate) async fn probe(&self, probe: Probe) -> Option<Rest> {
        let (answer, receiver) = oneshot::channel();
        let _ = self.commands.send(Command::Probe(probe, answer));
        receiver.await.ok() // None: the outbox has failed
    }

    /// Queues several callbacks as one batch.
    pub(crate) fn submit_together(
        &self,
        submissions: Vec<Submission>,
    ) -> Vec<oneshot::Receiver<Outcome>> {
        self.shared.queued.fetch_add(submissions.len(), Relaxed);
        let (mut commands, mut answers) = (Vec::new(), Vec::new());
        for submission in submissions {
            let (waiter, answer) = oneshot::channel();
            commands.push(match submission {
                Submission::Event(record) => Command::Append(record, waiter),
                Submission::Malformed(callback) => Command::Quarantine(callback, waiter),
            });
            answers.push(answer);
        }
        let _ = self.commands.send(Command::Together(commands));
        answers
    }

    /// Callbacks that wait for an answer.
    pub(crate) fn queued(&self) -> usize {
        self.shared.queued.load(Relaxed)
    }
}

impl Writer {
    pub(super) fn answer_probes(&mut self, probes: Vec<(Probe, oneshot::Sender<Rest>)>) {
        for (probe, answer) in probes {
            match probe {
                Probe::Look => {}
                Probe::StepByStep => {
                    self.is_stepped = true;
                    self.connection.busy_timeout(Duration::ZERO).unwrap();
                }
                Probe::FillDisk(more) => {
                    let (pages, _) = history::pages(&self.connection).unwrap();
                    self.limit_pages(pages + more, true);
                }
                Probe::EmptyDisk => self.limit_pages(u64::from(u32::MAX) - 1, false),
            }
            let _ = answer.send(Rest {
                settlements: self.settling.len(),
                is_watermark_due: self.is_behind() && self.is_time(),
                has_surplus: self.surplus().is_some(),
                forgets: self.forgets,
                is_checkpointing: self.log.is_checkpointing(),
                log_bytes: self.log_bytes(),
            });
        }
    }

    fn limit_pages(&self, limit: u64, is_full: bool) {
        self.reserve.is_full.store(is_full, Relaxed);
        let sql = format!("PRAGMA max_page_count = {limit}");
        self.connection.query_row(&sql, [], |_| Ok(())).unwrap();
    }
}
