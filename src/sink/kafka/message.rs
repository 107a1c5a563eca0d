//! An event as a Kafka message and back: the Kafka protocol binding of CloudEvents 1.0. Pure.

use rdkafka::message::{Header, Headers, OwnedHeaders};
use serde_json::value::RawValue;

use super::super::outgoing::Outgoing;
use crate::message::reassemble;

const CONTENT_TYPE: &str = "content-type";
const PREFIX: &str = "ce_";

pub(super) fn headers(outgoing: &Outgoing) -> OwnedHeaders {
    let insert = |headers: OwnedHeaders, key: &str, value: &str| {
        headers.insert(Header { key, value: Some(value) })
    };
    let headers = OwnedHeaders::new_with_capacity(10);
    let headers = insert(headers, CONTENT_TYPE, outgoing.content_type);
    let headers = insert(headers, "traceparent", &outgoing.traceparent);
    let attributes = outgoing.attributes.iter();
    attributes
        .fold(headers, |headers, (name, value)| insert(headers, &format!("{PREFIX}{name}"), value))
}

/// A message as one line of JSON: the whole event, however it is encoded. A message that is not one of
/// our events is shown unchanged.
pub(super) fn line(headers: Option<&impl Headers>, payload: &str) -> String {
    let header = |name: &str| {
        let header = headers?.iter().find(|header| header.key == name)?;
        Some(String::from_utf8_lossy(header.value?).into_owned())
    };
    let attribute = |name: &str| match name {
        "datacontenttype" => header(CONTENT_TYPE),
        name => header(&format!("{PREFIX}{name}")),
    };
    let is_binary = attribute("specversion").is_some();
    let is_json = || serde_json::from_str::<&RawValue>(payload).is_ok();
    let line = match is_binary && is_json() {
        true => reassemble(attribute, payload),
        false => payload.to_owned(),
    };
    // In JSON, line breaks only occur between tokens.
    line.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Encoding;
    use crate::outbox::Stored;

    const EVENT: &str = r##"{"specversion":"1.0","id":"92f58f4e-5a60-5ecf-9e83-6cbb3350b7e3","type":"chat.topic.created.v1","source":"/apps/1400000000","subject":"@TOPIC#_\"é","time":"2026-11-22T18:00:00.123Z","datacontenttype":"application/json","dataschema":"urn:topic-bridge:schema:topic-created:v1","partitionkey":"@TGS#1","data":{"sdk_app_id":1400000000,"topic_name":"a b"}}"##;

    fn pairs(headers: &OwnedHeaders) -> Vec<(String, String)> {
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
    }

    fn check(encoding: Encoding, expected: &[(&str, &str)]) {
        let mut stored = Stored::of(1, <_>::default(), EVENT);
        stored.traceparent = Some("00-trace".into());
        let outgoing = Outgoing::new(&stored, encoding);
        let headers = headers(&outgoing);
        let pairs = pairs(&headers);
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, expected);
        assert_eq!(line(Some(&headers), &outgoing.body), EVENT, "read back");
    }

    #[test]
    fn a_structured_event_names_its_type_only() {
        let content_type = "application/cloudevents+json; charset=UTF-8";
        check(Encoding::Structured, &[("content-type", content_type), ("traceparent", "00-trace")]);
    }

    #[test]
    fn a_binary_event_has_its_attributes_as_headers() {
        check(
            Encoding::Binary,
            &[
                ("content-type", "application/json"),
                ("traceparent", "00-trace"),
                ("ce_specversion", "1.0"),
                ("ce_id", "92f58f4e-5a60-5ecf-9e83-6cbb3350b7e3"),
                ("ce_type", "chat.topic.created.v1"),
                ("ce_source", "/apps/1400000000"),
                ("ce_subject", "@TOPIC#_\"é"),
                ("ce_time", "2026-11-22T18:00:00.123Z"),
                ("ce_dataschema", "urn:topic-bridge:schema:topic-created:v1"),
                ("ce_partitionkey", "@TGS#1"),
            ],
        );
    }

    #[test]
    fn what_others_wrote_into_the_topic_is_still_one_line() {
        let none: Option<&OwnedHeaders> = None;
        assert_eq!(line(none, "{\n\"a\":1\r\n}"), "{ \"a\":1  }");
        let binary = [("ce_specversion", "1.0"), ("ce_id", "1"), ("mine", "x")];
        let headers = binary.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        assert_eq!(line(Some(&headers), "no\nJSON"), "no JSON");
        assert_eq!(
            line(Some(&headers), "1\n"),
            r#"{"specversion":"1.0","id":"1","datacontenttype":"application/json","data":1 }"#
        );
    }
}
