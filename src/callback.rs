//! The platform's callback protocol: query string and body in, a typed [`Callback`] out. Pure: no clock,
//! no I/O, no logging.
//!
//! Parsing is tolerant where the platform is loose (parameter names in any case, numbers sent as text,
//! unknown fields) and strict where an event would otherwise be wrong.

mod commands;
mod unknown;

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::time::Timestamp;
pub(crate) use commands::{KNOWN_COMMANDS, command_in, command_label};
use unknown::carried;

/// The one command that becomes an event.
pub(crate) const TOPIC_CREATED: &str = "Group.CallbackAfterCreateTopic";

/// How long the platform waits for an answer; a later one counts as a failure.
pub(crate) const PLATFORM_WAITS: Duration = Duration::from_secs(2);

/// From the year 2000 to the last millisecond of 9999: the platform is younger, and RFC 3339 cannot represent
/// a later time. The same moments in seconds are all earlier than this.
const EVENT_TIMES: RangeInclusive<u64> = 946_684_800_000..=253_402_300_799_999;

/// What the platform appends to the callback URL. Nothing here is checked yet.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Query<'a> {
    pub(crate) sdk_app_id: Option<u64>,
    pub(crate) command: Option<Cow<'a, str>>,
    pub(crate) client_ip: Option<Cow<'a, str>>,
    pub(crate) platform: Option<Cow<'a, str>>,
    pub(crate) sign: Option<Cow<'a, str>>,
    pub(crate) request_time: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    /// Parses a raw query string. Any bytes are accepted, and unknown parameters are skipped. The
    /// platform appends its parameters to the operator's own URL, so the last of two values counts.
    pub(crate) fn parse(raw: &'a str) -> Self {
        let mut query = Query::default();
        for (name, value) in form_urlencoded::parse(raw.as_bytes()) {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            if is("SdkAppid") {
                query.sdk_app_id = digits(&value);
            } else if is("CallbackCommand") {
                query.command = Some(value);
            } else if is("ClientIP") {
                query.client_ip = Some(value).filter(|ip| !ip.is_empty());
            } else if is("OptPlatform") {
                query.platform = Some(value).filter(|platform| !platform.is_empty());
            } else if is("Sign") {
                query.sign = Some(value);
            } else if is("RequestTime") {
                query.request_time = Some(value);
            }
        }
        query
    }
}

/// A number of decimal digits only (`str::parse` also accepts a leading `+`).
pub(crate) fn digits(text: &str) -> Option<u64> {
    let only_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if only_digits { text.parse().ok() } else { None }
}

/// The body of a topic-created callback, checked: every required field is there and has its type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Callback<'a> {
    pub(crate) group_id: Cow<'a, str>,
    pub(crate) topic_id: Cow<'a, str>,
    pub(crate) operator: Cow<'a, str>,
    pub(crate) owner: Cow<'a, str>,
    pub(crate) group_type: Cow<'a, str>,
    pub(crate) name: Cow<'a, str>,
    /// In the user's order; a key may be repeated. Absent unless the app has the feature enabled.
    pub(crate) custom_fields: Option<Vec<CustomField<'a>>>,
    pub(crate) event_time: Option<Timestamp>,
    /// Fields that this program does not know, and an `EventTime` that is no time: name and compact JSON text,
    /// which any strict reader can read.
    pub(crate) extra: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct CustomField<'a> {
    pub(crate) key: Cow<'a, str>,
    pub(crate) value: Cow<'a, str>,
}

/// Why an authentic body is not a topic-created callback. Names fields, never their values, so it may be
/// answered and logged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) String);

impl<'a> Callback<'a> {
    /// Parses a body. Any bytes are accepted; no input panics.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(body)
            .map_err(|error| malformed(format!("body is not UTF-8: {error}")))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text); // a byte-order mark
        let field = Cell::new("");
        let mut json = serde_json::Deserializer::from_str(text);
        let body = json
            .deserialize_map(BodyVisitor { field: &field })
            .and_then(|body| json.end().map(|()| body))
            .map_err(|error| explain(&error, field.get()))?;
        body.check()
    }
}

fn malformed(reason: impl Into<String>) -> Malformed {
    Malformed(reason.into())
}

/// serde's own message for a wrong type quotes the value, which may be a person's name; ours does not.
fn explain(error: &serde_json::Error, field: &str) -> Malformed {
    match (error.classify(), field) {
        (serde_json::error::Category::Data, "") => malformed("body is not a JSON object"),
        (serde_json::error::Category::Data, "UserDefinedDataList") => {
            malformed("UserDefinedDataList is not a list of Key and Value, both strings")
        }
        (serde_json::error::Category::Data, field) => malformed(format!("{field} is not a string")),
        _ => malformed(format!("body is not JSON: {error}")),
    }
}

/// The body as received: fields may be missing.
#[derive(Default)]
struct RawBody<'a> {
    command: Option<Cow<'a, str>>,
    group_id: Option<Cow<'a, str>>,
    topic_id: Option<Cow<'a, str>>,
    operator: Option<Cow<'a, str>>,
    owner: Option<Cow<'a, str>>,
    group_type: Option<Cow<'a, str>>,
    name: Option<Cow<'a, str>>,
    custom_fields: Option<Vec<Object<'a>>>,
    event_time: Option<&'a RawValue>,
    extra: BTreeMap<Cow<'a, str>, &'a RawValue>,
}

/// Serde borrows a `Cow` only inside a type that says so.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

#[derive(Deserialize)]
struct RawCustomField<'a> {
    #[serde(borrow, rename = "Key")]
    key: Cow<'a, str>,
    #[serde(borrow, rename = "Value")]
    value: Cow<'a, str>,
}

/// Only from an object: serde also reads a struct from a list of its values.
struct Object<'a>(RawCustomField<'a>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        RawCustomField::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// Keeps the name of the field that is being read, for [`explain`].
struct BodyVisitor<'c> {
    field: &'c Cell<&'static str>,
}

impl<'de> Visitor<'de> for BodyVisitor<'_> {
    type Value = RawBody<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut body = RawBody::default();
        while let Some(Text(key)) = map.next_key()? {
            let (name, slot) = match &*key {
                "CallbackCommand" => ("CallbackCommand", &mut body.command),
                "GroupId" => ("GroupId", &mut body.group_id),
                "TopicId" => ("TopicId", &mut body.topic_id),
                "Operator_Account" => ("Operator_Account", &mut body.operator),
                "Owner_Account" => ("Owner_Account", &mut body.owner),
                "Type" => ("Type", &mut body.group_type),
                "Name" => ("Name", &mut body.name),
                "UserDefinedDataList" => {
                    self.field.set("UserDefinedDataList");
                    body.custom_fields = map.next_value()?;
                    continue;
                }
                "EventTime" => {
                    body.event_time = Some(map.next_value()?);
                    continue;
                }
                _ => {
                    body.extra.insert(key, map.next_value()?);
                    continue;
                }
            };
            self.field.set(name);
            *slot = Some(map.next_value::<Text>()?.0);
        }
        Ok(body)
    }
}

impl<'a> RawBody<'a> {
    fn check(self) -> Result<Callback<'a>, Malformed> {
        let required = |name: &str, value: Option<Cow<'a, str>>| {
            value.ok_or_else(|| malformed(format!("{name} is missing")))
        };
        let filled = |name: &str, value| match required(name, value) {
            Ok(value) if value.is_empty() => Err(malformed(format!("{name} is empty"))),
            other => other,
        };
        let command = required("CallbackCommand", self.command)?;
        if command != TOPIC_CREATED {
            return Err(malformed("the CallbackCommand of the body is not that of the URL"));
        }
        let custom_fields = self.custom_fields.map(|fields| {
            let lift = |Object(RawCustomField { key, value })| CustomField { key, value };
            fields.into_iter().map(lift).collect()
        });
        let mut extra = BTreeMap::new();
        for (name, value) in self.extra {
            extra.insert(name, carried(value.get())?);
        }
        let event_time = self.event_time.and_then(event_time);
        if let (Some(no_time), None) = (self.event_time, event_time) {
            extra.insert(Cow::Borrowed("EventTime"), carried(no_time.get())?);
        }
        Ok(Callback {
            group_id: filled("GroupId", self.group_id)?,
            topic_id: filled("TopicId", self.topic_id)?,
            operator: required("Operator_Account", self.operator)?,
            owner: required("Owner_Account", self.owner)?,
            group_type: required("Type", self.group_type)?,
            name: required("Name", self.name)?,
            custom_fields,
            event_time,
            extra,
        })
    }
}

/// Documented as an integer, but shown in the platform's samples as a string: both are accepted. What is
/// not a time in milliseconds between 2000 and 9999 (seconds, a fraction, nothing) is not an event's time;
/// nobody promised one, so it is no reason to refuse a callback.
fn event_time(value: &RawValue) -> Option<Timestamp> {
    let text = value.get();
    let number = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    digits(number).filter(|time| EVENT_TIMES.contains(time)).map(Timestamp::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(change: &str) -> String {
        let rest = r#""CallbackCommand":"Group.CallbackAfterCreateTopic","GroupId":"g","TopicId":"t",
            "Operator_Account":"o","Owner_Account":"w","Type":"Community","Name":"n""#;
        format!("{{{rest}{change}}}")
    }

    #[test]
    fn parameter_names_match_in_any_case_and_values_are_decoded() {
        let query =
            Query::parse("a=b&SDKAPPID=14&callbackcommand=x%2Ey&Sign=AB&requesttime=7&=&&%");
        assert_eq!(query.sdk_app_id, Some(14));
        assert_eq!(query.command.as_deref(), Some("x.y"));
        assert_eq!(query.sign.as_deref(), Some("AB"));
        assert_eq!(query.request_time.as_deref(), Some("7"));
        assert_eq!(query.client_ip, None);
    }

    #[test]
    fn an_app_id_is_digits_only() {
        for wrong in ["", "+14", "-1", "14x", "1 4", "99999999999999999999"] {
            let raw = format!("SdkAppid={}", wrong.replace('+', "%2B"));
            assert_eq!(Query::parse(&raw).sdk_app_id, None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_body_is_named_without_its_values() {
        let check = |body: &[u8], reason: &str| {
            let found = Callback::parse(body).expect_err(reason).to_string();
            assert!(found.contains(reason), "{found:?} should say {reason:?}");
        };
        check(b"", "body is not JSON");
        check(b"\xff{}", "body is not UTF-8");
        check(b"[1]", "body is not a JSON object");
        check(b"\"x\"", "body is not a JSON object");
        check(b"{}", "CallbackCommand is missing");
        check(b"{} x", "body is not JSON");
        check(body(r#","GroupId":"""#).as_bytes(), "GroupId is empty");
        check(body(r#","TopicId":7"#).as_bytes(), "TopicId is not a string");
        check(body(r#","Name":null"#).as_bytes(), "Name is not a string");
        check(body(r#","Name":"\ud800""#).as_bytes(), "body is not JSON");
        check(body(r#","CallbackCommand":"x""#).as_bytes(), "is not that of the URL");
        check(body(r#","UserDefinedDataList":{"Key":1}"#).as_bytes(), "is not a list of Key");
        check(
            body(r#","UserDefinedDataList":[{"Key":"a","Value":1}]"#).as_bytes(),
            "is not a list",
        );
        check(body(r#","UserDefinedDataList":[["a","b"]]"#).as_bytes(), "is not a list of Key");
        check(body(r#","\ud800":1"#).as_bytes(), "body is not JSON");
        check("\u{feff}\u{feff}{}".as_bytes(), "body is not JSON");
        let deep = format!(r#","x":{}{}"#, "[".repeat(30_000), "]".repeat(30_000));
        check(body(&deep).as_bytes(), "nests 30000 levels deep, limit is 120");
    }

    #[test]
    fn event_time_is_taken_as_number_and_as_text_and_otherwise_stays_as_it_came() {
        let check = |text: &str, millis: Option<u64>| {
            let body = body(&format!(r#","EventTime": {text}"#));
            let callback = Callback::parse(body.as_bytes()).unwrap();
            assert_eq!(callback.event_time.map(Timestamp::as_millis), millis, "{text}");
            let kept = callback.extra.get("EventTime").map(|kept| &**kept);
            assert_eq!(kept, millis.is_none().then_some(text));
        };
        for time in [1_670_574_414_123, 946_684_800_000, 253_402_300_799_999] {
            check(&time.to_string(), Some(time));
            check(&format!("\"{time}\""), Some(time));
        }
        for no_time in [
            "null",
            "\"\"",
            "0",
            "1670574414",
            "\"1670574414\"",
            "946684799999",
            "253402300800000",
            "18446744073709551616",
            "1670574414123.5",
            "1670574414123e0",
            "-1",
            "\"+1670574414123\"",
            "\" 1670574414123\"",
            "\"soon\"",
            "true",
            "[1670574414123]",
            r#"{"at":1670574414123}"#,
        ] {
            check(no_time, None);
        }
        let body = body(r#","EventTime":1e400"#);
        let callback = Callback::parse(body.as_bytes()).unwrap();
        assert_eq!(callback.extra["EventTime"], r#""1e400""#);
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let marked = format!("\u{feff}{}", body(""));
        assert_eq!(
            Callback::parse(marked.as_bytes()).unwrap(),
            Callback::parse(body("").as_bytes()).unwrap()
        );
    }

    #[test]
    fn unknown_fields_stay_to_the_letter_but_for_blanks() {
        let body =
            body(",\"n\" : 18446744073709551616.0 ,\"s\":\"a \\\" b\",\"o\":{ \"k\" :\n[ 1 ] }");
        let callback = Callback::parse(body.as_bytes()).unwrap();
        let extra: Vec<_> = callback.extra.iter().map(|(k, v)| (&**k, &**v)).collect();
        let expected =
            [("n", "18446744073709551616.0"), ("o", r#"{"k":[1]}"#), ("s", r#""a \" b""#)];
        assert_eq!(extra, expected);
    }

    proptest! {
        #[test]
        fn no_query_panics(raw in ".*") {
            Query::parse(&raw);
        }

        #[test]
        fn no_body_panics(raw in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Callback::parse(&raw);
        }

        #[test]
        fn no_nearly_right_body_panics(inserted in ".{0,20}", at in 0_usize..200) {
            let mut text = body(r#","UserDefinedDataList":[],"EventTime":1,"x":{"y":[1,"z"]}"#);
            let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            text.insert_str(at, &inserted);
            let _ = Callback::parse(text.as_bytes());
        }
    }
}
