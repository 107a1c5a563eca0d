//! Retries: which deferred events are tried next, and what becomes of them.

use std::time::Duration;

use anyhow::Context as _;

use super::handover::all_alike;
use super::{ASK_EVERY, PATIENCE, Relay, Round};
use crate::outbox::{Deferred, Settlement, position};
use crate::verdict::{Reason, Verdict};

/// If something else was delivered within this time, failing deferred events say nothing about the sink.
const QUIET: Duration = Duration::from_secs(60);

const UNREADABLE: &str = "cannot read the deferred events";

impl Relay {
    /// The deferred events to try now: all of them in order after something got through, otherwise those
    /// that are due, otherwise a single one now and then.
    pub(super) fn due(&mut self) -> anyhow::Result<Vec<Deferred>> {
        let limit = self.limit();
        if let Some(after) = self.release_after {
            let next = self.reader.run_here(|reading| reading.deferred_after(after, limit));
            let next = next.context(UNREADABLE)?;
            self.release_after = next.last().map(|last| position(&last.slot));
            if !next.is_empty() {
                return Ok(next);
            }
        }
        let now = self.outbox.clock().steady();
        let not_after = now + self.config.retry_max;
        let due = self.reader.run_here(|reading| reading.due(now, not_after, limit));
        let due = due.context(UNREADABLE)?;
        if !due.is_empty() || self.since(self.probed_at) < ASK_EVERY {
            return Ok(due);
        }
        self.probed_at = now;
        let first = self.reader.run_here(|reading| reading.deferred_after(0, 1));
        first.context(UNREADABLE)
    }

    /// Whether only events are left that the sink, although up, keeps refusing.
    pub(super) fn is_unfit_for_deferred(&self) -> bool {
        self.gives_back && self.outbox.deferred() > 0
    }

    /// Retries deferred events.
    pub(super) async fn retry(&mut self, due: Vec<Deferred>) -> anyhow::Result<Round> {
        let (attempts, slots): (Vec<_>, Vec<_>) =
            due.into_iter().map(|deferred| (deferred.attempts, deferred.slot)).unzip();
        let attempts: Vec<_> = attempts
            .into_iter()
            .zip(&slots)
            .filter(|(_, slot)| slot.is_ok())
            .map(|(n, _)| n)
            .collect();
        let (events, damaged) = self.split(slots);
        let verdicts = self.deliver(&events).await;
        let alike = all_alike(&verdicts);
        let mut settlement =
            Settlement { through: self.cursor, refused: damaged, ..Settlement::default() };
        let mut away = None;
        for ((event, attempts), verdict) in events.iter().zip(attempts).zip(verdicts) {
            let position = event.position;
            match verdict {
                Verdict::Delivered => settlement.delivered_at_last.push(position),
                Verdict::Refused(reason) => {
                    settlement.refused.push(self.refused(position, reason.text))
                }
                Verdict::Later(reason) | Verdict::Alone(reason) => {
                    settlement.again.push(self.again(position, attempts.saturating_add(1), reason));
                }
                Verdict::Away(reason) => away = away.or(Some(reason)),
            }
        }
        let got_through = !settlement.delivered_at_last.is_empty();
        if got_through && self.release_after.is_none() {
            self.release_after = Some(0);
        }
        self.is_turn_of_deferred = got_through && settlement.again.is_empty();
        self.settle(settlement).await?;
        Ok(match (away, alike) {
            (Some(reason), _) => self.away(reason),
            (None, Some(reason)) => self.give_up_for_now(reason),
            (None, None) if events.is_empty() => Round::Worked,
            (None, None) => self.works(),
        })
    }

    /// The deferred events still fail. If nothing else was delivered for a while, the sink counts as down.
    fn give_up_for_now(&mut self, reason: Reason) -> Round {
        let is_quiet = self.delivered_at.is_none_or(|moment| self.since(moment.at) >= QUIET);
        if is_quiet {
            self.gives_back = true;
            self.standing.down(reason, self.outbox.pending());
        }
        Round::Worked
    }

    pub(super) fn until_next_due(&self) -> anyhow::Result<Duration> {
        if self.outbox.deferred() == 0 {
            return Ok(PATIENCE);
        }
        let due = self.reader.run_here(|reading| reading.next_due()).context(UNREADABLE)?;
        let wait = due.map_or(PATIENCE, |due| due.since(self.outbox.clock().steady()));
        Ok(wait.clamp(Duration::from_millis(1), PATIENCE))
    }
}
