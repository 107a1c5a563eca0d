"""Reads both forms of /metrics with somebody else's parsers (the package prometheus-client), for the tests.

Takes {"text": …, "openmetrics": …} on standard input. The two must show the same samples, with the same values but for
the process's own, which change from one moment to the next. Says how many samples there are, and each exemplar's trace.
"""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text


def samples(families):
    """Each sample by its name and labels, its edge as a number."""
    found = {}
    for family in families:
        for sample in family.samples:
            labels = {name: float(value) if name == "le" else value for name, value in sample.labels.items()}
            found[sample.name, *sorted(labels.items())] = sample
    return found


given = json.load(sys.stdin)
plain = samples(text(given["text"]))
rich = samples(openmetrics(given["openmetrics"]))
if plain.keys() != rich.keys():
    sys.exit(f"only one of the formats has {sorted(plain.keys() ^ rich.keys())}")
for key, sample in plain.items():
    if sample.exemplar:
        sys.exit(f"the text format has no exemplars, and here is one: {sample}")
    if not sample.name.startswith("process_") and sample.value != rich[key].value:
        sys.exit(f"the formats disagree: {sample} and {rich[key]}")
print(f"{len(rich)} samples")
for sample in rich.values():
    if sample.exemplar:
        print(sample.name, sample.exemplar.labels["trace_id"])
