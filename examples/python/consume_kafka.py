"""Reads topic-created events from Kafka as a member of a consumer group, and goes on where the group was.
With COUNT=n it ends after n events, else at Ctrl-C."""

import os
import sys

from confluent_kafka import Consumer, KafkaException

from cloudevent import Worker, read_event


def event(message):
    headers = {name: (value or b"").decode() for name, value in message.headers() or []}
    attributes = {name[3:]: value for name, value in headers.items() if name.startswith("ce_")}
    return read_event(headers.get("content-type", ""), attributes, message.value() or b"")


def main():
    consumer = Consumer({
        "bootstrap.servers": os.environ.get("KAFKA_BROKERS", "127.0.0.1:9092"),
        "group.id": os.environ.get("KAFKA_GROUP", "topic-consumer"),
        # A new group begins with the oldest event that the topic still has.
        "auto.offset.reset": "earliest",
        # Offsets are committed in the background, but none before `store_offsets` says that the work is done.
        "enable.auto.offset.store": False,
    })
    consumer.subscribe([os.environ.get("KAFKA_TOPIC", "chat.topic.created")])
    worker = Worker()
    try:
        while not worker.is_done():
            message = consumer.poll(1)
            if message is None:
                continue
            if message.error():
                if message.error().fatal():
                    sys.exit(f"the client gave up: {message.error()}")
                print(f"{message.error()}: trying again", file=sys.stderr)
                continue
            try:
                received = event(message)
            except ValueError as error:
                print(f"not an event, passed over: {error}", file=sys.stderr)
            else:
                worker.work(received)
            try:
                consumer.store_offsets(message)
            except KafkaException as error:
                # The partition has gone to another member meanwhile: that one reads it again.
                print(f"not acknowledged: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()  # commits what is stored, and leaves the group


main()
