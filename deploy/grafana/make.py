#!/usr/bin/env python3
"""Writes dashboard.json, which Grafana 10 or later imports as it is. Change the dashboard here, not there:

    deploy/grafana/make.py > deploy/grafana/dashboard.json
"""

import json

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = '{job=~"$job", instance=~"$instance"}'
WINDOW = "[$__rate_interval]"
WIDTH = 24


def here(name, labels=""):
    """A metric of the bridges that are chosen."""
    return name + HERE[:-1] + (f", {labels}}}" if labels else "}")


def rate(name, labels=""):
    return f"rate({here(name, labels)}{WINDOW})"


def quantile(share, name):
    return f"histogram_quantile({share}, sum by (le) ({rate(name + '_bucket')}))"


def percentiles(name):
    return [(quantile(share, name), title) for share, title in ((0.5, "half"), (0.99, "99 %"), (0.999, "99.9 %"))]


def panel(title, kind, width, height, queries, unit, description, defaults=None, options=None):
    targets = [
        {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for at, (expression, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, **(defaults or {})}, "overrides": []},
        "options": options or {},
    }


def limits(*steps):
    """From green on: (value, colour)."""
    steps = [{"value": None, "color": "green"}] + [{"value": value, "color": color} for value, color in steps]
    return {"thresholds": {"mode": "absolute", "steps": steps}}


def number(title, query, unit, description, *steps, mappings=()):
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "area"}
    defaults = {**limits(*steps), "mappings": list(mappings)}
    return panel(title, "stat", 4, 4, [(query, "")], unit, description, defaults, options)


def graph(title, queries, unit, description, stacked=False, line_at=None, logarithmic=False):
    custom = {"fillOpacity": 20 if stacked else 5, "stacking": {"mode": "normal" if stacked else "none"}}
    if logarithmic:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    defaults = {"custom": custom}
    if line_at is not None:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults |= limits((line_at, "red"))
    options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return panel(title, "timeseries", 12, 8, queries, unit, description, defaults, options)


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": WIDTH, "h": 1}}


UP = {"type": "value", "options": {"0": {"text": "down", "color": "red"}, "1": {"text": "up", "color": "green"}}}
FULL = f"max({here('topic_bridge_outbox_bytes')} / {here('topic_bridge_outbox_max_bytes')})"
REFUSED = "unauthenticated|stale|unknown_app|malformed|too_large|timeout|overloaded"

PANELS = [
    number("Sink", f"min({here('topic_bridge_sink_up')})", "none",
           "Whether each bridge's broker takes events. /readyz has the reason in words.",
           mappings=[UP]),
    number("Oldest pending event", f"max({here('topic_bridge_outbox_oldest_pending_seconds')})", "s",
           "How long the oldest event waits for the broker.", (60, "yellow"), (300, "red")),
    number("Last callback", f"time() - max({here('topic_bridge_last_callback_timestamp_seconds')} > 0)", "s",
           "How long ago the last authentic callback came."),
    number("Outbox", FULL, "percentunit",
           "Of outbox.max_bytes, at which callbacks are refused. History counts, and gives way from 90 % on.",
           (0.92, "yellow"), (0.95, "red")),
    number("Dead letters", f"sum({here('topic_bridge_dead_letters')})", "none",
           "Events that the broker refused for good.", (1, "red")),
    number("Quarantine", f"sum({here('topic_bridge_quarantined')})", "none",
           "Authentic callbacks that could not be understood.", (1, "yellow")),
    row("Callbacks"),
    graph("Callbacks by outcome",
          [(f"sum by (outcome) ({rate('topic_bridge_callbacks_total')})", "{{outcome}}")], "reqps",
          "How callbacks ended.", stacked=True),
    graph("Refused callbacks",
          [(f"sum by (outcome) ({rate('topic_bridge_callbacks_total', f'outcome=~{chr(34)}{REFUSED}{chr(34)}')})",
            "{{outcome}}")], "reqps",
          "Each of these is lost if it was the platform's, but the malformed ones, which are in quarantine."),
    graph("Time to answer", percentiles("topic_bridge_ack_seconds"), "s",
          "From a callback's arrival to its answer. The platform gives up after 2 s: the dashed line.",
          line_at=2, logarithmic=True),
    graph("Answers by time", [
        (f"sum by (le) ({rate('topic_bridge_ack_seconds_bucket', f'le=~{chr(34)}0.01|0.1|1.0|2.0|1|2|.Inf{chr(34)}')})",
         "within {{le}} s")], "reqps",
          "How many answers left within each time. What lies between 2 and +Inf came too late for the platform."),
    row("Delivery"),
    graph("Accepted and delivered", [
        (f"sum({rate('topic_bridge_callbacks_total', f'outcome=~{chr(34)}accepted|delivered{chr(34)}')})", "accepted"),
        (f"sum by (sink) ({rate('topic_bridge_published_total')})", "confirmed by {{sink}}")], "reqps",
          "Events into the outbox, and out of it."),
    graph("Time to deliver", percentiles("topic_bridge_delivery_seconds"), "s",
          "From an event's acceptance to its confirmation by the broker.", logarithmic=True),
    graph("Backlog", [(here("topic_bridge_outbox_pending"), "{{instance}}")], "none", "Events not delivered yet."),
    graph("Age of the oldest pending event",
          [(here("topic_bridge_outbox_oldest_pending_seconds"), "{{instance}}")], "s",
          "How far delivery is behind.", line_at=300),
    graph("Sink up", [(here("topic_bridge_sink_up"), "{{instance}}: {{sink}}")], "none",
          "1 while the broker takes events."),
    graph("Unconfirmed events by kind",
          [(f"sum by (kind) ({rate('topic_bridge_publish_errors_total')})", "{{kind}}")], "reqps",
          "Events that an attempt left unconfirmed. They are sent again, but for the kinds too_large and invalid. "
          "docs/brokers.md explains the kinds.", stacked=True),
    graph("Time for a batch at the broker", percentiles("topic_bridge_publish_seconds"), "s",
          "To have one batch confirmed.", logarithmic=True),
    graph("Time to the broker's confirmation, where the answer waits for it",
          percentiles("topic_bridge_confirm_seconds"), "s", 'With ingress.answer = "delivered".', logarithmic=True),
    row("Outbox"),
    graph("Bytes", [(here("topic_bridge_outbox_bytes"), "{{instance}}"),
                    (here("topic_bridge_outbox_max_bytes"), "limit of {{instance}}")], "bytes",
          "In use, and outbox.max_bytes, at which callbacks are refused."),
    graph("Time to commit", percentiles("topic_bridge_commit_seconds"), "s",
          "To make one batch durable: the disk's sync.", logarithmic=True),
    graph("Events in a commit", [(quantile(0.5, "topic_bridge_commit_events"), "half"),
                                 (quantile(0.99, "topic_bridge_commit_events"), "99 %")], "none",
          "How many callbacks share a sync."),
    graph("Dead letters and quarantine", [(here("topic_bridge_dead_letters"), "dead letters of {{instance}}"),
                                          (here("topic_bridge_quarantined"), "quarantine of {{instance}}")], "none",
          "They stay until somebody looks: topic-bridge outbox list --dead, --quarantined."),
    row("Passthrough"),
    graph("Forwarded callbacks by outcome",
          [(f"sum by (outcome) ({rate('topic_bridge_passthrough_total')})", "{{outcome}}")], "reqps",
          "All but answered got an OK of the bridge's own.", stacked=True),
    graph("Time to the backend's answer", percentiles("topic_bridge_passthrough_seconds"), "s",
          "passthrough.timeout is 1.4 s.", line_at=1.4, logarithmic=True),
    graph("Other commands, answered OK",
          [(f"sum by (command) ({rate('topic_bridge_callbacks_ignored_total')})", "{{command}}")], "reqps",
          "Authentic callbacks of other commands than topic-created.", stacked=True),
    row("Process"),
    graph("Memory", [(here("process_resident_memory_bytes"), "{{instance}}")], "bytes", "Resident."),
    graph("CPU", [(rate("process_cpu_seconds_total"), "{{instance}}")], "percentunit", "100 % is one core."),
    graph("Open files", [(here("process_open_fds"), "{{instance}}"),
                         (here("process_max_fds"), "limit of {{instance}}")], "none",
          "Connections, mostly.", logarithmic=True),
    graph("Log lines dropped", [(rate("topic_bridge_log_lines_dropped_total"), "{{instance}}")], "cps",
          "Because nobody reads stderr fast enough."),
    panel("Release", "stat", 12, 3, [(f"max by (instance, version) ({here('topic_bridge_build_info')})",
                                     "{{instance}}: {{version}}")], "none",
          "Of each bridge.", options={"textMode": "name", "colorMode": "none", "graphMode": "none"}),
    panel("Running since", "stat", 12, 3, [(f"1000 * {here('process_start_time_seconds')}", "{{instance}}")],
          "dateTimeAsIso", "Of each bridge.", options={"textMode": "value_and_name", "colorMode": "none",
                                                       "graphMode": "none"}),
]


def place(panels):
    """Numbers the panels, and lays them out in lines from left to right."""
    x = y = height = 0
    for at, it in enumerate(panels, 1):
        size = it["gridPos"]
        if x + size["w"] > WIDTH:
            x, y, height = 0, y + height, 0
        it["id"] = at
        it["gridPos"] = {"x": x, "y": y, **size}
        x, height = x + size["w"], max(height, size["h"])
    return panels


def choice(name, label, query):
    return {
        "type": "query", "name": name, "label": label, "datasource": SOURCE, "query": query, "definition": query,
        "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*", "sort": 1,
        "current": {"text": "All", "value": "$__all"},
    }


DASHBOARD = {
    "uid": "topic-bridge",
    "title": "topic-bridge",
    "description": "From the platform's callbacks to the broker's confirmation.",
    "tags": ["topic-bridge"],
    "schemaVersion": 39,
    "version": 1,
    "editable": True,
    "timezone": "browser",
    "time": {"from": "now-6h", "to": "now"},
    "refresh": "30s",
    "graphTooltip": 1,
    "templating": {"list": [
        {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"},
        choice("job", "Job", "label_values(topic_bridge_build_info, job)"),
        choice("instance", "Bridge", 'label_values(topic_bridge_build_info{job=~"$job"}, instance)'),
    ]},
    "annotations": {"list": [{
        "name": "Starts", "enable": True, "datasource": SOURCE, "iconColor": "blue", "titleFormat": "started",
        "expr": f"changes({here('process_start_time_seconds')}[1m]) > 0",
    }]},
    "links": [],
    "panels": place(PANELS),
}

print(json.dumps(DASHBOARD, indent=2, ensure_ascii=False))
