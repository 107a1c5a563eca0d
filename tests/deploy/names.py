"""Names that have to agree: of metrics, labels, alerts and images. Called by tests/deploy.sh."""

import json
import re
import sys
import urllib.request
from pathlib import Path

RULES = Path("deploy/prometheus/rules.yml").read_text()
DASHBOARD = json.loads(Path("deploy/grafana/dashboard.json").read_text())
# Only a bridge with ingress.tls has it.
WITH_TLS = {"topic_bridge_tls_certificate_expiry_timestamp_seconds"}


def dashboard_expressions():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["expr"]


def expressions():
    """The dashboard's expressions as rules, so that promtool reads them."""
    rules = [
        {"record": f"dashboard:{at}", "expr": expression.replace("$__rate_interval", "5m")}
        for at, expression in enumerate(dashboard_expressions())
    ]
    print(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML


def live(address):
    """Each name in deploy/ is shown by a running bridge, in both formats, of which Prometheus chooses one."""
    queries = [query["query"] for query in DASHBOARD["templating"]["list"]]
    used = "\n".join([RULES, *dashboard_expressions(), *queries])
    formats = {accept: show(address, accept) for accept in ("text/plain", "application/openmetrics-text")}
    for accept, (content_type, names, pairs) in formats.items():
        if not content_type.startswith(accept):
            yield f"{accept} is asked for, and {content_type} comes"
        yield from (f"{fault} as {accept}" for fault in missing(used, names, pairs))
    for pattern in re.findall(r'\ble=~"([^"]*)"', used):
        edges = [
            {float(value) for label, value in pairs if label == "le" and re.fullmatch(pattern, value)}
            for _, _, pairs in formats.values()
        ]
        if edges[0] != edges[1]:
            yield f'le=~"{pattern}" finds other edges in each format: {edges}'


def show(address, accept):
    reply = urllib.request.urlopen(urllib.request.Request(address, headers={"Accept": accept}), timeout=10)
    series = [line for line in reply.read().decode().splitlines() if line and not line.startswith("#")]
    names = {re.match(r"\w+", line)[0] for line in series}
    pairs = {pair for line in series for pair in re.findall(r'(\w+)="([^"]*)"', line)}
    return reply.headers["content-type"], names, pairs


def missing(used, names, pairs):
    metrics = set(re.findall(r"\b(?:topic_bridge|process)_\w+", used))
    for name in sorted(metrics - names - WITH_TLS):
        yield f"{name} is used, and a running bridge does not show it"
    if len(metrics) < 25:
        yield f"only {len(metrics)} names found: is the search broken?"
    for label, values in re.findall(r'\b(outcome|command|kind|sink)(?:=|=~|!=|!~)"([^"]*)"', used):
        for value in values.split("|"):
            if (label, value) not in pairs:
                yield f'{label}="{value}" is used, and a running bridge does not show it'
    for value in re.findall(r'\ble="([^"]*)"', used):
        if ("le", value) not in pairs:
            yield f'le="{value}" is used, and no histogram has that edge'


def alerts():
    """Each alert has its entry, and each entry its alert."""
    named = re.findall(r"- alert: (\w+)", RULES)
    linked = re.findall(r"runbook: docs/alerts\.md#(\w+)", RULES)
    if linked != [name.lower() for name in named]:
        yield "a runbook is missing, or leads to the entry of another alert"
    explained = re.findall(r"^### (TopicBridge\w+)$", Path("docs/alerts.md").read_text(), re.MULTILINE)
    for name in set(named) ^ set(explained):
        yield f"{name} is only in one of rules.yml and docs/alerts.md"


def images():
    """What users start and what the tests start is the same."""
    compose = Path("docker-compose.yml").read_text()
    versions = dict(re.findall(r"^(\w+)=(\S+)$", Path("tests/brokers/versions").read_text(), re.MULTILINE))
    wanted = {
        "apache/kafka": versions["kafka"],
        "nats": versions["nats"] + "-alpine",
        "rabbitmq": versions["rabbitmq_image"] + "-management",
    }
    for image, version in wanted.items():
        if f"image: {image}:{version}\n" not in compose:
            yield f"docker-compose.yml has not the image {image}:{version}"


faults = list(globals()[sys.argv[1]](*sys.argv[2:]) or [])
print("\n".join(faults))
sys.exit(bool(faults))
