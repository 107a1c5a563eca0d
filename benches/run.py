#!/usr/bin/env python3
"""Measures the bridge beside the floor, on this machine, in one go.

The floor (examples/floor.rs) is an HTTP handler that reads the body and answers OK. The bridge checks
signatures and syncs every event to disk (`outbox.sync = "full"`, the embedded sink) before it answers.
Both are loaded by `topic-bridge send` over the loopback, in turns within each run, each time as a fresh
process with a fresh outbox. Load generator and server share the machine's cores, so the ratios say more
than the rates do. The parts in brokers.py start brokers of their own, which share the cores too.

The tables go to stdout, as they stand in docs/performance.md; every number of every run goes to --out.
To measure something else, write a `Part` and put it in PARTS.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import sys
import time

import brokers
from harness import (
    CONNECTIONS, MAX_DISTURBANCE, RATED_CONNECTIONS, RATES, ROOT, SATURATION, Bench, Failed, Numbers, Part,
    machine, table,
)


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
                    bench.warm_up(server, connections=connections)
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
                    bench.warm_up(server, connections=RATED_CONNECTIONS, rate=rate)
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
                bench.warm_up(server, connections=RATED_CONNECTIONS, rate=rate)
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


PARTS = (Disk(), Idle(), Throughput(), Latency(), Readable(), *brokers.PARTS)


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
                        help="measure this part only; may be repeated (build is not measured without)")
    parser.add_argument("--broker", choices=list(brokers.NAMES), action="append",
                        help="with this broker only; may be repeated (default: all three)")
    parser.add_argument("--no-brokers", action="store_true", help="leave out the parts that need brokers")
    parser.add_argument("--events", type=int, default=1_000_000, help="of a backlog (default: a million)")
    args = parser.parse_args()
    if args.quick:
        args.runs, args.seconds, args.events = 1, 1, min(args.events, 50_000)
    if args.runs < 1 or args.seconds <= 0 or args.events < 10_000:
        parser.error("--runs and --seconds must be above 0, --events at least 10000")
    return args


def main():
    args = arguments()
    # An outer stop must run the `finally`s that stop the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.dir.mkdir(parents=True, exist_ok=True)
    directory = args.dir.resolve()
    parts = [part for part in PARTS if (part.name in args.only if args.only else part.by_default)]
    if args.no_brokers:
        parts = [part for part in parts if part not in brokers.PARTS]
    about = machine(directory)
    if about["file_system"] == "tmpfs":
        print(f"warning: {directory} is in memory, where a sync costs nothing", file=sys.stderr)
    kinds = [kind for kind in brokers.NAMES if not args.broker or kind in args.broker]
    bench = Bench(args.binaries.resolve(), directory, args.seconds, args.events, kinds)

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
    finally:
        bench.drop_backlog()

    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"runs": args.runs, "seconds": args.seconds, "events": args.events}
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
