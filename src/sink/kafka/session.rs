//! A producer, the checks of its topic, and the outcome of a batch. A producer that could not deliver is
//! discarded: whatever it still holds would be sent late, after its own repetition.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryFuture, FutureRecord, Producer as _, PurgeConfig};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::super::outgoing::Outgoing;
use super::super::session::{Failed, Session, Steps};
use super::client::{Context, Producer};
use super::config::Key;
use super::errors::{code_of, in_words, is_final, is_of_the_batch, reason};
use super::topic::Seen;
use super::{Kafka, message};
use crate::verdict::{Kind, Reason, Verdict};

/// How long `close` waits for the client to stop its threads.
const GOODBYE: Duration = Duration::from_secs(2);

/// How long to wait on a full queue that holds nothing unconfirmed.
const QUEUE_FULL: Duration = Duration::from_millis(1);

pub(crate) struct Producing {
    kafka: Kafka,
    /// `Some` until it is closed or dropped.
    producer: Option<Producer>,
    pub(super) context: Context,
    /// It may hold unconfirmed messages.
    is_doubted: bool,
}

/// The outcome of one event at one attempt.
type Outcome = Result<(), Failure>;

#[derive(Debug, Clone, PartialEq)]
enum Failure {
    /// Larger than `message.max.bytes`, so it was never sent.
    Oversize,
    Failed(RDKafkaErrorCode),
}

/// An event being sent.
enum Slot {
    Waiting(DeliveryFuture),
    Done(Outcome),
}

impl Producing {
    pub(super) fn new(kafka: Kafka, producer: Producer, context: Context) -> Self {
        Producing { kafka, producer: Some(producer), context, is_doubted: false }
    }

    pub(super) fn producer(&self) -> &Producer {
        self.producer.as_ref().expect("it is taken at the end only")
    }

    /// Enqueues all events, then waits for all of them. If the queue is full, waits for that too.
    async fn send(&self, messages: &[Outgoing<'_>]) -> Vec<Outcome> {
        let deadline = Instant::now() + self.kafka.patience;
        let mut slots: Vec<Slot> = Vec::with_capacity(messages.len());
        let mut settled = 0;
        for message in messages {
            let slot = loop {
                match self.enqueue(message) {
                    Err(Failure::Failed(RDKafkaErrorCode::QueueFull)) if settled < slots.len() => {
                        let _ = slots[settled].settle(deadline).await; // the outcome is kept in the slot
                        settled += 1;
                    }
                    // The last one is confirmed slightly before its place in the queue is free.
                    Err(Failure::Failed(RDKafkaErrorCode::QueueFull))
                        if Instant::now() < deadline =>
                    {
                        sleep(QUEUE_FULL).await;
                    }
                    Err(failure) => break Slot::Done(Err(failure)),
                    Ok(future) => break Slot::Waiting(future),
                }
            };
            slots.push(slot);
        }
        let mut outcomes = Vec::with_capacity(slots.len());
        for mut slot in slots {
            outcomes.push(slot.settle(deadline).await);
        }
        outcomes
    }

    fn enqueue(&self, outgoing: &Outgoing) -> Result<DeliveryFuture, Failure> {
        let key: &str = match self.kafka.key {
            Key::GroupId => &outgoing.event.group_id,
            Key::TopicId => &outgoing.event.topic_id,
        };
        // No timestamp, so the message carries the time of sending: after a long outage the time of
        // acceptance could already be past the topic's retention.
        let record = FutureRecord::to(&self.kafka.topic.name)
            .key(key)
            .payload(&*outgoing.body)
            .headers(message::headers(outgoing));
        self.producer().send_result(record).map_err(|(error, _)| match code_of(&error) {
            RDKafkaErrorCode::MessageSizeTooLarge => Failure::Oversize,
            code => Failure::Failed(code),
        })
    }

    /// The best reason available for a failure: a fatal producer error, else the connection error that
    /// was reported, else, for a mere timeout, the state of the topic.
    async fn why_away(&self, code: RDKafkaErrorCode) -> Option<Reason> {
        if let Some(reason) = fatal(self.producer()) {
            return Some(reason);
        }
        if !matches!(reason(code, None).kind, Kind::Timeout | Kind::Unreachable) {
            return None;
        }
        match self.context.error() {
            Some(reason) => Some(reason),
            None => self.kafka.topic.weakness(self.producer(), &self.kafka.clients).await,
        }
    }

    fn verdict(
        &self,
        message: &Outgoing,
        outcome: Outcome,
        is_alone: bool,
        away: Option<&Reason>,
    ) -> Verdict {
        let bytes = message.body.len();
        match outcome {
            Ok(()) => Verdict::Delivered,
            Err(Failure::Oversize) => Verdict::Refused(Reason::new(
                Kind::TooLarge,
                format!(
                    "the event of {bytes} bytes is over message.max.bytes: raise that in \
                     [kafka.properties], and max.message.bytes of the topic {:?}",
                    self.kafka.topic.name
                ),
            )),
            // A broker refuses whole bundles of messages: one that is too large or invalid takes others
            // with it, and many small ones can be too large together.
            Err(Failure::Failed(code)) if is_of_the_batch(code) && !is_alone => {
                Verdict::Alone(reason(code, None))
            }
            Err(Failure::Failed(code)) if is_final(code) => {
                let size = format!("{}, {bytes} bytes", in_words(code));
                Verdict::Refused(reason(code, Some(&size)))
            }
            Err(Failure::Failed(code)) => {
                Verdict::Away(away.cloned().unwrap_or_else(|| reason(code, None)))
            }
        }
    }

    /// Whether the topic accepts an event as large as the largest callback.
    async fn check_limit(&self, steps: &mut Steps) {
        const POINT: &str = "size";
        let Kafka { clients, topic, patience, max_body_bytes: body, .. } = &self.kafka;
        match topic.setting(clients, "max.message.bytes", *patience).await {
            Err(why) => {
                let text =
                    format!("how large an event the topic takes cannot be known from here: {why}");
                steps.doubtful(POINT, text);
            }
            Ok(limit) if limit >= *body => {
                let text = format!("the topic takes {limit} bytes, a callback has at most {body}");
                steps.good(POINT, text);
            }
            Ok(limit) => {
                let text = format!(
                    "the topic takes {limit} bytes, and a callback may have {body}: what is larger \
                     becomes a dead letter. Raise max.message.bytes of the topic, or lower \
                     ingress.max_body_bytes"
                );
                steps.doubtful(POINT, text);
            }
        }
    }
}

impl Session for Producing {
    /// Whether a broker answers and the topic exists; creates it if so configured.
    async fn check(&mut self, steps: &mut Steps) -> Result<(), Failed> {
        let Kafka { topic, clients, patience, .. } = &self.kafka;
        let deadline = Instant::now() + *patience;
        let seen = match topic.look(self.producer(), &self.context, deadline).await {
            Ok(seen) => seen,
            Err(reason) if reason.kind == Kind::Credentials => {
                steps.good("connection", "a broker answers");
                return Err(reason.at("credentials"));
            }
            Err(reason) => return Err(reason.at("connection")),
        };
        let Seen { brokers, answered, partitions } = seen;
        steps.good("connection", format!("{answered} answers; brokers in the cluster: {brokers}"));
        steps.good("credentials", clients.credentials());
        let is_there = partitions.is_some();
        let checked = match partitions {
            Some(partitions) => topic.check(&partitions, steps),
            None if steps.is_look() => topic.would_create(brokers, steps),
            None => topic.create(self.producer(), &self.context, clients, deadline).await,
        };
        steps.go_on(checked.map_err(|reason| reason.at("topic")))?;
        if is_there && steps.is_look() {
            self.check_limit(steps).await;
        }
        self.context.forget();
        Ok(())
    }

    async fn publish(&mut self, messages: Vec<Outgoing<'_>>) -> Vec<Verdict> {
        let outcomes = self.send(&messages).await;
        let is_alone = messages.len() == 1;
        let held_up = outcomes.iter().find_map(|outcome| match outcome {
            Err(Failure::Failed(code)) if is_of_the_batch(*code) && !is_alone => None,
            Err(Failure::Failed(code)) if !is_final(*code) => Some(*code),
            _ => None,
        });
        let away = match held_up {
            Some(code) => self.why_away(code).await,
            None => {
                self.context.forget();
                None
            }
        };
        self.is_doubted = held_up.is_some();
        let outcomes = messages.iter().zip(outcomes);
        outcomes.map(|(m, o)| self.verdict(m, o, is_alone, away.as_ref())).collect()
    }

    /// After a fatal error the order of what was sent is permanently in doubt.
    fn is_sound(&self) -> bool {
        !self.is_doubted && fatal(self.producer()).is_none()
    }

    /// Nothing is in flight between two batches.
    async fn close(mut self) {
        let Some(producer) = self.producer.take() else { return };
        let _ = timeout(GOODBYE, spawn_blocking(move || drop(producer))).await;
    }
}

/// Drops what was not sent. Stopping a producer can block; only the end of the runtime waits for it.
impl Drop for Producing {
    fn drop(&mut self) {
        let Some(producer) = self.producer.take() else { return };
        producer.purge(PurgeConfig::default().queue().inflight());
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(producer))),
            Err(_) => drop(producer), // never used: it was built for its properties to be checked
        }
    }
}

impl Slot {
    /// Waits until the event is settled or the deadline has passed.
    async fn settle(&mut self, deadline: Instant) -> Outcome {
        let outcome = match self {
            Slot::Done(outcome) => return outcome.clone(),
            Slot::Waiting(future) => match timeout_at(deadline, future).await {
                Ok(Ok(Ok(_delivery))) => Ok(()),
                Ok(Ok(Err((error, _message)))) => Err(Failure::Failed(code_of(&error))),
                Ok(Err(_canceled)) => Err(Failure::Failed(code_of(&KafkaError::Canceled))),
                Err(_elapsed) => Err(Failure::Failed(RDKafkaErrorCode::MessageTimedOut)),
            },
        };
        *self = Slot::Done(outcome.clone());
        outcome
    }
}

/// Why the producer can never send again, if so: the order of what it has sent is in doubt, or it is not
/// allowed to be idempotent.
fn fatal(producer: &Producer) -> Option<Reason> {
    let (code, text) = producer.client().fatal_error()?;
    let kind = reason(code, None).kind;
    let text = format!(
        "the idempotent producer failed for good ({text}): a new one takes over and sends again what \
         was not confirmed"
    );
    Some(Reason::new(if kind == Kind::Credentials { kind } else { Kind::Other }, text))
}
