"""Reads what was published with somebody else's client, for the tests.

  read.py kafka ADDRESS TOPIC COUNT
  read.py rabbitmq URL QUEUE COUNT
  read.py nats URL STREAM COUNT

Prints a JSON line for each message, from the oldest on: what it was addressed to (partition and key,
routing key, or subject), its headers and properties, its body. It ends when COUNT different events were
seen and nothing more came for a second, so that repeats show; if it waits for them in vain for a minute, with code 1.
"""

import asyncio
import json
import sys
import time

QUIET = 1.0
PATIENCE = 60.0


class Reader:
    def __init__(self, count):
        self.count = count
        self.ids = set()
        self.last = time.monotonic()

    def saw(self, body, headers, **rest):
        text = body.decode()
        binary = {"ce_id", "ce-id"} & headers.keys()
        self.ids.add(headers[binary.pop()] if binary else json.loads(text)["id"])
        print(json.dumps({"body": text, "headers": headers, **rest}))
        self.last = time.monotonic()

    def is_done(self):
        now = time.monotonic()
        if len(self.ids) >= self.count:
            return now - self.last > QUIET
        if now - self.last > PATIENCE:
            sys.stdout.flush()
            sys.exit(f"read.py: {len(self.ids)} of {self.count} events came")
        return False


def kafka(address, topic, reader):
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": "read.py", "enable.auto.commit": False, "fetch.wait.max.ms": 50}
    )
    seen = consumer.list_topics(topic, timeout=10).topics[topic]
    if seen.error:
        sys.exit(f"read.py: {topic}: {seen.error}; wait for the topic first")
    partitions = seen.partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    while not reader.is_done():
        message = consumer.poll(0.1)
        if message is None:
            continue
        if message.error():
            sys.exit(f"read.py: {message.error()}")
        headers = {name: value.decode() for name, value in message.headers() or []}
        key = message.key().decode()
        reader.saw(message.value(), headers, key=key, partition=message.partition(), offset=message.offset())
    consumer.close()


def rabbitmq(url, queue, reader):
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1000)
    for method, properties, body in channel.consume(queue, inactivity_timeout=0.1):
        if method:
            names = ["delivery_mode", "message_id", "timestamp", "content_type", "type", "app_id"]
            values = {name: getattr(properties, name) for name in names}
            reader.saw(body, properties.headers or {}, routing_key=method.routing_key, properties=values)
            channel.basic_ack(method.delivery_tag)
        if reader.is_done():
            break
    connection.close()


async def nats(url, stream, reader):
    import nats
    from nats.errors import TimeoutError
    from nats.js.api import ConsumerConfig, DeliverPolicy

    client = await nats.connect(url)
    config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
    subscription = await client.jetstream().subscribe(">", stream=stream, config=config, ordered_consumer=True)
    while not reader.is_done():
        try:
            message = await subscription.next_msg(timeout=0.1)
        except TimeoutError:
            continue
        reader.saw(message.data, dict(message.headers or {}), subject=message.subject)
    await client.close()


def main():
    kind, address, name, count = sys.argv[1:]
    reader = Reader(int(count))
    if kind == "kafka":
        kafka(address, name, reader)
    elif kind == "rabbitmq":
        rabbitmq(address, name, reader)
    else:
        asyncio.run(nats(address, name, reader))


main()
