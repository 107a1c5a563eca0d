"""Reads what was published with the official CloudEvents SDK for Python, for the tests:

  read.py kafka|rabbitmq|nats ADDRESS TOPIC|QUEUE|STREAM COUNT

Prints each event, from the oldest on, as the SDK understands it: a line of JSON with its attributes and data.
"""

import asyncio
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event


def show(event):
    attributes = {**event.get_attributes(), "time": event.get_time().isoformat().replace("+00:00", "Z")}
    data = event.get_data()
    print(json.dumps({**attributes, "data": data}))


def kafka(address, topic, count):
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": address, "group.id": "sdk", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    for message in consumer.consume(count, timeout=60):
        show(from_kafka_event(KafkaMessage(dict(message.headers()), message.key(), message.value())))
    consumer.close()


def rabbitmq(url, queue, count):
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    deliveries = connection.channel().consume(queue, auto_ack=True, inactivity_timeout=60)
    for _, (_, properties, body) in zip(range(count), deliveries):
        show(from_rabbitmq_event(RabbitMQMessage(properties.headers, properties.content_type, body)))
    connection.close()


async def nats(url, stream, count):
    """The SDK has no binding for NATS, which follows the one for HTTP."""
    import nats

    client = await nats.connect(url)
    subscription = await client.jetstream().subscribe(">", stream=stream, ordered_consumer=True)
    for _ in range(count):
        message = await subscription.next_msg(timeout=60)
        show(from_http_event(HTTPMessage(message.headers, message.data)))
    await client.close()


kind, address, name, count = sys.argv[1:]
if kind == "nats":
    asyncio.run(nats(address, name, int(count)))
else:
    {"kafka": kafka, "rabbitmq": rabbitmq}[kind](address, name, int(count))
