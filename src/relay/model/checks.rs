//! What the sink was handed, and what becomes of it by its verdicts.

use std::time::Duration;

use proptest::prelude::*;

use super::super::ASK_EVERY;
use super::oracle::{Check, Effect, Oracle, State};
use crate::outbox::Stored;
use crate::time::Timestamp;
use crate::verdict::{Kind, Verdict};

/// A batch and its verdicts; there may be too few.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) events: Vec<Stored>,
    pub(super) verdicts: Vec<Verdict>,
}

/// When a round's calls are judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) now: Timestamp,
    /// The relay says that its line is stalled.
    pub(super) is_stalled: bool,
    pub(super) retry_min: Duration,
    pub(super) retry_max: Duration,
}

impl Oracle {
    /// Judges what the sink was handed in one round. What is more than "delivered in line" counts when it
    /// is written.
    pub(super) fn round(&mut self, calls: &[Call], turn: Turn) -> Check {
        let mut first_of_line = Vec::new();
        for call in &merge(calls)? {
            self.calls += 1;
            self.check_content(call)?;
            let positions: Vec<_> = call.events.iter().map(|event| event.position).collect();
            let is_judged = call.verdicts.len() == call.events.len();
            // A batch that was not judged whole counts as one that the sink did not take.
            let verdicts = if is_judged { &call.verdicts[..] } else { &[] };
            let first = self.event(positions[0]).expect("its content was looked at");
            if first.state == State::Deferred {
                self.retry(&positions, verdicts, turn)?;
            } else {
                self.check_order(&positions, &first_of_line)?;
                let is_look_ahead = !first_of_line.is_empty();
                self.forward(&positions, verdicts, is_look_ahead, turn)?;
                first_of_line.extend(&positions);
            }
        }
        Ok(())
    }

    /// Each event is one that was accepted, as it was, and is not settled.
    fn check_content(&mut self, call: &Call) -> Check {
        prop_assert!(!call.events.is_empty(), "the sink was asked for nothing");
        prop_assert!(call.events.len() <= self.settings.batch, "a batch is too large");
        for stored in &call.events {
            let position = stored.position;
            let Some(event) = self.event(position) else {
                return Err(TestCaseError::fail(format!("{position} was never accepted")));
            };
            prop_assert_eq!(stored, &event.stored, "the event is another one");
            prop_assert!(!event.is_done, "{} is delivered again", position);
            prop_assert!(!event.is_damaged, "{} is damaged and delivered", position);
            let is_open = matches!(event.state, State::Waiting | State::Deferred);
            prop_assert!(is_open, "{} is {:?} and tried again", position, event.state);
        }
        Ok(())
    }

    /// In line come the first ones that wait, in the order of acceptance.
    fn check_order(&self, positions: &[u64], before: &[u64]) -> Check {
        let waiting = self
            .events
            .iter()
            .filter(|event| event.state == State::Waiting && !event.is_done && !event.is_damaged);
        let waiting: Vec<_> = waiting.map(|event| event.stored.position).collect();
        let is_next = if before.is_empty() {
            waiting.starts_with(positions)
        } else {
            // Behind a head that fails alike, some of those behind it.
            let behind = waiting.iter().skip_while(|at| Some(*at) <= before.last());
            let behind: Vec<_> = behind.copied().collect();
            behind.windows(positions.len()).any(|window| window == positions)
        };
        prop_assert!(is_next, "{positions:?} of {waiting:?}");
        Ok(())
    }

    fn forward(
        &mut self,
        positions: &[u64],
        verdicts: &[Verdict],
        is_look_ahead: bool,
        turn: Turn,
    ) -> Check {
        let is_away = verdicts.is_empty()
            || verdicts.iter().any(|verdict| matches!(verdict, Verdict::Away(_)));
        let is_stall = kind_of_all(verdicts).is_some() && turn.is_stalled;
        if let (Some(kind), false, false) = (kind_of_all(verdicts), is_stall, is_look_ahead) {
            prop_assert!(
                self.has_delivered,
                "all of a batch were deferred as {kind:?}, and nothing else got through"
            );
        }
        for (position, verdict) in positions.iter().zip(verdicts) {
            let effect = match verdict {
                Verdict::Delivered => {
                    self.deliver(*position);
                    continue;
                }
                Verdict::Away(_) => continue,
                _ if is_away || is_stall || is_look_ahead => continue,
                Verdict::Later(_) | Verdict::Alone(_) => State::Deferred,
                Verdict::Refused(_) => State::Dead,
            };
            self.settle(*position, effect, 1, turn);
        }
        self.moved_in = self.calls;
        Ok(())
    }

    fn deliver(&mut self, position: u64) {
        self.event(position).expect("it was accepted").is_done = true;
        self.has_delivered = true;
        self.moved_in = self.calls;
    }

    fn retry(&mut self, positions: &[u64], verdicts: &[Verdict], turn: Turn) -> Check {
        prop_assert!(positions.is_sorted(), "those that are tried again come in order");
        let is_probe = positions.len() == 1 && turn.now.since(self.retried_at) >= ASK_EVERY;
        let moved_in = self.moved_in;
        let mut is_early = false;
        for position in positions {
            let event = self.event(*position).expect("its content was looked at");
            prop_assert_eq!(event.state, State::Deferred, "{} is not deferred", position);
            is_early |= turn.now < event.not_before && event.tried_in > moved_in;
        }
        prop_assert!(!is_early || is_probe, "{positions:?} are tried before their time");
        if is_early {
            self.retried_at = turn.now;
        }
        for (position, verdict) in positions.iter().zip(verdicts) {
            let effect = match verdict {
                Verdict::Away(_) => continue,
                Verdict::Delivered => {
                    self.deliver(*position);
                    State::Delivered
                }
                Verdict::Refused(_) => State::Dead,
                Verdict::Later(_) | Verdict::Alone(_) => State::Deferred,
            };
            let attempts = self.event(*position).expect("its content was looked at").attempts + 1;
            self.settle(*position, effect, attempts, turn);
        }
        Ok(())
    }

    /// Holds once it is written. The wait is doubled each time, and jittered down by half at most.
    fn settle(&mut self, position: u64, state: State, attempts: u32, turn: Turn) {
        let calls = self.calls;
        self.event(position).expect("it was accepted").tried_in = calls;
        let doublings = (attempts - 1).min(20);
        let wait = turn.retry_min.saturating_mul(1 << doublings).min(turn.retry_max);
        let not_before = turn.now + wait / 2;
        self.outstanding.push(Effect { position, state, attempts, not_before });
    }
}

/// Who was refused in company is tried alone, at once and in order, for as long as the sink takes something;
/// what became of it counts as that of the batch.
fn merge(calls: &[Call]) -> Check<Vec<Call>> {
    let mut merged: Vec<Call> = Vec::new();
    let mut calls = calls.iter();
    while let Some(call) = calls.next() {
        let mut call = call.clone();
        let away = |verdict: &Verdict| matches!(verdict, Verdict::Away(_));
        let mut is_away = call.verdicts.iter().any(away);
        let is_judged = call.verdicts.len() == call.events.len();
        for (event, verdict) in call.events.iter().zip(&mut call.verdicts) {
            let Verdict::Alone(reason) = verdict.clone() else { continue };
            if is_away || !is_judged {
                *verdict = Verdict::Away(reason);
                continue;
            }
            let alone = calls.next().map(|call| (&call.events[..], call.verdicts.first()));
            let Some((events, said)) = alone else {
                return Err(TestCaseError::fail(format!("{} is not tried alone", event.position)));
            };
            prop_assert_eq!(events, std::slice::from_ref(event), "who is tried alone");
            *verdict = said.cloned().unwrap_or(Verdict::Later(reason));
            is_away = away(verdict);
        }
        merged.push(call);
    }
    Ok(merged)
}

fn kind_of_all(verdicts: &[Verdict]) -> Option<Kind> {
    let kind = |verdict: &Verdict| match verdict {
        Verdict::Later(reason) => Some(reason.kind),
        _ => None,
    };
    let first = kind(verdicts.first()?)?;
    verdicts.iter().all(|verdict| kind(verdict) == Some(first)).then_some(first)
}
