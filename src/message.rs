//! The CloudEvents 1.0 forms of an event: what the outbox keeps, the JSON of structured mode, the
//! attributes of binary mode, and the way back. Pure.

use std::borrow::Cow;

use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::callback::Text;
use crate::time::Timestamp;

/// Tells consumers the schema of the data. If a field changes its meaning, this becomes `v2`.
pub(crate) const DATA_SCHEMA: &str = "urn:topic-bridge:schema:topic-created:v1";

const SPEC_VERSION: &str = "1.0";
pub(crate) const DATA_CONTENT_TYPE: &str = "application/json";

/// Enough for most events, so that encoding allocates once.
pub(crate) const TYPICAL_BYTES: usize = 1024;

/// An event as the outbox keeps it, in a form that messages are built from without parsing its JSON: its
/// attributes, the fields used for routing, and its data.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Envelope {
    pub(crate) id: Uuid,
    pub(crate) event_type: String,
    pub(crate) source: String,
    /// When it happened.
    pub(crate) time: Timestamp,
    pub(crate) sdk_app_id: u64,
    pub(crate) topic_id: String,
    pub(crate) group_id: String,
    pub(crate) platform: Option<String>,
    /// The event's `data`, JSON on one line.
    pub(crate) data: String,
}

/// How an event becomes a message: `event.encoding`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Encoding {
    /// The message is the whole CloudEvent as JSON.
    Structured,
    /// The message is the event's data; its attributes are headers.
    Binary,
}

impl Encoding {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Encoding::Structured => "application/cloudevents+json; charset=UTF-8",
            Encoding::Binary => DATA_CONTENT_TYPE,
        }
    }
}

/// Rebuilds a structured event from one in binary mode: `attribute` returns the value of a header.
/// Unknown attributes are left out.
pub(crate) fn reassemble(attribute: impl Fn(&str) -> Option<String>, data: &str) -> String {
    const ORDER: [&str; 9] = [
        "specversion",
        "id",
        "type",
        "source",
        "subject",
        "time",
        "datacontenttype",
        "dataschema",
        "partitionkey",
    ];
    let mut json = String::with_capacity(TYPICAL_BYTES);
    for name in ORDER {
        let default = (name == "datacontenttype").then(|| DATA_CONTENT_TYPE.to_owned());
        if let Some(value) = attribute(name).or(default) {
            let separator = if json.is_empty() { '{' } else { ',' };
            json.push(separator);
            json.push_str(&format!("{name:?}:{}", serde_json::Value::from(value)));
        }
    }
    json + ",\"data\":" + data + "}"
}

impl Envelope {
    /// Parses a structured event that [`Envelope::structured`] or an earlier release wrote.
    pub(crate) fn open(json: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Outside<'a> {
            id: Uuid,
            #[serde(borrow, rename = "type")]
            event_type: Text<'a>,
            #[serde(borrow)]
            source: Text<'a>,
            #[serde(borrow)]
            time: Text<'a>,
            #[serde(borrow)]
            subject: Text<'a>,
            #[serde(borrow)]
            partitionkey: Text<'a>,
            #[serde(borrow)]
            data: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Inside<'a> {
            sdk_app_id: u64,
            #[serde(borrow)]
            client: Option<Platform<'a>>,
        }
        #[derive(Deserialize)]
        struct Platform<'a> {
            #[serde(borrow)]
            platform: Option<Text<'a>>,
        }
        let outside: Outside = serde_json::from_str(json)?;
        let data = outside.data.get();
        let inside: Inside = serde_json::from_str(data)?;
        let platform = inside.client.and_then(|client| client.platform);
        Ok(Envelope {
            id: outside.id,
            event_type: outside.event_type.0.into_owned(),
            source: outside.source.0.into_owned(),
            time: Timestamp::parse_rfc3339(&outside.time.0).map_err(serde_json::Error::custom)?,
            topic_id: outside.subject.0.into_owned(),
            group_id: outside.partitionkey.0.into_owned(),
            sdk_app_id: inside.sdk_app_id,
            platform: platform.map(|Text(text)| text.into_owned()),
            data: data.to_owned(),
        })
    }

    /// The CloudEvent as one line of JSON (structured mode), without a trailing line break.
    pub(crate) fn structured(&self) -> String {
        let event = CloudEvent {
            specversion: SPEC_VERSION,
            id: self.id,
            event_type: &self.event_type,
            source: &self.source,
            subject: &self.topic_id,
            time: self.time,
            datacontenttype: DATA_CONTENT_TYPE,
            dataschema: DATA_SCHEMA,
            partitionkey: &self.group_id,
        };
        let mut json = Vec::with_capacity(TYPICAL_BYTES + self.data.len());
        serde_json::to_writer(&mut json, &event).expect("texts and times always encode");
        json.pop(); // the closing brace: the data is inserted as it is
        json.extend_from_slice(b",\"data\":");
        json.extend_from_slice(self.data.as_bytes());
        json.push(b'}');
        String::from_utf8(json).expect("JSON of texts is UTF-8")
    }

    /// The message body.
    pub(crate) fn body(&self, encoding: Encoding) -> Cow<'_, str> {
        match encoding {
            Encoding::Structured => Cow::Owned(self.structured()),
            Encoding::Binary => Cow::Borrowed(&self.data),
        }
    }

    /// The attributes that are headers in binary mode, by name, except `datacontenttype`, which most
    /// protocols carry separately. Each protocol has its own prefix for the names.
    pub(crate) fn attributes(&self) -> [(&'static str, Cow<'_, str>); 8] {
        [
            ("specversion", SPEC_VERSION.into()),
            ("id", self.id.to_string().into()),
            ("type", Cow::Borrowed(&self.event_type)),
            ("source", Cow::Borrowed(&self.source)),
            ("subject", Cow::Borrowed(&self.topic_id)),
            ("time", self.time.to_string().into()),
            ("dataschema", DATA_SCHEMA.into()),
            ("partitionkey", Cow::Borrowed(&self.group_id)),
        ]
    }
}

#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: Uuid,
    #[serde(rename = "type")]
    event_type: &'a str,
    source: &'a str,
    subject: &'a str,
    time: Timestamp,
    datacontenttype: &'static str,
    dataschema: &'static str,
    partitionkey: &'a str,
}
