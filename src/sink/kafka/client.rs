//! How librdkafka is set up, and what it reports on its own: log lines and connection errors. The latest
//! of these is kept, because later failures only report a timeout.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::FutureProducer;
use rdkafka::types::RDKafkaConfRes;

use super::super::Terms;
use super::super::session::Broker as _;
use super::Kafka;
use super::config::Config;
use super::errors::{self, code_of};
use crate::secret::Secret;
use crate::verdict::Reason;

pub(super) type Producer = FutureProducer<Context>;

/// The most bytes in a batch, unless it is a single event: the outbox reads no more at once.
const BATCH_BYTES: u64 = 4 << 20;

/// librdkafka's own default, and a little less than what a broker accepts by default.
const USUAL_MAX_BYTES: u64 = 1_000_000;

/// Other names under which users may override our defaults.
const ALIASES: [(&str, &str); 4] = [
    ("max.in.flight.requests.per.connection", "max.in.flight"),
    ("bootstrap.servers", "metadata.broker.list"),
    ("message.timeout.ms", "delivery.timeout.ms"),
    ("linger.ms", "queue.buffering.max.ms"),
];

/// Builds clients, all with the same properties.
#[derive(Clone)]
pub(super) struct Clients {
    common: BTreeMap<&'static str, String>,
    producing: BTreeMap<&'static str, String>,
    configured: BTreeMap<String, Secret>,
}

impl Clients {
    pub(super) fn new(config: &Config, terms: &Terms) -> Self {
        let patience = terms.patience;
        // Attributes are in the event twice, and once more as headers and key, so an event can be about
        // three times as large as the callback.
        let largest = (3 * terms.max_body_bytes + (64 << 10)).max(USUAL_MAX_BYTES);
        let queue_bytes = 2 * (BATCH_BYTES + largest);
        let queue_messages = (2 * Kafka::BATCHES * terms.batch).clamp(1000, 10_000_000);
        let connecting = patience.clamp(Duration::from_secs(1), Duration::from_secs(5));
        let common = BTreeMap::from([
            ("bootstrap.servers", config.brokers.clone()),
            ("client.id", "topic-bridge".into()),
            ("socket.keepalive.enable", "true".into()),
            ("socket.connection.setup.timeout.ms", connecting.as_millis().to_string()),
            ("reconnect.backoff.ms", "100".into()),
            ("reconnect.backoff.max.ms", "1000".into()),
            // Looking for the topic must not create it: it would get the broker's defaults.
            ("allow.auto.create.topics", "false".into()),
        ]);
        let producing = BTreeMap::from([
            ("enable.idempotence", "true".into()),
            // With more than one, the first event to a new topic was lost in a test although it was
            // confirmed. The broker refuses the first request because the partition is not quite ready,
            // and accepts the second, since any sequence number is valid for an unknown producer. When
            // the first is resent, it looks like a duplicate, which counts as delivered.
            ("max.in.flight.requests.per.connection", "1".into()),
            ("message.timeout.ms", message_timeout(patience).as_millis().to_string()),
            ("socket.timeout.ms", patience.as_millis().clamp(1000, 60_000).to_string()),
            // A batch arrives all at once; waiting for more only adds latency.
            ("linger.ms", "0".into()),
            ("queue.buffering.max.messages", queue_messages.to_string()),
            ("queue.buffering.max.kbytes", (queue_bytes >> 10).min(2_097_151).to_string()),
            ("message.max.bytes", largest.min(1_000_000_000).to_string()),
            // A key maps to the same partition as with the Java clients.
            ("partitioner", "murmur2_random".into()),
            ("topic.metadata.propagation.max.ms", "2000".into()),
        ]);
        Clients { common, producing, configured: config.properties.clone() }
    }

    /// Whether librdkafka knows every property and accepts its value. The error names the first invalid
    /// one; its text quotes only values of numbers and enumerations, and no secret is one of these.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for (name, value) in &self.configured {
            let mut config = ClientConfig::new();
            config.set(name, value.reveal());
            config.create_native_config().map_err(explain)?;
        }
        Ok(())
    }

    pub(super) fn producer(&self, context: Context) -> anyhow::Result<Producer> {
        self.build(self.common.iter().chain(&self.producing), context)
    }

    /// Nobody polls an admin client, so it must be short-lived.
    pub(super) fn admin(&self) -> anyhow::Result<AdminClient<Context>> {
        let mut settings = self.common.clone();
        settings.remove("allow.auto.create.topics");
        self.build(settings.iter(), Context::default())
    }

    pub(super) fn consumer(
        &self,
        settings: &BTreeMap<&'static str, String>,
        context: Context,
    ) -> anyhow::Result<StreamConsumer<Context>> {
        self.build(self.common.iter().chain(settings), context)
    }

    /// How the bridge authenticates to the broker, for the operator.
    pub(super) fn credentials(&self) -> String {
        let configured = |name: &str| self.configured.get(name).map(Secret::reveal);
        let protocol = configured("security.protocol").unwrap_or("plaintext").to_lowercase();
        let user = configured("sasl.username").unwrap_or("this user");
        match protocol.as_str() {
            "sasl_ssl" | "sasl_plaintext" => format!("the broker accepts {user} ({protocol})"),
            "ssl" => "none but TLS certificates are in use (ssl)".into(),
            _ => "none are configured, and none were asked for".into(),
        }
    }

    fn build<'a, T: FromClientConfigAndContext<Context>>(
        &self,
        defaults: impl Iterator<Item = (&'a &'static str, &'a String)>,
        context: Context,
    ) -> anyhow::Result<T> {
        let mut config = ClientConfig::new();
        for (name, value) in defaults {
            let alias = ALIASES.iter().find(|(ours, _)| ours == name).map(|(_, alias)| *alias);
            if !alias.is_some_and(|alias| self.configured.contains_key(alias)) {
                config.set(*name, value);
            }
        }
        for (name, value) in &self.configured {
            config.set(name, value.reveal());
        }
        config.set_log_level(RDKafkaLogLevel::Debug); // `tracing` decides what is shown
        config.create_with_context(context).map_err(explain)
    }
}

/// How long librdkafka tries. It checks for overdue messages once a second, and must give up before we
/// do, so that nothing is left in its queue.
fn message_timeout(patience: Duration) -> Duration {
    (patience * 3 / 4).max(Duration::from_millis(1))
}

fn explain(error: KafkaError) -> anyhow::Error {
    match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, name, _) => {
            anyhow!("librdkafka has no property {name:?}: its CONFIGURATION.md lists them all")
        }
        KafkaError::ClientConfig(_, text, name, _) => anyhow!("{name:?}: {text}"),
        KafkaError::ClientCreation(text) => anyhow!("{text}"),
        other => anyhow!(other),
    }
}

/// The target of a client's callbacks.
#[derive(Clone, Default)]
pub(super) struct Context {
    latest: Arc<Mutex<Latest>>,
}

#[derive(Default)]
struct Latest {
    error: Option<(RDKafkaErrorCode, String)>,
    /// The latest lost connection that librdkafka reported in a log line, but not as an error.
    lost: Option<String>,
    /// All known brokers were tried, and none answers.
    are_all_down: bool,
}

impl Context {
    /// The latest error since the last success.
    pub(super) fn error(&self) -> Option<Reason> {
        let latest = self.latest();
        latest.error.as_ref().map(|(code, text)| errors::reason(*code, Some(text)))
    }

    /// The latest error, if no other broker can make up for it.
    pub(super) fn error_of_all(&self) -> Option<Reason> {
        let latest = self.latest();
        let (code, text) = latest.error.as_ref()?;
        let is_ours = matches!(code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL);
        (latest.are_all_down || is_ours).then(|| errors::reason(*code, Some(text)))
    }

    /// Everything works: forgets the errors.
    pub(super) fn forget(&self) {
        *self.latest() = Latest::default();
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    /// Logged at `debug`, because librdkafka repeats itself and the relay reports it to the operator once.
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, text: &str) {
        tracing::debug!(target: "librdkafka", facility, "{text}");
        if facility == "FAIL" {
            // "[thrd:kafka:9092/1]: kafka:9092/1: Disconnected (…)"
            let text = text.split_once("]: ").map_or(text, |(_thread, text)| text);
            self.latest().lost = Some(text.to_owned());
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        tracing::debug!(target: "librdkafka", "{}", String::from_utf8_lossy(statistics));
    }

    fn error(&self, error: KafkaError, text: &str) {
        tracing::debug!(target: "librdkafka", %error, "{text}");
        let mut latest = self.latest();
        match code_of(&error) {
            // "1/1 brokers are down" comes after the error that says why.
            code @ RDKafkaErrorCode::AllBrokersDown => {
                latest.are_all_down = true;
                if latest.error.is_none() {
                    let why = latest.lost.clone().unwrap_or_else(|| text.to_owned());
                    latest.error = Some((code, why));
                }
            }
            // The broker's TLS alert when it rejects or misses our certificate.
            RDKafkaErrorCode::BrokerTransportFailure if text.contains("SSL routines") => {
                latest.error = Some((RDKafkaErrorCode::SSL, text.to_owned()));
            }
            code => latest.error = Some((code, text.to_owned())),
        }
    }
}

impl ConsumerContext for Context {}

/// For an error that came without a connection error.
pub(super) fn describe(error: &KafkaError) -> Reason {
    errors::reason(code_of(error), None)
}

pub(super) fn failed<T>(result: Result<T, KafkaError>, what: &'static str) -> anyhow::Result<T> {
    result.map_err(explain).context(what)
}
