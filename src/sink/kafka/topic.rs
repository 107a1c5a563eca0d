//! The topic: whether it is there and whole, and its creation. Looking blocks in librdkafka, so it is
//! done on a blocking thread, in short looks: a connection that comes up is used at once, and one that
//! is known to fail is not waited for.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::client::{Clients, Context, Producer};
use super::verdict::{code_of, reason};
use crate::config;
use crate::sink::{Kind, Reason};

/// The first look, long enough for a new connection with TLS and SASL; each further one is longer…
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// …but none is so long that stopping would have to wait for it.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// How often to look for a topic that was just created.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub(super) struct Topic {
    pub(super) name: String,
    brokers: String,
    /// Partitions and replication, if it may be created.
    pub(super) create: Option<(i32, i32)>,
}

/// What a broker says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) brokers: usize,
    /// The broker that answered.
    pub(super) answered: String,
    /// None if the topic is missing.
    pub(super) partitions: Option<Vec<Partition>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Partition {
    pub(super) id: i32,
    pub(super) has_leader: bool,
    pub(super) replicas: usize,
    pub(super) in_sync: usize,
}

impl Topic {
    pub(super) fn new(config: &config::Kafka) -> Self {
        let create = config.create_topic;
        Topic { name: config.topic.clone(), brokers: config.brokers.clone(), create }
    }

    /// Makes sure that the topic is there. Partitions and replicas other than the configured ones are
    /// no fault: they are for the topic's creation only.
    pub(super) async fn ensure(
        &self,
        producer: &Producer,
        context: &Context,
        clients: &Clients,
        deadline: Instant,
    ) -> Result<(), Reason> {
        let seen = self.look(producer, context, deadline).await?;
        if let Some(partitions) = seen.partitions {
            return self.has_a_leader(&partitions);
        }
        let Some((partitions, replication)) = self.create else {
            return Err(Reason::new(Kind::Topology, self.missing()));
        };
        self.create(clients, partitions, replication, deadline).await?;
        loop {
            let seen = self.look(producer, context, deadline).await?;
            let partitions = seen.partitions.unwrap_or_default();
            if !partitions.is_empty() && partitions.iter().all(|partition| partition.has_leader) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let what = format!("the topic {:?} was created, but is not there yet", self.name);
                return Err(Reason::new(Kind::Topology, what));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Asks whichever broker answers. An error is about the connection, or this user.
    pub(super) async fn look(
        &self,
        producer: &Producer,
        context: &Context,
        deadline: Instant,
    ) -> Result<Seen, Reason> {
        let mut patience = FIRST_LOOK;
        loop {
            let (producer, name) = (producer.clone(), self.name.clone());
            let left = deadline.saturating_duration_since(Instant::now());
            let patience_now = patience.min(left).max(Duration::from_millis(1));
            let seen = spawn_blocking(move || look(producer.client(), &name, patience_now)).await;
            let error = match seen.expect("looking does not panic") {
                Ok(seen) => return Ok(seen),
                Err(error) => error,
            };
            let code = code_of(&error);
            let found = reason(code, None);
            let is_silence = matches!(found.kind, Kind::Timeout | Kind::Unreachable);
            if !is_silence {
                return Err(found);
            }
            if let Some(hopeless) = context.hopeless() {
                return Err(hopeless);
            }
            if Instant::now() >= deadline {
                let nobody = RDKafkaErrorCode::BrokerTransportFailure;
                let detail = format!("no answer from {}", self.brokers);
                return Err(context.trouble().unwrap_or_else(|| reason(nobody, Some(&detail))));
            }
            patience = (patience * 2).min(LONGEST_LOOK);
        }
    }

    /// What about the topic may keep the broker from confirming, as far as one short look tells.
    pub(super) async fn weakness(&self, producer: &Producer) -> Option<Reason> {
        let (producer, name) = (producer.clone(), self.name.clone());
        let seen = spawn_blocking(move || look(producer.client(), &name, FIRST_LOOK)).await;
        let partitions = seen.expect("looking does not panic").ok()?.partitions?;
        self.has_a_leader(&partitions).err().or_else(|| {
            let weak =
                partitions.iter().find(|partition| partition.in_sync < partition.replicas)?;
            let detail = format!(
                "partition {} of {:?} has {} of its {} replicas in sync, and does not confirm",
                weak.id, self.name, weak.in_sync, weak.replicas
            );
            Some(reason(RDKafkaErrorCode::NotEnoughReplicas, Some(&detail)))
        })
    }

    /// One leader is enough to go on with: who waits for another one learns so from the producer.
    fn has_a_leader(&self, partitions: &[Partition]) -> Result<(), Reason> {
        if partitions.iter().any(|partition| partition.has_leader) {
            return Ok(());
        }
        let detail = format!("all {} partitions of {:?}", partitions.len(), self.name);
        Err(reason(RDKafkaErrorCode::LeaderNotAvailable, Some(&detail)))
    }

    async fn create(
        &self,
        clients: &Clients,
        partitions: i32,
        replication: i32,
        deadline: Instant,
    ) -> Result<(), Reason> {
        let other = |text: String| Reason::new(Kind::Other, text);
        let admin = clients
            .admin()
            .map_err(|error| other(format!("cannot build the Kafka client: {error:#}")))?;
        let left = deadline.saturating_duration_since(Instant::now()).max(FIRST_LOOK);
        let options = AdminOptions::new().request_timeout(Some(left)).operation_timeout(Some(left));
        let topic = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(replication));
        let created = admin.create_topics([&topic], &options).await;
        spawn_blocking(move || drop(admin)); // waits for its threads
        let code = match created.map(|mut results| results.pop()) {
            Ok(None | Some(Ok(_))) => {
                let topic = &self.name;
                tracing::info!(topic, partitions, replication, "created the missing Kafka topic");
                return Ok(());
            }
            Ok(Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists)))) => return Ok(()),
            Ok(Some(Err((_, code)))) => code,
            Err(KafkaError::AdminOpCreation(text)) => {
                return Err(Reason::new(Kind::Topology, format!("{}: {text}", self.missing())));
            }
            Err(error) => code_of(&error),
        };
        let found = reason(code, None);
        let text = match found.kind {
            Kind::Credentials => format!(
                "the topic {:?} is missing, and this user may not create it ({code}): allow it Create, \
                 or create it with `{}`",
                self.name,
                self.command()
            ),
            _ => format!(
                "the topic {:?} is missing, and cannot be created with {partitions} partitions on \
                 {replication} brokers each: {}",
                self.name, found.text
            ),
        };
        Err(Reason::new(found.kind, text))
    }

    pub(super) fn missing(&self) -> String {
        format!(
            "the topic {:?} is missing: create it with `{}`, or set kafka.create_topic = true",
            self.name,
            self.command()
        )
    }

    pub(super) fn command(&self) -> String {
        let (partitions, replication) = self.create.unwrap_or((3, 1));
        format!(
            "kafka-topics.sh --bootstrap-server {} --create --topic {} --partitions {partitions} \
             --replication-factor {replication}",
            self.brokers, self.name
        )
    }
}

/// Blocks. Asking does not create the topic: see `allow.auto.create.topics`.
pub(super) fn look(
    client: &Client<impl ClientContext>,
    name: &str,
    patience: Duration,
) -> KafkaResult<Seen> {
    let metadata = client.fetch_metadata(Some(name), patience)?;
    let mut seen = Seen {
        brokers: metadata.brokers().len(),
        answered: metadata.orig_broker_name().to_owned(),
        partitions: None,
    };
    let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
        return Ok(seen);
    };
    match topic.error().map(RDKafkaErrorCode::from) {
        None => {}
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            return Ok(seen);
        }
        // Some partition has no leader: which one is told below.
        Some(RDKafkaErrorCode::LeaderNotAvailable) => {}
        Some(code) => return Err(KafkaError::MetadataFetch(code)),
    }
    let partitions = topic.partitions().iter().map(|partition| Partition {
        id: partition.id(),
        has_leader: partition.leader() >= 0,
        replicas: partition.replicas().len(),
        in_sync: partition.isr().len(),
    });
    seen.partitions = Some(partitions.collect());
    Ok(seen)
}
