//! What the consumers of all three brokers have in common: reading a CloudEvent in either encoding, and
//! doing the work once for each event id.

use std::collections::{HashSet, VecDeque};

use anyhow::{Context as _, ensure};
use serde_json::{Map, Value};

/// Repeats come soon after the first, so a few thousand ids are plenty.
const REMEMBERED: usize = 10_000;

pub(crate) fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// The whole CloudEvent. `attributes` are those headers that have the binary encoding's prefix, without
/// it; in the structured encoding they stand in the body.
pub(crate) fn read_event(
    content_type: &str,
    attributes: impl Iterator<Item = (String, String)>,
    body: &[u8],
) -> anyhow::Result<Value> {
    let body: Value = serde_json::from_slice(body).context("the body is not JSON")?;
    let event = if content_type.starts_with("application/cloudevents+json") {
        body
    } else {
        let mut event: Map<_, _> = attributes.map(|(name, text)| (name, text.into())).collect();
        event.insert("datacontenttype".into(), content_type.into());
        event.insert("data".into(), body);
        event.into()
    };
    ensure!(event["id"].is_string() && event["data"].is_object(), "it lacks its id or its data");
    Ok(event)
}

/// Does the work. A real service keeps the ids in the same transaction as what it does with the event:
/// kept in memory, they are forgotten when it restarts.
pub(crate) struct Worker {
    done: HashSet<String>,
    /// The same ids, the oldest first.
    order: VecDeque<String>,
    /// How many events are left to take; none for no end.
    left: Option<usize>,
}

impl Worker {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let left = std::env::var("COUNT").ok().map(|count| count.parse());
        let left = left.transpose().context("COUNT is not a number")?;
        Ok(Worker { done: HashSet::new(), order: VecDeque::new(), left })
    }

    pub(crate) fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    /// When this returns, the event may be acknowledged: not before.
    #[expect(clippy::print_stdout, reason = "the lines are what these programs are for")]
    pub(crate) fn work(&mut self, event: &Value) {
        let id = event["id"].as_str().unwrap_or_default();
        if self.done.contains(id) {
            println!("skipped repeat {id}");
            return;
        }
        let data = &event["data"];
        let [topic, name, owner] = ["topic_id", "topic_name", "owner"].map(|field| &data[field]);
        println!("{id} topic_id={topic} topic_name={name} owner={owner}");
        self.done.insert(id.to_owned());
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED {
            self.order.pop_front().map(|oldest| self.done.remove(&oldest));
        }
        self.left = self.left.map(|left| left - 1);
    }
}
