//! What an operator does to the outbox: retry, drop, replay and import, by a running bridge or without one. An
//! act reads what it is about page by page beside the writer, and then has the writer change it in steps, one
//! transaction each, so that no callback waits long behind a million rows. What an act has done when something
//! stops it stays done, and is counted.

mod import;
mod matching;
mod order;
mod step;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use tokio::sync::oneshot;

use super::{Command, List, Outbox, Quarantined, Reader, Record};
use crate::callback::Callback;
use crate::event::{self, Origin, TopicCreated};
pub(crate) use import::Import;
pub(crate) use order::{Act, Filter, Of, Order, Tally};
pub(super) use step::Asked;
use step::{Requeued, Step};

/// Quarantined bodies that are parsed for one step: so many bytes, and so many of them.
const BODIES_BYTES: usize = 1 << 20;
const BODIES: usize = 256;

/// Why an act ended before it was done.
type Stopped = String;

impl Outbox {
    /// Carries out an order, or only counts what it is about. `naming` is for what comes out of quarantine.
    pub(crate) async fn perform(&self, act: Act, order: &Order, naming: &event::Config) -> Tally {
        let mut tally = Tally::default();
        if let Err(stopped) = self.work_through(act, order, naming, &mut tally).await {
            tally.stopped = Some(stopped);
        }
        tally
    }

    async fn work_through(
        &self,
        act: Act,
        order: &Order,
        naming: &event::Config,
        tally: &mut Tally,
    ) -> Result<(), Stopped> {
        let reader = self.reader().map_err(|error| error.to_string())?;
        let list = match (act, order.of) {
            (Act::Replay, _) => List::Delivered,
            (_, Some(Of::Quarantined)) => List::Quarantined,
            _ => List::DeadLetters,
        };
        let (mut after, newest) = (0, newest(&reader, list).await?);
        loop {
            let filter = order.filter.clone();
            let page = reader.run(move |reading| reading.matching(list, &filter, after)).await;
            let page = page.map_err(|error| error.to_string())?;
            // What an act brings about, such as another dead letter, is not its own next prey.
            let matches: Vec<_> =
                page.matches.into_iter().filter(|found| *found <= newest).collect();
            tally.matched += matches.len() as u64;
            if !order.dry_run && !matches.is_empty() {
                match (act, list) {
                    (Act::Retry, List::Quarantined) => {
                        self.requeue(&reader, matches, naming, tally).await?;
                    }
                    (Act::Retry, _) => self.step(Step::Retry(matches), tally).await?,
                    (Act::Drop, _) => self.step(Step::Drop(list, matches), tally).await?,
                    (Act::Replay, _) => self.step(Step::Replay(matches), tally).await?,
                }
            }
            match page.next {
                Some(next) if next < newest => after = next,
                _ => return Ok(()),
            }
        }
    }

    /// Parses quarantined bodies with today's parser, and queues those that it understands.
    async fn requeue(
        &self,
        reader: &Reader,
        numbers: Vec<u64>,
        naming: &event::Config,
        tally: &mut Tally,
    ) -> Result<(), Stopped> {
        let (mut parsed, mut bytes) = (Vec::new(), 0);
        for number in numbers {
            let found = reader.run(move |reading| reading.quarantined_callback(number)).await;
            let Some(callback) = found.map_err(|error| error.to_string())? else { continue };
            let event = match callback {
                None => {
                    Err("the stored callback is damaged: its checksum does not match".to_owned())
                }
                Some(callback) => {
                    bytes += callback.body.len();
                    understand(&callback, naming)
                }
            };
            parsed.push(Requeued { number, event });
            if bytes >= BODIES_BYTES || parsed.len() >= BODIES {
                self.step(Step::Requeue(std::mem::take(&mut parsed)), tally).await?;
                bytes = 0;
            }
        }
        if parsed.is_empty() { Ok(()) } else { self.step(Step::Requeue(parsed), tally).await }
    }

    /// Has the writer take one step, and adds up what it did.
    async fn step(&self, step: Step, tally: &mut Tally) -> Result<(), Stopped> {
        let (answer, taken) = oneshot::channel();
        let asked = Command::Step(Asked { step, answer });
        let gone = || "the outbox is closed: the bridge is stopping, or has failed".to_owned();
        self.commands.send(asked).map_err(|_| gone())?;
        let taken = taken.await.map_err(|_| gone())?.map_err(|refusal| refusal.to_string())?;
        tally.done += taken.done;
        tally.duplicates += taken.duplicates;
        tally.kept += taken.kept;
        taken.refusal.map_or(Ok(()), |refusal| Err(refusal.to_string()))
    }
}

/// The last position, or number, that there is now.
async fn newest(reader: &Reader, list: List) -> Result<u64, Stopped> {
    let newest = reader.run(move |reading| match list {
        List::Quarantined => reading.newest_quarantined(),
        _ => Ok(u64::MAX),
    });
    newest.await.map_err(|error| error.to_string())
}

/// The event of a callback that came earlier, or why it is still none.
fn understand(callback: &Quarantined, naming: &event::Config) -> Result<Record, String> {
    let parsed = Callback::parse(&callback.body).map_err(|malformed| malformed.to_string())?;
    let origin = Origin {
        sdk_app_id: callback.sdk_app_id,
        client_ip: callback.client_ip.as_deref().map(Cow::Borrowed),
        client_platform: callback.client_platform.as_deref().map(Cow::Borrowed),
    };
    let accepted_at = callback.received_at;
    let event = TopicCreated::of_earlier(origin, parsed, naming, accepted_at);
    Ok(Record { accepted_at, event: event.seal(), traceparent: None, confirm: None })
}
