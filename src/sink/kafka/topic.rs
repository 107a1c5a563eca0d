//! The topic: whether it exists and is healthy, and its creation. librdkafka blocks while it asks, so
//! this happens on a blocking thread, in short attempts: a new connection is used at once, and one that
//! is known to fail is not waited for.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::super::session::Steps;
use super::client::{Clients, Context, Producer};
use super::config::Config;
use super::errors::{code_of, in_words, reason};
use crate::verdict::{Kind, Reason};

/// The first attempt, long enough for a new connection with TLS and SASL; each further one is longer…
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// …but none is so long that stopping would have to wait for it.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// How often to look for a newly created topic.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub(super) struct Topic {
    pub(super) name: String,
    pub(super) brokers: String,
    /// Partitions and replication factor, if it may be created.
    pub(super) create: Option<(i32, i32)>,
}

/// What a broker reports.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) brokers: usize,
    /// The broker that answered.
    pub(super) answered: String,
    /// `None` if the topic is missing.
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
    pub(super) fn new(config: &Config) -> Self {
        let create = config.create_topic;
        Topic { name: config.topic.clone(), brokers: config.brokers.clone(), create }
    }

    /// Whether an existing topic can accept events. Partitions and replicas that differ from the
    /// configuration are not a fault: those settings only apply when the topic is created.
    pub(super) fn check(&self, partitions: &[Partition], steps: &mut Steps) -> Result<(), Reason> {
        let replicas = partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0);
        let text =
            format!("{:?} has {} partitions, replicas: {replicas}", self.name, partitions.len());
        let leaderless = partitions.iter().filter(|partition| !partition.has_leader);
        let leaderless: Vec<_> = leaderless.map(|partition| partition.id.to_string()).collect();
        if steps.is_look() && !leaderless.is_empty() {
            let ids = leaderless.join(", ");
            let text = format!("{text}; without a leader: {ids}. Bring their brokers back");
            return Err(Reason::new(Kind::Blocked, text));
        }
        self.has_a_leader(partitions)?;
        match partitions.iter().find(|partition| partition.in_sync < partition.replicas) {
            None => steps.good("topic", text),
            Some(weak) => {
                let Partition { id, in_sync, .. } = weak;
                let text = format!("{text}; partition {id} has only {in_sync} of them in sync");
                steps.doubtful("topic", text);
            }
        }
        Ok(())
    }

    /// For a missing topic, reports what [`Topic::create`] would do.
    pub(super) fn would_create(&self, brokers: usize, steps: &mut Steps) -> Result<(), Reason> {
        let Some((partitions, replication)) = self.create else {
            return Err(Reason::new(Kind::Topology, self.missing()));
        };
        let text = format!("{:?} is missing", self.name);
        if usize::try_from(replication).is_ok_and(|replication| replication > brokers) {
            let text = format!(
                "{text}, and cannot be created: kafka.replication is {replication}, brokers in the \
                 cluster: {brokers}"
            );
            return Err(Reason::new(Kind::Topology, text));
        }
        let text = format!(
            "{text}: the bridge creates it at its start, with {partitions} partitions, replicas: \
             {replication}"
        );
        steps.doubtful("topic", text);
        Ok(())
    }

    /// Creates a missing topic, and waits until it exists.
    pub(super) async fn create(
        &self,
        producer: &Producer,
        context: &Context,
        clients: &Clients,
        deadline: Instant,
    ) -> Result<(), Reason> {
        let Some((partitions, replication)) = self.create else {
            return Err(Reason::new(Kind::Topology, self.missing()));
        };
        self.ask_for(clients, partitions, replication, deadline).await?;
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

    /// Asks any broker that answers. An error concerns the connection or this user.
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
            if let Some(found) = context.error_of_all() {
                return Err(found);
            }
            if Instant::now() >= deadline {
                let nobody = RDKafkaErrorCode::BrokerTransportFailure;
                let detail = format!("no answer from {}", self.brokers);
                return Err(context.error().unwrap_or_else(|| reason(nobody, Some(&detail))));
            }
            patience = (patience * 2).min(LONGEST_LOOK);
        }
    }

    /// What may keep the broker from confirming, as far as a quick look at the topic shows: while too few
    /// replicas are in sync, librdkafka keeps retrying silently.
    pub(super) async fn weakness(&self, producer: &Producer, clients: &Clients) -> Option<Reason> {
        let (producer, name) = (producer.clone(), self.name.clone());
        let seen = spawn_blocking(move || look(producer.client(), &name, FIRST_LOOK)).await;
        let partitions = seen.expect("looking does not panic").ok()?.partitions?;
        if let Err(reason) = self.has_a_leader(&partitions) {
            return Some(reason);
        }
        let wanted = self.setting(clients, "min.insync.replicas", FIRST_LOOK).await;
        let wanted = wanted.ok().and_then(|wanted| usize::try_from(wanted).ok());
        let is_weak = |partition: &&Partition| {
            // The broker never requires more in-sync replicas than there are replicas.
            let wanted = wanted.unwrap_or(partition.replicas).min(partition.replicas);
            partition.in_sync < wanted || !partition.has_leader
        };
        let weak = partitions.iter().find(is_weak)?;
        let wanted = wanted.map_or_else(|| "unknown".into(), |wanted| wanted.to_string());
        let detail = format!(
            "partition {} of {:?}: in sync {} of {}, min.insync.replicas {wanted}",
            weak.id, self.name, weak.in_sync, weak.replicas
        );
        let code = match weak.has_leader {
            true => RDKafkaErrorCode::NotEnoughReplicas,
            false => RDKafkaErrorCode::LeaderNotAvailable,
        };
        Some(reason(code, Some(&detail)))
    }

    /// A numeric setting of the topic. The error is for the operator.
    pub(super) async fn setting(
        &self,
        clients: &Clients,
        name: &str,
        patience: Duration,
    ) -> Result<u64, String> {
        let admin = clients.admin().map_err(|error| format!("{error:#}"))?;
        let options = AdminOptions::new().request_timeout(Some(patience));
        let topic = ResourceSpecifier::Topic(&self.name);
        let described = admin.describe_configs([&topic], &options).await;
        spawn_blocking(move || drop(admin)); // waits for its threads
        let described = match described.map(|mut resources| resources.pop()) {
            Ok(Some(Ok(resource))) => resource,
            Ok(Some(Err(code))) => return Err(in_words(code)),
            Ok(None) => return Err("the broker does not say".into()),
            Err(error) => return Err(in_words(code_of(&error))),
        };
        let value = described.get(name).and_then(|entry| entry.value.as_deref());
        let value = value.and_then(|value| value.parse().ok());
        value.ok_or_else(|| "the broker does not say".into())
    }

    /// One leader is enough to proceed; an event that waits for another leader gets that error from the
    /// producer.
    fn has_a_leader(&self, partitions: &[Partition]) -> Result<(), Reason> {
        if partitions.iter().any(|partition| partition.has_leader) {
            return Ok(());
        }
        let detail = format!("all {} partitions of {:?}", partitions.len(), self.name);
        Err(reason(RDKafkaErrorCode::LeaderNotAvailable, Some(&detail)))
    }

    async fn ask_for(
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
                "the topic {:?} is missing, and this user may not create it ({}): allow it Create, \
                 or create it with `{}`",
                self.name,
                in_words(code),
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

    fn command(&self) -> String {
        let (partitions, replication) = self.create.unwrap_or((3, 1));
        format!(
            "kafka-topics.sh --bootstrap-server {} --create --topic {} --partitions {partitions} \
             --replication-factor {replication}",
            self.brokers, self.name
        )
    }
}

/// Blocks. Asking does not create the topic: see `allow.auto.create.topics`.
fn look(client: &Client<impl ClientContext>, name: &str, patience: Duration) -> KafkaResult<Seen> {
    let metadata = client.fetch_metadata(Some(name), patience)?;
    // "kafka:9092/1", with the broker's number, or "kafka:9092/bootstrap".
    let answered = metadata.orig_broker_name();
    let mut seen = Seen {
        brokers: metadata.brokers().len(),
        answered: answered.rsplit_once('/').map_or(answered, |(address, _)| address).to_owned(),
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
        // Some partition has no leader: handled per partition below.
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
