"""Reads topic-created events from NATS JetStream through a durable consumer, which remembers on the server how
far it is. With COUNT=n it ends after n events, else at Ctrl-C."""

import asyncio
import os
import sys
from urllib.parse import unquote

import nats
from nats.errors import Error, TimeoutError
from nats.js.api import AckPolicy, ConsumerConfig

from cloudevent import Worker, read_event


def event(message):
    headers = message.headers or {}
    # Header values are printable ASCII: what is not comes as %XX, a byte of UTF-8 each, and so does %.
    attributes = {name[3:]: unquote(value) for name, value in headers.items() if name.startswith("ce-")}
    return read_event(headers.get("Content-Type", ""), attributes, message.data)


async def main():
    stream = os.environ.get("NATS_STREAM", "CHAT_TOPICS")
    name = os.environ.get("NATS_CONSUMER", "topic-consumer")
    client = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    jetstream = client.jetstream()
    # Does nothing where it exists. From the oldest event on, each to be acknowledged by itself.
    await jetstream.add_consumer(stream, ConsumerConfig(durable_name=name, ack_policy=AckPolicy.EXPLICIT))
    subscription = await jetstream.pull_subscribe_bind(name, stream=stream)
    worker = Worker()
    try:
        while not worker.is_done():
            try:
                # One at a time, for what was fetched and not worked on at the end would come again only after 30 s.
                [message] = await subscription.fetch(1, timeout=5)
            except TimeoutError:
                continue
            try:
                received = event(message)
            except ValueError as error:
                print(f"not an event, not to come again: {error}", file=sys.stderr)
                await message.term()
            else:
                worker.work(received)
                try:
                    # Waits until the server has it: what it does not have after 30 s, it delivers again.
                    await message.ack_sync()
                except Error as error:
                    print(f"not acknowledged, so it comes again: {error}", file=sys.stderr)
    finally:
        await client.close()


try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
