//! An event as an AMQP message: properties, headers, routing key, body.

use std::borrow::Cow;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::super::outgoing::Outgoing;
use crate::routing::Template;
use crate::verdict::{Kind, Reason};

/// The most bytes in an AMQP short string: routing keys, and all properties but headers.
pub(super) const SHORT: usize = 255;

/// Survives a broker restart.
const PERSISTENT: u8 = 2;

/// The prefix of attribute names in binary mode, by the one written binding for AMQP 0-9-1, Knative's, which the
/// CloudEvents SDKs follow. `cloudEvents_` is for AMQP 1.0.
pub(super) const PREFIX: &str = "ce-";

/// Room for the properties and for a header's name, in addition to the headers' values.
const PROPERTIES_BYTES: usize = 2048;

pub(super) struct Message<'a> {
    pub(super) id: String,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Cow<'a, str>,
}

impl<'a> Message<'a> {
    /// `frame_max` is the maximum size of a frame: all headers travel in one. An error is permanent.
    pub(super) fn new(
        outgoing: Outgoing<'a>,
        routing_key: &Template,
        frame_max: usize,
    ) -> Result<Self, Reason> {
        let mut headers = attributes(&outgoing, frame_max)?;
        let id = outgoing.id();
        let Outgoing { event, accepted_at, content_type, traceparent, body, .. } = outgoing;
        let traceparent = AMQPValue::LongString(traceparent.into_owned().into());
        headers.insert("traceparent".into(), traceparent);
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(short("id", id.as_str())?)
            .with_timestamp(accepted_at.as_millis() / 1000)
            .with_content_type(content_type.into())
            .with_type(short("type", event.event_type.as_str())?)
            .with_app_id("topic-bridge".into())
            .with_headers(headers);
        let routing_key = short("routing key", routing_key.render(event))?;
        Ok(Message { id, routing_key, properties, body })
    }
}

fn attributes(outgoing: &Outgoing, frame_max: usize) -> Result<FieldTable, Reason> {
    let attributes = &outgoing.attributes;
    let bytes: usize = attributes.iter().map(|(_, value)| value.len()).sum();
    if bytes + PROPERTIES_BYTES > frame_max {
        let text = format!(
            "its attributes are {bytes} bytes long, and RabbitMQ takes no headers over {frame_max} \
             bytes (its frame_max): with event.encoding = \"structured\" it can be sent"
        );
        return Err(Reason::new(Kind::Invalid, text));
    }
    let mut headers = FieldTable::default();
    for (name, value) in attributes {
        let name = format!("{PREFIX}{name}");
        headers.insert(name.into(), AMQPValue::LongString((&**value).into()));
    }
    Ok(headers)
}

fn short(what: &str, text: impl Into<String>) -> Result<ShortString, Reason> {
    ShortString::try_new(text).map_err(|error| {
        Reason::new(Kind::Invalid, format!("its {what} is too long for AMQP: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Encoding;
    use crate::outbox::Stored;
    use crate::time::Timestamp;

    const EVENT: &str = r#"{"specversion":"1.0","id":"cf3f2bd2-ed1d-5a5c-8c6c-2e1b39ac4e1c","type":"t.v1","source":"/apps/1","subject":"tö.pic","time":"2026-11-22T18:00:00.123Z","datacontenttype":"application/json","dataschema":"urn:topic-bridge:schema:topic-created:v1","partitionkey":"group","data":{"sdk_app_id":1}}"#;

    fn stored(traceparent: Option<&str>) -> Stored {
        let traceparent = traceparent.map(str::to_owned);
        Stored { traceparent, ..Stored::of(1, Timestamp::from_millis(1_700_000_000_999), EVENT) }
    }

    fn header(message: &Message, name: &str) -> Option<String> {
        match message.properties.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(value) => Some(value.to_string()),
            other => panic!("{name} is {other:?}"),
        }
    }

    #[test]
    fn a_message_says_what_it_is_in_both_encodings() {
        let stored = stored(None);
        let key = Template::parse("topic.{topic_id}").unwrap();
        for (encoding, content_type) in [
            (Encoding::Structured, "application/cloudevents+json; charset=UTF-8"),
            (Encoding::Binary, "application/json"),
        ] {
            let message = Message::new(Outgoing::new(&stored, encoding), &key, 131_072).unwrap();
            let properties = &message.properties;
            assert_eq!(*properties.delivery_mode(), Some(2));
            assert_eq!(
                *properties.message_id(),
                Some("cf3f2bd2-ed1d-5a5c-8c6c-2e1b39ac4e1c".into())
            );
            assert_eq!(*properties.timestamp(), Some(1_700_000_000));
            assert_eq!(*properties.content_type(), Some(content_type.into()));
            assert_eq!(*properties.kind(), Some("t.v1".into()));
            assert_eq!(*properties.app_id(), Some("topic-bridge".into()));
            assert_eq!(message.routing_key.as_str(), "topic.t%C3%B6%2Epic");
            let own = "00-cf3f2bd2ed1d5a5c8c6c2e1b39ac4e1c-8c6c2e1b39ac4e1c-01";
            assert_eq!(header(&message, "traceparent").unwrap(), own);
            let count = properties.headers().as_ref().unwrap().inner().len();
            if encoding == Encoding::Structured {
                assert_eq!((&*message.body, count), (EVENT, 1));
            } else {
                assert_eq!((&*message.body, count), (r#"{"sdk_app_id":1}"#, 9));
                assert_eq!(header(&message, "ce-subject").unwrap(), "tö.pic");
                assert_eq!(header(&message, "ce-specversion").unwrap(), "1.0");
            }
        }
    }

    #[test]
    fn the_trace_that_the_callback_brought_goes_along() {
        let brought = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let stored = stored(Some(brought));
        let key = Template::parse("topic").unwrap();
        let message = Message::new(Outgoing::new(&stored, Encoding::Structured), &key, 131_072);
        let message = message.unwrap();
        assert_eq!(header(&message, "traceparent").unwrap(), brought);
    }

    #[test]
    fn what_amqp_has_no_room_for_is_refused() {
        let mut stored = stored(None);
        let key = Template::parse("topic.{topic_id}").unwrap();
        let mut check = |topic_id: String, encoding, expected: &str| {
            stored.event.topic_id = topic_id;
            let message = Message::new(Outgoing::new(&stored, encoding), &key, 8192);
            let text = message.map_or_else(|reason| reason.text, |_| "fine".into());
            assert!(text.starts_with(expected), "{text}");
        };
        check("x".repeat(249), Encoding::Structured, "fine");
        check("x".repeat(250), Encoding::Structured, "its routing key is too long for AMQP");
        check("x".repeat(6200), Encoding::Binary, "its attributes are");
    }
}
