//! The *topic created* event: its id and its data. Pure: no clock, no randomness.
//!
//! The data is encoded once, and the outbox keeps the result, so every attempt and every reader gets the
//! same bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::callback::{Callback, CustomField};
use crate::config::value::{choice, filled};
use crate::config::{Keys, Value};
use crate::message::{Encoding, Envelope, TYPICAL_BYTES};
use crate::signature::Verified;
use crate::time::Timestamp;

/// The UUIDv5 of the URL namespace and `urn:topic-bridge:topic-created`: the namespace of event ids.
const EVENT_IDS: Uuid = Uuid::from_u128(0x22f64f84_0446_59ea_94db_3f472410cb17);

/// The placeholder for the app id in `event.source`.
const APP_PLACEHOLDER: &str = "{sdk_app_id}";

/// `[event]`.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) event_type: String,
    /// With its placeholder.
    pub(crate) source: String,
    pub(crate) encoding: Encoding,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        Config {
            event_type: keys.read("event.type", filled),
            source: keys.read("event.source", source),
            encoding: keys.read("event.encoding", |value| {
                let choices = [("structured", Encoding::Structured), ("binary", Encoding::Binary)];
                choice(value, &choices)
            }),
        }
    }
}

fn source(value: &Value) -> Result<String, String> {
    let source = filled(value)?;
    if source.replace(APP_PLACEHOLDER, "").contains(['{', '}']) {
        return Err(format!("{source:?} has a placeholder other than {APP_PLACEHOLDER}"));
    }
    Ok(source)
}

/// A topic was created.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopicCreated<'a> {
    pub(crate) id: Uuid,
    pub(crate) event_type: Cow<'a, str>,
    pub(crate) source: Cow<'a, str>,
    /// When it happened: the platform's `EventTime`, or else the time of acceptance.
    pub(crate) time: Timestamp,
    pub(crate) accepted_at: Timestamp,
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

/// The id of a topic's creation, the same on every replica and every attempt. Neither the app id nor the
/// event time, if there is one, contains a `/`, so two creations never share the hashed text.
pub(crate) fn id(sdk_app_id: u64, topic_id: &str, event_time: Option<Timestamp>) -> Uuid {
    let text = match event_time {
        Some(time) => format!("{sdk_app_id}/{}/{topic_id}", time.as_millis()),
        None => format!("{sdk_app_id}//{topic_id}"),
    };
    Uuid::new_v5(&EVENT_IDS, text.as_bytes())
}

/// The id of a topic that was deleted and, after the deduplication window, recreated under its old id:
/// another event, so another id.
pub(crate) fn recreated_id(first: Uuid, accepted_at: Timestamp) -> Uuid {
    Uuid::new_v5(&first, accepted_at.as_millis().to_string().as_bytes())
}

/// Which app and client an authentic callback came from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Origin<'a> {
    pub(crate) sdk_app_id: u64,
    pub(crate) client_ip: Option<Cow<'a, str>>,
    pub(crate) client_platform: Option<Cow<'a, str>>,
}

impl<'a> TopicCreated<'a> {
    /// `accepted_at` is now.
    pub(crate) fn new(
        verified: &Verified<'a>,
        callback: Callback<'a>,
        config: &'a Config,
        accepted_at: Timestamp,
    ) -> Self {
        let origin = Origin {
            sdk_app_id: verified.sdk_app_id,
            client_ip: verified.query().client_ip.clone(),
            client_platform: verified.query().platform.clone(),
        };
        Self::of_earlier(origin, callback, config, accepted_at)
    }

    /// The same for a callback that was found to be authentic when it arrived, and has been in quarantine since.
    pub(crate) fn of_earlier(
        origin: Origin<'a>,
        callback: Callback<'a>,
        config: &'a Config,
        accepted_at: Timestamp,
    ) -> Self {
        let Origin { sdk_app_id, client_ip, client_platform } = origin;
        TopicCreated {
            id: id(sdk_app_id, &callback.topic_id, callback.event_time),
            event_type: Cow::Borrowed(&config.event_type),
            source: Cow::Owned(config.source.replace(APP_PLACEHOLDER, &sdk_app_id.to_string())),
            time: callback.event_time.unwrap_or(accepted_at),
            accepted_at,
            sdk_app_id,
            client_ip,
            client_platform,
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

    /// The event in the form that the outbox stores.
    pub(crate) fn seal(&self) -> Envelope {
        let data = Data {
            sdk_app_id: self.sdk_app_id,
            topic_id: &self.topic_id,
            topic_name: &self.topic_name,
            group_id: &self.group_id,
            group_type: &self.group_type,
            operator: &self.operator,
            owner: &self.owner,
            custom_fields: self.custom_fields.as_deref(),
            client: self.client(),
            accepted_at: self.accepted_at,
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
    custom_fields: Option<&'a [CustomField<'a>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<Client<'a>>,
    accepted_at: Timestamp,
    extra: Extra<'a>,
}

#[derive(Serialize)]
struct Client<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<&'a str>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::reassemble;
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
                id: Uuid::from_u128(id), event_type, source, time: Timestamp::from_millis(time),
                accepted_at: Timestamp::from_millis(accepted_at), sdk_app_id, client_ip,
                client_platform, topic_id, topic_name, group_id, group_type, operator, owner,
                custom_fields, extra,
            }
        }
    }

    /// The event that a structured one tells of.
    fn decode(json: &str) -> TopicCreated<'static> {
        let event: serde_json::Value = serde_json::from_str(json).unwrap();
        let data = &event["data"];
        let text = |value: &serde_json::Value| Cow::Owned(value.as_str().unwrap().to_owned());
        let time = |value: &serde_json::Value| Timestamp::parse_rfc3339(&text(value)).unwrap();
        let absent = |value: &serde_json::Value| value.as_str().map(|text| text.to_owned().into());
        let custom_field = |field: &serde_json::Value| CustomField {
            key: text(&field["key"]),
            value: text(&field["value"]),
        };
        #[derive(serde::Deserialize)]
        struct Raw {
            data: Extra,
        }
        #[derive(serde::Deserialize)]
        struct Extra {
            extra: BTreeMap<String, Box<RawValue>>,
        }
        let extra = serde_json::from_str::<Raw>(json).unwrap().data.extra.into_iter();
        TopicCreated {
            id: text(&event["id"]).parse().unwrap(),
            event_type: text(&event["type"]),
            source: text(&event["source"]),
            time: time(&event["time"]),
            accepted_at: time(&data["accepted_at"]),
            sdk_app_id: data["sdk_app_id"].as_u64().unwrap(),
            client_ip: absent(&data["client"]["ip"]),
            client_platform: absent(&data["client"]["platform"]),
            topic_id: text(&data["topic_id"]),
            topic_name: text(&data["topic_name"]),
            group_id: text(&data["group_id"]),
            group_type: text(&data["group_type"]),
            operator: text(&data["operator"]),
            owner: text(&data["owner"]),
            custom_fields: data["custom_fields"]
                .as_array()
                .map(|fields| fields.iter().map(custom_field).collect()),
            extra: extra.map(|(k, v)| (k.into(), Cow::Owned(v.get().to_owned()))).collect(),
        }
    }

    proptest! {
        #[test]
        fn an_event_survives_encoding_and_decoding(event in event()) {
            let json = event.seal().structured();
            prop_assert!(!json.contains(['\n', '\r']), "an event is one line: {json}");
            prop_assert_eq!(decode(&json), event);
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
            let ids = [&one, &other].map(|(app, topic, time)| id(*app, topic, time.map(Timestamp::from_millis)));
            prop_assert_eq!(one == other, ids[0] == ids[1]);
        }
    }

    #[test]
    fn ids_never_change_between_releases() {
        let first = id(1_400_000_000, "@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_@TOPIC#cRTE3HIM62C5", None);
        assert_eq!(first.to_string(), "92f58f4e-5a60-5ecf-9e83-6cbb3350b7e3");
        assert_eq!(
            recreated_id(first, Timestamp::from_millis(1_700_000_000_000)).to_string(),
            "dbb7a59c-c6a2-5e53-8d7e-d5bc32d462ae"
        );
    }
}
