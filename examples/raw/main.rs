//! What a broker's client library publishes by itself, as fast as it can: no outbox, no relay, but the
//! same client with the same settings, the same message, and each one confirmed. Whatever the bridge
//! takes beyond this to drain a backlog is the bridge's own cost.
//!
//! `raw BROKER_URL#PLACE COUNT WINDOW`: to `kafka://host:port#topic`, `amqp://…#exchange` or
//! `nats://host:port#stream`, which it creates as the bridge would, with at most WINDOW messages
//! unconfirmed. Creating and connecting are not measured.

mod kafka;
mod nats;
mod rabbitmq;

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

/// Of one message, and of the last ones.
const PATIENCE: Duration = Duration::from_secs(60);

const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";
const EVENT_TYPE: &str = "chat.topic.created.v1";
const GROUP: &str = "@TGS#2J4SZEAEL";
const APP: u64 = 1_400_000_000;

/// What to publish, and how.
struct Work {
    /// Without the place.
    url: String,
    /// Topic, exchange or stream.
    place: String,
    count: u64,
    window: usize,
}

/// A CloudEvent as the bridge encodes one, and what goes along with it.
struct Event {
    id: String,
    traceparent: String,
    body: String,
}

impl Event {
    fn new(number: u64) -> Self {
        let random = format!("{:032x}", fastrand::u128(..));
        let (trace, span) = (&random[..], &random[16..]);
        let id = [&trace[..8], &trace[8..12], &trace[12..16], &trace[16..20], &trace[20..]];
        let id = id.join("-");
        let traceparent = format!("00-{trace}-{span}-01");
        let topic = format!("@TGS#_{GROUP}@TOPIC#_@TOPIC#c{number:012x}");
        let time = "2026-11-22T18:00:00.123Z";
        let body = format!(
            r#"{{"specversion":"1.0","id":"{id}","type":"{EVENT_TYPE}","source":"/apps/{APP}","subject":"{topic}","time":"{time}","datacontenttype":"application/json","dataschema":"urn:topic-bridge:schema:topic-created:v1","partitionkey":"{GROUP}","data":{{"sdk_app_id":{APP},"topic_id":"{topic}","topic_name":"MyFirstTopic","group_id":"{GROUP}","group_type":"Community","operator":"group_root","owner":"leckie","client":{{"ip":"127.0.0.1","platform":"RESTAPI"}},"accepted_at":"{time}"}}}}"#
        );
        Event { id, traceparent, body }
    }
}

/// The first half of a measurement, taken when all is ready to publish.
struct Started {
    at: Instant,
    cpu_seconds: f64,
}

impl Started {
    fn now() -> anyhow::Result<Self> {
        Ok(Started { cpu_seconds: cpu_seconds()?, at: Instant::now() })
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [to, count, window] = arguments.as_slice() else {
        bail!("usage: raw BROKER_URL#PLACE COUNT WINDOW");
    };
    let (url, place) = to.split_once('#').context("the URL names no #PLACE")?;
    let work = Work {
        url: url.to_owned(),
        place: place.to_owned(),
        count: count.parse().context("COUNT is not a number")?,
        window: window.parse().context("WINDOW is not a number")?,
    };
    ensure!(work.count > 0 && work.window > 0, "nothing to publish");
    let scheme = url.split_once("://").context("the URL has no scheme")?.0;
    // A task of the runtime's own: what `block_on` polls itself is woken across threads.
    let publishing = match scheme {
        "kafka" => tokio::spawn(kafka::publish(work)),
        "amqp" => tokio::spawn(rabbitmq::publish(work)),
        "nats" => tokio::spawn(nats::publish(work)),
        other => bail!("the scheme {other} is none of kafka, amqp and nats"),
    };
    let (started, count) = publishing.await??;
    let seconds = started.at.elapsed().as_secs_f64();
    let result = json!({
        "count": count,
        "seconds": seconds,
        "rate": count as f64 / seconds,
        "cpu_seconds": cpu_seconds()? - started.cpu_seconds,
    });
    writeln!(std::io::stdout(), "{result}")?;
    Ok(())
}

/// What this process has used so far.
fn cpu_seconds() -> anyhow::Result<f64> {
    /// Linux counts for programs in hundredths of a second, whatever it does itself.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The fields after the command's name, which is in brackets and may hold anything.
    let fields = stat.rsplit_once(')').context("no command in /proc/self/stat")?.1;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks = |index: usize| -> anyhow::Result<f64> { Ok(fields[index].parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}
