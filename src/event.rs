//! The *topic created* event: its id, and its CloudEvents 1.0 form. Pure: no clock, no randomness.
//!
//! The structured JSON form is also what the outbox stores, so an event is encoded once, and every
//! attempt and every reader gets the same bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::callback::{Callback, CustomField, Text};
use crate::signature::Verified;
use crate::time::since_epoch;

/// Names the data's shape to consumers. A field that changes its meaning is a `v2`.
const DATA_SCHEMA: &str = "urn:topic-bridge:schema:topic-created:v1";

const SPEC_VERSION: &str = "1.0";
pub(crate) const DATA_CONTENT_TYPE: &str = "application/json";

/// The UUIDv5 of the URL namespace and `urn:topic-bridge:topic-created`: the namespace of event ids.
const EVENT_IDS: Uuid = Uuid::from_u128(0x22f64f84_0446_59ea_94db_3f472410cb17);

/// Room for most events, so that encoding allocates once.
const TYPICAL_BYTES: usize = 1024;

/// The place of the app id in `event.source`.
pub(crate) const APP_PLACEHOLDER: &str = "{sdk_app_id}";

/// What the operator may name: `event.type`, and `event.source` with its placeholder.
#[derive(Debug, Clone)]
pub(crate) struct Naming {
    pub(crate) event_type: String,
    pub(crate) source: String,
}

/// A topic was created. Times are in milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopicCreated<'a> {
    pub(crate) id: Uuid,
    pub(crate) event_type: Cow<'a, str>,
    pub(crate) source: Cow<'a, str>,
    /// When it happened: the platform's `EventTime`, else the acceptance.
    pub(crate) time: u64,
    pub(crate) accepted_at: u64,
    pub(crate) sdk_app_id: u64,
    pub(crate) client_ip: Option<Cow<'a, str>>,
    pub(crate) client_platform: Option<Cow<'a, str>>,
    pub(crate) topic_id: Cow<'a, str>,
    pub(crate) topic_name: Cow<'a, str>,
    pub(crate) group_id: Cow<'a, str>,
    pub(crate) group_type: Cow<'a, str>,
    pub(crate) operator: Cow<'a, str>,
    pub(crate) owner: Cow<'a, str>,
    pub(crate) custom_fields: Option<Vec<CustomField<'a>>>,
    pub(crate) extra: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

/// The id of a topic's creation, the same on every replica and every attempt. App id, and event
/// time where there is one, hold no `/`, so two creations never share the hashed text.
pub(crate) fn id(sdk_app_id: u64, topic_id: &str, event_time: Option<u64>) -> Uuid {
    let text = match event_time {
        Some(time) => format!("{sdk_app_id}/{time}/{topic_id}"),
        None => format!("{sdk_app_id}//{topic_id}"),
    };
    Uuid::new_v5(&EVENT_IDS, text.as_bytes())
}

/// The id of a topic that was deleted and, later than the deduplication window, created anew under
/// its old id: another event, so another id.
pub(crate) fn recreated_id(first: Uuid, accepted_at: u64) -> Uuid {
    Uuid::new_v5(&first, accepted_at.to_string().as_bytes())
}

impl<'a> TopicCreated<'a> {
    /// `accepted_at` is now, in milliseconds since the epoch.
    pub(crate) fn new(
        verified: &Verified<'a>,
        callback: Callback<'a>,
        naming: &'a Naming,
        accepted_at: u64,
    ) -> Self {
        let sdk_app_id = verified.sdk_app_id;
        TopicCreated {
            id: id(sdk_app_id, &callback.topic_id, callback.event_time),
            event_type: Cow::Borrowed(&naming.event_type),
            source: Cow::Owned(naming.source.replace(APP_PLACEHOLDER, &sdk_app_id.to_string())),
            time: callback.event_time.unwrap_or(accepted_at),
            accepted_at,
            sdk_app_id,
            client_ip: verified.query().client_ip.clone(),
            client_platform: verified.query().platform.clone(),
            topic_id: callback.topic_id,
            topic_name: callback.name,
            group_id: callback.group_id,
            group_type: callback.group_type,
            operator: callback.operator,
            owner: callback.owner,
            custom_fields: callback.custom_fields,
            extra: callback.extra,
        }
    }

    /// The event as the outbox takes it.
    pub(crate) fn seal(&self) -> Envelope {
        let data = Data {
            sdk_app_id: self.sdk_app_id,
            topic_id: &self.topic_id,
            topic_name: &self.topic_name,
            group_id: &self.group_id,
            group_type: &self.group_type,
            operator: &self.operator,
            owner: &self.owner,
            custom_fields: self.custom_fields.as_deref().map(CustomFields),
            client: self.client(),
            accepted_at: Time(self.accepted_at),
            extra: Extra(&self.extra),
        };
        let mut json = Vec::with_capacity(TYPICAL_BYTES);
        serde_json::to_writer(&mut json, &data)
            .expect("strings, numbers and checked JSON always encode");
        Envelope {
            id: self.id,
            event_type: self.event_type.clone().into_owned(),
            source: self.source.clone().into_owned(),
            time: self.time,
            sdk_app_id: self.sdk_app_id,
            topic_id: self.topic_id.clone().into_owned(),
            group_id: self.group_id.clone().into_owned(),
            platform: self.client_platform.as_deref().map(str::to_owned),
            data: String::from_utf8(json).expect("JSON of texts is UTF-8"),
        }
    }

    fn client(&self) -> Option<Client<'_>> {
        let client =
            Client { ip: self.client_ip.as_deref(), platform: self.client_platform.as_deref() };
        (client.ip.is_some() || client.platform.is_some()).then_some(client)
    }

    /// Reads back what [`Envelope::structured`] wrote.
    pub(crate) fn decode(json: &'a str) -> Result<Self, serde_json::Error> {
        let raw: RawCloudEvent<'a> = serde_json::from_str(json)?;
        let data = raw.data;
        let client = data.client.unwrap_or_default();
        let lift = |RawCustomField { key, value }| CustomField { key, value };
        let mut extra = BTreeMap::new();
        for (Text(name), value) in data.extra {
            extra.insert(name, Cow::Borrowed(value.get()));
        }
        Ok(TopicCreated {
            id: raw.id,
            event_type: raw.event_type,
            source: raw.source,
            time: milliseconds(&raw.time)?,
            accepted_at: milliseconds(&data.accepted_at)?,
            sdk_app_id: data.sdk_app_id,
            client_ip: client.ip,
            client_platform: client.platform,
            topic_id: data.topic_id,
            topic_name: data.topic_name,
            group_id: data.group_id,
            group_type: data.group_type,
            operator: data.operator,
            owner: data.owner,
            custom_fields: data.custom_fields.map(|f| f.into_iter().map(lift).collect()),
            extra,
        })
    }
}

/// An event as the outbox keeps it and as a message is built from it, without parsing its JSON: its
/// attributes, the fields that it may be routed by, and its data. Times are in milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Envelope {
    pub(crate) id: Uuid,
    pub(crate) event_type: String,
    pub(crate) source: String,
    /// When it happened.
    pub(crate) time: u64,
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
    /// The whole CloudEvent as JSON is the message.
    Structured,
    /// Its data is the message, its attributes are headers.
    Binary,
}

/// A structured event from one that came in binary mode: `attribute` gives the value of a header.
/// Attributes that are none of ours are left out.
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

/// The W3C trace context in a request's `traceparent` header, if it is one.
pub(crate) fn traceparent(header: &str) -> Option<&str> {
    let is_hex =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let parts: Vec<_> = header.trim().split('-').collect();
    let [version, trace, span, flags, ..] = parts[..] else { return None };
    let is_version_known = version != "00" || parts.len() == 4;
    let lengths = [version.len(), trace.len(), span.len(), flags.len()];
    let is_valid = lengths == [2, 32, 16, 2]
        && [version, trace, span, flags].into_iter().all(is_hex)
        && !is_zero(trace)
        && !is_zero(span)
        && version != "ff"
        && is_version_known;
    is_valid.then(|| &header.trim()[..55])
}

impl Envelope {
    /// Reads a structured event that [`Envelope::structured`] or an earlier release wrote.
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
            time: milliseconds(&outside.time.0)?,
            topic_id: outside.subject.0.into_owned(),
            group_id: outside.partitionkey.0.into_owned(),
            sdk_app_id: inside.sdk_app_id,
            platform: platform.map(|Text(text)| text.into_owned()),
            data: data.to_owned(),
        })
    }

    /// The CloudEvent as one line of JSON (structured mode), without a line break at its end.
    pub(crate) fn structured(&self) -> String {
        let event = CloudEvent {
            specversion: SPEC_VERSION,
            id: self.id,
            event_type: &self.event_type,
            source: &self.source,
            subject: &self.topic_id,
            time: Time(self.time),
            datacontenttype: DATA_CONTENT_TYPE,
            dataschema: DATA_SCHEMA,
            partitionkey: &self.group_id,
        };
        let mut json = Vec::with_capacity(TYPICAL_BYTES + self.data.len());
        serde_json::to_writer(&mut json, &event).expect("texts and times always encode");
        json.pop(); // the closing brace: the data goes in as it stands
        json.extend_from_slice(b",\"data\":");
        json.extend_from_slice(self.data.as_bytes());
        json.push(b'}');
        String::from_utf8(json).expect("JSON of texts is UTF-8")
    }

    /// The message itself.
    pub(crate) fn body(&self, encoding: Encoding) -> Cow<'_, str> {
        match encoding {
            Encoding::Structured => Cow::Owned(self.structured()),
            Encoding::Binary => Cow::Borrowed(&self.data),
        }
    }

    pub(crate) fn content_type(encoding: Encoding) -> &'static str {
        match encoding {
            Encoding::Structured => "application/cloudevents+json; charset=UTF-8",
            Encoding::Binary => DATA_CONTENT_TYPE,
        }
    }

    /// The trace context of the bridge's own, where the callback brought none: the trace is named after
    /// the event, so it is the same on every attempt, and the consumer may sample it.
    pub(crate) fn own_traceparent(&self) -> String {
        let trace = self.id.simple().to_string();
        let span = trace.get(16..).unwrap_or_default();
        format!("00-{trace}-{span}-01")
    }

    /// The attributes that are headers in binary mode, by name, but for `datacontenttype`, which has
    /// a place of its own in most protocols. Each protocol has its own prefix for the names.
    pub(crate) fn attributes(&self) -> [(&'static str, Cow<'_, str>); 8] {
        [
            ("specversion", SPEC_VERSION.into()),
            ("id", self.id.to_string().into()),
            ("type", Cow::Borrowed(&self.event_type)),
            ("source", Cow::Borrowed(&self.source)),
            ("subject", Cow::Borrowed(&self.topic_id)),
            ("time", rfc3339(self.time).to_string().into()),
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
    time: Time,
    datacontenttype: &'static str,
    dataschema: &'static str,
    partitionkey: &'a str,
}

#[derive(Serialize)]
struct Data<'a> {
    sdk_app_id: u64,
    topic_id: &'a str,
    topic_name: &'a str,
    group_id: &'a str,
    group_type: &'a str,
    operator: &'a str,
    owner: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom_fields: Option<CustomFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<Client<'a>>,
    accepted_at: Time,
    extra: Extra<'a>,
}

#[derive(Serialize)]
struct Client<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<&'a str>,
}

struct CustomFields<'a>(&'a [CustomField<'a>]);

impl Serialize for CustomFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Pair<'a> {
            key: &'a str,
            value: &'a str,
        }
        serializer.collect_seq(self.0.iter().map(|f| Pair { key: &f.key, value: &f.value }))
    }
}

struct Extra<'a>(&'a BTreeMap<Cow<'a, str>, Cow<'a, str>>);

impl Serialize for Extra<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, json) in self.0 {
            let value: &RawValue = serde_json::from_str(json).map_err(serde::ser::Error::custom)?;
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Milliseconds since the epoch, as RFC 3339 text.
struct Time(u64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&rfc3339(self.0))
    }
}

/// `2026-11-22T18:00:00.123Z`, in UTC.
pub(crate) fn rfc3339(milliseconds: u64) -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(milliseconds))
}

fn milliseconds(rfc3339: &str) -> Result<u64, serde_json::Error> {
    humantime::parse_rfc3339(rfc3339).map(since_epoch).map_err(serde::de::Error::custom)
}

#[derive(Deserialize)]
struct RawCloudEvent<'a> {
    id: Uuid,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    data: RawData<'a>,
}

#[derive(Deserialize)]
struct RawData<'a> {
    sdk_app_id: u64,
    #[serde(borrow)]
    topic_id: Cow<'a, str>,
    #[serde(borrow)]
    topic_name: Cow<'a, str>,
    #[serde(borrow)]
    group_id: Cow<'a, str>,
    #[serde(borrow)]
    group_type: Cow<'a, str>,
    #[serde(borrow)]
    operator: Cow<'a, str>,
    #[serde(borrow)]
    owner: Cow<'a, str>,
    #[serde(borrow)]
    custom_fields: Option<Vec<RawCustomField<'a>>>,
    #[serde(borrow)]
    client: Option<RawClient<'a>>,
    #[serde(borrow)]
    accepted_at: Cow<'a, str>,
    #[serde(borrow)]
    extra: BTreeMap<Text<'a>, &'a RawValue>,
}

#[derive(Deserialize)]
struct RawCustomField<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Cow<'a, str>,
}

#[derive(Deserialize, Default)]
struct RawClient<'a> {
    #[serde(borrow)]
    ip: Option<Cow<'a, str>>,
    #[serde(borrow)]
    platform: Option<Cow<'a, str>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    fn cow(pattern: &'static str) -> impl Strategy<Value = Cow<'static, str>> {
        pattern.prop_map(Cow::Owned)
    }

    fn json() -> impl Strategy<Value = Cow<'static, str>> {
        prop_oneof![
            any::<u64>().prop_map(|number| number.to_string()),
            ".*".prop_map(|text| serde_json::Value::from(text).to_string()),
            Just(r#"{"a":[null,1.0,18446744073709551616]}"#.to_owned()),
        ]
        .prop_map(Cow::Owned)
    }

    prop_compose! {
        fn custom_field()(key in cow(".*"), value in cow(".*")) -> CustomField<'static> {
            CustomField { key, value }
        }
    }

    prop_compose! {
        fn event()(
            (id, time, accepted_at, sdk_app_id) in
                (any::<u128>(), 0..=253_402_300_799_999_u64, 0..=4_102_444_800_000_u64, any::<u64>()),
            (event_type, source, client_ip, client_platform) in
                (cow(".+"), cow(".+"), option::of(cow(".*")), option::of(cow(".*"))),
            (topic_id, topic_name, group_id) in (cow(".+"), cow("\\PC*|[\u{0}-\u{1f}]*"), cow(".+")),
            (group_type, operator, owner) in (cow(".*"), cow(".*"), cow(".*")),
            custom_fields in option::of(vec(custom_field(), 0..4)),
            extra in btree_map(cow(".*"), json(), 0..4),
        ) -> TopicCreated<'static> {
            TopicCreated {
                id: Uuid::from_u128(id), event_type, source, time, accepted_at, sdk_app_id, client_ip,
                client_platform, topic_id, topic_name, group_id, group_type, operator, owner,
                custom_fields, extra,
            }
        }
    }

    proptest! {
        #[test]
        fn an_event_survives_encoding_and_decoding(event in event()) {
            let json = event.seal().structured();
            prop_assert!(!json.contains(['\n', '\r']), "an event is one line: {json}");
            prop_assert_eq!(TopicCreated::decode(&json).unwrap(), event);
        }

        #[test]
        fn an_envelope_shows_what_the_event_says(event in event()) {
            let envelope = event.seal();
            let json = envelope.structured();
            prop_assert_eq!(&Envelope::open(&json).unwrap(), &envelope);
            let found: serde_json::Value = serde_json::from_str(&json).unwrap();
            for (name, value) in envelope.attributes() {
                prop_assert_eq!(found[name].as_str(), Some(&*value), "{}", name);
            }
            let data: serde_json::Value =
                serde_json::from_str(&envelope.body(Encoding::Binary)).unwrap();
            prop_assert_eq!(&data, &found["data"]);
            prop_assert_eq!(envelope.body(Encoding::Structured), &*json);
            let header = |name: &str| {
                let attributes = envelope.attributes();
                attributes.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone().into_owned())
            };
            prop_assert_eq!(reassemble(header, &envelope.body(Encoding::Binary)), &*json);
            prop_assert_eq!(envelope.sdk_app_id, event.sdk_app_id);
            prop_assert_eq!(envelope.platform, event.client_platform.map(Cow::into_owned));
        }

        #[test]
        fn ids_differ_where_app_topic_or_time_differ(
            one in (0_u64..20, "[0-9/]{1,4}", option::of(0_u64..20)),
            other in (0_u64..20, "[0-9/]{1,4}", option::of(0_u64..20)),
        ) {
            let ids = [&one, &other].map(|(app, topic, time)| id(*app, topic, *time));
            prop_assert_eq!(one == other, ids[0] == ids[1]);
        }
    }

    #[test]
    fn only_a_valid_trace_context_goes_along() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let (zero_trace, zero_span) = ("0".repeat(32), "0".repeat(16));
        for (header, expected) in [
            (good.to_owned(), Some(good)),
            (format!(" {good} "), Some(good)),
            (format!("{good}-more"), None),
            (good.to_uppercase(), None),
            (good.replace("00-", "ff-"), None),
            (good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &zero_trace), None),
            (good.replace("00f067aa0ba902b7", &zero_span), None),
            ("00-é".into(), None),
            (String::new(), None),
        ] {
            assert_eq!(traceparent(&header), expected, "{header}");
        }
        let newer = format!("cc{}-what-comes", &good[2..]);
        assert_eq!(traceparent(&newer), Some(&newer[..55]), "a newer version may have more");
    }

    #[test]
    fn ids_never_change_between_releases() {
        let first = id(1_400_000_000, "@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_@TOPIC#cRTE3HIM62C5", None);
        assert_eq!(first.to_string(), "92f58f4e-5a60-5ecf-9e83-6cbb3350b7e3");
        assert_eq!(
            recreated_id(first, 1_700_000_000_000).to_string(),
            "dbb7a59c-c6a2-5e53-8d7e-d5bc32d462ae"
        );
    }
}
