"""What the parts of the benchmark measure with: servers, loads, numbers and tables."""

import contextlib
import functools
import json
import os
import pathlib
import platform
import resource
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
APP = 1400000000
TOKEN = "bench-token"
CONNECTIONS = (1, 64, 256)
SATURATION = 64  # the connections of the saturation rows
RATES = (100, 2000)
RATED_CONNECTIONS = 16
# The message with which the bridge announces each listener.
CALLBACKS_MESSAGE = "listening for callbacks"
ADMIN_MESSAGE = "private listener ready"
# How often the bridge is asked how far it is; each time costs it some 0.2 ms.
ASK_EVERY = 0.05
START_TIMEOUT = 10.0
BROKER_TIMEOUT = 180.0  # to start a broker, which may have to be installed first
STOP_TIMEOUT = 30.0
QUIET_TIMEOUT = 10.0
# Seconds for which a server is loaded before it is measured.
WARM_UP = 0.5
# More of the machine's time than this taken by others makes a load's numbers doubtful.
MAX_DISTURBANCE = 0.05


class Failed(Exception):
    """A measurement that cannot be trusted; the text says why."""


class Server:
    """A process under measurement: found by its log, stopped by SIGTERM to its own pid."""

    def __init__(self, command, log, env=None):
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
            )

    def wait_for(self, find):
        """The first thing other than None that `find` makes of a line of the log."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            for line in self.log.read_text(errors="replace").splitlines():
                found = find(line)
                if found is not None:
                    return found
            if self.process.poll() is not None:
                raise Failed(f"the server ended with code {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise Failed(f"no address in the log after {START_TIMEOUT} s:\n{self.tail()}")
            time.sleep(0.02)

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def cpu_seconds(self):
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        # The fields after the command's name, which is in brackets and may hold anything.
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self, field):
        """`VmRSS`, what is resident now, or `VmHWM`, the most that ever was."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
        raise Failed(f"no {field} in the status of process {self.process.pid}")

    def published(self):
        """Of a bridge: the events that its sink has confirmed."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.admin}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("topic_bridge_published_total"):
                    return int(float(line.split()[-1]))
        return 0

    def wait_until_ready(self):
        """Until the bridge's sink takes events."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                return direct.open(f"{self.admin}/readyz", timeout=10).close()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Failed(f"not ready after {START_TIMEOUT} s ({error}):\n{self.tail()}") from error
            time.sleep(ASK_EVERY)

    def wait_until_published(self, count, timeout):
        deadline = time.monotonic() + timeout
        while (published := self.published()) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{published} of {count} events delivered after {timeout} s:\n{self.tail()}")
            time.sleep(ASK_EVERY)

    def wait_until_quiet(self):
        """What the bridge does after its answers belongs to the callbacks' cost too."""
        deadline = time.monotonic() + QUIET_TIMEOUT
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.25)
            now = self.cpu_seconds()
            if now - before < 0.02:
                return
            before = now

    def stop(self):
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Broker:
    """A broker of its own, started by tests/brokers/control, with nothing in it yet."""

    # How the bridge is told of it, and where it publishes by default.
    _sinks = {
        "kafka": ("TOPIC_BRIDGE_KAFKA__BROKERS", "{}", "chat.topic.created"),
        "rabbitmq": ("TOPIC_BRIDGE_RABBITMQ__URL", "{}", "chat.topic.created"),
        "nats": ("TOPIC_BRIDGE_NATS__SERVERS", '["{}"]', "CHAT_TOPICS"),
    }
    _nowhere = {
        "kafka": "127.0.0.1:1",
        "rabbitmq": "amqp://guest:guest@127.0.0.1:1/%2f",
        "nats": "nats://127.0.0.1:1",
    }
    control = ROOT / "tests/brokers/control"

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        # What stands in the environment is another set of brokers; Python clients are not needed here.
        foreign = ("TOPIC_BRIDGE_", "BRIDGE_TEST_")
        self._env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        others = " ".join(other for other in self._sinks if other != kind)
        self._env |= {"BRIDGE_TEST_WITHOUT": others, "BRIDGE_TEST_PYTHON": sys.executable}
        exports = self._run("up")
        name = f"BRIDGE_TEST_{kind.upper()}"
        words = [word.partition("=") for word in shlex.split(exports)]
        self.address = next(value for key, _, value in words if key == name)

    def _run(self, verb):
        command = [str(self.control), verb, str(self.folder)]
        done = subprocess.run(
            command, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            timeout=BROKER_TIMEOUT,
        )
        if done.returncode != 0:
            raise Failed(f"tests/brokers/control {verb} for {self.kind} failed:\n{done.stderr}")
        return done.stdout

    def stop(self):
        self._run("down")

    def url(self, place):
        scheme = "kafka://" if self.kind == "kafka" else ""
        return f"{scheme}{self.address}#{place}"

    def source(self):
        """Where the bridge's events can be read."""
        return self.url(self._sinks[self.kind][2])

    def settings(self):
        return self._settings(self.kind, self.address)

    @classmethod
    def away(cls, kind):
        """The settings of a bridge whose broker does not answer."""
        return cls._settings(kind, cls._nowhere[kind])

    @classmethod
    def _settings(cls, kind, address):
        name, form, _ = cls._sinks[kind]
        return {"SINK": kind, name.removeprefix("TOPIC_BRIDGE_"): form.format(address)}

    def cpu_seconds(self):
        """Of its processes; 0 where it runs in containers, whose work then counts as others'."""
        hertz, total = os.sysconf("SC_CLK_TCK"), 0
        for file in self.folder.glob("**/pid"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(file.read_text().split()[0])
                stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
                fields = stat.rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / hertz
        return total


class Bench:
    """What the parts measure with: binaries, a directory on the disk in question, and durations."""

    def __init__(self, binaries, directory, seconds, events, kinds):
        self.binaries = binaries
        self.directory = directory
        self.seconds = seconds
        # How many events a backlog holds, and the brokers to measure with.
        self.events = events
        self.kinds = kinds
        self._broker = None
        # A percentile of few callbacks says little: the slow rates run for longer.
        self.rated_seconds = seconds * 2
        # What disturbed each load: a compiler beside it can halve a rate and look like a slow bridge.
        self.disturbances = []

    def with_binaries(self, binaries):
        return Bench(binaries, self.directory, self.seconds, self.events, self.kinds)

    @contextlib.contextmanager
    def floor(self):
        with self._scratch() as scratch:
            server = Server([self.binaries / "examples/floor", "127.0.0.1:0", 2], scratch / "log")
            try:
                prefix = "listening on "
                address = server.wait_for(
                    lambda line: line[len(prefix) :].strip() if line.startswith(prefix) else None
                )
                server.url = f"http://{address}/"
                yield server
            finally:
                server.stop()

    @contextlib.contextmanager
    def bridge(self, **settings):
        """A bridge with a fresh outbox; further settings by the names of its variables."""
        with self._scratch() as scratch:
            env = {k: v for k, v in os.environ.items() if not k.startswith("TOPIC_BRIDGE_")}
            env |= {
                "TOPIC_BRIDGE_APPS": f'[{{sdk_app_id={APP},tokens=["{TOKEN}"]}}]',
                "TOPIC_BRIDGE_SINK": "embedded",
                "TOPIC_BRIDGE_INGRESS__LISTEN": "127.0.0.1:0",
                "TOPIC_BRIDGE_ADMIN__LISTEN": "127.0.0.1:0",
                "TOPIC_BRIDGE_OUTBOX__PATH": str(scratch / "outbox.db"),
                "TOPIC_BRIDGE_OUTBOX__SYNC": "full",
                "TOPIC_BRIDGE_LOG__FORMAT": "json",
            }
            env |= {f"TOPIC_BRIDGE_{name}": value for name, value in settings.items()}
            server = Server([self.binaries / "topic-bridge", "serve"], scratch / "log", env)
            try:
                server.url = f"http://{server.wait_for(announced(CALLBACKS_MESSAGE))}/"
                server.admin = f"http://{server.wait_for(announced(ADMIN_MESSAGE))}"
                yield server
            finally:
                server.stop()

    @contextlib.contextmanager
    def broker(self, kind):
        """A fresh broker; one at a time, for each takes its share of the machine."""
        with self._scratch() as scratch:
            self._broker = Broker(kind, scratch / "broker")
            try:
                yield self._broker
            finally:
                stopped, self._broker = self._broker, None
                stopped.stop()

    @functools.cached_property
    def backlog(self):
        """An outbox full of events that no sink has taken, and what its bridge held meanwhile: made once."""
        path = self.directory / "backlog.db"
        self.drop_backlog()
        settings = Broker.away("nats") | self.backlog_settings(path)
        with self.bridge(**settings) as server:
            command = [self.binaries / "topic-bridge", "send", "--json", "--url", server.url]
            command += ["--sdk-app-id", APP, "--token", TOKEN]
            command += ["--count", self.events, "--concurrency", 256]
            run_json(command, 60 + self.events / 1000)
            memory = {"resident": server.memory_mib("VmRSS"), "peak": server.memory_mib("VmHWM")}
        return path, memory

    def drop_backlog(self):
        for file in self.directory.glob("backlog.db*"):
            file.unlink()

    @staticmethod
    def backlog_settings(path):
        """Room for the events, and a stop that does not try to deliver them first."""
        return {
            "OUTBOX__PATH": str(path),
            "OUTBOX__MAX_BYTES": "4 GiB",
            "RELAY__DRAIN_TIMEOUT": "0s",
        }

    @contextlib.contextmanager
    def backlogged(self, settings):
        """A bridge that starts with a copy of the backlog."""
        with self._scratch() as scratch:
            copy = scratch / "copy.db"
            subprocess.run(["cp", "--reflink=auto", str(self.backlog[0]), str(copy)], check=True)
            # Its pages on their way to the disk would slow down whatever comes next.
            os.sync()
            with self.bridge(**(settings | self.backlog_settings(copy))) as server:
                yield server

    def raw(self, broker, place, *, count, window):
        """What the broker's client library publishes by itself."""
        command = [self.binaries / "examples/raw", broker.url(place), count, window]
        with self._undisturbed(None, command):
            return run_json(command, 60 + count / 500)

    def drain(self, server):
        """From the first event that is seen delivered to the last."""
        deadline = time.monotonic() + 60 + self.events / 500
        with self._undisturbed(server, ["drain"]):
            first = None
            while True:
                published, now = server.published(), time.monotonic()
                if first is None and published > 0:
                    first, started, cpu = published, now, server.cpu_seconds()
                if published >= self.events:
                    break
                if server.process.poll() is not None or now > deadline:
                    raise Failed(f"{published} of {self.events} events delivered:\n{server.tail()}")
                time.sleep(ASK_EVERY)
            count = published - first
            if count < self.events / 2:
                raise Failed(f"{self.events} events are too few: {first} were delivered at the first look")
            return {
                "rate": count / (now - started),
                "cpu": (server.cpu_seconds() - cpu) / count * 1e6,
                "peak": server.memory_mib("VmHWM"),
            }

    def roles(self):
        return (("floor", self.floor), ("bridge", self.bridge))

    def warm_up(self, server, *, connections, rate=None):
        """A load whose numbers count for nothing, so that nothing can disturb it."""
        return self._send(server, WARM_UP, connections, rate, contextlib.nullcontext())

    def send(self, server, *, seconds, connections, rate=None):
        """Loads a server and returns the summary."""
        watch = self._undisturbed(server, ["send", f"{connections} connections, rate {rate}"])
        return self._send(server, seconds, connections, rate, watch)

    def _send(self, server, seconds, connections, rate, watch):
        """Whatever is not answered OK spoils it."""
        command = [self.binaries / "topic-bridge", "send", "--json", "--url", server.url]
        command += ["--sdk-app-id", APP, "--token", TOKEN]
        command += ["--duration", f"{round(seconds * 1000)}ms", "--concurrency", connections]
        if rate:
            command += ["--rate", rate]
        with watch:
            return run_json(command, seconds + 30)

    def readable(self, server, *, rate, seconds, source=None):
        """Reads from a source, or else the bridge's own stream."""
        command = [self.binaries / "examples/readable", server.url, source or server.admin, APP, TOKEN]
        command += [rate, seconds]
        with self._undisturbed(server, command):
            return run_json(command, seconds + 60)

    @contextlib.contextmanager
    def _undisturbed(self, server, command):
        """Notes how much of the machine went to neither server, broker nor load, nor was idle."""

        def own_seconds():
            measured = [process for process in (server, self._broker) if process is not None]
            return children_seconds() + sum(process.cpu_seconds() for process in measured)

        before = machine_seconds(), own_seconds()
        yield
        (busy, stolen, total), own = machine_seconds(), own_seconds()
        (busy_before, stolen_before, total_before), own_before = before
        total -= total_before
        self.disturbances.append(
            {
                "load": " ".join([pathlib.Path(command[0]).name, *map(str, command[1:])]).replace(TOKEN, "***"),
                "server": server.process.args[0] if server else None,
                "broker": self._broker.kind if self._broker else None,
                "others": max(0.0, (busy - busy_before) - (own - own_before)) / total,
                "stolen": (stolen - stolen_before) / total,
            }
        )

    @contextlib.contextmanager
    def _scratch(self):
        path = pathlib.Path(tempfile.mkdtemp(dir=self.directory))
        try:
            yield path
        finally:
            shutil.rmtree(path)


def machine_seconds():
    """CPU seconds of all cores: busy, taken by the hypervisor, and all together."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    line = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()
    ticks = dict(zip(names, map(int, line[1:]), strict=False))
    hertz = os.sysconf("SC_CLK_TCK")
    busy = sum(ticks[name] for name in ("user", "nice", "system", "irq", "softirq"))
    return busy / hertz, ticks["steal"] / hertz, sum(ticks.values()) / hertz


def children_seconds():
    """CPU seconds of this process and of the loads it has run to their end."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def announced(message):
    """Finds the address in the bridge's log line that begins with this message."""

    def find(line):
        try:
            fields = json.loads(line).get("fields", {})
        except (ValueError, AttributeError):
            return None
        return fields.get("address") if fields.get("message", "").startswith(message) else None

    return find


def run_json(command, timeout):
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        shown = " ".join(command)
        raise Failed(f"{shown}\nended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


class Part:
    """One thing to measure: `measure` gives a number for each name, `tables` shows them."""

    name = ""
    by_default = True

    def measure(self, bench):
        raise NotImplementedError

    def tables(self, numbers):
        raise NotImplementedError


class Numbers:
    """A part's numbers over all runs, shown as median (least–most)."""

    def __init__(self, runs):
        self.runs = runs

    def show(self, digits, *names):
        return [self._show(digits, name) for name in names]

    def _show(self, digits, name):
        values = [run[name] for run in self.runs if name in run]
        if not values:
            return "–"  # not measured, as where there is nothing to measure
        text = f"{statistics.median(values):,.{digits}f}"
        if len(values) == 1:
            return text
        return f"{text} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def machine(directory):
    """What the numbers depend on."""
    model = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "file_system": file_system(directory),
        "load_before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def file_system(directory):
    """The type of the file system that holds the directory: of its longest mount point."""
    best = ("", "unknown")
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind = line.split()[:3]
        if directory.is_relative_to(point) and len(point) > len(best[0]):
            best = (point, kind)
    return best[1]
