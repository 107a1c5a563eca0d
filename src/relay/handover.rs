//! Handing events over to the sink, and counting its verdicts.

use std::slice;
use std::time::Instant;

use super::Relay;
use crate::outbox::Stored;
use crate::verdict::{Kind, Reason, Verdict};

impl Relay {
    pub(super) async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        if events.is_empty() {
            return Vec::new();
        }
        let started = Instant::now();
        let mut verdicts = self.sink.deliver(events).await;
        if verdicts.len() != events.len() {
            let text = format!(
                "the sink judged {} of {} events: this is a bug in topic-bridge, please report it",
                verdicts.len(),
                events.len()
            );
            verdicts = vec![Verdict::Away(Reason::new(Kind::Other, text)); events.len()];
        }
        self.try_alone(events, &mut verdicts, started).await;
        self.metrics.publish_seconds.observe(started.elapsed().as_secs_f64());
        let now = self.outbox.clock().steady();
        for (event, verdict) in events.iter().zip(&verdicts) {
            match verdict.reason() {
                None => {
                    tracing::debug!(id = %event.event.id, trace_id = %event.trace().trace, "delivered");
                    let took = now.since(event.steady_at);
                    let trace = Some(event.trace());
                    self.metrics.delivery_seconds.observe_traced(took.as_secs_f64(), trace);
                    self.metrics.published.inc();
                    self.delivered_at = Some(self.moment());
                    self.outbox.confirm(event.position);
                    self.standing.judged(None);
                }
                Some(reason) => {
                    tracing::debug!(
                        id = %event.event.id,
                        trace_id = %event.trace().trace,
                        kind = reason.kind.name(),
                        reason = reason.text,
                        "not delivered at this attempt"
                    );
                    if matches!(verdict, Verdict::Refused(_)) {
                        self.outbox.give_up(event.position);
                        self.standing.judged(Some(reason));
                    }
                    self.metrics.publish_errors.of(reason.kind.name()).inc();
                }
            }
        }
        verdicts
    }

    /// Retries, one by one and in order, the events that were refused as part of a batch, as long as the sink accepts
    /// any. There may be many: those left after `relay.confirm_timeout` keep their place.
    async fn try_alone(&mut self, events: &[Stored], verdicts: &mut [Verdict], started: Instant) {
        let away = |verdict: &Verdict| match verdict {
            Verdict::Away(reason) => Some(reason.clone()),
            _ => None,
        };
        let mut is_away = verdicts.iter().find_map(away);
        for (event, verdict) in events.iter().zip(verdicts) {
            let Verdict::Alone(refused) = &*verdict else { continue };
            *verdict = match &is_away {
                Some(reason) => Verdict::Away(reason.clone()),
                None if started.elapsed() >= self.config.confirm_timeout => {
                    Verdict::Away(refused.clone())
                }
                None => match self.sink.deliver(slice::from_ref(event)).await.pop() {
                    Some(Verdict::Alone(reason)) => Verdict::Later(reason),
                    Some(verdict) => verdict,
                    None => Verdict::Later(refused.clone()),
                },
            };
            is_away = away(verdict);
        }
    }
}

/// The reason, if every event is to be tried later for the same one.
pub(super) fn all_alike(verdicts: &[Verdict]) -> Option<Reason> {
    let Some(Verdict::Later(first)) = verdicts.first() else { return None };
    let is_alike = |verdict: &Verdict| match verdict {
        Verdict::Later(reason) => reason.kind == first.kind,
        _ => false,
    };
    verdicts.iter().all(is_alike).then(|| first.clone())
}
