"""Reads topic-created events from the queue that the bridge declares in RabbitMQ. Several of these share its
events. With COUNT=n it ends after n events, else at Ctrl-C."""

import os
import sys

import pika

from cloudevent import Worker, read_event

PREFIX = "ce-"


def event(properties, body):
    headers = properties.headers or {}
    attributes = {name[len(PREFIX):]: value for name, value in headers.items() if name.startswith(PREFIX)}
    return read_event(properties.content_type or "", attributes, body)


def main():
    url = os.environ.get("RABBITMQ_URL", "amqp://127.0.0.1:5672/%2f")
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    # So many events are on their way at once; without it the whole queue would be.
    channel.basic_qos(prefetch_count=100)
    worker = Worker()
    try:
        # Wakes once a second, so that Ctrl-C is heard.
        deliveries = channel.consume(os.environ.get("RABBITMQ_QUEUE", "chat.topic.created"), inactivity_timeout=1)
        while not worker.is_done():
            method, properties, body = next(deliveries)
            if method is None:
                continue
            try:
                received = event(properties, body)
            except ValueError as error:
                print(f"not an event, rejected: {error}", file=sys.stderr)
                channel.basic_reject(method.delivery_tag, requeue=False)
            else:
                worker.work(received)
                channel.basic_ack(method.delivery_tag)
    except KeyboardInterrupt:
        pass
    # What was not acknowledged by now is given to the next consumer.
    connection.close()


main()
