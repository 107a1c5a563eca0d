"""What the schemas of Kubernetes let through and is wrong all the same. Called by tests/deploy.sh."""

import sys
import tomllib

import yaml


def seconds(text):
    """A duration as the configuration has it: 1500ms, 5s."""
    return int(text[:-2]) / 1000 if text.endswith("ms") else int(text.removesuffix("s"))


def worst_stop(toml):
    """How long a stop may take: see src/app.rs."""
    defaults = tomllib.load(open("config/default.toml", "rb"))
    own = tomllib.loads(toml)
    def value(section, key):
        return seconds(own.get(section, {}).get(key, defaults[section][key]))
    ingress = sum(value("ingress", key) for key in ("drain_delay", "request_timeout", "ack_deadline"))
    return ingress + 2 + 1 + value("relay", "drain_timeout") + 3 + 2 + 3


objects = [it for it in yaml.safe_load_all(open(sys.argv[1])) if it]
workload = next(it for it in objects if it["kind"] in ("StatefulSet", "Deployment"))
pod = workload["spec"]["template"]
labels = pod["metadata"]["labels"].items()
spec = pod["spec"]
containers = spec.get("initContainers", []) + spec["containers"]
bridge = next(it for it in containers if it["name"] == "topic-bridge")
ports = {port["name"] for port in bridge["ports"]}
volumes = {it["name"] for it in spec["volumes"]}
volumes |= {it["metadata"]["name"] for it in workload["spec"].get("volumeClaimTemplates", [])}
toml = next(it for it in objects if it["kind"] == "ConfigMap")["data"]["bridge.toml"]

for it in objects:
    kind, its = it["kind"], it.get("spec", {})
    selector = its.get("podSelector", its.get("selector"))
    if selector is not None:
        selector = selector if kind == "Service" else selector.get("matchLabels")
        assert selector and selector.items() <= labels, f"{kind} selects other pods: {selector}"
    assert kind not in ("PodDisruptionBudget", "NetworkPolicy", "Service") or selector, f"{kind} has no selector"
    if kind == "Service":
        assert all(port["targetPort"] in ports for port in its["ports"]), f"a port of {its} is not there"
    if kind == "NetworkPolicy":
        private = [rule for rule in its["ingress"] if any(p["port"] == "private" for p in rule["ports"])]
        assert private and all(rule.get("from") for rule in private), "everybody reaches the private listener"
for container in containers:
    mounted = {it["name"] for it in container.get("volumeMounts", [])}
    assert mounted <= volumes, f"a volume of {mounted} is not there"
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], container["name"]
    assert context["capabilities"] == {"drop": ["ALL"]}, container["name"]
for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
    assert bridge[probe]["httpGet"]["port"] in ports, probe
grace, worst = spec["terminationGracePeriodSeconds"], worst_stop(toml)
needed = worst if workload["kind"] == "StatefulSet" else worst + 30  # the app is stopped first
assert grace >= needed, f"terminationGracePeriodSeconds is {grace}, and a stop may take {needed} s"
