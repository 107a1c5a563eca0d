//! The line: events in order of acceptance, and the outcome of each batch of them.

use std::time::Duration;

use super::handover::all_alike;
use super::{Relay, Round};
use crate::outbox::{Damaged, Refused, Settlement, Slot, Stored, position};
use crate::verdict::{Reason, Verdict};

/// For how long it counts that other events got through while every event at the head of the line failed.
const PARTIAL: Duration = Duration::from_secs(60);

impl Relay {
    /// Hands over the next events in the line.
    pub(super) async fn forward(&mut self, slots: Vec<Slot>) -> anyhow::Result<Round> {
        let through = slots.last().map_or(self.cursor, position);
        let (events, damaged) = self.split(slots);
        let verdicts = self.deliver(&events).await;
        if let Some(reason) = all_alike(&verdicts)
            && !self.others_get_through()
        {
            return self.stall(reason, through).await;
        }
        let mut settlement = Settlement { through, refused: damaged, ..Settlement::default() };
        let mut away = None;
        let has_away = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Away(_)));
        for (event, verdict) in events.iter().zip(verdicts) {
            let position = event.position;
            match verdict {
                Verdict::Delivered if settlement.through < position => {
                    self.ahead.insert(position);
                }
                Verdict::Delivered => {}
                Verdict::Away(reason) => {
                    settlement.through = settlement.through.min(position - 1);
                    away = away.or(Some(reason));
                }
                // The sink is away: whatever it did not accept keeps its place.
                _ if has_away => settlement.through = settlement.through.min(position - 1),
                Verdict::Later(reason) | Verdict::Alone(reason) => {
                    settlement.again.push(self.again(position, 1, reason));
                }
                Verdict::Refused(reason) => {
                    settlement.refused.push(self.refused(position, reason.text))
                }
            }
        }
        let through = settlement.through;
        settlement.refused.retain(|refused| refused.position <= through);
        self.cursor = through;
        self.ahead.retain(|position| *position > through);
        self.stalled_at = None;
        self.settle(settlement).await?;
        match away {
            Some(reason) => Ok(self.away(reason)),
            None if events.is_empty() => Ok(Round::Worked),
            None => Ok(self.works()),
        }
    }

    /// Separates the events that can be handed over from those that are unreadable and always will be.
    pub(super) fn split(&self, slots: Vec<Slot>) -> (Vec<Stored>, Vec<Refused>) {
        let (mut events, mut damaged) = (Vec::with_capacity(slots.len()), Vec::new());
        for slot in slots {
            match slot {
                Ok(event) if self.ahead.contains(&event.position) => {}
                Ok(event) => events.push(event),
                Err(Damaged { position, reason }) => damaged.push(self.refused(position, reason)),
            }
        }
        (events, damaged)
    }

    /// Whether other events are delivered while those at the head of the line fail alike.
    fn others_get_through(&mut self) -> bool {
        let since = self.stalled_at.max(self.partial_at);
        let has_delivered = since.is_some_and(|since| self.delivered_at > Some(since));
        if has_delivered {
            self.partial_at = Some(self.moment());
        }
        self.partial_at.is_some_and(|moment| self.since(moment.at) < PARTIAL)
    }

    /// Every event of a batch failed alike, so all keep their places. After a while some events behind
    /// them are tried: if those get through, these events are at fault and not the sink. This happens
    /// late and seldom, because events behind overtake these if the sink comes back at just that moment.
    async fn stall(&mut self, reason: Reason, through: u64) -> anyhow::Result<Round> {
        if self.stalled_at.is_none() {
            let now = self.moment();
            (self.stalled_at, self.looked_ahead_at) = (Some(now), now.at);
        }
        self.standing.fail(reason, self.outbox.pending());
        if self.since(self.looked_ahead_at) >= self.config.retry_max {
            self.looked_ahead_at = self.outbox.clock().steady();
            let slots = self.read_line(self.look_ahead_after.max(through))?;
            self.look_ahead_after = slots.last().map_or(0, position);
            let (events, _) = self.split(slots);
            let verdicts = self.deliver(&events).await;
            let delivered = events.iter().zip(verdicts).filter(|(_, v)| *v == Verdict::Delivered);
            self.ahead.extend(delivered.map(|(event, _)| event.position));
        }
        Ok(Round::Away)
    }
}
