//! What `check --connect` sees of Kafka. It changes nothing there: a missing topic stays missing.

use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::client::{Clients, Context, describe};
use super::topic::{Partition, Seen, Topic};
use crate::config::Config;
use crate::sink::{Finding, Health, Kind, Reason};

pub(in crate::sink) async fn examine(config: &Config) -> Vec<Finding> {
    let clients = Clients::new(config);
    let context = Context::default();
    let built = clients.check().and_then(|()| clients.producer(context.clone()));
    let producer = match built {
        Ok(producer) => producer,
        Err(error) => return vec![bad("properties", format!("[kafka.properties]: {error:#}"))],
    };
    let topic = Topic::new(&config.kafka);
    let deadline = Instant::now() + config.relay.confirm_timeout;
    let seen = topic.look(&producer, &context, deadline).await;
    spawn_blocking(move || drop(producer)); // waits for its threads
    let mut findings = Vec::new();
    let seen = match seen {
        Ok(seen) => seen,
        Err(Reason { kind: Kind::Credentials, text }) => {
            findings.push(good("connection", "a broker answers".into()));
            findings.push(bad("credentials", text));
            return findings;
        }
        Err(Reason { text, .. }) => {
            findings.push(bad("connection", text));
            return findings;
        }
    };
    let Seen { brokers, answered, partitions } = seen;
    let (noun, verb) = if brokers == 1 { ("broker", "is") } else { ("brokers", "are") };
    findings.push(good("connection", format!("{answered} answers; {brokers} {noun} {verb} known")));
    findings.push(good("credentials", credentials(&clients)));
    let is_there = partitions.is_some();
    findings.push(match partitions {
        Some(partitions) => whole(&topic, &partitions),
        None => missing(&topic, brokers),
    });
    if is_there {
        findings.push(limit(config, &clients, &topic).await);
    }
    findings
}

fn credentials(clients: &Clients) -> String {
    let protocol = clients.configured("security.protocol").unwrap_or("plaintext").to_lowercase();
    let user = clients.configured("sasl.username").unwrap_or("this user");
    match protocol.as_str() {
        "sasl_ssl" | "sasl_plaintext" => format!("the broker lets {user} in ({protocol})"),
        "ssl" => "none but TLS certificates are in use (ssl)".into(),
        _ => "none are configured, and none were asked for".into(),
    }
}

fn whole(topic: &Topic, partitions: &[Partition]) -> Finding {
    let replicas = partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0);
    let text =
        format!("{:?} has {} partitions, replicas: {replicas}", topic.name, partitions.len());
    let leaderless: Vec<_> =
        partitions.iter().filter(|p| !p.has_leader).map(|p| p.id.to_string()).collect();
    if !leaderless.is_empty() {
        let ids = leaderless.join(", ");
        return bad("topic", format!("{text}; without a leader: {ids}. Bring their brokers back"));
    }
    match partitions.iter().find(|partition| partition.in_sync < partition.replicas) {
        None => good("topic", text),
        Some(weak) => doubtful(
            "topic",
            format!("{text}; partition {} has only {} of them in sync", weak.id, weak.in_sync),
        ),
    }
}

fn missing(topic: &Topic, brokers: usize) -> Finding {
    let Some((partitions, replication)) = topic.create else {
        return bad("topic", topic.missing());
    };
    let text = format!("{:?} is missing", topic.name);
    if usize::try_from(replication).is_ok_and(|replication| replication > brokers) {
        let text = format!(
            "{text}, and cannot be created: kafka.replication is {replication}, and {brokers} brokers \
             are known"
        );
        return bad("topic", text);
    }
    let text = format!(
        "{text}: the bridge creates it at its start, with {partitions} partitions, replicas: {replication}"
    );
    doubtful("topic", text)
}

/// Whether the topic takes the largest callback that the bridge takes.
async fn limit(config: &Config, clients: &Clients, topic: &Topic) -> Finding {
    const POINT: &str = "size";
    let unknown = |why: String| {
        doubtful(
            POINT,
            format!("how large an event the topic takes cannot be known from here: {why}"),
        )
    };
    let admin = match clients.admin() {
        Ok(admin) => admin,
        Err(error) => return unknown(format!("{error:#}")),
    };
    let options = AdminOptions::new().request_timeout(Some(config.relay.confirm_timeout));
    let described =
        admin.describe_configs([&ResourceSpecifier::Topic(&topic.name)], &options).await;
    spawn_blocking(move || drop(admin)); // waits for its threads
    let described = match described.map(|mut resources| resources.pop()) {
        Ok(Some(Ok(resource))) => resource,
        Ok(Some(Err(code))) => return unknown(code.to_string()),
        Ok(None) => return unknown("the broker does not say".into()),
        Err(error) => return unknown(describe(&error).text),
    };
    let limit = described.get("max.message.bytes").and_then(|entry| entry.value.as_deref());
    let Some(limit) = limit.and_then(|value| value.parse::<u64>().ok()) else {
        return unknown("the broker does not say".into());
    };
    let body = config.ingress.max_body_bytes;
    if limit >= body {
        return good(
            POINT,
            format!("the topic takes {limit} bytes, a callback has at most {body}"),
        );
    }
    doubtful(
        POINT,
        format!(
            "the topic takes {limit} bytes, and a callback may have {body}: what is larger becomes a \
             dead letter. Raise max.message.bytes of the topic, or lower ingress.max_body_bytes"
        ),
    )
}

fn good(point: &'static str, text: String) -> Finding {
    Finding { point, verdict: Health::Good, text }
}

fn doubtful(point: &'static str, text: String) -> Finding {
    Finding { point, verdict: Health::Doubtful, text }
}

fn bad(point: &'static str, text: String) -> Finding {
    Finding { point, verdict: Health::Bad, text }
}
