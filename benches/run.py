#!/usr/bin/env python3
"""Measures the bridge beside the floor, on this machine, in one go.

The floor (examples/floor.rs) is an HTTP handler that reads the body and answers OK. The bridge checks
signatures and syncs every event to disk (`outbox.sync = "full"`, the embedded sink) before it answers.
Both are loaded by `topic-bridge send` over the loopback, in turns within each run, each time as a fresh
process with a fresh outbox. Load generator and server share the machine's cores, so the ratios say more
than the rates do.

The tables go to stdout, as they stand in docs/performance.md; every number of every run goes to --out.
To measure something else, write a `Part` and put it in PARTS.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

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
START_TIMEOUT = 10.0
STOP_TIMEOUT = 30.0
QUIET_TIMEOUT = 10.0
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


class Bench:
    """What the parts measure with: binaries, a directory on the disk in question, and durations."""

    def __init__(self, binaries, directory, seconds):
        self.binaries = binaries
        self.directory = directory
        self.seconds = seconds
        # A percentile of few callbacks says little: the slow rates run for longer.
        self.rated_seconds = seconds * 2
        # What disturbed each load: a compiler beside it can halve a rate and look like a slow bridge.
        self.disturbances = []

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

    def roles(self):
        return (("floor", self.floor), ("bridge", self.bridge))

    def send(self, server, *, seconds, connections, rate=None):
        """Loads a server and returns the summary; whatever is not answered OK spoils it."""
        command = [self.binaries / "topic-bridge", "send", "--json", "--url", server.url]
        command += ["--sdk-app-id", APP, "--token", TOKEN]
        command += ["--duration", f"{round(seconds * 1000)}ms", "--concurrency", connections]
        if rate:
            command += ["--rate", rate]
        with self._undisturbed(server, command):
            return run_json(command, seconds + 30)

    def readable(self, server, *, rate, seconds):
        command = [self.binaries / "examples/readable", server.url, server.admin, APP, TOKEN]
        command += [rate, seconds]
        with self._undisturbed(server, command):
            return run_json(command, seconds + 60)

    @contextlib.contextmanager
    def _undisturbed(self, server, command):
        """Notes how much of the machine went to neither the server nor its load, nor was idle."""
        before = machine_seconds(), server.cpu_seconds() + children_seconds()
        yield
        (busy, stolen, total), own = machine_seconds(), server.cpu_seconds() + children_seconds()
        (busy_before, stolen_before, total_before), own_before = before
        total -= total_before
        self.disturbances.append(
            {
                "load": " ".join(str(part) for part in command[1:]).replace(TOKEN, "***"),
                "server": server.process.args[0],
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

    def measure(self, bench):
        raise NotImplementedError

    def tables(self, numbers):
        raise NotImplementedError


class Disk(Part):
    """One write of 4 KiB and its fdatasync: what no durable answer can beat."""

    name = "disk"
    block = b"\xa5" * 4096
    times = 200

    def measure(self, bench):
        path = bench.directory / "fdatasync"
        numbers = {}
        try:
            with open(path, "wb", buffering=0) as file:
                file.write(self.block * self.times)
                os.fsync(file.fileno())
                in_place = self._sync_times(file, 0)
                growing = self._sync_times(file, self.times)
        finally:
            path.unlink(missing_ok=True)
        for kind, times in (("in place", in_place), ("growing", growing)):
            cuts = statistics.quantiles(times, n=100, method="inclusive")
            numbers |= {f"{kind} p50": cuts[49], f"{kind} p99": cuts[98]}
        return numbers

    def _sync_times(self, file, first):
        times = []
        for number in range(first, first + self.times):
            start = time.perf_counter()
            os.pwrite(file.fileno(), self.block, number * len(self.block))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - start) * 1000)
        return times

    def tables(self, numbers):
        rows = [
            [f"one 4 KiB write and fdatasync, {text}", *numbers.show(3, f"{kind} p50", f"{kind} p99")]
            for kind, text in (("in place", "in place"), ("growing", "at the end of a growing file"))
        ]
        yield "The disk, in ms", table(["", "p50", "p99"], rows)


class Throughput(Part):
    """As fast as it goes: callbacks a second, CPU for each, memory at the most."""

    name = "throughput"

    def measure(self, bench):
        numbers = {}
        for connections in CONNECTIONS:
            for role, start in bench.roles():
                key = f"{role} {connections}"
                with start() as server:
                    # Allocations, connections and the outbox's first pages are not the steady state.
                    bench.send(server, seconds=0.5, connections=connections)
                    server.wait_until_quiet()
                    before = server.cpu_seconds()
                    summary = bench.send(server, seconds=bench.seconds, connections=connections)
                    server.wait_until_quiet()
                    cpu = server.cpu_seconds() - before
                    numbers[f"{key} rate"] = summary["rate"]
                    numbers[f"{key} cpu"] = cpu / summary["answered"] * 1e6
                    numbers[f"{key} peak"] = server.memory_mib("VmHWM")
                    for quantile in ("p50", "p99", "p99.9"):
                        numbers[f"{key} {quantile}"] = summary["latency_ms"][quantile]
            for what in ("rate", "cpu"):
                floor = numbers[f"floor {connections} {what}"]
                ratio = numbers[f"bridge {connections} {what}"] / floor
                numbers[f"{connections} {what} ratio"] = ratio
        return numbers

    def tables(self, numbers):
        for what, title, digits in (
            ("rate", "Callbacks a second", 0),
            ("cpu", "CPU of the server for one callback, in µs", 1),
        ):
            rows = [
                [
                    str(connections),
                    *numbers.show(digits, f"floor {connections} {what}", f"bridge {connections} {what}"),
                    *numbers.show(2, f"{connections} {what} ratio"),
                ]
                for connections in CONNECTIONS
            ]
            yield title, table(["connections", "floor", "bridge", "bridge / floor"], rows)
        rows = [
            [role, *numbers.show(3, *(f"{role} {SATURATION} {q}" for q in ("p50", "p99", "p99.9")))]
            for role in ("floor", "bridge")
        ]
        title = f"Answer latency at saturation ({SATURATION} connections), in ms"
        yield title, table(["", "p50", "p99", "p99.9"], rows)
        rows = [[role, *numbers.show(1, f"{role} {SATURATION} peak")] for role in ("floor", "bridge")]
        title = f"Resident memory at the most ({SATURATION} connections, saturation), in MiB"
        yield title, table(["", "peak"], rows)


class Latency(Part):
    """At a steady rate: from sending a callback to its answer."""

    name = "latency"

    def measure(self, bench):
        numbers = {}
        for rate in RATES:
            for role, start in bench.roles():
                with start() as server:
                    bench.send(server, seconds=0.5, connections=RATED_CONNECTIONS, rate=rate)
                    summary = bench.send(
                        server, seconds=bench.rated_seconds, connections=RATED_CONNECTIONS, rate=rate
                    )
                for quantile in ("p50", "p99", "p99.9"):
                    numbers[f"{role} {rate} {quantile}"] = summary["latency_ms"][quantile]
        return numbers

    def tables(self, numbers):
        rows = [
            [f"{rate:,}/s", role]
            + numbers.show(3, *(f"{role} {rate} {q}" for q in ("p50", "p99", "p99.9")))
            for rate in RATES
            for role in ("floor", "bridge")
        ]
        yield "Answer latency at a steady rate, in ms", table(["rate", "", "p50", "p99", "p99.9"], rows)


class Readable(Part):
    """From a callback's sending and from its answer to its event on `GET /events`."""

    name = "readable"
    intervals = (("sent_to_read_ms", "sending"), ("answer_to_read_ms", "its answer"))

    def measure(self, bench):
        numbers = {}
        for rate in RATES:
            with bench.bridge() as server:
                bench.send(server, seconds=0.5, connections=RATED_CONNECTIONS, rate=rate)
                result = bench.readable(server, rate=rate, seconds=bench.rated_seconds)
            for interval, _ in self.intervals:
                for quantile in ("p50", "p99", "p99.9"):
                    numbers[f"{interval} {rate} {quantile}"] = result[interval][quantile]
        return numbers

    def tables(self, numbers):
        rows = [
            [f"{rate:,}/s", text]
            + numbers.show(3, *(f"{interval} {rate} {q}" for q in ("p50", "p99", "p99.9")))
            for rate in RATES
            for interval, text in self.intervals
        ]
        title = "From a callback to its event in the stream, in ms"
        yield title, table(["rate", "from", "p50", "p99", "p99.9"], rows)


class Idle(Part):
    """Resident memory a second after the start, before any traffic."""

    name = "idle"

    def measure(self, bench):
        numbers = {}
        for role, start in bench.roles():
            with start() as server:
                time.sleep(1)
                numbers[role] = server.memory_mib("VmRSS")
        return numbers

    def tables(self, numbers):
        rows = [[role, *numbers.show(1, role)] for role in ("floor", "bridge")]
        yield "Resident memory when idle, in MiB", table(["", "idle"], rows)


PARTS = (Disk(), Idle(), Throughput(), Latency(), Readable())


class Numbers:
    """A part's numbers over all runs, shown as median (least–most)."""

    def __init__(self, runs):
        self.runs = runs

    def show(self, digits, *names):
        return [self._show(digits, name) for name in names]

    def _show(self, digits, name):
        values = [run[name] for run in self.runs]
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


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of everything (default: 3)")
    parser.add_argument("--seconds", type=float, default=5, help="of each load (default: 5)")
    parser.add_argument("--quick", action="store_true", help="one run of a second each, to try it")
    parser.add_argument("--dir", type=pathlib.Path, default=ROOT / "target/bench",
                        help="where the outbox goes: the disk to measure (default: target/bench)")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/bench/results.json",
                        help="where the raw numbers go (default: target/bench/results.json)")
    parser.add_argument("--binaries", type=pathlib.Path, default=ROOT / "target/release",
                        help="where the built programs are (default: target/release)")
    parser.add_argument("--only", choices=[part.name for part in PARTS], action="append",
                        help="measure this part only; may be repeated")
    args = parser.parse_args()
    if args.quick:
        args.runs, args.seconds = 1, 1
    if args.runs < 1 or args.seconds <= 0:
        parser.error("--runs and --seconds must be above 0")
    return args


def main():
    args = arguments()
    # An outer stop must run the `finally`s that stop the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.dir.mkdir(parents=True, exist_ok=True)
    directory = args.dir.resolve()
    parts = [part for part in PARTS if not args.only or part.name in args.only]
    about = machine(directory)
    if about["file_system"] == "tmpfs":
        print(f"warning: {directory} is in memory, where a sync costs nothing", file=sys.stderr)
    bench = Bench(args.binaries.resolve(), directory, args.seconds)

    runs = []
    try:
        for number in range(1, args.runs + 1):
            run = {}
            for part in parts:
                print(f"run {number} of {args.runs}: {part.name}", file=sys.stderr)
                run[part.name] = part.measure(bench)
            runs.append(run)
    except Failed as failure:
        print(f"benchmark failed: {failure}", file=sys.stderr)
        return 1

    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"runs": args.runs, "seconds": args.seconds}
    disturbed = [
        load for load in bench.disturbances if load["others"] + load["stolen"] > MAX_DISTURBANCE
    ]
    whole = {"machine": about, "settings": settings, "runs": runs}
    whole["disturbances"] = bench.disturbances
    args.out.write_text(json.dumps(whole, indent=1) + "\n")

    print(
        f"{about['cores']} cores of {about['cpu']}, Linux {about['kernel']}, {about['file_system']}; "
        f"{args.runs} run(s) of {args.seconds:g} s, median (least–most).\n"
    )
    if disturbed:
        # In the tables' own text, so that such numbers cannot be published without it.
        worst = max(load["others"] + load["stolen"] for load in disturbed)
        print(
            f"**Disturbed:** during {len(disturbed)} of {len(bench.disturbances)} loads other processes "
            f"or the hypervisor took over {MAX_DISTURBANCE:.0%} of the machine, at worst {worst:.0%}. "
            "Measure again on a quiet machine.\n"
        )
    for part in parts:
        for title, text in part.tables(Numbers([run[part.name] for run in runs])):
            print(f"**{title}**\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
