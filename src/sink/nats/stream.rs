//! The JetStream stream: created if it is missing and that is allowed, otherwise checked. What makes
//! delivery impossible is an error; what weakens it is a doubt, which is only reported.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, RetentionPolicy, StorageType};

use super::super::session::Steps;
use super::Config;
use crate::time::Timestamp;
use crate::verdict::{Kind, Reason};

/// A larger clock difference is reported: event times would look wrong to consumers.
const MAX_SKEW: Duration = Duration::from_secs(2);

/// Makes sure that the stream exists.
pub(super) async fn check(
    context: &Context,
    config: &Config,
    steps: &mut Steps,
) -> Result<(), Reason> {
    let Some(found) = find(context, &config.stream).await? else {
        return match config.create_stream {
            false => Err(Reason::new(Kind::Topology, missing(config))),
            true if steps.is_look() => {
                if let Some(other) = owner(context, &config.subject.pattern()).await {
                    return Err(Reason::new(Kind::Topology, taken(config, &other)));
                }
                let text =
                    format!("{} is missing: the bridge creates it at its start", config.stream);
                steps.doubtful("stream", text); // whether it may cannot be known without trying
                Ok(())
            }
            true => create(context, config).await,
        };
    };
    let doubts = doubts(&found, config)?;
    let text = format!(
        "{} takes {}, {} replicas, forgets ids after {:?}",
        found.name,
        found.subjects.join(", "),
        found.num_replicas,
        found.duplicate_window
    );
    steps.good("stream", text);
    for doubt in doubts {
        steps.doubtful("stream", doubt);
    }
    if steps.is_look() {
        compare_clocks(context, config, steps).await;
    }
    Ok(())
}

/// Compares the server's clock with ours, if it reports the time: from 2.10 on, its answers carry a
/// timestamp.
async fn compare_clocks(context: &Context, config: &Config, steps: &mut Steps) {
    let request = format!("STREAM.INFO.{}", config.stream);
    let asked = Timestamp::now();
    let answer: Result<serde_json::Value, _> = context.request(request, &()).await;
    let answered = Timestamp::now();
    let stamp =
        answer.ok().and_then(|answer| Timestamp::parse_rfc3339(answer["ts"].as_str()?).ok());
    let Some(stamp) = stamp else {
        return steps.good("clock", "not compared: servers before 2.10 do not report their time");
    };
    let skew = if stamp < asked { asked.since(stamp) } else { stamp.since(answered) };
    if skew > MAX_SKEW {
        let text = format!("differs from the server's by {} ms: set both by NTP", skew.as_millis());
        steps.doubtful("clock", text);
    } else {
        let within = skew + answered.since(asked);
        steps.good("clock", format!("within {} ms of the server's", within.as_millis()));
    }
}

fn missing(config: &Config) -> String {
    format!(
        "there is no stream {stream}; create it with `nats stream add {stream} --subjects '{subjects}' \
         --storage file --dupe-window {window}s --defaults`, or set nats.create_stream = true",
        stream = config.stream,
        subjects = config.subject.pattern(),
        window = config.duplicate_window.as_secs(),
    )
}

/// The stream's configuration, if it exists.
async fn find(context: &Context, name: &str) -> Result<Option<stream::Config>, Reason> {
    match context.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(refusal)
                if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            GetStreamErrorKind::JetStream(refusal) => Err(refused(&refusal)),
            _ => Err(no_answer(&error.to_string())),
        },
    }
}

fn refused(refusal: &async_nats::jetstream::Error) -> Reason {
    match refusal.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            let text = format!("{refusal}: enable JetStream on the server, or for this account");
            Reason::new(Kind::Topology, text)
        }
        ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::CLUSTER_NOT_LEADER => {
            Reason::new(Kind::Blocked, format!("{refusal}: is a majority of the servers up?"))
        }
        _ => Reason::new(Kind::Topology, refusal.to_string()),
    }
}

fn no_answer(error: &str) -> Reason {
    if error.contains("no responders") || error.contains("does not exist") {
        let text =
            "the server has no JetStream: enable it (`nats-server -js`, or a jetstream block)";
        return Reason::new(Kind::Topology, text);
    }
    let text =
        format!("no answer about the stream: {error}; is the server overloaded, or stopped?");
    Reason::new(Kind::Timeout, text)
}

async fn create(context: &Context, config: &Config) -> Result<(), Reason> {
    let wanted = stream::Config {
        name: config.stream.clone(),
        description: Some("Topics created, published by topic-bridge".into()),
        subjects: vec![config.subject.pattern()],
        storage: StorageType::File,
        num_replicas: config.replicas,
        duplicate_window: config.duplicate_window,
        max_age: config.max_age,
        ..stream::Config::default()
    };
    match context.create_stream(wanted).await {
        Ok(_) => {
            tracing::info!(
                stream = config.stream,
                subjects = config.subject.pattern(),
                replicas = config.replicas,
                "created the stream"
            );
            Ok(())
        }
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::JetStream(refusal)
                if refusal.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP =>
            {
                let other = owner(context, &config.subject.pattern()).await;
                let other = other.as_deref().unwrap_or("another one");
                Reason::new(Kind::Topology, taken(config, other))
            }
            CreateStreamErrorKind::JetStream(refusal) => {
                let Reason { kind, text } = refused(&refusal);
                let stream = &config.stream;
                Reason::new(kind, format!("cannot create the stream {stream}: {text}"))
            }
            _ => no_answer(&error.to_string()),
        }),
    }
}

/// The stream that takes these subjects, or some of them, if there is one.
async fn owner(context: &Context, subjects: &str) -> Option<String> {
    let request = serde_json::json!({ "subject": subjects });
    let answer: serde_json::Value = context.request("STREAM.NAMES", &request).await.ok()?;
    answer["streams"].get(0)?.as_str().map(str::to_owned)
}

fn taken(config: &Config, other: &str) -> String {
    format!(
        "cannot create the stream {}: {other} has the subjects {}, or some of them, already; set nats.stream = \
         {other:?}, or choose another nats.subject",
        config.stream,
        config.subject.pattern()
    )
}

/// What weakens an existing stream; an error if it cannot carry the events.
fn doubts(found: &stream::Config, config: &Config) -> Result<Vec<String>, Reason> {
    let pattern = config.subject.pattern();
    let name = &config.stream;
    let topology = |text: String| Err(Reason::new(Kind::Topology, text));
    if !found.subjects.iter().any(|filter| covers(filter, &pattern)) {
        return topology(format!(
            "the stream {name} takes {}, and the events go to {pattern}: `nats stream edit {name} \
             --subjects '{}'`, or change nats.subject",
            found.subjects.join(", "),
            found
                .subjects
                .iter()
                .chain([&pattern])
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(","),
        ));
    }
    if found.no_ack {
        return topology(format!(
            "the stream {name} acknowledges nothing (no_ack), so nothing would count as delivered: \
             `nats stream edit {name} --ack`"
        ));
    }
    if found.sealed {
        return topology(format!("the stream {name} is sealed and takes nothing: name another"));
    }
    let mut doubts = Vec::new();
    if found.duplicate_window < config.duplicate_window {
        doubts.push(format!(
            "the stream forgets ids after {:?}, nats.duplicate_window is {:?}: an event sent again \
             later than that is stored twice, under the same id; `nats stream edit {name} \
             --dupe-window {}s`",
            found.duplicate_window,
            config.duplicate_window,
            config.duplicate_window.as_secs(),
        ));
    }
    if found.storage == StorageType::Memory {
        doubts.push(
            "the stream keeps its messages in memory: a restart of the server loses them".into(),
        );
    }
    if found.retention == RetentionPolicy::Interest {
        doubts.push(
            "the stream keeps only what some consumer waits for (interest): what comes before the \
             first consumer is dropped"
                .into(),
        );
    }
    if found.num_replicas < config.replicas {
        doubts.push(format!(
            "the stream has {} replicas, nats.replicas is {}: `nats stream edit {name} --replicas {}`",
            found.num_replicas, config.replicas, config.replicas
        ));
    }
    Ok(doubts)
}

/// Whether a stream's subject covers everything that matches a pattern.
fn covers(filter: &str, pattern: &str) -> bool {
    let mut words = pattern.split('.');
    for token in filter.split('.') {
        match (token, words.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(word)) if token == word => {}
            _ => return false,
        }
    }
    words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_covers_what_it_takes_all_of() {
        for (filter, pattern, expected) in [
            ("chat.topic.created.*", "chat.topic.created.*", true),
            ("chat.>", "chat.topic.created.*", true),
            (">", "chat.topic", true),
            ("chat.*.created.*", "chat.topic.created.*", true),
            ("chat.topic.created.1400000000", "chat.topic.created.*", false),
            ("chat.topic.created", "chat.topic.created.*", false),
            ("chat.topic.created.*.>", "chat.topic.created.*", false),
            ("chat.topic.created.*.*", "chat.topic.created.*", false),
        ] {
            assert_eq!(covers(filter, pattern), expected, "{filter} {pattern}");
        }
    }
}
