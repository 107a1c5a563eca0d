//! An event as an AMQP message: properties, headers, routing key, body.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::super::{Kind, Reason};
use crate::event::{Encoding, Envelope};
use crate::outbox::Stored;
use crate::routing::Template;

/// The most bytes that AMQP's short text holds: routing keys, and all properties but headers.
pub(super) const SHORT: usize = 255;

/// Survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// Of the attributes' names in binary mode.
pub(super) const PREFIX: &str = "cloudEvents_";

/// Room for the properties, and for a header's name, beside the headers' values.
const PROPERTIES_BYTES: usize = 2048;

pub(super) struct Message<'a> {
    pub(super) id: &'a str,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// `frame_max` is how long a frame may be at most: all headers travel in one. An error is one for
    /// good.
    pub(super) fn new(
        stored: &Stored,
        envelope: &'a Envelope,
        encoding: Encoding,
        routing_key: &Template,
        frame_max: usize,
    ) -> Result<Self, Reason> {
        let headers = match encoding {
            Encoding::Structured => FieldTable::default(),
            Encoding::Binary => attributes(envelope, frame_max)?,
        };
        let traceparent = stored.traceparent.clone().unwrap_or_else(|| envelope.own_traceparent());
        let mut headers = headers;
        headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(short("id", &*envelope.id)?)
            .with_timestamp(stored.accepted_at / 1000)
            .with_content_type(Envelope::content_type(encoding).into())
            .with_type(short("type", &*envelope.event_type)?)
            .with_app_id("topic-bridge".into())
            .with_headers(headers);
        Ok(Message {
            id: &envelope.id,
            routing_key: short("routing key", routing_key.render(envelope))?,
            properties,
            body: envelope.body(encoding).as_bytes(),
        })
    }
}

fn attributes(envelope: &Envelope, frame_max: usize) -> Result<FieldTable, Reason> {
    let attributes = envelope.attributes();
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
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    Ok(headers)
}

fn short(what: &str, text: impl Into<String>) -> Result<ShortString, Reason> {
    ShortString::try_new(text).map_err(|error| {
        Reason::new(Kind::Invalid, format!("its {what} is too long for AMQP: {error}"))
    })
}
