//! The sink that delivers to a Kafka topic, through librdkafka's idempotent producer. A batch is handed
//! over as a whole and then awaited as a whole; an event counts as delivered when all replicas in sync
//! have confirmed it. Nothing is left in flight when a batch ends, and no topic comes to be by accident.

mod client;
mod examine;
mod message;
mod tail;
#[cfg(test)]
mod tests;
mod topic;
mod verdict;

use std::time::Duration;

use anyhow::Context as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryFuture, FutureRecord, Producer as _, PurgeConfig};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Kind, Reason, Verdict};
use crate::config::{Config, KafkaKey};
use crate::event::Encoding;
use crate::outbox::Stored;
use client::{Clients, Context, Producer};
pub(super) use examine::examine;
pub(super) use tail::tail;
use topic::Topic;
use verdict::{code_of, in_words, is_of_the_batch, reason};

/// How long `close` waits for what a dropped batch left behind…
const FLUSH: Duration = Duration::from_secs(1);

/// …and for the client to end its threads.
const GOODBYE: Duration = Duration::from_secs(2);

pub(crate) struct Kafka {
    clients: Clients,
    topic: Topic,
    key: KafkaKey,
    encoding: Encoding,
    confirm_timeout: Duration,
    /// None after a failure: the next one is built when it is needed.
    producer: Option<Producer>,
    context: Context,
    /// Whether the topic was seen, by this producer, since events were last held up.
    is_ready: bool,
}

/// How long a full queue with nothing unconfirmed in it is given.
const QUEUE_FULL: Duration = Duration::from_millis(1);

/// What became of one event at one attempt.
type Outcome = Result<(), Failure>;

#[derive(Debug, Clone, PartialEq)]
enum Failure {
    /// Larger than `message.max.bytes`, so it was not even tried.
    Oversize,
    Failed(RDKafkaErrorCode),
}

/// An event on its way.
enum Slot {
    Waiting(DeliveryFuture),
    Done(Outcome),
}

impl Kafka {
    /// Builds the first producer at once, for only librdkafka knows what it takes for its properties.
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let clients = Clients::new(config);
        clients.check().context("[kafka.properties]")?;
        let context = Context::default();
        let producer = clients.producer(context.clone()).context("[kafka]")?;
        Ok(Kafka {
            clients,
            topic: Topic::new(&config.kafka),
            key: config.kafka.key,
            encoding: config.encoding,
            confirm_timeout: config.relay.confirm_timeout,
            producer: Some(producer),
            context,
            is_ready: false,
        })
    }

    /// Whether a broker answers and the topic is there; creates it if the configuration says so.
    pub(super) async fn ready(&mut self) -> Result<(), Reason> {
        self.is_ready = false;
        let producer = self.producer()?;
        if let Some(reason) = fatal(&producer) {
            self.discard(producer);
            return Err(reason);
        }
        let deadline = Instant::now() + self.confirm_timeout;
        let found = self.topic.ensure(&producer, &self.context, &self.clients, deadline).await;
        if let Err(reason) = found {
            if !matches!(reason.kind, Kind::Topology | Kind::Blocked) {
                // It may not notice that the broker is back: one was seen to miss it for half a minute.
                self.discard(producer);
            }
            return Err(reason);
        }
        self.context.forget_trouble();
        self.is_ready = true;
        Ok(())
    }

    pub(super) async fn deliver(&mut self, events: &[Stored]) -> Vec<Verdict> {
        if !self.is_ready
            && let Err(reason) = self.ready().await
        {
            return vec![Verdict::Away(reason); events.len()];
        }
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(reason) => return vec![Verdict::Away(reason); events.len()],
        };
        let deadline = Instant::now() + self.confirm_timeout;
        let mut outcomes = self.publish(&producer, events, deadline).await;
        if events.len() > 1 {
            self.publish_alone(&producer, events, &mut outcomes, deadline).await;
        }
        self.judge(producer, events, outcomes).await
    }

    /// Hands all events over, then waits for all of them. A full queue is waited for, too.
    async fn publish(
        &self,
        producer: &Producer,
        events: &[Stored],
        deadline: Instant,
    ) -> Vec<Outcome> {
        let mut slots: Vec<Slot> = Vec::with_capacity(events.len());
        let mut settled = 0;
        for event in events {
            let slot = loop {
                match self.enqueue(producer, event) {
                    Err(Failure::Failed(RDKafkaErrorCode::QueueFull)) if settled < slots.len() => {
                        let _ = slots[settled].settle(deadline).await; // kept in the slot
                        settled += 1;
                    }
                    // The last one is confirmed a moment before its place in the queue is free.
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

    /// A broker refuses messages by the bundle in which they come: one that is too large or invalid
    /// takes others with it, and many small ones can be too large together. So whoever was refused in
    /// company is tried once more without. At the first trouble of another kind the rest has to wait.
    async fn publish_alone(
        &self,
        producer: &Producer,
        events: &[Stored],
        outcomes: &mut [Outcome],
        deadline: Instant,
    ) {
        let mut is_away = false;
        for (event, outcome) in events.iter().zip(outcomes) {
            let Err(Failure::Failed(code)) = *outcome else { continue };
            if !is_of_the_batch(code) {
                continue;
            }
            *outcome = if is_away {
                Err(Failure::Failed(RDKafkaErrorCode::MessageTimedOut))
            } else {
                self.publish(producer, std::slice::from_ref(event), deadline).await.remove(0)
            };
            is_away |= matches!(outcome, Err(Failure::Failed(code)) if !is_of_the_batch(*code));
        }
    }

    fn enqueue(&self, producer: &Producer, stored: &Stored) -> Result<DeliveryFuture, Failure> {
        let event = &stored.event;
        let traceparent = match &stored.traceparent {
            Some(traceparent) => traceparent.clone(),
            None => event.own_traceparent(),
        };
        let key: &str = match self.key {
            KafkaKey::GroupId => &event.group_id,
            KafkaKey::TopicId => &event.topic_id,
        };
        let body = event.body(self.encoding);
        // Without a timestamp the message carries the time of sending: after a long outage the time of
        // acceptance could already lie beyond the topic's retention.
        let record = FutureRecord::to(&self.topic.name)
            .key(key)
            .payload(&*body)
            .headers(message::headers(event, self.encoding, &traceparent));
        producer.send_result(record).map_err(|(error, _)| match code_of(&error) {
            RDKafkaErrorCode::MessageSizeTooLarge => Failure::Oversize,
            code => Failure::Failed(code),
        })
    }

    /// Makes verdicts of outcomes, and gets rid of a producer that could not deliver.
    async fn judge(
        &mut self,
        producer: Producer,
        events: &[Stored],
        outcomes: Vec<Outcome>,
    ) -> Vec<Verdict> {
        let held_up = outcomes.iter().find_map(|outcome| match outcome {
            Err(Failure::Failed(code)) if !verdict::is_final(*code) => Some(*code),
            _ => None,
        });
        let Some(code) = held_up else {
            self.context.forget_trouble();
            return events.iter().zip(outcomes).map(|(e, o)| self.verdict(e, o, None)).collect();
        };
        let away = self.why_away(&producer, code).await;
        let verdicts = events.iter().zip(outcomes);
        let verdicts = verdicts.map(|(e, o)| self.verdict(e, o, away.as_ref())).collect();
        // What is still in there would be sent late, behind its own repetition.
        self.discard(producer);
        verdicts
    }

    /// The best reason to be had for a failure: what is wrong with the producer as a whole, else the
    /// connection trouble that it told of, else, where it only waited in vain, how the topic is.
    async fn why_away(&self, producer: &Producer, code: RDKafkaErrorCode) -> Option<Reason> {
        if let Some(reason) = fatal(producer) {
            return Some(reason);
        }
        if !matches!(reason(code, None).kind, Kind::Timeout | Kind::Unreachable) {
            return None;
        }
        match self.context.trouble() {
            Some(reason) => Some(reason),
            None => self.topic.weakness(producer, &self.clients).await,
        }
    }

    fn verdict(&self, event: &Stored, outcome: Outcome, away: Option<&Reason>) -> Verdict {
        match outcome {
            Ok(()) => Verdict::Delivered,
            Err(Failure::Oversize) => Verdict::Refused(Reason::new(
                Kind::TooLarge,
                format!(
                    "the event of {} bytes is over message.max.bytes: raise that in \
                     [kafka.properties], and max.message.bytes of the topic {:?}",
                    event.event.body(self.encoding).len(),
                    self.topic.name
                ),
            )),
            Err(Failure::Failed(code)) if verdict::is_final(code) => {
                let size =
                    format!("{}, {} bytes", in_words(code), event.event.body(self.encoding).len());
                Verdict::Refused(reason(code, Some(&size)))
            }
            Err(Failure::Failed(code)) => {
                Verdict::Away(away.cloned().unwrap_or_else(|| reason(code, None)))
            }
        }
    }

    /// The producer, a new one if there is none.
    fn producer(&mut self) -> Result<Producer, Reason> {
        if let Some(producer) = &self.producer {
            return Ok(producer.clone());
        }
        self.is_ready = false;
        self.context = Context::default();
        let producer = self.clients.producer(self.context.clone()).map_err(|error| {
            Reason::new(Kind::Other, format!("cannot build the Kafka client: {error:#}"))
        })?;
        Ok(self.producer.insert(producer).clone())
    }

    /// Takes back what the producer has not sent, and ends it. That can block, and nobody needs to wait
    /// for it.
    fn discard(&mut self, producer: Producer) {
        self.is_ready = false;
        producer.purge(PurgeConfig::default().queue().inflight());
        let all = (self.producer.take(), producer);
        spawn_blocking(move || drop(all));
    }

    /// After a batch that was dropped midway, gives what is in flight a moment to arrive.
    pub(super) async fn close(mut self: Box<Self>) {
        let Some(producer) = self.producer.take() else { return };
        let closed = spawn_blocking(move || {
            if let Err(error) = producer.flush(FLUSH) {
                tracing::debug!(%error, "not everything was confirmed: the next start sends it again");
            }
        });
        let _ = timeout(GOODBYE, closed).await;
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

/// Why the producer can never send again, if that is so: the order of what it has sent is in doubt, or
/// it may not be idempotent.
fn fatal(producer: &Producer) -> Option<Reason> {
    let (code, text) = producer.client().fatal_error()?;
    let kind = reason(code, None).kind;
    let text = format!(
        "the idempotent producer failed for good ({text}): a new one takes over and sends again what \
         was not confirmed"
    );
    Some(Reason::new(if kind == Kind::Credentials { kind } else { Kind::Other }, text))
}
