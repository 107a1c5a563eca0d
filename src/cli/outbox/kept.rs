//! A row of the outbox as text or JSON.

use std::fmt::Write as _;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::event::Origin;
use crate::outbox::Kept;

pub(super) fn line_of_text(kept: &Kept) -> String {
    let Kept { position, at, state, reason, from, content } = kept;
    let reason = reason.as_deref().unwrap_or_default();
    if let Some(Origin { sdk_app_id, .. }) = from {
        return format!(
            "{position:<11} {at}  {sdk_app_id:<12} {:<6} {}\n",
            content.len(),
            plain(reason)
        );
    }
    let event: Value = serde_json::from_slice(content).unwrap_or_default();
    let field = |name: &str| plain(event["data"][name].as_str().unwrap_or("?"));
    let (topic, name) = (field("topic_id"), field("topic_name"));
    format!("{position:<11} {at}  {state:<10} {topic}  {name:?}  {}\n", plain(reason))
}

/// Names are user input: characters that could move a terminal's cursor are escaped.
fn plain(text: &str) -> String {
    text.chars()
        .flat_map(
            |char| if char.is_control() { char.escape_default().collect() } else { vec![char] },
        )
        .collect()
}

pub(super) fn line_of_json(kept: &Kept) -> String {
    let Kept { position, at, state, reason, from, content } = kept;
    let mut line = json!({ "state": state });
    let at = at.to_string();
    if let Some(reason) = reason {
        line["reason"] = json!(reason);
    }
    if let Some(Origin { sdk_app_id, client_ip, client_platform }) = from {
        line["number"] = json!(position);
        line["received_at"] = json!(at);
        line["sdk_app_id"] = json!(sdk_app_id);
        if client_ip.is_some() || client_platform.is_some() {
            line["client"] = json!({ "ip": client_ip, "platform": client_platform });
        }
        line["body"] = match std::str::from_utf8(content) {
            Ok(text) => json!(text),
            Err(_) => json!({ "hex": hex::encode(content) }),
        };
        return format!("{line}\n");
    }
    line["position"] = json!(position);
    line["accepted_at"] = json!(at);
    let mut text = line.to_string();
    // The event is inserted exactly as stored.
    let event = std::str::from_utf8(content).ok().filter(|text| is_json(text)).unwrap_or("null");
    text.pop();
    let _ = writeln!(text, ",\"event\":{event}}}"); // writing to memory cannot fail
    text
}

pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

pub(super) fn whole(kept: &Kept) -> String {
    let Kept { position, at, state, reason, from, content } = kept;
    let mut text = String::new();
    let _ = match from {
        Some(Origin { sdk_app_id, .. }) => {
            write!(text, "number    {position}\nreceived  {at}\napp       {sdk_app_id}\n")
        }
        None => write!(text, "position  {position}\naccepted  {at}\nstate     {state}\n"),
    };
    if let Some(reason) = reason {
        let _ = writeln!(text, "reason    {}", plain(reason));
    }
    let body = match (serde_json::from_slice::<Value>(content), std::str::from_utf8(content)) {
        (Ok(json), _) => format!("{json:#}"),
        (_, Ok(text)) => text.to_owned(),
        (_, Err(_)) => content.escape_ascii().to_string(),
    };
    for line in body.lines() {
        let _ = writeln!(text, "{}", plain(line));
    }
    text
}
