"""The parts of the benchmark that need brokers. Each broker is started for a measurement and thrown away
after it, alone on the machine but for the bridge and the load: all share its cores.
"""

import shutil
import subprocess
import time

from harness import APP, RATED_CONNECTIONS, RATES, ROOT, TOKEN, Broker, Part, table

NAMES = {"kafka": "Kafka", "rabbitmq": "RabbitMQ", "nats": "NATS JetStream"}
QUANTILES = ("p50", "p99", "p99.9")
# Messages unconfirmed at once; the best of them is each client library's raw rate.
WINDOWS = (512, 1024, 4096)
CONNECTIONS = (64, 256)
# For a bridge with a backlog to have read what it reads at its start, and tried to deliver.
SETTLED = 5.0


class BrokerPart(Part):
    """Measures with each broker in turn; a number's name begins with the broker's."""

    def measure(self, bench):
        numbers = {}
        for kind in bench.kinds:
            for name, value in self.measure_one(bench, kind).items():
                numbers[f"{kind} {name}"] = value
        return numbers

    def measure_one(self, bench, kind):
        raise NotImplementedError

    @staticmethod
    def kinds(numbers):
        """The brokers that were measured."""
        names = numbers.runs[0]
        return [kind for kind in NAMES if any(name.startswith(f"{kind} ") for name in names)]


class Drain(BrokerPart):
    """A backlog on its way out, beside the client library's own rate, each to a broker just started."""

    name = "drain"

    def measure_one(self, bench, kind):
        with bench.broker(kind) as broker:
            window, _ = best_window(bench, broker)
            raw = bench.raw(broker, "raw", count=bench.events, window=window)
        with bench.broker(kind) as broker:
            best_window(bench, broker)  # so that it is as warm as for the raw rate
            with bench.backlogged(broker.settings()) as server:
                drained = bench.drain(server)
        return {
            "raw rate": raw["rate"],
            "raw cpu": raw["cpu_seconds"] / raw["count"] * 1e6,
            "raw window": window,
            "rate": drained["rate"],
            "cpu": drained["cpu"],
            "peak": drained["peak"],
            "ratio": drained["rate"] / raw["rate"],
        }

    def tables(self, numbers):
        kinds = self.kinds(numbers)
        rows = [
            [NAMES[kind], *numbers.show(0, f"{kind} raw rate", f"{kind} rate"), *numbers.show(2, f"{kind} ratio")]
            for kind in kinds
        ]
        title = "Events delivered a second, from a backlog"
        yield title, table(["", "client library", "bridge", "bridge / client library"], rows)
        rows = [
            [NAMES[kind], *numbers.show(1, f"{kind} raw cpu", f"{kind} cpu", f"{kind} peak")] for kind in kinds
        ]
        title = "CPU for one event, in µs, and the bridge's resident memory at the most, in MiB"
        yield title, table(["", "client library", "bridge", "memory"], rows)


class SinkLatency(BrokerPart):
    """From a callback's sending and from its answer to its event at a consumer of the broker."""

    name = "received"
    intervals = (("sent_to_read_ms", "sending"), ("answer_to_read_ms", "its answer"))

    def measure_one(self, bench, kind):
        numbers = {}
        with bench.broker(kind) as broker:
            for rate in RATES:
                with bench.bridge(**broker.settings()) as server:
                    # Before the consumer: it needs the topic, which the bridge creates.
                    warm = bench.warm_up(server, connections=RATED_CONNECTIONS, rate=rate)
                    server.wait_until_published(warm["answered"], 30)
                    result = bench.readable(
                        server, rate=rate, seconds=bench.rated_seconds, source=broker.source()
                    )
                for interval, _ in self.intervals:
                    for quantile in QUANTILES:
                        numbers[f"{interval} {rate} {quantile}"] = result[interval][quantile]
        return numbers

    def tables(self, numbers):
        rows = [
            [NAMES[kind], f"{rate:,}/s", text]
            + numbers.show(3, *(f"{kind} {interval} {rate} {quantile}" for quantile in QUANTILES))
            for kind in self.kinds(numbers)
            for rate in RATES
            for interval, text in self.intervals
        ]
        yield "From a callback to its event at a consumer, in ms", table(["", "rate", "from", *QUANTILES], rows)


class Saturation(BrokerPart):
    """Callbacks as fast as they are answered, while the events go to a broker on the same cores."""

    name = "saturation"

    def measure_one(self, bench, kind):
        numbers = {}
        for connections in CONNECTIONS:
            with bench.broker(kind) as broker:
                with bench.floor() as server:
                    bench.warm_up(server, connections=connections)
                    floor = bench.send(server, seconds=bench.seconds, connections=connections)
                settings = broker.settings() | {"OUTBOX__MAX_BYTES": "4 GiB"}
                with bench.bridge(**settings) as server:
                    warm = bench.warm_up(server, connections=connections)
                    server.wait_until_published(warm["answered"], 60)
                    before = server.cpu_seconds()
                    summary = bench.send(server, seconds=bench.seconds, connections=connections)
                    meanwhile = server.published() - warm["answered"]
                    # What is left to deliver belongs to the callbacks' cost too.
                    server.wait_until_published(warm["answered"] + summary["answered"], 120)
                    cpu = server.cpu_seconds() - before
                    peak = server.memory_mib("VmHWM")
            numbers[f"{connections} floor"] = floor["rate"]
            numbers[f"{connections} rate"] = summary["rate"]
            numbers[f"{connections} ratio"] = summary["rate"] / floor["rate"]
            numbers[f"{connections} delivered"] = meanwhile / summary["answered"]
            numbers[f"{connections} cpu"] = cpu / summary["answered"] * 1e6
            numbers[f"{connections} peak"] = peak
        return numbers

    def tables(self, numbers):
        rows, costs = [], []
        for kind in self.kinds(numbers):
            for connections in CONNECTIONS:
                key = f"{kind} {connections}"
                name = [NAMES[kind], str(connections)]
                rows.append(
                    name
                    + numbers.show(0, f"{key} floor", f"{key} rate")
                    + numbers.show(2, f"{key} ratio", f"{key} delivered")
                )
                costs.append(name + numbers.show(1, f"{key} cpu", f"{key} peak"))
        head = ["", "connections", "floor", "bridge", "bridge / floor", "delivered meanwhile"]
        yield "Callbacks a second, with a broker on the same cores", table(head, rows)
        title = "CPU of the bridge from a callback to its delivery, in µs, and its resident memory at the most, in MiB"
        yield title, table(["", "connections", "CPU", "memory"], costs)


class Outage(Part):
    """What a bridge holds in memory while its broker is away: a million events are an hour at 280/s."""

    name = "outage"

    def measure(self, bench):
        _, taken = bench.backlog
        numbers = {"taking resident": taken["resident"], "taking peak": taken["peak"]}
        for kind in bench.kinds:
            with bench.backlogged(Broker.away(kind)) as server:
                time.sleep(SETTLED)
                numbers[f"{kind} resident"] = server.memory_mib("VmRSS")
                numbers[f"{kind} peak"] = server.memory_mib("VmHWM")
        return numbers

    def tables(self, numbers):
        whence = {"taking": "having taken it (NATS away)"}
        whence |= {kind: f"started with it, {NAMES[kind]} away" for kind in NAMES}
        rows = [
            [text, *numbers.show(1, f"{key} resident", f"{key} peak")]
            for key, text in whence.items()
            if f"{key} peak" in numbers.runs[0]
        ]
        yield "Resident memory with an hour's backlog, in MiB", table(["", "then", "at the most"], rows)


class Build(Part):
    """Smaller builds: what they weigh on disk and, with their broker connected, in memory.

    Builds each of them, some minutes each the first time, so it is measured only when asked for."""

    name = "build"
    by_default = False

    def measure(self, bench):
        numbers = {}
        builds = {"all": list(NAMES)} | {kind: [kind] for kind in bench.kinds} | {"none": []}
        for name, features in builds.items():
            binary = self._build(bench, name, features)
            numbers[f"{name} size"] = binary.stat().st_size / 2**20
            stripped = binary.with_name("stripped")
            subprocess.run(["strip", "-o", str(stripped), str(binary)], check=True)
            numbers[f"{name} stripped"] = stripped.stat().st_size / 2**20
            smaller = bench.with_binaries(binary.parent)
            numbers[f"{name} embedded"] = self._idle(smaller, {"SINK": "embedded"})
            for kind in set(features) & set(bench.kinds):
                with smaller.broker(kind) as broker:
                    numbers[f"{name} {kind}"] = self._idle(smaller, broker.settings())
        return numbers

    def _build(self, bench, name, features):
        target = bench.directory / "build"
        command = ["cargo", "build", "--release", "--locked", "--bin", "topic-bridge", "--target-dir", str(target)]
        command += ["--no-default-features", "--features", ",".join(features)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        # The next build overwrites the program, not the copy.
        binary = target / name / "topic-bridge"
        binary.parent.mkdir(exist_ok=True)
        shutil.copy2(target / "release/topic-bridge", binary)
        return binary

    def _idle(self, bench, settings):
        with bench.bridge(**settings) as server:
            server.wait_until_ready()
            time.sleep(1)
            return server.memory_mib("VmRSS")

    def tables(self, numbers):
        names = [key.removesuffix(" size") for key in numbers.runs[0] if key.endswith(" size")]
        rows = [
            [
                NAMES.get(name, name),
                *numbers.show(1, f"{name} size", f"{name} stripped", f"{name} embedded"),
                *numbers.show(1, *(f"{name} {kind}" for kind in NAMES)),
            ]
            for name in names
        ]
        sinks = [f"idle, {text}" for text in NAMES.values()]
        head = ["brokers built in", "program", "stripped", "idle, embedded", *sinks]
        yield "The program on disk and idle in memory, in MiB", table(head, rows)


def best_window(bench, broker):
    """The window with the highest raw rate, and that rate, tried with a tenth of the events each."""
    rates = {
        window: bench.raw(broker, f"try-{window}", count=max(bench.events // 10, 1000), window=window)["rate"]
        for window in WINDOWS
    }
    return max(rates.items(), key=lambda item: item[1])


PARTS = (Drain(), SinkLatency(), Saturation(), Outage(), Build())
