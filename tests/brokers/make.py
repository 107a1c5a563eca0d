"""Makes and changes what a broker has, with somebody else's client, for the tests.

  make.py kafka ADDRESS TOPIC '{"min.insync.replicas": "2", "replicas": 2}'
                                          a topic with this configuration, or changed to it; {"delete": true} removes it
  make.py rabbitmq URL NAME '{"queue": {"x-max-length": 5}, "binding": "a.*"}'
                                          an exchange and a quorum queue of this name, bound; "delete": true removes both,
                                          "delete": "queue" the queue alone
  make.py nats URL STREAM '{"subjects": ["a.*"], "max_msgs": 5}'   a stream, or changed to it; {"delete": true} removes it
"""

import asyncio
import json
import sys


def kafka(address, topic, wanted):
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

    admin = AdminClient({"bootstrap.servers": address})
    if wanted.get("delete"):
        futures = admin.delete_topics([topic], operation_timeout=10)
    elif topic in admin.list_topics(timeout=10).topics:
        entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in wanted.items()]
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
        futures = admin.incremental_alter_configs([resource])
    else:
        replicas = int(wanted.pop("replicas", 1))
        futures = admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=replicas, config=wanted)])
    for future in futures.values():
        future.result()


def rabbitmq(url, name, wanted):
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    if wanted.get("delete"):
        channel.queue_delete(name)
        if wanted["delete"] != "queue":
            channel.exchange_delete(name)
    else:
        channel.exchange_declare(name, "topic", durable=True)
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", **wanted.get("queue", {})})
        channel.queue_bind(name, name, wanted.get("binding", "#"))
    connection.close()


async def nats(url, stream, wanted):
    import nats
    from nats.js.api import StreamConfig
    from nats.js.errors import NotFoundError

    client = await nats.connect(url)
    jetstream = client.jetstream()
    if wanted.get("delete"):
        await jetstream.delete_stream(stream)
    else:
        config = StreamConfig.from_response({"name": stream, "discard": "new", "storage": "file", **wanted})
        try:
            await jetstream.stream_info(stream)
            await jetstream.update_stream(config)
        except NotFoundError:
            await jetstream.add_stream(config)
    await client.close()


def main():
    kind, address, name, wanted = sys.argv[1:]
    wanted = json.loads(wanted)
    if kind == "kafka":
        kafka(address, name, wanted)
    elif kind == "rabbitmq":
        rabbitmq(address, name, wanted)
    else:
        asyncio.run(nats(address, name, wanted))


main()
