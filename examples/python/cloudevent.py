"""What the consumers of all three brokers have in common: reading a CloudEvent in either encoding, and
doing the work once for each event id."""

import json
import os
from collections import OrderedDict

REMEMBERED = 10_000  # repeats come soon after the first, so a few thousand ids are plenty


def read_event(content_type, attributes, body):
    """The whole CloudEvent. `attributes` are those headers that have the binary encoding's prefix,
    without it; in the structured encoding they stand in the body. Raises ValueError."""
    body = json.loads(body)
    if content_type.startswith("application/cloudevents+json"):
        event = body
    else:
        event = {**attributes, "datacontenttype": content_type, "data": body}
    if not isinstance(event, dict) or "id" not in event or not isinstance(event.get("data"), dict):
        raise ValueError("it lacks its id or its data")
    return event


class Worker:
    """Does the work. A real service keeps the ids in the same transaction as what it does with the event:
    kept in memory, they are forgotten when it restarts."""

    def __init__(self):
        self.done = OrderedDict()
        self.left = int(os.environ.get("COUNT", -1))  # how many events are left to take; negative for no end

    def is_done(self):
        return self.left == 0

    def work(self, event):
        """When this returns, the event may be acknowledged: not before."""
        id, data = event["id"], event["data"]
        if id in self.done:
            print(f"skipped repeat {id}", flush=True)
            return
        fields = " ".join(f"{name}={json.dumps(data.get(name), ensure_ascii=False)}"
                          for name in ["topic_id", "topic_name", "owner"])
        print(f"{id} {fields}", flush=True)
        self.done[id] = True
        if len(self.done) > REMEMBERED:
            self.done.popitem(last=False)
        self.left -= 1
