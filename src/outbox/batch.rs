//! What one transaction of the writer holds, and what it did.

use rusqlite::{Transaction, params};
use tokio::sync::oneshot;

use super::acts::Asked;
use super::ids::{Ids, Seen};
#[cfg(test)]
use super::probe::{Probe, Rest};
use super::row::{OVERHEAD, Values, inserting};
use super::settlement::{Change, Settlement};
use super::{Command, Outcome, Quarantined, Receipt, Record, Refusal, Waiter};
use crate::event::recreated_id;
use crate::time::Timestamp;

pub(super) type Answers = Vec<(Waiter, Outcome)>;

/// A batch, sorted by what has to be done.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) appends: Vec<(Record, Waiter)>,
    pub(super) quarantined: Vec<(Quarantined, Waiter)>,
    pub(super) settlements: Vec<(Settlement, oneshot::Sender<()>)>,
    pub(super) steps: Vec<Asked>,
    pub(super) poison: Option<String>,
    pub(super) is_checkpointed: bool,
    pub(super) is_last: bool,
    #[cfg(test)]
    pub(super) ticks: Vec<oneshot::Sender<()>>,
    #[cfg(test)]
    pub(super) probes: Vec<(Probe, oneshot::Sender<Rest>)>,
}

impl Batch {
    pub(super) fn add(&mut self, command: Command) {
        match command {
            Command::Append(record, waiter) => self.appends.push((record, waiter)),
            Command::Quarantine(callback, waiter) => self.quarantined.push((callback, waiter)),
            Command::Settle(settlement, written) => self.settlements.push((settlement, written)),
            Command::Step(asked) => self.steps.push(asked),
            Command::Poison(reason) => self.poison = Some(reason),
            Command::Checkpointed => self.is_checkpointed = true,
            Command::Close => self.is_last = true,
            #[cfg(test)]
            Command::Tick(done) => self.ticks.push(done),
            #[cfg(test)]
            Command::Together(commands) => {
                commands.into_iter().for_each(|command| self.add(command))
            }
            #[cfg(test)]
            Command::Probe(probe, answer) => self.probes.push((probe, answer)),
        }
    }

    /// Whether no client is waiting for it to be durable.
    pub(super) fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.quarantined.is_empty()
    }

    pub(super) fn refuse_all(self, refusal: Refusal) -> Answers {
        self.answer_with(std::iter::repeat(Err(refusal)), std::iter::repeat(Err(refusal)))
    }

    pub(super) fn answer_with(
        self,
        appends: impl IntoIterator<Item = Outcome>,
        quarantined: impl IntoIterator<Item = Outcome>,
    ) -> Answers {
        let appended = self.appends.into_iter().map(|(_, waiter)| waiter).zip(appends);
        let kept = self.quarantined.into_iter().map(|(_, waiter)| waiter).zip(quarantined);
        appended.chain(kept).collect()
    }
}

/// What a transaction did, to be applied once it is committed.
#[derive(Default)]
pub(super) struct Written {
    pub(super) appends: Vec<Outcome>,
    pub(super) quarantined: Vec<Outcome>,
    pub(super) accepted: u64,
    /// Of those, the ones whose answer also waits for the broker: whoever waits counts them.
    pub(super) confirmed: u64,
    /// The appends whose answer waits for the broker: which one of the batch, and its event's position.
    pub(super) confirming: Vec<(usize, u64)>,
    pub(super) kept: u64,
    pub(super) bytes: u64,
    pub(super) settled_through: Option<u64>,
    pub(super) change: Change,
    pub(super) trimmed_through: Option<u64>,
}

impl Written {
    fn is_at(&mut self, index: usize, position: u64, record: &Record) {
        if record.confirm.is_some() {
            self.confirming.push((index, position));
        }
    }
}

/// How much may still be written, and the refusal once it is used up.
pub(super) struct Room {
    pub(super) bytes: u64,
    pub(super) refusal: Refusal,
}

impl Room {
    pub(super) fn take(&mut self, cost: u64) -> Result<(), Refusal> {
        self.bytes = self.bytes.checked_sub(cost).ok_or(self.refusal)?;
        Ok(())
    }
}

/// Inserts the new events. `newest` is the last position assigned, `now` is steady-clock time.
pub(super) fn append(
    transaction: &Transaction,
    ids: &mut Ids,
    batch: &Batch,
    (newest, now): (u64, Timestamp),
    room: &mut Room,
    written: &mut Written,
) -> rusqlite::Result<()> {
    if batch.appends.is_empty() {
        return Ok(());
    }
    let mut insertion = inserting(transaction, "events")?;
    for (index, (record, _)) in batch.appends.iter().enumerate() {
        let position = newest + written.accepted + 1;
        let before = match ids.seen(transaction, record.event.id, now, position - 1)? {
            Seen::InsideWindow(position) => {
                written.is_at(index, position, record);
                written.appends.push(Ok(Receipt::Duplicate));
                continue;
            }
            Seen::BeforeWindow(before) => Some(before),
            Seen::Never => None,
        };
        let Record { accepted_at, event, traceparent, confirm } = record;
        let id = match before {
            Some(_) => recreated_id(event.id, *accepted_at),
            None => event.id,
        };
        let (steady_at, accepted_at, traceparent) = (now, *accepted_at, traceparent.as_deref());
        let values = Values { position, steady_at, accepted_at, id, event, traceparent };
        let cost = values.cost();
        if let Err(refusal) = room.take(cost) {
            written.appends.push(Err(refusal));
            continue;
        }
        values.insert(&mut insertion)?;
        ids.remember(transaction, record.event.id, position, now, before)?;
        written.bytes += cost;
        written.accepted += 1;
        written.confirmed += u64::from(confirm.is_some());
        written.is_at(index, position, record);
        written.appends.push(Ok(Receipt::Accepted));
    }
    Ok(())
}

/// Keeps callbacks that could not be understood, at most `places` of them.
pub(super) fn quarantine(
    transaction: &Transaction,
    batch: &Batch,
    places: u64,
    room: &mut Room,
    written: &mut Written,
) -> rusqlite::Result<()> {
    for (callback, _) in &batch.quarantined {
        let cost = callback.body.len() as u64 + OVERHEAD;
        let outcome = if written.kept >= places {
            Err(Refusal::QuarantineFull)
        } else if let Err(refusal) = room.take(cost) {
            Err(refusal)
        } else {
            insert_quarantined(transaction, callback)?;
            written.bytes += cost;
            written.kept += 1;
            Ok(Receipt::Quarantined)
        };
        written.quarantined.push(outcome);
    }
    Ok(())
}

fn insert_quarantined(transaction: &Transaction, callback: &Quarantined) -> rusqlite::Result<()> {
    let sql = "INSERT INTO quarantine
        (received_at, sdk_app_id, client_ip, client_platform, reason, body, checksum)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let Quarantined { sdk_app_id, client_ip, client_platform, received_at, reason, body } =
        callback;
    let (app, sum) = (sdk_app_id.cast_signed(), callback.checksum());
    let row = params![received_at, app, client_ip, client_platform, reason, body, sum];
    transaction.prepare_cached(sql)?.execute(row).map(drop)
}
